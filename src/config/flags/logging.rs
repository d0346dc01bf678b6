//! Flags of the log, which the file has under `logging`. They count with a file, too: what is given by flag wins.

use crate::config::LogFormat;
use crate::config::duration::{GoDuration, parse_duration};
use crate::config::flags::parse_bool;
use crate::config::logging::RawLogging;

/// kube-proxy's flags of the log.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Log (these count with --config, too)")]
pub struct LoggingFlags {
    /// How much to log: 0 to 10 [default: 0]
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u32>,
    /// How to log [default: text]
    #[arg(long, visible_alias = "logging-format", value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// More from modules of portolan whose names match, as reload=4 or cli/run/*=4; names of kube-proxy's files match nothing
    #[arg(long, value_name = "PATTERN=LEVEL,...", value_parser = parse_vmodule)]
    pub vmodule: Option<Vmodule>,
    /// Time between two flushes; accepted without effect, since each line is written at once
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub log_flush_frequency: Option<GoDuration>,
    /// Errors to stderr and the rest to stdout, for text; accepted without effect, all goes to stderr
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub log_text_split_stream: Option<bool>,
    /// Buffer for split text streams; accepted without effect
    #[arg(long, value_name = "SIZE")]
    pub log_text_info_buffer_size: Option<String>,
    /// Errors to stderr and the rest to stdout, for JSON; accepted without effect, all goes to stderr
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub log_json_split_stream: Option<bool>,
    /// Buffer for split JSON streams; accepted without effect
    #[arg(long, value_name = "SIZE")]
    pub log_json_info_buffer_size: Option<String>,
}

/// The value of `--vmodule`: patterns of file names with their levels, in the order of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmodule(pub Vec<(String, u32)>);

impl LoggingFlags {
    /// Puts what was given over what the file says. Patterns come before those of the file.
    pub(in crate::config) fn apply(&self, raw: &mut RawLogging) {
        if let Some(format) = self.log_format {
            raw.format = format.to_string();
        }
        raw.verbosity = self.verbosity.map(i64::from).or(raw.verbosity);
        raw.flush_frequency = self.log_flush_frequency.or(raw.flush_frequency);
        if let Some(Vmodule(items)) = &self.vmodule {
            let items = items.iter().map(|(pattern, level)| (pattern.clone(), i64::from(*level)));
            raw.vmodule.splice(0..0, items);
        }
        for (stream, split, size) in [
            (&mut raw.text, self.log_text_split_stream, &self.log_text_info_buffer_size),
            (&mut raw.json, self.log_json_split_stream, &self.log_json_info_buffer_size),
        ] {
            stream.split_stream = split.unwrap_or(stream.split_stream);
            if let Some(size) = size {
                stream.info_buffer_size.clone_from(size);
            }
        }
    }
}

/// Items without text between commas are left out, as kube-proxy does it.
fn parse_vmodule(text: &str) -> Result<Vmodule, String> {
    let item = |item: &str| {
        let wrong = || format!("{item:?} is not of the form PATTERN=LEVEL");
        let (pattern, level) = item.split_once('=').filter(|(pattern, _)| !pattern.is_empty()).ok_or_else(wrong)?;
        Ok((pattern.to_owned(), level.parse().map_err(|_| wrong())?))
    };
    text.split(',').filter(|item| !item.is_empty()).map(item).collect::<Result<_, String>>().map(Vmodule)
}
