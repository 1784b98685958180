//! Exponential moving average of weights: what is evaluated and saved.

use serde::{Deserialize, Serialize};

/// `average ← d average + (1 − d) parameters` with `d` rising to `decay`, so that the first steps are soon forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ema {
    /// Memory per step, below 1; 0 keeps the last parameters.
    pub decay: f64,
}

impl Default for Ema {
    fn default() -> Self {
        Ema { decay: 0.999 }
    }
}

impl Ema {
    /// `d` after `step` steps, counted from 1: the average spans about a tenth of the steps so far, at most 1/(1 − decay).
    pub fn memory(&self, step: u64) -> f64 {
        let k = step as f64;
        self.decay.min(k / (k + 10.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_warms_up() {
        let ema = Ema { decay: 0.999 };
        assert!(ema.memory(1) < 0.1 && ema.memory(90) == 0.9 && ema.memory(1_000_000) == 0.999);
        assert_eq!(Ema { decay: 0.0 }.memory(5), 0.0);
    }
}
