//! Connections to the API server, over real TLS with a client certificate.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/tls.rs"]
mod tls;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_server::{ApiServer, Resource};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use portolan::source::Event;
use portolan::source::kube::events::{ClusterEvent, recorder};
use portolan::source::kube::{ConnectOptions, Limiter, Observation, Observer, WatchOptions, connect, run};
use tls::TlsServer;

const WATCHED: [Resource; 3] = [Resource::Services, Resource::Slices, Resource::Nodes];

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 60 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Watches through a server that speaks these protocols. Returns it with what the watches report.
async fn start(server: &ApiServer, protocols: &[&str], options: ConnectOptions) -> (TlsServer, Receiver<Event>) {
    let tls = TlsServer::start(server.router(), protocols).await;
    let client = connect(Some(&tls.kubeconfig()), None, options).await.unwrap();
    let (sender, events) = channel();
    let (recorder, mut outbox) = recorder("host");
    recorder.record(ClusterEvent::starting("n1"));
    let posting = client.clone();
    tokio::spawn(async move { outbox.run(&posting).await });
    let patience = WatchOptions { min_backoff: Duration::from_millis(10), ..WatchOptions::default() };
    tokio::spawn(async move { run(client, "n1", sender, patience).await });
    let watched = || WATCHED.iter().all(|resource| server.open_watches(*resource) == 1);
    until("three watches and an event", || watched() && server.events().len() == 1).await;
    (tls, events)
}

#[tokio::test]
async fn three_watches_and_events_share_one_connection_with_http_2() {
    let server = ApiServer::start();
    let (tls, _events) = start(&server, &["h2", "http/1.1"], ConnectOptions::default()).await;
    assert_eq!(tls.handshakes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_without_http_2_gets_a_connection_for_each_watch() {
    let server = ApiServer::start();
    let (tls, _events) = start(&server, &["http/1.1"], ConnectOptions::default()).await;
    let connections = tls.handshakes.load(Ordering::SeqCst);
    assert!((3..=4).contains(&connections), "{connections}");
}

#[tokio::test]
async fn a_connection_that_went_silent_is_noticed_by_its_pings() {
    let server = ApiServer::start();
    let (ping_interval, ping_timeout) = (Duration::from_millis(200), Duration::from_millis(300));
    let options = ConnectOptions { ping_interval, ping_timeout, ..ConnectOptions::default() };
    let (tls, events) = start(&server, &["h2"], options).await;
    tls.cut.store(true, Ordering::SeqCst);
    // The watches themselves would wait for 150 s.
    let restarted = || events.try_iter().any(|event| matches!(event, Event::WatchRestarted { .. }));
    until("the loss is noticed", restarted).await;
    tls.cut.store(false, Ordering::SeqCst);
    let watches = |server: &ApiServer| server.count(api_server::Request::is_watch);
    until("new watches on a new connection", || watches(&server) >= 6).await;
    assert!(tls.handshakes.load(Ordering::SeqCst) >= 2);
}

#[tokio::test]
async fn the_delay_that_a_busy_server_names_in_a_header_is_kept() {
    let server = ApiServer::start();
    server.throttle(2);
    let client = connect(None, Some(&server.url()), ConnectOptions::default()).await.unwrap();
    let (sender, _events) = channel();
    let patience = WatchOptions { min_backoff: Duration::from_millis(10), ..WatchOptions::default() };
    tokio::spawn(async move { run(client, "n1", sender, patience).await });
    until("each watch was refused", || server.requests().len() >= 3).await;
    server.heal();
    until("each watch began", || WATCHED.iter().all(|resource| server.open_watches(*resource) == 1)).await;
    for resource in WATCHED {
        let times: Vec<_> = server.requests().iter().filter(|r| r.resource == resource).map(|r| r.at).collect();
        assert!(times[1] - times[0] >= Duration::from_secs(2), "{resource:?}: {:?}", times[1] - times[0]);
    }
}

#[tokio::test]
async fn a_token_that_was_replaced_is_used_after_the_old_one_is_refused() {
    let valid = Arc::new(Mutex::new("old"));
    let checked = Arc::clone(&valid);
    let router = Router::new().fallback(move |headers: HeaderMap| {
        let given = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let ok = given == format!("Bearer {}", checked.lock().unwrap());
        std::future::ready(if ok { StatusCode::OK } else { StatusCode::UNAUTHORIZED })
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let directory = tempfile::tempdir().unwrap();
    let (token, kubeconfig) = (directory.path().join("token"), directory.path().join("kubeconfig"));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\nusers: [{{name: u, user: {{tokenFile: token}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    std::fs::write(&token, "old").unwrap();
    let client = connect(Some(&kubeconfig), None, ConnectOptions::default()).await.unwrap();
    let code = || async {
        let request = http::Request::get("/version").body(Vec::new()).unwrap();
        match client.request_text(request).await {
            Ok(_) => 200,
            Err(kube::Error::Api(status)) => status.code,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(code().await, 200);
    *valid.lock().unwrap() = "new";
    std::fs::write(&token, "new").unwrap();
    assert_eq!(code().await, 401);
    assert_eq!(code().await, 200);
    // A file that has gone for a moment costs nothing that worked.
    std::fs::remove_file(&token).unwrap();
    assert_eq!(code().await, 200);
    *valid.lock().unwrap() = "newest";
    assert_eq!(code().await, 401);
    std::fs::write(&token, "newest").unwrap();
    assert_eq!((code().await, code().await), (401, 200));
}

#[tokio::test]
async fn each_request_is_observed_with_its_wait_its_status_and_its_host() {
    let server = ApiServer::start();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let observer: Observer = Arc::new(move |observation| {
        log.lock().unwrap().push(match observation {
            Observation::Limited { verb, host, waited } => format!("{verb} {host} {}", waited > Duration::ZERO),
            Observation::Answered { verb, host, code, .. } => format!("{verb} {host} {code:?}"),
        });
    });
    let limiter = Limiter::new(5.0, 1);
    let options = ConnectOptions { limiter, observer: Some(observer), ..ConnectOptions::default() };
    let client = connect(None, Some(&server.url()), options).await.unwrap();
    for path in ["/api/v1/services", "/nothing"] {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request).await.is_ok(), path != "/nothing");
    }
    let host = server.url().replace("http://", "");
    let expected = ["false", "Some(200)", "true", "Some(404)"].map(|what| format!("GET {host} {what}"));
    assert_eq!(*seen.lock().unwrap(), expected);
}
