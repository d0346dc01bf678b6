//! Interface addresses (`rtnetlink.h`, `if_addr.h`).

use std::net::IpAddr;

use crate::net::IpFamily;
use crate::netlink::attribute::attributes;
use crate::netlink::message::{Message, Request};
use crate::netlink::{DecodeError, address_family};

/// `RTM_NEWADDR`.
const NEW_ADDRESS: u16 = 20;
/// `RTM_DELADDR`.
const DELETE_ADDRESS: u16 = 21;
/// `RTM_GETADDR`.
const GET_ADDRESS: u16 = 22;
/// `IFA_ADDRESS`: the address, or the peer's on a point-to-point link.
const ADDRESS: u16 = 1;
/// `IFA_LOCAL`: the own address; IPv6 has it only where there is a peer.
const LOCAL: u16 = 2;
/// The length of `ifaddrmsg`.
const HEADER: usize = 8;

/// `RTNLGRP_IPV4_IFADDR`: notifications about IPv4 addresses.
pub const GROUP_IPV4_ADDRESSES: u32 = 5;
/// `RTNLGRP_IPV6_IFADDR`: notifications about IPv6 addresses.
pub const GROUP_IPV6_ADDRESSES: u32 = 9;

/// A message about one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Whether the address is there, or has gone.
    pub present: bool,
    /// The interface's number.
    pub interface: u32,
    /// The length of its prefix.
    pub prefix: u8,
    /// The address.
    pub address: IpAddr,
}

/// A dump of all addresses of a family.
pub fn dump_addresses(family: IpFamily) -> Request {
    let mut payload = vec![0; HEADER];
    if let Some(first) = payload.first_mut() {
        *first = address_family(family);
    }
    Request { kind: GET_ADDRESS, flags: 0, payload }
}

/// The address in a message of a dump or a notification; `None` for another message.
pub fn decode_address(message: &Message<'_>) -> Result<Option<InterfaceAddress>, DecodeError> {
    let present = match message.kind {
        NEW_ADDRESS => true,
        DELETE_ADDRESS => false,
        _ => return Ok(None),
    };
    let Some(([_family, prefix, _flags, _scope, interface @ ..], rest)) = message.payload.split_first_chunk::<HEADER>()
    else {
        return Err(DecodeError("an address message without its header"));
    };
    let (mut address, mut local) = (None, None);
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind() {
            ADDRESS => address = Some(attribute.address()?),
            LOCAL => local = Some(attribute.address()?),
            _ => {}
        }
    }
    let interface = u32::from_ne_bytes(*interface);
    Ok(local.or(address).map(|address| InterfaceAddress { present, interface, prefix: *prefix, address }))
}
