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
