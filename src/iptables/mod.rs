//! The iptables backend: kube-proxy's chains, spelled exactly as kube-proxy spells them.

pub mod base;
pub(crate) mod claims;
pub(crate) mod layout;
mod lower;
pub mod names;
mod render;

pub use layout::Layout;
pub use lower::IptablesBackend;
pub use render::{restore_text, rule_set};

use std::sync::Arc;

use crate::compile::LocalDetector;
use crate::kernel::rule::{Not, Target};
use crate::kernel::{ChainKey, ChainName, Rule, RuleKey};

#[cfg(test)]
pub(crate) mod tests;

/// A rule that does nothing but carry a comment, to be completed.
pub(crate) fn commented(comment: impl Into<String>) -> Rule {
    Rule { comment: Some(comment.into()), ..Rule::default() }
}

/// The target of a rule that leads to another chain.
pub(crate) fn jump(chain: ChainName) -> Option<Target> {
    Some(Target::Jump(chain))
}

/// A rule of a shared chain or host chain.
pub(crate) fn rule_key(chain: ChainKey, rule: &Rule) -> RuleKey {
    RuleKey { chain, spec: spec(rule) }
}

fn spec(rule: &Rule) -> Arc<str> {
    let mut text = String::new();
    rule.render(&mut text);
    text.into()
}

/// Adds the match for packets that the detector recognises as coming from this node's pods, or for all others.
pub(crate) fn from_pods(rule: Rule, detector: &LocalDetector, local: bool) -> Rule {
    fn maybe<T>(value: T, is: bool) -> Option<Not<T>> {
        Some(if is { Not::Is(value) } else { Not::IsNot(value) })
    }
    match detector {
        LocalDetector::SourceCidr(cidr) => Rule { source: maybe(cidr.trunc(), local), ..rule },
        LocalDetector::Bridge(name) => Rule { in_interface: maybe(name.clone(), local), ..rule },
        LocalDetector::InterfacePrefix(prefix) => {
            Rule { in_interface: maybe(format!("{prefix}+").into(), local), ..rule }
        }
    }
}
