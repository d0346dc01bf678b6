//! Which endpoints serve: all of the cluster, those near by, those of this node, or those that are about to go.
//!
//! KEP-1669 and KEP-2086 (terminating and local endpoints), KEP-2433 and KEP-4444 (zone and node hints).

use crate::compile::EndpointTarget;
use crate::model::Hints;

/// One endpoint with what topology looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    /// The endpoint.
    pub target: EndpointTarget,
    /// Its hints; `None`: it has none.
    pub hints: Option<&'a Hints>,
}

/// Which lists a service port needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Traffic with policy Cluster exists: to the cluster IP, or from this node's pods to an external address.
    pub cluster: bool,
    /// Traffic with policy Local exists.
    pub local: bool,
}

/// The lists, as ascending indexes into the candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// For policy Cluster; empty when not needed.
    pub cluster: Vec<usize>,
    /// For policy Local; empty when not needed.
    pub local: Vec<usize>,
    /// The union of both.
    pub reachable: Vec<usize>,
    /// Whether any endpoint is usable anywhere.
    pub has_any: bool,
}

/// How the ready endpoints are narrowed down.
#[derive(Clone, Copy)]
enum Topology<'a> {
    None,
    SameNode(&'a str),
    SameZone(&'a str),
}

/// Chooses the endpoints of one service port. `node` is the own node's name, empty when unknown; `zone` its zone.
pub(crate) fn select(candidates: &[Candidate<'_>], needs: Needs, node: &str, zone: Option<&str>) -> Selection {
    let mut selection = Selection::default();
    if needs.cluster {
        selection.cluster = cluster_list(candidates, node, zone);
        selection.has_any = !selection.cluster.is_empty();
    }
    if needs.local {
        // With policy Local alone, endpoints of other nodes serve nothing here, but they decide between "reject" (the
        // service is down) and "drop" (this node is the wrong one).
        selection.has_any |= candidates.iter().any(|it| it.target.ready || last_resort(&it.target));
        selection.local = ready_or_last_resort(candidates, |it| it.target.local);
    }
    selection.reachable = union(&selection.cluster, &selection.local);
    selection
}

fn cluster_list(candidates: &[Candidate<'_>], node: &str, zone: Option<&str>) -> Vec<usize> {
    let topology = choose(candidates, node, zone);
    let near: Vec<usize> = indexes(candidates, |it| it.target.ready && topology.admits(it));
    // Nothing is ready: hints no longer count, any answer is better than none.
    if near.is_empty() { indexes(candidates, |it| last_resort(&it.target)) } else { near }
}

/// The topology that the hints of the ready endpoints agree on. A single ready endpoint without a hint means that
/// the control plane has not finished, or does not want it.
fn choose<'a>(candidates: &[Candidate<'_>], node: &'a str, zone: Option<&'a str>) -> Topology<'a> {
    let ready = || candidates.iter().filter(|it| it.target.ready);
    let same_node = Topology::SameNode(node);
    let all_know_nodes = ready().all(|it| it.hints.is_some_and(|hints| !hints.nodes.is_empty()));
    if !node.is_empty() && all_know_nodes && ready().any(|it| same_node.admits(it)) {
        return same_node;
    }
    let Some(zone) = zone.filter(|zone| !zone.is_empty()) else { return Topology::None };
    let same_zone = Topology::SameZone(zone);
    let all_know_zones = ready().all(|it| it.hints.is_some_and(|hints| !hints.zones.is_empty()));
    if all_know_zones && ready().any(|it| same_zone.admits(it)) { same_zone } else { Topology::None }
}

impl Topology<'_> {
    fn admits(self, candidate: &Candidate<'_>) -> bool {
        let hints = candidate.hints;
        match self {
            Topology::None => true,
            Topology::SameNode(node) => hints.is_some_and(|hints| hints.nodes.iter().any(|hint| **hint == *node)),
            Topology::SameZone(zone) => hints.is_some_and(|hints| hints.zones.iter().any(|hint| **hint == *zone)),
        }
    }
}

/// Being deleted, but still answering.
fn last_resort(target: &EndpointTarget) -> bool {
    target.serving && target.terminating
}

fn ready_or_last_resort(candidates: &[Candidate<'_>], eligible: impl Fn(&Candidate<'_>) -> bool) -> Vec<usize> {
    let ready = indexes(candidates, |it| eligible(it) && it.target.ready);
    if ready.is_empty() { indexes(candidates, |it| eligible(it) && last_resort(&it.target)) } else { ready }
}

fn indexes(candidates: &[Candidate<'_>], wanted: impl Fn(&Candidate<'_>) -> bool) -> Vec<usize> {
    candidates.iter().enumerate().filter(|(_, it)| wanted(it)).map(|(at, _)| at).collect()
}

/// The union of two ascending lists, ascending.
fn union(left: &[usize], right: &[usize]) -> Vec<usize> {
    if right.is_empty() {
        return left.to_vec();
    }
    let mut all: Vec<usize> = left.iter().chain(right).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests;
