use rstest::rstest;

use super::setup::*;
use crate::compile::LocalDetector;
use crate::net::{IpFamily, Protocol};

// 11
#[test]
fn external_policy_cluster_masquerades_and_uses_all_endpoints() {
    let setup = external_service().endpoint(A, HERE).endpoint(B, ELSEWHERE);
    assert_eq!(
        setup.chain("nat EXT"),
        [
            r#"-m comment --comment "masquerade traffic for ns1/svc1:p80 external destinations" -j KUBE-MARK-MASQ"#,
            "-j SVC"
        ]
    );
    assert_eq!(
        setup.chain("nat KUBE-SERVICES"),
        [
            r#"-d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j SVC"#,
            r#"-d 192.0.2.1/32 -p tcp -m comment --comment "ns1/svc1:p80 external IP" -m tcp --dport 80 -j EXT"#,
            r#"-d 1.2.3.4/32 -p tcp -m comment --comment "ns1/svc1:p80 loadbalancer IP" -m tcp --dport 80 -j EXT"#,
        ]
    );
    assert_eq!(
        setup.chain("nat KUBE-NODEPORTS"),
        [r#"-p tcp -m comment --comment "ns1/svc1:p80" -m tcp --dport 30000 -j EXT"#]
    );
    assert!(setup.all().iter().all(|rule| rule.starts_with("nat ")));
}

#[test]
fn external_policy_local_short_circuits_this_nodes_own_traffic() {
    let setup = external_service().external_local().endpoint(A, HERE).endpoint(B, ELSEWHERE);
    let expected = |pods: &str| {
        [
            format!(r#"{pods} -m comment --comment "pod traffic for ns1/svc1:p80 external destinations" -j SVC"#),
            r#"-m comment --comment "masquerade LOCAL traffic for ns1/svc1:p80 external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"#.to_owned(),
            r#"-m comment --comment "route LOCAL traffic for ns1/svc1:p80 external destinations" -m addrtype --src-type LOCAL -j SVC"#.to_owned(),
            "-j SVL".to_owned(),
        ]
    };
    assert_eq!(setup.chain("nat EXT"), expected("-s 10.0.0.0/8"));
    assert_eq!(setup.chain("nat SVC").len(), 3);
    assert_eq!(setup.chain("nat SVL").len(), 1);
    let detector = |detector| setup.clone().node(|node| node.local_detector.v4 = detector).chain("nat EXT");
    assert_eq!(detector(Some(LocalDetector::Bridge("cbr0".into()))), expected("-i cbr0"));
    assert_eq!(detector(Some(LocalDetector::InterfacePrefix("cali".into()))), expected("-i cali+"));
    assert_eq!(detector(None), expected("")[1..]);
}

#[test]
fn external_policy_local_without_local_endpoints_drops_external_traffic() {
    let setup = external_service().external_local().endpoint(B, ELSEWHERE);
    let verdict = |to: &str, port: &str| {
        format!(r#"{to}-p tcp -m comment --comment "ns1/svc1:p80 has no local endpoints" {port} -j DROP"#)
    };
    assert_eq!(
        setup.chain("filter KUBE-EXTERNAL-SERVICES"),
        [
            verdict("-d 192.0.2.1/32 ", "-m tcp --dport 80"),
            verdict("-d 1.2.3.4/32 ", "-m tcp --dport 80"),
            verdict("", "-m addrtype --dst-type LOCAL -m tcp --dport 30000"),
        ]
    );
    assert_eq!(setup.chain("filter KUBE-SERVICES"), [""; 0], "the cluster IP is served");
    assert_eq!(setup.chain("nat EXT").len(), 3, "pods and the node itself still go to endpoints elsewhere");
    assert_eq!(setup.chain("nat SVL"), [""; 0]);
    assert_eq!(setup.chain("nat KUBE-SERVICES").len(), 3);
}

#[test]
fn both_policies_local_share_one_chain_and_keep_the_other_for_short_circuits() {
    let setup = external_service().external_local().internal_local().endpoint(A, HERE).endpoint(B, ELSEWHERE);
    assert!(setup.chain("nat KUBE-SERVICES")[0].ends_with("-j SVL"));
    assert!(setup.chain("nat SVL")[0].ends_with("-j KUBE-MARK-MASQ"));
    assert_eq!(setup.chain("nat SVC").len(), 2, "no masquerading for a cluster IP that does not come here");
}

#[test]
fn external_ips_that_are_not_allowed_leave_no_rule() {
    let setup = service().external_ip("192.0.2.1").endpoint(A, HERE).node(|node| node.allow_external_ips = false);
    assert_eq!(setup.all(), service().endpoint(A, HERE).all());
}

// 14
#[test]
fn terminating_local_endpoints_serve_external_traffic_while_the_cluster_ip_stays_with_ready_ones() {
    let setup = external_service().external_local().endpoint_in(A, HERE, TERMINATING).endpoint(B, ELSEWHERE);
    let targets = |setup: &Setup, chain: &str| -> Vec<String> {
        let rules = setup.chain(chain);
        rules.iter().filter_map(|rule| Some(rule.split_once("-j SEP(")?.1.trim_end_matches(')').to_owned())).collect()
    };
    assert_eq!(targets(&setup, "nat SVL"), ["10.180.0.1:80"]);
    assert_eq!(targets(&setup, "nat SVC"), ["10.180.0.2:80"]);
    let ready = setup.endpoint(C, HERE);
    assert_eq!(targets(&ready, "nat SVL"), ["10.180.0.3:80"]);
    let remote = external_service().external_local().endpoint_in(B, ELSEWHERE, TERMINATING);
    assert_eq!(targets(&remote, "nat SVC"), ["10.180.0.2:80"]);
    assert_eq!(remote.chain("filter KUBE-EXTERNAL-SERVICES").len(), 3);
    let dead = external_service().external_local().endpoint_in(A, HERE, DEAD);
    assert!(dead.all().len() == 4 && dead.all().iter().all(|rule| rule.ends_with("-j REJECT")));
}

// 5
#[test]
fn source_ranges_filter_each_vip_and_nothing_else() {
    let setup = external_service().vip("1.2.3.5").source_range("203.0.113.0/25").source_range("198.51.100.0/24");
    let setup = setup.endpoint(A, ELSEWHERE);
    let admit = |source: &str| format!(r#"-s {source} -m comment --comment "ns1/svc1:p80 loadbalancer IP" -j EXT"#);
    let rest =
        r#"-m comment --comment "other traffic to ns1/svc1:p80 will be dropped by KUBE-PROXY-FIREWALL""#.to_owned();
    assert_eq!(setup.chain("nat FW"), [admit("203.0.113.0/25"), admit("198.51.100.0/24"), rest.clone()]);
    let drop = |vip: &str| {
        format!(
            r#"-d {vip}/32 -p tcp -m comment --comment "ns1/svc1:p80 traffic not accepted by FW" -m tcp --dport 80 -j DROP"#
        )
    };
    assert_eq!(setup.chain("filter KUBE-PROXY-FIREWALL"), [drop("1.2.3.4"), drop("1.2.3.5")]);
    let targets: Vec<String> =
        setup.chain("nat KUBE-SERVICES").iter().map(|rule| rule.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(targets, ["SVC", "EXT", "FW", "FW"], "cluster IP, external IP, two VIPs");
    assert!(setup.chain("nat KUBE-NODEPORTS")[0].ends_with("-j EXT"));
    let admitted = setup.source_range("192.168.0.0/16");
    assert_eq!(
        admitted.chain("nat FW")[2..],
        [admit("192.168.0.0/16"), admit("1.2.3.4/32"), admit("1.2.3.5/32"), rest],
        "the node is in a range, and a VIP that it holds is its source address"
    );
}

#[test]
fn source_ranges_that_admit_everybody_or_the_other_family_only_filter_nothing() {
    for range in ["0.0.0.0/0", "2001:db8::/32"] {
        let setup = external_service().source_range("203.0.113.0/25").endpoint(A, HERE);
        assert_eq!(setup.chain("nat FW").len(), 2);
        let mut open = external_service().source_range(range);
        if range == "0.0.0.0/0" {
            open = open.source_range("203.0.113.0/25");
        }
        assert_eq!(open.endpoint(A, HERE).all(), external_service().endpoint(A, HERE).all());
    }
}

#[test]
fn without_endpoints_source_ranges_do_not_hide_the_rejection() {
    let setup = external_service().source_range("203.0.113.0/25");
    assert_eq!(setup.all(), external_service().all());
}

// 6
#[rstest]
#[case(true, true, 2)]
#[case(false, true, 1)]
#[case(true, false, 1)]
fn connections_to_node_ports_on_localhost_are_counted(
    #[case] localhost: bool,
    #[case] counters: bool,
    #[case] rules: usize,
) {
    let setup = external_service().endpoint(A, HERE).node(|node| {
        node.localhost_node_ports = localhost;
        node.features.packet_counters = counters;
    });
    let found = setup.chain("nat KUBE-NODEPORTS");
    assert_eq!(found.len(), rules);
    if rules == 2 {
        assert_eq!(
            found[0],
            r#"-d 127.0.0.0/8 -p tcp -m comment --comment "ns1/svc1:p80" -m tcp --dport 30000 -m nfacct --nfacct-name localhost_nps_accepted_pkts -j EXT"#,
            "it has to stand before the other, which would take its packets"
        );
    }
}

#[test]
fn counted_rules_stand_before_plain_ones_whichever_service_comes_first() {
    let mut other = external_service().endpoint(A, HERE).node(|node| node.features.packet_counters = true);
    let first = other.fragment();
    other.name = crate::model::ServiceName::new("ns2", "svc2");
    let second = other.fragment();
    let text = crate::iptables::restore_text(IpFamily::V4, [&first, &second]);
    let rules: Vec<bool> =
        text.lines().filter(|line| line.starts_with("-A KUBE-NODEPORTS")).map(|line| line.contains("nfacct")).collect();
    assert_eq!(rules, [true, true, false, false]);
}

#[test]
fn ipv6_node_ports_are_never_counted() {
    let mut setup = external_service().endpoint("fd00:10::1", HERE).node(|node| node.features.packet_counters = true);
    setup.service.cluster_ip_v6 = Some("fd00::41".parse().unwrap());
    let rules = setup.all_in(IpFamily::V6);
    assert_eq!(rules.iter().filter(|rule| rule.starts_with("nat KUBE-NODEPORTS")).count(), 1);
    assert!(rules.iter().all(|rule| !rule.contains("nfacct")));
}

// 8
#[test]
fn the_health_check_port_is_open_with_and_without_endpoints() {
    let mut setup = external_service().external_local();
    setup.service.health_check_node_port = std::num::NonZeroU16::new(30001);
    let expected =
        r#"-p tcp -m comment --comment "ns1/svc1:p80 health check node port" -m tcp --dport 30001 -j ACCEPT"#;
    assert_eq!(setup.chain("filter KUBE-NODEPORTS"), [expected]);
    let setup = setup.endpoint(A, HERE);
    assert_eq!(setup.chain("filter KUBE-NODEPORTS"), [expected]);
    let closed =
        setup.clone().node(|node| node.node_port_addresses.v4 = crate::compile::NodePortAddresses::Only(Vec::new()));
    assert_eq!(closed.chain("filter KUBE-NODEPORTS"), [expected]);
    let both = setup.port("p80", Protocol::Udp, 80, None).port("p81", Protocol::Tcp, 81, None);
    assert_eq!(both.chain("filter KUBE-NODEPORTS").len(), 2, "one for each name, none twice");
    assert_eq!(external_service().external_local().chain("filter KUBE-NODEPORTS"), [""; 0]);
}
