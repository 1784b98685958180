//! The norm and the gate of features that turn, and their reverse.
//!
//! Features of degree l are `[atoms, 2l + 1, width]`.

use super::super::kernels::{Columns, GELU_CUBE, GELU_LINE};
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{Lanes, SimdReal};

/// Added to variances.
const EPSILON: f64 = 1e-6;
/// Squares of norms up to this count as 0.
const SMALLEST: f64 = 1e-6;

/// Calls `$run::<V, M>` for the number of components of a degree.
macro_rules! by_rows {
    ($self:ident, $t:ident, $run:ident) => {
        match $self.rows {
            1 => $self.$run::<T::Of<S>, 1>($t),
            3 => $self.$run::<T::Of<S>, 3>($t),
            5 => $self.$run::<T::Of<S>, 5>($t),
            _ => unreachable!("degrees go up to 2"),
        }
    };
}

/// The components of an atom as vectors of lanes.
#[inline(always)]
fn components<V: Lanes, const M: usize>(t: V::Token, x: &[V::Scalar], width: usize) -> [&[V]; M] {
    let mut out = [V::slice(t, &x[..0]); M];
    for m in 0..M {
        out[m] = V::slice(t, &x[m * width..(m + 1) * width]);
    }
    out
}

/// Norm of every channel.
#[inline(always)]
fn norm<V: Lanes, const M: usize>(t: V::Token, x: &[&[V]; M], k: usize) -> V {
    let mut square = x[0][k] * x[0][k];
    for m in 1..M {
        square = x[m][k].mul_add(x[m][k], square);
    }
    V::select(V::lit(t, SMALLEST).lt(square), square.sqrt(), V::zero(t))
}

/// Mean of the norms and one over their standard deviation.
#[inline(always)]
fn deviation<V: Lanes, const M: usize>(t: V::Token, x: &[&[V]; M]) -> (V, V) {
    let n = V::lit(t, 1.0 / (x[0].len() * V::LANES) as f64);
    let mut sum = V::zero(t);
    for k in 0..x[0].len() {
        sum += norm(t, x, k);
    }
    let mean = V::splat(t, sum.total()) * n;
    let mut square = V::zero(t);
    for k in 0..x[0].len() {
        let d = norm(t, x, k) - mean;
        square = d.mul_add(d, square);
    }
    let variance = V::splat(t, square.total()) * n;
    (mean, V::lit(t, 1.0) / (variance + V::lit(t, EPSILON)).sqrt())
}

/// `y = x (1 + scale)/√(Var ‖x‖ + ε)`, the variance of the norms over the channels of an atom: the layer norm of features that are not
/// plain scalars.
pub(super) struct Scale<'a, T> {
    /// Components of an atom.
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Only the scale is read.
    pub(super) columns: Columns<'a>,
    pub(super) modulation: &'a [T],
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Scale<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        by_rows!(self, t, run)
    }
}

impl<T: SimdReal> Scale<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const M: usize>(&mut self, t: V::Token) {
        let Columns { condition, stride, scale, .. } = self.columns;
        let (w, one) = (self.width, V::lit(t, 1.0));
        for ((x, y), &c) in self.x.chunks_exact(M * w).zip(self.y.chunks_exact_mut(M * w)).zip(condition) {
            let factor = V::slice(t, &self.modulation[c as usize * stride + scale..][..w]);
            let x = components::<V, M>(t, x, w);
            let (_, inverse) = deviation(t, &x);
            let y = V::slice_mut(t, y);
            for m in 0..M {
                for (k, f) in factor.iter().enumerate() {
                    y[m * factor.len() + k] = x[m][k] * (inverse * (one + *f));
                }
            }
        }
    }
}

/// The reverse of [`Scale`]: adds to the gradients of `x` and of the modulation.
pub(super) struct ScaleBack<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) columns: Columns<'a>,
    pub(super) modulation: &'a [T],
    pub(super) x: &'a [T],
    pub(super) g: &'a [T],
    pub(super) gx: &'a mut [T],
    pub(super) gmodulation: &'a mut [T],
}

impl<T: SimdReal> WithSimd for ScaleBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        by_rows!(self, t, run)
    }
}

impl<T: SimdReal> ScaleBack<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const M: usize>(&mut self, t: V::Token) {
        let Columns { condition, stride, scale, .. } = self.columns;
        let (w, one) = (self.width, V::lit(t, 1.0));
        let rows = self.x.chunks_exact(M * w).zip(self.g.chunks_exact(M * w)).zip(self.gx.chunks_exact_mut(M * w));
        for (((x, g), gx), &c) in rows.zip(condition) {
            let first = c as usize * stride + scale;
            let factor = V::slice(t, &self.modulation[first..first + w]);
            let gfactor = V::slice_mut(t, &mut self.gmodulation[first..first + w]);
            let (x, g) = (components::<V, M>(t, x, w), components::<V, M>(t, g, w));
            let gx = V::slice_mut(t, gx);
            let n = factor.len();
            let (mean, inverse) = deviation(t, &x);
            // The gradient of the common factor.
            let mut slope = V::zero(t);
            for k in 0..n {
                let mut dot = x[0][k] * g[0][k];
                for m in 1..M {
                    dot = x[m][k].mul_add(g[m][k], dot);
                }
                gfactor[k] = dot.mul_add(inverse, gfactor[k]);
                slope = dot.mul_add(one + factor[k], slope);
            }
            let slope = V::splat(t, slope.total()) * inverse * inverse * inverse * V::lit(t, 1.0 / w as f64);
            for k in 0..n {
                // d inverse/d x = −inverse³ (‖x‖ − mean)/width · x/‖x‖, where the norm counts.
                let size = norm(t, &x, k);
                let counts = V::zero(t).lt(size);
                let pull = slope * (size - mean) / V::select(counts, size, one);
                let pull = V::select(counts, pull, V::zero(t));
                let straight = inverse * (one + factor[k]);
                for m in 0..M {
                    gx[m * n + k] += straight * g[m][k] - pull * x[m][k];
                }
            }
        }
    }
}

/// `y = (1 + tanh z)/2` with the z of GELU: what scalars open gates by. `slope`: its derivative.
#[inline(always)]
fn opening<V: Lanes>(t: V::Token, x: V) -> (V, V) {
    let one = V::lit(t, 1.0);
    let square = x * x;
    let z2 = x * square.mul_add(V::lit(t, 2.0 * GELU_CUBE), V::lit(t, 2.0 * GELU_LINE));
    let s = one / (one + (-z2).exp());
    let slope = square.mul_add(V::lit(t, 6.0 * GELU_CUBE), V::lit(t, 2.0 * GELU_LINE));
    (s, s * (one - s) * slope)
}

/// `y = (1 + tanh z(x))/2`.
pub(super) struct Opening<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Opening<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        for (y, &x) in T::Of::<S>::slice_mut(t, self.y).iter_mut().zip(T::Of::<S>::slice(t, self.x)) {
            *y = opening(t, x).0;
        }
    }
}

/// The reverse of [`Opening`]: adds to the gradient of `x`.
pub(super) struct OpeningBack<'a, T> {
    pub(super) x: &'a [T],
    pub(super) g: &'a [T],
    pub(super) gx: &'a mut [T],
}

impl<T: SimdReal> WithSimd for OpeningBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (x, g) = (T::Of::<S>::slice(t, self.x), T::Of::<S>::slice(t, self.g));
        for ((gx, &x), &g) in T::Of::<S>::slice_mut(t, self.gx).iter_mut().zip(x).zip(g) {
            *gx = g.mul_add(opening(t, x).1, *gx);
        }
    }
}

/// `y = x · opening` with one opening for all components of an atom.
pub(super) struct Open<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) opening: &'a [T],
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Open<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let w = self.width;
        for ((r, x), y) in self.x.chunks_exact(w).enumerate().zip(self.y.chunks_exact_mut(w)) {
            let s = T::Of::<S>::slice(t, &self.opening[r / self.rows * w..][..w]);
            for ((y, &x), &s) in T::Of::<S>::slice_mut(t, y).iter_mut().zip(T::Of::<S>::slice(t, x)).zip(s) {
                *y = x * s;
            }
        }
    }
}

/// The reverse of [`Open`]: `g` is multiplied by the opening, `y` becomes the value, and the gradient of the opening is added.
pub(super) struct OpenBack<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) opening: &'a [T],
    pub(super) x: &'a [T],
    pub(super) g: &'a mut [T],
    pub(super) y: &'a mut [T],
    pub(super) gopening: &'a mut [T],
}

impl<T: SimdReal> WithSimd for OpenBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let w = self.width;
        for (r, ((x, g), y)) in self.x.chunks_exact(w).zip(self.g.chunks_exact_mut(w)).zip(self.y.chunks_exact_mut(w)).enumerate() {
            let first = r / self.rows * w;
            let s = T::Of::<S>::slice(t, &self.opening[first..first + w]);
            let gs = T::Of::<S>::slice_mut(t, &mut self.gopening[first..first + w]);
            let (x, g, y) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice_mut(t, g), T::Of::<S>::slice_mut(t, y));
            for k in 0..x.len() {
                gs[k] = g[k].mul_add(x[k], gs[k]);
                g[k] = g[k] * s[k];
                y[k] = x[k] * s[k];
            }
        }
    }
}
