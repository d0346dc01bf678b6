//! Sets and their elements.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use super::{all_failed, failed, is_missing, nonsense, number, protocol};
use crate::kernel::{Element, ErrorKind, ItemKey, ItemState, KernelError, Op, SetKey, SetKind};
use crate::net::IpFamily;
use crate::netlink::ipset::error::{Reason, Refusal};
use crate::netlink::ipset::{self, Listed, Listing, Set, SetType};
use crate::netlink::message::Request;
use crate::netlink::socket::{Connection, NETFILTER};
use crate::netlink::{NetlinkError, errno};

/// How many elements go into one message: as many as surely fit.
const ELEMENTS_PER_MESSAGE: usize = 700;

/// What was found of a family's sets.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// Sets and elements.
    pub items: Vec<(ItemKey, ItemState)>,
    /// A set from an interrupted change of a capacity.
    pub leftovers: bool,
}

/// The sets of a family with their elements. A set of ports has a capacity of `u32::MAX`, since it has room for all.
///
/// Asking about sets loads `ip_set`. Unless that is wanted, `/sys/module` is looked at first, which names built-in modules,
/// too (this one has a parameter); a system that does not show it is asked.
pub(super) fn read(family: IpFamily, serving: bool, timeout: Duration) -> Result<Sets, KernelError> {
    let mut found = Sets::default();
    if !serving && !may_be_loaded() {
        return Ok(found);
    }
    let attempted = format!("reading the {family} sets");
    let headers = Connection::open(NETFILTER, timeout)
        .and_then(|mut connection| Ok((list(&mut connection, &ipset::list_headers())?, connection)));
    let (headers, mut connection) = match headers {
        Err(NetlinkError::Refused { errno: errno::EINVAL | errno::EOPNOTSUPP, .. }) if !serving => return Ok(found),
        Err(error) => return Err(whole_error(&attempted, &error)),
        Ok(headers) => headers,
    };
    for header in headers {
        found.leftovers |= header.set.name == spare_name(family);
        let Some(key) = SetKey::of_name(&header.set.name).filter(|key| key.family == family) else { continue };
        let wanted = blank(key, 0);
        if (&header.set.kind, header.set.family) != (&wanted.kind, wanted.family) {
            if !serving {
                // Somebody else's.
                continue;
            }
            let found = header.set.family.map(|family| format!("{family} ")).unwrap_or_default();
            let text = format!(
                "the set {key} is of the type {found}{}, not {}: remove it (ipset destroy {key}) together with what uses it",
                header.set.kind.name(),
                wanted.kind.name()
            );
            return Err(KernelError::new(ErrorKind::Rejected, text));
        }
        let listed = match list(&mut connection, &ipset::list(key.as_str())) {
            Err(error) if is_missing(&error) => continue,
            listed => listed.map_err(|error| whole_error(&attempted, &error))?,
        };
        for set in listed {
            let capacity = set.set.max_elements.unwrap_or(u32::MAX);
            found.items.push((ItemKey::Set(key), ItemState::Capacity(capacity)));
            let elements = set.elements.iter().filter_map(ours);
            found.items.extend(elements.map(|element| (ItemKey::Element(key, element), ItemState::Present)));
        }
    }
    Ok(found)
}

/// The sizes of our sets of both families; `None` if the kernel does not tell them.
pub(super) fn sizes(timeout: Duration) -> Option<Vec<(SetKey, u32)>> {
    let mut connection = Connection::open(NETFILTER, timeout).ok()?;
    let headers = list(&mut connection, &ipset::list_headers()).ok()?;
    let ours = headers.iter().filter_map(|header| Some((SetKey::of_name(&header.set.name)?, header.size)));
    ours.map(|(key, size)| Some((key, size?))).collect()
}

fn may_be_loaded() -> bool {
    Path::new("/sys/module/ip_set").exists() || !Path::new("/sys/module").exists()
}

fn list(connection: &mut Connection, request: &Request) -> Result<Vec<Listed>, NetlinkError> {
    Ok(connection.dump(request, Listing::default, Listing::absorb)?.sets)
}

/// An error that is not about one set.
fn whole_error(attempted: &str, error: &NetlinkError) -> KernelError {
    match error {
        // What netfilter says of a part that it does not have, and cannot load.
        NetlinkError::Refused { errno: errno::EINVAL | errno::EOPNOTSUPP, .. } => {
            let text = format!("{attempted}: the kernel has no sets: load the module ip_set ({error})");
            KernelError::new(ErrorKind::Unsupported, text)
        }
        _ => ipset::error::to_kernel_error(error, attempted),
    }
}

/// The name of the set that stands in for another one while that gets a new capacity.
fn spare_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "PORTOLAN-SPARE",
        IpFamily::V6 => "PORTOLAN-6-SPARE",
    }
}

/// Removes the sets that an interrupted change of a capacity has left behind, as far as possible: the next change does it, too.
pub(in crate::linux) fn remove_leftovers(timeout: Duration) {
    if let Ok(mut connection) = Connection::open(NETFILTER, timeout) {
        let _ = connection.batch(&IpFamily::ALL.map(|family| ipset::destroy(spare_name(family))));
    }
}

/// A set before it has elements.
fn blank(key: SetKey, capacity: u32) -> Set {
    match set_type(key.name.kind()) {
        SetType::BitmapPort => Set::ports(key.as_str()),
        kind => Set::hash(key.as_str(), kind, key.family, capacity),
    }
}

fn set_type(kind: SetKind) -> SetType {
    match kind {
        SetKind::Ip => SetType::HashIp,
        SetKind::IpPort => SetType::HashIpPort,
        SetKind::IpPortIp => SetType::HashIpPortIp,
        SetKind::IpPortNet => SetType::HashIpPortNet,
        SetKind::Port => SetType::BitmapPort,
    }
}

fn theirs(element: &Element) -> ipset::Element {
    match *element {
        Element::Ip(ip) => ipset::Element::Ip(ip),
        Element::IpPort(ip, protocol, port) => ipset::Element::IpPort { ip, protocol: number(protocol), port },
        Element::IpPortIp(ip, protocol, port, second) => {
            ipset::Element::IpPortIp { ip, protocol: number(protocol), port, second }
        }
        Element::IpPortNet(ip, protocol, port, net) => {
            ipset::Element::IpPortNet { ip, protocol: number(protocol), port, net, exception: false }
        }
        Element::Port(port) => ipset::Element::Port(port),
    }
}

/// `None` for an element that no Service can ask for: another protocol, an exception.
fn ours(element: &ipset::Element) -> Option<Element> {
    let known = |number: u8| protocol(u16::from(number));
    Some(match *element {
        ipset::Element::Ip(ip) => Element::Ip(ip),
        ipset::Element::IpPort { ip, protocol, port } => Element::IpPort(ip, known(protocol)?, port),
        ipset::Element::IpPortIp { ip, protocol, port, second } => {
            Element::IpPortIp(ip, known(protocol)?, port, second)
        }
        ipset::Element::IpPortNet { ip, protocol, port, net, exception: false } => {
            Element::IpPortNet(ip, known(protocol)?, port, net)
        }
        ipset::Element::IpPortNet { exception: true, .. } => return None,
        ipset::Element::Port(port) => Element::Port(port),
    })
}

/// Carries out operations on sets and elements.
///
/// Elements of one set that are added (or deleted) one after the other travel in one message, and messages travel together.
/// At an element that it refuses the kernel leaves its message and goes on with the next one. The elements that were left out are
/// sent again, each in a message of its own. To keep this in order, messages travel together only if none is about a set of
/// which an earlier one carries several elements.
pub(super) fn apply(operations: &[&Op], timeout: Duration) -> Vec<Result<(), KernelError>> {
    let connection = match Connection::open(NETFILTER, timeout) {
        Ok(connection) => connection,
        Err(error) => return all_failed(operations, &error),
    };
    let results = vec![Ok(()); operations.len()];
    let mut work = Work { connection, operations, results, messages: Vec::new(), several: Vec::new() };
    let mut first = 0;
    for group in operations
        .chunk_by(|before, after| matches!((elements_of(before), elements_of(after)), (Some(a), Some(b)) if a == b))
    {
        let after = first + group.len();
        while first < after {
            let end = after.min(first + ELEMENTS_PER_MESSAGE);
            work.take(first..end);
            first = end;
        }
    }
    work.send();
    work.results
}

/// The set whose elements are added (`true`) or deleted.
fn elements_of(op: &Op) -> Option<(SetKey, bool)> {
    match op {
        Op::AddItem(ItemKey::Element(set, _), _) => Some((*set, true)),
        Op::DeleteItem(ItemKey::Element(set, _)) => Some((*set, false)),
        _ => None,
    }
}

fn set_of(op: &Op) -> Option<SetKey> {
    match op {
        Op::AddItem(key, _) | Op::ChangeItem(key, _) | Op::DeleteItem(key) => match key {
            ItemKey::Set(set) | ItemKey::Element(set, _) => Some(*set),
            _ => None,
        },
        _ => None,
    }
}

struct Work<'a> {
    connection: Connection,
    operations: &'a [&'a Op],
    results: Vec<Result<(), KernelError>>,
    /// What was not sent yet, with the operations that it carries out.
    messages: Vec<(Request, Range<usize>)>,
    /// The sets of which one of these messages carries several elements.
    several: Vec<SetKey>,
}

impl Work<'_> {
    /// Takes operations that make one message.
    fn take(&mut self, range: Range<usize>) {
        let Some(op) = self.operations.get(range.start).copied() else { return };
        if set_of(op).is_some_and(|set| self.several.contains(&set)) {
            self.send();
        }
        if let Op::ChangeItem(ItemKey::Set(set), ItemState::Capacity(capacity)) = op {
            self.send();
            let outcome = resize(&mut self.connection, op, *set, *capacity);
            self.record(range.start, outcome);
            return;
        }
        let Some(request) = self.request(op, &range, true) else {
            self.record(range.start, Err(nonsense(op)));
            return;
        };
        if range.len() > 1 {
            self.several.extend(set_of(op));
        }
        self.messages.push((request, range));
    }

    fn request(&self, op: &Op, range: &Range<usize>, exclusive: bool) -> Option<Request> {
        if let Some((set, adds)) = elements_of(op) {
            let operations = self.operations.get(range.clone())?;
            let elements: Vec<ipset::Element> = operations
                .iter()
                .filter_map(|op| match op {
                    Op::AddItem(ItemKey::Element(_, element), _) | Op::DeleteItem(ItemKey::Element(_, element)) => {
                        Some(theirs(element))
                    }
                    _ => None,
                })
                .collect();
            let change = if adds { ipset::add } else { ipset::delete };
            return change(set.as_str(), &elements, exclusive).into_iter().next();
        }
        match op {
            Op::AddItem(ItemKey::Set(set), ItemState::Capacity(capacity)) => {
                Some(ipset::create(&blank(*set, *capacity), true))
            }
            Op::ChangeItem(ItemKey::Element(set, element), _) => Some(ipset::test(set.as_str(), &theirs(element))),
            Op::DeleteItem(ItemKey::Set(set)) => Some(ipset::destroy(set.as_str())),
            _ => None,
        }
    }

    fn send(&mut self) {
        self.several.clear();
        let (requests, ranges): (Vec<Request>, Vec<Range<usize>>) =
            std::mem::take(&mut self.messages).into_iter().unzip();
        for (range, outcome) in ranges.into_iter().zip(self.connection.batch(&requests)) {
            if let Err(error) = outcome {
                self.refused(range, &error);
            }
        }
    }

    fn refused(&mut self, range: Range<usize>, error: &NetlinkError) {
        let refusal = if range.len() > 1 { Refusal::of(error) } else { None };
        match refusal {
            Some(Refusal { line: Some(line), .. }) => {
                let at = range.start + line.saturating_sub(1);
                self.fail(at, error);
                self.one_by_one(at + 1..range.end, true);
            }
            // An element that cannot be read: those before it were carried out, and which one it is is not said.
            Some(Refusal { reason: Reason::Protocol, .. }) => self.one_by_one(range, false),
            _ => range.for_each(|at| self.fail(at, error)),
        }
    }

    fn one_by_one(&mut self, range: Range<usize>, exclusive: bool) {
        let request = |at: usize| {
            let op = self.operations.get(at)?;
            Some((self.request(op, &(at..at + 1), exclusive)?, at))
        };
        let (requests, places): (Vec<Request>, Vec<usize>) = range.filter_map(request).unzip();
        for (at, outcome) in places.into_iter().zip(self.connection.batch(&requests)) {
            if let Err(error) = outcome {
                self.fail(at, &error);
            }
        }
    }

    fn fail(&mut self, at: usize, error: &NetlinkError) {
        if let Some(op) = self.operations.get(at) {
            self.record(at, Err(op_error(op, error)));
        }
    }

    fn record(&mut self, at: usize, result: Result<(), KernelError>) {
        if let Some(slot) = self.results.get_mut(at) {
            *slot = result;
        }
    }
}

fn op_error(op: &Op, error: &NetlinkError) -> KernelError {
    match Refusal::of(error) {
        // The operation names the element.
        Some(Refusal { reason: Reason::Other(_), .. }) => whole_error(&op.to_string(), error),
        Some(refusal) => Refusal { line: None, ..refusal }.to_kernel_error(&op.to_string()),
        None => failed(op, error),
    }
}

/// Gives a set another capacity: another set is filled with the same elements and takes its place, in one step and under rules
/// that look into it.
fn resize(connection: &mut Connection, op: &Op, set: SetKey, capacity: u32) -> Result<(), KernelError> {
    let error = |error: NetlinkError| op_error(op, &error);
    let listed = list(connection, &ipset::list(set.as_str())).map_err(error)?.into_iter().next();
    let Some(listed) = listed else {
        return Err(KernelError::new(ErrorKind::NotFound, format!("{op}: there is no such set")));
    };
    if listed.set.max_elements.is_none_or(|now| now == capacity) {
        return Ok(());
    }
    let spare = spare_name(set.family);
    let blank = Set { name: spare.to_owned(), max_elements: Some(capacity), ..listed.set };
    let mut requests = vec![ipset::create(&blank, true)];
    requests.extend(ipset::add(spare, &listed.elements, true));
    // What an interrupted change left behind; mostly there is nothing.
    let _ = connection.request(&ipset::destroy(spare), |_| Ok(()));
    let filled: Result<Vec<()>, NetlinkError> = connection.batch(&requests).into_iter().collect();
    let swapped = filled.and_then(|_| connection.request(&ipset::swap(set.as_str(), spare), |_| Ok(())));
    // If this fails, the next change or the next start does it.
    let _ = connection.request(&ipset::destroy(spare), |_| Ok(()));
    swapped.map_err(error)
}
