//! One service port in one family, decided: its addresses, its endpoints, its policies.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::compile::NodeContext;
use crate::compile::topology::{Candidate, Needs, select};
use crate::model::{FiledEndpoint, Service, ServiceEntry, ServiceName, ServicePort, ServicePortName, TrafficPolicy};
use crate::net::IpFamily;

/// An endpoint of one service port: where packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointTarget {
    /// Address and port on the pod.
    pub socket: SocketAddr,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it is known to be on another node. Of an endpoint that is on no node neither is true.
    pub elsewhere: bool,
    /// The condition ready.
    pub ready: bool,
    /// The condition serving.
    pub serving: bool,
    /// The condition terminating.
    pub terminating: bool,
}

/// What one service port needs in one family. All choices are made; a backend only spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortPlan {
    /// Which service port.
    pub name: ServicePortName,
    /// Which family.
    pub family: IpFamily,
    /// The cluster IP in this family.
    pub cluster_ip: IpAddr,
    /// The port on cluster IP, external IPs and VIPs.
    pub port: NonZeroU16,
    /// The port on the node's addresses.
    pub node_port: Option<NonZeroU16>,
    /// External IPs in this family that are to be programmed.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer VIPs in this family.
    pub load_balancer_vips: Vec<IpAddr>,
    /// Source ranges that filter traffic to the VIPs; empty: no filter.
    pub source_ranges: Vec<IpNet>,
    /// ClientIP affinity, in seconds.
    pub affinity_seconds: Option<u32>,
    /// The policy for traffic to the cluster IP.
    pub internal_policy: TrafficPolicy,
    /// The policy for traffic to node port, external IPs and VIPs.
    pub external_policy: TrafficPolicy,
    /// The port on which a load balancer asks for the health of a Local service.
    pub health_check_node_port: Option<NonZeroU16>,
    /// Every distinct endpoint of the port, usable or not, sorted by the text of its address and port (the order in
    /// which kube-proxy writes them). The lists below are indexes into it, ascending.
    pub endpoints: Vec<EndpointTarget>,
    /// Endpoints for traffic with policy Cluster. Not empty if the port is externally accessible and
    /// `has_any_endpoints` is set: pods of this node may use them whatever the external policy.
    pub cluster_endpoints: Vec<usize>,
    /// Endpoints for traffic with policy Local; empty if there is no such traffic.
    pub local_endpoints: Vec<usize>,
    /// Endpoints that need objects of their own in the kernel: those of both lists that can be used.
    pub reachable_endpoints: Vec<usize>,
    /// Whether any endpoint is usable anywhere; if not, traffic is rejected rather than dropped.
    pub has_any_endpoints: bool,
}

impl ServicePortPlan {
    /// Whether the port has an address that is meant for the outside: a node port, an external IP or a VIP.
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.load_balancer_vips.is_empty() || !self.external_ips.is_empty()
    }

    /// Whether traffic to the cluster IP has an endpoint to go to.
    pub fn internal_served(&self) -> bool {
        self.has_any_endpoints && !self.internal_lacks_local()
    }

    /// Whether traffic from outside has an endpoint to go to.
    pub fn external_served(&self) -> bool {
        self.has_any_endpoints && !self.lacks_local(self.external_policy)
    }

    /// Whether traffic to the cluster IP is dropped because all endpoints are on other nodes.
    pub fn internal_lacks_local(&self) -> bool {
        self.lacks_local(self.internal_policy)
    }

    /// Whether traffic from outside is dropped because all endpoints are on other nodes. False for a port without an
    /// external address, which has no such traffic.
    pub fn external_lacks_local(&self) -> bool {
        self.externally_accessible() && self.lacks_local(self.external_policy)
    }

    fn lacks_local(&self, policy: TrafficPolicy) -> bool {
        self.has_any_endpoints && policy == TrafficPolicy::Local && self.local_endpoints.is_empty()
    }
}

/// The number of distinct ready endpoint addresses on this node over the plans of one Service in one family: what the
/// health-check node port reports.
pub fn local_ready_addresses<'a>(plans: impl IntoIterator<Item = &'a ServicePortPlan>, family: IpFamily) -> usize {
    plans
        .into_iter()
        .filter(|plan| plan.family == family)
        .flat_map(|plan| &plan.endpoints)
        .filter(|endpoint| endpoint.local && endpoint.ready)
        .map(|endpoint| endpoint.socket.ip())
        .collect::<BTreeSet<_>>()
        .len()
}

/// Compiles one Service: one plan for each of its ports in each family that is on and in which it has a cluster IP,
/// IPv4 first, ports in the order of the object. Empty for an entry that has slices only.
pub fn compile_service(name: &ServiceName, entry: &ServiceEntry, node: &NodeContext) -> Vec<ServicePortPlan> {
    let Some(service) = &entry.service else { return Vec::new() };
    let mut plans = Vec::new();
    for family in IpFamily::ALL {
        let Some(cluster_ip) = service.cluster_ip(family).filter(|_| node.families[family]) else { continue };
        for port in &service.ports {
            plans.push(compile_port(name, service, port, cluster_ip, entry, node));
        }
    }
    plans
}

fn compile_port(
    name: &ServiceName,
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    entry: &ServiceEntry,
    node: &NodeContext,
) -> ServicePortPlan {
    let family = IpFamily::of(cluster_ip);
    let mut plan = ServicePortPlan {
        name: ServicePortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol },
        family,
        cluster_ip,
        port: port.port,
        node_port: port.node_port,
        external_ips: if node.allow_external_ips { of_family(&service.external_ips, family) } else { Vec::new() },
        load_balancer_vips: of_family(&service.load_balancer_vips, family),
        source_ranges: service.source_ranges(family),
        affinity_seconds: service.affinity_seconds,
        internal_policy: service.internal_traffic_policy,
        external_policy: service.external_traffic_policy,
        health_check_node_port: service.health_check_node_port,
        endpoints: Vec::new(),
        cluster_endpoints: Vec::new(),
        local_endpoints: Vec::new(),
        reachable_endpoints: Vec::new(),
        has_any_endpoints: false,
    };
    // kube-proxy asks the external IPs of the object even if the gate keeps it from programming them; then it builds
    // chains that nothing jumps to. The gated list decides here.
    let external = plan.externally_accessible();
    let internal_local = plan.internal_policy == TrafficPolicy::Local;
    let needs = Needs {
        cluster: !internal_local || external,
        local: internal_local || (external && plan.external_policy == TrafficPolicy::Local),
    };
    let candidates = candidates(entry, port, family, node);
    let selection = select(&candidates, needs, &node.node_name, node.zone.as_deref());
    plan.endpoints = candidates.into_iter().map(|candidate| candidate.target).collect();
    plan.cluster_endpoints = selection.cluster;
    plan.local_endpoints = selection.local;
    plan.reachable_endpoints = selection.reachable;
    plan.has_any_endpoints = selection.has_any;
    plan
}

fn of_family(addresses: &[IpAddr], family: IpFamily) -> Vec<IpAddr> {
    addresses.iter().copied().filter(|address| IpFamily::of(*address) == family).collect()
}

/// The distinct endpoints of one service port over all slices of the family, sorted by text. While a pod moves between
/// slices it may stand in two of them; the version that is better off wins, and of equals the first in the order of
/// slices, so that the result does not depend on the order of events.
fn candidates<'a>(
    entry: &'a ServiceEntry,
    port: &ServicePort,
    family: IpFamily,
    node: &NodeContext,
) -> Vec<Candidate<'a>> {
    let mut found: Vec<(String, Candidate<'a>)> = Vec::new();
    for slice in entry.slices.iter().filter(|slice| slice.family() == family) {
        for target in slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol) {
            found.extend(slice.endpoints().map(|endpoint| {
                let candidate = candidate(endpoint, target.port, node);
                (candidate.target.socket.to_string(), candidate)
            }));
        }
    }
    // The sort is stable.
    found.sort_by(|(left, a), (right, b)| {
        left.cmp(right).then_with(|| Reverse(rank(&a.target)).cmp(&Reverse(rank(&b.target))))
    });
    found.dedup_by(|(later, _), (earlier, _)| later == earlier);
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

fn candidate<'a>(endpoint: FiledEndpoint<'a>, port: NonZeroU16, node: &NodeContext) -> Candidate<'a> {
    let on = endpoint.node.filter(|_| !node.node_name.is_empty());
    let local = on.is_some_and(|name| *name == *node.node_name);
    Candidate {
        target: EndpointTarget {
            socket: SocketAddr::new(endpoint.address, port.get()),
            local,
            elsewhere: on.is_some() && !local,
            ready: endpoint.conditions.ready,
            serving: endpoint.conditions.serving,
            terminating: endpoint.conditions.terminating,
        },
        hints: endpoint.hints,
    }
}

/// How well off an endpoint is: the greatest wins among duplicates.
fn rank(target: &EndpointTarget) -> (bool, bool, bool) {
    (!target.terminating, target.ready, target.serving)
}

#[cfg(test)]
mod tests;
