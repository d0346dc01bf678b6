//! What of a table is ours, and what was found in it.

use std::fmt;
use std::sync::Arc;

use crate::kernel::{ChainKey, ChainName, Digest, ItemClaims, TableId};
use crate::net::IpFamily;

/// A number that is another one after any change of the rules, as far as the kernel can tell without being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

/// A part of the kernel's state that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// A table of iptables.
    Table(TableId),
    /// All items of a family.
    Items(IpFamily),
}

impl Area {
    /// The family.
    pub fn family(self) -> IpFamily {
        match self {
            Area::Table(table) => table.family,
            Area::Items(family) => family,
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Area::Table(table) => write!(f, "{table}"),
            Area::Items(family) => write!(f, "{family} sets, virtual servers and addresses"),
        }
    }
}

/// Where a rule of a shared chain goes when it is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placement {
    /// In front of all others (`-I`).
    Head,
    /// Behind all others (`-A`).
    Tail,
}

/// One rule of a chain whose rules come and go one by one: identity is the chain and the rule's whole text, as
/// [`crate::kernel::Rule::render`] writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// The chain that holds it.
    pub chain: ChainKey,
    /// Its specification.
    pub spec: Arc<str>,
}

impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.chain, self.spec)
    }
}

/// To whom a chain belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainClass {
    /// Ours, and written as a whole: unknown rules in it are removed with the next write.
    Private,
    /// Ours, but its rules come and go one by one: unknown rules in it are stale and removed one by one.
    Shared,
    /// Not ours; the rules of ours in it are those whose exact text is wanted or [`Claims::jumps`] lists. All
    /// other rules are somebody else's and are never touched.
    Host,
    /// None of our business.
    Foreign,
}

/// What is ours, so that a restarted process recognises it and nothing else is touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Chains of known name, with their class. Both families alike.
    pub chains: Vec<(crate::kernel::Table, ChainName, ChainClass)>,
    /// Prefixes of private chains.
    pub prefixes: Vec<(crate::kernel::Table, &'static str)>,
    /// Prefixes of shared chains, which may begin with one of `prefixes`.
    pub shared_prefixes: Vec<(crate::kernel::Table, &'static str)>,
    /// Beginnings of names of chains, in an order in which they can be removed one after the other: a chain comes before those that it
    /// jumps to, and chains that are not named here come before all others.
    pub removal_order: Vec<String>,
    /// Rules in host chains that are ours: the jumps, as text. Both families alike.
    pub jumps: Vec<(crate::kernel::Table, ChainName, Arc<str>)>,
    /// What of the items is ours; `None`: none are looked at.
    pub items: Option<ItemClaims>,
}

impl Claims {
    /// The tables in which anything is claimed.
    pub fn tables(&self) -> std::collections::BTreeSet<crate::kernel::Table> {
        let chains = self.chains.iter().map(|(table, _, _)| *table);
        chains.chain(self.prefixes.iter().map(|(table, _)| *table)).collect()
    }

    /// To whom a chain of a table belongs.
    pub fn class(&self, table: TableId, name: &ChainName) -> ChainClass {
        if let Some((_, _, class)) = self.chains.iter().find(|(of, known, _)| *of == table.table && known == name) {
            return *class;
        }
        let has_one_of = |prefixes: &[(crate::kernel::Table, &'static str)]| {
            prefixes.iter().any(|(of, prefix)| *of == table.table && name.as_str().starts_with(prefix))
        };
        if has_one_of(&self.shared_prefixes) {
            ChainClass::Shared
        } else if has_one_of(&self.prefixes) {
            ChainClass::Private
        } else {
            ChainClass::Foreign
        }
    }

    /// The place of a chain in the order of removal.
    pub fn removal_place(&self, chain: &ChainName) -> usize {
        let place = self.removal_order.iter().position(|start| chain.as_str().starts_with(&**start));
        place.map_or(0, |place| place + 1)
    }

    /// Whether a rule of a host chain is one of our jumps.
    pub fn is_jump(&self, table: TableId, chain: &ChainName, spec: &str) -> bool {
        self.jumps.iter().any(|(of, host, known)| *of == table.table && host == chain && **known == *spec)
    }
}

/// One chain that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundChain {
    /// A private chain: what it does. A rule in it that cannot be read makes a digest that equals no wanted one.
    Private(Digest),
    /// A shared chain: its rules in order, in canonical text ([`crate::kernel::Rule::render`] of the parsed rule;
    /// a rule that cannot be parsed as it was printed).
    Shared(Vec<Arc<str>>),
    /// A host chain: those of its rules that are our jumps, in order, in canonical text.
    Host(Vec<Arc<str>>),
}

/// Everything of ours that one table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableDump {
    /// The chains, in the order in which they were printed.
    pub chains: Vec<(ChainName, FoundChain)>,
}
