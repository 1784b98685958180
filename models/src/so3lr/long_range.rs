//! Electrostatics of predicted charges and dispersion of predicted Hirshfeld ratios, over all pairs within the long-range
//! cutoff, with gradients with respect to distances, charges and ratios. Lanes run over the second atom.

use super::attention::total;
use crate::matrix::padded;
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch};

/// Coulomb's constant in eV Å/e².
pub(super) const COULOMB: f64 = 14.399_645_351_950_548;
/// One hartree in eV.
const HARTREE: f64 = 27.211_386_245_988;
/// One bohr in Å.
const BOHR: f64 = 0.529_177_210_903;
/// Fine-structure constant.
const FINE_STRUCTURE: f64 = 0.007_297_352_569_3;
/// Width of the charges in Å.
const WIDTH: f64 = 4.0;
/// Scale of the damping length, `1.2 · 2 · 2.54`.
const DAMPING: f64 = 1.2 * 2.0 * 2.54;
/// Electrostatics begins to be bent towards its cutoff at this fraction of it.
const ONSET: f64 = 0.45;
/// Dispersion is switched off over this length in Å before the cutoff.
const TAPER: f64 = 2.0;

/// Atomic number, polarisability and C6 of the free atom in atomic units.
pub(super) const FREE_ATOMS: [(u32, f64, f64); 8] = [
    (1, 4.5, 6.5),
    (6, 12.0, 46.6),
    (7, 7.4, 24.2),
    (8, 5.4, 15.6),
    (9, 3.8, 9.52),
    (15, 25.0, 185.0),
    (16, 19.6, 134.0),
    (17, 15.0, 94.6),
];

/// Free-atom polarisability and C6 of an element.
pub(super) fn free_atom(z: u32) -> (f64, f64) {
    FREE_ATOMS.iter().find(|f| f.0 == z).map_or((1.0, 1.0), |f| (f.1, f.2))
}

/// `C6_ij/(ρ_i ρ_j)`: the ratios leave the combination rule `2 C6_i C6_j α_i α_j/(α_i² C6_j + α_j² C6_i)`, with
/// `α = α⁰ ρ` and `C6 = C6⁰ ρ²`, as a product.
pub(super) fn pair_c6(i: u32, j: u32) -> f64 {
    let ((ai, ci), (aj, cj)) = (free_atom(i), free_atom(j));
    2.0 * ci * cj * ai * aj / (ai * ai * cj + aj * aj * ci)
}

/// `V(r) = erf(r/4)/r` and `V′(r)` at one distance.
fn potential(r: f64) -> (f64, f64) {
    let x = r / WIDTH;
    let t = 1.0 / (1.0 + 0.5 * x);
    let y = 2.0 * t - 1.0;
    let gauss = (-x * x).exp();
    let tail = ERFCX_F64.iter().rev().fold(0.0, |p, c| p * y + c) * t * gauss;
    let v = (1.0 - tail) / r;
    (v, (std::f64::consts::FRAC_2_SQRT_PI / WIDTH * gauss - v) / r)
}

/// `exp(x²) erfc(x)/t` in powers of `2t − 1`, `t = 1/(1 + x/2)`: Chebyshev fits for x ≥ 0.
const ERFCX_F64: [f64; 25] = [
    0.5107913526210114,
    0.3435803422069028,
    0.139736046278016,
    0.01822111575344912,
    -0.010755330943967214,
    -0.0032395925322788455,
    0.0015453060123043205,
    0.0004186479991994396,
    -0.00033153656231177386,
    -1.7185431661292938e-05,
    7.223414467549816e-05,
    -1.7075921437736952e-05,
    -1.0842999540017217e-05,
    8.065209691210384e-06,
    -5.771752711325462e-07,
    -1.8317610681606311e-06,
    1.0291465741829597e-06,
    1.19256355901598e-08,
    -3.240675141569227e-07,
    1.5244131645886227e-07,
    3.412151272641495e-08,
    -5.2572431741282344e-08,
    7.392372936010361e-09,
    6.79574441164732e-09,
    -2.08092387765646e-09,
];
const ERFCX_F32: [f64; 11] = [
    0.5107913569159451,
    0.3435803187109648,
    0.13973573352192897,
    0.01822166942838535,
    -0.010751626186580581,
    -0.0032434519180902788,
    0.0015291571607514431,
    0.00043067048842271305,
    -0.0002993827120578718,
    -3.660187693732553e-05,
    4.2161197191248334e-05,
];

/// What does not change during a run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Cutoff in Å.
    cutoff: f64,
    /// `V` and `V′` there.
    at_cutoff: (f64, f64),
}

impl Settings {
    /// For a cutoff in Å.
    pub(super) fn new(cutoff: f64) -> Self {
        Settings { cutoff, at_cutoff: potential(cutoff) }
    }

    /// Cutoff in Å.
    pub(super) fn cutoff(&self) -> f64 {
        self.cutoff
    }
}

/// What one system's atoms bring along: all rows padded to whole vectors.
#[derive(Clone, Debug)]
pub(super) struct Species<T> {
    /// Row of each atom in `c6`.
    kind: Vec<usize>,
    /// `C6_ij/(ρ_i ρ_j)` `[kinds, n]`.
    c6: AlignedBuffer<T>,
    /// Free-atom polarisabilities `[n]`.
    polarisability: AlignedBuffer<T>,
    /// 1 for atoms, 0 for padding; and the atom's index.
    real: AlignedBuffer<T>,
    index: AlignedBuffer<T>,
}

impl<T: SimdReal> Species<T> {
    pub(super) fn new(types: &[u32]) -> Self {
        let n = types.len();
        let wide = padded(n);
        let mut kinds: Vec<u32> = types.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        let mut species = Species {
            kind: types.iter().map(|z| kinds.partition_point(|k| k < z)).collect(),
            c6: AlignedBuffer::zeros(kinds.len() * wide),
            polarisability: AlignedBuffer::zeros(wide),
            real: AlignedBuffer::zeros(wide),
            index: AlignedBuffer::zeros(wide),
        };
        for (j, &z) in types.iter().enumerate() {
            for (k, &kind) in kinds.iter().enumerate() {
                species.c6[k * wide + j] = T::from_f64(pair_c6(kind, z));
            }
            species.polarisability[j] = T::from_f64(free_atom(z).0);
            species.real[j] = T::from_f64(1.0);
        }
        for (j, index) in species.index.iter_mut().enumerate() {
            *index = T::from_f64(j as f64);
        }
        species
    }
}

/// One molecule's long-range terms. Rows `[n padded]`.
pub(super) struct LongRange<'a, T> {
    pub(super) settings: &'a Settings,
    pub(super) species: &'a Species<T>,
    /// Positions in Å, axis by axis; padding finite.
    pub(super) x: [&'a [T]; 3],
    /// Charges in e; padding 0.
    pub(super) charge: &'a [T],
    /// Hirshfeld ratios; padding 1.
    pub(super) ratio: &'a [T],
    /// Added to: energies by atom, electrostatic and dispersion, in eV.
    pub(super) energy: [&'a mut [f64]; 2],
    /// Added to: forces `[n, 3]` in eV/Å.
    pub(super) forces: &'a mut [f64],
    /// Overwritten: derivatives with respect to charges and ratios.
    pub(super) to_charge: &'a mut [T],
    pub(super) to_ratio: &'a mut [T],
}

impl<T: SimdReal> LongRange<'_, T> {
    pub(super) fn run(self) {
        // Where no pair can reach the onset, the switches are exactly one and are left out.
        let n = self.to_charge.len();
        let mut extent = 0.0;
        for x in self.x {
            let (low, high) = x[..n].iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v.to_f64()), h.max(v.to_f64())));
            extent += (high - low) * (high - low);
        }
        let cutoff = self.settings.cutoff;
        if extent.sqrt() < 0.99 * (ONSET * cutoff).min(cutoff - TAPER) {
            dispatch(Switched::<_, false>(self));
        } else {
            dispatch(Switched::<_, true>(self));
        }
    }
}

struct Switched<O, const ON: bool>(O);

impl<T: SimdReal, const ON: bool> WithSimd for Switched<LongRange<'_, T>, ON> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        long_range::<T::Of<S>, ON>(t, self.0);
    }
}

/// `1/(1 + exp(1/(1−c) − 1/c))` for `c = (r − on)/(off − on)`, and its derivative.
#[inline(always)]
fn switch<V: Lanes>(t: V::Token, r: V, on: f64, off: f64) -> (V, V) {
    let one = V::lit(t, 1.0);
    let c = ((r - V::lit(t, on)) * V::lit(t, 1.0 / (off - on))).max(V::lit(t, 0.002)).min(V::lit(t, 0.998));
    let (left, right) = (c.recip(), (one - c).recip());
    let e = (right - left).exp();
    let f = (one + e).recip();
    (f, -(f * (e * f)) * left.mul_add(left, right * right) * V::lit(t, 1.0 / (off - on)))
}

/// The same at one distance.
pub(super) fn switch_one(r: f64, on: f64, off: f64) -> (f64, f64) {
    let c = ((r - on) / (off - on)).clamp(0.002, 0.998);
    let e = (1.0 / (1.0 - c) - 1.0 / c).exp();
    let f = 1.0 / (1.0 + e);
    (f, -f * e * f * (1.0 / (c * c) + 1.0 / ((1.0 - c) * (1.0 - c))) / (off - on))
}

#[inline(always)]
fn horner<V: Lanes>(t: V::Token, y: V) -> V {
    let mut p = V::zero(t);
    if size_of::<V::Scalar>() == 4 {
        let mut k = ERFCX_F32.len();
        while k > 0 {
            k -= 1;
            p = p.mul_add(y, V::lit(t, ERFCX_F32[k]));
        }
    } else {
        let mut k = ERFCX_F64.len();
        while k > 0 {
            k -= 1;
            p = p.mul_add(y, V::lit(t, ERFCX_F64[k]));
        }
    }
    p
}

#[inline(always)]
fn long_range<V: Lanes, const ON: bool>(t: V::Token, op: LongRange<'_, V::Scalar>)
where
    V::Scalar: SimdReal,
{
    let LongRange { settings, species, x, charge, ratio, energy, forces, to_charge, to_ratio } = op;
    let n = to_charge.len();
    let wide = x[0].len();
    let cutoff = settings.cutoff;
    let [xs, ys, zs] = [V::slice(t, x[0]), V::slice(t, x[1]), V::slice(t, x[2])];
    let (charges, ratios) = (V::slice(t, charge), V::slice(t, ratio));
    let polarisabilities = V::slice(t, &species.polarisability[..wide]);
    let (reals, indices) = (V::slice(t, &species.real[..wide]), V::slice(t, &species.index[..wide]));
    let (one, zero) = (V::lit(t, 1.0), V::zero(t));
    let [electrostatic, dispersion] = energy;
    for i in 0..n {
        let c6s = V::slice(t, &species.c6[species.kind[i] * wide..][..wide]);
        let [xi, yi, zi] = [V::splat(t, x[0][i]), V::splat(t, x[1][i]), V::splat(t, x[2][i])];
        let (ratio_i, pol_i) = (V::splat(t, ratio[i]), V::splat(t, species.polarisability[i]));
        let alpha_i = ratio_i * pol_i;
        let index = V::lit(t, i as f64);
        let ke_qi = V::lit(t, COULOMB) * V::splat(t, charge[i]);
        let (mut fx, mut fy, mut fz) = (zero, zero, zero);
        let (mut e_el, mut e_disp, mut g_q, mut g_ratio) = (zero, zero, zero, zero);
        for v in 0..wide / V::LANES {
            let other = V::lit(t, 0.5).lt((indices[v] - index).abs());
            let real = V::select(other, reals[v], zero);
            let [dx, dy, dz] = [xs[v] - xi, ys[v] - yi, zs[v] - zi];
            let r2 = dx.mul_add(dx, dy.mul_add(dy, dz * dz));
            let r2 = V::select(V::lit(t, 0.5).lt(real), r2, one);
            let inverse = r2.rsqrt();
            let r = r2 * inverse;
            let inside = if ON { V::select(r.lt(V::lit(t, cutoff)), real, zero) } else { real };

            // Charges.
            let xg = r * V::lit(t, 1.0 / WIDTH);
            let s = xg.mul_add(V::lit(t, 0.5), one).recip();
            let gauss = (-(xg * xg)).exp();
            let tail = horner::<V>(t, s.mul_add(V::lit(t, 2.0), -one)) * s * gauss;
            let potential = (one - tail) * inverse;
            let slope = (V::lit(t, std::f64::consts::FRAC_2_SQRT_PI / WIDTH) * gauss - potential) * inverse;
            let (vc, dvc) = settings.at_cutoff;
            let mut u = potential - V::lit(t, vc);
            let mut du = slope;
            if ON {
                let (f, df) = switch::<V>(t, r, ONSET * cutoff, cutoff);
                let (straight, dvc) = ((r - V::lit(t, cutoff)) * V::lit(t, dvc), V::lit(t, dvc));
                u -= (one - f) * straight;
                du = df.mul_add(straight, du - (one - f) * dvc);
            }
            u = u * inside;
            du = du * inside;
            let (u_q, du_q) = (u * charges[v], du * charges[v]);
            g_q = V::lit(t, COULOMB).mul_add(u_q, g_q);
            e_el = (ke_qi * V::lit(t, 0.5)).mul_add(u_q, e_el);
            let mut radial = ke_qi * du_q;

            // Dispersion, in atomic units.
            let b2 = (r2 * V::lit(t, 1.0 / (BOHR * BOHR))).min(V::lit(t, 1e7));
            let b = r * V::lit(t, 1.0 / BOHR);
            let alpha = alpha_i.mul_add(V::lit(t, 0.5), polarisabilities[v] * ratios[v] * V::lit(t, 0.5));
            let alpha = V::select(V::lit(t, 0.5).lt(real), alpha, one);
            let root = (alpha.ln() * V::lit(t, 1.0 / 7.0)).exp();
            let to_radius = FINE_STRUCTURE.powf(-4.0 / 21.0);
            let radius = root * V::lit(t, to_radius);
            let cubic = V::lit(t, -0.000_788_93).mul_add(radius, V::lit(t, 0.041_252_73));
            let sigma = cubic.mul_add(radius, V::lit(t, 0.244_288_89)).mul_add(radius, V::lit(t, -0.004_330_08));
            let d_sigma = V::lit(t, 3.0 * -0.000_788_93).mul_add(radius, V::lit(t, 2.0 * 0.041_252_73));
            let d_sigma = d_sigma.mul_add(radius, V::lit(t, 0.244_288_89)) * V::lit(t, to_radius);
            let p = root * V::lit(t, DAMPING);
            let (b4, p2) = (b2 * b2, p * p);
            let (b6, p4) = (b4 * b2, p2 * p2);
            let (b8, p6) = (b4 * b4, p4 * p2);
            let (d6, d8) = ((b6 + p6).recip(), p4.mul_add(p4, b8).recip());
            let d10 = b8.mul_add(b2, p6 * p4).recip();
            let s2 = sigma * sigma;
            let (k8, k10) = (V::lit(t, 10.0) * s2, V::lit(t, 122.5) * s2 * s2);
            let series = k10.mul_add(d10, k8.mul_add(d8, d6));
            // Derivatives of the series with respect to b (over b) and to the root of the polarisability.
            let (q6, q8, q10) = (V::lit(t, 6.0) * d6 * d6, V::lit(t, 8.0) * k8 * d8 * d8, V::lit(t, 10.0) * k10 * d10 * d10);
            let by_b = -(q10.mul_add(b8, q8.mul_add(b6, q6 * b4)));
            let by_p = -(q10.mul_add(p6 * p2, q8.mul_add(p6, q6 * p4))) * p;
            let by_sigma = (V::lit(t, 20.0) * sigma).mul_add(d8, V::lit(t, 490.0) * s2 * sigma * d10);
            let by_root = by_p.mul_add(V::lit(t, DAMPING), by_sigma * d_sigma);
            let mut scale = V::lit(t, -HARTREE) * inside;
            let c6 = c6s[v] * ratios[v];
            let mut by_r = by_b * b * V::lit(t, 1.0 / BOHR);
            if ON {
                let (f, df) = switch::<V>(t, r, cutoff - TAPER, cutoff);
                by_r = by_r.mul_add(f, series * df);
                let c6_ij = scale * c6 * ratio_i;
                radial = c6_ij.mul_add(by_r, radial);
                scale = scale * f;
            } else {
                radial = (scale * c6 * ratio_i).mul_add(by_r, radial);
            }
            let scaled = scale * c6;
            e_disp = (scaled * ratio_i * V::lit(t, 0.5)).mul_add(series, e_disp);
            let by_alpha = by_root * root * (alpha * V::lit(t, 14.0)).recip() * pol_i;
            g_ratio = scaled.mul_add(ratio_i.mul_add(by_alpha, series), g_ratio);

            let along = radial * inverse;
            fx = along.mul_add(dx, fx);
            fy = along.mul_add(dy, fy);
            fz = along.mul_add(dz, fz);
        }
        electrostatic[i] += total(e_el).to_f64();
        dispersion[i] += total(e_disp).to_f64();
        to_charge[i] = total(g_q);
        to_ratio[i] = total(g_ratio);
        for (f, sum) in forces[3 * i..3 * i + 3].iter_mut().zip([fx, fy, fz]) {
            *f += total(sum).to_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn potential_of_gaussian_charges() {
        // Against erf by its Taylor series, and against the derivative by differences.
        for r in [0.3, 1.0, 2.5, 6.0, 11.0] {
            let x: f64 = r / 4.0;
            let (mut term, mut erf) = (x, 0.0);
            for k in 0..200 {
                erf += term / (2 * k + 1) as f64;
                term *= -x * x / (k + 1) as f64;
            }
            erf *= std::f64::consts::FRAC_2_SQRT_PI;
            let (v, d) = potential(r);
            assert!((v * r - erf).abs() < 1e-12, "{r}: {} {erf}", v * r);
            assert!(((potential(r + 1e-5).0 - potential(r - 1e-5).0) / 2e-5 - d).abs() < 1e-9);
        }
    }

    #[test]
    fn combination_rule() {
        assert!((pair_c6(6, 6) - 46.6).abs() < 1e-12);
        assert!((pair_c6(1, 8) - pair_c6(8, 1)).abs() < 1e-12);
    }
}
