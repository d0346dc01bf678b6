//! Whether anybody has changed the rules, found out without reading them and without starting a program.
//!
//! - nf_tables: the kernel numbers its rule sets; any transaction of anybody makes a new number.
//! - legacy: the kernel tells for each table the number and size of its entries and where its built-in chains begin. A change
//!   that keeps all of these goes unnoticed until the next audit.

use std::hash::{BuildHasher, Hasher};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RawProtocol, SocketFlags, SocketType};

use crate::kernel::{Fingerprint, Table, TableId};
use crate::linux::Variant;
use crate::net::{IpFamily, PerFamily};
use crate::netlink::nftables;
use crate::netlink::socket::Connection;

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` (`x_tables.h`).
const GET_INFO: i32 = 64;
/// `sizeof(struct ipt_getinfo)`: a name of 32 bytes, then 13 numbers of 4.
const INFO_BYTES: usize = 32 + 13 * 4;

/// The fingerprint of the tables that rules for Services stand in. `None`: it could not be read; an audit will tell.
pub(super) fn fingerprint(variant: Variant, families: PerFamily<bool>, timeout: Duration) -> Option<Fingerprint> {
    match variant {
        Variant::Nft => generation(timeout).map(|id| Fingerprint(u64::from(id))),
        Variant::Legacy => {
            let mut hasher = foldhash::fast::FixedState::with_seed(0).build_hasher();
            for table in TableId::serving().filter(|table| families[table.family]) {
                hasher.write(&table_info(table)?);
            }
            Some(Fingerprint(hasher.finish()))
        }
    }
}

fn generation(timeout: Duration) -> Option<u32> {
    let mut found = None;
    let answered = Connection::open(NETFILTER, timeout).and_then(|mut connection| {
        connection.request(&nftables::get_generation(), |message| {
            found = nftables::decode_generation(message)?.or(found);
            Ok(())
        })
    });
    answered.ok().and(found)
}

/// `struct ipt_getinfo` of a table. The kernel takes the name from the buffer and fills in the rest.
fn table_info(table: TableId) -> Option<[u8; INFO_BYTES]> {
    let (family, level) = match table.family {
        IpFamily::V4 => (AddressFamily::INET, libc::IPPROTO_IP),
        IpFamily::V6 => (AddressFamily::INET6, libc::IPPROTO_IPV6),
    };
    let name: &[u8] = match table.table {
        Table::Filter => b"filter",
        Table::Nat => b"nat",
        Table::Mangle => b"mangle",
    };
    let protocol = RawProtocol::new(libc::IPPROTO_RAW.unsigned_abs())?;
    let raw = rustix::net::Protocol::from_raw(protocol);
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(raw)).ok()?;
    let mut info = [0_u8; INFO_BYTES];
    info[..name.len()].copy_from_slice(name);
    let mut length = libc::socklen_t::try_from(INFO_BYTES).ok()?;
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which has that many, and the length that it wrote to
    // `length`; both live until the call returns, and the socket is open.
    let status =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    (status == 0).then_some(info)
}
