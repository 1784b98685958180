//! Neighbour lists in periodic cells of any shape.

use super::lattice::{Lattice, displacements};
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{F64, MAX_LANES, dispatch};
use scorefield_integrators::state::Cell;

/// For every atom its partners of higher index within some radius, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct List {
    starts: Vec<u32>,
    partners: Vec<u32>,
    /// Positions and cell for which the list was built.
    built_at: Vec<f64>,
    built_in: Cell,
    /// How far beyond the cutoff it reaches; 0 where it holds all pairs.
    skin: f64,
    /// Bin of each atom, where each bin begins, and atoms and positions sorted by bin.
    bin_of: Vec<u32>,
    bin_starts: Vec<u32>,
    sorted: Vec<u32>,
    sorted_at: [Vec<f64>; 3],
    /// Displacements and squared distances of one bin.
    d: [Vec<f64>; 3],
    r2: Vec<f64>,
}

impl List {
    /// Partners of atom `i`.
    #[inline(always)]
    pub(crate) fn partners(&self, i: usize) -> &[u32] {
        &self.partners[self.starts[i] as usize..self.starts[i + 1] as usize]
    }

    /// Makes sure that all pairs within `cutoff` are in the list: builds it anew where the cell changed or an atom moved more
    /// than half the skin. False where the cell is too small for a list, so that all pairs must be taken. `excluded` are
    /// partners of higher index that are never listed, in order, by atom; empty where there are none at all.
    pub(crate) fn update<T: Real>(&mut self, lattice: &Lattice, rows: &[T], cutoff: f64, skin: f64, excluded: &[Vec<u32>]) -> bool {
        let room = 0.5 * lattice.smallest_height() - cutoff;
        if room < 0.25 * skin {
            return false;
        }
        // Just below half, so that rounding cannot bring in an unlisted pair.
        let limit = (0.49 * self.skin).powi(2);
        let stays = |(x, old): (&[T], &[f64])| (0..3).map(|a| (x[a].to_f64() - old[a]).powi(2)).sum::<f64>() <= limit;
        let current = self.built_in == lattice.cell
            && self.built_at.len() == rows.len()
            && rows.chunks_exact(3).zip(self.built_at.chunks_exact(3)).all(stays);
        if !current {
            self.skin = skin.min(room);
            self.built_in = lattice.cell;
            self.built_at.clear();
            self.built_at.extend(rows.iter().map(|x| x.to_f64()));
            self.build(lattice, cutoff + self.skin, excluded);
        }
        true
    }

    /// Makes the list one of all pairs of `atoms` atoms but those `excluded`.
    pub(crate) fn fill(&mut self, atoms: usize, excluded: &[Vec<u32>]) {
        if self.skin == 0.0 && self.starts.len() == atoms + 1 {
            return;
        }
        self.skin = 0.0;
        self.built_at.clear();
        self.starts.clear();
        self.partners.clear();
        self.starts.push(0);
        for i in 0..atoms {
            let first = self.partners.len();
            self.partners.extend(i as u32 + 1..atoms as u32);
            remove(&mut self.partners, first, excluded.get(i));
            self.starts.push(self.partners.len() as u32);
        }
    }

    fn build(&mut self, lattice: &Lattice, radius: f64, excluded: &[Vec<u32>]) {
        let atoms = self.built_at.len() / 3;
        let heights = lattice.heights();
        // At least three bins a side, so that the bins around one are different ones; else one.
        let most = (atoms as f64).cbrt().ceil().max(3.0);
        let mut sides = [1; 3];
        for k in 0..3 {
            let wanted = (heights[k] / radius).floor().min(most) as usize;
            sides[k] = if wanted >= 3 { wanted } else { 1 };
        }
        self.bin_of.clear();
        self.bin_starts.clear();
        self.bin_starts.resize(sides.iter().product::<usize>() + 1, 0);
        for r in self.built_at.chunks_exact(3) {
            let s = lattice.fractional([r[0], r[1], r[2]]);
            let [x, y, z] = std::array::from_fn(|k| (((s[k] - s[k].floor()) * sides[k] as f64) as usize).min(sides[k] - 1));
            let bin = (x * sides[1] + y) * sides[2] + z;
            self.bin_of.push(bin as u32);
            self.bin_starts[bin + 1] += 1;
        }
        for k in 1..self.bin_starts.len() {
            self.bin_starts[k] += self.bin_starts[k - 1];
        }
        // Atoms in the order of their bins, with their positions.
        self.sorted.clear();
        self.sorted.resize(atoms, 0);
        for rows in self.sorted_at.iter_mut().chain(&mut self.d).chain([&mut self.r2]) {
            rows.resize(atoms + MAX_LANES, 0.0);
        }
        // Filling from the back leaves every start where its bin begins, one place too far.
        for i in (0..atoms).rev() {
            let end = &mut self.bin_starts[self.bin_of[i] as usize + 1];
            *end -= 1;
            let place = *end as usize;
            self.sorted[place] = i as u32;
            for a in 0..3 {
                self.sorted_at[a][place] = self.built_at[3 * i + a];
            }
        }
        self.bin_starts.remove(0);
        self.bin_starts.push(atoms as u32);
        dispatch(Build { list: self, lattice, sides, radius2: radius * radius, excluded });
    }
}

/// Fills a list whose bins are made.
struct Build<'a> {
    list: &'a mut List,
    lattice: &'a Lattice,
    sides: [usize; 3],
    radius2: f64,
    excluded: &'a [Vec<u32>],
}

/// Takes `excluded` out of `partners[first..]`, both in order.
fn remove(partners: &mut Vec<u32>, first: usize, excluded: Option<&Vec<u32>>) {
    let Some(excluded) = excluded.filter(|e| !e.is_empty()) else { return };
    let mut kept = first;
    for k in first..partners.len() {
        if excluded.binary_search(&partners[k]).is_err() {
            partners[kept] = partners[k];
            kept += 1;
        }
    }
    partners.truncate(kept);
}

/// The neighbours of bin `k` of `n` along one axis, itself included: the first one and how many follow it, cyclically.
fn around(k: usize, n: usize) -> (usize, usize) {
    if n == 1 { (0, 1) } else { ((k + n - 1) % n, 3) }
}

impl WithSimd for Build<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        let Build { list, lattice, sides, radius2, excluded } = self;
        let List { starts, partners, built_at, sorted, sorted_at, d, r2, bin_starts, bin_of, .. } = list;
        let [dx, dy, dz] = d;
        starts.clear();
        starts.push(0);
        partners.clear();
        for (i, &bin) in bin_of.iter().enumerate() {
            let (bin, first) = (bin as usize, partners.len());
            let xi = [built_at[3 * i], built_at[3 * i + 1], built_at[3 * i + 2]];
            let (x0, nx) = around(bin / (sides[1] * sides[2]), sides[0]);
            let (y0, ny) = around(bin / sides[2] % sides[1], sides[1]);
            let (z0, nz) = around(bin % sides[2], sides[2]);
            for cell in 0..nx * ny * nz {
                let x = (x0 + cell / (ny * nz)) % sides[0];
                let y = (y0 + cell / nz % ny) % sides[1];
                let z = (z0 + cell % nz) % sides[2];
                let here = (x * sides[1] + y) * sides[2] + z;
                let (begin, end) = (bin_starts[here] as usize, bin_starts[here + 1] as usize);
                let from = [&sorted_at[0][begin..], &sorted_at[1][begin..], &sorted_at[2][begin..]];
                displacements::<F64<S>>(t, lattice, xi, from, end - begin, [dx, dy, dz], r2);
                for (&j, &r2) in sorted[begin..end].iter().zip(r2.iter()) {
                    // A distance that is not a number stays in the list.
                    let far = r2 >= radius2;
                    if !far && j as usize > i {
                        partners.push(j);
                    }
                }
            }
            partners[first..].sort_unstable();
            remove(partners, first, excluded.get(i));
            starts.push(partners.len() as u32);
        }
    }
}
