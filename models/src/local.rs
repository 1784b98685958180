//! Forces on one domain of a larger system, for engines that share space out over processes.
//!
//! A domain holds atoms of its own and *ghosts*: copies of atoms that other domains (or periodic images) own. The energy of a
//! domain is the sum over its own atoms of `e_i`, where `e_i` depends on neighbours within [`range`](LocalForces::range) alone;
//! forces are minus its gradient with respect to every atom, ghosts included. The engine adds the forces on ghosts to the
//! atoms they are copies of. So the sum over domains is the energy of the whole system, each atom's forces are complete, and
//! no provider needs to know of cells.

use crate::error::{Error, Result};

/// The atoms of one domain, and who is near whom.
#[derive(Clone, Copy)]
pub struct Domain<'a> {
    /// Positions `[N, 3]` of own atoms, then ghosts, in nm.
    pub positions: &'a [f64],
    /// Types `[N]`, as in [`System`](scorefield_integrators::System).
    pub types: &'a [u32],
    /// How many of these atoms, the first ones, belong to this domain.
    pub owned: usize,
    /// Neighbour lists of the own atoms.
    pub neighbours: &'a dyn Neighbours,
}

/// Neighbour lists as an engine keeps them: every own atom's list has all atoms (ghosts too) within the range, and perhaps more.
pub trait Neighbours {
    /// Neighbours of own atom `i`; bits outside [`mask`](Neighbours::mask) mean nothing here.
    fn of(&self, i: usize) -> &[i32];
    /// Bits of an entry that are the index of an atom.
    fn mask(&self) -> i32;
}

/// Results for one domain; what is wanted is there.
pub struct DomainOutput<'a> {
    /// Forces `[N, 3]` on own atoms and ghosts, overwritten, in kJ/mol/nm.
    pub forces: &'a mut [f64],
    /// Energies `[owned]` of own atoms in kJ/mol.
    pub atom_energy: Option<&'a mut [f64]>,
    /// Energy of the domain in kJ/mol.
    pub energy: f64,
    /// Virial `Σ r ⊗ f` of the domain in kJ/mol, row-major; independent of the origin.
    pub virial: [f64; 9],
}

/// A provider whose energy is a sum of atoms' energies that depend on near neighbours only.
pub trait LocalForces: Send {
    /// How far the energy of an atom sees, in nm.
    fn range(&self) -> f64;

    /// Overwrites `out`.
    ///
    /// # Errors
    /// Where a type is not known, or a neighbour list names an atom that does not exist.
    fn evaluate(&mut self, domain: &Domain<'_>, out: &mut DomainOutput<'_>) -> Result<()>;
}

impl Domain<'_> {
    /// Number of atoms `N`, ghosts included.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// True where there is no atom at all.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// Checks that arrays have one length.
    ///
    /// # Errors
    /// Naming the lengths.
    pub fn check(&self, out: &DomainOutput<'_>) -> Result<()> {
        let n = self.len();
        let energies = out.atom_energy.as_ref().map_or(self.owned, |e| e.len());
        if self.positions.len() != 3 * n || out.forces.len() != 3 * n || self.owned > n || energies != self.owned {
            return Err(Error::spec(
                "domain",
                format!(
                    "{n} atoms, {} of them owned, have {} coordinates, room for {} forces and {energies} energies",
                    self.owned,
                    self.positions.len(),
                    out.forces.len()
                ),
            ));
        }
        Ok(())
    }

    /// Neighbour `entry` of own atom `i`, checked.
    ///
    /// # Errors
    /// Where there is no such atom.
    pub fn neighbour(&self, i: usize, entry: i32) -> Result<usize> {
        let j = entry & self.neighbours.mask();
        match usize::try_from(j) {
            Ok(j) if j < self.len() => Ok(j),
            _ => Err(Error::spec("domain", format!("the neighbour list of atom {i} names atom {j} of {}", self.len()))),
        }
    }
}
