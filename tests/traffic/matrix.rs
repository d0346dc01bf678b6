//! The whole table, with every way to set up the program that changes it.

use rstest::rstest;

use super::check::{ask_all, assert_none};
use super::cluster::Cluster;
use super::manifest::Manifests;
use super::program::{Variant, sync_once};
use super::table::{self, Variation};
use crate::netns::world::World;

#[test]
fn the_table_says_one_thing_about_every_packet() {
    table::assert_complete(&[
        &table::BY_CLUSTER_CIDR,
        &table::WITHOUT_DETECTOR,
        &table::WITH_MASQUERADE_ALL,
        &table::WITH_MASQUERADE_ALL_WITHOUT_DETECTOR,
        &table::BY_NODE_CIDR,
        &table::BY_BRIDGE,
        &table::BY_PREFIX,
        &table::WITH_NODE_PORT_ADDRESSES,
        &table::WITHOUT_LOOPBACK_NODE_PORTS,
    ]);
}

#[rstest]
#[case::pods_told_by_cluster_cidr(table::BY_CLUSTER_CIDR)]
#[case::pods_not_told(table::WITHOUT_DETECTOR)]
#[case::masquerade_all(table::WITH_MASQUERADE_ALL)]
#[case::masquerade_all_and_pods_not_told(table::WITH_MASQUERADE_ALL_WITHOUT_DETECTOR)]
#[case::pods_told_by_node_cidr(table::BY_NODE_CIDR)]
#[case::pods_told_by_bridge(table::BY_BRIDGE)]
#[case::pods_told_by_interface_prefix(table::BY_PREFIX)]
#[case::node_port_addresses(table::WITH_NODE_PORT_ADDRESSES)]
#[case::no_loopback_node_ports(table::WITHOUT_LOOPBACK_NODE_PORTS)]
fn every_packet_goes_where_the_table_says(
    #[case] variation: Variation,
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft, Variant::CompactLegacy)] variant: Variant,
) {
    let mut world = World::new();
    let cluster = Cluster::new();
    cluster.serve(&mut world);
    let manifests = Manifests::new(&cluster.services());
    sync_once(&world.node1, variant, &manifests, variation.arguments);
    let questions = cluster.questions(&world, &variation);
    let mismatches = ask_all(&questions);
    assert_none(&mismatches, questions.len(), |service| {
        let mut rules = String::new();
        for tool in ["iptables", "ip6tables"] {
            let all = variant.save(&world.node1, tool);
            let word = format!("default/{service}:");
            all.lines().filter(|line| line.contains(&word)).for_each(|line| rules.push_str(&format!("{line}\n")));
        }
        rules
    });
}
