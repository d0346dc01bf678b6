//! EndpointSlices, reduced to what decides where packets go.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::SystemTime;

use crate::model::ServiceName;
use crate::net::{IpFamily, Protocol};

/// One EndpointSlice of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service named by the label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: ServiceName,
    /// `addressType`. Slices of type FQDN never become one of these.
    pub family: IpFamily,
    /// The ports that every endpoint of the slice offers.
    pub ports: Box<[EndpointPort]>,
    /// The endpoints, in the order of the object.
    pub endpoints: Box<[Endpoint]>,
    /// The annotation `endpoints.kubernetes.io/last-change-trigger-time`: when the change that this version of
    /// the slice carries was caused. `None` when absent or unreadable.
    pub triggered_at: Option<SystemTime>,
}

/// One element of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name that ties it to a Service port; empty if it has none.
    pub name: Arc<str>,
    /// The protocol; absent means TCP.
    pub protocol: Protocol,
    /// The port on the pod.
    pub port: NonZeroU16,
}

/// One endpoint of a slice: a pod, a host, or anything else with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the API allows one address only.
    pub address: IpAddr,
    /// The three conditions.
    pub conditions: Conditions,
    /// `nodeName`; `None` means that the endpoint is on no node and so never local.
    pub node: Option<Arc<str>>,
    /// `hints`; `None` means that there are none.
    pub hints: Option<Arc<Hints>>,
}

/// The conditions of an endpoint, with the API's defaults for absent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// May receive new connections in the ordinary way. Absent means true.
    pub ready: bool,
    /// Could answer if it were asked. Absent means true.
    pub serving: bool,
    /// Is being deleted. Absent means false.
    pub terminating: bool,
}

impl Conditions {
    /// Ready, serving, not terminating.
    pub const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
}

/// Where the control plane would like an endpoint to be used from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// Names in `hints.forZones`.
    pub zones: Box<[Arc<str>]>,
    /// Names in `hints.forNodes`.
    pub nodes: Box<[Arc<str>]>,
}
