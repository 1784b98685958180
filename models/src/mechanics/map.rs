//! Correction maps of two torsions as OpenMM interpolates them: periodic cubic splines give the slopes at the grid's points, a
//! bicubic polynomial on each patch has these values and slopes at its corners.

use super::model::Map;
use super::terms::Patch;

/// Coefficients of 1, t, t², t³ from values and slopes at 0 and 1.
fn hermite([f0, f1, d0, d1]: [f64; 4]) -> [f64; 4] {
    [f0, d0, 3.0 * (f1 - f0) - 2.0 * d0 - d1, 2.0 * (f0 - f1) + d0 + d1]
}

/// Slopes at the points of the periodic cubic spline through `y`, spacing 1: `dᵢ₋₁ + 4 dᵢ + dᵢ₊₁ = 3 (yᵢ₊₁ − yᵢ₋₁)`.
fn spline_slopes(y: &[f64]) -> Vec<f64> {
    let n = y.len();
    let right: Vec<f64> = (0..n).map(|i| 3.0 * (y[(i + 1) % n] - y[(i + n - 1) % n])).collect();
    // The corners of the cyclic matrix are a product of two vectors, `u = (−4, 0 …, 1)` and `v = (1, 0 …, −¼)` (Sherman and
    // Morrison); what remains is tridiagonal.
    let solve = |right: &[f64]| {
        let diagonal = |i: usize| {
            if i == 0 {
                8.0
            } else if i == n - 1 {
                4.25
            } else {
                4.0
            }
        };
        let (mut above, mut x) = (vec![0.0; n], vec![0.0; n]);
        for i in 0..n {
            let (before, value) = if i == 0 { (0.0, 0.0) } else { (above[i - 1], x[i - 1]) };
            let pivot = diagonal(i) - before;
            above[i] = 1.0 / pivot;
            x[i] = (right[i] - value) / pivot;
        }
        for i in (0..n - 1).rev() {
            x[i] -= above[i] * x[i + 1];
        }
        x
    };
    let mut u = vec![0.0; n];
    (u[0], u[n - 1]) = (-4.0, 1.0);
    let (x, z) = (solve(&right), solve(&u));
    let dot = |x: &[f64]| x[0] - 0.25 * x[n - 1];
    let factor = dot(&x) / (1.0 + dot(&z));
    x.iter().zip(&z).map(|(x, z)| x - factor * z).collect()
}

/// Coefficients `c[4 a + b]` of `uᵃ vᵇ` on every patch, `u` and `v` from 0 to 1 along the first and the second torsion; patch
/// `i + size j` begins at point `(i, j)`.
pub(super) fn patches(map: &Map) -> Vec<Patch<f64>> {
    let n = map.size;
    let rows = |y: &[f64]| -> Vec<f64> { y.chunks_exact(n).flat_map(spline_slopes).collect() };
    let transposed = |y: &[f64]| -> Vec<f64> { (0..n * n).map(|k| y[(k % n) * n + k / n]).collect() };
    let columns = |y: &[f64]| transposed(&rows(&transposed(y)));
    let f = &map.energy;
    let (fu, fv) = (rows(f), columns(f));
    let fuv = rows(&fv);
    (0..n * n)
        .map(|k| {
            let (i, j) = (k % n, k / n);
            let corner = |y: &[f64], a: usize, b: usize| y[(i + a) % n + n * ((j + b) % n)];
            // Along v at both ends in u: values and slopes, of f and of its slope in u.
            let along =
                |y: &[f64], slope: &[f64], a: usize| hermite([corner(y, a, 0), corner(y, a, 1), corner(slope, a, 0), corner(slope, a, 1)]);
            let (f0, f1, d0, d1) = (along(f, &fv, 0), along(f, &fv, 1), along(&fu, &fuv, 0), along(&fu, &fuv, 1));
            let mut patch = [0.0; 16];
            for b in 0..4 {
                for (a, c) in hermite([f0[b], f1[b], d0[b], d1[b]]).into_iter().enumerate() {
                    patch[4 * a + b] = c;
                }
            }
            patch
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_a_sine() {
        for n in [3, 4, 24, 100] {
            let turn = std::f64::consts::TAU / n as f64;
            let y: Vec<f64> = (0..n).map(|i| (turn * i as f64 + 0.3).sin()).collect();
            let d = spline_slopes(&y);
            for i in 0..n {
                let left = d[(i + n - 1) % n] + 4.0 * d[i] + d[(i + 1) % n];
                assert!((left - 3.0 * (y[(i + 1) % n] - y[(i + n - 1) % n])).abs() < 1e-13, "{n}");
                if n >= 24 {
                    assert!((d[i] / turn - (turn * i as f64 + 0.3).cos()).abs() < 0.1 * turn.powi(4), "{n}");
                }
            }
        }
    }
}
