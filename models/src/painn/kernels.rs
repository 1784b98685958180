//! What lies between matrix products: radial filters and messages over pairs, gates over atoms, and the reverse of each.
//!
//! Pairs come as i < j, and each filter serves both directions: d_ij = d_ji. Of the radial
//! functions only a band around the distance is not zero; the rest is never touched. Rows of features are `width` numbers,
//! padded to whole vectors; vector features are three rows per atom.

use super::config::PainnConfig;
use crate::analytic::lattice::Lattice;
use crate::analytic::neighbours::List;
use crate::matrix::{PAD, padded};
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal};
use scorefield_integrators::{DType, Real};
use std::ops::Range;

/// Rows of the filter that are summed in one pass.
pub(super) const PASS: usize = 6;
/// Numbers per pair: weights of the band, then that of the bias.
pub(super) const STEP: usize = 20;

/// Radial functions per distance, and how many widths away they are left out: what is lost is below rounding.
pub(super) fn band<T: SimdReal>() -> (usize, f64) {
    match T::DTYPE {
        DType::F32 => (12, 5.5),
        DType::F64 => (18, 8.5),
    }
}

/// Pairs within the cutoff.
#[derive(Default)]
pub(super) struct Pairs<T> {
    pub(super) atoms: Vec<[u32; 2]>,
    /// First radial function of the band.
    pub(super) start: Vec<u32>,
    /// Unit vector from the first to the second, and 1/d.
    pub(super) geometry: Vec<[T; 4]>,
    /// Radial functions times the cutoff, then the cutoff alone.
    pub(super) weights: Vec<[T; STEP]>,
    /// Their derivatives.
    pub(super) slopes: Vec<[T; STEP]>,
    /// Where the pairs of each molecule end.
    ends: Vec<usize>,
}

impl<T: SimdReal> Pairs<T> {
    pub(super) fn reserve(&mut self, pairs: usize, molecules: usize) {
        self.ends.reserve(molecules.saturating_sub(self.ends.len()));
        self.atoms.reserve(pairs.saturating_sub(self.atoms.len()));
        self.start.reserve(pairs.saturating_sub(self.start.len()));
        self.geometry.reserve(pairs.saturating_sub(self.geometry.len()));
        self.weights.reserve(pairs.saturating_sub(self.weights.len()));
        self.slopes.reserve(pairs.saturating_sub(self.slopes.len()));
    }

    pub(super) fn clear(&mut self) {
        self.atoms.clear();
        self.start.clear();
        self.geometry.clear();
        self.weights.clear();
        self.slopes.clear();
        self.ends.clear();
    }

    /// Adds the pairs of a molecule at `x [n, 3]` (Å), whose first atom has row `first`; with derivatives where `slopes`.
    pub(super) fn add(&mut self, config: &PainnConfig, first: usize, x: &[f64], slopes: bool) {
        let n = x.len() / 3;
        for i in 0..n {
            for j in i + 1..n {
                let r = [0, 1, 2].map(|k| x[3 * j + k] - x[3 * i + k]);
                self.push(config, [first + i, first + j], r, slopes);
            }
        }
        self.ends.push(self.atoms.len());
    }

    /// The same of nearest images in a cell, where `list` says who may be within the cutoff; without it all are looked at.
    pub(super) fn add_near(&mut self, config: &PainnConfig, first: usize, x: &[f64], lattice: &Lattice, list: Option<&List>, slopes: bool) {
        let n = x.len() / 3;
        for i in 0..n {
            let at = |j: usize| lattice.nearest([0, 1, 2].map(|k| x[3 * j + k] - x[3 * i + k]));
            match list {
                Some(list) => {
                    for &j in list.partners(i) {
                        self.push(config, [first + i, first + j as usize], at(j as usize), slopes);
                    }
                }
                None => (i + 1..n).for_each(|j| self.push(config, [first + i, first + j], at(j), slopes)),
            }
        }
        self.ends.push(self.atoms.len());
    }

    /// Adds a pair `r` apart, if that is within the cutoff.
    fn push(&mut self, config: &PainnConfig, [i, j]: [usize; 2], r: [f64; 3], slopes: bool) {
        let (band, reach) = band::<T>();
        let (width, cutoff) = (config.spacing(), config.cutoff);
        let d = (r[0] * r[0] + r[1] * r[1] + r[2] * r[2] + config.distance_epsilon).sqrt();
        if d >= cutoff {
            return;
        }
        // Without an epsilon, atoms in one place have no direction.
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        let turn = std::f64::consts::PI / cutoff;
        let (fc, dfc) = (0.5 * ((turn * d).cos() + 1.0), -0.5 * turn * (turn * d).sin());
        let last = config.radial.max(band) - band;
        let start = ((d / width - reach).ceil().max(0.0) as usize).min(last);
        let (mut weights, mut slope) = ([T::default(); STEP], [T::default(); STEP]);
        for k in 0..band.min(config.radial - start.min(config.radial)) {
            let z = d / width - (start + k) as f64;
            let phi = (-0.5 * z * z).exp();
            weights[k] = T::from_f64(phi * fc);
            slope[k] = T::from_f64(phi * (dfc - z / width * fc));
        }
        (weights[band], slope[band]) = (T::from_f64(fc), T::from_f64(dfc));
        self.atoms.push([i as u32, j as u32]);
        self.start.push(start as u32);
        self.geometry.push([r[0] * inverse, r[1] * inverse, r[2] * inverse, inverse].map(T::from_f64));
        self.weights.push(weights);
        if slopes {
            self.slopes.push(slope);
        }
    }

    /// Pairs of molecule `m`.
    pub(super) fn of(&self, m: usize) -> Range<usize> {
        let first = if m == 0 { 0 } else { self.ends[m - 1] };
        first..self.ends[m]
    }

    /// Adds to `positions [A, 3]` the gradients of pairs' vectors `[P]`, from the first atom to the second.
    pub(super) fn scatter(&self, gradients: &[[T; 3]], positions: &mut [T]) {
        for (&[i, j], g) in self.atoms.iter().zip(gradients) {
            for k in 0..3 {
                positions[3 * j as usize + k] += g[k];
                positions[3 * i as usize + k] -= g[k];
            }
        }
    }

    /// `Σ r ⊗ g` over the pairs of molecule `m`, row-major.
    pub(super) fn strain(&self, m: usize, gradients: &[[T; 3]]) -> [f64; 9] {
        let mut sum = [0.0; 9];
        for p in self.of(m) {
            let [x, y, z, inverse] = self.geometry[p].map(Real::to_f64);
            let d = if inverse > 0.0 { 1.0 / inverse } else { 0.0 };
            for (a, u) in [x, y, z].into_iter().enumerate() {
                for b in 0..3 {
                    sum[3 * a + b] += d * u * gradients[p][b].to_f64();
                }
            }
        }
        sum
    }
}

/// The filter of one layer: its columns of `values [radial, stride]` from `base` on, and its part of the bias.
#[derive(Clone, Copy)]
pub(super) struct Filter<'a, T> {
    pub(super) values: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) stride: usize,
    pub(super) base: usize,
}

/// `out = Σ_k weights[k] values[start + k] + weights[band] bias`.
#[inline(always)]
pub(super) fn filter_row<V: Lanes>(
    t: V::Token,
    filter: Filter<'_, V::Scalar>,
    band: usize,
    weights: &[V::Scalar; STEP],
    start: u32,
    out: &mut [V::Scalar],
) {
    let len = out.len();
    let out = V::slice_mut(t, out);
    let bias = V::slice(t, &filter.bias[filter.base..filter.base + len]);
    let fc = V::splat(t, weights[band]);
    for (o, &b) in out.iter_mut().zip(bias) {
        *o = fc * b;
    }
    let mut k = 0;
    while k < band {
        let mut w = [V::zero(t); PASS];
        let mut rows = [V::slice(t, &[]); PASS];
        for r in 0..PASS {
            w[r] = V::splat(t, weights[k + r]);
            rows[r] = V::slice(t, &filter.values[(start as usize + k + r) * filter.stride + filter.base..][..len]);
        }
        for v in 0..out.len() {
            let mut sum = out[v];
            for r in 0..PASS {
                sum = w[r].mul_add(rows[r][v], sum);
            }
            out[v] = sum;
        }
        k += PASS;
    }
}

/// The reverse of [`filter_row`] with respect to values and bias: adds `weights[k] g` to rows of `gradient`.
#[inline(always)]
pub(super) fn filter_row_back<V: Lanes>(
    t: V::Token,
    gradient: &mut FilterGradient<'_, V::Scalar>,
    band: usize,
    weights: &[V::Scalar; STEP],
    start: u32,
    g: &[V::Scalar],
) {
    let len = g.len();
    let g = V::slice(t, g);
    let fc = V::splat(t, weights[band]);
    let bias = V::slice_mut(t, &mut gradient.bias[gradient.base..gradient.base + len]);
    for (b, &g) in bias.iter_mut().zip(g) {
        *b = fc.mul_add(g, *b);
    }
    for k in 0..band {
        let w = V::splat(t, weights[k]);
        let row = V::slice_mut(t, &mut gradient.values[(start as usize + k) * gradient.stride + gradient.base..][..len]);
        for (r, &g) in row.iter_mut().zip(g) {
            *r = w.mul_add(g, *r);
        }
    }
}

/// Rows `i` and `j > i` of `len` numbers.
#[inline(always)]
pub(super) fn two_rows<T>(all: &mut [T], stride: usize, i: usize, j: usize, len: usize) -> (&mut [T], &mut [T]) {
    let (low, high) = all.split_at_mut(j * stride);
    (&mut low[i * stride..i * stride + len], &mut high[..len])
}

/// Messages of all pairs: adds to `q` and `mu`.
pub(super) struct Messages<'a, T> {
    pub(super) pairs: &'a Pairs<T>,
    pub(super) filter: Filter<'a, T>,
    pub(super) width: usize,
    /// What the neighbour sends `[A, 3, width]`: to scalars, along the pair, along its own vectors.
    pub(super) x: &'a [T],
    /// Vector features before `[A, 3, width]`.
    pub(super) mu: &'a [T],
    pub(super) q: &'a mut [T],
    pub(super) q_stride: usize,
    pub(super) out: &'a mut [T],
    /// `[3, width]`.
    pub(super) row: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Messages<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (width, wide) = (self.width, 3 * self.width);
        let n = width / T::Of::<S>::LANES;
        let band = band::<T>().0;
        let row = &mut self.row[..wide];
        for (p, &[i, j]) in self.pairs.atoms.iter().enumerate() {
            let (i, j) = (i as usize, j as usize);
            filter_row::<T::Of<S>>(t, self.filter, band, &self.pairs.weights[p], self.pairs.start[p], row);
            let (w, _) = T::Of::<S>::slice(t, row).split_at(3 * n);
            let [ux, uy, uz, _] = self.pairs.geometry[p];
            let (ux, uy, uz) = (T::Of::<S>::splat(t, ux), T::Of::<S>::splat(t, uy), T::Of::<S>::splat(t, uz));
            let (qi, qj) = two_rows(self.q, self.q_stride, i, j, width);
            let (qi, qj) = (&mut T::Of::<S>::slice_mut(t, qi)[..n], &mut T::Of::<S>::slice_mut(t, qj)[..n]);
            let (oi, oj) = two_rows(self.out, wide, i, j, wide);
            let (oi, oj) = (&mut T::Of::<S>::slice_mut(t, oi)[..3 * n], &mut T::Of::<S>::slice_mut(t, oj)[..3 * n]);
            let xi = &T::Of::<S>::slice(t, &self.x[i * wide..(i + 1) * wide])[..3 * n];
            let xj = &T::Of::<S>::slice(t, &self.x[j * wide..(j + 1) * wide])[..3 * n];
            let mi = &T::Of::<S>::slice(t, &self.mu[i * wide..(i + 1) * wide])[..3 * n];
            let mj = &T::Of::<S>::slice(t, &self.mu[j * wide..(j + 1) * wide])[..3 * n];
            for v in 0..n {
                let (wq, wr, wm) = (w[v], w[n + v], w[2 * n + v]);
                qi[v] = wq.mul_add(xj[v], qi[v]);
                qj[v] = wq.mul_add(xi[v], qj[v]);
                let (ri, rj) = (-(wr * xi[n + v]), wr * xj[n + v]);
                let (ci, cj) = (wm * xi[2 * n + v], wm * xj[2 * n + v]);
                oi[v] = rj.mul_add(ux, cj.mul_add(mj[v], oi[v]));
                oi[n + v] = rj.mul_add(uy, cj.mul_add(mj[n + v], oi[n + v]));
                oi[2 * n + v] = rj.mul_add(uz, cj.mul_add(mj[2 * n + v], oi[2 * n + v]));
                oj[v] = ri.mul_add(ux, ci.mul_add(mi[v], oj[v]));
                oj[n + v] = ri.mul_add(uy, ci.mul_add(mi[n + v], oj[n + v]));
                oj[2 * n + v] = ri.mul_add(uz, ci.mul_add(mi[2 * n + v], oj[2 * n + v]));
            }
        }
    }
}

/// Gradient of the filter of one layer.
pub(super) struct FilterGradient<'a, T> {
    pub(super) values: &'a mut [T],
    pub(super) bias: &'a mut [T],
    pub(super) stride: usize,
    pub(super) base: usize,
}

/// The reverse of [`Messages`].
pub(super) struct MessagesBack<'a, T> {
    pub(super) pairs: &'a Pairs<T>,
    pub(super) filter: Filter<'a, T>,
    pub(super) width: usize,
    pub(super) x: &'a [T],
    pub(super) mu: &'a [T],
    /// Gradients of what came out `[A, width]` and `[A, 3, width]`.
    pub(super) gq: &'a [T],
    pub(super) gmu: &'a [T],
    /// Adds to these.
    pub(super) gx: &'a mut [T],
    pub(super) gmu_in: &'a mut [T],
    pub(super) parameters: Option<FilterGradient<'a, T>>,
    /// Adds the gradients of pairs' vectors, where wanted.
    pub(super) vectors: Option<&'a mut [[T; 3]]>,
    /// `[3, 3, width]`.
    pub(super) row: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MessagesBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let (width, wide) = (self.width, 3 * self.width);
        let n = width / T::Of::<S>::LANES;
        let band = band::<T>().0;
        let (row, rest) = self.row.split_at_mut(wide);
        let (grow, slope) = rest.split_at_mut(wide);
        let slope = &mut slope[..wide];
        for (p, &[i, j]) in self.pairs.atoms.iter().enumerate() {
            let (i, j) = (i as usize, j as usize);
            let (weights, start) = (&self.pairs.weights[p], self.pairs.start[p]);
            filter_row::<T::Of<S>>(t, self.filter, band, weights, start, row);
            let w = &T::Of::<S>::slice(t, row)[..3 * n];
            let gw = &mut T::Of::<S>::slice_mut(t, grow)[..3 * n];
            let [x, y, z, inverse] = self.pairs.geometry[p];
            let (ux, uy, uz) = (T::Of::<S>::splat(t, x), T::Of::<S>::splat(t, y), T::Of::<S>::splat(t, z));
            let (gxi, gxj) = two_rows(self.gx, wide, i, j, wide);
            let (gxi, gxj) = (&mut T::Of::<S>::slice_mut(t, gxi)[..3 * n], &mut T::Of::<S>::slice_mut(t, gxj)[..3 * n]);
            let (oi, oj) = two_rows(self.gmu_in, wide, i, j, wide);
            let (oi, oj) = (&mut T::Of::<S>::slice_mut(t, oi)[..3 * n], &mut T::Of::<S>::slice_mut(t, oj)[..3 * n]);
            let xi = &T::Of::<S>::slice(t, &self.x[i * wide..(i + 1) * wide])[..3 * n];
            let xj = &T::Of::<S>::slice(t, &self.x[j * wide..(j + 1) * wide])[..3 * n];
            let mi = &T::Of::<S>::slice(t, &self.mu[i * wide..(i + 1) * wide])[..3 * n];
            let mj = &T::Of::<S>::slice(t, &self.mu[j * wide..(j + 1) * wide])[..3 * n];
            let gi = &T::Of::<S>::slice(t, &self.gmu[i * wide..(i + 1) * wide])[..3 * n];
            let gj = &T::Of::<S>::slice(t, &self.gmu[j * wide..(j + 1) * wide])[..3 * n];
            let qi = &T::Of::<S>::slice(t, &self.gq[i * width..(i + 1) * width])[..n];
            let qj = &T::Of::<S>::slice(t, &self.gq[j * width..(j + 1) * width])[..n];
            let mut turn = [T::Of::<S>::zero(t); 3];
            for v in 0..n {
                let (wq, wr, wm) = (w[v], w[n + v], w[2 * n + v]);
                let (gix, giy, giz) = (gi[v], gi[n + v], gi[2 * n + v]);
                let (gjx, gjy, gjz) = (gj[v], gj[n + v], gj[2 * n + v]);
                // Along the pair, and along the neighbour's vectors.
                let along_i = gix.mul_add(ux, giy.mul_add(uy, giz * uz));
                let along_j = -gjx.mul_add(ux, gjy.mul_add(uy, gjz * uz));
                let dot_i = gix.mul_add(mj[v], giy.mul_add(mj[n + v], giz * mj[2 * n + v]));
                let dot_j = gjx.mul_add(mi[v], gjy.mul_add(mi[n + v], gjz * mi[2 * n + v]));
                gw[v] = xj[v].mul_add(qi[v], xi[v] * qj[v]);
                gw[n + v] = xj[n + v].mul_add(along_i, xi[n + v] * along_j);
                gw[2 * n + v] = xj[2 * n + v].mul_add(dot_i, xi[2 * n + v] * dot_j);
                gxj[v] = wq.mul_add(qi[v], gxj[v]);
                gxi[v] = wq.mul_add(qj[v], gxi[v]);
                gxj[n + v] = wr.mul_add(along_i, gxj[n + v]);
                gxi[n + v] = wr.mul_add(along_j, gxi[n + v]);
                gxj[2 * n + v] = wm.mul_add(dot_i, gxj[2 * n + v]);
                gxi[2 * n + v] = wm.mul_add(dot_j, gxi[2 * n + v]);
                let (ci, cj) = (wm * xi[2 * n + v], wm * xj[2 * n + v]);
                oj[v] = cj.mul_add(gix, oj[v]);
                oj[n + v] = cj.mul_add(giy, oj[n + v]);
                oj[2 * n + v] = cj.mul_add(giz, oj[2 * n + v]);
                oi[v] = ci.mul_add(gjx, oi[v]);
                oi[n + v] = ci.mul_add(gjy, oi[n + v]);
                oi[2 * n + v] = ci.mul_add(gjz, oi[2 * n + v]);
                let (ri, rj) = (-(wr * xi[n + v]), wr * xj[n + v]);
                turn[0] = rj.mul_add(gix, ri.mul_add(gjx, turn[0]));
                turn[1] = rj.mul_add(giy, ri.mul_add(gjy, turn[1]));
                turn[2] = rj.mul_add(giz, ri.mul_add(gjz, turn[2]));
            }
            if let Some(gradient) = &mut self.parameters {
                filter_row_back::<T::Of<S>>(t, gradient, band, weights, start, grow);
            }
            if let Some(vectors) = self.vectors.as_deref_mut() {
                filter_row::<T::Of<S>>(t, self.filter, band, &self.pairs.slopes[p], start, slope);
                let (slope, gw) = (T::Of::<S>::slice(t, slope), T::Of::<S>::slice(t, grow));
                let mut along = T::Of::<S>::zero(t);
                for (&s, &g) in slope.iter().zip(gw) {
                    along = s.mul_add(g, along);
                }
                // d = √(r² + ε), u = r/d: ∂d/∂r = u, ∂u/∂r = (1 − u uᵀ)/d.
                let along = along.total();
                let turn = [turn[0].total(), turn[1].total(), turn[2].total()];
                let u = [x, y, z];
                let radial = u[0] * turn[0] + u[1] * turn[1] + u[2] * turn[2];
                for k in 0..3 {
                    vectors[p][k] += along * u[k] + inverse * (turn[k] - radial * u[k]);
                }
            }
        }
    }
}

/// `y = x/(1 + e^−x)` (S. Elfwing et al.).
pub(super) struct Silu<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Silu<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let one = T::Of::<S>::lit(t, 1.0);
        for (y, &x) in T::Of::<S>::slice_mut(t, self.y).iter_mut().zip(T::Of::<S>::slice(t, self.x)) {
            *y = x / (one + (-x).exp());
        }
    }
}

/// The reverse of [`Silu`]: `g` is multiplied by the derivative at `x`, and `y` becomes the value.
pub(super) struct SiluBack<'a, T> {
    pub(super) x: &'a [T],
    pub(super) g: &'a mut [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for SiluBack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let one = T::Of::<S>::lit(t, 1.0);
        let (g, y) = (T::Of::<S>::slice_mut(t, self.g), T::Of::<S>::slice_mut(t, self.y));
        for ((g, y), &x) in g.iter_mut().zip(y).zip(T::Of::<S>::slice(t, self.x)) {
            let s = one / (one + (-x).exp());
            *y = x * s;
            *g = *g * (*y).mul_add(one - s, s);
        }
    }
}

/// Widths of a gated step: scalars in, vectors out of the channel mix (V and W), all padded.
#[derive(Clone, Copy)]
pub(super) struct GateShape {
    pub(super) scalars: usize,
    pub(super) vectors: usize,
    /// Row of `[q | |V| | time]`.
    pub(super) cat: usize,
    pub(super) epsilon: f64,
}

/// `cat[i] = [q | √(Σ V² + ε)]`; q is copied where given.
pub(super) struct Norms<'a, T> {
    pub(super) atoms: usize,
    pub(super) shape: GateShape,
    pub(super) q: Option<&'a [T]>,
    pub(super) vw: &'a [T],
    pub(super) cat: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Norms<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let GateShape { scalars, vectors, cat, epsilon } = self.shape;
        let n = vectors / T::Of::<S>::LANES;
        let epsilon = T::Of::<S>::lit(t, epsilon);
        for i in 0..self.atoms {
            let to = &mut self.cat[i * cat..(i + 1) * cat];
            if let Some(q) = self.q {
                to[..scalars].copy_from_slice(&q[i * scalars..(i + 1) * scalars]);
            }
            let to = &mut T::Of::<S>::slice_mut(t, &mut to[scalars..scalars + vectors])[..n];
            let [x, y, z] = three::<T::Of<S>>(t, self.vw, i, 2 * vectors, 0, vectors);
            for v in 0..n {
                to[v] = x[v].mul_add(x[v], y[v].mul_add(y[v], z[v].mul_add(z[v], epsilon))).sqrt();
            }
        }
    }
}

/// The three rows of atom `i`, of each the columns from `first` on.
#[inline(always)]
pub(super) fn three<V: Lanes>(t: V::Token, all: &[V::Scalar], i: usize, stride: usize, first: usize, len: usize) -> [&[V]; 3] {
    let n = len / V::LANES;
    let at = |k: usize| (3 * i + k) * stride + first;
    [&V::slice(t, &all[at(0)..at(0) + len])[..n], &V::slice(t, &all[at(1)..at(1) + len])[..n], &V::slice(t, &all[at(2)..at(2) + len])[..n]]
}

/// The same to write to.
#[inline(always)]
pub(super) fn three_mut<V: Lanes>(t: V::Token, all: &mut [V::Scalar], i: usize, stride: usize, first: usize, len: usize) -> [&mut [V]; 3] {
    let n = len / V::LANES;
    let rows = &mut all[3 * i * stride..3 * (i + 1) * stride];
    let (a, rows) = rows.split_at_mut(stride);
    let (b, c) = rows.split_at_mut(stride);
    [
        &mut V::slice_mut(t, &mut a[first..first + len])[..n],
        &mut V::slice_mut(t, &mut b[first..first + len])[..n],
        &mut V::slice_mut(t, &mut c[first..first + len])[..n],
    ]
}

/// Row `i`, of which the columns from `first` on.
#[inline(always)]
pub(super) fn row<V: Lanes>(t: V::Token, all: &[V::Scalar], i: usize, stride: usize, first: usize, len: usize) -> &[V] {
    let n = len / V::LANES;
    &V::slice(t, &all[i * stride + first..i * stride + first + len])[..n]
}

/// The same to write to.
#[inline(always)]
pub(super) fn row_mut<V: Lanes>(t: V::Token, all: &mut [V::Scalar], i: usize, stride: usize, first: usize, len: usize) -> &mut [V] {
    let n = len / V::LANES;
    &mut V::slice_mut(t, &mut all[i * stride + first..i * stride + first + len])[..n]
}

/// End of a mixing: `q' = q + a_q + a_qμ ⟨V, W⟩`, `μ' = μ + a_μ W`, with `a = [a_q | a_μ | a_qμ]`.
pub(super) struct Mix<'a, T> {
    pub(super) atoms: usize,
    pub(super) shape: GateShape,
    pub(super) cat: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) a: &'a [T],
    pub(super) mu: &'a [T],
    pub(super) q_out: &'a mut [T],
    pub(super) mu_out: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Mix<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.shape.vectors;
        let n = width / T::Of::<S>::LANES;
        for i in 0..self.atoms {
            let q = row::<T::Of<S>>(t, self.cat, i, self.shape.cat, 0, width);
            let [vx, vy, vz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, 0, width);
            let [wx, wy, wz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, width, width);
            let [mx, my, mz] = three::<T::Of<S>>(t, self.mu, i, width, 0, width);
            let aq = row::<T::Of<S>>(t, self.a, i, 3 * width, 0, width);
            let am = row::<T::Of<S>>(t, self.a, i, 3 * width, width, width);
            let ad = row::<T::Of<S>>(t, self.a, i, 3 * width, 2 * width, width);
            let out = row_mut::<T::Of<S>>(t, self.q_out, i, width, 0, width);
            let [ox, oy, oz] = three_mut::<T::Of<S>>(t, self.mu_out, i, width, 0, width);
            for v in 0..n {
                let dot = vx[v].mul_add(wx[v], vy[v].mul_add(wy[v], vz[v] * wz[v]));
                out[v] = ad[v].mul_add(dot, q[v] + aq[v]);
                ox[v] = am[v].mul_add(wx[v], mx[v]);
                oy[v] = am[v].mul_add(wy[v], my[v]);
                oz[v] = am[v].mul_add(wz[v], mz[v]);
            }
        }
    }
}

/// The reverse of [`Mix`] with respect to a.
pub(super) struct MixBackA<'a, T> {
    pub(super) atoms: usize,
    pub(super) width: usize,
    pub(super) gq: &'a [T],
    pub(super) gmu: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) ga: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MixBackA<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.width;
        let n = width / T::Of::<S>::LANES;
        for i in 0..self.atoms {
            let gq = row::<T::Of<S>>(t, self.gq, i, width, 0, width);
            let [gx, gy, gz] = three::<T::Of<S>>(t, self.gmu, i, width, 0, width);
            let [vx, vy, vz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, 0, width);
            let [wx, wy, wz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, width, width);
            let ga = row_mut::<T::Of<S>>(t, self.ga, i, 3 * width, 0, 3 * width);
            let (aq, rest) = ga.split_at_mut(n);
            let (am, ad) = rest.split_at_mut(n);
            for v in 0..n {
                let dot = vx[v].mul_add(wx[v], vy[v].mul_add(wy[v], vz[v] * wz[v]));
                aq[v] = gq[v];
                am[v] = gx[v].mul_add(wx[v], gy[v].mul_add(wy[v], gz[v] * wz[v]));
                ad[v] = gq[v] * dot;
            }
        }
    }
}

/// The reverse of [`Mix`] and [`Norms`] with respect to V and W; adds what came through `cat` to `gq`.
pub(super) struct MixBackV<'a, T> {
    pub(super) atoms: usize,
    pub(super) shape: GateShape,
    pub(super) gq: &'a mut [T],
    pub(super) gmu: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) a: &'a [T],
    pub(super) cat: &'a [T],
    pub(super) gcat: &'a [T],
    pub(super) gvw: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MixBackV<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.shape.vectors;
        let n = width / T::Of::<S>::LANES;
        for i in 0..self.atoms {
            let gq = row_mut::<T::Of<S>>(t, self.gq, i, width, 0, width);
            let am = row::<T::Of<S>>(t, self.a, i, 3 * width, width, width);
            let ad = row::<T::Of<S>>(t, self.a, i, 3 * width, 2 * width, width);
            let norm = row::<T::Of<S>>(t, self.cat, i, self.shape.cat, width, width);
            let through = row::<T::Of<S>>(t, self.gcat, i, self.shape.cat, 0, width);
            let gnorm = row::<T::Of<S>>(t, self.gcat, i, self.shape.cat, width, width);
            for k in 0..3 {
                let vw = row::<T::Of<S>>(t, self.vw, 3 * i + k, 2 * width, 0, 2 * width);
                let (v, w) = vw.split_at(n);
                let g = row::<T::Of<S>>(t, self.gmu, 3 * i + k, width, 0, width);
                let (gv, gw) = row_mut::<T::Of<S>>(t, self.gvw, 3 * i + k, 2 * width, 0, 2 * width).split_at_mut(n);
                for x in 0..n {
                    let along = gq[x] * ad[x];
                    gv[x] = along.mul_add(w[x], gnorm[x] * (v[x] / norm[x]));
                    gw[x] = along.mul_add(v[x], am[x] * g[x]);
                }
            }
            for v in 0..n {
                gq[v] += through[v];
            }
        }
    }
}

/// End of a gated block: `q' = silu(o_q)` (the last block's is not used), `μ' = o_g W`, with `o = [o_q | o_g]`.
pub(super) struct Gate<'a, T> {
    pub(super) atoms: usize,
    pub(super) width: usize,
    pub(super) o: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) q_out: &'a mut [T],
    pub(super) mu_out: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Gate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.width;
        let n = width / T::Of::<S>::LANES;
        let one = T::Of::<S>::lit(t, 1.0);
        for i in 0..self.atoms {
            let (oq, og) = row::<T::Of<S>>(t, self.o, i, 2 * width, 0, 2 * width).split_at(n);
            let [wx, wy, wz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, width, width);
            let q = row_mut::<T::Of<S>>(t, self.q_out, i, width, 0, width);
            let [ox, oy, oz] = three_mut::<T::Of<S>>(t, self.mu_out, i, width, 0, width);
            for v in 0..n {
                q[v] = oq[v] / (one + (-oq[v]).exp());
                ox[v] = og[v] * wx[v];
                oy[v] = og[v] * wy[v];
                oz[v] = og[v] * wz[v];
            }
        }
    }
}

/// The reverse of [`Gate`] with respect to o.
pub(super) struct GateBackO<'a, T> {
    pub(super) atoms: usize,
    pub(super) width: usize,
    /// Nothing for the last block.
    pub(super) gq: Option<&'a [T]>,
    pub(super) gmu: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) o: &'a [T],
    pub(super) go: &'a mut [T],
}

impl<T: SimdReal> WithSimd for GateBackO<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let width = self.width;
        let n = width / T::Of::<S>::LANES;
        let one = T::Of::<S>::lit(t, 1.0);
        for i in 0..self.atoms {
            let oq = row::<T::Of<S>>(t, self.o, i, 2 * width, 0, width);
            let [gx, gy, gz] = three::<T::Of<S>>(t, self.gmu, i, width, 0, width);
            let [wx, wy, wz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, width, width);
            let (gq, gg) = row_mut::<T::Of<S>>(t, self.go, i, 2 * width, 0, 2 * width).split_at_mut(n);
            for v in 0..n {
                gg[v] = gx[v].mul_add(wx[v], gy[v].mul_add(wy[v], gz[v] * wz[v]));
            }
            match self.gq {
                None => gq.fill(T::Of::<S>::zero(t)),
                Some(from) => {
                    let from = row::<T::Of<S>>(t, from, i, width, 0, width);
                    for v in 0..n {
                        let s = one / (one + (-oq[v]).exp());
                        gq[v] = from[v] * (oq[v] * s).mul_add(one - s, s);
                    }
                }
            }
        }
    }
}

/// The reverse of [`Gate`] and [`Norms`] with respect to V and W; `gq` becomes what came through `cat`.
pub(super) struct GateBackV<'a, T> {
    pub(super) atoms: usize,
    pub(super) shape: GateShape,
    pub(super) gmu: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) o: &'a [T],
    pub(super) cat: &'a [T],
    pub(super) gcat: &'a [T],
    pub(super) gvw: &'a mut [T],
    pub(super) gq: &'a mut [T],
}

impl<T: SimdReal> WithSimd for GateBackV<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let GateShape { scalars, vectors: width, cat, .. } = self.shape;
        let n = width / T::Of::<S>::LANES;
        for i in 0..self.atoms {
            self.gq[i * scalars..(i + 1) * scalars].copy_from_slice(&self.gcat[i * cat..i * cat + scalars]);
            let gate = row::<T::Of<S>>(t, self.o, i, 2 * width, width, width);
            let norm = row::<T::Of<S>>(t, self.cat, i, cat, scalars, width);
            let gnorm = row::<T::Of<S>>(t, self.gcat, i, cat, scalars, width);
            for k in 0..3 {
                let v = row::<T::Of<S>>(t, self.vw, 3 * i + k, 2 * width, 0, width);
                let g = row::<T::Of<S>>(t, self.gmu, 3 * i + k, width, 0, width);
                let (gv, gw) = row_mut::<T::Of<S>>(t, self.gvw, 3 * i + k, 2 * width, 0, 2 * width).split_at_mut(n);
                for x in 0..n {
                    gv[x] = gnorm[x] * (v[x] / norm[x]);
                    gw[x] = gate[x] * g[x];
                }
            }
        }
    }
}

/// A buffer of at least `rows` rows of `width` numbers.
pub(super) fn reserve<T: SimdReal>(buffer: &mut AlignedBuffer<T>, rows: usize, width: usize) {
    buffer.reserve(rows * padded(width).max(PAD));
}
