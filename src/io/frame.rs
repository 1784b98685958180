//! One frame: a topology and the coordinates that go with it, in nm, ps, u, kJ/mol.

use super::error::{IoError, Result};
use scorefield_integrators::System;
use scorefield_integrators::state::Cell;
use scorefield_models::molecule::{Convention, Graph, Perceiver};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Topology and coordinates of `N` atoms, as read from a file or about to be written to one.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Elements, masses, bonds and names. Equal topologies of one file are one `Arc`, so that frames of one molecule
    /// are a uniform batch by pointer equality.
    pub system: Arc<System>,
    /// Positions `[N, 3]` in nm.
    pub positions: Vec<f64>,
    /// Velocities `[N, 3]` in nm/ps.
    pub velocities: Option<Vec<f64>>,
    /// Forces `[N, 3]` in kJ/mol/nm (extended XYZ).
    pub forces: Option<Vec<f64>>,
    /// Potential energy in kJ/mol (extended XYZ).
    pub energy: Option<f64>,
    /// Periodic cell, rows a, b, c in nm.
    pub cell: Option<Cell>,
    /// Time in ps.
    pub time: Option<f64>,
    /// Bond orders, formal charges and unpaired electrons, where the file says them or they were perceived.
    pub graph: Option<Arc<Graph>>,
    /// Title of the frame; the comment line of a plain XYZ file.
    pub title: String,
    /// Everything else that the file says about the frame, as text (SDF data, extended XYZ keys), in the file's units.
    pub properties: BTreeMap<String, String>,
}

impl Frame {
    /// A frame of `system` at `positions` (`[N, 3]`, nm) with nothing else.
    pub fn new(system: Arc<System>, positions: Vec<f64>) -> Self {
        Frame {
            system,
            positions,
            velocities: None,
            forces: None,
            energy: None,
            cell: None,
            time: None,
            graph: None,
            title: String::new(),
            properties: BTreeMap::new(),
        }
    }

    /// Number of atoms `N`.
    pub fn len(&self) -> usize {
        self.system.len()
    }

    /// What people call the frame: its title, else the name of its system.
    pub(crate) fn label(&self) -> &str {
        let title = self.title.lines().next().unwrap_or_default().trim();
        if title.is_empty() { &self.system.name } else { title }
    }

    /// True without atoms.
    pub fn is_empty(&self) -> bool {
        self.system.is_empty()
    }

    /// Finds bonds, their orders and charges from the coordinates, for the system's total charge; what the frame said of bonds
    /// before is forgotten.
    ///
    /// # Errors
    /// Where the structure is no molecule.
    pub fn perceive_bonds(&mut self, perceiver: &mut Perceiver, convention: Convention) -> scorefield_models::molecule::Result<()> {
        let convention = Convention { charge: self.system.charge, ..convention };
        let graph = perceiver.perceive(&self.system.types, &self.positions, convention)?;
        self.set_graph(graph);
        Ok(())
    }

    /// Takes over a graph of the frame's atoms, and the topology's bonds from it.
    pub(crate) fn set_graph(&mut self, graph: Graph) {
        let mut bonds: Vec<(u32, u32)> = graph.bonds().iter().map(|b| (b.atoms.0.min(b.atoms.1), b.atoms.0.max(b.atoms.1))).collect();
        bonds.sort_unstable();
        if bonds != self.system.bonds {
            Arc::make_mut(&mut self.system).bonds = bonds;
        }
        self.graph = Some(Arc::new(graph));
    }

    /// Checks lengths and that all numbers are finite; `path` and `frame` are for the message.
    pub(crate) fn check(&self, path: &Path, frame: usize) -> Result<()> {
        let n3 = 3 * self.len();
        let lists = [("coordinate", Some(&self.positions)), ("velocity", self.velocities.as_ref()), ("force", self.forces.as_ref())];
        for (quantity, values) in lists {
            let Some(values) = values else { continue };
            if values.len() != n3 {
                return Err(IoError::shape(
                    path,
                    format!(
                        "frame {frame} has {} numbers for the {quantity} of {} atoms; three per atom are needed",
                        values.len(),
                        self.len()
                    ),
                ));
            }
            check_finite(path, frame, &self.system, quantity, values)?;
        }
        if let Some(cell) = &self.cell {
            check_cell(cell).map_err(|what| IoError::content(path, Some(frame), None, what))?;
        }
        if self.energy.is_some_and(|e| !e.is_finite()) {
            return Err(IoError::content(path, Some(frame), None, "the energy is not finite"));
        }
        Ok(())
    }

    /// The frame with only `atoms` (indices from 0, in the given order) of `system`, the matching sub-system.
    pub(crate) fn subset(self, atoms: &[usize], system: Arc<System>) -> Self {
        let pick = |values: Vec<f64>| atoms.iter().flat_map(|&i| [values[3 * i], values[3 * i + 1], values[3 * i + 2]]).collect();
        Frame {
            // The energy of the whole is not the energy of a part.
            energy: self.energy.filter(|_| atoms.len() == self.system.len()),
            positions: pick(self.positions),
            velocities: self.velocities.map(pick),
            forces: self.forces.map(pick),
            graph: self.graph.filter(|_| atoms.iter().copied().eq(0..self.system.len())),
            system,
            ..self
        }
    }
}

/// The sub-system of `atoms` (indices from 0), with the bonds among them.
pub(crate) fn subsystem(system: &System, atoms: &[usize]) -> System {
    let mut new_index = vec![None; system.len()];
    for (new, &old) in atoms.iter().enumerate() {
        new_index[old] = Some(new as u32);
    }
    let mut bonds: Vec<_> = system
        .bonds
        .iter()
        .filter_map(|&(i, j)| Some((new_index[i as usize]?, new_index[j as usize]?)))
        .map(|(i, j)| (i.min(j), i.max(j)))
        .collect();
    bonds.sort_unstable();
    System {
        name: system.name.clone(),
        types: atoms.iter().map(|&i| system.types[i]).collect(),
        masses: atoms.iter().map(|&i| system.masses[i]).collect(),
        bonds,
        // Files hold none; a force field brings its own.
        constraints: Vec::new(),
        names: atoms.iter().map(|&i| system.names[i].clone()).collect(),
        // Total charge of a part is not known.
        charge: if atoms.len() == system.len() { system.charge } else { 0 },
        axes: system.axes,
    }
}

/// Checks that all of `values` (`[N, 3]`) are finite.
pub(crate) fn check_finite(path: &Path, frame: usize, system: &System, quantity: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(k) => Err(IoError::NotFinite {
            path: path.to_owned(),
            frame,
            quantity,
            axis: ['x', 'y', 'z'][k % 3],
            atom: system.describe_atom(k / 3),
            value: values[k],
        }),
    }
}

/// Checks that no two atoms of `frame` are closer than `minimum` nm (0.01 nm finds doubled atoms and wrong units, never
/// chemistry). Images across a periodic cell are not looked at.
///
/// # Errors
/// [`IoError::Overlap`] naming the pair.
pub fn check_overlaps(frame: &Frame, minimum: f64) -> Result<()> {
    // Sorting along x makes this n log n for anything but a stack of atoms at one x.
    let x = &frame.positions;
    let mut order: Vec<usize> = (0..x.len() / 3).collect();
    order.sort_unstable_by(|&a, &b| x[3 * a].total_cmp(&x[3 * b]));
    for (k, &i) in order.iter().enumerate() {
        for &j in &order[k + 1..] {
            if x[3 * j] - x[3 * i] >= minimum {
                break;
            }
            let distance = (0..3).map(|a| (x[3 * i + a] - x[3 * j + a]).powi(2)).sum::<f64>().sqrt();
            if distance < minimum {
                return Err(IoError::Overlap {
                    name: frame.system.name.clone(),
                    first: frame.system.describe_atom(i.min(j)),
                    second: frame.system.describe_atom(i.max(j)),
                    distance,
                    minimum,
                });
            }
        }
    }
    Ok(())
}

/// Cell (rows a along x, b in the xy plane, c) from lengths in nm and angles alpha, beta, gamma in degrees.
///
/// # Errors
/// Where no such cell exists.
pub(crate) fn cell_from_lengths_angles(lengths: [f64; 3], angles: [f64; 3]) -> std::result::Result<Cell, String> {
    let bad = || format!("lengths {lengths:?} nm and angles {angles:?} degrees do not make a periodic cell");
    if lengths.iter().any(|l| !l.is_finite() || *l <= 0.0) || angles.iter().any(|a| !(*a > 0.0 && *a < 180.0)) {
        return Err(bad());
    }
    // Right angles exactly, so that a rectangular cell has exact zeros.
    let cosine = |a: f64| if a == 90.0 { 0.0 } else { a.to_radians().cos() };
    let (ca, cb, cg) = (cosine(angles[0]), cosine(angles[1]), cosine(angles[2]));
    let sg = if angles[2] == 90.0 { 1.0 } else { angles[2].to_radians().sin() };
    let cy = (ca - cb * cg) / sg;
    let cz2 = 1.0 - cb * cb - cy * cy;
    if cz2.is_nan() || cz2 <= 1e-6 {
        return Err(bad());
    }
    let [a, b, c] = lengths;
    Ok([a, 0.0, 0.0, b * cg, b * sg, 0.0, c * cb, c * cy, c * cz2.sqrt()])
}

/// Lengths in nm and angles alpha, beta, gamma in degrees.
pub(crate) fn cell_lengths_angles(cell: &Cell) -> ([f64; 3], [f64; 3]) {
    let row = |i: usize| [cell[3 * i], cell[3 * i + 1], cell[3 * i + 2]];
    let dot = |u: [f64; 3], v: [f64; 3]| u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
    let (a, b, c) = (row(0), row(1), row(2));
    let lengths = [dot(a, a).sqrt(), dot(b, b).sqrt(), dot(c, c).sqrt()];
    let angle = |u, v, lu: f64, lv: f64| {
        let cosine = (dot(u, v) / (lu * lv)).clamp(-1.0, 1.0);
        if cosine == 0.0 { 90.0 } else { cosine.acos().to_degrees() }
    };
    let [la, lb, lc] = lengths;
    (lengths, [angle(b, c, lb, lc), angle(a, c, la, lc), angle(a, b, la, lb)])
}

/// Checks that a cell is finite, has a volume and is right-handed.
pub(crate) fn check_cell(cell: &Cell) -> std::result::Result<(), String> {
    let [a, b, c, d, e, f, g, h, i] = *cell;
    let volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    if cell.iter().all(|x| x.is_finite()) && volume > 0.0 {
        Ok(())
    } else {
        Err(format!("{cell:?} nm is not a right-handed periodic cell with a volume"))
    }
}

/// True where a lies along x and b in the xy plane: the only orientation that formats with lengths and angles can hold.
pub(crate) fn cell_is_standard(cell: &Cell) -> bool {
    let size = cell.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    [cell[1], cell[2], cell[5]].iter().all(|x| x.abs() <= 1e-7 * size) && cell[0] > 0.0 && cell[4] > 0.0 && cell[8] > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_round_trip() {
        let cell = cell_from_lengths_angles([2.0, 3.0, 4.0], [90.0; 3]).unwrap();
        assert_eq!(cell, [2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 4.0]);
        let cell = cell_from_lengths_angles([2.0, 3.0, 4.0], [70.0, 80.0, 100.0]).unwrap();
        let (lengths, angles) = cell_lengths_angles(&cell);
        for k in 0..3 {
            assert!((lengths[k] - [2.0, 3.0, 4.0][k]).abs() < 1e-12);
            assert!((angles[k] - [70.0, 80.0, 100.0][k]).abs() < 1e-10);
        }
        assert!(cell_is_standard(&cell) && check_cell(&cell).is_ok());
        for bad in [[0.0, 90.0, 90.0], [10.0, 10.0, 170.0], [f64::NAN, 90.0, 90.0]] {
            assert!(cell_from_lengths_angles([1.0; 3], bad).is_err(), "{bad:?}");
        }
        assert!(cell_from_lengths_angles([1.0, -1.0, 1.0], [90.0; 3]).is_err());
    }

    #[test]
    fn overlaps_name_the_pair() {
        let mut frame = Frame::new(Arc::new(System::particles("test", 4, 1.0)), vec![0.0; 12]);
        for i in 0..4 {
            frame.positions[3 * i] = 0.1 * (3 - i) as f64;
        }
        check_overlaps(&frame, 0.01).unwrap();
        frame.positions[10] = 0.099;
        frame.positions[3] = 0.0;
        frame.positions[4] = 0.1;
        let message = check_overlaps(&frame, 0.01).unwrap_err().to_string();
        assert!(message.contains("atom 2 and atom 4 are 0.0010 nm"), "{message}");
    }
}
