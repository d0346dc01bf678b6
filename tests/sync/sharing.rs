//! IPVS mode: virtual servers that are not one Service's alone: made by others, excluded, or wanted by two Services.

use portolan::compile::NodeContext;
use portolan::ipvs::{IpvsBackend, IpvsSettings};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::item::Scheduler;
use portolan::kernel::{Connections, ItemKey, ItemState, VirtualServer};
use portolan::sync::clock::TestClock;
use portolan::sync::{Engine, Options};

use crate::cluster::World;
use crate::ipvs::{cluster_ip, ipvs, plain, real, weight};
use crate::rig::{Mode, Rig, Text, fake_in, from_scratch_in};

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
