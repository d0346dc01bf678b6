//! What program this is and which of its feature gates are on, under the names that all programs of Kubernetes use.

use prometheus::{IntGaugeVec, Opts, Registry};

use super::registered;

/// The version of kube-proxy that portolan stands in for, with its own behind it (semver's build metadata).
const GIT_VERSION: &str = concat!("v1.36.2+portolan-", env!("CARGO_PKG_VERSION"));

/// As Go names it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

pub(super) struct BuildMetrics {
    features: IntGaugeVec,
}

impl BuildMetrics {
    /// Registers both. Labels that speak of Go are there, since queries name them, and empty.
    pub(super) fn register(registry: &Registry) -> Result<BuildMetrics, prometheus::Error> {
        let labels = [
            ("build_date", ""),
            ("compiler", "rustc"),
            ("git_commit", ""),
            ("git_tree_state", ""),
            ("git_version", GIT_VERSION),
            ("go_version", ""),
            ("major", "1"),
            ("minor", "36"),
            ("platform", PLATFORM),
        ];
        let opts = Opts::new("kubernetes_build_info", "[ALPHA] Always 1; its labels tell the version of this program.");
        let build = registered(registry, IntGaugeVec::new(opts, &labels.map(|(name, _)| name))?)?;
        build.with_label_values(&labels.map(|(_, value)| value)).set(1);
        let opts = Opts::new("kubernetes_feature_enabled", "[BETA] Whether a feature gate is on: 1 or 0.");
        Ok(BuildMetrics { features: registered(registry, IntGaugeVec::new(opts, &["name", "stage"])?)? })
    }

    /// A gate that is generally available has the empty stage.
    pub(super) fn feature(&self, name: &str, enabled: Feature) {
        self.features.with_label_values(&[name, ""]).set(match enabled {
            Feature::On => 1,
            Feature::Off => 0,
        });
    }
}

/// The state of a feature gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// In force.
    On,
    /// Not in force.
    Off,
}
