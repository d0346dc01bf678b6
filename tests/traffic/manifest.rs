//! Services and their endpoints as values, and the manifests that say the same.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Family, Pod};

/// Both protocols, in the order in which the ports of a Service are listed.
pub(crate) const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Policy {
    /// Any endpoint.
    Cluster,
    /// Only endpoints of the node.
    Local,
}

/// An endpoint and its conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    /// The pod.
    pub(crate) pod: Pod,
    /// `conditions.ready`.
    pub(crate) ready: bool,
    /// `conditions.serving`.
    pub(crate) serving: bool,
    /// `conditions.terminating`.
    pub(crate) terminating: bool,
    /// Whether the endpoint says on which node it is.
    pub(crate) has_node_name: bool,
}

impl Endpoint {
    /// A ready endpoint.
    pub(crate) const fn ready(pod: Pod) -> Endpoint {
        Endpoint { pod, ready: true, serving: true, terminating: false, has_node_name: true }
    }

    /// An endpoint that is starting.
    pub(crate) const fn unready(pod: Pod) -> Endpoint {
        Endpoint { pod, ready: false, serving: false, terminating: false, has_node_name: true }
    }

    /// An endpoint that is shutting down and still answers.
    pub(crate) const fn terminating(pod: Pod) -> Endpoint {
        Endpoint { pod, ready: false, serving: true, terminating: true, has_node_name: true }
    }
}

/// A dual-stack Service with one TCP and one UDP port of the same numbers, and its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Its name, in namespace `default`.
    pub(crate) name: String,
    /// Its cluster IPs are the ones with this number.
    pub(crate) cluster_ip: u8,
    /// The port number on service addresses.
    pub(crate) port: u16,
    /// The port on which the endpoints listen.
    pub(crate) target_port: u16,
    /// The node port; 0: none.
    pub(crate) node_port: u16,
    /// `spec.externalIPs`.
    pub(crate) external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`, with `ipMode: Proxy` if so marked. Any at all, or a health check port, make the type
    /// LoadBalancer.
    pub(crate) ingress: Vec<(IpAddr, bool)>,
    /// `spec.loadBalancerSourceRanges`.
    pub(crate) source_ranges: Vec<String>,
    /// `spec.healthCheckNodePort`; 0: none.
    pub(crate) health_check_node_port: u16,
    /// `spec.internalTrafficPolicy`.
    pub(crate) internal: Policy,
    /// `spec.externalTrafficPolicy`.
    pub(crate) external: Policy,
    /// Client IP affinity with this time-out in seconds.
    pub(crate) affinity: Option<u32>,
    /// Its endpoints; `None`: there are no slices.
    pub(crate) endpoints: Option<Vec<Endpoint>>,
}

impl Service {
    /// A plain Service on port 80 with ready endpoints: cluster IP `172.30.0.<number>`, target port 8000 + number.
    pub(crate) fn new(name: &str, number: u8, endpoints: &[Pod]) -> Service {
        Service {
            name: name.to_owned(),
            cluster_ip: number,
            port: 80,
            target_port: 8000 + u16::from(number),
            node_port: 0,
            external_ips: Vec::new(),
            ingress: Vec::new(),
            source_ranges: Vec::new(),
            health_check_node_port: 0,
            internal: Policy::Cluster,
            external: Policy::Cluster,
            affinity: None,
            endpoints: Some(endpoints.iter().copied().map(Endpoint::ready).collect()),
        }
    }

    /// Replaces the endpoints by ready ones.
    pub(crate) fn set_endpoints(&mut self, pods: &[Pod]) {
        self.endpoints = Some(pods.iter().copied().map(Endpoint::ready).collect());
    }

    /// The Service and its slices as one YAML stream.
    pub(crate) fn manifest(&self) -> String {
        let mut text = self.service_manifest();
        for family in FAMILIES {
            text.push_str(&self.slice_manifest(family));
        }
        text
    }

    fn service_manifest(&self) -> String {
        let kind = if !self.ingress.is_empty() || self.health_check_node_port != 0 {
            "LoadBalancer"
        } else if self.node_port != 0 {
            "NodePort"
        } else {
            "ClusterIP"
        };
        let [v4, v6] = FAMILIES.map(|family| crate::netns::world::cluster_ip(family, self.cluster_ip));
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: default\nspec:\n  type: {kind}\n  clusterIP: \
             {v4}\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  \
             internalTrafficPolicy: {:?}\n",
            self.name, self.internal
        );
        if kind != "ClusterIP" || !self.external_ips.is_empty() {
            let _ = writeln!(text, "  externalTrafficPolicy: {:?}", self.external);
        }
        if let Some(seconds) = self.affinity {
            let _ = writeln!(text, "  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:");
            let _ = writeln!(text, "      timeoutSeconds: {seconds}");
        }
        if self.health_check_node_port != 0 {
            let _ = writeln!(text, "  healthCheckNodePort: {}", self.health_check_node_port);
        }
        if !self.source_ranges.is_empty() {
            let _ = writeln!(text, "  loadBalancerSourceRanges: {:?}", self.source_ranges);
        }
        if !self.external_ips.is_empty() {
            let addresses: Vec<String> = self.external_ips.iter().map(IpAddr::to_string).collect();
            let _ = writeln!(text, "  externalIPs: {addresses:?}");
        }
        text.push_str("  ports:\n");
        for proto in PROTOS {
            let upper = proto.to_string().to_uppercase();
            let _ = writeln!(text, "  - name: {proto}\n    protocol: {upper}\n    port: {}", self.port);
            let _ = writeln!(text, "    targetPort: {}", self.target_port);
            if self.node_port != 0 {
                let _ = writeln!(text, "    nodePort: {}", self.node_port);
            }
        }
        if !self.ingress.is_empty() {
            text.push_str("status:\n  loadBalancer:\n    ingress:\n");
            for (address, proxy) in &self.ingress {
                let mode = if *proxy { "Proxy" } else { "VIP" };
                let _ = writeln!(text, "    - ip: \"{address}\"\n      ipMode: {mode}");
            }
        }
        text
    }

    fn slice_manifest(&self, family: Family) -> String {
        let Some(endpoints) = &self.endpoints else { return String::new() };
        let kind = family.pick("IPv4", "IPv6");
        let mut text = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {0}-{1}\n  namespace: default\n  \
             labels:\n    kubernetes.io/service-name: {0}\naddressType: {kind}\nports:\n",
            self.name,
            kind.to_lowercase()
        );
        for proto in PROTOS {
            let upper = proto.to_string().to_uppercase();
            let _ = writeln!(text, "- name: {proto}\n  protocol: {upper}\n  port: {}", self.target_port);
        }
        text.push_str(if endpoints.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
        for endpoint in endpoints {
            let _ = writeln!(
                text,
                "- addresses: [\"{}\"]\n  conditions:\n    ready: {}\n    serving: {}\n    terminating: {}",
                endpoint.pod.address(family),
                endpoint.ready,
                endpoint.serving,
                endpoint.terminating
            );
            if endpoint.has_node_name {
                let _ = writeln!(text, "  nodeName: {}", endpoint.pod.node());
            }
        }
        text
    }
}

/// A directory of manifests.
pub(crate) struct Manifests {
    directory: tempfile::TempDir,
}

impl Manifests {
    /// A directory with a Node and these Services, one file for each.
    pub(crate) fn new(services: &[Service]) -> Manifests {
        let manifests = Manifests { directory: tempfile::tempdir().expect("directory") };
        let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: node1\nspec:\n  podCIDR: 10.244.0.0/24\n  podCIDRs: \
                    [\"10.244.0.0/24\", \"fd00:10:244::/64\"]\nstatus:\n  addresses:\n  - type: InternalIP\n    address: \
                    192.168.100.1\n  - type: InternalIP\n    address: \"fd00:100::1\"\n";
        manifests.put("node1", node);
        services.iter().for_each(|service| manifests.apply(service));
        manifests
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Adds or replaces a Service, at one stroke.
    pub(crate) fn apply(&self, service: &Service) {
        self.put(&service.name, &service.manifest());
    }

    /// Removes a Service and its slices.
    pub(crate) fn delete(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("remove manifest");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.yaml"))
    }

    /// Adds or replaces a file with this text, at one stroke.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let draft = self.path().join(format!(".{name}.draft"));
        fs::write(&draft, text).expect("write manifest");
        fs::rename(&draft, self.file(name)).expect("rename manifest");
    }
}
