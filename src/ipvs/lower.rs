//! One service port as virtual servers with their real servers, addresses, and elements of sets.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::backend::Fragment;
use crate::compile::{NodeContext, NodePortAddresses, ServicePortPlan};
use crate::iptables::names::IPVS_OUT_FILTER;
use crate::iptables::rule_key;
use crate::ipvs::{IpvsSettings, Vips, route_source};
use crate::kernel::rule::Target;
use crate::kernel::{
    ChainKey, Element, ItemKey, ItemState, Placement, RealKey, Rule, RuleKey, SetKey, SetName, Table, VirtualKey,
    VirtualServer,
};
use crate::model::TrafficPolicy;
use crate::net::{IpFamily, Protocol};

/// The state of a real server that gets new connections; all get the same share.
const SERVING: ItemState = ItemState::Weight(1);

/// Appends what one service port adds in its family. `out` has its items sorted: that is how what ports of one
/// Service have in common is found.
pub(super) fn lower(settings: &IpvsSettings, plan: &ServicePortPlan, node: &NodeContext, out: &mut Fragment) {
    let mut port = Port { settings, plan, node, before: out, servers: HashSet::new(), added: Fragment::default() };
    port.loop_back();
    port.cluster_ip();
    port.external_ips();
    port.load_balancer_vips();
    port.node_port();
    port.health_check();
    let mut added = port.added;
    out.rules.append(&mut added.rules);
    // Stable sorts, which merge what is sorted in one pass; of two states of an item the first one stays.
    out.items.append(&mut added.items);
    out.items.sort_by_key(|(key, _)| *key);
    out.items.dedup_by_key(|(key, _)| *key);
}

/// A service port on its way to items.
struct Port<'a> {
    settings: &'a IpvsSettings,
    plan: &'a ServicePortPlan,
    node: &'a NodeContext,
    /// What other ports have added.
    before: &'a Fragment,
    /// The virtual servers of this port so far: an external IP that is a VIP as well has one.
    servers: HashSet<VirtualKey>,
    added: Fragment,
}

impl Port<'_> {
    /// For pods that reach themselves by a service address: all local ones, since connections outlast readiness.
    fn loop_back(&mut self) {
        for socket in self.plan.endpoints.iter().filter(|endpoint| endpoint.local).map(|endpoint| endpoint.socket) {
            let (ip, protocol) = (socket.ip(), self.plan.name.protocol);
            self.element(SetName::LoopBack, Element::IpPortIp(ip, protocol, socket.port(), ip));
        }
    }

    fn cluster_ip(&mut self) {
        let plan = self.plan;
        if !is_servable(plan.cluster_ip) {
            return;
        }
        // With policy Local and no local endpoint nothing serves, whatever the other addresses of the Service may use.
        let endpoints = match plan.internal_policy {
            TrafficPolicy::Cluster => &plan.cluster_endpoints,
            TrafficPolicy::Local => &plan.local_endpoints,
        };
        self.server(plan.cluster_ip, plan.port, endpoints);
        self.service_element(SetName::ClusterIp, plan.cluster_ip);
        self.make_local(plan.cluster_ip);
    }

    fn external_ips(&mut self) {
        let set = match self.plan.external_policy {
            TrafficPolicy::Cluster => SetName::ExternalIp,
            TrafficPolicy::Local => SetName::ExternalIpLocal,
        };
        for &address in self.plan.external_ips.iter().filter(|address| is_servable(**address)) {
            self.external_server(address, self.plan.port);
            self.service_element(set, address);
            self.make_local_unless_it_is(address);
        }
    }

    fn load_balancer_vips(&mut self) {
        for &address in self.plan.load_balancer_vips.iter().filter(|address| is_servable(**address)) {
            self.external_server(address, self.plan.port);
            self.service_element(SetName::LoadBalancer, address);
            if self.plan.external_policy == TrafficPolicy::Local {
                self.service_element(SetName::LoadBalancerLocal, address);
            }
            self.source_ranges(address);
            self.make_local_unless_it_is(address);
        }
    }

    /// Who may use a VIP.
    fn source_ranges(&mut self, vip: IpAddr) {
        let (plan, node_ip) = (self.plan, self.node.node_ips[self.plan.family]);
        if plan.source_ranges.is_empty() {
            return;
        }
        let (protocol, port) = (plan.name.protocol, plan.port.get());
        for range in &plan.source_ranges {
            let element = Element::IpPortNet(vip, protocol, port, range.trunc());
            self.element(SetName::LoadBalancerSourceCidr, element);
        }
        self.service_element(SetName::LoadBalancerFirewall, vip);
        if node_ip.is_some_and(|node_ip| plan.source_ranges.iter().any(|range| range.contains(&node_ip))) {
            // The VIP is an address of this host and may be the source of its own packets.
            self.element(SetName::LoadBalancerSourceIp, Element::IpPortIp(vip, protocol, port, vip));
        } else {
            self.refuse_node(vip);
        }
    }

    /// The node's own packets are balanced on their way out and pass no rule for what comes in.
    fn refuse_node(&mut self, vip: IpAddr) {
        let rule = Rule {
            source_is_local: true,
            virtual_server: Some(self.key(vip, self.plan.port)),
            target: Some(Target::Drop),
            ..Rule::default()
        };
        let key = rule_key(ChainKey::new(self.plan.family, Table::Filter, IPVS_OUT_FILTER), &rule);
        // Only a port that is there twice has it already.
        let is_known = |rules: &[(RuleKey, Placement)]| rules.iter().any(|(known, _)| *known == key);
        let twice = self.known_before(&self.key(vip, self.plan.port));
        if !(twice && is_known(&self.before.rules)) {
            self.added.rules.push((key, Placement::Tail));
        }
    }

    fn node_port(&mut self) {
        let plan = self.plan;
        let Some(port) = plan.node_port else { return };
        let addresses = self.node_port_addresses();
        if addresses.is_empty() {
            return;
        }
        let (all, local) = match plan.name.protocol {
            Protocol::Tcp => (SetName::NodePortTcp, SetName::NodePortLocalTcp),
            Protocol::Udp => (SetName::NodePortUdp, SetName::NodePortLocalUdp),
            Protocol::Sctp => (SetName::NodePortSctp, SetName::NodePortLocalSctp),
        };
        let sets: &[SetName] = match plan.external_policy {
            TrafficPolicy::Cluster => &[all],
            TrafficPolicy::Local => &[local, all],
        };
        for &address in &addresses {
            self.external_server(address, port);
        }
        for &set in sets {
            if plan.name.protocol == Protocol::Sctp {
                for &address in &addresses {
                    self.element(set, Element::IpPort(address, Protocol::Sctp, port.get()));
                }
            } else {
                self.element(set, Element::Port(port.get()));
            }
        }
    }

    /// Where node ports are served. Not on loopback addresses: the kernel does not let their packets out.
    fn node_port_addresses(&self) -> Vec<IpAddr> {
        let family = self.plan.family;
        let addresses = match &self.node.node_port_addresses[family] {
            NodePortAddresses::All => &self.node.node_addresses[family],
            NodePortAddresses::Only(addresses) => addresses,
        };
        let usable = |address: &IpAddr| IpFamily::of(*address) == family && is_servable(*address);
        addresses.iter().copied().filter(usable).collect()
    }

    fn health_check(&mut self) {
        if let Some(port) = self.plan.health_check_node_port {
            self.element(SetName::HealthCheckNodePort, Element::Port(port.get()));
        }
    }
}

/// The items that an address leads to.
impl Port<'_> {
    fn key(&self, address: IpAddr, port: NonZeroU16) -> VirtualKey {
        VirtualKey { address, protocol: self.plan.name.protocol, port: port.get() }
    }

    fn known_before(&self, server: &VirtualKey) -> bool {
        let key = ItemKey::VirtualServer(*server);
        self.before.items.binary_search_by_key(&key, |(known, _)| *known).is_ok()
    }

    /// A virtual server for traffic from outside. With policy Local and no local endpoint, this node and its pods may use all
    /// endpoints; a rule keeps others away.
    fn external_server(&mut self, address: IpAddr, port: NonZeroU16) {
        let plan = self.plan;
        let local = plan.external_policy == TrafficPolicy::Local && !plan.local_endpoints.is_empty();
        self.server(address, port, if local { &plan.local_endpoints } else { &plan.cluster_endpoints });
        if plan.external_lacks_local() {
            let VirtualKey { address, protocol, port } = self.key(address, port);
            self.element(SetName::NoLocalEndpoints, Element::IpPort(address, protocol, port));
        }
    }

    /// A virtual server with those of the plan's endpoints that these ascending indexes name. Where there is one already, it
    /// stays as it is.
    fn server(&mut self, address: IpAddr, port: NonZeroU16, serving: &[usize]) {
        let server = self.key(address, port);
        if self.known_before(&server) || !self.servers.insert(server) {
            return;
        }
        let persistence_seconds = self.plan.affinity_seconds.unwrap_or(0);
        let mut flags = if persistence_seconds > 0 { VirtualServer::PERSISTENT } else { 0 };
        // Without it, all connections of a client would go to the same real server.
        if self.settings.scheduler.as_str() == "mh" {
            flags |= VirtualServer::SCHEDULER_2;
        }
        let state = VirtualServer { scheduler: self.settings.scheduler, flags, persistence_seconds };
        self.added.items.push((ItemKey::VirtualServer(server), ItemState::Server(state)));
        for endpoint in serving.iter().filter_map(|at| self.plan.endpoints.get(*at)) {
            let real = RealKey { server, address: endpoint.socket.ip(), port: endpoint.socket.port() };
            self.added.items.push((ItemKey::RealServer(real), SERVING));
        }
    }

    fn element(&mut self, name: SetName, element: Element) {
        let set = SetKey { family: self.plan.family, name };
        self.added.items.push((ItemKey::Element(set, element), ItemState::Present));
    }

    /// An address with the service port.
    fn service_element(&mut self, name: SetName, address: IpAddr) {
        self.element(name, Element::IpPort(address, self.plan.name.protocol, self.plan.port.get()));
    }

    /// Makes an address of a Service one of this host, and closes its other ports.
    fn make_local(&mut self, address: IpAddr) {
        self.element(SetName::IpvsIps, Element::Ip(address));
        let family = self.plan.family;
        let item = match self.settings.vips {
            // As source the kernel takes a deprecated address only if nothing else is left: masquerading does not pick one.
            // For IPv4 it does not look at this.
            Vips::Addresses => (ItemKey::Address(address), ItemState::Address { deprecated: family == IpFamily::V6 }),
            Vips::Routes { .. } if self.settings.service_cidrs(family).any(|cidr| cidr.contains(&address)) => return,
            Vips::Routes { .. } => (ItemKey::Route(IpNet::from(address)), route_source(self.node, family)),
        };
        self.added.items.push(item);
    }

    /// An address of another interface is local already, and its other ports stay open.
    fn make_local_unless_it_is(&mut self, address: IpAddr) {
        if self.node.node_addresses[self.plan.family].binary_search(&address).is_err() {
            self.make_local(address);
        }
    }
}

/// Whether packets to an address can be balanced: loopback and link-local addresses mean something else on each host or
/// link. IPv4's 169.254.0.0/16 is routed like any other.
fn is_servable(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}
