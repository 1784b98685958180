//! Bounds on gradients.

use serde::{Deserialize, Serialize};

/// How gradients are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Clip {
    /// Every element by itself.
    Element(f64),
    /// The norm of the whole: the direction stays.
    Norm(f64),
}

impl Clip {
    /// The factor for a gradient of norm `norm`, and the bound on its elements after that.
    pub fn factor_and_bound(self, norm: f64) -> (f64, f64) {
        match self {
            Clip::Element(bound) => (1.0, bound),
            Clip::Norm(bound) if norm > bound => (bound / norm, f64::INFINITY),
            Clip::Norm(_) => (1.0, f64::INFINITY),
        }
    }

    /// Whether the bound makes sense.
    pub fn is_valid(self) -> bool {
        let (Clip::Element(bound) | Clip::Norm(bound)) = self;
        bound > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_bound_only_what_is_too_long() {
        assert_eq!(Clip::Norm(2.0).factor_and_bound(1.5), (1.0, f64::INFINITY));
        assert_eq!(Clip::Norm(2.0).factor_and_bound(8.0), (0.25, f64::INFINITY));
        assert_eq!(Clip::Element(3.0).factor_and_bound(8.0), (1.0, 3.0));
        assert!(!Clip::Norm(f64::NAN).is_valid() && !Clip::Element(0.0).is_valid());
    }
}
