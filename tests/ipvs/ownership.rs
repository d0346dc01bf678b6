//! What others have in the kernel is theirs: virtual servers, sets, chains, addresses. Nothing that the program does touches them,
//! and cleaning up takes away exactly what is the program's.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::slice::from_ref;

use rustix::process::Signal;

use super::by_hand::ByHand;
use super::state::{State, TOOLS};
use super::switch::{clean_with, cleaned};
use crate::netns::Netns;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Family, Pod, World, cluster_ip, node_address, public};
use crate::traffic::lab::{ask_once, cluster_address, serve};
use crate::traffic::manifest::{Manifests, Service};
use crate::traffic::program::{Mode, Program, Setup, USUAL, eventually};

/// The number of somebody else's virtual addresses.
const THEIRS: u8 = 77;
/// A firewall mark.
const MARK: u32 = 42;

/// An address that no Service has.
fn their_server(family: Family) -> SocketAddr {
    SocketAddr::new(public(family, THEIRS), 8443)
}

/// What a keepalived, a firewall and an administrator may have made on the node: something of each kind, with names that begin
/// like ours where such a thing is possible.
fn others_were_here(node: &Netns, setup: Setup) {
    let mut by_hand = ByHand::open(node);
    for family in FAMILIES {
        let real = SocketAddr::new(Pod::B.address(family), 8001);
        // On an address of a link of its own; on the node's address; and for marked packets.
        for address in [their_server(family), SocketAddr::new(node_address(family), 9443)] {
            by_hand.serve(Proto::Tcp, address);
            by_hand.add(Proto::Tcp, address, real);
        }
        by_hand.serve_mark(MARK, real);
        let length = family.pick(32, 128);
        let theirs = public(family, THEIRS);
        node.ip(&format!("address add {theirs}/{length} dev lo\n"));
    }
    node.ip("link add their0 type dummy\nlink set their0 up\naddress add 203.0.113.78/32 dev their0\n");
    for set in
        ["THEIRS hash:ip family inet", "KUBE-THEIRS hash:ip,port family inet", "KUBE-6-THEIRS hash:ip family inet6"]
    {
        node.exec(&[&["ipset", "create"][..], &set.split(' ').collect::<Vec<_>>()].concat());
    }
    node.exec(&["ipset", "add", "THEIRS", "10.1.2.3"]);
    for tool in TOOLS {
        let rules = "*nat\n:THEIRS - [0:0]\n-A PREROUTING -p tcp -m tcp --dport 4444 -j THEIRS\n-A THEIRS -j RETURN\nCOMMIT\n\
                     *filter\n:THEIRS - [0:0]\n-A INPUT -p tcp -m tcp --dport 4444 -j THEIRS\n-A THEIRS -j ACCEPT\nCOMMIT\n";
        setup.variant.feed(node, tool, "restore", &["--noflush"], rules);
    }
}

/// All that others have, and the marked services, which are seen in the kernel's text only.
fn theirs(node: &Netns, setup: Setup) -> BTreeSet<String> {
    let state = State::of(node, setup.variant);
    let mut found: BTreeSet<String> = state.rules.into_iter().filter(|rule| rule.contains("THEIRS")).collect();
    found.extend(state.sets.into_iter().filter(|set| set.contains("THEIRS")));
    let text = node.ipvs_text();
    let mut service = String::new();
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["->", real, _, weight, ..] => drop(found.insert(format!("{service} -> {real} {weight}"))),
            [protocol, address, ref rest @ ..] => service = format!("{protocol} {address} {rest:?}"),
            _ => {}
        }
    }
    found.retain(|line| !line.contains(":0050 ") && !line.contains(":7531 "));
    found.extend(["lo", "their0"].iter().flat_map(|link| {
        let addresses = node.addresses_of(link).unwrap_or_default();
        addresses.into_iter().map(move |address| format!("{link} {address}"))
    }));
    found
}

#[test]
fn what_others_have_made_stays_through_everything() {
    if !kernel_has_ipvs() {
        return;
    }
    let setup = Setup::ipvs();
    let mut world = World::new();
    let mut service = Service::new("ours", 1, &[Pod::A, Pod::R1]);
    service.node_port = 30001;
    service.external_ips = FAMILIES.map(|family| public(family, 1)).into();
    serve(&mut world, from_ref(&service));
    let node = world.node1.clone();
    others_were_here(&node, setup);
    let before = theirs(&node, setup);
    let untouched = State::of(&node, setup.variant);
    // Six virtual servers with a real server each, three sets and an element, four rules and two chains in each family.
    assert!(before.len() >= 6 + 4 + 12, "{before:#?}");
    let manifests = Manifests::new(from_ref(&service));
    let period = [USUAL, &["--ipvs-sync-period=1s", "--full-sync-period=1s"]].concat();
    let mut program = Program::start(&node, setup, &manifests, &period);
    assert_eq!(theirs(&node, setup), before, "after the first sync");
    for family in FAMILIES {
        assert_eq!(ask_once(&world.client, their_server(family), Proto::Tcp).by(), Some("pod-b"), "{family:?}");
    }
    let wanted = State::of(&node, setup.variant);
    let mut by_hand = ByHand::open(&node);
    for (what, damage) in [("addresses", true), ("virtual servers", false)] {
        if damage {
            node.ip("link delete kube-ipvs0\n");
        } else {
            FAMILIES.iter().for_each(|family| by_hand.end(Proto::Tcp, cluster_address(&service, *family)));
        }
        eventually(&format!("{what} are back"), || State::of(&node, setup.variant) == wanted);
        assert_eq!(theirs(&node, setup), before, "after {what} were repaired");
    }
    manifests.delete("ours");
    eventually("our virtual servers are gone", || !node.ipvs_text().contains(":0050 "));
    assert_eq!(theirs(&node, setup), before, "after our last Service went");
    manifests.apply(&service);
    eventually("they are back", || State::of(&node, setup.variant) == wanted);
    for mode in [Mode::Iptables, Mode::Ipvs] {
        program.end(Signal::TERM);
        program = Program::start(&node, Setup { mode, ..setup }, &manifests, &period);
        assert_eq!(theirs(&node, setup), before, "in mode {mode:?}");
    }
    program.end(Signal::KILL);
    let left = cleaned(&node, setup);
    assert_eq!(theirs(&node, setup), before, "after cleanup");
    left.assert_same(&untouched, "cleanup leaves what there was");
}

#[test]
fn excluded_addresses_are_served_and_never_deleted() {
    if !kernel_has_ipvs() {
        return;
    }
    let setup = Setup::ipvs();
    let mut world = World::new();
    let services = [Service::new("excluded", 1, &[Pod::A]), Service::new("ordinary", 2, &[Pod::A])];
    serve(&mut world, &services);
    let manifests = Manifests::new(&services);
    let node = &world.node1;
    let exclude = FAMILIES.map(|family| format!("{}/{}", cluster_ip(family, 1), family.pick(32, 128)));
    let exclude = format!("--ipvs-exclude-cidrs={}", exclude.join(","));
    let mut program = Program::start(node, setup, &manifests, &[USUAL, &[&exclude]].concat());
    let kept = FAMILIES.map(|family| cluster_address(&services[0], family));
    assert!(kept.iter().all(|to| ask_once(world.pod(Pod::C), *to, Proto::Tcp).by().is_some()));
    services.iter().for_each(|service| manifests.delete(&service.name));
    let there = |address: SocketAddr| node.virtual_server("TCP", address).is_some();
    eventually("the ordinary one is gone", || {
        FAMILIES.iter().all(|family| !there(cluster_address(&services[1], *family)))
    });
    assert!(kept.iter().all(|to| there(*to)), "{}", node.ipvs_text());
    program.end(Signal::TERM);
    let left = clean_with(node, setup, &[&exclude]);
    assert_eq!(left.servers.iter().filter(|server| kept.contains(&server.address)).count(), 4, "{left:?}");
    assert!(left.sets.is_empty() && left.addresses.is_none() && left.servers.len() == 4, "{left:?}");
}

#[test]
fn a_scheduler_that_the_kernel_does_not_have_is_named() {
    if !kernel_has_ipvs() {
        return;
    }
    let world = World::new();
    let directory = tempfile::tempdir().expect("directory");
    let manifests = format!("--manifests={}", directory.path().display());
    fs::write(directory.path().join("empty.yaml"), "").expect("a manifest");
    let variant = format!("--iptables-variant={}", Setup::ipvs().variant);
    let command = [
        env!("CARGO_BIN_EXE_portolan"),
        "--mode=ipvs",
        "--ipvs-scheduler=nosuch",
        &variant,
        &manifests,
        "--hostname-override=node1",
    ];
    let mut process = world.node1.spawn(&command);
    let status = process.wait(crate::traffic::program::AT_LAST).expect("it ends");
    let log = process.log();
    assert!(!status.success() && log.contains("ip_vs_nosuch"), "{status}\n{log}");
    assert!(world.node1.virtual_servers().is_empty());
}
