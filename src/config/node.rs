//! What settings and facts of the node lead to: own addresses, primary family, where node ports are served, how local
//! traffic is told. Pure; the rules are kube-proxy's.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::compile::LocalDetector;
use crate::config::{DetectLocal, NodePortSetting};
use crate::net::{IpFamily, PerFamily};

/// The node's own addresses and its primary family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIps {
    /// The family of the first known address; IPv4 when nothing is known.
    pub primary: IpFamily,
    /// The address in each family; `None` when unknown.
    pub addresses: PerFamily<Option<IpAddr>>,
}

/// Picks the node's addresses: the first of `node_addresses` (InternalIPs, then ExternalIPs, as the Node object lists
/// them) decides the primary family, and the first of the other family is taken besides. A `bind_address` that is not
/// unspecified takes the place of both decisions.
pub fn node_ips(node_addresses: &[IpAddr], bind_address: IpAddr) -> NodeIps {
    let first_of = |family| node_addresses.iter().copied().find(|address| IpFamily::of(*address) == family);
    let mut ips = NodeIps {
        primary: node_addresses.first().map_or(IpFamily::V4, |address| IpFamily::of(*address)),
        addresses: PerFamily::from_fn(first_of),
    };
    if !bind_address.is_unspecified() {
        ips.primary = IpFamily::of(bind_address);
        ips.addresses[ips.primary] = Some(bind_address);
    }
    ips
}

/// The CIDRs of each family in which node ports are served. Empty means every local address: that is what a family
/// without an entry gets, even if the other family has one, and what a zero-length prefix means. `primary` stands for
/// the node's own addresses; loopback addresses are not among them.
pub fn node_port_cidrs(setting: &NodePortSetting, ips: &NodeIps) -> PerFamily<Vec<IpNet>> {
    let all: Vec<IpNet> = match setting {
        NodePortSetting::Primary => [ips.addresses.v4, ips.addresses.v6]
            .into_iter()
            .flatten()
            .filter(|address| !address.is_loopback())
            .map(IpNet::from)
            .collect(),
        NodePortSetting::Cidrs(cidrs) => cidrs.clone(),
    };
    PerFamily::from_fn(|family| {
        let own: Vec<IpNet> = all.iter().copied().filter(|net| IpFamily::of_net(net) == family).collect();
        if own.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { own }
    })
}

/// The local addresses on which node ports are served, sorted and without repetitions; `None` means all of them, now
/// and later. `cidrs` are those of one family from [`node_port_cidrs`].
pub fn matching_addresses(cidrs: &[IpNet], local_addresses: &[IpAddr]) -> Option<Vec<IpAddr>> {
    if cidrs.is_empty() {
        return None;
    }
    let mut matching: Vec<IpAddr> =
        local_addresses.iter().copied().filter(|address| cidrs.iter().any(|net| net.contains(address))).collect();
    matching.sort_unstable();
    matching.dedup();
    Some(matching)
}

/// Whether node ports are to be served on IPv4 loopback as far as the addresses are concerned: a CIDR begins within
/// 127.0.0.0/8 or covers its first address, or every address is meant.
pub fn covers_ipv4_loopback(v4_cidrs: &[IpNet]) -> bool {
    let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    v4_cidrs.is_empty() || v4_cidrs.iter().any(|net| net.addr().is_loopback() || net.contains(&loopback))
}

/// The detector of each family; `None` where nothing is known: then no traffic counts as local. `pod_cidrs` is the Node
/// object's `spec.podCIDRs`, used by [`DetectLocal::NodeCidr`] only.
pub fn local_traffic(setting: &DetectLocal, pod_cidrs: &[IpNet]) -> PerFamily<Option<LocalDetector>> {
    let by_source = |cidrs: &[IpNet]| {
        PerFamily::from_fn(|family| {
            cidrs.iter().find(|net| IpFamily::of_net(net) == family).map(|net| LocalDetector::SourceCidr(net.trunc()))
        })
    };
    match setting {
        DetectLocal::ClusterCidr(cidrs) => by_source(cidrs),
        DetectLocal::NodeCidr => by_source(pod_cidrs),
        DetectLocal::BridgeInterface(name) => PerFamily::from_fn(|_| Some(LocalDetector::Bridge(name.as_str().into()))),
        DetectLocal::InterfaceNamePrefix(prefix) => {
            PerFamily::from_fn(|_| Some(LocalDetector::InterfacePrefix(prefix.as_str().into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn first_node_address_decides_the_primary_family_and_bind_address_overrules_it() {
        for (addresses, bind, primary, v4, v6) in [
            (&["10.0.0.1", "fd00::1"][..], "0.0.0.0", IpFamily::V4, Some("10.0.0.1"), Some("fd00::1")),
            (&["fd00::1", "10.0.0.1", "10.0.0.2"], "0.0.0.0", IpFamily::V6, Some("10.0.0.1"), Some("fd00::1")),
            (&["fd00::1"], "::", IpFamily::V6, None, Some("fd00::1")),
            (&[], "0.0.0.0", IpFamily::V4, None, None),
            (&["10.0.0.1"], "fd00::9", IpFamily::V6, Some("10.0.0.1"), Some("fd00::9")),
            (&["10.0.0.1"], "192.0.2.1", IpFamily::V4, Some("192.0.2.1"), None),
        ] {
            let found = node_ips(&ips(addresses), bind.parse().unwrap());
            let expected = PerFamily { v4: v4.map(|ip| ip.parse().unwrap()), v6: v6.map(|ip| ip.parse().unwrap()) };
            assert_eq!(found, NodeIps { primary, addresses: expected }, "{addresses:?} {bind}");
        }
    }

    #[test]
    fn node_ports_of_a_family_without_cidr_are_served_everywhere() {
        let node = node_ips(&ips(&["10.0.0.1", "fd00::1"]), "0.0.0.0".parse().unwrap());
        let lonely = node_ips(&[], "127.0.0.1".parse().unwrap());
        let cidrs = |texts: &[&str]| NodePortSetting::Cidrs(nets(texts));
        for (setting, node, v4, v6) in [
            (cidrs(&[]), &node, &[][..], &[][..]),
            (cidrs(&["10.0.0.0/8"]), &node, &["10.0.0.0/8"], &[]),
            (cidrs(&["10.0.0.0/8", "0.0.0.0/0"]), &node, &[], &[]),
            (cidrs(&["10.0.0.0/8", "fd00::/8"]), &node, &["10.0.0.0/8"], &["fd00::/8"]),
            (NodePortSetting::Primary, &node, &["10.0.0.1/32"], &["fd00::1/128"]),
            (NodePortSetting::Primary, &lonely, &[], &[]),
        ] {
            assert_eq!(node_port_cidrs(&setting, node), PerFamily { v4: nets(v4), v6: nets(v6) }, "{setting:?}");
        }
    }

    #[test]
    fn local_addresses_within_a_cidr_are_listed_once() {
        let local = ips(&["127.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2", "192.0.2.1"]);
        assert_eq!(matching_addresses(&[], &local), None);
        assert_eq!(matching_addresses(&nets(&["10.0.0.0/8"]), &local), Some(ips(&["10.0.0.1", "10.0.0.2"])));
        assert_eq!(matching_addresses(&nets(&["172.16.0.0/12"]), &local), Some(Vec::new()));
    }

    #[test]
    fn loopback_is_covered_when_a_cidr_says_so() {
        for (cidrs, expected) in [
            (&[][..], true),
            (&["127.0.0.0/8"], true),
            (&["127.0.0.1/32"], true),
            (&["0.0.0.0/1"], true),
            (&["10.0.0.0/8"], false),
        ] {
            assert_eq!(covers_ipv4_loopback(&nets(cidrs)), expected, "{cidrs:?}");
        }
    }

    #[test]
    fn a_family_without_a_cidr_has_no_detector() {
        let source = |net: &str| Some(LocalDetector::SourceCidr(net.parse().unwrap()));
        let pods = nets(&["fd00:1::/64", "10.1.2.0/24", "10.9.0.0/24"]);
        let bridge = Some(LocalDetector::Bridge("cni0".into()));
        let prefix = Some(LocalDetector::InterfacePrefix("veth".into()));
        for (setting, v4, v6) in [
            (DetectLocal::ClusterCidr(nets(&[])), None, None),
            (DetectLocal::ClusterCidr(nets(&["10.244.1.0/16"])), source("10.244.0.0/16"), None),
            (DetectLocal::NodeCidr, source("10.1.2.0/24"), source("fd00:1::/64")),
            (DetectLocal::BridgeInterface("cni0".into()), bridge.clone(), bridge),
            (DetectLocal::InterfaceNamePrefix("veth".into()), prefix.clone(), prefix),
        ] {
            assert_eq!(local_traffic(&setting, &pods), PerFamily { v4, v6 }, "{setting:?}");
        }
    }
}
