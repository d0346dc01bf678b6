//! The nf_tables messages that are needed: the number of the current rule set and the deletion of a table (`nf_tables.h`), and
//! whether iptables' rules can have a match (`nf_tables_compat.h`).

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

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` (`nfnetlink.h`).
const BATCH: (u16, u16) = (0x10, 0x11);
/// `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;

/// Deletes a table of this family with all that is in it; `ENOENT` if there is none. Goes in a [`transaction`].
pub fn delete_table(family: IpFamily, name: &str) -> Request {
    let mut payload = netfilter_payload(address_family(family));
    push_text(&mut payload, TABLE_NAME, name);
    Request { kind: DELETE_TABLE, flags: 0, payload }
}

/// A change with what has to stand around it: nf_tables takes changes in transactions only.
pub fn transaction(change: Request) -> [Request; 3] {
    // `nfgenmsg` with the subsystem, in network byte order, in the place of a resource.
    let edge =
        |kind| Request { kind, flags: 0, payload: [&[0, 0], (SUBSYSTEM >> 8).to_be_bytes().as_slice()].concat() };
    [edge(BATCH.0), change, edge(BATCH.1)]
}

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
