//! Every flag of kube-proxy is taken, and where it lands.

use rstest::rstest;

use super::{flags, from_file, from_flags, paths};
use crate::config::{ClientOptions, LogFormat, LoggingOptions, Settings, StreamOptions};
use crate::kernel::Conntrack;
use std::time::Duration;

fn client(change: impl FnOnce(&mut ClientOptions)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings.client);
    settings
}

fn conntrack(change: impl FnOnce(&mut Conntrack)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings.conntrack);
    settings
}

fn logging(change: impl FnOnce(&mut LoggingOptions)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings.logging);
    settings
}

fn alpha(change: impl FnOnce(&mut LoggingOptions)) -> Settings {
    Settings { feature_gates: [("LoggingAlphaOptions".to_owned(), true)].into(), ..logging(change) }
}

const MINUTE: Duration = Duration::from_secs(60);

#[rstest]
#[case("--bind-address-hard-fail", Settings { bind_address_hard_fail: true, ..Settings::default() })]
#[case("--bind-address-hard-fail=false", Settings::default())]
#[case("--profiling", Settings { profiling: true, ..Settings::default() })]
#[case("--show-hidden-metrics-for-version=1.35", Settings { show_hidden_metrics_for_version: Some("1.35".into()), ..Settings::default() })]
#[case("--kube-api-content-type=application/json", client(|client| client.content_type = "application/json".into()))]
#[case("--kube-api-qps=0.5", client(|client| client.qps = 0.5))]
#[case("--kube-api-qps=0", Settings::default())]
#[case("--kube-api-qps=-1", client(|client| client.qps = -1.0))]
#[case("--kube-api-burst=50", client(|client| client.burst = 50))]
#[case("--kube-api-burst=0", Settings::default())]
#[case("--oom-score-adj=-998", Settings { oom_score_adj: -998, ..Settings::default() })]
#[case("--oom-score-adj=0", Settings { oom_score_adj: 0, ..Settings::default() })]
#[case("--config-sync-period=1m", Settings { config_sync_period: MINUTE, ..Settings::default() })]
#[case("--conntrack-max-per-core=0", conntrack(|conntrack| conntrack.max_per_core = 0))]
#[case("--conntrack-min=7", conntrack(|conntrack| conntrack.min = 7))]
#[case("--conntrack-tcp-timeout-established=0s", conntrack(|conntrack| conntrack.tcp_established_timeout = Duration::ZERO))]
#[case("--conntrack-tcp-timeout-close-wait=1m", conntrack(|conntrack| conntrack.tcp_close_wait_timeout = MINUTE))]
#[case("--conntrack-tcp-be-liberal", conntrack(|conntrack| conntrack.tcp_be_liberal = true))]
#[case("--conntrack-udp-timeout=1m", conntrack(|conntrack| conntrack.udp_timeout = MINUTE))]
#[case("--conntrack-udp-timeout-stream=1m", conntrack(|conntrack| conntrack.udp_stream_timeout = MINUTE))]
#[case("--healthz-port=0", Settings { healthz_bind_address: None, ..Settings::default() })]
#[case("--healthz-port=1 --metrics-port=2", Settings::default())]
#[case(
    "--healthz-port=1 --healthz-bind-address=192.0.2.1 --metrics-port=2 --metrics-bind-address=2001:db8::1",
    Settings {
        healthz_bind_address: Some("192.0.2.1:1".parse().unwrap()),
        metrics_bind_address: "[2001:db8::1]:2".parse().unwrap(),
        ..Settings::default()
    }
)]
#[case("--healthz-port=0 --write-config-to=/f", Settings::default())]
#[case("--healthz-bind-address= --metrics-bind-address= --bind-address=", Settings::default())]
#[case("--boot-id-file=/b --machine-id-file=/m --init-only", Settings::default())]
#[case("-v=4", logging(|logging| logging.verbosity = 4))]
#[case("--v=11", logging(|logging| logging.verbosity = 11))]
#[case("--logging-format=json", logging(|logging| logging.format = LogFormat::Json))]
#[case("--vmodule=a*=3,,b=4", logging(|logging| logging.vmodule = vec![("a*".into(), 3), ("b".into(), 4)]))]
#[case("--vmodule=", Settings::default())]
#[case("--log-flush-frequency=1m", logging(|logging| logging.flush_frequency = MINUTE))]
#[case("--feature-gates=LoggingAlphaOptions=true --log-text-split-stream", alpha(|logging| logging.text.split_stream = true))]
#[case(
    "--feature-gates=LoggingAlphaOptions=true --log-text-info-buffer-size=64Ki",
    alpha(|logging| logging.text.info_buffer_size = "64Ki".into())
)]
#[case(
    "--feature-gates=LoggingAlphaOptions=true --log-json-split-stream=true --log-json-info-buffer-size=1M",
    alpha(|logging| logging.json = StreamOptions { split_stream: true, info_buffer_size: "1M".into() })
)]
fn a_flag_lands_in_its_setting(#[case] line: &str, #[case] expected: Settings) {
    let arguments: Vec<&str> = line.split(' ').collect();
    assert_eq!(from_flags(&arguments).unwrap(), expected);
}

#[rstest]
#[case("--metrics-port=0", "KubeProxyConfiguration.MetricsBindAddress")]
#[case("--healthz-port=70000 --healthz-bind-address=0.0.0.0", "KubeProxyConfiguration.HealthzBindAddress")]
#[case("--kube-api-burst=-1", "KubeProxyConfiguration.ClientConnection.Burst")]
#[case("--logging-format=json --vmodule=a=1", "KubeProxyConfiguration.logging.vmodule")]
#[case("--log-text-split-stream", "KubeProxyConfiguration.logging.options.text.splitStream")]
#[case("--log-json-info-buffer-size=1M", "KubeProxyConfiguration.logging.options.json.infoBufferSize")]
#[case("--feature-gates=NoSuchGate=true", "KubeProxyConfiguration.featureGates")]
#[case("--config-sync-period=0s", "KubeProxyConfiguration.ConfigSyncPeriod")]
fn a_flag_with_a_value_that_makes_no_sense_is_an_error_with_its_path(#[case] line: &str, #[case] path: &str) {
    assert_eq!(paths(from_flags(&line.split(' ').collect::<Vec<_>>())), [path]);
}

#[test]
fn with_a_file_the_flags_of_the_log_still_count_and_others_are_reported_as_ignored() {
    let given = flags(&["-v=3", "--vmodule=a=1", "--oom-score-adj=1", "--conntrack-min=1", "--kube-api-qps=9"]);
    let file = super::file("logging: {format: text}\n");
    let settings = Settings::resolve(&given, Some(&file)).unwrap();
    let expected = logging(|logging| (logging.verbosity, logging.vmodule) = (3, vec![("a".into(), 1)]));
    assert_eq!(settings, expected);
    assert_eq!(given.ignored_with_file(), ["--kube-api-qps", "--conntrack-min", "--oom-score-adj"]);
    assert_eq!(from_file("").unwrap(), Settings::default());
}

#[test]
fn flags_that_choose_another_task_than_proxying_are_no_settings() {
    let given = flags(&["--init-only", "--write-config-to=/f"]);
    assert_eq!((given.init_only, given.write_config_to.as_deref()), (Some(true), Some("/f")));
    assert_eq!(flags(&["--init-only=false"]).init_only, Some(false));
}

/// Every flag of kube-proxy, with a value that it takes.
const KUBE_PROXY: &str = "
    --bind-address=0.0.0.0 --healthz-bind-address=0.0.0.0:10256 --metrics-bind-address=127.0.0.1:10249
    --bind-address-hard-fail=true --profiling=true --show-hidden-metrics-for-version=1.35 --proxy-mode=ipvs
    --feature-gates=WatchList=true --kubeconfig=/k --kube-api-content-type=application/json --kube-api-burst=10
    --kube-api-qps=5 --iptables-masquerade-bit=14 --iptables-localhost-nodeports=true --masquerade-all=true
    --iptables-sync-period=30s --iptables-min-sync-period=1s --ipvs-sync-period=30s --ipvs-min-sync-period=1s
    --ipvs-scheduler=rr --ipvs-exclude-cidrs=10.0.0.0/8 --ipvs-strict-arp=true --ipvs-tcp-timeout=1s
    --ipvs-tcpfin-timeout=1s --ipvs-udp-timeout=1s --detect-local-mode=NodeCIDR --pod-bridge-interface=cni0
    --pod-interface-name-prefix=veth --cluster-cidr=10.0.0.0/8 --nodeport-addresses=primary --oom-score-adj=-999
    --config-sync-period=15m --conntrack-max-per-core=1 --conntrack-min=1 --conntrack-tcp-timeout-established=1s
    --conntrack-tcp-timeout-close-wait=1s --conntrack-tcp-be-liberal=true --conntrack-udp-timeout=1s
    --conntrack-udp-timeout-stream=1s --healthz-port=1 --metrics-port=2 --boot-id-file=/b --machine-id-file=/m
    --config=/c --write-config-to=/f --cleanup=false --init-only=false --master=https://192.0.2.1
    --hostname-override=node --v=2 --vmodule=a=1 --logging-format=text --log-flush-frequency=5s
    --log-text-split-stream=false --log-text-info-buffer-size=0 --log-json-split-stream=false
    --log-json-info-buffer-size=0";

#[test]
fn every_flag_of_kube_proxy_is_taken_with_dashes_and_with_underscores() {
    for argument in KUBE_PROXY.split_whitespace() {
        let (name, value) = argument.split_once('=').unwrap();
        let underscores = format!("--{}={value}", name.trim_start_matches('-').replace('-', "_"));
        assert_eq!(format!("{:?}", flags(&[argument])), format!("{:?}", flags(&[&underscores])), "{argument}");
        assert_ne!(format!("{:?}", flags(&[argument])), format!("{:?}", flags(&[])), "{argument}");
    }
    assert!(from_flags(&KUBE_PROXY.split_whitespace().collect::<Vec<_>>()).is_ok());
}

#[test]
fn with_a_file_each_flag_is_either_honoured_or_reported_as_ignored() {
    const HONOURED: &str = "--config --write-config-to --cleanup --init-only --master --hostname-override --v --vmodule \
        --logging-format --log-flush-frequency --log-text-split-stream --log-text-info-buffer-size \
        --log-json-split-stream --log-json-info-buffer-size --boot-id-file --machine-id-file";
    let given = flags(&KUBE_PROXY.split_whitespace().collect::<Vec<_>>());
    let mut names: Vec<&str> = given.ignored_with_file();
    names.extend(HONOURED.split_whitespace());
    names.sort_unstable();
    let mut all: Vec<&str> =
        KUBE_PROXY.split_whitespace().filter_map(|flag| flag.split_once('=')).map(|(name, _)| name).collect();
    all.sort_unstable();
    assert_eq!(names, all);
}
