//! Free energies from biased samples: histograms of windows joined (WHAM), and histograms with weights.

/// Most rounds of the self-consistent equations.
const ROUNDS: usize = 200_000;
/// They end where no window's free energy changes by more than this, in kT.
const PRECISION: f64 = 1e-9;

/// Equal bins along one variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bins {
    /// Lower edge of the first.
    pub low: f64,
    /// Width of each.
    pub width: f64,
    /// Their number.
    pub count: usize,
}

impl Bins {
    /// `count` bins from `low` to `high`.
    pub fn new(low: f64, high: f64, count: usize) -> Self {
        Bins { low, width: (high - low) / count as f64, count }
    }

    /// Middle of bin `i`.
    pub fn centre(&self, i: usize) -> f64 {
        self.low + (i as f64 + 0.5) * self.width
    }

    /// The bin that holds `x`.
    pub fn of(&self, x: f64) -> Option<usize> {
        let t = (x - self.low) / self.width;
        // The upper edge of the last bin belongs to it.
        if t == self.count as f64 {
            return Some(self.count - 1);
        }
        (t >= 0.0 && t < self.count as f64).then_some(t as usize)
    }
}

/// Free energy in kT of each bin (`NaN` where nothing was seen; the lowest is 0) from the samples of windows with biases
/// `bias(window, s)` in kT: the weighted histogram analysis method (S. Kumar et al., J. Comput. Chem. 13, 1011, 1992).
pub fn wham(samples: &[Vec<f64>], bias: impl Fn(usize, f64) -> f64, bins: &Bins) -> Vec<f64> {
    let mut histogram = vec![0.0; bins.count];
    for &s in samples.iter().flatten() {
        if let Some(i) = bins.of(s) {
            histogram[i] += 1.0;
        }
    }
    let seen: Vec<usize> = (0..bins.count).filter(|&i| histogram[i] > 0.0).collect();
    // Windows are compared within the bins; what lies beyond says nothing there.
    let counts: Vec<f64> = samples.iter().map(|s| s.iter().filter(|&&x| bins.of(x).is_some()).count() as f64).collect();
    // Boltzmann factors of every window's bias in every bin that was seen.
    let factors: Vec<Vec<f64>> = (0..samples.len()).map(|w| seen.iter().map(|&i| (-bias(w, bins.centre(i))).exp()).collect()).collect();
    let mut free = vec![0.0f64; samples.len()];
    let mut probability = vec![0.0; seen.len()];
    for _ in 0..ROUNDS {
        for (k, &i) in seen.iter().enumerate() {
            let sum: f64 = (0..samples.len()).map(|w| counts[w] * free[w].exp() * factors[w][k]).sum();
            probability[k] = histogram[i] / sum;
        }
        let mut change = 0.0f64;
        for w in (0..samples.len()).filter(|&w| counts[w] > 0.0) {
            let new = -factors[w].iter().zip(&probability).map(|(f, p)| f * p).sum::<f64>().ln();
            change = change.max((new - free[w]).abs());
            free[w] = new;
        }
        let first = free[0];
        free.iter_mut().for_each(|f| *f -= first);
        if change < PRECISION {
            break;
        }
    }
    let mut all = vec![0.0; bins.count];
    seen.iter().zip(probability).for_each(|(&i, p)| all[i] = p);
    from_weights(&all)
}

/// Free energy in kT of bins with these weights; the lowest is 0, and bins without weight are `NaN`.
pub fn from_weights(weights: &[f64]) -> Vec<f64> {
    let most = weights.iter().copied().fold(0.0, f64::max);
    weights.iter().map(|&w| if w > 0.0 { (most / w).ln() } else { f64::NAN }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::{Noise, Purpose};

    /// Windows on a harmonic potential have Gaussian samples; joined they give the potential back.
    #[test]
    fn windows_give_the_potential_back() {
        let (k, spring) = (2.0, 20.0);
        let centres: Vec<f64> = (0..9).map(|w| -2.0 + 0.5 * w as f64).collect();
        let samples: Vec<Vec<f64>> = (0..9)
            .map(|w| {
                let (mean, deviation) = (spring * centres[w] / (k + spring), (k + spring).powf(-0.5));
                (0..20_000).map(|i| mean + deviation * Noise::new(1).normals(i, w as u32, 0, Purpose::Bootstrap)[0]).collect()
            })
            .collect();
        let bins = Bins::new(-1.8, 1.8, 36);
        let free = wham(&samples, |w, s| 0.5 * spring * (s - centres[w]).powi(2), &bins);
        let exact: Vec<f64> = (0..36).map(|i| 0.5 * k * bins.centre(i).powi(2)).collect();
        let mean = free.iter().zip(&exact).map(|(f, e)| f - e).sum::<f64>() / 36.0;
        for (i, (f, e)) in free.iter().zip(&exact).enumerate() {
            assert!((f - e - mean).abs() < 0.12, "bin {i}: {f} for {e}");
        }
    }

    #[test]
    fn weights_and_bins() {
        let free = from_weights(&[1.0, 0.0, std::f64::consts::E]);
        assert!((free[0] - 1.0).abs() < 1e-15 && free[1].is_nan() && free[2] == 0.0);
        let bins = Bins::new(-1.0, 1.0, 4);
        assert_eq!(
            [-1.0, -0.4, 0.99, 1.0, 1.1, -1.1, f64::NAN].map(|x| bins.of(x)),
            [Some(0), Some(1), Some(3), Some(3), None, None, None]
        );
        assert_eq!(bins.centre(0), -0.75);
    }
}
