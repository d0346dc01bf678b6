//! The log: on standard error, and set anew when the configuration says so.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Flags, LogFormat, LoggingOptions};

type Lines = Box<dyn Layer<Registry> + Send + Sync>;
type Filter = Box<dyn Layer<Below> + Send + Sync>;
type Below = Layered<reload::Layer<Lines, Registry>, Registry>;

/// The process has one log, as the library has one place for it.
static CURRENT: OnceLock<LogHandle> = OnceLock::new();

/// The log of this process, to be set anew.
#[derive(Clone)]
pub struct LogHandle {
    lines: reload::Handle<Lines, Registry>,
    filter: reload::Handle<Filter, Below>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle").finish_non_exhaustive()
    }
}

impl LogHandle {
    /// The log that [`init`] has set up; `None` before that, and where another subscriber was set before, as in tests.
    pub fn current() -> Option<&'static LogHandle> {
        CURRENT.get()
    }

    /// From now on lines have this form, and there are as many as this verbosity and these patterns ask for. `RUST_LOG`
    /// overrules the latter.
    pub fn apply(&self, options: &LoggingOptions) {
        // Errors only when the log itself is gone.
        let _ended = self
            .lines
            .reload(lines(options.format))
            .and_then(|()| self.filter.reload(filter(options.verbosity, &options.vmodule)));
    }
}

/// Sets the log up by the flags alone: what is wrong with the file has to be said, too. With the file read,
/// [`LogHandle::apply`] takes what it says. A second call changes nothing.
pub(super) fn init(flags: &Flags) {
    let (lines, lines_handle) = reload::Layer::new(lines(flags.logging.log_format.unwrap_or_default()));
    let modules = flags.logging.vmodule.as_ref().map_or(&[][..], |modules| &modules.0);
    let (filter, filter_handle) = reload::Layer::new(filter(flags.logging.verbosity.unwrap_or(0), modules));
    if tracing_subscriber::registry().with(lines).with(filter).try_init().is_ok() {
        let _set_once = CURRENT.set(LogHandle { lines: lines_handle, filter: filter_handle });
    }
}

/// Which lines are logged. `RUST_LOG` overrules all else.
fn filter(verbosity: u32, modules: &[(String, u32)]) -> Filter {
    if let Ok(filter) = EnvFilter::try_from_default_env() {
        return filter.boxed();
    }
    let modules = modules.to_vec();
    filter_fn(move |metadata| *metadata.level() <= threshold(verbosity, &modules, metadata.module_path())).boxed()
}

/// `-v` means what it means to kube-proxy, roughly: from 2 on more, from 5 on everything. `--vmodule` gives single modules
/// another number: the first pattern that matches counts, where it asks for more.
fn threshold(verbosity: u32, modules: &[(String, u32)], module: Option<&str>) -> LevelFilter {
    let Some(module) = module.filter(|module| module.split("::").next() == Some("portolan")) else {
        return if verbosity < 5 { LevelFilter::INFO } else { LevelFilter::DEBUG };
    };
    let own = modules.iter().find(|(pattern, _)| names(pattern, module)).map_or(0, |(_, verbosity)| *verbosity);
    match verbosity.max(own) {
        0..=1 => LevelFilter::INFO,
        2..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Whether a pattern of `--vmodule` names a module: without a slash its last part, as `reload`, with one all of it below the
/// crate, as `cli/run/*`.
fn names(pattern: &str, module: &str) -> bool {
    let path: Vec<&str> = module.split("::").skip(1).collect();
    match path.last() {
        Some(last) if !pattern.contains('/') => matches(pattern.as_bytes(), last.as_bytes()),
        Some(_) => matches(pattern.as_bytes(), path.join("/").as_bytes()),
        None => matches(pattern.as_bytes(), b"portolan"),
    }
}

/// `*` is any text without a slash, `?` one letter.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', after)), Some((letter, rest))) => {
            matches(after, text) || (*letter != b'/' && matches(pattern, rest))
        }
        (Some((b'*', after)), None) => matches(after, text),
        (Some((b'?', after)), Some((letter, rest))) => *letter != b'/' && matches(after, rest),
        (Some((wanted, after)), Some((letter, rest))) => wanted == letter && matches(after, rest),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn lines(format: LogFormat) -> Lines {
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_verbosity_is_more_log() {
        let of =
            |verbosity| (threshold(verbosity, &[], Some("portolan::cli")), threshold(verbosity, &[], Some("hyper")));
        for (verbosity, expected) in [
            (0, (LevelFilter::INFO, LevelFilter::INFO)),
            (1, (LevelFilter::INFO, LevelFilter::INFO)),
            (2, (LevelFilter::DEBUG, LevelFilter::INFO)),
            (4, (LevelFilter::DEBUG, LevelFilter::INFO)),
            (5, (LevelFilter::TRACE, LevelFilter::DEBUG)),
            (10, (LevelFilter::TRACE, LevelFilter::DEBUG)),
        ] {
            assert_eq!(of(verbosity), expected, "{verbosity}");
        }
        assert_eq!(threshold(0, &[], None), LevelFilter::INFO);
    }

    #[test]
    fn a_pattern_of_vmodule_asks_for_more_from_the_modules_that_it_names() {
        for (pattern, module, named) in [
            ("reload", "portolan::cli::run::reload", true),
            ("re*d", "portolan::cli::run::reload", true),
            ("reloa?", "portolan::cli::run::reload", true),
            ("run", "portolan::cli::run::reload", false),
            ("cli/run/*", "portolan::cli::run::reload", true),
            ("cli/*", "portolan::cli::run::reload", false),
            ("*/run/reload", "portolan::cli::run::reload", true),
            ("*", "portolan::sync", true),
            ("portolan", "portolan", true),
            ("*", "hyper::client", false),
            ("reload?", "portolan::cli::run::reload", false),
        ] {
            let raised = threshold(0, &[(pattern.to_owned(), 4)], Some(module)) == LevelFilter::DEBUG;
            assert_eq!(raised, named, "{pattern} and {module}");
        }
        let modules = [("sync".to_owned(), 0), ("s*".to_owned(), 9)];
        assert_eq!(threshold(0, &modules, Some("portolan::sync")), LevelFilter::INFO, "the first that matches");
        assert_eq!(threshold(2, &modules, Some("portolan::sync")), LevelFilter::DEBUG, "never less than by -v");
        assert_eq!(threshold(0, &modules, Some("portolan::source")), LevelFilter::TRACE);
    }
}
