//! The dummy link, its addresses, and local routes.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{all_failed, failed, is_missing, nonsense};
use crate::kernel::item::DUMMY_LINK;
use crate::kernel::{ErrorKind, ItemKey, ItemState, KernelError, Op};
use crate::net::{IpFamily, PerFamily};
use crate::netlink::link::{self, DUMMY, Link};
use crate::netlink::message::Request;
use crate::netlink::route::{self, Route};
use crate::netlink::rtnetlink::{self, DEPRECATED, FOREVER, InterfaceAddress, NO_DUPLICATE_DETECTION, NO_PREFIX_ROUTE};
use crate::netlink::socket::{Connection, ROUTE};
use crate::netlink::{NetlinkError, errno};

/// The mark on our routes (`RTPROT_*`). Numbers above 4 belong to programs; this one is in neither `linux/rtnetlink.h` nor
/// `iproute2`'s `rt_protos`.
pub(super) const ROUTE_MARK: u8 = 118;
/// The loopback link has this number in every network namespace. Our routes go there, so that they need no dummy link.
const LOOPBACK: u32 = 1;

/// The link with the name of the dummy link, whatever it is.
pub(in crate::linux) fn find(connection: &mut Connection) -> Result<Option<Link>, NetlinkError> {
    let mut found = None;
    let outcome = connection.request(&link::get(DUMMY_LINK), |message| {
        found = link::decode(message)?.or(found.take());
        Ok(())
    });
    match outcome {
        Err(error) if is_missing(&error) => Ok(None),
        outcome => outcome.map(|()| found),
    }
}

/// The link's number if it is a dummy.
fn own(link: Option<Link>) -> Result<Option<u32>, KernelError> {
    match link {
        Some(link) if link.kind.as_deref() != Some(DUMMY) => {
            let kind = link.kind.as_deref().unwrap_or("real device");
            let text = format!("the link {DUMMY_LINK} is a {kind}, not a {DUMMY}: rename or remove it");
            Err(KernelError::new(ErrorKind::Rejected, text))
        }
        link => Ok(link.map(|link| link.index)),
    }
}

/// The link, its addresses of a family without networks, and our routes. IPv6 link-local addresses are the kernel's own.
pub(super) fn read(
    family: IpFamily,
    serving: bool,
    timeout: Duration,
) -> Result<Vec<(ItemKey, ItemState)>, KernelError> {
    let error = |error: NetlinkError| error.to_kernel_error(&format!("reading the {family} addresses and routes"));
    let mut connection = Connection::open(ROUTE, timeout).map_err(error)?;
    let link = match own(find(&mut connection).map_err(error)?) {
        // Not ours, and not in the way.
        Err(_) if !serving => None,
        link => link?,
    };
    let mut items = Vec::new();
    if let Some(index) = link {
        items.push((ItemKey::Link, ItemState::Present));
        for address in addresses(&mut connection, family, index).map_err(error)? {
            let deprecated = address.flags & DEPRECATED != 0 || address.preferred == 0;
            items.push((ItemKey::Address(address.address), ItemState::Address { deprecated }));
        }
    }
    for route in routes(&mut connection, family).map_err(error)? {
        items.push((ItemKey::Route(route.destination), ItemState::Source(route.source)));
    }
    Ok(items)
}

fn addresses(connection: &mut Connection, family: IpFamily, index: u32) -> Result<Vec<InterfaceAddress>, NetlinkError> {
    let request = rtnetlink::dump_interface_addresses(family, index);
    let ours = |found: &InterfaceAddress| {
        let link_local = matches!(found.address, IpAddr::V6(address) if address.is_unicast_link_local());
        // Old kernels dump all interfaces, and one without IPv6 all families.
        found.interface == index
            && IpFamily::of(found.address) == family
            && found.prefix == family.host_prefix()
            && !link_local
    };
    let outcome = connection.dump(&request, Vec::new, |list, message| {
        list.extend(rtnetlink::decode_address(message)?.filter(ours));
        Ok(())
    });
    nothing_if_unsupported(outcome)
}

fn routes(connection: &mut Connection, family: IpFamily) -> Result<Vec<Route>, NetlinkError> {
    let request = route::dump(family, route::LOCAL_TABLE);
    let ours = |found: &Route| {
        found.protocol == ROUTE_MARK
            && found.table == route::LOCAL_TABLE
            && found.kind == route::LOCAL
            && IpFamily::of_net(&found.destination) == family
    };
    let outcome = connection.dump(&request, Vec::new, |list, message| {
        list.extend(route::decode(message)?.filter(ours));
        Ok(())
    });
    nothing_if_unsupported(outcome)
}

/// A kernel without a family holds nothing of it; nor does a table that is not there.
fn nothing_if_unsupported<T>(outcome: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match outcome {
        Err(NetlinkError::Refused { errno: errno::EOPNOTSUPP | errno::EAFNOSUPPORT | errno::ENOENT, .. }) => {
            Ok(Vec::new())
        }
        outcome => outcome,
    }
}

/// Carries out operations on the link, addresses and routes.
pub(super) fn apply(operations: &[&Op], timeout: Duration) -> Vec<Result<(), KernelError>> {
    let opened = Connection::open(ROUTE, timeout).and_then(|mut connection| Ok((find(&mut connection)?, connection)));
    let (link, connection) = match opened {
        Ok((link, connection)) => (own(link), connection),
        Err(error) => return all_failed(operations, &error),
    };
    let results = vec![Ok(()); operations.len()];
    let mut work = Work { connection, link, operations, results, pending: Vec::new(), addresses: PerFamily::default() };
    for (at, op) in operations.iter().enumerate() {
        if let Err(error) = work.take(at, op) {
            work.record(at, Err(error));
        }
    }
    work.send();
    work.results
}

struct Work<'a> {
    connection: Connection,
    /// The number of the dummy link, if there is one; an error if another link has its name.
    link: Result<Option<u32>, KernelError>,
    operations: &'a [&'a Op],
    results: Vec<Result<(), KernelError>>,
    /// What was not sent yet, each with the place of its operation.
    pending: Vec<(Request, usize)>,
    /// The addresses that the link has after all requests so far, if that was asked.
    addresses: PerFamily<Option<HashSet<IpAddr>>>,
}

impl Work<'_> {
    fn take(&mut self, at: usize, op: &Op) -> Result<(), KernelError> {
        let request = match op {
            Op::AddItem(ItemKey::Link, _) => {
                self.send();
                if self.link.clone()?.is_some() {
                    return Err(KernelError::new(ErrorKind::Exists, format!("{op}: it exists")));
                }
                return self.make_link(op).map(|_| ());
            }
            Op::ChangeItem(ItemKey::Link, _) => {
                self.send();
                return self.existing(op).map(|_| ());
            }
            Op::DeleteItem(ItemKey::Link) => {
                self.send();
                return self.delete_link(op);
            }
            Op::AddItem(ItemKey::Address(address), ItemState::Address { deprecated }) => {
                let index = match self.link.clone()? {
                    Some(index) => index,
                    None => {
                        self.send();
                        self.make_link(op)?
                    }
                };
                if let Some(known) = &mut self.addresses[IpFamily::of(*address)] {
                    known.insert(*address);
                }
                rtnetlink::add_address(&interface_address(index, *address, *deprecated))
            }
            Op::ChangeItem(ItemKey::Address(address), ItemState::Address { deprecated }) => {
                let index = self.existing(op)?;
                // The kernel would add an address that is missing.
                if !self.has(op, index, *address)? {
                    return Err(KernelError::new(ErrorKind::NotFound, format!("{op}: the link does not have it")));
                }
                rtnetlink::change_address(&interface_address(index, *address, *deprecated))
            }
            Op::DeleteItem(ItemKey::Address(address)) => {
                let index = self.existing(op)?;
                if let Some(known) = &mut self.addresses[IpFamily::of(*address)] {
                    known.remove(address);
                }
                rtnetlink::delete_address(&InterfaceAddress::host(index, *address))
            }
            Op::AddItem(ItemKey::Route(net), ItemState::Source(source)) => route::add(&local_route(net, *source)),
            Op::ChangeItem(ItemKey::Route(net), ItemState::Source(source)) => route::change(&local_route(net, *source)),
            // By whatever link and with whatever source it was made.
            Op::DeleteItem(ItemKey::Route(net)) => route::delete(&Route { interface: None, ..local_route(net, None) }),
            _ => return Err(nonsense(op)),
        };
        self.pending.push((request, at));
        Ok(())
    }

    fn send(&mut self) {
        let (requests, places): (Vec<Request>, Vec<usize>) = std::mem::take(&mut self.pending).into_iter().unzip();
        for (at, outcome) in places.into_iter().zip(self.connection.batch(&requests)) {
            let Some(op) = self.operations.get(at) else { continue };
            self.record(at, outcome.map_err(|error| failed(op, &error)));
        }
    }

    fn record(&mut self, at: usize, result: Result<(), KernelError>) {
        if let Some(slot) = self.results.get_mut(at) {
            *slot = result;
        }
    }

    /// The number of the link, which has to be there.
    fn existing(&self, op: &Op) -> Result<u32, KernelError> {
        let missing = || KernelError::new(ErrorKind::NotFound, format!("{op}: there is no link {DUMMY_LINK}"));
        self.link.clone()?.ok_or_else(missing)
    }

    /// Makes the link. It stays switched off: its addresses are local all the same.
    fn make_link(&mut self, op: &Op) -> Result<u32, KernelError> {
        let made = self.connection.request(&link::create(DUMMY_LINK, DUMMY), |_| Ok(()));
        match made {
            Ok(()) => {}
            // Somebody was faster.
            Err(NetlinkError::Refused { errno: errno::EEXIST, .. }) => {}
            Err(error @ NetlinkError::Refused { errno: errno::EOPNOTSUPP, .. }) => {
                let text = format!("{op}: the kernel has no {DUMMY} links: load the module {DUMMY} ({error})");
                return Err(KernelError::new(ErrorKind::Unsupported, text));
            }
            Err(error) => return Err(error.to_kernel_error(&format!("{op}: making the link {DUMMY_LINK}"))),
        }
        let found = find(&mut self.connection).map_err(|error| failed(op, &error))?;
        self.link = own(found);
        self.addresses = PerFamily::default();
        self.existing(op)
    }

    fn delete_link(&mut self, op: &Op) -> Result<(), KernelError> {
        let index = self.existing(op)?;
        let outcome = self.connection.request(&link::delete(index), |_| Ok(()));
        self.link = Ok(None);
        outcome.map_err(|error| failed(op, &error))
    }

    /// Whether the link has an address, after all that was asked for before.
    fn has(&mut self, op: &Op, index: u32, address: IpAddr) -> Result<bool, KernelError> {
        let family = IpFamily::of(address);
        if self.addresses[family].is_none() {
            self.send();
            let found = addresses(&mut self.connection, family, index).map_err(|error| failed(op, &error))?;
            self.addresses[family] = Some(found.into_iter().map(|found| found.address).collect());
        }
        Ok(self.addresses[family].as_ref().is_some_and(|known| known.contains(&address)))
    }
}

/// An address of the dummy link. IPv6: nobody is asked whether it is in use elsewhere, and no route of the main table is made
/// for it.
fn interface_address(index: u32, address: IpAddr, deprecated: bool) -> InterfaceAddress {
    InterfaceAddress {
        flags: if address.is_ipv6() { NO_DUPLICATE_DETECTION | NO_PREFIX_ROUTE } else { 0 },
        preferred: if deprecated { 0 } else { FOREVER },
        ..InterfaceAddress::host(index, address)
    }
}

fn local_route(net: &IpNet, source: Option<IpAddr>) -> Route {
    Route::local(*net, LOOPBACK, source, ROUTE_MARK)
}
