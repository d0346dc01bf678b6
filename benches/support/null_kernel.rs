//! A kernel that holds nothing and agrees to everything: what remains is the cost of the engine.

use std::net::IpAddr;

use portolan::kernel::census::Census;
use portolan::kernel::{
    Claims, Connections, Fingerprint, Flow, FlowQuery, ItemClaims, ItemDump, Kernel, KernelError, Op, RealKey,
    TableDump, TableId, VirtualKey,
};
use portolan::net::{IpFamily, PerFamily};

/// Counts what it is asked.
#[derive(Debug, Default)]
pub(crate) struct NullKernel {
    pub transactions: u64,
    pub operations: u64,
}

impl Kernel for NullKernel {
    fn dump(&mut self, _: TableId, _: &Claims) -> Result<TableDump, KernelError> {
        Ok(TableDump::default())
    }

    fn items(&mut self, _: IpFamily, _: &ItemClaims) -> Result<ItemDump, KernelError> {
        Ok(ItemDump::default())
    }

    fn census(&mut self, _: PerFamily<bool>) -> Option<Census> {
        None
    }

    fn connections(&mut self, _: &VirtualKey) -> Result<Vec<(RealKey, Connections)>, KernelError> {
        Ok(Vec::new())
    }

    fn flows(&mut self, _: &FlowQuery) -> Result<Vec<Flow>, KernelError> {
        Ok(Vec::new())
    }

    fn addresses(&mut self, _: IpFamily) -> Result<Vec<IpAddr>, KernelError> {
        Ok(Vec::new())
    }

    fn fingerprint(&mut self) -> Option<Fingerprint> {
        None
    }

    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        self.transactions += 1;
        self.operations += transaction.len() as u64;
        vec![Ok(()); transaction.len()]
    }
}
