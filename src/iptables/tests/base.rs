use rstest::rstest;

use super::setup::*;
use crate::backend::{Backend, Fragment};
use crate::compile::{NodeContext, NodePortAddresses};
use crate::iptables::{IptablesBackend, restore_text};
use crate::kernel::{ChainClass, ChainName, Claims, Table, TableId};
use crate::net::{IpFamily, PerFamily};

fn node(change: impl FnOnce(&mut NodeContext)) -> NodeContext {
    let mut node = NodeContext { families: PerFamily { v4: true, v6: true }, ..NodeContext::default() };
    change(&mut node);
    node
}

/// The rules of one chain.
fn chain(family: IpFamily, table: Table, name: &str, node: &NodeContext) -> Vec<String> {
    let text = restore_text(family, [&IptablesBackend::default().base(node)]);
    let (filter, nat) = text.split_once("*nat").unwrap();
    let text = if table == Table::Filter { filter } else { nat };
    text.lines().filter_map(|line| Some(line.strip_prefix(&format!("-A {name} "))?.to_owned())).collect()
}

#[rstest]
#[case(IpFamily::V4)]
#[case(IpFamily::V6)]
fn jumps_stand_in_the_order_in_which_kube_proxy_leaves_them(#[case] family: IpFamily) {
    let rules = |table, name| chain(family, table, name, &NodeContext::default());
    let new = |comment: &str, chain: &str| {
        format!(r#"-m conntrack --ctstate NEW -m comment --comment "kubernetes {comment}" -j {chain}"#)
    };
    let any = |comment: &str, chain: &str| format!(r#"-m comment --comment "kubernetes {comment}" -j {chain}"#);
    let firewall = || "-j KUBE-FIREWALL".to_owned();
    let balancer = || new("load balancer firewall", "KUBE-PROXY-FIREWALL");
    let external = || new("externally-visible service portals", "KUBE-EXTERNAL-SERVICES");
    assert_eq!(
        rules(Table::Filter, "INPUT"),
        [firewall(), balancer(), any("health check service ports", "KUBE-NODEPORTS"), external()]
    );
    assert_eq!(
        rules(Table::Filter, "FORWARD"),
        [balancer(), any("forwarding rules", "KUBE-FORWARD"), new("service portals", "KUBE-SERVICES"), external()]
    );
    assert_eq!(rules(Table::Filter, "OUTPUT"), [firewall(), balancer(), new("service portals", "KUBE-SERVICES")]);
    for host in ["OUTPUT", "PREROUTING"] {
        assert_eq!(rules(Table::Nat, host), [any("service portals", "KUBE-SERVICES")]);
    }
    assert_eq!(rules(Table::Nat, "POSTROUTING"), [any("postrouting rules", "KUBE-POSTROUTING")]);
}

// 10
#[rstest]
#[case(true, " --random-fully")]
#[case(false, "")]
fn marked_packets_are_masqueraded_once(#[case] random_fully: bool, #[case] suffix: &str) {
    let node = node(|node| node.features.random_fully = random_fully);
    assert_eq!(
        chain(IpFamily::V4, Table::Nat, "KUBE-POSTROUTING", &node),
        [
            "-m mark ! --mark 0x004000/0x004000 -j RETURN".to_owned(),
            "-j MARK --xor-mark 0x004000".to_owned(),
            format!(r#"-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE{suffix}"#),
        ]
    );
    assert_eq!(chain(IpFamily::V4, Table::Nat, "KUBE-MARK-MASQ", &node), ["-j MARK --or-mark 0x004000"]);
}

#[test]
fn the_mark_is_the_one_that_is_configured() {
    let node = node(|node| node.masquerade_mark = 1 << 31);
    assert_eq!(chain(IpFamily::V6, Table::Nat, "KUBE-MARK-MASQ", &node), ["-j MARK --or-mark 0x80000000"]);
    let forward = chain(IpFamily::V6, Table::Filter, "KUBE-FORWARD", &node);
    assert!(forward[1].contains("--mark 0x80000000/0x80000000"));
}

// 9
#[test]
fn invalid_packets_are_dropped_and_counted_unless_conntrack_is_liberal() {
    let rest = [
        r#"-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x004000/0x004000 -j ACCEPT"#,
        r#"-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"#,
    ];
    let forward = |counters: bool, liberal: bool| {
        let node = node(|node| {
            node.features.packet_counters = counters;
            node.features.tcp_be_liberal = liberal;
        });
        chain(IpFamily::V4, Table::Filter, "KUBE-FORWARD", &node)
    };
    let counted = "-m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP";
    assert_eq!(forward(true, false), [counted, rest[0], rest[1]]);
    assert_eq!(forward(false, false), ["-m conntrack --ctstate INVALID -j DROP", rest[0], rest[1]]);
    assert_eq!(forward(true, true), rest);
}

// 6
#[test]
fn the_localnet_rule_exists_for_ipv4_with_node_ports_on_localhost_only() {
    let rules = |family, localhost| {
        chain(family, Table::Filter, "KUBE-FIREWALL", &node(|node| node.localhost_node_ports = localhost))
    };
    assert_eq!(
        rules(IpFamily::V4, true),
        [
            r#"! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"#
        ]
    );
    assert_eq!(rules(IpFamily::V4, false), [""; 0]);
    assert_eq!(rules(IpFamily::V6, true), [""; 0]);
}

// 6 and 7
#[rstest]
#[case::all_with_localhost(IpFamily::V4, true, None, &["-m addrtype --dst-type LOCAL"])]
#[case::all_without_localhost(IpFamily::V4, false, None, &["! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL"])]
#[case::ipv6_never_on_loopback(IpFamily::V6, true, None, &["! -d ::1/128 -m addrtype --dst-type LOCAL"])]
#[case::listed_with_localhost(
    IpFamily::V4, true, Some("127.0.0.1 192.168.0.2"), &["-d 127.0.0.1/32", "-d 192.168.0.2/32"])]
#[case::listed_loopback_is_skipped_without_localhost(
    IpFamily::V4, false, Some("127.0.0.1 127.1.2.3 192.168.0.2"), &["-d 192.168.0.2/32"])]
#[case::listed_ipv6_loopback_is_skipped(
    IpFamily::V6, true, Some("::1 2001:db8::1 2001:db8::2"), &["-d 2001:db8::1/128", "-d 2001:db8::2/128"])]
#[case::secondary_addresses_only_if_listed(IpFamily::V4, true, Some("192.168.1.3"), &["-d 192.168.1.3/32"])]
#[case::none_matched(IpFamily::V4, true, Some(""), &[])]
fn node_ports_are_served_where_they_should_be(
    #[case] family: IpFamily,
    #[case] localhost: bool,
    #[case] addresses: Option<&str>,
    #[case] expected: &[&str],
) {
    let node = node(|node| {
        node.localhost_node_ports = localhost;
        if let Some(addresses) = addresses {
            let addresses = addresses.split_whitespace().map(|address| address.parse().unwrap()).collect();
            node.node_port_addresses[family] = NodePortAddresses::Only(addresses);
        }
    });
    let comment =
        r#"-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain""#;
    let found = chain(family, Table::Nat, "KUBE-SERVICES", &node);
    let expected: Vec<String> = expected
        .iter()
        .map(|matches| match matches.split_once("-m addrtype") {
            Some((destination, rest)) => format!("{destination}{comment} -m addrtype{rest} -j KUBE-NODEPORTS"),
            None => format!("{matches} {comment} -j KUBE-NODEPORTS"),
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_jump_to_node_ports_stays_behind_all_services() {
    let fragments = external_service().endpoint(A, HERE).fragments();
    for order in [[0, 1], [1, 0]] {
        let text = restore_text(IpFamily::V4, order.map(|at| &fragments[at]));
        let last = text.lines().rfind(|line| line.starts_with("-A KUBE-SERVICES ")).unwrap();
        assert!(last.ends_with("-j KUBE-NODEPORTS"), "{last}");
    }
}

#[test]
fn a_family_that_is_off_has_nothing() {
    let base = |v4, v6| IptablesBackend::default().base(&node(|node| node.families = PerFamily { v4, v6 }));
    assert_eq!(base(false, false), Fragment::default());
    let only_v6 = base(false, true);
    assert!(only_v6.shared_chains.iter().all(|chain| chain.table.family == IpFamily::V6));
    assert!(only_v6.rules.iter().all(|(key, _)| key.chain.table.family == IpFamily::V6));
    assert!(only_v6.chains.iter().all(|(chain, _)| chain.table.family == IpFamily::V6));
    assert_eq!(only_v6.chains.len(), 3);
}

fn class(claims: &Claims, table: Table, name: &str) -> ChainClass {
    claims.class(TableId { family: IpFamily::V4, table }, &ChainName::new(name).unwrap())
}

// 25
#[test]
fn what_is_written_is_claimed_with_its_class() {
    let claims = IptablesBackend::default().claims();
    let mut setup = external_service().external_local().source_range("203.0.113.0/24").endpoint(A, HERE);
    setup.service.internal_traffic_policy = crate::model::TrafficPolicy::Local;
    for fragment in setup.fragments() {
        for chain in &fragment.shared_chains {
            let ours = [ChainClass::Shared, ChainClass::Host].contains(&claims.class(chain.table, &chain.name));
            assert!(ours, "{chain}");
        }
        for (chain, _) in &fragment.chains {
            assert_eq!(claims.class(chain.table, &chain.name), ChainClass::Private, "{chain}");
        }
        for (key, _) in &fragment.rules {
            match claims.class(key.chain.table, &key.chain.name) {
                ChainClass::Shared => {}
                ChainClass::Host => assert!(claims.is_jump(key.chain.table, &key.chain.name, &key.spec), "{key}"),
                other => panic!("{key} is in a chain of class {other:?}"),
            }
        }
    }
}

#[test]
fn chains_of_others_are_not_claimed() {
    let claims = IptablesBackend::default().claims();
    for (table, name) in [
        (Table::Filter, "KUBE-KUBELET-CANARY"),
        (Table::Nat, "KUBE-KUBELET-CANARY"),
        (Table::Nat, "KUBE-IPTABLES-HINT"),
        (Table::Nat, "DOCKER"),
        (Table::Nat, "KUBE-MARK-DROP"),
        (Table::Filter, "KUBE-SVC-XPGD46QRK7WJZT7O"),
        (Table::Nat, "INPUT"),
    ] {
        assert_eq!(class(&claims, table, name), ChainClass::Foreign, "{table} {name}");
    }
    for (table, name) in [
        (Table::Nat, "KUBE-PROXY-CANARY"),
        (Table::Filter, "KUBE-PROXY-CANARY"),
        (Table::Nat, "KUBE-SEP-XPGD46QRK7WJZT7O"),
        (Table::Nat, "KUBE-MARK-MASQ"),
    ] {
        assert_eq!(class(&claims, table, name), ChainClass::Private, "{table} {name}");
    }
    assert_eq!(class(&claims, Table::Filter, "KUBE-FIREWALL"), ChainClass::Host, "what kubelet wrote there stays");
}

// 25
#[test]
fn cleanup_leaves_what_kubelet_needs() {
    let (claims, removable) = (IptablesBackend::default().claims(), IptablesBackend::default().removable());
    assert_eq!(class(&removable, Table::Filter, "KUBE-FIREWALL"), ChainClass::Foreign);
    let kept: Vec<_> = claims.jumps.iter().filter(|jump| !removable.jumps.contains(jump)).collect();
    assert_eq!(kept.len(), 3);
    assert!(
        kept.iter().all(|(_, chain, spec)| chain.as_str() == "KUBE-FIREWALL" || spec.ends_with("-j KUBE-FIREWALL"))
    );
    assert_eq!(removable.jumps.len(), 12 + 5, "those of IPVS mode, too");
    assert_eq!(removable.prefixes, claims.prefixes);
    assert_eq!(removable.chains.len() + 1, claims.chains.len());
}
