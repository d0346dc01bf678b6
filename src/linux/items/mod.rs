//! Items: sets, virtual servers, addresses, routes, over netlink. No process is ever started for them.
//!
//! Operations are sent in their order, neighbours of one netlink protocol together: thousands in one datagram. The kernel
//! carries them out one by one, so each has its own result.

mod census;
mod interface;
mod servers;
mod sets;

use std::time::Duration;

use crate::kernel::{Connections, ErrorKind, ItemClaims, ItemDump, ItemKind, KernelError, Op, RealKey, VirtualKey};
use crate::linux::address;
use crate::net::{IpFamily, Protocol};
use crate::netlink::{NetlinkError, errno};

pub(super) use census::census;
pub(super) use interface::find as find_dummy;
pub(super) use servers::{Balancer, missing_scheduler};
pub(super) use sets::remove_leftovers;

/// What a family holds.
#[derive(Debug)]
pub(super) struct Found {
    /// The items.
    pub dump: ItemDump,
    /// There is a set that an interrupted change of a capacity has left behind: see [`remove_leftovers`].
    pub leftovers: bool,
}

/// All items of a family. Unless the mode serves, nothing is loaded: a module that is missing holds no items.
pub(super) fn dump(family: IpFamily, claims: &ItemClaims, timeout: Duration) -> Result<Found, KernelError> {
    let sets = sets::read(family, claims.serving, timeout)?;
    let servers = servers::read(family, claims.serving, timeout)?;
    // Without virtual servers there is nothing to tell apart.
    let local = if servers.is_empty() { Vec::new() } else { address::addresses(family, timeout)? };
    let mut items = sets.items;
    items.extend(servers);
    items.extend(interface::read(family, claims.serving, timeout)?);
    Ok(Found { dump: ItemDump::of(items, local), leftovers: sets.leftovers })
}

/// The real servers of a virtual server with their connections.
pub(super) fn connections(server: &VirtualKey, timeout: Duration) -> Result<Vec<(RealKey, Connections)>, KernelError> {
    servers::connections(server, timeout)
}

/// The netlink protocols.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Netfilter,
    Generic,
    Route,
}

/// Carries out operations on items in their order; one result for each.
pub(super) fn apply(operations: &[&Op], timeout: Duration) -> Vec<Result<(), KernelError>> {
    let mut results = Vec::with_capacity(operations.len());
    for run in operations.chunk_by(|before, after| through(before) == through(after)) {
        results.extend(match run.first().and_then(|op| through(op)) {
            Some(Through::Netfilter) => sets::apply(run, timeout),
            Some(Through::Generic) => servers::apply(run, timeout),
            Some(Through::Route) => interface::apply(run, timeout),
            None => run.iter().map(|op| Err(nonsense(op))).collect(),
        });
    }
    results
}

fn through(op: &Op) -> Option<Through> {
    let (Op::AddItem(key, _) | Op::ChangeItem(key, _) | Op::DeleteItem(key)) = op else { return None };
    Some(match key.kind() {
        ItemKind::Set | ItemKind::Element => Through::Netfilter,
        ItemKind::VirtualServer | ItemKind::RealServer => Through::Generic,
        ItemKind::Address | ItemKind::Route | ItemKind::Link => Through::Route,
    })
}

/// An item with a state that such an item cannot have.
fn nonsense(op: &Op) -> KernelError {
    KernelError::new(ErrorKind::Rejected, format!("{op}: no such item has such a state"))
}

/// The error of an operation whose request failed.
fn failed(op: &Op, error: &NetlinkError) -> KernelError {
    match error {
        // It may have been carried out.
        NetlinkError::Overrun => KernelError::new(ErrorKind::Unknown, format!("{op}: {error}")),
        _ => error.to_kernel_error(&op.to_string()),
    }
}

fn all_failed(operations: &[&Op], error: &NetlinkError) -> Vec<Result<(), KernelError>> {
    operations.iter().map(|op| Err(failed(op, error))).collect()
}

/// The IP protocol number.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// The protocol of a number, if it is one that a Service can have.
fn protocol(number: u16) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| u16::from(self::number(*known)) == number)
}

/// Whether the kernel says that what was asked for is not there.
fn is_missing(error: &NetlinkError) -> bool {
    matches!(error, NetlinkError::Refused { errno: errno::ENOENT | errno::ESRCH | errno::ENODEV, .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{ItemKey, ItemState};

    #[test]
    fn lost_answers_leave_open_what_was_done() {
        let op = Op::AddItem(ItemKey::Link, ItemState::Present);
        assert_eq!(failed(&op, &NetlinkError::Overrun).kind, ErrorKind::Unknown);
        assert_eq!(failed(&op, &NetlinkError::TimedOut).kind, ErrorKind::TimedOut);
        let refused = NetlinkError::Refused { errno: errno::EEXIST, explanation: None, echo: Vec::new() };
        assert_eq!(failed(&op, &refused).kind, ErrorKind::Exists);
    }
}
