//! What happens to rows of features between matrix products: activation, layer normalisation.

use super::attention::total;
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{Lanes, SimdReal, dispatch};

/// Added to variances.
const EPSILON: f64 = 1e-6;

/// `y = silu(x)` and `slope = silu′(x)`.
pub(super) fn silu<T: SimdReal>(x: &[T], y: &mut [T], slope: &mut [T]) {
    dispatch(Silu { x, y, slope });
}

struct Silu<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
    slope: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Silu<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let one = T::Of::<S>::lit(t, 1.0);
        let x = T::Of::<S>::slice(t, self.x);
        let (y, slope) = (T::Of::<S>::slice_mut(t, self.y), T::Of::<S>::slice_mut(t, self.slope));
        for ((&x, y), slope) in x.iter().zip(y).zip(slope) {
            let s = (one + (-x).exp()).recip();
            let value = x * s;
            *y = value;
            *slope = (one - s).mul_add(value, s);
        }
    }
}

/// `x *= y`.
pub(super) fn multiply<T: SimdReal>(x: &mut [T], y: &[T]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x = *x * y;
    }
}

/// `x += y`.
pub(super) fn add<T: SimdReal>(x: &mut [T], y: &[T]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Layer normalisation of rows of `scale.len()`: `x` becomes `scale (x − mean)/σ + bias`, and what its gradient needs is kept.
pub(super) struct Normalise<'a, T> {
    pub(super) scale: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) x: &'a mut [T],
    /// `(x − mean)/σ`
    pub(super) unit: &'a mut [T],
    /// `1/σ` by row.
    pub(super) inverse: &'a mut [T],
}

impl<T: SimdReal> Normalise<'_, T> {
    pub(super) fn run(self) {
        dispatch(self);
    }
}

impl<T: SimdReal> WithSimd for Normalise<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        normalise::<T::Of<S>>(t, self);
    }
}

#[inline(always)]
fn normalise<V: Lanes>(t: V::Token, op: Normalise<'_, V::Scalar>) {
    let f = op.scale.len();
    let (scale, bias) = (V::slice(t, op.scale), V::slice(t, op.bias));
    let count = 1.0 / f as f64;
    for ((x, unit), inverse) in op.x.chunks_exact_mut(f).zip(op.unit.chunks_exact_mut(f)).zip(op.inverse) {
        let (x, unit) = (V::slice_mut(t, x), V::slice_mut(t, unit));
        let mut sum = V::zero(t);
        for &x in x.iter() {
            sum += x;
        }
        let mean = V::lit(t, total(sum).to_f64() * count);
        let mut squares = V::zero(t);
        for (u, &x) in unit.iter_mut().zip(x.iter()) {
            *u = x - mean;
            squares = u.mul_add(*u, squares);
        }
        let i = 1.0 / (total(squares).to_f64() * count + EPSILON).sqrt();
        *inverse = V::Scalar::from_f64(i);
        let i = V::splat(t, *inverse);
        for (((x, u), &scale), &bias) in x.iter_mut().zip(unit.iter_mut()).zip(scale).zip(bias) {
            *u = *u * i;
            *x = u.mul_add(scale, bias);
        }
    }
}

/// Gradient of [`Normalise`]: `g` becomes the gradient of what went in.
pub(super) struct NormaliseBack<'a, T> {
    pub(super) scale: &'a [T],
    pub(super) unit: &'a [T],
    pub(super) inverse: &'a [T],
    pub(super) g: &'a mut [T],
}

impl<T: SimdReal> NormaliseBack<'_, T> {
    pub(super) fn run(self) {
        dispatch(self);
    }
}

impl<T: SimdReal> WithSimd for NormaliseBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        normalise_back::<T::Of<S>>(t, self);
    }
}

#[inline(always)]
fn normalise_back<V: Lanes>(t: V::Token, op: NormaliseBack<'_, V::Scalar>) {
    let f = op.scale.len();
    let scale = V::slice(t, op.scale);
    let count = 1.0 / f as f64;
    for ((g, unit), &inverse) in op.g.chunks_exact_mut(f).zip(op.unit.chunks_exact(f)).zip(op.inverse) {
        let (g, unit) = (V::slice_mut(t, g), V::slice(t, unit));
        let (mut sum, mut along) = (V::zero(t), V::zero(t));
        for ((g, &scale), &u) in g.iter_mut().zip(scale).zip(unit) {
            *g = *g * scale;
            sum += *g;
            along = g.mul_add(u, along);
        }
        let mean = V::lit(t, total(sum).to_f64() * count);
        let along = V::lit(t, -total(along).to_f64() * count);
        let i = V::splat(t, inverse);
        for (g, &u) in g.iter_mut().zip(unit) {
            *g = i * along.mul_add(u, *g - mean);
        }
    }
}
