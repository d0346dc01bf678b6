//! What becomes of the first packet of a flow: a walk through chains as values, without a kernel.
//!
//! Only rules that are known here count. Host chains hold what was added to them and nothing else, and end in `ACCEPT`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::kernel::rule::{ConntrackStates, Not, Recent, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, Placement, Rule, RuleKey, RuleParseError, Table, TableId};
use crate::net::{IpFamily, Protocol};

/// The kernel refuses deeper nesting in practice; it is also how a loop is noticed.
const MAX_DEPTH: usize = 32;
/// More ways through the chains than any real set of endpoints has.
const MAX_OUTCOMES: usize = 1 << 16;

/// Chains with their rules.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    chains: HashMap<ChainKey, Rules>,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    /// Those that were put in front, the first one last.
    heads: Vec<(Rule, Arc<str>)>,
    tails: Vec<(Rule, Arc<str>)>,
}

/// The first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source address.
    pub source: IpAddr,
    /// The destination address and port.
    pub destination: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The interface through which it arrives; `None`: this node sends it.
    pub in_interface: Option<Arc<str>>,
}

/// One way that the packet may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How likely it is, between 0 and 1. All outcomes of a packet sum up to 1.
    pub probability: f64,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Whether its source is replaced by an address of this node.
    pub masqueraded: bool,
    /// The rules that matched, in order.
    pub path: Vec<(ChainKey, Arc<str>)>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is sent to this address.
    Endpoint(SocketAddr),
    /// Its destination stays as it is: no rule speaks of it.
    NotHandled,
    /// Thrown away, and the sender is told.
    Reject,
    /// Thrown away.
    Drop,
}

/// Rules that no kernel would have taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A rule jumps to a chain that does not exist.
    #[error("there is no chain {0}")]
    NoChain(ChainKey),
    /// Chains jump to each other in a circle, or nearly so.
    #[error("chains are nested too deeply at {0}")]
    TooDeep(ChainKey),
    /// A rule looks into a set or at virtual servers, of which a walk through chains knows nothing.
    #[error("a rule in {0} depends on more than rules")]
    Unsupported(ChainKey),
    /// Random rules in a row that all lead on.
    #[error("there are more ways through the chains than can be listed")]
    TooMany,
}

/// The packet at one point of one way.
#[derive(Clone, Debug)]
struct State {
    probability: f64,
    destination: SocketAddr,
    translated: bool,
    masqueraded: bool,
    mark: u32,
    path: Vec<(ChainKey, Arc<str>)>,
}

/// How a chain was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// At its end or by `RETURN`.
    End,
    /// With a final decision of the table.
    Accepted,
    Dropped,
    Rejected,
}

impl RuleSet {
    /// Adds a chain with its content. A chain that is added empty only exists.
    pub fn add_chain(&mut self, chain: ChainKey, body: &ChainBody) -> Result<(), RuleParseError> {
        let rules = self.chains.entry(chain).or_default();
        for line in body.text.lines() {
            rules.tails.push((Rule::parse(line)?, line.into()));
        }
        Ok(())
    }

    /// Adds an empty chain, unless it is there.
    pub fn add_empty(&mut self, chain: ChainKey) {
        self.chains.entry(chain).or_default();
    }

    /// Adds one rule to a chain.
    pub fn add_rule(&mut self, key: &RuleKey, placement: Placement) -> Result<(), RuleParseError> {
        let rule = (Rule::parse(&key.spec)?, key.spec.clone());
        let rules = self.chains.entry(key.chain).or_default();
        match placement {
            Placement::Head => rules.heads.push(rule),
            Placement::Tail => rules.tails.push(rule),
        }
        Ok(())
    }

    /// Follows the first packet of a flow through tables nat and filter of its family. The sender is new to every
    /// endpoint, so that affinity plays no part. `is_local` says whether an address is one of this node's; loopback
    /// addresses need not be asked for.
    pub fn trace(&self, packet: &Packet, is_local: impl Fn(IpAddr) -> bool) -> Result<Vec<Outcome>, TraceError> {
        let is_local = |address: IpAddr| address.is_loopback() || is_local(address);
        let walk = Walk { rules: self, packet, is_local: &is_local };
        let state = State {
            probability: 1.0,
            destination: packet.destination,
            translated: false,
            masqueraded: false,
            mark: 0,
            path: Vec::new(),
        };
        let mut outcomes = Vec::new();
        let first = if packet.in_interface.is_some() { PREROUTING } else { OUTPUT };
        for (state, left) in walk.hook(Table::Nat, first, packet.in_interface.as_deref(), state)? {
            match left {
                Left::End | Left::Accepted => walk.filter(state, &mut outcomes)?,
                Left::Dropped => outcomes.push(state.outcome(Some(Verdict::Drop))),
                Left::Rejected => outcomes.push(state.outcome(Some(Verdict::Reject))),
            }
        }
        Ok(outcomes)
    }
}

const INPUT: ChainName = ChainName::fixed("INPUT");
const FORWARD: ChainName = ChainName::fixed("FORWARD");
const OUTPUT: ChainName = ChainName::fixed("OUTPUT");
const PREROUTING: ChainName = ChainName::fixed("PREROUTING");
const POSTROUTING: ChainName = ChainName::fixed("POSTROUTING");

impl State {
    fn outcome(self, verdict: Option<Verdict>) -> Outcome {
        let untouched = if self.translated { Verdict::Endpoint(self.destination) } else { Verdict::NotHandled };
        Outcome {
            probability: self.probability,
            verdict: verdict.unwrap_or(untouched),
            masqueraded: self.masqueraded,
            path: self.path,
        }
    }
}

/// Where in the tables a packet is.
#[derive(Clone, Copy)]
struct Place<'a> {
    chain: ChainKey,
    /// The interface that rules see; empty where there is none.
    interface: &'a str,
    depth: usize,
}

/// One packet on its way.
struct Walk<'a> {
    rules: &'a RuleSet,
    packet: &'a Packet,
    is_local: &'a dyn Fn(IpAddr) -> bool,
}

impl Walk<'_> {
    /// The part after the destination is settled: filtering and masquerading, in the order of the hooks.
    fn filter(&self, state: State, out: &mut Vec<Outcome>) -> Result<(), TraceError> {
        let for_us = (self.is_local)(state.destination.ip());
        let arrives = self.packet.in_interface.as_deref();
        let hooks: &[(Table, ChainName, Option<&str>)] = match (arrives, for_us) {
            (Some(_), true) => &[(Table::Filter, INPUT, arrives)],
            (Some(_), false) => &[(Table::Filter, FORWARD, arrives), (Table::Nat, POSTROUTING, None)],
            (None, false) => &[(Table::Filter, OUTPUT, None), (Table::Nat, POSTROUTING, None)],
            // What the node sends to itself goes out through lo and comes in again, in the same conntrack state.
            (None, true) => {
                &[(Table::Filter, OUTPUT, None), (Table::Nat, POSTROUTING, None), (Table::Filter, INPUT, Some("lo"))]
            }
        };
        let mut live = vec![state];
        for (table, chain, interface) in hooks {
            let mut next = Vec::new();
            for state in live {
                for (state, left) in self.hook(*table, *chain, *interface, state)? {
                    match left {
                        Left::End | Left::Accepted => next.push(state),
                        Left::Dropped => out.push(state.outcome(Some(Verdict::Drop))),
                        Left::Rejected => out.push(state.outcome(Some(Verdict::Reject))),
                    }
                }
            }
            live = next;
        }
        out.extend(live.into_iter().map(|state| state.outcome(None)));
        if out.len() > MAX_OUTCOMES { Err(TraceError::TooMany) } else { Ok(()) }
    }

    fn hook(
        &self,
        table: Table,
        name: ChainName,
        interface: Option<&str>,
        state: State,
    ) -> Result<Vec<(State, Left)>, TraceError> {
        let family = IpFamily::of(self.packet.destination.ip());
        let chain = ChainKey { table: TableId { family, table }, name };
        if !self.rules.chains.contains_key(&chain) {
            return Ok(vec![(state, Left::End)]);
        }
        self.chain(Place { chain, interface: interface.unwrap_or_default(), depth: 0 }, state)
    }

    fn chain(&self, at: Place<'_>, state: State) -> Result<Vec<(State, Left)>, TraceError> {
        let rules = self.rules.chains.get(&at.chain).ok_or(TraceError::NoChain(at.chain))?;
        if at.depth > MAX_DEPTH {
            return Err(TraceError::TooDeep(at.chain));
        }
        let mut live = vec![state];
        let mut done = Vec::new();
        for (rule, spec) in rules.heads.iter().rev().chain(&rules.tails) {
            if rule.set.is_some() || rule.virtual_server.is_some() {
                return Err(TraceError::Unsupported(at.chain));
            }
            let mut next = Vec::new();
            for mut state in live {
                let applies = self.matches(rule, at.interface, &state);
                let share =
                    if applies { rule.probability.map_or(1.0, super::rule::Probability::fraction) } else { 0.0 };
                if share < 1.0 {
                    next.push(State { probability: state.probability * (1.0 - share), ..state.clone() });
                }
                if share > 0.0 {
                    state.probability *= share;
                    state.path.push((at.chain, spec.clone()));
                    self.take(rule, at, state, &mut next, &mut done)?;
                }
            }
            live = next;
            if live.len() + done.len() > MAX_OUTCOMES {
                return Err(TraceError::TooMany);
            }
        }
        done.extend(live.into_iter().map(|state| (state, Left::End)));
        Ok(done)
    }

    /// Carries out a rule that matched: the packet goes on in this chain (`next`) or leaves it (`done`).
    fn take(
        &self,
        rule: &Rule,
        at: Place<'_>,
        mut state: State,
        next: &mut Vec<State>,
        done: &mut Vec<(State, Left)>,
    ) -> Result<(), TraceError> {
        match &rule.target {
            None => next.push(state),
            Some(Target::OrMark(bits)) => {
                state.mark |= bits;
                next.push(state);
            }
            Some(Target::XorMark(bits)) => {
                state.mark ^= bits;
                next.push(state);
            }
            Some(Target::Jump(name)) => {
                let chain = ChainKey { name: *name, ..at.chain };
                for (state, left) in self.chain(Place { chain, depth: at.depth + 1, ..at }, state)? {
                    match left {
                        Left::End => next.push(state),
                        _ => done.push((state, left)),
                    }
                }
            }
            Some(Target::Return) => done.push((state, Left::End)),
            Some(Target::Accept) => done.push((state, Left::Accepted)),
            Some(Target::Drop) => done.push((state, Left::Dropped)),
            Some(Target::Reject) => done.push((state, Left::Rejected)),
            Some(Target::Masquerade { .. }) => {
                state.masqueraded = true;
                done.push((state, Left::Accepted));
            }
            Some(Target::Dnat(to)) => {
                state.destination = *to;
                state.translated = true;
                done.push((state, Left::Accepted));
            }
        }
        Ok(())
    }

    /// Whether every match of the rule applies, apart from chance.
    fn matches(&self, rule: &Rule, interface: &str, state: &State) -> bool {
        let packet = self.packet;
        let address = state.destination.ip();
        holds(&rule.source, |net| net.contains(&packet.source))
            && holds(&rule.destination, |net| net.contains(&address))
            && rule.destination_bits.is_none_or(|bits| bits.matches(address))
            && holds(&rule.in_interface, |name| interface_matches(name, interface))
            && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && rule.destination_port.is_none_or(|port| port == state.destination.port())
            && holds(&rule.conntrack_state, |states| match states {
                ConntrackStates::New => true,
                ConntrackStates::Invalid | ConntrackStates::RelatedEstablished => false,
                ConntrackStates::RelatedEstablishedDnat => state.translated,
            })
            && (!rule.source_is_local || (self.is_local)(packet.source))
            && (!rule.destination_is_local || (self.is_local)(address))
            && holds(&rule.mark, |mark| state.mark & mark.mask == mark.value)
            && !matches!(rule.recent, Some(Recent::Check { .. }))
    }
}

fn holds<T>(wanted: &Option<Not<T>>, test: impl FnOnce(&T) -> bool) -> bool {
    match wanted {
        None => true,
        Some(Not::Is(value)) => test(value),
        Some(Not::IsNot(value)) => !test(value),
    }
}

fn interface_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests;
