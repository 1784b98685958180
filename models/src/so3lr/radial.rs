//! Radial filters as tables of the distance.
//!
//! Each layer's two radial filters, `D2(silu D1(rbf(r)))`, are `2 F` fixed functions of one number. They are computed once,
//! in double precision with their first and second derivatives, on equally spaced knots, and interpolated by the quintic
//! that matches all three at both ends. That is an energy with two continuous derivatives, and forces are exactly its
//! gradient; its distance from the network is below 1e-9 of the filters' size (tested), far below the weights' own
//! precision. It saves about 9 of 10 floating-point operations of the whole model.

use super::weights::Dense;
use crate::matrix::padded;
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch};

/// Reach of the network in Å.
pub(super) const CUTOFF: f64 = 4.5;
/// Decay of `u = exp(−γ r)` in 1/Å; rounded to single precision when the model was trained.
const GAMMA: f64 = 0.944_863_062_918_464;
/// Intervals of the table.
const INTERVALS: usize = 256;

/// Value, first and second derivative.
pub(super) type Jet = [f64; 3];

/// `C(n, k) u^k (1−u)^(n−k)` with `n + 1` functions and `u = exp(−γ r)`, and their derivatives with respect to `r`.
pub(super) fn bernstein(count: usize, r: f64) -> Vec<Jet> {
    let n = count as i32 - 1;
    let u = (-GAMMA * r).exp();
    let v = -(-GAMMA * r).exp_m1();
    let (u1, u2) = (-GAMMA * u, GAMMA * GAMMA * u);
    let mut binomial = 1.0;
    (0..=n)
        .map(|k| {
            let term = |factor: i32, a: i32, b: i32| if factor == 0 { 0.0 } else { factor as f64 * u.powi(a) * v.powi(b) };
            let m = n - k;
            let d1 = term(k, k - 1, m) - term(m, k, m - 1);
            let d2 = term(k * (k - 1), k - 2, m) - term(2 * k * m, k - 1, m - 1) + term(m * (m - 1), k, m - 2);
            let jet = [binomial * u.powi(k) * v.powi(m), binomial * d1 * u1, binomial * (d2 * u1 * u1 + d1 * u2)];
            binomial *= m as f64 / (k + 1) as f64;
            jet
        })
        .collect()
}

/// `x W + b` of jets.
fn dense(layer: &Dense, x: &[Jet]) -> Vec<Jet> {
    let mut y = vec![[0.0; 3]; layer.outputs];
    for (y, &b) in y.iter_mut().zip(&layer.bias) {
        y[0] = b;
    }
    for (row, x) in layer.kernel.chunks_exact(layer.outputs).zip(x) {
        for (y, &w) in y.iter_mut().zip(row) {
            for d in 0..3 {
                y[d] += w * x[d];
            }
        }
    }
    y
}

/// `silu(a) = a/(1 + exp(−a))` of a jet.
fn silu(a: Jet) -> Jet {
    let s = 1.0 / (1.0 + (-a[0]).exp());
    let d1 = s * (1.0 + a[0] * (1.0 - s));
    let d2 = s * (1.0 - s) * (2.0 + a[0] * (1.0 - 2.0 * s));
    [a[0] * s, d1 * a[1], d2 * a[1] * a[1] + d1 * a[2]]
}

/// One filter `D2(silu D1(rbf(r)))`.
pub(super) fn filter(layers: &[Dense; 2], r: f64) -> Vec<Jet> {
    let hidden: Vec<Jet> = dense(&layers[0], &bernstein(layers[0].inputs, r)).into_iter().map(silu).collect();
    dense(&layers[1], &hidden)
}

/// Radial filters of one layer on knots: `[knot][f, h f′, h² f″][width]`.
#[derive(Clone, Debug)]
pub(super) struct Table<T> {
    width: usize,
    data: AlignedBuffer<T>,
}

/// Both filters of a layer on all knots, in double precision; `shift` is added to the values.
pub(super) fn tabulate(filters: [&[Dense; 2]; 2], shift: &[f64]) -> Vec<f64> {
    let h = CUTOFF / INTERVALS as f64;
    let features = filters[0][1].outputs;
    let mut data = vec![0.0; (INTERVALS + 1) * 6 * features];
    for (knot, rows) in data.chunks_exact_mut(6 * features).enumerate() {
        for (t, layers) in filters.iter().enumerate() {
            for (c, jet) in filter(layers, knot as f64 * h).into_iter().enumerate() {
                let column = t * features + c;
                rows[column] = jet[0] + shift[column];
                rows[2 * features + column] = h * jet[1];
                rows[4 * features + column] = h * h * jet[2];
            }
        }
    }
    data
}

impl<T: SimdReal> Table<T> {
    /// From the knots of [`tabulate`] for `width` functions, a whole number of vectors.
    pub(super) fn new(width: usize, knots: &[f64]) -> Self {
        debug_assert_eq!(width, padded(width));
        let mut data = AlignedBuffer::zeros(knots.len());
        for (to, &from) in data.iter_mut().zip(knots) {
            *to = T::from_f64(from);
        }
        Table { width, data }
    }

    /// Filters `[pairs, width]` at the distances `r` in Å.
    pub(super) fn values(&self, r: &[f64], filters: &mut [T]) {
        dispatch(Values { table: self, r, filters });
    }

    /// `slopes[p] += Σ_c g[p, c] f′_c(r[p])`.
    pub(super) fn slopes(&self, r: &[f64], g: &[T], slopes: &mut [f64]) {
        dispatch(Slopes { table: self, r, g, slopes });
    }

    /// The two knots around `r`, and how far along it is between them.
    #[inline(always)]
    fn interval(&self, r: f64) -> (&[T], f64) {
        let s = r * (INTERVALS as f64 / CUTOFF);
        // A distance that is no number ends as one, through the position in the interval.
        let k = (s as usize).min(INTERVALS - 1);
        (&self.data[3 * self.width * k..][..6 * self.width], s - k as f64)
    }
}

struct Values<'a, T> {
    table: &'a Table<T>,
    r: &'a [f64],
    filters: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Values<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.table.width;
        for (&r, out) in self.r.iter().zip(self.filters.chunks_exact_mut(width)) {
            let (knots, x) = self.table.interval(r);
            let (x2, x3) = (x * x, x * x * x);
            let last = x3 * (10.0 + x * (-15.0 + 6.0 * x));
            let weights = [
                1.0 - last,
                x + x3 * (-6.0 + x * (8.0 - 3.0 * x)),
                0.5 * x2 * (1.0 + x * (-3.0 + x * (3.0 - x))),
                last,
                x3 * (-4.0 + x * (7.0 - 3.0 * x)),
                0.5 * x3 * (1.0 + x * (-2.0 + x)),
            ];
            weigh::<T::Of<S>>(t, knots, width, weights, out);
        }
    }
}

/// `out = Σ_k weights[k] knots[k]`.
#[inline(always)]
fn weigh<V: Lanes>(t: V::Token, knots: &[V::Scalar], width: usize, weights: [f64; 6], out: &mut [V::Scalar]) {
    let [w0, w1, w2, w3, w4, w5] = [
        V::lit(t, weights[0]),
        V::lit(t, weights[1]),
        V::lit(t, weights[2]),
        V::lit(t, weights[3]),
        V::lit(t, weights[4]),
        V::lit(t, weights[5]),
    ];
    let (a, rest) = knots.split_at(3 * width);
    let (a0, a12) = a.split_at(width);
    let (a1, a2) = a12.split_at(width);
    let (b0, b12) = rest.split_at(width);
    let (b1, b2) = b12.split_at(width);
    let out = V::slice_mut(t, out);
    let [a0, a1, a2] = [V::slice(t, a0), V::slice(t, a1), V::slice(t, a2)];
    let [b0, b1, b2] = [V::slice(t, b0), V::slice(t, b1), V::slice(t, b2)];
    for ((((((o, &a0), &a1), &a2), &b0), &b1), &b2) in out.iter_mut().zip(a0).zip(a1).zip(a2).zip(b0).zip(b1).zip(b2) {
        let near = w2.mul_add(a2, w1.mul_add(a1, w0 * a0));
        *o = near + w5.mul_add(b2, w4.mul_add(b1, w3 * b0));
    }
}

struct Slopes<'a, T> {
    table: &'a Table<T>,
    r: &'a [f64],
    g: &'a [T],
    slopes: &'a mut [f64],
}

impl<T: SimdReal> WithSimd for Slopes<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.table.width;
        for ((&r, g), slope) in self.r.iter().zip(self.g.chunks_exact(width)).zip(self.slopes) {
            let (knots, x) = self.table.interval(r);
            let (x2, n) = (x * x, INTERVALS as f64 / CUTOFF);
            let last = x2 * (30.0 + x * (-60.0 + 30.0 * x));
            let weights = [
                -last,
                1.0 + x2 * (-18.0 + x * (32.0 - 15.0 * x)),
                0.5 * x * (2.0 + x * (-9.0 + x * (12.0 - 5.0 * x))),
                last,
                x2 * (-12.0 + x * (28.0 - 15.0 * x)),
                0.5 * x2 * (3.0 + x * (-8.0 + 5.0 * x)),
            ];
            *slope += n * weigh_dot::<T::Of<S>>(t, knots, width, weights, g);
        }
    }
}

/// `Σ_k weights[k] knots[k] · g`.
#[inline(always)]
fn weigh_dot<V: Lanes>(t: V::Token, knots: &[V::Scalar], width: usize, weights: [f64; 6], g: &[V::Scalar]) -> f64
where
    V::Scalar: SimdReal,
{
    let g = V::slice(t, g);
    let mut sum = 0.0;
    for (row, weight) in knots.chunks_exact(width).zip([0, 1, 2, 3, 4, 5]) {
        let mut even = V::zero(t);
        let mut odd = V::zero(t);
        let row = V::slice(t, row);
        for (a, b) in row.as_chunks::<2>().0.iter().zip(g.as_chunks::<2>().0) {
            even = a[0].mul_add(b[0], even);
            odd = a[1].mul_add(b[1], odd);
        }
        sum += weights[weight] * super::attention::total(even + odd).to_f64();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basis_sums_to_one_and_has_right_derivatives() {
        for r in [0.0, 0.3, 1.1, 2.7, 4.4] {
            let b = bernstein(32, r);
            let sum = |d: usize| b.iter().map(|j| j[d]).sum::<f64>();
            assert!((sum(0) - 1.0).abs() < 1e-14 && sum(1).abs() < 1e-11 && sum(2).abs() < 1e-9);
            if r > 0.0 {
                let (p, m) = (bernstein(32, r + 1e-5), bernstein(32, r - 1e-5));
                for k in 0..32 {
                    assert!(((p[k][0] - m[k][0]) / 2e-5 - b[k][1]).abs() < 1e-8);
                    assert!(((p[k][1] - m[k][1]) / 2e-5 - b[k][2]).abs() < 1e-7);
                }
            }
        }
    }
}
