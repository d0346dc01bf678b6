//! What benchmarks and the test of scale share: clusters of any size, a kernel that costs nothing, and counted
//! allocations.

#![allow(dead_code, reason = "each of the programs that include this uses a part of it")]

pub(crate) mod allocations;
pub(crate) mod fleet;
pub(crate) mod null_kernel;
pub(crate) mod objects;

use portolan::backend::Backend;
use portolan::compile::{Features, LocalDetector, NodeContext};
use portolan::iptables::IptablesBackend;
use portolan::ipvs::IpvsBackend;
use portolan::kernel::Kernel;
use portolan::net::PerFamily;
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, Options, SyncReport};

use fleet::Fleet;

/// An IPv4 node with kube-proxy's defaults. No packet counters, which need kernel modules that not every machine has.
pub(crate) fn context() -> NodeContext {
    let mut context = NodeContext { node_name: "node-0".into(), ..NodeContext::default() };
    context.families = PerFamily { v4: true, v6: false };
    context.local_detector.v4 = Some(LocalDetector::SourceCidr("10.244.0.0/16".parse().unwrap()));
    context.features = Features { packet_counters: false, ..Features::CURRENT };
    context
}

/// How Services are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Iptables,
    Ipvs,
}

impl Mode {
    pub(crate) const BOTH: [Mode; 2] = [Mode::Iptables, Mode::Ipvs];

    fn backend(self) -> Box<dyn Backend> {
        match self {
            Mode::Iptables => Box::<IptablesBackend>::default(),
            Mode::Ipvs => Box::new(IpvsBackend::default()),
        }
    }
}

pub(crate) fn engine<K: Kernel>(kernel: K, options: Options) -> Engine<K, SystemClock> {
    engine_in(Mode::Iptables, kernel, options)
}

pub(crate) fn engine_in<K: Kernel>(mode: Mode, kernel: K, options: Options) -> Engine<K, SystemClock> {
    engine_with(mode.backend(), kernel, options)
}

pub(crate) fn engine_with<K: Kernel>(backend: Box<dyn Backend>, kernel: K, options: Options) -> Engine<K, SystemClock> {
    Engine::new(kernel, SystemClock, backend, Box::new(|_, _| context()), options)
}

/// Tells an engine everything about a cluster.
pub(crate) fn fill<K: Kernel>(engine: &mut Engine<K, SystemClock>, fleet: Fleet) {
    fleet.changes().for_each(|change| engine.apply(change));
}

/// One sync, which has to succeed.
pub(crate) fn sync<K: Kernel>(engine: &mut Engine<K, SystemClock>) -> SyncReport {
    let report = engine.sync().expect("both lists are complete");
    assert!(report.success(), "{:?} {:?}", report.failed.first(), report.failed_dumps);
    report
}

/// Operations of a sync that took effect.
pub(crate) fn operations(report: &SyncReport) -> u64 {
    report.operations.iter().filter(|((_, error), _)| error.is_none()).map(|(_, count)| count).sum()
}
