//! The file of `--config` while the daemon runs: read again whenever it changes.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::config::{ConfigError, ConfigFile, Flags, Settings};
use crate::source::files::{Next, Watching};
use crate::sync::clock::{Clock, SystemClock};

/// How long the file may be missing or empty before that counts: editors and scripts remove a file, or cut it off,
/// before they write it anew.
const MISSING: Duration = Duration::from_secs(1);

/// What the file says when it was changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Reload {
    /// The file cannot be used, for these reasons: unreadable, or wrong.
    Refused(Vec<ConfigError>),
    /// The settings that it leads to, which may be those that are in force.
    Read {
        /// From flags and file.
        settings: Box<Settings>,
        /// What is in the file without having an effect.
        warnings: Vec<String>,
    },
}

/// A thread that watches the file of `--config`. Dropping it stops the thread and waits for a callback that is
/// running; so it must not be dropped by the callback.
///
/// The file may be replaced in any way that is usual: written in place, renamed over, deleted and made again, or as
/// kubelet updates the volume of a ConfigMap, where `..data` becomes a link to another directory. Changes that follow
/// each other quickly are one.
#[derive(Debug)]
pub struct ConfigWatch {
    _thread: Watching,
}

impl ConfigWatch {
    /// Reads the file of `flags.config` at once, lest a change since the caller's own reading be missed, and whenever
    /// it changes. Calls `on`, from the watching thread, with what is in it; the same text is reported once.
    ///
    /// Errors: no file in `flags` (`InvalidInput`), or no thread.
    pub fn start(flags: Flags, on: impl Fn(Reload) + Send + 'static) -> io::Result<ConfigWatch> {
        let Some(path) = flags.config.clone() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no configuration file to watch"));
        };
        let mut file = Watched { path: path.clone(), flags, seen: None, missing: None };
        let look = move || match file.look(SystemClock.now()) {
            Look::Nothing => Next::Wait,
            Look::Later(time) => Next::WaitAtMost(time),
            Look::Report(reload) => {
                on(reload);
                Next::Wait
            }
        };
        Ok(ConfigWatch { _thread: Watching::start("config", Path::new(&path), look)? })
    }
}

/// What a look at the file leads to.
#[derive(Debug, PartialEq)]
enum Look {
    /// Nothing that anybody has to know.
    Nothing,
    /// The file may be about to be written; look again after this time.
    Later(Duration),
    Report(Reload),
}

/// The file and what is known of it.
struct Watched {
    path: String,
    flags: Flags,
    /// What the last look found, if it counted: the text, or why there is none.
    seen: Option<Result<String, String>>,
    /// Since when it is missing or empty, and when it was written: a file that is found empty twice may have been
    /// written in between.
    missing: Option<(Instant, Option<SystemTime>)>,
}

impl Watched {
    fn look(&mut self, now: Instant) -> Look {
        let found = match std::fs::read_to_string(&self.path) {
            Ok(text) if !text.trim().is_empty() => Ok(text),
            Ok(_) => Err("is empty".to_owned()),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        if found.is_ok() {
            self.missing = None;
        } else {
            let written = std::fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok();
            let same = self.missing.filter(|(_, before)| *before == written);
            let (since, _) = *self.missing.insert(same.unwrap_or((now, written)));
            let waited = now.saturating_duration_since(since);
            if waited < MISSING {
                return Look::Later(MISSING.saturating_sub(waited));
            }
        }
        if self.seen.as_ref() == Some(&found) {
            return Look::Nothing;
        }
        let result = match &found {
            Ok(text) => self.read(text),
            Err(reason) => {
                let (path, reason) = (self.path.clone(), reason.clone());
                Err(vec![ConfigError { path, value: None, reason }])
            }
        };
        self.seen = Some(found);
        Look::Report(result.unwrap_or_else(Reload::Refused))
    }

    fn read(&self, text: &str) -> Result<Reload, Vec<ConfigError>> {
        let file = ConfigFile::parse(text)?;
        let settings = Box::new(Settings::resolve(&self.flags, Some(&file))?);
        Ok(Reload::Read { settings, warnings: file.warnings })
    }
}

#[cfg(test)]
mod tests;
