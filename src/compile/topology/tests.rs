use std::net::{Ipv4Addr, SocketAddr};

use rstest::rstest;

use super::*;

const CLUSTER: Needs = Needs { cluster: true, local: false };
const LOCAL: Needs = Needs { cluster: false, local: true };
const BOTH: Needs = Needs { cluster: true, local: true };

/// An endpoint from words: a state (`ready`, `unready`, `term` that still serves, `dead` that does not), `here` when on
/// this node, `z:a,b` for zone hints and `n:a,b` for node hints.
fn endpoint(at: usize, words: &str) -> (EndpointTarget, Option<Hints>) {
    let mut words = words.split_whitespace();
    let (ready, serving, terminating) = match words.next() {
        Some("ready") => (true, true, false),
        Some("unready") => (false, true, false),
        Some("term") => (false, true, true),
        Some("dead") => (false, false, true),
        other => panic!("no such state: {other:?}"),
    };
    let socket = SocketAddr::from((Ipv4Addr::new(10, 0, 0, at as u8 + 1), 80));
    let mut target = EndpointTarget { socket, local: false, elsewhere: false, ready, serving, terminating };
    let mut hints = None;
    for word in words {
        let list = |names: &str| names.split(',').map(Into::into).collect();
        match word.split_once(':') {
            None if word == "here" => target.local = true,
            Some(("z", names)) => hints.get_or_insert_with(Hints::default).zones = list(names),
            Some(("n", names)) => hints.get_or_insert_with(Hints::default).nodes = list(names),
            _ => panic!("no such word: {word}"),
        }
    }
    (target, hints)
}

fn selected(endpoints: &[&str], needs: Needs, zone: Option<&str>) -> Selection {
    let endpoints: Vec<_> = endpoints.iter().enumerate().map(|(at, words)| endpoint(at, words)).collect();
    let candidates: Vec<_> =
        endpoints.iter().map(|(target, hints)| Candidate { target: *target, hints: hints.as_ref() }).collect();
    select(&candidates, needs, "node-1", zone)
}

#[rstest]
#[case::zone_hints_on_all_and_a_match_filter(
    &["ready z:a", "ready z:b", "ready z:a"], CLUSTER, Some("a"), &[0, 2], &[], &[0, 2], true)]
#[case::topology_does_not_touch_the_local_list(
    &["ready z:a", "ready here z:b", "ready z:b"], BOTH, Some("a"), &[0], &[1], &[0, 1], true)]
#[case::a_node_without_zone_uses_all(
    &["ready z:a", "ready z:b"], CLUSTER, None, &[0, 1], &[], &[0, 1], true)]
#[case::a_node_with_empty_zone_uses_all(
    &["ready z:a", "ready z:b"], CLUSTER, Some(""), &[0, 1], &[], &[0, 1], true)]
#[case::a_zone_that_no_hint_names_uses_all(
    &["ready z:a", "ready z:b"], CLUSTER, Some("c"), &[0, 1], &[], &[0, 1], true)]
#[case::an_unready_endpoint_is_left_out_though_hinted(
    &["ready z:a", "unready z:a", "ready z:b"], CLUSTER, Some("a"), &[0], &[], &[0], true)]
#[case::only_unready_endpoints_in_the_zone_use_all_ready_ones(
    &["ready z:b", "unready z:a", "ready z:c"], CLUSTER, Some("a"), &[0, 2], &[], &[0, 2], true)]
#[case::one_ready_endpoint_without_hint_uses_all(
    &["ready z:a", "ready", "ready z:b"], CLUSTER, Some("a"), &[0, 1, 2], &[], &[0, 1, 2], true)]
#[case::an_unready_or_terminating_endpoint_without_hint_changes_nothing(
    &["ready z:a", "unready", "term", "ready z:b"], CLUSTER, Some("a"), &[0], &[], &[0], true)]
#[case::each_of_several_zone_hints_counts(
    &["ready z:b,a", "ready z:b", "ready z:c,a,b"], CLUSTER, Some("a"), &[0, 2], &[], &[0, 2], true)]
#[case::node_hints_go_before_zone_hints(
    &["ready n:node-1 z:a", "ready n:node-2 z:a"], CLUSTER, Some("a"), &[0], &[], &[0], true)]
#[case::a_missing_node_hint_falls_back_to_zones(
    &["ready n:node-1 z:a", "ready z:a", "ready n:node-2 z:b"], CLUSTER, Some("a"), &[0, 1], &[], &[0, 1], true)]
#[case::an_endpoint_without_any_hint_switches_node_hints_off(
    &["ready n:node-1 z:a", "ready", "ready n:node-2 z:b"], CLUSTER, Some("a"), &[0, 1, 2], &[], &[0, 1, 2], true)]
#[case::node_hints_without_this_node_fall_back_to_zones(
    &["ready n:node-2 z:a", "ready n:node-3 z:b"], CLUSTER, Some("a"), &[0], &[], &[0], true)]
#[case::local_only_without_endpoints_has_nothing(
    &[], LOCAL, None, &[], &[], &[], false)]
#[case::local_only_with_remote_endpoints_has_some_but_reaches_none(
    &["ready", "ready"], LOCAL, None, &[], &[], &[], true)]
#[case::local_only_with_local_endpoints_uses_all(
    &["ready here", "ready here"], LOCAL, None, &[], &[0, 1], &[0, 1], true)]
#[case::local_only_uses_the_local_ones(
    &["ready here", "ready", "ready here"], LOCAL, None, &[], &[0, 2], &[0, 2], true)]
#[case::cluster_with_nothing_ready_is_empty(
    &["unready", "unready here"], CLUSTER, None, &[], &[], &[], false)]
#[case::cluster_uses_the_ready_ones(
    &["unready", "ready", "term"], CLUSTER, None, &[1], &[], &[1], true)]
#[case::cluster_with_terminating_ones_only_uses_those_that_serve(
    &["term", "dead", "term z:b"], CLUSTER, Some("a"), &[0, 2], &[], &[0, 2], true)]
#[case::internal_local_external_cluster_needs_both_lists(
    &["ready here", "ready"], BOTH, None, &[0, 1], &[0], &[0, 1], true)]
#[case::both_local_with_all_remote_terminating_leaves_local_empty(
    &["term", "term"], BOTH, None, &[0, 1], &[], &[0, 1], true)]
#[case::local_falls_back_to_terminating_while_cluster_stays_ready(
    &["ready", "term here", "term"], BOTH, None, &[0], &[1], &[0, 1], true)]
#[case::local_prefers_ready_over_terminating(
    &["ready here", "term here"], BOTH, None, &[0], &[0], &[0], true)]
#[case::an_internal_local_port_has_no_cluster_list(
    &["ready", "ready here"], LOCAL, None, &[], &[1], &[1], true)]
#[case::no_endpoints_at_all(
    &[], BOTH, Some("a"), &[], &[], &[], false)]
#[case::a_single_endpoint_that_does_not_serve(
    &["dead here"], BOTH, Some("a"), &[], &[], &[], false)]
fn endpoints_are_selected(
    #[case] endpoints: &[&str],
    #[case] needs: Needs,
    #[case] zone: Option<&str>,
    #[case] cluster: &[usize],
    #[case] local: &[usize],
    #[case] reachable: &[usize],
    #[case] has_any: bool,
) {
    let expected = Selection { cluster: cluster.into(), local: local.into(), reachable: reachable.into(), has_any };
    assert_eq!(selected(endpoints, needs, zone), expected);
}

#[test]
fn a_node_without_name_ignores_node_hints() {
    let (target, hints) = endpoint(0, "ready n:,x");
    let other = endpoint(1, "ready n:x");
    let candidates =
        [Candidate { target, hints: hints.as_ref() }, Candidate { target: other.0, hints: other.1.as_ref() }];
    assert_eq!(select(&candidates, CLUSTER, "", None).cluster, [0, 1]);
}
