//! What `scorefield consistency` writes: numbers as JSON and CSV, and one page of HTML that holds everything.

use super::free_energy::{LEVELS, colour};
use super::plots::{LinePlot, Series, line_plot};
use super::svg::{Anchor, INK, LABEL, Svg, TICK, TITLE, escape, number, ticks};
use crate::analysis::divergence::Grid;
use crate::consistency::{Comparison, Outcome, SetReport, Value};
use std::fmt::Write;

/// Free energies above this many kT share the last colour.
const HIGHEST_KT: f64 = 8.0;
/// Bins of marginals and bond lengths.
const MARGINAL_BINS: usize = 100;
/// Frames of a time series that are drawn.
const MOST_DRAWN: usize = 4000;
/// Bonds whose histograms are drawn.
const MOST_BONDS: usize = 12;

/// A curve of the Fokker–Planck residual over diffusion time, for the page.
#[derive(Clone, Debug, Default)]
pub struct ResidualCurve {
    /// (t, residual per dimension).
    pub points: Vec<(f64, f64)>,
}

/// Files of a report: names and contents.
///
/// # Errors
/// Where numbers cannot be written as JSON.
pub fn files(
    outcome: &Outcome,
    title: &str,
    residual: Option<&ResidualCurve>,
    record: &serde_json::Value,
) -> serde_json::Result<Vec<(String, String)>> {
    let mut whole = serde_json::to_value(&outcome.comparison)?;
    if let (Some(whole), Some(curve)) = (whole.as_object_mut(), residual) {
        let points: Vec<[f64; 2]> = curve.points.iter().map(|&(t, r)| [t, r]).collect();
        whole.insert("fokker_planck_residual".into(), serde_json::to_value(points)?);
    }
    if let (Some(whole), Some(record)) = (whole.as_object_mut(), record.as_object()) {
        whole.extend(record.clone());
    }
    Ok(vec![
        ("report.json".into(), serde_json::to_string_pretty(&whole)? + "\n"),
        ("metrics.csv".into(), metrics_csv(&outcome.comparison)),
        ("density.csv".into(), density_csv(outcome)),
        ("marginals.csv".into(), marginals_csv(outcome)),
        // Last: where it is, the report is whole.
        ("report.html".into(), page(outcome, title, residual)),
    ])
}

/// The table for a terminal.
pub fn table(comparison: &Comparison) -> String {
    let width = comparison.rows.iter().map(|r| label(r).chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}", "");
    for [a, b] in &comparison.pairs {
        let _ = write!(text, "  {:>32}", format!("{b} / {a}"));
    }
    text += "\n";
    let _ = write!(text, "{:width$}", "");
    for _ in &comparison.pairs {
        let _ = write!(text, "  {:>18} {:>13}", "value ± error", "floor");
    }
    for row in &comparison.rows {
        let _ = write!(text, "\n{:width$}", label(row));
        for value in &row.values {
            let [value, floor] = value.as_ref().map_or([String::new(), String::new()], |v| [with_error(v), floor_of(v)]);
            let _ = write!(text, "  {value:>18} {floor:>13}");
        }
    }
    for set in comparison.sets.iter().filter(|s| s.broken_frames > 0) {
        let _ = write!(
            text,
            "\n{}: {} of {} frames have a broken bond, in {} of {} chains",
            set.name, set.broken_frames, set.frames, set.broken_chains, set.chains
        );
    }
    text
}

fn label(row: &crate::consistency::Row) -> String {
    if row.unit == "nat" { row.label.clone() } else { format!("{} / {}", row.label, row.unit) }
}

/// As many digits as two of the error, or three where there is none.
fn digits(value: f64, error: f64) -> usize {
    let of = if error.is_finite() && error > 0.0 { error } else { value.abs() / 10.0 };
    if of > 0.0 && of.is_finite() { (1.0 - of.log10().floor()).clamp(0.0, 8.0) as usize } else { 3 }
}

fn with_error(v: &Value) -> String {
    if !v.value.is_finite() {
        return "–".into();
    }
    let d = digits(v.value, v.error);
    if v.error.is_finite() { format!("{:.d$} ± {:.d$}", v.value, v.error) } else { format!("{:.d$}", v.value) }
}

fn floor_of(v: &Value) -> String {
    v.floor.map_or_else(|| "–".into(), |f| format!("{:.1$}", f.mean, digits(f.mean, f64::NAN)))
}

fn metrics_csv(comparison: &Comparison) -> String {
    let mut text = String::from("metric,unit,first,second,value,error,floor,floor_deviation\n");
    let cell = |x: f64| if x.is_finite() { format!("{x:e}") } else { String::new() };
    for row in &comparison.rows {
        for (value, [a, b]) in row.values.iter().zip(&comparison.pairs) {
            if let Some(v) = value {
                let (f, d) = v.floor.map_or((f64::NAN, f64::NAN), |f| (f.mean, f.deviation));
                let _ = writeln!(text, "{},{},{a},{b},{},{},{},{}", row.key, row.unit, cell(v.value), cell(v.error), cell(f), cell(d));
            }
        }
    }
    text
}

/// Free energy of a histogram in kT, its minimum at zero; infinite where there is no sample.
fn free_energies(counts: &[f64]) -> Vec<f64> {
    let most = counts.iter().copied().fold(0.0, f64::max);
    counts.iter().map(|&c| if c > 0.0 { (most / c).ln() } else { f64::INFINITY }).collect()
}

fn middle(edges: &[f64], i: usize) -> f64 {
    0.5 * (edges[i] + edges[i + 1])
}

fn density_csv(outcome: &Outcome) -> String {
    let c = &outcome.comparison;
    let grid = Grid::new(c.limits, c.bins);
    let counts: Vec<Vec<f64>> = outcome.observed.iter().map(|o| grid.counts(&o.points)).collect();
    let mut text = String::from("x,y");
    c.sets.iter().for_each(|s| text += &format!(",count_{}", s.name));
    text += "\n";
    for i in 0..c.bins {
        for j in 0..c.bins {
            let _ = write!(text, "{:.6},{:.6}", middle(grid.edges(0), i), middle(grid.edges(1), j));
            counts.iter().for_each(|n| text += &format!(",{}", n[i * c.bins + j]));
            text += "\n";
        }
    }
    text
}

/// Density of `values` over `bins` equal bins between `low` and `high`.
fn histogram(values: impl Iterator<Item = f64> + Clone, [low, high]: [f64; 2], bins: usize) -> Vec<(f64, f64)> {
    let width = (high - low) / bins as f64;
    let mut counts = vec![0.0; bins];
    let mut total = 0.0;
    for x in values {
        total += 1.0;
        let k = ((x - low) / width).floor();
        if k >= 0.0 && k < bins as f64 {
            counts[k as usize] += 1.0;
        }
    }
    counts.iter().enumerate().map(|(k, n)| (low + (k as f64 + 0.5) * width, n / (total * width))).collect()
}

fn marginals(outcome: &Outcome, axis: usize) -> Vec<Vec<(f64, f64)>> {
    outcome.observed.iter().map(|o| histogram(o.points.iter().map(|p| p[axis]), outcome.comparison.limits[axis], MARGINAL_BINS)).collect()
}

fn marginals_csv(outcome: &Outcome) -> String {
    let c = &outcome.comparison;
    let mut text = String::from("axis,x");
    c.sets.iter().for_each(|s| text += &format!(",density_{}", s.name));
    text += "\n";
    for axis in 0..2 {
        let curves = marginals(outcome, axis);
        for k in 0..MARGINAL_BINS {
            let _ = write!(text, "{},{:.6}", axis + 1, curves[0][k].0);
            curves.iter().for_each(|m| text += &format!(",{:e}", m[k].1));
            text += "\n";
        }
    }
    text
}

/// Looks of the page; it loads nothing from elsewhere.
const STYLE: &str = "\
:root{--ink:#1a1a1a;--soft:#5a6270;--line:#e3e6ea;--accent:#0072b2;--bad:#b3401a;--good:#1d7a4f}
*{box-sizing:border-box}body{margin:0;background:#f5f6f8;color:var(--ink);font:15px/1.5 Helvetica,Arial,'Liberation Sans',sans-serif}
main{max-width:1240px;margin:0 auto;padding:32px 24px 64px}h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px}
p{margin:6px 0;color:var(--soft)}.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:18px 20px;overflow-x:auto}
.row{display:flex;flex-wrap:wrap;gap:16px}.row>.card{flex:1 1 340px;padding:8px}.card svg{display:block;width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--line)}
tbody tr:last-child td{border-bottom:none}.floor{color:var(--soft)}.near{color:var(--good);font-weight:600}.far{color:var(--bad);font-weight:600}
footer{margin-top:40px;color:var(--soft);font-size:13px}";

fn page(outcome: &Outcome, title: &str, residual: Option<&ResidualCurve>) -> String {
    let c = &outcome.comparison;
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style></head><body><main>\n<h1>{0}</h1>\n",
        escape(title)
    );
    let sets: Vec<String> = c
        .sets
        .iter()
        .map(|s| format!("{}: {} frames in {} chain{}", escape(&s.name), s.frames, s.chains, if s.chains == 1 { "" } else { "s" }))
        .collect();
    let _ = writeln!(html, "<p>{}</p>", sets.join(" · "));
    html += "<h2>Metrics</h2>\n<div class=\"card\">";
    html += &metric_table(c);
    html += "</div>\n<p>The floor is the value between two sets of the reference's own frames of these sizes: what chance alone gives. Values within three standard deviations of it, or 25 %, are green. Errors are jackknife errors over chains or stretches of time of the first-named set.</p>\n";

    html += "<h2>Free energy</h2>\n<div class=\"row\">";
    let grid = Grid::new(c.limits, c.bins.min(100));
    for set in &outcome.observed {
        let map = free_energies(&grid.counts(&set.points));
        let _ = write!(html, "<div class=\"card\">{}</div>", surface(&set.trajectory.name, &grid, &map, c));
    }
    html += "</div>\n<h2>Marginals</h2>\n<div class=\"row\">";
    for axis in 0..2 {
        let curves = marginals(outcome, axis);
        let _ = write!(html, "<div class=\"card\">{}</div>", curve_plot(outcome, "", c.axes[axis], "density", &curves, false));
        let energies: Vec<Vec<(f64, f64)>> = curves
            .iter()
            .map(|m| {
                let most = m.iter().map(|p| p.1).fold(0.0, f64::max);
                m.iter().map(|&(x, p)| (x, if p > 0.0 { (most / p).ln() } else { f64::NAN })).collect()
            })
            .collect();
        let _ = write!(html, "<div class=\"card\">{}</div>", curve_plot(outcome, "", c.axes[axis], "free energy / kT", &energies, false));
    }
    html += "</div>\n";
    if !c.bonds.is_empty() {
        html += "<h2>Bond lengths</h2>\n<div class=\"row\">";
        for (k, (i, j)) in c.bonds.iter().enumerate().take(MOST_BONDS) {
            let _ = write!(html, "<div class=\"card\">{}</div>", bond_plot(outcome, k, &format!("bond {i}–{j}")));
        }
        html += "</div>\n";
    }
    html += "<h2>States</h2>\n<div class=\"card\">";
    html += &state_table(c);
    html += "</div>\n";
    if let Some(plot) = time_series(outcome) {
        let _ = writeln!(html, "<h2>Time</h2>\n<div class=\"card\">{plot}</div>");
    }
    if let Some(curve) = residual.filter(|r| !r.points.is_empty()) {
        let plot = LinePlot {
            title: "Fokker–Planck residual".into(),
            x_label: "diffusion time t".into(),
            y_label: "residual per dimension".into(),
            series: vec![Series { points: curve.points.clone(), ..Series::default() }],
            log_y: true,
            ..LinePlot::default()
        };
        let _ = writeln!(html, "<h2>Fokker–Planck residual</h2>\n<div class=\"card\">{}</div>", line_plot(&plot));
    }
    let _ = writeln!(
        html,
        "<footer>scorefield {}. Numbers: report.json, metrics.csv, density.csv, marginals.csv.</footer>\n</main></body></html>",
        env!("CARGO_PKG_VERSION")
    );
    html
}

fn metric_table(c: &Comparison) -> String {
    let mut html = String::from("<table><thead><tr><th></th>");
    for [a, b] in &c.pairs {
        let _ = write!(html, "<th>{} / {}</th><th class=\"floor\">floor</th>", escape(b), escape(a));
    }
    html += "</tr></thead><tbody>";
    for row in &c.rows {
        let _ = write!(html, "<tr><td>{}</td>", escape(&label(row)));
        for value in &row.values {
            match value {
                Some(v) => {
                    let class = match v.floor {
                        Some(f) if v.value <= (f.mean + 3.0 * f.deviation).max(1.25 * f.mean) => "near",
                        Some(_) => "far",
                        None => "",
                    };
                    let _ = write!(html, "<td class=\"{class}\">{}</td><td class=\"floor\">{}</td>", with_error(v), floor_of(v));
                }
                None => html += "<td>–</td><td class=\"floor\">–</td>",
            }
        }
        html += "</tr>";
    }
    html + "</tbody></table>"
}

fn state_table(c: &Comparison) -> String {
    let mut html = String::from("<table><thead><tr><th>set</th>");
    for (s, p) in c.centres.iter().enumerate() {
        let _ = write!(html, "<th>state {s} ({}, {})</th>", number(p[0], 2), number(p[1], 2));
    }
    html += "<th>broken frames</th></tr></thead><tbody>";
    for set in &c.sets {
        let _ = write!(html, "<tr><td>{}, population %</td>", escape(&set.name));
        for p in &set.populations {
            let error = if p.standard_error.is_finite() { format!(" ± {:.2}", 100.0 * p.standard_error) } else { String::new() };
            let _ = write!(html, "<td>{:.2}{error}</td>", 100.0 * p.mean);
        }
        let _ = write!(html, "<td>{} in {} chains</td></tr>", set.broken_frames, set.broken_chains);
    }
    for set in c.sets.iter().filter(|s| !s.passage_frames.is_empty()) {
        let (times, unit) = if set.passage_ps.is_empty() { (&set.passage_frames, "frames") } else { (&set.passage_ps, "ps") };
        for (to, _) in c.centres.iter().enumerate() {
            let _ = write!(html, "<tr><td>{}, mean first passage to {to} / {unit}</td>", escape(&set.name));
            for row in times {
                let time = row.get(to).copied().unwrap_or(f64::NAN);
                let _ = write!(html, "<td>{}</td>", passage(time));
            }
            html += "<td></td></tr>";
        }
    }
    for set in &c.sets {
        html += &temperatures(set, c.centres.len());
    }
    html + "</tbody></table>"
}

fn passage(time: f64) -> String {
    match time {
        t if t == 0.0 || t.is_nan() => String::new(),
        t if t.is_infinite() => "never".into(),
        t => number(t, if t < 100.0 { 1 } else { 0 }),
    }
}

fn temperatures(set: &SetReport, columns: usize) -> String {
    if set.temperatures.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = set.temperatures.iter().map(|t| format!("element {}: {:.1} K", t.element, t.temperature)).collect();
    format!("<tr><td>{}, kinetic temperature</td><td colspan=\"{}\">{}</td></tr>", escape(&set.name), columns + 1, parts.join(" · "))
}

fn curve_plot(outcome: &Outcome, title: &str, x: &str, y: &str, curves: &[Vec<(f64, f64)>], log_y: bool) -> String {
    let names = outcome.observed.iter().map(|o| o.trajectory.name.clone());
    line_plot(&LinePlot {
        title: title.into(),
        x_label: x.into(),
        y_label: y.into(),
        series: names.zip(curves).map(|(name, points)| Series { name, points: points.clone(), errors: Vec::new() }).collect(),
        x_ticks: None,
        log_y,
    })
}

/// Lengths of a bond over the range that the reference has, with a margin; what is broken lies outside.
fn bond_plot(outcome: &Outcome, bond: usize, title: &str) -> String {
    let reference = &outcome.observed[0].bonds[bond];
    let (low, high) = reference.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
    let margin = 0.1 * (high - low).max(1e-6);
    let range = [1000.0 * (low - margin), 1000.0 * (high + margin)];
    let curves: Vec<_> =
        outcome.observed.iter().map(|o| histogram(o.bonds[bond].iter().map(|x| 1000.0 * x), range, MARGINAL_BINS)).collect();
    curve_plot(outcome, title, "length / pm", "density / 1/pm", &curves, false)
}

/// The first coordinate along the first chain of the reference and of the simulation.
fn time_series(outcome: &Outcome) -> Option<String> {
    let c = &outcome.comparison;
    let timed = outcome.observed.iter().zip(&c.sets).filter(|(_, s)| !s.passage_frames.is_empty());
    let series: Vec<Series> = timed
        .filter_map(|(o, _)| {
            let chain = o.trajectory.chains.first()?.clone();
            let first = chain.start;
            let points = chain.take(MOST_DRAWN).map(|i| ((i - first) as f64, o.points[i][0])).collect();
            Some(Series { name: o.trajectory.name.clone(), points, errors: Vec::new() })
        })
        .collect();
    let plot = LinePlot { title: "first chain".into(), x_label: "frame".into(), y_label: c.axes[0].into(), series, ..LinePlot::default() };
    (!plot.series.is_empty()).then(|| line_plot(&plot))
}

const SIDE: f64 = 320.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 40.0;
const BAR: f64 = LEFT + SIDE + 16.0;

/// A free-energy surface with the centres of the states.
fn surface(title: &str, grid: &Grid, map: &[f64], c: &Comparison) -> String {
    let bins = grid.bins();
    let cell = SIDE / bins as f64;
    let mut svg = Svg::new(BAR + 70.0, TOP + SIDE + 54.0);
    svg.text((LEFT, 26.0), Anchor::Start, TITLE, title);
    svg.open_cells();
    // Few shades, and one shape for all cells of a shade: the page stays small.
    let shades = 32;
    let shade = |f: f64| f.is_finite().then(|| ((f / HIGHEST_KT * f64::from(shades)) as i32).min(shades - 1));
    let mut paths = vec![String::new(); shades as usize];
    for j in 0..bins {
        let row: Vec<Option<i32>> = (0..bins).map(|i| shade(map[i * bins + j])).collect();
        let mut i = 0;
        for run in row.chunk_by(|a, b| a == b) {
            if let Some(Some(s)) = run.first() {
                let (x, y) = (LEFT + cell * i as f64, TOP + cell * (bins - 1 - j) as f64);
                let _ = write!(paths[*s as usize], "M{x:.1} {y:.1}h{:.1}v{:.1}H{x:.1}z", cell * run.len() as f64, cell + 0.05);
            }
            i += run.len();
        }
    }
    let tone = |s: usize| colour(s * (LEVELS - 1) / (shades as usize - 1));
    for (s, path) in paths.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
        svg.path(path, &tone(s));
    }
    for s in 0..shades as usize {
        let height = SIDE / f64::from(shades);
        svg.rect(BAR, TOP + SIDE - height * (s + 1) as f64, 14.0, height + if s == 0 { 0.0 } else { 1.0 }, &tone(s));
    }
    svg.close_cells();
    let at = |axis: usize, v: f64| (v - c.limits[axis][0]) / (c.limits[axis][1] - c.limits[axis][0]) * SIDE;
    for centre in &c.centres {
        let (x, y) = (at(0, centre[0]), at(1, centre[1]));
        if (0.0..=SIDE).contains(&x) && (0.0..=SIDE).contains(&y) {
            svg.dot((LEFT + x, TOP + SIDE - y), 4.0, "#d55e00");
        }
    }
    svg.frame(LEFT, TOP, SIDE, SIDE, INK, "none");
    for axis in 0..2 {
        let (values, decimals) = ticks(c.limits[axis][0], c.limits[axis][1], 5);
        for v in values {
            let p = at(axis, v);
            if axis == 0 {
                svg.line((LEFT + p, TOP + SIDE), (LEFT + p, TOP + SIDE + 4.0), INK);
                svg.text((LEFT + p, TOP + SIDE + 18.0), Anchor::Middle, TICK, &number(v, decimals));
            } else {
                svg.line((LEFT - 4.0, TOP + SIDE - p), (LEFT, TOP + SIDE - p), INK);
                svg.text((LEFT - 8.0, TOP + SIDE - p + 4.0), Anchor::End, TICK, &number(v, decimals));
            }
        }
    }
    svg.text((LEFT + SIDE / 2.0, TOP + SIDE + 42.0), Anchor::Middle, LABEL, c.axes[0]);
    svg.text_upwards((18.0, TOP + SIDE / 2.0), LABEL, c.axes[1]);
    svg.frame(BAR, TOP, 14.0, SIDE, INK, "none");
    for f in ticks(0.0, HIGHEST_KT, 4).0 {
        let y = TOP + SIDE * (1.0 - f / HIGHEST_KT);
        svg.line((BAR + 14.0, y), (BAR + 18.0, y), INK);
        svg.text((BAR + 22.0, y + 4.0), Anchor::Start, TICK, &number(f, 0));
    }
    svg.text_upwards((BAR + 56.0, TOP + SIDE / 2.0), LABEL, "free energy / kT");
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::{Settings, Trajectory, compare};
    use scorefield_integrators::{Noise, Purpose, System};
    use std::sync::Arc;

    fn beads(name: &str, stream: u32) -> Trajectory {
        let positions = (0..400u32)
            .flat_map(|f| {
                (0..5u32).flat_map(move |i| {
                    let z = Noise::new(2).normals(i, stream, u64::from(f), Purpose::Thermostat);
                    let zig = if i % 2 == 0 { 0.05 } else { -0.05 };
                    [0.12 * f64::from(i) + 0.01 * z[0], zig + 0.01 * z[1], 0.03 * z[2]]
                })
            })
            .collect();
        Trajectory::new(name, Arc::new(System::particles("beads", 5, 12.0)), positions, 4).unwrap()
    }

    #[test]
    fn page_is_whole_and_names_stay_text() {
        let (reference, samples, simulation) = (beads("reference", 0), beads("<samples>", 1), beads("simulation", 2));
        let settings = Settings { torsions: Some([[0, 1, 2, 3], [1, 2, 3, 4]]), ..Settings::default() };
        let outcome = compare(&reference, Some(&samples), Some(&simulation), &settings).unwrap();
        let residual = ResidualCurve { points: vec![(0.0, 0.1), (0.5, 0.01)] };
        let files = files(&outcome, "a & b", Some(&residual), &serde_json::json!({"seed": 3})).unwrap();
        let names: Vec<&str> = files.iter().map(|f| f.0.as_str()).collect();
        assert_eq!(names, ["report.json", "metrics.csv", "density.csv", "marginals.csv", "report.html"]);
        let html = &files[4].1;
        assert!(html.contains("a &amp; b") && !html.contains("<samples>") && html.ends_with("</html>\n"));
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        // Three maps, four marginals, four bonds, one series, one residual.
        assert_eq!(html.matches("<svg").count(), 3 + 4 + 4 + 1 + 1);
        assert!(!html.contains("NaN") && !html.contains("http-equiv") && !html.contains("src="));
        let json: serde_json::Value = serde_json::from_str(&files[0].1).unwrap();
        assert_eq!(json["seed"], 3);
        assert_eq!(json["rows"].as_array().unwrap().len(), 3 + 1 + 4 + 1);
        assert_eq!(files[2].1.lines().count(), 1 + 64 * 64);
        let text = table(&outcome.comparison);
        assert!(text.contains("PMF error / kT²") && text.lines().count() >= 11, "{text}");
        if let Some(directory) = std::env::var_os("SCOREFIELD_SAVE_PLOTS") {
            std::fs::write(std::path::Path::new(&directory).join("consistency.html"), html).unwrap();
        }
    }

    #[test]
    fn numbers_have_as_many_digits_as_their_error() {
        let value = |value, error| with_error(&Value { value, error, floor: None });
        assert_eq!(value(0.012345, 0.00067), "0.01235 ± 0.00067");
        assert_eq!(value(0.0123, f64::NAN), "0.0123");
        assert_eq!(value(1.5, 0.25), "1.50 ± 0.25");
        assert_eq!(value(f64::NAN, 0.0), "–");
        assert_eq!(passage(f64::INFINITY), "never");
    }
}
