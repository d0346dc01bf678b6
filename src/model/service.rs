//! A Service as a proxy sees it: addresses, ports and policies, nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::{IpFamily, Protocol};

/// A Service that has cluster IPs. Headless and ExternalName Services never become one of these.
///
/// Addresses of both families stand side by side; a reader picks his family. Compared by value: two
/// versions of an object that are equal here need no work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The IPv4 cluster IP; `None` when the Service has none in this family and so does not exist in it.
    pub cluster_ip_v4: Option<Ipv4Addr>,
    /// The IPv6 cluster IP, likewise.
    pub cluster_ip_v6: Option<Ipv6Addr>,
    /// `spec.externalIPs`, valid ones of both families, without repetitions, in the order of the object.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses in `status.loadBalancer.ingress` whose `ipMode` is absent or `VIP`, without repetitions.
    pub load_balancer_vips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`, valid ones, normalised to their network address. A range of
    /// length zero in a family is kept; see [`Service::source_ranges`].
    pub load_balancer_source_ranges: Box<[IpNet]>,
    /// The ports, in the order of the object, without repetitions of (name, protocol).
    pub ports: Box<[ServicePort]>,
    /// ClientIP affinity: the time-out in seconds. `None`: no affinity.
    pub affinity_seconds: Option<u32>,
    /// `spec.internalTrafficPolicy`; absent means Cluster.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, already reduced to what counts: Local only for types LoadBalancer and
    /// NodePort, and ClusterIP with external IPs.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, only for type LoadBalancer with external policy Local.
    pub health_check_node_port: Option<NonZeroU16>,
}

impl Service {
    /// The cluster IP of a family, if the Service exists in it.
    pub fn cluster_ip(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.cluster_ip_v4.map(IpAddr::V4),
            IpFamily::V6 => self.cluster_ip_v6.map(IpAddr::V6),
        }
    }

    /// The source ranges of a family. Empty means that every source is allowed: that is also the meaning
    /// of a list with a zero-length prefix in it, and of a list with ranges of the other family only.
    pub fn source_ranges(&self, family: IpFamily) -> Vec<IpNet> {
        let own: Vec<IpNet> =
            self.load_balancer_source_ranges.iter().copied().filter(|net| IpFamily::of_net(net) == family).collect();
        if own.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { own }
    }
}

/// One element of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The name; empty if it has none.
    pub name: Arc<str>,
    /// The protocol; absent means TCP.
    pub protocol: Protocol,
    /// The port on cluster IP, external IPs and load-balancer VIPs.
    pub port: NonZeroU16,
    /// The port on the node's addresses; `None` when none is allocated.
    pub node_port: Option<NonZeroU16>,
}

/// Which endpoints a class of traffic may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}
