//! The API server says what is not so.

use serde_json::json;

use super::rig::{Ground, Rig, lists};
use crate::api_server::Resource;
use crate::daemon::eventually;
use crate::netns::world::{FAMILIES, Pod, cluster_ip};
use crate::objects::{Phase, endpoint, service, slice};

fn line(kind: &str, mut object: serde_json::Value, version: u64) -> String {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    format!("{}\n", json!({"type": kind, "object": object}))
}

#[test]
fn under_ten_thousand_services_no_request_fails_when_the_api_server_lies() {
    let mut rig = Rig::start(Ground::Iptables, 5);
    let changing = || service("changing", &FAMILIES.map(|family| cluster_ip(family, 2)));

    let stranger = || service("stranger", &FAMILIES.map(|family| cluster_ip(family, 90)));
    let newest = u64::MAX / 2;
    let unknown = |rig: &Rig| {
        rig.server.send_raw(Resource::Services, &line("DELETED", stranger(), newest));
        rig.server.send_raw(Resource::Services, &line("ADDED", changing(), newest));
        rig.server.send_raw(Resource::Services, &line("ADDED", changing(), newest));
        rig.server.send_raw(Resource::Services, &line("MODIFIED", stranger(), newest));
        rig.server.send_raw(Resource::Services, &line("DELETED", stranger(), newest));
    };
    // The version of the last lie lies in the future, and nothing true comes after it; the server says so when the watch goes on.
    let requests = rig.fault("events for what is unknown or known already", unknown, |rig| {
        rig.server.send_raw(Resource::Services, &line("DELETED", stranger(), newest));
        rig.server.end_watches(Resource::Services);
    });
    assert_eq!(lists(&requests, Resource::Services), 1);

    let backwards = |rig: &Rig| {
        let pod = endpoint(Pod::R1.address(FAMILIES[0]), Pod::R1.node(), Phase::Ready);
        rig.server.send_raw(Resource::Slices, &line("MODIFIED", slice("changing", "IPv4", &[pod]), 1));
    };
    rig.fault("an old state of an object after the new one, and a version that goes back", backwards, |rig| {
        rig.server.end_watches(Resource::Slices);
    });

    let garbage =
        |rig: &Rig| rig.interrupt("Service", |server| server.send_raw(Resource::Services, "\u{0}\u{1}{]garbage\n"));
    let requests = rig.fault("garbage", garbage, |_| {});
    assert_eq!(lists(&requests, Resource::Services), 1);

    let huge = |rig: &Rig| {
        let mut object = changing();
        object["metadata"]["annotations"] = json!({"much": "x".repeat(3 << 20)});
        rig.server.apply(object);
        rig.interrupt("Service", |server| server.send_raw(Resource::Services, &"x".repeat(20 << 20)));
    };
    rig.fault("an object of 3 MB, and a line of 20 MB", huge, |rig| {
        rig.server.apply(changing());
    });

    let empty = |rig: &Rig| {
        for (resource, kind) in [(Resource::Services, "Service"), (Resource::Slices, "EndpointSlice")] {
            rig.server.claim_empty(resource, 1);
            rig.interrupt(kind, |server| server.expire_watches(resource));
        }
    };
    let before = rig.server.requests().len();
    let requests = rig.fault("an empty list that is full later", empty, |rig| {
        eventually("both have been listed again after the lie", || {
            let requests = rig.server.requests().split_off(before);
            [Resource::Services, Resource::Slices].iter().all(|resource| lists(&requests, *resource) == 2)
        });
    });
    for resource in [Resource::Services, Resource::Slices] {
        assert_eq!(lists(&requests, resource), 2, "{resource:?}");
    }
    rig.finish();
}
