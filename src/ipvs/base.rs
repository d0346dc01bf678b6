//! What exists without any Service: all sets, the chains that look into them, and the jumps to the chains. None of it changes
//! when Services do, but for KUBE-IPVS-OUT-FILTER.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::backend::Fragment;
use crate::compile::{LocalDetector, NodeContext};
use crate::iptables::base::{LOCALHOST_V4, forward_accept_rules, mark_masq_rules, postrouting_rules};
use crate::iptables::claims::Mode;
use crate::iptables::names::*;
use crate::iptables::{commented, from_pods, jump};
use crate::ipvs::names::comment;
use crate::ipvs::{IpvsSettings, Vips, route_source};
use crate::kernel::rule::{ConntrackStates, Not, SetMatch, Sides, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, ItemKey, ItemState, Rule, SetKey, SetKind, SetName, Table};
use crate::net::{IpFamily, Protocol};

/// Sets of addresses and ports of Services, whose traffic is decided on and let through.
const SERVICE_SETS: [SetName; 4] =
    [SetName::LoadBalancer, SetName::ClusterIp, SetName::ExternalIp, SetName::ExternalIpLocal];

/// What exists without any Service, in every family that is on.
pub(super) fn base(settings: &IpvsSettings, node: &NodeContext) -> Fragment {
    let mut out = Fragment::default();
    if settings.vips == Vips::Addresses {
        out.items.push((ItemKey::Link, ItemState::Present));
    }
    for family in IpFamily::ALL.into_iter().filter(|family| node.families[*family]) {
        let base = Base { family, node, settings };
        for name in SetName::ALL {
            out.items.push((ItemKey::Set(base.set(name)), ItemState::Capacity(SetKey::CAPACITY)));
        }
        for cidr in settings.service_cidrs(family) {
            out.items.push((ItemKey::Route(cidr), route_source(node, family)));
        }
        out.shared_chains.push(ChainKey::new(family, Table::Filter, IPVS_OUT_FILTER));
        for (table, name, rules) in base.chains() {
            out.chains.push((ChainKey::new(family, table, name), ChainBody::of(&rules)));
        }
        out.rules.extend(Mode::Ipvs.jumps(family));
    }
    out
}

/// The base of one family.
struct Base<'a> {
    family: IpFamily,
    node: &'a NodeContext,
    settings: &'a IpvsSettings,
}

impl Base<'_> {
    fn set(&self, name: SetName) -> SetKey {
        SetKey { family: self.family, name }
    }

    /// Matches packets whose parts are in a set, destination first.
    fn matches(&self, name: SetName) -> Rule {
        let sides = match name.kind() {
            SetKind::Ip | SetKind::Port => Sides::DST,
            SetKind::IpPort => Sides::DST_DST,
            SetKind::IpPortIp | SetKind::IpPortNet => Sides::DST_DST_SRC,
        };
        Rule { set: Some(Not::Is(SetMatch { set: self.set(name), sides })), ..Rule::default() }
    }

    /// The same with the comment that belongs to the set.
    fn explained(&self, name: SetName) -> Rule {
        Rule { comment: Some(comment(name).to_owned()), ..self.matches(name) }
    }

    /// How this node's pods are told from others. A range of length zero tells nobody apart, and nft does not take its negation.
    fn detector(&self) -> Option<&LocalDetector> {
        let everything =
            |detector: &&LocalDetector| matches!(detector, LocalDetector::SourceCidr(net) if net.prefix_len() == 0);
        self.node.local_detector[self.family].as_ref().filter(|detector| !everything(detector))
    }

    /// The chains whose whole content this is; each after those that it jumps to.
    fn chains(&self) -> Vec<(Table, ChainName, Vec<Rule>)> {
        vec![
            (Table::Filter, FORWARD, forward_accept_rules(self.node).into()),
            (Table::Filter, NODE_PORT, vec![then(self.explained(SetName::HealthCheckNodePort), Target::Accept)]),
            (Table::Filter, SOURCE_RANGES_FIREWALL, self.source_range_rules()),
            (Table::Filter, PROXY_FIREWALL, vec![self.firewall_rule()]),
            (Table::Filter, IPVS_FILTER, self.filter_rules()),
            (Table::Nat, MARK_MASQ, mark_masq_rules(self.node).into()),
            (Table::Nat, LOAD_BALANCER, self.load_balancer_rules()),
            (Table::Nat, NODE_PORT, self.node_port_rules()),
            (Table::Nat, SERVICES, self.service_rules()),
            (Table::Nat, POSTROUTING, self.postrouting_rules()),
        ]
    }
}

/// Table nat.
impl Base<'_> {
    fn service_rules(&self) -> Vec<Rule> {
        let loopback = match self.family {
            IpFamily::V4 => LOCALHOST_V4,
            IpFamily::V6 => IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        };
        let external_local = Rule { source_is_local: true, ..self.explained(SetName::ExternalIpLocal) };
        let mut rules = vec![
            Rule { source: Some(Not::Is(loopback)), target: Some(Target::Return), ..Rule::default() },
            Rule { target: jump(LOAD_BALANCER), ..self.explained(SetName::LoadBalancer) },
            masquerade(self.cluster_ip_rule()),
            masquerade(self.explained(SetName::ExternalIp)),
            // Only the node's own packets, whose source may be a VIP that other nodes have as well.
            masquerade(external_local),
        ];
        // What was for an address of a Service is not for a node port, even if the number is the same.
        rules.extend(SERVICE_SETS.map(|name| then(self.matches(name), Target::Accept)));
        rules.push(Rule { destination_is_local: true, target: jump(NODE_PORT), ..Rule::default() });
        rules
    }

    /// Which traffic to cluster IPs is masqueraded.
    fn cluster_ip_rule(&self) -> Rule {
        let rule = self.explained(SetName::ClusterIp);
        if self.node.masquerade_all {
            return rule;
        }
        match self.detector() {
            Some(detector) => from_pods(rule, detector, false),
            // The node itself: the kernel may choose the cluster IP as source, which means nothing to other nodes.
            None => Rule { source_is_local: true, ..rule },
        }
    }

    /// With policy Local clients keep their address, but for the node itself.
    fn load_balancer_rules(&self) -> Vec<Rule> {
        let local = self.explained(SetName::LoadBalancerLocal);
        vec![
            masquerade(Rule { source_is_local: true, ..local.clone() }),
            then(local, Target::Return),
            masquerade(Rule::default()),
        ]
    }

    fn node_port_rules(&self) -> Vec<Rule> {
        [
            (Protocol::Tcp, SetName::NodePortLocalTcp, SetName::NodePortTcp),
            (Protocol::Udp, SetName::NodePortLocalUdp, SetName::NodePortUdp),
            (Protocol::Sctp, SetName::NodePortLocalSctp, SetName::NodePortSctp),
        ]
        .into_iter()
        .flat_map(|(protocol, local, all)| {
            let of = |name| Rule { protocol: Some(protocol), ..self.explained(name) };
            [
                masquerade(Rule { source_is_local: true, ..of(local) }),
                then(of(local), Target::Return),
                masquerade(of(all)),
            ]
        })
        .collect()
    }

    fn postrouting_rules(&self) -> Vec<Rule> {
        // A pod that is sent to itself would answer itself directly, and the translation would never be undone.
        let hairpin = then(self.explained(SetName::LoopBack), Target::Masquerade { random_fully: false });
        [hairpin].into_iter().chain(postrouting_rules(self.node)).collect()
    }
}

/// Table filter.
impl Base<'_> {
    fn firewall_rule(&self) -> Rule {
        Rule { target: jump(SOURCE_RANGES_FIREWALL), ..self.explained(SetName::LoadBalancerFirewall) }
    }

    fn source_range_rules(&self) -> Vec<Rule> {
        vec![
            then(self.explained(SetName::LoadBalancerSourceCidr), Target::Return),
            then(self.explained(SetName::LoadBalancerSourceIp), Target::Return),
            then(Rule::default(), Target::Drop),
        ]
    }

    /// The addresses of Services are local, and with them every server on this host that listens on all addresses would be
    /// reachable by them: all but the ports of Services are closed.
    fn filter_rules(&self) -> Vec<Rule> {
        let new = |rule| Rule { conntrack_state: Some(Not::Is(ConntrackStates::New)), ..rule };
        let mut rules = Vec::new();
        if let Some(detector) = self.detector() {
            // Endpoints of other nodes serve this node, whose packets do not come through here, and its pods. All others
            // should have been sent to another node; an endpoint would answer them with an address that they never asked.
            let lacking = new(self.explained(SetName::NoLocalEndpoints));
            rules.push(then(from_pods(lacking, detector, false), Target::Drop));
        }
        let open = SERVICE_SETS.into_iter().chain([SetName::HealthCheckNodePort]);
        rules.extend(open.map(|name| then(self.matches(name), Target::Return)));
        rules.push(then(new(self.matches(SetName::IpvsIps)), Target::Reject));
        rules.extend(self.settings.service_cidrs(self.family).map(|cidr| {
            let unused = commented("cluster IPs that are not in use are local, too");
            then(new(Rule { destination: Some(Not::Is(cidr)), ..unused }), Target::Reject)
        }));
        rules
    }
}

fn then(rule: Rule, target: Target) -> Rule {
    Rule { target: Some(target), ..rule }
}

fn masquerade(rule: Rule) -> Rule {
    Rule { target: jump(MARK_MASQ), ..rule }
}
