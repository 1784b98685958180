//! Atomic environment vectors: radial and angular symmetry functions, and the forces of their gradients.
//!
//! With `fc(r; R) = ½ cos(π r/R) + ½` for `r < R`, the features of atom `i` are, for each element `e` and shift `Rₖ`,
//!
//! ```text
//! Σ_{j of e} ¼ exp(−η_R (r_ij − Rₖ)²) fc(r_ij; R_cr)
//! ```
//!
//! and for each pair of elements, distance shift `A_p` and angle shift `Z_q`, over pairs of neighbours `j < k`
//!
//! ```text
//! Σ 2 [(1 + cos(θ − Z_q))/2]^ζ exp(−η_A ((r_ij + r_ik)/2 − A_p)²) fc(r_ij; R_ca) fc(r_ik; R_ca),   cos θ = 0.95 û_ij·û_ik .
//! ```
//!
//! No arc cosine is taken: `cos(θ − Z) = cos θ cos Z + sin θ sin Z`, where `sin θ ≥ √(1 − 0.95²)` because of the factor.
//! Lanes run over the functions of one neighbour or pair, both factors in one exponential; feature rows are sums over
//! neighbours in the order of atoms, so a molecule's features do not depend on its company.

use super::parameters::Symmetry;
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, Lanes, MAX_LANES, SimdReal};
use std::f64::consts::PI;

/// Cosines are scaled by this before angles are taken.
const COSINE_SCALE: f64 = 0.95;
/// Smallest base of the power ζ; the result underflows long before.
const SMALLEST: f64 = 1e-30;
/// Å per nm.
const ANGSTROM: f64 = 10.0;

/// The symmetry functions as vectors: shifts repeated for each feature.
pub(crate) struct Tables<T> {
    symmetry: Symmetry,
    radial_shift: AlignedBuffer<T>,
    cos_shift: AlignedBuffer<T>,
    sin_shift: AlignedBuffer<T>,
    distance_shift: AlignedBuffer<T>,
}

fn table<T: Real>(values: impl ExactSizeIterator<Item = f64>) -> AlignedBuffer<T> {
    let mut buffer = AlignedBuffer::zeros(values.len());
    buffer.iter_mut().zip(values).for_each(|(b, v)| *b = T::from_f64(v));
    buffer
}

impl<T: Real> Tables<T> {
    pub(crate) fn new(symmetry: &Symmetry) -> Self {
        let angles = &symmetry.angle_shifts;
        let features = 0..symmetry.angular();
        Tables {
            radial_shift: table(symmetry.radial_shifts.iter().copied()),
            cos_shift: table(features.clone().map(|f| angles[f % angles.len()].cos())),
            sin_shift: table(features.clone().map(|f| angles[f % angles.len()].sin())),
            distance_shift: table(features.map(|f| symmetry.distance_shifts[f / angles.len()])),
            symmetry: symmetry.clone(),
        }
    }
}

/// Where an atom's features are: feature `f` at `offset + f · stride`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) stride: usize,
}

/// Scratch for molecules of up to a number of atoms.
#[derive(Default)]
pub(crate) struct Scratch<T> {
    /// Coordinates `[3, stride]` in Å, then squared distances `[stride]`.
    atoms: AlignedBuffer<T>,
    /// Per neighbour, `[FIELDS, stride]`.
    near: AlignedBuffer<T>,
    index: Vec<u32>,
    /// Neighbours within the angular cutoff.
    inner: Vec<u32>,
    features: AlignedBuffer<T>,
    stride: usize,
}

/// Rows of `Scratch::near`: unit vector from the centre, distance, its inverse, cutoff functions and their derivatives.
const UX: usize = 0;
const UZ: usize = 2;
const R: usize = 3;
const INVERSE: usize = 4;
const FC: usize = 5;
const DFC: usize = 6;
const INNER_FC: usize = 7;
const INNER_DFC: usize = 8;
const FIELDS: usize = 9;

impl<T: Real> Scratch<T> {
    pub(crate) fn reserve(&mut self, atoms: usize, features: usize) {
        self.stride = atoms.next_multiple_of(MAX_LANES);
        self.atoms.reserve(4 * self.stride);
        self.near.reserve(FIELDS * self.stride);
        self.features.reserve(features);
        self.index.reserve(atoms);
        self.inner.reserve(atoms);
    }

    #[inline(always)]
    fn get(&self, field: usize, n: usize) -> T {
        self.near[field * self.stride + n]
    }
}

/// One molecule: coordinates and which of the packed elements each atom is.
#[derive(Clone, Copy)]
pub(crate) struct Molecule<'a, T> {
    pub(crate) tables: &'a Tables<T>,
    /// `[N, 3]` in nm.
    pub(crate) positions: &'a [T],
    pub(crate) slots: &'a [u8],
    pub(crate) places: &'a [Place],
    /// Number of packed elements.
    pub(crate) elements: usize,
}

impl<T: SimdReal> Molecule<'_, T> {
    /// First feature of the pair of elements of two neighbours.
    #[inline(always)]
    fn pair_feature(&self, a: u8, b: u8) -> usize {
        let (low, high) = (a.min(b) as usize, a.max(b) as usize);
        let s = &self.tables.symmetry;
        self.elements * s.radial() + (low * (2 * self.elements - low + 1) / 2 + high - low) * s.angular()
    }

    /// Coordinates as rows in Å.
    #[inline(always)]
    fn load(&self, scratch: &mut Scratch<T>) {
        let angstrom = T::from_f64(ANGSTROM);
        let (stride, origin) = (scratch.stride, [self.positions[0], self.positions[1], self.positions[2]]);
        for (i, row) in self.positions.as_chunks::<3>().0.iter().enumerate() {
            for a in 0..3 {
                scratch.atoms[a * stride + i] = (row[a] - origin[a]) * angstrom;
            }
        }
    }

    /// Finds the neighbours of `i` within the radial cutoff.
    #[inline(always)]
    fn neighbours<V: Lanes<Scalar = T>>(&self, t: V::Token, i: usize, scratch: &mut Scratch<T>) {
        let symmetry = &self.tables.symmetry;
        let (stride, n) = (scratch.stride, self.slots.len());
        let centre = [scratch.atoms[i], scratch.atoms[stride + i], scratch.atoms[2 * stride + i]];
        let (xyz, squares) = scratch.atoms.split_at_mut(3 * stride);
        let (rows, squares) = (V::slice(t, xyz), V::slice_mut(t, &mut squares[..stride]));
        let [cx, cy, cz] = [V::splat(t, centre[0]), V::splat(t, centre[1]), V::splat(t, centre[2])];
        let s = stride / V::LANES;
        for v in 0..n.div_ceil(V::LANES) {
            let (dx, dy, dz) = (rows[v] - cx, rows[s + v] - cy, rows[2 * s + v] - cz);
            squares[v] = dx.mul_add(dx, dy.mul_add(dy, dz * dz));
        }
        let squares = V::scalars(squares);
        let cutoff2 = T::from_f64(symmetry.radial_cutoff * symmetry.radial_cutoff);
        scratch.index.clear();
        for j in 0..n {
            if squares[j] < cutoff2 && j != i {
                let m = scratch.index.len();
                scratch.index.push(j as u32);
                for a in 0..3 {
                    scratch.near[(UX + a) * stride + m] = xyz[a * stride + j] - centre[a];
                }
                scratch.near[R * stride + m] = squares[j];
            }
        }
        let found = scratch.index.len();
        for m in found..found.next_multiple_of(V::LANES) {
            scratch.near[R * stride + m] = T::from_f64(1.0);
        }
        let near = V::slice_mut(t, &mut scratch.near);
        let half = V::lit(t, 0.5);
        for v in 0..found.div_ceil(V::LANES) {
            let r = near[R * s + v].sqrt();
            let inverse = V::lit(t, 1.0) / r;
            near[R * s + v] = r;
            near[INVERSE * s + v] = inverse;
            for a in UX..=UZ {
                near[a * s + v] = near[a * s + v] * inverse;
            }
            let cutoffs = [(symmetry.radial_cutoff, FC, DFC), (symmetry.angular_cutoff, INNER_FC, INNER_DFC)];
            for (cutoff, fc, dfc) in cutoffs {
                let (sin, cos) = (r * V::lit(t, 0.5 / cutoff)).sin_cos_turns();
                near[fc * s + v] = half.mul_add(cos, half);
                near[dfc * s + v] = sin * V::lit(t, -0.5 * PI / cutoff);
            }
        }
        let inner = T::from_f64(symmetry.angular_cutoff);
        scratch.inner.clear();
        for m in 0..found {
            if scratch.near[R * stride + m] < inner {
                scratch.inner.push(m as u32);
            }
        }
    }
}

/// Geometry of a pair of neighbours, the same in every lane.
struct Angle<V> {
    cos: V,
    sin: V,
    /// Unscaled cosine.
    c: V,
    mean: V,
}

impl<V: Lanes> Angle<V> {
    #[inline(always)]
    fn new(t: V::Token, scratch: &Scratch<V::Scalar>, j: usize, k: usize) -> Self {
        let mut c = V::zero(t);
        for a in UX..=UZ {
            c = V::splat(t, scratch.get(a, j)).mul_add(V::splat(t, scratch.get(a, k)), c);
        }
        let cos = c * V::lit(t, COSINE_SCALE);
        let sin = (-cos).mul_add(cos, V::lit(t, 1.0)).sqrt();
        Angle { cos, sin, c, mean: V::splat(t, scratch.get(R, j) + scratch.get(R, k)) * V::lit(t, 0.5) }
    }

    /// `exp(ζ ln b − η (r̄ − A)²)` for a vector of functions, with `b` and `r̄ − A`.
    #[inline(always)]
    fn functions(&self, t: V::Token, cos_shift: V, sin_shift: V, distance_shift: V, zeta: V, minus_eta: V) -> (V, V, V) {
        let half = V::lit(t, 0.5);
        let cosine = self.cos.mul_add(cos_shift, self.sin * sin_shift);
        let base = cosine.mul_add(half, half).max(V::lit(t, SMALLEST));
        let d = self.mean - distance_shift;
        (zeta.mul_add(base.ln(), minus_eta * d * d).exp(), base, d)
    }
}

/// Fills the features of all atoms of a molecule.
pub(crate) struct Features<'a, T> {
    pub(crate) molecule: Molecule<'a, T>,
    pub(crate) scratch: &'a mut Scratch<T>,
    pub(crate) x: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Features<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        self.run::<T::Of<S>>(t);
    }
}

impl<T: SimdReal> Features<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>>(self, t: V::Token) {
        let Features { molecule, scratch, x } = self;
        let tables = molecule.tables;
        let symmetry = &tables.symmetry;
        let count = symmetry.features(molecule.elements);
        let shifts = V::slice(t, &tables.radial_shift);
        let cos_shifts = V::slice(t, &tables.cos_shift);
        let sin_shifts = V::slice(t, &tables.sin_shift);
        let distance_shifts = V::slice(t, &tables.distance_shift);
        let minus_radial_eta = V::lit(t, -symmetry.radial_eta);
        let (zeta, minus_angular_eta) = (V::lit(t, symmetry.zeta), V::lit(t, -symmetry.angular_eta));
        molecule.load(scratch);
        for (i, place) in molecule.places.iter().enumerate() {
            molecule.neighbours::<V>(t, i, scratch);
            let mut features = std::mem::take(&mut scratch.features);
            features[..count].fill(T::default());
            for (n, &j) in scratch.index.iter().enumerate() {
                let start = molecule.slots[j as usize] as usize * symmetry.radial();
                let r = V::splat(t, scratch.get(R, n));
                let scale = V::splat(t, scratch.get(FC, n)) * V::lit(t, 0.25);
                let row = V::slice_mut(t, &mut features[start..start + symmetry.radial()]);
                for (f, &shift) in row.iter_mut().zip(shifts) {
                    let d = r - shift;
                    *f = scale.mul_add((minus_radial_eta * d * d).exp(), *f);
                }
            }
            for (n, &j) in scratch.inner.iter().enumerate() {
                let j = j as usize;
                let slot = molecule.slots[scratch.index[j] as usize];
                let scale_j = V::splat(t, scratch.get(INNER_FC, j)) * V::lit(t, 2.0);
                for &k in &scratch.inner[n + 1..] {
                    let k = k as usize;
                    let start = molecule.pair_feature(slot, molecule.slots[scratch.index[k] as usize]);
                    let angle = Angle::<V>::new(t, scratch, j, k);
                    let scale = scale_j * V::splat(t, scratch.get(INNER_FC, k));
                    let row = V::slice_mut(t, &mut features[start..start + symmetry.angular()]);
                    for (v, f) in row.iter_mut().enumerate() {
                        let (e, _, _) = angle.functions(t, cos_shifts[v], sin_shifts[v], distance_shifts[v], zeta, minus_angular_eta);
                        *f = scale.mul_add(e, *f);
                    }
                }
            }
            for (f, &value) in features[..count].iter().enumerate() {
                x[place.offset + f * place.stride] = value;
            }
            scratch.features = features;
        }
    }
}

/// Overwrites the forces of a molecule, minus the gradient of `Σ g·features`.
pub(crate) struct Forces<'a, T> {
    pub(crate) molecule: Molecule<'a, T>,
    pub(crate) scratch: &'a mut Scratch<T>,
    /// Derivatives of the energy with respect to features, in the layout of the features.
    pub(crate) g: &'a [T],
    /// `[N, 3]`, per Å.
    pub(crate) forces: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Forces<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        self.run::<T::Of<S>>(t);
    }
}

/// The sum over lanes, halves first.
#[inline(always)]
fn total<V: Lanes>(v: V) -> V::Scalar {
    let mut lanes = [V::Scalar::default(); MAX_LANES];
    v.store(&mut lanes);
    let mut n = V::LANES;
    while n > 1 {
        n /= 2;
        for l in 0..n {
            let other = lanes[l + n];
            lanes[l] += other;
        }
    }
    lanes[0]
}

impl<T: SimdReal> Forces<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>>(self, t: V::Token) {
        let Forces { molecule, scratch, g, forces } = self;
        let tables = molecule.tables;
        let symmetry = &tables.symmetry;
        let count = symmetry.features(molecule.elements);
        let shifts = V::slice(t, &tables.radial_shift);
        let cos_shifts = V::slice(t, &tables.cos_shift);
        let sin_shifts = V::slice(t, &tables.sin_shift);
        let distance_shifts = V::slice(t, &tables.distance_shift);
        let minus_radial_eta = V::lit(t, -symmetry.radial_eta);
        let (zeta, minus_angular_eta) = (V::lit(t, symmetry.zeta), V::lit(t, -symmetry.angular_eta));
        let (quarter, two) = (T::from_f64(0.25), T::from_f64(2.0));
        let slope_of_distance = T::from_f64(-symmetry.angular_eta);
        let slope_of_cosine = T::from_f64(0.5 * COSINE_SCALE * symmetry.zeta);
        let slope_of_radius = T::from_f64(-2.0 * symmetry.radial_eta);
        molecule.load(scratch);
        forces.fill(T::default());
        for (i, place) in molecule.places.iter().enumerate() {
            molecule.neighbours::<V>(t, i, scratch);
            let mut gradient = std::mem::take(&mut scratch.features);
            for (f, value) in gradient[..count].iter_mut().enumerate() {
                *value = g[place.offset + f * place.stride];
            }
            let mut on_centre = [T::default(); 3];
            for (n, &j) in scratch.index.iter().enumerate() {
                let j = j as usize;
                let start = molecule.slots[j] as usize * symmetry.radial();
                let r = V::splat(t, scratch.get(R, n));
                let (mut value, mut slope) = (V::zero(t), V::zero(t));
                for (&g, &shift) in V::slice(t, &gradient[start..start + symmetry.radial()]).iter().zip(shifts) {
                    let d = r - shift;
                    let e = g * (minus_radial_eta * d * d).exp();
                    value += e;
                    slope = e.mul_add(d, slope);
                }
                let (value, slope) = (total(value), total(slope));
                let pull = quarter * (scratch.get(FC, n) * slope_of_radius * slope + scratch.get(DFC, n) * value);
                for a in 0..3 {
                    let f = pull * scratch.get(UX + a, n);
                    on_centre[a] += f;
                    forces[3 * j + a] -= f;
                }
            }
            for (n, &j) in scratch.inner.iter().enumerate() {
                let j = j as usize;
                let atom_j = scratch.index[j] as usize;
                let fc_j = scratch.get(INNER_FC, j);
                for &k in &scratch.inner[n + 1..] {
                    let k = k as usize;
                    let atom_k = scratch.index[k] as usize;
                    let start = molecule.pair_feature(molecule.slots[atom_j], molecule.slots[atom_k]);
                    let angle = Angle::<V>::new(t, scratch, j, k);
                    let minus_cot = -(angle.cos / angle.sin);
                    let (mut value, mut by_cosine, mut by_distance) = (V::zero(t), V::zero(t), V::zero(t));
                    for (v, &g) in V::slice(t, &gradient[start..start + symmetry.angular()]).iter().enumerate() {
                        let (e, base, d) = angle.functions(t, cos_shifts[v], sin_shifts[v], distance_shifts[v], zeta, minus_angular_eta);
                        let e = g * e;
                        value += e;
                        by_distance = e.mul_add(d, by_distance);
                        // d cos(θ − Z)/d cos θ = cos Z − cot θ sin Z
                        by_cosine = (e * base.recip()).mul_add(minus_cot.mul_add(sin_shifts[v], cos_shifts[v]), by_cosine);
                    }
                    let (value, by_cosine, by_distance) = (total(value), total(by_cosine), total(by_distance));
                    let fc_k = scratch.get(INNER_FC, k);
                    let scale = two * fc_j * fc_k;
                    // Derivatives with respect to the cosine and to each distance (through the mean, hence half of 2η).
                    let by_cosine = scale * slope_of_cosine * by_cosine;
                    let by_mean = scale * slope_of_distance * by_distance;
                    let by_j = two * scratch.get(INNER_DFC, j) * fc_k * value + by_mean;
                    let by_k = two * scratch.get(INNER_DFC, k) * fc_j * value + by_mean;
                    let (turn_j, turn_k) = (by_cosine * scratch.get(INVERSE, j), by_cosine * scratch.get(INVERSE, k));
                    let mut c = [T::default(); MAX_LANES];
                    angle.c.store(&mut c);
                    for a in 0..3 {
                        let (uj, uk) = (scratch.get(UX + a, j), scratch.get(UX + a, k));
                        let fj = by_j * uj + turn_j * (uk - c[0] * uj);
                        let fk = by_k * uk + turn_k * (uj - c[0] * uk);
                        on_centre[a] += fj + fk;
                        forces[3 * atom_j + a] -= fj;
                        forces[3 * atom_k + a] -= fk;
                    }
                }
            }
            for a in 0..3 {
                forces[3 * i + a] += on_centre[a];
            }
            scratch.features = gradient;
        }
    }
}
