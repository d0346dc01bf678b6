//! The ledger: every kernel object that is wanted or known to exist, with its owners.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU64;

use crate::backend::Fragment;
use crate::kernel::{
    ChainBody, ChainKey, Claims, Digest, FoundChain, Op, Placement, RuleKey, Table, TableDump, TableId,
};
use crate::net::IpFamily;
use crate::sync::TableRules;
use crate::sync::chains::Chains;
use crate::sync::items::Items;
use crate::sync::owner::{OwnerId, Owners};
use crate::sync::tracked::{Pending, State, Tracked};

/// A chain's content in eight bytes: 48 bits of its digest, and its number of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainState(NonZeroU64);

impl ChainState {
    /// A shared chain: it exists; its rules are tracked one by one.
    pub(crate) const SHARED: ChainState = ChainState(NonZeroU64::MIN);

    fn private(digest: Digest) -> ChainState {
        let packed = (digest.hash << 16) | u64::from(digest.rules.min(0xffff) as u16);
        // Zero and one would need 47 zero bits; they are moved out of the way of the niche and of SHARED.
        ChainState(NonZeroU64::new(packed.max(2)).unwrap_or(NonZeroU64::MAX))
    }

    fn rules(self) -> u64 {
        if self == ChainState::SHARED { 0 } else { self.0.get() & 0xffff }
    }
}

impl State for ChainState {
    fn same(&self, other: &Self) -> bool {
        self.0.get() >> 16 == other.0.get() >> 16
    }
}

/// A rule of a shared chain or host chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuleState {
    /// Where it is put. That does not matter once it is there.
    pub(crate) placement: Placement,
    /// How often it stands there: others may have added it again, and deleting a rule deletes one copy.
    pub(crate) copies: u32,
}

impl RuleState {
    fn once(placement: Placement) -> RuleState {
        RuleState { placement, copies: 1 }
    }
}

impl State for RuleState {
    fn same(&self, other: &Self) -> bool {
        self.copies == other.copies
    }
}

/// Chains and rules, wanted and known.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) chains: Chains,
    pub(crate) rules: Tracked<RuleKey, RuleState>,
    pub(crate) items: Items,
    /// Rules known to exist, by table, for the metrics.
    totals: HashMap<TableId, u64>,
}

impl Ledger {
    /// An empty one, with the claims that `items` has.
    pub(crate) fn new(items: Items) -> Ledger {
        Ledger { items, ..Ledger::default() }
    }

    /// Makes the fragment everything that the owner wants. Content of private chains that has to be written is
    /// returned; content that the kernel holds already is dropped.
    pub(crate) fn set_wanted(
        &mut self,
        owners: &mut Owners,
        id: OwnerId,
        fragment: Fragment,
    ) -> Vec<(ChainKey, ChainBody)> {
        let Some(owner) = owners.get_mut(id) else { return Vec::new() };
        self.items.set_wanted(id, owner, fragment.items);
        let old_chains = std::mem::take(&mut owner.chains);
        let old_rules = std::mem::take(&mut owner.rules);
        let mut bodies = Vec::new();
        for chain in fragment.shared_chains {
            self.chains.want(&chain, id, ChainState::SHARED);
            owner.chains.push(&chain);
        }
        for (chain, body) in fragment.chains {
            self.chains.want(&chain, id, ChainState::private(body.digest));
            if self.chains.pending(&chain).is_some() {
                bodies.push((chain, body));
            }
            owner.chains.push(&chain);
        }
        for (rule, placement) in fragment.rules {
            self.rules.want(&rule, id, RuleState::once(placement));
            owner.rules.push(rule);
        }
        let kept: HashSet<ChainKey> = owner.chains.iter().collect();
        let left: Vec<ChainKey> = old_chains.iter().filter(|chain| !kept.contains(chain)).collect();
        let kept: HashSet<&RuleKey> = owner.rules.iter().collect();
        let left_rules: Vec<RuleKey> = old_rules.into_iter().filter(|rule| !kept.contains(rule)).collect();
        for chain in left {
            self.chains.unwant(&chain, id);
            if self.chains.contains(&chain) {
                owner.chains.push(&chain);
            }
        }
        for rule in left_rules {
            self.rules.unwant(&rule, id);
            if self.rules.contains(&rule) {
                owner.rules.push(rule);
            }
        }
        owner.chains.shrink_to_fit();
        owner.rules.shrink_to_fit();
        bodies
    }

    /// Content of private chains in a fragment that has to be written.
    pub(crate) fn unwritten(&self, fragment: Fragment) -> Vec<(ChainKey, ChainBody)> {
        let chains = fragment.chains.into_iter();
        chains.filter(|(chain, _)| self.chains.pending(chain).is_some()).collect()
    }

    /// Takes out of an owner's lists what he neither wants nor has to remove any more.
    pub(crate) fn prune(&self, owners: &mut Owners, id: OwnerId) {
        if let Some(owner) = owners.get_mut(id) {
            let chains = &self.chains;
            owner.chains.retain(|chain| chains.wants(chain, id) || chains.pending(chain) == Some(Pending::Remove));
            let rules = &self.rules;
            owner.rules.retain(|rule| rules.wants(rule, id) || rules.pending(rule) == Some(Pending::Remove));
            owner.items.retain(|item| self.items.concerns(item, id));
        }
        owners.release(id);
    }

    /// Whether everything of an owner is in the kernel as he wants it.
    pub(crate) fn settled(&self, owners: &Owners, id: OwnerId) -> bool {
        owners.get(id).is_none_or(|owner| {
            owner.chains.iter().all(|chain| self.chains.pending(&chain).is_none())
                && owner.rules.iter().all(|rule| self.rules.pending(rule).is_none())
                && owner.items.iter().all(|item| self.items.settled(&item))
        })
    }

    /// Whether the owner wants exactly this fragment, as far as packets are concerned.
    pub(crate) fn is_wanted_like(&self, owners: &Owners, id: OwnerId, fragment: &Fragment) -> bool {
        let Some(owner) = owners.get(id) else { return false };
        let chains = owner.chains.iter().filter(|chain| self.chains.wants(chain, id)).count();
        let rules = owner.rules.iter().filter(|rule| self.rules.wants(rule, id)).count();
        let private = |(chain, body): &(ChainKey, ChainBody)| {
            let state = ChainState::private(body.digest);
            self.chains.wants(chain, id) && self.chains.wanted(chain).is_some_and(|wanted| wanted.same(&state))
        };
        chains == fragment.chains.len() + fragment.shared_chains.len()
            && rules == fragment.rules.len()
            && fragment.chains.iter().all(private)
            && fragment.rules.iter().all(|(rule, _)| self.rules.wants(rule, id))
            && self.items.is_wanted_like(id, owner, &fragment.items)
    }

    /// Owners of anything that is wanted and not as it should be. A pass over everything: for audits only.
    pub(crate) fn unsettled_owners(&self) -> BTreeSet<OwnerId> {
        let rules = self.rules.iter().filter(|(rule, _, _)| self.rules.pending(rule).is_some());
        self.chains
            .unsettled_owners()
            .chain(rules.flat_map(|(rule, _, _)| self.rules.owners(rule)))
            .chain(self.items.unsettled_owners())
            .collect()
    }

    /// Whether a table of a family holds chains that nobody wants: another mode has left them, and they may carry traffic.
    pub(crate) fn has_strays(&self, owners: &Owners, family: IpFamily, table: Table) -> bool {
        let table = TableId { family, table };
        let stray = |chain: &ChainKey| chain.table == table && self.chains.pending(chain) == Some(Pending::Remove);
        owners.get(OwnerId::STRAYS).is_some_and(|strays| strays.chains.iter().any(|chain| stray(&chain)))
    }

    /// An operation took effect.
    pub(crate) fn record(&mut self, op: &Op) {
        match op {
            Op::CreateChain(chain) => self.learn_chain(chain, Some(ChainState::SHARED)),
            Op::ReplaceChain(chain, body) => {
                self.learn_chain(chain, Some(ChainState::private(body.digest)));
            }
            Op::RewriteChain(chain, rules) => {
                self.learn_chain(chain, Some(ChainState::SHARED));
                let written: HashSet<&RuleKey> = rules.iter().collect();
                let others: Vec<RuleKey> = self
                    .rules
                    .iter()
                    .filter(|(rule, _, known)| rule.chain == *chain && known.is_some() && !written.contains(rule))
                    .map(|(rule, _, _)| rule.clone())
                    .collect();
                others.iter().for_each(|rule| self.learn_copies(rule, 0));
                rules.iter().for_each(|rule| self.learn_copies(rule, 1));
            }
            Op::InsertRule(rule, _) => self.learn_copies(rule, self.copies(rule).saturating_add(1)),
            Op::DeleteRule(rule) => self.learn_copies(rule, self.copies(rule).saturating_sub(1)),
            Op::DeleteChain(chain) => self.learn_chain(chain, None),
            Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => self.items.record(op),
            Op::DeleteFlow(_) => {}
        }
    }

    /// Takes a dump for the truth about its table. Returns how many objects were other than known, and gives what is
    /// ours and wanted by nobody to [`OwnerId::STRAYS`].
    ///
    /// Rules in host chains that nobody wants count only if they are `removable`: others may well be somebody else's, like
    /// a rule that kubelet writes with the same text.
    pub(crate) fn observe(&mut self, owners: &mut Owners, table: TableId, dump: TableDump, removable: &Claims) -> u64 {
        let mut chains: HashMap<ChainKey, ChainState> = HashMap::new();
        let mut rules: HashMap<RuleKey, u32> = HashMap::new();
        let mut count = |rule: RuleKey| *rules.entry(rule).or_default() += 1;
        for (name, found) in dump.chains {
            let chain = ChainKey { table, name };
            match found {
                FoundChain::Private(digest) => {
                    chains.insert(chain, ChainState::private(digest));
                }
                FoundChain::Shared(specs) => {
                    chains.insert(chain, ChainState::SHARED);
                    specs.into_iter().for_each(|spec| count(RuleKey { chain, spec }));
                }
                FoundChain::Host(specs) => {
                    // A host chain is never ours to remove, so that it counts only where somebody needs it to exist.
                    if self.chains.wanted(&chain).is_some() {
                        chains.insert(chain, ChainState::SHARED);
                    }
                    let found = specs.into_iter().map(|spec| RuleKey { chain, spec });
                    let ours = |rule: &RuleKey| {
                        self.rules.wanted(rule).is_some() || removable.is_jump(table, &name, &rule.spec)
                    };
                    found.filter(ours).for_each(&mut count);
                }
            }
        }
        let known_chains: Vec<ChainKey> = self.chains.keys().filter(|key| key.table == table).collect();
        let known_rules: Vec<RuleKey> =
            self.rules.iter().filter(|(key, _, _)| key.chain.table == table).map(|(key, _, _)| key.clone()).collect();
        let mut drift = 0;
        for chain in known_chains {
            let found = chains.remove(&chain);
            drift += u64::from(!same(self.chains.known(&chain), found));
            self.learn_chain(&chain, found);
        }
        for rule in known_rules {
            let found = rules.remove(&rule).unwrap_or(0);
            drift += u64::from(self.copies(&rule) != found);
            self.learn_copies(&rule, found);
        }
        drift += (chains.len() + rules.len()) as u64;
        let Some(strays) = owners.get_mut(OwnerId::STRAYS) else { return drift };
        // As all owners have them: a chain comes after those that it jumps to.
        let mut chains: Vec<(ChainKey, ChainState)> = chains.into_iter().collect();
        chains.sort_by_key(|(chain, _)| std::cmp::Reverse(removable.removal_place(&chain.name)));
        for (chain, state) in chains {
            self.learn_chain(&chain, Some(state));
            strays.chains.push(&chain);
        }
        for (rule, copies) in rules {
            self.learn_copies(&rule, copies);
            strays.rules.push(rule);
        }
        drift
    }

    /// The rules known to exist in a table.
    pub(crate) fn total(&self, table: TableId) -> u64 {
        self.totals.get(&table).copied().unwrap_or(0)
    }

    /// All rules that are wanted in a chain, in the order in which they are to stand.
    pub(crate) fn wanted_rules(&self, chain: &ChainKey) -> Vec<RuleKey> {
        let mut rules: Vec<(Placement, RuleKey)> = self
            .rules
            .iter()
            .filter(|(rule, _, _)| rule.chain == *chain)
            .filter_map(|(rule, wanted, _)| Some((wanted?.placement, rule.clone())))
            .collect();
        rules.sort_unstable();
        rules.into_iter().map(|(_, rule)| rule).collect()
    }

    fn learn_chain(&mut self, chain: &ChainKey, known: Option<ChainState>) {
        let before = self.chains.learn(chain, known);
        let total = self.totals.entry(chain.table).or_default();
        *total = (*total + known.map_or(0, ChainState::rules)).saturating_sub(before.map_or(0, ChainState::rules));
    }

    /// How many copies of a rule the kernel is known to hold.
    pub(crate) fn copies(&self, rule: &RuleKey) -> u32 {
        self.rules.known(rule).map_or(0, |known| known.copies)
    }

    fn learn_copies(&mut self, rule: &RuleKey, copies: u32) {
        // Where it stands is not known; as it is wanted, so that the value is the wanted one.
        let placement = self.rules.wanted(rule).map_or(Placement::Head, |wanted| wanted.placement);
        let known = (copies > 0).then_some(RuleState { placement, copies });
        let before = self.rules.learn(rule, known).map_or(0, |before| before.copies);
        let total = self.totals.entry(rule.chain.table).or_default();
        *total = (*total + u64::from(copies)).saturating_sub(u64::from(before));
    }
}

fn same<V: State>(known: Option<V>, found: Option<V>) -> bool {
    match (known, found) {
        (Some(known), Some(found)) => known.same(&found),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Rules that an operation writes, for the metrics.
pub(crate) fn rules_written(op: &Op) -> (Option<TableId>, u64) {
    match op {
        Op::ReplaceChain(chain, body) => (Some(chain.table), u64::from(body.digest.rules)),
        Op::RewriteChain(chain, rules) => (Some(chain.table), rules.len() as u64),
        Op::InsertRule(rule, _) => (Some(rule.chain.table), 1),
        Op::CreateChain(_) | Op::DeleteRule(_) | Op::DeleteChain(_) | Op::DeleteFlow(_) => (None, 0),
        Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => (None, 0),
    }
}

/// Numbers of rules per table, for the report.
pub(crate) type RuleCounts = std::collections::BTreeMap<TableId, TableRules>;
