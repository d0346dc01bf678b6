//! The cluster that is measured: Services that are all alike, one TCP port each, with endpoints in one slice.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Objects, Service, ServiceName, ServicePort, SliceName,
};
use crate::net::{IpFamily, Protocol};

/// The network of all cluster IPs.
pub const SERVICE_NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 16, 0, 0), 12);
/// The network of all endpoints.
pub const ENDPOINT_NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 9);
/// The port of all endpoints.
pub const ENDPOINT_PORT: NonZeroU16 = NonZeroU16::MIN.saturating_add(8079);
const SERVICE_PORT: NonZeroU16 = NonZeroU16::MIN.saturating_add(79);
const PORT_NAME: &str = "http";
/// Addresses of each Service that are kept for endpoints which take another's place.
const SPARE: u32 = 4;

/// So many Services with so many endpoints each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    services: u32,
    endpoints: u32,
}

impl Fleet {
    /// `None` where the addresses do not suffice, or there is nothing to measure.
    pub fn new(services: u32, endpoints: u32) -> Option<Fleet> {
        let addresses = |(_, prefix): (_, u8)| (1_u64 << (32 - prefix)) - 2;
        let wanted = u64::from(services) * (u64::from(endpoints) + u64::from(SPARE));
        let fits = u64::from(services) <= addresses(SERVICE_NETWORK) && wanted <= addresses(ENDPOINT_NETWORK);
        (services > 0 && endpoints > 0 && fits).then_some(Fleet { services, endpoints })
    }

    /// How many Services there are.
    pub fn services(self) -> u32 {
        self.services
    }

    /// Everything, then that it was everything: what a source says first. Made one by one, so that no memory but the engine's holds
    /// the cluster.
    pub fn changes(self) -> impl Iterator<Item = Change> {
        let objects = (0..self.services).flat_map(move |at| [self.create(at), self.replace_endpoint(at, 0)]);
        let services = move || Change::Complete(Objects::Services((0..self.services).map(name).collect()));
        let slices = move || Change::Complete(Objects::Slices((0..self.services).map(slice_name).collect()));
        let node = std::iter::once(Change::Complete(Objects::Node));
        objects.chain(std::iter::once_with(services)).chain(std::iter::once_with(slices)).chain(node)
    }

    /// The Service with this number appears.
    pub fn create(self, at: u32) -> Change {
        let ports =
            [ServicePort { name: PORT_NAME.into(), protocol: Protocol::Tcp, port: SERVICE_PORT, node_port: None }];
        let service = Service { cluster_ip_v4: Some(cluster_ip(at)), ports: Box::new(ports), ..Service::default() };
        Change::Service(name(at), Some(service))
    }

    /// The Service with this number vanishes; its slice stays.
    pub fn remove(self, at: u32) -> Change {
        Change::Service(name(at), None)
    }

    /// The slice of the Service with this number. Each generation has another first endpoint than the one before.
    pub fn replace_endpoint(self, at: u32, generation: u32) -> Change {
        let first = if generation == 0 { 0 } else { self.endpoints + generation % SPARE };
        let endpoints = std::iter::once(first).chain(1..self.endpoints).map(|host| Endpoint {
            address: self.address(at, host),
            conditions: Conditions::READY,
            node: Some(Arc::from(format!("node-{}", host % 8))),
            hints: None,
        });
        let slice = EndpointSlice {
            service: name(at),
            family: IpFamily::V4,
            ports: Box::new([EndpointPort { name: PORT_NAME.into(), protocol: Protocol::Tcp, port: ENDPOINT_PORT }]),
            endpoints: endpoints.collect(),
            triggered_at: None,
        };
        Change::Slice(slice_name(at), Some(slice))
    }

    /// Where the Service with this number is reached.
    pub fn target(self, at: u32) -> SocketAddr {
        (cluster_ip(at), SERVICE_PORT.get()).into()
    }

    /// The number of the Service that is reached at this address.
    pub fn at(self, address: Ipv4Addr) -> Option<u32> {
        let number = u32::from(address).checked_sub(u32::from(SERVICE_NETWORK.0) + 1)?;
        (number < self.services).then_some(number)
    }

    /// So many Services, evenly spread.
    pub fn spread(self, count: u32) -> impl Iterator<Item = u32> {
        let at = move |step: u32| u64::from(self.services) * u64::from(step) / u64::from(count.max(1));
        (0..count).map(move |step| u32::try_from(at(step)).unwrap_or(0))
    }

    fn address(self, at: u32, host: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(u32::from(ENDPOINT_NETWORK.0) + at * (self.endpoints + SPARE) + host + 1))
    }
}

fn cluster_ip(at: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(SERVICE_NETWORK.0) + at + 1)
}

// Numbers of one width, so that the order of names is the order of numbers.
fn name(at: u32) -> ServiceName {
    ServiceName::new("bench", format!("service-{at:07}"))
}

fn slice_name(at: u32) -> SliceName {
    SliceName::new("bench", format!("service-{at:07}-abcde"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn addresses(change: Change) -> Vec<IpAddr> {
        match change {
            Change::Slice(_, Some(slice)) => slice.endpoints.iter().map(|endpoint| endpoint.address).collect(),
            other => panic!("not a slice: {other:?}"),
        }
    }

    #[test]
    fn a_replaced_endpoint_is_another_one_and_the_rest_stays() {
        let fleet = Fleet::new(10, 3).unwrap();
        for generation in 0..10 {
            let before = addresses(fleet.replace_endpoint(4, generation));
            let after = addresses(fleet.replace_endpoint(4, generation + 1));
            assert_ne!(before[0], after[0]);
            assert_eq!((before.len(), &before[1..]), (3, &after[1..]));
        }
    }

    #[test]
    fn services_share_no_endpoint_and_all_lie_in_the_network() {
        let fleet = Fleet::new(50, 2).unwrap();
        let all: Vec<IpAddr> = (0..50)
            .flat_map(|at| (0..4).flat_map(move |generation| addresses(fleet.replace_endpoint(at, generation))))
            .collect();
        let network = ipnet::Ipv4Net::new(ENDPOINT_NETWORK.0, ENDPOINT_NETWORK.1).unwrap();
        assert!(all.iter().all(|address| matches!(address, IpAddr::V4(address) if network.contains(address))));
        // Per Service: the first, three that take its place, and the second.
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len(), 50 * 5);
    }

    #[test]
    fn what_has_no_addresses_is_refused() {
        assert!(Fleet::new(30_000, 250).is_some());
        assert_eq!(Fleet::new(40_000, 250), None);
        assert_eq!((Fleet::new(0, 1), Fleet::new(1, 0)), (None, None));
    }

    #[test]
    fn a_service_is_found_by_its_address() {
        let fleet = Fleet::new(300, 1).unwrap();
        for number in [0, 1, 299] {
            let SocketAddr::V4(target) = fleet.target(number) else { panic!("IPv4 only") };
            assert_eq!(fleet.at(*target.ip()), Some(number));
        }
        assert_eq!((fleet.at(SERVICE_NETWORK.0), fleet.at(Ipv4Addr::BROADCAST)), (None, None));
    }

    #[test]
    fn numbers_are_spread_over_all_services() {
        let fleet = Fleet::new(100, 1).unwrap();
        assert_eq!(fleet.spread(4).collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(Fleet::new(2, 1).unwrap().spread(4).collect::<Vec<_>>(), [0, 0, 1, 1]);
    }
}
