//! Events, posted to a server over real TCP.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use portolan::source::kube::events::{ClusterEvent, Recorder, recorder};
use portolan::source::kube::{ConnectOptions, connect};
use serde_json::Value;

type Seen = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// A server that answers each request with the next of these, and the last one for ever.
async fn server(answers: &'static [u16]) -> (String, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let router = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
        assert!(headers["user-agent"].to_str().unwrap().starts_with("portolan/"));
        let mut log = log.lock().unwrap();
        let answer = answers.get(log.len()).or(answers.last()).copied().unwrap();
        log.push((method, uri.path().to_owned(), serde_json::from_slice(&body).unwrap()));
        let body = format!(r#"{{"kind":"Status","status":"Failure","code":{answer},"reason":"x","message":"y"}}"#);
        std::future::ready((StatusCode::from_u16(answer).unwrap(), body))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn start(answers: &'static [u16]) -> (Recorder, Seen) {
    let (url, seen) = server(answers).await;
    let client = connect(None, Some(&url), ConnectOptions::default()).await.unwrap();
    let (recorder, mut outbox) = recorder("host");
    tokio::spawn(async move { outbox.run(&client).await });
    (recorder, seen)
}

#[tokio::test]
async fn an_event_is_created_and_its_repeat_patched() {
    let (recorder, seen) = start(&[201, 200]).await;
    for _ in 0..5 {
        recorder.record(ClusterEvent::starting("n1"));
    }
    recorder.record(ClusterEvent::configuration_applied("n1", "done".to_owned()));
    until("three requests", || seen.lock().unwrap().len() == 3).await;
    until("nothing waits any more", || recorder.waiting() == 0).await;
    let seen = seen.lock().unwrap();
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    assert_eq!((&seen[0].0, seen[0].1.as_str()), (&Method::POST, events));
    let name = seen[0].2["metadata"]["name"].as_str().unwrap();
    assert_eq!((&seen[1].0, &seen[1].1), (&Method::PATCH, &format!("{events}/{name}")));
    assert_eq!(seen[1].2["series"]["count"], 2);
    assert_eq!(seen[2].2["reason"], "ConfigurationApplied");
    assert_eq!(recorder.dropped(), 0);
}

#[tokio::test]
async fn an_event_is_tried_again_and_created_anew_when_forgotten() {
    let (recorder, seen) = start(&[503, 201, 404, 201]).await;
    recorder.record(ClusterEvent::starting("n1"));
    recorder.record(ClusterEvent::starting("n1"));
    until("four requests", || seen.lock().unwrap().len() == 4).await;
    let methods: Vec<_> = seen.lock().unwrap().iter().map(|(method, ..)| method.clone()).collect();
    assert_eq!(methods, [Method::POST, Method::POST, Method::PATCH, Method::POST]);
}

#[tokio::test]
async fn an_event_that_is_refused_is_counted_and_does_not_hold_up_others() {
    let (recorder, seen) = start(&[403, 201]).await;
    recorder.record(ClusterEvent::starting("n1"));
    recorder.record(ClusterEvent::invalid_configuration("n1", "no".to_owned()));
    until("two requests", || seen.lock().unwrap().len() == 2).await;
    assert_eq!(recorder.dropped(), 1);
}

#[tokio::test]
async fn an_event_is_sent_once_more_after_the_credentials_were_refused() {
    let (recorder, seen) = start(&[401, 201, 401]).await;
    recorder.record(ClusterEvent::starting("n1"));
    until("it is accepted", || seen.lock().unwrap().len() == 2 && recorder.waiting() == 0).await;
    assert_eq!(recorder.dropped(), 0);
    recorder.record(ClusterEvent::invalid_configuration("n1", "no".to_owned()));
    until("it is given up", || recorder.waiting() == 0).await;
    assert_eq!((recorder.dropped(), seen.lock().unwrap().len()), (1, 4), "refused twice, and not tried for ever");
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (recorder, outbox) = recorder("host");
    for number in 0..300 {
        recorder.record(ClusterEvent::invalid_configuration("n1", number.to_string()));
    }
    assert_eq!((recorder.dropped(), recorder.waiting()), (300 - 256, 256));
    drop(outbox);
}
