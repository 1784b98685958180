//! How far two sets of samples are apart: histograms over one or two coordinates, and the Jensen–Shannon divergence in
//! nats. The definitions are those by which ScoreMD's results were published (Plainer et al., arXiv 2506.17139), so that
//! numbers can be compared with theirs.

use super::geometry::distance;

/// Jensen–Shannon divergence of two lists of weights, each normalised to a sum of one: 0 for equal shapes, ln 2 for
/// disjoint ones. This is the divergence itself, not its square root, which is a distance. NaN where a list is empty or
/// sums to nothing.
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> f64 {
    let (np, nq) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
    if !(np > 0.0 && nq > 0.0) || p.len() != q.len() {
        return f64::NAN;
    }
    let term = |a: f64, m: f64| if a > 0.0 { 0.5 * a * (a / m).ln() } else { 0.0 };
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|(&a, &b)| {
            let (a, b) = (a / np, b / nq);
            let m = 0.5 * (a + b);
            term(a, m) + term(b, m)
        })
        .sum();
    sum.max(0.0)
}

/// `n` numbers from `low` to `high` at equal distances; the last is `high` itself.
pub(super) fn linspace(low: f64, high: f64, n: usize) -> Vec<f64> {
    let step = (high - low) / n.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + low).collect();
    if let (Some(last), true) = (values.last_mut(), n > 1) {
        *last = high;
    }
    values
}

/// Number of `edges` (ascending, equally spaced) that are at or below `x`: 0 below the first, all of them from the last on.
/// `None` for NaN.
pub(super) fn edges_below(edges: &[f64], x: f64) -> Option<usize> {
    let (first, last) = (*edges.first()?, *edges.last()?);
    if x.is_nan() {
        return None;
    }
    if x < first {
        return Some(0);
    }
    if x >= last {
        return Some(edges.len());
    }
    // The guess may be off by rounding; the edges themselves decide.
    let mut i = ((x - first) / (last - first) * (edges.len() - 1) as f64) as usize;
    i = i.min(edges.len() - 2);
    while i > 0 && edges[i] > x {
        i -= 1;
    }
    while edges[i + 1] <= x {
        i += 1;
    }
    Some(i + 1)
}

/// Smallest and largest value per axis; `None` without points.
pub fn range_of(sets: &[&[[f64; 2]]]) -> Option<[[f64; 2]; 2]> {
    let mut range = [[f64::INFINITY, f64::NEG_INFINITY]; 2];
    for point in sets.iter().flat_map(|s| s.iter()) {
        for (axis, &x) in range.iter_mut().zip(point) {
            *axis = [axis[0].min(x), axis[1].max(x)];
        }
    }
    range.iter().all(|r| r[0] <= r[1]).then_some(range)
}

/// Equal bins over a rectangle of two coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Edges per axis, one more than bins.
    edges: [Vec<f64>; 2],
}

impl Grid {
    /// `bins` bins per axis over `limits` (`[low, high]` per axis).
    pub fn new(limits: [[f64; 2]; 2], bins: usize) -> Self {
        let axis = |[low, high]: [f64; 2]| {
            // A coordinate that never changes has a bin all the same.
            let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
            linspace(low, high, bins.max(1) + 1)
        };
        Grid { edges: limits.map(axis) }
    }

    /// Bins per axis.
    pub fn bins(&self) -> usize {
        self.edges[0].len() - 1
    }

    /// Edges of the bins along `axis` (0 or 1).
    pub fn edges(&self, axis: usize) -> &[f64] {
        &self.edges[axis.min(1)]
    }

    /// Points per cell, `[bins (first axis), bins (second axis)]`. A lower edge belongs to its bin, and the last edge of all
    /// to the last bin; points outside are not counted.
    pub fn counts(&self, points: &[[f64; 2]]) -> Vec<f64> {
        let bins = self.bins();
        let mut counts = vec![0.0; bins * bins];
        let bin = |axis: usize, x: f64| {
            let edges = &self.edges[axis];
            match edges_below(edges, x)? {
                0 => None,
                k if k <= bins => Some(k - 1),
                _ => (x == edges[bins]).then_some(bins - 1),
            }
        };
        for &[x, y] in points {
            if let (Some(i), Some(j)) = (bin(0, x), bin(1, y)) {
                counts[i * bins + j] += 1.0;
            }
        }
        counts
    }
}

/// Jensen–Shannon divergence of two sets of points by histograms of `bins` × `bins` cells over `limits`, or over the range
/// of both sets together.
pub fn histogram_js(a: &[[f64; 2]], b: &[[f64; 2]], bins: usize, limits: Option<[[f64; 2]; 2]>) -> f64 {
    let Some(limits) = limits.or_else(|| range_of(&[a, b])) else { return f64::NAN };
    let grid = Grid::new(limits, bins);
    jensen_shannon(&grid.counts(a), &grid.counts(b))
}

/// Width of the bins of [`pair_distance_js`] in nm.
pub const PAIR_BIN: f64 = 0.1;
/// Added to every bin of [`pair_distance_js`], so that none is empty.
const PAIR_FLOOR: f64 = 1e-10;

/// Jensen–Shannon divergence of the distances between beads, averaged over the pairs `(i, j)` with `j − i ≥ offset`. `a`
/// and `b` are frames `[F, N, 3]` of `n` beads in nm, back to back. Distances of a pair are counted in bins of
/// [`PAIR_BIN`] from 0 up to past the largest of both sets. NaN where there is no frame or no pair.
pub fn pair_distance_js(a: &[f64], b: &[f64], n: usize, offset: usize) -> f64 {
    let mut sum = 0.0;
    let mut pairs = 0usize;
    for i in 0..n {
        for j in i + offset.max(1)..n {
            let [da, db] = [a, b].map(|x| x.chunks_exact(3 * n).map(|frame| distance(frame, i, j)).collect::<Vec<f64>>());
            let largest = da.iter().chain(&db).copied().fold(0.0, f64::max);
            let bins = (largest / PAIR_BIN).floor() as usize + 1;
            let edges = linspace(0.0, PAIR_BIN * bins as f64, bins + 1);
            let histogram = |distances: &[f64]| {
                let mut counts = vec![0.0; bins];
                for &d in distances {
                    if let Some(k) = edges_below(&edges, d).filter(|k| *k >= 1) {
                        counts[(k - 1).min(bins - 1)] += 1.0;
                    }
                }
                counts.iter().map(|c| c / distances.len() as f64 + PAIR_FLOOR).collect::<Vec<f64>>()
            };
            sum += jensen_shannon(&histogram(&da), &histogram(&db));
            pairs += 1;
        }
    }
    if pairs == 0 { f64::NAN } else { sum / pairs as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::golden::{Golden, close, normal};

    #[test]
    fn divergence_of_shifted_gaussians_by_quadrature() {
        // JS of N(0, 1) and N(1, 1), by the trapezoidal rule to full precision.
        let density = |x: f64, mean: f64| (-0.5 * (x - mean).powi(2)).exp() / std::f64::consts::TAU.sqrt();
        let h = 1e-3;
        let want: f64 = (-10_000..11_000)
            .map(|k| {
                let (p, q) = (density(f64::from(k) * h, 0.0), density(f64::from(k) * h, 1.0));
                let m = 0.5 * (p + q);
                0.5 * h * (p * (p / m).ln() + q * (q / m).ln())
            })
            .sum();
        let exact = |mean: f64| (-10_000..11_000).map(|k| density(f64::from(k) * h, mean)).collect::<Vec<_>>();
        assert!((jensen_shannon(&exact(0.0), &exact(1.0)) - want).abs() < 1e-12);
        // The same from samples, along one axis; the other is equal in both. 20 × 20 bins and 200 000 points leave a bias
        // of about bins / 4 N per axis and a little lost shape.
        let points = |mean: f64, stream: u32| (0..200_000).map(|i| [normal(i, stream)[0] + mean, normal(i, stream)[1]]).collect::<Vec<_>>();
        let (a, b) = (points(0.0, 0), points(1.0, 1));
        let got = histogram_js(&a, &b, 20, None);
        assert!((got / want - 1.0).abs() < 0.03, "{got} for {want}");
        assert!(histogram_js(&a, &points(0.0, 2), 20, None) < 1e-3);
    }

    #[test]
    fn edges_belong_to_the_bin_above_and_the_last_to_the_last() {
        let grid = Grid::new([[0.0, 1.0], [0.0, 1.0]], 10);
        let cell = |x: f64| grid.counts(&[[x, 0.05]]).iter().position(|&c| c > 0.0).map(|k| k / 10);
        for (x, want) in
            [(0.0, Some(0)), (0.1, Some(1)), (0.3, Some(3)), (0.999, Some(9)), (1.0, Some(9)), (1.0 + 1e-12, None), (-1e-12, None)]
        {
            // 0.3 lies below the third edge 0.30000000000000004.
            let want = if x == 0.3 { Some(2) } else { want };
            assert_eq!(cell(x), want, "{x}");
        }
        assert_eq!(cell(f64::NAN), None);
        // A set at one point still has a histogram.
        assert_eq!(histogram_js(&[[1.0, 2.0]; 3], &[[1.0, 2.0]; 5], 8, None), 0.0);
        assert!(histogram_js(&[], &[], 8, None).is_nan());
        assert!(histogram_js(&[[0.0, 0.0]], &[], 8, None).is_nan());
    }

    #[test]
    fn divergences_as_published() {
        let Some(golden) = Golden::load() else { return };
        let (a, b) = (golden.points("angles_a"), golden.points("angles_b"));
        let pi = std::f64::consts::PI;
        let cut = Some([[-2.45, 1.5], [-1.05, 3.0]]);
        for (name, bins, limits) in
            [("js_bins64_range_of_data", 64, None), ("js_bins64_limits_pi", 64, Some([[-pi, pi]; 2])), ("js_bins100_limits_cut", 100, cut)]
        {
            close(histogram_js(&a, &b, bins, limits), golden.value(name), name);
            let grid = Grid::new(limits.unwrap_or_else(|| range_of(&[&a, &b]).unwrap()), bins);
            assert_eq!(grid.counts(&a), golden.numbers(&format!("{name}.counts_a")), "{name}");
            assert_eq!(grid.counts(&b), golden.numbers(&format!("{name}.counts_b")), "{name}");
        }
        let (a, b) = (golden.numbers("beads_a"), golden.numbers("beads_b"));
        close(pair_distance_js(&a, &b, 10, 1), golden.value("pwd_js_offset1_resolution0.1"), "pair distances");
        close(pair_distance_js(&a, &b, 10, 3), golden.value("pwd_js_offset3_resolution0.1"), "pair distances, offset 3");
    }

    #[test]
    fn pair_distances_of_few_beads() {
        let (near, far) = ([0.0, 0.0, 0.0, 0.15, 0.0, 0.0], [0.0, 0.0, 0.0, 0.55, 0.0, 0.0]);
        assert!(pair_distance_js(&near, &near, 2, 1).abs() < 1e-15);
        assert!((pair_distance_js(&near, &far, 2, 1) - std::f64::consts::LN_2).abs() < 1e-7);
        assert!(pair_distance_js(&near, &far, 2, 3).is_nan());
    }
}
