//! From noise to conformers and back: `x_t = (1 − t) x₀ + t x₁ + γ(t) z` with x₀ from a prior (t = 0), x₁ from the data (t = 1), all
//! centred, lengths in Å.

use super::context::{GraphContext, centre};
use crate::error::{Error, Result};
use crate::superpose::turn;
use serde::{Deserialize, Serialize};

/// Distribution of x₀.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prior {
    /// Normal with the covariance of unit springs along all bonds: the pseudo-inverse of the bond graph's Laplacian.
    #[default]
    Harmonic,
    /// Independent normal coordinates of variance 1 Å².
    Gaussian,
}

/// How a network's noisy structures are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Path {
    /// Distribution of x₀.
    pub prior: Prior,
    /// γ, the standard deviation of the noise that is added at all times (Å).
    pub noise: f64,
    /// x₀ was turned onto x₁, so that it depends on it.
    pub aligned: bool,
}

impl Default for Path {
    /// As published.
    fn default() -> Self {
        Path { prior: Prior::Harmonic, noise: 0.5, aligned: true }
    }
}

impl Path {
    /// Checks the noise.
    ///
    /// # Errors
    /// Where it is negative or too large to mean anything.
    pub fn check(&self) -> Result<()> {
        if (0.0..=10.0).contains(&self.noise) {
            return Ok(());
        }
        Err(Error::parameter("ditmc", "noise", self.noise, "give 0 to 10 Å; 0.5 is as published"))
    }

    /// x₀ from standard normal numbers `xi [N, 3]`, centred.
    pub fn prior_sample(&self, context: &GraphContext, xi: &[f64], x: &mut [f64]) {
        match self.prior {
            Prior::Harmonic => context.harmonic_positions(xi, x),
            Prior::Gaussian => {
                x.copy_from_slice(xi);
                centre(x);
            }
        }
    }

    /// x_t at `t` between `x1 [N, 3]` (centred) and x₀ from `xi`, with the noise `z`, both standard normal; x₀ is turned onto x₁ where
    /// the path is aligned.
    pub fn interpolate(&self, context: &GraphContext, t: f64, x1: &[f64], xi: &[f64], z: &mut [f64], x: &mut [f64]) {
        self.prior_sample(context, xi, x);
        if self.aligned {
            turn(x, x1);
        }
        centre(z);
        for ((x, &x1), &z) in x.iter_mut().zip(x1).zip(&*z) {
            *x = (1.0 - t) * *x + t * x1 + self.noise * z;
        }
    }

    /// Variance of `x_t − t x₁` along mode `k` of the prior (Å²).
    fn variance(&self, context: &GraphContext, t: f64, k: usize) -> f64 {
        let prior = match self.prior {
            Prior::Harmonic => context.widths[k].powi(2),
            Prior::Gaussian => 1.0,
        };
        (1.0 - t).powi(2) * prior + self.noise.powi(2)
    }

    /// Multiplies `x [N, 3]` mode by mode by a function of the variance of that mode; the overall motion is taken away.
    fn by_mode(&self, context: &GraphContext, t: f64, x: &mut [f64], factor: impl Fn(f64) -> f64) {
        centre(x);
        let n = context.len();
        if self.prior == Prior::Gaussian {
            let factor = factor(self.variance(context, t, 0));
            x.iter_mut().for_each(|x| *x *= factor);
            return;
        }
        let old = x.to_vec();
        x.fill(0.0);
        for k in 0..n {
            let mode = |i: usize| context.modes[i * n + k];
            let mut along = [0.0; 3];
            for i in 0..n {
                (0..3).for_each(|a| along[a] += mode(i) * old[3 * i + a]);
            }
            let factor = factor(self.variance(context, t, k));
            for i in 0..n {
                (0..3).for_each(|a| x[3 * i + a] += mode(i) * factor * along[a]);
            }
        }
        centre(x);
    }

    /// `∇ log p_t(x) = N_t⁻¹ (t x̂₁ − x)` with `N_t = (1 − t)² S + γ²` (S the covariance of the prior) from the expected `clean`
    /// structure x̂₁ (1/Å). Directions without noise have no score and get 0.
    ///
    /// Exact where x₀ does not depend on x₁, that is for paths that are not aligned, and at t = 1 for all.
    pub fn score(&self, context: &GraphContext, t: f64, x: &[f64], clean: &[f64], score: &mut [f64]) {
        for ((s, &x), &c) in score.iter_mut().zip(x).zip(clean) {
            *s = t * c - x;
        }
        self.by_mode(context, t, score, |v| if v > 0.0 { 1.0 / v } else { 0.0 });
    }

    /// Noise with the covariance `N_t` from standard normal numbers, in place.
    pub fn noise_at(&self, context: &GraphContext, t: f64, xi: &mut [f64]) {
        self.by_mode(context, t, xi, f64::sqrt);
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::{Golden, MOLECULES, context, difference};
    use super::*;
    use crate::molecule::Vocabulary;
    use scorefield_integrators::{Noise, Purpose};

    fn normals(n: usize, seed: u64) -> Vec<f64> {
        (0..n).flat_map(|i| Noise::new(seed).normals(i as u32, 0, 0, Purpose::Prior)).collect()
    }

    #[test]
    fn prior_and_alignment_are_those_of_the_authors() {
        let Some(golden) = Golden::open("process.safetensors") else { return };
        for (name, smiles) in MOLECULES {
            let of = |what: &str| golden.double(&format!("prior.{name}.{what}"));
            let mut context = context(smiles, Vocabulary::Drugs);
            let n = context.len();
            let eigenvalues = of("eigenvalues");
            for k in 1..n {
                assert!((context.widths[k].powi(-2) - eigenvalues[k]).abs() < 1e-10, "{name} {k}");
            }
            assert_eq!((context.fragments, context.widths[0]), (1, 0.0));
            let covariance: Vec<f64> = (0..n * n)
                .map(|ij| (0..n).map(|k| context.modes[ij / n * n + k] * context.widths[k].powi(2) * context.modes[ij % n * n + k]).sum())
                .collect();
            assert!(difference(&covariance, &of("covariance")) < 1e-10);
            // Modes of equal eigenvalues are not unique: theirs give their sample.
            context.modes = golden.get(&format!("prior.{name}.eigenvectors"));
            context.widths = golden.get(&format!("prior.{name}.scale"));
            let mut x = vec![0.0; 3 * n];
            context.harmonic_positions(&golden.get(&format!("prior.{name}.xi")), &mut x);
            let mut theirs = of("x0_from_stored_eigenvectors");
            centre(&mut theirs);
            assert!(difference(&x, &theirs) < 1e-10);
            for case in ["prior", "proper", "mirror"] {
                let of = |what: &str| golden.double(&format!("kabsch.{name}.{case}.{what}"));
                let (mut moving, mut target, mut aligned) = (of("moving"), of("target"), of("aligned"));
                [&mut moving, &mut target, &mut aligned].into_iter().for_each(|x| centre(x));
                turn(&mut moving, &target);
                assert!(difference(&moving, &aligned) < 1e-9, "{name} {case}: {}", difference(&moving, &aligned));
            }
        }
    }

    #[test]
    fn interpolants_are_those_of_the_authors() {
        let Some(golden) = Golden::open("ditmc_ape_small.safetensors") else { return };
        let Some(process) = Golden::open("process.safetensors") else { return };
        for (name, smiles) in MOLECULES {
            let mut context = context(smiles, Vocabulary::Drugs);
            context.modes = process.get(&format!("prior.{name}.eigenvectors"));
            context.widths = process.get(&format!("prior.{name}.scale"));
            for (variant, aligned) in [("default", true), ("no_align", false)] {
                let of = |what: &str| golden.double(&format!("loss.{name}.{what}"));
                let (mut x1, mut z) = (of("x1"), of("z"));
                centre(&mut x1);
                let mut x = vec![0.0; x1.len()];
                Path { aligned, ..Path::default() }.interpolate(&context, of("tau")[0], &x1, &of("xi"), &mut z, &mut x);
                assert!(difference(&x, &of(&format!("{variant}.x_t"))) < 1e-9);
            }
        }
    }

    /// The score of a mixture of blurred points, whose expected clean structure is known, against derivatives of its logarithm.
    #[test]
    fn scores_are_those_of_a_mixture() {
        let context = context("CC.O", Vocabulary::Drugs);
        let n = context.len();
        let centres: Vec<Vec<f64>> = (0..3)
            .map(|k| {
                let mut x = normals(n, k);
                centre(&mut x);
                x
            })
            .collect();
        for (prior, noise) in [(Prior::Gaussian, 0.0), (Prior::Gaussian, 0.3), (Prior::Harmonic, 0.5)] {
            let path = Path { prior, noise, aligned: false };
            for t in [0.1, 0.6, 0.95] {
                // Exponents of the components at x, by the inverse of the covariance.
                let exponents = |x: &[f64]| -> Vec<f64> {
                    let of = |c: &Vec<f64>| {
                        let away: Vec<f64> = x.iter().zip(c).map(|(x, c)| x - t * c).collect();
                        let mut scaled = away.clone();
                        path.by_mode(&context, t, &mut scaled, |v| 1.0 / v);
                        -0.5 * away.iter().zip(&scaled).map(|(a, b)| a * b).sum::<f64>()
                    };
                    centres.iter().map(of).collect()
                };
                let log = |x: &[f64]| {
                    let e = exponents(x);
                    let most = e.iter().copied().fold(f64::MIN, f64::max);
                    most + e.iter().map(|e| (e - most).exp()).sum::<f64>().ln()
                };
                let mut x = normals(n, 9);
                centre(&mut x);
                let (e, l) = (exponents(&x), log(&x));
                let clean: Vec<f64> = (0..3 * n).map(|i| centres.iter().zip(&e).map(|(c, e)| (e - l).exp() * c[i]).sum()).collect();
                let mut score = vec![0.0; 3 * n];
                path.score(&context, t, &x, &clean, &mut score);
                // Along directions without net motion.
                for k in 0..6 {
                    let mut d = normals(n, 20 + k);
                    centre(&mut d);
                    let at = |h: f64| log(&x.iter().zip(&d).map(|(x, d)| x + h * d).collect::<Vec<_>>());
                    let h = 1e-3;
                    let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                    let ours: f64 = score.iter().zip(&d).map(|(s, d)| s * d).sum();
                    assert!((slope - ours).abs() < 1e-8 * ours.abs().max(1.0), "{prior:?} {noise} {t}: {slope} {ours}");
                }
            }
        }
    }
}
