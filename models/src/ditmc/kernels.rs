//! What lies between matrix products: curves, layer norms, modulation by the condition, and the reverse of each.
//!
//! Rows of features are whole vectors long.

use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal};

/// Added to variances (flax).
const EPSILON: f64 = 1e-6;

/// Room for `rows` rows of `width`.
pub(super) fn reserve<T: SimdReal>(buffer: &mut AlignedBuffer<T>, rows: usize, width: usize) {
    buffer.reserve(rows * width);
}

/// The curve of a perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// `x/(1 + e^−x)` (S. Elfwing et al.).
    Silu,
    /// `x (1 + tanh z)/2` with `z = √(2/π) (x + 0.044715 x³)`: the GELU of D. Hendrycks and K. Gimpel in its tanh form.
    Gelu,
}

/// z of the GELU is `LINE x + CUBE x³`: √(2/π), and 0.044715 times that.
pub(super) const GELU_LINE: f64 = 0.797_884_560_802_865_4;
pub(super) const GELU_CUBE: f64 = 0.044_715 * GELU_LINE;

/// Value and slope of a curve.
#[inline(always)]
fn curve<V: Lanes>(t: V::Token, activation: Activation, x: V) -> (V, V) {
    let one = V::lit(t, 1.0);
    match activation {
        Activation::Silu => {
            let s = one / (one + (-x).exp());
            let y = x * s;
            (y, y.mul_add(one - s, s))
        }
        Activation::Gelu => {
            // (1 + tanh z)/2 = 1/(1 + e^−2z).
            let square = x * x;
            let z2 = x * square.mul_add(V::lit(t, 2.0 * GELU_CUBE), V::lit(t, 2.0 * GELU_LINE));
            let s = one / (one + (-z2).exp());
            let slope = square.mul_add(V::lit(t, 6.0 * GELU_CUBE), V::lit(t, 2.0 * GELU_LINE));
            let y = x * s;
            (y, (y * (one - s)).mul_add(slope, s))
        }
    }
}

/// `y = curve(x)`.
pub(super) struct Curve<'a, T> {
    pub(super) activation: Activation,
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Curve<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (x, y) = (T::Of::<S>::slice(t, self.x), T::Of::<S>::slice_mut(t, self.y));
        match self.activation {
            Activation::Silu => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = curve::<T::Of<S>>(t, Activation::Silu, x).0;
                }
            }
            Activation::Gelu => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = curve::<T::Of<S>>(t, Activation::Gelu, x).0;
                }
            }
        }
    }
}

/// The reverse of [`Curve`]: `g` is multiplied by the slope at `x`, and `y` becomes the value.
pub(super) struct CurveBack<'a, T> {
    pub(super) activation: Activation,
    pub(super) x: &'a [T],
    pub(super) g: &'a mut [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for CurveBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (g, y) = (T::Of::<S>::slice_mut(t, self.g), T::Of::<S>::slice_mut(t, self.y));
        for ((g, y), &x) in g.iter_mut().zip(y).zip(T::Of::<S>::slice(t, self.x)) {
            let (value, slope) = curve::<T::Of<S>>(t, self.activation, x);
            *y = value;
            *g = *g * slope;
        }
    }
}

/// Mean of a row and one over its standard deviation.
#[inline(always)]
fn moments<V: Lanes>(t: V::Token, x: &[V]) -> (V, V) {
    let n = V::lit(t, 1.0 / (x.len() * V::LANES) as f64);
    let mut sum = V::zero(t);
    for &x in x {
        sum += x;
    }
    let mean = V::splat(t, sum.total()) * n;
    let mut square = V::zero(t);
    for &x in x {
        let d = x - mean;
        square = d.mul_add(d, square);
    }
    let variance = V::splat(t, square.total()) * n;
    (mean, V::lit(t, 1.0) / (variance + V::lit(t, EPSILON)).sqrt())
}

/// `y = x̂ scale + bias` with `x̂ = (x − mean)/deviation` of each row (J. L. Ba et al., *Layer normalization*, 2016).
pub(super) struct Norm<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) x: &'a [T],
    pub(super) scale: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Norm<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (scale, bias) = (T::Of::<S>::slice(t, self.scale), T::Of::<S>::slice(t, self.bias));
        for (x, y) in self.x.chunks_exact(self.width).zip(self.y.chunks_exact_mut(self.width)).take(self.rows) {
            let (x, y) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice_mut(t, y));
            let (mean, inverse) = moments::<T::Of<S>>(t, x);
            for (((y, &x), &s), &b) in y.iter_mut().zip(x).zip(scale).zip(bias) {
                *y = ((x - mean) * inverse).mul_add(s, b);
            }
        }
    }
}

/// The reverse of [`Norm`]; gradients of scale and bias are added.
pub(super) struct NormBack<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) x: &'a [T],
    pub(super) scale: &'a [T],
    pub(super) g: &'a [T],
    pub(super) gx: &'a mut [T],
    pub(super) gscale: &'a mut [T],
    pub(super) gbias: &'a mut [T],
}

impl<T: SimdReal> WithSimd for NormBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let scale = T::Of::<S>::slice(t, self.scale);
        let gscale = T::Of::<S>::slice_mut(t, self.gscale);
        let gbias = T::Of::<S>::slice_mut(t, self.gbias);
        let width = self.width;
        let n = T::Of::<S>::lit(t, 1.0 / width as f64);
        let rows = self.x.chunks_exact(width).zip(self.g.chunks_exact(width)).zip(self.gx.chunks_exact_mut(width));
        for ((x, g), gx) in rows.take(self.rows) {
            let (x, g, gx) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice(t, g), T::Of::<S>::slice_mut(t, gx));
            let (mean, inverse) = moments::<T::Of<S>>(t, x);
            let (mut sum, mut dot) = (T::Of::<S>::zero(t), T::Of::<S>::zero(t));
            for k in 0..x.len() {
                let unit = (x[k] - mean) * inverse;
                gscale[k] = g[k].mul_add(unit, gscale[k]);
                gbias[k] += g[k];
                let gu = g[k] * scale[k];
                sum += gu;
                dot = gu.mul_add(unit, dot);
            }
            let sum = T::Of::<S>::splat(t, sum.total()) * n;
            let dot = T::Of::<S>::splat(t, dot.total()) * n;
            for k in 0..x.len() {
                let unit = (x[k] - mean) * inverse;
                gx[k] = inverse * (g[k] * scale[k] - sum - unit * dot);
            }
        }
    }
}

/// Where a modulation lies: row `condition[i]` of `[C, stride]` for atom `i`, its columns from `scale` and from `shift` on.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) condition: &'a [u32],
    pub(super) stride: usize,
    pub(super) scale: usize,
    pub(super) shift: usize,
}

/// `y = x̂ (1 + scale) + shift`, a layer norm whose affine part depends on the condition (W. Peebles and S. Xie, *Scalable diffusion
/// models with transformers*, ICCV 2023).
pub(super) struct Modulate<'a, T> {
    pub(super) width: usize,
    pub(super) columns: Columns<'a>,
    pub(super) modulation: &'a [T],
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Modulate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let Columns { condition, stride, scale, shift } = self.columns;
        let one = T::Of::<S>::lit(t, 1.0);
        for ((x, y), &c) in self.x.chunks_exact(self.width).zip(self.y.chunks_exact_mut(self.width)).zip(condition) {
            let m = &self.modulation[c as usize * stride..];
            let scale = T::Of::<S>::slice(t, &m[scale..scale + self.width]);
            let shift = T::Of::<S>::slice(t, &m[shift..shift + self.width]);
            let (x, y) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice_mut(t, y));
            let (mean, inverse) = moments::<T::Of<S>>(t, x);
            for (((y, &x), &s), &b) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = ((x - mean) * inverse).mul_add(one + s, b);
            }
        }
    }
}

/// The reverse of [`Modulate`]: adds to the gradients of `x` and of the modulation.
pub(super) struct ModulateBack<'a, T> {
    pub(super) width: usize,
    pub(super) columns: Columns<'a>,
    pub(super) modulation: &'a [T],
    pub(super) x: &'a [T],
    pub(super) g: &'a [T],
    pub(super) gx: &'a mut [T],
    pub(super) gmodulation: &'a mut [T],
}

impl<T: SimdReal> WithSimd for ModulateBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let Columns { condition, stride, scale, shift } = self.columns;
        let (width, one) = (self.width, T::Of::<S>::lit(t, 1.0));
        let n = T::Of::<S>::lit(t, 1.0 / width as f64);
        let rows = self.x.chunks_exact(width).zip(self.g.chunks_exact(width)).zip(self.gx.chunks_exact_mut(width));
        for (((x, g), gx), &c) in rows.zip(condition) {
            let first = c as usize * stride;
            let factor = T::Of::<S>::slice(t, &self.modulation[first + scale..first + scale + width]);
            let (x, g, gx) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice(t, g), T::Of::<S>::slice_mut(t, gx));
            let (mean, inverse) = moments::<T::Of<S>>(t, x);
            let (mut sum, mut dot) = (T::Of::<S>::zero(t), T::Of::<S>::zero(t));
            let gscale = T::Of::<S>::slice_mut(t, &mut self.gmodulation[first + scale..first + scale + width]);
            for k in 0..x.len() {
                let unit = (x[k] - mean) * inverse;
                gscale[k] = g[k].mul_add(unit, gscale[k]);
                let gu = g[k] * (one + factor[k]);
                sum += gu;
                dot = gu.mul_add(unit, dot);
            }
            let gshift = T::Of::<S>::slice_mut(t, &mut self.gmodulation[first + shift..first + shift + width]);
            for k in 0..x.len() {
                gshift[k] += g[k];
            }
            let sum = T::Of::<S>::splat(t, sum.total()) * n;
            let dot = T::Of::<S>::splat(t, dot.total()) * n;
            for k in 0..x.len() {
                let unit = (x[k] - mean) * inverse;
                gx[k] += inverse * (g[k] * (one + factor[k]) - sum - unit * dot);
            }
        }
    }
}

/// `y = x + α u` with α in the modulation's columns from `alpha` on.
pub(super) struct Gate<'a, T> {
    pub(super) width: usize,
    pub(super) condition: &'a [u32],
    pub(super) stride: usize,
    pub(super) alpha: usize,
    pub(super) modulation: &'a [T],
    pub(super) x: &'a [T],
    pub(super) u: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Gate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let w = self.width;
        let rows = self.x.chunks_exact(w).zip(self.u.chunks_exact(w)).zip(self.y.chunks_exact_mut(w));
        for (((x, u), y), &c) in rows.zip(self.condition) {
            let alpha = T::Of::<S>::slice(t, &self.modulation[c as usize * self.stride + self.alpha..][..w]);
            let (x, u, y) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice(t, u), T::Of::<S>::slice_mut(t, y));
            for k in 0..x.len() {
                y[k] = alpha[k].mul_add(u[k], x[k]);
            }
        }
    }
}

/// The reverse of [`Gate`]: `gu = α g`; the gradient of α is added. That of `x` is `g` itself.
pub(super) struct GateBack<'a, T> {
    pub(super) width: usize,
    pub(super) condition: &'a [u32],
    pub(super) stride: usize,
    pub(super) alpha: usize,
    pub(super) modulation: &'a [T],
    pub(super) u: &'a [T],
    pub(super) g: &'a [T],
    pub(super) gu: &'a mut [T],
    pub(super) gmodulation: &'a mut [T],
}

impl<T: SimdReal> WithSimd for GateBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let w = self.width;
        let rows = self.u.chunks_exact(w).zip(self.g.chunks_exact(w)).zip(self.gu.chunks_exact_mut(w));
        for (((u, g), gu), &c) in rows.zip(self.condition) {
            let first = c as usize * self.stride + self.alpha;
            let alpha = T::Of::<S>::slice(t, &self.modulation[first..first + w]);
            let galpha = T::Of::<S>::slice_mut(t, &mut self.gmodulation[first..first + w]);
            let (u, g, gu) = (T::Of::<S>::slice(t, u), T::Of::<S>::slice(t, g), T::Of::<S>::slice_mut(t, gu));
            for k in 0..u.len() {
                galpha[k] = g[k].mul_add(u[k], galpha[k]);
                gu[k] = alpha[k] * g[k];
            }
        }
    }
}

/// `y += x`.
pub(super) struct Add<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Add<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        for (y, &x) in T::Of::<S>::slice_mut(t, self.y).iter_mut().zip(T::Of::<S>::slice(t, self.x)) {
            *y += x;
        }
    }
}
