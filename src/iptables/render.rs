//! Fragments as one input for `iptables-restore`, and as chains to trace packets through.

use std::collections::HashMap;

use crate::backend::Fragment;
use crate::kernel::trace::RuleSet;
use crate::kernel::{ChainBody, ChainKey, Placement, RuleParseError, Table};
use crate::net::IpFamily;

/// The rules of one shared or host chain.
#[derive(Default)]
struct Rules<'a> {
    heads: Vec<&'a str>,
    tails: Vec<&'a str>,
}

/// One table, chains in the order in which they are first named.
#[derive(Default)]
struct Content<'a> {
    declared: Vec<ChainKey>,
    order: Vec<ChainKey>,
    rules: HashMap<ChainKey, Rules<'a>>,
    bodies: Vec<(ChainKey, &'a ChainBody)>,
}

/// One complete input for `iptables-restore --noflush` or `ip6tables-restore --noflush`: the tables filter and nat of a
/// family, with every rule where it ends up if the fragments are written to an untouched host in this order. Chains that
/// are not ours are not declared, so that loading it adds to them.
pub fn restore_text<'a>(family: IpFamily, fragments: impl IntoIterator<Item = &'a Fragment>) -> String {
    let mut filter = Content::default();
    let mut nat = Content::default();
    for fragment in fragments {
        for (table, content) in [(Table::Filter, &mut filter), (Table::Nat, &mut nat)] {
            content.add(fragment, |chain| chain.table.family == family && chain.table.table == table);
        }
    }
    let mut out = String::new();
    filter.write(Table::Filter, &mut out);
    nat.write(Table::Nat, &mut out);
    out
}

/// Fragments as chains through which packets can be traced.
///
/// # Errors
/// A rule that is not one of ours; cannot happen with fragments of [`crate::iptables::IptablesBackend`].
pub fn rule_set<'a>(fragments: impl IntoIterator<Item = &'a Fragment>) -> Result<RuleSet, RuleParseError> {
    let mut rules = RuleSet::default();
    for fragment in fragments {
        fragment.shared_chains.iter().for_each(|chain| rules.add_empty(*chain));
        for (chain, body) in &fragment.chains {
            rules.add_chain(*chain, body)?;
        }
        for (key, placement) in &fragment.rules {
            rules.add_rule(key, *placement)?;
        }
    }
    Ok(rules)
}

impl<'a> Content<'a> {
    fn add(&mut self, fragment: &'a Fragment, mine: impl Fn(&ChainKey) -> bool) {
        self.declared.extend(fragment.shared_chains.iter().filter(|chain| mine(chain)));
        self.bodies.extend(fragment.chains.iter().filter(|(chain, _)| mine(chain)).map(|(chain, body)| (*chain, body)));
        for (key, placement) in fragment.rules.iter().filter(|(key, _)| mine(&key.chain)) {
            let rules = self.rules.entry(key.chain).or_insert_with(|| {
                self.order.push(key.chain);
                Rules::default()
            });
            match placement {
                Placement::Head => rules.heads.push(&key.spec),
                Placement::Tail => rules.tails.push(&key.spec),
            }
        }
    }

    fn write(&self, table: Table, out: &mut String) {
        let mut line = |parts: &[&str]| {
            parts.iter().for_each(|part| out.push_str(part));
            out.push('\n');
        };
        line(&["*", table.as_str()]);
        for chain in self.declared.iter().chain(self.bodies.iter().map(|(chain, _)| chain)) {
            line(&[":", chain.name.as_str(), " - [0:0]"]);
        }
        for chain in &self.order {
            let Some(rules) = self.rules.get(chain) else { continue };
            for spec in rules.heads.iter().rev().chain(&rules.tails) {
                line(&["-A ", chain.name.as_str(), " ", spec]);
            }
        }
        for (chain, body) in &self.bodies {
            for spec in body.text.lines() {
                line(&["-A ", chain.name.as_str(), " ", spec]);
            }
        }
        line(&["COMMIT"]);
    }
}
