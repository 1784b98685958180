//! Curves as SVG: energies over time, free-energy profiles, losses.

use super::svg::{Anchor, GRID, INK, LABEL, Svg, TICK, TITLE, number, ticks};

/// One curve.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Name in the legend; empty for none.
    pub name: String,
    /// (x, y); points that are not finite interrupt the curve.
    pub points: Vec<(f64, f64)>,
    /// Half width of a band around the curve, per point; empty for none.
    pub errors: Vec<f64>,
}

/// A plot of curves over one axis.
#[derive(Clone, Debug, Default)]
pub struct LinePlot {
    /// Above the plot.
    pub title: String,
    /// Quantity and unit, for example `time / ps`.
    pub x_label: String,
    /// Quantity and unit.
    pub y_label: String,
    /// The curves, in the order of their colours.
    pub series: Vec<Series>,
    /// Range and ticks of the x axis; chosen after the data if left out.
    pub x_ticks: Option<Vec<f64>>,
    /// Logarithmic y axis; values ≤ 0 interrupt the curve.
    pub log_y: bool,
}

/// Okabe and Ito's colours, told apart by colour-blind readers too.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"];
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 58.0;

/// Draws `plot`.
pub fn line_plot(plot: &LinePlot) -> String {
    let scale_y = |y: f64| if plot.log_y { y.log10() } else { y };
    let finite = |(x, y): (f64, f64)| x.is_finite() && scale_y(y).is_finite();
    let mut x_range = Range::default();
    let mut y_range = Range::default();
    for series in &plot.series {
        for (i, &(x, y)) in series.points.iter().enumerate().filter(|(_, p)| finite(**p)) {
            x_range.include(x);
            let error = series.errors.get(i).copied().filter(|e| e.is_finite()).unwrap_or(0.0);
            for y in [y - error, y + error].into_iter().map(scale_y).filter(|y| y.is_finite()) {
                y_range.include(y);
            }
        }
    }
    let (x_values, x_decimals) = match &plot.x_ticks {
        Some(values) => (values.clone(), 0),
        None => ticks(x_range.ends().0, x_range.ends().1, 6),
    };
    if plot.x_ticks.is_some() {
        x_values.iter().for_each(|&v| x_range.include(v));
    }
    let (x_low, x_high) = x_range.ends();
    let (y_low, y_high) = y_range.padded(plot.log_y);
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let px = |x: f64| LEFT + width * (x - x_low) / (x_high - x_low);
    let py = |y: f64| TOP + height * (1.0 - (y - y_low) / (y_high - y_low));

    let mut svg = Svg::new(WIDTH, HEIGHT);
    svg.text((LEFT, 28.0), Anchor::Start, TITLE, &plot.title);
    let y_ticks = if plot.log_y { decades(y_low, y_high) } else { ticks(y_low, y_high, 5) };
    for &v in &y_ticks.0 {
        svg.line((LEFT, py(v)), (WIDTH - RIGHT, py(v)), GRID);
        let label = if plot.log_y { power_of_ten(v) } else { number(v, y_ticks.1) };
        svg.text((LEFT - 8.0, py(v) + 4.0), Anchor::End, TICK, &label);
    }
    for &v in &x_values {
        svg.line((px(v), HEIGHT - BOTTOM), (px(v), HEIGHT - BOTTOM + 5.0), INK);
        svg.text((px(v), HEIGHT - BOTTOM + 19.0), Anchor::Middle, TICK, &number(v, x_decimals));
    }
    for (k, series) in plot.series.iter().enumerate() {
        let colour = COLOURS[k % COLOURS.len()];
        for run in runs(series, &finite) {
            if !series.errors.is_empty() {
                let error = |i: usize| series.errors.get(i).copied().filter(|e| e.is_finite()).unwrap_or(0.0);
                let edge = |sign: f64| {
                    run.clone().map(move |i| {
                        let (x, y) = series.points[i];
                        let edge = scale_y(y + sign * error(i));
                        (px(x), py(if edge.is_finite() { edge } else { y_low }))
                    })
                };
                let outline: Vec<_> = edge(1.0).chain(edge(-1.0).rev()).collect();
                svg.area(&outline, colour);
            }
            let points: Vec<_> = run.map(|i| (px(series.points[i].0), py(scale_y(series.points[i].1)))).collect();
            svg.curve(&thinned(&points), colour);
        }
    }
    svg.line((LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM), INK);
    svg.line((LEFT, TOP), (LEFT, HEIGHT - BOTTOM), INK);
    svg.text((LEFT + width / 2.0, HEIGHT - 14.0), Anchor::Middle, LABEL, &plot.x_label);
    svg.text_upwards((20.0, TOP + height / 2.0), LABEL, &plot.y_label);
    legend(&mut svg, &plot.series);
    svg.finish()
}

/// Names right of the title, last one at the right edge.
fn legend(svg: &mut Svg, series: &[Series]) {
    let mut x = WIDTH - RIGHT;
    for (k, s) in series.iter().enumerate().rev().filter(|(_, s)| !s.name.is_empty()) {
        svg.text((x, 28.0), Anchor::End, LABEL, &s.name);
        // Letters of the usual sans-serif fonts are 0.56 em wide on average.
        x -= 0.56 * LABEL.size * s.name.chars().count() as f64 + 8.0;
        svg.curve(&[(x - 18.0, 24.0), (x, 24.0)], COLOURS[k % COLOURS.len()]);
        x -= 34.0;
    }
}

/// 10^v for an axis.
fn power_of_ten(v: f64) -> String {
    if v == v.round() && v.abs() > 4.0 {
        return format!("1e{v:.0}").replace('-', "−");
    }
    // Whole powers need −v decimals, those between one more.
    number(10f64.powf(v), (if v == v.round() { -v } else { 1.0 - v.floor() }).max(0.0) as usize)
}

/// Powers of ten, and steps between them where there are few.
fn decades(low: f64, high: f64) -> (Vec<f64>, usize) {
    let whole: Vec<f64> = ((low - 1e-9).ceil() as i32..=(high + 1e-9).floor() as i32).map(f64::from).collect();
    if whole.len() >= 2 {
        let every = whole.len().div_ceil(7);
        return (whole.into_iter().step_by(every).collect(), 0);
    }
    ticks(low, high, 3)
}

/// Smallest range that holds every value.
#[derive(Default)]
struct Range(Option<(f64, f64)>);

impl Range {
    fn include(&mut self, x: f64) {
        let (low, high) = self.0.unwrap_or((x, x));
        self.0 = Some((low.min(x), high.max(x)));
    }

    /// Never empty.
    fn ends(&self) -> (f64, f64) {
        let (low, high) = self.0.unwrap_or((0.0, 1.0));
        let least = 1e-9 * low.abs().max(high.abs()).max(1e-300);
        if high - low > least { (low, high) } else { (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0)) }
    }

    /// With a margin; a single value of a logarithmic axis has a third of a decade on either side.
    fn padded(&self, log: bool) -> (f64, f64) {
        if let (true, Some((low, high))) = (log, self.0)
            && high - low < 0.6
        {
            return (0.5 * (low + high) - 0.34, 0.5 * (low + high) + 0.34);
        }
        let (low, high) = self.ends();
        let pad = 0.04 * (high - low);
        (low - pad, high + pad)
    }
}

/// Stretches of points without a gap.
fn runs(series: &Series, finite: &impl Fn((f64, f64)) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, &p) in series.points.iter().enumerate() {
        if !finite(p) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == i => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

/// Of the points in one pixel column only first, lowest, highest and last: looks the same, and a million points stay small.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 4 * WIDTH as usize {
        return points.to_vec();
    }
    let mut kept = Vec::new();
    for column in points.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut few = [column.first(), column.iter().min_by(by_height), column.iter().max_by(by_height), column.last()];
        few.sort_by(|a, b| match (a, b) {
            (Some(a), Some(b)) => a.0.total_cmp(&b.0),
            _ => std::cmp::Ordering::Equal,
        });
        kept.extend(few.into_iter().flatten());
    }
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_any_data() {
        let plot = |points: Vec<(f64, f64)>, log_y| {
            let series = vec![Series { name: "a < b".into(), points, errors: Vec::new() }];
            line_plot(&LinePlot { title: "t".into(), series, log_y, ..LinePlot::default() })
        };
        for log_y in [false, true] {
            for points in [
                vec![],
                vec![(0.0, 0.0)],
                vec![(1.0, 5.0), (1.0, 5.0)],
                vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 1e300), (3.0, -1e300)],
                vec![(0.0, 1e-12), (1e9, 3e12)],
            ] {
                let text = plot(points.clone(), log_y);
                assert!(!text.contains("NaN") && !text.contains("inf"), "{points:?}: {text}");
                assert!(text.ends_with("</svg>\n"));
            }
        }
        assert!(plot(vec![(0.0, 1.0)], false).contains("a &lt; b"));
        // A gap makes two curves.
        let gap = plot(vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 2.0)], false);
        assert_eq!(gap.matches("<polyline").count(), 3);
    }

    #[test]
    fn long_series_stay_small_and_keep_their_extremes() {
        let points: Vec<(f64, f64)> = (0..200_000).map(|i| (f64::from(i), if i == 77_777 { 9.0 } else { f64::from(i % 3) })).collect();
        let series = vec![Series { points, ..Series::default() }];
        let text = line_plot(&LinePlot { series, ..LinePlot::default() });
        assert!(text.len() < 60_000, "{}", text.len());
        // The highest point lies 4 % of the range below the upper edge.
        let top = TOP + (HEIGHT - TOP - BOTTOM) * 0.04 / 1.08;
        assert!(text.contains(&format!(",{top:.2}")), "{top}");
    }
}
