//! Addresses of Services as routes. What becomes of packets is in the table.

use std::net::{SocketAddr, UdpSocket};
use std::slice::from_ref;

use super::table::SERVICE_CIDRS;
use super::walks::listen_everywhere;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, Proto};
use crate::netns::world::{FAMILIES, Pod, cluster_ip, node_address, public};
use crate::traffic::lab::{Lab, ask, ask_once};
use crate::traffic::manifest::{PROTOS, Service};
use crate::traffic::program::Setup;

/// With routes every cluster IP that might be given out is local, and the node knows its source.
#[test]
fn routes_close_unused_cluster_ips_and_keep_the_nodes_source() {
    if !kernel_has_ipvs() {
        return;
    }
    const HOST_PORT: u16 = 81;
    let mut service = Service::new("routed", 1, &[Pod::A]);
    service.external_ips = FAMILIES.map(|family| public(family, 1)).into();
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &["--ipvs-vips=routes", SERVICE_CIDRS]);
    let node = &lab.world.node1;
    assert_eq!(node.addresses_of("kube-ipvs0").unwrap_or_default(), [].into());
    let _host = listen_everywhere(node, &[HOST_PORT]);
    for family in FAMILIES {
        for from in [lab.world.pod(Pod::C), node, &lab.world.client] {
            let open = ask_once(from, SocketAddr::new(node_address(family), HOST_PORT), Proto::Tcp);
            assert_eq!(open.by(), Some("node1"), "{}: {open}", from.name());
            for (address, proto) in [cluster_ip(family, 1), cluster_ip(family, 200), public(family, 1)]
                .into_iter()
                .flat_map(|address| PROTOS.map(|proto| (address, proto)))
            {
                let outcome = ask_once(from, SocketAddr::new(address, HOST_PORT), proto);
                assert_eq!(outcome, Outcome::Refused, "{} to {address} {proto}", from.name());
            }
        }
        for vip in [cluster_ip(family, 1), public(family, 1)] {
            let source = node.run(|| {
                let any = UdpSocket::bind((family.pick("0.0.0.0", "::"), 0))?;
                any.connect(SocketAddr::new(vip, 80))?;
                any.local_addr()
            });
            assert_eq!(source.expect("a way").ip(), node_address(family), "to {vip}");
            assert!(ask(node, SocketAddr::new(vip, 80), Proto::Tcp, 3).iter().all(|answer| answer.by().is_some()));
        }
    }
}
