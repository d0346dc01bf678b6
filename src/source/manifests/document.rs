//! From the text of a file to objects.

use serde_json::Value;

use crate::model::convert::{self, Interner, object_name, wire};
use crate::model::{EndpointSlice, Node, Note, ObjectKind, Service, ServiceName, SliceName};

/// Whatever `kubectl` prints fits into this, while nested aliases still cannot blow up. Applies to one document.
const MAX_NODES: usize = 50_000_000;

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Service(ServiceName),
    Slice(SliceName),
    Node(String),
}

/// What an object is to us; `None`: nothing that a proxy serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Service(Option<Service>),
    Slice(Option<EndpointSlice>),
    Node(Node),
}

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub name: Name,
    pub content: Content,
    /// What is wrong with it.
    pub notes: Vec<Note>,
    /// Where it stands: `file.yaml#2`.
    pub place: String,
}

/// What a file contains.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub objects: Vec<Object>,
    /// What is wrong with documents, and with objects that have no usable name.
    pub notes: Vec<Note>,
    /// Whether a part of the file cannot be read, so that objects may be missing.
    pub broken: bool,
}

/// Reads a file's text. `file` is its name for messages; `own_node` is the name of the Node to take.
pub(super) fn read(file: &str, text: &str, own_node: &str, interner: &mut Interner) -> Contents {
    let mut reader = Reader { file, own_node, interner, contents: Contents::default(), document: 0 };
    if file.ends_with(".json") {
        reader.read_json(text);
    } else {
        reader.read_yaml(text);
    }
    reader.contents
}

struct Reader<'a> {
    file: &'a str,
    own_node: &'a str,
    interner: &'a mut Interner,
    contents: Contents,
    document: usize,
}

impl Reader<'_> {
    fn read_json(&mut self, text: &str) {
        for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            self.document += 1;
            match value {
                Ok(value) => self.object(value, "", None),
                Err(error) => self.broken(error.to_string()),
            }
        }
    }

    fn read_yaml(&mut self, text: &str) {
        for (first_line, document) in documents(text) {
            self.document += 1;
            // JSON is YAML, except for some of its white space, and this is much faster.
            if document.trim_start().starts_with('{')
                && let Ok(value) = serde_json::from_str(document)
            {
                self.object(value, "", None);
                continue;
            }
            match serde_saphyr::from_str_with_options::<Value>(document, yaml_options()) {
                Ok(value) => self.object(value, "", None),
                Err(error) => self.broken(yaml_error(&error, first_line)),
            }
        }
    }

    fn place(&self) -> String {
        format!("{}#{}", self.file, self.document)
    }

    fn note(&mut self, field: &str, reason: String) {
        let note = Note { kind: ObjectKind::Document, object: self.place(), field: field.to_owned(), reason };
        self.contents.notes.push(note);
    }

    fn broken(&mut self, error: String) {
        self.contents.broken = true;
        self.note("", format!("cannot be read: {error}"));
    }

    /// Takes one object, or the elements of a list, which inherit `listed` (apiVersion and kind) if they have none
    /// of their own.
    fn object(&mut self, value: Value, field: &str, listed: Option<(&str, &str)>) {
        if value.is_null() {
            return;
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let own = text("apiVersion").zip(text("kind"));
        let listed = || listed.map(|(version, kind)| (version.to_owned(), kind.to_owned()));
        let Some((version, kind)) = own.or_else(listed) else {
            return self.note(field, "not an object with apiVersion and kind; left out".to_owned());
        };
        match (version.as_str(), kind.as_str()) {
            ("v1", "List") => self.list(value, field, None),
            ("v1", "ServiceList") => self.list(value, field, Some(("v1", "Service"))),
            ("v1", "NodeList") => self.list(value, field, Some(("v1", "Node"))),
            ("discovery.k8s.io/v1", "EndpointSliceList") => {
                self.list(value, field, Some(("discovery.k8s.io/v1", "EndpointSlice")));
            }
            ("v1", "Service") => self.service(value, field),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.slice(value, field),
            ("v1", "Node") => self.node(value, field),
            (version, "EndpointSlice") if version.starts_with("discovery.k8s.io/") => {
                self.note(field, format!("an EndpointSlice of {version} is not supported; left out"));
            }
            _ => {}
        }
    }

    fn list(&mut self, mut value: Value, field: &str, kind: Option<(&str, &str)>) {
        let items = match value.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => return,
            Some(_) => return self.note(field, "items is not a list; left out".to_owned()),
        };
        for (at, item) in items.into_iter().enumerate() {
            let dot = if field.is_empty() { "" } else { "." };
            self.object(item, &format!("{field}{dot}items[{at}]"), kind);
        }
    }

    /// Reads the wire form. That takes anything, so the error is there for the compiler only.
    fn wire<T: serde::de::DeserializeOwned>(&mut self, mut value: Value, field: &str) -> Option<T> {
        // Objects without namespace go where kubectl would put them.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
            && metadata.get("namespace").is_none_or(Value::is_null)
        {
            metadata.insert("namespace".to_owned(), Value::from("default"));
        }
        serde_json::from_value(value).map_err(|error| self.note(field, error.to_string())).ok()
    }

    fn service(&mut self, value: Value, field: &str) {
        let Some(object) = self.wire::<wire::Service>(value, field) else { return };
        match convert::service(&object, self.interner) {
            (Some((name, service)), notes) => self.add(Name::Service(name), Content::Service(service), notes),
            (None, notes) => self.unnamed(notes, field),
        }
    }

    fn slice(&mut self, value: Value, field: &str) {
        let Some(object) = self.wire::<wire::EndpointSlice>(value, field) else { return };
        match convert::slice(&object, self.interner) {
            (Some((name, slice)), notes) => self.add(Name::Slice(name), Content::Slice(slice), notes),
            (None, notes) => self.unnamed(notes, field),
        }
    }

    fn node(&mut self, value: Value, field: &str) {
        let Ok(object) =
            serde_json::from_value::<wire::Node>(value).map_err(|error| self.note(field, error.to_string()))
        else {
            return;
        };
        if object_name(&object.metadata) == self.own_node {
            let (node, notes) = convert::node(&object, self.interner);
            self.add(Name::Node(self.own_node.to_owned()), Content::Node(node), notes);
        }
    }

    fn add(&mut self, name: Name, content: Content, notes: Vec<Note>) {
        let place = self.place();
        self.contents.objects.push(Object { name, content, notes, place });
    }

    /// Notes about an object that cannot be named are about the place where it stands.
    fn unnamed(&mut self, notes: Vec<Note>, field: &str) {
        for note in notes {
            let path = [field, &note.field].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
            self.note(&path.join("."), format!("{} {}: {}", note.kind, note.object, note.reason));
        }
    }
}

fn yaml_options() -> serde_saphyr::Options {
    let mut budget = serde_saphyr::Budget::default();
    budget.max_nodes = MAX_NODES;
    budget.max_events = 2 * MAX_NODES;
    budget.max_total_scalar_bytes = 1 << 30;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options
}

/// One line, with the position in the file.
fn yaml_error(error: &serde_saphyr::Error, first_line: usize) -> String {
    let text = error.without_snippet().to_string();
    // The first line says what; positions in it count from the document and would mislead.
    let what = text.lines().next().unwrap_or_default();
    let what = what.split(" at line ").next().unwrap_or(what).trim_start_matches("error: ");
    match error.location() {
        Some(location) => format!("line {}: {what}", location.line() as usize + first_line),
        None => what.to_owned(),
    }
}

/// Cuts YAML at its document markers, so that one broken document does not take the others with it: `---` at the
/// beginning of a line ends a document wherever it stands, even within a block of text. With each document comes
/// the number of lines before it. Documents without content are left out.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.get(..3).filter(|marker| matches!(*marker, "---" | "..."));
        if marker.is_some()
            && line.get(3..).is_none_or(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        {
            documents.push((start_line, text.get(start..at).unwrap_or_default()));
            // What follows the marker on its line belongs to the document.
            (start, start_line) = (at + 3, number);
        }
        at += line.len();
    }
    documents.push((start_line, text.get(start..).unwrap_or_default()));
    documents.retain(|(_, document)| document.lines().any(|line| !is_blank(line)));
    documents
}

/// Comments and directives (`%YAML 1.2`) are no content.
fn is_blank(line: &str) -> bool {
    let text = line.trim().trim_start_matches('\u{feff}');
    text.is_empty() || text.starts_with('#') || line.starts_with('%')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_any(file: &str, text: &str) -> Contents {
        read(file, text, "n1", &mut Interner::default())
    }

    #[test]
    fn documents_are_cut_at_markers_and_nowhere_else() {
        let text = "%YAML 1.2\n---\na: |\n  ---\n  x\n--- # second\nb\n---c\n...\n---\n\n# none\n---";
        let cut = documents(text);
        assert_eq!(cut, [(1, "\na: |\n  ---\n  x\n"), (5, " # second\nb\n---c\n")]);
    }

    #[test]
    fn a_file_that_ends_anywhere_is_read_as_far_as_it_goes() {
        let object =
            "apiVersion: v1\nkind: Service\nmetadata: {name: e, namespace: \"b\"}\nspec: {clusterIP: 10.0.0.1}\n";
        let text = format!("{object}---\n{object}");
        for end in 0..text.len() {
            let contents = read_any("a.yaml", &text[..end]);
            if end >= object.len() + "---".len() {
                let first = contents.objects.first().unwrap_or_else(|| panic!("{end}: {contents:?}"));
                assert!(matches!(&first.content, Content::Service(Some(_))), "{end}: {contents:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_failing(
            lines in proptest::collection::vec(prop_oneof![
                "[ \\-]{0,4}[a-z]{0,3}: ?[\\[\\{\\]\\}&*!|>\"'a-z0-9.,%#-]{0,8}",
                Just("---".to_owned()),
                Just("apiVersion: v1".to_owned()),
                Just("kind: Service".to_owned()),
                Just("kind: List".to_owned()),
                Just("items:".to_owned()),
                Just("- metadata: {name: a}".to_owned()),
                ".*",
            ], 0..12)
        ) {
            let text = lines.join("\n");
            read_any("a.yaml", &text);
            read_any("a.json", &text);
        }
    }
}
