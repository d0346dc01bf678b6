//! A blocking netlink socket, in the network namespace of the thread that opens it.

use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};

use crate::netlink::message::{ACK, DUMP, DUMP_INTERRUPTED, Message, Reply, Request, messages};
use crate::netlink::{DecodeError, NetlinkError, errno};

/// `NETLINK_ROUTE`.
pub const ROUTE: isize = 0;
/// `NETLINK_NETFILTER`.
pub const NETFILTER: isize = 12;

/// The kernel writes dumps in pieces of at most 32 KiB, or of the reader's buffer if that is bigger.
const READ_BUFFER: usize = 256 * 1024;
/// Holds thousands of acknowledgements; the default 208 KiB holds 256 (measured).
const RECEIVE_QUEUE: usize = 8 * 1024 * 1024;
/// How many requests go into one datagram: their acknowledgements fit even a default receive queue, if the bigger one
/// was refused.
const BATCH: usize = 128;
/// How often a dump that was interrupted is begun again.
const DUMP_ATTEMPTS: usize = 5;

/// A socket of one netlink protocol.
pub struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a socket. `timeout` bounds the wait for each datagram.
    pub fn open(protocol: isize, timeout: Duration) -> Result<Connection, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(|error| socket_error(&error))?;
        socket.bind_auto().map_err(|error| socket_error(&error))?;
        // Both are conveniences: old kernels have no extended acknowledgements, and without CAP_NET_ADMIN the queue
        // stays small, which batches allow for.
        let _ = socket.set_ext_ack(true);
        if sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), RECEIVE_QUEUE).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(socket.as_fd(), RECEIVE_QUEUE);
        }
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(socket.as_fd(), direction, Some(timeout))
                .map_err(|error| NetlinkError::Socket { errno: error.raw_os_error() })?;
        }
        Ok(Connection { socket, sequence: 0, buffer: Vec::with_capacity(READ_BUFFER) })
    }

    /// Subscribes to a multicast group.
    pub fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.socket.add_membership(group).map_err(|error| socket_error(&error))
    }

    /// The file descriptor, to wait for notifications together with something else.
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends one request and hands every message of the answer to `visit`.
    pub fn request(
        &mut self,
        request: &Request,
        mut visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), ACK)?;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|message| {
                if message.sequence == sequence {
                    match message.reply()? {
                        Reply::Data => visit(message)?,
                        Reply::End(result) => outcome = Some(result),
                    }
                }
                Ok(())
            })?;
        }
        outcome.unwrap_or(Ok(()))
    }

    /// Sends requests, many in one datagram, and returns the result of each. They are carried out in order, and a
    /// failing one does not stop those after it. When answers are lost, the requests without an answer
    /// report the loss.
    pub fn batch(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(BATCH) {
            results.extend(self.chunk(chunk));
        }
        results
    }

    fn chunk(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        let mut results: Vec<Option<Result<(), NetlinkError>>> = vec![None; requests.len()];
        let mut failure = NetlinkError::TimedOut;
        let first = match self.send(requests, ACK) {
            Ok(last) => last.wrapping_sub(requests.len() as u32).wrapping_add(1),
            Err(error) => return vec![Err(error); requests.len()],
        };
        let mut missing = requests.len();
        while missing > 0 {
            let received = self.receive(|message| {
                let at = message.sequence.wrapping_sub(first) as usize;
                if let (Reply::End(result), Some(slot)) = (message.reply()?, results.get_mut(at)) {
                    missing -= usize::from(slot.replace(result).is_none());
                }
                Ok(())
            });
            if let Err(error) = received {
                failure = error;
                break;
            }
        }
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(failure.clone()))).collect()
    }

    /// Dumps: hands every message to `visit`. When what is dumped changes meanwhile, or answers are lost, `restart` is
    /// called and the dump begins again.
    pub fn dump<S>(
        &mut self,
        request: &Request,
        mut start: impl FnMut() -> S,
        mut visit: impl FnMut(&mut S, &Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<S, NetlinkError> {
        let mut last = NetlinkError::Interrupted;
        for _ in 0..DUMP_ATTEMPTS {
            let mut state = start();
            match self.dump_once(request, |message| visit(&mut state, message)) {
                Ok(false) => return Ok(state),
                Ok(true) => last = NetlinkError::Interrupted,
                Err(NetlinkError::Refused { errno: errno::EINTR | errno::EAGAIN, .. }) => {
                    last = NetlinkError::Interrupted;
                }
                Err(NetlinkError::Overrun) => last = NetlinkError::Overrun,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Returns whether the dump was interrupted.
    fn dump_once(
        &mut self,
        request: &Request,
        mut visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<bool, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), DUMP)?;
        let mut interrupted = false;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|message| {
                if message.sequence != sequence {
                    return Ok(());
                }
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.reply()? {
                    Reply::Data => visit(message)?,
                    Reply::End(result) => outcome = Some(result),
                }
                Ok(())
            })?;
        }
        outcome.unwrap_or(Ok(())).map(|()| interrupted)
    }

    /// Receives one datagram of notifications; `false` when none came in time.
    pub fn notifications(
        &mut self,
        visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<bool, NetlinkError> {
        match self.receive(visit) {
            Ok(()) => Ok(true),
            Err(NetlinkError::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends requests as one datagram; returns the sequence number of the last.
    fn send(&mut self, requests: &[Request], flags: u16) -> Result<u32, NetlinkError> {
        let mut bytes = Vec::new();
        for request in requests {
            // Zero is what notifications carry.
            self.sequence = self.sequence.checked_add(1).unwrap_or(1);
            request.write(flags, self.sequence, &mut bytes);
        }
        loop {
            match self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0) {
                Ok(_) => return Ok(self.sequence),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket_error(&error)),
            }
        }
    }

    fn receive(&mut self, mut visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>) -> Result<(), NetlinkError> {
        self.buffer.clear();
        loop {
            match self.socket.recv_from(&mut self.buffer, 0) {
                // Only the kernel has port 0; other processes could send to us as well.
                Ok((_, from)) if from.port_number() == 0 => break,
                Ok(_) => self.buffer.clear(),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket_error(&error)),
            }
        }
        for message in messages(&self.buffer) {
            visit(&message?)?;
        }
        Ok(())
    }
}

fn socket_error(error: &std::io::Error) -> NetlinkError {
    match error.raw_os_error() {
        Some(errno::ENOBUFS) => NetlinkError::Overrun,
        Some(errno::EAGAIN) => NetlinkError::TimedOut,
        errno => NetlinkError::Socket { errno: errno.unwrap_or(errno::EINVAL) },
    }
}
