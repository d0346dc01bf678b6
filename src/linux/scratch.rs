//! Network namespaces without names, for measurements that must not touch the node's own rules.
//!
//! Nothing binds such a namespace to a path: the threads in it, the sockets made in it and a [`Namespace`] hold it. When the
//! process ends, however it ends, the kernel takes the namespace down with its links, rules and virtual servers.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ipnet::IpNet;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::kernel::{ErrorKind, KernelError};
use crate::linux::NETLINK_TIMEOUT;
use crate::netlink::message::Request;
use crate::netlink::route::{self, Route};
use crate::netlink::rtnetlink::{InterfaceAddress, add_address};
use crate::netlink::socket::{Connection, ROUTE};
use crate::netlink::{NetlinkError, link};

/// `RTPROT_STATIC`: routes that were set by hand.
const PROTOCOL: u8 = 4;
const LOOPBACK: &str = "lo";

/// A network namespace that lasts as long as this value, a thread in it or a socket of it.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    /// Moves the calling thread into a new namespace, in which only the loopback interface is up. [`ErrorKind::Denied`]
    /// without the right to do so (`CAP_SYS_ADMIN`).
    pub fn enter_fresh() -> Result<Namespace, KernelError> {
        let failed = |error| system_error("making a network namespace", error);
        // SAFETY: only the network namespace of this thread changes; no file descriptors are shared differently.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let descriptor = open("/proc/thread-self/ns/net", flags, Mode::empty()).map_err(failed)?;
        set_up(LOOPBACK)?;
        Ok(Namespace { descriptor })
    }

    /// A new namespace; the calling thread stays where it is.
    pub fn fresh() -> Result<Namespace, KernelError> {
        on_thread(Namespace::enter_fresh)?
    }

    /// Moves the calling thread into this namespace.
    pub fn enter(&self) -> Result<(), KernelError> {
        move_into_link_name_space(self.descriptor.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| system_error("entering a network namespace", error))
    }

    /// Runs something on a thread in this namespace, and waits for it.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
        on_thread(|| self.enter().map(|()| run()))?
    }
}

/// One end of a cable.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// What the interface is called.
    pub link: &'a str,
    /// Its address and network.
    pub address: IpNet,
}

/// Connects two namespaces by a pair of interfaces, both up.
pub fn connect(one: End<'_>, other: End<'_>) -> Result<(), KernelError> {
    let descriptor = other.namespace.descriptor.as_raw_fd();
    one.namespace
        .within(|| request("making a pair of interfaces", &link::create_pair(one.link, other.link, descriptor)))??;
    for end in [one, other] {
        end.namespace.within(|| {
            let address = InterfaceAddress {
                prefix: end.address.prefix_len(),
                ..InterfaceAddress::host(set_up(end.link)?, end.address.addr())
            };
            request("adding an address", &add_address(&address))
        })??;
    }
    Ok(())
}

/// Packets from this namespace to a network go by way of a neighbour.
pub fn add_route(namespace: &Namespace, destination: IpNet, gateway: IpAddr) -> Result<(), KernelError> {
    namespace.within(|| request("adding a route", &route::add_via(destination, gateway, PROTOCOL)))?
}

/// All addresses of a network are this namespace's own, so that one listener serves any number of endpoints.
pub fn own_network(namespace: &Namespace, network: IpNet) -> Result<(), KernelError> {
    namespace.within(|| {
        let route = Route::local(network, set_up(LOOPBACK)?, None, PROTOCOL);
        request("making addresses local", &route::add(&route))
    })?
}

/// A lock for the iptables tools that no other program waits for, in memory: the environment that makes them take it. Lasts as long
/// as the descriptor.
pub fn private_lock() -> Result<(OwnedFd, (OsString, OsString)), KernelError> {
    let lock = memfd_create("xtables.lock", MemfdFlags::CLOEXEC)
        .map_err(|error| system_error("making a lock for the iptables tools", error))?;
    let path = format!("/proc/{}/fd/{}", getpid().as_raw_nonzero(), lock.as_raw_fd());
    Ok((lock, ("XTABLES_LOCKFILE".into(), path.into())))
}

/// The number of this process, for [`end_with`].
pub fn own_process() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// Ends this process as soon as its parent, which has this number, has ended.
pub fn end_with(parent: i32) -> Result<(), KernelError> {
    let failed = |error| system_error("tying this process to its parent", error);
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    match getppid().map(Pid::as_raw_pid) == Some(parent) {
        true => Ok(()),
        // It was too late for the signal.
        false => Err(failed(Errno::SRCH)),
    }
}

/// Switches an interface on; its number.
fn set_up(name: &str) -> Result<u32, KernelError> {
    let failed = |error: NetlinkError| error.to_kernel_error(&format!("switching on {name}"));
    let mut connection = Connection::open(ROUTE, NETLINK_TIMEOUT).map_err(failed)?;
    let mut found = None;
    connection
        .request(&link::get(name), |message| {
            found = link::decode(message)?.or(found.take());
            Ok(())
        })
        .map_err(failed)?;
    let index = found.map(|link| link.index).unwrap_or_default();
    connection.request(&link::set_up(index, true), |_| Ok(())).map_err(failed)?;
    Ok(index)
}

fn request(attempted: &str, request: &Request) -> Result<(), KernelError> {
    Connection::open(ROUTE, NETLINK_TIMEOUT)
        .and_then(|mut connection| connection.request(request, |_| Ok(())))
        .map_err(|error| error.to_kernel_error(attempted))
}

fn on_thread<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
    std::thread::scope(|scope| scope.spawn(run).join())
        .map_err(|_| KernelError::new(ErrorKind::Transient, "a thread in a network namespace has panicked".to_owned()))
}

fn system_error(attempted: &str, error: Errno) -> KernelError {
    let kind = match error {
        Errno::PERM | Errno::ACCESS => ErrorKind::Denied,
        Errno::NOSPC | Errno::NOMEM => ErrorKind::NoSpace,
        _ => ErrorKind::Rejected,
    };
    KernelError::new(kind, format!("{attempted}: {error}"))
}
