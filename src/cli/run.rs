//! The daemon: the one place where source, sync, linux, metrics and health meet.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::cli::context::Facts;
use crate::cli::intake::Intake;
use crate::cli::observer::Announcer;
use crate::cli::once::{engine, engine_options};
use crate::cli::start::{self, Prepare};
use crate::config::{self, Flags, ProxyMode, Settings};
use crate::health::{HealthState, Listen, Pages, Probe, Servers, ServiceHealth};
use crate::iptables::base::{INVALID_COUNTER, LOCALHOST_COUNTER};
use crate::kernel::Kernel;
use crate::linux::address::AddressWatch;
use crate::linux::{LinuxKernel, command};
use crate::metrics::{Metrics, PacketCounts};
use crate::net::{IpFamily, PerFamily};
use crate::source::kube::events::{ClusterEvent, Outbox, Recorder};
use crate::source::{Event, kube, manifests};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{Message, Runner, Schedule};

/// How long the end may take. Rules are in the kernel and stay there; a restore that is cut short has no effect.
const STOP_WITHIN: Duration = Duration::from_millis(800);

/// Runs until SIGTERM or SIGINT. What is programmed stays.
pub(super) fn run(flags: &Flags) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    let (kernel, facts) = start::kernel(&settings, Prepare::Yes)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), mode = %settings.mode, node = %facts.node_name, "portolan");
    if settings.mode == ProxyMode::Ipvs {
        let (scheduler, drain) = (settings.ipvs.scheduler.as_str(), settings.ipvs.drain_timeout);
        tracing::info!(scheduler, drain_timeout_ms = drain.as_millis(), "IPVS");
    }
    config::advice(&settings, facts.families).iter().for_each(|remark| tracing::warn!("{remark}"));
    let metrics = Arc::new(metrics(&kernel, &facts)?);
    let health = Arc::new(HealthState::new(settings.sync_period, SystemClock));
    let servers = serve(&settings, &metrics, &health)?;
    let addresses = addresses(&kernel, &facts)?;
    // Where they listen is known with the Node, before the first sync.
    let service_health = ServiceHealth::start(&servers, Arc::clone(&health), PerFamily::default());
    let (recorder, outbox) = recorder(flags);
    let ports = recorder.clone();
    service_health.on_failure(move |service, note| {
        ports.record(ClusterEvent::failed_service_healthcheck(service.clone(), note));
    });

    let (to_sync, inbox) = mpsc::channel();
    let (sender, events) = mpsc::channel();
    to_sync.send(Message::Addresses(addresses)).context("no sync thread")?;
    let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let watcher = watch_addresses(&kernel, to_sync.clone(), Vital::new("addresses", &ends))?;
    let announcer = Announcer {
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        service_health,
        families: facts.families,
    };
    // From here on a change that waits for too long counts, also when no sync ever succeeds.
    announcer.begin();
    let sync = spawn_sync(&settings, kernel, facts.clone(), inbox, announcer, Vital::new("sync", &ends))?;
    let intake = Intake::new(to_sync.clone(), metrics, health);
    // It ends when the source does.
    let vital = Vital::new("intake", &ends);
    let run_intake = move || {
        let _vital = vital;
        intake.run(events);
    };
    let intake = std::thread::Builder::new().name("intake".into()).spawn(run_intake)?;
    recorder.record(ClusterEvent::starting(&facts.node_name));
    let source = Source::start(flags, &settings, &facts.node_name, sender, outbox)?;

    let end = wait_for_end(&mut ended)?;
    match end {
        End::Signal(signal) => tracing::info!(signal, "stopping; rules stay in place"),
        End::Thread(thread) => tracing::error!(thread, "a thread ended by itself; stopping; rules stay in place"),
    }
    let deadline = SystemClock.now() + STOP_WITHIN;
    let _nobody_left = to_sync.send(Message::Stop);
    source.stop(deadline);
    join_until(sync, deadline);
    join_until(intake, deadline);
    drop_until((watcher, servers), deadline);
    match end {
        End::Signal(_) => Ok(()),
        End::Thread(thread) => bail!("the thread {thread} ended by itself"),
    }
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A signal of this name arrived.
    Signal(&'static str),
    /// The thread of this name, without which there is no work, ended or panicked.
    Thread(&'static str),
}

/// Held by a thread without which the daemon would be a zombie that says that it is healthy.
struct Vital {
    thread: &'static str,
    ends: UnboundedSender<&'static str>,
}

impl Vital {
    fn new(thread: &'static str, ends: &UnboundedSender<&'static str>) -> Vital {
        Vital { thread, ends: ends.clone() }
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        // Nobody waits any more when the daemon ends as a whole.
        let _ended = self.ends.send(self.thread);
    }
}

fn metrics(kernel: &LinuxKernel, facts: &Facts) -> anyhow::Result<Metrics> {
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

fn serve(settings: &Settings, metrics: &Arc<Metrics>, health: &Arc<HealthState>) -> anyhow::Result<Servers> {
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

/// Events are posted where there is an API server, and logged anywhere.
fn recorder(flags: &Flags) -> (Recorder, Option<Outbox>) {
    if flags.manifests.is_some() {
        return (Recorder::log_only(), None);
    }
    let (recorder, outbox) = kube::events::recorder(&rustix::system::uname().nodename().to_string_lossy());
    (recorder, Some(outbox))
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
    announcer: Announcer,
    vital: Vital,
) -> anyhow::Result<JoinHandle<()>> {
    let options = engine_options(settings, kernel.tools().variant());
    let engine = engine(kernel, settings, facts, options);
    let runner = Runner::new(engine, inbox, Schedule::new(settings.min_sync_period), Box::new(announcer));
    let run = move || {
        let _vital = vital;
        drop(runner.run());
    };
    std::thread::Builder::new().name("sync".into()).spawn(run).context("cannot start the sync thread")
}

/// Where objects come from.
enum Source {
    Manifests(manifests::Watching),
    Api(ApiSource),
}

impl Source {
    fn start(
        flags: &Flags,
        settings: &Settings,
        node_name: &str,
        sender: Sender<Event>,
        outbox: Option<Outbox>,
    ) -> anyhow::Result<Source> {
        Ok(match &flags.manifests {
            Some(path) => Source::Manifests(manifests::watch(Path::new(path), node_name, sender)?),
            None => Source::Api(ApiSource::start(settings, node_name, sender, outbox)?),
        })
    }

    fn stop(self, deadline: Instant) {
        match self {
            // It may be in the middle of a large file.
            Source::Manifests(watcher) => drop_until(watcher, deadline),
            Source::Api(source) => source.stop(),
        }
    }
}

/// The watches of the API server, on a thread with a runtime of their own.
pub(super) struct ApiSource {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ApiSource {
    /// Connects and begins to watch. An API server that does not answer is no error: it is waited for.
    /// Posts the events of the outbox on the side.
    pub(super) fn start(
        settings: &Settings,
        node_name: &str,
        sender: Sender<Event>,
        outbox: Option<Outbox>,
    ) -> anyhow::Result<ApiSource> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kubeconfig = settings.kubeconfig.clone();
        let connect = kube::connect(kubeconfig.as_deref().map(Path::new), settings.master.as_deref());
        let client = runtime.block_on(connect).context("cannot reach the API server")?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let node_name = node_name.to_owned();
        let limiter = kube::Limiter::new(settings.client.qps, settings.client.burst);
        let watch = move || {
            runtime.block_on(async {
                if let Some(outbox) = outbox {
                    tokio::spawn(outbox.run(client.clone(), limiter.clone()));
                }
                let options = kube::WatchOptions { limiter, ..kube::WatchOptions::default() };
                tokio::select! {
                    () = kube::run(client, &node_name, sender, options) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(watch)?;
        Ok(ApiSource { stop, thread })
    }

    /// Ends the watches.
    pub(super) fn stop(self) {
        let _gone = self.stop.send(());
        join_until(self.thread, SystemClock.now() + STOP_WITHIN);
    }
}

/// Blocks until SIGTERM or SIGINT arrives, or a vital thread ends.
fn wait_for_end(ended: &mut UnboundedReceiver<&'static str>) -> anyhow::Result<End> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(tokio::select! {
            _ = terminate.recv() => End::Signal("SIGTERM"),
            _ = interrupt.recv() => End::Signal("SIGINT"),
            Some(thread) = ended.recv() => End::Thread(thread),
        })
    })
}

/// Joins a thread, but does not wait for longer than until the deadline: the process ends anyway.
#[allow(clippy::disallowed_methods, reason = "the standard library has no join with a time-out")]
fn join_until<T>(thread: JoinHandle<T>, deadline: Instant) {
    while !thread.is_finished() && SystemClock.now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    if thread.is_finished() && thread.join().is_err() {
        tracing::error!("a thread panicked");
    }
}

/// Drops a value that waits for a thread of its own, but does not wait for longer than until the deadline.
fn drop_until(value: impl Send + 'static, deadline: Instant) {
    // Without a thread the value is dropped here.
    if let Ok(thread) = std::thread::Builder::new().name("end".into()).spawn(move || drop(value)) {
        join_until(thread, deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vital_thread_that_panics_ends_the_daemon() {
        let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let vital = Vital::new("sync", &ends);
        let thread = std::thread::spawn(move || {
            let _vital = vital;
            panic!("on purpose");
        });
        assert_eq!(wait_for_end(&mut ended).unwrap(), End::Thread("sync"));
        assert!(thread.join().is_err());
    }

    #[test]
    fn what_takes_long_to_end_is_left_behind() {
        struct Slow;
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_secs(10));
            }
        }
        let began = SystemClock.now();
        drop_until(Slow, began + Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
