//! What became of the configuration file while the daemon ran.

use std::time::SystemTime;

use prometheus::{Gauge, IntCounterVec, IntGauge, Registry};

use super::{opts, registered, seconds};

/// What became of a change of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// It is in force.
    Applied,
    /// It is wrong, or the kernel cannot do it; the one before is in force.
    Refused,
    /// It is right and says what was in force already.
    Unchanged,
}

impl Reloaded {
    const ALL: [Reloaded; 3] = [Reloaded::Applied, Reloaded::Refused, Reloaded::Unchanged];

    fn label(self) -> &'static str {
        match self {
            Reloaded::Applied => "applied",
            Reloaded::Refused => "refused",
            Reloaded::Unchanged => "unchanged",
        }
    }
}

pub(super) struct ConfigurationMetrics {
    reloads: IntCounterVec,
    valid: IntGauge,
    last_reload: Gauge,
}

impl ConfigurationMetrics {
    pub(super) fn register(registry: &Registry) -> Result<ConfigurationMetrics, prometheus::Error> {
        let reloads = opts("config_reloads_total", "Changes of the configuration file, by what became of them.");
        let valid = opts(
            "config_valid",
            "Whether the configuration file is right as it is now: 1 or 0. At 0 the one before is in force.",
        );
        let last_reload = opts(
            "config_last_reload_timestamp_seconds",
            "When another configuration was put in force, in Unix time; 0: not since the start.",
        );
        let metrics = ConfigurationMetrics {
            reloads: registered(registry, IntCounterVec::new(reloads, &["result"])?)?,
            valid: registered(registry, IntGauge::with_opts(valid)?)?,
            last_reload: registered(registry, Gauge::with_opts(last_reload)?)?,
        };
        metrics.valid.set(1);
        for result in Reloaded::ALL {
            let _ = metrics.reloads.with_label_values(&[result.label()]);
        }
        Ok(metrics)
    }

    pub(super) fn reloaded(&self, result: Reloaded, now: SystemTime) {
        self.reloads.with_label_values(&[result.label()]).inc();
        self.valid.set(i64::from(result != Reloaded::Refused));
        if result == Reloaded::Applied {
            self.last_reload.set(seconds(now));
        }
    }
}
