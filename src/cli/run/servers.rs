//! Metrics and the HTTP servers that show them.

use std::sync::Arc;

use anyhow::Context;

use crate::cli::context::Facts;
use crate::config::Settings;
use crate::health::{HealthState, Listen, Pages, Probe, Servers};
use crate::iptables::base::{INVALID_COUNTER, LOCALHOST_COUNTER};
use crate::linux::{LinuxKernel, command};
use crate::metrics::{Metrics, PacketCounts};

pub(super) fn metrics(kernel: &LinuxKernel, facts: &Facts) -> anyhow::Result<Metrics> {
    let metrics = Metrics::new(facts.families)?;
    metrics.serve_processes_started(command::processes_started)?;
    if facts.features.packet_counters {
        let kernel = kernel.clone();
        metrics.serve_packet_counters(move || PacketCounts {
            invalid_dropped: kernel.counter(INVALID_COUNTER).ok(),
            localhost_node_ports_accepted: kernel.counter(LOCALHOST_COUNTER).ok(),
        })?;
    }
    Ok(metrics)
}

pub(super) fn serve(settings: &Settings, metrics: &Arc<Metrics>, health: &Arc<HealthState>) -> anyhow::Result<Servers> {
    let (render, replies) = (Arc::clone(metrics), Arc::clone(metrics));
    let listen = Listen {
        healthz: settings.healthz_bind_address,
        metrics: Some(settings.metrics_bind_address),
        retry: Listen::RETRY,
    };
    let pages = Pages {
        health: Arc::clone(health),
        metrics: Box::new(move || render.render()),
        proxy_mode: settings.mode.to_string(),
        on_reply: Box::new(move |probe, code| match probe {
            Probe::Healthz => replies.healthz_answered(code),
            Probe::Livez => replies.livez_answered(code),
        }),
    };
    Servers::start(listen, pages).context("cannot start the health servers")
}
