//! What exists without any Service: the fixed chains, the jumps to them from built-in chains, and what of it is ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use crate::backend::Fragment;
use crate::compile::{NodeContext, NodePortAddresses};
use crate::iptables::names::*;
use crate::iptables::{commented, jump, rule_key, spec};
use crate::kernel::rule::{CommentPosition, ConntrackStates, Mark, Not, Target};
use crate::kernel::{ChainBody, ChainClass, ChainKey, ChainName, Claims, Placement, Rule, Table};
use crate::net::IpFamily;

/// The nfacct object that counts packets dropped because conntrack calls them INVALID.
pub const INVALID_COUNTER: &str = "ct_state_invalid_dropped_pkts";
/// The nfacct object that counts connections to node ports on 127.0.0.0/8.
pub const LOCALHOST_COUNTER: &str = "localhost_nps_accepted_pkts";

/// 127.0.0.0/8: to the kernel, all of it is this host.
pub(super) const LOCALHOST_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

/// A jump from a built-in chain.
struct Jump {
    table: Table,
    host: ChainName,
    target: ChainName,
    /// Only for the first packet of a flow: filtering that once is enough.
    new_only: bool,
    /// `None`: the rule has no comment, since kubelet's rule, which is the same one, has none.
    comment: Option<&'static str>,
}

const fn jump_from(
    table: Table,
    host: ChainName,
    target: ChainName,
    new_only: bool,
    comment: Option<&'static str>,
) -> Jump {
    Jump { table, host, target, new_only, comment }
}

/// The jumps in kube-proxy's order. Each is put in front, so that the last one for a chain ends up first in it.
const JUMPS: [Jump; 14] = {
    use Table::{Filter, Nat};
    const EXTERNAL: Option<&str> = Some("kubernetes externally-visible service portals");
    const PORTALS: Option<&str> = Some("kubernetes service portals");
    const BALANCER: Option<&str> = Some("kubernetes load balancer firewall");
    [
        jump_from(Filter, HOST_INPUT, EXTERNAL_SERVICES, true, EXTERNAL),
        jump_from(Filter, HOST_FORWARD, EXTERNAL_SERVICES, true, EXTERNAL),
        jump_from(Filter, HOST_INPUT, NODE_PORTS, false, Some("kubernetes health check service ports")),
        jump_from(Filter, HOST_FORWARD, SERVICES, true, PORTALS),
        jump_from(Filter, HOST_OUTPUT, SERVICES, true, PORTALS),
        jump_from(Filter, HOST_FORWARD, FORWARD, false, Some("kubernetes forwarding rules")),
        jump_from(Filter, HOST_INPUT, PROXY_FIREWALL, true, BALANCER),
        jump_from(Filter, HOST_OUTPUT, PROXY_FIREWALL, true, BALANCER),
        jump_from(Filter, HOST_FORWARD, PROXY_FIREWALL, true, BALANCER),
        jump_from(Nat, HOST_OUTPUT, SERVICES, false, PORTALS),
        jump_from(Nat, HOST_PREROUTING, SERVICES, false, PORTALS),
        jump_from(Nat, HOST_POSTROUTING, POSTROUTING, false, Some("kubernetes postrouting rules")),
        jump_from(Filter, HOST_INPUT, FIREWALL, false, None),
        jump_from(Filter, HOST_OUTPUT, FIREWALL, false, None),
    ]
};

const SHARED: [(Table, ChainName); 6] = [
    (Table::Filter, SERVICES),
    (Table::Filter, EXTERNAL_SERVICES),
    (Table::Filter, NODE_PORTS),
    (Table::Filter, PROXY_FIREWALL),
    (Table::Nat, SERVICES),
    (Table::Nat, NODE_PORTS),
];

const PRIVATE: [(Table, ChainName); 5] = [
    (Table::Filter, FORWARD),
    (Table::Filter, CANARY),
    (Table::Nat, POSTROUTING),
    (Table::Nat, MARK_MASQ),
    (Table::Nat, CANARY),
];

const HOST: [(Table, ChainName); 6] = [
    (Table::Filter, HOST_INPUT),
    (Table::Filter, HOST_FORWARD),
    (Table::Filter, HOST_OUTPUT),
    (Table::Nat, HOST_PREROUTING),
    (Table::Nat, HOST_OUTPUT),
    (Table::Nat, HOST_POSTROUTING),
];

impl Jump {
    fn rule(&self) -> Rule {
        Rule {
            comment: self.comment.map(str::to_owned),
            comment_position: CommentPosition::Last,
            conntrack_state: self.new_only.then_some(Not::Is(ConntrackStates::New)),
            target: jump(self.target),
            ..Rule::default()
        }
    }
}

/// What exists without any Service, in every family that is on.
pub(super) fn base(node: &NodeContext) -> Fragment {
    let mut out = Fragment::default();
    for family in IpFamily::ALL.into_iter().filter(|family| node.families[*family]) {
        for (table, name) in SHARED.into_iter().chain([(Table::Filter, FIREWALL)]) {
            out.shared_chains.push(ChainKey::new(family, table, name));
        }
        let mut private = |table, name, rules: &[Rule]| {
            out.chains.push((ChainKey::new(family, table, name), ChainBody::of(rules)));
        };
        private(Table::Filter, FORWARD, &forward_rules(node));
        private(Table::Nat, POSTROUTING, &postrouting_rules(node));
        private(
            Table::Nat,
            MARK_MASQ,
            &[Rule { target: Some(Target::OrMark(node.masquerade_mark)), ..Rule::default() }],
        );
        for jump in &JUMPS {
            let chain = ChainKey::new(family, jump.table, jump.host);
            out.rules.push((rule_key(chain, &jump.rule()), Placement::Head));
        }
        if family == IpFamily::V4 && node.localhost_node_ports {
            let chain = ChainKey::new(family, Table::Filter, FIREWALL);
            out.rules.push((rule_key(chain, &localnet_rule()), Placement::Head));
        }
        let services = ChainKey::new(family, Table::Nat, SERVICES);
        for rule in node_port_jumps(family, node) {
            out.rules.push((rule_key(services, &rule), Placement::Tail));
        }
    }
    out
}

fn postrouting_rules(node: &NodeContext) -> [Rule; 3] {
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

fn forward_rules(node: &NodeContext) -> Vec<Rule> {
    let mark = Mark { value: node.masquerade_mark, mask: node.masquerade_mark };
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
    rules.push(Rule {
        mark: Some(Not::Is(mark)),
        target: Some(Target::Accept),
        ..commented("kubernetes forwarding rules")
    });
    rules.push(Rule {
        conntrack_state: Some(Not::Is(ConntrackStates::RelatedEstablished)),
        target: Some(Target::Accept),
        ..commented("kubernetes forwarding conntrack rule")
    });
    rules
}

/// Against what `route_localnet` would otherwise allow: packets from neighbours to services that listen on 127.0.0.1.
/// kubelet writes the very same rule.
fn localnet_rule() -> Rule {
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

/// Everything that portolan or kube-proxy may have written.
pub(super) fn claims() -> Claims {
    let mut claims = removable();
    claims.chains.push((Table::Filter, FIREWALL, ChainClass::Host));
    claims.jumps.push((Table::Filter, FIREWALL, spec(&localnet_rule())));
    claims.jumps.extend(jumps(|jump| jump.target == FIREWALL));
    claims
}

/// The same without what kubelet writes as well.
pub(super) fn removable() -> Claims {
    let classes = [(&SHARED[..], ChainClass::Shared), (&PRIVATE, ChainClass::Private), (&HOST, ChainClass::Host)];
    Claims {
        chains: classes
            .into_iter()
            .flat_map(|(chains, class)| chains.iter().map(move |(table, name)| (*table, *name, class)))
            .collect(),
        prefixes: PREFIXES.into_iter().map(|prefix| (Table::Nat, prefix)).collect(),
        jumps: jumps(|jump| jump.target != FIREWALL).collect(),
        items: None,
    }
}

fn jumps(wanted: impl Fn(&Jump) -> bool) -> impl Iterator<Item = (Table, ChainName, Arc<str>)> {
    JUMPS.iter().filter(move |jump| wanted(jump)).map(|jump| (jump.table, jump.host, spec(&jump.rule())))
}
