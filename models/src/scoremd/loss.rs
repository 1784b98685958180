//! What training minimises, with exact gradients. A network is only asked for energies and scores, and then for
//! `Σ a ∂E/∂θ + Σ u·∂s/∂θ`, where `a` and `u` are the derivatives of the loss with respect to them.
//!
//! * Denoising score matching: `w(t) mean_d (ε + σ s(x_t, t))²` with `x_t = m x₀ + σ ε`.
//! * The Fokker–Planck residual, see [`fokker_planck`](super::fokker_planck).
//! * Forces: `mean_d ς² (s(x_t, t) − s₀/m)²` at small t, where `s₀` is the score of the clean data. Both have the same
//!   minimum, because `∇ log q_t(x_t) = E[s₀/m | x_t]` (V. De Bortoli et al., *Target score matching*, arXiv 2402.08667).

use super::fokker_planck::{FokkerPlanck, Formulas, TimeStencil};
use super::log_z::{Basis, LogZ};
use super::network::{Rows, Worker};
use super::process::{TimeRange, VariancePreserving};
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};

/// Added to absolute values by the published code.
const PUBLISHED_GUARD: f64 = 1e-7;

/// Learning from forces.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ForceMatching {
    /// Weight of the loss beside score matching.
    pub weight: f64,
    /// Up to this time.
    pub until: f64,
}

/// What one network's training minimises.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Whose formulas.
    pub formulas: Formulas,
    /// The diffusion.
    pub process: VariancePreserving,
    /// The network's times; weights refer to them.
    pub range: TimeRange,
    /// Where w(t) changes: as much weight is put on times below as above.
    pub midpoint: f64,
    /// The Fokker–Planck residual.
    pub fokker_planck: Option<FokkerPlanck>,
    /// The normaliser, in the corrected formulas.
    pub log_z: Option<LogZ>,
    /// Forces.
    pub forces: Option<ForceMatching>,
    /// ς: 1 over the root mean square of clean scores.
    pub force_scale: f64,
}

impl Objective {
    /// `w(t)`, which gives both sides of the midpoint the same weight.
    pub fn weight(&self, t: f64) -> f64 {
        let TimeRange { start, end } = self.range;
        let width = if t <= self.midpoint { self.midpoint - start } else { end - self.midpoint };
        0.5 * (end - start) / width
    }
}

/// Noised data of some rows, and what is drawn for them.
#[derive(Clone, Debug, Default)]
pub struct Samples<T> {
    /// Noised coordinates `x_t` `[M, D]`.
    pub x: Vec<T>,
    /// Times `[M]`.
    pub t: Vec<T>,
    /// Which system each row is of `[M]`; empty where there is one only.
    pub system: Vec<u32>,
    /// Noise ε `[M, D]`.
    pub noise: Vec<T>,
    /// Clean scores `[M, D]`; empty where there are none.
    pub clean_scores: Vec<T>,
    /// Rows on which the Fokker–Planck residual is evaluated.
    pub residual_rows: Vec<u32>,
    /// Two displacements for each of them `[2, R, D]`.
    pub probes: Vec<T>,
}

impl<T> Samples<T> {
    /// Forgets all rows but keeps the memory.
    pub fn clear(&mut self) {
        self.x.clear();
        self.t.clear();
        self.system.clear();
        self.noise.clear();
        self.clean_scores.clear();
        self.residual_rows.clear();
        self.probes.clear();
    }
}

/// Sums over rows; divided by the numbers of rows they are means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossSums {
    /// Score matching.
    pub dsm: f64,
    /// Its rows.
    pub rows: u64,
    /// `w R₁ R₂/D²`.
    pub fokker_planck: f64,
    /// Its rows.
    pub residual_rows: u64,
    /// Forces.
    pub forces: f64,
    /// Their rows.
    pub force_rows: u64,
}

impl LossSums {
    /// Adds sums over other rows.
    pub fn add(&mut self, other: &LossSums) {
        self.dsm += other.dsm;
        self.rows += other.rows;
        self.fokker_planck += other.fokker_planck;
        self.residual_rows += other.residual_rows;
        self.forces += other.forces;
        self.force_rows += other.force_rows;
    }

    /// Mean of score matching, of the residual, and of forces; zero where there are no rows.
    pub fn means(&self) -> [f64; 3] {
        let mean = |sum: f64, n: u64| if n == 0 { 0.0 } else { sum / n as f64 };
        [mean(self.dsm, self.rows), mean(self.fokker_planck, self.residual_rows), mean(self.forces, self.force_rows)]
    }

    /// The part that is not finite, if one is.
    pub fn not_finite(&self) -> Option<&'static str> {
        [("score matching", self.dsm), ("Fokker–Planck", self.fokker_planck), ("forces", self.forces)]
            .into_iter()
            .find(|(_, v)| !v.is_finite())
            .map(|(name, _)| name)
    }
}

/// 1 over the numbers of rows of the whole batch, times the weights of the losses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Per row of score matching.
    pub dsm: f64,
    /// Per row of the residual.
    pub fokker_planck: f64,
    /// Per row of forces.
    pub forces: f64,
}

impl Normalisation {
    /// For a batch with these numbers of rows.
    pub fn new(objective: &Objective, rows: usize, residual_rows: usize, force_rows: usize) -> Self {
        let per = |weight: f64, n: usize| if n == 0 { 0.0 } else { weight / n as f64 };
        Normalisation {
            dsm: per(1.0, rows),
            fokker_planck: per(objective.fokker_planck.map_or(0.0, |f| f.weight), residual_rows),
            forces: per(objective.forces.map_or(0.0, |f| f.weight), force_rows),
        }
    }
}

/// One estimate of the residual at one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Residual {
    /// `½β ∇·s`.
    pub divergence: f64,
    /// Derivative of log q with respect to time.
    pub time_derivative: f64,
    /// Everything but the divergence.
    pub rest: f64,
}

impl Residual {
    /// R.
    pub fn total(&self) -> f64 {
        self.divergence + self.rest
    }
}

/// Evaluates losses for blocks of rows and keeps the memory.
#[derive(Debug, Default)]
pub struct LossEvaluator<T> {
    /// Rows of which scores are needed: the samples, then displaced ones.
    x: Vec<T>,
    t: Vec<T>,
    system: Vec<u32>,
    score: Vec<T>,
    energy: Vec<T>,
    u: Vec<T>,
    a: Vec<T>,
    /// Rows of which energies alone are needed.
    x_times: Vec<T>,
    t_times: Vec<T>,
    system_times: Vec<u32>,
    e_times: Vec<T>,
    a_times: Vec<T>,
    stencils: Vec<TimeStencil>,
    bases: Vec<Basis>,
    residuals: Vec<[Residual; 2]>,
}

/// Where to add a gradient: a network's parameters first, then the coefficients of log Z.
pub struct Gradient<'a, T> {
    /// `[P + K]`.
    pub values: &'a mut [T],
    /// How terms are weighted.
    pub normalisation: Normalisation,
}

impl<T: SimdReal> LossEvaluator<T> {
    /// Sums of the losses over `samples`; where `gradient` is given, the gradient of the weighted means is added to it.
    /// `coefficients` are those of log Z. `worker` has the parameters loaded.
    pub fn evaluate(
        &mut self,
        worker: &mut dyn Worker<T>,
        objective: &Objective,
        samples: &Samples<T>,
        coefficients: &[T],
        gradient: Option<Gradient<'_, T>>,
    ) -> LossSums {
        let rows = samples.t.len();
        if rows == 0 {
            return LossSums::default();
        }
        let d = samples.x.len() / rows;
        let published = objective.formulas == Formulas::Published;
        let residual = objective.fokker_planck.filter(|_| !samples.residual_rows.is_empty());
        self.lay_out(objective, samples, residual.as_ref(), d);

        // Values.
        let score_rows = self.t.len();
        self.score.resize(score_rows * d, T::default());
        let energies = residual.is_some();
        self.energy.resize(if energies { score_rows } else { 0 }, T::default());
        worker.evaluate(
            Rows { x: &self.x, t: &self.t, system: &self.system },
            energies.then_some(&mut self.energy[..]),
            Some(&mut self.score),
        );
        self.e_times.resize(self.t_times.len(), T::default());
        if energies {
            worker.evaluate(Rows { x: &self.x_times, t: &self.t_times, system: &self.system_times }, Some(&mut self.e_times), None);
        }

        // Losses and their derivatives with respect to values.
        for seeds in [&mut self.u, &mut self.a, &mut self.a_times] {
            seeds.clear();
        }
        self.u.resize(score_rows * d, T::default());
        self.a.resize(if energies { score_rows } else { 0 }, T::default());
        self.a_times.resize(self.t_times.len(), T::default());
        let normalisation = gradient.as_ref().map(|g| g.normalisation);
        let unit = Normalisation { dsm: 0.0, fokker_planck: 0.0, forces: 0.0 };
        let per = normalisation.unwrap_or(unit);
        let mut sums = self.score_matching(objective, samples, d, per);
        let (mut values, network) = match gradient {
            Some(g) => {
                let network = g.values.len() - coefficients.len();
                (Some(g.values), network)
            }
            None => (None, 0),
        };
        if let Some(settings) = &residual {
            let log_z_gradient = values.as_deref_mut().map(|v| &mut v[network..]);
            if published {
                self.published_residual(objective, settings, samples, d, per, &mut sums);
            } else {
                self.corrected_residual(objective, settings, samples, d, per, coefficients, log_z_gradient, &mut sums);
            }
        }

        // Their gradient.
        if let Some(values) = values {
            let values = &mut values[..network];
            worker.accumulate(
                Rows { x: &self.x, t: &self.t, system: &self.system },
                energies.then_some(&self.a[..]),
                Some(&self.u),
                values,
            );
            if energies {
                worker.accumulate(
                    Rows { x: &self.x_times, t: &self.t_times, system: &self.system_times },
                    Some(&self.a_times),
                    None,
                    values,
                );
            }
        }
        sums
    }

    /// Estimates of the residual made by the last call, one pair per residual row.
    pub fn residuals(&self) -> &[[Residual; 2]] {
        &self.residuals
    }

    /// Lays out the rows that the network is evaluated on. Score rows: samples, then per displacement `x + v` (published: and
    /// `x − v`). Energy rows: published per displacement `x + v` later, then earlier; corrected `x` at two other times.
    fn lay_out(&mut self, objective: &Objective, samples: &Samples<T>, residual: Option<&FokkerPlanck>, d: usize) {
        for list in [&mut self.x, &mut self.t, &mut self.x_times, &mut self.t_times] {
            list.clear();
        }
        for list in [&mut self.system, &mut self.system_times] {
            list.clear();
        }
        self.stencils.clear();
        self.bases.clear();
        self.residuals.clear();
        self.system.extend_from_slice(&samples.system);
        self.x.extend_from_slice(&samples.x);
        self.t.extend_from_slice(&samples.t);
        let Some(settings) = residual else { return };
        let chosen = &samples.residual_rows;
        let sigma = T::from_f64(settings.sigma);
        let published = objective.formulas == Formulas::Published;
        for &row in chosen {
            let t = samples.t[row as usize].to_f64();
            self.stencils.push(match published {
                true => TimeStencil::published(t),
                false => TimeStencil::within(t, settings.time_step, objective.range, |t| T::from_f64(t).to_f64()),
            });
        }
        for probe in samples.probes.chunks_exact(chosen.len() * d) {
            let signs: &[T] = if published { &[sigma, -sigma] } else { &[sigma] };
            for &sign in signs {
                for (eps, &row) in probe.chunks_exact(d).zip(chosen) {
                    let row = row as usize;
                    self.t.push(samples.t[row]);
                    self.system.extend(samples.system.get(row));
                    self.x.extend(samples.x[row * d..(row + 1) * d].iter().zip(eps).map(|(&x, &e)| x + sign * e));
                }
            }
        }
        let copies = if published { 2 } else { 1 };
        for k in 0..copies {
            for time in [1, 2] {
                for (j, &row) in chosen.iter().enumerate() {
                    // Published: time differences are taken at the displaced point.
                    let from = if published { samples.t.len() + 2 * k * chosen.len() + j } else { row as usize };
                    self.x_times.extend_from_slice(&self.x[from * d..(from + 1) * d]);
                    self.t_times.push(T::from_f64(self.stencils[j].times[time]));
                    self.system_times.extend(samples.system.get(row as usize));
                }
            }
        }
    }

    /// Score matching and forces at the samples.
    fn score_matching(&mut self, objective: &Objective, samples: &Samples<T>, d: usize, per: Normalisation) -> LossSums {
        let guard = if objective.formulas == Formulas::Published { PUBLISHED_GUARD } else { 0.0 };
        let mut sums = LossSums { rows: samples.t.len() as u64, ..LossSums::default() };
        for (i, t) in samples.t.iter().enumerate() {
            let t = t.to_f64();
            let (sigma, weight) = (objective.process.sigma(t), objective.weight(t));
            let (score, noise, u) = (&self.score[i * d..][..d], &samples.noise[i * d..][..d], &mut self.u[i * d..][..d]);
            let mut sum = 0.0;
            let slope = 2.0 * per.dsm * weight * sigma / d as f64;
            for k in 0..d {
                let r = noise[k].to_f64() + sigma * score[k].to_f64();
                let r = r + guard.copysign(r);
                sum += r * r;
                u[k] = T::from_f64(slope * r);
            }
            sums.dsm += weight * sum / d as f64;
            if samples.clean_scores.is_empty() || !objective.forces.is_some_and(|f| t <= f.until) {
                continue;
            }
            let (scale, mean) = (objective.force_scale, objective.process.mean(t));
            let mut sum = 0.0;
            let slope = 2.0 * per.forces * scale * scale / d as f64;
            for k in 0..d {
                let r = score[k].to_f64() - samples.clean_scores[i * d + k].to_f64() / mean;
                sum += r * r;
                u[k] += T::from_f64(slope * r);
            }
            sums.forces += scale * scale * sum / d as f64;
            sums.force_rows += 1;
        }
        sums
    }

    /// The equation as it stands.
    fn corrected_residual(
        &mut self,
        objective: &Objective,
        settings: &FokkerPlanck,
        samples: &Samples<T>,
        d: usize,
        per: Normalisation,
        coefficients: &[T],
        mut log_z_gradient: Option<&mut [T]>,
        sums: &mut LossSums,
    ) {
        let chosen = &samples.residual_rows;
        let (n, base) = (chosen.len(), samples.t.len());
        for (j, &row) in chosen.iter().enumerate() {
            let row = row as usize;
            let t = samples.t[row].to_f64();
            let (half_beta, weight) = (0.5 * objective.process.beta(t), objective.weight(t));
            let (x, score) = (&samples.x[row * d..][..d], &self.score[row * d..][..d]);
            let at = |k: usize| base + k * n + j;
            let mut square = 0.0;
            let mut inner = 0.0;
            let mut trace = [0.0; 2];
            for c in 0..d {
                let s = score[c].to_f64();
                square += s * s;
                inner += x[c].to_f64() * s;
                for k in 0..2 {
                    let difference = self.score[at(k) * d + c].to_f64() - s;
                    trace[k] += samples.probes[(k * n + j) * d + c].to_f64() * difference;
                }
            }
            // ∂ log q/∂t = −∂E/∂t − d log Z/dt.
            let w = self.stencils[j].weights;
            let mut slope = w[0] * self.energy[row].to_f64() + w[1] * self.e_times[j].to_f64() + w[2] * self.e_times[n + j].to_f64();
            let basis = objective.log_z.map(|z| z.basis(t));
            if let Some(basis) = &basis {
                slope += basis.derivative(coefficients);
            }
            let rest = half_beta * (square + inner + d as f64) + slope;
            let residual = trace.map(|trace| Residual { divergence: half_beta * trace / settings.sigma, time_derivative: -slope, rest });
            self.residuals.push(residual);
            let [r1, r2] = residual.map(|r| r.total());
            let factor = weight / (d * d) as f64;
            sums.fokker_planck += factor * r1 * r2;
            sums.residual_rows += 1;

            // d(R₁R₂) = R₂ dR₁ + R₁ dR₂.
            let factor = factor * per.fokker_planck;
            let (other, both) = ([factor * r2, factor * r1], factor * (r1 + r2));
            for c in 0..d {
                let mut own = both * half_beta * (2.0 * score[c].to_f64() + x[c].to_f64());
                for k in 0..2 {
                    let seed = other[k] * half_beta * samples.probes[(k * n + j) * d + c].to_f64() / settings.sigma;
                    self.u[at(k) * d + c] = T::from_f64(seed);
                    own -= seed;
                }
                self.u[row * d + c] += T::from_f64(own);
            }
            self.a[row] += T::from_f64(both * w[0]);
            self.a_times[j] = T::from_f64(both * w[1]);
            self.a_times[n + j] = T::from_f64(both * w[2]);
            if let (Some(basis), Some(gradient)) = (&basis, log_z_gradient.as_deref_mut()) {
                for k in 0..4 {
                    gradient[basis.first + k] += T::from_f64(both * basis.slope[k]);
                }
            }
        }
    }

    /// The published code's residual.
    fn published_residual(
        &mut self,
        objective: &Objective,
        settings: &FokkerPlanck,
        samples: &Samples<T>,
        d: usize,
        per: Normalisation,
        sums: &mut LossSums,
    ) {
        let chosen = &samples.residual_rows;
        let (n, base) = (chosen.len(), samples.t.len());
        for (j, &row) in chosen.iter().enumerate() {
            let t = samples.t[row as usize].to_f64();
            let (half_beta, weight) = (0.5 * objective.process.beta(t), objective.weight(t));
            let w = self.stencils[j].weights;
            let mut residual = [Residual::default(); 2];
            for k in 0..2 {
                let (plus, minus) = (base + 2 * k * n + j, base + (2 * k + 1) * n + j);
                let (mut trace, mut square, mut inner) = (0.0, 0.0, 0.0);
                for c in 0..d {
                    let (s, s_minus) = (self.score[plus * d + c].to_f64(), self.score[minus * d + c].to_f64());
                    trace += samples.probes[(k * n + j) * d + c].to_f64() * (s - s_minus);
                    square += (s.abs() + PUBLISHED_GUARD).powi(2);
                    inner += self.x[plus * d + c].to_f64() * s;
                }
                let times = [2 * k * n + j, (2 * k + 1) * n + j];
                let slope =
                    w[0] * self.energy[plus].to_f64() + w[1] * self.e_times[times[0]].to_f64() + w[2] * self.e_times[times[1]].to_f64();
                residual[k] = Residual {
                    divergence: half_beta * trace / (2.0 * settings.sigma),
                    time_derivative: -slope,
                    rest: half_beta * (square + inner) + half_beta + slope,
                };
            }
            self.residuals.push(residual);
            let [r1, r2] = residual.map(|r| r.total());
            let factor = weight / (d * d) as f64;
            sums.fokker_planck += factor * r1 * r2;
            sums.residual_rows += 1;
            let factor = factor * per.fokker_planck;
            for (k, other) in [factor * r2, factor * r1].into_iter().enumerate() {
                let (plus, minus) = (base + 2 * k * n + j, base + (2 * k + 1) * n + j);
                for c in 0..d {
                    let s = self.score[plus * d + c].to_f64();
                    let eps = samples.probes[(k * n + j) * d + c].to_f64() / (2.0 * settings.sigma);
                    let own = 2.0 * (s + PUBLISHED_GUARD.copysign(s)) + self.x[plus * d + c].to_f64();
                    self.u[plus * d + c] = T::from_f64(other * half_beta * (eps + own));
                    self.u[minus * d + c] = T::from_f64(-other * half_beta * eps);
                }
                self.a[plus] = T::from_f64(other * w[0]);
                self.a_times[2 * k * n + j] = T::from_f64(other * w[1]);
                self.a_times[(2 * k + 1) * n + j] = T::from_f64(other * w[2]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
