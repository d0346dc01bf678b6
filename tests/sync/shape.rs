//! What a change costs, in operations, dumps and transactions. No clock is involved.

use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::RecordingKernel;
use portolan::kernel::{Kernel, Op};
use portolan::model::Change;
use portolan::sync::{Options, SyncKind};

use crate::cluster::{World, endpoint, service_name};
use crate::rig::{Rig, Text, fake, on, operations};

const SERVICES: u16 = 10_000;

fn big() -> World {
    (0..SERVICES).fold(World::default(), |world, at| {
        let name = format!("s{at}");
        let address = |node: u8| format!("10.{}.{}.{}", 128 + node, at >> 8, at & 255);
        let (a, b) = (address(0), address(1));
        world.service(&name, at, |service| service.cluster_ip_v6 = None).slice(&name, "a", &[&a, &b], |_| {})
    })
}

fn synced(world: &World) -> Rig<FakeKernel> {
    let mut rig = on(FakeKernel::default(), Options { operations_per_transaction: usize::MAX, ..Options::default() });
    rig.apply(world.initial());
    assert!(rig.sync().success());
    rig
}

#[test]
fn among_ten_thousand_services_a_change_writes_only_its_own_chains_in_one_process() {
    let world = big();
    let mut rig = synced(&world);
    let (transactions, dumps) = (rig.engine.kernel().transactions, rig.engine.kernel().dumps);

    // Nothing changed: nothing is done.
    let report = rig.sync();
    assert_eq!((report.kind, operations(&report), report.transactions), (SyncKind::Partial, vec![], 0));

    // The same objects delivered again: nothing is due.
    rig.apply(World::default().changes_to(&world).into_iter().take(100));
    assert!(!rig.engine.has_work());

    // One endpoint replaced: the dispatch chain and the new endpoint's chain are written, the old one's removed.
    let mut changed = world.clone();
    let slice = changed.slices.values_mut().find(|slice| slice.service == service_name("s5000")).unwrap();
    slice.endpoints[0] = endpoint("10.200.0.1");
    rig.apply(world.changes_to(&changed));
    let report = rig.sync();
    assert_eq!(report.compiled_services, 1);
    assert_eq!(operations(&report), [("delete_chain", 1), ("replace_chain", 2)]);
    assert_eq!(rig.engine.kernel().transactions, transactions + 1);

    // A Service removed: its rule and its chains go.
    let name = service_name("s7");
    rig.apply([Change::Service(name.clone(), None)]);
    let report = rig.sync();
    assert_eq!(operations(&report), [("delete_chain", 3), ("delete_rule", 1)]);

    // And added again: no top-level chain is rewritten.
    rig.apply([Change::Service(name.clone(), Some(world.services[&name].clone()))]);
    let report = rig.sync();
    assert_eq!(operations(&report), [("insert_rule", 1), ("replace_chain", 3)]);
    assert_eq!(rig.engine.kernel().transactions, transactions + 3);
    assert_eq!(rig.engine.kernel().dumps, dumps, "no change reads the kernel");
}

#[test]
fn a_first_fill_in_pieces_leads_rules_only_to_chains_that_are_there() {
    // The fake refuses a jump to a chain that does not exist, so that success alone proves the order.
    let world = (0..300).fold(World::default(), |world, at| {
        let name = format!("s{at}");
        world.service(&name, at, |_| {}).slice(&name, "a", &["10.244.0.2", "10.244.1.2"], |_| {})
    });
    let mut rig = on(FakeKernel::default(), Options { operations_per_transaction: 50, ..Options::default() });
    rig.apply(world.initial());
    let report = rig.sync();
    assert!(report.success());
    assert!(report.transactions > 18, "{} transactions", report.transactions);
    assert_eq!(rig.text(), crate::rig::from_scratch(&world));
    let rewritten = operations(&report).into_iter().find(|(kind, _)| *kind == "rewrite_chain");
    assert_eq!(rewritten, Some(("rewrite_chain", 2)), "KUBE-SERVICES in nat of IPv4, and IPv6's rejects");
}

#[test]
fn a_dry_run_records_what_a_real_run_does_and_changes_nothing() {
    let world = World::default().service("web", 1, |_| {}).slice("web", "a", &["10.244.0.2"], |_| {});
    let mut dry = on(RecordingKernel::new(FakeKernel::default()), Options::default());
    dry.apply(world.initial());
    dry.sync();
    let kernel = dry.engine.kernel();
    assert_eq!(kernel.inner.transactions, 0);
    let ops: Vec<Op> = kernel.operations().cloned().collect();
    let mut replayed = FakeKernel::default();
    for transaction in &kernel.transactions {
        assert!(replayed.apply(transaction).iter().all(Result::is_ok));
    }
    let mut real = fake();
    real.apply(world.initial());
    real.sync();
    assert!(!ops.is_empty());
    assert_eq!(replayed.tables, real.engine.kernel().tables);
}

#[test]
fn a_first_fill_without_a_limit_is_one_transaction_besides_the_base() {
    let world = (0..300).fold(World::default(), |world, at| {
        let name = format!("s{at}");
        world.service(&name, at, |service| service.cluster_ip_v6 = None).slice(&name, "a", &["10.244.0.2"], |_| {})
    });
    let mut rig = on(FakeKernel::default(), Options { operations_per_transaction: usize::MAX, ..Options::default() });
    rig.apply(world.initial());
    let report = rig.sync();
    assert!(report.success());
    assert_eq!(report.transactions, 3, "the base in both families, and everything else");
    assert_eq!(rig.text(), crate::rig::from_scratch(&world));
}
