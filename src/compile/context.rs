//! What compiling needs to know besides the Service: settings and facts of this node, as one value.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::PerFamily;

/// Everything that the desired state depends on besides Services and slices. When one of these changes, every
/// Service is compiled again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeContext {
    /// The own node's name, lower-case. Empty means that no endpoint is ever local.
    pub node_name: Arc<str>,
    /// The zone of the node; `None` switches zone hints off.
    pub zone: Option<Arc<str>>,
    /// Families that are programmed. A family that is off has no objects at all.
    pub families: PerFamily<bool>,
    /// The node's own address in each family, used to decide whether source ranges admit the node
    /// itself. `None` when unknown.
    pub node_ips: PerFamily<Option<IpAddr>>,
    /// How traffic of this node's pods is recognised; `None`: it is not, in this family.
    pub local_detector: PerFamily<Option<LocalDetector>>,
    /// Masquerade all traffic to cluster IPs, whatever its source.
    pub masquerade_all: bool,
    /// The fwmark bit of traffic to be masqueraded, already shifted: `1 << masqueradeBit`.
    pub masquerade_mark: u32,
    /// The addresses on which node ports are served.
    pub node_port_addresses: PerFamily<NodePortAddresses>,
    /// All addresses of the node that a virtual server for node ports may have, sorted: without loopback, link-local and those
    /// of the dummy link. Empty in iptables mode, which matches local addresses by a rule.
    pub node_addresses: PerFamily<Vec<IpAddr>>,
    /// Whether IPv4 node ports are served on 127.0.0.0/8. True only when the setting is on, the loopback range is
    /// covered by `nodePortAddresses`, and `route_localnet` could be set.
    pub localhost_node_ports: bool,
    /// The feature gate AllowServiceExternalIPs: when false, external IPs are not programmed.
    pub allow_external_ips: bool,
    /// What the kernel and its tools can do here.
    pub features: Features,
}

/// How a packet from a pod of this node is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// Its source is in this range (detectLocalMode ClusterCIDR and NodeCIDR).
    SourceCidr(IpNet),
    /// It arrives through this interface (BridgeInterface).
    Bridge(Arc<str>),
    /// It arrives through an interface whose name begins with this (InterfaceNamePrefix).
    InterfacePrefix(Arc<str>),
}

/// The addresses of one family on which node ports are served, after `nodePortAddresses` was matched against the
/// node's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every local address.
    All,
    /// These local addresses, sorted, possibly none.
    Only(Vec<IpAddr>),
}

/// What the kernel and its tools can do, found out at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `iptables` is 1.6.2 or newer: MASQUERADE may carry `--random-fully`.
    pub random_fully: bool,
    /// The nfacct objects exist and the xt_nfacct match loads; counted rules may be written.
    pub packet_counters: bool,
    /// `nf_conntrack_tcp_be_liberal` was non-zero at start: no rule drops packets that conntrack calls INVALID.
    pub tcp_be_liberal: bool,
}

impl Features {
    /// What a current kernel and current tools offer; `render` assumes it.
    pub const CURRENT: Features = Features { random_fully: true, packet_counters: true, tcp_be_liberal: false };
}

impl Default for NodeContext {
    /// A node without a name, zone or detector, both families on, and kube-proxy's defaults for all settings.
    fn default() -> NodeContext {
        NodeContext {
            node_name: "".into(),
            zone: None,
            families: PerFamily { v4: true, v6: true },
            node_ips: PerFamily::default(),
            local_detector: PerFamily::default(),
            masquerade_all: false,
            masquerade_mark: 1 << 14,
            node_port_addresses: PerFamily { v4: NodePortAddresses::All, v6: NodePortAddresses::All },
            node_addresses: PerFamily::default(),
            localhost_node_ports: true,
            allow_external_ips: true,
            features: Features::CURRENT,
        }
    }
}
