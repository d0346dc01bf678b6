//! Watching files.

use std::path::Path;
use std::sync::mpsc::Sender;

use crate::source::Event;
use crate::source::files::{Next, Watching};
use crate::source::manifests::{ManifestError, Manifests};

/// Sends what [`load`](super::load) returns and then, from a thread of its own, each difference, until nobody
/// listens or the returned value is dropped. Errors: there is nothing at the path now; later it may come and go.
pub fn watch(path: &Path, node_name: &str, sender: Sender<Event>) -> Result<Watching, ManifestError> {
    let mut manifests = Manifests::new(path, node_name)?;
    let look = move || if send(&sender, manifests.reload()) { Next::Wait } else { Next::End };
    Watching::start("manifests", path, look).map_err(ManifestError::Thread)
}

/// False: nobody listens any more.
fn send(sender: &Sender<Event>, events: Vec<Event>) -> bool {
    events.into_iter().all(|event| sender.send(event).is_ok())
}
