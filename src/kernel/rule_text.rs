//! Rules as text: rendering, and parsing what `iptables-save` prints.

use crate::kernel::Rule;

/// A line that is no rule of a kind that portolan writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a rule that portolan writes: {0}")]
pub struct RuleParseError(pub String);

impl Rule {
    /// Appends the rule's specification, without `-A CHAIN` and without a newline.
    pub fn render(&self, out: &mut String) {
        let _ = out;
        todo!()
    }

    /// The same without its comment: what the rule does.
    pub fn render_without_comment(&self, out: &mut String) {
        let _ = out;
        todo!()
    }

    /// Parses a specification: what [`Rule::render`] writes, and what `iptables-save` prints for it in either variant.
    pub fn parse(spec: &str) -> Result<Rule, RuleParseError> {
        Err(RuleParseError(spec.to_owned()))
    }
}
