//! A kernel in memory that fails like the real one.
//!
//! It interprets the same operations with the same preconditions, the same order within a transaction and the same
//! all-or-nothing per section as `iptables-restore`. `tests/linux_conformance.rs` runs one suite on this and on the real one, so
//! that it is never kinder than the kernel.

mod items;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use crate::kernel::census::Census;
use crate::kernel::chain::DigestBuilder;
use crate::kernel::{
    ChainClass, ChainKey, ChainName, Claims, Connections, ErrorKind, Fingerprint, Flow, FlowQuery, FoundChain,
    ItemClaims, ItemDump, ItemKey, Kernel, KernelError, Op, Placement, RealKey, Rule, RuleKey, SetKey, Table,
    TableDump, TableId, VirtualKey,
};
use crate::net::{IpFamily, PerFamily};

pub use items::FakeItems;

type Chains = BTreeMap<ChainName, Vec<String>>;

/// Family, place in the transaction, table.
type Section = (IpFamily, u8, TableId);

/// The fake. Public fields are what a test may set up or look at.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    /// Chains of each table with their rules as text.
    pub tables: BTreeMap<TableId, Chains>,
    /// Conntrack entries.
    pub flows: Vec<Flow>,
    /// Addresses of the node's interfaces.
    pub addresses: PerFamily<Vec<IpAddr>>,
    /// Sets, virtual servers and so on.
    pub items: FakeItems,
    /// Transactions with iptables operations so far: each stands for one process.
    pub transactions: u64,
    /// Dumps so far: each stands for one process.
    pub dumps: u64,
    /// Readings of all items so far.
    pub item_dumps: u64,
    /// Changes so far, by operations or through [`FakeKernel::chain_mut`].
    pub generation: u64,
}

impl Default for FakeKernel {
    fn default() -> FakeKernel {
        let built_in = |table: TableId| -> Chains {
            let names: &[&str] = match table.table {
                Table::Filter => &["INPUT", "FORWARD", "OUTPUT"],
                Table::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
                Table::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            };
            names.iter().filter_map(|name| Some((ChainName::new(name).ok()?, Vec::new()))).collect()
        };
        FakeKernel {
            tables: TableId::serving().map(|table| (table, built_in(table))).collect(),
            flows: Vec::new(),
            addresses: PerFamily::default(),
            items: FakeItems::default(),
            transactions: 0,
            dumps: 0,
            item_dumps: 0,
            generation: 0,
        }
    }
}

impl FakeKernel {
    /// The rules of a chain; `None`: there is no such chain.
    pub fn chain(&self, key: &ChainKey) -> Option<&[String]> {
        self.tables.get(&key.table)?.get(&key.name).map(Vec::as_slice)
    }

    /// The rules of a chain, to change them as a foreign hand would.
    pub fn chain_mut(&mut self, key: &ChainKey) -> &mut Vec<String> {
        self.generation += 1;
        self.tables.entry(key.table).or_default().entry(key.name).or_default()
    }

    /// Everything that the tables hold, in one canonical text: for comparing two kernels. The order of rules in chains
    /// whose rules come and go one by one depends on history and is sorted away.
    pub fn canonical_text(&self, claims: &Claims) -> String {
        let mut out = String::new();
        for (table, chains) in &self.tables {
            for (name, rules) in chains {
                let mut lines: Vec<String> = match claims.class(*table, name) {
                    ChainClass::Private => rules.iter().map(|spec| bare(spec)).collect(),
                    ChainClass::Shared | ChainClass::Host | ChainClass::Foreign => rules.clone(),
                };
                if claims.class(*table, name) != ChainClass::Private {
                    lines.sort_unstable();
                }
                out.push_str(&format!("{table} {name}\n"));
                lines.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
            }
        }
        self.items.all.iter().for_each(|(key, state)| out.push_str(&format!("{key}{state}\n")));
        out
    }

    /// Carries out the operations of one section: all of them, or none.
    fn run_section(&mut self, table: TableId, ops: &[(usize, &Op)], results: &mut [Result<(), KernelError>]) -> bool {
        let base = self.tables.entry(table).or_default();
        let mut draft = Draft { base: &*base, changed: BTreeMap::new(), items: &self.items };
        for (_, op) in ops {
            match op {
                Op::ReplaceChain(chain, _) | Op::RewriteChain(chain, _) => {
                    draft.changed.insert(chain.name, Some(Vec::new()));
                }
                Op::DeleteChain(_)
                | Op::CreateChain(_)
                | Op::InsertRule(..)
                | Op::DeleteRule(_)
                | Op::DeleteFlow(_)
                | Op::AddItem(..)
                | Op::ChangeItem(..)
                | Op::DeleteItem(_) => {}
            }
        }
        let mut ordered = ops.to_vec();
        ordered.sort_by_key(|(_, op)| step(op));
        let (removals, first): (Vec<_>, Vec<_>) =
            ordered.into_iter().partition(|(_, op)| matches!(op, Op::DeleteChain(_)));
        let mut failed = first.iter().find_map(|(at, op)| Some((*at, draft.run(op).err()?)));
        // All are emptied before the first is removed, as they may jump to each other.
        for (_, op) in removals.iter().filter(|_| failed.is_none()) {
            if let Op::DeleteChain(chain) = op
                && draft.exists(&chain.name)
            {
                draft.changed.insert(chain.name, Some(Vec::new()));
            }
        }
        if failed.is_none() {
            failed = removals.iter().find_map(|(at, op)| Some((*at, draft.run(op).err()?)));
        }
        match failed {
            None => {
                for (name, rules) in draft.changed {
                    match rules {
                        Some(rules) => drop(base.insert(name, rules)),
                        None => drop(base.remove(&name)),
                    }
                }
                true
            }
            Some((culprit, error)) => {
                for (at, op) in ops {
                    results[*at] = Err(aborted(op));
                }
                results[culprit] = Err(error);
                false
            }
        }
    }
}

/// A table in the middle of a section: what changed, over what was there.
struct Draft<'a> {
    base: &'a Chains,
    /// `None`: removed.
    changed: BTreeMap<ChainName, Option<Vec<String>>>,
    items: &'a FakeItems,
}

impl Draft<'_> {
    fn exists(&self, name: &ChainName) -> bool {
        self.changed.get(name).map_or_else(|| self.base.contains_key(name), Option::is_some)
    }

    fn rules_mut(&mut self, name: &ChainName) -> Option<&mut Vec<String>> {
        let base = self.base;
        self.changed.entry(*name).or_insert_with(|| base.get(name).cloned()).as_mut()
    }

    fn holds_set(&self, name: &str) -> bool {
        SetKey::of_name(name).is_some_and(|set| self.items.all.contains_key(&ItemKey::Set(set)))
    }

    fn is_referenced(&self, name: &ChainName) -> bool {
        let unchanged =
            self.base.iter().filter(|(other, _)| !self.changed.contains_key(*other)).map(|(_, rules)| rules);
        unchanged.chain(self.changed.values().flatten()).flatten().any(|spec| jump(spec) == Some(name.as_str()))
    }

    fn add(&mut self, op: &Op, rule: &RuleKey, placement: Placement) -> Result<(), KernelError> {
        if Rule::parse(&rule.spec).is_err() {
            return fail(op, ErrorKind::Rejected, format!("bad rule: {}", rule.spec));
        }
        if let Some(missing) = sets(&rule.spec).find(|name| !self.holds_set(name)) {
            return fail(op, ErrorKind::Rejected, format!("no set {missing}"));
        }
        let target = jump(&rule.spec).and_then(|name| ChainName::new(name).ok());
        if let Some(missing) = target.filter(|name| !self.exists(name)) {
            return fail(op, ErrorKind::NotFound, format!("no chain {missing}"));
        }
        let Some(rules) = self.rules_mut(&rule.chain.name) else {
            return fail(op, ErrorKind::NotFound, "no such chain".into());
        };
        match placement {
            Placement::Head => rules.insert(0, rule.spec.to_string()),
            Placement::Tail => rules.push(rule.spec.to_string()),
        }
        Ok(())
    }

    /// Carries out one operation. A chain to be written or removed has been emptied beforehand.
    fn run(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::CreateChain(chain) if self.exists(&chain.name) => fail(op, ErrorKind::Exists, "chain exists".into()),
            Op::CreateChain(chain) => {
                self.changed.insert(chain.name, Some(Vec::new()));
                Ok(())
            }
            Op::ReplaceChain(chain, body) => body
                .text
                .lines()
                .try_for_each(|spec| self.add(op, &RuleKey { chain: *chain, spec: spec.into() }, Placement::Tail)),
            Op::RewriteChain(_, rules) => rules.iter().try_for_each(|rule| self.add(op, rule, Placement::Tail)),
            Op::InsertRule(rule, placement) => self.add(op, rule, *placement),
            Op::DeleteRule(rule) => {
                let rules = self.rules_mut(&rule.chain.name);
                let found = rules.and_then(|rules| {
                    let at = rules.iter().position(|spec| **spec == *rule.spec)?;
                    Some(rules.remove(at))
                });
                found.map_or_else(|| fail(op, ErrorKind::NotFound, "no such rule".into()), |_| Ok(()))
            }
            Op::DeleteChain(chain) if !self.exists(&chain.name) => {
                fail(op, ErrorKind::NotFound, "no such chain".into())
            }
            Op::DeleteChain(chain) if self.is_referenced(&chain.name) => {
                fail(op, ErrorKind::Busy, "chain is in use".into())
            }
            Op::DeleteChain(chain) => {
                self.changed.insert(chain.name, None);
                Ok(())
            }
            Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => Ok(()),
        }
    }
}

fn fail(op: &Op, kind: ErrorKind, what: String) -> Result<(), KernelError> {
    Err(KernelError::new(kind, format!("{op}: {what}")))
}

/// The chain that a rule jumps to.
fn jump(spec: &str) -> Option<&str> {
    let target = spec.rsplit_once("-j ")?.1.split(' ').next()?;
    let built_in = ["ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT"];
    (!built_in.contains(&target)).then_some(target)
}

/// The sets that a rule looks into.
fn sets(spec: &str) -> impl Iterator<Item = &str> {
    spec.split("--match-set ").skip(1).filter_map(|rest| rest.split(' ').next())
}

/// The order of operations within a section.
fn step(op: &Op) -> u8 {
    match op {
        Op::CreateChain(_) => 0,
        Op::ReplaceChain(..) => 1,
        Op::RewriteChain(..) => 2,
        Op::DeleteRule(_) => 3,
        Op::InsertRule(..) => 4,
        Op::DeleteChain(_) => 5,
        Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => 6,
    }
}

/// The section of a transaction that an operation belongs to: what adds to the filter table, then everything of the nat
/// table, then what removes from the filter table. `None` for operations that are on their own.
fn section(op: &Op, moves: bool) -> Option<Section> {
    let (table, removes) = match op {
        Op::CreateChain(chain) | Op::ReplaceChain(chain, _) | Op::RewriteChain(chain, _) => (chain.table, false),
        Op::InsertRule(rule, _) => (rule.chain.table, moves),
        Op::DeleteRule(rule) => (rule.chain.table, true),
        Op::DeleteChain(chain) => (chain.table, true),
        Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => return None,
    };
    let place = match (table.table, removes) {
        (Table::Filter, false) => 0,
        (Table::Nat, _) => 1,
        (Table::Filter, true) => 2,
        (Table::Mangle, _) => 3,
    };
    Some((table.family, place, table))
}

fn deleted_rule(op: &Op) -> Option<&RuleKey> {
    if let Op::DeleteRule(rule) = op { Some(rule) } else { None }
}

fn aborted(op: &Op) -> KernelError {
    KernelError::new(ErrorKind::Aborted, format!("{op}: another operation of the transaction failed"))
}

/// A rule's text without its comment.
fn bare(spec: &str) -> String {
    let mut out = String::new();
    match Rule::parse(spec) {
        Ok(rule) => rule.render_without_comment(&mut out),
        Err(_) => out.push_str(spec),
    }
    out
}

impl Kernel for FakeKernel {
    fn dump(&mut self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError> {
        self.dumps += 1;
        let mut dump = TableDump::default();
        for (name, rules) in self.tables.get(&table).into_iter().flatten() {
            let specs = || rules.iter().map(|spec| spec.as_str().into());
            let found = match claims.class(table, name) {
                ChainClass::Foreign => continue,
                ChainClass::Private => {
                    let mut digest = DigestBuilder::default();
                    rules.iter().for_each(|spec| digest.rule(&bare(spec)));
                    FoundChain::Private(digest.finish())
                }
                ChainClass::Shared => FoundChain::Shared(specs().collect()),
                ChainClass::Host => {
                    FoundChain::Host(specs().filter(|spec| claims.is_jump(table, name, spec)).collect())
                }
            };
            dump.chains.push((*name, found));
        }
        Ok(dump)
    }

    fn items(&mut self, family: IpFamily, _: &ItemClaims) -> Result<ItemDump, KernelError> {
        self.item_dumps += 1;
        Ok(self.items.dump(family, &self.addresses[family]))
    }

    fn census(&mut self, families: PerFamily<bool>) -> Option<Census> {
        Some(self.items.census(families))
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<Vec<(RealKey, Connections)>, KernelError> {
        Ok(self.items.of_server(server))
    }

    fn flows(&mut self, query: &FlowQuery) -> Result<Vec<Flow>, KernelError> {
        Ok(self.flows.iter().filter(|flow| query.admits(flow)).cloned().collect())
    }

    fn addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, KernelError> {
        Ok(self.addresses[family].clone())
    }

    fn fingerprint(&mut self) -> Option<Fingerprint> {
        Some(Fingerprint(self.generation))
    }

    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        self.generation += 1;
        let mut results: Vec<Result<(), KernelError>> = vec![Ok(()); transaction.len()];
        let mut sections: BTreeMap<Section, Vec<(usize, &Op)>> = BTreeMap::new();
        let deleted: HashSet<&RuleKey> = transaction.iter().filter_map(deleted_rule).collect();
        for (at, op) in transaction.iter().enumerate() {
            // A rule that is deleted and inserted is put in its place after the removal of its copies.
            let moves = matches!(op, Op::InsertRule(rule, _) if deleted.contains(rule));
            match (section(op, moves), op) {
                (Some(section), _) => sections.entry(section).or_default().push((at, op)),
                (None, Op::DeleteFlow(flow)) => match self.flows.iter().position(|known| *known == **flow) {
                    Some(found) => drop(self.flows.swap_remove(found)),
                    None => results[at] = Err(KernelError::new(ErrorKind::NotFound, format!("{op}: no such flow"))),
                },
                (None, _) => {}
            }
        }
        let mut failed: Option<IpFamily> = None;
        let mut families: Vec<IpFamily> = Vec::new();
        for ((family, _, table), ops) in sections {
            if !families.contains(&family) {
                families.push(family);
            }
            if failed == Some(family) {
                ops.iter().for_each(|(at, op)| results[*at] = Err(aborted(op)));
            } else if !self.run_section(table, &ops, &mut results) {
                failed = Some(family);
            }
        }
        for (at, op) in transaction.iter().enumerate().filter(|(_, op)| op.is_item()) {
            let tables = &self.tables;
            let in_use = |name: &str| {
                tables.values().flat_map(Chains::values).flatten().any(|spec| sets(spec).any(|set| set == name))
            };
            results[at] = self.items.apply(op, in_use, &self.addresses);
        }
        self.transactions += families.len() as u64;
        results
    }
}
