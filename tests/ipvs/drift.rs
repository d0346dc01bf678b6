//! What somebody takes away comes back, and while nobody does, nothing is done. How much is done for a first fill.

use std::fs;
use std::net::SocketAddr;
use std::slice::from_ref;
use std::thread;
use std::time::{Duration, Instant};

use super::by_hand::ByHand;
use super::state::{State, TOOLS};
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Family, Pod, World, node_address, public};
use crate::traffic::lab::{Lab, ask_once, cluster_address, node_port, serve};
use crate::traffic::manifest::{Manifests, Service};
use crate::traffic::program::{Program, Setup, USUAL, eventually};

const STARTED: &str = "portolan_processes_started_total";

/// How often the program has found something in the kernel other than it had left it.
fn drift(lab: &Lab) -> f64 {
    let families = ["IPv4", "IPv6"].map(|family| {
        let count = |table: &str| {
            let labels = format!("ip_family=\"{family}\",table=\"{table}\"");
            lab.program.metric("portolan_drift_total", &labels).unwrap_or_default()
        };
        ["items", "nat", "filter"].map(count).iter().sum::<f64>()
    });
    families.iter().sum()
}

#[test]
fn whatever_is_taken_away_comes_back_and_is_counted() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("stubborn", 1, &[Pod::A, Pod::B]);
    service.node_port = 30001;
    service.ingress = FAMILIES.map(|family| (public(family, 1), false)).into();
    // Rules are looked at by a fingerprint in each sync period, and sets, servers and addresses one by one.
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &["--ipvs-sync-period=1s"]);
    let (node, variant) = (&lab.world.node1, lab.variant);
    let wanted = State::of(node, variant);
    let servers = || node.virtual_servers().into_iter().map(|it| (it.protocol == "TCP", it.address));
    let proto = |is_tcp| if is_tcp { Proto::Tcp } else { Proto::Udp };
    type Damage<'a> = (&'a str, &'a dyn Fn());
    let damages: &[Damage<'_>] = &[
        ("all virtual servers deleted", &|| {
            let mut by_hand = ByHand::open(node);
            servers().for_each(|(is_tcp, address)| by_hand.end(proto(is_tcp), address));
        }),
        ("one real server deleted, one that nobody wants added", &|| {
            let mut by_hand = ByHand::open(node);
            let to = cluster_address(&service, Family::V4);
            let real = |pod: Pod| SocketAddr::new(pod.address(Family::V4), service.target_port);
            by_hand.remove(Proto::Tcp, to, real(Pod::A));
            by_hand.add(Proto::Udp, to, real(Pod::R2));
        }),
        ("a real server without new connections", &|| {
            let real = SocketAddr::new(Pod::A.address(Family::V6), service.target_port);
            ByHand::open(node).quiesce(Proto::Tcp, cluster_address(&service, Family::V6), real);
        }),
        ("the link deleted", &|| node.ip("link delete kube-ipvs0\n")),
        ("an address deleted", &|| {
            let address = cluster_address(&service, Family::V4).ip();
            node.ip(&format!("address delete {address}/32 dev kube-ipvs0\n"));
        }),
        ("sets emptied", &|| {
            for set in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-NODE-PORT-TCP"] {
                node.exec(&["ipset", "flush", set]);
            }
        }),
        ("all rules flushed", &|| {
            for tool in TOOLS {
                variant.feed(node, tool, "restore", &[], "*nat\nCOMMIT\n*filter\nCOMMIT\n");
            }
        }),
    ];
    for (what, damage) in damages {
        let before = drift(&lab);
        let begun = Instant::now();
        damage();
        eventually(&format!("everything is back after {what}"), || State::of(node, variant) == wanted);
        println!("{what}: back after {:.1?}", begun.elapsed());
        eventually(&format!("it is counted: {what}"), || drift(&lab) > before);
        for family in FAMILIES {
            for proto in [Proto::Tcp, Proto::Udp] {
                let inside = ask_once(lab.world.pod(Pod::C), cluster_address(&service, family), proto);
                let outside = ask_once(&lab.world.client, node_port(&service, node_address(family)), proto);
                assert!(inside.by().is_some() && outside.by().is_some(), "after {what}: {inside}, {outside}");
            }
        }
    }
}

/// Processes and threads that were started on this machine since it was.
fn forks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = stat.lines().find_map(|line| line.strip_prefix("processes ")).expect("processes");
    line.parse().expect("a number")
}

/// Endpoints of each Service of the fill.
const PODS: [Pod; 5] = [Pod::A, Pod::B, Pod::C, Pod::R1, Pod::R2];

#[test]
fn a_first_fill_starts_few_processes_and_an_idle_program_none() {
    if !kernel_has_ipvs() {
        return;
    }
    let setup = Setup::ipvs();
    let world = World::new();
    let services: Vec<Service> =
        (1..=250).map(|number| Service::new(&format!("many-{number}"), number, &PODS)).collect();
    let manifests = Manifests::new(&services);
    let begun = Instant::now();
    let program = Program::start(&world.node1, setup, &manifests, &[USUAL, &["--ipvs-sync-period=1s"]].concat());
    let took = begun.elapsed();
    let servers = world.node1.virtual_servers();
    let reals: usize = servers.iter().map(|server| server.servers.len()).sum();
    let started = program.metric(STARTED, "").expect("the metric");
    println!("{} virtual servers, {reals} real servers: {took:.1?}, {started} processes", servers.len());
    assert_eq!((servers.len(), reals), (1000, 5000));
    let log = program.log();
    // What the tools can do is asked once; then each family's two tables are read and written.
    assert!(started <= 20.0, "{started} processes\n{log}");
    thread::sleep(Duration::from_secs(1));
    let (before, all_before) = (program.metric(STARTED, ""), forks());
    thread::sleep(Duration::from_millis(4500));
    let all_after = forks();
    assert_eq!(program.metric(STARTED, ""), before);
    if std::env::var_os("PORTOLAN_LAB").is_some() {
        // Nobody else starts anything in the lab; the question for the metric before was a thread, too.
        assert!(all_after - all_before <= 2, "{} processes or threads in 4.5 seconds", all_after - all_before);
    }
}

#[test]
fn changes_of_services_and_endpoints_start_no_process() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut world = World::new();
    let mut service = Service::new("changing", 1, &[Pod::A]);
    service.node_port = 30001;
    serve(&mut world, from_ref(&service));
    let manifests = Manifests::new(from_ref(&service));
    let program = Program::start(&world.node1, Setup::ipvs(), &manifests, USUAL);
    let before = program.metric(STARTED, "").expect("the metric");
    let to = cluster_address(&service, Family::V4);
    for pod in [Pod::B, Pod::R1, Pod::A] {
        service.set_endpoints(&[pod]);
        manifests.apply(&service);
        eventually("it is served", || ask_once(world.pod(Pod::C), to, Proto::Udp).by() == Some(pod.name()));
    }
    let second = Service::new("second", 2, &[Pod::A]);
    let is_there = || world.node1.virtual_server("UDP", cluster_address(&second, Family::V6)).is_some();
    manifests.apply(&second);
    eventually("there is another", is_there);
    manifests.delete("second");
    eventually("it is gone", || !is_there());
    assert_eq!(program.metric(STARTED, ""), Some(before));
}
