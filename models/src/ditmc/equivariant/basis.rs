//! What a pair of atoms meets features with: radial functions, gates and harmonics.

use super::couplings::{COMPONENTS, harmonics};
use super::places::RADIAL;
use scorefield_integrators::Real;

/// Reciprocal Bernstein functions `b_k(r) = C(63, k) y^k (1 − y)^(63−k)` with `y = r/(1 + r)`, by the ratio of neighbours, which is
/// `r (63 − k)/(k + 1)`: exact to rounding at any distance.
pub(super) fn radial(r: f64, b: &mut [f64; RADIAL]) {
    let n = RADIAL - 1;
    if r <= 1.0 {
        b[0] = (1.0 + r).powi(-(n as i32));
        for k in 0..n {
            b[k + 1] = b[k] * (r * (n - k) as f64 / (k + 1) as f64);
        }
    } else {
        let inverse = 1.0 / r;
        b[n] = (1.0 + inverse).powi(-(n as i32));
        for k in (0..n).rev() {
            b[k] = b[k + 1] * (inverse * (k + 1) as f64 / (n - k) as f64);
        }
    }
}

/// Which row of a structure's table a pair has, and whether the row is that of the sender seen from the receiver turned round.
#[derive(Clone, Copy)]
pub(in super::super) struct PairRows {
    pub(in super::super) atoms: usize,
    /// Both directions have rows of their own.
    pub(in super::super) directed: bool,
}

impl PairRows {
    pub(super) fn len(&self) -> usize {
        if self.directed { self.atoms * self.atoms } else { self.atoms * self.atoms.saturating_sub(1) / 2 }
    }

    #[inline(always)]
    pub(in super::super) fn row(&self, receiver: usize, sender: usize) -> (usize, bool) {
        if self.directed {
            return (receiver * self.atoms + sender, false);
        }
        let (a, b) = if receiver < sender { (receiver, sender) } else { (sender, receiver) };
        (a * (2 * self.atoms - a - 1) / 2 + b - a - 1, receiver > sender)
    }

    /// Receiver and sender of every row.
    pub(in super::super) fn pairs(self) -> impl Iterator<Item = (usize, usize)> {
        let n = self.atoms;
        (0..n).flat_map(move |i| (if self.directed { 0 } else { i + 1 }..n).map(move |j| (i, j)))
    }
}

/// Radial functions and harmonics of a pair with the displacement `d` from receiver to sender (Å).
pub(in super::super) fn pair(degree: usize, d: [f64; 3], b: &mut [f64; RADIAL], y: &mut [f64; COMPONENTS]) {
    let r = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt();
    radial(r, b);
    let inverse = if r > 0.0 { 1.0 / r } else { 0.0 };
    harmonics(degree, d.map(|x| x * inverse), y);
}

/// `(1 + g) b`.
pub(super) fn gated<T: Real>(b: &[f64; RADIAL], gate: &[T], to: &mut [T]) {
    for ((to, &b), &g) in to.iter_mut().zip(b).zip(gate) {
        *to = T::from_f64(b * (1.0 + g.to_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn radial_functions_are_bernstein_polynomials() {
        let mut binomial = [1.0f64; RADIAL];
        for k in 1..RADIAL {
            binomial[k] = binomial[k - 1] * (RADIAL - k) as f64 / k as f64;
        }
        for r in [0.0, 0.3, 1.0, 1.7, 6.0, 40.0] {
            let mut b = [0.0; RADIAL];
            radial(r, &mut b);
            let y = r / (1.0 + r);
            for (k, b) in b.iter().enumerate() {
                let exact = binomial[k] * y.powi(k as i32) * (1.0 - y).powi((RADIAL - 1 - k) as i32);
                assert!((b - exact).abs() < 1e-13 * exact + 1e-290, "{r} {k}: {b} {exact}");
            }
            assert!((b.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        // Even where atoms are a micrometre apart nothing overflows.
        let mut b = [0.0; RADIAL];
        radial(1e4, &mut b);
        assert!(b.iter().all(|b| b.is_finite()) && (b.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn every_pair_has_its_row() {
        for (atoms, directed) in [(1, false), (2, false), (5, false), (4, true)] {
            let rows = PairRows { atoms, directed };
            let mut count = 0;
            for (row, (i, j)) in rows.pairs().enumerate() {
                assert_eq!(rows.row(i, j), (row, false));
                assert!(directed || rows.row(j, i) == (row, true));
                count += 1;
            }
            assert_eq!(count, rows.len());
        }
    }
}
