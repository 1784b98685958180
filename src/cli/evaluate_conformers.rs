//! `scorefield evaluate-conformers`: how well ensembles of conformers cover reference ensembles.

use super::input::{Frame, FrameStream, Model, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::analysis::statistics::bootstrap;
use crate::error::{Error, usage};
use crate::generation::conformers::{ANGSTROMS, Relaxation, graph_of};
use crate::io::{ReadOptions, write_atomically};
use crate::signals::Interrupt;
use anyhow::{Context, Result};
use rayon::prelude::*;
use scorefield_integrators::relax::{Job, RelaxOptions, RelaxSpec};
use scorefield_integrators::units::{BOLTZMANN, KJ_PER_KCAL};
use scorefield_integrators::{DType, Dimension, Quantity, UnitSystem};
use scorefield_models::ditmc::checks::Faults;
use scorefield_models::ditmc::ensemble::{Comparison, Coverage, Distances};
use scorefield_models::molecule::{Compare, Graph, Identity, Perceiver};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  scorefield evaluate-conformers generated.sdf --reference test.sdf
  scorefield evaluate-conformers generated.sdf --reference test.sdf --thresholds 0.1,0.5,0.75 --json scores.json --table molecules.csv

  # Energies of the ensembles too: the lowest, and the mean at 298 K
  scorefield evaluate-conformers generated.sdf --reference test.sdf --relax ani2x:weights=ani2x.safetensors

The protocol of GEOM: RMSD of heavy atoms, least over rotations and exchanges of equivalent atoms. Coverage is the part of the reference
conformers with a generated one nearer than the threshold (recall), and the reverse (precision); AMR the mean of the least RMSD. Means and
medians are over molecules; molecules without generated conformers are left out and counted, as DiTMC's authors do, or with
--missing-as-zero have no coverage, as those of Torsional Diffusion have it (AMR is of the others in both). Errors are bootstrapped over
molecules. GEOM's thresholds are 0.5 A for QM9 and 0.75 A for DRUGS, with twice as many generated conformers as there are (-n 2K).
Conformers belong to the molecule of their SMILES property, else to that of their bonds and coordinates.
Energies are those of minima: all conformers, generated and reference, are relaxed with the same provider first.";

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
    /// Relax all conformers with this force provider, and compare energies of the ensembles
    #[arg(long, value_name = "SPEC")]
    pub(super) relax: Option<String>,
    /// Converged when no force on an atom is larger [default: 0.05 eV/A]
    #[arg(long, value_name = "FORCE", allow_hyphen_values = true, requires = "relax")]
    pub(super) fmax: Option<Quantity>,
    /// Temperature of the mean energy of an ensemble [default: 298.15 K]
    #[arg(long, value_name = "TEMPERATURE", allow_hyphen_values = true, requires = "relax")]
    pub(super) temperature: Option<Quantity>,
    /// Molecules without generated conformers count with coverage 0
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) missing_as_zero: Option<bool>,
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
    /// Positions `[N, 3]` (Å) in the order of the graph's atoms; hydrogens only where the file numbers all conformers alike.
    conformers: Vec<Vec<f64>>,
    /// The same as the file has them.
    structures: Vec<Job>,
    /// Those with the right bonds, handedness and arrangement.
    right: usize,
}

/// Distances of one molecule's conformers.
struct Molecule {
    name: String,
    distances: Distances,
    counts: [usize; 2],
    /// Of the reference and of the generated ensemble, where all of it could be relaxed.
    energies: Option<[Energies; 2]>,
}

/// Energies of the minima of an ensemble, kJ/mol.
#[derive(Clone, Copy)]
struct Energies {
    lowest: f64,
    /// Weighted by Boltzmann's factors.
    mean: f64,
}

impl Energies {
    /// Of conformers with these energies at `kt`; `None` where there are none.
    fn new(energies: &[f64], kt: f64) -> Option<Energies> {
        let lowest = energies.iter().copied().min_by(f64::total_cmp)?;
        let weights = energies.iter().map(|e| (-(e - lowest) / kt).exp());
        let (sum, above) = weights.zip(energies).fold((0.0, 0.0), |(sum, above), (w, e)| (sum + w, above + w * (e - lowest)));
        Some(Energies { lowest, mean: lowest + above / sum })
    }
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
    let forces = flags.relax.as_deref().map(|spec| Model::build(spec, None)).transpose()?;
    let interrupt = Interrupt::install()?;
    let relaxation = forces.as_ref().map(|forces| relaxation(forces, &flags, &interrupt, runtime)).transpose()?;
    let temperature = flags.temperature.clone().unwrap_or(Quantity::new(298.15, "K"));
    let kt =
        BOLTZMANN * temperature.resolve(Dimension::TEMPERATURE, UnitSystem::Si).map_err(|e| Error::Usage(format!("--temperature: {e}")))?;
    if !(kt > 0.0) {
        return usage(format!("--temperature {temperature}: give one above zero"))?;
    }
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
    let mut energies: Vec<Option<[Energies; 2]>> = vec![None; pairs.len()];
    if let Some((relaxation, forces)) = relaxation.as_ref().zip(forces.as_ref()) {
        let lost = relaxed_energies(&pairs, relaxation, kt, &mut energies)?;
        if interrupt.requested() {
            return Ok(Outcome::Interrupted);
        }
        if lost > 0 {
            runtime.warn(format_args!(
                "{lost} conformers did not reach a minimum of {}; energies are without them",
                forces.capabilities().name
            ));
        }
    }
    let compare = |((theirs, ours), energies): ((&Ensemble, Ensemble), Option<[Energies; 2]>)| {
        let ours_in_order = reordered(&theirs.graph, &ours);
        Molecule {
            name: theirs.name.clone(),
            distances: Distances::new(&Comparison::new(&theirs.graph), &theirs.conformers, &ours_in_order),
            counts: [theirs.conformers.len(), ours.conformers.len()],
            energies,
        }
    };
    let molecules: Vec<Molecule> = runtime.pool.install(|| pairs.into_par_iter().zip(energies).map(compare).collect());
    let zeros = if flags.missing_as_zero == Some(true) { missing } else { 0 };
    let scores = scores(&molecules, zeros, &thresholds, runtime.seed);
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

/// How conformers are relaxed.
fn relaxation<'a>(
    forces: &'a Model,
    flags: &EvaluateConformersFlags,
    interrupt: &'a Interrupt,
    runtime: &'a Runtime,
) -> Result<Relaxation<'a>> {
    let can = forces.capabilities();
    if !can.energy || can.units != UnitSystem::Si {
        return usage(format!("--relax: {} has no energies in kJ/mol; choose a provider that has, for example ani2x", can.name))?;
    }
    let mut method = RelaxSpec::named("lbfgs").unwrap_or_default();
    if let Some(fmax) = &flags.fmax {
        method = method.with_fmax(fmax.clone());
    }
    method.convergence(can.units).map_err(|e| Error::Usage(format!("--fmax: {e}")))?;
    let options = RelaxOptions {
        dtype: runtime.dtype.unwrap_or(DType::F64),
        max_steps: 10_000,
        threads: Some(runtime.threads()),
        stop: Some(interrupt.flag()),
        ..RelaxOptions::default()
    };
    Ok(Relaxation { pool: &runtime.pool, provider: forces.provider(), method, options })
}

/// Energies of each pair of ensembles; how many conformers have none.
fn relaxed_energies(
    pairs: &[(&Ensemble, Ensemble)],
    relaxation: &Relaxation<'_>,
    kt: f64,
    energies: &mut [Option<[Energies; 2]>],
) -> Result<usize> {
    let all = pairs.iter().flat_map(|(theirs, ours)| theirs.structures.iter().chain(&ours.structures));
    let mut minima = relaxation.minima(all.cloned().collect())?.into_iter();
    let mut lost = 0;
    for ((theirs, ours), to) in pairs.iter().zip(energies) {
        let mut of = |ensemble: &Ensemble| {
            let found: Vec<f64> = minima.by_ref().take(ensemble.structures.len()).flatten().filter_map(|m| m.energy).collect();
            lost += ensemble.structures.len() - found.len();
            Energies::new(&found, kt)
        };
        *to = of(theirs).zip(of(ours)).map(|(theirs, ours)| [theirs, ours]);
    }
    Ok(lost)
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
            Ensemble { name, graph: graph.clone(), conformers: Vec::new(), structures: Vec::new(), right: 0 }
        });
        if ensemble.graph.len() != graph.len() {
            return Err(Error::Run(format!("frame {index} has other atoms than earlier frames of its molecule")).into());
        }
        // Frames of one molecule may number their atoms differently.
        let x = if same_bonds(&ensemble.graph, &graph) { x } else { mapped(&ensemble.graph, &graph, &x) };
        ensemble.conformers.push(x);
        ensemble.structures.push(Job { system: frame.system.clone(), positions: frame.positions.clone(), cell: None });
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

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    /// Parts of one, shown in per cent.
    Part,
    Angstrom,
    Kcal,
}

/// A number per molecule: mean and median over molecules with bootstrapped errors.
struct Score {
    name: String,
    threshold: Option<f64>,
    unit: Unit,
    mean: f64,
    median: f64,
    errors: [f64; 2],
}

impl Score {
    fn new(name: &str, threshold: Option<f64>, unit: Unit, values: &[f64], seed: u64) -> Self {
        // A resample says how often each molecule is in it.
        let mean = |often: &[u32]| {
            let sum: f64 = often.iter().zip(values).map(|(&n, v)| f64::from(n) * v).sum();
            sum / often.iter().sum::<u32>().max(1) as f64
        };
        let middle = |often: &[u32]| median(often.iter().zip(values).flat_map(|(&n, &v)| std::iter::repeat_n(v, n as usize)).collect());
        let all = vec![1; values.len()];
        let errors = [bootstrap(values.len(), RESAMPLES, seed, mean), bootstrap(values.len(), RESAMPLES, seed, middle)];
        Score { name: name.into(), threshold, unit, mean: mean(&all), median: middle(&all), errors }
    }

    fn json(&self) -> serde_json::Value {
        let unit = match self.unit {
            Unit::Part => "1",
            Unit::Angstrom => "A",
            Unit::Kcal => "kcal/mol",
        };
        serde_json::json!({
            "name": self.name, "threshold_A": self.threshold, "unit": unit, "mean": self.mean, "median": self.median,
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

/// Scores of `molecules`, and of `zeros` more that have no coverage.
fn scores(molecules: &[Molecule], zeros: usize, thresholds: &[f64], seed: u64) -> Vec<Score> {
    let mut scores = Vec::new();
    for &t in thresholds {
        let none = std::iter::repeat_n(Coverage::default(), zeros);
        let coverage: Vec<_> = molecules.iter().map(|m| m.distances.coverage(t)).chain(none).collect();
        scores.push(Score::new("coverage recall", Some(t), Unit::Part, &coverage.iter().map(|c| c.recall).collect::<Vec<_>>(), seed));
        scores.push(Score::new("coverage precision", Some(t), Unit::Part, &coverage.iter().map(|c| c.precision).collect::<Vec<_>>(), seed));
    }
    let means: Vec<[f64; 2]> = molecules.iter().map(|m| m.distances.mean()).collect();
    for (k, name) in ["AMR recall", "AMR precision"].into_iter().enumerate() {
        scores.push(Score::new(name, None, Unit::Angstrom, &means.iter().map(|m| m[k]).collect::<Vec<_>>(), seed));
    }
    let energies: Vec<[Energies; 2]> = molecules.iter().filter_map(|m| m.energies).collect();
    if !energies.is_empty() {
        let errors = |of: fn(&Energies) -> f64| energies.iter().map(|[a, b]| (of(b) - of(a)).abs() / KJ_PER_KCAL).collect::<Vec<_>>();
        scores.push(Score::new("error of lowest E", None, Unit::Kcal, &errors(|e| e.lowest), seed));
        scores.push(Score::new("error of mean E", None, Unit::Kcal, &errors(|e| e.mean), seed));
    }
    scores
}

fn report(scores: &[Score], molecules: &[Molecule], (right, all, missing): (usize, usize, usize)) -> String {
    let references: usize = molecules.iter().map(|m| m.counts[0]).sum();
    let mut text = format!(
        "{} molecule{}, {references} reference and {all} generated conformers; {missing} without any\n\
         right bonds, handedness and E/Z: {:.2} % of the generated\n{:<20} {:>9}  {:>24}  {:>24}\n",
        molecules.len(),
        plural(molecules.len()),
        100.0 * right as f64 / all.max(1) as f64,
        "",
        "threshold",
        "mean",
        "median"
    );
    for s in scores {
        let number = |value: f64, error: f64| match s.unit {
            Unit::Part => format!("{:.1} ± {:.1} %", 100.0 * value, 100.0 * error),
            Unit::Angstrom => format!("{value:.3} ± {error:.3} A"),
            Unit::Kcal => format!("{value:.3} ± {error:.3} kcal/mol"),
        };
        let threshold = s.threshold.map_or(String::new(), |t| format!("{t} A"));
        let (mean, median) = (number(s.mean, s.errors[0]), number(s.median, s.errors[1]));
        let _ = writeln!(text, "{:<20} {threshold:>9}  {mean:>24}  {median:>24}", s.name);
    }
    text.trim_end().to_owned()
}

fn table(molecules: &[Molecule], thresholds: &[f64]) -> String {
    let mut text = String::from("name,references,generated,amr_recall_A,amr_precision_A");
    for t in thresholds {
        let _ = write!(text, ",recall_{t}A,precision_{t}A");
    }
    let energies = molecules.iter().any(|m| m.energies.is_some());
    if energies {
        text.push_str(",lowest_reference_kJ_mol,lowest_generated_kJ_mol,mean_reference_kJ_mol,mean_generated_kJ_mol");
    }
    text.push('\n');
    for m in molecules {
        let [recall, precision] = m.distances.mean();
        let _ = write!(text, "\"{}\",{},{},{recall},{precision}", m.name.replace('"', "\"\""), m.counts[0], m.counts[1]);
        for &t in thresholds {
            let c = m.distances.coverage(t);
            let _ = write!(text, ",{},{}", c.recall, c.precision);
        }
        match m.energies {
            Some([a, b]) => {
                let _ = write!(text, ",{},{},{},{}", a.lowest, b.lowest, a.mean, b.mean);
            }
            None if energies => text.push_str(",,,,"),
            None => {}
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
        let score = Score::new("x", None, Unit::Angstrom, &[1.0, 2.0, 6.0, 7.0], 0);
        assert_eq!((score.mean, score.median), (4.0, 4.0));
        // The variance of one is 26/4, that of the mean of four a quarter of it.
        assert!((score.errors[0] - (26.0f64 / 4.0).sqrt() / 2.0).abs() < 0.2, "{:?}", score.errors);
        assert!(thresholds("0.1, 0.5").unwrap() == [0.1, 0.5] && thresholds("0.1,x").is_err() && thresholds("-1").is_err());
    }

    #[test]
    fn ensembles_have_boltzmanns_mean() {
        let e = Energies::new(&[-5.0, -3.0, -5.0], 2.0).unwrap();
        let w = (-1.0f64).exp();
        assert!(e.lowest == -5.0 && (e.mean - (-10.0 - 3.0 * w) / (2.0 + w)).abs() < 1e-14);
        // Far from zero nothing overflows.
        let far = Energies::new(&[-1e6, -1e6 + 1e4], 2.0).unwrap();
        assert_eq!((far.lowest, far.mean), (-1e6, -1e6));
        assert!(Energies::new(&[], 2.0).is_none());
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
