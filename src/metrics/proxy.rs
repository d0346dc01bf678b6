//! kube-proxy's metrics, as far as they exist in iptables mode: names, labels and buckets are its own, since
//! dashboards and alerts rest on them.

use std::time::SystemTime;

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::{registered, seconds};
use crate::kernel::{Table, TableId};
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Pending, SyncKind, SyncReport, TrafficPolicyLabel};

const FAMILY: &str = "ip_family";

pub(super) struct ProxyMetrics {
    durations: Durations,
    last_sync: GaugeVec,
    last_queued: GaugeVec,
    endpoint_changes: IntCounter,
    endpoint_changes_pending: IntGauge,
    service_changes: IntCounter,
    service_changes_pending: IntGauge,
    no_local_endpoints: IntGaugeVec,
    rules_total: IntGaugeVec,
    rules_last: IntGaugeVec,
    restore_failures: IntCounterVec,
    partial_restore_failures: IntCounterVec,
    conntrack_deleted: IntCounterVec,
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

/// Makes and registers metrics whose names begin with `kubeproxy_`.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("kubeproxy_{name}"), format!("[ALPHA] {help}"))
    }

    fn histogram(&self, name: &str, buckets: Vec<f64>, help: &str) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts { common_opts: Self::opts(name, help), buckets };
        registered(self.0, HistogramVec::new(opts, &[FAMILY])?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
        registered(self.0, GaugeVec::new(Self::opts(name, help), &[FAMILY])?)
    }

    fn count(&self, name: &str, labels: &[&str], help: &str) -> Result<IntGaugeVec, prometheus::Error> {
        registered(self.0, IntGaugeVec::new(Self::opts(name, help), labels)?)
    }

    fn counters(&self, name: &str, label: &str, help: &str) -> Result<IntCounterVec, prometheus::Error> {
        registered(self.0, IntCounterVec::new(Self::opts(name, help), &[label])?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        registered(self.0, IntCounter::with_opts(Self::opts(name, help))?)
    }

    fn pending(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        registered(self.0, IntGauge::with_opts(Self::opts(name, help))?)
    }
}

/// The histograms, all by family and in seconds.
struct Durations {
    sync: HistogramVec,
    full_sync: HistogramVec,
    partial_sync: HistogramVec,
    programming: HistogramVec,
    conntrack: HistogramVec,
}

impl Durations {
    fn register(make: &Maker<'_>) -> Result<Durations, prometheus::Error> {
        Ok(Durations {
            sync: make.histogram(
                "sync_proxy_rules_duration_seconds",
                sync_buckets(),
                "How long a sync took.",
            )?,
            full_sync: make.histogram(
                "sync_full_proxy_rules_duration_seconds",
                sync_buckets(),
                "How long a sync took that looked at everything.",
            )?,
            partial_sync: make.histogram(
                "sync_partial_proxy_rules_duration_seconds",
                sync_buckets(),
                "How long a sync took that looked at changes only.",
            )?,
            programming: make.histogram(
                "network_programming_duration_seconds",
                programming_buckets(),
                "The time from the cause of a change of endpoints, as their slice states it, to the change in the kernel.",
            )?,
            conntrack: make.histogram(
                "conntrack_reconciler_sync_duration_seconds",
                sync_buckets(),
                "How long one clean-up of stale connection tracking entries took.",
            )?,
        })
    }

    fn all(&self) -> [&HistogramVec; 5] {
        [&self.sync, &self.full_sync, &self.partial_sync, &self.programming, &self.conntrack]
    }
}

impl ProxyMetrics {
    pub(super) fn register(registry: &Registry, families: &[IpFamily]) -> Result<ProxyMetrics, prometheus::Error> {
        let make = Maker(registry);
        let metrics = ProxyMetrics {
            durations: Durations::register(&make)?,
            last_sync: make.gauge(
                "sync_proxy_rules_last_timestamp_seconds",
                "When the last successful sync ended, in Unix time.",
            )?,
            last_queued: make.gauge(
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "When a sync was last asked for, in Unix time.",
            )?,
            endpoint_changes: make.counter(
                "sync_proxy_rules_endpoint_changes_total",
                "Reports about EndpointSlices, whether they changed anything or not.",
            )?,
            endpoint_changes_pending: make.pending(
                "sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that wait for the next sync.",
            )?,
            service_changes: make.counter("sync_proxy_rules_service_changes_total", "Reports about Services.")?,
            service_changes_pending: make.pending(
                "sync_proxy_rules_service_changes_pending",
                "Services whose changes wait for the next sync.",
            )?,
            no_local_endpoints: make.count(
                "sync_proxy_rules_no_local_endpoints_total",
                &["traffic_policy", FAMILY],
                "Service ports with traffic policy Local that have endpoints, but none on this node.",
            )?,
            rules_total: make.count(
                "sync_proxy_rules_iptables_total",
                &["table", FAMILY],
                "iptables rules that exist after the last sync.",
            )?,
            rules_last: make.count(
                "sync_proxy_rules_iptables_last",
                &["table", FAMILY],
                "iptables rules that the last sync wrote.",
            )?,
            restore_failures: make.counters(
                "sync_proxy_rules_iptables_restore_failures_total",
                FAMILY,
                "Restores of iptables rules that failed.",
            )?,
            partial_restore_failures: make.counters(
                "sync_proxy_rules_iptables_partial_restore_failures_total",
                FAMILY,
                "Restores that failed in a sync that looked at changes only.",
            )?,
            conntrack_deleted: make.counters(
                "conntrack_reconciler_deleted_entries_total",
                FAMILY,
                "Stale connection tracking entries that were deleted.",
            )?,
            healthz: make.counters("proxy_healthz_total", "code", "Answers of /healthz by status.")?,
            livez: make.counters("proxy_livez_total", "code", "Answers of /livez by status.")?,
        };
        metrics.begin_at_zero(families);
        Ok(metrics)
    }

    fn begin_at_zero(&self, families: &[IpFamily]) {
        for family in families.iter().map(|family| label(*family)) {
            for histogram in self.durations.all() {
                let _ = histogram.with_label_values(&[family]);
            }
            for gauge in [&self.last_sync, &self.last_queued] {
                let _: Gauge = gauge.with_label_values(&[family]);
            }
            for counter in [&self.restore_failures, &self.partial_restore_failures, &self.conntrack_deleted] {
                let _ = counter.with_label_values(&[family]);
            }
            for table in Table::SERVING {
                let _ = self.rules_total.with_label_values(&[table.as_str(), family]);
                let _ = self.rules_last.with_label_values(&[table.as_str(), family]);
            }
            for policy in POLICIES {
                let _ = self.no_local_endpoints.with_label_values(&[policy_label(policy), family]);
            }
        }
        for code in ["200", "503"] {
            let _ = self.healthz.with_label_values(&[code]);
            let _ = self.livez.with_label_values(&[code]);
        }
    }

    /// Records what a sync did in one family. The durations are those of the whole sync: families are programmed
    /// together.
    pub(super) fn observe(&self, report: &SyncReport, family: IpFamily, now: SystemTime) {
        let name = &[label(family)];
        let duration = report.duration.as_secs_f64();
        self.durations.sync.with_label_values(name).observe(duration);
        let failures = report.failed_restores[family];
        self.restore_failures.with_label_values(name).inc_by(failures);
        match report.kind {
            SyncKind::Full => self.durations.full_sync.with_label_values(name).observe(duration),
            SyncKind::Partial => {
                self.durations.partial_sync.with_label_values(name).observe(duration);
                self.partial_restore_failures.with_label_values(name).inc_by(failures);
            }
        }
        for (_, _, took) in report.programmed.iter().filter(|(_, of, _)| *of == family) {
            self.durations.programming.with_label_values(name).observe(took.as_secs_f64());
        }
        for table in Table::SERVING {
            let labels = &[table.as_str(), label(family)];
            if let Some(rules) = report.rules.get(&TableId { family, table }) {
                self.rules_last.with_label_values(labels).set(integer(rules.written));
                self.rules_total.with_label_values(labels).set(integer(rules.total));
            }
        }
        if let Some(cleanup) = &report.flow_cleanup[family] {
            self.durations.conntrack.with_label_values(name).observe(cleanup.duration.as_secs_f64());
            self.conntrack_deleted.with_label_values(name).inc_by(cleanup.deleted);
        }
        if report.healthy() {
            self.last_sync.with_label_values(name).set(seconds(now));
            for policy in POLICIES {
                let count = report.no_local_endpoints[family].get(&policy).copied().unwrap_or(0);
                self.no_local_endpoints.with_label_values(&[policy_label(policy), label(family)]).set(integer(count));
            }
        }
    }

    pub(super) fn set_pending(&self, pending: Pending) {
        self.endpoint_changes_pending.set(integer(pending.slices as u64));
        self.service_changes_pending.set(integer(pending.services as u64));
    }

    pub(super) fn queued(&self, families: &PerFamily<bool>, now: SystemTime) {
        for family in IpFamily::ALL.into_iter().filter(|family| families[*family]) {
            self.last_queued.with_label_values(&[label(family)]).set(seconds(now));
        }
    }

    pub(super) fn service_changed(&self) {
        self.service_changes.inc();
    }

    pub(super) fn endpoints_changed(&self) {
        self.endpoint_changes.inc();
    }

    pub(super) fn healthz_answered(&self, code: u16) {
        self.healthz.with_label_values(&[&code.to_string()]).inc();
    }

    pub(super) fn livez_answered(&self, code: u16) {
        self.livez.with_label_values(&[&code.to_string()]).inc();
    }
}

const POLICIES: [TrafficPolicyLabel; 2] = [TrafficPolicyLabel::Internal, TrafficPolicyLabel::External];

fn policy_label(policy: TrafficPolicyLabel) -> &'static str {
    match policy {
        TrafficPolicyLabel::Internal => "internal",
        TrafficPolicyLabel::External => "external",
    }
}

/// The family as a label, as Kubernetes names it.
pub(super) fn label(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// 1 ms, doubled 14 times: 1 ms to 16.384 s.
fn sync_buckets() -> Vec<f64> {
    (0..15).map(|power| 0.001 * f64::from(1 << power)).collect()
}

/// A quarter and half of a second, every second to a minute, every 5 s to 2 minutes, every 30 s to 5 minutes.
fn programming_buckets() -> Vec<f64> {
    let steps = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(steps.map(f64::from)).collect()
}
