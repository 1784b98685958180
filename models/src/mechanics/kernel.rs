//! Energies and forces of a [`Mechanics`] description, over lanes of replicas or over lanes of atoms of one replica.
//!
//! Pairs are visited by *circulant rows*: row `d` holds the pairs `(a, a + d mod N)` for all `a`, `d = 1 … ⌊N/2⌋`. Within a row
//! every atom is once first and once second, so a row is contiguous in both roles and needs no gather; each sum over pairs
//! runs over rows in order, `+ first(b) − second(b − d)`, in either layout. That makes the two layouts agree bit for bit.

use super::model::Mechanics;
use super::terms::{
    MAX_PERIODICITY, Patch, Rescaling, TorsionSeries, Vec3, angle, bond, born_integrals, born_pair, born_radius, lennard_jones_coulomb,
    map, pair, sub, torsion,
};
use scorefield_integrators::device::DeviceModel;
use scorefield_integrators::lane::LaneKernel;
use scorefield_integrators::simd::{Lanes, MAX_LANES};
use scorefield_integrators::{Capabilities, Error, Real, Result, System};
use std::any::Any;

/// Terms of one kind: atom indices and parameters of each term, terms one after the other.
pub(super) struct Terms<T, const ATOMS: usize> {
    pub(super) atoms: Vec<[u32; ATOMS]>,
    /// `[terms, width]`.
    pub(super) parameters: Vec<T>,
    pub(super) width: usize,
}

/// Parameters of pairs, `[rows, stride]`, rows circulant.
pub(super) struct Pairs<T> {
    pub(super) qq: Vec<T>,
    pub(super) c6: Vec<T>,
    pub(super) c12: Vec<T>,
}

/// Parameters of generalised Born solvation.
pub(super) struct Born<T> {
    /// Radius less offset, of atom `k mod N`: `[N extended]`.
    pub(super) own: Vec<T>,
    /// Scaled radius less offset, likewise.
    pub(super) scaled: Vec<T>,
    /// Full radius, likewise.
    pub(super) radius: Vec<T>,
    /// `−½ C τ q²` per atom, likewise.
    pub(super) self_energy: Vec<T>,
    /// `S (ρ + probe)² ρ⁶` per atom, likewise.
    pub(super) surface: Vec<T>,
    pub(super) has_surface: bool,
    /// `−C τ q_i q_j`, `[rows, stride]`.
    pub(super) pair: Vec<T>,
    pub(super) rescaling: Rescaling,
}

/// All tables in one precision.
pub(super) struct Tables<T> {
    pub(super) atoms: usize,
    /// Number of circulant rows.
    pub(super) rows: usize,
    /// Atoms padded to whole vectors of any instruction set.
    pub(super) stride: usize,
    pub(super) bonds: Terms<T, 2>,
    pub(super) angles: Terms<T, 3>,
    pub(super) torsions: Terms<T, 4>,
    /// Number of coefficients of P and R in a torsion's parameters.
    pub(super) torsion_powers: [usize; 2],
    /// Pairs of torsions: first patch and size of their map.
    maps: Terms<T, 8>,
    patches: Vec<Patch<T>>,
    /// Exceptions of a force with a cutoff, which are not cut: `qq`, `c₆`, `c₁₂`. Without cutoff they are among the pairs.
    exceptions: Terms<T, 2>,
    pub(super) pairs: Option<Pairs<T>>,
    pub(super) born: Option<Born<T>>,
    /// 1 for the first half of the atoms, else 0: the last row of an even number of atoms has each pair twice.
    pub(super) first_half: Vec<T>,
}

impl<T: Real> Tables<T> {
    fn new(m: &Mechanics) -> Self {
        let n = m.atoms();
        let rows = n / 2;
        let stride = n.div_ceil(MAX_LANES) * MAX_LANES;
        let extended = stride + rows + MAX_LANES;
        let real = |x: f64| T::from_f64(x);
        let cyclic = |f: &dyn Fn(usize) -> f64| -> Vec<T> { (0..extended).map(|k| real(f(k % n))).collect() };
        // Parameters of the pair (a, a + d), zero in the padding and in the doubled half of the last row.
        let pair_table = |f: &dyn Fn(usize, usize) -> f64| -> Vec<T> {
            let mut table = vec![T::default(); rows * stride];
            for d in 1..=rows {
                for a in 0..row_length(n, d) {
                    table[(d - 1) * stride + a] = real(f(a, (a + d) % n));
                }
            }
            table
        };

        let mut series: Vec<([u32; 4], TorsionSeries)> = Vec::new();
        let mut index = std::collections::HashMap::new();
        for t in &m.torsions {
            let [i, j, k, l] = t.atoms;
            // Read backwards a torsion is the same angle.
            let key = if (i, j) <= (l, k) { [i, j, k, l] } else { [l, k, j, i] };
            let at = *index.entry(key).or_insert_with(|| {
                series.push((key, TorsionSeries::default()));
                series.len() - 1
            });
            series[at].1.add(t.k, t.periodicity, t.phase);
        }
        for t in &m.rb_torsions {
            let mut own = TorsionSeries::default();
            own.add_powers(&t.c);
            series.push((t.atoms, own));
        }
        let used = |coefficients: &dyn Fn(&TorsionSeries) -> &[f64]| {
            series.iter().map(|(_, s)| coefficients(s).iter().rposition(|&c| c != 0.0).map_or(0, |p| p + 1)).max().unwrap_or(0)
        };
        let powers = [used(&|s| &s.p).max(2), used(&|s| &s.r)];
        let width = powers[0] + powers[1];

        let mut patches = Vec::new();
        let starts: Vec<[f64; 2]> = m
            .maps
            .iter()
            .map(|map| {
                let first = patches.len();
                patches.extend(super::map::patches(map).iter().map(|patch| patch.map(real)));
                [first as f64, map.size as f64]
            })
            .collect();
        let cut = m.nonbonded.as_ref().filter(|nb| nb.cutoff.is_some());
        let exceptions: Vec<_> = cut
            .iter()
            .flat_map(|nb| nb.exceptions.iter().map(|e| (e.atoms, nb.exception_parameters(e))))
            .filter(|(_, parameters)| *parameters != [0.0; 3])
            .collect();
        let nonbonded = m.nonbonded.as_ref().filter(|nb| nb.cutoff.is_none()).map(|nb| {
            let parameters = nb.pair_parameters();
            let at = |a: usize, b: usize| &parameters[a * n + b];
            Pairs { qq: pair_table(&|a, b| at(a, b)[0]), c6: pair_table(&|a, b| at(a, b)[1]), c12: pair_table(&|a, b| at(a, b)[2]) }
        });
        let born = m.born.as_ref().map(|gb| {
            let p = |k: usize| &gb.particles[k];
            let strength = gb.coulomb * (1.0 / gb.solute_dielectric - 1.0 / gb.solvent_dielectric);
            Born {
                own: cyclic(&|k| p(k).radius - gb.offset),
                scaled: cyclic(&|k| p(k).scaled_radius),
                radius: cyclic(&|k| p(k).radius),
                self_energy: cyclic(&|k| -0.5 * strength * p(k).charge.powi(2)),
                surface: cyclic(&|k| gb.surface * (p(k).radius + gb.probe).powi(2) * p(k).radius.powi(6)),
                has_surface: gb.surface != 0.0,
                pair: pair_table(&|a, b| -strength * p(a).charge * p(b).charge),
                rescaling: gb.rescaling,
            }
        });
        Tables {
            atoms: n,
            rows,
            stride,
            bonds: Terms {
                atoms: m.bonds.iter().map(|b| b.atoms).collect(),
                parameters: m.bonds.iter().flat_map(|b| [real(b.length), real(b.k)]).collect(),
                width: 2,
            },
            angles: Terms {
                atoms: m.angles.iter().map(|a| a.atoms).collect(),
                parameters: m.angles.iter().flat_map(|a| [real(a.angle), real(a.k)]).collect(),
                width: 2,
            },
            torsions: Terms {
                atoms: series.iter().map(|s| s.0).collect(),
                parameters: series.iter().flat_map(|(_, s)| s.p[..powers[0]].iter().chain(&s.r[..powers[1]]).map(|&c| real(c))).collect(),
                width,
            },
            torsion_powers: powers,
            maps: Terms {
                atoms: m
                    .map_torsions
                    .iter()
                    .map(|t| {
                        let [[a, b, c, d], [e, f, g, h]] = t.atoms;
                        [a, b, c, d, e, f, g, h]
                    })
                    .collect(),
                parameters: m.map_torsions.iter().flat_map(|t| starts[t.map].map(real)).collect(),
                width: 2,
            },
            patches,
            exceptions: Terms {
                atoms: exceptions.iter().map(|e| e.0).collect(),
                parameters: exceptions.iter().flat_map(|e| e.1.map(real)).collect(),
                width: 3,
            },
            pairs: nonbonded,
            born,
            first_half: (0..stride).map(|a| real(if a < n / 2 { 1.0 } else { 0.0 })).collect(),
        }
    }
}

/// Number of distinct pairs in circulant row `d` of `n` atoms.
#[inline(always)]
fn row_length(n: usize, d: usize) -> usize {
    if 2 * d == n { d } else { n }
}

/// Vectors kept per pair between the passes of the Born terms: r², running force, two Born slopes.
const KEPT: usize = 4;

/// The lane kernel of an OpenMM system.
pub(super) struct MechanicsKernel {
    capabilities: Capabilities,
    file: String,
    single: Tables<f32>,
    double: Tables<f64>,
}

impl MechanicsKernel {
    /// Tables for `model`, which was read from `file`.
    pub(super) fn new(model: &Mechanics, file: &str) -> Self {
        let capabilities = Capabilities::potential(format!("mm:{file}"));
        let mut kernel = MechanicsKernel { capabilities, file: file.to_owned(), single: Tables::new(model), double: Tables::new(model) };
        if kernel.device_model().is_some() {
            kernel.capabilities = kernel.capabilities.with_kernels();
        }
        kernel
    }

    #[inline(always)]
    fn tables<T: Real>(&self) -> &Tables<T> {
        match (&self.single as &dyn Any).downcast_ref() {
            Some(tables) => tables,
            None => match (&self.double as &dyn Any).downcast_ref() {
                Some(tables) => tables,
                None => unreachable!("scalars are f32 or f64"),
            },
        }
    }
}

impl LaneKernel for MechanicsKernel {
    const ATOM_LANES: bool = true;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, system: &System) -> Result<()> {
        if system.len() != self.single.atoms {
            return Err(Error::Invalid(format!(
                "{} has {} atoms but {} describes {}; give the structure that the force field was made for",
                system.name,
                system.len(),
                self.file,
                self.single.atoms
            )));
        }
        Ok(())
    }

    fn device_model(&self) -> Option<DeviceModel> {
        // Devices know neither maps nor exceptions apart from the pairs.
        let known = self.double.maps.atoms.is_empty() && self.double.exceptions.atoms.is_empty();
        known.then(|| self.double.device_model())
    }

    fn scratch(&self, atoms: usize) -> usize {
        if self.double.pairs.is_none() && self.double.born.is_none() {
            return 0;
        }
        let rows = atoms / 2;
        let replica_lanes = KEPT * rows * atoms + 9 * atoms;
        // Atom lanes, in scalars: pairs, extended coordinates and Born arrays, rows in both roles; and one block of terms.
        let stride = atoms.div_ceil(MAX_LANES) * MAX_LANES;
        let extended = stride + rows + MAX_LANES;
        let atom_lanes = KEPT * rows * stride + 7 * extended + 5 * (2 * stride + MAX_LANES) + 2 * stride;
        // The narrowest vectors have two lanes.
        replica_lanes.max(atom_lanes.div_ceil(2)) + 32
    }

    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], scratch: &mut [V]) -> V {
        let tables = self.tables::<V::Scalar>();
        f.fill(V::zero(t));
        let mut energy = V::zero(t);
        bonded::<V, ENERGY>(t, tables, x, f, &mut energy);
        nonbonded::<V, ENERGY>(t, tables, x, f, scratch, &mut energy);
        energy
    }

    #[inline(always)]
    fn evaluate_one<V: Lanes, const ENERGY: bool>(&self, t: V::Token, atoms: usize, x: &[V], f: &mut [V], scratch: &mut [V]) -> V::Scalar {
        let tables = self.tables::<V::Scalar>();
        debug_assert_eq!(atoms, tables.atoms);
        f.fill(V::zero(t));
        let mut energy = V::Scalar::default();
        let stride = x.len() / 3 * V::LANES;
        bonded_one::<V, ENERGY>(t, tables, V::scalars(x), V::scalars_mut(f), stride, &mut energy);
        nonbonded_one::<V, ENERGY>(t, tables, V::scalars(x), V::scalars_mut(f), stride, V::scalars_mut(scratch), &mut energy);
        energy
    }
}

// ---- lanes of replicas ---------------------------------------------------------------------------------------------

#[inline(always)]
fn atom<V: Lanes>(x: &[V], i: usize) -> Vec3<V> {
    let x = &x[3 * i..3 * i + 3];
    [x[0], x[1], x[2]]
}

#[inline(always)]
fn add_to<V: Lanes>(f: &mut [V], i: usize, df: Vec3<V>) {
    let f = &mut f[3 * i..3 * i + 3];
    f[0] += df[0];
    f[1] += df[1];
    f[2] += df[2];
}

#[inline(always)]
fn bonded<V: Lanes, const ENERGY: bool>(t: V::Token, tables: &Tables<V::Scalar>, x: &[V], f: &mut [V], energy: &mut V) {
    for (atoms, p) in tables.bonds.atoms.iter().zip(tables.bonds.parameters.chunks_exact(2)) {
        let [i, j] = [atoms[0] as usize, atoms[1] as usize];
        let (df, e) = bond(t, [atom(x, i), atom(x, j)], V::splat(t, p[0]), V::splat(t, p[1]));
        add_to(f, i, df[0]);
        add_to(f, j, df[1]);
        if ENERGY {
            *energy += e;
        }
    }
    for (atoms, p) in tables.angles.atoms.iter().zip(tables.angles.parameters.chunks_exact(2)) {
        let [i, j, k] = [atoms[0] as usize, atoms[1] as usize, atoms[2] as usize];
        let (df, e) = angle(t, [atom(x, i), atom(x, j), atom(x, k)], V::splat(t, p[0]), V::splat(t, p[1]));
        add_to(f, i, df[0]);
        add_to(f, j, df[1]);
        add_to(f, k, df[2]);
        if ENERGY {
            *energy += e;
        }
    }
    let [np, nr] = tables.torsion_powers;
    for (atoms, p) in tables.torsions.atoms.iter().zip(tables.torsions.parameters.chunks_exact(tables.torsions.width)) {
        let [i, j, k, l] = [atoms[0] as usize, atoms[1] as usize, atoms[2] as usize, atoms[3] as usize];
        let mut coefficients = [V::zero(t); 2 * MAX_PERIODICITY + 1];
        for (c, &p) in coefficients.iter_mut().zip(p) {
            *c = V::splat(t, p);
        }
        let positions = [atom(x, i), atom(x, j), atom(x, k), atom(x, l)];
        let (df, e) = torsion(t, positions, &coefficients[..np], &coefficients[np..np + nr]);
        add_to(f, i, df[0]);
        add_to(f, j, df[1]);
        add_to(f, k, df[2]);
        add_to(f, l, df[3]);
        if ENERGY {
            *energy += e;
        }
    }
    for (atoms, p) in tables.maps.atoms.iter().zip(tables.maps.parameters.chunks_exact(2)) {
        let mut positions = [[V::zero(t); 3]; 8];
        for (x_k, &i) in positions.iter_mut().zip(atoms) {
            *x_k = atom(x, i as usize);
        }
        let (df, e) = map(t, positions, V::splat(t, p[0]), V::splat(t, p[1]), &tables.patches);
        for k in 0..8 {
            add_to(f, atoms[k] as usize, df[k]);
        }
        if ENERGY {
            *energy += e;
        }
    }
    for (atoms, p) in tables.exceptions.atoms.iter().zip(tables.exceptions.parameters.chunks_exact(3)) {
        let [i, j] = [atoms[0] as usize, atoms[1] as usize];
        let (df, e) = pair(t, [atom(x, i), atom(x, j)], V::splat(t, p[0]), V::splat(t, p[1]), V::splat(t, p[2]));
        add_to(f, i, df[0]);
        add_to(f, j, df[1]);
        if ENERGY {
            *energy += e;
        }
    }
}

#[inline(always)]
fn nonbonded<V: Lanes, const ENERGY: bool>(
    t: V::Token,
    tables: &Tables<V::Scalar>,
    x: &[V],
    f: &mut [V],
    scratch: &mut [V],
    energy: &mut V,
) {
    if tables.pairs.is_none() && tables.born.is_none() {
        return;
    }
    let n = tables.atoms;
    let zero = V::zero(t);
    let (kept, rest) = scratch.split_at_mut(KEPT * tables.rows * n);
    let (row, rest) = rest.split_at_mut(3 * n);
    let (integral, rest) = rest.split_at_mut(n);
    let (born, rest) = rest.split_at_mut(n);
    let (born_slope, rest) = rest.split_at_mut(n);
    let (born_force, rest) = rest.split_at_mut(n);
    let (second, _) = rest.split_at_mut(n);
    let (first, _) = row.split_at_mut(n);
    integral.fill(zero);

    // Pass 1: direct interactions and Born integrals.
    for d in 1..=tables.rows {
        let pairs = row_length(n, d);
        if pairs < n {
            first[pairs..].fill(zero);
            second[pairs..].fill(zero);
        }
        for a in 0..pairs {
            let b = wrapped(a + d, n);
            let delta = sub(atom(x, a), atom(x, b));
            let r2 = super::terms::dot(delta, delta);
            let r_inverse = r2.rsqrt();
            let at = (d - 1) * tables.stride + a;
            let keep = &mut kept[((d - 1) * n + a) * KEPT..][..KEPT];
            let mut direct = zero;
            if let Some(p) = &tables.pairs {
                let (s, e) = lennard_jones_coulomb(t, r_inverse, V::splat(t, p.qq[at]), V::splat(t, p.c6[at]), V::splat(t, p.c12[at]));
                direct = s;
                if ENERGY {
                    *energy += e;
                }
            }
            keep[1] = direct;
            if let Some(g) = &tables.born {
                let r = r2 * r_inverse;
                let own = [V::splat(t, g.own[a]), V::splat(t, g.own[b])];
                let scaled = [V::splat(t, g.scaled[a]), V::splat(t, g.scaled[b])];
                let ([ia, ib], [sa, sb]) = born_integrals(t, r, r_inverse, own, scaled);
                keep[0] = r2;
                keep[2] = sa;
                keep[3] = sb;
                first[a] = ia;
                second[a] = ib;
            }
        }
        if tables.born.is_some() {
            for b in 0..n {
                integral[b] += first[b] + second[wrapped(b + n - d, n)];
            }
        }
    }

    // Pass 2: Born radii and Still's pair term.
    if let Some(g) = &tables.born {
        for a in 0..n {
            let (own, radius) = (V::splat(t, g.own[a]), V::splat(t, g.radius[a]));
            (born[a], born_slope[a]) = born_radius(t, integral[a], own, radius, &g.rescaling);
            let (force, e) = born_own(t, born[a], V::splat(t, g.self_energy[a]), V::splat(t, g.surface[a]), g.has_surface);
            born_force[a] = force;
            if ENERGY {
                *energy += e;
            }
        }
        for d in 1..=tables.rows {
            let pairs = row_length(n, d);
            if pairs < n {
                first[pairs..].fill(zero);
                second[pairs..].fill(zero);
            }
            for a in 0..pairs {
                let b = wrapped(a + d, n);
                let keep = &mut kept[((d - 1) * n + a) * KEPT..][..KEPT];
                let pair = V::splat(t, g.pair[(d - 1) * tables.stride + a]);
                let (s, through, e) = born_pair(t, keep[0], born[a], born[b], pair);
                keep[1] += s;
                first[a] = through[0];
                second[a] = through[1];
                if ENERGY {
                    *energy += e;
                }
            }
            for b in 0..n {
                born_force[b] += first[b] + second[wrapped(b + n - d, n)];
            }
        }
        for a in 0..n {
            born_force[a] = born_force[a] * born_slope[a];
        }
    }

    // Pass 3: forces.
    for d in 1..=tables.rows {
        let pairs = row_length(n, d);
        if pairs < n {
            row[3 * pairs..].fill(zero);
        }
        for a in 0..pairs {
            let b = wrapped(a + d, n);
            let keep = &kept[((d - 1) * n + a) * KEPT..][..KEPT];
            let mut s = keep[1];
            if tables.born.is_some() {
                s = chain(s, born_force[a], keep[2], born_force[b], keep[3]);
            }
            let delta = sub(atom(x, a), atom(x, b));
            for k in 0..3 {
                row[3 * a + k] = s * delta[k];
            }
        }
        for b in 0..n {
            let c = wrapped(b + n - d, n);
            for k in 0..3 {
                f[3 * b + k] += row[3 * b + k] - row[3 * c + k];
            }
        }
    }
}

/// `i mod n` for `i < 2 n`.
#[inline(always)]
fn wrapped(i: usize, n: usize) -> usize {
    if i >= n { i - n } else { i }
}

/// Self energy and surface term of one atom: `dE/dB` and energy.
#[inline(always)]
fn born_own<V: Lanes>(t: V::Token, born: V, self_energy: V, surface: V, has_surface: bool) -> (V, V) {
    let inverse = V::lit(t, 1.0) / born;
    let own = self_energy * inverse;
    if !has_surface {
        return (-(own * inverse), own);
    }
    let inverse_2 = inverse * inverse;
    let area = surface * inverse_2 * inverse_2 * inverse_2;
    (-((V::lit(t, 6.0).mul_add(area, own)) * inverse), own + area)
}

/// Adds the Born chain rule to a pair's `−dE/dr / r`.
#[inline(always)]
fn chain<V: Lanes>(s: V, force_a: V, slope_a: V, force_b: V, slope_b: V) -> V {
    s - force_a.mul_add(slope_a, force_b * slope_b)
}

// ---- lanes of atoms ------------------------------------------------------------------------------------------------

/// One kind of bonded term over lanes. A trait, not a closure: see the module documentation of `simd`.
trait Interaction<V: Lanes, const ATOMS: usize>: Copy {
    fn evaluate(self, t: V::Token, x: [Vec3<V>; ATOMS], p: &[V]) -> ([Vec3<V>; ATOMS], V);
}
#[derive(Clone, Copy)]
struct BondTerm;
impl<V: Lanes> Interaction<V, 2> for BondTerm {
    #[inline(always)]
    fn evaluate(self, t: V::Token, x: [Vec3<V>; 2], p: &[V]) -> ([Vec3<V>; 2], V) {
        bond(t, x, p[0], p[1])
    }
}
#[derive(Clone, Copy)]
struct AngleTerm;
impl<V: Lanes> Interaction<V, 3> for AngleTerm {
    #[inline(always)]
    fn evaluate(self, t: V::Token, x: [Vec3<V>; 3], p: &[V]) -> ([Vec3<V>; 3], V) {
        angle(t, x, p[0], p[1])
    }
}
#[derive(Clone, Copy)]
struct TorsionTerm([usize; 2]);
impl<V: Lanes> Interaction<V, 4> for TorsionTerm {
    #[inline(always)]
    fn evaluate(self, t: V::Token, x: [Vec3<V>; 4], p: &[V]) -> ([Vec3<V>; 4], V) {
        let [np, nr] = self.0;
        torsion(t, x, &p[..np], &p[np..np + nr])
    }
}
#[derive(Clone, Copy)]
struct MapTerm<'a, T>(&'a [Patch<T>]);
impl<V: Lanes> Interaction<V, 8> for MapTerm<'_, V::Scalar> {
    #[inline(always)]
    fn evaluate(self, t: V::Token, x: [Vec3<V>; 8], p: &[V]) -> ([Vec3<V>; 8], V) {
        map(t, x, p[0], p[1], self.0)
    }
}
#[derive(Clone, Copy)]
struct PairTerm;
impl<V: Lanes> Interaction<V, 2> for PairTerm {
    #[inline(always)]
    fn evaluate(self, t: V::Token, x: [Vec3<V>; 2], p: &[V]) -> ([Vec3<V>; 2], V) {
        pair(t, x, p[0], p[1], p[2])
    }
}

/// Applies one kind of bonded term to lanes of terms: coordinates are gathered, forces added term by term in order.
#[inline(always)]
fn for_terms<V: Lanes, I: Interaction<V, ATOMS>, const ATOMS: usize, const ENERGY: bool>(
    t: V::Token,
    terms: &Terms<V::Scalar, ATOMS>,
    interaction: I,
    x: &[V::Scalar],
    f: &mut [V::Scalar],
    stride: usize,
    energy: &mut V::Scalar,
) {
    let width = terms.width;
    for (block, atoms) in terms.atoms.chunks(V::LANES).enumerate() {
        let mut position = [[[V::Scalar::default(); MAX_LANES]; 3]; ATOMS];
        let mut parameter = [[V::Scalar::default(); MAX_LANES]; 2 * MAX_PERIODICITY + 1];
        for l in 0..V::LANES {
            // Lanes beyond the last term repeat it, so that their numbers stay ordinary.
            let term = l.min(atoms.len() - 1);
            for m in 0..ATOMS {
                for k in 0..3 {
                    position[m][k][l] = x[k * stride + atoms[term][m] as usize];
                }
            }
            let p = &terms.parameters[(block * V::LANES + term) * width..][..width];
            for (lanes, &p) in parameter.iter_mut().zip(p) {
                lanes[l] = p;
            }
        }
        let mut p = [V::zero(t); 2 * MAX_PERIODICITY + 1];
        for (p, lanes) in p[..width].iter_mut().zip(&parameter) {
            *p = V::load(t, lanes);
        }
        let mut at = [[V::zero(t); 3]; ATOMS];
        for m in 0..ATOMS {
            for k in 0..3 {
                at[m][k] = V::load(t, &position[m][k]);
            }
        }
        let (df, e) = interaction.evaluate(t, at, &p);
        for m in 0..ATOMS {
            for k in 0..3 {
                df[m][k].store(&mut position[m][k]);
            }
        }
        let mut energies = [V::Scalar::default(); MAX_LANES];
        if ENERGY {
            e.store(&mut energies);
        }
        for (l, atoms) in atoms.iter().enumerate() {
            for m in 0..ATOMS {
                for k in 0..3 {
                    f[k * stride + atoms[m] as usize] += position[m][k][l];
                }
            }
            if ENERGY {
                *energy += energies[l];
            }
        }
    }
}

#[inline(always)]
fn bonded_one<V: Lanes, const ENERGY: bool>(
    t: V::Token,
    tables: &Tables<V::Scalar>,
    x: &[V::Scalar],
    f: &mut [V::Scalar],
    stride: usize,
    energy: &mut V::Scalar,
) {
    for_terms::<V, _, 2, ENERGY>(t, &tables.bonds, BondTerm, x, f, stride, energy);
    for_terms::<V, _, 3, ENERGY>(t, &tables.angles, AngleTerm, x, f, stride, energy);
    for_terms::<V, _, 4, ENERGY>(t, &tables.torsions, TorsionTerm(tables.torsion_powers), x, f, stride, energy);
    for_terms::<V, _, 8, ENERGY>(t, &tables.maps, MapTerm(&tables.patches), x, f, stride, energy);
    for_terms::<V, _, 2, ENERGY>(t, &tables.exceptions, PairTerm, x, f, stride, energy);
}

/// Fills `row[n..]` cyclically with `row[..n]`.
#[inline(always)]
fn extend<T: Copy>(row: &mut [T], n: usize) {
    for k in n..row.len() {
        row[k] = row[k - n];
    }
}

#[inline(always)]
fn nonbonded_one<V: Lanes, const ENERGY: bool>(
    t: V::Token,
    tables: &Tables<V::Scalar>,
    x: &[V::Scalar],
    f: &mut [V::Scalar],
    stride: usize,
    scratch: &mut [V::Scalar],
    energy: &mut V::Scalar,
) {
    if tables.pairs.is_none() && tables.born.is_none() {
        return;
    }
    let n = tables.atoms;
    let l = V::LANES;
    let zero = V::zero(t);
    let extended = stride + tables.rows + MAX_LANES;
    let role = 2 * stride + MAX_LANES;
    let (kept, rest) = scratch.split_at_mut(KEPT * tables.rows * stride);
    let (coordinates, rest) = rest.split_at_mut(3 * extended);
    let (born, rest) = rest.split_at_mut(extended);
    let (born_force, rest) = rest.split_at_mut(extended);
    let (integral, rest) = rest.split_at_mut(stride);
    let (born_slope, rest) = rest.split_at_mut(stride);
    let (first, rest) = rest.split_at_mut(role);
    let (second, rest) = rest.split_at_mut(role);
    let (row, _) = rest.split_at_mut(3 * role);
    for k in 0..3 {
        let c = &mut coordinates[k * extended..(k + 1) * extended];
        c[..n].copy_from_slice(&x[k * stride..k * stride + n]);
        extend(c, n);
    }
    integral.fill(V::Scalar::default());
    // Macros, not closures: see the module documentation of `simd`.
    macro_rules! load {
        ($array:expr, $at:expr) => {
            V::load(t, &$array[$at..])
        };
    }
    macro_rules! position {
        ($a:expr) => {
            [load!(coordinates, $a), load!(coordinates, extended + $a), load!(coordinates, 2 * extended + $a)]
        };
    }
    // Where the last row holds each pair twice, its second half counts nothing.
    macro_rules! counts {
        ($d:expr, $a:expr, $v:expr) => {
            if 2 * $d == n { V::select(zero.lt(load!(tables.first_half, $a)), $v, zero) } else { $v }
        };
    }
    // Energies are added pair by pair in the order of rows, as in the other layout.
    macro_rules! add_energy {
        ($d:expr, $a:expr, $e:expr) => {
            let mut lanes = [V::Scalar::default(); MAX_LANES];
            $e.store(&mut lanes);
            for &e in &lanes[..l.min(row_length(n, $d).saturating_sub($a))] {
                *energy += e;
            }
        };
    }
    // Kept arrays of row d begin here.
    macro_rules! kept_at {
        ($d:expr, $which:expr) => {
            (($d - 1) * KEPT + $which) * stride
        };
    }

    for d in 1..=tables.rows {
        for a in (0..n).step_by(l) {
            let delta = sub(position!(a), position!(a + d));
            let r2 = super::terms::dot(delta, delta);
            let r_inverse = r2.rsqrt();
            let at = (d - 1) * tables.stride + a;
            let mut direct = zero;
            if let Some(p) = &tables.pairs {
                let (s, e) = lennard_jones_coulomb(t, r_inverse, load!(p.qq, at), load!(p.c6, at), load!(p.c12, at));
                direct = counts!(d, a, s);
                if ENERGY {
                    add_energy!(d, a, e);
                }
            }
            direct.store(&mut kept[kept_at!(d, 1) + a..]);
            if let Some(g) = &tables.born {
                let r = r2 * r_inverse;
                let own = [load!(g.own, a), load!(g.own, a + d)];
                let scaled = [load!(g.scaled, a), load!(g.scaled, a + d)];
                let ([ia, ib], [sa, sb]) = born_integrals(t, r, r_inverse, own, scaled);
                r2.store(&mut kept[kept_at!(d, 0) + a..]);
                counts!(d, a, sa).store(&mut kept[kept_at!(d, 2) + a..]);
                counts!(d, a, sb).store(&mut kept[kept_at!(d, 3) + a..]);
                counts!(d, a, ia).store(&mut first[a..]);
                counts!(d, a, ib).store(&mut second[a..]);
            }
        }
        if tables.born.is_some() {
            extend(&mut second[..n + stride], n);
            for b in (0..n).step_by(l) {
                let sum = load!(first, b) + load!(second, b + n - d);
                (load!(integral, b) + sum).store(&mut integral[b..]);
            }
        }
    }

    if let Some(g) = &tables.born {
        for a in (0..n).step_by(l) {
            let (b, slope) = born_radius(t, load!(integral, a), load!(g.own, a), load!(g.radius, a), &g.rescaling);
            let (force, e) = born_own(t, b, load!(g.self_energy, a), load!(g.surface, a), g.has_surface);
            b.store(&mut born[a..]);
            slope.store(&mut born_slope[a..]);
            force.store(&mut born_force[a..]);
            if ENERGY {
                // Row 0 stands for "all atoms".
                add_energy!(0, a, e);
            }
        }
        extend(born, n);
        for d in 1..=tables.rows {
            for a in (0..n).step_by(l) {
                let pair = load!(g.pair, (d - 1) * tables.stride + a);
                let r2 = load!(kept, kept_at!(d, 0) + a);
                let (s, through, e) = born_pair(t, r2, load!(born, a), load!(born, a + d), pair);
                let direct = &mut kept[kept_at!(d, 1) + a..];
                (V::load(t, direct) + counts!(d, a, s)).store(direct);
                counts!(d, a, through[0]).store(&mut first[a..]);
                counts!(d, a, through[1]).store(&mut second[a..]);
                if ENERGY {
                    add_energy!(d, a, e);
                }
            }
            extend(&mut second[..n + stride], n);
            for b in (0..n).step_by(l) {
                let sum = load!(first, b) + load!(second, b + n - d);
                (load!(born_force, b) + sum).store(&mut born_force[b..]);
            }
        }
        for a in (0..n).step_by(l) {
            (load!(born_force, a) * load!(born_slope, a)).store(&mut born_force[a..]);
        }
        extend(born_force, n);
    }

    for d in 1..=tables.rows {
        for a in (0..n).step_by(l) {
            let mut s = load!(kept, kept_at!(d, 1) + a);
            if tables.born.is_some() {
                s = chain(
                    s,
                    load!(born_force, a),
                    load!(kept, kept_at!(d, 2) + a),
                    load!(born_force, a + d),
                    load!(kept, kept_at!(d, 3) + a),
                );
            }
            let delta = sub(position!(a), position!(a + d));
            for k in 0..3 {
                (s * delta[k]).store(&mut row[k * role + a..]);
            }
        }
        for k in 0..3 {
            let row = &mut row[k * role..(k + 1) * role];
            extend(&mut row[..n + stride], n);
            for b in (0..n).step_by(l) {
                let sum = load!(row, b) - load!(row, b + n - d);
                let f = &mut f[k * stride + b..];
                (V::load(t, f) + sum).store(f);
            }
        }
    }
}
