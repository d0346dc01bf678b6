//! Where Kubernetes objects come from: the API server, or a directory of manifests.
//!
//! A source sends [`Event`]s into a channel and nothing else; it never sees the cluster.

#![allow(clippy::disallowed_methods, reason = "watches have time-outs, and the files of manifests are read here")]

pub(crate) mod files;
pub mod kube;
pub mod manifests;

use std::time::SystemTime;

use crate::model::{Change, Note, ObjectKind};

/// What a source reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The cluster changed.
    Change(Change),
    /// What is wrong with one object now. Replaces what was said about it before; empty: nothing is wrong any
    /// more, or it is gone.
    Notes {
        /// The kind of object.
        kind: ObjectKind,
        /// `namespace/name`, or the file for a document.
        object: String,
        /// What is wrong.
        notes: Vec<Note>,
    },
    /// A watch was interrupted and begins again, for this reason.
    WatchRestarted {
        /// Which kind of object is watched.
        kind: ObjectKind,
        /// Why, for people.
        reason: String,
    },
    /// The API server was heard: a bookmark, the end of a list, or an event that no list brought. Of events that follow each
    /// other within a second this is reported only for those with a time.
    Heard {
        /// Which kind of object is watched.
        kind: ObjectKind,
        /// When what the event tells of happened; known for EndpointSlices.
        triggered_at: Option<SystemTime>,
    },
}
