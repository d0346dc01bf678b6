//! The pods and the client of the demonstration (`scripts/demo.sh`): a web server that says its name, and a client that
//! counts who answers.
//!
//! ```text
//! demo_pod serve NAME PORT            answer HTTP requests with NAME
//! demo_pod ask ADDRESS COUNT          make COUNT requests and tell who answered how often; fails if one failed
//! demo_pod replace ADDRESS NEW FILE NAME
//!                                     keep making requests, rename NEW to FILE, and tell how long after that NAME still
//!                                     answered; fails if a request failed or NAME never stops answering
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["serve", name, port] => serve(name, port),
        ["ask", address, count] => ask(address, count),
        ["replace", address, new, file, name] => replace(address, new, file, name),
        _ => Err("usage: demo_pod serve NAME PORT | ask ADDRESS COUNT | replace ADDRESS NEW FILE NAME".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo_pod: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers every connection in a thread of its own.
fn serve(name: &str, port: &str) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.parse()?))?;
    for stream in listener.incoming() {
        let name = name.to_owned();
        thread::spawn(move || {
            // A client that goes away early is no concern of the server.
            drop(stream.and_then(|stream| answer(stream, &name)));
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{name}", name.len())
}

/// Makes one request on a new connection; returns the body.
fn request(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

fn ask(address: &str, count: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..count.parse::<u32>()? {
        *counts.entry(request(address).map_err(|error| format!("{address}: {error}"))?).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("{}", counts.join("   "));
    Ok(())
}

fn replace(address: &str, new: &str, file: &str, name: &str) -> Result<()> {
    const BEFORE: Duration = Duration::from_millis(500);
    const QUIET: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(20);
    let address: SocketAddr = address.parse()?;
    let (mut requests, mut failures, mut by_name_before) = (0u32, 0u32, 0u32);
    let start = Instant::now();
    let (mut changed, mut last): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        let now = Instant::now();
        match changed {
            None if now - start > BEFORE => {
                fs::rename(new, file)?;
                changed = Some(Instant::now());
            }
            Some(at) if now - at > PATIENCE => return Err(format!("{name} still answers after {PATIENCE:?}").into()),
            Some(at) if now - last.unwrap_or(at) > QUIET => break,
            _ => {}
        }
        let begun = Instant::now();
        requests += 1;
        match request(address) {
            Ok(body) if body == name && changed.is_some() => last = Some(begun),
            Ok(body) if body == name => by_name_before += 1,
            Ok(_) => {}
            Err(_) => failures += 1,
        }
    }
    let moved = changed.zip(last).map(|(at, last)| last.saturating_duration_since(at)).unwrap_or_default();
    println!("{requests} requests, {failures} failed; {name} got its last one {} ms after the edit", moved.as_millis());
    match (failures, by_name_before) {
        (0, 0) => Err(format!("{name} never answered before the edit").into()),
        (0, _) => Ok(()),
        _ => Err(format!("{failures} requests failed").into()),
    }
}
