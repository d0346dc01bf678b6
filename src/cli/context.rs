//! From settings, the Node and its addresses to the context that compiling needs.

use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::{Features, NodeContext, NodePortAddresses};
use crate::config::node::{covers_ipv4_loopback, local_traffic, matching_addresses, node_ips, node_port_cidrs};
use crate::config::{ProxyMode, Settings};
use crate::model::Node;
use crate::net::{IpFamily, PerFamily};

/// What does not change while the program runs.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The own Node's name.
    pub(super) node_name: Arc<str>,
    /// Families that are programmed.
    pub(super) families: PerFamily<bool>,
    /// What the kernel and its tools can do.
    pub(super) features: Features,
    /// Whether packets to 127.0.0.0/8 can be sent elsewhere (`route_localnet`).
    pub(super) route_localnet: bool,
}

/// The context for compiling.
pub(super) fn node_context(
    settings: &Settings,
    facts: &Facts,
    node: &Node,
    addresses: &PerFamily<Vec<IpAddr>>,
) -> NodeContext {
    let ips = node_ips(&node.addresses, settings.bind_address);
    let cidrs = node_port_cidrs(&settings.node_port_addresses, &ips);
    let serves_by_address = settings.mode == ProxyMode::Ipvs;
    let node_port_addresses = |family: IpFamily| match matching_addresses(&cidrs[family], &addresses[family]) {
        None => NodePortAddresses::All,
        Some(matching) => NodePortAddresses::Only(matching),
    };
    NodeContext {
        node_name: facts.node_name.clone(),
        zone: node.zone.clone(),
        families: facts.families,
        node_ips: ips.addresses,
        local_detector: local_traffic(&settings.detect_local, &node.pod_cidrs),
        masquerade_all: settings.masquerade_all,
        masquerade_mark: settings.masquerade_mark(),
        node_port_addresses: PerFamily::from_fn(node_port_addresses),
        // Where they are of no use, a change of them is not to change the context.
        node_addresses: if serves_by_address { serving_addresses(addresses) } else { PerFamily::default() },
        localhost_node_ports: facts.families.v4
            && !serves_by_address
            && settings.localhost_node_ports
            && facts.route_localnet
            && covers_ipv4_loopback(&cidrs.v4),
        allow_external_ips: settings.allow_external_ips,
        features: facts.features,
    }
}

/// The addresses that a virtual server for node ports may have, sorted. The kernel routes packets of loopback addresses nowhere
/// else, and an IPv6 link-local address means nothing without its link. IPv4 link-local ones are served, as by kube-proxy.
fn serving_addresses(addresses: &PerFamily<Vec<IpAddr>>) -> PerFamily<Vec<IpAddr>> {
    let serves = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    PerFamily::from_fn(|family| {
        let mut serving: Vec<IpAddr> = addresses[family].iter().copied().filter(serves).collect();
        serving.sort_unstable();
        serving.dedup();
        serving
    })
}

/// Whether node ports on 127.0.0.0/8 are asked for and possible. It depends on the Node only for `primary`, which never covers
/// loopback.
pub(super) fn wants_localhost_node_ports(settings: &Settings) -> bool {
    let ips = node_ips(&[], settings.bind_address);
    settings.mode == ProxyMode::Iptables
        && settings.localhost_node_ports
        && settings.node_port_addresses != crate::config::NodePortSetting::Primary
        && covers_ipv4_loopback(&node_port_cidrs(&settings.node_port_addresses, &ips).v4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DetectLocal, NodePortSetting};

    fn facts() -> Facts {
        Facts {
            node_name: "node".into(),
            families: PerFamily { v4: true, v6: true },
            features: Features::CURRENT,
            route_localnet: true,
        }
    }

    fn context(settings: &Settings, addresses: &[&str]) -> NodeContext {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let of =
            |family| addresses.iter().copied().filter(|address| IpFamily::of(*address) == family).collect::<Vec<_>>();
        node_context(settings, &facts(), &Node::default(), &PerFamily::from_fn(of))
    }

    #[test]
    fn ipvs_mode_serves_node_ports_on_addresses_that_others_can_reach() {
        let settings = Settings { mode: ProxyMode::Ipvs, ..Settings::default() };
        let addresses =
            ["192.0.2.2", "127.0.0.1", "169.254.20.10", "192.0.2.1", "192.0.2.2", "fe80::1", "::1", "fd00::1"];
        let context = context(&settings, &addresses);
        let texts = |family| context.node_addresses[family].iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(IpFamily::V4), ["169.254.20.10", "192.0.2.1", "192.0.2.2"]);
        assert_eq!(texts(IpFamily::V6), ["fd00::1"]);
        assert!(!context.localhost_node_ports, "the kernel does not route 127.0.0.0/8 to elsewhere");
        assert!(!wants_localhost_node_ports(&settings));
    }

    #[test]
    fn of_the_node_counts_what_the_settings_make_use_of() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let node = Node {
            zone: Some("a".into()),
            addresses: ips(&["192.0.2.1", "fd00::1"]),
            pod_cidrs: nets(&["10.1.0.0/24", "fd01::/64"]),
            eligible: true,
        };
        let cluster_cidr = Settings::default();
        let node_cidr = Settings { detect_local: DetectLocal::NodeCidr, ..Settings::default() };
        let primary = Settings { node_port_addresses: NodePortSetting::Primary, ..Settings::default() };
        let bound = Settings { bind_address: "192.0.2.9".parse().unwrap(), ..Settings::default() };
        let zone = Node { zone: Some("b".into()), ..node.clone() };
        let cordoned = Node { eligible: false, ..node.clone() };
        let moved = Node { addresses: ips(&["192.0.2.2", "fd00::1"]), ..node.clone() };
        let one_more = Node { addresses: ips(&["192.0.2.1", "fd00::1", "192.0.2.3"]), ..node.clone() };
        let pods = Node { pod_cidrs: nets(&["10.2.0.0/24", "fd01::/64"]), ..node.clone() };
        let turned = Node { pod_cidrs: nets(&["fd01::/64", "10.1.0.0/24"]), ..node.clone() };
        let of = |settings: &Settings, node: &Node| {
            node_context(settings, &facts(), node, &PerFamily { v4: ips(&["192.0.2.1", "192.0.2.2"]), v6: Vec::new() })
        };
        for (case, settings, other, counts) in [
            ("the zone", &cluster_cidr, &zone, true),
            ("whether it takes part", &cluster_cidr, &cordoned, false),
            ("its first address", &cluster_cidr, &moved, true),
            ("an address besides", &cluster_cidr, &one_more, false),
            ("an address that bindAddress outweighs", &bound, &moved, false),
            ("its address, where node ports are", &primary, &moved, true),
            ("pod CIDRs without NodeCIDR", &cluster_cidr, &pods, false),
            ("pod CIDRs with it", &node_cidr, &pods, true),
            ("their order between families", &node_cidr, &turned, false),
        ] {
            assert_eq!(of(settings, &node) != of(settings, other), counts, "{case}");
        }
        let ports = |node: &Node| of(&primary, node).node_port_addresses.v4;
        assert_eq!(ports(&node), NodePortAddresses::Only(ips(&["192.0.2.1"])));
        assert_eq!(ports(&moved), NodePortAddresses::Only(ips(&["192.0.2.2"])));
        assert_eq!(ports(&Node::default()), NodePortAddresses::All, "nothing is known");
    }

    #[test]
    fn in_iptables_mode_the_addresses_of_the_node_change_nothing() {
        let settings = Settings::default();
        assert_eq!(context(&settings, &["192.0.2.1", "fd00::1"]), context(&settings, &[]));
        assert!(context(&settings, &[]).localhost_node_ports && wants_localhost_node_ports(&settings));
    }
}
