//! Rules as text: rendering, and parsing what `iptables-save` prints.
//!
//! The text is that of `iptables-save` with fixed spelling and order, so that two rules that do the same have the same
//! text. Both iptables variants keep the order of `-m` matches and compare it in `-C` and `-D`: a rule whose matches
//! stand in another order is equal in effect, but cannot be removed by its canonical text (see [`Parsed::canonical`]).

mod parse;
#[cfg(test)]
mod tests;

use std::fmt::{Display, Write};

use ipnet::IpNet;

use crate::kernel::rule::{CommentPosition, ConntrackStates, Mark, Not, Probability, Recent, SetMatch, Target};
use crate::kernel::{Rule, VirtualKey};
use crate::net::Protocol;

/// A line that is no rule of a kind that portolan writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a rule that portolan writes: {0}")]
pub struct RuleParseError(pub String);

/// A rule that was read, and how it was spelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The rule.
    pub rule: Rule,
    /// Whether its matches stand where [`Rule::render`] puts them. If not, `iptables -D` finds the rule only by the
    /// text that was read.
    pub canonical: bool,
}

/// The longest comment, in bytes: `XT_MAX_COMMENT_LEN` without its terminating zero.
const MAX_COMMENT: usize = 255;

impl Rule {
    /// Appends the rule's specification, without `-A CHAIN` and without a newline.
    ///
    /// A source or destination of prefix length 0 and the interface `+` are left out unless negated, as iptables does.
    /// A port without a protocol means nothing to iptables and is written so that the tool rejects it.
    pub fn render(&self, out: &mut String) {
        self.render_parts(out, true);
    }

    /// The same without its comment: what the rule does.
    pub fn render_without_comment(&self, out: &mut String) {
        self.render_parts(out, false);
    }

    /// Parses a specification: what [`Rule::render`] writes, and what `iptables-save` prints for it in either variant.
    /// The order of matches is free.
    pub fn parse(spec: &str) -> Result<Rule, RuleParseError> {
        Rule::parse_with_order(spec).map(|parsed| parsed.rule)
    }

    /// Like [`Rule::parse`], and tells whether the matches stand in canonical order.
    pub fn parse_with_order(spec: &str) -> Result<Parsed, RuleParseError> {
        parse::parse(spec).map_err(|reason| RuleParseError(format!("{reason}: {spec}")))
    }

    fn render_parts(&self, out: &mut String, with_comment: bool) {
        let mut line = Line { out, first: true };
        if let Some(net) = self.source.filter(|net| !matches_everything(*net)) {
            line.option("-s", net.map(|net| net.trunc()));
        }
        if let Some(net) = self.destination.filter(|net| !matches_everything(*net)) {
            line.option("-d", net.map(|net| net.trunc()));
        }
        if let Some(bits) = self.destination_bits {
            line.put(format_args!("-d {bits}"));
        }
        if let Some(interface) =
            self.in_interface.as_ref().filter(|name| !matches!(name, Not::Is(name) if **name == *"+"))
        {
            line.option("-i", interface.as_ref().map(|name| Word(name)));
        }
        if let Some(protocol) = self.protocol {
            line.put(format_args!("-p {protocol}"));
        }
        let comment = self.comment.as_ref().filter(|_| with_comment);
        if let Some(text) = comment.filter(|_| self.comment_position == CommentPosition::First) {
            line.put(format_args!("-m comment --comment {}", Comment(text)));
        }
        self.render_matches(&mut line);
        if let Some(text) = comment.filter(|_| self.comment_position == CommentPosition::Last) {
            line.put(format_args!("-m comment --comment {}", Comment(text)));
        }
        if let Some(target) = &self.target {
            render_target(target, &mut line);
        }
    }

    fn render_matches(&self, line: &mut Line<'_>) {
        if let Some(states) = self.conntrack_state {
            line.put("-m conntrack");
            line.option("--ctstate", states.map(ConntrackStates::as_str));
        }
        if let Some(found) = self.set {
            line.put("-m set");
            line.option("--match-set", found);
        }
        if self.source_is_local || self.destination_is_local {
            line.put("-m addrtype");
            if self.source_is_local {
                line.put("--src-type LOCAL");
            }
            if self.destination_is_local {
                line.put("--dst-type LOCAL");
            }
        }
        if let Some(VirtualKey { address, protocol, port }) = self.virtual_server {
            let protocol = number_of(protocol);
            // Without the prefix: to `iptables -D`, `10.0.0.1` and `10.0.0.1/32` are not the same.
            line.put(format_args!("-m ipvs --vproto {protocol} --vaddr {address} --vport {port}"));
        }
        if let Some(port) = self.destination_port {
            if let Some(protocol) = self.protocol {
                line.put(format_args!("-m {protocol}"));
            }
            line.put(format_args!("--dport {port}"));
        }
        if let Some(mark) = self.mark {
            line.put("-m mark");
            line.option("--mark", mark);
        }
        match &self.recent {
            Some(Recent::Check { list, seconds }) => {
                line.put(format_args!("-m recent --rcheck --seconds {seconds} --reap --name {}", Word(list.as_str())));
            }
            Some(Recent::Set { list }) => line.put(format_args!("-m recent --set --name {}", Word(list.as_str()))),
            None => {}
        }
        if let Some(probability) = self.probability {
            line.put(format_args!("-m statistic --mode random --probability {probability}"));
        }
        if let Some(counter) = &self.counter {
            line.put(format_args!("-m nfacct --nfacct-name {}", Word(counter)));
        }
    }
}

/// The number of a protocol, which the match `ipvs` prints in place of its name.
fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Whether iptables drops a source or destination as meaningless.
fn matches_everything(net: Not<IpNet>) -> bool {
    matches!(net, Not::Is(net) if net.prefix_len() == 0)
}

fn render_target(target: &Target, line: &mut Line<'_>) {
    match target {
        Target::Jump(chain) => line.put(format_args!("-j {}", Word(chain.as_str()))),
        Target::Accept => line.put("-j ACCEPT"),
        Target::Drop => line.put("-j DROP"),
        Target::Return => line.put("-j RETURN"),
        Target::Reject => line.put("-j REJECT"),
        Target::OrMark(bits) => line.put(format_args!("-j MARK --or-mark 0x{bits:06x}")),
        Target::XorMark(bits) => line.put(format_args!("-j MARK --xor-mark 0x{bits:06x}")),
        Target::Masquerade { random_fully: false } => line.put("-j MASQUERADE"),
        Target::Masquerade { random_fully: true } => line.put("-j MASQUERADE --random-fully"),
        Target::Dnat(to) => line.put(format_args!("-j DNAT --to-destination {to}")),
    }
}

impl<T> Not<T> {
    /// The same sense for another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Not<U> {
        match self {
            Not::Is(value) => Not::Is(change(value)),
            Not::IsNot(value) => Not::IsNot(change(value)),
        }
    }

    /// Borrows the value.
    pub fn as_ref(&self) -> Not<&T> {
        match self {
            Not::Is(value) => Not::Is(value),
            Not::IsNot(value) => Not::IsNot(value),
        }
    }
}

impl ConntrackStates {
    /// As `iptables-save` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            ConntrackStates::New => "NEW",
            ConntrackStates::Invalid => "INVALID",
            ConntrackStates::RelatedEstablished => "RELATED,ESTABLISHED",
            ConntrackStates::RelatedEstablishedDnat => "RELATED,ESTABLISHED,DNAT",
        }
    }
}

impl Display for Mark {
    /// Both numbers with at least six hexadecimal digits, as kube-proxy writes them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:06x}/0x{:06x}", self.value, self.mask)
    }
}

impl Display for SetMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.set, self.sides)
    }
}

impl Display for Probability {
    /// Ten decimals if it is one in a whole number, else the eleven decimals that `iptables-save` prints. A function of
    /// the value alone, so that what was written and what is read back have the same text.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let near = (1.0 / self.fraction()).round();
        // Beyond this, ten decimals no longer tell one number from the next.
        if near < 1e6 {
            let near = near as usize;
            for n in [near, near.saturating_sub(1), near + 1] {
                if n > 0 && Probability::one_in(n) == *self {
                    return f.write_str(&Probability::text_of_one_in(n));
                }
            }
        }
        write!(f, "{:.11}", self.fraction())
    }
}

/// Writes words separated by single spaces.
struct Line<'a> {
    out: &'a mut String,
    first: bool,
}

impl Line<'_> {
    fn put(&mut self, part: impl Display) {
        if !self.first {
            self.out.push(' ');
        }
        self.first = false;
        // Writing to a String cannot fail.
        let _ = write!(self.out, "{part}");
    }

    fn option(&mut self, name: &str, value: Not<impl Display>) {
        match value {
            Not::Is(value) => self.put(format_args!("{name} {value}")),
            Not::IsNot(value) => self.put(format_args!("! {name} {value}")),
        }
    }
}

/// A name as one word. Names that need quotes do not occur on a sane node; they are quoted all the same, so that no
/// setting can end a word or a line of the restore input.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
        if !self.0.is_empty() && self.0.bytes().all(plain) {
            return f.write_str(self.0);
        }
        quote(self.0.chars(), f)
    }
}

/// A comment, always in quotes.
struct Comment<'a>(&'a str);

impl Display for Comment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Every character becomes one byte of comment.
        quote(self.0.chars().take(MAX_COMMENT), f)
    }
}

fn quote(text: impl Iterator<Item = char>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    f.write_char('"')?;
    for c in text {
        match c {
            '"' | '\\' => {
                f.write_char('\\')?;
                f.write_char(c)?;
            }
            ' '..='~' => f.write_char(c)?,
            _ => f.write_char('?')?,
        }
    }
    f.write_char('"')
}
