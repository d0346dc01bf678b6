//! The configuration file changes while the daemon runs, as kubelet changes the mount of a ConfigMap, on a real kernel.

#[path = "support/config_mount.rs"]
mod config_mount;
mod linux_support;

use config_mount::{Daemon, METRICS, Mount, configuration, get, metric_is, put, wait_for};
use linux_support::{in_namespace, shell};

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
        mount.update(&configuration("enableProfiling: true"));
        wait_for("the page of the log's verbosity", || put(METRICS, "/debug/flags/v", "4").starts_with("HTTP/1.1 200"));
        mount.update(&configuration(""));
        wait_for("the first one is in force again", || metric_is("portolan_config_valid 1") && !masquerades_all());
    });
}

#[test]
fn a_mode_that_the_kernel_cannot_do_is_refused_and_the_other_goes_on() {
    in_namespace(|| {
        let mut mount = Mount::new(&configuration(""));
        let _daemon = Daemon::start(&mount, "nft");
        wait_for("the first sync", || shell("iptables-nft-save -t nat").contains("KUBE-SVC-"));
        let before = shell("iptables-nft-save -t nat | grep '^-A'");
        mount.update(&configuration("mode: ipvs"));
        let refused = || metric_is("portolan_config_reloads_total{result=\"refused\"} 1");
        wait_for("it is refused, or done", || refused() || get(METRICS, "/proxyMode").ends_with("ipvs"));
        if !refused() {
            println!("not run: this kernel can do IPVS");
            return;
        }
        assert!(get(METRICS, "/proxyMode").ends_with("iptables"));
        assert_eq!(shell("iptables-nft-save -t nat | grep '^-A'"), before);
    });
}
