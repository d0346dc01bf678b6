//! A node with many Services, a few of which have real pods and real clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::api_server::{ApiServer, Request, Resource};
use crate::daemon::{Daemon, eventually};
use crate::netns::flow::Questions;
use crate::netns::probe::{Outcome, PATIENCE, Proto, probe};
use crate::netns::world::{FAMILIES, Family, Pod, World, cluster_ip, node_address};
use crate::objects::{NAMESPACE, Phase, endpoint, node, service, slice, with_node_port};

/// How the node serves, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// Iptables mode with 10,000 Services beside those that are asked.
    Iptables,
    /// IPVS mode with as many as the lab's kernel takes in within seconds.
    Ipvs,
}

impl Ground {
    fn services(self) -> u32 {
        match self {
            Ground::Iptables => 10_000,
            Ground::Ipvs => 200,
        }
    }

    /// User-mode Linux has no nf_tables.
    fn variant(self) -> &'static str {
        let uml = std::env::var_os("PORTOLAN_LAB").is_some_and(|kernel| kernel == "uml");
        if uml { "legacy" } else { "nft" }
    }

    fn flags(self) -> [String; 2] {
        let mode = match self {
            Ground::Iptables => "iptables",
            Ground::Ipvs => "ipvs",
        };
        [format!("--proxy-mode={mode}"), format!("--iptables-variant={}", self.variant())]
    }

    /// How many IPv4 objects of a kind there are, and how many of them a Service with two ports and one endpoint has: for each
    /// port the rule of dispatch, two of the Service's chain and two of the endpoint's, or a virtual server.
    fn objects(self, daemon: &Daemon) -> (i64, i64) {
        let (metric, label, of_one) = match self {
            Ground::Iptables => ("kubeproxy_sync_proxy_rules_iptables_total", "ip_family=\"IPv4\",table=\"nat\"", 10),
            Ground::Ipvs => ("portolan_items", "ip_family=\"IPv4\",kind=\"virtual_server\"", 2),
        };
        (daemon.metric(metric, label) as i64, of_one)
    }
}

/// Endpoints of each Service beside those that are asked.
const ENDPOINTS: u32 = 5;
/// All addresses of the Services that are deleted one by one begin here.
const DOOMED: u8 = 100;
const PAUSE: Duration = Duration::from_millis(5);

/// The world, the API server, the daemon and the clients.
pub(crate) struct Rig {
    /// The API server.
    pub(crate) server: ApiServer,
    /// The daemon.
    pub(crate) daemon: Daemon,
    ground: Ground,
    world: World,
    clients: Vec<(&'static str, Questions)>,
    rules_at_first: Vec<String>,
    round: u8,
}

impl Rig {
    /// Starts everything; returns when the Services are programmed and the clients ask. `faults`: how many rounds of
    /// [`Rig::fault`] there will be.
    pub(crate) fn start(ground: Ground, faults: u8) -> Rig {
        let mut world = World::new();
        world.serve_pods(&[Pod::A, Pod::B, Pod::R1], &[8080]);
        let server = world.node1.run(ApiServer::start);
        server.apply(node("node1", &FAMILIES.map(node_address)));
        server.apply(with_node_port(service("steady", &FAMILIES.map(|family| cluster_ip(family, 1))), 30001));
        server.apply(service("changing", &FAMILIES.map(|family| cluster_ip(family, 2))));
        set_endpoints(&server, "steady", &[Pod::A, Pod::R1]);
        set_endpoints(&server, "changing", &[Pod::A]);
        (0..faults).for_each(|round| make_doomed(&server, round));
        fill(&server, ground.services());
        let started = Instant::now();
        let daemon = start_daemon(ground, &world, &server);
        let services = ground.services();
        println!("{services} Services with {ENDPOINTS} endpoints each programmed after {:.1?}", started.elapsed());
        let rules_at_first = held(ground, &world);
        let mut rig = Rig { server, daemon, ground, world, clients: Vec::new(), rules_at_first, round: 0 };
        rig.ask();
        rig
    }

    fn ask(&mut self) {
        let to = |number, family| SocketAddr::new(cluster_ip(family, number), 80);
        let node_port = |family| SocketAddr::new(node_address(family), 30001);
        let (inside, outside) = (self.world.pod(Pod::C), &self.world.client);
        self.clients = vec![
            ("pod to steady, tcp", Questions::start(inside, to(1, Family::V4), Proto::Tcp, PAUSE)),
            ("pod to steady, tcp, IPv6", Questions::start(inside, to(1, Family::V6), Proto::Tcp, PAUSE)),
            ("pod to changing, tcp", Questions::start(inside, to(2, Family::V4), Proto::Tcp, PAUSE)),
            ("pod to changing, udp, IPv6", Questions::start(inside, to(2, Family::V6), Proto::Udp, PAUSE)),
            ("outside to node port, tcp", Questions::start(outside, node_port(Family::V4), Proto::Tcp, PAUSE)),
        ];
    }

    /// One fault: `inject` begins it, then endpoints change and a Service is deleted, `mend` ends it; then the kernel must
    /// come to show both changes, the daemon must be healthy, and no other Service may have lost or gained a rule. Returns
    /// the requests from the beginning of the fault to that moment.
    #[track_caller]
    pub(crate) fn fault(&mut self, name: &str, inject: impl FnOnce(&Rig), mend: impl FnOnce(&Rig)) -> Vec<Request> {
        let (asked, started) = (self.server.requests().len(), Instant::now());
        let (before, of_one) = self.ground.objects(&self.daemon);
        inject(self);
        let next = if self.round.is_multiple_of(2) { Pod::B } else { Pod::A };
        set_endpoints(&self.server, "changing", &[next]);
        let doomed = doomed(self.round);
        self.server.delete(Resource::Services, NAMESPACE, &doomed);
        ["ipv4", "ipv6"].iter().for_each(|family| {
            self.server.delete(Resource::Slices, NAMESPACE, &format!("{doomed}-{family}"));
        });
        assert_eq!(self.daemon.livez(), 200, "{name}: nothing waits that the daemon knows of");
        assert_eq!(self.daemon.healthz(), 200, "{name}: the node goes on serving");
        mend(self);
        let mended = Instant::now();
        for family in FAMILIES {
            eventually(&format!("after {name:?} {next:?} alone answers"), || {
                (0..5).all(|_| self.probe(2, family).by() == Some(next.name()))
            });
            eventually(&format!("after {name:?} {doomed} is gone"), || {
                self.probe(DOOMED + self.round, family).by().is_none()
            });
        }
        eventually(&format!("after {name:?} only one Service is gone"), || {
            self.ground.objects(&self.daemon).0 == before - of_one
        });
        eventually(&format!("after {name:?} it is healthy"), || self.daemon.healthz() == 200);
        self.wait_for_watches(name);
        self.round += 1;
        let requests = self.server.requests().split_off(asked);
        let lists = requests.iter().filter(|request| is_beginning(request)).count();
        println!(
            "{name}: {} requests, of them {lists} lists begun; converged {:.1?} after its end, {:.1?} after its beginning",
            requests.len(),
            mended.elapsed(),
            started.elapsed()
        );
        requests
    }

    /// Kills the daemon and starts another one, which must find everything as it should be, and write nothing.
    pub(crate) fn restart(&mut self) {
        eventually("nothing waits", || self.daemon.metric("portolan_draining_real_servers", "") == 0.0);
        let before = held(self.ground, &self.world);
        self.daemon.stop(Signal::KILL);
        let started = Instant::now();
        self.daemon = start_daemon(self.ground, &self.world, &self.server);
        println!("killed; after {:.1?} its successor has synced", started.elapsed());
        assert_eq!(self.daemon.metric_sum("portolan_operations_total"), 0.0, "operations");
        assert_eq!(held(self.ground, &self.world), before);
    }

    /// While nothing changes, the daemon starts no program and all but sleeps: in a minute, 10 ms of processor time.
    pub(crate) fn idle(&self) {
        let started = || self.daemon.metric_sum("portolan_processes_started_total");
        let (programs, window) = (started(), Duration::from_secs(15));
        // What it did to answer is over.
        std::thread::sleep(Duration::from_secs(1));
        let before = self.daemon.processor_time();
        std::thread::sleep(window);
        let spent = self.daemon.processor_time() - before;
        assert!(before > Duration::from_millis(10), "its first sync took no more than {before:?}");
        println!("idle for {window:?}: {:.3} ms of processor time", spent.as_secs_f64() * 1000.0);
        assert_eq!(started(), programs, "programs started");
        assert!(spent <= Duration::from_millis(10), "{spent:?}");
    }

    /// Whatever was deleted comes back, and then all rules must be those of the beginning. Ends the clients, none of whose
    /// requests may have failed.
    pub(crate) fn finish(mut self) {
        (0..self.round).for_each(|round| make_doomed(&self.server, round));
        set_endpoints(&self.server, "changing", &[Pod::A]);
        for (round, family) in (0..self.round).flat_map(|round| FAMILIES.map(|family| (round, family))) {
            eventually("a Service comes back", || self.probe(DOOMED + round, family).by() == Some("pod-a"));
        }
        let mut missing = 0;
        let mut superfluous = 0;
        eventually("the rules are those of the beginning", || {
            let now = held(self.ground, &self.world);
            missing = self.rules_at_first.iter().filter(|rule| now.binary_search(rule).is_err()).count();
            superfluous = now.iter().filter(|rule| self.rules_at_first.binary_search(rule).is_err()).count();
            println!("{} rules, {missing} missing, {superfluous} superfluous", now.len());
            (missing, superfluous, now.len()) == (0, 0, self.rules_at_first.len())
        });
        let mut failed = 0;
        for (name, client) in self.clients.drain(..) {
            let tally = client.finish();
            println!("{name}: {tally}");
            assert!(tally.total() > 50, "{name}: only {} requests were made", tally.total());
            // The load balancer drops the first datagram of a port that it knows of an endpoint that has left, and their sender
            // can't notice. Ports are drawn from 28,000, and known for five minutes.
            let lost = if self.ground == Ground::Ipvs && name.contains("udp") { 1 + tally.total() / 50 } else { 0 };
            failed += tally.failed.saturating_sub(lost);
        }
        assert_eq!(failed, 0, "requests failed");
    }

    fn probe(&self, number: u8, family: Family) -> Outcome {
        let to = SocketAddr::new(cluster_ip(family, number), 80);
        self.world.pod(Pod::C).run(|| probe(None, to, Proto::Tcp, PATIENCE))
    }

    /// Does something that ends the watches of a resource, and waits until the daemon has noticed.
    pub(crate) fn interrupt(&self, kind: &str, interrupt: impl FnOnce(&ApiServer)) {
        let label = format!("kind=\"{kind}\"");
        let restarts = || self.daemon.metric("portolan_watch_restarts_total", &label);
        let before = restarts();
        interrupt(&self.server);
        eventually(&format!("the end of the {kind} watch is noticed"), || restarts() > before);
    }

    /// Waits until the daemon has come to the end of each list and is heard of by bookmarks. An open watch alone may still
    /// bring a list.
    fn wait_for_watches(&self, name: &str) {
        let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_secs_f64();
        for (resource, kind) in ALL.into_iter().zip(["Service", "EndpointSlice", "Node"]) {
            let label = format!("kind=\"{kind}\"");
            eventually(&format!("after {name:?} {kind} is watched"), || {
                self.server.bookmark(resource);
                self.daemon.metric("portolan_watch_last_heard_timestamp_seconds", &label) > begun
                    && self.server.open_watches(resource) == 1
            });
        }
    }
}

/// What is watched.
pub(crate) const ALL: [Resource; 3] = [Resource::Services, Resource::Slices, Resource::Nodes];

/// Whether a request begins a list: a streamed one, or the first page.
pub(crate) fn is_beginning(request: &Request) -> bool {
    request.is_streamed_list() || request.is_list() && request.param("continue").is_empty()
}

/// The lists of a kind that were begun.
pub(crate) fn lists(requests: &[Request], resource: Resource) -> usize {
    requests.iter().filter(|request| request.resource == resource && is_beginning(request)).count()
}

/// The longest time during which nothing was asked for a resource, among these requests.
pub(crate) fn longest_pause(requests: &[Request], resource: Resource) -> Duration {
    let times: Vec<Instant> = requests.iter().filter(|request| request.resource == resource).map(|r| r.at).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// The slices of a Service.
pub(crate) fn set_endpoints(server: &ApiServer, service: &str, pods: &[Pod]) {
    for (family, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let endpoints: Vec<Value> =
            pods.iter().map(|pod| endpoint(pod.address(family), pod.node(), Phase::Ready)).collect();
        server.apply(slice(service, name, &endpoints));
    }
}

fn doomed(round: u8) -> String {
    format!("doomed-{round}")
}

fn make_doomed(server: &ApiServer, round: u8) {
    server.apply(service(&doomed(round), &FAMILIES.map(|family| cluster_ip(family, DOOMED + round))));
    set_endpoints(server, &doomed(round), &[Pod::A]);
}

fn start_daemon(ground: Ground, world: &World, server: &ApiServer) -> Daemon {
    let daemon = Daemon::start(&world.node1, "node1", server, &ground.flags().each_ref().map(String::as_str));
    daemon.wait_for_sync();
    daemon
}

/// Many Services that nobody asks.
fn fill(server: &ApiServer, services: u32) {
    let address = |base: u32, number: u32| IpAddr::from(Ipv4Addr::from(base + number));
    let (vips, pods) = (u32::from(Ipv4Addr::new(10, 96, 0, 0)), u32::from(Ipv4Addr::new(10, 200, 0, 0)));
    for number in 0..services {
        let name = format!("other-{number}");
        let mut object = service(&name, &[address(vips, number)]);
        object["spec"]["ports"].as_array_mut().expect("ports").truncate(1);
        server.apply(object);
        let of_node = |pod: u32| format!("node{}", 2 + pod % 50);
        let endpoint = |pod: u32| endpoint(address(pods, pod), &of_node(pod), Phase::Ready);
        let endpoints: Vec<Value> = (number * ENDPOINTS..(number + 1) * ENDPOINTS).map(endpoint).collect();
        let mut object = slice(&name, "IPv4", &endpoints);
        object["ports"].as_array_mut().expect("ports").truncate(1);
        server.apply(object);
    }
}

/// All that the kernel holds for both families, in the order of the texts: the order of dispatch rules is of no consequence.
fn held(ground: Ground, world: &World) -> Vec<String> {
    let save = |tool: &str| world.node1.exec(&[&format!("{tool}-{}-save", ground.variant())]);
    let saved = ["iptables", "ip6tables"].map(save).concat();
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    let mut lines: Vec<String> = lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect();
    if ground == Ground::Ipvs {
        // The sizes of sets are the kernel's affair.
        let sets = world.node1.exec(&["ipset", "save"]);
        lines.extend(sets.lines().filter(|line| line.starts_with("add ")).map(str::to_owned));
        for server in world.node1.virtual_servers() {
            let reals =
                server.servers.iter().map(|real| format!("{} -> {} {}", server.address, real.address, real.weight));
            lines.extend(reals.chain([format!("{} {} {}", server.protocol, server.address, server.scheduler)]));
        }
    }
    lines.sort();
    lines
}
