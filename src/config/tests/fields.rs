//! Every field of the file: where it lands, what is wrong with it, and that it is shown again as it was set.

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use super::{ConfigFile, Flags, Settings, file, from_file, nets, paths};
use crate::config::{
    ClientOptions, DetectLocal, LogFormat, LoggingOptions, ProxyMode, StreamOptions, effective, effective_own,
};
use crate::kernel::Conntrack;

fn read(text: &str) -> (Settings, Vec<String>) {
    let file = ConfigFile::parse(text).unwrap();
    (Settings::resolve(&Flags::default(), Some(&file)).unwrap(), file.warnings)
}

#[test]
fn every_field_lands_in_its_setting_and_is_shown_again() {
    let (settings, warnings) = read(include_str!("every.yaml"));
    assert_eq!(
        warnings,
        [
            "line 64: nftables is set, but portolan does not use it",
            "line 72: portRange is set, but portolan does not use it",
            "line 74: windowsRunAsService is set, but portolan does not use it",
            "line 75: winkernel is set, but portolan does not use it",
        ]
    );
    assert_eq!(
        settings.client,
        ClientOptions {
            accept_content_types: "application/json".into(),
            content_type: "application/json".into(),
            qps: 7.5,
            burst: 20,
        }
    );
    assert_eq!(
        settings.conntrack,
        Conntrack {
            max_per_core: 0,
            min: 65536,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::from_secs(1800),
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(30),
            udp_stream_timeout: Duration::from_secs(180),
        }
    );
    assert_eq!(
        settings.logging,
        LoggingOptions {
            format: LogFormat::Text,
            verbosity: 4,
            flush_frequency: Duration::from_secs(2),
            vmodule: vec![("proxier*".into(), 6)],
            text: StreamOptions { split_stream: true, info_buffer_size: "0".into() },
            json: StreamOptions { split_stream: true, info_buffer_size: "64Ki".into() },
        }
    );
    assert_eq!((settings.bind_address_hard_fail, settings.profiling, settings.oom_score_adj), (true, true, -500));
    assert_eq!(settings.config_sync_period, Duration::from_secs(300));
    assert_eq!(settings.show_hidden_metrics_for_version.as_deref(), Some("1.35"));
    assert_eq!((settings.mode, settings.allow_external_ips), (ProxyMode::Ipvs, false));
    assert_eq!(settings.feature_gates.len(), 3);
    assert_eq!(read(&shown(&settings)), (settings, Vec::new()));
}

/// What `--write-config-to` writes.
fn shown(settings: &Settings) -> String {
    let yaml = |document| serde_saphyr::to_string(&document).unwrap();
    format!("{}---\n{}", yaml(effective(settings)), yaml(effective_own(settings)))
}

#[rstest]
#[case("kubeadm", include_str!("kubeadm.yaml"))]
#[case("kind", include_str!("kind.yaml"))]
#[case("every", include_str!("every.yaml"))]
fn what_a_file_means_is_what_it_meant_when_it_was_reviewed(#[case] name: &str, #[case] text: &str) {
    let found = shown(&read(text).0);
    let path = format!("{}/src/config/tests/{name}.golden.yaml", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), found);
}

/// The leaves of an object with their paths as JSON pointers.
fn leaves(pointer: &str, value: &Value) -> Vec<(String, Value)> {
    match value {
        Value::Object(fields) => {
            fields.iter().flat_map(|(field, value)| leaves(&format!("{pointer}/{field}"), value)).collect()
        }
        other => vec![(pointer.to_owned(), other.clone())],
    }
}

#[test]
fn the_file_with_every_field_sets_each_to_another_value_than_its_default() {
    // Only one value goes with the rest of the file.
    let as_default =
        ["/apiVersion", "/kind", "/detectLocalMode", "/logging/format", "/logging/options/text/infoBufferSize"];
    let (proxy, own) = include_str!("every.yaml").split_once("---\n").unwrap();
    let defaults = Settings::default();
    for (text, default) in [(proxy, effective(&defaults)), (own, effective_own(&defaults))] {
        let set: Value = serde_saphyr::from_str(text).unwrap();
        for (pointer, default) in leaves("", &default) {
            let found = set.pointer(&pointer).unwrap_or_else(|| panic!("{pointer} is not set"));
            assert!(*found != default || as_default.contains(&pointer.as_str()), "{pointer} is as by default");
        }
    }
}

#[test]
fn a_file_as_kind_has_it_leaves_the_limit_of_the_kernel_alone() {
    let (settings, warnings) = read(include_str!("kind.yaml"));
    let defaults = Settings::default();
    let expected = Settings {
        kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
        detect_local: DetectLocal::ClusterCidr(nets(&["10.244.0.0/16"])),
        min_sync_period: Duration::from_secs(1),
        conntrack: Conntrack { max_per_core: 0, ..defaults.conntrack },
        ..defaults
    };
    assert_eq!((settings, warnings), (expected, Vec::new()));
}

#[rstest]
#[case("conntrack: {maxPerCore: -1}", "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.MaxPerCore")]
#[case("conntrack: {min: -1}", "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.Min")]
#[case(
    "conntrack: {tcpEstablishedTimeout: -1s}",
    "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPEstablishedTimeout"
)]
#[case(
    "conntrack: {tcpCloseWaitTimeout: -1s}",
    "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPCloseWaitTimeout"
)]
#[case("conntrack: {udpTimeout: -1s}", "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPTimeout")]
#[case(
    "conntrack: {udpStreamTimeout: -1s}",
    "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPStreamTimeout"
)]
#[case("oomScoreAdj: 1001", "KubeProxyLinuxConfiguration.OOMScoreAdj")]
#[case("oomScoreAdj: -1001", "KubeProxyLinuxConfiguration.OOMScoreAdj")]
#[case("clientConnection: {burst: -1}", "ClientConnection.Burst")]
#[case("configSyncPeriod: -1s", "ConfigSyncPeriod")]
#[case("showHiddenMetricsForVersion: '1.34'", "ShowHiddenMetricsForVersion")]
#[case("mode: userspace", "Mode.ProxyMode")]
#[case("mode: ipvs\nipvs: {tcpFinTimeout: -1s}", "KubeProxyIPVSConfiguration.TCPFinTimeout")]
#[case("mode: ipvs\nipvs: {udpTimeout: -1s}", "KubeProxyIPVSConfiguration.UDPTimeout")]
#[case("mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, 10.0.0.0/33]}", "KubeProxyIPVSConfiguration.ExcludeCidrs[1]")]
#[case("mode: ipvs\niptables: {masqueradeBit: 32}", "KubeProxyIPTablesConfiguration.MasqueradeBit")]
#[case("iptables: {syncPeriod: -1s, minSyncPeriod: -2s}\nmode: ''", "SyncPeriod, MinSyncPeriod")]
#[case("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}", "SyncPeriod")]
#[case("bindAddress: '[::]'", "BindAddress")]
#[case("bindAddress: host", "BindAddress")]
#[case("healthzBindAddress: host:1", "HealthzBindAddress")]
#[case("healthzBindAddress: 192.0.2.1:65536", "HealthzBindAddress")]
#[case("metricsBindAddress: 192.0.2.1:0", "MetricsBindAddress")]
#[case("metricsBindAddress: '2001:db8::1:x'", "MetricsBindAddress")]
#[case("nodePortAddresses: [primary, 10.0.0.0/8]", "NodePortAddresses[0]")]
#[case("nodePortAddresses: [10.0.0.0/8, 10.0.0.1]", "NodePortAddresses[1]")]
#[case("detectLocalMode: Other", "DetectLocalMode")]
#[case("detectLocalMode: BridgeInterface", "DetectLocalConfiguration.InterfaceName")]
#[case("detectLocalMode: InterfaceNamePrefix", "DetectLocalConfiguration.InterfacePrefix")]
#[case("clusterCIDR: '10.0.0.0/8,fd00::/8,fd01::/8'", "DetectLocalConfiguration.ClusterCIDRs")]
#[case("clusterCIDR: '10.0.0.0/8,11.0.0.0/8'", "DetectLocalConfiguration.ClusterCIDRs")]
#[case("clusterCIDR: '10.0.0.0/8, fd00::/8'", "DetectLocalConfiguration.ClusterCIDRs")]
#[case("logging: {vmodule: [{filePattern: a, verbosity: 2147483648}]}", "logging.vmodule[0]")]
#[case("logging: {format: xml}", "logging.format")]
#[case("logging: {flushFrequency: -1}", "logging.flushFrequency")]
#[case("logging: {verbosity: 2147483648}", "logging.verbosity")]
#[case("logging: {format: json, vmodule: [{filePattern: a, verbosity: 1}]}", "logging.vmodule")]
#[case("logging: {vmodule: [{filePattern: '', verbosity: 1}]}", "logging.vmodule[0]")]
#[case("logging: {vmodule: [{filePattern: 'a=b', verbosity: 1}]}", "logging.vmodule[0]")]
#[case("logging: {format: json}\nfeatureGates: {LoggingBetaOptions: false}", "logging.format")]
#[case("logging: {options: {text: {splitStream: true}}}", "logging.options.text.splitStream")]
#[case("logging: {options: {text: {infoBufferSize: 64Ki}}}", "logging.options.text.infoBufferSize")]
#[case("logging: {options: {json: {splitStream: true}}}", "logging.options.json.splitStream")]
#[case("logging: {options: {json: {infoBufferSize: 1}}}", "logging.options.json.infoBufferSize")]
#[case("logging: {options: {json: {infoBufferSize: big}}}", "logging.options.json.infoBufferSize")]
#[case("featureGates: {NoSuchGate: true}", "featureGates")]
#[case("featureGates: {NFTablesProxyMode: false}", "featureGates")]
#[case("mode: nftables", "Mode.ProxyMode")]
#[case("mode: ipvs\nipvs: {tcpTimeout: -1s}", "KubeProxyIPVSConfiguration.TCPTimeout")]
fn a_value_out_of_range_is_an_error_with_its_path(#[case] body: &str, #[case] path: &str) {
    let expected: Vec<String> = path.split(", ").map(|path| format!("KubeProxyConfiguration.{path}")).collect();
    assert_eq!(paths(from_file(body)), expected);
}

#[rstest]
#[case("clusterCIDR: '010.0.0.0/08,fd00::/8'\nnodePortAddresses: [010.0.0.0/8]\nbindAddress: 010.0.0.1")]
#[case("detectLocalMode: NodeCIDR\nclusterCIDR: nonsense\nhealthzBindAddress: 192.0.2.1")]
#[case("mode: iptables\nipvs: {tcpTimeout: -1s, excludeCIDRs: [x], syncPeriod: -1s, scheduler: A}")]
#[case("mode: ipvs\niptables: {syncPeriod: -1s}")]
#[case("logging: {flushFrequency: 0, verbosity: 0, options: {text: {infoBufferSize: 0}}}")]
#[case("clientConnection: {qps: -1, burst: null}\nconntrack: {min: null, udpTimeout: ''}\noomScoreAdj: null")]
#[case("winkernel: {networkName: '', enableDSR: false}\nwindowsRunAsService: false\nportRange: ''\nnftables: null")]
fn what_concerns_another_mode_or_is_not_set_stops_nobody(#[case] body: &str) {
    assert_eq!(from_file(body).map(|_| file(body).warnings), Ok(Vec::new()));
}

#[rstest]
#[case("conntrack: {min: 2147483648}")]
#[case("conntrack: {tcpEstablishedTimeout: 5}")]
#[case("clientConnection: {qps: '5'}")]
#[case("logging: {vmodule: a=1}")]
#[case("featureGates: {A: 1}")]
fn a_value_of_another_type_is_an_error(#[case] body: &str) {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    assert_eq!(ConfigFile::parse(&format!("{head}{body}")).unwrap_err().len(), 1);
}

#[test]
fn an_unknown_key_is_found_in_its_own_section() {
    let file = file(
        "iptables:\n  strictARP: true\nipvs:\n  strictARP: true\nconntrack:\n  \"maxx\": 1\nwinkernel:\n  sourceVip: a\n",
    );
    assert_eq!(
        file.warnings,
        [
            "line 8: unknown field conntrack.maxx; it has no effect",
            "line 4: unknown field iptables.strictARP; it has no effect",
            "line 9: winkernel is set, but portolan does not use it",
        ]
    );
}
