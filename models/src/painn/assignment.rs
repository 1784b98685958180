//! Linear assignment: which noisy atom is whose.

/// The permutation of least cost: row `i` of `cost [n, n]` goes to column `to[i]`. Shortest augmenting paths with potentials,
/// O(n³) (H. Kuhn 1955; R. Jonker and A. Volgenant, *Computing* 38, 325, 1987). Costs must be finite.
pub(super) fn assign(n: usize, cost: &[f64], to: &mut Vec<usize>) {
    const NONE: usize = usize::MAX;
    // Column n is where a new row starts.
    let (mut u, mut v) = (vec![0.0; n], vec![0.0; n + 1]);
    let mut row_of = vec![NONE; n + 1];
    let mut previous = vec![n; n + 1];
    let mut least = vec![f64::INFINITY; n + 1];
    let mut used = vec![false; n + 1];
    for row in 0..n {
        least.fill(f64::INFINITY);
        used.fill(false);
        row_of[n] = row;
        let mut column = n;
        while row_of[column] != NONE {
            used[column] = true;
            let i = row_of[column];
            let (mut delta, mut next) = (f64::INFINITY, n);
            for j in 0..n {
                if used[j] {
                    continue;
                }
                let reduced = cost[i * n + j] - u[i] - v[j];
                if reduced < least[j] {
                    (least[j], previous[j]) = (reduced, column);
                }
                if least[j] < delta {
                    (delta, next) = (least[j], j);
                }
            }
            for j in 0..=n {
                if used[j] {
                    u[row_of[j]] += delta;
                    v[j] -= delta;
                } else {
                    least[j] -= delta;
                }
            }
            column = next;
        }
        while column != n {
            row_of[column] = row_of[previous[column]];
            column = previous[column];
        }
    }
    to.clear();
    to.resize(n, 0);
    for j in 0..n {
        to[row_of[j]] = j;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::{Noise, Purpose};

    fn permutations(n: usize) -> Vec<Vec<usize>> {
        if n == 0 {
            return vec![vec![]];
        }
        let mut all = Vec::new();
        for p in permutations(n - 1) {
            for k in 0..n {
                let mut q = p.clone();
                q.insert(k, n - 1);
                all.push(q);
            }
        }
        all
    }

    #[test]
    fn no_permutation_costs_less() {
        let noise = Noise::new(3);
        for trial in 0..200u64 {
            let n = 1 + trial as usize % 6;
            let cost: Vec<f64> = (0..n * n).map(|k| noise.normals(k as u32, 0, trial, Purpose::Prior)[0]).collect();
            let mut to = Vec::new();
            assign(n, &cost, &mut to);
            let total = |p: &[usize]| p.iter().enumerate().map(|(i, &j)| cost[i * n + j]).sum::<f64>();
            let best = permutations(n).iter().map(|p| total(p)).fold(f64::INFINITY, f64::min);
            assert!((total(&to) - best).abs() < 1e-12, "{n}: {to:?}");
            let mut sorted = to.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
    }
}
