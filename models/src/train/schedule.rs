//! Learning rates over time.

use serde::{Deserialize, Serialize};

/// A linear rise over `warmup` steps, then half a cosine from `peak` down to `floor` at the last step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CosineSchedule {
    /// Largest rate.
    pub peak: f64,
    /// Last rate.
    pub floor: f64,
    /// Steps until the peak.
    pub warmup: u64,
    /// All steps.
    pub steps: u64,
}

impl CosineSchedule {
    /// Rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falls_from_peak_to_floor() {
        let s = CosineSchedule { peak: 3e-4, floor: 1e-5, warmup: 0, steps: 100 };
        assert_eq!(s.rate(0), 3e-4);
        assert!((s.rate(50) - 1.55e-4).abs() < 1e-18 && (s.rate(100) - 1e-5).abs() < 1e-18 && s.rate(1000) == s.rate(100));
        let w = CosineSchedule { warmup: 9, ..s };
        assert!((w.rate(0) - 3e-5).abs() < 1e-18 && w.rate(9) == 3e-4);
        assert!((0..99).all(|k| s.rate(k + 1) < s.rate(k)));
    }
}
