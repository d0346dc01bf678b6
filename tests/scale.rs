//! What a change costs must not depend on how big the cluster is. Nothing here looks at a clock: the memory that is
//! asked for while a change is carried out is counted, which any pass over all Services would raise.

use std::ops::RangeInclusive;

#[path = "../benches/support/mod.rs"]
mod support;

use portolan::kernel::Kernel;
use portolan::model::Change;
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, Options, SyncKind};
use support::Mode;
use support::allocations::{self, Allocations, Counting, Held};
use support::fleet::{self, Fleet};
use support::null_kernel::NullKernel;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Each kind of change is made so often. A hash table that happens to grow shows in one of them; the median is what a
/// change costs.
const REPEATS: u32 = 21;

fn synced(mode: Mode, services: u32) -> (Engine<NullKernel, SystemClock>, Fleet) {
    let fleet = Fleet::of(services);
    let options = Options { operations_per_transaction: usize::MAX, ..Options::default() };
    let mut engine = support::engine_in(mode, NullKernel::default(), options);
    support::fill(&mut engine, fleet);
    support::sync(&mut engine);
    (engine, fleet)
}

/// What one change costs from its arrival to the kernel's answer.
fn cost<K: Kernel>(
    engine: &mut Engine<K, SystemClock>,
    change: Change,
    transactions: u64,
    operations: RangeInclusive<u64>,
) -> Allocations {
    let (report, allocations) = allocations::of(|| {
        engine.apply(change);
        support::sync(engine)
    });
    assert_eq!((report.kind, report.compiled_services, report.transactions), (SyncKind::Partial, 1, transactions));
    assert!(operations.contains(&support::operations(&report)), "{:?}", report.operations);
    allocations
}

fn median(mut costs: Vec<Allocations>) -> Allocations {
    costs.sort_unstable_by_key(|cost| cost.bytes);
    costs[costs.len() / 2]
}

/// The costs of changing an endpoint, of removing a Service and of adding one.
fn costs(mode: Mode, services: u32) -> [Allocations; 3] {
    let (mut engine, fleet) = synced(mode, services);
    // Transactions are processes. In IPVS mode: a real server more, and one without new connections; all real servers with the
    // virtual server, its address and two elements. An endpoint on this node is an element more.
    let (transactions, operations) = match mode {
        Mode::Iptables => (1, [3..=3, 7..=7, 7..=7]),
        Mode::Ipvs => (0, [2..=4, 9..=12, 9..=11]),
    };
    let mut costs: [Vec<Allocations>; 3] = Default::default();
    for at in (0..REPEATS).map(|repeat| repeat * (services / REPEATS)) {
        costs[0].push(cost(&mut engine, fleet.endpoints(at, 1), transactions, operations[0].clone()));
        costs[1].push(cost(&mut engine, fleet.remove(at), transactions, operations[1].clone()));
        costs[2].push(cost(&mut engine, fleet.add(at), transactions, operations[2].clone()));
    }
    costs.map(median)
}

#[test]
fn a_change_allocates_no_more_among_ten_thousand_services_than_among_one_thousand() {
    for mode in Mode::BOTH {
        let (small, big) = (costs(mode, 1_000), costs(mode, 10_000));
        for (kind, (small, big)) in ["endpoint", "removal", "addition"].into_iter().zip(small.into_iter().zip(big)) {
            println!("{mode:?} {kind}: {small:?} among 1000 Services, {big:?} among 10000");
            // Names and numbers are a little longer in a big cluster.
            assert!(big.count * 10 <= small.count * 12, "{mode:?} {kind}: {small:?} {big:?}");
            assert!(big.bytes * 10 <= small.bytes * 12, "{mode:?} {kind}: {small:?} {big:?}");
        }
    }
}

#[test]
fn a_change_that_changes_nothing_leaves_nothing_to_do() {
    let (mut engine, fleet) = synced(Mode::Iptables, 100);
    engine.apply(fleet.endpoints(7, 0));
    assert!(!engine.has_work());
    assert!(engine.cluster().entry(&fleet::name(7)).is_some());
}

#[test]
fn what_ten_thousand_services_hold_stays_within_its_limits() {
    // Bytes after the first sync and at most until then, for 10000 Services with five endpoints. A twentieth above what it is:
    // not the aim, but so that it gets no worse.
    for (mode, now, peak) in [(Mode::Iptables, 18_950_000, 46_000_000), (Mode::Ipvs, 16_400_000, 21_300_000)] {
        let fleet = Fleet::of(10_000);
        let options = Options { operations_per_transaction: usize::MAX, ..Options::default() };
        let mut engine = support::engine_in(mode, NullKernel::default(), options);
        let (_, cluster) = allocations::held(|| support::fill(&mut engine, fleet));
        let (_, sync) = allocations::held(|| drop(support::sync(&mut engine)));
        println!("{mode:?}: the cluster {cluster:?}, its first sync {sync:?} more");
        let held = Held { now: cluster.now + sync.now, peak: cluster.peak.max(cluster.now + sync.peak) };
        assert!(held.now <= now && held.peak <= peak, "{mode:?}: {held:?}");
    }
}
