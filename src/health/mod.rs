//! Health, as load balancers, kubelets and people ask for it over HTTP.
//!
//! [`HealthState`] knows whether the proxy keeps up; [`Servers`] answers on the two addresses of the settings;
//! [`ServiceHealth`] answers on the health-check node port of each Service that has one. All HTTP runs on one thread
//! with a runtime of its own, so that a sync that takes long never makes a probe wait.

mod accept;
mod check;
mod debug;
mod pages;
mod server;
mod service;
mod state;
mod timestamp;
mod zpages;

pub use pages::{Debugging, Page, Pages, SetVerbosity};
pub use server::{Bound, Listen, Move, RebindError, Server, Servers};
pub use service::{ListenAddresses, ServiceHealth};
pub use state::{HealthState, Probe, Reply};

#[cfg(test)]
mod tests;
