//! ANI on one domain of a larger system: the same environment vectors and networks, for own atoms only.

use super::descriptor::{Features, Forces, Molecule, Place, Scratch, Tables};
use super::model::Model;
use super::network::{Packed, Pass, most_vectors};
use super::provider::FORCE;
use crate::error::{Error, Result};
use crate::local::{Domain, DomainOutput, LocalForces};
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch, lanes};
use scorefield_integrators::units::KJ_PER_HARTREE;
use std::sync::Arc;

/// An ANI model in double precision. Ghosts are neighbours like any other atom, so periodic systems need no more than their
/// images. Neighbours are searched among all atoms of the domain, not in the engine's lists: fine for some thousand atoms.
pub struct AniLocal {
    model: Arc<Model>,
    tables: Arc<Tables<f64>>,
    /// Elements seen so far, in order, and their networks.
    present: Vec<usize>,
    packed: Option<Arc<Packed<f64>>>,
    slots: Vec<u8>,
    /// Per own atom: its row, and where its features are.
    rows: Vec<usize>,
    places: Vec<Place>,
    /// Slot, vectors and first row of atoms that pass through the networks together.
    blocks: Vec<(usize, usize, usize)>,
    scratch: Scratch<f64>,
    features: AlignedBuffer<f64>,
    sum: AlignedBuffer<f64>,
    hidden: AlignedBuffer<f64>,
    energy: AlignedBuffer<f64>,
    /// Energy of each own atom summed over members (hartree).
    atom_energy: Vec<f64>,
}

impl AniLocal {
    pub(super) fn new(model: Arc<Model>) -> Self {
        let tables = Arc::new(Tables::new(&model.parameters.symmetry));
        AniLocal {
            model,
            tables,
            present: Vec::new(),
            packed: None,
            slots: Vec::new(),
            rows: Vec::new(),
            places: Vec::new(),
            blocks: Vec::new(),
            scratch: Scratch::default(),
            features: AlignedBuffer::default(),
            sum: AlignedBuffer::default(),
            hidden: AlignedBuffer::default(),
            energy: AlignedBuffer::default(),
            atom_energy: Vec::new(),
        }
    }

    /// Networks for the elements of `types`, and everything that depends on the number of atoms.
    fn prepare(&mut self, types: &[u32], owned: usize) -> Result<Arc<Packed<f64>>> {
        let elements = &self.model.parameters.elements;
        let before = self.present.len();
        for &z in types {
            let Some(e) = elements.iter().position(|e| e.number == z) else {
                return Err(Error::spec(&self.model.name, format!("it does not know element {z}; choose a model that does")));
            };
            if !self.present.contains(&e) {
                self.present.push(e);
            }
        }
        if self.present.len() > before {
            self.present.sort_unstable();
            self.packed = Some(self.model.packed(&self.present));
        }
        let Some(packed) = self.packed.clone() else { return Err(Error::spec(&self.model.name, "a domain has no atoms")) };
        let slot = |z: u32| self.present.iter().position(|&p| elements[p].number == z).unwrap_or(0) as u8;
        self.slots.clear();
        self.slots.extend(types.iter().map(|&z| slot(z)));
        self.rows.resize(owned, 0);
        self.places.resize(owned, Place::default());
        self.atom_energy.resize(owned, 0.0);
        self.blocks.clear();
        let (lanes, features) = (lanes::<f64>(), packed.features());
        let most = most_vectors::<f64>(lanes);
        let mut row = 0;
        for slot in 0..self.present.len() {
            let mut members = (0..owned).filter(|&a| self.slots[a] as usize == slot).peekable();
            while members.peek().is_some() {
                let left = members.clone().take(most * lanes).count();
                let width = left.next_multiple_of(lanes);
                for (lane, atom) in members.by_ref().take(left).enumerate() {
                    self.rows[atom] = row + lane;
                    self.places[atom] = Place { offset: row * features + lane, stride: width };
                }
                self.blocks.push((slot, width / lanes, row));
                row += width;
            }
        }
        for buffer in [&mut self.features, &mut self.sum] {
            buffer.reserve(row * features);
            // Rows without an atom keep what they hold: make it nothing.
            buffer.fill(0.0);
        }
        self.energy.reserve(row);
        self.hidden.reserve(packed.activations() * most * lanes);
        self.scratch.reserve(types.len(), features);
        Ok(packed)
    }
}

impl LocalForces for AniLocal {
    fn range(&self) -> f64 {
        self.model.parameters.symmetry.radial_cutoff * 0.1
    }

    fn evaluate(&mut self, domain: &Domain<'_>, out: &mut DomainOutput<'_>) -> Result<()> {
        domain.check(out)?;
        (out.energy, out.virial) = (0.0, [0.0; 9]);
        out.forces.fill(0.0);
        if domain.owned == 0 {
            return Ok(());
        }
        let packed = self.prepare(domain.types, domain.owned)?;
        let members = self.model.members as f64;
        dispatch(Evaluate { work: self, packed: &packed, positions: domain.positions, forces: out.forces });
        for (f, x) in out.forces.as_chunks_mut::<3>().0.iter_mut().zip(domain.positions.as_chunks::<3>().0) {
            f.iter_mut().for_each(|f| *f *= FORCE / members);
            for a in 0..3 {
                for b in 0..3 {
                    out.virial[3 * a + b] += x[a] * f[b];
                }
            }
        }
        for (i, &e) in self.atom_energy.iter().enumerate() {
            let own = self.model.parameters.elements[self.present[self.slots[i] as usize]].self_energy;
            let energy = (e / members + own) * KJ_PER_HARTREE;
            out.energy += energy;
            if let Some(to) = out.atom_energy.as_deref_mut() {
                to[i] = energy;
            }
        }
        Ok(())
    }
}

/// One evaluation.
struct Evaluate<'a> {
    work: &'a mut AniLocal,
    packed: &'a Packed<f64>,
    positions: &'a [f64],
    forces: &'a mut [f64],
}

impl WithSimd for Evaluate<'_> {
    type Output = ();
    fn with_simd<S: Simd>(self, t: S) {
        let Evaluate { work, packed, positions, forces } = self;
        let (features, lanes) = (packed.features(), <f64 as SimdReal>::Of::<S>::LANES);
        let members = work.model.members;
        let AniLocal { tables, slots, places, blocks, scratch, features: x, sum, hidden, energy, atom_energy, rows, .. } = work;
        let molecule = Molecule { tables, positions, slots, places, elements: packed.elements().len() };
        t.vectorize(Features { molecule, scratch, x: &mut x[..] });
        atom_energy.fill(0.0);
        for member in 0..members {
            for &(slot, vectors, row) in blocks.iter() {
                let width = vectors * lanes;
                let place = row * features..(row + width) * features;
                t.vectorize(Pass {
                    packed,
                    slot,
                    member,
                    vectors,
                    x: &x[place.clone()],
                    energy: &mut energy[row..row + width],
                    sum: &mut sum[place],
                    gradient: None,
                    hidden,
                });
            }
            for (to, &row) in atom_energy.iter_mut().zip(rows.iter()) {
                *to += energy[row];
            }
        }
        t.vectorize(Forces { molecule, scratch, g: &sum[..], forces });
    }
}
