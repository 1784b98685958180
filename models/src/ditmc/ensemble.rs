//! Ensembles of conformers: distances of conformers, duplicates, and how well one ensemble covers another.

use crate::molecule::{Graph, Symmetry};
use scorefield_integrators::superpose::superposed_rmsd;

/// Most exchanges of equivalent atoms that are tried for a pair of conformers.
const MOST_MAPS: usize = 20_000;

/// Compares conformers of one molecule.
pub struct Comparison {
    symmetry: Symmetry,
}

impl Comparison {
    /// Of conformers of `graph`.
    pub fn new(graph: &Graph) -> Self {
        Comparison { symmetry: graph.heavy_symmetry(MOST_MAPS) }
    }

    /// Root-mean-square deviation of the heavy atoms of two conformers `[N, 3]`, least over rotations, translations and exchanges of
    /// equivalent atoms, in their unit; as RDKit's `GetBestRMS` without hydrogens.
    pub fn rmsd(&self, a: &[f64], b: &[f64]) -> f64 {
        let pick =
            |x: &[f64], atoms: &[usize]| -> Vec<f64> { atoms.iter().flat_map(|&i| [x[3 * i], x[3 * i + 1], x[3 * i + 2]]).collect() };
        let fixed = pick(b, &self.symmetry.atoms);
        self.symmetry.maps.iter().map(|map| superposed_rmsd(&pick(a, map), &fixed)).fold(f64::INFINITY, f64::min)
    }

    /// Which conformers are no duplicates of earlier ones: at least `threshold` from each that was kept.
    pub fn distinct(&self, conformers: &[Vec<f64>], threshold: f64) -> Vec<usize> {
        let mut kept: Vec<usize> = Vec::new();
        for (k, x) in conformers.iter().enumerate() {
            if kept.iter().all(|&other| self.rmsd(x, &conformers[other]) >= threshold) {
                kept.push(k);
            }
        }
        kept
    }
}

/// How well generated conformers cover reference conformers and are covered by them, at one threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coverage {
    /// Part of the reference conformers with a generated one nearer than the threshold.
    pub recall: f64,
    /// Part of the generated conformers with a reference one nearer than the threshold.
    pub precision: f64,
}

/// Distances of all generated conformers to all reference conformers.
#[derive(Clone, Debug, PartialEq)]
pub struct Distances {
    /// `[reference, generated]`.
    values: Vec<f64>,
    references: usize,
}

impl Distances {
    /// Of `generated` to `references`, each `[N, 3]`.
    pub fn new(comparison: &Comparison, references: &[Vec<f64>], generated: &[Vec<f64>]) -> Self {
        let values = references.iter().flat_map(|r| generated.iter().map(|g| comparison.rmsd(g, r))).collect();
        Distances { values, references: references.len() }
    }

    /// Distance of each reference conformer to the nearest generated one.
    pub fn of_references(&self) -> Vec<f64> {
        let generated = self.values.len() / self.references.max(1);
        self.values.chunks(generated.max(1)).map(least).collect()
    }

    /// Distance of each generated conformer to the nearest reference one.
    pub fn of_generated(&self) -> Vec<f64> {
        let generated = self.values.len() / self.references.max(1);
        (0..generated).map(|g| (0..self.references).map(|r| self.values[r * generated + g]).fold(f64::INFINITY, f64::min)).collect()
    }

    /// Coverage at `threshold`.
    pub fn coverage(&self, threshold: f64) -> Coverage {
        let part = |d: &[f64]| d.iter().filter(|&&d| d < threshold).count() as f64 / d.len().max(1) as f64;
        Coverage { recall: part(&self.of_references()), precision: part(&self.of_generated()) }
    }

    /// Mean distances of reference conformers to the nearest generated one (recall) and the reverse (precision).
    pub fn mean(&self) -> [f64; 2] {
        let mean = |d: Vec<f64>| d.iter().sum::<f64>() / d.len().max(1) as f64;
        [mean(self.of_references()), mean(self.of_generated())]
    }
}

fn least(row: &[f64]) -> f64 {
    row.iter().copied().fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::super::checks::Faults;
    use super::*;

    /// RDKit's conformers, and its distances between them (`data/scripts/make_conformer_fixture.py`). Its conformers are faultless.
    #[test]
    fn distances_are_those_of_rdkit() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/molecule/conformers.json");
        let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let numbers = |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
        let molecules = file.as_array().unwrap();
        assert!(molecules.len() >= 15);
        for m in molecules {
            let smiles = m["smiles"].as_str().unwrap();
            let graph = Graph::from_smiles(smiles).unwrap().with_hydrogens();
            let conformers: Vec<Vec<f64>> = m["positions"].as_array().unwrap().iter().map(numbers).collect();
            assert!(conformers.iter().all(|x| Faults::of(&graph, x).is_empty()), "{smiles}");
            let comparison = Comparison::new(&graph);
            let ours = (0..3).flat_map(|a| (a + 1..3).map(move |b| (a, b))).map(|(a, b)| comparison.rmsd(&conformers[a], &conformers[b]));
            for (ours, theirs) in ours.zip(numbers(&m["distances"])) {
                assert!((ours - theirs).abs() < 1e-6, "{smiles}: {ours} {theirs}");
            }
        }
    }

    /// Propane bent, its mirror image in numbering, and a wider one.
    #[test]
    fn equivalent_atoms_are_exchanged() {
        let graph = Graph::from_smiles("CCC").unwrap();
        let comparison = Comparison::new(&graph);
        let a = vec![-1.2, 0.5, 0.0, 0.0, 0.0, 0.0, 1.3, 0.4, 0.0];
        let swapped = vec![1.3, 0.4, 0.0, 0.0, 0.0, 0.0, -1.2, 0.5, 0.0];
        assert!(comparison.rmsd(&a, &swapped) < 1e-7);
        let turned: Vec<f64> = a.chunks(3).flat_map(|p| [p[1] + 3.0, -p[0], p[2] - 1.0]).collect();
        assert!(comparison.rmsd(&a, &turned) < 1e-7);
        let wide = vec![-1.6, 0.0, 0.0, 0.0, 0.0, 0.0, 1.6, 0.0, 0.0];
        let far = comparison.rmsd(&a, &wide);
        assert!(far > 0.1 && far < 0.5, "{far}");
        let all = [a.clone(), swapped, wide.clone(), turned];
        assert_eq!(comparison.distinct(&all, 0.1), vec![0, 2]);
        assert_eq!(comparison.distinct(&all, 0.5), vec![0]);
        let distances = Distances::new(&comparison, &[a.clone(), wide], &[a.clone(), a.clone(), a]);
        assert_eq!(distances.coverage(0.1), Coverage { recall: 0.5, precision: 1.0 });
        assert_eq!(distances.coverage(0.6), Coverage { recall: 1.0, precision: 1.0 });
        let [recall, precision] = distances.mean();
        assert!((recall - 0.5 * far).abs() < 1e-6 && precision < 1e-7);
    }
}
