use rstest::rstest;

use super::view::bare;
use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{LocalDetector, NodeContext};
use crate::iptables::IptablesBackend;
use crate::iptables::restore_text;
use crate::iptables::tests::setup::{A, HERE, external_service};
use crate::ipvs::{IpvsBackend, IpvsSettings, Vips};
use crate::kernel::rule::Target;
use crate::kernel::{
    ChainClass, ChainKey, ChainName, Claims, ItemClaims, ItemKey, ItemState, Placement, Rule, SetKey, SetName, Table,
    TableId,
};
use crate::net::{IpFamily, PerFamily};

fn node(change: impl FnOnce(&mut NodeContext)) -> NodeContext {
    let mut node = NodeContext::default();
    change(&mut node);
    node
}

fn base(node: &NodeContext) -> Fragment {
    IpvsBackend::default().base(node)
}

fn with_routes(cidrs: &[&str]) -> IpvsBackend {
    let service_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    IpvsBackend { settings: IpvsSettings { vips: Vips::Routes { service_cidrs }, ..IpvsSettings::default() } }
}

/// The rules of one chain, without comments.
fn chain_of(fragment: &Fragment, family: IpFamily, table: Table, name: &str) -> Vec<String> {
    let text = restore_text(family, [fragment]);
    let (filter, nat) = text.split_once("*nat").unwrap();
    let text = if table == Table::Filter { filter } else { nat };
    let rules = text.lines().filter_map(|line| line.strip_prefix(&format!("-A {name} ")));
    rules
        .map(|rule| {
            let mut bare = String::new();
            Rule::parse(rule).unwrap().render_without_comment(&mut bare);
            bare
        })
        .collect()
}

fn chain(table: Table, name: &str, node: &NodeContext) -> Vec<String> {
    chain_of(&base(node), IpFamily::V4, table, name)
}

#[test]
fn the_base_is_kube_proxys_with_what_is_better() {
    let node = node(|node| node.local_detector.v4 = Some(LocalDetector::SourceCidr("10.0.0.0/8".parse().unwrap())));
    assert_eq!(restore_text(IpFamily::V4, [&base(&node)]), include_str!("base.txt"));
}

#[rstest]
#[case(IpFamily::V4)]
#[case(IpFamily::V6)]
fn jumps_stand_in_the_order_in_which_kube_proxy_leaves_them(#[case] family: IpFamily) {
    let text = restore_text(family, [&base(&NodeContext::default())]);
    let rules = |table: &str, host: &str| -> Vec<String> {
        let table = text.split('*').find(|part| part.starts_with(table)).unwrap();
        table.lines().filter_map(|line| Some(line.strip_prefix(&format!("-A {host} "))?.to_owned())).collect()
    };
    let to = |comment: &str, chain: &str| format!(r#"-m comment --comment "{comment}" -j {chain}"#);
    let (access, firewall) = ("kubernetes ipvs access filter", "kube-proxy firewall rules");
    assert_eq!(
        rules("filter", "INPUT"),
        [
            to(access, "KUBE-IPVS-FILTER"),
            to(firewall, "KUBE-PROXY-FIREWALL"),
            to("kubernetes health check rules", "KUBE-NODE-PORT")
        ]
    );
    assert_eq!(
        rules("filter", "FORWARD"),
        [to(firewall, "KUBE-PROXY-FIREWALL"), to("kubernetes forwarding rules", "KUBE-FORWARD")]
    );
    assert_eq!(rules("filter", "OUTPUT"), [to(access, "KUBE-IPVS-OUT-FILTER")]);
    for host in ["OUTPUT", "PREROUTING"] {
        assert_eq!(rules("nat", host), [to("kubernetes service portals", "KUBE-SERVICES")]);
    }
    assert_eq!(rules("nat", "POSTROUTING"), [to("kubernetes postrouting rules", "KUBE-POSTROUTING")]);
    assert_eq!(base(&NodeContext::default()).rules.len(), 2 * 9);
}

#[test]
fn every_set_exists_and_every_set_in_a_rule_is_one_of_its_family() {
    let base = base(&bare().node);
    let sets: Vec<SetKey> = base
        .items
        .iter()
        .filter_map(|(key, state)| match (key, state) {
            (ItemKey::Set(set), ItemState::Capacity(65536)) => Some(*set),
            (ItemKey::Link, ItemState::Present) => None,
            other => panic!("{other:?}"),
        })
        .collect();
    let all = IpFamily::ALL.into_iter().flat_map(|family| SetName::ALL.map(|name| SetKey { family, name }));
    assert_eq!(sets, all.collect::<Vec<_>>());
    let mut used = std::collections::BTreeSet::new();
    for (chain, body) in &base.chains {
        for line in body.text.lines() {
            let parsed = Rule::parse_with_order(line).unwrap();
            assert!(parsed.canonical, "{line}");
            if let Some(crate::kernel::rule::Not::Is(found)) = parsed.rule.set {
                assert_eq!(found.set.family, chain.table.family);
                used.insert(found.set);
            }
        }
    }
    assert_eq!(used.into_iter().collect::<Vec<_>>(), sets, "each set serves some rule");
}

/// With the rule for cluster IPs, and the one that keeps strangers from endpoints of other nodes.
#[rstest]
#[case::by_source(Some(LocalDetector::SourceCidr("10.1.2.3/8".parse().unwrap())), "! -s 10.0.0.0/8 ", "", true)]
#[case::by_bridge(Some(LocalDetector::Bridge("cni0".into())), "! -i cni0 ", "", true)]
#[case::by_prefix(Some(LocalDetector::InterfacePrefix("veth".into())), "! -i veth+ ", "", true)]
#[case::everything(Some(LocalDetector::SourceCidr("0.0.0.0/0".parse().unwrap())), "", " -m addrtype --src-type LOCAL", false)]
#[case::none(None, "", " -m addrtype --src-type LOCAL", false)]
fn traffic_that_is_not_from_this_nodes_pods_is_told(
    #[case] detector: Option<LocalDetector>,
    #[case] front: &str,
    #[case] back: &str,
    #[case] drops: bool,
) {
    let node = node(|node| node.local_detector.v4 = detector);
    let services = chain(Table::Nat, "KUBE-SERVICES", &node);
    assert_eq!(services[2], format!("{front}-m set --match-set KUBE-CLUSTER-IP dst,dst{back} -j KUBE-MARK-MASQ"));
    let filter = chain(Table::Filter, "KUBE-IPVS-FILTER", &node);
    let rule = format!("{front}-m conntrack --ctstate NEW -m set --match-set KUBE-NO-LOCAL-ENDPOINTS dst,dst -j DROP");
    assert_eq!(filter[0] == rule, drops, "{filter:?}");
    assert_eq!(filter.len(), 6 + usize::from(drops));
}

#[test]
fn everything_to_cluster_ips_is_masqueraded_if_asked_for() {
    let node = node(|node| {
        node.masquerade_all = true;
        node.local_detector.v4 = Some(LocalDetector::Bridge("cni0".into()));
    });
    let rule = "-m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ";
    assert_eq!(chain(Table::Nat, "KUBE-SERVICES", &node)[2], rule);
}

#[rstest]
#[case(true, " --random-fully")]
#[case(false, "")]
fn hairpins_come_before_the_mark(#[case] random_fully: bool, #[case] suffix: &str) {
    let node = node(|node| {
        node.features.random_fully = random_fully;
        node.masquerade_mark = 1 << 31;
    });
    assert_eq!(
        chain(Table::Nat, "KUBE-POSTROUTING", &node),
        [
            "-m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE".to_owned(),
            "-m mark ! --mark 0x80000000/0x80000000 -j RETURN".to_owned(),
            "-j MARK --xor-mark 0x80000000".to_owned(),
            format!("-j MASQUERADE{suffix}"),
        ]
    );
    assert_eq!(chain(Table::Nat, "KUBE-MARK-MASQ", &node), ["-j MARK --or-mark 0x80000000"]);
}

#[test]
fn loopback_sources_are_left_alone_first_of_all() {
    for (family, rule) in [(IpFamily::V4, "-s 127.0.0.0/8 -j RETURN"), (IpFamily::V6, "-s ::1/128 -j RETURN")] {
        let rules = chain_of(&base(&NodeContext::default()), family, Table::Nat, "KUBE-SERVICES");
        assert_eq!(rules[0], rule);
        assert!(rules.last().unwrap().ends_with("-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT"));
    }
}

#[test]
fn unused_cluster_ips_are_closed_where_routes_make_them_local() {
    let node = node(|node| {
        node.node_ips.v4 = Some("192.168.0.2".parse().unwrap());
        node.node_addresses.v4 = vec!["192.168.0.2".parse().unwrap()];
        // The kernel takes no route from an address that the node does not have, as behind the address translation of a cloud.
        node.node_ips.v6 = Some("fd00:9::2".parse().unwrap());
    });
    let backend = with_routes(&["10.96.0.1/12", "10.96.0.0/12", "fd00::/108", "0.0.0.0/0"]);
    let out = backend.base(&node);
    let routes: Vec<String> = out
        .items
        .iter()
        .filter(|(key, _)| matches!(key, ItemKey::Route(_)))
        .map(|(key, state)| format!("{key}{state}"))
        .collect();
    assert_eq!(routes, ["local route 10.96.0.0/12 from 192.168.0.2", "local route fd00::/108"]);
    for (family, cidr, ips) in [(IpFamily::V4, "10.96.0.0/12", "IPVS-IPS"), (IpFamily::V6, "fd00::/108", "6-IPVS-IPS")]
    {
        let rules = chain_of(&out, family, Table::Filter, "KUBE-IPVS-FILTER");
        assert_eq!(
            rules[rules.len() - 2..],
            [
                format!("-m conntrack --ctstate NEW -m set --match-set KUBE-{ips} dst -j REJECT"),
                format!("-d {cidr} -m conntrack --ctstate NEW -j REJECT")
            ]
        );
    }
}

#[test]
fn a_family_that_is_off_has_nothing() {
    let base = |v4, v6| base(&node(|node| node.families = PerFamily { v4, v6 }));
    let link = vec![(ItemKey::Link, ItemState::Present)];
    assert_eq!(base(false, false), Fragment { items: link, ..Fragment::default() });
    let only_v6 = base(false, true);
    assert!(only_v6.shared_chains.iter().all(|chain| chain.table.family == IpFamily::V6));
    assert!(only_v6.rules.iter().all(|(key, _)| key.chain.table.family == IpFamily::V6));
    assert!(only_v6.chains.iter().all(|(chain, _)| chain.table.family == IpFamily::V6));
    assert!(only_v6.items.iter().all(|(key, _)| key.family().is_none_or(|of| of == IpFamily::V6)));
    assert_eq!((only_v6.shared_chains.len(), only_v6.chains.len(), only_v6.items.len()), (1, 10, 19));
}

#[test]
fn a_chain_comes_after_those_that_it_jumps_to() {
    let base = base(&NodeContext::default());
    let mut known: Vec<ChainKey> = base.shared_chains.clone();
    for (chain, body) in &base.chains {
        for line in body.text.lines() {
            if let Some(Target::Jump(name)) = Rule::parse(line).unwrap().target {
                assert!(known.contains(&ChainKey { name, ..*chain }), "{chain} jumps to {name}");
            }
        }
        known.push(*chain);
    }
    for (key, placement) in &base.rules {
        let Some(Target::Jump(name)) = Rule::parse(&key.spec).unwrap().target else { panic!("{key}") };
        assert!(known.contains(&ChainKey { name, ..key.chain }), "{key}");
        assert_eq!(*placement, Placement::Head);
    }
}

fn class(claims: &Claims, table: Table, name: &str) -> ChainClass {
    claims.class(TableId { family: IpFamily::V4, table }, &ChainName::new(name).unwrap())
}

/// Everything that a mode may write, as fragments.
fn of_both_modes() -> [(Fragment, Claims); 2] {
    let mut setup = external_service().external_local().source_range("203.0.113.0/24").endpoint(A, HERE);
    setup.node.localhost_node_ports = false;
    let mut ipvs = IpvsBackend::default().base(&setup.node);
    for plan in setup.plans() {
        IpvsBackend::default().lower(&plan, &setup.node, RuleComments::Keep, &mut ipvs);
    }
    let [mut base, service] = setup.fragments();
    base.shared_chains.extend(service.shared_chains);
    base.chains.extend(service.chains);
    base.rules.extend(service.rules);
    base.shared_chains.retain(|chain| chain.name.as_str() != "KUBE-FIREWALL");
    base.rules.retain(|(key, _)| !key.spec.contains("KUBE-FIREWALL"));
    [(base, IptablesBackend::default().claims()), (ipvs, IpvsBackend::default().claims())]
}

#[test]
fn what_either_mode_writes_is_claimed_by_both() {
    let modes = of_both_modes();
    for (own, (fragment, _)) in modes.iter().enumerate() {
        for (at, (_, claims)) in modes.iter().enumerate() {
            for chain in &fragment.shared_chains {
                let class = claims.class(chain.table, &chain.name);
                assert!(class == ChainClass::Shared || (at != own && class == ChainClass::Private), "{chain}");
            }
            for (chain, _) in &fragment.chains {
                let class = claims.class(chain.table, &chain.name);
                assert!(class == ChainClass::Private || (at != own && class == ChainClass::Shared), "{chain}");
            }
            for (key, _) in &fragment.rules {
                match claims.class(key.chain.table, &key.chain.name) {
                    ChainClass::Shared | ChainClass::Private => {}
                    ChainClass::Host => {
                        assert!(claims.is_jump(key.chain.table, &key.chain.name, &key.spec), "{key}");
                    }
                    ChainClass::Foreign => panic!("{key} is in a foreign chain"),
                }
            }
        }
    }
}

#[test]
fn each_mode_has_its_classes() {
    let ipvs = IpvsBackend::default().claims();
    let iptables = IptablesBackend::default().claims();
    for (table, name, in_ipvs, in_iptables) in [
        (Table::Nat, "KUBE-SERVICES", ChainClass::Private, ChainClass::Shared),
        (Table::Filter, "KUBE-PROXY-FIREWALL", ChainClass::Private, ChainClass::Shared),
        (Table::Filter, "KUBE-SERVICES", ChainClass::Shared, ChainClass::Shared),
        (Table::Nat, "KUBE-NODEPORTS", ChainClass::Shared, ChainClass::Shared),
        (Table::Filter, "KUBE-EXTERNAL-SERVICES", ChainClass::Shared, ChainClass::Shared),
        (Table::Nat, "KUBE-SVC-XPGD46QRK7WJZT7O", ChainClass::Private, ChainClass::Private),
        (Table::Nat, "KUBE-PROXY-CANARY", ChainClass::Private, ChainClass::Private),
        (Table::Nat, "KUBE-NODE-PORT", ChainClass::Private, ChainClass::Private),
        (Table::Filter, "KUBE-NODE-PORT", ChainClass::Private, ChainClass::Private),
        (Table::Nat, "KUBE-LOAD-BALANCER", ChainClass::Private, ChainClass::Private),
        (Table::Filter, "KUBE-IPVS-OUT-FILTER", ChainClass::Shared, ChainClass::Shared),
        (Table::Filter, "KUBE-FIREWALL", ChainClass::Foreign, ChainClass::Host),
        (Table::Filter, "KUBE-KUBELET-CANARY", ChainClass::Foreign, ChainClass::Foreign),
        (Table::Nat, "INPUT", ChainClass::Foreign, ChainClass::Foreign),
    ] {
        assert_eq!(class(&ipvs, table, name), in_ipvs, "{table} {name}");
        assert_eq!(class(&iptables, table, name), in_iptables, "{table} {name}");
    }
}

#[test]
fn only_ipvs_mode_serves_with_items_and_cleanup_loads_nothing() {
    let excluded = vec!["192.0.2.0/24".parse().unwrap()];
    let settings = IpvsSettings { excluded: excluded.clone(), ..IpvsSettings::default() };
    let backend = IpvsBackend { settings };
    assert_eq!(backend.claims().items, Some(ItemClaims { serving: true, excluded: excluded.clone() }));
    assert_eq!(backend.removable().items, Some(ItemClaims { serving: false, excluded }));
    assert_eq!(IptablesBackend::default().claims().items, Some(ItemClaims::default()));
    assert_eq!(IptablesBackend::default().removable().items, Some(ItemClaims::default()));
    let (claims, removable) = (backend.claims(), backend.removable());
    assert_eq!((claims.chains, claims.prefixes, claims.jumps), (removable.chains, removable.prefixes, removable.jumps));
}
