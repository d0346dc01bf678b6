//! What is allowed, but probably not what somebody meant: for the log at start, never a reason to stop. kube-proxy gives
//! the same advice.

use crate::config::{DetectLocal, NodePortSetting, Settings};
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
        }
    }
    remarks
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
