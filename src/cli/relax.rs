//! `scorefield relax`: every frame of a trajectory, or every molecule of a file, downhill until its forces vanish.

use super::evaluate::periodic_remedy;
use super::input::{Frame, FrameFlags, FrameStream, Model, inspect_overlaps, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::generation::Batches;
use crate::generation::noise_levels;
use crate::io::{Selection, write_atomically, write_frames};
use crate::signals::Interrupt;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use scorefield_integrators::denoise::DenoiseSpec;
use scorefield_integrators::relax::{Job, RelaxOptions, RelaxSpec, Relaxed, Tally, relax_all};
use scorefield_integrators::{Batch, DType, DeviceSpec, Kind, Progress, Quantity};
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  scorefield relax molecules.sdf --model mm:molecule.xml --out relaxed.sdf --table relaxed.csv
  scorefield relax run.dcd --topology peptide.pdb --model mm:peptide.xml --method lbfgs --fmax '0.001 eV/A'
  scorefield relax start.xyz --model 'lj:sigma=3.405A,epsilon=0.0103eV' --out minimum.xyz

Table: frame,energy_kJ_mol,fmax_kJ_mol_nm,steps,rmsd_A,converged (without units for models in reduced units).
Exit code 1 if a structure fails or does not converge, 130 if interrupted; what was done by then is written.";

/// Relax structures to the nearest minimum, many at a time
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct RelaxFlags {
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
    /// Forget periodic cells: structures are relaxed as if alone in space
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) ignore_cell: Option<bool>,
    /// fire or lbfgs [default: fire]
    #[arg(long, value_name = "NAME", help_heading = "Relaxation")]
    pub(super) method: Option<String>,
    /// Converged when no force on an atom is larger, for example '0.01 eV/A' [default: 0.05 eV/A]
    #[arg(long, value_name = "FORCE", help_heading = "Relaxation", allow_hyphen_values = true)]
    pub(super) fmax: Option<Quantity>,
    /// Most steps per structure [default: 10000]
    #[arg(long, value_name = "N", help_heading = "Relaxation")]
    pub(super) max_steps: Option<u64>,
    /// Atoms that do not move, as a selection: `name CA`, `0-4,8`
    #[arg(long, value_name = "SELECTION", help_heading = "Relaxation")]
    pub(super) freeze: Option<String>,
    /// Where forces are evaluated: cpu, cuda or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE", help_heading = "Relaxation")]
    pub(super) device: Option<DeviceSpec>,
    /// End with exit code 0 also where structures did not converge
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Relaxation")]
    pub(super) allow_unconverged: Option<bool>,
    /// Write relaxed structures, in the order of the input
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub(super) out: Option<PathBuf>,
    /// Write a table with one row per structure
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) table: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where input cannot be read, the model does not fit, output cannot be written, or a structure did not converge.
pub(super) fn run(flags: RelaxFlags, runtime: &Runtime) -> Result<Outcome> {
    let Some(spec) = &flags.model else {
        return usage("--model is missing; name a force provider, for example `--model mm:peptide.xml` (`scorefield models` lists them)")?;
    };
    let method = flags.method.as_deref().unwrap_or("fire");
    let Some(mut method) = RelaxSpec::named(method) else {
        return usage(format!("--method {method} is not known; known are {}", RelaxSpec::NAMES.join(" and ")))?;
    };
    if let Some(fmax) = &flags.fmax {
        method = method.with_fmax(fmax.clone());
    }
    if flags.max_steps == Some(0) {
        return usage("--max-steps is 0; give at least 1")?;
    }
    let (frames, unread) = read_all(&flags, runtime)?;
    let model = Model::listen(spec, frames.first().map(|f| f.positions.as_slice()), runtime)?.on(flags.device)?;
    method.convergence(model.capabilities().units).map_err(|e| Error::Usage(format!("--fmax: {e}")))?;
    let frames = if flags.structures.is_empty() {
        vec![model.own_frame()?]
    } else {
        frames.into_iter().enumerate().map(|(i, f)| model.adopt(f).with_context(|| format!("frame {i}"))).collect::<Result<_>>()?
    };
    let frames = prepare(frames, &flags, &model, runtime)?;
    if model.capabilities().kind == Kind::PseudoForce {
        runtime.say(format_args!(
            "{} has pseudo-forces: it leads to its minima, and its forces have no physical size",
            model.capabilities().name
        ));
    }
    check_writable(&flags)?;
    Relaxation { flags: &flags, runtime, model: &model, method: &method, frames: &frames }.work(unread)
}

/// All frames of all files, up to the first that cannot be read; fails where that is the very first.
fn read_all(flags: &RelaxFlags, runtime: &Runtime) -> Result<(Vec<Frame>, Option<anyhow::Error>)> {
    let mut frames = Vec::new();
    let mut unread = None;
    for frame in FrameStream::new(flags.structures.clone(), flags.which.options()?) {
        match frame {
            Ok(frame) => frames.push(frame),
            Err(error) => unread = Some(error),
        }
    }
    show_file_warnings(runtime);
    match unread {
        Some(error) if frames.is_empty() => Err(error),
        unread => Ok((frames, unread)),
    }
}

/// Freezes atoms, drops unwanted cells, and looks for what cannot work for any frame.
fn prepare(mut frames: Vec<Frame>, flags: &RelaxFlags, model: &Model, runtime: &Runtime) -> Result<Vec<Frame>> {
    let freeze: Option<Selection> =
        flags.freeze.as_deref().map(str::parse).transpose().map_err(|e| Error::Usage(format!("--freeze: {e}")))?;
    let mut frozen: Option<(Arc<scorefield_integrators::System>, Arc<scorefield_integrators::System>)> = None;
    for (index, frame) in frames.iter_mut().enumerate() {
        if flags.ignore_cell == Some(true) {
            frame.cell = None;
        }
        if let Some(selection) = &freeze {
            let before = frame.system.clone();
            match &frozen {
                Some((same, after)) if Arc::ptr_eq(same, &before) => frame.system = after.clone(),
                _ => {
                    let mut system = (*before).clone();
                    for atom in selection.atoms(frame).with_context(|| format!("--freeze, frame {index}"))? {
                        system.masses[atom] = 0.0;
                    }
                    frame.system = Arc::new(system);
                    frozen = Some((before, frame.system.clone()));
                }
            }
        }
        if !model.is_reduced()
            && let Ok(Some(warning)) = inspect_overlaps(frame)
        {
            runtime.warn(format_args!("frame {index}: {warning}"));
        }
    }
    if let Some(frame) = frames.first() {
        // What refuses the first frame would most likely refuse them all; say it once and with a remedy.
        let batch = Batch::uniform(frame.system.clone(), 1, 0)?;
        let dtype = runtime.dtype.unwrap_or(DType::F64);
        model.capabilities().check_batch(&batch, frame.cell.is_some(), dtype).map_err(periodic_remedy)?;
    }
    Ok(frames)
}

/// Finds an unwritable output before the work, not after.
fn check_writable(flags: &RelaxFlags) -> Result<()> {
    for path in [&flags.out, &flags.table].into_iter().flatten() {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !directory.is_dir() {
            return usage(format!("cannot write {}: there is no directory {}", path.display(), directory.display()))?;
        }
    }
    Ok(())
}

struct Relaxation<'a> {
    flags: &'a RelaxFlags,
    runtime: &'a Runtime,
    model: &'a Model,
    method: &'a RelaxSpec,
    frames: &'a [Frame],
}

impl Relaxation<'_> {
    fn work(&self, unread: Option<anyhow::Error>) -> Result<Outcome> {
        let interrupt = Interrupt::install()?;
        let bar = self.progress_bar();
        let show = |tally: &Tally| {
            bar.set_position((tally.converged + tally.stalled + tally.unfinished + tally.failed) as u64);
            bar.set_message(format!("{} steps", tally.steps));
        };
        let here = RelaxOptions { threads: Some(self.runtime.threads()), ..RelaxOptions::default() };
        let Batches { atoms, at_work } = self.model.batches;
        let batches = if self.flags.device.unwrap_or_default() == DeviceSpec::Cpu {
            here
        } else {
            RelaxOptions { batch_atoms: atoms, threads: at_work, ..here }
        };
        let options = RelaxOptions {
            dtype: self.runtime.dtype.unwrap_or(DType::F64),
            max_steps: self.flags.max_steps.unwrap_or(10_000),
            stop: Some(interrupt.flag()),
            progress: Some(&show),
            ..batches
        };
        let jobs: Vec<Job> =
            self.frames.iter().map(|f| Job { system: f.system.clone(), positions: f.positions.clone(), cell: f.cell }).collect();
        let results = Mutex::new(Vec::with_capacity(jobs.len()));
        let start = Instant::now();
        let provider = self.model.provider().fork()?;
        let (runtime, method, frames, bar_, results_) = (self.runtime, self.method, self.frames, &bar, &results);
        let tally = runtime.pool.install(move || {
            relax_all(jobs, provider.as_ref(), method, &options, |index, result| {
                if let Err(error) = &result {
                    bar_.suspend(|| runtime.warn(format_args!("frame {index} ({}) failed: {error}", frames[index].system.name)));
                }
                results_.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
            })
        })?;
        bar.finish_and_clear();
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let interrupted = interrupt.requested() && (tally.taken < self.frames.len() || tally.unfinished > 0);
        let time = start.elapsed();
        self.write(&results)?;
        print(self.summary(&results, &tally, time))?;
        if let Some(line) = self.noise_levels(&results)? {
            print(line)?;
        }
        for path in [&self.flags.out, &self.flags.table].into_iter().flatten() {
            self.runtime.say(format_args!("wrote {}", path.display()));
        }
        if interrupted {
            self.runtime.warn(format_args!(
                "interrupted: {} of {} structures were not begun, {} not finished; run the rest with --frames {}:",
                self.frames.len() - tally.taken,
                self.frames.len(),
                tally.unfinished,
                results.iter().find(|(_, r)| r.as_ref().is_ok_and(|r| r.progress == Progress::Running)).map_or(tally.taken, |r| r.0)
            ));
            return Ok(Outcome::Interrupted);
        }
        if let Some(error) = unread {
            return Err(error.context(format!("frames from {} on could not be read; those before are done", self.frames.len())));
        }
        let bad = tally.stalled + tally.unfinished;
        let mut complaints = Vec::new();
        if tally.failed > 0 {
            complaints.push(format!("{} of {} structures failed (see the warnings above)", tally.failed, self.frames.len()));
        }
        if bad > 0 && self.flags.allow_unconverged != Some(true) {
            complaints.push(format!(
                "{bad} of {} structures did not converge; raise --max-steps or --fmax, or accept them with --allow-unconverged",
                self.frames.len()
            ));
        }
        match complaints.as_slice() {
            [] => Ok(Outcome::Done),
            _ => Err(Error::Run(complaints.join("; ")).into()),
        }
    }

    /// With pseudo-forces of known stiffness: how noisy the structures were and are.
    fn noise_levels(&self, results: &[(usize, scorefield_integrators::Result<Relaxed>)]) -> Result<Option<String>> {
        let Ok(denoiser) = DenoiseSpec::default().resolve(self.model.capabilities()) else { return Ok(None) };
        let done: Vec<&Relaxed> = results.iter().filter_map(|r| r.1.as_ref().ok()).collect();
        if done.is_empty() || self.model.is_reduced() {
            return Ok(None);
        }
        let mean = |positions: &dyn Fn(&Relaxed) -> Vec<f64>| -> Result<f64> {
            let job = |r: &&Relaxed| {
                let frame = &self.frames[r.index];
                Job { system: frame.system.clone(), positions: positions(r), cell: frame.cell }
            };
            let jobs: Vec<Job> = done.iter().map(job).collect();
            let dtype = self.runtime.dtype.unwrap_or(DType::F64);
            let levels = noise_levels(&jobs, self.model.provider(), &denoiser, dtype)?;
            Ok(10.0 * levels.iter().sum::<f64>() / levels.len() as f64)
        };
        let (before, after) = (mean(&|r| self.frames[r.index].positions.clone())?, mean(&|r| r.positions.clone())?);
        Ok(Some(format!("noise level σ̂ {before:.4} Å before, {after:.4} Å after (means)")))
    }

    fn progress_bar(&self) -> ProgressBar {
        let shown = !self.runtime.quiet && std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(self.frames.len() as u64),
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        // The template is a constant; if it were wrong, the default bar is good enough.
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} relaxed, {per_sec}, {msg}, {eta} left") {
            bar.set_style(style);
        }
        bar
    }

    fn write(&self, results: &[(usize, scorefield_integrators::Result<Relaxed>)]) -> Result<()> {
        let frame = |(index, result): &(usize, scorefield_integrators::Result<Relaxed>)| {
            let relaxed = result.as_ref().ok()?;
            Some(self.model.release(Frame {
                positions: relaxed.positions.clone(),
                energy: relaxed.energy,
                velocities: None,
                forces: None,
                ..self.frames[*index].clone()
            }))
        };
        if let Some(path) = &self.flags.out {
            let frames: Vec<Frame> = results.iter().filter_map(frame).collect();
            if frames.is_empty() {
                self.runtime.warn(format_args!("{} is not written: no structure was relaxed", path.display()));
            } else {
                write_frames(path, None, &frames)?;
                show_file_warnings(self.runtime);
            }
            let failed = results.iter().filter(|r| r.1.is_err()).count();
            if failed > 0 && failed < results.len() {
                self.runtime.warn(format_args!("{} lacks the {failed} structure{} that failed", path.display(), plural(failed)));
            }
        }
        if let Some(path) = &self.flags.table {
            let text = self.table(results);
            write_atomically(path, |w| w.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    fn table(&self, results: &[(usize, scorefield_integrators::Result<Relaxed>)]) -> String {
        let reduced = self.model.is_reduced();
        let mut text = String::from(if reduced {
            "frame,energy,fmax,steps,rmsd,converged\n"
        } else {
            "frame,energy_kJ_mol,fmax_kJ_mol_nm,steps,rmsd_A,converged\n"
        });
        let scale = if reduced { 1.0 } else { 10.0 };
        for (index, result) in results {
            text += &match result {
                Ok(r) => {
                    let energy = r.energy.map_or(String::new(), |e| e.to_string());
                    format!("{index},{energy},{},{},{},{}\n", r.fmax, r.steps, scale * r.rmsd, r.progress == Progress::Converged)
                }
                Err(_) => format!("{index},,,,,false\n"),
            };
        }
        text
    }

    fn summary(&self, results: &[(usize, scorefield_integrators::Result<Relaxed>)], tally: &Tally, time: Duration) -> String {
        let done: Vec<&Relaxed> = results.iter().filter_map(|r| r.1.as_ref().ok()).collect();
        let (energy, force, length) = if self.model.is_reduced() { ("", "", "") } else { (" kJ/mol", " kJ/mol/nm", " Å") };
        let seconds = time.as_secs_f64();
        let mut lines = Vec::new();
        if let [only] = done.as_slice() {
            let value = only.energy.map_or(String::new(), |e| format!("energy {e:.6}{energy}, "));
            let rmsd = if self.model.is_reduced() { only.rmsd } else { 10.0 * only.rmsd };
            lines.push(format!(
                "{}: {value}largest force {:.3e}{force}, {} steps, moved {rmsd:.3}{length}, {}",
                self.frames[only.index].system.name,
                only.fmax,
                only.steps,
                match only.progress {
                    Progress::Converged => "converged",
                    Progress::Stalled => "stalled",
                    Progress::Running => "not converged",
                }
            ));
        }
        lines.push(format!(
            "{} of {} converged ({:.1} %), {} stalled, {} out of steps, {} failed",
            tally.converged,
            self.frames.len(),
            100.0 * tally.converged as f64 / self.frames.len().max(1) as f64,
            tally.stalled,
            tally.unfinished,
            tally.failed
        ));
        let rate = |n: f64| if seconds > 0.0 { n / seconds } else { f64::INFINITY };
        lines.push(format!(
            "median {} steps; {:.2} s, {:.1} structures/s, {:.0} evaluations/s",
            median(done.iter().map(|r| r.steps).collect()),
            seconds,
            rate(results.len() as f64),
            rate(tally.steps as f64 + results.len() as f64)
        ));
        lines.join("\n")
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0);
        assert_eq!(median(vec![5, 1, 3]), 3);
    }
}
