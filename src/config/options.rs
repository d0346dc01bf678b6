//! Settings that belong together: the connection to the API server, the log; and the defaults of connection tracking.

use std::time::Duration;

use crate::config::LogFormat;
use crate::kernel::Conntrack;

/// How the API server is asked: `clientConnection`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientOptions {
    /// The `Accept` header; empty: what portolan can read.
    pub accept_content_types: String,
    /// The type of request bodies.
    pub content_type: String,
    /// Requests per second, on average; negative: no limit. Never 0.
    pub qps: f32,
    /// Requests that may be made at once after a pause. More than 0.
    pub burst: u32,
}

/// `logging`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingOptions {
    /// The form of log lines.
    pub format: LogFormat,
    /// How much to log, 0 to 10 as kube-proxy counts.
    pub verbosity: u32,
    /// The time between two flushes. Nothing here needs that; it is kept to be shown, as are the streams.
    pub flush_frequency: Duration,
    /// Patterns of the names of modules with verbosities of their own.
    pub vmodule: Vec<(String, u32)>,
    /// The streams of text.
    pub text: StreamOptions,
    /// The streams of JSON.
    pub json: StreamOptions,
}

/// `logging.options.text` and `logging.options.json`. Here all goes to standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Errors to standard error and the rest to standard output.
    pub split_stream: bool,
    /// The buffer of the latter, a quantity such as `64Ki`.
    pub info_buffer_size: String,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".to_owned(),
            qps: 5.0,
            burst: 10,
        }
    }
}

/// kube-proxy's defaults of `conntrack`.
pub(super) const CONNTRACK: Conntrack = Conntrack {
    max_per_core: 32 * 1024,
    min: 128 * 1024,
    tcp_established_timeout: Duration::from_secs(24 * 60 * 60),
    tcp_close_wait_timeout: Duration::from_secs(60 * 60),
    tcp_be_liberal: false,
    udp_timeout: Duration::ZERO,
    udp_stream_timeout: Duration::ZERO,
};

impl Default for LoggingOptions {
    fn default() -> LoggingOptions {
        LoggingOptions {
            format: LogFormat::Text,
            verbosity: 0,
            flush_frequency: Duration::from_secs(5),
            vmodule: Vec::new(),
            text: StreamOptions::default(),
            json: StreamOptions::default(),
        }
    }
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions { split_stream: false, info_buffer_size: "0".to_owned() }
    }
}
