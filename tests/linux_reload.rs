//! The configuration file changes while the daemon runs, as kubelet changes the mount of a ConfigMap, on a real kernel.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/config_mount.rs"]
mod config_mount;
mod linux_support;

use api_server::{ApiServer, Resource};
use config_mount::{Daemon, METRICS, Mount, configuration, get, kubeconfig, metric_is, put, wait_for, with_own};
use linux_support::{in_namespace, shell};
use serde_json::json;

/// Whether traffic to cluster IPs is masqueraded, whatever its source.
fn masquerades_all() -> bool {
    let rules = shell("iptables-nft-save -t nat");
    rules
        .lines()
        .any(|rule| rule.starts_with("-A KUBE-SVC-") && rule.contains("KUBE-MARK-MASQ") && !rule.contains("-s "))
}

#[test]
fn a_swapped_configuration_takes_effect_and_a_wrong_one_is_refused() {
    in_namespace(|| {
        let mut mount = Mount::new(&configuration(""));
        let _daemon = Daemon::start(&mount, "nft");
        wait_for("the first sync", || shell("iptables-nft-save -t nat").contains("KUBE-SVC-"));
        assert!(metric_is("portolan_config_valid 1") && !masquerades_all());

        mount.update(&configuration("iptables: {masqueradeAll: true}\nmetricsBindAddress: 127.0.0.2:10249"));
        wait_for("all is masqueraded", masquerades_all);
        wait_for("metrics on another address", || {
            get("127.0.0.2:10249", "/configz").contains("\"masqueradeAll\":true")
        });

        wait_for("one reload is counted: the start is none", || {
            let page = get("127.0.0.2:10249", "/metrics");
            let some = |line: &&str| line.starts_with("portolan_config_reloads_total") && !line.ends_with(" 0");
            page.lines().filter(some).eq(["portolan_config_reloads_total{result=\"applied\"} 1"])
        });

        assert!(put("127.0.0.2:10249", "/debug/flags/v", "4").starts_with("HTTP/1.1 404"), "profiling is off");

        mount.update(&configuration("iptables: {masqueradeBit: 99}"));
        let valid = |value: &str| {
            let page = get("127.0.0.2:10249", "/metrics");
            page.lines().any(|line| line == format!("portolan_config_valid {value}"))
        };
        wait_for("the wrong one is refused", || valid("0"));
        assert!(masquerades_all(), "what was in force stays");

        mount.update(&configuration("iptables: {masqueradeAll: true}\nmetricsBindAddress: 127.0.0.2:10249"));
        wait_for("what is in force is right again", || valid("1"));
        mount.update(&configuration(""));
        wait_for("the first one is in force again", || metric_is("portolan_config_valid 1") && !masquerades_all());
        let started = processes_started();
        mount.update(&configuration("enableProfiling: true"));
        wait_for("the page of the log's verbosity", || put(METRICS, "/debug/flags/v", "4").starts_with("HTTP/1.1 200"));
        assert_eq!(processes_started(), started, "nothing that the kernel has to be asked about has changed");
    });
}

fn processes_started() -> Option<String> {
    let page = get(METRICS, "/metrics");
    page.lines().find(|line| line.starts_with("portolan_processes_started_total")).map(str::to_owned)
}

/// The configuration with TCP packets outside the window taken for valid: a sysctl that each namespace has for itself.
fn liberal(more: &str) -> String {
    configuration(more).replace("conntrack: {", "conntrack: {tcpBeLiberal: true, ")
}

fn is_liberal() -> bool {
    shell("cat /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal").trim() == "1"
}

#[test]
fn what_is_refused_leaves_no_sysctl_behind() {
    in_namespace(|| {
        let mut mount = Mount::new(&configuration(""));
        let _daemon = Daemon::start(&mount, "nft");
        wait_for("the first sync", || shell("iptables-nft-save -t nat").contains("KUBE-SVC-"));
        assert!(!is_liberal());
        // Nobody has the address.
        mount.update(&liberal("metricsBindAddress: 192.0.2.99:10249"));
        wait_for("it is refused", || metric_is("portolan_config_reloads_total{result=\"refused\"} 1"));
        assert!(!is_liberal());
        mount.update(&liberal(""));
        wait_for("the same with an address that there is", is_liberal);
    });
}

#[test]
fn own_settings_in_the_second_document_take_effect_and_wrong_ones_are_refused() {
    in_namespace(|| {
        let mut mount = Mount::new(&with_own("", "fullSyncPeriod: 7m"));
        let _daemon = Daemon::start(&mount, "nft");
        let shows = |text: &str| get(METRICS, "/configz").contains(text);
        wait_for("the period of the file", || shows("\"fullSyncPeriod\":\"7m0s\""));
        assert!(shows("\"variant\":\"nft\""), "the flag beats the file");
        mount.update(&with_own("", "fullSyncPeriod: 8m\niptables: {variant: legacy}"));
        wait_for("another period", || shows("\"fullSyncPeriod\":\"8m0s\""));
        assert!(shows("\"variant\":\"nft\""), "the flag beats the file");
        mount.update(&with_own("", "fullSyncPeriod: 0s"));
        wait_for("it is refused", || metric_is("portolan_config_reloads_total{result=\"refused\"} 1"));
        assert!(shows("\"fullSyncPeriod\":\"8m0s\""));
        mount.update(&configuration(""));
        wait_for("the default without the document", || shows("\"fullSyncPeriod\":\"15m0s\""));
    });
}

#[test]
fn a_mode_that_the_kernel_cannot_do_is_refused_and_the_other_goes_on() {
    in_namespace(|| {
        let mut mount = Mount::new(&configuration(""));
        let _daemon = Daemon::start(&mount, "nft");
        wait_for("the first sync", || shell("iptables-nft-save -t nat").contains("KUBE-SVC-"));
        let before = shell("iptables-nft-save -t nat | grep '^-A'");
        mount.update(&liberal("mode: ipvs"));
        let refused = || metric_is("portolan_config_reloads_total{result=\"refused\"} 1");
        wait_for("it is refused, or done", || refused() || get(METRICS, "/proxyMode").ends_with("ipvs"));
        if !refused() {
            println!("not run: this kernel can do IPVS");
            return;
        }
        assert!(get(METRICS, "/proxyMode").ends_with("iptables") && !is_liberal());
        assert_eq!(shell("iptables-nft-save -t nat | grep '^-A'"), before);
    });
}

/// Serves one Service with this endpoint on each of two nodes.
fn server(endpoint: &str) -> ApiServer {
    let server = ApiServer::start();
    server.apply(json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                 "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}]}}));
    server.apply(slice(endpoint));
    for name in ["node1", "node2"] {
        server.apply(json!({"kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}));
    }
    server
}

fn slice(endpoint: &str) -> serde_json::Value {
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": [endpoint]}],
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

#[test]
fn another_api_server_and_another_name_are_taken_up_without_a_restart() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (server("10.244.0.1"), server("10.244.0.2"));
        let text = |name: &str, kubeconfig: &str| {
            format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n\
                 hostnameOverride: {name}\nclientConnection: {{kubeconfig: {kubeconfig}}}\n"
            )
        };
        let serves =
            |endpoint: &str| shell("iptables-nft-save -t nat").contains(&format!("--to-destination {endpoint}:8080"));
        let mut mount = Mount::new(&text("node1", &kubeconfig(directory.path(), "first", &first.url())));
        let _daemon = Daemon::watching(&mount, "nft");
        wait_for("the endpoint that the first server tells of", || serves("10.244.0.1"));

        // The second one has the Services listed long before the slices.
        second.fail(Resource::Slices, usize::MAX, 503, 0);
        let path = kubeconfig(directory.path(), "second", &second.url());
        mount.update(&text("node1", &path));
        wait_for("watches of the second", || second.open_watches(Resource::Services) == 1);
        wait_for("no watches of the first", || first.open_watches(Resource::Services) == 0);
        assert!(serves("10.244.0.1"), "its lists are not complete");
        second.heal();
        wait_for("the endpoint that the second tells of", || serves("10.244.0.2"));

        mount.update(&text("node1", "/nowhere"));
        wait_for("it is refused", || metric_is("portolan_config_reloads_total{result=\"refused\"} 1"));
        second.apply(slice("10.244.0.3"));
        wait_for("a change after the refusal", || serves("10.244.0.3"));

        mount.update(&text("node2", &path));
        let watches_node =
            |name: &str| second.count(|request| request.param("fieldSelector") == format!("metadata.name={name}")) > 0;
        wait_for("a watch of the other Node", || watches_node("node2"));
        second.apply(slice("10.244.0.4"));
        wait_for("a change under the other name", || serves("10.244.0.4"));
        wait_for("events by the new client", || {
            second
                .events()
                .iter()
                .any(|event| event["reason"] == "ConfigurationApplied" && event["regarding"]["name"] == "node2")
        });
    });
}
