//! What rules say about the sets that they look into: kube-proxy's words.

use crate::kernel::SetName;

/// The comment of a rule that looks into a set.
pub fn comment(set: SetName) -> &'static str {
    match set {
        SetName::LoopBack => "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
        SetName::LoadBalancerSourceCidr => {
            "Kubernetes service load balancer ip + port + source cidr for packet filter purpose"
        }
        SetName::LoadBalancerSourceIp => {
            "Kubernetes service load balancer ip + port + source IP for packet filter purpose"
        }
        SetName::LoadBalancerFirewall => {
            "Kubernetes service load balancer ip + port for load balancer with sourceRange"
        }
        SetName::NoLocalEndpoints => "Kubernetes service ip + port with endpoints on other nodes only",
        SetName::LoadBalancerLocal => "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
        SetName::LoadBalancer => "Kubernetes service lb portal",
        SetName::ExternalIpLocal => "Kubernetes service external ip + port with externalTrafficPolicy=local",
        SetName::ExternalIp => "Kubernetes service external ip + port for masquerade and filter purpose",
        SetName::ClusterIp => "Kubernetes service cluster ip + port for masquerade purpose",
        SetName::NodePortLocalTcp => "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
        SetName::NodePortTcp => "Kubernetes nodeport TCP port for masquerade purpose",
        SetName::NodePortLocalUdp => "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
        SetName::NodePortUdp => "Kubernetes nodeport UDP port for masquerade purpose",
        SetName::NodePortLocalSctp => {
            "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'"
        }
        SetName::NodePortSctp => "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
        SetName::HealthCheckNodePort => "Kubernetes health check node port",
        SetName::IpvsIps => "Addresses on the ipvs interface",
    }
}
