//! Metrics of the watches: how often they were interrupted, when the API server was last heard, how late news were.

use std::time::SystemTime;

use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

use super::own::{KINDS, kind_label};
use super::registered;
use crate::model::ObjectKind;

pub(super) struct WatchMetrics {
    restarts: IntCounterVec,
    last_heard: GaugeVec,
    lag: Histogram,
}

impl WatchMetrics {
    pub(super) fn register(registry: &Registry) -> Result<WatchMetrics, prometheus::Error> {
        let restarts = Opts::new("portolan_watch_restarts_total", "Watches that were interrupted and begun again.");
        let last_heard = Opts::new(
            "portolan_watch_last_heard_timestamp_seconds",
            "When an event, a bookmark or the end of a list last came, in Unix time; 0: never. API servers send a bookmark about once a minute.",
        );
        let lag = HistogramOpts {
            common_opts: Opts::new(
                "portolan_watch_lag_seconds",
                "From the change of a pod or Service to the arrival of the EndpointSlice that tells of it, as its annotation last-change-trigger-time says; without what lists bring.",
            ),
            buckets: (0..14).map(|power| 0.01 * f64::from(1 << power)).collect(),
        };
        let metrics = WatchMetrics {
            restarts: registered(registry, IntCounterVec::new(restarts, &["kind"])?)?,
            last_heard: registered(registry, GaugeVec::new(last_heard, &["kind"])?)?,
            lag: registered(registry, Histogram::with_opts(lag)?)?,
        };
        for kind in KINDS {
            let _ = metrics.restarts.with_label_values(&[kind_label(kind)]);
        }
        for kind in [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node] {
            let _ = metrics.heard_of(kind);
        }
        Ok(metrics)
    }

    pub(super) fn restarted(&self, kind: ObjectKind) {
        self.restarts.with_label_values(&[kind_label(kind)]).inc();
    }

    pub(super) fn heard(&self, kind: ObjectKind, triggered_at: Option<SystemTime>, now: SystemTime) {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.heard_of(kind).set(since_epoch.as_secs_f64());
        if let Some(triggered_at) = triggered_at {
            // A clock that is behind that of the control plane makes no news come before they happened.
            self.lag.observe(now.duration_since(triggered_at).unwrap_or_default().as_secs_f64());
        }
    }

    fn heard_of(&self, kind: ObjectKind) -> Gauge {
        self.last_heard.with_label_values(&[kind_label(kind)])
    }
}
