//! The whole table, with every way to set up the program that changes it.

use rstest::rstest;

use super::table;
use crate::netns::Netns;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::world::World;
use crate::traffic::check::{ask_all, assert_none};
use crate::traffic::cluster::Cluster;
use crate::traffic::manifest::Manifests;
use crate::traffic::program::{Setup, sync_once};
use crate::traffic::table::{Variation, assert_complete};

#[test]
fn the_table_says_one_thing_about_every_packet() {
    assert_complete(&[
        &table::BY_CLUSTER_CIDR,
        &table::WITHOUT_DETECTOR,
        &table::WITH_MASQUERADE_ALL,
        &table::BY_BRIDGE_WITH_NODE_PORT_ADDRESSES,
        &table::WITH_ROUTES,
    ]);
}

#[rstest]
#[case::pods_told_by_cluster_cidr(table::BY_CLUSTER_CIDR)]
#[case::pods_not_told(table::WITHOUT_DETECTOR)]
#[case::masquerade_all(table::WITH_MASQUERADE_ALL)]
#[case::pods_told_by_bridge_and_node_port_addresses(table::BY_BRIDGE_WITH_NODE_PORT_ADDRESSES)]
#[case::routes(table::WITH_ROUTES)]
fn every_packet_goes_where_the_table_says(#[case] variation: Variation) {
    if !kernel_has_ipvs() {
        return;
    }
    let mut world = World::new();
    let cluster = Cluster::new();
    cluster.serve(&mut world);
    let manifests = Manifests::new(&cluster.services());
    sync_once(&world.node1, Setup::ipvs(), &manifests, variation.arguments);
    let questions = cluster.questions(&world, &variation);
    let mismatches = ask_all(&questions);
    assert_none(&mismatches, questions.len(), |_| state_of(&world.node1));
}

/// What the program made, for messages.
pub(super) fn state_of(node: &Netns) -> String {
    let mut text = node.ipvs_text();
    for tool in ["iptables", "ip6tables"] {
        text.push_str(&Setup::ipvs().variant.save(node, tool));
    }
    text.push_str(&node.exec(&["ipset", "save"]));
    text
}
