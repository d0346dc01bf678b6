//! Services.

use std::net::IpAddr;

use crate::model::convert::wire::{self, Field, quoted};
use crate::model::convert::{Interner, Notes, names, port_number};
use crate::model::{Note, ObjectKind, Service, ServiceName, ServicePort, TrafficPolicy};
use crate::net::{IpFamily, parse_cidr, parse_ip};

/// The time-out that the API server fills in for ClientIP affinity: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// Makes a model value of a Service. `None`: it has no usable name. `(name, None)`: not one that a proxy serves,
/// because it is headless, an ExternalName, or another proxy's.
pub fn service(object: &wire::Service, interner: &mut Interner) -> (Option<(ServiceName, Option<Service>)>, Vec<Note>) {
    let mut notes = Notes::new(ObjectKind::Service, &object.metadata);
    let Some((namespace, name)) = names(&object.metadata, 63, &mut notes) else { return (None, notes.finish()) };
    let name = ServiceName { namespace: interner.text(namespace), name: interner.text(name) };
    let service = if is_for_another_proxy(object) { None } else { served(object, interner, &mut notes) };
    (Some((name, service)), notes.finish())
}

/// The server filters these out for us; manifests have no server.
fn is_for_another_proxy(object: &wire::Service) -> bool {
    let labels = object.metadata.get().and_then(|metadata| metadata.labels.get());
    labels.is_some_and(|labels| labels.proxy_name.is_present())
}

fn served(object: &wire::Service, interner: &mut Interner, notes: &mut Notes) -> Option<Service> {
    let spec = notes.read(&object.spec, || "spec".into())?;
    let kind = notes.text(&spec.kind, || "spec.type".into());
    let cluster_ip = notes.text(&spec.cluster_ip, || "spec.clusterIP".into());
    if kind == "ExternalName" || cluster_ip.is_empty() || cluster_ip == "None" {
        return None;
    }
    if !matches!(kind, "" | "ClusterIP" | "NodePort" | "LoadBalancer") {
        notes.add("spec.type", format!("{} is not a known type; taken for ClusterIP", quoted(kind)));
    }
    let mut service = Service::default();
    set_cluster_ips(spec, cluster_ip, &mut service, notes);
    if service.cluster_ip_v4.is_none() && service.cluster_ip_v6.is_none() {
        return None;
    }
    service.external_ips = external_ips(spec, notes);
    service.load_balancer_vips = load_balancer_vips(object, notes);
    service.load_balancer_source_ranges = source_ranges(spec, notes);
    service.ports = ports(spec, interner, notes);
    service.affinity_seconds = affinity(spec, notes);
    service.internal_traffic_policy = policy(&spec.internal_traffic_policy, "spec.internalTrafficPolicy", notes);
    let external = policy(&spec.external_traffic_policy, "spec.externalTrafficPolicy", notes);
    // As kube-proxy: what counts is that the list is not empty, not that its elements are valid.
    let has_external_ips = spec.external_ips.get().is_some_and(|list| !list.is_empty());
    if external == TrafficPolicy::Local && (matches!(kind, "LoadBalancer" | "NodePort") || has_external_ips) {
        service.external_traffic_policy = TrafficPolicy::Local;
        if kind == "LoadBalancer" {
            service.health_check_node_port = health_check_node_port(spec, notes);
        }
    }
    Some(service)
}

/// With `ipFamilies`, each family's cluster IP stands at the family's position in `clusterIPs`. Objects from before
/// dual-stack have no families and one address.
fn set_cluster_ips(spec: &wire::ServiceSpec, cluster_ip: &str, service: &mut Service, notes: &mut Notes) {
    let families: Vec<_> = notes.list(&spec.ip_families, || "spec.ipFamilies".into()).collect();
    if families.is_empty() {
        set_cluster_ip(cluster_ip, None, "spec.clusterIP", service, notes);
        return;
    }
    let addresses = notes.read(&spec.cluster_ips, || "spec.clusterIPs".into()).map(Vec::as_slice).unwrap_or_default();
    for (at, family) in families {
        let family = match family {
            Field::Is(name) if name == "IPv4" => IpFamily::V4,
            Field::Is(name) if name == "IPv6" => IpFamily::V6,
            other => {
                let what = describe(other);
                notes.add(format!("spec.ipFamilies[{at}]"), format!("{what} is not a known family; ignored"));
                continue;
            }
        };
        let path = format!("spec.clusterIPs[{at}]");
        let Some(field) = addresses.get(at) else { continue };
        let address = notes.text(field, || path.clone());
        if !address.is_empty() {
            set_cluster_ip(address, Some(family), &path, service, notes);
        }
    }
}

fn set_cluster_ip(text: &str, family: Option<IpFamily>, path: &str, service: &mut Service, notes: &mut Notes) {
    match parse_ip(text) {
        Some(address) if family.is_some_and(|family| family != IpFamily::of(address)) => {
            let wanted = family.map(|family| family.to_string()).unwrap_or_default();
            notes.add(path, format!("{address} is not an {wanted} address, which spec.ipFamilies promises; ignored"));
        }
        Some(IpAddr::V4(address)) => service.cluster_ip_v4 = Some(address),
        Some(IpAddr::V6(address)) => service.cluster_ip_v6 = Some(address),
        None => notes.add(path, format!("{} is not an IP address; ignored", quoted(text))),
    }
}

fn external_ips(spec: &wire::ServiceSpec, notes: &mut Notes) -> Box<[IpAddr]> {
    let mut addresses = Vec::new();
    for (at, field) in notes.list(&spec.external_ips, || "spec.externalIPs".into()) {
        let path = || format!("spec.externalIPs[{at}]");
        let text = notes.text(field, path);
        match parse_ip(text) {
            Some(address) if addresses.contains(&address) => {}
            Some(address) => addresses.push(address),
            None if text.trim().is_empty() => {}
            None => notes.add(path(), format!("{} is not an IP address; ignored", quoted(text))),
        }
    }
    addresses.into_boxed_slice()
}

/// Addresses of mode Proxy are left out: the load balancer terminates connections there, and serving them on the
/// node would bypass it. Entries with a host name only are ordinary.
fn load_balancer_vips(object: &wire::Service, notes: &mut Notes) -> Box<[IpAddr]> {
    let mut addresses = Vec::new();
    let ingress = notes
        .read(&object.status, || "status".into())
        .and_then(|status| notes.read(&status.load_balancer, || "status.loadBalancer".into()));
    let Some(load_balancer) = ingress else { return Box::default() };
    for (at, entry) in notes.list(&load_balancer.ingress, || "status.loadBalancer.ingress".into()) {
        let path = format!("status.loadBalancer.ingress[{at}]");
        let Some(entry) = notes.read(entry, || path.clone()) else { continue };
        let text = notes.text(&entry.ip, || format!("{path}.ip"));
        let is_vip = match &entry.ip_mode {
            Field::Absent => true,
            Field::Is(mode) if mode == "VIP" => true,
            Field::Is(mode) if mode == "Proxy" => false,
            other => {
                let what = describe(other);
                notes.add(format!("{path}.ipMode"), format!("{what} is not VIP or Proxy; the address is ignored"));
                false
            }
        };
        match parse_ip(text) {
            Some(address) if is_vip && !addresses.contains(&address) => addresses.push(address),
            Some(_) => {}
            None if text.is_empty() => {}
            None => notes.add(format!("{path}.ip"), format!("{} is not an IP address; ignored", quoted(text))),
        }
    }
    addresses.into_boxed_slice()
}

fn source_ranges(spec: &wire::ServiceSpec, notes: &mut Notes) -> Box<[ipnet::IpNet]> {
    let mut ranges = Vec::new();
    for (at, field) in notes.list(&spec.source_ranges, || "spec.loadBalancerSourceRanges".into()) {
        let path = || format!("spec.loadBalancerSourceRanges[{at}]");
        let text = notes.text(field, path).trim();
        match parse_cidr(text) {
            Some(range) => ranges.push(range),
            None if text.is_empty() => {}
            None => notes.add(path(), format!("{} is not a CIDR; ignored", quoted(text))),
        }
    }
    ranges.into_boxed_slice()
}

fn ports(spec: &wire::ServiceSpec, interner: &mut Interner, notes: &mut Notes) -> Box<[ServicePort]> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (at, field) in notes.list(&spec.ports, || "spec.ports".into()) {
        let path = format!("spec.ports[{at}]");
        let empty = wire::ServicePort::default();
        let port = match field {
            Field::Wrong(_) => {
                notes.read(field, || path);
                continue;
            }
            Field::Absent => &empty,
            Field::Is(port) => port,
        };
        let (name, protocol) = (notes.port_name(&port.name, &path), notes.protocol(&port.protocol, &path));
        let (Some(number), Some(name), Some(protocol)) = (notes.port(&port.port, &path), name, protocol) else {
            continue;
        };
        if ports.iter().any(|other| *other.name == *name && other.protocol == protocol) {
            let reason = format!("a second {protocol} port with the name {}; it is left out", quoted(name));
            notes.add(path, reason);
            continue;
        }
        let node_port = node_port(&port.node_port, &path, notes);
        ports.push(ServicePort { name: interner.text(name), protocol, port: number, node_port });
    }
    ports.into_boxed_slice()
}

fn node_port(field: &Field<i64>, path: &str, notes: &mut Notes) -> Option<std::num::NonZeroU16> {
    let number = *notes.read(field, || format!("{path}.nodePort"))?;
    let port = port_number(number);
    if port.is_none() && number != 0 {
        notes.add(format!("{path}.nodePort"), format!("{number} is not a port number; there will be no node port"));
    }
    port
}

fn affinity(spec: &wire::ServiceSpec, notes: &mut Notes) -> Option<u32> {
    match notes.text(&spec.session_affinity, || "spec.sessionAffinity".into()) {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            notes.add("spec.sessionAffinity", format!("{} is not None or ClientIP; taken for None", quoted(other)));
            return None;
        }
    }
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let config = notes.read(&spec.session_affinity_config, || "spec.sessionAffinityConfig".into());
    let config =
        config.and_then(|config| notes.read(&config.client_ip, || "spec.sessionAffinityConfig.clientIP".into()));
    let seconds = config.and_then(|config| notes.read(&config.timeout_seconds, || path.into()));
    let Some(seconds) = seconds else { return Some(DEFAULT_AFFINITY_SECONDS) };
    match i32::try_from(*seconds).ok().and_then(|seconds| u32::try_from(seconds).ok()) {
        Some(seconds) if seconds > 0 => Some(seconds),
        _ => {
            notes.add(path, format!("{seconds} is not a usable time; taken for {DEFAULT_AFFINITY_SECONDS}"));
            Some(DEFAULT_AFFINITY_SECONDS)
        }
    }
}

fn policy(field: &Field<String>, path: &str, notes: &mut Notes) -> TrafficPolicy {
    match notes.text(field, || path.to_owned()) {
        "" | "Cluster" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            notes.add(path, format!("{} is not Cluster or Local; taken for Cluster", quoted(other)));
            TrafficPolicy::Cluster
        }
    }
}

fn health_check_node_port(spec: &wire::ServiceSpec, notes: &mut Notes) -> Option<std::num::NonZeroU16> {
    let path = "spec.healthCheckNodePort";
    let number = notes.read(&spec.health_check_node_port, || path.into()).copied().unwrap_or(0);
    let port = port_number(number);
    if port.is_none() {
        let reason = format!("{number} is not a port number; load balancers cannot ask where the endpoints are");
        notes.add(path, reason);
    }
    port
}

fn describe(field: &Field<String>) -> String {
    match field {
        Field::Is(text) => quoted(text),
        Field::Wrong(what) => what.to_string(),
        Field::Absent => "null".to_owned(),
    }
}
