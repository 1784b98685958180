//! Attention between all atoms of a molecule: every pair reads two rows of a table.
//!
//! With rows `R`, `U` of the pair's token and heads that are the channels c ≡ h mod H,
//! `a_ij = Σ_{c ∈ h} q_i k_j R_ij/√(F/H)`, `w = softmax_{j ≠ i} a` and `o_i = κ Σ_j w_ij v_j U_ij`. A vector of lanes belongs to the same
//! heads every lcm(H, lanes) channels, so that sums over the channels of a head and products with a head's weight need no shuffles.

use crate::matrix::PAD;
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{Lanes, SimdReal};

/// Numbers per pair for weights: whole vectors of every instruction set, a multiple of the heads.
pub(super) fn pattern(heads: usize) -> usize {
    let (mut a, mut b) = (heads, PAD);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    heads * PAD / a
}

/// A table's rows for a pair: `row · stride + offset` is where they begin.
#[derive(Clone, Copy)]
pub(super) struct Table<'a, T> {
    pub(super) values: &'a [T],
    pub(super) stride: usize,
    /// What queries and keys meet; what values meet lies `width` after it.
    pub(super) offset: usize,
    /// Row of each pair `[n, n]`, receiver first; empty where every pair has its own.
    pub(super) rows: &'a [u16],
    /// Added to rows that are not 0.
    pub(super) first: usize,
}

impl<T> Table<'_, T> {
    #[inline(always)]
    fn place(&self, pair: usize) -> usize {
        if self.rows.is_empty() {
            return pair * self.stride + self.offset;
        }
        let row = self.rows[pair] as usize;
        (if row == 0 { 0 } else { row + self.first }) * self.stride + self.offset
    }
}

/// Sizes of attention in one molecule.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) atoms: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
}

/// `weights [n, n, pattern]`, sums before κ and after.
pub(super) struct Attend<'a, T> {
    pub(super) sizes: Sizes,
    /// Queries, keys and values beside each other `[n, 3 F]`.
    pub(super) qkv: &'a [T],
    pub(super) table: Table<'a, T>,
    pub(super) kappa: &'a [T],
    pub(super) weights: &'a mut [T],
    pub(super) sum: &'a mut [T],
    pub(super) out: &'a mut [T],
}

macro_rules! by_groups {
    ($self:ident, $t:ident, $groups:expr, $run:ident) => {
        match $groups {
            1 => $self.$run::<T::Of<S>, 1>($t),
            2 => $self.$run::<T::Of<S>, 2>($t),
            3 => $self.$run::<T::Of<S>, 3>($t),
            4 => $self.$run::<T::Of<S>, 4>($t),
            6 => $self.$run::<T::Of<S>, 6>($t),
            8 => $self.$run::<T::Of<S>, 8>($t),
            12 => $self.$run::<T::Of<S>, 12>($t),
            24 => $self.$run::<T::Of<S>, 24>($t),
            _ => unreachable!("lcm(heads, 16)/lanes for the heads that a configuration may have"),
        }
    };
}

pub(super) use by_groups;

impl<T: SimdReal> WithSimd for Attend<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        by_groups!(self, t, pattern(self.sizes.heads) / T::Of::<S>::LANES, run)
    }
}

/// Adds up what belongs to the same head, in every place of the pattern.
#[inline(always)]
pub(super) fn fold<T: SimdReal>(pattern: &mut [T], heads: usize) {
    for h in 0..heads {
        let mut sum = pattern[h];
        let mut k = h + heads;
        while k < pattern.len() {
            sum += pattern[k];
            k += heads;
        }
        k = h;
        while k < pattern.len() {
            pattern[k] = sum;
            k += heads;
        }
    }
}

impl<T: SimdReal> Attend<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const G: usize>(&mut self, t: V::Token) {
        let Sizes { atoms: n, width: f, heads } = self.sizes;
        let p = G * V::LANES;
        let scale = V::lit(t, (heads as f64 / f as f64).sqrt());
        for i in 0..n {
            let q = V::slice(t, &self.qkv[3 * f * i..3 * f * i + f]);
            let weights = &mut self.weights[n * p * i..n * p * (i + 1)];
            let mut most = [V::lit(t, -1e30); G];
            for j in 0..n {
                if j == i {
                    continue;
                }
                let k = V::slice(t, &self.qkv[3 * f * j + f..3 * f * j + 2 * f]);
                let place = self.table.place(n * i + j);
                let r = V::slice(t, &self.table.values[place..place + f]);
                let mut sum = [V::zero(t); G];
                for ((q, k), r) in q.chunks_exact(G).zip(k.chunks_exact(G)).zip(r.chunks_exact(G)) {
                    for g in 0..G {
                        sum[g] = (q[g] * k[g]).mul_add(r[g], sum[g]);
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
            // An atom alone attends to nothing.
            let mut inverse = [V::zero(t); G];
            if n > 1 {
                for g in 0..G {
                    inverse[g] = V::lit(t, 1.0) / total[g];
                }
            }
            let sum = V::slice_mut(t, &mut self.sum[f * i..f * (i + 1)]);
            for s in sum.iter_mut() {
                *s = V::zero(t);
            }
            for j in 0..n {
                if j == i {
                    continue;
                }
                let mut w = [V::zero(t); G];
                let to = V::slice_mut(t, &mut weights[p * j..p * (j + 1)]);
                for g in 0..G {
                    w[g] = to[g] * inverse[g];
                    to[g] = w[g];
                }
                let v = V::slice(t, &self.qkv[3 * f * j + 2 * f..3 * f * (j + 1)]);
                let place = self.table.place(n * i + j) + f;
                let u = V::slice(t, &self.table.values[place..place + f]);
                for ((s, v), u) in sum.chunks_exact_mut(G).zip(v.chunks_exact(G)).zip(u.chunks_exact(G)) {
                    for g in 0..G {
                        s[g] = (w[g] * v[g]).mul_add(u[g], s[g]);
                    }
                }
            }
            let kappa = V::slice(t, self.kappa);
            let out = V::slice_mut(t, &mut self.out[f * i..f * (i + 1)]);
            for ((o, &s), &k) in out.iter_mut().zip(sum.iter()).zip(kappa) {
                *o = s * k;
            }
        }
    }
}

/// The reverse of [`Attend`]: gradients of queries, keys, values, κ and table are added.
pub(super) struct AttendBack<'a, T> {
    pub(super) sizes: Sizes,
    pub(super) qkv: &'a [T],
    pub(super) table: Table<'a, T>,
    pub(super) kappa: &'a [T],
    pub(super) weights: &'a [T],
    pub(super) sum: &'a [T],
    /// Of the result `[n, F]`; multiplied by κ on the way.
    pub(super) g: &'a mut [T],
    pub(super) gqkv: &'a mut [T],
    pub(super) gkappa: &'a mut [T],
    pub(super) gtable: &'a mut [T],
    /// Scratch `[n, pattern]`.
    pub(super) slopes: &'a mut [T],
}

impl<T: SimdReal> WithSimd for AttendBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        by_groups!(self, t, pattern(self.sizes.heads) / T::Of::<S>::LANES, run)
    }
}

impl<T: SimdReal> AttendBack<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const G: usize>(&mut self, t: V::Token) {
        let Sizes { atoms: n, width: f, heads } = self.sizes;
        let p = G * V::LANES;
        let scale = V::lit(t, (heads as f64 / f as f64).sqrt());
        for i in 0..n {
            let g = V::slice_mut(t, &mut self.g[f * i..f * (i + 1)]);
            let sum = V::slice(t, &self.sum[f * i..f * (i + 1)]);
            let (kappa, gkappa) = (V::slice(t, self.kappa), V::slice_mut(t, self.gkappa));
            for k in 0..g.len() {
                gkappa[k] = g[k].mul_add(sum[k], gkappa[k]);
                g[k] = g[k] * kappa[k];
            }
            let g = V::slice(t, &self.g[f * i..f * (i + 1)]);
            let weights = &self.weights[n * p * i..n * p * (i + 1)];
            let mut mean = [V::zero(t); G];
            for j in 0..n {
                if j == i {
                    continue;
                }
                let v = V::slice(t, &self.qkv[3 * f * j + 2 * f..3 * f * (j + 1)]);
                let place = self.table.place(n * i + j) + f;
                let u = V::slice(t, &self.table.values[place..place + f]);
                let mut dot = [V::zero(t); G];
                for ((a, v), u) in g.chunks_exact(G).zip(v.chunks_exact(G)).zip(u.chunks_exact(G)) {
                    for k in 0..G {
                        dot[k] = (a[k] * v[k]).mul_add(u[k], dot[k]);
                    }
                }
                let to = &mut self.slopes[p * j..p * (j + 1)];
                V::slice_mut(t, to).copy_from_slice(&dot);
                fold(to, heads);
                let (to, w) = (V::slice(t, to), V::slice(t, &weights[p * j..p * (j + 1)]));
                for k in 0..G {
                    mean[k] = w[k].mul_add(to[k], mean[k]);
                }
            }
            for j in 0..n {
                if j == i {
                    continue;
                }
                let (mut w, mut slope) = ([V::zero(t); G], [V::zero(t); G]);
                let (from, all) = (V::slice(t, &self.slopes[p * j..p * (j + 1)]), V::slice(t, &weights[p * j..p * (j + 1)]));
                for k in 0..G {
                    w[k] = all[k];
                    slope[k] = w[k] * (from[k] - mean[k]) * scale;
                }
                let place = self.table.place(n * i + j);
                let (r, u) = self.table.values[place..place + 2 * f].split_at(f);
                let (r, u) = (V::slice(t, r), V::slice(t, u));
                let (gr, gu) = self.gtable[place..place + 2 * f].split_at_mut(f);
                let (gr, gu) = (V::slice_mut(t, gr), V::slice_mut(t, gu));
                let q = V::slice(t, &self.qkv[3 * f * i..3 * f * i + f]);
                let (k, v) = self.qkv[3 * f * j + f..3 * f * (j + 1)].split_at(f);
                let (k, v) = (V::slice(t, k), V::slice(t, v));
                let gq = V::slice_mut(t, &mut self.gqkv[3 * f * i..3 * f * i + f]);
                for ((gq, k), r) in gq.chunks_exact_mut(G).zip(k.chunks_exact(G)).zip(r.chunks_exact(G)) {
                    for h in 0..G {
                        gq[h] = (slope[h] * k[h]).mul_add(r[h], gq[h]);
                    }
                }
                let (gk, gv) = self.gqkv[3 * f * j + f..3 * f * (j + 1)].split_at_mut(f);
                let (gk, gv) = (V::slice_mut(t, gk), V::slice_mut(t, gv));
                let mut c = 0;
                while c < f / V::LANES {
                    for h in 0..G {
                        let sq = slope[h] * q[c + h];
                        gk[c + h] = sq.mul_add(r[c + h], gk[c + h]);
                        gr[c + h] = sq.mul_add(k[c + h], gr[c + h]);
                        let wg = w[h] * g[c + h];
                        gv[c + h] = wg.mul_add(u[c + h], gv[c + h]);
                        gu[c + h] = wg.mul_add(v[c + h], gu[c + h]);
                    }
                    c += G;
                }
            }
        }
    }
}
