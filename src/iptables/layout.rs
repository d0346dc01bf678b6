//! The two ways to lay out the nat table.
//!
//! With kube-proxy's layout each service port has chains for its endpoints, and `KUBE-SERVICES` is one long list.
//!
//! The compact one has the same packets do the same with fewer rules and shorter walks. A dispatch chain translates itself;
//! whether to masquerade is decided before, for all service ports in one place: the packet is marked, goes through the entries,
//! and loses the mark again if it comes back. Entries stand in a tree by the last bits of the address, which are spread evenly
//! however cluster IPs are allocated and whatever their range.
//!
//! All chains of the compact layout begin with one of the prefixes that kube-proxy removes, so that it can come back in place; no
//! chain of one layout has the name of a chain with other content in the other one, so that both can stand side by side
//! while one takes over. Only the chains of endpoints are the same: they hold the kernel's memory of who used which endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::backend::Fragment;
use crate::compile::{LocalDetector, NodeContext};
use crate::iptables::names::*;
use crate::iptables::{from_pods, jump, rule_key};
use crate::kernel::rule::{AddressBits, Mark, Not, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, Placement, Rule, Table};
use crate::net::IpFamily;

/// How Services are laid out in the nat table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As kube-proxy does it, rule by rule.
    #[default]
    KubeProxy,
    /// With fewer rules and chains.
    Compact,
}

/// Where an entry of a service port stands in the compact layout, by what is done to its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Cluster IPs: what does not come from pods of this node is masqueraded.
    ClusterIp,
    /// Outside addresses with policy Cluster: everything is masqueraded.
    Masqueraded,
    /// Outside addresses with policy Local: the chain that the entry leads to decides.
    Undecided,
}

/// The bits by which one level of a tree tells addresses apart.
const BITS: u32 = 4;
/// The values of so many bits.
const BRANCHES: u8 = 1 << BITS;

/// A tree of entries.
struct Tree {
    root: ChainName,
    /// Prefix of the chains between root and leaves; `None`: the leaves are right under the root. Few clusters have so many
    /// outside addresses that it matters.
    middle: Option<&'static str>,
    /// Prefix of the chains that hold the entries.
    leaf: &'static str,
}

impl Entry {
    const ALL: [Entry; 3] = [Entry::ClusterIp, Entry::Masqueraded, Entry::Undecided];

    fn tree(self) -> Tree {
        match self {
            Entry::ClusterIp => Tree { root: SVC_DISPATCH, middle: Some(SVC_BRANCH_PREFIX), leaf: SVC_LEAF_PREFIX },
            Entry::Masqueraded => Tree { root: EXT_DISPATCH, middle: None, leaf: EXT_LEAF_PREFIX },
            Entry::Undecided => Tree { root: SVL_DISPATCH, middle: None, leaf: SVL_LEAF_PREFIX },
        }
    }

    /// The chain that holds the entries of an address.
    pub(super) fn chain(self, address: IpAddr) -> ChainName {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        let tree = self.tree();
        match tree.middle {
            Some(_) => leaf_of_two(tree.leaf, last % BRANCHES, last / BRANCHES),
            None => leaf_of_one(tree.leaf, last % BRANCHES),
        }
    }
}

impl Tree {
    /// Adds all chains of the tree but for the entries. It does not depend on the Services: that a Service comes or goes changes one leaf.
    fn add_to(&self, family: IpFamily, out: &mut Fragment) {
        let chain = |name| ChainKey::new(family, Table::Nat, name);
        let branches = |level: u32, to: &dyn Fn(u8) -> ChainName| {
            let rules = (0..BRANCHES).map(|value| Rule {
                destination_bits: Some(address_bits(family, level, value)),
                target: jump(to(value)),
                ..Rule::default()
            });
            ChainBody::of(&rules.collect::<Vec<Rule>>())
        };
        let root = match self.middle {
            None => branches(0, &|last| leaf_of_one(self.leaf, last)),
            Some(middle) => {
                for last in 0..BRANCHES {
                    let body = branches(1, &|before| leaf_of_two(self.leaf, last, before));
                    out.chains.push((chain(leaf_of_one(middle, last)), body));
                }
                branches(0, &|last| leaf_of_one(middle, last))
            }
        };
        out.shared_chains.extend(self.leaves().map(chain));
        out.chains.push((chain(self.root), root));
    }

    fn leaves(&self) -> impl Iterator<Item = ChainName> {
        let (leaf, two) = (self.leaf, self.middle.is_some());
        let before = if two { 0..BRANCHES } else { 0..1 };
        before.flat_map(move |before| {
            (0..BRANCHES).map(move |last| if two { leaf_of_two(leaf, last, before) } else { leaf_of_one(leaf, last) })
        })
    }
}

/// The bits of one level, counted from the end of the address.
fn address_bits(family: IpFamily, level: u32, value: u8) -> AddressBits {
    let place = |bits: u8| {
        let bits = u32::from(bits) << (level * BITS);
        match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(bits)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(u128::from(bits))),
        }
    };
    AddressBits { value: place(value), mask: place(BRANCHES - 1) }
}

fn leaf_of_one(prefix: &str, bits: u8) -> ChainName {
    ChainName::fixed(&format!("{prefix}{bits:X}"))
}

/// Named like the end of the addresses in it.
fn leaf_of_two(prefix: &str, last: u8, before: u8) -> ChainName {
    ChainName::fixed(&format!("{prefix}{before:X}{last:X}"))
}

/// What the compact layout has besides the chains of both layouts, with no Service at all.
pub(super) fn add_compact_base(family: IpFamily, node: &NodeContext, out: &mut Fragment) {
    for entry in Entry::ALL {
        entry.tree().add_to(family, out);
    }
    let nat = |name| ChainKey::new(family, Table::Nat, name);
    out.shared_chains.push(nat(EXT_NODE_PORTS));
    let marking = Marking(node.masquerade_mark);
    let mut head = |chain, rules: Vec<Rule>| {
        // Each is put in front.
        out.rules.extend(rules.into_iter().rev().map(|rule| (rule_key(nat(chain), &rule), Placement::Head)));
    };
    let mut wrappers = Vec::new();
    let mut wrap = |when: Option<Rule>, wrapper, inner| match when {
        None => vec![Rule { target: jump(inner), ..Rule::default() }],
        Some(when) => {
            wrappers.push((nat(wrapper), marking.around(inner, &when)));
            marking.lead_to(wrapper, inner).into()
        }
    };
    let mut services = wrap(masqueraded_to_cluster_ips(family, node), SVC_MASQUERADE, SVC_DISPATCH);
    services.extend(wrap(Some(Rule::default()), EXT_MASQUERADE, EXT_DISPATCH));
    services.push(Rule { target: jump(SVL_DISPATCH), ..Rule::default() });
    head(SERVICES, services);
    head(NODE_PORTS, wrap(Some(Rule::default()), EXT_NODE_PORTS_MASQUERADE, EXT_NODE_PORTS));
    out.chains.append(&mut wrappers);
}

/// Matches packets to cluster IPs whose answer would not come back through this node by itself; `None`: there are none.
fn masqueraded_to_cluster_ips(family: IpFamily, node: &NodeContext) -> Option<Rule> {
    if node.masquerade_all {
        return Some(Rule::default());
    }
    outside_pods(node.local_detector[family].as_ref(), Rule::default())
}

/// Adds the match for packets that the detector does not recognise as coming from this node's pods; `None`: it recognises all, or
/// there is none.
pub(super) fn outside_pods(detector: Option<&LocalDetector>, rule: Rule) -> Option<Rule> {
    // Every source is in a range of length zero: nothing is left, and nft does not take the negation.
    let everything = matches!(detector, Some(LocalDetector::SourceCidr(net)) if net.prefix_len() == 0);
    detector.filter(|_| !everything).map(|detector| from_pods(rule, detector, false))
}

/// How entries are gone through with this mark.
struct Marking(u32);

impl Marking {
    /// A packet that somebody else has marked keeps its mark whether it is for a Service or not.
    fn lead_to(&self, wrapper: ChainName, inner: ChainName) -> [Rule; 2] {
        let mark = Mark { value: self.0, mask: self.0 };
        [
            Rule { mark: Some(Not::Is(mark)), target: jump(inner), ..Rule::default() },
            Rule { mark: Some(Not::IsNot(mark)), target: jump(wrapper), ..Rule::default() },
        ]
    }

    /// The content of a chain that marks what matches `when` while it goes through another one.
    fn around(&self, inner: ChainName, when: &Rule) -> ChainBody {
        ChainBody::of(&[
            Rule { target: jump(MARK_MASQ), ..when.clone() },
            Rule { target: jump(inner), ..Rule::default() },
            Rule { target: Some(Target::XorMark(self.0)), ..when.clone() },
        ])
    }
}
