//! Settings in groups as they were written, by file or flags, and the check of each: the connection to the API server,
//! connection tracking, the process itself.

use std::time::Duration;

use crate::config::ClientOptions;
use crate::config::duration::GoDuration;
use crate::config::options::CONNTRACK;
use crate::config::validate::Checker;
use crate::kernel::Conntrack;

/// `clientConnection`, without the kubeconfig. Empty, absent and 0 all mean the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawClient {
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    pub(crate) qps: Option<f32>,
    pub(crate) burst: Option<i32>,
}

/// `conntrack`. `None` means the default, 0 what the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawConntrack {
    pub(crate) max_per_core: Option<i32>,
    pub(crate) min: Option<i32>,
    pub(crate) tcp_established_timeout: Option<GoDuration>,
    pub(crate) tcp_close_wait_timeout: Option<GoDuration>,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: Option<GoDuration>,
    pub(crate) udp_stream_timeout: Option<GoDuration>,
}

/// What concerns the process and its servers. `None` means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawProcess {
    pub(crate) bind_address_hard_fail: bool,
    pub(crate) profiling: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) config_sync_period: Option<GoDuration>,
    /// Empty: no.
    pub(crate) show_hidden_metrics_for_version: String,
}

impl Checker {
    pub(super) fn client(&mut self, raw: &RawClient) -> ClientOptions {
        let defaults = ClientOptions::default();
        let qps = raw.qps.filter(|qps| *qps != 0.0).unwrap_or(defaults.qps);
        if !qps.is_finite() {
            self.invalid("ClientConnection.QPS", qps, "must be a number");
        }
        let burst = raw
            .burst
            .filter(|burst| *burst != 0)
            .map_or(defaults.burst, |burst| self.count("ClientConnection.Burst", burst));
        let content_type = Some(&raw.content_type).filter(|content_type| !content_type.is_empty());
        ClientOptions {
            accept_content_types: raw.accept_content_types.clone(),
            content_type: content_type.unwrap_or(&defaults.content_type).clone(),
            qps,
            burst,
        }
    }

    pub(super) fn conntrack(&mut self, raw: &RawConntrack) -> Conntrack {
        let defaults = CONNTRACK;
        let path = |field: &str| format!("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.{field}");
        let mut count = |field: &str, given: Option<i32>, default: u32| {
            given.map_or(default, |given| self.count(&path(field), given))
        };
        let max_per_core = count("MaxPerCore", raw.max_per_core, defaults.max_per_core);
        let min = count("Min", raw.min, defaults.min);
        let mut time = |field: &str, given: Option<GoDuration>, default: Duration| {
            given.map_or(default, |given| self.not_negative(&path(field), given))
        };
        Conntrack {
            max_per_core,
            min,
            tcp_established_timeout: time(
                "TCPEstablishedTimeout",
                raw.tcp_established_timeout,
                defaults.tcp_established_timeout,
            ),
            tcp_close_wait_timeout: time(
                "TCPCloseWaitTimeout",
                raw.tcp_close_wait_timeout,
                defaults.tcp_close_wait_timeout,
            ),
            tcp_be_liberal: raw.tcp_be_liberal,
            udp_timeout: time("UDPTimeout", raw.udp_timeout, defaults.udp_timeout),
            udp_stream_timeout: time("UDPStreamTimeout", raw.udp_stream_timeout, defaults.udp_stream_timeout),
        }
    }

    pub(super) fn oom_score_adj(&mut self, given: Option<i32>, default: i32) -> i32 {
        let score = given.unwrap_or(default);
        if !(-1000..=1000).contains(&score) {
            let path = "KubeProxyLinuxConfiguration.OOMScoreAdj";
            self.invalid(path, score, "must be within the range [-1000, 1000]");
        }
        score
    }

    pub(super) fn config_sync_period(&mut self, given: Option<GoDuration>, default: Duration) -> Duration {
        let period = given.unwrap_or(GoDuration::from(default));
        if period.0 <= 0 {
            self.invalid("ConfigSyncPeriod", period, "must be greater than 0");
        }
        period.to_std().unwrap_or_default()
    }

    /// Only the minor version before that of the kube-proxy that we match, or none.
    pub(super) fn hidden_metrics(&mut self, version: &str) -> Option<String> {
        if version.is_empty() {
            return None;
        }
        if version != "1.35" {
            let reason = "must be omitted or have the value \"1.35\", the minor version before";
            self.invalid("ShowHiddenMetricsForVersion", version, reason);
        }
        Some(version.to_owned())
    }

    fn count(&mut self, path: &str, number: i32) -> u32 {
        u32::try_from(number).unwrap_or_else(|_| {
            self.invalid(path, number, "must be greater than or equal to 0");
            0
        })
    }
}
