//! `scorefield evaluate-molecules`: are structures molecules, how many different ones, and are they like the reference?

use super::evaluate::energies;
use super::input::{Frame, FrameFlags, FrameStream, Model, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::analysis::molecules::{Comparison, compare, element_constants, share};
use crate::error::usage;
use crate::io::{elements, write_atomically, write_frames};
use crate::report::plots::{LinePlot, Series, line_plot};
use anyhow::{Context, Result};
use rayon::prelude::*;
use scorefield_models::molecule::{Compare, Convention, Identity, Perceiver, Stability, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  scorefield evaluate-molecules generated.sdf
  scorefield evaluate-molecules generated.xyz --reference qm9.extxyz --json metrics.json --plot sizes.svg
  scorefield evaluate-molecules generated.sdf --reference qm9.extxyz --model ani:ani2x.safetensors

Bonds are perceived from the coordinates as RDKit's DetermineBonds does; bonds in the files are not looked at. A structure is
valid where that succeeds, all atoms are connected and no electron is unpaired. Unique and novel refer to valid molecules.
Divergences (Jensen-Shannon, nats, 100 bins) compare valid molecules with the valid ones of the reference.";

/// Validity, stability, uniqueness and novelty of generated molecules
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct EvaluateMoleculesFlags {
    /// Files with generated structures
    #[arg(value_name = "FILES")]
    pub(super) files: Vec<PathBuf>,
    /// Which frames and atoms of them.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) which: FrameFlags,
    /// Molecules to compare with: novelty and divergences
    #[arg(long, value_name = "FILE")]
    pub(super) reference: Option<PathBuf>,
    /// Force provider whose energies are compared as well
    #[arg(long, value_name = "SPEC")]
    pub(super) model: Option<String>,
    /// Do not let atoms be charged: what a charge would explain counts as unpaired electrons
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) neutral_atoms: Option<bool>,
    /// Write all numbers as JSON; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write histograms of the largest distance as SVG (of energies: FILE with `-energy`)
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
    /// Write what was found of each structure as CSV
    #[arg(long, value_name = "FILE")]
    pub(super) table: Option<PathBuf>,
    /// Write valid molecules with their bonds
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where files cannot be read or written, or the model fails.
pub(super) fn run(flags: EvaluateMoleculesFlags, runtime: &Runtime) -> Result<Outcome> {
    if flags.files.is_empty() {
        return usage("a file is needed: scorefield evaluate-molecules FILE")?;
    }
    let convention = if flags.neutral_atoms == Some(true) { Convention::without_charges() } else { Convention::default() };
    let read = |files: Vec<PathBuf>, options| {
        let frames = FrameStream::new(files, options).collect::<Result<Vec<Frame>>>();
        show_file_warnings(runtime);
        frames
    };
    let generated = Judged::all(read(flags.files.clone(), flags.which.options()?)?, convention, flags.table.is_some(), runtime);
    let reference = match &flags.reference {
        Some(file) => {
            let frames = read(vec![file.clone()], Default::default()).with_context(|| format!("--reference {}", file.display()))?;
            let judged = Judged::all(frames, convention, false, runtime);
            if judged.valid().next().is_none() {
                return usage(format!("--reference {}: no structure in it is a valid molecule", file.display()))?;
            }
            Some(judged)
        }
        None => None,
    };
    let size = reference.as_ref().and_then(|r| compare(&generated.sizes(), &r.sizes(), runtime.seed));
    let energy = match &flags.model {
        Some(spec) => Some(Energies::new(spec, &generated, reference.as_ref(), runtime)?),
        None => None,
    };
    let report = Report::new(&flags, convention, &generated, reference.as_ref(), size.as_ref(), energy.as_ref());
    report.write(&flags, runtime, size.as_ref(), energy.as_ref().and_then(|e| e.comparison.as_ref()))?;
    if let Some(path) = &flags.table {
        let text = generated.table();
        write_atomically(path, |w| w.write_all(text.as_bytes()))?;
        runtime.say(format_args!("wrote {}", path.display()));
    }
    if let Some(path) = &flags.out {
        let frames: Vec<Frame> = generated.valid().map(|m| m.frame.clone()).collect();
        if frames.is_empty() {
            runtime.warn(format_args!("{} is not written: no structure is a valid molecule", path.display()));
        } else {
            write_frames(path, None, &frames)?;
            show_file_warnings(runtime);
            runtime.say(format_args!("wrote {}", path.display()));
        }
    }
    Ok(Outcome::Done)
}

/// One structure and what is thought of it. The frame of a valid molecule has its bonds.
struct Judgement {
    frame: Frame,
    verdict: &'static str,
    /// Valid by the other convention of charges.
    valid_otherwise: bool,
    stability: Stability,
    identity: Option<Identity>,
    /// Canonical SMILES with the stereo of the coordinates, where a table is wanted.
    smiles: String,
    /// Largest distance of two atoms in nm.
    size: f64,
}

struct Judged(Vec<Judgement>);

impl Judged {
    fn all(frames: Vec<Frame>, convention: Convention, smiles: bool, runtime: &Runtime) -> Judged {
        let judge = |perceiver: &mut Perceiver, mut frame: Frame| {
            let (types, x) = (frame.system.types.clone(), frame.positions.clone());
            let of_frame = Convention { charge: frame.system.charge, ..convention };
            let other = Convention { charged_fragments: !convention.charged_fragments, ..of_frame };
            let valid_otherwise = Verdict::of(perceiver, &types, &x, other).is_valid();
            let verdict = Verdict::of(perceiver, &types, &x, of_frame);
            let name = verdict.name();
            let (mut identity, mut text) = (None, String::new());
            if let Verdict::Valid(mut graph) = verdict {
                let rings = graph.find_aromaticity();
                if smiles {
                    graph.set_stereo_from(&x, &rings);
                    text = graph.to_smiles(Compare::Stereo);
                }
                identity = Some(graph.identity(Compare::Constitution));
                frame.set_graph(graph);
            }
            let size = largest_distance(&x);
            Judgement { verdict: name, valid_otherwise, stability: Stability::of(&types, &x), identity, smiles: text, size, frame }
        };
        Judged(runtime.pool.install(|| frames.into_par_iter().map_init(Perceiver::new, judge).collect()))
    }

    fn valid(&self) -> impl Iterator<Item = &Judgement> {
        self.0.iter().filter(|m| m.identity.is_some())
    }

    fn sizes(&self) -> Vec<f64> {
        self.valid().map(|m| m.size).collect()
    }

    fn identities(&self) -> HashSet<&Identity> {
        self.0.iter().filter_map(|m| m.identity.as_ref()).collect()
    }

    /// A line per structure.
    fn table(&self) -> String {
        let mut text = String::from("frame,name,atoms,verdict,stable_atoms,molecule,largest_distance_nm,smiles\n");
        let mut numbers = HashMap::new();
        for (i, m) in self.0.iter().enumerate() {
            let molecule = m.identity.as_ref().map_or(String::new(), |identity| {
                let next = numbers.len();
                numbers.entry(identity).or_insert(next).to_string()
            });
            let name = m.frame.label().replace(['"', '\n', '\r'], " ");
            let _ = writeln!(
                text,
                "{i},\"{name}\",{},{},{},{molecule},{:.6},{}",
                m.frame.len(),
                m.verdict,
                m.stability.stable_atoms,
                m.size,
                m.smiles
            );
        }
        text
    }
}

fn largest_distance(x: &[f64]) -> f64 {
    let points = x.as_chunks::<3>().0;
    let mut largest = 0f64;
    for (i, a) in points.iter().enumerate() {
        for b in &points[..i] {
            largest = largest.max((0..3).map(|k| (a[k] - b[k]).powi(2)).sum());
        }
    }
    largest.sqrt()
}

/// Energies of valid molecules under a model, less the elements' constants.
struct Energies {
    /// Energies in kJ/mol, each less the sum over its atoms.
    generated: Vec<f64>,
    comparison: Option<Comparison>,
}

impl Energies {
    fn new(spec: &str, generated: &Judged, reference: Option<&Judged>, runtime: &Runtime) -> Result<Energies> {
        let model = Model::build(spec, None)?;
        let of = |judged: &Judged| energies(&model, runtime, judged.valid().map(|m| m.frame.clone()).collect());
        let own = of(generated)?;
        let basis = reference.unwrap_or(generated);
        let kinds: BTreeSet<u32> = generated.valid().chain(basis.valid()).flat_map(|m| m.frame.system.types.iter().copied()).collect();
        let kinds: Vec<u32> = kinds.into_iter().collect();
        let composition =
            |m: &Judgement| -> Vec<f64> { kinds.iter().map(|z| m.frame.system.types.iter().filter(|t| *t == z).count() as f64).collect() };
        let known = match reference {
            Some(r) => of(r)?,
            None => own.clone(),
        };
        let compositions: Vec<Vec<f64>> = basis.valid().map(composition).collect();
        let Some(constants) = element_constants(&known, &compositions) else {
            return Ok(Energies { generated: Vec::new(), comparison: None });
        };
        let rest = |energies: &[f64], compositions: &mut dyn Iterator<Item = Vec<f64>>| -> Vec<f64> {
            energies.iter().zip(compositions).map(|(e, c)| e - c.iter().zip(&constants).map(|(n, k)| n * k).sum::<f64>()).collect()
        };
        let generated = rest(&own, &mut generated.valid().map(composition));
        let comparison = reference.and_then(|_| compare(&generated, &rest(&known, &mut compositions.into_iter()), runtime.seed));
        Ok(Energies { generated, comparison })
    }

    /// Mean and standard error of the mean.
    fn mean(&self) -> (f64, f64) {
        let n = self.generated.len() as f64;
        let mean = self.generated.iter().sum::<f64>() / n;
        let variance = self.generated.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, (variance / n).sqrt())
    }
}

/// A number with its standard error.
#[derive(Clone, Copy, Serialize)]
struct Estimate {
    value: Option<f64>,
    error: Option<f64>,
}

impl Estimate {
    fn new((value, error): (f64, f64)) -> Self {
        Estimate { value: Some(value).filter(|v| v.is_finite()), error: Some(error).filter(|v| v.is_finite()) }
    }

    fn percent(&self) -> String {
        match (self.value, self.error) {
            (Some(v), Some(e)) => format!("{:6.2} ± {:.2} %", 100.0 * v, 100.0 * e),
            _ => "     -".into(),
        }
    }
}

/// A divergence with its error and floor.
#[derive(Serialize)]
struct Divergence {
    value: f64,
    error: f64,
    floor: f64,
}

impl Divergence {
    fn new(c: &Comparison) -> Self {
        Divergence { value: c.divergence, error: c.error, floor: c.floor }
    }
}

/// All numbers, as they go into the JSON.
#[derive(Serialize)]
struct Report {
    files: Vec<PathBuf>,
    reference: Option<PathBuf>,
    model: Option<String>,
    charged_fragments: bool,
    structures: usize,
    valid: Estimate,
    valid_by_the_other_convention: Estimate,
    verdicts: HashMap<&'static str, usize>,
    stable_atoms: Estimate,
    stable_molecules: Estimate,
    unique_of_valid: Estimate,
    novel_of_unique: Option<Estimate>,
    largest_distance_nm: Estimate,
    largest_distance_divergence: Option<Divergence>,
    energy_kj_mol: Option<Estimate>,
    energy_divergence: Option<Divergence>,
    formulas: usize,
}

impl Report {
    fn new(
        flags: &EvaluateMoleculesFlags,
        convention: Convention,
        generated: &Judged,
        reference: Option<&Judged>,
        size: Option<&Comparison>,
        energy: Option<&Energies>,
    ) -> Report {
        let n = generated.0.len();
        let valid = generated.valid().count();
        let mut verdicts = HashMap::new();
        generated.0.iter().for_each(|m| *verdicts.entry(m.verdict).or_insert(0) += 1);
        let identities = generated.identities();
        let novel = reference.map(|r| {
            let known = r.identities();
            Estimate::new(share(identities.iter().filter(|i| !known.contains(**i)).count(), identities.len()))
        });
        let atoms: usize = generated.0.iter().map(|m| m.stability.atoms).sum();
        let stable: usize = generated.0.iter().map(|m| m.stability.stable_atoms).sum();
        let sizes = generated.sizes();
        let mean = sizes.iter().sum::<f64>() / valid as f64;
        let spread = (sizes.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (valid as f64 - 1.0) / valid as f64).sqrt();
        let formulas: HashSet<String> = generated.valid().map(|m| formula(&m.frame)).collect();
        Report {
            files: flags.files.clone(),
            reference: flags.reference.clone(),
            model: flags.model.clone(),
            charged_fragments: convention.charged_fragments,
            structures: n,
            valid: Estimate::new(share(valid, n)),
            valid_by_the_other_convention: Estimate::new(share(generated.0.iter().filter(|m| m.valid_otherwise).count(), n)),
            verdicts,
            stable_atoms: Estimate::new(share(stable, atoms)),
            stable_molecules: Estimate::new(share(generated.0.iter().filter(|m| m.stability.is_stable()).count(), n)),
            unique_of_valid: Estimate::new(share(identities.len(), valid)),
            novel_of_unique: novel,
            largest_distance_nm: Estimate::new((mean, spread)),
            largest_distance_divergence: size.map(Divergence::new),
            energy_kj_mol: energy.map(|e| Estimate::new(e.mean())),
            energy_divergence: energy.and_then(|e| e.comparison.as_ref()).map(Divergence::new),
            formulas: formulas.len(),
        }
    }

    /// The printed table.
    fn text(&self) -> String {
        let mut lines = Vec::new();
        let mut row = |name: &str, value: String| lines.push(format!("{name:<28}{value}"));
        let conventions = ["atoms may be charged", "neutral atoms only"];
        let (own, other) = if self.charged_fragments { (0, 1) } else { (1, 0) };
        row("structures", format!("{:6}", self.structures));
        row("valid", format!("{}   {}", self.valid.percent(), conventions[own]));
        row("", format!("{}   {}", self.valid_by_the_other_convention.percent(), conventions[other]));
        for (verdict, name) in
            [("disconnected", "in several pieces"), ("radical", "with unpaired electrons"), ("no-molecule", "no molecule")]
        {
            row(&format!("  {name}"), format!("{:6}", self.verdicts.get(verdict).copied().unwrap_or(0)));
        }
        row("stable atoms", self.stable_atoms.percent());
        row("stable molecules", self.stable_molecules.percent());
        row("unique (of valid)", format!("{}   {} formula{}", self.unique_of_valid.percent(), self.formulas, plural(self.formulas)));
        if let Some(novel) = &self.novel_of_unique {
            row("novel (of unique)", novel.percent());
        }
        if let (Some(mean), error) = (self.largest_distance_nm.value, self.largest_distance_nm.error.unwrap_or(f64::NAN)) {
            row("largest distance", format!("{:8.4} ± {} Å (mean)", 10.0 * mean, digits(10.0 * error, 4)));
        }
        let divergence = |d: &Divergence| format!("{:8.5} ± {} nats (floor {:.5})", d.value, digits(d.error, 5), d.floor);
        if let Some(d) = &self.largest_distance_divergence {
            row("  JS to the reference", divergence(d));
        }
        if let Some(Estimate { value: Some(mean), error }) = self.energy_kj_mol {
            row("energy less elements", format!("{mean:8.2} ± {} kJ/mol (mean)", digits(error.unwrap_or(f64::NAN), 2)));
        }
        if let Some(d) = &self.energy_divergence {
            row("  JS to the reference", divergence(d));
        }
        lines.join("\n")
    }

    fn write(
        &self,
        flags: &EvaluateMoleculesFlags,
        runtime: &Runtime,
        size: Option<&Comparison>,
        energy: Option<&Comparison>,
    ) -> Result<()> {
        let to_stdout = flags.json.as_deref() == Some(Path::new("-"));
        if let Some(path) = &flags.json {
            let text = serde_json::to_string_pretty(self)?;
            if to_stdout {
                print(text)?;
            } else {
                write_atomically(path, |w| writeln!(w, "{text}"))?;
                runtime.say(format_args!("wrote {}", path.display()));
            }
        }
        if !to_stdout {
            print(self.text())?;
        }
        let Some(path) = &flags.plot else { return Ok(()) };
        if size.is_none() {
            runtime.warn(format_args!("{} is not written: histograms need --reference and valid molecules", path.display()));
        }
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let energy_path = path.with_file_name(format!("{stem}-energy.svg"));
        for (comparison, path, label, factor) in
            [(size, path, "largest distance / Å", 10.0), (energy, &energy_path, "energy less elements / kJ/mol", 1.0)]
        {
            let Some(c) = comparison else { continue };
            let svg = histogram(c, label, factor);
            write_atomically(path, |w| w.write_all(svg.as_bytes()))?;
            runtime.say(format_args!("wrote {}", path.display()));
        }
        Ok(())
    }
}

/// Both histograms as steps; `factor` takes their numbers to the unit of the label.
fn histogram(c: &Comparison, label: &str, factor: f64) -> String {
    let steps = |name: &str, shares: &[f64]| {
        let width = factor * (c.edges[1] - c.edges[0]);
        let points = shares.iter().zip(c.edges.windows(2)).flat_map(|(s, e)| e.iter().map(|x| (factor * x, s / width)).collect::<Vec<_>>());
        Series { name: name.into(), points: points.collect(), errors: Vec::new() }
    };
    line_plot(&LinePlot {
        title: format!("JS {:.4} ± {:.4}", c.divergence, c.error),
        x_label: label.into(),
        y_label: "density".into(),
        series: vec![steps("generated", &c.samples), steps("reference", &c.reference)],
        ..LinePlot::default()
    })
}

/// A number for the table; a dash where one molecule says nothing of an error.
fn digits(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "-".into() }
}

/// Sum formula in Hill's order.
fn formula(frame: &Frame) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    let mut types = frame.system.types.clone();
    types.sort_unstable();
    for chunk in types.chunk_by(|a, b| a == b) {
        counts.push((elements::symbol(chunk[0]).to_owned(), chunk.len()));
    }
    let carbon = counts.iter().any(|c| c.0 == "C");
    let rank = |s: &str| match s {
        "C" if carbon => 0,
        "H" if carbon => 1,
        _ => 2,
    };
    counts.sort_by(|a, b| (rank(&a.0), &a.0).cmp(&(rank(&b.0), &b.0)));
    counts.iter().map(|(s, n)| if *n == 1 { s.clone() } else { format!("{s}{n}") }).collect()
}
