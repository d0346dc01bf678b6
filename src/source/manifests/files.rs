//! The files, and what each contains or last contained.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::model::convert::Interner;
use crate::model::{Note, ObjectKind};
use crate::source::manifests::document::{self, Contents, Object};

/// Manifests of the largest clusters have a tenth of this; parsed, it takes several times its size in memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

const KEPT: &str = "what it contained before stays in force";

/// All files of a path.
pub(super) struct Files {
    path: PathBuf,
    own_node: String,
    files: BTreeMap<String, File>,
    interner: Interner,
    hasher: RandomState,
    /// What is wrong with the path itself.
    note: Option<Note>,
}

#[derive(Default)]
struct File {
    /// Hash of the bytes that were read last; `None` after an error.
    hash: Option<u64>,
    /// What is in force.
    contents: Contents,
}

impl Files {
    pub(super) fn new(path: &Path, own_node: &str) -> Files {
        Files {
            path: path.to_owned(),
            own_node: own_node.to_owned(),
            files: BTreeMap::new(),
            interner: Interner::default(),
            hasher: RandomState::new(),
            note: None,
        }
    }

    /// The names and paths of the files, sorted by name. Errors: the path cannot be read.
    pub(super) fn names(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let metadata = std::fs::metadata(&self.path)?;
        if !metadata.is_dir() {
            return Ok(BTreeMap::from([(display_name(&self.path), self.path.clone())]));
        }
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = display_name(&path);
            let wanted = matches!(path.extension().and_then(|it| it.to_str()), Some("yaml" | "yml" | "json"));
            // Hidden files are what editors and ConfigMap volumes keep beside the real ones. Through links, as
            // ConfigMap volumes have them.
            if wanted && !name.starts_with('.') && std::fs::metadata(&path).is_ok_and(|it| it.is_file()) {
                names.insert(name, path);
            }
        }
        Ok(names)
    }

    /// Reads the files that have changed and forgets those that are gone.
    pub(super) fn reload(&mut self) {
        self.note = None;
        let names = match self.names() {
            Ok(names) => names,
            Err(error) => {
                let object = self.path.display().to_string();
                let reason = format!("cannot be read: {error}; {KEPT}");
                self.note = Some(Note { kind: ObjectKind::Document, object, field: String::new(), reason });
                return;
            }
        };
        self.files.retain(|name, _| names.contains_key(name));
        for (name, path) in names {
            self.reload_file(&name, &path);
        }
    }

    fn reload_file(&mut self, name: &str, path: &Path) {
        let file = self.files.entry(name.to_owned()).or_default();
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(error) => return file.keep(name, &error.to_string()),
        };
        let hash = self.hasher.hash_one(&bytes);
        if file.hash == Some(hash) {
            return;
        }
        let text = match String::from_utf8(bytes) {
            // An editor that writes in place begins by emptying the file.
            Ok(text) if text.is_empty() && !file.contents.objects.is_empty() => return file.keep(name, "it is empty"),
            Ok(text) => text,
            Err(_) => return file.keep(name, "it is not UTF-8"),
        };
        let mut contents = document::read(name, &text, &self.own_node, &mut self.interner);
        if contents.broken {
            contents.keep_missing(std::mem::take(&mut file.contents.objects));
        }
        *file = File { hash: Some(hash), contents };
    }

    /// All objects in the order of files and documents.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.files.values().flat_map(|file| &file.contents.objects)
    }

    /// What is wrong with files and documents.
    pub(super) fn notes(&self) -> impl Iterator<Item = &Note> {
        self.note.iter().chain(self.files.values().flat_map(|file| &file.contents.notes))
    }
}

impl File {
    /// Leaves everything in force, for this reason.
    fn keep(&mut self, name: &str, reason: &str) {
        self.hash = None;
        let reason = format!("cannot be read: {reason}; {KEPT}");
        let (kind, object) = (ObjectKind::Document, name.to_owned());
        self.contents.notes = vec![Note { kind, object, field: String::new(), reason }];
    }
}

impl Contents {
    /// Adds those earlier objects that are not there: they may stand in the part that cannot be read.
    fn keep_missing(&mut self, earlier: Vec<Object>) {
        let newer: BTreeSet<_> = self.objects.iter().map(|object| &object.name).collect();
        let mut objects: Vec<_> = earlier.into_iter().filter(|object| !newer.contains(&object.name)).collect();
        objects.append(&mut self.objects);
        self.objects = objects;
    }
}

/// Reads a file, unless it is too large.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Not by its metadata alone: it may grow meanwhile.
    let file = std::fs::File::open(path)?;
    let too_large = file.metadata()?.len() > MAX_FILE_BYTES;
    if too_large || file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE_BYTES {
        let text = format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

fn display_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
