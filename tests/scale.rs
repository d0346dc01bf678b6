//! What a change costs must not depend on how big the cluster is. Nothing here looks at a clock: the memory that is
//! asked for while a change is carried out is counted, which any pass over all Services would raise.

#[path = "../benches/support/mod.rs"]
mod support;

use portolan::kernel::Kernel;
use portolan::model::Change;
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, Options, SyncKind};
use support::allocations::{self, Allocations, Counting};
use support::fleet::{self, Fleet};
use support::null_kernel::NullKernel;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Each kind of change is made so often. A hash table that happens to grow shows in one of them; the median is what a
/// change costs.
const REPEATS: u32 = 21;

fn synced(services: u32) -> (Engine<NullKernel, SystemClock>, Fleet) {
    let fleet = Fleet::of(services);
    let options = Options { operations_per_transaction: usize::MAX, ..Options::default() };
    let mut engine = support::engine(NullKernel::default(), options);
    support::fill(&mut engine, fleet);
    support::sync(&mut engine);
    (engine, fleet)
}

/// What one change costs from its arrival to the kernel's answer.
fn cost<K: Kernel>(engine: &mut Engine<K, SystemClock>, change: Change, operations: u64) -> Allocations {
    let (report, allocations) = allocations::of(|| {
        engine.apply(change);
        support::sync(engine)
    });
    assert_eq!((report.kind, report.compiled_services, report.transactions), (SyncKind::Partial, 1, 1));
    assert_eq!(support::operations(&report), operations, "{:?}", report.operations);
    allocations
}

fn median(mut costs: Vec<Allocations>) -> Allocations {
    costs.sort_unstable_by_key(|cost| cost.bytes);
    costs[costs.len() / 2]
}

/// The costs of changing an endpoint, of removing a Service and of adding one.
fn costs(services: u32) -> [Allocations; 3] {
    let (mut engine, fleet) = synced(services);
    let mut costs: [Vec<Allocations>; 3] = Default::default();
    for at in (0..REPEATS).map(|repeat| repeat * (services / REPEATS)) {
        costs[0].push(cost(&mut engine, fleet.endpoints(at, 1), 3));
        costs[1].push(cost(&mut engine, fleet.remove(at), 7));
        costs[2].push(cost(&mut engine, fleet.add(at), 7));
    }
    costs.map(median)
}

#[test]
fn a_change_allocates_no_more_among_ten_thousand_services_than_among_one_thousand() {
    let (small, big) = (costs(1_000), costs(10_000));
    for (kind, (small, big)) in ["endpoint", "removal", "addition"].into_iter().zip(small.into_iter().zip(big)) {
        println!("{kind}: {small:?} among 1000 Services, {big:?} among 10000");
        // Names and numbers are a little longer in a big cluster.
        assert!(big.count * 10 <= small.count * 12, "{kind}: {small:?} {big:?}");
        assert!(big.bytes * 10 <= small.bytes * 12, "{kind}: {small:?} {big:?}");
    }
}

#[test]
fn a_change_that_changes_nothing_leaves_nothing_to_do() {
    let (mut engine, fleet) = synced(100);
    engine.apply(fleet.endpoints(7, 0));
    assert!(!engine.has_work());
    assert!(engine.cluster().entry(&fleet::name(7)).is_some());
}
