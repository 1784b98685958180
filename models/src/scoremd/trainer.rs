//! Training: one step is one batch, noised, shared out over threads, and one move of the optimiser.
//!
//! Everything random is counted (seed, step, row), and gradients are summed over fixed groups of rows in a fixed order.
//! Parameters therefore do not depend, in any bit, on the number of threads or on where a run was stopped and resumed.

use super::initial::initialise;
use super::loss::{Gradient, LossEvaluator, LossSums, Normalisation, Objective, Samples};
use super::network::{Network, Worker};
use super::process::TimeRange;
use crate::error::{Error, Result};
use crate::train::adamw::Root;
use crate::train::{AdamW, CHUNK, Clip, CosineSchedule, Ema, Moments, Move, Moved, Permutation, StateFile, sum_gradients};
use rayon::prelude::*;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{Array, Noise, Purpose, Real};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows that are evaluated at once.
const BLOCK: usize = 16;
/// Most groups of rows with a gradient of their own.
const MOST_GROUPS: usize = 32;
/// Step that stands for the fixed noise of the held-out data.
const VALIDATION_STEP: u64 = 1 << 54;
/// Epoch that stands for the choice of the held-out data.
const VALIDATION_EPOCH: u64 = 1 << 54;

/// Training of one network.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Which network.
    pub network: usize,
    /// Times that are drawn.
    pub times: TimeRange,
    /// What is minimised.
    pub objective: Objective,
    /// Learning rate; its `steps` are those of the stage.
    pub schedule: CosineSchedule,
}

/// How a model is trained: its networks one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The networks' trainings, in order.
    pub stages: Vec<Stage>,
    /// Rows of a batch.
    pub batch: usize,
    /// The optimiser.
    pub adam: AdamW,
    /// Bound on gradients.
    pub clip: Option<Clip>,
    /// Averaged weights.
    pub ema: Ema,
    /// Learning rate of log Z's coefficients over that of the network: they are few, and their values are large.
    pub log_z_rate: f64,
    /// Turn every sample by a random rotation; for beads in three dimensions.
    pub rotate: bool,
    /// Frames that are held out.
    pub held_out: usize,
    /// Seed of everything random.
    pub seed: u64,
}

impl Plan {
    /// Steps of all stages.
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|s| s.schedule.steps).sum()
    }
}

/// What is trained on.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// Frames in model coordinates `[n, D]`.
    pub x: Vec<f32>,
    /// Their scores `[n, D]`, where forces are known.
    pub scores: Option<Vec<f32>>,
    /// Which of the networks' systems each frame is of `[n]`; empty where there is one only.
    pub system: Vec<u32>,
    /// Coordinates of a frame, D.
    pub dimension: usize,
}

impl Data {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.x.len() / self.dimension.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }
}

/// Sums since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Steps.
    pub steps: u64,
    /// Losses.
    pub sums: LossSums,
    /// Norms of gradients before they were bounded.
    pub gradient_norm: f64,
}

/// Counters of a state, as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Steps of all stages.
    pub step: u64,
    /// Present stage.
    pub stage: usize,
    /// Steps of this stage.
    pub stage_step: u64,
    /// Factor of the learning rate, below 1 after losses that were not finite.
    pub rate_scale: f64,
    /// How often a good state was restored.
    pub restores: u32,
    /// Since the last report.
    pub interval: Interval,
}

/// Everything that changes while training.
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// Counters.
    pub counters: Counters,
    /// Parameters of each network, followed by log Z's coefficients where its stage has them.
    pub parameters: Vec<Vec<T>>,
    /// Their averages.
    pub average: Vec<Vec<T>>,
    /// The optimiser's memory of the present stage.
    pub moments: Moments<T>,
}

impl<T: Real> State<T> {
    /// Becomes `other` without new memory.
    fn assign(&mut self, other: &Self) {
        self.counters = other.counters;
        self.parameters.clone_from(&other.parameters);
        self.average.clone_from(&other.average);
        self.moments.first.clone_from(&other.moments.first);
        self.moments.second.clone_from(&other.moments.second);
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Parameters have moved.
    Moved {
        /// Sums of the losses over the batch.
        sums: LossSums,
        /// Norm of the gradient before it was bounded.
        gradient_norm: f64,
        /// Learning rate.
        rate: f64,
    },
    /// Something was not finite; nothing has moved.
    NotFinite {
        /// What.
        part: &'static str,
    },
}

struct Slot<T: SimdReal> {
    worker: Box<dyn Worker<T>>,
    version: u64,
}

struct Group<T> {
    samples: Samples<T>,
    evaluator: LossEvaluator<T>,
    gradient: Vec<T>,
    sums: LossSums,
}

/// Trains a model. Work is shared out over the threads of the pool that it is called from.
pub struct Trainer<T: SimdReal> {
    plan: Plan,
    networks: Vec<Arc<dyn Network<T>>>,
    data: Arc<Data>,
    state: State<T>,
    good: State<T>,
    /// One worker per thread, for the present stage's network.
    slots: Vec<Mutex<Slot<T>>>,
    groups: Vec<Group<T>>,
    gradient: Vec<T>,
    /// Sums of squares of pieces of the gradient.
    squares: Vec<f64>,
    /// Counts changes of the parameters that workers have loaded.
    version: u64,
}

/// Which rows are made.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    Training { step: u64, stage_step: u64 },
    HeldOut,
}

/// Makes rows of a batch.
struct Sampler<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    data: &'a Data,
    noise: Noise,
    rows: Rows,
}

impl<'a> Sampler<'a> {
    fn new(plan: &'a Plan, stage: &'a Stage, data: &'a Data, rows: Rows) -> Self {
        Sampler { plan, stage, data, noise: Noise::new(plan.seed), rows }
    }

    /// Rows of a batch.
    fn len(&self) -> usize {
        if self.rows == Rows::HeldOut { self.plan.held_out } else { self.plan.batch }
    }

    fn counter(&self) -> u64 {
        match self.rows {
            Rows::Training { step, .. } => step,
            Rows::HeldOut => VALIDATION_STEP,
        }
    }

    /// Frame of row `i`. All frames come once before one comes again, and none that is held out.
    fn frame(&self, i: usize) -> usize {
        let all = Permutation::new(self.noise, VALIDATION_EPOCH, self.data.len());
        let training = self.data.len() - self.plan.held_out;
        match self.rows {
            Rows::HeldOut => all.at(training + i),
            Rows::Training { stage_step, .. } => {
                let place = stage_step as usize * self.plan.batch + i;
                let epoch = (place / training) as u64 | (self.stage.network as u64) << 48;
                all.at(Permutation::new(self.noise, epoch, training).at(place % training))
            }
        }
    }

    /// Time of row `i`: uniform within the i-th part of the range, so that every batch covers all of it.
    fn time(&self, i: usize) -> f64 {
        let u = match self.rows {
            Rows::HeldOut => 0.5,
            Rows::Training { step, .. } => self.noise.uniform(0, i as u32, step, Purpose::TrainingPlace),
        };
        let TimeRange { start, end } = self.stage.times;
        start + (end - start) * (i as f64 + u) / self.len() as f64
    }

    /// Whether the residual is evaluated on row `i`: on a fraction of the rows, evenly spread.
    fn has_residual(&self, i: usize) -> bool {
        let Some(settings) = self.stage.objective.fokker_planck else { return false };
        let start = match self.rows {
            Rows::HeldOut => 0.0,
            Rows::Training { step, .. } => self.noise.uniform(1, 0, step, Purpose::TrainingPlace),
        };
        let count = |i: usize| (i as f64 * settings.fraction + start).floor();
        count(i + 1) > count(i)
    }

    fn has_force<T: SimdReal>(&self, i: usize) -> bool {
        let forces = self.stage.objective.forces.filter(|_| self.data.scores.is_some());
        forces.is_some_and(|f| T::from_f64(self.time(i)).to_f64() <= f.until)
    }

    /// Weights of rows in the means over the batch.
    fn normalisation<T: SimdReal>(&self) -> Normalisation {
        let count = |has: &dyn Fn(usize) -> bool| (0..self.len()).filter(|&i| has(i)).count();
        let forces = if self.stage.objective.forces.is_some() { count(&|i| self.has_force::<T>(i)) } else { 0 };
        let residuals = if self.stage.objective.fokker_planck.is_some() { count(&|i| self.has_residual(i)) } else { 0 };
        Normalisation::new(&self.stage.objective, self.len(), residuals, forces)
    }

    /// Random rotation of row `i`, uniform over all (K. Shoemake, *Graphics Gems III*, 1992).
    fn rotation(&self, i: usize) -> [[f64; 3]; 3] {
        let bits = self.noise.bits(2, i as u32, self.counter(), Purpose::TrainingPlace);
        let u = bits.map(|b| (f64::from(b) + 0.5) / 4_294_967_296.0);
        let (s1, c1) = (std::f64::consts::TAU * u[1]).sin_cos();
        let (s2, c2) = (std::f64::consts::TAU * u[2]).sin_cos();
        let (a, b) = ((1.0 - u[0]).sqrt(), u[0].sqrt());
        let (x, y, z, w) = (a * s1, a * c1, b * s2, b * c2);
        [
            [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)],
            [2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)],
            [2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)],
        ]
    }

    /// Adds the noised rows `rows` to `samples`.
    fn fill<T: SimdReal>(&self, rows: Range<usize>, samples: &mut Samples<T>) {
        let d = self.data.dimension;
        samples.clear();
        for i in rows.clone() {
            let t = T::from_f64(self.time(i));
            let (mean, sigma) = (self.stage.objective.process.mean(t.to_f64()), self.stage.objective.process.sigma(t.to_f64()));
            samples.t.push(t);
            let frame = self.frame(i);
            samples.system.extend(self.data.system.get(frame));
            let clean = &self.data.x[frame * d..(frame + 1) * d];
            let scores = self.data.scores.as_ref().map(|s| &s[frame * d..(frame + 1) * d]);
            let rotation = self.plan.rotate.then(|| self.rotation(i));
            for k in (0..d).step_by(3) {
                let eps = self.noise.normals((k / 3) as u32, i as u32, self.counter(), Purpose::TrainingNoise);
                let width = (d - k).min(3);
                let place = turned(rotation.as_ref(), &clean[k..k + width]);
                for (x, eps) in place.iter().zip(eps).take(width) {
                    samples.x.push(T::from_f64(mean * x + sigma * eps));
                    samples.noise.push(T::from_f64(eps));
                }
                if let Some(scores) = scores {
                    let score = turned(rotation.as_ref(), &scores[k..k + width]);
                    samples.clean_scores.extend(score.iter().take(width).map(|&s| T::from_f64(s)));
                }
            }
            if self.has_residual(i) {
                samples.residual_rows.push((i - rows.start) as u32);
            }
        }
        let Some(settings) = self.stage.objective.fokker_planck else { return };
        for copy in 0..2u32 {
            for &row in &samples.residual_rows {
                let row = (rows.start + row as usize) as u32;
                for k in (0..d).step_by(3) {
                    let atom = copy << 24 | (k / 3) as u32;
                    let probe = match settings.probe {
                        super::fokker_planck::Probe::Normal => self.noise.normals(atom, row, self.counter(), Purpose::TrainingProbe),
                        super::fokker_planck::Probe::Signs => {
                            let bits = self.noise.bits(atom, row, self.counter(), Purpose::TrainingProbe)[0];
                            [0, 1, 2].map(|b| if bits >> (8 * b) & 1 == 1 { 1.0 } else { -1.0 })
                        }
                    };
                    samples.probes.extend(probe.iter().take((d - k).min(3)).map(|&e| T::from_f64(e)));
                }
            }
        }
    }
}

/// Up to three coordinates, turned where there is a rotation.
fn turned(rotation: Option<&[[f64; 3]; 3]>, v: &[f32]) -> [f64; 3] {
    let mut p = [0.0; 3];
    for (p, &v) in p.iter_mut().zip(v) {
        *p = f64::from(v);
    }
    match rotation {
        Some(r) => [0, 1, 2].map(|a| r[a][0] * p[0] + r[a][1] * p[1] + r[a][2] * p[2]),
        None => p,
    }
}

impl<T: SimdReal + Root> Trainer<T> {
    /// A trainer at step 0, with parameters drawn by the plan's seed.
    ///
    /// # Errors
    /// Where the plan does not fit the networks or the data.
    pub fn new(plan: Plan, networks: Vec<Arc<dyn Network<T>>>, data: Arc<Data>) -> Result<Self> {
        check(&plan, &networks, &data)?;
        let noise = Noise::new(plan.seed);
        let parameters: Vec<Vec<T>> = networks
            .iter()
            .enumerate()
            .map(|(k, network)| {
                let mut values = initialise(network.layout(), noise, k as u32);
                let log_z = plan.stages.iter().filter(|s| s.network == k).find_map(|s| s.objective.log_z);
                values.resize(values.len() + log_z.map_or(0, |z| z.coefficients), T::default());
                values
            })
            .collect();
        let first = plan.stages.first().map_or(0, |s| parameters[s.network].len());
        let state = State {
            counters: Counters { rate_scale: 1.0, ..Counters::default() },
            average: parameters.clone(),
            parameters,
            moments: Moments::zeros(first),
        };
        let mut trainer = Trainer {
            plan,
            networks,
            data,
            good: state.clone(),
            state,
            slots: Vec::new(),
            groups: Vec::new(),
            gradient: Vec::new(),
            squares: Vec::new(),
            version: 1,
        };
        trainer.begin_stage();
        Ok(trainer)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Present state.
    pub fn state(&self) -> &State<T> {
        &self.state
    }

    /// Whether all stages are done.
    pub fn is_done(&self) -> bool {
        self.state.counters.stage >= self.plan.stages.len()
    }

    /// Makes workers and memory for the present stage.
    /// Begins with these parameters of each network, and these coefficients of `log Z(t)` where both have them, in place of random
    /// ones. For a trainer that was just made.
    pub fn start_from(&mut self, networks: &[Vec<f32>], log_z: Option<&[f32]>) {
        for (to, from) in self.state.parameters.iter_mut().zip(networks) {
            let coefficients = log_z.unwrap_or_default();
            to.iter_mut().zip(from.iter().chain(coefficients)).for_each(|(to, &from)| *to = T::from_f64(f64::from(from)));
        }
        self.state.average.clone_from(&self.state.parameters);
        self.good = self.state.clone();
        self.version += 1;
    }

    fn begin_stage(&mut self) {
        let Some(stage) = self.plan.stages.get(self.state.counters.stage) else { return };
        let network = &self.networks[stage.network];
        self.version += 1;
        self.slots = (0..rayon::current_num_threads()).map(|_| Mutex::new(Slot { worker: network.worker(), version: 0 })).collect();
        let parameters = self.state.parameters[stage.network].len();
        let most = self.plan.batch.max(self.plan.held_out);
        let groups = most.div_ceil(BLOCK).clamp(1, MOST_GROUPS);
        self.groups = (0..groups)
            .map(|_| Group {
                samples: Samples::default(),
                evaluator: LossEvaluator::default(),
                gradient: vec![T::default(); parameters],
                sums: LossSums::default(),
            })
            .collect();
        self.gradient = vec![T::default(); parameters];
        self.squares = vec![0.0; parameters.div_ceil(CHUNK)];
    }

    /// Losses of the rows that `rows` says, and their gradient in the groups where wanted.
    fn losses(&mut self, rows: Rows, parameters: &[T], with_gradient: bool) -> LossSums {
        let stage = &self.plan.stages[self.state.counters.stage];
        let sampler = Sampler::new(&self.plan, stage, &self.data, rows);
        let normalisation = sampler.normalisation::<T>();
        let network = self.networks[stage.network].layout().len();
        let count = self.groups.len();
        let (slots, version) = (&self.slots, self.version);
        self.groups.par_iter_mut().enumerate().for_each(|(g, group)| {
            let all = g * sampler.len() / count..(g + 1) * sampler.len() / count;
            group.sums = LossSums::default();
            if with_gradient {
                group.gradient.fill(T::default());
            }
            if all.is_empty() {
                return;
            }
            let slot = &slots[rayon::current_thread_index().unwrap_or(0) % slots.len()];
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.version != version {
                slot.worker.load(&parameters[..network]);
                slot.version = version;
            }
            for start in all.clone().step_by(BLOCK) {
                sampler.fill(start..all.end.min(start + BLOCK), &mut group.samples);
                let gradient = with_gradient.then(|| Gradient { values: &mut group.gradient, normalisation });
                let sums = group.evaluator.evaluate(&mut *slot.worker, &stage.objective, &group.samples, &parameters[network..], gradient);
                group.sums.add(&sums);
            }
        });
        let mut sums = LossSums::default();
        self.groups.iter().for_each(|g| sums.add(&g.sums));
        sums
    }

    /// One step. Where a loss or the gradient is not finite, nothing moves.
    pub fn step(&mut self) -> Step {
        let counters = self.state.counters;
        let (index, schedule) = match self.plan.stages.get(counters.stage) {
            Some(stage) => (stage.network, stage.schedule),
            None => return Step::NotFinite { part: "a step after the last" },
        };
        let mut parameters = std::mem::take(&mut self.state.parameters[index]);
        let rows = Rows::Training { step: counters.step, stage_step: counters.stage_step };
        let sums = self.losses(rows, &parameters, true);
        let gradient_norm = self.sum_gradients();
        let bad = sums.not_finite().or((!gradient_norm.is_finite()).then_some("the gradient"));
        if let Some(part) = bad {
            self.state.parameters[index] = parameters;
            return Step::NotFinite { part };
        }
        let rate = counters.rate_scale * schedule.rate(counters.stage_step);
        self.update(&mut parameters, index, counters.stage_step + 1, rate, gradient_norm);
        self.state.parameters[index] = parameters;
        self.version += 1;
        let counters = &mut self.state.counters;
        counters.step += 1;
        counters.stage_step += 1;
        counters.interval.steps += 1;
        counters.interval.sums.add(&sums);
        counters.interval.gradient_norm += gradient_norm;
        Step::Moved { sums, gradient_norm, rate }
    }

    /// Sums the groups' gradients in their order and returns the norm.
    fn sum_gradients(&mut self) -> f64 {
        let groups = &self.groups;
        sum_gradients(groups.len(), |g| &groups[g].gradient, &mut self.gradient, &mut self.squares)
    }

    /// Moves parameters, and their average after them.
    fn update(&mut self, parameters: &mut [T], index: usize, step: u64, rate: f64, norm: f64) {
        let network = self.networks[index].layout().len();
        let factors = self.plan.adam.factors::<T>(step, rate);
        let log_z = AdamW { weight_decay: 0.0, ..self.plan.adam }.factors::<T>(step, rate * self.plan.log_z_rate);
        let go = Move::new(self.plan.clip, self.plan.ema, step, norm);
        let average = &mut self.state.average[index];
        let Moments { first, second } = &mut self.state.moments;
        for (range, factors) in [(0..network, factors), (network..parameters.len(), log_z)] {
            let to = Moved {
                values: &mut parameters[range.clone()],
                gradient: &mut self.gradient[range.clone()],
                first: &mut first[range.clone()],
                second: &mut second[range.clone()],
                average: &mut average[range],
            };
            go.apply(factors, to);
        }
    }

    /// Losses of the averaged weights on the held-out data, always with the same noise; `None` where none are held out.
    pub fn validate(&mut self) -> Option<LossSums> {
        let stage = self.plan.stages.get(self.state.counters.stage)?;
        if self.plan.held_out == 0 {
            return None;
        }
        let index = stage.network;
        let average = std::mem::take(&mut self.state.average[index]);
        self.version += 1;
        let sums = self.losses(Rows::HeldOut, &average, false);
        self.state.average[index] = average;
        self.version += 1;
        Some(sums)
    }

    /// Goes on to the next stage where the present one has had its steps. True where there was a change.
    pub fn advance_stage(&mut self) -> bool {
        let counters = &mut self.state.counters;
        match self.plan.stages.get(counters.stage) {
            Some(stage) if counters.stage_step >= stage.schedule.steps => {
                counters.stage += 1;
                counters.stage_step = 0;
                if let Some(next) = self.plan.stages.get(counters.stage) {
                    self.state.moments = Moments::zeros(self.state.parameters[next.network].len());
                }
                self.begin_stage();
                self.mark_good();
                true
            }
            _ => false,
        }
    }

    /// Sums since the last call, which begin anew.
    pub fn take_interval(&mut self) -> Interval {
        std::mem::take(&mut self.state.counters.interval)
    }

    /// Remembers the present state as one to come back to.
    pub fn mark_good(&mut self) {
        self.good.assign(&self.state);
    }

    /// Comes back to the last good state, with the learning rate times `factor`. Returns its step.
    pub fn restore_good(&mut self, factor: f64) -> u64 {
        let Counters { rate_scale, restores, .. } = self.state.counters;
        let changed = self.good.counters.stage != self.state.counters.stage;
        self.state.assign(&self.good);
        self.state.counters.rate_scale = rate_scale * factor;
        self.state.counters.restores = restores + 1;
        self.version += 1;
        if changed {
            self.begin_stage();
        }
        self.state.counters.step
    }

    /// Everything that a run goes on from; `header` is the caller's, JSON.
    ///
    /// # Errors
    /// Where counters cannot be written as JSON.
    pub fn save(&self, header: serde_json::Value) -> Result<StateFile> {
        let mut arrays = BTreeMap::new();
        for (prefix, state) in [("now", &self.state), ("good", &self.good)] {
            for (name, list) in [("parameters", &state.parameters), ("average", &state.average)] {
                for (k, v) in list.iter().enumerate() {
                    arrays.insert(format!("{prefix}.{name}{k}"), array(v));
                }
            }
            arrays.insert(format!("{prefix}.first"), array(&state.moments.first));
            arrays.insert(format!("{prefix}.second"), array(&state.moments.second));
        }
        let header = serde_json::json!({ "now": self.state.counters, "good": self.good.counters, "run": header });
        Ok(StateFile { header: header.to_string(), arrays })
    }

    /// Goes on from what [`Trainer::save`] returned; returns the caller's header. `file` is for messages.
    ///
    /// # Errors
    /// Where the state is of another plan.
    pub fn restore(&mut self, mut saved: StateFile, file: &Path) -> Result<serde_json::Value> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut header: serde_json::Value = serde_json::from_str(&saved.header).map_err(|e| refuse(e.to_string()))?;
        let mut states = Vec::with_capacity(2);
        for prefix in ["now", "good"] {
            let counters: Counters = serde_json::from_value(header[prefix].take()).map_err(|e| refuse(e.to_string()))?;
            if counters.stage > self.plan.stages.len() {
                return Err(refuse(format!("it is in stage {}, but the recipe has {}", counters.stage + 1, self.plan.stages.len())));
            }
            let mut take = |name: String, len: usize| -> Result<Vec<T>> {
                let array = saved.take(file, &format!("{prefix}.{name}"), T::DTYPE, len)?;
                Ok(T::slice(&array).map(<[T]>::to_vec).unwrap_or_default())
            };
            let mut list = |name: &str| -> Result<Vec<Vec<T>>> {
                self.state.parameters.iter().enumerate().map(|(k, p)| take(format!("{name}{k}"), p.len())).collect()
            };
            let (parameters, average) = (list("parameters")?, list("average")?);
            // After the last stage its moments are still there.
            let stage = self.plan.stages.get(counters.stage).or(self.plan.stages.last());
            let n = stage.map_or(0, |s| parameters[s.network].len());
            let moments = Moments { first: take("first".into(), n)?, second: take("second".into(), n)? };
            states.push(State { counters, parameters, average, moments });
        }
        if let (Some(good), Some(now)) = (states.pop(), states.pop()) {
            (self.good, self.state) = (good, now);
        }
        self.version += 1;
        self.begin_stage();
        Ok(header["run"].take())
    }
}

fn array<T: SimdReal>(values: &[T]) -> Array {
    let mut array = Array::zeros(T::DTYPE, values.len());
    if let Some(slice) = T::slice_mut(&mut array) {
        slice.copy_from_slice(values);
    }
    array
}

/// What would make a trainer panic or wait for ever.
fn check<T: SimdReal>(plan: &Plan, networks: &[Arc<dyn Network<T>>], data: &Data) -> Result<()> {
    let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("training", name, value, remedy));
    if plan.batch == 0 || plan.batch > 1 << 20 {
        return refuse("batch", &plan.batch, "give 1 to 1048576 rows");
    }
    if data.len() <= plan.held_out {
        return refuse("held-out frames", &plan.held_out, &format!("there are only {} frames in all", data.len()));
    }
    if !data.system.is_empty() && data.system.len() != data.len() {
        return refuse("systems", &data.system.len(), "give one for each frame, or none");
    }
    if plan.clip.is_some_and(|c| !c.is_valid()) {
        return refuse("clip", &"not above zero", "give a bound above zero");
    }
    if !(0.0..1.0).contains(&plan.ema.decay) {
        return refuse("ema", &plan.ema.decay, "give a memory from 0 (none) to below 1");
    }
    for stage in &plan.stages {
        let Some(network) = networks.get(stage.network) else {
            return refuse("network", &stage.network, "the model has fewer networks");
        };
        if network.dimension() != data.dimension {
            return refuse(
                "dimension",
                &data.dimension,
                &format!("the network has {} coordinates; select other beads", network.dimension()),
            );
        }
        if plan.rotate && !data.dimension.is_multiple_of(3) {
            return refuse("rotate", &true, "only beads in three dimensions can be turned");
        }
        let o = &stage.objective;
        let TimeRange { start, end } = stage.times;
        if !(start >= o.range.start && start < end && end <= o.range.end) {
            return refuse("times", &format!("{start} to {end}"), &format!("they must rise within {} to {}", o.range.start, o.range.end));
        }
        if !(o.midpoint > o.range.start && o.midpoint < o.range.end) {
            return refuse("midpoint", &o.midpoint, &format!("it must lie within {} to {}", o.range.start, o.range.end));
        }
        if let Some(f) = &o.fokker_planck {
            if !network.has_energy() {
                return refuse("fokker-planck", &f.weight, "this network has no energy, whose consistency could be asked for");
            }
            let positive = [("weight", f.weight >= 0.0), ("sigma", f.sigma > 0.0), ("time-step", f.time_step > 0.0 && f.time_step < 0.25)];
            if let Some((name, _)) = positive.iter().find(|p| !p.1) {
                return refuse(name, &format!("{f:?}"), "give a number above zero (time-step: below 0.25)");
            }
            if !(f.fraction > 0.0 && f.fraction <= 1.0) {
                return refuse("fraction", &f.fraction, "give a part of the batch above 0, up to 1");
            }
        }
        if o.forces.is_some() && data.scores.is_none() {
            return refuse("force-weight", &"given", "the data have no forces; add `forces` to [data]");
        }
        let rate = stage.schedule;
        if !(rate.peak > 0.0 && rate.floor >= 0.0 && rate.peak.is_finite() && rate.floor <= rate.peak) {
            return refuse("learning rate", &format!("{} to {}", rate.peak, rate.floor), "let it fall, from above zero");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
