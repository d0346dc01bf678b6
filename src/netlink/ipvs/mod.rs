//! The load balancer in the kernel (`ip_vs.h`): virtual services and their destinations.
//!
//! Requests are carried out one by one; there is no transaction. A dump has no mark for changes that happen meanwhile
//! and may then miss or repeat an entry. The kernel keeps one state for each network namespace. There is no request
//! here that flushes: it would remove what is not ours.
//!
//! What the kernel answers when it refuses (Linux 6.1, measured by `tests/lab_ipvs.rs`):
//!
//! | request | refused because | error |
//! |---|---|---|
//! | new service | it exists | `EEXIST` 17 |
//! | new or set service | the scheduler is unknown | `ENOENT` 2 |
//! | new or set service | IPv6 prefix of 0 or above 128 | `EINVAL` 22 |
//! | set, delete, get service | it does not exist | `ESRCH` 3 |
//! | any for a destination, except a dump | its service does not exist | `ESRCH` 3 |
//! | dump of destinations | their service does not exist | none: the dump is empty |
//! | new destination | it exists | `EEXIST` 17 |
//! | set, delete destination | it does not exist | `ENOENT` 2 |
//! | new destination, masquerading | its family is not the service's | `EINVAL` 22 |
//! | new destination | unspecified, broadcast or multicast address | `EINVAL` 22 |
//! | new or set destination | the lower threshold is above the upper one, or the weight is above `i32::MAX` | `ERANGE` 34 |
//! | set timeouts | a value in seconds that overflows in ticks | `EINVAL` 22 |
//! | family by name | the module is missing | `ENOENT` 2 |
//! | any | no `CAP_NET_ADMIN` | `EPERM` 1 |

mod destination;
mod service;

pub use destination::{Connections, Destination, DestinationKey, Forwarding, Tunnel};
pub use service::{Flags, Service, ServiceKey, Virtual};

use std::net::IpAddr;

use crate::net::IpFamily;
use crate::netlink::DecodeError;
use crate::netlink::attribute::{Attribute, Attributes, push, push_nested};
use crate::netlink::genl::{self, Family};
use crate::netlink::message::{Message, Request};

/// The name to ask [`genl::get_family`] for (`IPVS_GENL_NAME`).
pub const FAMILY: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;

/// `IPVS_CMD_NEW_SERVICE` and the others.
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DELETE_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;
const SET_CONFIG: u8 = 12;
const GET_CONFIG: u8 = 13;
const SET_INFO: u8 = 14;
const GET_INFO: u8 = 15;

/// `IPVS_CMD_ATTR_SERVICE`.
const SERVICE: u16 = 1;
/// `IPVS_CMD_ATTR_DEST`.
const DESTINATION: u16 = 2;
/// `IPVS_CMD_ATTR_TIMEOUT_TCP`, `_TCP_FIN`, `_UDP`.
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;
/// `IPVS_INFO_ATTR_VERSION`, `_CONN_TAB_SIZE`.
const INFO_VERSION: u16 = 1;
const INFO_TABLE_SIZE: u16 = 2;

/// Attributes that this codec does not know, by their raw type.
pub type Unknown = Vec<(u16, Vec<u8>)>;

/// What the kernel's load balancer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Its version: major, minor and patch in one byte each, `0x010201` for 1.2.1.
    pub version: u32,
    /// Buckets of the connection table.
    pub connection_table_size: u32,
}

/// How long connections are remembered without traffic, in seconds. Zero leaves a value as it is when set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// Builds requests and reads answers, for one boot of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipvs {
    id: u16,
}

impl Ipvs {
    /// With the family that [`genl::get_family`] found under the name [`FAMILY`].
    pub fn new(family: &Family) -> Ipvs {
        Ipvs { id: family.id }
    }

    fn request(self, command: u8) -> Request {
        Request { kind: self.id, flags: 0, payload: genl::header(command, VERSION) }
    }

    /// The attributes of a message with this command; `None` for another message.
    fn body<'a>(self, message: &Message<'a>, command: u8) -> Result<Option<Attributes<'a>>, DecodeError> {
        if message.kind != self.id {
            return Ok(None);
        }
        let (found, attributes) = genl::split(message)?;
        Ok((found == command).then_some(attributes))
    }

    /// Asks for the version and sizes.
    pub fn get_info(self) -> Request {
        self.request(GET_INFO)
    }

    /// The answer to [`Ipvs::get_info`]; `None` for another message.
    pub fn decode_info(self, message: &Message<'_>) -> Result<Option<Info>, DecodeError> {
        let Some(attributes) = self.body(message, SET_INFO)? else { return Ok(None) };
        let mut info = Info::default();
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind() {
                INFO_VERSION => info.version = attribute.u32_native()?,
                INFO_TABLE_SIZE => info.connection_table_size = attribute.u32_native()?,
                _ => {}
            }
        }
        Ok(Some(info))
    }

    /// Asks for the timeouts.
    pub fn get_timeouts(self) -> Request {
        self.request(GET_CONFIG)
    }

    /// Sets the timeouts.
    pub fn set_timeouts(self, timeouts: Timeouts) -> Request {
        let mut request = self.request(SET_CONFIG);
        push(&mut request.payload, TIMEOUT_TCP, &timeouts.tcp.to_ne_bytes());
        push(&mut request.payload, TIMEOUT_TCP_FIN, &timeouts.tcp_fin.to_ne_bytes());
        push(&mut request.payload, TIMEOUT_UDP, &timeouts.udp.to_ne_bytes());
        request
    }

    /// The answer to [`Ipvs::get_timeouts`]; `None` for another message. A kernel without one of the protocols leaves
    /// its value out, which is read as zero.
    pub fn decode_timeouts(self, message: &Message<'_>) -> Result<Option<Timeouts>, DecodeError> {
        let Some(attributes) = self.body(message, SET_CONFIG)? else { return Ok(None) };
        let mut timeouts = Timeouts::default();
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind() {
                TIMEOUT_TCP => timeouts.tcp = attribute.u32_native()?,
                TIMEOUT_TCP_FIN => timeouts.tcp_fin = attribute.u32_native()?,
                TIMEOUT_UDP => timeouts.udp = attribute.u32_native()?,
                _ => {}
            }
        }
        Ok(Some(timeouts))
    }

    /// Adds a service, which must not exist.
    pub fn new_service(self, service: &Service) -> Request {
        self.whole_service(NEW_SERVICE, service)
    }

    /// Changes everything of an existing service but its key.
    pub fn set_service(self, service: &Service) -> Request {
        self.whole_service(SET_SERVICE, service)
    }

    fn whole_service(self, command: u8, service: &Service) -> Request {
        let mut request = self.request(command);
        push_nested(&mut request.payload, SERVICE, |out| service.encode(out));
        request
    }

    /// Deletes a service together with its destinations.
    pub fn delete_service(self, key: &ServiceKey) -> Request {
        self.of_service(DELETE_SERVICE, key)
    }

    /// Asks for one service.
    pub fn get_service(self, key: &ServiceKey) -> Request {
        self.of_service(GET_SERVICE, key)
    }

    fn of_service(self, command: u8, key: &ServiceKey) -> Request {
        let mut request = self.request(command);
        push_nested(&mut request.payload, SERVICE, |out| key.encode(out));
        request
    }

    /// A dump of all services of both families, the latest first.
    pub fn dump_services(self) -> Request {
        self.request(GET_SERVICE)
    }

    /// The service in an answer; `None` for another message.
    pub fn decode_service(self, message: &Message<'_>) -> Result<Option<Service>, DecodeError> {
        let Some(attributes) = self.body(message, NEW_SERVICE)? else { return Ok(None) };
        attributes.find_kind(SERVICE)?.map(|attribute| Service::decode(attribute.nested())).transpose()
    }

    /// Adds a destination, which must not exist.
    pub fn new_destination(self, service: &ServiceKey, destination: &Destination) -> Request {
        self.whole_destination(NEW_DESTINATION, service, destination)
    }

    /// Changes everything of an existing destination but its key.
    pub fn set_destination(self, service: &ServiceKey, destination: &Destination) -> Request {
        self.whole_destination(SET_DESTINATION, service, destination)
    }

    fn whole_destination(self, command: u8, service: &ServiceKey, destination: &Destination) -> Request {
        let mut request = self.of_service(command, service);
        push_nested(&mut request.payload, DESTINATION, |out| destination.encode(out));
        request
    }

    /// Deletes a destination. Its connections stay until they end, unless the kernel is set up to drop them.
    pub fn delete_destination(self, service: &ServiceKey, key: &DestinationKey) -> Request {
        let mut request = self.of_service(DELETE_DESTINATION, service);
        push_nested(&mut request.payload, DESTINATION, |out| key.encode(out));
        request
    }

    /// A dump of the destinations of one service, the latest first; empty if there is no such service.
    pub fn dump_destinations(self, service: &ServiceKey) -> Request {
        self.of_service(GET_DESTINATION, service)
    }

    /// The destination in a message of a dump; `None` for another message. `service` is the family of the dumped service:
    /// kernels before 3.18 do not tell that of the destination, since it is the same.
    pub fn decode_destination(
        self,
        message: &Message<'_>,
        service: IpFamily,
    ) -> Result<Option<Destination>, DecodeError> {
        let Some(attributes) = self.body(message, NEW_DESTINATION)? else { return Ok(None) };
        attributes.find_kind(DESTINATION)?.map(|found| Destination::decode(found.nested(), service)).transpose()
    }
}

fn push_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    push(out, kind, &value.to_ne_bytes());
}

/// Appends an address as the kernel writes it: always 16 bytes, IPv4 in the first four.
fn push_wide_address(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => {
            for (to, from) in bytes.iter_mut().zip(address.octets()) {
                *to = from;
            }
        }
        IpAddr::V6(address) => bytes = address.octets(),
    }
    push(out, kind, &bytes);
}

/// Reads an address of 4 or 16 bytes, of which IPv4 uses the first four.
fn wide_address(attribute: &Attribute<'_>, family: IpFamily) -> Result<IpAddr, DecodeError> {
    match family {
        IpFamily::V4 => match attribute.payload.first_chunk::<4>() {
            Some(bytes) => Ok(IpAddr::from(*bytes)),
            None => Err(DecodeError("an IPv4 address with fewer than 4 bytes")),
        },
        IpFamily::V6 => match <[u8; 16]>::try_from(attribute.payload) {
            Ok(bytes) => Ok(IpAddr::from(bytes)),
            Err(_) => Err(DecodeError("an IPv6 address without 16 bytes")),
        },
    }
}

/// `AF_INET` or `AF_INET6`, in 16 bits.
fn family_of(attribute: &Attribute<'_>) -> Result<IpFamily, DecodeError> {
    match attribute.u16_native()? {
        2 => Ok(IpFamily::V4),
        10 => Ok(IpFamily::V6),
        _ => Err(DecodeError("an address family that is neither IPv4 nor IPv6")),
    }
}

fn missing<T>(value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or(DecodeError("an IPVS entry without a part of its key"))
}

#[cfg(test)]
mod tests;
