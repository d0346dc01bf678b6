//! What a new stream reports, until it has reported everything.

use std::collections::{HashMap, HashSet};

use crate::model::{Change, EndpointSlice, Node, Objects, Service, ServiceName, SliceName};

/// Whether a new stream watches the Node that the one before watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SameNode {
    /// It does. Where there is no such Node any more, what was known of it holds.
    Yes,
    /// It does not. Where there is no such Node, nothing is known of it.
    No,
}

/// Changes that are kept back until there is a complete list of each kind: the objects of a server that has not said everything
/// are not to be mixed with those of the one before. Of each object only the last state is kept.
#[derive(Debug)]
pub(crate) struct Held {
    services: HashMap<ServiceName, Option<Service>>,
    slices: HashMap<SliceName, Option<EndpointSlice>>,
    node: Option<Node>,
    services_complete: bool,
    slices_complete: bool,
    node_complete: bool,
}

/// What a change leads to.
#[derive(Debug)]
pub(super) enum Holding {
    /// Lists are missing.
    Incomplete(Held),
    /// This makes the cluster what it is now, whatever it was.
    Complete(Vec<Change>),
}

impl Held {
    /// Nothing was reported yet.
    pub(crate) fn new(node: SameNode) -> Held {
        Held {
            services: HashMap::new(),
            slices: HashMap::new(),
            node: match node {
                SameNode::Yes => None,
                SameNode::No => Some(Node::default()),
            },
            services_complete: false,
            slices_complete: false,
            node_complete: false,
        }
    }

    /// Takes in one more change.
    pub(super) fn with(mut self, change: Change) -> Holding {
        match change {
            Change::Service(name, service) => drop(self.services.insert(name, service)),
            Change::Slice(name, slice) => drop(self.slices.insert(name, slice)),
            Change::Node(node) => self.node = Some(node),
            Change::Complete(Objects::Services(all)) => {
                self.services.retain(|name, _| all.contains(name));
                self.services_complete = true;
            }
            Change::Complete(Objects::Slices(all)) => {
                self.slices.retain(|name, _| all.contains(name));
                self.slices_complete = true;
            }
            Change::Complete(Objects::Node) => self.node_complete = true,
        }
        if self.services_complete && self.slices_complete && self.node_complete {
            Holding::Complete(self.into_changes())
        } else {
            Holding::Incomplete(self)
        }
    }

    fn into_changes(self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.node.map(Change::Node).into_iter().collect();
        let (services, slices) = (present(&self.services), present(&self.slices));
        changes.extend(self.services.into_iter().map(|(name, service)| Change::Service(name, service)));
        changes.extend(self.slices.into_iter().map(|(name, slice)| Change::Slice(name, slice)));
        let complete = [Objects::Services(services), Objects::Slices(slices), Objects::Node];
        changes.extend(complete.map(Change::Complete));
        changes
    }
}

/// The names of what is there.
fn present<N: Clone + Eq + std::hash::Hash, T>(all: &HashMap<N, Option<T>>) -> HashSet<N> {
    all.iter().filter(|(_, object)| object.is_some()).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cluster;

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "default".into(), name: name.into() }
    }

    fn service(of: &str) -> Change {
        Change::Service(name(of), Some(Service::default()))
    }

    fn gone(of: &str) -> Change {
        Change::Service(name(of), None)
    }

    fn all_services(names: &[&str]) -> Change {
        Change::Complete(Objects::Services(names.iter().map(|of| name(of)).collect()))
    }

    /// What a cluster that had the Services `old` and `kept` knows after these changes; `None`: they are kept back.
    fn after(node: SameNode, changes: Vec<Change>) -> Option<(Vec<String>, Node)> {
        let mut cluster = Cluster::default();
        let before = Node { zone: Some("before".into()), ..Node::default() };
        for change in [service("old"), service("kept"), Change::Node(before)] {
            cluster.apply(change);
        }
        let mut held = Held::new(node);
        for change in changes {
            match held.with(change) {
                Holding::Incomplete(more) => held = more,
                Holding::Complete(changes) => {
                    changes.into_iter().for_each(|change| drop(cluster.apply(change)));
                    let mut names: Vec<String> = cluster.entries().map(|(name, _)| name.name.to_string()).collect();
                    names.sort();
                    return Some((names, cluster.node().clone()));
                }
            }
        }
        None
    }

    fn rest() -> Vec<Change> {
        vec![Change::Complete(Objects::Slices(HashSet::new())), Change::Complete(Objects::Node)]
    }

    #[test]
    fn nothing_is_passed_on_before_all_lists_are_complete() {
        let some = vec![service("kept"), all_services(&["kept"]), Change::Complete(Objects::Node)];
        assert_eq!(after(SameNode::Yes, some), None);
        assert_eq!(after(SameNode::Yes, [vec![service("kept")], rest()].concat()), None);
    }

    #[test]
    fn what_the_new_lists_do_not_have_vanishes_and_the_last_word_on_each_object_counts() {
        let watched =
            vec![service("kept"), service("new"), all_services(&["kept", "new"]), service("late"), gone("new")];
        let (names, node) = after(SameNode::Yes, [watched, rest()].concat()).unwrap();
        assert_eq!(names, ["kept", "late"]);
        assert_eq!(node.zone.as_deref(), Some("before"), "the Node that is not reported is as it was");
    }

    #[test]
    fn a_second_list_takes_the_place_of_the_first() {
        let twice = vec![service("first"), all_services(&["first"]), service("second"), all_services(&["second"])];
        assert_eq!(after(SameNode::Yes, [twice, rest()].concat()).unwrap().0, ["second"]);
    }

    #[test]
    fn of_another_node_nothing_is_known_until_it_is_reported() {
        let without = [vec![all_services(&[])], rest()].concat();
        assert_eq!(after(SameNode::No, without.clone()).unwrap().1, Node::default());
        let other = Node { zone: Some("other".into()), ..Node::default() };
        let with = [vec![Change::Node(other.clone())], without].concat();
        assert_eq!(after(SameNode::No, with).unwrap().1, other);
    }
}
