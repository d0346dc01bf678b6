//! One service port in one family, decided: its addresses, its endpoints, its policies.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::compile::NodeContext;
use crate::model::{ServiceEntry, ServiceName, ServicePortName, TrafficPolicy};
use crate::net::IpFamily;

/// An endpoint of one service port: where packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointTarget {
    /// Address and port on the pod.
    pub socket: SocketAddr,
    /// Whether it is on this node.
    pub local: bool,
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
    /// Endpoints for traffic with policy Cluster.
    pub cluster_endpoints: Vec<usize>,
    /// Endpoints for traffic with policy Local.
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
}

/// Compiles one Service: one plan for each of its ports in each family that is on and in which it has a cluster IP,
/// IPv4 first, ports in the order of the object. Empty for an entry that has slices only.
pub fn compile_service(name: &ServiceName, entry: &ServiceEntry, node: &NodeContext) -> Vec<ServicePortPlan> {
    let _ = (name, entry, node);
    Vec::new()
}
