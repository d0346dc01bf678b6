//! A report as text.

use std::fmt::Write;

use crate::bench::plan::Scenario;
use crate::bench::report::{Figure, Report};

/// Values that are left to the other forms of the report, so that the table can be read.
const DETAILS: &[&str] = &["p1", "p10", "operations", "peak"];

/// The table that is printed at the end: a line for each value and number of Services, a column for each mode, and in each cell the
/// median of the repetitions with its spread.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let modes = report.modes();
    let mut lines = vec![["", "", "Services"].map(str::to_owned).to_vec()];
    lines[0].extend(modes.iter().map(|mode| mode.as_str().to_owned()));
    let mut scenario: Option<Scenario> = None;
    for (of, what, stat, _) in report.rows().into_iter().filter(|(_, _, stat, _)| !DETAILS.contains(stat)) {
        if scenario.replace(of) != Some(of) {
            lines.push(vec![of.as_str().to_owned()]);
        }
        for services in &report.plan.services {
            let figures: Vec<_> = modes.iter().map(|mode| report.figure(of, what, stat, *services, *mode)).collect();
            if figures.iter().any(Option::is_some) {
                let mut line = vec![format!("  {what}"), stat.to_owned(), services.to_string()];
                line.extend(figures.into_iter().map(|figure| figure.map_or_else(|| "-".to_owned(), cell)));
                lines.push(line);
            }
        }
    }
    write_aligned(&lines, &mut out);
    out.push('\n');
    for remark in report.remarks() {
        let _always = writeln!(out, "{remark}");
    }
    out
}

/// Median and spread, marked if that is great.
pub fn cell(figure: &Figure) -> String {
    let mark = if figure.is_noisy() { " ~" } else { "" };
    let median = figure.unit.show(figure.summary.median);
    match figure.summary.count {
        1 => median,
        _ => format!("{median} ±{:.0} %{mark}", figure.summary.spread() * 100.0),
    }
}

/// Columns as wide as their widest cell; the first two to the left, the others to the right.
fn write_aligned(lines: &[Vec<String>], out: &mut String) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = lines.iter().filter(|line| line.len() > 1).filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn modes_stand_side_by_side_and_columns_are_aligned() {
        let text = table(&sample());
        let expected = [
            "                      Services  iptables-nft  iptables-legacy",
            "first-sync",
            "  all Services  time        10  1.00 ms ±0 %     1.00 ms ±0 %",
            "  all Services  time     10000   1.00 s ±0 %      1.00 s ±0 %",
            "first-packet",
            "  last Service  p50         10  40.6 µs ±1 %     40.7 µs ±1 %",
            "  last Service  p50      10000   140 µs ±0 %      240 µs ±0 %",
        ];
        assert_eq!(text.lines().take(7).collect::<Vec<_>>(), expected, "{text}");
        assert!(text.contains("ipvs was not measured"));
    }

    #[test]
    fn a_figure_that_spreads_is_marked() {
        let mut figure = sample().figures[0].clone();
        figure.summary.mad = figure.summary.median / 4.0;
        assert_eq!(cell(&figure), "1.00 ms ±25 % ~");
        figure.summary.count = 1;
        assert_eq!(cell(&figure), "1.00 ms");
    }
}
