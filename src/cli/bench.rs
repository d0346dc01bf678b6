//! `portolan bench`: what the operator asks for, and how it is shown.

use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::bench::plan::{Effort, Mode, Plan, Scenario};
use crate::bench::report::Report;
use crate::bench::{self, cell, html, table};
use crate::config::duration::{GoDuration, parse_duration};
use crate::iptables::Layout;

/// Both variants of iptables.
const IPTABLES: &str = "iptables";
const KUBE_PROXY: &str = "kube-proxy";
const COMPACT: &str = "compact";

/// What `portolan bench` is told.
#[derive(Debug, Args)]
pub(super) struct BenchFlags {
    /// Modes to measure side by side; iptables means both of its variants. One that this kernel cannot do is left out, and
    /// the report says why
    #[arg(long, value_name = "MODES", value_delimiter = ',', default_value = "iptables,ipvs",
          value_parser = PossibleValuesParser::new([IPTABLES].into_iter().chain(Mode::NAMED.map(Mode::as_str))))]
    modes: Vec<String>,
    /// Layouts of the rules of iptables to measure side by side, as --iptables-layout knows them
    #[arg(long, value_name = "LAYOUTS", value_delimiter = ',', default_value = KUBE_PROXY,
          value_parser = PossibleValuesParser::new([KUBE_PROXY, COMPACT]))]
    layouts: Vec<String>,
    /// Questions to answer
    #[arg(long, value_name = "SCENARIOS", value_delimiter = ',', default_values = Scenario::ALL.map(Scenario::as_str),
          value_parser = PossibleValuesParser::new(Scenario::ALL.map(Scenario::as_str)))]
    scenarios: Vec<String>,
    /// Numbers of Services
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "10,100,1000,10000",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    services: Vec<u32>,
    /// Endpoints of each Service
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    endpoints: u32,
    /// How often everything is measured; medians and spread are over these repetitions
    #[arg(long, value_name = "TIMES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// How long each part measures that measures for a time: changes of each kind, a stream of changes, new connections, requests with
    /// and without keep-alive
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration)]
    duration: GoDuration,
    /// The most changes of each kind in the scenario one-change
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    changes: u32,
    /// Changes per second in the scenario churn
    #[arg(long, value_name = "PER-SECOND", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    churn_rate: u32,
    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots to this file: one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Measures, and prints a table. Progress goes to standard error.
pub(super) fn bench(flags: &BenchFlags) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark makes network namespaces, and for that it has to be run as root");
    }
    let report = bench::run(&plan(flags)?, |line| eprintln!("{line}"))?;
    // Files first: they are worth more than the table, should standard output be closed.
    write_files(flags, &report)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", table::table(&report)).context("standard output")
}

fn write_files(flags: &BenchFlags, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &flags.json {
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &flags.html {
        std::fs::write(path, html::html(report)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// What the processes of the benchmark are started with: one run, ordered by standard input, told on standard output.
pub(super) fn bench_run() -> anyhow::Result<()> {
    let mut order = String::new();
    std::io::stdin().read_to_string(&mut order).context("standard input")?;
    cell::run(&order, |message| match serde_json::to_string(&message) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("{error}"),
    })?;
    Ok(())
}

fn plan(flags: &BenchFlags) -> anyhow::Result<Plan> {
    let seconds = flags.duration.to_std().context("--duration must not be negative")?.as_secs_f64();
    if seconds == 0.0 {
        bail!("--duration must not be 0");
    }
    let effort = Effort {
        scenarios: unique(flags.scenarios.iter().filter_map(|word| Scenario::parse(word))),
        endpoints: flags.endpoints,
        seconds,
        changes: flags.changes,
        rate: f64::from(flags.churn_rate),
    };
    let layouts = flags.layouts.iter().map(|word| if word == COMPACT { Layout::Compact } else { Layout::KubeProxy });
    let named: Vec<Mode> = flags.modes.iter().filter_map(|word| Mode::parse(word)).flatten().collect();
    let modes = unique(layouts.flat_map(|layout| named.iter().map(move |mode| mode.with_layout(layout))));
    Ok(Plan { modes, services: unique(flags.services.iter().copied()), repeat: flags.repeat, effort })
}

/// The values in their order, each once.
fn unique<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    values.into_iter().fold(Vec::new(), |mut unique, value| {
        if !unique.contains(&value) {
            unique.push(value);
        }
        unique
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: BenchFlags,
    }

    fn planned(line: &str) -> anyhow::Result<Plan> {
        plan(&Line::try_parse_from(line.split(' '))?.flags)
    }

    #[test]
    fn lists_are_read_and_what_is_named_twice_is_measured_once() {
        let line =
            "bench --modes ipvs,iptables,iptables-nft --services 10,100,10 --scenarios memory,churn --duration 1500ms";
        let plan = planned(line).unwrap();
        assert_eq!(plan.modes, [Mode::Ipvs, Mode::IptablesNft, Mode::IptablesLegacy]);
        assert_eq!(plan.services, [10, 100]);
        assert_eq!(plan.effort.scenarios, [Scenario::Memory, Scenario::Churn]);
        assert_eq!((plan.effort.seconds, plan.effort.rate), (1.5, 100.0));
    }

    #[test]
    fn without_flags_everything_is_measured() {
        let plan = planned("bench").unwrap();
        assert_eq!(plan.modes, Mode::NAMED);
        assert_eq!(plan.effort.scenarios, Scenario::ALL);
        assert_eq!(plan.services, [10, 100, 1000, 10_000]);
    }

    #[test]
    fn each_layout_of_iptables_stands_beside_the_other_and_ipvs_has_one() {
        let plan = planned("bench --modes iptables-nft,ipvs --layouts kube-proxy,compact").unwrap();
        assert_eq!(plan.modes, [Mode::IptablesNft, Mode::Ipvs, Mode::IptablesNftCompact]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for line in [
            "--modes nftables",
            "--layouts flat",
            "--services 0",
            "--duration -1s",
            "--duration=0s",
            "--scenarios all",
            "--repeat 0",
        ] {
            assert!(planned(&format!("bench {line}")).is_err(), "{line}");
        }
    }
}
