//! An engine over a fake kernel, with a clock that the test moves.

use std::time::Duration;

use portolan::backend::Backend;
use portolan::compile::{LocalDetector, NodeContext};
use portolan::iptables::{IptablesBackend, Layout};
use portolan::ipvs::IpvsBackend;
use portolan::kernel::Kernel;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::{Fault, FaultyKernel};
use portolan::model::Change;
use portolan::sync::clock::{Clock, TestClock};
use portolan::sync::{Engine, Options, SyncReport};

pub(crate) fn context() -> NodeContext {
    let mut context = NodeContext { node_name: "node1".into(), ..NodeContext::default() };
    context.local_detector.v4 = Some(LocalDetector::SourceCidr("10.244.0.0/16".parse().unwrap()));
    context.local_detector.v6 = Some(LocalDetector::SourceCidr("fd00:10:244::/48".parse().unwrap()));
    context
}

/// How the engine serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Iptables,
    /// iptables with the compact layout.
    Compact,
    Ipvs,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Iptables, Mode::Compact, Mode::Ipvs];
    /// Those that differ in more than the text of rules.
    pub(crate) const UNLIKE: [Mode; 2] = [Mode::Iptables, Mode::Ipvs];

    pub(crate) fn backend(self) -> Box<dyn Backend> {
        match self {
            Mode::Iptables => Box::new(IptablesBackend { layout: Layout::KubeProxy }),
            Mode::Compact => Box::new(IptablesBackend { layout: Layout::Compact }),
            Mode::Ipvs => Box::new(IpvsBackend::default()),
        }
    }

    /// What the node has to know: the addresses on which node ports are served are those of virtual servers.
    pub(crate) fn context(self) -> NodeContext {
        let mut context = context();
        if self == Mode::Ipvs {
            context.node_addresses.v4 = vec!["192.168.0.1".parse().unwrap(), "192.168.0.2".parse().unwrap()];
            context.node_addresses.v6 = vec!["fd00:192::1".parse().unwrap()];
            context.localhost_node_ports = false;
        }
        context
    }
}

pub(crate) struct Rig<K> {
    pub engine: Engine<K, TestClock>,
    pub clock: TestClock,
    pub mode: Mode,
}

/// The kernel of a node that has its addresses and nothing else.
pub(crate) fn node() -> FakeKernel {
    FakeKernel { addresses: Mode::Ipvs.context().node_addresses, ..FakeKernel::default() }
}

pub(crate) fn fake() -> Rig<FakeKernel> {
    fake_in(Mode::Iptables)
}

pub(crate) fn fake_in(mode: Mode) -> Rig<FakeKernel> {
    on_in(mode, node(), Options::default())
}

pub(crate) fn faulty_in(
    mode: Mode,
    kernel: FakeKernel,
    fault: Fault,
    options: Options,
) -> Rig<FaultyKernel<FakeKernel>> {
    on_in(mode, FaultyKernel::new(kernel, fault), options)
}

pub(crate) fn on<K: Kernel>(kernel: K, options: Options) -> Rig<K> {
    on_in(Mode::Iptables, kernel, options)
}

pub(crate) fn on_in<K: Kernel>(mode: Mode, kernel: K, options: Options) -> Rig<K> {
    let clock = TestClock::default();
    let context_of = Box::new(move |_: &_, _: &_| mode.context());
    let engine = Engine::new(kernel, clock.clone(), mode.backend(), context_of, options);
    Rig { engine, clock, mode }
}

impl<K: Kernel> Rig<K> {
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.engine.apply(change));
    }

    pub(crate) fn sync(&mut self) -> SyncReport {
        self.engine.sync().expect("both lists are complete")
    }

    /// Whether there is something to do at once.
    pub(crate) fn is_due(&self) -> bool {
        self.engine.due().is_some_and(|due| due <= self.clock.now())
    }

    /// Syncs until nothing is left to do, moving the clock to each retry; fails after a hundred attempts.
    pub(crate) fn settle(&mut self) -> SyncReport {
        for _ in 0..100 {
            let report = self.sync();
            if report.success() && report.draining == 0 && !self.is_due() {
                return report;
            }
            self.clock.advance(Duration::from_secs(31));
        }
        panic!("does not converge: {:?}", self.sync().failed);
    }

    /// Syncs until real servers without connections are gone, which have to be looked at once.
    pub(crate) fn sync_and_drain(&mut self) -> SyncReport {
        let report = self.sync();
        if report.draining > 0 || self.is_due() {
            self.clock.advance(Duration::from_secs(1));
            let again = self.sync();
            assert_eq!(
                again.draining, 0,
                "no connection is waited for: {:?} {:?}",
                report.operations, again.operations
            );
        }
        report
    }
}

/// Everything that a kernel holds, in one text.
pub(crate) trait Text {
    fn text(&self) -> String;
}

impl Text for Rig<FakeKernel> {
    fn text(&self) -> String {
        self.engine.kernel().canonical_text(&self.mode.backend().claims())
    }
}

impl Text for Rig<FaultyKernel<FakeKernel>> {
    fn text(&self) -> String {
        self.engine.kernel().inner.canonical_text(&self.mode.backend().claims())
    }
}

/// What a kernel holds after a first sync of this cluster.
pub(crate) fn from_scratch(world: &crate::cluster::World) -> String {
    from_scratch_in(Mode::Iptables, world)
}

pub(crate) fn from_scratch_in(mode: Mode, world: &crate::cluster::World) -> String {
    let mut rig = fake_in(mode);
    rig.apply(world.initial());
    let report = rig.sync();
    assert!(report.success(), "{:?}", report.failed);
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
