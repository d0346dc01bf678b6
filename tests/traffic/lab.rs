//! A world with the program running in it.

use std::net::{IpAddr, SocketAddr};

use super::manifest::{Manifests, Service};
use super::program::{Mode, Program, Setup, USUAL, Variant, eventually};
use crate::netns::Netns;
use crate::netns::probe::{Outcome, PATIENCE, Proto, probe};
use crate::netns::world::{Family, Pod, World, cluster_ip};

/// The world, the manifests, and the program that reads them.
pub(crate) struct Lab {
    /// The world.
    pub(crate) world: World,
    /// The manifests.
    pub(crate) manifests: Manifests,
    /// The program.
    pub(crate) program: Program,
    /// The kind of iptables it uses.
    pub(crate) variant: Variant,
}

impl Lab {
    /// Pods serve the target ports of these Services, and the program programs them.
    pub(crate) fn start(setup: impl Into<Setup>, services: &[Service], more: &[&str]) -> Lab {
        let setup = setup.into();
        let mut world = World::new();
        serve(&mut world, services);
        let manifests = Manifests::new(services);
        // IPVS mode has no least interval of its own.
        let pace: &[&str] = if setup.mode == Mode::Iptables { &["--iptables-min-sync-period=100ms"] } else { &[] };
        let program = Program::start(&world.node1, setup, &manifests, &[USUAL, pace, more].concat());
        Lab { world, manifests, program, variant: setup.variant }
    }

    /// The pods that answer at an address, out of this many questions from fresh ports.
    pub(crate) fn answering(&self, from: &Netns, to: SocketAddr, proto: Proto, questions: usize) -> Vec<String> {
        let outcomes = ask(from, to, proto, questions);
        let mut names: Vec<String> = outcomes.iter().map(Outcome::to_string).collect();
        for (name, outcome) in names.iter_mut().zip(&outcomes) {
            if let Some(by) = outcome.by() {
                *name = by.to_owned();
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// Waits until exactly these pods answer.
    pub(crate) fn wait_for(&self, from: &Netns, to: SocketAddr, proto: Proto, pods: &[Pod]) {
        let wanted: Vec<&str> = pods.iter().map(|pod| pod.name()).collect();
        eventually(&format!("{wanted:?} answer at {to} {proto}"), || {
            self.answering(from, to, proto, 1).iter().all(|name| wanted.contains(&name.as_str()))
                && self.answering(from, to, proto, 40) == wanted
        });
    }
}

/// Lets every pod serve the target ports of these Services.
pub(crate) fn serve(world: &mut World, services: &[Service]) {
    let mut ports: Vec<u16> = services.iter().map(|service| service.target_port).collect();
    ports.dedup();
    world.serve_pods(&[Pod::A, Pod::B, Pod::C, Pod::R1, Pod::R2], &ports);
}

/// Asks so many times.
pub(crate) fn ask(from: &Netns, to: SocketAddr, proto: Proto, questions: usize) -> Vec<Outcome> {
    from.run(|| (0..questions).map(|_| probe(None, to, proto, PATIENCE)).collect())
}

/// Asks once.
pub(crate) fn ask_once(from: &Netns, to: SocketAddr, proto: Proto) -> Outcome {
    from.run(|| probe(None, to, proto, PATIENCE))
}

/// The cluster IP and port of a Service.
pub(crate) fn cluster_address(service: &Service, family: Family) -> SocketAddr {
    SocketAddr::new(cluster_ip(family, service.cluster_ip), service.port)
}

/// An address with the node port of a Service.
pub(crate) fn node_port(service: &Service, address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, service.node_port)
}
