//! Leaving endpoints in IPVS mode: weight 0, and then when each goes.

use std::time::Duration;

use portolan::kernel::{Connections, VirtualKey};
use portolan::model::{Conditions, EndpointSlice};
use portolan::net::Protocol;
use portolan::sync::Options;

use crate::cluster::{World, udp, udp_slice};
use crate::ipvs::{change, cluster_ip, ipvs, plain, real, tcp, weight};
use crate::rig::{Mode, Text, from_scratch_in, on_in, operations};

#[test]
fn a_leaving_endpoint_keeps_its_connections_until_they_end() {
    let (two, one) = (plain(&["10.244.1.2", "10.244.1.3"]), plain(&["10.244.1.2"]));
    let mut rig = ipvs(&two);
    let leaving = real(cluster_ip(), "10.244.1.3");
    rig.engine.kernel_mut().items.connections.insert(leaving, Connections { active: 1, inactive: 0 });
    assert_eq!(change(&mut rig, &two, &one).draining, 1);
    for _ in 0..20 {
        rig.clock.advance(Duration::from_secs(2));
        assert!(rig.sync().success());
        assert_eq!(weight(rig.engine.kernel(), leaving), Some(0));
    }
    rig.engine.kernel_mut().items.connections.insert(leaving, Connections { active: 0, inactive: 1 });
    rig.clock.advance(Duration::from_secs(15));
    assert_eq!(rig.sync().draining, 1, "a connection that is ending counts");
    rig.engine.kernel_mut().items.connections.clear();
    rig.clock.advance(Duration::from_secs(31));
    assert_eq!(rig.sync().draining, 0);
    assert_eq!(rig.text(), from_scratch_in(Mode::Ipvs, &one));
}

#[test]
fn a_leaving_endpoint_goes_at_its_deadline_whatever_its_connections_do() {
    let (two, one) = (plain(&["10.244.1.2", "10.244.1.3"]), plain(&["10.244.1.2"]));
    let mut rig = ipvs(&two);
    let leaving = real(cluster_ip(), "10.244.1.3");
    rig.engine.kernel_mut().items.connections.insert(leaving, Connections { active: 9, inactive: 9 });
    change(&mut rig, &two, &one);
    rig.clock.advance(Duration::from_secs(59));
    assert_eq!(rig.sync().draining, 1);
    let due = rig.engine.due().unwrap();
    rig.clock.advance(Duration::from_secs(1));
    assert!(due <= portolan::sync::clock::Clock::now(&rig.clock), "the deadline is a reason to sync");
    assert_eq!(rig.sync().draining, 0);
    assert_eq!(rig.text(), from_scratch_in(Mode::Ipvs, &one));
}

fn terminating(slice: &mut EndpointSlice) {
    slice.endpoints[1].conditions = Conditions { ready: false, serving: true, terminating: true };
}

#[test]
fn an_endpoint_that_is_still_listed_is_waited_for_without_a_limit() {
    let ready = plain(&["10.244.1.2", "10.244.1.3"]);
    let ending = World::default().service("web", 1, |service| service.cluster_ip_v6 = None).slice(
        "web",
        "a",
        &["10.244.1.2", "10.244.1.3"],
        terminating,
    );
    let gone = plain(&["10.244.1.2"]);
    let mut rig = ipvs(&ready);
    let leaving = real(cluster_ip(), "10.244.1.3");
    rig.engine.kernel_mut().items.connections.insert(leaving, Connections { active: 1, inactive: 0 });
    assert_eq!(change(&mut rig, &ready, &ending).draining, 1);
    rig.clock.advance(Duration::from_secs(3600));
    assert_eq!(rig.sync().draining, 1);
    assert_eq!(change(&mut rig, &ending, &gone).draining, 1, "its time begins when it is listed no more");
    rig.clock.advance(Duration::from_secs(60));
    assert_eq!(rig.sync().draining, 0);
    assert_eq!(rig.text(), from_scratch_in(Mode::Ipvs, &gone));
}

#[test]
fn an_endpoint_that_comes_back_is_in_service_again_with_its_connections() {
    let (two, one) = (plain(&["10.244.1.2", "10.244.1.3"]), plain(&["10.244.1.2"]));
    let mut rig = ipvs(&two);
    let back = real(cluster_ip(), "10.244.1.3");
    rig.engine.kernel_mut().items.connections.insert(back, Connections { active: 1, inactive: 0 });
    change(&mut rig, &two, &one);
    let report = change(&mut rig, &one, &two);
    assert_eq!((operations(&report), report.draining), (vec![("change_real_server", 1)], 0));
    assert_eq!(weight(rig.engine.kernel(), back), Some(1));
    rig.clock.advance(Duration::from_secs(600));
    assert!(rig.sync().success());
    assert_eq!(weight(rig.engine.kernel(), back), Some(1));
}

#[test]
fn a_leaving_endpoint_of_udp_goes_at_once() {
    let world = |addresses: &[&str]| {
        World::default()
            .service("dns", 1, |service| {
                udp(service);
                service.cluster_ip_v6 = None;
            })
            .slice("dns", "a", addresses, udp_slice)
    };
    let (two, one) = (world(&["10.244.1.2", "10.244.1.3"]), world(&["10.244.1.2"]));
    let mut rig = ipvs(&two);
    let server = VirtualKey { protocol: Protocol::Udp, ..tcp("10.96.0.1", 53) };
    let leaving = real(server, "10.244.1.3");
    rig.engine.kernel_mut().items.connections.insert(leaving, Connections { active: 1, inactive: 0 });
    assert_eq!(operations(&change(&mut rig, &two, &one)), [("delete_real_server", 1)]);
}

#[test]
fn a_restart_in_the_middle_of_a_drain_goes_on_with_it() {
    let (two, one) = (plain(&["10.244.1.2", "10.244.1.3"]), plain(&["10.244.1.2"]));
    let mut first = ipvs(&two);
    let leaving = real(cluster_ip(), "10.244.1.3");
    first.engine.kernel_mut().items.connections.insert(leaving, Connections { active: 1, inactive: 0 });
    change(&mut first, &two, &one);

    let mut second = on_in(Mode::Ipvs, first.engine.kernel().clone(), Options::default());
    second.apply(one.initial());
    let report = second.sync();
    assert_eq!((operations(&report), report.draining), (vec![], 1), "no connection is cut, nothing is revived");
    assert_eq!(weight(second.engine.kernel(), leaving), Some(0));
    second.clock.advance(Duration::from_secs(60));
    assert_eq!(second.sync().draining, 0, "nor does it linger");
    assert_eq!(second.text(), from_scratch_in(Mode::Ipvs, &one));

    let mut third = on_in(Mode::Ipvs, first.engine.kernel().clone(), Options::default());
    third.apply(two.initial());
    assert_eq!(operations(&third.sync()), [("change_real_server", 1)], "who is wanted again serves again");
    assert_eq!(third.text(), from_scratch_in(Mode::Ipvs, &two));
}

#[test]
fn an_endpoint_that_left_while_nobody_looked_is_drained_too() {
    let (two, one) = (plain(&["10.244.1.2", "10.244.1.3"]), plain(&["10.244.1.2"]));
    let first = ipvs(&two);
    let leaving = real(cluster_ip(), "10.244.1.3");
    let mut kernel = first.engine.kernel().clone();
    kernel.items.connections.insert(leaving, Connections { active: 1, inactive: 0 });
    let mut second = on_in(Mode::Ipvs, kernel, Options::default());
    second.apply(one.initial());
    let report = second.sync();
    assert_eq!((operations(&report), report.draining), (vec![("change_real_server", 1)], 1));
}

#[test]
fn one_look_for_each_virtual_server_however_many_real_servers_leave() {
    let many: Vec<String> = (2..30).map(|at| format!("10.244.1.{at}")).collect();
    let all = plain(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let one = plain(&["10.244.1.2"]);
    let mut rig = ipvs(&all);
    assert_eq!(change(&mut rig, &all, &one).draining, 27);
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(operations(&rig.sync()), [("delete_real_server", 27)]);
}
