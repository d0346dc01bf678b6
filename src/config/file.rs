//! The file of `--config`: a `KubeProxyConfiguration` in YAML or JSON, and, if somebody wants it, a
//! `PortolanConfiguration` as another document of the same file.
//!
//! A document is read into a tree and fields are taken out of it by name, so that what is left over is what we do not
//! know. That is a warning, not an error, as in kube-proxy: a field may be younger than this program.

mod documents;
mod groups;
mod own;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::config::duration::{GoDuration, parse_duration};
use crate::config::file::documents::{Document, Kind};
use crate::config::ipvs::RawIpvs;
use crate::config::own::RawOwn;
use crate::config::{ConfigError, RawConfig};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// Fields of kube-proxy that portolan does not use. Setting one earns a warning.
const UNUSED: [&str; 4] = ["nftables", "portRange", "windowsRunAsService", "winkernel"];

/// A configuration file that could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    pub(super) raw: RawConfig,
    pub(super) own: RawOwn,
    /// What is in the file without having an effect, for the log: unknown fields, repeated ones, unused ones.
    pub warnings: Vec<String>,
}

impl ConfigFile {
    /// Reads a file from disk; see [`ConfigFile::parse`].
    pub fn load(path: &str) -> Result<ConfigFile, Vec<ConfigError>> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| vec![ConfigError::without_value(path, format!("cannot be read: {error}"))])?;
        ConfigFile::parse(&text)
    }

    /// Reads the text of a file. Errors are those that make it unreadable: syntax, another kind of object or two of one
    /// kind, values of another type. Whether values make sense is checked by [`crate::config::Settings::resolve`].
    pub fn parse(text: &str) -> Result<ConfigFile, Vec<ConfigError>> {
        let mut warnings = Vec::new();
        let mut errors = Vec::new();
        let (mut raw, mut own) = (None, None);
        for Document { text, tree } in documents::read(text, &mut warnings).map_err(|error| vec![error])? {
            let mut reader = Reader { text: &text, errors: Vec::new(), warnings: Vec::new() };
            let again = match documents::kind(&tree) {
                Kind::Own => own.replace(reader.own(tree)).map(|_| crate::config::own::KIND),
                Kind::Proxy => raw.replace(reader.configuration(tree)).map(|_| KIND),
            };
            if let Some(kind) = again {
                errors.push(ConfigError::without_value("file", format!("has more than one {kind}")));
            }
            errors.append(&mut reader.errors);
            warnings.append(&mut reader.warnings);
        }
        match raw {
            _ if !errors.is_empty() => Err(errors),
            Some(raw) => Ok(ConfigFile { raw, own: own.unwrap_or_default(), warnings }),
            None => Err(vec![ConfigError::without_value("file", format!("has no {KIND}"))]),
        }
    }
}

/// Takes fields out of the tree and keeps what is wrong.
struct Reader<'a> {
    text: &'a str,
    errors: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn configuration(&mut self, mut tree: Map<String, Value>) -> RawConfig {
        let root = &mut tree;
        self.expect(root, "apiVersion", API_VERSION);
        self.expect(root, "kind", KIND);
        let mut connection = self.section(root, "clientConnection");
        let mut iptables = self.section(root, "iptables");
        let mut ipvs = self.section(root, "ipvs");
        let mut local = self.section(root, "detectLocal");
        let cluster_cidr = self.string(root, "", "clusterCIDR");
        let raw = RawConfig {
            mode: self.string(root, "", "mode"),
            hostname_override: Some(self.string(root, "", "hostnameOverride")).filter(|name| !name.is_empty()),
            kubeconfig: self.string(&mut connection, "clientConnection.", "kubeconfig"),
            bind_address: self.string(root, "", "bindAddress"),
            healthz_bind_address: Some(self.string(root, "", "healthzBindAddress")),
            metrics_bind_address: Some(self.string(root, "", "metricsBindAddress")),
            masquerade_bit: self.integer(&mut iptables, "iptables.", "masqueradeBit"),
            masquerade_all: self.bool(&mut iptables, "iptables.", "masqueradeAll").unwrap_or(false),
            localhost_node_ports: self.bool(&mut iptables, "iptables.", "localhostNodePorts"),
            sync_period: self.duration(&mut iptables, "iptables.", "syncPeriod"),
            min_sync_period: self.duration(&mut iptables, "iptables.", "minSyncPeriod"),
            ipvs: self.ipvs(&mut ipvs),
            detect_local_mode: self.string(root, "", "detectLocalMode"),
            bridge_interface: self.string(&mut local, "detectLocal.", "bridgeInterface"),
            interface_name_prefix: self.string(&mut local, "detectLocal.", "interfaceNamePrefix"),
            cluster_cidrs: if cluster_cidr.is_empty() {
                Vec::new()
            } else {
                cluster_cidr.split(',').map(str::to_owned).collect()
            },
            node_port_addresses: self.strings(root, "", "nodePortAddresses"),
            feature_gates: self.feature_gates(root),
            client: self.client(&mut connection),
            conntrack: self.conntrack(root),
            process: self.process(root),
            logging: self.logging(root),
        };
        self.rest(&connection, "clientConnection.", &[]);
        self.rest(&iptables, "iptables.", &[]);
        self.rest(&ipvs, "ipvs.", &[]);
        self.rest(&local, "detectLocal.", &[]);
        self.rest(root, "", &UNUSED);
        raw
    }

    fn ipvs(&mut self, section: &mut Map<String, Value>) -> RawIpvs {
        let prefix = "ipvs.";
        RawIpvs {
            scheduler: self.string(section, prefix, "scheduler"),
            exclude_cidrs: self.strings(section, prefix, "excludeCIDRs"),
            strict_arp: self.bool(section, prefix, "strictARP").unwrap_or(false),
            sync_period: self.duration(section, prefix, "syncPeriod"),
            min_sync_period: self.duration(section, prefix, "minSyncPeriod"),
            tcp_timeout: self.duration(section, prefix, "tcpTimeout"),
            tcp_fin_timeout: self.duration(section, prefix, "tcpFinTimeout"),
            udp_timeout: self.duration(section, prefix, "udpTimeout"),
        }
    }

    fn expect(&mut self, tree: &mut Map<String, Value>, field: &str, expected: &str) {
        let found = tree.remove(field).unwrap_or_default();
        if found != expected {
            let reason = format!("must be {expected}");
            self.errors.push(match found {
                Value::Null => ConfigError::without_value(field, reason),
                other => ConfigError::invalid(field, plain(&other), reason),
            });
        }
    }

    fn wrong_type(&mut self, path: String, value: &Value, wanted: &str) {
        self.errors.push(ConfigError::invalid(path, plain(value), format!("must be {wanted}")));
    }

    fn section(&mut self, tree: &mut Map<String, Value>, field: &str) -> Map<String, Value> {
        match tree.remove(field) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(section)) => section,
            Some(other) => {
                self.wrong_type(field.to_owned(), &other, "a mapping");
                Map::new()
            }
        }
    }

    fn string(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> String {
        match tree.remove(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text,
            Some(other) => {
                self.wrong_type(format!("{prefix}{field}"), &other, "a string");
                String::new()
            }
        }
    }

    fn strings(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Vec<String> {
        match tree.remove(field) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) if items.iter().all(Value::is_string) => items.iter().map(plain).collect(),
            Some(other) => {
                self.wrong_type(format!("{prefix}{field}"), &other, "a list of strings");
                Vec::new()
            }
        }
    }

    fn integer(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Option<i64> {
        let value = tree.remove(field).filter(|value| !value.is_null())?;
        let number = value.as_i64();
        if number.is_none() {
            self.wrong_type(format!("{prefix}{field}"), &value, "an integer");
        }
        number
    }

    /// A boolean in the spellings of YAML 1.1, which Kubernetes' own reader takes.
    fn bool(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Option<bool> {
        let value = tree.remove(field).filter(|value| !value.is_null())?;
        let bool = match &value {
            Value::Bool(bool) => Some(*bool),
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" => Some(true),
                "no" | "off" | "n" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if bool.is_none() {
            self.wrong_type(format!("{prefix}{field}"), &value, "true or false");
        }
        bool
    }

    /// A duration; absent, empty and zero all mean the default.
    fn duration(&mut self, tree: &mut Map<String, Value>, prefix: &str, field: &str) -> Option<GoDuration> {
        let text = self.string(tree, prefix, field);
        if text.is_empty() {
            return None;
        }
        match parse_duration(&text) {
            Ok(duration) => Some(duration).filter(|duration| duration.0 != 0),
            Err(error) => {
                self.errors.push(ConfigError::without_value(format!("{prefix}{field}"), error.to_string()));
                None
            }
        }
    }

    fn feature_gates(&mut self, tree: &mut Map<String, Value>) -> BTreeMap<String, bool> {
        let mut section = self.section(tree, "featureGates");
        let names: Vec<String> = section.keys().cloned().collect();
        names
            .into_iter()
            .filter_map(|name| self.bool(&mut section, "featureGates.", &name).map(|value| (name, value)))
            .collect()
    }

    /// Warns of what nobody took.
    fn rest(&mut self, tree: &Map<String, Value>, prefix: &str, unused: &[&str]) {
        for (field, value) in tree {
            if field == "nftables" && is_default_nftables(value) {
                continue;
            }
            let place = self.place(prefix, field);
            if !unused.contains(&field.as_str()) {
                self.warnings.push(format!("{place}: unknown field {prefix}{field}; it has no effect"));
            } else if !is_zero(value) {
                self.warnings.push(format!("{place}: {prefix}{field} is set, but portolan does not use it"));
            }
        }
    }

    /// `line 7` if one line is that of the field, else `file`.
    fn place(&self, prefix: &str, field: &str) -> String {
        let path = format!("{prefix}{field}");
        let mut lines = key_paths(self.text).into_iter().filter(|(_, found)| *found == path);
        match (lines.next(), lines.next()) {
            (Some((line, _)), None) => format!("line {line}"),
            _ => "file".to_owned(),
        }
    }
}

/// The lines on which keys of block mappings stand, from 1, with the paths of the keys as the indentation tells them.
/// What is written between braces is not looked into.
fn key_paths(text: &str) -> Vec<(usize, String)> {
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut paths = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let start = line.trim_start();
        let indent = line.len() - start.len();
        let Some((key, _)) = start.split_once(':').filter(|(key, _)| !key.starts_with(['#', '-', '{'])) else {
            continue;
        };
        while above.last().is_some_and(|(outer, _)| *outer >= indent) {
            above.pop();
        }
        above.push((indent, key.trim().trim_matches(['"', '\''])));
        paths.push((at + 1, above.iter().map(|(_, key)| *key).collect::<Vec<_>>().join(".")));
    }
    paths
}

/// Whether the section says what kube-proxy itself writes when nothing was set.
fn is_default_nftables(section: &Value) -> bool {
    let Value::Object(fields) = section else { return is_zero(section) };
    let is_default = |(field, value): (&String, &Value)| match field.as_str() {
        "masqueradeBit" => *value == 14,
        "syncPeriod" => *value == "30s",
        "minSyncPeriod" => *value == "1s",
        _ => false,
    };
    fields.iter().all(|field| is_zero(field.1) || is_default(field))
}

/// Whether a value is what kubeadm writes for "not set".
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(bool) => !bool,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || parse_duration(text).is_ok_and(|duration| duration.0 == 0),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
