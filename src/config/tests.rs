//! Settings from flags and files.

use clap::Parser;

use super::*;
use crate::kernel::item::Scheduler;

mod fields;
mod flags;

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    flags: Flags,
}

fn flags(arguments: &[&str]) -> Flags {
    let arguments = ["portolan"].iter().chain(arguments).map(std::ffi::OsString::from);
    Program::try_parse_from(normalize_flag_names(arguments)).unwrap().flags
}

fn file(body: &str) -> ConfigFile {
    ConfigFile::parse(&format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{body}"))
        .unwrap()
}

fn from_flags(arguments: &[&str]) -> Result<Settings, Vec<ConfigError>> {
    Settings::resolve(&flags(arguments), None)
}

fn from_file(body: &str) -> Result<Settings, Vec<ConfigError>> {
    Settings::resolve(&flags(&[]), Some(&file(body)))
}

fn paths(result: Result<Settings, Vec<ConfigError>>) -> Vec<String> {
    result.unwrap_err().into_iter().map(|error| error.path).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn no_flags_and_an_empty_file_both_mean_the_defaults() {
    assert_eq!(from_flags(&[]).unwrap(), Settings::default());
    assert_eq!(from_file("").unwrap(), Settings::default());
}

#[test]
fn a_file_as_kubeadm_writes_it_means_the_defaults_without_warnings() {
    let body = include_str!("tests/kubeadm.yaml");
    let file = ConfigFile::parse(body).unwrap();
    assert_eq!(file.warnings, Vec::<String>::new());
    let settings = Settings::resolve(&flags(&["--hostname-override=Node-A"]), Some(&file)).unwrap();
    let expected = Settings {
        hostname_override: Some("node-a".into()),
        kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
        detect_local: DetectLocal::ClusterCidr(nets(&["10.244.0.0/16"])),
        ..Settings::default()
    };
    assert_eq!(settings, expected);
}

#[test]
fn flags_and_file_say_the_same() {
    let by_flags = from_flags(&[
        "--proxy_mode=iptables",
        "--kubeconfig=/k",
        "--bind-address",
        "192.0.2.1",
        "--healthz-bind-address=192.0.2.1",
        "--metrics-bind-address=0.0.0.0:9000",
        "--iptables-masquerade-bit=0",
        "--masquerade-all",
        "--iptables-localhost-nodeports=false",
        "--iptables-sync-period=1m",
        "--iptables-min-sync-period=500ms",
        "--cluster-cidr=10.1.2.3/16,fd00::/48",
        "--nodeport-addresses=010.0.0.0/8,fd00::/64",
    ]);
    let by_file = from_file(
        "mode: iptables\n\
         clientConnection: {kubeconfig: /k}\n\
         bindAddress: 192.0.2.1\n\
         healthzBindAddress: 192.0.2.1\n\
         metricsBindAddress: 0.0.0.0:9000\n\
         iptables: {masqueradeBit: 0, masqueradeAll: true, localhostNodePorts: no, syncPeriod: 1m, minSyncPeriod: 500ms}\n\
         clusterCIDR: 10.1.2.3/16,fd00::/48\n\
         nodePortAddresses: [010.0.0.0/8, 'fd00::/64']\n",
    );
    let expected = Settings {
        kubeconfig: Some("/k".into()),
        bind_address: "192.0.2.1".parse().unwrap(),
        healthz_bind_address: Some("192.0.2.1:10256".parse().unwrap()),
        metrics_bind_address: "0.0.0.0:9000".parse().unwrap(),
        masquerade_bit: 0,
        masquerade_all: true,
        localhost_node_ports: false,
        sync_period: Duration::from_secs(60),
        min_sync_period: Duration::from_millis(500),
        detect_local: DetectLocal::ClusterCidr(nets(&["10.1.0.0/16", "fd00::/48"])),
        node_port_addresses: NodePortSetting::Cidrs(nets(&["10.0.0.0/8", "fd00::/64"])),
        ..Settings::default()
    };
    assert_eq!(by_flags.unwrap(), expected);
    assert_eq!(by_file.unwrap(), expected);
}

#[test]
fn flags_and_file_say_the_same_about_ipvs_mode() {
    let by_flags = from_flags(&[
        "--proxy-mode=ipvs",
        "--masquerade-all",
        "--ipvs-scheduler=mh",
        "--ipvs-exclude-cidrs=192.0.2.0/24,2001:db8::/32",
        "--ipvs-strict-arp",
        "--ipvs-sync-period=1m",
        "--ipvs-min-sync-period=2s",
        "--ipvs-tcp-timeout=15m",
        "--ipvs-tcpfin-timeout=30s",
        "--ipvs-udp-timeout=5m",
        "--iptables-sync-period=7m",
    ]);
    let by_file = from_file(
        "mode: ipvs\n\
         iptables: {masqueradeAll: true, syncPeriod: 7m}\n\
         ipvs: {scheduler: mh, excludeCIDRs: [192.0.2.7/24, '2001:db8::/32'], strictARP: true, syncPeriod: 1m,\n  \
           minSyncPeriod: 2s, tcpTimeout: 15m, tcpFinTimeout: 30s, udpTimeout: 5m}\n",
    );
    let expected = Settings {
        mode: ProxyMode::Ipvs,
        masquerade_all: true,
        sync_period: Duration::from_secs(60),
        min_sync_period: Duration::from_secs(2),
        ipvs: IpvsOptions {
            scheduler: Scheduler::new("mh").unwrap(),
            exclude_cidrs: nets(&["192.0.2.0/24", "2001:db8::/32"]),
            strict_arp: true,
            tcp_timeout: Duration::from_secs(900),
            tcp_fin_timeout: Duration::from_secs(30),
            udp_timeout: Duration::from_secs(300),
            sync_period: Duration::from_secs(60),
            min_sync_period: Duration::from_secs(2),
            ..IpvsOptions::default()
        },
        ..Settings::default()
    };
    assert_eq!(by_flags.unwrap(), expected);
    assert_eq!(by_file.unwrap(), expected);
}

#[test]
fn the_periods_that_count_are_those_of_the_mode() {
    let defaults = Settings {
        mode: ProxyMode::Ipvs,
        min_sync_period: Duration::ZERO,
        ipvs: IpvsOptions { min_sync_period: Duration::ZERO, ..IpvsOptions::default() },
        ..Settings::default()
    };
    assert_eq!(from_flags(&["--proxy-mode=ipvs", "--ipvs-exclude-cidrs="]).unwrap(), defaults);
    assert_eq!(from_file("mode: ipvs\nipvs: {scheduler: '', syncPeriod: 0s, excludeCIDRs: null}\n").unwrap(), defaults);
    assert_eq!((defaults.sync_period, defaults.ipvs.scheduler), (Duration::from_secs(30), Scheduler::ROUND_ROBIN));
    assert_eq!(defaults.ipvs.drain_timeout, Duration::from_secs(60));
    let both = "iptables: {syncPeriod: 1m, minSyncPeriod: 3s}\nipvs: {syncPeriod: 2m, minSyncPeriod: 4s}\n";
    for (mode, sync, min) in [("", 60, 3), ("iptables", 60, 3), ("ipvs", 120, 4)] {
        let settings = from_file(&format!("mode: '{mode}'\n{both}")).unwrap();
        let found = (settings.sync_period.as_secs(), settings.min_sync_period.as_secs());
        assert_eq!(found, (sync, min), "{mode}");
    }
}

#[test]
fn settings_of_ipvs_mode_that_make_no_sense_are_refused() {
    let root = "KubeProxyConfiguration.KubeProxyIPVSConfiguration";
    for (body, path, says) in [
        ("scheduler: Round Robin", "Scheduler", "must be 1 to 15"),
        ("scheduler: sixteen-letters-", "Scheduler", "must be 1 to 15"),
        ("excludeCIDRs: [10.0.0.0/8, 10.0.0.1]", "ExcludeCidrs[1]", "must be a valid CIDR"),
        ("tcpTimeout: -1s", "TCPTimeout", "must be greater than or equal to 0"),
        ("tcpFinTimeout: -1s", "TCPFinTimeout", "must be greater than or equal to 0"),
        ("udpTimeout: -1s", "UDPTimeout", "must be greater than or equal to 0"),
        ("minSyncPeriod: -1s", "MinSyncPeriod", "must be greater than or equal to 0"),
        ("syncPeriod: -1s, minSyncPeriod: -2s", "SyncPeriod", "must be greater than 0"),
        ("minSyncPeriod: 31s", "SyncPeriod", "must be greater than or equal to KubeProxyConfiguration.KubeProxyIPVS"),
    ] {
        let errors = from_file(&format!("mode: ipvs\nipvs: {{{body}}}\n")).unwrap_err();
        let named = errors.iter().find(|error| error.path == format!("{root}.{path}"));
        assert!(named.is_some_and(|error| error.reason.starts_with(says)), "{body}: {errors:?}");
        // kube-proxy checks these in IPVS mode only.
        assert!(from_file(&format!("mode: iptables\nipvs: {{{body}}}\n")).is_ok(), "{body}");
    }
    assert_eq!(paths(from_flags(&["--proxy-mode=ipvs", "--ipvs-sync-period=0"])), [format!("{root}.SyncPeriod")]);
}

#[test]
fn our_own_flags_of_ipvs_mode_are_checked_with_all_others() {
    for (arguments, says) in [
        (&["--ipvs-drain-timeout=-1s"][..], "--ipvs-drain-timeout: Invalid value: \"-1s\": must be greater"),
        (&["--ipvs-vips=routes"], "--ipvs-service-cidrs: must not be empty"),
        (&["--ipvs-vips=routes", "--ipvs-service-cidrs="], "--ipvs-service-cidrs: must not be empty"),
        (&["--ipvs-vips=routes", "--ipvs-service-cidrs=10.96.0.0"], "must be a valid CIDR"),
        (&["--ipvs-vips=routes", "--ipvs-service-cidrs=0.0.0.0/0"], "must not be all addresses"),
        (&["--ipvs-service-cidrs=10.96.0.0/12"], "has an effect only with --ipvs-vips=routes"),
    ] {
        let errors = from_flags(arguments).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().contains(says), "{errors:?}");
    }
    let errors = paths(from_flags(&["--proxy-mode=x", "--full-sync-period=0", "--ipvs-drain-timeout=-1s"]));
    assert_eq!(errors, ["KubeProxyConfiguration.Mode.ProxyMode", "--full-sync-period", "--ipvs-drain-timeout"]);
    assert!(Program::try_parse_from(["portolan", "--ipvs-vips=neither"]).is_err());
    for (argument, expected) in
        [("--ipvs-run-estimation", Some(true)), ("--ipvs-run-estimation=false", Some(false)), ("-v=0", None)]
    {
        assert_eq!(from_flags(&[argument]).unwrap().ipvs.run_estimation, expected, "{argument}");
    }
}

#[test]
fn a_mode_is_known_by_its_name() {
    for mode in [ProxyMode::Iptables, ProxyMode::Ipvs] {
        assert_eq!(from_flags(&["--proxy-mode", &mode.to_string()]).unwrap().mode, mode);
    }
    let refused = from_flags(&["--proxy-mode=nftables"]).unwrap_err();
    assert!(
        refused[0].to_string().contains("portolan has no nftables mode: set mode to iptables or ipvs"),
        "{refused:?}"
    );
}

#[test]
fn a_file_discards_flags_except_those_that_always_count() {
    let flags = flags(&[
        "--proxy-mode=ipvs",
        "--cluster-cidr=bad",
        "--masquerade-all",
        "--hostname-override= Worker-1 ",
        "--master=https://192.0.2.1:6443",
        "--iptables-variant=legacy",
        "--iptables-layout=compact",
        "--full-sync-period=1h",
        "--ip-families=ipv6",
        "--ipvs-scheduler=lc",
        "--ipvs-drain-timeout=0",
        "--ipvs-vips=routes",
        "--ipvs-service-cidrs=10.96.0.0/12,fd00:96::/112,10.96.0.0/12",
        "--ipvs-run-estimation=false",
    ]);
    let settings = Settings::resolve(&flags, Some(&file("hostnameOverride: other\n"))).unwrap();
    let expected = Settings {
        hostname_override: Some("worker-1".into()),
        master: Some("https://192.0.2.1:6443".into()),
        iptables_variant: IptablesVariant::Legacy,
        iptables_layout: IptablesLayout::Compact,
        full_sync_period: Duration::from_secs(3600),
        families: PerFamily { v4: false, v6: true },
        ipvs: IpvsOptions {
            drain_timeout: Duration::ZERO,
            vips: VipSetting::Routes(nets(&["10.96.0.0/12", "fd00:96::/112"])),
            run_estimation: Some(false),
            ..IpvsOptions::default()
        },
        ..Settings::default()
    };
    assert_eq!(settings, expected);
    let ignored = ["--proxy-mode", "--cluster-cidr", "--masquerade-all", "--ipvs-scheduler"];
    assert_eq!(flags.ignored_with_file(), ignored);
}

#[test]
fn a_flag_that_is_given_empty_is_not_set() {
    // What $(NODE_NAME) and the like leave behind when they are empty.
    assert_eq!(from_flags(&["--hostname-override=", "--nodeport-addresses="]).unwrap(), Settings::default());
    assert_eq!(paths(from_flags(&["--hostname-override= "])), ["hostnameOverride"]);
}

#[test]
fn feature_gates_are_read_from_the_flag_as_from_the_file() {
    let by_flags = from_flags(&["--feature-gates=WatchList=true,AllowServiceExternalIPs=false"]).unwrap();
    let feature_gates = [("WatchList".to_owned(), true), ("AllowServiceExternalIPs".to_owned(), false)].into();
    assert_eq!(by_flags, Settings { allow_external_ips: false, feature_gates, ..Settings::default() });
    let body = "featureGates: {WatchList: true, AllowServiceExternalIPs: false}\n";
    assert_eq!(by_flags, from_file(body).unwrap());
    let repeated = from_flags(&["--feature-gates=AllowServiceExternalIPs=false", "--feature-gates", "WatchList=true"]);
    assert!(!repeated.unwrap().allow_external_ips);
    for bad in ["--feature-gates=AllowServiceExternalIPs", "--feature-gates=AllowServiceExternalIPs=maybe"] {
        assert!(Program::try_parse_from(["portolan", bad]).is_err(), "{bad}");
    }
    let with_file = flags(&["--feature-gates=AllowServiceExternalIPs=false"]);
    assert!(Settings::resolve(&with_file, Some(&file(""))).unwrap().allow_external_ips);
    assert_eq!(with_file.ignored_with_file(), ["--feature-gates"]);
}

#[test]
fn server_addresses_follow_an_ipv6_bind_address_in_a_file_but_not_among_flags() {
    let by_file = from_file("bindAddress: '::'\n").unwrap();
    assert_eq!(by_file.healthz_bind_address, Some("[::]:10256".parse().unwrap()));
    assert_eq!(by_file.metrics_bind_address, "[::1]:10249".parse().unwrap());
    let by_flags = from_flags(&["--bind-address=::"]).unwrap();
    assert_eq!(by_flags.healthz_bind_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(by_flags.metrics_bind_address, "127.0.0.1:10249".parse().unwrap());
}

#[test]
fn each_way_to_detect_local_traffic_is_read() {
    for (body, expected) in [
        ("detectLocalMode: NodeCIDR\nclusterCIDR: ignored\n", DetectLocal::NodeCidr),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
            DetectLocal::BridgeInterface("cni0".into()),
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n",
            DetectLocal::InterfaceNamePrefix("veth".into()),
        ),
        ("detectLocalMode: ClusterCIDR\n", DetectLocal::ClusterCidr(Vec::new())),
    ] {
        assert_eq!(from_file(body).unwrap().detect_local, expected, "{body}");
    }
    assert_eq!(from_flags(&["--nodeport-addresses=primary"]).unwrap().node_port_addresses, NodePortSetting::Primary);
    assert!(
        !from_file("featureGates: {AllowServiceExternalIPs: false, WatchList: true}\n").unwrap().allow_external_ips
    );
}

#[test]
fn values_that_make_no_sense_are_named_by_kube_proxys_paths() {
    for (body, expected) in [
        ("iptables: {masqueradeBit: 32}\n", "KubeProxyConfiguration.KubeProxyIPTablesConfiguration.MasqueradeBit"),
        ("iptables: {masqueradeBit: -1}\n", "KubeProxyConfiguration.KubeProxyIPTablesConfiguration.MasqueradeBit"),
        ("iptables: {syncPeriod: -5s, minSyncPeriod: -6s}\n", "KubeProxyConfiguration.SyncPeriod"),
        ("iptables: {minSyncPeriod: -1s}\n", "KubeProxyConfiguration.MinSyncPeriod"),
        ("iptables: {minSyncPeriod: 1m}\n", "KubeProxyConfiguration.SyncPeriod"),
        ("mode: userspace\n", "KubeProxyConfiguration.Mode.ProxyMode"),
        ("mode: nftables\n", "KubeProxyConfiguration.Mode.ProxyMode"),
        ("bindAddress: '[::]'\n", "KubeProxyConfiguration.BindAddress"),
        ("healthzBindAddress: 0.0.0.0:0\n", "KubeProxyConfiguration.HealthzBindAddress"),
        ("metricsBindAddress: localhost:10249\n", "KubeProxyConfiguration.MetricsBindAddress"),
        ("nodePortAddresses: [10.0.0.0]\n", "KubeProxyConfiguration.NodePortAddresses[0]"),
        ("nodePortAddresses: [10.0.0.0/8, primary]\n", "KubeProxyConfiguration.NodePortAddresses[1]"),
        ("detectLocalMode: Magic\n", "KubeProxyConfiguration.DetectLocalMode"),
        ("detectLocalMode: BridgeInterface\n", "KubeProxyConfiguration.DetectLocalConfiguration.InterfaceName"),
        ("detectLocalMode: InterfaceNamePrefix\n", "KubeProxyConfiguration.DetectLocalConfiguration.InterfacePrefix"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n", "KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs"),
        ("clusterCIDR: '10.0.0.0/8, fd00::/8'\n", "KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs"),
        (
            "clusterCIDR: 10.0.0.0/8,fd00::/8,fd01::/16\n",
            "KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs",
        ),
    ] {
        assert!(paths(from_file(body)).contains(&expected.to_owned()), "{body}");
    }
    assert_eq!(paths(from_flags(&["--hostname-override= "])), ["hostnameOverride"]);
    assert_eq!(paths(from_flags(&["--full-sync-period=0"])), ["--full-sync-period"]);
    assert_eq!(paths(from_flags(&["--iptables-sync-period=0s"])).len(), 2);
}

#[test]
fn all_errors_are_reported_at_once() {
    let errors = from_file("mode: x\nbindAddress: here\nnodePortAddresses: [z, w]\n").unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert_eq!(
        errors[0].to_string(),
        "KubeProxyConfiguration.BindAddress: Invalid value: \"here\": must be a valid IP"
    );
}

#[test]
fn a_file_of_another_kind_or_with_values_of_another_type_is_refused() {
    for (text, expected) in [
        ("kind: KubeProxyConfiguration\n", "apiVersion: must be"),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n",
            "must be kubeproxy.config.k8s.io/v1alpha1",
        ),
        ("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration\n", "kind: Invalid value"),
        ("- a\n", "is not a KubeProxyConfiguration"),
        ("a: [\n", "line "),
        ("", "has no KubeProxyConfiguration"),
    ] {
        let errors = ConfigFile::parse(text).unwrap_err();
        assert!(errors.iter().any(|error| error.to_string().contains(expected)), "{text}: {errors:?}");
    }
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    for body in [
        "mode: 5\n",
        "iptables: [1]\n",
        "iptables: {masqueradeBit: '14'}\n",
        "iptables: {masqueradeAll: 1}\n",
        "iptables: {syncPeriod: 30}\n",
        "iptables: {syncPeriod: 1d}\n",
        "nodePortAddresses: 10.0.0.0/8\n",
        "ipvs: 5\n",
        "ipvs: {scheduler: 5}\n",
        "ipvs: {strictARP: 1}\n",
        "ipvs: {tcpTimeout: 900}\n",
        "ipvs: {excludeCIDRs: 10.0.0.0/8}\n",
        "nodePortAddresses: [1]\n",
    ] {
        assert_eq!(ConfigFile::parse(&format!("{head}{body}")).unwrap_err().len(), 1, "{body}");
    }
}

#[test]
fn unknown_repeated_and_unused_fields_are_warned_of_with_their_line() {
    let file = file("mod: iptables\niptables:\n  masqueradeAll: true\n  masqueradeal: true\nportRange: 1-2\n");
    assert_eq!(
        file.warnings,
        [
            "line 6: unknown field iptables.masqueradeal; it has no effect",
            "line 3: unknown field mod; it has no effect",
            "line 7: portRange is set, but portolan does not use it",
        ]
    );
    let in_section = self::file("ipvs: {strictArp: true}\n");
    assert_eq!(in_section.warnings, ["file: unknown field ipvs.strictArp; it has no effect"]);
    let twice = self::file("bindAddress: 192.0.2.1\nbindAddress: 192.0.2.2\n");
    assert_eq!(twice.warnings.len(), 1, "{:?}", twice.warnings);
    assert!(twice.warnings[0].contains("line 4"), "{:?}", twice.warnings);
    assert_eq!(twice.raw.bind_address, "192.0.2.2");
}

#[test]
fn flags_take_gos_spellings() {
    let given = flags(&["--masquerade-all=T", "--iptables-localhost-nodeports=0", "-v=4", "--log-format=json"]);
    assert_eq!(given.masquerade_all, Some(true));
    assert_eq!(given.iptables_localhost_nodeports, Some(false));
    assert_eq!((given.logging.verbosity, given.logging.log_format), (Some(4), Some(LogFormat::Json)));
    assert_eq!(flags(&["--v", "2", "--mode=iptables"]).logging.verbosity, Some(2));
    assert_eq!(
        normalize_flag_names(["--a_b=c_d", "x_y", "--", "--e_f"].map(Into::into)),
        ["--a-b=c_d", "x_y", "--", "--e_f"].map(std::ffi::OsString::from)
    );
}

#[test]
fn the_node_name_is_the_hosts_unless_overridden() {
    assert_eq!(Settings::default().node_name(" Host.Example ").unwrap(), "host.example");
    assert!(Settings::default().node_name(" ").is_err());
    assert_eq!(from_flags(&["--hostname-override=A"]).unwrap().node_name("b").unwrap(), "a");
    assert_eq!(Settings { masquerade_bit: 31, ..Settings::default() }.masquerade_mark(), 0x8000_0000);
}
