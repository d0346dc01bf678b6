//! What a kernel can hold and can be asked to do. This layer knows no Service, no node and no backend.
//!
//! Operations are data ([`Op`]); the trait [`Kernel`] is the one narrow door to the real thing, a fake, a faulty one
//! or a recorder.

pub mod census;
pub mod chain;
mod conntrack;
pub mod fake;
pub mod fault;
mod flow;
pub mod item;
mod op;
mod packed;
pub mod rule;
mod rule_text;
pub mod set;
mod state;
pub mod trace;

use crate::net::{IpFamily, PerFamily};

pub use chain::{ChainBody, ChainKey, ChainName, ChainNameError, Digest, DigestBuilder, Table, TableId};
pub use conntrack::Conntrack;
pub use flow::{Flow, FlowEnd, FlowQuery};
pub use item::{Connections, ItemClaims, ItemDump, ItemKey, ItemKind, ItemState, RealKey, VirtualKey, VirtualServer};
pub use op::{ErrorKind, KernelError, Op};
pub use packed::{PackedChain, PackedItem};
pub use rule::Rule;
pub use rule_text::{Parsed, RuleParseError};
pub use set::{Element, SetKey, SetKind, SetName};
pub use state::{Area, ChainClass, Claims, Fingerprint, FoundChain, Placement, RuleKey, TableDump};

/// The kernel of one network namespace, as the sync engine sees it.
///
/// Contract:
/// - `apply` returns exactly one result per operation, in the order of the operations.
/// - The operations of one call are one transaction: those on one table become visible together or not at all.
///   Within one call, new and changed chains are written before rules that may name them, rules are removed before
///   chains that they name, and rejecting or dropping rules of the filter table are added before and removed after the
///   change of the nat table.
/// - When a transaction fails, the operations that took effect report `Ok`; the one that caused it, if
///   it can be told, reports [`ErrorKind::Rejected`], [`ErrorKind::Exists`], [`ErrorKind::NotFound`] or
///   [`ErrorKind::Busy`]; the rest report [`ErrorKind::Aborted`].
///   If it can't be told what took effect, all report [`ErrorKind::Unknown`] and the caller has to dump.
/// - Operations on items ([`ItemKey`]) are carried out one after the other in the order in which they are given, after those on
///   chains and rules. Each has its own result, and none keeps another from being carried out.
/// - Adding what exists is `Exists`, removing what does not exist is `NotFound`: never a silent success, since either
///   means that the caller's picture was wrong.
/// - No call blocks for longer than its deadline; none panics on anything that the kernel or a tool answers.
pub trait Kernel {
    /// Reads everything in one table that `claims` says is ours.
    fn dump(&mut self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError>;

    /// Reads all items of one family.
    fn items(&mut self, family: IpFamily, claims: &ItemClaims) -> Result<ItemDump, KernelError>;

    /// A picture of the items of these families by which a change is noticed; `None`: it can't be had.
    fn census(&mut self, families: PerFamily<bool>) -> Option<census::Census>;

    /// The real servers of a virtual server with their connections; empty if there is no such virtual server.
    fn connections(&mut self, server: &VirtualKey) -> Result<Vec<(RealKey, Connections)>, KernelError>;

    /// Reads the conntrack entries that match the query. The kernel filters where it can; an answer may hold more
    /// than was asked for.
    fn flows(&mut self, query: &FlowQuery) -> Result<Vec<Flow>, KernelError>;

    /// The addresses of all interfaces but the dummy link in one family, loopback included, sorted and without repetitions.
    fn addresses(&mut self, family: IpFamily) -> Result<Vec<std::net::IpAddr>, KernelError>;

    /// Something that tells cheaply whether anybody has changed the rules since it was last asked for: no program is
    /// started and nothing is read. `None`: it can't be told; and equal ones do not prove that nothing changed.
    fn fingerprint(&mut self) -> Option<Fingerprint>;

    /// Carries out one transaction.
    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>>;
}
