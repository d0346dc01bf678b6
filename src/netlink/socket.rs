//! A blocking netlink socket, in the network namespace of the thread that opens it.

use std::cell::Cell;
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
/// `NETLINK_GENERIC`.
pub const GENERIC: isize = 16;

/// The kernel writes dumps in pieces of at most 32 KiB, or of the reader's buffer if that is bigger.
const READ_BUFFER: usize = 256 * 1024;
/// Holds thousands of answers; the default 208 KiB holds 256 acknowledgements (measured).
const RECEIVE_QUEUE: usize = 8 * 1024 * 1024;
/// Requests go into one datagram up to this size; the default send queue takes three times as much (measured).
const DATAGRAM: usize = 64 * 1024;
/// What an error message takes of the receive queue, besides the request that it echoes: twice what was measured for an
/// acknowledgement without an echo.
const ANSWER: usize = 1664;
/// `MSG_DONTWAIT`.
const DO_NOT_WAIT: i32 = 0x40;
/// How often a dump that was interrupted is begun again.
const DUMP_ATTEMPTS: usize = 5;

thread_local! {
    static SENT: Cell<[u64; 2]> = const { Cell::new([0; 2]) };
}

/// The datagrams and the messages that this thread has sent so far, over all its connections.
pub fn sent() -> [u64; 2] {
    SENT.get()
}

/// A socket of one netlink protocol.
pub struct Connection {
    socket: Socket,
    protocol: isize,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a socket. `timeout` bounds the wait for each datagram.
    pub fn open(protocol: isize, timeout: Duration) -> Result<Connection, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(|error| socket_error(&error))?;
        socket.bind_auto().map_err(|error| socket_error(&error))?;
        // All are conveniences: old kernels have no extended acknowledgements and do not filter dumps, and without
        // CAP_NET_ADMIN the queue stays small, which batches allow for. Acknowledgements are never capped: ipset names
        // the element that failed in the echo of the request.
        let _ = socket.set_ext_ack(true);
        if protocol == ROUTE {
            let _ = socket.set_netlink_get_strict_chk(true);
        }
        if sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), RECEIVE_QUEUE).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(socket.as_fd(), RECEIVE_QUEUE);
        }
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(socket.as_fd(), direction, Some(timeout))
                .map_err(|error| NetlinkError::Socket { errno: error.raw_os_error() })?;
        }
        Ok(Connection { socket, protocol, sequence: 0, buffer: Vec::with_capacity(READ_BUFFER) })
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
        let sequence = self.send(std::slice::from_ref(request), ACK, ACK)?;
        let mut outcome = None;
        while outcome.is_none() {
            let received = self.receive(|message| {
                if message.sequence == sequence {
                    match message.reply()? {
                        Reply::Data => visit(message)?,
                        Reply::End(result) => outcome = Some(result),
                    }
                }
                Ok(())
            });
            if received == Err(NetlinkError::Overrun) {
                self.drain(|_| Ok(()));
            }
            received?;
        }
        outcome.unwrap_or(Ok(()))
    }

    /// Sends a change that goes in a transaction, with what stands around it, and returns its result. The kernel answers to the
    /// change, or if it takes no transactions to their beginning.
    pub fn transaction(&mut self, [begin, change, end]: [Request; 3]) -> Result<(), NetlinkError> {
        let change = Request { flags: change.flags | ACK, ..change };
        let last = self.send(&[begin, change, end], 0, 0)?;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|message| {
                if last.wrapping_sub(message.sequence) < 3
                    && let Reply::End(result) = message.reply()?
                {
                    outcome.get_or_insert(result);
                }
                Ok(())
            })?;
        }
        outcome.unwrap_or(Ok(()))
    }

    /// Sends requests, many in one datagram, and returns the result of each. They are carried out in order, and a
    /// failing one does not stop those after it.
    ///
    /// Only the last request of a datagram asks for an acknowledgement: the kernel reports errors in any case, and
    /// answers come in order, so what was not refused by then has succeeded. When answers are lost
    /// ([`NetlinkError::Overrun`], [`NetlinkError::TimedOut`]), all requests of that datagram without an answer of their
    /// own report the loss: whether they were carried out is not known. Requests of other datagrams are not affected.
    pub fn batch(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(requests.len());
        // The kernel may have given less than was asked for. A size that cannot be read means one request at a time.
        let queue = sockopt::socket_recv_buffer_size(self.socket.as_fd()).unwrap_or(0);
        let mut rest = requests;
        while !rest.is_empty() {
            let (datagram, after) = rest.split_at(fitting(rest, queue));
            results.extend(self.datagram(datagram));
            rest = after;
        }
        results
    }

    fn datagram(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        let mut refused: Vec<Option<NetlinkError>> = vec![None; requests.len()];
        let last = match self.send(requests, 0, ACK) {
            Ok(last) => last,
            Err(error) => return vec![Err(error); requests.len()],
        };
        let first = last.wrapping_sub(requests.len() as u32).wrapping_add(1);
        let netfilter = self.protocol == NETFILTER;
        let (mut complete, mut dropped) = (false, None);
        let mut visit = |message: &Message<'_>| {
            let at = message.sequence.wrapping_sub(first) as usize;
            if let (Reply::End(result), Some(slot)) = (message.reply()?, refused.get_mut(at)) {
                // Who is not permitted gets one answer from netfilter, whatever else is in the datagram.
                if netfilter && matches!(result, Err(NetlinkError::Refused { errno: errno::EPERM, .. })) {
                    dropped = result.clone().err();
                }
                *slot = result.err();
                complete |= message.sequence == last || dropped.is_some();
            }
            Ok(complete)
        };
        let mut failure = None;
        while failure.is_none() {
            match self.receive_until(&mut visit) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => failure = Some(error),
            }
        }
        if failure == Some(NetlinkError::Overrun) {
            self.drain(|message| visit(message).map(|_| ()));
        }
        // What is known about a request stands; of the others nobody knows.
        let failure = failure.or(dropped);
        refused.into_iter().map(|error| error.or_else(|| failure.clone()).map_or(Ok(()), Err)).collect()
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
                Err(NetlinkError::Overrun) => {
                    self.drain(|_| Ok(()));
                    last = NetlinkError::Overrun;
                }
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
        let sequence = self.send(std::slice::from_ref(request), DUMP, DUMP)?;
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

    /// Sends requests as one datagram, with `flags` added to each and `last` to the last one; returns the sequence number
    /// of that.
    fn send(&mut self, requests: &[Request], flags: u16, last: u16) -> Result<u32, NetlinkError> {
        // Zero is what notifications carry, and the numbers of one datagram follow each other.
        if self.sequence.checked_add(requests.len() as u32).is_none() {
            self.sequence = 0;
        }
        let mut bytes = Vec::with_capacity(requests.iter().map(Request::size).sum());
        for (at, request) in (1..).zip(requests) {
            self.sequence = self.sequence.wrapping_add(1);
            request.write(if at == requests.len() { last } else { flags }, self.sequence, &mut bytes);
        }
        loop {
            match self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0) {
                Ok(_) => {
                    let [datagrams, messages] = SENT.get();
                    SENT.set([datagrams + 1, messages + requests.len() as u64]);
                    return Ok(self.sequence);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket_error(&error)),
            }
        }
    }

    fn receive(&mut self, visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>) -> Result<(), NetlinkError> {
        self.receive_with(0, visit)
    }

    /// Receives a datagram; returns what `visit` said of its last message.
    fn receive_until(
        &mut self,
        mut visit: impl FnMut(&Message<'_>) -> Result<bool, DecodeError>,
    ) -> Result<bool, NetlinkError> {
        let mut done = false;
        self.receive(|message| {
            done = visit(message)?;
            Ok(())
        })?;
        Ok(done)
    }

    /// Reads what is there, after answers were lost: until it is empty, a queue that ran over takes nothing more. A dump
    /// that was begun goes on while it is read, and may run over again.
    fn drain(&mut self, mut visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>) {
        loop {
            match self.receive_with(DO_NOT_WAIT, &mut visit) {
                Ok(()) | Err(NetlinkError::Overrun | NetlinkError::Malformed(_)) => {}
                Err(_) => return,
            }
        }
    }

    fn receive_with(
        &mut self,
        flags: i32,
        mut visit: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), NetlinkError> {
        self.buffer.clear();
        loop {
            match self.socket.recv_from(&mut self.buffer, flags) {
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

/// How many of the requests go into one datagram, at least one: its size is bounded, and the answers fit the receive
/// queue even if all are refused.
fn fitting(requests: &[Request], queue: usize) -> usize {
    let (mut size, mut answers) = (0, 0);
    let fits = requests.iter().take_while(|request| {
        size += request.size();
        // The kernel rounds the memory of an echo up to a power of two.
        answers += ANSWER + 2 * request.size();
        size <= DATAGRAM && answers <= queue
    });
    fits.count().max(1).min(requests.len())
}

fn socket_error(error: &std::io::Error) -> NetlinkError {
    match error.raw_os_error() {
        Some(errno::ENOBUFS) => NetlinkError::Overrun,
        Some(errno::EAGAIN) => NetlinkError::TimedOut,
        errno => NetlinkError::Socket { errno: errno.unwrap_or(errno::EINVAL) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_bounded_by_its_size_and_by_the_room_for_its_answers() {
        let small = |count| vec![Request { kind: 1, flags: 0, payload: vec![0; 48] }; count];
        assert_eq!(fitting(&small(5000), usize::MAX), DATAGRAM / 64);
        assert_eq!(fitting(&small(3), usize::MAX), 3);
        // The default queue.
        assert_eq!(fitting(&small(5000), 212_992), 212_992 / (ANSWER + 128));
        let huge = vec![Request { kind: 1, flags: 0, payload: vec![0; DATAGRAM] }; 2];
        assert_eq!(fitting(&huge, usize::MAX), 1, "one goes out whatever its size");
        assert_eq!(fitting(&small(2), 0), 1);
    }

    #[test]
    fn numbers_of_one_datagram_follow_each_other_and_are_not_zero() {
        let mut connection = Connection::open(NETFILTER, Duration::from_secs(5)).unwrap();
        connection.sequence = u32::MAX - 3;
        // NLMSG_NOOP is acknowledged and nothing else.
        let requests = vec![Request { kind: 1, flags: 0, payload: Vec::new() }; 10];
        assert!(connection.batch(&requests).iter().all(Result::is_ok));
        assert_eq!(connection.sequence, 10);
    }
}
