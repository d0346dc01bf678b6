//! Requests and answers.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::access::Access;
use super::store::{Object, Resource, Rest, event_line};
use super::{Command, Params, Request, Shared, faults};

type Lines = mpsc::Sender<io::Result<String>>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<Params>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let access = Access::of(&method, uri.path(), &query);
    let resource = Resource::at(uri.path()).filter(|_| method == Method::GET);
    let takes_gzip = headers.get("accept-encoding").is_some_and(|accepted| accepted.to_str().unwrap().contains("gzip"));
    let request = resource.map(|resource| Request { resource, query, takes_gzip, at: Instant::now() });
    shared.requests.lock().unwrap().extend(request.clone());
    let mut released = shared.released.subscribe();
    while shared.faults().silent {
        if released.changed().await.is_err() {
            break;
        }
    }
    let failure = shared.faults().failure(resource);
    if let Some(failure) = failure {
        return failed(&failure);
    }
    if shared.faults().permissions && !access.is_allowed() {
        let Access { group, resource, verb } = access;
        shared.denied.lock().unwrap().push(format!("{verb} {resource} {group:?}"));
        return status(403, "Forbidden", "not allowed to the role system:node-proxier", 0);
    }
    match request {
        Some(request) if request.is_watch() => watch(shared, request),
        Some(request) => list(shared, request).await,
        None if access.is_event() => event(&shared, &body),
        None => status(404, "NotFound", uri.path(), 0),
    }
}

/// Keeps an event. One that is no JSON is an error, since a real server would say so.
fn event(shared: &Shared, body: &[u8]) -> Response {
    let Ok(event) = serde_json::from_slice::<Value>(body) else {
        return status(400, "BadRequest", "the event is not JSON", 0);
    };
    shared.events.lock().unwrap().push(event.clone());
    match shared.faults().refuse_events {
        Some(code) => status(code, "Forbidden", "no events", 0),
        None => (StatusCode::CREATED, json_body(&event)).into_response(),
    }
}

fn failed(failure: &faults::Failure) -> Response {
    match failure.body {
        faults::Body::Status => status(failure.status, "InternalError", "made to fail", failure.retry_after),
        faults::Body::Sentence => {
            let code = StatusCode::from_u16(failure.status).expect("a status code");
            let wait = [("retry-after", failure.retry_after.to_string())];
            (code, wait, "Too many requests, please try again later.\n").into_response()
        }
    }
}

fn status_object(code: u16, reason: &str, message: &str, retry_after: u32) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
           "reason": reason, "message": message, "details": {"retryAfterSeconds": retry_after}})
}

fn json_body(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

fn status(code: u16, reason: &str, message: &str, retry_after: u32) -> Response {
    let code_of = StatusCode::from_u16(code).expect("a status code");
    let wait = (retry_after > 0).then(|| [("retry-after", retry_after.to_string())]);
    let body = json_body(&status_object(code, reason, message, retry_after));
    match wait {
        Some(wait) => (code_of, wait, body).into_response(),
        None => (code_of, body).into_response(),
    }
}

/// What a list or streamed list shows.
fn objects(shared: &Shared, request: &Request) -> (u64, Vec<Arc<Object>>) {
    let lies = shared.faults().lies_empty(request.resource);
    let store = shared.store();
    let (labels, fields) = (request.param("labelSelector"), request.param("fieldSelector"));
    (store.version(), if lies { Vec::new() } else { store.list(request.resource, labels, fields) })
}

async fn list(shared: Arc<Shared>, request: Request) -> Response {
    let delay = shared.faults().list_delay;
    tokio::time::sleep(delay).await;
    let token = request.param("continue");
    let rest = if token.is_empty() {
        let (version, objects) = objects(&shared, &request);
        Some(Rest { version, objects, pages: 0 })
    } else {
        shared.store().rest(token)
    };
    let Some(mut rest) = rest else {
        return status(410, "Expired", "The provided continue parameter is too old", 0);
    };
    let mut released = shared.released.subscribe();
    while shared.faults().stalled_page == Some(rest.pages) {
        if released.changed().await.is_err() {
            break;
        }
    }
    let forgets = shared.faults().forget_at_page.take_if(|page| *page == rest.pages).is_some();
    if forgets {
        shared.store().compact();
    }
    // What was forgotten while the page hung is not served.
    if !token.is_empty() && shared.store().rest(token).is_none() {
        return status(410, "Expired", "The provided continue parameter is too old", 0);
    }
    // A real server ignores the limit for lists from its cache.
    let limit = match request.param("resourceVersion") {
        "0" => usize::MAX,
        _ => request.param("limit").parse().unwrap_or(usize::MAX),
    };
    let more = rest.objects.split_off(limit.min(rest.objects.len()));
    let mut metadata = json!({"resourceVersion": rest.version.to_string()});
    if !more.is_empty() {
        let rest = Rest { version: rest.version, objects: more, pages: rest.pages + 1 };
        metadata["remainingItemCount"] = json!(rest.objects.len());
        metadata["continue"] = json!(shared.store().keep(rest));
    }
    let resource = request.resource;
    let kind = format!("{}List", resource.kind());
    let version = resource.api_version();
    let items: Vec<&str> = rest.objects.iter().map(|object| object.text.as_str()).collect();
    let items = items.join(",");
    let text =
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[{items}]}}");
    if request.takes_gzip && text.len() > GZIP_FROM {
        return ([("content-type", "application/json"), ("content-encoding", "gzip")], compressed(&text))
            .into_response();
    }
    ([("content-type", "application/json")], text).into_response()
}

/// What is longer than this is compressed by a real server, unless it is a watch, and if the client takes it.
const GZIP_FROM: usize = 128 << 10;

/// As a real server compresses: fast rather than well.
fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).expect("it writes to memory");
    encoder.finish().expect("it writes to memory")
}

fn watch(shared: Arc<Shared>, request: Request) -> Response {
    if request.is_streamed_list() {
        if shared.faults().refuse_streaming {
            let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
                           WatchList feature gate is enabled";
            return status(422, "Invalid", message, 0);
        }
        if request.param("resourceVersionMatch") != "NotOlderThan" || request.param("allowWatchBookmarks") != "true" {
            return status(422, "Invalid", "resourceVersionMatch or allowWatchBookmarks is wrong", 0);
        }
    }
    let from = request.param("resourceVersion").parse().unwrap_or(0);
    if from != 0 && !shared.store().knows(from) && shared.faults().expire_by_status {
        return status(410, "Expired", "too old resource version", 0);
    }
    if from > shared.store().version() {
        return from_the_future();
    }
    let (lines, mut received) = mpsc::channel(16);
    // Subscribed here and not in the task, so that no command is lost after the request has been counted.
    let commands = shared.commands.subscribe();
    let open = OpenWatch::new(&shared, request.resource);
    tokio::spawn(async move {
        let _open = open;
        let seconds = request.param("timeoutSeconds").parse().unwrap_or(300);
        let serving = serve_watch(&shared, &request, from, &lines, commands);
        let _ = tokio::time::timeout(Duration::from_secs(seconds), serving).await;
    });
    let body = futures::stream::poll_fn(move |context| received.poll_recv(context));
    Response::builder().header("content-type", "application/json").body(Body::from_stream(body)).expect("a response")
}

/// What a server says that does not know a position yet, after it has waited for it.
fn from_the_future() -> Response {
    let mut object = status_object(504, "Timeout", "Too large resource version", 1);
    object["details"]["causes"] =
        json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
    (StatusCode::GATEWAY_TIMEOUT, json_body(&object)).into_response()
}

/// Counts a watch as open as long as it lives.
struct OpenWatch {
    shared: Arc<Shared>,
    resource: Resource,
}

impl OpenWatch {
    fn new(shared: &Arc<Shared>, resource: Resource) -> OpenWatch {
        shared.store().watch_opened(resource);
        OpenWatch { shared: shared.clone(), resource }
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.shared.store().watch_closed(self.resource);
    }
}

/// Sends events until the client goes away (`None`) or a command ends the watch.
async fn serve_watch(
    shared: &Shared,
    request: &Request,
    from: u64,
    lines: &Lines,
    mut commands: tokio::sync::broadcast::Receiver<(Resource, Command)>,
) -> Option<()> {
    let resource = request.resource;
    let (labels, fields) = (request.param("labelSelector"), request.param("fieldSelector"));
    let mut changed = shared.changed.subscribe();
    let mut at = from;
    if from == 0 {
        at = send_initial(shared, request, lines).await?;
    } else if !shared.store().knows(from) {
        return expire(lines).await;
    }
    loop {
        let (known, events, now) = {
            let store = shared.store();
            (store.knows(at), store.events_after(at, resource, labels, fields), store.version())
        };
        if !known {
            return expire(lines).await;
        }
        for event in events {
            send_line(lines, event).await?;
        }
        at = now;
        tokio::select! {
            // What has happened goes before what is commanded, so that a test can rely on the order.
            biased;
            result = changed.changed() => result.ok()?,
            command = commands.recv() => match command.ok()? {
                (of, _) if of != resource => {}
                (_, Command::Drop) => {
                    let _ = lines.send(Err(io::Error::other("dropped"))).await;
                    return None;
                }
                (_, Command::End) => return None,
                (_, Command::Expire) => return expire(lines).await,
                (_, Command::Raw(bytes)) => lines.send(Ok(bytes)).await.ok()?,
                (_, Command::Bookmark) => send(lines, &bookmark(resource, at, json!({}))).await?,
                (_, Command::RawThenStall(bytes)) => {
                    lines.send(Ok(bytes)).await.ok()?;
                    lines.closed().await;
                    return None;
                }
                (_, Command::Stall) => {
                    lines.closed().await;
                    return None;
                }
            },
            () = lines.closed() => return None,
        }
    }
}

/// Sends all objects, and the bookmark that ends a streamed list; returns the version of what was sent.
async fn send_initial(shared: &Shared, request: &Request, lines: &Lines) -> Option<u64> {
    let resource = request.resource;
    let (version, objects) = objects(shared, request);
    let broken = if request.is_streamed_list() { shared.faults().break_streamed_list.take() } else { None };
    for (index, object) in objects.into_iter().enumerate() {
        if broken == Some(index) {
            let _ = lines.send(Err(io::Error::other("dropped"))).await;
            return None;
        }
        send_line(lines, event_line("ADDED", &object.text)).await?;
    }
    let ignored = shared.faults().ignore_streaming;
    if request.is_streamed_list() && !ignored {
        send(lines, &bookmark(resource, version, json!({"k8s.io/initial-events-end": "true"}))).await?;
    }
    Some(version)
}

fn bookmark(resource: Resource, version: u64, annotations: Value) -> Value {
    json!({"type": "BOOKMARK", "object": {"kind": resource.kind(), "apiVersion": resource.api_version(),
           "metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}})
}

async fn expire(lines: &Lines) -> Option<()> {
    let object = status_object(410, "Expired", "too old resource version", 0);
    send(lines, &json!({"type": "ERROR", "object": object})).await
}

async fn send(lines: &Lines, event: &Value) -> Option<()> {
    send_line(lines, format!("{event}\n")).await
}

async fn send_line(lines: &Lines, line: String) -> Option<()> {
    lines.send(Ok(line)).await.ok()
}
