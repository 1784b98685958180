//! The error of a potential of mean force over two coordinates, as ScoreMD reports it (arXiv 2506.17139).

use super::divergence::{edges_below, linspace};

/// The probability that a cell is given where only the other set has samples.
const UNSEEN: f64 = 1e-6;

/// Cells for the comparison of two potentials of mean force: equal bins over a rectangle, and along each axis one outer
/// bin below and one above, so that no sample is lost.
#[derive(Clone, Debug, PartialEq)]
pub struct PmfGrid {
    edges: [Vec<f64>; 2],
}

impl PmfGrid {
    /// `bins` bins per axis, the two outer ones included, hence `bins − 2` over `limits`. At least three.
    pub fn new(limits: [[f64; 2]; 2], bins: usize) -> Self {
        PmfGrid { edges: limits.map(|[low, high]| linspace(low, high, bins.max(3) - 1)) }
    }

    /// Fraction of `points` per cell, `[bins, bins]`; points with NaN count as lost.
    fn probabilities(&self, points: &[[f64; 2]]) -> Vec<f64> {
        let bins = self.edges[0].len() + 1;
        let mut counts = vec![0.0; bins * bins];
        for &[x, y] in points {
            if let (Some(i), Some(j)) = (edges_below(&self.edges[0], x), edges_below(&self.edges[1], y)) {
                counts[i * bins + j] += 1.0;
            }
        }
        counts.iter_mut().for_each(|c| *c /= points.len() as f64);
        counts
    }

    /// (p, q, normalised weight ½ (p + q)) of every cell that either set has seen.
    fn cells(&self, a: &[[f64; 2]], b: &[[f64; 2]]) -> Vec<[f64; 3]> {
        let (p, q) = (self.probabilities(a), self.probabilities(b));
        let seen = |p: f64| if p > 0.0 { p } else { UNSEEN };
        let mut cells: Vec<[f64; 3]> = p
            .iter()
            .zip(&q)
            .filter(|(p, q)| **p > 0.0 || **q > 0.0)
            .map(|(&p, &q)| (seen(p), seen(q)))
            .map(|(p, q)| [p, q, 0.5 * (p + q)])
            .collect();
        let total: f64 = cells.iter().map(|c| c[2]).sum();
        cells.iter_mut().for_each(|c| c[2] /= total);
        cells
    }

    /// Squared difference of the potentials of mean force in (kT)², Σ w (ln p − ln q)², with weights w ∝ ½ (p + q). NaN
    /// where a set is empty.
    pub fn squared_error(&self, a: &[[f64; 2]], b: &[[f64; 2]]) -> f64 {
        if a.is_empty() || b.is_empty() {
            return f64::NAN;
        }
        self.cells(a, b).iter().map(|[p, q, w]| w * (p.ln() - q.ln()).powi(2)).sum()
    }

    /// The Jensen–Shannon divergence on the same cells, with the same weights as
    /// [`squared_error`](Self::squared_error) ("MJS").
    pub fn weighted_js(&self, a: &[[f64; 2]], b: &[[f64; 2]]) -> f64 {
        if a.is_empty() || b.is_empty() {
            return f64::NAN;
        }
        self.cells(a, b)
            .iter()
            .map(|[p, q, w]| {
                let m = 0.5 * (p + q);
                0.5 * w * (p / m * (p / m).ln() + q / m * (q / m).ln())
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::golden::{Golden, close, normal};

    #[test]
    fn errors_as_published() {
        let Some(golden) = Golden::load() else { return };
        let (a, b) = (golden.points("angles_a"), golden.points("angles_b"));
        let pi = std::f64::consts::PI;
        let torus = PmfGrid::new([[-pi, pi]; 2], 64);
        close(torus.squared_error(&a, &b), golden.value("pmf_nbins64_limits_pi"), "PMF");
        close(torus.squared_error(&b, &a), golden.value("pmf_nbins64_limits_pi_swapped"), "PMF, swapped");
        close(torus.weighted_js(&a, &b), golden.value("mjs_nbins64_limits_pi"), "MJS");
        let cut = PmfGrid::new([[-2.45, 1.5], [-1.05, 3.0]], 100);
        close(cut.squared_error(&a, &b), golden.value("pmf_nbins100_limits_cut"), "PMF, cut");
        close(cut.weighted_js(&a, &b), golden.value("mjs_nbins100_limits_cut"), "MJS, cut");
    }

    #[test]
    fn error_of_a_known_tilt() {
        // Two cells of probability ½ against (¾, ¼): Σ w (Δ ln p)² with w = (⅝, ⅜).
        let grid = PmfGrid::new([[0.0, 2.0], [0.0, 1.0]], 4);
        let points = |left: usize| (0..4).map(|i| [if i < left { 0.5 } else { 1.5 }, 0.25]).collect::<Vec<_>>();
        let want = 0.625 * 1.5f64.ln().powi(2) + 0.375 * 0.5f64.ln().powi(2);
        assert!((grid.squared_error(&points(2), &points(3)) - want).abs() < 1e-15);
        // A cell that one set never saw has 10⁻⁶ in its place.
        let (p, q) = (1.0 + UNSEEN, 1.0 + UNSEEN);
        let want = (0.5 * p / (0.5 * p + 0.5 * q) + 0.5) * UNSEEN.ln().powi(2);
        assert!((grid.squared_error(&points(0), &points(4)) - want).abs() < 1e-12);
        // Points outside have cells of their own.
        assert!(grid.squared_error(&[[-5.0, 0.5]], &[[9.0, 0.5]]) > 100.0);
        assert_eq!(grid.squared_error(&[[-5.0, 0.5]], &[[-9.0, 0.5]]), 0.0);
        assert!(grid.squared_error(&[], &points(1)).is_nan());
    }

    #[test]
    fn equal_distributions_differ_by_noise_only() {
        let points = |stream: u32, n: u64| (0..n).map(|i| normal(i, stream)).collect::<Vec<_>>();
        let grid = PmfGrid::new([[-2.0, 2.0]; 2], 12);
        // For cells with many counts the error is Σ p (1/np + 1/nq) ≈ cells (1/N + 1/M).
        let got = grid.squared_error(&points(0, 100_000), &points(1, 50_000));
        let want = 144.0 * (1.0 / 100_000.0 + 1.0 / 50_000.0);
        assert!((got / want - 1.0).abs() < 0.5, "{got} for {want}");
    }
}
