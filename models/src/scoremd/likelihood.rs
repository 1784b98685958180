//! Likelihoods of configurations: the probability flow from data at t = 0 to noise at t = 1, with the divergence along it.
//!
//! `dx/dt = v = −½ β (x + s)`, and along it `d log q/dt = −div v` (Song et al., arXiv 2011.13456, section 4.3), so that
//! `log q₀(x₀) = log N(x₁; 0, I) + ∫ div v dt`. The divergence is exact up to rounding: central differences along every
//! coordinate in double precision.

use super::mixture::{Mixture, MixtureWorker};
use super::model::Model;
use super::network::Rows;
use super::process::VariancePreserving;
use crate::error::{Error, Result};

/// Displacement of the central differences in model coordinates. Their error is of the second order in it, and what rounding
/// adds of the inverse first.
const STEP: f64 = 1e-4;

/// Likelihoods under one model, in one thread.
pub struct Likelihood {
    worker: MixtureWorker<f64>,
    process: VariancePreserving,
    dimension: usize,
    /// Times from 0 to 1.
    times: Vec<f64>,
    /// Points around every row `[2 D + 1, D]` and their scores.
    around: Vec<f64>,
    scores: Vec<f64>,
    t: Vec<f64>,
}

impl Likelihood {
    /// Likelihoods of `model` with `times` times from 0 to 1. They lie closer at 0, where the flow of narrow data is steepest.
    ///
    /// # Errors
    /// Where the model cannot be evaluated, or there are fewer than two times.
    pub fn new(model: &Model, times: usize) -> Result<Self> {
        let mut worker = Mixture::<f64>::new(&model.config, &[])?.worker();
        for (k, parameters) in model.parameters.iter().enumerate() {
            let parameters: Vec<f64> = parameters.iter().map(|&p| p.into()).collect();
            worker.load(k, &parameters);
        }
        Self::of(worker, model.process, model.dimension(), times)
    }

    pub(super) fn of(worker: MixtureWorker<f64>, process: VariancePreserving, dimension: usize, times: usize) -> Result<Self> {
        if !(2..=1_000_000).contains(&times) {
            return Err(Error::parameter(super::network::MODEL, "steps", times, "give 2 to 1000000 times"));
        }
        let times = (0..times).map(|k| (k as f64 / (times - 1) as f64).powi(3)).collect();
        Ok(Likelihood { worker, process, dimension, times, around: Vec::new(), scores: Vec::new(), t: Vec::new() })
    }

    /// `log q₀` in nats of every row of `x` (`[M, D]`, model coordinates), per unit volume of model coordinates. For molecules,
    /// whose centre the network does not see, it holds up to a constant.
    ///
    /// # Errors
    /// Where the network fails.
    pub fn log_likelihood(&mut self, x: &[f64]) -> Result<Vec<f64>> {
        let d = self.dimension;
        let mut x = x.to_vec();
        let mut sum = vec![0.0; x.len() / d];
        let (mut first, mut second) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut first_div, mut second_div) = (vec![0.0; sum.len()], vec![0.0; sum.len()]);
        let mut next = x.clone();
        // Heun's method.
        for k in 1..self.times.len() {
            let (t, h) = (self.times[k - 1], self.times[k] - self.times[k - 1]);
            self.flow(t, &x, &mut first, &mut first_div)?;
            next.iter_mut().zip(&x).zip(&first).for_each(|((n, x), v)| *n = x + h * v);
            self.flow(t + h, &next, &mut second, &mut second_div)?;
            x.iter_mut().zip(&first).zip(&second).for_each(|((x, a), b)| *x += 0.5 * h * (a + b));
            sum.iter_mut().zip(&first_div).zip(&second_div).for_each(|((s, a), b)| *s += 0.5 * h * (a + b));
        }
        let constant = -0.5 * d as f64 * (2.0 * std::f64::consts::PI).ln();
        Ok(x.chunks_exact(d).zip(sum).map(|(x, s)| s + constant - 0.5 * x.iter().map(|x| x * x).sum::<f64>()).collect())
    }

    /// Velocities of the flow at `x` and their divergences.
    fn flow(&mut self, t: f64, x: &[f64], velocity: &mut [f64], divergence: &mut [f64]) -> Result<()> {
        let d = self.dimension;
        let points = 2 * d + 1;
        self.around.clear();
        for row in x.chunks_exact(d) {
            self.around.extend_from_slice(row);
            for axis in 0..d {
                for sign in [STEP, -STEP] {
                    let begin = self.around.len();
                    self.around.extend_from_slice(row);
                    self.around[begin + axis] += sign;
                }
            }
        }
        self.scores.resize(self.around.len(), 0.0);
        self.t.clear();
        self.t.resize(x.len() / d * points, t);
        self.worker.evaluate(Rows { x: &self.around, t: &self.t, system: &[] }, None, Some(&mut self.scores))?;
        let half = 0.5 * self.process.beta(t);
        for (r, scores) in self.scores.chunks_exact(d * points).enumerate() {
            for a in 0..d {
                velocity[r * d + a] = -half * (x[r * d + a] + scores[a]);
            }
            let trace: f64 = (0..d).map(|a| (scores[(2 * a + 1) * d + a] - scores[(2 * a + 2) * d + a]) / (2.0 * STEP)).sum();
            divergence[r] = -half * (d as f64 + trace);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::analytic::{Analytic, Gaussian};
    use super::*;
    use std::sync::Arc;

    /// The last one is narrow: its flow is steep near t = 0.
    const VARIANCES: [f64; 3] = [2.0, 0.5, 0.01];

    #[test]
    fn of_normal_data_it_is_the_normal_density() {
        let process = VariancePreserving::default();
        let mixture = Mixture::of(Arc::new(Analytic::new(Gaussian { dimension: 3, process })));
        let x = [0.3, -0.2, 0.05, 1.7, 0.9, -0.15, 0.0, 0.0, 0.0];
        let exact = |row: &[f64]| {
            let normal = |(x, v): (&f64, f64)| -0.5 * (x * x / v + (2.0 * std::f64::consts::PI * v).ln());
            row.iter().zip(VARIANCES).map(normal).sum::<f64>()
        };
        let error = |times: usize| {
            let mut worker = mixture.worker();
            worker.load(0, &VARIANCES.map(f64::ln));
            let found = Likelihood::of(worker, process, 3, times).unwrap().log_likelihood(&x).unwrap();
            found.iter().zip(x.chunks_exact(3)).map(|(f, row)| (f - exact(row)).abs()).fold(0.0, f64::max)
        };
        let (coarse, fine) = (error(101), error(401));
        // What is left of the data at t = 1, exp(−10.05) of it, is taken for noise.
        assert!(fine < 1e-3, "{fine}");
        assert!(coarse / fine > 8.0, "of second order: {coarse} {fine}");
    }

    #[test]
    fn too_few_times_are_refused() {
        let process = VariancePreserving::default();
        let mixture = Mixture::of(Arc::new(Analytic::new(Gaussian { dimension: 3, process })));
        assert!(Likelihood::of(mixture.worker(), process, 3, 1).is_err());
    }
}
