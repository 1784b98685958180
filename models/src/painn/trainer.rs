//! Training of pseudo-force fields and of their noise-predicting counterparts.
//!
//! A row is a minimum x₀ made noisy, x = x₀ + σ ε; the network learns `x̂₀ − x` under the weight min(1/σ², 1000), or ε. Everything
//! random is counted (seed, step, row) and gradients are summed over fixed groups of rows in a fixed order: parameters do not
//! depend, in any bit, on the number of threads or on where a run was stopped and resumed.

mod host;
mod on_device;

use super::config::{Layout, PainnConfig};
use super::noising::{NoiseSettings, Row};
use crate::error::{Error, Result};
use crate::train::adamw::Root;
use crate::train::device::Kept;
use crate::train::{AdamW, Clip, CosineSchedule, Ema, Permutation, StateFile};
use host::Host;
use on_device::OnDevice;
use scorefield_integrators::Noise;
use scorefield_integrators::device::Device;
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Step that stands for the fixed noise of validation.
const VALIDATION_STEP: u64 = 1 << 54;
/// Bounds of the noise levels (Å) by which validation is reported.
pub const SIGMA_BINS: [f64; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
const BINS: usize = SIGMA_BINS.len() - 1;

/// Minima to train on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Molecules {
    /// Atomic numbers of all molecules.
    pub types: Vec<u32>,
    /// Positions `[A, 3]` in Å.
    pub positions: Vec<f32>,
    /// First atom of each molecule, and the end.
    pub offsets: Vec<usize>,
    /// Which of them are trained on.
    pub training: Vec<u32>,
    /// Which are looked at only.
    pub validation: Vec<u32>,
}

impl Molecules {
    fn molecule(&self, i: u32) -> (&[u32], &[f32]) {
        let (a, b) = (self.offsets[i as usize], self.offsets[i as usize + 1]);
        (&self.types[a..b], &self.positions[3 * a..3 * b])
    }
}

/// What the network learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The way to the minimum.
    #[default]
    PseudoForce,
    /// The noise.
    Noise,
}

impl Objective {
    /// What displacements to the minimum are multiplied by: −ε = (x₀ − x)/σ.
    fn sign(self, sigma: f64) -> f64 {
        match self {
            Objective::PseudoForce => 1.0,
            Objective::Noise => -1.0 / sigma,
        }
    }

    /// Weight of a row in the loss.
    fn weight(self, settings: &NoiseSettings, sigma: f64) -> f64 {
        match self {
            Objective::PseudoForce => settings.weight(sigma),
            Objective::Noise => 1.0,
        }
    }
}

/// Learning rate over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// Down half a cosine.
    Cosine(CosineSchedule),
    /// Half after so many validations without improvement; the end after more of them.
    Plateau {
        /// At the start.
        rate: f64,
        /// Validations until it is halved.
        patience: u64,
        /// Validations until training ends.
        stop: u64,
        /// Steps at most.
        steps: u64,
    },
}

impl Rate {
    /// Steps at most.
    pub fn steps(&self) -> u64 {
        match self {
            Rate::Cosine(c) => c.steps,
            Rate::Plateau { steps, .. } => *steps,
        }
    }

    /// Learning rate of step `step`.
    pub(super) fn at(&self, step: u64, progress: &Progress) -> f64 {
        progress.rate_scale
            * match self {
                Rate::Cosine(c) => c.rate(step),
                Rate::Plateau { rate, .. } => *rate,
            }
    }

    /// Whether there was no improvement for so long that training ends.
    pub(super) fn has_stopped(&self, progress: &Progress) -> bool {
        matches!(self, Rate::Plateau { stop, .. } if progress.since[0] >= *stop)
    }

    /// Takes notice of a validation.
    pub(super) fn judge(&self, loss: f64, progress: &mut Progress) {
        let Rate::Plateau { patience, .. } = *self else {
            progress.best = Some(progress.best.map_or(loss, |b| b.min(loss)));
            return;
        };
        if progress.best.is_none_or(|b| loss < b) {
            (progress.best, progress.since) = (Some(loss), [0; 2]);
            return;
        }
        progress.since = progress.since.map(|s| s + 1);
        if progress.since[1] >= patience {
            progress.rate_scale *= 0.5;
            progress.since[1] = 0;
        }
    }
}

/// What a learning rate depends on besides the step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Factor of the learning rate.
    pub rate_scale: f64,
    /// Best validation loss.
    pub best: Option<f64>,
    /// Validations since it, and since the rate was halved.
    pub since: [u64; 2],
}

impl Default for Progress {
    fn default() -> Self {
        Progress { rate_scale: 1.0, best: None, since: [0; 2] }
    }
}

/// How a network is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The network.
    pub config: PainnConfig,
    /// What it learns.
    pub objective: Objective,
    /// Noise levels and labels.
    pub noise: NoiseSettings,
    /// Molecules of a batch.
    pub batch: usize,
    /// Learning rate, with the number of steps.
    pub rate: Rate,
    /// The optimiser.
    pub adam: AdamW,
    /// Bound on gradients.
    pub clip: Option<Clip>,
    /// Averaged weights.
    pub ema: Ema,
    /// Seed of everything random.
    pub seed: u64,
}

impl Plan {
    /// Steps at most.
    pub fn steps(&self) -> u64 {
        self.rate.steps()
    }
}

/// Sums over rows, by noise level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Rows.
    pub rows: u64,
    /// Weighted losses.
    pub loss: f64,
    /// The same by bin.
    pub losses: [f64; BINS],
    /// Rows by bin.
    pub counts: [u64; BINS],
    /// What no network that turns with its input can be better than: 1/N for small σ, by bin.
    pub floors: [f64; BINS],
    /// σ̂/σ with σ̂ = |F|/(k √(3N − 6)), by bin.
    pub ratios: [f64; BINS],
}

impl Sums {
    fn add(&mut self, o: &Sums) {
        self.rows += o.rows;
        self.loss += o.loss;
        for b in 0..BINS {
            self.losses[b] += o.losses[b];
            self.counts[b] += o.counts[b];
            self.floors[b] += o.floors[b];
            self.ratios[b] += o.ratios[b];
        }
    }

    /// Counts a row whose errors have squares of sum `error`, and whose vectors have those of sum `square`.
    fn count(&mut self, plan: &Plan, row: &Row, error: f64, square: f64) {
        let (settings, n, sigma) = (&plan.noise, row.x.len() / 3, row.sigma);
        let loss = error * plan.objective.weight(settings, sigma) / (3 * n) as f64;
        let bin = SIGMA_BINS[1..BINS].iter().filter(|&&b| sigma >= b).count();
        self.rows += 1;
        self.loss += loss;
        self.losses[bin] += loss;
        self.counts[bin] += 1;
        let noise = plan.objective == Objective::Noise;
        if sigma >= settings.turn_below {
            let unit = if noise { 1.0 } else { settings.weight(sigma) * sigma * sigma };
            self.floors[bin] += unit * if n > 2 { 1.0 / n as f64 } else { 2.0 / (3 * n) as f64 };
        }
        let internal = (3 * n).saturating_sub(6).max(1) as f64;
        self.ratios[bin] += (square / internal).sqrt() / if noise { 1.0 } else { sigma };
    }

    /// Mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.rows.max(1) as f64
    }

    /// Of each bin with rows: its bounds, its rows, mean loss, mean floor, mean σ̂/σ.
    pub fn bins(&self) -> impl Iterator<Item = ([f64; 2], u64, f64, f64, f64)> + '_ {
        (0..BINS).filter(|&b| self.counts[b] > 0).map(|b| {
            let n = self.counts[b] as f64;
            ([SIGMA_BINS[b], SIGMA_BINS[b + 1]], self.counts[b], self.losses[b] / n, self.floors[b] / n, self.ratios[b] / n)
        })
    }
}

/// Counters of a state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Steps, those that moved nothing among them.
    pub step: u64,
    /// Steps in which a loss or gradient was not finite.
    pub skipped: u64,
    /// Learning rate and the best validation.
    #[serde(flatten)]
    pub progress: Progress,
    /// Since the last report.
    pub interval: Sums,
    /// Sum of gradient norms since then.
    pub gradient_norm: f64,
}

impl Row {
    /// Derivative of the loss of a batch, of which a row is the share `scale`, to an error.
    fn factor(&self, plan: &Plan, scale: f64) -> f64 {
        2.0 * plan.objective.weight(&plan.noise, self.sigma) / self.x.len() as f64 * scale
    }
}

/// Rows to look at: those of a training step, or so many of the held-out molecules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    Training { step: u64 },
    Validation { rows: usize },
}

impl Rows {
    fn count(self, plan: &Plan) -> usize {
        match self {
            Rows::Training { .. } => plan.batch,
            Rows::Validation { rows } => rows,
        }
    }

    /// Counts their noise.
    fn step(self) -> u64 {
        match self {
            Rows::Training { step } => step,
            Rows::Validation { .. } => VALIDATION_STEP,
        }
    }

    /// The molecule of row `i`.
    fn molecule(self, plan: &Plan, data: &Molecules, i: usize) -> u32 {
        match self {
            Rows::Training { step } => {
                let (place, count) = (step as usize * plan.batch + i, data.training.len());
                data.training[Permutation::new(Noise::new(plan.seed), (place / count) as u64, count).at(place % count)]
            }
            Rows::Validation { rows } => data.validation[i * data.validation.len() / rows.max(1)],
        }
    }

    /// Fills `row` with row `i`; the types of its atoms.
    fn fill<'a>(self, plan: &Plan, data: &'a Molecules, i: usize, row: &mut Row) -> &'a [u32] {
        let (types, minimum) = data.molecule(self.molecule(plan, data, i));
        row.fill(&plan.noise, types, minimum, Noise::new(plan.seed), i as u32, self.step());
        types
    }
}

/// Who holds the parameters and computes: the threads of this process, or a device.
trait Machine<T>: Send {
    /// Losses with the averaged parameters.
    fn losses(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<Sums>;
    /// Losses with the present parameters, whose gradient is kept, and its norm.
    fn gradient(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<(Sums, f64)>;
    /// Follows the gradient, in step `step` of those that move anything, counted from 1.
    fn follow(&mut self, plan: &Plan, step: u64, rate: f64, norm: f64) -> Result<()>;
    /// Padded numbers `[layout.len]`.
    fn read(&self, what: Kept) -> Result<Vec<T>>;
    /// Overwrites them.
    fn write(&mut self, what: Kept, values: &[T]) -> Result<()>;
}

/// Trains a network. On this machine, work is shared out over the threads of the pool that it is called from.
pub struct Trainer<T: SimdReal> {
    plan: Plan,
    data: Arc<Molecules>,
    layout: Arc<Layout>,
    counters: Counters,
    machine: Box<dyn Machine<T>>,
}

impl<T: SimdReal + Root> Trainer<T> {
    /// A trainer at step 0, with parameters drawn by the plan's seed.
    ///
    /// # Errors
    /// Where plan or data make no sense.
    pub fn new(plan: Plan, data: Arc<Molecules>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let machine = Box::new(Host::new(&plan, layout.clone()));
        Self::with(plan, data, layout, machine)
    }

    /// The same on a device: noise is made here, all else happens there. Parameters are those of [`Trainer::new`] but for rounding.
    ///
    /// # Errors
    /// Where plan or data make no sense, or the device fails.
    pub fn on(device: &Device, plan: Plan, data: Arc<Molecules>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let machine = Box::new(OnDevice::new(device, &plan, &data, layout.clone())?);
        Self::with(plan, data, layout, machine)
    }

    fn with(plan: Plan, data: Arc<Molecules>, layout: Arc<Layout>, mut machine: Box<dyn Machine<T>>) -> Result<Self> {
        let values: Vec<T> = layout.initialise(Noise::new(plan.seed)).into_iter().map(T::from_f64).collect();
        machine.write(Kept::Values, &values)?;
        machine.write(Kept::Average, &values)?;
        let counters = Counters { step: 0, skipped: 0, progress: Progress::default(), interval: Sums::default(), gradient_norm: 0.0 };
        Ok(Trainer { plan, data, layout, counters, machine })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Counters of the present state.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether training has ended: all steps done, or no improvement for long.
    pub fn is_done(&self) -> bool {
        self.plan.rate.has_stopped(&self.counters.progress) || self.counters.step >= self.plan.steps()
    }

    /// Begins with these parameters, in the order of files, in place of random ones.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn start_from(&mut self, values: &[f64]) -> Result<()> {
        let values: Vec<T> = self.layout.pad(values).into_iter().map(T::from_f64).collect();
        self.machine.write(Kept::Values, &values)?;
        self.machine.write(Kept::Average, &values)
    }

    /// Averaged parameters in the order of files.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn averaged(&self) -> Result<Vec<f64>> {
        let average = self.machine.read(Kept::Average)?;
        Ok(self.layout.map.iter().map(|&p| average[p].to_f64()).collect())
    }

    /// Running mean of the gradient, in the order of files.
    #[cfg(test)]
    pub(super) fn mean_gradient(&self) -> Result<Vec<f64>> {
        let mean = self.machine.read(Kept::First)?;
        Ok(self.layout.map.iter().map(|&p| mean[p].to_f64()).collect())
    }

    /// Learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.plan.rate.at(self.counters.step, &self.counters.progress)
    }

    /// One step. Returns false where a loss or gradient was not finite, and nothing moved.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn step(&mut self) -> Result<bool> {
        let rate = self.rate();
        let (sums, norm) = self.machine.gradient(&self.plan, &self.data, Rows::Training { step: self.counters.step })?;
        self.counters.step += 1;
        if !(sums.loss.is_finite() && norm.is_finite()) {
            self.counters.skipped += 1;
            return Ok(false);
        }
        self.machine.follow(&self.plan, self.counters.step - self.counters.skipped, rate, norm)?;
        self.counters.interval.add(&sums);
        self.counters.gradient_norm += norm;
        Ok(true)
    }

    /// Losses of the averaged weights on at most `most` validation molecules, always with the same noise.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn validate(&mut self, most: usize) -> Result<Sums> {
        self.machine.losses(&self.plan, &self.data, Rows::Validation { rows: self.data.validation.len().min(most) })
    }

    /// Takes notice of a validation: the rate falls and training ends where there is no improvement.
    pub fn judge(&mut self, loss: f64) {
        self.plan.rate.judge(loss, &mut self.counters.progress);
    }

    /// Sums and mean gradient norm since the last call, which begin anew.
    pub fn take_interval(&mut self, steps: u64) -> (Sums, f64) {
        let norm = std::mem::take(&mut self.counters.gradient_norm);
        (std::mem::take(&mut self.counters.interval), norm / steps.max(1) as f64)
    }

    /// Everything that a run goes on from, here or on a device; `header` is the caller's, JSON.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn save(&self, header: serde_json::Value) -> Result<StateFile> {
        let header = serde_json::json!({ "now": self.counters, "run": header });
        let arrays = Kept::ALL.map(|(name, what)| (name, self.machine.read(what)));
        let mut named = Vec::new();
        for (name, values) in arrays {
            named.push((name, values?));
        }
        let named: Vec<(&str, &[T])> = named.iter().map(|(name, values)| (*name, &values[..])).collect();
        Ok(StateFile::of::<T>(&header, &named))
    }

    /// Goes on from what [`Trainer::save`] returned. `file` is for messages.
    ///
    /// # Errors
    /// Where the state is of another network, or the device fails.
    pub fn restore(&mut self, mut saved: StateFile, file: &Path) -> Result<()> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut header: serde_json::Value = serde_json::from_str(&saved.header).map_err(|e| refuse(e.to_string()))?;
        self.counters = serde_json::from_value(header["now"].take()).map_err(|e| refuse(e.to_string()))?;
        let mut values = vec![T::default(); self.layout.len];
        for (name, what) in Kept::ALL {
            saved.take_into(file, name, &mut values)?;
            self.machine.write(what, &values)?;
        }
        Ok(())
    }
}

/// What would make a trainer panic or wait for ever.
fn check(plan: &Plan, data: &Molecules) -> Result<()> {
    let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("training", name, value, remedy));
    plan.config.check()?;
    if plan.config.head != super::config::Head::Direct {
        return refuse("head", &"energy", "pseudo-forces need a direct head");
    }
    if plan.objective == Objective::Noise && !plan.config.time {
        return refuse("objective", &"noise", "the noise's scale is only known with time = true");
    }
    if plan.batch == 0 || plan.batch > 1 << 20 {
        return refuse("batch", &plan.batch, "give 1 to 1048576 molecules");
    }
    if !plan.noise.is_valid() {
        return refuse("noise", &format!("{:?}", plan.noise), "levels must be above zero and rise, parts lie in 0 to 1");
    }
    if plan.clip.is_some_and(|c| !c.is_valid()) {
        return refuse("clip", &"not above zero", "give a bound above zero");
    }
    if !(0.0..1.0).contains(&plan.ema.decay) {
        return refuse("ema", &plan.ema.decay, "give a memory from 0 (none) to below 1");
    }
    let molecules = data.offsets.len().saturating_sub(1);
    let all = data.training.iter().chain(&data.validation);
    if data.training.is_empty() || all.clone().any(|&i| i as usize >= molecules) {
        return refuse("molecules", &molecules, "there is nothing to train on");
    }
    if all.clone().any(|&i| data.offsets[i as usize] >= data.offsets[i as usize + 1])
        || data.offsets[molecules] != data.types.len()
        || data.positions.len() != 3 * data.types.len()
    {
        return refuse("molecules", &molecules, "every one needs atoms, and every atom a place");
    }
    if let Some(z) = data.types.iter().find(|&&z| z as usize >= super::config::TYPES) {
        return refuse("element", z, "atomic numbers below 100 are known");
    }
    Ok(())
}
