//! An engine over a fake kernel, with a clock that the test moves.

use std::time::Duration;

use portolan::backend::Backend;
use portolan::compile::{LocalDetector, NodeContext};
use portolan::iptables::IptablesBackend;
use portolan::kernel::Kernel;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::{Fault, FaultyKernel};
use portolan::model::Change;
use portolan::sync::clock::TestClock;
use portolan::sync::{Engine, Options, SyncReport};

pub(crate) fn context() -> NodeContext {
    let mut context = NodeContext { node_name: "node1".into(), ..NodeContext::default() };
    context.local_detector.v4 = Some(LocalDetector::SourceCidr("10.244.0.0/16".parse().unwrap()));
    context.local_detector.v6 = Some(LocalDetector::SourceCidr("fd00:10:244::/48".parse().unwrap()));
    context
}

pub(crate) struct Rig<K> {
    pub engine: Engine<K, TestClock>,
    pub clock: TestClock,
}

pub(crate) fn fake() -> Rig<FakeKernel> {
    on(FakeKernel::default(), Options::default())
}

pub(crate) fn faulty(kernel: FakeKernel, fault: Fault, options: Options) -> Rig<FaultyKernel<FakeKernel>> {
    on(FaultyKernel::new(kernel, fault), options)
}

pub(crate) fn on<K: Kernel>(kernel: K, options: Options) -> Rig<K> {
    let clock = TestClock::default();
    let context_of = Box::new(|_: &_, _: &_| context());
    let engine = Engine::new(kernel, clock.clone(), Box::new(IptablesBackend), context_of, options);
    Rig { engine, clock }
}

impl<K: Kernel> Rig<K> {
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.engine.apply(change));
    }

    pub(crate) fn sync(&mut self) -> SyncReport {
        self.engine.sync().expect("both lists are complete")
    }

    /// Syncs until nothing is left to do, moving the clock to each retry; fails after a hundred attempts.
    pub(crate) fn settle(&mut self) -> SyncReport {
        for _ in 0..100 {
            let report = self.sync();
            if report.success() {
                return report;
            }
            self.clock.advance(Duration::from_secs(31));
        }
        panic!("does not converge: {:?}", self.sync().failed);
    }
}

impl Rig<FakeKernel> {
    pub(crate) fn text(&self) -> String {
        self.engine.kernel().canonical_text(&IptablesBackend.claims())
    }
}

impl Rig<FaultyKernel<FakeKernel>> {
    pub(crate) fn text(&self) -> String {
        self.engine.kernel().inner.canonical_text(&IptablesBackend.claims())
    }
}

/// What a kernel holds after a first sync of this cluster.
pub(crate) fn from_scratch(world: &crate::cluster::World) -> String {
    let mut rig = fake();
    rig.apply(world.initial());
    assert!(rig.sync().success());
    rig.text()
}

/// Operations that took effect.
pub(crate) fn operations(report: &SyncReport) -> Vec<(&'static str, u64)> {
    report
        .operations
        .iter()
        .filter(|((_, error), _)| error.is_none())
        .map(|((kind, _), count)| (*kind, *count))
        .collect()
}
