//! Each operation, dump and reading of flows failing in turn, with each kind of error: the kernel always ends up as wanted.

use std::collections::BTreeSet;

use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::Fault;
use portolan::kernel::{ErrorKind, Fingerprint, Kernel, KernelError, Op};
use portolan::net::IpFamily;
use portolan::sync::Options;

use crate::altered::{Alter, Altered};
use crate::cluster::{World, local_external, udp, udp_slice};
use crate::rig::{Mode, Rig, Text, fake, fake_in, faulty_in, from_scratch, from_scratch_in, on};

fn before() -> World {
    World::default()
        .service("web", 1, local_external)
        .slice("web", "a", &["10.244.0.2", "10.244.1.2"], |_| {})
        .service("gone", 2, |_| {})
        .slice("gone", "a", &["10.244.0.9"], |_| {})
        .service("dns", 3, udp)
        .slice("dns", "a", &["10.244.0.5"], udp_slice)
}

fn after() -> World {
    World::default()
        .service("web", 1, local_external)
        .slice("web", "a", &["10.244.1.2", "10.244.0.3"], |_| {})
        .service("new", 4, |_| {})
        .slice("new", "a", &["10.244.0.7"], |_| {})
        .slice("new", "v6", &["fd00:10:244::7"], |_| {})
        .service("dns", 3, udp)
        .slice("dns", "a", &["10.244.0.6"], udp_slice)
}

/// A kernel that holds the first cluster, and the text of the second one.
struct Ground {
    mode: Mode,
    before: FakeKernel,
    wanted: String,
}

impl Ground {
    fn of(mode: Mode) -> Ground {
        let mut first = fake_in(mode);
        first.apply(before().initial());
        assert!(first.sync().success());
        Ground { mode, before: first.engine.kernel().clone(), wanted: from_scratch_in(mode, &after()) }
    }

    /// Goes from one cluster to the other on a kernel with one fault in the way. Returns whether the fault struck.
    fn converges(&self, fault: Fault, options: Options) -> bool {
        let Ground { mode, before: kernel, wanted } = self;
        // As a change that comes to a running engine. Its first sync is not to be hit: it reads, and writes nothing.
        let mut running = faulty_in(*mode, kernel.clone(), fault, options);
        running.apply(before().initial());
        running.settle();
        running.apply(before().changes_to(&after()));
        running.settle();
        assert_eq!(running.text(), *wanted, "{mode:?} {fault:?}");

        // As the first sync of a restarted engine.
        let mut restarted = faulty_in(*mode, kernel.clone(), fault, options);
        restarted.apply(after().initial());
        restarted.settle();
        assert_eq!(restarted.text(), *wanted, "{mode:?} {fault:?} after a restart");

        // As the first sync on a node that has nothing.
        let mut fresh = faulty_in(*mode, crate::rig::node(), fault, options);
        fresh.apply(after().initial());
        fresh.settle();
        assert_eq!(fresh.text(), *wanted, "{mode:?} {fault:?} on a fresh node");
        [running, restarted, fresh].iter().any(|rig| rig.engine.kernel().struck())
    }

    fn every_position_until_none_is_hit(&self, fault_at: impl Fn(usize) -> Fault, options: Options) -> usize {
        (0..10_000).take_while(|at| self.converges(fault_at(*at), options)).count()
    }
}

#[test]
fn every_operation_failing_with_every_kind_of_error_converges() {
    for ground in Mode::UNLIKE.map(Ground::of) {
        for kind in ErrorKind::ALL {
            let struck = ground.every_position_until_none_is_hit(|at| Fault::Operation(at, kind), Options::default());
            assert!(struck >= 70, "{:?} {kind:?}: only {struck} operations were hit", ground.mode);
        }
    }
}

#[test]
fn every_operation_failing_converges_with_tiny_transactions_too() {
    let options = Options { operations_per_transaction: 2, ..Options::default() };
    for ground in Mode::UNLIKE.map(Ground::of) {
        for kind in [ErrorKind::Rejected, ErrorKind::Aborted, ErrorKind::Unknown, ErrorKind::Transient] {
            let struck = ground.every_position_until_none_is_hit(|at| Fault::Operation(at, kind), options);
            assert!(struck >= 70, "{:?} {kind:?}: only {struck} operations were hit", ground.mode);
        }
    }
}

#[test]
fn every_dump_failing_with_every_kind_of_error_converges() {
    for (ground, dumps) in Mode::UNLIKE.map(Ground::of).iter().zip([4, 6]) {
        for kind in ErrorKind::ALL {
            let struck = ground.every_position_until_none_is_hit(|at| Fault::Dump(at, kind), Options::default());
            assert!(struck >= dumps, "{:?} {kind:?}: only {struck} dumps were hit", ground.mode);
        }
    }
}

#[test]
fn every_operation_of_a_large_first_fill_failing_converges() {
    // More rules than are inserted one by one, so that shared chains are rewritten.
    let world = (0..130).fold(World::default(), |world, at| {
        let name = format!("s{at}");
        world.service(&name, at, |service| service.cluster_ip_v6 = None).slice(&name, "a", &["10.244.0.2"], |_| {})
    });
    for mode in Mode::UNLIKE {
        let wanted = from_scratch_in(mode, &world);
        for limit in [usize::MAX, 100] {
            for kind in [ErrorKind::Rejected, ErrorKind::Aborted, ErrorKind::Unknown, ErrorKind::Transient] {
                for at in (0..400).step_by(37) {
                    let options = Options { operations_per_transaction: limit, ..Options::default() };
                    let mut rig = faulty_in(mode, crate::rig::node(), Fault::Operation(at, kind), options);
                    rig.apply(world.initial());
                    rig.settle();
                    assert!(rig.text() == wanted, "{mode:?}: {kind:?} at {at} with limit {limit}");
                }
            }
        }
    }
}

/// A kernel that never takes any operation on chains of certain names, as if the tool had a bug with them.
pub(crate) struct Picky {
    refused: BTreeSet<String>,
    /// Whether the error names the operation, or only says that the transaction failed.
    names_culprit: bool,
}

impl Picky {
    fn refuses(&self, op: &Op) -> bool {
        match op {
            Op::ReplaceChain(chain, _) => self.refused.contains(chain.name.as_str()),
            _ => false,
        }
    }
}

impl Alter for Picky {
    fn apply(&mut self, kernel: &mut FakeKernel, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        let Some(first) = transaction.iter().position(|op| self.refuses(op)) else {
            return kernel.apply(transaction);
        };
        (0..transaction.len())
            .map(|at| {
                let named = self.names_culprit && at == first;
                let kind = if named { ErrorKind::Rejected } else { ErrorKind::Aborted };
                Err(KernelError::new(kind, "refused"))
            })
            .collect()
    }
}

pub(crate) fn picky(names_culprit: bool) -> (Rig<Altered<Picky>>, World) {
    let world = (0..30).fold(World::default(), |world, at| {
        let name = format!("s{at}");
        world.service(&name, at, |_| {}).slice(&name, "a", &[&format!("10.244.0.{}", at + 1)], |_| {})
    });
    let bad = crate::cluster::service_name("s17");
    let plans = portolan::compile::compile_service(
        &bad,
        &portolan::model::ServiceEntry::new(
            Some(world.services[&bad].clone()),
            world.slices.iter().filter(|(_, slice)| slice.service == bad).map(|(n, s)| (n.clone(), s.clone())),
        ),
        &crate::rig::context(),
    );
    let chain = portolan::iptables::names::endpoint_chain(&plans[0].name, plans[0].endpoints[0].socket);
    let alter = Picky { refused: [chain.to_string()].into(), names_culprit };
    let kernel = Altered { inner: crate::rig::node(), alter };
    let mut rig = on(kernel, Options::default());
    rig.apply(world.initial());
    (rig, world)
}

#[test]
fn one_service_that_the_kernel_refuses_does_not_keep_the_others_out() {
    for names_culprit in [true, false] {
        let (mut rig, _) = picky(names_culprit);
        let report = rig.sync();
        let failed: Vec<String> =
            report.failed.iter().map(|failed| failed.service.as_ref().unwrap().to_string()).collect();
        assert_eq!(failed, ["ns/s17"], "culprit named: {names_culprit}");
        let services = portolan::kernel::ChainKey::new(
            IpFamily::V4,
            portolan::kernel::Table::Nat,
            portolan::iptables::names::SERVICES,
        );
        let rules = rig.engine.kernel().inner.chain(&services).unwrap();
        assert_eq!(rules.iter().filter(|rule| rule.contains("cluster IP")).count(), 29);
    }
}

#[test]
fn a_refused_service_is_tried_again_alone_and_heals() {
    let (mut rig, world) = picky(true);
    assert_eq!(rig.sync().failed.len(), 1);
    rig.clock.advance(std::time::Duration::from_secs(31));
    let again = rig.sync();
    assert_eq!((again.failed.len(), again.failed[0].attempts), (1, 2));
    rig.engine.kernel_mut().alter.refused.clear();
    rig.settle();
    assert_eq!(
        rig.engine
            .kernel()
            .inner
            .canonical_text(&portolan::backend::Backend::claims(&portolan::iptables::IptablesBackend::default())),
        from_scratch(&world)
    );
}

/// A kernel that can be read, and answers no transaction in time.
struct Hung {
    transactions: usize,
}

impl Alter for Hung {
    fn fingerprint(&mut self, _: &mut FakeKernel) -> Option<Fingerprint> {
        None
    }

    fn apply(&mut self, _: &mut FakeKernel, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        self.transactions += 1;
        vec![Err(KernelError::new(ErrorKind::TimedOut, "no answer")); transaction.len()]
    }
}

#[test]
fn a_tool_that_hangs_is_waited_for_once_and_not_for_each_piece() {
    let mut first = fake();
    first.apply(World::default().initial());
    first.sync();
    let kernel = Altered { inner: first.engine.kernel().clone(), alter: Hung { transactions: 0 } };
    let mut rig = on(kernel, Options { operations_per_transaction: 20, ..Options::default() });
    rig.apply(
        (0..100)
            .fold(World::default(), |world, at| {
                let name = format!("s{at}");
                world.service(&name, at, |service| service.cluster_ip_v6 = None).slice(
                    &name,
                    "a",
                    &["10.244.0.2"],
                    |_| {},
                )
            })
            .initial(),
    );
    let report = rig.sync();
    assert_eq!(report.failed.len(), 100);
    assert_eq!(rig.engine.kernel().alter.transactions, 1, "the rest waits for the retry");
}
