//! What the kernel needs and how it is set up, and that connections get through.

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use ErrorKind::Unsupported;
use portolan::kernel::{ErrorKind, ItemDump, ItemKey, ItemState, Kernel, RealKey};
use portolan::linux::ipvs::{self, Needs, Preparation};
use portolan::linux::{Variant, sysctl};
use portolan::net::{IpFamily, PerFamily};
use portolan::netlink::ipvs::{Service, ServiceKey, Timeouts};

use crate::linux_support::shell;
use crate::world::*;

#[test]
fn requirements_are_checked_without_a_trace() {
    in_lab(|kernel| {
        for scheduler in ["rr", "mh", "wlc"] {
            kernel.ipvs_requirements(&needs(scheduler)).unwrap();
        }
        for families in [PerFamily { v4: true, v6: false }, PerFamily { v4: false, v6: true }] {
            kernel.ipvs_requirements(&Needs { families, ..needs("rr") }).unwrap();
        }
        for family in IpFamily::ALL {
            assert_eq!(dump(kernel, family), ItemDump::default());
        }
        let error = kernel.ipvs_requirements(&needs("nosuch")).unwrap_err();
        assert_eq!(error.kind, Unsupported);
        assert_eq!(error.message.matches("load the module ip_vs_nosuch").count(), 1, "{error}");
        // Somebody's virtual server at the address of the trial stays.
        let (mut genl, ipvs) = balancer();
        let theirs = Service::new(ServiceKey::address(6, "198.51.100.0:20000".parse().unwrap()), "lc");
        genl.request(&ipvs.new_service(&theirs), |_| Ok(())).unwrap();
        kernel.ipvs_requirements(&needs("rr")).unwrap();
        let found = dump(kernel, IpFamily::V4).foreign;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, scheduled("lc", 0, 0));
    });
}

#[test]
fn a_kernel_without_ipvs_says_what_is_missing() {
    if Path::new("/proc/net/ip_vs").exists() || std::env::var_os("PORTOLAN_LAB").is_some() {
        return;
    }
    natively(|kernel| {
        let error = kernel.items(IpFamily::V4, &SERVING).unwrap_err();
        assert_eq!(error.kind, Unsupported);
        assert!(error.message.contains("load the module ip_vs"), "{error}");
        assert_eq!(kinds(kernel, &[add(virtual_server(IpFamily::V4, 1), plain())]), [Some(Unsupported)]);
        let error = kernel.ipvs_requirements(&needs("rr")).unwrap_err();
        assert_eq!(error.kind, Unsupported);
        println!("{error}");
        assert_eq!(kernel.prepare_ipvs(&Preparation::default()).unwrap_err().kind, Unsupported);
    });
}

#[test]
fn the_kernel_is_set_up() {
    in_lab(|kernel| {
        let read = |name: &str| sysctl::read(name).unwrap();
        let vs = |name: &str| read(&format!("net/ipv4/vs/{name}"));
        let wanted = Preparation {
            strict_arp: true,
            tcp_timeout: Duration::from_secs(1000),
            tcp_fin_timeout: Duration::ZERO,
            udp_timeout: Duration::from_millis(77_500),
            run_estimation: Some(false),
        };
        // As an older kube-proxy left it.
        sysctl::ensure("net/ipv4/vs/conn_reuse_mode", "0").unwrap();
        assert_eq!(kernel.prepare_ipvs(&Preparation::default()), Ok(vec![]));
        assert_eq!(read("net/ipv4/conf/all/arp_ignore"), "0");
        assert_eq!(vs("run_estimation"), "1");
        assert_eq!(kernel.prepare_ipvs(&wanted), Ok(vec![]));
        for (name, value) in [
            ("conntrack", "1"),
            ("conn_reuse_mode", "1"),
            ("expire_nodest_conn", "1"),
            ("expire_quiescent_template", "1"),
            ("run_estimation", "0"),
        ] {
            assert_eq!(vs(name), value, "{name}");
        }
        for (name, value) in [("ip_forward", "1"), ("conf/all/arp_ignore", "1"), ("conf/all/arp_announce", "2")] {
            assert_eq!(read(&format!("net/ipv4/{name}")), value, "{name}");
        }
        let (mut genl, ipvs) = balancer();
        let mut found = None;
        genl.request(&ipvs.get_timeouts(), |message| {
            found = ipvs.decode_timeouts(message)?.or(found);
            Ok(())
        })
        .unwrap();
        assert_eq!(found, Some(Timeouts { tcp: 1000, tcp_fin: 120, udp: 77 }));
    });
}

/// Connects to a virtual server in a namespace that holds everything, and returns the source that the real server sees.
fn source_seen(family: IpFamily) -> IpAddr {
    let node = pick(family, "192.0.2.1", "2001:db8::1");
    let listener = TcpListener::bind((ip(node), 8080)).unwrap();
    // The kernel makes the local route of an IPv6 address a moment after the address.
    let start = Instant::now();
    let client = loop {
        match TcpStream::connect_timeout(&(vip(family, 1), 80).into(), Duration::from_secs(5)) {
            Ok(client) => break client,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(5), "{error}"),
        }
    };
    let (_connection, peer) = listener.accept().unwrap();
    drop(client);
    peer.ip()
}

#[test]
fn a_local_route_makes_virtual_servers_work_without_a_link() {
    in_lab(|kernel| {
        shell("ip addr add 192.0.2.1/32 dev lo; ip -6 addr add 2001:db8::1/128 dev lo nodad");
        for family in IpFamily::ALL {
            let node = ip(pick(family, "192.0.2.1", "2001:db8::1"));
            let net = route(pick(family, "10.96.0.0/12", "fd00:96::/64"));
            let real = RealKey { server: server(family, 1), address: node, port: 8080 };
            done(
                kernel,
                &[
                    add(virtual_server(family, 1), plain()),
                    add(ItemKey::RealServer(real), ItemState::Weight(1)),
                    add(net, ItemState::Source(Some(node))),
                ],
            );
            assert_eq!(source_seen(family), node, "the node's own address is the source");
            let found = kernel.connections(&server(family, 1)).unwrap();
            assert_eq!(found.len(), 1);
            assert!(found[0].1.active + found[0].1.inactive > 0, "{found:?}");
            assert!(dump(kernel, family).ours.iter().all(|(key, _)| *key != ItemKey::Link));
            done(kernel, &[delete(net)]);
        }
    });
}

#[test]
fn a_deprecated_address_makes_virtual_servers_work_and_is_no_source() {
    in_lab(|kernel| {
        shell("ip addr add 192.0.2.1/32 dev lo; ip -6 addr add 2001:db8::1/128 dev lo nodad");
        let family = IpFamily::V6;
        let node = ip("2001:db8::1");
        let real = RealKey { server: server(family, 1), address: node, port: 8080 };
        done(
            kernel,
            &[
                add(virtual_server(family, 1), plain()),
                add(ItemKey::RealServer(real), ItemState::Weight(1)),
                add(address(family, 1), bound(true)),
            ],
        );
        // To itself, an address is the best source by the first rule of RFC 6724, deprecated or not.
        assert_eq!(source_seen(family), vip(family, 1));
        // To others it is not, though it has more bits in common.
        shell("ip link add d1 type dummy; ip link set d1 up; ip -6 route add fd00:96::/64 dev d1");
        let source = || {
            let socket = UdpSocket::bind("[::]:0").unwrap();
            socket.connect((vip(family, 2), 53)).unwrap();
            socket.local_addr().unwrap().ip()
        };
        assert_eq!(source(), node);
        done(kernel, &[change(address(family, 1), bound(false))]);
        assert_eq!(source(), vip(family, 1), "this is why it is deprecated");
    });
}

/// Which matches rules can have is asked of both kinds of tables, by the way in which iptables itself asks.
#[test]
fn the_kernel_is_asked_for_matches() {
    for family in IpFamily::ALL {
        for (name, expected) in [("set", true), ("nosuch", false)] {
            for tables in [Variant::Legacy, Variant::Nft] {
                let found = ipvs::has_match(tables, family, (name, 1), Duration::from_secs(10));
                println!("{family} {name} {tables:?}: {found:?}");
                assert!(found.is_none_or(|found| found == expected), "{family} {name} {tables:?}");
            }
        }
    }
}
