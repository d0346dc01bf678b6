//! The page /metrics of a running daemon, as Prometheus' own promtool judges it.

mod linux_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use linux_support::in_namespace;

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

/// Killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The page after a sync, from a daemon that serves a Service of every kind.
fn page() -> String {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/every-kind/cluster.yaml");
    let arguments = ["--manifests", manifests, "--hostname-override", "node1", "--iptables-variant", "nft"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    let _daemon = Daemon(command.args(arguments).stderr(Stdio::null()).spawn().expect("the daemon starts"));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let page = get("/metrics").unwrap_or_default();
        let synced = |line: &str| {
            line.starts_with("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}")
                && !line.ends_with(" 0")
        };
        if page.lines().any(synced) {
            return page;
        }
        assert!(Instant::now() < deadline, "no sync within a minute: {page}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn get(path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:10249")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
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
