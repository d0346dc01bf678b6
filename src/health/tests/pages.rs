//! Every page of the servers, row by row.

use std::sync::atomic::Ordering::SeqCst;

use super::*;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Method, path, status, content type, what the body has.
type Row = (&'static str, &'static str, u16, &'static str, &'static str);

fn check(address: SocketAddr, rows: &[Row]) {
    for (method, path, status, content_type, body) in rows {
        let answer = ask(address, method, path).unwrap();
        assert_eq!(answer.status, *status, "{method} {path}: {}", answer.body);
        assert!(answer.body.contains(body), "{method} {path}: {}", answer.body);
        if *status != 404 {
            assert!(answer.head.contains(&format!("content-type: {content_type}")), "{path}: {}", answer.head);
            assert!(answer.head.contains("x-content-type-options: nosniff"), "{path}: {}", answer.head);
        }
    }
}

/// One request with a header and a body.
fn send(address: SocketAddr, request: &str, header: &str, body: &str) -> Answer {
    let length = body.len();
    raw(
        address,
        &format!(
            "{request} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ),
    )
    .unwrap()
}

#[test]
fn the_metrics_server_answers_on_its_paths_only() {
    let said = Arc::new(Said::default());
    *said.mode.lock().unwrap() = "iptables";
    let setup = start_saying(None, Duration::from_millis(50), &said);
    let address = eventually("bound", || setup.servers.bound().metrics);
    assert_eq!(setup.servers.bound().healthz, None);
    check(
        address,
        &[
            ("GET", "/metrics", 200, METRICS, "some_metric 1\n"),
            ("GET", "/metrics/slis", 200, METRICS, ""),
            ("GET", "/healthz", 200, TEXT, "ok"),
            ("GET", "/healthz?verbose", 200, TEXT, "[+]ping ok\nhealthz check passed\n"),
            ("GET", "/healthz?verbose&exclude=ping", 200, TEXT, "[+]ping excluded: ok\nhealthz check passed\n"),
            ("GET", "/healthz?verbose=1&exclude=etcd", 200, TEXT, "[+]ping ok\nwarn: there is no check \"etcd\""),
            ("GET", "/healthz/ping", 200, TEXT, "ok"),
            ("GET", "/metrics/slis", 200, METRICS, "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"),
            ("GET", "/metrics/slis", 200, METRICS, "total{name=\"ping\",status=\"success\",type=\"healthz\"} 4\n"),
            ("DELETE", "/metrics/slis", 200, TEXT, "metrics reset\n"),
            ("POST", "/proxyMode", 200, TEXT, "iptables"),
            ("GET", "/configz", 200, JSON, "{\"kubeproxy.config.k8s.io\":{}}"),
            ("GET", "/statusz", 200, TEXT, "kube-proxy statusz\n"),
            ("GET", "/statusz", 200, TEXT, "Started: 2023-11-14T22:13:20Z\nUp: 0 hr 00 min 00 sec\n"),
            ("GET", "/flagz", 200, TEXT, "config=/conf\nv=2\n"),
            ("GET", "/", 404, "", ""),
            ("GET", "/livez", 404, "", ""),
            ("GET", "/debug/flags", 404, "", ""),
            ("GET", "/debug/flags/v", 404, "", ""),
            ("GET", "/debug/pprof", 404, "", ""),
            ("GET", "/debug/pprof/", 404, "", ""),
            ("GET", "/debug/pprof/profile", 404, "", ""),
            ("GET", "/debug/pprof/cmdline", 404, "", ""),
        ],
    );
    assert_eq!(get(address, "/metrics/slis").unwrap().body, "", "what was counted is gone");
    *said.mode.lock().unwrap() = "ipvs";
    assert_eq!(get(address, "/proxyMode").unwrap().body, "ipvs", "it may change while the server runs");
}

#[test]
fn the_health_server_answers_by_the_state_of_the_proxy_and_the_node() {
    // (node eligible, a change waits for too long, /healthz, /livez)
    for (eligible, late, healthz, livez) in
        [(true, false, 200, 200), (false, false, 503, 200), (true, true, 503, 503), (false, true, 503, 503)]
    {
        let setup = start(ephemeral());
        let address = eventually("bound", || setup.servers.bound().healthz);
        setup.state.updated(IpFamily::V4);
        setup.state.set_node_eligible(eligible);
        if late {
            setup.state.queued(IpFamily::V4);
            setup.clock.advance(PERIOD * 2);
        }
        check(
            address,
            &[
                ("GET", "/healthz", healthz, JSON, if eligible { "\"nodeEligible\":true" } else { ":false" }),
                ("GET", "/livez", livez, JSON, if late { "\"healthy\":false" } else { "\"healthy\":true" }),
                ("PUT", "/livez", livez, JSON, "\"status\":{\"IPv4\":{\"lastUpdated\":"),
                ("GET", "/", 404, "", ""),
                ("GET", "/metrics", 404, "", ""),
                ("GET", "/livez/ping", 404, "", ""),
            ],
        );
    }
}

#[test]
fn status_and_flags_are_objects_for_those_who_ask_for_them() {
    let setup = start(None);
    let address = eventually("bound", || setup.servers.bound().metrics);
    let object = |kind: &str, version: &str| format!("application/json;v={version};g=config.k8s.io;as={kind}");
    setup.clock.advance(Duration::from_millis(90_500));
    for (path, accept, status, content_type, body) in [
        ("/statusz", "*/*", 200, TEXT, "Up: 0 hr 01 min 30 sec\n"),
        ("/statusz", "text/plain", 200, TEXT, "Emulation version: 1.36\n"),
        ("/statusz", "application/json", 406, TEXT, "as=Statusz"),
        ("/statusz", &object("Flagz", "v1beta1"), 406, TEXT, ""),
        ("/statusz", &object("Statusz", "v1"), 406, TEXT, ""),
        ("/statusz", "application/json, text/plain;q=0.5", 200, TEXT, "statusz"),
        ("/statusz", &format!("text/plain;q=0.5, {}", object("Statusz", "v1beta1")), 200, JSON, "\"uptimeSeconds\":90"),
        ("/statusz", &object("Statusz", "v1beta1"), 200, JSON, "\"startTime\":\"2023-11-14T22:13:20Z\""),
        ("/statusz", &object("Statusz", "v1alpha1"), 200, JSON, "\"apiVersion\":\"config.k8s.io/v1alpha1\""),
        ("/flagz", &object("Flagz", "v1beta1"), 200, JSON, "\"flags\":{\"config\":\"/conf\",\"v\":\"2\"}"),
        ("/flagz", "application/json", 406, TEXT, "as=Flagz"),
        ("/flagz", "application/yaml;as=Flagz;g=config.k8s.io;v=v1beta1", 200, "application/yaml", "\"Flagz\""),
    ] {
        let answer = send(address, &format!("GET {path}"), &format!("Accept: {accept}\r\n"), "");
        assert_eq!(answer.status, status, "{path} {accept}: {}", answer.body);
        assert!(answer.head.contains(&format!("content-type: {content_type}")), "{accept}: {}", answer.head);
        assert!(answer.body.contains(body), "{path} {accept}: {}", answer.body);
    }
}

#[test]
fn the_verbosity_can_be_put_while_debugging_is_on() {
    let said = Arc::new(Said::default());
    let setup = start_saying(None, Duration::from_millis(50), &said);
    let address = eventually("bound", || setup.servers.bound().metrics);
    assert_eq!(send(address, "PUT /debug/flags/v", "", "4").status, 404, "debugging is off");
    assert_eq!(said.verbosity.load(SeqCst), 0);
    said.debugging.store(true, SeqCst);
    for (request, body, status) in [
        ("PUT /debug/flags/v", "4\n", 200),
        ("PUT /debug/flags/v", "high", 400),
        ("PUT /debug/flags/v", "10", 400),
        ("GET /debug/flags/v", "", 406),
        ("POST /debug/flags/v", "5", 406),
    ] {
        assert_eq!(send(address, request, "", body).status, status, "{request} {body}");
    }
    assert_eq!(said.verbosity.load(SeqCst), 4);
}

#[test]
fn the_pages_for_debugging_have_the_paths_of_go() {
    let said = Arc::new(Said::default());
    said.debugging.store(true, SeqCst);
    let setup = start_saying(None, Duration::from_millis(50), &said);
    let address = eventually("bound", || setup.servers.bound().metrics);
    let html = "text/html; charset=utf-8";
    check(
        address,
        &[
            ("GET", "/debug/flags", 200, html, "<a href=\"/debug/flags/v\">v</a>"),
            ("GET", "/debug/flags/", 200, html, "<a href=\"/debug/flags/v\">v</a>"),
            ("GET", "/debug/flags/v", 406, TEXT, "PUT"),
            ("GET", "/debug/pprof/", 200, html, "<a href=\"/debug/pprof/profile?seconds=30\">"),
            ("GET", "/debug/pprof/symbol", 200, TEXT, "num_symbols: 0\n"),
            ("GET", "/debug/pprof/heap", 404, TEXT, "does not record where memory is allocated"),
            ("GET", "/debug/pprof/goroutine?debug=2", 404, TEXT, "threads and no goroutines"),
            ("GET", "/debug/pprof/trace", 404, TEXT, "cannot record a trace"),
            ("GET", "/debug/pprof/other", 404, TEXT, "no such profile"),
            ("GET", "/debug/flags/other", 404, "", ""),
            ("GET", "/debug", 404, "", ""),
        ],
    );
    let moved = get(address, "/debug/pprof").unwrap();
    assert_eq!(moved.status, 302);
    assert!(moved.head.contains("location: /debug/pprof/\r\n"), "{}", moved.head);
    let program = std::env::args().next().unwrap();
    assert_eq!(get(address, "/debug/pprof/cmdline").unwrap().body.split('\0').next(), Some(program.as_str()));
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let setup = start(None);
    let address = eventually("bound", || setup.servers.bound().metrics);
    let header = format!("X-Large: {}\r\n", "x".repeat(70_000));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The server may close before all of it is written.
    let _ = write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n{header}\r\n");
    let mut start = [0; 12];
    if stream.read_exact(&mut start).is_ok() {
        assert_eq!(&start, b"HTTP/1.1 431");
    }
    assert_eq!(get(address, "/healthz").unwrap().status, 200, "others are served");
}
