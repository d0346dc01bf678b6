//! The sync engine: makes the kernel agree with the cluster, at the cost of what changed.

pub mod clock;
mod report;

pub use report::{FailedOwner, FlowCleanup, SyncKind, SyncReport, TableRules, TrafficPolicyLabel};
