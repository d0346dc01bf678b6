//! Carrying out what is pending: transactions, the isolation of an object that the kernel does not take, and the
//! recording of every result.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::kernel::{ChainBody, ChainKey, ErrorKind, Kernel, KernelError, Op, Placement, RuleKey};
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;
use crate::sync::item_plan::{ItemPlan, PlannedItem, Room, operation};
use crate::sync::ledger::{ChainState, Ledger, RuleCounts, rules_written};
use crate::sync::owner::{Owner, OwnerId};
use crate::sync::tracked::Pending;

/// After this many failed transactions in one commit, what is left fails as a whole and is tried again later.
const MAX_ISOLATION_ROUNDS: usize = 64;

/// A shared chain is rewritten as a whole if more rules change than this, and than a quarter of those wanted.
const REWRITE_ABOVE: usize = 100;

/// So many operations on items are handed to the kernel layer together. Each stands for itself; what is sent and answered is
/// held as often as it is spelled.
const ITEMS_AT_ONCE: usize = 2048;

/// An operation and who wants it.
#[derive(Clone, Debug)]
pub(crate) struct OwnedOp {
    pub(crate) owner: OwnerId,
    pub(crate) op: Op,
}

/// Pending operations of one family, by phase.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Chains to create or write; a chain comes after those that it jumps to.
    pub(crate) chains: Vec<OwnedOp>,
    /// Rules to add to shared and host chains.
    pub(crate) inserts: Vec<(OwnerId, RuleKey, Placement)>,
    /// Rules to remove from them.
    pub(crate) deletes: Vec<(OwnerId, RuleKey)>,
    /// Chains to remove.
    pub(crate) chain_deletes: Vec<(OwnerId, ChainKey)>,
    seen_rules: HashSet<RuleKey>,
    seen_chains: HashSet<ChainKey>,
}

impl Plan {
    fn len(&self) -> usize {
        self.chains.len() + self.inserts.len() + self.deletes.len() + self.chain_deletes.len()
    }

    /// Splits off everything but the making of chains that are not there yet, to which nothing leads.
    pub(crate) fn split_off_visible(&mut self, ledger: &Ledger) -> Plan {
        let exists = |owned: &OwnedOp| match &owned.op {
            Op::CreateChain(chain) | Op::ReplaceChain(chain, _) => ledger.chains.known(chain).is_some(),
            _ => true,
        };
        let (visible, new) = std::mem::take(&mut self.chains).into_iter().partition(exists);
        let new = Plan { chains: new, ..Plan::default() };
        Plan { chains: visible, ..std::mem::replace(self, new) }
    }

    /// Splits off the removal of what nobody wants.
    pub(crate) fn split_off_leftovers(&mut self) -> Plan {
        let is_stray = |(owner, _): &(OwnerId, RuleKey)| *owner == OwnerId::STRAYS;
        let (deletes, kept) = std::mem::take(&mut self.deletes).into_iter().partition(is_stray);
        self.deletes = kept;
        Plan { deletes, chain_deletes: std::mem::take(&mut self.chain_deletes), ..Plan::default() }
    }
}

/// Everything that is pending, of all kinds.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    /// Chains and rules.
    pub(crate) families: PerFamily<Plan>,
    /// Items of both families.
    pub(crate) items: ItemPlan,
}

/// Adds what is pending for one owner in chains and rules to the plans. `bodies` holds the content of all his private chains that have to be
/// written.
pub(crate) fn plan_owner(
    plans: &mut Plans,
    ledger: &Ledger,
    id: OwnerId,
    owner: &Owner,
    bodies: Vec<(ChainKey, ChainBody)>,
) {
    let mut bodies: HashMap<ChainKey, ChainBody> = bodies.into_iter().collect();
    for chain in owner.chains.iter() {
        let chain = &chain;
        let plan = &mut plans.families[chain.table.family];
        match ledger.chains.pending(chain) {
            Some(Pending::Remove) if plan.seen_chains.insert(*chain) => plan.chain_deletes.push((id, *chain)),
            Some(Pending::Add(ChainState::SHARED)) if plan.seen_chains.insert(*chain) => {
                plan.chains.push(OwnedOp { owner: id, op: Op::CreateChain(*chain) });
            }
            Some(Pending::Add(_) | Pending::Change(_)) => {
                if let Some(body) = bodies.remove(chain) {
                    plan.chains.push(OwnedOp { owner: id, op: Op::ReplaceChain(*chain, Arc::new(body)) });
                }
            }
            Some(Pending::Remove) | None => {}
        }
    }
    for rule in &owner.rules {
        let plan = &mut plans.families[rule.chain.table.family];
        let Some(pending) = ledger.rules.pending(rule) else { continue };
        if !plan.seen_rules.insert(rule.clone()) {
            continue;
        }
        // Of a rule that stands there more than once all copies go, and one comes back where it belongs.
        plan.deletes.extend((0..ledger.copies(rule)).map(|_| (id, rule.clone())));
        if let Pending::Add(wanted) | Pending::Change(wanted) = pending {
            plan.inserts.push((id, rule.clone(), wanted.placement));
        }
    }
}

/// What one round of programming gathers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) operations: BTreeMap<(&'static str, Option<ErrorKind>), u64>,
    pub(crate) transactions: u64,
    pub(crate) failed_restores: PerFamily<u64>,
    pub(crate) rules: RuleCounts,
    pub(crate) apply_duration: Duration,
    /// Who failed, with the error and whether the kernel named him.
    pub(crate) failures: PerFamily<BTreeMap<OwnerId, (KernelError, bool)>>,
    /// Set when a transaction failed for a reason that the next one would meet as well, such as a lock or a deadline: what is
    /// left of this sync waits, instead of waiting for each piece.
    pub(crate) stopped: PerFamily<Option<KernelError>>,
    /// What has to be read, since it is not as we thought, or we don't know what took effect.
    pub(crate) suspect: Suspicion,
}

/// Which parts of the kernel's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspicion {
    /// The tables of iptables.
    pub(crate) tables: bool,
    /// The items.
    pub(crate) items: bool,
}

impl Suspicion {
    /// Whether there is any.
    pub(crate) fn any(self) -> bool {
        self.tables || self.items
    }
}

impl Tally {
    fn fail(&mut self, family: IpFamily, owner: OwnerId, error: &KernelError, culprit: bool) {
        let failure = self.failures[family].entry(owner).or_insert_with(|| (error.clone(), culprit));
        if culprit && !failure.1 {
            *failure = (error.clone(), true);
        }
    }
}

/// The executing half of the engine: everything that sends operations.
pub(crate) struct Programmer<'a, K, C> {
    pub(crate) kernel: &'a mut K,
    pub(crate) clock: &'a C,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) tally: &'a mut Tally,
    /// The most operations in one transaction.
    pub(crate) limit: usize,
    /// Owners that the kernel refused before: they get transactions of their own.
    pub(crate) quarantined: &'a HashSet<OwnerId>,
}

impl<K: Kernel, C: Clock> Programmer<'_, K, C> {
    /// Commits chains early, while more is being compiled, if there are enough for a transaction. Until rules lead to
    /// them, new chains carry no traffic, and changed ones lead to chains that are there already.
    pub(crate) fn commit_chains_if_full(&mut self, family: IpFamily, plan: &mut Plan) {
        while plan.chains.len() >= self.limit {
            // What is left over waits for more: a small transaction costs nearly as much as a full one.
            let rest = plan.chains.split_off(self.limit);
            self.commit_in_pieces(family, std::mem::replace(&mut plan.chains, rest));
        }
    }

    /// Commits everything that is left: one transaction if it is small, else chains, then rules, then removals.
    pub(crate) fn commit(&mut self, family: IpFamily, mut plan: Plan) {
        if plan.len() <= self.limit && !self.rewrites_anything(&plan) {
            let mut ops = std::mem::take(&mut plan.chains);
            ops.extend(self.inserts(&plan));
            ops.extend(deletes(&plan));
            ops.extend(chain_deletes(&plan));
            return self.commit_in_pieces(family, ops);
        }
        if plan.len() <= self.limit && self.quarantined.is_empty() && self.tally.stopped[family].is_none() {
            if self.commit_at_once(family, &mut plan) {
                return;
            }
            plan.chains.retain(|owned| self.is_pending(&owned.op));
        }
        self.commit_in_pieces(family, std::mem::take(&mut plan.chains));
        self.commit_rules(family, &plan);
        let mut removals = chain_deletes(&plan);
        removals.retain(|owned| self.is_pending(&owned.op));
        self.commit_in_pieces(family, removals);
    }

    /// Tries everything in one transaction, with shared chains rewritten as a whole: without a limit, as for the legacy
    /// tools, which swap the whole table each time, that is the cheapest first fill. False: it failed, and the caller has to
    /// find out for whom. Nothing is copied that is large: this is when most memory is needed.
    fn commit_at_once(&mut self, family: IpFamily, plan: &mut Plan) -> bool {
        let rewrites = self.rewrites(family, plan);
        let rewritten: HashSet<ChainKey> = rewrites.iter().map(|(chain, _)| *chain).collect();
        let stays = |owned: &OwnedOp| match &owned.op {
            Op::InsertRule(rule, _) | Op::DeleteRule(rule) => !rewritten.contains(&rule.chain),
            Op::CreateChain(chain) => !rewritten.contains(chain),
            Op::ReplaceChain(..) | Op::RewriteChain(..) | Op::DeleteChain(_) | Op::DeleteFlow(_) => true,
            Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => true,
        };
        let single = self.inserts(plan).into_iter().chain(deletes(plan)).chain(chain_deletes(plan));
        let single: Vec<Op> = single.filter(|owned| stays(owned)).map(|owned| owned.op).collect();
        let (chains, covered): (Vec<OwnedOp>, Vec<OwnedOp>) =
            std::mem::take(&mut plan.chains).into_iter().partition(|owned| stays(owned));
        let (owners, mut ops) = unzip(chains);
        ops.extend(single);
        ops.extend(rewrites.into_iter().map(|(chain, rules)| Op::RewriteChain(chain, rules)));
        if self.apply(family, &ops).iter().all(Result::is_ok) {
            return true;
        }
        plan.chains = covered;
        plan.chains.extend(owners.into_iter().zip(ops).map(|(owner, op)| OwnedOp { owner, op }));
        false
    }

    /// Whether an operation of a plan has still to be done.
    fn is_pending(&self, op: &Op) -> bool {
        match op {
            Op::CreateChain(chain) | Op::ReplaceChain(chain, _) => self.ledger.chains.pending(chain).is_some(),
            Op::DeleteChain(chain) => self.ledger.chains.known(chain).is_some(),
            Op::InsertRule(rule, _) => {
                matches!(self.ledger.rules.pending(rule), Some(Pending::Add(_) | Pending::Change(_)))
            }
            Op::DeleteRule(rule) => {
                matches!(self.ledger.rules.pending(rule), Some(Pending::Remove | Pending::Change(_)))
            }
            Op::RewriteChain(..) | Op::DeleteFlow(_) => true,
            Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => true,
        }
    }

    /// The shared chains of which so much changes that they are rewritten, with the rules that they get: those that are
    /// there already and those of this plan whose owners have not failed.
    fn rewrites(&self, family: IpFamily, plan: &Plan) -> Vec<(ChainKey, Vec<RuleKey>)> {
        let mut changes: BTreeMap<ChainKey, usize> = BTreeMap::new();
        let inserted = plan.inserts.iter().map(|(_, rule, _)| rule.chain);
        for chain in inserted.chain(plan.deletes.iter().map(|(_, rule)| rule.chain)) {
            *changes.entry(chain).or_default() += 1;
        }
        let failures = &self.tally.failures[family];
        let ready: HashSet<&RuleKey> = plan
            .inserts
            .iter()
            .filter(|(owner, _, _)| !failures.contains_key(owner) && !self.quarantined.contains(owner))
            .map(|(_, rule, _)| rule)
            .collect();
        changes
            .into_iter()
            .filter(|(chain, count)| *count > REWRITE_ABOVE && self.ledger.chains.wanted(chain).is_some())
            .map(|(chain, count)| (count, chain, self.ledger.wanted_rules(&chain)))
            .filter(|(count, _, wanted)| *count > wanted.len() / 4)
            .map(|(_, chain, mut wanted)| {
                wanted.retain(|rule| self.ledger.rules.known(rule).is_some() || ready.contains(rule));
                (chain, wanted)
            })
            .collect()
    }

    fn rewrites_anything(&self, plan: &Plan) -> bool {
        plan.inserts.len() + plan.deletes.len() > REWRITE_ABOVE
    }

    /// Rules that lead to something come before those go that led to the same by another way: another layout has them elsewhere.
    fn commit_rules(&mut self, family: IpFamily, plan: &Plan) {
        let gains: HashSet<ChainKey> = plan.inserts.iter().map(|(_, rule, _)| rule.chain).collect();
        let (gaining, losing): (Vec<_>, Vec<_>) =
            self.rewrites(family, plan).into_iter().partition(|(chain, _)| gains.contains(chain));
        self.rewrite(family, gaining);
        let mut inserts = self.inserts(plan);
        inserts.retain(|owned| self.is_pending(&owned.op));
        if !losing.is_empty() {
            self.commit_in_pieces(family, std::mem::take(&mut inserts));
            self.rewrite(family, losing);
        }
        let mut deletes = deletes(plan);
        deletes.retain(|owned| self.is_pending(&owned.op));
        inserts.append(&mut deletes);
        self.commit_in_pieces(family, inserts);
    }

    /// If the kernel refuses, the rules stay pending, and are added and removed one by one to find the one that it does not take.
    fn rewrite(&mut self, family: IpFamily, chains: Vec<(ChainKey, Vec<RuleKey>)>) {
        if !chains.is_empty() {
            let ops: Vec<Op> = chains.into_iter().map(|(chain, rules)| Op::RewriteChain(chain, rules)).collect();
            self.apply(family, &ops);
        }
    }

    fn inserts(&self, plan: &Plan) -> Vec<OwnedOp> {
        plan.inserts
            .iter()
            .map(|(owner, rule, placement)| OwnedOp { owner: *owner, op: Op::InsertRule(rule.clone(), *placement) })
            .collect()
    }

    /// Commits operations in transactions of at most the limit; quarantined owners apart, each on its own.
    fn commit_in_pieces(&mut self, family: IpFamily, ops: Vec<OwnedOp>) {
        let (alone, together): (Vec<OwnedOp>, Vec<OwnedOp>) =
            ops.into_iter().partition(|owned| self.quarantined.contains(&owned.owner));
        let mut pieces: Vec<Vec<OwnedOp>> = Vec::new();
        for owned in together {
            match pieces.last_mut() {
                Some(piece) if piece.len() < self.limit => piece.push(owned),
                Some(_) | None => pieces.push(vec![owned]),
            }
        }
        let mut by_owner: BTreeMap<OwnerId, Vec<OwnedOp>> = BTreeMap::new();
        for owned in alone {
            by_owner.entry(owned.owner).or_default().push(owned);
        }
        for piece in pieces.into_iter().chain(by_owner.into_values()) {
            self.commit_isolating(family, piece);
        }
    }

    /// Commits one transaction. If it fails, finds whose operations the kernel does not take, and commits the rest
    /// without them.
    fn commit_isolating(&mut self, family: IpFamily, ops: Vec<OwnedOp>) {
        if let Some(error) = self.tally.stopped[family].clone() {
            ops.iter().for_each(|owned| self.tally.fail(family, owned.owner, &error, false));
            return;
        }
        let mut queue = vec![ops];
        let mut rounds = 0;
        let mut held = BTreeSet::new();
        while let Some(mut batch) = queue.pop() {
            let failures = &self.tally.failures[family];
            batch.retain(|owned| !failures.contains_key(&owned.owner) || held.contains(&owned.owner));
            if batch.is_empty() {
                continue;
            }
            let (owners, ops) = unzip(batch);
            let results = self.apply(family, &ops);
            let batch = owners.into_iter().zip(ops).map(|(owner, op)| OwnedOp { owner, op });
            let failed: Vec<(OwnedOp, KernelError)> =
                batch.zip(results).filter_map(|(owned, result)| Some((owned, result.err()?))).collect();
            if failed.is_empty() {
                continue;
            }
            rounds += 1;
            queue.extend(self.isolate(family, failed, rounds, &mut held));
        }
    }

    /// Books the failures of one transaction and returns what is to be tried again without them. `held`: owners who failed
    /// only in that a chain of theirs can't go, since something foreign leads to it. It carries no traffic of ours: what
    /// else they want goes on, above all the removal of rules.
    fn isolate(
        &mut self,
        family: IpFamily,
        failed: Vec<(OwnedOp, KernelError)>,
        rounds: usize,
        held: &mut BTreeSet<OwnerId>,
    ) -> Vec<Vec<OwnedOp>> {
        let owners: BTreeSet<OwnerId> = failed.iter().map(|(owned, _)| owned.owner).collect();
        let names_one = |kind: ErrorKind| {
            matches!(kind, ErrorKind::Rejected | ErrorKind::Exists | ErrorKind::NotFound | ErrorKind::Busy)
        };
        let hopeless = failed.iter().find(|(_, error)| !names_one(error.kind) && error.kind != ErrorKind::Aborted);
        if let Some((_, error)) = hopeless {
            // Not about one object: the lock, a missing program, no answer. All of it waits.
            for (owned, error) in &failed {
                self.tally.fail(family, owned.owner, error, false);
                if matches!(error.kind, ErrorKind::Unknown | ErrorKind::TimedOut) {
                    self.tally.suspect.tables = true;
                }
            }
            tracing::debug!(%error, %family, "transaction failed as a whole");
            self.tally.stopped[family] = Some(error.clone());
            return Vec::new();
        }
        let named = || failed.iter().filter(|(_, error)| names_one(error.kind));
        let in_use = |(owned, error): &(OwnedOp, KernelError)| -> bool {
            matches!(owned.op, Op::DeleteChain(_)) && error.kind == ErrorKind::Busy
        };
        let blamed = named().next().is_some();
        for (owned, error) in named() {
            self.tally.fail(family, owned.owner, error, true);
            self.tally.suspect.tables = true;
        }
        held.extend(named().map(|(owned, _)| owned.owner));
        held.retain(|owner| named().filter(|(owned, _)| owned.owner == *owner).all(in_use));
        let goes_on = |(owned, error): &(OwnedOp, KernelError)| match held.contains(&owned.owner) {
            // Strays have nothing to do with each other.
            true if owned.owner == OwnerId::STRAYS => !names_one(error.kind),
            // The others are most likely led to by the chain that has to stay.
            true => !matches!(owned.op, Op::DeleteChain(_)),
            false => !self.tally.failures[family].contains_key(&owned.owner),
        };
        let rest: Vec<(OwnedOp, KernelError)> = failed.into_iter().filter(goes_on).collect();
        if rounds >= MAX_ISOLATION_ROUNDS || (!blamed && owners.len() <= 1) {
            for (owned, error) in &rest {
                self.tally.fail(family, owned.owner, error, owners.len() <= 1);
                self.tally.suspect.tables = true;
            }
            return Vec::new();
        }
        let rest = rest.into_iter().map(|(owned, _)| owned);
        if blamed {
            return vec![rest.collect()];
        }
        // Nobody was named: halve by owner until the one who spoils it is alone.
        let first_half: BTreeSet<OwnerId> = owners.iter().copied().take(owners.len() / 2).collect();
        let (first, second) = rest.partition(|owned| first_half.contains(&owned.owner));
        vec![second, first]
    }

    /// Carries out what is pending for items, in this order. Each operation stands for itself: the others of its owner are not held
    /// back here. Returns who failed.
    pub(crate) fn commit_items(&mut self, planned: Vec<PlannedItem>, room: &Room) -> PerFamily<BTreeSet<OwnerId>> {
        let mut failed: PerFamily<BTreeSet<OwnerId>> = PerFamily::default();
        let mut pieces = planned.chunks(ITEMS_AT_ONCE);
        while let Some(piece) = pieces.next() {
            let items = &self.ledger.items;
            let (items, ops): (Vec<&PlannedItem>, Vec<Op>) =
                piece.iter().filter_map(|item| Some((item, operation(item, items, room)?))).unzip();
            let results = self.send(&ops);
            let hung =
                results.iter().find_map(|result| result.as_ref().err().filter(|it| it.kind == ErrorKind::TimedOut));
            // Each further piece would wait as long.
            let hung = hung.cloned();
            for (item, result) in items.into_iter().zip(results) {
                if let Err(error) = result {
                    self.book_item(item, &error, &mut failed);
                }
            }
            if let Some(error) = hung {
                pieces.by_ref().flatten().for_each(|item| self.book_item(item, &error, &mut failed));
            }
        }
        failed
    }

    /// Books what went wrong with an item.
    fn book_item(&mut self, item: &PlannedItem, error: &KernelError, failed: &mut PerFamily<BTreeSet<OwnerId>>) {
        let culprit = match error.kind {
            ErrorKind::Rejected | ErrorKind::Busy => true,
            ErrorKind::Exists | ErrorKind::NotFound => {
                self.tally.suspect.items = true;
                true
            }
            // What took effect is not known.
            ErrorKind::Unknown | ErrorKind::TimedOut | ErrorKind::Transient => {
                self.tally.suspect.items = true;
                false
            }
            // About the node and not about one object: no memory, no rights, a module that is gone.
            ErrorKind::NoSpace | ErrorKind::Unsupported | ErrorKind::Aborted | ErrorKind::Denied => false,
        };
        for family in item.families() {
            self.tally.fail(family, item.owner, error, culprit);
            failed[family].insert(item.owner);
        }
    }

    /// Sends one transaction of operations on chains and rules and records every result.
    fn apply(&mut self, family: IpFamily, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let results = self.send(ops);
        self.tally.transactions += 1;
        self.tally.failed_restores[family] += u64::from(results.iter().any(Result::is_err));
        results
    }

    /// Sends operations and records every result.
    fn send(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        if ops.is_empty() {
            return Vec::new();
        }
        let start = self.clock.now();
        let mut results = self.kernel.apply(ops);
        let missing = || Err(KernelError::new(ErrorKind::Unknown, "the kernel layer gave no result"));
        results.resize_with(ops.len(), missing);
        self.tally.apply_duration += self.clock.now().saturating_duration_since(start);
        for (op, result) in ops.iter().zip(&results) {
            let kind = result.as_ref().err().map(|error| error.kind);
            *self.tally.operations.entry((op.kind(), kind)).or_default() += 1;
            if result.is_ok() {
                self.ledger.record(op);
                if let (Some(table), written) = rules_written(op) {
                    self.tally.rules.entry(table).or_default().written += written;
                }
            }
        }
        results
    }
}

/// Operations by themselves, as the kernel layer takes them.
fn unzip(ops: impl IntoIterator<Item = OwnedOp>) -> (Vec<OwnerId>, Vec<Op>) {
    ops.into_iter().map(|owned| (owned.owner, owned.op)).unzip()
}

fn deletes(plan: &Plan) -> Vec<OwnedOp> {
    plan.deletes.iter().map(|(owner, rule)| OwnedOp { owner: *owner, op: Op::DeleteRule(rule.clone()) }).collect()
}

/// Backwards, chains come before those that they jump to, so that they can go in several transactions.
fn chain_deletes(plan: &Plan) -> Vec<OwnedOp> {
    plan.chain_deletes
        .iter()
        .rev()
        .map(|(owner, chain)| OwnedOp { owner: *owner, op: Op::DeleteChain(*chain) })
        .collect()
}
