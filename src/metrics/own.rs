//! Metrics that kube-proxy has no counterpart of: what was wrong with objects, what the kernel said, what drifted.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::proxy::label;
use super::{opts, registered};
use crate::kernel::{Area, ErrorKind, TableId};
use crate::model::ObjectKind;
use crate::net::IpFamily;
use crate::sync::SyncReport;

pub(super) struct OwnMetrics {
    objects_rejected: IntCounterVec,
    objects_with_problems: IntGaugeVec,
    operations: IntCounterVec,
    stage_duration: HistogramVec,
    drift: IntCounterVec,
    failed_dumps: IntCounterVec,
    kernel_errors: IntCounterVec,
    inconsistent_services: IntCounter,
    unprogrammed_services: IntGauge,
    items: IntGaugeVec,
    draining: IntGauge,
}

pub(super) const KINDS: [ObjectKind; 4] =
    [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node, ObjectKind::Document];

/// The kinds of operations ([`crate::kernel::Op::kind`]), for series that begin at 0.
const OPERATIONS: [&str; 7] =
    ["create_chain", "replace_chain", "rewrite_chain", "insert_rule", "delete_rule", "delete_chain", "delete_flow"];

impl OwnMetrics {
    pub(super) fn register(registry: &Registry, families: &[IpFamily]) -> Result<OwnMetrics, prometheus::Error> {
        let counters = |name: &str, labels: &[&str], help: &str| {
            registered(registry, IntCounterVec::new(opts(name, help), labels)?)
        };
        let stages = HistogramOpts {
            common_opts: opts(
                "sync_stage_duration_seconds",
                "How long one stage of a sync took: dump (read the kernel), compute, apply (change it), flows (forget stale ones).",
            ),
            buckets: (0..20).map(|power| 0.000_1 * f64::from(1 << power)).collect(),
        };
        let problems = opts("objects_with_problems", "Objects that have something wrong with them now.");
        let inconsistent = opts(
            "inconsistent_services_total",
            "Services whose state, kept up to date change by change, was not the one computed from scratch. Stays 0.",
        );
        let unprogrammed = opts("unprogrammed_services", "Services that the kernel did not take in the last sync.");
        let items = opts(
            "items",
            "Sets, set elements, virtual servers, real servers, addresses and routes that are programmed.",
        );
        let draining = opts(
            "draining_real_servers",
            "IPVS real servers without new connections that wait for the end of those that they have; in iptables mode too, after a switch.",
        );
        let metrics = OwnMetrics {
            objects_rejected: counters("objects_rejected_total", &["kind"], "Objects refused, wholly or in part.")?,
            objects_with_problems: registered(registry, IntGaugeVec::new(problems, &["kind"])?)?,
            operations: counters("operations_total", &["kind", "result"], "Operations given to the kernel.")?,
            stage_duration: registered(registry, HistogramVec::new(stages, &["stage"])?)?,
            drift: counters(
                "drift_total",
                &["ip_family", "table"],
                "Objects that were found in the kernel other than portolan had left them.",
            )?,
            failed_dumps: counters(
                "failed_dumps_total",
                &["ip_family", "table"],
                "Attempts to read a table that failed.",
            )?,
            kernel_errors: counters(
                "kernel_errors_total",
                &["class"],
                "What the kernel or its tools refused or could not do: operations, reading a table, forgetting flows.",
            )?,
            inconsistent_services: registered(registry, IntCounter::with_opts(inconsistent)?)?,
            unprogrammed_services: registered(registry, IntGauge::with_opts(unprogrammed)?)?,
            items: registered(registry, IntGaugeVec::new(items, &["ip_family", "kind"])?)?,
            draining: registered(registry, IntGauge::with_opts(draining)?)?,
        };
        metrics.begin_at_zero(families);
        Ok(metrics)
    }

    fn begin_at_zero(&self, families: &[IpFamily]) {
        for kind in KINDS.map(kind_label) {
            let _ = self.objects_rejected.with_label_values(&[kind]);
            let _ = self.objects_with_problems.with_label_values(&[kind]);
        }
        for operation in OPERATIONS {
            let _ = self.operations.with_label_values(&[operation, "ok"]);
            for kind in ErrorKind::ALL {
                let _ = self.operations.with_label_values(&[operation, kind.as_str()]);
            }
        }
        for class in ErrorKind::ALL.into_iter().filter(|class| *class != ErrorKind::Aborted) {
            let _ = self.kernel_errors.with_label_values(&[class.as_str()]);
        }
        for stage in ["dump", "compute", "apply", "flows"] {
            let _ = self.stage_duration.with_label_values(&[stage]);
        }
        for table in TableId::serving().filter(|table| families.contains(&table.family)) {
            let _ = self.drift.with_label_values(&area_labels(Area::Table(table)));
            let _ = self.failed_dumps.with_label_values(&area_labels(Area::Table(table)));
        }
    }

    pub(super) fn observe(&self, report: &SyncReport) {
        for ((operation, result), count) in &report.operations {
            let outcome = result.map_or("ok", ErrorKind::as_str);
            self.operations.with_label_values(&[operation, outcome]).inc_by(*count);
            if let Some(class) = result {
                self.kernel_failed(*class, *count);
            }
        }
        let observe = |stage: &str, duration: Duration| {
            self.stage_duration.with_label_values(&[stage]).observe(duration.as_secs_f64());
        };
        observe("compute", report.compute_duration);
        observe("apply", report.apply_duration);
        // A partial sync reads nothing; a zero would hide how long reading takes. So with flows.
        if !report.dump_duration.is_zero() {
            observe("dump", report.dump_duration);
        }
        let cleanups = || IpFamily::ALL.into_iter().filter_map(|family| report.flow_cleanup[family].as_ref());
        if cleanups().next().is_some() {
            observe("flows", cleanups().map(|cleanup| cleanup.duration).sum());
        }
        cleanups().filter_map(|cleanup| cleanup.error.as_ref()).for_each(|error| self.kernel_failed(error.kind, 1));
        for (area, count) in &report.drift {
            self.drift.with_label_values(&area_labels(*area)).inc_by(*count);
        }
        for (area, error) in &report.failed_dumps {
            self.failed_dumps.with_label_values(&area_labels(*area)).inc();
            self.kernel_failed(error.kind, 1);
        }
        for ((family, kind), count) in &report.items {
            let gauge = self.items.with_label_values(&[label(*family), kind.as_str()]);
            gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.draining.set(i64::try_from(report.draining).unwrap_or(i64::MAX));
        self.inconsistent_services.inc_by(report.inconsistent_services);
        self.unprogrammed_services.set(i64::try_from(report.failed.len()).unwrap_or(i64::MAX));
    }

    /// What was not even tried, since another part of its transaction failed, is no error of its own.
    fn kernel_failed(&self, class: ErrorKind, count: u64) {
        if class != ErrorKind::Aborted {
            self.kernel_errors.with_label_values(&[class.as_str()]).inc_by(count);
        }
    }

    pub(super) fn object_rejected(&self, kind: ObjectKind) {
        self.objects_rejected.with_label_values(&[kind_label(kind)]).inc();
    }

    pub(super) fn set_objects_with_problems(&self, kind: ObjectKind, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.objects_with_problems.with_label_values(&[kind_label(kind)]).set(count);
    }
}

pub(super) fn kind_label(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Service => "Service",
        ObjectKind::EndpointSlice => "EndpointSlice",
        ObjectKind::Node => "Node",
        ObjectKind::Document => "document",
    }
}

fn area_labels(area: Area) -> [&'static str; 2] {
    let table = match area {
        Area::Table(table) => table.table.as_str(),
        // Sets, virtual servers, addresses: all that is no table of iptables.
        Area::Items(_) => "items",
    };
    [label(area.family()), table]
}
