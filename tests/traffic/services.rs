//! What the table does not say: affinity, hairpins, loopback node ports, health checks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use rstest::rstest;

use super::lab::{Lab, ask, ask_once, cluster_address, node_port};
use super::manifest::{Endpoint, PROTOS, Policy, Service};
use super::program::{Variant, eventually, get};
use crate::netns::Netns;
use crate::netns::probe::{Outcome, Proto, SILENCE, probe};
use crate::netns::world::{FAMILIES, Family, Pod, bridge_address, node_address, public};

#[rstest]
fn a_client_stays_with_its_endpoint_until_the_affinity_expires(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    // Several, since chance may choose the same endpoint again; not for all of them.
    let services: Vec<Service> = (1..=8)
        .map(|number| {
            let mut service = Service::new(&format!("sticky-{number}"), number, &[Pod::A, Pod::B, Pod::R1]);
            service.affinity = Some(2);
            service.node_port = 30000 + u16::from(number);
            service
        })
        .collect();
    let lab = Lab::start(variant, &services, &[]);
    let choices = |proto| {
        let mut chosen = Vec::new();
        for (service, family) in services.iter().flat_map(|service| FAMILIES.map(|family| (service, family))) {
            let outside = node_port(service, node_address(family));
            chosen.push(the_one_chosen(&lab, lab.world.pod(Pod::C), cluster_address(service, family), proto));
            chosen.push(the_one_chosen(&lab, &lab.world.client, outside, proto));
        }
        chosen
    };
    // UDP only now: a later question might come from the port of an earlier one, which conntrack still remembers.
    choices(Proto::Udp);
    let before = choices(Proto::Tcp);
    thread::sleep(AFFINITY + Duration::from_millis(1200));
    assert_ne!(before, choices(Proto::Tcp), "nobody was free to choose anew");
}

/// The affinity of the test above.
const AFFINITY: Duration = Duration::from_secs(2);

/// The only endpoint that answers questions asked at once. On a busy machine they may take so long that the affinity
/// expires between two of them: that says nothing, and they are asked again.
fn the_one_chosen(lab: &Lab, from: &Netns, to: SocketAddr, proto: Proto) -> String {
    for _ in 0..10 {
        let begun = Instant::now();
        let mut pods = lab.answering(from, to, proto, 15);
        if begun.elapsed() < AFFINITY / 2 {
            assert_eq!(pods.len(), 1, "more than one endpoint answers at {to} {proto}");
            return pods.remove(0);
        }
    }
    panic!("15 questions to {to} {proto} always took longer than {:?}", AFFINITY / 2);
}

#[rstest]
fn affinity_can_be_switched_on_and_off_while_it_runs(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("switched", 1, &[Pod::A, Pod::B]);
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let (from, to) = (lab.world.pod(Pod::C), cluster_address(&service, Family::V4));
    assert_eq!(lab.answering(from, to, Proto::Tcp, 40), ["pod-a", "pod-b"]);
    service.affinity = Some(10800);
    lab.manifests.apply(&service);
    eventually("one endpoint answers", || lab.answering(from, to, Proto::Tcp, 40).len() == 1);
    service.affinity = None;
    lab.manifests.apply(&service);
    eventually("both answer", || lab.answering(from, to, Proto::Tcp, 40).len() == 2);
}

#[rstest]
fn a_pod_reaches_itself_through_its_service(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("myself", 1, &[Pod::C]);
    service.node_port = 30001;
    service.external_ips = FAMILIES.map(|family| public(family, 1)).into();
    let lab = Lab::start(variant, &[service.clone()], &[]);
    for family in FAMILIES {
        let addresses = [
            cluster_address(&service, family),
            node_port(&service, node_address(family)),
            SocketAddr::new(public(family, 1), 80),
        ];
        for (to, proto) in addresses.into_iter().flat_map(|to| PROTOS.map(|proto| (to, proto))) {
            let outcome = ask_once(lab.world.pod(Pod::C), to, proto);
            let source = bridge_address(family);
            let wanted = Outcome::Answered { by: "pod-c".into(), port: service.target_port, source };
            assert_eq!(outcome, wanted, "{to} {proto}");
        }
    }
}

#[rstest]
fn node_ports_on_the_loopback_address_are_counted(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("loopback", 1, &[Pod::A, Pod::R1]);
    service.node_port = 30001;
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let count = || {
        lab.program.metric("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", "").expect("the counter")
    };
    let before = count();
    let to = node_port(&service, Ipv4Addr::LOCALHOST.into());
    assert_eq!(lab.answering(&lab.world.node1, to, Proto::Tcp, 40), ["pod-a", "pod-r1"]);
    let counted = count() - before;
    assert!(counted >= 40.0, "40 connections, but only {counted} packets counted");
}

/// Packets to 127.0.0.0/8 that come over the wire must not reach programs that trust the loopback address, although the
/// node routes such packets for the sake of loopback node ports.
#[rstest]
fn programs_on_the_nodes_loopback_address_are_not_reachable_from_outside(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("loopback", 1, &[Pod::A]);
    service.node_port = 30001;
    let mut lab = Lab::start(variant, &[service.clone()], &[]);
    lab.world.serve_node(&[7000]);
    // The client sends 127.0.0.1 over the wire, and takes answers from there.
    let client = &lab.world.client;
    client.ip("addr del 127.0.0.1/8 dev lo\nroute add 127.0.0.1 via 192.168.100.1 src 192.168.100.100\n");
    client.sysctl("net/ipv4/conf/all/route_localnet", "1");
    let ask = |port| {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        client.run(|| probe(None, to, Proto::Udp, SILENCE))
    };
    // The same way does lead to a node port: the question itself arrives.
    assert_eq!(ask(service.node_port).by(), Some("pod-a"));
    assert_eq!(ask(7000), Outcome::TimedOut);
}

#[rstest]
fn the_health_check_port_tells_whether_the_node_has_endpoints(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("checked", 1, &[Pod::A, Pod::B, Pod::R1]);
    service.external = Policy::Local;
    service.ingress = FAMILIES.map(|family| (public(family, 1), false)).into();
    service.health_check_node_port = 32001;
    let lab = Lab::start(variant, &[service.clone()], &[]);
    // A host firewall that lets nothing new in: the rule for the health check port must come before it.
    for tool in ["iptables", "ip6tables"] {
        lab.variant.feed(
            &lab.world.node1,
            tool,
            "restore",
            &["--noflush"],
            "*filter\n-A INPUT -i eth0 -p tcp -m conntrack --ctstate NEW -j DROP\nCOMMIT\n",
        );
    }
    let check = |address: IpAddr| get(&lab.world.client, SocketAddr::new(address, 32001), "/");
    for family in FAMILIES {
        let (status, body) = check(node_address(family)).expect("an answer");
        assert_eq!(status, 200, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(answer["localEndpoints"], 2, "{body}");
        assert_eq!(answer["service"]["name"], "checked", "{body}");
    }
    service.endpoints = Some(vec![Endpoint::terminating(Pod::A), Endpoint::ready(Pod::R1)]);
    lab.manifests.apply(&service);
    for family in FAMILIES {
        eventually("a node without ready endpoints says so", || {
            check(node_address(family)).is_ok_and(|(status, _)| status == 503)
        });
    }
    // The terminating endpoint goes on serving what still arrives.
    let to = SocketAddr::new(public(Family::V4, 1), 80);
    assert_eq!(lab.answering(&lab.world.client, to, Proto::Tcp, 10), ["pod-a"]);
    lab.manifests.delete("checked");
    eventually("the port is closed", || check(node_address(Family::V4)).is_err());
}

#[rstest]
fn the_proxys_own_health_is_served_on_every_address(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let lab = Lab::start(variant, &[Service::new("any", 1, &[Pod::A])], &[]);
    let server = SocketAddr::new(node_address(Family::V4), 10256);
    let (status, body) = get(&lab.world.client, server, "/healthz").expect("an answer");
    assert_eq!(status, 200);
    assert!(body.contains("lastUpdated"), "{body}");
    let (status, body) =
        get(&lab.world.node1, SocketAddr::from((Ipv4Addr::LOCALHOST, 10249)), "/proxyMode").expect("an answer");
    assert_eq!((status, body.as_str()), (200, "iptables"));
}

/// A policy of DROP in FORWARD, as Docker sets it: masqueraded traffic must get through all the same.
#[rstest]
fn masqueraded_traffic_passes_a_host_that_forwards_nothing(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("through", 1, &[Pod::A, Pod::R1]);
    service.node_port = 30001;
    let lab = Lab::start(variant, &[service.clone()], &[]);
    for tool in ["iptables", "ip6tables"] {
        lab.variant.feed(&lab.world.node1, tool, "restore", &["--noflush"], "*filter\n:FORWARD DROP\nCOMMIT\n");
    }
    for family in FAMILIES {
        let to = node_port(&service, node_address(family));
        assert_eq!(lab.answering(&lab.world.client, to, Proto::Tcp, 40), ["pod-a", "pod-r1"], "{to}");
        // What is not masqueraded is nobody's business but the network plugin's.
        let to = SocketAddr::new(Pod::A.address(family), service.target_port);
        assert_eq!(lab.world.client.run(|| probe(None, to, Proto::Tcp, SILENCE)), Outcome::TimedOut);
    }
}

#[rstest]
fn services_share_a_port_number_without_mixing(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let one = Service::new("one", 1, &[Pod::A]);
    let two = Service::new("two", 2, &[Pod::B, Pod::R1]);
    let lab = Lab::start(variant, &[one.clone(), two.clone()], &[]);
    for (service, pods) in [(&one, vec!["pod-a"]), (&two, vec!["pod-b", "pod-r1"])] {
        for (family, proto) in FAMILIES.into_iter().flat_map(|family| PROTOS.map(|proto| (family, proto))) {
            let to = cluster_address(service, family);
            assert_eq!(lab.answering(lab.world.pod(Pod::C), to, proto, 40), pods, "{to} {proto}");
            let ports: BTreeSet<u16> = ask(lab.world.pod(Pod::C), to, proto, 5)
                .into_iter()
                .map(|outcome| match outcome {
                    Outcome::Answered { port, .. } => port,
                    other => panic!("{to} {proto}: {other}"),
                })
                .collect();
            assert_eq!(Vec::from_iter(ports), [service.target_port]);
        }
    }
}

/// Sends an ICMP echo request from the calling thread's namespace; whether the same address answers it.
fn answers_ping(to: IpAddr) -> bool {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
    // Type, code, checksum, identifier, sequence number. The kernel fills in the checksum of ICMPv6 only.
    let mut message = [request, 0, 0, 0, 0x70, 0x6f, 0, 1];
    if to.is_ipv4() {
        let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &SocketAddr::new(to, 0)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut buffer = [0_u8; 1500];
    while Instant::now() < deadline {
        let Ok((length, _, Some(from))) = rustix::net::recvfrom(&socket, &mut buffer[..], RecvFlags::empty()) else {
            continue;
        };
        let header = if to.is_ipv4() { 20 } else { 0 };
        let from = SocketAddr::try_from(from).unwrap().ip();
        if from == to && buffer[..length].get(header) == Some(&reply) {
            return true;
        }
    }
    false
}

#[rstest]
fn pings_to_service_addresses_go_to_whoever_owns_the_address(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    // The internet owns cluster IPs and VIPs here, and answers for itself: no rule is about ICMP.
    let service = Service::new("pinged", 1, &[Pod::A]);
    let lab = Lab::start(variant, std::slice::from_ref(&service), &[]);
    for family in FAMILIES {
        let address = cluster_address(&service, family);
        lab.wait_for(lab.world.pod(Pod::C), address, Proto::Tcp, &[Pod::A]);
        for (name, from) in [("pod", lab.world.pod(Pod::C)), ("node", &lab.world.node1), ("client", &lab.world.client)]
        {
            for to in [address.ip(), public(family, 77)] {
                assert!(from.run(|| answers_ping(to)), "no answer from {to} to the {name}");
            }
        }
    }
}
