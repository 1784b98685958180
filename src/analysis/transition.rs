//! Discrete states and how a trajectory moves between them: k-means clusters, transition matrices, mean first-passage
//! times.

use super::divergence::jensen_shannon;
use nalgebra::{DMatrix, DVector};
use scorefield_integrators::{Noise, Purpose};

/// Rounds of Lloyd's algorithm after which k-means stops.
const ROUNDS: usize = 200;

/// Centres `[k, dim]` of the `k` clusters of `points` (`[F, dim]`) by Lloyd's algorithm from a k-means++ start (D. Arthur and
/// S. Vassilvitskii, SODA 2007). The same seed gives the same centres. Fewer than `k` where there are not so many
/// different points.
pub fn k_means(points: &[f64], dim: usize, k: usize, seed: u64) -> Vec<f64> {
    let n = points.len() / dim.max(1);
    if n == 0 || k == 0 || dim == 0 {
        return Vec::new();
    }
    let noise = Noise::new(seed);
    let point = |i: usize| &points[i * dim..(i + 1) * dim];
    let uniform = |round: usize| noise.uniform(0, 0, round as u64, Purpose::Bootstrap);
    let mut centres = point(((uniform(0) * n as f64) as usize).min(n - 1)).to_vec();
    // Squared distance of each point to its nearest centre.
    let mut nearest = vec![f64::INFINITY; n];
    for round in 1..k {
        let last = &centres[(round - 1) * dim..];
        nearest.iter_mut().enumerate().for_each(|(i, d)| *d = d.min(squared_distance(point(i), last)));
        let total: f64 = nearest.iter().sum();
        if !(total > 0.0) {
            break;
        }
        let mut left = uniform(round) * total;
        let drawn = nearest.iter().position(|&d| {
            left -= d;
            left < 0.0
        });
        // Rounding may leave a trace: then the farthest point.
        let drawn = drawn.unwrap_or_else(|| (0..n).max_by(|&a, &b| nearest[a].total_cmp(&nearest[b])).unwrap_or(0));
        centres.extend_from_slice(point(drawn));
    }
    let k = centres.len() / dim;
    let mut labels = vec![usize::MAX; n];
    for _ in 0..ROUNDS {
        let new = assign(points, dim, &centres);
        if new == labels {
            break;
        }
        labels = new;
        let mut sums = vec![0.0; k * dim];
        let mut counts = vec![0usize; k];
        for (i, &label) in labels.iter().enumerate() {
            counts[label] += 1;
            sums[label * dim..(label + 1) * dim].iter_mut().zip(point(i)).for_each(|(s, x)| *s += x);
        }
        // A cluster that has lost all its points keeps its centre.
        for c in (0..k).filter(|&c| counts[c] > 0) {
            (0..dim).for_each(|d| centres[c * dim + d] = sums[c * dim + d] / counts[c] as f64);
        }
    }
    centres
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The nearest of `centres` (`[k, dim]`) to each of `points` (`[F, dim]`), by Euclidean distance; the first of equals.
pub fn assign(points: &[f64], dim: usize, centres: &[f64]) -> Vec<usize> {
    points
        .chunks_exact(dim)
        .map(|p| {
            let mut best = (f64::INFINITY, 0);
            for (c, centre) in centres.chunks_exact(dim).enumerate() {
                let d = squared_distance(p, centre);
                if d < best.0 {
                    best = (d, c);
                }
            }
            best.1
        })
        .collect()
}

/// A Markov chain of `k` states, counted from trajectories.
#[derive(Clone, Debug, PartialEq)]
pub struct TransitionMatrix {
    /// Number of states.
    pub states: usize,
    /// Transitions seen, `[k (from), k (to)]`.
    pub counts: Vec<f64>,
}

impl TransitionMatrix {
    /// Counts every pair of frames that are `lag` apart in one of `chains`, each a trajectory of states below `states`.
    pub fn count<'a>(chains: impl IntoIterator<Item = &'a [usize]>, states: usize, lag: usize) -> Self {
        let mut counts = vec![0.0; states * states];
        for chain in chains {
            for (&from, &to) in chain.iter().zip(chain.iter().skip(lag.max(1))) {
                counts[from * states + to] += 1.0;
            }
        }
        TransitionMatrix { states, counts }
    }

    /// Probabilities of the next state, `[k (from), k (to)]`; a row that was never left is zero.
    pub fn probabilities(&self) -> Vec<f64> {
        let mut matrix = self.counts.clone();
        for row in matrix.chunks_exact_mut(self.states.max(1)) {
            let sum: f64 = row.iter().sum();
            if sum > 0.0 {
                row.iter_mut().for_each(|x| *x /= sum);
            }
        }
        matrix
    }

    /// Jensen–Shannon divergence of two matrices of probabilities, taken as one list of numbers each.
    pub fn divergence(&self, other: &Self) -> f64 {
        jensen_shannon(&self.probabilities(), &other.probabilities())
    }

    /// Mean first-passage times `[k (from), k (to)]` in lags: the mean number of lags until a chain that starts in one state
    /// first comes to another; 0 on the diagonal, infinite where no way leads. They solve
    /// tᵢ = 1 + Σ_{k ≠ j} P_ik t_k for each target j.
    pub fn mean_first_passage_times(&self) -> Vec<f64> {
        let k = self.states;
        let p = self.probabilities();
        let mut times = vec![f64::INFINITY; k * k];
        for target in 0..k {
            times[target * k + target] = 0.0;
            let certain = self.certain_to_reach(&p, target);
            let states: Vec<usize> = (0..k).filter(|&i| i != target && certain[i]).collect();
            let n = states.len();
            if n == 0 {
                continue;
            }
            let matrix = DMatrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)) - p[states[i] * k + states[j]]);
            if let Some(solution) = matrix.lu().solve(&DVector::from_element(n, 1.0)) {
                states.iter().zip(solution.iter()).for_each(|(&i, &t)| times[i * k + target] = t);
            }
        }
        times
    }

    /// States from which every way leads to `target` sooner or later: they reach it, and cannot get to a state that does
    /// not.
    fn certain_to_reach(&self, p: &[f64], target: usize) -> Vec<bool> {
        let k = self.states;
        // All states with a way to one of `goal` that does not pass `target`.
        let spread = |mut goal: Vec<bool>| {
            while let Some(i) = (0..k).find(|&i| !goal[i] && i != target && (0..k).any(|j| goal[j] && p[i * k + j] > 0.0)) {
                goal[i] = true;
            }
            goal
        };
        let reaching = spread((0..k).map(|i| i == target).collect());
        let lost = spread(reaching.iter().map(|r| !r).collect());
        lost.iter().map(|l| !l).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::golden::{Golden, close, normal};

    #[test]
    fn transitions_as_published() {
        let Some(golden) = Golden::load() else { return };
        let centres = golden.numbers("cluster_centers");
        let matrix = |set: &str| {
            let labels = assign(&golden.numbers(&format!("traj_{set}")), 2, &centres);
            assert_eq!(labels.iter().map(|&l| l as f64).collect::<Vec<_>>(), golden.numbers(&format!("assignment_{set}")));
            let matrix = TransitionMatrix::count([&labels[..]], 4, 1);
            assert_eq!(matrix.counts, golden.table(&format!("counts_{set}")));
            let want = golden.table(&format!("transition_matrix_{set}"));
            matrix.probabilities().iter().zip(&want).for_each(|(p, w)| close(*p, *w, "probability"));
            matrix
        };
        close(matrix("a").divergence(&matrix("b")), golden.value("transition_matrix_js"), "transition matrix");
    }

    #[test]
    fn clusters_are_found_again() {
        let middles = [[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [6.0, 6.0]];
        let points: Vec<f64> = (0..4000u64)
            .flat_map(|i| {
                let z = normal(i, 9);
                let m = middles[(i % 4) as usize];
                [m[0] + 0.5 * z[0], m[1] + 0.5 * z[1]]
            })
            .collect();
        for seed in 0..5 {
            let centres = k_means(&points, 2, 4, seed);
            assert_eq!(centres, k_means(&points, 2, 4, seed));
            for m in &middles {
                let nearest = centres.chunks(2).map(|c| squared_distance(c, m)).fold(f64::INFINITY, f64::min);
                assert!(nearest < 0.01, "seed {seed}: {centres:?}");
            }
        }
        // Fewer different points than clusters.
        assert_eq!(k_means(&[1.0, 2.0, 1.0, 2.0], 2, 3, 0), [1.0, 2.0]);
        assert!(k_means(&[], 2, 3, 0).is_empty());
    }

    #[test]
    fn passage_times_of_two_states() {
        // P = [[1 − a, a], [b, 1 − b]]: the first passage is geometric, 1/a and 1/b lags.
        let matrix = TransitionMatrix { states: 2, counts: vec![95.0, 5.0, 2.0, 8.0] };
        let times = matrix.mean_first_passage_times();
        assert!((times[1] - 20.0).abs() < 1e-12 && (times[2] - 5.0).abs() < 1e-12 && times[0] == 0.0, "{times:?}");
        // The same from a simulated chain.
        let mut state = 0usize;
        let chain: Vec<usize> = (0..200_000u64)
            .map(|i| {
                let u = Noise::new(3).uniform(0, 0, i, Purpose::Bootstrap);
                state = if state == 0 { usize::from(u < 0.05) } else { usize::from(u >= 0.2) };
                state
            })
            .collect();
        let times = TransitionMatrix::count([&chain[..]], 2, 1).mean_first_passage_times();
        assert!((times[1] / 20.0 - 1.0).abs() < 0.05 && (times[2] / 5.0 - 1.0).abs() < 0.05, "{times:?}");
    }

    #[test]
    fn passages_that_never_happen_take_for_ever() {
        // 0 → 1 → 2, and 2 is never left; 3 goes to 0 or to 2.
        let matrix =
            TransitionMatrix { states: 4, counts: vec![1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0] };
        let times = matrix.mean_first_passage_times();
        assert_eq!(times[2], 4.0);
        // From 3 half of the ways pass by 1 for ever.
        assert_eq!(times[3 * 4 + 1], f64::INFINITY);
        assert_eq!(times[3 * 4 + 2], 3.0);
        assert_eq!(times[2 * 4], f64::INFINITY);
        assert_eq!(times[3], f64::INFINITY);
    }

    #[test]
    fn pairs_do_not_cross_from_chain_to_chain() {
        let matrix = TransitionMatrix::count([&[0, 0, 1][..], &[1, 0][..], &[0][..]], 2, 1);
        assert_eq!(matrix.counts, [1.0, 1.0, 1.0, 0.0]);
        assert_eq!(TransitionMatrix::count([&[0, 0, 1][..]], 2, 2).counts, [0.0, 1.0, 0.0, 0.0]);
    }
}
