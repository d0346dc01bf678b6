//! The API server refuses, throttles, forgets.

use std::time::Duration;

use super::rig::{ALL, Ground, Rig, lists, longest_pause};
use crate::api_server::Resource;

fn drop_watches(rig: &Rig) {
    ALL.iter().for_each(|resource| rig.server.drop_watches(*resource));
}

#[test]
fn under_ten_thousand_services_no_request_fails_when_the_api_server_refuses_throttles_and_forgets() {
    let mut rig = Rig::start(Ground::Iptables, 4);
    let throttle = |rig: &Rig| {
        rig.server.throttle(4);
        let asked = rig.server.requests().len();
        drop_watches(rig);
        crate::daemon::eventually("it has been told to wait", || rig.server.requests().len() >= asked + 3);
    };
    let requests = rig.fault("429 with Retry-After", throttle, |rig| rig.server.heal());
    for resource in ALL {
        let pause = longest_pause(&requests, resource);
        assert!(pause >= Duration::from_secs(4), "{resource:?}: asked again after {pause:?} instead of 4 s");
    }
    assert!(requests.len() <= 12, "{} requests", requests.len());

    let refuse = |rig: &Rig| {
        for (status, resource) in [403, 401, 500].into_iter().flat_map(|status| ALL.map(|resource| (status, resource)))
        {
            rig.server.fail(resource, 1, status, 0);
        }
        drop_watches(rig);
    };
    let requests = rig.fault("403, then 401, then 500", refuse, |_| {});
    for resource in ALL {
        assert_eq!(lists(&requests, resource), 0, "a refusal is no reason to list {resource:?}");
        let asked = requests.iter().filter(|request| request.resource == resource).count();
        assert_eq!(asked, 4, "{resource:?}: once for each refusal, and then with success");
    }

    let expire = |rig: &Rig| {
        for (resource, kind) in ALL.into_iter().zip(["Service", "EndpointSlice", "Node"]) {
            rig.interrupt(kind, |server| server.expire_watches(resource));
        }
    };
    let requests = rig.fault("410 in a watch", expire, |_| {});
    for resource in ALL {
        assert_eq!(lists(&requests, resource), 1, "{resource:?}");
    }

    let forget = |rig: &Rig| {
        rig.server.refuse_streaming();
        rig.server.forget_at_page(7);
        rig.server.expire_watches(Resource::Services);
        crate::daemon::eventually("it forgets between pages", || !rig.server.will_forget());
    };
    let requests = rig.fault("410 in the middle of a list in pages", forget, |_| {});
    // A streamed list that is refused, one in pages that breaks off, and another.
    assert_eq!(lists(&requests, Resource::Services), 3);
    assert_eq!(lists(&requests, Resource::Slices), 0);
    let pages = requests.iter().filter(|request| request.is_list()).count();
    println!("{pages} pages were asked for");
    assert!((29..=31).contains(&pages), "8 pages of 500 until it breaks off, and then 21 and a half");
    rig.finish();
}
