//! What happens to rows of features between matrix products, for values and their tangents.
//!
//! Arrays are *stacked*: the first `m` rows are values, and where `dual` is set `m` rows of tangents follow them, the derivatives of the
//! values along one direction per configuration. Gradients are stacked in the same way: first those with respect to values, then
//! those with respect to tangents. For `y = f(x)` and its tangent `ẏ = f′(x) ẋ`, reverse differentiation of both gives
//!
//! ```text
//! x̄ += f′(x) ȳ + f″(x) ẋ ẏ̄ ,   ẋ̄ += f′(x) ẏ̄
//! ```

use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{Lanes, SimdReal, dispatch};

/// Added to variances by layer normalisation.
const EPSILON: f64 = 1e-6;

/// Declares a kernel: its arguments, and `run`, which calls a function of vectors compiled for the instruction set in use.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* } => $body:ident) => {
        $(#[$doc])*
        pub(super) struct $name<'a, T> {
            $($(#[$field_doc])* pub(super) $field: $type,)*
        }

        impl<T: SimdReal> $name<'_, T> {
            pub(super) fn run(self) {
                dispatch(self);
            }
        }

        impl<T: SimdReal> WithSimd for $name<'_, T> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, t: S) {
                $body::<T::Of<S>>(t, self);
            }
        }
    };
}
pub(super) use kernel;

/// A row of a stacked array.
#[inline(always)]
pub(super) fn row<V: Lanes>(t: V::Token, from: &[V::Scalar], r: usize, stride: usize, width: usize) -> &[V] {
    V::slice(t, &from[r * stride..][..width])
}

/// A row of a stacked array, mutably.
#[inline(always)]
pub(super) fn row_mut<V: Lanes>(t: V::Token, from: &mut [V::Scalar], r: usize, stride: usize, width: usize) -> &mut [V] {
    V::slice_mut(t, &mut from[r * stride..][..width])
}

/// Row `r` and the row of its tangent, mutably.
#[inline(always)]
pub(super) fn two_rows_mut<V: Lanes>(
    t: V::Token,
    from: &mut [V::Scalar],
    r: usize,
    m: usize,
    stride: usize,
    width: usize,
) -> (&mut [V], &mut [V]) {
    let (values, tangents) = from.split_at_mut(m * stride);
    (V::slice_mut(t, &mut values[r * stride..][..width]), V::slice_mut(t, &mut tangents[r * stride..][..width]))
}

/// Which function an [`Activation`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// `x σ(x)`
    Swish,
    /// `x σ(w(x))` with `w = √(8/π) (x + 0.044715 x³)`: GELU in its tanh approximation.
    Gelu,
}

kernel! {
    /// `y = f(x)`, `ẏ = f′(x) ẋ`, with what their gradients need.
    Activation {
        function: Function,
        dual: bool,
        m: usize,
        stride: usize,
        /// Stacked.
        x: &'a [T],
        /// Stacked.
        y: &'a mut [T],
        /// `f′(x)`
        slope: &'a mut [T],
        /// `f″(x) ẋ`
        bend: &'a mut [T],
    } => activation
}

/// `f(x)`, `f′(x)` and `f″(x)`.
#[inline(always)]
fn activate<V: Lanes>(t: V::Token, function: Function, x: V) -> (V, V, V) {
    let one = V::lit(t, 1.0);
    let (c, kappa) = (1.595_769_121_605_730_8, 0.044_715);
    // w, w′ and w″.
    let (w, w1, w2) = match function {
        Function::Swish => (x, one, V::zero(t)),
        Function::Gelu => {
            let square = x * x;
            let w = x * square.mul_add(V::lit(t, c * kappa), V::lit(t, c));
            (w, square.mul_add(V::lit(t, 3.0 * c * kappa), V::lit(t, c)), x * V::lit(t, 6.0 * c * kappa))
        }
    };
    let s = (one + (-w).exp()).recip();
    let s1 = s * (one - s);
    let inner = w1 * s1;
    // f′ = σ + x w′ σ′, f″ = 2 w′ σ′ + x (w″ σ′ + w′² σ″), σ″ = σ′ (1 − 2σ).
    let first = x.mul_add(inner, s);
    let bent = inner * w1 * (one - (s + s));
    let second = x.mul_add(w2.mul_add(s1, bent), inner + inner);
    (x * s, first, second)
}

#[inline(always)]
fn activation<V: Lanes>(t: V::Token, op: Activation<'_, V::Scalar>) {
    let n = op.m * op.stride;
    let (x, dx) = op.x.split_at(n);
    let (y, dy) = op.y.split_at_mut(n);
    let (x, y, slope) = (V::slice(t, x), V::slice_mut(t, y), V::slice_mut(t, &mut op.slope[..n]));
    if op.dual {
        let (dx, dy, bend) = (V::slice(t, &dx[..n]), V::slice_mut(t, &mut dy[..n]), V::slice_mut(t, &mut op.bend[..n]));
        for (i, &x) in x.iter().enumerate() {
            let (value, first, second) = activate(t, op.function, x);
            y[i] = value;
            slope[i] = first;
            dy[i] = first * dx[i];
            bend[i] = second * dx[i];
        }
    } else {
        for (i, &x) in x.iter().enumerate() {
            let (value, first, _) = activate(t, op.function, x);
            y[i] = value;
            slope[i] = first;
        }
    }
}

kernel! {
    /// Gradient of [`Activation`], in place.
    ActivationBack {
        dual: bool,
        m: usize,
        stride: usize,
        slope: &'a [T],
        bend: &'a [T],
        /// Stacked: of `y` before, of `x` after.
        g: &'a mut [T],
    } => activation_back
}

#[inline(always)]
fn activation_back<V: Lanes>(t: V::Token, op: ActivationBack<'_, V::Scalar>) {
    let n = op.m * op.stride;
    let (g, dg) = op.g.split_at_mut(n);
    let (g, slope) = (V::slice_mut(t, g), V::slice(t, &op.slope[..n]));
    if op.dual {
        let (dg, bend) = (V::slice_mut(t, &mut dg[..n]), V::slice(t, &op.bend[..n]));
        for (i, g) in g.iter_mut().enumerate() {
            *g = bend[i].mul_add(dg[i], slope[i] * *g);
            dg[i] = slope[i] * dg[i];
        }
    } else {
        for (g, &slope) in g.iter_mut().zip(slope) {
            *g = slope * *g;
        }
    }
}

kernel! {
    /// Layer normalisation: `û = (x − mean)/√(variance + ε)` and `y = scale û + bias`, with tangents.
    Normalise {
        dual: bool,
        m: usize,
        width: usize,
        scale: &'a [T],
        bias: &'a [T],
        /// Stacked, rows `stride` apart, as `unit`.
        x: &'a [T],
        stride: usize,
        /// Stacked: `û`.
        unit: &'a mut [T],
        /// `1/√(variance + ε)` of each row.
        inverse: &'a mut [T],
        /// Stacked, rows `y_stride` apart.
        y: &'a mut [T],
        y_stride: usize,
    } => normalise
}

/// Mean of `x`.
#[inline(always)]
fn mean<V: Lanes>(t: V::Token, x: &[V], count: V::Scalar) -> V::Scalar {
    let mut sum = V::zero(t);
    for &x in x {
        sum += x;
    }
    sum.total() * count
}

/// Mean of `x y`.
#[inline(always)]
fn mean_product<V: Lanes>(t: V::Token, x: &[V], y: &[V], count: V::Scalar) -> V::Scalar {
    let mut sum = V::zero(t);
    for (&x, &y) in x.iter().zip(y) {
        sum = x.mul_add(y, sum);
    }
    sum.total() * count
}

#[inline(always)]
fn normalise<V: Lanes>(t: V::Token, op: Normalise<'_, V::Scalar>) {
    let Normalise { dual, m, width, scale, bias, x, stride, unit, inverse, y, y_stride } = op;
    let (scale, bias) = (V::slice(t, &scale[..width]), V::slice(t, &bias[..width]));
    let count = V::Scalar::from_f64(1.0 / width as f64);
    for r in 0..m {
        {
            let x = row::<V>(t, x, r, stride, width);
            let unit = row_mut::<V>(t, unit, r, stride, width);
            let y = row_mut::<V>(t, y, r, y_stride, width);
            let centre = V::splat(t, mean(t, x, count));
            let mut squares = V::zero(t);
            for (u, &x) in unit.iter_mut().zip(x) {
                *u = x - centre;
                squares = u.mul_add(*u, squares);
            }
            let i = 1.0 / ((squares.total() * count).to_f64() + EPSILON).sqrt();
            inverse[r] = V::Scalar::from_f64(i);
            let i = V::splat(t, inverse[r]);
            for (v, u) in unit.iter_mut().enumerate() {
                *u = *u * i;
                y[v] = u.mul_add(scale[v], bias[v]);
            }
        }
        if dual {
            // dû = (ẋ − mean ẋ − û mean(û ẋ))/σ
            let dx = row::<V>(t, x, m + r, stride, width);
            let (unit, tangent) = two_rows_mut::<V>(t, unit, r, m, stride, width);
            let y = row_mut::<V>(t, y, m + r, y_stride, width);
            let centre = V::splat(t, mean(t, dx, count));
            let along = V::splat(t, -mean_product(t, unit, dx, count));
            let i = V::splat(t, inverse[r]);
            for v in 0..dx.len() {
                let u = i * along.mul_add(unit[v], dx[v] - centre);
                tangent[v] = u;
                y[v] = u * scale[v];
            }
        }
    }
}

kernel! {
    /// Gradient of [`Normalise`].
    NormaliseBack {
        dual: bool,
        m: usize,
        width: usize,
        scale: &'a [T],
        x: &'a [T],
        unit: &'a [T],
        inverse: &'a [T],
        stride: usize,
        /// Stacked: gradient of `y`; destroyed.
        g: &'a mut [T],
        g_stride: usize,
        /// Stacked: gradient of `x`, added to.
        to_x: &'a mut [T],
        /// Gradients of scale and bias, added to; `None` where they are not asked for.
        parameters: Option<(&'a mut [T], &'a mut [T])>,
    } => normalise_back
}

/// With `h` the gradient of `û` and `dh` that of its tangent, and `P(v) = v − mean v − û mean(û v)`, which is symmetric:
/// `dû = P(ẋ)/σ`, so `ẋ̄ = P(dh)/σ`; through `û` in `dû`, `h −= (mean(û ẋ) dh + mean(û dh) ẋ)/σ`; and through `1/σ` in both,
/// `x̄ = (P(h) − û mean(dh dû))/σ`.
#[inline(always)]
fn normalise_back<V: Lanes>(t: V::Token, op: NormaliseBack<'_, V::Scalar>) {
    let NormaliseBack { dual, m, width, scale, x, unit, inverse, stride, g, g_stride, to_x, mut parameters } = op;
    let scale = V::slice(t, &scale[..width]);
    let count = V::Scalar::from_f64(1.0 / width as f64);
    for r in 0..m {
        if let Some((to_scale, to_bias)) = &mut parameters {
            let (to_scale, to_bias) = (V::slice_mut(t, &mut to_scale[..width]), V::slice_mut(t, &mut to_bias[..width]));
            let (g0, u) = (row::<V>(t, g, r, g_stride, width), row::<V>(t, unit, r, stride, width));
            for v in 0..g0.len() {
                to_bias[v] += g0[v];
                to_scale[v] = g0[v].mul_add(u[v], to_scale[v]);
            }
            if dual {
                let (g1, u) = (row::<V>(t, g, m + r, g_stride, width), row::<V>(t, unit, m + r, stride, width));
                for v in 0..g1.len() {
                    to_scale[v] = g1[v].mul_add(u[v], to_scale[v]);
                }
            }
        }
        let unit_row = row::<V>(t, unit, r, stride, width);
        let i = V::splat(t, inverse[r]);
        let mut shared = V::zero(t);
        if dual {
            let tangent = row::<V>(t, unit, m + r, stride, width);
            let dx = row::<V>(t, x, m + r, stride, width);
            let (h, dh) = two_rows_mut::<V>(t, g, r, m, g_stride, width);
            for v in 0..dh.len() {
                h[v] = h[v] * scale[v];
                dh[v] = dh[v] * scale[v];
            }
            let along = V::splat(t, mean_product(t, unit_row, dx, count));
            let back = mean_product(t, unit_row, dh, count);
            shared = V::splat(t, mean_product(t, dh, tangent, count));
            let (centre, back) = (V::splat(t, mean(t, dh, count)), V::splat(t, back));
            let to_dx = row_mut::<V>(t, to_x, m + r, stride, width);
            for v in 0..dh.len() {
                to_dx[v] += i * (dh[v] - centre - back * unit_row[v]);
                h[v] -= i * along.mul_add(dh[v], back * dx[v]);
            }
        } else {
            for (h, &scale) in row_mut::<V>(t, g, r, g_stride, width).iter_mut().zip(scale) {
                *h = *h * scale;
            }
        }
        let h = row::<V>(t, g, r, g_stride, width);
        let centre = V::splat(t, mean(t, h, count));
        let along = V::splat(t, mean_product(t, unit_row, h, count)) + shared;
        let to_x = row_mut::<V>(t, to_x, r, stride, width);
        for v in 0..h.len() {
            to_x[v] += i * (h[v] - centre - along * unit_row[v]);
        }
    }
}

kernel! {
    /// Gated residue: with a branch `b` of the old features `n`, `y = n + s (b − n)`, `s = σ(wᵇ · b + wⁿ · n)`.
    Gate {
        dual: bool,
        m: usize,
        width: usize,
        /// All arrays of rows are stacked and have rows `stride` apart.
        stride: usize,
        to_branch: &'a [T],
        to_old: &'a [T],
        branch: &'a [T],
        old: &'a [T],
        y: &'a mut [T],
        /// `s` of each row, and the tangent of its argument.
        gate: &'a mut [T],
    } => gate
}

/// `a · x + b · y`
#[inline(always)]
fn two_dots<V: Lanes>(t: V::Token, a: &[V], x: &[V], b: &[V], y: &[V]) -> V::Scalar {
    let (mut first, mut second) = (V::zero(t), V::zero(t));
    for v in 0..x.len() {
        first = a[v].mul_add(x[v], first);
        second = b[v].mul_add(y[v], second);
    }
    (first + second).total()
}

#[inline(always)]
fn gate<V: Lanes>(t: V::Token, op: Gate<'_, V::Scalar>) {
    let Gate { dual, m, width, stride, to_branch, to_old, branch, old, y, gate } = op;
    let (wb, wn) = (V::slice(t, &to_branch[..width]), V::slice(t, &to_old[..width]));
    for r in 0..m {
        let (b, n) = (row::<V>(t, branch, r, stride, width), row::<V>(t, old, r, stride, width));
        let s = 1.0 / (1.0 + (-two_dots(t, wb, b, wn, n).to_f64()).exp());
        gate[r] = V::Scalar::from_f64(s);
        let s = V::splat(t, gate[r]);
        for (v, y) in row_mut::<V>(t, y, r, stride, width).iter_mut().enumerate() {
            *y = s.mul_add(b[v] - n[v], n[v]);
        }
        if dual {
            let (db, dn) = (row::<V>(t, branch, m + r, stride, width), row::<V>(t, old, m + r, stride, width));
            let dz = two_dots(t, wb, db, wn, dn);
            gate[m + r] = dz;
            let ds = s * (V::lit(t, 1.0) - s) * V::splat(t, dz);
            for (v, y) in row_mut::<V>(t, y, m + r, stride, width).iter_mut().enumerate() {
                *y = ds.mul_add(b[v] - n[v], s.mul_add(db[v] - dn[v], dn[v]));
            }
        }
    }
}

kernel! {
    /// Gradient of [`Gate`].
    GateBack {
        dual: bool,
        m: usize,
        width: usize,
        stride: usize,
        to_branch: &'a [T],
        to_old: &'a [T],
        branch: &'a [T],
        old: &'a [T],
        gate: &'a [T],
        /// Stacked: gradient of `y` before, of the old features after.
        g: &'a mut [T],
        /// Stacked: gradient of the branch.
        to_b: &'a mut [T],
        /// Gradients of both weights, added to; `None` where they are not asked for.
        parameters: Option<(&'a mut [T], &'a mut [T])>,
    } => gate_back
}

#[inline(always)]
fn gate_back<V: Lanes>(t: V::Token, op: GateBack<'_, V::Scalar>) {
    let GateBack { dual, m, width, stride, to_branch, to_old, branch, old, gate, g, to_b, mut parameters } = op;
    let (wb, wn) = (V::slice(t, &to_branch[..width]), V::slice(t, &to_old[..width]));
    let one = V::Scalar::from_f64(1.0);
    for r in 0..m {
        let (b, n) = (row::<V>(t, branch, r, stride, width), row::<V>(t, old, r, stride, width));
        let s = gate[r];
        let slope = s * (one - s);
        // Gradients of z, of ż, and the tangent of s.
        let (mut gz, mut gdz, mut ds) = (V::Scalar::default(), V::Scalar::default(), V::Scalar::default());
        if dual {
            let (db, dn) = (row::<V>(t, branch, m + r, stride, width), row::<V>(t, old, m + r, stride, width));
            let (g0, g1) = (row::<V>(t, g, r, stride, width), row::<V>(t, g, m + r, stride, width));
            let (mut to_s, mut to_ds) = (V::zero(t), V::zero(t));
            for v in 0..b.len() {
                let delta = b[v] - n[v];
                to_s = g0[v].mul_add(delta, g1[v].mul_add(db[v] - dn[v], to_s));
                to_ds = g1[v].mul_add(delta, to_ds);
            }
            let (to_s, to_ds) = (to_s.total(), to_ds.total());
            let dz = gate[m + r];
            ds = slope * dz;
            gdz = slope * to_ds;
            gz = slope * to_s + ds * (one - s - s) * to_ds;
        } else {
            let g0 = row::<V>(t, g, r, stride, width);
            let mut to_s = V::zero(t);
            for v in 0..b.len() {
                to_s = g0[v].mul_add(b[v] - n[v], to_s);
            }
            gz += slope * to_s.total();
        }
        let (s, ds, vz, vdz) = (V::splat(t, s), V::splat(t, ds), V::splat(t, gz), V::splat(t, gdz));
        if dual {
            let (g0, g1) = two_rows_mut::<V>(t, g, r, m, stride, width);
            let (b0, b1) = two_rows_mut::<V>(t, to_b, r, m, stride, width);
            for v in 0..b.len() {
                let delta = s.mul_add(g0[v], ds * g1[v]);
                let tangent = s * g1[v];
                b0[v] = vz.mul_add(wb[v], delta);
                b1[v] = vdz.mul_add(wb[v], tangent);
                g0[v] = vz.mul_add(wn[v], g0[v] - delta);
                g1[v] = vdz.mul_add(wn[v], g1[v] - tangent);
            }
        } else {
            let (g0, b0) = (row_mut::<V>(t, g, r, stride, width), row_mut::<V>(t, to_b, r, stride, width));
            for v in 0..b.len() {
                let delta = s * g0[v];
                b0[v] = vz.mul_add(wb[v], delta);
                g0[v] = vz.mul_add(wn[v], g0[v] - delta);
            }
        }
        if let Some((to_wb, to_wn)) = &mut parameters {
            let (to_wb, to_wn) = (V::slice_mut(t, &mut to_wb[..width]), V::slice_mut(t, &mut to_wn[..width]));
            for v in 0..b.len() {
                to_wb[v] = vz.mul_add(b[v], to_wb[v]);
                to_wn[v] = vz.mul_add(n[v], to_wn[v]);
            }
            if dual {
                let (db, dn) = (row::<V>(t, branch, m + r, stride, width), row::<V>(t, old, m + r, stride, width));
                for v in 0..b.len() {
                    to_wb[v] = vdz.mul_add(db[v], to_wb[v]);
                    to_wn[v] = vdz.mul_add(dn[v], to_wn[v]);
                }
            }
        }
    }
}
