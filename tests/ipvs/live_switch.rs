//! Another mode, by an edit of the configuration file while the daemon runs, while clients go on.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::state::{State, TOOLS};
use crate::config_mount::Mount;
use crate::netns::Netns;
use crate::netns::flow::{Conversation, Questions};
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Family, Pod, World, node_address};
use crate::traffic::lab::{cluster_address, node_port, serve};
use crate::traffic::manifest::{Manifests, Policy, Service};
use crate::traffic::program::{Mode, Program, Setup, Variant, eventually_within};

/// For what waits until the kernel forgets connections that have ended.
const AT_LAST: Duration = Duration::from_secs(90);

/// How long a client waits for an answer. The lab's one processor may stand still for seconds while a busy machine loads rules.
const PATIENCE: Duration = Duration::from_secs(30);

fn configuration(mode: Mode) -> String {
    let mode = match mode {
        Mode::Iptables => "iptables",
        Mode::Ipvs => "ipvs",
    };
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         clusterCIDR: 10.244.0.0/16,fd00:10:244::/48\nhostnameOverride: node1\niptables: {{minSyncPeriod: 100ms}}\n"
    )
}

/// One plain Service, one with affinity, one with policy Local, each with a node port, and others that nobody asks.
fn services() -> Vec<Service> {
    let pods = [Pod::A, Pod::B, Pod::R1];
    let mut services = ["plain", "sticky", "local"].map(|name| Service::new(name, 1, &pods));
    for (number, service) in (1..).zip(&mut services) {
        *service = Service { node_port: 30000 + u16::from(number), ..Service::new(&service.name, number, &pods) };
    }
    services[1].affinity = Some(600);
    services[2].external = Policy::Local;
    let more = (4..12).map(|number| Service::new(&format!("other-{number}"), number, &[Pod::A, Pod::R2]));
    services.into_iter().chain(more).collect()
}

/// Who asks for what: pods for cluster IPs, the node for one, a client outside for node ports.
fn ways(world: &World, services: &[Service]) -> Vec<(Netns, SocketAddr)> {
    let of = |family: Family| {
        let inside = services.iter().take(3).map(move |service| cluster_address(service, family));
        let outside = services.iter().take(3).map(move |service| node_port(service, node_address(family)));
        let inside = inside.map(|to| (world.pod(Pod::C).clone(), to));
        let node = [(world.node1.clone(), cluster_address(&services[0], family))];
        inside.chain(outside.map(|to| (world.client.clone(), to))).chain(node)
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

/// Clients of all ways that connect all the time, and datagrams of a few. Each connection has a fresh port: when the load
/// balancer forgets a connection that ended, the kernel drops what connection tracking knows of its ports, and with it a new
/// connection of the other mode that has the same ones.
struct Clients {
    tcp: Vec<(String, Questions)>,
    udp: Vec<(String, Questions)>,
}

impl Clients {
    fn start(world: &World, services: &[Service]) -> Clients {
        let ways = ways(world, services);
        let pause = Duration::from_millis(50);
        let ask = |(from, to): &(Netns, SocketAddr), proto| {
            (format!("{} to {to}, {proto}", from.name()), Questions::start_patient(from, *to, proto, pause, PATIENCE))
        };
        let flow = |(from, to): &(Netns, SocketAddr)| {
            (format!("{} to {to}, one flow", from.name()), Questions::start_flow(from, *to, pause))
        };
        let single = ways.iter().step_by(4).map(|way| ask(way, Proto::Udp));
        let clients = Clients {
            tcp: ways.iter().map(|way| ask(way, Proto::Tcp)).collect(),
            udp: ways.iter().step_by(3).map(flow).chain(single).collect(),
        };
        thread::sleep(Duration::from_millis(500));
        clients
    }

    /// Ends them. No connection may have failed; of datagrams one, since their senders can't notice that one is lost.
    fn finish(self) {
        thread::sleep(Duration::from_secs(1));
        let tcp = self.tcp.into_iter().map(|(name, it)| (name, it.finish(), 0));
        let udp = self.udp.into_iter().map(|(name, it)| (name, it.finish(), 1));
        let tallies: Vec<_> = tcp.chain(udp).collect();
        let total: usize = tallies.iter().map(|(_, tally, _)| tally.total()).sum();
        for (name, tally, _) in tallies.iter().filter(|(_, tally, _)| tally.failed > 0) {
            println!("{name}: {tally}");
        }
        println!("{total} requests");
        let bad = tallies.iter().filter(|(_, tally, allowed)| tally.failed > *allowed || tally.answers.is_empty());
        assert_eq!(bad.count(), 0, "of {}", tallies.len());
    }
}

/// Whether the rules are those of the mode, and no virtual server of the other mode takes new connections.
fn serves_alone(node: &Netns, mode: Mode, variant: Variant) -> bool {
    let rules: Vec<String> = TOOLS.iter().map(|tool| variant.save(node, tool)).collect();
    let has = |what: &str| rules.iter().map(|of| of.contains(what)).collect::<Vec<bool>>();
    let (chains, sets) = (has(":KUBE-SVC-"), has("--match-set KUBE-"));
    let mut reals = node.virtual_servers().into_iter().flat_map(|server| server.servers);
    match mode {
        Mode::Ipvs => chains == [false, false] && sets == [true, true] && reals.all(|real| real.weight > 0),
        Mode::Iptables => chains == [true, true] && sets == [false, false] && reals.all(|real| real.weight == 0),
    }
}

fn assert_alive(open: &mut [Conversation], what: &str) {
    let mut dead = Vec::new();
    for conversation in open.iter_mut() {
        if !conversation.goes_on() {
            dead.push(format!("from {}: {}", conversation.source(), conversation.first()));
        }
    }
    assert!(dead.is_empty(), "to {what}, {} of {} connections are dead: {dead:#?}", dead.len(), open.len());
}

#[test]
fn the_mode_is_switched_under_traffic_and_every_established_connection_lives_on() {
    if !kernel_has_ipvs() {
        return;
    }
    let variant = Setup::ipvs().variant;
    let mut world = World::new();
    let services = services();
    serve(&mut world, &services);
    let manifests = Manifests::new(&services);
    let node = world.node1.clone();
    let mut mount = Mount::new(&configuration(Mode::Iptables));
    let mut program = Program::configured(&node, &mount.file(), variant, &manifests);
    program.wait_for_sync();
    let state = || State::of(&node, variant).whatever_the_order_of_jumps();
    let only_iptables = state();
    let mut open: Vec<Conversation> = Vec::new();
    for (mode, name) in [(Mode::Ipvs, "IPVS mode"), (Mode::Iptables, "iptables mode")] {
        open.extend(ways(&world, &services).iter().map(|(from, to)| Conversation::open(from, None, *to)));
        let clients = Clients::start(&world, &services);
        mount.update(&configuration(mode));
        eventually_within(AT_LAST, &format!("{name} serves alone"), || serves_alone(&node, mode, variant));
        assert_alive(&mut open, name);
        println!("to {name}");
        clients.finish();
        assert_alive(&mut open, name);
    }
    println!("{} connections lived on", open.len());
    drop(open);
    eventually_within(AT_LAST, "all that connections needed is gone", || state() == only_iptables);
}
