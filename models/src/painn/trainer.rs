//! Training of pseudo-force fields and of their noise-predicting counterparts.
//!
//! A row is a minimum x₀ made noisy, x = x₀ + σ ε; the network learns `x̂₀ − x` under the weight min(1/σ², 1000), or ε. Everything
//! random is counted (seed, step, row) and gradients are summed over fixed groups of rows in a fixed order: parameters do not
//! depend, in any bit, on the number of threads or on where a run was stopped and resumed.

use super::config::{Layout, PainnConfig};
use super::network::{Parameters, Seed, Work};
use super::noising::{NoiseSettings, Row};
use super::provider::remove_mean;
use crate::error::{Error, Result};
use crate::train::adamw::Root;
use crate::train::{AdamW, CHUNK, Clip, CosineSchedule, Ema, Moments, Move, Moved, Permutation, StateFile, sum_gradients};
use rayon::prelude::*;
use scorefield_integrators::Noise;
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Groups of rows with a gradient of their own: a multiple of most numbers of threads.
const GROUPS: usize = 12;
/// Atoms that are worked on together: what a layer keeps for the way back should stay in the second-level cache.
const ATOMS_PER_BLOCK: usize = 96;
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

struct Group<T> {
    gradient: Vec<T>,
    sums: Sums,
    rows: Vec<Row>,
    seed: Vec<T>,
}

/// Trains a network. Work is shared out over the threads of the pool that it is called from.
pub struct Trainer<T: SimdReal> {
    plan: Plan,
    data: Arc<Molecules>,
    counters: Counters,
    values: Vec<T>,
    average: Vec<T>,
    moments: Moments<T>,
    parameters: Parameters<T>,
    work: Vec<Mutex<Work<T>>>,
    groups: Vec<Group<T>>,
    gradient: Vec<T>,
    squares: Vec<f64>,
}

impl<T: SimdReal + Root> Trainer<T> {
    /// A trainer at step 0, with parameters drawn by the plan's seed.
    ///
    /// # Errors
    /// Where plan or data make no sense.
    pub fn new(plan: Plan, data: Arc<Molecules>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let values: Vec<T> = layout.initialise(Noise::new(plan.seed)).into_iter().map(T::from_f64).collect();
        let n = values.len();
        let parameters = Parameters::new(&plan.config, layout);
        let group = || Group { gradient: vec![T::default(); n], sums: Sums::default(), rows: Vec::new(), seed: Vec::new() };
        let counters = Counters { step: 0, skipped: 0, progress: Progress::default(), interval: Sums::default(), gradient_norm: 0.0 };
        Ok(Trainer {
            data,
            counters,
            average: values.clone(),
            moments: Moments::zeros(n),
            parameters,
            work: (0..rayon::current_num_threads()).map(|_| Mutex::new(Work::new(true, false))).collect(),
            groups: (0..GROUPS.min(plan.batch)).map(|_| group()).collect(),
            gradient: vec![T::default(); n],
            squares: vec![0.0; n.div_ceil(CHUNK)],
            values,
            plan,
        })
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
    pub fn start_from(&mut self, values: &[f64]) {
        for (&p, &v) in self.parameters.layout.map.iter().zip(values) {
            self.values[p] = T::from_f64(v);
        }
        self.average.clone_from(&self.values);
    }

    /// Averaged parameters in the order of files.
    pub fn averaged(&self) -> Vec<f64> {
        self.parameters.layout.map.iter().map(|&p| self.average[p].to_f64()).collect()
    }

    /// Learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.plan.rate.at(self.counters.step, &self.counters.progress)
    }

    /// One step. Returns false where a loss or gradient was not finite, and nothing moved.
    pub fn step(&mut self) -> bool {
        self.parameters.load(&self.values);
        let (step, batch) = (self.counters.step, self.plan.batch);
        let count = self.data.training.len();
        let noise = Noise::new(self.plan.seed);
        let molecule = |i: usize| {
            let place = step as usize * batch + i;
            self.data.training[Permutation::new(noise, (place / count) as u64, count).at(place % count)]
        };
        let sums = evaluate(&self.plan, &self.data, &self.parameters, &self.work, &mut self.groups, (batch, step, true), molecule);
        let norm = self.sum_gradients();
        self.counters.step += 1;
        if !(sums.loss.is_finite() && norm.is_finite()) {
            self.counters.skipped += 1;
            return false;
        }
        let rate = {
            self.counters.step -= 1;
            let rate = self.rate();
            self.counters.step += 1;
            rate
        };
        self.update(rate, norm);
        self.counters.interval.add(&sums);
        self.counters.gradient_norm += norm;
        true
    }

    /// Losses of the averaged weights on at most `most` validation molecules, always with the same noise.
    pub fn validate(&mut self, most: usize) -> Sums {
        self.parameters.load(&self.average);
        let rows = self.data.validation.len().min(most);
        let all = &self.data.validation;
        let molecule = |i: usize| all[i * all.len() / rows.max(1)];
        evaluate(&self.plan, &self.data, &self.parameters, &self.work, &mut self.groups, (rows, VALIDATION_STEP, false), molecule)
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

    /// Sums the groups' gradients in their order and returns the norm.
    fn sum_gradients(&mut self) -> f64 {
        let groups = &self.groups;
        sum_gradients(groups.len(), |g| &groups[g].gradient, &mut self.gradient, &mut self.squares)
    }

    /// Moves parameters, and their average after them.
    fn update(&mut self, rate: f64, norm: f64) {
        let moved = self.counters.step - self.counters.skipped;
        let Moments { first, second } = &mut self.moments;
        let (values, gradient, average) = (&mut self.values[..], &mut self.gradient[..], &mut self.average[..]);
        let to = Moved { values, gradient, first, second, average };
        Move::new(self.plan.clip, self.plan.ema, moved, norm).apply(self.plan.adam.factors(moved, rate), to);
    }

    /// Everything that a run goes on from; `header` is the caller's, JSON.
    pub fn save(&self, header: serde_json::Value) -> StateFile {
        let header = serde_json::json!({ "now": self.counters, "run": header });
        let Moments { first, second } = &self.moments;
        StateFile::of::<T>(&header, &[("parameters", &self.values), ("average", &self.average), ("first", first), ("second", second)])
    }

    /// Goes on from what [`Trainer::save`] returned. `file` is for messages.
    ///
    /// # Errors
    /// Where the state is of another network.
    pub fn restore(&mut self, mut saved: StateFile, file: &Path) -> Result<()> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut header: serde_json::Value = serde_json::from_str(&saved.header).map_err(|e| refuse(e.to_string()))?;
        self.counters = serde_json::from_value(header["now"].take()).map_err(|e| refuse(e.to_string()))?;
        for (name, to) in [
            ("parameters", &mut self.values),
            ("average", &mut self.average),
            ("first", &mut self.moments.first),
            ("second", &mut self.moments.second),
        ] {
            saved.take_into(file, name, to)?;
        }
        Ok(())
    }
}

/// Losses of `rows` rows with the noise of `step`, and with `back` their gradient in the groups.
fn evaluate<T: SimdReal>(
    plan: &Plan,
    data: &Molecules,
    parameters: &Parameters<T>,
    work: &[Mutex<Work<T>>],
    groups: &mut [Group<T>],
    (rows, step, back): (usize, u64, bool),
    molecule: impl Fn(usize) -> u32 + Sync,
) -> Sums {
    let count = groups.len();
    groups.par_iter_mut().enumerate().for_each(|(g, group)| {
        group.sums = Sums::default();
        if back {
            group.gradient.fill(T::default());
        }
        let work = &work[rayon::current_thread_index().unwrap_or(0) % work.len()];
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        let all = g * rows / count..(g + 1) * rows / count;
        let mut first = all.start;
        while first < all.end {
            let (mut end, mut atoms) = (first, 0);
            while end < all.end && (atoms == 0 || atoms + data.molecule(molecule(end)).0.len() <= ATOMS_PER_BLOCK) {
                atoms += data.molecule(molecule(end)).0.len();
                end += 1;
            }
            let block = Block { plan, data, parameters, scale: 1.0 / rows as f64, step, back };
            block.run(first..end, atoms, &molecule, &mut work, group);
            first = end;
        }
    });
    let mut sums = Sums::default();
    groups.iter().for_each(|g| sums.add(&g.sums));
    sums
}

/// Molecules that are worked on together.
struct Block<'a, T> {
    plan: &'a Plan,
    data: &'a Molecules,
    parameters: &'a Parameters<T>,
    /// One over the number of rows of the batch.
    scale: f64,
    step: u64,
    back: bool,
}

impl<T: SimdReal> Block<'_, T> {
    fn run(&self, rows: std::ops::Range<usize>, atoms: usize, molecule: &impl Fn(usize) -> u32, work: &mut Work<T>, group: &mut Group<T>) {
        let (config, settings) = (&self.plan.config, &self.plan.noise);
        let noise = Noise::new(self.plan.seed);
        if group.rows.len() < rows.len() {
            group.rows.resize_with(rows.len(), Row::default);
        }
        work.reserve(config, atoms, atoms * atoms / 2);
        work.clear();
        for (row, i) in group.rows.iter_mut().zip(rows.clone()) {
            let (types, minimum) = self.data.molecule(molecule(i));
            row.fill(settings, types, minimum, noise, i as u32, self.step);
            work.add(config, types, &row.x, 0.25 * row.sigma.ln());
        }
        work.forward(self.parameters);
        group.seed.clear();
        let mut first = 0;
        for row in &group.rows[..rows.len()] {
            let n = row.x.len() / 3;
            let start = group.seed.len();
            for i in first..first + n {
                group.seed.extend(work.vector(i));
            }
            let out = &mut group.seed[start..];
            remove_mean(out);
            // Both objectives in displacements over σ: −ε = (x₀ − x)/σ.
            let (sign, weight) = match self.plan.objective {
                Objective::PseudoForce => (1.0, settings.weight(row.sigma)),
                Objective::Noise => (-1.0 / row.sigma, 1.0),
            };
            let (mut loss, mut square) = (0.0, 0.0);
            let factor = 2.0 * weight / (3 * n) as f64 * self.scale;
            for (o, &label) in out.iter_mut().zip(&row.label) {
                let value = o.to_f64();
                let error = value - sign * label;
                loss += error * error;
                square += value * value;
                *o = T::from_f64(factor * error);
            }
            remove_mean(out);
            loss *= weight / (3 * n) as f64;
            let bin = SIGMA_BINS[1..BINS].iter().filter(|&&b| row.sigma >= b).count();
            let sums = &mut group.sums;
            sums.rows += 1;
            sums.loss += loss;
            sums.losses[bin] += loss;
            sums.counts[bin] += 1;
            if row.sigma >= settings.turn_below {
                let unit = if self.plan.objective == Objective::Noise { 1.0 } else { weight * row.sigma * row.sigma };
                sums.floors[bin] += unit * if n > 2 { 1.0 / n as f64 } else { 2.0 / (3 * n) as f64 };
            }
            let internal = (3 * n).saturating_sub(6).max(1) as f64;
            let size = if self.plan.objective == Objective::Noise { 1.0 } else { row.sigma };
            sums.ratios[bin] += (square / internal).sqrt() / size;
            first += n;
        }
        if self.back {
            work.backward(self.parameters, Seed::Vectors(&group.seed), Some(&mut group.gradient), None);
        }
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
