//! A report as one HTML file that needs nothing else.

use std::fmt::{Arguments, Write};

use crate::bench::plan::{Mode, Scenario};
use crate::bench::plot::{Point, Series, escape, svg};
use crate::bench::report::{Report, Unit};
use crate::bench::table::cell;

const STYLE: &str = include_str!("report.css");

/// A plot of one value over the number of Services.
struct Plot {
    scenario: Scenario,
    what: &'static str,
    stat: &'static str,
    /// The values that the shaded band reaches from and to.
    band: Option<(&'static str, &'static str)>,
    title: &'static str,
}

const fn plot(
    scenario: Scenario,
    what: &'static str,
    stat: &'static str,
    band: Option<(&'static str, &'static str)>,
    title: &'static str,
) -> Plot {
    Plot { scenario, what, stat, band, title }
}

const PLOTS: &[Plot] = &[
    plot(
        Scenario::FirstPacket,
        "any Service",
        "p50",
        Some(("p10", "p90")),
        "A new connection to any Service: p50, p10 to p90 shaded",
    ),
    plot(
        Scenario::FirstPacket,
        "last Service",
        "p50",
        Some(("p10", "p90")),
        "A new connection to the last Service: p50, p10 to p90 shaded",
    ),
    plot(
        Scenario::FirstPacket,
        "first Service",
        "p50",
        Some(("p10", "p90")),
        "A new connection to the first Service: p50, p10 to p90 shaded",
    ),
    plot(Scenario::FirstSync, "all Services", "time", None, "The first sync of all Services"),
    plot(
        Scenario::OneChange,
        "endpoint replaced",
        "p50",
        Some(("p50", "p99")),
        "One endpoint replaced: p50, up to p99 shaded",
    ),
    plot(Scenario::OneChange, "Service added", "p50", Some(("p50", "p99")), "One Service added: p50, up to p99 shaded"),
    plot(
        Scenario::OneChange,
        "Service removed",
        "p50",
        Some(("p50", "p99")),
        "One Service removed: p50, up to p99 shaded",
    ),
    plot(Scenario::Churn, "lag", "p50", Some(("p50", "p99")), "Lag behind a stream of changes: p50, up to p99 shaded"),
    plot(Scenario::Churn, "processors", "with tools", None, "Processors used by a stream of changes"),
    plot(
        Scenario::Connections,
        "without keep-alive",
        "requests per second",
        None,
        "Requests per second, a connection each",
    ),
    plot(
        Scenario::Connections,
        "without keep-alive",
        "processor time per request",
        None,
        "Processor time per request, a connection each",
    ),
    plot(Scenario::Connections, "with keep-alive", "requests per second", None, "Requests per second with keep-alive"),
    plot(Scenario::Memory, "after the first sync", "resident", None, "Memory after the first sync"),
];

/// The page.
pub fn html(report: &Report) -> String {
    let mut out = String::new();
    put(&mut out, format_args!("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">"));
    put(&mut out, format_args!("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"));
    put(&mut out, format_args!("<title>portolan bench</title>\n<style>\n{STYLE}</style>\n</head>\n<body>"));
    put(&mut out, format_args!("<h1>portolan bench</h1>"));
    summary(report, &mut out);
    for remark in report.remarks() {
        let class = if remark.contains("too noisy") { "warning" } else { "remark" };
        put(&mut out, format_args!("<p class=\"{class}\">{}</p>", escape(&remark)));
    }
    plots(report, &mut out);
    figures(report, &mut out);
    machine(report, &mut out);
    put(&mut out, format_args!("</body>\n</html>"));
    out
}

fn summary(report: &Report, out: &mut String) {
    let effort = &report.plan.effort;
    put(
        out,
        format_args!(
            "<p>portolan {}, {}. {} endpoints for each Service, {} repetitions, {} s for each part. Linux {}.</p>",
            escape(&report.portolan),
            date(report.started),
            effort.endpoints,
            report.plan.repeat,
            effort.seconds,
            escape(report.facts.kernel.split(' ').next().unwrap_or_default()),
        ),
    );
}

fn plots(report: &Report, out: &mut String) {
    let modes = report.modes();
    put(out, format_args!("<h2>Against the number of Services</h2>"));
    put(
        out,
        format_args!(
            "<p>Both axes are logarithmic. Points are medians of the repetitions, whiskers reach from the least to the most of them.</p>"
        ),
    );
    out.push_str("<p class=\"legend\">");
    for mode in &modes {
        let name = mode.as_str();
        let _always = write!(
            out,
            "<span class=\"{name}\"><svg viewBox=\"0 0 24 10\"><path class=\"line\" d=\"M0 5H24\"/></svg>{name}</span>"
        );
    }
    out.push_str("</p>\n<div class=\"plots\">\n");
    for plot in PLOTS {
        let series: Vec<Series> = modes.iter().map(|mode| series(report, plot, *mode)).collect();
        let unit = report
            .rows()
            .into_iter()
            .find(|(of, what, stat, _)| (*of, *what, *stat) == (plot.scenario, plot.what, plot.stat));
        let picture = unit.map(|(.., unit)| svg(plot.title, unit, &series)).unwrap_or_default();
        if !picture.is_empty() {
            put(out, format_args!("<figure><figcaption>{}</figcaption>\n{picture}</figure>", escape(plot.title)));
        }
    }
    put(out, format_args!("</div>"));
}

fn series(report: &Report, plot: &Plot, mode: Mode) -> Series {
    let mut services = report.plan.services.clone();
    services.sort_unstable();
    let points = services.iter().filter_map(|services| {
        let find = |stat| report.figure(plot.scenario, plot.what, stat, *services, mode).map(|figure| &figure.summary);
        let found = find(plot.stat)?;
        let band = plot.band.and_then(|(low, high)| Some((find(low)?.median, find(high)?.median)));
        Some(Point { x: f64::from(*services), y: found.median, whisker: (found.least, found.most), band })
    });
    Series { name: mode.as_str().to_owned(), class: mode.as_str().to_owned(), points: points.collect() }
}

fn figures(report: &Report, out: &mut String) {
    let modes = report.modes();
    put(out, format_args!("<h2>All figures</h2>"));
    put(
        out,
        format_args!(
            "<p>Medians of the repetitions; ± is the median distance from the median, and ~ marks figures for which that is great.</p>"
        ),
    );
    let mut rows = report.rows();
    for scenario in Scenario::ALL {
        let (of, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(of, ..)| *of == scenario);
        rows = rest;
        if of.is_empty() {
            continue;
        }
        let names: String = modes.iter().map(|mode| format!("<th>{}</th>", mode.as_str())).collect();
        put(
            out,
            format_args!(
                "<h3>{}</h3>\n<table>\n<tr><th></th><th></th><th>Services</th>{names}</tr>",
                scenario.as_str()
            ),
        );
        for (scenario, what, stat, _) in of {
            for services in &report.plan.services {
                let cells = modes.iter().map(|mode| {
                    let figure = report.figure(scenario, what, stat, *services, *mode);
                    format!("<td>{}</td>", figure.map_or_else(String::new, |figure| escape(&cell(figure))))
                });
                let cells: String = cells.collect();
                put(
                    out,
                    format_args!(
                        "<tr><th>{}</th><th>{}</th><td>{services}</td>{cells}</tr>",
                        escape(what),
                        escape(stat)
                    ),
                );
            }
        }
        put(out, format_args!("</table>"));
    }
}

fn machine(report: &Report, out: &mut String) {
    let facts = &report.facts;
    put(out, format_args!("<h2>The machine</h2>\n<table class=\"facts\">"));
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            put(out, format_args!("<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value)));
        }
    };
    row("kernel", &facts.kernel);
    row("architecture", &facts.machine);
    row("processor", &facts.processor);
    row("processors", &facts.processors.to_string());
    row("governor of frequency", facts.governor.as_deref().unwrap_or_default());
    row("memory", &Unit::Bytes.show(facts.memory as f64));
    row("load average at the beginning", &facts.load);
    for (mode, version) in &report.iptables {
        row(&format!("iptables of {}", mode.as_str()), version);
    }
    row("modules loaded", &facts.modules.join(" "));
    for (name, value) in &facts.settings {
        row(name, value);
    }
    if let Some(summary) = report.calibration.summary {
        let [median, least, most] =
            [summary.median, summary.least, summary.most].map(|value| Unit::Seconds.show(value));
        row("calibration", &format!("{median}, {least} to {most}, {} times", summary.count));
    }
    put(out, format_args!("</table>"));
}

/// The day of a Unix time, in UTC: the algorithm of civil days in the proleptic Gregorian calendar.
fn date(seconds: u64) -> String {
    let days = i64::try_from(seconds / 86_400).unwrap_or_default() + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

fn put(out: &mut String, line: Arguments<'_>) {
    // Writing to a string does not fail.
    let _always = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn the_page_holds_plots_figures_and_facts_and_needs_nothing_else() {
        let page = html(&sample());
        for part in [
            "<svg",
            "A new connection to the last Service",
            "iptables-legacy",
            "6.1.0 &lt;test&gt;",
            "1.8.9",
            "240 µs",
            "2023-11-14",
        ] {
            assert!(page.contains(part), "no {part}");
        }
        for outside in ["http://", "https://", "src=", "href=", "@import", "url(", "<script", "<test>"] {
            assert!(!page.contains(outside), "{outside}");
        }
        for tag in ["table", "figure", "svg", "tr", "td", "p"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn every_mode_has_a_colour() {
        for mode in Mode::ALL {
            assert!(STYLE.contains(&format!(".{} ", mode.as_str())), "{}", mode.as_str());
        }
    }

    #[test]
    fn days_are_counted_right() {
        let days = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_164_800, "2024-02-29"),
            (4_102_444_799, "2099-12-31"),
        ];
        for (seconds, day) in days {
            assert_eq!(date(seconds), day);
        }
    }
}
