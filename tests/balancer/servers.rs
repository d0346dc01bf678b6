//! The servers of a daemon that runs: what they show, and what becomes of it when they cannot listen.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use crate::balancer::rig::Rig;
use crate::daemon::{AT_LAST, Daemon, eventually, get};

/// An API server that knows nothing and keeps what is posted.
fn events(listener: TcpListener) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let address = listener.local_addr().expect("an address");
    let posted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&posted);
    // It ends with the test program.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || {
                let (mut text, mut part) = (String::new(), [0; 4096]);
                // An event ends with the object.
                while !(text.starts_with("GET") && text.contains("\r\n\r\n") || text.ends_with('}')) {
                    match stream.read(&mut part) {
                        Ok(0) | Err(_) => return,
                        Ok(read) => text.push_str(&String::from_utf8_lossy(&part[..read])),
                    }
                }
                let status = if text.starts_with("POST") { "201 Created" } else { "404 Not Found" };
                kept.lock().expect("no panic").push(text);
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
            });
        }
    });
    (address, posted)
}

#[test]
fn with_bind_address_hard_fail_a_port_that_is_taken_is_an_event_and_the_end() {
    for (port, reason) in [(10256, "FailedToStartProxierHealthcheck"), (10249, "FailedToStartMetricServer")] {
        let rig = Rig::start();
        let node = &rig.world.node1;
        let _taken = node.run(|| TcpListener::bind(("127.0.0.1", port))).expect("a free port");
        let (server, posted) = events(node.run(|| TcpListener::bind("127.0.0.1:0")).expect("any port"));
        let master = format!("--master=http://{server}");
        let program = env!("CARGO_BIN_EXE_portolan");
        let mut process = node.spawn(&[
            program,
            &master,
            "--hostname-override=node1",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
            "--bind-address-hard-fail",
        ]);
        let status = process.wait(AT_LAST).unwrap_or_else(|| panic!("it goes on:\n{}", process.log()));
        assert_eq!(status.code(), Some(1), "{}", process.log());
        let posted = posted.lock().expect("no panic");
        let arrived = posted.iter().any(|event| event.starts_with("POST") && event.contains(reason));
        assert!(arrived, "{reason} is not among {posted:?}\n{}", process.log());
    }
}

#[test]
fn without_bind_address_hard_fail_a_port_that_is_taken_is_waited_for() {
    let rig = Rig::start();
    let node = &rig.world.node1;
    let taken = node.run(|| TcpListener::bind("127.0.0.1:10256")).expect("a free port");
    let daemon = Daemon::start(node, "node1", &rig.server, &[]);
    daemon.wait_for_sync();
    assert_eq!(daemon.livez(), 0);
    drop(taken);
    eventually("it listens", || daemon.livez() == 200);
    let metrics = |path| get(node, "127.0.0.1:10249".parse().expect("an address"), path);
    assert_eq!(metrics("/proxyMode").body, "iptables");
    let configz: serde_json::Value = serde_json::from_str(&metrics("/configz").body).expect("JSON");
    assert_eq!(configz["kubeproxy.config.k8s.io"]["kind"], "KubeProxyConfiguration");
    assert_eq!(configz["kubeproxy.config.k8s.io"]["healthzBindAddress"], "0.0.0.0:10256");
    assert!(metrics("/flagz").body.contains("hostname-override=node1\n"));
}
