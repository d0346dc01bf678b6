//! A server that says who it is and whom it sees.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::epoll;
use rustix::pipe::{PipeFlags, pipe_with};

use super::Netns;

/// After this the server closes the connection.
pub(crate) const GOODBYE: &[u8] = b"goodbye\n";

/// Answers on TCP and UDP with the line `<name> <port> <peer address>`: once when a TCP connection begins and again for
/// every piece of data that arrives on it, until that is [`GOODBYE`]; once for every UDP datagram. Ends when dropped.
pub(crate) struct Server {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

enum Source {
    Listener(TcpListener),
    Udp(UdpSocket),
    Connection(TcpStream, String),
    Stop,
}

impl Server {
    /// Listens on every address, on both protocols; ready when it returns.
    pub(crate) fn start(netns: &Netns, name: &str, addresses: &[SocketAddr]) -> Server {
        let (stop_read, stop) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let mut sources = vec![Source::Stop];
        sources.extend(netns.run(|| {
            let mut sockets = Vec::with_capacity(addresses.len() * 2);
            for address in addresses {
                let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{name} tcp {address}: {e}"));
                listener.set_nonblocking(true).expect("nonblocking");
                sockets.push(Source::Listener(listener));
                let udp = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{name} udp {address}: {e}"));
                udp.set_nonblocking(true).expect("nonblocking");
                sockets.push(Source::Udp(udp));
            }
            sockets
        }));
        let name = name.to_owned();
        let thread = thread::spawn(move || serve(&name, sources, &stop_read));
        Server { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(name: &str, sources: Vec<Source>, stop: &OwnedFd) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut table: HashMap<u64, Source> = HashMap::new();
    let mut next = 0;
    let mut add = |table: &mut HashMap<u64, Source>, source: Source| {
        let fd = match &source {
            Source::Listener(socket) => socket.as_fd(),
            Source::Udp(socket) => socket.as_fd(),
            Source::Connection(socket, _) => socket.as_fd(),
            Source::Stop => stop.as_fd(),
        };
        epoll::add(&epoll, fd, epoll::EventData::new_u64(next), epoll::EventFlags::IN).expect("epoll add");
        table.insert(next, source);
        next += 1;
    };
    sources.into_iter().for_each(|source| add(&mut table, source));
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("epoll: {error}"),
        }
        for event in &events {
            let id = event.data.u64();
            let mut accepted = Vec::new();
            let keep = match table.get_mut(&id) {
                Some(Source::Stop) => return,
                Some(Source::Listener(listener)) => {
                    while let Ok((mut stream, peer)) = listener.accept() {
                        let line = greeting(name, listener.local_addr(), peer);
                        let _ = stream.set_nonblocking(true);
                        let _ = stream.set_nodelay(true);
                        if stream.write_all(line.as_bytes()).is_ok() {
                            accepted.push(Source::Connection(stream, line));
                        }
                    }
                    true
                }
                Some(Source::Udp(socket)) => {
                    let mut buffer = [0; 64];
                    while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(greeting(name, socket.local_addr(), peer).as_bytes(), peer);
                    }
                    true
                }
                Some(Source::Connection(stream, line)) => {
                    let mut buffer = [0; 1024];
                    matches!(stream.read(&mut buffer), Ok(n) if n > 0 && &buffer[..n] != GOODBYE)
                        && stream.write_all(line.as_bytes()).is_ok()
                }
                None => true,
            };
            if !keep {
                table.remove(&id);
            }
            accepted.into_iter().for_each(|source| add(&mut table, source));
        }
    }
}

fn greeting(name: &str, local: std::io::Result<SocketAddr>, peer: SocketAddr) -> String {
    let port = local.map(|address| address.port()).unwrap_or(0);
    let peer: IpAddr = peer.ip().to_canonical();
    format!("{name} {port} {peer}\n")
}
