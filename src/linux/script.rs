//! The input of one `iptables-restore` run for a transaction, and which operation each line came from. Pure.

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::sync::Arc;

use crate::kernel::{ChainBody, ChainKey, Op, Placement, RuleKey, Table};
use crate::net::IpFamily;

/// Restore input for one family, line by line: that of a first fill is tens of megabytes, and is never held as a whole unless
/// the tool complains.
pub(super) struct Draft<'a> {
    /// Those that have operations, in order.
    sections: Vec<(Table, Parts<'a>)>,
}

/// The same written out, to find in it what a complaint is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Script {
    /// The input.
    pub text: String,
    /// For each line the operation that it came from.
    pub origins: Vec<Option<usize>>,
    /// The sections, in order; each is one kernel transaction.
    pub sections: Vec<Section>,
}

/// From `*table` to `COMMIT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// The number of the first line, counted from 1.
    pub first: usize,
    /// The number of the `COMMIT` line.
    pub commit: usize,
    /// The operations in it.
    pub operations: Vec<usize>,
}

/// The operations of one section, by what has to come first.
#[derive(Default)]
struct Parts<'a> {
    create: Vec<(usize, &'a ChainKey)>,
    replace: Vec<(usize, &'a ChainKey, &'a Arc<ChainBody>)>,
    rewrite: Vec<(usize, &'a ChainKey, &'a [RuleKey])>,
    delete_rule: Vec<(usize, &'a RuleKey)>,
    insert: Vec<(usize, &'a RuleKey)>,
    append: Vec<(usize, &'a RuleKey)>,
    delete_chain: Vec<(usize, &'a ChainKey)>,
}

/// The chain that an operation is about; `None` if it is not one for iptables.
pub(super) fn chain_of(op: &Op) -> Option<&ChainKey> {
    match op {
        Op::CreateChain(chain) | Op::ReplaceChain(chain, _) | Op::RewriteChain(chain, _) | Op::DeleteChain(chain) => {
            Some(chain)
        }
        Op::InsertRule(rule, _) | Op::DeleteRule(rule) => Some(&rule.chain),
        Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => None,
    }
}

impl<'a> Draft<'a> {
    /// The input for the operations of one family. Rejecting and dropping rules of the filter table are added
    /// before the nat table changes, and removed after it: at no moment does traffic get through that neither the old nor
    /// the new state lets through. Empty sections are left out.
    pub(super) fn of(transaction: &'a [Op], family: IpFamily) -> Draft<'a> {
        let (mut before, mut nat, mut after) = (Parts::default(), Parts::default(), Parts::default());
        let mut mangle = Parts::default();
        let deleted: HashSet<&RuleKey> = transaction.iter().filter_map(deleted_rule).collect();
        for (index, op) in transaction.iter().enumerate() {
            let Some(chain) = chain_of(op).filter(|chain| chain.table.family == family) else { continue };
            let removes = match op {
                Op::DeleteRule(_) | Op::DeleteChain(_) => true,
                // It is put in its place, so that it has to come after the removal of its copies.
                Op::InsertRule(rule, _) => deleted.contains(rule),
                Op::CreateChain(_) | Op::ReplaceChain(..) | Op::RewriteChain(..) => false,
                Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => false,
            };
            let parts = match chain.table.table {
                Table::Nat => &mut nat,
                Table::Mangle => &mut mangle,
                Table::Filter if removes => &mut after,
                Table::Filter => &mut before,
            };
            parts.add(index, op);
        }
        let sections = [(Table::Filter, before), (Table::Nat, nat), (Table::Filter, after), (Table::Mangle, mangle)];
        Draft { sections: sections.into_iter().filter(|(_, parts)| parts.operations().next().is_some()).collect() }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// The operations in it.
    pub(super) fn operations(&self) -> impl Iterator<Item = usize> {
        self.sections.iter().flat_map(|(_, parts)| parts.operations())
    }

    /// Its lines. Each section ends with a comment, whose echo says that it is committed.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.sections.iter().enumerate().flat_map(|(number, (table, parts))| {
            let line = |words| std::iter::once(Line { origin: None, words });
            let head = line(Words::Table(*table));
            let end = line(Words::Commit).chain(line(Words::Marker(number)));
            head.chain(parts.lines()).chain(end)
        })
    }

    /// The whole.
    pub(super) fn script(&self) -> Script {
        let mut script = Script::default();
        let mut first = 0;
        for line in self.lines() {
            // Writing to a String cannot fail.
            let _ = writeln!(script.text, "{line}");
            script.origins.push(line.origin);
            let count = script.origins.len();
            match line.words {
                Words::Table(_) => first = count,
                Words::Commit => {
                    let parts = self.sections.get(script.sections.len()).map(|(_, parts)| parts);
                    let mut operations: Vec<usize> = parts.into_iter().flat_map(Parts::operations).collect();
                    operations.sort_unstable();
                    script.sections.push(Section { first, commit: count, operations });
                }
                _ => {}
            }
        }
        script
    }
}

/// One line of it.
pub(super) struct Line<'a> {
    /// The operation that it came from.
    origin: Option<usize>,
    words: Words<'a>,
}

enum Words<'a> {
    Table(Table),
    Declare(&'a ChainKey),
    New(&'a ChainKey),
    Append(&'a ChainKey, &'a str),
    Insert(&'a RuleKey),
    Delete(&'a RuleKey),
    Flush(&'a ChainKey),
    Remove(&'a ChainKey),
    Commit,
    Marker(usize),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Words::Table(table) => write!(f, "*{table}"),
            Words::Declare(chain) => write!(f, ":{} - [0:0]", chain.name),
            Words::New(chain) => write!(f, "-N {}", chain.name),
            Words::Append(chain, rule) => write!(f, "-A {} {rule}", chain.name),
            Words::Insert(rule) => write!(f, "-I {} {}", rule.chain.name, rule.spec),
            Words::Delete(rule) => write!(f, "-D {} {}", rule.chain.name, rule.spec),
            Words::Flush(chain) => write!(f, "-F {}", chain.name),
            Words::Remove(chain) => write!(f, "-X {}", chain.name),
            Words::Commit => f.write_str("COMMIT"),
            Words::Marker(section) => f.write_str(&marker(*section)),
        }
    }
}

fn deleted_rule(op: &Op) -> Option<&RuleKey> {
    match op {
        Op::DeleteRule(rule) => Some(rule),
        _ => None,
    }
}

impl<'a> Parts<'a> {
    fn add(&mut self, index: usize, op: &'a Op) {
        match op {
            Op::CreateChain(chain) => self.create.push((index, chain)),
            Op::ReplaceChain(chain, body) => self.replace.push((index, chain, body)),
            Op::RewriteChain(chain, rules) => self.rewrite.push((index, chain, rules)),
            Op::InsertRule(rule, Placement::Head) => self.insert.push((index, rule)),
            Op::InsertRule(rule, Placement::Tail) => self.append.push((index, rule)),
            Op::DeleteRule(rule) => self.delete_rule.push((index, rule)),
            Op::DeleteChain(chain) => self.delete_chain.push((index, chain)),
            Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => {}
        }
    }

    /// In no order.
    fn operations(&self) -> impl Iterator<Item = usize> {
        let chains = self.create.iter().chain(&self.delete_chain).map(|part| part.0);
        let contents = self.replace.iter().map(|part| part.0).chain(self.rewrite.iter().map(|part| part.0));
        let rules = self.delete_rule.iter().chain(&self.insert).chain(&self.append).map(|part| part.0);
        chains.chain(contents).chain(rules)
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let line = |origin: &usize, words| Line { origin: Some(*origin), words };
        // Declaring a chain makes it or empties it; both have to happen before any rule names it.
        let replaced = self.replace.iter().map(move |(origin, chain, _)| line(origin, Words::Declare(chain)));
        let rewritten = self.rewrite.iter().map(move |(origin, chain, _)| line(origin, Words::Declare(chain)));
        // Unlike a declaration, this fails when the chain exists.
        let created = self.create.iter().map(move |(origin, chain)| line(origin, Words::New(chain)));
        let contents = self.replace.iter().flat_map(move |(origin, chain, body)| {
            body.text.lines().map(move |rule| line(origin, Words::Append(chain, rule)))
        });
        let rewritten_contents = self.rewrite.iter().flat_map(move |(origin, chain, rules)| {
            rules.iter().map(move |rule| line(origin, Words::Append(chain, &rule.spec)))
        });
        // Before the insertions: a rule that moves to the head must not lose its new copy, which is found first.
        let deleted = self.delete_rule.iter().map(move |(origin, rule)| line(origin, Words::Delete(rule)));
        let inserted = self.insert.iter().map(move |(origin, rule)| line(origin, Words::Insert(rule)));
        let appended =
            self.append.iter().map(move |(origin, rule)| line(origin, Words::Append(&rule.chain, &rule.spec)));
        // All are emptied before the first is removed, as they may jump to each other. A declaration would
        // make a missing chain, and its removal a silent success.
        let emptied = self.delete_chain.iter().map(move |(origin, chain)| line(origin, Words::Flush(chain)));
        let removed = self.delete_chain.iter().map(move |(origin, chain)| line(origin, Words::Remove(chain)));
        let chains = replaced.chain(rewritten).chain(created).chain(contents).chain(rewritten_contents);
        chains.chain(deleted).chain(inserted).chain(appended).chain(emptied).chain(removed)
    }
}

/// The comment line behind a section: its echo says that the section is committed.
pub(super) fn marker(section: usize) -> String {
    format!("# committed {section}")
}

impl Script {
    /// The text of a line, counted from 1.
    pub(super) fn line_text(&self, number: usize) -> &str {
        number.checked_sub(1).and_then(|index| self.text.lines().nth(index)).unwrap_or_default()
    }

    /// The operation that a line came from, counted from 1.
    pub(super) fn origin(&self, number: usize) -> Option<usize> {
        number.checked_sub(1).and_then(|index| self.origins.get(index).copied()).flatten()
    }
}
