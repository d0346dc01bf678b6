//! IPVS mode: virtual servers that are not one Service's alone: made by others, excluded, or wanted by two Services.

use std::net::IpAddr;

use portolan::compile::NodeContext;
use portolan::ipvs::{IpvsBackend, IpvsSettings};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::item::Scheduler;
use portolan::kernel::{
    Connections, ErrorKind, ItemClaims, ItemDump, ItemKey, ItemState, Kernel, KernelError, Op, VirtualServer,
};
use portolan::model::{Service, TrafficPolicy};
use portolan::net::{IpFamily, Protocol};
use portolan::sync::clock::TestClock;
use portolan::sync::{Engine, Options};

use crate::altered::{Alter, Altered};
use crate::cluster::{World, local_external, port, service_name};
use crate::ipvs::{cluster_ip, ipvs, plain, real, tcp, weight};
use crate::rig::{Mode, Rig, Text, fake_in, from_scratch_in, on_in, operations};

fn state(scheduler: &str) -> ItemState {
    let scheduler = Scheduler::new(scheduler).unwrap();
    ItemState::Server(VirtualServer { scheduler, flags: 0, persistence_seconds: 0 })
}

#[test]
fn real_servers_of_another_leave_a_virtual_server_that_is_taken_over() {
    let world = plain(&["10.244.1.2"]);
    let theirs = real(cluster_ip(), "10.9.9.9");
    for before_the_service in [true, false] {
        let mut rig = fake_in(Mode::Ipvs);
        let items = &mut rig.engine.kernel_mut().items;
        items.all.insert(ItemKey::VirtualServer(cluster_ip()), state("sh"));
        items.all.insert(ItemKey::RealServer(theirs), ItemState::Weight(1));
        items.connections.insert(theirs, Connections { active: 1, inactive: 0 });
        if before_the_service {
            rig.apply(World::default().initial());
            assert!(rig.sync().success());
            assert_eq!(weight(rig.engine.kernel(), theirs), Some(1), "nothing to do with us");
            rig.apply(World::default().changes_to(&world));
        } else {
            rig.apply(world.initial());
        }
        let report = rig.sync();
        assert!(report.success(), "{:?}", report.failed);
        assert_eq!((weight(rig.engine.kernel(), theirs), report.draining), (Some(0), 1));
        rig.engine.kernel_mut().items.connections.clear();
        rig.settle();
        assert!(rig.text() == from_scratch_in(Mode::Ipvs, &world));
    }
}

/// An engine that deletes no virtual server with a cluster IP.
fn excluding(kernel: FakeKernel, world: &World) -> Rig<FakeKernel> {
    let settings = IpvsSettings { excluded: vec!["10.96.0.0/16".parse().unwrap()], ..IpvsSettings::default() };
    let clock = TestClock::default();
    let context = |_: &_, _: &_| -> NodeContext { Mode::Ipvs.context() };
    let backend = Box::new(IpvsBackend { settings });
    let engine = Engine::new(kernel, clock.clone(), backend, Box::new(context), Options::default());
    let mut rig = Rig { engine, clock, mode: Mode::Ipvs };
    rig.apply(world.initial());
    rig
}

#[test]
fn an_excluded_virtual_server_that_a_service_wants_has_his_real_servers_only() {
    let (two, one) = (plain(&["10.244.1.2", "10.244.1.3"]), plain(&["10.244.1.2"]));
    let mut rig = excluding(ipvs(&two).engine.kernel().clone(), &one);
    rig.settle();
    assert!(rig.text() == from_scratch_in(Mode::Ipvs, &one), "an endpoint that left while nobody looked");

    // While nobody wants it, it stays as it is; then it is the Service's again.
    rig.apply(one.changes_to(&World::default()));
    assert!(rig.sync().success());
    let (first, other) = (real(cluster_ip(), "10.244.1.2"), plain(&["10.244.1.7"]));
    assert_eq!(weight(rig.engine.kernel(), first), Some(1));
    rig.apply(World::default().changes_to(&other));
    rig.settle();
    assert!(rig.text() == from_scratch_in(Mode::Ipvs, &other));
}

/// Takes everything but what a test refuses.
struct Refusing {
    refuses: fn(&Op) -> bool,
    unreadable: bool,
}

impl Alter for Refusing {
    fn items(
        &mut self,
        kernel: &mut FakeKernel,
        family: IpFamily,
        claims: &ItemClaims,
    ) -> Result<ItemDump, KernelError> {
        if self.unreadable {
            return Err(KernelError::new(ErrorKind::Transient, "it kept changing"));
        }
        kernel.items(family, claims)
    }

    fn apply(&mut self, kernel: &mut FakeKernel, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        let refused = || Err(KernelError::new(ErrorKind::NoSpace, "refused"));
        let mut one = |op: &Op| match (self.refuses)(op) {
            true => refused(),
            false => kernel.apply(std::slice::from_ref(op)).remove(0),
        };
        match transaction.iter().all(Op::is_item) {
            true => transaction.iter().map(&mut one).collect(),
            false => kernel.apply(transaction),
        }
    }
}

fn refusing(refuses: fn(&Op) -> bool, world: &World) -> Rig<Altered<Refusing>> {
    let alter = Refusing { refuses, unreadable: false };
    let kernel = Altered { inner: ipvs(world).engine.kernel().clone(), alter };
    let mut rig = on_in(Mode::Ipvs, kernel, Options::default());
    rig.apply(world.initial());
    assert!(rig.sync().success());
    rig
}

#[test]
fn a_real_server_that_is_refused_does_not_keep_a_filter_in_place() {
    let web = |ranges: &[&str], addresses: &[&str]| {
        let world = World::default().service("web", 1, |service| {
            local_external(service);
            service.load_balancer_source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        });
        world.slice("web", "a", addresses, |_| {})
    };
    let before = web(&["198.51.100.0/24"], &["10.244.0.2"]);
    let mut rig = refusing(|op| op.kind() == "add_real_server" && op.to_string().contains("10.244.0.66"), &before);
    rig.apply(before.changes_to(&web(&[], &["10.244.0.2", "10.244.0.66"])));
    assert_eq!(rig.sync().failed.len(), 1);
    let left = rig.engine.kernel().inner.items.all.keys().map(ToString::to_string);
    let left: Vec<String> = left.filter(|key| key.contains("LOAD-BALANCER-FW element")).collect();
    assert!(left.is_empty(), "nobody may be kept out any more: {left:?}");
}

#[test]
fn a_set_that_cannot_grow_costs_those_who_find_no_room() {
    let world = |count: u16| {
        (1..=count).fold(World::default(), |world, at| {
            world.service(&format!("s{at:03}"), at, |service| {
                service.cluster_ip_v6 = None;
                service.ports = (0..400)
                    .map(|n| {
                        port(
                            if n == 0 { "http".to_owned() } else { format!("p{n}") }.as_str(),
                            Protocol::Tcp,
                            1000 + n,
                            None,
                        )
                    })
                    .collect();
            })
        })
    };
    let mut rig = refusing(|op| matches!(op, Op::ChangeItem(ItemKey::Set(_), _)), &world(163));
    rig.apply(world(163).changes_to(&world(165)));
    for _ in 0..2 {
        let report = rig.sync();
        assert!(report.failed.iter().all(|failed| failed.service.is_some()), "{:?}", report.failed);
        rig.clock.advance(std::time::Duration::from_secs(31));
    }
    // A Service that needs no room is not kept out.
    rig.apply(world(165).changes_to(&world(165).slice("s001", "a", &["10.244.1.2"], |_| {})));
    rig.sync();
    let served = |key: &ItemKey| matches!(key, ItemKey::RealServer(real) if real.address.to_string() == "10.244.1.2");
    assert!(rig.engine.kernel().inner.items.all.keys().any(served));
}

/// Two Services with one external IP and port, and what is special about the second one.
fn rivals(also: fn(&mut Service)) -> World {
    let external: IpAddr = "203.0.113.1".parse().unwrap();
    World::default()
        .service("api", 1, |service| {
            service.cluster_ip_v6 = None;
            service.external_ips = Box::new([external]);
        })
        .slice("api", "a", &["10.244.0.7"], |_| {})
        .service("web", 2, |service| {
            service.cluster_ip_v6 = None;
            service.external_ips = Box::new([external]);
            also(service);
        })
        .slice("web", "a", &["10.244.0.2"], |_| {})
}

#[test]
fn of_two_services_at_one_address_and_port_one_has_it_with_his_endpoints_only() {
    let both = rivals(|service| {
        service.affinity_seconds = Some(60);
        service.external_traffic_policy = TrafficPolicy::Local;
    });
    let mut web = both.clone();
    web.services.remove(&service_name("api"));
    let shared = tcp("203.0.113.1", 80);
    let (first, second) = (real(shared, "10.244.0.7"), real(shared, "10.244.0.2"));
    let mut rig = ipvs(&web);
    assert_eq!(weight(rig.engine.kernel(), second), Some(1));
    rig.apply(web.changes_to(&both));
    rig.sync_and_drain();
    assert_eq!([first, second].map(|real| weight(rig.engine.kernel(), real)), [Some(1), None]);
    assert!(rig.text() == from_scratch_in(Mode::Ipvs, &both));
    rig.engine.request_full();
    let report = rig.sync();
    assert_eq!((report.inconsistent_services, operations(&report)), (0, vec![]));
    // When the first one goes, it is the other one's at once.
    rig.apply(both.changes_to(&web));
    assert!(rig.sync().success());
    assert_eq!(weight(rig.engine.kernel(), second), Some(1));
    rig.settle();
    assert!(rig.text() == from_scratch_in(Mode::Ipvs, &web));
    rig.apply(web.changes_to(&World::default()));
    assert!(rig.sync().success());
    assert!(rig.text() == from_scratch_in(Mode::Ipvs, &World::default()));
}

#[test]
fn two_services_that_ask_for_one_virtual_server_differently_are_not_an_inconsistency() {
    let world = plain(&["10.244.1.2"]).service("api", 1, |service| {
        service.cluster_ip_v6 = None;
        service.affinity_seconds = Some(60);
    });
    let mut rig = ipvs(&world);
    rig.engine.request_full();
    assert_eq!(rig.sync().inconsistent_services, 0);
}

#[test]
fn leftovers_that_cannot_be_read_are_told_of_and_cost_iptables_mode_nothing() {
    let world = plain(&["10.244.1.2"]);
    let alter = Refusing { refuses: |_| false, unreadable: true };
    let kernel = Altered { inner: crate::rig::node(), alter };
    let mut rig = on_in(Mode::Iptables, kernel, Options::default());
    rig.apply(world.initial());
    let report = rig.sync();
    assert!(report.success() && report.healthy());
    assert_eq!(report.unread_leftovers.len(), 2);
}
