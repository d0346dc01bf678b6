//! A rolling update under load (kubernetes/kubernetes#81775): every endpoint is replaced by another one while clients connect
//! without a pause from ports that were in use a moment ago.

use std::thread;
use std::time::Duration;

use super::lab::{Lab, cluster_address, node_port};
use super::manifest::{Endpoint, Service};
use super::program::Setup;
use crate::netns::flow::{Ending, Questions, ShortConnections};
use crate::netns::probe::Proto;
use crate::netns::world::{FAMILIES, Family, Pod, node_address};

/// How long a pod goes on after each step of its end. Much longer than a sync takes, much shorter than on a real node.
const GRACE: Duration = Duration::from_millis(1200);

/// The pods that go, each with the one that takes its place.
const REPLACED: [(Pod, Pod); 2] = [(Pod::A, Pod::R1), (Pod::B, Pod::R2)];

/// The Service whose endpoints are replaced, and the program that serves it.
fn start(setup: impl Into<Setup>) -> (Lab, Service) {
    let mut service = Service::new("rolling", 1, &REPLACED.map(|(old, _)| old));
    service.node_port = 30001;
    (Lab::start(setup, &[service.clone()], &[]), service)
}

/// One client, 1,000 connections a second (or as many as the machine manages) from few ports, each of them ended by a reset so that its
/// port is used again at once, while all endpoints are replaced. No connection fails. Returns the rate.
pub(crate) fn a_fast_client_sees_every_endpoint_replaced(setup: impl Into<Setup>) -> f64 {
    let (mut lab, mut service) = start(setup);
    let to = cluster_address(&service, Family::V4);
    let connections = ShortConnections::start(lab.world.pod(Pod::C), to, 42000..42030, 1000, Ending::Reset);
    thread::sleep(GRACE);
    for (old, new) in REPLACED {
        replace(&mut lab, &mut service, old, new);
    }
    let tally = connections.finish();
    println!("TCP: {tally}");
    assert!(tally.failed == 0 && tally.answers.len() == 4, "{tally}\n{}", lab.program.log());
    tally.rate()
}

/// Replaces all endpoints one after the other. No connection fails, and of a client's datagrams at most one is lost with each
/// endpoint.
pub(crate) fn every_endpoint_is_replaced(setup: impl Into<Setup>) {
    let (mut lab, mut service) = start(setup);
    let (mut connections, mut questions) = (Vec::new(), Vec::new());
    for (family, ports) in FAMILIES.into_iter().zip([40000..40030, 41000..41030]) {
        let (inside, outside) = (cluster_address(&service, family), node_port(&service, node_address(family)));
        let (pod, client) = (lab.world.pod(Pod::C), &lab.world.client);
        connections.push(ShortConnections::start(pod, inside, ports.clone(), 1000, Ending::ByServer));
        connections.push(ShortConnections::start(client, outside, ports, 100, Ending::Reset));
        let pause = Duration::from_millis(5);
        questions.push(Questions::start(pod, inside, Proto::Udp, pause));
        questions.push(Questions::start_flow(pod, inside, pause));
        questions.push(Questions::start_flow(client, outside, pause));
    }
    thread::sleep(GRACE);
    for (old, new) in REPLACED {
        replace(&mut lab, &mut service, old, new);
    }
    for tally in connections.into_iter().map(ShortConnections::finish) {
        println!("TCP: {tally}");
        assert!(tally.failed == 0 && tally.answers.len() == 4, "{tally}\n{}", lab.program.log());
    }
    for tally in questions.into_iter().map(Questions::finish) {
        println!("UDP: {tally}");
        let reached = REPLACED.iter().any(|(_, new)| tally.answers.contains_key(new.name()));
        assert!(tally.failed <= REPLACED.len() && reached, "{tally}\n{}", lab.program.log());
    }
}

/// As Kubernetes does it: the new pod becomes ready; the old one is told to end, and still answers; it says that it does not serve
/// any more, and still answers; it is gone.
fn replace(lab: &mut Lab, service: &mut Service, old: Pod, new: Pod) {
    let mut change = |edit: &dyn Fn(&mut Vec<Endpoint>)| {
        edit(service.endpoints.get_or_insert_default());
        lab.manifests.apply(service);
        thread::sleep(GRACE);
    };
    let set = |endpoints: &mut Vec<Endpoint>, to: Endpoint| {
        endpoints.iter_mut().filter(|endpoint| endpoint.pod == to.pod).for_each(|endpoint| *endpoint = to);
    };
    change(&|endpoints| endpoints.push(Endpoint::unready(new)));
    change(&|endpoints| set(endpoints, Endpoint::ready(new)));
    change(&|endpoints| set(endpoints, Endpoint::terminating(old)));
    change(&|endpoints| set(endpoints, Endpoint { serving: false, ..Endpoint::terminating(old) }));
    lab.world.stop_pod(old);
    change(&|endpoints| endpoints.retain(|endpoint| endpoint.pod != old));
}
