//! Routes (`rtnetlink.h`): those that make addresses local.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::IpFamily;
use crate::netlink::attribute::{attributes, push, push_address};
use crate::netlink::message::{CREATE, EXCLUSIVE, Message, REPLACE, Request};
use crate::netlink::{DecodeError, address_family};

/// `RTM_NEWROUTE`.
const NEW: u16 = 24;
/// `RTM_DELROUTE`.
const DELETE: u16 = 25;
/// `RTM_GETROUTE`.
const GET: u16 = 26;
/// `RTA_DST`.
const DESTINATION: u16 = 1;
/// `RTA_OIF`.
const INTERFACE: u16 = 4;
/// `RTA_GATEWAY`.
const GATEWAY: u16 = 5;
/// `RTA_PREFSRC`.
const PREFERRED_SOURCE: u16 = 7;
/// `RTA_TABLE`: the table, where the header's byte is too small for it.
const TABLE: u16 = 15;
/// The length of `rtmsg`.
const HEADER: usize = 12;

/// `RT_TABLE_LOCAL`.
pub const LOCAL_TABLE: u32 = 255;
/// `RTN_LOCAL`: packets are for this host.
pub const LOCAL: u8 = 2;
/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;
/// `RTN_UNICAST`: packets go on.
const UNICAST: u8 = 1;
/// `RT_SCOPE_UNIVERSE`.
const GLOBAL_SCOPE: u8 = 0;
/// `RT_SCOPE_HOST`.
const HOST_SCOPE: u8 = 254;

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// To where.
    pub destination: IpNet,
    /// `RTN_*`: [`LOCAL`] for example.
    pub kind: u8,
    /// The table.
    pub table: u32,
    /// `RTPROT_*`: who made it. The kernel makes those with 2; `ip` knows names for some others.
    pub protocol: u8,
    /// `RT_SCOPE_*`; IPv6 has none and says 0.
    pub scope: u8,
    /// The interface's number, if there is just one.
    pub interface: Option<u32>,
    /// The address from which this host sends along the route, if it is not left to the kernel.
    pub source: Option<IpAddr>,
}

impl Route {
    /// Makes the addresses of a network local, as if each were assigned to the interface; packets of this host to them
    /// have this source address, which must be assigned to an interface of this host; with IPv6 `EINVAL` is the answer as
    /// long as the kernel asks around whether it is in use elsewhere. `protocol` is a mark to recognise the route by.
    pub fn local(destination: IpNet, interface: u32, source: Option<IpAddr>, protocol: u8) -> Route {
        let scope = match IpFamily::of_net(&destination) {
            IpFamily::V4 => HOST_SCOPE,
            IpFamily::V6 => 0,
        };
        Route {
            destination: destination.trunc(),
            kind: LOCAL,
            table: LOCAL_TABLE,
            protocol,
            scope,
            interface: Some(interface),
            source,
        }
    }

    fn request(&self, kind: u16, flags: u16) -> Request {
        let mut payload = header(&self.destination, self.table);
        // Behind the family, the two lengths of prefixes, the type of service and the table.
        payload.extend_from_slice(&[self.protocol, self.scope, self.kind, 0, 0, 0, 0]);
        push_address(&mut payload, DESTINATION, self.destination.addr());
        push(&mut payload, TABLE, &self.table.to_ne_bytes());
        if let Some(interface) = self.interface {
            push(&mut payload, INTERFACE, &interface.to_ne_bytes());
        }
        if let Some(source) = self.source {
            push_address(&mut payload, PREFERRED_SOURCE, source);
        }
        Request { kind, flags, payload }
    }
}

/// Adds a route; `EEXIST` if there is one for the destination.
pub fn add(route: &Route) -> Request {
    route.request(NEW, CREATE | EXCLUSIVE)
}

/// Adds a route that leads to a network by way of a host on the same link, in the main table; `ENETUNREACH` if the host is on no
/// link, `EEXIST` if there is a route for the destination.
pub fn add_via(destination: IpNet, gateway: IpAddr, protocol: u8) -> Request {
    let destination = destination.trunc();
    let mut payload = header(&destination, MAIN_TABLE);
    payload.extend_from_slice(&[protocol, GLOBAL_SCOPE, UNICAST, 0, 0, 0, 0]);
    push_address(&mut payload, DESTINATION, destination.addr());
    push_address(&mut payload, GATEWAY, gateway);
    Request { kind: NEW, flags: CREATE | EXCLUSIVE, payload }
}

/// Adds a route, or puts it into the place of the first one for the destination.
pub fn replace(route: &Route) -> Request {
    route.request(NEW, CREATE | REPLACE)
}

/// Puts a route into the place of the first one for the destination; `ENOENT` if there is none.
pub fn change(route: &Route) -> Request {
    route.request(NEW, REPLACE)
}

/// Deletes a route that is the same in every respect; `ESRCH` if there is none.
pub fn delete(route: &Route) -> Request {
    route.request(DELETE, 0)
}

/// A dump of the routes of a table; `ENOENT` if there is no such table. Kernels before 5.0 dump all tables: see
/// [`Route::table`].
pub fn dump(family: IpFamily, table: u32) -> Request {
    let mut payload = vec![address_family(family), 0, 0, 0, short_table(table)];
    payload.resize(HEADER, 0);
    push(&mut payload, TABLE, &table.to_ne_bytes());
    Request { kind: GET, flags: 0, payload }
}

/// The route in a message of a dump; `None` for another message or a family that is not IP.
pub fn decode(message: &Message<'_>) -> Result<Option<Route>, DecodeError> {
    if message.kind != NEW && message.kind != DELETE {
        return Ok(None);
    }
    let Some(([family, prefix, _source_prefix, _tos, table, protocol, scope, kind, ..], body)) =
        message.payload.split_first_chunk::<HEADER>()
    else {
        return Err(DecodeError("a message about a route without its header"));
    };
    let family = match *family {
        2 => IpFamily::V4,
        10 => IpFamily::V6,
        _ => return Ok(None),
    };
    let mut address = match family {
        IpFamily::V4 => IpAddr::from([0; 4]),
        IpFamily::V6 => IpAddr::from([0; 16]),
    };
    let (mut table, mut interface, mut source) = (u32::from(*table), None, None);
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind() {
            DESTINATION => address = attribute.address()?,
            INTERFACE => interface = Some(attribute.u32_native()?),
            PREFERRED_SOURCE => source = Some(attribute.address()?),
            TABLE => table = attribute.u32_native()?,
            _ => {}
        }
    }
    let destination =
        IpNet::new(address, *prefix).map_err(|_| DecodeError("a prefix longer than its address"))?.trunc();
    let (kind, protocol, scope) = (*kind, *protocol, *scope);
    Ok(Some(Route { destination, kind, table, protocol, scope, interface, source }))
}

/// The first five bytes of `rtmsg`.
fn header(destination: &IpNet, table: u32) -> Vec<u8> {
    let family = address_family(IpFamily::of_net(destination));
    vec![family, destination.prefix_len(), 0, 0, short_table(table)]
}

/// The table for the header; `RT_TABLE_UNSPEC` if it does not fit, since the attribute counts.
fn short_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or(0)
}
