//! What the two servers say, by path.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::check::{self, Slis};
use super::debug;
use super::server::Server;
use super::state::{HealthState, Probe};
use super::zpages::{self, Zpages};

/// Renders a page.
pub type Page = Box<dyn Fn() -> String + Send + Sync>;

/// Sets the verbosity of the log, or says why it cannot.
pub type SetVerbosity = Box<dyn Fn(u32) -> Result<(), String> + Send + Sync>;

/// Whether the pages for debugging are served; they may make the proxy work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debugging {
    /// They are.
    On,
    /// They are not found.
    Off,
}

/// What the servers say. Everything is asked for with each request, so it may change while they run.
pub struct Pages {
    /// The answer to `/healthz` and `/livez` of the health server.
    pub health: Arc<HealthState>,
    /// Renders `/metrics`.
    pub metrics: Page,
    /// The body of `/proxyMode`.
    pub proxy_mode: Page,
    /// The body of `/configz`, a JSON object.
    pub configz: Page,
    /// All flags for `/flagz`, by their names without dashes.
    pub flags: Box<dyn Fn() -> BTreeMap<String, String> + Send + Sync>,
    /// Whether `/debug` is served.
    pub debugging: Box<dyn Fn() -> Debugging + Send + Sync>,
    /// What `PUT /debug/flags/v` does; `None`: the path is not found.
    pub set_verbosity: Option<SetVerbosity>,
    /// Told of every answer of `/healthz` and `/livez` on the health server, with its status.
    pub on_reply: Box<dyn Fn(Probe, u16) + Send + Sync>,
    /// Told each time that a server cannot listen, or has stopped, and why.
    pub on_failure: Box<dyn Fn(Server, String) + Send + Sync>,
}

pub(super) fn health_router(pages: &Arc<Pages>) -> Router {
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

pub(super) fn metrics_router(pages: &Arc<Pages>) -> Router {
    let page = |content_type: &'static str, of: fn(&Pages) -> &Page| {
        let pages = Arc::clone(pages);
        any(move || std::future::ready(answer(200, content_type, of(&pages)())))
    };
    let slis = Arc::new(Slis::default());
    let counted = Arc::clone(&slis);
    let zpages = Arc::new(Zpages::new(Arc::clone(pages)));
    let (statusz, flagz) = (Arc::clone(&zpages), zpages);
    let healthz = any(move |uri: Uri| {
        counted.healthy();
        std::future::ready(answer(200, TEXT, check::root(uri.query().unwrap_or_default())))
    });
    Router::new()
        .route("/healthz", healthz)
        .route("/healthz/ping", any(|| std::future::ready(answer(200, TEXT, "ok".to_owned()))))
        .route("/metrics", page("text/plain; version=0.0.4; charset=utf-8", |pages| &pages.metrics))
        .route("/metrics/slis", any(move |method: Method| std::future::ready(slis.answer(&method))))
        .route("/proxyMode", page(TEXT, |pages| &pages.proxy_mode))
        .route("/configz", page("application/json", |pages| &pages.configz))
        .route("/statusz", any(move |head: HeaderMap| std::future::ready(statusz.answer(&zpages::STATUSZ, &head))))
        .route("/flagz", any(move |head: HeaderMap| std::future::ready(flagz.answer(&zpages::FLAGZ, &head))))
        .merge(debug::router(pages))
}

/// The content type of plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// A JSON answer as the health endpoints give it.
pub(super) fn json(status: u16, body: String) -> Response {
    answer(status, "application/json", body)
}

pub(super) fn answer(status: u16, content_type: &'static str, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, content_type), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], body).into_response()
}
