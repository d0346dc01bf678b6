//! What kube-proxy's nftables mode leaves behind.

use crate::kernel::{ErrorKind, KernelError};
use crate::linux::NETLINK_TIMEOUT;
use crate::net::IpFamily;
use crate::netlink::nftables::{delete_table, transaction};
use crate::netlink::socket::{Connection, NETFILTER};

/// The name of kube-proxy's table in both families. Nothing of anybody else is in it.
const TABLE: &str = "kube-proxy";

/// Deletes kube-proxy's nftables table of a family, with all that is in it. `false`: there was none, or the kernel has no nf_tables.
/// No other table is touched. Takes no program, so it works without `nft`.
pub fn delete_kube_proxy_table(family: IpFamily) -> Result<bool, KernelError> {
    let deleted = Connection::open(NETFILTER, NETLINK_TIMEOUT)
        .and_then(|mut connection| connection.transaction(transaction(delete_table(family, TABLE))));
    match deleted {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(false),
        Err(error) => Err(error.to_kernel_error(&format!("deleting the {family} nftables table {TABLE}"))),
    }
}
