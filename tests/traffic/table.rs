//! What becomes of a packet, as a table: from its destination, the traffic policy that applies to it, the state of the
//! Service's endpoints, and where it comes from.
//!
//! This is the behaviour of kube-proxy in iptables mode, read as a specification of packets and not of rules.
#![allow(dead_code, reason = "every test binary that includes this uses another part of it")]

use super::manifest::{Endpoint, Policy};
use crate::netns::world::Pod;

/// What a packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Destination {
    /// A cluster IP.
    ClusterIp,
    /// One of `spec.externalIPs`, owned by nobody in the cluster.
    ExternalIp,
    /// A load balancer's VIP, owned by nobody in the cluster, without source ranges.
    LoadBalancer,
    /// A VIP with source ranges, one of which contains the source.
    LoadBalancerInRange,
    /// A VIP with source ranges, none of which contains the source.
    LoadBalancerOutOfRange,
    /// A VIP with source ranges that is also an address of the node; one of the ranges contains the node's address. The
    /// node's own packets have the VIP as their source.
    OwnLoadBalancerInRange,
    /// The node port on the node's address.
    NodePort,
    /// The node port on the node's second address.
    NodePortSecondAddress,
    /// The node port on 127.0.0.1.
    NodePortLoopbackV4,
    /// The node port on ::1.
    NodePortLoopbackV6,
    /// The external IP of a Service, where the address is also one of the node.
    OwnExternalIp,
    /// A port of a cluster IP that the Service does not have.
    ClusterIpOtherPort,
    /// A port of a VIP that the Service does not have.
    LoadBalancerOtherPort,
    /// An ingress address with `ipMode: Proxy`.
    LoadBalancerProxyMode,
}

impl Destination {
    /// All of them.
    pub(crate) const ALL: [Destination; 14] = [
        Destination::ClusterIp,
        Destination::ExternalIp,
        Destination::LoadBalancer,
        Destination::LoadBalancerInRange,
        Destination::LoadBalancerOutOfRange,
        Destination::OwnLoadBalancerInRange,
        Destination::NodePort,
        Destination::NodePortSecondAddress,
        Destination::NodePortLoopbackV4,
        Destination::NodePortLoopbackV6,
        Destination::OwnExternalIp,
        Destination::ClusterIpOtherPort,
        Destination::LoadBalancerOtherPort,
        Destination::LoadBalancerProxyMode,
    ];

    /// Whether the internal traffic policy applies; otherwise the external one.
    pub(crate) fn is_internal(self) -> bool {
        matches!(self, Destination::ClusterIp | Destination::ClusterIpOtherPort)
    }
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A pod on the node.
    Pod,
    /// The node itself.
    Node,
    /// A host outside the cluster.
    Outside,
    /// A pod of another node, whose packets come unmasqueraded over the wire.
    RemotePod,
}

impl Source {
    /// All of them.
    pub(crate) const ALL: [Source; 4] = [Source::Pod, Source::Node, Source::Outside, Source::RemotePod];
}

/// A set of endpoints, and which of them may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointState {
    /// For messages and Service names.
    pub(crate) name: &'static str,
    /// `None`: no slice at all.
    pub(crate) endpoints: Option<&'static [Endpoint]>,
    /// Those that policy Cluster uses.
    pub(crate) all: &'static [Pod],
    /// Those that policy Local uses.
    pub(crate) local: &'static [Pod],
}

const NO_NODE: Endpoint = Endpoint { has_node_name: false, ..Endpoint::ready(Pod::A) };
const NOT_SERVING: Endpoint = Endpoint { serving: false, ..Endpoint::terminating(Pod::R1) };

/// The states that are tried.
pub(crate) const STATES: &[EndpointState] = &[
    EndpointState {
        name: "mixed",
        endpoints: Some(&[Endpoint::ready(Pod::A), Endpoint::ready(Pod::B), Endpoint::ready(Pod::R1)]),
        all: &[Pod::A, Pod::B, Pod::R1],
        local: &[Pod::A, Pod::B],
    },
    EndpointState { name: "one-local", endpoints: Some(&[Endpoint::ready(Pod::A)]), all: &[Pod::A], local: &[Pod::A] },
    EndpointState {
        name: "remote",
        endpoints: Some(&[Endpoint::ready(Pod::R1), Endpoint::ready(Pod::R2)]),
        all: &[Pod::R1, Pod::R2],
        local: &[],
    },
    EndpointState { name: "no-slice", endpoints: None, all: &[], local: &[] },
    EndpointState {
        name: "unusable",
        endpoints: Some(&[Endpoint::unready(Pod::A), NOT_SERVING]),
        all: &[],
        local: &[],
    },
    EndpointState {
        name: "unready-local",
        endpoints: Some(&[Endpoint::unready(Pod::A), Endpoint::ready(Pod::R1)]),
        all: &[Pod::R1],
        local: &[],
    },
    EndpointState {
        name: "terminating-local",
        endpoints: Some(&[Endpoint::terminating(Pod::A), Endpoint::ready(Pod::R1)]),
        all: &[Pod::R1],
        local: &[Pod::A],
    },
    EndpointState {
        name: "all-terminating",
        endpoints: Some(&[Endpoint::terminating(Pod::A), Endpoint::terminating(Pod::R1)]),
        all: &[Pod::A, Pod::R1],
        local: &[Pod::A],
    },
    EndpointState { name: "no-node-name", endpoints: Some(&[NO_NODE]), all: &[Pod::A], local: &[] },
];

/// What the table asks of an [`EndpointState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Usable {
    /// Some on the node.
    Local,
    /// None on the node, but some elsewhere.
    Elsewhere,
    /// None.
    Nowhere,
}

impl Usable {
    /// All of them.
    pub(crate) const ALL: [Usable; 3] = [Usable::Local, Usable::Elsewhere, Usable::Nowhere];

    /// What a state amounts to.
    pub(crate) fn of(state: &EndpointState) -> Usable {
        match (state.local, state.all) {
            ([], []) => Usable::Nowhere,
            ([], _) => Usable::Elsewhere,
            _ => Usable::Local,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Any endpoint that policy Cluster uses answers, and sees the sender's own address.
    All,
    /// Likewise, but it sees the node's address.
    AllMasqueraded,
    /// Any endpoint that policy Local uses answers, and sees the sender's own address.
    Local,
    /// Likewise, but it sees the node's address.
    LocalMasqueraded,
    /// Refused at once.
    Refused,
    /// Dropped.
    Silence,
    /// Leaves the node as it was sent.
    Untouched,
    /// A program on the node itself gets it.
    NodeItself,
    /// There is no such packet.
    Never,
}

/// One row: for all of these destinations, policies and states, what becomes of packets from each source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Any of these.
    pub(crate) destinations: &'static [Destination],
    /// Any of these.
    pub(crate) policies: &'static [Policy],
    /// Any of these.
    pub(crate) usable: &'static [Usable],
    /// From a pod of the node (for detection modes that know them: any pod).
    pub(crate) pod: Verdict,
    /// From the node itself.
    pub(crate) node: Verdict,
    /// From anywhere else.
    pub(crate) outside: Verdict,
}

impl Row {
    /// Whether the row speaks of this combination.
    pub(crate) fn covers(&self, destination: Destination, policy: Policy, usable: Usable) -> bool {
        self.destinations.contains(&destination) && self.policies.contains(&policy) && self.usable.contains(&usable)
    }
}

/// A row of a table, with the verdicts for pods, the node and others.
pub(crate) const fn row(
    destinations: &'static [Destination],
    policies: &'static [Policy],
    usable: &'static [Usable],
    verdicts: [Verdict; 3],
) -> Row {
    let [pod, node, outside] = verdicts;
    Row { destinations, policies, usable, pod, node, outside }
}

use Verdict::{
    All, AllMasqueraded as AllM, Local as Loc, LocalMasqueraded as LocM, Never, NodeItself, Refused as Rej,
    Silence as Drop, Untouched,
};

pub(crate) const CLUSTER: &[Policy] = &[Policy::Cluster];
pub(crate) const LOCAL: &[Policy] = &[Policy::Local];
pub(crate) const EITHER: &[Policy] = &[Policy::Cluster, Policy::Local];
pub(crate) const SOME: &[Usable] = &[Usable::Local, Usable::Elsewhere];
pub(crate) const HERE: &[Usable] = &[Usable::Local];
pub(crate) const ELSEWHERE: &[Usable] = &[Usable::Elsewhere];
pub(crate) const NOWHERE: &[Usable] = &[Usable::Nowhere];
pub(crate) const ANY: &[Usable] = &Usable::ALL;

const CLUSTER_IP: &[Destination] = &[Destination::ClusterIp];
const NODE_PORT: &[Destination] = &[Destination::NodePort, Destination::NodePortSecondAddress];
const LOOPBACK_V4: &[Destination] = &[Destination::NodePortLoopbackV4];
const LOOPBACK_V6: &[Destination] = &[Destination::NodePortLoopbackV6];
const OWN_IN_RANGE: &[Destination] = &[Destination::OwnLoadBalancerInRange];
const OUT_OF_RANGE: &[Destination] = &[Destination::LoadBalancerOutOfRange];
/// Addresses of Services that are no addresses of the node.
const FOREIGN: &[Destination] = &[Destination::ExternalIp, Destination::LoadBalancer, Destination::LoadBalancerInRange];
const EXTERNAL: &[Destination] = &[
    Destination::ExternalIp,
    Destination::LoadBalancer,
    Destination::LoadBalancerInRange,
    Destination::NodePort,
    Destination::NodePortSecondAddress,
    Destination::OwnExternalIp,
];
const OWN_EXTERNAL: &[Destination] = &[Destination::OwnExternalIp];
const NOT_SERVED: &[Destination] =
    &[Destination::ClusterIpOtherPort, Destination::LoadBalancerOtherPort, Destination::LoadBalancerProxyMode];

/// The table for a node that knows which sources are pods, with the default settings.
#[rustfmt::skip]
pub(crate) const TABLE: &[Row] = &[
    //                                         pod   node  outside
    row(CLUSTER_IP, CLUSTER, SOME,            [All,  AllM, AllM]),
    row(CLUSTER_IP, LOCAL,   HERE,            [Loc,  LocM, LocM]),
    row(CLUSTER_IP, LOCAL,   ELSEWHERE,       [Drop, Drop, Drop]),
    row(CLUSTER_IP, EITHER,  NOWHERE,         [Rej,  Rej,  Rej]),
    row(EXTERNAL,   CLUSTER, SOME,            [AllM, AllM, AllM]),
    row(EXTERNAL,   LOCAL,   HERE,            [All,  AllM, Loc]),
    row(EXTERNAL,   LOCAL,   ELSEWHERE,       [All,  AllM, Drop]),
    row(NODE_PORT,  EITHER,  NOWHERE,         [Rej,  Rej,  Rej]),
    row(OWN_EXTERNAL, EITHER, NOWHERE,        [Rej,  Rej,  Rej]),
    // The node's own packets to such addresses pass no chain that refuses them.
    row(FOREIGN,    EITHER,  NOWHERE,         [Rej,  Untouched, Rej]),
    row(OUT_OF_RANGE, EITHER, SOME,           [Drop, Drop, Drop]),
    row(OUT_OF_RANGE, EITHER, NOWHERE,        [Rej,  Untouched, Rej]),
    row(OWN_IN_RANGE, EITHER, SOME,           [Drop, AllM, Drop]),
    row(OWN_IN_RANGE, EITHER, NOWHERE,        [Rej,  Rej,  Rej]),
    row(LOOPBACK_V4, EITHER, SOME,            [Never, AllM, Never]),
    row(LOOPBACK_V4, EITHER, NOWHERE,         [Never, Rej, Never]),
    // ::1 is never served, but what is refused or dropped on other addresses is so here too.
    row(LOOPBACK_V6, CLUSTER, SOME,           [Never, NodeItself, Never]),
    row(LOOPBACK_V6, LOCAL,  HERE,            [Never, NodeItself, Never]),
    row(LOOPBACK_V6, LOCAL,  ELSEWHERE,       [Never, Drop, Never]),
    row(LOOPBACK_V6, EITHER, NOWHERE,         [Never, Rej, Never]),
    row(NOT_SERVED, EITHER,  ANY,             [Untouched, Untouched, Untouched]),
];

/// Settings of the program, and how they change the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variation {
    /// A sentence's end: "with …".
    pub(crate) name: &'static str,
    /// Arguments of the program.
    pub(crate) arguments: &'static [&'static str],
    /// As what pods of other nodes count.
    pub(crate) remote_pod_as: Source,
    /// The table of the mode: [`TABLE`] for iptables mode.
    pub(crate) table: &'static [Row],
    /// Rows that come before those of the table.
    pub(crate) overrides: &'static [Row],
}

pub(crate) const CLUSTER_CIDR: &str = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48";

/// Rows of a node that cannot tell pods.
#[rustfmt::skip]
const NO_DETECTOR: &[Row] = &[
    row(CLUSTER_IP, CLUSTER, SOME,            [All,  All,  All]),
    row(CLUSTER_IP, LOCAL,   HERE,            [Loc,  Loc,  Loc]),
    row(EXTERNAL,   LOCAL,   HERE,            [Loc,  AllM, Loc]),
    row(EXTERNAL,   LOCAL,   ELSEWHERE,       [Drop, AllM, Drop]),
];

/// Rows of a node that masquerades everything to cluster IPs.
#[rustfmt::skip]
const MASQUERADE_ALL: &[Row] = &[
    row(CLUSTER_IP, CLUSTER, SOME,            [AllM, AllM, AllM]),
    row(CLUSTER_IP, LOCAL,   HERE,            [LocM, LocM, LocM]),
];

#[rustfmt::skip]
const MASQUERADE_ALL_NO_DETECTOR: &[Row] = &[
    row(CLUSTER_IP, CLUSTER, SOME,            [AllM, AllM, AllM]),
    row(CLUSTER_IP, LOCAL,   HERE,            [LocM, LocM, LocM]),
    row(EXTERNAL,   LOCAL,   HERE,            [Loc,  AllM, Loc]),
    row(EXTERNAL,   LOCAL,   ELSEWHERE,       [Drop, AllM, Drop]),
];

const SECOND: &[Destination] = &[Destination::NodePortSecondAddress];

/// Rows of a node that serves node ports only on its first address. Where there is nothing to serve, packets to every address
/// of the node are refused or dropped nevertheless.
#[rustfmt::skip]
const RESTRICTED_NODE_PORTS: &[Row] = &[
    row(SECOND, CLUSTER, SOME,                [NodeItself, NodeItself, NodeItself]),
    row(SECOND, LOCAL,   HERE,                [NodeItself, NodeItself, NodeItself]),
    row(SECOND, LOCAL,   ELSEWHERE,           [Drop, Drop, Drop]),
    row(LOOPBACK_V4, CLUSTER, SOME,           [Never, NodeItself, Never]),
    row(LOOPBACK_V4, LOCAL, HERE,             [Never, NodeItself, Never]),
    row(LOOPBACK_V4, LOCAL, ELSEWHERE,        [Never, Drop, Never]),
];

#[rustfmt::skip]
const NO_LOOPBACK: &[Row] = &[
    row(LOOPBACK_V4, CLUSTER, SOME,           [Never, NodeItself, Never]),
    row(LOOPBACK_V4, LOCAL, HERE,             [Never, NodeItself, Never]),
    row(LOOPBACK_V4, LOCAL, ELSEWHERE,        [Never, Drop, Never]),
];

/// Pods told by the cluster's address range: the default.
pub(crate) const BY_CLUSTER_CIDR: Variation = Variation {
    name: "pods told by the cluster's address range",
    arguments: &[CLUSTER_CIDR],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: &[],
};

/// No way to tell pods.
pub(crate) const WITHOUT_DETECTOR: Variation = Variation {
    name: "no way to tell pods",
    arguments: &[],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: NO_DETECTOR,
};

/// Everything to cluster IPs masqueraded.
pub(crate) const WITH_MASQUERADE_ALL: Variation = Variation {
    name: "everything to cluster IPs masqueraded",
    arguments: &[CLUSTER_CIDR, "--masquerade-all=true"],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: MASQUERADE_ALL,
};

/// Everything to cluster IPs masqueraded, and no way to tell pods.
pub(crate) const WITH_MASQUERADE_ALL_WITHOUT_DETECTOR: Variation = Variation {
    name: "everything to cluster IPs masqueraded and no way to tell pods",
    arguments: &["--masquerade-all=true"],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: MASQUERADE_ALL_NO_DETECTOR,
};

/// Pods told by the node's address range.
pub(crate) const BY_NODE_CIDR: Variation = Variation {
    name: "pods told by the node's address range",
    arguments: &["--detect-local-mode=NodeCIDR"],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: &[],
};

/// Pods told by the bridge they come from.
pub(crate) const BY_BRIDGE: Variation = Variation {
    name: "pods told by their bridge",
    arguments: &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: &[],
};

/// Pods told by how their interface's name begins.
pub(crate) const BY_PREFIX: Variation = Variation {
    name: "pods told by the beginning of their interface's name",
    arguments: &["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cb"],
    remote_pod_as: Source::Outside,
    table: TABLE,
    overrides: &[],
};

/// Node ports only on the node's first address.
pub(crate) const WITH_NODE_PORT_ADDRESSES: Variation = Variation {
    name: "node ports only on the node's first address",
    arguments: &[CLUSTER_CIDR, "--nodeport-addresses=192.168.100.0/24,fd00:100::/64"],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: RESTRICTED_NODE_PORTS,
};

/// No node ports on 127.0.0.1.
pub(crate) const WITHOUT_LOOPBACK_NODE_PORTS: Variation = Variation {
    name: "no node ports on the loopback address",
    arguments: &[CLUSTER_CIDR, "--iptables-localhost-nodeports=false"],
    remote_pod_as: Source::Pod,
    table: TABLE,
    overrides: NO_LOOPBACK,
};

impl Variation {
    /// The verdict for a packet, if the table has a row for it.
    pub(crate) fn verdict(
        &self,
        destination: Destination,
        policy: Policy,
        usable: Usable,
        source: Source,
    ) -> Option<Verdict> {
        let row = self.overrides.iter().chain(self.table).find(|row| row.covers(destination, policy, usable))?;
        Some(match source {
            Source::RemotePod => return self.verdict(destination, policy, usable, self.remote_pod_as),
            Source::Pod => row.pod,
            Source::Node => row.node,
            Source::Outside => row.outside,
        })
    }
}

/// Every packet that can be thought of has exactly one row of the table, and every row of an override changes something.
pub(crate) fn assert_complete(variations: &[&Variation]) {
    let covering = |rows: &[Row], destination, policy, usable| {
        rows.iter().filter(|row| row.covers(destination, policy, usable)).count()
    };
    for destination in Destination::ALL {
        for policy in [Policy::Cluster, Policy::Local] {
            for usable in Usable::ALL {
                let place = format!("{destination:?}, policy {policy:?}, endpoints usable: {usable:?}");
                for variation in variations {
                    let count = covering(variation.table, destination, policy, usable);
                    assert_eq!(count, 1, "rows of the table of \"{}\" for {place}", variation.name);
                    let count = covering(variation.overrides, destination, policy, usable);
                    assert!(count <= 1, "rows of \"{}\" for {place}", variation.name);
                }
            }
        }
    }
}
