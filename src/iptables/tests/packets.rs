//! 12: the fate of the first packet of a flow, for every kind of source and destination.

use std::net::IpAddr;

use rstest::rstest;

use super::setup::*;
use crate::compile::{LocalDetector, NodePortAddresses};
use crate::iptables::rule_set;
use crate::kernel::trace::{Packet, Verdict};
use crate::net::Protocol;

const CLUSTER_IP: &str = "172.30.0.41:80";
const EXTERNAL_IP: &str = "192.0.2.1:80";
const VIP: &str = "1.2.3.4:80";
const NODE_PORT: &str = "192.168.0.2:30000";
const LOCALHOST: &str = "127.0.0.1:30000";
const OUTSIDE: [&str; 3] = [EXTERNAL_IP, VIP, NODE_PORT];

const NODE_IP: &str = "192.168.0.2";
const POD: (&str, Option<&str>) = ("10.0.0.5", Some("cni0"));
const NODE: (&str, Option<&str>) = (NODE_IP, None);
const WORLD: (&str, Option<&str>) = ("198.51.100.7", Some("eth0"));

/// Where a packet goes: the letters of the endpoints that share it evenly, and `M` if it is masqueraded; `REJ`, `DROP`, or
/// `-` when it is left alone.
fn fate(setup: &Setup, (source, interface): (&str, Option<&str>), destination: &str) -> String {
    fate_with(setup, (source, interface), destination, &[NODE_IP])
}

/// It is the same in every layout.
fn fate_with(setup: &Setup, source: (&str, Option<&str>), destination: &str, local: &[&str]) -> String {
    let fate = fate_in_layout(setup, source, destination, local);
    let compact = fate_in_layout(&setup.clone().compact(), source, destination, local);
    assert_eq!(fate, compact, "in kube-proxy's and the compact layout");
    fate
}

fn fate_in_layout(
    setup: &Setup,
    (source, interface): (&str, Option<&str>),
    destination: &str,
    local: &[&str],
) -> String {
    let rules = rule_set(&setup.fragments()).unwrap();
    let packet = Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: Protocol::Tcp,
        in_interface: interface.map(Into::into),
    };
    let local: Vec<IpAddr> = local.iter().map(|address| address.parse().unwrap()).collect();
    let outcomes = rules.trace(&packet, |address| local.contains(&address)).unwrap();
    let share = 1.0 / outcomes.len() as f64;
    let words: Vec<String> = outcomes
        .iter()
        .map(|outcome| {
            assert!((outcome.probability - share).abs() < 1e-9, "uneven shares: {outcomes:?}");
            let word = match outcome.verdict {
                Verdict::Endpoint(to) if to.ip().to_string() == A => "A",
                Verdict::Endpoint(to) if to.ip().to_string() == B => "B",
                Verdict::Endpoint(to) => panic!("{to}"),
                Verdict::NotHandled => "-",
                Verdict::Reject => "REJ",
                Verdict::Drop => "DROP",
            };
            if outcome.masqueraded { format!("{word}M") } else { word.to_owned() }
        })
        .collect();
    words.join(" ")
}

/// Whatever becomes of a packet, it is the same in both layouts.
pub(super) fn layouts_agree(setup: &Setup) {
    let outcomes = |setup: &Setup| -> Vec<_> {
        let rules = rule_set(&setup.fragments()).unwrap();
        let node: IpAddr = NODE_IP.parse().unwrap();
        let mut all = Vec::new();
        for destination in [CLUSTER_IP, "1.2.3.4:80", "1.2.3.5:80", NODE_PORT, LOCALHOST, "1.2.3.4:81"] {
            for (source, interface) in [POD, NODE, WORLD, ("203.0.113.5", Some("eth0"))] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let packet = Packet {
                        source: source.parse().unwrap(),
                        destination: destination.parse().unwrap(),
                        protocol,
                        in_interface: interface.map(Into::into),
                    };
                    let outcomes = rules.trace(&packet, |address| address == node).unwrap();
                    all.extend(outcomes.into_iter().map(|it| (it.verdict, it.masqueraded, it.probability)));
                }
            }
        }
        all
    };
    assert_eq!(outcomes(setup), outcomes(&setup.clone().compact()));
}

/// The fates of packets from a pod, the node and the world.
fn fates(setup: &Setup, destination: &str) -> [String; 3] {
    [POD, NODE, WORLD].map(|source| fate(setup, source, destination))
}

fn one_here() -> Setup {
    external_service().endpoint(A, HERE).endpoint(B, ELSEWHERE)
}

fn none_here() -> Setup {
    external_service().endpoint(B, ELSEWHERE)
}

#[rstest]
#[case::cluster(one_here(), ["A B", "AM BM", "AM BM"])]
#[case::cluster_whatever_the_external_policy(one_here().external_local(), ["A B", "AM BM", "AM BM"])]
#[case::local(one_here().internal_local(), ["A", "AM", "AM"])]
#[case::local_whatever_the_external_policy(one_here().internal_local().external_local(), ["A", "AM", "AM"])]
#[case::local_with_none_here(none_here().internal_local(), ["DROP"; 3])]
#[case::nothing_usable(external_service(), ["REJ"; 3])]
#[case::nothing_usable_local(external_service().internal_local(), ["REJ"; 3])]
fn packets_to_the_cluster_ip(#[case] setup: Setup, #[case] expected: [&str; 3]) {
    assert_eq!(fates(&setup, CLUSTER_IP), expected);
}

#[rstest]
#[case::cluster(one_here(), ["AM BM"; 3])]
#[case::cluster_whatever_the_internal_policy(one_here().internal_local(), ["AM BM"; 3])]
#[case::cluster_with_none_here(none_here(), ["BM"; 3])]
#[case::local(one_here().external_local(), ["A B", "AM BM", "A"])]
#[case::local_whatever_the_internal_policy(one_here().external_local().internal_local(), ["A B", "AM BM", "A"])]
#[case::local_with_none_here(none_here().external_local(), ["B", "BM", "DROP"])]
fn packets_to_outside_addresses(#[case] setup: Setup, #[case] expected: [&str; 3]) {
    for destination in OUTSIDE {
        assert_eq!(fates(&setup, destination), expected, "{destination}");
    }
}

#[test]
fn packets_to_outside_addresses_of_a_service_that_is_down() {
    for setup in [external_service(), external_service().external_local()] {
        assert_eq!(fates(&setup, NODE_PORT), ["REJ"; 3]);
        for destination in [EXTERNAL_IP, VIP] {
            // What the node sends elsewhere meets no chain with outside addresses.
            assert_eq!(fates(&setup, destination), ["REJ", "-", "REJ"]);
        }
        assert_eq!(fate_with(&setup, NODE, VIP, &[NODE_IP, "1.2.3.4"]), "REJ", "the VIP is the node's own");
    }
}

#[test]
fn packets_to_a_vip_with_source_ranges() {
    let setup = one_here().source_range("198.51.100.0/24");
    assert_eq!(fates(&setup, VIP), ["DROP", "DROP", "AM BM"]);
    assert_eq!(fates(&setup.clone().external_local(), VIP), ["DROP", "DROP", "A"]);
    assert_eq!(fate(&setup, ("198.51.101.7", Some("eth0")), VIP), "DROP");
    for destination in [EXTERNAL_IP, NODE_PORT] {
        assert_eq!(fates(&setup, destination), ["AM BM"; 3], "{destination} is not filtered");
    }
    assert_eq!(fates(&setup, CLUSTER_IP), fates(&one_here(), CLUSTER_IP));
    let with_node = setup.source_range("192.168.0.0/24");
    assert_eq!(fates(&with_node, VIP), ["DROP", "AM BM", "AM BM"]);
    let from_vip = |setup: &Setup| fate_with(setup, ("1.2.3.4", None), VIP, &[NODE_IP, "1.2.3.4"]);
    assert_eq!(from_vip(&with_node), "AM BM", "to itself, by the address that it holds");
    assert_eq!(from_vip(&one_here().source_range("198.51.100.0/24")), "DROP");
    let with_pods = one_here().external_local().source_range("10.0.0.0/8");
    assert_eq!(fates(&with_pods, VIP), ["A B", "DROP", "DROP"]);
}

#[test]
fn packets_to_node_ports_on_localhost() {
    let from_localhost = ("127.0.0.1", None);
    for setup in [one_here(), one_here().external_local()] {
        assert_eq!(fate(&setup, from_localhost, LOCALHOST), "AM BM");
        let counted = setup.clone().node(|node| node.features.packet_counters = true);
        assert_eq!(fate(&counted, from_localhost, LOCALHOST), "AM BM");
        let off = setup.clone().node(|node| node.localhost_node_ports = false);
        assert_eq!(fate(&off, from_localhost, LOCALHOST), "-");
        let addresses = NodePortAddresses::Only(vec![NODE_IP.parse().unwrap()]);
        let elsewhere = setup.node(|node| node.node_port_addresses.v4 = addresses);
        assert_eq!(fate(&elsewhere, from_localhost, LOCALHOST), "-");
        assert_eq!(fate(&elsewhere, NODE, NODE_PORT), "AM BM");
    }
    assert_eq!(fate(&one_here(), WORLD, LOCALHOST), "AM BM", "as on any other address");
    assert_eq!(fate(&one_here(), WORLD, "127.0.0.1:81"), "DROP", "a neighbour has no business there");
    assert_eq!(fate(&one_here(), from_localhost, "127.0.0.1:81"), "-");
}

#[test]
fn packets_to_node_ports_on_addresses_that_are_not_served() {
    let addresses = || NodePortAddresses::Only(vec!["192.168.1.3".parse().unwrap()]);
    let only_second = |setup: Setup| setup.node(|node| node.node_port_addresses.v4 = addresses());
    assert_eq!(fates(&only_second(one_here()), NODE_PORT), ["-"; 3]);
    assert_eq!(fate_with(&only_second(one_here()), WORLD, "192.168.1.3:30000", &["192.168.1.3"]), "AM BM");
    assert_eq!(fates(&only_second(external_service()), NODE_PORT), ["REJ"; 3], "as kube-proxy does");
}

#[test]
fn packets_to_what_a_service_does_not_offer() {
    for destination in ["172.30.0.41:81", "192.0.2.1:30000", "1.2.3.4:81", "192.168.0.2:80", "172.30.0.42:80"] {
        assert_eq!(fates(&one_here(), destination), ["-"; 3], "{destination}");
        assert_eq!(fates(&external_service(), destination), ["-"; 3], "{destination}");
    }
}

// 4
#[rstest]
#[case::kube_proxy(one_here())]
#[case::compact(one_here().compact())]
fn a_port_does_not_answer_in_another_protocol(#[case] setup: Setup) {
    let rules = rule_set(&setup.fragments()).unwrap();
    let verdicts = |protocol, destination: &str| {
        let destination = destination.parse().unwrap();
        let packet =
            Packet { source: [198, 51, 100, 7].into(), destination, protocol, in_interface: Some("eth0".into()) };
        rules.trace(&packet, |address| address == IpAddr::from([192, 168, 0, 2])).unwrap()
    };
    for destination in [CLUSTER_IP, EXTERNAL_IP, VIP, NODE_PORT] {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let outcomes = verdicts(protocol, destination);
            assert!(outcomes.len() == 1 && outcomes[0].verdict == Verdict::NotHandled, "{outcomes:?}");
        }
        assert_eq!(verdicts(Protocol::Tcp, destination).len(), 2);
    }
}

#[test]
fn a_pod_that_is_sent_to_itself_is_masqueraded() {
    for (setup, destination) in [(one_here(), CLUSTER_IP), (one_here().external_local(), VIP)] {
        assert_eq!(fate(&setup, (A, Some("cni0")), destination), "AM B");
    }
    let unknown = one_here().node(|node| node.local_detector.v4 = None);
    assert_eq!(fate(&unknown, (A, Some("cni0")), CLUSTER_IP), "AM B");
}

#[test]
fn without_detector_pods_are_like_others() {
    let without = |setup: Setup| setup.node(|node| node.local_detector.v4 = None);
    assert_eq!(fates(&without(one_here()), CLUSTER_IP), ["A B"; 3]);
    assert_eq!(fates(&without(one_here().internal_local()), CLUSTER_IP), ["A"; 3]);
    for destination in OUTSIDE {
        assert_eq!(fates(&without(one_here()), destination), ["AM BM"; 3]);
        assert_eq!(fates(&without(one_here().external_local()), destination), ["A", "AM BM", "A"]);
        assert_eq!(fates(&without(none_here().external_local()), destination), ["DROP", "BM", "DROP"]);
    }
}

#[test]
fn masquerade_all_is_about_cluster_ips() {
    for detector in [true, false] {
        let all = |setup: Setup| {
            setup.node(|node| {
                node.masquerade_all = true;
                if !detector {
                    node.local_detector.v4 = None;
                }
            })
        };
        assert_eq!(fates(&all(one_here()), CLUSTER_IP), ["AM BM"; 3]);
        assert_eq!(fates(&all(one_here().internal_local()), CLUSTER_IP), ["AM"; 3]);
        let pod = if detector { "A B" } else { "A" };
        assert_eq!(fates(&all(one_here().external_local()), VIP), [pod, "AM BM", "A"]);
    }
}

#[rstest]
#[case::bridge(LocalDetector::Bridge("cni0".into()))]
#[case::prefix(LocalDetector::InterfacePrefix("cni".into()))]
fn interface_detectors_give_the_same_fates(#[case] detector: LocalDetector) {
    let with = |setup: Setup| setup.node(|node| node.local_detector.v4 = Some(detector.clone()));
    for setup in [one_here(), one_here().internal_local(), one_here().external_local(), none_here().external_local()] {
        for destination in [CLUSTER_IP, EXTERNAL_IP, VIP, NODE_PORT] {
            assert_eq!(fates(&with(setup.clone()), destination), fates(&setup, destination));
        }
    }
}

#[test]
fn a_host_address_inside_the_pod_range_counts_as_a_pod() {
    let from_bridge = |setup: &Setup, destination| fate_with(setup, ("10.0.0.1", None), destination, &["10.0.0.1"]);
    assert_eq!(from_bridge(&one_here(), CLUSTER_IP), "A B");
    assert_eq!(from_bridge(&one_here().external_local(), VIP), "A B");
}

#[rstest]
#[case::kube_proxy(external_service())]
#[case::compact(external_service().compact())]
fn ipv6_packets_fare_the_same_but_never_on_loopback(#[case] setup: Setup) {
    let mut setup = setup.endpoint("fd00:10::a", HERE).endpoint("fd00:10::b", ELSEWHERE);
    setup.service.cluster_ip_v6 = Some("fd00::41".parse().unwrap());
    let rules = rule_set(&setup.fragments()).unwrap();
    let fate = |source: &str, destination: &str| {
        let packet = Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
            in_interface: None,
        };
        let node: IpAddr = "fd00:99::2".parse().unwrap();
        let outcomes = rules.trace(&packet, |address| address == node).unwrap();
        (outcomes.len(), outcomes[0].verdict, outcomes[0].masqueraded)
    };
    let endpoint = Verdict::Endpoint("[fd00:10::a]:80".parse().unwrap());
    assert_eq!(fate("fd00:10::5", "[fd00::41]:80"), (2, endpoint, false));
    assert_eq!(fate("fd00:99::2", "[fd00::41]:80"), (2, endpoint, true));
    assert_eq!(fate("fd00:99::2", "[fd00:99::2]:30000"), (2, endpoint, true));
    assert_eq!(fate("::1", "[::1]:30000"), (1, Verdict::NotHandled, false));
}
