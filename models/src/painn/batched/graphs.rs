//! Molecules as a device needs them: their atoms and pairs, made on the threads of this process.

use super::super::config::PainnConfig;
use super::super::kernels::{Pairs, STEP, band};
use scorefield_integrators::simd::SimdReal;

/// Most pairs of a segment: more of them are more threads, and more sums.
const PAIRS_PER_SEGMENT: usize = 64;

/// Some molecules, made by one thread.
#[derive(Default)]
pub(in super::super) struct Piece<T> {
    sizes: Vec<usize>,
    types: Vec<u32>,
    time: Vec<T>,
    pairs: Pairs<T>,
}

impl<T: SimdReal> Piece<T> {
    /// Adds a molecule at `x [n, 3]` (Å), at noise level `time` = (ln σ)/4.
    pub(in super::super) fn add(&mut self, config: &PainnConfig, types: &[u32], x: &[f64], time: f64) {
        self.pairs.add(config, self.types.len(), x, false);
        self.sizes.push(types.len());
        self.types.extend_from_slice(types);
        self.time.resize(self.types.len(), T::from_f64(time));
    }
}

/// Molecules of any sizes; names and layouts are those of `kernels/painn_training.cu`.
#[derive(Default)]
pub(in super::super) struct Graphs<T> {
    /// First atom of each molecule, and the end.
    pub(super) molecules: Vec<i32>,
    pub(super) types: Vec<i32>,
    /// Noise level of each atom's molecule.
    pub(super) time: Vec<T>,
    pub(super) start: Vec<i32>,
    pub(super) weights: Vec<T>,
    pub(super) geometry: Vec<T>,
    pub(super) ends: Vec<i32>,
    /// Who sees whom.
    pub(super) first: Vec<i32>,
    pub(super) neighbours: Vec<i32>,
    /// For the way back: pairs in the order of their first radial function, segments of them, and the first segment of each function.
    pub(super) order: Vec<i32>,
    pub(super) segments: Vec<i32>,
    pub(super) from: Vec<i32>,
}

/// Numbers that the first radial function of a pair can be.
pub(super) fn starts<T: SimdReal>(config: &PainnConfig) -> usize {
    let band = band::<T>().0;
    config.radial.max(band) - band + 1
}

impl<T: SimdReal> Graphs<T> {
    /// Molecules of all pieces, in their order; with `back`, for the way back too.
    pub(in super::super) fn join(config: &PainnConfig, pieces: impl IntoIterator<Item = Piece<T>>, back: bool) -> Self {
        let mut graphs = Graphs { molecules: vec![0], ..Graphs::default() };
        let mut end = 0;
        for piece in pieces {
            graphs.push(&piece.pairs);
            graphs.types.extend(piece.types.iter().map(|&z| z as i32));
            graphs.time.extend(piece.time);
            graphs.molecules.extend(piece.sizes.iter().map(|&n| {
                end += n as i32;
                end
            }));
        }
        graphs.find_neighbours();
        if back {
            graphs.sort(starts::<T>(config));
        }
        graphs
    }

    /// How many molecules there are.
    pub(in super::super) fn molecules(&self) -> usize {
        self.molecules.len() - 1
    }

    pub(in super::super) fn atoms(&self) -> usize {
        self.types.len()
    }

    pub(super) fn pairs(&self) -> usize {
        self.start.len()
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len().max(1) - 1
    }

    /// Adds pairs of the atoms that come next.
    fn push(&mut self, pairs: &Pairs<T>) {
        let atoms = self.types.len() as i32;
        self.start.extend(pairs.start.iter().map(|&s| s as i32));
        self.weights.extend(pairs.weights.iter().flat_map(|w: &[T; STEP]| w));
        self.geometry.extend(pairs.geometry.iter().flatten());
        self.ends.extend(pairs.atoms.iter().flatten().map(|&i| atoms + i as i32));
    }

    fn find_neighbours(&mut self) {
        let (atoms, ends) = (self.types.len(), self.ends.as_chunks::<2>().0);
        self.first = vec![0; atoms + 1];
        self.ends.iter().for_each(|&i| self.first[i as usize + 1] += 1);
        (0..atoms).for_each(|i| self.first[i + 1] += self.first[i]);
        let mut next = self.first.clone();
        self.neighbours = vec![0; 2 * self.ends.len()];
        for (pair, &[i, j]) in ends.iter().enumerate() {
            for (of, other, pair) in [(i, j, pair as i32), (j, i, -1 - pair as i32)] {
                let at = 2 * next[of as usize] as usize;
                next[of as usize] += 1;
                self.neighbours[at..at + 2].copy_from_slice(&[other, pair]);
            }
        }
    }

    /// Puts pairs with the first radial functions 0 to `starts` into segments.
    fn sort(&mut self, starts: usize) {
        let mut next = vec![0; starts + 1];
        self.start.iter().for_each(|&s| next[s as usize + 1] += 1);
        (0..starts).for_each(|s| next[s + 1] += next[s]);
        (self.from, self.segments) = (vec![0], Vec::new());
        for s in next.windows(2) {
            self.segments.extend((s[0]..s[1]).step_by(PAIRS_PER_SEGMENT).map(|at| at as i32));
            self.from.push(self.segments.len() as i32);
        }
        self.segments.push(self.start.len() as i32);
        self.order = vec![0; self.start.len()];
        for (pair, &s) in self.start.iter().enumerate() {
            let at = &mut next[s as usize];
            self.order[*at] = pair as i32;
            *at += 1;
        }
    }
}
