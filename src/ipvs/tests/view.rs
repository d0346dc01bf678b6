//! Fragments in words that are short enough for a table of cases.

use std::collections::BTreeMap;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::iptables::tests::setup::{Setup, service};
use crate::ipvs::{IpvsBackend, IpvsSettings};
use crate::kernel::item::DUMMY_LINK;
use crate::kernel::{ItemKey, ItemState, SetKey};
use crate::net::{IpFamily, Protocol};

pub(super) const NODE: &str = "192.168.0.2";

/// A Service with the cluster IP 172.30.0.41 and no port, on a node with one address in each family.
pub(super) fn bare() -> Setup {
    let mut setup = service();
    setup.service.ports = Box::default();
    setup.endpoint_ports.clear();
    setup.node(|node| {
        node.node_addresses.v4 = vec![NODE.parse().unwrap()];
        node.node_addresses.v6 = vec!["fd00:1::2".parse().unwrap()];
        node.node_ips.v6 = Some("fd00:1::2".parse().unwrap());
    })
}

/// The same with TCP port 80.
pub(super) fn plain() -> Setup {
    bare().port("p80", Protocol::Tcp, 80, None)
}

/// The same with node port 30000, external IP 192.0.2.1 and VIP 1.2.3.4.
pub(super) fn external() -> Setup {
    bare().port("p80", Protocol::Tcp, 80, Some(30000)).external_ip("192.0.2.1").vip("1.2.3.4")
}

pub(super) fn lowered(setup: &Setup, settings: &IpvsSettings) -> Fragment {
    let backend = IpvsBackend { settings: settings.clone() };
    let mut out = Fragment::default();
    for plan in setup.plans() {
        backend.lower(&plan, &setup.node, RuleComments::Keep, &mut out);
    }
    out
}

pub(super) fn fragment(setup: &Setup) -> Fragment {
    lowered(setup, &IpvsSettings::default())
}

/// The virtual servers, each with its real servers: `tcp 172.30.0.41:80 rr -> 10.180.0.1:80 10.180.0.2:80`.
pub(super) fn servers(out: &Fragment) -> Vec<String> {
    let mut found = BTreeMap::new();
    for (key, state) in &out.items {
        match (key, state) {
            (ItemKey::VirtualServer(server), state) => {
                found.insert(*server, format!("{server}{state} ->"));
            }
            (ItemKey::RealServer(real), state) => {
                assert_eq!(*state, ItemState::Weight(1));
                let to = std::net::SocketAddr::new(real.address, real.port);
                let line = found.get_mut(&real.server).unwrap_or_else(|| panic!("{real} has no virtual server"));
                line.push_str(&format!(" {to}"));
            }
            _ => {}
        }
    }
    found.into_values().collect()
}

/// Virtual servers without their schedulers and real servers.
pub(super) fn keys(out: &Fragment) -> Vec<String> {
    servers(out).iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

/// The real servers of the virtual server at this address and port.
pub(super) fn real_servers(out: &Fragment, server: &str) -> String {
    let lines = servers(out);
    let line = lines.iter().find(|line| line.split(' ').nth(1) == Some(server));
    let line = line.unwrap_or_else(|| panic!("no {server} in {lines:?}"));
    line.split_once("->").unwrap().1.trim().to_owned()
}

/// The elements of one family: `CLUSTER-IP 172.30.0.41,tcp:80`.
pub(super) fn elements_in(family: IpFamily, out: &Fragment) -> Vec<String> {
    let short = |set: &SetKey| set.as_str().trim_start_matches("KUBE-").trim_start_matches("6-").to_owned();
    out.items
        .iter()
        .filter_map(|(key, _)| match key {
            ItemKey::Element(set, element) if set.family == family => Some(format!("{} {element}", short(set))),
            _ => None,
        })
        .collect()
}

/// The IPv4 elements.
pub(super) fn elements(out: &Fragment) -> Vec<String> {
    elements_in(IpFamily::V4, out)
}

/// Elements of sets whose names begin so, without the names.
pub(super) fn in_set(out: &Fragment, set: &str) -> Vec<String> {
    elements(out).iter().filter_map(|line| Some(line.strip_prefix(set)?.strip_prefix(' ')?.to_owned())).collect()
}

/// Addresses and routes.
pub(super) fn addresses(out: &Fragment) -> Vec<String> {
    let end = format!(" on {DUMMY_LINK}");
    out.items
        .iter()
        .filter(|(key, _)| matches!(key, ItemKey::Address(_) | ItemKey::Route(_)))
        .map(|(key, state)| format!("{key}{state}").replace(&end, "").replace("address ", ""))
        .collect()
}

/// Rules with their chains.
pub(super) fn rules(out: &Fragment) -> Vec<String> {
    out.rules.iter().map(|(key, _)| format!("{} {}", key.chain.name, key.spec)).collect()
}
