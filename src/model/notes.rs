//! What was wrong with the input, as a value: pure code never logs and never fails as a whole.

use std::fmt;

/// The kind of a Kubernetes object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// A Node.
    Node,
    /// Something in a manifest file that could not be read far enough to know what it is.
    Document,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Service => "Service",
            ObjectKind::EndpointSlice => "EndpointSlice",
            ObjectKind::Node => "Node",
            ObjectKind::Document => "document",
        })
    }
}

/// One thing that is wrong with one object, in words for the person who wrote the object.
///
/// Displays as `Service default/web: spec.ports[0].port: 70000 is not a port number`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Note {
    /// The kind of object.
    pub kind: ObjectKind,
    /// `namespace/name`, or the file and position for a [`ObjectKind::Document`].
    pub object: String,
    /// The path of the field within the object; empty when the whole object is meant.
    pub field: String,
    /// What is wrong with it and what portolan does about it.
    pub reason: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.kind, self.object)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}
