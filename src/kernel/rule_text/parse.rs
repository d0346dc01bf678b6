//! Parsing of rule specifications.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Parsed;
use crate::kernel::rule::{
    AddressBits, CommentPosition, ConntrackStates, Mark, Not, Probability, Recent, Rule, SetMatch, Sides, Target,
};
use crate::kernel::{ChainName, SetKey, VirtualKey};
use crate::net::Protocol;

/// Why a text is no rule of ours.
type Reason = Cow<'static, str>;

/// The matches that rules of ours consist of, in canonical order; a comment stands before or behind all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Conntrack,
    Set,
    AddrType,
    Ipvs,
    Port,
    Mark,
    Recent,
    Statistic,
    Nfacct,
    Comment,
}

/// `-m recent`, option by option.
#[derive(Default)]
struct RecentParts {
    check: bool,
    set: bool,
    reap: bool,
    seconds: Option<u32>,
    list: Option<ChainName>,
}

/// `-m ipvs`, option by option.
#[derive(Default)]
struct IpvsParts {
    address: Option<IpAddr>,
    protocol: Option<Protocol>,
    port: Option<u16>,
}

#[derive(Default)]
struct Parser {
    /// There was a protocol match without a port.
    bare_protocol: bool,
    rule: Rule,
    /// The matches in the order in which they were loaded.
    kinds: Vec<Kind>,
    /// Whether the match loaded last has been given an option.
    used: bool,
    port_protocol: Option<Protocol>,
    recent: RecentParts,
    ipvs: IpvsParts,
    random_mode: bool,
    /// The word after `-j`, once it was seen.
    target: Option<String>,
}

pub(super) fn parse(spec: &str) -> Result<Parsed, Reason> {
    let mut words = Words { rest: spec };
    let mut parser = Parser::default();
    let mut negated = false;
    while let Some(word) = words.next()? {
        if word == "!" {
            if negated {
                return Err("negated twice".into());
            }
            negated = true;
            continue;
        }
        let accepts_negation = parser.option(&word, negated, &mut words)?;
        if negated && !accepts_negation {
            return Err(format!("{word} negated").into());
        }
        negated = false;
    }
    if negated {
        return Err("ends with a negation".into());
    }
    parser.finish()
}

impl Parser {
    /// Takes one option and its values. Returns whether the option may be negated.
    fn option(&mut self, name: &str, negated: bool, words: &mut Words<'_>) -> Result<bool, Reason> {
        if self.target.is_some() {
            return self.target_option(name, words).map(|()| false);
        }
        match name {
            "-s" => set(&mut self.rule.source, name, sense(net(&words.value(name)?)?, negated))?,
            "-d" => {
                let text = words.value(name)?;
                match address_bits(&text) {
                    Some(bits) if !negated => set(&mut self.rule.destination_bits, name, bits)?,
                    _ => set(&mut self.rule.destination, name, sense(net(&text)?, negated))?,
                }
            }
            "-i" => {
                let interface = Arc::from(&*words.value(name)?);
                set(&mut self.rule.in_interface, name, sense(interface, negated))?;
            }
            "-p" => {
                set(&mut self.rule.protocol, name, protocol(&words.value(name)?)?)?;
                return Ok(false);
            }
            "-m" => {
                self.load(&words.value(name)?)?;
                return Ok(false);
            }
            "-j" => {
                self.end_match()?;
                let target = words.value(name)?;
                self.rule.target = Some(plain_target(&target)?);
                self.target = Some(target.into_owned());
                return Ok(false);
            }
            _ => return self.match_option(name, negated, words),
        }
        Ok(true)
    }

    /// `-m name`.
    fn load(&mut self, name: &str) -> Result<(), Reason> {
        self.end_match()?;
        let kind = match name {
            "comment" => Kind::Comment,
            "conntrack" => Kind::Conntrack,
            "tcp" | "udp" | "sctp" => {
                self.port_protocol = Some(protocol(name)?);
                Kind::Port
            }
            "set" => Kind::Set,
            "addrtype" => Kind::AddrType,
            "ipvs" => Kind::Ipvs,
            "mark" => Kind::Mark,
            "recent" => Kind::Recent,
            "statistic" => Kind::Statistic,
            "nfacct" => Kind::Nfacct,
            _ => return Err(format!("match {name}").into()),
        };
        self.kinds.push(kind);
        self.used = false;
        Ok(())
    }

    /// A match without options does nothing, but counts for `iptables -D`. kube-proxy writes `-m tcp -p tcp` where no port is
    /// matched.
    fn end_match(&mut self) -> Result<(), Reason> {
        if self.kinds.is_empty() || self.used {
            return Ok(());
        }
        (self.bare_protocol, self.used) = (true, true);
        if self.kinds.pop() == Some(Kind::Port) { Ok(()) } else { Err("a match without options".into()) }
    }

    /// An option of the match loaded last.
    fn match_option(&mut self, name: &str, negated: bool, words: &mut Words<'_>) -> Result<bool, Reason> {
        let Some(kind) = self.kinds.last() else { return Err(format!("option {name}").into()) };
        self.used = true;
        let rule = &mut self.rule;
        match (kind, name) {
            (Kind::Comment, "--comment") => set(&mut rule.comment, name, words.value(name)?.into_owned())?,
            (Kind::Conntrack, "--ctstate") => {
                let states = conntrack_states(&words.value(name)?)?;
                set(&mut rule.conntrack_state, name, sense(states, negated))?;
                return Ok(true);
            }
            (Kind::Set, "--match-set") => {
                let found = set_match(&words.value(name)?, &words.value(name)?)?;
                set(&mut rule.set, name, sense(found, negated))?;
                return Ok(true);
            }
            (Kind::Ipvs, _) => self.ipvs.option(name, words)?,
            (Kind::Port, "--dport") => set(&mut rule.destination_port, name, number(&words.value(name)?)?)?,
            (Kind::AddrType, "--src-type") => local(&mut rule.source_is_local, &words.value(name)?)?,
            (Kind::AddrType, "--dst-type") => local(&mut rule.destination_is_local, &words.value(name)?)?,
            (Kind::Mark, "--mark") => {
                set(&mut rule.mark, name, sense(mark(&words.value(name)?)?, negated))?;
                return Ok(true);
            }
            (Kind::Recent, _) => self.recent.option(name, words)?,
            (Kind::Statistic, "--mode") => match &*words.value(name)? {
                "random" => once(&mut self.random_mode, name)?,
                mode => return Err(format!("mode {mode}").into()),
            },
            (Kind::Statistic, "--probability") => {
                set(&mut rule.probability, name, probability(&words.value(name)?)?)?;
            }
            (Kind::Nfacct, "--nfacct-name") => set(&mut rule.counter, name, Arc::from(&*words.value(name)?))?,
            _ => return Err(format!("option {name}").into()),
        }
        Ok(false)
    }

    fn target_option(&mut self, name: &str, words: &mut Words<'_>) -> Result<(), Reason> {
        let target = match (self.target.as_deref(), name) {
            (Some("REJECT"), "--reject-with") => match &*words.value(name)? {
                "icmp-port-unreachable" | "icmp6-port-unreachable" | "port-unreach" => Target::Reject,
                with => return Err(format!("reject with {with}").into()),
            },
            (Some("MARK"), "--or-mark") => Target::OrMark(hex(&words.value(name)?)?),
            (Some("MARK"), "--xor-mark") => Target::XorMark(hex(&words.value(name)?)?),
            (Some("MARK"), "--set-xmark") => {
                let Mark { value, mask } = mark(&words.value(name)?)?;
                if mask == value {
                    Target::OrMark(value)
                } else if mask == 0 {
                    Target::XorMark(value)
                } else {
                    return Err("a mark that is neither or nor xor".into());
                }
            }
            (Some("MASQUERADE"), "--random-fully") => Target::Masquerade { random_fully: true },
            (Some("DNAT"), "--to-destination") => Target::Dnat(destination(&words.value(name)?)?),
            _ => return Err(format!("option {name}").into()),
        };
        // One option at most: a second one finds the state that no option accepts.
        self.target = Some(String::new());
        self.rule.target = Some(target);
        Ok(())
    }

    fn finish(mut self) -> Result<Parsed, Reason> {
        self.end_match()?;
        if matches!(self.target.as_deref(), Some("MARK" | "DNAT")) {
            return Err("a target without its option".into());
        }
        if self.port_protocol.is_some() && self.port_protocol != self.rule.protocol {
            return Err("a port of another protocol".into());
        }
        if self.random_mode != self.rule.probability.is_some() {
            return Err("an incomplete statistic match".into());
        }
        if self.kinds.contains(&Kind::Recent) {
            self.rule.recent = Some(self.recent.finish()?);
        }
        if self.kinds.contains(&Kind::Ipvs) {
            self.rule.virtual_server = Some(self.ipvs.finish()?);
        }
        let others: Vec<Kind> = self.kinds.iter().copied().filter(|kind| *kind != Kind::Comment).collect();
        let comment_at = self.kinds.iter().position(|kind| *kind == Kind::Comment);
        let mut canonical = others.is_sorted_by(|a, b| a < b) && !self.bare_protocol;
        match comment_at {
            None | Some(0) => {}
            Some(at) => {
                self.rule.comment_position = CommentPosition::Last;
                canonical &= at + 1 == self.kinds.len();
            }
        }
        Ok(Parsed { rule: self.rule, canonical })
    }
}

impl RecentParts {
    fn option(&mut self, name: &str, words: &mut Words<'_>) -> Result<(), Reason> {
        match name {
            "--rcheck" => once(&mut self.check, name),
            "--set" => once(&mut self.set, name),
            "--reap" => once(&mut self.reap, name),
            "--seconds" => set(&mut self.seconds, name, number(&words.value(name)?)?),
            "--name" => {
                let list = words.value(name)?;
                set(&mut self.list, name, ChainName::new(&list).map_err(|error| error.to_string())?)
            }
            // What iptables-save adds by itself: the whole source address.
            "--rsource" => Ok(()),
            "--mask" => match &*words.value(name)? {
                "255.255.255.255" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" => Ok(()),
                mask => Err(format!("mask {mask}").into()),
            },
            _ => Err(format!("option {name}").into()),
        }
    }

    fn finish(self) -> Result<Recent, Reason> {
        match self {
            RecentParts { check: true, set: false, reap: true, seconds: Some(seconds), list: Some(list) } => {
                Ok(Recent::Check { list, seconds })
            }
            RecentParts { check: false, set: true, reap: false, seconds: None, list: Some(list) } => {
                Ok(Recent::Set { list })
            }
            _ => Err("an unknown use of the recent match".into()),
        }
    }
}

impl IpvsParts {
    fn option(&mut self, name: &str, words: &mut Words<'_>) -> Result<(), Reason> {
        let value = words.value(name)?;
        match name {
            "--vaddr" => set(&mut self.address, name, value.parse().map_err(|_| format!("address {value}"))?),
            "--vproto" => set(&mut self.protocol, name, protocol(&value)?),
            "--vport" => set(&mut self.port, name, number(&value)?),
            _ => Err(format!("option {name}").into()),
        }
    }

    fn finish(self) -> Result<VirtualKey, Reason> {
        match self {
            IpvsParts { address: Some(address), protocol: Some(protocol), port: Some(port) } => {
                Ok(VirtualKey { address, protocol, port })
            }
            _ => Err("an unknown use of the ipvs match".into()),
        }
    }
}

/// The words of a specification: separated by white space, with double quotes and backslashes as iptables writes them.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<Option<Cow<'a, str>>, Reason> {
        self.rest = self.rest.trim_ascii_start();
        if self.rest.is_empty() {
            return Ok(None);
        }
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return self.quoted(quoted).map(Some);
        }
        let end = self.rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.contains('"') {
            return Err("a quote within a word".into());
        }
        self.rest = rest;
        Ok(Some(Cow::Borrowed(word)))
    }

    /// `quoted` begins after the opening quote.
    fn quoted(&mut self, quoted: &'a str) -> Result<Cow<'a, str>, Reason> {
        let mut text = String::new();
        let mut escaped = false;
        for (at, c) in quoted.char_indices() {
            match c {
                _ if escaped => {
                    text.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = quoted.get(at + 1..).unwrap_or_default();
                    if !self.rest.is_empty() && !self.rest.starts_with(|c: char| c.is_ascii_whitespace()) {
                        return Err("text behind a closing quote".into());
                    }
                    return Ok(Cow::Owned(text));
                }
                _ => text.push(c),
            }
        }
        Err("an unclosed quote".into())
    }

    fn value(&mut self, option: &str) -> Result<Cow<'a, str>, Reason> {
        self.next()?.ok_or_else(|| format!("{option} without a value").into())
    }
}

fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), Reason> {
    if slot.replace(value).is_some() { Err(format!("{name} twice").into()) } else { Ok(()) }
}

fn once(flag: &mut bool, name: &str) -> Result<(), Reason> {
    if std::mem::replace(flag, true) { Err(format!("{name} twice").into()) } else { Ok(()) }
}

fn sense<T>(value: T, negated: bool) -> Not<T> {
    if negated { Not::IsNot(value) } else { Not::Is(value) }
}

fn local(flag: &mut bool, kind: &str) -> Result<(), Reason> {
    if kind == "LOCAL" { once(flag, kind) } else { Err(format!("address type {kind}").into()) }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Reason> {
    text.parse().map_err(|_| format!("number {text}").into())
}

fn net(text: &str) -> Result<IpNet, Reason> {
    let parsed: Option<IpNet> = text.parse().ok().or_else(|| text.parse().ok().map(|host: IpAddr| host.into()));
    parsed.map(|net| net.trunc()).ok_or_else(|| format!("address {text}").into())
}

/// An address with a mask in the form of an address, which is how iptables prints a mask that is no prefix.
fn address_bits(text: &str) -> Option<AddressBits> {
    let (value, mask) = text.split_once('/')?;
    let bits = AddressBits { value: value.parse().ok()?, mask: mask.parse().ok()? };
    bits.matches(bits.value).then_some(bits)
}

fn protocol(text: &str) -> Result<Protocol, Reason> {
    match text {
        "tcp" | "6" => Ok(Protocol::Tcp),
        "udp" | "17" => Ok(Protocol::Udp),
        "sctp" | "132" => Ok(Protocol::Sctp),
        _ => Err(format!("protocol {text}").into()),
    }
}

fn set_match(name: &str, sides: &str) -> Result<SetMatch, Reason> {
    let set = SetKey::of_name(name).ok_or_else(|| format!("set {name}"))?;
    let sides = Sides::parse(sides).ok_or_else(|| format!("sides {sides}"))?;
    Ok(SetMatch { set, sides })
}

fn hex(text: &str) -> Result<u32, Reason> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16),
        _ => text.parse(),
    };
    parsed.map_err(|_| format!("number {text}").into())
}

fn mark(text: &str) -> Result<Mark, Reason> {
    match text.split_once('/') {
        Some((value, mask)) => Ok(Mark { value: hex(value)?, mask: hex(mask)? }),
        None => Ok(Mark { value: hex(text)?, mask: u32::MAX }),
    }
}

fn probability(text: &str) -> Result<Probability, Reason> {
    match text.parse::<f64>() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(Probability::from_fraction(fraction)),
        _ => Err(format!("probability {text}").into()),
    }
}

fn conntrack_states(text: &str) -> Result<ConntrackStates, Reason> {
    let mut states: Vec<&str> = text.split(',').collect();
    states.sort_unstable();
    match states.as_slice() {
        ["NEW"] => Ok(ConntrackStates::New),
        ["INVALID"] => Ok(ConntrackStates::Invalid),
        ["ESTABLISHED", "RELATED"] => Ok(ConntrackStates::RelatedEstablished),
        ["DNAT", "ESTABLISHED", "RELATED"] => Ok(ConntrackStates::RelatedEstablishedDnat),
        _ => Err(format!("states {text}").into()),
    }
}

fn destination(text: &str) -> Result<SocketAddr, Reason> {
    match text.parse() {
        Ok(SocketAddr::V6(to)) if to.scope_id() != 0 => Err(format!("address {text}").into()),
        Ok(to) => Ok(to),
        Err(_) => Err(format!("address {text}").into()),
    }
}

/// A target before its options are known.
fn plain_target(name: &str) -> Result<Target, Reason> {
    Ok(match name {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "RETURN" => Target::Return,
        "REJECT" => Target::Reject,
        "MASQUERADE" => Target::Masquerade { random_fully: false },
        _ => Target::Jump(ChainName::new(name).map_err(|error| error.to_string())?),
    })
}
