//! Averages of correlated samples with honest errors, a test of distributions, and the bootstrap.
//!
//! The error of an average follows from the integrated autocorrelation time τ = ½ + Σ ρ(t): N correlated samples are
//! worth N / 2τ independent ones. The sum is cut at the first lag M ≥ 5 τ(M) (A. D. Sokal, *Monte Carlo Methods in
//! Statistical Mechanics*, 1997), and the bias from subtracting the estimated mean is corrected to first order
//! (U. Wolff, Comput. Phys. Commun. 156, 143, 2004).

use scorefield_integrators::{Noise, Purpose};
use serde::Serialize;

/// The average of a time series with its error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BlockAverage {
    /// Mean of all samples; NaN without samples.
    pub mean: f64,
    /// Standard error of the mean; NaN where there are fewer than two samples.
    pub standard_error: f64,
    /// Number of independent samples that would give this error.
    pub effective_samples: f64,
    /// False where the correlation outlasts the series: the error is then a lower bound.
    pub converged: bool,
}

/// Average of one time series.
pub fn block_average(samples: &[f64]) -> BlockAverage {
    block_average_of(&[samples])
}

/// Average over several independent replicas of one process, which may have different lengths. Correlations are taken
/// about the common mean, so that replicas which never left their own basin show up as a long correlation, not as a
/// small error; where they outlast the replicas, the spread of the replicas' means gives the error instead.
pub fn block_average_of(replicas: &[&[f64]]) -> BlockAverage {
    let count: usize = replicas.iter().map(|r| r.len()).sum();
    if count == 0 {
        return BlockAverage { mean: f64::NAN, standard_error: f64::NAN, effective_samples: 0.0, converged: false };
    }
    let n = count as f64;
    let mean = replicas.iter().map(|r| r.iter().sum::<f64>()).sum::<f64>() / n;
    if count == 1 {
        return BlockAverage { mean, standard_error: f64::NAN, effective_samples: 1.0, converged: false };
    }
    let mut series: Vec<Vec<f64>> = replicas.iter().filter(|r| !r.is_empty()).map(|r| r.iter().map(|x| x - mean).collect()).collect();
    let variance = covariance(&series, 0);
    // Rounding alone gives a constant series a variance near (ε mean)².
    if variance <= (1e-14 * mean).powi(2) {
        return BlockAverage { mean, standard_error: 0.0, effective_samples: n, converged: true };
    }
    // Averaging neighbours in pairs leaves the variance of the mean as it is and halves τ: long correlations stay cheap.
    let tail = loop {
        match correlation_time(&series) {
            Window::Found { error_squared } => break Some(error_squared),
            Window::Long if series.iter().any(|s| s.len() > 2 * MAX_LAG) => series.iter_mut().for_each(halve),
            Window::Long => break None,
        }
    };
    let spread = spread_of_means(&series);
    let (error_squared, converged) = match (tail, spread) {
        (Some(e), _) => (e, true),
        // Fewer than four means say little about their own spread.
        (None, Some((e, true))) => (e, true),
        (None, Some((e, false))) => (e.max(variance / n), false),
        (None, None) => (variance, false),
    };
    let error_squared = error_squared.max(0.0);
    // Unbiased variance of one sample: the common mean took part of it away.
    let sample = variance + error_squared;
    BlockAverage {
        mean,
        standard_error: error_squared.sqrt(),
        effective_samples: if error_squared > 0.0 { sample / error_squared } else { n },
        converged,
    }
}

/// Longest lag that is summed before neighbours are averaged instead: bounds the work at `MAX_LAG` passes.
const MAX_LAG: usize = 256;
/// Lags up to this multiple of τ are summed; the tail beyond is e⁻⁵ for an exponential correlation.
const WINDOW: f64 = 5.0;

enum Window {
    Found { error_squared: f64 },
    Long,
}

/// Mean product of samples `lag` apart, over all replicas.
fn covariance(series: &[Vec<f64>], lag: usize) -> f64 {
    let (mut sum, mut pairs) = (0.0, 0usize);
    for s in series.iter().filter(|s| s.len() > lag) {
        sum += s.iter().zip(&s[lag..]).map(|(a, b)| a * b).sum::<f64>();
        pairs += s.len() - lag;
    }
    if pairs == 0 { 0.0 } else { sum / pairs as f64 }
}

fn correlation_time(series: &[Vec<f64>]) -> Window {
    let n: usize = series.iter().map(Vec::len).sum();
    let longest = series.iter().map(Vec::len).max().unwrap_or(0);
    let variance = covariance(series, 0);
    let mut tau = 0.5;
    for lag in 1..longest.min(MAX_LAG) {
        tau += covariance(series, lag) / variance;
        // At least WINDOW lags, for the sum of an anticorrelated series swings around its limit. A window longer than a
        // third of the series averages over too few independent pairs.
        if lag as f64 >= WINDOW * tau.max(1.0) && 3 * lag < longest.max(4) {
            // Anticorrelated series may be worth more than N samples, but not without bound.
            let tau = tau.max(0.5 / longest as f64);
            let n = n as f64;
            let bias = 1.0 + (2 * lag + 1) as f64 / n;
            return Window::Found { error_squared: 2.0 * tau * variance / n * bias };
        }
    }
    Window::Long
}

fn halve(series: &mut Vec<f64>) {
    let half = series.len() / 2;
    for i in 0..half {
        series[i] = 0.5 * (series[2 * i] + series[2 * i + 1]);
    }
    series.truncate(half);
}

/// Squared error of the common mean from the replicas' own means, and whether there are enough of them to trust it.
fn spread_of_means(series: &[Vec<f64>]) -> Option<(f64, bool)> {
    let n: usize = series.iter().map(Vec::len).sum();
    let r = series.len() as f64;
    if series.len() < 2 {
        return None;
    }
    // Replicas weigh as many samples as they have.
    let sum: f64 = series.iter().map(|s| (s.iter().sum::<f64>() / n as f64).powi(2)).sum();
    Some((sum * r / (r - 1.0), series.len() >= 8))
}

/// Result of a Kolmogorov–Smirnov test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KolmogorovSmirnov {
    /// Largest distance between the empirical and the expected distribution function.
    pub statistic: f64,
    /// Probability of a larger distance by chance.
    pub p_value: f64,
}

/// Tests independent `samples` against the distribution function `cdf`; sorts `samples`. The p-value uses the asymptotic
/// law with M. A. Stephens' correction for finite samples (J. R. Stat. Soc. B 32, 115, 1970).
pub fn kolmogorov_smirnov(samples: &mut [f64], cdf: impl Fn(f64) -> f64) -> KolmogorovSmirnov {
    samples.sort_by(f64::total_cmp);
    let n = samples.len() as f64;
    let mut statistic = 0.0f64;
    for (i, &x) in samples.iter().enumerate() {
        let expected = cdf(x);
        statistic = statistic.max(expected - i as f64 / n).max((i + 1) as f64 / n - expected);
    }
    let root = n.sqrt();
    let z = (root + 0.12 + 0.11 / root) * statistic;
    KolmogorovSmirnov { statistic, p_value: kolmogorov_tail(z) }
}

/// Probability that Kolmogorov's statistic exceeds `z`.
fn kolmogorov_tail(z: f64) -> f64 {
    if z < 0.2 {
        // The alternating series converges slowly here, and its value is 1 to within 1e-12.
        return 1.0;
    }
    let mut sum = 0.0;
    for k in 1..=100u32 {
        let term = (-2.0 * f64::from(k).powi(2) * z * z).exp();
        sum += if k % 2 == 1 { term } else { -term };
        if term < 1e-16 {
            break;
        }
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

/// Standard error of `statistic` by the bootstrap: each of `resamples` evaluations sees how often each of `items`
/// independent items was drawn, with replacement. The same seed gives the same error.
pub fn bootstrap(items: usize, resamples: usize, seed: u64, mut statistic: impl FnMut(&[u32]) -> f64) -> f64 {
    if items < 2 || resamples < 2 {
        return f64::NAN;
    }
    let noise = Noise::new(seed);
    let mut drawn = vec![0u32; items];
    let (mut mean, mut squares) = (0.0, 0.0);
    for r in 0..resamples {
        drawn.fill(0);
        for i in 0..items {
            let u = noise.uniform(i as u32, 0, r as u64, Purpose::Bootstrap);
            drawn[((u * items as f64) as usize).min(items - 1)] += 1;
        }
        // Welford's update: no cancellation for statistics far from zero.
        let x = statistic(&drawn);
        let delta = x - mean;
        mean += delta / (r + 1) as f64;
        squares += delta * (x - mean);
    }
    (squares / (resamples - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(i: usize, replica: u32) -> f64 {
        Noise::new(7).normals(i as u32, replica, 0, Purpose::Thermostat)[0]
    }

    /// Stationary AR(1) of unit variance: τ = ½ (1 + φ) / (1 − φ) exactly.
    fn autoregressive(phi: f64, n: usize, replica: u32) -> Vec<f64> {
        let mut x = normal(n, replica);
        (0..n)
            .map(|i| {
                x = phi * x + (1.0 - phi * phi).sqrt() * normal(i, replica);
                x
            })
            .collect()
    }

    #[test]
    fn errors_of_autoregressive_series_are_known() {
        for (phi, n) in [(-0.5, 20_000), (0.0, 10_000), (0.5, 20_000), (0.9, 50_000), (0.99, 200_000), (0.999, 1_000_000)] {
            let tau = 0.5 * (1.0 + phi) / (1.0 - phi);
            let exact = (2.0 * tau / n as f64).sqrt();
            let got = block_average(&autoregressive(phi, n, 0));
            assert!(got.converged, "{phi}");
            assert!((got.standard_error / exact - 1.0).abs() < 0.15, "φ = {phi}: {} for {exact}", got.standard_error);
            assert!((got.effective_samples / (n as f64 / (2.0 * tau)) - 1.0).abs() < 0.35, "φ = {phi}: {got:?}");
            assert!(got.mean.abs() < 4.0 * exact, "φ = {phi}: mean {}", got.mean);
        }
    }

    #[test]
    fn errors_cover_the_truth() {
        // Many experiments: (mean / error) must have unit variance.
        let z: Vec<f64> = (0..400)
            .map(|r| {
                let a = block_average(&autoregressive(0.8, 2000, r));
                a.mean / a.standard_error
            })
            .collect();
        let variance = z.iter().map(|z| z * z).sum::<f64>() / z.len() as f64;
        assert!((variance - 1.0).abs() < 0.25, "{variance}");
    }

    #[test]
    fn replicas_add_up() {
        let series: Vec<_> = (0..16).map(|r| autoregressive(0.9, 4000, r)).collect();
        let views: Vec<&[f64]> = series.iter().map(Vec::as_slice).collect();
        let exact = (19.0f64 / 64_000.0).sqrt();
        let got = block_average_of(&views);
        assert!((got.standard_error / exact - 1.0).abs() < 0.15, "{got:?} {exact}");
    }

    #[test]
    fn replicas_stuck_in_basins_are_no_small_error() {
        // 16 replicas at ±1 for ever, a little noise on top: the error is that of 16 independent samples.
        let series: Vec<Vec<f64>> =
            (0..16u32).map(|r| (0..500).map(|i| if r % 2 == 0 { 1.0 } else { -1.0 } + 0.1 * normal(i, r)).collect()).collect();
        let views: Vec<&[f64]> = series.iter().map(Vec::as_slice).collect();
        let got = block_average_of(&views);
        assert!((got.standard_error - 0.25).abs() < 0.05, "{got:?}");
        assert!((got.effective_samples - 16.0).abs() < 4.0, "{got:?}");
    }

    #[test]
    fn short_and_constant_series() {
        assert!(block_average(&[]).mean.is_nan());
        let one = block_average(&[3.0]);
        assert!(one.mean == 3.0 && one.standard_error.is_nan());
        let same = block_average(&[0.1; 50]);
        assert!((same.mean - 0.1).abs() < 1e-15 && same.standard_error == 0.0 && same.effective_samples == 50.0);
        // A drift is one long correlation: never an error of σ/√N.
        let drift: Vec<f64> = (0..1000).map(f64::from).collect();
        let got = block_average(&drift);
        assert!(!got.converged && got.standard_error > 200.0, "{got:?}");
    }

    #[test]
    fn kolmogorov_smirnov_tells_distributions_apart() {
        let uniform: Vec<f64> = (0..5000).map(|i| Noise::new(1).uniform(i, 0, 0, Purpose::Bootstrap)).collect();
        let same = kolmogorov_smirnov(&mut uniform.clone(), |x| x.clamp(0.0, 1.0));
        assert!(same.p_value > 0.01, "{same:?}");
        let other = kolmogorov_smirnov(&mut uniform.clone(), |x| x.clamp(0.0, 1.0).powf(1.1));
        assert!(other.p_value < 1e-4, "{other:?}");
        // Critical values of the asymptotic law (Smirnov's table).
        assert!((kolmogorov_tail(1.3581) - 0.05).abs() < 1e-4);
        assert!((kolmogorov_tail(1.6276) - 0.01).abs() < 1e-4);
    }

    #[test]
    fn bootstrap_of_a_mean() {
        let x: Vec<f64> = (0..400).map(|i| normal(i, 3)).collect();
        let mean = |w: &[u32]| x.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum::<f64>() / x.len() as f64;
        let error = bootstrap(x.len(), 400, 5, mean);
        assert!((error / 0.05 - 1.0).abs() < 0.2, "{error}");
        assert_eq!(error, bootstrap(x.len(), 400, 5, mean));
    }
}
