//! Free energies along the variables of a biased run: from hills, from weighted samples, from windows joined.

use super::bias::{columns, energy_column};
use crate::analysis::reweight::{Bins, from_weights, wham};
use crate::error::{Error, Result};
use scorefield_models::bias::{Bias, Surface, Windows};
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Bins of joined windows.
const BINS: usize = 100;

/// A row of the table of variables.
struct Row {
    replica: usize,
    values: Vec<f64>,
    /// `bias − offset`.
    weight: f64,
}

/// Names and contents of the files, for the run at `kt` whose table of variables is at `table`.
///
/// # Errors
/// Where the table cannot be read.
pub(super) fn report(bias: &Bias, table: Option<&Path>, kt: f64) -> Result<Vec<(String, String)>> {
    let rows = table.map_or(Ok(Vec::new()), |t| read(t, bias.variables().len()))?;
    let mut files = Vec::new();
    for (term, (variables, factor)) in bias.hill_terms().enumerate() {
        let name = if term == 0 { "bias-free-energy.csv".into() } else { format!("bias-free-energy-{}.csv", term + 1) };
        files.push((name, from_hills(bias, variables, factor, &bias.surfaces(term), &rows, kt)));
    }
    if let Some(windows) = bias.windows().next().filter(|_| bias.is_umbrella() && !rows.is_empty()) {
        files.push(("bias-free-energy.csv".into(), from_windows(bias, &windows, &rows, kt)));
    }
    Ok(files)
}

/// All rows but those of step 0, where replicas are at their start structures.
fn read(path: &Path, variables: usize) -> Result<Vec<Row>> {
    let fail = |e| Error::file("read", path, e);
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(File::open(path).map_err(fail)?).lines().enumerate().skip(1) {
        let line = line.map_err(fail)?;
        let parse = || -> Option<(u64, Row)> {
            let mut words = line.split(',');
            let step = words.next()?.parse().ok()?;
            words.next()?;
            let replica = words.next()?.parse().ok()?;
            let numbers: Vec<f64> = words.map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
            let (values, rest) = numbers.split_at_checked(variables)?;
            let &[bias, offset] = rest else { return None };
            Some((step, Row { replica, values: values.to_vec(), weight: bias - offset }))
        };
        match parse() {
            Some((0, _)) => {}
            Some((_, row)) => rows.push(row),
            None => return Err(Error::Run(format!("{}, line {}: `{line}` is not a row of variables", path.display(), i + 1))),
        }
    }
    Ok(rows)
}

/// `−γ/(γ−1) V` at the nodes, normalised for each surface and averaged over them; and the same from samples with weights.
fn from_hills(bias: &Bias, variables: &[usize], factor: f64, surfaces: &[Surface], rows: &[Row], kt: f64) -> String {
    let axes = surfaces[0].axes();
    let scale = if factor.is_finite() { factor / (factor - 1.0) } else { 1.0 };
    let estimates: Vec<Vec<f64>> = surfaces
        .iter()
        .map(|surface| {
            let free: Vec<f64> = surface.at_nodes().map(|v| -scale * v).collect();
            let lowest = free.iter().copied().fold(f64::INFINITY, f64::min);
            let sum: f64 = free.iter().zip(surface.weights()).map(|(f, w)| w * (-(f - lowest) / kt).exp()).sum();
            free.iter().map(|f| f - lowest + kt * sum.ln()).collect()
        })
        .collect();
    let size = estimates[0].len();
    let n = estimates.len() as f64;
    let mean: Vec<f64> = (0..size).map(|k| estimates.iter().map(|e| e[k]).sum::<f64>() / n).collect();
    let error = |k: usize| (estimates.iter().map(|e| (e[k] - mean[k]).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt();
    let lowest = mean.iter().copied().fold(f64::INFINITY, f64::min);
    // Weights are exponentials of the bias: the largest is taken out first.
    let highest = rows.iter().map(|r| r.weight).fold(f64::NEG_INFINITY, f64::max);
    let mut weights = vec![0.0; size];
    for row in rows {
        let place = variables.iter().zip(axes).try_fold(0, |flat, (&v, axis)| {
            let i = ((row.values[v] - axis.low) / axis.step).round();
            let i = if axis.periodic { i.rem_euclid(axis.nodes as f64) } else { i };
            (i >= 0.0 && i < axis.nodes as f64).then_some(flat * axis.nodes + i as usize)
        });
        if let Some(place) = place {
            weights[place] += ((row.weight - highest) / kt).exp();
        }
    }
    // Nodes at open ends have half of the room.
    weights.iter_mut().zip(surfaces[0].weights()).for_each(|(w, size)| *w /= size);
    let reweighted = from_weights(&weights);
    let names = columns(bias);
    let mut text: String = variables.iter().map(|&v| format!("{},", names[v])).collect();
    let column = |name: &str| energy_column(bias, name);
    let _ = writeln!(text, "{},{},{}", column("free_energy"), column("standard_error"), column("reweighted"));
    for k in 0..size {
        let mut rest = k;
        let mut at: Vec<f64> = axes
            .iter()
            .rev()
            .map(|axis| {
                let i = rest % axis.nodes;
                rest /= axis.nodes;
                axis.node(i)
            })
            .collect();
        at.reverse();
        at.iter().for_each(|s| text += &format!("{s:.6},"));
        let _ = writeln!(text, "{:.4},{},{}", mean[k] - lowest, number(error(k)), number(kt * reweighted[k]));
    }
    text
}

/// Histograms of all windows joined, of the whole run and of its halves.
fn from_windows(bias: &Bias, windows: &Windows, rows: &[Row], kt: f64) -> String {
    let Windows { variable, centres, stiffness } = windows;
    let of = &bias.variables()[*variable];
    let values = || rows.iter().map(|r| r.values[*variable]);
    let (low, high) = match of.period() {
        Some(period) => (-0.5 * period, 0.5 * period),
        None => (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)),
    };
    let bins = Bins::new(low, high, BINS);
    let free = |rows: &[Row]| {
        let mut samples = vec![Vec::new(); centres.len()];
        rows.iter().for_each(|r| samples[r.replica % centres.len()].push(r.values[*variable]));
        wham(&samples, |w, s| 0.5 * stiffness * of.difference(s, centres[w]).powi(2) / kt, &bins)
    };
    let estimates = [free(rows), free(&rows[..rows.len() / 2]), free(&rows[rows.len() / 2..])];
    let column = |name: &str| energy_column(bias, name);
    let name = &columns(bias)[*variable];
    let mut text = format!("{name},{},{},{}\n", column("free_energy"), column("first_half"), column("second_half"));
    for i in 0..bins.count {
        let [all, first, second] = [0, 1, 2].map(|e: usize| number(kt * estimates[e][i]));
        let _ = writeln!(text, "{:.6},{all},{first},{second}", bins.centre(i));
    }
    text
}

/// Nothing where there is no number.
fn number(x: f64) -> String {
    if x.is_finite() { format!("{x:.4}") } else { String::new() }
}
