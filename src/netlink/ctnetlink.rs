//! Connection tracking (`nfnetlink_conntrack.h`): filtered dumps and deletion.

use std::net::{IpAddr, SocketAddr};

use crate::kernel::{Flow, FlowEnd, FlowQuery};
use crate::net::{IpFamily, Protocol};
use crate::netlink::attribute::{Attribute, push, push_address, push_nested};
use crate::netlink::message::{Message, Request, netfilter_attributes, netfilter_payload};
use crate::netlink::{DecodeError, address_family};

/// `NFNL_SUBSYS_CTNETLINK << 8`.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW`.
const NEW: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = SUBSYSTEM | 2;

/// `CTA_TUPLE_ORIG`.
const TUPLE_ORIGINAL: u16 = 1;
/// `CTA_TUPLE_REPLY`.
const TUPLE_REPLY: u16 = 2;
/// `CTA_ZONE`.
const ZONE: u16 = 18;
/// `CTA_FILTER`.
const FILTER: u16 = 25;
/// `CTA_FILTER_ORIG_FLAGS`.
const FILTER_ORIGINAL: u16 = 1;
/// `CTA_FILTER_REPLY_FLAGS`.
const FILTER_REPLY: u16 = 2;

/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// `CTA_IP_V4_SRC` to `CTA_IP_V6_DST`.
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`.
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
const PROTOCOL_DESTINATION_PORT: u16 = 3;

/// Bits of `CTA_FILTER`: which fields of the tuple have to match.
const MATCH_SOURCE: u32 = 1 << 0;
const MATCH_DESTINATION: u32 = 1 << 1;
const MATCH_PROTOCOL: u32 = 1 << 3;
const MATCH_SOURCE_PORT: u32 = 1 << 4;
const MATCH_DESTINATION_PORT: u32 = 1 << 5;

/// One direction of a flow; only what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// From where.
    pub source: Option<IpAddr>,
    /// To where.
    pub destination: Option<IpAddr>,
    /// The IP protocol number.
    pub protocol: Option<u8>,
    /// The source port.
    pub source_port: Option<u16>,
    /// The destination port.
    pub destination_port: Option<u16>,
}

impl Tuple {
    /// Reads the attributes of a tuple; those of no interest are skipped.
    pub fn decode(tuple: &Attribute<'_>) -> Result<Tuple, DecodeError> {
        let mut decoded = Tuple::default();
        for part in tuple.nested() {
            let part = part?;
            for field in part.nested() {
                let field = field?;
                match (part.kind(), field.kind()) {
                    (TUPLE_IP, IP_V4_SOURCE | IP_V6_SOURCE) => decoded.source = Some(field.address()?),
                    (TUPLE_IP, IP_V4_DESTINATION | IP_V6_DESTINATION) => decoded.destination = Some(field.address()?),
                    (TUPLE_PROTOCOL, PROTOCOL_NUMBER) => decoded.protocol = Some(field.u8()?),
                    (TUPLE_PROTOCOL, PROTOCOL_SOURCE_PORT) => decoded.source_port = Some(field.u16_be()?),
                    (TUPLE_PROTOCOL, PROTOCOL_DESTINATION_PORT) => decoded.destination_port = Some(field.u16_be()?),
                    _ => {}
                }
            }
        }
        Ok(decoded)
    }

    /// Appends the tuple as an attribute.
    pub fn encode(&self, kind: u16, out: &mut Vec<u8>) {
        push_nested(out, kind, |tuple| {
            if self.source.is_some() || self.destination.is_some() {
                push_nested(tuple, TUPLE_IP, |ip| {
                    if let Some(source) = self.source {
                        push_address(ip, if source.is_ipv4() { IP_V4_SOURCE } else { IP_V6_SOURCE }, source);
                    }
                    if let Some(to) = self.destination {
                        push_address(ip, if to.is_ipv4() { IP_V4_DESTINATION } else { IP_V6_DESTINATION }, to);
                    }
                });
            }
            push_nested(tuple, TUPLE_PROTOCOL, |protocol| {
                if let Some(number) = self.protocol {
                    push(protocol, PROTOCOL_NUMBER, &[number]);
                }
                if let Some(port) = self.source_port {
                    push(protocol, PROTOCOL_SOURCE_PORT, &port.to_be_bytes());
                }
                if let Some(port) = self.destination_port {
                    push(protocol, PROTOCOL_DESTINATION_PORT, &port.to_be_bytes());
                }
            });
        });
    }

    fn source(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.source?, self.source_port?))
    }

    fn destination(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.destination?, self.destination_port?))
    }
}

/// The IP protocol number (`IPPROTO_*`).
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A dump of the flows that match the query, as far as the kernel can tell (5.8 and newer). Older kernels answer with
/// all flows of the family or with an error: use [`dump_all`] then, and [`FlowQuery::admits`] always.
pub fn dump_filtered(query: &FlowQuery) -> Request {
    // IPv6 addresses are compared the wrong way round by kernels up to at least 6.18: the matching ones are
    // left out. So only the port is asked for.
    let address = query.address.filter(IpAddr::is_ipv4);
    let protocol = Some(protocol_number(query.protocol));
    let (tuple, match_address, match_port) = match query.end {
        FlowEnd::Destination => {
            let tuple = Tuple { destination: address, destination_port: query.port, protocol, ..Tuple::default() };
            (tuple, MATCH_DESTINATION, MATCH_DESTINATION_PORT)
        }
        FlowEnd::Source => {
            let tuple = Tuple { source: address, source_port: query.port, protocol, ..Tuple::default() };
            (tuple, MATCH_SOURCE, MATCH_SOURCE_PORT)
        }
    };
    let mut wanted = MATCH_PROTOCOL;
    if address.is_some() {
        wanted |= match_address;
    }
    if query.port.is_some() {
        wanted |= match_port;
    }
    let mut request = dump_all(query.family);
    tuple.encode(TUPLE_ORIGINAL, &mut request.payload);
    push_nested(&mut request.payload, FILTER, |filter| {
        push(filter, FILTER_ORIGINAL, &wanted.to_ne_bytes());
        push(filter, FILTER_REPLY, &0_u32.to_ne_bytes());
    });
    request
}

/// A dump of all flows of a family.
pub fn dump_all(family: IpFamily) -> Request {
    Request { kind: GET, flags: 0, payload: netfilter_payload(address_family(family)) }
}

/// Deletes the flow with this original direction and zone.
pub fn delete(flow: &Flow) -> Request {
    let family = IpFamily::of(flow.original_destination.ip());
    let mut payload = netfilter_payload(address_family(family));
    let tuple = Tuple {
        source: Some(flow.original_source.ip()),
        destination: Some(flow.original_destination.ip()),
        protocol: Some(protocol_number(flow.protocol)),
        source_port: Some(flow.original_source.port()),
        destination_port: Some(flow.original_destination.port()),
    };
    // Without a tuple this message would flush everything, so it is written first and unconditionally.
    tuple.encode(TUPLE_ORIGINAL, &mut payload);
    if flow.zone != 0 {
        push(&mut payload, ZONE, &flow.zone.to_be_bytes());
    }
    Request { kind: DELETE, flags: 0, payload }
}

/// The flow in a message of a dump; `None` for another message or a protocol without ports.
pub fn decode_flow(message: &Message<'_>) -> Result<Option<Flow>, DecodeError> {
    if message.kind != NEW {
        return Ok(None);
    }
    let (mut original, mut reply, mut zone) = (Tuple::default(), Tuple::default(), 0);
    for attribute in netfilter_attributes(message)? {
        let attribute = attribute?;
        match attribute.kind() {
            TUPLE_ORIGINAL => original = Tuple::decode(&attribute)?,
            TUPLE_REPLY => reply = Tuple::decode(&attribute)?,
            ZONE => zone = attribute.u16_be()?,
            _ => {}
        }
    }
    let flow = || {
        Some(Flow {
            protocol: protocol_of(original.protocol?)?,
            original_source: original.source()?,
            original_destination: original.destination()?,
            reply_source: reply.source()?,
            reply_destination: reply.destination()?,
            zone,
        })
    };
    Ok(flow())
}
