//! A program that runs beside a test, and what it says over HTTP, both in the namespace of the calling thread.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Where the health server of the daemon listens.
pub(crate) const HEALTHZ: &str = "127.0.0.1:10256";
/// Where its metrics server does.
pub(crate) const METRICS: &str = "127.0.0.1:10249";

/// A running program. Killed when dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        Running(command.spawn().expect("the program starts"))
    }

    /// Sends SIGTERM; returns the exit code and how long the end took.
    pub(crate) fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is running");
        let status = self.0.wait().expect("it ends");
        (status.code(), start.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// An answer over HTTP.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// The status; 0: nobody listened, or nobody answered.
    pub(crate) status: u16,
    /// The header, in small letters.
    pub(crate) head: String,
    /// The body, as it came.
    pub(crate) bytes: Vec<u8>,
    /// The body as text.
    pub(crate) body: String,
}

/// The answer to a GET. `address`: an address and a port.
pub(crate) fn get(address: &str, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), "")
}

/// The answer to a request, as `PUT /path`, with a body.
pub(crate) fn ask(address: &str, request: &str, body: &str) -> Answer {
    ask_within(Duration::from_secs(5), address, request, body)
}

/// The same for pages that take their time.
pub(crate) fn ask_within(limit: Duration, address: &str, request: &str, body: &str) -> Answer {
    let address: SocketAddr = address.parse().expect("an address and a port");
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(limit))?;
        let length = body.len();
        write!(stream, "{request} HTTP/1.1\r\nHost: {address}\r\n")?;
        write!(stream, "Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().unwrap_or_default();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let bytes = answer.get(end + 4..).unwrap_or_default().to_vec();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Answer { status, head, body: String::from_utf8_lossy(&bytes).into_owned(), bytes }
}

/// The value of the first sample on a page that begins so and has this label; `None`: there is none.
pub(crate) fn sample(page: &str, name: &str, label: &str) -> Option<f64> {
    let is_it =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label);
    page.lines().find(is_it).and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

/// Waits until something is so, and panics when it is not within this time.
#[track_caller]
pub(crate) fn wait_within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same with a time that a busy machine does not need.
#[track_caller]
pub(crate) fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    wait_within(Duration::from_secs(90), what, is_so);
}
