//! What portolan may cost, and what it does cost: one table.
//!
//! Counts that are over their budget end it with status 1; times are printed and not judged, since they depend on the machine and
//! on what else it does. What needs rights or programs that are not there is left out, and the table says so. Settings, by
//! environment:
//!
//! - `PORTOLAN_BENCH_PROGRAM`: the program as it is shipped (`deploy/image/build.sh`); unless set, that of this build

#![allow(missing_docs, reason = "a program, not a library")]

#[path = "../../tests/support/api_server/mod.rs"]
mod api_server;
mod change;
mod daemon;
#[path = "../../tests/support/daemon.rs"]
mod daemon_support;
#[path = "../kernel/measure.rs"]
mod measure;
mod memory;
#[path = "../../tests/support/netns/mod.rs"]
mod netns;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use daemon::{Daemon, Start};
use measure::{measure_by_hand, measure_portolan, print_cells, run_self, variant_of};
use support::Mode;
use support::fleet::Fleet;
use table::{Table, megabytes};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const USUAL: Fleet = Fleet { services: 10_000, endpoints: 5 };
const WIDE: Fleet = Fleet { services: 5_000, endpoints: 50 };
const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["change", mode, services] => {
            let cost = change::run(mode_of(mode), services.parse()?)?;
            print_cells(&[
                ("time", format!("{:.0} µs", cost.time.as_secs_f64() * 1e6)),
                ("operations", format!("{:.2}", cost.operations)),
                ("sends", cost.sends.to_string()),
            ]);
        }
        ["memory", services, endpoints] => {
            let fleet = Fleet { services: services.parse()?, endpoints: endpoints.parse()? };
            print_cells(&memory::ipvs_without_kernel(fleet)?);
        }
        ["portolan", variant, services, limit] => {
            print_cells(&measure_portolan(variant_of(variant)?, Fleet::of(services.parse()?), limit.parse()?)?);
        }
        ["hand", variant, services, how] => {
            print_cells(&measure_by_hand(variant_of(variant)?, Fleet::of(services.parse()?), how == "in pieces")?);
        }
        _ => {
            let mut table = Table::default();
            measure_everything(&mut table)?;
            let over = table.print();
            if over > 0 {
                println!("\n{over} counts are over their budgets");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn mode_of(name: &str) -> Mode {
    if name == "Ipvs" { Mode::Ipvs } else { Mode::Iptables }
}

fn measure_everything(table: &mut Table) -> Outcome<()> {
    let program = std::env::var("PORTOLAN_BENCH_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_portolan").to_owned());
    println!("{program}");
    one_change(table)?;
    for fleet in [USUAL, WIDE] {
        let cells = run_self(&["memory", &fleet.services.to_string(), &fleet.endpoints.to_string()])?;
        let bytes = |name| cell(&cells, name).parse::<u64>();
        let what = format!("IPVS, engine alone, {}: resident memory", size(fleet));
        table.memory(&what, if fleet.endpoints > 5 { 60 } else { 30 }, bytes("resident")?);
        table.told(&what.replace("resident memory", "peak"), "", &format!("{:.1} MB", megabytes(bytes("peak")?)));
    }
    let bytes = std::fs::metadata(&program)?.len();
    let text = format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    table.count("the program", f64::from(12 << 20), "12 MiB", bytes as f64, &text);
    if rustix::process::geteuid().is_root() {
        real_kernel(table)?;
        daemons(table, &program)?;
    } else {
        table.left_out("the real kernel, the daemon", "wants root, to make network namespaces");
    }
    Ok(())
}

/// From the event to the operations.
fn one_change(table: &mut Table) -> Outcome<()> {
    for mode in Mode::BOTH {
        let mut counted = Vec::new();
        for services in [1_000, 10_000, 50_000] {
            counted.extend(change::instructions(mode, services)?);
        }
        let name = if mode == Mode::Ipvs { "IPVS" } else { "iptables" };
        let what = format!("{name}, one endpoint replaced: instructions among 10000 and 50000 Services against 1000");
        match counted[..] {
            [small, big, huge] => {
                let ratio = |of: u64| of as f64 / small as f64;
                let text = format!("{:.3}, {:.3} × {small}", ratio(big), ratio(huge));
                table.count(&what, 1.2, "1.2 ×", ratio(big).max(ratio(huge)), &text);
            }
            _ => table.left_out(&what, "wants valgrind on x86_64"),
        }
        let cells = run_self(&["change", &format!("{mode:?}"), "10000"])?;
        table.told(&format!("{name}, the same: time in user space, median"), "200 µs", cell(&cells, "time"));
        let operations: f64 = cell(&cells, "operations").parse()?;
        let sends: f64 = cell(&cells, "sends").parse()?;
        match mode {
            Mode::Iptables => {
                table.count("iptables, the same: processes", 1.0, "1", sends, &format!("{sends}"));
            }
            Mode::Ipvs => {
                let text = format!("{operations:.2} on average");
                table.count("IPVS, the same: messages to change the kernel", 2.0, "2", operations, &text);
                table.count("IPVS, the same: sends of them", 1.0, "1", sends, &format!("{sends}"));
            }
        }
    }
    Ok(())
}

/// The kernel of this machine, engine and tools alone.
fn real_kernel(table: &mut Table) -> Outcome<()> {
    for (variant, limit, how, first, change) in [
        ("nft", "500", "in pieces", "2.5 s", "0.09 s"),
        ("legacy", "18446744073709551615", "at once", "0.7 s", "0.3 s"),
    ] {
        let services = USUAL.services.to_string();
        let (own, hand) =
            (run_self(&["portolan", variant, &services, limit])?, run_self(&["hand", variant, &services, how])?);
        let seconds = |cells: &[(String, String)], label| -> Outcome<f64> {
            Ok(cell(cells, label).trim_end_matches(" s").parse()?)
        };
        for (label, budget) in [("first sync", first), ("one endpoint replaced", change)] {
            let ratio = seconds(&own, label)? / seconds(&hand, label)?;
            let text = format!("{}, {ratio:.2} × by hand", cell(&own, label));
            table.told(&format!("iptables-{variant}, {}: {label}", size(USUAL)), budget, &text);
        }
        table.told(&format!("iptables-{variant}: restores of the first sync"), "", cell(&own, "— restores"));
        let (operations, what) = (cell(&own, "— its operations"), "operations of the first sync after a restart");
        table.count(&format!("iptables-{variant}: {what}"), 0.0, "0", operations.parse()?, operations);
    }
    Ok(())
}

/// The program itself, with an API server.
fn daemons(table: &mut Table, program: &str) -> Outcome<()> {
    let mut idle = Vec::new();
    for variant in ["nft", "legacy"] {
        let mode = format!("--iptables-variant={variant}");
        let mut daemon = Daemon::start(program, &mode, USUAL)?;
        let start = daemon.first_sync()?;
        started(table, variant, USUAL, &start);
        let wide = Daemon::start(program, &mode, WIDE)?.first_sync()?;
        started(table, variant, WIDE, &wide);
        idle.push((variant, daemon));
    }
    let before: Vec<(u64, Duration)> =
        idle.iter().map(|(_, daemon)| Ok((daemon.processes(), daemon.processor_time()?))).collect::<Outcome<_>>()?;
    std::thread::sleep(MINUTE);
    for ((variant, daemon), (processes, time)) in idle.iter().zip(before) {
        let used = daemon.processor_time()? - time;
        let started = daemon.processes() - processes;
        let what = format!("iptables-{variant}, {}: a minute without changes", size(USUAL));
        table.count(&format!("{what}: processes"), 0.0, "0", started as f64, &started.to_string());
        let text = format!("{:.1} ms", used.as_secs_f64() * 1e3);
        table.told(&format!("{what}: processor time"), "10 ms", &text);
    }
    Ok(())
}

fn started(table: &mut Table, variant: &str, fleet: Fleet, start: &Start) {
    let what = format!("iptables-{variant}, {}", size(fleet));
    if fleet.endpoints > 5 {
        table.memory(&format!("{what}: resident memory"), 60, start.resident);
        table.told(&format!("{what}: peak"), "", &format!("{:.1} MB", megabytes(start.peak)));
    } else {
        table.memory(&format!("{what}: resident memory"), 30, start.resident);
        table.memory(&format!("{what}: peak until then"), 45, start.peak);
    }
    let text = format!(
        "{:.2} s (with it {:.2} s; reading {:.2} s, computing {:.2} s)",
        start.without_programming().as_secs_f64(),
        start.took.as_secs_f64(),
        start.dump.as_secs_f64(),
        start.compute.as_secs_f64()
    );
    table.told(&format!("{what}: start to first sync without programming"), "1 s", &text);
    let text = format!(
        "{} processes, {:.1} MB to them; {} requests, {:.1} MB from and to the API server",
        start.processes,
        megabytes(start.tool_bytes),
        start.requests,
        megabytes(start.api_bytes)
    );
    table.told(&format!("{what}: counts"), "", &text);
}

fn cell<'a>(cells: &'a [(String, String)], label: &str) -> &'a str {
    cells.iter().find(|(of, _)| of == label).map_or("", |(_, value)| value)
}

fn size(fleet: Fleet) -> String {
    format!("{} × {}", fleet.services, fleet.endpoints)
}
