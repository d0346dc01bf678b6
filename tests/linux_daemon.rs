//! The daemon as a process, between a fake API server over real HTTP and a real kernel.

#[path = "support/api_server/mod.rs"]
mod api_server;
mod linux_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api_server::{ApiServer, Resource};
use linux_support::{in_namespace, shell};
use serde_json::{Value, json};

const HEALTHZ: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

struct Daemon(Child);

impl Daemon {
    fn start(server: &ApiServer) -> Daemon {
        Daemon::spawn(&mut Daemon::command(&["--master", &server.url()]))
    }

    fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command
            .args(["--hostname-override", "node1", "--iptables-variant", "nft", "--cluster-cidr", "10.244.0.0/16"])
            .args(["--iptables-min-sync-period", "100ms"])
            .args(arguments)
            .stderr(Stdio::null());
        command
    }

    fn spawn(command: &mut Command) -> Daemon {
        Daemon(command.spawn().expect("the daemon starts"))
    }

    /// Sends SIGTERM; returns the exit code and how long the end took.
    fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is running");
        let status = self.0.wait().expect("it ends");
        (status.code(), start.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn service() -> Value {
    json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
           "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                    "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}]}})
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
           "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
           "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

/// The endpoints that the kernel sends packets to.
fn endpoints() -> Vec<String> {
    let saved = shell("iptables-nft-save -t nat");
    let targets = saved.lines().filter_map(|line| line.split_once("--to-destination "));
    let mut all: Vec<String> = targets.map(|(_, target)| target.trim().to_owned()).collect();
    all.sort();
    all
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status and body of a GET.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn metric(name: &str) -> f64 {
    let (_, body) = get(METRICS, "/metrics");
    let line = body.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no metric {name}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

#[test]
fn what_is_programmed_stays_when_the_api_server_goes_away_and_when_the_daemon_ends() {
    in_namespace(|| {
        let server = ApiServer::start();
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        let mut daemon = Daemon::start(&server);
        wait_for("the first endpoint", || endpoints() == ["10.244.0.2:8080"]);

        server.apply(slice(&["10.244.0.2", "10.244.0.3"]));
        wait_for("the second endpoint", || endpoints() == ["10.244.0.2:8080", "10.244.0.3:8080"]);
        assert_eq!(get(HEALTHZ, "/livez").0, 200);
        assert_eq!(get(METRICS, "/proxyMode"), (200, "iptables".to_owned()));
        assert!(metric("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}") >= 2.0);

        drop(server);
        wait_for("broken watches", || metric("portolan_watch_restarts_total{kind=\"Service\"}") > 0.0);
        assert_eq!(endpoints(), ["10.244.0.2:8080", "10.244.0.3:8080"]);
        assert_eq!(get(HEALTHZ, "/livez").0, 200, "nothing waits to be programmed");

        let (code, took) = daemon.terminate();
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(endpoints(), ["10.244.0.2:8080", "10.244.0.3:8080"]);
    });
}

#[test]
fn nothing_is_programmed_before_both_lists_are_complete() {
    in_namespace(|| {
        let server = ApiServer::start();
        server.refuse_streaming();
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        server.stall_page(0);
        let _daemon = Daemon::start(&server);
        let lists = || server.count(api_server::Request::is_list);
        wait_for("lists of both kinds", || lists() >= 2);
        std::thread::sleep(Duration::from_millis(500));
        assert!(!shell("iptables-nft-save").contains("KUBE-"), "something was written too early");
        server.release();
        wait_for("the endpoint", || endpoints() == ["10.244.0.2:8080"]);
    });
}

#[test]
fn a_bad_object_is_reported_and_the_others_are_served() {
    in_namespace(|| {
        let server = ApiServer::start();
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        let mut bad = service();
        bad["metadata"]["name"] = json!("bad");
        bad["spec"]["ports"] = json!([{"port": 70000}]);
        server.apply(bad);
        let _daemon = Daemon::start(&server);
        wait_for("the endpoint", || endpoints() == ["10.244.0.2:8080"]);
        wait_for("the count", || metric("portolan_objects_rejected_total{kind=\"Service\"}") >= 1.0);
        assert!((metric("portolan_objects_with_problems{kind=\"Service\"}") - 1.0).abs() < f64::EPSILON);
        server.delete(Resource::Services, "shop", "bad");
        wait_for("no problems", || metric("portolan_objects_with_problems{kind=\"Service\"}") == 0.0);
    });
}

#[test]
fn a_node_on_which_no_sync_ever_succeeds_becomes_unhealthy_and_healthy_again_when_one_does() {
    in_namespace(|| {
        let server = ApiServer::start();
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        // Reading a table fails as long as a file is not there.
        let tools = tempfile::tempdir().unwrap();
        let works = tools.path().join("works");
        let real = shell("command -v iptables-nft-save");
        let script = format!("#!/bin/sh\n[ -e {} ] || exit 1\nexec {} \"$@\"\n", works.display(), real.trim());
        std::fs::write(tools.path().join("iptables-nft-save"), script).unwrap();
        shell(&format!("chmod +x {}/iptables-nft-save", tools.path().display()));
        let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
        let master = server.url();
        let arguments = ["--master", &master, "--iptables-sync-period", "1s"];
        let _daemon = Daemon::spawn(Daemon::command(&arguments).env("PATH", path));
        wait_for("the health server", || TcpStream::connect(HEALTHZ).is_ok());
        assert_eq!(get(HEALTHZ, "/livez").0, 200, "there was no time to fail");
        wait_for("unhealthy", || get(HEALTHZ, "/livez").0 == 503);
        std::fs::write(works, "").unwrap();
        wait_for("healthy", || get(HEALTHZ, "/livez").0 == 200);
        assert_eq!(endpoints(), ["10.244.0.2:8080"]);
    });
}
