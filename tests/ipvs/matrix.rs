//! The whole table in IPVS mode.

use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::world::World;
use crate::traffic::check::{ask_all, assert_none};
use crate::traffic::cluster::Cluster;
use crate::traffic::manifest::Manifests;
use crate::traffic::program::{Setup, sync_once};
use crate::traffic::table;

#[test]
fn the_table_says_one_thing_about_every_packet() {
    table::assert_complete(&[&table::IPVS_BY_CLUSTER_CIDR]);
}

#[test]
fn every_packet_goes_where_the_table_says() {
    if !kernel_has_ipvs() {
        return;
    }
    let variation = table::IPVS_BY_CLUSTER_CIDR;
    let mut world = World::new();
    let cluster = Cluster::new();
    cluster.serve(&mut world);
    let manifests = Manifests::new(&cluster.services());
    sync_once(&world.node1, Setup::ipvs(), &manifests, variation.arguments);
    let questions = cluster.questions(&world, &variation);
    let mismatches = ask_all(&questions);
    assert_none(&mismatches, questions.len(), |_| world.node1.ipvs_text());
}
