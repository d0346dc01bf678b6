//! What one sync did, as a value: logs and metrics are made from it and from nothing else.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::kernel::{Area, ErrorKind, ItemKind, KernelError, TableId};
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};

/// How much a sync looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncKind {
    /// Everything: the kernel was dumped and every Service compiled.
    Full,
    /// Only what changed.
    Partial,
}

/// Changes that wait for the next sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Services that are not as they were.
    pub services: usize,
    /// Changes of EndpointSlices.
    pub slices: usize,
}

/// What one sync did.
#[derive(Clone, Debug)]
pub struct SyncReport {
    /// How much it looked at.
    pub kind: SyncKind,
    /// How long it took, from its start to the last answer of the kernel.
    pub duration: Duration,
    /// The part spent reading the kernel; zero for a partial sync.
    pub dump_duration: Duration,
    /// The part spent computing: compile, lower, compare.
    pub compute_duration: Duration,
    /// The part spent waiting for the kernel to change.
    pub apply_duration: Duration,
    /// Services that were compiled.
    pub compiled_services: usize,
    /// Operations by kind and result (`None`: done).
    pub operations: BTreeMap<(&'static str, Option<ErrorKind>), u64>,
    /// Transactions sent to the kernel.
    pub transactions: u64,
    /// Restores that failed, by family: transactions with at least one error in an iptables operation.
    pub failed_restores: PerFamily<u64>,
    /// Objects that a dump found other than we had left them. Always empty for the first sync and those without a dump.
    pub drift: BTreeMap<Area, u64>,
    /// Services whose incremental state differed from the one computed from scratch. Must stay 0.
    pub inconsistent_services: u64,
    /// Dumps that failed.
    pub failed_dumps: Vec<(Area, KernelError)>,
    /// Where leftovers of a mode that serves with items could not be looked for. This mode does its work all the same.
    pub unread_leftovers: Vec<(Area, KernelError)>,
    /// What is not in the kernel as it should be, and why.
    pub failed: Vec<FailedOwner>,
    /// Services that are programmed now, with the time from the cause of a change to now, one entry for each
    /// slice that carried a trigger time.
    pub programmed: Vec<(ServiceName, IpFamily, Duration)>,
    /// Rules per table: written in this sync, and existing after it.
    pub rules: BTreeMap<TableId, TableRules>,
    /// Service ports with policy Local that have endpoints, but none on this node, after this sync.
    pub no_local_endpoints: PerFamily<BTreeMap<TrafficPolicyLabel, u64>>,
    /// The conntrack clean-up that followed, by family, if there was one.
    pub flow_cleanup: PerFamily<Option<FlowCleanup>>,
    /// Items known to exist after this sync, by family (IPv4 for the link).
    pub items: BTreeMap<(IpFamily, ItemKind), u64>,
    /// Real servers on their way out: without new connections, waiting for the end of those that they have.
    pub draining: usize,
}

/// The class of traffic that a policy speaks of, as the metric label `traffic_policy` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficPolicyLabel {
    /// `internal`.
    Internal,
    /// `external`.
    External,
}

/// Numbers of rules in one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRules {
    /// Written in this sync.
    pub written: u64,
    /// Existing after this sync.
    pub total: u64,
}

/// A Service whose health a load balancer asks for (`healthCheckNodePort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port to listen on.
    pub port: NonZeroU16,
    /// Distinct local addresses with a ready endpoint, by family; `None`: the Service does not exist in this family.
    pub local_endpoints: PerFamily<Option<usize>>,
}

/// All such Services, as far as the kernel has confirmed them.
pub type HealthChecks = BTreeMap<ServiceName, HealthCheck>;

/// One clean-up of stale flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCleanup {
    /// How long it took.
    pub duration: Duration,
    /// Entries deleted.
    pub deleted: u64,
    /// What failed; it is tried again.
    pub error: Option<KernelError>,
}

/// A Service, or the base, that could not be programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedOwner {
    /// The Service; `None`: the base, on which all Services stand, or leftovers that cannot be removed (`isolated`).
    pub service: Option<ServiceName>,
    /// What the kernel said.
    pub error: KernelError,
    /// How often it failed in a row.
    pub attempts: u32,
    /// When it is tried again.
    pub retry_in: Duration,
    /// The kernel takes everything but this: the trouble is with the object and not with the node.
    pub isolated: bool,
}

impl SyncReport {
    /// Whether the node does its work: everything is programmed but, at most, single objects that the kernel does not take. One
    /// bad Service must not make load balancers leave the whole node.
    pub fn healthy(&self) -> bool {
        self.failed_dumps.is_empty() && self.failed.iter().all(|failed| failed.isolated)
    }

    /// Whether the kernel now holds everything that it should.
    pub fn success(&self) -> bool {
        self.failed.is_empty() && self.failed_dumps.is_empty()
    }
}
