//! The sync engine against the fake kernel: paths, faults and costs.

mod altered;
mod behaviour;
#[path = "../support/cluster.rs"]
mod cluster;
mod drains;
mod faults;
mod handover;
mod ipvs;
mod layouts;
mod linger;
mod reconfigure;
mod rig;
mod runner;
mod sequences;
mod shape;
mod sharing;
