//! Reading the kernel, and carrying out what is pending in an order in which nothing is ever open or empty that should not be.

use std::collections::{BTreeSet, HashSet};

use crate::kernel::{Area, ErrorKind, Kernel, Table, TableId};
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;
use crate::sync::engine::{Engine, Run};
use crate::sync::item_plan::{PlannedItem, Room};
use crate::sync::lower::Said;
use crate::sync::owner::OwnerId;
use crate::sync::program::{Plan, Plans, Programmer, Suspicion, plan_owner};

/// How often the hand-over from another mode is put off since the kernel does not take something of a Service.
const PATIENCE: u32 = 5;

/// With so many Services the ledger is written before the content of chains is made, if all of that will be held at once: what stays
/// and what goes would else lie between each other, and the memory of what goes could not be given back.
const APART_ABOVE: usize = 1000;

/// Owners whose operations are kept back.
type Held = PerFamily<BTreeSet<OwnerId>>;

/// Those who have failed so far.
fn failed(run: &Run) -> Held {
    PerFamily::from_fn(|family| run.tally.failures[family].keys().copied().collect())
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// Compiles and carries out. The base goes first: if it fails, nothing can stand on it.
    pub(super) fn program(&mut self, names: &BTreeSet<ServiceName>, run: &mut Run) {
        let mut plans = Plans::default();
        let hands_over = PerFamily::from_fn(|family| self.takes_over_from_another_mode(family));
        if std::mem::take(&mut self.work.base) {
            let fragment = self.backend.base(&self.context);
            self.plan(OwnerId::BASE, fragment, Said::Now, &mut plans, run);
            self.plan_items(OwnerId::BASE, &mut plans);
            let later = PerFamily::from_fn(|family| match hands_over[family] {
                true => plans.families[family].split_off_visible(&self.ledger),
                false => Plan::default(),
            });
            self.commit(std::mem::take(&mut plans), &HashSet::new(), PerFamily::default(), run);
            plans.families = later;
        }
        self.count_endpoints(names);
        let quarantined: HashSet<OwnerId> =
            self.owners.waiting().filter(|(_, _, retry)| retry.culprit).map(|(id, _, _)| id).collect();
        let mut said = Said::Now;
        if names.len() > APART_ABOVE && self.options.operations_per_transaction > names.len() {
            names.iter().for_each(|name| self.want(name));
            said = Said::Before;
        }
        let mut names = names.iter().cloned().map(|name| (name, said));
        while let Some((name, said)) = names.next().or_else(|| Some((self.disputes.pop()?, Said::Now))) {
            let Some((id, fragment)) = self.compile(&name) else { continue };
            run.compiled += 1;
            self.plan(id, fragment, said, &mut plans, run);
            for family in IpFamily::ALL {
                if self.may_write(family, run) && !hands_over[family] {
                    self.programmer(run, &quarantined).commit_chains_if_full(family, &mut plans.families[family]);
                }
            }
        }
        for id in run.touched.clone() {
            self.update_drains(id);
        }
        self.keep_leftovers();
        if self.drains.take_changed() {
            run.touched.insert(OwnerId::DRAINS);
        }
        for id in run.touched.clone() {
            if let Some(owner) = self.owners.get(id) {
                plan_owner(&mut plans, &self.ledger, id, owner, Vec::new());
            }
            self.plan_items(id, &mut plans);
        }
        self.commit(plans, &quarantined, hands_over, run);
        for family in IpFamily::ALL {
            if !self.may_write(family, run) {
                self.hold_back(family, run);
            }
        }
    }

    fn plan_items(&self, id: OwnerId, plans: &mut Plans) {
        if let Some(owner) = self.owners.get(id) {
            plans.items.add_owner(&self.ledger.items, id, owner);
        }
    }

    /// Carries out: sets before the rules that look into them, rules before the virtual servers that they guard, virtual servers
    /// before their addresses; then removals, and what tells whose a virtual server is last of all.
    ///
    /// Where another mode's rules still carry the traffic, rules are changed only when the virtual servers are ready to
    /// take over.
    fn commit(&mut self, mut plans: Plans, quarantined: &HashSet<OwnerId>, hands_over: PerFamily<bool>, run: &mut Run) {
        plans.items.finish(&self.ledger.items, &self.context.node_name);
        let (items, mut chains) = (plans.items, plans.families);
        self.commit_items(items.entries, &items.room, &failed(run), run);
        for family in IpFamily::ALL.into_iter().filter(|family| !hands_over[*family]) {
            self.commit_chains(family, std::mem::take(&mut chains[family]), quarantined, run);
        }
        let unguarded = failed(run);
        self.commit_items(items.servers, &items.room, &unguarded, run);
        for family in IpFamily::ALL.into_iter().filter(|family| hands_over[*family]) {
            self.hand_over(family, std::mem::take(&mut chains[family]), quarantined, run);
        }
        // What goes does not depend on what was to come, but the last part tells whose the first one is.
        let mut held = self.commit_items(items.removals, &items.room, &Held::default(), run);
        IpFamily::ALL.iter().for_each(|family| held[*family].extend(&unguarded[*family]));
        self.commit_items(items.entry_removals, &items.room, &held, run);
    }

    /// Swaps the rules of another mode for those of this one, and removes what is left of the former when the latter stand. If not
    /// all virtual servers are ready, the other mode goes on for now; single ones that the kernel does not take are not waited
    /// for without end.
    fn hand_over(&mut self, family: IpFamily, mut plan: Plan, quarantined: &HashSet<OwnerId>, run: &mut Run) {
        let attempts = self.owners.get(OwnerId::BASE).and_then(|base| base.retry.as_ref()).map_or(0, |it| it.attempts);
        let failures = &mut run.tally.failures[family];
        let waits = |culprit: bool| !culprit || attempts < PATIENCE;
        if let Some((error, _)) = failures.values().find(|(_, culprit)| waits(*culprit)).cloned() {
            failures.entry(OwnerId::BASE).or_insert((error, false));
        }
        let leftovers = plan.split_off_leftovers();
        self.commit_chains(family, plan, quarantined, run);
        self.commit_chains(family, leftovers, quarantined, run);
    }

    fn commit_chains(&mut self, family: IpFamily, plan: Plan, quarantined: &HashSet<OwnerId>, run: &mut Run) {
        if self.may_write(family, run) {
            self.programmer(run, quarantined).commit(family, plan);
        }
    }

    /// Returns who failed.
    fn commit_items(&mut self, mut planned: Vec<PlannedItem>, room: &Room, held: &Held, run: &mut Run) -> Held {
        planned.retain(|item| {
            let mut families = item.families().filter(|family| self.may_write(*family, run));
            families.any(|family| !held[family].contains(&item.owner))
        });
        self.programmer(run, &HashSet::new()).commit_items(planned, room)
    }

    /// Whether a family's chains are those of a mode that serves without items, while this one serves with them.
    fn takes_over_from_another_mode(&self, family: IpFamily) -> bool {
        self.serves_items && self.ledger.has_strays(&self.owners, family, Table::Nat)
    }

    /// All areas of the enabled families of which there is something to read.
    pub(super) fn areas(&self, of: Suspicion) -> BTreeSet<Area> {
        let families = IpFamily::ALL.into_iter().filter(|family| self.context.families[*family]);
        let tables = self.claimed_tables.iter().filter(|_| of.tables);
        let tables: Vec<Table> = tables.copied().collect();
        families
            .flat_map(|family| {
                let tables = tables.iter().map(move |table| Area::Table(TableId { family, table: *table }));
                tables.chain(of.items.then_some(Area::Items(family)))
            })
            .collect()
    }

    /// Reads areas. Owners for whom that left something to do are touched, so that this sync repairs it.
    pub(super) fn dump(&mut self, areas: BTreeSet<Area>, run: &mut Run) {
        if areas.is_empty() {
            return;
        }
        let start = self.clock.now();
        // What the base wants decides which host chains count as found.
        let base = self.backend.base(&self.context);
        self.ledger.set_wanted(&mut self.owners, OwnerId::BASE, base);
        let (claims, removable) = (self.backend.claims(), self.backend.removable());
        for area in areas {
            let drift = match area {
                Area::Table(table) => self
                    .kernel
                    .dump(table, &claims)
                    .map(|dump| self.ledger.observe(&mut self.owners, table, dump, &removable)),
                Area::Items(family) => match &claims.items {
                    Some(items) => self
                        .kernel
                        .items(family, items)
                        .map(|dump| self.ledger.items.observe(&mut self.owners, family, dump)),
                    None => continue,
                },
            };
            match drift {
                Ok(drift) => {
                    let first = self.observed.insert(area);
                    self.work.items_left.remove(&area);
                    if !first && drift > 0 {
                        *run.drift.entry(area).or_default() += drift;
                    }
                }
                // Nothing of the other mode's can be found; this one does not need it.
                Err(error) if matches!(area, Area::Items(_)) && !self.serves_items => {
                    tracing::debug!(%area, %error, "cannot look for leftovers");
                    if error.kind != ErrorKind::Unsupported {
                        run.unread_leftovers.push((area, error));
                    }
                }
                Err(error) => run.failed_dumps.push((area, error)),
            }
        }
        run.touched.extend(self.ledger.unsettled_owners());
        run.touched.insert(OwnerId::STRAYS);
        let now = self.clock.now();
        self.work.items_due = self.serves_items.then(|| now + self.options.check_interval);
        run.dump_duration += now.saturating_duration_since(start);
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

    /// Whether everything of a family was ever read, and the base stands.
    fn may_write(&self, family: IpFamily, run: &Run) -> bool {
        let mut tables = self.claimed_tables.iter();
        let read = tables.all(|table| self.observed.contains(&Area::Table(TableId { family, table: *table })))
            && (!self.serves_items || self.observed.contains(&Area::Items(family)));
        read && !run.tally.failures[family].contains_key(&OwnerId::BASE)
    }

    /// Nothing was written in this family: everyone with something to do there waits, for the reason that the base or
    /// the dump gave.
    fn hold_back(&mut self, family: IpFamily, run: &mut Run) {
        let dump_error = run.failed_dumps.iter().find(|(area, _)| area.family() == family).map(|(_, error)| error);
        let base_error = run.tally.failures[family].get(&OwnerId::BASE).map(|(error, _)| error);
        let Some(error) = dump_error.or(base_error).cloned() else { return };
        for id in &run.touched {
            if !self.ledger.settled(&self.owners, *id) {
                run.tally.failures[family].entry(*id).or_insert_with(|| (error.clone(), false));
            }
        }
    }
}
