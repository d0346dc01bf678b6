//! Health-check node ports and the traffic that depends on them.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::rig::{Balanced, Rig};
use crate::daemon::{Daemon, eventually};
use crate::netns::flow::Questions;
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Pod};
use crate::objects::Phase::{Ready, Terminating, Unready};

const WEB: Balanced = Balanced(10);

#[test]
fn the_health_check_port_opens_after_the_rules_and_closes_before_the_last_endpoint_stops() {
    let rig = Rig::start();
    rig.server.apply(WEB.object());
    rig.set(WEB, &[(Pod::R1, Ready)]);
    let daemon = Daemon::start(&rig.world.node1, "node1", &rig.server, &[]);
    daemon.wait_for_sync();
    let says = |status: u16, weight: usize| {
        for family in FAMILIES {
            eventually(&format!("{family:?} says {status} with weight {weight}"), || {
                let answer = rig.check(WEB, family);
                let header = format!("x-load-balancing-endpoint-weight: {weight}\r\n");
                answer.status == status && (answer.head.clone() + "\r\n").contains(&header)
            });
        }
    };
    says(503, 0);
    let mut requests = 0;
    for round in 0..4 {
        rig.set(WEB, &[(Pod::R1, Ready), (Pod::A, Ready)]);
        for family in FAMILIES {
            // The very next request after the first good answer is served.
            eventually("the load balancer may send", || rig.check(WEB, family).status == 200);
            assert_eq!(rig.request(WEB, family).by(), Some("pod-a"), "round {round}, {family:?}");
        }
        rig.set(WEB, &[(Pod::R1, Ready), (Pod::A, Ready), (Pod::B, Ready)]);
        says(200, 2);
        rig.set(WEB, &[(Pod::R1, Ready), (Pod::A, Ready), (Pod::B, Unready)]);
        says(200, 1);
        // Clients that the load balancer has not turned away yet go on being served while the last endpoint ends.
        let clients = FAMILIES
            .map(|family| Questions::start(&rig.world.client, WEB.vip(family), Proto::Tcp, Duration::from_millis(2)));
        rig.set(WEB, &[(Pod::R1, Ready), (Pod::A, Terminating)]);
        says(503, 0);
        for family in FAMILIES {
            assert!((0..20).all(|_| rig.request(WEB, family).by() == Some("pod-a")), "round {round}, {family:?}");
        }
        for client in clients {
            let tally = client.finish();
            assert_eq!(tally.failed, 0, "{tally}");
            requests += tally.total();
        }
        // Only now it stops.
        rig.set(WEB, &[(Pod::R1, Ready)]);
        says(503, 0);
    }
    println!("{requests} requests while the last endpoint was ending, 0 failed");
    assert!(requests > 40, "{requests}");
}

#[test]
fn a_kernel_that_refuses_rules_raises_no_count_of_the_health_check_port_and_keeps_none_from_falling() {
    const LATE: Balanced = Balanced(11);
    let rig = Rig::start();
    rig.server.apply(WEB.object());
    rig.set(WEB, &[(Pod::A, Ready)]);
    // Restores fail while a file is there.
    let tools = tempfile::tempdir().expect("a directory");
    let refuse = tools.path().join("refuse");
    for tool in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        let real = rig.world.node1.exec(&["sh", "-c", &format!("command -v {tool}")]);
        let script = format!("#!/bin/sh\n[ -e {} ] && exit 1\nexec {} \"$@\"\n", refuse.display(), real.trim());
        let path = tools.path().join(tool);
        std::fs::write(&path, script).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a program");
    }
    let path = format!("PATH={}:{}", tools.path().display(), std::env::var("PATH").expect("PATH"));
    let daemon = Daemon::start_in(&rig.world.node1, "node1", &rig.server, &path, &["--iptables-variant=nft"]);
    let status = |of, family| rig.check(of, family).status;
    for family in FAMILIES {
        eventually("the first endpoint is counted", || status(WEB, family) == 200);
    }
    std::fs::write(&refuse, "").expect("a file");
    let failures = || daemon.metric("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "IPv4");
    let before = failures();
    rig.server.apply(LATE.object());
    rig.set(LATE, &[(Pod::B, Ready)]);
    rig.set(WEB, &[(Pod::A, Ready), (Pod::B, Ready)]);
    eventually("the kernel refuses", || failures() >= before + 2.0);
    for family in FAMILIES {
        assert_ne!(status(LATE, family), 200, "{family:?}: not programmed");
        assert!(
            rig.check(WEB, family).body.contains("\"localEndpoints\": 1"),
            "{family:?}: the second is not programmed"
        );
    }
    rig.set(WEB, &[(Pod::A, Terminating)]);
    for family in FAMILIES {
        eventually("the last one that goes is not waited for", || status(WEB, family) == 503);
        assert_eq!(rig.request(WEB, family).by(), Some("pod-a"), "{family:?}: it still serves");
    }
    std::fs::remove_file(&refuse).expect("the file");
    for family in FAMILIES {
        eventually("the late one is programmed", || status(LATE, family) == 200);
        assert_eq!(rig.request(LATE, family).by(), Some("pod-b"), "{family:?}");
    }
}
