//! Sets and lists of them.

use super::{DATA, ELEMENTS as ELEMENT_LIST, Element, FAMILY, LIST, NAME, REVISION, TYPE_NAME};
use crate::net::IpFamily;
use crate::netlink::attribute::{Attribute, Attributes, NET_BYTE_ORDER, push, push_nested, push_text};
use crate::netlink::message::{Message, netfilter_attributes};
use crate::netlink::{DecodeError, address_family};

/// `IPSET_ATTR_PORT_FROM` and the others, of sets.
const FIRST_PORT: u16 = 4;
const LAST_PORT: u16 = 5;
const TIMEOUT: u16 = 6;
const FLAGS: u16 = 8;
const HASH_SIZE: u16 = 18;
const MAX_ELEMENTS: u16 = 19;
const ELEMENTS: u16 = 24;
const REFERENCES: u16 = 25;
const MEMORY: u16 = 26;

/// The type of a set, which says what its elements consist of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SetType {
    /// `hash:ip`.
    HashIp,
    /// `hash:ip,port`.
    HashIpPort,
    /// `hash:ip,port,ip`.
    HashIpPortIp,
    /// `hash:ip,port,net`.
    HashIpPortNet,
    /// `bitmap:port`.
    BitmapPort,
    /// One that is not used here.
    Other(String),
}

impl SetType {
    /// The types that are used here.
    pub const USED: [SetType; 5] =
        [SetType::HashIp, SetType::HashIpPort, SetType::HashIpPortIp, SetType::HashIpPortNet, SetType::BitmapPort];

    /// The name that the kernel knows.
    pub fn name(&self) -> &str {
        match self {
            SetType::HashIp => "hash:ip",
            SetType::HashIpPort => "hash:ip,port",
            SetType::HashIpPortIp => "hash:ip,port,ip",
            SetType::HashIpPortNet => "hash:ip,port,net",
            SetType::BitmapPort => "bitmap:port",
            SetType::Other(name) => name,
        }
    }

    /// The lowest revision that has what is used here and that the `ipset` tool understands: it fails on sets with
    /// ports of revision 0, which the kernel still makes. Kernels from 3.2 on have all of them.
    pub fn revision(&self) -> u8 {
        match self {
            SetType::HashIp | SetType::BitmapPort | SetType::Other(_) => 0,
            // SCTP.
            SetType::HashIpPort | SetType::HashIpPortIp => 1,
            // Exceptions.
            SetType::HashIpPortNet => 3,
        }
    }

    fn named(name: String) -> SetType {
        SetType::USED.into_iter().find(|known| known.name() == name).unwrap_or(SetType::Other(name))
    }
}

/// A set without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name, at most [`super::MAX_NAME`] bytes.
    pub name: String,
    /// What its elements consist of.
    pub kind: SetType,
    /// The revision of the type: any that [`super::query_type`] reports will do, see also [`SetType::revision`].
    pub revision: u8,
    /// The family of its addresses; `None` for a type without addresses.
    pub family: Option<IpFamily>,
    /// Buckets of a hash. The kernel rounds up to a power of two and grows the table later.
    pub hash_size: Option<u32>,
    /// How many elements a hash takes.
    pub max_elements: Option<u32>,
    /// The first and the last port of a bitmap.
    pub ports: Option<(u16, u16)>,
    /// How long an element stays by default, in seconds (0: for ever), if elements may expire.
    pub timeout: Option<u32>,
    /// `IPSET_FLAG_WITH_*`: what is kept for each element, [`Set::COUNTERS`] for example.
    pub flags: u32,
}

impl Set {
    /// Packets and bytes are counted for each element (`IPSET_FLAG_WITH_COUNTERS`).
    pub const COUNTERS: u32 = 8;

    /// A hash with room for `max_elements`, nothing kept for each.
    pub fn hash(name: &str, kind: SetType, family: IpFamily, max_elements: u32) -> Set {
        Set {
            name: name.to_owned(),
            revision: kind.revision(),
            kind,
            family: Some(family),
            hash_size: Some(1024),
            max_elements: Some(max_elements),
            ports: None,
            timeout: None,
            flags: 0,
        }
    }

    /// A bitmap of all ports.
    pub fn ports(name: &str) -> Set {
        Set {
            name: name.to_owned(),
            kind: SetType::BitmapPort,
            revision: 0,
            family: None,
            hash_size: None,
            max_elements: None,
            ports: Some((0, u16::MAX)),
            timeout: None,
            flags: 0,
        }
    }

    /// Whether a set that exists serves as this one: the same, except for name, revision and the size that its table has
    /// by now.
    pub fn is_like(&self, other: &Set) -> bool {
        let comparable = |set: &Set| Set { name: String::new(), revision: 0, hash_size: None, ..set.clone() };
        comparable(self) == comparable(other)
    }

    /// Appends everything but the name.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        push_text(out, TYPE_NAME, self.kind.name());
        push(out, REVISION, &[self.revision]);
        push(out, FAMILY, &[self.family.map_or(0, address_family)]);
        push_nested(out, DATA, |data| {
            let mut number = |kind: u16, value: Option<u32>| {
                if let Some(value) = value {
                    push(data, kind | NET_BYTE_ORDER, &value.to_be_bytes());
                }
            };
            number(HASH_SIZE, self.hash_size);
            number(MAX_ELEMENTS, self.max_elements);
            number(TIMEOUT, self.timeout);
            number(FLAGS, (self.flags != 0).then_some(self.flags));
            if let Some((first, last)) = self.ports {
                push(data, FIRST_PORT | NET_BYTE_ORDER, &first.to_be_bytes());
                push(data, LAST_PORT | NET_BYTE_ORDER, &last.to_be_bytes());
            }
        });
    }
}

/// A set of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The set.
    pub set: Set,
    /// How many rules and other sets refer to it.
    pub references: u32,
    /// How many elements it has, if the kernel says so (4.x and later).
    pub size: Option<u32>,
    /// The memory that it takes, in bytes, if the kernel says so.
    pub memory: Option<u32>,
    /// Its elements, in no order; empty if they were not asked for.
    pub elements: Vec<Element>,
}

/// Puts the sets of a dump together: a big one arrives in several messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The sets so far.
    pub sets: Vec<Listed>,
}

impl Listing {
    /// Takes in a message of a dump; others are ignored.
    pub fn absorb(&mut self, message: &Message<'_>) -> Result<(), DecodeError> {
        if message.kind != LIST {
            return Ok(());
        }
        let (mut name, mut kind, mut revision, mut family) = (String::new(), None, 0, None);
        let (mut data, mut list) = (None, None);
        for attribute in netfilter_attributes(message)? {
            let attribute = attribute?;
            match attribute.kind() {
                NAME => name = attribute.text(),
                TYPE_NAME => kind = Some(SetType::named(attribute.text())),
                REVISION => revision = attribute.u8()?,
                FAMILY => family = read_family(&attribute)?,
                DATA => data = Some(attribute),
                ELEMENT_LIST => list = Some(attribute),
                _ => {}
            }
        }
        // Only the first message of a set has the header.
        if let Some(kind) = kind {
            let mut listed = Listed {
                set: Set { kind, revision, family, hash_size: None, max_elements: None, ..Set::ports(&name) },
                references: 0,
                size: None,
                memory: None,
                elements: Vec::new(),
            };
            listed.set.ports = None;
            if let Some(data) = data {
                listed.read_header(data.nested())?;
            }
            self.sets.push(listed);
        }
        let Some(list) = list else { return Ok(()) };
        match self.sets.last_mut() {
            Some(listed) if listed.set.name == name => {
                for element in list.nested() {
                    listed.elements.push(Element::decode(element?.nested())?);
                }
                Ok(())
            }
            _ => Err(DecodeError("elements of a set without its header")),
        }
    }
}

impl Listed {
    fn read_header(&mut self, attributes: Attributes<'_>) -> Result<(), DecodeError> {
        let (mut first, mut last) = (None, None);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind() {
                HASH_SIZE => self.set.hash_size = Some(attribute.u32_be()?),
                MAX_ELEMENTS => self.set.max_elements = Some(attribute.u32_be()?),
                TIMEOUT => self.set.timeout = Some(attribute.u32_be()?),
                FLAGS => self.set.flags = attribute.u32_be()?,
                // Other types have addresses or marks of other lengths under these numbers.
                FIRST_PORT if self.set.kind == SetType::BitmapPort => first = Some(attribute.u16_be()?),
                LAST_PORT if self.set.kind == SetType::BitmapPort => last = Some(attribute.u16_be()?),
                REFERENCES => self.references = attribute.u32_be()?,
                ELEMENTS => self.size = Some(attribute.u32_be()?),
                MEMORY => self.memory = Some(attribute.u32_be()?),
                _ => {}
            }
        }
        self.set.ports = first.zip(last);
        Ok(())
    }
}

/// `AF_INET`, `AF_INET6`, or none.
fn read_family(attribute: &Attribute<'_>) -> Result<Option<IpFamily>, DecodeError> {
    Ok(match attribute.u8()? {
        2 => Some(IpFamily::V4),
        10 => Some(IpFamily::V6),
        _ => None,
    })
}
