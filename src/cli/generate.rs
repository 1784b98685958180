//! `scorefield sample` with pseudo-forces: molecules of given compositions and shapes from noise.

use super::denoising::{Denoising, Output, check_writable, freeze, molecules, thaw, write_table};
use super::input::{Frame, FrameStream, Model, show_file_warnings};
use super::sample::SampleFlags;
use super::{Outcome, Runtime};
use crate::error::{Error, usage};
use crate::generation::{Compositions, parse_formula};
use crate::io::{IoError, ReadOptions, Selection, read_structure};
use anyhow::{Context, Result};
use scorefield_integrators::denoise::{Blob, Prior, Targets};
use scorefield_integrators::stream::Job;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{Batch, Noise, System};
use scorefield_models::gpff::shape::{ShapePredictor, TargetShape};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What molecules are generated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct MoleculeFlags {
    /// Elements of every molecule, for example C7H10O2 [default: drawn as they are in QM9]
    #[arg(long, value_name = "FORMULA", help_heading = "Molecules")]
    pub(super) formula: Option<String>,
    /// Draw compositions from those of the structures in this file
    #[arg(long, value_name = "FILE", help_heading = "Molecules")]
    pub(super) compositions: Option<PathBuf>,
    /// rod, sphere, disc, or predicted: shapes as molecules of that size have them; predicted:FILE for another predictor
    #[arg(long, value_name = "SHAPE", help_heading = "Molecules")]
    pub(super) shape: Option<String>,
    /// Keep the frozen atoms of this structure and generate its other ones anew
    #[arg(long, value_name = "FILE", help_heading = "Molecules")]
    pub(super) scaffold: Option<PathBuf>,
    /// Atoms of the scaffold that stay, as a selection: `not type H`, `0-4,8`
    #[arg(long, value_name = "SELECTION", help_heading = "Molecules")]
    pub(super) frozen: Option<String>,
    /// Standard deviation of the blob that a scaffold's other atoms start in [default: 1 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true, help_heading = "Molecules")]
    pub(super) blob: Option<scorefield_integrators::Quantity>,
    /// Write a table with one row per molecule
    #[arg(long, value_name = "FILE", help_heading = "Molecules")]
    pub(super) table: Option<PathBuf>,
}

/// What every molecule starts from.
enum Subject {
    Noise(Compositions),
    Scaffold { frame: Box<Frame>, system: Arc<System>, prior: Prior },
}

/// A shape as asked for.
enum Shape {
    Predicted(ShapePredictor),
    Like(ShapePredictor, TargetShape),
}

impl Shape {
    fn parse(text: &str) -> Result<Self> {
        let named = TargetShape::ALL.into_iter().find(|t| t.name() == text);
        match (named, text.strip_prefix("predicted:")) {
            (Some(target), _) => Ok(Shape::Like(ShapePredictor::qm9()?, target)),
            (None, Some(file)) => Ok(Shape::Predicted(ShapePredictor::read(Path::new(file))?)),
            (None, None) if text == "predicted" => Ok(Shape::Predicted(ShapePredictor::qm9()?)),
            (None, None) => usage(format!("--shape {text} is not known; write rod, sphere, disc, predicted or predicted:FILE"))?,
        }
    }

    fn draw(&self, atoms: usize, noise: Noise, id: u32) -> scorefield_models::Result<[f64; 3]> {
        match self {
            Shape::Predicted(p) => p.draw(atoms, noise, id),
            Shape::Like(p, target) => p.draw_like(atoms, *target, noise, id),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Where flags or files are wrong, the model does not know an element or is no pseudo-force, or output cannot be written.
pub(super) fn run(flags: &SampleFlags, spec: &str, output: &Path, runtime: &Runtime) -> Result<Outcome> {
    let what = &flags.molecules;
    let model = Model::build(spec, None)?.on(flags.sampler.device)?;
    let (settings, mut denoiser) = flags.sampler.denoiser("sdd", &model)?;
    if model.is_reduced() {
        return usage(format!("{} has reduced units; molecules are generated with models in SI units", model.capabilities().name))?;
    }
    let count = flags.count.unwrap_or(100) as usize;
    if count == 0 {
        return usage("--count 0: ask for at least one molecule")?;
    }
    let output_ = Some(output.to_owned());
    check_writable(&[&output_, &what.table])?;
    let subject = subject(flags, spec, runtime)?;
    let noise = Noise::new(runtime.seed);
    let shape = what.shape.as_deref().map(Shape::parse).transpose()?;
    let systems: Vec<Arc<System>> = match &subject {
        Subject::Noise(set) => set.systems().to_vec(),
        Subject::Scaffold { system, .. } => vec![system.clone()],
    };
    let dtype = super::denoising::precision(&model, runtime);
    for system in &systems {
        model.capabilities().check_batch(&Batch::uniform(system.clone(), 1, 0)?, false, dtype).map_err(|e| Error::Usage(e.to_string()))?;
        if let Some(shape) = &shape {
            shape.draw(free(system), noise, 0).map_err(|e| Error::Usage(format!("--shape: {e}")))?;
        }
    }
    let sigma = settings.sigma_max.clone().unwrap_or_else(|| scorefield_integrators::Quantity::new(30.0, "A"));
    let sigma = sigma
        .resolve(scorefield_integrators::units::Dimension::LENGTH, scorefield_integrators::UnitSystem::Si)
        .map_err(|e| Error::Usage(format!("--sigma: {e}")))?;
    let subject = Arc::new(subject);
    let shape = shape.map(Arc::new);
    let system_of = {
        let subject = subject.clone();
        move |id: u32| match &*subject {
            Subject::Noise(set) => set.draw(noise, id).clone(),
            Subject::Scaffold { system, .. } => system.clone(),
        }
    };
    let target_of = {
        let system_of = system_of.clone();
        // Sizes were tried above: every composition has a shape.
        move |id: u32| shape.as_ref().and_then(|s| s.draw(free(&system_of(id)), noise, id).ok())
    };
    let targets: Targets = Arc::new(target_of.clone());
    denoiser = denoiser.with_targets(targets);
    let start = |id: u32| {
        let system = system_of(id);
        let mut positions = vec![0.0; 3 * system.len()];
        match (&*subject, target_of(id)) {
            (Subject::Scaffold { frame, prior, .. }, _) => {
                positions.copy_from_slice(&frame.positions);
                prior.draw(&system, noise, id, &mut positions);
            }
            (Subject::Noise(_), Some(target)) => Prior::Blob(Blob::aligned([0.0; 3], target)).draw(&system, noise, id, &mut positions),
            (Subject::Noise(_), None) => Prior::Isotropic { sigma }.draw(&system, noise, id, &mut positions),
        }
        Job { system, positions, cell: None }
    };
    let run = Denoising { runtime, model: &model, spec: settings, denoiser, count, from_structures: false };
    let (generated, interrupt) = run.work((0..count).map(|id| start(id as u32)))?;
    let frames = molecules(&generated, |id| match &*subject {
        Subject::Noise(_) => system_of(id as u32),
        Subject::Scaffold { frame, system, .. } => thaw(frame, system),
    });
    if let Some(path) = &what.table {
        write_table(path, &generated)?;
    }
    run.finish(&generated, &interrupt, &frames, Output::File(output))
}

fn free(system: &System) -> usize {
    system.masses.iter().filter(|m| **m > 0.0).count()
}

fn subject(flags: &SampleFlags, spec: &str, runtime: &Runtime) -> Result<Subject> {
    let what = &flags.molecules;
    if what.scaffold.is_none() && (what.frozen.is_some() || what.blob.is_some()) {
        return usage("--frozen and --blob belong to --scaffold; name the structure whose atoms stay")?;
    }
    match (&what.formula, &what.compositions, &what.scaffold) {
        (Some(text), None, None) => {
            let mut set = Compositions::default();
            let types = parse_formula(text).map_err(|(position, what)| {
                let at = IoError::Text { what, text: text.clone(), position };
                Error::Usage(format!("--formula: {at}"))
            })?;
            set.push(&types);
            Ok(Subject::Noise(set))
        }
        (None, Some(file), None) => {
            let mut set = Compositions::default();
            for frame in FrameStream::new(vec![file.clone()], ReadOptions::default()) {
                set.push(&frame?.system.types);
            }
            show_file_warnings(runtime);
            if let Some(system) = set.systems().iter().find(|s| s.types.contains(&0)) {
                return usage(format!("{}: {} has atoms without element", file.display(), system.name))?;
            }
            Ok(Subject::Noise(set))
        }
        (None, None, Some(file)) => {
            let frame = read_structure(file)?;
            let Some(text) = &what.frozen else {
                return usage("--scaffold needs --frozen, the atoms that stay; to add atoms to a whole structure use `scorefield design`")?;
            };
            let selection: Selection = text.parse().map_err(|e| Error::Usage(format!("--frozen: {e}")))?;
            let system = freeze(&frame, &selection, "frozen")?;
            let sigma = blob_size(what.blob.as_ref())?;
            let moving: Vec<usize> = (0..frame.len()).filter(|&i| system.masses[i] > 0.0).collect();
            let centre = [0, 1, 2].map(|a| moving.iter().map(|&i| frame.positions[3 * i + a]).sum::<f64>() / moving.len() as f64);
            let prior = Prior::Blob(Blob::aligned(centre, [sigma * sigma; 3]));
            Ok(Subject::Scaffold { frame: Box::new(frame), system, prior })
        }
        (None, None, None) if spec == SampleFlags::MODEL || Path::new(spec).is_file() => {
            Ok(Subject::Noise(Compositions::qm9().map_err(Error::Run)?))
        }
        (None, None, None) => usage(format!(
            "what is to be generated with {spec}? give --formula C7H10O2, --compositions FILE, or --scaffold FILE with --frozen"
        ))?,
        _ => usage("--formula, --compositions and --scaffold exclude each other; keep one").context("molecules")?,
    }
}

/// Standard deviation of a blob in nm.
///
/// # Errors
/// Where it is no length, or not above zero.
pub(super) fn blob_size(blob: Option<&scorefield_integrators::Quantity>) -> Result<f64> {
    let Some(blob) = blob else { return Ok(NM_PER_ANGSTROM) };
    let size = blob.resolve(scorefield_integrators::units::Dimension::LENGTH, scorefield_integrators::UnitSystem::Si);
    match size.map_err(|e| Error::Usage(format!("--blob: {e}")))? {
        size if size > 0.0 && size.is_finite() => Ok(size),
        _ => usage(format!("--blob {blob} is not above zero; leave it out for 1 A"))?,
    }
}
