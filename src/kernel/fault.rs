//! Kernels around another kernel: one that fails on purpose, and one that keeps a record.

use std::net::IpAddr;

use crate::kernel::census::Census;
use crate::kernel::{
    Claims, Connections, ErrorKind, Fingerprint, Flow, FlowQuery, ItemClaims, ItemDump, Kernel, KernelError, Op,
    RealKey, TableDump, TableId, VirtualKey,
};
use crate::net::{IpFamily, PerFamily};

/// Which request fails, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The n-th operation (from 0, counted over all transactions) fails.
    Operation(usize, ErrorKind),
    /// The n-th dump (from 0) fails.
    Dump(usize, ErrorKind),
    /// The n-th reading of flows (from 0) fails.
    Flows(usize, ErrorKind),
}

/// Fails once, as told, and passes everything else through.
///
/// A kind that names an operation fails that one and aborts the rest of its transaction. [`ErrorKind::Unknown`] and
/// [`ErrorKind::TimedOut`] carry the transaction out and then deny any knowledge of it, which is the worst case. Any other
/// kind fails the transaction as a whole, with no effect.
#[derive(Clone, Debug)]
pub struct FaultyKernel<K> {
    /// The kernel behind.
    pub inner: K,
    fault: Option<Fault>,
    operations: usize,
    dumps: usize,
    flow_queries: usize,
}

impl<K> FaultyKernel<K> {
    /// Wraps a kernel.
    pub fn new(inner: K, fault: Fault) -> FaultyKernel<K> {
        FaultyKernel { inner, fault: Some(fault), operations: 0, dumps: 0, flow_queries: 0 }
    }

    /// Whether the fault has struck.
    pub fn struck(&self) -> bool {
        self.fault.is_none()
    }

    fn strike(&mut self, hit: bool, kind: ErrorKind) -> Option<KernelError> {
        hit.then(|| {
            self.fault = None;
            KernelError::new(kind, format!("injected: {}", kind.as_str()))
        })
    }
}

impl<K: Kernel> Kernel for FaultyKernel<K> {
    fn dump(&mut self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError> {
        let at = self.dumps;
        self.dumps += 1;
        if let Some(Fault::Dump(n, kind)) = self.fault
            && let Some(error) = self.strike(n == at, kind)
        {
            return Err(error);
        }
        self.inner.dump(table, claims)
    }

    fn items(&mut self, family: IpFamily, claims: &ItemClaims) -> Result<ItemDump, KernelError> {
        let at = self.dumps;
        self.dumps += 1;
        if let Some(Fault::Dump(n, kind)) = self.fault
            && let Some(error) = self.strike(n == at, kind)
        {
            return Err(error);
        }
        self.inner.items(family, claims)
    }

    fn census(&mut self, families: PerFamily<bool>) -> Option<Census> {
        self.inner.census(families)
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<Vec<(RealKey, Connections)>, KernelError> {
        self.inner.connections(server)
    }

    fn flows(&mut self, query: &FlowQuery) -> Result<Vec<Flow>, KernelError> {
        let at = self.flow_queries;
        self.flow_queries += 1;
        if let Some(Fault::Flows(n, kind)) = self.fault
            && let Some(error) = self.strike(n == at, kind)
        {
            return Err(error);
        }
        self.inner.flows(query)
    }

    fn addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, KernelError> {
        self.inner.addresses(family)
    }

    fn fingerprint(&mut self) -> Option<Fingerprint> {
        self.inner.fingerprint()
    }

    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        let first = self.operations;
        self.operations += transaction.len();
        let Some(Fault::Operation(n, kind)) = self.fault else { return self.inner.apply(transaction) };
        let hit = (first..self.operations).contains(&n);
        let Some(error) = self.strike(hit, kind) else { return self.inner.apply(transaction) };
        match kind {
            ErrorKind::Rejected | ErrorKind::Exists | ErrorKind::NotFound | ErrorKind::Busy => {
                let aborted = || Err(KernelError::new(ErrorKind::Aborted, "injected: aborted"));
                let result = |at| if first + at == n { Err(error.clone()) } else { aborted() };
                (0..transaction.len()).map(result).collect()
            }
            ErrorKind::Unknown | ErrorKind::TimedOut => {
                self.inner.apply(transaction);
                vec![Err(error); transaction.len()]
            }
            ErrorKind::Aborted
            | ErrorKind::NoSpace
            | ErrorKind::Denied
            | ErrorKind::Unsupported
            | ErrorKind::Transient => vec![Err(error); transaction.len()],
        }
    }
}

/// Keeps every transaction and carries none out: reads come from the kernel behind. This is `--dry-run`.
#[derive(Clone, Debug)]
pub struct RecordingKernel<K> {
    /// The kernel that is read.
    pub inner: K,
    /// The transactions, in order.
    pub transactions: Vec<Vec<Op>>,
}

impl<K> RecordingKernel<K> {
    /// Wraps a kernel.
    pub fn new(inner: K) -> RecordingKernel<K> {
        RecordingKernel { inner, transactions: Vec::new() }
    }

    /// All operations, in order.
    pub fn operations(&self) -> impl Iterator<Item = &Op> {
        self.transactions.iter().flatten()
    }
}

impl<K: Kernel> Kernel for RecordingKernel<K> {
    fn dump(&mut self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError> {
        self.inner.dump(table, claims)
    }

    fn items(&mut self, family: IpFamily, claims: &ItemClaims) -> Result<ItemDump, KernelError> {
        self.inner.items(family, claims)
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
        self.inner.fingerprint()
    }

    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        self.transactions.push(transaction.to_vec());
        vec![Ok(()); transaction.len()]
    }
}
