//! Sockets that listen, and the connections that come in on them.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long a request's head may take, and how long a connection may wait for the next request.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
/// The most that a request's head may have, in bytes; more is answered with 431.
const HEAD_SIZE: usize = 64 * 1024;
/// How long nothing is accepted after the process or the system had no room for another connection.
const NO_ROOM: Duration = Duration::from_secs(1);

/// Of an IPv6 socket: whether IPv4 comes in as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    /// As the system has it, which is usually that `::` takes IPv4 as well.
    Usual,
    /// IPv6 only: `::` leaves IPv4 to another listener.
    Single,
}

/// Whether a socket may share its port with another one of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// It may not.
    Own,
    /// It may with those that [`share`] was called for.
    Shared,
}

/// Listens on an address.
pub(super) fn listen(address: SocketAddr, stack: Stack, port: Port) -> io::Result<StdListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, port == Port::Shared)?;
    if address.is_ipv6() && stack == Stack::Single {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(StdListener::from(socket))
}

/// Lets another socket of this process listen on the same port. A specific address and the unspecified one exclude each
/// other without it, and then no server could move from one to the other.
pub(super) fn share(listener: &impl std::os::fd::AsFd) {
    // The worst that can come of an error is that the other address cannot be bound, which is told then.
    let _ = sockopt::set_socket_reuseport(listener, true);
}

/// The port belongs to this socket alone again, so that another process is told when it wants it too.
pub(super) fn unshare(listener: &impl std::os::fd::AsFd) {
    let _ = sockopt::set_socket_reuseport(listener, false);
}

/// Answers on a listener until accepting fails for good. When the future is dropped, requests that are being answered are
/// answered to their end, and then their connections are closed.
pub(super) async fn serve(listener: &TcpListener, router: Router) -> io::Error {
    let (_open, closing) = watch::channel(());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer(stream, router.clone(), closing.clone(), HEAD_WITHIN));
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) if is_lack_of_room(&error) => {
                tracing::warn!(%error, "no room for another connection");
                tokio::time::sleep(NO_ROOM).await;
            }
            Err(error) => return error,
        }
    }
}

async fn answer(stream: TcpStream, router: Router, mut closing: watch::Receiver<()>, head_within: Duration) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_within)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    // What a client does wrong, or that it goes away, is its own affair.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
    )
}

fn is_lack_of_room(error: &io::Error) -> bool {
    let lack = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| lack.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_client_that_does_not_end_its_head_in_time_is_cut_off() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The first word of a request, one whole request and the beginning of the next, and nothing at all.
        for (said, answers) in [("GET / HT", 0), ("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", 1), ("", 0)] {
            let listener = listen("127.0.0.1:0".parse().unwrap(), Stack::Usual, Port::Own).unwrap();
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(said.as_bytes()).unwrap();
            runtime.block_on(async {
                let (stream, _) = TcpListener::from_std(listener).unwrap().accept().await.unwrap();
                let (_open, closing) = watch::channel(());
                let answered = answer(stream, Router::new(), closing, Duration::from_millis(100));
                let in_time = tokio::time::timeout(Duration::from_secs(60), answered).await;
                assert!(in_time.is_ok(), "it waits for ever for the rest of {said:?}");
            });
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text.matches("HTTP/1.1 404").count(), answers, "{text}");
        }
    }
}
