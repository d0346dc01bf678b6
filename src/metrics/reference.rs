//! The reference of all metrics, made from the registry itself, so that docs/metrics.md cannot tell another story.

use std::collections::BTreeSet;
use std::fmt::Write;

use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};

use super::Metrics;

/// Metrics that kube-proxy has in iptables mode only: in IPVS mode they stay as they are.
const IPTABLES_ONLY: [&str; 5] = [
    "kubeproxy_sync_proxy_rules_iptables_total",
    "kubeproxy_sync_proxy_rules_iptables_last",
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
];

impl Metrics {
    /// All metrics that are registered now as two tables in Markdown, kube-proxy's and our own, and the buckets of the
    /// histograms.
    pub fn reference(&self) -> String {
        let families = self.registry.gather();
        let (own, proxy): (Vec<_>, Vec<_>) = families.iter().partition(|family| family.name().starts_with("portolan_"));
        let mut text = String::new();
        section(&mut text, "Those of kube-proxy", &proxy);
        section(&mut text, "Those of portolan", &own);
        text
    }
}

fn section(text: &mut String, title: &str, families: &[&MetricFamily]) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "## {title}\n\n| Name | Type | Labels | Modes | What it tells |\n|---|---|---|---|---|");
    for family in families {
        let (name, help) = (family.name(), family.help().trim_start_matches("[ALPHA] "));
        let labels = labels(family).into_iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{name}` | {} | {labels} | {} | {help} |", kind(family), modes(name));
    }
    text.push('\n');
    for family in families.iter().filter(|family| family.get_field_type() == MetricType::HISTOGRAM) {
        let _ = writeln!(text, "Buckets of `{}`: {}\n", family.name(), buckets(family));
    }
}

fn modes(name: &str) -> &'static str {
    match name {
        _ if IPTABLES_ONLY.contains(&name) => "iptables",
        _ => "both",
    }
}

fn kind(family: &MetricFamily) -> &'static str {
    match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    }
}

fn labels(family: &MetricFamily) -> BTreeSet<&str> {
    family.get_metric().iter().flat_map(Metric::get_label).map(LabelPair::name).collect()
}

fn buckets(family: &MetricFamily) -> String {
    let Some(metric) = family.get_metric().first() else { return String::new() };
    let bounds = metric.get_histogram().get_bucket().iter().map(Bucket::upper_bound);
    bounds.filter(|bound| bound.is_finite()).map(|bound| bound.to_string()).collect::<Vec<_>>().join(", ")
}
