//! What is simulated: immutable, shared by every replica of one molecule.

use crate::error::{Result, invalid};

/// Name of one atom and of the residue it belongs to, as in a PDB file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtomName {
    /// Atom name, for example `CA`.
    pub atom: String,
    /// Residue name, for example `ALA`; empty where the file has none.
    pub residue: String,
    /// Residue number as in the file.
    pub residue_id: i64,
    /// Chain identifier; empty where the file has none.
    pub chain: String,
}

/// A distance that does not change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constraint {
    /// The two atoms.
    pub atoms: [u32; 2],
    /// Their distance in nm.
    pub length: f64,
}

/// One molecule or one toy particle: types, masses, bonds and names of `N` atoms.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    /// Name for messages: a file name, a molecule's title or a toy's name.
    pub name: String,
    /// Atomic numbers, or a model's own bead types `[N]`; 0 means "no element".
    pub types: Vec<u32>,
    /// Masses `[N]` in u (reduced units for toys); 0 freezes an atom.
    pub masses: Vec<f64>,
    /// Bonds as pairs of atom indices, smaller first, sorted.
    pub bonds: Vec<(u32, u32)>,
    /// Rigid bonds; dynamics keeps them, minimisers refuse them.
    pub constraints: Vec<Constraint>,
    /// Names `[N]`.
    pub names: Vec<AtomName>,
    /// Total charge in units of e, where known.
    pub charge: i32,
    /// Axes on which the atoms live: a one-dimensional toy has `[true, false, false]`. Inactive axes get no
    /// force, no noise and count for no degree of freedom.
    pub axes: [bool; 3],
}

impl System {
    /// `n` nameless atoms of type 0 and mass `mass`, three-dimensional.
    pub fn particles(name: impl Into<String>, n: usize, mass: f64) -> Self {
        System {
            name: name.into(),
            types: vec![0; n],
            masses: vec![mass; n],
            bonds: Vec::new(),
            constraints: Vec::new(),
            names: vec![AtomName::default(); n],
            charge: 0,
            axes: [true; 3],
        }
    }

    /// Number of atoms `N`.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// True for a system without atoms.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// Number of active axes.
    pub fn dimension(&self) -> usize {
        self.axes.iter().filter(|&&a| a).count()
    }

    /// Number of degrees of freedom that move: axes times atoms of non-zero mass, less constraints.
    pub fn degrees_of_freedom(&self) -> usize {
        let moves = |i: u32| self.masses.get(i as usize).is_some_and(|&m| m > 0.0);
        let rigid = self.constraints.iter().filter(|c| moves(c.atoms[0]) || moves(c.atoms[1])).count();
        (self.dimension() * self.masses.iter().filter(|&&m| m > 0.0).count()).saturating_sub(rigid)
    }

    /// How atom `i` (from 0) is called in messages, for example `atom 7 (N of ALA 2)`.
    pub fn describe_atom(&self, i: usize) -> String {
        match self.names.get(i) {
            Some(n) if !n.residue.is_empty() => {
                format!("atom {} ({} of {} {})", i + 1, n.atom, n.residue, n.residue_id)
            }
            Some(n) if !n.atom.is_empty() => format!("atom {} ({})", i + 1, n.atom),
            _ => format!("atom {}", i + 1),
        }
    }

    /// Checks that all per-atom lists have one length, masses are finite and bonds point at atoms.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] naming the list or atom.
    pub fn check(&self) -> Result<()> {
        let n = self.len();
        if n == 0 {
            return invalid(format!("{} has no atoms", self.name));
        }
        if self.masses.len() != n || self.names.len() != n {
            return invalid(format!(
                "{}: {n} types, {} masses and {} names; there must be as many of each",
                self.name,
                self.masses.len(),
                self.names.len()
            ));
        }
        for (i, &m) in self.masses.iter().enumerate() {
            if !m.is_finite() || m < 0.0 {
                return invalid(format!("{}: {} has mass {m}; masses are finite and not negative", self.name, self.describe_atom(i)));
            }
        }
        for &(i, j) in &self.bonds {
            if i as usize >= n || j as usize >= n || i == j {
                return invalid(format!("{}: bond {}-{} does not join two of its {n} atoms", self.name, i + 1, j + 1));
            }
        }
        Ok(())
    }

    /// Moves mass from heavy atoms to the hydrogens bonded to them until each hydrogen has `hydrogen_mass` (u); the
    /// total mass stays. Slower hydrogen motion allows longer time steps; configurational averages do not change.
    ///
    /// # Errors
    /// Where a heavy atom would lose all its mass, or where there are no bonds to tell which atom is meant.
    pub fn repartition_hydrogen_mass(&mut self, hydrogen_mass: f64) -> Result<()> {
        if self.types.contains(&1) && self.bonds.is_empty() && self.len() > 1 {
            return invalid(format!(
                "{}: hydrogen mass repartitioning needs bonds; read a structure that has them (PDB with CONECT or standard residues, MOL2, SDF)",
                self.name
            ));
        }
        let mut masses = self.masses.clone();
        for &(a, b) in &self.bonds {
            let (a, b) = (a as usize, b as usize);
            let (h, heavy) = match (self.types[a] == 1, self.types[b] == 1) {
                (true, false) => (a, b),
                (false, true) => (b, a),
                _ => continue,
            };
            if masses[h] > 0.0 && masses[heavy] > 0.0 {
                masses[heavy] -= hydrogen_mass - self.masses[h];
                masses[h] = hydrogen_mass;
                if masses[heavy] <= 0.0 {
                    return invalid(format!(
                        "{}: hydrogens of {hydrogen_mass} u leave {} with {:.3} u; use a smaller hydrogen mass",
                        self.name,
                        self.describe_atom(heavy),
                        masses[heavy]
                    ));
                }
            }
        }
        self.masses = masses;
        Ok(())
    }
}
