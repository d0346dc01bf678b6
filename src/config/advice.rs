//! What is allowed, but probably not what somebody meant: for the log at start, never a reason to stop. kube-proxy gives
//! the same advice.

use std::time::Duration;

use crate::config::{DetectLocal, IpvsOptions, NodePortSetting, ProxyMode, Settings, VipSetting};
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
    match settings.mode {
        ProxyMode::Iptables if settings.ipvs != IpvsOptions::default() => {
            remarks.push("the settings for IPVS mode have no effect in iptables mode".to_owned());
        }
        ProxyMode::Iptables => {}
        ProxyMode::Ipvs => ipvs_remarks(&settings.ipvs, families, &mut remarks),
    }
    remarks
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
