//! Recipes of training: what `scorefield train RECIPE.toml` reads.

use super::file::suggestion;
use crate::dataset::DataSettings;
use crate::error::{Error, Result};
use scorefield_integrators::{DType, DeviceSpec, Quantity};
use scorefield_models::ditmc::rows::TimeSettings;
use scorefield_models::ditmc::{DitmcConfig, Path as NoisePath};
use scorefield_models::painn::PainnConfig;
use scorefield_models::painn::noising::NoiseSettings;
use scorefield_models::painn::trainer::Objective;
use scorefield_models::scoremd::config::ExpertConfig;
use scorefield_models::scoremd::fokker_planck::{Formulas, Probe};
use scorefield_models::scoremd::published::Variant;
use scorefield_models::train::Clip;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Largest recipe that is read: they are written by hand.
const MAX_BYTES: u64 = 1 << 20;

/// A recipe: everything that a training is repeated with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Recipe {
    /// Architecture: `scoremd` (the default), `painn` or `ditmc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// A published system, for example `alanine-dipeptide`, a pseudo-force field (`gpff`, `gpff-small`), a potential (`painn`,
    /// `painn-small`), or a conformer model (`ditmc-ape-base`, `ditmc-ape-small`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// `diffusion`, `mixture`, `fokker-planck` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<Variant>,
    /// What a pseudo-force field learns: `pseudo-force` or `noise`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// Networks of one's own, from the largest times to the smallest, instead of a preset.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertConfig>,
    /// A PaiNN of one's own, instead of a preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<PainnConfig>,
    /// Noise that a pseudo-force field is trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseSettings>,
    /// Energies and forces that a potential is trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub potential: Option<PotentialSettings>,
    /// A conformer model of one's own, instead of a preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transformer: Option<DitmcConfig>,
    /// From noise to conformers: prior, noise, alignment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<NoisePath>,
    /// Times and weights that a conformer model is trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<TimeSettings>,
    /// What is trained on.
    pub data: DataSettings,
    /// How.
    pub train: TrainSettings,
    /// What is written.
    pub output: OutputSettings,
}

/// The table `[train]`. What is left out is as published for the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TrainSettings {
    /// Steps of all networks together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Epochs of all networks together, instead of steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// A trained model whose weights are the first ones, in place of random numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_from: Option<PathBuf>,
    /// Where networks are trained: `cpu`, `cuda` or `cuda:N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSpec>,
    /// Part of the steps that each network gets, from the largest times to the smallest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<f64>>,
    /// Rows of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Learning rate at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Learning rate at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_learning_rate: Option<f64>,
    /// How the learning rate of a pseudo-force field falls: `cosine` or `plateau`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleKind>,
    /// With `plateau`: validations without improvement until the rate is halved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// With `plateau`: validations without improvement until training ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<u64>,
    /// Steps until the learning rate has risen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<u64>,
    /// Decay of weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Bound on gradients: `{ element = 1000.0 }` or `{ norm = 1.0 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// Memory of averaged weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Times at which w(t) changes, per network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub midpoints: Option<Vec<f64>>,
    /// Smallest time that is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smallest_time: Option<f64>,
    /// Weight of the Fokker–Planck residual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fokker_planck_weight: Option<f64>,
    /// Part of the batch on which it is evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fokker_planck_fraction: Option<f64>,
    /// Size of its displacements in model coordinates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fokker_planck_sigma: Option<f64>,
    /// Distribution of its displacements: `signs` or `normal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fokker_planck_probe: Option<Probe>,
    /// Its step in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fokker_planck_time_step: Option<f64>,
    /// `corrected` or `published`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formulas: Option<Formulas>,
    /// Weight of forces in the loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_weight: Option<f64>,
    /// Forces teach up to this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_until: Option<f64>,
    /// Turn every sample at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate: Option<bool>,
    /// Frames that are held out to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<usize>,
    /// Seed of everything random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// `f32` or `f64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// What happens when a loss is not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_finite: Option<NotFinite>,
}

/// The table `[potential]`: labels of structures, and what each weighs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PotentialSettings {
    /// Weight of the squared errors of energies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_weight: Option<f64>,
    /// Weight of the mean squared errors of components of forces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_weight: Option<f64>,
    /// What is taken off energies before they are learnt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<EnergyOffset>,
    /// One unit of the network's energy, for example `1 kcal/mol`; the root mean square of the forces times 1 Å if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Quantity>,
    /// Unit of the file's energies, and with Å of its forces; `eV` if left out, as extended XYZ has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_unit: Option<String>,
    /// Structures that the trained potential is tested with in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
}

/// What is taken off energies before they are learnt; the trained potential adds it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnergyOffset {
    /// One number per atom: the mean over structures of energy over atoms.
    #[default]
    Atom,
    /// One number per element, by least squares.
    Element,
    /// Nothing.
    None,
}

/// How a learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Down half a cosine, to the last step.
    Cosine,
    /// By halves, where validation does not improve.
    Plateau,
}

/// What happens when a loss is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotFinite {
    /// Back to the last good state, with half the learning rate; after five times the training stops.
    #[default]
    Restore,
    /// The training stops.
    Stop,
}

/// The table `[output]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct OutputSettings {
    /// Directory for everything that is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Steps between lines of metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_every: Option<u64>,
    /// Steps between looks at the held-out data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<u64>,
    /// Steps between checkpoints, 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Minutes between checkpoints, 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_minutes: Option<f64>,
    /// Training frames that are written with the model, to start simulations from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_frames: Option<usize>,
    /// Time at which forces of the model are evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation_time: Option<f64>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Where it cannot be read, or has an unknown key or a value of the wrong type; with the line.
    pub fn read(path: &Path) -> Result<Self> {
        let file_error = |source| Error::File { action: "read", path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(file_error)?.len();
        if size > MAX_BYTES {
            return Err(Error::Config { path: path.to_owned(), line: None, what: format!("{size} bytes are too many for a recipe") });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(file_error)?, path)
    }

    /// As [`Recipe::read`], from text; `path` is for messages.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| text.as_bytes()[..s.start.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1);
            Error::Config { path: path.to_owned(), line, what: explain(e.message()) }
        })
    }
}

/// Turns serde's list of all known keys into a suggestion.
fn explain(message: &str) -> String {
    let quoted: Vec<String> = message.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    match (message.strip_prefix("unknown field"), quoted.split_first()) {
        (Some(_), Some((name, known))) if !known.is_empty() => format!("unknown key `{name}`{}", suggestion(name, known)),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_round_trip_and_mistakes_are_explained() {
        let text = "preset = \"alanine-dipeptide\"\nvariant = \"both\"\n[data]\ntrajectory = \"a.dcd\"\ntemperature = \"300 K\"\n\
                    [train]\nsteps = 100\nclip = { norm = 1.0 }\n[output]\ndirectory = \"out\"\n";
        let recipe = Recipe::parse(text, Path::new("r.toml")).unwrap();
        assert_eq!((recipe.variant, recipe.train.clip), (Some(Variant::Both), Some(Clip::Norm(1.0))));
        let again = toml::to_string(&recipe).unwrap();
        assert_eq!(Recipe::parse(&again, Path::new("r.toml")).unwrap(), recipe, "{again}");
        for (text, parts) in [
            ("[train]\nstep = 3", vec!["r.toml, line 2", "`step`; did you mean `steps`?"]),
            ("[train]\nbanana = 3", vec!["line 2", "known are steps, epochs"]),
            ("[data]\n\ntemperture = 3", vec!["line 3", "did you mean `temperature`?"]),
            ("[trian]\nsteps = 3", vec!["line 1", "did you mean `train`?"]),
            ("variant = \"bth\"", vec!["line 1", "unknown variant", "`both`"]),
            ("[train]\nsteps = \"many\"", vec!["line 2", "invalid type"]),
            ("[data]\ntemperature = \"300 parsec\"", vec!["line 2", "not a known unit"]),
            ("steps = ", vec!["line 1"]),
        ] {
            let message = Recipe::parse(text, Path::new("r.toml")).unwrap_err().to_string();
            assert!(parts.iter().all(|p| message.contains(p)), "{text:?}: {message}");
        }
    }
}
