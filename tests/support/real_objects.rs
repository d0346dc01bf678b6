//! Objects with all that a real API server sends: owners, times, labels of a chart, and `managedFields`, which are nearly half of
//! a Service and which no client can ask to be left out.

use serde_json::{Value, json};

const CREATED: &str = "2026-03-14T09:26:53Z";

/// Something that looks like a UID and is another for each kind and number.
fn uid(kind: u32, number: u32) -> String {
    // A real one cannot be compressed, and neither can this.
    let mixed =
        u64::from(number).wrapping_add(u64::from(kind) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let other = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (mixed >> 31);
    let text = format!("{mixed:016x}{other:016x}");
    format!("{}-{}-4{}-8{}-{}", &text[..8], &text[8..12], &text[13..16], &text[17..20], &text[20..])
}

fn names(number: u32) -> (String, String) {
    (format!("team-{}", number % 40), format!("backend-{number}"))
}

fn labels(name: &str) -> Value {
    json!({"app.kubernetes.io/instance": name, "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/name": name,
           "helm.sh/chart": "backend-1.4.2"})
}

fn label_fields() -> Value {
    json!({".": {}, "f:app.kubernetes.io/instance": {}, "f:app.kubernetes.io/managed-by": {},
           "f:app.kubernetes.io/name": {}, "f:helm.sh/chart": {}})
}

/// A Service of type ClusterIP with one port, installed by a chart.
pub(crate) fn service(number: u32) -> Value {
    let (namespace, name) = names(number);
    let ip = format!("10.{}.{}.{}", 96 + (number >> 16), number >> 8 & 255, number & 255);
    json!({
        "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace, "uid": uid(1, number), "creationTimestamp": CREATED, "labels": labels(&name),
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace},
            "managedFields": [{
                "manager": "helm", "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {
                        "f:annotations": {".": {}, "f:meta.helm.sh/release-name": {}, "f:meta.helm.sh/release-namespace": {}},
                        "f:labels": label_fields()},
                    "f:spec": {
                        "f:internalTrafficPolicy": {},
                        "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                            ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}},
                        "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}}}}],
        },
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "selector": {"app.kubernetes.io/instance": name, "app.kubernetes.io/name": name},
            "clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "sessionAffinity": "None", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"},
        "status": {"loadBalancer": {}},
    })
}

/// The slice of that Service with so many endpoints, all of them pods of a Deployment.
pub(crate) fn slice(number: u32, endpoints: u32) -> Value {
    let (namespace, name) = names(number);
    let owner = uid(1, number);
    let endpoint = |index: u32| {
        let pod = number * endpoints + index;
        json!({"addresses": [format!("10.{}.{}.{}", 128 + (pod >> 16), pod >> 8 & 255, pod & 255)],
               "conditions": {"ready": true, "serving": true, "terminating": false},
               "targetRef": {"kind": "Pod", "namespace": namespace, "uid": uid(3, pod),
                             "name": format!("{name}-{:08x}-{:05x}", uid_part(number), uid_part(pod) & 0xf_ffff)},
               "nodeName": format!("worker-{}.eu-west-1.compute.internal", pod % 500),
               "zone": format!("eu-west-1{}", ["a", "b", "c"][pod as usize % 3])})
    };
    let mut labels = labels(&name);
    labels["endpointslice.kubernetes.io/managed-by"] = json!("endpointslice-controller.k8s.io");
    labels["kubernetes.io/service-name"] = json!(name);
    let mut fields = label_fields();
    fields["f:endpointslice.kubernetes.io/managed-by"] = json!({});
    fields["f:kubernetes.io/service-name"] = json!({});
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-{:05x}", uid_part(number) & 0xf_ffff), "generateName": format!("{name}-"),
            "namespace": namespace, "uid": uid(2, number), "generation": 7, "creationTimestamp": CREATED, "labels": labels,
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-03-14T09:27:12Z"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "uid": owner, "controller": true,
                                 "blockOwnerDeletion": true}],
            "managedFields": [{
                "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "discovery.k8s.io/v1",
                "time": "2026-03-14T09:27:12Z", "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
                    "f:metadata": {
                        "f:annotations": {".": {}, "f:endpoints.kubernetes.io/last-change-trigger-time": {}},
                        "f:generateName": {}, "f:labels": fields,
                        "f:ownerReferences": {".": {}, format!("k:{{\"uid\":\"{owner}\"}}"): {}}}}}],
        },
        "addressType": "IPv4",
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn uid_part(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b9).rotate_left(13)
}
