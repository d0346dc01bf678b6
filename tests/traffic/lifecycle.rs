//! Starting, stopping, restarting and cleaning up on a node where others have rules too.

use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rstest::rstest;
use rustix::process::Signal;

use super::lab::{Lab, ask_once, cluster_address, node_port, serve};
use super::manifest::{Manifests, Service};
use super::program::{Program, USUAL, Variant, eventually, sync_once};
use crate::netns::probe::{Outcome, PATIENCE, Proto, probe};
use crate::netns::world::{FAMILIES, Family, Pod, World, node_address};

const TOOLS: [&str; 2] = ["iptables", "ip6tables"];

/// What the kubelet and an administrator may have left on the node.
const FOREIGN: &str = "*mangle\n\
    :KUBE-KUBELET-CANARY - [0:0]\n\
    :KUBE-IPTABLES-HINT - [0:0]\n\
    COMMIT\n\
    *filter\n\
    :KUBE-KUBELET-CANARY - [0:0]\n\
    :KUBE-FIREWALL - [0:0]\n\
    :MINE - [0:0]\n\
    -A INPUT -j KUBE-FIREWALL\n\
    -A OUTPUT -j KUBE-FIREWALL\n\
    -A INPUT -p tcp -m tcp --dport 4444 -m comment --comment \"my own rule\" -j MINE\n\
    -A MINE -j DROP\n\
    COMMIT\n\
    *nat\n\
    :KUBE-KUBELET-CANARY - [0:0]\n\
    :MINE - [0:0]\n\
    -A POSTROUTING -s 10.99.0.0/16 -j MINE\n\
    -A MINE -j RETURN\n\
    COMMIT\n";

/// By the loss of these kube-proxy notices that somebody has flushed the tables.
const CANARIES: &str = "*mangle\n\
    :KUBE-PROXY-CANARY - [0:0]\n\
    COMMIT\n\
    *nat\n\
    :KUBE-PROXY-CANARY - [0:0]\n\
    COMMIT\n\
    *filter\n\
    :KUBE-PROXY-CANARY - [0:0]\n\
    COMMIT\n";

/// The foreign rules in this family's words.
fn foreign(tool: &str) -> String {
    if tool == "iptables" { FOREIGN.to_owned() } else { FOREIGN.replace("10.99.0.0/16", "fd00:99::/64") }
}

/// The lines of a save that say something: no comments, no counters, no empty built-in chains.
fn lines(save: &str) -> Vec<String> {
    save.lines()
        .filter(|line| !line.starts_with('#') && (!line.starts_with(':') || line.contains(" - ")))
        .filter(|line| !line.starts_with('*') && *line != "COMMIT")
        .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
        .collect()
}

#[rstest]
fn the_program_ends_within_a_second_and_leaves_the_rules_in_place(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
    #[values(Signal::TERM, Signal::INT)] signal: Signal,
) {
    let service = Service::new("lasting", 1, &[Pod::A, Pod::B]);
    let mut lab = Lab::start(variant, from_ref(&service), &[]);
    let before: Vec<_> = TOOLS.map(|tool| lines(&variant.save(&lab.world.node1, tool))).into();
    let started = Instant::now();
    lab.program.process().signal(signal);
    let status = lab.program.process().wait(Duration::from_secs(5)).expect("it ends");
    assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
    assert!(status.success(), "{status}\n{}", lab.program.process().log());
    let after: Vec<_> = TOOLS.map(|tool| lines(&variant.save(&lab.world.node1, tool))).into();
    assert_eq!(before, after);
    for family in FAMILIES {
        let to = cluster_address(&service, family);
        assert_eq!(lab.answering(lab.world.pod(Pod::C), to, Proto::Tcp, 40), ["pod-a", "pod-b"]);
    }
}

#[rstest]
fn no_request_fails_while_the_program_is_restarted(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut service = Service::new("kept", 1, &[Pod::A, Pod::B, Pod::R1]);
    service.node_port = 30001;
    let mut services: Vec<Service> = (2..60).map(|n| Service::new(&format!("other-{n}"), n, &[Pod::A])).collect();
    services.push(service.clone());
    let mut world = World::new();
    serve(&mut world, &[service.clone()]);
    let manifests = Manifests::new(&services);
    let mut program = Program::start(&world.node1, variant, &manifests, USUAL);
    let (stop, from) = (AtomicBool::new(false), &world);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let ask = |netns: crate::netns::Netns, to, proto| {
            let stop = &stop;
            scope.spawn(move || {
                netns.enter();
                let mut outcomes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    outcomes.push(probe(None, to, proto, PATIENCE));
                }
                outcomes
            })
        };
        let asking: Vec<_> = FAMILIES
            .into_iter()
            .flat_map(|family| {
                let node_port = node_port(&service, node_address(family));
                let inside = ask(from.pod(Pod::C).clone(), cluster_address(&service, family), Proto::Tcp);
                [inside, ask(from.client.clone(), node_port, Proto::Udp)]
            })
            .collect();
        for signal in [Signal::TERM, Signal::KILL] {
            program.process().signal(signal);
            program.process().wait(Duration::from_secs(5)).expect("it ends");
            program = Program::start(&from.node1, variant, &manifests, USUAL);
        }
        stop.store(true, Ordering::Relaxed);
        asking.into_iter().flat_map(|thread| thread.join().expect("an asking thread")).collect()
    });
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.by().is_none()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), outcomes.len());
}

#[rstest]
fn changes_made_while_the_program_was_away_are_caught_up_with(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut stays = Service::new("stays", 1, &[Pod::A]);
    let goes = Service::new("goes", 2, &[Pod::A]);
    let mut lab = Lab::start(variant, &[stays.clone(), goes.clone()], &[]);
    let talker = lab
        .world
        .pod(Pod::C)
        .run(|| crate::netns::probe::udp_socket(None, cluster_address(&stays, Family::V4)))
        .expect("socket");
    assert_eq!(crate::netns::probe::ask(&talker, PATIENCE).by(), Some("pod-a"));
    lab.program.process().signal(Signal::KILL);
    lab.program.process().wait(Duration::from_secs(5)).expect("it ends");
    stays.set_endpoints(&[Pod::B]);
    lab.manifests.apply(&stays);
    lab.manifests.delete("goes");
    let more = Service::new("comes", 3, &[Pod::R1]);
    lab.manifests.apply(&more);
    serve(&mut lab.world, from_ref(&more));
    lab.program = Program::start(&lab.world.node1, variant, &lab.manifests, USUAL);
    let from = lab.world.pod(Pod::C);
    for family in FAMILIES {
        lab.wait_for(from, cluster_address(&stays, family), Proto::Tcp, &[Pod::B]);
        lab.wait_for(from, cluster_address(&more, family), Proto::Udp, &[Pod::R1]);
    }
    eventually("the flow to the endpoint that went meanwhile is ended", || {
        crate::netns::probe::ask(&talker, PATIENCE).by() == Some("pod-b")
    });
    for tool in TOOLS {
        let save = variant.save(&lab.world.node1, tool);
        assert!(!save.contains("default/goes"), "rules of a deleted Service are left:\n{save}");
    }
}

#[rstest]
fn cleanup_removes_exactly_what_is_ours(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let mut world = World::new();
    let mut service = Service::new("temporary", 1, &[Pod::A, Pod::R1]);
    service.node_port = 30001;
    serve(&mut world, &[service.clone()]);
    let node = &world.node1;
    for tool in TOOLS {
        variant.feed(node, tool, "restore", &["--noflush"], &foreign(tool));
    }
    let before = TOOLS.map(|tool| lines(&variant.save(node, tool)));
    let manifests = Manifests::new(&[service.clone()]);
    sync_once(node, variant, &manifests, USUAL);
    let to = node_port(&service, node_address(Family::V4));
    assert!(ask_once(&world.client, to, Proto::Tcp).by().is_some(), "the Service works");
    let with_ours = TOOLS.map(|tool| lines(&variant.save(node, tool)));
    for (before, with_ours) in before.iter().zip(&with_ours) {
        let missing: Vec<_> = before.iter().filter(|line| !with_ours.contains(line)).collect();
        assert!(missing.is_empty(), "a sync took away what is not ours: {missing:#?}");
    }
    for tool in TOOLS {
        variant.feed(node, tool, "restore", &["--noflush"], CANARIES);
    }
    let output = node.try_exec(&[env!("CARGO_BIN_EXE_portolan"), "cleanup", &format!("--iptables-variant={variant}")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (tool, before) in TOOLS.iter().zip(&before) {
        // KUBE-FIREWALL is the kubelet's too: its rule and the jumps to it stay, also where only we made them.
        let shared = |line: &String| line.contains("KUBE-FIREWALL");
        let after: Vec<_> = lines(&variant.save(node, tool)).into_iter().filter(|line| !shared(line)).collect();
        let before: Vec<_> = before.iter().filter(|line| !shared(line)).cloned().collect();
        assert_eq!(after, before, "{tool} after cleanup");
        let save = variant.save(node, tool);
        assert!(save.contains(":KUBE-FIREWALL"), "{tool}: KUBE-FIREWALL is gone");
        assert!(save.contains("-A INPUT -j KUBE-FIREWALL"), "{tool}: the jump to KUBE-FIREWALL is gone");
    }
    assert_eq!(ask_once(&world.client, to, Proto::Tcp), Outcome::Refused);
}

#[rstest]
fn rules_of_the_kubelet_and_the_administrator_survive_syncs(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let service = Service::new("guest", 1, &[Pod::A]);
    let mut lab = Lab::start(variant, from_ref(&service), &["--full-sync-period=1s"]);
    for tool in TOOLS {
        variant.feed(&lab.world.node1, tool, "restore", &["--noflush"], &foreign(tool));
    }
    let more = Service::new("another", 2, &[Pod::B]);
    serve(&mut lab.world, from_ref(&more));
    lab.manifests.apply(&more);
    lab.wait_for(lab.world.pod(Pod::C), cluster_address(&more, Family::V4), Proto::Tcp, &[Pod::B]);
    thread::sleep(Duration::from_millis(2500));
    for tool in TOOLS {
        let save = variant.save(&lab.world.node1, tool);
        for line in foreign(tool).lines().filter(|line| line.starts_with("-A") || line.starts_with(':')) {
            let line = line.split(" [").next().unwrap_or(line);
            assert!(save.contains(line), "{tool}: {line:?} is gone:\n{save}");
        }
    }
}

#[rstest]
fn a_sync_removes_the_canaries_of_kube_proxy_from_the_tables_it_writes(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let world = World::new();
    for tool in TOOLS {
        variant.feed(&world.node1, tool, "restore", &["--noflush"], CANARIES);
    }
    let manifests = Manifests::new(&[Service::new("any", 1, &[Pod::A])]);
    sync_once(&world.node1, variant, &manifests, USUAL);
    for tool in TOOLS {
        for table in ["nat", "filter"] {
            let save = variant.feed(&world.node1, tool, "save", &["-t", table], "");
            assert!(save.contains("KUBE-SERVICES") && !save.contains("KUBE-PROXY-CANARY"), "{tool}:\n{save}");
        }
    }
}

#[rstest]
fn whatever_is_deleted_by_hand_comes_back(
    #[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant,
) {
    let service = Service::new("stubborn", 1, &[Pod::A, Pod::B]);
    let lab = Lab::start(variant, from_ref(&service), &["--full-sync-period=1s"]);
    let from = lab.world.pod(Pod::C);
    type Damage<'a> = (&'a str, &'a dyn Fn(&str));
    let damages: [Damage<'_>; 3] = [
        ("all rules flushed", &|tool| {
            let all = "*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\nCOMMIT\n";
            variant.feed(&lab.world.node1, tool, "restore", &[], all);
        }),
        ("one jump deleted", &|tool| {
            let rule =
                "*nat\n-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
            variant.feed(&lab.world.node1, tool, "restore", &["--noflush"], rule);
        }),
        ("the chains of endpoints emptied", &|tool| {
            let save = variant.save(&lab.world.node1, tool);
            let chains = save.lines().filter(|line| line.starts_with(":KUBE-SEP-"));
            let text: String = chains.map(|line| format!("{line}\n")).collect();
            variant.feed(&lab.world.node1, tool, "restore", &["--noflush"], &format!("*nat\n{text}COMMIT\n"));
        }),
    ];
    for (what, damage) in damages {
        let before = TOOLS.map(|tool| lines(&variant.save(&lab.world.node1, tool)));
        TOOLS.iter().for_each(|tool| damage(tool));
        eventually(&format!("everything is back after {what}"), || {
            TOOLS.map(|tool| lines(&variant.save(&lab.world.node1, tool))).iter().zip(&before).all(|(now, before)| {
                let (mut now, mut before) = (now.clone(), before.clone());
                now.sort();
                before.sort();
                now == before
            })
        });
        for family in FAMILIES {
            let to = cluster_address(&service, family);
            assert_eq!(lab.answering(from, to, Proto::Tcp, 40), ["pod-a", "pod-b"], "after {what}");
        }
    }
}

#[rstest]
fn a_second_sync_changes_nothing(#[values(Variant::Nft, Variant::Legacy, Variant::CompactNft)] variant: Variant) {
    let world = World::new();
    let mut services: Vec<Service> =
        (1..20).map(|n| Service::new(&format!("svc-{n}"), n, &[Pod::A, Pod::R1, Pod::B])).collect();
    for service in &mut services {
        service.node_port = 30000 + u16::from(service.cluster_ip);
    }
    let manifests = Manifests::new(&services);
    sync_once(&world.node1, variant, &manifests, USUAL);
    let first = TOOLS.map(|tool| lines(&variant.save(&world.node1, tool)));
    sync_once(&world.node1, variant, &manifests, USUAL);
    for (tool, first) in TOOLS.iter().zip(first) {
        let second = lines(&variant.save(&world.node1, tool));
        let differing: Vec<_> = first.iter().zip(&second).filter(|(first, second)| first != second).collect();
        assert!(differing.is_empty() && first.len() == second.len(), "{tool}: {differing:#?}");
    }
}
