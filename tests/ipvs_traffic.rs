//! Real packets through the kernel's load balancer, in network namespaces of this process's own. These tests need `ip_vs`: where
//! the machine's kernel has none they run in the lab (`scripts/lab-tests.sh`, docs/lab.md); without it they say so and pass.

#[path = "support/config_mount.rs"]
mod config_mount;
#[path = "support/netns/mod.rs"]
mod netns;

/// What these tests share with those of the iptables mode.
#[allow(dead_code, reason = "a part is used here")]
mod traffic {
    pub(crate) mod check;
    pub(crate) mod cluster;
    pub(crate) mod lab;
    pub(crate) mod manifest;
    pub(crate) mod program;
    pub(crate) mod rolling;
    pub(crate) mod table;
}

mod ipvs {
    mod balancing;
    mod by_hand;
    mod drift;
    mod harness;
    mod leaving;
    mod live_switch;
    mod matrix;
    mod mended;
    mod own_addresses;
    mod ownership;
    mod restart;
    mod rolling;
    mod routes;
    mod state;
    mod switch;
    mod table;
    mod walks;
}
