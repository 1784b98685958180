//! Attention of PE(3) between all atoms of a molecule.
//!
//! `a_ij = Σ_{irreps, m, c ∈ h} q_i k_j u_ij/√(…)`, `w = softmax_{j ≠ i} a`, and messages as in the plan. Heads are the channels c ≡ h mod H,
//! as in the attention of scalars.

use super::super::attention::{by_groups, fold, pattern};
use super::basis::PairRows;
use super::places::Irrep;
use super::plan::Plan;
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{Lanes, SimdReal};

/// Longest pattern of heads: lcm(12, 16).
const MOST_PATTERN: usize = 48;

/// Atoms `first..first + atoms` of features that hold `total` of them: `[irrep][total, 2l + 1, width]`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: usize,
    pub(super) atoms: usize,
    pub(super) total: usize,
}

impl Place {
    /// Row of component 0 of an atom.
    #[inline(always)]
    pub(super) fn row(&self, irrep: Irrep, atom: usize) -> usize {
        irrep.first * self.total + (self.first + atom) * irrep.rows()
    }
}

/// What the pairs of a structure have in a block.
#[derive(Clone, Copy)]
pub(super) struct Table<'a, T> {
    pub(super) rows: PairRows,
    /// `[rows, (L + 1)²]`.
    pub(super) harmonics: &'a [T],
    pub(super) components: usize,
    /// What queries and keys meet `[rows, inputs · F]`.
    pub(super) relative: &'a [T],
    /// What values meet, of each degree `[rows, F]`.
    pub(super) filters: &'a [T],
}

/// Sizes of attention, and its products.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a, T> {
    pub(super) place: Place,
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) inputs: &'a [Irrep],
    pub(super) messages: &'a [Irrep],
    pub(super) degrees: usize,
    pub(super) plan: &'a Plan<T>,
    /// Of each path `[F]`.
    pub(super) kappa: &'a [T],
}

impl<T> Shape<'_, T> {
    /// `1/√(channels of a head · components)`.
    fn scale(&self) -> f64 {
        let components: usize = self.inputs.iter().map(Irrep::rows).sum();
        (self.heads as f64 / (self.width * components) as f64).sqrt()
    }
}

/// From queries, keys and values to messages. `weights [n, n, pattern]`, `sums [n, accumulators, F]`.
pub(super) struct Attend<'a, T> {
    pub(super) shape: Shape<'a, T>,
    /// Queries, keys and values beside each other.
    pub(super) qkv: &'a [T],
    pub(super) table: Table<'a, T>,
    pub(super) weights: &'a mut [T],
    pub(super) sums: &'a mut [T],
    pub(super) messages: &'a mut [T],
    /// Scratch: coefficients of a pair, and filters times weights.
    pub(super) coefficients: &'a mut [T],
    pub(super) weighted: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Attend<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        by_groups!(self, t, pattern(self.shape.heads) / T::Of::<S>::LANES, run)
    }
}

/// `Σ_m q k` of every channel times `u`, summed into the pattern of heads.
#[inline(always)]
fn overlap<V: Lanes, const G: usize, const M: usize>(
    t: V::Token,
    (q, k): (&[V::Scalar], &[V::Scalar]),
    (stride, width): (usize, usize),
    u: &[V],
    sum: &mut [V; G],
) {
    let u = u.as_chunks::<G>().0;
    let mut rows = [(&u[..0], &u[..0]); M];
    for m in 0..M {
        let q = V::slice(t, &q[m * stride..m * stride + width]).as_chunks::<G>().0;
        let k = V::slice(t, &k[m * stride..m * stride + width]).as_chunks::<G>().0;
        rows[m] = (&q[..u.len()], &k[..u.len()]);
    }
    for c in 0..u.len() {
        for g in 0..G {
            let mut dot = rows[0].0[c][g] * rows[0].1[c][g];
            for m in 1..M {
                dot = rows[m].0[c][g].mul_add(rows[m].1[c][g], dot);
            }
            sum[g] = dot.mul_add(u[c][g], sum[g]);
        }
    }
}

/// `sums[o] += c_o f v` for `N` targets.
#[inline(always)]
fn accumulate<V: Lanes, const N: usize>(
    t: V::Token,
    (f, v): (&[V], &[V]),
    targets: &[(usize, usize)],
    coefficients: &[V::Scalar],
    sums: &mut [V::Scalar],
) {
    let n = f.len();
    let (mut c, mut at) = ([V::zero(t); N], [0; N]);
    for k in 0..N {
        c[k] = V::splat(t, coefficients[targets[k].1]);
        at[k] = targets[k].0 * n;
    }
    let sums = V::slice_mut(t, sums);
    for (i, (&f, &v)) in f.iter().zip(v).enumerate() {
        let product = f * v;
        for k in 0..N {
            let to = &mut sums[at[k] + i];
            *to = c[k].mul_add(product, *to);
        }
    }
}

impl<T: SimdReal> Attend<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const G: usize>(&mut self, t: V::Token) {
        let Shape { place, width: f, heads, inputs, .. } = self.shape;
        let (n, p) = (place.atoms, G * V::LANES);
        let scale = V::lit(t, self.shape.scale());
        for i in 0..n {
            let weights = &mut self.weights[n * p * i..n * p * (i + 1)];
            let mut most = [V::lit(t, -1e30); G];
            for j in 0..n {
                if j == i {
                    continue;
                }
                let row = self.table.rows.row(i, j).0 * inputs.len();
                let mut sum = [V::zero(t); G];
                for (k, &irrep) in inputs.iter().enumerate() {
                    let u = V::slice(t, &self.table.relative[(row + k) * f..(row + k + 1) * f]);
                    let pair = (&self.qkv[place.row(irrep, i) * 3 * f..], &self.qkv[place.row(irrep, j) * 3 * f + f..]);
                    match irrep.degree {
                        0 => overlap::<V, G, 1>(t, pair, (3 * f, f), u, &mut sum),
                        1 => overlap::<V, G, 3>(t, pair, (3 * f, f), u, &mut sum),
                        _ => overlap::<V, G, 5>(t, pair, (3 * f, f), u, &mut sum),
                    }
                }
                let to = &mut weights[p * j..p * (j + 1)];
                V::slice_mut(t, to).copy_from_slice(&sum);
                fold(to, heads);
                let to = V::slice_mut(t, to);
                for g in 0..G {
                    to[g] = to[g] * scale;
                    most[g] = most[g].max(to[g]);
                }
            }
            let mut total = [V::zero(t); G];
            for j in 0..n {
                let to = V::slice_mut(t, &mut weights[p * j..p * (j + 1)]);
                for g in 0..G {
                    to[g] = if j == i { V::zero(t) } else { (to[g] - most[g]).exp() };
                    total[g] += to[g];
                }
            }
            for j in 0..n {
                let to = V::slice_mut(t, &mut weights[p * j..p * (j + 1)]);
                for g in 0..G {
                    if j != i {
                        to[g] = to[g] / total[g];
                    }
                }
            }
            self.message::<V, G>(t, i);
        }
    }

    /// Messages to atom `i`, whose weights are known.
    #[inline(always)]
    fn message<V: Lanes<Scalar = T>, const G: usize>(&mut self, t: V::Token, i: usize) {
        let Shape { place, width: f, messages, degrees, plan, kappa, .. } = self.shape;
        let (n, p) = (place.atoms, G * V::LANES);
        let sums = &mut self.sums[i * plan.accumulators * f..(i + 1) * plan.accumulators * f];
        sums.fill(T::default());
        for j in 0..n {
            if j == i {
                continue;
            }
            let (row, reversed) = self.table.rows.row(i, j);
            let size = self.table.components;
            plan.coefficients(&self.table.harmonics[row * size..(row + 1) * size], reversed, self.coefficients);
            let w = V::slice(t, &self.weights[p * (n * i + j)..p * (n * i + j + 1)]);
            weigh::<V, G>(t, &self.table, (row, degrees, f), w, self.weighted);
            for group in &plan.groups {
                let weighted = V::slice(t, &self.weighted[group.filter * f..(group.filter + 1) * f]);
                let at = (place.row(group.value, j) + group.component) * 3 * f + 2 * f;
                let pair = (weighted, V::slice(t, &self.qkv[at..at + f]));
                let mut rest = &group.targets[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(3));
                    match now.len() {
                        1 => accumulate::<V, 1>(t, pair, now, self.coefficients, sums),
                        2 => accumulate::<V, 2>(t, pair, now, self.coefficients, sums),
                        _ => accumulate::<V, 3>(t, pair, now, self.coefficients, sums),
                    }
                    rest = later;
                }
            }
        }
        for &irrep in messages {
            let at = place.row(irrep, i) * f;
            self.messages[at..at + irrep.rows() * f].fill(T::default());
        }
        for path in &plan.paths {
            let kappa = V::slice(t, &kappa[path.kappa * f..(path.kappa + 1) * f]);
            for m in 0..path.message.rows() {
                let at = (place.row(path.message, i) + m) * f;
                let to = V::slice_mut(t, &mut self.messages[at..at + f]);
                let sum = V::slice(t, &sums[(path.first + m) * f..(path.first + m + 1) * f]);
                for ((to, &s), &k) in to.iter_mut().zip(sum).zip(kappa) {
                    *to = s.mul_add(k, *to);
                }
            }
        }
    }
}

/// Filters of a pair times its weights, of every degree.
#[inline(always)]
fn weigh<V: Lanes, const G: usize>(
    t: V::Token,
    table: &Table<'_, V::Scalar>,
    (row, degrees, f): (usize, usize, usize),
    w: &[V],
    to: &mut [V::Scalar],
) where
    V::Scalar: SimdReal,
{
    for d in 0..degrees {
        let at = (d * table.rows.len() + row) * f;
        let filter = V::slice(t, &table.filters[at..at + f]);
        let to = V::slice_mut(t, &mut to[d * f..(d + 1) * f]);
        for (to, filter) in to.chunks_exact_mut(G).zip(filter.chunks_exact(G)) {
            for g in 0..G {
                to[g] = filter[g] * w[g];
            }
        }
    }
}

/// The reverse of [`Attend`]: gradients of queries, keys, values, κ and table are added.
pub(super) struct AttendBack<'a, T> {
    pub(super) shape: Shape<'a, T>,
    pub(super) qkv: &'a [T],
    pub(super) table: Table<'a, T>,
    pub(super) weights: &'a [T],
    pub(super) sums: &'a [T],
    /// Of the messages.
    pub(super) g: &'a [T],
    pub(super) gqkv: &'a mut [T],
    pub(super) gkappa: &'a mut [T],
    pub(super) grelative: &'a mut [T],
    pub(super) gfilters: &'a mut [T],
    /// Scratch: coefficients, filters times weights and their gradient, gradient of the sums `[accumulators, F]`.
    pub(super) coefficients: &'a mut [T],
    pub(super) weighted: &'a mut [T],
    pub(super) gweighted: &'a mut [T],
    pub(super) gsums: &'a mut [T],
}

impl<T: SimdReal> WithSimd for AttendBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        by_groups!(self, t, pattern(self.shape.heads) / T::Of::<S>::LANES, run)
    }
}

/// Gradients of the filter (added to `gf`) and of the value (added to `gv`) from `N` targets.
#[inline(always)]
fn accumulate_back<V: Lanes, const N: usize>(
    t: V::Token,
    (f, v): (&[V], &[V]),
    targets: &[(usize, usize)],
    coefficients: &[V::Scalar],
    gsums: &[V::Scalar],
    (gf, gv): (&mut [V], &mut [V]),
) {
    let n = f.len();
    let (mut c, mut g) = ([V::zero(t); N], [f; N]);
    for k in 0..N {
        c[k] = V::splat(t, coefficients[targets[k].1]);
        g[k] = &V::slice(t, gsums)[targets[k].0 * n..(targets[k].0 + 1) * n];
    }
    let (v, gf, gv) = (&v[..n], &mut gf[..n], &mut gv[..n]);
    for i in 0..n {
        let mut gproduct = c[0] * g[0][i];
        for k in 1..N {
            gproduct = c[k].mul_add(g[k][i], gproduct);
        }
        gf[i] = gproduct.mul_add(v[i], gf[i]);
        gv[i] = gproduct.mul_add(f[i], gv[i]);
    }
}

/// Gradients of query, key and what they meet, for the `slope` of every head.
#[inline(always)]
fn overlap_back<V: Lanes, const G: usize, const M: usize>(
    t: V::Token,
    qkv: &[V::Scalar],
    (i, j): (usize, usize),
    width: usize,
    u: &[V],
    slope: &[V; G],
    gqkv: &mut [V::Scalar],
    gu: &mut [V],
) {
    for m in 0..M {
        let (qi, kj) = ((i + m) * 3 * width, (j + m) * 3 * width + width);
        let (q, k) = (V::slice(t, &qkv[qi..qi + width]), V::slice(t, &qkv[kj..kj + width]));
        let gq = V::slice_mut(t, &mut gqkv[qi..qi + width]);
        for ((gq, k), u) in gq.chunks_exact_mut(G).zip(k.chunks_exact(G)).zip(u.chunks_exact(G)) {
            for g in 0..G {
                gq[g] = (slope[g] * k[g]).mul_add(u[g], gq[g]);
            }
        }
        let gk = V::slice_mut(t, &mut gqkv[kj..kj + width]);
        let rows = gk.chunks_exact_mut(G).zip(gu.chunks_exact_mut(G)).zip(q.chunks_exact(G)).zip(k.chunks_exact(G)).zip(u.chunks_exact(G));
        for ((((gk, gu), q), k), u) in rows {
            for g in 0..G {
                let sq = slope[g] * q[g];
                gk[g] = sq.mul_add(u[g], gk[g]);
                gu[g] = sq.mul_add(k[g], gu[g]);
            }
        }
    }
}

impl<T: SimdReal> AttendBack<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const G: usize>(&mut self, t: V::Token) {
        let Shape { place, width: f, heads, inputs, degrees, plan, kappa, .. } = self.shape;
        let (n, p) = (place.atoms, G * V::LANES);
        let scale = V::lit(t, self.shape.scale());
        for i in 0..n {
            let sums = &self.sums[i * plan.accumulators * f..(i + 1) * plan.accumulators * f];
            // What the weights of a head share of all slopes is the dot product of sums and their gradients.
            let mut mean = [T::default(); MOST_PATTERN];
            let mean = &mut mean[..p];
            {
                let mean = V::slice_mut(t, mean);
                for path in &plan.paths {
                    let (kappa, gkappa) = (
                        V::slice(t, &kappa[path.kappa * f..(path.kappa + 1) * f]),
                        V::slice_mut(t, &mut self.gkappa[path.kappa * f..(path.kappa + 1) * f]),
                    );
                    for m in 0..path.message.rows() {
                        let at = (place.row(path.message, i) + m) * f;
                        let (g, row) = (V::slice(t, &self.g[at..at + f]), (path.first + m) * f..(path.first + m + 1) * f);
                        let (sum, gsum) = (V::slice(t, &sums[row.clone()]), V::slice_mut(t, &mut self.gsums[row]));
                        for k in 0..g.len() {
                            gkappa[k] = g[k].mul_add(sum[k], gkappa[k]);
                            gsum[k] = g[k] * kappa[k];
                            mean[k % G] = sum[k].mul_add(gsum[k], mean[k % G]);
                        }
                    }
                }
            }
            fold(mean, heads);
            let mean = V::slice(t, mean);
            for j in 0..n {
                if j == i {
                    continue;
                }
                let (row, reversed) = self.table.rows.row(i, j);
                let size = self.table.components;
                plan.coefficients(&self.table.harmonics[row * size..(row + 1) * size], reversed, self.coefficients);
                let w = V::slice(t, &self.weights[p * (n * i + j)..p * (n * i + j + 1)]);
                weigh::<V, G>(t, &self.table, (row, degrees, f), w, self.weighted);
                self.gweighted[..degrees * f].fill(T::default());
                for group in &plan.groups {
                    let range = group.filter * f..(group.filter + 1) * f;
                    let at = (place.row(group.value, j) + group.component) * 3 * f + 2 * f;
                    let pair = (V::slice(t, &self.weighted[range.clone()]), V::slice(t, &self.qkv[at..at + f]));
                    let mut rest = &group.targets[..];
                    while !rest.is_empty() {
                        let (now, later) = rest.split_at(rest.len().min(3));
                        let to = (V::slice_mut(t, &mut self.gweighted[range.clone()]), V::slice_mut(t, &mut self.gqkv[at..at + f]));
                        match now.len() {
                            1 => accumulate_back::<V, 1>(t, pair, now, self.coefficients, self.gsums, to),
                            2 => accumulate_back::<V, 2>(t, pair, now, self.coefficients, self.gsums, to),
                            _ => accumulate_back::<V, 3>(t, pair, now, self.coefficients, self.gsums, to),
                        }
                        rest = later;
                    }
                }
                let mut raw = [T::default(); MOST_PATTERN];
                let raw = &mut raw[..p];
                for d in 0..degrees {
                    let at = (d * self.table.rows.len() + row) * f;
                    let (filter, gfilter) = (V::slice(t, &self.table.filters[at..at + f]), V::slice_mut(t, &mut self.gfilters[at..at + f]));
                    let g = V::slice(t, &self.gweighted[d * f..(d + 1) * f]);
                    let raw = V::slice_mut(t, raw);
                    for ((filter, gfilter), x) in filter.chunks_exact(G).zip(gfilter.chunks_exact_mut(G)).zip(g.chunks_exact(G)) {
                        for g in 0..G {
                            raw[g] = x[g].mul_add(filter[g], raw[g]);
                            gfilter[g] = x[g].mul_add(w[g], gfilter[g]);
                        }
                    }
                }
                fold(raw, heads);
                let raw = V::slice(t, raw);
                let mut slope = [V::zero(t); G];
                for g in 0..G {
                    slope[g] = w[g] * (raw[g] - mean[g]) * scale;
                }
                for (k, &irrep) in inputs.iter().enumerate() {
                    let at = (row * inputs.len() + k) * f;
                    let u = V::slice(t, &self.table.relative[at..at + f]);
                    let gu = V::slice_mut(t, &mut self.grelative[at..at + f]);
                    let rows = (place.row(irrep, i), place.row(irrep, j));
                    match irrep.degree {
                        0 => overlap_back::<V, G, 1>(t, self.qkv, rows, f, u, &slope, self.gqkv, gu),
                        1 => overlap_back::<V, G, 3>(t, self.qkv, rows, f, u, &slope, self.gqkv, gu),
                        _ => overlap_back::<V, G, 5>(t, self.qkv, rows, f, u, &slope, self.gqkv, gu),
                    }
                }
            }
        }
    }
}
