//! The program killed in the middle of its work: what it leaves is safe at every moment, and its successor finishes it.

use std::fs;
use std::net::SocketAddr;
use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::state::State;
use crate::netns::Netns;
use crate::netns::flow::Conversation;
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, PATIENCE, Proto, probe};
use crate::netns::world::{FAMILIES, Family, Pod, World, node_address, public, wire};
use crate::traffic::lab::{Lab, cluster_address, serve};
use crate::traffic::manifest::{Endpoint, Manifests, Service};
use crate::traffic::program::{Program, Setup, USUAL, eventually};

#[test]
fn a_drain_goes_on_after_the_program_was_killed() {
    if !kernel_has_ipvs() {
        return;
    }
    let limit = Duration::from_secs(2);
    let flags = [USUAL, &["--ipvs-drain-timeout=2s"]].concat();
    let mut service = Service::new("drained", 1, &[Pod::A]);
    let mut lab = Lab::start(Setup::ipvs(), from_ref(&service), &flags[USUAL.len()..]);
    let from = lab.world.pod(Pod::C).clone();
    let mut open = FAMILIES.map(|family| Conversation::open(&from, None, cluster_address(&service, family)));
    let real = |family: Family| SocketAddr::new(Pod::A.address(family), 8001);
    let weight = |lab: &Lab, family: Family| {
        let to = SocketAddr::new(crate::netns::world::cluster_ip(family, 1), 80);
        let server = lab.world.node1.virtual_server("TCP", to).expect("the virtual server");
        server.server(real(family)).map(|server| server.weight)
    };
    let leaving = vec![Endpoint::terminating(Pod::A), Endpoint::ready(Pod::B)];
    service.endpoints = Some(leaving.clone());
    lab.manifests.apply(&service);
    for family in FAMILIES {
        eventually("it drains", || weight(&lab, family) == Some(0));
    }
    let restart = |lab: &mut Lab, meanwhile: Option<&Service>| {
        lab.program.end(Signal::KILL);
        if let Some(service) = meanwhile {
            lab.manifests.apply(service);
        }
        lab.program = Program::start(&lab.world.node1, Setup::ipvs(), &lab.manifests, &flags);
    };
    // Still listed: as it was, for longer than the limit.
    restart(&mut lab, None);
    thread::sleep(limit + Duration::from_millis(500));
    for (family, open) in FAMILIES.into_iter().zip(&mut open) {
        assert!(open.goes_on());
        assert_eq!(weight(&lab, family), Some(0));
        assert_eq!(lab.answering(&from, cluster_address(&service, family), Proto::Tcp, 10), ["pod-b"]);
    }
    // Back in service while the program was away, and then leaving again.
    service.set_endpoints(&[Pod::A, Pod::B]);
    restart(&mut lab, Some(&service));
    assert!(open.iter_mut().all(Conversation::goes_on));
    assert_eq!(FAMILIES.map(|family| weight(&lab, family)), [Some(1); 2]);
    // It leaves the lists while the program is away: its time begins with the program.
    service.set_endpoints(&[Pod::B]);
    let begun = Instant::now();
    restart(&mut lab, Some(&service));
    assert!(open.iter_mut().all(Conversation::goes_on) && begun.elapsed() < limit, "{:?}", begun.elapsed());
    for (family, open) in FAMILIES.into_iter().zip(&mut open) {
        eventually("its time is over", || weight(&lab, family).is_none());
        assert_eq!(open.ask(PATIENCE), Outcome::Reset);
    }
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
}

/// Endpoints that serve all Services of the fill.
const PODS: [Pod; 4] = [Pod::A, Pod::B, Pod::R1, Pod::R2];
/// How many Services have to be filled in. Each is four virtual servers, and eight if it is a load balancer.
const SERVICES: u8 = 100;
/// The one whose endpoint is on another node, for the node's own packets.
const REMOTE: u8 = 2;
/// The first load balancer that only one client may use.
const GUARDED: u8 = 3;
/// All Services of the fill listen here, so that servers are few.
const TARGET_PORT: u16 = 8001;

fn many() -> Vec<Service> {
    (1..=SERVICES)
        .map(|number| {
            let mut service = Service::new(&format!("many-{number}"), number, &PODS);
            service.target_port = TARGET_PORT;
            if number == REMOTE {
                service.set_endpoints(&[Pod::R1]);
            } else if number % 10 == GUARDED {
                service.ingress = FAMILIES.map(|family| (public(family, number), false)).into();
                service.source_ranges =
                    vec![format!("{}/32", wire(Family::V4, 101)), format!("{}/128", wire(Family::V6, 101))];
            }
            service
        })
        .collect()
}

/// The virtual servers that exist, in a time that is short compared with a fill.
fn count_servers(node: &Netns) -> usize {
    node.ipvs_text().lines().filter(|line| line.starts_with("TCP") || line.starts_with("UDP")).count()
}

/// Stops the program as soon as there are so many virtual servers, or with `None` as soon as sets are being filled. How many virtual
/// servers there are then.
fn stop_at(node: &Netns, program: &mut Program, wanted: Option<usize>) -> usize {
    let elements = || node.set_elements("KUBE-CLUSTER-IP").map_or(0, |elements| elements.len());
    let few = elements();
    let deadline = Instant::now() + Duration::from_secs(20);
    while wanted.map_or_else(|| elements() <= few, |wanted| count_servers(node) < wanted) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let process = program.process();
    process.signal(Signal::STOP);
    eventually("it has stopped", || {
        let status = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("the process");
        status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    });
    count_servers(node)
}

/// Whatever there is of virtual servers, everything that guards them is complete; and an address is local only when its virtual
/// servers have their real servers.
fn assert_guarded(now: &State, complete: &State) {
    if now.servers.is_empty() {
        return;
    }
    let without_servers = |state: &State| State { servers: Vec::new(), addresses: None, ..state.clone() };
    without_servers(now).assert_same(&without_servers(complete), "rules and sets come before virtual servers");
    let local = now.addresses.iter().flatten();
    for address in local {
        let of =
            |state: &State| state.servers.iter().filter(|it| it.address.ip() == *address).cloned().collect::<Vec<_>>();
        assert_eq!(of(now), of(complete), "virtual servers come before their address");
    }
}

#[test]
fn a_first_fill_is_guarded_at_every_moment_and_finished_by_the_next_program() {
    if !kernel_has_ipvs() {
        return;
    }
    let setup = Setup::ipvs();
    let mut world = World::new();
    let services = many();
    serve(&mut world, from_ref(&services[0]));
    let kept = services[0].clone();
    let manifests = Manifests::new(from_ref(&kept));
    let node = world.node1.clone();
    let mut program = Program::start(&node, setup, &manifests, USUAL);
    let mut open = FAMILIES.map(|family| Conversation::open(world.pod(Pod::C), None, cluster_address(&kept, family)));
    let small = State::of(&node, setup.variant);
    services.iter().for_each(|service| manifests.apply(service));
    let all = 4 * usize::from(SERVICES) + 4 * services.iter().filter(|service| !service.ingress.is_empty()).count();
    eventually("the fill is done", || count_servers(&node) == all);
    eventually("the addresses are bound", || node.addresses_of("kube-ipvs0").is_some_and(|it| it.len() == all / 2));
    let complete = State::of(&node, setup.variant);
    println!("{all} virtual servers");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watchers = watch(scope, &world, &stop);
        let _ending = Ending(&stop);
        for wanted in [None, Some(5), Some(all / 2), Some(all)] {
            // Back to the one Service, and the fill once more.
            services.iter().skip(1).for_each(|service| manifests.delete(&service.name));
            eventually("the others are gone", || count_servers(&node) == 4);
            eventually("their sets are empty", || State::of(&node, setup.variant) == small);
            program.end(Signal::KILL);
            services.iter().skip(1).for_each(|service| manifests.apply(service));
            let begun = Instant::now();
            program = Program::launch(&node, setup, &manifests, USUAL);
            let found = stop_at(&node, &mut program, wanted);
            println!("stopped after {:.1?} with {found} virtual servers", begun.elapsed());
            let now = State::of(&node, setup.variant);
            program.end(Signal::KILL);
            assert!(open.iter_mut().all(Conversation::goes_on), "at {found}");
            assert_guarded_beyond(&now, &small, &complete);
            let begun = Instant::now();
            program = Program::start(&node, setup, &manifests, USUAL);
            println!("finished after {:.1?}", begun.elapsed());
            State::of(&node, setup.variant).assert_same(&complete, &format!("killed at {found}"));
            assert!(open.iter_mut().all(Conversation::goes_on), "at {found}");
        }
        stop.store(true, Ordering::Relaxed);
        for watcher in watchers {
            let (asked, answered) = watcher.join().expect("a watcher");
            println!("asked {asked} times, answered {answered} times");
        }
    });
    let inside = wire(Family::V4, 101);
    let vip = SocketAddr::new(public(Family::V4, GUARDED), 80);
    let admitted = world.client.run(|| probe(Some(SocketAddr::new(inside, 0)), vip, Proto::Tcp, PATIENCE));
    assert!(admitted.by().is_some(), "{admitted}");
}

/// Lets the watchers end when the test does, however it does.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The same where one Service stands already.
fn assert_guarded_beyond(now: &State, small: &State, complete: &State) {
    if now.servers.len() > small.servers.len() {
        assert_guarded(now, complete);
    }
}

/// Clients that must not get through, and the node's own packets, which must not have a Service's address as their source.
/// Each tells how often it asked and how often it was answered.
fn watch<'a>(
    scope: &'a thread::Scope<'a, '_>,
    world: &World,
    stop: &'a AtomicBool,
) -> Vec<thread::ScopedJoinHandle<'a, (usize, usize)>> {
    let mut watchers = Vec::new();
    for family in FAMILIES {
        for proto in [Proto::Tcp, Proto::Udp] {
            let remote = SocketAddr::new(crate::netns::world::cluster_ip(family, REMOTE), 80);
            let guarded = SocketAddr::new(public(family, GUARDED), 80);
            for (from, to, allowed) in [(world.node1.clone(), remote, true), (world.client.clone(), guarded, false)] {
                watchers.push(scope.spawn(move || {
                    from.enter();
                    let (mut asked, mut answered) = (0, 0);
                    while !stop.load(Ordering::Relaxed) {
                        let outcome = probe(None, to, proto, Duration::from_millis(200));
                        asked += 1;
                        if let Outcome::Answered { source, .. } = outcome {
                            answered += 1;
                            assert!(allowed && source == node_address(family), "{to} {proto}: {outcome:?}");
                        }
                        thread::sleep(Duration::from_millis(20));
                    }
                    (asked, answered)
                }));
            }
        }
    }
    watchers
}
