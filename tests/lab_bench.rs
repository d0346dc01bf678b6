//! `portolan bench` on a kernel with IPVS: both modes side by side.

use std::process::Command;

use portolan::bench::plan::{Mode, Scenario};
use portolan::bench::report::Report;

#[test]
fn ipvs_and_iptables_are_measured_side_by_side() {
    if !std::path::Path::new("/proc/net/ip_vs").exists() {
        assert!(std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
        println!("not run: this kernel has no ip_vs");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (json, html) = (directory.path().join("report.json"), directory.path().join("report.html"));
    let arguments =
        "bench --modes iptables-legacy,ipvs --services 10,50 --endpoints 2 --repeat 1 --duration 300ms --changes 5";
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.args(arguments.split(' ')).arg("--json").arg(&json).arg("--html").arg(&html);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let report: Report = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert!(report.iptables.values().all(|version| version.ends_with("(legacy)")), "{:?}", report.iptables);
    assert_eq!(report.modes(), [Mode::IptablesLegacy, Mode::Ipvs], "{:?}", report.skipped);
    for mode in report.modes() {
        for services in [10, 50] {
            let value = |scenario, what, stat| {
                let figure = report.figure(scenario, what, stat, services, mode);
                figure.unwrap_or_else(|| panic!("no {what}, {stat}, {services}, {mode:?}")).summary.median
            };
            assert!(value(Scenario::FirstSync, "all Services", "operations") > 3.0 * f64::from(services));
            let first = value(Scenario::FirstPacket, "any Service", "p50");
            assert!(1e-6 < first && first < 0.9, "{first}");
            assert!(value(Scenario::Connections, "without keep-alive", "requests per second") > 1.0);
            assert!(value(Scenario::OneChange, "endpoint replaced", "p50") > 1e-6);
            assert!(value(Scenario::Churn, "lag", "p99") > 1e-6);
        }
    }
    let tools = |mode| {
        let figure = report.figure(Scenario::FirstSync, "all Services", "processor time of tools", 50, mode);
        figure.unwrap().summary.median
    };
    // IPVS mode starts iptables for its few rules only.
    assert!(tools(Mode::Ipvs) > 0.0 && tools(Mode::IptablesLegacy) > 0.0);
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("class=\"ipvs\"") && page.contains("class=\"iptables-legacy\""));
}
