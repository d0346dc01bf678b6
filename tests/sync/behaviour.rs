//! What the engine promises besides ending up right: when it writes, what it repairs, what it reports.

use std::time::Duration;

use portolan::backend::Backend;
use portolan::iptables::{IptablesBackend, names};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::Fault;
use portolan::kernel::{ChainClass, ChainKey, ChainName, ErrorKind, Flow, Table, TableId};
use portolan::model::Change;
use portolan::net::{IpFamily, Protocol};
use portolan::sync::clock::Clock;
use portolan::sync::{Options, SyncKind, TrafficPolicyLabel};

use crate::cluster::{World, local_external, service_name, udp, udp_slice};
use crate::rig::{Mode, Rig, Text, fake, faulty_in, from_scratch, operations};

fn web() -> World {
    World::default().service("web", 1, |_| {}).slice("web", "a", &["10.244.0.2", "10.244.1.2"], |_| {})
}

fn services_chain() -> ChainKey {
    ChainKey::new(IpFamily::V4, Table::Nat, names::SERVICES)
}

#[test]
fn rules_that_stand_there_more_than_once_are_found_and_put_in_their_place_once() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    let wanted = rig.text();
    let host = |table, name| ChainKey::new(IpFamily::V4, table, name);
    let chains = [host(Table::Filter, names::HOST_FORWARD), host(Table::Nat, names::HOST_PREROUTING), services_chain()];
    for chain in chains {
        // As `iptables-save | iptables-restore --noflush` does it, behind a rule of somebody else.
        let rules = rig.engine.kernel_mut().chain_mut(&chain);
        let copies = rules.clone();
        if chain != services_chain() {
            rules.push("-s 198.51.100.7/32 -j RETURN".into());
        }
        rules.extend(copies);
    }
    rig.clock.advance(Options::default().full_interval);
    let report = rig.sync();
    assert!(report.success(), "{:?}", report.failed);
    assert!(report.drift.values().sum::<u64>() >= 3, "{:?}", report.drift);
    for chain in &chains[..2] {
        let rules = rig.engine.kernel_mut().chain_mut(chain);
        assert_eq!(rules.pop().unwrap(), "-s 198.51.100.7/32 -j RETURN", "ours come first");
    }
    assert_eq!(rig.text(), wanted);
    // What was duplicated goes as a whole when it is not wanted any more.
    let chain = rig.engine.kernel_mut().chain_mut(&services_chain());
    chain.extend(chain.clone());
    rig.engine.request_full();
    rig.apply(web().changes_to(&World::default()));
    assert!(rig.sync().success());
    assert_eq!(rig.text(), from_scratch(&World::default()));
}

#[test]
fn a_chain_that_something_foreign_leads_to_keeps_neither_rules_nor_other_chains() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    let nat = |name| ChainKey::new(IpFamily::V4, Table::Nat, ChainName::new(name).unwrap());
    let dispatched = |rig: &mut Rig<FakeKernel>| -> Vec<String> {
        let rules = rig.engine.kernel_mut().chain_mut(&services_chain());
        rules.iter().filter_map(|rule| Some(rule.split_once("-j KUBE-SVC-")?.1.to_owned())).collect()
    };
    let [service] = dispatched(&mut rig).try_into().unwrap();
    let kernel = rig.engine.kernel_mut();
    for stray in ["KUBE-SVC-STALE1", "KUBE-SEP-STALE2", "KUBE-SEP-STALE3"] {
        kernel.chain_mut(&nat(stray));
    }
    *kernel.chain_mut(&nat("MINE")) = vec![format!("-j KUBE-SVC-{service}"), "-j KUBE-SEP-STALE2".into()];
    rig.apply(web().changes_to(&World::default()));
    rig.engine.request_full();
    let report = rig.sync();
    assert!(dispatched(&mut rig).is_empty(), "nothing is sent to a Service that is gone");
    assert!(report.healthy() && report.failed.len() == 2, "{:?}", report.failed);
    let left = |rig: &Rig<FakeKernel>| -> Vec<String> {
        let chains = rig.engine.kernel().tables[&services_chain().table].keys().map(ToString::to_string);
        chains.filter(|name| name.starts_with("KUBE-SVC-") || name.starts_with("KUBE-SEP-STALE")).collect()
    };
    assert_eq!(left(&rig), ["KUBE-SEP-STALE2".to_owned(), format!("KUBE-SVC-{service}")]);
    rig.engine.kernel_mut().chain_mut(&nat("MINE")).clear();
    rig.clock.advance(Options::default().longest_retry);
    assert!(rig.sync().success());
    assert!(left(&rig).is_empty(), "{:?}", left(&rig));
}

#[test]
fn nothing_is_written_before_both_lists_are_complete() {
    let mut rig = fake();
    let mut changes = web().initial();
    let slices_complete = changes.pop().unwrap();
    rig.apply(changes);
    assert!(rig.engine.due().is_none());
    assert!(rig.engine.sync().is_none());
    assert_eq!((rig.engine.kernel().dumps, rig.engine.kernel().transactions), (0, 0));
    rig.apply([slices_complete]);
    assert!(rig.engine.due().is_some());
    assert!(rig.sync().success());
}

#[test]
fn a_complete_list_removes_what_vanished_unseen() {
    let mut rig = fake();
    rig.apply(web().service("api", 2, |_| {}).initial());
    rig.sync();
    rig.apply(web().complete());
    rig.sync();
    assert_eq!(rig.text(), from_scratch(&web()));
}

#[test]
fn the_audit_finds_and_repairs_what_foreign_hands_did_and_leaves_theirs_alone() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    let wanted = rig.text();
    let kernel = rig.engine.kernel_mut();
    kernel.chain_mut(&services_chain()).clear();
    let host = ChainKey::new(IpFamily::V4, Table::Filter, names::HOST_FORWARD);
    kernel.chain_mut(&host).insert(0, "-s 198.51.100.7/32 -j DROP".into());
    let stale = ChainKey::new(IpFamily::V6, Table::Nat, ChainName::fixed("KUBE-SVC-STALE"));
    kernel.chain_mut(&stale).push("-j RETURN".into());
    rig.engine.request_full();
    let report = rig.sync();
    assert_eq!(report.kind, SyncKind::Full);
    assert_eq!(report.drift.values().sum::<u64>(), 3, "two rules and a chain: {:?}", report.drift);
    assert!(rig.engine.kernel().chain(&host).unwrap().contains(&"-s 198.51.100.7/32 -j DROP".to_owned()));
    rig.engine.kernel_mut().chain_mut(&host).remove(0);
    assert_eq!(rig.text(), wanted);
}

#[test]
fn an_operation_that_meets_a_changed_kernel_reads_it_again_in_the_same_sync() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    // Somebody flushed everything; then the Service goes away, whose rule cannot be found.
    let fresh = FakeKernel::default();
    rig.engine.kernel_mut().tables = fresh.tables;
    let empty = World::default();
    rig.apply(web().changes_to(&empty));
    let report = rig.sync();
    assert!(report.success(), "{:?}", report.failed);
    assert_eq!(rig.text(), from_scratch(&empty));
}

#[test]
fn the_audit_comes_on_its_period() {
    let mut rig = fake();
    rig.apply(web().initial());
    assert_eq!(rig.sync().kind, SyncKind::Full);
    assert_eq!(rig.sync().kind, SyncKind::Partial);
    let due = rig.engine.due().unwrap();
    assert_eq!(due.duration_since(rig.clock.now()), Options::default().full_interval);
    rig.clock.advance(Options::default().full_interval);
    assert_eq!(rig.sync().kind, SyncKind::Full);
}

#[test]
fn a_trigger_time_is_reported_when_the_kernel_has_the_change_and_not_before() {
    let mut rig = faulty_in(
        Mode::Iptables,
        Default::default(),
        Fault::Operation(usize::MAX, ErrorKind::Transient),
        Options::default(),
    );
    rig.apply(World::default().service("web", 1, |_| {}).initial());
    rig.settle();
    let mut rig = faulty_in(
        Mode::Iptables,
        rig.engine.kernel().inner.clone(),
        Fault::Operation(0, ErrorKind::Transient),
        Options::default(),
    );
    let at = rig.clock.wall() + Duration::from_secs(1);
    rig.clock.advance(Duration::from_secs(3));
    rig.apply(World::default().service("web", 1, |_| {}).initial());
    rig.apply(
        World::default()
            .slice("web", "a", &["10.244.0.2"], |slice| slice.triggered_at = Some(at))
            .slices
            .into_iter()
            .map(|(name, slice)| Change::Slice(name, Some(slice))),
    );
    let failed = rig.sync();
    assert!(!failed.success());
    assert_eq!(failed.programmed, []);
    rig.clock.advance(Duration::from_secs(5));
    let report = rig.sync();
    assert!(report.success());
    assert_eq!(report.programmed, [(service_name("web"), IpFamily::V4, Duration::from_secs(7))]);
}

#[test]
fn ports_without_local_endpoints_are_counted() {
    let mut rig = fake();
    rig.apply(World::default().service("web", 1, local_external).slice("web", "a", &["10.244.1.2"], |_| {}).initial());
    let counts = |report: &portolan::sync::SyncReport| report.no_local_endpoints.v4[&TrafficPolicyLabel::External];
    assert_eq!(counts(&rig.sync()), 1);
    rig.apply(web().changes_to(&World::default().service("web", 1, local_external).slice(
        "web",
        "a",
        &["10.244.0.2"],
        |_| {},
    )));
    assert_eq!(counts(&rig.sync()), 0);
}

#[test]
fn a_health_check_port_is_offered_once_its_service_is_programmed() {
    let mut rig =
        faulty_in(Mode::Iptables, Default::default(), Fault::Operation(0, ErrorKind::Transient), Options::default());
    let world =
        World::default().service("web", 1, local_external).slice("web", "a", &["10.244.0.2", "10.244.1.2"], |_| {});
    rig.apply(world.initial());
    rig.sync();
    assert!(rig.engine.health_checks().is_empty());
    rig.settle();
    let check = &rig.engine.health_checks()[&service_name("web")];
    assert_eq!((check.port.get(), check.local_endpoints.v4, check.local_endpoints.v6), (31000, Some(1), Some(0)));
    rig.apply([Change::Service(service_name("web"), None)]);
    rig.settle();
    assert!(rig.engine.health_checks().is_empty());
}

pub(crate) fn dns(endpoints: &[&str]) -> World {
    World::default().service("dns", 3, udp).slice("dns", "a", endpoints, udp_slice)
}

pub(crate) fn flow(answered_by: &str) -> Flow {
    Flow {
        protocol: Protocol::Udp,
        original_source: "10.244.0.77:4000".parse().unwrap(),
        original_destination: "10.96.0.3:53".parse().unwrap(),
        reply_source: answered_by.parse().unwrap(),
        reply_destination: "10.244.0.77:4000".parse().unwrap(),
        zone: 0,
    }
}

#[test]
fn udp_flows_to_a_replaced_endpoint_are_deleted_after_the_rules_changed() {
    let mut rig = fake();
    rig.apply(dns(&["10.244.0.2"]).initial());
    rig.sync();
    rig.engine.kernel_mut().flows = vec![flow("10.244.0.2:53")];
    rig.apply(dns(&["10.244.0.2"]).changes_to(&dns(&["10.244.0.3"])));
    let report = rig.sync();
    assert_eq!(report.flow_cleanup.v4.as_ref().map(|cleanup| cleanup.deleted), Some(1));
    assert!(rig.engine.kernel().flows.is_empty());
}

#[test]
fn a_failed_sync_does_not_lose_a_pending_clean_up_of_flows() {
    let start = |fault| {
        let mut first = fake();
        first.apply(dns(&["10.244.0.2"]).initial());
        first.sync();
        let mut rig = faulty_in(Mode::Iptables, first.engine.kernel().clone(), fault, Options::default());
        rig.apply(dns(&["10.244.0.2"]).initial());
        rig.sync();
        rig.engine.kernel_mut().inner.flows = vec![flow("10.244.0.2:53")];
        rig.apply(dns(&["10.244.0.2"]).changes_to(&dns(&["10.244.0.3"])));
        rig
    };
    let mut rules_fail = start(Fault::Operation(0, ErrorKind::Transient));
    assert!(!rules_fail.sync().success());
    assert_eq!(rules_fail.engine.kernel().inner.flows.len(), 1, "not before the rules are in place");
    rules_fail.settle();
    assert!(rules_fail.engine.kernel().inner.flows.is_empty());

    let mut query_fails = start(Fault::Flows(4, ErrorKind::Transient));
    let report = query_fails.sync();
    assert!(report.flow_cleanup.v4.unwrap().error.is_some());
    assert!(query_fails.engine.due().unwrap() <= query_fails.clock.now() + Duration::from_secs(1));
    query_fails.clock.advance(Duration::from_secs(1));
    query_fails.sync();
    assert!(query_fails.engine.kernel().inner.flows.is_empty());
}

#[test]
fn services_wait_while_the_base_fails_and_follow_it() {
    let mut rig =
        faulty_in(Mode::Iptables, Default::default(), Fault::Operation(0, ErrorKind::Denied), Options::default());
    rig.apply(web().initial());
    let report = rig.sync();
    assert!(report.failed.iter().any(|failed| failed.service.is_none()));
    assert!(report.failed.iter().any(|failed| failed.service == Some(service_name("web"))));
    rig.settle();
    assert_eq!(rig.text(), from_scratch(&web()));
    let report = rig.sync();
    assert_eq!(operations(&report), []);
}

/// Rules of ours that the fake kernel holds in a table, counted the hard way.
fn rules_in(rig: &Rig<FakeKernel>, table: TableId) -> u64 {
    let claims = IptablesBackend::default().claims();
    let chains = rig.engine.kernel().tables[&table].iter();
    let ours = chains.map(|(name, rules)| match claims.class(table, name) {
        ChainClass::Private | ChainClass::Shared => rules.len(),
        ChainClass::Host => rules.iter().filter(|spec| claims.is_jump(table, name, spec)).count(),
        ChainClass::Foreign => 0,
    });
    ours.sum::<usize>() as u64
}

fn all_text(rig: &Rig<FakeKernel>, table: TableId) -> String {
    rig.engine.kernel().tables[&table].values().flatten().cloned().collect::<Vec<_>>().join("\n")
}

const NAT: TableId = TableId { family: IpFamily::V4, table: Table::Nat };
const FILTER: TableId = TableId { family: IpFamily::V4, table: Table::Filter };

#[test]
fn each_of_a_row_of_syncs_writes_what_changed_and_counts_it_right() {
    let service = |world: World| world.service("web", 1, |service| service.cluster_ip_v6 = None);
    let with = |addresses: &[&str]| service(World::default()).slice("web", "a", addresses, |_| {});
    let steps = [
        ("a service before its endpoints is rejected", service(World::default()), vec![("insert_rule", 1)]),
        (
            "its first endpoint",
            with(&["10.244.0.2"]),
            vec![("delete_rule", 1), ("insert_rule", 1), ("replace_chain", 2)],
        ),
        ("a second endpoint", with(&["10.244.0.2", "10.244.0.3"]), vec![("replace_chain", 2)]),
        ("an endpoint replaced", with(&["10.244.0.2", "10.244.0.4"]), vec![("delete_chain", 1), ("replace_chain", 2)]),
        ("nothing", with(&["10.244.0.2", "10.244.0.4"]), vec![]),
        ("an endpoint less", with(&["10.244.0.4"]), vec![("delete_chain", 1), ("replace_chain", 1)]),
        ("the service gone", World::default(), vec![("delete_chain", 2), ("delete_rule", 1)]),
    ];
    let mut rig = fake();
    rig.apply(World::default().initial());
    rig.sync();
    let mut now = World::default();
    for (what, world, wanted) in steps {
        rig.apply(now.changes_to(&world));
        now = world;
        let before: u64 = [NAT, FILTER].iter().map(|table| rules_in(&rig, *table)).sum();
        let report = rig.sync();
        assert_eq!(operations(&report), wanted, "{what}");
        for table in [NAT, FILTER] {
            assert_eq!(report.rules[&table].total, rules_in(&rig, table), "{what}: {table}");
        }
        if what == "a second endpoint" {
            assert!(all_text(&rig, NAT).contains("--probability 0.5000000000"));
            assert_eq!(report.rules[&NAT].written, 5, "the dispatch chain and the new endpoint's");
        }
        assert!(
            wanted.is_empty() == (before == rules_in(&rig, NAT) + rules_in(&rig, FILTER)) || what.contains("replaced")
        );
    }
}

#[test]
fn a_failed_partial_sync_reads_the_tables_and_mends_them() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    // A foreign hand removed a chain that every new endpoint chain jumps to.
    let marks = ChainKey::new(IpFamily::V4, Table::Nat, names::MARK_MASQ);
    let tables = &mut rig.engine.kernel_mut().tables;
    tables.get_mut(&NAT).unwrap().remove(&marks.name);
    let world = web().service("api", 2, |_| {}).slice("api", "a", &["10.244.0.7"], |_| {});
    rig.apply(web().changes_to(&world));
    let report = rig.sync();
    assert_eq!((report.kind, report.failed_restores.v4), (SyncKind::Partial, 1));
    assert!(report.success());
    assert_eq!(report.drift[&portolan::kernel::Area::Table(NAT)], 1);
    assert_eq!(rig.text(), from_scratch(&world));
}

/// Services with a hundred endpoints each.
fn hundreds(count: u16) -> World {
    (0..count).fold(World::default(), |world, at| {
        let addresses: Vec<String> = (1..=100).map(|host| format!("10.244.{}.{host}", at + 1)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let name = format!("s{at}");
        world.service(&name, at, |service| service.cluster_ip_v6 = None).slice(&name, "a", &addresses, |_| {})
    })
}

#[test]
fn above_a_thousand_endpoints_new_chains_have_no_comments_and_old_ones_are_left_alone() {
    let mut rig = fake();
    rig.apply(hundreds(10).initial());
    rig.sync();
    assert!(all_text(&rig, NAT).contains("ns/s3:http -> 10.244.4.1:8080"));

    let eleven = hundreds(11);
    rig.apply(hundreds(10).changes_to(&eleven));
    let report = rig.sync();
    assert_eq!(operations(&report), [("insert_rule", 1), ("replace_chain", 101)]);
    let text = all_text(&rig, NAT);
    assert!(!text.contains("ns/s10:http -> "));
    assert!(text.contains("ns/s10:http cluster IP"), "rules of the top-level chains keep theirs");

    // Comments are for people: no chain is rewritten for the sake of them, on the hour or when asked.
    rig.engine.request_full();
    assert_eq!(operations(&rig.sync()), []);
    // What goes is removed at once, in the same transaction.
    rig.apply(eleven.changes_to(&hundreds(10)));
    assert_eq!(operations(&rig.sync()), [("delete_chain", 101), ("delete_rule", 1)]);
    let mut small = fake();
    small.apply(hundreds(10).initial());
    small.sync();
    assert_eq!(rig.text(), small.text());
}

#[test]
fn a_health_check_port_comes_and_goes_with_the_type_of_the_service() {
    let cluster_ip = web();
    let balancer =
        World::default().service("web", 1, local_external).slice("web", "a", &["10.244.0.2", "10.244.1.2"], |_| {});
    let mut rig = fake();
    rig.apply(cluster_ip.initial());
    rig.sync();
    assert!(rig.engine.health_checks().is_empty());
    rig.apply(cluster_ip.changes_to(&balancer));
    rig.sync();
    assert!(rig.engine.health_checks().contains_key(&service_name("web")));
    rig.apply(balancer.changes_to(&cluster_ip));
    rig.sync();
    assert!(rig.engine.health_checks().is_empty());
}

#[test]
fn one_service_that_the_kernel_refuses_does_not_make_the_node_unhealthy() {
    let fault = Fault::Operation(0, ErrorKind::Transient);
    let mut rig = faulty_in(Mode::Iptables, Default::default(), fault, Options::default());
    rig.apply(web().initial());
    assert!(!rig.sync().healthy(), "nothing could be programmed");
    assert!(rig.settle().healthy());
    let (mut picky, _) = crate::faults::picky(true);
    let report = picky.sync();
    assert!(!report.success() && report.healthy());
}

#[test]
fn a_foreign_change_is_noticed_without_reading_the_tables_and_repaired() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    let dumps = rig.engine.kernel().dumps;
    rig.clock.advance(Options::default().check_interval);
    rig.engine.check();
    assert!(!rig.engine.has_work(), "nothing happened");
    assert_eq!(rig.engine.kernel().dumps, dumps);

    rig.engine.kernel_mut().chain_mut(&services_chain()).clear();
    assert!(rig.engine.check_due().unwrap() <= rig.clock.now() + Options::default().check_interval);
    rig.engine.check();
    assert!(rig.engine.has_work());
    assert_eq!(rig.sync().drift[&portolan::kernel::Area::Table(NAT)], 2);
    assert_eq!(rig.text(), from_scratch(&web()));
}

#[test]
fn a_change_of_ours_does_not_hide_a_foreign_one() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    rig.engine.kernel_mut().chain_mut(&services_chain()).clear();
    let world = web().service("api", 2, |_| {});
    rig.apply(web().changes_to(&world));
    assert_eq!(rig.sync().kind, SyncKind::Full);
    assert_eq!(rig.text(), from_scratch(&world));
}

#[test]
fn other_programs_that_change_rules_all_the_time_cause_few_audits() {
    let mut rig = fake();
    rig.apply(web().initial());
    rig.sync();
    let foreign = ChainKey::new(IpFamily::V4, Table::Filter, names::HOST_FORWARD);
    let mut audits = 0;
    for at in 0..60 {
        rig.engine.kernel_mut().chain_mut(&foreign).push(format!("-s 192.0.2.{at}/32 -j DROP"));
        rig.clock.advance(Options::default().check_interval);
        rig.engine.check();
        if rig.engine.has_work() {
            assert_eq!(rig.sync().kind, SyncKind::Full);
            audits += 1;
        }
    }
    assert!((2..=7).contains(&audits), "{audits} audits in half an hour");
}
