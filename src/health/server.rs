//! The two HTTP servers of the settings, and the thread that all HTTP runs on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::state::{HealthState, Probe};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `/healthz` and `/livez`; `None`: not served.
    pub healthz: Option<SocketAddr>,
    /// `/metrics`, `/healthz` and `/proxyMode`; `None`: not served.
    pub metrics: Option<SocketAddr>,
    /// The time until an address that could not be bound is tried again; kube-proxy's is [`Listen::RETRY`].
    pub retry: Duration,
}

impl Listen {
    /// The usual time until an address is tried again.
    pub const RETRY: Duration = Duration::from_secs(5);
}

/// What the servers say.
pub struct Pages {
    /// The answer to `/healthz` and `/livez`.
    pub health: Arc<HealthState>,
    /// Renders `/metrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// The body of `/proxyMode`.
    pub proxy_mode: String,
    /// Told of every answer of `/healthz` and `/livez` on the health server, with its status.
    pub on_reply: Box<dyn Fn(Probe, u16) + Send + Sync>,
}

/// The addresses that are listened on now, with the ports that the kernel chose for port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The health server; `None`: not bound (yet).
    pub healthz: Option<SocketAddr>,
    /// The metrics server, likewise.
    pub metrics: Option<SocketAddr>,
}

/// The running servers. Dropping the value stops them and closes all listeners.
pub struct Servers {
    bound: Arc<Mutex<Bound>>,
    handle: Handle,
    retry: Duration,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Servers {
    /// Starts the thread and begins to bind. An address that cannot be bound is logged and tried again for ever: health
    /// is not worth stopping the proxy for.
    pub fn start(listen: Listen, pages: Pages) -> std::io::Result<Servers> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let bound = Arc::new(Mutex::new(Bound::default()));
        let (stop, stopped) = oneshot::channel();
        let pages = Arc::new(pages);
        let set_healthz = setter(&bound, |bound, address| bound.healthz = address);
        let set_metrics = setter(&bound, |bound, address| bound.metrics = address);
        let (health, metrics) = (health_router(&pages), metrics_router(&pages));
        let retry = listen.retry;
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            if let Some(address) = listen.healthz {
                runtime.spawn(serve("health", address, health, retry, set_healthz));
            }
            if let Some(address) = listen.metrics {
                runtime.spawn(serve("metrics", address, metrics, retry, set_metrics));
            }
            // An error means that the sender is gone, which is a reason to stop as well.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Servers { bound, handle, retry, stop: Some(stop), thread: Some(thread) })
    }

    /// What is listened on now.
    pub fn bound(&self) -> Bound {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime on which everything of this module runs.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The time until an address is tried again.
    pub(super) fn retry(&self) -> Duration {
        self.retry
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn setter(
    bound: &Arc<Mutex<Bound>>,
    set: fn(&mut Bound, Option<SocketAddr>),
) -> impl Fn(Option<SocketAddr>) + Send + Sync + 'static {
    let bound = Arc::clone(bound);
    move |address| set(&mut bound.lock().unwrap_or_else(PoisonError::into_inner), address)
}

/// Serves on one address for ever.
async fn serve(
    name: &'static str,
    address: SocketAddr,
    router: Router,
    retry: Duration,
    bound: impl Fn(Option<SocketAddr>),
) {
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => {
                bound(listener.local_addr().ok());
                tracing::info!(%address, "{name} server listens");
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    tracing::error!(%address, %error, "{name} server stopped");
                }
                bound(None);
            }
            Err(error) => tracing::error!(%address, %error, "{name} server cannot listen; trying again in {retry:?}"),
        }
        tokio::time::sleep(retry).await;
    }
}

fn health_router(pages: &Arc<Pages>) -> Router {
    let probe = |probe: Probe| {
        let pages = Arc::clone(pages);
        any(move || {
            let reply = pages.health.reply(probe);
            (pages.on_reply)(probe, reply.status);
            std::future::ready(json(reply.status, reply.body))
        })
    };
    Router::new().route("/healthz", probe(Probe::Healthz)).route("/livez", probe(Probe::Livez))
}

fn metrics_router(pages: &Arc<Pages>) -> Router {
    let ok = || any(|| std::future::ready(text("text/plain; charset=utf-8", "ok".to_owned())));
    let metrics = Arc::clone(pages);
    let mode = Arc::clone(pages);
    Router::new()
        .route("/healthz", ok())
        .route("/healthz/ping", ok())
        .route(
            "/metrics",
            any(move || std::future::ready(text("text/plain; version=0.0.4; charset=utf-8", (metrics.metrics)()))),
        )
        .route(
            "/proxyMode",
            any(move || std::future::ready(text("text/plain; charset=utf-8", mode.proxy_mode.clone()))),
        )
}

const NOSNIFF: (header::HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

/// A JSON answer as the health endpoints give it.
pub(super) fn json(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json"), NOSNIFF], body).into_response()
}

fn text(content_type: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, content_type), NOSNIFF], body).into_response()
}
