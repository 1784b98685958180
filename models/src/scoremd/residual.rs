//! How far a trained model is from the Fokker–Planck equation, over diffusion time: the quantity that training with the residual
//! makes small ([`super::fokker_planck`]), here without estimates: divergences by central differences along every coordinate.

use super::config::Head;
use super::fokker_planck::TimeStencil;
use super::mixture::{Mixture, MixtureWorker};
use super::model::Model;
use super::network::Rows;
use super::process::{TimeRange, VariancePreserving};
use crate::error::Result;
use scorefield_integrators::noise::{Noise, Purpose};

/// Displacement of central differences in model coordinates, and step of those in time.
const STEP: f64 = 1e-4;
const TIME_STEP: f64 = 1e-4;

/// Residuals of one model, in one thread.
pub struct Residuals {
    /// Range of times of every network that has an energy.
    ranges: Vec<TimeRange>,
    dimension: usize,
    worker: MixtureWorker<f64>,
    process: VariancePreserving,
    x: Vec<f64>,
    t: Vec<f64>,
    energies: Vec<f64>,
    scores: Vec<f64>,
}

impl Residuals {
    /// Residuals of `model`.
    ///
    /// # Errors
    /// Where it cannot be evaluated.
    pub fn new(model: &Model) -> Result<Self> {
        let mut worker = Mixture::<f64>::new(&model.config, &[])?.worker();
        for (k, parameters) in model.parameters.iter().enumerate() {
            let parameters: Vec<f64> = parameters.iter().map(|&p| p.into()).collect();
            worker.load(k, &parameters);
        }
        let ranges = model.config.experts.iter().filter(|e| e.head == Head::Potential).map(|e| e.range).collect();
        Ok(Self::of(worker, model.process, ranges, model.dimension()))
    }

    fn of(worker: MixtureWorker<f64>, process: VariancePreserving, ranges: Vec<TimeRange>, dimension: usize) -> Self {
        let empty = Vec::new;
        Residuals { ranges, dimension, worker, process, x: empty(), t: empty(), energies: empty(), scores: empty() }
    }

    /// Standard deviation over `frames` (`[M, D]`, model coordinates, noised to time `t`) of `R/D`. What is the same for all
    /// configurations is a change of log Z(t), which neither scores nor forces see, and is left out. `None` where the network of
    /// this time gives scores only.
    ///
    /// # Errors
    /// Where the network fails.
    pub fn at(&mut self, t: f64, frames: &[f64], noise: Noise) -> Result<Option<f64>> {
        // At a border the network of larger times is asked.
        let Some(range) = self.ranges.iter().find(|r| (r.start..r.end).contains(&t)).copied() else { return Ok(None) };
        let stencil = TimeStencil::within(t, TIME_STEP, range, |t| t);
        let (t, d) = (stencil.times[0], self.dimension);
        let (mean, sigma, beta) = (self.process.mean(t), self.process.sigma(t), self.process.beta(t));
        let mut values = Vec::with_capacity(frames.len() / d);
        for (row, frame) in frames.chunks_exact(d).enumerate() {
            self.x.clear();
            for (atom, x) in frame.chunks(3).enumerate() {
                let z = noise.normals(atom as u32, row as u32, 0, Purpose::TrainingNoise);
                self.x.extend(x.iter().zip(z).map(|(x, z)| mean * x + sigma * z));
            }
            // The point at three times, then displaced along every coordinate.
            for _ in 1..3 {
                self.x.extend_from_within(..d);
            }
            for axis in 0..d {
                for sign in [STEP, -STEP] {
                    let begin = self.x.len();
                    self.x.extend_from_within(..d);
                    self.x[begin + axis] += sign;
                }
            }
            let rows = 3 + 2 * d;
            self.t.clear();
            self.t.extend(stencil.times);
            self.t.resize(rows, t);
            self.energies.resize(rows, 0.0);
            self.scores.resize(rows * d, 0.0);
            let all = Rows { x: &self.x, t: &self.t, system: &[] };
            self.worker.evaluate(all, Some(&mut self.energies), Some(&mut self.scores))?;
            let (x, s) = (&self.x[..d], &self.scores[..d]);
            let of = |row: usize, axis: usize| self.scores[row * d + axis];
            let divergence: f64 = (0..d).map(|a| (of(3 + 2 * a, a) - of(4 + 2 * a, a)) / (2.0 * STEP)).sum();
            let rest: f64 = s.iter().zip(x).map(|(s, x)| s * (s + x)).sum();
            let slope: f64 = -(0..3).map(|k| stencil.weights[k] * self.energies[k]).sum::<f64>();
            values.push((0.5 * beta * (divergence + rest + d as f64) - slope) / d as f64);
        }
        let n = values.len() as f64;
        let centre = values.iter().sum::<f64>() / n;
        Ok(Some((values.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / n).sqrt()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::analytic::{Analytic, Gaussian};
    use super::*;
    use std::sync::Arc;

    /// Residuals of normal data's own densities, asked about the diffusion `process`.
    fn residual(process: VariancePreserving, t: f64) -> Option<f64> {
        let truth = VariancePreserving::default();
        let mixture = Mixture::of(Arc::new(Analytic::new(Gaussian { dimension: 3, process: truth })));
        let mut worker = mixture.worker();
        worker.load(0, &[2.0f64, 0.5, 0.05].map(f64::ln));
        let frames: Vec<f64> = (0..600).map(|i| (i as f64 * 0.7).sin() * [1.4, 0.7, 0.2][i % 3]).collect();
        let range = TimeRange { start: 0.0, end: 0.9 };
        Residuals::of(worker, process, vec![range], 3).at(t, &frames, Noise::new(1)).unwrap()
    }

    #[test]
    fn true_densities_obey_the_equation_and_others_do_not() {
        let truth = VariancePreserving::default();
        let other = VariancePreserving { beta_max: 2.0 * truth.beta_max, ..truth };
        for t in [0.02, 0.1, 0.4, 0.8] {
            let (right, wrong) = (residual(truth, t).unwrap(), residual(other, t).unwrap());
            assert!(right < 1e-3 && wrong > 100.0 * right, "t = {t}: {right}, {wrong}");
        }
        assert_eq!(residual(truth, 0.95), None);
    }
}
