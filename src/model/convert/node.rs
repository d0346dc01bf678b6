//! The own Node.

use crate::model::convert::wire::{self, quoted};
use crate::model::convert::{Interner, Notes};
use crate::model::{Node, Note, ObjectKind};
use crate::net::{parse_cidr, parse_ip};

/// The taint with which the cluster autoscaler marks a node that it is about to remove (KEP-3458).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Makes a model value of a Node. Its name is not looked at: the caller asked for one node only.
pub fn node(object: &wire::Node, interner: &mut Interner) -> (Node, Vec<Note>) {
    let mut notes = Notes::new(ObjectKind::Node, &object.metadata);
    let mut node = Node { eligible: true, ..Node::default() };
    if let Some(metadata) = notes.read(&object.metadata, || "metadata".into()) {
        node.eligible = !metadata.deletion_timestamp.is_present();
        if let Some(labels) = notes.read(&metadata.labels, || "metadata.labels".into()) {
            let zone = notes.text(&labels.zone, || "metadata.labels[topology.kubernetes.io/zone]".into());
            node.zone = if zone.is_empty() { None } else { Some(interner.text(zone)) };
        }
    }
    if let Some(spec) = notes.read(&object.spec, || "spec".into()) {
        read_spec(spec, &mut node, &mut notes);
    }
    if let Some(status) = notes.read(&object.status, || "status".into()) {
        read_addresses(status, &mut node, &mut notes);
    }
    (node, notes.finish())
}

fn read_spec(spec: &wire::NodeSpec, node: &mut Node, notes: &mut Notes) {
    for (at, field) in notes.list(&spec.pod_cidrs, || "spec.podCIDRs".into()) {
        let path = || format!("spec.podCIDRs[{at}]");
        let text = notes.text(field, path);
        match parse_cidr(text) {
            Some(cidr) => node.pod_cidrs.push(cidr),
            None if text.is_empty() => {}
            None => notes.add(path(), format!("{} is not a CIDR; ignored", quoted(text))),
        }
    }
    for (at, field) in notes.list(&spec.taints, || "spec.taints".into()) {
        let taint = notes.read(field, || format!("spec.taints[{at}]"));
        if taint.and_then(|taint| taint.key.get()).is_some_and(|key| key == TO_BE_DELETED) {
            node.eligible = false;
        }
    }
}

fn read_addresses(status: &wire::NodeStatus, node: &mut Node, notes: &mut Notes) {
    let mut external = Vec::new();
    for (at, field) in notes.list(&status.addresses, || "status.addresses".into()) {
        let path = || format!("status.addresses[{at}]");
        let Some(entry) = notes.read(field, path) else { continue };
        let kind = notes.text(&entry.kind, || format!("{}.type", path()));
        // Host names and DNS names are ordinary.
        if !matches!(kind, "InternalIP" | "ExternalIP") {
            continue;
        }
        let text = notes.text(&entry.address, || format!("{}.address", path()));
        match parse_ip(text) {
            Some(address) if kind == "InternalIP" => node.addresses.push(address),
            Some(address) => external.push(address),
            None => notes.add(format!("{}.address", path()), format!("{} is not an IP address; ignored", quoted(text))),
        }
    }
    node.addresses.extend(external);
}
