//! One molecule on its way from noise to a structure: a state machine that takes in forces and moves, one evaluation at a
//! time.

use super::shape::enforce_shape;
use super::spec::{ChurnSettings, Method, Settings};
use crate::array::{Array, View};
use crate::error::{Error, Result};
use crate::noise::{Noise, Purpose};
use crate::propagator::Progress;
use crate::system::System;
use std::sync::Arc;

/// One molecule. Arrays are `[n, 3]` over the `n` atoms that move, in nm.
pub(crate) struct Walk {
    settings: Arc<Settings>,
    noise: Noise,
    id: u32,
    /// Atoms that move, and how many there are in all.
    free: Vec<u32>,
    atoms: usize,
    /// Degrees of freedom of the noise level.
    freedom: f64,
    /// Principal variances (nm²) to aim at.
    target: Option<[f64; 3]>,
    x: Vec<f64>,
    /// `F/k`, the way to the denoised structure.
    way: Vec<f64>,
    z: Vec<f64>,
    /// Start of a Heun step.
    before: Vec<f64>,
    way_before: Vec<f64>,
    stage: Stage,
    /// Steps left of the schedule.
    left: u32,
    /// Noise level of the step's start, and after churn.
    level: f64,
    churned: f64,
    /// Adaptive: step in `σ^(1/ρ)` and level seen one step before.
    delta: f64,
    seen: Option<f64>,
    /// The last forces were not finite: the molecule is spread out instead of moved along them.
    heap: bool,
    heaps: u32,
    evaluations: u64,
    sigma_start: f64,
    sigma_end: f64,
    progress: Progress,
}

/// How often a molecule is spread out before it is given up.
const MOST_HEAPS: u32 = 3;

/// What the next forces are for.
#[derive(Clone, Copy)]
enum Stage {
    /// A step of the schedule begins.
    Begin,
    /// The corrector of Heun's method from one level to the next.
    Correct { from: f64, to: f64 },
}

/// Degrees of freedom of noise on `free` atoms beside `frozen` ones that the forces of a model can show: no rigid motion,
/// but with `rotations` rotations.
fn freedom(free: usize, frozen: usize, rotations: bool) -> f64 {
    let rigid = match (frozen, rotations) {
        (0, true) => 3,
        (0, false) => {
            if free == 2 {
                5
            } else {
                6
            }
        }
        (_, true) => 0,
        (1, false) => {
            if free == 1 {
                2
            } else {
                3
            }
        }
        (2, false) => 1,
        _ => 0,
    };
    (3 * free).saturating_sub(rigid).max(1) as f64
}

fn square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// See [`Denoiser::noise_level`](super::Denoiser::noise_level).
pub(super) fn noise_level(settings: &Settings, system: &System, forces: View<'_>) -> f64 {
    let free: Vec<usize> = (0..system.len()).filter(|&i| system.masses[i] > 0.0).collect();
    let f: Vec<f64> = free.iter().flat_map(|&i| (0..3).map(move |a| forces.get(3 * i + a))).collect();
    (square(&f) / freedom(free.len(), system.len() - free.len(), settings.rotations)).sqrt() / settings.stiffness
}

impl Walk {
    /// A walk of molecule `id` that begins at `positions` (`[N, 3]`), which are given the target shape where there is one.
    ///
    /// # Errors
    /// Where nothing can move, or the system does not live in three dimensions.
    pub(super) fn new(
        settings: Arc<Settings>,
        noise: Noise,
        id: u32,
        system: &System,
        target: Option<[f64; 3]>,
        positions: &mut [f64],
    ) -> Result<Self> {
        let refuse = |what: &str| Err(Error::Invalid(format!("{}: {what}", system.name)));
        let free: Vec<u32> = (0..system.len() as u32).filter(|&i| system.masses[i as usize] > 0.0).collect();
        if free.is_empty() {
            return refuse("all its atoms are frozen; leave some that can move");
        }
        if system.axes != [true; 3] || !system.constraints.is_empty() {
            return refuse("only molecules in three dimensions and without rigid bonds are denoised");
        }
        let frozen = system.len() - free.len();
        let n3 = 3 * free.len();
        let steps = settings.schedule.steps();
        let mut walk = Walk {
            noise,
            id,
            atoms: system.len(),
            freedom: freedom(free.len(), frozen, settings.rotations),
            target,
            x: vec![0.0; n3],
            way: vec![0.0; n3],
            z: vec![0.0; n3],
            before: vec![0.0; n3],
            way_before: vec![0.0; n3],
            stage: Stage::Begin,
            left: steps,
            level: settings.schedule.at(steps),
            churned: settings.schedule.at(steps),
            delta: settings.adaptive.as_ref().map_or(0.0, |a| a.delta),
            seen: None,
            heap: false,
            heaps: 0,
            evaluations: 0,
            sigma_start: f64::NAN,
            sigma_end: f64::NAN,
            progress: Progress::Running,
            free,
            settings,
        };
        walk.copy(|k| positions[k]);
        walk.before_force();
        for (row, &i) in walk.x.chunks_exact(3).zip(&walk.free) {
            positions[3 * i as usize..3 * i as usize + 3].copy_from_slice(row);
        }
        Ok(walk)
    }

    fn copy(&mut self, from: impl Fn(usize) -> f64) {
        for (row, &i) in self.x.chunks_exact_mut(3).zip(&self.free) {
            for a in 0..3 {
                row[a] = from(3 * i as usize + a);
            }
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// `σ̂` (nm) at the first and at the last evaluation.
    pub(super) fn noise_levels(&self) -> (f64, f64) {
        (self.sigma_start, self.sigma_end)
    }

    pub(super) fn has_frozen(&self) -> bool {
        self.free.len() < self.atoms
    }

    /// Noise level (nm) of the present positions by the sampler's own account.
    pub(super) fn level(&self) -> Option<f64> {
        match (&self.settings.method, self.stage) {
            (Method::Direct { .. } | Method::Stochastic { .. }, _) => None,
            (Method::Langevin { sigma, .. }, _) => Some(*sigma),
            (_, Stage::Begin) => Some(self.churned),
            (_, Stage::Correct { to, .. }) => Some(to),
        }
    }

    /// Takes in the forces `[N, 3]` at the present positions. `Err` is the first atom with a force that is not finite.
    pub(super) fn observe(&mut self, forces: View<'_>) -> std::result::Result<(), usize> {
        self.heap = false;
        if let Some(k) = (0..forces.len()).find(|&k| !forces.get(k).is_finite()) {
            if self.settings.reach.is_some() && !self.has_frozen() && self.heaps < MOST_HEAPS {
                self.heap = true;
                self.heaps += 1;
                return Ok(());
            }
            self.progress = Progress::Stalled;
            return Err(k / 3);
        }
        let softness = 1.0 / self.settings.stiffness;
        for (row, &i) in self.way.chunks_exact_mut(3).zip(&self.free) {
            for a in 0..3 {
                row[a] = softness * forces.get(3 * i as usize + a);
            }
        }
        if !self.has_frozen() {
            remove_mean(&mut self.way);
        } else if self.settings.compensate_drift {
            // All atoms less those that move; the frozen ones' common wish is a motion of the whole.
            let mut wish = [0.0; 3];
            for a in 0..3 {
                let all: f64 = (0..self.atoms).map(|i| softness * forces.get(3 * i + a)).sum();
                let free: f64 = self.way.iter().skip(a).step_by(3).sum();
                wish[a] = (all - free) / (self.atoms - self.free.len()) as f64;
            }
            self.way.chunks_exact_mut(3).for_each(|row| (0..3).for_each(|a| row[a] -= wish[a]));
        }
        self.sigma_end = (square(&self.way) / self.freedom).sqrt();
        if self.evaluations == 0 {
            self.sigma_start = self.sigma_end;
        }
        Ok(())
    }

    /// Moves the molecule, whose `[N, 3]` begins at `first` of `positions`, along the forces last observed.
    pub(super) fn advance(&mut self, positions: &mut Array, first: usize) {
        self.copy(|k| positions.get(first + k));
        self.evaluations += 1;
        let settings = self.settings.clone();
        if self.heap {
            self.spread();
            self.stage = Stage::Begin;
            self.go_on();
            return self.write(positions, first);
        }
        self.shorten();
        match &settings.method {
            Method::Direct { threshold, max_evaluations } => self.direct(*threshold, *max_evaluations),
            Method::Stochastic { eta } => {
                self.update(0.0, eta * f64::from(self.left - 1) / f64::from(settings.schedule.steps()));
                self.finish_step(self.level);
            }
            Method::Langevin { sigma, tau } => {
                let a = (-tau).exp();
                self.update(a, sigma * (-(-2.0 * tau).exp_m1()).sqrt());
                self.finish_step(self.level);
            }
            Method::Ancestral => {
                let (from, to) = self.choose_levels();
                let r = (to / from).min(1.0);
                self.update(r * r, to * (1.0 - r * r).sqrt());
                self.finish_step(to);
            }
            Method::Heun { .. } => self.heun(),
        }
        self.write(positions, first);
    }

    fn write(&mut self, positions: &mut Array, first: usize) {
        if self.x.iter().any(|x| !x.is_finite()) {
            // The positions written last are finite; the result says that it is not done.
            self.progress = Progress::Stalled;
            return;
        }
        for (row, &i) in self.x.chunks_exact(3).zip(&self.free) {
            for a in 0..3 {
                positions.set(first + 3 * i as usize + a, row[a]);
            }
        }
    }

    /// No atom of a connected molecule is further from its centre than the molecule is long. A network that is far from its
    /// training data, as in a heap of atoms on one another, can point beyond; the way is then taken as far as is possible.
    fn shorten(&mut self) {
        let Some(reach) = self.settings.reach.map(|r| r * self.atoms as f64) else { return };
        let n = self.free.len() as f64;
        let centre: [f64; 3] = std::array::from_fn(|a| self.x.iter().skip(a).step_by(3).sum::<f64>() / n);
        let mut share = 1.0f64;
        for (x, way) in self.x.chunks_exact(3).zip(self.way.chunks_exact(3)) {
            let out = (0..3).map(|a| (x[a] - centre[a]).powi(2)).sum::<f64>().sqrt();
            share = share.min((out + reach) / square(way).sqrt());
        }
        if share < 1.0 {
            self.way.iter_mut().for_each(|w| *w *= share);
        }
    }

    /// Scales a heap of atoms on one another, whose forces are beyond all numbers, to the size where the molecule just fits.
    fn spread(&mut self) {
        let Some(reach) = self.settings.reach.map(|r| r * self.atoms as f64) else { return };
        let n = self.free.len() as f64;
        let centre: [f64; 3] = std::array::from_fn(|a| self.x.iter().skip(a).step_by(3).sum::<f64>() / n);
        let out = |row: &[f64]| (0..3).map(|a| (row[a] - centre[a]).powi(2)).sum::<f64>().sqrt();
        let radius = self.x.chunks_exact(3).map(out).fold(0.0, f64::max);
        for (k, x) in self.x.iter_mut().enumerate() {
            *x = centre[k % 3] + (*x - centre[k % 3]) * reach / radius;
        }
    }

    /// `x ← x + (1 − a) F/k + b z`.
    fn update(&mut self, a: f64, b: f64) {
        for (x, way) in self.x.iter_mut().zip(&self.way) {
            *x += (1.0 - a) * way;
        }
        if b > 0.0 {
            self.add_noise(b, Purpose::Denoising);
        }
    }

    /// Adds `b z`, without net displacement where no atom is frozen.
    fn add_noise(&mut self, b: f64, purpose: Purpose) {
        for (row, &i) in self.z.chunks_exact_mut(3).zip(&self.free) {
            row.copy_from_slice(&self.noise.normals(i, self.id, self.evaluations, purpose));
        }
        if !self.has_frozen() {
            remove_mean(&mut self.z);
        }
        for (x, z) in self.x.iter_mut().zip(&self.z) {
            *x += b * z;
        }
    }

    /// The last update is kept, since the structure it leads to is better than the one it was found at.
    fn direct(&mut self, threshold: f64, max_evaluations: u32) {
        let longest = self.way.chunks_exact(3).map(square).fold(0.0, f64::max).sqrt();
        self.update(0.0, 0.0);
        self.left = self.left.saturating_sub(1);
        // A shape that is still enforced would move the molecule again.
        let own = self.target.is_none() || self.left == 0;
        if longest < threshold && own {
            self.progress = Progress::Converged;
        } else if self.evaluations >= u64::from(max_evaluations) {
            self.progress = Progress::Stalled;
        } else {
            self.before_force();
        }
    }

    fn heun(&mut self) {
        match self.stage {
            Stage::Begin => {
                let (from, to) = self.choose_levels();
                let r = (to / from).min(1.0);
                if to > 0.0 {
                    self.before.copy_from_slice(&self.x);
                    self.way_before.copy_from_slice(&self.way);
                    self.stage = Stage::Correct { from, to };
                    self.update(r, 0.0);
                } else {
                    self.update(r, 0.0);
                    self.finish_step(to);
                }
            }
            Stage::Correct { from, to } => {
                for k in 0..self.x.len() {
                    let slope = -0.5 * (self.way_before[k] / from + self.way[k] / to);
                    self.x[k] = self.before[k] + (to - from) * slope;
                }
                self.stage = Stage::Begin;
                self.finish_step(to);
            }
        }
    }

    /// Level of the present positions and the next one: by the schedule, or by the forces with the schedule as a bound.
    fn choose_levels(&mut self) -> (f64, f64) {
        let schedule = self.settings.schedule;
        let bound = schedule.at(self.left - 1);
        let Some(adaptive) = &self.settings.adaptive else { return (self.churned, bound) };
        let (lowest, highest) = (schedule.at(1), 2.0 * schedule.at(schedule.steps()));
        let rise = self.churned / self.level;
        let seen = (self.sigma_end * (1.0 - adaptive.correction * (1.0 - 1.0 / (rise * rise))).sqrt()).clamp(lowest, highest);
        if let Some(before) = self.seen {
            let observed = schedule.inverse(before) - schedule.inverse(seen);
            if observed > 0.0 {
                self.delta = observed;
            }
        }
        self.seen = Some(seen);
        (self.sigma_end.max(1e-4 * lowest), schedule.below(seen, self.delta).min(bound))
    }

    /// Ends a step at `level`.
    fn finish_step(&mut self, level: f64) {
        self.level = level;
        self.left -= 1;
        if self.left == 0 || level == 0.0 {
            self.progress = Progress::Converged;
        } else {
            self.before_force();
        }
    }

    /// Goes on after a molecule was spread out, which is one step; there must be another.
    fn go_on(&mut self) {
        let steps_left = match self.settings.method {
            Method::Direct { max_evaluations, .. } => self.evaluations < u64::from(max_evaluations),
            _ => self.left > 1,
        };
        self.left = self.left.saturating_sub(1);
        if steps_left {
            self.before_force();
        } else {
            self.progress = Progress::Stalled;
        }
    }

    /// What is done to a structure before the forces of a new step are evaluated.
    fn before_force(&mut self) {
        if let Some(target) = self.target
            && self.left > 0
        {
            let share = f64::from(self.left) / f64::from(self.settings.schedule.steps());
            enforce_shape(&mut self.x, target, share.powf(self.settings.strictness));
        }
        self.churned = self.level;
        let settings = self.settings.clone();
        if let Method::Heun { churn: Some(ChurnSettings { rise, low, high, noise }) } = &settings.method
            && (*low..=*high).contains(&self.level)
        {
            self.churned = self.level * (1.0 + rise);
            self.add_noise((self.churned.powi(2) - self.level.powi(2)).sqrt() * noise, Purpose::Churn);
        }
    }

    /// Overwrites the coordinates of `to` (`[N, 3]`) that move with those of `from`.
    pub(super) fn copy_moving(&self, from: View<'_>, to: &mut [f64]) {
        for k in self.free.iter().flat_map(|&i| (0..3).map(move |a| 3 * i as usize + a)) {
            to[k] = from.get(k);
        }
    }
}

/// Takes the mean off the rows of `x` (`[n, 3]`).
fn remove_mean(x: &mut [f64]) {
    let n = (x.len() / 3).max(1) as f64;
    for a in 0..3 {
        let mean = x.iter().skip(a).step_by(3).sum::<f64>() / n;
        x.iter_mut().skip(a).step_by(3).for_each(|x| *x -= mean);
    }
}
