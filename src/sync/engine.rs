//! The engine: cluster and ledger in one hand, and one function that makes the kernel agree.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{NodeContext, ServicePortPlan, compile_service};
use crate::kernel::{ChainBody, ChainKey, ErrorKind, Kernel, KernelError, Table, TableId};
use crate::model::{Change, Cluster, Dirty, Node, ServiceName};
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;
use crate::sync::figures::{endpoint_counts, local_ready_endpoints, no_local};
use crate::sync::flows::{FlowCleaner, udp_frontends};
use crate::sync::ledger::Ledger;
use crate::sync::owner::{OwnerId, Owners, Retry};
use crate::sync::program::{Plan, Programmer, Tally, plan_owner};
use crate::sync::schedule::backoff;
use crate::sync::watch::Watch;
use crate::sync::{FailedOwner, HealthCheck, HealthChecks, Pending, SyncKind, SyncReport};

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
    /// a full sync follows.
    pub check_interval: Duration,
    /// The first wait after a failure; it doubles with each further one.
    pub first_retry: Duration,
    /// The longest wait after a failure.
    pub longest_retry: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            operations_per_transaction: 500,
            full_interval: Duration::from_secs(900),
            check_interval: Duration::from_secs(30),
            first_retry: Duration::from_millis(200),
            longest_retry: Duration::from_secs(30),
        }
    }
}

/// What waits for the next sync.
#[derive(Debug, Default)]
struct Work {
    services: HashSet<ServiceName>,
    /// Those of them that changed themselves, and not only in their slices.
    changed_services: HashSet<ServiceName>,
    changed_slices: usize,
    all_services: bool,
    base: bool,
    /// When a full sync is due; `None`: none has succeeded yet.
    full_due: Option<Instant>,
    /// Since when there is something to do.
    since: Option<Instant>,
}

/// Makes one kernel agree with one cluster. One owner, one thread, no locks.
pub struct Engine<K, C> {
    pub(super) kernel: K,
    pub(super) clock: C,
    backend: Box<dyn Backend>,
    claimed_tables: BTreeSet<Table>,
    pub(super) options: Options,
    context_of: ContextOf,
    addresses: PerFamily<Vec<IpAddr>>,
    pub(super) context: NodeContext,
    cluster: Cluster,
    pub(super) ledger: Ledger,
    pub(super) owners: Owners,
    pub(super) flows: FlowCleaner,
    /// When to try again a clean-up of flows that failed.
    pub(super) flow_retry: Option<Instant>,
    work: Work,
    /// Causes of changes that are not in the kernel yet, by Service. Cleared only when it is.
    triggers: HashMap<ServiceName, Vec<(IpFamily, SystemTime)>>,
    health_checks: HealthChecks,
    started: SystemTime,
    /// Tables that were read at least once: nothing is written to one that was not.
    observed: BTreeSet<TableId>,
    pub(super) watch: Watch,
}

/// What one sync gathers on its way.
pub(super) struct Run {
    pub(super) start: Instant,
    pub(super) kind: SyncKind,
    tally: Tally,
    dump_duration: Duration,
    compiled: usize,
    pub(super) drift: BTreeMap<TableId, u64>,
    inconsistent: u64,
    failed_dumps: Vec<(TableId, KernelError)>,
    /// Everyone whose objects were looked at.
    touched: BTreeSet<OwnerId>,
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// An engine that knows nothing yet.
    pub fn new(kernel: K, clock: C, backend: Box<dyn Backend>, context_of: ContextOf, options: Options) -> Self {
        let addresses = PerFamily::default();
        let context = context_of(&Node::default(), &addresses);
        let started = clock.wall();
        Engine {
            kernel,
            clock,
            claimed_tables: backend.claims().tables(),
            backend,
            options,
            context_of,
            addresses,
            context,
            cluster: Cluster::default(),
            ledger: Ledger::default(),
            owners: Owners::default(),
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
            }
        }
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

    /// When a sync has something to do; `None`: not before both lists are complete.
    pub fn due(&self) -> Option<Instant> {
        if !self.cluster.synced() {
            return None;
        }
        [self.work.since, self.owners.next_retry(), self.work.full_due, self.flow_retry].into_iter().flatten().min()
    }

    /// Whether a change waits to be synced.
    pub fn has_work(&self) -> bool {
        self.cluster.synced() && self.work.since.is_some()
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

    /// Makes the kernel agree. `None`: nothing may be done yet, since the lists are not complete.
    pub fn sync(&mut self) -> Option<SyncReport> {
        if !self.cluster.synced() {
            return None;
        }
        // What a foreign hand did since the last sync would be hidden by what this one does.
        self.check();
        let mut run = self.begin();
        let names = self.collect_work(&mut run);
        self.program(&names, &mut run);
        if std::mem::take(&mut run.tally.suspect) {
            self.second_look(&mut run);
        }
        let programmed = self.settle(&mut run);
        let flow_cleanup = self.clean_flows();
        self.remember_rules(&run);
        Some(self.report(run, programmed, flow_cleanup))
    }

    // === the steps of one sync, in order ===

    fn begin(&mut self) -> Run {
        let start = self.clock.now();
        let full = self.work.full_due.is_none_or(|due| due <= start);
        self.work.since = None;
        self.work.changed_services.clear();
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
            touched: BTreeSet::new(),
        };
        if full {
            self.dump(&self.tables(), &mut run);
        }
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

    /// Compiles and carries out. The base goes first: if it fails, nothing can stand on it.
    fn program(&mut self, names: &BTreeSet<ServiceName>, run: &mut Run) {
        let mut plans: PerFamily<Plan> = PerFamily::default();
        if std::mem::take(&mut self.work.base) {
            let fragment = self.backend.base(&self.context);
            self.plan(OwnerId::BASE, fragment, &mut plans, run);
            for family in IpFamily::ALL {
                let plan = std::mem::take(&mut plans[family]);
                if self.may_write(family, run) {
                    self.programmer(run, &HashSet::new()).commit(family, plan);
                }
            }
        }
        self.count_endpoints(names);
        let quarantined: HashSet<OwnerId> =
            self.owners.waiting().filter(|(_, _, retry)| retry.culprit).map(|(id, _, _)| id).collect();
        for name in names {
            let Some((id, fragment)) = self.compile(name) else { continue };
            run.compiled += 1;
            self.plan(id, fragment, &mut plans, run);
            for family in IpFamily::ALL {
                if self.may_write(family, run) {
                    self.programmer(run, &quarantined).commit_chains_if_full(family, &mut plans[family]);
                }
            }
        }
        for id in run.touched.clone() {
            if let Some(owner) = self.owners.get(id) {
                plan_owner(&mut plans, &self.ledger, id, owner, Vec::new());
            }
        }
        for family in IpFamily::ALL {
            let plan = std::mem::take(&mut plans[family]);
            if self.may_write(family, run) {
                self.programmer(run, &quarantined).commit(family, plan);
            } else {
                self.hold_back(family, run);
            }
        }
    }

    /// An operation showed that the picture was wrong: reads all tables, repairs what it finds, and tries once more.
    fn second_look(&mut self, run: &mut Run) {
        let repeated = |engine: &Self, id: &OwnerId| {
            engine.owners.get(*id).and_then(|owner| owner.retry.as_ref()).is_some_and(|retry| retry.culprit)
        };
        // Someone whom the kernel refused before is refused again: that says nothing about the tables.
        let fresh = IpFamily::ALL.iter().any(|family| run.tally.failures[*family].keys().any(|id| !repeated(self, id)));
        if !fresh {
            return;
        }
        self.dump(&self.tables(), run);
        let failed = std::mem::take(&mut run.tally.failures);
        run.touched.extend(failed.v4.keys().chain(failed.v6.keys()));
        self.work.base |= run.touched.contains(&OwnerId::BASE);
        let names = self.names_of(&run.touched);
        self.program(&names, run);
    }

    /// Sets and clears retries; returns the latencies of what is in the kernel now.
    fn settle(&mut self, run: &mut Run) -> Vec<(ServiceName, IpFamily, Duration)> {
        let now = self.clock.now();
        let mut programmed = Vec::new();
        if !run.failed_dumps.is_empty() || run.tally.suspect {
            self.work.full_due = Some(now + self.options.first_retry * 10);
        } else if run.kind == SyncKind::Full {
            self.work.full_due = Some(now + self.options.full_interval);
        }
        for id in std::mem::take(&mut run.touched) {
            let failure = IpFamily::ALL.iter().find_map(|family| run.tally.failures[*family].get(&id).cloned());
            let unsettled = || (KernelError::new(ErrorKind::Aborted, "not carried out"), false);
            let failure = failure.or_else(|| (!self.ledger.settled(&self.owners, id)).then(unsettled));
            if let Some((error, culprit)) = failure {
                self.schedule_retry(id, error, culprit, now);
                continue;
            }
            self.owners.set_retry(id, None);
            if let Some(name) = self.owners.get(id).and_then(|owner| owner.name.clone()) {
                let wall = self.clock.wall();
                for (family, at) in self.triggers.remove(&name).into_iter().flatten() {
                    programmed.push((name.clone(), family, wall.duration_since(at).unwrap_or_default()));
                }
                self.update_health_check(&name);
            }
            self.ledger.prune(&mut self.owners, id);
        }
        programmed
    }

    // === parts of the steps ===

    fn names_of(&self, owners: &BTreeSet<OwnerId>) -> BTreeSet<ServiceName> {
        owners.iter().filter_map(|id| self.owners.get(*id)?.name.clone()).collect()
    }

    fn tables(&self) -> BTreeSet<TableId> {
        let tables = &self.claimed_tables;
        let families = IpFamily::ALL.into_iter().filter(|family| self.context.families[*family]);
        families.flat_map(|family| tables.iter().map(move |table| TableId { family, table: *table })).collect()
    }

    /// Reads tables. Owners for whom that left something to do are touched, so that this sync repairs it.
    fn dump(&mut self, tables: &BTreeSet<TableId>, run: &mut Run) {
        let start = self.clock.now();
        // What the base wants decides which host chains count as found.
        let base = self.backend.base(&self.context);
        self.ledger.set_wanted(&mut self.owners, OwnerId::BASE, base);
        let (claims, removable) = (self.backend.claims(), self.backend.removable());
        for table in tables {
            match self.kernel.dump(*table, &claims) {
                Ok(dump) => {
                    let drift = self.ledger.observe(&mut self.owners, *table, dump, &removable);
                    let first = self.observed.insert(*table);
                    if !first && drift > 0 {
                        *run.drift.entry(*table).or_default() += drift;
                    }
                }
                Err(error) => run.failed_dumps.push((*table, error)),
            }
        }
        run.touched.extend(self.ledger.unsettled_owners());
        run.touched.insert(OwnerId::STRAYS);
        run.dump_duration += self.clock.now().saturating_duration_since(start);
    }

    /// Compiles one Service and lowers it. `None`: there is no such Service and it owns nothing.
    fn compile(&mut self, name: &ServiceName) -> Option<(OwnerId, Fragment)> {
        let plans = self.plans(name);
        if plans.is_empty() && self.owners.find(name).is_none() {
            self.triggers.remove(name);
            return None;
        }
        let id = self.owners.intern(name);
        let fragment = self.lower(&plans);
        let udp = udp_frontends(&plans);
        if let Some(owner) = self.owners.get_mut(id) {
            let old = std::mem::replace(&mut owner.udp, udp);
            self.flows.update(id, old.as_deref(), owner.udp.as_deref());
            let mut figures = owner.figures;
            for family in IpFamily::ALL {
                (figures[family].no_local_internal, figures[family].no_local_external) = no_local(&plans, family);
            }
            self.owners.set_figures(id, figures);
        }
        Some((id, fragment))
    }

    fn plans(&self, name: &ServiceName) -> Vec<ServicePortPlan> {
        self.cluster.entry(name).map(|entry| compile_service(name, entry, &self.context)).unwrap_or_default()
    }

    fn lower(&self, plans: &[ServicePortPlan]) -> Fragment {
        let mut fragment = Fragment::default();
        for plan in plans {
            let comments = RuleComments::for_endpoints(self.owners.sums[plan.family].endpoints as usize);
            self.backend.lower(plan, &self.context, comments, &mut fragment);
        }
        fragment
    }

    fn plan(&mut self, id: OwnerId, fragment: Fragment, plans: &mut PerFamily<Plan>, run: &mut Run) {
        let bodies: Vec<(ChainKey, ChainBody)> = self.ledger.set_wanted(&mut self.owners, id, fragment);
        run.touched.insert(id);
        if let Some(owner) = self.owners.get(id) {
            plan_owner(plans, &self.ledger, id, owner, bodies);
        }
    }

    fn programmer<'a>(&'a mut self, run: &'a mut Run, quarantined: &'a HashSet<OwnerId>) -> Programmer<'a, K, C> {
        Programmer {
            kernel: &mut self.kernel,
            clock: &self.clock,
            ledger: &mut self.ledger,
            tally: &mut run.tally,
            limit: self.options.operations_per_transaction.max(1),
            quarantined,
        }
    }

    /// Whether a family's tables were ever read, and the base stands.
    fn may_write(&self, family: IpFamily, run: &Run) -> bool {
        let mut tables = self.claimed_tables.iter();
        let read = tables.all(|table| self.observed.contains(&TableId { family, table: *table }));
        read && !run.tally.failures[family].contains_key(&OwnerId::BASE)
    }

    /// Nothing was written in this family: everyone with something to do there waits, for the reason that the base or
    /// the dump gave.
    fn hold_back(&mut self, family: IpFamily, run: &mut Run) {
        let dump_error = run.failed_dumps.iter().find(|(table, _)| table.family == family).map(|(_, error)| error);
        let base_error = run.tally.failures[family].get(&OwnerId::BASE).map(|(error, _)| error);
        let Some(error) = dump_error.or(base_error).cloned() else { return };
        for id in &run.touched {
            if !self.ledger.settled(&self.owners, *id) {
                run.tally.failures[family].entry(*id).or_insert_with(|| (error.clone(), false));
            }
        }
    }

    /// Counts endpoints before anything is lowered, so that whether comments are written does not depend on the order.
    fn count_endpoints(&mut self, names: &BTreeSet<ServiceName>) {
        for name in names {
            let counts = self.cluster.entry(name).map(endpoint_counts).unwrap_or_default();
            let id = match self.owners.find(name) {
                Some(id) => id,
                None if counts == PerFamily::default() => continue,
                None => self.owners.intern(name),
            };
            let mut figures = self.owners.get(id).map(|owner| owner.figures).unwrap_or_default();
            for family in IpFamily::ALL {
                figures[family].endpoints = counts[family];
            }
            self.owners.set_figures(id, figures);
        }
    }

    /// In an audit: what was computed step by step has to equal what is computed from scratch.
    fn check_consistency(&self, dirty: &BTreeSet<ServiceName>, run: &mut Run) {
        let stale = |name: &&ServiceName| dirty.contains(*name) || self.work.base || self.work.all_services;
        for name in self.owners.names().filter(|name| !stale(name)) {
            let Some(id) = self.owners.find(name) else { continue };
            if !self.ledger.is_wanted_like(&self.owners, id, &self.lower(&self.plans(name))) {
                tracing::error!(service = %name, "incremental state differs from the one computed from scratch");
                run.inconsistent += 1;
            }
        }
    }

    fn schedule_retry(&mut self, id: OwnerId, error: KernelError, culprit: bool, now: Instant) {
        let attempts = self.owners.get(id).and_then(|owner| owner.retry.as_ref()).map_or(0, |retry| retry.attempts) + 1;
        let at = now + backoff(self.options.first_retry, self.options.longest_retry, attempts);
        self.owners.set_retry(id, Some(Retry { attempts, at, error, culprit }));
    }

    fn update_health_check(&mut self, name: &ServiceName) {
        let entry = self.cluster.entry(name);
        let port = entry.and_then(|entry| entry.service.as_ref()).and_then(|service| service.health_check_node_port);
        match port {
            Some(port) => {
                let local_endpoints = local_ready_endpoints(&self.plans(name));
                self.health_checks.insert(name.clone(), HealthCheck { port, local_endpoints });
            }
            None => {
                self.health_checks.remove(name);
            }
        }
    }

    fn refresh_context(&mut self) {
        let context = (self.context_of)(self.cluster.node(), &self.addresses);
        if context != self.context {
            self.context = context;
            self.work.base = true;
            self.work.all_services = true;
            self.mark_due();
        }
    }

    fn mark_due(&mut self) {
        if self.work.since.is_none() {
            self.work.since = Some(self.clock.now());
        }
    }

    fn report(
        &self,
        run: Run,
        programmed: Vec<(ServiceName, IpFamily, Duration)>,
        flow_cleanup: PerFamily<Option<crate::sync::FlowCleanup>>,
    ) -> SyncReport {
        let now = self.clock.now();
        let duration = now.saturating_duration_since(run.start);
        let mut rules = run.tally.rules;
        for table in self.tables() {
            rules.entry(table).or_default().total = self.ledger.total(table);
        }
        let failed = self.owners.waiting().map(|(id, owner, retry)| FailedOwner {
            service: owner.name.clone().filter(|_| id != OwnerId::BASE),
            error: retry.error.clone(),
            attempts: retry.attempts,
            retry_in: retry.at.saturating_duration_since(now),
            isolated: retry.culprit && id != OwnerId::BASE,
        });
        SyncReport {
            kind: run.kind,
            duration,
            dump_duration: run.dump_duration,
            compute_duration: duration.saturating_sub(run.dump_duration + run.tally.apply_duration),
            apply_duration: run.tally.apply_duration,
            compiled_services: run.compiled,
            operations: run.tally.operations,
            transactions: run.tally.transactions,
            failed_restores: run.tally.failed_restores,
            drift: run.drift,
            inconsistent_services: run.inconsistent,
            failed_dumps: run.failed_dumps,
            failed: failed.collect(),
            programmed,
            rules,
            no_local_endpoints: PerFamily::from_fn(|family| {
                use crate::sync::TrafficPolicyLabel::{External, Internal};
                let sums = self.owners.sums[family];
                BTreeMap::from([
                    (Internal, u64::from(sums.no_local_internal)),
                    (External, u64::from(sums.no_local_external)),
                ])
            }),
            flow_cleanup,
        }
    }
}
