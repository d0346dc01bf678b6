//! The section `logging` as it was written, by file or flags, and its check.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::duration::GoDuration;
use crate::config::validate::Checker;
use crate::config::{LogFormat, LoggingOptions, StreamOptions, gates};

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
    pub(super) fn logging(&mut self, raw: &RawLogging, gates: &BTreeMap<String, bool>) -> LoggingOptions {
        let defaults = LoggingOptions::default();
        let format = match raw.format.as_str() {
            "" | "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                self.invalid("logging.format", other, "Unsupported log format: text and json are supported");
                defaults.format
            }
        };
        if format == LogFormat::Json && !gates::logging_beta(gates) {
            self.forbidden("logging.format", "Log format json is disabled, see LoggingBetaOptions feature");
        }
        if format != LogFormat::Text && !raw.vmodule.is_empty() {
            self.forbidden("logging.vmodule", "Only supported for text log format");
        }
        LoggingOptions {
            format,
            flush_frequency: self.flush_frequency(raw.flush_frequency, defaults.flush_frequency),
            verbosity: self.verbosity("logging.verbosity", raw.verbosity.unwrap_or(0)),
            vmodule: self.vmodule(&raw.vmodule),
            text: self.stream("text", &raw.text, gates),
            json: self.stream("json", &raw.json, gates),
        }
    }

    fn stream(&mut self, format: &str, raw: &StreamOptions, gates: &BTreeMap<String, bool>) -> StreamOptions {
        let path = |field: &str| format!("logging.options.{format}.{field}");
        let zero = is_zero_quantity(&raw.info_buffer_size);
        if zero.is_none() {
            let reason = "must be a quantity: a number with a suffix such as Ki, M or e3, or without";
            self.invalid(&path("infoBufferSize"), &raw.info_buffer_size, reason);
        }
        if !gates::logging_alpha(gates) {
            let disabled = format!("Feature {} is disabled", gates::LOGGING_ALPHA);
            for (field, set) in [("splitStream", raw.split_stream), ("infoBufferSize", zero == Some(false))] {
                if set {
                    self.forbidden(&path(field), &disabled);
                }
            }
        }
        raw.clone()
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

/// Whether a quantity of Kubernetes is 0; `None`: it is no quantity.
fn is_zero_quantity(text: &str) -> Option<bool> {
    const SUFFIXES: [&str; 16] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|digits| digits.parse::<i32>().is_ok());
    let digits = number.chars().filter(char::is_ascii_digit).count();
    let right = digits > 0 && number.len() - digits <= 1 && (exponent || SUFFIXES.contains(&suffix));
    right.then(|| number.chars().all(|letter| matches!(letter, '0' | '.')))
}

#[cfg(test)]
mod tests {
    use super::is_zero_quantity;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for zero in ["0", "0Ki", "0.00", "-0", "+0e5", ".0", "0."] {
            assert_eq!(is_zero_quantity(zero), Some(true), "{zero}");
        }
        for other in ["1", "64Ki", "1.5Gi", "1e3", "2E-2", "-1", "100m", "5E"] {
            assert_eq!(is_zero_quantity(other), Some(false), "{other}");
        }
        for wrong in ["", "Ki", "1ki", "1KiB", "a", "1.2.3", "1 Ki", ".", "1e", "e3"] {
            assert_eq!(is_zero_quantity(wrong), None, "{wrong}");
        }
    }
}
