//! From iptables mode to IPVS mode, with something in the way: each Service is served and guarded at every moment.

use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::{Fault, FaultyKernel};
use portolan::kernel::{ChainKey, ChainName, ErrorKind, Table};
use portolan::net::IpFamily;
use portolan::sync::Options;

use crate::cluster::{World, local_external};
use crate::ipvs::{serves, watched};
use crate::rig::{Mode, fake_in, from_scratch_in, on_in};
use crate::sequences::without_kubelets;

fn world(services: u16) -> World {
    (0..services).fold(World::default(), |world, at| {
        let name = if at == 0 { "web".to_owned() } else { format!("s{at}") };
        world
            .service(&name, at + 1, |service| {
                if at == 0 {
                    local_external(service);
                    service.load_balancer_source_ranges = Box::new(["198.51.100.0/24".parse().unwrap()]);
                }
                service.cluster_ip_v6 = None;
            })
            .slice(&name, "a", &["10.244.0.2", "10.244.1.2"], |_| {})
    })
}

fn jumps(kernel: &FakeKernel, host: &str, target: &str) -> bool {
    let chain = ChainKey::new(IpFamily::V4, Table::Filter, ChainName::new(host).unwrap());
    kernel.chain(&chain).is_some_and(|rules| rules.iter().any(|rule| rule.ends_with(&format!("-j {target}"))))
}

/// Somebody serves, and what he serves is guarded by the rules of his mode.
fn served_and_guarded(kernel: &FakeKernel) {
    serves(kernel);
    for host in ["INPUT", "FORWARD"] {
        assert!(jumps(kernel, host, "KUBE-PROXY-FIREWALL"), "{host}: source ranges are not looked at");
    }
    let services = ChainKey::new(IpFamily::V4, Table::Nat, portolan::iptables::names::SERVICES);
    let rules = kernel.chain(&services).unwrap();
    if rules.iter().any(|rule| rule.contains("KUBE-CLUSTER-IP")) {
        assert!(jumps(kernel, "INPUT", "KUBE-IPVS-FILTER"), "the other ports of VIPs are open");
    }
}

fn hand_over(before: &FakeKernel, world: &World, limit: usize, fault: Option<Fault>) -> bool {
    let kernel = watched(before.clone(), served_and_guarded);
    let kernel = FaultyKernel::new(kernel, fault.unwrap_or(Fault::Flows(usize::MAX, ErrorKind::Unknown)));
    served_and_guarded(&kernel.inner.inner);
    let options = Options { operations_per_transaction: limit, ..Options::default() };
    let mut rig = on_in(Mode::Ipvs, kernel, options);
    rig.apply(world.initial());
    rig.settle();
    let text = rig.engine.kernel().inner.inner.canonical_text(&Mode::Ipvs.backend().claims());
    let wanted = from_scratch_in(Mode::Ipvs, world);
    assert!(without_kubelets(&text) == without_kubelets(&wanted), "{limit} {fault:?}");
    rig.engine.kernel().struck()
}

fn in_iptables_mode(world: &World) -> FakeKernel {
    let mut first = fake_in(Mode::Iptables);
    first.apply(world.initial());
    assert!(first.sync().success());
    first.engine.kernel().clone()
}

#[test]
fn all_rules_are_swapped_at_once_however_many_the_other_mode_has_left() {
    let world = world(30);
    let before = in_iptables_mode(&world);
    for limit in [usize::MAX, 500, 60] {
        hand_over(&before, &world, limit, None);
    }
}

#[test]
fn every_operation_failing_leaves_one_of_the_modes_in_charge() {
    let world = world(3);
    let before = in_iptables_mode(&world);
    for limit in [usize::MAX, 60] {
        use ErrorKind::{Denied, NoSpace, Rejected, Transient, Unknown};
        for kind in [Denied, NoSpace, Rejected, Transient, Unknown] {
            let struck =
                (0..10_000).take_while(|at| hand_over(&before, &world, limit, Some(Fault::Operation(*at, kind))));
            assert!(struck.count() > 100, "{kind:?}");
        }
    }
}

#[test]
fn one_service_that_the_kernel_refuses_puts_the_hand_over_off_but_not_for_good() {
    let good = world(3);
    let before = in_iptables_mode(&good);
    let bad = world(3).slice("s1", "b", &["224.0.0.1"], |_| {});
    let mut rig = on_in(Mode::Ipvs, before, Options::default());
    rig.apply(bad.initial());
    assert!(rig.sync().failed.iter().any(|failed| failed.error.message.contains("224.0.0.1")));
    assert!(!jumps(rig.engine.kernel(), "INPUT", "KUBE-IPVS-FILTER"), "the other mode goes on");
    for _ in 0..6 {
        rig.clock.advance(std::time::Duration::from_secs(31));
        rig.sync();
    }
    assert!(jumps(rig.engine.kernel(), "INPUT", "KUBE-IPVS-FILTER"));
    let report = rig.sync();
    assert_eq!((report.healthy(), report.failed.len()), (true, 1), "{:?}", report.failed);
    assert!(!jumps(rig.engine.kernel(), "INPUT", "KUBE-EXTERNAL-SERVICES"), "nothing of the other mode is left");
}
