//! Elements of sets.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::DecodeError;
use crate::netlink::attribute::{Attribute, Attributes, NET_BYTE_ORDER, push, push_nested};

/// `IPSET_ATTR_IP` and the others, of elements.
const ADDRESS: u16 = 1;
const PORT: u16 = 4;
const PROTOCOL: u16 = 7;
const FLAGS: u16 = 8;
const SECOND_ADDRESS: u16 = 20;
const SECOND_PREFIX: u16 = 21;
/// `IPSET_ATTR_IPADDR_IPV4`, `IPSET_ATTR_IPADDR_IPV6`, within an address.
const IPV4: u16 = 1;
const IPV6: u16 = 2;
/// `IPSET_FLAG_NOMATCH`.
const NO_MATCH: u32 = 4;

/// An element of one of the set types that are used here. The `protocol` is an IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// Of `hash:ip`.
    Ip(IpAddr),
    /// Of `hash:ip,port`.
    IpPort {
        /// The address.
        ip: IpAddr,
        /// The protocol of the port.
        protocol: u8,
        /// The port.
        port: u16,
    },
    /// Of `hash:ip,port,ip`.
    IpPortIp {
        /// The address.
        ip: IpAddr,
        /// The protocol of the port.
        protocol: u8,
        /// The port.
        port: u16,
        /// The second address, of the same family.
        second: IpAddr,
    },
    /// Of `hash:ip,port,net`.
    IpPortNet {
        /// The address.
        ip: IpAddr,
        /// The protocol of the port.
        protocol: u8,
        /// The port.
        port: u16,
        /// The network, of the same family. The kernel refuses a prefix of 0: two networks of prefix 1 are the same.
        net: IpNet,
        /// An exception: packets of this network do not match, even if those of a wider network in the set do.
        exception: bool,
    },
    /// Of `bitmap:port`, for any protocol.
    Port(u16),
}

impl Element {
    /// Appends the attributes of the element.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let ip_port = |out: &mut Vec<u8>, ip, protocol, port| {
            push_ip(out, ADDRESS, ip);
            push_port(out, port);
            push(out, PROTOCOL, &[protocol]);
        };
        match *self {
            Element::Ip(ip) => push_ip(out, ADDRESS, ip),
            Element::IpPort { ip, protocol, port } => ip_port(out, ip, protocol, port),
            Element::IpPortIp { ip, protocol, port, second } => {
                ip_port(out, ip, protocol, port);
                push_ip(out, SECOND_ADDRESS, second);
            }
            Element::IpPortNet { ip, protocol, port, net, exception } => {
                ip_port(out, ip, protocol, port);
                push_ip(out, SECOND_ADDRESS, net.network());
                push(out, SECOND_PREFIX, &[net.prefix_len()]);
                if exception {
                    push(out, FLAGS | NET_BYTE_ORDER, &NO_MATCH.to_be_bytes());
                }
            }
            Element::Port(port) => push_port(out, port),
        }
    }

    /// Reads the attributes of an element; which there are tells the type of the set. Timeouts, counters and comments
    /// are skipped.
    pub(super) fn decode(attributes: Attributes<'_>) -> Result<Element, DecodeError> {
        let (mut ip, mut second, mut prefix, mut port, mut protocol) = (None, None, None, None, None);
        let mut flags = 0;
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind() {
                ADDRESS => ip = Some(read_ip(&attribute)?),
                SECOND_ADDRESS => second = Some(read_ip(&attribute)?),
                SECOND_PREFIX => prefix = Some(attribute.u8()?),
                PORT => port = Some(attribute.u16_be()?),
                PROTOCOL => protocol = Some(attribute.u8()?),
                FLAGS => flags = attribute.u32_be()?,
                _ => {}
            }
        }
        match (ip, protocol, port, second, prefix) {
            (Some(ip), None, None, None, None) => Ok(Element::Ip(ip)),
            (Some(ip), Some(protocol), Some(port), None, None) => Ok(Element::IpPort { ip, protocol, port }),
            (Some(ip), Some(protocol), Some(port), Some(second), None) => {
                Ok(Element::IpPortIp { ip, protocol, port, second })
            }
            (Some(ip), Some(protocol), Some(port), Some(address), Some(prefix)) => {
                let net = IpNet::new(address, prefix).map_err(|_| DecodeError("a prefix longer than its address"))?;
                let exception = flags & NO_MATCH != 0;
                Ok(Element::IpPortNet { ip, protocol, port, net: net.trunc(), exception })
            }
            (None, None, Some(port), None, None) => Ok(Element::Port(port)),
            _ => Err(DecodeError("an element of a set type that is not used here")),
        }
    }
}

/// As the `ipset` tool writes elements.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |protocol: u8| match protocol {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => other.to_string(),
        };
        match *self {
            Element::Ip(ip) => write!(f, "{ip}"),
            Element::IpPort { ip, protocol, port } => write!(f, "{ip},{}:{port}", name(protocol)),
            Element::IpPortIp { ip, protocol, port, second } => write!(f, "{ip},{}:{port},{second}", name(protocol)),
            Element::IpPortNet { ip, protocol, port, net, exception } => {
                write!(f, "{ip},{}:{port},{}", name(protocol), net.network())?;
                if net.prefix_len() != net.max_prefix_len() {
                    write!(f, "/{}", net.prefix_len())?;
                }
                f.write_str(if exception { " nomatch" } else { "" })
            }
            Element::Port(port) => write!(f, "{port}"),
        }
    }
}

fn push_ip(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    push_nested(out, kind, |inner| match address {
        IpAddr::V4(address) => push(inner, IPV4 | NET_BYTE_ORDER, &address.octets()),
        IpAddr::V6(address) => push(inner, IPV6 | NET_BYTE_ORDER, &address.octets()),
    });
}

fn read_ip(attribute: &Attribute<'_>) -> Result<IpAddr, DecodeError> {
    match attribute.nested().next() {
        Some(inner) => inner?.address(),
        None => Err(DecodeError("an address attribute without an address")),
    }
}

fn push_port(out: &mut Vec<u8>, port: u16) {
    push(out, PORT | NET_BYTE_ORDER, &port.to_be_bytes());
}
