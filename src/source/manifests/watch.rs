//! Watching files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::source::Event;
use crate::source::manifests::{ManifestError, Manifests};

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

/// A thread that watches manifests. Ends when dropped.
#[derive(Debug)]
pub struct Watching {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
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

/// Sends what [`load`](super::load) returns and then, from a thread of its own, each difference, until nobody
/// listens or the returned value is dropped. Errors: there is nothing at the path now; later it may come and go.
pub fn watch(path: &Path, node_name: &str, sender: Sender<Event>) -> Result<Watching, ManifestError> {
    let mut manifests = Manifests::new(path, node_name)?;
    let (wake, woken) = channel();
    // The kernel's events carry the paths that we ask for, and these are compared.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut inotify = Inotify::new(&absolute, wake.clone());
    // Before the first read, so that no change falls between the two.
    inotify.refresh();
    let run = move || {
        if !send(&sender, manifests.reload()) {
            return;
        }
        while wait(&woken, &inotify) {
            inotify.refresh();
            if !send(&sender, manifests.reload()) {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("manifests".to_owned()).spawn(run).map_err(ManifestError::Thread)?;
    Ok(Watching { wake, thread: Some(thread) })
}

/// False: nobody listens any more.
fn send(sender: &Sender<Event>, events: Vec<Event>) -> bool {
    events.into_iter().all(|event| sender.send(event).is_ok())
}

/// Waits for changes to come to rest. False: stop.
fn wait(woken: &Receiver<Wake>, inotify: &Inotify) -> bool {
    let first = if inotify.is_complete() {
        woken.recv().map_err(|_| RecvTimeoutError::Disconnected)
    } else {
        woken.recv_timeout(POLL)
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
/// well as by ConfigMap volumes, and then a watch of the file itself ends. A directory is watched together with
/// the one it is in, since it may be replaced too.
struct Inotify {
    watcher: Option<RecommendedWatcher>,
    directories: Vec<Directory>,
}

struct Directory {
    path: PathBuf,
    /// Device and inode of what is being watched.
    watched: Option<(u64, u64)>,
}

impl Inotify {
    fn new(path: &Path, wake: Sender<Wake>) -> Inotify {
        let is_dir = path.is_dir();
        let own = if is_dir { Some(path) } else { None };
        let directories = own
            .into_iter()
            .chain(path.parent())
            .map(|path| Directory { path: path.to_owned(), watched: None })
            .collect();
        let path = path.to_owned();
        let handler = move |event: notify::Result<notify::Event>| {
            if is_of_interest(&event, &path, is_dir) {
                let _ = wake.send(Wake::Changed);
            }
        };
        let watcher = notify::recommended_watcher(handler);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "cannot watch manifests with inotify; looking every {} s", POLL.as_secs());
        }
        Inotify { watcher: watcher.ok(), directories }
    }

    /// Watches what now stands at each path.
    fn refresh(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for directory in &mut self.directories {
            let now = std::fs::metadata(&directory.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
            if now == directory.watched && now.is_some() {
                continue;
            }
            // Errors if the directory is gone, and with it the watch.
            let _ = watcher.unwatch(&directory.path);
            directory.watched = now.filter(|_| watcher.watch(&directory.path, RecursiveMode::NonRecursive).is_ok());
        }
    }

    /// Whether the kernel tells of every change.
    fn is_complete(&self) -> bool {
        self.watcher.is_some() && self.directories.iter().all(|directory| directory.watched.is_some())
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
