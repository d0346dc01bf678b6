//! Sets of addresses and ports (`ip_set.h`): requests.
//!
//! Protocol 6, which every kernel since 3.x speaks. A message names one set and one command; it may carry many elements,
//! which are carried out in order until one is refused: those before it stay, those behind it are not looked at.
//! [`error::Refusal`] names the line of the refused one. Lines count from 1.

mod element;
pub mod error;
mod set;

pub use element::Element;
pub use set::{Listed, Listing, Set, SetType};

use crate::net::IpFamily;
use crate::netlink::attribute::{NESTED, NET_BYTE_ORDER, push, push_nested, push_text};
use crate::netlink::message::{CREATE, EXCLUSIVE, Message, Request, netfilter_attributes, netfilter_payload};
use crate::netlink::{DecodeError, address_family};

/// `NFNL_SUBSYS_IPSET << 8`.
const SUBSYSTEM: u16 = 6 << 8;
/// `IPSET_CMD_PROTOCOL` and the others.
const PROTOCOL_COMMAND: u16 = SUBSYSTEM | 1;
const CREATE_COMMAND: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const SWAP: u16 = SUBSYSTEM | 6;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 10;
const TEST: u16 = SUBSYSTEM | 11;
const TYPE: u16 = SUBSYSTEM | 13;

/// `IPSET_ATTR_PROTOCOL` and the others, beside or around the attributes of sets and elements.
const PROTOCOL: u16 = 1;
const NAME: u16 = 2;
const TYPE_NAME: u16 = 3;
const SECOND_NAME: u16 = 3;
const REVISION: u16 = 4;
const FAMILY: u16 = 5;
const FLAGS: u16 = 6;
const DATA: u16 = 7;
const ELEMENTS: u16 = 8;
const LINE: u16 = 9;
const MINIMUM: u16 = 10;

/// `IPSET_FLAG_LIST_HEADER`.
const LIST_HEADER: u32 = 4;
/// What we speak.
const VERSION: u8 = 6;
/// The longest name of a set or a type: `IPSET_MAXNAMELEN` without its terminating zero.
pub const MAX_NAME: usize = 31;
/// How many bytes of elements go into one message: a nested attribute has 16 bits of length, and what stands around it
/// takes a little more.
const MAX_ELEMENT_BYTES: usize = 60 * 1024;

/// A range of versions, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The lowest.
    pub lowest: u8,
    /// The highest.
    pub highest: u8,
}

/// Asks which protocol versions the kernel speaks; it also tells whether there are sets at all.
pub fn query_protocol() -> Request {
    Request { kind: PROTOCOL_COMMAND, flags: 0, payload: payload() }
}

/// Asks which revisions of a type the kernel knows for a family (`None` for types without addresses).
pub fn query_type(kind: &SetType, family: Option<IpFamily>) -> Request {
    let mut payload = payload();
    push_text(&mut payload, TYPE_NAME, kind.name());
    push(&mut payload, FAMILY, &[family.map_or(0, address_family)]);
    Request { kind: TYPE, flags: 0, payload }
}

/// The versions in an answer to [`query_protocol`] or [`query_type`]; `None` for another message.
pub fn decode_versions(message: &Message<'_>) -> Result<Option<Versions>, DecodeError> {
    let highest = match message.kind {
        PROTOCOL_COMMAND => PROTOCOL,
        TYPE => REVISION,
        _ => return Ok(None),
    };
    let (mut high, mut low) = (None, None);
    for attribute in netfilter_attributes(message)? {
        let attribute = attribute?;
        match attribute.kind() {
            kind if kind == highest => high = Some(attribute.u8()?),
            MINIMUM => low = Some(attribute.u8()?),
            _ => {}
        }
    }
    let highest = high.ok_or(DecodeError("an answer about versions without one"))?;
    Ok(Some(Versions { lowest: low.unwrap_or(highest), highest }))
}

/// Creates a set. If one of the name exists: with `exclusive` that is an error, without it only one that differs in type
/// or options is.
pub fn create(set: &Set, exclusive: bool) -> Request {
    let mut payload = named(&set.name);
    set.encode(&mut payload);
    Request { kind: CREATE_COMMAND, flags: CREATE | flag(exclusive), payload }
}

/// Destroys one set, which nothing must refer to; `ENOENT` if there is none.
pub fn destroy(name: &str) -> Request {
    // Without a name this message would destroy all sets, so it is always written. Without the flag the
    // kernel is content with a missing set.
    Request { kind: DESTROY, flags: EXCLUSIVE, payload: named(name) }
}

/// Exchanges the contents of two sets of the same type and family. What refers to one of them sees the other's content
/// from then on.
pub fn swap(first: &str, second: &str) -> Request {
    let mut payload = named(first);
    push_text(&mut payload, SECOND_NAME, second);
    Request { kind: SWAP, flags: 0, payload }
}

/// A dump of all sets without their elements.
pub fn list_headers() -> Request {
    let mut payload = payload();
    push(&mut payload, FLAGS | NET_BYTE_ORDER, &LIST_HEADER.to_be_bytes());
    Request { kind: LIST, flags: 0, payload }
}

/// A dump of one set without its elements; `ENOENT` if there is no such set.
pub fn list_header(name: &str) -> Request {
    let mut payload = named(name);
    push(&mut payload, FLAGS | NET_BYTE_ORDER, &LIST_HEADER.to_be_bytes());
    Request { kind: LIST, flags: 0, payload }
}

/// A dump of one set with its elements; `ENOENT` if there is no such set.
pub fn list(name: &str) -> Request {
    Request { kind: LIST, flags: 0, payload: named(name) }
}

/// Adds elements, in as few messages as they fit into. With `exclusive` one that is there already is an error. The lines
/// count through all messages: line `n` is `elements[n - 1]`.
pub fn add(set: &str, elements: &[Element], exclusive: bool) -> Vec<Request> {
    change(ADD, set, elements, exclusive)
}

/// Deletes elements, in as few messages as they fit into. With `exclusive` one that is not there is an error. The lines
/// count as for [`add`].
pub fn delete(set: &str, elements: &[Element], exclusive: bool) -> Vec<Request> {
    change(DELETE, set, elements, exclusive)
}

/// Asks whether an element is in a set: no error, or [`error::Reason::Missing`].
pub fn test(set: &str, element: &Element) -> Request {
    let mut payload = named(set);
    push_nested(&mut payload, DATA, |data| element.encode(data));
    Request { kind: TEST, flags: 0, payload }
}

fn change(kind: u16, set: &str, elements: &[Element], exclusive: bool) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut list = Vec::new();
    let mut finish = |list: &mut Vec<u8>| {
        let mut payload = named(set);
        // Any line but 0 makes the kernel write the refused one over it, in its echo of the request.
        push(&mut payload, LINE | NET_BYTE_ORDER, &u32::MAX.to_be_bytes());
        push(&mut payload, ELEMENTS | NESTED, list);
        list.clear();
        requests.push(Request { kind, flags: flag(exclusive), payload });
    };
    for (line, element) in (1_u32..).zip(elements) {
        let before = list.len();
        push_nested(&mut list, DATA, |data| {
            element.encode(data);
            push(data, LINE | NET_BYTE_ORDER, &line.to_be_bytes());
        });
        if list.len() > MAX_ELEMENT_BYTES {
            let last = list.split_off(before);
            finish(&mut list);
            list = last;
        }
    }
    if !list.is_empty() {
        finish(&mut list);
    }
    requests
}

fn flag(exclusive: bool) -> u16 {
    if exclusive { EXCLUSIVE } else { 0 }
}

/// The family in `nfgenmsg` says nothing for sets; the tool writes IPv4.
fn payload() -> Vec<u8> {
    let mut payload = netfilter_payload(address_family(IpFamily::V4));
    push(&mut payload, PROTOCOL, &[VERSION]);
    payload
}

fn named(name: &str) -> Vec<u8> {
    let mut payload = payload();
    push_text(&mut payload, NAME, name);
    payload
}

#[cfg(test)]
mod tests;
