use super::setup::*;
use crate::backend::RuleComments;
use crate::compile::LocalDetector;
use crate::iptables::restore_text;
use crate::kernel::rule::Probability;
use crate::net::{IpFamily, Protocol};

// 1, in parts: each kind of Service by itself; the whole is in `restore`.
#[test]
fn a_cluster_ip_goes_to_its_endpoint_and_is_masqueraded_from_elsewhere() {
    assert_eq!(
        service().endpoint(A, HERE).all(),
        [
            r#"nat KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j SVC"#,
            r#"nat SEP(10.180.0.1:80) -s 10.180.0.1/32 -m comment --comment "ns1/svc1:p80" -j KUBE-MARK-MASQ"#,
            r#"nat SEP(10.180.0.1:80) -p tcp -m comment --comment "ns1/svc1:p80" -j DNAT --to-destination 10.180.0.1:80"#,
            r#"nat SVC ! -s 10.0.0.0/8 -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ"#,
            r#"nat SVC -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -j SEP(10.180.0.1:80)"#,
        ]
    );
}

#[test]
fn an_ipv6_service_is_spelled_with_ipv6_addresses() {
    let mut setup = service().endpoint("fd00:10::1", HERE);
    setup.service.cluster_ip_v4 = None;
    setup.service.cluster_ip_v6 = Some("fd00::41".parse().unwrap());
    assert_eq!(setup.all(), [""; 0]);
    let text = restore_text(IpFamily::V6, [&setup.fragment()]);
    for part in [
        "-A KUBE-SERVICES -d fd00::41/128 -p tcp ",
        " -j KUBE-SVC-XPGD46QRK7WJZT7O\n",
        " ! -s fd00:10::/32 -d fd00::41/128 -p tcp ",
        " -s fd00:10::1/128 ",
        " -j DNAT --to-destination [fd00:10::1]:80\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

#[test]
fn endpoints_get_equal_shares() {
    let setup = service().endpoint(C, HERE).endpoint(A, HERE).endpoint(B, ELSEWHERE);
    assert_eq!(
        setup.chain("nat SVC")[1..],
        [
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m statistic --mode random --probability 0.3333333333 -j SEP(10.180.0.1:80)"#,
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.2:80" -m statistic --mode random --probability 0.5000000000 -j SEP(10.180.0.2:80)"#,
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.3:80" -j SEP(10.180.0.3:80)"#,
        ]
    );
}

#[test]
fn affinity_asks_for_known_clients_first_and_remembers_new_ones() {
    let mut setup = service().endpoint(A, HERE).endpoint(B, HERE);
    setup.service.affinity_seconds = Some(10800);
    assert_eq!(
        setup.chain("nat SVC")[1..],
        [
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m recent --rcheck --seconds 10800 --reap --name SEP(10.180.0.1:80) -j SEP(10.180.0.1:80)"#,
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.2:80" -m recent --rcheck --seconds 10800 --reap --name SEP(10.180.0.2:80) -j SEP(10.180.0.2:80)"#,
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m statistic --mode random --probability 0.5000000000 -j SEP(10.180.0.1:80)"#,
            r#"-m comment --comment "ns1/svc1:p80 -> 10.180.0.2:80" -j SEP(10.180.0.2:80)"#,
        ]
    );
    assert_eq!(
        setup.chain("nat SEP(10.180.0.1:80)"),
        [
            r#"-s 10.180.0.1/32 -m comment --comment "ns1/svc1:p80" -j KUBE-MARK-MASQ"#,
            r#"-p tcp -m comment --comment "ns1/svc1:p80" -m recent --set --name SEP(10.180.0.1:80) -j DNAT --to-destination 10.180.0.1:80"#,
        ]
    );
}

// 12, in rules: what is masqueraded on the way to a cluster IP.
#[test]
fn masquerading_to_the_cluster_ip_follows_the_detector() {
    let to_address = r#"-d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ"#;
    let to_address_from = |source: &str, interface: &str| {
        let (to, rest) = to_address.split_once(" -p").unwrap();
        vec![format!("{source}{to}{interface} -p{rest}")]
    };
    let masquerade = |detector: Option<LocalDetector>, all: bool| {
        let setup = service().endpoint(A, HERE).node(|node| {
            node.local_detector.v4 = detector;
            node.masquerade_all = all;
        });
        let mut rules = setup.chain("nat SVC");
        rules.pop();
        rules
    };
    let cidr = || Some(LocalDetector::SourceCidr("10.1.2.3/16".parse().unwrap()));
    assert_eq!(masquerade(cidr(), false), to_address_from("! -s 10.1.0.0/16 ", ""));
    assert_eq!(masquerade(Some(LocalDetector::Bridge("cbr0".into())), false), to_address_from("", " ! -i cbr0"));
    assert_eq!(
        masquerade(Some(LocalDetector::InterfacePrefix("cali".into())), false),
        to_address_from("", " ! -i cali+")
    );
    assert_eq!(masquerade(None, false), [""; 0]);
    assert_eq!(masquerade(None, true), [to_address]);
    assert_eq!(masquerade(cidr(), true), [to_address]);
    // Every source is local: nothing is left, and nft would refuse `! -s 0.0.0.0/0`.
    let everything = Some(LocalDetector::SourceCidr("0.0.0.0/0".parse().unwrap()));
    assert_eq!(masquerade(everything, false), [""; 0]);
}

// 3
#[test]
fn a_service_without_endpoints_rejects_everything() {
    assert_eq!(
        external_service().all(),
        [
            r#"filter KUBE-EXTERNAL-SERVICES -d 192.0.2.1/32 -p tcp -m comment --comment "ns1/svc1:p80 has no endpoints" -m tcp --dport 80 -j REJECT"#,
            r#"filter KUBE-EXTERNAL-SERVICES -d 1.2.3.4/32 -p tcp -m comment --comment "ns1/svc1:p80 has no endpoints" -m tcp --dport 80 -j REJECT"#,
            r#"filter KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "ns1/svc1:p80 has no endpoints" -m addrtype --dst-type LOCAL -m tcp --dport 30000 -j REJECT"#,
            r#"filter KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 has no endpoints" -m tcp --dport 80 -j REJECT"#,
        ]
    );
}

#[test]
fn an_address_that_is_external_ip_and_vip_has_one_verdict() {
    let setup = service().external_ip("192.0.2.1").vip("192.0.2.1");
    assert_eq!(setup.chain("filter KUBE-EXTERNAL-SERVICES").len(), 1);
    let served = setup.endpoint(A, HERE);
    assert_eq!(served.chain("nat KUBE-SERVICES").len(), 3, "the two jumps differ in their comments");
}

// 4
#[test]
fn the_same_port_in_three_protocols_is_three_dispatches() {
    let mut setup = service();
    setup.service.ports = Box::default();
    setup.endpoint_ports.clear();
    let mut setup = setup
        .port("p80", Protocol::Tcp, 80, None)
        .port("p80", Protocol::Udp, 80, None)
        .port("p80", Protocol::Sctp, 80, None)
        .endpoint(A, HERE);
    for (at, port) in setup.endpoint_ports.iter_mut().enumerate() {
        port.port = port.port.saturating_add(at as u16);
    }
    let mut dispatch = setup.chain("nat KUBE-SERVICES");
    dispatch.sort();
    let rule = |protocol: &str, chain: &str| {
        format!(
            r#"-d 172.30.0.41/32 -p {protocol} -m comment --comment "ns1/svc1:p80 cluster IP" -m {protocol} --dport 80 -j {chain}"#
        )
    };
    assert_eq!(dispatch, [rule("sctp", "SVC3"), rule("tcp", "SVC"), rule("udp", "SVC2")]);
    for (chain, protocol, port) in [("SVC", "tcp", 80), ("SVC2", "udp", 81), ("SVC3", "sctp", 82)] {
        let endpoint = format!("SEP(10.180.0.1:{port})");
        assert!(setup.chain(&format!("nat {chain}"))[1].ends_with(&format!("-j {endpoint}")));
        let rules = setup.chain(&format!("nat {endpoint}"));
        assert!(rules[0].starts_with("-s 10.180.0.1/32 ") && rules[0].ends_with("-j KUBE-MARK-MASQ"), "{rules:?}");
        assert!(rules[1].starts_with(&format!("-p {protocol} ")), "{rules:?}");
        assert!(rules[1].ends_with(&format!("-j DNAT --to-destination 10.180.0.1:{port}")), "{rules:?}");
    }
}

// 13
#[test]
fn internal_policy_local_uses_local_endpoints_only() {
    let setup = service().internal_local().endpoint(A, HERE).endpoint(B, ELSEWHERE);
    assert_eq!(
        setup.all(),
        [
            r#"nat KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j SVL"#,
            r#"nat SEP(10.180.0.1:80) -s 10.180.0.1/32 -m comment --comment "ns1/svc1:p80" -j KUBE-MARK-MASQ"#,
            r#"nat SEP(10.180.0.1:80) -p tcp -m comment --comment "ns1/svc1:p80" -j DNAT --to-destination 10.180.0.1:80"#,
            r#"nat SVL ! -s 10.0.0.0/8 -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ"#,
            r#"nat SVL -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -j SEP(10.180.0.1:80)"#,
        ]
    );
    let several = setup.endpoint(C, HERE);
    assert_eq!(several.chain("nat SVL").len(), 3);
}

#[test]
fn internal_policy_local_without_local_endpoints_drops_until_there_are_none_at_all() {
    let setup = service().internal_local();
    let rule = |comment: &str, target: &str| {
        vec![format!(
            r#"filter KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 {comment}" -m tcp --dport 80 -j {target}"#
        )]
    };
    assert_eq!(setup.clone().endpoint(A, ELSEWHERE).all(), rule("has no local endpoints", "DROP"));
    assert_eq!(setup.all(), rule("has no endpoints", "REJECT"));
}

// 2
#[test]
fn an_endpoint_without_node_is_not_local() {
    let setup = service().internal_local().endpoint(A, "");
    assert!(setup.all()[0].ends_with("-j DROP"), "{:?}", setup.all());
}

// 15
#[test]
fn terminating_endpoints_are_used_only_if_none_is_ready_and_only_if_they_serve() {
    let setup = service().endpoint_in(A, HERE, TERMINATING).endpoint_in(B, ELSEWHERE, DEAD);
    assert_eq!(setup.chain("nat SVC")[1..].len(), 1);
    assert_eq!(setup.chain("nat SEP(10.180.0.1:80)").len(), 2);
    assert_eq!(setup.chain("nat SEP(10.180.0.2:80)").len(), 0);
    let with_ready = setup.endpoint(C, ELSEWHERE);
    assert_eq!(with_ready.chain("nat SEP(10.180.0.1:80)").len(), 0);
    assert_eq!(with_ready.chain("nat SEP(10.180.0.3:80)").len(), 2);
    let dead = service().endpoint_in(A, HERE, DEAD);
    assert!(dead.all()[0].ends_with("-j REJECT"));
}

// 17
#[test]
fn comments_are_left_out_of_dispatch_and_endpoint_chains_only() {
    let mut setup =
        external_service().external_local().source_range("203.0.113.0/24").endpoint(A, HERE).endpoint(B, HERE);
    let with = setup.all();
    setup.comments = RuleComments::Omit;
    let without = setup.all();
    assert_eq!(with.len(), without.len());
    for (with, without) in with.iter().zip(&without) {
        let many = [" SEP(", " SVC ", " SVL "].iter().any(|chain| with.find(chain) == with.find(' '));
        let dispatch = many && !with.contains("cluster IP");
        assert_eq!(without.contains("--comment"), with.contains("--comment") && !dispatch, "{with}\n{without}");
        if !dispatch {
            assert_eq!(with, without);
        }
    }
    let digests = |comments| {
        let setup = Setup { comments, ..setup.clone() };
        setup.fragment().chains.into_iter().map(|(_, body)| body.digest).collect::<Vec<_>>()
    };
    assert_eq!(digests(RuleComments::Keep), digests(RuleComments::Omit), "leaving them out is no reason to rewrite");
}

// 22: the textual half of it is the conversion's.
#[test]
fn ranges_are_written_as_networks() {
    let mut setup = external_service().source_range("203.0.113.77/24").endpoint(A, HERE);
    setup.node.local_detector.v4 = Some(LocalDetector::SourceCidr("10.1.2.3/16".parse().unwrap()));
    assert!(setup.chain("nat FW")[0].starts_with("-s 203.0.113.0/24 "));
    assert!(setup.chain("nat SVC")[0].starts_with("! -s 10.1.0.0/16 "));
}

// 23
#[test]
fn probabilities_have_ten_decimals_and_fall_with_the_number_of_endpoints() {
    for (n, text) in [
        (1, "1.0000000000"),
        (2, "0.5000000000"),
        (3, "0.3333333333"),
        (100_000, "0.0000100000"),
        (100_001, "0.0000099999"),
    ] {
        assert_eq!(Probability::text_of_one_in(n), text);
    }
    for n in 1..2000 {
        assert!(Probability::one_in(n).0 > Probability::one_in(n + 1).0, "{n}");
    }
}

// 26
#[test]
fn the_number_of_rules_is_kube_proxys() {
    let counted = |setup: &Setup, services: u32| {
        let count = |rules: &[String], table: &str| rules.iter().filter(|rule| rule.starts_with(table)).count() as u32;
        let base = restore_text(IpFamily::V4, [&setup.fragments()[0]]);
        let (filter, nat) = base.split_once("*nat").unwrap();
        let rules = |text: &str| text.lines().filter(|line| line.starts_with("-A KUBE-")).count() as u32;
        let all = setup.all();
        (rules(filter) + services * count(&all, "filter "), rules(nat) + services * count(&all, "nat "))
    };
    let with_endpoints = |mut setup: Setup, count: u8| {
        setup.node.features.packet_counters = true;
        (0..count).fold(setup, |setup, at| setup.endpoint(&format!("10.180.0.{}", at + 1), ELSEWHERE))
    };
    for services in [0, 1, 10] {
        for endpoints in [0_u32, 1, 2, 10] {
            let cluster_ip = with_endpoints(service(), endpoints as u8);
            let balanced = with_endpoints(external_service().source_range("203.0.113.0/24"), endpoints as u8);
            if endpoints == 0 {
                assert_eq!(counted(&cluster_ip, services), (4 + services, 5));
                assert_eq!(counted(&balanced, services), (4 + 4 * services, 5));
            } else {
                assert_eq!(counted(&cluster_ip, services), (4, 5 + services * (2 + 3 * endpoints)));
                assert_eq!(counted(&balanced, services), (4 + services, 5 + services * (10 + 3 * endpoints)));
            }
        }
    }
}
