//! Items: sets, virtual servers, addresses, routes, over netlink.

use std::time::Duration;

use crate::kernel::{Connections, ErrorKind, ItemClaims, ItemDump, KernelError, Op, RealKey, VirtualKey};
use crate::net::IpFamily;

/// All items of a family.
pub(super) fn dump(family: IpFamily, _: &ItemClaims, _: Duration) -> Result<ItemDump, KernelError> {
    Err(KernelError::new(ErrorKind::Unsupported, format!("{family} items")))
}

/// The real servers of a virtual server with their connections.
pub(super) fn connections(server: &VirtualKey, _: Duration) -> Result<Vec<(RealKey, Connections)>, KernelError> {
    Err(KernelError::new(ErrorKind::Unsupported, server.to_string()))
}

/// Carries out operations on items in their order; one result for each.
pub(super) fn apply(operations: &[&Op], _: Duration) -> Vec<Result<(), KernelError>> {
    operations.iter().map(|op| Err(KernelError::new(ErrorKind::Unsupported, op.to_string()))).collect()
}
