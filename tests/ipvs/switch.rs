//! Another mode, by a restart with another `--mode`, while clients go on.

use std::slice::from_ref;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::state::State;
use crate::netns::flow::{Conversation, Ending, Questions, ShortConnections};
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Pod, World, node_address};
use crate::traffic::lab::{cluster_address, node_port, serve};
use crate::traffic::manifest::{Manifests, Service};
use crate::traffic::program::{Mode, Program, Setup, USUAL};

/// Makes connections to a Service with a conversation open on both of its addresses.
fn talk(world: &World, service: &Service) -> Vec<Conversation> {
    let open = |family| {
        let inside = Conversation::open(world.pod(Pod::C), None, cluster_address(service, family));
        let outside = Conversation::open(&world.client, None, node_port(service, node_address(family)));
        [inside, outside]
    };
    FAMILIES.into_iter().flat_map(open).collect()
}

/// Clients that connect and ask all the time, from inside, from outside, and from the node.
struct Clients {
    connections: Vec<ShortConnections>,
    questions: Vec<Questions>,
}

impl Clients {
    fn start(world: &World, service: &Service) -> Clients {
        let (mut connections, mut questions) = (Vec::new(), Vec::new());
        for (family, ports) in FAMILIES.into_iter().zip([40000..40050, 41000..41050]) {
            let (inside, outside) = (cluster_address(service, family), node_port(service, node_address(family)));
            let (pod, client, pause) = (world.pod(Pod::C), &world.client, Duration::from_millis(5));
            connections.push(ShortConnections::start(pod, inside, ports.clone(), 200, Ending::ByServer));
            connections.push(ShortConnections::start(client, outside, ports.clone(), 100, Ending::ByServer));
            connections.push(ShortConnections::start(&world.node1, inside, ports, 50, Ending::Reset));
            questions.push(Questions::start(pod, inside, Proto::Udp, pause));
            questions.push(Questions::start_flow(client, outside, pause));
        }
        thread::sleep(Duration::from_millis(300));
        Clients { connections, questions }
    }

    /// Ends them. Each may have this many failed connections, and one lost datagram.
    fn finish(self, failed: usize) {
        thread::sleep(Duration::from_millis(300));
        let connections = self.connections.into_iter().map(|it| (it.finish(), failed));
        let tallies: Vec<_> = connections.chain(self.questions.into_iter().map(|it| (it.finish(), 1))).collect();
        tallies.iter().for_each(|(tally, _)| println!("{tally}"));
        let bad = tallies.iter().find(|(tally, failed)| tally.failed > *failed || tally.answers.is_empty());
        assert!(bad.is_none(), "{bad:?}");
    }
}

#[test]
fn no_connection_fails_while_the_mode_is_changed_and_nothing_of_the_old_mode_is_left() {
    if !kernel_has_ipvs() {
        return;
    }
    let ipvs = Setup::ipvs();
    let iptables = Setup { mode: Mode::Iptables, ..ipvs };
    let mut world = World::new();
    let mut service = Service::new("moved", 1, &[Pod::A, Pod::B, Pod::R1]);
    service.node_port = 30001;
    serve(&mut world, from_ref(&service));
    let more = (2..40).map(|number| Service::new(&format!("other-{number}"), number, &[Pod::A, Pod::R2]));
    let services: Vec<Service> = [service.clone()].into_iter().chain(more).collect();
    let manifests = Manifests::new(&services);
    let node = &world.node1;
    // What a node looks like on which there was never another mode.
    let mut fresh = Program::start(node, ipvs, &manifests, USUAL);
    let state = || State::of(node, ipvs.variant).whatever_the_order_of_jumps();
    let only_ipvs = state();
    fresh.end(Signal::TERM);
    let nothing = cleaned(node, ipvs);
    let mut program = Program::start(node, iptables, &manifests, USUAL);
    let only_iptables = state();

    for (setup, wanted) in [(ipvs, &only_ipvs), (iptables, &only_iptables)] {
        let clients = Clients::start(&world, &service);
        let mut open = talk(&world, &service);
        program.end(Signal::TERM);
        program = Program::start(node, setup, &manifests, USUAL);
        match setup.mode {
            Mode::Ipvs => state().assert_same(wanted, "now in IPVS mode"),
            // What established connections of the load balancer need stays as long as they do.
            Mode::Iptables => assert_eq!(state().rules, wanted.rules, "now in iptables mode"),
        }
        // Connection tracking translates those of iptables mode as before: the load balancer looks at new ones only.
        let going_on: Vec<bool> = open.iter_mut().map(Conversation::goes_on).collect();
        assert!(going_on.iter().all(|it| *it), "to {:?}: {going_on:?}", setup.mode);
        // When the load balancer forgets a connection that was reset, the kernel drops what connection tracking knows of its
        // ports; a connection that has the same ports by then is lost.
        clients.finish(if setup.mode == Mode::Ipvs { 0 } else { 1 });
    }
    program.end(Signal::TERM);
    cleaned(node, ipvs).assert_same(&nothing, "after cleanup");
    assert!(nothing.servers.is_empty() && nothing.sets.is_empty() && nothing.addresses.is_none(), "{nothing:?}");
}

/// Runs `portolan cleanup`; returns what is left.
pub(super) fn cleaned(node: &crate::netns::Netns, setup: Setup) -> State {
    clean_with(node, setup, &[])
}

/// The same with more arguments.
pub(super) fn clean_with(node: &crate::netns::Netns, setup: Setup, more: &[&str]) -> State {
    let variant = format!("--iptables-variant={}", setup.variant);
    let command = [&[env!("CARGO_BIN_EXE_portolan"), "cleanup", &variant], more].concat();
    let output = node.try_exec(&command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    State::of(node, setup.variant)
}
