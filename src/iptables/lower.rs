//! One service port as chains and rules.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{LocalDetector, NodeContext, ServicePortPlan};
use crate::iptables::base::{self, LOCALHOST_COUNTER, LOCALHOST_V4};
use crate::iptables::claims::{Mode, add_firewall};
use crate::iptables::names::*;
use crate::iptables::{commented, from_pods, jump, rule_key};
use crate::kernel::rule::{Not, Probability, Recent, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, Claims, ItemClaims, Placement, Rule, RuleKey, Table};
use crate::model::TrafficPolicy;
use crate::net::{IpFamily, Protocol};

/// kube-proxy's iptables mode, for both families.
#[derive(Clone, Copy, Debug, Default)]
pub struct IptablesBackend;

impl Backend for IptablesBackend {
    fn base(&self, node: &NodeContext) -> Fragment {
        base::base(node)
    }

    fn lower(&self, plan: &ServicePortPlan, node: &NodeContext, comments: RuleComments, out: &mut Fragment) {
        let port = Port::new(plan, node, comments);
        port.push_chains(&mut out.chains);
        // Head rules are put in front one after the other; backwards, they end up in kube-proxy's order.
        for (key, placement) in port.entry_rules().into_iter().rev() {
            // Ports that share their name but not their protocol have the same rule for the health-check port.
            let health_check = key.chain.table.table == Table::Filter && key.chain.name == NODE_PORTS;
            if !(health_check && out.rules.iter().any(|(known, _)| *known == key)) {
                out.rules.push((key, placement));
            }
        }
    }

    fn claims(&self) -> Claims {
        let mut claims = self.removable();
        add_firewall(&mut claims);
        claims
    }

    fn removable(&self) -> Claims {
        Claims { items: Some(ItemClaims::default()), ..Mode::Iptables.removable() }
    }
}

/// One endpoint with what its rules are made of.
struct EndpointChain {
    /// Its index in the plan.
    index: usize,
    chain: ChainName,
    /// Address and port.
    text: String,
}

/// A service port on its way to rules.
struct Port<'a> {
    plan: &'a ServicePortPlan,
    node: &'a NodeContext,
    detector: Option<&'a LocalDetector>,
    comments: RuleComments,
    /// Namespace, name and port name, as in comments.
    text: String,
    chains: PortChains,
    /// Those of the reachable endpoints, ascending by index.
    endpoints: Vec<EndpointChain>,
}

impl<'a> Port<'a> {
    fn new(plan: &'a ServicePortPlan, node: &'a NodeContext, comments: RuleComments) -> Port<'a> {
        let text = plan.name.to_string();
        let endpoints = plan.reachable_endpoints.iter().filter_map(|&index| {
            let socket = plan.endpoints.get(index)?.socket;
            let chain = endpoint_chain_of_text(&text, &plan.name, socket);
            Some(EndpointChain { index, chain, text: socket.to_string() })
        });
        Port {
            endpoints: endpoints.collect(),
            chains: PortChains::new(&text, &plan.name),
            detector: node.local_detector[plan.family].as_ref(),
            plan,
            node,
            comments,
            text,
        }
    }

    fn internal_target(&self) -> ChainName {
        self.policy_chain(self.plan.internal_policy)
    }

    fn external_target(&self) -> ChainName {
        self.policy_chain(self.plan.external_policy)
    }

    fn policy_chain(&self, policy: TrafficPolicy) -> ChainName {
        match policy {
            TrafficPolicy::Cluster => self.chains.svc,
            TrafficPolicy::Local => self.chains.svl,
        }
    }

    fn has_firewall(&self) -> bool {
        self.plan.has_any_endpoints && !self.plan.load_balancer_vips.is_empty() && !self.plan.source_ranges.is_empty()
    }

    /// A comment in a chain that grows with the number of endpoints.
    fn optional_comment(&self, comment: impl FnOnce() -> String) -> Rule {
        match self.comments {
            RuleComments::Keep => commented(comment()),
            RuleComments::Omit => Rule::default(),
        }
    }

    /// A rule for packets to one address and the service port.
    fn to_address(&self, address: IpAddr, comment: String) -> Rule {
        Rule { destination: Some(Not::Is(IpNet::from(address))), ..self.to_port(self.plan.port, comment) }
    }

    fn to_port(&self, port: NonZeroU16, comment: String) -> Rule {
        Rule { protocol: Some(self.plan.name.protocol), destination_port: Some(port.get()), ..commented(comment) }
    }
}

/// The chains of the port: nat only.
impl Port<'_> {
    /// Chains come after those that they jump to.
    fn push_chains(&self, out: &mut Vec<(ChainKey, ChainBody)>) {
        if !self.plan.has_any_endpoints {
            return;
        }
        let mut push = |name, rules: Vec<Rule>| {
            out.push((ChainKey::new(self.plan.family, Table::Nat, name), ChainBody::of(&rules)));
        };
        for endpoint in &self.endpoints {
            push(endpoint.chain, self.endpoint_rules(endpoint));
        }
        for (chain, list) in
            [(self.chains.svc, &self.plan.cluster_endpoints), (self.chains.svl, &self.plan.local_endpoints)]
        {
            if !list.is_empty() {
                push(chain, self.dispatch_rules(chain, list));
            }
        }
        if self.plan.externally_accessible() {
            push(self.chains.ext, self.external_rules());
        }
        if self.has_firewall() {
            push(self.chains.fw, self.source_range_rules());
        }
    }

    fn endpoint_rules(&self, endpoint: &EndpointChain) -> Vec<Rule> {
        let Some(socket) = self.plan.endpoints.get(endpoint.index).map(|target| target.socket) else {
            return Vec::new();
        };
        let rule = self.optional_comment(|| self.text.clone());
        // An endpoint that is sent to itself would answer itself directly, and the translation would never be undone.
        let hairpin = Rule { source: Some(Not::Is(IpNet::from(socket.ip()))), target: jump(MARK_MASQ), ..rule.clone() };
        let translate = Rule {
            protocol: Some(self.plan.name.protocol),
            recent: self.plan.affinity_seconds.map(|_| Recent::Set { list: endpoint.chain }),
            target: Some(Target::Dnat(socket)),
            ..rule
        };
        vec![hairpin, translate]
    }

    /// The content of KUBE-SVC- or KUBE-SVL-.
    fn dispatch_rules(&self, chain: ChainName, list: &[usize]) -> Vec<Rule> {
        let mut rules = Vec::with_capacity(2 * list.len() + 1);
        if self.plan.internal_served() && chain == self.internal_target() {
            rules.extend(self.internal_masquerade());
        }
        let endpoints: Vec<&EndpointChain> = list.iter().filter_map(|index| self.endpoint(*index)).collect();
        let to = |endpoint: &EndpointChain| Rule {
            target: jump(endpoint.chain),
            ..self.optional_comment(|| format!("{} -> {}", self.text, endpoint.text))
        };
        if let Some(seconds) = self.plan.affinity_seconds {
            rules.extend(endpoints.iter().map(|endpoint| Rule {
                recent: Some(Recent::Check { list: endpoint.chain, seconds }),
                ..to(endpoint)
            }));
        }
        for (at, endpoint) in endpoints.iter().enumerate() {
            // Of those that are left each gets the same share; the last one takes all that came so far.
            let left = endpoints.len() - at;
            rules.push(Rule { probability: (left > 1).then(|| Probability::one_in(left)), ..to(endpoint) });
        }
        rules
    }

    fn endpoint(&self, index: usize) -> Option<&EndpointChain> {
        let at = self.endpoints.binary_search_by_key(&index, |endpoint| endpoint.index).ok()?;
        self.endpoints.get(at)
    }

    /// Masquerades what is sent to the cluster IP from elsewhere, whose answer would otherwise not pass this node. The
    /// address is matched, since traffic to outside addresses comes through the same chain.
    fn internal_masquerade(&self) -> Option<Rule> {
        let rule = Rule {
            target: jump(MARK_MASQ),
            ..self.to_address(self.plan.cluster_ip, format!("{} cluster IP", self.text))
        };
        if self.node.masquerade_all {
            return Some(rule);
        }
        // Every source is in a range of length zero: nothing is left to masquerade, and nft does not take the negation.
        let everything = matches!(self.detector, Some(LocalDetector::SourceCidr(net)) if net.prefix_len() == 0);
        self.detector.filter(|_| !everything).map(|detector| from_pods(rule, detector, false))
    }

    /// The content of KUBE-EXT-.
    fn external_rules(&self) -> Vec<Rule> {
        let spn = &self.text;
        let mut rules = Vec::with_capacity(4);
        match self.plan.external_policy {
            TrafficPolicy::Cluster => rules.push(Rule {
                target: jump(MARK_MASQ),
                ..commented(format!("masquerade traffic for {spn} external destinations"))
            }),
            // What comes from this node itself need not take the way through a load balancer, which would pick
            // another node: it goes to all endpoints.
            TrafficPolicy::Local => {
                rules.extend(self.detector.map(|detector| {
                    let rule = commented(format!("pod traffic for {spn} external destinations"));
                    from_pods(Rule { target: jump(self.chains.svc), ..rule }, detector, true)
                }));
                rules.push(Rule {
                    source_is_local: true,
                    target: jump(MARK_MASQ),
                    ..commented(format!("masquerade LOCAL traffic for {spn} external destinations"))
                });
                rules.push(Rule {
                    source_is_local: true,
                    target: jump(self.chains.svc),
                    ..commented(format!("route LOCAL traffic for {spn} external destinations"))
                });
            }
        }
        if self.plan.external_served() {
            rules.push(Rule { target: jump(self.external_target()), ..Rule::default() });
        }
        rules
    }

    /// The content of KUBE-FW-: who is admitted goes on; all others leave the chain untranslated and meet the DROP in
    /// KUBE-PROXY-FIREWALL.
    fn source_range_rules(&self) -> Vec<Rule> {
        let admit = |source| Rule {
            source: Some(Not::Is(source)),
            target: jump(self.chains.ext),
            ..commented(format!("{} loadbalancer IP", self.text))
        };
        let ranges = &self.plan.source_ranges;
        let mut rules: Vec<Rule> = ranges.iter().map(|range| admit(range.trunc())).collect();
        let node_ip = self.node.node_ips[self.plan.family];
        if node_ip.is_some_and(|node_ip| ranges.iter().any(|range| range.contains(&node_ip))) {
            // A VIP that is one of the node's addresses is also the source of the node's own packets to it.
            rules.extend(self.plan.load_balancer_vips.iter().map(|vip| admit(IpNet::from(*vip))));
        }
        rules.push(commented(format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", self.text)));
        rules
    }
}

/// The rules in shared chains.
struct Entries {
    family: IpFamily,
    rules: Vec<(RuleKey, Placement)>,
}

impl Entries {
    /// Adds a rule once: an external IP that is a VIP as well has the same verdict twice.
    fn push(&mut self, table: Table, chain: ChainName, placement: Placement, rule: &Rule) {
        let key = rule_key(ChainKey::new(self.family, table, chain), rule);
        if !self.rules.iter().any(|(known, _)| *known == key) {
            self.rules.push((key, placement));
        }
    }

    fn head(&mut self, table: Table, chain: ChainName, rule: &Rule) {
        self.push(table, chain, Placement::Head, rule);
    }
}

impl Port<'_> {
    /// All rules in shared chains, in kube-proxy's order.
    fn entry_rules(&self) -> Vec<(RuleKey, Placement)> {
        let mut out = Entries { family: self.plan.family, rules: Vec::new() };
        self.cluster_ip_rules(&mut out);
        self.external_ip_rules(&mut out);
        self.load_balancer_rules(&mut out);
        self.node_port_rules(&mut out);
        self.health_check_rules(&mut out);
        out.rules
    }

    /// What becomes of traffic that is not served, and why.
    fn verdict(&self, served: bool) -> Option<(Target, String)> {
        if served {
            None
        } else if self.plan.has_any_endpoints {
            Some((Target::Drop, format!("{} has no local endpoints", self.text)))
        } else {
            Some((Target::Reject, format!("{} has no endpoints", self.text)))
        }
    }

    fn cluster_ip_rules(&self, out: &mut Entries) {
        let address = self.plan.cluster_ip;
        match self.verdict(self.plan.internal_served()) {
            None => {
                let rule = self.to_address(address, format!("{} cluster IP", self.text));
                out.head(Table::Nat, SERVICES, &Rule { target: jump(self.internal_target()), ..rule });
            }
            Some((target, comment)) => {
                let rule = self.to_address(address, comment);
                out.head(Table::Filter, SERVICES, &Rule { target: Some(target), ..rule });
            }
        }
    }

    fn external_ip_rules(&self, out: &mut Entries) {
        for &address in &self.plan.external_ips {
            if self.plan.has_any_endpoints {
                let rule = self.to_address(address, format!("{} external IP", self.text));
                out.head(Table::Nat, SERVICES, &Rule { target: jump(self.chains.ext), ..rule });
            }
            self.external_verdict(address, out);
        }
    }

    fn load_balancer_rules(&self, out: &mut Entries) {
        let fw = self.chains.fw;
        let target = if self.has_firewall() { fw } else { self.chains.ext };
        for &address in &self.plan.load_balancer_vips {
            if self.plan.has_any_endpoints {
                let rule = self.to_address(address, format!("{} loadbalancer IP", self.text));
                out.head(Table::Nat, SERVICES, &Rule { target: jump(target), ..rule });
            }
            if self.has_firewall() {
                let rule = self.to_address(address, format!("{} traffic not accepted by {fw}", self.text));
                out.head(Table::Filter, PROXY_FIREWALL, &Rule { target: Some(Target::Drop), ..rule });
            }
        }
        for &address in &self.plan.load_balancer_vips {
            self.external_verdict(address, out);
        }
    }

    /// Stands beside the rule in nat if only this node has no endpoint: what KUBE-EXT- sent to another node's endpoint
    /// is translated by then and does not match.
    fn external_verdict(&self, address: IpAddr, out: &mut Entries) {
        if let Some((target, comment)) = self.verdict(self.plan.external_served()) {
            let rule = self.to_address(address, comment);
            out.head(Table::Filter, EXTERNAL_SERVICES, &Rule { target: Some(target), ..rule });
        }
    }

    fn node_port_rules(&self, out: &mut Entries) {
        let Some(port) = self.plan.node_port else { return };
        if self.plan.has_any_endpoints {
            let rule = Rule { target: jump(self.chains.ext), ..self.to_port(port, self.text.clone()) };
            let node = self.node;
            if self.plan.family == IpFamily::V4 && node.localhost_node_ports && node.features.packet_counters {
                let counted = Rule {
                    destination: Some(Not::Is(LOCALHOST_V4)),
                    counter: Some(LOCALHOST_COUNTER.into()),
                    ..rule.clone()
                };
                out.head(Table::Nat, NODE_PORTS, &counted);
            }
            // At the end, so that the counted rule is in front of it whichever of them comes first.
            out.push(Table::Nat, NODE_PORTS, Placement::Tail, &rule);
        }
        if let Some((target, comment)) = self.verdict(self.plan.external_served()) {
            let rule = Rule { destination_is_local: true, ..self.to_port(port, comment) };
            out.head(Table::Filter, EXTERNAL_SERVICES, &Rule { target: Some(target), ..rule });
        }
    }

    /// The load balancer's question must reach our own server even where the host's firewall is closed.
    fn health_check_rules(&self, out: &mut Entries) {
        let Some(port) = self.plan.health_check_node_port else { return };
        let rule = Rule {
            protocol: Some(Protocol::Tcp),
            target: Some(Target::Accept),
            ..self.to_port(port, format!("{} health check node port", self.text))
        };
        out.head(Table::Filter, NODE_PORTS, &rule);
    }
}
