//! What becomes of a packet in IPVS mode: the table of kube-proxy's IPVS mode, with what portolan does otherwise on purpose.
//!
//! All hosts of the world send everything through node1, so that answers find their way back even where nobody masqueraded: a
//! row whose packets keep their source although a remote pod answers would be silence on a real network. The table says what
//! the pod sees, and who answers.

use crate::traffic::table::{
    ANY, CLUSTER, CLUSTER_CIDR, Destination, EITHER, ELSEWHERE, HERE, LOCAL, NOWHERE, Row, SOME, Source, Variation,
    Verdict, row,
};

use Verdict::{
    All, AllMasqueraded as AllM, Local as Loc, LocalMasqueraded as LocM, Never, NodeItself, Refused as Rej,
    Silence as Drop, Untouched,
};

const CLUSTER_IP: &[Destination] = &[Destination::ClusterIp];
const IN_RANGE: &[Destination] = &[Destination::OwnLoadBalancerInRange];
const OUT_OF_RANGE: &[Destination] = &[Destination::LoadBalancerOutOfRange];
const EXTERNAL: &[Destination] = &[
    Destination::ExternalIp,
    Destination::LoadBalancer,
    Destination::LoadBalancerInRange,
    Destination::NodePort,
    Destination::NodePortSecondAddress,
    Destination::OwnExternalIp,
];
const SECOND: &[Destination] = &[Destination::NodePortSecondAddress];
const LOOPBACK: &[Destination] = &[Destination::NodePortLoopbackV4, Destination::NodePortLoopbackV6];
const OTHER_PORT: &[Destination] = &[Destination::ClusterIpOtherPort, Destination::LoadBalancerOtherPort];
const PROXY_MODE: &[Destination] = &[Destination::LoadBalancerProxyMode];

/// The table for a node that knows which sources are pods. In brackets: what kube-proxy does instead.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    //                                         pod   node  outside
    row(CLUSTER_IP, CLUSTER, SOME,            [All,  AllM, AllM]),
    row(CLUSTER_IP, LOCAL,   HERE,            [Loc,  LocM, LocM]),
    // Mended (remote pods, if the Service has addresses for outside as well).
    row(CLUSTER_IP, LOCAL,   ELSEWHERE,       [Rej,  Rej,  Rej]),
    row(CLUSTER_IP, EITHER,  NOWHERE,         [Rej,  Rej,  Rej]),
    row(EXTERNAL,   CLUSTER, SOME,            [AllM, AllM, AllM]),
    // Node: mended (the pod sees the address that was asked).
    row(EXTERNAL,   LOCAL,   HERE,            [Loc,  LocM, Loc]),
    // Node: mended (silence for addresses that other nodes have, too). Outside: mended (a remote pod answers past this node).
    row(EXTERNAL,   LOCAL,   ELSEWHERE,       [All,  AllM, Drop]),
    row(EXTERNAL,   EITHER,  NOWHERE,         [Rej,  Rej,  Rej]),
    row(OUT_OF_RANGE, EITHER, SOME,           [Drop, Drop, Drop]),
    // The node's own packets are refused by the load balancer before they come to the rule that drops.
    row(OUT_OF_RANGE, EITHER, NOWHERE,        [Drop, Rej,  Drop]),
    row(IN_RANGE,   CLUSTER, SOME,            [Drop, AllM, Drop]),
    row(IN_RANGE,   LOCAL,   HERE,            [Drop, LocM, Drop]),
    row(IN_RANGE,   LOCAL,   ELSEWHERE,       [Drop, AllM, Drop]),
    row(IN_RANGE,   EITHER,  NOWHERE,         [Drop, Rej,  Drop]),
    // The world has a program on the node that listens there.
    row(LOOPBACK,   EITHER,  ANY,             [Never, NodeItself, Never]),
    row(OTHER_PORT, EITHER,  ANY,             [Rej,  Rej,  Rej]),
    row(PROXY_MODE, EITHER,  ANY,             [Untouched, Untouched, Untouched]),
];

/// Rows of a node that cannot tell pods.
#[rustfmt::skip]
const NO_DETECTOR: &[Row] = &[
    row(CLUSTER_IP, CLUSTER, SOME,            [All,  AllM, All]),
    row(CLUSTER_IP, LOCAL,   HERE,            [Loc,  LocM, Loc]),
    // As kube-proxy: nothing tells clients from outside and pods apart.
    row(EXTERNAL,   LOCAL,   ELSEWHERE,       [All,  AllM, All]),
];

/// Rows of a node that masquerades everything to cluster IPs.
#[rustfmt::skip]
const MASQUERADE_ALL: &[Row] = &[
    row(CLUSTER_IP, CLUSTER, SOME,            [AllM, AllM, AllM]),
    row(CLUSTER_IP, LOCAL,   HERE,            [LocM, LocM, LocM]),
];

/// Rows of a node that serves node ports only on its first address. The second belongs to the programs of the host.
#[rustfmt::skip]
const RESTRICTED_NODE_PORTS: &[Row] = &[
    row(SECOND,     EITHER,  ANY,             [NodeItself, NodeItself, NodeItself]),
];

/// Pods told by the cluster's address range: the default.
pub(super) const BY_CLUSTER_CIDR: Variation = Variation {
    name: "pods told by the cluster's address range",
    arguments: &[CLUSTER_CIDR],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: &[],
};

/// No way to tell pods.
pub(super) const WITHOUT_DETECTOR: Variation = Variation {
    name: "no way to tell pods",
    arguments: &[],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: NO_DETECTOR,
};

/// Everything to cluster IPs masqueraded.
pub(super) const WITH_MASQUERADE_ALL: Variation = Variation {
    name: "everything to cluster IPs masqueraded",
    arguments: &[CLUSTER_CIDR, "--masquerade-all=true"],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: MASQUERADE_ALL,
};

/// Service addresses made local by routes: the same table.
pub(super) const WITH_ROUTES: Variation = Variation {
    name: "routes in place of addresses",
    arguments: &[CLUSTER_CIDR, "--ipvs-vips=routes", SERVICE_CIDRS],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: &[],
};

/// Pods told by the bridge they come from, and node ports only on the node's first address.
pub(super) const BY_BRIDGE_WITH_NODE_PORT_ADDRESSES: Variation = Variation {
    name: "pods told by their bridge, node ports only on the node's first address",
    arguments: &[
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=cbr0",
        "--nodeport-addresses=192.168.100.0/24,fd00:100::/64",
    ],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: RESTRICTED_NODE_PORTS,
};

/// The networks of the world's cluster IPs.
pub(super) const SERVICE_CIDRS: &str = "--ipvs-service-cidrs=172.30.0.0/16,fd00:172:30::/64";
