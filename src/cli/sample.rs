//! `scorefield sample`: independent samples of a trained model. What a sample is depends on the model: here those of one
//! system (ScoreMD), in `generate` molecules of any composition (pseudo-forces).

use super::denoising::SamplerFlags;
use super::generate::{self, MoleculeFlags};
use super::input::{Frame, Model};
use super::{Outcome, Runtime, print};
use crate::error::{Error, usage};
use crate::io::arrays::{Tensor, Values, write_arrays};
use crate::io::{read_structure, write_atomically, write_frames};
use crate::report::progress::Progress;
use crate::signals::Interrupt;
use crate::simulation::own_system;
use anyhow::{Context, Result};
use rayon::prelude::*;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{DType, System};
use scorefield_models::scoremd;
use scorefield_models::scoremd::likelihood::Likelihood;
use scorefield_models::scoremd::sampler::{Method, Settings};
use scorefield_models::spec::{ProviderSpec, parse_spec};
use scorefield_models::weights::WeightsFile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  scorefield sample
  scorefield sample --model model.safetensors -n 1000 -o samples.dcd
  scorefield sample --model model.safetensors -n 10000 --sampler heun --steps 200 -o samples.npy
  scorefield sample --model scoremd -n 1000 -o samples.dcd --likelihood likelihoods.csv
  scorefield sample --model dipeptides.safetensors --structure FK.pdb -n 10000 -o FK.dcd
  scorefield sample --formula C7H10O2 -n 100 -o molecules.sdf
  scorefield sample --model gpff --compositions qm9.xyz --shape rod --sampler sdd --steps 64 -o rods.xyz
  scorefield sample --model gpff --scaffold phenol.sdf --frozen 'not type H' -n 20 -o phenols.sdf
  scorefield consistency --reference reference.dcd --topology beads.pdb --samples samples.dcd --simulation run

Models of pseudo-forces generate molecules of any composition. Diffusion models of one system draw its configurations; their
published sampler is em with 1000 steps, and their files: any trajectory format, or .npy, .npz and .safetensors of [n, N, 3] in nm
([n, D] for toys). A trajectory gets the model's beads as a PDB beside it.";

/// Draw independent samples from a trained model
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct SampleFlags {
    /// Weights of the model, or another force provider of pseudo-forces [default: gpff, trained on QM9]
    #[arg(long, value_name = "SPEC")]
    pub(super) model: Option<String>,
    /// Number of samples [default: 1000, of molecules 100]
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) count: Option<u32>,
    /// File for the samples [default: molecules.sdf, where these are molecules]
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Leave out the noise of the last step and return the mean of the clean data
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) denoise: Option<bool>,
    /// Structure of the beads of the molecule that a transferable model is to draw
    #[arg(long, value_name = "FILE")]
    pub(super) structure: Option<PathBuf>,
    /// Write the log-likelihood of every sample, from the probability flow of a diffusion model
    #[arg(long, value_name = "FILE")]
    pub(super) likelihood: Option<PathBuf>,
    /// What molecules.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) molecules: MoleculeFlags,
    /// How.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) sampler: SamplerFlags,
}

impl SampleFlags {
    /// The model that is sampled where none is named.
    pub(super) const MODEL: &str = "gpff";
}

/// The diffusion model that `spec` names, also where it cannot be read; `None` for every other provider. `beads` is the molecule
/// that a transferable one is for, where `spec` does not name it.
pub(super) fn diffusion_model(spec: &str, beads: Option<&System>) -> Option<scorefield_models::Result<scoremd::Model>> {
    let model = match parse_spec(spec) {
        Ok(ProviderSpec::Scoremd(spec)) => spec.model(),
        Ok(ProviderSpec::Weights { file }) => match WeightsFile::read(&file) {
            Ok(w) if w.metadata().architecture != scoremd::model::ARCHITECTURE => return None,
            Ok(w) => scoremd::Model::from_weights(&file, w),
            Err(e) => Err(e),
        },
        _ => return None,
    };
    Some(model.and_then(|model| match beads {
        Some(system) if model.is_transferable() => model.for_beads(system),
        _ => Ok(model),
    }))
}

fn method(text: &str) -> Result<Method, String> {
    Method::deserialize(serde_json::Value::from(text)).map_err(|_| "known are em, pc, ode and heun".to_owned())
}

/// Most coordinates of all samples.
const MOST: usize = 1 << 28;

/// Runs the command.
///
/// # Errors
/// Where flags or weights are wrong, a sample is not finite, or the file cannot be written.
pub(super) fn run(flags: SampleFlags, runtime: &Runtime) -> Result<Outcome> {
    let spec = flags.model.as_deref().unwrap_or(SampleFlags::MODEL);
    let structure = flags.structure.as_deref().map(read_structure).transpose()?;
    let Some(model) = diffusion_model(spec, structure.as_ref().map(|f| &*f.system)) else {
        if flags.structure.is_some() {
            return usage(
                "--structure says which molecule a transferable diffusion model draws; molecules of pseudo-forces begin with --scaffold",
            )?;
        }
        if flags.denoise.is_some() {
            return usage("--denoise is a setting of diffusion models of one system; samplers of pseudo-forces end without noise")?;
        }
        if flags.likelihood.is_some() {
            return usage("--likelihood: pseudo-forces are the gradient of nothing, so that no likelihood belongs to them")?;
        }
        return generate::run(&flags, spec, flags.output.as_deref().unwrap_or(Path::new("molecules.sdf")), runtime);
    };
    let Some(output) = &flags.output else {
        return usage(format!("--output is needed, for example `scorefield sample --model {spec} -o samples.dcd`"))?;
    };
    if flags.molecules != MoleculeFlags::default()
        || flags.sampler != (SamplerFlags { sampler: flags.sampler.sampler.clone(), steps: flags.sampler.steps, ..SamplerFlags::default() })
    {
        return usage(format!("{spec} is a diffusion model of one system: only --sampler, --steps and --denoise say how it is sampled"))?;
    }
    let model = model?;
    if model.is_transferable() {
        let names: Vec<&str> = model.systems.iter().map(|s| s.name.as_str()).collect();
        return usage(format!(
            "{spec} is a model of many molecules; say which one: --structure FILE with its beads, or --model scoremd:weights={spec},system=NAME with one of {}",
            names.join(", ")
        ))?;
    }
    let default = Settings::default();
    let settings = Settings {
        method: flags.sampler.sampler.as_deref().map_or(Ok(default.method), method).map_err(|e| Error::Usage(format!("--sampler: {e}")))?,
        times: flags.sampler.steps.map_or(default.times, |n| n as usize),
        denoise: flags.denoise.unwrap_or(default.denoise),
        ..default
    };
    settings.check().map_err(|e| Error::Usage(e.to_string()))?;
    let n = flags.count.unwrap_or(1000) as usize;
    if n == 0 || n.saturating_mul(model.dimension()) > MOST {
        return usage(format!("--count {n}: 1 to {} samples of this model are drawn at once", MOST / model.dimension()))?;
    }
    let interrupt = Interrupt::install()?;
    let start = Instant::now();
    let x = match runtime.dtype.unwrap_or(DType::F32) {
        DType::F32 => draw::<f32>(&model, settings, n, runtime, &interrupt)?,
        DType::F64 => draw::<f64>(&model, settings, n, runtime, &interrupt)?,
    };
    let Some(x) = x else {
        runtime.warn("interrupted; nothing was written");
        return Ok(Outcome::Interrupted);
    };
    let seconds = start.elapsed().as_secs_f64();
    write(output, spec, &model, structure, &x, runtime)?;
    print(format!(
        "{n} samples, {} scores each, in {seconds:.2} s: {:.0} samples/s, {:.1} µs per score and thread\n{}, seed {}: {}",
        settings.evaluations(),
        n as f64 / seconds,
        1e6 * seconds * runtime.threads() as f64 / (n * settings.evaluations()) as f64,
        scorefield_integrators::simd::current_isa(),
        runtime.seed,
        output.display()
    ))?;
    let Some(table) = &flags.likelihood else { return Ok(Outcome::Done) };
    let Some(likelihoods) = likelihoods(&model, &x, runtime, &interrupt)? else {
        runtime.warn(format_args!("interrupted; {} has the samples, their likelihoods were not written", output.display()));
        return Ok(Outcome::Interrupted);
    };
    write_likelihoods(table, &likelihoods)?;
    let mean = likelihoods.iter().sum::<f64>() / n as f64;
    print(format!("log-likelihood {mean:.3} nats on average: {}", table.display()))?;
    Ok(Outcome::Done)
}

/// Times from data to noise of likelihoods.
const LIKELIHOOD_TIMES: usize = 201;
/// Samples whose likelihoods are found together.
const LIKELIHOOD_ROWS: usize = 16;

/// Log-likelihoods in nats of samples `x [n, D]` in nm or reduced units, per unit volume of the model's coordinates, up to a constant
/// for particles without a fixed centre; `None` where somebody interrupted.
fn likelihoods(model: &scoremd::Model, x: &[f64], runtime: &Runtime, interrupt: &Interrupt) -> Result<Option<Vec<f64>>> {
    let d = model.dimension();
    let count = (x.len() / d) as u64;
    let bar = std::sync::Mutex::new(Progress::new(count, 0, 1, None, runtime.quiet));
    let done = std::sync::atomic::AtomicUsize::new(0);
    let work = |x: &[f64]| -> Result<Vec<f64>> {
        if interrupt.requested() {
            return Ok(Vec::new());
        }
        let mut x: Vec<f64> = x.iter().map(|x| x * model.scale).collect();
        if model.types.len() > 1 {
            x.chunks_exact_mut(d).for_each(centre);
        }
        let found = Likelihood::new(model, LIKELIHOOD_TIMES)?.log_likelihood(&x)?;
        let now = done.fetch_add(found.len(), std::sync::atomic::Ordering::Relaxed) + found.len();
        if let Ok(mut bar) = bar.try_lock() {
            bar.update(now as u64, count);
        }
        Ok(found)
    };
    let found: Vec<Vec<f64>> = runtime.pool.install(|| x.par_chunks(LIKELIHOOD_ROWS * d).map(work).collect::<Result<_>>())?;
    if let Ok(mut bar) = bar.lock() {
        bar.finish();
    }
    let found = found.concat();
    Ok((found.len() as u64 == count).then_some(found))
}

/// Moves the mean of positions `[N, 3]` to the origin.
fn centre(x: &mut [f64]) {
    for axis in 0..3 {
        let n = x.len() / 3;
        let mean = x.iter().skip(axis).step_by(3).sum::<f64>() / n as f64;
        x.iter_mut().skip(axis).step_by(3).for_each(|x| *x -= mean);
    }
}

fn write_likelihoods(path: &Path, values: &[f64]) -> Result<()> {
    let rows: String = values.iter().enumerate().map(|(k, v)| format!("{k},{v}\n")).collect();
    Ok(write_atomically(path, |w| write!(w, "sample,log_likelihood_nats\n{rows}"))?)
}

/// Samples `[n, D]` in nm or reduced units; `None` where somebody interrupted.
pub(super) fn draw<T: SimdReal>(
    model: &scoremd::Model,
    settings: Settings,
    n: usize,
    runtime: &Runtime,
    interrupt: &Interrupt,
) -> Result<Option<Vec<f64>>> {
    let bar = std::sync::Mutex::new(Progress::new(n as u64, 0, 1, None, runtime.quiet));
    let progress = |done: usize| {
        if let Ok(mut bar) = bar.try_lock() {
            bar.update(done as u64, n as u64);
        }
        !interrupt.requested()
    };
    let x = crate::embed::draw::<T>(model, settings, n, runtime.seed, &runtime.pool, &progress)?;
    if let Ok(mut bar) = bar.lock() {
        bar.finish();
    }
    Ok(x)
}

/// Writes samples as arrays or as a trajectory, by the file's extension.
fn write(output: &Path, spec: &str, model: &scoremd::Model, structure: Option<Frame>, x: &[f64], runtime: &Runtime) -> Result<()> {
    let d = model.dimension();
    let extension = output.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if ["npy", "npz", "safetensors"].contains(&extension) {
        let beads = model.types.len();
        let shape = if d == 3 * beads && beads > 1 { vec![x.len() / d, beads, 3] } else { vec![x.len() / d, d] };
        let values = Values::F32(x.iter().map(|&x| x as f32).collect());
        let arrays = BTreeMap::from([("positions".to_owned(), Tensor { shape, values })]);
        write_arrays(output, &arrays, &BTreeMap::new())?;
        return Ok(());
    }
    let built = Model::build(spec, None)?;
    let system = match structure {
        Some(frame) => frame.system,
        None => Arc::new(own_system(built.own_toy().with_context(|| format!("{spec}: the weights hold no start frames"))?)?),
    };
    let frames: Vec<Frame> = x
        .chunks_exact(d)
        .map(|row| {
            let mut positions = row.to_vec();
            positions.resize(3 * system.len(), 0.0);
            built.release(Frame::new(system.clone(), positions))
        })
        .collect();
    write_frames(output, None, &frames)?;
    if !["pdb", "xyz", "extxyz", "cif", "gro"].contains(&extension) && !built.is_reduced() {
        let beside = output.with_extension("pdb");
        write_frames(&beside, None, &frames[..1])?;
        runtime.say(format_args!("beads: {}", beside.display()));
    }
    Ok(())
}
