//! The three kinds of object that are watched: where they are, which of them, and what changes they make.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::model::convert::wire::{self, Field, Metadata};
use crate::model::convert::{self, Interner};
use crate::model::{Change, Note, ObjectKind, Objects, ServiceName, SliceName};

/// What a watch needs to know about a kind of object.
pub(super) trait Kind {
    /// The object as it arrives.
    type Object: DeserializeOwned;
    /// What tells objects apart.
    type Name: Eq + Hash;
    /// The kind in messages.
    const KIND: ObjectKind;
    /// The path of the resource.
    const PATH: &'static str;

    /// The label selector.
    fn labels(&self) -> Option<String>;
    /// The field selector.
    fn fields(&self) -> Option<String>;
    /// `metadata` of an object.
    fn metadata(object: &Self::Object) -> &Field<Metadata>;
    /// The name and the change that an object makes; `None` if it has no usable name.
    fn convert(object: &Self::Object, interner: &mut Interner) -> (Option<(Self::Name, Change)>, Vec<Note>);
    /// The change that the end of an object makes.
    fn deleted(name: Self::Name) -> Option<Change>;
    /// The change that the end of a list makes.
    fn complete(names: HashSet<Self::Name>) -> Option<Change>;
}

/// Services that this proxy takes care of. Selectors are kube-proxy's.
pub(super) struct Services;

impl Kind for Services {
    type Object = wire::Service;
    type Name = ServiceName;
    const KIND: ObjectKind = ObjectKind::Service;
    const PATH: &'static str = "/api/v1/services";

    fn labels(&self) -> Option<String> {
        Some("!service.kubernetes.io/service-proxy-name".to_owned())
    }

    fn fields(&self) -> Option<String> {
        Some("spec.clusterIP!=None".to_owned())
    }

    fn metadata(object: &wire::Service) -> &Field<Metadata> {
        &object.metadata
    }

    fn convert(object: &wire::Service, interner: &mut Interner) -> (Option<(ServiceName, Change)>, Vec<Note>) {
        let (converted, notes) = convert::service(object, interner);
        (converted.map(|(name, service)| (name.clone(), Change::Service(name, service))), notes)
    }

    fn deleted(name: ServiceName) -> Option<Change> {
        Some(Change::Service(name, None))
    }

    fn complete(names: HashSet<ServiceName>) -> Option<Change> {
        Some(Change::Complete(Objects::Services(names)))
    }
}

/// EndpointSlices of Services that have cluster IPs. Selectors are kube-proxy's.
pub(super) struct Slices;

impl Kind for Slices {
    type Object = wire::EndpointSlice;
    type Name = SliceName;
    const KIND: ObjectKind = ObjectKind::EndpointSlice;
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";

    fn labels(&self) -> Option<String> {
        Some("!service.kubernetes.io/headless".to_owned())
    }

    fn fields(&self) -> Option<String> {
        None
    }

    fn metadata(object: &wire::EndpointSlice) -> &Field<Metadata> {
        &object.metadata
    }

    fn convert(object: &wire::EndpointSlice, interner: &mut Interner) -> (Option<(SliceName, Change)>, Vec<Note>) {
        let (converted, notes) = convert::slice(object, interner);
        (converted.map(|(name, slice)| (name.clone(), Change::Slice(name, slice))), notes)
    }

    fn deleted(name: SliceName) -> Option<Change> {
        Some(Change::Slice(name, None))
    }

    fn complete(names: HashSet<SliceName>) -> Option<Change> {
        Some(Change::Complete(Objects::Slices(names)))
    }
}

/// The own Node. When it is deleted the last known one stays in force: a node that still runs pods must still
/// route their traffic.
pub(super) struct Nodes {
    name: Arc<str>,
}

impl Nodes {
    /// The Node of this name.
    pub(super) fn new(name: &str) -> Nodes {
        Nodes { name: Arc::from(name) }
    }
}

impl Kind for Nodes {
    type Object = wire::Node;
    type Name = ();
    const KIND: ObjectKind = ObjectKind::Node;
    const PATH: &'static str = "/api/v1/nodes";

    fn labels(&self) -> Option<String> {
        None
    }

    fn fields(&self) -> Option<String> {
        Some(format!("metadata.name={}", self.name))
    }

    fn metadata(object: &wire::Node) -> &Field<Metadata> {
        &object.metadata
    }

    fn convert(object: &wire::Node, interner: &mut Interner) -> (Option<((), Change)>, Vec<Note>) {
        let (node, notes) = convert::node(object, interner);
        (Some(((), Change::Node(node))), notes)
    }

    fn deleted((): ()) -> Option<Change> {
        None
    }

    fn complete(_: HashSet<()>) -> Option<Change> {
        Some(Change::Complete(Objects::Node))
    }
}
