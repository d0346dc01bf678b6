//! Every path to a state gives the state. Lists of clusters are run forward, backward, with nothing in between, all at
//! once and change by change; what the kernel holds in the end has to equal a first sync of the last cluster.

use portolan::model::{Conditions, Hints, TrafficPolicy};
use portolan::net::Protocol;

use crate::cluster::{World, local_external, number, port, udp, udp_slice};
use crate::rig::{Mode, Text, fake_in, from_scratch_in, on_in, operations};

fn two(world: World) -> World {
    world.slice("web", "a", &["10.244.0.2", "10.244.1.2"], |_| {})
}

fn web() -> World {
    World::default().service("web", 1, |_| {})
}

/// Clusters, each with a name that says what is special about it.
pub(crate) fn states() -> Vec<(&'static str, World)> {
    let conditions = |ready, serving, terminating| Conditions { ready, serving, terminating };
    vec![
        ("empty", World::default()),
        ("service without endpoints", web()),
        ("slice without service", two(World::default())),
        ("two endpoints", two(web())),
        ("one endpoint", web().slice("web", "a", &["10.244.0.2"], |_| {})),
        ("other endpoint", web().slice("web", "a", &["10.244.1.9"], |_| {})),
        ("two slices", two(web()).slice("web", "b", &["10.244.0.3"], |_| {})),
        ("endpoint in both slices", two(web()).slice("web", "b", &["10.244.0.2"], |_| {})),
        ("dual stack", two(web()).slice("web", "v6", &["fd00:10:244::2", "fd00:10:244:1::2"], |_| {})),
        (
            "unready",
            web().slice("web", "a", &["10.244.0.2"], |slice| {
                slice.endpoints[0].conditions = conditions(false, false, false);
            }),
        ),
        (
            "terminating",
            web().slice("web", "a", &["10.244.0.2", "10.244.1.2"], |slice| {
                slice.endpoints[0].conditions = conditions(false, true, true);
            }),
        ),
        (
            "all terminating",
            web().slice("web", "a", &["10.244.0.2", "10.244.1.2"], |slice| {
                slice.endpoints.iter_mut().for_each(|endpoint| endpoint.conditions = conditions(false, true, true));
            }),
        ),
        (
            "other port number",
            two(World::default().service("web", 1, |service| {
                service.ports = Box::new([port("http", Protocol::Tcp, 8000, None)]);
            })),
        ),
        ("other cluster IP", two(World::default().service("web", 77, |_| {}))),
        ("IPv4 only", two(World::default().service("web", 1, |service| service.cluster_ip_v6 = None))),
        (
            "node port",
            two(World::default().service("web", 1, |service| {
                service.ports = Box::new([port("http", Protocol::Tcp, 80, Some(30080))]);
            })),
        ),
        (
            "external IPs",
            two(World::default().service("web", 1, |service| {
                service.external_ips = Box::new(["203.0.113.1".parse().unwrap(), "fd00:203::1".parse().unwrap()]);
            })),
        ),
        ("local external policy", two(World::default().service("web", 1, local_external))),
        (
            "local external policy, none local",
            World::default().service("web", 1, local_external).slice("web", "a", &["10.244.1.2"], |_| {}),
        ),
        (
            "local internal policy",
            two(World::default().service("web", 1, |service| {
                service.internal_traffic_policy = TrafficPolicy::Local;
            })),
        ),
        (
            "source ranges",
            two(World::default().service("web", 1, |service| {
                local_external(service);
                service.load_balancer_source_ranges = Box::new(["198.51.100.0/24".parse().unwrap()]);
            })),
        ),
        ("affinity", two(World::default().service("web", 1, |service| service.affinity_seconds = Some(60)))),
        (
            "zone hints that fit nobody",
            web().slice("web", "a", &["10.244.0.2", "10.244.1.2"], |slice| {
                for endpoint in &mut slice.endpoints {
                    endpoint.hints = Some(Hints { zones: Box::new(["z".into()]), nodes: Box::new([]) }.into());
                }
            }),
        ),
        (
            "node hints",
            web().slice("web", "a", &["10.244.0.2", "10.244.1.2"], |slice| {
                for (endpoint, node) in slice.endpoints.iter_mut().zip(["node1", "node2"]) {
                    endpoint.hints = Some(Hints { zones: Box::new([]), nodes: Box::new([node.into()]) }.into());
                }
            }),
        ),
        ("udp", World::default().service("web", 1, udp).slice("web", "a", &["10.244.0.2"], udp_slice)),
        (
            "same port on two protocols",
            World::default()
                .service("web", 1, |service| {
                    service.ports =
                        Box::new([port("dns", Protocol::Udp, 53, None), port("http", Protocol::Tcp, 53, None)]);
                })
                .slice("web", "a", &["10.244.0.2"], |_| {})
                .slice("web", "b", &["10.244.0.2"], udp_slice),
        ),
        ("two services", two(web()).service("api", 2, |_| {}).slice("api", "a", &["10.244.0.7"], |_| {})),
        (
            "two services swapped",
            two(World::default().service("web", 2, |_| {})).service("api", 1, |_| {}).slice(
                "api",
                "a",
                &["10.244.0.7"],
                |_| {},
            ),
        ),
        (
            "two services at one address",
            two(web()).service("api", 1, |_| {}).slice("api", "a", &["10.244.0.7"], |_| {}),
        ),
        (
            "slice moved to the other service",
            web().service("api", 2, |_| {}).slice("web", "a", &["10.244.0.2"], |slice| {
                slice.service = crate::cluster::service_name("api");
            }),
        ),
        ("other target port", web().slice("web", "a", &["10.244.0.2"], |slice| slice.ports[0].port = number(9090))),
        (
            "many services",
            (0..40).fold(World::default(), |world, at| {
                let name = format!("many-{at}");
                world.service(&name, 100 + at, |_| {}).slice(
                    &name,
                    "a",
                    &[&format!("10.244.0.{}", 10 + at), &format!("10.244.1.{}", 10 + at)],
                    |_| {},
                )
            }),
        ),
    ]
}

/// Runs a path of clusters with a sync after each, in one of several ways, and checks the end.
fn run(mode: Mode, path: &[&World], one_change_at_a_time: bool) -> String {
    let mut rig = fake_in(mode);
    let mut now = World::default();
    rig.apply(now.initial());
    for world in path {
        for change in now.changes_to(world) {
            rig.apply([change]);
            if one_change_at_a_time {
                assert!(rig.sync().success());
            }
        }
        assert!(rig.sync_and_drain().success());
        now = (*world).clone();
    }
    let text = rig.text();
    // The audit agrees: nothing has drifted, nothing differs from scratch, nothing is to be done.
    rig.engine.request_full();
    let report = rig.sync();
    assert_eq!(report.inconsistent_services, 0);
    assert!(report.drift.is_empty(), "{:?}", report.drift);
    assert_eq!(operations(&report), []);
    text
}

#[test]
fn from_any_state_to_any_other() {
    let states = states();
    for mode in Mode::UNLIKE {
        let wanted: Vec<String> = states.iter().map(|(_, world)| from_scratch_in(mode, world)).collect();
        for (from, first) in &states {
            for ((to, second), wanted) in states.iter().zip(&wanted) {
                assert!(run(mode, &[first, second], false) == *wanted, "{mode:?}: from {from:?} to {to:?}");
            }
        }
    }
}

#[test]
fn through_all_states_forward_backward_and_change_by_change() {
    let states = states();
    let mut worlds: Vec<&World> = states.iter().map(|(_, world)| world).collect();
    for _ in 0..2 {
        let last = worlds[worlds.len() - 1];
        for mode in Mode::ALL {
            let wanted = from_scratch_in(mode, last);
            assert_eq!(run(mode, &worlds, false), wanted);
            assert_eq!(run(mode, &worlds, true), wanted);
            let empty = World::default();
            let with_empties: Vec<&World> = worlds.iter().flat_map(|world| [&empty, *world]).collect();
            assert_eq!(run(mode, &with_empties, false), wanted);
        }
        worlds.reverse();
    }
}

#[test]
fn all_states_at_once_give_the_last_one() {
    for mode in Mode::ALL {
        let mut rig = fake_in(mode);
        let mut now = World::default();
        rig.apply(now.initial());
        for (_, world) in &states() {
            rig.apply(now.changes_to(world));
            now = world.clone();
        }
        assert!(rig.sync().success());
        assert_eq!(rig.text(), from_scratch_in(mode, &now));
    }
}

#[test]
fn a_restart_in_any_state_adopts_it_without_writing() {
    for mode in Mode::ALL {
        for (name, world) in states() {
            let mut first = fake_in(mode);
            first.apply(world.initial());
            assert!(first.sync().success());
            let mut second = on_in(mode, first.engine.kernel().clone(), Default::default());
            second.apply(world.initial());
            let report = second.sync();
            assert!(report.success());
            assert_eq!(operations(&report), [], "{mode:?}: restart in state {name:?}");
        }
    }
}

pub(crate) fn without_kubelets(text: &str) -> String {
    let kubelets = |line: &&str| line.contains("KUBE-FIREWALL") || line.contains("block incoming localnet");
    text.lines().filter(|line| !kubelets(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_restart_in_any_state_with_another_cluster_or_mode_removes_what_is_stale() {
    let states = states();
    for (before_mode, after_mode) in Mode::ALL.into_iter().flat_map(|from| Mode::ALL.map(|to| (from, to))) {
        let wanted: Vec<String> = states.iter().map(|(_, world)| from_scratch_in(after_mode, world)).collect();
        for (from, first) in &states {
            let mut before = fake_in(before_mode);
            before.apply(first.initial());
            assert!(before.sync().success());
            // The layouts of iptables mode differ in little that matters here: a few states are enough.
            let step = if [before_mode, after_mode].contains(&Mode::Compact) { 7 } else { 1 };
            for ((to, second), wanted) in states.iter().zip(&wanted).step_by(step) {
                let mut after = on_in(after_mode, before.engine.kernel().clone(), Default::default());
                after.apply(second.initial());
                let report = after.sync_and_drain();
                assert!(report.success(), "{:?}", report.failed);
                // What kubelet writes as well is nobody's to remove.
                let text = without_kubelets(&after.text());
                assert!(
                    text == without_kubelets(wanted),
                    "restart from {before_mode:?} {from:?} to {after_mode:?} {to:?}\n{text}"
                );
            }
        }
    }
}
