//! The daemon: the one place where source, sync, linux, metrics and health meet.
//!
//! [`run`] reads as what happens: settings, the node ([`start`]), metrics and servers ([`servers`]), the sync thread, the source
//! ([`source`]), and then waiting for an end ([`ends`]) or for another configuration.

mod ends;
mod reload;
mod servers;
mod source;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use anyhow::{Context, bail};

use crate::cli::config_watch::ConfigWatch;
use crate::cli::context::Facts;
use crate::cli::observer::{Announcer, NftablesLeft};
use crate::cli::once::{engine, engine_options};
use crate::cli::run::ends::{
    Ear, End, STOP_WITHIN, TELL_WITHIN, Vital, Wake, Waker, drop_until, join_until, wait_until,
};
use crate::cli::run::reload::Reloader;
use crate::cli::run::servers::InForce;
use crate::cli::run::source::{Feed, Told};
use crate::cli::start::{self, Prepare};
use crate::config::{self, Flags, ProxyMode, Settings};
use crate::health::{HealthState, Server, Servers, ServiceHealth};
use crate::kernel::Kernel;
use crate::linux::address::AddressWatch;
use crate::linux::{LinuxKernel, memory};
use crate::metrics::Metrics;
use crate::net::{IpFamily, PerFamily};
use crate::source::kube::events::{ClusterEvent, Recorder};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{Message, NodeNeeds, Options, POD_CIDRS_WITHIN, Runner, Schedule};

pub(super) use source::{Connection, node_needs};

/// Runs until SIGTERM or SIGINT. What is programmed stays.
pub(super) fn run(flags: &Flags) -> anyhow::Result<()> {
    memory::one_arena();
    let settings = start::settings(flags)?;
    let (kernel, facts) = start::kernel(&settings, Prepare::Yes)?;
    say_what_is_run(&settings, &facts);
    let (mut ear, waker) = Ear::new().context("cannot wait for signals")?;
    let mut daemon = Daemon::start(flags, &settings, kernel, facts, &waker)?;
    let end = loop {
        match ear.listen() {
            Wake::End(end) => break end,
            Wake::Configuration(reload) => daemon.reloader.take(reload, &daemon.servers, &mut daemon.feed),
        }
    };
    match end {
        End::Signal(signal) => tracing::info!(signal, "stopping; rules stay in place"),
        End::Thread(thread) => tracing::error!(thread, "a thread ended by itself; stopping; rules stay in place"),
        End::Node => tracing::error!("nothing is known of the Node's pod CIDRs; stopping; rules stay in place"),
        End::Server(server) => {
            tracing::error!(%server, "a server cannot listen; stopping; rules stay in place");
            daemon.tell_the_cluster();
        }
    }
    let node = daemon.reloader.node_name();
    daemon.stop();
    match end {
        End::Signal(_) => Ok(()),
        End::Thread(thread) => bail!("the thread {thread} ended by itself"),
        End::Node => bail!(
            "the Node {node} has no pod CIDRs after {} s, or there is no such Node: detectLocalMode NodeCIDR needs them",
            POD_CIDRS_WITHIN.as_secs()
        ),
        End::Server(server) => bail!("the {server} server cannot listen, and bindAddressHardFail is set"),
    }
}

fn say_what_is_run(settings: &Settings, facts: &Facts) {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), mode = %settings.mode, node = %facts.node_name, "portolan");
    if settings.mode == ProxyMode::Ipvs {
        let (scheduler, drain) = (settings.ipvs.scheduler.as_str(), settings.ipvs.drain_timeout);
        tracing::info!(scheduler, drain_timeout_ms = drain.as_millis(), "IPVS");
    }
    config::advice(settings, facts.families).iter().for_each(|remark| tracing::warn!("{remark}"));
}

/// All that runs besides the main thread.
struct Daemon {
    servers: Servers,
    addresses: AddressWatch,
    to_sync: Sender<Message>,
    sync: JoinHandle<()>,
    feed: Feed,
    recorder: Recorder,
    reloader: Reloader,
    configuration: Option<ConfigWatch>,
}

impl Daemon {
    fn start(
        flags: &Flags,
        settings: &Settings,
        kernel: LinuxKernel,
        facts: Facts,
        waker: &Waker,
    ) -> anyhow::Result<Daemon> {
        let in_force = InForce::new(settings.clone());
        let metrics = Arc::new(servers::metrics(&kernel, &facts, &in_force)?);
        let health = Arc::new(HealthState::new(settings.sync_period, SystemClock));
        let (recorder, outbox) = source::recorder(flags);
        metrics.serve_events_dropped(recorder.dropped_reader())?;
        let on_failure = end_of_servers(&in_force, &recorder, waker);
        let servers = servers::serve(&in_force, &metrics, &health, on_failure)?;
        let (to_sync, inbox) = mpsc::channel();
        to_sync.send(Message::Addresses(addresses(&kernel, &facts)?)).ok().context("no sync thread")?;
        let addresses = watch_addresses(&kernel, to_sync.clone(), waker.vital("addresses"))?;
        let announcer = announcer(&servers, &metrics, &health, facts.families, &recorder, waker);
        // From here on a change that waits for too long counts, also when no sync ever succeeds.
        announcer.begin();
        let node_name = Arc::clone(&facts.node_name);
        let reloader = Reloader {
            in_force,
            kernel: kernel.clone(),
            facts: facts.clone(),
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            recorder: recorder.clone(),
            to_sync: to_sync.clone(),
            heard: false,
        };
        let configuration = watch_configuration(flags, waker)?;
        let node_needs = node_needs(flags.manifests.as_deref(), settings);
        let sync = spawn_sync(settings, kernel, facts, inbox, node_needs, announcer, waker.vital("sync"))?;
        recorder.record(ClusterEvent::starting(&node_name));
        let told = Told { to_sync: to_sync.clone(), metrics, health };
        let feed = Feed::start(flags, settings, &node_name, told, outbox, waker)?;
        Ok(Daemon { servers, addresses, to_sync, sync, feed, recorder, reloader, configuration })
    }

    /// Waits until events have arrived at the API server, but not for long.
    fn tell_the_cluster(&self) {
        wait_until(|| self.recorder.waiting() == 0, SystemClock.now() + TELL_WITHIN);
    }

    /// Ends everything, but does not wait for what takes too long.
    fn stop(self) {
        let deadline = SystemClock.now() + STOP_WITHIN;
        let _nobody_left = self.to_sync.send(Message::Stop);
        self.feed.stop(deadline);
        join_until(self.sync, deadline);
        drop_until((self.addresses, self.servers, self.configuration), deadline);
    }
}

/// What becomes of a server that fails where that is the end.
fn end_of_servers(in_force: &InForce, recorder: &Recorder, waker: &Waker) -> impl Fn(Server, String) + use<> {
    let (in_force, recorder, waker) = (in_force.clone(), recorder.clone(), waker.clone());
    move |server, why| {
        if let Ok(node) = start::node_name(&in_force.get()) {
            recorder.record(servers::failure(server, &node, why));
        }
        waker.wake(Wake::End(End::Server(server)));
    }
}

/// Wakes the main thread when the file of `--config` has changed; without one there is nothing to watch.
fn watch_configuration(flags: &Flags, waker: &Waker) -> anyhow::Result<Option<ConfigWatch>> {
    if flags.config.is_none() {
        return Ok(None);
    }
    let waker = waker.clone();
    let changed = move |reload| waker.wake(Wake::Configuration(reload));
    let watch = ConfigWatch::start(flags.clone(), changed);
    watch.context("cannot watch the configuration file").map(Some)
}

fn announcer(
    servers: &Servers,
    metrics: &Arc<Metrics>,
    health: &Arc<HealthState>,
    families: PerFamily<bool>,
    recorder: &Recorder,
    waker: &Waker,
) -> Announcer {
    // Where they listen is known with the Node, before the first sync.
    let service_health = ServiceHealth::start(servers, Arc::clone(health), PerFamily::default());
    let ports = recorder.clone();
    service_health.on_failure(move |service, note| {
        ports.record(ClusterEvent::failed_service_healthcheck(service.clone(), note));
    });
    let waker = waker.clone();
    let give_up = Box::new(move || waker.wake(Wake::End(End::Node)));
    Announcer {
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
        service_health,
        families,
        nftables: NftablesLeft::perhaps(),
        give_up,
    }
}

/// The addresses of all interfaces, by family.
pub(super) fn addresses(kernel: &LinuxKernel, facts: &Facts) -> anyhow::Result<PerFamily<Vec<IpAddr>>> {
    let mut kernel = kernel.clone();
    let mut all = PerFamily::default();
    for family in IpFamily::ALL.into_iter().filter(|family| facts.families[*family]) {
        all[family] = kernel.addresses(family).context("cannot list the addresses of this node")?;
    }
    Ok(all)
}

fn watch_addresses(kernel: &LinuxKernel, to_sync: Sender<Message>, vital: Vital) -> anyhow::Result<AddressWatch> {
    let changed = move |addresses| {
        let _lives_as_long_as_the_thread = &vital;
        let _nobody_left = to_sync.send(Message::Addresses(addresses));
    };
    kernel.watch_addresses(changed).context("cannot watch the addresses of this node")
}

fn spawn_sync(
    settings: &Settings,
    kernel: LinuxKernel,
    facts: Facts,
    inbox: Receiver<Message>,
    node_needs: NodeNeeds,
    announcer: Announcer,
    vital: Vital,
) -> anyhow::Result<JoinHandle<()>> {
    let options = Options { node_needs, ..engine_options(settings, kernel.tools().variant()) };
    let engine = engine(kernel, settings, facts, options);
    let runner = Runner::new(engine, inbox, Schedule::new(settings.min_sync_period), Box::new(announcer));
    let run = move || {
        let _vital = vital;
        drop(runner.run());
    };
    std::thread::Builder::new().name("sync".into()).spawn(run).context("cannot start the sync thread")
}
