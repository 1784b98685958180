//! Neighbour lists in periodic cells of any shape.

use super::lattice::Lattice;
use scorefield_integrators::Real;
use scorefield_integrators::state::Cell;

/// For every atom its partners of higher index within some radius, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    starts: Vec<u32>,
    partners: Vec<u32>,
    /// Positions and cell for which the list was built.
    built_at: Vec<f64>,
    built_in: Cell,
    /// How far beyond the cutoff it reaches.
    skin: f64,
    /// Atoms sorted by bin, and where each bin begins.
    bins: Vec<u32>,
    bin_starts: Vec<u32>,
    bin_of: Vec<u32>,
}

impl List {
    /// Partners of atom `i`.
    #[inline(always)]
    pub(super) fn partners(&self, i: usize) -> &[u32] {
        &self.partners[self.starts[i] as usize..self.starts[i + 1] as usize]
    }

    /// Makes sure that all pairs within `cutoff` are in the list: builds it anew where the cell changed or an atom moved more
    /// than half the skin. False where the cell is too small for a list, so that all pairs must be taken.
    pub(super) fn update<T: Real>(&mut self, lattice: &Lattice, rows: &[T], cutoff: f64, skin: f64) -> bool {
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
            self.build(lattice, cutoff + self.skin);
        }
        true
    }

    fn build(&mut self, lattice: &Lattice, radius: f64) {
        let atoms = self.built_at.len() / 3;
        let at = |k: u32| -> [f64; 3] { std::array::from_fn(|a| self.built_at[3 * k as usize + a]) };
        let heights = lattice.heights();
        // At least three bins a side, so that the bins around one are different ones; else a single bin.
        let most = (atoms as f64).cbrt().ceil().max(3.0);
        let wanted = heights.map(|h| (h / radius).floor().min(most) as usize);
        let sides = if wanted.iter().all(|&s| s >= 3) { wanted } else { [1; 3] };
        self.bin_of.clear();
        self.bin_starts.clear();
        self.bin_starts.resize(sides.iter().product::<usize>() + 1, 0);
        for i in 0..atoms as u32 {
            let s = lattice.fractional(at(i));
            let [x, y, z] = std::array::from_fn(|k| (((s[k] - s[k].floor()) * sides[k] as f64) as usize).min(sides[k] - 1));
            let bin = (x * sides[1] + y) * sides[2] + z;
            self.bin_of.push(bin as u32);
            self.bin_starts[bin + 1] += 1;
        }
        for k in 1..self.bin_starts.len() {
            self.bin_starts[k] += self.bin_starts[k - 1];
        }
        self.bins.clear();
        self.bins.resize(atoms, 0);
        // Filling from the back leaves every start where its bin begins.
        for i in (0..atoms).rev() {
            let end = &mut self.bin_starts[self.bin_of[i] as usize + 1];
            *end -= 1;
            self.bins[*end as usize] = i as u32;
        }
        // Each start has moved to the one after it: bin k is now starts[k + 1] .. starts[k + 2], the last up to the end.
        let bin_range = |k: usize| {
            let begin = self.bin_starts[k + 1] as usize;
            begin..self.bin_starts.get(k + 2).map_or(atoms, |&s| s as usize)
        };
        let radius2 = radius * radius;
        self.starts.clear();
        self.starts.push(0);
        self.partners.clear();
        for i in 0..atoms as u32 {
            let (xi, bin) = (at(i), self.bin_of[i as usize] as usize);
            let first = self.partners.len();
            let here = [bin / (sides[1] * sides[2]), bin / sides[2] % sides[1], bin % sides[2]];
            let around = |k: usize| (0..sides[k].min(3)).map(move |o| (here[k] + sides[k] + o - usize::from(sides[k] > 1)) % sides[k]);
            for x in around(0) {
                for y in around(1) {
                    for z in around(2) {
                        for &j in &self.bins[bin_range((x * sides[1] + y) * sides[2] + z)] {
                            if j <= i {
                                continue;
                            }
                            let xj = at(j);
                            // A distance that is not a number stays in the list.
                            let d = lattice.nearest(std::array::from_fn(|a| xi[a] - xj[a]));
                            let far = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= radius2;
                            if !far {
                                self.partners.push(j);
                            }
                        }
                    }
                }
            }
            self.partners[first..].sort_unstable();
            self.starts.push(self.partners.len() as u32);
        }
    }
}
