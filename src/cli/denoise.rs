//! `scorefield denoise`: noisy structures to the structures that a model of pseudo-forces takes them for.

use super::denoising::{Denoising, Output, SamplerFlags, check_writable, freeze, molecules, precision, thaw, write_table};
use super::input::{Frame, FrameFlags, FrameStream, Model, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::generation::{noise_levels, record};
use crate::io::{Selection, write_frames};
use anyhow::{Context, Result};
use scorefield_integrators::denoise::{Blob, Prior};
use scorefield_integrators::stream::Job;
use scorefield_integrators::units::Dimension;
use scorefield_integrators::{Batch, Noise, Quantity, System, UnitSystem};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  scorefield denoise distorted.xyz -o clean.sdf
  scorefield denoise run.dcd --model gpff.safetensors --topology molecule.pdb --frames ::10 --table drift.csv
  scorefield denoise molecules.sdf --noise '0.3 A' --sampler heun --adaptive --steps 32 -o repaired.sdf
  scorefield denoise molecule.sdf --noise '5 A' --sampler ancestral --sigma '5 A' \\
      --trajectory path.xyz

Table: frame,evaluations,sigma_start_A,sigma_end_A,rmsd_A,converged. Samplers with a schedule need --sigma, the noise level
that structures have, or --adaptive, which reads it off the forces.";

/// Denoise structures with a model of pseudo-forces
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct DenoiseFlags {
    /// Structure and trajectory files
    #[arg(value_name = "STRUCTURES", required = true)]
    pub(super) structures: Vec<PathBuf>,
    /// Force provider: weights of a GPFF, or gpff-oracle:FILE.xyz [default: gpff, trained on QM9]
    #[arg(long, value_name = "SPEC")]
    pub(super) model: Option<String>,
    /// Which frames and atoms.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) which: FrameFlags,
    /// Add noise of this size to every coordinate first
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true)]
    pub(super) noise: Option<Quantity>,
    /// Atoms that do not move, as a selection: `name CA`, `0-4,8`
    #[arg(long, value_name = "SELECTION")]
    pub(super) freeze: Option<String>,
    /// How.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) sampler: SamplerFlags,
    /// Write denoised structures, in the order of the input
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub(super) output: Option<PathBuf>,
    /// Write a table with one row per structure
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) table: Option<PathBuf>,
    /// Write the path of one structure, one frame per evaluation
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) trajectory: Option<PathBuf>,
    /// Which structure that is, counted from 0 [default: 0]
    #[arg(long, value_name = "INDEX", help_heading = "Output")]
    pub(super) trajectory_of: Option<u32>,
}

/// Runs the command.
///
/// # Errors
/// Where input cannot be read, the model has no pseudo-forces or does not know an element, or output cannot be written.
pub(super) fn run(flags: DenoiseFlags, runtime: &Runtime) -> Result<Outcome> {
    let spec = flags.model.as_deref().unwrap_or("gpff");
    check_writable(&[&flags.output, &flags.table, &flags.trajectory])?;
    let model = Model::build(spec, None)?.on(flags.sampler.device)?;
    let (settings, denoiser) = flags.sampler.denoiser("dd", &model)?;
    if settings.sampler.has_schedule() && settings.sigma_max.is_none() && settings.adaptive.is_none() {
        return usage(format!(
            "{} begins at a noise level: give that of the structures as --sigma, or read it off the forces with --adaptive",
            settings.sampler.name()
        ))?;
    }
    let frames: Vec<Frame> = FrameStream::new(flags.structures.clone(), flags.which.options()?).collect::<Result<_>>()?;
    show_file_warnings(runtime);
    let freeze_ = flags.freeze.as_deref().map(str::parse::<Selection>).transpose().map_err(|e| Error::Usage(format!("--freeze: {e}")))?;
    let dtype = precision(&model, runtime);
    let noise = Noise::new(runtime.seed);
    let sigma = flags.noise.as_ref().map(noise_size).transpose()?;
    let mut jobs: Vec<Job> = Vec::with_capacity(frames.len());
    let mut last: Option<[Arc<System>; 2]> = None;
    for (index, frame) in frames.iter().enumerate() {
        let system = match (&freeze_, &last) {
            (None, _) => frame.system.clone(),
            (Some(_), Some([before, after])) if Arc::ptr_eq(before, &frame.system) => after.clone(),
            (Some(selection), _) => freeze(frame, selection, "freeze").with_context(|| format!("frame {index}"))?,
        };
        last = Some([frame.system.clone(), system.clone()]);
        let batch = Batch::uniform(system.clone(), 1, 0)?;
        model.capabilities().check_batch(&batch, false, dtype).map_err(|e| Error::Usage(format!("frame {index}: {e}")))?;
        let mut positions = frame.positions.clone();
        if let Some(sigma) = sigma {
            let mut z = vec![0.0; positions.len()];
            Prior::Blob(Blob::aligned([0.0; 3], [sigma * sigma; 3])).draw(&system, noise, index as u32, &mut z);
            positions.iter_mut().zip(z).for_each(|(x, z)| *x += z);
        }
        jobs.push(Job { system, positions, cell: None });
    }
    let chosen = flags.trajectory_of.unwrap_or(0);
    if flags.trajectory.is_some() && chosen as usize >= jobs.len() {
        return usage(format!("--trajectory-of {chosen}: there are {} structures, counted from 0", jobs.len()))?;
    }
    let run = Denoising { runtime, model: &model, spec: settings, denoiser, count: jobs.len(), from_structures: true };
    let (generated, interrupt) = run.work(jobs.clone())?;
    let mut clean = molecules(&generated, |i| thaw(&frames[i], &jobs[i].system));
    for (frame, (index, _)) in clean.iter_mut().zip(generated.results.iter().filter(|r| r.1.is_ok())) {
        if !frames[*index].title.is_empty() {
            frame.title = frames[*index].title.clone();
        }
    }
    if let Some(path) = &flags.table {
        write_table(path, &generated)?;
    }
    if let Some(path) = &flags.trajectory {
        let job = &jobs[chosen as usize];
        let path_of = record(job, chosen, model.provider(), &run.denoiser, noise, dtype)?;
        let system = thaw(&frames[chosen as usize], &job.system);
        let steps: Vec<Frame> = path_of.into_iter().map(|x| Frame::new(system.clone(), x)).collect();
        write_frames(path, None, &steps)?;
        runtime.say(format_args!("wrote {}: {} frames", path.display(), steps.len()));
    }
    let outcome = run.finish(&generated, &interrupt, &clean, flags.output.as_deref().map_or(Output::None, Output::File))?;
    if !model.capabilities().needs_noise_level && !clean.is_empty() {
        let done = generated.results.iter().filter_map(|(i, r)| Some((i, r.as_ref().ok()?)));
        let ends: Vec<Job> =
            done.map(|(&i, d)| Job { system: jobs[i].system.clone(), positions: d.positions.clone(), cell: None }).collect();
        let levels = noise_levels(&ends, model.provider(), &run.denoiser, dtype)?;
        print(format_args!("noise level σ̂ {:.4} Å in the end (mean)", 10.0 * levels.iter().sum::<f64>() / levels.len() as f64))?;
    }
    Ok(outcome)
}

fn noise_size(noise: &Quantity) -> Result<f64> {
    match noise.resolve(Dimension::LENGTH, UnitSystem::Si).map_err(|e| Error::Usage(format!("--noise: {e}")))? {
        size if size > 0.0 && size.is_finite() => Ok(size),
        _ => usage(format!("--noise {noise} is not above zero; leave it out to take structures as they are"))?,
    }
}
