//! Any candle model as a force provider.
//!
//! This is the slow reference path: a graph of operations is built at every evaluation, and memory is allocated. It is for
//! new models, for tests, and as the standard that hand-written kernels are compared with.
//!
//! # Conversions
//!
//! A generative model sees noisy data `y = α y₀ + σ ε` with `y₀ = c x₀`, where `x₀` are positions in nm and `c` is the
//! model's scale. What it predicts is an affine function of the score `s(y) = ∇ log q(y)` of the noisy density `q`
//! ([`Prediction::to_score`]), and the score gives
//!
//! * the mean force `F(x) = kT α c s(α c x)` of the training ensemble smoothed by `σ/(α c)` (in nm), or
//! * the pseudo-force `F(x) = k (x̂₀ − x)` towards the expected clean positions `c x̂₀ = (y + σ² s)/α`.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor, Var};
use scorefield_integrators::units::BOLTZMANN;
use scorefield_integrators::{
    Array, Batch, Capabilities, Clock, DType, ForceProvider, Input, Kind, Output, Result as ContractResult, UnitSystem, View,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a model's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prediction {
    /// An energy, whose gradient gives forces.
    Energy,
    /// A force.
    Force,
    /// `k (ŷ₀ − y)`: a spring from noisy to clean data.
    PseudoForce,
    /// The score `∇ log q(y)`.
    Score,
    /// The noise `ε`.
    Noise,
    /// The clean data `y₀`.
    Clean,
    /// The velocity `dy/dt = α̇ y₀ + σ̇ ε`.
    Velocity,
}

/// One level of noise: `y = α y₀ + σ ε`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// The process's own time, for the model's input.
    pub t: f64,
    /// Share of the data that is left.
    pub alpha: f64,
    /// Standard deviation of the noise.
    pub sigma: f64,
    /// `dα/dt` and `dσ/dt`, for models that predict velocities.
    pub rates: [f64; 2],
}

impl NoiseLevel {
    /// `α² + σ² = 1` at time `t`; velocities are with respect to the angle `arccos α`: `v = α ε − σ y₀`.
    pub fn variance_preserving(t: f64, alpha: f64) -> Self {
        let sigma = (1.0 - alpha * alpha).max(0.0).sqrt();
        NoiseLevel { t, alpha, sigma, rates: [-sigma, alpha] }
    }

    /// `y = y₀ + σ ε`, with `σ` itself as time.
    pub fn variance_exploding(sigma: f64) -> Self {
        NoiseLevel { t: sigma, alpha: 1.0, sigma, rates: [0.0, 1.0] }
    }

    /// The straight line `y = (1 − t) y₀ + t ε` of flow matching; velocities are `ε − y₀`.
    pub fn straight(t: f64) -> Self {
        NoiseLevel { t, alpha: 1.0 - t, sigma: t, rates: [-1.0, 1.0] }
    }

    fn check(&self, name: &str) -> Result<()> {
        let finite = [self.t, self.alpha, self.sigma, self.rates[0], self.rates[1]].iter().all(|x| x.is_finite());
        if finite && self.alpha > 0.0 && self.sigma > 0.0 {
            return Ok(());
        }
        Err(Error::parameter(name, "noise level", format!("{self:?}"), "alpha and sigma must be finite and above zero"))
    }
}

impl Prediction {
    /// `[p, q]` such that `score = p · prediction + q · y` at noise level `n`; `None` for energies and forces, which are no
    /// functions of the score alone. `stiffness` is the `k` of pseudo-forces.
    pub fn to_score(self, n: &NoiseLevel, stiffness: f64) -> Option<[f64; 2]> {
        let variance = n.sigma * n.sigma;
        match self {
            Prediction::Energy | Prediction::Force => None,
            Prediction::Score => Some([1.0, 0.0]),
            // ε = −σ s
            Prediction::Noise => Some([-1.0 / n.sigma, 0.0]),
            // y₀ = (y + σ² s)/α
            Prediction::Clean => Some([n.alpha / variance, -1.0 / variance]),
            // F = k (y₀ − y)
            Prediction::PseudoForce => Some([n.alpha / (stiffness * variance), (n.alpha - 1.0) / variance]),
            // With y = α y₀ + σ ε: α v − α̇ y = (α σ̇ − α̇ σ) ε.
            Prediction::Velocity => {
                let wronskian = n.alpha * n.rates[1] - n.rates[0] * n.sigma;
                Some([-n.alpha / (n.sigma * wronskian), n.rates[0] / (n.sigma * wronskian)])
            }
        }
    }
}

/// A differentiable energy.
pub trait EnergyFunction: Send + Sync {
    /// Energies `[B]` in kJ/mol at positions `[A, 3]` in nm. Every operation must have a gradient: candle's ready-made
    /// `softmax_last_dim`, `layer_norm`, `rms_norm` and `rope` have none.
    ///
    /// # Errors
    /// candle's own.
    fn energy(&self, positions: &Tensor, batch: &Batch, clock: Clock) -> candle_core::Result<Tensor>;
}

/// A model that knows how to take noise away.
pub trait Denoiser: Send + Sync {
    /// The prediction `[A, 3]` for noisy data `[A, 3]` at one noise level.
    ///
    /// # Errors
    /// candle's own.
    fn predict(&self, noisy: &Tensor, batch: &Batch, level: &NoiseLevel) -> candle_core::Result<Tensor>;
}

/// `[A, 3]` numbers as a tensor on the CPU.
fn tensor(values: View<'_>) -> candle_core::Result<Tensor> {
    match values {
        View::F32(v) => Tensor::from_slice(v, (v.len() / 3, 3), &Device::Cpu),
        View::F64(v) => Tensor::from_slice(v, (v.len() / 3, 3), &Device::Cpu),
    }
}

/// Copies a tensor of as many numbers as `to` has.
fn copy(from: &Tensor, to: &mut Array) -> candle_core::Result<()> {
    let from = from.flatten_all()?;
    match to {
        Array::F32(to) => {
            from.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?.into_iter().zip(to).for_each(|(x, to)| *to = x);
        }
        Array::F64(to) => {
            from.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?.into_iter().zip(to).for_each(|(x, to)| *to = x);
        }
    }
    Ok(())
}

/// Sets forces on inactive axes to zero.
fn mask_axes(batch: &Batch, forces: &mut Array) {
    for b in 0..batch.replicas() {
        let axes = batch.system(b).axes;
        if axes != [true; 3] {
            batch.range3(b).filter(|k| !axes[k % 3]).for_each(|k| forces.set(k, 0.0));
        }
    }
}

fn shape_is(name: &str, what: &str, tensor: &Tensor, want: &[usize]) -> Result<()> {
    if tensor.dims() == want {
        return Ok(());
    }
    Err(Error::Candle(format!("{name} gave {what} of shape {:?} instead of {want:?}", tensor.dims())))
}

/// Forces of an [`EnergyFunction`]: `F = −∂E/∂x` by candle's reverse mode, with positions as a variable of their own that
/// is detached from everything else.
pub struct EnergyModel {
    capabilities: Capabilities,
    energy: Arc<dyn EnergyFunction>,
}

impl EnergyModel {
    /// The provider of `energy`; `capabilities` name it and say what its forces mean.
    pub fn new(energy: Arc<dyn EnergyFunction>, capabilities: Capabilities) -> Self {
        let capabilities = Capabilities {
            conservative: true,
            energy: true,
            virial: false,
            atom_energy: false,
            uncertainty: false,
            periodic: false,
            graph_safe: false,
            devices: vec!["cpu"],
            ..capabilities
        };
        EnergyModel { capabilities, energy }
    }

    fn evaluate(&self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        let name = &self.capabilities.name;
        let x = Var::from_tensor(&tensor(input.positions)?)?;
        let energy = self.energy.energy(x.as_tensor(), input.batch, input.clock)?;
        shape_is(name, "energies", &energy, &[input.batch.replicas()])?;
        let gradients = energy.sum_all()?.backward()?;
        let Some(gradient) = gradients.get(x.as_tensor()) else {
            return Err(Error::Candle(format!("{name}: no gradient reached the positions; some operation of it has none")));
        };
        copy(&gradient.detach().neg()?, &mut out.forces)?;
        mask_axes(input.batch, &mut out.forces);
        if input.want.energy {
            let energies = energy.detach().to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
            out.energy.copy_from_slice(&energies);
        }
        Ok(())
    }
}

impl ForceProvider for EnergyModel {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        EnergyModel::evaluate(self, input, out).map_err(|e| e.of_provider(&self.capabilities.name))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(EnergyModel { capabilities: self.capabilities.clone(), energy: self.energy.clone() }))
    }
}

/// What forces a [`ScoreModel`] gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// `F(x) = kT α c s(α c x)`, of an ensemble at this temperature (K; kT in reduced units).
    MeanForce {
        /// Temperature of the training data.
        temperature: f64,
    },
    /// As published for ScoreMD: `F(x) = kT c s(c x)`, without the factors `α`; the same where `α` is close to 1.
    PublishedMeanForce {
        /// Temperature of the training data.
        temperature: f64,
    },
    /// `F(x) = k (x̂₀ − x)` with `x` taken as data at the noise level (`y = α c x`), for models of minima.
    PseudoForce {
        /// Force constant `k` in kJ/mol/nm², or reduced.
        stiffness: f64,
    },
}

/// Where the noise level comes from.
#[derive(Clone)]
pub enum Levels {
    /// One level for the whole run.
    Fixed(NoiseLevel),
    /// The level at the run's diffusion time ([`Clock::Diffusion`]).
    Clock(Arc<dyn Fn(f64) -> NoiseLevel + Send + Sync>),
}

/// How the output of a [`Denoiser`] becomes a force.
#[derive(Clone)]
pub struct ScoreSettings {
    /// Name for messages and reports.
    pub name: String,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Force constant of the model's own pseudo-forces, in units of its data; unused for other predictions.
    pub stiffness: f64,
    /// Model coordinates per nm, `c`.
    pub scale: f64,
    /// What forces are wanted.
    pub target: Target,
    /// Noise levels.
    pub levels: Levels,
    /// Units of positions and energies.
    pub units: UnitSystem,
    /// Atom types it knows; `None` for any.
    pub types: Option<Vec<u32>>,
}

/// Forces of a [`Denoiser`]; see the formulas at the top of this module.
pub struct ScoreModel {
    capabilities: Capabilities,
    settings: ScoreSettings,
    model: Arc<dyn Denoiser>,
}

impl ScoreModel {
    /// The provider of `model`.
    ///
    /// # Errors
    /// Where a number among the settings is refused, or the model predicts energies or forces, which need no conversion.
    pub fn new(model: Arc<dyn Denoiser>, settings: ScoreSettings) -> Result<Self> {
        let name = settings.name.as_str();
        let positive = |what, x| crate::analytic::positive(name, what, x);
        positive("scale", settings.scale)?;
        if settings.prediction == Prediction::PseudoForce {
            positive("stiffness", settings.stiffness)?;
        }
        let kind = match settings.target {
            Target::MeanForce { temperature } | Target::PublishedMeanForce { temperature } => {
                Kind::MeanForce { temperature_kelvin: positive("temperature", temperature)? }
            }
            Target::PseudoForce { stiffness } => {
                positive("stiffness", stiffness)?;
                Kind::PseudoForce
            }
        };
        if let Levels::Fixed(level) = &settings.levels {
            level.check(name)?;
        }
        if matches!(settings.prediction, Prediction::Energy | Prediction::Force) {
            return Err(Error::parameter(
                name,
                "prediction",
                format!("{:?}", settings.prediction),
                "it is no function of a score; use it as it is",
            ));
        }
        let stiffness = match settings.target {
            Target::PseudoForce { stiffness } => Some(stiffness),
            _ => None,
        };
        let capabilities = Capabilities {
            kind,
            stiffness,
            conservative: false,
            energy: false,
            needs_noise_level: matches!(settings.levels, Levels::Clock(_)),
            units: settings.units,
            types: settings.types.clone(),
            graph_safe: false,
            ..Capabilities::potential(name)
        };
        Ok(ScoreModel { capabilities, settings, model })
    }

    fn evaluate(&self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        let s = &self.settings;
        let level = match (&s.levels, input.clock) {
            (Levels::Fixed(level), _) => *level,
            (Levels::Clock(level), Clock::Diffusion { t }) => level(t),
            (Levels::Clock(_), clock) => {
                return Err(Error::parameter(
                    &s.name,
                    "clock",
                    format!("{clock:?}"),
                    "it needs a diffusion time; choose a fixed noise level",
                ));
            }
        };
        level.check(&s.name)?;
        let Some([p, q]) = s.prediction.to_score(&level, s.stiffness) else {
            return Err(Error::parameter(&s.name, "prediction", format!("{:?}", s.prediction), "it is no function of a score"));
        };
        let kt = |temperature: f64| if s.units == UnitSystem::Si { BOLTZMANN * temperature } else { temperature };
        let alpha = if matches!(s.target, Target::PublishedMeanForce { .. }) { 1.0 } else { level.alpha };
        let x = tensor(input.positions)?;
        let noisy = x.affine(alpha * s.scale, 0.0)?;
        let prediction = self.model.predict(&noisy, input.batch, &level)?.detach();
        shape_is(&s.name, "a prediction", &prediction, &[input.batch.atoms(), 3])?;
        let score = (prediction.affine(p, 0.0)? + noisy.affine(q, 0.0)?)?;
        let forces = match s.target {
            Target::MeanForce { temperature } | Target::PublishedMeanForce { temperature } => {
                score.affine(kt(temperature) * alpha * s.scale, 0.0)?
            }
            // c x̂₀ = (y + σ² s)/α and y = α c x, so x̂₀ − x = σ² s/(α c).
            Target::PseudoForce { stiffness } => score.affine(stiffness * level.sigma * level.sigma / (level.alpha * s.scale), 0.0)?,
        };
        copy(&forces, &mut out.forces)?;
        mask_axes(input.batch, &mut out.forces);
        Ok(())
    }
}

impl ForceProvider for ScoreModel {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        ScoreModel::evaluate(self, input, out).map_err(|e| e.of_provider(&self.capabilities.name))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(ScoreModel { capabilities: self.capabilities.clone(), settings: self.settings.clone(), model: self.model.clone() }))
    }
}

/// Checks that candle's second derivatives are right in this thread: those of `x³` at 2.
///
/// candle detaches gradients from their graph unless `CANDLE_GRAD_DO_NOT_DETACH=1` was in the environment when the thread
/// first differentiated something; without it second derivatives are silently wrong.
///
/// # Errors
/// Where they are wrong, with the remedy.
pub fn assert_second_order() -> Result<()> {
    let x = Var::new(2.0f64, &Device::Cpu)?;
    let cube = ((x.as_tensor() * x.as_tensor())? * x.as_tensor())?;
    let first = cube.backward()?;
    let second = match first.get(x.as_tensor()) {
        Some(slope) => slope.backward()?.get(x.as_tensor()).map(|g| g.to_scalar::<f64>()).transpose()?,
        None => None,
    };
    if second == Some(12.0) {
        return Ok(());
    }
    let got = second.map_or("none".to_owned(), |g| g.to_string());
    Err(Error::Candle(format!(
        "the second derivative of x^3 at 2 is 12, but candle gives {got}; set CANDLE_GRAD_DO_NOT_DETACH=1 before the program starts"
    )))
}

#[cfg(test)]
mod tests;
