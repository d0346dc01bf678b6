//! A kernel that holds nothing and agrees to everything: what remains is the cost of the engine.

use std::net::IpAddr;

use portolan::kernel::{Claims, Fingerprint, Flow, FlowQuery, Kernel, KernelError, Op, TableDump, TableId};
use portolan::net::IpFamily;

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
