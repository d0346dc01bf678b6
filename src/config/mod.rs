//! Settings: kube-proxy's flags and configuration file, and a few flags of our own, as one plain value.
//!
//! A file ([`ConfigFile`]) and the command line ([`Flags`]) are both read into `RawConfig`, which is text and numbers
//! as they were written; `validate` turns that into [`Settings`] or into everything that is wrong with it at once.
//! With a file, most flags are ignored, as kube-proxy does it: see [`Settings::resolve`].

mod advice;
pub mod duration;
mod effective;
mod file;
mod flags;
mod gates;
mod groups;
mod ipvs;
mod logging;
pub mod node;
mod options;
mod own;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::duration::GoDuration;
use crate::kernel::Conntrack;
use crate::net::PerFamily;

pub use advice::{advice, node_remark, refusal};
pub use effective::effective;
pub use file::ConfigFile;
pub use flags::{
    ClientFlags, ConntrackFlags, Flags, LogFormat, LoggingFlags, ProcessFlags, Vmodule, normalize_flag_names,
};
pub use ipvs::{IpvsFlags, IpvsOptions, VipSetting};
pub use options::{ClientOptions, LoggingOptions, StreamOptions};
pub use own::{OwnFlags, effective_own, own_needing_restart};

/// Everything that can be set, checked and with defaults in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How packets are sent to endpoints.
    pub mode: ProxyMode,
    /// The name of the own Node object, trimmed and lower-case; `None`: the host's name (see [`Settings::node_name`]).
    pub hostname_override: Option<String>,
    /// The kubeconfig file; `None`: the service account of the pod.
    pub kubeconfig: Option<String>,
    /// The API server's URL, in place of the one in the kubeconfig.
    pub master: Option<String>,
    /// Families that are to be programmed if the node can do them.
    pub families: PerFamily<bool>,
    /// The node's address, unless unspecified (see [`node::node_ips`]). Nothing listens on it.
    pub bind_address: IpAddr,
    /// Where `/healthz` and `/livez` are served; `None`: nowhere.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is served.
    pub metrics_bind_address: SocketAddr,
    /// The bit of the firewall mark on traffic to be masqueraded, 0 to 31.
    pub masquerade_bit: u8,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// Serve IPv4 node ports on loopback addresses. Not in IPVS mode, which cannot.
    pub localhost_node_ports: bool,
    /// The delay before a failed sync is tried again; the proxy counts as unhealthy after twice this. More than 0.
    pub sync_period: Duration,
    /// The least time from the end of one sync to the start of the next.
    pub min_sync_period: Duration,
    /// The time between two comparisons of everything in the kernel with what should be there.
    pub full_sync_period: Duration,
    /// How traffic of this node's pods is told from other traffic.
    pub detect_local: DetectLocal,
    /// The addresses on which node ports are served.
    pub node_port_addresses: NodePortSetting,
    /// The feature gate AllowServiceExternalIPs.
    pub allow_external_ips: bool,
    /// Which of the two iptables programs is used.
    pub iptables_variant: IptablesVariant,
    /// How iptables mode lays out Services in the nat table.
    pub iptables_layout: IptablesLayout,
    /// What concerns IPVS mode only.
    pub ipvs: IpvsOptions,
    /// How the API server is asked.
    pub client: ClientOptions,
    /// Limits and times of connection tracking.
    pub conntrack: Conntrack,
    /// The log.
    pub logging: LoggingOptions,
    /// End when an address of the health or the metrics server cannot be bound.
    pub bind_address_hard_fail: bool,
    /// Serve profiles on the metrics server.
    pub profiling: bool,
    /// How willingly the kernel ends this process when memory is short, -1000 to 1000.
    pub oom_score_adj: i32,
    /// The time after which kube-proxy looks at all objects again. Nothing here needs that; it is kept to be shown.
    pub config_sync_period: Duration,
    /// All feature gates that were given.
    pub feature_gates: BTreeMap<String, bool>,
    /// Show metrics that were hidden in this version of kube-proxy; `None`: no.
    pub show_hidden_metrics_for_version: Option<String>,
}

/// `mode`: how packets are sent to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProxyMode {
    /// Chains of the nat table.
    #[default]
    Iptables,
    /// Virtual servers of the kernel's load balancer.
    Ipvs,
}

/// `detectLocalMode` with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// The source is in one of these: at most one of each family. Empty: no traffic counts as local.
    ClusterCidr(Vec<IpNet>),
    /// The source is in the Node's `spec.podCIDRs`.
    NodeCidr,
    /// The packet arrives through this interface.
    BridgeInterface(String),
    /// The packet arrives through an interface whose name begins with this.
    InterfaceNamePrefix(String),
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortSetting {
    /// `primary`: the node's own addresses.
    Primary,
    /// Addresses in these networks; empty: all.
    Cidrs(Vec<IpNet>),
}

/// How iptables mode lays out Services in the nat table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IptablesLayout {
    /// Rule by rule as kube-proxy does it.
    KubeProxy,
    /// With fewer rules and short walks.
    Compact,
}

/// Which iptables programs are used: a node may have both, and they do not see each other's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IptablesVariant {
    /// The one that other programs on the node use, as far as that can be told.
    #[default]
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// One thing that is wrong with a setting. Displays as kube-proxy words it: `path: Invalid value: "x": reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The path of the setting.
    pub path: String,
    /// The value as written; `None` when it is the absence that is wrong.
    pub value: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: Invalid value: {value:?}: {}", self.path, self.reason),
            None => write!(f, "{}: {}", self.path, self.reason),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn invalid(path: impl Into<String>, value: impl fmt::Display, reason: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), value: Some(value.to_string()), reason: reason.into() }
    }

    fn without_value(path: impl Into<String>, reason: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), value: None, reason: reason.into() }
    }
}

/// Settings as they were written, by either way. Empty text means "not set", unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawConfig {
    pub(crate) mode: String,
    /// `None`: not given; given, it must not be blank.
    pub(crate) hostname_override: Option<String>,
    pub(crate) kubeconfig: String,
    pub(crate) bind_address: String,
    /// `None`: nowhere.
    pub(crate) healthz_bind_address: Option<String>,
    /// `None`: nowhere, which is an error.
    pub(crate) metrics_bind_address: Option<String>,
    /// `None`: the default of 14.
    pub(crate) masquerade_bit: Option<i64>,
    pub(crate) masquerade_all: bool,
    /// `None`: the default, true.
    pub(crate) localhost_node_ports: Option<bool>,
    /// `None`: the default of 30 s.
    pub(crate) sync_period: Option<GoDuration>,
    /// `None`: the default of 1 s.
    pub(crate) min_sync_period: Option<GoDuration>,
    pub(crate) ipvs: ipvs::RawIpvs,
    pub(crate) detect_local_mode: String,
    pub(crate) bridge_interface: String,
    pub(crate) interface_name_prefix: String,
    pub(crate) cluster_cidrs: Vec<String>,
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) feature_gates: BTreeMap<String, bool>,
    pub(crate) client: groups::RawClient,
    pub(crate) conntrack: groups::RawConntrack,
    pub(crate) process: groups::RawProcess,
    pub(crate) logging: logging::RawLogging,
}

impl Settings {
    /// The settings of one start: of the file, if there is one, else of the flags. With a file only `--hostname-override`,
    /// `--master` and those of the log still count of kube-proxy's flags; [`Flags::ignored_with_file`] tells which were
    /// given in vain. Of our own settings each that is given by flag beats that of the file. All errors are reported, not only the first.
    pub fn resolve(flags: &Flags, file: Option<&ConfigFile>) -> Result<Settings, Vec<ConfigError>> {
        let mut raw = file.map_or_else(|| flags.to_raw(), |file| file.raw.clone());
        // Given but empty, it counts as not given; blank, it is an error.
        if let Some(name) = flags.hostname_override.as_ref().filter(|name| !name.is_empty()) {
            raw.hostname_override = Some(name.clone());
        }
        flags.logging.apply(&mut raw.logging);
        let (mut settings, mut errors) = validate::validate(&raw);
        settings.master = flags.master.clone().filter(|master| !master.is_empty());
        own::apply(&flags.own, file.map_or(&own::RawOwn::default(), |file| &file.own), &mut settings, &mut errors);
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }

    /// The name of the own Node object: the override, or the host's name, trimmed and lower-case.
    pub fn node_name(&self, hostname: &str) -> Result<String, ConfigError> {
        match &self.hostname_override {
            Some(name) => Ok(name.clone()),
            None => validate::hostname(hostname),
        }
    }

    /// The firewall mark on traffic to be masqueraded.
    pub fn masquerade_mark(&self) -> u32 {
        1 << self.masquerade_bit
    }
}

impl Default for Settings {
    /// kube-proxy's defaults; a full comparison every 15 minutes.
    fn default() -> Settings {
        Settings {
            mode: ProxyMode::Iptables,
            hostname_override: None,
            kubeconfig: None,
            master: None,
            families: PerFamily { v4: true, v6: true },
            bind_address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            healthz_bind_address: Some(SocketAddr::from(([0, 0, 0, 0], validate::HEALTHZ_PORT))),
            metrics_bind_address: SocketAddr::from(([127, 0, 0, 1], validate::METRICS_PORT)),
            masquerade_bit: 14,
            masquerade_all: false,
            localhost_node_ports: true,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::from_secs(1),
            full_sync_period: Duration::from_secs(15 * 60),
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortSetting::Cidrs(Vec::new()),
            allow_external_ips: true,
            iptables_variant: IptablesVariant::Auto,
            iptables_layout: IptablesLayout::KubeProxy,
            ipvs: IpvsOptions::default(),
            client: ClientOptions::default(),
            conntrack: options::CONNTRACK,
            logging: LoggingOptions::default(),
            bind_address_hard_fail: false,
            profiling: false,
            oom_score_adj: -999,
            config_sync_period: Duration::from_secs(15 * 60),
            feature_gates: BTreeMap::new(),
            show_hidden_metrics_for_version: None,
        }
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyMode::Iptables => "iptables",
            ProxyMode::Ipvs => "ipvs",
        })
    }
}

#[cfg(test)]
mod tests;
