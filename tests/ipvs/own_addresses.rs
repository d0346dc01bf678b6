//! Addresses of Services that are addresses of this node anyway, and who answers for the others on the wire.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::slice::from_ref;
use std::time::Duration;

use super::walks::listen_everywhere;
use crate::netns::arp;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, PATIENCE, Proto};
use crate::netns::world::{FAMILIES, Family, Pod, node_address, second_node_address, wire};
use crate::traffic::lab::{Lab, ask_once};
use crate::traffic::manifest::{PROTOS, Service};
use crate::traffic::program::{Setup, eventually};

/// A port of the host that no Service has.
const HOST_PORT: u16 = 81;

/// The Service's addresses: a VIP that is the address of `eth0`, an external IP that is the second address of the node.
fn at_home() -> Service {
    let mut service = Service::new("at-home", 1, &[Pod::A]);
    service.ingress = FAMILIES.map(|family| (node_address(family), false)).into();
    service.external_ips = FAMILIES.map(second_node_address).into();
    service
}

/// Whether an address is one of the dummy link, and whether its other ports are closed.
fn on_dummy(lab: &Lab, family: Family, address: IpAddr) -> (bool, bool) {
    let node = &lab.world.node1;
    let set = family.pick("KUBE-IPVS-IPS", "KUBE-6-IPVS-IPS");
    let linked = node.addresses_of("kube-ipvs0").expect("the link").contains(&address);
    (linked, node.set_elements(set).expect("the set").contains(&address.to_string()))
}

fn assert_served(lab: &Lab, address: IpAddr) {
    let places = [lab.world.pod(Pod::C), &lab.world.node1, &lab.world.client];
    for (from, proto) in places.into_iter().flat_map(|from| PROTOS.map(|proto| (from, proto))) {
        let outcome = ask_once(from, SocketAddr::new(address, 80), proto);
        assert_eq!(outcome.by(), Some("pod-a"), "{} to {address} {proto}: {outcome}", from.name());
    }
}

#[test]
fn an_address_of_another_interface_is_left_to_it_and_moves_when_it_is_lost() {
    if !kernel_has_ipvs() {
        return;
    }
    let lab = Lab::start(Setup::ipvs(), from_ref(&at_home()), &[]);
    let _host = listen_everywhere(&lab.world.node1, &[HOST_PORT]);
    let host_port = |address| ask_once(&lab.world.client, SocketAddr::new(address, HOST_PORT), Proto::Tcp);
    for family in FAMILIES {
        for address in [node_address(family), second_node_address(family)] {
            assert_eq!(on_dummy(&lab, family, address), (false, false), "{address}");
            assert_served(&lab, address);
            assert_eq!(host_port(address).by(), Some("node1"), "{address}");
        }
        let address = second_node_address(family);
        let length = family.pick(32, 128);
        let on_lo = |change: &str| lab.world.node1.ip(&format!("address {change} {address}/{length} dev lo\n"));
        on_lo("del");
        eventually("the dummy link has the lost address", || on_dummy(&lab, family, address) == (true, true));
        assert_served(&lab, address);
        assert_eq!(host_port(address), Outcome::Refused, "{address}");
        on_lo("add");
        eventually("the dummy link gave the address back", || on_dummy(&lab, family, address) == (false, false));
        assert_served(&lab, address);
        assert_eq!(host_port(address).by(), Some("node1"), "{address}");
    }
}

#[test]
fn a_strict_node_does_not_answer_on_its_wire_for_addresses_of_services() {
    if !kernel_has_ipvs() {
        return;
    }
    let v4 = |host| match wire(Family::V4, host) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let mut service = Service::new("on-the-wire", 1, &[Pod::A]);
    service.ingress = vec![(v4(50).into(), false)];
    for (arguments, strict) in [(&[][..], false), (&["--ipvs-strict-arp=true"], true)] {
        let lab = Lab::start(Setup::ipvs(), from_ref(&service), arguments);
        let node = &lab.world.node1;
        let mac = node.run(|| arp::mac_of("eth0"));
        let answering = |host| arp::who_has(&lab.world.client, "eth0", v4(100), v4(host), Duration::from_secs(1));
        assert_eq!(answering(1), BTreeSet::from([mac]), "for the node's own address, {arguments:?}");
        let expected = if strict { BTreeSet::new() } else { BTreeSet::from([mac]) };
        assert_eq!(answering(50), expected, "for a VIP, {arguments:?}");
        let read = |key: &str| {
            let path = format!("/proc/sys/net/ipv4/conf/all/{key}");
            node.run(|| fs::read_to_string(path)).expect("a setting").trim().to_owned()
        };
        let wanted = if strict { ["1", "2"] } else { ["0", "0"] };
        assert_eq!(["arp_ignore", "arp_announce"].map(read), wanted);
        // Whoever knows the way is served.
        lab.world.client.ip("route add 192.168.100.50 via 192.168.100.1\n");
        let outcome = lab
            .world
            .client
            .run(|| crate::netns::probe::probe(None, SocketAddr::new(v4(50).into(), 80), Proto::Tcp, PATIENCE));
        assert_eq!(outcome.by(), Some("pod-a"), "{outcome}");
    }
}
