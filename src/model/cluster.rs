//! The store: Services with their slices, indexed so that one change touches one entry.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::model::filed::{FiledSlice, Places};
use crate::model::{EndpointSlice, Node, Service, ServiceEntry, ServiceName, SliceName};

type Map<K, V> = HashMap<K, V, RandomState>;

/// One thing that a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The Service is now this; `None`: it is gone, or it is not one that a proxy serves.
    Service(ServiceName, Option<Service>),
    /// The slice is now this; `None`: it is gone, or of no use (FQDN addresses, no Service label).
    Slice(SliceName, Option<EndpointSlice>),
    /// The own Node is now this.
    Node(Node),
    /// A complete list of one kind of object has been delivered, and these were all: any other that we know
    /// has vanished while nobody told us. The first one also opens the gate (see [`Cluster::synced`]).
    Complete(Objects),
}

/// All names of one kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objects {
    /// All Services.
    Services(HashSet<ServiceName>),
    /// All EndpointSlices.
    Slices(HashSet<SliceName>),
    /// The own Node: it was reported, if there is one.
    Node,
}

/// What a change touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Nothing that leads to other packets.
    Nothing,
    /// These Services; more than one when a slice changed its Service, or after a complete list.
    Services(Vec<ServiceName>),
    /// The node, and with it every Service.
    Everything,
}

/// The whole cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    entries: Map<ServiceName, ServiceEntry>,
    /// Which Service a slice is filed under.
    slice_service: Map<SliceName, ServiceName>,
    places: Places,
    node: Node,
    services_synced: bool,
    slices_synced: bool,
    node_synced: bool,
}

impl Cluster {
    /// Folds one change in and says what it touched. A change that leads to the same packets touches nothing.
    pub fn apply(&mut self, change: Change) -> Dirty {
        match change {
            Change::Service(name, service) => self.apply_service(name, service),
            Change::Slice(name, slice) => Dirty::of(self.apply_slice(name, slice)),
            Change::Node(node) if node == self.node => Dirty::Nothing,
            Change::Node(node) => {
                self.node = node;
                Dirty::Everything
            }
            Change::Complete(Objects::Services(all)) => self.complete_services(&all),
            Change::Complete(Objects::Slices(all)) => self.complete_slices(&all),
            Change::Complete(Objects::Node) if self.node_synced => Dirty::Nothing,
            Change::Complete(Objects::Node) => {
                self.node_synced = true;
                Dirty::Everything
            }
        }
    }

    /// Whether complete lists of Services and EndpointSlices have arrived, and the Node if there is one. Before that nothing
    /// may be programmed: an incomplete picture would remove what still carries traffic.
    pub fn synced(&self) -> bool {
        self.services_synced && self.slices_synced && self.node_synced
    }

    /// The entry of one Service name.
    pub fn entry(&self, name: &ServiceName) -> Option<&ServiceEntry> {
        self.entries.get(name)
    }

    /// All entries, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (&ServiceName, &ServiceEntry)> {
        self.entries.iter()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The own Node as last reported.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The same once the source has said whether there is one; `None` before.
    pub fn listed_node(&self) -> Option<&Node> {
        self.node_synced.then_some(&self.node)
    }

    fn apply_service(&mut self, name: ServiceName, service: Option<Service>) -> Dirty {
        let Some(entry) = self.entries.get_mut(&name) else {
            let Some(service) = service else { return Dirty::Nothing };
            let service = Some(Box::new(service));
            self.entries.insert(name.clone(), ServiceEntry { service, slices: Vec::new() });
            return Dirty::Services(vec![name]);
        };
        if entry.service.as_deref() == service.as_ref() {
            return Dirty::Nothing;
        }
        entry.service = service.map(Box::new);
        self.drop_if_empty(&name);
        Dirty::Services(vec![name])
    }

    /// Files the slice under its Service and takes it from where it was filed before.
    fn apply_slice(&mut self, name: SliceName, slice: Option<EndpointSlice>) -> Vec<ServiceName> {
        let mut touched = Vec::new();
        let before = self.slice_service.get(&name).cloned();
        if let Some(before) = before
            && slice.as_ref().is_none_or(|slice| slice.service != before)
        {
            self.slice_service.remove(&name);
            if let Some(entry) = self.entries.get_mut(&before) {
                entry.slices.retain(|other| other.name != name.name);
            }
            self.drop_if_empty(&before);
            touched.push(before);
        }
        let Some(slice) = slice else { return touched };
        let service = slice.service.clone();
        let entry = self.entries.entry(service.clone()).or_default();
        let filed = FiledSlice::new(&name, slice, &mut self.places);
        match entry.slices.binary_search_by(|other| other.name.cmp(&filed.name)) {
            // The trigger time is not kept: it says when, not what.
            Ok(at) if entry.slices[at] == filed => return touched,
            Ok(at) => entry.slices[at] = filed,
            Err(at) => {
                self.slice_service.insert(name, service.clone());
                // Nearly every Service has one slice, and a first push would make room for four.
                if entry.slices.is_empty() {
                    entry.slices.reserve_exact(1);
                }
                entry.slices.insert(at, filed);
            }
        }
        touched.push(service);
        touched
    }

    fn complete_services(&mut self, all: &HashSet<ServiceName>) -> Dirty {
        let first = !std::mem::replace(&mut self.services_synced, true);
        let gone: Vec<ServiceName> = self
            .entries
            .iter()
            .filter(|(name, entry)| entry.service.is_some() && !all.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.apply_service(name.clone(), None);
        }
        if first { Dirty::Everything } else { Dirty::of(gone) }
    }

    fn complete_slices(&mut self, all: &HashSet<SliceName>) -> Dirty {
        let first = !std::mem::replace(&mut self.slices_synced, true);
        let gone: Vec<SliceName> = self.slice_service.keys().filter(|name| !all.contains(*name)).cloned().collect();
        let touched = gone.into_iter().flat_map(|name| self.apply_slice(name, None)).collect();
        if first { Dirty::Everything } else { Dirty::of(touched) }
    }

    fn drop_if_empty(&mut self, name: &ServiceName) {
        if self.entries.get(name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.entries.remove(name);
        }
    }
}

impl Dirty {
    fn of(services: Vec<ServiceName>) -> Dirty {
        if services.is_empty() { Dirty::Nothing } else { Dirty::Services(services) }
    }
}
