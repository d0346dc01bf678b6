//! What of the tables is ours, whichever mode wrote it, and the jumps of each mode. One mode removes what the other has left
//! behind.

use std::sync::Arc;

use crate::iptables::base::localnet_rule;
use crate::iptables::names::*;
use crate::iptables::{jump, rule_key, spec};
use crate::kernel::rule::{CommentPosition, ConntrackStates, Not};
use crate::kernel::{ChainClass, ChainKey, ChainName, Claims, Placement, Rule, RuleKey, Table};
use crate::net::IpFamily;

/// Which mode writes to the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Chains for every Service.
    Iptables,
    /// Rules that look into sets.
    Ipvs,
}

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

const PORTALS: Option<&str> = Some("kubernetes service portals");
const MASQUERADING: Option<&str> = Some("kubernetes postrouting rules");
const FORWARDING: Option<&str> = Some("kubernetes forwarding rules");

/// The jumps of iptables mode, in kube-proxy's order. Each is put in front, so that the last one for a chain ends up first in
/// it.
const IPTABLES_JUMPS: [Jump; 14] = {
    use Table::{Filter, Nat};
    const EXTERNAL: Option<&str> = Some("kubernetes externally-visible service portals");
    const BALANCER: Option<&str> = Some("kubernetes load balancer firewall");
    [
        jump_from(Filter, HOST_INPUT, EXTERNAL_SERVICES, true, EXTERNAL),
        jump_from(Filter, HOST_FORWARD, EXTERNAL_SERVICES, true, EXTERNAL),
        jump_from(Filter, HOST_INPUT, NODE_PORTS, false, Some("kubernetes health check service ports")),
        jump_from(Filter, HOST_FORWARD, SERVICES, true, PORTALS),
        jump_from(Filter, HOST_OUTPUT, SERVICES, true, PORTALS),
        jump_from(Filter, HOST_FORWARD, FORWARD, false, FORWARDING),
        jump_from(Filter, HOST_INPUT, PROXY_FIREWALL, true, BALANCER),
        jump_from(Filter, HOST_OUTPUT, PROXY_FIREWALL, true, BALANCER),
        jump_from(Filter, HOST_FORWARD, PROXY_FIREWALL, true, BALANCER),
        jump_from(Nat, HOST_OUTPUT, SERVICES, false, PORTALS),
        jump_from(Nat, HOST_PREROUTING, SERVICES, false, PORTALS),
        jump_from(Nat, HOST_POSTROUTING, POSTROUTING, false, MASQUERADING),
        jump_from(Filter, HOST_INPUT, FIREWALL, false, None),
        jump_from(Filter, HOST_OUTPUT, FIREWALL, false, None),
    ]
};

/// Those of IPVS mode, likewise.
const IPVS_JUMPS: [Jump; 9] = {
    use Table::{Filter, Nat};
    const BALANCER: Option<&str> = Some("kube-proxy firewall rules");
    const ACCESS: Option<&str> = Some("kubernetes ipvs access filter");
    [
        jump_from(Nat, HOST_OUTPUT, SERVICES, false, PORTALS),
        jump_from(Nat, HOST_PREROUTING, SERVICES, false, PORTALS),
        jump_from(Nat, HOST_POSTROUTING, POSTROUTING, false, MASQUERADING),
        jump_from(Filter, HOST_FORWARD, FORWARD, false, FORWARDING),
        jump_from(Filter, HOST_INPUT, NODE_PORT, false, Some("kubernetes health check rules")),
        jump_from(Filter, HOST_INPUT, PROXY_FIREWALL, false, BALANCER),
        jump_from(Filter, HOST_FORWARD, PROXY_FIREWALL, false, BALANCER),
        jump_from(Filter, HOST_INPUT, IPVS_FILTER, false, ACCESS),
        jump_from(Filter, HOST_OUTPUT, IPVS_OUT_FILTER, false, ACCESS),
    ]
};

/// All chains, with their class in iptables mode.
const CHAINS: [(Table, ChainName, ChainClass); 24] = {
    use ChainClass::{Host, Private, Shared};
    use Table::{Filter, Nat};
    [
        (Filter, SERVICES, Shared),
        (Filter, EXTERNAL_SERVICES, Shared),
        (Filter, NODE_PORTS, Shared),
        (Filter, PROXY_FIREWALL, Shared),
        (Filter, IPVS_OUT_FILTER, Shared),
        (Nat, SERVICES, Shared),
        (Nat, NODE_PORTS, Shared),
        (Nat, EXT_NODE_PORTS, Shared),
        (Filter, FORWARD, Private),
        (Filter, CANARY, Private),
        (Filter, NODE_PORT, Private),
        (Filter, SOURCE_RANGES_FIREWALL, Private),
        (Filter, IPVS_FILTER, Private),
        (Nat, POSTROUTING, Private),
        (Nat, MARK_MASQ, Private),
        (Nat, CANARY, Private),
        (Nat, NODE_PORT, Private),
        (Nat, LOAD_BALANCER, Private),
        (Filter, HOST_INPUT, Host),
        (Filter, HOST_FORWARD, Host),
        (Filter, HOST_OUTPUT, Host),
        (Nat, HOST_PREROUTING, Host),
        (Nat, HOST_OUTPUT, Host),
        (Nat, HOST_POSTROUTING, Host),
    ]
};

/// Chains to which iptables mode adds rules for every Service, while IPVS mode writes them as a whole.
const WHOLE_IN_IPVS: [(Table, ChainName); 2] = [(Table::Filter, PROXY_FIREWALL), (Table::Nat, SERVICES)];

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

impl Mode {
    /// The jumps from built-in chains, in the order in which they are put in front.
    pub(crate) fn jumps(self, family: IpFamily) -> impl Iterator<Item = (RuleKey, Placement)> {
        let jumps: &[Jump] = match self {
            Mode::Iptables => &IPTABLES_JUMPS,
            Mode::Ipvs => &IPVS_JUMPS,
        };
        jumps
            .iter()
            .map(move |jump| (rule_key(ChainKey::new(family, jump.table, jump.host), &jump.rule()), Placement::Head))
    }

    /// Everything in the tables that portolan or kube-proxy may have written in any mode, without what kubelet writes as well.
    pub(crate) fn removable(self) -> Claims {
        let class = |table, name, class| match self {
            Mode::Ipvs if WHOLE_IN_IPVS.contains(&(table, name)) => ChainClass::Private,
            _ => class,
        };
        let mut jumps: Vec<_> = jumps(|jump| jump.target != FIREWALL).collect();
        jumps.sort_unstable();
        jumps.dedup();
        Claims {
            chains: CHAINS.into_iter().map(|(table, name, usual)| (table, name, class(table, name, usual))).collect(),
            shared_prefixes: LEAF_PREFIXES.into_iter().map(|prefix| (Table::Nat, prefix)).collect(),
            prefixes: PREFIXES.into_iter().map(|prefix| (Table::Nat, prefix)).collect(),
            removal_order: removal_order(),
            jumps,
            items: None,
        }
    }
}

/// In which order chains of the nat table can be removed.
fn removal_order() -> Vec<String> {
    let wrappers = [SVC_MASQUERADE, EXT_MASQUERADE, EXT_NODE_PORTS_MASQUERADE];
    let entries = [SVC_DISPATCH, EXT_DISPATCH, SVL_DISPATCH, EXT_NODE_PORTS];
    let names = wrappers.iter().chain(&entries).map(ChainName::as_str);
    names
        .chain([SVC_BRANCH_PREFIX])
        .chain(LEAF_PREFIXES)
        .chain([FW_PREFIX, EXT_PREFIX, SVL_PREFIX, SVC_PREFIX, SEP_PREFIX])
        .chain([MARK_MASQ.as_str()])
        .map(str::to_owned)
        .collect()
}

/// What iptables mode shares with kubelet.
pub(super) fn add_firewall(claims: &mut Claims) {
    claims.chains.push((Table::Filter, FIREWALL, ChainClass::Host));
    claims.jumps.push((Table::Filter, FIREWALL, spec(&localnet_rule())));
    claims.jumps.extend(jumps(|jump| jump.target == FIREWALL));
}

fn jumps(wanted: impl Fn(&Jump) -> bool) -> impl Iterator<Item = (Table, ChainName, Arc<str>)> {
    let all = IPTABLES_JUMPS.iter().chain(&IPVS_JUMPS);
    all.filter(move |jump| wanted(jump)).map(|jump| (jump.table, jump.host, spec(&jump.rule())))
}
