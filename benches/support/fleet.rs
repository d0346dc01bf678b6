//! A cluster of Services that are all alike: one TCP port on an IPv4 cluster IP, and some endpoints in one slice.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use portolan::model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Objects, Service, ServiceName, ServicePort, SliceName,
};
use portolan::net::{IpFamily, Protocol};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub services: u32,
    /// Endpoints of each Service.
    pub endpoints: u32,
}

impl Fleet {
    /// So many Services with five endpoints each.
    pub(crate) fn of(services: u32) -> Fleet {
        Fleet { services, endpoints: 5 }
    }

    /// Everything, then that it was everything: what a source says first. Made one by one, so that no memory but the
    /// engine's holds the cluster.
    pub(crate) fn changes(self) -> impl Iterator<Item = Change> {
        let objects = (0..self.services).flat_map(move |at| [self.add(at), self.endpoints(at, 0)]);
        objects.chain(self.complete())
    }

    /// That everything was said.
    pub(crate) fn complete(self) -> impl Iterator<Item = Change> {
        let services = move || Change::Complete(Objects::Services((0..self.services).map(name).collect()));
        let slices = move || Change::Complete(Objects::Slices((0..self.services).map(slice_name).collect()));
        let node = std::iter::once(Change::Complete(Objects::Node));
        std::iter::once_with(services).chain(std::iter::once_with(slices)).chain(node)
    }

    /// The Service with this number appears.
    pub(crate) fn add(self, at: u32) -> Change {
        let service = Service {
            cluster_ip_v4: Some(cluster_ip(at)),
            ports: Box::new([ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: number(80),
                node_port: None,
            }]),
            ..Service::default()
        };
        Change::Service(name(at), Some(service))
    }

    /// The Service with this number vanishes; its slice stays.
    pub(crate) fn remove(self, at: u32) -> Change {
        Change::Service(name(at), None)
    }

    /// The slice of the Service with this number. Each generation has another first endpoint than the one before.
    pub(crate) fn endpoints(self, at: u32, generation: u32) -> Change {
        let endpoints = self.hosts(generation).map(|host| Endpoint {
            address: self.address(at, host),
            conditions: Conditions::READY,
            node: Some(Arc::from(node_name(host))),
            hints: None,
        });
        let slice = EndpointSlice {
            service: name(at),
            family: IpFamily::V4,
            ports: Box::new([EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: number(8080) }]),
            endpoints: endpoints.collect(),
            triggered_at: None,
        };
        Change::Slice(slice_name(at), Some(slice))
    }

    /// Endpoint addresses that each Service may use: more than it has at any time.
    fn addresses_per_service(self) -> u32 {
        (self.endpoints * 3).next_power_of_two()
    }

    /// The numbers of a Service's endpoints among its addresses.
    pub(crate) fn hosts(self, generation: u32) -> impl Iterator<Item = u32> {
        let others = self.addresses_per_service() - self.endpoints;
        let first = if generation == 0 { 0 } else { self.endpoints + generation % others };
        std::iter::once(first).chain(1..self.endpoints)
    }

    /// The address of one of them.
    pub(crate) fn address(self, at: u32, host: u32) -> IpAddr {
        let number = at * self.addresses_per_service() + host;
        IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number + 1))
    }
}

/// The node of an endpoint; `node-0` is the own one. There is the second endpoint of each Service, and not the first, which is
/// the one that changes: most changes are on other nodes.
pub(crate) fn node_name(host: u32) -> String {
    format!("node-{}", (host + 7) % 8)
}

/// The cluster IP of the Service with this number.
pub(crate) fn cluster_ip(at: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + at + 1)
}

pub(crate) fn name(at: u32) -> ServiceName {
    ServiceName::new("default", format!("service-{at}"))
}

pub(crate) fn slice_name(at: u32) -> SliceName {
    SliceName::new("default", format!("service-{at}-abcde"))
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap()
}
