//! Packet counters that rules can point to (`nfnetlink_acct.h`).

use crate::netlink::DecodeError;
use crate::netlink::attribute::push_text;
use crate::netlink::message::{CREATE, EXCLUSIVE, Message, Request, netfilter_attributes, netfilter_payload};

/// `NFNL_SUBSYS_ACCT << 8`.
const SUBSYSTEM: u16 = 7 << 8;
/// `NFNL_MSG_ACCT_NEW`.
const NEW: u16 = SUBSYSTEM;
/// `NFNL_MSG_ACCT_GET`.
const GET: u16 = SUBSYSTEM | 1;
/// `NFACCT_NAME`.
const NAME: u16 = 1;
/// `NFACCT_PKTS`.
const PACKETS: u16 = 2;
/// `NFACCT_BYTES`.
const BYTES: u16 = 3;

/// The longest name: `NFACCT_NAME_MAX` without its terminating zero.
pub const MAX_NAME: usize = 31;

/// A counter and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// The name that rules use.
    pub name: String,
    /// Packets counted so far.
    pub packets: u64,
    /// Bytes counted so far.
    pub bytes: u64,
}

/// Creates a counter; it must not exist.
pub fn create(name: &str) -> Request {
    Request { kind: NEW, flags: CREATE | EXCLUSIVE, payload: named(name) }
}

/// Reads a counter.
pub fn get(name: &str) -> Request {
    Request { kind: GET, flags: 0, payload: named(name) }
}

fn named(name: &str) -> Vec<u8> {
    // The family is AF_UNSPEC: counters belong to none.
    let mut payload = netfilter_payload(0);
    push_text(&mut payload, NAME, name);
    payload
}

/// The counter in an answer; `None` for another message.
pub fn decode_counter(message: &Message<'_>) -> Result<Option<Counter>, DecodeError> {
    if message.kind != NEW {
        return Ok(None);
    }
    let mut counter = Counter::default();
    for attribute in netfilter_attributes(message)? {
        let attribute = attribute?;
        match attribute.kind() {
            NAME => counter.name = attribute.text(),
            PACKETS => counter.packets = attribute.u64_be()?,
            BYTES => counter.bytes = attribute.u64_be()?,
            _ => {}
        }
    }
    Ok(Some(counter))
}
