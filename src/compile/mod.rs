//! From Services and slices to plans: which addresses each service port answers on, and which endpoints serve them.
//!
//! All of it is a function of its arguments. The rules are kube-proxy's; each is named where it is applied.

mod context;
mod plan;
mod topology;

pub use context::{Features, LocalDetector, NodeContext, NodePortAddresses};
pub use plan::{EndpointTarget, ServicePortPlan, compile_service, local_ready_addresses};
