//! What the kernel means when it refuses a request about sets.
//!
//! Sets have error numbers of their own, from 4097 on for all types and from 4352 on for each type. The line of the
//! element that was refused stands in the echo of the request.

use super::{ADD, DELETE, ELEMENTS, Element, LINE, TEST};
use crate::kernel::{ErrorKind, KernelError};
use crate::netlink::attribute::{Attributes, attributes};
use crate::netlink::{NetlinkError, errno};

/// Why a request about sets was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// `ENOENT`: there is no such set.
    #[error("there is no such set")]
    NoSuchSet,
    /// `EEXIST`: there is a set of that name; it differs, or there was to be none.
    #[error("there is another set of that name")]
    SetExists,
    /// 4103 when adding.
    #[error("the element is in the set already")]
    Exists,
    /// 4103 when deleting or testing.
    #[error("the element is not in the set")]
    Missing,
    /// 4352 of a hash.
    #[error("the set is full")]
    Full,
    /// 4352 of a bitmap.
    #[error("the element is outside the range of the set")]
    OutOfRange,
    /// 4100: a rule or another set refers to it. 4108: likewise when it is to be renamed.
    #[error("the set is in use")]
    InUse,
    /// 4102: the sets to exchange are of different types.
    #[error("the types of the sets differ")]
    TypeMismatch,
    /// 4101: the second set of an exchange does not exist.
    #[error("there is no second set of that name")]
    NoSecondSet,
    /// 4097: attributes are missing or wrong, as for another type of set or for an address of another family.
    #[error("the request does not suit the set")]
    Protocol,
    /// 4098: the kernel knows no such type, revision or family.
    #[error("the kernel does not know this type of set")]
    UnknownType,
    /// 4099.
    #[error("there are too many sets")]
    TooManySets,
    /// 4104: a prefix is too long, or 0 where that cannot be stored.
    #[error("the prefix cannot be stored")]
    InvalidPrefix,
    /// 4106.
    #[error("the type of set does not take this family")]
    InvalidFamily,
    /// 4354, 4355 of a hash: a port without a protocol, or with one that has no ports.
    #[error("the port has no protocol or the wrong one")]
    InvalidProtocol,
    /// Another number.
    #[error("error {0}")]
    Other(i32),
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The line of the element that was refused, counted as in [`super::add`]. The elements before it were carried out,
    /// those behind it in the same message were not.
    pub line: Option<usize>,
}

impl Refusal {
    /// Reads an error of a request; `None` if the kernel has not refused it but something else went wrong.
    pub fn of(error: &NetlinkError) -> Option<Refusal> {
        let NetlinkError::Refused { errno, echo, .. } = error else { return None };
        let command = echo.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        let of_element = matches!(command, Some(ADD | DELETE | TEST));
        // Behind the headers of netlink and netfilter.
        let body = || attributes(echo.get(20..).unwrap_or_default());
        let line = if matches!(command, Some(ADD | DELETE)) { refused_line(body()) } else { None };
        let reason = match *errno {
            errno::ENOENT => Reason::NoSuchSet,
            errno::EEXIST => Reason::SetExists,
            4097 => Reason::Protocol,
            4098 => Reason::UnknownType,
            4099 => Reason::TooManySets,
            4100 | 4108 => Reason::InUse,
            4101 => Reason::NoSecondSet,
            4102 => Reason::TypeMismatch,
            4103 if command == Some(ADD) => Reason::Exists,
            4103 if of_element => Reason::Missing,
            4104 => Reason::InvalidPrefix,
            4106 => Reason::InvalidFamily,
            4352 if of_element && holds_ports(body()) => Reason::OutOfRange,
            4352 if of_element => Reason::Full,
            4354 | 4355 if of_element => Reason::InvalidProtocol,
            other => Reason::Other(other),
        };
        Some(Refusal { reason, line })
    }

    /// As an error of the kernel layer; `attempted` says what was to be done.
    pub fn to_kernel_error(&self, attempted: &str) -> KernelError {
        let kind = match self.reason {
            Reason::NoSuchSet | Reason::NoSecondSet | Reason::Missing => ErrorKind::NotFound,
            Reason::SetExists | Reason::Exists => ErrorKind::Exists,
            Reason::InUse => ErrorKind::Busy,
            Reason::Full | Reason::TooManySets => ErrorKind::NoSpace,
            Reason::UnknownType => ErrorKind::Unsupported,
            Reason::OutOfRange
            | Reason::TypeMismatch
            | Reason::Protocol
            | Reason::InvalidPrefix
            | Reason::InvalidFamily
            | Reason::InvalidProtocol => ErrorKind::Rejected,
            Reason::Other(errno) => NetlinkError::Refused { errno, explanation: None, echo: Vec::new() }.kind(),
        };
        let line = self.line.map(|line| format!(" (element {line})")).unwrap_or_default();
        KernelError::new(kind, format!("{attempted}: {}{line}", self.reason))
    }
}

/// Makes an error of a request about sets into one of the kernel layer.
pub fn to_kernel_error(error: &NetlinkError, attempted: &str) -> KernelError {
    match Refusal::of(error) {
        Some(refusal) => refusal.to_kernel_error(attempted),
        None => error.to_kernel_error(attempted),
    }
}

/// The line that the kernel wrote over ours, which was `u32::MAX`; it does not if no element was to blame.
fn refused_line(body: Attributes<'_>) -> Option<usize> {
    let line = body.find_kind(LINE).ok()??.u32_be().ok()?;
    if line == u32::MAX { None } else { usize::try_from(line).ok() }
}

/// Whether the elements of a request are those of a bitmap of ports.
fn holds_ports(body: Attributes<'_>) -> bool {
    let first = match body.clone().find_kind(ELEMENTS) {
        Ok(Some(list)) => list.nested().next(),
        _ => body.find_kind(super::DATA).transpose(),
    };
    matches!(first, Some(Ok(data)) if matches!(Element::decode(data.nested()), Ok(Element::Port(_))))
}
