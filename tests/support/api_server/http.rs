//! Requests and answers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::store::{Resource, Rest};
use super::{Command, Request, Shared};

type Params = BTreeMap<String, String>;
type Lines = mpsc::Sender<io::Result<String>>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, Query(query): Query<Params>) -> Response {
    let Some(resource) = Resource::at(uri.path()) else { return status(404, "NotFound", uri.path(), 0) };
    let request = Request { resource, query };
    shared.requests.lock().unwrap().push(request.clone());
    let failure = {
        let mut faults = shared.faults();
        let at = faults.failures.iter().position(|(failing, ..)| *failing == resource);
        at.map(|at| faults.failures.remove(at))
    };
    if let Some((_, code, retry_after)) = failure {
        return status(code, "InternalError", "made to fail", retry_after);
    }
    if request.is_watch() { watch(shared, request) } else { list(shared, request).await }
}

fn status_object(code: u16, reason: &str, message: &str, retry_after: u32) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
           "reason": reason, "message": message, "details": {"retryAfterSeconds": retry_after}})
}

fn json_body(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

fn status(code: u16, reason: &str, message: &str, retry_after: u32) -> Response {
    (StatusCode::from_u16(code).expect("a status code"), json_body(&status_object(code, reason, message, retry_after)))
        .into_response()
}

async fn list(shared: Arc<Shared>, request: Request) -> Response {
    let delay = shared.faults().list_delay;
    tokio::time::sleep(delay).await;
    let token = request.param("continue");
    let rest = if token.is_empty() {
        let store = shared.store();
        let objects = store.list(request.resource, request.param("labelSelector"), request.param("fieldSelector"));
        Some(Rest { version: store.version(), objects, pages: 0 })
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
    json_body(&json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": rest.objects}))
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
    let (lines, mut received) = mpsc::channel(16);
    // Subscribed here and not in the task, so that no command is lost after the request has been counted.
    let commands = shared.commands.subscribe();
    shared.store().watch_opened(request.resource);
    let resource = request.resource;
    tokio::spawn(async move {
        let seconds = request.param("timeoutSeconds").parse().unwrap_or(300);
        let serving = serve_watch(&shared, &request, from, &lines, commands);
        let _ = tokio::time::timeout(Duration::from_secs(seconds), serving).await;
        shared.store().watch_closed(resource);
    });
    let body = futures::stream::poll_fn(move |context| received.poll_recv(context));
    Response::builder().header("content-type", "application/json").body(Body::from_stream(body)).expect("a response")
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
            send(lines, &event).await?;
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
    let (objects, version) = {
        let store = shared.store();
        let objects = store.list(resource, request.param("labelSelector"), request.param("fieldSelector"));
        (objects, store.version())
    };
    let broken = if request.is_streamed_list() { shared.faults().break_streamed_list.take() } else { None };
    for (index, object) in objects.into_iter().enumerate() {
        if broken == Some(index) {
            let _ = lines.send(Err(io::Error::other("dropped"))).await;
            return None;
        }
        send(lines, &json!({"type": "ADDED", "object": object})).await?;
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
    lines.send(Ok(format!("{event}\n"))).await.ok()
}
