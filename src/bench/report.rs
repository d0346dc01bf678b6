//! What was measured, and what it says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bench::facts::Facts;
use crate::bench::plan::{Mode, Plan, Run, Scenario};
use crate::bench::stats::{Summary, quantile, sorted};

/// The calibration loop always does the same. Above this spread of its times the machine was busy with other things.
pub const CALIBRATION_LIMIT: f64 = 0.05;
/// A figure whose repetitions spread more than this is marked.
pub const FIGURE_LIMIT: f64 = 0.15;

/// What a value counts. Values are in these units throughout; only tables and plots scale them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Processors: seconds of processor time per second.
    Cores,
    /// How often per second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

impl Unit {
    /// A value for people, with three figures.
    pub fn show(self, value: f64) -> String {
        let scaled = |scales: &[(f64, &str)]| {
            let fitting = scales.iter().find(|(scale, _)| value.abs() >= *scale).or(scales.last());
            fitting.map_or_else(String::new, |(scale, name)| format!("{} {name}", three_figures(value / scale)))
        };
        match self {
            Unit::Seconds => scaled(&[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]),
            Unit::Bytes => scaled(&[(1024.0 * 1024.0, "MiB"), (1024.0, "KiB")]),
            Unit::Cores => format!("{value:.3}"),
            Unit::PerSecond => format!("{}/s", three_figures(value)),
            Unit::Count => format!("{value:.0}"),
        }
    }
}

/// Three figures, without an exponent.
fn three_figures(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// One value of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The question that it answers.
    pub scenario: Scenario,
    /// What it is about: `endpoint replaced`, `last Service`.
    pub what: String,
    /// Which value of it: `p50`, `time`.
    pub stat: String,
    /// What it counts.
    pub unit: Unit,
    /// The value.
    pub value: f64,
}

/// The percentiles of times in seconds.
pub fn readings_of(scenario: Scenario, what: &str, percents: &[u8], seconds: &[f64]) -> Vec<Reading> {
    let sorted = sorted(seconds);
    let of = |percent: &u8| {
        let value = quantile(&sorted, f64::from(*percent) / 100.0)?;
        Some(Reading { scenario, what: what.to_owned(), stat: format!("p{percent}"), unit: Unit::Seconds, value })
    };
    percents.iter().filter_map(of).collect()
}

/// The same value of all repetitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The question that it answers.
    pub scenario: Scenario,
    /// What it is about.
    pub what: String,
    /// Which value of it.
    pub stat: String,
    /// What it counts.
    pub unit: Unit,
    /// With so many Services.
    pub services: u32,
    /// In this mode.
    pub mode: Mode,
    /// One value per repetition.
    pub values: Vec<f64>,
    /// What they have in common.
    pub summary: Summary,
}

impl Figure {
    /// Whether its repetitions differ so much that it says little.
    pub fn is_noisy(&self) -> bool {
        self.summary.spread() > FIGURE_LIMIT
    }
}

/// A mode that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The mode.
    pub mode: Mode,
    /// Why, in a sentence.
    pub why: String,
}

/// How steady the machine was: seconds that the same calculation took before each run and after the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The times.
    pub values: Vec<f64>,
    /// What they have in common; `None` of none.
    pub summary: Option<Summary>,
    /// Their spread is above [`CALIBRATION_LIMIT`].
    pub noisy: bool,
}

impl Calibration {
    /// Judges these times.
    pub fn of(values: Vec<f64>) -> Calibration {
        let summary = Summary::of(&values);
        let noisy = summary.is_some_and(|summary| summary.spread() > CALIBRATION_LIMIT);
        Calibration { values, summary, noisy }
    }
}

/// Everything about one benchmark. Its JSON is for programs: fields are added, not renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of portolan.
    pub portolan: String,
    /// When it began, in Unix time.
    pub started: u64,
    /// Seconds from beginning to end.
    pub took: f64,
    /// What was asked for.
    pub plan: Plan,
    /// The machine.
    pub facts: Facts,
    /// The version and variant of iptables that each measured mode used.
    pub iptables: BTreeMap<Mode, String>,
    /// Modes that were asked for and could not be measured.
    pub skipped: Vec<Skipped>,
    /// How steady the machine was.
    pub calibration: Calibration,
    /// What was measured, by scenario, subject, value, number of Services and mode.
    pub figures: Vec<Figure>,
}

impl Report {
    /// The modes that were measured.
    pub fn modes(&self) -> Vec<Mode> {
        self.plan.modes.iter().copied().filter(|mode| self.iptables.contains_key(mode)).collect()
    }

    /// What a reader has to know before the figures.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = self
            .skipped
            .iter()
            .map(|skipped| format!("{} was not measured: {}", skipped.mode.as_str(), skipped.why))
            .collect();
        if let Some(summary) = self.calibration.summary {
            let spread = format!("{:.1} %", summary.spread() * 100.0);
            let limit = CALIBRATION_LIMIT * 100.0;
            remarks.push(match self.calibration.noisy {
                true => format!(
                    "The machine was too noisy: the same calculation, done between all runs, took times that spread by {spread} (limit {limit:.0} %). Repeat this on a quiet machine before you rely on it."
                ),
                false => format!("The machine was steady: the same calculation, done between all runs, took times that spread by {spread} (limit {limit:.0} %)."),
            });
        }
        let noisy = self.figures.iter().filter(|figure| figure.is_noisy()).count();
        if noisy > 0 {
            remarks.push(format!(
                "{noisy} of {} figures spread by more than {:.0} % between repetitions; they are marked with ~.",
                self.figures.len(),
                FIGURE_LIMIT * 100.0
            ));
        }
        if self.plan.repeat < 3 {
            remarks.push("With fewer than three repetitions the spread says little: use --repeat.".to_owned());
        }
        remarks
    }

    /// The figure at this place, if it was measured.
    pub fn figure(&self, scenario: Scenario, what: &str, stat: &str, services: u32, mode: Mode) -> Option<&Figure> {
        let place = (scenario, what, stat, services, mode);
        self.figures.iter().find(|it| (it.scenario, it.what.as_str(), it.stat.as_str(), it.services, it.mode) == place)
    }

    /// What was measured, without numbers of Services and modes: scenario, subject, value and unit, in the order in which runs
    /// report it.
    pub fn rows(&self) -> Vec<(Scenario, &str, &str, Unit)> {
        let mut rows = Vec::new();
        for figure in &self.figures {
            let row = (figure.scenario, figure.what.as_str(), figure.stat.as_str(), figure.unit);
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows.sort_by_key(|(scenario, ..)| *scenario);
        rows
    }
}

/// Puts the readings of all repetitions together.
pub fn figures(runs: &[(Run, Vec<Reading>)]) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut places = BTreeMap::new();
    for (run, readings) in runs {
        for reading in readings {
            let place = (reading.scenario, reading.what.as_str(), reading.stat.as_str(), run.services, run.mode);
            let at = *places.entry(place).or_insert_with(|| {
                figures.push(Figure {
                    scenario: reading.scenario,
                    what: reading.what.clone(),
                    stat: reading.stat.clone(),
                    unit: reading.unit,
                    services: run.services,
                    mode: run.mode,
                    values: Vec::new(),
                    summary: Summary { count: 0, median: 0.0, mad: 0.0, least: 0.0, most: 0.0 },
                });
                figures.len() - 1
            });
            if let Some(figure) = figures.get_mut(at) {
                figure.values.push(reading.value);
            }
        }
    }
    for figure in &mut figures {
        if let Some(summary) = Summary::of(&figure.values) {
            figure.summary = summary;
        }
    }
    figures
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::plan::Effort;

    fn reading(what: &str, stat: &str, value: f64) -> Reading {
        Reading { scenario: Scenario::FirstPacket, what: what.into(), stat: stat.into(), unit: Unit::Seconds, value }
    }

    /// Two modes, two numbers of Services, two rounds; IPVS has no module.
    pub(crate) fn sample() -> Report {
        let mut runs = Vec::new();
        for round in 0..2 {
            for services in [10, 10_000] {
                for (mode, slow) in [(Mode::IptablesNft, 1e-8), (Mode::IptablesLegacy, 2e-8)] {
                    let p50 = 40e-6 + slow * f64::from(services) + 1e-6 * f64::from(round);
                    let readings = vec![
                        Reading {
                            scenario: Scenario::FirstSync,
                            what: "all Services".into(),
                            stat: "time".into(),
                            unit: Unit::Seconds,
                            value: f64::from(services) * 1e-4,
                        },
                        reading("last Service", "p50", p50),
                        reading("last Service", "p99", p50 * 2.0),
                    ];
                    runs.push((Run { round, services, mode }, readings));
                }
            }
        }
        let effort = Effort { scenarios: Scenario::ALL.to_vec(), endpoints: 5, seconds: 1.0, changes: 5, rate: 100.0 };
        Report {
            portolan: "0.1.0".into(),
            started: 1_700_000_000,
            took: 12.5,
            plan: Plan { modes: Mode::NAMED.to_vec(), services: vec![10, 10_000], repeat: 2, effort },
            facts: Facts { kernel: "6.1.0 <test>".into(), ..Facts::default() },
            iptables: [Mode::IptablesNft, Mode::IptablesLegacy].map(|mode| (mode, "1.8.9".to_owned())).into(),
            skipped: vec![Skipped { mode: Mode::Ipvs, why: "the kernel has no ip_vs".into() }],
            calibration: Calibration::of(vec![0.01, 0.0101, 0.0099]),
            figures: figures(&runs),
        }
    }

    #[test]
    fn repetitions_of_one_value_become_one_figure() {
        let report = sample();
        assert_eq!(report.figures.len(), 2 * 2 * 3);
        let figure = report.figure(Scenario::FirstPacket, "last Service", "p50", 10_000, Mode::IptablesLegacy).unwrap();
        assert_eq!(figure.values.len(), 2);
        assert!((figure.summary.median - 240.5e-6).abs() < 1e-12, "{figure:?}");
        assert_eq!(report.figure(Scenario::FirstPacket, "last Service", "p50", 10, Mode::Ipvs), None);
        let rows: Vec<_> = report.rows().into_iter().map(|(_, what, stat, _)| (what, stat)).collect();
        assert_eq!(rows, [("all Services", "time"), ("last Service", "p50"), ("last Service", "p99")]);
    }

    #[test]
    fn a_report_can_be_read_back() {
        let report = sample();
        let text = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&text).unwrap();
        let without_figures = |report: &Report| Report {
            figures: Vec::new(),
            calibration: Calibration::of(Vec::new()),
            ..report.clone()
        };
        assert_eq!(without_figures(&read), without_figures(&report));
        for (read, written) in read.figures.iter().zip(&report.figures) {
            assert_eq!((&read.what, read.services, read.mode), (&written.what, written.services, written.mode));
            assert!((read.summary.median / written.summary.median - 1.0).abs() < 1e-9, "{read:?} {written:?}");
        }
        assert!(text.contains(r#""iptables-nft":"1.8.9""#), "{text}");
    }

    #[test]
    fn noise_is_said() {
        let mut report = sample();
        let said = |report: &Report| report.remarks().join("\n");
        assert!(said(&report).contains("ipvs was not measured: the kernel has no ip_vs"));
        assert!(said(&report).contains("The machine was steady"));
        assert!(said(&report).contains("fewer than three"));
        report.calibration = Calibration::of(vec![0.01, 0.013, 0.008, 0.02]);
        report.figures[0].summary.mad = report.figures[0].summary.median * 0.2;
        assert!(said(&report).contains("too noisy"));
        assert!(said(&report).contains("1 of 12 figures"), "{}", said(&report));
    }

    #[test]
    fn values_are_shown_with_three_figures() {
        let shown = [(123.456, "123 s"), (1.5, "1.50 s"), (0.0123, "12.3 ms"), (45.6e-6, "45.6 µs"), (0.0, "0 µs")];
        for (value, text) in shown {
            assert_eq!(Unit::Seconds.show(value), text);
        }
        assert_eq!(Unit::Bytes.show(40.0 * 1024.0 * 1024.0), "40.0 MiB");
        assert_eq!(Unit::PerSecond.show(12345.6), "12346/s");
        assert_eq!((Unit::Cores.show(0.12345).as_str(), Unit::Count.show(7.0).as_str()), ("0.123", "7"));
    }

    #[test]
    fn percentiles_of_nothing_are_nothing() {
        assert_eq!(readings_of(Scenario::Churn, "lag", &[50, 99], &[]), []);
        let readings = readings_of(Scenario::Churn, "lag", &[50, 99], &[3.0, 1.0, 2.0]);
        assert_eq!((readings[0].value, readings[0].stat.as_str(), readings.len()), (2.0, "p50", 2));
    }
}
