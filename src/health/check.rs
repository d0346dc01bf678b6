//! `/healthz` of the metrics server, which checks one thing, that it answers, and `/metrics/slis`, which counts the checks.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::Method;
use axum::response::Response;

use super::pages::{TEXT, answer};

/// The body of `/healthz`; with `verbose` in the query all checks are listed.
pub(super) fn root(query: &str) -> String {
    let parameters = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let excluded = || parameters().filter(|(key, value)| *key == "exclude" && !value.is_empty());
    if !parameters().any(|(key, _)| key == "verbose") {
        return "ok".to_owned();
    }
    let excludes_ping = excluded().any(|(_, name)| name == "ping");
    let mut body = if excludes_ping { "[+]ping excluded: ok\n" } else { "[+]ping ok\n" }.to_owned();
    for (_, name) in excluded().filter(|(_, name)| *name != "ping") {
        // Writing to a string cannot fail.
        let _ = writeln!(body, "warn: there is no check {name:?} to exclude");
    }
    body.push_str("healthz check passed\n");
    body
}

/// The checks since the start, or since the counts were reset.
#[derive(Default)]
pub(super) struct Slis {
    checks: AtomicU64,
}

impl Slis {
    /// `/healthz` said that all is well; it never says anything else.
    pub(super) fn healthy(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer of `/metrics/slis`: DELETE resets.
    pub(super) fn answer(&self, method: &Method) -> Response {
        if *method == Method::DELETE {
            self.checks.store(0, Ordering::Relaxed);
            return answer(200, TEXT, "metrics reset\n".to_owned());
        }
        answer(200, "text/plain; version=0.0.4; charset=utf-8", self.render())
    }

    fn render(&self) -> String {
        let checks = self.checks.load(Ordering::Relaxed);
        if checks == 0 {
            return String::new();
        }
        format!(
            "# HELP kubernetes_healthcheck [STABLE] The last result of a check: 1 if it succeeded\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
             # HELP kubernetes_healthchecks_total [STABLE] How often a check was made, by its result\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {checks}\n"
        )
    }
}
