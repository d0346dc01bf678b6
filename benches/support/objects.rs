//! The objects of a [`Fleet`] as an API server sends them, with the fields that nobody reads.

use serde_json::{Value, json};

use super::fleet::{self, Fleet};

/// The own Node.
pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-0", "labels": {"kubernetes.io/hostname": "node-0"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
    })
}

/// The Service with this number.
pub(crate) fn service(at: u32) -> Value {
    let (name, address) = (fleet::name(at), fleet::cluster_ip(at));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": &*name.name,
            "namespace": &*name.namespace,
            "uid": uid(at, 1),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": &*name.name},
            "managedFields": managed("kubectl", "Apply"),
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": &*name.name},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The slice of the Service with this number in one of its generations.
pub(crate) fn slice(fleet: Fleet, at: u32, generation: u32) -> Value {
    let (service, slice) = (fleet::name(at), fleet::slice_name(at));
    let endpoint = |host: u32| {
        json!({
            "addresses": [fleet.address(at, host)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": fleet::node_name(host),
            "zone": "zone-a",
            "targetRef": {"kind": "Pod", "namespace": &*service.namespace, "name": format!("{}-7c5ddbdf54-{host:05}", service.name),
                          "uid": uid(at, host + 2)},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": &*slice.name,
            "generateName": format!("{}-", service.name),
            "namespace": &*slice.namespace,
            "uid": uid(at, 0),
            "generation": generation + 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app": &*service.name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": &*service.name,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:01Z"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": &*service.name, "controller": true,
                                 "blockOwnerDeletion": true, "uid": uid(at, 1)}],
            "managedFields": managed("kube-controller-manager", "Update"),
        },
        "addressType": "IPv4",
        "endpoints": fleet.hosts(generation).map(endpoint).collect::<Vec<Value>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn uid(at: u32, of: u32) -> String {
    format!("4f7e9f7a-93cf-4d5b-{of:04x}-{at:012x}")
}

fn managed(manager: &str, operation: &str) -> Value {
    json!([{"manager": manager, "operation": operation, "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:ports": {}}}])
}
