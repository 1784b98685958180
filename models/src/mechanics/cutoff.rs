//! Lennard-Jones and Coulomb within a cutoff, in open space or a periodic cell, by neighbour lists. Bonded terms, exceptions and
//! solvation are those of the lane kernel: they are not cut, and as in OpenMM they take molecules as whole.
//!
//! With cutoff `r_c` and dielectric constant `ε` of the surroundings (Tironi et al., *J. Chem. Phys.* 102, 5451, 1995),
//! `E = S(r) 4ε [(σ/r)¹² − (σ/r)⁶] + C q q' (1/r + k r² − c)`, `k = (ε − 1)/(2ε + 1)/r_c³`, `c = 3ε/(2ε + 1)/r_c`, with
//! `S = 1 − 10 x³ + 15 x⁴ − 6 x⁵`, `x = (r − r_s)/(r_c − r_s)` from the switching distance `r_s` on, as OpenMM has them.

use super::model::{Cutoff, Nonbonded};
use crate::analytic::lattice::{Lattice, displacements};
use crate::analytic::neighbours::List;
use pulp::{Simd, WithSimd};
use scorefield_integrators::error::invalid;
use scorefield_integrators::simd::{Lanes, MAX_LANES, SimdReal, dispatch};
use scorefield_integrators::state::Cell;
use scorefield_integrators::{Batch, Capabilities, DType, Error, ForceProvider, Input, Output, Result, Want, by_dtype};
use std::sync::Arc;

/// Atoms from which a neighbour list is faster than all pairs.
const LIST_FROM: usize = 200;
/// Neighbour lists reach this far beyond the cutoff, nm.
const SKIN: f64 = 0.2;

/// A force field whose pairs end at a cutoff.
///
/// Pairs contribute in the order of their indices, so results do not depend on when a list was last built.
pub(super) struct CutoffProvider {
    capabilities: Capabilities,
    /// Everything that is not cut.
    uncut: Box<dyn ForceProvider>,
    pairs: Arc<Parameters>,
    /// Per replica.
    lists: Vec<List>,
    /// Cell in which the list of a replica in open space is built; far larger than the replica.
    boxes: Vec<Option<Lattice>>,
    work32: Work<f32>,
    work64: Work<f64>,
}

/// What the pairs are, in double precision.
struct Parameters {
    distance: f64,
    /// Cell of replicas that bring none; `None` in open space.
    cell: Option<Cell>,
    /// Distance from which Lennard-Jones is switched, and one over the width of the switch (0 without).
    switch: [f64; 2],
    /// `k` and `c` of the reaction field.
    field: [f64; 2],
    /// `E = dispersion / volume`.
    dispersion: f64,
    /// `√C q`, `σ/2` and `2√ε` of each atom.
    atoms: [Vec<f64>; 3],
    /// Partners of higher index that are exceptions.
    excluded: Vec<Vec<u32>>,
}

/// Rows of one replica and of the partners of one atom, padded by a vector.
#[derive(Default)]
struct Work<T> {
    x: [Vec<T>; 3],
    f: [Vec<T>; 3],
    /// `√C q`, `σ/2`, `2√ε` of each atom.
    atoms: [Vec<T>; 3],
    /// Candidates' positions, then displacements.
    d: [Vec<T>; 3],
    r2: Vec<T>,
    /// Pairs within the cutoff: displacements, squared distances, parameters of the partner.
    near: [Vec<T>; 3],
    near_r2: Vec<T>,
    near_atoms: [Vec<T>; 3],
    partner: Vec<u32>,
    slope: Vec<T>,
    energy: Vec<T>,
}

impl<T: SimdReal> Work<T> {
    fn new(parameters: &Parameters) -> Self {
        let len = parameters.atoms[0].len() + MAX_LANES;
        let row = || vec![T::default(); len];
        let rows = || [row(), row(), row()];
        let mut atoms = rows();
        for (to, from) in atoms.iter_mut().zip(&parameters.atoms) {
            for (to, &x) in to.iter_mut().zip(from) {
                *to = T::from_f64(x);
            }
        }
        Work {
            x: rows(),
            f: rows(),
            atoms,
            d: rows(),
            r2: row(),
            near: rows(),
            near_r2: row(),
            near_atoms: rows(),
            partner: vec![0; len],
            slope: row(),
            energy: row(),
        }
    }
}

/// `E V` of the dispersion correction (Shirts et al., *J. Phys. Chem. B* 111, 13052, 2007), `8π N² ⟨ε ∫ r² (σ¹²/r¹² − σ⁶/r⁶) (1 − S) dr⟩`:
/// the mean over all pairs of atoms of what cutoff and switch leave out, at uniform density.
fn dispersion(nb: &Nonbonded, cutoff: &Cutoff) -> f64 {
    // Kinds of atoms and how many there are of each.
    let mut kinds: Vec<(f64, f64, f64)> = Vec::new();
    for p in &nb.particles {
        match kinds.iter_mut().find(|k| (k.0, k.1) == (p.sigma, p.epsilon)) {
            Some(kind) => kind.2 += 1.0,
            None => kinds.push((p.sigma, p.epsilon, 1.0)),
        }
    }
    let rc = cutoff.distance;
    // Simpson's rule for what the switch takes away of r² (…).
    let switched = |s6: f64| {
        let Some(rs) = cutoff.switch else { return 0.0 };
        let intervals = 4000;
        let h = (rc - rs) / f64::from(intervals);
        let sum: f64 = (0..=intervals)
            .map(|k| {
                let (x, r) = (f64::from(k) / f64::from(intervals), rs + h * f64::from(k));
                let u6 = s6 / r.powi(6);
                let weight = if k == 0 || k == intervals { 1.0 } else { f64::from(2 + 2 * (k % 2)) };
                weight * r * r * (u6 * u6 - u6) * x.powi(3) * (10.0 + x * (-15.0 + 6.0 * x))
            })
            .sum();
        sum * h / 3.0
    };
    let mut mean = 0.0;
    for (i, a) in kinds.iter().enumerate() {
        for (j, b) in kinds[..=i].iter().enumerate() {
            let count = if i == j { 0.5 * a.2 * (a.2 + 1.0) } else { a.2 * b.2 };
            let (s6, epsilon) = ((0.5 * (a.0 + b.0)).powi(6), (a.1 * b.1).sqrt());
            mean += count * epsilon * (s6 * s6 / (9.0 * rc.powi(9)) - s6 / (3.0 * rc.powi(3)) + switched(s6));
        }
    }
    let n = nb.particles.len() as f64;
    8.0 * std::f64::consts::PI * n * n * mean / (0.5 * n * (n + 1.0))
}

impl Parameters {
    fn new(nb: &Nonbonded, cutoff: &Cutoff, cell: Option<Cell>) -> Self {
        let (rc, e) = (cutoff.distance, cutoff.dielectric);
        let mut excluded = vec![Vec::new(); nb.particles.len()];
        for exception in &nb.exceptions {
            let [i, j] = exception.atoms;
            excluded[i.min(j) as usize].push(i.max(j));
        }
        excluded.iter_mut().for_each(|e| e.sort_unstable());
        let of = |f: &dyn Fn(&super::model::Particle) -> f64| nb.particles.iter().map(f).collect();
        Parameters {
            distance: rc,
            cell: if cutoff.periodic { cell } else { None },
            switch: cutoff.switch.map_or([rc, 0.0], |rs| [rs, 1.0 / (rc - rs)]),
            field: [(e - 1.0) / (2.0 * e + 1.0) / rc.powi(3), 3.0 * e / (2.0 * e + 1.0) / rc],
            dispersion: if cutoff.dispersion { dispersion(nb, cutoff) } else { 0.0 },
            atoms: [of(&|p| nb.coulomb.sqrt() * p.charge), of(&|p| 0.5 * p.sigma), of(&|p| 2.0 * p.epsilon.sqrt())],
            excluded,
        }
    }
}

impl CutoffProvider {
    /// Adds the pairs of `nb` to `uncut`; `cell` is that of periodic replicas that bring none.
    pub(super) fn new(uncut: Box<dyn ForceProvider>, nb: &Nonbonded, cutoff: &Cutoff, cell: Option<Cell>) -> Self {
        let capabilities =
            Capabilities { periodic: cutoff.periodic, virial: true, graph_safe: false, ..uncut.capabilities().clone().without_kernels() };
        CutoffProvider::of(capabilities, uncut, Arc::new(Parameters::new(nb, cutoff, cell)))
    }

    fn of(capabilities: Capabilities, uncut: Box<dyn ForceProvider>, pairs: Arc<Parameters>) -> Self {
        CutoffProvider {
            capabilities,
            uncut,
            pairs,
            lists: Vec::new(),
            boxes: Vec::new(),
            work32: Work::default(),
            work64: Work::default(),
        }
    }

    fn work<T: SimdReal>(&mut self) -> &mut Work<T> {
        let any: &mut dyn std::any::Any = match T::DTYPE {
            DType::F32 => &mut self.work32,
            DType::F64 => &mut self.work64,
        };
        any.downcast_mut().unwrap_or_else(|| unreachable!("the dtype tag names the type"))
    }

    /// The lattice of replica `b` and whether its images count.
    fn lattice<T: SimdReal>(&mut self, input: &Input<'_>, b: usize, rows: &[T]) -> Result<(Lattice, bool)> {
        let distance = self.pairs.distance;
        if self.capabilities.periodic {
            let name = &input.batch.system(b).name;
            let Some(cell) = input.cells.map(|c| c[b]).or(self.pairs.cell) else {
                return invalid(format!("{name} has no cell, nor has {}; add one to the structure", self.capabilities.name));
            };
            let Some(lattice) = Lattice::new(&cell) else {
                return invalid(format!("{name}: the cell {cell:?} has no volume; give three independent vectors"));
            };
            let room = 0.5 * lattice.smallest_height();
            if distance > room {
                return invalid(format!(
                    "{name}: the cutoff of {distance} nm is larger than half the smallest height of the cell, {room} nm; use a larger cell or a smaller cutoff"
                ));
            }
            return Ok((lattice, true));
        }
        let mut extent = 0.0f64;
        for axis in 0..3 {
            let of_axis = || rows.iter().skip(axis).step_by(3).map(|x| x.to_f64());
            extent = extent.max(of_axis().fold(f64::NEG_INFINITY, f64::max) - of_axis().fold(f64::INFINITY, f64::min));
        }
        // A box of twice the size holds no image nearer than the atom itself; it stays while that is so.
        let lattice = match self.boxes[b].take() {
            Some(lattice) if lattice.cell[0] >= 2.0 * extent => lattice,
            _ => {
                let edge = 2.5 * extent + 2.0 * (distance + SKIN);
                match Lattice::new(&[edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge]) {
                    Some(lattice) => lattice,
                    None => return invalid(format!("{}: positions are not finite", input.batch.system(b).name)),
                }
            }
        };
        self.boxes[b] = Some(lattice.clone());
        Ok((lattice, false))
    }

    fn add_pairs<T: SimdReal>(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        let positions: &[T] = input.positions.typed()?;
        for b in 0..input.batch.replicas() {
            let atoms = input.batch.range(b).len();
            let rows = &positions[input.batch.range3(b)];
            let (lattice, periodic) = self.lattice(input, b, rows)?;
            let pairs = self.pairs.clone();
            let mut list = std::mem::take(&mut self.lists[b]);
            if atoms < LIST_FROM || !list.update(&lattice, rows, pairs.distance, SKIN, &pairs.excluded) {
                list.fill(atoms, &pairs.excluded);
            }
            let work = self.work::<T>();
            for (i, r) in rows.chunks_exact(3).enumerate() {
                for a in 0..3 {
                    work.x[a][i] = r[a];
                    work.f[a][i] = T::default();
                }
            }
            let want = input.want;
            let sums = want.energy || want.virial;
            let (mut energy, mut virial) = dispatch(Pairs { parameters: &pairs, lattice: &lattice, atoms, list: &list, work, sums });
            if periodic && pairs.dispersion != 0.0 {
                let mean = pairs.dispersion / nalgebra::Matrix3::from_row_slice(&lattice.cell).determinant().abs();
                energy += mean;
                (0..3).for_each(|a| virial[4 * a] += mean);
            }
            if want.energy {
                out.energy[b] += energy;
            }
            let forces = &mut out.forces.typed_mut::<T>()?[input.batch.range3(b)];
            if want.virial {
                // What is not cut acts between positions as they are: its virial is Σ r f, about any origin.
                for (r, f) in rows.chunks_exact(3).zip(forces.chunks_exact(3)) {
                    for a in 0..3 {
                        for c in 0..3 {
                            virial[3 * a + c] += (r[a].to_f64() - rows[a].to_f64()) * f[c].to_f64();
                        }
                    }
                }
                out.virial[b] = virial;
            }
            for (i, f) in forces.chunks_exact_mut(3).enumerate() {
                for a in 0..3 {
                    f[a] += work.f[a][i];
                }
            }
            self.lists[b] = list;
        }
        Ok(())
    }
}

impl ForceProvider for CutoffProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> Result<()> {
        fn reserve<T: SimdReal>(this: &mut CutoffProvider) {
            *this.work::<T>() = Work::new(&this.pairs.clone());
        }
        self.uncut.prepare(batch, dtype)?;
        by_dtype!(dtype, reserve(self));
        self.lists.clear();
        self.lists.resize_with(batch.replicas(), List::default);
        self.boxes.clear();
        self.boxes.resize(batch.replicas(), None);
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() && !self.capabilities.periodic {
            return Err(Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        self.uncut.evaluate(&Input { cells: None, want: Want { virial: false, ..input.want }, ..*input }, out)?;
        match input.positions.dtype() {
            DType::F32 => self.add_pairs::<f32>(input, out),
            DType::F64 => self.add_pairs::<f64>(input, out),
        }
    }

    fn fork(&self) -> Result<Box<dyn ForceProvider>> {
        Ok(Box::new(CutoffProvider::of(self.capabilities.clone(), self.uncut.fork()?, self.pairs.clone())))
    }
}

/// All pairs of one replica.
struct Pairs<'a, T> {
    parameters: &'a Parameters,
    lattice: &'a Lattice,
    atoms: usize,
    list: &'a List,
    work: &'a mut Work<T>,
    /// Energies or virials are wanted.
    sums: bool,
}

impl<T: SimdReal> WithSimd for Pairs<'_, T> {
    type Output = (f64, [f64; 9]);
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) -> Self::Output {
        let p = self.parameters;
        let cutoff2 = T::from_f64(p.distance * p.distance);
        let (mut energy, mut virial) = (0.0, [0.0; 9]);
        let Work { x, f, atoms, d, r2, near, near_r2, near_atoms, partner, slope, energy: pair_energy } = self.work;
        for i in 0..self.atoms {
            let xi = [x[0][i], x[1][i], x[2][i]];
            let [dx, dy, dz] = d;
            // 1. Displacements to all candidates.
            let candidates = self.list.partners(i);
            let m = candidates.len();
            for a in 0..3 {
                for (to, &j) in near[a].iter_mut().zip(candidates) {
                    *to = x[a][j as usize];
                }
            }
            displacements::<T::Of<S>>(t, self.lattice, xi, [&near[0], &near[1], &near[2]], m, [dx, dy, dz], r2);
            // 2. Those within the cutoff, in order. Distances that are not numbers count as near, so that they are seen.
            let mut k = 0;
            for c in 0..m {
                near[0][k] = dx[c];
                near[1][k] = dy[c];
                near[2][k] = dz[c];
                near_r2[k] = r2[c];
                partner[k] = candidates[c];
                let far = r2[c] >= cutoff2;
                k += usize::from(!far);
            }
            for a in 0..3 {
                for (to, &j) in near_atoms[a].iter_mut().zip(&partner[..k]) {
                    *to = atoms[a][j as usize];
                }
            }
            // 3. Their slopes and energies.
            let own = [T::Of::<S>::splat(t, atoms[0][i]), T::Of::<S>::splat(t, atoms[1][i]), T::Of::<S>::splat(t, atoms[2][i])];
            for c in (0..k).step_by(T::Of::<S>::LANES) {
                let load = [
                    T::Of::<S>::load(t, &near_atoms[0][c..]),
                    T::Of::<S>::load(t, &near_atoms[1][c..]),
                    T::Of::<S>::load(t, &near_atoms[2][c..]),
                ];
                let (s, e) = pair(t, p, own, load, T::Of::<S>::load(t, &near_r2[c..]));
                s.store(&mut slope[c..]);
                e.store(&mut pair_energy[c..]);
            }
            // 4. Sums, one pair after the other.
            let mut fi = [f[0][i], f[1][i], f[2][i]];
            for c in 0..k {
                let j = partner[c] as usize;
                for a in 0..3 {
                    let force = slope[c] * near[a][c];
                    fi[a] += force;
                    f[a][j] -= force;
                }
            }
            for a in 0..3 {
                f[a][i] = fi[a];
            }
            if self.sums {
                for c in 0..k {
                    energy += pair_energy[c].to_f64();
                    let (s, d) = (slope[c].to_f64(), [near[0][c].to_f64(), near[1][c].to_f64(), near[2][c].to_f64()]);
                    for a in 0..3 {
                        for b in 0..3 {
                            virial[3 * a + b] += s * d[a] * d[b];
                        }
                    }
                }
            }
        }
        (energy, virial)
    }
}

/// One pair at squared distance `r2` within the cutoff, from `[√C q, σ/2, 2√ε]` of its atoms: `−dE/dr / r` and energy.
#[inline(always)]
fn pair<V: Lanes>(t: V::Token, p: &Parameters, a: [V; 3], b: [V; 3], r2: V) -> (V, V) {
    let one = V::lit(t, 1.0);
    let r_inverse = r2.rsqrt();
    let r2_inverse = r_inverse * r_inverse;
    let sigma_r = (a[1] + b[1]) * r_inverse;
    let s2 = sigma_r * sigma_r;
    let s6 = s2 * s2 * s2;
    let depth = a[2] * b[2] * s6;
    let uncut = depth * (s6 - one);
    let uncut_slope = depth * V::lit(t, 12.0).mul_add(s6, V::lit(t, -6.0)) * r2_inverse;
    let (mut lj, mut lj_slope) = (uncut, uncut_slope);
    if p.switch[1] != 0.0 {
        let width_inverse = V::lit(t, p.switch[1]);
        let x = ((r2 * r_inverse - V::lit(t, p.switch[0])) * width_inverse).max(V::zero(t));
        let x2 = x * x;
        let s = (x2 * x).mul_add(x.mul_add(V::lit(t, -6.0).mul_add(x, V::lit(t, 15.0)), V::lit(t, -10.0)), one);
        let s_slope = x2 * x.mul_add(V::lit(t, -30.0).mul_add(x, V::lit(t, 60.0)), V::lit(t, -30.0)) * width_inverse;
        lj = s * uncut;
        lj_slope = s * uncut_slope - s_slope * uncut * r_inverse;
    }
    let (k, c) = (V::lit(t, p.field[0]), V::lit(t, p.field[1]));
    let qq = a[0] * b[0];
    let coulomb = qq * (r_inverse + k.mul_add(r2, -c));
    let coulomb_slope = qq * (r_inverse * r2_inverse - (k + k));
    (lj_slope + coulomb_slope, lj + coulomb)
}
