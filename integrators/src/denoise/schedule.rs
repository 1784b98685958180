//! Noise levels from the prior to the data.

/// The schedule of Karras et al. (arXiv 2206.00364, eq. 5): levels at equal distances in `σ^(1/ρ)`, and zero after the last.
/// Lengths are in any one unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    steps: u32,
    rho: f64,
    /// `σ_min^(1/ρ)`.
    low: f64,
    /// Distance of neighbouring levels in `σ^(1/ρ)`.
    delta: f64,
}

impl Schedule {
    /// `steps` levels (at least 2) from `sigma_max` down to `sigma_min`, then zero.
    pub fn new(steps: u32, sigma_min: f64, sigma_max: f64, rho: f64) -> Self {
        let (low, high) = (sigma_min.powf(1.0 / rho), sigma_max.powf(1.0 / rho));
        Schedule { steps, rho, low, delta: (high - low) / f64::from(steps.max(2) - 1) }
    }

    /// Number of levels above zero, `S`.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Level with `left` steps left: `σ_max` for `S`, `σ_min` for 1, zero for 0.
    pub fn at(&self, left: u32) -> f64 {
        match left {
            0 => 0.0,
            n => (self.low + f64::from(n - 1) * self.delta).powf(self.rho),
        }
    }

    /// Distance of neighbouring levels in `σ^(1/ρ)`.
    pub fn delta(&self) -> f64 {
        self.delta
    }

    /// `σ^(1/ρ)`.
    pub fn inverse(&self, sigma: f64) -> f64 {
        sigma.powf(1.0 / self.rho)
    }

    /// The level `delta` (in `σ^(1/ρ)`) below `sigma`: never jumps over `σ_min`, zero after it.
    pub fn below(&self, sigma: f64, delta: f64) -> f64 {
        let here = self.inverse(sigma);
        let next = here - delta;
        if next > self.low * (1.0 - 1e-9) {
            next.powf(self.rho)
        } else if here > self.low * (1.0 + 1e-6) {
            self.low.powf(self.rho)
        } else {
            0.0
        }
    }
}
