//! The 1-Wasserstein distance of two sets of numbers.

/// ∫ |F_a − F_b| dx of the empirical distribution functions: the mean way that samples of one set must be moved to become
/// the other, in the unit of the samples. NaN where a set is empty or a sample is NaN.
pub fn wasserstein1(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() || a.iter().chain(b).any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let sorted = |x: &[f64]| {
        let mut x = x.to_vec();
        x.sort_unstable_by(f64::total_cmp);
        x
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j) = (0, 0);
    let mut at = a[0].min(b[0]);
    let mut sum = 0.0;
    // From one sample to the next of either set.
    while i < a.len() || j < b.len() {
        let next = match (a.get(i), b.get(j)) {
            (Some(&x), Some(&y)) => x.min(y),
            (Some(&x), None) | (None, Some(&x)) => x,
            (None, None) => break,
        };
        sum += (i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs() * (next - at);
        at = next;
        while a.get(i).is_some_and(|&x| x <= at) {
            i += 1;
        }
        while b.get(j).is_some_and(|&x| x <= at) {
            j += 1;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::geometry::distance;
    use crate::analysis::golden::{Golden, close, normal};

    #[test]
    fn distances_of_gaussians_are_known() {
        let sample = |n: u64, mean: f64, sigma: f64, stream: u32| (0..n).map(|i| mean + sigma * normal(i, stream)[0]).collect::<Vec<_>>();
        // Shifted: the shift. Of other width: |σ − σ'| E|x| = |σ − σ'| √(2/π).
        let shifted = wasserstein1(&sample(200_000, 0.0, 1.0, 0), &sample(100_000, 0.7, 1.0, 1));
        assert!((shifted - 0.7).abs() < 0.015, "{shifted}");
        let wider = wasserstein1(&sample(200_000, 0.0, 1.0, 0), &sample(100_000, 0.0, 1.5, 1));
        let want = 0.5 * (2.0 / std::f64::consts::PI).sqrt();
        assert!((wider / want - 1.0).abs() < 0.03, "{wider} for {want}");
    }

    #[test]
    fn small_sets() {
        assert_eq!(wasserstein1(&[0.0], &[3.0]), 3.0);
        assert_eq!(wasserstein1(&[0.0, 1.0, 3.0], &[5.0, 6.0, 8.0]), 5.0);
        assert_eq!(wasserstein1(&[2.0, 0.0], &[0.0, 2.0, 2.0, 0.0]), 0.0);
        // ¼ of the weight moves by 1.
        assert_eq!(wasserstein1(&[0.0, 1.0], &[0.0, 0.0, 0.0, 1.0]), 0.25);
        assert!(wasserstein1(&[], &[1.0]).is_nan());
        assert!(wasserstein1(&[f64::NAN], &[1.0]).is_nan());
    }

    #[test]
    fn bond_length_as_published() {
        let Some(golden) = Golden::load() else { return };
        let bond = |name: &str| golden.numbers(name).chunks_exact(30).map(|x| distance(x, 0, 1)).collect::<Vec<_>>();
        close(wasserstein1(&bond("beads_a"), &bond("beads_b")), golden.value("bond01_wasserstein1"), "bond 0-1");
    }
}
