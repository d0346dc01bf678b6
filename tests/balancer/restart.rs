//! A restart of the daemon while the API server is away.

use std::time::Duration;

use rustix::process::Signal;

use super::rig::{Balanced, Rig};
use crate::api_server::History;
use crate::daemon::{Daemon, eventually};
use crate::netns::flow::Questions;
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Pod};
use crate::objects::Phase::Ready;

const WEB: Balanced = Balanced(10);
const MORE: Balanced = Balanced(11);

#[test]
fn a_daemon_that_starts_without_api_server_keeps_the_rules_and_catches_up_when_it_returns() {
    let rig = Rig::start();
    rig.server.apply(WEB.object());
    rig.set(WEB, &[(Pod::A, Ready)]);
    let flags = ["--iptables-variant=nft"];
    let mut daemon = Daemon::start(&rig.world.node1, "node1", &rig.server, &flags);
    for family in FAMILIES {
        eventually("the Service is served", || rig.check(WEB, family).status == 200);
    }
    let clients = FAMILIES
        .map(|family| Questions::start(&rig.world.client, WEB.vip(family), Proto::Tcp, Duration::from_millis(2)));
    let rules = || {
        let saved = ["iptables-nft-save", "ip6tables-nft-save"].map(|tool| rig.world.node1.exec(&[tool])).concat();
        let lines = saved.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect::<Vec<_>>()
    };
    rig.server.go_away();
    // What happens meanwhile. The pod that goes away in the objects serves on, as its node cannot know better.
    rig.set(WEB, &[(Pod::A, Ready), (Pod::B, Ready)]);
    rig.server.apply(MORE.object());
    rig.set(MORE, &[(Pod::B, Ready)]);
    for signal in [Signal::TERM, Signal::KILL] {
        let before = rules();
        daemon.end(signal);
        daemon = Daemon::start(&rig.world.node1, "node1", &rig.server, &flags);
        eventually("it asks in vain", || daemon.metric("portolan_watch_restarts_total", "kind=\"Service\"") >= 2.0);
        assert_eq!(rules(), before, "nothing is touched before the objects are known");
        assert_eq!(daemon.livez(), 200, "nothing waits that it knows of");
        assert_eq!(daemon.healthz(), 503, "whether the node is leaving is not known");
        for family in FAMILIES {
            assert_eq!(rig.check(WEB, family).status, 0, "the port is closed while nothing is known");
            assert_eq!(rig.request(WEB, family).by(), Some("pod-a"), "traffic goes on");
        }
    }
    rig.server.come_back(History::Forgotten);
    for family in FAMILIES {
        eventually("what changed meanwhile is programmed", || rig.check(MORE, family).status == 200);
        assert_eq!(rig.request(MORE, family).by(), Some("pod-b"));
        eventually("both endpoints are counted", || rig.check(WEB, family).body.contains("\"localEndpoints\": 2"));
    }
    eventually("in rotation", || daemon.healthz() == 200);
    for client in clients {
        let tally = client.finish();
        println!("{tally}");
        assert_eq!(tally.failed, 0, "requests failed");
        assert!(tally.total() > 50);
    }
}
