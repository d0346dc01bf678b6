//! The API server as a source, against a server over real TCP.

#[path = "support/api_server/mod.rs"]
mod api_server;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use api_server::{ApiServer, Resource};
use portolan::model::{Change, Cluster, ObjectKind, Objects, ServiceName};
use portolan::source::Event;
use portolan::source::kube::{ConnectError, ConnectOptions, WatchOptions, connect, run};
use serde_json::{Value, json};

/// A source that watches a server, with everything that it has reported.
struct Source {
    events: Receiver<Event>,
    cluster: Cluster,
    /// How often each kind of object has been complete: Services, EndpointSlices.
    complete: (usize, usize),
    notes: BTreeMap<(ObjectKind, String), Vec<String>>,
    restarts: Vec<(ObjectKind, String)>,
    heard: Vec<(ObjectKind, Option<SystemTime>)>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

fn options() -> WatchOptions {
    WatchOptions {
        min_backoff: Duration::from_millis(10),
        max_backoff: Duration::from_millis(100),
        page_size: 2,
        ..WatchOptions::default()
    }
}

impl Source {
    fn start(server: &ApiServer) -> Source {
        Source::with(server, options())
    }

    fn with(server: &ApiServer, options: WatchOptions) -> Source {
        let (sender, events) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let url = server.url();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(None, Some(&url), ConnectOptions::default()).await.unwrap();
                tokio::select! {
                    () = run(client, "n1", sender, options) => {}
                    _ = stopped => {}
                }
            });
        });
        Source {
            events,
            cluster: Cluster::default(),
            complete: (0, 0),
            notes: BTreeMap::new(),
            restarts: Vec::new(),
            heard: Vec::new(),
            stop: Some(stop),
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Change(change) => {
                match &change {
                    Change::Complete(Objects::Services(_)) => self.complete.0 += 1,
                    Change::Complete(Objects::Slices(_)) => self.complete.1 += 1,
                    _ => {}
                }
                self.cluster.apply(change);
            }
            Event::Notes { kind, object, notes } if notes.is_empty() => {
                self.notes.remove(&(kind, object)).expect("only what had notes is cleared");
            }
            Event::Notes { kind, object, notes } => {
                self.notes.insert((kind, object), notes.iter().map(ToString::to_string).collect());
            }
            Event::WatchRestarted { kind, reason } => self.restarts.push((kind, reason)),
            Event::Heard { kind, triggered_at } => self.heard.push((kind, triggered_at)),
        }
    }

    /// Takes events until something holds.
    #[track_caller]
    fn until(&mut self, what: &str, holds: impl Fn(&Source) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left.min(Duration::from_millis(20))) {
                Ok(event) => self.take(event),
                Err(_) if left.is_zero() => {
                    panic!("{what}: not within 10 s; services {:?}, restarts {:?}", self.services(), self.restarts)
                }
                Err(_) => {}
            }
        }
    }

    /// Takes the events of a short time, in which nothing is expected.
    fn settle(&mut self) {
        let end = Instant::now() + Duration::from_millis(300);
        while let Ok(event) = self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.take(event);
        }
    }

    fn services(&self) -> Vec<String> {
        let with_service = self.cluster.entries().filter(|(_, entry)| entry.service.is_some());
        let mut names: Vec<_> = with_service.map(|(name, _)| name.name.to_string()).collect();
        names.sort();
        names
    }

    fn port_of(&self, name: &str) -> Option<u16> {
        let entry = self.cluster.entry(&ServiceName::new("shop", name))?;
        entry.service.as_ref()?.ports.first().map(|port| port.port.get())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

fn service(name: &str, port: u16) -> Value {
    json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
                    "ports": [{"port": port, "protocol": "TCP"}]}})
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
           "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
           "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

fn node(name: &str, zone: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
           "spec": {"podCIDRs": ["10.1.0.0/24"]},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

/// A server with five Services, one slice and two Nodes.
fn server() -> ApiServer {
    let server = ApiServer::start();
    for number in 1..=5 {
        server.apply(service(&format!("s{number}"), 80));
    }
    server.apply(slice("s1-a", "s1", &["10.1.0.1", "10.1.0.2"]));
    server.apply(node("n1", "z1"));
    server.apply(node("n2", "z2"));
    server
}

const ALL: [&str; 5] = ["s1", "s2", "s3", "s4", "s5"];

fn synced_source(server: &ApiServer) -> Source {
    let mut source = Source::start(server);
    source.until("synced", |source| source.cluster.synced() && source.cluster.node().eligible);
    source
}

#[test]
fn a_streamed_list_brings_everything_in_one_request_per_kind() {
    let server = server();
    let source = synced_source(&server);
    assert_eq!(source.services(), ALL);
    assert_eq!(source.cluster.entry(&ServiceName::new("shop", "s1")).unwrap().slices[0].len(), 2);
    assert_eq!(source.cluster.node().zone.as_deref(), Some("z1"));
    assert_eq!(source.cluster.node().pod_cidrs.len(), 1);
    assert_eq!(source.restarts, []);
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");
    for request in requests {
        assert!(request.is_streamed_list());
        assert_eq!(request.param("resourceVersion"), "", "the newest state");
        assert_eq!(request.param("resourceVersionMatch"), "NotOlderThan");
        assert!((217..=290).contains(&request.param("timeoutSeconds").parse::<u32>().unwrap()));
    }
}

#[test]
fn the_selectors_are_those_of_kube_proxy() {
    let server = server();
    server.refuse_streaming();
    let mut source = synced_source(&server);
    let watches = |server: &ApiServer| server.count(|request| request.is_watch() && !request.is_streamed_list());
    source.until("watches", |_| watches(&server) == 3);
    for request in server.requests() {
        let (labels, fields) = match request.resource {
            Resource::Services => ("!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"),
            Resource::Slices => ("!service.kubernetes.io/headless", ""),
            Resource::Nodes => ("", "metadata.name=n1"),
        };
        assert_eq!((request.param("labelSelector"), request.param("fieldSelector")), (labels, fields));
    }
}

#[test]
fn without_streamed_lists_the_list_comes_in_pages() {
    let server = server();
    server.refuse_streaming();
    let source = synced_source(&server);
    assert_eq!(source.services(), ALL);
    assert_eq!(source.complete.0, 1);
    assert_eq!(source.restarts, [], "a refusal is not a failure");
    let requests = server.requests();
    let pages: Vec<_> =
        requests.iter().filter(|request| request.is_list() && request.resource == Resource::Services).collect();
    assert_eq!(pages.len(), 3);
    assert!(pages.iter().all(|page| page.param("limit") == "2" && page.param("resourceVersion").is_empty()));
}

#[test]
fn a_server_that_ignores_the_wish_for_a_streamed_list_is_listed_in_pages() {
    let server = server();
    server.ignore_streaming();
    let mut source = Source::with(&server, WatchOptions { list_timeout: Duration::from_millis(200), ..options() });
    source.until("synced", |source| source.cluster.synced());
    assert_eq!(source.services(), ALL);
    assert_eq!(server.count(|request| request.is_list() && request.resource == Resource::Services), 3);
}

#[test]
fn additions_changes_and_deletions_arrive() {
    let server = server();
    let mut source = synced_source(&server);
    server.apply(service("s6", 80));
    source.until("added", |source| source.services().len() == 6);
    server.apply(service("s6", 81));
    source.until("changed", |source| source.port_of("s6") == Some(81));
    server.delete(Resource::Services, "shop", "s6");
    source.until("deleted", |source| source.services() == ALL);
    server.delete(Resource::Slices, "shop", "s1-a");
    source.until("slice deleted", |source| {
        source.cluster.entry(&ServiceName::new("shop", "s1")).is_some_and(|entry| entry.slices.is_empty())
    });
    server.apply(node("n1", "z9"));
    source.until("zone", |source| source.cluster.node().zone.as_deref() == Some("z9"));
    server.delete(Resource::Nodes, "", "n1");
    source.settle();
    assert_eq!(source.cluster.node().zone.as_deref(), Some("z9"), "the last known node stays in force");
    assert_eq!(source.complete, (1, 1));
}

#[test]
fn a_service_that_leaves_the_selection_is_deleted() {
    let server = server();
    let mut source = synced_source(&server);
    let mut other = service("s1", 80);
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    server.apply(other);
    source.until("left", |source| source.services() == ALL[1..]);
    server.apply(service("s1", 80));
    source.until("returned", |source| source.services() == ALL);
}

#[test]
fn a_watch_resumes_from_the_bookmark_and_lists_nothing_again() {
    let server = server();
    let mut source = synced_source(&server);
    let version = server.apply(node("n2", "z3"));
    server.bookmark(Resource::Services);
    source.settle();
    server.end_watches(Resource::Services);
    let resumed = |server: &ApiServer| {
        server
            .requests()
            .into_iter()
            .find(|request| request.resource == Resource::Services && request.is_watch() && !request.is_streamed_list())
    };
    source.until("resumed", |_| resumed(&server).is_some());
    assert_eq!(resumed(&server).unwrap().param("resourceVersion"), version.to_string());
    assert_eq!(resumed(&server).unwrap().param("allowWatchBookmarks"), "true");
    server.apply(service("s6", 80));
    source.until("added", |source| source.services().len() == 6);
    assert_eq!(source.complete.0, 1);
    assert_eq!(source.restarts, [], "an ordinary end is not a failure");
}

#[test]
fn a_broken_connection_is_reported_and_loses_nothing() {
    let server = server();
    let mut source = synced_source(&server);
    server.drop_watches(Resource::Services);
    source.until("noticed", |source| source.restarts.len() == 1);
    server.apply(service("s6", 80));
    server.delete(Resource::Services, "shop", "s1");
    source.until("caught up", |source| source.services() == ["s2", "s3", "s4", "s5", "s6"]);
    assert_eq!(source.restarts.len(), 1);
    assert_eq!(source.restarts[0].0, ObjectKind::Service);
    assert_eq!(source.complete.0, 1, "resumed, not listed again");
}

#[test]
fn an_expired_position_leads_to_a_list_that_removes_what_vanished() {
    for by_status in [false, true] {
        let server = server();
        let mut source = synced_source(&server);
        if by_status {
            server.expire_by_status();
        }
        // Two changes happen and are forgotten while the source gets no answer.
        server.fail(Resource::Services, 10_000, 503, 0);
        server.end_watches(Resource::Services);
        source.until("no answer", |source| !source.restarts.is_empty());
        server.delete(Resource::Services, "shop", "s3");
        server.apply(service("s6", 80));
        server.compact();
        server.heal();
        source.until("listed again", |source| source.complete.0 == 2);
        assert_eq!(source.services(), ["s1", "s2", "s4", "s5", "s6"]);
        assert!(source.restarts.iter().any(|(_, reason)| reason.starts_with("410 Expired")), "{:?}", source.restarts);
    }
}

#[test]
fn a_410_in_the_middle_of_a_watch_leads_to_a_list() {
    let server = server();
    let mut source = synced_source(&server);
    server.expire_watches(Resource::Slices);
    source.until("listed again", |source| source.complete.1 == 2);
    assert_eq!(source.restarts.len(), 1);
    assert_eq!(source.restarts[0].0, ObjectKind::EndpointSlice);
    assert_eq!(source.complete.0, 1, "other kinds go on");
}

#[test]
fn an_empty_list_after_a_full_one_is_believed_only_when_the_next_one_is_empty_too() {
    let server = server();
    let mut source = synced_source(&server);
    server.claim_empty(Resource::Services, 1);
    server.expire_watches(Resource::Services);
    source.until("listed again", |source| source.complete.0 == 2);
    assert_eq!(source.services(), ALL);
    assert_eq!(source.restarts.last().unwrap().1, "an empty list, after one of 5 objects");
    // Really empty.
    server.fail(Resource::Services, 10_000, 503, 0);
    server.end_watches(Resource::Services);
    source.until("no answer", |source| source.restarts.len() > 3);
    ALL.iter().for_each(|name| server.delete(Resource::Services, "shop", name));
    server.compact();
    server.heal();
    source.until("empty", |source| source.services().is_empty());
    assert_eq!(source.complete.0, 3);
}

#[test]
fn an_unreadable_line_leads_to_a_list_since_it_may_have_been_a_change() {
    for garbage in ["{\"type\":\"MODIFIED\",\n", "no json at all\n", "{\"type\":\"STRANGE\",\"object\":{}}\n"] {
        let server = server();
        let mut source = synced_source(&server);
        server.send_raw(Resource::Services, garbage);
        source.until("listed again", |source| source.complete.0 == 2);
        assert!(source.restarts[0].1.starts_with("unreadable watch event"), "{:?}", source.restarts);
        assert_eq!(source.services(), ALL);
    }
}

#[test]
fn the_parts_of_an_event_may_come_in_any_order() {
    let server = server();
    let mut source = synced_source(&server);
    let mut object = service("s6", 80);
    object["metadata"]["resourceVersion"] = json!("100");
    server.send_raw(Resource::Services, &format!("{{\"object\": {object}, \"type\": \"ADDED\"}}\n"));
    source.until("added", |source| source.services().len() == 6);
    assert_eq!(source.restarts, []);
}

#[test]
fn an_event_that_is_cut_off_is_read_again() {
    let server = server();
    let mut source = synced_source(&server);
    server.send_raw(Resource::Services, "{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"s1\"");
    server.end_watches(Resource::Services);
    source.until("noticed", |source| source.restarts.len() == 1);
    server.apply(service("s6", 80));
    source.until("caught up", |source| source.services().len() == 6);
    assert_eq!(source.restarts.len(), 1);
    assert_eq!(source.complete.0, 1);
}

#[test]
fn a_server_with_errors_is_asked_again_until_it_answers() {
    let server = server();
    server.fail(Resource::Services, 3, 500, 0);
    server.fail(Resource::Slices, 1, 429, 1);
    let started = Instant::now();
    let source = synced_source(&server);
    assert_eq!(source.services(), ALL);
    let of = |kind| source.restarts.iter().filter(|(of, _)| *of == kind).count();
    assert_eq!((of(ObjectKind::Service), of(ObjectKind::EndpointSlice)), (3, 1));
    assert!(started.elapsed() >= Duration::from_secs(1), "the wish of the server to wait is granted");
}

#[test]
fn malformed_objects_give_notes_and_the_others_work() {
    let server = server();
    let mut bad = service("s2", 80);
    bad["spec"]["ports"] = json!([{"port": 70000}, {"port": 81}]);
    server.apply(bad);
    server.apply(json!({"kind": "Service", "metadata": {"name": "s3", "namespace": "shop", "labels": 5}, "spec": []}));
    server.apply(json!({"kind": "Service", "metadata": {"name": "bad name", "namespace": "shop"}, "spec": {}}));
    let mut source = synced_source(&server);
    assert_eq!(source.services(), ["s1", "s2", "s4", "s5"]);
    assert_eq!(source.port_of("s2"), Some(81));
    let objects: Vec<_> = source.notes.keys().map(|(_, object)| object.as_str()).collect();
    assert_eq!(objects, ["shop/\"bad name\"", "shop/s2", "shop/s3"]);
    // Notes go when the object is repaired, when it is deleted, and when it vanishes unseen.
    server.apply(service("s2", 80));
    source.until("repaired", |source| source.notes.len() == 2 && source.port_of("s2") == Some(80));
    server.delete(Resource::Services, "shop", "s3");
    source.until("deleted", |source| source.notes.len() == 1);
    server.send_raw(Resource::Services, "garbage\n");
    server.delete(Resource::Services, "shop", "bad name");
    source.until("vanished", |source| source.notes.is_empty());
    assert_eq!(source.services(), ["s1", "s2", "s4", "s5"]);
}

#[test]
fn nothing_is_complete_before_the_last_page_has_arrived() {
    let server = server();
    server.refuse_streaming();
    server.stall_page(1);
    let mut source = Source::start(&server);
    source.until("first page", |source| source.services().len() == 2);
    source.settle();
    assert_eq!((source.complete, source.services().len()), ((0, 1), 2));
    assert!(!source.cluster.synced());
    server.release();
    source.until("synced", |source| source.cluster.synced());
    assert_eq!(source.services(), ALL);
}

#[test]
fn a_streamed_list_that_breaks_off_is_not_complete() {
    let server = server();
    server.break_streamed_list(0);
    let mut source = Source::start(&server);
    source.until("synced", |source| source.cluster.synced() && source.services().len() == 5);
    assert_eq!(source.restarts.len(), 1);
    assert_eq!(source.complete, (1, 1));
}

#[test]
fn a_list_that_makes_no_progress_is_begun_again() {
    let server = server();
    server.refuse_streaming();
    server.stall_page(1);
    let mut source = Source::with(&server, WatchOptions { list_timeout: Duration::from_millis(200), ..options() });
    source.until("given up", |source| !source.restarts.is_empty());
    server.release();
    source.until("synced", |source| source.cluster.synced());
    assert_eq!(source.services(), ALL);
}

#[test]
fn history_that_is_forgotten_between_two_pages_makes_the_list_begin_again() {
    let server = server();
    server.refuse_streaming();
    server.stall_page(1);
    let mut source = Source::with(&server, WatchOptions { list_timeout: Duration::from_millis(200), ..options() });
    source.until("first page", |source| source.services().len() == 2);
    server.delete(Resource::Services, "shop", "s1");
    server.compact();
    server.release();
    source.until("synced", |source| source.cluster.synced());
    assert_eq!(source.services(), ALL[1..], "what the first attempt saw and is gone does not stay");
}

#[test]
fn a_silent_watch_is_continued_on_a_new_connection() {
    let server = server();
    let mut source = Source::with(&server, WatchOptions { idle_timeout: Duration::from_millis(300), ..options() });
    source.until("synced", |source| source.cluster.synced());
    server.stall_watches(Resource::Services);
    source.settle();
    server.apply(service("s6", 80));
    source.until("caught up", |source| source.services().len() == 6);
    assert_eq!(source.complete.0, 1);
}

#[test]
fn a_server_that_ends_each_watch_at_once_is_not_asked_without_pause() {
    let server = server();
    let mut source = Source::with(&server, WatchOptions { min_backoff: Duration::from_millis(100), ..options() });
    source.until("synced", |source| source.cluster.synced());
    let before = server.requests().len();
    let end = Instant::now() + Duration::from_millis(600);
    while Instant::now() < end {
        server.end_watches(Resource::Services);
        std::thread::sleep(Duration::from_millis(2));
    }
    let asked = server.requests().len() - before;
    assert!((2..=8).contains(&asked), "{asked} requests in 600 ms");
}

#[test]
fn interruptions_far_from_each_other_do_not_lengthen_the_wait() {
    let server = server();
    let (min_backoff, max_backoff) = (Duration::from_millis(20), Duration::from_secs(20));
    let mut source = Source::with(&server, WatchOptions { min_backoff, max_backoff, ..options() });
    source.until("synced", |source| source.cluster.synced());
    // Without that, the last wait would be 10 s at least.
    for round in 1..=11 {
        source.until("watched", |_| server.open_watches(Resource::Services) == 1);
        source.settle();
        let before = server.requests().len();
        server.drop_watches(Resource::Services);
        let dropped = Instant::now();
        source.until("asked again", |_| server.requests().len() > before);
        assert!(dropped.elapsed() < Duration::from_secs(5), "interruption {round}: {:?}", dropped.elapsed());
    }
    assert_eq!(source.complete, (1, 1));
}

#[test]
fn bookmarks_ends_of_lists_and_times_of_changes_are_reported_and_old_times_are_not() {
    let triggered = |name: &str, second: u64| {
        let mut slice = slice(name, "s1", &["10.1.0.9"]);
        slice["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": format!("2026-01-01T00:00:{second:02}Z")});
        slice
    };
    let server = server();
    server.apply(triggered("s1-b", 1));
    let mut source = synced_source(&server);
    source.until("three lists have ended", |source| source.heard.len() == 3);
    assert!(source.heard.iter().all(|(_, time)| time.is_none()), "{:?}", source.heard);
    source.heard.clear();
    server.bookmark(Resource::Nodes);
    source.until("a bookmark", |source| source.heard == [(ObjectKind::Node, None)]);
    server.apply(triggered("s1-b", 2));
    server.apply(triggered("s1-b", 4));
    source.until("two changes", |source| source.heard.len() == 3);
    let times: Vec<_> = source.heard[1..].iter().map(|(_, time)| time.unwrap()).collect();
    assert_eq!(times[1].duration_since(times[0]).unwrap(), Duration::from_secs(2));
}

#[test]
fn a_source_that_nobody_listens_to_ends() {
    let server = server();
    let (sender, events) = channel();
    let url = server.url();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = connect(None, Some(&url), ConnectOptions::default()).await.unwrap();
            run(client, "n1", sender, options()).await;
        });
    });
    events.recv_timeout(Duration::from_secs(10)).unwrap();
    drop(events);
    for resource in [Resource::Services, Resource::Slices, Resource::Nodes] {
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.open_watches(resource) > 0 && Instant::now() < deadline {
            server.send_raw(resource, "garbage\n");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    thread.join().unwrap();
}

#[test]
fn a_server_that_cannot_be_reached_is_reported_with_the_cause() {
    let server = ApiServer::start();
    let (sender, events) = channel();
    let url = server.url();
    drop(server);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = connect(None, Some(&url), ConnectOptions::default()).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(5), run(client, "n1", sender, options())).await;
        });
    });
    match events.recv_timeout(Duration::from_secs(5)).unwrap() {
        Event::WatchRestarted { reason, .. } => assert!(reason.contains("refused"), "{reason}"),
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn a_kubeconfig_leads_to_its_server_and_another_address_goes_before_it() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = |url: &str| {
        let path = dir.path().join("kubeconfig");
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "default",
            "clusters": [{"name": "default", "cluster": {"server": url}}], "users": [{"name": "default", "user": {}}],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}]});
        std::fs::write(&path, text.to_string()).unwrap();
        path
    };
    let address = server.url().replace("http://", "");
    for (url, master) in [(server.url(), None), ("http://192.0.2.1:1".to_owned(), Some(address.as_str()))] {
        let client = connect(Some(&kubeconfig(&url)), master, ConnectOptions::default()).await.unwrap();
        let (sender, events) = channel();
        let _ = tokio::time::timeout(Duration::from_millis(500), run(client, "n1", sender, options())).await;
        assert!(events.try_iter().any(|event| matches!(event, Event::Change(Change::Complete(_)))), "{url} {master:?}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let error = connect(Some("/nonexistent/kubeconfig".as_ref()), None, ConnectOptions::default()).await.err().unwrap();
    assert!(error.to_string().starts_with("cannot use the kubeconfig /nonexistent/kubeconfig"), "{error}");
    assert!(matches!(connect(None, Some("http://a b"), ConnectOptions::default()).await, Err(ConnectError::Master(_))));
}

#[test]
fn an_event_without_end_is_cut_off_and_does_not_fill_the_memory() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
                let asked = connection.read(&mut [0; 4096]).and_then(|_| connection.write_all(head));
                let garbage = [b'x'; 65536];
                while asked.is_ok() && connection.write_all(&garbage).is_ok() {}
            });
        }
    });
    let (sender, events) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let watching = async {
            let client = connect(None, Some(&url), ConnectOptions::default()).await.unwrap();
            run(client, "n1", sender, options()).await;
        };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), watching).await.unwrap_or_default() });
    });
    match events.recv_timeout(Duration::from_secs(15)).expect("it is not read for ever") {
        Event::WatchRestarted { reason, .. } => assert_eq!(reason, "an event without end"),
        other => panic!("unexpected {other:?}"),
    }
}
