//! Conntrack, addresses, counters and sysctls of the real kernel, in network namespaces.

mod linux_support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use linux_support::*;
use portolan::kernel::{ErrorKind, Flow, FlowEnd, FlowQuery, Kernel, Op};
use portolan::linux::{LinuxKernel, Options, Variant, sysctl};
use portolan::net::{IpFamily, PerFamily, Protocol};
use portolan::netlink::ctnetlink;
use portolan::netlink::socket::{Connection, NETFILTER};
use rstest::rstest;

/// A kernel of which only netlink is used.
fn netlink_only() -> LinuxKernel {
    let families = PerFamily { v4: false, v6: false };
    LinuxKernel::new(Options { variant: Some(Variant::Nft), families, ..Options::default() }).unwrap()
}

fn query(family: IpFamily, destination: Option<&str>, port: Option<u16>) -> FlowQuery {
    let destination = destination.map(|address| address.parse().unwrap());
    FlowQuery { family, protocol: Protocol::Udp, end: FlowEnd::Destination, address: destination, port }
}

/// Tracks connections in this namespace, and makes flows: from port 4000 to three addresses and ports.
fn track(family: IpFamily) -> Vec<(SocketAddr, UdpSocket)> {
    let (tool, addresses, suffix) = match family {
        IpFamily::V4 => ("iptables-nft", ["10.9.0.1", "10.9.0.2"], "/32"),
        IpFamily::V6 => ("ip6tables-nft", ["fd09::1", "fd09::2"], "/128 nodad"),
    };
    shell(&format!("{tool} -w 30 -A OUTPUT -m conntrack --ctstate INVALID"));
    for address in addresses {
        shell(&format!("ip addr add {address}{suffix} dev lo"));
    }
    let mut flows = Vec::new();
    for (address, port) in [(addresses[0], 53), (addresses[0], 54), (addresses[1], 53)] {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        let socket = UdpSocket::bind((addresses[0], 0)).unwrap();
        // A new address may take a moment until packets get through, and one that does not leaves no flow.
        let receiver = UdpSocket::bind(to).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let arrived = (0..100).any(|_| {
            socket.send_to(b"x", to).unwrap();
            receiver.recv(&mut [0]).is_ok()
        });
        assert!(arrived);
        flows.push((to, socket));
    }
    flows
}

fn destinations(flows: &[Flow]) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = flows.iter().map(|flow| flow.original_destination).collect();
    all.sort();
    all
}

#[rstest]
fn flows_are_read_by_destination_and_port(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    in_namespace(|| {
        let made = track(family);
        let to: Vec<SocketAddr> = made.iter().map(|(to, _)| *to).collect();
        let mut kernel = netlink_only();
        let all = kernel.flows(&query(family, None, None)).unwrap();
        assert_eq!(destinations(&all), to);
        let flow = all.iter().find(|flow| flow.original_destination == to[0]).unwrap();
        assert_eq!(flow.original_source, made[0].1.local_addr().unwrap());
        assert_eq!((flow.reply_source, flow.reply_destination), (to[0], flow.original_source));
        assert_eq!((flow.protocol, flow.zone), (Protocol::Udp, 0));

        let port = kernel.flows(&query(family, None, Some(53))).unwrap();
        assert_eq!(destinations(&port), [to[0], to[2]]);
        let address = to[0].ip().to_string();
        let both = kernel.flows(&query(family, Some(&address), Some(53))).unwrap();
        assert_eq!(destinations(&both), [to[0]]);
        let host = kernel.flows(&query(family, Some(&address), None)).unwrap();
        assert_eq!(destinations(&host), [to[0], to[1]]);
        let tcp = FlowQuery { protocol: Protocol::Tcp, ..query(family, None, None) };
        assert_eq!(kernel.flows(&tcp).unwrap(), []);
        let other = if family == IpFamily::V4 { IpFamily::V6 } else { IpFamily::V4 };
        assert_eq!(kernel.flows(&query(other, None, None)).unwrap(), []);
    });
}

#[rstest]
fn the_kernel_itself_filters_what_it_can(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    in_namespace(|| {
        let to: Vec<SocketAddr> = track(family).iter().map(|(to, _)| *to).collect();
        let mut connection = Connection::open(NETFILTER, Duration::from_secs(5)).unwrap();
        let mut dump = |destination: Option<&str>, port| {
            let request = ctnetlink::dump_filtered(&query(family, destination, port));
            let flows = connection.dump(&request, Vec::new, |flows, message| {
                flows.extend(ctnetlink::decode_flow(message)?);
                Ok(())
            });
            destinations(&flows.unwrap())
        };
        assert_eq!(dump(None, Some(54)), [to[1]]);
        let address = to[0].ip().to_string();
        match family {
            IpFamily::V4 => assert_eq!(dump(Some(&address), Some(53)), [to[0]]),
            // Not asked for its address, see there.
            IpFamily::V6 => assert_eq!(dump(Some(&address), Some(53)), [to[0], to[2]]),
        }
    });
}

#[rstest]
fn only_the_named_flows_are_deleted(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    in_namespace(|| {
        let made = track(family);
        let mut kernel = netlink_only();
        let flows = kernel.flows(&query(family, None, Some(53))).unwrap();
        let ops: Vec<Op> = flows.iter().cloned().map(|flow| Op::DeleteFlow(Box::new(flow))).collect();
        assert!(kernel.apply(&ops).iter().all(Result::is_ok));
        assert_eq!(destinations(&kernel.flows(&query(family, None, None)).unwrap()), [made[1].0]);
        // Each by itself: those that are gone do not keep the last from being deleted.
        let last = kernel.flows(&query(family, None, None)).unwrap().remove(0);
        let ops = [ops[0].clone(), Op::DeleteFlow(Box::new(last)), ops[1].clone()];
        let kinds: Vec<_> = kernel.apply(&ops).into_iter().map(|result| result.err().map(|error| error.kind)).collect();
        assert_eq!(kinds, [Some(ErrorKind::NotFound), None, Some(ErrorKind::NotFound)]);
        assert_eq!(kernel.flows(&query(family, None, None)).unwrap(), []);
    });
}

#[test]
fn translated_flows_of_every_protocol_are_read_and_deleted() {
    in_namespace(|| {
        let _sockets = track(IpFamily::V4);
        for protocol in ["tcp --state ESTABLISHED", "sctp --state ESTABLISHED --orig-vtag 1 --reply-vtag 2"] {
            shell(&format!(
                "conntrack -I -p {protocol} -t 100 -s 10.0.0.9 -d 10.96.0.1 --sport 1234 --dport 443 \
                 --reply-src 10.180.0.1 --reply-dst 10.0.0.9 --reply-port-src 6443 --reply-port-dst 1234"
            ));
        }
        let mut kernel = netlink_only();
        for protocol in [Protocol::Tcp, Protocol::Sctp] {
            let wanted = FlowQuery { protocol, ..query(IpFamily::V4, Some("10.96.0.1"), Some(443)) };
            let flows = kernel.flows(&wanted).unwrap();
            let flow = Flow {
                protocol,
                original_source: "10.0.0.9:1234".parse().unwrap(),
                original_destination: "10.96.0.1:443".parse().unwrap(),
                reply_source: "10.180.0.1:6443".parse().unwrap(),
                reply_destination: "10.0.0.9:1234".parse().unwrap(),
                zone: 0,
            };
            assert_eq!(flows, std::slice::from_ref(&flow));
            assert!(kernel.apply(&[Op::DeleteFlow(Box::new(flow))])[0].is_ok());
            assert_eq!(kernel.flows(&wanted).unwrap(), []);
        }
        assert_eq!(kernel.flows(&query(IpFamily::V4, None, None)).unwrap().len(), 3);
    });
}

#[test]
fn a_thousand_flows_are_deleted_in_batches() {
    in_namespace(|| {
        let (to, socket) = track(IpFamily::V4).remove(0);
        for port in 10_000..11_000 {
            socket.send_to(b"x", SocketAddr::new(to.ip(), port)).unwrap();
        }
        let mut kernel = netlink_only();
        let flows = kernel.flows(&query(IpFamily::V4, None, None)).unwrap();
        assert_eq!(flows.len(), 1003);
        let ops: Vec<Op> = flows.into_iter().map(|flow| Op::DeleteFlow(Box::new(flow))).collect();
        let results = kernel.apply(&ops);
        assert_eq!(results.len(), 1003);
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(kernel.flows(&query(IpFamily::V4, None, None)).unwrap(), []);
    });
}

#[test]
fn addresses_of_all_interfaces_are_listed_once() {
    in_namespace(|| {
        shell("ip link add v0 type veth peer name v1; ip addr add 10.9.0.7/24 dev v0; ip addr add 10.9.0.7/24 dev v1");
        shell("ip addr add 10.0.0.1 peer 10.0.0.2 dev v1; ip addr add fd09::7/64 dev v0 nodad");
        let mut kernel = netlink_only();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(kernel.addresses(IpFamily::V4).unwrap(), list(&["10.0.0.1", "10.9.0.7", "127.0.0.1"]));
        assert_eq!(kernel.addresses(IpFamily::V6).unwrap(), list(&["::1", "fd09::7"]));
    });
}

#[test]
fn a_thousand_addresses_arrive_whole() {
    in_namespace(|| {
        let lines: String =
            (0..1000).map(|n| format!("addr add 10.1.{}.{}/32 dev lo\n", n / 250, n % 250 + 1)).collect();
        shell(&format!("ip -batch - <<'X'\n{lines}X"));
        assert_eq!(netlink_only().addresses(IpFamily::V4).unwrap().len(), 1001);
    });
}

#[test]
fn changes_of_addresses_are_noticed() {
    in_namespace(|| {
        let (sender, receiver) = mpsc::channel::<PerFamily<Vec<IpAddr>>>();
        let watch = netlink_only().watch_addresses(move |addresses| sender.send(addresses).unwrap()).unwrap();
        let wait = |holds: &dyn Fn(&PerFamily<Vec<IpAddr>>) -> bool| {
            while let Ok(addresses) = receiver.recv_timeout(Duration::from_secs(10)) {
                if holds(&addresses) {
                    return;
                }
            }
            panic!("no such change was reported");
        };
        let [v4, v6]: [IpAddr; 2] = ["10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap()];
        wait(&|now| now.v4.len() == 1 && now.v6.len() == 1);
        shell("ip addr add 10.9.0.1/32 dev lo");
        wait(&|now| now.v4.contains(&v4));
        shell("ip addr add fd09::1/128 dev lo nodad");
        wait(&|now| now.v6.contains(&v6));
        shell("ip addr del 10.9.0.1/32 dev lo");
        wait(&|now| !now.v4.contains(&v4) && now.v6.contains(&v6));
        drop(watch);
        // The thread is gone, and with it its sender.
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap_err(), mpsc::RecvTimeoutError::Disconnected);
    });
}

#[test]
fn counters_are_made_once_and_count() {
    in_namespace(|| {
        let kernel = netlink_only();
        assert!(kernel.probe(PerFamily { v4: true, v6: false }).packet_counters);
        assert_eq!(kernel.counter("portolan_test").unwrap_err().kind, ErrorKind::NotFound);
        kernel.ensure_counter("portolan_test").unwrap();
        kernel.ensure_counter("portolan_test").unwrap();
        assert_eq!(kernel.counter("portolan_test").unwrap(), 0);
        shell("iptables-nft -w 30 -A OUTPUT -p udp --dport 9 -m nfacct --nfacct-name portolan_test");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            // The answer is a refusal, which a later call may report.
            let _ = socket.send_to(b"x", "127.0.0.1:9");
        }
        assert_eq!(kernel.counter("portolan_test").unwrap(), 3);
        kernel.ensure_counter("portolan_test").unwrap();
        assert_eq!(kernel.counter("portolan_test").unwrap(), 3, "an existing counter is left alone");
        assert_eq!(kernel.ensure_counter(&"x".repeat(32)).unwrap_err().kind, ErrorKind::Rejected);
    });
}

#[test]
fn sysctls_of_the_threads_namespace_are_written_only_when_they_differ() {
    in_namespace(|| {
        let name = "net/ipv4/conf/all/route_localnet";
        assert_eq!(sysctl::read_number(name).unwrap(), 0);
        assert!(sysctl::ensure(name, "1").unwrap());
        assert!(!sysctl::ensure(name, "1").unwrap());
        assert_eq!(sysctl::read_number("net.ipv4.conf.all.route_localnet").unwrap(), 1);
        let error = sysctl::ensure(name, "nonsense").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(sysctl::read("net/no/such").unwrap_err().kind, ErrorKind::NotFound);
        in_namespace(|| assert_eq!(sysctl::read_number(name).unwrap(), 0));
    });
}

#[test]
fn a_thread_without_rights_is_denied() {
    in_namespace(|| {
        let _sockets = track(IpFamily::V4);
        let flow = netlink_only().flows(&query(IpFamily::V4, None, None)).unwrap().remove(0);
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none).unwrap();
        let mut kernel = netlink_only();
        let results = kernel.apply(&[Op::DeleteFlow(Box::new(flow))]);
        assert_eq!(results[0].as_ref().unwrap_err().kind, ErrorKind::Denied);
        assert_eq!(kernel.ensure_counter("x").unwrap_err().kind, ErrorKind::Denied);
    });
}
