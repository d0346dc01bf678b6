//! What the rules of IPVS mode do to packets, on a kernel with `ip_vs` (`cargo xtask lab`). Who may use which address, and whether
//! the endpoint sees the client's own address.

mod linux_support;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use linux_support::*;
use portolan::backend::{Backend, Fragment, RuleComments};
use portolan::compile::{LocalDetector, NodeContext, compile_service};
use portolan::ipvs::{IpvsBackend, IpvsSettings, Vips, render_text};
use portolan::kernel::ItemKey;
use portolan::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Service, ServiceEntry, ServiceName, ServicePort, SliceName,
    TrafficPolicy,
};
use portolan::net::{IpFamily, Protocol};
use portolan::netlink::genl;
use portolan::netlink::ipvs::{self, Destination, Ipvs, ServiceKey};
use portolan::netlink::socket::{Connection, GENERIC};
use rstest::rstest;

/// This node, with a pod, a pod of another node behind `far`, and a client outside.
const HOSTS: &str = "
mkdir -p /run/netns
for host in 'pod 10.244.1.1 10.244.1.10' 'far 10.244.2.1 10.244.2.10' 'out 192.168.0.2 192.168.0.9'; do
    set -- $host
    ip netns add $1
    ip link add v$1 type veth peer name eth0 netns $1
    ip addr add $2/24 dev v$1
    ip link set v$1 up
    ip -n $1 addr add $3/24 dev eth0
    ip -n $1 link set eth0 up
    ip -n $1 link set lo up
    ip -n $1 route add default via $2
done
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv4/vs/conntrack
ip link add kube-ipvs0 type dummy
";

/// Tells each client its address.
const SERVER: &str = "
import socket, sys
server = socket.create_server((sys.argv[1], 8080))
while True:
    client, peer = server.accept()
    client.sendall(peer[0].encode())
    client.close()
";

const POD: &str = "10.244.1.10";
const FAR: &str = "10.244.2.10";
const NODE: &str = "192.168.0.2";
const HERE: &str = "node-1";

/// A Service on VIP 203.0.113.N, external IP 198.51.100.N, cluster IP 10.96.0.N, each port 80, and node port 30000 + N.
fn service(number: u8, change: impl FnOnce(&mut Service), endpoint: &str) -> (ServiceName, ServiceEntry) {
    let name = ServiceName::new("ns", format!("svc{number}"));
    let port = |port: u16| std::num::NonZeroU16::new(port).unwrap();
    let mut service = Service {
        cluster_ip_v4: Some([10, 96, 0, number].into()),
        external_ips: [[198, 51, 100, number].into()].into(),
        load_balancer_vips: [[203, 0, 113, number].into()].into(),
        ports: [ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: port(80),
            node_port: Some(port(30000 + u16::from(number))),
        }]
        .into(),
        ..Service::default()
    };
    change(&mut service);
    let node = if endpoint == FAR { "node-2" } else { HERE };
    let slice = EndpointSlice {
        service: name.clone(),
        family: IpFamily::V4,
        ports: [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: port(8080) }].into(),
        endpoints: [Endpoint {
            address: endpoint.parse().unwrap(),
            conditions: Conditions::READY,
            node: Some(node.into()),
            hints: None,
        }]
        .into(),
        triggered_at: None,
    };
    let slices = [(SliceName::new("ns", format!("svc{number}-1")), slice)];
    (name, ServiceEntry::new(Some(service), slices))
}

fn local(service: &mut Service) {
    service.external_traffic_policy = TrafficPolicy::Local;
}

fn services() -> Vec<(ServiceName, ServiceEntry)> {
    vec![
        service(1, |_| {}, FAR),
        service(2, local, FAR),
        service(3, local, POD),
        service(4, |service| service.load_balancer_source_ranges = ["192.168.0.9/32".parse().unwrap()].into(), NODE),
    ]
}

/// Everything that the backend wants, with the tools that the text for people names; virtual servers by netlink.
fn load(backend: &IpvsBackend) {
    let mut node = NodeContext { node_name: HERE.into(), ..NodeContext::default() };
    node.families.v6 = false;
    node.node_ips.v4 = Some(NODE.parse().unwrap());
    node.node_addresses.v4 = vec!["10.244.1.1".parse().unwrap(), "10.244.2.1".parse().unwrap(), NODE.parse().unwrap()];
    node.local_detector.v4 = Some(LocalDetector::SourceCidr("10.244.0.0/16".parse().unwrap()));
    let mut out = Fragment::default();
    for (name, entry) in services() {
        for plan in compile_service(&name, &entry, &node) {
            backend.lower(&plan, &node, RuleComments::Keep, &mut out);
        }
    }
    let text = render_text(IpFamily::V4, [&backend.base(&node), &out]);
    let part = |heading: &str| -> String {
        let lines = text.lines().skip_while(|line| !line.ends_with(heading)).skip(1);
        lines.take_while(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    };
    feed("ipset", &["restore"], &part("ipset restore"));
    feed("iptables-legacy-restore", &["--noflush"], &part("iptables-restore --noflush"));
    let mut genl = Connection::open(GENERIC, Duration::from_secs(30)).unwrap();
    let mut family = None;
    genl.request(&genl::get_family(ipvs::FAMILY), |message| {
        family = genl::decode_family(message)?;
        Ok(())
    })
    .unwrap();
    let ipvs = Ipvs::new(&family.unwrap());
    let key = |key: &portolan::kernel::VirtualKey| ServiceKey::address(6, SocketAddr::new(key.address, key.port));
    for (item, _) in &out.items {
        let request = match item {
            ItemKey::VirtualServer(server) => ipvs.new_service(&ipvs::Service::new(key(server), "rr")),
            ItemKey::RealServer(real) => {
                let to = Destination::new(SocketAddr::new(real.address, real.port), 1);
                ipvs.new_destination(&key(&real.server), &to)
            }
            _ => continue,
        };
        assert_eq!(genl.request(&request, |_| Ok(())), Ok(()), "{item}");
    }
    shell("ip link set kube-ipvs0 up");
    shell(&part("addresses"));
}

fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}: {input}");
}

/// What the endpoint saw as the client, or that nothing came back.
fn probe(from: &str, address: &str, port: u16) -> String {
    let connect = format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port} && cat <&3' 2>&1 || echo \" code $?\"");
    let enter = if from == "node" { String::new() } else { format!("ip netns exec {from} ") };
    let said = shell(&format!("{enter}{connect}"));
    let said = said.trim();
    match said {
        _ if said.contains("refused") => "refused".to_owned(),
        _ if said.contains("code 124") => "nothing".to_owned(),
        said => said.to_owned(),
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let ready = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        condition()
    });
    assert!(ready, "waited in vain for {what}");
}

fn has_ip_vs() -> bool {
    let mut genl = Connection::open(GENERIC, Duration::from_secs(30)).unwrap();
    // A kernel with modules loads it when it is asked for the family.
    let _ = genl.request(&genl::get_family(ipvs::FAMILY), |_| Ok(()));
    let found = Path::new("/proc/net/ip_vs").exists();
    assert!(found || std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
    found
}

const OUT: &str = "192.168.0.9";

#[rstest]
#[case::addresses(Vips::Addresses)]
#[case::routes(Vips::Routes { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()] })]
fn each_client_reaches_what_it_should(#[case] vips: Vips) {
    if !has_ip_vs() {
        println!("not run: this kernel has no ip_vs; use `cargo xtask lab`");
        return;
    }
    in_namespace(|| {
        shell(HOSTS);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), SERVER).unwrap();
        let mut servers: Vec<_> = [("pod", POD), ("far", FAR), ("", NODE)]
            .map(|(host, address)| {
                let enter: &[&str] = if host.is_empty() { &[] } else { &["ip", "netns", "exec", host] };
                let words = [enter, &["python3", file.path().to_str().unwrap(), address]].concat();
                Command::new(words[0]).args(&words[1..]).spawn().unwrap()
            })
            .into();
        load(&IpvsBackend { settings: IpvsSettings { vips, ..IpvsSettings::default() } });
        for (from, address) in [("node", POD), ("node", FAR), ("out", NODE)] {
            wait_for(&format!("the server at {address}"), || probe(from, address, 8080) != "refused");
        }
        let mut wrong = Vec::new();
        for (from, address, port, expected) in EXPECTED {
            let found = probe(from, address, *port);
            if found != *expected {
                wrong.push(format!("{from} -> {address}:{port}: {found}, not {expected}"));
            }
        }
        for server in &mut servers {
            server.kill().unwrap();
            server.wait().unwrap();
        }
        shell("for host in pod far out; do ip netns del $host; done");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// From, to, and the client that the endpoint sees.
const EXPECTED: &[(&str, &str, u16, &str)] = &[
    ("pod", "10.96.0.1", 80, POD),
    ("node", "10.96.0.1", 80, "10.244.2.1"),
    ("out", "10.96.0.1", 80, "10.244.2.1"),
    ("pod", "10.96.0.3", 80, "10.244.1.1"),
    ("out", "203.0.113.1", 80, "10.244.2.1"),
    ("out", "198.51.100.1", 80, "10.244.2.1"),
    ("out", NODE, 30001, "10.244.2.1"),
    ("node", NODE, 30001, "10.244.2.1"),
    // Policy Local, endpoint on another node: for pods and the node itself only.
    ("pod", "203.0.113.2", 80, POD),
    ("node", "203.0.113.2", 80, "10.244.2.1"),
    ("node", "198.51.100.2", 80, "10.244.2.1"),
    ("node", NODE, 30002, "10.244.2.1"),
    ("pod", NODE, 30002, POD),
    ("out", "203.0.113.2", 80, "nothing"),
    ("out", "198.51.100.2", 80, "nothing"),
    ("out", NODE, 30002, "nothing"),
    ("out", "10.96.0.2", 80, "10.244.2.1"),
    // Policy Local, endpoint on this node.
    ("out", "203.0.113.3", 80, OUT),
    ("out", "198.51.100.3", 80, OUT),
    ("out", NODE, 30003, OUT),
    ("node", "203.0.113.3", 80, "10.244.1.1"),
    ("node", "198.51.100.3", 80, "10.244.1.1"),
    ("node", NODE, 30003, "10.244.1.1"),
    // A source range that admits one client, and an endpoint in the host network, which sees the client's own address.
    ("out", "203.0.113.4", 80, OUT),
    ("node", "203.0.113.4", 80, "nothing"),
    ("pod", "203.0.113.4", 80, "nothing"),
    // Ports without a Service.
    ("out", "10.96.0.1", 8080, "refused"),
    ("out", "203.0.113.4", 8080, "refused"),
    ("pod", "203.0.113.1", 30001, "refused"),
];
