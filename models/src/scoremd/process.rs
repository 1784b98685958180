//! The diffusion: variance preserving, with `β(t) = β₀ + (β₁ − β₀) t` and `t` from 0 (data) to 1 (noise).

use serde::{Deserialize, Serialize};

/// `dx = f dt + g dW` with `f = −β(t) x/2` and `g² = β(t)`, so that `x_t = m(t) x₀ + σ(t) ε` (Song et al., arXiv 2011.13456).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariancePreserving {
    /// β at t = 0.
    pub beta_min: f64,
    /// β at t = 1.
    pub beta_max: f64,
}

impl Default for VariancePreserving {
    fn default() -> Self {
        VariancePreserving { beta_min: 0.1, beta_max: 20.0 }
    }
}

impl VariancePreserving {
    /// `β(t) = g²(t)`.
    pub fn beta(&self, t: f64) -> f64 {
        self.beta_min + t * (self.beta_max - self.beta_min)
    }

    /// `ln m(t)`.
    pub fn log_mean(&self, t: f64) -> f64 {
        -0.5 * self.beta_min * t - 0.25 * (self.beta_max - self.beta_min) * t * t
    }

    /// `m(t)`, the factor of the clean coordinates.
    pub fn mean(&self, t: f64) -> f64 {
        self.log_mean(t).exp()
    }

    /// `σ(t)`, the standard deviation of the noise. Accurate at small t, where `1 − m²` cancels.
    pub fn sigma(&self, t: f64) -> f64 {
        (-(2.0 * self.log_mean(t)).exp_m1()).sqrt()
    }
}

/// The times for which a network is responsible.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeRange {
    /// Smallest t.
    pub start: f64,
    /// Largest t.
    pub end: f64,
}

/// Most features that a time has.
pub const MAX_TIME_FEATURES: usize = 7;

impl TimeRange {
    /// The whole diffusion.
    pub const ALL: TimeRange = TimeRange { start: 0.0, end: 1.0 };

    /// Whether features of the time within the range are added: the published condition, which leaves them out for (0, 0.1).
    fn has_local_features(&self) -> bool {
        self.start >= 1e-6 || self.end - 1.0 >= 1e-6
    }

    /// Number of features of a time: 4, or 7 for ranges that begin above 0.
    pub fn features(&self) -> usize {
        if self.has_local_features() { 7 } else { 4 }
    }

    /// `t` moved into the range.
    pub fn clip(&self, t: f64) -> f64 {
        t.clamp(self.start, self.end)
    }

    /// Features of a time, clipped to the range first: `t − (t₁ − t₀)/2, cos 2πt, sin 2πt, −cos 4πt`, and for ranges that begin
    /// above 0 the last three also of `u = (t − t₀)/(t₁ − t₀)`. Only the first [`TimeRange::features`] are used.
    pub fn encode(&self, t: f64) -> [f64; MAX_TIME_FEATURES] {
        use std::f64::consts::TAU;
        let t = self.clip(t);
        let waves = |t: f64| [(TAU * t).cos(), (TAU * t).sin(), -(2.0 * TAU * t).cos()];
        let [c, s, d] = waves(t);
        let [lc, ls, ld] = if self.has_local_features() { waves((t - self.start) / (self.end - self.start)) } else { [0.0; 3] };
        [t - (self.end - self.start) / 2.0, c, s, d, lc, ls, ld]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_accurate_where_it_is_small() {
        let p = VariancePreserving::default();
        for (t, sigma) in [(1e-5, 1.0e-3), (1e-3, 1.05e-2), (0.1, 0.322)] {
            assert!((p.sigma(t) / sigma - 1.0).abs() < 6e-3, "sigma({t}) = {}", p.sigma(t));
        }
        // σ² + m² = 1, and dσ²/dt = β(1 − σ²).
        for t in [1e-9, 1e-5, 0.3, 1.0] {
            assert!((p.sigma(t).powi(2) + p.mean(t).powi(2) - 1.0).abs() < 1e-15);
            let h = 1e-6 * t;
            let slope = (p.sigma(t + h).powi(2) - p.sigma(t - h).powi(2)) / (2.0 * h);
            assert!((slope / (p.beta(t) * p.mean(t).powi(2)) - 1.0).abs() < 1e-6, "{t}");
        }
    }

    #[test]
    fn times_have_the_published_number_of_features() {
        assert_eq!(TimeRange::ALL.features(), 4);
        assert_eq!(TimeRange { start: 0.0, end: 0.1 }.features(), 4);
        assert_eq!(TimeRange { start: 0.1, end: 0.6 }.features(), 7);
        let r = TimeRange { start: 0.1, end: 0.6 };
        assert_eq!(r.encode(0.0), r.encode(0.1), "clipped");
    }
}
