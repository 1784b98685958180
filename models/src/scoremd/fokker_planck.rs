//! How well `log q = −E − log Z` obeys the Fokker–Planck equation of the diffusion,
//!
//! ```text
//! ∂ log q/∂t = ½β [∇·s + |s|² + ⟨x, s⟩ + D],      R = ½β [∇·s + |s|² + ⟨x, s⟩ + D] − ∂ log q/∂t,
//! ```
//!
//! and the loss `w(t) R₁ R₂/D²` of two independent estimates, whose mean is `w (R/D)²` (Plainer et al., Theorem 1).

use super::process::TimeRange;
use serde::{Deserialize, Serialize};

/// Whose formulas are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Formulas {
    /// The published code's, for comparison: `∇·f = −½β` instead of `−½βD`, everything but the divergence also at the displaced
    /// point, time differences whose denominators do not know that networks clip t, no log Z(t).
    Published,
    /// The equation as it stands. Only the divergence is estimated with random displacements, by one-sided differences
    /// `ε·(s(x + σε) − s(x))/σ`: their error is odd in ε and vanishes in the mean up to σ², the score at x is that of score
    /// matching, and one step needs three scores and two energies instead of five and four.
    #[default]
    Corrected,
}

/// Distribution of the displacements ε, of unit variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// Normal, as published.
    Normal,
    /// Signs: the estimate of a trace then has no error from its diagonal.
    #[default]
    Signs,
}

/// Settings of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FokkerPlanck {
    /// Weight of the loss beside score matching (α of the paper).
    pub weight: f64,
    /// Size σ of displacements in model coordinates. Rounding of scores is divided by it: in single precision 10⁻⁴ gives ten
    /// times the noise of 10⁻³, whose own error, of order σ², is far below that of the estimate.
    pub sigma: f64,
    /// Distribution of displacements.
    pub probe: Probe,
    /// Step of time differences (the published formulas have their own).
    pub time_step: f64,
    /// Part of the batch that it is evaluated on.
    pub fraction: f64,
}

impl Default for FokkerPlanck {
    fn default() -> Self {
        FokkerPlanck { weight: 5e-4, sigma: 1e-3, probe: Probe::Signs, time_step: 1e-3, fraction: 1.0 }
    }
}

impl FokkerPlanck {
    /// Published settings but for the weight.
    pub fn published(weight: f64) -> Self {
        FokkerPlanck { weight, sigma: 1e-4, probe: Probe::Normal, time_step: 5e-4, fraction: 1.0 }
    }
}

/// Three times and the weights of a function there that give its derivative at the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeStencil {
    /// The time itself and two others.
    pub times: [f64; 3],
    /// Their weights.
    pub weights: [f64; 3],
}

/// Published steps forward and backward.
const PUBLISHED_STEPS: [f64; 2] = [5e-4, 1e-3];

impl TimeStencil {
    /// The published one: 5·10⁻⁴ later and 10⁻³ earlier, whether the network knows those times or not.
    pub fn published(t: f64) -> Self {
        let [later, earlier] = PUBLISHED_STEPS;
        let norm = later * earlier * (later + earlier);
        TimeStencil {
            times: [t, t + later, t - earlier],
            weights: [(later * later - earlier * earlier) / norm, earlier * earlier / norm, -later * later / norm],
        }
    }

    /// Exact for parabolas, with all times within `range`: on either side of `t`, or both on one side near an end. `round`
    /// rounds times to the precision that the network sees; the weights belong to rounded times.
    pub fn within(t: f64, step: f64, range: TimeRange, round: impl Fn(f64) -> f64) -> Self {
        let t = round(range.clip(t));
        let h = step.min(0.25 * (range.end - range.start));
        let [a, b] = match (t + h <= range.end, t - h >= range.start) {
            (true, true) => [t + h, t - h],
            (false, _) => [t - h, t - 2.0 * h],
            (true, false) => [t + h, t + 2.0 * h],
        };
        let (a, b) = (round(a), round(b));
        TimeStencil {
            times: [t, a, b],
            weights: [1.0 / (t - a) + 1.0 / (t - b), (t - b) / ((a - t) * (a - b)), (t - a) / ((b - t) * (b - a))],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stencils_differentiate_parabolas_within_the_range() {
        let range = TimeRange { start: 0.0, end: 0.1 };
        let f = |t: f64| 3.0 - 2.0 * t + 40.0 * t * t;
        for t in [0.0, 1e-5, 9.99e-4, 1e-3, 0.05, 0.0992, 0.1] {
            for round in [|t: f64| t, |t: f64| f64::from(t as f32)] {
                let s = TimeStencil::within(t, 1e-3, range, round);
                assert!(s.times.iter().all(|&t| t >= 0.0 && t <= f64::from(0.1f32)), "{s:?}");
                let got: f64 = (0..3).map(|i| s.weights[i] * f(s.times[i])).sum();
                assert!((got - (-2.0 + 80.0 * s.times[0])).abs() < 1e-9, "{t}: {got}");
            }
        }
        let s = TimeStencil::published(0.3);
        let got: f64 = (0..3).map(|i| s.weights[i] * f(s.times[i])).sum();
        assert!((got - 22.0).abs() < 1e-9);
    }
}
