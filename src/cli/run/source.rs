//! Where objects come from.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;

use crate::cli::intake::{Held, Intake, SameNode};
use crate::cli::run::ends::{End, STOP_WITHIN, Wake, Waker, drop_until, join_until};
use crate::config::{DetectLocal, Flags, Settings};
use crate::health::HealthState;
use crate::metrics::Metrics;
use crate::source::kube::events::{Outbox, Recorder};
use crate::source::{Event, kube, manifests};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{Message, NodeNeeds};

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

/// What has to be known of the Node before the first sync. Manifests say at once all that they have to say.
pub(in crate::cli) fn node_needs(manifests: Option<&str>, settings: &Settings) -> NodeNeeds {
    match (manifests, &settings.detect_local) {
        (Some(_), _) => NodeNeeds::Nothing,
        (None, DetectLocal::NodeCidr) => NodeNeeds::PodCidrs,
        (None, DetectLocal::ClusterCidr(_) | DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_)) => {
            NodeNeeds::Addresses
        }
    }
}

/// Who is told what a source reports.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) to_sync: Sender<Message>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<HealthState>,
}

/// The daemon's source: one stream at a time, in whose place another can come while everything else goes on.
pub(super) struct Feed {
    manifests: Option<String>,
    told: Told,
    outbox: Option<SharedOutbox>,
    waker: Waker,
    stream: Option<Stream>,
}

/// What a stream begins with.
pub(super) enum Ready {
    Manifests(String),
    Api(Connection),
}

impl Feed {
    /// Begins. An API server that does not answer is waited for.
    pub(super) fn start(
        flags: &Flags,
        settings: &Settings,
        node_name: &str,
        told: Told,
        outbox: Option<Outbox>,
        waker: &Waker,
    ) -> anyhow::Result<Feed> {
        let outbox = outbox.map(|outbox| Arc::new(tokio::sync::Mutex::new(outbox)));
        let mut feed = Feed { manifests: flags.manifests.clone(), told, outbox, waker: waker.clone(), stream: None };
        let ready = feed.prepare(settings)?;
        feed.stream = Some(feed.begin(ready, node_name, None)?);
        Ok(feed)
    }

    /// What has to be known of the Node under these settings.
    pub(super) fn node_needs(&self, settings: &Settings) -> NodeNeeds {
        node_needs(self.manifests.as_deref(), settings)
    }

    /// Reads what a stream under these settings needs, as the kubeconfig. Asks no server, and leaves the stream that runs alone.
    pub(super) fn prepare(&self, settings: &Settings) -> anyhow::Result<Ready> {
        Ok(match &self.manifests {
            Some(path) => Ready::Manifests(path.clone()),
            None => Ready::Api(Connection::new(settings, Some(observer(&self.told.metrics)))?),
        })
    }

    /// Ends the stream that runs and begins another in its place. What is known of the cluster holds until the new one
    /// has given complete lists. If it cannot begin, the daemon ends.
    pub(super) fn replace(&mut self, ready: Ready, node_name: &str, node: SameNode) {
        if let Some(old) = self.stream.take() {
            old.stop(SystemClock.now() + STOP_WITHIN);
        }
        match self.begin(ready, node_name, Some(Held::new(node))) {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => {
                tracing::error!("cannot watch any more: {error:#}");
                self.waker.wake(Wake::End(End::Thread("watch")));
            }
        }
    }

    /// Ends. Everything that was reported has been passed on, unless the deadline comes first.
    pub(super) fn stop(self, deadline: Instant) {
        if let Some(stream) = self.stream {
            stream.stop(deadline);
        }
    }

    fn begin(&self, ready: Ready, node_name: &str, held: Option<Held>) -> anyhow::Result<Stream> {
        let (sender, events) = mpsc::channel();
        let Told { to_sync, metrics, health } = self.told.clone();
        let intake = Intake::new(to_sync, metrics, health, held);
        // It ends when the source does.
        let wanted = Arc::new(AtomicBool::new(true));
        let vital = self.waker.vital("intake");
        let still_wanted = Arc::clone(&wanted);
        let run = move || {
            intake.run(events);
            if !still_wanted.load(Ordering::SeqCst) {
                vital.not_needed_any_more();
            }
        };
        let source = match ready {
            Ready::Manifests(path) => Source::Manifests(manifests::watch(Path::new(&path), node_name, sender)?),
            Ready::Api(connection) => Source::Api(connection.watch(node_name, sender, self.outbox.clone())?),
        };
        let intake = std::thread::Builder::new().name("intake".into()).spawn(run)?;
        Ok(Stream { source, intake, wanted })
    }
}

/// A source with the thread that passes on what it reports.
struct Stream {
    source: Source,
    intake: JoinHandle<()>,
    wanted: Arc<AtomicBool>,
}

impl Stream {
    fn stop(self, deadline: Instant) {
        self.wanted.store(false, Ordering::SeqCst);
        match self.source {
            // It may be in the middle of a large file.
            Source::Manifests(watcher) => drop_until(watcher, deadline),
            Source::Api(source) => source.stop(),
        }
        join_until(self.intake, deadline);
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

/// Passed on from one stream to the next; who posts holds it.
pub(super) type SharedOutbox = Arc<tokio::sync::Mutex<Outbox>>;

/// A client for the API server, with the runtime that it needs.
pub(in crate::cli) struct Connection {
    runtime: tokio::runtime::Runtime,
    client: ::kube::Client,
}

impl Connection {
    /// Reads the kubeconfig and what it names. Sends nothing: whether the server can be reached is found out by the watches.
    pub(in crate::cli) fn new(settings: &Settings, observer: Option<kube::Observer>) -> anyhow::Result<Connection> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kubeconfig = settings.kubeconfig.as_deref().map(Path::new);
        let limiter = kube::Limiter::new(settings.client.qps, settings.client.burst);
        let proxies = kube::Proxies::from_env();
        let options = kube::ConnectOptions { limiter, observer, proxies, ..kube::ConnectOptions::default() };
        let connect = kube::connect(kubeconfig, settings.master.as_deref(), options);
        let client = runtime.block_on(connect).context("cannot reach the API server")?;
        Ok(Connection { runtime, client })
    }

    /// Begins to watch. An API server that does not answer is no error: it is waited for. Posts the events of the outbox on the
    /// side.
    pub(in crate::cli) fn watch(
        self,
        node_name: &str,
        sender: Sender<Event>,
        outbox: Option<SharedOutbox>,
    ) -> std::io::Result<ApiSource> {
        let Connection { runtime, client } = self;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let node_name = node_name.to_owned();
        let watch = move || {
            runtime.block_on(async {
                if let Some(outbox) = outbox {
                    let client = client.clone();
                    tokio::spawn(async move { outbox.lock().await.run(&client).await });
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
}

/// The watches of the API server, on a thread with a runtime of their own.
pub(in crate::cli) struct ApiSource {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ApiSource {
    /// Ends the watches.
    pub(in crate::cli) fn stop(self) {
        let _gone = self.stop.send(());
        join_until(self.thread, SystemClock.now() + STOP_WITHIN);
    }
}
