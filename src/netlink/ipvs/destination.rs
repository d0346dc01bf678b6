//! Destinations of a service.

use std::net::{IpAddr, SocketAddr};

use super::{Unknown, family_of, missing, push_u32, push_wide_address, wide_address};
use crate::net::IpFamily;
use crate::netlink::attribute::{Attributes, push};
use crate::netlink::{DecodeError, address_family};

/// `IPVS_DEST_ATTR_ADDR` and the others.
const ADDRESS: u16 = 1;
const PORT: u16 = 2;
const FORWARDING: u16 = 3;
const WEIGHT: u16 = 4;
const UPPER_THRESHOLD: u16 = 5;
const LOWER_THRESHOLD: u16 = 6;
const ACTIVE_CONNECTIONS: u16 = 7;
const INACTIVE_CONNECTIONS: u16 = 8;
const PERSISTENT_CONNECTIONS: u16 = 9;
const STATISTICS: u16 = 10;
const FAMILY: u16 = 11;
const STATISTICS_64: u16 = 12;
const TUNNEL_TYPE: u16 = 13;
const TUNNEL_PORT: u16 = 14;
const TUNNEL_FLAGS: u16 = 15;

/// What identifies a destination within its service: address and port. For a service of a packet mark the port is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationKey(pub SocketAddr);

impl DestinationKey {
    /// The family.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.0.ip())
    }

    /// Always with the family: the kernel takes that of the service otherwise, whatever the address is.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        push_wide_address(out, ADDRESS, self.0.ip());
        push(out, PORT, &self.0.port().to_be_bytes());
        push(out, FAMILY, &u16::from(address_family(self.family())).to_ne_bytes());
    }
}

/// How packets get to a destination (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forwarding {
    /// Both addresses are translated.
    Masquerade,
    /// The destination is this host.
    Local,
    /// In a tunnel.
    Tunnel,
    /// Unchanged, to the destination's link address.
    DirectRoute,
    /// To where the packet was going anyway.
    Bypass,
    /// A number that is none of these.
    Other(u32),
}

impl From<u32> for Forwarding {
    fn from(number: u32) -> Forwarding {
        match number {
            0 => Forwarding::Masquerade,
            1 => Forwarding::Local,
            2 => Forwarding::Tunnel,
            3 => Forwarding::DirectRoute,
            4 => Forwarding::Bypass,
            other => Forwarding::Other(other),
        }
    }
}

impl From<Forwarding> for u32 {
    fn from(forwarding: Forwarding) -> u32 {
        match forwarding {
            Forwarding::Masquerade => 0,
            Forwarding::Local => 1,
            Forwarding::Tunnel => 2,
            Forwarding::DirectRoute => 3,
            Forwarding::Bypass => 4,
            Forwarding::Other(other) => other,
        }
    }
}

/// The kind of tunnel, which means something only for [`Forwarding::Tunnel`]. Linux 5.3 and later tell it of every
/// destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`: 0 IP in IP, 1 GUE, 2 GRE.
    pub kind: u8,
    /// The destination port of GUE.
    pub port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`.
    pub flags: u16,
}

/// What a destination has to do; only read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Connections in use: established TCP.
    pub active: u32,
    /// All others.
    pub inactive: u32,
    /// Clients that are remembered.
    pub persistent: u32,
}

/// A destination. Statistics are not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What identifies it.
    pub key: DestinationKey,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Its share of new connections, at most `i32::MAX`; with 0 it gets none and keeps those that it has.
    pub weight: u32,
    /// More connections than this are not scheduled; 0: no limit.
    pub upper_threshold: u32,
    /// From fewer than this on they are again; 0: three quarters of the upper one.
    pub lower_threshold: u32,
    /// The kind of tunnel, if it was told.
    pub tunnel: Option<Tunnel>,
    /// What it has to do, if it was told; the kernel does not look at it in a request.
    pub connections: Option<Connections>,
    /// Everything else that came, except statistics.
    pub unknown: Unknown,
}

impl Destination {
    /// A destination whose packets are translated.
    pub fn new(address: SocketAddr, weight: u32) -> Destination {
        Destination {
            key: DestinationKey(address),
            forwarding: Forwarding::Masquerade,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: None,
            connections: None,
            unknown: Unknown::new(),
        }
    }

    /// Appends the attributes of the destination.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.key.encode(out);
        push_u32(out, FORWARDING, self.forwarding.into());
        push_u32(out, WEIGHT, self.weight);
        push_u32(out, UPPER_THRESHOLD, self.upper_threshold);
        push_u32(out, LOWER_THRESHOLD, self.lower_threshold);
        if let Some(tunnel) = self.tunnel {
            push(out, TUNNEL_TYPE, &[tunnel.kind]);
            push(out, TUNNEL_PORT, &tunnel.port.to_be_bytes());
            push(out, TUNNEL_FLAGS, &tunnel.flags.to_ne_bytes());
        }
        if let Some(connections) = self.connections {
            push_u32(out, ACTIVE_CONNECTIONS, connections.active);
            push_u32(out, INACTIVE_CONNECTIONS, connections.inactive);
            push_u32(out, PERSISTENT_CONNECTIONS, connections.persistent);
        }
        for (kind, payload) in &self.unknown {
            push(out, *kind, payload);
        }
    }

    /// Reads the attributes of a destination of a service of this family.
    pub(super) fn decode(attributes: Attributes<'_>, mut family: IpFamily) -> Result<Destination, DecodeError> {
        let (mut address, mut port) = (None, None);
        let mut decoded = Destination::new(SocketAddr::new(IpAddr::from([0; 4]), 0), 0);
        for attribute in attributes {
            let attribute = attribute?;
            let mut tunnel = decoded.tunnel.unwrap_or_default();
            let mut connections = decoded.connections.unwrap_or_default();
            match attribute.kind() {
                ADDRESS => address = Some(attribute),
                PORT => port = Some(attribute.u16_be()?),
                FAMILY => family = family_of(&attribute)?,
                FORWARDING => decoded.forwarding = attribute.u32_native()?.into(),
                WEIGHT => decoded.weight = attribute.u32_native()?,
                UPPER_THRESHOLD => decoded.upper_threshold = attribute.u32_native()?,
                LOWER_THRESHOLD => decoded.lower_threshold = attribute.u32_native()?,
                ACTIVE_CONNECTIONS => connections.active = attribute.u32_native()?,
                INACTIVE_CONNECTIONS => connections.inactive = attribute.u32_native()?,
                PERSISTENT_CONNECTIONS => connections.persistent = attribute.u32_native()?,
                TUNNEL_TYPE => tunnel.kind = attribute.u8()?,
                TUNNEL_PORT => tunnel.port = attribute.u16_be()?,
                TUNNEL_FLAGS => tunnel.flags = attribute.u16_native()?,
                STATISTICS | STATISTICS_64 => {}
                _ => decoded.unknown.push((attribute.raw_kind, attribute.payload.to_vec())),
            }
            match attribute.kind() {
                TUNNEL_TYPE..=TUNNEL_FLAGS => decoded.tunnel = Some(tunnel),
                ACTIVE_CONNECTIONS..=PERSISTENT_CONNECTIONS => decoded.connections = Some(connections),
                _ => {}
            }
        }
        let address = wide_address(&missing(address)?, family)?;
        decoded.key = DestinationKey(SocketAddr::new(address, missing(port)?));
        Ok(decoded)
    }
}
