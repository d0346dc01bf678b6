//! The daemon: the one place where source, sync, linux, metrics and health meet.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use anyhow::Context;

use crate::cli::context::Facts;
use crate::cli::notes::Notes;
use crate::cli::observer::Announcer;
use crate::cli::once::{engine, engine_options};
use crate::cli::start::{self, Prepare};
use crate::config::{Flags, Settings};
use crate::health::{HealthState, ServiceHealth};
use crate::iptables::base::{INVALID_COUNTER, LOCALHOST_COUNTER};
use crate::kernel::Kernel;
use crate::linux::{LinuxKernel, command};
use crate::metrics::{Metrics, PacketCounts};
use crate::model::{Change, ObjectKind};
use crate::net::{IpFamily, PerFamily};
use crate::source::{Event, kube, manifests};
use crate::sync::{Message, Runner, Schedule};

/// Runs until SIGTERM or SIGINT. What is programmed stays.
pub(super) fn run(flags: &Flags) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    let (kernel, facts) = start::kernel(&settings, Prepare::Yes)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), mode = %settings.mode, node = %facts.node_name, "portolan");
    let metrics = Arc::new(metrics(&facts)?);
    let health = Arc::new(HealthState::new(facts.families, settings.sync_period));
    let servers = crate::health::serve(&settings, Arc::clone(&health), Arc::clone(&metrics))?;

    let (to_sync, inbox) = mpsc::channel();
    let (sender, events) = mpsc::channel();
    to_sync.send(Message::Addresses(addresses(&kernel, &facts)?)).context("the sync thread is gone")?;
    let watcher = watch_addresses(&kernel, to_sync.clone())?;
    let announcer = Announcer {
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        service_health: ServiceHealth::new(Arc::clone(&health), facts.families),
    };
    let sync = spawn_sync(&settings, kernel, facts.clone(), inbox, announcer)?;
    let forward = spawn_forward(events, to_sync.clone(), metrics, health)?;

    let source = match &flags.manifests {
        Some(path) => Source::Manifests(manifests::watch(Path::new(path), &facts.node_name, sender)?),
        None => Source::Api(ApiSource::start(&settings, &facts.node_name, sender)?),
    };
    wait_for_signal()?;
    tracing::info!("stopping; rules stay in place");
    source.stop();
    drop((watcher, servers));
    // The sync thread may be in the middle of a restore, which is atomic by itself: there is nothing to wait for.
    let _gone = to_sync.send(Message::Stop);
    let deadline = std::time::Duration::from_millis(800);
    join_within(sync, deadline);
    drop(forward);
    Ok(())
}
