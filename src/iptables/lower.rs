//! One service port as chains and rules.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{LocalDetector, NodeContext, ServicePortPlan};
use crate::iptables::base::{self, LOCALHOST_COUNTER, LOCALHOST_V4};
use crate::iptables::claims::{Mode, add_firewall};
use crate::iptables::layout::{Entry, Layout, outside_pods};
use crate::iptables::names::*;
use crate::iptables::{commented, from_pods, jump, rule_key};
use crate::kernel::rule::{Not, Probability, Recent, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, Claims, ItemClaims, Placement, Rule, RuleKey, Table};
use crate::model::TrafficPolicy;
use crate::net::{IpFamily, Protocol};

/// iptables mode, for both families.
#[derive(Clone, Copy, Debug, Default)]
pub struct IptablesBackend {
    /// How Services are laid out in the nat table.
    pub layout: Layout,
}

impl Backend for IptablesBackend {
    fn base(&self, node: &NodeContext) -> Fragment {
        base::base(node, self.layout)
    }

    fn lower(&self, plan: &ServicePortPlan, node: &NodeContext, comments: RuleComments, out: &mut Fragment) {
        let port = Port::new(plan, node, comments, self.layout);
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
    socket: SocketAddr,
    chain: ChainName,
    /// Whether packets go through the chain; if not, they are translated by what would lead to it.
    used: bool,
    /// Address and port.
    text: String,
}

/// A service port on its way to rules.
struct Port<'a> {
    plan: &'a ServicePortPlan,
    node: &'a NodeContext,
    layout: Layout,
    detector: Option<&'a LocalDetector>,
    comments: RuleComments,
    /// Namespace, name and port name, as in comments.
    text: String,
    chains: PortChains,
    /// Those of the reachable endpoints, ascending by index.
    endpoints: Vec<EndpointChain>,
}

impl<'a> Port<'a> {
    fn new(plan: &'a ServicePortPlan, node: &'a NodeContext, comments: RuleComments, layout: Layout) -> Port<'a> {
        let text = plan.name.to_string();
        let endpoints = plan.reachable_endpoints.iter().filter_map(|&index| {
            let endpoint = plan.endpoints.get(index)?;
            let socket = endpoint.socket;
            let chain = endpoint_chain_of_text(&text, &plan.name, socket);
            // Only who may be the client as well, and has his packets translated here, can be sent to himself.
            let used = layout == Layout::KubeProxy || plan.affinity_seconds.is_some() || !endpoint.elsewhere;
            Some(EndpointChain { index, socket, chain, used, text: socket.to_string() })
        });
        Port {
            endpoints: endpoints.collect(),
            chains: PortChains::new(&text, &plan.name, layout),
            layout,
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

    /// Whether traffic to outside addresses goes through a chain that decides whether to masquerade.
    fn has_external_chain(&self) -> bool {
        self.plan.externally_accessible()
            && (self.layout == Layout::KubeProxy || self.plan.external_policy == TrafficPolicy::Local)
    }

    /// Where traffic to outside addresses goes that no source range has to admit.
    fn external_entry(&self) -> ChainName {
        if self.has_external_chain() { self.chains.ext } else { self.external_target() }
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
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.used) {
            push(endpoint.chain, self.endpoint_rules(endpoint));
        }
        for (chain, list) in
            [(self.chains.svc, &self.plan.cluster_endpoints), (self.chains.svl, &self.plan.local_endpoints)]
        {
            if !list.is_empty() {
                push(chain, self.dispatch_rules(chain, list));
            }
        }
        if self.has_external_chain() {
            push(self.chains.ext, self.external_rules());
        }
        if self.has_firewall() {
            push(self.chains.fw, self.source_range_rules());
        }
    }

    fn endpoint_rules(&self, endpoint: &EndpointChain) -> Vec<Rule> {
        let socket = endpoint.socket;
        let rule = self.optional_comment(|| self.text.clone());
        // An endpoint that is sent to itself would answer itself directly, and the translation would never be undone.
        let hairpin = Rule { source: Some(Not::Is(IpNet::from(socket.ip()))), target: jump(MARK_MASQ), ..rule.clone() };
        let recent = self.plan.affinity_seconds.map(|_| Recent::Set { list: endpoint.chain });
        vec![hairpin, Rule { recent, ..self.translation(endpoint, rule) }]
    }

    fn translation(&self, endpoint: &EndpointChain, rule: Rule) -> Rule {
        Rule { protocol: Some(self.plan.name.protocol), target: Some(Target::Dnat(endpoint.socket)), ..rule }
    }

    /// The content of KUBE-SVC- or KUBE-SVL-.
    fn dispatch_rules(&self, chain: ChainName, list: &[usize]) -> Vec<Rule> {
        let mut rules = Vec::with_capacity(2 * list.len() + 1);
        // In the compact layout it is decided before.
        if self.layout == Layout::KubeProxy && self.plan.internal_served() && chain == self.internal_target() {
            rules.extend(self.internal_masquerade());
        }
        let endpoints: Vec<&EndpointChain> = list.iter().filter_map(|index| self.endpoint(*index)).collect();
        let to = |endpoint: &EndpointChain| {
            let rule = self.optional_comment(|| format!("{} -> {}", self.text, endpoint.text));
            if endpoint.used { Rule { target: jump(endpoint.chain), ..rule } } else { self.translation(endpoint, rule) }
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
        if self.node.masquerade_all { Some(rule) } else { outside_pods(self.detector, rule) }
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
            target: jump(self.external_entry()),
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

    /// Adds what leads packets for one address to a chain of the port.
    fn lead(&mut self, (layout, entry): (Layout, Entry), address: IpAddr, rule: Rule) {
        match layout {
            Layout::KubeProxy => self.head(Table::Nat, SERVICES, &rule),
            // The chain that it leads to says whose it is, unless the cluster is too big for words.
            Layout::Compact => self.head(Table::Nat, entry.chain(address), &Rule { comment: None, ..rule }),
        }
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

    /// Where entries of outside addresses stand.
    fn external(&self) -> (Layout, Entry) {
        let entry = match self.plan.external_policy {
            TrafficPolicy::Cluster => Entry::Masqueraded,
            TrafficPolicy::Local => Entry::Undecided,
        };
        (self.layout, entry)
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
                let rule = Rule { target: jump(self.internal_target()), ..rule };
                out.lead((self.layout, Entry::ClusterIp), address, rule);
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
                let rule = Rule { target: jump(self.external_entry()), ..rule };
                out.lead(self.external(), address, rule);
            }
            self.external_verdict(address, out);
        }
    }

    fn load_balancer_rules(&self, out: &mut Entries) {
        let fw = self.chains.fw;
        let target = if self.has_firewall() { fw } else { self.external_entry() };
        for &address in &self.plan.load_balancer_vips {
            if self.plan.has_any_endpoints {
                let rule = self.to_address(address, format!("{} loadbalancer IP", self.text));
                out.lead(self.external(), address, Rule { target: jump(target), ..rule });
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
            let rule = Rule { target: jump(self.external_entry()), ..self.to_port(port, self.text.clone()) };
            let (chain, rule) = match self.external() {
                (Layout::KubeProxy, _) => (NODE_PORTS, rule),
                (Layout::Compact, Entry::Masqueraded) => (EXT_NODE_PORTS, Rule { comment: None, ..rule }),
                (Layout::Compact, _) => (NODE_PORTS, Rule { comment: None, ..rule }),
            };
            let node = self.node;
            if self.plan.family == IpFamily::V4 && node.localhost_node_ports && node.features.packet_counters {
                let counted = Rule {
                    destination: Some(Not::Is(LOCALHOST_V4)),
                    counter: Some(LOCALHOST_COUNTER.into()),
                    ..rule.clone()
                };
                out.head(Table::Nat, chain, &counted);
            }
            // At the end, so that the counted rule is in front of it whichever of them comes first.
            out.push(Table::Nat, chain, Placement::Tail, &rule);
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
