//! Endpoints that leave while clients talk to them: what becomes of connections and flows (the table of what a client sees, §8.4
//! of the reference, and where ADR 7 says otherwise).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::slice::from_ref;
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::flow::{Conversation, Ending, ShortConnections, UdpFlow};
use crate::netns::ipvs::kernel_has_ipvs;
use crate::netns::probe::{Outcome, PATIENCE, Proto, SILENCE};
use crate::netns::world::{FAMILIES, Family, Pod, cluster_ip, node_address};
use crate::traffic::lab::{Lab, ask, ask_once, cluster_address, node_port, serve};
use crate::traffic::manifest::{Endpoint, Service};
use crate::traffic::program::{AT_LAST, Setup, eventually};

const PAIR: [Pod; 2] = [Pod::A, Pod::B];

/// The one of the pair that answered, and the other one.
fn leaving_and_staying(outcome: &Outcome) -> (Pod, Pod) {
    if outcome.by() == Some(Pod::A.name()) { (Pod::A, Pod::B) } else { (Pod::B, Pod::A) }
}

fn real(service: &Service, pod: Pod, family: Family) -> SocketAddr {
    SocketAddr::new(pod.address(family), service.target_port)
}

/// The weight of a pod behind the cluster IP; `None`: it is not there.
fn weight(lab: &Lab, protocol: &str, service: &Service, pod: Pod, family: Family) -> Option<u32> {
    let server = lab.world.node1.virtual_server(protocol, cluster_address(service, family))?;
    Some(server.server(real(service, pod, family))?.weight)
}

fn wait_for_weight(lab: &Lab, service: &Service, pod: Pod, wanted: Option<u32>) {
    for family in FAMILIES {
        eventually(&format!("{pod:?} has the weight {wanted:?}"), || {
            weight(lab, "TCP", service, pod, family) == wanted
        });
    }
}

/// What an EndpointSlice says of an endpoint that is about to go.
const LISTED: [(&str, Endpoint); 3] = [
    ("terminating, still serving", Endpoint::terminating(Pod::A)),
    ("terminating, not serving", Endpoint { serving: false, ..Endpoint::terminating(Pod::A) }),
    ("not ready", Endpoint::unready(Pod::A)),
];

#[test]
fn connections_go_on_as_long_as_the_endpoint_is_listed_and_then_for_the_drain_timeout() {
    if !kernel_has_ipvs() {
        return;
    }
    const LIMIT: Duration = Duration::from_secs(3);
    let mut service = Service::new("leaving", 1, &[Pod::A]);
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &["--ipvs-drain-timeout=3s"]);
    let from = lab.world.pod(Pod::C);
    let mut open = FAMILIES.map(|family| Conversation::open(from, None, cluster_address(&service, family)));
    let begun = Instant::now();
    for (what, leaving) in LISTED {
        service.endpoints = Some(vec![leaving, Endpoint::ready(Pod::B)]);
        lab.manifests.apply(&service);
        wait_for_weight(&lab, &service, Pod::A, Some(0));
        for (family, open) in FAMILIES.into_iter().zip(&mut open) {
            let to = cluster_address(&service, family);
            assert!(open.goes_on(), "{what}");
            assert_eq!(lab.answering(from, to, Proto::Tcp, 20), ["pod-b"], "{what}");
            assert_eq!(lab.answering(from, to, Proto::Udp, 20), ["pod-b"], "{what}");
            assert_eq!(weight(&lab, "UDP", &service, Pod::A, family), None, "{what}: datagrams wait for nothing");
        }
    }
    // It may take as long as it likes while it is listed.
    thread::sleep((LIMIT + Duration::from_secs(1)).saturating_sub(begun.elapsed()));
    assert!(open.iter_mut().all(Conversation::goes_on));
    let unlisted = Instant::now();
    service.set_endpoints(&[Pod::B]);
    lab.manifests.apply(&service);
    while unlisted.elapsed() < LIMIT - Duration::from_millis(500) {
        assert!(open.iter_mut().all(Conversation::goes_on), "ended after {:?}", unlisted.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    wait_for_weight(&lab, &service, Pod::A, None);
    println!("gone {:.1?} after it was not listed any more", unlisted.elapsed());
    assert!(unlisted.elapsed() >= LIMIT && unlisted.elapsed() < 3 * LIMIT, "{:?}", unlisted.elapsed());
    for open in &mut open {
        assert_eq!(open.ask(PATIENCE), Outcome::Reset);
    }
}

#[test]
fn a_leaving_server_goes_when_its_last_connection_has_ended_or_at_once_without_a_drain_timeout() {
    if !kernel_has_ipvs() {
        return;
    }
    for (timeout, outlives) in [("--ipvs-drain-timeout=1h", true), ("--ipvs-drain-timeout=0s", false)] {
        let mut service = Service::new("leaving", 1, &[Pod::A]);
        let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[timeout]);
        let mut open =
            FAMILIES.map(|family| Conversation::open(lab.world.pod(Pod::C), None, cluster_address(&service, family)));
        service.set_endpoints(&[Pod::B]);
        lab.manifests.apply(&service);
        if outlives {
            wait_for_weight(&lab, &service, Pod::A, Some(0));
            assert!(open.iter_mut().all(Conversation::goes_on), "{timeout}");
            drop(open);
            // The kernel remembers an ended connection for ten seconds, and the program looks after 1, 3, 7, 15 seconds.
            let begun = Instant::now();
            while FAMILIES.iter().any(|family| weight(&lab, "TCP", &service, Pod::A, *family).is_some()) {
                assert!(begun.elapsed() < Duration::from_secs(60), "{}", lab.world.node1.ipvs_connections_text());
                thread::sleep(Duration::from_millis(100));
            }
            println!("gone {:.1?} after the last connection had ended", begun.elapsed());
        } else {
            wait_for_weight(&lab, &service, Pod::A, None);
            open.iter_mut().for_each(|open| assert_eq!(open.ask(PATIENCE), Outcome::Reset, "{timeout}"));
        }
        for family in FAMILIES {
            let answering = lab.answering(lab.world.pod(Pod::C), cluster_address(&service, family), Proto::Tcp, 10);
            assert_eq!(answering, ["pod-b"], "{timeout}");
        }
    }
}

#[test]
fn connections_survive_when_their_endpoint_leaves_and_comes_back() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("returning", 1, &PAIR);
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let from = lab.world.pod(Pod::C);
    for family in FAMILIES {
        let to = cluster_address(&service, family);
        let mut open = Conversation::open(from, None, to);
        let (leaving, staying) = leaving_and_staying(open.first());
        let absences = [vec![Endpoint::ready(staying)], vec![Endpoint::unready(leaving), Endpoint::ready(staying)]];
        for absence in absences {
            service.endpoints = Some(absence);
            lab.manifests.apply(&service);
            wait_for_weight(&lab, &service, leaving, Some(0));
            service.set_endpoints(&PAIR);
            lab.manifests.apply(&service);
            wait_for_weight(&lab, &service, leaving, Some(1));
            assert!(open.goes_on());
            lab.wait_for(from, to, Proto::Tcp, &PAIR);
        }
        // So quickly that the program may never see that it was away.
        service.set_endpoints(&[staying]);
        lab.manifests.apply(&service);
        service.set_endpoints(&PAIR);
        lab.manifests.apply(&service);
        lab.wait_for(from, to, Proto::Tcp, &PAIR);
        assert!(open.goes_on());
    }
}

#[test]
fn a_reused_port_goes_elsewhere_without_delay_when_its_server_leaves() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("reused", 1, &PAIR);
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let from = lab.world.pod(Pod::C);
    for (family, ending) in
        [(Family::V4, Ending::ByServer), (Family::V6, Ending::ByServer), (Family::V4, Ending::Reset)]
    {
        let to = cluster_address(&service, family);
        let connect = |time: u64| {
            let short = ShortConnections::start(from, to, 40000..40016, 1000, ending);
            thread::sleep(Duration::from_millis(time));
            let tally = short.finish();
            println!("{family:?} {ending:?}: {tally}");
            assert!(tally.failed == 0 && tally.slowest < Duration::from_millis(900), "{tally}");
            Vec::from_iter(tally.answers.into_keys())
        };
        service.set_endpoints(&PAIR);
        lab.manifests.apply(&service);
        wait_for_weight(&lab, &service, Pod::A, Some(1));
        assert_eq!(connect(700), ["pod-a", "pod-b"]);
        // Half of the ports remember a connection to A. The open one keeps A from being deleted at once.
        let open: Vec<_> = (0..2).map(|_| Conversation::open(from, None, to)).collect();
        service.endpoints = Some(vec![Endpoint::terminating(Pod::A), Endpoint::ready(Pod::B)]);
        lab.manifests.apply(&service);
        wait_for_weight_of(&lab, &service, family, Some(0));
        assert_eq!(connect(500), ["pod-b"]);
        drop(open);
    }
}

fn wait_for_weight_of(lab: &Lab, service: &Service, family: Family, wanted: Option<u32>) {
    eventually(&format!("A has the weight {wanted:?}"), || weight(lab, "TCP", service, Pod::A, family) == wanted);
}

#[test]
fn a_client_that_stays_with_its_server_moves_when_the_server_leaves() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("faithful", 1, &PAIR);
    service.affinity = Some(600);
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    let from = lab.world.pod(Pod::C);
    for family in FAMILIES {
        let to = cluster_address(&service, family);
        let mut open = Conversation::open(from, None, to);
        let (leaving, staying) = leaving_and_staying(open.first());
        assert_eq!(lab.answering(from, to, Proto::Tcp, 20), [leaving.name()]);
        service.endpoints = Some(vec![Endpoint::terminating(leaving), Endpoint::ready(staying)]);
        lab.manifests.apply(&service);
        eventually("it leaves", || weight(&lab, "TCP", &service, leaving, family) == Some(0));
        assert_eq!(lab.answering(from, to, Proto::Tcp, 20), [staying.name()]);
        assert!(open.goes_on());
        service.set_endpoints(&PAIR);
        lab.manifests.apply(&service);
        eventually("it is back", || weight(&lab, "TCP", &service, leaving, family) == Some(1));
        assert_eq!(lab.answering(from, to, Proto::Tcp, 20), [staying.name()], "faithful to the new one");
        assert!(open.goes_on());
        let from_flow = lab.answering(from, to, Proto::Udp, 10);
        assert_eq!(from_flow.len(), 1, "{from_flow:?}");
    }
}

/// An address and port as the kernel writes them in its list of connections.
fn hexadecimal(address: SocketAddr) -> String {
    let port = address.port();
    match address.ip() {
        std::net::IpAddr::V4(ip) => format!("{:08X} {port:04X}", u32::from(ip)),
        std::net::IpAddr::V6(ip) => {
            let parts: Vec<String> = ip.segments().iter().map(|part| format!("{part:04x}")).collect();
            format!("{} {port:04X}", parts.join(":"))
        }
    }
}

#[test]
fn a_flow_of_datagrams_moves_to_another_server_or_is_refused() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("resolver", 1, &PAIR);
    service.node_port = 30001;
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &[]);
    for family in FAMILIES {
        let (inside, outside) = (cluster_address(&service, family), node_port(&service, node_address(family)));
        for (from, to) in [(lab.world.pod(Pod::C), inside), (&lab.world.node1, inside), (&lab.world.client, outside)] {
            let what = format!("{from:?} to {to}");
            let flow = UdpFlow::open(from, None, to);
            let first = flow.ask(PATIENCE);
            let (leaving, staying) = leaving_and_staying(&first);
            assert_eq!(flow.ask(PATIENCE), first, "{what}");
            let is_there = |pod| {
                let server = lab.world.node1.virtual_server("UDP", to);
                server.is_some_and(|server| server.server(real(&service, pod, family)).is_some())
            };
            for (endpoints, gone) in [(vec![staying], leaving), (vec![], staying)] {
                let mut changed = service.clone();
                changed.set_endpoints(&endpoints);
                lab.manifests.apply(&changed);
                eventually("it is gone", || !is_there(gone));
                // The kernel forgets the connections of a server a clock tick after the server; what arrives in between is lost.
                let remembered = hexadecimal(real(&service, gone, family));
                eventually("its connections are forgotten", || {
                    !lab.world
                        .node1
                        .ipvs_connections_text()
                        .lines()
                        .any(|it| it.starts_with("UDP") && it.contains(&remembered))
                });
                match endpoints.first() {
                    Some(pod) => assert_eq!(flow.ask_until(pod.name(), PATIENCE), Ok(()), "{what}"),
                    None => eventually("it is refused", || flow.ask(SILENCE) == Outcome::Refused),
                }
            }
            lab.manifests.apply(&service);
            eventually("it is served again", || flow.ask(SILENCE).by().is_some());
        }
    }
}

#[test]
fn without_endpoints_everything_is_refused_at_once() {
    if !kernel_has_ipvs() {
        return;
    }
    let mut service = Service::new("empty", 1, &[Pod::A]);
    service.node_port = 30001;
    let lab = Lab::start(Setup::ipvs(), from_ref(&service), &["--ipvs-drain-timeout=1s"]);
    lab.wait_for(&lab.world.client, node_port(&service, node_address(Family::V4)), Proto::Tcp, &[Pod::A]);
    let mut open = Conversation::open(lab.world.pod(Pod::C), None, cluster_address(&service, Family::V4));
    service.set_endpoints(&[]);
    lab.manifests.apply(&service);
    wait_for_weight(&lab, &service, Pod::A, None);
    assert_eq!(open.ask(PATIENCE), Outcome::Reset);
    for family in FAMILIES {
        let (inside, outside) = (cluster_address(&service, family), node_port(&service, node_address(family)));
        for (from, to) in [(lab.world.pod(Pod::C), inside), (&lab.world.node1, inside), (&lab.world.client, outside)] {
            for proto in [Proto::Tcp, Proto::Udp] {
                assert_eq!(ask_once(from, to, proto), Outcome::Refused, "{from:?} to {to} {proto}");
            }
        }
    }
}

/// Asks without any pause until this pod answers, or never does. How often there was which answer.
fn ask_until_it_is(flow: &UdpFlow, pod: Pod) -> BTreeMap<String, usize> {
    let (begun, mut outcomes) = (Instant::now(), BTreeMap::new());
    while !outcomes.contains_key(pod.name()) && begun.elapsed() < AT_LAST {
        let outcome = flow.ask(Duration::from_millis(200));
        let name = outcome.by().map_or_else(|| outcome.to_string(), str::to_owned);
        *outcomes.entry(name).or_default() += 1;
    }
    outcomes
}

#[test]
fn flows_that_began_before_the_service_are_served_by_it() {
    if !kernel_has_ipvs() {
        return;
    }
    let services: Vec<Service> = (1..=5).map(|n| Service::new(&format!("late-{n}"), n, &[Pod::A])).collect();
    let mut lab = Lab::start(Setup::ipvs(), &[Service::new("other", 9, &[Pod::B])], &[]);
    serve(&mut lab.world, &services);
    // Somebody out there has the addresses and says nothing at the first, but answers at the others, so that answers are under
    // way when the Service comes.
    let addresses = |n: u8| FAMILIES.map(|family| SocketAddr::new(cluster_ip(family, n), 80));
    let loud: Vec<SocketAddr> = (2..=5).flat_map(addresses).collect();
    lab.world.serve_internet(&loud);
    let silent = addresses(1).map(|to| lab.world.internet.run(|| std::net::UdpSocket::bind(to)).expect("socket"));
    for service in &services {
        let flows = FAMILIES.map(|family| {
            let to = cluster_address(service, family);
            [lab.world.pod(Pod::C), &lab.world.node1].map(|from| (from, UdpFlow::open(from, None, to)))
        });
        let number = service.cluster_ip;
        for (_, flow) in flows.iter().flatten() {
            let first = flow.ask(SILENCE);
            assert_eq!(first.by(), (number > 1).then_some("internet"), "{first}");
        }
        let busy: Vec<_> = FAMILIES
            .map(|family| UdpFlow::open(lab.world.pod(Pod::C), None, cluster_address(service, family)))
            .into_iter()
            .map(|flow| thread::spawn(move || ask_until_it_is(&flow, Pod::A)))
            .collect();
        lab.manifests.apply(service);
        for (from, flow) in flows.iter().flatten() {
            assert_eq!(flow.ask_until(Pod::A.name(), PATIENCE), Ok(()), "{number}: {from:?}\n{}", lab.program.log());
        }
        for busy in busy {
            let outcomes = busy.join().expect("a flow");
            println!("{number}: {outcomes:?}");
            assert!(outcomes.contains_key(Pod::A.name()), "{number}: {outcomes:?}\n{}", lab.program.log());
        }
        let outcomes = ask(lab.world.pod(Pod::C), cluster_address(service, Family::V4), Proto::Udp, 5);
        assert!(outcomes.iter().all(|outcome| outcome.by() == Some(Pod::A.name())), "{outcomes:?}");
    }
    drop(silent);
}
