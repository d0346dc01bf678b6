//! Generic netlink (`genetlink.h`): families whose numbers are given out at run time.

use crate::netlink::DecodeError;
use crate::netlink::attribute::{Attributes, attributes, push_text};
use crate::netlink::message::{Message, Request};

/// `GENL_ID_CTRL`: the family that knows the others.
const CONTROLLER: u16 = 0x10;
/// `CTRL_CMD_NEWFAMILY`.
const NEW_FAMILY: u8 = 1;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;
/// `CTRL_ATTR_VERSION`.
const VERSION: u16 = 3;
/// `CTRL_ATTR_HDRSIZE`.
const HEADER_SIZE: u16 = 4;
/// The version of the controller's own messages that asks for nothing new.
const CONTROLLER_VERSION: u8 = 1;
/// The length of `genlmsghdr`: command, version, two bytes of nothing.
const HEADER: usize = 4;

/// A family as the kernel knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// Its number: the type of its messages until the next boot, or until its module is loaded again.
    pub id: u16,
    /// Its name, which never changes.
    pub name: String,
    /// The version of its interface.
    pub version: u32,
    /// The length of the header of its own that stands before the attributes.
    pub header_size: u32,
}

/// Asks for a family by its name (at most 15 bytes). The kernel loads the module that names the family as its own; where
/// there is none the answer is `ENOENT`.
pub fn get_family(name: &str) -> Request {
    let mut payload = header(GET_FAMILY, CONTROLLER_VERSION);
    push_text(&mut payload, FAMILY_NAME, name);
    Request { kind: CONTROLLER, flags: 0, payload }
}

/// The family in an answer to [`get_family`]; `None` for another message.
pub fn decode_family(message: &Message<'_>) -> Result<Option<Family>, DecodeError> {
    if message.kind != CONTROLLER {
        return Ok(None);
    }
    let (command, attributes) = split(message)?;
    if command != NEW_FAMILY {
        return Ok(None);
    }
    let mut family = Family::default();
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind() {
            FAMILY_ID => family.id = attribute.u16_native()?,
            FAMILY_NAME => family.name = attribute.text(),
            VERSION => family.version = attribute.u32_native()?,
            HEADER_SIZE => family.header_size = attribute.u32_native()?,
            _ => {}
        }
    }
    Ok(Some(family))
}

/// `genlmsghdr`: what stands before the attributes of a family without a header of its own.
pub fn header(command: u8, version: u8) -> Vec<u8> {
    vec![command, version, 0, 0]
}

/// The command of a message and the attributes behind it, for a family without a header of its own.
pub fn split<'a>(message: &Message<'a>) -> Result<(u8, Attributes<'a>), DecodeError> {
    match message.payload.split_first_chunk::<HEADER>() {
        Some(([command, ..], rest)) => Ok((*command, attributes(rest))),
        None => Err(DecodeError("a generic netlink message without its header")),
    }
}
