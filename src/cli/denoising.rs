//! What the commands that denoise have in common: flags of samplers, the run itself, and what is written.

use super::input::{Frame, Model, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::generation::{self, Generated, Summary, Verdicts};
use crate::io::{Selection, write_atomically, write_frames};
use crate::signals::Interrupt;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use scorefield_integrators::denoise::{Adaptive, DenoiseSpec, Denoiser, Sampler};
use scorefield_integrators::stream::{Job, Tally};
use scorefield_integrators::{DType, DeviceSpec, Noise, Progress, Quantity, System};
use scorefield_models::molecule::{Convention, Perceiver};
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How noise becomes structures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct SamplerFlags {
    /// dd, sdd, ancestral, heun, stochastic-heun or langevin for pseudo-forces [default: sdd, `denoise`: dd]; em, pc, ode or
    /// heun for diffusion models of one system [default: em]
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    pub(super) sampler: Option<String>,
    /// Steps from noise to data [default: 256 for pseudo-forces, 1000 for diffusion models]
    #[arg(long, value_name = "N", help_heading = "Sampler")]
    pub(super) steps: Option<u32>,
    /// Read the noise level off the forces (ancestral, heun, stochastic-heun); --steps is then the most
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Sampler")]
    pub(super) adaptive: Option<bool>,
    /// dd ends when no atom is further than this from its place [default: 0.02 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true, help_heading = "Sampler")]
    pub(super) threshold: Option<Quantity>,
    /// dd ends after this many evaluations [default: 256]
    #[arg(long, value_name = "N", help_heading = "Sampler")]
    pub(super) max_evaluations: Option<u32>,
    /// Noise of sdd at the start [default: 0.3 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true, help_heading = "Sampler")]
    pub(super) eta: Option<Quantity>,
    /// First noise level [default: 30 A]; that of langevin [default: 0.16 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true, help_heading = "Sampler")]
    pub(super) sigma: Option<Quantity>,
    /// Last noise level above zero [default: 0.01 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true, help_heading = "Sampler")]
    pub(super) sigma_min: Option<Quantity>,
    /// Step of langevin in relaxation times [default: 0.5]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true, help_heading = "Sampler")]
    pub(super) tau: Option<f64>,
    /// How fast a shape is let go: enforced with strength (s/S)^Q [default: 1]
    #[arg(long, value_name = "Q", allow_hyphen_values = true, help_heading = "Sampler")]
    pub(super) strictness: Option<f64>,
    /// With frozen atoms: take the displacement that these are wished off all others
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Sampler")]
    pub(super) compensate_drift: Option<bool>,
    /// Where pseudo-forces are evaluated: cpu, cuda or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE", help_heading = "Sampler")]
    pub(super) device: Option<DeviceSpec>,
}

impl SamplerFlags {
    /// The sampler; `default` is its name where none is given.
    ///
    /// # Errors
    /// Where the name is unknown, or a flag is of another sampler.
    pub(super) fn spec(&self, default: &str) -> Result<DenoiseSpec> {
        let name = self.sampler.as_deref().unwrap_or(default);
        let Some(mut sampler) = Sampler::named(name) else {
            return usage(format!("--sampler {name} is not known; with pseudo-forces known are {}", Sampler::NAMES.join(", ")))?;
        };
        let mut foreign = vec![
            ("threshold", self.threshold.is_some(), "dd"),
            ("max-evaluations", self.max_evaluations.is_some(), "dd"),
            ("eta", self.eta.is_some(), "sdd"),
            ("tau", self.tau.is_some(), "langevin"),
        ];
        foreign.retain(|f| f.1 && f.2 != name);
        if let Some((flag, _, of)) = foreign.first() {
            return usage(format!("--{flag} is a setting of {of}, not of {name}; leave it out or use --sampler {of}"))?;
        }
        let mut spec = DenoiseSpec::default();
        match &mut sampler {
            Sampler::Dd { threshold, max_evaluations } => {
                *threshold = self.threshold.clone();
                *max_evaluations = self.max_evaluations.unwrap_or(*max_evaluations);
                // Evaluations during which a shape is enforced.
                spec.steps = 16;
            }
            Sampler::Sdd { eta } => *eta = self.eta.clone(),
            Sampler::Langevin { sigma, tau } => {
                *sigma = self.sigma.clone();
                *tau = self.tau.unwrap_or(*tau);
            }
            Sampler::Ancestral | Sampler::Heun | Sampler::StochasticHeun(_) => {}
        }
        if !matches!(sampler, Sampler::Langevin { .. }) {
            spec.sigma_max = self.sigma.clone();
        }
        Ok(DenoiseSpec {
            sampler,
            steps: self.steps.unwrap_or(spec.steps),
            sigma_min: self.sigma_min.clone(),
            adaptive: (self.adaptive == Some(true)).then(Adaptive::default),
            strictness: self.strictness.unwrap_or(1.0),
            compensate_drift: self.compensate_drift == Some(true),
            ..spec
        })
    }

    /// The sampler fitted to a model.
    ///
    /// # Errors
    /// As [`SamplerFlags::spec`], and where the model has no pseudo-forces of known stiffness.
    pub(super) fn denoiser(&self, default: &str, model: &Model) -> Result<(DenoiseSpec, Denoiser)> {
        let spec = self.spec(default)?;
        let denoiser = spec.resolve(model.capabilities()).map_err(|e| Error::Usage(e.to_string()))?;
        Ok((spec, denoiser))
    }
}

/// A sampler in words.
pub(super) fn describe(spec: &DenoiseSpec) -> String {
    let name = spec.sampler.name();
    match (&spec.sampler, &spec.adaptive) {
        (Sampler::Dd { max_evaluations, .. }, _) => format!("dd, at most {max_evaluations} evaluations"),
        (_, None) => format!("{name}, {} steps", spec.steps),
        (_, Some(_)) => format!("adaptive {name}, at most {} steps", spec.steps),
    }
}

/// Precision of a run: single, where the model has it and nobody asked for another.
pub(super) fn precision(model: &Model, runtime: &Runtime) -> DType {
    let known = &model.capabilities().dtypes;
    runtime.dtype.unwrap_or(if known.contains(&DType::F32) { DType::F32 } else { DType::F64 })
}

/// `system` with the chosen atoms of `frame` frozen.
///
/// # Errors
/// Where the selection fits no atom, or all of them.
pub(super) fn freeze(frame: &Frame, selection: &Selection, flag: &str) -> Result<Arc<System>> {
    let atoms = selection.atoms(frame).map_err(|e| Error::Usage(format!("--{flag}: {e}")))?;
    if atoms.len() == frame.len() {
        return usage(format!("--{flag} {selection} freezes all {} atoms of {}; leave some that move", frame.len(), frame.system.name))?;
    }
    let mut system = (*frame.system).clone();
    atoms.iter().for_each(|&i| system.masses[i] = 0.0);
    Ok(Arc::new(system))
}

/// Three numbers of a flag with commas between them.
///
/// # Errors
/// Where they are not three finite numbers.
pub(super) fn numbers<const N: usize>(flag: &str, text: &str) -> Result<[f64; N]> {
    let values: Option<Vec<f64>> = text.split(',').map(|w| w.trim().parse::<f64>().ok().filter(|x| x.is_finite())).collect();
    match values.and_then(|v| v.try_into().ok()) {
        Some(values) => Ok(values),
        None => usage(format!("--{flag} {text}: write {N} numbers with commas between them, in Å"))?,
    }
}

/// Where molecules go.
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    None,
    File(&'a Path),
    /// A file per molecule, with its number in the name.
    Numbered(&'a Path),
}

/// `grown.sdf` with a number: `grown-07.sdf`.
fn numbered(path: &Path, k: usize, of: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{k:0width$}{extension}", width = of.to_string().len()))
}

/// One run of a sampler.
pub(super) struct Denoising<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) model: &'a Model,
    pub(super) spec: DenoiseSpec,
    pub(super) denoiser: Denoiser,
    /// Number of molecules.
    pub(super) count: usize,
    pub(super) from_structures: bool,
}

impl Denoising<'_> {
    /// Takes `jobs` through the sampler, in all threads, with a bar.
    ///
    /// # Errors
    /// Where nothing can begin.
    pub(super) fn work<J>(&self, jobs: J) -> Result<(Generated, Interrupt)>
    where
        J: IntoIterator<Item = Job> + Send,
        J::IntoIter: Send,
    {
        let interrupt = Interrupt::install()?;
        let bar = self.progress_bar();
        let show = |tally: &Tally| {
            bar.set_position((tally.converged + tally.stalled + tally.unfinished + tally.failed) as u64);
            bar.set_message(format!("{} evaluations", tally.steps));
        };
        let provider = self.model.provider().fork()?;
        let (denoiser, noise, dtype) = (&self.denoiser, Noise::new(self.runtime.seed), precision(self.model, self.runtime));
        let (stop, show, batches) = (interrupt.flag(), &show, self.model.batches);
        let generated =
            self.runtime.pool.install(move || generation::denoise(jobs, provider.as_ref(), denoiser, noise, dtype, batches, stop, show))?;
        bar.finish_and_clear();
        let failed: Vec<_> = generated.results.iter().filter_map(|(i, r)| r.as_ref().err().map(|e| (i, e))).collect();
        for (index, error) in failed.iter().take(5) {
            self.runtime.warn(format_args!("molecule {index} failed: {error}"));
        }
        if failed.len() > 5 {
            self.runtime.warn(format_args!("{} more molecules failed", failed.len() - 5));
        }
        Ok((generated, interrupt))
    }

    fn progress_bar(&self) -> ProgressBar {
        let shown = !self.runtime.quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(self.count as u64), target);
        // The template is a constant; if it were wrong, the default bar is good enough.
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} molecules, {per_sec}, {msg}, {eta} left") {
            bar.set_style(style);
        }
        bar
    }

    /// Writes the molecules, prints the table, and says how the command ended.
    ///
    /// # Errors
    /// Where a file cannot be written, or nothing came out.
    pub(super) fn finish(&self, generated: &Generated, interrupt: &Interrupt, frames: &[Frame], output: Output<'_>) -> Result<Outcome> {
        match output {
            Output::File(path) if !frames.is_empty() => write_frames(path, None, frames)?,
            Output::Numbered(path) => {
                for (k, frame) in frames.iter().enumerate() {
                    write_frames(numbered(path, k + 1, frames.len()), None, std::slice::from_ref(frame))?;
                }
            }
            _ => {}
        }
        show_file_warnings(self.runtime);
        let mut summary = Summary::new(describe(&self.spec), self.count, generated, self.from_structures);
        if !frames.is_empty() {
            let mut verdicts = Verdicts::of(frames.iter().map(|f| (&f.system.types[..], &f.positions[..])));
            verdicts.none += generated.tally.failed;
            summary.verdicts = Some(verdicts);
        }
        print(summary)?;
        match output {
            Output::None => {}
            Output::File(path) | Output::Numbered(path) if frames.is_empty() => {
                self.runtime.warn(format_args!("{} is not written: there is no molecule", path.display()));
            }
            Output::File(path) => self.runtime.say(format_args!("wrote {}", path.display())),
            Output::Numbered(path) => {
                let name = |k| numbered(path, k, frames.len());
                self.runtime.say(format_args!("wrote {} to {}", name(1).display(), name(frames.len()).display()));
            }
        }
        if interrupt.requested() && (generated.tally.taken < self.count || generated.tally.unfinished > 0) {
            self.runtime.warn(format_args!(
                "interrupted: {} of {} molecules were begun, {} of them not finished",
                generated.tally.taken, self.count, generated.tally.unfinished
            ));
            return Ok(Outcome::Interrupted);
        }
        if generated.tally.failed == self.count {
            return Err(Error::Run("every molecule failed; see the warnings above".into()).into());
        }
        Ok(Outcome::Done)
    }
}

/// The molecules of a run as frames with the bonds that are found in them, numbered from 1 in their titles; those that failed are
/// left out.
pub(super) fn molecules(generated: &Generated, system: impl Fn(usize) -> Arc<System>) -> Vec<Frame> {
    let mut perceiver = Perceiver::new();
    let frame = |(index, result): &(usize, scorefield_integrators::Result<_>)| {
        let done: &scorefield_integrators::denoise::Denoised = result.as_ref().ok()?;
        let mut frame = Frame::new(system(*index), done.positions.clone());
        frame.title = format!("{} {}", frame.system.name, index + 1);
        frame.properties.insert("evaluations".into(), done.evaluations.to_string());
        frame.properties.insert("converged".into(), (done.progress == Progress::Converged).to_string());
        let known = frame.system.types.iter().all(|&z| z > 0);
        // What is no molecule stays a heap of atoms in the file too.
        let bonded = known && frame.perceive_bonds(&mut perceiver, Convention::default()).is_ok();
        frame.properties.insert("bonds-found".into(), bonded.to_string());
        Some(frame)
    };
    generated.results.iter().filter_map(frame).collect()
}

/// Masses back on the atoms that were frozen, for files.
pub(super) fn thaw(frame: &Frame, system: &Arc<System>) -> Arc<System> {
    Arc::new(System { masses: frame.system.masses.clone(), ..(**system).clone() })
}

/// Writes a table of one row per molecule.
///
/// # Errors
/// Where the file cannot be written.
pub(super) fn write_table(path: &Path, generated: &Generated) -> Result<()> {
    let mut text = String::from("frame,evaluations,sigma_start_A,sigma_end_A,rmsd_A,converged\n");
    for (index, result) in &generated.results {
        text += &match result {
            Ok(d) => format!(
                "{index},{},{},{},{},{}\n",
                d.evaluations,
                10.0 * d.sigma_start,
                10.0 * d.sigma_end,
                10.0 * d.rmsd,
                d.progress == Progress::Converged
            ),
            Err(_) => format!("{index},,,,,false\n"),
        };
    }
    Ok(write_atomically(path, |w| w.write_all(text.as_bytes()))?)
}

/// Finds an unwritable output before the work, not after.
///
/// # Errors
/// Where its folder does not exist.
pub(super) fn check_writable(paths: &[&Option<PathBuf>]) -> Result<()> {
    for path in paths.iter().copied().flatten() {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return usage(format!("cannot write {}: there is no directory {}", path.display(), folder.display()))?;
        }
    }
    Ok(())
}
