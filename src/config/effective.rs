//! Settings written back as a `KubeProxyConfiguration`: what is in force, whichever way it was set.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::config::duration::GoDuration;
use crate::config::{DetectLocal, NodePortSetting, ProxyMode, Settings, StreamOptions};

/// The v1alpha1 object that means these settings, defaults filled in: what `/configz` shows under the key
/// `kubeproxy.config.k8s.io`. As with kube-proxy only the mode in force shows its periods, those of the other modes are
/// `0s`, and `primary` in `nodePortAddresses` is not spelled out. Settings of portolan's own are in [`crate::config::effective_own`]. Not shown is the
/// API server's URL of `--master`, which has no field. Sections of other systems and modes that [`Settings`] does not
/// keep show their defaults.
pub fn effective(settings: &Settings) -> Value {
    let mut object = servers(settings);
    object.extend(sections(settings));
    object.extend(local_traffic(&settings.detect_local));
    let gates = feature_gates(settings);
    if !gates.is_empty() {
        object.insert("featureGates".to_owned(), json!(gates));
    }
    Value::Object(object)
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

fn duration(duration: Duration) -> String {
    GoDuration::from(duration).to_string()
}

/// kube-proxy keeps lists that were not given as null.
fn list(items: impl IntoIterator<Item = impl ToString>) -> Value {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { Value::Null } else { json!(items) }
}

/// The fields outside all sections.
fn servers(settings: &Settings) -> Map<String, Value> {
    let node_port_addresses = match &settings.node_port_addresses {
        NodePortSetting::Primary => json!(["primary"]),
        NodePortSetting::Cidrs(cidrs) => list(cidrs),
    };
    fields(json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": settings.mode.to_string(),
        "hostnameOverride": settings.hostname_override.as_deref().unwrap_or_default(),
        "bindAddress": settings.bind_address.to_string(),
        "healthzBindAddress": settings.healthz_bind_address.map(|at| at.to_string()).unwrap_or_default(),
        "metricsBindAddress": settings.metrics_bind_address.to_string(),
        "bindAddressHardFail": settings.bind_address_hard_fail,
        "enableProfiling": settings.profiling,
        "showHiddenMetricsForVersion": settings.show_hidden_metrics_for_version.as_deref().unwrap_or_default(),
        "nodePortAddresses": node_port_addresses,
        "oomScoreAdj": settings.oom_score_adj,
        "configSyncPeriod": duration(settings.config_sync_period),
        "portRange": "",
    }))
}

/// The sections, except that of local traffic.
fn sections(settings: &Settings) -> Map<String, Value> {
    let (client, conntrack, ipvs) = (&settings.client, &settings.conntrack, &settings.ipvs);
    let periods = |mode: ProxyMode| {
        let in_force = settings.mode == mode;
        [settings.sync_period, settings.min_sync_period].map(|period| {
            // The other modes' periods are not kept.
            duration(if in_force { period } else { Duration::ZERO })
        })
    };
    let [iptables_sync, iptables_min] = periods(ProxyMode::Iptables);
    let [ipvs_sync, ipvs_min] = periods(ProxyMode::Ipvs);
    fields(json!({
        "clientConnection": {
            "kubeconfig": settings.kubeconfig.as_deref().unwrap_or_default(),
            "acceptContentTypes": client.accept_content_types,
            "contentType": client.content_type,
            "qps": client.qps,
            "burst": client.burst,
        },
        "conntrack": {
            "maxPerCore": conntrack.max_per_core,
            "min": conntrack.min,
            "tcpEstablishedTimeout": duration(conntrack.tcp_established_timeout),
            "tcpCloseWaitTimeout": duration(conntrack.tcp_close_wait_timeout),
            "tcpBeLiberal": conntrack.tcp_be_liberal,
            "udpTimeout": duration(conntrack.udp_timeout),
            "udpStreamTimeout": duration(conntrack.udp_stream_timeout),
        },
        // IPVS mode takes the bit and masqueradeAll from here too.
        "iptables": {
            "masqueradeBit": settings.masquerade_bit,
            "masqueradeAll": settings.masquerade_all,
            "localhostNodePorts": settings.localhost_node_ports,
            "syncPeriod": iptables_sync,
            "minSyncPeriod": iptables_min,
        },
        "ipvs": {
            "scheduler": ipvs.scheduler.as_str(),
            "excludeCIDRs": list(&ipvs.exclude_cidrs),
            "strictARP": ipvs.strict_arp,
            "syncPeriod": ipvs_sync,
            "minSyncPeriod": ipvs_min,
            "tcpTimeout": duration(ipvs.tcp_timeout),
            "tcpFinTimeout": duration(ipvs.tcp_fin_timeout),
            "udpTimeout": duration(ipvs.udp_timeout),
        },
        "logging": logging(settings),
        "nftables": { "masqueradeBit": 14, "masqueradeAll": false, "syncPeriod": "0s", "minSyncPeriod": "0s" },
        "winkernel": {
            "networkName": "",
            "sourceVip": "",
            "enableDSR": false,
            "rootHnsEndpointName": "",
            "forwardHealthCheckVip": false,
        },
    }))
}

fn logging(settings: &Settings) -> Value {
    let logging = &settings.logging;
    let stream = |options: &StreamOptions| {
        let mut stream = fields(json!({ "infoBufferSize": options.info_buffer_size }));
        if options.split_stream {
            stream.insert("splitStream".to_owned(), json!(true));
        }
        stream
    };
    let mut section = fields(json!({
        "format": logging.format.to_string(),
        "flushFrequency": duration(logging.flush_frequency),
        "verbosity": logging.verbosity,
        "options": { "json": stream(&logging.json), "text": stream(&logging.text) },
    }));
    if !logging.vmodule.is_empty() {
        let item = |(pattern, verbosity): &(String, u32)| json!({ "filePattern": pattern, "verbosity": verbosity });
        section.insert("vmodule".to_owned(), logging.vmodule.iter().map(item).collect());
    }
    Value::Object(section)
}

fn local_traffic(setting: &DetectLocal) -> Map<String, Value> {
    let (mut cidrs, mut bridge, mut prefix) = (String::new(), "", "");
    let mode = match setting {
        DetectLocal::ClusterCidr(own) => {
            cidrs = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            "ClusterCIDR"
        }
        DetectLocal::NodeCidr => "NodeCIDR",
        DetectLocal::BridgeInterface(name) => {
            bridge = name;
            "BridgeInterface"
        }
        DetectLocal::InterfaceNamePrefix(name) => {
            prefix = name;
            "InterfaceNamePrefix"
        }
    };
    fields(json!({
        "clusterCIDR": cidrs,
        "detectLocalMode": mode,
        "detectLocal": { "bridgeInterface": bridge, "interfaceNamePrefix": prefix },
    }))
}

/// All gates that were given, and the one that has an effect when it is off.
fn feature_gates(settings: &Settings) -> BTreeMap<String, bool> {
    let mut gates = settings.feature_gates.clone();
    if !settings.allow_external_ips {
        gates.insert(crate::config::gates::EXTERNAL_IPS.to_owned(), false);
    }
    gates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigFile, Flags};

    fn read_back(settings: &Settings) -> (Settings, Vec<String>) {
        let file = ConfigFile::parse(&effective(settings).to_string()).unwrap();
        (Settings::resolve(&Flags::default(), Some(&file)).unwrap(), file.warnings)
    }

    #[test]
    fn the_object_that_is_shown_means_the_settings_that_it_was_made_from() {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        for body in [
            "",
            "mode: iptables\nbindAddress: '::'\nclusterCIDR: 10.0.0.0/8,fd00::/8\nnodePortAddresses: [primary]\n",
            "mode: ipvs\niptables: {masqueradeAll: true, masqueradeBit: 3}\nfeatureGates: {AllowServiceExternalIPs: false}\n\
             ipvs: {scheduler: lc, excludeCIDRs: [10.0.0.0/8], strictARP: true, syncPeriod: 1m, minSyncPeriod: 250ms, udpTimeout: 5m}\n",
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\nhostnameOverride: Node-A\n",
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\nnodePortAddresses: [fd00::/8]\n",
            "detectLocalMode: NodeCIDR\nclientConnection: {kubeconfig: /k}\nhealthzBindAddress: 192.0.2.1:1\n",
        ] {
            let file = ConfigFile::parse(&format!("{head}{body}")).unwrap();
            let settings = Settings::resolve(&Flags::default(), Some(&file)).unwrap();
            let (again, warnings) = read_back(&settings);
            assert_eq!(again, settings, "{body}");
            assert!(!warnings.iter().any(|warning| warning.contains("unknown field")), "{warnings:?}");
        }
    }

    #[test]
    fn only_the_mode_in_force_shows_its_periods() {
        let iptables = effective(&Settings::default());
        assert_eq!(
            (&iptables["iptables"]["syncPeriod"], &iptables["iptables"]["minSyncPeriod"]),
            (&json!("30s"), &json!("1s"))
        );
        assert_eq!(
            (&iptables["ipvs"]["syncPeriod"], &iptables["nftables"]["syncPeriod"]),
            (&json!("0s"), &json!("0s"))
        );
        let ipvs = effective(&Settings { mode: ProxyMode::Ipvs, ..Settings::default() });
        assert_eq!((&ipvs["ipvs"]["syncPeriod"], &ipvs["iptables"]["syncPeriod"]), (&json!("30s"), &json!("0s")));
    }

    #[test]
    fn the_default_object_has_the_defaults_of_kube_proxy() {
        let object = effective(&Settings::default());
        for (pointer, expected) in [
            ("/mode", json!("iptables")),
            ("/detectLocalMode", json!("ClusterCIDR")),
            ("/clientConnection/burst", json!(10)),
            ("/clientConnection/qps", json!(5.0)),
            ("/clientConnection/contentType", json!("application/vnd.kubernetes.protobuf")),
            ("/conntrack/maxPerCore", json!(32768)),
            ("/conntrack/min", json!(131_072)),
            ("/conntrack/tcpEstablishedTimeout", json!("24h0m0s")),
            ("/oomScoreAdj", json!(-999)),
            ("/healthzBindAddress", json!("0.0.0.0:10256")),
            ("/metricsBindAddress", json!("127.0.0.1:10249")),
            ("/nodePortAddresses", Value::Null),
            ("/configSyncPeriod", json!("15m0s")),
            ("/logging/format", json!("text")),
        ] {
            assert_eq!(object.pointer(pointer), Some(&expected), "{pointer}");
        }
    }
}
