//! `portolan bench` on the real kernel: it measures, reports, and leaves nothing behind. Wants root.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portolan::bench::plan::{Mode, Scenario};
use portolan::bench::report::Report;

fn bench(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.arg("bench").args(arguments.split_whitespace());
    command
}

/// The network namespaces of all processes that begin with the given one.
fn namespaces_of(process: u32) -> BTreeSet<String> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(namespaces_of);
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let own = tasks.filter_map(|task| fs::read_link(task.path().join("ns/net")).ok());
    own.map(|link| link.display().to_string()).chain(below).collect()
}

/// Whether any process is in one of these namespaces.
fn in_use(namespaces: &BTreeSet<String>) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut links = processes.filter_map(|process| fs::read_link(process.path().join("ns/net")).ok());
    links.any(|link| namespaces.contains(&link.display().to_string()))
}

fn own_rules() -> Vec<String> {
    ["iptables-nft-save", "iptables-legacy-save"]
        .map(|program| {
            let output = Command::new(program).output().unwrap();
            String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("-A")).collect()
        })
        .to_vec()
}

#[test]
fn a_small_benchmark_measures_every_scenario_and_leaves_the_rules_of_this_namespace_alone() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let rules = own_rules();
    let html = directory.path().join("report.html");
    let arguments =
        "--modes iptables --layouts kube-proxy,compact --services 10,100 --repeat 1 --duration 300ms --changes 6";
    let output = bench(arguments).arg("--json").arg(&json).arg("--html").arg(&html).output().unwrap();
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert_eq!(own_rules(), rules);

    let page = fs::read_to_string(&html).unwrap();
    assert!(page.matches("<figure>").count() > 8 && page.matches("<circle").count() > 20, "{page}");
    let report: Report = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let modes = report.modes();
    assert!(!modes.is_empty() && !modes.contains(&Mode::Ipvs), "{modes:?}, {:?}", report.skipped);
    let value = |scenario, what: &str, stat: &str, services, mode| {
        let figure = report.figure(scenario, what, stat, services, mode);
        figure.unwrap_or_else(|| panic!("no {what}, {stat}")).summary.median
    };
    for mode in modes {
        for services in [10, 100] {
            let value = |scenario, what, stat| value(scenario, what, stat, services, mode);
            assert!(value(Scenario::FirstSync, "all Services", "operations") > f64::from(services));
            assert!(value(Scenario::FirstSync, "all Services", "time") > 0.001);
            for what in ["endpoint replaced", "Service removed", "Service added"] {
                let times = ["p50", "p90", "p99"].map(|stat| value(Scenario::OneChange, what, stat));
                assert!(0.0001 < times[0] && times.is_sorted(), "{what}: {times:?}");
            }
            for what in ["first Service", "middle Service", "last Service", "any Service"] {
                let times = ["p1", "p50", "p90", "p99"].map(|stat| value(Scenario::FirstPacket, what, stat));
                // A connection takes system calls, and no packet has to be sent twice, which takes a second.
                assert!(1e-6 < times[0] && times.is_sorted() && times[1] < 0.9, "{what}: {times:?}");
            }
            let rate = |what| value(Scenario::Connections, what, "requests per second");
            assert!(rate("without keep-alive") > 10.0 && rate("with keep-alive") > 10.0);
            assert!(value(Scenario::Connections, "without keep-alive", "processor time per request") > 1e-6);
            assert!(value(Scenario::Churn, "lag", "p50") > 0.0001);
            assert!(value(Scenario::Churn, "processors", "with tools") > 0.0);
            assert!(value(Scenario::Memory, "after the first sync", "resident") > 1024.0 * 1024.0);
            assert!(said.contains(mode.as_str()), "{said}");
            assert!(told.contains(&format!("{}, {services} Services: first packet", mode.as_str())), "{told}");
        }
    }
    assert!(report.calibration.values.len() >= 3, "{:?}", report.calibration);
    assert!(report.took > 0.1 && report.facts.memory > 0);
}

#[test]
fn nothing_is_left_when_it_is_killed() {
    let mut child = bench("--modes iptables --services 10 --scenarios first-packet --duration 10m --repeat 1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let measuring = lines.map_while(Result::ok).find(|line| line.contains("first packet"));
    assert!(measuring.is_some(), "it never came to measuring");
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let deadline = Instant::now() + Duration::from_secs(60);
    let namespaces = loop {
        let mut namespaces = namespaces_of(child.id());
        // The node's, and the client's as soon as it sends.
        if namespaces.remove(&own) && namespaces.len() >= 2 {
            break namespaces;
        }
        assert!(Instant::now() < deadline, "{namespaces:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(in_use(&namespaces));
    child.kill().unwrap();
    child.wait().unwrap();
    while in_use(&namespaces) {
        assert!(Instant::now() < deadline, "a process is still in {namespaces:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_refused_in_a_sentence() {
    let output = bench("--services 1000000 --endpoints 1000 --repeat 1").output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("no addresses for so many"), "{told}");
}
