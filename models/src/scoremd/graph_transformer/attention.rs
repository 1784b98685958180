//! Attention between all beads of a configuration, with the parts that come from edges.
//!
//! The published network adds an embedding `e_ij = M (x_j − x_i) + c` of the edge to keys and values of bead j when bead i asks.
//! What does not depend on j drops out of the softmax, and the weights of values sum to one, so that with `k_j + M x_j` and
//! `v_j + M x_j` in place of keys and values
//!
//! ```text
//! o_i = Σ_j a_ij (v_j + M x_j) + c − M x_i ,   a_ij = softmax_j( q_i · (k_j + M x_j) / √64 )
//! ```
//!
//! is the same function without anything per edge.
//!
//! Rows of `qkv` are `[q, k + M x, v + M x]` of one bead, each of 8 heads of 64. Weights `a` and what belongs to them are
//! `[N][lanes]`: for each of the configuration's N beads that is looked at, all beads of the block that look, times heads.

use super::super::config::{HEAD_WIDTH, HEADS};
use super::super::kernels::{kernel, row, row_mut};
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{Lanes, SimdReal, dispatch};

/// Width of all heads.
pub(super) const INNER: usize = HEADS * HEAD_WIDTH;
/// Vectors that are summed at once.
const CHUNK: usize = 4;
/// 1/√64.
const SCALE: f64 = 0.125;

kernel! {
    /// `q̇ = 0`, `k̇ = v̇ = M ẋ`: tangents where the features of beads do not depend on coordinates.
    Positions {
        m: usize,
        /// `[m, 3]`
        x: &'a [T],
        /// `[3, 512]`
        position: &'a [T],
        qkv: &'a mut [T],
        stride: usize,
    } => positions
}

#[inline(always)]
fn positions<V: Lanes>(t: V::Token, op: Positions<'_, V::Scalar>) {
    let n = INNER / V::LANES;
    let [m0, m1, m2] = [0, 1, 2].map(|c| row::<V>(t, op.position, c, INNER, INNER));
    for (r, x) in op.x.chunks_exact(3).take(op.m).enumerate() {
        let [x0, x1, x2] = [V::splat(t, x[0]), V::splat(t, x[1]), V::splat(t, x[2])];
        let to = row_mut::<V>(t, op.qkv, r, op.stride, 3 * INNER);
        to[..n].fill(V::zero(t));
        for v in 0..n {
            let p = x0.mul_add(m0[v], x1.mul_add(m1[v], x2 * m2[v]));
            to[n + v] = p;
            to[2 * n + v] = p;
        }
    }
}

kernel! {
    /// From `[q, k, v]` of the beads of one configuration in the first rows to `[q, k + M x, v + M x]` of all configurations, which
    /// have the same features. The sums are those of a product with `[LN(n), x]`, in its order.
    Repeat {
        beads: usize,
        m: usize,
        /// `[m, 3]`
        x: &'a [T],
        position: &'a [T],
        qkv: &'a mut [T],
        stride: usize,
    } => repeat
}

#[inline(always)]
fn repeat<V: Lanes>(t: V::Token, op: Repeat<'_, V::Scalar>) {
    let (n, stride) = (INNER / V::LANES, op.stride / V::LANES);
    let [m0, m1, m2] = [0, 1, 2].map(|c| row::<V>(t, op.position, c, INNER, INNER));
    let qkv = V::slice_mut(t, op.qkv);
    // The first rows are overwritten last.
    for r in (0..op.m).rev() {
        let x = &op.x[3 * r..][..3];
        let [x0, x1, x2] = [V::splat(t, x[0]), V::splat(t, x[1]), V::splat(t, x[2])];
        let (from, to) = ((r % op.beads) * stride, r * stride);
        for v in 0..n {
            qkv[to + v] = qkv[from + v];
            for part in 1..3 {
                let at = part * n + v;
                qkv[to + at] = x2.mul_add(m2[v], x1.mul_add(m1[v], x0.mul_add(m0[v], qkv[from + at])));
            }
        }
    }
}

kernel! {
    /// Weights and outputs of all heads; stacked, except for weights.
    Attend {
        dual: bool,
        beads: usize,
        /// Beads of the block.
        m: usize,
        /// `[m, 3]`, stacked.
        x: &'a [T],
        position: &'a [T],
        constant: &'a [T],
        qkv: &'a [T],
        stride: usize,
        /// `a`
        weights: &'a mut [T],
        /// `l̇ − Σ_j a l̇`, so that `ȧ = a tilt`.
        tilt: &'a mut [T],
        lanes: usize,
        o: &'a mut [T],
        o_stride: usize,
    } => attend
}

/// `to[h] = scale a_h · b_h` for all heads.
#[inline(always)]
fn head_dots<V: Lanes>(a: &[V], b: &[V], to: &mut [V::Scalar], scale: V::Scalar) {
    let n = HEAD_WIDTH / V::LANES;
    for h in 0..HEADS {
        let (a, b) = (&a[h * n..][..n], &b[h * n..][..n]);
        let mut sum = a[0] * b[0];
        for v in 1..n {
            sum = a[v].mul_add(b[v], sum);
        }
        to[h] = sum.total() * scale;
    }
}

/// `to[h] = scale (a_h · b_h + c_h · d_h)` for all heads.
#[inline(always)]
fn head_dots_2<V: Lanes>(a: &[V], b: &[V], c: &[V], d: &[V], to: &mut [V::Scalar], scale: V::Scalar) {
    let n = HEAD_WIDTH / V::LANES;
    for h in 0..HEADS {
        let (a, b) = (&a[h * n..][..n], &b[h * n..][..n]);
        let (c, d) = (&c[h * n..][..n], &d[h * n..][..n]);
        let mut sum = a[0] * b[0];
        for v in 1..n {
            sum = a[v].mul_add(b[v], sum);
        }
        for v in 0..n {
            sum = c[v].mul_add(d[v], sum);
        }
        to[h] = sum.total() * scale;
    }
}

/// `n` numbers, `step` apart.
#[derive(Clone, Copy)]
struct Every<'a, T> {
    from: &'a [T],
    step: usize,
}

/// `to += Σ_j c_j x_j` over `n` terms for one chunk of a head.
#[inline(always)]
fn add_mixed<V: Lanes>(t: V::Token, n: usize, c: Every<'_, V::Scalar>, x: Every<'_, V::Scalar>, to: &mut [V; CHUNK]) {
    for j in 0..n {
        let c = V::splat(t, c.from[j * c.step]);
        let x = V::slice(t, &x.from[j * x.step..][..CHUNK * V::LANES]);
        for w in 0..CHUNK {
            to[w] = c.mul_add(x[w], to[w]);
        }
    }
}

#[inline(always)]
fn put<V: Lanes>(t: V::Token, to: &mut [V::Scalar], at: usize, sum: &[V; CHUNK]) {
    V::slice_mut(t, &mut to[at..at + CHUNK * V::LANES]).copy_from_slice(sum);
}

#[inline(always)]
fn every<T>(from: &[T], first: usize, step: usize) -> Every<'_, T> {
    Every { from: &from[first..], step }
}

#[inline(always)]
fn attend<V: Lanes>(t: V::Token, op: Attend<'_, V::Scalar>) {
    let Attend { dual, beads, m, x, position, constant, qkv, stride, weights, tilt, lanes, o, o_stride } = op;
    let n = INNER / V::LANES;
    let scale = V::Scalar::from_f64(SCALE);
    for i in 0..m {
        let first = i - i % beads;
        let q = row::<V>(t, qkv, i, stride, INNER);
        for j in 0..beads {
            let k = &row::<V>(t, qkv, first + j, stride, 2 * INNER)[n..];
            let at = j * lanes + i * HEADS;
            head_dots(q, k, &mut weights[at..at + HEADS], scale);
            if dual {
                let dq = row::<V>(t, qkv, m + i, stride, INNER);
                let dk = &row::<V>(t, qkv, m + first + j, stride, 2 * INNER)[n..];
                head_dots_2(dq, k, q, dk, &mut tilt[at..at + HEADS], scale);
            }
        }
    }
    softmax::<V>(t, dual, beads, lanes, weights, tilt);
    let [m0, m1, m2] = [0, 1, 2].map(|c| &position[c * INNER..][..INNER]);
    for i in 0..m {
        let first = i - i % beads;
        for copy in 0..if dual { 2 } else { 1 } {
            let row = copy * m + i;
            let x = &x[3 * row..][..3];
            let [x0, x1, x2] = [V::splat(t, -x[0]), V::splat(t, -x[1]), V::splat(t, -x[2])];
            for c in 0..INNER / (CHUNK * V::LANES) {
                let start = c * CHUNK * V::LANES;
                let head = start / HEAD_WIDTH;
                let part = start..start + CHUNK * V::LANES;
                let mut sum = [V::zero(t); CHUNK];
                let (p0, p1, p2) = (V::slice(t, &m0[part.clone()]), V::slice(t, &m1[part.clone()]), V::slice(t, &m2[part.clone()]));
                if copy == 0 {
                    sum.copy_from_slice(V::slice(t, &constant[part.clone()]));
                }
                for w in 0..CHUNK {
                    sum[w] = x0.mul_add(p0[w], x1.mul_add(p1[w], x2.mul_add(p2[w], sum[w])));
                }
                let values = every(qkv, (copy * m + first) * stride + 2 * INNER + start, stride);
                add_mixed(t, beads, every(weights, i * HEADS + head, lanes), values, &mut sum);
                if copy == 1 {
                    // ȧ = a tilt
                    for j in 0..beads {
                        let at = j * lanes + i * HEADS + head;
                        let c = V::splat(t, weights[at] * tilt[at]);
                        let v = V::slice(t, &qkv[(first + j) * stride + 2 * INNER + start..][..CHUNK * V::LANES]);
                        for w in 0..CHUNK {
                            sum[w] = c.mul_add(v[w], sum[w]);
                        }
                    }
                }
                V::slice_mut(t, &mut o[row * o_stride + start..][..CHUNK * V::LANES]).copy_from_slice(&sum);
            }
        }
    }
}

/// Logits to weights, and tangents of logits to tilts.
#[inline(always)]
fn softmax<V: Lanes>(t: V::Token, dual: bool, beads: usize, lanes: usize, weights: &mut [V::Scalar], tilt: &mut [V::Scalar]) {
    let n = lanes / V::LANES;
    let a = V::slice_mut(t, &mut weights[..beads * lanes]);
    for v in 0..n {
        let mut largest = a[v];
        for j in 1..beads {
            largest = largest.max(a[j * n + v]);
        }
        let mut sum = V::zero(t);
        for j in 0..beads {
            let e = (a[j * n + v] - largest).exp();
            a[j * n + v] = e;
            sum += e;
        }
        let i = sum.recip();
        for j in 0..beads {
            a[j * n + v] = a[j * n + v] * i;
        }
    }
    if dual {
        let tilt = V::slice_mut(t, &mut tilt[..beads * lanes]);
        for v in 0..n {
            let mut mean = V::zero(t);
            for j in 0..beads {
                mean = a[j * n + v].mul_add(tilt[j * n + v], mean);
            }
            for j in 0..beads {
                tilt[j * n + v] -= mean;
            }
        }
    }
}

kernel! {
    /// Gradient of [`Attend`] to `qkv`.
    AttendBack {
        dual: bool,
        /// Whether gradients of queries are asked for.
        queries: bool,
        beads: usize,
        m: usize,
        qkv: &'a [T],
        stride: usize,
        weights: &'a [T],
        tilt: &'a [T],
        lanes: usize,
        /// Stacked: gradient of `o`.
        g: &'a [T],
        g_stride: usize,
        /// Scratch as `weights`: gradients of logits and of their tangents, and tangents of weights.
        to_logits: [&'a mut [T]; 3],
        /// Stacked: gradient of `qkv`.
        to_qkv: &'a mut [T],
    } => attend_back
}

#[inline(always)]
fn attend_back<V: Lanes>(t: V::Token, op: AttendBack<'_, V::Scalar>) {
    let AttendBack { dual, queries, beads, m, qkv, stride, weights, tilt, lanes, g, g_stride, to_logits, to_qkv } = op;
    let [to_logits, to_tangents, rates] = to_logits;
    let n = INNER / V::LANES;
    let one = V::Scalar::from_f64(1.0);
    for i in 0..m {
        let first = i - i % beads;
        let g0 = row::<V>(t, g, i, g_stride, INNER);
        for j in 0..beads {
            let v0 = &row::<V>(t, qkv, first + j, stride, 3 * INNER)[2 * n..];
            let at = j * lanes + i * HEADS;
            if dual {
                let g1 = row::<V>(t, g, m + i, g_stride, INNER);
                let v1 = &row::<V>(t, qkv, m + first + j, stride, 3 * INNER)[2 * n..];
                head_dots(g1, v0, &mut to_tangents[at..at + HEADS], one);
                head_dots_2(g0, v0, g1, v1, &mut to_logits[at..at + HEADS], one);
            } else {
                head_dots(g0, v0, &mut to_logits[at..at + HEADS], one);
            }
        }
    }
    softmax_back::<V>(t, dual, beads, lanes, weights, tilt, to_logits, to_tangents, rates);

    let wide = CHUNK * V::LANES;
    for i in 0..m {
        // Bead i as the one that looks (queries) and as the one that is looked at (keys, values).
        let first = i - i % beads;
        for c in 0..INNER / wide {
            let start = c * wide;
            let head = start / HEAD_WIDTH;
            let looks = i * HEADS + head;
            let seen = (i - first) * lanes + first * HEADS + head;
            let (q0, q1) = (every(qkv, first * stride + start, stride), (m + first) * stride + start);
            let (g0, g1) = (every(g, first * g_stride + start, g_stride), (m + first) * g_stride + start);
            let at = [i * stride + start, (m + i) * stride + start];
            if queries {
                let k0 = every(qkv, first * stride + INNER + start, stride);
                let mut sum = [V::zero(t); CHUNK];
                add_mixed(t, beads, every(to_logits, looks, lanes), k0, &mut sum);
                if dual {
                    let k1 = every(qkv, (m + first) * stride + INNER + start, stride);
                    add_mixed(t, beads, every(to_tangents, looks, lanes), k1, &mut sum);
                    let mut tangent = [V::zero(t); CHUNK];
                    add_mixed(t, beads, every(to_tangents, looks, lanes), k0, &mut tangent);
                    put(t, to_qkv, at[1], &tangent);
                }
                put(t, to_qkv, at[0], &sum);
            }
            let (mut key, mut value) = ([V::zero(t); CHUNK], [V::zero(t); CHUNK]);
            add_mixed(t, beads, every(to_logits, seen, HEADS), q0, &mut key);
            add_mixed(t, beads, every(weights, seen, HEADS), g0, &mut value);
            if dual {
                let (q1, g1) = (every(qkv, q1, stride), every(g, g1, g_stride));
                add_mixed(t, beads, every(to_tangents, seen, HEADS), q1, &mut key);
                add_mixed(t, beads, every(rates, seen, HEADS), g1, &mut value);
                let (mut key, mut value) = ([V::zero(t); CHUNK], [V::zero(t); CHUNK]);
                add_mixed(t, beads, every(to_tangents, seen, HEADS), q0, &mut key);
                add_mixed(t, beads, every(weights, seen, HEADS), g1, &mut value);
                put(t, to_qkv, at[1] + INNER, &key);
                put(t, to_qkv, at[1] + 2 * INNER, &value);
            }
            put(t, to_qkv, at[0] + INNER, &key);
            put(t, to_qkv, at[0] + 2 * INNER, &value);
        }
    }
}

/// From gradients of weights (`to_logits`) and of their tangents (`to_tangents`) to those of logits, which include the factor of
/// the logits; `rates` becomes `ȧ`. With `μ = Σ a ǡ` and `D = ǡ − μ`: `l̇̄ = a D`, and `D tilt` adds to the gradient of `a`, up to a
/// constant that the softmax removes.
#[inline(always)]
fn softmax_back<V: Lanes>(
    t: V::Token,
    dual: bool,
    beads: usize,
    lanes: usize,
    weights: &[V::Scalar],
    tilt: &[V::Scalar],
    to_logits: &mut [V::Scalar],
    to_tangents: &mut [V::Scalar],
    rates: &mut [V::Scalar],
) {
    let n = lanes / V::LANES;
    let all = beads * lanes;
    let scale = V::lit(t, SCALE);
    let (a, to_logits) = (V::slice(t, &weights[..all]), V::slice_mut(t, &mut to_logits[..all]));
    if dual {
        let (tilt, rates) = (V::slice(t, &tilt[..all]), V::slice_mut(t, &mut rates[..all]));
        let to_tangents = V::slice_mut(t, &mut to_tangents[..all]);
        for v in 0..n {
            let mut mean = V::zero(t);
            for j in 0..beads {
                mean = a[j * n + v].mul_add(to_tangents[j * n + v], mean);
            }
            for j in 0..beads {
                let at = j * n + v;
                let d = to_tangents[at] - mean;
                to_logits[at] = d.mul_add(tilt[at], to_logits[at]);
                to_tangents[at] = a[at] * d * scale;
                rates[at] = a[at] * tilt[at];
            }
        }
    }
    for v in 0..n {
        let mut mean = V::zero(t);
        for j in 0..beads {
            mean = a[j * n + v].mul_add(to_logits[j * n + v], mean);
        }
        for j in 0..beads {
            let at = j * n + v;
            to_logits[at] = a[at] * (to_logits[at] - mean) * scale;
        }
    }
}

kernel! {
    /// From gradients of keys, values and outputs to coordinates: `x̄ += Mᵀ (k̄ + v̄ − ō)`.
    ToCoordinates {
        m: usize,
        position: &'a [T],
        to_qkv: &'a [T],
        stride: usize,
        g: &'a [T],
        g_stride: usize,
        /// `[m, 3]`, added to.
        to_x: &'a mut [T],
    } => to_coordinates
}

#[inline(always)]
fn to_coordinates<V: Lanes>(t: V::Token, op: ToCoordinates<'_, V::Scalar>) {
    let n = INNER / V::LANES;
    let [m0, m1, m2] = [0, 1, 2].map(|c| row::<V>(t, op.position, c, INNER, INNER));
    for r in 0..op.m {
        let (qkv, g) = (row::<V>(t, op.to_qkv, r, op.stride, 3 * INNER), row::<V>(t, op.g, r, op.g_stride, INNER));
        let (mut s0, mut s1, mut s2) = (V::zero(t), V::zero(t), V::zero(t));
        for v in 0..n {
            let p = qkv[n + v] + qkv[2 * n + v] - g[v];
            s0 = p.mul_add(m0[v], s0);
            s1 = p.mul_add(m1[v], s1);
            s2 = p.mul_add(m2[v], s2);
        }
        let to_x = &mut op.to_x[3 * r..][..3];
        to_x[0] += s0.total();
        to_x[1] += s1.total();
        to_x[2] += s2.total();
    }
}

kernel! {
    /// The same to `M`, over values and tangents, and to `c`.
    ToPosition {
        /// Rows of all arrays.
        stacked: usize,
        /// Those of values, which alone contain `c`.
        m: usize,
        /// `[stacked, 3]`
        x: &'a [T],
        to_qkv: &'a [T],
        stride: usize,
        g: &'a [T],
        g_stride: usize,
        /// `[3, 512]`, added to.
        to_position: &'a mut [T],
        /// `[512]`, added to.
        to_constant: &'a mut [T],
    } => to_position
}

#[inline(always)]
fn to_position<V: Lanes>(t: V::Token, op: ToPosition<'_, V::Scalar>) {
    let n = INNER / V::LANES;
    let (m0, rest) = V::slice_mut(t, &mut op.to_position[..3 * INNER]).split_at_mut(n);
    let (m1, m2) = rest.split_at_mut(n);
    let constant = V::slice_mut(t, &mut op.to_constant[..INNER]);
    for r in 0..op.stacked {
        let (qkv, g) = (row::<V>(t, op.to_qkv, r, op.stride, 3 * INNER), row::<V>(t, op.g, r, op.g_stride, INNER));
        let x = &op.x[3 * r..][..3];
        let [x0, x1, x2] = [V::splat(t, x[0]), V::splat(t, x[1]), V::splat(t, x[2])];
        for v in 0..n {
            let p = qkv[n + v] + qkv[2 * n + v] - g[v];
            m0[v] = x0.mul_add(p, m0[v]);
            m1[v] = x1.mul_add(p, m1[v]);
            m2[v] = x2.mul_add(p, m2[v]);
        }
        if r < op.m {
            for v in 0..n {
                constant[v] += g[v];
            }
        }
    }
}
