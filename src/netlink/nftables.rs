//! The one nf_tables message that is needed: the number of the current rule set (`nf_tables.h`).

use crate::netlink::DecodeError;
use crate::netlink::message::{Message, Request, netfilter_attributes, netfilter_payload};

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
