//! Independent samples: from noise at t = 1 to data at t = 0.
//!
//! Reverse diffusion `dx = (f − g² s) dt + g dW̄` and its deterministic twin, the probability-flow equation
//! `dx = (f − ½ g² s) dt`, both run backwards in time (Song et al., arXiv 2011.13456).

use super::mixture::{Mixture, MixtureWorker};
use super::model::Model;
use super::network::{MODEL, Rows};
use super::process::VariancePreserving;
use crate::error::{Error, Result};
use scorefield_integrators::noise::{Noise, Purpose};
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};

/// How time is stepped through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Euler–Maruyama on the reverse diffusion, as published.
    #[default]
    Em,
    /// The reverse diffusion with a Langevin correction after every step (predictor–corrector).
    Pc,
    /// Euler on the probability-flow equation.
    Ode,
    /// Heun on the probability-flow equation: two scores a step.
    Heun,
}

/// How samples are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The method.
    pub method: Method,
    /// Times from 1 to 0, both included.
    pub times: usize,
    /// Leave out the noise of the last step, and return the mean of the clean data instead (Tweedie's formula). The published
    /// sampler does not.
    pub denoise: bool,
    /// Size of the corrector's step relative to the noise: its signal-to-noise ratio (0.16 in Song et al.).
    pub correction: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { method: Method::Em, times: 1000, denoise: false, correction: 0.1 }
    }
}

impl Settings {
    /// Scores per sample.
    pub fn evaluations(&self) -> usize {
        let per_time = if matches!(self.method, Method::Pc | Method::Heun) { 2 } else { 1 };
        per_time * self.times + usize::from(self.denoise)
    }

    /// # Errors
    /// Where a number makes no sense.
    pub fn check(&self) -> Result<()> {
        if !(2..=1_000_000).contains(&self.times) {
            return Err(Error::parameter(MODEL, "steps", self.times, "give 2 to 1000000 times"));
        }
        if !(self.correction > 0.0 && self.correction < 1.0) {
            return Err(Error::parameter(MODEL, "correction", self.correction, "give a ratio between 0 and 1"));
        }
        Ok(())
    }
}

/// Draws samples in one thread.
pub struct Sampler<T: SimdReal> {
    worker: MixtureWorker<T>,
    process: VariancePreserving,
    settings: Settings,
    dimension: usize,
    t: Vec<T>,
    score: Vec<T>,
    next: Vec<T>,
    second: Vec<T>,
}

impl<T: SimdReal> Sampler<T> {
    /// A sampler of `model`.
    ///
    /// # Errors
    /// Where the model cannot be evaluated, or settings make no sense.
    pub fn new(model: &Model, settings: Settings) -> Result<Self> {
        settings.check()?;
        let mut worker = Mixture::<T>::new(&model.config, &[])?.worker();
        for (k, parameters) in model.parameters.iter().enumerate() {
            let parameters: Vec<T> = parameters.iter().map(|&p| T::from_f64(p.into())).collect();
            worker.load(k, &parameters);
        }
        Ok(Self::of(worker, model.process, model.dimension(), settings))
    }

    pub(super) fn of(worker: MixtureWorker<T>, process: VariancePreserving, dimension: usize, settings: Settings) -> Self {
        let empty = Vec::new;
        Sampler { worker, process, settings, dimension, t: empty(), score: empty(), next: empty(), second: empty() }
    }

    /// Fills `x` (`[M, D]`) with samples number `first` and following, in model coordinates. A sample depends on the seed and
    /// its number alone, bit for bit.
    ///
    /// # Errors
    /// Where the network fails.
    pub fn draw(&mut self, noise: Noise, first: u32, x: &mut [T]) -> Result<()> {
        let rows = x.len() / self.dimension;
        self.t.resize(rows, T::default());
        for buffer in [&mut self.score, &mut self.next, &mut self.second] {
            buffer.resize(x.len(), T::default());
        }
        each_normal(noise, first, self.dimension, 0, Purpose::Prior, x, |x, z| *x = T::from_f64(z));
        let times = self.settings.times;
        let dt = 1.0 / (times - 1) as f64;
        for k in 0..times {
            let t = 1.0 - k as f64 * dt;
            let last = k + 1 == times;
            match self.settings.method {
                Method::Em | Method::Pc => {
                    self.reverse_step(noise, first, k as u64, t, dt, !(last && self.settings.denoise), x)?;
                    if self.settings.method == Method::Pc && !last {
                        self.correct(noise, first, (times + k) as u64, t - dt, x)?;
                    }
                }
                // The last time has no step after it.
                Method::Ode | Method::Heun if last => {}
                Method::Ode => {
                    self.slope(t, x)?;
                    for (x, s) in x.iter_mut().zip(&self.score) {
                        *x = T::from_f64(x.to_f64() - dt * s.to_f64());
                    }
                }
                Method::Heun => self.heun_step(t, dt, x)?,
            }
        }
        if self.settings.denoise {
            self.evaluate(0.0, x)?;
            // x₀ = (x + σ² s)/m at the smallest time of the network, where both still are something.
            let t = super::model::EVALUATION_TIME;
            let (mean, variance) = (self.process.mean(t), self.process.sigma(t).powi(2));
            for (x, s) in x.iter_mut().zip(&self.score) {
                *x = T::from_f64((x.to_f64() + variance * s.to_f64()) / mean);
            }
        }
        Ok(())
    }

    /// Scores of `x` at `t`.
    fn evaluate(&mut self, t: f64, x: &[T]) -> Result<()> {
        self.t.fill(T::from_f64(t));
        self.worker.evaluate(Rows { x, t: &self.t, system: &[] }, None, Some(&mut self.score))
    }

    /// `x += ((½ β x) + β s) dt + √(β dt) z`.
    fn reverse_step(&mut self, noise: Noise, first: u32, step: u64, t: f64, dt: f64, noisy: bool, x: &mut [T]) -> Result<()> {
        self.evaluate(t, x)?;
        let beta = self.process.beta(t);
        for (x, s) in x.iter_mut().zip(&self.score) {
            *x = T::from_f64(x.to_f64() + dt * beta * (0.5 * x.to_f64() + s.to_f64()));
        }
        if noisy {
            let size = (beta * dt).sqrt();
            each_normal(noise, first, self.dimension, step, Purpose::Diffusion, x, |x, z| *x = T::from_f64(x.to_f64() + size * z));
        }
        Ok(())
    }

    /// One step of overdamped Langevin dynamics at fixed t, `x += ε s + √(2ε) z` with `ε = (r σ)²`: it leaves `q_t` as it is and
    /// repairs what the predictor got wrong.
    fn correct(&mut self, noise: Noise, first: u32, step: u64, t: f64, x: &mut [T]) -> Result<()> {
        self.evaluate(t, x)?;
        let epsilon = (self.settings.correction * self.process.sigma(t)).powi(2);
        let size = (2.0 * epsilon).sqrt();
        for (x, s) in x.iter_mut().zip(&self.score) {
            *x = T::from_f64(x.to_f64() + epsilon * s.to_f64());
        }
        each_normal(noise, first, self.dimension, step, Purpose::Diffusion, x, |x, z| *x = T::from_f64(x.to_f64() + size * z));
        Ok(())
    }

    /// `dx/dt = −½ β (x + s)` of the probability flow, in place of the scores.
    fn slope(&mut self, t: f64, x: &[T]) -> Result<()> {
        self.evaluate(t, x)?;
        let half = 0.5 * self.process.beta(t);
        for (s, x) in self.score.iter_mut().zip(x) {
            *s = T::from_f64(-half * (x.to_f64() + s.to_f64()));
        }
        Ok(())
    }

    fn heun_step(&mut self, t: f64, dt: f64, x: &mut [T]) -> Result<()> {
        self.slope(t, x)?;
        self.second.copy_from_slice(&self.score);
        for ((next, x), s) in self.next.iter_mut().zip(x.iter()).zip(&self.second) {
            *next = T::from_f64(x.to_f64() - dt * s.to_f64());
        }
        let next = std::mem::take(&mut self.next);
        let done = self.slope(t - dt, &next);
        self.next = next;
        done?;
        for ((x, a), b) in x.iter_mut().zip(&self.second).zip(&self.score) {
            *x = T::from_f64(x.to_f64() - 0.5 * dt * (a.to_f64() + b.to_f64()));
        }
        Ok(())
    }
}

/// Hands every coordinate of rows `first` and following a standard normal number of its own.
fn each_normal<T>(noise: Noise, first: u32, dimension: usize, step: u64, purpose: Purpose, x: &mut [T], mut put: impl FnMut(&mut T, f64)) {
    for (row, x) in x.chunks_exact_mut(dimension).enumerate() {
        for (atom, x) in x.chunks_mut(3).enumerate() {
            let z = noise.normals(atom as u32, first + row as u32, step, purpose);
            for (x, z) in x.iter_mut().zip(z) {
                put(x, z);
            }
        }
    }
}
