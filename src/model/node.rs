//! The node that we run on.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// What is used of the own Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The label `topology.kubernetes.io/zone`; `None` when absent or empty.
    pub zone: Option<Arc<str>>,
    /// `status.addresses`: all of type InternalIP in order, then all of type ExternalIP; unreadable ones left out.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, valid ones.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether a load balancer should send traffic here: false when the object is being deleted or tainted
    /// `ToBeDeletedByClusterAutoscaler` (see KEP-3458).
    pub eligible: bool,
}
