//! The API server fails, and the daemon is killed, while IPVS mode serves: the faults of `api_faults`, with fewer Services.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/netns/mod.rs"]
mod netns;
#[path = "support/objects.rs"]
mod objects;
#[allow(dead_code, reason = "a part is used here")]
#[path = "api_faults/rig.rs"]
mod rig;

use std::time::Duration;

use api_server::{ApiServer, History, Resource};
use daemon::eventually;
use netns::ipvs::kernel_has_ipvs;
use netns::world::Pod;
use rig::{ALL, Ground, Rig, lists, longest_pause, set_endpoints};

#[test]
fn in_ipvs_mode_no_request_fails_when_the_api_server_goes_forgets_and_falls_silent() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut rig = Rig::start(Ground::Ipvs, 3);
    let go = |rig: &Rig| {
        rig.interrupt("Service", ApiServer::go_away);
        for pod in [Pod::R1, Pod::A, Pod::B].iter().cycle().take(30) {
            set_endpoints(&rig.server, "changing", &[*pod]);
        }
    };
    for (name, history, expected) in [
        ("a restart that keeps the history", History::Kept, 0),
        ("a restart that forgets the history", History::Forgotten, 1),
    ] {
        let requests = rig.fault(name, go, |rig| rig.server.come_back(history));
        for resource in ALL {
            assert_eq!(lists(&requests, resource), expected, "{name}: lists of {resource:?}");
        }
    }
    let silent = |rig: &Rig| {
        rig.server.be_silent();
        rig.interrupt("Service", |server| ALL.iter().for_each(|resource| server.drop_watches(*resource)));
    };
    rig.fault("silence", silent, |rig| rig.server.speak());
    rig.finish();
}

#[test]
fn in_ipvs_mode_no_request_fails_when_the_api_server_throttles_refuses_and_lies() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut rig = Rig::start(Ground::Ipvs, 3);
    let throttle = |rig: &Rig| {
        rig.server.throttle(4);
        let asked = rig.server.requests().len();
        ALL.iter().for_each(|resource| rig.server.drop_watches(*resource));
        eventually("it has been told to wait", || rig.server.requests().len() >= asked + 3);
    };
    let requests = rig.fault("429 with Retry-After", throttle, |rig| rig.server.heal());
    for resource in ALL {
        let pause = longest_pause(&requests, resource);
        assert!(pause >= Duration::from_secs(4), "{resource:?}: asked again after {pause:?} instead of 4 s");
    }
    let refuse = |rig: &Rig| {
        for (status, resource) in [403, 500].into_iter().flat_map(|status| ALL.map(|resource| (status, resource))) {
            rig.server.fail(resource, 1, status, 0);
        }
        ALL.iter().for_each(|resource| rig.server.drop_watches(*resource));
    };
    let requests = rig.fault("403, then 500", refuse, |_| {});
    for resource in ALL {
        assert_eq!(lists(&requests, resource), 0, "a refusal is no reason to list {resource:?}");
    }
    let empty = |rig: &Rig| {
        for (resource, kind) in [(Resource::Services, "Service"), (Resource::Slices, "EndpointSlice")] {
            rig.server.claim_empty(resource, 1);
            rig.interrupt(kind, |server| server.expire_watches(resource));
        }
    };
    let before = rig.server.requests().len();
    rig.fault("an empty list that is full later", empty, |rig| {
        eventually("both have been listed again after the lie", || {
            let requests = rig.server.requests().split_off(before);
            [Resource::Services, Resource::Slices].iter().all(|resource| lists(&requests, *resource) == 2)
        });
    });
    rig.finish();
}

#[test]
fn a_daemon_killed_in_ipvs_mode_finds_all_as_it_left_it_and_writes_nothing() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut rig = Rig::start(Ground::Ipvs, 0);
    rig.restart();
    rig.finish();
}
