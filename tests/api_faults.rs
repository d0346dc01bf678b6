//! The API server fails in every way that it can, under 10,000 Services, while clients of a few of them go on asking.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/netns/mod.rs"]
mod netns;
#[path = "support/objects.rs"]
mod objects;

mod api_faults {
    mod answers;
    mod connections;
    mod lies;
    mod rig;
}
