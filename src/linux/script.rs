//! The input of one `iptables-restore` run for a transaction, and which operation each line came from. Pure.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use crate::kernel::{ChainBody, ChainKey, ChainName, Op, Placement, RuleKey, Table};
use crate::net::IpFamily;

/// Restore input for one family.
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

/// Writes the input for the operations of one family. Rejecting and dropping rules of the filter table are added
/// before the nat table changes, and removed after it: at no moment does traffic get through that neither the old nor
/// the new state lets through. Empty sections are left out.
pub(super) fn build(transaction: &[Op], family: IpFamily) -> Script {
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
    let mut script = Script::default();
    // A first fill is tens of megabytes: growing by doubling would need as much again.
    script.text.reserve_exact(transaction.iter().map(size_of).sum());
    script.section(Table::Filter, &before);
    script.section(Table::Nat, &nat);
    script.section(Table::Filter, &after);
    script.section(Table::Mangle, &mangle);
    script
}

/// About the bytes that an operation takes as text; a little more rather than less.
fn size_of(op: &Op) -> usize {
    const WORDS: usize = 16;
    match op {
        Op::CreateChain(_) | Op::DeleteChain(_) => 2 * (ChainName::MAX + WORDS),
        Op::ReplaceChain(chain, body) => {
            let rules = body.digest.rules as usize;
            body.text.len() + (rules + 1) * (chain.name.as_str().len() + WORDS)
        }
        Op::RewriteChain(chain, rules) => {
            let prefix = chain.name.as_str().len() + WORDS;
            prefix + rules.iter().map(|rule| rule.spec.len() + prefix).sum::<usize>()
        }
        Op::InsertRule(rule, _) | Op::DeleteRule(rule) => rule.spec.len() + ChainName::MAX + WORDS,
        Op::DeleteFlow(_) | Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_) => 0,
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

    fn operations(&self) -> Vec<usize> {
        let mut all: Vec<usize> = Vec::new();
        all.extend(self.create.iter().map(|part| part.0));
        all.extend(self.replace.iter().map(|part| part.0));
        all.extend(self.rewrite.iter().map(|part| part.0));
        all.extend(self.delete_rule.iter().map(|part| part.0));
        all.extend(self.insert.iter().map(|part| part.0));
        all.extend(self.append.iter().map(|part| part.0));
        all.extend(self.delete_chain.iter().map(|part| part.0));
        all.sort_unstable();
        all
    }
}

/// The comment line behind a section: its echo says that the section is committed.
pub(super) fn marker(section: usize) -> String {
    format!("# committed {section}")
}

impl Script {
    fn section(&mut self, table: Table, parts: &Parts<'_>) {
        let operations = parts.operations();
        if operations.is_empty() {
            return;
        }
        self.line(None, format_args!("*{table}"));
        let first = self.origins.len();
        // Declaring a chain makes it or empties it; both have to happen before any rule names it.
        for (origin, chain, _) in &parts.replace {
            self.line(Some(*origin), format_args!(":{} - [0:0]", chain.name));
        }
        for (origin, chain, _) in &parts.rewrite {
            self.line(Some(*origin), format_args!(":{} - [0:0]", chain.name));
        }
        // Unlike a declaration, this fails when the chain exists.
        for (origin, chain) in &parts.create {
            self.line(Some(*origin), format_args!("-N {}", chain.name));
        }
        for (origin, chain, body) in &parts.replace {
            for rule in body.text.lines() {
                self.line(Some(*origin), format_args!("-A {} {rule}", chain.name));
            }
        }
        for (origin, chain, rules) in &parts.rewrite {
            for rule in *rules {
                self.line(Some(*origin), format_args!("-A {} {}", chain.name, rule.spec));
            }
        }
        // Before the insertions: a rule that moves to the head must not lose its new copy, which is found first.
        for (origin, rule) in &parts.delete_rule {
            self.line(Some(*origin), format_args!("-D {} {}", rule.chain.name, rule.spec));
        }
        for (origin, rule) in &parts.insert {
            self.line(Some(*origin), format_args!("-I {} {}", rule.chain.name, rule.spec));
        }
        for (origin, rule) in &parts.append {
            self.line(Some(*origin), format_args!("-A {} {}", rule.chain.name, rule.spec));
        }
        // All are emptied before the first is removed, as they may jump to each other. A declaration would
        // make a missing chain, and its removal a silent success.
        for (origin, chain) in &parts.delete_chain {
            self.line(Some(*origin), format_args!("-F {}", chain.name));
        }
        for (origin, chain) in &parts.delete_chain {
            self.line(Some(*origin), format_args!("-X {}", chain.name));
        }
        self.line(None, format_args!("COMMIT"));
        let commit = self.origins.len();
        let number = self.sections.len();
        self.line(None, format_args!("{}", marker(number)));
        self.sections.push(Section { first, commit, operations });
    }

    fn line(&mut self, origin: Option<usize>, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(text);
        self.text.push('\n');
        self.origins.push(origin);
    }

    /// The text of a line, counted from 1.
    pub(super) fn line_text(&self, number: usize) -> &str {
        number.checked_sub(1).and_then(|index| self.text.lines().nth(index)).unwrap_or_default()
    }

    /// The operation that a line came from, counted from 1.
    pub(super) fn origin(&self, number: usize) -> Option<usize> {
        number.checked_sub(1).and_then(|index| self.origins.get(index).copied()).flatten()
    }
}
