//! portolan: a service proxy for Kubernetes nodes.
//!
//! Kubernetes objects come in, a desired state is computed as a value, its difference from what the kernel holds is a
//! value too, and one small layer makes the kernel agree. The layers, each of which may use those above it in this list
//! (see ARCHITECTURE.md, and `tests/tidy.rs`, which checks it):
//!
//! - [`net`]: families, protocols
//! - [`model`]: the cluster as values; [`kernel`]: what a kernel can hold and be asked
//! - [`compile`]: which addresses and endpoints each service port has; [`netlink`]: messages as values
//! - [`backend`]: the seam between modes
//! - [`iptables`], [`ipvs`]: the backends
//! - [`sync`]: makes the kernel agree; [`linux`]: the real kernel
//! - [`source`], [`config`], [`metrics`], [`health`]: the outside world
//! - [`bench`]: the operator's benchmark of the modes
//! - [`cli`]: all commands

// A proxy that panics on input takes the node's traffic with it, and a function that reads a clock or starts a process
// on its own cannot be tested; clippy.toml lists the functions. Tests may do all of this.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::exit,
        clippy::disallowed_methods
    )
)]

pub mod backend;
pub mod bench;
pub mod cli;
pub mod compile;
pub mod config;
pub mod health;
pub mod iptables;
pub mod ipvs;
pub mod kernel;
pub mod linux;
pub mod metrics;
pub mod model;
pub mod net;
pub mod netlink;
pub mod source;
pub mod sync;
