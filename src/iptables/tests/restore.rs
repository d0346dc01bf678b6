use std::collections::{HashMap, HashSet};
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::packets;
use super::setup::*;
use crate::backend::{Backend, Fragment};
use crate::compile::NodeContext;
use crate::iptables::{IptablesBackend, restore_text};
use crate::kernel::rule::Target;
use crate::kernel::{ChainKey, Placement, Rule};
use crate::model::{Service, ServiceName};
use crate::net::{IpFamily, Protocol};

/// One of each kind of Service on one node.
fn mixed() -> Vec<Setup> {
    let named = |at: u8, setup: Setup| {
        let mut setup = setup;
        setup.name = ServiceName::new(format!("ns{at}"), format!("svc{at}"));
        setup.service.cluster_ip_v4 = Some([172, 30, 0, 40 + at].into());
        setup.node.features.packet_counters = true;
        setup
    };
    let with_node_port = |node_port| {
        let mut setup = service();
        setup.service.ports = Box::default();
        setup.endpoint_ports.clear();
        setup.port("p80", Protocol::Tcp, 80, node_port)
    };
    let mut local = with_node_port(Some(3001)).external_local().vip("1.2.3.4").external_ip("192.168.99.22");
    local.service.health_check_node_port = NonZeroU16::new(30000);
    let mut balanced = with_node_port(Some(3002)).vip("5.6.7.8").source_range("203.0.113.0/25");
    balanced.service.affinity_seconds = Some(10800);
    vec![
        named(1, service().endpoint("10.180.0.1", HERE)),
        named(2, local.endpoint("10.180.0.2", ELSEWHERE)),
        named(3, with_node_port(Some(3003)).endpoint("10.180.0.3", HERE)),
        named(4, service().external_ip("192.168.99.33").endpoint("10.180.0.4", HERE).endpoint("10.180.0.5", ELSEWHERE)),
        named(5, balanced.endpoint("10.180.0.3", HERE)),
        named(6, service()),
    ]
}

// 1
#[test]
fn a_mixed_set_of_services_gives_exactly_kube_proxys_rules() {
    let services = mixed();
    let base = IptablesBackend::default().base(&services[0].node);
    // Backwards, since each new Service goes in front.
    let fragments: Vec<Fragment> = [base].into_iter().chain(services.iter().rev().map(Setup::fragment)).collect();
    assert_eq!(restore_text(IpFamily::V4, &fragments), include_str!("mixed.txt"));
}

#[test]
fn a_family_without_anything_is_two_empty_tables() {
    assert_eq!(restore_text(IpFamily::V6, &[]), "*filter\nCOMMIT\n*nat\nCOMMIT\n");
}

#[test]
fn chains_of_others_are_not_declared_since_that_would_empty_them() {
    let text = restore_text(IpFamily::V4, [&IptablesBackend::default().base(&NodeContext::default())]);
    let declared: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(':')).collect();
    assert!(!declared.is_empty() && declared.iter().all(|line| line.starts_with("KUBE-")), "{declared:?}");
}

/// Checks what must hold for whatever is written: it can be written in this order, and nothing is named that is not there.
fn check(fragments: &[Fragment]) {
    let mut known: HashSet<ChainKey> = fragments.iter().flat_map(|fragment| fragment.shared_chains.clone()).collect();
    let mut unused = HashMap::new();
    for (chain, body) in fragments.iter().flat_map(|fragment| &fragment.chains) {
        assert_ne!(body.digest.rules, 0, "{chain} is empty");
        for line in body.text.lines() {
            let rule = Rule::parse(line).unwrap();
            if let Some(Target::Jump(name)) = rule.target {
                let target = ChainKey { name, ..*chain };
                let fixed = name.as_str() == "KUBE-MARK-MASQ";
                assert!(fixed || known.contains(&target), "{chain} jumps to {target}, which is not there yet");
                unused.remove(&target);
            }
        }
        assert!(known.insert(*chain), "{chain} is written twice");
        unused.insert(*chain, ());
    }
    let mut seen = HashSet::new();
    for (key, _) in fragments.iter().flat_map(|fragment| &fragment.rules) {
        assert!(seen.insert(key), "{key} is there twice");
        let parsed = Rule::parse_with_order(&key.spec).unwrap();
        assert!(parsed.canonical, "{key}");
        if let Some(Target::Jump(name)) = parsed.rule.target {
            let target = ChainKey { name, ..key.chain };
            assert!(known.contains(&target), "{key} jumps to a chain that is not there");
            unused.remove(&target);
        }
    }
    // The first comes last: it is used by the others.
    unused.retain(|chain, ()| chain.name.as_str() != "KUBE-MARK-MASQ");
    assert!(unused.is_empty(), "nothing jumps to {unused:?}");
}

#[test]
fn every_chain_of_the_mixed_set_exists_and_is_used() {
    let services = mixed();
    let base = IptablesBackend::default().base(&services[0].node);
    check(&[base].into_iter().chain(services.iter().map(Setup::fragment)).collect::<Vec<_>>());
}

#[test]
fn only_plain_node_port_rules_go_to_the_end() {
    for fragment in mixed().iter().map(Setup::fragment) {
        for (key, placement) in &fragment.rules {
            let plain = key.chain.table.table.as_str() == "nat"
                && key.chain.name.as_str() == "KUBE-NODEPORTS"
                && !key.spec.contains("nfacct");
            assert_eq!(*placement == Placement::Tail, plain, "{key}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_service_nothing_dangles(
        states in proptest::collection::vec((0_u8..6, any::<bool>(), any::<(bool, bool, bool)>()), 0..6),
        policies in any::<(bool, bool)>(),
        addresses in any::<(bool, bool, bool, bool, bool)>(),
        settings in any::<(bool, bool, bool, bool, bool)>(),
    ) {
        let (node_port, external_ip, vip, range, node_in_range) = addresses;
        let (detector, masquerade_all, affinity, gate, counters) = settings;
        let mut setup = service();
        setup.service = Service { ports: Box::default(), ..setup.service };
        setup.endpoint_ports.clear();
        setup = setup.port("p80", Protocol::Tcp, 80, node_port.then_some(30000)).port("p80", Protocol::Udp, 80, None);
        for (octet, local, (ready, serving, terminating)) in states {
            let conditions = crate::model::Conditions { ready, serving, terminating };
            let node = if local { HERE } else { ELSEWHERE };
            setup = setup.endpoint_in(&format!("10.180.0.{octet}"), node, conditions);
        }
        if policies.0 { setup = setup.internal_local(); }
        if policies.1 { setup = setup.external_local(); }
        if external_ip { setup = setup.external_ip("1.2.3.4"); }
        if vip { setup = setup.vip("1.2.3.4").vip("1.2.3.5"); }
        if range { setup = setup.source_range("203.0.113.0/24"); }
        if node_in_range { setup = setup.source_range("192.168.0.0/24"); }
        setup.service.affinity_seconds = affinity.then_some(60);
        setup.service.health_check_node_port = NonZeroU16::new(30001);
        if !detector { setup.node.local_detector.v4 = None; }
        setup.node.masquerade_all = masquerade_all;
        setup.node.allow_external_ips = gate;
        setup.node.features.packet_counters = counters;
        check(&setup.fragments());
        check(&setup.clone().compact().fragments());
        packets::layouts_agree(&setup);
    }
}
