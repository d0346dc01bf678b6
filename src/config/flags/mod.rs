//! The daemon's command line: kube-proxy's flags by their names, and a few of our own.

mod client;
mod conntrack;
mod logging;
mod process;

use std::ffi::OsString;

use crate::config::duration::{GoDuration, parse_duration};
use crate::config::flags::process::DeprecatedPorts;
use crate::config::ipvs::{IpvsFlags, list};
use crate::config::logging::RawLogging;
use crate::config::{OwnFlags, RawConfig};

pub use client::ClientFlags;
pub use conntrack::ConntrackFlags;
pub use logging::{LoggingFlags, Vmodule};
pub use process::ProcessFlags;

/// The heading in the help of what kube-proxy does not have.
pub(super) const OWN: &str = "portolan's own (these count with --config, too)";

/// The flags of the daemon. Absent means "not given": defaults are put in place later, since with a file most flags do
/// not count.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// KubeProxyConfiguration file; with it, most other flags are ignored
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// Write the configuration with its defaults to this file and end
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<String>,
    /// Do what needs all privileges, and end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub init_only: Option<bool>,
    /// Remove what was programmed and end, as the command `cleanup` does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub cleanup: Option<bool>,
    /// Read Services, EndpointSlices and the Node from this YAML file, or all in this directory, instead of the API server
    #[arg(long, value_name = "PATH", help_heading = OWN)]
    pub manifests: Option<String>,
    /// How packets are sent to endpoints: iptables or ipvs [default: iptables]
    #[arg(long, visible_alias = "mode", value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// Name of this node, instead of the host's name
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// File with access to the API server; without it, the pod's service account is used
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// URL of the API server, in place of the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Pod network, one CIDR or one of each family separated by a comma
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// How local traffic is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// Bridge through which local pods send, for BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// Beginning of the names of local pods' interfaces, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Serve node ports only on addresses in these CIDRs, or "primary" for the node's own addresses
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub nodeport_addresses: Option<Vec<String>>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub masquerade_all: Option<bool>,
    /// Bit of the firewall mark on traffic to be masqueraded [default: 14]
    #[arg(long, value_name = "BIT", allow_hyphen_values = true)]
    pub iptables_masquerade_bit: Option<i32>,
    /// Least time between two syncs [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// Time until a failed sync is tried again [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub iptables_sync_period: Option<GoDuration>,
    /// Serve IPv4 node ports on 127.0.0.0/8 too [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub iptables_localhost_nodeports: Option<bool>,
    /// Those of IPVS mode.
    #[command(flatten)]
    pub ipvs: IpvsFlags,
    /// This node's address and primary family, unless unspecified [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Feature gates of Kubernetes; AllowServiceExternalIPs and those of logging have an effect
    #[arg(long, value_name = "NAME=BOOL,...", value_delimiter = ',', value_parser = parse_gate)]
    pub feature_gates: Option<Vec<(String, bool)>>,
    /// Our own, which the file has in a document of its own.
    #[command(flatten)]
    pub own: OwnFlags,
    /// Those of the connection to the API server.
    #[command(flatten)]
    pub client: ClientFlags,
    /// Those of connection tracking.
    #[command(flatten)]
    pub conntrack: ConntrackFlags,
    /// Those of the process and its servers.
    #[command(flatten)]
    pub process: ProcessFlags,
    /// Those of the log.
    #[command(flatten)]
    pub logging: LoggingFlags,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

impl Flags {
    /// The names of flags that were given although a file takes their place.
    pub fn ignored_with_file(&self) -> Vec<&'static str> {
        [
            ("--proxy-mode", self.proxy_mode.is_some()),
            ("--kubeconfig", self.kubeconfig.is_some()),
            ("--cluster-cidr", self.cluster_cidr.is_some()),
            ("--detect-local-mode", self.detect_local_mode.is_some()),
            ("--pod-bridge-interface", self.pod_bridge_interface.is_some()),
            ("--pod-interface-name-prefix", self.pod_interface_name_prefix.is_some()),
            ("--nodeport-addresses", self.nodeport_addresses.is_some()),
            ("--masquerade-all", self.masquerade_all.is_some()),
            ("--iptables-masquerade-bit", self.iptables_masquerade_bit.is_some()),
            ("--iptables-min-sync-period", self.iptables_min_sync_period.is_some()),
            ("--iptables-sync-period", self.iptables_sync_period.is_some()),
            ("--iptables-localhost-nodeports", self.iptables_localhost_nodeports.is_some()),
            ("--bind-address", self.bind_address.is_some()),
            ("--feature-gates", self.feature_gates.is_some()),
        ]
        .into_iter()
        .chain(self.ipvs.given())
        .chain(self.client.given())
        .chain(self.conntrack.given())
        .chain(self.process.given())
        .filter(|(_, given)| *given)
        .map(|(name, _)| name)
        .collect()
    }

    /// The settings that the flags alone make.
    pub(super) fn to_raw(&self) -> RawConfig {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let ports = if self.write_config_to.is_none() { DeprecatedPorts::Used } else { DeprecatedPorts::Ignored };
        RawConfig {
            mode: text(&self.proxy_mode),
            hostname_override: None,
            kubeconfig: text(&self.kubeconfig),
            bind_address: text(&self.bind_address),
            healthz_bind_address: self.process.healthz(ports),
            metrics_bind_address: self.process.metrics(ports),
            masquerade_bit: self.iptables_masquerade_bit.map(i64::from),
            masquerade_all: self.masquerade_all.unwrap_or(false),
            localhost_node_ports: self.iptables_localhost_nodeports,
            sync_period: self.iptables_sync_period,
            min_sync_period: self.iptables_min_sync_period,
            ipvs: self.ipvs.to_raw(),
            detect_local_mode: text(&self.detect_local_mode),
            bridge_interface: text(&self.pod_bridge_interface),
            interface_name_prefix: text(&self.pod_interface_name_prefix),
            cluster_cidrs: self
                .cluster_cidr
                .as_deref()
                .map(|cidrs| cidrs.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            node_port_addresses: list(self.nodeport_addresses.as_deref()),
            // The last one counts.
            feature_gates: self.feature_gates.iter().flatten().cloned().collect(),
            client: self.client.to_raw(),
            conntrack: self.conntrack.to_raw(),
            process: self.process.to_raw(),
            logging: RawLogging::default(),
        }
    }
}

/// Turns `--proxy_mode` into `--proxy-mode`: kube-proxy takes both. Values and what follows `--` stay as they are.
pub fn normalize_flag_names(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_end = false;
    arguments
        .into_iter()
        .map(|argument| {
            flags_end |= argument == "--";
            match argument.to_str() {
                Some(text) if text.starts_with("--") && !flags_end => {
                    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                    OsString::from(name.replace('_', "-") + value)
                }
                _ => argument,
            }
        })
        .collect()
}

/// The spellings that Go's flags take.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn parse_gate(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no value: write NAME=true"))?;
    Ok((name.trim().to_owned(), parse_bool(value.trim())?))
}
