use std::num::NonZeroU16;

use proptest::prelude::*;
use rstest::rstest;

use super::view::*;
use crate::backend::{Backend, RuleComments};
use crate::compile::NodePortAddresses;
use crate::iptables::tests::setup::*;
use crate::ipvs::{IpvsBackend, IpvsSettings, Vips};
use crate::kernel::fake::FakeKernel;
use crate::kernel::item::{Registry, Scheduler};
use crate::kernel::{ItemKey, ItemState, Kernel, Op, Rule};
use crate::model::Conditions;
use crate::net::{IpFamily, Protocol};

const NOT_READY: Conditions = Conditions { ready: false, serving: false, terminating: false };

fn both_families(mut setup: Setup) -> Setup {
    setup.service.cluster_ip_v6 = Some("fd00:30::41".parse().unwrap());
    setup
}

#[test]
fn a_cluster_ip_is_a_virtual_server_an_address_and_two_elements() {
    let out = fragment(&plain().endpoint(A, HERE).endpoint(B, ELSEWHERE));
    assert_eq!(servers(&out), ["tcp 172.30.0.41:80 rr -> 10.180.0.1:80 10.180.0.2:80"]);
    assert_eq!(
        elements(&out),
        ["LOOP-BACK 10.180.0.1,tcp:80,10.180.0.1", "CLUSTER-IP 172.30.0.41,tcp:80", "IPVS-IPS 172.30.0.41"]
    );
    assert_eq!(addresses(&out), ["172.30.0.41"]);
    assert_eq!(out.items.len(), 7);
    assert!(out.rules.is_empty() && out.chains.is_empty() && out.shared_chains.is_empty());
}

#[test]
fn ipv6_addresses_are_never_chosen_as_source() {
    let out = fragment(&both_families(plain()).endpoint("fd00:10::1", HERE));
    assert_eq!(servers(&out), ["tcp 172.30.0.41:80 rr ->", "tcp [fd00:30::41]:80 rr -> [fd00:10::1]:80"]);
    assert_eq!(addresses(&out), ["172.30.0.41", "fd00:30::41 deprecated"]);
    assert_eq!(
        elements_in(IpFamily::V6, &out),
        ["LOOP-BACK fd00:10::1,tcp:80,fd00:10::1", "CLUSTER-IP fd00:30::41,tcp:80", "IPVS-IPS fd00:30::41"]
    );
}

#[test]
fn a_family_that_is_off_has_nothing() {
    let out = fragment(&both_families(external()).endpoint("fd00:10::1", HERE).node(|node| node.families.v4 = false));
    assert!(!out.items.is_empty());
    assert!(out.items.iter().all(|(key, _)| key.family() == Some(IpFamily::V6)));
}

#[test]
fn a_service_without_endpoints_has_virtual_servers_that_refuse() {
    for setup in [external(), external().external_local(), external().internal_local()] {
        let out = fragment(&setup);
        assert_eq!(
            servers(&out),
            [
                "tcp 1.2.3.4:80 rr ->",
                "tcp 172.30.0.41:80 rr ->",
                "tcp 192.0.2.1:80 rr ->",
                "tcp 192.168.0.2:30000 rr ->"
            ]
        );
        assert_eq!(in_set(&out, "NO-LOCAL-ENDPOINTS"), [""; 0], "nothing is dropped, all is refused");
    }
}

#[rstest]
#[case::cluster(external(), &["LOAD-BALANCER 1.2.3.4,tcp:80", "EXTERNAL-IP 192.0.2.1,tcp:80", "CLUSTER-IP 172.30.0.41,tcp:80",
    "NODE-PORT-TCP 30000"])]
#[case::local(external().external_local(), &["LOAD-BALANCER-LOCAL 1.2.3.4,tcp:80", "LOAD-BALANCER 1.2.3.4,tcp:80",
    "EXTERNAL-IP-LOCAL 192.0.2.1,tcp:80", "CLUSTER-IP 172.30.0.41,tcp:80", "NODE-PORT-LOCAL-TCP 30000", "NODE-PORT-TCP 30000"])]
fn each_address_is_in_the_sets_of_its_kind_and_policy(#[case] setup: Setup, #[case] expected: &[&str]) {
    let out = fragment(&setup.endpoint(A, HERE));
    let mut found = elements(&out);
    found.retain(|line| !line.starts_with("LOOP-BACK") && !line.starts_with("IPVS-IPS"));
    assert_eq!(found, expected);
    assert_eq!(in_set(&out, "IPVS-IPS"), ["1.2.3.4", "172.30.0.41", "192.0.2.1"]);
    assert_eq!(addresses(&out), ["1.2.3.4", "172.30.0.41", "192.0.2.1"]);
}

#[rstest]
#[case(Protocol::Tcp, &["NODE-PORT-TCP 30000"])]
#[case(Protocol::Udp, &["NODE-PORT-UDP 30000"])]
#[case(Protocol::Sctp, &["NODE-PORT-SCTP-HASH 192.168.0.2,sctp:30000", "NODE-PORT-SCTP-HASH 192.168.0.3,sctp:30000"])]
fn node_ports_are_served_on_every_address_of_the_node(#[case] protocol: Protocol, #[case] sets: &[&str]) {
    let setup = bare().port("p", protocol, 80, Some(30000)).endpoint(A, HERE).endpoint(B, HERE);
    let setup = setup.node(|node| node.node_addresses.v4.push("192.168.0.3".parse().unwrap()));
    let out = fragment(&setup);
    let targets = "10.180.0.1:80 10.180.0.2:80";
    assert_eq!(
        servers(&out),
        ["172.30.0.41:80", "192.168.0.2:30000", "192.168.0.3:30000"]
            .map(|key| format!("{protocol} {key} rr -> {targets}"))
    );
    let node_ports: Vec<String> = elements(&out).into_iter().filter(|line| line.starts_with("NODE-PORT")).collect();
    assert_eq!(node_ports, sets);
    assert_eq!(addresses(&out), ["172.30.0.41"], "the node's addresses are its own already");

    let local = fragment(&setup.external_local());
    let node_ports: Vec<String> = elements(&local).into_iter().filter(|line| line.starts_with("NODE-PORT")).collect();
    let in_local = sets
        .iter()
        .map(|line| line.replace("-TCP", "-LOCAL-TCP").replace("-UDP", "-LOCAL-UDP").replace("-SCTP", "-LOCAL-SCTP"));
    assert_eq!(node_ports, in_local.chain(sets.iter().map(|line| (*line).to_owned())).collect::<Vec<_>>());
}

#[rstest]
#[case::some(&["192.168.0.9", "10.1.1.1"], &["tcp 10.1.1.1:30000", "tcp 192.168.0.9:30000"])]
#[case::never_on_loopback(&["127.0.0.1", "192.168.0.2"], &["tcp 192.168.0.2:30000"])]
#[case::link_local_is_routed(&["169.254.1.1"], &["tcp 169.254.1.1:30000"])]
#[case::none(&[], &[])]
fn restricted_node_ports_are_served_on_the_listed_addresses(#[case] addresses: &[&str], #[case] expected: &[&str]) {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let mut setup = external().endpoint(A, HERE);
    setup.node.node_port_addresses.v4 = NodePortAddresses::Only(addresses);
    setup.service.health_check_node_port = NonZeroU16::new(32000);
    let out = fragment(&setup);
    let mut found = keys(&out);
    found.retain(|line| line.ends_with(":30000"));
    assert_eq!(found, expected);
    assert_eq!(in_set(&out, "NODE-PORT-TCP").is_empty(), expected.is_empty());
    assert_eq!(in_set(&out, "HEALTH-CHECK-NODE-PORT"), ["32000"], "whatever becomes of the node port");
}

#[test]
fn ipv6_node_ports_are_not_served_on_link_local_addresses() {
    let mut setup = both_families(external());
    setup.node.node_port_addresses.v6 =
        NodePortAddresses::Only(["::1", "fe80::1", "fd00:1::2"].map(|address| address.parse().unwrap()).into());
    let mut found = keys(&fragment(&setup));
    found.retain(|line| line.contains('[') && line.ends_with(":30000"));
    assert_eq!(found, ["tcp [fd00:1::2]:30000"]);
}

// The columns are the real servers of the cluster IP and of the other addresses.
#[rstest]
#[case::cluster(external(), "A B", "A B", false)]
#[case::external_local(external().external_local(), "A B", "A", false)]
#[case::internal_local(external().internal_local(), "A", "A B", false)]
#[case::both_local(external().internal_local().external_local(), "A", "A", false)]
fn policies_choose_endpoints(
    #[case] setup: Setup,
    #[case] internal: &str,
    #[case] outside: &str,
    #[case] lacking: bool,
) {
    check_policies(&setup.endpoint(A, HERE).endpoint(B, ELSEWHERE), internal, outside, lacking);
}

#[rstest]
#[case::cluster(external(), "A B", "A B", false)]
#[case::external_local_uses_all_and_keeps_others_away(external().external_local(), "A B", "A B", true)]
#[case::internal_local_serves_nothing(external().internal_local(), "", "A B", false)]
#[case::both_local(external().internal_local().external_local(), "", "A B", true)]
fn policies_without_local_endpoints(
    #[case] setup: Setup,
    #[case] internal: &str,
    #[case] outside: &str,
    #[case] lacking: bool,
) {
    check_policies(&setup.endpoint(A, ELSEWHERE).endpoint(B, ELSEWHERE), internal, outside, lacking);
}

#[test]
fn a_cluster_ip_service_with_policy_local_serves_local_endpoints_only() {
    let real = |node| real_servers(&fragment(&plain().internal_local().endpoint(A, node)), "172.30.0.41:80");
    assert_eq!(real(HERE), "10.180.0.1:80");
    assert_eq!(real(ELSEWHERE), "");
}

fn check_policies(setup: &Setup, internal: &str, outside: &str, lacking: bool) {
    let out = fragment(setup);
    let named = |server| real_servers(&out, server).replace("10.180.0.1:80", "A").replace("10.180.0.2:80", "B");
    assert_eq!(named("172.30.0.41:80"), internal);
    for server in ["1.2.3.4:80", "192.0.2.1:80", "192.168.0.2:30000"] {
        assert_eq!(named(server), outside, "{server}");
    }
    let dropped = ["1.2.3.4,tcp:80", "192.0.2.1,tcp:80", "192.168.0.2,tcp:30000"];
    assert_eq!(in_set(&out, "NO-LOCAL-ENDPOINTS"), if lacking { &dropped[..] } else { &[] });
}

// Endpoints as conditions and place; then the real servers of the cluster IP and of the external IP.
#[rstest]
#[case::ready_ones_come_first(&[(Conditions::READY, HERE), (TERMINATING, HERE)], "A", "A")]
#[case::terminating_ones_are_better_than_none(&[(TERMINATING, HERE), (DEAD, HERE)], "A", "A")]
#[case::local_ready_wins(&[(Conditions::READY, HERE), (Conditions::READY, ELSEWHERE), (TERMINATING, HERE)], "A B", "A")]
#[case::local_terminating_is_better_than_remote(&[(TERMINATING, HERE), (Conditions::READY, ELSEWHERE)], "B", "A")]
#[case::none_usable(&[(DEAD, HERE), (NOT_READY, ELSEWHERE)], "", "")]
fn terminating_endpoints_serve_when_no_other_does(
    #[case] endpoints: &[(Conditions, &str)],
    #[case] internal: &str,
    #[case] outside: &str,
) {
    let mut setup = plain().external_ip("192.0.2.1").external_local();
    for ((conditions, node), address) in endpoints.iter().zip([A, B, C]) {
        setup = setup.endpoint_in(address, node, *conditions);
    }
    let letters = |text: &str| {
        [(A, "A"), (B, "B"), (C, "C")]
            .iter()
            .fold(text.to_owned(), |text, (address, letter)| text.replace(&format!("{address}:80"), letter))
    };
    let out = fragment(&setup);
    assert_eq!(letters(&real_servers(&out, "172.30.0.41:80")), internal);
    assert_eq!(letters(&real_servers(&out, "192.0.2.1:80")), outside);
    let local = endpoints.iter().filter(|(_, node)| *node == HERE).count();
    assert_eq!(in_set(&out, "LOOP-BACK").len(), local, "ready or not");
}

#[test]
fn affinity_holds_on_every_address() {
    let mut setup = external().endpoint(A, HERE);
    setup.service.affinity_seconds = Some(10800);
    let found = servers(&fragment(&setup));
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|line| line.contains(" rr, persistent for 10800 s ->")), "{found:?}");
}

#[rstest]
#[case("rr", " rr ->")]
#[case("wlc", " wlc ->")]
#[case("sh", " sh ->")]
#[case("mh", " mh, flags 0x10 ->")]
fn the_scheduler_is_the_one_that_is_configured(#[case] name: &str, #[case] state: &str) {
    let settings = IpvsSettings { scheduler: Scheduler::new(name).unwrap(), ..IpvsSettings::default() };
    let found = servers(&lowered(&external(), &settings));
    assert!(found.iter().all(|line| line.contains(state)), "{found:?}");
}

// Ranges; whether the node is admitted.
#[rstest]
#[case(&["203.0.113.0/24"], false)]
#[case(&["203.0.113.7/32", "198.51.100.0/25"], false)]
#[case(&["192.168.0.0/16"], true)]
#[case(&["192.168.0.2/32", "203.0.113.0/24"], true)]
fn source_ranges_filter_vips_only(#[case] ranges: &[&str], #[case] node: bool) {
    let setup = ranges.iter().fold(external(), |setup, range| setup.source_range(range)).endpoint(A, HERE);
    let out = fragment(&setup);
    let mut cidrs: Vec<String> = ranges.iter().map(|range| format!("1.2.3.4,tcp:80,{range}")).collect();
    cidrs.sort();
    let mut found = in_set(&out, "LOAD-BALANCER-SOURCE-CIDR");
    found.sort();
    assert_eq!(found, cidrs);
    assert_eq!(in_set(&out, "LOAD-BALANCER-FW"), ["1.2.3.4,tcp:80"]);
    let (sources, dropped) = if node {
        (vec!["1.2.3.4,tcp:80,1.2.3.4"], vec![])
    } else {
        let rule = "-m addrtype --src-type LOCAL -m ipvs --vproto 6 --vaddr 1.2.3.4 --vport 80 -j DROP";
        (vec![], vec![format!("KUBE-IPVS-OUT-FILTER {rule}")])
    };
    assert_eq!(in_set(&out, "LOAD-BALANCER-SOURCE-IP"), sources);
    assert_eq!(rules(&out), dropped);
}

#[test]
fn a_node_without_a_known_address_is_not_admitted() {
    let setup = external().source_range("192.168.0.0/16").node(|node| node.node_ips.v4 = None);
    assert_eq!(rules(&fragment(&setup)).len(), 1);
}

#[test]
fn an_address_of_another_interface_is_not_bound_and_keeps_its_other_ports() {
    let out = fragment(&plain().external_ip(NODE).vip(NODE).external_ip("192.0.2.1").endpoint(A, HERE));
    assert_eq!(keys(&out), ["tcp 172.30.0.41:80", "tcp 192.0.2.1:80", "tcp 192.168.0.2:80"]);
    assert_eq!(addresses(&out), ["172.30.0.41", "192.0.2.1"]);
    assert_eq!(in_set(&out, "IPVS-IPS"), ["172.30.0.41", "192.0.2.1"]);
    assert_eq!(in_set(&out, "EXTERNAL-IP"), ["192.0.2.1,tcp:80", "192.168.0.2,tcp:80"]);
    assert_eq!(in_set(&out, "LOAD-BALANCER"), ["192.168.0.2,tcp:80"]);
}

#[test]
fn a_cluster_ip_is_bound_even_if_another_interface_has_it() {
    let out = fragment(&plain().node(|node| node.node_addresses.v4.insert(0, "172.30.0.41".parse().unwrap())));
    assert_eq!(addresses(&out), ["172.30.0.41"]);
}

#[rstest]
#[case("127.0.0.1", false)]
#[case("127.9.9.9", false)]
#[case("0.0.0.0", false)]
#[case("224.0.0.1", false)]
#[case("169.254.1.1", true)]
#[case("10.0.0.1", true)]
#[case("::1", false)]
#[case("fe80::1", false)]
#[case("febf:ffff::1", false)]
#[case("ff02::1", false)]
#[case("fec0::1", true)]
#[case("fd00::1", true)]
fn addresses_that_mean_something_else_everywhere_are_not_served(#[case] address: &str, #[case] served: bool) {
    let out = fragment(&both_families(plain()).external_ip(address).vip(address));
    assert_eq!(servers(&out).len(), if served { 3 } else { 2 });
    assert_eq!(addresses(&out).len(), if served { 3 } else { 2 });
    let all = [elements(&out), elements_in(IpFamily::V6, &out)].concat();
    assert_eq!(all.iter().any(|line| line.contains(&format!(" {address},"))), served);
}

#[test]
fn one_address_for_all_ports_of_a_service() {
    let setup = external().port("p81", Protocol::Tcp, 81, None).port("dns", Protocol::Udp, 81, Some(30001));
    let out = fragment(&setup.endpoint(A, HERE));
    assert_eq!(addresses(&out), ["1.2.3.4", "172.30.0.41", "192.0.2.1"]);
    assert_eq!(in_set(&out, "CLUSTER-IP"), ["172.30.0.41,tcp:80", "172.30.0.41,tcp:81", "172.30.0.41,udp:81"]);
    assert_eq!(servers(&out).len(), 3 * 3 + 2);
}

#[test]
fn ports_may_share_an_endpoint_an_address_or_a_rule() {
    let mut setup = external().port("again", Protocol::Tcp, 80, Some(30000)).vip("192.0.2.1");
    setup = setup.source_range("203.0.113.0/24").endpoint(A, HERE);
    setup.service.health_check_node_port = NonZeroU16::new(32000);
    let out = fragment(&setup);
    assert_eq!(keys(&out), ["tcp 1.2.3.4:80", "tcp 172.30.0.41:80", "tcp 192.0.2.1:80", "tcp 192.168.0.2:30000"]);
    assert_eq!(rules(&out).len(), 2);
    assert_eq!(in_set(&out, "LOOP-BACK").len(), 1);
    assert_eq!(in_set(&out, "EXTERNAL-IP"), ["192.0.2.1,tcp:80"]);
    assert_eq!(in_set(&out, "LOAD-BALANCER"), ["1.2.3.4,tcp:80", "192.0.2.1,tcp:80"]);
}

#[test]
fn routes_take_the_place_of_addresses() {
    let service_cidrs = ["172.30.0.0/16", "fd00:30::/108"].map(|cidr| cidr.parse().unwrap()).into();
    let settings = IpvsSettings { vips: Vips::Routes { service_cidrs }, ..IpvsSettings::default() };
    let setup = both_families(external()).external_ip("2001:db8::7").external_ip("172.30.9.9");
    let out = lowered(&setup, &settings);
    assert_eq!(
        addresses(&out),
        [
            "local route 1.2.3.4/32 from 192.168.0.2",
            "local route 192.0.2.1/32 from 192.168.0.2",
            "local route 2001:db8::7/128 from fd00:1::2"
        ]
    );
    assert_eq!(in_set(&out, "IPVS-IPS"), ["1.2.3.4", "172.30.0.41", "172.30.9.9", "192.0.2.1"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_service_the_kernel_takes_it_and_knows_it_again(
        states in proptest::collection::vec((1_u8..6, any::<bool>(), any::<(bool, bool, bool)>()), 0..6),
        policies in any::<(bool, bool)>(),
        wanted in any::<(bool, bool, bool, bool, bool, bool)>(),
        protocol in prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        routes in any::<bool>(),
    ) {
        let (node_port, external_ip, vip, range, node_in_range, dual) = wanted;
        let mut setup = bare().port("a", protocol, 80, node_port.then_some(30000)).port("b", Protocol::Tcp, 81, None);
        for (octet, local, (ready, serving, terminating)) in states {
            let node = if local { HERE } else { ELSEWHERE };
            for prefix in ["10.180.0.", "fd00:10::"] {
                setup = setup.endpoint_in(&format!("{prefix}{octet}"), node, Conditions { ready, serving, terminating });
            }
        }
        if policies.0 { setup = setup.internal_local(); }
        if policies.1 { setup = setup.external_local(); }
        if external_ip { setup = setup.external_ip("1.2.3.4").external_ip(NODE).external_ip("fd00:1::2"); }
        if vip { setup = setup.vip("1.2.3.4").vip("2001:db8::1").vip("172.30.0.41"); }
        if range { setup = setup.source_range("203.0.113.7/32").source_range("2001:db8::/32"); }
        if node_in_range { setup = setup.source_range("192.168.0.0/24"); }
        if dual { setup = both_families(setup); }
        let service_cidrs = vec!["172.30.0.0/24".parse().unwrap()];
        let vips = if routes { Vips::Routes { service_cidrs } } else { Vips::Addresses };
        check(&setup, IpvsSettings { vips, ..IpvsSettings::default() });
    }
}

/// What must hold for whatever is lowered.
fn check(setup: &Setup, settings: IpvsSettings) {
    let backend = IpvsBackend { settings };
    let mut out = lowered(setup, &backend.settings);
    assert!(out.items.is_sorted_by(|(a, _), (b, _)| a < b), "sorted, without repetitions");
    let items = backend.base(&setup.node).items.into_iter().chain(out.items.clone());
    let operations: Vec<Op> = items.map(|(key, state)| Op::AddItem(key, state)).collect();
    let mut kernel = FakeKernel::default();
    for (result, operation) in kernel.apply(&operations).into_iter().zip(&operations) {
        assert_eq!(result, Ok(()), "{operation}");
    }
    let local = &setup.node.node_addresses;
    let mut registry = Registry::new(local.v4.iter().chain(&local.v6).copied());
    for (key, state) in &out.items {
        match (key, state) {
            (ItemKey::Element(set, element), ItemState::Present) => registry.add(*set, element),
            (ItemKey::VirtualServer(server), ItemState::Server(_)) => assert!(registry.knows(server), "{server}"),
            (ItemKey::RealServer(real), ItemState::Weight(1)) => {
                assert_eq!(IpFamily::of(real.address), real.server.family());
            }
            (ItemKey::Address(_), ItemState::Address { .. }) | (ItemKey::Route(_), ItemState::Source(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    for (key, _) in &out.rules {
        assert!(Rule::parse_with_order(&key.spec).unwrap().canonical, "{key}");
    }
    let before = out.clone();
    for plan in setup.plans() {
        backend.lower(&plan, &setup.node, RuleComments::Omit, &mut out);
    }
    assert_eq!(out, before, "the same again adds nothing");
}
