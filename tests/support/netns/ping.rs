//! Asking a host whether it is there.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use super::Netns;
use super::probe::Outcome;

/// Sends one echo request and waits for the reply. The error says what came instead.
pub(crate) fn ping(from: &Netns, to: IpAddr, timeout: Duration) -> Result<(), Outcome> {
    // For both families; sockets of this kind get errors, too.
    from.sysctl("net/ipv4/ping_group_range", "0 2147483647");
    from.run(|| echo(to, timeout)).map_err(|error| Outcome::from_error(&error))
}

fn echo(to: IpAddr, timeout: Duration) -> std::io::Result<()> {
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))?;
    rustix::net::connect(&socket, &SocketAddr::new(to, 0))?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(timeout))?;
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1])?;
    socket.recv(&mut [0; 64])?;
    Ok(())
}
