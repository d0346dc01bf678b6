//! From IPVS mode to iptables mode: what established connections need stays until they are over.

use std::time::Duration;

use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::Fault;
use portolan::kernel::{Connections, ErrorKind, ItemKey, RealKey};
use portolan::sync::{Leftovers, Options};

use crate::cluster::{World, udp, udp_slice};
use crate::ipvs::{cluster_ip, real, weight};
use crate::rig::{Mode, Rig, Text, fake_in, faulty_in, from_scratch_in, on_in, operations};
use crate::sequences::without_kubelets;

const OPEN: Connections = Connections { active: 1, inactive: 0 };

fn world() -> World {
    World::default()
        .service("web", 1, |_| {})
        .slice("web", "a", &["10.244.1.2", "10.244.1.3"], |_| {})
        .service("other", 2, |_| {})
        .slice("other", "a", &["10.244.1.4"], |_| {})
        .service("dns", 3, udp)
        .slice("dns", "a", &["10.244.0.5"], udp_slice)
}

/// A node that served in IPVS mode, with a connection to one of two endpoints of `web`.
fn left_by_ipvs() -> (FakeKernel, RealKey) {
    let mut rig = fake_in(Mode::Ipvs);
    rig.apply(world().initial());
    assert!(rig.sync().success());
    let mut kernel = rig.engine.kernel().clone();
    let held = real(cluster_ip(), "10.244.1.2");
    kernel.items.connections.insert(held, OPEN);
    (kernel, held)
}

fn restarted(kernel: FakeKernel) -> Rig<FakeKernel> {
    let mut rig = on_in(Mode::Iptables, kernel, Options::default());
    rig.apply(world().initial());
    rig
}

fn items(rig: &Rig<FakeKernel>) -> Vec<String> {
    rig.engine.kernel().items.all.iter().map(|(key, state)| format!("{key}{state}")).collect()
}

#[test]
fn nothing_of_ipvs_mode_is_removed_before_the_rules_stand_and_then_all_that_no_connection_needs() {
    let (kernel, held) = left_by_ipvs();
    let mut rig = restarted(kernel);
    let before = items(&rig);
    let first = rig.sync();
    assert!(first.success());
    assert_eq!(items(&rig), before, "all is as it was");
    assert!(rig.is_due(), "and looked at, at once");
    let second = rig.sync();
    assert_eq!((second.success(), second.draining), (true, 2), "{:?}", second.failed);
    assert_eq!(weight(rig.engine.kernel(), held), Some(0));
    let left = items(&rig);
    let of = |what: &str| left.iter().filter(|line| line.contains(what)).count();
    assert_eq!((of("virtual server "), of("real server "), of("address "), of("link ")), (1, 2, 1, 1), "{left:#?}");
    assert_eq!((of(" element "), of("set ")), (1, 2), "what tells whose it is: {left:#?}");

    rig.clock.advance(Duration::from_secs(3600));
    assert_eq!(operations(&rig.sync()), [], "as long as the connection lives");
    rig.engine.kernel_mut().items.connections.clear();
    rig.clock.advance(Duration::from_secs(31));
    let last = rig.sync();
    assert_eq!((last.success(), last.draining), (true, 0));
    let wanted = from_scratch_in(Mode::Iptables, &world());
    assert_eq!(without_kubelets(&rig.text()), without_kubelets(&wanted));
    assert!(rig.engine.due().unwrap() > portolan::sync::clock::Clock::now(&rig.clock) + Duration::from_secs(60));
}

#[test]
fn where_nobody_stays_to_look_all_goes_at_once_with_its_connections() {
    let (kernel, _) = left_by_ipvs();
    let mut rig = on_in(Mode::Iptables, kernel, Options { leftovers: Leftovers::Remove, ..Options::default() });
    rig.apply(world().initial());
    let report = rig.sync();
    assert_eq!((report.success(), report.draining), (true, 0), "{:?}", report.failed);
    let wanted = from_scratch_in(Mode::Iptables, &world());
    assert_eq!(without_kubelets(&rig.text()), without_kubelets(&wanted));
}

#[test]
fn the_next_process_finds_what_waits_and_ipvs_mode_takes_it_into_service_again() {
    let (kernel, held) = left_by_ipvs();
    let mut rig = restarted(kernel);
    rig.sync();
    rig.sync();
    let mut next = restarted(rig.engine.kernel().clone());
    next.sync();
    assert_eq!((next.sync().draining, items(&next)), (2, items(&rig)));
    let mut back = on_in(Mode::Ipvs, next.engine.kernel().clone(), Options::default());
    back.apply(world().initial());
    assert!(back.sync().success());
    assert_eq!(weight(back.engine.kernel(), held), Some(1));
    let wanted = from_scratch_in(Mode::Ipvs, &world());
    assert_eq!(without_kubelets(&back.text()), without_kubelets(&wanted));
    assert_eq!(back.engine.kernel().items.connections.get(&held), Some(&OPEN), "the connection lives");
}

#[test]
fn while_rules_fail_the_virtual_servers_stay_but_not_for_good() {
    let (kernel, _) = left_by_ipvs();
    let world = world().slice("other", "b", &["10.244.1.9"], |_| {});
    for at in 0..3 {
        let fault = Fault::Operation(at, ErrorKind::Transient);
        let mut rig = faulty_in(Mode::Iptables, kernel.clone(), fault, Options::default());
        rig.apply(world.initial());
        assert!(!rig.sync().success());
        let servers = |rig: &Rig<portolan::kernel::fault::FaultyKernel<FakeKernel>>| {
            let items = &rig.engine.kernel().inner.items.all;
            items.keys().filter(|key| matches!(key, ItemKey::VirtualServer(_))).count()
        };
        let all = servers(&rig);
        assert!(all > 3);
        rig.sync();
        assert_eq!(servers(&rig), all, "not everything is programmed");
        rig.clock.advance(Duration::from_secs(1));
        rig.sync();
        rig.clock.advance(Duration::from_secs(31));
        rig.sync();
        assert_eq!(servers(&rig), 1, "the one with the connection");
    }
}
