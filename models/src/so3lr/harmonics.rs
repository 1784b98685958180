//! Real spherical harmonics of degrees 1 to 4 and their gradients.
//!
//! As polynomials in the components of a unit vector, normalised so that `Σ_m Y_lm² = (2l+1)/4π`. The order and the signs
//! within a degree do not matter to a network that only ever uses sums over `m` of products of two of them.

/// Number of components of degrees 1 to 4.
pub(super) const ORDERS: usize = 24;
/// Where each degree begins.
pub(super) const STARTS: [usize; 5] = [0, 3, 8, 15, 24];

/// A polynomial and its partial derivatives.
type Jet = [f64; 4];

fn add(a: Jet, b: Jet) -> Jet {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
}

fn times(a: Jet, b: Jet) -> Jet {
    [a[0] * b[0], a[1] * b[0] + a[0] * b[1], a[2] * b[0] + a[0] * b[2], a[3] * b[0] + a[0] * b[3]]
}

fn scaled(s: f64, a: Jet) -> Jet {
    [s * a[0], s * a[1], s * a[2], s * a[3]]
}

/// `√((2l+1)/4π · (l−m)!/(l+m)!)`, times √2 for `m > 0`.
const NORMS: [[f64; 5]; 4] = [
    [0.4886025119029199, 0.48860251190292, 0.0, 0.0, 0.0],
    [0.6307831305050401, 0.36418281019735976, 0.18209140509867988, 0.0, 0.0],
    [0.7463526651802308, 0.3046971996429772, 0.09635371475468515, 0.03933623932844291, 0.0],
    [0.8462843753216345, 0.2676186174229157, 0.063078313050504, 0.016858388283618388, 0.005960340337611203],
];

/// Values of all components at the unit vector `u`, and their gradients with respect to its components where those vary
/// freely.
pub(super) fn harmonics(u: [f64; 3], values: &mut [f64; ORDERS], gradients: &mut [[f64; 3]; ORDERS]) {
    let (x, y, z): (Jet, Jet, Jet) = ([u[0], 1.0, 0.0, 0.0], [u[1], 0.0, 1.0, 0.0], [u[2], 0.0, 0.0, 1.0]);
    let one: Jet = [1.0, 0.0, 0.0, 0.0];
    // Re and Im of (x + iy)^m.
    let mut power = [(one, [0.0; 4]); 5];
    for m in 1..5 {
        let (re, im) = power[m - 1];
        power[m] = (add(times(re, x), scaled(-1.0, times(im, y))), add(times(re, y), times(im, x)));
    }
    let z2 = times(z, z);
    // d^m P_l/dz^m.
    let constant = |c: f64| scaled(c, one);
    let legendre: [[Jet; 5]; 4] = [
        [z, one, [0.0; 4], [0.0; 4], [0.0; 4]],
        [add(scaled(1.5, z2), constant(-0.5)), scaled(3.0, z), constant(3.0), [0.0; 4], [0.0; 4]],
        [times(z, add(scaled(2.5, z2), constant(-1.5))), add(scaled(7.5, z2), constant(-1.5)), scaled(15.0, z), constant(15.0), [0.0; 4]],
        [
            add(times(z2, add(scaled(4.375, z2), constant(-3.75))), constant(0.375)),
            times(z, add(scaled(17.5, z2), constant(-7.5))),
            add(scaled(52.5, z2), constant(-7.5)),
            scaled(105.0, z),
            constant(105.0),
        ],
    ];
    let mut k = 0;
    for l in 0..4 {
        for m in 0..l + 2 {
            let p = scaled(NORMS[l][m], legendre[l][m]);
            let parts = if m == 0 { [p, p] } else { [times(p, power[m].0), times(p, power[m].1)] };
            for part in parts.iter().take(if m == 0 { 1 } else { 2 }) {
                values[k] = part[0];
                gradients[k] = [part[1], part[2], part[3]];
                k += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_orthogonality_and_gradients() {
        let eval = |u: [f64; 3]| {
            let (mut v, mut g) = ([0.0; ORDERS], [[0.0; 3]; ORDERS]);
            harmonics(u, &mut v, &mut g);
            (v, g)
        };
        let unit = |a: [f64; 3]| {
            let n = (a[0] * a[0] + a[1] * a[1] + a[2] * a[2]).sqrt();
            a.map(|c| c / n)
        };
        let (u, w) = (unit([0.3, -0.5, 0.9]), unit([-0.7, 0.2, 0.4]));
        let (v, g) = eval(u);
        let (o, _) = eval(w);
        let c: f64 = (0..3).map(|k| u[k] * w[k]).sum();
        let legendre = [c, 1.5 * c * c - 0.5, 2.5 * c.powi(3) - 1.5 * c, (35.0 * c.powi(4) - 30.0 * c * c + 3.0) / 8.0];
        for l in 0..4 {
            // The addition theorem fixes normalisation and orthogonality at once.
            let sum: f64 = (STARTS[l]..STARTS[l + 1]).map(|m| v[m] * o[m]).sum();
            let want = (2 * l + 3) as f64 / (4.0 * std::f64::consts::PI) * legendre[l];
            assert!((sum - want).abs() < 1e-14, "degree {}: {sum} {want}", l + 1);
        }
        for a in 0..3 {
            let mut moved = [u, u];
            moved[0][a] += 1e-5;
            moved[1][a] -= 1e-5;
            let (plus, minus) = (eval(moved[0]).0, eval(moved[1]).0);
            for k in 0..ORDERS {
                assert!(((plus[k] - minus[k]) / 2e-5 - g[k][a]).abs() < 1e-7);
            }
        }
    }
}
