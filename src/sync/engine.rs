//! The engine: cluster and ledger in one hand, and one function that makes the kernel agree.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use crate::backend::Backend;
use crate::compile::NodeContext;
use crate::kernel::{Area, Kernel, KernelError, Table};
use crate::model::{Change, Cluster, Dirty, Node, ServiceName};
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;
use crate::sync::dispute::Disputes;
use crate::sync::drain::Drains;
use crate::sync::flows::FlowCleaner;
use crate::sync::items::Items;
use crate::sync::ledger::Ledger;
use crate::sync::linger::Lingering;
use crate::sync::node_wait::{Awaited, NodeNeeds, NodeWait};
use crate::sync::owner::{OwnerId, Owners};
use crate::sync::program::{Suspicion, Tally};
use crate::sync::watch::Watch;
use crate::sync::{HealthChecks, Pending, SyncKind, SyncReport};

/// Makes a node context from the settings that it was made with, the Node and the node's addresses.
pub type ContextOf = Box<dyn Fn(&Node, &PerFamily<Vec<IpAddr>>) -> NodeContext + Send>;

/// How the engine behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most operations in one transaction. `iptables-nft-restore` needs time that grows with the square of this;
    /// for `iptables-legacy-restore`, which swaps the whole table each time, there should be no limit.
    pub operations_per_transaction: usize,
    /// After this time without one, a full sync reads the kernel and compares everything (the audit).
    pub full_interval: Duration,
    /// How often to look whether anybody else has changed the rules, which costs no more than a system call or two. If so,
    /// a full sync follows. Items have nothing so cheap: those of a mode that serves with them are read and compared this often.
    pub check_interval: Duration,
    /// How long a real server may keep its connections after its endpoint has left all EndpointSlices.
    pub drain_timeout: Duration,
    /// The first wait after a failure; it doubles with each further one.
    pub first_retry: Duration,
    /// The longest wait after a failure.
    pub longest_retry: Duration,
    /// What has to be known of the Node before the first sync.
    pub node_needs: NodeNeeds,
    /// What becomes of what IPVS mode has left behind, in a mode without items.
    pub leftovers: Leftovers,
}

/// When virtual servers go that another mode has left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leftovers {
    /// When their last connection has ended, and all rules stand.
    #[default]
    Linger,
    /// At once, with their connections: nobody stays to look at them.
    Remove,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            operations_per_transaction: 500,
            full_interval: Duration::from_secs(900),
            check_interval: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(60),
            first_retry: Duration::from_millis(200),
            longest_retry: Duration::from_secs(30),
            node_needs: NodeNeeds::Nothing,
            leftovers: Leftovers::Linger,
        }
    }
}

/// What waits for the next sync.
#[derive(Debug, Default)]
pub(super) struct Work {
    services: HashSet<ServiceName>,
    /// Those of them that changed themselves, and not only in their slices.
    changed_services: HashSet<ServiceName>,
    changed_slices: usize,
    pub(super) all_services: bool,
    pub(super) base: bool,
    /// When a full sync is due; `None`: none has succeeded yet.
    pub(super) full_due: Option<Instant>,
    /// When items are to be read again.
    pub(super) items_due: Option<Instant>,
    /// Items of the mode before, which this engine made and has not yet read in this mode: to be looked for soon.
    pub(super) items_left: BTreeSet<Area>,
    /// Since when there is something to do.
    since: Option<Instant>,
}

/// Makes one kernel agree with one cluster. One owner, one thread, no locks.
pub struct Engine<K, C> {
    pub(super) kernel: K,
    pub(super) clock: C,
    pub(super) backend: Box<dyn Backend>,
    pub(super) claimed_tables: BTreeSet<Table>,
    /// Whether the mode serves with items.
    pub(super) serves_items: bool,
    pub(super) options: Options,
    pub(super) context_of: ContextOf,
    addresses: PerFamily<Vec<IpAddr>>,
    pub(super) context: NodeContext,
    pub(super) cluster: Cluster,
    awaited: Awaited,
    pub(super) ledger: Ledger,
    pub(super) owners: Owners,
    pub(super) drains: Drains,
    pub(super) lingering: Lingering,
    pub(super) disputes: Disputes,
    pub(super) flows: FlowCleaner,
    /// When to try again a clean-up of flows that failed.
    pub(super) flow_retry: Option<Instant>,
    pub(super) work: Work,
    /// Causes of changes that are not in the kernel yet, by Service. Cleared only when it is.
    pub(super) triggers: HashMap<ServiceName, Vec<(IpFamily, SystemTime)>>,
    pub(super) health_checks: HealthChecks,
    started: SystemTime,
    /// What was read at least once: nothing is written to what was not.
    pub(super) observed: BTreeSet<Area>,
    pub(super) watch: Watch,
}

/// What one sync gathers on its way.
pub(super) struct Run {
    pub(super) start: Instant,
    pub(super) kind: SyncKind,
    pub(super) tally: Tally,
    pub(super) dump_duration: Duration,
    pub(super) compiled: usize,
    pub(super) drift: BTreeMap<Area, u64>,
    pub(super) inconsistent: u64,
    pub(super) failed_dumps: Vec<(Area, KernelError)>,
    pub(super) unread_leftovers: Vec<(Area, KernelError)>,
    /// Everyone whose objects were looked at.
    pub(super) touched: BTreeSet<OwnerId>,
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// An engine that knows nothing yet.
    pub fn new(kernel: K, clock: C, backend: Box<dyn Backend>, context_of: ContextOf, options: Options) -> Self {
        let addresses = PerFamily::default();
        let context = context_of(&Node::default(), &addresses);
        let started = clock.wall();
        let claims = backend.claims();
        let item_claims = claims.items.clone().unwrap_or_default();
        Engine {
            kernel,
            clock,
            claimed_tables: claims.tables(),
            serves_items: item_claims.serving,
            backend,
            options,
            context_of,
            addresses,
            context,
            cluster: Cluster::default(),
            awaited: Awaited::new(),
            ledger: Ledger::new(Items::new(item_claims)),
            owners: Owners::default(),
            drains: Drains::default(),
            lingering: Lingering::default(),
            disputes: Disputes::default(),
            flows: FlowCleaner::default(),
            flow_retry: None,
            work: Work { base: true, all_services: true, ..Work::default() },
            triggers: HashMap::new(),
            health_checks: HealthChecks::new(),
            started,
            observed: BTreeSet::new(),
            watch: Watch::default(),
        }
    }

    /// Takes in one change. Costs what the change is.
    pub fn apply(&mut self, change: Change) {
        let trigger = match &change {
            Change::Slice(_, Some(slice)) => {
                slice.triggered_at.filter(|at| *at > self.started).map(|at| (slice.service.clone(), slice.family, at))
            }
            Change::Slice(_, None) | Change::Service(..) | Change::Node(_) | Change::Complete(_) => None,
        };
        let removes_slice = matches!(change, Change::Slice(_, None));
        let (is_service, is_slice) = (matches!(change, Change::Service(..)), matches!(change, Change::Slice(..)));
        let was_synced = self.cluster.synced();
        match self.cluster.apply(change) {
            Dirty::Nothing => {}
            Dirty::Services(names) => {
                if let Some((service, family, at)) = trigger {
                    self.triggers.entry(service).or_default().push((family, at));
                } else if removes_slice {
                    // A latency can't be told any more: the change that began it may never be programmed.
                    names.iter().for_each(|name| drop(self.triggers.remove(name)));
                }
                self.work.changed_slices += usize::from(is_slice);
                self.work.changed_services.extend(names.iter().filter(|_| is_service).cloned());
                self.work.services.extend(names);
                self.mark_due();
            }
            Dirty::Everything => {
                self.refresh_context();
                if !was_synced && self.cluster.synced() {
                    self.mark_due();
                }
                self.await_node();
            }
        }
    }

    /// Looks how far the wait for the Node is. Before it is over, nothing is synced.
    pub fn await_node(&mut self) -> NodeWait {
        self.awaited.look(self.options.node_needs, self.cluster.listed_node(), self.clock.now())
    }

    /// Whether enough is known to make the kernel agree.
    fn may_begin(&self) -> bool {
        self.cluster.synced() && self.awaited.last().lets_go_on()
    }

    /// The node's addresses are now these, sorted.
    pub fn set_addresses(&mut self, addresses: PerFamily<Vec<IpAddr>>) {
        self.addresses = addresses;
        self.refresh_context();
    }

    /// Asks for a full sync as soon as possible.
    pub fn request_full(&mut self) {
        self.work.full_due = None;
        self.mark_due();
    }

    /// When a sync has something to do; `None`: not before the lists are complete and enough is known of the Node.
    pub fn due(&self) -> Option<Instant> {
        if !self.may_begin() {
            return None;
        }
        let timers = [self.work.since, self.work.full_due, self.work.items_due, self.flow_retry];
        timers.into_iter().chain([self.owners.next_retry(), self.drains.next(), self.lingering.next()]).flatten().min()
    }

    /// Whether a change waits to be synced.
    pub fn has_work(&self) -> bool {
        self.may_begin() && self.work.since.is_some()
    }

    /// Changes that wait to be synced.
    pub fn pending(&self) -> Pending {
        Pending { services: self.work.changed_services.len(), slices: self.work.changed_slices }
    }

    /// The cluster as known.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The node context in force.
    pub fn context(&self) -> &NodeContext {
        &self.context
    }

    /// The kernel, for tests and for figures that only it has.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, to change it behind the engine's back in tests.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Services whose health a load balancer asks for, as far as the kernel has confirmed them.
    pub fn health_checks(&self) -> &HealthChecks {
        &self.health_checks
    }

    /// Makes the kernel agree. `None`: nothing may be done yet, since the lists are not complete, or not enough is known of the
    /// Node.
    pub fn sync(&mut self) -> Option<SyncReport> {
        if !self.may_begin() {
            return None;
        }
        // What a foreign hand did since the last sync would be hidden by what this one does.
        self.check();
        let mut run = self.begin();
        self.look_at_drains(&mut run);
        self.look_at_leftovers(&mut run);
        let names = self.collect_work(&mut run);
        self.program(&names, &mut run);
        let suspicion = std::mem::take(&mut run.tally.suspect);
        if suspicion.any() {
            self.second_look(suspicion, &mut run);
        }
        let programmed = self.settle(&mut run);
        let flow_cleanup = self.clean_flows();
        self.remember_rules(&run);
        Some(self.report(run, programmed, flow_cleanup))
    }

    // === the steps of one sync, in order; the others are in commit.rs and settle.rs ===

    fn begin(&mut self) -> Run {
        let start = self.clock.now();
        let full = self.work.full_due.is_none_or(|due| due <= start);
        self.work.since = None;
        self.work.changed_services = HashSet::new();
        self.work.changed_slices = 0;
        let mut run = Run {
            start,
            kind: if full { SyncKind::Full } else { SyncKind::Partial },
            tally: Tally::default(),
            dump_duration: Duration::ZERO,
            compiled: 0,
            drift: BTreeMap::new(),
            inconsistent: 0,
            failed_dumps: Vec::new(),
            unread_leftovers: Vec::new(),
            touched: BTreeSet::new(),
        };
        let items = full || self.items_have_changed(start);
        self.dump(self.areas(Suspicion { tables: full, items }), &mut run);
        run
    }

    /// The Services to compile: those that changed, those whose retry is due, and after a dump those that it
    /// concerns. Sorted, so that the same state gives the same operations.
    fn collect_work(&mut self, run: &mut Run) -> BTreeSet<ServiceName> {
        let mut names: BTreeSet<ServiceName> = std::mem::take(&mut self.work.services).into_iter().collect();
        run.touched.extend(self.owners.due(run.start));
        names.extend(self.names_of(&run.touched));
        self.work.base |= run.touched.contains(&OwnerId::BASE);
        if run.kind == SyncKind::Full || std::mem::take(&mut self.work.all_services) {
            self.check_consistency(&names, run);
            names.extend(self.cluster.entries().map(|(name, _)| name.clone()));
            names.extend(self.owners.names().cloned());
            self.work.all_services = false;
            self.work.base = true;
            run.touched.insert(OwnerId::STRAYS);
        }
        names
    }

    /// An operation showed that the picture was wrong: reads what it is about, repairs what it finds, and tries once more.
    fn second_look(&mut self, suspicion: Suspicion, run: &mut Run) {
        let repeated = |engine: &Self, id: &OwnerId| {
            engine.owners.get(*id).and_then(|owner| owner.retry.as_ref()).is_some_and(|retry| retry.culprit)
        };
        // Someone whom the kernel refused before is refused again: that says nothing about the tables.
        let fresh = IpFamily::ALL.iter().any(|family| run.tally.failures[*family].keys().any(|id| !repeated(self, id)));
        if !fresh {
            return;
        }
        self.dump(self.areas(suspicion), run);
        let failed = std::mem::take(&mut run.tally.failures);
        run.touched.extend(failed.v4.keys().chain(failed.v6.keys()));
        self.work.base |= run.touched.contains(&OwnerId::BASE);
        let names = self.names_of(&run.touched);
        self.program(&names, run);
    }

    pub(super) fn names_of(&self, owners: &BTreeSet<OwnerId>) -> BTreeSet<ServiceName> {
        owners.iter().filter_map(|id| self.owners.get(*id)?.name.clone()).collect()
    }

    pub(super) fn refresh_context(&mut self) {
        let context = (self.context_of)(self.cluster.node(), &self.addresses);
        if context != self.context {
            self.context = context;
            self.work.base = true;
            self.work.all_services = true;
            self.mark_due();
        }
    }

    pub(super) fn mark_due(&mut self) {
        if self.work.since.is_none() {
            self.work.since = Some(self.clock.now());
        }
    }
}
