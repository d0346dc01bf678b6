//! The daemon as a process, between a fake API server over real HTTP and a real kernel.

#[path = "support/api_server/mod.rs"]
mod api_server;
mod linux_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
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
        Daemon::with(server, "nft", &[])
    }

    fn with(server: &ApiServer, variant: &str, flags: &[&str]) -> Daemon {
        Daemon::start_with(server, |command| {
            command.args(["--iptables-variant", variant]).args(flags);
        })
    }

    /// Without its Node a daemon would wait.
    fn start_with(server: &ApiServer, more: impl FnOnce(&mut Command)) -> Daemon {
        server.apply(node("192.0.2.1", &[]));
        Daemon::on_a_node_that_is_as_it_is(server, more)
    }

    fn on_a_node_that_is_as_it_is(server: &ApiServer, more: impl FnOnce(&mut Command)) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command
            .args(["--master", &server.url(), "--hostname-override", "node1"])
            .args(["--cluster-cidr", "10.244.0.0/16", "--iptables-min-sync-period", "100ms"])
            .stderr(Stdio::null());
        more(&mut command);
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

fn node(address: &str, pod_cidrs: &[&str]) -> Value {
    json!({"kind": "Node", "metadata": {"name": "node1"}, "spec": {"podCIDRs": pod_cidrs},
           "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
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
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
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

        let started = metric("portolan_processes_started_total");
        server.apply(slice(&["10.244.0.2", "10.244.0.3"]));
        wait_for("the second endpoint", || endpoints() == ["10.244.0.2:8080", "10.244.0.3:8080"]);
        let started = metric("portolan_processes_started_total") - started;
        assert!((started - 1.0).abs() < f64::EPSILON, "a change is one process, not {started}");
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
fn a_report_that_changes_nothing_is_counted_and_does_not_wait_for_a_sync() {
    in_namespace(|| {
        let server = ApiServer::start();
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        let _daemon = Daemon::start(&server);
        wait_for("the endpoint", || endpoints() == ["10.244.0.2:8080"]);
        let reported = metric("kubeproxy_sync_proxy_rules_service_changes_total");
        let mut labelled = service();
        labelled["metadata"]["labels"] = json!({"team": "shop"});
        server.apply(labelled);
        wait_for("the report", || metric("kubeproxy_sync_proxy_rules_service_changes_total") > reported);
        assert_eq!(metric("kubeproxy_sync_proxy_rules_service_changes_pending") as u64, 0);
    });
}

#[test]
fn the_permissions_of_the_role_node_proxier_are_enough_with_and_without_events() {
    in_namespace(|| {
        for events in [None, Some(403)] {
            let server = ApiServer::start();
            server.enforce_permissions();
            if let Some(status) = events {
                server.refuse_events(status);
            }
            // The proof proves something: what the role does not list is refused.
            for path in ["/api/v1/namespaces/shop/services/web", "/api/v1/secrets", "/api/v1/pods", "/version"] {
                assert_eq!(get(server.url().trim_start_matches("http://"), path).0, 403, "{path}");
            }
            let refused_by_hand = server.denied().len();
            server.apply(service());
            server.apply(slice(&["10.244.0.2"]));
            let mut daemon = Daemon::start(&server);
            wait_for("the endpoint", || endpoints() == ["10.244.0.2:8080"]);
            wait_for("the Node", || TcpStream::connect(HEALTHZ).is_ok() && get(HEALTHZ, "/healthz").0 == 200);
            // Changes arrive, also after lists in pages and lists again.
            server.refuse_streaming();
            for resource in [Resource::Services, Resource::Slices, Resource::Nodes] {
                server.expire_watches(resource);
            }
            server.apply(slice(&["10.244.0.3"]));
            wait_for("the other endpoint", || endpoints() == ["10.244.0.3:8080"]);
            wait_for("lists in pages", || server.count(api_server::Request::is_list) >= 3);
            assert_eq!(server.denied()[refused_by_hand..], [] as [String; 0]);
            assert_eq!(daemon.terminate().0, Some(0));
        }
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
fn pod_cidrs_are_waited_for_where_they_are_needed_and_a_change_of_them_is_followed() {
    in_namespace(|| {
        let server = ApiServer::start();
        server.apply(json!({"kind": "Node", "metadata": {"name": "node1"}}));
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        let _daemon = Daemon::on_a_node_that_is_as_it_is(&server, |command| {
            command.args(["--iptables-variant", "nft", "--detect-local-mode", "NodeCIDR"]);
        });
        wait_for("its pages", || TcpStream::connect(HEALTHZ).is_ok() && TcpStream::connect(METRICS).is_ok());
        let told = || metric("kubeproxy_sync_proxy_rules_endpoint_changes_total") > 0.0;
        wait_for("the endpoint is told", told);
        server.apply(node("192.0.2.1", &[]));
        wait_for("all watches", || {
            [Resource::Nodes, Resource::Services, Resource::Slices].iter().all(|kind| server.open_watches(*kind) == 1)
        });
        assert_eq!((get(HEALTHZ, "/healthz").0, get(HEALTHZ, "/livez").0), (503, 200), "it waits");
        let once = Command::new(env!("CARGO_BIN_EXE_portolan"))
            .args(["sync", "--once", "--master", &server.url(), "--hostname-override", "node1"])
            .args(["--iptables-variant", "nft", "--detect-local-mode", "NodeCIDR"])
            .output()
            .unwrap();
        assert_eq!(once.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&once.stderr).contains("has no pod CIDRs"), "{once:?}");
        assert!(endpoints().is_empty());

        let local = |cidr: &str| shell("iptables-nft-save -t nat").contains(&format!("! -s {cidr} "));
        server.apply(node("192.0.2.1", &["10.244.1.0/24"]));
        wait_for("rules for these pods", || local("10.244.1.0/24") && get(HEALTHZ, "/healthz").0 == 200);
        server.apply(node("192.0.2.1", &["10.244.2.0/24"]));
        wait_for("rules for other pods", || local("10.244.2.0/24") && !local("10.244.1.0/24"));
        assert_eq!(get(HEALTHZ, "/healthz").0, 200);
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
fn health_check_ports_are_served_where_node_ports_are() {
    in_namespace(|| {
        shell("ip addr add 192.0.2.1/32 dev lo");
        let server = ApiServer::start();
        let mut balancer = service();
        for (field, value) in [
            ("type", json!("LoadBalancer")),
            ("externalTrafficPolicy", json!("Local")),
            ("healthCheckNodePort", json!(31000)),
        ] {
            balancer["spec"][field] = value;
        }
        server.apply(balancer);
        server.apply(slice(&["10.244.0.2"]));
        let _daemon = Daemon::with(&server, "nft", &["--nodeport-addresses", "primary"]);
        wait_for("the node's address", || TcpStream::connect("192.0.2.1:31000").is_ok());
        assert!(TcpStream::connect("127.0.0.1:31000").is_err(), "not an address of the Node object");
        shell("ip addr del 192.0.2.1/32 dev lo");
        shell("ip addr add 192.0.2.1/32 dev lo");
        wait_for("the address that came back", || TcpStream::connect("192.0.2.1:31000").is_ok());
    });
}

#[test]
fn a_node_without_ipv6_is_served_in_ipv4() {
    in_namespace(|| {
        shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        let server = ApiServer::start();
        server.apply(service());
        server.apply(slice(&["10.244.0.2"]));
        let _daemon = Daemon::start(&server);
        wait_for("the endpoint", || endpoints() == ["10.244.0.2:8080"]);
        assert!(!get(METRICS, "/metrics").1.contains("IPv6"));
    });
}

#[test]
fn a_proxy_whose_first_sync_never_succeeds_is_unhealthy() {
    in_namespace(|| {
        let server = ApiServer::start();
        let broken = tempfile::tempdir().unwrap();
        for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
            let path = broken.path().join(program);
            std::fs::write(&path, "#!/bin/sh\nexit 1\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}", broken.path().display(), std::env::var("PATH").unwrap());
        let _daemon = Daemon::start_with(&server, |command| {
            command.env("PATH", path).args(["--iptables-variant", "nft", "--iptables-sync-period", "500ms"]);
        });
        wait_for("somebody listens", || TcpStream::connect(HEALTHZ).is_ok());
        wait_for("no health", || get(HEALTHZ, "/livez").0 == 503);
    });
}

#[test]
fn rules_that_somebody_flushes_come_back_without_an_audit_on_its_period() {
    for variant in ["nft", "legacy"] {
        in_namespace(|| {
            let server = ApiServer::start();
            server.apply(service());
            server.apply(slice(&["10.244.0.2"]));
            let _daemon = Daemon::with(&server, variant, &["--iptables-sync-period", "1s"]);
            let save = format!("iptables-{variant}-save -t nat");
            let whole = || shell(&save).matches("KUBE-").count();
            wait_for("the endpoint", || shell(&save).contains("10.244.0.2:8080"));
            std::thread::sleep(Duration::from_millis(1500));
            let (before, started) = (whole(), metric("portolan_processes_started_total"));
            std::thread::sleep(Duration::from_millis(2500));
            let idle = metric("portolan_processes_started_total") - started;
            assert!(idle.abs() < f64::EPSILON, "{idle} processes were started while nothing happened");
            shell(&format!("iptables-{variant} -t nat -F"));
            wait_for("all rules again", || whole() == before);
            // The metrics are told after the sync, which the rules are part of.
            wait_for("the drift in the metrics", || {
                metric("portolan_drift_total{ip_family=\"IPv4\",table=\"nat\"}") > 0.0
            });
        });
    }
}

#[test]
fn kube_proxys_cleanup_flag_removes_what_was_programmed() {
    in_namespace(|| {
        let run = |arguments: &[&str]| {
            let portolan = Command::new(env!("CARGO_BIN_EXE_portolan"))
                .args(arguments)
                .args(["--iptables-variant", "nft", "--hostname-override", "node1"])
                .output()
                .expect("it starts");
            assert!(portolan.status.success(), "{}", String::from_utf8_lossy(&portolan.stderr));
        };
        run(&["sync", "--once", "--manifests", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo")]);
        assert!(shell("iptables-nft-save").contains("KUBE-SERVICES"));
        run(&["--cleanup"]);
        assert!(!shell("iptables-nft-save").contains("KUBE-SERVICES"));
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
        let _daemon = Daemon::start_with(&server, |command| {
            command.env("PATH", path).args(["--iptables-variant", "nft", "--iptables-sync-period", "1s"]);
        });
        wait_for("the health server", || TcpStream::connect(HEALTHZ).is_ok());
        assert_eq!(get(HEALTHZ, "/livez").0, 200, "there was no time to fail");
        wait_for("unhealthy", || get(HEALTHZ, "/livez").0 == 503);
        std::fs::write(works, "").unwrap();
        wait_for("healthy", || get(HEALTHZ, "/livez").0 == 200);
        assert_eq!(endpoints(), ["10.244.0.2:8080"]);
    });
}

#[test]
fn a_node_whose_kernel_has_no_load_balancer_is_told_so() {
    in_namespace(|| {
        let loaded = || std::path::Path::new("/proc/net/ip_vs").exists();
        let loadable = Command::new("modprobe").args(["-qn", "ip_vs"]).status().is_ok_and(|status| status.success());
        if loaded() || loadable {
            println!("not run: this kernel has ip_vs");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_portolan"))
            .args(["--mode=ipvs", "--hostname-override=node1"])
            .arg(format!("--manifests={}", directory.path().display()))
            .output()
            .expect("the daemon starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("the kernel has no IPVS: load the module ip_vs"), "{said}");
        assert_eq!(shell("iptables-nft-save | grep KUBE || true"), "", "nothing was programmed");
    });
}
