//! The mode changes in the configuration file while the daemon runs, on a kernel with IPVS.

#[path = "support/config_mount.rs"]
mod config_mount;
mod linux_support;

use config_mount::{Daemon, METRICS, Mount, configuration, get, wait_for, with_own};
use linux_support::{in_namespace, shell};

/// Virtual servers in the namespace of this thread, which is not that of the process.
fn virtual_servers() -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    table.lines().filter(|line| line.starts_with("TCP") || line.starts_with("UDP")).count()
}

/// Chains of Services in iptables mode.
fn service_chains() -> usize {
    shell("iptables-legacy-save -t nat; echo").lines().filter(|line| line.starts_with(":KUBE-SVC-")).count()
}

fn has_ipvs() -> bool {
    let has = std::path::Path::new("/proc/net/ip_vs").exists();
    if !has {
        assert!(std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
        println!("not run: this kernel has no ip_vs");
    }
    has
}

/// Whether packets that rules drop or accept are counted: that depends on the kernel, and on nothing else.
fn counts_packets() -> bool {
    get(METRICS, "/metrics").contains("kubeproxy_iptables_ct_state_invalid_dropped_packets_total")
}

#[test]
fn the_mode_is_switched_in_place_and_back_and_nothing_of_the_other_stays() {
    if !has_ipvs() {
        return;
    }
    in_namespace(|| {
        let mut mount = Mount::new(&configuration(""));
        let daemon = Daemon::start(&mount, "legacy");
        wait_for("chains of Services", || service_chains() > 0);
        let chains = service_chains();
        let counted = counts_packets();
        assert_eq!(virtual_servers(), 0);
        for _ in 0..2 {
            mount.update(&configuration("mode: ipvs"));
            wait_for("virtual servers in place of chains", || virtual_servers() > 0 && service_chains() == 0);
            assert!(get(METRICS, "/proxyMode").ends_with("ipvs") && !counts_packets());
            mount.update(&configuration("mode: iptables"));
            wait_for("chains in place of virtual servers", || virtual_servers() == 0 && service_chains() == chains);
            assert!(get(METRICS, "/proxyMode").ends_with("iptables"));
            assert_eq!(counts_packets(), counted);
        }
        drop(daemon);
        mount.update(&configuration("mode: ipvs"));
        let _daemon = Daemon::start(&mount, "legacy");
        wait_for("virtual servers", || virtual_servers() > 0 && service_chains() == 0);
        mount.update(&configuration("mode: iptables"));
        wait_for("chains in place of virtual servers", || virtual_servers() == 0 && service_chains() == chains);
        assert_eq!(counts_packets(), counted, "a daemon that was started in IPVS mode");
    });
}

#[test]
fn addresses_of_services_become_routes_and_addresses_again_in_place() {
    if !has_ipvs() {
        return;
    }
    in_namespace(|| {
        let addresses = || shell("ip -o address show; echo").matches("inet 10.96.").count();
        let routed = || shell("ip route show table local; echo").contains("10.96.0.0/12");
        let mut mount = Mount::new(&configuration("mode: ipvs"));
        let _daemon = Daemon::start(&mount, "legacy");
        wait_for("virtual servers and addresses", || virtual_servers() > 0 && addresses() > 0);
        let servers = virtual_servers();
        for _ in 0..2 {
            mount.update(&with_own("mode: ipvs", "ipvs: {vips: routes, serviceCIDRs: [10.96.0.0/12]}"));
            wait_for("a route in place of addresses", || routed() && addresses() == 0);
            assert_eq!(virtual_servers(), servers);
            mount.update(&configuration("mode: ipvs"));
            wait_for("addresses in place of the route", || !routed() && addresses() > 0);
            assert_eq!(virtual_servers(), servers);
        }
    });
}

#[test]
fn in_iptables_mode_too_init_only_sets_what_ipvs_mode_wants_where_the_module_is_loaded() {
    if !has_ipvs() {
        return;
    }
    in_namespace(|| {
        let settings = || {
            shell(
                "cd /proc/sys/net/ipv4; cat vs/conntrack vs/expire_nodest_conn vs/expire_quiescent_template conf/all/arp_ignore",
            )
        };
        assert_eq!(settings(), "0\n0\n0\n0\n");
        let mount = Mount::new(&configuration("ipvs: {strictARP: true}"));
        let (program, file) = (env!("CARGO_BIN_EXE_portolan"), mount.file());
        shell(&format!("{program} --init-only --iptables-variant legacy --config {} 2>&1", file.display()));
        assert_eq!(settings(), "1\n1\n1\n0\n", "strictARP concerns other programs and waits for the mode");
    });
}
