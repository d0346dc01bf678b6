//! One iptables rule as a value: the matches and targets that kube-proxy's chains are made of.
//!
//! A rule has at most one match of each kind, so that it is a struct and not a list, and two rules are the same if they
//! are equal. The text form (see `rule_text`) is that of `iptables-save`, with the order of matches fixed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::kernel::{ChainName, SetKey, VirtualKey};
use crate::net::Protocol;

/// A rule. `Default` is the rule without matches and target: it counts packets and goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `-s`.
    pub source: Option<Not<IpNet>>,
    /// `-d`.
    pub destination: Option<Not<IpNet>>,
    /// `-d value/mask`, in place of a network: a rule has one `-d`.
    pub destination_bits: Option<AddressBits>,
    /// `-i`; ends in `+` to match all interfaces that begin with it.
    pub in_interface: Option<Not<Arc<str>>>,
    /// `-p`.
    pub protocol: Option<Protocol>,
    /// `-m comment --comment`. Rendered with unprintable characters replaced and cut at 255 bytes.
    pub comment: Option<String>,
    /// Where the comment stands among the matches. It has no meaning for packets, but `iptables -C`, which other
    /// programs use to look for a jump, compares matches in their order.
    pub comment_position: CommentPosition,
    /// `-m conntrack --ctstate`.
    pub conntrack_state: Option<Not<ConntrackStates>>,
    /// `-m set --match-set`.
    pub set: Option<Not<SetMatch>>,
    /// `-m <protocol> --dport`.
    pub destination_port: Option<u16>,
    /// `-m addrtype --src-type LOCAL`.
    pub source_is_local: bool,
    /// `-m addrtype --dst-type LOCAL`.
    pub destination_is_local: bool,
    /// `-m ipvs --vproto --vaddr --vport`: a packet on its way from a client to a real server of this virtual one.
    pub virtual_server: Option<VirtualKey>,
    /// `-m mark --mark value/mask`.
    pub mark: Option<Not<Mark>>,
    /// `-m recent`.
    pub recent: Option<Recent>,
    /// `-m statistic --mode random --probability`.
    pub probability: Option<Probability>,
    /// `-m nfacct --nfacct-name`.
    pub counter: Option<Arc<str>>,
    /// `-j`; `None`: the packet goes on to the next rule.
    pub target: Option<Target>,
}

/// A match or its negation (`!`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Not<T> {
    /// Matches.
    Is(T),
    /// `! ` in front: matches everything else.
    IsNot(T),
}

/// Some bits of an address, wherever they are: `0.0.0.5/0.0.0.15` are the addresses that end in these four bits. Displays as
/// iptables writes it. A mask that is a prefix makes a network, which is not written like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressBits {
    /// What the bits have to be; the others are zero.
    pub value: IpAddr,
    /// The bits that are looked at.
    pub mask: IpAddr,
}

impl AddressBits {
    /// Whether an address has these bits. One of the other family has not.
    pub fn matches(&self, address: IpAddr) -> bool {
        match (self.value, self.mask, address) {
            (IpAddr::V4(value), IpAddr::V4(mask), IpAddr::V4(address)) => address & mask == value,
            (IpAddr::V6(value), IpAddr::V6(mask), IpAddr::V6(address)) => address & mask == value,
            _ => false,
        }
    }
}

impl fmt::Display for AddressBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.value, self.mask)
    }
}

/// Where a rule's comment is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CommentPosition {
    /// Before the other `-m` matches.
    #[default]
    First,
    /// After the other `-m` matches, as in kube-proxy's jumps from built-in chains.
    Last,
}

/// A look into a set of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetMatch {
    /// The set.
    pub set: SetKey,
    /// What of the packet is looked up.
    pub sides: Sides,
}

/// For each part of a set's elements, whether it is compared with the packet's source or its destination. Displays as
/// `dst,dst,src`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sides {
    count: u8,
    /// Bit n: part n is the source.
    sources: u8,
}

impl Sides {
    /// The most that the kernel takes (`IPSET_DIM_MAX`).
    const MAX: usize = 6;
    /// `dst`.
    pub const DST: Sides = Sides { count: 1, sources: 0 };
    /// `dst,dst`.
    pub const DST_DST: Sides = Sides { count: 2, sources: 0 };
    /// `dst,dst,src`.
    pub const DST_DST_SRC: Sides = Sides { count: 3, sources: 0b100 };

    /// Reads what [`Sides`] displays as.
    pub fn parse(text: &str) -> Option<Sides> {
        let mut sides = Sides { count: 0, sources: 0 };
        for word in text.split(',') {
            let bit = match word {
                "src" => 1_u8,
                "dst" => 0,
                _ => return None,
            };
            if usize::from(sides.count) == Self::MAX {
                return None;
            }
            sides.sources |= bit << sides.count;
            sides.count += 1;
        }
        Some(sides)
    }
}

impl fmt::Display for Sides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for at in 0..self.count {
            let side = if self.sources >> at & 1 == 1 { "src" } else { "dst" };
            write!(f, "{}{side}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Sets of conntrack states that rules of ours match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConntrackStates {
    /// `NEW`.
    New,
    /// `INVALID`.
    Invalid,
    /// `RELATED,ESTABLISHED`.
    RelatedEstablished,
    /// `RELATED,ESTABLISHED,DNAT`.
    RelatedEstablishedDnat,
}

/// A firewall mark under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits that are wanted.
    pub value: u32,
    /// The bits that are looked at.
    pub mask: u32,
}

/// `-m recent`: the kernel's list of client addresses of one endpoint, for ClientIP affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recent {
    /// `--rcheck --seconds N --reap`: the client has used this endpoint within so many seconds.
    Check {
        /// The list's name.
        list: ChainName,
        /// The time-out.
        seconds: u32,
    },
    /// `--set`: remember the client.
    Set {
        /// The list's name.
        list: ChainName,
    },
}

/// A probability as the kernel holds it: in units of 2^-31 (`XT_STATISTIC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probability(pub u32);

impl Probability {
    /// The unit: a probability of one.
    const ONE: f64 = 2_147_483_648.0;

    /// One in `n`, by way of the ten decimals that kube-proxy writes.
    pub fn one_in(n: usize) -> Probability {
        Probability::from_fraction(Self::text_of_one_in(n).parse().unwrap_or(0.0))
    }

    /// The text for one in `n`: ten decimals.
    pub fn text_of_one_in(n: usize) -> String {
        format!("{:.10}", 1.0 / n as f64)
    }

    /// Rounds as iptables does (`lround`).
    pub fn from_fraction(fraction: f64) -> Probability {
        Probability((fraction.clamp(0.0, 1.0) * Self::ONE).round() as u32)
    }

    /// The fraction, between 0 and 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / Self::ONE
    }
}

/// What happens to a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Go through another chain and come back.
    Jump(ChainName),
    /// `ACCEPT`.
    Accept,
    /// `DROP`.
    Drop,
    /// `RETURN`.
    Return,
    /// `REJECT` with the family's default: ICMP port unreachable.
    Reject,
    /// `MARK --or-mark`: set these bits.
    OrMark(u32),
    /// `MARK --xor-mark`: flip these bits.
    XorMark(u32),
    /// `MASQUERADE`.
    Masquerade {
        /// With `--random-fully`.
        random_fully: bool,
    },
    /// `DNAT --to-destination`.
    Dnat(SocketAddr),
}
