//! The pages below `/debug` of the metrics server, under the paths of Go's programs. All are not found while debugging is off.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::pages::{Debugging, Pages, SetVerbosity, TEXT, answer};
use crate::linux::profile::{COLLECT_EVERY, CpuProfile};

const HTML: &str = "text/html; charset=utf-8";
/// How long a CPU profile takes where nobody says, as in Go.
const USUAL_SECONDS: u64 = 30;
/// The most; longer ones are cut.
const MOST_SECONDS: u64 = 3600;

/// Profiles of Go's programs that this one cannot give, and why.
const ABSENT: [(&str, &str); 7] = [
    ("allocs", "this program does not record where memory is allocated: see process_resident_memory_bytes in /metrics"),
    ("block", "this program does not record where threads wait"),
    ("goroutine", "this program has threads and no goroutines: see process_threads in /metrics"),
    ("heap", "this program does not record where memory is allocated: see process_resident_memory_bytes in /metrics"),
    ("mutex", "this program does not record where threads wait"),
    ("threadcreate", "this program has the same few threads all the time"),
    ("trace", "this program cannot record a trace of its execution"),
];

pub(super) fn router(pages: &Arc<Pages>) -> Router {
    let flags = |path: &str, index: &'static str| {
        let pages = Arc::clone(pages);
        (path.to_owned(), any(move || std::future::ready(allowed(&pages, || answer(200, HTML, index.to_owned())))))
    };
    let (verbosity, profiles, moved) = (Arc::clone(pages), Arc::clone(pages), Arc::clone(pages));
    let index = "<html><head><title>/debug/flags/</title></head><body>Flags that can be PUT while the program runs: \
                 <a href=\"/debug/flags/v\">v</a></body></html>\n";
    let put = any(move |method: Method, body: Bytes| {
        let set = verbosity.set_verbosity.as_ref().filter(|_| (verbosity.debugging)() == Debugging::On);
        std::future::ready(set.map_or_else(not_found, |set| put_verbosity(&method, &body, set)))
    });
    let there = move || {
        std::future::ready(allowed(&moved, || {
            (StatusCode::FOUND, [(header::LOCATION, "/debug/pprof/")]).into_response()
        }))
    };
    let mut router = Router::new();
    for (path, page) in [flags("/debug/flags", index), flags("/debug/flags/", index), flags("/debug/pprof/", PROFILES)]
    {
        router = router.route(&path, page);
    }
    let profile = move |Path(name): Path<String>, Query(query): Query<HashMap<String, String>>| {
        let pages = Arc::clone(&profiles);
        async move {
            match (pages.debugging)() {
                Debugging::On => profile(&pages, &name, &query).await,
                Debugging::Off => not_found(),
            }
        }
    };
    router.route("/debug/flags/v", put).route("/debug/pprof", any(there)).route("/debug/pprof/{name}", any(profile))
}

const PROFILES: &str = "<html><head><title>/debug/pprof/</title></head><body>Profiles:<ul>\
    <li><a href=\"/debug/pprof/profile?seconds=30\">profile</a>: where CPU time goes, for so many seconds. Its addresses get names by \
    the file portolan.symbols that <code>make release</code> leaves beside the program: \
    <code>pprof portolan.symbols profile</code></li>\
    <li><a href=\"/debug/pprof/cmdline\">cmdline</a>: the arguments of this program</li></ul></body></html>\n";

fn allowed(pages: &Pages, page: impl FnOnce() -> Response) -> Response {
    match (pages.debugging)() {
        Debugging::On => page(),
        Debugging::Off => not_found(),
    }
}

fn put_verbosity(method: &Method, body: &[u8], set: &SetVerbosity) -> Response {
    if *method != Method::PUT {
        return answer(406, TEXT, "only PUT, with a number as the body\n".to_owned());
    }
    let text = String::from_utf8_lossy(body);
    let done = text.trim().parse().map_err(|_| "not a number".to_owned()).and_then(|level: u32| {
        set(level)?;
        Ok(level)
    });
    match done {
        Ok(level) => answer(200, TEXT, format!("verbosity is {level} now\n")),
        Err(error) => answer(400, TEXT, format!("{:?} cannot be set: {error}\n", text.trim())),
    }
}

async fn profile(pages: &Pages, name: &str, query: &HashMap<String, String>) -> Response {
    match name {
        "profile" => cpu_profile(pages, query).await,
        "cmdline" => answer(200, TEXT, command_line()),
        // What pprof asks to learn whether names can be asked for here.
        "symbol" => answer(200, TEXT, "num_symbols: 0\n".to_owned()),
        _ => {
            let why = ABSENT.iter().find(|(absent, _)| *absent == name).map_or("no such profile", |(_, why)| why);
            answer(404, TEXT, format!("{why}\n"))
        }
    }
}

/// The arguments, with a zero byte between two of them.
fn command_line() -> String {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| String::from_utf8_lossy(argument.as_bytes()).into_owned()).collect();
    arguments.join("\0")
}

/// A profile of the next seconds. Ends early, and frees what it takes, when the client goes away.
async fn cpu_profile(pages: &Pages, query: &HashMap<String, String>) -> Response {
    let asked = query.get("seconds").and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let length = Duration::from_secs(asked.unwrap_or(USUAL_SECONDS).min(MOST_SECONDS));
    let clock = pages.health.clock();
    let (wall, start) = (clock.wall(), tokio::time::Instant::now());
    let mut profile = match CpuProfile::start() {
        Ok(profile) => profile,
        Err(error) => {
            return answer(500, TEXT, format!("{error}\n"));
        }
    };
    while start.elapsed() < length {
        tokio::time::sleep(COLLECT_EVERY.min(length.saturating_sub(start.elapsed()))).await;
        profile.collect();
    }
    let message = profile.finish(wall, start.elapsed());
    let head = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"profile\""),
    ];
    (head, message).into_response()
}

fn not_found() -> Response {
    StatusCode::NOT_FOUND.into_response()
}
