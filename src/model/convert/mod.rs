//! Kubernetes objects to model values.
//!
//! [`wire`] reads what is used of an object out of JSON; [`service`], [`slice`] and [`node`] make model values of
//! it. Both are total: whatever the input, there is a result, and a [`Note`] for each thing that had to be left out.

mod interner;
mod node;
mod service;
mod slice;
mod time;
pub mod wire;

#[cfg(test)]
mod tests;

pub use interner::Interner;
pub use node::node;
pub use service::service;
pub use slice::slice;
pub use time::parse_rfc3339;

use std::num::NonZeroU16;

use crate::model::{Note, ObjectKind};
use crate::net::Protocol;
use wire::{Field, Metadata, Wire, quoted};

/// Notes beyond this many about one object are only counted: a slice has up to 1000 endpoints, and if one is
/// wrong they mostly all are.
const MAX_NOTES: usize = 16;

/// Collects the notes about one object.
struct Notes {
    kind: ObjectKind,
    object: String,
    notes: Vec<Note>,
    more: usize,
}

impl Notes {
    fn new(kind: ObjectKind, metadata: &Field<Metadata>) -> Notes {
        Notes { kind, object: object_name(metadata), notes: Vec::new(), more: 0 }
    }

    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        if self.notes.len() == MAX_NOTES {
            self.more += 1;
            return;
        }
        let (field, reason) = (field.into(), reason.into());
        self.notes.push(Note { kind: self.kind, object: self.object.clone(), field, reason });
    }

    /// The value of a field; a note if it has the wrong type.
    fn read<'a, T: Wire>(&mut self, field: &'a Field<T>, path: impl FnOnce() -> String) -> Option<&'a T> {
        match field {
            Field::Absent => None,
            Field::Is(value) => Some(value),
            Field::Wrong(what) => {
                self.add(path(), format!("{what} is not {}; ignored", T::EXPECTED));
                None
            }
        }
    }

    /// A text field; empty if it is absent or of the wrong type.
    fn text<'a>(&mut self, field: &'a Field<String>, path: impl FnOnce() -> String) -> &'a str {
        self.read(field, path).map_or("", String::as_str)
    }

    /// The elements of a list with their positions; none if it is absent or of the wrong type.
    fn list<'a, T: Wire>(
        &mut self,
        field: &'a Field<Vec<Field<T>>>,
        path: impl FnOnce() -> String,
    ) -> std::iter::Enumerate<std::slice::Iter<'a, Field<T>>> {
        self.read(field, path).map(Vec::as_slice).unwrap_or_default().iter().enumerate()
    }

    /// The protocol of a port; absent means TCP. `None`: unknown, and there is a note.
    fn protocol(&mut self, field: &Field<String>, path: &str) -> Option<Protocol> {
        let reason = match field {
            Field::Absent => return Some(Protocol::Tcp),
            Field::Is(name) => match name.as_str() {
                "TCP" => return Some(Protocol::Tcp),
                "UDP" => return Some(Protocol::Udp),
                "SCTP" => return Some(Protocol::Sctp),
                other => quoted(other),
            },
            Field::Wrong(what) => what.to_string(),
        };
        self.add(format!("{path}.protocol"), format!("{reason} is not a known protocol; the port is left out"));
        None
    }

    /// A port number that must be there. `None`: it is not one, and there is a note.
    fn port(&mut self, field: &Field<i64>, path: &str) -> Option<NonZeroU16> {
        let reason = match field {
            Field::Is(number) => match port_number(*number) {
                Some(port) => return Some(port),
                None => format!("{number} is not a port number"),
            },
            Field::Absent => "there is no port number".to_owned(),
            Field::Wrong(what) => format!("{what} is not a port number"),
        };
        self.add(format!("{path}.port"), format!("{reason}; the port is left out"));
        None
    }

    /// The name of a port; absent means empty. `None`: not usable, and there is a note.
    fn port_name<'a>(&mut self, field: &'a Field<String>, path: &str) -> Option<&'a str> {
        let reason = match field {
            Field::Absent => return Some(""),
            Field::Is(name) if name.is_empty() || is_name(name, 63) => return Some(name),
            Field::Is(name) => quoted(name),
            Field::Wrong(what) => what.to_string(),
        };
        self.add(format!("{path}.name"), format!("{reason} is not a port name; the port is left out"));
        None
    }

    fn finish(mut self) -> Vec<Note> {
        if self.more > 0 {
            let reason = format!("and {} more of this kind", self.more);
            self.notes.push(Note { kind: self.kind, object: self.object, field: String::new(), reason });
        }
        self.notes
    }
}

/// `namespace/name` of an object for messages and for telling objects apart, whatever stands there; only the name
/// for objects without a namespace.
pub fn object_name(metadata: &Field<Metadata>) -> String {
    let part = |field: Option<&Field<String>>| match field {
        Some(Field::Is(text)) if is_name(text, 253) => text.clone(),
        Some(Field::Is(text)) => quoted(text),
        Some(Field::Wrong(what)) => what.to_string(),
        Some(Field::Absent) | None => "?".to_owned(),
    };
    let metadata = metadata.get();
    let name = part(metadata.map(|metadata| &metadata.name));
    match metadata.map(|metadata| &metadata.namespace) {
        None | Some(Field::Absent) => name,
        namespace => format!("{}/{name}", part(namespace)),
    }
}

/// The namespace and name of an object, if it has usable ones; a note otherwise. Limits as in the API: 63
/// characters for a namespace, `max_name` for the name.
fn names<'a>(metadata: &'a Field<Metadata>, max_name: usize, notes: &mut Notes) -> Option<(&'a str, &'a str)> {
    let Some(metadata) = notes.read(metadata, || "metadata".into()) else {
        notes.add("metadata", "there is none; the object is left out");
        return None;
    };
    let namespace = usable_name(&metadata.namespace, 63, "metadata.namespace", notes);
    let name = usable_name(&metadata.name, max_name, "metadata.name", notes);
    namespace.zip(name)
}

fn usable_name<'a>(field: &'a Field<String>, max: usize, path: &str, notes: &mut Notes) -> Option<&'a str> {
    let reason = match field {
        Field::Is(name) if is_name(name, max) => return Some(name),
        Field::Is(name) => format!("{} is not a name of 1 to {max} letters, digits, '-', '.' and '_'", quoted(name)),
        Field::Absent => "there is none".to_owned(),
        Field::Wrong(what) => format!("{what} is not a string"),
    };
    notes.add(path, format!("{reason}; the object is left out"));
    None
}

/// Whether a text may be used as a name. Wider than the API's rules, but nothing that passes can be mistaken for
/// anything else in a rule, a comment or a log line.
fn is_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

fn port_number(number: i64) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}
