//! Interfaces (`if_link.h`): virtual ones are made and removed.

use crate::netlink::DecodeError;
use crate::netlink::attribute::{attributes, push, push_nested, push_text};
use crate::netlink::message::{CREATE, EXCLUSIVE, Message, Request};

/// `RTM_NEWLINK`.
const NEW: u16 = 16;
/// `RTM_DELLINK`.
const DELETE: u16 = 17;
/// `RTM_GETLINK`.
const GET: u16 = 18;
/// `IFLA_IFNAME`.
const NAME: u16 = 3;
/// `IFLA_LINKINFO`.
const DETAILS: u16 = 18;
/// `IFLA_INFO_KIND`, within the details.
const KIND: u16 = 1;
/// `IFLA_INFO_DATA`, within the details: what the kind defines.
const DATA: u16 = 2;
/// `VETH_INFO_PEER`, within the data of [`VETH`]: the other end, as a message about an interface of its own.
const PEER: u16 = 1;
/// `IFLA_NET_NS_FD`: the network namespace that the interface is made in.
const NAMESPACE: u16 = 28;
/// `IFF_UP`.
const UP: u32 = 1;
/// The length of `ifinfomsg`.
const HEADER: usize = 16;

/// The kind of an interface that takes addresses and drops packets.
pub const DUMMY: &str = "dummy";
/// The kind of an interface that is one end of a pair: what goes in at one end comes out at the other.
pub const VETH: &str = "veth";
/// The longest name: `IFNAMSIZ` without its terminating zero.
pub const MAX_NAME: usize = 15;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, from 1.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, if it is virtual: [`DUMMY`], `bridge`, `veth` and so on.
    pub kind: Option<String>,
    /// `IFF_*`.
    pub flags: u32,
}

impl Link {
    /// Whether it is switched on.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }
}

/// Creates a virtual interface, switched off; `EEXIST` if there is one of the name, `EOPNOTSUPP` if the kernel does not
/// know the kind.
pub fn create(name: &str, kind: &str) -> Request {
    let mut payload = header(0, 0, 0);
    push_text(&mut payload, NAME, name);
    push_nested(&mut payload, DETAILS, |details| push_text(details, KIND, kind));
    Request { kind: NEW, flags: CREATE | EXCLUSIVE, payload }
}

/// Creates a pair of interfaces of kind [`VETH`], both switched off: one of this name, the other with the peer's name in the network
/// namespace that this descriptor of the calling process stands for.
pub fn create_pair(name: &str, peer: &str, peer_namespace: i32) -> Request {
    let mut payload = header(0, 0, 0);
    push_text(&mut payload, NAME, name);
    push_nested(&mut payload, DETAILS, |details| {
        push_text(details, KIND, VETH);
        push_nested(details, DATA, |data| {
            push_nested(data, PEER, |other| {
                other.extend(header(0, 0, 0));
                push_text(other, NAME, peer);
                push(other, NAMESPACE, &peer_namespace.to_ne_bytes());
            });
        });
    });
    Request { kind: NEW, flags: CREATE | EXCLUSIVE, payload }
}

/// Asks for the interface of a name; `ENODEV` if there is none.
pub fn get(name: &str) -> Request {
    let mut payload = header(0, 0, 0);
    push_text(&mut payload, NAME, name);
    Request { kind: GET, flags: 0, payload }
}

/// A dump of all interfaces.
pub fn dump() -> Request {
    Request { kind: GET, flags: 0, payload: header(0, 0, 0) }
}

/// Switches an interface on or off.
pub fn set_up(index: u32, up: bool) -> Request {
    Request { kind: NEW, flags: 0, payload: header(index, if up { UP } else { 0 }, UP) }
}

/// Removes a virtual interface, together with its addresses and routes; `ENODEV` if there is none of this number.
pub fn delete(index: u32) -> Request {
    Request { kind: DELETE, flags: 0, payload: header(index, 0, 0) }
}

/// The interface in an answer; `None` for another message.
pub fn decode(message: &Message<'_>) -> Result<Option<Link>, DecodeError> {
    if message.kind != NEW {
        return Ok(None);
    }
    let Some(([_family, _, _, _, rest @ ..], body)) = message.payload.split_first_chunk::<HEADER>() else {
        return Err(DecodeError("a message about an interface without its header"));
    };
    let [a, b, c, d, e, f, g, h, ..] = *rest;
    let mut link =
        Link { index: u32::from_ne_bytes([a, b, c, d]), flags: u32::from_ne_bytes([e, f, g, h]), ..Link::default() };
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind() {
            NAME => link.name = attribute.text(),
            DETAILS => link.kind = attribute.nested().find_kind(KIND)?.map(|kind| kind.text()),
            _ => {}
        }
    }
    Ok(Some(link))
}

/// `ifinfomsg`: family and type unspecified, number, flags, and which flags are meant.
fn header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut payload = vec![0; 4];
    for number in [index, flags, change] {
        payload.extend_from_slice(&number.to_ne_bytes());
    }
    payload
}
