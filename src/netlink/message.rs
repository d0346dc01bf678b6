//! Messages: `nlmsghdr`, and the error message that serves as acknowledgement.

use crate::netlink::attribute::{Attributes, attributes, padded};
use crate::netlink::{DecodeError, NetlinkError};

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_MULTI`: part of an answer that ends with a done message.
pub const MULTI: u16 = 0x2;
/// `NLM_F_ACK`: answer even if all went well.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
pub const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`: put it into the place of what exists.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: fail if it exists.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_CAPPED`: the echo of the request in an error message was cut off.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: an error message carries attributes.
const ACK_TLVS: u16 = 0x200;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLMSG_OVERRUN`.
const OVERRUN: u16 = 4;
/// `NLMSGERR_ATTR_MSG`.
const EXPLANATION: u16 = 1;
/// The length of a header.
pub const HEADER: usize = 16;

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The type.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The sequence number of the request that it answers.
    pub sequence: u32,
    /// The port of the socket that it is for.
    pub port: u32,
    /// Everything behind the header.
    pub payload: &'a [u8],
}

/// What a message means to whoever waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Content.
    Data,
    /// The end of a dump or the acknowledgement of a request, with its result.
    End(Result<(), NetlinkError>),
}

impl Message<'_> {
    /// What it means.
    pub fn reply(&self) -> Result<Reply, DecodeError> {
        match self.kind {
            ERROR => Ok(Reply::End(self.result(padded(HEADER)))),
            // A done message carries a number like an error message, but no echo of the request.
            DONE if self.payload.is_empty() => Ok(Reply::End(Ok(()))),
            DONE => Ok(Reply::End(self.result(0))),
            OVERRUN => Ok(Reply::End(Err(NetlinkError::Overrun))),
            _ => Ok(Reply::Data),
        }
    }

    /// The result in an error or done message; `echo` is the length of an echoed header.
    fn result(&self, echo: usize) -> Result<(), NetlinkError> {
        let Some((code, rest)) = self.payload.split_first_chunk::<4>() else {
            return Err(DecodeError("an error message without a number").into());
        };
        match i32::from_ne_bytes(*code) {
            0 => Ok(()),
            // Not every positive number is nonsense: a done message of a dump may carry its length.
            code if code > 0 => Ok(()),
            code => Err(NetlinkError::Refused {
                errno: code.saturating_neg(),
                explanation: self.explanation(rest, echo),
                echo: if echo == 0 { Vec::new() } else { self.echo(rest).to_vec() },
            }),
        }
    }

    /// The request as an error message gives it back: its header, and what follows unless that was cut off.
    fn echo<'a>(&self, rest: &'a [u8]) -> &'a [u8] {
        let length = match rest.first_chunk::<4>() {
            Some(length) if self.flags & CAPPED == 0 => usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(HEADER),
            _ => HEADER,
        };
        rest.get(..length).unwrap_or(rest)
    }

    fn explanation(&self, rest: &[u8], echo: usize) -> Option<String> {
        if self.flags & ACK_TLVS == 0 {
            return None;
        }
        let skip = if echo == 0 || self.flags & CAPPED != 0 {
            echo
        } else {
            padded(usize::try_from(u32::from_ne_bytes(*rest.first_chunk::<4>()?)).ok()?)
        };
        let found = attributes(rest.get(skip..)?).find_kind(EXPLANATION).ok()??;
        Some(found.text())
    }
}

/// Iterates over the messages of one datagram; ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

/// The messages in a datagram.
pub fn messages(bytes: &[u8]) -> Messages<'_> {
    Messages { rest: bytes }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = parse_one(self.rest);
        self.rest = match &parsed {
            Some(message) => self.rest.get(padded(HEADER + message.payload.len())..).unwrap_or_default(),
            None => &[],
        };
        Some(parsed.ok_or(DecodeError("a message is longer than its datagram")))
    }
}

fn parse_one(bytes: &[u8]) -> Option<Message<'_>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    let (flags, rest) = rest.split_first_chunk::<2>()?;
    let (sequence, rest) = rest.split_first_chunk::<4>()?;
    let (port, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    Some(Message {
        kind: u16::from_ne_bytes(*kind),
        flags: u16::from_ne_bytes(*flags),
        sequence: u32::from_ne_bytes(*sequence),
        port: u32::from_ne_bytes(*port),
        payload: bytes.get(HEADER..length)?,
    })
}

/// A request before it is sent: the socket gives it its sequence number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The type.
    pub kind: u16,
    /// `NLM_F_*`; the socket adds what it needs.
    pub flags: u16,
    /// Everything behind the header: the family's own header and attributes.
    pub payload: Vec<u8>,
}

impl Request {
    /// How many bytes it takes in a datagram.
    pub fn size(&self) -> usize {
        padded(HEADER + self.payload.len())
    }

    /// Appends the message with its header, padded to four bytes.
    pub fn write(&self, flags: u16, sequence: u32, out: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.payload.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | flags | REQUEST).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0_u32.to_ne_bytes());
        out.extend_from_slice(&self.payload);
        out.resize(padded(out.len()), 0);
    }
}

/// `nfgenmsg`: the header of every netfilter message behind `nlmsghdr`. Version 0, no resource.
pub(super) fn netfilter_payload(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

/// The attributes of a netfilter message, behind its `nfgenmsg`.
pub(super) fn netfilter_attributes<'a>(message: &Message<'a>) -> Result<Attributes<'a>, DecodeError> {
    let rest = message.payload.get(4..).ok_or(DecodeError("a netfilter message without its header"))?;
    Ok(attributes(rest))
}
