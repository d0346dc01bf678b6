//! A thread that looks at files again whenever they change.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// A write of several files is one change if there is no longer pause in it than this.
const QUIET: Duration = Duration::from_millis(50);

/// Files that never come to rest are read nevertheless.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// How often to look at the files when the kernel does not tell of changes.
const POLL: Duration = Duration::from_secs(2);

enum Wake {
    Changed,
    Stop,
}

/// What to do after a look at the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Look again when something changes.
    Wait,
    /// Look again when something changes, and at the latest after this time.
    WaitAtMost(Duration),
    /// Never look again.
    End,
}

/// A thread that watches files. Ends when dropped.
#[derive(Debug)]
pub struct Watching {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Watching {
    /// Starts a thread of this name that calls `look` at once and then after each change of the file or directory at
    /// `path`, which need not exist. Changes that follow each other quickly are one. Errors: no thread.
    pub(crate) fn start(
        name: &str,
        path: &Path,
        mut look: impl FnMut() -> Next + Send + 'static,
    ) -> io::Result<Watching> {
        let (wake, woken) = channel();
        // The kernel's events carry the paths that we ask for, and these are compared.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut inotify = Inotify::new(&absolute, wake.clone());
        // Before the first look, so that no change falls between the two.
        inotify.refresh();
        let run = move || {
            loop {
                let next = look();
                if !wait(&woken, &inotify, next) {
                    return;
                }
                inotify.refresh();
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Watching { wake, thread: Some(thread) })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // An error means that the thread has ended by itself.
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for changes to come to rest. False: stop.
fn wait(woken: &Receiver<Wake>, inotify: &Inotify, next: Next) -> bool {
    let poll = if inotify.is_complete() { None } else { Some(POLL) };
    let at_most = match next {
        Next::End => return false,
        Next::Wait => poll,
        Next::WaitAtMost(time) => Some(poll.map_or(time, |poll| poll.min(time))),
    };
    let first = match at_most {
        None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(time) => woken.recv_timeout(time),
    };
    match first {
        Ok(Wake::Changed) => {}
        Err(RecvTimeoutError::Timeout) => return true,
        Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
    }
    let end = Instant::now() + MAX_WAIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match woken.recv_timeout(QUIET.min(left)) {
            Ok(Wake::Changed) if !left.is_zero() => {}
            Ok(Wake::Changed) | Err(RecvTimeoutError::Timeout) => return true,
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Watches of directories. A file is watched by its directory: it is replaced rather than written, by editors as
/// well as by ConfigMap volumes, and then a watch of the file itself ends. If it is a link, the directory that it leads
/// to is watched too: there the file may be written in place. A directory is watched together with the one it is in,
/// since it may be replaced too.
struct Inotify {
    watcher: Option<RecommendedWatcher>,
    path: PathBuf,
    is_dir: bool,
    watched: Vec<PathBuf>,
    /// Whether the kernel tells of every change.
    complete: bool,
}

impl Inotify {
    fn new(path: &Path, wake: Sender<Wake>) -> Inotify {
        let is_dir = path.is_dir();
        let own = path.to_owned();
        let handler = move |event: notify::Result<notify::Event>| {
            if is_of_interest(&event, &own, is_dir) {
                let _ = wake.send(Wake::Changed);
            }
        };
        let watcher = notify::recommended_watcher(handler);
        if let Err(error) = &watcher {
            let path = path.display();
            tracing::warn!(%error, "cannot watch {path} with inotify; looking every {} s", POLL.as_secs());
        }
        Inotify { watcher: watcher.ok(), path: path.to_owned(), is_dir, watched: Vec::new(), complete: false }
    }

    /// The directories to be watched now, each once; `None` for one that is not there.
    fn directories(&self) -> Vec<Option<PathBuf>> {
        let mut all: Vec<Option<PathBuf>> = Vec::new();
        let mut seen = Vec::new();
        let mut add = |path: Option<PathBuf>| match path.as_ref().and_then(|path| std::fs::metadata(path).ok()) {
            Some(found) => {
                // By two paths the kernel would give one watch, which ends with either.
                let identity = (found.dev(), found.ino());
                if !seen.contains(&identity) {
                    seen.push(identity);
                    all.push(path);
                }
            }
            None => all.push(None),
        };
        if self.is_dir {
            add(Some(self.path.clone()));
        }
        add(self.path.parent().map(Path::to_owned));
        if !self.is_dir {
            // A file that is not there may come to be in a directory that nobody knows yet.
            add(self.path.canonicalize().ok().and_then(|target| target.parent().map(Path::to_owned)));
        }
        all
    }

    /// Watches what now stands at each path. All watches are made anew: one whose directory was replaced is dead, and
    /// the new directory may have the number of the old one.
    fn refresh(&mut self) {
        let wanted = self.directories();
        let Some(watcher) = &mut self.watcher else { return };
        for path in self.watched.drain(..) {
            // Errors if the directory is gone, and with it the watch.
            let _ = watcher.unwatch(&path);
        }
        self.complete = true;
        for directory in wanted {
            match directory {
                Some(path) if watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() => self.watched.push(path),
                Some(_) | None => self.complete = false,
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

/// Reading the files ourselves makes events too, which must not lead to reading them again.
fn is_of_interest(event: &notify::Result<notify::Event>, path: &Path, is_dir: bool) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
        EventKind::Access(_) => return false,
        _ => {}
    }
    // What else happens in the directory that the directory is in is none of our business. In the directory of a
    // single file anything counts, since the file may be a link to whatever changed.
    !is_dir || event.paths.is_empty() || event.paths.iter().any(|changed| changed.starts_with(path))
}
