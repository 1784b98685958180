//! `scorefield evaluate`: energies and forces of structures as they are.

use super::input::{Frame, FrameFlags, FrameStream, Model, inspect_overlaps, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::io::{write_atomically, write_frames};
use anyhow::{Context, Result};
use rayon::prelude::*;
use scorefield_integrators::{Batch, DType, ForceProvider, Input, Kind, Output, State, Want};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  scorefield evaluate peptide.pdb --model mm:peptide.xml
  scorefield evaluate run.dcd --topology peptide.pdb --model mm:peptide.xml --frames ::10 --json out.json
  scorefield evaluate cluster.xyz --model 'lj:sigma=3.405A,epsilon=0.0103eV' --extxyz labelled.extxyz
  scorefield evaluate --model muller-brown --json -

JSON: energies in kJ/mol, forces in kJ/mol/nm, one entry per frame in the order of the input; extended XYZ: Å, eV, eV/Å.
A model with reduced units takes the numbers of a file as they are.";

/// Energies and forces of structures, frame by frame
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct EvaluateFlags {
    /// Structure and trajectory files; left out for a model's own start structure
    #[arg(value_name = "STRUCTURES")]
    pub(super) structures: Vec<PathBuf>,
    /// Force provider: a name with parameters, mm:FILE.xml, weights, or a TOML tree (see `scorefield models`)
    #[arg(long, value_name = "SPEC")]
    pub(super) model: Option<String>,
    /// Which frames and atoms.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) which: FrameFlags,
    /// Forget periodic cells: structures are evaluated as if alone in space
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) ignore_cell: Option<bool>,
    /// Write energies and forces as JSON; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write structures with energies and forces as extended XYZ
    #[arg(long, value_name = "FILE")]
    pub(super) extxyz: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where input cannot be read, the model does not fit it, a result is not finite, or output cannot be written.
pub(super) fn run(flags: EvaluateFlags, runtime: &Runtime) -> Result<Outcome> {
    let Some(spec) = &flags.model else {
        return usage("--model is missing; name a force provider, for example `--model mm:peptide.xml` (`scorefield models` lists them)")?;
    };
    let mut stream = FrameStream::new(flags.structures.clone(), flags.which.options()?);
    // The first frame is read before the model: a missing file should be found before large weights are loaded, and
    // some models are bound to start positions.
    let first = stream.next().transpose();
    show_file_warnings(runtime);
    let first = first?;
    let model = Model::listen(spec, first.as_ref().map(|f| f.positions.as_slice()), runtime)?;
    let adopt = first.is_some();
    let first = first.map_or_else(|| model.own_frame(), Ok)?;
    Evaluation { adopt, ..Evaluation::new(&flags, runtime, &model)? }.work(std::iter::once(Ok(first)).chain(stream))
}

/// Energies of `frames` in kJ/mol under `model`, in all threads.
///
/// # Errors
/// Where the model has no energies, does not fit a frame, or an energy is not finite.
pub(super) fn energies(model: &Model, runtime: &Runtime, frames: Vec<Frame>) -> Result<Vec<f64>> {
    let name = &model.capabilities().name;
    if !model.capabilities().energy || model.is_reduced() {
        return usage(format!("--model: {name} has no energies of molecules; `scorefield models` says which have"))?;
    }
    let flags = EvaluateFlags { ignore_cell: Some(true), ..EvaluateFlags::default() };
    let evaluation = Evaluation::new(&flags, runtime, model)?;
    let mut energies = Vec::with_capacity(frames.len());
    let frames = frames.into_iter().enumerate().map(|(i, f)| evaluation.accept(f, i)).collect::<Result<Vec<Frame>>>()?;
    let mut first = 0;
    while first < frames.len() {
        let before = frames[first..].iter().scan(0, |atoms, f| {
            *atoms += f.len();
            Some(*atoms - f.len())
        });
        let window = &frames[first..first + before.take_while(|atoms| *atoms < WINDOW_ATOMS).count()];
        for (frame, point) in window.iter().zip(evaluation.evaluate(window, first)?) {
            check_finite(frame, first, &point)?;
            energies.extend(point.energy);
        }
        first += window.len();
    }
    Ok(energies)
}

/// One frame's results, in internal units.
struct Point {
    energy: Option<f64>,
    forces: Vec<f64>,
    uncertainty: Option<(f64, Vec<f64>)>,
}

/// Settings of the whole command.
struct Evaluation<'a> {
    flags: &'a EvaluateFlags,
    runtime: &'a Runtime,
    model: &'a Model,
    /// Frames come from files, not from the model.
    adopt: bool,
    task: Task,
}

/// What every thread needs.
struct Task {
    dtype: DType,
    want: Want,
    /// A provider that is only forked.
    template: Mutex<Box<dyn ForceProvider>>,
    /// Providers that no thread is using.
    idle: Mutex<Vec<Box<dyn ForceProvider>>>,
}

/// Frames are read, evaluated and written in windows of this many atoms (some 10 MB), so that a trajectory may be
/// larger than memory.
const WINDOW_ATOMS: usize = 1 << 17;
/// Most atoms of one batch: scratch memory stays in a core's cache.
const BATCH_ATOMS: usize = 2048;
/// Rows of the printed table.
const ROWS: usize = 20;

impl<'a> Evaluation<'a> {
    fn new(flags: &'a EvaluateFlags, runtime: &'a Runtime, model: &'a Model) -> Result<Self> {
        let capabilities = model.capabilities();
        if flags.extxyz.is_some() && model.is_reduced() {
            return usage(format!("{} has reduced units, but extended XYZ is in Å and eV; write --json instead", capabilities.name))?;
        }
        if flags.json.as_deref() == Some(Path::new("-")) && flags.extxyz.as_deref() == Some(Path::new("-")) {
            return usage("only one of --json and --extxyz can go to standard output")?;
        }
        let want = Want { energy: capabilities.energy, uncertainty: capabilities.uncertainty, ..Want::FORCES };
        let dtype = runtime.dtype.unwrap_or(DType::F64);
        let task = Task { dtype, want, template: Mutex::new(model.provider().fork()?), idle: Mutex::default() };
        Ok(Evaluation { flags, runtime, model, adopt: true, task })
    }

    fn work(&self, frames: impl Iterator<Item = Result<Frame>>) -> Result<Outcome> {
        let mut summary = Summary::new(self.model, self.task.dtype);
        let mut labelled = Vec::new();
        let to_stdout = self.flags.json.as_deref() == Some(Path::new("-"));
        match &self.flags.json {
            Some(path) if !to_stdout => write_json(path, |w| self.pass(frames, Some(w), &mut summary, &mut labelled))?,
            Some(_) => {
                let mut text = Vec::new();
                self.pass(frames, Some(&mut text), &mut summary, &mut labelled)?;
                print(String::from_utf8_lossy(&text).trim_end())?;
            }
            None => self.pass(frames, None, &mut summary, &mut labelled)?,
        }
        if let Some(path) = &self.flags.extxyz {
            write_frames(path, Some("extxyz"), &labelled)?;
        }
        if !to_stdout {
            print(summary.finish())?;
        }
        for path in [&self.flags.json, &self.flags.extxyz].into_iter().flatten().filter(|p| p.as_path() != Path::new("-")) {
            self.runtime.say(format_args!("wrote {}", path.display()));
        }
        Ok(Outcome::Done)
    }

    /// Evaluates all frames in order, window by window.
    fn pass(
        &self,
        frames: impl Iterator<Item = Result<Frame>>,
        mut json: Option<&mut dyn Write>,
        summary: &mut Summary,
        labelled: &mut Vec<Frame>,
    ) -> Result<()> {
        if let Some(w) = &mut json {
            w.write_all(self.head()?.as_bytes()).map_err(Full)?;
        }
        let mut frames = frames.peekable();
        let mut done = 0;
        while frames.peek().is_some() {
            let mut window = Vec::new();
            let mut atoms = 0;
            while atoms < WINDOW_ATOMS {
                let Some(frame) = frames.next() else { break };
                show_file_warnings(self.runtime);
                let frame = self.accept(frame?, done + window.len())?;
                atoms += frame.len();
                window.push(frame);
            }
            let points = self.evaluate(&window, done)?;
            for (frame, point) in window.into_iter().zip(points) {
                check_finite(&frame, done, &point)?;
                if let Some(w) = &mut json {
                    w.write_all(if done == 0 { b"\n" } else { b",\n" }).map_err(Full)?;
                    w.write_all(&point.json()?).map_err(Full)?;
                }
                summary.add(&frame, &point);
                if self.flags.extxyz.is_some() {
                    labelled.push(Frame { energy: point.energy, forces: Some(point.forces), ..frame });
                }
                done += 1;
            }
        }
        if let Some(w) = &mut json {
            w.write_all(b"\n]}\n").map_err(Full)?;
        }
        Ok(())
    }

    /// Everything of the JSON before the frames.
    fn head(&self) -> Result<String> {
        let capabilities = self.model.capabilities();
        let temperature = match capabilities.kind {
            Kind::MeanForce { temperature_kelvin } => Some(temperature_kelvin),
            Kind::Physical | Kind::PseudoForce => None,
        };
        let units = if self.model.is_reduced() {
            r#"{"system":"reduced","length":"1","energy":"1","force":"1"}"#
        } else {
            r#"{"system":"si","length":"nm","energy":"kJ/mol","force":"kJ/mol/nm"}"#
        };
        Ok(format!(
            "{{\"units\":{units},\"model\":{},\"kind\":{},\"temperature_K\":{},\"frames\":[",
            serde_json::to_string(&self.model.spec)?,
            serde_json::to_string(capabilities.kind.name())?,
            serde_json::to_string(&temperature)?
        ))
    }

    /// Makes a frame fit and looks at it.
    fn accept(&self, frame: Frame, index: usize) -> Result<Frame> {
        let place = || format!("frame {index}");
        let mut frame = if self.adopt { self.model.adopt(frame).with_context(place)? } else { frame };
        if self.flags.ignore_cell == Some(true) {
            frame.cell = None;
        }
        if !self.model.is_reduced()
            && let Some(warning) = inspect_overlaps(&frame).with_context(place)?
        {
            self.runtime.warn(format_args!("frame {index}: {warning}"));
        }
        Ok(frame)
    }

    /// Evaluates `frames`, the first of which has number `first`, in all threads.
    fn evaluate(&self, frames: &[Frame], first: usize) -> Result<Vec<Point>> {
        let total: usize = frames.iter().map(Frame::len).sum();
        let most = (total / self.runtime.threads()).clamp(1, BATCH_ATOMS);
        let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
        let mut atoms = 0;
        for (i, frame) in frames.iter().enumerate() {
            // Cells come for all replicas of a batch or for none.
            let fits =
                batches.last().is_some_and(|b| frames[b.start].cell.is_some() == frame.cell.is_some() && atoms + frame.len() <= most);
            match batches.last_mut() {
                Some(batch) if fits => {
                    batch.end = i + 1;
                    atoms += frame.len();
                }
                _ => {
                    batches.push(i..i + 1);
                    atoms = frame.len();
                }
            }
        }
        let task = &self.task;
        let results: Vec<Result<Vec<Point>>> = self
            .runtime
            .pool
            .install(|| batches.par_iter().map(|range| task.with_provider(|p| task.batch(p, frames, range.clone(), first))).collect());
        let mut points = Vec::with_capacity(frames.len());
        for result in results {
            points.extend(result?);
        }
        Ok(points)
    }
}

impl Task {
    /// Lends a provider to the present thread.
    fn with_provider<T>(&self, work: impl FnOnce(&mut dyn ForceProvider) -> Result<T>) -> Result<T> {
        let idle = lock(&self.idle).pop();
        let mut provider = idle.map_or_else(|| lock(&self.template).fork(), Ok)?;
        let result = work(provider.as_mut());
        lock(&self.idle).push(provider);
        result
    }

    /// Evaluates `frames[range]`; names the frame where one fails.
    fn batch(&self, provider: &mut dyn ForceProvider, frames: &[Frame], range: std::ops::Range<usize>, first: usize) -> Result<Vec<Point>> {
        let whole = self.at_once(provider, &frames[range.clone()]);
        let Err(error) = whole else { return whole };
        // Which one is to blame? Each alone tells.
        for i in range {
            let name = || format!("frame {} ({})", first + i, frames[i].system.name);
            self.at_once(provider, &frames[i..i + 1]).with_context(name)?;
        }
        Err(error)
    }

    fn at_once(&self, provider: &mut dyn ForceProvider, frames: &[Frame]) -> Result<Vec<Point>> {
        let batch = Batch::new(frames.iter().map(|f| f.system.clone()).collect(), (0..frames.len() as u32).collect())?;
        let positions: Vec<f64> = frames.iter().flat_map(|f| f.positions.iter().copied()).collect();
        let mut state = State::at_rest(&batch, &positions, self.dtype)?;
        state.cells = frames.iter().map(|f| f.cell).collect();
        provider.capabilities().check_batch(&batch, state.cells.is_some(), self.dtype).map_err(periodic_remedy)?;
        provider.prepare(&batch, self.dtype)?;
        let mut out = Output::new(&batch, self.dtype, self.want);
        let input =
            Input { batch: &batch, positions: state.positions(), cells: state.cells.as_deref(), clock: state.clock, want: self.want };
        provider.evaluate(&input, &mut out)?;
        let uncertainty = |b: usize| {
            let forces = out.uncertainty.forces.get(batch.range3(b))?.to_vec();
            Some((out.uncertainty.energy.get(b).copied()?, forces))
        };
        Ok((0..frames.len())
            .map(|b| Point {
                energy: self.want.energy.then(|| out.energy[b]),
                forces: out.forces.part(batch.range3(b)).to_f64(),
                uncertainty: uncertainty(b).filter(|_| self.want.uncertainty),
            })
            .collect())
    }
}

/// A thread that panicked while it held the lock has ended the command already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds this command's own way out of an unwanted cell.
pub(super) fn periodic_remedy(error: scorefield_integrators::Error) -> anyhow::Error {
    use scorefield_integrators::Error as E;
    match error {
        E::Unsupported { provider, what, remedy } if what.contains("periodic cell") => {
            E::Unsupported { provider, what, remedy: format!("give --ignore-cell, {remedy}") }.into()
        }
        e => e.into(),
    }
}

fn check_finite(frame: &Frame, index: usize, point: &Point) -> Result<()> {
    let name = &frame.system.name;
    if let Some(k) = point.forces.iter().position(|f| !f.is_finite()) {
        let axis = ["x", "y", "z"][k % 3];
        let atom = frame.system.describe_atom(k / 3);
        return Err(Error::Run(format!(
            "frame {index} ({name}): force {axis} on {atom} is {}; look for overlapping atoms near it",
            point.forces[k]
        ))
        .into());
    }
    if let Some(energy) = point.energy.filter(|e| !e.is_finite()) {
        return Err(Error::Run(format!("frame {index} ({name}): the energy is {energy}; look for overlapping atoms")).into());
    }
    Ok(())
}

impl Point {
    /// One frame's JSON.
    fn json(&self) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Spread<'a> {
            energy: f64,
            forces: &'a [[f64; 3]],
        }
        #[derive(Serialize)]
        struct Entry<'a> {
            energy: Option<f64>,
            forces: &'a [[f64; 3]],
            uncertainty: Option<Spread<'a>>,
        }
        let spread = self.uncertainty.as_ref().map(|(energy, forces)| Spread { energy: *energy, forces: forces.as_chunks().0 });
        Ok(serde_json::to_vec(&Entry { energy: self.energy, forces: self.forces.as_chunks().0, uncertainty: spread })?)
    }

    /// Largest force on an atom.
    fn fmax(&self) -> f64 {
        self.forces.as_chunks::<3>().0.iter().map(|f| f.iter().map(|x| x * x).sum::<f64>().sqrt()).fold(0.0, f64::max)
    }
}

/// Marks errors of the output file among all others of a pass.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Full(std::io::Error);

/// Writes a file through `pass`: whole or not at all, whatever fails.
fn write_json(path: &Path, pass: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut failure = None;
    let written = write_atomically(path, |w| {
        pass(w).map_err(|error| match error.downcast::<Full>() {
            Ok(Full(error)) => error,
            Err(error) => {
                failure = Some(error);
                std::io::Error::other("stopped")
            }
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// What is printed.
struct Summary {
    title: String,
    units: [&'static str; 2],
    rows: Vec<String>,
    frames: usize,
    atoms: usize,
    energies: Vec<f64>,
    fmax: f64,
    hardest: usize,
    start: Instant,
}

impl Summary {
    fn new(model: &Model, dtype: DType) -> Self {
        let c = model.capabilities();
        let kind = match c.kind {
            Kind::MeanForce { temperature_kelvin } => format!("mean force at {temperature_kelvin} K"),
            kind => kind.name().to_owned(),
        };
        Summary {
            title: format!("{} ({kind}), {dtype}", c.name),
            units: if model.is_reduced() { ["", ""] } else { [" kJ/mol", " kJ/mol/nm"] },
            rows: Vec::new(),
            frames: 0,
            atoms: 0,
            energies: Vec::new(),
            fmax: 0.0,
            hardest: 0,
            start: Instant::now(),
        }
    }

    fn add(&mut self, frame: &Frame, point: &Point) {
        let fmax = point.fmax();
        if self.rows.len() < ROWS {
            let energy = point.energy.map_or("-".to_owned(), |e| format!("{e:.6}"));
            let name: String = frame.system.name.chars().take(20).collect();
            self.rows.push(format!("{:>6}  {name:<20} {:>6} {energy:>18} {fmax:>16.6}", self.frames, frame.len()));
        }
        if fmax > self.fmax || self.frames == 0 {
            (self.fmax, self.hardest) = (fmax, self.frames);
        }
        self.energies.extend(point.energy);
        self.frames += 1;
        self.atoms += frame.len();
    }

    fn finish(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        let [energy, force] = self.units;
        let mut lines =
            vec![self.title.clone(), format!("{:>6}  {:<20} {:>6} {:>18} {:>16}", "frame", "name", "atoms", "energy", "largest force")];
        lines.extend(self.rows.iter().cloned());
        if self.frames > self.rows.len() {
            lines.push(format!("{:>6}  ({} more)", "…", self.frames - self.rows.len()));
        }
        lines.push(String::new());
        if self.energies.len() > 1 {
            let n = self.energies.len() as f64;
            let mean = self.energies.iter().sum::<f64>() / n;
            let deviation = (self.energies.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            let (low, high) = self.energies.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &e| (l.min(e), h.max(e)));
            lines.push(format!("energy    {mean:.6} ± {deviation:.6}{energy} (mean and spread), {low:.6} to {high:.6}"));
        }
        lines.push(format!("largest force {:.6}{force} in frame {}", self.fmax, self.hardest));
        lines.push(format!("{} frame{}, {} atoms in {seconds:.2} s", self.frames, plural(self.frames), self.atoms));
        lines.join("\n")
    }
}
