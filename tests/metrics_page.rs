//! The page /metrics of a running daemon, as Prometheus' own promtool judges it.

mod linux_support;
#[path = "support/running.rs"]
mod running;

use std::io::Write;
use std::process::{Command, Stdio};

use linux_support::in_namespace;
use running::{METRICS, Running, get, sample, wait_for};

/// Names that promtool finds fault with, and that are kube-proxy's: gauges that end as counters do.
const NAMES_OF_KUBE_PROXY: [&str; 2] =
    ["kubeproxy_sync_proxy_rules_iptables_total", "kubeproxy_sync_proxy_rules_no_local_endpoints_total"];

fn promtool() -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/promtool.sh");
    let found = Command::new(script).output().expect("the script can be started");
    if !found.status.success() {
        assert!(std::env::var_os("CI").is_none(), "no promtool: {}", String::from_utf8_lossy(&found.stderr));
        eprintln!("not run: {}", String::from_utf8_lossy(&found.stderr));
        return None;
    }
    Some(String::from_utf8_lossy(&found.stdout).trim().to_owned())
}

/// What `promtool check metrics` says about a page, line by line.
fn complaints(promtool: &str, page: &str) -> Vec<String> {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    // 3: it could read the page and has something to say about it.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

/// The page after a sync, from a daemon that serves a Service of every kind.
fn page() -> String {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/every-kind/cluster.yaml");
    let arguments = ["--manifests", manifests, "--hostname-override", "node1", "--iptables-variant", "nft"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    let _daemon = Running::start(command.args(arguments).stderr(Stdio::null()));
    let mut page = String::new();
    wait_for("a sync", || {
        page = get(METRICS, "/metrics").body;
        sample(&page, "kubeproxy_sync_proxy_rules_duration_seconds_count", "IPv4").is_some_and(|count| count > 0.0)
    });
    page
}

#[test]
fn promtool_finds_no_fault_but_in_names_of_kube_proxy() {
    let Some(promtool) = promtool() else { return };
    assert!(!complaints(&promtool, "# TYPE x_total gauge\nx_total 1\n").is_empty(), "it does look");
    in_namespace(|| judge(&promtool, &page()));
}

fn judge(promtool: &str, page: &str) {
    let found = complaints(promtool, page);
    let other: Vec<_> =
        found.iter().filter(|line| !NAMES_OF_KUBE_PROXY.iter().any(|name| line.contains(name))).collect();
    assert!(other.is_empty(), "{other:#?}");
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
        "portolan_operations_total",
        "process_threads",
        "kubernetes_feature_enabled",
    ] {
        assert!(page.contains(name), "{name} is not on the page");
    }
}
