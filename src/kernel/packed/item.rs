//! The keys of items.

use std::net::{IpAddr, Ipv4Addr};

use crate::kernel::{Element, ItemKey, RealKey, SetKey, SetName, VirtualKey};
use crate::net::{IpFamily, Protocol};

/// An IPv4 address. As bytes, so that it fits between smaller fields.
type V4 = [u8; 4];

/// An [`ItemKey`] of 16 bytes. Equal keys have equal packed forms.
///
/// Those of IPv4 that a big node has many of stand in it; all others in a box.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PackedItem {
    /// [`ItemKey::Element`] with an [`Element::Ip`].
    Ip(SetName, V4),
    /// The same with an [`Element::IpPort`].
    IpPort(SetName, Protocol, u16, V4),
    /// The same with an [`Element::IpPortIp`].
    IpPortIp(SetName, Protocol, u16, V4, V4),
    /// [`ItemKey::VirtualServer`].
    VirtualServer(Protocol, u16, V4),
    /// [`ItemKey::RealServer`]: protocol, port and address of the virtual one, its own port and address.
    RealServer(Protocol, u16, V4, u16, V4),
    /// [`ItemKey::Address`].
    Address(V4),
    /// Anything else.
    Other(Box<ItemKey>),
}

impl PackedItem {
    /// Packs a key.
    pub fn of(key: &ItemKey) -> PackedItem {
        match *key {
            ItemKey::Element(SetKey { family: IpFamily::V4, name }, element) => match element {
                Element::Ip(IpAddr::V4(ip)) => PackedItem::Ip(name, ip.octets()),
                Element::IpPort(IpAddr::V4(ip), protocol, port) => {
                    PackedItem::IpPort(name, protocol, port, ip.octets())
                }
                Element::IpPortIp(IpAddr::V4(ip), protocol, port, IpAddr::V4(second)) => {
                    PackedItem::IpPortIp(name, protocol, port, ip.octets(), second.octets())
                }
                _ => PackedItem::Other(Box::new(*key)),
            },
            ItemKey::VirtualServer(VirtualKey { address: IpAddr::V4(address), protocol, port }) => {
                PackedItem::VirtualServer(protocol, port, address.octets())
            }
            ItemKey::RealServer(RealKey { server, address: IpAddr::V4(address), port }) => match server.address {
                IpAddr::V4(front) => {
                    PackedItem::RealServer(server.protocol, server.port, front.octets(), port, address.octets())
                }
                IpAddr::V6(_) => PackedItem::Other(Box::new(*key)),
            },
            ItemKey::Address(IpAddr::V4(address)) => PackedItem::Address(address.octets()),
            _ => PackedItem::Other(Box::new(*key)),
        }
    }

    /// The key.
    pub fn key(&self) -> ItemKey {
        let ip = |octets: V4| IpAddr::V4(Ipv4Addr::from(octets));
        let element = |name, element| ItemKey::Element(SetKey { family: IpFamily::V4, name }, element);
        match self {
            PackedItem::Ip(name, address) => element(*name, Element::Ip(ip(*address))),
            PackedItem::IpPort(name, protocol, port, address) => {
                element(*name, Element::IpPort(ip(*address), *protocol, *port))
            }
            PackedItem::IpPortIp(name, protocol, port, address, second) => {
                element(*name, Element::IpPortIp(ip(*address), *protocol, *port, ip(*second)))
            }
            PackedItem::VirtualServer(protocol, port, address) => {
                ItemKey::VirtualServer(VirtualKey { address: ip(*address), protocol: *protocol, port: *port })
            }
            PackedItem::RealServer(protocol, front_port, front, port, address) => {
                let server = VirtualKey { address: ip(*front), protocol: *protocol, port: *front_port };
                ItemKey::RealServer(RealKey { server, address: ip(*address), port: *port })
            }
            PackedItem::Address(address) => ItemKey::Address(ip(*address)),
            PackedItem::Other(key) => **key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_key_is_small_and_becomes_the_same_again() {
        assert_eq!(size_of::<PackedItem>(), 16);
        let mut keys = vec![ItemKey::Link, ItemKey::Route("10.96.0.0/12".parse().unwrap())];
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let name = SetName::ClusterIp;
        for (family, address, second) in [(IpFamily::V4, v4, v4), (IpFamily::V6, v6, v6)] {
            let set = SetKey { family, name };
            let server = VirtualKey { address, protocol: Protocol::Udp, port: 53 };
            let elements = [
                Element::Ip(address),
                Element::IpPort(address, Protocol::Sctp, 1),
                Element::IpPortIp(address, Protocol::Tcp, 65535, second),
                Element::IpPortNet(address, Protocol::Tcp, 80, second.into()),
                Element::Port(30000),
            ];
            keys.extend(elements.map(|element| ItemKey::Element(set, element)));
            keys.extend([ItemKey::Set(set), ItemKey::VirtualServer(server), ItemKey::Address(address)]);
            keys.push(ItemKey::RealServer(RealKey { server, address: second, port: 5353 }));
        }
        for key in &keys {
            assert_eq!(PackedItem::of(key).key(), *key);
        }
        let packed: std::collections::HashSet<PackedItem> = keys.iter().map(PackedItem::of).collect();
        assert_eq!(packed.len(), keys.len());
        let boxed = packed.iter().filter(|packed| matches!(packed, PackedItem::Other(_)));
        assert_eq!(boxed.count(), 2 + 9 + 3, "of IPv4 only what there are few of");
    }
}
