//! What happens to rows of features between products. Rows have whole vectors of features; those that pad a row stay zero.

use scorefield_integrators::simd::{Lanes, MAX_LANES};
use scorefield_integrators::{Real, simd::SimdReal};

/// Added to variances by the layer normalisation.
pub(super) const EPSILON: f64 = 1e-6;

/// Sum over lanes, as a balanced tree.
#[inline(always)]
pub(super) fn total<V: Lanes>(v: V) -> V::Scalar {
    let mut a = [V::Scalar::default(); MAX_LANES];
    v.store(&mut a);
    let mut n = V::LANES;
    while n > 1 {
        n /= 2;
        for l in 0..n {
            a[l] += a[l + n];
        }
    }
    a[0]
}

/// Largest lane.
#[inline(always)]
fn largest<V: Lanes>(v: V) -> V::Scalar {
    let mut a = [V::Scalar::default(); MAX_LANES];
    v.store(&mut a);
    let mut n = V::LANES;
    while n > 1 {
        n /= 2;
        for l in 0..n {
            a[l] = if a[l] < a[l + n] { a[l + n] } else { a[l] };
        }
    }
    a[0]
}

/// `1/(1 + e^−x)`.
#[inline(always)]
fn sigmoid<V: Lanes>(x: V) -> V {
    let one = V::lit(x.token(), 1.0);
    (one + (-x).exp()).recip()
}

/// `x σ(x)` into `y`, and its derivative over `x`.
#[inline(always)]
pub(super) fn swish<V: Lanes>(t: V::Token, x: &mut [V::Scalar], y: &mut [V::Scalar]) {
    let one = V::lit(t, 1.0);
    for (x, y) in V::slice_mut(t, x).iter_mut().zip(V::slice_mut(t, y)) {
        let s = sigmoid(*x);
        let value = *x * s;
        *y = value;
        *x = (one - s).mul_add(value, s);
    }
}

/// Value and derivative of GELU by its tanh approximation, `x σ(2z)` with `z = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
fn gelu_of<V: Lanes>(x: V) -> (V, V) {
    const ROOT: f64 = 1.595_769_121_605_730_7; // 2 √(2/π)
    const CUBIC: f64 = 0.044_715;
    let t = x.token();
    let square = x * x;
    let s = sigmoid(x * square.mul_add(V::lit(t, ROOT * CUBIC), V::lit(t, ROOT)));
    let value = x * s;
    // σ + x σ (1 − σ) d(2z)/dx
    let slope = square.mul_add(V::lit(t, 3.0 * ROOT * CUBIC), V::lit(t, ROOT));
    (value, (value * (V::lit(t, 1.0) - s)).mul_add(slope, s))
}

/// GELU into `y`, and its derivative over `x`.
#[inline(always)]
pub(super) fn gelu<V: Lanes>(t: V::Token, x: &mut [V::Scalar], y: &mut [V::Scalar]) {
    for (x, y) in V::slice_mut(t, x).iter_mut().zip(V::slice_mut(t, y)) {
        (*y, *x) = gelu_of(*x);
    }
}

/// GELU of one row contracted with two vectors; its derivative goes over `x`.
#[inline(always)]
pub(super) fn gelu_contracted<V: Lanes>(t: V::Token, x: &mut [V::Scalar], first: &[V::Scalar], second: &[V::Scalar]) -> [V::Scalar; 2] {
    let (mut a, mut b) = (V::zero(t), V::zero(t));
    for ((x, &f), &s) in V::slice_mut(t, x).iter_mut().zip(V::slice(t, first)).zip(V::slice(t, second)) {
        let (value, slope) = gelu_of(*x);
        a = value.mul_add(f, a);
        b = value.mul_add(s, b);
        *x = slope;
    }
    [total(a), total(b)]
}

/// `x = (a first + b second) x`.
#[inline(always)]
pub(super) fn scale_by_two<V: Lanes>(
    t: V::Token,
    x: &mut [V::Scalar],
    a: V::Scalar,
    first: &[V::Scalar],
    b: V::Scalar,
    second: &[V::Scalar],
) {
    let (a, b) = (V::splat(t, a), V::splat(t, b));
    for ((x, &f), &s) in V::slice_mut(t, x).iter_mut().zip(V::slice(t, first)).zip(V::slice(t, second)) {
        *x = a.mul_add(f, b * s) * *x;
    }
}

/// `x *= y`.
#[inline(always)]
pub(super) fn multiply<V: Lanes>(t: V::Token, x: &mut [V::Scalar], y: &[V::Scalar]) {
    for (x, &y) in V::slice_mut(t, x).iter_mut().zip(V::slice(t, y)) {
        *x = *x * y;
    }
}

/// `a · b`.
#[inline(always)]
pub(super) fn dot<V: Lanes>(t: V::Token, a: &[V::Scalar], b: &[V::Scalar]) -> V::Scalar {
    let mut sum = V::zero(t);
    for (&a, &b) in V::slice(t, a).iter().zip(V::slice(t, b)) {
        sum = a.mul_add(b, sum);
    }
    total(sum)
}

/// Layer normalisation without its affine part, which is folded into what follows: `unit = (x − mean)/σ` and `1/σ`, row by row.
/// `valid` is one for features and zero for padding, `features` how many there are.
#[inline(always)]
pub(super) fn normalise<V: Lanes>(
    t: V::Token,
    x: &[V::Scalar],
    valid: &[V::Scalar],
    features: usize,
    unit: &mut [V::Scalar],
    inverse: &mut [V::Scalar],
) {
    let wide = valid.len();
    let valid = V::slice(t, valid);
    let count = 1.0 / features as f64;
    for ((x, unit), inverse) in x.chunks_exact(wide).zip(unit.chunks_exact_mut(wide)).zip(inverse) {
        let (x, unit) = (V::slice(t, x), V::slice_mut(t, unit));
        let mut sum = V::zero(t);
        for &x in x {
            sum += x;
        }
        let mean = V::lit(t, total(sum).to_f64() * count);
        let mut squares = V::zero(t);
        for ((u, &x), &valid) in unit.iter_mut().zip(x).zip(valid) {
            *u = (x - mean) * valid;
            squares = u.mul_add(*u, squares);
        }
        *inverse = V::Scalar::from_f64(1.0 / (total(squares).to_f64() * count + EPSILON).sqrt());
        let i = V::splat(t, *inverse);
        for u in unit {
            *u = *u * i;
        }
    }
}

/// Adds to `g` the gradient that goes through [`normalise`], for gradients `du` of `unit` whose mean is zero: matrices that
/// act on `unit` are centred, which changes nothing as the mean of `unit` is zero.
#[inline(always)]
pub(super) fn normalise_back<V: Lanes>(
    t: V::Token,
    du: &[V::Scalar],
    unit: &[V::Scalar],
    inverse: &[V::Scalar],
    features: usize,
    wide: usize,
    g: &mut [V::Scalar],
) {
    let count = -1.0 / features as f64;
    for (((du, unit), &inverse), g) in du.chunks_exact(wide).zip(unit.chunks_exact(wide)).zip(inverse).zip(g.chunks_exact_mut(wide)) {
        let along = V::lit(t, dot::<V>(t, du, unit).to_f64() * count);
        let i = V::splat(t, inverse);
        for ((g, &du), &u) in V::slice_mut(t, g).iter_mut().zip(V::slice(t, du)).zip(V::slice(t, unit)) {
            *g = i.mul_add(along.mul_add(u, du), *g);
        }
    }
}

/// A residual gate: `s a + (1 − s) r` with `s = σ(w_a · a + w_r · r)`.
pub(super) struct Gate<'a, T> {
    /// Weights of the new and of the old features.
    pub(super) weights: [&'a [T]; 2],
    /// New features, by row.
    pub(super) new: &'a [T],
    /// Old features, by row, over and over again where there are fewer.
    pub(super) old: &'a [T],
}

impl<T: SimdReal> Gate<'_, T> {
    /// The result, and `s` by row.
    #[inline(always)]
    pub(super) fn forward<V: Lanes<Scalar = T>>(&self, t: V::Token, result: &mut [T], s: &mut [T]) {
        let wide = self.weights[0].len();
        let old = self.old.chunks_exact(wide).cycle();
        for (((new, old), result), s) in self.new.chunks_exact(wide).zip(old).zip(result.chunks_exact_mut(wide)).zip(s) {
            *s = sigmoid_of::<V>(t, dot::<V>(t, self.weights[0], new) + dot::<V>(t, self.weights[1], old));
            let s = V::splat(t, *s);
            for ((to, &a), &r) in V::slice_mut(t, result).iter_mut().zip(V::slice(t, new)).zip(V::slice(t, old)) {
                *to = s.mul_add(a - r, r);
            }
        }
    }

    /// From the gradient `g` of the result that of the new features; `g` becomes that of the old ones.
    #[inline(always)]
    pub(super) fn back<V: Lanes<Scalar = T>>(&self, t: V::Token, s: &[T], g: &mut [T], to_new: &mut [T]) {
        let wide = self.weights[0].len();
        let old = self.old.chunks_exact(wide).cycle();
        let [wa, wr] = [V::slice(t, self.weights[0]), V::slice(t, self.weights[1])];
        for ((((new, old), g), to_new), &s) in
            self.new.chunks_exact(wide).zip(old).zip(g.chunks_exact_mut(wide)).zip(to_new.chunks_exact_mut(wide)).zip(s)
        {
            let (new, old, g) = (V::slice(t, new), V::slice(t, old), V::slice_mut(t, g));
            let mut along = V::zero(t);
            for ((&a, &r), &g) in new.iter().zip(old).zip(g.iter()) {
                along = (a - r).mul_add(g, along);
            }
            let one = T::from_f64(1.0);
            let slope = V::splat(t, total(along) * s * (one - s));
            let (s, rest) = (V::splat(t, s), V::splat(t, one - s));
            for (((g, to), &wa), &wr) in g.iter_mut().zip(V::slice_mut(t, to_new)).zip(wa).zip(wr) {
                *to = slope.mul_add(wa, s * *g);
                *g = slope.mul_add(wr, rest * *g);
            }
        }
    }
}

/// [`sigmoid`] of one number.
#[inline(always)]
pub(super) fn sigmoid_of<V: Lanes>(t: V::Token, x: V::Scalar) -> V::Scalar {
    let mut lanes = [V::Scalar::default(); MAX_LANES];
    sigmoid(V::splat(t, x)).store(&mut lanes);
    lanes[0]
}

/// Softmax of each row of `valid.len()`; lanes that are not valid become zero.
#[inline(always)]
pub(super) fn softmax<V: Lanes>(t: V::Token, rows: &mut [V::Scalar], valid: &[V::Scalar]) {
    let least = V::lit(t, -1e30);
    let half = V::lit(t, 0.5);
    for row in rows.chunks_exact_mut(valid.len()) {
        let (row, valid) = (V::slice_mut(t, row), V::slice(t, valid));
        let mut most = least;
        for (&x, &valid) in row.iter().zip(valid) {
            most = most.max(V::select(half.lt(valid), x, least));
        }
        let most = V::splat(t, largest(most));
        let mut sum = V::zero(t);
        for (x, &valid) in row.iter_mut().zip(valid) {
            *x = (*x - most).exp() * valid;
            sum += *x;
        }
        let scale = V::splat(t, V::Scalar::from_f64(1.0) / total(sum));
        for x in row {
            *x = *x * scale;
        }
    }
}

/// Gradient of [`softmax`]: from that of its result that of its argument, in place.
#[inline(always)]
pub(super) fn softmax_back<V: Lanes>(t: V::Token, a: &[V::Scalar], g: &mut [V::Scalar], wide: usize) {
    for (a, g) in a.chunks_exact(wide).zip(g.chunks_exact_mut(wide)) {
        let mean = V::splat(t, dot::<V>(t, a, g));
        for (g, &a) in V::slice_mut(t, g).iter_mut().zip(V::slice(t, a)) {
            *g = a * (*g - mean);
        }
    }
}
