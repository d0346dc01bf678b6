//! Flags of the process and of its health and metrics servers.

use std::net::IpAddr;

use crate::config::duration::{GoDuration, parse_duration};
use crate::config::flags::parse_bool;
use crate::config::groups::RawProcess;
use crate::net::parse_ip;

/// kube-proxy's flags of the process and of its servers.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Process and servers")]
pub struct ProcessFlags {
    /// Where /healthz and /livez are served [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics is served [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Deprecated: port of the health server if its address has none; 0: no health server. Not used with --config
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    pub healthz_port: Option<i32>,
    /// Deprecated: port of the metrics server if its address has none; 0 is refused. Not used with --config
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    pub metrics_port: Option<i32>,
    /// End when an address of the health or the metrics server cannot be bound
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub bind_address_hard_fail: Option<bool>,
    /// Serve profiles on the metrics server
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub profiling: Option<bool>,
    /// Show metrics that this version hides; only the minor version before, 1.35, is taken
    #[arg(long, value_name = "VERSION")]
    pub show_hidden_metrics_for_version: Option<String>,
    /// How willingly the kernel ends this process when memory is short, -1000 to 1000 [default: -999]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// Time after which kube-proxy looks at all objects again; accepted, portolan has no need of it [default: 15m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub config_sync_period: Option<GoDuration>,
    /// File with the boot ID; accepted without effect
    #[arg(long, value_name = "FILES")]
    pub boot_id_file: Option<String>,
    /// File with the machine ID; accepted without effect
    #[arg(long, value_name = "FILES")]
    pub machine_id_file: Option<String>,
}

impl ProcessFlags {
    /// The flags, of which a file takes the place, with whether they were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 9] {
        [
            ("--healthz-bind-address", self.healthz_bind_address.is_some()),
            ("--metrics-bind-address", self.metrics_bind_address.is_some()),
            ("--healthz-port", self.healthz_port.is_some()),
            ("--metrics-port", self.metrics_port.is_some()),
            ("--bind-address-hard-fail", self.bind_address_hard_fail.is_some()),
            ("--profiling", self.profiling.is_some()),
            ("--show-hidden-metrics-for-version", self.show_hidden_metrics_for_version.is_some()),
            ("--oom-score-adj", self.oom_score_adj.is_some()),
            ("--config-sync-period", self.config_sync_period.is_some()),
        ]
    }

    /// The settings that the flags alone make, without the addresses.
    pub(super) fn to_raw(&self) -> RawProcess {
        RawProcess {
            bind_address_hard_fail: self.bind_address_hard_fail.unwrap_or(false),
            profiling: self.profiling.unwrap_or(false),
            oom_score_adj: self.oom_score_adj,
            config_sync_period: self.config_sync_period,
            show_hidden_metrics_for_version: self.show_hidden_metrics_for_version.clone().unwrap_or_default(),
        }
    }

    /// Where the health server listens; `None`: nowhere.
    ///
    /// The default addresses do not follow an IPv6 bind address when flags are used, only when a file is: kube-proxy's
    /// behaviour, on which scrape configurations rest.
    pub(super) fn healthz(&self, ports: DeprecatedPorts) -> Option<String> {
        with_port(&self.healthz_bind_address, "0.0.0.0:10256", ports.of(self.healthz_port))
    }

    /// Where the metrics server listens; `None`: nowhere, which is refused.
    pub(super) fn metrics(&self, ports: DeprecatedPorts) -> Option<String> {
        with_port(&self.metrics_bind_address, "127.0.0.1:10249", ports.of(self.metrics_port))
    }
}

/// Whether the two deprecated flags of ports count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeprecatedPorts {
    Used,
    Ignored,
}

impl DeprecatedPorts {
    fn of(self, port: Option<i32>) -> Option<i32> {
        port.filter(|_| self == DeprecatedPorts::Used)
    }
}

/// The address, with this port if it has none of its own; `None` for port 0. An empty address counts as not given.
fn with_port(given: &Option<String>, default: &str, port: Option<i32>) -> Option<String> {
    let address = given.as_deref().filter(|address| !address.is_empty()).unwrap_or(default);
    match (port, parse_ip(address)) {
        (Some(0), _) => None,
        (Some(port), Some(IpAddr::V4(ip))) => Some(format!("{ip}:{port}")),
        (Some(port), Some(IpAddr::V6(ip))) => Some(format!("[{ip}]:{port}")),
        _ => Some(address.to_owned()),
    }
}
