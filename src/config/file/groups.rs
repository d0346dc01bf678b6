//! Groups of fields of the file: the connection to the API server, connection tracking, the log, the process.

use serde_json::{Map, Value};

use super::{Reader, is_zero, plain};
use crate::config::StreamOptions;
use crate::config::duration::{GoDuration, parse_duration};
use crate::config::groups::{RawClient, RawConntrack, RawProcess};
use crate::config::logging::RawLogging;

impl Reader<'_> {
    pub(super) fn client(&mut self, section: &mut Map<String, Value>) -> RawClient {
        let prefix = "clientConnection.";
        RawClient {
            accept_content_types: self.string(section, prefix, "acceptContentTypes"),
            content_type: self.string(section, prefix, "contentType"),
            qps: self.number(section, prefix, "qps"),
            burst: self.int32(section, prefix, "burst"),
        }
    }

    pub(super) fn conntrack(&mut self, root: &mut Map<String, Value>) -> RawConntrack {
        let prefix = "conntrack.";
        let mut section = self.section(root, "conntrack");
        let raw = RawConntrack {
            max_per_core: self.int32(&mut section, prefix, "maxPerCore"),
            min: self.int32(&mut section, prefix, "min"),
            tcp_established_timeout: self.exact_duration(&mut section, prefix, "tcpEstablishedTimeout"),
            tcp_close_wait_timeout: self.exact_duration(&mut section, prefix, "tcpCloseWaitTimeout"),
            tcp_be_liberal: self.bool(&mut section, prefix, "tcpBeLiberal").unwrap_or(false),
            udp_timeout: self.duration(&mut section, prefix, "udpTimeout"),
            udp_stream_timeout: self.duration(&mut section, prefix, "udpStreamTimeout"),
        };
        self.rest(&section, prefix, &[]);
        raw
    }

    pub(super) fn process(&mut self, root: &mut Map<String, Value>) -> RawProcess {
        RawProcess {
            bind_address_hard_fail: self.bool(root, "", "bindAddressHardFail").unwrap_or(false),
            profiling: self.bool(root, "", "enableProfiling").unwrap_or(false),
            oom_score_adj: self.int32(root, "", "oomScoreAdj"),
            config_sync_period: self.duration(root, "", "configSyncPeriod"),
            show_hidden_metrics_for_version: self.string(root, "", "showHiddenMetricsForVersion"),
        }
    }

    pub(super) fn logging(&mut self, root: &mut Map<String, Value>) -> RawLogging {
        let prefix = "logging.";
        let mut section = self.section(root, "logging");
        let mut options = self.section(&mut section, "options");
        let raw = RawLogging {
            format: self.string(&mut section, prefix, "format"),
            flush_frequency: self.flush_frequency(&mut section),
            verbosity: self.integer(&mut section, prefix, "verbosity"),
            vmodule: self.vmodule(&mut section),
            text: self.stream(&mut options, "text"),
            json: self.stream(&mut options, "json"),
        };
        self.rest(&options, "logging.options.", &[]);
        self.rest(&section, prefix, &[]);
        raw
    }

    /// A duration, or nanoseconds as an integer.
    fn flush_frequency(&mut self, section: &mut Map<String, Value>) -> Option<GoDuration> {
        match section.get("flushFrequency") {
            Some(Value::Number(_)) => self.integer(section, "logging.", "flushFrequency").map(GoDuration),
            _ => self.exact_duration(section, "logging.", "flushFrequency"),
        }
    }

    fn vmodule(&mut self, section: &mut Map<String, Value>) -> Vec<(String, i64)> {
        let items = match section.remove("vmodule") {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.wrong_type("logging.vmodule".to_owned(), &other, "a list");
                return Vec::new();
            }
        };
        let mut read = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            let prefix = format!("logging.vmodule[{at}].");
            match item {
                Value::Object(mut item) => {
                    let pattern = self.string(&mut item, &prefix, "filePattern");
                    read.push((pattern, self.integer(&mut item, &prefix, "verbosity").unwrap_or(0)));
                    self.rest(&item, &prefix, &[]);
                }
                other => self.wrong_type(format!("logging.vmodule[{at}]"), &other, "a mapping"),
            }
        }
        read
    }

    fn stream(&mut self, options: &mut Map<String, Value>, format: &str) -> StreamOptions {
        let prefix = format!("logging.options.{format}.");
        let mut section = self.section(options, format);
        let split_stream = self.bool(&mut section, &prefix, "splitStream").unwrap_or(false);
        // A quantity: text or a number.
        let size = section.remove("infoBufferSize").filter(|size| !is_zero(size)).map(|size| plain(&size));
        self.rest(&section, &prefix, &[]);
        StreamOptions { split_stream, info_buffer_size: size.unwrap_or(StreamOptions::default().info_buffer_size) }
    }

    fn int32(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Option<i32> {
        let number = self.integer(tree, prefix, field)?;
        i32::try_from(number)
            .inspect_err(|_| self.wrong_type(format!("{prefix}{field}"), &number.into(), "an integer of 32 bits"))
            .ok()
    }

    #[expect(clippy::cast_possible_truncation, reason = "kube-proxy keeps 32 bits too")]
    fn number(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Option<f32> {
        let value = tree.remove(field).filter(|value| !value.is_null())?;
        let number = value.as_f64();
        if number.is_none() {
            self.wrong_type(format!("{prefix}{field}"), &value, "a number");
        }
        number.map(|number| number as f32)
    }

    /// A duration of which 0 has a meaning of its own; absent and empty mean the default.
    fn exact_duration(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Option<GoDuration> {
        let zero = matches!(tree.get(field), Some(Value::String(text)) if parse_duration(text) == Ok(GoDuration(0)));
        self.duration(tree, prefix, field).or(zero.then_some(GoDuration(0)))
    }
}
