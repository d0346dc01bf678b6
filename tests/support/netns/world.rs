//! The world in which a node's rules are tried: the node, three pods on it, the rest of the cluster, and what lies outside.
//!
//! ```text
//!   pod-a .11  pod-b .12  pod-c .13        10.244.0.0/24, fd00:10:244::/64
//!        \        |        /
//!         cbr0 10.244.0.1                  node1, second address 192.168.200.1 on lo
//!         eth0 192.168.100.1
//!               |
//!   ----------- wire -------------------------------------
//!      |             |              |                |
//!    node2 .2      node3 .3      client .100      internet .254
//!    r1, r2        pod r3                         owns whatever node1 lets pass:
//!    10.244.1.0/24 10.244.2.0/24                  203.0.113.0/24, 172.30.0.0/16
//! ```
//!
//! Every IPv4 address has an IPv6 counterpart. All hosts on the wire send everything through node1, and so do the pods
//! (their addresses are /32), so that every packet and every reply crosses the rules under test. `internet` answers for the
//! addresses of Services: when it does, a packet has left the node untouched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Netns;
use super::server::Server;

/// The families, for loops.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Picks the value of this family.
    pub(crate) fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// The loopback address.
    pub(crate) fn loopback(self) -> IpAddr {
        self.pick(Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into())
    }
}

/// An address of both families: the last parts of `10.244.x.y` and its like.
fn dual(family: Family, v4: [u8; 4], v6: [u16; 4], v6_host: u16) -> IpAddr {
    let [a, b, c, d] = v6;
    family.pick(Ipv4Addr::from(v4).into(), Ipv6Addr::new(a, b, c, d, 0, 0, 0, v6_host).into())
}

/// An address on the wire: 192.168.100.x.
pub(crate) fn wire(family: Family, host: u8) -> IpAddr {
    dual(family, [192, 168, 100, host], [0xfd00, 0x100, 0, 0], host.into())
}

/// A pod address: 10.244.node.x.
pub(crate) fn pod(family: Family, node: u8, host: u8) -> IpAddr {
    dual(family, [10, 244, node, host], [0xfd00, 0x10, 0x244, node.into()], host.into())
}

/// A cluster IP: 172.30.0.x.
pub(crate) fn cluster_ip(family: Family, host: u8) -> IpAddr {
    dual(family, [172, 30, 0, host], [0xfd00, 0x172, 0x30, 0], host.into())
}

/// An address for Services that anybody may own: 203.0.113.x.
pub(crate) fn public(family: Family, host: u8) -> IpAddr {
    dual(family, [203, 0, 113, host], [0xfd00, 0x203, 0, 0], host.into())
}

/// node1's address on the wire.
pub(crate) fn node_address(family: Family) -> IpAddr {
    wire(family, 1)
}

/// node1's other address, 192.168.200.1.
pub(crate) fn second_node_address(family: Family) -> IpAddr {
    dual(family, [192, 168, 200, 1], [0xfd00, 0x200, 0, 0], 1)
}

/// node1's address on the pod bridge.
pub(crate) fn bridge_address(family: Family) -> IpAddr {
    pod(family, 0, 1)
}

/// A server behind Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pod {
    /// pod-a on node1.
    A,
    /// pod-b on node1.
    B,
    /// pod-c on node1; the one that asks.
    C,
    /// On node2.
    R1,
    /// On node2.
    R2,
}

impl Pod {
    /// Its name, as its server tells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pod::A => "pod-a",
            Pod::B => "pod-b",
            Pod::C => "pod-c",
            Pod::R1 => "pod-r1",
            Pod::R2 => "pod-r2",
        }
    }

    /// Its address.
    pub(crate) fn address(self, family: Family) -> IpAddr {
        match self {
            Pod::A => pod(family, 0, 11),
            Pod::B => pod(family, 0, 12),
            Pod::C => pod(family, 0, 13),
            Pod::R1 => pod(family, 1, 10),
            Pod::R2 => pod(family, 1, 11),
        }
    }

    /// The node on which it runs.
    pub(crate) fn node(self) -> &'static str {
        if self.is_local() { "node1" } else { "node2" }
    }

    /// Whether it runs on the node under test.
    pub(crate) fn is_local(self) -> bool {
        matches!(self, Pod::A | Pod::B | Pod::C)
    }

    /// The source address that it sees when node1 masquerades: that of the interface through which node1 reaches it.
    pub(crate) fn masquerade_address(self, family: Family) -> IpAddr {
        if self.is_local() { bridge_address(family) } else { node_address(family) }
    }
}

/// The namespaces, and the servers running in them.
pub(crate) struct World {
    /// The node under test.
    pub(crate) node1: Netns,
    /// The node with pods r1 and r2.
    pub(crate) node2: Netns,
    /// The node of pod r3, which only asks.
    pub(crate) node3: Netns,
    /// A host outside the cluster.
    pub(crate) client: Netns,
    /// Owner of the addresses of Services.
    pub(crate) internet: Netns,
    pod_a: Netns,
    pod_b: Netns,
    pod_c: Netns,
    /// The switch; kept alive.
    _wire: Netns,
    /// With the pod that each stands for, if it does.
    servers: Vec<(Option<Pod>, Server)>,
}

impl World {
    /// Builds it, without any server.
    pub(crate) fn new() -> World {
        raise_file_limit();
        let [node1, node2, node3] = ["node1", "node2", "node3"].map(Netns::new);
        let [client, internet, switch] = ["client", "internet", "wire"].map(Netns::new);
        let [pod_a, pod_b, pod_c] = ["pod-a", "pod-b", "pod-c"].map(Netns::new);
        for host in [&node1, &node2, &node3, &client, &internet, &switch, &pod_a, &pod_b, &pod_c] {
            quiet_ipv6(host);
        }
        switch.ip("link add wire type bridge\nlink set wire up\n");
        for (index, host) in [&node1, &node2, &node3, &client, &internet].into_iter().enumerate() {
            let port = format!("port{index}");
            switch.veth(&port, host, "eth0");
            switch.ip(&format!("link set {port} master wire up\n"));
        }
        build_node1(&node1);
        for (host, name) in [(&pod_a, Pod::A), (&pod_b, Pod::B), (&pod_c, Pod::C)] {
            attach_pod(&node1, host, name);
        }
        build_host(&node2, 2, |family| vec![Pod::R1.address(family), Pod::R2.address(family)]);
        build_host(&node3, 3, |family| vec![pod(family, 2, 10)]);
        build_host(&client, 100, |family| vec![wire(family, 101)]);
        build_host(&internet, 254, |_| Vec::new());
        internet.ip("route add local 203.0.113.0/24 dev lo\nroute add local 172.30.0.0/16 dev lo\n");
        internet.ip("route add local fd00:203::/64 dev lo\nroute add local fd00:172:30::/64 dev lo\n");
        internet.sysctl("net/ipv6/ip_nonlocal_bind", "1");
        World { node1, node2, node3, client, internet, pod_a, pod_b, pod_c, _wire: switch, servers: Vec::new() }
    }

    /// The namespace in which a pod runs.
    pub(crate) fn pod(&self, pod: Pod) -> &Netns {
        match pod {
            Pod::A => &self.pod_a,
            Pod::B => &self.pod_b,
            Pod::C => &self.pod_c,
            Pod::R1 | Pod::R2 => &self.node2,
        }
    }

    /// Starts the servers of these pods on these ports, in both families.
    pub(crate) fn serve_pods(&mut self, pods: &[Pod], ports: &[u16]) {
        for pod in pods {
            let addresses = both(|family| pod.address(family), ports);
            self.servers.push((Some(*pod), Server::start(self.pod(*pod), pod.name(), &addresses)));
        }
    }

    /// Ends the servers of a pod, as when it has ended: its connections are over, and new ones are refused.
    pub(crate) fn stop_pod(&mut self, pod: Pod) {
        self.servers.retain(|(of, _)| *of != Some(pod));
    }

    /// Lets node1 itself answer on these ports of all its own addresses, as a program on the node would.
    pub(crate) fn serve_node(&mut self, ports: &[u16]) {
        let mut addresses = both(node_address, ports);
        addresses.extend(both(second_node_address, ports));
        addresses.extend(both(Family::loopback, ports));
        self.servers.push((None, Server::start(&self.node1, "node1", &addresses)));
    }

    /// Lets the internet answer at these addresses.
    pub(crate) fn serve_internet(&mut self, addresses: &[SocketAddr]) {
        self.servers.push((None, Server::start(&self.internet, "internet", addresses)));
    }
}

/// Every server has a socket for each address, port and protocol.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, opening a socket will say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn both(address: impl Fn(Family) -> IpAddr, ports: &[u16]) -> Vec<SocketAddr> {
    let of = |family| ports.iter().map(move |port| (family, *port));
    FAMILIES.into_iter().flat_map(of).map(|(family, port)| SocketAddr::new(address(family), port)).collect()
}

/// Addresses are usable at once, and nobody learns shorter ways.
fn quiet_ipv6(host: &Netns) {
    for interfaces in ["all", "default"] {
        for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("accept_redirects", "0"), ("autoconf", "0")] {
            host.sysctl(&format!("net/ipv6/conf/{interfaces}/{key}"), value);
        }
        for (key, value) in [("accept_redirects", "0"), ("send_redirects", "0"), ("rp_filter", "0")] {
            host.sysctl(&format!("net/ipv4/conf/{interfaces}/{key}"), value);
        }
    }
}

fn build_node1(node1: &Netns) {
    node1.sysctl("net/ipv4/ip_forward", "1");
    node1.sysctl("net/ipv6/conf/all/forwarding", "1");
    // A test is refused more often in a second than the kernel likes to say.
    node1.sysctl("net/ipv4/icmp_ratemask", "0");
    node1.sysctl("net/ipv6/icmp/ratemask", "3");
    node1.ip("link add cbr0 type bridge\n\
        link set cbr0 up\n\
        link set eth0 up\n\
        addr add 10.244.0.1/24 dev cbr0\n\
        addr add fd00:10:244::1/64 dev cbr0 nodad\n\
        addr add 192.168.100.1/24 dev eth0\n\
        addr add fd00:100::1/64 dev eth0 nodad\n\
        addr add 192.168.200.1/32 dev lo\n\
        addr add fd00:200::1/128 dev lo nodad\n\
        route add 10.244.1.0/24 via 192.168.100.2\n\
        route add 10.244.2.0/24 via 192.168.100.3\n\
        route add default via 192.168.100.254\n\
        route add fd00:10:244:1::/64 via fd00:100::2\n\
        route add fd00:10:244:2::/64 via fd00:100::3\n\
        route add default via fd00:100::fe src fd00:100::1\n");
}

/// A host on the wire that knows only node1, with further addresses that node1 routes to it or finds on the wire.
fn build_host(host: &Netns, number: u8, more: impl Fn(Family) -> Vec<IpAddr>) {
    let [v4, v6] = FAMILIES.map(|family| wire(family, number));
    host.ip(&format!(
        "link set eth0 up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         route add 192.168.100.1 dev eth0 src {v4}\n\
         route add default via 192.168.100.1 src {v4}\n\
         route add fd00:100::1 dev eth0 src {v6}\n\
         route add default via fd00:100::1 dev eth0 src {v6}\n"
    ));
    for address in more(Family::V4) {
        host.ip(&format!("addr add {address}/32 dev eth0\n"));
    }
    for address in more(Family::V6) {
        host.ip(&format!("addr add {address}/128 dev eth0 nodad\n"));
    }
}

fn attach_pod(node1: &Netns, host: &Netns, pod: Pod) {
    let port = format!("cbr-{}", pod.name());
    node1.veth(&port, host, "eth0");
    node1.ip(&format!("link set {port} master cbr0 up\n"));
    node1.ip(&format!("link set {port} type bridge_slave hairpin on\n"));
    let [v4, v6] = FAMILIES.map(|family| pod.address(family));
    host.ip(&format!(
        "link set eth0 up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         route add 10.244.0.1 dev eth0 src {v4}\n\
         route add default via 10.244.0.1 src {v4}\n\
         route add fd00:10:244::1 dev eth0 src {v6}\n\
         route add default via fd00:10:244::1 dev eth0 src {v6}\n"
    ));
}
