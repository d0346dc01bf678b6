//! The way of a request to the API server and of its answer back.
//!
//! kube builds the requests and knows the credentials; what lies between is ours, because its own stack speaks
//! HTTP/1.1 only, notices a dead connection after minutes, throws headers of refusals away, and keeps a token that
//! was refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use serde_json::{Value, json};
use tower::util::BoxCloneService;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_http::decompression::{DecompressionBody, DecompressionLayer};

use crate::source::kube::origin::{Files, Loaded, Origin};
use crate::source::kube::transport::{self, Gate, Transport};
use crate::source::kube::{ConnectError, ConnectOptions, Observation};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Authorized = BoxCloneService<Request<Body>, Response<DecompressionBody<Incoming>>, BoxError>;

/// What a refusal may have for a body; a `Status` is far smaller.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// Everything between kube and the connections.
struct Stack {
    origin: Origin,
    /// Replaced when the files change that it was made from.
    current: Mutex<Arc<Connected>>,
    /// Held by whoever replaces it.
    replacing: tokio::sync::Mutex<()>,
    options: ConnectOptions,
}

/// What was made from one state of the configuration. Requests that go on keep it.
struct Connected {
    config: Config,
    files: Files,
    transport: Transport,
    gate: Gate,
    /// The transport with credentials before it; replaced when they are refused.
    authorized: Mutex<Authorized>,
    /// Host and port, as metrics call the server.
    host: String,
}

/// Makes a client. Sends nothing. Needs a tokio runtime.
pub(super) async fn client(origin: Origin, options: ConnectOptions) -> Result<Client, ConnectError> {
    let connected = Connected::new(&origin, &options).await?;
    let namespace = connected.config.default_namespace.clone();
    let current = Mutex::new(Arc::new(connected));
    let stack = Arc::new(Stack { origin, current, replacing: tokio::sync::Mutex::default(), options });
    let service = tower::service_fn(move |request| {
        let stack = Arc::clone(&stack);
        async move { stack.answer(request).await }
    });
    Ok(Client::new(service, namespace))
}

/// The transport, with what kube's configuration adds to each request, and without what a server does to save bytes. Reads the token if it is in a file.
fn authorized(config: &Config, transport: &Transport) -> kube::Result<Authorized> {
    let service = ServiceBuilder::new()
        .layer(DecompressionLayer::new().gzip(!config.disable_compression))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(transport.clone());
    Ok(BoxCloneService::new(service.map_err(BoxError::from)))
}

impl Connected {
    /// Reads the configuration. Opens no connection.
    async fn new(origin: &Origin, options: &ConnectOptions) -> Result<Connected, ConnectError> {
        let Loaded { mut config, proxy, files } = origin.load().await?;
        if config.cluster_url.scheme_str() == Some("http") {
            // There will be no TLS, and whether the system has certificates is of no consequence.
            config.root_cert.get_or_insert_default();
        }
        let made = transport::transport(&config, proxy, options);
        let (transport, gate) = made.map_err(|error| no_authority(&config, origin).unwrap_or_else(|| failed(error)))?;
        let authorized = authorized(&config, &transport).map_err(failed)?;
        let host = config.cluster_url.authority().map_or_else(String::new, ToString::to_string);
        Ok(Connected { config, files, transport, gate, authorized: Mutex::new(authorized), host })
    }

    /// Reads the token again. kube would use one that was refused for most of a minute more.
    fn renew_token(&self) {
        if self.config.auth_info.token_file.is_none() {
            return;
        }
        match authorized(&self.config, &self.transport) {
            Ok(service) => *self.authorized.lock().unwrap_or_else(PoisonError::into_inner) = service,
            Err(error) => tracing::warn!(%error, "the token was refused and cannot be read again"),
        }
    }
}

fn failed(error: kube::Error) -> ConnectError {
    ConnectError::Client(Box::new(error))
}

/// Whether no client can be made only because nothing says which certificates to believe.
fn no_authority(config: &Config, origin: &Origin) -> Option<ConnectError> {
    let missing = config.root_cert.is_none() && !config.accept_invalid_certs;
    let mut with_none = config.clone();
    with_none.root_cert = Some(Vec::new());
    (missing && with_none.rustls_client_config().is_ok()).then(|| ConnectError::NoAuthority(origin.name()))
}

impl Stack {
    async fn answer(&self, request: Request<Body>) -> Result<Answer, BoxError> {
        let verb = request.method().clone();
        let waited = self.options.limiter.wait().await;
        let connected = self.connected().await;
        let host = connected.host.as_str();
        self.observe(Observation::Limited { verb: verb.as_str(), host, waited });
        let service = connected.authorized.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let started = Instant::now();
        let answer = {
            let _first = connected.gate.enter().await;
            service.oneshot(request).await
        };
        let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        let took = started.elapsed();
        self.observe(Observation::Answered { verb: verb.as_str(), host, code, took });
        let answer = answer?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            connected.renew_token();
        }
        match retry_after(&answer) {
            Some(seconds) => Ok(with_delay(answer, seconds).await),
            None => Ok(answer.map(|body| body.map_err(BoxError::from).boxed_unsync())),
        }
    }

    fn observe(&self, observation: Observation<'_>) {
        if let Some(observer) = &self.options.observer {
            observer(observation);
        }
    }

    /// What the next request goes through. When a file has changed this is a new connection with what it says now; the old one
    /// ends with the watches on it, in five minutes at the latest. What cannot be used, as a certificate whose key is still to be
    /// written, changes nothing and is tried again with the next request.
    async fn connected(&self) -> Arc<Connected> {
        let _alone = self.replacing.lock().await;
        let current = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        if !current.files.changed() {
            return current;
        }
        match Connected::new(&self.origin, &self.options).await {
            Ok(connected) => {
                tracing::info!("the kubeconfig or a file that it names has changed and is in use");
                let connected = Arc::new(connected);
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&connected);
                connected
            }
            Err(error) => {
                tracing::warn!(%error, "the kubeconfig or a file that it names has changed and cannot be used");
                current
            }
        }
    }
}

/// The header `Retry-After` of a refusal, in seconds. A date instead of a number is not read: API servers send none.
fn retry_after<B>(answer: &Response<B>) -> Option<u32> {
    if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

/// Writes the delay where it survives kube: in the `Status` of the body, and makes one of a body that is none.
async fn with_delay<B>(answer: Response<B>, seconds: u32) -> Answer
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut parts, body) = answer.into_parts();
    let bytes = Limited::new(body, MAX_REFUSAL_BYTES).collect().await.map(http_body_util::Collected::to_bytes);
    let bytes = bytes.unwrap_or_default();
    let mut status = match serde_json::from_slice(&bytes) {
        Ok(Value::Object(status)) => status,
        _ => {
            let code = parts.status;
            let message = String::from_utf8_lossy(&bytes).trim().to_owned();
            let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
            let status = json!({"status": "Failure", "code": code.as_u16(), "reason": reason, "message": message});
            status.as_object().cloned().unwrap_or_default()
        }
    };
    let details = status.entry("details").or_insert_with(|| json!({}));
    if !details.is_object() {
        *details = json!({});
    }
    details["retryAfterSeconds"] = json!(seconds);
    parts.headers.remove(header::CONTENT_LENGTH);
    let text = Value::Object(status).to_string();
    Response::from_parts(parts, Full::from(text).map_err(|never| match never {}).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16, wait: &str, body: &str) -> Response<Full<Bytes>> {
        let answer = Response::builder().status(code).header("retry-after", wait);
        answer.body(Full::from(body.to_owned())).unwrap()
    }

    async fn status(answer: Response<Full<Bytes>>) -> Value {
        let seconds = retry_after(&answer).unwrap();
        let body = with_delay(answer, seconds).await.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn the_header_goes_into_the_status_whatever_the_body_is() {
        let status_of_sentence = status(refusal(429, "7", "too busy\n")).await;
        assert_eq!(status_of_sentence["details"]["retryAfterSeconds"], 7);
        assert_eq!((&status_of_sentence["code"], &status_of_sentence["message"]), (&json!(429), &json!("too busy")));
        let body = r#"{"kind":"Status","code":503,"message":"m","details":null}"#;
        let kept = status(refusal(503, " 9 ", body)).await;
        assert_eq!((&kept["message"], &kept["details"]["retryAfterSeconds"]), (&json!("m"), &json!(9)));
    }

    #[test]
    fn only_refusals_for_load_are_put_off() {
        let wait = |code, wait| retry_after(&refusal(code, wait, ""));
        assert_eq!(wait(429, "3"), Some(3));
        assert_eq!(wait(403, "3"), None);
        assert_eq!(wait(503, "Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
