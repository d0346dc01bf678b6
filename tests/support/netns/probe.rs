//! One question to an address, and what came of it.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// The transport protocol of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
    }
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A [`super::server::Server`] answered.
    Answered {
        /// Its name.
        by: String,
        /// The port on which it listens.
        port: u16,
        /// The address from which it saw us come.
        source: IpAddr,
    },
    /// Connection refused: a reset, or ICMP port unreachable.
    Refused,
    /// A connection that stood was ended by a reset.
    Reset,
    /// The kernel would not send it, as happens to the node's own UDP packets that a filter stops.
    NotPermitted,
    /// Silence.
    TimedOut,
    /// Any other error.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered { by, port, source } => write!(f, "{by}:{port} sees {source}"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Reset => f.write_str("reset"),
            Outcome::NotPermitted => f.write_str("not permitted"),
            Outcome::TimedOut => f.write_str("silence"),
            Outcome::Failed(error) => f.write_str(error),
        }
    }
}

impl Outcome {
    /// The name of the server that answered, if one did.
    pub(crate) fn by(&self) -> Option<&str> {
        match self {
            Outcome::Answered { by, .. } => Some(by),
            _ => None,
        }
    }

    /// The address from which the server that answered saw us come.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        match self {
            Outcome::Answered { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// What an error of a socket means.
    pub(crate) fn from_error(error: &std::io::Error) -> Outcome {
        match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Outcome::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimedOut,
            ErrorKind::PermissionDenied => Outcome::NotPermitted,
            _ => Outcome::Failed(error.to_string()),
        }
    }

    fn from_text(text: &str) -> Outcome {
        let mut words = text.split_whitespace();
        let mut parse = || {
            let by = words.next()?.to_owned();
            let port = words.next()?.parse().ok()?;
            let source = words.next()?.parse().ok()?;
            Some(Outcome::Answered { by, port, source })
        };
        parse().unwrap_or_else(|| Outcome::Failed(format!("unexpected answer {text:?}")))
    }
}

/// How long a probe waits where silence is a possible answer.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);
/// How long a probe waits where an answer is sure to come, if only the machine is not too busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Asks once, from the namespace of the calling thread. `source`: the address to come from (port 0: any).
pub(crate) fn probe(source: Option<SocketAddr>, destination: SocketAddr, proto: Proto, timeout: Duration) -> Outcome {
    match proto {
        Proto::Tcp => match connect(source, destination, timeout) {
            Ok((_, outcome)) => outcome,
            Err(error) => Outcome::from_error(&error),
        },
        Proto::Udp => probe_udp(source, destination, timeout),
    }
}

/// Opens a TCP connection and reads the greeting. The connection ends with a reset when the stream is dropped, so that no
/// port stays occupied.
pub(crate) fn connect(
    source: Option<SocketAddr>,
    destination: SocketAddr,
    timeout: Duration,
) -> std::io::Result<(TcpStream, Outcome)> {
    let deadline = Instant::now() + timeout;
    let family = if destination.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &source)?;
    }
    match rustix::net::connect(&socket, &destination) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).expect("short time");
            if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&left))? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
            sockopt::socket_error(&socket)??;
        }
        Err(error) => return Err(error.into()),
    }
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    let outcome = read_line(&mut stream, deadline.saturating_duration_since(Instant::now()))?;
    Ok((stream, outcome))
}

/// Reads one answer from a connection: the server says one line at a time. In few pieces, since a system call can be slow
/// (docs/lab.md).
pub(crate) fn read_line(stream: &mut TcpStream, timeout: Duration) -> std::io::Result<Outcome> {
    stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    let mut text = Vec::new();
    let mut piece = [0; 128];
    while !text.ends_with(b"\n") {
        match stream.read(&mut piece)? {
            0 => {
                let text = String::from_utf8_lossy(&text);
                return Ok(Outcome::Failed(format!("connection closed after {text:?}")));
            }
            length => text.extend_from_slice(&piece[..length]),
        }
    }
    Ok(Outcome::from_text(&String::from_utf8_lossy(&text)))
}

fn probe_udp(source: Option<SocketAddr>, destination: SocketAddr, timeout: Duration) -> Outcome {
    match udp_socket(source, destination) {
        Ok(socket) => ask(&socket, timeout),
        Err(error) => Outcome::from_error(&error),
    }
}

/// A UDP socket that talks to one destination, from a chosen address and port if wished.
pub(crate) fn udp_socket(source: Option<SocketAddr>, destination: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(source.unwrap_or(SocketAddr::new(any, 0)))?;
    socket.connect(destination)?;
    Ok(socket)
}

/// Sends one datagram and waits for the answer.
pub(crate) fn ask(socket: &UdpSocket, timeout: Duration) -> Outcome {
    let mut buffer = [0; 256];
    // What an ICMP message about the node's own packet says comes with the next call, so a refused send is asked again.
    let mut timeout = timeout;
    let mut refusal = None;
    if let Err(error) = socket.send(b"?") {
        match error.kind() {
            ErrorKind::PermissionDenied => {
                refusal = Some(Outcome::NotPermitted);
                timeout = Duration::from_millis(20);
            }
            _ => return Outcome::from_error(&error),
        }
    }
    socket.set_read_timeout(Some(timeout)).expect("timeout");
    match socket.recv(&mut buffer) {
        Ok(length) => Outcome::from_text(&String::from_utf8_lossy(&buffer[..length])),
        Err(error) => match (Outcome::from_error(&error), refusal) {
            (Outcome::TimedOut, Some(refusal)) => refusal,
            (outcome, _) => outcome,
        },
    }
}
