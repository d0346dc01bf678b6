//! Endpoints that come and go while clients talk to them.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rstest::rstest;

use super::lab::{Lab, ask_once, cluster_address, node_port};
use super::manifest::{Endpoint, PROTOS, Policy, Service};
use super::program::{AT_LAST, Variant, eventually};
use crate::netns::Netns;
use crate::netns::probe::{self, Outcome, PATIENCE, Proto, SILENCE, udp_socket};
use crate::netns::world::{FAMILIES, Family, Pod, node_address, public};

/// A UDP client that always comes from the same port, so that conntrack takes all it says for one conversation.
fn talker(netns: &Netns, to: SocketAddr) -> UdpSocket {
    netns.run(|| udp_socket(None, to)).expect("socket")
}

/// Keeps asking without a pause longer than a flow lives, until a certain pod answers.
fn keep_asking_until(lab: &Lab, socket: &UdpSocket, pod: Pod) {
    let deadline = Instant::now() + AT_LAST;
    let mut last = Outcome::TimedOut;
    while last.by() != Some(pod.name()) {
        if Instant::now() > deadline {
            let flows = lab.world.node1.try_exec(&["conntrack", "-L", "-p", "udp"]).stdout;
            let flows = String::from_utf8_lossy(&flows).into_owned();
            panic!("the last answer was: {last}, not {pod:?}'s; flows:\n{flows}\nlog:\n{}", lab.program.log());
        }
        last = probe::ask(socket, Duration::from_millis(100));
        thread::sleep(Duration::from_millis(10));
    }
}

#[rstest]
fn a_udp_client_that_never_pauses_gets_to_the_endpoint_that_replaces_another(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("replaced", 1, &[Pod::A]);
    service.node_port = 30001;
    service.external_ips = FAMILIES.map(|family| public(family, 1)).into();
    service.ingress = FAMILIES.map(|family| (public(family, 2), false)).into();
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let mut talkers = Vec::new();
    for family in FAMILIES {
        talkers.push(talker(lab.world.pod(Pod::C), cluster_address(&service, family)));
        talkers.push(talker(&lab.world.node1, cluster_address(&service, family)));
        talkers.push(talker(&lab.world.client, node_port(&service, node_address(family))));
        talkers.push(talker(&lab.world.client, SocketAddr::new(public(family, 1), 80)));
        talkers.push(talker(&lab.world.client, SocketAddr::new(public(family, 2), 80)));
    }
    talkers.iter().for_each(|socket| keep_asking_until(&lab, socket, Pod::A));
    for pod in [Pod::R1, Pod::B] {
        service.set_endpoints(&[pod]);
        lab.manifests.apply(&service);
        talkers.iter().for_each(|socket| keep_asking_until(&lab, socket, pod));
    }
}

#[rstest]
fn a_udp_client_finds_the_endpoint_that_comes_after_none(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("paused", 1, &[Pod::A]);
    service.node_port = 30001;
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let mut talkers = Vec::new();
    for family in FAMILIES {
        talkers.push(talker(lab.world.pod(Pod::C), cluster_address(&service, family)));
        talkers.push(talker(&lab.world.client, node_port(&service, node_address(family))));
    }
    talkers.iter().for_each(|socket| keep_asking_until(&lab, socket, Pod::A));
    // Not even a slice, an empty one, and one whose endpoint is not ready yet.
    for none in [None, Some(Vec::new()), Some(vec![Endpoint::unready(Pod::B)])] {
        service.endpoints = none;
        lab.manifests.apply(&service);
        eventually("new conversations are refused", || {
            ask_once(lab.world.pod(Pod::C), cluster_address(&service, Family::V4), Proto::Udp) == Outcome::Refused
                && ask_once(lab.world.pod(Pod::C), cluster_address(&service, Family::V6), Proto::Udp)
                    == Outcome::Refused
        });
        // They keep asking meanwhile.
        for socket in &talkers {
            probe::ask(socket, Duration::from_millis(30));
        }
    }
    service.set_endpoints(&[Pod::B]);
    lab.manifests.apply(&service);
    talkers.iter().for_each(|socket| keep_asking_until(&lab, socket, Pod::B));
}

#[rstest]
fn a_udp_client_that_asked_before_there_was_a_service_is_served_once_there_is(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("late", 1, &[Pod::A]);
    service.node_port = 30001;
    let mut lab = Lab::start(variant, &[Service::new("other", 2, &[Pod::B])], &[]);
    super::lab::serve(&mut lab.world, &[service.clone()]);
    let to = FAMILIES.map(|family| cluster_address(&service, family));
    // As long as the node lets it pass, somebody out there takes it and says nothing; conntrack remembers the attempt.
    let _silent = to.map(|to| lab.world.internet.run(|| UdpSocket::bind(to)).expect("socket"));
    let talkers = to.map(|to| talker(lab.world.pod(Pod::C), to));
    for socket in &talkers {
        assert_eq!(probe::ask(socket, SILENCE), Outcome::TimedOut);
    }
    lab.manifests.apply(&service);
    talkers.iter().for_each(|socket| keep_asking_until(&lab, socket, Pod::A));
}

#[rstest]
fn a_changed_target_port_takes_udp_flows_along(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("moved", 1, &[Pod::A]);
    service.node_port = 30001;
    let mut lab = Lab::start(variant, &[service.clone()], &[]);
    let socket = talker(&lab.world.client, node_port(&service, node_address(Family::V4)));
    keep_asking_until(&lab, &socket, Pod::A);
    service.target_port = 9001;
    super::lab::serve(&mut lab.world, &[service.clone()]);
    lab.manifests.apply(&service);
    eventually("the flow goes to the new port", || {
        matches!(probe::ask(&socket, SILENCE), Outcome::Answered { port: 9001, .. })
    });
}

#[rstest]
fn connections_survive_the_removal_of_their_endpoint_while_new_ones_go_elsewhere(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("shrinking", 1, &[Pod::A]);
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let from = lab.world.pod(Pod::C);
    let mut open = Vec::new();
    for family in FAMILIES {
        let to = cluster_address(&service, family);
        let (stream, outcome) = from.run(|| probe::connect(None, to, PATIENCE)).expect("connection");
        assert_eq!(outcome.by(), Some("pod-a"));
        open.push(stream);
    }
    service.set_endpoints(&[Pod::B, Pod::R1]);
    lab.manifests.apply(&service);
    for (family, proto) in FAMILIES.into_iter().flat_map(|family| PROTOS.map(|proto| (family, proto))) {
        lab.wait_for(from, cluster_address(&service, family), proto, &[Pod::B, Pod::R1]);
    }
    for stream in &mut open {
        stream.write_all(b"still there?\n").expect("send");
        let answer = probe::read_line(stream, PATIENCE).expect("an answer on the old connection");
        assert_eq!(answer.by(), Some("pod-a"));
    }
}

#[rstest]
fn removing_an_endpoint_while_clients_ask_fails_no_request(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("rolling", 1, &[Pod::A, Pod::B, Pod::R1]);
    service.node_port = 30001;
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let to = node_port(&service, node_address(Family::V4));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcomes = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            lab.world.client.run(|| {
                let mut outcomes = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    outcomes.push(probe::probe(None, to, Proto::Tcp, PATIENCE));
                }
                outcomes
            })
        });
        for pods in [&[Pod::B, Pod::R1][..], &[Pod::A, Pod::R1], &[Pod::A], &[Pod::A, Pod::B, Pod::R1]] {
            service.set_endpoints(pods);
            lab.manifests.apply(&service);
            lab.wait_for(lab.world.pod(Pod::C), cluster_address(&service, Family::V4), Proto::Tcp, pods);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        asking.join().expect("the asking thread")
    });
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.by().is_none()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), outcomes.len());
    assert!(outcomes.len() > 100, "only {} requests were made", outcomes.len());
}

#[rstest]
fn policies_and_addresses_of_a_service_can_change_while_it_is_used(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("changing", 1, &[Pod::A, Pod::R1]);
    service.node_port = 30001;
    let lab = Lab::start(variant, &[service.clone()], &[]);
    let client = &lab.world.client;
    for family in FAMILIES {
        let to = node_port(&service, node_address(family));
        lab.wait_for(client, to, Proto::Tcp, &[Pod::A, Pod::R1]);
        service.external = Policy::Local;
        lab.manifests.apply(&service);
        lab.wait_for(client, to, Proto::Tcp, &[Pod::A]);
        let source = ask_once(client, to, Proto::Tcp).source();
        assert_eq!(source, Some(crate::netns::world::wire(family, 100)), "policy Local keeps the client's address");
        service.external = Policy::Cluster;
        lab.manifests.apply(&service);
        lab.wait_for(client, to, Proto::Tcp, &[Pod::A, Pod::R1]);
    }
    let old = node_port(&service, node_address(Family::V4));
    service.node_port = 30002;
    service.port = 8088;
    lab.manifests.apply(&service);
    let new = node_port(&service, node_address(Family::V4));
    lab.wait_for(client, new, Proto::Tcp, &[Pod::A, Pod::R1]);
    assert_eq!(ask_once(client, old, Proto::Tcp), Outcome::Refused, "the old node port is free");
    lab.wait_for(lab.world.pod(Pod::C), cluster_address(&service, Family::V4), Proto::Udp, &[Pod::A, Pod::R1]);
    lab.manifests.delete("changing");
    eventually("the deleted Service is gone", || ask_once(client, new, Proto::Tcp) == Outcome::Refused);
}

#[rstest]
fn no_connection_fails_while_every_endpoint_is_replaced(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    super::rolling::every_endpoint_is_replaced(variant);
}

#[rstest]
fn no_connection_of_a_fast_client_fails_while_every_endpoint_is_replaced(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let rate = super::rolling::a_fast_client_sees_every_endpoint_replaced(variant);
    assert!(rate > 100.0, "only {rate:.0} connections a second");
}
