//! Where objects come from.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;

use crate::cli::intake::Intake;
use crate::cli::run::ends::{STOP_WITHIN, Waker, drop_until, join_until};
use crate::config::{Flags, Settings};
use crate::health::HealthState;
use crate::metrics::Metrics;
use crate::source::kube::events::{Outbox, Recorder};
use crate::source::{Event, kube, manifests};
use crate::sync::Message;
use crate::sync::clock::{Clock, SystemClock};

/// Where objects come from.
enum Source {
    Manifests(manifests::Watching),
    Api(ApiSource),
}

/// Events are posted where there is an API server, and logged anywhere.
pub(super) fn recorder(flags: &Flags) -> (Recorder, Option<Outbox>) {
    if flags.manifests.is_some() {
        return (Recorder::log_only(), None);
    }
    let (recorder, outbox) = kube::events::recorder(&rustix::system::uname().nodename().to_string_lossy());
    (recorder, Some(outbox))
}

/// A source with the thread that passes on what it reports.
pub(super) struct Stream {
    source: Source,
    intake: JoinHandle<()>,
    wanted: Arc<AtomicBool>,
}

/// Who is told what a source reports.
pub(super) struct Told {
    pub(super) to_sync: Sender<Message>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<HealthState>,
}

impl Stream {
    /// Begins. An API server that does not answer is waited for.
    pub(super) fn start(
        flags: &Flags,
        settings: &Settings,
        node_name: &str,
        told: Told,
        outbox: Option<Outbox>,
        waker: &Waker,
    ) -> anyhow::Result<Stream> {
        let (sender, events) = mpsc::channel();
        let observer = observer(&told.metrics);
        let intake = Intake::new(told.to_sync, told.metrics, told.health);
        // It ends when the source does.
        let wanted = Arc::new(AtomicBool::new(true));
        let vital = waker.vital("intake");
        let still_wanted = Arc::clone(&wanted);
        let run = move || {
            intake.run(events);
            if !still_wanted.load(Ordering::SeqCst) {
                vital.not_needed_any_more();
            }
        };
        let source = Source::start(flags, settings, node_name, sender, outbox, observer)?;
        let intake = std::thread::Builder::new().name("intake".into()).spawn(run)?;
        Ok(Stream { source, intake, wanted })
    }

    /// Ends. Everything that was reported has been passed on, unless the deadline comes first.
    pub(super) fn stop(self, deadline: Instant) {
        self.wanted.store(false, Ordering::SeqCst);
        self.source.stop(deadline);
        join_until(self.intake, deadline);
    }
}

impl Source {
    fn start(
        flags: &Flags,
        settings: &Settings,
        node_name: &str,
        sender: Sender<Event>,
        outbox: Option<Outbox>,
        observer: kube::Observer,
    ) -> anyhow::Result<Source> {
        Ok(match &flags.manifests {
            Some(path) => Source::Manifests(manifests::watch(Path::new(path), node_name, sender)?),
            None => Source::Api(ApiSource::start(settings, node_name, sender, outbox, Some(observer))?),
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

/// Counts requests in the metrics.
fn observer(metrics: &Arc<Metrics>) -> kube::Observer {
    let metrics = Arc::clone(metrics);
    Arc::new(move |observation| match observation {
        kube::Observation::Limited { verb, host, waited } => metrics.request_limited(verb, host, waited),
        kube::Observation::Answered { verb, host, code, took } => metrics.request_answered(verb, host, code, took),
    })
}

/// The watches of the API server, on a thread with a runtime of their own.
pub(in crate::cli) struct ApiSource {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ApiSource {
    /// Connects and begins to watch. An API server that does not answer is no error: it is waited for.
    /// Posts the events of the outbox on the side.
    pub(in crate::cli) fn start(
        settings: &Settings,
        node_name: &str,
        sender: Sender<Event>,
        outbox: Option<Outbox>,
        observer: Option<kube::Observer>,
    ) -> anyhow::Result<ApiSource> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kubeconfig = settings.kubeconfig.clone();
        let limiter = kube::Limiter::new(settings.client.qps, settings.client.burst);
        let options = kube::ConnectOptions { limiter, observer, ..kube::ConnectOptions::default() };
        let connect = kube::connect(kubeconfig.as_deref().map(Path::new), settings.master.as_deref(), options);
        let client = runtime.block_on(connect).context("cannot reach the API server")?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let node_name = node_name.to_owned();
        let watch = move || {
            runtime.block_on(async {
                if let Some(outbox) = outbox {
                    tokio::spawn(outbox.run(client.clone()));
                }
                let options = kube::WatchOptions::default();
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
    pub(in crate::cli) fn stop(self) {
        let _gone = self.stop.send(());
        join_until(self.thread, SystemClock.now() + STOP_WITHIN);
    }
}
