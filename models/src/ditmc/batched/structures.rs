//! Structures as a device needs them: each with its graph and its time, made on the threads of this process.

use super::super::config::{BONDS, DitmcConfig, HOPS, Variant};
use super::super::context::GraphContext;
use super::super::equivariant::{COMPONENTS, PairRows, RADIAL, basis};
use crate::matrix::{PAD, padded};
use scorefield_integrators::simd::SimdReal;

/// Most rows of a segment: more of them are more threads, and more sums.
const ROWS_PER_SEGMENT: usize = 64;

/// Rows in the order of what they belong to, in segments; see `segments` in `kernels/ditmc_training.cu`.
#[derive(Default)]
pub(super) struct Segments {
    pub(super) order: Vec<i32>,
    pub(super) segments: Vec<i32>,
    /// First segment of each.
    pub(super) first: Vec<i32>,
}

impl Segments {
    /// Of rows that belong to `owners`, of which there are `count`.
    fn new(owners: &[i32], count: usize) -> Self {
        let mut next = vec![0; count + 1];
        owners.iter().for_each(|&o| next[o as usize + 1] += 1);
        (0..count).for_each(|o| next[o + 1] += next[o]);
        let (mut first, mut segments) = (vec![0], Vec::new());
        for rows in next.windows(2) {
            segments.extend((rows[0]..rows[1]).step_by(ROWS_PER_SEGMENT).map(|at| at as i32));
            first.push(segments.len() as i32);
        }
        segments.push(owners.len() as i32);
        let mut order = vec![0; owners.len()];
        for (row, &o) in owners.iter().enumerate() {
            let at = &mut next[o as usize];
            order[*at] = row as i32;
            *at += 1;
        }
        Segments { order, segments, first }
    }

    /// How many segments there are.
    pub(super) fn count(&self) -> usize {
        self.segments.len() - 1
    }
}

/// Who belongs to each of `count`: where theirs begin, and their numbers.
fn lists(owners: impl Iterator<Item = i32> + Clone, count: usize) -> (Vec<i32>, Vec<i32>) {
    let mut first = vec![0; count + 1];
    owners.clone().for_each(|o| first[o as usize + 1] += 1);
    (0..count).for_each(|o| first[o + 1] += first[o]);
    let mut next = first.clone();
    let mut members = vec![0; first[count] as usize];
    for (k, o) in owners.enumerate() {
        let at = &mut next[o as usize];
        members[*at as usize] = k as i32;
        *at += 1;
    }
    (first, members)
}

/// Structures with their graphs; names and layouts are those of `kernels/ditmc_training.cu`.
pub(in super::super) struct Structures<T> {
    /// First atom of each structure, and the end.
    pub(super) first: Vec<i32>,
    /// Of each atom.
    pub(super) structure: Vec<i32>,
    pub(super) types: Vec<i32>,
    /// Features of atoms `[A, wide]`, their places `[A, PAD]` (Å); kinds of bonds `[B, PAD]`; a time per structure.
    pub(super) nodes: Vec<T>,
    pub(super) positions: Vec<T>,
    pub(super) kinds: Vec<T>,
    pub(super) times: Vec<T>,
    /// Bonds.
    pub(super) bonds: Vec<i32>,
    pub(super) arriving: (Vec<i32>, Vec<i32>),
    pub(super) leaving: (Vec<i32>, Vec<i32>),
    /// Rows of the embedding of hops that the table of pairs is made of.
    pub(super) hops: Vec<i32>,
    /// Pairs: their atoms, the first pair of each atom with its structure, the rows that they meet (of the table of hops, or their own), and
    /// those of the table of hops.
    pub(super) pairs: Vec<i32>,
    pub(super) atoms: Vec<i32>,
    pub(super) rows: Vec<i32>,
    pub(super) hop_of: Vec<i32>,
    /// Pairs by their rows of the table of hops.
    pub(super) by_hops: Segments,
    /// PE(3): both directions of a pair share a row, whose number is −1 − row where it is turned round; `hop_of` and `by_hops` are of rows.
    /// Atoms of each row, radial functions `[R, 64]`, harmonics `[R, (L + 1)²]`.
    pub(super) row_ends: Vec<i32>,
    pub(super) radial: Vec<T>,
    pub(super) harmonics: Vec<T>,
}

impl<T: SimdReal> Structures<T> {
    /// Of graphs, times, and positions `[N, 3]` (Å, centred).
    pub(in super::super) fn new<'a>(config: &DitmcConfig, all: impl Iterator<Item = (&'a GraphContext, f64, &'a [f64])> + Clone) -> Self {
        let wide = padded(config.vocabulary.width());
        let (mut first, mut structure, mut types, mut times) = (vec![0], Vec::new(), Vec::new(), Vec::new());
        let (mut nodes, mut positions, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bonds, mut pairs, mut atoms, mut hop_of, mut most) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), 0);
        let (equivariant, degree) = (config.variant == Variant::Pe3, config.degree.max(1));
        let (mut row_ends, mut turned, mut radial, mut harmonics) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (s, (graph, time, x)) in all.enumerate() {
            let (n, begin) = (graph.len(), types.len() as i32);
            times.push(T::from_f64(config.time_embedding.of(time)));
            types.extend(graph.types.iter().map(|&z| z as i32));
            structure.resize(types.len(), s as i32);
            for (features, x) in graph.nodes.chunks_exact(graph.width).zip(x.chunks_exact(3)) {
                nodes.extend(features.iter().map(|&v| T::from_f64(f64::from(v))));
                nodes.resize(nodes.len().next_multiple_of(wide), T::default());
                positions.extend(x.iter().map(|&v| T::from_f64(v)));
                positions.resize(positions.len().next_multiple_of(PAD), T::default());
            }
            for (&(sender, receiver), kind) in graph.pairs.iter().zip(&graph.bonds) {
                bonds.extend([begin + sender as i32, begin + receiver as i32]);
                kinds.extend(kind.iter().map(|&v| T::from_f64(f64::from(v))));
                kinds.resize(kinds.len().next_multiple_of(padded(BONDS)), T::default());
            }
            let pair = pairs.len() as i32 / 2;
            for i in 0..n as i32 {
                atoms.extend([pair + i * n as i32, begin, n as i32]);
                pairs.extend((0..n as i32).flat_map(|j| [begin + i, begin + j]));
            }
            if equivariant {
                let first = row_ends.len() as i32 / 2;
                let table = PairRows { atoms: n, directed: false };
                let (mut b, mut y) = ([0.0; RADIAL], [0.0; COMPONENTS]);
                for (i, j) in table.pairs() {
                    row_ends.extend([begin + i as i32, begin + j as i32]);
                    hop_of.push(i32::from(graph.hops[i * n + j]));
                    basis::pair(degree, std::array::from_fn(|a| x[3 * j + a] - x[3 * i + a]), &mut b, &mut y);
                    radial.extend(b.iter().map(|&b| T::from_f64(b)));
                    harmonics.extend(y[..(degree + 1).pow(2)].iter().map(|&y| T::from_f64(y)));
                }
                for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    // What an atom has with itself is never read.
                    let (row, reversed) = if i == j { (0, false) } else { table.row(i, j) };
                    let row = first + row as i32;
                    turned.push(if reversed { -1 - row } else { row });
                }
            } else {
                hop_of.extend(graph.hops.iter().map(|&h| i32::from(h)));
            }
            most = most.max(graph.most_hops);
            first.push(types.len() as i32);
        }
        let ends = bonds.as_chunks::<2>().0;
        let mut hops = vec![(HOPS - 2) as i32];
        hops.extend(1..=most as i32);
        let rows = match config.variant {
            Variant::Ape => hop_of.clone(),
            Variant::Pe3 => turned,
            // Every pair has its own.
            Variant::Rpe => (0..hop_of.len() as i32).collect(),
        };
        Structures {
            arriving: lists(ends.iter().map(|b| b[1]), types.len()),
            leaving: lists(ends.iter().map(|b| b[0]), types.len()),
            by_hops: Segments::new(&hop_of, hops.len()),
            first,
            structure,
            types,
            nodes,
            positions,
            kinds,
            times,
            bonds,
            hops,
            pairs,
            atoms,
            rows,
            hop_of,
            row_ends,
            radial,
            harmonics,
        }
    }

    /// Rows of pairs (PE(3)).
    pub(super) fn rows(&self) -> usize {
        self.row_ends.len() / 2
    }

    pub(in super::super) fn count(&self) -> usize {
        self.times.len()
    }

    pub(in super::super) fn atoms(&self) -> usize {
        self.types.len()
    }

    pub(super) fn bonds(&self) -> usize {
        self.bonds.len() / 2
    }

    pub(super) fn pairs(&self) -> usize {
        self.pairs.len() / 2
    }

    /// Rows of the table of hops.
    pub(super) fn hop_rows(&self) -> usize {
        self.hops.len()
    }
}
