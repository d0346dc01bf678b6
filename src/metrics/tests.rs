//! The exposition text, since that is what others read.

use std::collections::BTreeMap;

use super::*;
use crate::kernel::{Area, ErrorKind, KernelError, Table, TableId};
use crate::model::ServiceName;
use crate::sync::{FailedOwner, FlowCleanup, Pending, SyncKind, TableRules, TrafficPolicyLabel};

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn report(kind: SyncKind) -> SyncReport {
    SyncReport {
        kind,
        duration: Duration::from_millis(3),
        dump_duration: Duration::ZERO,
        compute_duration: Duration::from_millis(1),
        apply_duration: Duration::from_millis(2),
        compiled_services: 1,
        operations: BTreeMap::new(),
        transactions: 1,
        failed_restores: PerFamily::default(),
        drift: BTreeMap::new(),
        inconsistent_services: 0,
        failed_dumps: Vec::new(),
        unread_leftovers: Vec::new(),
        failed: Vec::new(),
        programmed: Vec::new(),
        rules: BTreeMap::new(),
        no_local_endpoints: PerFamily::default(),
        flow_cleanup: PerFamily::default(),
        items: BTreeMap::new(),
        draining: 0,
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Asserts that a line stands in the text.
fn shows(text: &str, line: &str) {
    let name = line.split(['{', ' ']).next().unwrap();
    let near: Vec<&str> = text.lines().filter(|other| other.starts_with(name)).collect();
    assert!(near.contains(&line), "{line}\nis not among\n{}", near.join("\n"));
}

#[test]
fn all_metrics_have_kube_proxys_names_types_and_labels_from_the_start() {
    let metrics = Metrics::new(BOTH).unwrap();
    metrics
        .serve_packet_counters(|| PacketCounts { invalid_dropped: Some(3), localhost_node_ports_accepted: Some(0) })
        .unwrap();
    let text = metrics.render();
    for (name, kind, series) in [
        ("sync_proxy_rules_duration_seconds", "histogram", "_count{ip_family=\"IPv6\"} 0"),
        ("sync_full_proxy_rules_duration_seconds", "histogram", "_count{ip_family=\"IPv4\"} 0"),
        ("sync_partial_proxy_rules_duration_seconds", "histogram", "_count{ip_family=\"IPv4\"} 0"),
        ("sync_proxy_rules_last_timestamp_seconds", "gauge", "{ip_family=\"IPv4\"} 0"),
        ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "{ip_family=\"IPv4\"} 0"),
        ("network_programming_duration_seconds", "histogram", "_count{ip_family=\"IPv4\"} 0"),
        ("sync_proxy_rules_endpoint_changes_total", "counter", " 0"),
        ("sync_proxy_rules_endpoint_changes_pending", "gauge", " 0"),
        ("sync_proxy_rules_service_changes_total", "counter", " 0"),
        ("sync_proxy_rules_service_changes_pending", "gauge", " 0"),
        ("sync_proxy_rules_no_local_endpoints_total", "gauge", "{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0"),
        ("sync_proxy_rules_iptables_total", "gauge", "{ip_family=\"IPv4\",table=\"nat\"} 0"),
        ("sync_proxy_rules_iptables_last", "gauge", "{ip_family=\"IPv6\",table=\"filter\"} 0"),
        ("sync_proxy_rules_iptables_restore_failures_total", "counter", "{ip_family=\"IPv4\"} 0"),
        ("sync_proxy_rules_iptables_partial_restore_failures_total", "counter", "{ip_family=\"IPv4\"} 0"),
        ("iptables_ct_state_invalid_dropped_packets_total", "counter", " 3"),
        ("iptables_localhost_nodeports_accepted_packets_total", "counter", " 0"),
        ("conntrack_reconciler_sync_duration_seconds", "histogram", "_count{ip_family=\"IPv4\"} 0"),
        ("conntrack_reconciler_deleted_entries_total", "counter", "{ip_family=\"IPv4\"} 0"),
        ("proxy_healthz_total", "counter", "{code=\"503\"} 0"),
        ("proxy_livez_total", "counter", "{code=\"200\"} 0"),
    ] {
        shows(&text, &format!("kubeproxy_{name}{series}"));
        assert!(text.contains(&format!("# TYPE kubeproxy_{name} {kind}\n")), "{name} is not a {kind}");
        assert!(text.contains(&format!("# HELP kubeproxy_{name} [ALPHA] ")), "{name} has no help");
    }
    // Nothing besides: a new one is added to this list, or it is a slip.
    let known = text.lines().filter(|line| line.starts_with("# TYPE kubeproxy_")).count();
    assert_eq!(known, 21);
}

#[test]
fn buckets_are_kube_proxys() {
    let text = Metrics::new(BOTH).unwrap().render();
    let bounds = |name: &str| -> Vec<String> {
        let begin = format!("kubeproxy_{name}_bucket{{ip_family=\"IPv4\",le=\"");
        text.lines().filter_map(|line| line.strip_prefix(&begin)?.split('"').next().map(str::to_owned)).collect()
    };
    let doubling: Vec<String> = [
        "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512", "1.024", "2.048",
        "4.096", "8.192", "16.384", "+Inf",
    ]
    .map(str::to_owned)
    .to_vec();
    for name in [
        "sync_proxy_rules_duration_seconds",
        "sync_full_proxy_rules_duration_seconds",
        "sync_partial_proxy_rules_duration_seconds",
        "conntrack_reconciler_sync_duration_seconds",
    ] {
        assert_eq!(bounds(name), doubling, "{name}");
    }
    let programming = bounds("network_programming_duration_seconds");
    assert_eq!(programming.len(), 2 + 59 + 12 + 7 + 1);
    assert_eq!(programming[..4], ["0.25", "0.5", "1", "2"]);
    assert_eq!(programming[59..64], ["58", "59", "60", "65", "70"]);
    assert_eq!(programming[71..], ["110", "115", "120", "150", "180", "210", "240", "270", "300", "+Inf"]);
}

#[test]
fn own_series_exist_from_the_start() {
    let metrics = Metrics::new(BOTH).unwrap();
    metrics.serve_processes_started(|| 5).unwrap();
    let text = metrics.render();
    for line in [
        "portolan_objects_rejected_total{kind=\"EndpointSlice\"} 0",
        "portolan_objects_with_problems{kind=\"Service\"} 0",
        "portolan_operations_total{kind=\"replace_chain\",result=\"ok\"} 0",
        "portolan_operations_total{kind=\"delete_flow\",result=\"timed_out\"} 0",
        "portolan_sync_stage_duration_seconds_count{stage=\"compute\"} 0",
        "portolan_sync_stage_duration_seconds_count{stage=\"flows\"} 0",
        "portolan_kernel_errors_total{class=\"denied\"} 0",
        "portolan_drift_total{ip_family=\"IPv6\",table=\"nat\"} 0",
        "portolan_failed_dumps_total{ip_family=\"IPv4\",table=\"filter\"} 0",
        "portolan_inconsistent_services_total 0",
        "portolan_unprogrammed_services 0",
        "portolan_processes_started_total 5",
        "portolan_watch_restarts_total{kind=\"Node\"} 0",
    ] {
        shows(&text, line);
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
    }
}

#[test]
fn a_family_that_is_off_has_no_series() {
    let text = Metrics::new(PerFamily { v4: false, v6: true }).unwrap().render();
    assert!(!text.contains("ip_family=\"IPv4\""));
    assert!(text.contains("ip_family=\"IPv6\""));
}

#[test]
fn a_successful_full_sync_is_recorded() {
    let metrics = Metrics::new(BOTH).unwrap();
    let nat = TableId { family: IpFamily::V4, table: Table::Nat };
    let mut report = report(SyncKind::Full);
    report.rules.insert(nat, TableRules { written: 7, total: 70 });
    report.programmed.push((ServiceName::new("a", "b"), IpFamily::V4, Duration::from_millis(400)));
    report.no_local_endpoints.v4.insert(TrafficPolicyLabel::External, 2);
    let duration = Duration::from_millis(7);
    report.flow_cleanup.v6 = Some(FlowCleanup { deleted: 4, duration, error: None });
    report.operations.insert(("replace_chain", None), 9);
    report.drift.insert(Area::Table(nat), 3);
    metrics.observe(&report, at(1234));
    let text = metrics.render();
    for line in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1234",
        "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 70",
        "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"} 7",
        "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.5\"} 1",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 0",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 2",
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 4",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 0",
        "portolan_operations_total{kind=\"replace_chain\",result=\"ok\"} 9",
        "portolan_drift_total{ip_family=\"IPv4\",table=\"nat\"} 3",
        "portolan_sync_stage_duration_seconds_count{stage=\"dump\"} 0",
        "portolan_sync_stage_duration_seconds_count{stage=\"apply\"} 1",
        "portolan_sync_stage_duration_seconds_sum{stage=\"flows\"} 0.007",
        "portolan_sync_stage_duration_seconds_count{stage=\"flows\"} 1",
    ] {
        shows(&text, line);
    }
}

#[test]
fn a_failed_partial_sync_leaves_the_time_of_the_last_good_one() {
    let metrics = Metrics::new(BOTH).unwrap();
    metrics.observe(&report(SyncKind::Full), at(1000));
    let mut failed = report(SyncKind::Partial);
    failed.failed_restores.v4 = 1;
    failed.operations.insert(("insert_rule", Some(ErrorKind::Rejected)), 1);
    failed.inconsistent_services = 2;
    failed.failed.push(FailedOwner {
        service: None,
        error: KernelError::new(ErrorKind::Rejected, "no"),
        attempts: 1,
        retry_in: Duration::from_secs(1),
        isolated: false,
    });
    metrics.observe(&failed, at(2000));
    let text = metrics.render();
    for line in [
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1000",
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"} 0",
        "portolan_operations_total{kind=\"insert_rule\",result=\"rejected\"} 1",
        "portolan_inconsistent_services_total 2",
        "portolan_unprogrammed_services 1",
    ] {
        shows(&text, line);
    }
}

#[test]
fn errors_of_the_kernel_are_counted_by_class_wherever_they_come_from() {
    let metrics = Metrics::new(BOTH).unwrap();
    let nat = TableId { family: IpFamily::V6, table: Table::Nat };
    let mut failed = report(SyncKind::Full);
    failed.dump_duration = Duration::from_millis(5);
    failed.operations.insert(("insert_rule", Some(ErrorKind::Rejected)), 2);
    failed.operations.insert(("add_address", Some(ErrorKind::Rejected)), 1);
    failed.operations.insert(("insert_rule", Some(ErrorKind::Aborted)), 7);
    failed.operations.insert(("insert_rule", None), 100);
    failed.failed_dumps.push((Area::Table(nat), KernelError::new(ErrorKind::TimedOut, "slow")));
    let error = Some(KernelError::new(ErrorKind::Denied, "no"));
    failed.flow_cleanup.v4 = Some(FlowCleanup { error, ..FlowCleanup::default() });
    metrics.observe(&failed, at(1));
    let text = metrics.render();
    for line in [
        "portolan_kernel_errors_total{class=\"rejected\"} 3",
        "portolan_kernel_errors_total{class=\"timed_out\"} 1",
        "portolan_kernel_errors_total{class=\"denied\"} 1",
        "portolan_kernel_errors_total{class=\"busy\"} 0",
        "portolan_failed_dumps_total{ip_family=\"IPv6\",table=\"nat\"} 1",
        "portolan_operations_total{kind=\"add_address\",result=\"rejected\"} 1",
        "portolan_sync_stage_duration_seconds_count{stage=\"dump\"} 1",
    ] {
        shows(&text, line);
    }
    assert!(!text.contains("class=\"aborted\""), "what was not tried did not fail");
}

#[test]
fn what_is_programmed_and_what_drains_is_shown_as_of_the_last_sync() {
    let metrics = Metrics::new(BOTH).unwrap();
    let mut report = report(SyncKind::Full);
    report.items.insert((IpFamily::V6, crate::kernel::ItemKind::VirtualServer), 12);
    report.draining = 3;
    metrics.observe(&report, at(1));
    shows(&metrics.render(), "portolan_items{ip_family=\"IPv6\",kind=\"virtual_server\"} 12");
    shows(&metrics.render(), "portolan_draining_real_servers 3");
    report.items.insert((IpFamily::V6, crate::kernel::ItemKind::VirtualServer), 0);
    report.draining = 0;
    metrics.observe(&report, at(2));
    shows(&metrics.render(), "portolan_items{ip_family=\"IPv6\",kind=\"virtual_server\"} 0");
    shows(&metrics.render(), "portolan_draining_real_servers 0");
}

#[test]
fn changes_and_what_waits_of_them_are_counted() {
    let metrics = Metrics::new(BOTH).unwrap();
    metrics.service_changed();
    metrics.endpoints_changed();
    metrics.endpoints_changed();
    metrics.set_pending(Pending { services: 0, slices: 1 });
    metrics.sync_queued(at(50));
    metrics.healthz_answered(503);
    metrics.livez_answered(200);
    metrics.object_rejected(ObjectKind::Service);
    metrics.set_objects_with_problems(ObjectKind::Service, 4);
    metrics.watch_restarted(ObjectKind::Node);
    metrics.watch_heard(ObjectKind::EndpointSlice, Some(at(57)), at(60));
    // The node's clock is behind.
    metrics.watch_heard(ObjectKind::EndpointSlice, Some(at(62)), at(61));
    let text = metrics.render();
    for line in [
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 50",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "portolan_objects_rejected_total{kind=\"Service\"} 1",
        "portolan_objects_with_problems{kind=\"Service\"} 4",
        "portolan_watch_restarts_total{kind=\"Node\"} 1",
        "portolan_watch_last_heard_timestamp_seconds{kind=\"EndpointSlice\"} 61",
        "portolan_watch_last_heard_timestamp_seconds{kind=\"Node\"} 0",
        "portolan_watch_lag_seconds_sum 3",
        "portolan_watch_lag_seconds_count 2",
    ] {
        shows(&text, line);
    }
}

#[test]
fn a_packet_counter_that_cannot_be_read_shows_no_sample() {
    let metrics = Metrics::new(BOTH).unwrap();
    assert!(!metrics.render().contains("packets_total"), "absent without nfacct");
    metrics
        .serve_packet_counters(|| PacketCounts { invalid_dropped: None, localhost_node_ports_accepted: Some(2) })
        .unwrap();
    let text = metrics.render();
    assert!(!text.contains("invalid_dropped"));
    shows(&text, "kubeproxy_iptables_localhost_nodeports_accepted_packets_total 2");
}

#[test]
fn requests_to_the_api_server_are_counted_under_the_common_names() {
    let metrics = Metrics::new(BOTH).unwrap();
    metrics.serve_events_dropped(|| 3).unwrap();
    metrics.request_limited("GET", "10.0.0.1:6443", Duration::ZERO);
    metrics.request_answered("GET", "10.0.0.1:6443", Some(200), Duration::from_millis(50));
    metrics.request_answered("GET", "10.0.0.1:6443", None, Duration::from_secs(70));
    let text = metrics.render();
    for line in [
        "rest_client_requests_total{code=\"200\",host=\"10.0.0.1:6443\",method=\"GET\"} 1",
        "rest_client_requests_total{code=\"<error>\",host=\"10.0.0.1:6443\",method=\"GET\"} 1",
        "rest_client_request_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"GET\",le=\"0.025\"} 0",
        "rest_client_request_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"GET\",le=\"0.1\"} 1",
        "rest_client_request_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"GET\",le=\"60\"} 1",
        "rest_client_rate_limiter_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"GET\",le=\"0.005\"} 1",
        "portolan_events_dropped_total 3",
    ] {
        shows(&text, line);
    }
}

#[test]
fn the_reference_in_the_documents_is_that_of_the_registry() {
    let metrics = Metrics::new(BOTH).unwrap();
    let counts = PacketCounts { invalid_dropped: Some(0), localhost_node_ports_accepted: Some(0) };
    metrics.serve_packet_counters(move || counts).unwrap();
    metrics.serve_processes_started(|| 0).unwrap();
    metrics.serve_events_dropped(|| 0).unwrap();
    metrics.request_limited("GET", "host", Duration::ZERO);
    metrics.request_answered("GET", "host", Some(200), Duration::ZERO);
    metrics.feature("AllowServiceExternalIPs", Feature::On);
    let mut report = report(SyncKind::Full);
    report.items.insert((IpFamily::V4, crate::kernel::ItemKind::ALL[0]), 1);
    metrics.observe(&report, at(1));
    let introduction = "# Metrics\n\nMade from the registry by a test, which fails when this is not up to date \
        (`BLESS=1 cargo test --lib metrics` writes it anew).\nkube-proxy's metrics have its names, labels and buckets; \
        `ip_family` is `IPv4` or `IPv6`. Each family has its own series, and each sync counts for both.\n\n";
    let found = format!("{introduction}{}", metrics.reference());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), found);
}

#[test]
fn the_version_and_the_feature_gates_have_the_names_of_kubernetes() {
    let metrics = Metrics::new(BOTH).unwrap();
    metrics.feature("AllowServiceExternalIPs", Feature::Off);
    let text = metrics.render();
    shows(&text, "kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 0");
    let build = text.lines().find(|line| line.starts_with("kubernetes_build_info{")).unwrap();
    assert!(build.contains("git_version=\"v1.36.2+portolan-") && build.ends_with(" 1"), "{build}");
    metrics.feature("AllowServiceExternalIPs", Feature::On);
    shows(&metrics.render(), "kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 1");
}
