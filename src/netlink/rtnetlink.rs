//! Interface addresses (`rtnetlink.h`, `if_addr.h`).

use std::net::IpAddr;

use crate::net::IpFamily;
use crate::netlink::attribute::{attributes, push, push_address};
use crate::netlink::message::{CREATE, EXCLUSIVE, Message, REPLACE, Request};
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
/// `IFA_CACHEINFO`: for how long the address is preferred and valid, and when it was made and changed.
const LIFETIME: u16 = 6;
/// `IFA_FLAGS`: the flags, where the header's byte is too small for them.
const FLAGS: u16 = 8;
/// The length of `ifaddrmsg`.
const HEADER: usize = 8;

/// `RTNLGRP_IPV4_IFADDR`: notifications about IPv4 addresses.
pub const GROUP_IPV4_ADDRESSES: u32 = 5;
/// `RTNLGRP_IPV6_IFADDR`: notifications about IPv6 addresses.
pub const GROUP_IPV6_ADDRESSES: u32 = 9;

/// The lifetime that never ends.
pub const FOREVER: u32 = u32::MAX;
/// `IFA_F_NODAD`: nobody is asked whether the IPv6 address is in use elsewhere.
pub const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// `IFA_F_DEPRECATED`: the kernel does not choose the address as a source (any more).
pub const DEPRECATED: u32 = 0x20;
/// `IFA_F_NOPREFIXROUTE`: the address brings no route to its network.
pub const NO_PREFIX_ROUTE: u32 = 0x200;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Whether the address is there, or has gone; requests do not look at it.
    pub present: bool,
    /// The interface's number.
    pub interface: u32,
    /// The length of its prefix.
    pub prefix: u8,
    /// The address.
    pub address: IpAddr,
    /// `IFA_F_*`. The kernel adds some of its own.
    pub flags: u32,
    /// For how many seconds the address is taken as source of new connections; [`FOREVER`], or 0 for never unless a
    /// program asks for it. It stays valid for ever. An IPv4 address that was added with 0 is read as [`FOREVER`] with
    /// the flag [`DEPRECATED`].
    pub preferred: u32,
}

impl InterfaceAddress {
    /// An address without a network, for the interface of this number.
    pub fn host(interface: u32, address: IpAddr) -> InterfaceAddress {
        let prefix = IpFamily::of(address).host_prefix();
        InterfaceAddress { present: true, interface, prefix, address, flags: 0, preferred: FOREVER }
    }

    fn request(&self, kind: u16, flags: u16) -> Request {
        let family = address_family(IpFamily::of(self.address));
        let mut payload = header(family, self.prefix, self.interface);
        push_address(&mut payload, LOCAL, self.address);
        push_address(&mut payload, ADDRESS, self.address);
        if self.flags != 0 {
            push(&mut payload, FLAGS, &self.flags.to_ne_bytes());
        }
        if self.preferred != FOREVER {
            let times = [self.preferred, FOREVER, 0, 0].map(u32::to_ne_bytes);
            push(&mut payload, LIFETIME, times.as_flattened());
        }
        Request { kind, flags, payload }
    }
}

/// Adds an address; `EEXIST` if the interface has it.
pub fn add_address(address: &InterfaceAddress) -> Request {
    address.request(NEW_ADDRESS, CREATE | EXCLUSIVE)
}

/// Changes flags and lifetime of an address. The kernel adds one that is missing: look first.
pub fn change_address(address: &InterfaceAddress) -> Request {
    address.request(NEW_ADDRESS, REPLACE)
}

/// Deletes an address; `EADDRNOTAVAIL` if the interface does not have it, `ENODEV` if there is no such interface. Flags
/// and lifetime do not matter.
pub fn delete_address(address: &InterfaceAddress) -> Request {
    address.request(DELETE_ADDRESS, 0)
}

/// A dump of all addresses of a family.
pub fn dump_addresses(family: IpFamily) -> Request {
    dump_interface_addresses(family, 0)
}

/// A dump of the addresses of a family of one interface; `ENODEV` if there is no such interface. Kernels before 5.0 dump
/// those of all interfaces: see [`InterfaceAddress::interface`].
pub fn dump_interface_addresses(family: IpFamily, interface: u32) -> Request {
    Request { kind: GET_ADDRESS, flags: 0, payload: header(address_family(family), 0, interface) }
}

/// `ifaddrmsg`: family, length of the prefix, no flags, scope of the whole world, number of the interface.
fn header(family: u8, prefix: u8, interface: u32) -> Vec<u8> {
    let mut payload = vec![family, prefix, 0, 0];
    payload.extend_from_slice(&interface.to_ne_bytes());
    payload
}

/// The address in a message of a dump or a notification; `None` for another message.
pub fn decode_address(message: &Message<'_>) -> Result<Option<InterfaceAddress>, DecodeError> {
    let present = match message.kind {
        NEW_ADDRESS => true,
        DELETE_ADDRESS => false,
        _ => return Ok(None),
    };
    let Some(([_family, prefix, flags, _scope, interface @ ..], rest)) = message.payload.split_first_chunk::<HEADER>()
    else {
        return Err(DecodeError("an address message without its header"));
    };
    let (mut address, mut local) = (None, None);
    let (mut flags, mut preferred) = (u32::from(*flags), FOREVER);
    for attribute in attributes(rest) {
        let attribute = attribute?;
        match attribute.kind() {
            ADDRESS => address = Some(attribute.address()?),
            LOCAL => local = Some(attribute.address()?),
            FLAGS => flags = attribute.u32_native()?,
            LIFETIME => {
                let first = attribute.payload.first_chunk().ok_or(DecodeError("a lifetime without a number"))?;
                preferred = u32::from_ne_bytes(*first);
            }
            _ => {}
        }
    }
    let (interface, prefix) = (u32::from_ne_bytes(*interface), *prefix);
    Ok(local.or(address).map(|address| InterfaceAddress { present, interface, prefix, address, flags, preferred }))
}
