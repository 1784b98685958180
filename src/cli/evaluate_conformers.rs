//! `scorefield evaluate-conformers`: how well ensembles of conformers cover reference ensembles.

use super::input::{Frame, FrameStream, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::analysis::statistics::bootstrap;
use crate::error::{Error, usage};
use crate::generation::conformers::{ANGSTROMS, graph_of};
use crate::io::{ReadOptions, write_atomically};
use anyhow::{Context, Result};
use rayon::prelude::*;
use scorefield_models::ditmc::checks::Faults;
use scorefield_models::ditmc::ensemble::{Comparison, Distances};
use scorefield_models::molecule::{Compare, Graph, Identity, Perceiver};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  scorefield evaluate-conformers generated.sdf --reference test.sdf
  scorefield evaluate-conformers generated.sdf --reference test.sdf --thresholds 0.1,0.5,0.75 --json scores.json --table molecules.csv

The protocol of GEOM: RMSD of heavy atoms, least over rotations and exchanges of equivalent atoms. Coverage is the part of the reference
conformers with a generated one nearer than the threshold (recall), and the reverse (precision); AMR the mean of the least RMSD. Means and
medians are over molecules; molecules without generated conformers are left out and counted. Errors are bootstrapped over molecules.
Conformers belong to the molecule of their SMILES property, else to that of their bonds and coordinates.";

/// Resamples of errors.
const RESAMPLES: usize = 1000;

/// Coverage, recall and precision of conformers against reference ensembles
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct EvaluateConformersFlags {
    /// Files of generated conformers
    #[arg(value_name = "FILES")]
    pub(super) files: Vec<PathBuf>,
    /// File of reference conformers
    #[arg(long, value_name = "FILE")]
    pub(super) reference: Option<PathBuf>,
    /// Thresholds of coverage in A, separated by commas [default: 0.1,0.5,0.75]
    #[arg(long, value_name = "LIST")]
    pub(super) thresholds: Option<String>,
    /// Write scores as JSON; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write a table with one row per molecule
    #[arg(long, value_name = "FILE")]
    pub(super) table: Option<PathBuf>,
}

/// Conformers of one molecule.
struct Ensemble {
    name: String,
    graph: Graph,
    /// Positions `[N, 3]` (Å) in the order of the graph's atoms.
    conformers: Vec<Vec<f64>>,
    /// Those with the right bonds, handedness and arrangement.
    right: usize,
}

/// Distances of one molecule's conformers.
struct Molecule {
    name: String,
    distances: Distances,
    counts: [usize; 2],
}

/// Runs the command.
///
/// # Errors
/// Where files cannot be read or written, or have no molecule in common.
pub(super) fn run(flags: EvaluateConformersFlags, runtime: &Runtime) -> Result<Outcome> {
    if flags.files.is_empty() {
        return usage("a file is needed: scorefield evaluate-conformers FILE --reference FILE")?;
    }
    let Some(reference) = &flags.reference else {
        return usage("--reference is missing; name a file of reference conformers")?;
    };
    let thresholds = thresholds(flags.thresholds.as_deref().unwrap_or("0.1,0.5,0.75"))?;
    let (references, order) = ensembles(std::slice::from_ref(reference)).context("--reference")?;
    let (mut generated, _) = ensembles(&flags.files)?;
    show_file_warnings(runtime);
    let mut pairs = Vec::new();
    let (mut right, mut all, mut missing) = (0, 0, 0);
    for key in &order {
        let Some(theirs) = references.get(key) else { continue };
        match generated.remove(key) {
            Some(ours) => {
                (right, all) = (right + ours.right, all + ours.conformers.len());
                pairs.push((theirs, ours));
            }
            None => missing += 1,
        }
    }
    if pairs.is_empty() {
        return Err(Error::Run("the files have no molecule in common".into()).into());
    }
    if !generated.is_empty() {
        runtime.warn(format_args!(
            "{} molecule{} of the generated files are not in the reference",
            generated.len(),
            plural(generated.len())
        ));
    }
    let compare = |(theirs, ours): (&Ensemble, Ensemble)| {
        let ours_in_order = reordered(&theirs.graph, &ours);
        Molecule {
            name: theirs.name.clone(),
            distances: Distances::new(&Comparison::new(&theirs.graph), &theirs.conformers, &ours_in_order),
            counts: [theirs.conformers.len(), ours.conformers.len()],
        }
    };
    let molecules: Vec<Molecule> = runtime.pool.install(|| pairs.into_par_iter().map(compare).collect());
    let scores = scores(&molecules, &thresholds, runtime.seed);
    let text = report(&scores, &molecules, (right, all, missing));
    let json = serde_json::json!({
        "molecules": molecules.len(),
        "missing": missing,
        "conformers": all,
        "right": right,
        "scores": scores.iter().map(Score::json).collect::<Vec<_>>(),
    });
    match flags.json.as_deref() {
        Some(path) if path == Path::new("-") => print(format_args!("{json:#}"))?,
        Some(path) => {
            write_atomically(path, |w| writeln!(w, "{json:#}"))?;
            print(text)?;
        }
        None => print(text)?,
    }
    if let Some(path) = &flags.table {
        write_atomically(path, |w| w.write_all(table(&molecules, &thresholds).as_bytes()))?;
        runtime.say(format_args!("wrote {}", path.display()));
    }
    Ok(Outcome::Done)
}

fn thresholds(text: &str) -> Result<Vec<f64>> {
    let all: std::result::Result<Vec<f64>, _> = text.split(',').map(|t| t.trim().parse::<f64>()).collect();
    match all {
        Ok(list) if list.iter().all(|&t| t > 0.0 && t.is_finite()) => Ok(list),
        _ => usage(format!("--thresholds {text}: give lengths in A above zero, separated by commas, for example 0.1,0.5"))?,
    }
}

/// Conformers by molecule, and the molecules in the order of the files.
fn ensembles(files: &[PathBuf]) -> Result<(HashMap<Identity, Ensemble>, Vec<Identity>)> {
    let mut perceiver = Perceiver::new();
    let mut all: HashMap<Identity, Ensemble> = HashMap::new();
    let mut order = Vec::new();
    for (index, frame) in FrameStream::new(files.to_vec(), ReadOptions::default()).enumerate() {
        let frame = frame?;
        let (graph, wanted) = molecule_of(&frame, &mut perceiver).with_context(|| format!("frame {index}"))?;
        let identity = wanted.identity(Compare::Stereo);
        let x: Vec<f64> = frame.positions.iter().map(|x| x * ANGSTROMS).collect();
        let right = graph.identity(Compare::Stereo) == identity && Faults::of(&graph, &x).is_empty();
        let ensemble = all.entry(identity.clone()).or_insert_with(|| {
            order.push(identity);
            let name = if frame.label().is_empty() { format!("frame {index}") } else { frame.label().to_owned() };
            Ensemble { name, graph: graph.clone(), conformers: Vec::new(), right: 0 }
        });
        if ensemble.graph.len() != graph.len() {
            return Err(Error::Run(format!("frame {index} has other atoms than earlier frames of its molecule")).into());
        }
        // Frames of one molecule may number their atoms differently.
        let x = if same_bonds(&ensemble.graph, &graph) { x } else { mapped(&ensemble.graph, &graph, &x) };
        ensemble.conformers.push(x);
        ensemble.right += usize::from(right);
    }
    Ok((all, order))
}

/// The molecule that a frame's coordinates show, and the one that it is meant to be.
fn molecule_of(frame: &Frame, perceiver: &mut Perceiver) -> Result<(Graph, Graph)> {
    let (graph, whole) = graph_of(frame, perceiver)?;
    if !whole {
        return Err(Error::Run("its hydrogens are no atoms; conformers are compared with all their atoms".into()).into());
    }
    let wanted = match frame.properties.get("SMILES") {
        Some(smiles) => {
            let mut wanted = Graph::from_smiles(smiles.trim()).context("its SMILES property")?.with_hydrogens();
            wanted.find_aromaticity();
            if wanted.identity(Compare::Constitution) != graph.identity(Compare::Constitution) {
                return Err(Error::Run("its SMILES property is of another molecule than its bonds".into()).into());
            }
            wanted
        }
        None => graph.clone(),
    };
    Ok((graph, wanted))
}

fn same_bonds(a: &Graph, b: &Graph) -> bool {
    let bonds = |g: &Graph| -> Vec<((u32, u32), u8)> { g.bonds().iter().map(|b| (b.atoms, b.order)).collect() };
    a.atoms().iter().zip(b.atoms()).all(|(a, b)| a.element == b.element) && bonds(a) == bonds(b)
}

/// Positions of the heavy atoms of `from` in the places of those of `to`; hydrogens are left out (0).
fn mapped(to: &Graph, from: &Graph, x: &[f64]) -> Vec<f64> {
    let (a, b) = (to.canonical_numbering(Compare::Constitution).order, from.canonical_numbering(Compare::Constitution).order);
    let mut out = vec![0.0; x.len()];
    for (&a, &b) in a.iter().zip(&b) {
        out[3 * a..3 * a + 3].copy_from_slice(&x[3 * b..3 * b + 3]);
    }
    out
}

fn reordered(to: &Graph, ours: &Ensemble) -> Vec<Vec<f64>> {
    match same_bonds(to, &ours.graph) {
        true => ours.conformers.clone(),
        false => ours.conformers.iter().map(|x| mapped(to, &ours.graph, x)).collect(),
    }
}

/// A number per molecule: mean and median over molecules with bootstrapped errors.
struct Score {
    name: String,
    threshold: Option<f64>,
    mean: f64,
    median: f64,
    errors: [f64; 2],
}

impl Score {
    fn new(name: &str, threshold: Option<f64>, values: &[f64], seed: u64) -> Self {
        // A resample says how often each molecule is in it.
        let mean = |often: &[u32]| {
            let sum: f64 = often.iter().zip(values).map(|(&n, v)| f64::from(n) * v).sum();
            sum / often.iter().sum::<u32>().max(1) as f64
        };
        let middle = |often: &[u32]| median(often.iter().zip(values).flat_map(|(&n, &v)| std::iter::repeat_n(v, n as usize)).collect());
        let all = vec![1; values.len()];
        let errors = [bootstrap(values.len(), RESAMPLES, seed, mean), bootstrap(values.len(), RESAMPLES, seed, middle)];
        Score { name: name.into(), threshold, mean: mean(&all), median: middle(&all), errors }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "threshold_A": self.threshold, "mean": self.mean, "median": self.median,
            "mean_error": self.errors[0], "median_error": self.errors[1],
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}

fn scores(molecules: &[Molecule], thresholds: &[f64], seed: u64) -> Vec<Score> {
    let mut scores = Vec::new();
    for &t in thresholds {
        let coverage: Vec<_> = molecules.iter().map(|m| m.distances.coverage(t)).collect();
        scores.push(Score::new("coverage recall", Some(t), &coverage.iter().map(|c| c.recall).collect::<Vec<_>>(), seed));
        scores.push(Score::new("coverage precision", Some(t), &coverage.iter().map(|c| c.precision).collect::<Vec<_>>(), seed));
    }
    let means: Vec<[f64; 2]> = molecules.iter().map(|m| m.distances.mean()).collect();
    for (k, name) in ["AMR recall", "AMR precision"].into_iter().enumerate() {
        scores.push(Score::new(name, None, &means.iter().map(|m| m[k]).collect::<Vec<_>>(), seed));
    }
    scores
}

fn report(scores: &[Score], molecules: &[Molecule], (right, all, missing): (usize, usize, usize)) -> String {
    let references: usize = molecules.iter().map(|m| m.counts[0]).sum();
    let mut text = format!(
        "{} molecule{}, {references} reference and {all} generated conformers; {missing} without any\n\
         right bonds, handedness and E/Z: {:.2} % of the generated\n{:<20} {:>9}  {:>17}  {:>17}\n",
        molecules.len(),
        plural(molecules.len()),
        100.0 * right as f64 / all.max(1) as f64,
        "",
        "threshold",
        "mean",
        "median"
    );
    for s in scores {
        // Coverage in per cent, distances in Å.
        let (factor, unit) = if s.threshold.is_some() { (100.0, "%") } else { (1.0, "A") };
        let number = |value: f64, error: f64| match s.threshold {
            Some(_) => format!("{:.1} ± {:.1} {unit}", factor * value, factor * error),
            None => format!("{value:.3} ± {error:.3} {unit}"),
        };
        let threshold = s.threshold.map_or(String::new(), |t| format!("{t} A"));
        let (mean, median) = (number(s.mean, s.errors[0]), number(s.median, s.errors[1]));
        let _ = writeln!(text, "{:<20} {threshold:>9}  {mean:>17}  {median:>17}", s.name);
    }
    text.trim_end().to_owned()
}

fn table(molecules: &[Molecule], thresholds: &[f64]) -> String {
    let mut text = String::from("name,references,generated,amr_recall_A,amr_precision_A");
    for t in thresholds {
        let _ = write!(text, ",recall_{t}A,precision_{t}A");
    }
    text.push('\n');
    for m in molecules {
        let [recall, precision] = m.distances.mean();
        let _ = write!(text, "\"{}\",{},{},{recall},{precision}", m.name.replace('"', "\"\""), m.counts[0], m.counts[1]);
        for &t in thresholds {
            let c = m.distances.coverage(t);
            let _ = write!(text, ",{},{}", c.recall, c.precision);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_scores() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
        assert!(median(Vec::new()).is_nan());
        let score = Score::new("x", None, &[1.0, 2.0, 6.0, 7.0], 0);
        assert_eq!((score.mean, score.median), (4.0, 4.0));
        // The variance of one is 26/4, that of the mean of four a quarter of it.
        assert!((score.errors[0] - (26.0f64 / 4.0).sqrt() / 2.0).abs() < 0.2, "{:?}", score.errors);
        assert!(thresholds("0.1, 0.5").unwrap() == [0.1, 0.5] && thresholds("0.1,x").is_err() && thresholds("-1").is_err());
    }

    /// Methanol numbered in two ways: heavy atoms find each other.
    #[test]
    fn numberings_are_matched() {
        let a = Graph::from_smiles("CO").unwrap().with_hydrogens();
        let order = [1, 0, 5, 4, 3, 2];
        let b = a.permuted(&order);
        let x: Vec<f64> = (0..18).map(f64::from).collect();
        let y: Vec<f64> = order.iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect();
        assert!(!same_bonds(&a, &b) && same_bonds(&a, &a));
        assert_eq!(mapped(&a, &b, &y)[..6], x[..6]);
    }
}
