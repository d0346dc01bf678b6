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

use crate::source::kube::transport::{self, Gate, Transport};
use crate::source::kube::{ConnectOptions, Observation};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Authorized = BoxCloneService<Request<Body>, Response<DecompressionBody<Incoming>>, BoxError>;

/// What a refusal may have for a body; a `Status` is far smaller.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// Everything between kube and the connections.
struct Stack {
    config: Config,
    transport: Transport,
    gate: Gate,
    /// The transport with credentials before it; replaced when they are refused.
    authorized: Mutex<Authorized>,
    options: ConnectOptions,
    /// Host and port, as metrics call the server.
    host: String,
}

/// Makes a client. Sends nothing. Needs a tokio runtime.
pub(super) fn client(config: Config, options: ConnectOptions) -> kube::Result<Client> {
    let (transport, gate) = transport::transport(&config, &options)?;
    let authorized = Mutex::new(authorized(&config, &transport)?);
    let host = config.cluster_url.authority().map_or_else(String::new, ToString::to_string);
    let namespace = config.default_namespace.clone();
    let stack = Arc::new(Stack { config, transport, gate, authorized, options, host });
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

impl Stack {
    async fn answer(&self, request: Request<Body>) -> Result<Answer, BoxError> {
        let verb = request.method().clone();
        let waited = self.options.limiter.wait().await;
        self.observe(Observation::Limited { verb: verb.as_str(), host: &self.host, waited });
        let service = self.authorized.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let started = Instant::now();
        let answer = {
            let _first = self.gate.enter().await;
            service.oneshot(request).await
        };
        let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        let took = started.elapsed();
        self.observe(Observation::Answered { verb: verb.as_str(), host: &self.host, code, took });
        let answer = answer?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.renew_credentials();
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

    /// Reads the token again. kube would use one that was refused for most of a minute more.
    fn renew_credentials(&self) {
        if self.config.auth_info.token_file.is_none() {
            return;
        }
        match authorized(&self.config, &self.transport) {
            Ok(service) => *self.authorized.lock().unwrap_or_else(PoisonError::into_inner) = service,
            Err(error) => tracing::warn!(%error, "the token was refused and cannot be read again"),
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
