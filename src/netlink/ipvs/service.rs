//! Virtual services.

use std::net::SocketAddr;

use super::{Unknown, family_of, missing, push_u32, push_wide_address, wide_address};
use crate::net::IpFamily;
use crate::netlink::attribute::{Attributes, push, push_text};
use crate::netlink::{DecodeError, address_family};

/// `IPVS_SVC_ATTR_AF` and the others.
const FAMILY: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
const FWMARK: u16 = 5;
const SCHEDULER: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;
const STATISTICS: u16 = 10;
const PERSISTENCE_ENGINE: u16 = 11;
const STATISTICS_64: u16 = 12;

/// What the packets of a service have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Virtual {
    /// A destination.
    Address {
        /// The IP protocol number.
        protocol: u16,
        /// The address and port; the kernel takes port 0 for all ports.
        address: SocketAddr,
    },
    /// A packet mark of a family.
    Mark {
        /// The family.
        family: IpFamily,
        /// The mark, not 0.
        mark: u32,
    },
}

/// What identifies a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey(pub Virtual);

impl ServiceKey {
    /// The service of an address.
    pub fn address(protocol: u16, address: SocketAddr) -> ServiceKey {
        ServiceKey(Virtual::Address { protocol, address })
    }

    /// The service of a packet mark.
    pub fn mark(family: IpFamily, mark: u32) -> ServiceKey {
        ServiceKey(Virtual::Mark { family, mark })
    }

    /// The family.
    pub fn family(&self) -> IpFamily {
        match self.0 {
            Virtual::Address { address, .. } => IpFamily::of(address.ip()),
            Virtual::Mark { family, .. } => family,
        }
    }

    /// The value of [`Service::netmask`] for persistence by single clients.
    pub fn host_netmask(&self) -> u32 {
        match self.family() {
            IpFamily::V4 => u32::MAX,
            IpFamily::V6 => 128,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        push(out, FAMILY, &u16::from(address_family(self.family())).to_ne_bytes());
        match self.0 {
            Virtual::Mark { mark, .. } => push_u32(out, FWMARK, mark),
            Virtual::Address { protocol, address } => {
                push(out, PROTOCOL, &protocol.to_ne_bytes());
                push_wide_address(out, ADDRESS, address.ip());
                push(out, PORT, &address.port().to_be_bytes());
            }
        }
    }
}

/// The flags of a service: the kernel's become `(old & !mask) | (value & mask)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// The bits.
    pub value: u32,
    /// Which of them are meant.
    pub mask: u32,
}

impl Flags {
    /// A client stays with its destination (`IP_VS_SVC_F_PERSISTENT`).
    pub const PERSISTENT: u32 = 1;
    /// Set by the kernel on every service (`IP_VS_SVC_F_HASHED`).
    pub const HASHED: u32 = 2;
    /// Each UDP packet is scheduled by itself (`IP_VS_SVC_F_ONEPACKET`).
    pub const ONE_PACKET: u32 = 4;
    /// The first flag of a scheduler; `sh` and `mh` pass on to another destination if the chosen one cannot serve.
    pub const SCHEDULER_1: u32 = 8;
    /// The second flag of a scheduler; `sh` and `mh` take the source port into account.
    pub const SCHEDULER_2: u32 = 16;
    /// The third flag of a scheduler.
    pub const SCHEDULER_3: u32 = 32;

    /// Exactly these bits; the mask covers all.
    pub fn exactly(value: u32) -> Flags {
        Flags { value, mask: u32::MAX }
    }

    /// The bits that can be chosen, whatever the kernel adds. Equal for what was written and what is read back.
    pub fn chosen(self) -> u32 {
        self.value & self.mask & !Flags::HASHED
    }
}

/// A virtual service. Statistics are not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What identifies it.
    pub key: ServiceKey,
    /// The scheduler, at most 15 bytes. Kernels from 4.x on write `none` for a service without one.
    pub scheduler: String,
    /// The flags.
    pub flags: Flags,
    /// How long a persistent client is remembered, in seconds; 0 without persistence.
    pub timeout: u32,
    /// Which clients count as one for persistence. IPv4: the mask as a number, `0xffff_ffff` for single clients. IPv6:
    /// the length of the prefix, 1 to 128.
    pub netmask: u32,
    /// The persistence engine, if there is one.
    pub persistence_engine: Option<String>,
    /// Everything else that came, except statistics.
    pub unknown: Unknown,
}

impl Service {
    /// A service without flags or persistence.
    pub fn new(key: ServiceKey, scheduler: &str) -> Service {
        Service {
            key,
            scheduler: scheduler.to_owned(),
            flags: Flags::exactly(0),
            timeout: 0,
            netmask: key.host_netmask(),
            persistence_engine: None,
            unknown: Unknown::new(),
        }
    }

    /// Appends the attributes of the service.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.key.encode(out);
        push_text(out, SCHEDULER, &self.scheduler);
        if let Some(engine) = &self.persistence_engine {
            push_text(out, PERSISTENCE_ENGINE, engine);
        }
        let flags = [self.flags.value.to_ne_bytes(), self.flags.mask.to_ne_bytes()];
        push(out, FLAGS, flags.as_flattened());
        push_u32(out, TIMEOUT, self.timeout);
        let netmask = match self.key.family() {
            IpFamily::V4 => self.netmask.to_be_bytes(),
            IpFamily::V6 => self.netmask.to_ne_bytes(),
        };
        push(out, NETMASK, &netmask);
        for (kind, payload) in &self.unknown {
            push(out, *kind, payload);
        }
    }

    /// Reads the attributes of a service.
    pub(super) fn decode(attributes: Attributes<'_>) -> Result<Service, DecodeError> {
        let (mut family, mut protocol, mut address, mut port, mut mark) = (None, None, None, None, None);
        let mut netmask = None;
        let mut service = Service::new(ServiceKey::mark(IpFamily::V4, 0), "");
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind() {
                FAMILY => family = Some(family_of(&attribute)?),
                PROTOCOL => protocol = Some(attribute.u16_native()?),
                ADDRESS => address = Some(attribute),
                PORT => port = Some(attribute.u16_be()?),
                FWMARK => mark = Some(attribute.u32_native()?),
                SCHEDULER => service.scheduler = attribute.text(),
                FLAGS => {
                    let (value, mask) = attribute.u32_pair_native()?;
                    service.flags = Flags { value, mask };
                }
                TIMEOUT => service.timeout = attribute.u32_native()?,
                NETMASK => netmask = Some(attribute),
                PERSISTENCE_ENGINE => service.persistence_engine = Some(attribute.text()),
                STATISTICS | STATISTICS_64 => {}
                _ => service.unknown.push((attribute.raw_kind, attribute.payload.to_vec())),
            }
        }
        let family = missing(family)?;
        service.key = match mark {
            Some(mark) => ServiceKey::mark(family, mark),
            None => {
                let address = wide_address(&missing(address)?, family)?;
                ServiceKey::address(missing(protocol)?, SocketAddr::new(address, missing(port)?))
            }
        };
        service.netmask = match (netmask, family) {
            (Some(netmask), IpFamily::V4) => netmask.u32_be()?,
            (Some(netmask), IpFamily::V6) => netmask.u32_native()?,
            (None, _) => service.key.host_netmask(),
        };
        Ok(service)
    }
}
