//! Training of potentials on energies and forces.
//!
//! The loss of a batch of structures is `w_E ⟨(E − E*)²⟩ + w_F ⟨|F − F*|²/3N⟩` with `F = −∂E/∂x`, in the network's unit of energy and Å; its
//! gradient is exact (`Work::backward_tangent`). Order and sums are counted as for pseudo-force fields: parameters do not depend, in any
//! bit, on the number of threads or on where a run was stopped and resumed.

use super::config::{Head, Layout, PainnConfig, TYPES};
use super::network::{Parameters, Seed, Work};
use super::tangent_kernels::PairTangents;
use super::trainer::{Progress, Rate};
use crate::error::{Error, Result};
use crate::train::adamw::Root;
use crate::train::{AdamW, CHUNK, Clip, Ema, Moments, Move, Moved, Permutation, StateFile, sum_gradients};
use rayon::prelude::*;
use scorefield_integrators::Noise;
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Most groups of structures with a gradient of their own, and fewest structures of a group: batches are small.
const GROUPS: usize = 12;
const STRUCTURES_PER_GROUP: usize = 4;
/// Atoms that are worked on together: what a layer keeps, twice over, should stay in the second-level cache.
const ATOMS_PER_BLOCK: usize = 48;

/// Structures with energies and forces in the network's unit and Å.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Structures {
    /// Atomic numbers of all structures.
    pub types: Vec<u32>,
    /// Positions `[A, 3]` in Å.
    pub positions: Vec<f64>,
    /// Forces `[A, 3]`.
    pub forces: Vec<f64>,
    /// Energies, less what atoms have by themselves.
    pub energies: Vec<f64>,
    /// First atom of each structure, and the end.
    pub offsets: Vec<usize>,
    /// Which of them are trained on.
    pub training: Vec<u32>,
    /// Which are looked at.
    pub validation: Vec<u32>,
    /// Which are looked at in the end only.
    pub test: Vec<u32>,
}

impl Structures {
    fn atoms(&self, i: u32) -> std::ops::Range<usize> {
        self.offsets[i as usize]..self.offsets[i as usize + 1]
    }
}

/// How a potential is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The network, with an energy.
    pub config: PainnConfig,
    /// w_E.
    pub energy_weight: f64,
    /// w_F.
    pub force_weight: f64,
    /// Structures of a batch.
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

/// Sums over structures, in the network's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Structures.
    pub structures: u64,
    /// Components of forces.
    pub components: u64,
    /// Losses of structures.
    pub loss: f64,
    /// |E − E*| and its square.
    pub energy: [f64; 2],
    /// |F − F*| by component and its square.
    pub force: [f64; 2],
}

impl Sums {
    fn add(&mut self, o: &Sums) {
        self.structures += o.structures;
        self.components += o.components;
        self.loss += o.loss;
        for k in 0..2 {
            self.energy[k] += o.energy[k];
            self.force[k] += o.force[k];
        }
    }

    /// Mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.structures.max(1) as f64
    }

    /// Mean absolute and root mean square error of energies, then of components of forces.
    pub fn errors(&self) -> [[f64; 2]; 2] {
        let (n, m) = (self.structures.max(1) as f64, self.components.max(1) as f64);
        [[self.energy[0] / n, (self.energy[1] / n).sqrt()], [self.force[0] / m, (self.force[1] / m).sqrt()]]
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
    tangents: PairTangents<T>,
    /// Gradients of energies with respect to positions, then the direction of the tangent.
    slopes: Vec<T>,
    /// Atoms of a structure and ∂L/∂E.
    energies: Vec<(usize, T)>,
}

/// Trains a potential. Work is shared out over the threads of the pool that it is called from.
pub struct Trainer<T: SimdReal> {
    plan: Plan,
    data: Arc<Structures>,
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
    pub fn new(plan: Plan, data: Arc<Structures>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let values: Vec<T> = layout.initialise(Noise::new(plan.seed)).into_iter().map(T::from_f64).collect();
        let n = values.len();
        let group = || Group {
            gradient: vec![T::default(); n],
            sums: Sums::default(),
            tangents: PairTangents::default(),
            slopes: Vec::new(),
            energies: Vec::new(),
        };
        Ok(Trainer {
            data,
            counters: Counters { step: 0, skipped: 0, progress: Progress::default(), interval: Sums::default(), gradient_norm: 0.0 },
            average: values.clone(),
            moments: Moments::zeros(n),
            parameters: Parameters::new(&plan.config, layout),
            work: (0..rayon::current_num_threads()).map(|_| Mutex::new(Work::new(true, true))).collect(),
            groups: (0..plan.batch.div_ceil(STRUCTURES_PER_GROUP).min(GROUPS)).map(|_| group()).collect(),
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
        self.plan.rate.has_stopped(&self.counters.progress) || self.counters.step >= self.plan.rate.steps()
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
        let (step, batch, count) = (self.counters.step, self.plan.batch, self.data.training.len());
        let noise = Noise::new(self.plan.seed);
        let data = self.data.clone();
        let structure = |i: usize| {
            let place = step as usize * batch + i;
            data.training[Permutation::new(noise, (place / count) as u64, count).at(place % count)]
        };
        let sums = self.evaluate(batch, true, structure);
        let rate = self.rate();
        let groups = &self.groups;
        let norm = sum_gradients(groups.len(), |g| &groups[g].gradient, &mut self.gradient, &mut self.squares);
        self.counters.step += 1;
        if !(sums.loss.is_finite() && norm.is_finite()) {
            self.counters.skipped += 1;
            return false;
        }
        let moved = self.counters.step - self.counters.skipped;
        let Moments { first, second } = &mut self.moments;
        let (values, gradient, average) = (&mut self.values[..], &mut self.gradient[..], &mut self.average[..]);
        let to = Moved { values, gradient, first, second, average };
        Move::new(self.plan.clip, self.plan.ema, moved, norm).apply(self.plan.adam.factors(moved, rate), to);
        self.counters.interval.add(&sums);
        self.counters.gradient_norm += norm;
        true
    }

    /// Errors of the averaged weights on the structures that are held out.
    pub fn validate(&mut self) -> Sums {
        let data = self.data.clone();
        self.measure(&data.validation)
    }

    /// The same on the structures for the end.
    pub fn test(&mut self) -> Sums {
        let data = self.data.clone();
        self.measure(&data.test)
    }

    fn measure(&mut self, which: &[u32]) -> Sums {
        self.parameters.load(&self.average);
        self.evaluate(which.len(), false, |i| which[i])
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

    /// Errors of `rows` structures, and with `back` the loss's gradient in the groups.
    fn evaluate(&mut self, rows: usize, back: bool, structure: impl Fn(usize) -> u32 + Sync) -> Sums {
        let (plan, data, parameters, work) = (&self.plan, &*self.data, &self.parameters, &self.work);
        let count = self.groups.len();
        self.groups.par_iter_mut().enumerate().for_each(|(g, group)| {
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
                while end < all.end && (atoms == 0 || atoms + data.atoms(structure(end)).len() <= ATOMS_PER_BLOCK) {
                    atoms += data.atoms(structure(end)).len();
                    end += 1;
                }
                let block = Block { plan, data, parameters, scale: 1.0 / rows as f64, back };
                block.run(first..end, atoms, &structure, &mut work, group);
                first = end;
            }
        });
        let mut sums = Sums::default();
        self.groups.iter().for_each(|g| sums.add(&g.sums));
        sums
    }
}

/// Structures that are worked on together.
struct Block<'a, T> {
    plan: &'a Plan,
    data: &'a Structures,
    parameters: &'a Parameters<T>,
    /// One over the number of structures of the batch.
    scale: f64,
    back: bool,
}

impl<T: SimdReal> Block<'_, T> {
    fn run(&self, rows: std::ops::Range<usize>, atoms: usize, structure: &impl Fn(usize) -> u32, work: &mut Work<T>, group: &mut Group<T>) {
        let (config, data) = (&self.plan.config, self.data);
        work.reserve(config, 2 * atoms, atoms * atoms / 2);
        work.clear();
        for i in rows.clone() {
            let of = data.atoms(structure(i));
            work.add(config, &data.types[of.clone()], &data.positions[3 * of.start..3 * of.end], 0.0);
        }
        work.forward(self.parameters);
        group.slopes.clear();
        group.slopes.resize(3 * atoms, T::default());
        work.backward(self.parameters, Seed::Energy, None, Some(&mut group.slopes));
        group.energies.clear();
        let mut first = 0;
        for i in rows {
            let s = structure(i);
            let of = data.atoms(s);
            let n = of.len();
            let energy: f64 = (first..first + n).map(|a| work.energy(a).to_f64()).sum();
            let miss = energy - data.energies[s as usize];
            let factor = 2.0 * self.plan.force_weight * self.scale / (3 * n) as f64;
            let (mut size, mut square) = (0.0, 0.0);
            for (slope, &label) in group.slopes[3 * first..3 * (first + n)].iter_mut().zip(&data.forces[3 * of.start..3 * of.end]) {
                let error = -slope.to_f64() - label;
                size += error.abs();
                square += error * error;
                *slope = T::from_f64(-factor * error);
            }
            group.energies.push((n, T::from_f64(2.0 * self.plan.energy_weight * self.scale * miss)));
            let sums = &mut group.sums;
            sums.structures += 1;
            sums.components += 3 * n as u64;
            sums.loss += self.plan.energy_weight * miss * miss + self.plan.force_weight * square / (3 * n) as f64;
            sums.energy = [sums.energy[0] + miss.abs(), sums.energy[1] + miss * miss];
            sums.force = [sums.force[0] + size, sums.force[1] + square];
            first += n;
        }
        if self.back {
            let energies = group.energies.iter().copied();
            work.backward_tangent(self.parameters, &mut group.tangents, &group.slopes, energies, &mut group.gradient);
        }
    }
}

/// What would make a trainer panic or wait for ever.
fn check(plan: &Plan, data: &Structures) -> Result<()> {
    let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("training", name, value, remedy));
    plan.config.check()?;
    if plan.config.head != Head::Energy {
        return refuse("head", &"direct", "energies need head = \"energy\"");
    }
    for (name, weight) in [("energy-weight", plan.energy_weight), ("force-weight", plan.force_weight)] {
        if !(weight >= 0.0 && weight.is_finite()) {
            return refuse(name, &weight, "give a number from 0 on");
        }
    }
    if plan.energy_weight + plan.force_weight == 0.0 {
        return refuse("force-weight", &0, "with both weights zero there is nothing to learn");
    }
    if plan.batch == 0 || plan.batch > 1 << 20 {
        return refuse("batch", &plan.batch, "give 1 to 1048576 structures");
    }
    if plan.clip.is_some_and(|c| !c.is_valid()) {
        return refuse("clip", &"not above zero", "give a bound above zero");
    }
    if !(0.0..1.0).contains(&plan.ema.decay) {
        return refuse("ema", &plan.ema.decay, "give a memory from 0 (none) to below 1");
    }
    let structures = data.offsets.len().saturating_sub(1);
    let mut all = data.training.iter().chain(&data.validation).chain(&data.test);
    if data.training.is_empty() || all.any(|&i| i as usize >= structures) {
        return refuse("structures", &structures, "there is nothing to train on");
    }
    let atoms = data.types.len();
    if data.offsets.windows(2).any(|w| w[0] >= w[1])
        || data.offsets[structures] != atoms
        || data.energies.len() != structures
        || data.positions.len() != 3 * atoms
        || data.forces.len() != 3 * atoms
    {
        return refuse("structures", &structures, "every one needs atoms and an energy, and every atom a place and a force");
    }
    if let Some(z) = data.types.iter().find(|&&z| z as usize >= TYPES) {
        return refuse("element", z, "atomic numbers below 100 are known");
    }
    Ok(())
}
