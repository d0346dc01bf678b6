//! Sets, links, addresses and routes of the real kernel, in network namespaces, compared with what the tools say.

mod linux_support;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use linux_support::*;
use portolan::kernel::ErrorKind;
use portolan::net::IpFamily;
use portolan::netlink::ipset::error::{Reason, Refusal};
use portolan::netlink::ipset::{self, Element, Listed, Listing, Set, SetType, Versions};
use portolan::netlink::link::{self, Link};
use portolan::netlink::message::Request;
use portolan::netlink::route::{self, Route};
use portolan::netlink::rtnetlink::{self, InterfaceAddress};
use portolan::netlink::socket::{Connection, NETFILTER, ROUTE};
use portolan::netlink::{NetlinkError, errno};
use rstest::rstest;

fn open(protocol: isize) -> Connection {
    Connection::open(protocol, Duration::from_secs(10)).unwrap()
}

fn run(connection: &mut Connection, request: &Request) -> Result<(), NetlinkError> {
    connection.request(request, |_| Ok(()))
}

fn refusal(result: Result<(), NetlinkError>) -> Refusal {
    Refusal::of(&result.unwrap_err()).unwrap()
}

fn read(connection: &mut Connection, request: &Request) -> Vec<Listed> {
    connection.dump(request, Listing::default, Listing::absorb).unwrap().sets
}

fn elements(connection: &mut Connection, name: &str) -> Vec<Element> {
    let mut elements = read(connection, &ipset::list(name)).remove(0).elements;
    elements.sort();
    elements
}

/// The elements as the tool writes them, sorted.
fn saved(name: &str) -> Vec<String> {
    let text = shell(&format!("ipset save {name}"));
    let prefix = format!("add {name} ");
    let mut lines: Vec<String> = text.lines().filter_map(|line| Some(line.strip_prefix(&prefix)?.to_owned())).collect();
    lines.sort();
    lines
}

/// An element of each type of set, different for each `n`.
fn element(kind: &SetType, family: IpFamily, n: u16) -> Element {
    let [high, low] = n.to_be_bytes();
    let ip: IpAddr = match family {
        IpFamily::V4 => [10, 1, high, low].into(),
        IpFamily::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, n + 1].into(),
    };
    let net = match family {
        IpFamily::V4 => format!("10.{}.0.0/16", n % 200),
        IpFamily::V6 => format!("fd00:{:x}::/32", n % 200),
    };
    let (protocol, port) = ([6, 17, 132][usize::from(n) % 3], n + 1);
    match kind {
        SetType::HashIp => Element::Ip(ip),
        SetType::HashIpPort => Element::IpPort { ip, protocol, port },
        SetType::HashIpPortIp => Element::IpPortIp { ip, protocol, port, second: ip },
        SetType::HashIpPortNet => {
            Element::IpPortNet { ip, protocol, port, net: net.parse().unwrap(), exception: n.is_multiple_of(7) }
        }
        _ => Element::Port(port),
    }
}

fn set(name: &str, kind: &SetType, family: IpFamily) -> Set {
    match kind {
        SetType::BitmapPort => Set::ports(name),
        kind => Set::hash(name, kind.clone(), family, 65536),
    }
}

#[rstest]
fn sets_of_every_type_hold_what_was_put_in(
    #[values(0, 1, 2, 3, 4)] kind: usize,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    in_namespace(|| {
        let kind = &SetType::USED[kind];
        let mut netfilter = open(NETFILTER);
        let mut versions = None;
        let mut query = |request: &Request| {
            netfilter.request(request, |message| {
                versions = ipset::decode_versions(message)?;
                Ok(())
            })
        };
        let made = set("KUBE-TEST", kind, family);
        query(&ipset::query_type(kind, made.family)).unwrap();
        let Versions { lowest, highest } = versions.unwrap();
        assert!((lowest..=highest).contains(&made.revision), "{lowest} {highest}");
        for revision in [made.revision, highest] {
            let made = Set { revision, ..made.clone() };
            run(&mut netfilter, &ipset::create(&made, true)).unwrap();
            let few: Vec<Element> = (0..100).map(|n| element(kind, family, n)).collect();
            let results = netfilter.batch(&ipset::add(&made.name, &few, true));
            assert_eq!(results, [Ok(())]);
            let mut sorted = few.clone();
            sorted.sort();
            assert_eq!(elements(&mut netfilter, &made.name), sorted);
            let mut texts: Vec<String> = few.iter().map(Element::to_string).collect();
            texts.sort();
            assert_eq!(saved(&made.name), texts);

            let listed = read(&mut netfilter, &ipset::list_header(&made.name)).remove(0);
            assert!(listed.set.is_like(&made), "{listed:?}");
            assert_eq!((listed.set.revision, listed.size, listed.references), (revision, Some(100), 0));
            assert!(listed.elements.is_empty());

            assert_eq!(run(&mut netfilter, &ipset::test(&made.name, &few[7])), Ok(()));
            assert_eq!(netfilter.batch(&ipset::delete(&made.name, &few[..60], true)), [Ok(())]);
            let gone = refusal(run(&mut netfilter, &ipset::test(&made.name, &few[7])));
            assert_eq!(gone, Refusal { reason: Reason::Missing, line: None });
            sorted.retain(|element| few[60..].contains(element));
            assert_eq!(elements(&mut netfilter, &made.name), sorted);
            run(&mut netfilter, &ipset::destroy(&made.name)).unwrap();
        }
        assert_eq!(shell("ipset list -n"), "");
    });
}

#[test]
fn the_kernel_speaks_our_protocol() {
    in_namespace(|| {
        let mut found = None;
        open(NETFILTER)
            .request(&ipset::query_protocol(), |message| {
                found = ipset::decode_versions(message)?;
                Ok(())
            })
            .unwrap();
        let versions = found.unwrap();
        assert!((versions.lowest..=versions.highest).contains(&6), "{versions:?}");
    });
}

#[test]
fn five_thousand_elements_take_few_messages() {
    in_namespace(|| {
        let mut netfilter = open(NETFILTER);
        run(&mut netfilter, &ipset::create(&set("big", &SetType::HashIpPortIp, IpFamily::V6), true)).unwrap();
        let all: Vec<Element> = (0..5000).map(|n| element(&SetType::HashIpPortIp, IpFamily::V6, n)).collect();
        let requests = ipset::add("big", &all, true);
        assert!(requests.len() < 10, "{}", requests.len());
        let start = Instant::now();
        assert!(netfilter.batch(&requests).iter().all(Result::is_ok));
        let added = start.elapsed();
        let found = elements(&mut netfilter, "big");
        println!("5,000 elements: added in {added:?}, then read in {:?}", start.elapsed() - added);
        let mut sorted = all.clone();
        sorted.sort();
        assert_eq!(found, sorted);
        assert_eq!(saved("big").len(), 5000);
        assert!(netfilter.batch(&ipset::delete("big", &all, true)).iter().all(Result::is_ok));
        assert_eq!(elements(&mut netfilter, "big"), []);
    });
}

#[test]
fn the_refused_element_is_named() {
    in_namespace(|| {
        let mut netfilter = open(NETFILTER);
        run(&mut netfilter, &ipset::create(&set("s", &SetType::HashIp, IpFamily::V4), true)).unwrap();
        let all: Vec<Element> = (0..5000).map(|n| element(&SetType::HashIp, IpFamily::V4, n)).collect();
        run(&mut netfilter, &ipset::add("s", &all[4000..4001], true)[0]).unwrap();
        let results = netfilter.batch(&ipset::add("s", &all, true));
        let refused: Vec<Refusal> = results.iter().filter_map(|result| Refusal::of(result.as_ref().err()?)).collect();
        assert_eq!(refused, [Refusal { reason: Reason::Exists, line: Some(4001) }]);
        assert_eq!(refused[0].to_kernel_error("x").kind, ErrorKind::Exists);
        // What stands before it stays. All of 5,000 without a name for the line that is there already.
        assert!(elements(&mut netfilter, "s").len() >= 4001);
        assert!(netfilter.batch(&ipset::add("s", &all, false)).iter().all(Result::is_ok));
        assert_eq!(elements(&mut netfilter, "s").len(), 5000);
        let missing = [all[0], all[1], Element::Ip("10.9.9.9".parse().unwrap()), all[2]];
        let results = netfilter.batch(&ipset::delete("s", &missing, true));
        assert_eq!(refusal(results[0].clone()), Refusal { reason: Reason::Missing, line: Some(3) });
        assert_eq!(elements(&mut netfilter, "s").len(), 4998);
        assert_eq!(netfilter.batch(&ipset::delete("s", &missing, false)), [Ok(())]);
    });
}

#[test]
fn refusals_say_what_is_wrong() {
    in_namespace(|| {
        let mut netfilter = open(NETFILTER);
        let ip = |n| element(&SetType::HashIp, IpFamily::V4, n);
        let small = Set { max_elements: Some(2), hash_size: Some(64), ..set("small", &SetType::HashIp, IpFamily::V4) };
        let ports = Set { ports: Some((100, 200)), ..Set::ports("ports") };
        for set in [
            &small,
            &ports,
            &set("pairs", &SetType::HashIpPort, IpFamily::V4),
            &set("nets", &SetType::HashIpPortNet, IpFamily::V4),
        ] {
            run(&mut netfilter, &ipset::create(set, true)).unwrap();
        }
        let mut adding = |set: &str, elements: &[Element]| {
            let refused = refusal(netfilter.batch(&ipset::add(set, elements, true)).remove(0));
            (refused.reason, refused.line, refused.to_kernel_error("x").kind)
        };
        assert_eq!(adding("small", &[ip(0), ip(1), ip(2)]), (Reason::Full, Some(3), ErrorKind::NoSpace));
        let range = adding("ports", &[Element::Port(100), Element::Port(201)]);
        assert_eq!(range, (Reason::OutOfRange, Some(2), ErrorKind::Rejected));
        assert_eq!(adding("pairs", &[ip(0)]), (Reason::Protocol, Some(1), ErrorKind::Rejected));
        let v6 = element(&SetType::HashIpPort, IpFamily::V6, 0);
        assert_eq!(adding("pairs", &[v6]).0, Reason::Protocol);
        let icmp = Element::IpPort { ip: "10.0.0.1".parse().unwrap(), protocol: 0, port: 1 };
        assert_eq!(adding("pairs", &[icmp]).0, Reason::InvalidProtocol);
        let everything = Element::IpPortNet {
            ip: "10.0.0.1".parse().unwrap(),
            protocol: 6,
            port: 1,
            net: "0.0.0.0/0".parse().unwrap(),
            exception: false,
        };
        assert_eq!(adding("nets", &[everything]).0, Reason::InvalidPrefix);
        assert_eq!(adding("nosuch", &[ip(0)]), (Reason::NoSuchSet, None, ErrorKind::NotFound));

        let mut refused = |request: &Request| refusal(run(&mut netfilter, request)).reason;
        assert_eq!(refused(&ipset::create(&small, true)), Reason::SetExists);
        let other = Set { max_elements: Some(3), ..small.clone() };
        assert_eq!(refused(&ipset::create(&other, false)), Reason::SetExists);
        assert_eq!(refused(&ipset::swap("small", "ports")), Reason::TypeMismatch);
        assert_eq!(refused(&ipset::swap("small", "nosuch")), Reason::NoSecondSet);
        assert_eq!(refused(&ipset::swap("nosuch", "small")), Reason::NoSuchSet);
        assert_eq!(refused(&ipset::destroy("nosuch")), Reason::NoSuchSet);
        let strange =
            Set { kind: SetType::Other("hash:nothing".to_owned()), ..set("x", &SetType::HashIp, IpFamily::V4) };
        assert_eq!(refused(&ipset::create(&strange, true)), Reason::UnknownType);
        assert_eq!(
            refused(&ipset::create(&Set { revision: 99, ..set("x", &SetType::HashIp, IpFamily::V4) }, true)),
            Reason::UnknownType
        );
        run(&mut netfilter, &ipset::create(&small, false)).unwrap();
        let missing = netfilter.dump(&ipset::list("nosuch"), Listing::default, Listing::absorb).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_set_that_a_rule_uses_is_busy_and_can_be_exchanged() {
    in_namespace(|| {
        let mut netfilter = open(NETFILTER);
        for name in ["used", "new"] {
            run(&mut netfilter, &ipset::create(&set(name, &SetType::HashIpPort, IpFamily::V4), true)).unwrap();
        }
        let [old, new] = [0, 1].map(|n| element(&SetType::HashIpPort, IpFamily::V4, n));
        assert_eq!(
            netfilter.batch(&[ipset::add("used", &[old], true), ipset::add("new", &[new], true)].concat()),
            [Ok(()), Ok(())]
        );
        // A kernel may have one variant only.
        let rule = "-w 30 -A INPUT -m set --match-set used dst,dst";
        shell(&format!("iptables-nft {rule} || iptables-legacy {rule}"));
        let headers = read(&mut netfilter, &ipset::list_headers());
        let references: Vec<_> = headers.iter().map(|one| (one.set.name.as_str(), one.references)).collect();
        assert_eq!(references, [("used", 1), ("new", 0)]);
        let refused = refusal(run(&mut netfilter, &ipset::destroy("used")));
        assert_eq!(refused, Refusal { reason: Reason::InUse, line: None });
        assert_eq!(refused.to_kernel_error("x").kind, ErrorKind::Busy);
        run(&mut netfilter, &ipset::swap("used", "new")).unwrap();
        assert_eq!(elements(&mut netfilter, "used"), [new]);
        assert_eq!(elements(&mut netfilter, "new"), [old]);
        run(&mut netfilter, &ipset::destroy("new")).unwrap();
        shell("iptables-nft -w 30 -F INPUT || iptables-legacy -w 30 -F INPUT");
        run(&mut netfilter, &ipset::destroy("used")).unwrap();
    });
}

#[test]
fn sets_of_others_are_listed_as_they_are() {
    in_namespace(|| {
        shell(
            "ipset create o1 hash:net counters timeout 60; ipset create o2 list:set; ipset create o3 bitmap:ip range 10.0.0.0/24",
        );
        shell("ipset create o4 hash:ip counters comment timeout 60; ipset add o4 10.0.0.1 comment hello");
        let mut netfilter = open(NETFILTER);
        let mut kinds: Vec<_> = read(&mut netfilter, &ipset::list_headers())
            .into_iter()
            .map(|one| (one.set.kind.name().to_owned(), one.set.timeout, one.set.flags & Set::COUNTERS))
            .collect();
        kinds.sort();
        let expected =
            [("bitmap:ip", None, 0), ("hash:ip", Some(60), 8), ("hash:net", Some(60), 8), ("list:set", None, 0)];
        assert_eq!(kinds, expected.map(|(kind, timeout, flags)| (kind.to_owned(), timeout, flags)));
        assert_eq!(elements(&mut netfilter, "o4"), [Element::Ip("10.0.0.1".parse().unwrap())]);
    });
}

// === Batches ===

#[test]
fn a_batch_reports_each_failure_in_its_place() {
    in_namespace(|| {
        let mut netfilter = open(NETFILTER);
        run(&mut netfilter, &ipset::create(&set("s", &SetType::HashIp, IpFamily::V4), true)).unwrap();
        let all: Vec<Element> = (0..10_000).map(|n| element(&SetType::HashIp, IpFamily::V4, n)).collect();
        let every_third: Vec<Element> = all.iter().copied().step_by(3).collect();
        assert!(netfilter.batch(&ipset::add("s", &every_third, true)).iter().all(Result::is_ok));
        let requests: Vec<Request> = all.iter().flat_map(|element| ipset::add("s", &[*element], true)).collect();
        let start = Instant::now();
        let results = netfilter.batch(&requests);
        println!("10,000 requests, a third of them refused: {:?}", start.elapsed());
        assert_eq!(results.len(), 10_000);
        for (at, result) in results.into_iter().enumerate() {
            match at % 3 {
                0 => assert_eq!(refusal(result).reason, Reason::Exists, "{at}"),
                _ => assert_eq!(result, Ok(()), "{at}"),
            }
        }
        assert_eq!(elements(&mut netfilter, "s").len(), 10_000);
    });
}

#[test]
fn small_queues_hold_the_answers_when_everything_is_refused() {
    in_namespace(|| {
        let mut netfilter = open(NETFILTER);
        let many: Vec<Element> = (0..1000).map(|n| element(&SetType::HashIp, IpFamily::V4, n)).collect();
        for size in [2048, 16 * 1024, 104 * 1024, 1024 * 1024] {
            rustix::net::sockopt::set_socket_recv_buffer_size(netfilter.descriptor(), size).unwrap();
            for (elements, count) in [(&many[..1], 3000), (&many, 20)] {
                let request = ipset::add("nosuch", elements, true).remove(0);
                for result in netfilter.batch(&vec![request.clone(); count]) {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound, "{size}");
                }
            }
        }
    });
}

#[test]
fn lost_answers_are_reported_as_lost_and_nothing_hangs() {
    in_namespace(|| {
        let mut rtnl = open(ROUTE);
        let requests: Vec<Request> = (0..500)
            .map(|n| {
                let [high, low] = u16::to_be_bytes(n);
                rtnetlink::add_address(&InterfaceAddress::host(1, [10, 1, high, low].into()))
            })
            .collect();
        // A queue that runs over with what somebody else does takes no answers either.
        rtnl.join(rtnetlink::GROUP_IPV4_ADDRESSES).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(rtnl.descriptor(), 16 * 1024).unwrap();
        assert!(open(ROUTE).batch(&requests[..400]).iter().all(Result::is_ok));
        let start = Instant::now();
        let results = rtnl.batch(&requests[400..405]);
        assert_eq!(results, vec![Err(NetlinkError::Overrun); 5], "a request that may have failed counts as done");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(NetlinkError::Overrun.kind(), ErrorKind::Transient);
        // They were carried out, which only a look at the state can tell; and the connection goes on.
        assert_eq!(addresses(&mut rtnl, IpFamily::V4, 1).len(), 1 + 405);
        assert_eq!(run(&mut rtnl, &requests[404]).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(rtnl.batch(&requests[405..406]), [Ok(())]);
        assert!(open(ROUTE).batch(&requests[406..480]).iter().all(Result::is_ok));
        assert_eq!(run(&mut rtnl, &requests[480]), Err(NetlinkError::Overrun));
        assert_eq!(run(&mut rtnl, &requests[481]), Ok(()));
        // Read while the queue runs over: the dump is repeated.
        assert!(open(ROUTE).batch(&requests[482..]).iter().all(Result::is_ok));
        assert_eq!(addresses(&mut rtnl, IpFamily::V4, 1).len(), 1 + 500);
    });
}

// === Links, addresses, routes ===

fn find(connection: &mut Connection, name: &str) -> Option<Link> {
    let mut found = None;
    let answer = connection.request(&link::get(name), |message| {
        found = link::decode(message)?;
        Ok(())
    });
    match answer {
        Ok(()) => found,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            None
        }
    }
}

fn addresses(connection: &mut Connection, family: IpFamily, interface: u32) -> Vec<InterfaceAddress> {
    let request = rtnetlink::dump_interface_addresses(family, interface);
    connection
        .dump(&request, Vec::new, |list, message| {
            list.extend(rtnetlink::decode_address(message)?);
            Ok(())
        })
        .unwrap()
}

fn routes(connection: &mut Connection, family: IpFamily) -> Vec<Route> {
    connection
        .dump(&route::dump(family, route::LOCAL_TABLE), Vec::new, |list, message| {
            list.extend(route::decode(message)?);
            Ok(())
        })
        .unwrap()
}

#[test]
fn links_are_made_switched_and_removed() {
    in_namespace(|| {
        let mut rtnl = open(ROUTE);
        assert_eq!(find(&mut rtnl, "kube-ipvs0"), None);
        // This kernel may not know dummies; a bridge is made in the same way.
        let kind = match run(&mut rtnl, &link::create("kube-ipvs0", link::DUMMY)) {
            Ok(()) => link::DUMMY,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                run(&mut rtnl, &link::create("kube-ipvs0", "bridge")).unwrap();
                "bridge"
            }
        };
        let made = find(&mut rtnl, "kube-ipvs0").unwrap();
        assert_eq!((made.name.as_str(), made.kind.as_deref(), made.is_up()), ("kube-ipvs0", Some(kind), false));
        let again = run(&mut rtnl, &link::create("kube-ipvs0", kind)).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Exists);
        run(&mut rtnl, &link::set_up(made.index, true)).unwrap();
        assert!(find(&mut rtnl, "kube-ipvs0").unwrap().is_up());
        assert!(shell("ip -br link show kube-ipvs0").contains(",UP"));
        run(&mut rtnl, &link::set_up(made.index, false)).unwrap();
        assert!(!find(&mut rtnl, "kube-ipvs0").unwrap().is_up());
        let names = rtnl
            .dump(&link::dump(), Vec::new, |list, message| {
                list.extend(link::decode(message)?.map(|link| link.name));
                Ok(())
            })
            .unwrap();
        assert!(names.contains(&"kube-ipvs0".to_owned()) && names.contains(&"lo".to_owned()), "{names:?}");
        run(&mut rtnl, &link::delete(made.index)).unwrap();
        assert_eq!(find(&mut rtnl, "kube-ipvs0"), None);
        assert_eq!(run(&mut rtnl, &link::delete(made.index)).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[rstest]
fn addresses_are_added_read_and_deleted(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    in_namespace(|| {
        let mut rtnl = open(ROUTE);
        run(&mut rtnl, &link::create("kube-ipvs0", "bridge")).unwrap();
        let interface = find(&mut rtnl, "kube-ipvs0").unwrap().index;
        let made: Vec<InterfaceAddress> = (0..300)
            .map(|n| {
                let Element::Ip(ip) = element(&SetType::HashIp, family, n) else { unreachable!() };
                let flags = rtnetlink::NO_PREFIX_ROUTE | rtnetlink::NO_DUPLICATE_DETECTION;
                let preferred = if n % 2 == 0 { 0 } else { rtnetlink::FOREVER };
                InterfaceAddress { flags, preferred, ..InterfaceAddress::host(interface, ip) }
            })
            .collect();
        let requests: Vec<Request> = made.iter().map(rtnetlink::add_address).collect();
        assert!(rtnl.batch(&requests).iter().all(Result::is_ok));
        let mut found = addresses(&mut rtnl, family, interface);
        found.sort_by_key(|one| one.address);
        assert_eq!(found.len(), 300);
        for (found, made) in found.iter().zip(&made) {
            assert_eq!((found.address, found.prefix), (made.address, made.prefix));
            assert_eq!(found.flags & rtnetlink::DEPRECATED != 0, made.preferred == 0);
            if family == IpFamily::V6 {
                assert_eq!(found.preferred, made.preferred);
            }
            assert_eq!(found.flags & rtnetlink::NO_PREFIX_ROUTE, rtnetlink::NO_PREFIX_ROUTE);
        }
        assert_eq!(shell("ip -o addr show dev kube-ipvs0").matches("deprecated").count(), 150);
        // Those of other interfaces do not appear.
        assert!(addresses(&mut rtnl, family, 1).iter().all(|one| one.interface == 1 && one.address.is_loopback()));
        assert_eq!(run(&mut rtnl, &requests[0]).unwrap_err().kind(), ErrorKind::Exists);
        let removals: Vec<Request> = made.iter().map(rtnetlink::delete_address).collect();
        assert!(rtnl.batch(&removals).iter().all(Result::is_ok));
        assert_eq!(addresses(&mut rtnl, family, interface), []);
        let gone = run(&mut rtnl, &removals[0]).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        assert!(matches!(gone, NetlinkError::Refused { errno: errno::EADDRNOTAVAIL, .. }), "{gone}");
        let request = rtnetlink::dump_interface_addresses(family, 9999);
        let error = rtnl.dump(&request, || (), |(), _| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

#[rstest]
fn a_local_route_makes_a_whole_network_local(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    in_namespace(|| {
        let mut rtnl = open(ROUTE);
        let (own, net, inside) = match family {
            IpFamily::V4 => ("10.9.0.1", "10.96.0.0/12", "10.97.1.2"),
            IpFamily::V6 => ("fd09::1", "fd00:96::/112", "fd00:96::77"),
        };
        let own: IpAddr = own.parse().unwrap();
        // A source must not be in doubt.
        let flags = rtnetlink::NO_DUPLICATE_DETECTION;
        let address = InterfaceAddress { flags, ..InterfaceAddress::host(1, own) };
        run(&mut rtnl, &rtnetlink::add_address(&address)).unwrap();
        let made = Route::local(net.parse().unwrap(), 1, Some(own), 99);
        run(&mut rtnl, &route::add(&made)).unwrap();
        assert!(routes(&mut rtnl, family).contains(&made));
        assert!(routes(&mut rtnl, family).iter().all(|route| route.table == route::LOCAL_TABLE));
        let found = shell(&format!("ip route get {inside}"));
        assert!(
            found.starts_with(&format!("local {inside} "))
                && found.contains(" dev lo ")
                && found.contains(&format!("src {own}")),
            "{found}"
        );
        assert_eq!(run(&mut rtnl, &route::add(&made)).unwrap_err().kind(), ErrorKind::Exists);

        let plain = Route { source: None, ..made };
        run(&mut rtnl, &route::replace(&plain)).unwrap();
        let now = routes(&mut rtnl, family);
        assert!(now.contains(&plain) && !now.contains(&made), "{now:?}");
        run(&mut rtnl, &route::delete(&plain)).unwrap();
        assert!(!routes(&mut rtnl, family).contains(&plain));
        let gone = run(&mut rtnl, &route::delete(&plain)).unwrap_err();
        assert!(matches!(gone, NetlinkError::Refused { errno: errno::ESRCH, .. }), "{gone}");
    });
}

#[test]
fn the_kernels_words_are_in_the_error() {
    in_namespace(|| {
        let mut rtnl = open(ROUTE);
        let foreign = Some("10.9.0.1".parse().unwrap());
        let bad = route::add(&Route::local("10.96.0.0/12".parse().unwrap(), 1, foreign, 99));
        let error = run(&mut rtnl, &bad).unwrap_err();
        assert_eq!(error.to_string(), "Invalid argument (os error 22) (Invalid prefsrc address)");
        // In a batch as well.
        let results = rtnl.batch(&[bad, link::set_up(1, true)]);
        let words: Vec<_> = results.into_iter().map(|result| result.err().map(|error| error.to_string())).collect();
        assert_eq!(words, [Some(error.to_string()), None]);
    });
}
