//! Metrics about requests to the API server, under the names that all of Kubernetes' programs have them.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::registered;

/// Upper bounds in seconds; client-go's, as component-base sets them.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

pub(super) struct RestClientMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    limiter_duration: HistogramVec,
}

impl RestClientMetrics {
    pub(super) fn register(registry: &Registry) -> Result<RestClientMetrics, prometheus::Error> {
        let histogram = |name: &str, help: &str| {
            let opts = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            registered(registry, HistogramVec::new(opts, &["verb", "host"])?)
        };
        let requests = Opts::new(
            "rest_client_requests_total",
            "[ALPHA] Requests to the API server, by status code, method and host; <error> is the code of one without answer.",
        );
        Ok(RestClientMetrics {
            requests: registered(registry, IntCounterVec::new(requests, &["code", "method", "host"])?)?,
            duration: histogram(
                "rest_client_request_duration_seconds",
                "[ALPHA] Seconds until the head of the answer came, by verb and host.",
            )?,
            limiter_duration: histogram(
                "rest_client_rate_limiter_duration_seconds",
                "[ALPHA] Seconds that a request waited for the client's own limit, by verb and host.",
            )?,
        })
    }

    pub(super) fn limited(&self, verb: &str, host: &str, waited: Duration) {
        self.limiter_duration.with_label_values(&[verb, host]).observe(waited.as_secs_f64());
    }

    pub(super) fn answered(&self, verb: &str, host: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests.with_label_values(&[code.as_str(), verb, host]).inc();
        self.duration.with_label_values(&[verb, host]).observe(took.as_secs_f64());
    }
}
