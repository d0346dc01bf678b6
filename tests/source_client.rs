//! Connections to the API server, over real TLS with a client certificate.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_server::{ApiServer, Resource};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use portolan::model::Change;
use portolan::source::Event;
use portolan::source::kube::events::{ClusterEvent, recorder};
use portolan::source::kube::{ConnectOptions, Limiter, Observation, Observer, Proxies, WatchOptions, connect, run};
use tls::TlsServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
    server.apply(serde_json::json!({"kind": "Node", "metadata": {"name": "n1"}}));
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

/// Waits until all lists have ended, and there are positions to go on from.
async fn listed(events: &Receiver<Event>) {
    let ended = Mutex::new(0);
    until("three lists have ended", || {
        let mut ended = ended.lock().unwrap();
        *ended += events.try_iter().filter(|event| matches!(event, Event::Change(Change::Complete(_)))).count();
        *ended == WATCHED.len()
    })
    .await;
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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
async fn certificates_that_a_server_no_longer_takes_are_replaced_from_their_files_without_a_list() {
    let server = ApiServer::start();
    let (tls, events) = start(&server, &["h2"], ConnectOptions::default()).await;
    listed(&events).await;
    let before = server.requests().len();
    let identity = tls.renew();
    tls.disconnect();
    until("the watches are cut off", || WATCHED.iter().all(|resource| server.open_watches(*resource) == 0)).await;
    // Kubelet writes one file after the other. The old CA is not the server's, and the old key not the certificate's.
    identity.write_only("client.pem", tls.directory.path());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((server.requests().len(), tls.handshakes.load(Ordering::SeqCst)), (before, 1));
    identity.write(tls.directory.path());
    until("it goes on", || WATCHED.iter().all(|resource| server.open_watches(*resource) == 1)).await;
    let requests = server.requests().split_off(before);
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert!(requests.iter().all(|request| request.is_watch() && !request.is_streamed_list()), "{requests:?}");
    assert_eq!(tls.handshakes.load(Ordering::SeqCst), 2, "they share the new connection");
}

#[tokio::test]
async fn a_certificate_that_is_renewed_while_the_old_one_is_good_is_used_by_the_next_requests_and_cuts_nothing() {
    let server = ApiServer::start();
    let (tls, events) = start(&server, &["h2"], ConnectOptions::default()).await;
    listed(&events).await;
    let before = server.requests().len();
    tls.renew().write(tls.directory.path());
    server.end_watches(Resource::Services);
    until("the watch goes on", || server.requests().len() > before && server.open_watches(Resource::Services) == 1)
        .await;
    assert_eq!(server.requests().len(), before + 1, "the others are not touched");
    assert_eq!(tls.handshakes.load(Ordering::SeqCst), 2, "on a connection with the new certificate");
    assert!(!events.try_iter().any(|event| matches!(event, Event::WatchRestarted { .. })));
}

#[tokio::test]
async fn a_changed_address_in_the_kubeconfig_is_where_the_watches_go_on() {
    let (old, new) = (ApiServer::start(), ApiServer::start());
    let (tls, _events) = start(&old, &["h2"], ConnectOptions::default()).await;
    let other = TlsServer::start(new.router(), &["h2"]).await;
    for file in ["ca.pem", "client.pem", "client.key", "kubeconfig"] {
        std::fs::copy(other.directory.path().join(file), tls.directory.path().join(file)).unwrap();
    }
    tls.disconnect();
    until("the new server is watched", || WATCHED.iter().all(|resource| new.open_watches(*resource) == 1)).await;
}

/// A proxy that takes `CONNECT` alone and leads everything to one address. Returns where it is, and what it was told.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                log.lock().unwrap().push(String::from_utf8(head).unwrap());
                let mut server = TcpStream::connect(to).await.unwrap();
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                // Whichever side ends it.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn the_proxy_of_the_environment_or_of_the_kubeconfig_leads_to_the_server() {
    for by_kubeconfig in [false, true] {
        let server = ApiServer::start();
        let tls = TlsServer::start(server.router(), &["h2"]).await;
        let text = std::fs::read_to_string(tls.kubeconfig()).unwrap();
        let address = text.split("https://").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        let (proxy, told) = proxy(address.parse().unwrap()).await;
        let url = format!("http://user:word@{proxy}");
        // The name exists nowhere: the proxy alone knows the way.
        let mut there = "server: 'https://api.invalid:6443', tls-server-name: '127.0.0.1'".to_owned();
        if by_kubeconfig {
            there = format!("{there}, proxy-url: '{url}'");
        }
        std::fs::write(tls.kubeconfig(), text.replace(&format!("server: 'https://{address}'"), &there)).unwrap();
        let proxies = if by_kubeconfig { Proxies::default() } else { Proxies::new(&url, "10.0.0.0/8") };
        let options = ConnectOptions { proxies, ..ConnectOptions::default() };
        let client = connect(Some(&tls.kubeconfig()), None, options).await.unwrap();
        let (sender, _events) = channel();
        tokio::spawn(async move { run(client, "n1", sender, WatchOptions::default()).await });
        until("three watches", || WATCHED.iter().all(|resource| server.open_watches(*resource) == 1)).await;
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1, "one connection: {told:?}");
        assert!(told[0].starts_with("CONNECT api.invalid:6443 HTTP/1.1\r\n"), "{told:?}");
        assert!(told[0].to_lowercase().contains("proxy-authorization: basic dxnlcjp3b3jk"), "{told:?}");
    }
}

#[test]
fn a_kubeconfig_without_ca_on_a_system_without_certificates_is_named() {
    const MARK: &str = "PORTOLAN_TEST_WITHOUT_CERTIFICATES";
    let directory = tempfile::tempdir().unwrap();
    if std::env::var_os(MARK).is_none() {
        // The environment is the process's, so this test runs again in a process of its own.
        let name = "a_kubeconfig_without_ca_on_a_system_without_certificates_is_named";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name]).env(MARK, "1").env("SSL_CERT_DIR", directory.path());
        let output = again.env("SSL_CERT_FILE", directory.path().join("none")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = directory.path().join("kubeconfig");
    let connected = |server: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        runtime.block_on(connect(Some(&path), None, ConnectOptions::default()))
    };
    let error = connected("https://192.0.2.1").err().unwrap().to_string();
    assert!(error.contains(&path.display().to_string()) && error.contains("certificate-authority"), "{error}");
    assert!(connected("http://192.0.2.1").is_ok(), "without TLS nothing is to be believed");
}

#[tokio::test]
async fn watches_and_pages_together_keep_to_the_rate() {
    let server = ApiServer::start();
    server.refuse_streaming();
    for number in 0..500 {
        let name = format!("s{number}");
        server
            .apply(serde_json::json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": {}}));
    }
    let options = ConnectOptions { limiter: Limiter::new(40.0, 3), ..ConnectOptions::default() };
    let client = connect(None, Some(&server.url()), options).await.unwrap();
    let (sender, _events) = channel();
    let options = WatchOptions { page_size: 20, ..WatchOptions::default() };
    tokio::spawn(async move { run(client, "n1", sender, options).await });
    until("everything is watched", || WATCHED.iter().all(|resource| server.open_watches(*resource) == 1)).await;
    let requests = server.requests();
    // Three refused streams, 25 pages of Services, one of each other kind, three watches.
    assert_eq!(requests.len(), 33);
    let took = requests[32].at - requests[0].at;
    // 3 at once, and 30 at 40 in a second; the first may have been on its way for long.
    assert!(took >= Duration::from_millis(600), "33 requests within {took:?}");
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
