//! Messages between the atoms of each pair, and their gradients.
//!
//! A pair is visited once: its filters are the same in both directions. Arrays by row: projections `[4 heads][q1 k1 v1 q2
//! k2][D]`, filters `[2][4 heads][D]`, dots `[2][2 directions][4 heads]`, tensors and harmonics 24 of 32.

use super::harmonics::{ORDERS, STARTS};
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{Lanes, MAX_LANES, SimdReal, dispatch};

/// Row length of tensors of degrees 1 to 4.
pub(super) const TENSOR: usize = 32;
/// Row length of the products kept for each pair.
pub(super) const DOTS: usize = 16;
/// Signs of harmonics under inversion.
const PARITY: [f64; 4] = [-1.0, 1.0, -1.0, 1.0];

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

/// Pairs of one tile and what belongs to each of them.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a, T> {
    /// Atoms `i < j`.
    pub(super) atoms: &'a [[u32; 2]],
    /// `fc(r)` over the mean number of neighbours.
    pub(super) weight: &'a [T],
    /// Harmonics of the direction from `i` to `j`.
    pub(super) harmonics: &'a [T],
    /// Filters.
    pub(super) filters: &'a [T],
}

/// Adds messages to features and tensors.
pub(super) struct Attend<'a, T> {
    pub(super) pairs: Pairs<'a, T>,
    pub(super) projections: &'a [T],
    pub(super) dots: &'a mut [T],
    pub(super) features: &'a mut [T],
    pub(super) tensors: &'a mut [T],
}

impl<T: SimdReal> Attend<'_, T> {
    pub(super) fn run(self, head: usize) {
        match head {
            16 => dispatch(Wide::<_, 16>(self)),
            _ => dispatch(Wide::<_, 32>(self)),
        }
    }
}

/// An operation for heads of width `D`.
struct Wide<O, const D: usize>(O);

/// The same row of two different atoms, mutably.
#[inline(always)]
fn two_rows<T>(data: &mut [T], i: usize, j: usize, stride: usize) -> (&mut [T], &mut [T]) {
    let (low, high) = data.split_at_mut(j * stride);
    (&mut low[i * stride..(i + 1) * stride], &mut high[..stride])
}

/// Four coefficients spread over the components of their degrees.
#[inline(always)]
fn spread<T: Real>(c: [T; 4]) -> [T; TENSOR] {
    let mut out = [T::default(); TENSOR];
    for l in 0..4 {
        for m in STARTS[l]..STARTS[l + 1] {
            out[m] = c[l];
        }
    }
    out
}

/// Sums over each degree.
#[inline(always)]
pub(super) fn by_degree<T: Real>(c: &[T; TENSOR]) -> [T; 4] {
    let mut out = [T::default(); 4];
    for l in 0..4 {
        for m in STARTS[l]..STARTS[l + 1] {
            out[l] += c[m];
        }
    }
    out
}

impl<T: SimdReal, const D: usize> WithSimd for Wide<Attend<'_, T>, D> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        attend::<T::Of<S>, D>(t, self.0);
    }
}

#[inline(always)]
fn attend<V: Lanes, const D: usize>(t: V::Token, op: Attend<'_, V::Scalar>) {
    let n = D / V::LANES;
    let Attend { pairs, projections, dots, features, tensors } = op;
    for (p, &[i, j]) in pairs.atoms.iter().enumerate() {
        let (i, j) = (i as usize, j as usize);
        let pi = &projections[20 * D * i..][..20 * D];
        let pj = &projections[20 * D * j..][..20 * D];
        let filters = &pairs.filters[8 * D * p..][..8 * D];
        let dots = &mut dots[DOTS * p..][..DOTS];
        for h in 0..4 {
            let a = V::slice(t, &pi[5 * D * h..][..5 * D]);
            let b = V::slice(t, &pj[5 * D * h..][..5 * D]);
            let w1 = V::slice(t, &filters[D * h..][..D]);
            let w2 = V::slice(t, &filters[4 * D + D * h..][..D]);
            let mut sums = [V::zero(t); 4];
            for v in 0..n {
                sums[0] = (w1[v] * a[v]).mul_add(b[n + v], sums[0]);
                sums[1] = (w1[v] * b[v]).mul_add(a[n + v], sums[1]);
                sums[2] = (w2[v] * a[3 * n + v]).mul_add(b[4 * n + v], sums[2]);
                sums[3] = (w2[v] * b[3 * n + v]).mul_add(a[4 * n + v], sums[3]);
            }
            for s in 0..4 {
                dots[4 * s + h] = total(sums[s]);
            }
        }
        let weight = pairs.weight[p];
        let (fi, fj) = two_rows(features, i, j, 4 * D);
        for h in 0..4 {
            let a = V::slice(t, &pi[5 * D * h + 2 * D..][..D]);
            let b = V::slice(t, &pj[5 * D * h + 2 * D..][..D]);
            let to_i = V::splat(t, weight * dots[h]);
            let to_j = V::splat(t, weight * dots[4 + h]);
            let fi = V::slice_mut(t, &mut fi[D * h..][..D]);
            let fj = V::slice_mut(t, &mut fj[D * h..][..D]);
            for v in 0..n {
                fi[v] = to_i.mul_add(b[v], fi[v]);
                fj[v] = to_j.mul_add(a[v], fj[v]);
            }
        }
        let mut to_i = [V::Scalar::default(); 4];
        let mut to_j = to_i;
        for l in 0..4 {
            to_i[l] = weight * dots[8 + l];
            to_j[l] = V::Scalar::from_f64(PARITY[l]) * weight * dots[12 + l];
        }
        let (to_i, to_j) = (spread(to_i), spread(to_j));
        let y = &pairs.harmonics[TENSOR * p..][..TENSOR];
        let (ti, tj) = two_rows(tensors, i, j, TENSOR);
        let (y, to_i, to_j) = (V::slice(t, y), V::slice(t, &to_i), V::slice(t, &to_j));
        let (ti, tj) = (V::slice_mut(t, ti), V::slice_mut(t, tj));
        for v in 0..TENSOR / V::LANES {
            ti[v] = to_i[v].mul_add(y[v], ti[v]);
            tj[v] = to_j[v].mul_add(y[v], tj[v]);
        }
    }
}

/// Gradients of the messages with respect to everything they are made of.
pub(super) struct AttendBack<'a, T> {
    pub(super) pairs: Pairs<'a, T>,
    pub(super) projections: &'a [T],
    pub(super) dots: &'a [T],
    /// Gradient of features after the messages.
    pub(super) features: &'a [T],
    /// Gradient of tensors after the messages.
    pub(super) tensors: &'a [T],
    /// Added to: gradient of projections; nothing where it is not needed.
    pub(super) to_projections: Option<&'a mut [T]>,
    /// Overwritten: gradient of filters.
    pub(super) to_filters: &'a mut [T],
    /// Added to: gradient of weights.
    pub(super) to_weight: &'a mut [T],
    /// Added to: gradient of harmonics.
    pub(super) to_harmonics: &'a mut [T],
}

impl<T: SimdReal> AttendBack<'_, T> {
    pub(super) fn run(self, head: usize) {
        match head {
            16 => dispatch(Wide::<_, 16>(self)),
            _ => dispatch(Wide::<_, 32>(self)),
        }
    }
}

impl<T: SimdReal, const D: usize> WithSimd for Wide<AttendBack<'_, T>, D> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        attend_back::<T::Of<S>, D>(t, self.0);
    }
}

#[inline(always)]
fn attend_back<V: Lanes, const D: usize>(t: V::Token, op: AttendBack<'_, V::Scalar>) {
    let n = D / V::LANES;
    let AttendBack { pairs, projections, dots, features, tensors, mut to_projections, to_filters, to_weight, to_harmonics } = op;
    for (p, &[i, j]) in pairs.atoms.iter().enumerate() {
        let (i, j) = (i as usize, j as usize);
        let pi = &projections[20 * D * i..][..20 * D];
        let pj = &projections[20 * D * j..][..20 * D];
        let filters = &pairs.filters[8 * D * p..][..8 * D];
        let dots = &dots[DOTS * p..][..DOTS];
        let fi = &features[4 * D * i..][..4 * D];
        let fj = &features[4 * D * j..][..4 * D];
        let weight = pairs.weight[p];

        // Gradients of the coefficients, in the order of the dots.
        let mut g = [V::Scalar::default(); DOTS];
        for h in 0..4 {
            let a = V::slice(t, &pi[5 * D * h + 2 * D..][..D]);
            let b = V::slice(t, &pj[5 * D * h + 2 * D..][..D]);
            let fi = V::slice(t, &fi[D * h..][..D]);
            let fj = V::slice(t, &fj[D * h..][..D]);
            let (mut to_i, mut to_j) = (V::zero(t), V::zero(t));
            for v in 0..n {
                to_i = fi[v].mul_add(b[v], to_i);
                to_j = fj[v].mul_add(a[v], to_j);
            }
            g[h] = total(to_i);
            g[4 + h] = total(to_j);
        }
        let ti = &tensors[TENSOR * i..][..TENSOR];
        let tj = &tensors[TENSOR * j..][..TENSOR];
        {
            let y = &pairs.harmonics[TENSOR * p..][..TENSOR];
            let (mut ai, mut aj) = ([V::Scalar::default(); TENSOR], [V::Scalar::default(); TENSOR]);
            for m in 0..ORDERS {
                ai[m] = ti[m] * y[m];
                aj[m] = tj[m] * y[m];
            }
            let (si, sj) = (by_degree(&ai), by_degree(&aj));
            for l in 0..4 {
                g[8 + l] = si[l];
                g[12 + l] = V::Scalar::from_f64(PARITY[l]) * sj[l];
            }
        }
        let mut slope = V::Scalar::default();
        for k in 0..DOTS {
            slope += g[k] * dots[k];
        }
        to_weight[p] += slope;

        // Gradient of the harmonics.
        {
            let (mut ci, mut cj) = ([V::Scalar::default(); 4], [V::Scalar::default(); 4]);
            for l in 0..4 {
                ci[l] = weight * dots[8 + l];
                cj[l] = V::Scalar::from_f64(PARITY[l]) * weight * dots[12 + l];
            }
            let (ci, cj) = (spread(ci), spread(cj));
            let (ci, cj) = (V::slice(t, &ci), V::slice(t, &cj));
            let (ti, tj) = (V::slice(t, ti), V::slice(t, tj));
            let out = V::slice_mut(t, &mut to_harmonics[TENSOR * p..][..TENSOR]);
            for v in 0..TENSOR / V::LANES {
                out[v] = cj[v].mul_add(tj[v], ci[v].mul_add(ti[v], out[v]));
            }
        }

        let gw = &mut to_filters[8 * D * p..][..8 * D];
        let (gw1, gw2) = gw.split_at_mut(4 * D);
        for h in 0..4 {
            let a = V::slice(t, &pi[5 * D * h..][..5 * D]);
            let b = V::slice(t, &pj[5 * D * h..][..5 * D]);
            let gw1 = V::slice_mut(t, &mut gw1[D * h..][..D]);
            let gw2 = V::slice_mut(t, &mut gw2[D * h..][..D]);
            let [s0, s1] = [V::splat(t, weight * g[h]), V::splat(t, weight * g[4 + h])];
            let [s2, s3] = [V::splat(t, weight * g[8 + h]), V::splat(t, weight * g[12 + h])];
            for v in 0..n {
                gw1[v] = (s0 * b[n + v]).mul_add(a[v], s1 * b[v] * a[n + v]);
                gw2[v] = (s2 * b[4 * n + v]).mul_add(a[3 * n + v], s3 * b[3 * n + v] * a[4 * n + v]);
            }
        }
        let Some(to_projections) = to_projections.as_deref_mut() else { continue };
        let (gi, gj) = two_rows(to_projections, i, j, 20 * D);
        for h in 0..4 {
            let a = V::slice(t, &pi[5 * D * h..][..5 * D]);
            let b = V::slice(t, &pj[5 * D * h..][..5 * D]);
            let gi = V::slice_mut(t, &mut gi[5 * D * h..][..5 * D]);
            let gj = V::slice_mut(t, &mut gj[5 * D * h..][..5 * D]);
            let w1 = V::slice(t, &filters[D * h..][..D]);
            let w2 = V::slice(t, &filters[4 * D + D * h..][..D]);
            let fi = V::slice(t, &fi[D * h..][..D]);
            let fj = V::slice(t, &fj[D * h..][..D]);
            let c_i = V::splat(t, weight * dots[h]);
            let c_j = V::splat(t, weight * dots[4 + h]);
            let [s0, s1] = [V::splat(t, weight * g[h]), V::splat(t, weight * g[4 + h])];
            let [s2, s3] = [V::splat(t, weight * g[8 + h]), V::splat(t, weight * g[12 + h])];
            for v in 0..n {
                let (to_j, to_i) = (s0 * w1[v], s1 * w1[v]);
                gi[v] = to_j.mul_add(b[n + v], gi[v]);
                gj[n + v] = to_j.mul_add(a[v], gj[n + v]);
                gj[v] = to_i.mul_add(a[n + v], gj[v]);
                gi[n + v] = to_i.mul_add(b[v], gi[n + v]);
                gj[2 * n + v] = c_i.mul_add(fi[v], gj[2 * n + v]);
                gi[2 * n + v] = c_j.mul_add(fj[v], gi[2 * n + v]);
                let (to_j, to_i) = (s2 * w2[v], s3 * w2[v]);
                gi[3 * n + v] = to_j.mul_add(b[4 * n + v], gi[3 * n + v]);
                gj[4 * n + v] = to_j.mul_add(a[3 * n + v], gj[4 * n + v]);
                gj[3 * n + v] = to_i.mul_add(a[4 * n + v], gj[3 * n + v]);
                gi[4 * n + v] = to_i.mul_add(b[3 * n + v], gi[4 * n + v]);
            }
        }
    }
}
