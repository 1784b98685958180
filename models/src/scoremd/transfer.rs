//! Transferable models: one network for many molecules, which tells beads apart by residue, atom name, element and place in the
//! chain ([`BeadFeatures::Residue`]). For one molecule the embeddings of its beads are constants, so that the same function is an
//! ordinary model of one system ([`Model::for_beads`]); forces, sampling and reports know only those.

use super::config::{BeadFeatures, Body, EMBEDDING, ExpertConfig, ModelConfig, RESIDUE_TABLES};
use super::model::Model;
use crate::error::{Error, Result};
use scorefield_integrators::System;
use serde::{Deserialize, Serialize};

/// Rows of the table of residues: the amino acids by their names.
pub const RESIDUES: [&str; 20] = [
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR",
    "VAL",
];
/// Rows of the table of atom names.
pub const ATOMS: [&str; 5] = ["N", "CA", "CB", "C", "O"];
/// Rows of the table of elements, as atomic numbers.
pub const ELEMENTS: [u32; 3] = [6, 7, 8];
/// Names that force fields give to residues in other protonation states.
const ALIASES: [(&str, &str); 8] =
    [("HID", "HIS"), ("HIE", "HIS"), ("HIP", "HIS"), ("CYX", "CYS"), ("CYM", "CYS"), ("ASH", "ASP"), ("GLH", "GLU"), ("LYN", "LYS")];

/// What a transferable network is told of a bead: rows of the tables of residue, atom name, element and place in the chain.
pub type BeadKind = [u32; 4];

/// A molecule that a transferable model was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrainedSystem {
    /// Its name, for example `AC`.
    pub name: String,
    /// What its beads are `[N]`.
    pub kinds: Vec<BeadKind>,
    /// Its beads as a PDB file.
    pub pdb: String,
}

/// What a transferable network is told of the beads of `system`, by their names.
///
/// # Errors
/// Where a bead has no row in the tables.
pub fn kinds(system: &System) -> Result<Vec<BeadKind>> {
    let mut place = 0;
    let mut kinds = Vec::with_capacity(system.len());
    for (i, name) in system.names.iter().enumerate() {
        let refuse = |what: &str, is: &str, known: &str| {
            Err(Error::spec(
                "scoremd",
                format!("{} of {}: {what} `{is}` is not known; known are {known}", system.describe_atom(i), system.name),
            ))
        };
        if i > 0 {
            let before = &system.names[i - 1];
            place += u32::from((before.residue_id, &before.chain, &before.residue) != (name.residue_id, &name.chain, &name.residue));
        }
        let residue = ALIASES.iter().find(|(alias, _)| *alias == name.residue).map_or(name.residue.as_str(), |(_, usual)| usual);
        let Some(residue) = RESIDUES.iter().position(|r| *r == residue) else {
            return refuse("residue", residue, "the twenty amino acids");
        };
        let Some(atom) = ATOMS.iter().position(|a| *a == name.atom) else { return refuse("atom", &name.atom, &ATOMS.join(", ")) };
        let Some(element) = ELEMENTS.iter().position(|e| *e == system.types[i]) else {
            return refuse("element", &system.types[i].to_string(), "C, N and O");
        };
        let places = RESIDUE_TABLES[3].1;
        if place as usize >= places {
            return refuse("residue number", &(place + 1).to_string(), &format!("chains of {places} residues"));
        }
        kinds.push([residue as u32, atom as u32, element as u32, place]);
    }
    Ok(kinds)
}

impl Model {
    /// Whether it is for more than one molecule: then [`Model::for_beads`] or [`Model::for_system`] makes it one that can be
    /// evaluated.
    pub fn is_transferable(&self) -> bool {
        self.config.is_transferable()
    }

    /// The model of beads that are named in `system`, with neither start frames nor a PDB file of its own.
    ///
    /// # Errors
    /// Where the number of beads is another one, elements differ, or names are not known.
    pub fn for_beads(&self, system: &System) -> Result<Model> {
        if system.len() != self.types.len() {
            let what = format!("it is for {} beads, but {} has {} atoms", self.types.len(), system.name, system.len());
            return Err(Error::spec("scoremd", format!("{what}; give the beads alone, `name N CA C O CB` of a dipeptide")));
        }
        if let Some(i) = (0..system.len()).find(|&i| system.types[i] != self.types[i]) {
            return Err(Error::spec(
                "scoremd",
                format!(
                    "{} of {}: element {} where the model was trained on element {}; give the beads in the order of the training data",
                    system.describe_atom(i),
                    system.name,
                    system.types[i],
                    self.types[i]
                ),
            ));
        }
        Ok(self.of_kinds(&kinds(system)?))
    }

    /// The model of one of the molecules that it was trained on.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub fn for_system(&self, name: &str) -> Result<Model> {
        let Some(index) = self.systems.iter().position(|s| s.name == name) else {
            let known: Vec<&str> = self.systems.iter().map(|s| s.name.as_str()).collect();
            let known = if known.is_empty() { "none; it is a model of one system".into() } else { known.join(", ") };
            return Err(Error::parameter("scoremd", "system", name, &format!("trained systems are {known}")));
        };
        let system = &self.systems[index];
        let frames = self.start_frames.len() / self.systems.len();
        Ok(Model {
            start_frames: self.start_frames[index * frames..(index + 1) * frames].to_vec(),
            pdb: Some(system.pdb.clone()),
            ..self.of_kinds(&system.kinds)
        })
    }

    /// The same function for beads of these kinds: with one-hot features the columns of the first matrix are its products with the
    /// beads' embeddings.
    fn of_kinds(&self, kinds: &[BeadKind]) -> Model {
        let experts = self.config.experts.iter().map(|e| ExpertConfig { body: one_system(&e.body), ..e.clone() });
        let config = ModelConfig { experts: experts.collect() };
        let parameters = self.config.experts.iter().zip(&config.experts).zip(&self.parameters);
        let parameters = parameters.map(|((from, to), values)| specialised(from, to, values, kinds)).collect();
        Model { config, parameters, systems: Vec::new(), start_frames: Vec::new(), pdb: None, ..self.clone() }
    }
}

fn one_system(body: &Body) -> Body {
    match body.clone() {
        Body::GraphTransformer { beads, width, layers, .. } => {
            Body::GraphTransformer { beads, width, layers, features: BeadFeatures::Index }
        }
        other => other,
    }
}

fn specialised(from: &ExpertConfig, to: &ExpertConfig, values: &[f32], kinds: &[BeadKind]) -> Vec<f32> {
    let (old, new) = (from.layout(), to.layout());
    let part = |name: &str| old.find(name).map_or(&[][..], |e| &values[e.offset..e.offset + e.len()]);
    let mut out = vec![0.0; new.len()];
    for entry in new.entries() {
        let to = &mut out[entry.offset..entry.offset + entry.len()];
        if entry.name != "node_embedding.weight" {
            to.copy_from_slice(part(&entry.name));
            continue;
        }
        let tables = RESIDUE_TABLES.map(|(name, _)| part(&format!("embedding.{name}")));
        let embedded = tables.len() * EMBEDDING;
        let weight = part(&entry.name);
        let columns = weight.len() / entry.shape[0];
        for (from, to) in weight.chunks_exact(columns).zip(to.chunks_exact_mut(entry.shape[1])) {
            let (of_beads, of_time) = to.split_at_mut(kinds.len());
            for (kind, to) in kinds.iter().zip(of_beads) {
                let mut sum = 0.0;
                for ((table, &row), w) in tables.iter().zip(kind).zip(from.chunks_exact(EMBEDDING)) {
                    let row = &table[row as usize * EMBEDDING..][..EMBEDDING];
                    sum += row.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                }
                *to = sum as f32;
            }
            of_time.copy_from_slice(&from[embedded..]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoremd::fixed_time::FixedTime;
    use crate::scoremd::provider_tests::random_model;
    use scorefield_integrators::AtomName;

    /// Ten beads of two residues.
    fn dipeptide(first: &str, second: &str) -> System {
        let beads = [("N", 7), ("CA", 6), ("C", 6), ("O", 8), ("CB", 6)];
        let names = [first, second].into_iter().enumerate().flat_map(|(r, residue)| {
            beads.map(|(atom, _)| AtomName { atom: atom.into(), residue: residue.into(), residue_id: 7 + r as i64, chain: "A".into() })
        });
        System {
            types: beads.iter().chain(&beads).map(|b| b.1).collect(),
            names: names.collect(),
            ..System::particles(format!("{first}-{second}"), 10, 12.0)
        }
    }

    fn transferable(preset: &str) -> Model {
        Model { types: dipeptide("ALA", "ALA").types, masses: vec![12.0; 10], ..random_model(preset) }
    }

    #[test]
    fn a_model_of_one_molecule_is_the_same_function() {
        let model = transferable("dipeptides-mixture");
        let system = dipeptide("SER", "TRP");
        let kinds = kinds(&system).unwrap();
        assert_eq!((kinds[0], kinds[9]), ([15, 0, 1, 0], [17, 2, 0, 1]));
        let one = model.for_beads(&system).unwrap();
        let other = model.for_beads(&dipeptide("TRP", "SER")).unwrap();
        assert!(!one.is_transferable());
        let x: Vec<f64> = (0..60).map(|k| (f64::from(k) * 0.37).sin()).collect();
        for k in 0..3 {
            let t = 0.5 * (model.config.experts[k].range.start + model.config.experts[k].range.end);
            let score = |model: &Model, kinds: &[BeadKind]| {
                let mut network = FixedTime::<f64>::new(&model.config.experts[k], &model.parameters[k], kinds, t).unwrap();
                let mut score = vec![0.0; x.len()];
                network.evaluate(&x, 1.0, None, Some(&mut score));
                score
            };
            let (wanted, found, swapped) = (score(&model, &kinds), score(&one, &[]), score(&other, &[]));
            let size = wanted.iter().map(|s| s.abs()).fold(0.0, f64::max);
            let far = |other: &[f64]| wanted.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size;
            // The products are rounded to single precision once.
            assert!(far(&found) < 1e-6 && far(&swapped) > 1e-3, "network {k}: {} {}", far(&found), far(&swapped));
        }
    }

    #[test]
    fn other_molecules_are_refused() {
        let model = transferable("dipeptides");
        let refused = |change: &dyn Fn(&mut System), part: &str| {
            let mut system = dipeptide("ALA", "HIE");
            assert!(model.for_beads(&system).is_ok());
            change(&mut system);
            let message = model.for_beads(&system).unwrap_err().to_string();
            assert!(message.contains(part), "{message} lacks `{part}`");
        };
        refused(&|s| s.names[3].residue = "UNK".into(), "residue `UNK`");
        refused(&|s| s.names[4].atom = "CG".into(), "atom `CG`");
        refused(&|s| s.names[7].residue_id = 30, "residue number `3`");
        refused(&|s| s.types[2] = 16, "element 16");
        refused(&|s| s.types.truncate(9), "9 atoms");
        assert!(model.for_system("AA").unwrap_err().to_string().contains("system"));
    }
}
