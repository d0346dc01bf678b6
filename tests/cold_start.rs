//! What a cold start costs the API server: requests, and bytes on the wire, for two big clusters. Over real TLS; bytes are counted
//! at the TCP socket. `cargo test --test cold_start -- --nocapture` prints the table of docs/api-server.md.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/real_objects.rs"]
mod real_objects;
#[path = "support/tls.rs"]
mod tls;

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use api_server::{ApiServer, Request, Resource};
use portolan::model::Change;
use portolan::source::Event;
use portolan::source::kube::{ConnectOptions, WatchOptions, connect, run};
use tls::TlsServer;

const WATCHED: [Resource; 3] = [Resource::Services, Resource::Slices, Resource::Nodes];

/// How the lists come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Streamed,
    Paged,
    PagedGzip,
}

#[derive(Debug)]
struct Cost {
    requests: usize,
    connections: usize,
    received: usize,
    sent: usize,
}

/// A server with so many Services, each of which has one slice with so many endpoints.
fn server(services: u32, endpoints: u32) -> ApiServer {
    let server = ApiServer::start();
    for number in 0..services {
        server.apply(real_objects::service(number));
        server.apply(real_objects::slice(number, endpoints));
    }
    server.apply(objects::node("n1", &["192.0.2.1".parse().unwrap()]));
    server
}

/// Starts, lists everything, and watches.
async fn cold_start(server: &ApiServer, expected: usize, way: Way, protocols: &[&str]) -> Cost {
    let before = server.requests().len();
    let tls = TlsServer::start(server.router(), protocols).await;
    if way == Way::Paged {
        tls.forbid_compression();
    }
    let client = connect(Some(&tls.kubeconfig()), None, ConnectOptions::default()).await.unwrap();
    let (sender, events) = channel();
    let watching = tokio::spawn(async move { run(client, "n1", sender, WatchOptions::default()).await });
    let deadline = Instant::now() + Duration::from_secs(300);
    let (mut complete, mut objects) = (0, 0);
    while complete < WATCHED.len() || !WATCHED.iter().all(|resource| server.open_watches(*resource) == 1) {
        assert!(Instant::now() < deadline, "{way:?} {protocols:?}: not within 300 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
        for event in events.try_iter() {
            match event {
                Event::Change(Change::Complete(_)) => complete += 1,
                Event::WatchRestarted { reason, .. } => panic!("{reason}"),
                Event::Change(_) => objects += 1,
                Event::Notes { .. } | Event::Heard { .. } => {}
            }
        }
    }
    assert_eq!(objects, expected, "each object once");
    let requests = server.requests().split_off(before);
    assert_requests(&requests, way);
    let count = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::SeqCst);
    let cost = Cost {
        requests: requests.len(),
        connections: count(&tls.handshakes),
        received: count(&tls.received),
        sent: count(&tls.sent),
    };
    watching.abort();
    let _ = watching.await;
    while WATCHED.iter().any(|resource| server.open_watches(*resource) > 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cost
}

fn assert_requests(requests: &[Request], way: Way) {
    assert!(requests.iter().all(|request| request.param("resourceVersion") != "0"));
    for request in requests {
        let gzip = request.is_list() && way != Way::Paged;
        assert_eq!(request.takes_gzip, gzip, "{request:?}");
    }
}

/// Runs all ways and compares with a budget for each: requests, and KiB that are received.
async fn measure(services: u32, endpoints: u32, budget: [(Way, usize, usize); 3]) {
    let (server, objects) = (server(services, endpoints), 2 * services as usize + 1);
    println!(
        "| {services} × {endpoints} | HTTP | Requests | Connections | Bytes received | Bytes sent |\n|---|---|---|---|---|---|"
    );
    for (way, requests, kib) in budget {
        if way != Way::Streamed {
            server.refuse_streaming();
        }
        for (version, protocols) in [("2", ["h2"]), ("1.1", ["http/1.1"])] {
            let cost = cold_start(&server, objects, way, &protocols).await;
            let Cost { connections, received, sent, .. } = cost;
            println!("| {way:?} | {version} | {} | {connections} | {received} | {sent} |", cost.requests);
            assert_eq!(cost.requests, requests, "{way:?} {protocols:?}");
            assert!(connections <= if version == "2" { 1 } else { 4 }, "{way:?}: {connections} connections");
            let (low, high) = (kib * 1024 / 100 * 95, kib * 1024 / 100 * 105);
            assert!((low..=high).contains(&received), "{way:?} {protocols:?}: {received} bytes, not {low} to {high}");
            assert!(sent < 64 << 10, "{way:?} {protocols:?}: {sent} bytes sent");
        }
    }
}

#[tokio::test]
async fn a_cold_start_at_ten_thousand_services_costs_what_is_documented() {
    // A streamed list for each kind. In pages: three refusals, 20 pages and 20 pages and one, three watches.
    measure(10_000, 5, [(Way::Streamed, 3, 45_130), (Way::Paged, 47, 44_320), (Way::PagedGzip, 47, 4_870)]).await;
}

#[tokio::test]
async fn a_cold_start_at_a_thousand_services_with_a_hundred_endpoints_costs_what_is_documented() {
    // In pages: three refusals, 2 pages and 2 pages and one, three watches.
    measure(1_000, 100, [(Way::Streamed, 3, 31_950), (Way::Paged, 11, 31_890), (Way::PagedGzip, 11, 4_560)]).await;
}
