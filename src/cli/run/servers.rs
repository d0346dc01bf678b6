//! Metrics and the HTTP servers that show them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::context::Facts;
use crate::cli::logging::LogHandle;
use crate::config::{self, Flags, LoggingOptions, ProxyMode, Settings, normalize_flag_names};
use crate::health::{Debugging, HealthState, Listen, Pages, Probe, Server, Servers};
use crate::iptables::base::{INVALID_COUNTER, LOCALHOST_COUNTER};
use crate::linux::{LinuxKernel, command};
use crate::metrics::{Feature, Metrics, PacketCounts};
use crate::source::kube::events::ClusterEvent;

pub(super) fn metrics(kernel: &LinuxKernel, facts: &Facts, in_force: &InForce) -> anyhow::Result<Metrics> {
    let metrics = Metrics::new(facts.families)?;
    metrics.serve_processes_started(command::processes_started)?;
    let (kernel, in_force) = (kernel.clone(), in_force.clone());
    metrics.serve_packet_counters(move || match in_force.get().mode {
        // A counter that the kernel does not have is not shown.
        ProxyMode::Iptables => PacketCounts {
            invalid_dropped: kernel.counter(INVALID_COUNTER).ok(),
            localhost_node_ports_accepted: kernel.counter(LOCALHOST_COUNTER).ok(),
        },
        ProxyMode::Ipvs => PacketCounts::default(),
    })?;
    Ok(metrics)
}

/// The settings in force, as the pages show them; shared with whoever puts others in force.
#[derive(Clone)]
pub(super) struct InForce(Arc<Mutex<Arc<Settings>>>);

impl InForce {
    pub(super) fn new(settings: Settings) -> InForce {
        InForce(Arc::new(Mutex::new(Arc::new(settings))))
    }

    /// From now on these are in force.
    pub(super) fn set(&self, settings: Settings) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    pub(super) fn get(&self) -> Arc<Settings> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Shows the feature gates that mean something here as metrics.
pub(super) fn show_gates(settings: &Settings, metrics: &Metrics) {
    let external_ips = if settings.allow_external_ips { Feature::On } else { Feature::Off };
    metrics.feature("AllowServiceExternalIPs", external_ips);
}

/// Where these settings say to listen.
pub(super) fn listen(settings: &Settings) -> Listen {
    Listen {
        healthz: settings.healthz_bind_address,
        metrics: Some(settings.metrics_bind_address),
        retry: Listen::RETRY,
    }
}

/// Starts the servers. With `bindAddressHardFail` a server that fails is an event and the end.
pub(super) fn serve(
    in_force: &InForce,
    metrics: &Arc<Metrics>,
    health: &Arc<HealthState>,
    on_failure: impl Fn(Server, String) + Send + Sync + 'static,
) -> anyhow::Result<Servers> {
    show_gates(&in_force.get(), metrics);
    let (render, replies) = (Arc::clone(metrics), Arc::clone(metrics));
    let (mode, configz, debugging, hard) = (in_force.clone(), in_force.clone(), in_force.clone(), in_force.clone());
    let log = in_force.clone();
    let flags = flags_given(std::env::args_os());
    let pages = Pages {
        health: Arc::clone(health),
        metrics: Box::new(move || render.render()),
        proxy_mode: Box::new(move || mode.get().mode.to_string()),
        configz: Box::new(move || {
            let settings = configz.get();
            let (proxy, own) = (config::effective(&settings), config::effective_own(&settings));
            serde_json::json!({ "kubeproxy.config.k8s.io": proxy, "portolan": own }).to_string()
        }),
        flags: Box::new(move || flags.clone()),
        debugging: Box::new(move || if debugging.get().profiling { Debugging::On } else { Debugging::Off }),
        set_verbosity: Some(Box::new(move |verbosity| set_verbosity(&log.get(), verbosity))),
        on_reply: Box::new(move |probe, code| match probe {
            Probe::Healthz => replies.healthz_answered(code),
            Probe::Livez => replies.livez_answered(code),
        }),
        on_failure: Box::new(move |server, why| {
            if hard.get().bind_address_hard_fail {
                on_failure(server, why);
            }
        }),
    };
    Servers::start(listen(&in_force.get()), pages).context("cannot start the health servers")
}

/// Until the configuration changes, so much is logged, in the form that it was.
fn set_verbosity(in_force: &Settings, verbosity: u32) -> Result<(), String> {
    let log = LogHandle::current().ok_or("the log cannot be changed")?;
    log.apply(&LoggingOptions { verbosity, ..in_force.logging.clone() });
    Ok(())
}

/// The event of a server that failed where that is the end.
pub(super) fn failure(server: Server, node: &str, note: String) -> ClusterEvent {
    match server {
        Server::Health => ClusterEvent::failed_healthcheck(node, note),
        Server::Metrics => ClusterEvent::failed_metric_server(node, note),
    }
}

#[derive(clap::Parser)]
struct FlagsAlone {
    #[command(flatten)]
    _flags: Flags,
}

/// All flags of the daemon by their names, with the values that these arguments (the first is the program's name) give
/// them, or else their defaults; empty: it has none.
fn flags_given(arguments: impl IntoIterator<Item = OsString>) -> BTreeMap<String, String> {
    let command = FlagsAlone::command();
    let Ok(matches) = command.clone().try_get_matches_from(normalize_flag_names(arguments)) else {
        return BTreeMap::new();
    };
    let flags = command.get_arguments().filter_map(|flag| Some((flag.get_long()?, flag.get_id().as_str())));
    let value = |id| {
        let values = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
        values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
    };
    flags.map(|(name, id)| (name.to_owned(), value(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_shown_with_the_values_that_were_given() {
        let line = ["portolan", "--config=/conf", "--cluster_cidr=10.0.0.0/8"];
        let flags = flags_given(line.map(OsString::from));
        assert_eq!(flags["config"], "/conf");
        assert_eq!(flags["cluster-cidr"], "10.0.0.0/8", "underscores are dashes");
        assert_eq!(flags["master"], "", "not given");
    }
}
