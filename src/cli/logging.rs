//! The log: on standard error, and set anew when the configuration says so.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Flags, LogFormat, LoggingOptions};

type Lines = Box<dyn Layer<Registry> + Send + Sync>;
type Below = Layered<reload::Layer<Lines, Registry>, Registry>;

/// The process has one log, as the library has one place for it.
static CURRENT: OnceLock<LogHandle> = OnceLock::new();

/// The log of this process, to be set anew.
#[derive(Clone)]
pub struct LogHandle {
    lines: reload::Handle<Lines, Registry>,
    filter: reload::Handle<EnvFilter, Below>,
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

    /// From now on lines have this form, and there are as many as this verbosity asks for. `RUST_LOG` overrules the
    /// latter.
    pub fn apply(&self, options: &LoggingOptions) {
        // Errors only when the log itself is gone.
        let _ended =
            self.lines.reload(lines(options.format)).and_then(|()| self.filter.reload(filter(options.verbosity)));
    }
}

/// Sets the log up by the flags alone: what is wrong with the file has to be said, too. With the file read,
/// [`LogHandle::apply`] takes what it says. A second call changes nothing.
pub(super) fn init(flags: &Flags) {
    let (lines, lines_handle) = reload::Layer::new(lines(flags.logging.log_format.unwrap_or_default()));
    let (filter, filter_handle) = reload::Layer::new(filter(flags.logging.verbosity.unwrap_or(0)));
    if tracing_subscriber::registry().with(lines).with(filter).try_init().is_ok() {
        let _set_once = CURRENT.set(LogHandle { lines: lines_handle, filter: filter_handle });
    }
}

/// `-v` means what it means to kube-proxy, roughly: from 2 on more, from 5 on everything.
fn filter(verbosity: u32) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbosity)))
}

fn directives(verbosity: u32) -> &'static str {
    match verbosity {
        0..=1 => "info",
        2..=4 => "info,portolan=debug",
        _ => "debug,portolan=trace",
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
        let of = |verbosity| directives(verbosity);
        assert_eq!((of(0), of(1)), ("info", "info"));
        assert_eq!((of(2), of(4)), ("info,portolan=debug", "info,portolan=debug"));
        assert_eq!((of(5), of(10)), ("debug,portolan=trace", "debug,portolan=trace"));
    }
}
