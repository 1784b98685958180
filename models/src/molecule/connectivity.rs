//! Who is bonded to whom, by distance.
//!
//! The rule is that of OpenBabel and of RDKit's `ConnectTheDots`: atoms between 0.4 Å and the sum of their covalent radii
//! plus 0.45 Å apart are bonded; a hydrogen then keeps one bond. Coordinates are rounded to single precision as there, so
//! that pairs at the very limit are judged alike.

use super::element::element;

/// Slack on the sum of radii in Å.
const SLACK: f64 = 0.45;
/// Square of the smallest distance of bonded atoms in Å².
const CLOSEST2: f64 = 0.16;
/// Width in Å of the cells in whose order bonds are listed; no bond is longer.
const CELL: f64 = 5.45;

/// Bonds found so far: for each atom its neighbours in the order in which they were found.
#[derive(Default)]
pub(super) struct Connectivity {
    /// Neighbours `[N]` of each atom; at most a few.
    pub(super) neighbours: Vec<Vec<u32>>,
    points: Vec<[f32; 3]>,
    cells: Vec<[i32; 3]>,
    found: Vec<([i32; 3], u32)>,
    /// Number of atoms of the present molecule; `neighbours` may be longer.
    n: usize,
}

impl Connectivity {
    /// Finds the bonds of atoms `elements` (`[N]`) at `positions` (`[N, 3]`, Å).
    pub(super) fn find(&mut self, elements: &[u8], positions: &[f64]) {
        let n = elements.len();
        self.n = n;
        if self.neighbours.len() < n {
            self.neighbours.resize_with(n, Vec::new);
        }
        self.neighbours[..n].iter_mut().for_each(Vec::clear);
        self.points.clear();
        self.cells.clear();
        for x in positions.chunks_exact(3) {
            self.points.push([x[0] as f32, x[1] as f32, x[2] as f32]);
            self.cells.push([0, 1, 2].map(|a| (x[a] / CELL) as i32));
        }
        for i in 0..n {
            self.found.clear();
            for j in (0..i).rev() {
                let limit = f64::from(element(elements[i]).radius) + f64::from(element(elements[j]).radius) + SLACK;
                let d2 = distance2(self.points[i], self.points[j]);
                if (CLOSEST2..=limit * limit).contains(&d2) {
                    let step = [0, 1, 2].map(|a| self.cells[j][a].wrapping_sub(self.cells[i][a]));
                    self.found.push((step, j as u32));
                }
            }
            // By cell, the latest atom of a cell first: only the choice among hydrogens' contacts depends on it.
            self.found.sort_by_key(|f| f.0);
            for k in 0..self.found.len() {
                let j = self.found[k].1;
                self.neighbours[i].push(j);
                self.neighbours[j as usize].push(i as u32);
            }
        }
        self.thin_hydrogens(elements, positions);
    }

    /// Leaves each hydrogen one bond: first a contact with another hydrogen goes, then all but the shortest.
    fn thin_hydrogens(&mut self, elements: &[u8], positions: &[f64]) {
        for i in 0..self.n {
            if elements[i] != 1 || self.neighbours[i].len() < 2 {
                continue;
            }
            let last_hydrogen = self.neighbours[i].iter().rev().copied().find(|&j| elements[j as usize] == 1);
            let heavy = self.neighbours[i].iter().any(|&j| elements[j as usize] != 1);
            if let (Some(j), true) = (last_hydrogen, heavy) {
                self.remove(i, j as usize);
            }
            if self.neighbours[i].len() < 2 {
                continue;
            }
            let length = |j: u32| {
                let (a, b) = (&positions[3 * i..3 * i + 3], &positions[3 * j as usize..3 * j as usize + 3]);
                a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt() as f32
            };
            // The first of equals stays.
            let mut shortest = self.neighbours[i][0];
            for &j in &self.neighbours[i][1..] {
                if length(j) < length(shortest) {
                    shortest = j;
                }
            }
            while let Some(&j) = self.neighbours[i].iter().find(|&&j| j != shortest) {
                self.remove(i, j as usize);
            }
        }
    }

    fn remove(&mut self, i: usize, j: usize) {
        self.neighbours[i].retain(|&k| k as usize != j);
        self.neighbours[j].retain(|&k| k as usize != i);
    }
}

fn distance2(a: [f32; 3], b: [f32; 3]) -> f64 {
    let d = [0, 1, 2].map(|k| f64::from(a[k]) - f64::from(b[k]));
    d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
}
