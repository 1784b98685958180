//! Lennard-Jones in a periodic cell of any shape, with a cutoff.

use super::lattice::{Lattice, displacements};
use super::neighbours::List;
use super::{check_axes, positive};
use crate::error::Result;
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{Lanes, MAX_LANES, SimdReal, dispatch};
use scorefield_integrators::{Batch, Capabilities, DType, ForceProvider, Input, Output, UnitSystem, by_dtype};

/// Atoms from which a neighbour list is faster than all pairs.
const LIST_FROM: usize = 200;

/// `V = Σ_{i<j, r<r_c} 4ε [(σ/r)¹² − (σ/r)⁶] − V_c` over nearest images, in SI or reduced units. `V_c` is the pair energy
/// at the cutoff where shifted, else 0; forces are the same in both cases and jump to zero at the cutoff.
///
/// Pairs within the cutoff contribute in the order of their indices, whether they come from a neighbour list or from all
/// pairs, so results do not depend on when a list was last built.
pub struct LennardJonesPeriodic {
    capabilities: Capabilities,
    parameters: Parameters,
    /// Per replica.
    lists: Vec<List>,
    list_from: usize,
    work32: Work<f32>,
    work64: Work<f64>,
}

#[derive(Clone, Debug)]
struct Parameters {
    sigma: f64,
    epsilon: f64,
    cutoff: f64,
    /// Subtracted from every pair's energy.
    shift: f64,
    skin: f64,
}

/// Rows `x`, `y`, `z` of one replica and of the partners of one atom. Rows are padded by a vector.
#[derive(Default)]
struct Work<T> {
    x: [Vec<T>; 3],
    f: [Vec<T>; 3],
    /// Candidates' positions, then displacements.
    d: [Vec<T>; 3],
    r2: Vec<T>,
    /// Pairs within the cutoff.
    near: [Vec<T>; 3],
    near_r2: Vec<T>,
    partner: Vec<u32>,
    slope: Vec<T>,
    energy: Vec<T>,
}

impl<T: SimdReal> Work<T> {
    fn reserve(&mut self, atoms: usize) {
        let len = atoms + MAX_LANES;
        if self.r2.len() < len {
            let row = || vec![T::default(); len];
            let rows = || [row(), row(), row()];
            let partner = vec![0; len];
            *self = Work { x: rows(), f: rows(), d: rows(), r2: row(), near: rows(), near_r2: row(), partner, slope: row(), energy: row() };
        }
    }
}

impl LennardJonesPeriodic {
    /// Distance `sigma` of zero energy and `cutoff` in nm, well depth `epsilon` in kJ/mol (or all in reduced units);
    /// `shift` makes the energy continuous at the cutoff. Neighbour lists reach `skin` beyond the cutoff.
    ///
    /// # Errors
    /// Where one of them is not positive.
    pub fn new(sigma: f64, epsilon: f64, cutoff: f64, shift: bool, skin: f64, units: UnitSystem) -> Result<Self> {
        let name = "lennard-jones";
        let (sigma, epsilon) = (positive(name, "sigma", sigma)?, positive(name, "epsilon", epsilon)?);
        let (cutoff, skin) = (positive(name, "cutoff", cutoff)?, positive(name, "skin", skin)?);
        let s6 = (sigma / cutoff).powi(6);
        let shift = if shift { 4.0 * epsilon * (s6 * s6 - s6) } else { 0.0 };
        Ok(LennardJonesPeriodic {
            capabilities: Capabilities {
                units,
                virial: true,
                atom_energy: true,
                periodic: true,
                range: Some(cutoff),
                graph_safe: false,
                ..Capabilities::potential(name)
            },
            parameters: Parameters { sigma, epsilon, cutoff, shift, skin },
            lists: Vec::new(),
            list_from: LIST_FROM,
            work32: Work::default(),
            work64: Work::default(),
        })
    }

    /// The same with neighbour lists from `atoms` atoms on, and all pairs below.
    #[cfg(test)]
    pub(super) fn with_lists_from(mut self, atoms: usize) -> Self {
        self.list_from = atoms;
        self
    }

    fn work<T: SimdReal>(&mut self) -> &mut Work<T> {
        let any: &mut dyn std::any::Any = match T::DTYPE {
            DType::F32 => &mut self.work32,
            DType::F64 => &mut self.work64,
        };
        any.downcast_mut().unwrap_or_else(|| unreachable!("the dtype tag names the type"))
    }

    fn evaluate_typed<T: SimdReal>(&mut self, input: &Input<'_>, out: &mut Output) -> scorefield_integrators::Result<()> {
        let Some(cells) = input.cells else {
            return Err(scorefield_integrators::Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "a cutoff without a periodic cell".into(),
                remedy: "give the input a cell, or leave out the cutoff for an open cluster".into(),
            });
        };
        let positions: &[T] = input.positions.typed()?;
        for (b, cell) in cells.iter().enumerate() {
            let lattice = self.lattice(input.batch, b, cell)?;
            let atoms = input.batch.range(b).len();
            let rows = &positions[input.batch.range3(b)];
            let (cutoff, skin) = (self.parameters.cutoff, self.parameters.skin);
            let listed = atoms >= self.list_from && self.lists[b].update(&lattice, rows, cutoff, skin, &[]);
            let parameters = self.parameters.clone();
            let mut list = std::mem::take(&mut self.lists[b]);
            let work = self.work::<T>();
            for (i, r) in rows.chunks_exact(3).enumerate() {
                for a in 0..3 {
                    work.x[a][i] = r[a];
                    work.f[a][i] = T::default();
                }
            }
            let want = input.want;
            let pairs = Pairs {
                parameters: &parameters,
                lattice: &lattice,
                atoms,
                list: listed.then_some(&list),
                work,
                atom_energy: want.atom_energy.then(|| &mut out.atom_energy[input.batch.range(b)]),
                sums: want.energy || want.virial || want.atom_energy,
            };
            let (energy, virial) = dispatch(pairs);
            if want.energy {
                out.energy[b] = energy;
            }
            if want.virial {
                out.virial[b] = virial;
            }
            let forces = &mut out.forces.typed_mut::<T>()?[input.batch.range3(b)];
            for (i, f) in forces.chunks_exact_mut(3).enumerate() {
                for a in 0..3 {
                    f[a] = work.f[a][i];
                }
            }
            std::mem::swap(&mut self.lists[b], &mut list);
        }
        Ok(())
    }

    fn lattice(&self, batch: &Batch, b: usize, cell: &[f64; 9]) -> scorefield_integrators::Result<Lattice> {
        let name = &batch.system(b).name;
        let Some(lattice) = Lattice::new(cell) else {
            return scorefield_integrators::error::invalid(format!(
                "{name}: the cell {cell:?} has no volume; give three independent vectors"
            ));
        };
        let room = 0.5 * lattice.smallest_height();
        if self.parameters.cutoff > room {
            return scorefield_integrators::error::invalid(format!(
                "{name}: the cutoff {} is larger than half the smallest height of the cell, {room}; use a larger cell or a smaller cutoff",
                self.parameters.cutoff
            ));
        }
        Ok(lattice)
    }
}

impl ForceProvider for LennardJonesPeriodic {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> scorefield_integrators::Result<()> {
        fn reserve<T: SimdReal>(this: &mut LennardJonesPeriodic, atoms: usize) {
            this.work::<T>().reserve(atoms);
        }
        self.capabilities.check_batch(batch, true, dtype)?;
        for system in batch.systems() {
            check_axes("lennard-jones", [true; 3], system)?;
        }
        let most = batch.systems().iter().map(|s| s.len()).max().unwrap_or(0);
        by_dtype!(dtype, reserve(self, most));
        self.lists.clear();
        self.lists.resize_with(batch.replicas(), List::default);
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> scorefield_integrators::Result<()> {
        self.capabilities.check_want(input.want)?;
        match input.positions.dtype() {
            DType::F32 => self.evaluate_typed::<f32>(input, out),
            DType::F64 => self.evaluate_typed::<f64>(input, out),
        }
    }

    fn fork(&self) -> scorefield_integrators::Result<Box<dyn ForceProvider>> {
        Ok(Box::new(LennardJonesPeriodic {
            capabilities: self.capabilities.clone(),
            parameters: self.parameters.clone(),
            lists: Vec::new(),
            list_from: self.list_from,
            work32: Work::default(),
            work64: Work::default(),
        }))
    }
}

/// All pairs of one replica.
struct Pairs<'a, T> {
    parameters: &'a Parameters,
    lattice: &'a Lattice,
    atoms: usize,
    list: Option<&'a List>,
    work: &'a mut Work<T>,
    atom_energy: Option<&'a mut [f64]>,
    /// Energies or virials are wanted.
    sums: bool,
}

impl<T: SimdReal> WithSimd for Pairs<'_, T> {
    type Output = (f64, [f64; 9]);
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) -> Self::Output {
        let Parameters { sigma, epsilon, cutoff, shift, .. } = *self.parameters;
        let cutoff2 = T::from_f64(cutoff * cutoff);
        let sigma2 = T::Of::<S>::lit(t, sigma * sigma);
        let shift = T::Of::<S>::lit(t, shift);
        let (mut energy, mut virial) = (0.0, [0.0; 9]);
        if let Some(e) = self.atom_energy.as_deref_mut() {
            e.fill(0.0);
        }
        let Work { x, f, d, r2, near, near_r2, partner, slope, energy: pair_energy } = self.work;
        for i in 0..self.atoms {
            let xi = [x[0][i], x[1][i], x[2][i]];
            let [dx, dy, dz] = d;
            // 1. Displacements to all candidates.
            let candidates = self.list.map(|l| l.partners(i));
            let m = candidates.map_or(self.atoms - i - 1, <[u32]>::len);
            if let Some(list) = candidates {
                for a in 0..3 {
                    for (to, &j) in near[a].iter_mut().zip(list) {
                        *to = x[a][j as usize];
                    }
                }
            }
            let from =
                if candidates.is_some() { [&near[0][..], &near[1], &near[2]] } else { [&x[0][i + 1..], &x[1][i + 1..], &x[2][i + 1..]] };
            displacements::<T::Of<S>>(t, self.lattice, xi, from, m, [dx, dy, dz], r2);
            // 2. Those within the cutoff, in order. Distances that are not numbers count as near, so that they are seen.
            let mut k = 0;
            for c in 0..m {
                near[0][k] = dx[c];
                near[1][k] = dy[c];
                near[2][k] = dz[c];
                near_r2[k] = r2[c];
                partner[k] = candidates.map_or((i + 1 + c) as u32, |l| l[c]);
                let far = r2[c] >= cutoff2;
                k += usize::from(!far);
            }
            // 3. Their slopes and energies.
            for c in (0..k).step_by(T::Of::<S>::LANES) {
                let (s, e) = super::lennard_jones::pair(t, sigma2, epsilon, T::Of::<S>::load(t, &near_r2[c..]));
                s.store(&mut slope[c..]);
                (e - shift).store(&mut pair_energy[c..]);
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
                    let e = pair_energy[c].to_f64();
                    energy += e;
                    let (s, d) = (slope[c].to_f64(), [near[0][c].to_f64(), near[1][c].to_f64(), near[2][c].to_f64()]);
                    for a in 0..3 {
                        for b in 0..3 {
                            virial[3 * a + b] += s * d[a] * d[b];
                        }
                    }
                    if let Some(atom_energy) = self.atom_energy.as_deref_mut() {
                        atom_energy[i] += 0.5 * e;
                        atom_energy[partner[c] as usize] += 0.5 * e;
                    }
                }
            }
        }
        (energy, virial)
    }
}
