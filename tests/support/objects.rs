//! Kubernetes objects for tests with a fake API server.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::IpAddr;

use serde_json::{Value, json};

/// The namespace of all objects.
pub(crate) const NAMESPACE: &str = "shop";

/// A Service in both families or one: its port 80 of TCP and UDP leads to port 8080 of its endpoints.
pub(crate) fn service(name: &str, cluster_ips: &[IpAddr]) -> Value {
    let families: Vec<&str> = cluster_ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": 80, "protocol": protocol});
    json!({"kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
           "spec": {"type": "ClusterIP", "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                    "ipFamilies": families, "ports": [port("TCP"), port("UDP")]}})
}

/// Gives the ports of a Service these node ports.
pub(crate) fn with_node_port(mut service: Value, node_port: u16) -> Value {
    service["spec"]["type"] = json!("NodePort");
    for port in service["spec"]["ports"].as_array_mut().expect("ports") {
        port["nodePort"] = json!(node_port);
    }
    service
}

/// Makes a Service one behind a load balancer with external traffic policy Local.
pub(crate) fn balanced(service: Value, node_port: u16, health_port: u16, vips: &[IpAddr]) -> Value {
    let mut service = with_node_port(service, node_port);
    let ingress: Vec<Value> = vips.iter().map(|vip| json!({"ip": vip, "ipMode": "VIP"})).collect();
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(health_port);
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    service
}

/// What an endpoint is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It serves.
    Ready,
    /// It does not serve, and will again or for the first time.
    Unready,
    /// It is going to end and still serves.
    Terminating,
}

/// An endpoint in a slice.
pub(crate) fn endpoint(address: IpAddr, node: &str, phase: Phase) -> Value {
    let (ready, serving, terminating) = match phase {
        Phase::Ready => (true, true, false),
        Phase::Unready => (false, false, false),
        Phase::Terminating => (false, true, true),
    };
    json!({"addresses": [address], "nodeName": node,
           "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

/// A slice of a Service made by [`service`]. There is one for each family.
pub(crate) fn slice(service: &str, family: &str, endpoints: &[Value]) -> Value {
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": 8080, "protocol": protocol});
    json!({"kind": "EndpointSlice", "addressType": family, "endpoints": endpoints,
           "metadata": {"name": format!("{service}-{}", family.to_lowercase()), "namespace": NAMESPACE,
                        "labels": {"kubernetes.io/service-name": service}},
           "ports": [port("TCP"), port("UDP")]})
}

/// A Node with these addresses.
pub(crate) fn node(name: &str, addresses: &[IpAddr]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({"kind": "Node", "metadata": {"name": name}, "spec": {}, "status": {"addresses": addresses}})
}
