//! Walks of packets that the table has no place for: pods that reach themselves, sources that cannot be answered, endpoints
//! on the node's own address, source ranges of one address, and what is closed on addresses of Services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::slice::from_ref;

use super::matrix::state_of;
use super::table;
use crate::netns::Netns;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::ping::ping;
use crate::netns::probe::{Outcome, PATIENCE, Proto};
use crate::netns::server::Server;
use crate::netns::world::{
    FAMILIES, Family, Pod, World, bridge_address, node_address, public, second_node_address, wire,
};
use crate::traffic::check::{Expect, Question, ask_all, assert_none};
use crate::traffic::lab::{Lab, ask_once, cluster_address, node_port, serve};
use crate::traffic::manifest::{Manifests, PROTOS, Policy, Service};
use crate::traffic::program::{Setup, eventually, sync_once};

/// A port of the host that no Service has.
const HOST_PORT: u16 = 81;

/// Questions of both protocols.
#[derive(Default)]
struct Walks(Vec<Question>);

impl Walks {
    fn add(&mut self, what: &str, from: &Netns, source: Option<IpAddr>, to: SocketAddr, expect: &Expect) {
        let whence = source.map_or_else(String::new, |source| format!(" ({source})"));
        self.0.extend(PROTOS.map(|proto| Question {
            label: format!("{what}: {}{whence} to {to} {proto}", from.name()),
            service: what.to_owned(),
            from: from.clone(),
            source,
            to,
            proto,
            expect: expect.clone(),
        }));
    }

    fn check(&self, node: &Netns) {
        assert_none(&ask_all(&self.0), self.0.len(), |_| state_of(node));
    }
}

fn answer(by: &str, port: u16, source: IpAddr) -> Expect {
    Expect::Answers(BTreeSet::from([Outcome::Answered { by: by.to_owned(), port, source }]))
}

/// All addresses at which a Service is served to outside.
fn external(service: &Service, family: Family) -> Vec<SocketAddr> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == (family == Family::V4);
    let ingress = service.ingress.iter().map(|(address, _)| address);
    let addresses = service.external_ips.iter().chain(ingress).filter(of_family);
    let mut found: Vec<SocketAddr> = addresses.map(|address| SocketAddr::new(*address, service.port)).collect();
    found.push(node_port(service, node_address(family)));
    found
}

/// A Service with a node port, an external IP and a VIP.
fn everywhere(name: &str, number: u8, endpoints: &[Pod]) -> Service {
    let mut service = Service::new(name, number, endpoints);
    service.node_port = 30000 + u16::from(number);
    service.external_ips = FAMILIES.map(|family| public(family, 2 * number)).into();
    service.ingress = FAMILIES.map(|family| (public(family, 2 * number + 1), false)).into();
    service
}

/// Lets the host listen on all its addresses, as the kubelet and sshd do.
pub(super) fn listen_everywhere(node: &Netns, ports: &[u16]) -> Server {
    node.sysctl("net/ipv6/bindv6only", "1");
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let sockets: Vec<SocketAddr> =
        any.into_iter().flat_map(|any| ports.iter().map(move |port| SocketAddr::new(any, *port))).collect();
    Server::start(node, "node1", &sockets)
}

#[test]
fn a_pod_reaches_itself_through_its_service_and_sees_the_node() {
    if !kernel_has_ipvs() {
        return;
    }
    let cluster = everywhere("myself", 1, &[Pod::C]);
    let local = Service { external: Policy::Local, internal: Policy::Local, ..everywhere("here", 2, &[Pod::C]) };
    for column in [table::BY_CLUSTER_CIDR, table::WITHOUT_DETECTOR, table::WITH_MASQUERADE_ALL] {
        let services = [cluster.clone(), local.clone()];
        let mut world = World::new();
        serve(&mut world, &services);
        sync_once(&world.node1, Setup::ipvs(), &Manifests::new(&services), column.arguments);
        let mut walks = Walks::default();
        for (service, family) in services.iter().flat_map(|service| FAMILIES.map(|family| (service, family))) {
            let itself = answer("pod-c", service.target_port, bridge_address(family));
            for to in external(service, family).into_iter().chain([cluster_address(service, family)]) {
                walks.add(column.name, world.pod(Pod::C), None, to, &itself);
            }
        }
        walks.check(&world.node1);
    }
}

#[test]
fn only_ports_of_services_are_open_on_their_addresses() {
    if !kernel_has_ipvs() {
        return;
    }
    let service = everywhere("closed", 1, &[Pod::A]);
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let _host = listen_everywhere(&lab.world.node1, &[HOST_PORT, service.node_port]);
    let mut walks = Walks::default();
    for family in FAMILIES {
        let vips = [cluster_address(&service, family).ip(), public(family, 2), public(family, 3)];
        for from in [lab.world.pod(Pod::C), &lab.world.node1, &lab.world.client] {
            // The host does listen. (A wildcard socket answers datagrams from the address that the route prefers.)
            let open = ask_once(from, SocketAddr::new(node_address(family), HOST_PORT), Proto::Tcp);
            assert_eq!(open.by(), Some("node1"), "{}: {open}", from.name());
            assert_eq!(ping(from, node_address(family), PATIENCE), Ok(()), "{} to node1", from.name());
            for vip in vips {
                walks.add("the host's port", from, None, SocketAddr::new(vip, HOST_PORT), &Expect::Refused);
                walks.add("the node port", from, None, node_port(&service, vip), &Expect::Refused);
                assert_eq!(ping(from, vip, PATIENCE), Err(Outcome::Refused), "{} to {vip}", from.name());
            }
        }
    }
    walks.check(&lab.world.node1);
}

#[test]
fn a_loopback_address_is_nothing_to_ask_a_service_from() {
    if !kernel_has_ipvs() {
        return;
    }
    let service = everywhere("loopback", 1, &[Pod::A, Pod::R1]);
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let mut walks = Walks::default();
    for family in FAMILIES {
        let (from, to) = (&lab.world.node1, cluster_address(&service, family));
        let remote = Outcome::Answered {
            by: "pod-r1".into(),
            port: service.target_port,
            source: Pod::R1.masquerade_address(family),
        };
        let local = Outcome::Answered {
            by: "pod-a".into(),
            port: service.target_port,
            source: Pod::A.masquerade_address(family),
        };
        walks.add("cluster IP", from, None, to, &Expect::Answers(BTreeSet::from([local, remote])));
        walks.add("cluster IP", from, Some(family.loopback()), to, &Expect::Silence);
        // Nobody listens, and nothing is balanced there.
        walks.add("node port", from, None, node_port(&service, family.loopback()), &Expect::Refused);
    }
    walks.check(&lab.world.node1);
}

#[test]
fn an_endpoint_on_the_nodes_own_address_serves_and_sees_the_client() {
    if !kernel_has_ipvs() {
        return;
    }
    let service = everywhere("host", 1, &[Pod::A]);
    let lab = Lab::start(Setup::ipvs(), &[], &[]);
    let sockets = FAMILIES.map(|family| SocketAddr::new(node_address(family), service.target_port));
    let _host = Server::start(&lab.world.node1, "node1", &sockets);
    let manifest = FAMILIES.iter().fold(service.manifest(), |text, family| {
        let quoted = |address: IpAddr| format!("[\"{address}\"]");
        text.replace(&quoted(Pod::A.address(*family)), &quoted(node_address(*family)))
    });
    lab.manifests.put(&service.name, &manifest);
    let mut walks = Walks::default();
    for family in FAMILIES {
        let all: Vec<SocketAddr> =
            external(&service, family).into_iter().chain([cluster_address(&service, family)]).collect();
        eventually("the host serves", || ask_once(lab.world.pod(Pod::C), all[0], Proto::Tcp).by() == Some("node1"));
        for (from, source) in [(lab.world.pod(Pod::C), Pod::C.address(family)), (&lab.world.client, wire(family, 100))]
        {
            for to in &all {
                walks.add(&service.name, from, None, *to, &answer("node1", service.target_port, source));
            }
        }
        let own: BTreeSet<IpAddr> = [node_address(family), second_node_address(family)].into();
        for (to, proto) in all.iter().flat_map(|to| PROTOS.map(|proto| (*to, proto))) {
            let outcome = ask_once(&lab.world.node1, to, proto);
            let seen = outcome.source().is_some_and(|source| own.contains(&source));
            assert!(outcome.by() == Some("node1") && seen, "node1 to {to} {proto}: {outcome}");
        }
    }
    walks.check(&lab.world.node1);
}

#[test]
fn a_source_range_may_be_one_address() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = everywhere("narrow", 1, &[Pod::A]);
    service.source_ranges = FAMILIES.map(|family| format!("{}/{}", wire(family, 100), family.pick(32, 128))).into();
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let mut walks = Walks::default();
    for family in FAMILIES {
        let served = answer("pod-a", service.target_port, bridge_address(family));
        let (vip, external_ip) = (SocketAddr::new(public(family, 3), 80), SocketAddr::new(public(family, 2), 80));
        let client = &lab.world.client;
        walks.add("in range", client, None, vip, &served);
        walks.add("out of range", client, Some(wire(family, 101)), vip, &Expect::Silence);
        walks.add("out of range", lab.world.pod(Pod::C), None, vip, &Expect::Silence);
        walks.add("out of range", &lab.world.node1, None, vip, &Expect::Silence);
        // The ranges are those of the VIP only.
        walks.add("no range", client, Some(wire(family, 101)), external_ip, &served);
    }
    walks.check(&lab.world.node1);
}

#[test]
fn a_vip_with_the_number_of_a_node_port_is_not_treated_as_one() {
    if !kernel_has_ipvs() {
        return;
    }
    let ported = everywhere("ported", 1, &[Pod::B]);
    let same_number = |name, number, external| {
        let service = everywhere(name, number, &[Pod::A]);
        Service { port: ported.node_port, node_port: 0, external, ..service }
    };
    let local = same_number("local", 2, Policy::Local);
    let cluster = same_number("cluster", 3, Policy::Cluster);
    let lab = Lab::start(Setup::ipvs(), &[ported.clone(), local.clone(), cluster.clone()], &[]);
    let mut walks = Walks::default();
    for family in FAMILIES {
        let (pod, client) = (lab.world.pod(Pod::C), &lab.world.client);
        for vip in [public(family, 4), public(family, 5)].map(|vip| SocketAddr::new(vip, local.port)) {
            let kept = |source| answer("pod-a", local.target_port, source);
            walks.add("policy Local", client, None, vip, &kept(wire(family, 100)));
            walks.add("policy Local", pod, None, vip, &kept(Pod::C.address(family)));
        }
        let kept = answer("pod-a", cluster.target_port, Pod::C.address(family));
        walks.add("cluster IP", pod, None, cluster_address(&cluster, family), &kept);
        let itself = answer("pod-b", ported.target_port, bridge_address(family));
        walks.add("node port", client, None, node_port(&ported, node_address(family)), &itself);
    }
    walks.check(&lab.world.node1);
}

/// The world sends all answers through node1. Where a pod of another node answers the client directly, it does so in vain.
#[test]
fn remote_pods_that_see_an_outside_client_answer_past_the_node() {
    if !kernel_has_ipvs() {
        return;
    }
    let remote = Service { external: Policy::Local, ..everywhere("remote", 1, &[Pod::R1]) };
    for (column, masqueraded) in [(table::WITHOUT_DETECTOR, false), (table::BY_CLUSTER_CIDR, true)] {
        let mut world = World::new();
        serve(&mut world, from_ref(&remote));
        world.node2.ip("route add 192.168.100.100 dev eth0\nroute add fd00:100::64/128 dev eth0\n");
        sync_once(&world.node1, Setup::ipvs(), &Manifests::new(from_ref(&remote)), column.arguments);
        let mut walks = Walks::default();
        for family in FAMILIES {
            let seen = |source| answer("pod-r1", remote.target_port, source);
            for to in external(&remote, family) {
                // Dropped if the node can tell that the client is no pod.
                walks.add(column.name, &world.client, None, to, &Expect::Silence);
                walks.add(column.name, world.pod(Pod::C), None, to, &seen(Pod::C.address(family)));
                walks.add(column.name, &world.node1, None, to, &seen(node_address(family)));
            }
            let cluster_ip = if masqueraded { seen(node_address(family)) } else { Expect::Silence };
            walks.add(column.name, &world.client, None, cluster_address(&remote, family), &cluster_ip);
        }
        walks.check(&world.node1);
    }
}
