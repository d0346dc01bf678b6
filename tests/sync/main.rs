//! The sync engine against the fake kernel: paths, faults and costs.

mod behaviour;
#[path = "../support/cluster.rs"]
mod cluster;
mod faults;
mod rig;
mod runner;
mod sequences;
mod shape;
