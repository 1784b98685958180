//! The provider: molecules to rows, members to mean and spread.

use super::AniLocal;
use super::descriptor::{Features, Forces, Molecule, Place, Scratch, Tables};
use super::model::{Model, PackReal};
use super::network::{Packed, Pass, most_vectors};
use super::parameters::AniModel;
use crate::error::Result;
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch, lanes};
use scorefield_integrators::units::KJ_PER_HARTREE;
use scorefield_integrators::{
    Batch, Capabilities, DType, DeviceModel, ForceProvider, Input, Output, Result as ContractResult, System, Uncertainty,
};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// kJ/mol/nm per hartree/Å.
pub(super) const FORCE: f64 = KJ_PER_HARTREE * 10.0;
/// Molecules are worked on together up to this many atoms: enough to hide the reading of weights, few enough that features
/// stay in cache.
const ATOMS_PER_CHUNK: usize = 1024;

/// ANI-2x, ANI-1x or ANI-1ccx from a file of weights: energies and forces of organic molecules with the accuracy of the
/// density functional (1x, 2x) or nearly of the coupled-cluster calculations (1ccx) that they were trained on.
///
/// All members are evaluated; energies and forces are their mean, and uncertainties their standard deviation
/// `√(Σ (xₘ − x̄)²/(M − 1))`.
pub struct AniProvider {
    model: Arc<Model>,
    capabilities: Capabilities,
    work32: Work<f32>,
    work64: Work<f64>,
}

/// Rows of one element that pass through the networks together.
#[derive(Clone, Copy)]
struct RowBlock {
    slot: usize,
    vectors: usize,
    /// First row of the chunk.
    row: usize,
}

/// Molecules worked on together.
struct Chunk {
    replicas: Range<usize>,
    blocks: Range<usize>,
    rows: usize,
}

/// What belongs to a prepared batch in one precision.
#[derive(Default)]
struct Work<T> {
    packed: Option<Arc<Packed<T>>>,
    tables: Option<Arc<Tables<T>>>,
    chunks: Vec<Chunk>,
    blocks: Vec<RowBlock>,
    /// Per atom: index of its element among the packed ones, its row in the chunk, and where its features are.
    slots: Vec<u8>,
    rows: Vec<usize>,
    places: Vec<Place>,
    /// Sum of self energies of each atom in hartree.
    self_energy: Vec<f64>,
    descriptor: Scratch<T>,
    features: AlignedBuffer<T>,
    sum: AlignedBuffer<T>,
    gradient: AlignedBuffer<T>,
    hidden: AlignedBuffer<T>,
    energy: AlignedBuffer<T>,
    forces: AlignedBuffer<T>,
    /// Energy of each atom summed over members (hartree).
    atom_energy: Vec<f64>,
    /// Running mean and sum of squared deviations over members, of energies and forces.
    spread: [Uncertainty; 2],
}

impl AniProvider {
    /// Whether `file` looks like ANI weights, by its metadata or the names of its tensors.
    pub fn recognises(file: impl AsRef<Path>) -> bool {
        Model::recognises(file.as_ref())
    }

    /// Reads the weights in `file`; `model` is which one they should be, or `None` to go by the file's metadata.
    ///
    /// # Errors
    /// Where the file does not exist (with where to get it), is damaged, holds another model, or does not say which one.
    pub fn open(file: impl AsRef<Path>, model: Option<AniModel>) -> Result<Self> {
        let model = Model::read(file.as_ref(), model)?;
        let mut types: Vec<u32> = model.parameters.elements.iter().map(|e| e.number).collect();
        types.sort_unstable();
        let capabilities = Capabilities {
            atom_energy: true,
            uncertainty: model.members > 1,
            types: Some(types),
            range: Some(model.parameters.symmetry.radial_cutoff * 0.1),
            ..Capabilities::potential(model.name.clone()).with_kernels()
        };
        Ok(AniProvider { model: Arc::new(model), capabilities, work32: Work::default(), work64: Work::default() })
    }

    /// The same forces on domains of a larger system.
    pub fn local(&self) -> AniLocal {
        AniLocal::new(self.model.clone())
    }

    /// Number of networks whose mean is taken.
    pub fn members(&self) -> usize {
        self.model.members
    }
}

impl<T: SimdReal + PackReal> Work<T> {
    fn prepare(&mut self, model: &Model, batch: &Batch) {
        let elements = &model.parameters.elements;
        let element_of = |number: u32| elements.iter().position(|e| e.number == number).unwrap_or(0);
        let mut used = vec![false; elements.len()];
        for system in batch.systems() {
            system.types.iter().for_each(|&z| used[element_of(z)] = true);
        }
        let present: Vec<usize> = (0..elements.len()).filter(|&e| used[e]).collect();
        if self.packed.as_ref().is_none_or(|p| p.elements() != present) {
            self.packed = Some(model.packed(&present));
        }
        let symmetry = &model.parameters.symmetry;
        self.tables.get_or_insert_with(|| Arc::new(Tables::new(symmetry)));
        let features = symmetry.features(present.len());

        self.slots.clear();
        self.self_energy.clear();
        for system in batch.systems() {
            for &z in &system.types {
                let e = element_of(z);
                self.slots.push(present.iter().position(|&p| p == e).unwrap_or(0) as u8);
                self.self_energy.push(elements[e].self_energy);
            }
        }
        self.rows.clear();
        self.rows.resize(batch.atoms(), 0);
        self.places.clear();
        self.places.resize(batch.atoms(), Place::default());
        self.chunks.clear();
        self.blocks.clear();
        let (lanes, most) = (lanes::<T>(), most_vectors::<T>(lanes::<T>()));
        let mut first = 0;
        while first < batch.replicas() {
            let mut end = first + 1;
            while end < batch.replicas() && batch.range(end).end - batch.range(first).start <= ATOMS_PER_CHUNK {
                end += 1;
            }
            let first_block = self.blocks.len();
            let atoms = batch.range(first).start..batch.range(end - 1).end;
            let mut row = 0;
            for slot in 0..present.len() {
                let of_slot = atoms.clone().filter(|&a| self.slots[a] as usize == slot);
                let mut left = of_slot.clone().count().div_ceil(lanes);
                let mut members = of_slot;
                while left > 0 {
                    let vectors = left.min(most);
                    let width = vectors * lanes;
                    for (lane, atom) in members.by_ref().take(width).enumerate() {
                        self.rows[atom] = row + lane;
                        self.places[atom] = Place { offset: row * features + lane, stride: width };
                    }
                    self.blocks.push(RowBlock { slot, vectors, row });
                    row += width;
                    left -= vectors;
                }
            }
            self.chunks.push(Chunk { replicas: first..end, blocks: first_block..self.blocks.len(), rows: row });
            first = end;
        }
        let rows = self.chunks.iter().map(|c| c.rows).max().unwrap_or(0);
        let most_atoms = batch.systems().iter().map(|s| s.len()).max().unwrap_or(0);
        let chunk_atoms = self.chunks.iter().map(|c| batch.range(c.replicas.end - 1).end - batch.range(c.replicas.start).start).max();
        for buffer in [&mut self.features, &mut self.sum, &mut self.gradient] {
            buffer.reserve(rows * features);
            // Rows without an atom keep what they hold: make it nothing.
            buffer.fill(T::default());
        }
        self.energy.reserve(rows);
        self.forces.reserve(3 * chunk_atoms.unwrap_or(0));
        self.hidden.reserve(self.packed.as_ref().map_or(0, |p| p.activations()) * most * lanes);
        self.descriptor.reserve(most_atoms, features);
        self.atom_energy.resize(batch.atoms(), 0.0);
        for s in &mut self.spread {
            s.energy.resize(batch.replicas(), 0.0);
            s.forces.resize(3 * batch.atoms(), 0.0);
        }
    }

    fn evaluate(&mut self, members: usize, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let (Some(packed), Some(tables)) = (self.packed.clone(), self.tables.clone()) else {
            return Err(scorefield_integrators::Error::Invalid("ANI was asked for forces before it was prepared".into()));
        };
        if self.slots.len() != input.batch.atoms() {
            return Err(scorefield_integrators::Error::Invalid("ANI was prepared for another batch; prepare it anew".into()));
        }
        dispatch(Evaluate { work: self, packed: &packed, tables: &tables, members, input, positions: input.positions.typed()?, out })
    }
}

/// One evaluation of a batch.
struct Evaluate<'a, T> {
    work: &'a mut Work<T>,
    packed: &'a Packed<T>,
    tables: &'a Tables<T>,
    members: usize,
    input: &'a Input<'a>,
    positions: &'a [T],
    out: &'a mut Output,
}

/// Takes the `count`-th value of each component into running means and sums of squared deviations.
fn welford(count: usize, values: impl Iterator<Item = f64>, mean: &mut [f64], squares: &mut [f64]) {
    for ((x, mean), squares) in values.zip(mean).zip(squares) {
        let before = x - *mean;
        *mean += before / count as f64;
        *squares += before * (x - *mean);
    }
}

impl<T: SimdReal> WithSimd for Evaluate<'_, T> {
    type Output = ContractResult<()>;
    fn with_simd<S: Simd>(self, t: S) -> ContractResult<()> {
        let Evaluate { work, packed, tables, members, input, positions, out } = self;
        let (batch, want) = (input.batch, input.want);
        let features = packed.features();
        let lanes = T::Of::<S>::LANES;
        work.atom_energy.fill(0.0);
        let [mean, squares] = &mut work.spread;
        if want.uncertainty {
            for s in [&mut *mean, &mut *squares] {
                s.energy.fill(0.0);
                s.forces.fill(0.0);
            }
        }
        for chunk in &work.chunks {
            let atoms = batch.range(chunk.replicas.start).start..batch.range(chunk.replicas.end - 1).end;
            let len = chunk.rows * features;
            let molecule = |b: usize| Molecule {
                tables,
                positions: &positions[batch.range3(b)],
                slots: &work.slots[batch.range(b)],
                places: &work.places[batch.range(b)],
                elements: packed.elements().len(),
            };
            for b in chunk.replicas.clone() {
                t.vectorize(Features { molecule: molecule(b), scratch: &mut work.descriptor, x: &mut work.features[..len] });
            }
            work.sum[..len].fill(T::default());
            for member in 0..members {
                for block in &work.blocks[chunk.blocks.clone()] {
                    let width = block.vectors * lanes;
                    let place = block.row * features..(block.row + width) * features;
                    t.vectorize(Pass {
                        packed,
                        slot: block.slot,
                        member,
                        vectors: block.vectors,
                        x: &work.features[place.clone()],
                        energy: &mut work.energy[block.row..block.row + width],
                        sum: &mut work.sum[place.clone()],
                        gradient: if want.uncertainty { Some(&mut work.gradient[place]) } else { None },
                        hidden: &mut work.hidden,
                    });
                }
                for b in chunk.replicas.clone() {
                    let mut energy = 0.0;
                    for a in batch.range(b) {
                        let e = work.energy[work.rows[a]].to_f64();
                        work.atom_energy[a] += e;
                        energy += e;
                    }
                    if !want.uncertainty {
                        continue;
                    }
                    welford(member + 1, std::iter::once(energy), &mut mean.energy[b..=b], &mut squares.energy[b..=b]);
                    let place = batch.range3(b);
                    let forces = &mut work.forces[place.start - 3 * atoms.start..place.end - 3 * atoms.start];
                    t.vectorize(Forces { molecule: molecule(b), scratch: &mut work.descriptor, g: &work.gradient[..len], forces });
                    let forces = forces.iter().map(|f| f.to_f64());
                    welford(member + 1, forces, &mut mean.forces[place.clone()], &mut squares.forces[place]);
                }
            }
            let to = out.forces.typed_mut::<T>()?;
            let unit = T::from_f64(FORCE / members as f64);
            for b in chunk.replicas.clone() {
                let forces = &mut to[batch.range3(b)];
                t.vectorize(Forces { molecule: molecule(b), scratch: &mut work.descriptor, g: &work.sum[..len], forces });
                forces.iter_mut().for_each(|f| *f = *f * unit);
            }
        }
        finish(work, members, input, positions, out)
    }
}

/// Energies and deviations in units of the contract; molecules with positions that are no numbers get results that are none.
fn finish<T: SimdReal>(work: &Work<T>, members: usize, input: &Input<'_>, positions: &[T], out: &mut Output) -> ContractResult<()> {
    let (batch, want) = (input.batch, input.want);
    let of_atom = |a: usize| (work.atom_energy[a] / members as f64 + work.self_energy[a]) * KJ_PER_HARTREE;
    if want.energy {
        for b in 0..batch.replicas() {
            out.energy[b] = batch.range(b).map(of_atom).sum();
        }
    }
    if want.atom_energy {
        out.atom_energy.iter_mut().enumerate().for_each(|(a, e)| *e = of_atom(a));
    }
    if want.uncertainty {
        let squares = &work.spread[1];
        let deviation = |s: f64| (s / (members - 1).max(1) as f64).sqrt();
        out.uncertainty.energy.iter_mut().zip(&squares.energy).for_each(|(to, &s)| *to = deviation(s) * KJ_PER_HARTREE);
        out.uncertainty.forces.iter_mut().zip(&squares.forces).for_each(|(to, &s)| *to = deviation(s) * FORCE);
    }
    for b in 0..batch.replicas() {
        if positions[batch.range3(b)].iter().all(|x| x.to_f64().is_finite()) {
            continue;
        }
        out.forces.typed_mut::<T>()?[batch.range3(b)].fill(T::from_f64(f64::NAN));
        if want.energy {
            out.energy[b] = f64::NAN;
        }
        if want.atom_energy {
            out.atom_energy[batch.range(b)].fill(f64::NAN);
        }
        if want.uncertainty {
            out.uncertainty.energy[b] = f64::NAN;
            out.uncertainty.forces[batch.range3(b)].fill(f64::NAN);
        }
    }
    Ok(())
}

impl ForceProvider for AniProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        match dtype {
            DType::F32 => self.work32.prepare(&self.model, batch),
            DType::F64 => self.work64.prepare(&self.model, batch),
        }
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() {
            return Err(scorefield_integrators::Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        match input.positions.dtype() {
            DType::F32 => self.work32.evaluate(self.model.members, input, out),
            DType::F64 => self.work64.evaluate(self.model.members, input, out),
        }
    }

    fn device_model(&self, system: &System) -> Option<DeviceModel> {
        Some(self.model.device_model(&system.types))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(AniProvider {
            model: self.model.clone(),
            capabilities: self.capabilities.clone(),
            work32: Work::default(),
            work64: Work::default(),
        }))
    }
}
