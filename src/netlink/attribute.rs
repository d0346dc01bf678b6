//! Attributes: `nlattr`, a 16-bit length, a 16-bit type with two flag bits, and a payload padded to four bytes.

use std::net::IpAddr;

use crate::netlink::DecodeError;

/// The payload holds attributes itself (`NLA_F_NESTED`).
pub const NESTED: u16 = 0x8000;
/// The payload is a number in network byte order (`NLA_F_NET_BYTEORDER`; only ipset looks at it).
pub const NET_BYTE_ORDER: u16 = 0x4000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// One attribute as it was received; unknown ones are kept like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The type, flags included.
    pub raw_kind: u16,
    /// The content, without padding.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The type without flags.
    pub fn kind(&self) -> u16 {
        self.raw_kind & TYPE_MASK
    }

    /// The attributes inside, whether or not the flag says so: ctnetlink and old kernels leave it out.
    pub fn nested(&self) -> Attributes<'a> {
        attributes(self.payload)
    }

    /// A byte.
    pub fn u8(&self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    /// A 16-bit number in network byte order.
    pub fn u16_be(&self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A 32-bit number in network byte order.
    pub fn u32_be(&self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A 16-bit number in the order of this machine.
    pub fn u16_native(&self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    /// A 32-bit number in the order of this machine.
    pub fn u32_native(&self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Two 32-bit numbers in the order of this machine, one behind the other.
    pub fn u32_pair_native(&self) -> Result<(u32, u32), DecodeError> {
        let [a, b, c, d, e, f, g, h] = self.array()?;
        Ok((u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])))
    }

    /// A 64-bit number in network byte order.
    pub fn u64_be(&self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// An address of 4 or 16 bytes.
    pub fn address(&self) -> Result<IpAddr, DecodeError> {
        match self.payload.len() {
            4 => self.array().map(|bytes: [u8; 4]| bytes.into()),
            16 => self.array().map(|bytes: [u8; 16]| bytes.into()),
            _ => Err(DecodeError("an address has neither 4 nor 16 bytes")),
        }
    }

    /// Text up to the first zero byte.
    pub fn text(&self) -> String {
        let end = self.payload.iter().position(|byte| *byte == 0).unwrap_or(self.payload.len());
        String::from_utf8_lossy(self.payload.get(..end).unwrap_or_default()).into_owned()
    }

    fn array<const N: usize>(&self) -> Result<[u8; N], DecodeError> {
        self.payload.try_into().map_err(|_| DecodeError("an attribute has another length than its type"))
    }
}

/// Iterates over attributes; ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

/// The attributes in a byte string.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

impl<'a> Attributes<'a> {
    /// The first attribute of a type.
    pub fn find_kind(self, kind: u16) -> Result<Option<Attribute<'a>>, DecodeError> {
        for attribute in self {
            let attribute = attribute?;
            if attribute.kind() == kind {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Fewer than four bytes are padding of what stands around.
        if self.rest.len() < HEADER {
            return None;
        }
        let parsed = parse_one(self.rest);
        self.rest = match &parsed {
            Some(attribute) => self.rest.get(padded(HEADER + attribute.payload.len())..).unwrap_or_default(),
            None => &[],
        };
        Some(parsed.ok_or(DecodeError("an attribute is longer than what holds it")))
    }
}

fn parse_one(bytes: &[u8]) -> Option<Attribute<'_>> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (kind, _) = rest.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    Some(Attribute { raw_kind: u16::from_ne_bytes(*kind), payload: bytes.get(HEADER..length)? })
}

/// The length rounded up to four (`NLA_ALIGN`, `NLMSG_ALIGN`).
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Appends an attribute. A payload that does not fit the 16-bit length is left out: the kernel then misses the
/// attribute and says so. No payload of ours comes near.
pub fn push(out: &mut Vec<u8>, raw_kind: u16, payload: &[u8]) {
    let Ok(length) = u16::try_from(HEADER + payload.len()) else { return };
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&raw_kind.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(padded(out.len()), 0);
}

/// Appends an attribute that holds others, written by `fill`.
pub fn push_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    push(out, kind | NESTED, &inner);
}

/// Appends text with a terminating zero.
pub fn push_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    push(out, kind, &bytes);
}

/// Appends an address: 4 or 16 bytes.
pub fn push_address(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => push(out, kind, &address.octets()),
        IpAddr::V6(address) => push(out, kind, &address.octets()),
    }
}
