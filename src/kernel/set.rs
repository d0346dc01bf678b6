//! The sets of IPVS mode and their elements: names and types are kube-proxy's, so that one can take over from the other.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::{IpFamily, Protocol};

/// A set that rules look into. The order is that in which elements are added when a Service comes, so that at no moment
/// less is filtered or more is masqueraded than in the end: what admits before what drops, what makes an exception before
/// what it is an exception of. They are deleted backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetName {
    /// Endpoints of this node, for pods that reach themselves.
    LoopBack,
    /// Source ranges of load-balancer VIPs.
    LoadBalancerSourceCidr,
    /// VIPs as source, where a range admits the node.
    LoadBalancerSourceIp,
    /// VIPs with source ranges.
    LoadBalancerFirewall,
    /// External addresses and node ports with policy Local that only other nodes have endpoints for. Not one of kube-proxy's.
    NoLocalEndpoints,
    /// VIPs with external policy Local.
    LoadBalancerLocal,
    /// All VIPs.
    LoadBalancer,
    /// External IPs with policy Local.
    ExternalIpLocal,
    /// The other external IPs.
    ExternalIp,
    /// Cluster IPs.
    ClusterIp,
    /// TCP node ports with policy Local.
    NodePortLocalTcp,
    /// All TCP node ports.
    NodePortTcp,
    /// UDP node ports with policy Local.
    NodePortLocalUdp,
    /// All UDP node ports.
    NodePortUdp,
    /// SCTP node ports with policy Local, with the addresses of the node.
    NodePortLocalSctp,
    /// All SCTP node ports, with the addresses of the node.
    NodePortSctp,
    /// Health-check node ports.
    HealthCheckNodePort,
    /// Addresses on the dummy link, whose other ports are closed.
    IpvsIps,
}

/// What the elements of a set consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// `hash:ip`.
    Ip,
    /// `hash:ip,port`.
    IpPort,
    /// `hash:ip,port,ip`.
    IpPortIp,
    /// `hash:ip,port,net`.
    IpPortNet,
    /// `bitmap:port`.
    Port,
}

impl SetName {
    /// All sets, in order.
    pub const ALL: [SetName; 18] = [
        SetName::LoopBack,
        SetName::LoadBalancerSourceCidr,
        SetName::LoadBalancerSourceIp,
        SetName::LoadBalancerFirewall,
        SetName::NoLocalEndpoints,
        SetName::LoadBalancerLocal,
        SetName::LoadBalancer,
        SetName::ExternalIpLocal,
        SetName::ExternalIp,
        SetName::ClusterIp,
        SetName::NodePortLocalTcp,
        SetName::NodePortTcp,
        SetName::NodePortLocalUdp,
        SetName::NodePortUdp,
        SetName::NodePortLocalSctp,
        SetName::NodePortSctp,
        SetName::HealthCheckNodePort,
        SetName::IpvsIps,
    ];

    /// The name in the kernel. IPv6 names are cut at 31 bytes, the most that it takes.
    pub fn in_family(self, family: IpFamily) -> &'static str {
        let (v4, v6) = match self {
            SetName::LoopBack => ("KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK"),
            SetName::LoadBalancerSourceCidr => ("KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID"),
            SetName::LoadBalancerSourceIp => ("KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-6-LOAD-BALANCER-SOURCE-IP"),
            SetName::LoadBalancerFirewall => ("KUBE-LOAD-BALANCER-FW", "KUBE-6-LOAD-BALANCER-FW"),
            SetName::NoLocalEndpoints => ("KUBE-NO-LOCAL-ENDPOINTS", "KUBE-6-NO-LOCAL-ENDPOINTS"),
            SetName::LoadBalancerLocal => ("KUBE-LOAD-BALANCER-LOCAL", "KUBE-6-LOAD-BALANCER-LOCAL"),
            SetName::LoadBalancer => ("KUBE-LOAD-BALANCER", "KUBE-6-LOAD-BALANCER"),
            SetName::ExternalIpLocal => ("KUBE-EXTERNAL-IP-LOCAL", "KUBE-6-EXTERNAL-IP-LOCAL"),
            SetName::ExternalIp => ("KUBE-EXTERNAL-IP", "KUBE-6-EXTERNAL-IP"),
            SetName::ClusterIp => ("KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP"),
            SetName::NodePortLocalTcp => ("KUBE-NODE-PORT-LOCAL-TCP", "KUBE-6-NODE-PORT-LOCAL-TCP"),
            SetName::NodePortTcp => ("KUBE-NODE-PORT-TCP", "KUBE-6-NODE-PORT-TCP"),
            SetName::NodePortLocalUdp => ("KUBE-NODE-PORT-LOCAL-UDP", "KUBE-6-NODE-PORT-LOCAL-UDP"),
            SetName::NodePortUdp => ("KUBE-NODE-PORT-UDP", "KUBE-6-NODE-PORT-UDP"),
            SetName::NodePortLocalSctp => ("KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"),
            SetName::NodePortSctp => ("KUBE-NODE-PORT-SCTP-HASH", "KUBE-6-NODE-PORT-SCTP-HASH"),
            SetName::HealthCheckNodePort => ("KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-6-HEALTH-CHECK-NODE-PORT"),
            SetName::IpvsIps => ("KUBE-IPVS-IPS", "KUBE-6-IPVS-IPS"),
        };
        match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        }
    }

    /// What its elements consist of.
    pub fn kind(self) -> SetKind {
        match self {
            SetName::LoopBack | SetName::LoadBalancerSourceIp => SetKind::IpPortIp,
            SetName::LoadBalancerSourceCidr => SetKind::IpPortNet,
            SetName::LoadBalancerFirewall
            | SetName::NoLocalEndpoints
            | SetName::LoadBalancerLocal
            | SetName::LoadBalancer
            | SetName::ExternalIpLocal
            | SetName::ExternalIp
            | SetName::ClusterIp
            | SetName::NodePortLocalSctp
            | SetName::NodePortSctp => SetKind::IpPort,
            SetName::NodePortLocalTcp
            | SetName::NodePortTcp
            | SetName::NodePortLocalUdp
            | SetName::NodePortUdp
            | SetName::HealthCheckNodePort => SetKind::Port,
            SetName::IpvsIps => SetKind::Ip,
        }
    }
}

/// A set of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetKey {
    /// The family of its addresses. Sets of ports exist once for each family, too.
    pub family: IpFamily,
    /// Which one.
    pub name: SetName,
}

impl SetKey {
    /// The smallest capacity: kube-proxy's, who does not take a set with any other.
    pub const CAPACITY: u32 = 65536;

    /// The name in the kernel.
    pub fn as_str(&self) -> &'static str {
        self.name.in_family(self.family)
    }

    /// The set of a name in the kernel, if it is one of these.
    pub fn of_name(name: &str) -> Option<SetKey> {
        let keys = IpFamily::ALL.into_iter().flat_map(|family| SetName::ALL.map(|name| SetKey { family, name }));
        keys.into_iter().find(|key| key.as_str() == name)
    }
}

impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An element of a set. Displays as the `ipset` tool writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// Of [`SetKind::Ip`].
    Ip(IpAddr),
    /// Of [`SetKind::IpPort`].
    IpPort(IpAddr, Protocol, u16),
    /// Of [`SetKind::IpPortIp`].
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// Of [`SetKind::IpPortNet`]. The prefix is not 0; a single address has its full length.
    IpPortNet(IpAddr, Protocol, u16, IpNet),
    /// Of [`SetKind::Port`].
    Port(u16),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Ip(ip) => write!(f, "{ip}"),
            Element::IpPort(ip, protocol, port) => write!(f, "{ip},{protocol}:{port}"),
            Element::IpPortIp(ip, protocol, port, second) => write!(f, "{ip},{protocol}:{port},{second}"),
            Element::IpPortNet(ip, protocol, port, net) => write!(f, "{ip},{protocol}:{port},{net}"),
            Element::Port(port) => write!(f, "{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_told_apart() {
        for family in IpFamily::ALL {
            for name in SetName::ALL {
                let key = SetKey { family, name };
                assert!(key.as_str().len() <= 31, "{key}");
                assert_eq!(SetKey::of_name(key.as_str()), Some(key));
            }
        }
        assert!(SetName::ALL.is_sorted());
        assert_eq!(SetKey::of_name("KUBE-SOMEBODY-ELSES"), None);
    }
}
