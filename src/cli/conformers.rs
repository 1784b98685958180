//! `scorefield conformers`: from molecular graphs to ensembles of conformers.

use super::denoising::check_writable;
use super::input::{FrameStream, Model, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::generation::conformers::{ANGSTROMS, Conformer, Hop, Recipe, Relaxation, Subject, Tally, ensemble, graph_of};
use crate::io::{ReadOptions, write_atomically, write_frames};
use crate::report::plots::{LinePlot, Series, line_plot};
use crate::signals::Interrupt;
use anyhow::{Context, Result};
use scorefield_integrators::relax::{RelaxOptions, RelaxSpec};
use scorefield_integrators::units::Dimension;
use scorefield_integrators::{DType, Kind, Noise, Quantity, UnitSystem};
use scorefield_models::ditmc::model::EMBEDDED_HEAVY_ATOMS;
use scorefield_models::ditmc::sampler::{Draw, Method, Times};
use scorefield_models::ditmc::{DitmcModel, GraphContext, Sampler, SamplerSettings};
use scorefield_models::molecule::{Graph, Perceiver, Vocabulary};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  # Twenty conformers of paracetamol
  scorefield conformers --smiles 'CC(=O)Nc1ccc(O)cc1' -n 20 -o paracetamol.sdf

  # Many molecules from a file, relaxed and ranked with ANI-2x, without duplicates
  scorefield conformers --input molecules.smi -n 50 --model ditmc.safetensors --relax ani2x:weights=ani2x.safetensors --distinct 0.125A --plot energies.svg -o all.sdf

  # Refine given structures: noise of t = 0.8, then back in ten steps
  scorefield conformers --input rough.sdf --refine 0.8 --steps 10 -n 1 --model ditmc.safetensors -o refined.sdf

Files of molecules: SMILES (.smi, .txt; one per line, a name after it), SDF, MOL2, or coordinates whose bonds are perceived. Every
conformer is checked: bonds, clashes, handedness of each centre, E/Z of each double bond; wrong centres are turned around on the way and
afterwards, what is still wrong is drawn anew.
Table: molecule,name,conformer,energy_kJ_mol,relative_kJ_mol,rounds.
Exit code 1 if a molecule is left without conformers, 130 if interrupted; what was done by then is written.";

/// Conformers of molecules from SMILES or files, by a diffusion transformer
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConformersFlags {
    /// A molecule as SMILES; may be repeated
    #[arg(long, value_name = "SMILES")]
    pub(super) smiles: Vec<String>,
    /// A file of molecules
    #[arg(long, value_name = "FILE")]
    pub(super) input: Option<PathBuf>,
    /// Weights of a conformer model [default: a small one, trained on QM9's minima]
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,
    /// Conformers per molecule, or 2K for twice as many as the file has of it [default: 10]
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) count: Option<String>,
    /// Steps of the sampler [default: 50]
    #[arg(long, value_name = "N", help_heading = "Sampler")]
    pub(super) steps: Option<usize>,
    /// euler or heun [default: euler]
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    pub(super) method: Option<String>,
    /// linear or logarithmic spacing of the steps [default: linear]
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    pub(super) times: Option<String>,
    /// How many times over noise is renewed on the way (SDE) [default: 0, the ODE]
    #[arg(long, value_name = "X", help_heading = "Sampler")]
    pub(super) churn: Option<f64>,
    /// Start from the structures in the file with the noise of this time, from 0 (nothing is left of them) to below 1
    #[arg(long, value_name = "T", help_heading = "Sampler")]
    pub(super) refine: Option<f64>,
    /// Hop from conformer to conformer: each is the one before after the noise of this time (0: nothing is left of it) and its way back
    #[arg(long, value_name = "T", help_heading = "Sampler")]
    pub(super) hop: Option<f64>,
    /// Chains of hops that run beside each other [default: 8]
    #[arg(long, value_name = "N", help_heading = "Sampler")]
    pub(super) chains: Option<u32>,
    /// What is done about handedness and E/Z: steer (on the way, then mend), mend (turn wrong centres around and refine) or redraw
    /// [default: steer]
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    pub(super) stereo: Option<String>,
    /// How far the graph leads, for models trained with guidance: above 1 beyond what the network alone says [default: 1]
    #[arg(long, value_name = "X", help_heading = "Sampler")]
    pub(super) guidance: Option<f64>,
    /// How often a conformer that is wrong is drawn in all [default: 25]
    #[arg(long, value_name = "N", help_heading = "Sampler")]
    pub(super) attempts: Option<u32>,
    /// Relax conformers with this force provider and rank them by energy
    #[arg(long, value_name = "SPEC", help_heading = "Refinement")]
    pub(super) relax: Option<String>,
    /// Converged when no force on an atom is larger [default: 0.05 eV/A]
    #[arg(long, value_name = "FORCE", help_heading = "Refinement", allow_hyphen_values = true)]
    pub(super) fmax: Option<Quantity>,
    /// Leave out conformers nearer than this to a better one (RMSD of heavy atoms, equivalent ones exchanged) [default: none]
    #[arg(long, value_name = "LENGTH", help_heading = "Refinement", allow_hyphen_values = true)]
    pub(super) distinct: Option<Quantity>,
    /// Write the conformers
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub(super) out: Option<PathBuf>,
    /// Write a table with one row per conformer
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) table: Option<PathBuf>,
    /// Draw the energies of each molecule's conformers (SVG); of ten molecules at most
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) plot: Option<PathBuf>,
}

/// Conformers per molecule.
#[derive(Clone, Copy)]
enum Count {
    Fixed(u32),
    TwiceTheFile,
}

/// Runs the command.
///
/// # Errors
/// Where flags or files are wrong, the model does not know an element, or output cannot be written.
pub(super) fn run(flags: ConformersFlags, runtime: &Runtime) -> Result<Outcome> {
    let Some(out) = &flags.out else {
        return usage("--out is missing; name a file for the conformers, for example `-o conformers.sdf`")?;
    };
    check_writable(&[&flags.out, &flags.table, &flags.plot])?;
    if flags.plot.is_some() && flags.relax.is_none() {
        return usage("--plot shows energies; name the force provider that gives them with --relax")?;
    }
    let settings = settings(&flags)?;
    let count = count(flags.count.as_deref())?;
    let threshold = match &flags.distinct {
        Some(q) => ANGSTROMS * q.resolve(Dimension::LENGTH, UnitSystem::Si).map_err(|e| Error::Usage(format!("--distinct: {e}")))?,
        None => 0.0,
    };
    if !(0.0..=100.0).contains(&threshold) {
        return usage("--distinct: give a length from 0 (all are kept) to 100 A")?;
    }
    let model = flags.model.as_deref().map_or_else(DitmcModel::embedded, DitmcModel::read)?;
    settings.check_network(&model.config).map_err(|e| Error::Usage(e.to_string()))?;
    let subjects = subjects(&flags, model.config.vocabulary, runtime)?;
    let heavy = |s: &Subject| s.context.graph.atoms().iter().filter(|a| a.element > 1).count();
    if flags.model.is_none()
        && let Some(large) = subjects.iter().find(|s| heavy(s) > EMBEDDED_HEAVY_ATOMS)
    {
        runtime.say(format_args!(
            "{} has {} heavy atoms; the built-in model learned molecules of up to {EMBEDDED_HEAVY_ATOMS}: look at its conformers, or --relax them",
            large.name,
            heavy(large)
        ));
    }
    let forces = flags.relax.as_deref().map(|spec| Model::build(spec, None)).transpose()?;
    let interrupt = Interrupt::install()?;
    let mut method = RelaxSpec::named("lbfgs").unwrap_or_default();
    if let Some(fmax) = &flags.fmax {
        method = method.with_fmax(fmax.clone());
    }
    if let Some(forces) = &forces {
        method.convergence(forces.capabilities().units).map_err(|e| Error::Usage(format!("--fmax: {e}")))?;
        if forces.capabilities().kind == Kind::PseudoForce {
            runtime.say(format_args!("{} has pseudo-forces: conformers are not ranked", forces.capabilities().name));
        }
    }
    let hop = flags.hop.map(|time| Hop { time, chains: flags.chains.unwrap_or(8) });
    let noise = Noise::new(runtime.seed);
    let single = runtime.dtype.unwrap_or(DType::F32) == DType::F32;
    let (single, double) = (single.then(|| Sampler::<f32>::new(&model)), (!single).then(|| Sampler::<f64>::new(&model)));
    let pool = &*runtime.pool;
    let draw = |context: &GraphContext, draws: &[Draw<'_>]| {
        pool.install(|| match (&single, &double) {
            (Some(sampler), _) => sampler.draw(&settings, context, noise, draws),
            (_, Some(sampler)) => sampler.draw(&settings, context, noise, draws),
            _ => Vec::new(),
        })
    };
    let relaxation = forces.as_ref().map(|f| Relaxation {
        pool,
        provider: f.provider(),
        method: method.clone(),
        options: RelaxOptions {
            dtype: runtime.dtype.unwrap_or(DType::F64),
            max_steps: 10_000,
            threads: Some(runtime.threads()),
            stop: Some(interrupt.flag()),
            ..RelaxOptions::default()
        },
    });
    let recipe = Recipe {
        draw: &draw,
        attempts: flags.attempts.unwrap_or(25),
        mend: flags.stereo.as_deref() != Some("redraw"),
        hop,
        relaxation,
        duplicates: threshold,
    };
    runtime.say(format_args!(
        "{}: {} molecule{}, {} steps; {}, {} threads, seed {}",
        flags.model.as_ref().map_or("the built-in model".into(), |f| f.display().to_string()),
        subjects.len(),
        plural(subjects.len()),
        settings.steps,
        scorefield_integrators::simd::current_isa(),
        runtime.threads(),
        runtime.seed
    ));
    let start = Instant::now();
    let mut delivered: Vec<(usize, Vec<Conformer>)> = Vec::new();
    let (mut sum, mut next) = (Tally::default(), 0u32);
    for (index, subject) in subjects.iter().enumerate() {
        if interrupt.requested() {
            break;
        }
        let n = match count {
            Count::Fixed(n) => n,
            Count::TwiceTheFile => 2 * subject.structures.len() as u32,
        };
        let fresh;
        let subject = match settings.start > 0.0 || hop.is_some() {
            true => subject,
            // Structures of the file only said how many are wanted.
            false => {
                fresh = subject.without_structures();
                &fresh
            }
        };
        let (conformers, tally) = ensemble(subject, n, next, &recipe)?;
        next = next.wrapping_add(n);
        if conformers.is_empty() {
            runtime.warn(format_args!("{} ({}): no conformer is right: {tally}", subject.name, subject.smiles));
        }
        sum.add(&tally);
        delivered.push((index, conformers));
    }
    let seconds = start.elapsed().as_secs_f64();
    write(&flags, out, &subjects, &delivered)?;
    print(summary(&subjects, &delivered, &sum, seconds))?;
    for path in [&flags.out, &flags.table, &flags.plot].into_iter().flatten() {
        runtime.say(format_args!("wrote {}", path.display()));
    }
    if interrupt.requested() {
        runtime.warn(format_args!("interrupted after {} of {} molecules", delivered.len(), subjects.len()));
        return Ok(Outcome::Interrupted);
    }
    match delivered.iter().filter(|d| d.1.is_empty()).count() {
        0 => Ok(Outcome::Done),
        n => {
            Err(Error::Run(format!("{n} of {} molecules are left without conformers; raise --attempts or --steps", subjects.len())).into())
        }
    }
}

fn settings(flags: &ConformersFlags) -> Result<SamplerSettings> {
    let plain = SamplerSettings::default();
    let settings = SamplerSettings {
        steps: flags.steps.unwrap_or(plain.steps),
        times: match flags.times.as_deref() {
            None | Some("linear") => Times::Linear,
            Some("logarithmic") => Times::Logarithmic,
            Some(other) => return usage(format!("--times {other} is not known; known are linear and logarithmic"))?,
        },
        method: match flags.method.as_deref() {
            None | Some("euler") => Method::Euler,
            Some("heun") => Method::Heun,
            Some(other) => return usage(format!("--method {other} is not known; known are euler and heun"))?,
        },
        churn: flags.churn.unwrap_or(plain.churn),
        start: flags.refine.unwrap_or(plain.start),
        guidance: flags.guidance.unwrap_or(plain.guidance),
        steer: match flags.stereo.as_deref() {
            None | Some("steer") => true,
            Some("mend" | "redraw") => false,
            Some(other) => return usage(format!("--stereo {other} is not known; known are steer, mend and redraw"))?,
        },
    };
    settings.check().map_err(|e| Error::Usage(e.to_string()))?;
    match flags.hop {
        Some(time) if !(0.0..1.0).contains(&time) => {
            return usage(format!("--hop {time}: give a time from 0 (nothing is left of the conformer before) to below 1"))?;
        }
        Some(_) if flags.refine.is_some() => return usage("--hop and --refine both say where to start; leave one out")?,
        None if flags.chains.is_some() => return usage("--chains is a setting of --hop; leave it out or give --hop")?,
        _ => {}
    }
    if flags.chains == Some(0) {
        return usage("--chains 0: give at least one")?;
    }
    if flags.refine.is_some() && flags.input.is_none() {
        return usage("--refine needs structures; name their file with --input")?;
    }
    Ok(settings)
}

fn count(text: Option<&str>) -> Result<Count> {
    match text {
        None => Ok(Count::Fixed(10)),
        Some("2K" | "2k") => Ok(Count::TwiceTheFile),
        Some(text) => match text.parse() {
            Ok(n @ 1..=1_000_000) => Ok(Count::Fixed(n)),
            _ => usage(format!("--count {text} is no number from 1 to 1000000, nor 2K"))?,
        },
    }
}

/// Reads the molecules.
fn subjects(flags: &ConformersFlags, vocabulary: Vocabulary, runtime: &Runtime) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for text in &flags.smiles {
        let graph = Graph::from_smiles(text).map_err(|e| Error::Usage(format!("--smiles: {e}")))?;
        subjects.push(Subject::new(text.clone(), &graph, vocabulary).with_context(|| format!("--smiles {text}"))?);
    }
    if let Some(path) = &flags.input {
        match path.extension().and_then(|e| e.to_str()) {
            Some("smi" | "smiles" | "txt") => smiles_file(path, vocabulary, &mut subjects)?,
            _ => structure_file(
                path,
                flags.refine.is_some() || flags.hop.is_some() || flags.count.is_some(),
                vocabulary,
                &mut subjects,
                runtime,
            )?,
        }
    }
    if subjects.is_empty() {
        return usage("no molecule is given; write --smiles 'CCO' or --input FILE")?;
    }
    Ok(subjects)
}

/// One SMILES per line, with a name after it.
fn smiles_file(path: &Path, vocabulary: Vocabulary, subjects: &mut Vec<Subject>) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let Some(smiles) = line.split_whitespace().next().filter(|s| !s.starts_with('#')) else { continue };
        let name = line[smiles.len()..].trim();
        let at = || format!("{}, line {}", path.display(), number + 1);
        let graph = Graph::from_smiles(smiles).with_context(at)?;
        let name = if name.is_empty() { smiles } else { name };
        subjects.push(Subject::new(name.into(), &graph, vocabulary).with_context(at)?);
    }
    Ok(())
}

/// Frames of molecules; consecutive frames of one molecule are its structures.
fn structure_file(path: &Path, keep: bool, vocabulary: Vocabulary, subjects: &mut Vec<Subject>, runtime: &Runtime) -> Result<()> {
    let mut perceiver = Perceiver::new();
    let first = subjects.len();
    for (index, frame) in FrameStream::new(vec![path.to_owned()], ReadOptions::default()).enumerate() {
        let frame = frame?;
        let at = || format!("{}, frame {index}", path.display());
        let (graph, whole) = graph_of(&frame, &mut perceiver).with_context(at)?;
        if !whole {
            runtime.say(format_args!("{}: hydrogens were added by valence; handedness is not read from such a structure", at()));
        }
        let name = match frame.label() {
            "" => format!("frame {index}"),
            label => label.to_owned(),
        };
        let mut subject = Subject::new(name, &graph, vocabulary).with_context(at)?;
        if keep && whole {
            let x: Vec<f64> = frame.positions.iter().map(|x| x * ANGSTROMS).collect();
            match subjects[first..].last_mut() {
                Some(last) if last.context.graph == subject.context.graph => {
                    last.structures.push(x);
                    continue;
                }
                _ => subject.structures.push(x),
            }
        } else if keep {
            return usage(format!("{}: its hydrogens are no atoms, so that there is no whole structure to start from", at()))?;
        }
        subjects.push(subject);
    }
    show_file_warnings(runtime);
    Ok(())
}

fn write(flags: &ConformersFlags, out: &Path, subjects: &[Subject], delivered: &[(usize, Vec<Conformer>)]) -> Result<()> {
    let mut frames = Vec::new();
    let mut table = String::from("molecule,name,conformer,energy_kJ_mol,relative_kJ_mol,rounds\n");
    for (index, conformers) in delivered {
        let subject = &subjects[*index];
        let least = conformers.iter().filter_map(|c| c.energy).fold(f64::INFINITY, f64::min);
        for (k, c) in conformers.iter().enumerate() {
            let mut frame = subject.frame(&c.x);
            frame.energy = c.energy;
            frame.properties.insert("conformer".into(), (k + 1).to_string());
            let mut numbers = [String::new(), String::new()];
            if let Some(energy) = c.energy {
                numbers = [format!("{energy:.6}"), format!("{:.6}", energy - least)];
                frame.properties.insert("energy_kJ_mol".into(), numbers[0].clone());
                frame.properties.insert("relative_energy_kJ_mol".into(), numbers[1].clone());
            }
            // Names are quoted: SMILES have no quotes, titles may.
            let name = subject.name.replace('"', "\"\"");
            let _ = writeln!(table, "{},\"{name}\",{},{},{},{}", index + 1, k + 1, numbers[0], numbers[1], c.rounds);
            frames.push(frame);
        }
    }
    if !frames.is_empty() {
        write_frames(out, None, &frames)?;
    }
    if let Some(path) = &flags.table {
        write_atomically(path, |w| w.write_all(table.as_bytes()))?;
    }
    if let Some(path) = &flags.plot {
        let plot = energies(subjects, delivered);
        write_atomically(path, |w| w.write_all(plot.as_bytes()))?;
    }
    Ok(())
}

/// Energies above the lowest one, in rising order, a curve per molecule.
fn energies(subjects: &[Subject], delivered: &[(usize, Vec<Conformer>)]) -> String {
    let curve = |(index, conformers): &(usize, Vec<Conformer>)| {
        let mut energies: Vec<f64> = conformers.iter().filter_map(|c| c.energy).collect();
        energies.sort_unstable_by(f64::total_cmp);
        let points = energies.iter().enumerate().map(|(k, e)| ((k + 1) as f64, e - energies[0])).collect();
        Series { name: subjects[*index].name.clone(), points, errors: Vec::new() }
    };
    line_plot(&LinePlot {
        title: "Energies of conformers".into(),
        x_label: "conformer".into(),
        y_label: "energy above the lowest / kJ/mol".into(),
        series: delivered.iter().take(LINES).map(curve).collect(),
        ..LinePlot::default()
    })
}

/// Most molecules of the summary and of the plot.
const LINES: usize = 10;

/// One line per molecule (at most ten), and the counts.
fn summary(subjects: &[Subject], delivered: &[(usize, Vec<Conformer>)], sum: &Tally, seconds: f64) -> String {
    let mut text = format!("{:>10}  {:>16}  {:>14}  molecule\n", "conformers", "lowest (kJ/mol)", "range (kJ/mol)");
    for (index, conformers) in delivered.iter().take(LINES) {
        let energies: Vec<f64> = conformers.iter().filter_map(|c| c.energy).collect();
        let least = energies.iter().copied().fold(f64::INFINITY, f64::min);
        let most = energies.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let numbers = if energies.is_empty() { ["-".into(), "-".into()] } else { [format!("{least:.2}"), format!("{:.2}", most - least)] };
        let _ = writeln!(text, "{:>10}  {:>16}  {:>14}  {}", conformers.len(), numbers[0], numbers[1], subjects[*index].name);
    }
    if delivered.len() > LINES {
        let _ = writeln!(text, "... and {} more", delivered.len() - LINES);
    }
    let rate = if seconds > 0.0 { sum.kept as f64 / seconds } else { 0.0 };
    text + &format!("{sum}\n{seconds:.2} s, {rate:.2} conformers/s")
}
