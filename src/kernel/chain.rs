//! Names of tables and chains, and the content of a chain.

use std::fmt;
use std::hash::{BuildHasher, Hasher};

use crate::net::IpFamily;

/// An iptables table that portolan writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `filter`.
    Filter,
    /// `nat`.
    Nat,
    /// `mangle`, where kube-proxy leaves a chain behind.
    Mangle,
}

impl Table {
    /// The tables in which rules for Services stand, in the order in which they are read.
    pub const SERVING: [Table; 2] = [Table::Filter, Table::Nat];

    /// The name as iptables writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A table of one family: the unit that is dumped, and that a transaction changes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    /// The family: `iptables` or `ip6tables`.
    pub family: IpFamily,
    /// The table.
    pub table: Table,
}

impl TableId {
    /// All four in which rules for Services stand, IPv4 first.
    pub fn serving() -> impl Iterator<Item = TableId> {
        IpFamily::ALL
            .into_iter()
            .flat_map(|family| Table::SERVING.into_iter().map(move |table| TableId { family, table }))
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.table)
    }
}

/// The name of a chain: 1 to 28 bytes of printable ASCII without spaces (`XT_EXTENSION_MAXNAMELEN` is 29 with its
/// terminating zero). Held inline: a big node has tens of thousands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainName {
    bytes: [u8; ChainName::MAX],
    len: u8,
}

/// A chain name that no kernel would take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a chain name: 1 to 28 printable ASCII characters without spaces are allowed")]
pub struct ChainNameError(pub String);

impl ChainName {
    /// The longest name, in bytes.
    pub const MAX: usize = 28;

    /// Checks a name.
    pub fn new(name: &str) -> Result<ChainName, ChainNameError> {
        let valid = (1..=Self::MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
        if !valid {
            return Err(ChainNameError(name.to_owned()));
        }
        let mut bytes = [0; Self::MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(ChainName { bytes, len: name.len() as u8 })
    }

    /// A name known at compile time; an invalid one does not compile when used in a `const`.
    pub const fn fixed(name: &str) -> ChainName {
        let source = name.as_bytes();
        assert!(!source.is_empty() && source.len() <= Self::MAX, "a chain name has 1 to 28 bytes");
        let mut bytes = [0; Self::MAX];
        let mut at = 0;
        while at < source.len() {
            assert!(source[at].is_ascii_graphic(), "a chain name is printable ASCII without spaces");
            bytes[at] = source[at];
            at += 1;
        }
        ChainName { bytes, len: source.len() as u8 }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A chain of one table of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainKey {
    /// The family and table.
    pub table: TableId,
    /// The name within the table.
    pub name: ChainName,
}

impl ChainKey {
    /// A chain of a table.
    pub fn new(family: IpFamily, table: Table, name: ChainName) -> ChainKey {
        ChainKey { table: TableId { family, table }, name }
    }
}

impl fmt::Display for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// What a chain does, as a number: equal for two spellings of the same rules. Comments in chains that are ours as a
/// whole do not count, so that a chain written with comments by kube-proxy on a small cluster need not be rewritten on a
/// big one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// A hash over the rules.
    pub hash: u64,
    /// The number of rules.
    pub rules: u32,
}

/// Builds a [`Digest`] rule by rule.
#[derive(Clone)]
pub struct DigestBuilder {
    hasher: foldhash::fast::FoldHasher<'static>,
    rules: u32,
}

impl Default for DigestBuilder {
    fn default() -> Self {
        let hasher = foldhash::fast::FixedState::with_seed(0x706f_7274_6f6c_616e).build_hasher();
        DigestBuilder { hasher, rules: 0 }
    }
}

impl DigestBuilder {
    /// Adds the next rule: its text without comment.
    pub fn rule(&mut self, text: &str) {
        self.hasher.write(text.as_bytes());
        self.hasher.write_u8(b'\n');
        self.rules = self.rules.saturating_add(1);
    }

    /// The digest of all rules so far.
    pub fn finish(&self) -> Digest {
        Digest { hash: self.hasher.finish(), rules: self.rules }
    }
}

/// The whole content of a chain, ready to be written.
#[derive(Clone, PartialEq, Eq)]
pub struct ChainBody {
    /// One rule specification per line, each ended by a newline, without `-A CHAIN`.
    pub text: Box<str>,
    /// What it does, and the number of rules.
    pub digest: Digest,
}

impl fmt::Debug for ChainBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ChainBody {
    /// Renders rules.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a crate::kernel::Rule>) -> ChainBody {
        let mut text = String::new();
        let mut digest = DigestBuilder::default();
        let mut bare = String::new();
        for rule in rules {
            rule.render(&mut text);
            text.push('\n');
            bare.clear();
            rule.render_without_comment(&mut bare);
            digest.rule(&bare);
        }
        ChainBody { text: text.into(), digest: digest.finish() }
    }
}
