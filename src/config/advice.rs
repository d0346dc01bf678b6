//! What is allowed, but probably not what somebody meant: for the log at start; kube-proxy gives the same advice. And what
//! cannot work on this node, which is a reason to stop.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::{ConfigError, DetectLocal, IpvsOptions, NodePortSetting, ProxyMode, Settings, VipSetting};
use crate::net::{IpFamily, PerFamily};

/// Remarks on settings, for a node on which these families are programmed; one line each.
pub fn advice(settings: &Settings, families: PerFamily<bool>) -> Vec<String> {
    let mut remarks = Vec::new();
    let on = || IpFamily::ALL.into_iter().filter(|family| families[*family]);
    if let NodePortSetting::Cidrs(cidrs) = &settings.node_port_addresses {
        if cidrs.is_empty() {
            remarks.push(
                "nodePortAddresses is not set: node ports are served on every address; \"primary\" means those of the Node"
                    .to_owned(),
            );
        } else {
            for family in on().filter(|family| !cidrs.iter().any(|cidr| IpFamily::of_net(cidr) == *family)) {
                remarks.push(format!("nodePortAddresses has no {family} range: served on every {family} address"));
            }
        }
        for cidr in cidrs.iter().filter(|cidr| cidr.addr().is_loopback()) {
            let why = match IpFamily::of_net(cidr) {
                IpFamily::V4 if settings.mode == ProxyMode::Ipvs => {
                    "IPVS cannot send packets from 127.0.0.1 elsewhere; iptables.localhostNodePorts has no effect"
                }
                IpFamily::V4 if settings.localhost_node_ports => continue,
                IpFamily::V4 => "iptables.localhostNodePorts is false",
                IpFamily::V6 => "the kernel cannot send packets from ::1 elsewhere",
            };
            remarks.push(format!("nodePortAddresses: node ports are not served on {cidr}, since {why}"));
        }
    }
    if let DetectLocal::ClusterCidr(cidrs) = &settings.detect_local {
        for family in on().filter(|family| !cidrs.iter().any(|cidr| IpFamily::of_net(cidr) == *family)) {
            remarks
                .push(format!("clusterCIDR has no {family} range: {family} packets of pods are not told from others"));
            if settings.mode == ProxyMode::Ipvs {
                remarks.push(format!(
                    "as {family} pods are not known, clients outside are not told from pods where a Service with \
                     externalTrafficPolicy Local has no {family} endpoint on this node"
                ));
            }
        }
    }
    if let Some(only) = only(families) {
        other_family(settings, only, &mut remarks);
    }
    match settings.mode {
        ProxyMode::Iptables if settings.ipvs != IpvsOptions::default() => {
            remarks.push("the settings for IPVS mode have no effect in iptables mode".to_owned());
        }
        ProxyMode::Iptables => {}
        ProxyMode::Ipvs => ipvs_remarks(&settings.ipvs, families, &mut remarks),
    }
    remarks
}

/// What cannot work on a node on which these families are programmed: all of `clusterCIDR` is in the other family, so that
/// no packet would ever count as local. kube-proxy ends then, too.
pub fn refusal(settings: &Settings, families: PerFamily<bool>) -> Option<ConfigError> {
    let (DetectLocal::ClusterCidr(cidrs), Some(only)) = (&settings.detect_local, only(families)) else { return None };
    all_of_other_family(cidrs, only).then(|| {
        let cidrs = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        ConfigError::invalid("clusterCIDR", cidrs, format!("this node does {only} only, and here is no {only} range"))
    })
}

/// A remark on a Node whose `spec.podCIDRs` are of no use for its primary family.
///
/// kube-proxy ends in the mode NodeCIDR. Here the Services go on being served, as after any other change of the Node.
pub fn node_remark(settings: &Settings, primary: IpFamily, pod_cidrs: &[IpNet]) -> Option<String> {
    let concerns = settings.detect_local == DetectLocal::NodeCidr && all_of_other_family(pod_cidrs, primary);
    concerns.then(|| {
        format!(
            "the Node's spec.podCIDRs have no {primary} range, the family of its first address: with detectLocalMode NodeCIDR \
             {primary} packets of pods are not told from others"
        )
    })
}

/// The family of a node that does one only.
fn only(families: PerFamily<bool>) -> Option<IpFamily> {
    match (families.v4, families.v6) {
        (true, false) => Some(IpFamily::V4),
        (false, true) => Some(IpFamily::V6),
        (true, true) | (false, false) => None,
    }
}

fn all_of_other_family(cidrs: &[IpNet], family: IpFamily) -> bool {
    !cidrs.is_empty() && cidrs.iter().all(|cidr| IpFamily::of_net(cidr) != family)
}

/// Addresses that have no use on a node that does one family only.
fn other_family(settings: &Settings, family: IpFamily, remarks: &mut Vec<String>) {
    let servers = [
        ("healthzBindAddress", settings.healthz_bind_address),
        ("metricsBindAddress", Some(settings.metrics_bind_address)),
    ];
    for (name, address) in servers {
        let other = |address: &IpAddr| !address.is_unspecified() && IpFamily::of(*address) != family;
        if let Some(address) = address.map(|address| address.ip()).filter(other) {
            remarks.push(format!("{name} is {address}, but this node does {family} only"));
        }
    }
    if settings.mode == ProxyMode::Ipvs && all_of_other_family(&settings.ipvs.exclude_cidrs, family) {
        remarks.push(format!("ipvs.excludeCIDRs has no {family} range, but this node does {family} only"));
    }
}

fn ipvs_remarks(options: &IpvsOptions, families: PerFamily<bool>, remarks: &mut Vec<String>) {
    let timeouts = [
        ("tcpTimeout", options.tcp_timeout),
        ("tcpFinTimeout", options.tcp_fin_timeout),
        ("udpTimeout", options.udp_timeout),
    ];
    for (name, timeout) in timeouts {
        if timeout > Duration::ZERO && timeout < Duration::from_secs(1) {
            remarks
                .push(format!("ipvs.{name} is less than a second, which the kernel takes for \"leave it as it is\""));
        }
    }
    if let VipSetting::Routes(cidrs) = &options.vips {
        for family in IpFamily::ALL.into_iter().filter(|family| families[*family]) {
            if !cidrs.iter().any(|cidr| IpFamily::of_net(cidr) == family) {
                remarks.push(format!(
                    "--ipvs-service-cidrs has no {family} range: each {family} address of a Service gets a route of its own"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remarks(node_ports: &[&str], cluster: &[&str], localhost: bool, families: PerFamily<bool>) -> Vec<String> {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let settings = Settings {
            node_port_addresses: NodePortSetting::Cidrs(nets(node_ports)),
            detect_local: DetectLocal::ClusterCidr(nets(cluster)),
            localhost_node_ports: localhost,
            ..Settings::default()
        };
        advice(&settings, families)
    }

    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };
    const V4: PerFamily<bool> = PerFamily { v4: true, v6: false };

    fn begins(remarks: &[String], beginnings: &[&str]) {
        let fits = remarks.len() == beginnings.len()
            && remarks.iter().zip(beginnings).all(|(remark, beginning)| remark.starts_with(beginning));
        assert!(fits, "{remarks:#?}");
    }

    #[test]
    fn a_complete_configuration_needs_no_remark() {
        begins(&remarks(&["10.0.0.0/8", "fd00::/8"], &["10.244.0.0/16", "fd00:244::/48"], true, BOTH), &[]);
        begins(&remarks(&["10.0.0.0/8", "127.0.0.0/8"], &["10.244.0.0/16"], true, V4), &[]);
        let primary = Settings {
            node_port_addresses: NodePortSetting::Primary,
            detect_local: DetectLocal::NodeCidr,
            ..Settings::default()
        };
        begins(&advice(&primary, BOTH), &[]);
    }

    #[test]
    fn a_family_that_was_forgotten_is_named() {
        begins(
            &remarks(&["10.0.0.0/8"], &["10.244.0.0/16"], true, BOTH),
            &["nodePortAddresses has no IPv6 range", "clusterCIDR has no IPv6 range"],
        );
        begins(&remarks(&[], &["fd00::/48"], true, V4), &["nodePortAddresses is not set", "clusterCIDR has no IPv4"]);
    }

    fn in_ipvs_mode(node_ports: &str, cluster: &str, ipvs: IpvsOptions) -> Settings {
        Settings {
            mode: ProxyMode::Ipvs,
            node_port_addresses: NodePortSetting::Cidrs(vec![node_ports.parse().unwrap()]),
            detect_local: DetectLocal::ClusterCidr(vec![cluster.parse().unwrap()]),
            ipvs,
            ..Settings::default()
        }
    }

    #[test]
    fn what_ipvs_mode_cannot_do_is_named() {
        let options = IpvsOptions::default;
        begins(&advice(&in_ipvs_mode("10.0.0.0/8", "10.244.0.0/16", options()), V4), &[]);
        begins(
            &advice(&in_ipvs_mode("127.0.0.0/8", "10.244.0.0/16", options()), V4),
            &["nodePortAddresses: node ports are not served on 127.0.0.0/8, since IPVS cannot"],
        );
        begins(
            &advice(&in_ipvs_mode("10.0.0.0/8", "fd00::/48", options()), V4),
            &["clusterCIDR has no IPv4", "as IPv4 pods are not known, clients outside"],
        );
        let odd = IpvsOptions {
            udp_timeout: Duration::from_millis(500),
            vips: VipSetting::Routes(vec!["fd00::/112".parse().unwrap()]),
            ..options()
        };
        begins(
            &advice(&in_ipvs_mode("10.0.0.0/8", "10.244.0.0/16", odd), V4),
            &["ipvs.udpTimeout is less than a second", "--ipvs-service-cidrs has no IPv4 range"],
        );
    }

    #[test]
    fn what_is_of_no_use_on_a_node_with_one_family_is_named() {
        let settings = Settings {
            healthz_bind_address: Some("[fd00::1]:1".parse().unwrap()),
            metrics_bind_address: "[::1]:2".parse().unwrap(),
            ..in_ipvs_mode(
                "10.0.0.0/8",
                "10.244.0.0/16",
                IpvsOptions { exclude_cidrs: vec!["fd00::/8".parse().unwrap()], ..IpvsOptions::default() },
            )
        };
        let named = [
            "healthzBindAddress is fd00::1, but this node does IPv4 only",
            "metricsBindAddress is ::1, but this node does IPv4 only",
            "ipvs.excludeCIDRs has no IPv4 range",
        ];
        begins(&advice(&settings, V4), &named);
        assert!(!advice(&settings, BOTH).iter().any(|remark| named.iter().any(|name| remark.starts_with(name))));
        let unspecified = Settings { healthz_bind_address: Some("[::]:1".parse().unwrap()), ..settings };
        begins(&advice(&unspecified, V4), &named[1..]);
    }

    #[test]
    fn a_cluster_cidr_without_the_only_family_is_refused_and_pod_cidrs_without_the_primary_one_are_named() {
        let cluster = |cidrs: &[&str]| Settings {
            detect_local: DetectLocal::ClusterCidr(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()),
            ..Settings::default()
        };
        let v6 = PerFamily { v4: false, v6: true };
        for (cidrs, families, refused) in [
            (&["fd00::/48"][..], V4, true),
            (&["10.0.0.0/8"], v6, true),
            (&["fd00::/48"], BOTH, false),
            (&["fd00::/48", "10.0.0.0/8"], V4, false),
            (&["10.0.0.0/8"], V4, false),
            (&[], V4, false),
        ] {
            assert_eq!(refusal(&cluster(cidrs), families).is_some(), refused, "{cidrs:?}");
        }
        let by_node = Settings { detect_local: DetectLocal::NodeCidr, ..Settings::default() };
        assert_eq!(refusal(&by_node, V4), None);
        let cidrs: [IpNet; 2] = ["fd00:1::/64".parse().unwrap(), "10.1.0.0/24".parse().unwrap()];
        let remark = |settings, cidrs| node_remark(settings, IpFamily::V4, cidrs);
        assert!(remark(&by_node, &cidrs[..1]).is_some_and(|remark| remark.contains("no IPv4 range")));
        assert_eq!(
            (remark(&by_node, &cidrs), remark(&by_node, &[]), remark(&cluster(&[]), &cidrs[..1])),
            (None, None, None)
        );
    }

    #[test]
    fn settings_of_ipvs_mode_have_no_effect_in_iptables_mode() {
        let strict = IpvsOptions { strict_arp: true, ..IpvsOptions::default() };
        let settings = Settings { mode: ProxyMode::Iptables, ..in_ipvs_mode("10.0.0.0/8", "10.244.0.0/16", strict) };
        begins(&advice(&settings, V4), &["the settings for IPVS mode have no effect"]);
    }

    #[test]
    fn loopback_addresses_that_are_not_served_are_named() {
        let wanted =
            ["nodePortAddresses: node ports are not served on 127.0.0.1/32, since iptables.localhostNodePorts"];
        begins(&remarks(&["10.0.0.0/8", "127.0.0.1/32"], &["10.244.0.0/16"], false, V4), &wanted);
        let node_ports = ["10.0.0.0/8", "127.0.0.0/8", "::1/128"];
        begins(
            &remarks(&node_ports, &["10.244.0.0/16", "fd00::/48"], true, BOTH),
            &["nodePortAddresses: node ports are not served on ::1/128"],
        );
    }
}
