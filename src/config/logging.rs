//! The section `logging` as it was written, by file or flags, and its check.

use std::time::Duration;

use crate::config::duration::GoDuration;
use crate::config::validate::Checker;
use crate::config::{LogFormat, LoggingOptions, StreamOptions};

/// The greatest verbosity that kube-proxy takes.
const GREATEST: i64 = i32::MAX as i64;

/// `logging`. `None` and empty mean the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawLogging {
    pub(crate) format: String,
    pub(crate) flush_frequency: Option<GoDuration>,
    pub(crate) verbosity: Option<i64>,
    pub(crate) vmodule: Vec<(String, i64)>,
    pub(crate) text: StreamOptions,
    pub(crate) json: StreamOptions,
}

impl Checker {
    pub(super) fn logging(&mut self, raw: &RawLogging) -> LoggingOptions {
        let defaults = LoggingOptions::default();
        let format = match raw.format.as_str() {
            "" | "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                self.invalid("logging.format", other, "Unsupported log format: text and json are supported");
                defaults.format
            }
        };
        if format != LogFormat::Text && !raw.vmodule.is_empty() {
            self.forbidden("logging.vmodule", "Only supported for text log format");
        }
        LoggingOptions {
            format,
            flush_frequency: self.flush_frequency(raw.flush_frequency, defaults.flush_frequency),
            verbosity: self.verbosity("logging.verbosity", raw.verbosity.unwrap_or(0)),
            vmodule: self.vmodule(&raw.vmodule),
            text: raw.text.clone(),
            json: raw.json.clone(),
        }
    }

    fn flush_frequency(&mut self, given: Option<GoDuration>, default: Duration) -> Duration {
        let given = given.filter(|given| given.0 != 0).unwrap_or(GoDuration::from(default));
        given.to_std().unwrap_or_else(|| {
            self.invalid("logging.flushFrequency", given, "must be greater than 0");
            default
        })
    }

    fn verbosity(&mut self, path: &str, level: i64) -> u32 {
        match u32::try_from(level) {
            Ok(number) if level <= GREATEST => number,
            _ => {
                self.invalid(path, level, &format!("must be from 0 to {GREATEST}"));
                0
            }
        }
    }

    fn vmodule(&mut self, items: &[(String, i64)]) -> Vec<(String, u32)> {
        let mut checked = Vec::new();
        for (at, (pattern, level)) in items.iter().enumerate() {
            let path = format!("logging.vmodule[{at}]");
            if pattern.is_empty() {
                self.invalid(&path, pattern, "File pattern must not be empty");
            } else if pattern.contains(['=', ',']) {
                self.invalid(&path, pattern, "File pattern must not contain equal sign or comma");
            }
            checked.push((pattern.clone(), self.verbosity(&path, *level)));
        }
        checked
    }
}
