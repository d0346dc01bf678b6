//! Items on the real kernel, and one suite for the fake kernel and the real one. What needs `ip_vs` or dummy links is run in the lab
//! (`cargo xtask lab`), which sets `PORTOLAN_LAB`, or where the machine's kernel has them; elsewhere such a test says so and passes.

mod conformance;
mod contract;
mod fill;
#[path = "../linux_support/mod.rs"]
mod linux_support;
mod set_up;
mod world;
