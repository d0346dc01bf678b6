//! Flags of connection tracking, which the file has under `conntrack`.

use crate::config::duration::{GoDuration, parse_duration};
use crate::config::flags::parse_bool;
use crate::config::groups::RawConntrack;

/// kube-proxy's flags of connection tracking. 0 leaves what the kernel has.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Connection tracking (0 leaves what the kernel has)")]
pub struct ConntrackFlags {
    /// Entries per processor [default: 32768]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub conntrack_max_per_core: Option<i32>,
    /// Least number of entries, whatever the number of processors [default: 131072]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub conntrack_min: Option<i32>,
    /// Time that an idle established TCP connection is remembered [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// The same for one that the other side has closed [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Take TCP packets outside the window for valid
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Time that a UDP flow without answer is remembered [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// The same for one with answers [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
}

impl ConntrackFlags {
    /// The flags, of which a file takes the place, with whether they were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 7] {
        [
            ("--conntrack-max-per-core", self.conntrack_max_per_core.is_some()),
            ("--conntrack-min", self.conntrack_min.is_some()),
            ("--conntrack-tcp-timeout-established", self.conntrack_tcp_timeout_established.is_some()),
            ("--conntrack-tcp-timeout-close-wait", self.conntrack_tcp_timeout_close_wait.is_some()),
            ("--conntrack-tcp-be-liberal", self.conntrack_tcp_be_liberal.is_some()),
            ("--conntrack-udp-timeout", self.conntrack_udp_timeout.is_some()),
            ("--conntrack-udp-timeout-stream", self.conntrack_udp_timeout_stream.is_some()),
        ]
    }

    /// The section that the flags alone make.
    pub(super) fn to_raw(&self) -> RawConntrack {
        RawConntrack {
            max_per_core: self.conntrack_max_per_core,
            min: self.conntrack_min,
            tcp_established_timeout: self.conntrack_tcp_timeout_established,
            tcp_close_wait_timeout: self.conntrack_tcp_timeout_close_wait,
            tcp_be_liberal: self.conntrack_tcp_be_liberal.unwrap_or(false),
            udp_timeout: self.conntrack_udp_timeout,
            udp_stream_timeout: self.conntrack_udp_timeout_stream,
        }
    }
}
