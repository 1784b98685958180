//! Springs from atoms to where they should stay.

use crate::analytic::Reader;
use crate::analytic::{lattice::Lattice, positive};
use crate::error::{Error, Result};
use scorefield_integrators::{
    Batch, Capabilities, DType, ForceProvider, Input, Output, Real, Result as ContractResult, UnitSystem, by_dtype,
};
use scorefield_integrators::{Dimension, Quantity};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `V = ½ k Σ |rᵢ − cᵢ|²` over some atoms `i`, with the nearest image of the centre in a periodic cell.
///
/// It holds the molecule in place, so it has no virial.
pub struct Restraint {
    capabilities: Capabilities,
    stiffness: f64,
    /// Atoms of each replica (from 0) with their centres.
    centres: Arc<Vec<(usize, [f64; 3])>>,
    atoms: usize,
}

impl Restraint {
    /// Binds the atoms `selection` (from 0; all where `None`) to their rows of `reference` (`[N, 3]`, nm) with force constant
    /// `stiffness` (kJ/mol/nm²); all in reduced units where `units` says so.
    ///
    /// # Errors
    /// Where the force constant is not positive, a coordinate is not finite, or an atom is not in the reference.
    pub fn new(stiffness: f64, reference: &[f64], selection: Option<&[usize]>, units: UnitSystem) -> Result<Self> {
        let name = "restraint";
        let atoms = reference.len() / 3;
        if atoms == 0 || !reference.len().is_multiple_of(3) {
            return Err(Error::parameter(name, "reference", format!("{} coordinates", reference.len()), "give three per atom"));
        }
        if let Some(x) = reference.iter().find(|x| !x.is_finite()) {
            return Err(Error::parameter(name, "reference", x, "coordinates must be finite"));
        }
        let mut chosen = selection.map_or_else(|| (0..atoms).collect(), <[usize]>::to_vec);
        chosen.sort_unstable();
        chosen.dedup();
        if let Some(i) = chosen.iter().find(|&&i| i >= atoms) {
            return Err(Error::parameter(name, "atoms", i + 1, &format!("the reference has {atoms} atoms, counted from 1")));
        }
        if chosen.is_empty() {
            return Err(Error::parameter(name, "atoms", "[]", "name at least one atom, or leave it out for all"));
        }
        let centres = chosen.iter().map(|&i| (i, [reference[3 * i], reference[3 * i + 1], reference[3 * i + 2]])).collect();
        Ok(Restraint {
            capabilities: Capabilities { units, periodic: true, atom_energy: true, ..Capabilities::potential(name) },
            stiffness: positive(name, "stiffness", stiffness)?,
            centres: Arc::new(centres),
            atoms,
        })
    }

    fn evaluate_typed<T: Real>(&self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let positions = input.positions.typed::<T>()?;
        let forces = out.forces.typed_mut::<T>()?;
        forces.fill(T::default());
        if input.want.atom_energy {
            out.atom_energy.fill(0.0);
        }
        for b in 0..input.batch.replicas() {
            let lattice = match input.cells {
                Some(cells) => match Lattice::new(&cells[b]) {
                    Some(lattice) => Some(lattice),
                    None => {
                        let name = &input.batch.system(b).name;
                        return scorefield_integrators::error::invalid(format!("{name}: the cell {:?} has no volume", cells[b]));
                    }
                },
                None => None,
            };
            let (first, axes) = (input.batch.range(b).start, input.batch.system(b).axes);
            let mut energy = 0.0;
            for &(i, centre) in self.centres.iter() {
                let k = 3 * (first + i);
                let d: [f64; 3] = std::array::from_fn(|a| if axes[a] { centre[a] - positions[k + a].to_f64() } else { 0.0 });
                let d = lattice.as_ref().map_or(d, |l| l.nearest(d));
                for a in 0..3 {
                    forces[k + a] = T::from_f64(self.stiffness * d[a]);
                }
                let e = 0.5 * self.stiffness * d.iter().map(|d| d * d).sum::<f64>();
                energy += e;
                if input.want.atom_energy {
                    out.atom_energy[first + i] = e;
                }
            }
            if input.want.energy {
                out.energy[b] = energy;
            }
        }
        Ok(())
    }
}

impl ForceProvider for Restraint {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        match batch.systems().iter().find(|s| s.len() != self.atoms) {
            None => Ok(()),
            Some(s) => scorefield_integrators::error::invalid(format!(
                "restraint: its reference has {} atoms, but {} has {}; give a reference of this molecule",
                self.atoms,
                s.name,
                s.len()
            )),
        }
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        by_dtype!(input.positions.dtype(), evaluate(self, input, out))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Restraint {
            capabilities: self.capabilities.clone(),
            stiffness: self.stiffness,
            centres: self.centres.clone(),
            atoms: self.atoms,
        }))
    }
}

fn evaluate<T: Real>(restraint: &Restraint, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
    restraint.evaluate_typed::<T>(input, out)
}

/// `restraint`: as written by the user. The unit of the force constant decides: `100 kJ/mol/nm^2` is SI, a bare number is
/// reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestraintSpec {
    /// Force constant.
    pub stiffness: Quantity,
    /// Atoms, counted from 1 as in messages and structure files; all where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atoms: Option<Vec<AtomRange>>,
    /// Where they are held.
    #[serde(default)]
    pub reference: Reference,
}

/// One atom, or a range such as `"3-7"`, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "atoms must be numbers from 1 or ranges such as \"3-7\"")]
pub enum AtomRange {
    /// One atom.
    One(usize),
    /// First and last atom with a dash between.
    Range(String),
}

/// Positions to which atoms are bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "reference must be \"start\" or rows of positions, [[x, y, z], …]")]
pub enum Reference {
    /// The start positions.
    #[default]
    #[serde(with = "start")]
    Start,
    /// Rows for every atom of the molecule, in nm or reduced units.
    Rows(Vec<[f64; 3]>),
}

/// `Reference::Start` is written `"start"`.
mod start {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("start")
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<(), D::Error> {
        match String::deserialize(d)?.as_str() {
            "start" => Ok(()),
            other => Err(D::Error::custom(format!("`{other}` is no reference; write \"start\" or rows of positions"))),
        }
    }
}

impl RestraintSpec {
    /// The provider; `start` are the start positions `[N, 3]` of the molecule.
    ///
    /// # Errors
    /// Where a parameter is refused, or start positions are needed and not known.
    pub fn build(&self, start: Option<&[f64]>) -> Result<Restraint> {
        let reader = Reader::new("restraint", &[("stiffness", &self.stiffness)])?;
        let stiffness = reader.any("stiffness", &self.stiffness, Dimension::STIFFNESS)?;
        let rows = match &self.reference {
            Reference::Rows(rows) => rows.concat(),
            Reference::Start => match start {
                Some(start) => start.to_vec(),
                None => {
                    let reason =
                        "reference = \"start\" needs start positions, and there are none here; give a structure, or rows of positions";
                    return Err(Error::spec("restraint", reason));
                }
            },
        };
        let selection = self.atoms.as_ref().map(|ranges| select(ranges, rows.len() / 3)).transpose()?;
        Restraint::new(stiffness, &rows, selection.as_deref(), reader.units)
    }
}

/// Indices from 0 of `ranges` counted from 1.
fn select(ranges: &[AtomRange], atoms: usize) -> Result<Vec<usize>> {
    let mut all = Vec::new();
    for range in ranges {
        let ends = match range {
            AtomRange::One(i) => Some((*i, *i)),
            AtomRange::Range(text) => {
                let (a, b) = text.split_once('-').unwrap_or((text, text));
                a.trim().parse().ok().zip(b.trim().parse().ok())
            }
        };
        match ends {
            Some((a, b)) if a >= 1 && b >= a && b <= atoms => all.extend(a - 1..b),
            _ => {
                let written = match range {
                    AtomRange::One(i) => i.to_string(),
                    AtomRange::Range(text) => text.clone(),
                };
                let remedy = format!("write atoms or ranges such as \"3-7\", counted from 1; there are {atoms} atoms");
                return Err(Error::parameter("restraint", "atoms", written, &remedy));
            }
        }
    }
    Ok(all)
}
