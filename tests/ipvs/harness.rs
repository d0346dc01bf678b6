//! That the world and the probes work on a kernel with `ip_vs`, and that the kernel does what the program counts on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::slice::from_ref;
use std::time::Duration;

use super::by_hand::ByHand;
use crate::netns::arp;
use crate::netns::flow::{Conversation, Ending, Questions, ShortConnections, UdpFlow};
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, PATIENCE, Proto};
use crate::netns::world::{FAMILIES, Family, Pod, World, cluster_ip, node_address, wire};
use crate::traffic::lab::{Lab, cluster_address, node_port};
use crate::traffic::manifest::Service;
use crate::traffic::program::Setup;

const PORT: u16 = 8001;

/// A world where pods a and b serve, and a load balancer on node1 with their addresses behind `172.30.0.1:80` of both families.
fn balanced() -> (World, ByHand) {
    let mut world = World::new();
    world.serve_pods(&[Pod::A, Pod::B], &[PORT]);
    let mut by_hand = ByHand::new(&world.node1);
    for family in FAMILIES {
        let address = cluster_ip(family, 1);
        let length = family.pick(32, 128);
        world.node1.ip(&format!("address add {address}/{length} dev kube-ipvs0\n"));
        for proto in [Proto::Tcp, Proto::Udp] {
            by_hand.serve(proto, service(family));
            for pod in [Pod::A, Pod::B] {
                by_hand.add(proto, service(family), server(pod, family));
            }
        }
    }
    (world, by_hand)
}

fn service(family: Family) -> SocketAddr {
    SocketAddr::new(cluster_ip(family, 1), 80)
}

fn server(pod: Pod, family: Family) -> SocketAddr {
    SocketAddr::new(pod.address(family), PORT)
}

fn other(outcome: &Outcome) -> Pod {
    if outcome.by() == Some(Pod::A.name()) { Pod::B } else { Pod::A }
}

#[test]
fn rules_alone_carry_traffic_on_this_kernel_too() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("small", 1, &[Pod::A]);
    service.node_port = 30001;
    let lab = Lab::start(Setup::ipvs().variant, from_ref(&service), &[]);
    for family in FAMILIES {
        let (inside, outside) = (cluster_address(&service, family), node_port(&service, node_address(family)));
        let mut open = Conversation::open(&lab.world.client, None, outside);
        let short = ShortConnections::start(lab.world.pod(Pod::C), inside, 40000..40050, 200, Ending::ByServer);
        let flow = UdpFlow::open(lab.world.pod(Pod::C), None, inside);
        assert_eq!(flow.ask_until(Pod::A.name(), PATIENCE), Ok(()));
        service.set_endpoints(&[Pod::B]);
        lab.manifests.apply(&service);
        assert_eq!(flow.ask_until(Pod::B.name(), PATIENCE), Ok(()));
        assert!(open.goes_on(), "from {}", open.source());
        let tally = short.finish();
        assert!(tally.failed == 0 && tally.answers.len() == 2, "{tally}");
        service.set_endpoints(&[Pod::A]);
        lab.manifests.apply(&service);
        lab.wait_for(lab.world.pod(Pod::C), inside, Proto::Tcp, &[Pod::A]);
    }
}

#[test]
fn connections_go_on_at_weight_0_and_are_reset_when_their_server_is_removed() {
    if !kernel_has_ipvs() {
        return;
    }
    let (world, mut by_hand) = balanced();
    for family in FAMILIES {
        let address = service(family);
        let mut conversation = Conversation::open(world.pod(Pod::C), None, address);
        let old = server(if other(conversation.first()) == Pod::B { Pod::A } else { Pod::B }, family);
        by_hand.quiesce(Proto::Tcp, address, old);
        let found = world.node1.virtual_server("TCP", address).expect("the virtual server");
        assert_eq!(found.server(old).map(|server| (server.weight, server.active)), Some((0, 1)), "{found:?}");
        assert_eq!((found.scheduler.as_str(), found.persistent, found.servers.len()), ("rr", false, 2));
        assert!(conversation.goes_on());
        let questions = Questions::start(world.pod(Pod::C), address, Proto::Tcp, Duration::ZERO);
        std::thread::sleep(Duration::from_millis(300));
        let tally = questions.finish();
        let names: Vec<&str> = tally.answers.keys().map(String::as_str).collect();
        assert_eq!((names, tally.failed), (vec![other(conversation.first()).name()], 0), "{tally}");
        by_hand.remove(Proto::Tcp, address, old);
        assert_eq!(conversation.ask(PATIENCE), Outcome::Reset, "{}", world.node1.ipvs_connections_text());
    }
}

#[test]
fn a_udp_flow_moves_with_the_next_datagram_when_its_server_is_removed() {
    if !kernel_has_ipvs() {
        return;
    }
    let (world, mut by_hand) = balanced();
    for family in FAMILIES {
        let flow = UdpFlow::open(world.pod(Pod::C), None, service(family));
        let first = flow.ask(PATIENCE);
        let (gone, left) = if other(&first) == Pod::B { (Pod::A, Pod::B) } else { (Pod::B, Pod::A) };
        assert_eq!((first.by(), flow.ask(PATIENCE)), (Some(gone.name()), first.clone()));
        by_hand.remove(Proto::Udp, service(family), server(gone, family));
        assert_eq!(flow.ask(PATIENCE).by(), Some(left.name()));
        by_hand.remove(Proto::Udp, service(family), server(left, family));
        assert_eq!(flow.ask(PATIENCE), Outcome::Refused);
    }
}

#[test]
fn ports_that_are_used_again_are_balanced_while_a_server_leaves() {
    if !kernel_has_ipvs() {
        return;
    }
    let (world, mut by_hand) = balanced();
    for (family, ending) in
        [(Family::V4, Ending::Reset), (Family::V4, Ending::ByServer), (Family::V6, Ending::ByServer)]
    {
        let address = service(family);
        let (going, ports) = (server(Pod::A, family), 40000..40100);
        let short = ShortConnections::start(world.pod(Pod::C), address, ports, 1000, ending);
        std::thread::sleep(Duration::from_secs(1));
        by_hand.quiesce(Proto::Tcp, address, going);
        std::thread::sleep(Duration::from_millis(500));
        by_hand.remove(Proto::Tcp, address, going);
        std::thread::sleep(Duration::from_millis(500));
        let tally = short.finish();
        println!("{family:?}, {ending:?}: {tally}");
        assert!(tally.failed == 0 && tally.answers.len() == 2, "{tally}\n{}", world.node1.ipvs_text());
        by_hand.add(Proto::Tcp, address, going);
    }
}

#[test]
fn addresses_of_a_dummy_link_are_answered_for_on_other_links_unless_the_node_is_strict() {
    if !kernel_has_ipvs() {
        return;
    }
    let (world, _by_hand) = balanced();
    let v4 = |address: IpAddr| match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => unreachable!("an address of IPv4"),
    };
    let ask =
        |target| arp::who_has(&world.client, "eth0", v4(wire(Family::V4, 100)), v4(target), Duration::from_millis(500));
    let node = world.node1.run(|| arp::mac_of("eth0"));
    let internet = world.internet.run(|| arp::mac_of("eth0"));
    let cluster_ip = cluster_ip(Family::V4, 1);
    assert_eq!(ask(node_address(Family::V4)), BTreeSet::from([node]));
    // The internet owns the addresses of Services, so it answers too.
    assert_eq!(ask(cluster_ip), BTreeSet::from([node, internet]));
    assert_eq!(ask(wire(Family::V4, 99)), BTreeSet::new(), "nobody has this address");
    world.node1.sysctl("net/ipv4/conf/all/arp_ignore", "1");
    assert_eq!(ask(node_address(Family::V4)), BTreeSet::from([node]));
    assert_eq!(ask(cluster_ip), BTreeSet::from([internet]));
    let addresses = world.node1.addresses_of("kube-ipvs0").expect("the link");
    assert_eq!(addresses, FAMILIES.map(|family| service(family).ip()).into());
}
