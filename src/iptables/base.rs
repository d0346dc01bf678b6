//! What exists without any Service: the fixed chains and the jumps to them from built-in chains.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::backend::Fragment;
use crate::compile::{NodeContext, NodePortAddresses};
use crate::iptables::claims::Mode;
use crate::iptables::layout::{Layout, add_compact_base};
use crate::iptables::names::*;
use crate::iptables::{commented, jump, rule_key};
use crate::kernel::rule::{ConntrackStates, Mark, Not, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, Placement, Rule, Table};
use crate::net::IpFamily;

/// The nfacct object that counts packets dropped because conntrack calls them INVALID.
pub const INVALID_COUNTER: &str = "ct_state_invalid_dropped_pkts";
/// The nfacct object that counts connections to node ports on 127.0.0.0/8.
pub const LOCALHOST_COUNTER: &str = "localhost_nps_accepted_pkts";

/// 127.0.0.0/8: to the kernel, all of it is this host.
pub(crate) const LOCALHOST_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

const SHARED: [(Table, ChainName); 7] = [
    (Table::Filter, SERVICES),
    (Table::Filter, EXTERNAL_SERVICES),
    (Table::Filter, NODE_PORTS),
    (Table::Filter, PROXY_FIREWALL),
    (Table::Nat, SERVICES),
    (Table::Nat, NODE_PORTS),
    (Table::Filter, FIREWALL),
];

/// What exists without any Service, in every family that is on.
pub(super) fn base(node: &NodeContext, layout: Layout) -> Fragment {
    let mut out = Fragment::default();
    for family in IpFamily::ALL.into_iter().filter(|family| node.families[*family]) {
        for (table, name) in SHARED {
            out.shared_chains.push(ChainKey::new(family, table, name));
        }
        let mut private = |table, name, rules: &[Rule]| {
            out.chains.push((ChainKey::new(family, table, name), ChainBody::of(rules)));
        };
        private(Table::Filter, FORWARD, &forward_rules(node));
        private(Table::Nat, POSTROUTING, &postrouting_rules(node));
        private(Table::Nat, MARK_MASQ, &mark_masq_rules(node));
        out.rules.extend(Mode::Iptables.jumps(family));
        if family == IpFamily::V4 && node.localhost_node_ports {
            let chain = ChainKey::new(family, Table::Filter, FIREWALL);
            out.rules.push((rule_key(chain, &localnet_rule()), Placement::Head));
        }
        let services = ChainKey::new(family, Table::Nat, SERVICES);
        for rule in node_port_jumps(family, node) {
            out.rules.push((rule_key(services, &rule), Placement::Tail));
        }
        if layout == Layout::Compact {
            add_compact_base(family, node, &mut out);
        }
    }
    out
}

/// The end of KUBE-POSTROUTING, which masquerades what is marked.
pub(crate) fn postrouting_rules(node: &NodeContext) -> [Rule; 3] {
    let mark = node.masquerade_mark;
    [
        Rule {
            mark: Some(Not::IsNot(Mark { value: mark, mask: mark })),
            target: Some(Target::Return),
            ..Rule::default()
        },
        // A packet that crosses the stack a second time must not be masqueraded again.
        Rule { target: Some(Target::XorMark(mark)), ..Rule::default() },
        Rule {
            target: Some(Target::Masquerade { random_fully: node.features.random_fully }),
            ..commented("kubernetes service traffic requiring SNAT")
        },
    ]
}

/// The content of KUBE-MARK-MASQ.
pub(crate) fn mark_masq_rules(node: &NodeContext) -> [Rule; 1] {
    [Rule { target: Some(Target::OrMark(node.masquerade_mark)), ..Rule::default() }]
}

fn forward_rules(node: &NodeContext) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(3);
    // A packet that conntrack can't place is not translated back; the client would answer it with a reset and lose
    // the connection. A liberal conntrack has no such packets.
    if !node.features.tcp_be_liberal {
        rules.push(Rule {
            conntrack_state: Some(Not::Is(ConntrackStates::Invalid)),
            counter: node.features.packet_counters.then(|| INVALID_COUNTER.into()),
            target: Some(Target::Drop),
            ..Rule::default()
        });
    }
    rules.extend(forward_accept_rules(node));
    rules
}

/// The end of KUBE-FORWARD, which accepts traffic of Services even where the host forwards nothing.
pub(crate) fn forward_accept_rules(node: &NodeContext) -> [Rule; 2] {
    let mark = Mark { value: node.masquerade_mark, mask: node.masquerade_mark };
    [
        Rule { mark: Some(Not::Is(mark)), target: Some(Target::Accept), ..commented("kubernetes forwarding rules") },
        Rule {
            conntrack_state: Some(Not::Is(ConntrackStates::RelatedEstablished)),
            target: Some(Target::Accept),
            ..commented("kubernetes forwarding conntrack rule")
        },
    ]
}

/// Against what `route_localnet` would otherwise allow: packets from neighbours to services that listen on 127.0.0.1.
/// kubelet writes the very same rule.
pub(super) fn localnet_rule() -> Rule {
    Rule {
        source: Some(Not::IsNot(LOCALHOST_V4)),
        destination: Some(Not::Is(LOCALHOST_V4)),
        conntrack_state: Some(Not::IsNot(ConntrackStates::RelatedEstablishedDnat)),
        target: Some(Target::Drop),
        ..commented("block incoming localnet connections")
    }
}

/// The end of KUBE-SERVICES: whatever was for no service address may be for a node port.
fn node_port_jumps(family: IpFamily, node: &NodeContext) -> Vec<Rule> {
    let rule = Rule {
        target: jump(NODE_PORTS),
        ..commented("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    };
    let loopback = match family {
        IpFamily::V4 if node.localhost_node_ports => None,
        IpFamily::V4 => Some(LOCALHOST_V4),
        // The kernel has no route_localnet for IPv6: a translated packet from ::1 would go nowhere.
        IpFamily::V6 => Some(IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST))),
    };
    match &node.node_port_addresses[family] {
        NodePortAddresses::All => {
            vec![Rule { destination_is_local: true, destination: loopback.map(Not::IsNot), ..rule }]
        }
        NodePortAddresses::Only(addresses) => addresses
            .iter()
            .filter(|address| IpFamily::of(**address) == family)
            .filter(|address| !loopback.is_some_and(|loopback| loopback.contains(*address)))
            .map(|address| Rule { destination: Some(Not::Is(IpNet::from(*address))), ..rule.clone() })
            .collect(),
    }
}
