//! Derivatives along a displacement of the atoms, of what lies between matrix products and of its reverse.
//!
//! Rows `[2A]` hold values and tangents: of what the way forward leaves, values come first; of adjoints, tangents do. With that
//! order one product over all rows, `[ġ; g]ᵀ [x; ẋ]`, is the tangent of a weight's gradient.

use super::kernels::{Filter, FilterGradient, GateShape, PASS, Pairs, STEP, band, row, row_mut, three, three_mut, two_rows};
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{Lanes, SimdReal};

/// How distances and directions of pairs change: ḋ, then u̇.
#[derive(Default)]
pub(super) struct PairTangents<T> {
    values: Vec<[T; 4]>,
}

impl<T: SimdReal> PairTangents<T> {
    /// Of atoms that move along `direction [A, 3]`: d = √(r² + ε), u = r/d, so ḋ = u·ṙ and u̇ = (ṙ − u ḋ)/d.
    pub(super) fn set(&mut self, pairs: &Pairs<T>, direction: &[T]) {
        self.values.clear();
        for (&[i, j], &[x, y, z, inverse]) in pairs.atoms.iter().zip(&pairs.geometry) {
            let (i, j, u) = (3 * i as usize, 3 * j as usize, [x, y, z]);
            let r = [0, 1, 2].map(|k| direction[j + k] - direction[i + k]);
            let d = u[0] * r[0] + u[1] * r[1] + u[2] * r[2];
            let turn = [0, 1, 2].map(|k| (r[k] - u[k] * d) * inverse);
            self.values.push([d, turn[0], turn[1], turn[2]]);
        }
    }
}

/// A row of the filter and its tangent, at once: `out = Σ_k weights[k] values[start + k] + weights[band] bias`, `turned` with `rates`.
#[inline(always)]
fn filter_rows<V: Lanes>(
    t: V::Token,
    filter: Filter<'_, V::Scalar>,
    band: usize,
    [weights, rates]: [&[V::Scalar; STEP]; 2],
    start: u32,
    [out, turned]: [&mut [V::Scalar]; 2],
) {
    let len = out.len();
    let (out, turned) = (V::slice_mut(t, out), V::slice_mut(t, turned));
    let n = out.len();
    let (out, turned) = (&mut out[..n], &mut turned[..n]);
    let bias = &V::slice(t, &filter.bias[filter.base..filter.base + len])[..n];
    let (fc, rate) = (V::splat(t, weights[band]), V::splat(t, rates[band]));
    for v in 0..n {
        out[v] = fc * bias[v];
        turned[v] = rate * bias[v];
    }
    let mut k = 0;
    while k < band {
        let (mut w, mut dw) = ([V::zero(t); PASS], [V::zero(t); PASS]);
        let mut rows = [V::slice(t, &[]); PASS];
        for r in 0..PASS {
            (w[r], dw[r]) = (V::splat(t, weights[k + r]), V::splat(t, rates[k + r]));
            rows[r] = &V::slice(t, &filter.values[(start as usize + k + r) * filter.stride + filter.base..][..len])[..n];
        }
        for v in 0..n {
            let (mut sum, mut rate) = (out[v], turned[v]);
            for r in 0..PASS {
                let value = rows[r][v];
                sum = w[r].mul_add(value, sum);
                rate = dw[r].mul_add(value, rate);
            }
            out[v] = sum;
            turned[v] = rate;
        }
        k += PASS;
    }
}

/// The reverse of [`filter_rows`] with respect to values and bias: adds `weights[k] ġ + rates[k] g`.
#[inline(always)]
fn filter_rows_back<V: Lanes>(
    t: V::Token,
    gradient: &mut FilterGradient<'_, V::Scalar>,
    band: usize,
    [weights, rates]: [&[V::Scalar; STEP]; 2],
    start: u32,
    [turned, g]: [&[V]; 2],
) {
    let n = g.len();
    let (turned, g) = (&turned[..n], &g[..n]);
    let len = n * V::LANES;
    let (fc, rate) = (V::splat(t, weights[band]), V::splat(t, rates[band]));
    let bias = &mut V::slice_mut(t, &mut gradient.bias[gradient.base..gradient.base + len])[..n];
    for v in 0..n {
        bias[v] = fc.mul_add(turned[v], rate.mul_add(g[v], bias[v]));
    }
    for k in 0..band {
        let (w, dw) = (V::splat(t, weights[k]), V::splat(t, rates[k]));
        let row = &mut V::slice_mut(t, &mut gradient.values[(start as usize + k) * gradient.stride + gradient.base..][..len])[..n];
        for v in 0..n {
            row[v] = w.mul_add(turned[v], dw.mul_add(g[v], row[v]));
        }
    }
}

/// Rates of the weights of a pair whose distance changes by `d`.
#[inline(always)]
fn rates<T: SimdReal>(slopes: &[T; STEP], d: T) -> [T; STEP] {
    let mut rates = [T::default(); STEP];
    for (rate, &slope) in rates.iter_mut().zip(slopes) {
        *rate = slope * d;
    }
    rates
}

/// Tangents of [`Messages`](super::kernels::Messages): adds to those of `q` and of vectors.
pub(super) struct MessagesTangent<'a, T> {
    pub(super) pairs: &'a Pairs<T>,
    pub(super) tangents: &'a PairTangents<T>,
    pub(super) filter: Filter<'a, T>,
    pub(super) atoms: usize,
    pub(super) width: usize,
    /// Values and tangents `[2A, 3, width]`.
    pub(super) x: &'a [T],
    pub(super) mu: &'a [T],
    /// Tangents `[A, …]`.
    pub(super) q: &'a mut [T],
    pub(super) q_stride: usize,
    pub(super) out: &'a mut [T],
    /// `[2, 3, width]`.
    pub(super) row: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MessagesTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (width, wide, atoms) = (self.width, 3 * self.width, self.atoms);
        let n = width / T::Of::<S>::LANES;
        let band = band::<T>().0;
        let (row, turned) = self.row.split_at_mut(wide);
        let turned = &mut turned[..wide];
        for (p, &[i, j]) in self.pairs.atoms.iter().enumerate() {
            let (i, j) = (i as usize, j as usize);
            let [d, dx, dy, dz] = self.tangents.values[p];
            let weights = [&self.pairs.weights[p], &rates(&self.pairs.slopes[p], d)];
            filter_rows::<T::Of<S>>(t, self.filter, band, weights, self.pairs.start[p], [&mut *row, &mut *turned]);
            let (w, dw) = (&T::Of::<S>::slice(t, row)[..3 * n], &T::Of::<S>::slice(t, turned)[..3 * n]);
            let [ux, uy, uz, _] = self.pairs.geometry[p];
            let (ux, uy, uz) = (T::Of::<S>::splat(t, ux), T::Of::<S>::splat(t, uy), T::Of::<S>::splat(t, uz));
            let (dx, dy, dz) = (T::Of::<S>::splat(t, dx), T::Of::<S>::splat(t, dy), T::Of::<S>::splat(t, dz));
            let (qi, qj) = two_rows(self.q, self.q_stride, i, j, width);
            let (qi, qj) = (&mut T::Of::<S>::slice_mut(t, qi)[..n], &mut T::Of::<S>::slice_mut(t, qj)[..n]);
            let (oi, oj) = two_rows(self.out, wide, i, j, wide);
            let (oi, oj) = (&mut T::Of::<S>::slice_mut(t, oi)[..3 * n], &mut T::Of::<S>::slice_mut(t, oj)[..3 * n]);
            let xi = self::row::<T::Of<S>>(t, self.x, i, wide, 0, wide);
            let xj = self::row::<T::Of<S>>(t, self.x, j, wide, 0, wide);
            let dxi = self::row::<T::Of<S>>(t, self.x, atoms + i, wide, 0, wide);
            let dxj = self::row::<T::Of<S>>(t, self.x, atoms + j, wide, 0, wide);
            let mi = self::row::<T::Of<S>>(t, self.mu, i, wide, 0, wide);
            let mj = self::row::<T::Of<S>>(t, self.mu, j, wide, 0, wide);
            let dmi = self::row::<T::Of<S>>(t, self.mu, atoms + i, wide, 0, wide);
            let dmj = self::row::<T::Of<S>>(t, self.mu, atoms + j, wide, 0, wide);
            for v in 0..n {
                let (wq, wr, wm) = (w[v], w[n + v], w[2 * n + v]);
                let (dwq, dwr, dwm) = (dw[v], dw[n + v], dw[2 * n + v]);
                qi[v] = dwq.mul_add(xj[v], wq.mul_add(dxj[v], qi[v]));
                qj[v] = dwq.mul_add(xi[v], wq.mul_add(dxi[v], qj[v]));
                // Along the pair, which points the other way for j.
                let (ri, rj) = (-(wr * xi[n + v]), wr * xj[n + v]);
                let (dri, drj) = (-dwr.mul_add(xi[n + v], wr * dxi[n + v]), dwr.mul_add(xj[n + v], wr * dxj[n + v]));
                let (ci, cj) = (wm * xi[2 * n + v], wm * xj[2 * n + v]);
                let (dci, dcj) = (dwm.mul_add(xi[2 * n + v], wm * dxi[2 * n + v]), dwm.mul_add(xj[2 * n + v], wm * dxj[2 * n + v]));
                let (x, y, z) = (v, n + v, 2 * n + v);
                oi[x] = drj.mul_add(ux, rj.mul_add(dx, dcj.mul_add(mj[x], cj.mul_add(dmj[x], oi[x]))));
                oi[y] = drj.mul_add(uy, rj.mul_add(dy, dcj.mul_add(mj[y], cj.mul_add(dmj[y], oi[y]))));
                oi[z] = drj.mul_add(uz, rj.mul_add(dz, dcj.mul_add(mj[z], cj.mul_add(dmj[z], oi[z]))));
                oj[x] = dri.mul_add(ux, ri.mul_add(dx, dci.mul_add(mi[x], ci.mul_add(dmi[x], oj[x]))));
                oj[y] = dri.mul_add(uy, ri.mul_add(dy, dci.mul_add(mi[y], ci.mul_add(dmi[y], oj[y]))));
                oj[z] = dri.mul_add(uz, ri.mul_add(dz, dci.mul_add(mi[z], ci.mul_add(dmi[z], oj[z]))));
            }
        }
    }
}

/// Tangents of [`MessagesBack`](super::kernels::MessagesBack), and its adjoints once more.
pub(super) struct MessagesBackTangent<'a, T> {
    pub(super) pairs: &'a Pairs<T>,
    pub(super) tangents: &'a PairTangents<T>,
    pub(super) filter: Filter<'a, T>,
    pub(super) atoms: usize,
    pub(super) width: usize,
    /// Values and tangents `[2A, 3, width]`.
    pub(super) x: &'a [T],
    pub(super) mu: &'a [T],
    /// Tangents and values of adjoints of what came out `[2A, width]` and `[2A, 3, width]`.
    pub(super) gq: &'a [T],
    pub(super) gmu: &'a [T],
    /// Adds to these, which are likewise.
    pub(super) gx: &'a mut [T],
    pub(super) gmu_in: &'a mut [T],
    /// Adds the tangent of the filter's gradient.
    pub(super) parameters: FilterGradient<'a, T>,
    /// `[4, 3, width]`.
    pub(super) row: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MessagesBackTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let (width, wide, atoms) = (self.width, 3 * self.width, self.atoms);
        let n = width / T::Of::<S>::LANES;
        let band = band::<T>().0;
        let (row, rest) = self.row.split_at_mut(wide);
        let (turned, rest) = rest.split_at_mut(wide);
        let (grow, rest) = rest.split_at_mut(wide);
        let gturned = &mut rest[..wide];
        let (dgx, gx) = self.gx.split_at_mut(atoms * wide);
        let (dgmu, gmu) = self.gmu_in.split_at_mut(atoms * wide);
        for (p, &[i, j]) in self.pairs.atoms.iter().enumerate() {
            let (i, j) = (i as usize, j as usize);
            let [d, dx, dy, dz] = self.tangents.values[p];
            let start = self.pairs.start[p];
            let weights = [&self.pairs.weights[p], &rates(&self.pairs.slopes[p], d)];
            filter_rows::<T::Of<S>>(t, self.filter, band, weights, start, [&mut *row, &mut *turned]);
            let (w, dw) = (&T::Of::<S>::slice(t, row)[..3 * n], &T::Of::<S>::slice(t, turned)[..3 * n]);
            let (gw, dgw) = (&mut T::Of::<S>::slice_mut(t, grow)[..3 * n], &mut T::Of::<S>::slice_mut(t, gturned)[..3 * n]);
            let [ux, uy, uz, _] = self.pairs.geometry[p];
            let (ux, uy, uz) = (T::Of::<S>::splat(t, ux), T::Of::<S>::splat(t, uy), T::Of::<S>::splat(t, uz));
            let (dx, dy, dz) = (T::Of::<S>::splat(t, dx), T::Of::<S>::splat(t, dy), T::Of::<S>::splat(t, dz));
            let (gxi, gxj) = two_rows(gx, wide, i, j, wide);
            let (gxi, gxj) = (&mut T::Of::<S>::slice_mut(t, gxi)[..3 * n], &mut T::Of::<S>::slice_mut(t, gxj)[..3 * n]);
            let (dgxi, dgxj) = two_rows(dgx, wide, i, j, wide);
            let (dgxi, dgxj) = (&mut T::Of::<S>::slice_mut(t, dgxi)[..3 * n], &mut T::Of::<S>::slice_mut(t, dgxj)[..3 * n]);
            let (oi, oj) = two_rows(gmu, wide, i, j, wide);
            let (oi, oj) = (&mut T::Of::<S>::slice_mut(t, oi)[..3 * n], &mut T::Of::<S>::slice_mut(t, oj)[..3 * n]);
            let (doi, doj) = two_rows(dgmu, wide, i, j, wide);
            let (doi, doj) = (&mut T::Of::<S>::slice_mut(t, doi)[..3 * n], &mut T::Of::<S>::slice_mut(t, doj)[..3 * n]);
            let xi = self::row::<T::Of<S>>(t, self.x, i, wide, 0, wide);
            let xj = self::row::<T::Of<S>>(t, self.x, j, wide, 0, wide);
            let dxi = self::row::<T::Of<S>>(t, self.x, atoms + i, wide, 0, wide);
            let dxj = self::row::<T::Of<S>>(t, self.x, atoms + j, wide, 0, wide);
            let mi = self::row::<T::Of<S>>(t, self.mu, i, wide, 0, wide);
            let mj = self::row::<T::Of<S>>(t, self.mu, j, wide, 0, wide);
            let dmi = self::row::<T::Of<S>>(t, self.mu, atoms + i, wide, 0, wide);
            let dmj = self::row::<T::Of<S>>(t, self.mu, atoms + j, wide, 0, wide);
            let dgi = self::row::<T::Of<S>>(t, self.gmu, i, wide, 0, wide);
            let dgj = self::row::<T::Of<S>>(t, self.gmu, j, wide, 0, wide);
            let gi = self::row::<T::Of<S>>(t, self.gmu, atoms + i, wide, 0, wide);
            let gj = self::row::<T::Of<S>>(t, self.gmu, atoms + j, wide, 0, wide);
            let dqi = self::row::<T::Of<S>>(t, self.gq, i, width, 0, width);
            let dqj = self::row::<T::Of<S>>(t, self.gq, j, width, 0, width);
            let qi = self::row::<T::Of<S>>(t, self.gq, atoms + i, width, 0, width);
            let qj = self::row::<T::Of<S>>(t, self.gq, atoms + j, width, 0, width);
            for v in 0..n {
                let (x, y, z) = (v, n + v, 2 * n + v);
                let (wq, wr, wm) = (w[x], w[y], w[z]);
                let (dwq, dwr, dwm) = (dw[x], dw[y], dw[z]);
                let (gix, giy, giz) = (gi[x], gi[y], gi[z]);
                let (gjx, gjy, gjz) = (gj[x], gj[y], gj[z]);
                let (hix, hiy, hiz) = (dgi[x], dgi[y], dgi[z]);
                let (hjx, hjy, hjz) = (dgj[x], dgj[y], dgj[z]);
                // Along the pair, and along the neighbour's vectors.
                let along_i = gix.mul_add(ux, giy.mul_add(uy, giz * uz));
                let along_j = -gjx.mul_add(ux, gjy.mul_add(uy, gjz * uz));
                let turn_i = gix.mul_add(dx, giy.mul_add(dy, giz.mul_add(dz, hix.mul_add(ux, hiy.mul_add(uy, hiz * uz)))));
                let turn_j = -gjx.mul_add(dx, gjy.mul_add(dy, gjz.mul_add(dz, hjx.mul_add(ux, hjy.mul_add(uy, hjz * uz)))));
                let dot_i = gix.mul_add(mj[x], giy.mul_add(mj[y], giz * mj[z]));
                let dot_j = gjx.mul_add(mi[x], gjy.mul_add(mi[y], gjz * mi[z]));
                let twist_i =
                    gix.mul_add(dmj[x], giy.mul_add(dmj[y], giz.mul_add(dmj[z], hix.mul_add(mj[x], hiy.mul_add(mj[y], hiz * mj[z])))));
                let twist_j =
                    gjx.mul_add(dmi[x], gjy.mul_add(dmi[y], gjz.mul_add(dmi[z], hjx.mul_add(mi[x], hjy.mul_add(mi[y], hjz * mi[z])))));
                // Filter.
                gw[x] = xj[x].mul_add(qi[v], xi[x] * qj[v]);
                gw[y] = xj[y].mul_add(along_i, xi[y] * along_j);
                gw[z] = xj[z].mul_add(dot_i, xi[z] * dot_j);
                dgw[x] = dxj[x].mul_add(qi[v], xj[x].mul_add(dqi[v], dxi[x].mul_add(qj[v], xi[x] * dqj[v])));
                dgw[y] = dxj[y].mul_add(along_i, xj[y].mul_add(turn_i, dxi[y].mul_add(along_j, xi[y] * turn_j)));
                dgw[z] = dxj[z].mul_add(dot_i, xj[z].mul_add(twist_i, dxi[z].mul_add(dot_j, xi[z] * twist_j)));
                // What the neighbour sent.
                gxj[x] = wq.mul_add(qi[v], gxj[x]);
                gxi[x] = wq.mul_add(qj[v], gxi[x]);
                gxj[y] = wr.mul_add(along_i, gxj[y]);
                gxi[y] = wr.mul_add(along_j, gxi[y]);
                gxj[z] = wm.mul_add(dot_i, gxj[z]);
                gxi[z] = wm.mul_add(dot_j, gxi[z]);
                dgxj[x] = dwq.mul_add(qi[v], wq.mul_add(dqi[v], dgxj[x]));
                dgxi[x] = dwq.mul_add(qj[v], wq.mul_add(dqj[v], dgxi[x]));
                dgxj[y] = dwr.mul_add(along_i, wr.mul_add(turn_i, dgxj[y]));
                dgxi[y] = dwr.mul_add(along_j, wr.mul_add(turn_j, dgxi[y]));
                dgxj[z] = dwm.mul_add(dot_i, wm.mul_add(twist_i, dgxj[z]));
                dgxi[z] = dwm.mul_add(dot_j, wm.mul_add(twist_j, dgxi[z]));
                // Vectors before.
                let (ci, cj) = (wm * xi[z], wm * xj[z]);
                let (dci, dcj) = (dwm.mul_add(xi[z], wm * dxi[z]), dwm.mul_add(xj[z], wm * dxj[z]));
                oj[x] = cj.mul_add(gix, oj[x]);
                oj[y] = cj.mul_add(giy, oj[y]);
                oj[z] = cj.mul_add(giz, oj[z]);
                oi[x] = ci.mul_add(gjx, oi[x]);
                oi[y] = ci.mul_add(gjy, oi[y]);
                oi[z] = ci.mul_add(gjz, oi[z]);
                doj[x] = dcj.mul_add(gix, cj.mul_add(hix, doj[x]));
                doj[y] = dcj.mul_add(giy, cj.mul_add(hiy, doj[y]));
                doj[z] = dcj.mul_add(giz, cj.mul_add(hiz, doj[z]));
                doi[x] = dci.mul_add(gjx, ci.mul_add(hjx, doi[x]));
                doi[y] = dci.mul_add(gjy, ci.mul_add(hjy, doi[y]));
                doi[z] = dci.mul_add(gjz, ci.mul_add(hjz, doi[z]));
            }
            filter_rows_back::<T::Of<S>>(t, &mut self.parameters, band, weights, start, [dgw, gw]);
        }
    }
}

/// Tangent of [`Silu`](super::kernels::Silu): `y = silu′(x) ẋ`.
pub(super) struct SiluTangent<'a, T> {
    pub(super) x: &'a [T],
    pub(super) turned: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for SiluTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let one = T::Of::<S>::lit(t, 1.0);
        let (x, turned) = (T::Of::<S>::slice(t, self.x), T::Of::<S>::slice(t, self.turned));
        for ((y, &x), &turned) in T::Of::<S>::slice_mut(t, self.y).iter_mut().zip(x).zip(turned) {
            let s = one / (one + (-x).exp());
            *y = turned * (x * s).mul_add(one - s, s);
        }
    }
}

/// Tangent of [`SiluBack`](super::kernels::SiluBack): rows `[2n]` of adjoints `g` are multiplied by the derivative, and `y` becomes
/// value and tangent. With s the sigmoid, silu″ = s (1 − s) (2 + x (1 − 2 s)).
pub(super) struct SiluBackTangent<'a, T> {
    /// Values and tangents.
    pub(super) x: &'a [T],
    /// Tangents and values of adjoints.
    pub(super) g: &'a mut [T],
    /// Values and tangents.
    pub(super) y: &'a mut [T],
}

impl<T: SimdReal> WithSimd for SiluBackTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (one, two) = (T::Of::<S>::lit(t, 1.0), T::Of::<S>::lit(t, 2.0));
        let half = self.x.len() / 2;
        let (x, turned) = self.x.split_at(half);
        let (x, turned) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice(t, turned));
        let n = x.len();
        let (dg, g) = self.g.split_at_mut(half);
        let (dg, g) = (&mut T::Of::<S>::slice_mut(t, dg)[..n], &mut T::Of::<S>::slice_mut(t, g)[..n]);
        let (y, dy) = self.y.split_at_mut(half);
        let (y, dy) = (&mut T::Of::<S>::slice_mut(t, y)[..n], &mut T::Of::<S>::slice_mut(t, dy)[..n]);
        let turned = &turned[..n];
        for v in 0..n {
            let s = one / (one + (-x[v]).exp());
            let value = x[v] * s;
            let slope = value.mul_add(one - s, s);
            let bend = s * (one - s) * x[v].mul_add(one - two * s, two) * turned[v];
            y[v] = value;
            dy[v] = slope * turned[v];
            dg[v] = slope.mul_add(dg[v], bend * g[v]);
            g[v] = g[v] * slope;
        }
    }
}

/// Tangent of [`Norms`](super::kernels::Norms): `ṅ = ⟨V, V̇⟩/n` in rows `[A, 2A)` of `cat`.
pub(super) struct NormsTangent<'a, T> {
    pub(super) atoms: usize,
    pub(super) shape: GateShape,
    pub(super) vw: &'a [T],
    pub(super) cat: &'a mut [T],
}

impl<T: SimdReal> WithSimd for NormsTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let GateShape { scalars, vectors, cat, .. } = self.shape;
        let n = vectors / T::Of::<S>::LANES;
        let (values, tangents) = self.cat.split_at_mut(self.atoms * cat);
        for i in 0..self.atoms {
            let norm = row::<T::Of<S>>(t, values, i, cat, scalars, vectors);
            let to = row_mut::<T::Of<S>>(t, tangents, i, cat, scalars, vectors);
            let [x, y, z] = three::<T::Of<S>>(t, self.vw, i, 2 * vectors, 0, vectors);
            let [dx, dy, dz] = three::<T::Of<S>>(t, self.vw, self.atoms + i, 2 * vectors, 0, vectors);
            for v in 0..n {
                to[v] = x[v].mul_add(dx[v], y[v].mul_add(dy[v], z[v] * dz[v])) / norm[v];
            }
        }
    }
}

/// Tangent of [`Mix`](super::kernels::Mix), into rows `[A, 2A)` of what comes out.
pub(super) struct MixTangent<'a, T> {
    pub(super) atoms: usize,
    pub(super) shape: GateShape,
    pub(super) cat: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) a: &'a [T],
    pub(super) mu: &'a [T],
    pub(super) q_out: &'a mut [T],
    pub(super) mu_out: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MixTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (width, atoms) = (self.shape.vectors, self.atoms);
        let n = width / T::Of::<S>::LANES;
        for i in 0..atoms {
            let k = atoms + i;
            let [vx, vy, vz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, 0, width);
            let [wx, wy, wz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, width, width);
            let [dvx, dvy, dvz] = three::<T::Of<S>>(t, self.vw, k, 2 * width, 0, width);
            let [dwx, dwy, dwz] = three::<T::Of<S>>(t, self.vw, k, 2 * width, width, width);
            let am = row::<T::Of<S>>(t, self.a, i, 3 * width, width, width);
            let ad = row::<T::Of<S>>(t, self.a, i, 3 * width, 2 * width, width);
            let daq = row::<T::Of<S>>(t, self.a, k, 3 * width, 0, width);
            let dam = row::<T::Of<S>>(t, self.a, k, 3 * width, width, width);
            let dad = row::<T::Of<S>>(t, self.a, k, 3 * width, 2 * width, width);
            let dq = row::<T::Of<S>>(t, self.cat, k, self.shape.cat, 0, width);
            let [mx, my, mz] = three::<T::Of<S>>(t, self.mu, k, width, 0, width);
            let out = row_mut::<T::Of<S>>(t, self.q_out, k, width, 0, width);
            let [ox, oy, oz] = three_mut::<T::Of<S>>(t, self.mu_out, k, width, 0, width);
            for v in 0..n {
                let dot = vx[v].mul_add(wx[v], vy[v].mul_add(wy[v], vz[v] * wz[v]));
                let left = dvx[v].mul_add(wx[v], dvy[v].mul_add(wy[v], dvz[v] * wz[v]));
                let turn = vx[v].mul_add(dwx[v], vy[v].mul_add(dwy[v], vz[v].mul_add(dwz[v], left)));
                out[v] = dad[v].mul_add(dot, ad[v].mul_add(turn, dq[v] + daq[v]));
                ox[v] = dam[v].mul_add(wx[v], am[v].mul_add(dwx[v], mx[v]));
                oy[v] = dam[v].mul_add(wy[v], am[v].mul_add(dwy[v], my[v]));
                oz[v] = dam[v].mul_add(wz[v], am[v].mul_add(dwz[v], mz[v]));
            }
        }
    }
}

/// Tangent of [`MixBackA`](super::kernels::MixBackA), and itself.
pub(super) struct MixBackATangent<'a, T> {
    pub(super) atoms: usize,
    pub(super) width: usize,
    pub(super) gq: &'a [T],
    pub(super) gmu: &'a [T],
    pub(super) vw: &'a [T],
    pub(super) ga: &'a mut [T],
}

impl<T: SimdReal> WithSimd for MixBackATangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (width, atoms) = (self.width, self.atoms);
        let n = width / T::Of::<S>::LANES;
        let (tangents, values) = self.ga.split_at_mut(atoms * 3 * width);
        for i in 0..atoms {
            let k = atoms + i;
            let (dgq, gq) = (row::<T::Of<S>>(t, self.gq, i, width, 0, width), row::<T::Of<S>>(t, self.gq, k, width, 0, width));
            let [hx, hy, hz] = three::<T::Of<S>>(t, self.gmu, i, width, 0, width);
            let [gx, gy, gz] = three::<T::Of<S>>(t, self.gmu, k, width, 0, width);
            let [vx, vy, vz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, 0, width);
            let [wx, wy, wz] = three::<T::Of<S>>(t, self.vw, i, 2 * width, width, width);
            let [dvx, dvy, dvz] = three::<T::Of<S>>(t, self.vw, k, 2 * width, 0, width);
            let [dwx, dwy, dwz] = three::<T::Of<S>>(t, self.vw, k, 2 * width, width, width);
            let (aq, rest) = row_mut::<T::Of<S>>(t, values, i, 3 * width, 0, 3 * width).split_at_mut(n);
            let (am, ad) = rest.split_at_mut(n);
            let (daq, rest) = row_mut::<T::Of<S>>(t, tangents, i, 3 * width, 0, 3 * width).split_at_mut(n);
            let (dam, dad) = rest.split_at_mut(n);
            for v in 0..n {
                let dot = vx[v].mul_add(wx[v], vy[v].mul_add(wy[v], vz[v] * wz[v]));
                let left = dvx[v].mul_add(wx[v], dvy[v].mul_add(wy[v], dvz[v] * wz[v]));
                let turn = vx[v].mul_add(dwx[v], vy[v].mul_add(dwy[v], vz[v].mul_add(dwz[v], left)));
                aq[v] = gq[v];
                am[v] = gx[v].mul_add(wx[v], gy[v].mul_add(wy[v], gz[v] * wz[v]));
                ad[v] = gq[v] * dot;
                let left = hx[v].mul_add(wx[v], hy[v].mul_add(wy[v], hz[v] * wz[v]));
                daq[v] = dgq[v];
                dam[v] = gx[v].mul_add(dwx[v], gy[v].mul_add(dwy[v], gz[v].mul_add(dwz[v], left)));
                dad[v] = dgq[v].mul_add(dot, gq[v] * turn);
            }
        }
    }
}

/// Tangent of [`MixBackV`](super::kernels::MixBackV), and itself.
pub(super) struct MixBackVTangent<'a, T> {
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

impl<T: SimdReal> WithSimd for MixBackVTangent<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let (width, atoms) = (self.shape.vectors, self.atoms);
        let n = width / T::Of::<S>::LANES;
        let one = T::Of::<S>::lit(t, 1.0);
        let (dgq, gq) = self.gq.split_at_mut(atoms * width);
        let (tangents, values) = self.gvw.split_at_mut(atoms * 6 * width);
        for i in 0..atoms {
            let k = atoms + i;
            let (dgq, gq) = (row_mut::<T::Of<S>>(t, dgq, i, width, 0, width), row_mut::<T::Of<S>>(t, gq, i, width, 0, width));
            let am = row::<T::Of<S>>(t, self.a, i, 3 * width, width, width);
            let ad = row::<T::Of<S>>(t, self.a, i, 3 * width, 2 * width, width);
            let dam = row::<T::Of<S>>(t, self.a, k, 3 * width, width, width);
            let dad = row::<T::Of<S>>(t, self.a, k, 3 * width, 2 * width, width);
            let norm = row::<T::Of<S>>(t, self.cat, i, self.shape.cat, width, width);
            let dnorm = row::<T::Of<S>>(t, self.cat, k, self.shape.cat, width, width);
            let (dthrough, dgnorm) = row::<T::Of<S>>(t, self.gcat, i, self.shape.cat, 0, 2 * width).split_at(n);
            let (through, gnorm) = row::<T::Of<S>>(t, self.gcat, k, self.shape.cat, 0, 2 * width).split_at(n);
            for c in 0..3 {
                let (v, w) = row::<T::Of<S>>(t, self.vw, 3 * i + c, 2 * width, 0, 2 * width).split_at(n);
                let (dv, dw) = row::<T::Of<S>>(t, self.vw, 3 * k + c, 2 * width, 0, 2 * width).split_at(n);
                let dg = row::<T::Of<S>>(t, self.gmu, 3 * i + c, width, 0, width);
                let g = row::<T::Of<S>>(t, self.gmu, 3 * k + c, width, 0, width);
                let (gv, gw) = row_mut::<T::Of<S>>(t, values, 3 * i + c, 2 * width, 0, 2 * width).split_at_mut(n);
                let (dgv, dgw) = row_mut::<T::Of<S>>(t, tangents, 3 * i + c, 2 * width, 0, 2 * width).split_at_mut(n);
                for x in 0..n {
                    let inverse = one / norm[x];
                    let unit = v[x] * inverse;
                    let along = gq[x] * ad[x];
                    let turn = dgq[x].mul_add(ad[x], gq[x] * dad[x]);
                    gv[x] = along.mul_add(w[x], gnorm[x] * unit);
                    gw[x] = along.mul_add(v[x], am[x] * g[x]);
                    let dunit = (dv[x] - unit * dnorm[x]) * inverse;
                    dgv[x] = turn.mul_add(w[x], along.mul_add(dw[x], dgnorm[x].mul_add(unit, gnorm[x] * dunit)));
                    dgw[x] = turn.mul_add(v[x], along.mul_add(dv[x], dam[x].mul_add(g[x], am[x] * dg[x])));
                }
            }
            for v in 0..n {
                gq[v] += through[v];
                dgq[v] += dthrough[v];
            }
        }
    }
}
