//! Plots as SVG, to stand inside an HTML page: a line for each mode over the number of Services, both axes logarithmic.

use std::fmt::Write;

use crate::bench::report::Unit;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Half the width of the bar at the end of a whisker.
const BAR: f64 = 4.0;
/// With more ticks than this only powers of ten have labels.
const MOST_TICKS: usize = 9;

/// A point of a line. All values are greater than 0, or the point is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The number of Services.
    pub x: f64,
    /// The median of the repetitions.
    pub y: f64,
    /// The least and the most of the repetitions: a whisker.
    pub whisker: (f64, f64),
    /// What the shaded band covers here, if there is one.
    pub band: Option<(f64, f64)>,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// The class of its elements, which gives it its colour.
    pub class: String,
    /// From left to right.
    pub points: Vec<Point>,
}

/// An axis with a logarithmic scale.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    length: f64,
}

impl Axis {
    /// Covers these values and some room around them; `None` without values.
    fn covering(values: impl Iterator<Item = f64>, start: f64, length: f64) -> Option<Axis> {
        let logarithms: Vec<f64> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
        let from = logarithms.iter().copied().reduce(f64::min)?;
        let to = logarithms.iter().copied().reduce(f64::max)?;
        // A single value gets half a power of ten on both sides.
        let room = if to - from < 0.3 { 0.25 } else { (to - from) * 0.05 };
        Some(Axis { from: from - room, to: to + room, start, length })
    }

    fn place(&self, value: f64) -> f64 {
        self.start + (value.log10() - self.from) / (self.to - self.from) * self.length
    }

    /// Round values on the axis: powers of ten, and twice and five times those where there are few.
    fn ticks(&self) -> Vec<f64> {
        let powers = self.from.floor() as i32..=self.to.ceil() as i32;
        let of = |steps: &[f64]| -> Vec<f64> {
            let all = powers.clone().flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
            all.filter(|value| (self.from..=self.to).contains(&value.log10())).collect()
        };
        let fine = of(&[1.0, 2.0, 5.0]);
        if fine.len() <= MOST_TICKS { fine } else { of(&[1.0]) }
    }
}

/// The plot; empty if there is nothing to show.
pub fn svg(title: &str, unit: Unit, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points).filter(|point| point.y > 0.0);
    let heights = points().flat_map(|point| {
        let band = point.band.map_or([point.y; 2], |(low, high)| [low, high]);
        [point.y, point.whisker.0, point.whisker.1].into_iter().chain(band)
    });
    let x = Axis::covering(points().map(|point| point.x), LEFT, WIDTH - LEFT - RIGHT);
    // Upwards is towards 0 in SVG.
    let y = Axis::covering(heights, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM));
    let (Some(x), Some(y)) = (x, y) else { return String::new() };
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escape(title));
    grid(&x, &y, unit, &mut out);
    for series in series {
        line(series, &x, &y, unit, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

fn grid(x: &Axis, y: &Axis, unit: Unit, out: &mut String) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for tick in x.ticks() {
        let at = x.place(tick);
        put(out, format_args!("<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/>"));
        put(out, format_args!("<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>", bottom + 15.0));
    }
    for tick in y.ticks() {
        let at = y.place(tick);
        put(out, format_args!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>"));
        let label = escape(&shorten(&unit.show(tick)));
        put(
            out,
            format_args!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, at + 4.0),
        );
    }
    put(out, format_args!("<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>"));
    let middle = f64::midpoint(LEFT, right);
    put(out, format_args!("<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">Services</text>", HEIGHT - 8.0));
}

fn line(series: &Series, x: &Axis, y: &Axis, unit: Unit, out: &mut String) {
    let points: Vec<Point> = series.points.iter().copied().filter(|point| point.y > 0.0).collect();
    put(out, format_args!("<g class=\"{}\">", escape(&series.class)));
    let above = points.iter().filter_map(|point| Some((point.x, point.band?.1)));
    let below = points.iter().rev().filter_map(|point| Some((point.x, point.band?.0)));
    let outline: Vec<(f64, f64)> = above.chain(below).filter(|(_, value)| *value > 0.0).collect();
    if outline.len() > 2 {
        put(out, format_args!("<path class=\"band\" d=\"{}Z\"/>", path(&outline, x, y)));
    }
    let middle: Vec<(f64, f64)> = points.iter().map(|point| (point.x, point.y)).collect();
    put(out, format_args!("<path class=\"line\" d=\"{}\"/>", path(&middle, x, y)));
    for point in &points {
        let (low, high) = point.whisker;
        let (across, height) = (x.place(point.x), y.place(point.y));
        if 0.0 < low && low < high {
            let (low, high) = (y.place(low), y.place(high));
            let (left, width) = (across - BAR, 2.0 * BAR);
            put(
                out,
                format_args!(
                    "<path class=\"whisker\" d=\"M{across:.1} {low:.1}V{high:.1}M{left:.1} {low:.1}h{width}M{left:.1} {high:.1}h{width}\"/>"
                ),
            );
        }
        let told = format!("{}, {} Services: {}", series.name, point.x, unit.show(point.y));
        put(
            out,
            format_args!(
                "<circle cx=\"{across:.1}\" cy=\"{height:.1}\" r=\"3\"><title>{}</title></circle>",
                escape(&told)
            ),
        );
    }
    put(out, format_args!("</g>"));
}

fn path(points: &[(f64, f64)], x: &Axis, y: &Axis) -> String {
    let steps = points.iter().enumerate().map(|(at, (across, height))| {
        let letter = if at == 0 { 'M' } else { 'L' };
        format!("{letter}{:.1} {:.1}", x.place(*across), y.place(*height))
    });
    steps.collect()
}

/// `1.00 ms` is `1 ms` on an axis.
fn shorten(value: &str) -> String {
    let (number, unit) = value.split_at(value.find([' ', '/']).unwrap_or(value.len()));
    let short = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    format!("{short}{unit}")
}

/// Text that may stand in HTML, also in attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _always = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64) -> Point {
        Point { x, y, whisker: (y * 0.9, y * 1.2), band: Some((y / 2.0, y * 2.0)) }
    }

    fn series(points: Vec<Point>) -> Series {
        Series { name: "ipvs".into(), class: "ipvs".into(), points }
    }

    #[test]
    fn equal_ratios_have_equal_distances() {
        let axis = Axis::covering([10.0, 10_000.0].into_iter(), 0.0, 300.0).unwrap();
        let step = axis.place(100.0) - axis.place(10.0);
        assert!((axis.place(10_000.0) - axis.place(1000.0) - step).abs() < 1e-9);
        assert!(axis.place(10.0) > 0.0 && axis.place(10_000.0) < 300.0);
    }

    #[test]
    fn ticks_are_round_and_there_are_some_for_any_range() {
        let ticks = |values: &[f64]| Axis::covering(values.iter().copied(), 0.0, 1.0).unwrap().ticks();
        assert_eq!(ticks(&[10.0, 30_000.0]), [10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!(ticks(&[10.0, 1000.0]), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        assert!(!ticks(&[37.0]).is_empty());
        assert!(Axis::covering([0.0].into_iter(), 0.0, 1.0).is_none());
    }

    #[test]
    fn a_plot_shows_lines_bands_whiskers_and_labels() {
        let text = svg("a < b", Unit::Seconds, &[series(vec![point(10.0, 4e-5), point(1000.0, 8e-5)])]);
        for part in [
            "class=\"band\"",
            "class=\"line\"",
            "class=\"whisker\"",
            "a &lt; b",
            ">100<",
            ">50 µs<",
            "Services: 80.0 µs",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn nothing_and_zeros_make_no_plot_and_one_point_makes_one() {
        assert_eq!(svg("", Unit::Seconds, &[]), "");
        assert_eq!(svg("", Unit::Seconds, &[series(vec![point(10.0, 0.0)])]), "");
        let text = svg("", Unit::PerSecond, &[series(vec![point(10.0, 5.0), point(100.0, 0.0)])]);
        assert_eq!(text.matches("<circle").count(), 1);
        assert!(!text.contains("NaN"), "{text}");
    }
}
