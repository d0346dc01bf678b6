//! The sync engine: makes the kernel agree with the cluster, at the cost of what changed.
//!
//! A change names its Service. Only that Service is compiled and lowered again ([`Engine::sync`]); only its objects are
//! compared with what the kernel is known to hold (the ledger); and only the differences are sent (the programmer). A
//! pass over everything is made at start, once per [`Options::full_interval`], and when an operation showed that the
//! picture was wrong.
//!
//! Invariants:
//! - Pending work is derived from the ledger and never stored, so that a failed operation forgets nothing.
//! - Nothing is written before both lists are complete and the tables have been read.
//! - What the engine believes after any sequence of changes equals what it would compute from scratch.

mod chains;
mod cleanup;
pub mod clock;
mod commit;
mod dispute;
mod drain;
mod engine;
mod figures;
mod flows;
mod item_plan;
mod item_table;
mod items;
mod ledger;
mod linger;
mod lower;
mod node_wait;
mod owner;
mod program;
mod reconfigure;
mod report;
mod runner;
mod schedule;
mod settle;
mod tracked;
mod watch;

pub use engine::{ContextOf, Engine, Leftovers, Options};
pub use node_wait::{ADDRESSES_WITHIN, NodeNeeds, NodeWait, POD_CIDRS_WITHIN};
pub use reconfigure::Reconfiguration;
pub use report::{
    FailedOwner, FlowCleanup, HealthCheck, HealthChecks, Pending, SyncKind, SyncReport, TableRules, TrafficPolicyLabel,
};
pub use runner::{Message, Observer, Runner};
pub use schedule::Schedule;
