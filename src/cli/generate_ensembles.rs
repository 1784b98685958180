//! `scorefield generate-ensembles`: data for conformer models, from structures or a conformer model and a potential.

use super::input::{FrameStream, Model, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::generation::conformers::{ANGSTROMS, Conformer, Recipe, Relaxation, Subject, Tally, ensemble, graph_of};
use crate::generation::torsions::{Torsions, scaffold};
use crate::io::{Frame, ReadOptions, sdf_text, write_atomically};
use crate::report::progress::Progress;
use crate::signals::Interrupt;
use crate::training::minima::{packed, packed_bytes};
use anyhow::{Context, Result};
use scorefield_integrators::relax::{RelaxOptions, RelaxSpec};
use scorefield_integrators::units::Dimension;
use scorefield_integrators::{DType, Noise, Purpose, Quantity, UnitSystem};
use scorefield_models::ditmc::sampler::Draw;
use scorefield_models::ditmc::{DitmcModel, GraphContext, Sampler, SamplerSettings};
use scorefield_models::molecule::{Perceiver, Vocabulary};
use scorefield_models::painn::trainer::Molecules;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  # Ensembles of 5000 molecules: bonds turned at random, relaxed with ANI-2x, within 10 kcal/mol
  scorefield generate-ensembles qm9.extxyz --relax ani2x:weights=ani2x.safetensors --limit 5000 --output ensembles

  # The same after an interruption; with proposals of a conformer model
  scorefield generate-ensembles molecules.sdf --relax ani2x:weights=ani2x.safetensors --model ditmc.safetensors --output more

Writes train.sdf, validation.sdf and test.sdf: molecules are split by scaffold (ring systems with what joins them), 8:1:1. Run the same
command again to go on where it was interrupted.";

/// Names of the parts, and how many of ten scaffolds each gets.
const PARTS: [(&str, u32); 3] = [("train", 8), ("validation", 1), ("test", 1)];

/// Ensembles of conformers of many molecules, as data to train on
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct GenerateEnsemblesFlags {
    /// Structures of the molecules: SDF, XYZ (bonds are perceived), or packed minima
    #[arg(value_name = "FILE")]
    pub(super) input: Option<PathBuf>,
    /// Force provider that relaxes proposals and ranks them
    #[arg(long, value_name = "SPEC")]
    pub(super) relax: Option<String>,
    /// Conformer model that proposes, instead of bonds turned at random
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,
    /// Proposals per molecule [default: 32]
    #[arg(long, value_name = "N")]
    pub(super) proposals: Option<u32>,
    /// Only this many molecules, chosen at random
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// Keep conformers up to this energy above the lowest [default: 10 kcal/mol]
    #[arg(long, value_name = "ENERGY", allow_hyphen_values = true)]
    pub(super) window: Option<Quantity>,
    /// Conformers nearer than this are one (RMSD of heavy atoms) [default: 0.125 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true)]
    pub(super) distinct: Option<Quantity>,
    /// Converged when no force on an atom is larger [default: 0.05 eV/A]
    #[arg(long, value_name = "FORCE", allow_hyphen_values = true)]
    pub(super) fmax: Option<Quantity>,
    /// Directory for the ensembles
    #[arg(long, short, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
}

/// What a run goes on from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Everything that must stay the same.
    settings: serde_json::Value,
    /// Molecules done.
    done: usize,
    /// Of these, molecules without any conformer.
    empty: usize,
    conformers: usize,
    /// Length of each part's file in bytes.
    lengths: [u64; 3],
}

/// Runs the command.
///
/// # Errors
/// Where flags or files are wrong, the model does not know an element, or output cannot be written.
pub(super) fn run(flags: GenerateEnsemblesFlags, runtime: &Runtime) -> Result<Outcome> {
    let (Some(input), Some(spec), Some(out)) = (&flags.input, &flags.relax, &flags.output) else {
        return usage(
            "a file of molecules, --relax and --output are needed: scorefield generate-ensembles FILE --relax SPEC --output DIR",
        )?;
    };
    let resolve = |name: &str, q: &Option<Quantity>, default: f64, unit: &str, dimension| {
        let q = q.clone().unwrap_or_else(|| Quantity::new(default, unit));
        match q.resolve(dimension, UnitSystem::Si) {
            Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
            Ok(_) => usage(format!("--{name} {q}: give a value that is not below zero")),
            Err(e) => usage(format!("--{name}: {e}")),
        }
    };
    let window = resolve("window", &flags.window, 10.0, "kcal/mol", Dimension::ENERGY)?;
    let distinct = ANGSTROMS * resolve("distinct", &flags.distinct, 0.125, "A", Dimension::LENGTH)?;
    let proposals = flags.proposals.unwrap_or(32);
    if proposals == 0 {
        return usage("--proposals 0: give at least 1")?;
    }
    let forces = Model::build(spec, None)?;
    if !forces.capabilities().energy {
        return usage(format!("--relax {spec}: {} has no energies, so that conformers cannot be ranked", forces.capabilities().name))?;
    }
    let mut method = RelaxSpec::named("lbfgs").unwrap_or_default();
    if let Some(fmax) = &flags.fmax {
        method = method.with_fmax(fmax.clone());
    }
    method.convergence(forces.capabilities().units).map_err(|e| Error::Usage(format!("--fmax: {e}")))?;
    let model = flags.model.as_deref().map(DitmcModel::read).transpose()?;
    let vocabulary = model.as_ref().map_or(Vocabulary::Drugs, |m| m.config.vocabulary);
    let sampler = model.as_ref().map(Sampler::<f32>::new);
    let frames = frames(input, &flags, runtime)?;
    let settings = serde_json::json!({ "flags": flags, "seed": runtime.seed, "molecules": frames.len() });
    let mut files = Files::open(out, &settings)?;
    if files.state.done > 0 {
        runtime.say(format_args!("going on after {} of {} molecules", files.state.done, frames.len()));
    }
    let interrupt = Interrupt::install()?;
    let noise = Noise::new(runtime.seed);
    let options = RelaxOptions {
        dtype: runtime.dtype.unwrap_or(DType::F32),
        max_steps: 2000,
        threads: Some(runtime.threads()),
        stop: Some(interrupt.flag()),
        ..RelaxOptions::default()
    };
    let start = Instant::now();
    let first = files.state.done;
    let mut progress = Progress::new(frames.len() as u64, first as u64, 1, None, runtime.quiet);
    let (mut sum, mut perceiver) = (Tally::default(), Perceiver::new());
    for (index, frame) in frames.iter().enumerate().skip(first) {
        if interrupt.requested() {
            break;
        }
        let subject = match subject(frame, vocabulary, &mut perceiver) {
            Ok(subject) => subject,
            Err(error) => {
                runtime.warn(format_args!("molecule {index} ({}) is left out: {error:#}", frame.label()));
                files.push(0, &[], "")?;
                continue;
            }
        };
        let torsions = Torsions::of(&subject.context.graph);
        let pool = &*runtime.pool;
        let draw = |context: &GraphContext, draws: &[Draw<'_>]| match &sampler {
            Some(sampler) => pool.install(|| sampler.draw(&SamplerSettings::default(), context, noise, draws)),
            None => {
                let turned = |d: &Draw<'_>| d.given.map(|x| torsions.propose(&context.graph, x, noise, d.id, d.round));
                draws.iter().filter_map(turned).collect()
            }
        };
        let relaxation = Relaxation { pool, provider: forces.provider(), method: method.clone(), options };
        let recipe = Recipe { draw: &draw, attempts: 3, mend: false, hop: None, relaxation: Some(relaxation), duplicates: distinct };
        // Few proposals are enough where nothing turns.
        let count = if torsions.is_empty() && sampler.is_none() { proposals.min(4) } else { proposals };
        let (conformers, tally) = ensemble(&subject, count, (index as u32).wrapping_mul(proposals), &recipe)?;
        if interrupt.requested() {
            // What was not relaxed to the end is done anew.
            break;
        }
        sum.add(&tally);
        let (text, kept) = written(&subject, &conformers, window)?;
        files.push(kept, &[part(&subject, noise)], &text)?;
        progress.update(index as u64 + 1, frames.len() as u64);
    }
    progress.finish();
    let state = &files.state;
    let seconds = start.elapsed().as_secs_f64();
    print(format_args!(
        "{} of {} molecules, {} conformers ({:.1} per molecule), {} molecule{} without any\n{sum}\n{:.1} s, {:.2} molecules/s\nwritten to {}",
        state.done,
        frames.len(),
        state.conformers,
        state.conformers as f64 / (state.done - state.empty).max(1) as f64,
        state.empty,
        plural(state.empty),
        seconds,
        (state.done - first) as f64 / seconds.max(1e-9),
        out.display()
    ))?;
    if state.done < frames.len() {
        runtime.warn(format_args!("interrupted; run the same command again to go on"));
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::Done)
}

/// Structures to start from, in an order that depends on the seed alone where some are chosen.
fn frames(path: &Path, flags: &GenerateEnsemblesFlags, runtime: &Runtime) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    if let Some(bytes) = packed_bytes(path)? {
        let mut all = Molecules { offsets: vec![0], ..Molecules::default() };
        packed(path, &bytes, &mut all)?;
        // Only what is meant for training: the rest stays unseen.
        for &i in &all.training {
            let (a, b) = (all.offsets[i as usize], all.offsets[i as usize + 1]);
            let mut system = crate::generation::molecule(&all.types[a..b]);
            system.name = format!("{} {i}", system.name);
            let x = all.positions[3 * a..3 * b].iter().map(|&x| f64::from(x) / ANGSTROMS).collect();
            frames.push(Frame::new(Arc::new(system), x));
        }
    } else {
        frames = FrameStream::new(vec![path.to_owned()], ReadOptions::default()).collect::<Result<_>>()?;
    }
    show_file_warnings(runtime);
    if let Some(limit) = flags.limit {
        let noise = Noise::new(runtime.seed);
        let mut order: Vec<usize> = (0..frames.len()).collect();
        order.sort_by_key(|&i| noise.bits(i as u32, 0, 0, Purpose::TrainingChoice));
        order.truncate(limit);
        frames = order.into_iter().map(|i| frames[i].clone()).collect();
    }
    Ok(frames)
}

fn subject(frame: &Frame, vocabulary: Vocabulary, perceiver: &mut Perceiver) -> Result<Subject> {
    let (graph, whole) = graph_of(frame, perceiver)?;
    if !whole {
        return Err(Error::Run("its hydrogens are no atoms".into()).into());
    }
    if graph.fragments() > 1 {
        return Err(Error::Run("it is in several pieces".into()).into());
    }
    let mut subject = Subject::new(frame.label().to_owned(), &graph, vocabulary)?;
    subject.structures.push(frame.positions.iter().map(|x| x * ANGSTROMS).collect());
    Ok(subject)
}

/// Which part a molecule belongs to: that of its scaffold.
fn part(subject: &Subject, noise: Noise) -> usize {
    let mut hash = 0u64;
    for byte in scaffold(&subject.context.graph).bytes() {
        // FNV-1a.
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let place = noise.bits(hash as u32, (hash >> 32) as u32, 0, Purpose::TrainingChoice)[0] % PARTS.iter().map(|p| p.1).sum::<u32>();
    let mut end = 0;
    let found = PARTS.iter().position(|p| {
        end += p.1;
        place < end
    });
    found.unwrap_or(0)
}

/// Conformers within the window as text, and how many they are.
fn written(subject: &Subject, conformers: &[Conformer], window: f64) -> Result<(String, usize)> {
    let least = conformers.iter().filter_map(|c| c.energy).fold(f64::INFINITY, f64::min);
    let (mut text, mut kept) = (String::new(), 0);
    for c in conformers {
        let Some(energy) = c.energy.filter(|e| e - least <= window) else { continue };
        let mut frame = subject.frame(&c.x);
        frame.properties.insert("energy_kJ_mol".into(), format!("{energy:.6}"));
        frame.properties.insert("relative_energy_kJ_mol".into(), format!("{:.6}", energy - least));
        text += &sdf_text(&frame)?;
        kept += 1;
    }
    Ok((text, kept))
}

/// The files of a run. What is beyond the recorded lengths is of a molecule that was not finished.
struct Files {
    directory: PathBuf,
    files: Vec<std::fs::File>,
    state: State,
}

impl Files {
    fn open(directory: &Path, settings: &serde_json::Value) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|e| Error::file("create", directory, e))?;
        let path = directory.join("state.json");
        let mut state = State { settings: settings.clone(), ..State::default() };
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
            state = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            if state.settings != *settings {
                return usage(format!(
                    "{} holds ensembles of another command; give the same flags and file to go on, or another --output",
                    directory.display()
                ))?;
            }
        }
        let mut files = Vec::new();
        for ((name, _), &length) in PARTS.iter().zip(&state.lengths) {
            let path = directory.join(format!("{name}.sdf"));
            let fail = |e| Error::file("write", &path, e);
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(fail)?;
            if file.metadata().map_err(fail)?.len() < length {
                return Err(Error::Run(format!("{} is shorter than it was; it was changed, begin anew elsewhere", path.display())).into());
            }
            file.set_len(length).map_err(fail)?;
            files.push(file);
        }
        Ok(Files { directory: directory.to_owned(), files, state })
    }

    /// Adds `kept` conformers of one molecule to the parts named, and notes that it is done.
    fn push(&mut self, kept: usize, parts: &[usize], text: &str) -> Result<()> {
        for &part in parts {
            self.files[part].write_all(text.as_bytes()).with_context(|| format!("cannot write {}.sdf", PARTS[part].0))?;
            self.state.lengths[part] += text.len() as u64;
        }
        self.state.done += 1;
        self.state.conformers += kept;
        self.state.empty += usize::from(kept == 0);
        let json = serde_json::to_string(&self.state)?;
        Ok(write_atomically(&self.directory.join("state.json"), |w| writeln!(w, "{json}"))?)
    }
}
