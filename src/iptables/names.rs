//! Chain names. Those with a hash are the same that kube-proxy gives to the same service port, so that one can replace
//! the other without a moment in which both sets of chains exist.

use std::net::SocketAddr;

use sha2::{Digest, Sha256};

use crate::iptables::layout::Layout;
use crate::kernel::ChainName;
use crate::model::ServicePortName;

/// Dispatch to cluster IPs and the outside addresses (nat), rejection of cluster IPs (filter).
pub const SERVICES: ChainName = ChainName::fixed("KUBE-SERVICES");
/// Node ports (nat), health-check node ports (filter).
pub const NODE_PORTS: ChainName = ChainName::fixed("KUBE-NODEPORTS");
/// Rejection and dropping of traffic to outside addresses (filter).
pub const EXTERNAL_SERVICES: ChainName = ChainName::fixed("KUBE-EXTERNAL-SERVICES");
/// Dropping of traffic that source ranges do not admit (filter).
pub const PROXY_FIREWALL: ChainName = ChainName::fixed("KUBE-PROXY-FIREWALL");
/// kubelet's chain, to which a rule against packets for 127.0.0.0/8 from outside is added (filter).
pub const FIREWALL: ChainName = ChainName::fixed("KUBE-FIREWALL");
/// Accepts forwarded service traffic (filter).
pub const FORWARD: ChainName = ChainName::fixed("KUBE-FORWARD");
/// Masquerades marked packets (nat).
pub const POSTROUTING: ChainName = ChainName::fixed("KUBE-POSTROUTING");
/// Marks packets for masquerading (nat).
pub const MARK_MASQ: ChainName = ChainName::fixed("KUBE-MARK-MASQ");
/// kube-proxy's telltale for flushed tables; portolan has none, but removes it.
pub const CANARY: ChainName = ChainName::fixed("KUBE-PROXY-CANARY");

/// IPVS mode: node ports (nat), health-check node ports (filter).
pub const NODE_PORT: ChainName = ChainName::fixed("KUBE-NODE-PORT");
/// IPVS mode: masquerades traffic to load-balancer VIPs (nat).
pub const LOAD_BALANCER: ChainName = ChainName::fixed("KUBE-LOAD-BALANCER");
/// IPVS mode: drops what source ranges do not admit (filter).
pub const SOURCE_RANGES_FIREWALL: ChainName = ChainName::fixed("KUBE-SOURCE-RANGES-FIREWALL");
/// IPVS mode: closes ports of local addresses that are no service ports (filter).
pub const IPVS_FILTER: ChainName = ChainName::fixed("KUBE-IPVS-FILTER");
/// IPVS mode: drops the node's own packets that source ranges do not admit (filter).
pub const IPVS_OUT_FILTER: ChainName = ChainName::fixed("KUBE-IPVS-OUT-FILTER");

/// Compact layout: masquerades traffic to cluster IPs from outside this node's pods (nat).
pub const SVC_MASQUERADE: ChainName = ChainName::fixed("KUBE-SVC-MASQUERADE");
/// Compact layout: the root of the entries of cluster IPs (nat).
pub const SVC_DISPATCH: ChainName = ChainName::fixed("KUBE-SVC-DISPATCH");
/// Compact layout: masquerades traffic to outside addresses with policy Cluster (nat).
pub const EXT_MASQUERADE: ChainName = ChainName::fixed("KUBE-EXT-MASQUERADE");
/// Compact layout: the root of the entries of outside addresses with policy Cluster (nat).
pub const EXT_DISPATCH: ChainName = ChainName::fixed("KUBE-EXT-DISPATCH");
/// Compact layout: the root of the entries of outside addresses with policy Local (nat).
pub const SVL_DISPATCH: ChainName = ChainName::fixed("KUBE-SVL-DISPATCH");
/// Compact layout: masquerades traffic to node ports with policy Cluster (nat).
pub const EXT_NODE_PORTS_MASQUERADE: ChainName = ChainName::fixed("KUBE-EXT-NODEPORTS-MASQ");
/// Compact layout: node ports with policy Cluster (nat).
pub const EXT_NODE_PORTS: ChainName = ChainName::fixed("KUBE-EXT-NODEPORTS");

/// Built-in chain.
pub const HOST_INPUT: ChainName = ChainName::fixed("INPUT");
/// Built-in chain.
pub const HOST_FORWARD: ChainName = ChainName::fixed("FORWARD");
/// Built-in chain.
pub const HOST_OUTPUT: ChainName = ChainName::fixed("OUTPUT");
/// Built-in chain.
pub const HOST_PREROUTING: ChainName = ChainName::fixed("PREROUTING");
/// Built-in chain.
pub const HOST_POSTROUTING: ChainName = ChainName::fixed("POSTROUTING");

/// Prefix of chains that dispatch by policy Cluster.
pub const SVC_PREFIX: &str = "KUBE-SVC-";
/// Prefix of chains that dispatch by policy Local.
pub const SVL_PREFIX: &str = "KUBE-SVL-";
/// Prefix of chains for traffic to outside addresses.
pub const EXT_PREFIX: &str = "KUBE-EXT-";
/// Prefix of chains for source ranges.
pub const FW_PREFIX: &str = "KUBE-FW-";
/// Prefix of chains for one endpoint of one service port.
pub const SEP_PREFIX: &str = "KUBE-SEP-";

/// All prefixes of chains of service ports, which exist in nat only.
pub const PREFIXES: [&str; 5] = [SVC_PREFIX, SVL_PREFIX, EXT_PREFIX, FW_PREFIX, SEP_PREFIX];

/// Compact layout: prefix of chains between the root of the entries of cluster IPs and its leaves.
pub const SVC_BRANCH_PREFIX: &str = "KUBE-SVC-BY-";
/// Compact layout: prefix of chains that hold entries of cluster IPs.
pub const SVC_LEAF_PREFIX: &str = "KUBE-SVC-TO-";
/// Compact layout: prefix of chains that hold entries of outside addresses with policy Cluster.
pub const EXT_LEAF_PREFIX: &str = "KUBE-EXT-TO-";
/// Compact layout: prefix of chains that hold entries of outside addresses with policy Local.
pub const SVL_LEAF_PREFIX: &str = "KUBE-SVL-TO-";

/// The prefixes of chains whose rules belong to many Services; nat only. No hash has a dash.
pub const LEAF_PREFIXES: [&str; 3] = [SVC_LEAF_PREFIX, EXT_LEAF_PREFIX, SVL_LEAF_PREFIX];

/// The chain names of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortChains {
    /// Policy Cluster.
    pub svc: ChainName,
    /// Policy Local.
    pub svl: ChainName,
    /// Traffic to outside addresses.
    pub ext: ChainName,
    /// Source ranges.
    pub fw: ChainName,
}

impl PortChains {
    /// The names for a service port in a layout; its displayed name is `text`.
    pub(crate) fn new(text: &str, name: &ServicePortName, layout: Layout) -> PortChains {
        let suffix = match layout {
            Layout::KubeProxy => "",
            Layout::Compact => " compact",
        };
        let hash = hash16(&[text, name.protocol.as_str(), suffix]);
        PortChains {
            svc: join(SVC_PREFIX, &hash),
            svl: join(SVL_PREFIX, &hash),
            ext: join(EXT_PREFIX, &hash),
            fw: join(FW_PREFIX, &hash),
        }
    }

    /// The names for a service port in kube-proxy's layout.
    pub fn of(name: &ServicePortName) -> PortChains {
        PortChains::new(&name.to_string(), name, Layout::KubeProxy)
    }
}

/// The name of the chain of one endpoint of one service port.
pub fn endpoint_chain(name: &ServicePortName, endpoint: SocketAddr) -> ChainName {
    endpoint_chain_of_text(&name.to_string(), name, endpoint)
}

/// The same for a service port whose displayed name is `text`.
pub(crate) fn endpoint_chain_of_text(text: &str, name: &ServicePortName, endpoint: SocketAddr) -> ChainName {
    join(SEP_PREFIX, &hash16(&[text, name.protocol.as_str(), &endpoint.to_string()]))
}

const BASE32: [u8; 32] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The first 16 characters of the RFC 4648 base32 form of the SHA-256 of the joined parts: its first 80 bits.
fn hash16(parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    let bits = digest.iter().take(10).fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    std::array::from_fn(|at| BASE32[(bits >> (75 - 5 * at)) as usize & 31])
}

fn join(prefix: &str, hash: &[u8; 16]) -> ChainName {
    let mut name = String::with_capacity(ChainName::MAX);
    name.push_str(prefix);
    name.extend(hash.iter().map(|byte| char::from(*byte)));
    // Every prefix has at most nine bytes, and base32 is printable.
    ChainName::fixed(&name)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::ServiceName;
    use crate::net::Protocol;

    fn port(namespace: &str, service: &str, port: &str, protocol: Protocol) -> ServicePortName {
        ServicePortName { service: ServiceName::new(namespace, service), port: port.into(), protocol }
    }

    #[rstest]
    #[case(port("ns1", "svc1", "p80", Protocol::Tcp), "XPGD46QRK7WJZT7O")]
    #[case(port("ns2", "svc2", "p80", Protocol::Tcp), "GNZBNJ2PO5MGZ6GT")]
    #[case(port("ns5", "svc5", "p80", Protocol::Tcp), "NUKIZ6OKUXPJNT4C")]
    #[case(port("ns2", "svc2", "p8080", Protocol::Tcp), "2VJB64SDSIJUP5T6")]
    #[case(port("kube-system", "kube-dns", "dns", Protocol::Udp), "TCOU7JCQXEZGVUNU")]
    #[case(port("default", "kubernetes", "https", Protocol::Tcp), "NPX46M4PTMTKRN6Y")]
    #[case(port("kube-system", "kube-dns", "", Protocol::Udp), "GTAKZ6FHUTF7RBRM")]
    fn service_port_chains_are_named_as_kube_proxy_names_them(#[case] name: ServicePortName, #[case] hash: &str) {
        let chains = PortChains::of(&name);
        assert_eq!(chains.svc.as_str(), format!("KUBE-SVC-{hash}"));
        assert_eq!(chains.svl.as_str(), format!("KUBE-SVL-{hash}"));
        assert_eq!(chains.ext.as_str(), format!("KUBE-EXT-{hash}"));
        assert_eq!(chains.fw.as_str(), format!("KUBE-FW-{hash}"));
    }

    #[rstest]
    #[case(port("ns1", "svc1", "p80", Protocol::Tcp), "10.180.0.1:80", "KUBE-SEP-SXIVWICOYRO3J4NJ")]
    #[case(port("ns4", "svc4", "p80", Protocol::Tcp), "10.180.0.5:80", "KUBE-SEP-C6EBXVWJJZMIWKLZ")]
    #[case(port("ns5", "svc5", "p80", Protocol::Tcp), "10.180.0.3:80", "KUBE-SEP-I77PXRDZVX7PMWMN")]
    #[case(port("default", "kubernetes", "https", Protocol::Tcp), "[fd00::1]:6443", "KUBE-SEP-7YRPYSN65VLT7QRK")]
    fn endpoint_chains_are_named_as_kube_proxy_names_them(
        #[case] name: ServicePortName,
        #[case] endpoint: &str,
        #[case] chain: &str,
    ) {
        assert_eq!(endpoint_chain(&name, endpoint.parse().unwrap()).as_str(), chain);
    }
}
