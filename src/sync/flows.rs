//! Which UDP conntrack entries are stale.
//!
//! A UDP client that keeps its source port keeps its flow, and a flow keeps the endpoint that was chosen for its first
//! packet, even when that endpoint is gone or the first packet came before there was a rule. So after the rules have
//! changed, flows to an address of the Service that end somewhere else than at one of its serving endpoints are
//! deleted. This is a comparison of wanted and found, never a reaction to single events; what could not be looked at
//! stays pending.
//!
//! Differences from kube-proxy, on purpose: a node port is matched by port and address, so that other traffic through
//! the node to the same port number is left alone; a Service that lost its last endpoint, or is gone, has its flows
//! deleted too (kubernetes/kubernetes#139628).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::compile::ServicePortPlan;
use crate::kernel::{Flow, FlowEnd, FlowQuery};
use crate::net::{IpFamily, Protocol};
use crate::sync::owner::{OwnerId, Owners};

/// An address on which a UDP service port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct UdpFrontend {
    pub(crate) family: IpFamily,
    /// `None`: a node port, on the addresses of the node.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

/// The addresses of one Service, with the endpoints that may answer there: serving ones, whatever the policies say.
pub(crate) type UdpFrontends = BTreeMap<UdpFrontend, BTreeSet<SocketAddr>>;

/// How often an address is looked at because the look before found stale flows.
const MOST_LOOKS: u32 = 5;
/// Above this number of addresses, one dump of all UDP flows of the family is cheaper than one query for each.
const QUERY_ALL_ABOVE: usize = 32;

/// The UDP addresses of one Service. `None` when it has none, as most.
pub(crate) fn udp_frontends(plans: &[ServicePortPlan]) -> Option<Box<UdpFrontends>> {
    let mut frontends = UdpFrontends::new();
    for plan in plans.iter().filter(|plan| plan.name.protocol == Protocol::Udp) {
        let serving: BTreeSet<SocketAddr> =
            plan.endpoints.iter().filter(|endpoint| endpoint.serving).map(|endpoint| endpoint.socket).collect();
        let addresses = std::iter::once(plan.cluster_ip)
            .chain(plan.external_ips.iter().copied())
            .chain(plan.load_balancer_vips.iter().copied())
            .map(|address| (Some(address), plan.port));
        for (address, port) in addresses.chain(plan.node_port.map(|port| (None, port))) {
            let frontend = UdpFrontend { family: plan.family, address, port: port.get() };
            frontends.entry(frontend).or_default().extend(&serving);
        }
    }
    (!frontends.is_empty()).then(|| Box::new(frontends))
}

/// Which addresses have to be looked at, and who stands behind each.
#[derive(Debug, Default)]
pub(crate) struct FlowCleaner {
    owners: HashMap<UdpFrontend, SmallVec<[OwnerId; 1]>, RandomState>,
    /// Addresses whose endpoints changed, with the owner that changed them last, and how often they were looked at since.
    pending: BTreeMap<UdpFrontend, (OwnerId, u32)>,
}

impl FlowCleaner {
    /// An owner's addresses changed: those that differ become pending.
    pub(crate) fn update(&mut self, id: OwnerId, old: Option<&UdpFrontends>, new: Option<&UdpFrontends>) {
        for (frontend, endpoints) in old.into_iter().flatten() {
            let now = new.and_then(|new| new.get(frontend));
            if now != Some(endpoints) {
                self.pending.insert(*frontend, (id, 0));
            }
            if now.is_none()
                && let Some(owners) = self.owners.get_mut(frontend)
            {
                owners.retain(|owner| *owner != id);
                if owners.is_empty() {
                    self.owners.remove(frontend);
                }
            }
        }
        for frontend in new.into_iter().flat_map(BTreeMap::keys) {
            if old.is_none_or(|old| !old.contains_key(frontend)) {
                self.pending.insert(*frontend, (id, 0));
                self.owners.entry(*frontend).or_default().push(id);
            }
        }
    }

    /// All owners are about to be numbered anew. Every address is looked at again when they are, also one that nobody has then.
    pub(crate) fn forget_owners(&mut self) {
        let known = std::mem::take(&mut self.owners).into_keys();
        let pending = std::mem::take(&mut self.pending).into_keys();
        // The base is the one owner that keeps its number, and nothing is ready before it is.
        self.pending = known.chain(pending).map(|frontend| (frontend, (OwnerId::BASE, 0))).collect();
    }

    /// Addresses of a family that can be looked at: rules of all their owners are in the kernel.
    pub(crate) fn ready(&self, owners: &Owners, family: IpFamily) -> Vec<UdpFrontend> {
        let waits = |id: &OwnerId| owners.get(*id).is_some_and(|owner| owner.retry.is_some());
        self.pending
            .iter()
            .filter(|(frontend, _)| frontend.family == family)
            .filter(|(frontend, (last, _))| !waits(last) && !self.owners.get(frontend).into_iter().flatten().any(waits))
            .map(|(frontend, _)| *frontend)
            .collect()
    }

    /// Whether anything is pending.
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// These addresses were looked at. If no stale flow was found, they are clean. Else they stay pending for another look: an answer
    /// that was under way may have made a flow of its own, in the other direction. Returns whether any stay.
    pub(crate) fn looked(&mut self, frontends: &[UdpFrontend], clean: bool) -> bool {
        let mut again = false;
        for frontend in frontends {
            let Some((_, looks)) = self.pending.get_mut(frontend) else { continue };
            *looks += 1;
            // Somebody who answers at an address that is not his all the time does not keep us busy for ever.
            if clean || *looks >= MOST_LOOKS {
                self.pending.remove(frontend);
            } else {
                again = true;
            }
        }
        again
    }

    /// The endpoints that may answer on an address now.
    pub(crate) fn allowed(&self, owners: &Owners, frontend: &UdpFrontend) -> BTreeSet<SocketAddr> {
        self.owners
            .get(frontend)
            .into_iter()
            .flatten()
            .filter_map(|id| owners.get(*id)?.udp.as_ref()?.get(frontend))
            .flatten()
            .copied()
            .collect()
    }
}

/// What to ask the kernel for in order to see all flows to these addresses of one family.
pub(crate) fn queries(family: IpFamily, frontends: &[UdpFrontend]) -> Vec<FlowQuery> {
    let query = |end, address, port| FlowQuery { family, protocol: Protocol::Udp, end, address, port };
    if frontends.len() > QUERY_ALL_ABOVE {
        return vec![query(FlowEnd::Destination, None, None)];
    }
    let ends = [FlowEnd::Destination, FlowEnd::Source];
    let of = |frontend: &UdpFrontend| ends.map(|end| query(end, frontend.address, Some(frontend.port)));
    frontends.iter().flat_map(of).collect()
}

/// The flows to these addresses that end where nothing may answer any more. A flow whose answer comes from the Service
/// address itself was never translated: its first packet came before the rules did. One that begins there, and is not translated,
/// was made by an answer whose flow was deleted under it: as long as it lives, the client's packets count as answers and are not
/// translated either.
pub(crate) fn stale(
    flows: Vec<Flow>,
    allowed: &BTreeMap<UdpFrontend, BTreeSet<SocketAddr>>,
    node_addresses: &[IpAddr],
) -> BTreeSet<Flow> {
    let endpoints_at = |end: SocketAddr| {
        let family = IpFamily::of(end.ip());
        let exact = UdpFrontend { family, address: Some(end.ip()), port: end.port() };
        let node_port = UdpFrontend { family, address: None, port: end.port() };
        allowed.get(&exact).or_else(|| node_addresses.contains(&end.ip()).then(|| allowed.get(&node_port)).flatten())
    };
    let is_stale = |flow: &Flow| {
        let endpoints = endpoints_at(flow.original_destination);
        let translated = flow.reply_source != flow.original_destination;
        flow.protocol == Protocol::Udp
            && (endpoints.is_some_and(|endpoints| !endpoints.contains(&flow.reply_source))
                || (!translated && endpoints_at(flow.original_source).is_some()))
    };
    flows.into_iter().filter(is_stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flow(to: &str, answered_by: &str) -> Flow {
        Flow {
            protocol: Protocol::Udp,
            original_source: socket("10.0.0.9:4000"),
            original_destination: socket(to),
            reply_source: socket(answered_by),
            reply_destination: socket("10.0.0.9:4000"),
            zone: 0,
        }
    }

    fn frontend(address: Option<&str>, port: u16) -> UdpFrontend {
        UdpFrontend { family: IpFamily::V4, address: address.map(|text| text.parse().unwrap()), port }
    }

    fn stale_of(flows: Vec<Flow>, frontend: UdpFrontend, endpoints: &[&str]) -> Vec<String> {
        let allowed = BTreeMap::from([(frontend, endpoints.iter().map(|text| socket(text)).collect())]);
        let node: Vec<IpAddr> = vec!["192.168.0.1".parse().unwrap()];
        stale(flows, &allowed, &node).iter().map(|flow| flow.reply_source.to_string()).collect()
    }

    #[test]
    fn flows_to_serving_endpoints_stay_and_others_go() {
        let flows = vec![flow("10.96.0.10:53", "10.244.0.2:53"), flow("10.96.0.10:53", "10.244.0.3:53")];
        assert_eq!(stale_of(flows, frontend(Some("10.96.0.10"), 53), &["10.244.0.2:53"]), ["10.244.0.3:53"]);
    }

    #[test]
    fn a_flow_from_before_the_rules_goes() {
        let flows = vec![flow("10.96.0.10:53", "10.96.0.10:53")];
        assert_eq!(stale_of(flows, frontend(Some("10.96.0.10"), 53), &["10.244.0.2:53"]), ["10.96.0.10:53"]);
    }

    #[test]
    fn a_service_without_endpoints_keeps_no_flow() {
        let flows = vec![flow("10.96.0.10:53", "10.244.0.2:53")];
        assert_eq!(stale_of(flows, frontend(Some("10.96.0.10"), 53), &[]), ["10.244.0.2:53"]);
    }

    #[test]
    fn another_port_or_protocol_is_left_alone() {
        let mut tcp = flow("10.96.0.10:53", "10.244.0.3:53");
        tcp.protocol = Protocol::Tcp;
        let flows = vec![flow("10.96.0.10:54", "10.244.0.3:53"), flow("10.96.0.11:53", "10.244.0.3:53"), tcp];
        assert!(stale_of(flows, frontend(Some("10.96.0.10"), 53), &["10.244.0.2:53"]).is_empty());
    }

    #[test]
    fn a_flow_that_an_answer_under_way_has_made_goes() {
        let from = |source: &str, answered_by: &str| Flow {
            original_source: socket(source),
            ..flow("10.0.0.9:4000", answered_by)
        };
        let at = frontend(Some("10.96.0.10"), 53);
        let reversed = vec![from("10.96.0.10:53", "10.0.0.9:4000"), from("10.96.0.10:54", "10.0.0.9:4000")];
        assert_eq!(stale_of(reversed, at, &["10.244.0.2:53"]), ["10.0.0.9:4000"]);
        let translated = vec![from("10.96.0.10:53", "10.0.0.8:4000")];
        assert!(stale_of(translated, at, &["10.244.0.2:53"]).is_empty());
    }

    #[test]
    fn an_address_with_stale_flows_is_looked_at_again_but_not_for_ever() {
        let (mut owners, mut cleaner) = (Owners::default(), FlowCleaner::default());
        let id = owners.intern(&crate::model::ServiceName::new("ns", "dns"));
        let at = frontend(Some("10.96.0.10"), 53);
        let serves = UdpFrontends::from([(at, BTreeSet::from([socket("10.244.0.2:53")]))]);
        cleaner.update(id, None, Some(&serves));
        for _ in 1..MOST_LOOKS {
            assert!(cleaner.looked(&[at], false));
        }
        assert!(!cleaner.looked(&[at], false));
        assert!(!cleaner.is_pending());
        cleaner.update(id, Some(&serves), None);
        assert!(cleaner.looked(&[at], false));
        assert!(!cleaner.looked(&[at], true));
    }

    #[test]
    fn a_node_port_is_matched_by_address_too() {
        let flows = vec![flow("192.168.0.1:30053", "10.244.0.3:53"), flow("8.8.8.8:30053", "8.8.8.8:30053")];
        assert_eq!(stale_of(flows, frontend(None, 30053), &["10.244.0.2:53"]), ["10.244.0.3:53"]);
    }

    #[test]
    fn an_address_that_moves_to_another_service_is_judged_by_its_new_owner() {
        let (mut owners, mut cleaner) = (Owners::default(), FlowCleaner::default());
        let old = owners.intern(&crate::model::ServiceName::new("ns", "old"));
        let new = owners.intern(&crate::model::ServiceName::new("ns", "new"));
        let at = frontend(Some("10.96.0.10"), 53);
        let serves = |endpoint: &str| UdpFrontends::from([(at, BTreeSet::from([socket(endpoint)]))]);
        cleaner.update(old, None, Some(&serves("10.244.0.2:53")));
        assert!(!cleaner.looked(&[at], true));
        owners.get_mut(new).unwrap().udp = Some(Box::new(serves("10.244.0.9:53")));
        cleaner.update(new, None, Some(&serves("10.244.0.9:53")));
        cleaner.update(old, Some(&serves("10.244.0.2:53")), None);
        assert_eq!(cleaner.ready(&owners, IpFamily::V4), [at]);
        assert_eq!(cleaner.allowed(&owners, &at), BTreeSet::from([socket("10.244.0.9:53")]));
    }
}
