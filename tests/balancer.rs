//! What load balancers and autoscalers rely on, with the daemon, a fake API server and real packets.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/netns/mod.rs"]
mod netns;
#[path = "support/objects.rs"]
mod objects;

mod balancer {
    mod autoscaler;
    mod ports;
    mod restart;
    mod rig;
    mod rolling;
    mod servers;
}
