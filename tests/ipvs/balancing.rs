//! How connections are shared out: schedulers, affinity, and SCTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::slice::from_ref;
use std::thread;

use rstest::rstest;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use crate::netns::Netns;
use crate::netns::flow::Conversation;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, PATIENCE, Proto, probe};
use crate::netns::world::{FAMILIES, Pod, bridge_address, node_address, pod, wire};
use crate::traffic::lab::{Lab, cluster_address, node_port};
use crate::traffic::manifest::{PROTOS, Service};
use crate::traffic::program::{Setup, eventually};

fn sctp_socket(address: SocketAddr) -> std::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP))?)
}

/// Answers associations at these addresses with the sender's address. The thread waits for the next one until the process ends.
fn serve_sctp(netns: &Netns, addresses: &[SocketAddr]) {
    for address in addresses.iter().copied() {
        let listener = netns.run(|| {
            let socket = sctp_socket(address).expect("a socket of SCTP");
            rustix::net::bind(&socket, &address).expect("bind");
            rustix::net::listen(&socket, 16).expect("listen");
            TcpListener::from(socket)
        });
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                // Who asks sees what is missing.
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        });
    }
}

/// The address that the server sees. The source is bound, since an association tells all addresses that its ends might use.
fn ask_sctp(from: &Netns, source: SocketAddr, to: SocketAddr) -> std::io::Result<String> {
    from.run(|| {
        let socket = sctp_socket(to)?;
        rustix::net::bind(&socket, &source)?;
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(PATIENCE))?;
        rustix::net::connect(&socket, &to)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 64];
        let length = stream.read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

#[test]
fn sctp_is_served_at_cluster_ips_and_node_ports() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("signalling", 1, &[Pod::A]);
    service.node_port = 30001;
    let lab = Lab::start(Setup::ipvs(), &[], &[]);
    serve_sctp(
        lab.world.pod(Pod::A),
        &FAMILIES.map(|family| SocketAddr::new(Pod::A.address(family), service.target_port)),
    );
    lab.manifests.put(&service.name, &service.manifest().replace("protocol: UDP", "protocol: SCTP"));
    let servers = || lab.world.node1.virtual_servers().into_iter().filter(|server| server.protocol == "SCTP");
    eventually("the load balancer has SCTP", || servers().filter(|server| !server.servers.is_empty()).count() == 2 * 4);
    for family in FAMILIES {
        let (inside, outside) = (cluster_address(&service, family), node_port(&service, node_address(family)));
        let pod_c = SocketAddr::new(Pod::C.address(family), 0);
        let client = SocketAddr::new(wire(family, 100), 0);
        let node = SocketAddr::new(node_address(family), 0);
        let walks = [
            (lab.world.pod(Pod::C), pod_c, inside, Pod::C.address(family)),
            (lab.world.pod(Pod::C), pod_c, outside, bridge_address(family)),
            (&lab.world.client, client, inside, bridge_address(family)),
            (&lab.world.client, client, outside, bridge_address(family)),
            (&lab.world.node1, node, inside, bridge_address(family)),
            (&lab.world.node1, node, outside, bridge_address(family)),
        ];
        for (from, source, to, seen) in walks {
            let answer = ask_sctp(from, source, to);
            assert!(matches!(&answer, Ok(text) if *text == seen.to_string()), "{} to {to}: {answer:?}", from.name());
        }
    }
}

#[test]
fn a_client_stays_with_its_endpoint() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("sticky", 1, &[Pod::A, Pod::B, Pod::R1]);
    service.affinity = Some(10800);
    service.node_port = 30001;
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    for (family, proto) in FAMILIES.into_iter().flat_map(|family| PROTOS.map(|proto| (family, proto))) {
        let (inside, outside) = (cluster_address(&service, family), node_port(&service, node_address(family)));
        let clients = [(&lab.world.client, wire(family, 100)), (&lab.world.client, wire(family, 101))];
        let pods = [(lab.world.pod(Pod::C), Pod::C.address(family)), (&lab.world.node3, pod(family, 2, 10))];
        for (to, [one, other]) in [(inside, pods), (outside, clients)] {
            let chosen = |(from, source): (&Netns, _)| {
                let source = Some(SocketAddr::new(source, 0));
                let mut names: Vec<String> = from
                    .run(|| (0..12).map(|_| probe(source, to, proto, PATIENCE)).collect::<Vec<Outcome>>())
                    .iter()
                    .map(|outcome| outcome.by().unwrap_or("nobody").to_owned())
                    .collect();
                names.dedup();
                assert!(names.len() == 1 && names[0] != "nobody", "{to} {proto}: {names:?}");
                names.remove(0)
            };
            // New clients are given out in turn.
            let (first, second) = (chosen(one), chosen(other));
            assert_ne!(first, second, "{to} {proto}");
            assert_eq!(chosen(one), first, "{to} {proto}");
        }
    }
}

#[rstest]
#[case::maglev("mh", &["pod-a", "pod-b"])]
#[case::least_connections("lc", &["pod-a", "pod-b"])]
// By the client's address alone.
#[case::source("sh", &[])]
fn other_schedulers_serve(#[case] scheduler: &str, #[case] expected: &[&str]) {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("scheduled", 1, &[Pod::A, Pod::B]);
    service.node_port = 30001;
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[&format!("--ipvs-scheduler={scheduler}")]);
    let servers = lab.world.node1.virtual_servers();
    assert_eq!(servers.len(), 2 * 2 * 4, "{servers:?}");
    assert!(servers.iter().all(|server| server.scheduler == scheduler && server.servers.len() == 2), "{servers:?}");
    for (family, proto) in FAMILIES.into_iter().flat_map(|family| PROTOS.map(|proto| (family, proto))) {
        let walks = [
            (lab.world.pod(Pod::C), cluster_address(&service, family)),
            (&lab.world.client, node_port(&service, node_address(family))),
        ];
        for (from, to) in walks {
            // Connections that stay let the least connections be somebody else's in turn.
            let _open: Vec<_> =
                (0..4).filter(|_| proto == Proto::Tcp).map(|_| Conversation::open(from, None, to)).collect();
            let names = lab.answering(from, to, proto, 40);
            if expected.is_empty() {
                assert!(names == ["pod-a"] || names == ["pod-b"], "{} to {to} {proto}: {names:?}", from.name());
            } else {
                assert_eq!(names, expected, "{} to {to} {proto}", from.name());
            }
        }
    }
}
