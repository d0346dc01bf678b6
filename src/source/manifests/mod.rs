//! Files as a source: Services, EndpointSlices and Nodes as `kubectl get -o yaml` prints them.
//!
//! A file that cannot be read, or only in part, keeps what it contained when it last could be: an edit that is
//! half done, or wrong, never removes a Service.

mod document;
mod files;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::model::{Change, Note, ObjectKind, Objects};
use crate::source::Event;
pub use crate::source::files::Watching;
use document::{Content, Name, Object};
use files::Files;
pub use watch::watch;

/// Why manifests cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is nothing at the path, or it may not be read.
    #[error("cannot read manifests at {}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread that watches the files did not start.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Reads a file, or all files of a directory whose names end in `.yaml`, `.yml` or `.json`, in the order of their
/// names. The events are what a watch would send at first: changes, complete lists of both kinds, and notes.
/// `node_name` is the name of the Node to take, if one is there.
pub fn load(path: &Path, node_name: &str) -> Result<Vec<Event>, ManifestError> {
    Manifests::new(path, node_name).map(|mut manifests| manifests.reload())
}

/// The manifests at a path, and what has been said about them.
struct Manifests {
    files: Files,
    sent: BTreeMap<Name, Content>,
    noted: BTreeMap<(ObjectKind, String), Vec<Note>>,
    /// Whether complete lists have been sent.
    complete: bool,
}

impl Manifests {
    /// Reads nothing yet, but finds out whether there is something to read.
    fn new(path: &Path, node_name: &str) -> Result<Manifests, ManifestError> {
        let files = Files::new(path, node_name);
        files.names().map_err(|source| ManifestError::Path { path: path.to_owned(), source })?;
        Ok(Manifests { files, sent: BTreeMap::new(), noted: BTreeMap::new(), complete: false })
    }

    /// Reads what has changed and says what is different from before.
    fn reload(&mut self) -> Vec<Event> {
        self.files.reload();
        let mut notes: BTreeMap<(ObjectKind, String), Vec<Note>> = BTreeMap::new();
        let mut note = |note: Note| notes.entry((note.kind, note.object.clone())).or_default().push(note);
        self.files.notes().cloned().for_each(&mut note);
        let mut objects: BTreeMap<&Name, &Object> = BTreeMap::new();
        for object in self.files.objects() {
            if let Some(earlier) = objects.insert(&object.name, object) {
                note(defined_twice(earlier, object));
            }
        }
        objects.values().flat_map(|object| &object.notes).cloned().for_each(&mut note);
        let now = objects.into_iter().filter(|(_, object)| is_served(&object.content));
        let now: BTreeMap<Name, Content> = now.map(|(name, object)| (name.clone(), object.content.clone())).collect();

        let mut events = Vec::new();
        let gone = self.sent.keys().filter(|name| !now.contains_key(name)).filter_map(deletion);
        events.extend(gone.map(Event::Change));
        let changed = now.iter().filter(|(name, content)| self.sent.get(name) != Some(content));
        events.extend(changed.map(|(name, content)| Event::Change(change(name, content))));
        if !std::mem::replace(&mut self.complete, true) {
            events.extend(complete(now.keys()).map(Event::Change));
        }
        events.extend(self.changed_notes(&notes));
        self.sent = now;
        self.noted = notes;
        events
    }

    fn changed_notes(&self, now: &BTreeMap<(ObjectKind, String), Vec<Note>>) -> Vec<Event> {
        let gone = self.noted.keys().filter(|key| !now.contains_key(key)).map(|key| (key, Vec::new()));
        let changed = now.iter().filter(|(key, notes)| self.noted.get(key) != Some(notes));
        let all = gone.chain(changed.map(|(key, notes)| (key, notes.clone())));
        all.map(|((kind, object), notes)| Event::Notes { kind: *kind, object: object.clone(), notes }).collect()
    }
}

fn is_served(content: &Content) -> bool {
    !matches!(content, Content::Service(None) | Content::Slice(None))
}

fn change(name: &Name, content: &Content) -> Change {
    match (name, content) {
        (Name::Service(name), Content::Service(service)) => Change::Service(name.clone(), service.clone()),
        (Name::Slice(name), Content::Slice(slice)) => Change::Slice(name.clone(), slice.clone()),
        (_, Content::Node(node)) => Change::Node(node.clone()),
        // Not made by anything: the name of an object is of the object's kind.
        (Name::Service(name), _) => Change::Service(name.clone(), None),
        (Name::Slice(name), _) => Change::Slice(name.clone(), None),
        (Name::Node(_), _) => Change::Node(crate::model::Node::default()),
    }
}

/// A Node that is gone stays in force, as with the API server.
fn deletion(name: &Name) -> Option<Change> {
    match name {
        Name::Service(name) => Some(Change::Service(name.clone(), None)),
        Name::Slice(name) => Some(Change::Slice(name.clone(), None)),
        Name::Node(_) => None,
    }
}

fn complete<'a>(names: impl Iterator<Item = &'a Name>) -> [Change; 3] {
    let (mut services, mut slices) = (HashSet::new(), HashSet::new());
    for name in names {
        match name {
            Name::Service(name) => drop(services.insert(name.clone())),
            Name::Slice(name) => drop(slices.insert(name.clone())),
            Name::Node(_) => {}
        }
    }
    [Objects::Services(services), Objects::Slices(slices), Objects::Node].map(Change::Complete)
}

fn defined_twice(earlier: &Object, later: &Object) -> Note {
    let (kind, object) = match &later.name {
        Name::Service(name) => (ObjectKind::Service, name.to_string()),
        Name::Slice(name) => (ObjectKind::EndpointSlice, name.to_string()),
        Name::Node(name) => (ObjectKind::Node, name.clone()),
    };
    let reason = format!("defined in {} and again in {}; the last one counts", earlier.place, later.place);
    Note { kind, object, field: String::new(), reason }
}
