//! Other addresses while the servers run.

use super::*;

fn listen(healthz: Option<SocketAddr>, metrics: Option<SocketAddr>) -> Listen {
    Listen { healthz, metrics, retry: Duration::from_secs(3600) }
}

fn rebind(setup: &Setup, listen: &Listen) -> Result<(), RebindError> {
    setup.servers.bind(listen).map(|to| setup.servers.move_to(to))
}

fn running() -> (Setup, SocketAddr, SocketAddr) {
    let setup = start_with(ephemeral(), Duration::from_secs(3600));
    let health = eventually("health", || setup.servers.bound().healthz);
    let metrics = eventually("metrics", || setup.servers.bound().metrics);
    (setup, health, metrics)
}

#[test]
fn a_server_moves_and_the_other_stays() {
    let (setup, health, metrics) = running();
    let to: SocketAddr = "127.0.0.2:0".parse().unwrap();
    rebind(&setup, &listen(Some(to), ephemeral())).unwrap();
    let moved = eventually("moved", || setup.servers.bound().healthz);
    assert_eq!(moved.ip(), to.ip());
    assert_eq!(get(moved, "/livez").unwrap().status, 200);
    eventually("the old address is closed", || get(health, "/livez").is_err().then_some(()));
    assert_eq!(setup.servers.bound().metrics, Some(metrics), "its address is the same");
    rebind(&setup, &listen(None, ephemeral())).unwrap();
    eventually("closed", || get(moved, "/livez").is_err().then_some(()));
    assert_eq!(setup.servers.bound(), Bound { healthz: None, metrics: Some(metrics) });
}

#[test]
fn a_server_moves_between_one_address_and_all_on_the_same_port() {
    let (setup, health, _) = running();
    let all = SocketAddr::from(([0, 0, 0, 0], health.port()));
    rebind(&setup, &listen(Some(all), ephemeral())).unwrap();
    eventually("moved", || (setup.servers.bound().healthz == Some(all)).then_some(()));
    eventually("answers", || get(SocketAddr::from(([127, 0, 0, 2], health.port())), "/livez").ok());
    rebind(&setup, &listen(Some(health), ephemeral())).unwrap();
    eventually("back", || (setup.servers.bound().healthz == Some(health)).then_some(()));
    eventually("only one", || get(SocketAddr::from(([127, 0, 0, 2], health.port())), "/livez").is_err().then_some(()));
    assert_eq!(get(health, "/livez").unwrap().status, 200);
    TcpListener::bind(health).expect_err("the port is not shared with others");
}

#[test]
fn all_stays_if_one_address_cannot_be_bound() {
    let (setup, health, metrics) = running();
    let blocker = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = blocker.local_addr().unwrap();
    let error = rebind(&setup, &listen(Some("127.0.0.2:0".parse().unwrap()), Some(taken))).unwrap_err();
    assert_eq!((error.server, error.address), (Server::Metrics, taken));
    // The address of the other server is taken as well.
    let error = rebind(&setup, &listen(Some(metrics), ephemeral())).unwrap_err();
    assert_eq!((error.server, error.address), (Server::Health, metrics));
    assert_eq!(setup.servers.bound(), Bound { healthz: Some(health), metrics: Some(metrics) });
    assert_eq!(get(health, "/livez").unwrap().status, 200);
    assert_eq!(get(metrics, "/healthz").unwrap().status, 200);
    assert!(setup.failures.lock().unwrap().is_empty(), "servers that run have not failed");
}

#[test]
fn a_failure_to_listen_is_told() {
    let blocker = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = blocker.local_addr().unwrap();
    let setup = start_with(Some(taken), Duration::from_secs(3600));
    let (server, why) = eventually("told", || setup.failures.lock().unwrap().first().cloned());
    assert!(server == Server::Health && why.contains(&taken.to_string()), "{server}: {why}");
}

#[test]
fn a_server_that_stops_is_told_and_started_again() {
    let setup = start(ephemeral());
    let socket = eventually("bound", || setup.servers.health_socket());
    rustix::net::shutdown(socket.as_ref(), rustix::net::Shutdown::Both).unwrap();
    drop(socket);
    let (server, why) = eventually("told", || setup.failures.lock().unwrap().first().cloned());
    assert!(server == Server::Health && why.contains("stopped"), "{server}: {why}");
    let again = eventually("bound again", || setup.servers.bound().healthz);
    eventually("answers", || get(again, "/livez").ok());
}

#[test]
fn another_sync_period_counts_at_once() {
    let clock = TestClock::default();
    let state = HealthState::new(PERIOD, clock.clone());
    state.updated(IpFamily::V4);
    state.queued(IpFamily::V4);
    clock.advance(PERIOD);
    assert!(state.healthy());
    state.set_sync_period(PERIOD / 2);
    assert!(!state.healthy(), "it waits for twice the new period");
    state.set_sync_period(PERIOD);
    assert!(state.healthy());
}
