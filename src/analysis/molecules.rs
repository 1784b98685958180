//! Sets of molecules against each other: how far the distributions of a number per molecule are apart.

use super::divergence::{edges_below, jensen_shannon, linspace};
use super::statistics::bootstrap;

/// Bins of the histograms, as in Kahouli et al. (arXiv 2605.19050).
pub const BINS: usize = 100;
/// Evaluations of the bootstrap.
const RESAMPLES: usize = 200;

/// Two histograms over the range of both sets together.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Edges of the bins `[BINS + 1]`.
    pub edges: Vec<f64>,
    /// Shares of the samples `[BINS]`.
    pub samples: Vec<f64>,
    /// Shares of the reference `[BINS]`.
    pub reference: Vec<f64>,
    /// Jensen–Shannon divergence in nats.
    pub divergence: f64,
    /// Its standard error, by drawing both sets anew.
    pub error: f64,
    /// What two sets of these sizes from one distribution have on average.
    pub floor: f64,
}

/// Compares a number per molecule of `samples` with that of `reference`; `None` where a set is empty or no number is finite.
pub fn compare(samples: &[f64], reference: &[f64], seed: u64) -> Option<Comparison> {
    let all = || samples.iter().chain(reference).copied();
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if samples.is_empty() || reference.is_empty() || !low.is_finite() || !high.is_finite() {
        return None;
    }
    // Where all numbers are one, it has a bin of its own.
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let edges = linspace(low, high, BINS + 1);
    let bins =
        |values: &[f64]| -> Vec<usize> { values.iter().map(|&x| edges_below(&edges, x).map_or(0, |k| k.clamp(1, BINS) - 1)).collect() };
    let (a, b) = (bins(samples), bins(reference));
    let count = |bins: &[usize], times: Option<&[u32]>| {
        let mut counts = vec![0.0; BINS];
        bins.iter().enumerate().for_each(|(i, &k)| counts[k] += times.map_or(1.0, |t| f64::from(t[i])));
        counts
    };
    let (p, q) = (count(&a, None), count(&b, None));
    // Both sets are drawn at once: item i < n of the samples, the rest of the reference, each part by itself.
    let error_of = |bins: &[usize], other: &[f64], seed: u64| {
        bootstrap(bins.len(), RESAMPLES, seed, |times| jensen_shannon(&count(bins, Some(times)), other))
    };
    let (of_samples, of_reference) = (error_of(&a, &q, seed), error_of(&b, &p, seed.wrapping_add(1)));
    let share = |counts: &[f64], n: usize| counts.iter().map(|c| c / n as f64).collect();
    // Bins that neither set ever hits are no degrees of freedom.
    let used = p.iter().zip(&q).filter(|(p, q)| **p > 0.0 || **q > 0.0).count();
    Some(Comparison {
        divergence: jensen_shannon(&p, &q),
        error: of_samples.hypot(of_reference),
        floor: (used - 1) as f64 * (1.0 / a.len() as f64 + 1.0 / b.len() as f64) / 8.0,
        samples: share(&p, a.len()),
        reference: share(&q, b.len()),
        edges,
    })
}

/// A share of `n` things and its standard error.
pub fn share(count: usize, n: usize) -> (f64, f64) {
    if n == 0 {
        return (f64::NAN, f64::NAN);
    }
    let p = count as f64 / n as f64;
    (p, (p * (1.0 - p) / n as f64).sqrt())
}

/// Energies less what the elements alone explain: `constants [E]` per atom of each of `elements` are fitted to the
/// reference by least squares. `compositions [M, E]` counts atoms. Without it, sizes of molecules would hide everything.
pub fn element_constants(energies: &[f64], compositions: &[Vec<f64>]) -> Option<Vec<f64>> {
    let e = compositions.first()?.len();
    let matrix = nalgebra::DMatrix::from_fn(compositions.len(), e, |i, j| compositions[i][j]);
    let right = nalgebra::DVector::from_column_slice(energies);
    let solution = matrix.svd(true, true).solve(&right, 1e-9).ok()?;
    Some(solution.iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_are_at_the_floor_and_shifted_ones_are_not() {
        let noise = scorefield_integrators::Noise::new(3);
        let set = |n: usize, stream: u32, shift: f64| -> Vec<f64> {
            (0..n).map(|i| noise.uniform(i as u32, stream, 0, scorefield_integrators::Purpose::Bootstrap) + shift).collect()
        };
        let same = compare(&set(4000, 1, 0.0), &set(8000, 2, 0.0), 7).unwrap();
        assert!((same.floor - 99.0 * (1.0 / 4000.0 + 1.0 / 8000.0) / 8.0).abs() < 1e-12);
        assert!((same.divergence / same.floor - 1.0).abs() < 0.35, "{} at {}", same.divergence, same.floor);
        assert!((same.samples.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // Uniform on [0, 1] and on [0.5, 1.5]: half of each is alone, JS = ln 2 / 2.
        let shifted = compare(&set(4000, 1, 0.0), &set(8000, 2, 0.5), 7).unwrap();
        assert!((shifted.divergence - 0.5 * std::f64::consts::LN_2).abs() < 4.0 * shifted.error + 0.01, "{}", shifted.divergence);
        assert!(shifted.error > 1e-4 && shifted.error < 0.02, "{}", shifted.error);
        assert!(compare(&[], &[1.0], 0).is_none());
        assert_eq!(compare(&[2.0; 5], &[2.0; 9], 0).unwrap().divergence, 0.0);
    }

    #[test]
    fn constants_of_elements_are_found() {
        let compositions: Vec<Vec<f64>> = (0..40).map(|i| vec![f64::from(i % 7), f64::from(i % 5 + 1), f64::from(i % 3)]).collect();
        let energies: Vec<f64> = compositions.iter().map(|c| -0.5 * c[0] - 38.0 * c[1] - 75.0 * c[2]).collect();
        let found = element_constants(&energies, &compositions).unwrap();
        assert!(found.iter().zip([-0.5, -38.0, -75.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        assert_eq!(share(25, 100), (0.25, 0.25f64.sqrt() * 0.75f64.sqrt() / 10.0));
    }
}
