//! The logarithm of the normaliser as a function of time. A network gives `E(x, t)` up to a constant that may differ from
//! time to time; the Fokker–Planck equation holds for `log q = −E − log Z(t)` only. With a term of its own, the network
//! need not bend its energy to make up for it.

use serde::{Deserialize, Serialize};

/// `log Z(t) = Σ_j c_j B_j(τ)` with uniform cubic B-splines in `τ = ln(1 + t/t_s)`, so that knots are dense where t is
/// small. Linear in its coefficients, which makes every gradient exact. Only differences between times have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogZ {
    /// Number of coefficients, 4 or more.
    pub coefficients: usize,
    /// `t_s`: below it knots are even in t, above it in ln t.
    pub time_scale: f64,
    /// Largest time; from 0 on.
    pub end: f64,
}

/// The four splines that do not vanish at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Basis {
    /// Coefficient of the first.
    pub first: usize,
    /// Their values.
    pub value: [f64; 4],
    /// Their derivatives with respect to t.
    pub slope: [f64; 4],
}

impl LogZ {
    /// For times from 0 to `end`.
    pub fn new(end: f64) -> Self {
        LogZ { coefficients: 24, time_scale: 0.01, end }
    }

    /// Whether the numbers make sense; files are not believed.
    pub fn is_valid(&self) -> bool {
        (4..=4096).contains(&self.coefficients) && self.time_scale > 0.0 && self.time_scale.is_finite() && self.end > 0.0 && self.end <= 1.0
    }

    /// Splines at time `t`, moved into the range.
    pub fn basis(&self, t: f64) -> Basis {
        let t = t.clamp(0.0, self.end);
        let intervals = (self.coefficients - 3) as f64;
        let scale = intervals / (self.end / self.time_scale).ln_1p();
        let place = scale * (t / self.time_scale).ln_1p();
        let first = (place as usize).min(self.coefficients - 4);
        let u = place - first as f64;
        let v = 1.0 - u;
        let slope = scale / (t + self.time_scale);
        let value = [v * v * v, 3.0 * u * u * u - 6.0 * u * u + 4.0, 3.0 * v * v * v - 6.0 * v * v + 4.0, u * u * u].map(|b| b / 6.0);
        let by_place = [-v * v, 3.0 * u * u - 4.0 * u, -3.0 * v * v + 4.0 * v, u * u].map(|b| 0.5 * b);
        Basis { first, value, slope: by_place.map(|b| b * slope) }
    }
}

impl Basis {
    /// `log Z` for all coefficients `c`.
    pub fn log_z<T: scorefield_integrators::Real>(&self, c: &[T]) -> f64 {
        (0..4).map(|j| self.value[j] * c[self.first + j].to_f64()).sum()
    }

    /// `d log Z/dt` for all coefficients `c`.
    pub fn derivative<T: scorefield_integrators::Real>(&self, c: &[T]) -> f64 {
        (0..4).map(|j| self.slope[j] * c[self.first + j].to_f64()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives_and_splines_sum_to_one() {
        let z = LogZ::new(0.7);
        let c: Vec<f64> = (0..z.coefficients).map(|i| (i as f64 * 1.3).sin() * 5.0).collect();
        for t in [1e-5, 3e-4, 0.01, 0.0517, 0.3, 0.6999] {
            let b = z.basis(t);
            assert!((b.value.iter().sum::<f64>() - 1.0).abs() < 1e-14 && b.slope.iter().sum::<f64>().abs() < 1e-10);
            let h = 1e-6 * (t + 0.01);
            let numeric = (z.basis(t + h).log_z(&c) - z.basis(t - h).log_z(&c)) / (2.0 * h);
            assert!((b.derivative(&c) / numeric - 1.0).abs() < 1e-6, "{t}: {} {numeric}", b.derivative(&c));
        }
        // The ends are inside the range.
        assert_eq!(z.basis(0.0).first, 0);
        assert_eq!(z.basis(1.0).first, z.coefficients - 4);
    }
}
