//! Energies and scores of the graph transformer at one time: forward, and backward to the coordinates.
//!
//! Rows are beads, replica by replica. Products with weights take all rows of a block together; attention is within a replica,
//! with lanes over beads for logits and over features for means.

use super::fold::{Attention, Constants, Dense, Folded, Layer, SLOPES, Second, row_len};
use super::product::{Apply, Panels, Product, Start, padded};
use super::rows::{self, Gate, sigmoid_of};
use crate::scoremd::config::HEADS;
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal};

/// Coordinates of a bead as a row of whole vectors.
const POINT: usize = 16;

/// What the way back needs of one layer.
#[derive(Default)]
struct Kept<T> {
    /// Attention weights `[rows, 8, N]`.
    weights: AlignedBuffer<T>,
    /// Normalised features before the attention, and 1/σ.
    unit: [AlignedBuffer<T>; 2],
    inverse: [AlignedBuffer<T>; 2],
    /// `U` and `m`.
    logits: AlignedBuffer<T>,
    /// Output of the attention and of the feed-forward layer, and their gates.
    new: [AlignedBuffer<T>; 2],
    gate: [AlignedBuffer<T>; 2],
    /// Features between the two halves of the layer, and after it.
    nodes: [AlignedBuffer<T>; 2],
    /// Slopes of GELU.
    slope: AlignedBuffer<T>,
}

/// Memory for a block of replicas.
#[derive(Default)]
pub(super) struct Scratch<T> {
    layers: Vec<Kept<T>>,
    /// Ones for features and zeros for padding; the same for beads.
    features: AlignedBuffer<T>,
    beads: AlignedBuffer<T>,
    /// Coordinates, bead by bead and axis by axis.
    points: AlignedBuffer<T>,
    axes: AlignedBuffer<T>,
    /// Rows `[8][h or N][3 · 8]`: means and their gradients, gradients of logits.
    means: AlignedBuffer<T>,
    /// Wide rows of the feed-forward layers.
    hidden: AlignedBuffer<T>,
    /// Gradients: of the features, of what is new in a gate, of normalised features, of weights, of points.
    g: AlignedBuffer<T>,
    new: AlignedBuffer<T>,
    unit: AlignedBuffer<T>,
    logits: AlignedBuffer<T>,
    force: AlignedBuffer<T>,
    /// Normalised features of a replica, transposed.
    turned: AlignedBuffer<T>,
    /// Three coordinates of each head as rows of whole vectors.
    small: [AlignedBuffer<T>; 2],
    /// `s, d · f, d · r` of each bead, and the energy.
    energy: AlignedBuffer<T>,
}

impl<T: SimdReal> Scratch<T> {
    /// Makes room for `replicas`.
    pub(super) fn reserve(&mut self, folded: &Folded<T>, replicas: usize) {
        let (n, h) = (folded.beads, folded.features);
        let (rows, wide, columns) = (replicas * n, padded(h), padded(n));
        self.layers.resize_with(folded.layers.len(), Kept::default);
        for (kept, layer) in self.layers.iter_mut().zip(&folded.layers) {
            kept.weights.reserve(rows * HEADS * columns);
            let later = layer.attention.is_some();
            for half in 0..2 {
                kept.unit[half].reserve(if half == 1 || later { rows * wide } else { 0 });
                kept.inverse[half].reserve(rows);
                kept.new[half].reserve(rows * wide);
                kept.gate[half].reserve(rows);
                kept.nodes[half].reserve(rows * wide);
            }
            kept.logits.reserve(if later { rows * row_len(wide) } else { 0 });
            kept.slope.reserve(rows * padded(4 * h));
        }
        let ones = |to: &mut AlignedBuffer<T>, n: usize| {
            to.reserve(padded(n));
            to[..n].fill(T::from_f64(1.0));
        };
        ones(&mut self.features, h);
        ones(&mut self.beads, n);
        self.points.reserve(rows * POINT);
        self.axes.reserve(replicas * 3 * columns);
        self.means.reserve(rows * row_len(wide.max(n)));
        self.hidden.reserve(rows * padded(4 * h));
        for buffer in [&mut self.g, &mut self.new, &mut self.unit] {
            buffer.reserve(rows * wide);
        }
        self.logits.reserve(HEADS * columns);
        self.force.reserve(rows * POINT);
        self.turned.reserve(wide * columns);
        self.small.iter_mut().for_each(|s| s.reserve(HEADS * POINT));
        self.energy.reserve(rows);
    }
}

/// One evaluation of a block.
pub(super) struct Evaluate<'a, T> {
    pub(super) folded: &'a Folded<T>,
    pub(super) constants: &'a Constants<T>,
    pub(super) scratch: &'a mut Scratch<T>,
    /// Normalised coordinates `[R, N, 3]`, centred.
    pub(super) x: &'a [T],
    /// Energies `[R]`.
    pub(super) energy: Option<&'a mut [f64]>,
    /// Scores `[R, N, 3]`.
    pub(super) score: Option<&'a mut [T]>,
}

impl<T: SimdReal> WithSimd for Evaluate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        evaluate::<T::Of<S>>(t, self);
    }
}

#[inline(always)]
fn apply<T: SimdReal>(dense: &Dense<T>, rows: usize, a: &[T], a_row: usize, c: &mut [T], c_row: usize) {
    Apply { matrix: &dense.forward, rows, a, a_row, start: Start::Bias(&dense.bias), c, c_row }.run();
}

#[inline(always)]
fn back<T: SimdReal>(matrix: &Panels<T>, rows: usize, a: &[T], a_row: usize, c: &mut [T], c_row: usize) {
    Apply { matrix, rows, a, a_row, start: Start::Zero, c, c_row }.run();
}

#[inline(always)]
fn evaluate<V: Lanes>(t: V::Token, op: Evaluate<'_, V::Scalar>)
where
    V::Scalar: SimdReal,
{
    let Evaluate { folded, constants, scratch, x, energy, score } = op;
    let n = folded.beads;
    let replicas = x.len() / (3 * n);
    let (rows, h, wide) = (replicas * n, folded.features, padded(folded.features));
    let wide_hidden = padded(4 * h);
    place_points::<V>(n, x, scratch);

    for l in 0..folded.layers.len() {
        let layer = &folded.layers[l];
        let (before, rest) = scratch.layers.split_at_mut(l);
        let kept = &mut rest[0];
        let old = before.last().map_or(&constants.nodes[..], |b| &b.nodes[1][..rows * wide]);
        match &layer.attention {
            None => {
                let len = row_len(n);
                for r in 0..replicas {
                    let means = &mut scratch.means[r * n * len..(r + 1) * n * len];
                    let weights = &mut kept.weights[r * n * HEADS * padded(n)..(r + 1) * n * HEADS * padded(n)];
                    let points = &scratch.points[r * n * POINT..(r + 1) * n * POINT];
                    let axes = &scratch.axes[r * 3 * padded(n)..(r + 1) * 3 * padded(n)];
                    first_attention::<V>(t, n, constants, points, axes, &scratch.beads, weights, means, &mut scratch.small[0]);
                }
                apply(&constants.out, rows, &scratch.means, len, &mut kept.new[0], wide);
            }
            Some(attention) => {
                let len = row_len(wide);
                rows::normalise::<V>(t, old, &scratch.features, h, &mut kept.unit[0][..rows * wide], &mut kept.inverse[0]);
                apply(&attention.logits, rows, &kept.unit[0], wide, &mut kept.logits, len);
                for r in 0..replicas {
                    let beads = r * n..(r + 1) * n;
                    Attend {
                        n,
                        wide,
                        unit: &kept.unit[0][beads.start * wide..beads.end * wide],
                        logits: &kept.logits[beads.start * len..beads.end * len],
                        points: &scratch.points[beads.start * POINT..beads.end * POINT],
                        axes: &scratch.axes[r * 3 * padded(n)..(r + 1) * 3 * padded(n)],
                        valid: &scratch.beads,
                        weights: &mut kept.weights[beads.start * HEADS * padded(n)..beads.end * HEADS * padded(n)],
                        means: &mut scratch.means[beads.start * len..beads.end * len],
                        turned: &mut scratch.turned,
                        small: &mut scratch.small[0],
                    }
                    .run::<V>(t);
                }
                apply(&attention.out, rows, &scratch.means, len, &mut kept.new[0], wide);
            }
        }
        let [middle, after] = &mut kept.nodes;
        let gate = Gate { weights: [&layer.gate[0], &layer.gate[1]], new: &kept.new[0][..rows * wide], old };
        gate.forward::<V>(t, &mut middle[..rows * wide], &mut kept.gate[0]);
        rows::normalise::<V>(t, &middle[..rows * wide], &scratch.features, h, &mut kept.unit[1][..rows * wide], &mut kept.inverse[1]);
        apply(&layer.first, rows, &kept.unit[1], wide, &mut kept.slope, wide_hidden);
        match &layer.second {
            Second::Full { dense, gate } => {
                rows::gelu::<V>(t, &mut kept.slope[..rows * wide_hidden], &mut scratch.hidden[..rows * wide_hidden]);
                apply(dense, rows, &scratch.hidden, wide_hidden, &mut kept.new[1], wide);
                let gate = Gate { weights: [&gate[0], &gate[1]], new: &kept.new[1][..rows * wide], old: &middle[..rows * wide] };
                gate.forward::<V>(t, &mut after[..rows * wide], &mut kept.gate[1]);
            }
            Second::Energy(c) => {
                // Energies of beads, and at once the gradients of features before and of the hidden features.
                for row in 0..rows {
                    let slope = &mut kept.slope[row * wide_hidden..(row + 1) * wide_hidden];
                    let old = &middle[row * wide..(row + 1) * wide];
                    let [f, gate] = rows::gelu_contracted::<V>(t, slope, &c.energy.0, &c.gate.0);
                    let (f, r) = (f + c.energy.1, rows::dot::<V>(t, &c.decoder, old));
                    let s = sigmoid_of::<V>(t, gate + c.gate.1 + rows::dot::<V>(t, &c.old, old));
                    let rest = V::Scalar::from_f64(1.0) - s;
                    scratch.energy[row] = s * f + rest * r;
                    let along = s * rest * (f - r);
                    rows::scale_by_two::<V>(t, slope, s, &c.energy.0, along, &c.gate.0);
                    let (rest, along) = (V::splat(t, rest), V::splat(t, along));
                    let g = V::slice_mut(t, &mut scratch.g[row * wide..(row + 1) * wide]);
                    for ((g, &d), &w) in g.iter_mut().zip(V::slice(t, &c.decoder)).zip(V::slice(t, &c.old)) {
                        *g = rest.mul_add(d, along * w);
                    }
                }
            }
        }
    }

    if let Some((matrix, bias)) = &folded.scores {
        if let (Some(score), Some(last)) = (score, scratch.layers.last()) {
            let to = padded(3 * n);
            Apply {
                matrix,
                rows: replicas,
                a: &last.nodes[1],
                a_row: n * wide,
                start: Start::Bias(bias),
                c: &mut scratch.means,
                c_row: to,
            }
            .run();
            for (score, from) in score.chunks_exact_mut(3 * n).zip(scratch.means.chunks_exact(to)) {
                score.copy_from_slice(&from[..3 * n]);
            }
        }
        return;
    }
    if let (Some(energy), Some(Layer { second: Second::Energy(c), .. })) = (energy, folded.layers.last()) {
        for (to, beads) in energy.iter_mut().zip(scratch.energy.chunks_exact(n)) {
            *to = beads.iter().map(|e| e.to_f64() + c.bias).sum();
        }
    }
    if let Some(score) = score {
        gradient::<V>(t, folded, constants, scratch, replicas);
        for (score, force) in score.chunks_exact_mut(3).zip(scratch.force.chunks_exact(POINT)) {
            for d in 0..3 {
                score[d] = -force[d];
            }
        }
    }
}

/// `∂E/∂x` into `scratch.force`.
#[inline(always)]
fn gradient<V: Lanes>(
    t: V::Token,
    folded: &Folded<V::Scalar>,
    constants: &Constants<V::Scalar>,
    scratch: &mut Scratch<V::Scalar>,
    replicas: usize,
) where
    V::Scalar: SimdReal,
{
    let (n, h, wide) = (folded.beads, folded.features, padded(folded.features));
    let (rows, columns, wide_hidden) = (replicas * n, padded(folded.beads), padded(4 * h));
    scratch.force[..rows * POINT].fill(V::Scalar::default());
    for l in (0..folded.layers.len()).rev() {
        let layer = &folded.layers[l];
        let (before, rest) = scratch.layers.split_at_mut(l);
        let kept = &rest[0];
        let old = before.last().map_or(&constants.nodes[..], |b| &b.nodes[1][..rows * wide]);
        let g = &mut scratch.g[..rows * wide];
        let hidden = match &layer.second {
            Second::Full { dense, gate } => {
                let gate = Gate { weights: [&gate[0], &gate[1]], new: &kept.new[1][..rows * wide], old: &kept.nodes[0][..rows * wide] };
                gate.back::<V>(t, &kept.gate[1], g, &mut scratch.new);
                back(&dense.back, rows, &scratch.new, wide, &mut scratch.hidden, wide_hidden);
                rows::multiply::<V>(t, &mut scratch.hidden[..rows * wide_hidden], &kept.slope[..rows * wide_hidden]);
                &scratch.hidden
            }
            Second::Energy(_) => &kept.slope,
        };
        back(&layer.first.back, rows, hidden, wide_hidden, &mut scratch.unit, wide);
        rows::normalise_back::<V>(t, &scratch.unit[..rows * wide], &kept.unit[1], &kept.inverse[1], h, wide, g);
        let gate = Gate { weights: [&layer.gate[0], &layer.gate[1]], new: &kept.new[0][..rows * wide], old };
        gate.back::<V>(t, &kept.gate[0], g, &mut scratch.new);
        match &layer.attention {
            None => {
                let len = row_len(n);
                back(&constants.out.back, rows, &scratch.new, wide, &mut scratch.means, len);
                for r in 0..replicas {
                    let beads = r * n..(r + 1) * n;
                    first_attention_back::<V>(
                        t,
                        n,
                        constants,
                        &scratch.axes[r * 3 * columns..(r + 1) * 3 * columns],
                        &kept.weights[beads.start * HEADS * columns..beads.end * HEADS * columns],
                        &scratch.means[beads.start * len..beads.end * len],
                        &mut scratch.logits,
                        &mut scratch.small,
                        &mut scratch.force[beads.start * POINT..beads.end * POINT],
                    );
                }
            }
            Some(Attention { logits, out }) => {
                let len = row_len(wide);
                back(&out.back, rows, &scratch.new, wide, &mut scratch.means, len);
                scratch.unit[..rows * wide].fill(V::Scalar::default());
                for r in 0..replicas {
                    let beads = r * n..(r + 1) * n;
                    AttendBack {
                        n,
                        wide,
                        unit: &kept.unit[0][beads.start * wide..beads.end * wide],
                        logits: &kept.logits[beads.start * len..beads.end * len],
                        points: &scratch.points[beads.start * POINT..beads.end * POINT],
                        axes: &scratch.axes[r * 3 * columns..(r + 1) * 3 * columns],
                        weights: &kept.weights[beads.start * HEADS * columns..beads.end * HEADS * columns],
                        means: &mut scratch.means[beads.start * len..beads.end * len],
                        g_weights: &mut scratch.logits,
                        g_unit: &mut scratch.unit[beads.start * wide..beads.end * wide],
                        force: &mut scratch.force[beads.start * POINT..beads.end * POINT],
                        turned: &mut scratch.turned,
                        small: &mut scratch.small,
                    }
                    .run::<V>(t);
                }
                Apply { matrix: &logits.back, rows, a: &scratch.means, a_row: len, start: Start::Sum, c: &mut scratch.unit, c_row: wide }
                    .run();
                rows::normalise_back::<V>(t, &scratch.unit[..rows * wide], &kept.unit[0], &kept.inverse[0], h, wide, g);
            }
        }
    }
}

/// Coordinates in both layouts.
#[inline(always)]
fn place_points<V: Lanes>(n: usize, x: &[V::Scalar], scratch: &mut Scratch<V::Scalar>)
where
    V::Scalar: SimdReal,
{
    let columns = padded(n);
    for (r, x) in x.chunks_exact(3 * n).enumerate() {
        for (i, point) in x.chunks_exact(3).enumerate() {
            for d in 0..3 {
                scratch.points[(r * n + i) * POINT + d] = point[d];
                scratch.axes[(r * 3 + d) * columns + i] = point[d];
            }
        }
    }
}

/// `to = start + Σ_d slope_d x_d` over beads, for each head.
#[inline(always)]
fn add_slopes<V: Lanes>(t: V::Token, slopes: &[V::Scalar], axes: &[V::Scalar], start: &[V::Scalar], to: &mut [V::Scalar], columns: usize) {
    let axes = V::slice(t, axes);
    let n = columns / V::LANES;
    for ((slope, start), to) in slopes.chunks_exact(3).zip(start.chunks_exact(columns)).zip(to.chunks_exact_mut(columns)) {
        let [a, b, c] = [V::splat(t, slope[0]), V::splat(t, slope[1]), V::splat(t, slope[2])];
        let (start, to) = (V::slice(t, start), V::slice_mut(t, to));
        for v in 0..n {
            to[v] = a.mul_add(axes[v], b.mul_add(axes[n + v], c.mul_add(axes[2 * n + v], start[v])));
        }
    }
}

/// Adds `Σ_d slope_d x_d` over beads, for each head.
#[inline(always)]
fn add_slopes_in_place<V: Lanes>(t: V::Token, slopes: &[V::Scalar], axes: &[V::Scalar], to: &mut [V::Scalar], columns: usize) {
    let axes = V::slice(t, axes);
    let n = columns / V::LANES;
    for (slope, to) in slopes.chunks_exact(3).zip(to.chunks_exact_mut(columns)) {
        let [a, b, c] = [V::splat(t, slope[0]), V::splat(t, slope[1]), V::splat(t, slope[2])];
        let to = V::slice_mut(t, to);
        for v in 0..n {
            to[v] = a.mul_add(axes[v], b.mul_add(axes[n + v], c.mul_add(axes[2 * n + v], to[v])));
        }
    }
}

/// Mean displacements `Σ_j a_ij x_j − x_i` of each head, three numbers each.
#[inline(always)]
fn displacements<T: SimdReal>(n: usize, i: usize, weights: &[T], points: &[T], small: &mut [T], to: &mut [T]) {
    means(n, weights, points, POINT, small, POINT);
    for (to, from) in to.chunks_exact_mut(3).zip(small.chunks_exact(POINT)) {
        for d in 0..3 {
            to[d] = from[d] - points[i * POINT + d];
        }
    }
}

/// `Σ_j a_j b_j` of each head: `a [8, N]` with padded rows, `b [N, wide]`.
#[inline(always)]
fn means<T: SimdReal>(n: usize, a: &[T], b: &[T], wide: usize, c: &mut [T], c_row: usize) {
    let product =
        Product { rows: HEADS, inner: n, columns: wide, a, a_row: padded(n), a_inner: 1, b, b_inner: wide, start: Start::Zero, c, c_row };
    product.run();
}

/// `c_j += Σ_heads a_j b`, the transpose of [`means`].
#[inline(always)]
fn spread<T: SimdReal>(n: usize, a: &[T], b: &[T], b_row: usize, wide: usize, c: &mut [T]) {
    let product = Product {
        rows: n,
        inner: HEADS,
        columns: wide,
        a,
        a_row: 1,
        a_inner: padded(n),
        b,
        b_inner: b_row,
        start: Start::Sum,
        c,
        c_row: wide,
    };
    product.run();
}

/// Attention of the first layer for one replica: rows `[8 N]` of weights and `[8 · 3]` of mean displacements.
#[inline(always)]
fn first_attention<V: Lanes>(
    t: V::Token,
    n: usize,
    constants: &Constants<V::Scalar>,
    points: &[V::Scalar],
    axes: &[V::Scalar],
    valid: &[V::Scalar],
    weights: &mut [V::Scalar],
    means: &mut [V::Scalar],
    small: &mut [V::Scalar],
) where
    V::Scalar: SimdReal,
{
    let columns = padded(n);
    add_slopes_of_all::<V>(t, n, constants, axes, weights);
    rows::softmax::<V>(t, weights, valid);
    for (i, (weights, row)) in weights.chunks_exact(HEADS * columns).zip(means.chunks_exact_mut(row_len(n))).enumerate() {
        // Whole vectors: what is beyond a head's beads is overwritten by the next head.
        for (a, from) in weights.chunks_exact(columns).enumerate() {
            for (v, &from) in V::slice(t, from).iter().enumerate() {
                let first = a * n + v * V::LANES;
                if first < HEADS * n {
                    from.store(&mut row[first..]);
                }
            }
        }
        displacements(n, i, weights, points, small, &mut row[HEADS * n..][..SLOPES]);
    }
}

#[inline(always)]
fn add_slopes_of_all<V: Lanes>(t: V::Token, n: usize, constants: &Constants<V::Scalar>, axes: &[V::Scalar], weights: &mut [V::Scalar]) {
    let columns = padded(n);
    for i in 0..n {
        let range = i * HEADS * columns..(i + 1) * HEADS * columns;
        let slopes = &constants.slopes[i * SLOPES..(i + 1) * SLOPES];
        add_slopes::<V>(t, slopes, axes, &constants.logits[range.clone()], &mut weights[range], columns);
    }
}

/// Three numbers of each head as rows of whole vectors.
#[inline(always)]
fn widen<V: Lanes>(from: &[V::Scalar], to: &mut [V::Scalar]) {
    for (from, to) in from.chunks_exact(3).zip(to.chunks_exact_mut(POINT)) {
        to[0] = from[0];
        to[1] = from[1];
        to[2] = from[2];
    }
}

/// `force_i −= Σ_heads g`, because displacements are from bead `i`.
#[inline(always)]
fn take_from<V: Lanes>(force: &mut [V::Scalar], g: &[V::Scalar]) {
    for g in g.chunks_exact(3) {
        for d in 0..3 {
            force[d] -= g[d];
        }
    }
}

/// Way back through [`first_attention`]: from gradients `means` of its rows to those of the points.
#[inline(always)]
fn first_attention_back<V: Lanes>(
    t: V::Token,
    n: usize,
    constants: &Constants<V::Scalar>,
    axes: &[V::Scalar],
    weights: &[V::Scalar],
    means: &[V::Scalar],
    g: &mut [V::Scalar],
    small: &mut [AlignedBuffer<V::Scalar>; 2],
    force: &mut [V::Scalar],
) where
    V::Scalar: SimdReal,
{
    let columns = padded(n);
    let [displaced, slopes] = small;
    for (i, (weights, row)) in weights.chunks_exact(HEADS * columns).zip(means.chunks_exact(row_len(n))).enumerate() {
        for (a, to) in g.chunks_exact_mut(columns).enumerate() {
            for (v, to) in V::slice_mut(t, to).iter_mut().enumerate() {
                // What is beyond a head's beads is multiplied by weights of zero.
                *to = V::load(t, &row[a * n + v * V::LANES..]);
            }
        }
        let from = &row[HEADS * n..][..SLOPES];
        add_slopes_in_place::<V>(t, from, axes, g, columns);
        rows::softmax_back::<V>(t, weights, g, columns);
        widen::<V>(from, displaced);
        widen::<V>(&constants.slopes[i * SLOPES..(i + 1) * SLOPES], slopes);
        spread(n, weights, displaced, POINT, POINT, force);
        spread(n, g, slopes, POINT, POINT, force);
        take_from::<V>(&mut force[i * POINT..], from);
    }
}

/// Features of a replica with beads side by side.
#[inline(always)]
fn turn<V: Lanes>(n: usize, wide: usize, unit: &[V::Scalar], turned: &mut [V::Scalar]) {
    let columns = padded(n);
    for (j, unit) in unit.chunks_exact(wide).enumerate() {
        for (f, &u) in unit.iter().enumerate() {
            turned[f * columns + j] = u;
        }
    }
}

/// Dot products of each head's row of features with those of every bead, added to `c`.
#[inline(always)]
fn dots<T: SimdReal>(n: usize, wide: usize, a: &[T], turned: &[T], c: &mut [T]) {
    let columns = padded(n);
    let product = Product {
        rows: HEADS,
        inner: wide,
        columns,
        a,
        a_row: wide,
        a_inner: 1,
        b: turned,
        b_inner: columns,
        start: Start::Sum,
        c,
        c_row: columns,
    };
    product.run();
}

/// Attention of a later layer for one replica.
struct Attend<'a, T> {
    n: usize,
    wide: usize,
    unit: &'a [T],
    logits: &'a [T],
    points: &'a [T],
    axes: &'a [T],
    valid: &'a [T],
    weights: &'a mut [T],
    means: &'a mut [T],
    turned: &'a mut [T],
    small: &'a mut [T],
}

impl<T: SimdReal> Attend<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>>(self, t: V::Token) {
        let Attend { n, wide, unit, logits, points, axes, valid, weights, means: rows, turned, small } = self;
        let (columns, len) = (padded(n), row_len(wide));
        turn::<V>(n, wide, unit, turned);
        weights.fill(T::default());
        for (logits, weights) in logits.chunks_exact(len).zip(weights.chunks_exact_mut(HEADS * columns)) {
            add_slopes_in_place::<V>(t, &logits[HEADS * wide..][..SLOPES], axes, weights, columns);
            dots(n, wide, logits, turned, weights);
        }
        rows::softmax::<V>(t, weights, valid);
        for (i, (row, weights)) in rows.chunks_exact_mut(len).zip(weights.chunks_exact(HEADS * columns)).enumerate() {
            means(n, weights, unit, wide, row, wide);
            displacements(n, i, weights, points, small, &mut row[HEADS * wide..][..SLOPES]);
        }
    }
}

/// Way back through [`Attend`]: `means` come as gradients of the means and leave as gradients of logits.
struct AttendBack<'a, T> {
    n: usize,
    wide: usize,
    unit: &'a [T],
    logits: &'a [T],
    points: &'a [T],
    axes: &'a [T],
    weights: &'a [T],
    means: &'a mut [T],
    g_weights: &'a mut [T],
    g_unit: &'a mut [T],
    force: &'a mut [T],
    turned: &'a mut [T],
    small: &'a mut [AlignedBuffer<T>; 2],
}

impl<T: SimdReal> AttendBack<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>>(self, t: V::Token) {
        let AttendBack { n, wide, unit, logits, points, axes, weights, means: rows, g_weights, g_unit, force, turned, small } = self;
        let (columns, len) = (padded(n), row_len(wide));
        let [displaced, slopes] = small;
        turn::<V>(n, wide, unit, turned);
        for (i, ((weights, logits), row)) in
            weights.chunks_exact(HEADS * columns).zip(logits.chunks_exact(len)).zip(rows.chunks_exact_mut(len)).enumerate()
        {
            g_weights.fill(T::default());
            add_slopes_in_place::<V>(t, &row[HEADS * wide..][..SLOPES], axes, g_weights, columns);
            dots(n, wide, row, turned, g_weights);
            rows::softmax_back::<V>(t, weights, g_weights, columns);
            spread(n, weights, row, wide, wide, g_unit);
            spread(n, g_weights, logits, wide, wide, g_unit);
            widen::<V>(&row[HEADS * wide..][..SLOPES], displaced);
            widen::<V>(&logits[HEADS * wide..][..SLOPES], slopes);
            spread(n, weights, displaced, POINT, POINT, force);
            spread(n, g_weights, slopes, POINT, POINT, force);
            take_from::<V>(&mut force[i * POINT..], &row[HEADS * wide..][..SLOPES]);
            means(n, g_weights, unit, wide, row, wide);
            // Slopes of logits: Σ_j ∂E/∂logits_ij x_j, with no displacement, because a constant is no matter in a softmax.
            means(n, g_weights, points, POINT, displaced, POINT);
            for (to, from) in row[HEADS * wide..][..SLOPES].chunks_exact_mut(3).zip(displaced.chunks_exact(POINT)) {
                to.copy_from_slice(&from[..3]);
            }
        }
    }
}
