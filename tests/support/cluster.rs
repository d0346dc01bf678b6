//! Clusters for tests: small builders of model values, and the changes that lead from one cluster to another.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use portolan::model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Objects, Service, ServiceName, ServicePort, SliceName,
    TrafficPolicy,
};
use portolan::net::{IpFamily, Protocol};

/// A cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    pub services: BTreeMap<ServiceName, Service>,
    pub slices: BTreeMap<SliceName, EndpointSlice>,
}

impl World {
    /// Adds a Service named `name` in namespace `ns`, changed by `edit`, with one dual-stack port 80.
    pub(crate) fn service(mut self, name: &str, number: u16, edit: impl FnOnce(&mut Service)) -> World {
        let mut service = Service {
            cluster_ip_v4: Some(format!("10.96.{}.{}", number >> 8, number & 255).parse().unwrap()),
            cluster_ip_v6: Some(format!("fd00:96::{number:x}").parse().unwrap()),
            ports: Box::new([port("http", Protocol::Tcp, 80, None)]),
            ..Service::default()
        };
        edit(&mut service);
        self.services.insert(service_name(name), service);
        self
    }

    /// Adds a slice for a Service: port 8080 named `http`, ready endpoints at these addresses, changed by `edit`.
    pub(crate) fn slice(
        mut self,
        service: &str,
        suffix: &str,
        addresses: &[&str],
        edit: impl FnOnce(&mut EndpointSlice),
    ) -> World {
        let endpoints: Vec<Endpoint> = addresses.iter().map(|address| endpoint(address)).collect();
        let family = endpoints.first().map_or(IpFamily::V4, |endpoint| IpFamily::of(endpoint.address));
        let mut slice = EndpointSlice {
            service: service_name(service),
            family,
            ports: Box::new([EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: number(8080) }]),
            endpoints: endpoints.into(),
            triggered_at: None,
        };
        edit(&mut slice);
        self.slices.insert(SliceName::new("ns", format!("{service}-{suffix}")), slice);
        self
    }

    /// The changes that lead from this world to another one: deletions first, then what is new or different.
    pub(crate) fn changes_to(&self, to: &World) -> Vec<Change> {
        let gone_services = self.services.keys().filter(|name| !to.services.contains_key(*name));
        let gone_slices = self.slices.keys().filter(|name| !to.slices.contains_key(*name));
        let services = to.services.iter().filter(|(name, service)| self.services.get(*name) != Some(service));
        let slices = to.slices.iter().filter(|(name, slice)| self.slices.get(*name) != Some(slice));
        gone_services
            .map(|name| Change::Service(name.clone(), None))
            .chain(gone_slices.map(|name| Change::Slice(name.clone(), None)))
            .chain(services.map(|(name, service)| Change::Service(name.clone(), Some(service.clone()))))
            .chain(slices.map(|(name, slice)| Change::Slice(name.clone(), Some(slice.clone()))))
            .collect()
    }

    /// The changes with which a source begins: everything, then that it was everything.
    pub(crate) fn initial(&self) -> Vec<Change> {
        let mut changes = World::default().changes_to(self);
        changes.extend(self.complete());
        changes
    }

    /// That this is everything.
    pub(crate) fn complete(&self) -> [Change; 3] {
        [
            Change::Complete(Objects::Services(self.services.keys().cloned().collect::<HashSet<_>>())),
            Change::Complete(Objects::Node),
            Change::Complete(Objects::Slices(self.slices.keys().cloned().collect::<HashSet<_>>())),
        ]
    }
}

pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName::new("ns", name)
}

pub(crate) fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap()
}

pub(crate) fn port(name: &str, protocol: Protocol, at: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), protocol, port: number(at), node_port: node_port.map(number) }
}

/// A ready endpoint on node `node2`, or on `node1` if its address is one of 10.244.0.0/24 or fd00:10:244::/64.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    let address: IpAddr = address.parse().unwrap();
    let text = address.to_string();
    let here = text.starts_with("10.244.0.") || text.starts_with("fd00:10:244::");
    Endpoint {
        address,
        conditions: Conditions::READY,
        node: Some(if here { "node1".into() } else { "node2".into() }),
        hints: None,
    }
}

pub(crate) fn udp(service: &mut Service) {
    service.ports = Box::new([port("dns", Protocol::Udp, 53, None)]);
}

pub(crate) fn udp_slice(slice: &mut EndpointSlice) {
    slice.ports = Box::new([EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: number(53) }]);
}

pub(crate) fn local_external(service: &mut Service) {
    service.ports = Box::new([port("http", Protocol::Tcp, 80, Some(30080))]);
    service.load_balancer_vips = Box::new(["203.0.113.10".parse().unwrap(), "fd00:203::10".parse().unwrap()]);
    service.external_traffic_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(number(31000));
}
