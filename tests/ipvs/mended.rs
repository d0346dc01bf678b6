//! What goes wrong in kube-proxy's IPVS mode: addresses of Services as sources, and flows of datagrams that never end.

use std::net::{IpAddr, SocketAddr};
use std::slice::from_ref;

use crate::netns::Netns;
use crate::netns::flow::UdpFlow;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, PATIENCE, Proto};
use crate::netns::server::Server;
use crate::netns::world::{FAMILIES, Family, Pod, World, node_address, public, second_node_address, wire};
use crate::traffic::lab::{Lab, ask_once, cluster_address, node_port};
use crate::traffic::manifest::Service;
use crate::traffic::program::{Setup, eventually};

/// A pod that hangs on a link of its own, on which node1 has no address, as with network plugins that route. Its address is
/// close to those of Services: where nothing else decides, the kernel takes the source that begins like the destination.
fn routed_pod(world: &World) -> (Netns, IpAddr) {
    let address = public(Family::V6, 250);
    let pod = Netns::new("routed-pod");
    pod.sysctl("net/ipv6/conf/all/accept_dad", "0");
    pod.sysctl("net/ipv6/conf/default/accept_dad", "0");
    world.node1.veth("routed0", &pod, "eth0");
    world.node1.ip(&format!(
        "link set routed0 up\naddr add fe80::1/64 dev routed0 nodad\nroute add {address}/128 dev routed0\n"
    ));
    pod.ip(&format!(
        "link set eth0 up\naddr add {address}/128 dev eth0 nodad\nroute add default via fe80::1 dev eth0\n"
    ));
    (pod, address)
}

#[test]
fn no_packet_of_the_node_has_an_address_of_a_service_as_source() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("routed", 1, &[Pod::A]);
    service.node_port = 30001;
    service.external_ips = (240..250).map(|host| public(Family::V6, host)).collect();
    service.ingress = (251..=254).map(|host| (public(Family::V6, host), false)).collect();
    let lab = Lab::start(Setup::ipvs(), &[], &[]);
    let (pod, address) = routed_pod(&lab.world);
    let _server = Server::start(&pod, "routed", &[SocketAddr::new(address, service.target_port)]);
    let quoted = |address: IpAddr| format!("[\"{address}\"]");
    let manifest = service.manifest().replace(&quoted(Pod::A.address(Family::V6)), &quoted(address));
    lab.manifests.put(&service.name, &manifest);
    let node_port = node_port(&service, node_address(Family::V6));
    let client = &lab.world.client;
    eventually("the pod serves", || ask_once(client, node_port, Proto::Tcp).by() == Some("routed"));
    let services: Vec<IpAddr> =
        service.external_ips.iter().copied().chain(service.ingress.iter().map(|(address, _)| *address)).collect();
    let linked = lab.world.node1.addresses_of("kube-ipvs0").expect("the link");
    assert!(services.iter().all(|address| linked.contains(address)), "{linked:?}");
    let own =
        [node_address(Family::V6), second_node_address(Family::V6), crate::netns::world::bridge_address(Family::V6)];
    let direct = SocketAddr::new(address, service.target_port);
    let served = SocketAddr::new(services[0], service.port);
    let walks = [
        ("a new socket of the node", &lab.world.node1, direct),
        ("the node to a cluster IP", &lab.world.node1, cluster_address(&service, Family::V6)),
        ("the node to a node port", &lab.world.node1, node_port),
        ("the node to an external IP", &lab.world.node1, served),
        ("masqueraded, to a node port", client, node_port),
        ("masqueraded, to an external IP", client, served),
    ];
    for (what, from, to) in walks {
        for proto in [Proto::Tcp, Proto::Udp] {
            let outcome = ask_once(from, to, proto);
            let seen = outcome.source();
            assert!(seen.is_some_and(|source| own.contains(&source)), "{what} {proto}: {outcome}");
        }
    }
}

/// What ends a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No endpoint is left.
    LastEndpoint,
    /// The Service is deleted.
    Service,
}

#[test]
fn a_udp_flow_ends_at_once_with_its_last_endpoint_or_its_service() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("datagrams", 1, &[Pod::A]);
    service.node_port = 30001;
    service.external_ips = FAMILIES.map(|family| public(family, 1)).into();
    let mut lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let vips = FAMILIES.map(|family| [cluster_address(&service, family), SocketAddr::new(public(family, 1), 80)]);
    lab.world.serve_internet(&vips.concat());
    for end in [End::LastEndpoint, End::Service] {
        service.set_endpoints(&[Pod::A]);
        lab.manifests.apply(&service);
        let mut flows = Vec::new();
        for (family, port) in FAMILIES.into_iter().zip([5001, 5002]) {
            let outside = node_port(&service, node_address(family));
            for (at, to) in [cluster_address(&service, family), SocketAddr::new(public(family, 1), 80), outside]
                .into_iter()
                .enumerate()
            {
                for (from, own) in
                    [(lab.world.pod(Pod::C), Pod::C.address(family)), (&lab.world.client, wire(family, 100))]
                {
                    let source = SocketAddr::new(own, port + 10 * u16::try_from(at).expect("few"));
                    let flow = UdpFlow::open(from, Some(source), to);
                    assert_eq!(flow.ask_until("pod-a", PATIENCE), Ok(()), "{source} to {to}");
                    flows.push((flow, source, to));
                }
            }
        }
        match end {
            End::LastEndpoint => {
                service.set_endpoints(&[]);
                lab.manifests.apply(&service);
            }
            End::Service => lab.manifests.delete(&service.name),
        }
        for (flow, source, to) in &flows {
            // Addresses of a deleted Service are somebody else's again; on node ports nobody listens.
            let elsewhere =
                end == End::Service && to.ip() != node_address(Family::V4) && to.ip() != node_address(Family::V6);
            let mut last = Outcome::TimedOut;
            eventually(&format!("the flow {source} to {to} ends ({end:?})"), || {
                last = flow.ask(PATIENCE);
                if elsewhere { last.by() == Some("internet") } else { last == Outcome::Refused }
            });
            // And it stays so.
            assert_eq!(flow.ask(PATIENCE), last, "{source} to {to}");
        }
    }
}
