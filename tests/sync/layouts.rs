//! From one layout of iptables mode to the other: at every moment all packets fare as in either of them.

use std::net::IpAddr;

use portolan::kernel::fake::FakeKernel;
use portolan::kernel::trace::{Packet, RuleSet, Verdict};
use portolan::kernel::{ChainKey, Placement, RuleKey};
use portolan::net::Protocol;
use portolan::sync::Options;

use crate::cluster::{World, local_external, number};
use crate::ipvs::watched;
use crate::rig::{Mode, fake_in, on_in};

const NODE: &str = "192.168.0.1";

/// `web` has local endpoints only for outsiders, `open` is for everybody, and so many more have a cluster IP.
fn world(more: u16) -> World {
    let ends = |world: World, name: &str| world.slice(name, "a", &["10.244.0.2", "10.244.1.2"], |_| {});
    let world = ends(World::default().service("web", 1, local_external), "web");
    let open = world.service("open", 2, |service| {
        local_external(service);
        service.ports[0].node_port = Some(number(30081));
        service.load_balancer_vips = Box::new(["203.0.113.11".parse().unwrap()]);
        service.external_traffic_policy = Default::default();
    });
    (0..more).fold(ends(open, "open"), |world, at| {
        let name = format!("s{at}");
        ends(world.service(&name, at + 3, |_| {}), &name)
    })
}

fn rule_set(kernel: &FakeKernel) -> RuleSet {
    let mut rules = RuleSet::default();
    for (table, chains) in &kernel.tables {
        for (name, specs) in chains {
            let chain = ChainKey { table: *table, name: *name };
            rules.add_empty(chain);
            for spec in specs {
                let key = RuleKey { chain, spec: spec.as_str().into() };
                rules.add_rule(&key, Placement::Tail).expect("a rule of ours");
            }
        }
    }
    rules
}

/// Where packets of a pod, the node and the world go, and whether they are masqueraded.
fn fates(kernel: &FakeKernel, services: u16) -> Vec<(Verdict, bool)> {
    let rules = rule_set(kernel);
    let cluster_ips = (1..=services + 2).map(|at| format!("10.96.0.{at}:80"));
    let outside = ["203.0.113.10:80", "203.0.113.11:80", "192.168.0.1:30080", "192.168.0.1:30081"];
    let mut fates = Vec::new();
    for destination in cluster_ips.chain(outside.map(str::to_owned)) {
        for (source, interface) in [("10.244.0.9", Some("cni0")), (NODE, None), ("198.51.100.7", Some("eth0"))] {
            let packet = Packet {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: Protocol::Tcp,
                in_interface: interface.map(Into::into),
            };
            let node: IpAddr = NODE.parse().unwrap();
            let outcomes = rules.trace(&packet, |address| address == node).expect("chains that a kernel takes");
            fates.extend(outcomes.into_iter().map(|outcome| (outcome.verdict, outcome.masqueraded)));
        }
    }
    fates
}

const MORE: u16 = 130;

fn all_are_served(kernel: &FakeKernel) {
    let mut first = fake_in(Mode::Iptables);
    first.apply(world(0).initial());
    first.sync();
    // Of the first Services the table tells, and the others are like the last one of them for packets to cluster IPs.
    let wanted = fates(first.engine.kernel(), 0);
    let found = fates(kernel, MORE);
    let outside = wanted.len() - 12;
    assert_eq!(found[..12], wanted[..12]);
    assert_eq!(found[found.len() - outside..], wanted[12..]);
    assert!(found[12..found.len() - outside].chunks(6).all(|fates| *fates == wanted[6..12]));
}

#[test]
fn a_change_of_layout_loses_no_packet_and_masquerades_the_same() {
    let world = world(MORE);
    for (from, to) in [(Mode::Iptables, Mode::Compact), (Mode::Compact, Mode::Iptables)] {
        for limit in [usize::MAX, 300, 40] {
            let mut first = fake_in(from);
            first.apply(world.initial());
            assert!(first.sync().success());
            let kernel = watched(first.engine.kernel().clone(), all_are_served);
            all_are_served(&kernel.inner);
            let options = Options { operations_per_transaction: limit, ..Options::default() };
            let mut second = on_in(to, kernel, options);
            second.apply(world.initial());
            let report = second.sync();
            assert!(report.success(), "{from:?} to {to:?}: {:?}", report.failed);
        }
    }
}

#[test]
fn a_change_costs_only_the_chains_of_its_service_in_the_compact_layout() {
    let mut rig = fake_in(Mode::Compact);
    let before = world(MORE);
    rig.apply(before.initial());
    assert!(rig.sync().success());
    let after = before.clone().slice("s7", "a", &["10.244.1.2", "10.244.1.3"], |_| {});
    rig.apply(before.changes_to(&after));
    let report = rig.sync();
    let operations: u64 = report.operations.values().sum();
    // The dispatch chain is written anew, and the chain of the endpoint here goes.
    assert_eq!((report.transactions, operations), (1, 2), "{:?}", report.operations);
    let with_another = after.clone().service("new", MORE + 3, |service| service.cluster_ip_v6 = None).slice(
        "new",
        "a",
        &["10.244.1.9"],
        |_| {},
    );
    rig.apply(after.changes_to(&with_another));
    let report = rig.sync();
    let operations: u64 = report.operations.values().sum();
    assert_eq!((report.transactions, operations), (1, 2), "a chain and the entry: {:?}", report.operations);
}
