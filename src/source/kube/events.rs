//! Events about the proxy itself, as objects of `events.k8s.io/v1`, for people who look at the cluster.
//!
//! [`Recorder::record`] only puts an event in a bounded queue; [`Outbox::run`] posts what is in it, as well as it can.
//! An event that repeats becomes a series, as client-go does it: the first is created, the second adds a series to it, and
//! further ones are only counted and told from time to time.

mod series;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::model::ServiceName;
use crate::source::kube::backoff::{Backoff, asked_to_wait};
use series::{Post, Series};

/// Events that wait to be posted; more are dropped and counted.
const QUEUE: usize = 256;
/// How often one event is tried.
const ATTEMPTS: u32 = 12;
/// The time between two looks at the series.
const TICK: Duration = Duration::from_secs(60);
/// How long the server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The `reportingController` of all events.
const CONTROLLER: &str = "kube-proxy";

/// `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Nothing is wrong.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// The Node of this name. Its events are in the namespace `default`.
    Node(Arc<str>),
    /// A Service. Its events are in its namespace.
    Service(ServiceName),
}

/// One event. Reasons and actions are kube-proxy's where it has the event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterEvent {
    /// Why, for programs: one word in CamelCase.
    pub reason: &'static str,
    /// Whether something is wrong.
    pub kind: EventKind,
    /// What was done or tried, in the same form as the reason.
    pub action: &'static str,
    /// The object.
    pub regarding: Regarding,
    /// Text for people; cut off after 1024 bytes, the most that the API server takes.
    pub note: String,
}

impl ClusterEvent {
    /// The proxy starts.
    pub fn starting(node: &str) -> ClusterEvent {
        ClusterEvent::about_start("Starting", EventKind::Normal, node, String::new())
    }

    /// The address of the health server cannot be bound, and the proxy ends for it.
    pub fn failed_healthcheck(node: &str, note: String) -> ClusterEvent {
        ClusterEvent::about_start("FailedToStartProxierHealthcheck", EventKind::Warning, node, note)
    }

    /// The address of the metrics server cannot be bound, and the proxy ends for it.
    pub fn failed_metric_server(node: &str, note: String) -> ClusterEvent {
        ClusterEvent::about_start("FailedToStartMetricServer", EventKind::Warning, node, note)
    }

    /// The health-check node port of a Service cannot be opened.
    pub fn failed_service_healthcheck(service: ServiceName, note: String) -> ClusterEvent {
        let regarding = Regarding::Service(service);
        let (reason, kind) = ("FailedToStartServiceHealthcheck", EventKind::Warning);
        ClusterEvent { reason, kind, action: "Listen", regarding, note }
    }

    /// A changed configuration was refused; the old one stays in force.
    pub fn invalid_configuration(node: &str, note: String) -> ClusterEvent {
        let regarding = Regarding::Node(Arc::from(node));
        let (reason, kind) = ("InvalidConfiguration", EventKind::Warning);
        ClusterEvent { reason, kind, action: "Configure", regarding, note }
    }

    /// A changed configuration is in force.
    pub fn configuration_applied(node: &str, note: String) -> ClusterEvent {
        let regarding = Regarding::Node(Arc::from(node));
        let (reason, kind) = ("ConfigurationApplied", EventKind::Normal);
        ClusterEvent { reason, kind, action: "Configure", regarding, note }
    }

    fn about_start(reason: &'static str, kind: EventKind, node: &str, note: String) -> ClusterEvent {
        ClusterEvent { reason, kind, action: "StartKubeProxy", regarding: Regarding::Node(Arc::from(node)), note }
    }
}

/// Where events are handed in. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: Option<mpsc::Sender<ClusterEvent>>,
    dropped: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
}

impl Recorder {
    /// Logs the event and queues it to be posted. Never waits: what does not fit is dropped.
    pub fn record(&self, event: ClusterEvent) {
        let ClusterEvent { reason, note, regarding, .. } = &event;
        match event.kind {
            EventKind::Normal => tracing::info!(reason, ?regarding, note, "event"),
            EventKind::Warning => tracing::warn!(reason, ?regarding, note, "event"),
        }
        let Some(queue) = &self.queue else { return };
        // Counted before the other end can see it.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if queue.try_send(event).is_err() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were neither posted nor given up yet.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Where there is no API server, events are only logged.
    pub fn log_only() -> Recorder {
        Recorder { queue: None, dropped: Arc::default(), waiting: Arc::default() }
    }

    /// How many events were never posted: the queue was full, or the server did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Reads [`Recorder::dropped`] without being a recorder: the outbox does not wait for it.
    pub fn dropped_reader(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let dropped = Arc::clone(&self.dropped);
        move || dropped.load(Ordering::Relaxed)
    }
}

/// The other end of the queue.
#[derive(Debug)]
pub struct Outbox {
    queue: mpsc::Receiver<ClusterEvent>,
    dropped: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
    series: Series,
}

/// A recorder, and the outbox that posts what it takes. `hostname` is the machine's name.
pub fn recorder(hostname: &str) -> (Recorder, Outbox) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let series = Series::new(CONTROLLER, format!("{CONTROLLER}-{hostname}"));
    let waiting = Arc::new(AtomicU64::new(0));
    let recorder = Recorder { queue: Some(sender), dropped: Arc::clone(&dropped), waiting: Arc::clone(&waiting) };
    (recorder, Outbox { queue, dropped, waiting, series })
}

impl Outbox {
    /// Posts events until no recorder is left. A server that does not answer, or refuses, disturbs nobody. When the future is
    /// dropped, what waits is left for the next run.
    pub async fn run(&mut self, client: &Client) {
        let mut open = true;
        while open {
            let received = timeout(TICK, self.queue.recv()).await;
            let settled = u64::from(matches!(received, Ok(Some(_))));
            let posts = match received {
                Ok(Some(event)) => self.series.record(event, Instant::now(), SystemTime::now()).into_iter().collect(),
                Ok(None) => {
                    open = false;
                    Vec::new()
                }
                Err(_) => self.series.tick(Instant::now()),
            };
            for post in posts {
                self.post(client, &post).await;
            }
            self.waiting.fetch_sub(settled, Ordering::SeqCst);
        }
    }

    async fn post(&mut self, client: &Client, post: &Post) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let mut unauthorized = 0;
        for _ in 0..ATTEMPTS {
            let mut wait = Duration::ZERO;
            let error = match timeout(ANSWER_WITHIN, send(client, post)).await {
                Ok(Ok(())) => return,
                // The client has read its credentials again; what they were before says nothing about the event.
                Ok(Err(kube::Error::Api(status))) if status.code == 401 && unauthorized == 0 => {
                    unauthorized += 1;
                    "401, for the first time".to_owned()
                }
                // What the server will refuse for ever is not sent again.
                Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
                    tracing::warn!(code = status.code, message = status.message, "an event was refused");
                    break;
                }
                Ok(Err(error)) => {
                    wait = asked_to_wait(&error);
                    error.to_string()
                }
                Err(_) => "no answer".to_owned(),
            };
            tracing::debug!(error, "an event could not be posted");
            tokio::time::sleep(backoff.after_failure(Instant::now()).max(wait)).await;
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Creates the event, or adds the series to it; creates it anew if the server has forgotten it.
async fn send(client: &Client, post: &Post) -> kube::Result<()> {
    let event = post.event();
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let events = Request::new(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"));
    if let (Post::Patch(_), Some(name)) = (post, &event.metadata.name) {
        let patch = Patch::Merge(serde_json::json!({ "series": event.series }));
        let request = events.patch(name, &PatchParams::default(), &patch).map_err(kube::Error::BuildRequest)?;
        match client.request_text(request).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    let body = serde_json::to_vec(event).map_err(kube::Error::SerdeError)?;
    let request = events.create(&PostParams::default(), body).map_err(kube::Error::BuildRequest)?;
    match client.request_text(request).await {
        // An attempt whose answer was lost did arrive.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}
