//! Spherical harmonics up to degree 2 and the couplings of three degrees.
//!
//! A feature of degree l is a symmetric traceless tensor of rank l, given by its 2l + 1 components in an orthonormal basis. Three degrees
//! couple in at most one way, which is a contraction of such tensors, with the Levi-Civita symbol where the degrees add up to an odd
//! number. Normalised to `Σ C² = 2c + 1` these are the Clebsch–Gordan coefficients of e3x (O. T. Unke, H. Maennel, arXiv 2401.07595):
//! 1, dot/√3, cross/√2.

/// Highest degree.
pub(super) const MOST: usize = 2;
/// Components of all degrees.
pub(in super::super) const COMPONENTS: usize = (MOST + 1) * (MOST + 1);

/// Entry `at` (axes) of the basis tensor `m` of degree `l`.
fn entry(l: usize, m: usize, at: &[usize]) -> f64 {
    let half = std::f64::consts::FRAC_1_SQRT_2;
    match (l, at) {
        (1, &[i]) => f64::from(i == m),
        (2, &[i, j]) if m < 3 => {
            let (a, b) = (m, (m + 1) % 3);
            if (i, j) == (a, b) || (i, j) == (b, a) { half } else { 0.0 }
        }
        (2, &[i, j]) if i == j => {
            let diagonal = if m == 3 { [half, -half, 0.0] } else { [-1.0, -1.0, 2.0].map(|x: f64| x / 6f64.sqrt()) };
            diagonal[i]
        }
        (2, _) => 0.0,
        _ => 1.0,
    }
}

fn levi_civita(i: usize, j: usize, k: usize) -> f64 {
    (i as f64 - j as f64) * (j as f64 - k as f64) * (k as f64 - i as f64) / 2.0
}

/// Coefficients `[2a + 1, 2b + 1, 2c + 1]` with which degrees a and b make degree c; none where they do not.
pub(super) fn coupling(a: usize, b: usize, c: usize) -> Option<Vec<f64>> {
    let odd = (a + b + c) % 2;
    let [ra, rb, rc] = [a.checked_sub(odd)?, b.checked_sub(odd)?, c.checked_sub(odd)?];
    // Axes that two of them share.
    let share = |x: usize, y: usize, z: usize| (x + y).checked_sub(z).map(|n| n / 2);
    let (ab, ac, bc) = (share(ra, rb, rc)?, share(ra, rc, rb)?, share(rb, rc, ra)?);
    let mut all = Vec::with_capacity((2 * a + 1) * (2 * b + 1) * (2 * c + 1));
    let shared = ab + ac + bc;
    for (ma, mb, mc) in (0..2 * a + 1).flat_map(|i| (0..2 * b + 1).flat_map(move |j| (0..2 * c + 1).map(move |k| (i, j, k)))) {
        let mut sum = 0.0;
        for outer in 0..if odd == 1 { 27 } else { 1 } {
            let free = [outer / 9, outer / 3 % 3, outer % 3];
            let sign = if odd == 1 { levi_civita(free[0], free[1], free[2]) } else { 1.0 };
            if sign == 0.0 {
                continue;
            }
            for inner in 0..3usize.pow(shared as u32) {
                let axis = |k: usize| inner / 3usize.pow(k as u32) % 3;
                let at = |which: usize, parts: [std::ops::Range<usize>; 2]| -> Vec<usize> {
                    free[which..which + odd].iter().copied().chain(parts.into_iter().flatten().map(axis)).collect()
                };
                sum += sign
                    * entry(a, ma, &at(0, [0..ab, ab..ab + ac]))
                    * entry(b, mb, &at(1, [0..ab, ab + ac..shared]))
                    * entry(c, mc, &at(2, [ab..ab + ac, ab + ac..shared]));
            }
        }
        all.push(sum);
    }
    let norm = (all.iter().map(|x| x * x).sum::<f64>() / (2 * c + 1) as f64).sqrt();
    all.iter_mut().for_each(|x| *x /= norm);
    Some(all)
}

/// Harmonics of all degrees up to `degree` in the direction of the unit vector `u`, each degree with norm 1 (G. Racah).
pub(super) fn harmonics(degree: usize, u: [f64; 3], to: &mut [f64]) {
    to[0] = 1.0;
    to[1..4].copy_from_slice(&u);
    if degree == 2 {
        for m in 0..5 {
            let all = (0..9).map(|k| entry(2, m, &[k / 3, k % 3]) * u[k / 3] * u[k % 3]);
            to[4 + m] = 1.5f64.sqrt() * all.sum::<f64>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::{Rotation3, Vector3};

    #[test]
    fn couplings_of_vectors_are_products() {
        assert_eq!(coupling(0, 1, 1).unwrap(), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let dot = coupling(1, 1, 0).unwrap();
        assert!((0..9).all(|k| (dot[k] - if k % 4 == 0 { 1.0 / 3f64.sqrt() } else { 0.0 }).abs() < 1e-15));
        let cross = coupling(1, 1, 1).unwrap();
        assert!((0..27).all(|k| (cross[k] - levi_civita(k / 9, k / 3 % 3, k % 3) / 2f64.sqrt()).abs() < 1e-15));
        assert!(coupling(0, 0, 1).is_none() && coupling(0, 2, 1).is_none() && coupling(1, 0, 2).is_none());
        assert_eq!((0..27).filter(|k| coupling(k / 9, k / 3 % 3, k % 3).is_some()).count(), 15);
    }

    /// Turning what goes in turns what comes out; harmonics show how each degree turns.
    #[test]
    fn couplings_turn() {
        let turn = Rotation3::from_scaled_axis(Vector3::new(0.3, -1.1, 0.7));
        let directions = [[0.6, 0.0, 0.8], [1.0, 2.0, -2.0].map(|x: f64| x / 3.0)];
        let of = |u: [f64; 3], turned: bool| {
            let v = if turned { turn * Vector3::from(u) } else { Vector3::from(u) };
            let mut y = [0.0; COMPONENTS];
            harmonics(2, [v.x, v.y, v.z], &mut y);
            assert!((0..3).all(|l| (y[l * l..(l + 1) * (l + 1)].iter().map(|y| y * y).sum::<f64>() - 1.0).abs() < 1e-12));
            y
        };
        for k in 0..27 {
            let (a, b, c) = (k / 9, k / 3 % 3, k % 3);
            let Some(all) = coupling(a, b, c) else { continue };
            // An invariant of three directions.
            let invariant = |turned: bool| {
                let [ya, yb, yc] = [of(directions[0], turned), of(directions[1], turned), of([0.0, 1.0, 0.0], turned)];
                let mut sum = 0.0;
                for (n, coefficient) in all.iter().enumerate() {
                    let (mc, mb, ma) = (n % (2 * c + 1), n / (2 * c + 1) % (2 * b + 1), n / (2 * c + 1) / (2 * b + 1));
                    sum += coefficient * ya[a * a + ma] * yb[b * b + mb] * yc[c * c + mc];
                }
                sum
            };
            assert!((invariant(true) - invariant(false)).abs() < 1e-12, "{a} {b} {c}");
        }
    }
}
