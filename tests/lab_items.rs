//! Items on the real kernel, and one suite for the fake kernel and the real one. What needs `ip_vs` or dummy links is run in the lab
//! (`cargo xtask lab`), which sets `PORTOLAN_LAB`, or where the machine's kernel has them; elsewhere such a test says so and passes.

mod linux_support;

use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ErrorKind::{Busy, Exists, NoSpace, NotFound, Rejected, Unsupported};
use linux_support::*;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::item::{DUMMY_LINK, Scheduler};
use portolan::kernel::{
    Connections, Element, ErrorKind, ItemClaims, ItemDump, ItemKey, ItemState, Kernel, Op, Placement, RealKey, SetKey,
    SetKind, SetName, Table, VirtualKey, VirtualServer,
};
use portolan::linux::ipvs::Preparation;
use portolan::linux::{LinuxKernel, Variant, sysctl};
use portolan::net::{IpFamily, PerFamily, Protocol};
use portolan::netlink;
use portolan::netlink::genl;
use portolan::netlink::ipvs::{Destination, Forwarding, Ipvs, Service, ServiceKey, Timeouts};
use portolan::netlink::socket::{Connection, GENERIC};

const SERVING: ItemClaims = ItemClaims { serving: true, excluded: Vec::new() };
const LEAVING: ItemClaims = ItemClaims { serving: false, excluded: Vec::new() };

/// Whether this kernel has `ip_vs` and dummy links, after it was asked for them.
fn has_lab() -> bool {
    in_namespace(|| {
        let (kernel, _directory) = kernel(Variant::Legacy);
        let _ = kernel.ipvs_requirements(PerFamily { v4: true, v6: true }, &Scheduler::ROUND_ROBIN);
    });
    let found = Path::new("/proc/net/ip_vs").exists();
    assert!(found || std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
    if !found {
        println!("not run: this kernel has no ip_vs; use `cargo xtask lab`");
    }
    found
}

/// Runs a test in a namespace of its own.
fn natively(test: impl FnOnce(&mut LinuxKernel) + Send) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(Variant::Legacy);
        test(&mut kernel);
    });
}

/// The same, if the kernel has what IPVS mode needs.
fn in_lab(test: impl FnOnce(&mut LinuxKernel) + Send) {
    if has_lab() {
        natively(test);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One of two, by family.
fn pick<'a>(family: IpFamily, v4: &'a str, v6: &'a str) -> &'a str {
    match family {
        IpFamily::V4 => v4,
        IpFamily::V6 => v6,
    }
}

fn vip(family: IpFamily, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match family {
        IpFamily::V4 => [10, 96, high, low].into(),
        IpFamily::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, n].into(),
    }
}

fn endpoint(family: IpFamily, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match family {
        IpFamily::V4 => [10, 0, high, low].into(),
        IpFamily::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, n].into(),
    }
}

fn key(family: IpFamily, name: SetName) -> SetKey {
    SetKey { family, name }
}

fn set(family: IpFamily, name: SetName) -> ItemKey {
    ItemKey::Set(key(family, name))
}

fn element(family: IpFamily, name: SetName, element: Element) -> ItemKey {
    ItemKey::Element(key(family, name), element)
}

/// A cluster IP of a service with TCP port 80.
fn cluster_ip(family: IpFamily, n: u16) -> ItemKey {
    element(family, SetName::ClusterIp, Element::IpPort(vip(family, n), Protocol::Tcp, 80))
}

fn server(family: IpFamily, n: u16) -> VirtualKey {
    VirtualKey { address: vip(family, n), protocol: Protocol::Tcp, port: 80 }
}

fn virtual_server(family: IpFamily, n: u16) -> ItemKey {
    ItemKey::VirtualServer(server(family, n))
}

fn real_server(family: IpFamily, n: u16, at: u16) -> ItemKey {
    ItemKey::RealServer(RealKey { server: server(family, n), address: endpoint(family, at), port: 8080 })
}

fn scheduled(scheduler: &str, flags: u32, persistence_seconds: u32) -> ItemState {
    ItemState::Server(VirtualServer { scheduler: Scheduler::new(scheduler).unwrap(), flags, persistence_seconds })
}

fn plain() -> ItemState {
    scheduled("rr", 0, 0)
}

const CAPACITY: ItemState = ItemState::Capacity(65536);
const PRESENT: ItemState = ItemState::Present;

fn address(family: IpFamily, n: u16) -> ItemKey {
    ItemKey::Address(vip(family, n))
}

fn bound(deprecated: bool) -> ItemState {
    ItemState::Address { deprecated }
}

fn route(net: &str) -> ItemKey {
    ItemKey::Route(net.parse().unwrap())
}

fn add(key: ItemKey, state: ItemState) -> Op {
    Op::AddItem(key, state)
}

fn change(key: ItemKey, state: ItemState) -> Op {
    Op::ChangeItem(key, state)
}

fn delete(key: ItemKey) -> Op {
    Op::DeleteItem(key)
}

/// Applies operations that have to succeed.
fn done(kernel: &mut LinuxKernel, ops: &[Op]) {
    for (op, result) in ops.iter().zip(kernel.apply(ops)) {
        assert_eq!(result, Ok(()), "{op}");
    }
}

/// What each operation returned; `None`: done.
fn kinds(kernel: &mut dyn Kernel, ops: &[Op]) -> Vec<Option<ErrorKind>> {
    kernel.apply(ops).into_iter().map(|result| result.err().map(|error| error.kind)).collect()
}

fn sorted(mut dump: ItemDump) -> ItemDump {
    dump.ours.sort_by_key(|(key, _)| *key);
    dump.foreign.sort_by_key(|(key, _)| *key);
    dump
}

fn dump(kernel: &mut dyn Kernel, family: IpFamily) -> ItemDump {
    sorted(kernel.items(family, &SERVING).unwrap())
}

// === Conformance ===

/// A list of transactions with what each operation is expected to return.
type Case = (&'static str, Vec<Vec<(Op, Option<ErrorKind>)>>);

fn fine(ops: impl IntoIterator<Item = Op>) -> Vec<(Op, Option<ErrorKind>)> {
    ops.into_iter().map(|op| (op, None)).collect()
}

fn set_cases(family: IpFamily) -> Vec<Case> {
    let cluster = set(family, SetName::ClusterIp);
    let ports = set(family, SetName::NodePortTcp);
    let port = |n| element(family, SetName::NodePortTcp, Element::Port(n));
    let a = |n| cluster_ip(family, n);
    let wrong = element(family, SetName::ClusterIp, Element::Port(1));
    vec![
        (
            "a set is made, and not twice, and removed with its elements",
            vec![
                vec![(add(cluster, CAPACITY), None), (add(cluster, CAPACITY), Some(Exists))],
                vec![(add(cluster, ItemState::Capacity(7)), Some(Exists))],
                fine([add(a(1), PRESENT), add(a(2), PRESENT)]),
                fine([delete(cluster)]),
                vec![(delete(cluster), Some(NotFound))],
            ],
        ),
        (
            "every set of the family",
            vec![
                fine(SetName::ALL.map(|name| add(set(family, name), CAPACITY))),
                fine(SetName::ALL.map(|name| add(element(family, name, sample(family, name)), PRESENT))),
                fine(SetName::ALL.map(|name| delete(element(family, name, sample(family, name))))),
                fine(SetName::ALL.map(|name| delete(set(family, name)))),
            ],
        ),
        (
            "an element twice, a missing one, and those behind it",
            vec![
                fine([add(cluster, CAPACITY)]),
                vec![
                    (add(a(1), PRESENT), None),
                    (add(a(2), PRESENT), None),
                    (add(a(1), PRESENT), Some(Exists)),
                    (add(a(3), PRESENT), None),
                    (add(a(2), PRESENT), Some(Exists)),
                    (add(a(4), PRESENT), None),
                ],
                vec![
                    (delete(a(9)), Some(NotFound)),
                    (delete(a(1)), None),
                    (delete(a(1)), Some(NotFound)),
                    (delete(a(2)), None),
                    (add(a(1), PRESENT), None),
                    (change(a(1), PRESENT), None),
                    (change(a(2), PRESENT), Some(NotFound)),
                ],
            ],
        ),
        (
            "elements of a set that is not there",
            vec![vec![
                (add(a(1), PRESENT), Some(NotFound)),
                (add(a(2), PRESENT), Some(NotFound)),
                (delete(a(1)), Some(NotFound)),
                (change(a(1), PRESENT), Some(NotFound)),
                (change(cluster, CAPACITY), Some(NotFound)),
            ]],
        ),
        (
            "an element of another type costs only itself",
            vec![
                fine([add(cluster, CAPACITY)]),
                vec![(add(a(1), PRESENT), None), (add(wrong, PRESENT), Some(Rejected)), (add(a(2), PRESENT), None)],
            ],
        ),
        (
            "a full set, which grows",
            vec![
                fine([add(cluster, ItemState::Capacity(2))]),
                vec![
                    (add(a(1), PRESENT), None),
                    (add(a(2), PRESENT), None),
                    (add(a(3), PRESENT), Some(NoSpace)),
                    (add(a(1), PRESENT), Some(Exists)),
                    (add(a(4), PRESENT), Some(NoSpace)),
                ],
                vec![
                    (change(cluster, ItemState::Capacity(1)), Some(NoSpace)),
                    (change(cluster, ItemState::Capacity(3)), None),
                    (add(a(3), PRESENT), None),
                    (add(a(4), PRESENT), Some(NoSpace)),
                ],
                fine([change(cluster, CAPACITY)]),
                fine([add(a(4), PRESENT)]),
            ],
        ),
        (
            "a set of ports takes any capacity",
            vec![
                fine([add(ports, ItemState::Capacity(1)), add(port(0), PRESENT), add(port(65535), PRESENT)]),
                fine([change(ports, ItemState::Capacity(2))]),
                vec![(add(port(0), PRESENT), Some(Exists)), (delete(port(1)), Some(NotFound))],
            ],
        ),
    ]
}

/// An element that a set takes.
fn sample(family: IpFamily, name: SetName) -> Element {
    let (ip, port) = (vip(family, 1), 80);
    match name.kind() {
        SetKind::Ip => Element::Ip(ip),
        SetKind::IpPort => Element::IpPort(ip, Protocol::Sctp, port),
        SetKind::IpPortIp => Element::IpPortIp(ip, Protocol::Udp, port, endpoint(family, 1)),
        SetKind::IpPortNet => {
            Element::IpPortNet(ip, Protocol::Tcp, port, pick(family, "10.0.0.0/8", "fd00::/8").parse().unwrap())
        }
        SetKind::Port => Element::Port(30080),
    }
}

fn server_cases(family: IpFamily) -> Vec<Case> {
    let vs = |n| virtual_server(family, n);
    let rs = |n, at| real_server(family, n, at);
    let weight = ItemState::Weight;
    let odd_address =
        |address: &str| ItemKey::RealServer(RealKey { server: server(family, 1), address: ip(address), port: 8080 });
    vec![
        (
            "virtual servers come, change and go",
            vec![
                vec![
                    (add(vs(1), plain()), None),
                    (add(vs(1), plain()), Some(Exists)),
                    (add(vs(1), scheduled("lc", 0, 0)), Some(Exists)),
                    (add(vs(2), scheduled("mh", 0x11, 10800)), None),
                    (change(vs(1), scheduled("lc", 1, 60)), None),
                    (change(vs(3), plain()), Some(NotFound)),
                    (delete(vs(3)), Some(NotFound)),
                ],
                fine([change(vs(2), plain()), change(vs(1), plain())]),
                vec![(delete(vs(1)), None), (delete(vs(1)), Some(NotFound))],
            ],
        ),
        (
            "real servers come, change and go",
            vec![
                fine([add(vs(1), plain()), add(rs(1, 1), weight(1)), add(rs(1, 2), weight(1))]),
                vec![
                    (add(rs(1, 1), weight(2)), Some(Exists)),
                    (change(rs(1, 1), weight(0)), None),
                    (change(rs(1, 3), weight(0)), Some(NotFound)),
                    (delete(rs(1, 3)), Some(NotFound)),
                    (add(rs(2, 1), weight(1)), Some(NotFound)),
                    (change(rs(2, 1), weight(1)), Some(NotFound)),
                    (delete(rs(2, 1)), Some(NotFound)),
                ],
                fine([change(rs(1, 1), weight(1)), change(vs(1), scheduled("sh", 0, 0))]),
                fine([delete(rs(1, 2)), add(rs(1, 2), weight(1)), delete(vs(1))]),
                fine([add(vs(1), plain())]),
            ],
        ),
        (
            "what cannot be a real server",
            vec![
                fine([add(vs(1), plain())]),
                vec![
                    (add(odd_address(pick(family, "0.0.0.0", "::")), weight(1)), Some(Rejected)),
                    (add(odd_address(pick(family, "224.0.0.1", "ff02::1")), weight(1)), Some(Rejected)),
                    (add(odd_address(pick(family, "fd00::1", "10.0.0.1")), weight(1)), Some(Rejected)),
                    (add(odd_address(pick(family, "127.0.0.1", "::1")), weight(1)), None),
                    (add(rs(1, 1), weight(u32::MAX)), Some(Rejected)),
                    (add(rs(1, 1), weight(i32::MAX as u32)), None),
                ],
            ],
        ),
        (
            "servers are ours if a set tells of them",
            vec![
                fine([add(vs(1), plain()), add(rs(1, 1), weight(1)), add(vs(2), plain())]),
                fine([add(set(family, SetName::ClusterIp), CAPACITY), add(cluster_ip(family, 1), PRESENT)]),
                fine([delete(cluster_ip(family, 1))]),
            ],
        ),
    ]
}

fn address_cases(family: IpFamily) -> Vec<Case> {
    let a = |n| address(family, n);
    let net = route(pick(family, "10.96.0.0/12", "fd00:96::/64"));
    let single = route(pick(family, "192.0.2.1/32", "2001:db8::1/128"));
    let source = ItemState::Source(Some(ip(pick(family, "127.0.0.1", "::1"))));
    let nowhere = ItemState::Source(Some(endpoint(family, 77)));
    let none = ItemState::Source(None);
    vec![
        (
            "addresses make their link",
            vec![
                vec![
                    (change(ItemKey::Link, PRESENT), Some(NotFound)),
                    (delete(ItemKey::Link), Some(NotFound)),
                    (delete(a(1)), Some(NotFound)),
                    (change(a(1), bound(true)), Some(NotFound)),
                    (add(a(1), bound(false)), None),
                    (add(a(1), bound(false)), Some(Exists)),
                    (add(a(1), bound(true)), Some(Exists)),
                    (add(a(2), bound(true)), None),
                    (add(ItemKey::Link, PRESENT), Some(Exists)),
                    (change(ItemKey::Link, PRESENT), None),
                    (change(a(3), bound(true)), Some(NotFound)),
                ],
                fine([change(a(1), bound(true)), change(a(2), bound(false))]),
                fine([change(a(1), bound(false)), change(a(2), bound(true))]),
                vec![(delete(a(1)), None), (delete(a(1)), Some(NotFound)), (change(a(1), bound(true)), Some(NotFound))],
                fine([delete(ItemKey::Link)]),
                vec![(delete(a(2)), Some(NotFound))],
                fine([add(ItemKey::Link, PRESENT)]),
            ],
        ),
        (
            "the link goes and comes within one transaction",
            vec![
                fine([add(a(1), bound(false)), delete(ItemKey::Link), add(a(2), bound(false))]),
                vec![(delete(ItemKey::Link), None), (delete(a(2)), Some(NotFound))],
            ],
        ),
        (
            "routes",
            vec![
                vec![
                    (add(net, source), None),
                    (add(net, source), Some(Exists)),
                    (add(net, none), Some(Exists)),
                    (add(single, none), None),
                    (change(net, none), None),
                    (change(net, source), None),
                ],
                vec![
                    (change(single, nowhere), Some(Rejected)),
                    (delete(net), None),
                    (delete(net), Some(NotFound)),
                    (change(net, source), Some(NotFound)),
                    (add(net, nowhere), Some(Rejected)),
                ],
                fine([delete(single)]),
            ],
        ),
    ]
}

fn conforms(cases: Vec<Case>, family: IpFamily, claims: &ItemClaims) {
    let mut problems = Vec::new();
    for (name, transactions) in cases {
        natively(|real| {
            let mut fake = FakeKernel::default();
            fake.addresses = PerFamily { v4: vec![ip("127.0.0.1")], v6: vec![ip("::1")] };
            for (at, transaction) in transactions.iter().enumerate() {
                let ops: Vec<Op> = transaction.iter().map(|(op, _)| op.clone()).collect();
                let results = real.apply(&ops);
                let faked = kinds(&mut fake, &ops);
                for (((op, expected), found), faked) in transaction.iter().zip(results).zip(faked) {
                    let kind = found.as_ref().err().map(|error| error.kind);
                    if kind != *expected || faked != *expected {
                        problems.push(format!("{name} [{at}] {op}: {found:?}, fake {faked:?}, expected {expected:?}"));
                    }
                }
                let found = real.items(family, claims).map(sorted);
                let faked = fake.items(family, claims).map(sorted);
                if found != faked {
                    problems.push(format!("{name} [{at}]: real {found:?}\nfake {faked:?}"));
                }
            }
        });
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_fake_has_sets_like_the_kernel() {
    // Sets need no ip_vs.
    for family in IpFamily::ALL {
        conforms(set_cases(family), family, &LEAVING);
    }
}

#[test]
fn the_fake_has_virtual_servers_like_the_kernel() {
    if has_lab() {
        for family in IpFamily::ALL {
            conforms(server_cases(family), family, &SERVING);
        }
    }
}

#[test]
fn the_fake_has_addresses_and_routes_like_the_kernel() {
    if has_lab() {
        for family in IpFamily::ALL {
            conforms(address_cases(family), family, &SERVING);
        }
    }
}

#[test]
fn a_set_in_use_stays_on_both_kernels() {
    natively(|real| {
        let mut fake = FakeKernel::default();
        for family in IpFamily::ALL {
            let chain = linux_support::key(family, Table::Nat, OUTPUT);
            let name = key(family, SetName::ClusterIp);
            let rule = format!("-m set --match-set {name} dst,dst -j RETURN");
            let tool = pick(family, "iptables-legacy", "ip6tables-legacy");
            let cluster = ItemKey::Set(name);
            for kernel in [real as &mut dyn Kernel, &mut fake] {
                let early = Op::InsertRule(rule_key(chain, &rule), Placement::Tail);
                assert_eq!(kinds(kernel, &[early]), [Some(Rejected)], "a rule cannot name a set that is not there");
                assert_eq!(kinds(kernel, &[add(cluster, CAPACITY), add(cluster_ip(family, 1), PRESENT)]), [None, None]);
            }
            shell(&format!("{tool} -w -t nat -A OUTPUT {rule}"));
            fake.chain_mut(&chain).push(rule.clone());
            for kernel in [real as &mut dyn Kernel, &mut fake] {
                assert_eq!(kinds(kernel, &[delete(cluster)]), [Some(Busy)]);
                assert_eq!(kinds(kernel, &[change(cluster, ItemState::Capacity(70000))]), [None], "under the rule");
                assert_eq!(kinds(kernel, &[add(cluster_ip(family, 2), PRESENT), delete(cluster)]), [None, Some(Busy)]);
            }
            shell(&format!("{tool} -w -t nat -F OUTPUT"));
            fake.chain_mut(&chain).clear();
            let claims = &LEAVING;
            let expected = sorted(fake.items(family, claims).unwrap());
            assert_eq!(sorted(real.items(family, claims).unwrap()), expected);
            assert_eq!(expected.ours.len(), 3);
            for kernel in [real as &mut dyn Kernel, &mut fake] {
                assert_eq!(kinds(kernel, &[delete(cluster)]), [None]);
            }
        }
    });
}

// === The rest of the contract, on the real kernel ===

/// A socket of the family of IPVS, for what the kernel layer does not do.
fn balancer() -> (Connection, Ipvs) {
    let mut genl = Connection::open(GENERIC, Duration::from_secs(30)).unwrap();
    let mut family = None;
    genl.request(&genl::get_family(netlink::ipvs::FAMILY), |message| {
        family = genl::decode_family(message)?;
        Ok(())
    })
    .unwrap();
    (genl, Ipvs::new(&family.unwrap()))
}

#[test]
fn services_of_firewall_marks_all_ports_and_other_families_are_left_out() {
    in_lab(|kernel| {
        let (mut genl, ipvs) = balancer();
        let mut make = |key| genl.request(&ipvs.new_service(&Service::new(key, "rr")), |_| Ok(())).unwrap();
        make(ServiceKey::mark(IpFamily::V4, 7));
        make(ServiceKey::mark(IpFamily::V6, 7));
        done(kernel, &[add(virtual_server(IpFamily::V6, 1), plain())]);
        assert_eq!(dump(kernel, IpFamily::V4), ItemDump::default());
        let found = dump(kernel, IpFamily::V6);
        assert_eq!((found.ours, found.foreign), (vec![], vec![(virtual_server(IpFamily::V6, 1), plain())]));
    });
}

#[test]
fn real_servers_that_are_reached_in_another_way_are_written_anew() {
    in_lab(|kernel| {
        let family = IpFamily::V4;
        done(kernel, &[add(virtual_server(family, 1), plain())]);
        let (mut genl, ipvs) = balancer();
        let service = ServiceKey::address(6, "10.96.0.1:80".parse().unwrap());
        let direct = Destination {
            forwarding: Forwarding::DirectRoute,
            ..Destination::new("10.0.0.1:8080".parse().unwrap(), 1)
        };
        genl.request(&ipvs.new_destination(&service, &direct), |_| Ok(())).unwrap();
        let real = real_server(family, 1, 1);
        assert_eq!(dump(kernel, family).foreign[1], (real, ItemState::Weight(u32::MAX)));
        done(kernel, &[change(real, ItemState::Weight(1))]);
        assert_eq!(dump(kernel, family).foreign[1], (real, ItemState::Weight(1)));
        let found = kernel.connections(&server(family, 1)).unwrap();
        let key = RealKey { server: server(family, 1), address: ip("10.0.0.1"), port: 8080 };
        assert_eq!(found, [(key, Connections::default())]);
        assert_eq!(kernel.connections(&server(family, 2)).unwrap(), []);
    });
}

#[test]
fn both_families_and_all_kinds_in_one_transaction() {
    in_lab(|kernel| {
        let mut ops = Vec::new();
        for family in IpFamily::ALL {
            ops.push(add(set(family, SetName::ClusterIp), CAPACITY));
            ops.push(add(cluster_ip(family, 1), PRESENT));
            ops.push(add(virtual_server(family, 1), plain()));
            ops.push(add(real_server(family, 1, 1), ItemState::Weight(1)));
            ops.push(add(address(family, 1), bound(family == IpFamily::V6)));
            ops.push(add(route(pick(family, "10.97.0.0/16", "fd00:97::/64")), ItemState::Source(None)));
        }
        done(kernel, &ops);
        for family in IpFamily::ALL {
            let mut expected: Vec<(ItemKey, ItemState)> = ops
                .iter()
                .filter_map(|op| match op {
                    Op::AddItem(key, state) if key.family() == Some(family) => Some((*key, *state)),
                    _ => None,
                })
                .collect();
            expected.push((ItemKey::Link, PRESENT));
            expected.sort_by_key(|(key, _)| *key);
            assert_eq!(dump(kernel, family), ItemDump { ours: expected, foreign: vec![] });
            assert_eq!(sorted(kernel.items(family, &LEAVING).unwrap()), dump(kernel, family));
        }
        let link = shell(&format!("ip -o link show {DUMMY_LINK}"));
        assert!(!link.contains("UP"), "{link}");
        assert!(shell("ip -6 route show table main").trim().is_empty(), "no route but the local one");
    });
}

#[test]
fn a_scheduler_that_is_missing_is_named() {
    in_lab(|kernel| {
        let family = IpFamily::V4;
        let odd = scheduled("nosuch", 0, 0);
        let ops = [add(virtual_server(family, 1), odd), add(virtual_server(family, 2), plain())];
        let results = kernel.apply(&ops);
        let error = results[0].clone().unwrap_err();
        assert_eq!((error.kind, results[1].clone()), (Unsupported, Ok(())));
        assert!(error.message.contains("ip_vs_nosuch") && error.message.contains("10.96.0.1:80"), "{error}");
        let results = kernel.apply(&[change(virtual_server(family, 2), odd)]);
        assert_eq!(results[0].clone().unwrap_err().kind, Unsupported);
        assert_eq!(kinds(kernel, &[change(virtual_server(family, 9), odd)]), [Some(NotFound)]);
        // A state that makes no sense costs only itself.
        let ops = [add(virtual_server(family, 3), PRESENT), add(virtual_server(family, 4), plain())];
        assert_eq!(kinds(kernel, &ops), [Some(Rejected), None]);
    });
}

#[test]
fn a_link_that_only_has_the_name_is_not_touched() {
    if !has_lab() {
        return;
    }
    in_lab(|kernel| {
        shell(&format!("ip link add {DUMMY_LINK} type bridge"));
        let error = kernel.items(IpFamily::V4, &SERVING).unwrap_err();
        assert!(error.message.contains("is a bridge, not a dummy"), "{error}");
        assert_eq!(kernel.items(IpFamily::V4, &LEAVING).unwrap(), ItemDump::default());
        let ops = [
            add(address(IpFamily::V4, 1), bound(false)),
            add(route("10.96.0.0/12"), ItemState::Source(None)),
            delete(ItemKey::Link),
        ];
        assert_eq!(kinds(kernel, &ops), [Some(Rejected), None, Some(Rejected)]);
        let error = kernel.ipvs_requirements(PerFamily { v4: true, v6: true }, &Scheduler::ROUND_ROBIN).unwrap_err();
        assert!(error.message.contains("not a dummy"), "{error}");
        shell(&format!("ip addr add 192.0.2.7/32 dev {DUMMY_LINK}"));
        assert!(kernel.addresses(IpFamily::V4).unwrap().contains(&ip("192.0.2.7")));
    });
}

#[test]
fn a_set_of_another_type_is_named() {
    in_lab(|kernel| {
        shell("ipset create KUBE-CLUSTER-IP hash:net; ipset create KUBE-6-IPVS-IPS hash:ip family inet");
        for (family, name) in [(IpFamily::V4, "KUBE-CLUSTER-IP"), (IpFamily::V6, "KUBE-6-IPVS-IPS")] {
            let error = kernel.items(family, &SERVING).unwrap_err();
            assert_eq!(error.kind, Rejected);
            assert!(error.message.contains(name) && error.message.contains("ipset destroy"), "{error}");
            assert_eq!(kernel.items(family, &LEAVING).unwrap(), ItemDump::default(), "somebody else's");
        }
    });
}

#[test]
fn what_an_interrupted_growth_leaves_behind_is_removed() {
    natively(|kernel| {
        let family = IpFamily::V4;
        let cluster = set(family, SetName::ClusterIp);
        let names = || shell("ipset list -n");
        let spare = "ipset create PORTOLAN-SPARE hash:ip,port; ipset add PORTOLAN-SPARE 10.0.0.1,tcp:1";
        done(kernel, &[add(cluster, CAPACITY), add(cluster_ip(family, 1), PRESENT)]);
        shell(spare);
        // It is in the way of another growth.
        done(kernel, &[change(cluster, ItemState::Capacity(70000))]);
        assert_eq!(names().trim(), "KUBE-CLUSTER-IP");
        // A new process finds it, and removes it with what it does first. A dump writes nothing.
        shell(spare);
        let found = kernel.items(family, &LEAVING).unwrap();
        assert_eq!(found.ours.len(), 2);
        assert_eq!(names().lines().count(), 2);
        assert_eq!(kernel.apply(&[]), []);
        assert_eq!(names().trim(), "KUBE-CLUSTER-IP");
        // Growth keeps what it cannot take over.
        assert_eq!(kinds(kernel, &[change(cluster, ItemState::Capacity(0))]), [Some(NoSpace)]);
        assert_eq!(names().trim(), "KUBE-CLUSTER-IP");
        assert_eq!(sorted(kernel.items(family, &LEAVING).unwrap()), sorted(found));
    });
}

#[test]
fn nothing_is_permitted_without_rights() {
    in_lab(|kernel| {
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        let family = IpFamily::V4;
        let ops = [
            add(set(family, SetName::ClusterIp), CAPACITY),
            add(cluster_ip(family, 1), PRESENT),
            add(cluster_ip(family, 2), PRESENT),
            add(virtual_server(family, 1), plain()),
            add(address(family, 1), bound(false)),
            add(route("10.96.0.0/12"), ItemState::Source(None)),
        ];
        rustix::thread::set_capabilities(None, none).unwrap();
        assert_eq!(kinds(kernel, &ops), [Some(ErrorKind::Denied); 6]);
        assert_eq!(kernel.items(family, &SERVING).unwrap_err().kind, ErrorKind::Denied);
        let needed = kernel.ipvs_requirements(PerFamily { v4: true, v6: true }, &Scheduler::ROUND_ROBIN);
        assert_eq!(needed.unwrap_err().kind, ErrorKind::Denied);
    });
}

/// Takes the time of a part.
fn timed<T>(what: &str, part: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = part();
    println!("{what}: {:?}", start.elapsed());
    result
}

#[test]
fn five_thousand_elements_are_added_among_those_that_exist() {
    natively(|kernel| {
        for family in IpFamily::ALL {
            let cluster = set(family, SetName::ClusterIp);
            done(kernel, &[add(cluster, ItemState::Capacity(4000))]);
            let ops: Vec<Op> = (0..5000).map(|n| add(cluster_ip(family, n), PRESENT)).collect();
            let results = timed("5,000 elements into 4,000 places", || kinds(kernel, &ops));
            assert!(results[..4000].iter().all(Option::is_none));
            assert!(results[4000..].iter().all(|result| *result == Some(NoSpace)));
            timed("growing", || done(kernel, &[change(cluster, CAPACITY)]));
            let results = timed("the same again, one in five missing", || kinds(kernel, &ops));
            assert!(results[..4000].iter().all(|result| *result == Some(Exists)));
            assert!(results[4000..].iter().all(Option::is_none));
            let found = timed("dump", || kernel.items(family, &LEAVING).unwrap());
            assert_eq!(found.ours.len(), 5001);
            let ops: Vec<Op> = (0..5000).map(|n| delete(cluster_ip(family, n))).collect();
            timed("deleting", || done(kernel, &ops));
            done(kernel, &[delete(cluster)]);
        }
    });
}

#[test]
fn a_thousand_services_are_filled_in_and_read() {
    in_lab(|kernel| {
        for family in IpFamily::ALL {
            let mut ops = vec![add(set(family, SetName::ClusterIp), CAPACITY)];
            ops.extend((0..1000).map(|n| add(cluster_ip(family, n), PRESENT)));
            for n in 0..1000 {
                ops.push(add(virtual_server(family, n), plain()));
                ops.extend((0..5).map(|at| add(real_server(family, n, 5 * n + at + 1), ItemState::Weight(1))));
            }
            ops.extend((0..1000).map(|n| add(address(family, n), bound(family == IpFamily::V6))));
            timed(&format!("{family}: {} operations", ops.len()), || done(kernel, &ops));
            let found = timed("dump", || kernel.items(family, &SERVING).unwrap());
            assert_eq!((found.ours.len(), found.foreign.len()), (2 + 1000 + 6000 + 1000, 0));
            let found = timed("addresses of the node", || kernel.addresses(family).unwrap());
            assert_eq!(found.len(), 1, "{found:?}");
        }
    });
}

#[test]
fn a_virtual_server_with_many_real_servers_is_read_whole() {
    in_lab(|kernel| {
        let family = IpFamily::V6;
        let mut ops = vec![add(virtual_server(family, 1), plain())];
        ops.extend((0..1000).map(|at| add(real_server(family, 1, at + 1), ItemState::Weight(1))));
        done(kernel, &ops);
        assert_eq!(dump(kernel, family).foreign.len(), 1001);
        assert_eq!(kernel.connections(&server(family, 1)).unwrap().len(), 1000);
    });
}

/// Expects nothing for a while.
fn quiet<T: std::fmt::Debug>(receiver: &mpsc::Receiver<T>) {
    assert_eq!(receiver.recv_timeout(Duration::from_millis(300)).map_err(|_| ()).err(), Some(()));
}

#[test]
fn addresses_of_services_wake_nobody() {
    in_lab(|kernel| {
        let (sender, receiver) = mpsc::channel();
        let watch = kernel.watch_addresses(move |addresses| drop(sender.send(addresses))).unwrap();
        let wait = || receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        let first = wait();
        assert_eq!((first.v4, first.v6), (vec![ip("127.0.0.1")], vec![ip("::1")]));
        let fill: Vec<Op> =
            IpFamily::ALL.iter().flat_map(|family| (0..500).map(|n| add(address(*family, n), bound(false)))).collect();
        done(kernel, &fill);
        quiet(&receiver);
        shell("ip addr add 192.0.2.1/32 dev lo");
        assert_eq!(wait().v4, [ip("127.0.0.1"), ip("192.0.2.1")]);
        done(kernel, &[delete(ItemKey::Link)]);
        quiet(&receiver);
        drop(watch);
    });
}

#[test]
fn requirements_are_checked_without_a_trace() {
    in_lab(|kernel| {
        let both = PerFamily { v4: true, v6: true };
        for scheduler in ["rr", "mh", "wlc"] {
            kernel.ipvs_requirements(both, &Scheduler::new(scheduler).unwrap()).unwrap();
        }
        for families in [PerFamily { v4: true, v6: false }, PerFamily { v4: false, v6: true }] {
            kernel.ipvs_requirements(families, &Scheduler::ROUND_ROBIN).unwrap();
        }
        for family in IpFamily::ALL {
            assert_eq!(dump(kernel, family), ItemDump::default());
        }
        let error = kernel.ipvs_requirements(both, &Scheduler::new("nosuch").unwrap()).unwrap_err();
        assert_eq!(error.kind, Unsupported);
        assert_eq!(error.message.matches("load the module ip_vs_nosuch").count(), 1, "{error}");
        // Somebody's virtual server at the address of the trial stays.
        let (mut genl, ipvs) = balancer();
        let theirs = Service::new(ServiceKey::address(6, "198.51.100.0:20000".parse().unwrap()), "lc");
        genl.request(&ipvs.new_service(&theirs), |_| Ok(())).unwrap();
        kernel.ipvs_requirements(both, &Scheduler::ROUND_ROBIN).unwrap();
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
        let error = kernel.ipvs_requirements(PerFamily { v4: true, v6: true }, &Scheduler::ROUND_ROBIN).unwrap_err();
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
    let client = TcpStream::connect_timeout(&(vip(family, 1), 80).into(), Duration::from_secs(5)).unwrap();
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
        println!("source: {}", source_seen(family));
        println!("{}", shell("ip -6 route show table local; ip -6 addr show"));
    });
}
