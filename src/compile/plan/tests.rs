use std::sync::Arc;

use super::*;
use crate::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, SliceName};
use crate::net::{PerFamily, Protocol};

const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

fn name() -> ServiceName {
    ServiceName::new("ns", "web")
}

fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port: NonZeroU16::new(port).unwrap(), node_port: None }
}

fn service() -> Service {
    Service {
        cluster_ip_v4: Some("10.96.0.1".parse().unwrap()),
        ports: [port("http", Protocol::Tcp, 80)].into(),
        ..Service::default()
    }
}

fn endpoint(address: &str, node: Option<&str>, conditions: Conditions) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), conditions, node: node.map(Arc::from), hints: None }
}

fn slice(ports: &[(&str, Protocol, u16)], endpoints: &[Endpoint]) -> EndpointSlice {
    EndpointSlice {
        service: name(),
        family: endpoints.first().map_or(IpFamily::V4, |it| IpFamily::of(it.address)),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| EndpointPort {
                name: (*name).into(),
                protocol: *protocol,
                port: NonZeroU16::new(*port).unwrap(),
            })
            .collect(),
        endpoints: endpoints.into(),
        triggered_at: None,
    }
}

fn entry(service: Service, slices: Vec<EndpointSlice>) -> ServiceEntry {
    let slices = slices.into_iter().enumerate().map(|(at, slice)| (SliceName::new("ns", format!("web-{at}")), slice));
    ServiceEntry::new(Some(service), slices)
}

fn node() -> NodeContext {
    NodeContext { node_name: "node-1".into(), ..NodeContext::default() }
}

fn compile(service: Service, slices: Vec<EndpointSlice>) -> Vec<ServicePortPlan> {
    compile_service(&name(), &entry(service, slices), &node())
}

/// The only plan of a Service with these endpoints on port 8080.
fn plan(service: Service, endpoints: &[Endpoint]) -> ServicePortPlan {
    let mut plans = compile(service, vec![slice(&[("http", Protocol::Tcp, 8080)], endpoints)]);
    assert_eq!(plans.len(), 1);
    plans.remove(0)
}

fn sockets(plan: &ServicePortPlan) -> Vec<String> {
    plan.endpoints.iter().map(|it| it.socket.to_string()).collect()
}

#[test]
fn slices_without_a_service_compile_to_nothing() {
    let entry = ServiceEntry::new(None, []);
    assert_eq!(compile_service(&name(), &entry, &node()), []);
}

#[test]
fn a_plan_is_made_for_each_port_in_each_family_that_is_on() {
    let dual = Service {
        cluster_ip_v6: Some("fd00::1".parse().unwrap()),
        ports: [port("http", Protocol::Tcp, 80), port("http", Protocol::Udp, 80)].into(),
        ..service()
    };
    let shape = |plans: &[ServicePortPlan]| -> Vec<(IpFamily, Protocol)> {
        plans.iter().map(|plan| (plan.family, plan.name.protocol)).collect()
    };
    let (v4, v6) = (IpFamily::V4, IpFamily::V6);
    let plans = compile(dual.clone(), Vec::new());
    assert_eq!(shape(&plans), [(v4, Protocol::Tcp), (v4, Protocol::Udp), (v6, Protocol::Tcp), (v6, Protocol::Udp)]);
    let only_v6 = NodeContext { families: PerFamily { v4: false, v6: true }, ..node() };
    let plans = compile_service(&name(), &entry(dual, Vec::new()), &only_v6);
    assert_eq!(shape(&plans), [(v6, Protocol::Tcp), (v6, Protocol::Udp)]);
}

#[test]
fn ten_ports_over_four_services_are_ten_plans_and_a_removed_port_is_one_less() {
    let with_ports = |count: u16| Service {
        ports: (0..count).map(|at| port(&format!("p{at}"), Protocol::Tcp, 80 + at)).collect(),
        ..service()
    };
    let total = |counts: &[u16]| -> usize { counts.iter().map(|it| compile(with_ports(*it), Vec::new()).len()).sum() };
    assert_eq!(total(&[4, 3, 2, 1]), 10);
    assert_eq!(total(&[3, 3, 2, 1]), 9);
}

#[test]
fn addresses_and_endpoints_of_the_other_family_are_left_out() {
    let both = |v4: &str, v6: &str| [v4.parse().unwrap(), v6.parse().unwrap()].into();
    let dual = Service {
        cluster_ip_v6: Some("fd00::1".parse().unwrap()),
        external_ips: both("192.0.2.1", "2001:db8::1"),
        load_balancer_vips: both("192.0.2.2", "2001:db8::2"),
        load_balancer_source_ranges: ["203.0.113.0/24".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()].into(),
        ..service()
    };
    let ports = [("http", Protocol::Tcp, 8080)];
    let plans = compile(
        dual,
        vec![
            slice(&ports, &[endpoint("10.0.0.1", None, Conditions::READY)]),
            slice(&ports, &[endpoint("fd00:1::1", None, Conditions::READY)]),
        ],
    );
    let texts = |list: &[IpAddr]| -> Vec<String> { list.iter().map(IpAddr::to_string).collect() };
    assert_eq!(texts(&plans[0].external_ips), ["192.0.2.1"]);
    assert_eq!(texts(&plans[0].load_balancer_vips), ["192.0.2.2"]);
    assert_eq!(plans[0].source_ranges, ["203.0.113.0/24".parse::<IpNet>().unwrap()]);
    assert_eq!(sockets(&plans[0]), ["10.0.0.1:8080"]);
    assert_eq!(texts(&plans[1].external_ips), ["2001:db8::1"]);
    assert_eq!(texts(&plans[1].load_balancer_vips), ["2001:db8::2"]);
    assert_eq!(plans[1].source_ranges, ["2001:db8:1::/48".parse::<IpNet>().unwrap()]);
    assert_eq!(sockets(&plans[1]), ["[fd00:1::1]:8080"]);
}

#[test]
fn endpoints_are_matched_by_port_name_and_protocol_and_merged_over_slices() {
    let dns = Service { ports: [port("dns", Protocol::Udp, 53), port("dns", Protocol::Tcp, 53)].into(), ..service() };
    let first = [("dns", Protocol::Udp, 5353), ("dns", Protocol::Tcp, 5354), ("other", Protocol::Udp, 1)];
    let second = [("dns", Protocol::Udp, 5355), ("", Protocol::Udp, 2)];
    let plans = compile(
        dns,
        vec![
            slice(&first, &[endpoint("10.0.0.1", None, Conditions::READY)]),
            slice(&second, &[endpoint("10.0.0.1", None, Conditions::READY)]),
        ],
    );
    assert_eq!(sockets(&plans[0]), ["10.0.0.1:5353", "10.0.0.1:5355"]);
    assert_eq!(sockets(&plans[1]), ["10.0.0.1:5354"]);
}

#[test]
fn endpoints_are_sorted_by_their_text() {
    let endpoints = ["10.0.1.2", "10.0.1.1", "10.0.1.10"].map(|it| endpoint(it, None, Conditions::READY));
    assert_eq!(sockets(&plan(service(), &endpoints)), ["10.0.1.10:8080", "10.0.1.1:8080", "10.0.1.2:8080"]);
}

#[test]
fn of_two_versions_of_an_endpoint_the_better_one_wins_in_either_order() {
    let best_first = [
        Conditions::READY,
        Conditions { serving: true, ..UNREADY },
        UNREADY,
        // Ready and terminating: a Service that publishes addresses before they are ready.
        Conditions { ready: true, serving: true, terminating: true },
        TERMINATING,
        Conditions { serving: false, ..TERMINATING },
    ];
    for (at, better) in best_first.into_iter().enumerate() {
        for worse in &best_first[at..] {
            for pair in [[better, *worse], [*worse, better]] {
                let plan = plan(service(), &pair.map(|it| endpoint("10.0.0.1", None, it)));
                assert_eq!(plan.endpoints.len(), 1);
                let found = plan.endpoints[0];
                assert_eq!((found.ready, found.serving, found.terminating), {
                    (better.ready, better.serving, better.terminating)
                });
            }
        }
    }
}

#[test]
fn of_equal_versions_in_two_slices_the_one_of_the_first_slice_wins() {
    let ports = [("http", Protocol::Tcp, 8080)];
    let here = slice(&ports, &[endpoint("10.0.0.1", Some("node-1"), Conditions::READY)]);
    let there = slice(&ports, &[endpoint("10.0.0.1", Some("node-2"), Conditions::READY)]);
    assert!(compile(service(), vec![here.clone(), there.clone()])[0].endpoints[0].local);
    assert!(!compile(service(), vec![there, here])[0].endpoints[0].local);
}

#[test]
fn only_endpoints_with_the_name_of_this_node_are_local() {
    let endpoints = [
        endpoint("10.0.0.1", Some("node-1"), Conditions::READY),
        endpoint("10.0.0.2", Some("node-2"), Conditions::READY),
        endpoint("10.0.0.3", None, Conditions::READY),
        endpoint("10.0.0.4", Some(""), Conditions::READY),
    ];
    let slices = vec![slice(&[("http", Protocol::Tcp, 8080)], &endpoints)];
    let local = |node: &NodeContext| -> Vec<bool> {
        let plans = compile_service(&name(), &entry(service(), slices.clone()), node);
        plans[0].endpoints.iter().map(|it| it.local).collect()
    };
    assert_eq!(local(&node()), [true, false, false, false]);
    assert_eq!(local(&NodeContext::default()), [false; 4], "without a name of our own nothing is local");
}

#[test]
fn zone_and_node_name_reach_the_selection() {
    let hinted = |address: &str, zone: &str| Endpoint {
        hints: Some(Arc::new(Hints { zones: [zone.into()].into(), nodes: [].into() })),
        ..endpoint(address, None, Conditions::READY)
    };
    let slices = vec![slice(&[("http", Protocol::Tcp, 8080)], &[hinted("10.0.0.1", "a"), hinted("10.0.0.2", "b")])];
    let in_zone = NodeContext { zone: Some("b".into()), ..node() };
    let plans = compile_service(&name(), &entry(service(), slices), &in_zone);
    assert_eq!(plans[0].cluster_endpoints, [1]);
    assert_eq!(plans[0].endpoints.len(), 2, "endpoints that topology leaves out still count");
}

#[test]
fn external_policy_local_means_nothing_without_an_external_address() {
    let endpoints =
        [endpoint("10.0.0.1", Some("node-1"), Conditions::READY), endpoint("10.0.0.2", None, Conditions::READY)];
    let internal = Service { external_traffic_policy: TrafficPolicy::Local, ..service() };
    let internal_plan = plan(internal.clone(), &endpoints);
    assert_eq!((internal_plan.cluster_endpoints.len(), internal_plan.local_endpoints.len()), (2, 0));
    assert!(!internal_plan.external_lacks_local());
    let external = Service { external_ips: ["192.0.2.1".parse().unwrap()].into(), ..internal };
    assert_eq!(plan(external, &endpoints).local_endpoints, [0]);
}

#[test]
fn internal_policy_local_needs_no_cluster_list_unless_there_is_an_external_address() {
    let endpoints =
        [endpoint("10.0.0.1", Some("node-1"), Conditions::READY), endpoint("10.0.0.2", None, Conditions::READY)];
    let internal = Service { internal_traffic_policy: TrafficPolicy::Local, ..service() };
    assert_eq!(plan(internal.clone(), &endpoints).cluster_endpoints, [0_usize; 0]);
    assert_eq!(plan(internal.clone(), &endpoints).reachable_endpoints, [0]);
    let node_port = ServicePort { node_port: NonZeroU16::new(30000), ..port("http", Protocol::Tcp, 80) };
    let external = Service { ports: [node_port].into(), ..internal };
    assert_eq!(plan(external.clone(), &endpoints).cluster_endpoints, [0, 1]);
    assert_eq!(plan(external, &endpoints).local_endpoints, [0]);
}

#[test]
fn external_ips_that_are_not_allowed_neither_appear_nor_make_the_port_external() {
    let closed = NodeContext { allow_external_ips: false, ..node() };
    let external = Service {
        external_ips: ["192.0.2.1".parse().unwrap()].into(),
        external_traffic_policy: TrafficPolicy::Local,
        ..service()
    };
    let endpoints = [endpoint("10.0.0.1", Some("node-1"), Conditions::READY)];
    let entry = entry(external, vec![slice(&[("http", Protocol::Tcp, 8080)], &endpoints)]);
    let plans = compile_service(&name(), &entry, &closed);
    assert!(plans[0].external_ips.is_empty() && !plans[0].externally_accessible());
    assert!(plans[0].local_endpoints.is_empty());
}

#[test]
fn the_health_count_is_of_distinct_local_addresses_that_are_ready() {
    let two_ports = Service { ports: [port("a", Protocol::Tcp, 1), port("b", Protocol::Tcp, 2)].into(), ..service() };
    let here = Some("node-1");
    let endpoints = [
        endpoint("10.0.0.1", here, Conditions::READY),
        endpoint("10.0.0.2", here, UNREADY),
        endpoint("10.0.0.3", here, TERMINATING),
        endpoint("10.0.0.4", Some("node-2"), Conditions::READY),
        endpoint("10.0.0.5", here, Conditions::READY),
    ];
    let slices = vec![slice(&[("a", Protocol::Tcp, 81), ("b", Protocol::Tcp, 82)], &endpoints)];
    let plans = compile(two_ports, slices);
    assert_eq!(local_ready_addresses(&plans, IpFamily::V4), 2);
    assert_eq!(local_ready_addresses(&plans, IpFamily::V6), 0);
}

#[test]
fn traffic_without_local_endpoint_is_counted_for_each_policy_that_asks_for_one() {
    let with = |internal, external| Service {
        internal_traffic_policy: internal,
        external_traffic_policy: external,
        load_balancer_vips: ["192.0.2.1".parse().unwrap()].into(),
        ..service()
    };
    let lacks = |service, endpoints: &[Endpoint]| {
        let plan = plan(service, endpoints);
        (plan.internal_lacks_local(), plan.external_lacks_local())
    };
    let remote = [endpoint("10.0.0.1", Some("node-2"), Conditions::READY)];
    let local = [endpoint("10.0.0.1", Some("node-1"), Conditions::READY)];
    use TrafficPolicy::{Cluster, Local};
    assert_eq!(lacks(with(Cluster, Cluster), &remote), (false, false));
    assert_eq!(lacks(with(Local, Cluster), &remote), (true, false));
    assert_eq!(lacks(with(Cluster, Local), &remote), (false, true));
    assert_eq!(lacks(with(Local, Local), &remote), (true, true));
    assert_eq!(lacks(with(Local, Local), &local), (false, false));
    assert_eq!(lacks(with(Local, Local), &[]), (false, false), "nothing usable anywhere is another matter");
}
