//! One suite for the fake kernel and the real one: the same operations give the same results and leave the same items.

use ErrorKind::{Busy, Exists, NoSpace, NotFound, Rejected};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::{
    Element, ErrorKind, ItemClaims, ItemKey, ItemState, Kernel, Op, Placement, RealKey, SetKind, SetName, Table,
};
use portolan::net::{IpFamily, PerFamily, Protocol};

use crate::linux_support::{self, OUTPUT, rule_key, shell};
use crate::world::*;

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
            let addresses = PerFamily { v4: vec![ip("127.0.0.1")], v6: vec![ip("::1")] };
            let mut fake = FakeKernel { addresses, ..FakeKernel::default() };
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
