//! The cluster as portolan knows it: compact values of our own, and the changes that a source reports.
//!
//! Sources (the API server, a directory of manifests) send [`Change`]s; [`Cluster::apply`] folds one into the
//! state and says what it touches. Invariant: applying a change costs what the change is, never what the
//! cluster is.

mod cluster;
pub mod convert;
mod endpoint;
mod filed;
mod names;
mod node;
mod notes;
mod service;
mod shared;

pub use cluster::{Change, Cluster, Dirty, Objects};
pub use endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints};
pub use filed::{FiledEndpoint, FiledSlice, ServiceEntry};
pub use names::{ServiceName, ServicePortName, SliceName};
pub use node::Node;
pub use notes::{Note, ObjectKind};
pub use service::{Service, ServicePort, TrafficPolicy};
