//! From settings as written to settings as used. The rules, paths and the core of the messages are those of kube-proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::duration::GoDuration;
use crate::config::ipvs::RawIpvs;
use crate::config::{ConfigError, DetectLocal, IpvsOptions, NodePortSetting, ProxyMode, RawConfig, Settings, gates};
use crate::kernel::item::Scheduler;
use crate::net::IpFamily;
use crate::net::{parse_cidr, parse_ip, parse_socket};

/// The port of the health server when only an address is given.
pub(super) const HEALTHZ_PORT: u16 = 10256;
/// The port of the metrics server when only an address is given.
pub(super) const METRICS_PORT: u16 = 10249;

const ROOT: &str = "KubeProxyConfiguration";

/// Collects errors while values are read; a value that is wrong is replaced by anything, since it is never used.
#[derive(Default)]
pub(super) struct Checker {
    pub(super) errors: Vec<ConfigError>,
}

/// Checks everything and puts defaults in place. The settings are of no use if there are errors.
pub(super) fn validate(raw: &RawConfig) -> (Settings, Vec<ConfigError>) {
    let mut check = Checker::default();
    check.feature_gates(&raw.feature_gates);
    let defaults = Settings::default();
    let bind_address = check.bind_address(&raw.bind_address);
    let mode = check.mode(&raw.mode);
    // What is wrong for another mode stops nobody, as with kube-proxy.
    let mut other = Checker::default();
    let (for_iptables, for_ipvs) = match mode {
        ProxyMode::Iptables => (&mut check, &mut other),
        ProxyMode::Ipvs => (&mut other, &mut check),
    };
    let iptables_periods = for_iptables.periods("", (raw.sync_period, raw.min_sync_period), periods(&defaults));
    let ipvs = for_ipvs.ipvs(&raw.ipvs, defaults.ipvs.clone());
    let (sync_period, min_sync_period) = match mode {
        ProxyMode::Iptables => iptables_periods,
        ProxyMode::Ipvs => (ipvs.sync_period, ipvs.min_sync_period),
    };
    let settings = Settings {
        mode,
        hostname_override: check.hostname_override(raw.hostname_override.as_deref()),
        kubeconfig: Some(raw.kubeconfig.clone()).filter(|path| !path.is_empty()),
        bind_address,
        healthz_bind_address: raw
            .healthz_bind_address
            .as_ref()
            .map(|text| check.listen("HealthzBindAddress", text, unspecified(bind_address, HEALTHZ_PORT))),
        metrics_bind_address: check.metrics(raw.metrics_bind_address.as_deref(), loopback(bind_address, METRICS_PORT)),
        masquerade_bit: check.masquerade_bit(raw.masquerade_bit),
        masquerade_all: raw.masquerade_all,
        localhost_node_ports: raw.localhost_node_ports.unwrap_or(defaults.localhost_node_ports),
        detect_local: check.detect_local(raw),
        node_port_addresses: check.node_port_addresses(&raw.node_port_addresses),
        allow_external_ips: gates::external_ips(&raw.feature_gates),
        feature_gates: raw.feature_gates.clone(),
        client: check.client(&raw.client),
        conntrack: check.conntrack(&raw.conntrack),
        logging: check.logging(&raw.logging, &raw.feature_gates),
        bind_address_hard_fail: raw.process.bind_address_hard_fail,
        profiling: raw.process.profiling,
        oom_score_adj: check.oom_score_adj(raw.process.oom_score_adj, defaults.oom_score_adj),
        config_sync_period: check.config_sync_period(raw.process.config_sync_period, defaults.config_sync_period),
        show_hidden_metrics_for_version: check.hidden_metrics(&raw.process.show_hidden_metrics_for_version),
        sync_period,
        min_sync_period,
        ipvs,
        master: defaults.master,
        families: defaults.families,
        full_sync_period: defaults.full_sync_period,
        iptables_variant: defaults.iptables_variant,
        iptables_layout: defaults.iptables_layout,
    };
    (settings, check.errors)
}

fn periods(settings: &Settings) -> (Duration, Duration) {
    (settings.sync_period, settings.min_sync_period)
}

/// A node name: trimmed, lower-case, not empty.
pub(super) fn hostname(name: &str) -> Result<String, ConfigError> {
    let trimmed = name.trim().to_lowercase();
    if trimmed.is_empty() {
        return Err(ConfigError::invalid("hostnameOverride", name, "empty hostname-override is invalid"));
    }
    Ok(trimmed)
}

fn unspecified(like: IpAddr, port: u16) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    }
}

fn loopback(like: IpAddr, port: u16) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    }
}

impl Checker {
    pub(super) fn invalid(&mut self, path: &str, value: impl std::fmt::Display, reason: &str) {
        self.errors.push(ConfigError::invalid(format!("{ROOT}.{path}"), value, reason));
    }

    pub(super) fn forbidden(&mut self, path: &str, reason: &str) {
        self.errors.push(ConfigError::without_value(format!("{ROOT}.{path}"), format!("Forbidden: {reason}")));
    }

    fn mode(&mut self, mode: &str) -> ProxyMode {
        match mode {
            "" | "iptables" => return ProxyMode::Iptables,
            "ipvs" => return ProxyMode::Ipvs,
            "nftables" => self.invalid(
                "Mode.ProxyMode",
                mode,
                "portolan has no nftables mode: set mode to iptables or ipvs, or leave it blank for iptables",
            ),
            _ => self.invalid("Mode.ProxyMode", mode, "must be iptables, ipvs, or blank, which means iptables"),
        }
        ProxyMode::default()
    }

    fn hostname_override(&mut self, name: Option<&str>) -> Option<String> {
        match hostname(name?) {
            Ok(name) => Some(name),
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    fn bind_address(&mut self, text: &str) -> IpAddr {
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        if text.is_empty() {
            return unspecified;
        }
        parse_ip(text).unwrap_or_else(|| {
            self.invalid("BindAddress", text, "must be a valid IP");
            unspecified
        })
    }

    fn listen(&mut self, path: &str, text: &str, default: SocketAddr) -> SocketAddr {
        if text.is_empty() {
            return default;
        }
        match parse_socket(text, default.port()) {
            Some(socket) if socket.port() == 0 => self.invalid(path, text, "must be a valid port"),
            Some(socket) => return socket,
            None => self.invalid(path, text, "must be IP:port"),
        }
        default
    }

    fn metrics(&mut self, text: Option<&str>, default: SocketAddr) -> SocketAddr {
        let path = "MetricsBindAddress";
        text.map(|text| self.listen(path, text, default)).unwrap_or_else(|| {
            self.invalid(path, "", "must be IP:port; the metrics server cannot be switched off by --metrics-port=0");
            default
        })
    }

    fn masquerade_bit(&mut self, bit: Option<i64>) -> u8 {
        let bit = bit.unwrap_or(14);
        match u8::try_from(bit) {
            Ok(bit @ 0..=31) => bit,
            _ => {
                let path = "KubeProxyIPTablesConfiguration.MasqueradeBit";
                self.invalid(path, bit, "must be within the range [0, 31]");
                0
            }
        }
    }

    /// The two periods of a section, which begin the names of their settings. The default counts where there is none.
    fn periods(
        &mut self,
        section: &str,
        given: (Option<GoDuration>, Option<GoDuration>),
        defaults: (Duration, Duration),
    ) -> (Duration, Duration) {
        let sync = given.0.unwrap_or(GoDuration::from(defaults.0));
        let min = given.1.unwrap_or(GoDuration::from(defaults.1));
        if sync.0 <= 0 {
            self.invalid(&format!("{section}SyncPeriod"), sync, "must be greater than 0");
        }
        self.not_negative(&format!("{section}MinSyncPeriod"), min);
        if min > sync {
            // The path is that of kube-proxy, which shows the other value there.
            let reason = format!("must be greater than or equal to {ROOT}.{section}MinSyncPeriod");
            self.invalid(&format!("{section}SyncPeriod"), min, &reason);
        }
        (sync.to_std().unwrap_or_default(), min.to_std().unwrap_or_default())
    }

    pub(super) fn not_negative(&mut self, path: &str, duration: GoDuration) -> Duration {
        duration.to_std().unwrap_or_else(|| {
            self.invalid(path, duration, "must be greater than or equal to 0");
            Duration::ZERO
        })
    }

    fn ipvs(&mut self, raw: &RawIpvs, defaults: IpvsOptions) -> IpvsOptions {
        let section = "KubeProxyIPVSConfiguration.";
        let given = (raw.sync_period, raw.min_sync_period);
        let (sync_period, min_sync_period) =
            self.periods(section, given, (defaults.sync_period, defaults.min_sync_period));
        let mut timeout = |field: &str, given: Option<GoDuration>, default: Duration| {
            given.map_or(default, |timeout| self.not_negative(&format!("{section}{field}"), timeout))
        };
        IpvsOptions {
            tcp_timeout: timeout("TCPTimeout", raw.tcp_timeout, defaults.tcp_timeout),
            tcp_fin_timeout: timeout("TCPFinTimeout", raw.tcp_fin_timeout, defaults.tcp_fin_timeout),
            udp_timeout: timeout("UDPTimeout", raw.udp_timeout, defaults.udp_timeout),
            scheduler: self.scheduler(&format!("{section}Scheduler"), &raw.scheduler, defaults.scheduler),
            exclude_cidrs: self.cidrs(&format!("{section}ExcludeCidrs"), &raw.exclude_cidrs),
            strict_arp: raw.strict_arp,
            sync_period,
            min_sync_period,
            ..defaults
        }
    }

    fn scheduler(&mut self, path: &str, name: &str, default: Scheduler) -> Scheduler {
        if name.is_empty() {
            return default;
        }
        Scheduler::new(name).unwrap_or_else(|| {
            self.invalid(path, name, "must be 1 to 15 lower-case letters, digits, '-' or '_'");
            default
        })
    }

    fn cidrs(&mut self, path: &str, texts: &[String]) -> Vec<IpNet> {
        let mut cidrs = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            match parse_cidr(text) {
                Some(cidr) => cidrs.push(cidr),
                None => self.invalid(&format!("{path}[{at}]"), text, "must be a valid CIDR"),
            }
        }
        cidrs
    }

    fn detect_local(&mut self, raw: &RawConfig) -> DetectLocal {
        match raw.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => DetectLocal::ClusterCidr(self.cluster_cidrs(&raw.cluster_cidrs)),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(self.not_empty("InterfaceName", &raw.bridge_interface)),
            "InterfaceNamePrefix" => {
                DetectLocal::InterfaceNamePrefix(self.not_empty("InterfacePrefix", &raw.interface_name_prefix))
            }
            other => {
                let known = "supported values: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix";
                self.invalid("DetectLocalMode", other, known);
                DetectLocal::NodeCidr
            }
        }
    }

    fn not_empty(&mut self, field: &str, value: &str) -> String {
        if value.is_empty() {
            self.invalid(&format!("DetectLocalConfiguration.{field}"), value, "must not be empty");
        }
        value.to_owned()
    }

    /// One CIDR, or two of different families.
    fn cluster_cidrs(&mut self, texts: &[String]) -> Vec<IpNet> {
        let path = "DetectLocalConfiguration.ClusterCIDRs";
        let cidrs: Vec<IpNet> = texts.iter().filter_map(|text| parse_cidr(text)).collect();
        let problem = match cidrs.as_slice() {
            _ if cidrs.len() != texts.len() => {
                Some("must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)")
            }
            [] | [_] => None,
            [first, second] if IpFamily::of_net(first) != IpFamily::of_net(second) => None,
            [_, _] => Some("must be a either a single CIDR or one of each family"),
            _ => Some("only one CIDR allowed or a valid DualStack CIDR (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)"),
        };
        if let Some(problem) = problem {
            self.invalid(path, texts.join(","), problem);
        }
        cidrs
    }

    fn node_port_addresses(&mut self, texts: &[String]) -> NodePortSetting {
        if texts == ["primary"] {
            return NodePortSetting::Primary;
        }
        let mut cidrs = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let path = format!("NodePortAddresses[{at}]");
            match parse_cidr(text) {
                Some(cidr) => cidrs.push(cidr),
                None if text == "primary" => self.invalid(&path, text, "can't use both 'primary' and CIDRs"),
                None => self.invalid(&path, text, "must be a valid CIDR"),
            }
        }
        NodePortSetting::Cidrs(cidrs)
    }
}
