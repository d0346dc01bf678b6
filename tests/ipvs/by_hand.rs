//! A load balancer made by hand on node1 of the world: the kernel without the program.

use std::net::SocketAddr;
use std::time::Duration;

use portolan::net::IpFamily;
use portolan::netlink::genl;
use portolan::netlink::ipvs::{self, Destination, Ipvs, Service, ServiceKey};
use portolan::netlink::message::Request;
use portolan::netlink::socket::{Connection, GENERIC};

use crate::netns::Netns;
use crate::netns::probe::Proto;

/// A socket to the load balancer of a namespace.
pub(super) struct ByHand {
    socket: Connection,
    ipvs: Ipvs,
}

impl ByHand {
    /// Prepares a node as the IPVS mode does: the settings of the load balancer, and a dummy link for the addresses.
    pub(super) fn new(node: &Netns) -> ByHand {
        let by_hand = ByHand::open(node);
        for key in ["conntrack", "expire_nodest_conn", "expire_quiescent_template"] {
            node.sysctl(&format!("net/ipv4/vs/{key}"), "1");
        }
        node.ip("link add kube-ipvs0 type dummy\n");
        by_hand
    }

    /// The load balancer of a node, as it is.
    pub(super) fn open(node: &Netns) -> ByHand {
        let (socket, ipvs) = node.run(|| {
            let mut socket = Connection::open(GENERIC, Duration::from_secs(10)).expect("socket");
            let mut family = None;
            let ask = genl::get_family(ipvs::FAMILY);
            let result = socket.request(&ask, |message| {
                family = genl::decode_family(message)?;
                Ok(())
            });
            result.expect("the family");
            (socket, Ipvs::new(&family.expect("the family")))
        });
        ByHand { socket, ipvs }
    }

    /// Makes a virtual server.
    pub(super) fn serve(&mut self, proto: Proto, address: SocketAddr) {
        self.run(self.ipvs.new_service(&Service::new(key(proto, address), "rr")));
    }

    /// Makes a service for packets with a firewall mark, with a real server.
    pub(super) fn serve_mark(&mut self, mark: u32, server: SocketAddr) {
        let key = ServiceKey::mark(IpFamily::of(server.ip()), mark);
        self.run(self.ipvs.new_service(&Service::new(key, "wlc")));
        self.run(self.ipvs.new_destination(&key, &Destination::new(server, 7)));
    }

    /// Deletes a virtual server.
    pub(super) fn end(&mut self, proto: Proto, address: SocketAddr) {
        self.run(self.ipvs.delete_service(&key(proto, address)));
    }

    /// Gives it a real server of weight 1.
    pub(super) fn add(&mut self, proto: Proto, address: SocketAddr, server: SocketAddr) {
        self.run(self.ipvs.new_destination(&key(proto, address), &Destination::new(server, 1)));
    }

    /// Takes new connections from a real server.
    pub(super) fn quiesce(&mut self, proto: Proto, address: SocketAddr, server: SocketAddr) {
        self.run(self.ipvs.set_destination(&key(proto, address), &Destination::new(server, 0)));
    }

    /// Takes it away.
    pub(super) fn remove(&mut self, proto: Proto, address: SocketAddr, server: SocketAddr) {
        self.run(self.ipvs.delete_destination(&key(proto, address), &Destination::new(server, 0).key));
    }

    fn run(&mut self, request: Request) {
        self.socket.request(&request, |_| Ok(())).expect("the load balancer refused");
    }
}

fn key(proto: Proto, address: SocketAddr) -> ServiceKey {
    let number = match proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
    };
    ServiceKey::address(number, address)
}
