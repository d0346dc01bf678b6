//! A rolling update of a Service with external traffic policy Local, seen through a load balancer before two nodes, each of
//! which has a daemon of its own.
//!
//! ```text
//!   pod 10.244.1.10 - node1 192.168.100.1 \
//!                                          wire - balancer 192.168.100.100, with the API server
//!   pod 10.244.2.10 - node2 192.168.100.2 /
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::api_server::ApiServer;
use crate::daemon::{Daemon, eventually, get};
use crate::netns::Netns;
use crate::netns::probe::{PATIENCE, Proto, probe};
use crate::netns::server::Server;
use crate::objects::{Phase, balanced, endpoint, node, service, slice};

const HEALTH_PORT: u16 = 31010;
const NODE_PORT: u16 = 30010;

/// A node with one place for a pod.
struct Node {
    name: &'static str,
    address: IpAddr,
    pod_address: IpAddr,
    netns: Netns,
    pod: Netns,
}

impl Node {
    fn new(number: u8, name: &'static str, switch: &Netns) -> Node {
        let (netns, pod) = (Netns::new(name), Netns::new("pod"));
        plug(switch, &netns, name, &format!("192.168.100.{number}/24"));
        netns.sysctl("net/ipv4/ip_forward", "1");
        netns.veth("pod0", &pod, "eth0");
        let (own, pods) = (format!("10.244.{number}.1"), format!("10.244.{number}.10"));
        netns.ip(&format!("addr add {own}/24 dev pod0\nlink set pod0 up\n"));
        pod.ip(&format!("link set eth0 up\naddr add {pods}/24 dev eth0\nroute add default via {own}\n"));
        let address = format!("192.168.100.{number}").parse().expect("an address");
        Node { name, address, pod_address: pods.parse().expect("an address"), netns, pod }
    }

    fn start_pod(&self) -> Server {
        Server::start(&self.pod, self.name, &[SocketAddr::new(self.pod_address, 8080)])
    }
}

fn plug(switch: &Netns, host: &Netns, port: &str, address: &str) {
    switch.veth(port, host, "eth0");
    switch.ip(&format!("link set {port} master wire up\n"));
    host.ip(&format!("link set eth0 up\naddr add {address} dev eth0\n"));
}

/// What the load balancer thinks of the nodes, and what came of the requests that it passed on.
#[derive(Default)]
struct Balancer {
    healthy: [AtomicBool; 2],
    /// Held by each request from the choice of its node to its answer.
    under_way: RwLock<()>,
    answered: [AtomicUsize; 2],
    lost: AtomicUsize,
    without_node: AtomicUsize,
    stop: AtomicBool,
}

impl Balancer {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn thinks(&self, node: usize) -> bool {
        self.healthy[node].load(Ordering::SeqCst)
    }

    /// Asks the nodes every 100 ms.
    fn poll(&self, from: &Netns, nodes: &[Node; 2]) {
        while self.goes_on() {
            for (node, healthy) in nodes.iter().zip(&self.healthy) {
                let status = get(from, SocketAddr::new(node.address, HEALTH_PORT), "/").status;
                healthy.store(status == 200, Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Passes on requests, each to the next node that is thought to be healthy.
    fn pass_on(&self, from: &Netns, nodes: &[Node; 2], first: usize) {
        from.enter();
        let mut next = first;
        while self.goes_on() {
            let guard = self.under_way.read().expect("no request panics");
            next += 1;
            let choice = [next % 2, (next + 1) % 2].into_iter().find(|node| self.thinks(*node));
            let counter = match choice {
                None => &self.without_node,
                Some(node) => {
                    let to = SocketAddr::new(nodes[node].address, NODE_PORT);
                    let outcome = probe(None, to, Proto::Tcp, PATIENCE);
                    if outcome.by() == Some(nodes[node].name) {
                        &self.answered[node]
                    } else {
                        println!("lost at {}: {outcome}", nodes[node].name);
                        &self.lost
                    }
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            drop(guard);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_rolling_update_across_two_nodes_loses_no_request_of_a_load_balancer() {
    const ROUNDS: usize = 6;
    let (switch, outside) = (Netns::new("wire"), Netns::new("balancer"));
    switch.ip("link add wire type bridge\nlink set wire up\n");
    plug(&switch, &outside, "balancer", "192.168.100.100/24");
    let nodes = [Node::new(1, "node1", &switch), Node::new(2, "node2", &switch)];
    let server = outside.run(|| ApiServer::start_at("192.168.100.100:0".parse().expect("an address")));
    let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
    for of in &nodes {
        server.apply(node(of.name, &[of.address]));
    }
    let object = service("web", &[ip("172.30.0.10")]);
    server.apply(balanced(object, NODE_PORT, HEALTH_PORT, &[ip("203.0.113.10")]));
    let set = |pods: &[(usize, Phase)]| {
        let endpoint = |(at, phase): &(usize, Phase)| endpoint(nodes[*at].pod_address, nodes[*at].name, *phase);
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        server.apply(slice("web", "IPv4", &endpoints));
    };
    let mut pod = nodes[0].start_pod();
    set(&[(0, Phase::Ready)]);
    let _daemons = nodes.each_ref().map(|node| Daemon::start(&node.netns, node.name, &server, &[]));
    let balancer = Balancer::default();
    std::thread::scope(|scope| {
        scope.spawn(|| balancer.poll(&outside, &nodes));
        // Whatever panics below, the threads end.
        let _stop = StopOnDrop(&balancer.stop);
        eventually("the load balancer knows a node", || balancer.thinks(0));
        for first in 0..3 {
            let (balancer, outside, nodes) = (&balancer, &outside, &nodes);
            scope.spawn(move || balancer.pass_on(outside, nodes, first));
        }
        for round in 0..ROUNDS {
            let (old, new) = (round % 2, (round + 1) % 2);
            let next = nodes[new].start_pod();
            set(&[(old, Phase::Ready), (new, Phase::Ready)]);
            eventually("the load balancer knows the new one", || balancer.thinks(new));
            set(&[(old, Phase::Terminating), (new, Phase::Ready)]);
            eventually("the load balancer turns away from the old one", || !balancer.thinks(old));
            // The old one has answered all that came before, and ends.
            drop(balancer.under_way.write().expect("no request panics"));
            drop(std::mem::replace(&mut pod, next));
            set(&[(new, Phase::Ready)]);
        }
    });
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let answered = balancer.answered.each_ref().map(count);
    let (lost, without_node) = (count(&balancer.lost), count(&balancer.without_node));
    println!("{ROUNDS} updates: {answered:?} requests answered, {lost} lost, {without_node} without a node");
    assert_eq!((lost, without_node), (0, 0));
    assert!(answered.iter().all(|answered| *answered > 20), "{answered:?}");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
