//! The iptables backend: kube-proxy's chains, spelled exactly as kube-proxy spells them.

pub mod base;
mod lower;
pub mod names;

pub use lower::IptablesBackend;
