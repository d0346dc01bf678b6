//! The nf_tables messages that are needed: the number of the current rule set (`nf_tables.h`), and whether iptables' rules can
//! have a match (`nf_tables_compat.h`).

use crate::net::IpFamily;
use crate::netlink::attribute::{NET_BYTE_ORDER, push, push_text};
use crate::netlink::message::{Message, Request, netfilter_attributes, netfilter_payload};
use crate::netlink::{DecodeError, address_family};

/// `NFNL_SUBSYS_NFTABLES << 8`.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_NEWGEN`.
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
/// `NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;

/// Asks for the generation: a number that grows with each transaction that anybody commits in this network namespace.
pub fn get_generation() -> Request {
    Request { kind: GET_GENERATION, flags: 0, payload: netfilter_payload(0) }
}

/// The generation in an answer; `None` for another message.
pub fn decode_generation(message: &Message<'_>) -> Result<Option<u32>, DecodeError> {
    if message.kind != NEW_GENERATION {
        return Ok(None);
    }
    let id = netfilter_attributes(message)?.find_kind(GENERATION_ID)?;
    id.map(|attribute| attribute.u32_be()).transpose()
}

/// `NFNL_SUBSYS_NFT_COMPAT << 8`, and `NFNL_MSG_COMPAT_GET`.
const GET_EXTENSION: u16 = 11 << 8;
/// `NFTA_COMPAT_NAME`, `NFTA_COMPAT_REV`, `NFTA_COMPAT_TYPE`.
const EXTENSION_NAME: u16 = 1;
const EXTENSION_REVISION: u16 = 2;
const EXTENSION_TYPE: u16 = 3;

/// Asks whether rules of iptables can have a match, of at least this revision; `ENOENT` if not.
pub fn get_match(family: IpFamily, name: &str, revision: u8) -> Request {
    let mut payload = netfilter_payload(address_family(family));
    push_text(&mut payload, EXTENSION_NAME, name);
    push(&mut payload, EXTENSION_REVISION | NET_BYTE_ORDER, &u32::from(revision).to_be_bytes());
    // A match is 0, a target 1.
    push(&mut payload, EXTENSION_TYPE | NET_BYTE_ORDER, &0_u32.to_be_bytes());
    Request { kind: GET_EXTENSION, flags: 0, payload }
}
