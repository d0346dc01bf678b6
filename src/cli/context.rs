//! From settings, the Node and its addresses to the context that compiling needs.

use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::{Features, NodeContext, NodePortAddresses};
use crate::config::Settings;
use crate::config::node::{covers_ipv4_loopback, local_traffic, matching_addresses, node_ips, node_port_cidrs};
use crate::model::Node;
use crate::net::{IpFamily, PerFamily};

/// What does not change while the program runs.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The own Node's name.
    pub(super) node_name: Arc<str>,
    /// Families that are programmed.
    pub(super) families: PerFamily<bool>,
    /// What the kernel and its tools can do.
    pub(super) features: Features,
    /// Whether packets to 127.0.0.0/8 can be sent elsewhere (`route_localnet`).
    pub(super) route_localnet: bool,
}

/// The context for compiling.
pub(super) fn node_context(
    settings: &Settings,
    facts: &Facts,
    node: &Node,
    addresses: &PerFamily<Vec<IpAddr>>,
) -> NodeContext {
    let ips = node_ips(&node.addresses, settings.bind_address);
    let cidrs = node_port_cidrs(&settings.node_port_addresses, &ips);
    let node_port_addresses = |family: IpFamily| match matching_addresses(&cidrs[family], &addresses[family]) {
        None => NodePortAddresses::All,
        Some(matching) => NodePortAddresses::Only(matching),
    };
    NodeContext {
        node_name: facts.node_name.clone(),
        zone: node.zone.clone(),
        families: facts.families,
        node_ips: ips.addresses,
        local_detector: local_traffic(&settings.detect_local, &node.pod_cidrs),
        masquerade_all: settings.masquerade_all,
        masquerade_mark: settings.masquerade_mark(),
        node_port_addresses: PerFamily::from_fn(node_port_addresses),
        node_addresses: PerFamily::default(),
        localhost_node_ports: facts.families.v4
            && settings.localhost_node_ports
            && facts.route_localnet
            && covers_ipv4_loopback(&cidrs.v4),
        allow_external_ips: settings.allow_external_ips,
        features: facts.features,
    }
}

/// Whether the settings ask for node ports on 127.0.0.0/8. It depends on the Node only for `primary`, which never covers
/// loopback.
pub(super) fn wants_localhost_node_ports(settings: &Settings) -> bool {
    let ips = node_ips(&[], settings.bind_address);
    settings.localhost_node_ports
        && settings.node_port_addresses != crate::config::NodePortSetting::Primary
        && covers_ipv4_loopback(&node_port_cidrs(&settings.node_port_addresses, &ips).v4)
}
