//! Interface addresses: reading them, and noticing changes.

use std::net::IpAddr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};

use crate::kernel::KernelError;
use crate::linux::items::find_dummy;
use crate::net::{IpFamily, PerFamily};
use crate::netlink::link::DUMMY;
use crate::netlink::rtnetlink;
use crate::netlink::socket::{Connection, ROUTE};
use crate::netlink::{NetlinkError, errno};

/// How long the watcher rests after its socket failed.
const RETRY: Duration = Duration::from_secs(5);

/// The addresses of all interfaces but the dummy link in one family, loopback included, sorted and without repetitions.
pub fn addresses(family: IpFamily, timeout: Duration) -> Result<Vec<IpAddr>, KernelError> {
    let addresses = Connection::open(ROUTE, timeout).and_then(|mut connection| {
        let dummy = dummy(&mut connection)?;
        read(&mut connection, family, dummy)
    });
    addresses.map_err(|error| error.to_kernel_error(&format!("reading the {family} addresses")))
}

/// The number of the dummy link, whose addresses are those of Services. A link that only has its name counts like any other.
fn dummy(connection: &mut Connection) -> Result<Option<u32>, NetlinkError> {
    let found = find_dummy(connection)?.filter(|link| link.kind.as_deref() == Some(DUMMY));
    Ok(found.map(|link| link.index))
}

fn read(connection: &mut Connection, family: IpFamily, dummy: Option<u32>) -> Result<Vec<IpAddr>, NetlinkError> {
    let request = rtnetlink::dump_addresses(family);
    let outcome = connection.dump(&request, Vec::new, |addresses, message| {
        // A kernel without IPv6 answers a request for its addresses with those of all families.
        let found = rtnetlink::decode_address(message)?.filter(|found| Some(found.interface) != dummy);
        addresses.extend(found.map(|found| found.address).filter(|address| IpFamily::of(*address) == family));
        Ok(())
    });
    let mut addresses = match outcome {
        Err(NetlinkError::Refused { errno: errno::EOPNOTSUPP | errno::EAFNOSUPPORT, .. }) => Vec::new(),
        other => other?,
    };
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct AddressWatch {
    stop: Option<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        // The thread sees the other end of the pipe close.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// Starts a thread that calls `changed` with the addresses of both families: once at the beginning, and then whenever
/// they are not what they were at the last call. When they cannot be read, what was last told holds, and they are soon read
/// again. When notifications were lost, everything is read anew. The watch belongs to the network namespace of the calling thread.
pub fn watch_addresses(
    timeout: Duration,
    mut changed: impl FnMut(PerFamily<Vec<IpAddr>>) + Send + 'static,
) -> Result<AddressWatch, KernelError> {
    let failed = |error: NetlinkError| error.to_kernel_error("watching the interface addresses");
    // Opened here, so that an error is reported and no change is missed. A new thread inherits the namespace.
    let mut connection = subscribe(timeout).map_err(failed)?;
    let (stopped, stop) =
        rustix::pipe::pipe().map_err(|error| failed(NetlinkError::Socket { errno: error.raw_os_error() }))?;
    let thread = std::thread::Builder::new().name("addresses".to_owned()).spawn(move || {
        let (mut told, mut dummy) = (Told::default(), None);
        loop {
            let found = read_all(timeout, &mut dummy);
            let patience = found.is_err().then_some(RETRY);
            if let Some(news) = told.news(found) {
                changed(news);
            }
            match wait_for_change(&mut connection, &stopped, dummy, patience) {
                Wait::Stopped => return,
                Wait::Changed => {}
                Wait::Failed => match reopen(timeout, &stopped) {
                    Some(new) => connection = new,
                    None => return,
                },
            }
        }
    });
    let thread = thread.map_err(|error| {
        KernelError::new(crate::kernel::ErrorKind::NoSpace, format!("starting the address watcher: {error}"))
    })?;
    Ok(AddressWatch { stop: Some(stop), thread: Some(thread) })
}

/// What was told last.
#[derive(Default)]
struct Told(Option<PerFamily<Vec<IpAddr>>>);

impl Told {
    /// What is to be told now. A reading that failed says nothing: to take it for a node without addresses would close
    /// all node ports.
    fn news(&mut self, found: Result<PerFamily<Vec<IpAddr>>, NetlinkError>) -> Option<PerFamily<Vec<IpAddr>>> {
        match found {
            Ok(found) if self.0.as_ref() == Some(&found) => None,
            Ok(found) => {
                self.0 = Some(found.clone());
                Some(found)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the addresses of this node; they are soon read again");
                None
            }
        }
    }
}

/// The addresses of both families. Tells the number of the dummy link as well, even if the rest fails.
fn read_all(timeout: Duration, dummy: &mut Option<u32>) -> Result<PerFamily<Vec<IpAddr>>, NetlinkError> {
    // The notifications have a socket of their own: answers do not get among them.
    let mut connection = Connection::open(ROUTE, timeout)?;
    *dummy = self::dummy(&mut connection)?;
    let mut read = |family| read(&mut connection, family, *dummy);
    Ok(PerFamily { v4: read(IpFamily::V4)?, v6: read(IpFamily::V6)? })
}

fn subscribe(timeout: Duration) -> Result<Connection, NetlinkError> {
    let mut connection = Connection::open(ROUTE, timeout)?;
    connection.join(rtnetlink::GROUP_IPV4_ADDRESSES)?;
    connection.join(rtnetlink::GROUP_IPV6_ADDRESSES)?;
    Ok(connection)
}

enum Wait {
    Changed,
    Stopped,
    Failed,
}

/// Waits for an address that comes or goes, but not on the dummy link: there are thousands, and all are ours. One that was made
/// after the last reading is not known yet, and counts once. After `patience` it is as if one had changed.
fn wait_for_change(
    connection: &mut Connection,
    stopped: &OwnedFd,
    dummy: Option<u32>,
    patience: Option<Duration>,
) -> Wait {
    let patience = patience.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: 0 });
    loop {
        let mut ends = [
            PollFd::from_borrowed_fd(connection.descriptor(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ends, patience.as_ref()) {
            Ok(0) => return Wait::Changed,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Wait::Failed,
        }
        let [notified, closed] = ends.map(|end| !end.revents().is_empty());
        if closed {
            return Wait::Stopped;
        }
        if !notified {
            continue;
        }
        let mut relevant = false;
        let received = connection.notifications(|message| {
            relevant |= rtnetlink::decode_address(message)?.is_some_and(|found| Some(found.interface) != dummy);
            Ok(())
        });
        match received {
            Ok(_) if relevant => return Wait::Changed,
            Ok(_) => {}
            // Something was lost, or not understood: reading anew tells.
            Err(NetlinkError::Overrun | NetlinkError::Malformed(_)) => return Wait::Changed,
            Err(_) => return Wait::Failed,
        }
    }
}

/// Opens a new socket, trying until it works; `None` when the watch is over.
fn reopen(timeout: Duration, stopped: &OwnedFd) -> Option<Connection> {
    loop {
        let mut end = [PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)];
        let rest = Timespec { tv_sec: RETRY.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut end, Some(&rest)).is_ok_and(|ready| ready > 0) {
            return None;
        }
        if let Ok(connection) = subscribe(timeout) {
            return Some(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_fails_does_not_make_the_addresses_go() {
        let of = |texts: &[&str]| PerFamily {
            v4: texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>(),
            v6: Vec::new(),
        };
        let (one, two) = (of(&["192.0.2.1"]), of(&["192.0.2.1", "192.0.2.2"]));
        let mut told = Told::default();
        assert_eq!(told.news(Err(NetlinkError::Interrupted)), None);
        assert_eq!(told.news(Ok(one.clone())), Some(one.clone()));
        assert_eq!(told.news(Err(NetlinkError::Interrupted)), None);
        assert_eq!(told.news(Ok(one)), None);
        assert_eq!(told.news(Ok(two.clone())), Some(two));
        assert_eq!(told.news(Ok(of(&[]))), Some(of(&[])));
    }
}
