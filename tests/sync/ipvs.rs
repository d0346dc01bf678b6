//! IPVS mode: the order of operations, what is ours, and what a change costs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use portolan::compile::NodeContext;
use portolan::ipvs::{IpvsBackend, IpvsSettings};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::RecordingKernel;
use portolan::kernel::item::Registry;
use portolan::kernel::{
    ErrorKind, ItemKey, ItemState, Kernel, KernelError, Op, RealKey, SetKey, SetName, VirtualKey, VirtualServer,
};
use portolan::net::{IpFamily, Protocol};
use portolan::sync::{Engine, Options, SyncReport};

use crate::altered::{Alter, Altered};
use crate::cluster::{World, local_external, port};
use crate::rig::{Mode, Rig, Text, fake_in, from_scratch_in, on_in, operations};

const NODE_PORT: u16 = 30080;

fn web() -> World {
    World::default().service("web", 1, |service| {
        local_external(service);
        service.load_balancer_source_ranges = Box::new(["198.51.100.0/24".parse().unwrap()]);
    })
}

fn slice(world: World, addresses: &[&str]) -> World {
    world.slice("web", "a", addresses, |_| {})
}

pub(crate) fn plain(addresses: &[&str]) -> World {
    slice(World::default().service("web", 1, |service| service.cluster_ip_v6 = None), addresses)
}

pub(crate) fn tcp(address: &str, at: u16) -> VirtualKey {
    VirtualKey { address: address.parse().unwrap(), protocol: Protocol::Tcp, port: at }
}

pub(crate) fn cluster_ip() -> VirtualKey {
    tcp("10.96.0.1", 80)
}

pub(crate) fn real(server: VirtualKey, address: &str) -> RealKey {
    RealKey { server, address: address.parse().unwrap(), port: if server.port == 53 { 53 } else { 8080 } }
}

pub(crate) fn weight(kernel: &FakeKernel, real: RealKey) -> Option<u32> {
    match kernel.items.all.get(&ItemKey::RealServer(real)) {
        Some(ItemState::Weight(weight)) => Some(*weight),
        _ => None,
    }
}

pub(crate) fn ipvs(world: &World) -> Rig<FakeKernel> {
    let mut rig = fake_in(Mode::Ipvs);
    rig.apply(world.initial());
    assert!(rig.sync().success());
    rig
}

pub(crate) fn change(rig: &mut Rig<FakeKernel>, from: &World, to: &World) -> SyncReport {
    rig.apply(from.changes_to(to));
    let report = rig.sync();
    assert!(report.success(), "{:?}", report.failed);
    report
}

/// Carries out one operation after the other and looks at the kernel after each.
pub(crate) struct Watched {
    look: fn(&FakeKernel),
}

pub(crate) fn watched(inner: FakeKernel, look: fn(&FakeKernel)) -> Altered<Watched> {
    Altered { inner, alter: Watched { look } }
}

impl Alter for Watched {
    fn apply(&mut self, kernel: &mut FakeKernel, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        if !transaction.iter().all(Op::is_item) {
            let results = kernel.apply(transaction);
            (self.look)(kernel);
            return results;
        }
        let mut results = Vec::new();
        for op in transaction {
            results.extend(kernel.apply(std::slice::from_ref(op)));
            // What is sent at once arrives at once, as far as a packet can tell: a virtual server and its real servers.
            let sent_with_the_next = matches!(op, Op::AddItem(ItemKey::VirtualServer(_), _));
            if !sent_with_the_next {
                (self.look)(kernel);
            }
        }
        results
    }
}

fn servers(kernel: &FakeKernel) -> BTreeMap<VirtualKey, Vec<u32>> {
    let mut servers: BTreeMap<VirtualKey, Vec<u32>> = BTreeMap::new();
    for (key, state) in &kernel.items.all {
        match (key, state) {
            (ItemKey::VirtualServer(server), _) => drop(servers.entry(*server).or_default()),
            (ItemKey::RealServer(real), ItemState::Weight(weight)) => {
                servers.entry(real.server).or_default().push(*weight);
            }
            _ => {}
        }
    }
    servers
}

fn holds(kernel: &FakeKernel, name: SetName, server: &VirtualKey) -> bool {
    use portolan::kernel::Element::{IpPort, Port};
    let set = SetKey { family: server.family(), name };
    [IpPort(server.address, server.protocol, server.port), Port(server.port)]
        .iter()
        .any(|element| kernel.items.all.contains_key(&ItemKey::Element(set, *element)))
}

fn rules(kernel: &FakeKernel, family: IpFamily) -> String {
    let tables = kernel.tables.iter().filter(|(table, _)| table.family == family);
    tables.flat_map(|(_, chains)| chains.values()).flatten().fold(String::new(), |text, rule| text + rule + "\n")
}

/// Whatever is there is guarded: no virtual server without the rules and elements that masquerade and filter its traffic.
fn guarded(kernel: &FakeKernel) {
    let local = &kernel.addresses;
    let mut registry = Registry::new(local.v4.iter().chain(&local.v6).copied());
    for key in kernel.items.all.keys() {
        if let ItemKey::Element(set, element) = key {
            registry.add(*set, element);
        }
    }
    for server in servers(kernel).keys() {
        assert!(registry.knows(server), "{server} is not entered in any set");
        let rules = rules(kernel, server.family());
        for rule in ["-j KUBE-IPVS-FILTER", "-j KUBE-PROXY-FIREWALL", "-j MASQUERADE", "-j KUBE-SERVICES"] {
            assert!(rules.contains(rule), "{server} without {rule}");
        }
    }
}

/// The same, and the ranges and exceptions of the Service `web`.
fn strictly_guarded(kernel: &FakeKernel) {
    guarded(kernel);
    for server in servers(kernel).keys() {
        if server.address.to_string() == "203.0.113.10" {
            assert!(holds(kernel, SetName::LoadBalancerFirewall, server), "{server} without its source ranges");
            assert!(holds(kernel, SetName::LoadBalancerLocal, server), "{server} would be masqueraded");
        }
        if server.port == NODE_PORT {
            assert!(holds(kernel, SetName::NodePortLocalTcp, server), "{server} would be masqueraded");
        }
    }
    // Who is filtered by source finds the ranges that admit him.
    for family in IpFamily::ALL {
        let elements = |name| {
            let of = move |key: &&ItemKey| matches!(key, ItemKey::Element(set, _) if *set == SetKey { family, name });
            kernel.items.all.keys().filter(of).count()
        };
        assert!(
            family == IpFamily::V6
                || elements(SetName::LoadBalancerFirewall) == 0
                || elements(SetName::LoadBalancerSourceCidr) > 0
        );
    }
}

/// A virtual server is never without a real server that takes new connections.
fn never_empty(kernel: &FakeKernel) {
    strictly_guarded(kernel);
    for (server, weights) in servers(kernel).into_iter().filter(|(server, _)| server.family() == IpFamily::V4) {
        assert!(weights.contains(&1), "{server} has nowhere to send new connections: {weights:?}");
    }
}

#[test]
fn a_new_node_has_no_moment_without_guard_and_no_empty_virtual_server() {
    let mut rig = on_in(Mode::Ipvs, watched(crate::rig::node(), never_empty), Options::default());
    rig.apply(slice(web(), &["10.244.0.2", "10.244.1.2"]).initial());
    assert!(rig.sync().success());
    let servers = servers(&rig.engine.kernel().inner);
    assert!(servers.len() >= 4, "{servers:?}");
}

#[test]
fn replacing_every_endpoint_leaves_no_virtual_server_empty() {
    let (before, after) = (slice(web(), &["10.244.0.2", "10.244.0.3"]), slice(web(), &["10.244.0.4", "10.244.0.5"]));
    let mut rig = on_in(Mode::Ipvs, watched(crate::rig::node(), never_empty), Options::default());
    rig.apply(before.initial());
    assert!(rig.sync().success());
    rig.apply(before.changes_to(&after));
    assert!(rig.sync().success());
    rig.settle();
    assert_eq!(
        rig.engine.kernel().inner.canonical_text(&Mode::Ipvs.backend().claims()),
        from_scratch_in(Mode::Ipvs, &after)
    );
}

#[test]
fn whatever_goes_is_guarded_to_the_end() {
    for (_, world) in crate::sequences::states() {
        let mut rig = on_in(Mode::Ipvs, watched(crate::rig::node(), guarded), Options::default());
        let full = slice(web(), &["10.244.0.2", "10.244.1.2"]);
        rig.apply(full.initial());
        assert!(rig.sync().success());
        rig.apply(full.changes_to(&world));
        assert!(rig.sync().success());
        rig.apply(world.changes_to(&World::default()));
        assert!(rig.sync().success());
        assert!(servers(&rig.engine.kernel().inner).is_empty());
    }
}

#[test]
fn an_endpoint_more_is_one_operation_and_one_less_is_two_and_no_process() {
    let (one, two) = (plain(&["10.244.1.2"]), plain(&["10.244.1.2", "10.244.1.3"]));
    let mut rig = ipvs(&one);
    let processes = rig.engine.kernel().transactions;
    assert_eq!(operations(&change(&mut rig, &one, &two)), [("add_real_server", 1)]);
    assert_eq!(operations(&change(&mut rig, &two, &one)), [("change_real_server", 1)]);
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(operations(&rig.sync()), [("delete_real_server", 1)]);
    assert_eq!(rig.engine.kernel().transactions, processes);
}

/// What somebody else has made.
fn foreign(kernel: &mut FakeKernel) -> Vec<ItemKey> {
    let server =
        VirtualServer { scheduler: portolan::kernel::item::Scheduler::ROUND_ROBIN, flags: 0, persistence_seconds: 0 };
    let (one, other) = (tcp("192.0.2.1", 443), tcp("2001:db8::1", 443));
    let real = RealKey { server: one, address: "192.0.2.9".parse().unwrap(), port: 443 };
    let items = [
        (ItemKey::VirtualServer(one), ItemState::Server(server)),
        (ItemKey::VirtualServer(other), ItemState::Server(server)),
        (ItemKey::RealServer(real), ItemState::Weight(5)),
    ];
    kernel.items.all.extend(items);
    items.iter().map(|(key, _)| *key).collect()
}

#[test]
fn virtual_servers_of_others_are_left_alone_through_everything() {
    let world = slice(web(), &["10.244.0.2", "10.244.1.2"]);
    let mut kernel = crate::rig::node();
    let theirs = foreign(&mut kernel);
    let there = |kernel: &FakeKernel| theirs.iter().all(|key| kernel.items.all.contains_key(key));
    let mut rig = on_in(Mode::Ipvs, kernel, Options::default());
    rig.apply(world.initial());
    assert!(rig.sync().success());
    rig.engine.request_full();
    assert!(rig.sync().drift.is_empty());
    rig.apply(world.changes_to(&World::default()));
    assert!(rig.sync().success());
    assert!(there(rig.engine.kernel()));
    // They change, and go, as they like.
    rig.engine.kernel_mut().items.all.remove(&theirs[1]);
    rig.engine.request_full();
    let report = rig.sync();
    assert!(report.drift.is_empty() && operations(&report).is_empty());
    let mut restarted = on_in(Mode::Iptables, rig.engine.kernel().clone(), Options::default());
    restarted.apply(world.initial());
    assert!(restarted.sync().success());
    let left: Vec<&ItemKey> = restarted.engine.kernel().items.all.keys().collect();
    assert_eq!(left, [&theirs[0], &theirs[2]], "iptables mode removes what is ours and nothing else");
}

#[test]
fn a_virtual_server_of_another_at_a_service_address_is_taken_over() {
    let world = plain(&["10.244.1.2"]);
    let mut rig = fake_in(Mode::Ipvs);
    let server = VirtualServer {
        scheduler: portolan::kernel::item::Scheduler::new("sh").unwrap(),
        flags: 0,
        persistence_seconds: 0,
    };
    rig.engine.kernel_mut().items.all.insert(ItemKey::VirtualServer(cluster_ip()), ItemState::Server(server));
    rig.apply(world.initial());
    let report = rig.sync();
    assert!(report.success(), "{:?}", report.failed);
    assert_eq!(rig.text(), from_scratch_in(Mode::Ipvs, &world));
}

#[test]
fn excluded_virtual_servers_are_never_deleted() {
    let world = plain(&["10.244.1.2"]);
    let settings = IpvsSettings { excluded: vec!["10.96.0.0/16".parse().unwrap()], ..IpvsSettings::default() };
    let clock = portolan::sync::clock::TestClock::default();
    let start = |kernel: FakeKernel| {
        let backend = Box::new(IpvsBackend { settings: settings.clone() });
        Engine::new(
            kernel,
            clock.clone(),
            backend,
            Box::new(|_: &_, _: &_| -> NodeContext { Mode::Ipvs.context() }),
            Options::default(),
        )
    };
    let mut engine = start(crate::rig::node());
    world.initial().into_iter().for_each(|change| engine.apply(change));
    assert!(engine.sync().unwrap().success());
    world.changes_to(&World::default()).into_iter().for_each(|change| engine.apply(change));
    assert!(engine.sync().unwrap().success());
    assert!(engine.kernel().items.all.contains_key(&ItemKey::VirtualServer(cluster_ip())));
    let mut restarted = start(engine.kernel().clone());
    World::default().initial().into_iter().for_each(|change| restarted.apply(change));
    assert!(restarted.sync().unwrap().success());
    assert!(restarted.kernel().items.all.contains_key(&ItemKey::VirtualServer(cluster_ip())));
}

#[test]
fn what_foreign_hands_did_is_repaired_within_a_period_and_counted() {
    let world = slice(web(), &["10.244.0.2", "10.244.1.2"]);
    let mut rig = ipvs(&world);
    let wanted = rig.text();
    let keys: Vec<ItemKey> = rig.engine.kernel().items.all.keys().copied().collect();
    for key in keys {
        match key {
            // The real kernel does not let go of a set in use.
            ItemKey::Set(_) => continue,
            ItemKey::VirtualServer(server) => {
                let all = &mut rig.engine.kernel_mut().items.all;
                all.retain(|other, _| !matches!(other, ItemKey::RealServer(real) if real.server == server));
                all.remove(&key);
            }
            ItemKey::Link => {
                let all = &mut rig.engine.kernel_mut().items.all;
                all.retain(|other, _| !matches!(other, ItemKey::Link | ItemKey::Address(_)));
            }
            _ => drop(rig.engine.kernel_mut().items.all.remove(&key)),
        }
        rig.clock.advance(Duration::from_secs(30));
        let report = rig.sync();
        assert!(report.success(), "{key}: {:?}", report.failed);
        assert!(report.drift.values().sum::<u64>() >= 1, "{key}");
        assert_eq!(rig.text(), wanted, "{key}");
    }
    // And what they added.
    let stray = real(cluster_ip(), "10.244.9.9");
    rig.engine.kernel_mut().items.all.insert(ItemKey::RealServer(stray), ItemState::Weight(1));
    rig.engine
        .kernel_mut()
        .items
        .all
        .insert(ItemKey::RealServer(real(cluster_ip(), "10.244.0.2")), ItemState::Weight(7));
    rig.clock.advance(Duration::from_secs(30));
    let report = rig.sync();
    assert_eq!(report.drift.values().sum::<u64>(), 2);
    assert_eq!((weight(rig.engine.kernel(), stray), report.draining), (Some(0), 1));
    rig.settle();
    assert_eq!(rig.text(), wanted);
}

#[test]
fn an_idle_period_starts_nothing_and_reads_nothing_whole() {
    let mut rig = ipvs(&slice(web(), &["10.244.0.2"]));
    let counts = |kernel: &FakeKernel| [kernel.transactions, kernel.dumps, kernel.item_dumps];
    let before = counts(rig.engine.kernel());
    for _ in 0..10 {
        rig.clock.advance(Duration::from_secs(30));
        assert_eq!(operations(&rig.sync()), []);
    }
    assert_eq!(counts(rig.engine.kernel()), before);
}

#[test]
fn a_set_that_is_outgrown_becomes_larger_before_it_gets_more() {
    let world = |count: u16| {
        (1..=count).fold(World::default(), |world, at| {
            world.service(&format!("s{at}"), at, |service| {
                service.cluster_ip_v6 = None;
                service.ports = (0..400).map(|n| port(&format!("p{n}"), Protocol::Tcp, 1000 + n, None)).collect();
            })
        })
    };
    let (small, large) = (world(160), world(170));
    let mut rig = ipvs(&small);
    let set = ItemKey::Set(SetKey { family: IpFamily::V4, name: SetName::ClusterIp });
    assert_eq!(rig.engine.kernel().items.all[&set], ItemState::Capacity(65536));
    let report = change(&mut rig, &small, &large);
    assert_eq!(report.operations[&("change_set", None)], 1);
    assert_eq!(rig.engine.kernel().items.all[&set], ItemState::Capacity(262_144));
    // A restart leaves it as it is.
    let mut restarted = on_in(Mode::Ipvs, rig.engine.kernel().clone(), Options::default());
    restarted.apply(large.initial());
    assert_eq!(operations(&restarted.sync()), []);
}

#[test]
fn nodes_do_not_all_begin_with_the_same_endpoint() {
    let addresses: Vec<String> = (2..10).map(|at| format!("10.244.1.{at}")).collect();
    let world = plain(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
    let order = |node: &'static str| {
        let context_of = move |_: &_, _: &_| NodeContext { node_name: node.into(), ..Mode::Ipvs.context() };
        let kernel = RecordingKernel::new(crate::rig::node());
        let clock = portolan::sync::clock::TestClock::default();
        let mut engine = Engine::new(kernel, clock, Mode::Ipvs.backend(), Box::new(context_of), Options::default());
        world.initial().into_iter().for_each(|change| engine.apply(change));
        engine.sync();
        let real = |op: &Op| match op {
            Op::AddItem(ItemKey::RealServer(real), _) => Some(real.address),
            _ => None,
        };
        engine.kernel().operations().filter_map(real).collect::<Vec<IpAddr>>()
    };
    assert_eq!(order("node1").len(), 8);
    assert_eq!(order("node1"), order("node1"));
    let first: std::collections::BTreeSet<IpAddr> =
        ["node1", "node2", "node3", "node4", "node5"].map(|node| order(node)[0]).into();
    assert!(first.len() > 1, "{first:?}");
}

/// Each Service answers at every moment, by the rules of one mode or by a virtual server of the other.
pub(crate) fn serves(kernel: &FakeKernel) {
    let dispatched = rules(kernel, IpFamily::V4).contains("-d 10.96.0.1/32 -p tcp");
    let dispatched = dispatched && rules(kernel, IpFamily::V4).contains("-j KUBE-SVC-");
    let balanced = servers(kernel).get(&cluster_ip()).is_some_and(|weights| weights.contains(&1))
        && kernel.items.all.contains_key(&ItemKey::Address(cluster_ip().address));
    let masqueraded = rules(kernel, IpFamily::V4).contains("KUBE-CLUSTER-IP dst,dst");
    assert!(dispatched || (balanced && masqueraded), "nobody serves {}", cluster_ip());
}

#[test]
fn changing_the_mode_programs_the_new_before_it_removes_the_old() {
    let world = slice(web(), &["10.244.0.2", "10.244.1.2"]);
    for (from, to) in [(Mode::Iptables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables)] {
        let mut first = fake_in(from);
        first.apply(world.initial());
        assert!(first.sync().success());
        let kernel = watched(first.engine.kernel().clone(), serves);
        serves(&kernel.inner);
        let mut second = on_in(to, kernel, Options::default());
        second.apply(world.initial());
        let report = second.sync_and_drain();
        assert!(report.success(), "{:?}", report.failed);
        let text = second.engine.kernel().inner.canonical_text(&to.backend().claims());
        let [text, wanted] = [text, from_scratch_in(to, &world)].map(|it| crate::sequences::without_kubelets(&it));
        assert!(text == wanted, "{from:?} to {to:?}:\n{text}");
    }
}

#[test]
fn a_real_server_that_the_kernel_refuses_costs_only_itself() {
    let world = plain(&["10.244.1.2"]).service("bad", 2, |service| service.cluster_ip_v6 = None).slice(
        "bad",
        "a",
        &["224.0.0.1", "10.244.1.9"],
        |_| {},
    );
    let mut rig = fake_in(Mode::Ipvs);
    rig.apply(world.initial());
    let report = rig.sync();
    assert!(!report.success() && report.healthy());
    let failed: Vec<String> = report.failed.iter().map(|it| it.service.as_ref().unwrap().to_string()).collect();
    assert_eq!(failed, ["ns/bad"]);
    assert_eq!(report.failed[0].error.kind, ErrorKind::Rejected);
    assert!(report.failed[0].error.message.contains("224.0.0.1"), "{}", report.failed[0].error);
    assert_eq!(weight(rig.engine.kernel(), real(cluster_ip(), "10.244.1.2")), Some(1));
    assert_eq!(weight(rig.engine.kernel(), real(tcp("10.96.0.2", 80), "10.244.1.9")), Some(1));
}
