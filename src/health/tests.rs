//! Health, asked for over real HTTP on loopback.

mod pages;
mod rebind;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::TestClock;
use crate::sync::{HealthCheck, HealthChecks};

const PERIOD: Duration = Duration::from_secs(30);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    ask(address, "GET", path)
}

fn ask(address: SocketAddr, method: &str, path: &str) -> std::io::Result<Answer> {
    raw(address, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

fn raw(address: SocketAddr, request: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

/// Waits until the condition holds, for at most five seconds.
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Setup {
    servers: Servers,
    state: Arc<HealthState>,
    clock: TestClock,
    replies: Arc<Mutex<Vec<(Probe, u16)>>>,
    failures: Arc<Mutex<Vec<(Server, String)>>>,
}

/// What changes while the servers run.
#[derive(Default)]
struct Said {
    mode: Mutex<&'static str>,
    debugging: std::sync::atomic::AtomicBool,
    verbosity: std::sync::atomic::AtomicU32,
}

fn start(healthz: Option<SocketAddr>) -> Setup {
    start_with(healthz, Duration::from_millis(50))
}

fn start_with(healthz: Option<SocketAddr>, retry: Duration) -> Setup {
    start_saying(healthz, retry, &Arc::default())
}

fn start_saying(healthz: Option<SocketAddr>, retry: Duration, said: &Arc<Said>) -> Setup {
    use std::sync::atomic::Ordering::SeqCst;
    let clock = TestClock::default();
    let state = Arc::new(HealthState::new(PERIOD, clock.clone()));
    let replies: Arc<Mutex<Vec<(Probe, u16)>>> = Arc::default();
    let failures: Arc<Mutex<Vec<(Server, String)>>> = Arc::default();
    let (told, failed) = (Arc::clone(&replies), Arc::clone(&failures));
    let (mode, debugging, verbosity) = (Arc::clone(said), Arc::clone(said), Arc::clone(said));
    let pages = Pages {
        health: Arc::clone(&state),
        metrics: Box::new(|| "some_metric 1\n".to_owned()),
        proxy_mode: Box::new(move || (*mode.mode.lock().unwrap()).to_owned()),
        configz: Box::new(|| "{\"kubeproxy.config.k8s.io\":{}}".to_owned()),
        flags: Box::new(|| [("config".to_owned(), "/conf".to_owned()), ("v".to_owned(), "2".to_owned())].into()),
        debugging: Box::new(move || match debugging.debugging.load(SeqCst) {
            true => Debugging::On,
            false => Debugging::Off,
        }),
        set_verbosity: Some(Box::new(move |level| match level {
            0..=9 => {
                verbosity.verbosity.store(level, SeqCst);
                Ok(())
            }
            _ => Err("too much".to_owned()),
        })),
        on_reply: Box::new(move |probe, status| told.lock().unwrap().push((probe, status))),
        on_failure: Box::new(move |server, why| failed.lock().unwrap().push((server, why))),
    };
    let listen = Listen { healthz, metrics: Some("127.0.0.1:0".parse().unwrap()), retry };
    Setup { servers: Servers::start(listen, pages).unwrap(), state, clock, replies, failures }
}

fn ephemeral() -> Option<SocketAddr> {
    Some("127.0.0.1:0".parse().unwrap())
}

/// A port that was free a moment ago, in both families.
fn free_port() -> NonZeroU16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
}

#[test]
fn bodies_are_those_of_kube_proxy() {
    let clock = TestClock::default();
    let state = HealthState::new(PERIOD, clock.clone());
    let reply = state.reply(Probe::Healthz);
    assert_eq!(reply.status, 503, "the node is not known");
    assert_eq!(
        reply.body,
        "{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"currentTime\":\"2023-11-14T22:13:20Z\",\
         \"nodeEligible\":false,\"healthy\":true}"
    );
    state.set_node_eligible(true);
    state.updated(IpFamily::V4);
    clock.advance(Duration::from_millis(1500));
    state.updated(IpFamily::V6);
    clock.advance(Duration::from_secs(1));
    let reply = state.reply(Probe::Healthz);
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.body,
        "{\"lastUpdated\":\"2023-11-14T22:13:22.5Z\",\"currentTime\":\"2023-11-14T22:13:22.5Z\",\
         \"nodeEligible\":true,\"healthy\":true,\"status\":{\
         \"IPv4\":{\"lastUpdated\":\"2023-11-14T22:13:20Z\",\"healthy\":true},\
         \"IPv6\":{\"lastUpdated\":\"2023-11-14T22:13:21.5Z\",\"healthy\":true}}}"
    );
    assert!(!state.reply(Probe::Livez).body.contains("nodeEligible"));
}

#[test]
fn a_change_that_waits_for_two_sync_periods_makes_the_proxy_unhealthy_until_it_is_programmed() {
    let clock = TestClock::default();
    let state = HealthState::new(PERIOD, clock.clone());
    state.set_node_eligible(true);
    state.updated(IpFamily::V4);
    state.queued(IpFamily::V4);
    state.queued(IpFamily::V6);
    clock.advance(PERIOD * 2 - Duration::from_nanos(1));
    state.queued(IpFamily::V4);
    assert!(state.healthy());
    clock.advance(Duration::from_nanos(1));
    assert!(!state.healthy(), "the first change counts, not the last");
    for probe in [Probe::Healthz, Probe::Livez] {
        let reply = state.reply(probe);
        assert_eq!(reply.status, 503);
        assert!(reply.body.contains("\"lastUpdated\":\"2023-11-14T22:13:20Z\",\"currentTime\""), "{}", reply.body);
        assert!(reply.body.contains("\"healthy\":false"));
        assert!(!reply.body.contains("IPv6"), "a family that was never programmed does not count");
    }
    state.updated(IpFamily::V4);
    assert!(state.healthy());
}

#[test]
fn an_ineligible_node_is_out_of_rotation_but_alive() {
    let setup = start(ephemeral());
    let address = eventually("bound", || setup.servers.bound().healthz);
    setup.state.updated(IpFamily::V4);
    setup.state.set_node_eligible(true);
    let good = get(address, "/healthz").unwrap();
    assert_eq!(good.status, 200);
    assert!(good.head.contains("content-type: application/json"));
    assert!(good.head.contains("x-content-type-options: nosniff"));
    assert!(!good.body.ends_with('\n'));
    setup.state.set_node_eligible(false);
    let out = get(address, "/healthz").unwrap();
    assert_eq!(out.status, 503);
    assert!(out.body.contains("\"nodeEligible\":false,\"healthy\":true"));
    assert_eq!(ask(address, "POST", "/livez").unwrap().status, 200, "any method will do");
    setup.state.queued(IpFamily::V4);
    setup.clock.advance(PERIOD * 2);
    assert_eq!(get(address, "/livez").unwrap().status, 503);
    assert_eq!(get(address, "/other").unwrap().status, 404);
    assert_eq!(
        *setup.replies.lock().unwrap(),
        [(Probe::Healthz, 200), (Probe::Healthz, 503), (Probe::Livez, 200), (Probe::Livez, 503)]
    );
}

#[test]
fn while_the_node_is_awaited_load_balancers_stay_away_and_nobody_restarts_the_proxy() {
    let setup = start(None);
    setup.state.updated(IpFamily::V4);
    setup.state.set_node_eligible(true);
    let status = |probe| setup.state.reply(probe).status;
    setup.state.await_node();
    assert_eq!((status(Probe::Healthz), status(Probe::Livez)), (503, 200));
    assert!(setup.state.reply(Probe::Healthz).body.contains("\"nodeEligible\":false,\"healthy\":true"));
    setup.state.go_on();
    assert_eq!((status(Probe::Healthz), status(Probe::Livez)), (200, 200));
}

#[test]
fn an_address_in_use_is_tried_again() {
    let blocker = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = blocker.local_addr().unwrap();
    let setup = start(Some(address));
    eventually("the other server", || setup.servers.bound().metrics);
    assert_eq!(setup.servers.bound().healthz, None);
    drop(blocker);
    assert_eq!(eventually("bound at last", || setup.servers.bound().healthz), address);
    assert_eq!(get(address, "/livez").unwrap().status, 200);
}

#[test]
fn dropping_the_servers_closes_the_ports() {
    let setup = start(ephemeral());
    let address = eventually("bound", || setup.servers.bound().healthz);
    drop(setup.servers);
    assert!(get(address, "/livez").is_err());
}

fn wanted(entries: &[(&str, NonZeroU16, usize)]) -> HealthChecks {
    entries
        .iter()
        .map(|(name, port, local_ready)| {
            (
                ServiceName::new("ns", *name),
                HealthCheck { port: *port, local_endpoints: PerFamily::from_fn(|_| Some(*local_ready)) },
            )
        })
        .collect()
}

fn local(family: IpFamily, port: NonZeroU16) -> SocketAddr {
    match family {
        IpFamily::V4 => SocketAddr::from(([127, 0, 0, 1], port.get())),
        IpFamily::V6 => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port.get())),
    }
}

#[test]
fn a_service_answers_by_its_local_endpoints_in_both_families() {
    let setup = start(None);
    let everywhere = PerFamily { v4: ListenAddresses::All, v6: ListenAddresses::All };
    let services = ServiceHealth::start(&setup.servers, Arc::clone(&setup.state), everywhere);
    let port = free_port();
    services.sync(&wanted(&[("web", port, 2)]));
    for family in IpFamily::ALL {
        let answer = eventually("listening", || get(local(family, port), "/any/path").ok());
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("x-load-balancing-endpoint-weight: 2"), "{}", answer.head);
        assert!(answer.head.contains("content-type: application/json"));
        assert!(answer.head.contains("x-content-type-options: nosniff"));
        assert_eq!(
            answer.body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\
             \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
    }
    services.sync(&wanted(&[("web", port, 0)]));
    assert_eq!(get(local(IpFamily::V4, port), "/").unwrap().status, 503, "no endpoint here");
    services.sync(&wanted(&[("web", port, 1)]));
    setup.state.updated(IpFamily::V4);
    setup.state.queued(IpFamily::V4);
    setup.clock.advance(PERIOD * 2);
    let answer = get(local(IpFamily::V4, port), "/").unwrap();
    assert_eq!(answer.status, 503, "the proxy does not keep up");
    assert!(answer.body.contains("\"serviceProxyHealthy\": false"));
}

#[test]
fn a_service_of_one_family_answers_in_that_family_only() {
    let setup = start(None);
    let everywhere = PerFamily { v4: ListenAddresses::All, v6: ListenAddresses::All };
    let services = ServiceHealth::start(&setup.servers, Arc::clone(&setup.state), everywhere);
    let port = free_port();
    let mut checks = wanted(&[("web", port, 1)]);
    services.sync(&checks);
    eventually("both families", || get(local(IpFamily::V6, port), "/").ok());
    checks.values_mut().for_each(|check| check.local_endpoints.v6 = None);
    services.sync(&checks);
    eventually("IPv6 closed", || get(local(IpFamily::V6, port), "/").is_err().then_some(()));
    assert_eq!(get(local(IpFamily::V4, port), "/").unwrap().status, 200);
}

#[test]
fn listeners_follow_the_services() {
    // No second attempt helps within the time of this test: a port that moves must be free at the first one.
    let setup = start_with(None, Duration::from_secs(3600));
    let only = PerFamily { v4: ListenAddresses::Only(vec![[127, 0, 0, 1].into()]), v6: ListenAddresses::None };
    let services = ServiceHealth::start(&setup.servers, Arc::clone(&setup.state), only);
    let (first, second) = (free_port(), free_port());
    let answers = |port: NonZeroU16| get(local(IpFamily::V4, port), "/").ok();
    services.sync(&wanted(&[("a", first, 1)]));
    eventually("first port", || answers(first));
    assert!(get(local(IpFamily::V6, first), "/").is_err(), "the family is off");
    services.sync(&wanted(&[("a", second, 1)]));
    eventually("second port", || answers(second));
    assert!(answers(first).is_none(), "the old port is closed");
    // The port moves to another Service.
    services.sync(&wanted(&[("b", second, 1)]));
    let answer = eventually("the other service", || answers(second).filter(|answer| answer.body.contains("\"b\"")));
    assert_eq!(answer.status, 200);
    services.sync(&BTreeMap::new());
    eventually("closed", || answers(second).is_none().then_some(()));
}

#[test]
fn a_health_check_port_in_use_is_tried_again() {
    let setup = start(None);
    let only = PerFamily { v4: ListenAddresses::Only(vec![[127, 0, 0, 1].into()]), v6: ListenAddresses::None };
    let services = ServiceHealth::start(&setup.servers, Arc::clone(&setup.state), only);
    let (told, failures) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    services.on_failure(move |service, note| {
        let _ = told.lock().unwrap().send((service.name.to_string(), note));
    });
    let blocker = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = NonZeroU16::new(blocker.local_addr().unwrap().port()).unwrap();
    services.sync(&wanted(&[("a", port, 1)]));
    let (service, note) = failures.recv_timeout(Duration::from_secs(10)).expect("the failure is told");
    assert!(service == "a" && note.contains(&port.to_string()), "{service}: {note}");
    drop(blocker);
    eventually("listening at last", || get(local(IpFamily::V4, port), "/").ok());
}
