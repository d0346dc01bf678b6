//! A Service name's slices as the store keeps them: a big cluster has hundreds of thousands of endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::shared::Shared;
use crate::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, Service, SliceName};
use crate::net::IpFamily;

/// What is known of one Service name. An entry exists as long as there is a Service or a slice for it.
#[derive(Clone, Debug, Default)]
pub struct ServiceEntry {
    /// The Service; `None` while only slices have arrived. Apart, so that a half-empty table of entries is small.
    pub service: Option<Box<Service>>,
    /// Its slices, sorted by name so that the order of arrival never shows.
    pub slices: Vec<FiledSlice>,
}

impl ServiceEntry {
    /// An entry by itself, with its slices in their order.
    pub fn new(service: Option<Service>, slices: impl IntoIterator<Item = (SliceName, EndpointSlice)>) -> ServiceEntry {
        let mut places = Places::default();
        let slices = slices.into_iter().map(|(name, slice)| FiledSlice::new(&name, slice, &mut places)).collect();
        ServiceEntry { service: service.map(Box::new), slices }
    }
}

/// An [`EndpointSlice`] with 16 bytes for an IPv4 endpoint and 32 for one of IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FiledSlice {
    /// Its name; its namespace is that of its Service.
    pub(super) name: Arc<str>,
    /// The ports that every endpoint of the slice offers.
    pub ports: Box<[EndpointPort]>,
    endpoints: Endpoints,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoints {
    V4(Box<[Filed<4>]>),
    V6(Box<[Filed<16>]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Filed<const BYTES: usize> {
    /// `None`: on no node, without hints.
    place: Option<Arc<Place>>,
    address: [u8; BYTES],
    conditions: Conditions,
}

/// What many endpoints share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    node: Option<Arc<str>>,
    hints: Option<Arc<Hints>>,
}

/// Places of all endpoints.
pub(super) type Places = Shared<Place>;

/// An endpoint of a [`FiledSlice`]: see [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiledEndpoint<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The three conditions.
    pub conditions: Conditions,
    /// Its node; `None`: on no node, and so never local.
    pub node: Option<&'a str>,
    /// Its hints; `None`: there are none.
    pub hints: Option<&'a Hints>,
}

impl FiledSlice {
    /// Files a slice. Endpoints of another family than the slice's are of no use and left out.
    pub(super) fn new(name: &SliceName, slice: EndpointSlice, places: &mut Places) -> FiledSlice {
        let own = |endpoint: &Endpoint| (endpoint.address, place(endpoint, places), endpoint.conditions);
        let endpoints = slice.endpoints.iter().map(own);
        let endpoints = match slice.family {
            IpFamily::V4 => Endpoints::V4(
                endpoints
                    .filter_map(|(address, place, conditions)| match address {
                        IpAddr::V4(address) => Some(Filed { place, address: address.octets(), conditions }),
                        IpAddr::V6(_) => None,
                    })
                    .collect(),
            ),
            IpFamily::V6 => Endpoints::V6(
                endpoints
                    .filter_map(|(address, place, conditions)| match address {
                        IpAddr::V6(address) => Some(Filed { place, address: address.octets(), conditions }),
                        IpAddr::V4(_) => None,
                    })
                    .collect(),
            ),
        };
        FiledSlice { name: name.name.clone(), ports: slice.ports, endpoints }
    }

    /// The family of its addresses.
    pub fn family(&self) -> IpFamily {
        match self.endpoints {
            Endpoints::V4(_) => IpFamily::V4,
            Endpoints::V6(_) => IpFamily::V6,
        }
    }

    /// How many endpoints it has.
    pub fn len(&self) -> usize {
        match &self.endpoints {
            Endpoints::V4(endpoints) => endpoints.len(),
            Endpoints::V6(endpoints) => endpoints.len(),
        }
    }

    /// Whether it has no endpoints.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoints, in the order of the object.
    pub fn endpoints(&self) -> impl Iterator<Item = FiledEndpoint<'_>> {
        let (v4, v6) = match &self.endpoints {
            Endpoints::V4(endpoints) => (&**endpoints, &[][..]),
            Endpoints::V6(endpoints) => (&[][..], &**endpoints),
        };
        v4.iter().map(Filed::endpoint).chain(v6.iter().map(Filed::endpoint))
    }
}

impl<const BYTES: usize> Filed<BYTES>
where
    IpAddr: From<[u8; BYTES]>,
{
    fn endpoint(&self) -> FiledEndpoint<'_> {
        let place = self.place.as_deref();
        FiledEndpoint {
            address: IpAddr::from(self.address),
            conditions: self.conditions,
            node: place.and_then(|place| place.node.as_deref()),
            hints: place.and_then(|place| place.hints.as_deref()),
        }
    }
}

fn place(endpoint: &Endpoint, places: &mut Places) -> Option<Arc<Place>> {
    if endpoint.node.is_none() && endpoint.hints.is_none() {
        return None;
    }
    let place = Place { node: endpoint.node.clone(), hints: endpoint.hints.clone() };
    Some(places.get(&place, |place| Arc::new(place.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;

    #[test]
    fn a_filed_slice_is_small_and_says_the_same() {
        assert_eq!((size_of::<Filed<4>>(), size_of::<Filed<16>>()), (16, 32));
        let endpoint = |address: &str, node: Option<&str>, zone: Option<&str>| Endpoint {
            address: address.parse().unwrap(),
            conditions: Conditions { ready: false, serving: true, terminating: true },
            node: node.map(Arc::from),
            hints: zone.map(|zone| Arc::new(Hints { zones: Box::new([zone.into()]), nodes: Box::default() })),
        };
        let mut places = Places::default();
        for (family, addresses) in [(IpFamily::V4, ["10.0.0.1", "10.0.0.2"]), (IpFamily::V6, ["fd00::1", "fd00::2"])] {
            let [one, two] = addresses;
            let other = if family == IpFamily::V4 { "fd00::3" } else { "10.0.0.3" };
            let endpoints =
                [endpoint(one, Some("n1"), Some("z")), endpoint(other, None, None), endpoint(two, None, None)];
            let slice = EndpointSlice {
                service: ServiceName::new("ns", "s"),
                family,
                ports: Box::default(),
                endpoints: Box::new(endpoints.clone()),
                triggered_at: None,
            };
            let filed = FiledSlice::new(&SliceName::new("ns", "s-1"), slice, &mut places);
            assert_eq!((filed.family(), filed.len()), (family, 2));
            let seen: Vec<Endpoint> = filed
                .endpoints()
                .map(|it| Endpoint {
                    address: it.address,
                    conditions: it.conditions,
                    node: it.node.map(Arc::from),
                    hints: it.hints.cloned().map(Arc::new),
                })
                .collect();
            assert_eq!(seen, [endpoints[0].clone(), endpoints[2].clone()]);
        }
        assert_eq!(places.len(), 1, "one place for both families");
    }
}
