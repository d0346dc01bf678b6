//! The fake kernel with another behaviour in one point or two. Only those are written down.

use std::net::IpAddr;

use portolan::kernel::census::Census;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::{
    Claims, Connections, Fingerprint, Flow, FlowQuery, ItemClaims, ItemDump, Kernel, KernelError, Op, RealKey,
    TableDump, TableId, VirtualKey,
};
use portolan::net::{IpFamily, PerFamily};

/// What is other than in the fake kernel.
pub(crate) trait Alter {
    fn apply(&mut self, kernel: &mut FakeKernel, transaction: &[Op]) -> Vec<Result<(), KernelError>>;

    fn items(
        &mut self,
        kernel: &mut FakeKernel,
        family: IpFamily,
        claims: &ItemClaims,
    ) -> Result<ItemDump, KernelError> {
        kernel.items(family, claims)
    }

    fn fingerprint(&mut self, kernel: &mut FakeKernel) -> Option<Fingerprint> {
        kernel.fingerprint()
    }
}

/// A fake kernel, altered.
pub(crate) struct Altered<A> {
    pub(crate) inner: FakeKernel,
    pub(crate) alter: A,
}

impl<A: Alter> Kernel for Altered<A> {
    fn dump(&mut self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError> {
        self.inner.dump(table, claims)
    }

    fn items(&mut self, family: IpFamily, claims: &ItemClaims) -> Result<ItemDump, KernelError> {
        self.alter.items(&mut self.inner, family, claims)
    }

    fn census(&mut self, families: PerFamily<bool>) -> Option<Census> {
        self.inner.census(families)
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<Vec<(RealKey, Connections)>, KernelError> {
        self.inner.connections(server)
    }

    fn flows(&mut self, query: &FlowQuery) -> Result<Vec<Flow>, KernelError> {
        self.inner.flows(query)
    }

    fn addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, KernelError> {
        self.inner.addresses(family)
    }

    fn fingerprint(&mut self) -> Option<Fingerprint> {
        self.alter.fingerprint(&mut self.inner)
    }

    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        self.alter.apply(&mut self.inner, transaction)
    }
}
