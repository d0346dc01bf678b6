//! The API server goes away, comes back, falls silent.

use std::time::Duration;

use super::rig::{ALL, Ground, Rig, lists, set_endpoints};
use crate::api_server::{ApiServer, History, Resource};
use crate::netns::world::Pod;

#[test]
fn under_ten_thousand_services_no_request_fails_when_the_api_server_goes_and_comes_back() {
    let mut rig = Rig::start(Ground::Iptables, 5);
    for (name, history) in [
        ("a restart that keeps the history", History::Kept),
        ("a restart that forgets the history", History::Forgotten),
        ("a restart with an old backup", History::Rewound),
    ] {
        let go = |rig: &Rig| {
            rig.interrupt("Service", ApiServer::go_away);
            // Many changes wait; the last of them counts.
            for pod in [Pod::R1, Pod::A, Pod::B].iter().cycle().take(300) {
                set_endpoints(&rig.server, "changing", &[*pod]);
            }
        };
        let requests = rig.fault(name, go, |rig| rig.server.come_back(history));
        let expected = usize::from(history != History::Kept);
        for resource in ALL {
            assert_eq!(lists(&requests, resource), expected, "{name}: lists of {resource:?}");
        }
        assert!(requests.len() <= 12, "{name}: {} requests", requests.len());
    }

    let silent = |rig: &Rig| {
        rig.server.be_silent();
        rig.interrupt("Service", |server| ALL.iter().for_each(|resource| server.drop_watches(*resource)));
        let waiting = rig.server.requests().len();
        std::thread::sleep(Duration::from_secs(3));
        let more = rig.server.requests().len() - waiting;
        assert!(more <= 3, "a server that does not answer is asked {more} times in three seconds");
    };
    let requests = rig.fault("silence", silent, |rig| rig.server.speak());
    assert!(requests.len() <= 12, "{} requests", requests.len());

    let half = |rig: &Rig| {
        let begun = "{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"steady\",\"namespace\":\"shop\"";
        // In one: an event in between would make a line of the two, which nobody can read.
        rig.server.send_raw_and_stall(Resource::Services, begun);
        ALL.iter().for_each(|resource| rig.server.stall_watches(*resource));
    };
    let requests = rig.fault("half an event, then silence, then a restart", half, |rig| {
        rig.interrupt("Service", ApiServer::go_away);
        rig.server.come_back(History::Kept);
    });
    assert!(requests.len() <= 12, "{} requests", requests.len());
    for resource in ALL {
        assert_eq!(lists(&requests, resource), 0, "half an event is no reason to list {resource:?}");
    }
    rig.restart();
    rig.idle();
    rig.finish();
}
