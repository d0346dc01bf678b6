use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::{parse_cidr, parse_ip};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::{Conditions, EndpointSlice, Node, Service, ServiceName, SliceName, TrafficPolicy};

fn convert_service(object: &Value) -> (Option<(ServiceName, Option<Service>)>, Vec<Note>) {
    service(&serde_json::from_str(&object.to_string()).unwrap(), &mut Interner::default())
}

fn convert_slice(object: &Value) -> (Option<(SliceName, Option<EndpointSlice>)>, Vec<Note>) {
    slice(&serde_json::from_str(&object.to_string()).unwrap(), &mut Interner::default())
}

fn convert_node(object: &Value) -> (Node, Vec<Note>) {
    node(&serde_json::from_str(&object.to_string()).unwrap(), &mut Interner::default())
}

/// The Service and the notes as text, of a spec that is merged over a plain one.
fn spec(over: Value) -> (Option<Service>, Vec<String>) {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
                 "ports": [{"port": 80}]},
    });
    for (key, value) in over.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    let (service, notes) = convert_service(&object);
    (service.unwrap().1, notes.iter().map(ToString::to_string).collect())
}

fn clean_spec(over: Value) -> Service {
    let (service, notes) = spec(over);
    assert_eq!(notes, Vec::<String>::new());
    service.unwrap()
}

fn slice_with(over: Value) -> (Option<EndpointSlice>, Vec<String>) {
    let mut object = json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.0.1"]}],
    });
    for (key, value) in over.as_object().unwrap() {
        object[key] = value.clone();
    }
    let (slice, notes) = convert_slice(&object);
    (slice.unwrap().1, notes.iter().map(ToString::to_string).collect())
}

#[test]
fn a_full_service_is_read_in_all_its_parts() {
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "managedFields": [{"manager": "x"}], "labels": {"a": "b"}},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["192.0.2.1", "2001:db8::1", "192.0.2.1", " "],
            "loadBalancerSourceRanges": [" 198.51.100.7/24 ", "::/0"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": "web"},
                      {"name": "http", "port": 80, "protocol": "UDP"}],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"},
            {"ip": "203.0.113.3", "ipMode": "VIP"}]}},
    });
    let (service, notes) = convert_service(&object);
    assert_eq!(notes, []);
    let (name, service) = service.unwrap();
    let service = service.unwrap();
    assert_eq!(name, ServiceName::new("shop", "web"));
    assert_eq!(service.cluster_ip_v4, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(service.cluster_ip_v6, Some("fd00::1".parse().unwrap()));
    assert_eq!(*service.external_ips, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    let vips: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "203.0.113.3".parse().unwrap()];
    assert_eq!(*service.load_balancer_vips, vips);
    let ranges: [IpNet; 2] = ["198.51.100.0/24".parse().unwrap(), "::/0".parse().unwrap()];
    assert_eq!(*service.load_balancer_source_ranges, ranges);
    assert_eq!(service.affinity_seconds, Some(60));
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port, NonZeroU16::new(31000));
    assert_eq!(service.ports.len(), 2);
    assert_eq!((&*service.ports[0].name, service.ports[0].port.get()), ("http", 80));
    assert_eq!(service.ports[0].node_port, NonZeroU16::new(30080));
    assert_eq!((service.ports[1].protocol, service.ports[1].node_port), (Protocol::Udp, None));
}

#[rstest]
#[case::headless(json!({"clusterIP": "None", "clusterIPs": ["None"]}))]
#[case::not_yet_allocated(json!({"clusterIP": "", "clusterIPs": []}))]
#[case::null(json!({"clusterIP": null}))]
#[case::external_name(json!({"type": "ExternalName"}))]
fn services_without_cluster_ip_are_not_served_and_need_no_note(#[case] over: Value) {
    assert_eq!(spec(over), (None, vec![]));
}

#[test]
fn a_service_of_another_proxy_is_not_served() {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": {"service.kubernetes.io/service-proxy-name": ""}},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    });
    assert_eq!(convert_service(&object), (Some((ServiceName::new("shop", "web"), None)), vec![]));
}

#[test]
fn an_old_service_without_families_has_the_family_of_its_cluster_ip() {
    let service = clean_spec(json!({"clusterIP": "fd00::7", "clusterIPs": null, "ipFamilies": null}));
    assert_eq!((service.cluster_ip_v4, service.cluster_ip_v6), (None, Some("fd00::7".parse().unwrap())));
}

#[test]
fn the_second_family_may_be_the_one_of_the_second_address() {
    let service = clean_spec(json!({"clusterIP": "fd00::7", "clusterIPs": ["fd00::7", "10.0.0.9"],
                                    "ipFamilies": ["IPv6", "IPv4"]}));
    assert_eq!(service.cluster_ip_v4, Some("10.0.0.9".parse().unwrap()));
    assert_eq!(service.cluster_ip_v6, Some("fd00::7".parse().unwrap()));
}

#[test]
fn leading_zeros_are_decimal_and_need_no_note() {
    let service = clean_spec(json!({"clusterIP": "010.000.0.01", "clusterIPs": ["010.000.0.01"],
                                    "loadBalancerSourceRanges": ["010.1.2.3/08"]}));
    assert_eq!(service.cluster_ip_v4, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(*service.load_balancer_source_ranges, ["10.0.0.0/8".parse::<IpNet>().unwrap()]);
}

#[rstest]
#[case::zero(json!({"port": 0}), "spec.ports[0].port: 0 is not a port number; the port is left out")]
#[case::too_big(json!({"port": 70000}), "spec.ports[0].port: 70000 is not a port number; the port is left out")]
#[case::negative(json!({"port": -1}), "spec.ports[0].port: -1 is not a port number; the port is left out")]
#[case::float(json!({"port": 80.5}), "spec.ports[0].port: 80.5 is not a port number; the port is left out")]
#[case::string(json!({"port": "80"}), "spec.ports[0].port: \"80\" is not a port number; the port is left out")]
#[case::huge(json!({"port": u64::MAX}),
    "spec.ports[0].port: 18446744073709551615 is not a port number; the port is left out")]
#[case::absent(json!({}), "spec.ports[0].port: there is no port number; the port is left out")]
#[case::null(Value::Null, "spec.ports[0].port: there is no port number; the port is left out")]
#[case::not_an_object(json!(80), "spec.ports[0]: 80 is not an object; ignored")]
#[case::unknown_protocol(json!({"port": 80, "protocol": "ICMP"}),
    "spec.ports[0].protocol: \"ICMP\" is not a known protocol; the port is left out")]
#[case::name_with_line_break(json!({"port": 80, "name": "a\n-A X"}),
    "spec.ports[0].name: \"a\\n-A X\" is not a port name; the port is left out")]
fn a_port_that_cannot_be_used_is_left_out_and_the_others_stay(#[case] bad: Value, #[case] note: &str) {
    let (service, notes) = spec(json!({"ports": [bad, {"name": "good", "port": 81}]}));
    let names: Vec<_> = service.unwrap().ports.iter().map(|port| port.name.to_string()).collect();
    assert_eq!(names, ["good"]);
    assert_eq!(notes, [format!("Service shop/web: {note}")]);
}

#[test]
fn of_two_ports_with_the_same_name_and_protocol_the_first_counts() {
    let (service, notes) = spec(json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}));
    assert_eq!(service.unwrap().ports[0].port.get(), 1);
    assert_eq!(notes, ["Service shop/web: spec.ports[1]: a second tcp port with the name \"a\"; it is left out"]);
}

#[test]
fn a_node_port_out_of_range_leaves_the_port_without_one() {
    let (service, notes) = spec(json!({"ports": [{"port": 80, "nodePort": 99999}]}));
    assert_eq!(service.unwrap().ports[0].node_port, None);
    assert_eq!(notes.len(), 1);
}

#[rstest]
#[case::load_balancer(json!({"type": "LoadBalancer", "healthCheckNodePort": 32000}), TrafficPolicy::Local)]
#[case::node_port(json!({"type": "NodePort"}), TrafficPolicy::Local)]
#[case::external_ips(json!({"externalIPs": ["192.0.2.1"]}), TrafficPolicy::Local)]
#[case::cluster_ip_only(json!({}), TrafficPolicy::Cluster)]
fn external_policy_counts_only_where_traffic_can_come_from_outside(
    #[case] mut over: Value,
    #[case] want: TrafficPolicy,
) {
    over["externalTrafficPolicy"] = json!("Local");
    assert_eq!(clean_spec(over).external_traffic_policy, want);
}

#[test]
fn a_local_load_balancer_without_health_check_port_is_noted() {
    let (service, notes) = spec(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}));
    assert_eq!(service.unwrap().health_check_node_port, None);
    assert!(notes[0].contains("spec.healthCheckNodePort: 0 is not a port number"), "{notes:?}");
}

#[rstest]
#[case::absent(json!({}), 10_800, 0)]
#[case::null(json!({"sessionAffinityConfig": null}), 10_800, 0)]
#[case::given(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}), 7, 0)]
#[case::zero(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}), 10_800, 1)]
#[case::negative(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -7}}}), 10_800, 1)]
#[case::string(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": "7"}}}), 10_800, 1)]
fn affinity_falls_back_to_three_hours(#[case] mut over: Value, #[case] seconds: u32, #[case] noted: usize) {
    over["sessionAffinity"] = json!("ClientIP");
    let (service, notes) = spec(over);
    assert_eq!((service.unwrap().affinity_seconds, notes.len()), (Some(seconds), noted));
}

#[rstest]
#[case(json!({"clusterIP": 7}), "spec.clusterIP: 7 is not a string; ignored", false)]
#[case(json!({"clusterIPs": ["banana"]}), "spec.clusterIPs[0]: \"banana\" is not an IP address; ignored", false)]
#[case(json!({"clusterIPs": ["fd00::1"]}),
    "spec.clusterIPs[0]: fd00::1 is not an IPv4 address, which spec.ipFamilies promises; ignored", false)]
#[case(json!({"externalIPs": "192.0.2.1"}), "spec.externalIPs: \"192.0.2.1\" is not a list; ignored", true)]
#[case(json!({"externalIPs": ["x"]}), "spec.externalIPs[0]: \"x\" is not an IP address; ignored", true)]
#[case(json!({"loadBalancerSourceRanges": ["10.0.0.0/33"]}),
    "spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is not a CIDR; ignored", true)]
#[case(json!({"internalTrafficPolicy": "Nearby"}),
    "spec.internalTrafficPolicy: \"Nearby\" is not Cluster or Local; taken for Cluster", true)]
#[case(json!({"type": "Magic"}), "spec.type: \"Magic\" is not a known type; taken for ClusterIP", true)]
fn a_wrong_field_is_noted_and_costs_only_itself(#[case] over: Value, #[case] note: &str, #[case] served: bool) {
    let (service, notes) = spec(over);
    assert_eq!(notes, [format!("Service shop/web: {note}")]);
    assert_eq!(service.is_some(), served);
}

#[rstest]
#[case(json!({"metadata": {"name": "web"}}))]
#[case(json!({"metadata": {"namespace": "shop"}}))]
#[case(json!({"metadata": {"name": "a/b", "namespace": "shop"}}))]
#[case(json!({"metadata": {"name": "a\nb", "namespace": "shop"}}))]
#[case(json!({"metadata": {"name": "x".repeat(64), "namespace": "shop"}}))]
#[case(json!({"metadata": {"name": "web", "namespace": "x".repeat(64)}}))]
#[case(json!({"metadata": []}))]
#[case(json!({}))]
#[case(json!(5))]
fn an_object_without_usable_name_is_left_out_with_a_note(#[case] object: Value) {
    let (service, notes) = convert_service(&object);
    assert_eq!(service, None);
    assert!(!notes.is_empty());
    assert!(notes.iter().all(|note| !note.to_string().contains('\n')));
}

#[test]
fn a_full_slice_is_read_in_all_its_parts() {
    let object = json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.5Z"}},
        "addressType": "IPv6",
        "ports": [{"name": "http", "port": 8080}, {"port": 53, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": ["fd00::a"], "nodeName": "n1", "zone": "z1",
             "conditions": {"ready": false, "serving": true, "terminating": true},
             "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}, "targetRef": {"kind": "Pod"}},
            {"addresses": ["fd00::b", "fd00::c"], "conditions": {"ready": null}, "hints": {"forZones": []}}],
    });
    let (slice, notes) = convert_slice(&object);
    assert_eq!(notes, []);
    let (name, slice) = slice.unwrap();
    let slice = slice.unwrap();
    assert_eq!((name, slice.service), (SliceName::new("shop", "web-x"), ServiceName::new("shop", "web")));
    assert_eq!(slice.family, crate::net::IpFamily::V6);
    assert_eq!(slice.triggered_at, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)));
    assert_eq!((&*slice.ports[1].name, slice.ports[1].protocol, slice.ports[1].port.get()), ("", Protocol::Udp, 53));
    let [first, second] = &*slice.endpoints else { panic!("two endpoints") };
    assert_eq!(first.conditions, Conditions { ready: false, serving: true, terminating: true });
    assert_eq!(first.node.as_deref(), Some("n1"));
    let hints = first.hints.as_ref().unwrap();
    assert_eq!((&*hints.zones[0], &*hints.nodes[0]), ("z1", "n1"));
    assert_eq!(second.address, "fd00::b".parse::<IpAddr>().unwrap());
    assert_eq!((second.conditions, &second.node, &second.hints), (Conditions::READY, &None, &None));
}

#[rstest]
#[case::fqdn(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]}))]
#[case::no_service(json!({"metadata": {"name": "web-x", "namespace": "shop"}}))]
#[case::headless(json!({"metadata": {"name": "web-x", "namespace": "shop",
    "labels": {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}}}))]
fn slices_that_are_of_no_use_to_a_proxy_need_no_note(#[case] over: Value) {
    assert_eq!(slice_with(over), (None, vec![]));
}

#[rstest]
#[case(json!([{"name": "a", "port": null}]), "ports[0].port: there is no port number; the port is left out")]
#[case(json!([{"name": "a", "port": 0}]), "ports[0].port: 0 is not a port number; the port is left out")]
fn a_slice_port_without_number_is_noted(#[case] ports: Value, #[case] note: &str) {
    let (slice, notes) = slice_with(json!({"ports": ports}));
    assert_eq!((slice.unwrap().ports.len(), notes), (0, vec![format!("EndpointSlice shop/web-x: {note}")]));
}

#[rstest]
#[case(json!({"addresses": []}), "endpoints[0].addresses: there is no address; the endpoint is left out")]
#[case(json!({"addresses": null}), "endpoints[0].addresses: there is no address; the endpoint is left out")]
#[case(json!({"addresses": ["fd00::1"]}), "endpoints[0].addresses[0]: fd00::1 is not an IPv4 address; left out")]
#[case(json!({"addresses": ["10.0.0.256"]}), "endpoints[0].addresses[0]: \"10.0.0.256\" is not an IP address; left out")]
#[case(Value::Null, "endpoints[0]: it is null; left out")]
fn an_endpoint_without_usable_address_is_left_out_and_the_others_stay(#[case] bad: Value, #[case] note: &str) {
    let (slice, notes) = slice_with(json!({"endpoints": [bad, {"addresses": ["10.1.0.2"]}]}));
    assert_eq!(slice.unwrap().endpoints[0].address, "10.1.0.2".parse::<IpAddr>().unwrap());
    assert_eq!(notes, [format!("EndpointSlice shop/web-x: {note}")]);
}

#[rstest]
#[case("::ffff:10.1.0.1")]
#[case("127.0.0.1")]
#[case("0.0.0.0")]
#[case("169.254.1.1")]
#[case("224.0.0.1")]
fn unusual_endpoint_addresses_are_accepted_as_kube_proxy_does(#[case] address: &str) {
    let (slice, notes) = slice_with(json!({"endpoints": [{"addresses": [address]}]}));
    assert_eq!((slice.unwrap().endpoints.len(), notes), (1, vec![]));
}

#[test]
fn many_bad_endpoints_give_few_notes() {
    let endpoints: Vec<_> = (0..1000).map(|_| json!({"addresses": ["x"]})).collect();
    let (_, notes) = slice_with(json!({"endpoints": endpoints}));
    assert_eq!(notes.len(), MAX_NOTES + 1);
    assert_eq!(notes[MAX_NOTES], "EndpointSlice shop/web-x: and 984 more of this kind");
}

#[test]
fn an_unreadable_trigger_time_is_noted_and_nothing_else_happens() {
    let (slice, notes) = slice_with(json!({"metadata": {"name": "web-x", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "web"},
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"}}}));
    assert_eq!(slice.unwrap().triggered_at, None);
    assert!(notes[0].contains("\"yesterday\" is not a time"), "{notes:?}");
}

#[test]
fn node_addresses_are_internal_ones_first_and_taints_decide_eligibility() {
    let mut object = json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"], "taints": [{"key": "other"}]},
        "status": {"addresses": [{"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "nonsense"}]},
    });
    let (node, notes) = convert_node(&object);
    let addresses: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    assert_eq!((node.zone.as_deref(), &*node.addresses, node.pod_cidrs.len()), (Some("z1"), &addresses[..], 2));
    assert!(node.eligible);
    assert_eq!(notes.len(), 1);
    object["spec"]["taints"][0]["key"] = json!("ToBeDeletedByClusterAutoscaler");
    assert!(!convert_node(&object).0.eligible);
    object["spec"] = json!({});
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(!convert_node(&object).0.eligible);
}

#[rstest]
#[case("1970-01-01T00:00:00Z", 0, 0)]
#[case("2000-02-29T12:34:56Z", 951_827_696, 0)]
#[case("2026-11-21T10:00:00.123456789Z", 1_795_255_200, 123_456_789)]
#[case("2026-11-21T11:30:00.5+01:30", 1_795_255_200, 500_000_000)]
#[case("2026-11-21T09:00:00-01:00", 1_795_255_200, 0)]
#[case("2100-03-01T00:00:00Z", 4_107_542_400, 0)]
fn times_are_read(#[case] text: &str, #[case] seconds: u64, #[case] nanos: u32) {
    assert_eq!(parse_rfc3339(text), Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)));
}

#[rstest]
#[case("")]
#[case("2026-11-21")]
#[case("2026-11-21 10:00:00Z")]
#[case("2026-11-21T10:00:00")]
#[case("2026-11-21T10:00:00.Z")]
#[case("2026-02-29T10:00:00Z")]
#[case("2026-13-01T10:00:00Z")]
#[case("2026-11-21T24:00:00Z")]
#[case("2026-11-21T10:00:60Z")]
#[case("2026-11-21T10:00:00+25:00")]
#[case("1969-12-31T23:59:59Z")]
#[case("2026-11-21T10:00:00Zx")]
#[case("é026-11-21T10:00:00Z")]
fn what_is_not_a_time_is_refused(#[case] text: &str) {
    assert_eq!(parse_rfc3339(text), None);
}

#[test]
fn of_a_key_that_appears_twice_the_last_counts() {
    let text =
        r#"{"metadata": {"name": "a", "namespace": "b", "name": "c"}, "spec": {}, "spec": {"clusterIP": "None"}}"#;
    let (service, notes) = service(&serde_json::from_str(text).unwrap(), &mut Interner::default());
    assert_eq!((service, notes), (Some((ServiceName::new("b", "c"), None)), vec![]));
}

#[test]
fn the_interner_shares_texts_and_forgets_what_nobody_holds() {
    let mut interner = Interner::default();
    let first = interner.text("shop");
    assert!(std::sync::Arc::ptr_eq(&first, &interner.text("shop")));
    for number in 0..100_000 {
        interner.text(&number.to_string());
    }
    assert!(interner.len() <= 2048, "{}", interner.len());
    assert!(std::sync::Arc::ptr_eq(&first, &interner.text("shop")));
    drop(first);
    interner.purge();
    assert!(interner.is_empty());
}

/// JSON that uses the keys of Kubernetes objects, with anything below them.
fn any_json() -> impl Strategy<Value = Value> {
    const KEYS: &[&str] = &[
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "spec",
        "status",
        "ports",
        "port",
        "protocol",
        "nodePort",
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "externalIPs",
        "loadBalancerSourceRanges",
        "type",
        "loadBalancer",
        "ingress",
        "ip",
        "ipMode",
        "addressType",
        "endpoints",
        "addresses",
        "conditions",
        "ready",
        "hints",
        "forZones",
        "nodeName",
        "kubernetes.io/service-name",
        "taints",
        "key",
        "podCIDRs",
        "address",
        "sessionAffinity",
        "sessionAffinityConfig",
        "clientIP",
        "timeoutSeconds",
        "externalTrafficPolicy",
        "x",
    ];
    const TEXTS: &[&str] = &[
        "",
        "None",
        "10.0.0.1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "010.1.1.1/08",
        "IPv4",
        "IPv6",
        "TCP",
        "Local",
        "web",
        "LoadBalancer",
        "InternalIP",
        "ClientIP",
        "1.2.3.4.5",
        "999.1.1.1",
        "/",
        "::/129",
        "é\u{7}",
        "2026-01-01T00:00:00Z",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..70000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(TEXTS).prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 96, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(KEYS), inner), 0..8)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_converted_without_failing(value in any_json()) {
        for object in [value.clone(), json!({"metadata": {"name": "a", "namespace": "b"}, "spec": value})] {
            let _ = convert_service(&object);
            let _ = convert_slice(&object);
            let _ = convert_node(&object);
        }
        let mut object = json!({"metadata": {"name": "a", "namespace": "b",
            "labels": {"kubernetes.io/service-name": "c"}}, "addressType": "IPv4", "endpoints": value});
        let _ = convert_slice(&object);
        object["ports"] = object["endpoints"].take();
        let _ = convert_slice(&object);
    }

    #[test]
    fn any_text_is_a_time_or_not(text in "\\PC*") {
        let _ = parse_rfc3339(&text);
        let _ = (parse_ip(&text), parse_cidr(&text));
    }
}
