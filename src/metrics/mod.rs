//! Metrics: kube-proxy's under their own names, and portolan's.
//!
//! Nothing outside this module knows a metric. The sync engine returns a [`SyncReport`], and [`Metrics::observe`] turns
//! it into numbers; other facts arrive through the few methods below. All series exist from the start, at 0, so that a
//! rate over the first increment is right.

mod build;
mod configuration;
mod external;
mod own;
mod process;
mod proxy;
mod reference;
mod rest_client;
mod watch;

use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{Opts, Registry, TextEncoder};

use crate::model::ObjectKind;
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Pending, SyncReport};

pub use build::Feature;
pub use configuration::Reloaded;
pub use external::PacketCounts;

/// A metric that could not be registered: a name or label that Prometheus does not take. A bug, found by any test.
#[derive(Debug, thiserror::Error)]
#[error("cannot register a metric: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// All metrics of one process, in a registry of their own. Shared behind an `Arc`; every method is safe from any thread.
pub struct Metrics {
    registry: Registry,
    families: PerFamily<bool>,
    proxy: proxy::ProxyMetrics,
    own: own::OwnMetrics,
    rest_client: rest_client::RestClientMetrics,
    watch: watch::WatchMetrics,
    build: build::BuildMetrics,
    configuration: configuration::ConfigurationMetrics,
}

impl Metrics {
    /// Registers everything. Series with the label `ip_family` exist for the families that are programmed.
    pub fn new(families: PerFamily<bool>) -> Result<Metrics, MetricsError> {
        let registry = Registry::new();
        let enabled: Vec<IpFamily> = IpFamily::ALL.into_iter().filter(|family| families[*family]).collect();
        let proxy = proxy::ProxyMetrics::register(&registry, &enabled)?;
        let own = own::OwnMetrics::register(&registry, &enabled)?;
        let rest_client = rest_client::RestClientMetrics::register(&registry)?;
        let watch = watch::WatchMetrics::register(&registry)?;
        registry.register(Box::new(process::ProcessCollector::new()?))?;
        let build = build::BuildMetrics::register(&registry)?;
        let configuration = configuration::ConfigurationMetrics::register(&registry)?;
        Ok(Metrics { registry, families, proxy, own, rest_client, watch, build, configuration })
    }

    /// Serves the packet counters of the kernel's nfacct objects, read by `read` at each scrape. Without this call the
    /// two metrics do not exist, as in kube-proxy on a kernel without nfacct.
    pub fn serve_packet_counters(
        &self,
        read: impl Fn() -> PacketCounts + Send + Sync + 'static,
    ) -> Result<(), MetricsError> {
        Ok(self.registry.register(Box::new(external::PacketCollector::new(read)?))?)
    }

    /// Serves a number that only grows and that somebody else counts: how many programs this process has started.
    pub fn serve_processes_started(&self, read: impl Fn() -> u64 + Send + Sync + 'static) -> Result<(), MetricsError> {
        let name = "portolan_processes_started_total";
        let help = "Programs started since this process began: iptables and its relatives.";
        Ok(self.registry.register(Box::new(external::CallbackCounter::new(name, help, read)?))?)
    }

    /// Records one sync that ended at `now` (wall clock).
    pub fn observe(&self, report: &SyncReport, now: SystemTime) {
        for family in IpFamily::ALL.into_iter().filter(|family| self.families[*family]) {
            self.proxy.observe(report, family, now);
        }
        self.own.observe(report);
    }

    /// A sync was asked for at `now` (wall clock).
    pub fn sync_queued(&self, now: SystemTime) {
        self.proxy.queued(&self.families, now);
    }

    /// Something was reported about a Service, be it news or not.
    pub fn service_changed(&self) {
        self.proxy.service_changed();
    }

    /// Something was reported about an EndpointSlice, be it news or not.
    pub fn endpoints_changed(&self) {
        self.proxy.endpoints_changed();
    }

    /// So many changes wait for the next sync.
    pub fn set_pending(&self, pending: Pending) {
        self.proxy.set_pending(pending);
    }

    /// An answer of `/healthz` with this status.
    pub fn healthz_answered(&self, code: u16) {
        self.proxy.healthz_answered(code);
    }

    /// An answer of `/livez` with this status.
    pub fn livez_answered(&self, code: u16) {
        self.proxy.livez_answered(code);
    }

    /// An object, or a part of one, was refused.
    pub fn object_rejected(&self, kind: ObjectKind) {
        self.own.object_rejected(kind);
    }

    /// So many objects of a kind have something wrong with them now.
    pub fn set_objects_with_problems(&self, kind: ObjectKind, count: usize) {
        self.own.set_objects_with_problems(kind, count);
    }

    /// A watch was interrupted and begins again.
    pub fn watch_restarted(&self, kind: ObjectKind) {
        self.watch.restarted(kind);
    }

    /// The API server was heard about a kind of object at `now` (wall clock), if only in a bookmark. `triggered_at`: the
    /// change that it told of.
    pub fn watch_heard(&self, kind: ObjectKind, triggered_at: Option<SystemTime>, now: SystemTime) {
        self.watch.heard(kind, triggered_at, now);
    }

    /// A request to the API server waited for its turn; for no time where it had one at once.
    pub fn request_limited(&self, verb: &str, host: &str, waited: Duration) {
        self.rest_client.limited(verb, host, waited);
    }

    /// The head of an answer of the API server came, with this status; `None`: no answer will come.
    pub fn request_answered(&self, verb: &str, host: &str, code: Option<u16>, took: Duration) {
        self.rest_client.answered(verb, host, code, took);
    }

    /// Serves how many events were never posted, counted by somebody else.
    pub fn serve_events_dropped(&self, read: impl Fn() -> u64 + Send + Sync + 'static) -> Result<(), MetricsError> {
        let name = "portolan_events_dropped_total";
        let help = "Events that were never posted: too many waited, or the API server did not take them.";
        Ok(self.registry.register(Box::new(external::CallbackCounter::new(name, help, read)?))?)
    }

    /// The configuration file changed at `now` (wall clock), and this became of it.
    pub fn reloaded(&self, result: Reloaded, now: SystemTime) {
        self.configuration.reloaded(result, now);
    }

    /// A feature gate that is generally available is on or off.
    pub fn feature(&self, name: &str, enabled: Feature) {
        self.build.feature(name, enabled);
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        // Encoding fails only on families without a name or without samples, and the registry leaves those out.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// A metric of our own: its name without `portolan_`, and its help.
fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("portolan_{name}"), help)
}

/// Registers a metric and gives it back.
fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Counts of ours are far below 2^53, where a float stops being exact.
#[allow(clippy::cast_precision_loss, reason = "see above")]
fn float(count: u64) -> f64 {
    count as f64
}

fn seconds(since_epoch: SystemTime) -> f64 {
    since_epoch.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests;
