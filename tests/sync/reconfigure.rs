//! Another configuration while the engine runs: what the kernel holds in the end is what a fresh engine would have made of it.

use std::time::Duration;

use portolan::compile::NodeContext;
use portolan::ipvs::{IpvsBackend, IpvsSettings};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::Fault;
use portolan::kernel::item::Scheduler;
use portolan::kernel::{ErrorKind, Kernel};
use portolan::sync::{Options, Reconfiguration, SyncKind};

use crate::behaviour::{dns, flow};
use crate::cluster::{World, local_external, service_name, udp, udp_slice};
use crate::rig::{Mode, Rig, Text, fake_in, faulty_in, from_scratch_in, on_in, operations};
use crate::sequences::{states, without_kubelets};

fn reconfiguration(context: NodeContext) -> Reconfiguration {
    Reconfiguration {
        backend: None,
        context_of: Box::new(move |_: &_, _: &_| context.clone()),
        options: Options::default(),
        min_sync_period: Duration::ZERO,
    }
}

fn to_mode(mode: Mode) -> Reconfiguration {
    Reconfiguration { backend: Some(mode.backend()), ..reconfiguration(mode.context()) }
}

fn switch<K: Kernel>(rig: &mut Rig<K>, mode: Mode) {
    rig.mode = mode;
    rig.engine.reconfigure(to_mode(mode));
}

fn running(mode: Mode, world: &World) -> Rig<FakeKernel> {
    let mut rig = fake_in(mode);
    rig.apply(world.initial());
    assert!(rig.sync().success());
    rig
}

fn world() -> World {
    World::default()
        .service("web", 1, |service| {
            local_external(service);
            service.load_balancer_source_ranges = Box::new(["198.51.100.0/24".parse().unwrap()]);
        })
        .slice("web", "a", &["10.244.0.2", "10.244.1.2"], |_| {})
        .service("dns", 3, udp)
        .slice("dns", "a", &["10.244.0.5"], udp_slice)
}

fn agrees(rig: &impl Text, mode: Mode, world: &World, about: &str) {
    let (text, wanted) = (without_kubelets(&rig.text()), without_kubelets(&from_scratch_in(mode, world)));
    if text != wanted {
        let only = |one: &str, other: &str| {
            one.lines().filter(|line| !other.lines().any(|there| there == *line)).collect::<Vec<_>>().join("\n")
        };
        panic!("{about}, {mode:?}\ntoo much:\n{}\nmissing:\n{}", only(&text, &wanted), only(&wanted, &text));
    }
}

#[test]
fn a_switch_there_and_back_in_any_state_is_as_a_first_sync() {
    for (name, world) in states() {
        let mut rig = running(Mode::Iptables, &world);
        // Each to each.
        for mode in [Mode::Ipvs, Mode::Iptables, Mode::Compact, Mode::Iptables, Mode::Ipvs, Mode::Compact, Mode::Ipvs] {
            switch(&mut rig, mode);
            let report = rig.sync_and_drain();
            assert!(report.success(), "{:?}", report.failed);
            assert_eq!(
                (report.kind, report.drift.len()),
                (SyncKind::Full, 0),
                "what the other mode has left is no drift"
            );
            agrees(&rig, mode, &world, name);
            let again = rig.sync();
            assert_eq!((operations(&again), again.inconsistent_services), (vec![], 0), "{name}");
        }
    }
}

#[test]
fn changes_that_come_with_a_switch_are_in_it() {
    let (before, after) =
        (world(), World::default().service("new", 9, |_| {}).slice("new", "a", &["10.244.1.7"], |_| {}));
    for (from, to) in [(Mode::Iptables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables)] {
        let mut rig = running(from, &before);
        assert!(rig.engine.health_checks().contains_key(&service_name("web")));
        rig.apply(before.changes_to(&after));
        switch(&mut rig, to);
        assert!(rig.engine.health_checks().is_empty(), "of a Service that is gone");
        assert!(rig.sync_and_drain().success());
        agrees(&rig, to, &after, "changes before the switch");
        rig.apply(after.changes_to(&before));
        assert!(rig.sync_and_drain().success());
        agrees(&rig, to, &before, "changes after the switch");
        assert!(rig.engine.health_checks().contains_key(&service_name("web")));
    }
}

#[test]
fn flows_of_a_service_that_leaves_with_a_switch_are_deleted() {
    let before = dns(&["10.244.0.2"]);
    for (from, to) in [(Mode::Iptables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables)] {
        let mut rig = running(from, &before);
        rig.engine.kernel_mut().flows = vec![flow("10.244.0.2:53")];
        switch(&mut rig, to);
        assert!(rig.sync_and_drain().success());
        assert_eq!(rig.engine.kernel().flows.len(), 1, "its endpoint still serves");
        rig.apply(before.changes_to(&World::default()));
        switch(&mut rig, from);
        assert!(rig.sync_and_drain().success());
        assert!(rig.engine.kernel().flows.is_empty(), "{from:?} to {to:?} and back");
    }
}

#[test]
fn a_health_check_port_is_served_all_through_a_switch() {
    let mut rig = running(Mode::Iptables, &world());
    let before = rig.engine.health_checks().clone();
    switch(&mut rig, Mode::Ipvs);
    assert_eq!(*rig.engine.health_checks(), before);
    assert!(rig.sync().success());
    assert_eq!(*rig.engine.health_checks(), before);
}

#[test]
fn two_switches_before_a_sync_write_nothing() {
    for mode in Mode::ALL {
        let other = Mode::ALL.into_iter().find(|other| *other != mode).unwrap();
        let mut rig = running(mode, &world());
        switch(&mut rig, other);
        switch(&mut rig, mode);
        let report = rig.sync();
        assert!(report.success());
        assert_eq!(operations(&report), [], "{mode:?}");
    }
}

#[test]
fn before_the_lists_are_complete_a_switch_waits_for_them() {
    for mode in Mode::ALL {
        let mut rig = running(mode, &world());
        let other = Mode::ALL.into_iter().find(|other| *other != mode).unwrap();
        let mut fresh = on_in(mode, rig.engine.kernel().clone(), Options::default());
        let dumps = fresh.engine.kernel().dumps;
        switch(&mut fresh, other);
        assert_eq!((fresh.engine.due(), fresh.engine.sync().is_none()), (None, true));
        assert_eq!(fresh.engine.kernel().dumps, dumps, "nothing is read or written");
        fresh.apply(world().initial());
        assert!(fresh.sync_and_drain().success());
        switch(&mut rig, other);
        rig.sync_and_drain();
        assert_eq!(fresh.text(), rig.text());
    }
}

#[test]
fn a_change_of_the_context_compiles_everything_and_reads_nothing() {
    for mode in Mode::ALL {
        let mut rig = running(mode, &world());
        let (before, reads) = (rig.text(), rig.engine.kernel().dumps + rig.engine.kernel().item_dumps);
        let masquerading = NodeContext { masquerade_all: true, ..mode.context() };
        rig.engine.reconfigure(reconfiguration(masquerading.clone()));
        assert!(rig.engine.has_work());
        let report = rig.sync();
        assert_eq!((report.success(), report.compiled_services), (true, world().services.len()));
        assert_eq!(
            rig.engine.kernel().dumps + rig.engine.kernel().item_dumps,
            reads,
            "what is known is not read again"
        );
        let mut fresh = fake_in(mode);
        fresh.engine.reconfigure(reconfiguration(masquerading));
        fresh.apply(world().initial());
        fresh.sync();
        assert_eq!(rig.text(), fresh.text());
        assert_ne!(rig.text(), before);

        rig.engine.reconfigure(reconfiguration(mode.context()));
        assert!(rig.sync().success());
        assert_eq!(rig.text(), before);
        rig.engine.reconfigure(reconfiguration(mode.context()));
        assert!(!rig.engine.has_work(), "the same again is no work");
    }
}

#[test]
fn a_shorter_audit_interval_holds_for_the_audit_that_is_next() {
    let mut rig = running(Mode::Iptables, &world());
    let options = Options { full_interval: Duration::from_secs(60), ..Options::default() };
    rig.engine.reconfigure(Reconfiguration { options, ..reconfiguration(Mode::Iptables.context()) });
    rig.clock.advance(Duration::from_secs(60));
    assert_eq!(rig.sync().kind, SyncKind::Full);
}

#[test]
fn another_scheduler_reaches_the_virtual_servers_that_are_there() {
    let mut rig = running(Mode::Ipvs, &world());
    assert!(!rig.text().contains("lc"));
    let settings = IpvsSettings { scheduler: Scheduler::new("wlc").unwrap(), ..IpvsSettings::default() };
    let backend: Box<IpvsBackend> = Box::new(IpvsBackend { settings });
    rig.engine.reconfigure(Reconfiguration { backend: Some(backend), ..reconfiguration(Mode::Ipvs.context()) });
    let report = rig.sync();
    assert!(report.success(), "{:?}", report.failed);
    let text = rig.text();
    assert!(text.contains("wlc") && !text.contains(" rr"), "{text}");
}

/// A node in one mode, and what it should hold in each.
struct Ground {
    from: Mode,
    to: Mode,
    before: FakeKernel,
    wanted: [String; 2],
}

impl Ground {
    fn both() -> [Ground; 2] {
        [(Mode::Iptables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables)].map(|(from, to)| {
            let before = running(from, &world()).engine.kernel().clone();
            let wanted = [to, from].map(|mode| without_kubelets(&from_scratch_in(mode, &world())));
            Ground { from, to, before, wanted }
        })
    }

    /// Switches with one fault in the way, and back, over whatever is remembered of the failure. Returns whether it struck.
    fn heals(&self, fault: Fault, limit: usize) -> bool {
        let options = Options { operations_per_transaction: limit, ..Options::default() };
        let mut rig = faulty_in(self.from, self.before.clone(), fault, options);
        rig.apply(world().initial());
        rig.settle();
        for (mode, wanted) in [self.to, self.from].into_iter().zip(&self.wanted) {
            rig.mode = mode;
            rig.engine.reconfigure(Reconfiguration { options, ..to_mode(mode) });
            rig.settle();
            // Leftovers that could not be read are looked for again after the longest wait.
            rig.clock.advance(options.longest_retry);
            rig.settle();
            assert!(without_kubelets(&rig.text()) == *wanted, "{fault:?} with limit {limit}, to {mode:?}");
        }
        rig.engine.kernel().struck()
    }
}

#[test]
fn operations_that_fail_in_a_switch_heal() {
    for ground in Ground::both() {
        for (kind, limit) in [(ErrorKind::Rejected, 500), (ErrorKind::Unknown, 500), (ErrorKind::Transient, 3)] {
            let positions = (0..10_000).step_by(3);
            let struck = positions.take_while(|at| ground.heals(Fault::Operation(*at, kind), limit)).count();
            assert!(struck > 30, "{:?} {kind:?}: only {struck} operations were hit", ground.from);
        }
    }
}

#[test]
fn every_dump_that_fails_in_a_switch_heals() {
    for ground in Ground::both() {
        for kind in [ErrorKind::Denied, ErrorKind::Transient] {
            let struck = (0..1000).take_while(|at| ground.heals(Fault::Dump(*at, kind), 500)).count();
            assert!(struck > 8, "{:?} {kind:?}: only {struck} dumps were hit", ground.from);
        }
    }
}

#[test]
fn a_switch_in_the_middle_of_a_failure_heals() {
    for ground in Ground::both() {
        let mut unfinished = 0;
        for at in 0..40 {
            let fault = Fault::Operation(at, ErrorKind::TimedOut);
            let mut rig = faulty_in(ground.from, crate::rig::node(), fault, Options::default());
            rig.apply(world().initial());
            unfinished += usize::from(!rig.sync().success());
            switch(&mut rig, ground.to);
            rig.settle();
            assert!(without_kubelets(&rig.text()) == ground.wanted[0], "{fault:?}, to {:?}", ground.to);
        }
        assert!(unfinished > 2, "{:?}: only {unfinished} first syncs failed", ground.from);
    }
}
