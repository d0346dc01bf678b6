//! portolan: a service proxy for Kubernetes nodes.
//!
//! Kubernetes objects come in, a desired state is computed as a value, its difference from what the kernel holds is a
//! value too, and one small layer makes the kernel agree. The layers, each of which may use those above it in this list
//! (see ARCHITECTURE.md, and `cargo xtask tidy`, which checks it):
//!
//! - [`net`]: families, protocols
//! - [`model`]: the cluster as values; [`kernel`]: what a kernel can hold and be asked
//! - [`compile`]: which addresses and endpoints each service port has; [`netlink`]: messages as values
//! - [`backend`]: the seam between modes
//! - [`iptables`]: the iptables backend
//! - [`sync`]: makes the kernel agree; [`linux`]: the real kernel
//! - [`source`], [`config`], [`metrics`], [`health`]: the outside world
//! - [`cli`]: commands

#![forbid(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod backend;
pub mod cli;
pub mod compile;
pub mod config;
pub mod health;
pub mod iptables;
pub mod kernel;
pub mod linux;
pub mod metrics;
pub mod model;
pub mod net;
pub mod netlink;
pub mod source;
pub mod sync;
