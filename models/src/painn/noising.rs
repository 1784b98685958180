//! Training rows of a pseudo-force field: a minimum, a noise level, the noisy structure, and the way back.

use super::assignment::assign;
use crate::superpose::turn;
use scorefield_integrators::{Noise, Purpose};
use serde::{Deserialize, Serialize};

/// Distribution of noise levels σ (Å): log-normal, mixed with log-uniform, clipped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NoiseSettings {
    /// Mean of ln σ.
    pub mean: f64,
    /// Standard deviation of ln σ.
    pub deviation: f64,
    /// Part of the rows whose ln σ is uniform instead.
    pub uniform: f64,
    /// Smallest σ.
    pub smallest: f64,
    /// Largest σ.
    pub largest: f64,
    /// Exchange atoms of one element so that displacements are least.
    pub permute: bool,
    /// Turn the minimum onto the noisy structure where σ is below this (Å): a network that turns with its input cannot know the
    /// rotation in the noise. 0 never turns.
    pub turn_below: f64,
    /// Bound on the weight min(1/σ², …).
    pub largest_weight: f64,
}

impl Default for NoiseSettings {
    fn default() -> Self {
        NoiseSettings {
            mean: -1.2,
            deviation: 1.2,
            uniform: 0.1,
            smallest: 0.01,
            largest: 30.0,
            permute: true,
            turn_below: 0.0,
            largest_weight: 1000.0,
        }
    }
}

impl NoiseSettings {
    /// Whether the settings make sense.
    pub fn is_valid(&self) -> bool {
        self.mean.is_finite()
            && self.deviation >= 0.0
            && self.deviation.is_finite()
            && (0.0..=1.0).contains(&self.uniform)
            && self.smallest > 0.0
            && self.largest >= self.smallest
            && self.largest.is_finite()
            && self.turn_below >= 0.0
            && self.largest_weight > 0.0
    }

    /// σ of row `row`.
    pub(super) fn sigma(&self, noise: Noise, row: u32, step: u64) -> f64 {
        let (low, high) = (self.smallest.ln(), self.largest.ln());
        let choice = noise.uniform(0, row, step, Purpose::TrainingPlace);
        let ln = if choice < self.uniform {
            low + (high - low) * choice / self.uniform
        } else {
            self.mean + self.deviation * noise.normals(1, row, step, Purpose::TrainingPlace)[0]
        };
        // Rounding must not lead out again.
        ln.exp().clamp(self.smallest, self.largest)
    }

    /// Weight of a row in the loss.
    pub(super) fn weight(&self, sigma: f64) -> f64 {
        (1.0 / (sigma * sigma)).min(self.largest_weight)
    }
}

/// One row: the noisy structure and the displacements back to the minimum, both without a net part (Å).
#[derive(Default)]
pub(super) struct Row {
    pub(super) sigma: f64,
    pub(super) x: Vec<f64>,
    pub(super) label: Vec<f64>,
    clean: Vec<f64>,
    cost: Vec<f64>,
    atoms: Vec<usize>,
    to: Vec<usize>,
    moved: Vec<f64>,
}

impl Row {
    /// Makes row `row` of `step` from a minimum.
    pub(super) fn fill(&mut self, settings: &NoiseSettings, types: &[u32], minimum: &[f32], noise: Noise, row: u32, step: u64) {
        self.sigma = settings.sigma(noise, row, step);
        self.clean.clear();
        self.clean.extend(minimum.iter().map(|&x| f64::from(x)));
        centre(&mut self.clean);
        self.x.clear();
        self.x.extend((0..types.len()).flat_map(|i| noise.normals(i as u32, row, step, Purpose::TrainingNoise)));
        centre(&mut self.x);
        for (x, &c) in self.x.iter_mut().zip(&self.clean) {
            *x = c + self.sigma * *x;
        }
        if settings.permute {
            self.permute(types);
        }
        if self.sigma < settings.turn_below {
            turn(&mut self.clean, &self.x);
        }
        self.label.clear();
        self.label.extend(self.clean.iter().zip(&self.x).map(|(c, x)| c - x));
    }

    /// Gives the noisy atoms of each element to those of the minimum, so that squared displacements are least.
    fn permute(&mut self, types: &[u32]) {
        let Row { x, clean, cost, atoms, to, moved, .. } = self;
        let mut done = [0u64; 2];
        for &element in types {
            let bit = (element as usize / 64 % 2, 1u64 << (element % 64));
            if done[bit.0] & bit.1 != 0 {
                continue;
            }
            done[bit.0] |= bit.1;
            atoms.clear();
            atoms.extend((0..types.len()).filter(|&i| types[i] == element));
            let n = atoms.len();
            if n < 2 || in_place(x, clean, atoms) {
                continue;
            }
            cost.clear();
            cost.extend(atoms.iter().flat_map(|&i| atoms.iter().map(move |&j| (i, j))).map(|(i, j)| square(&x[3 * i..], &clean[3 * j..])));
            assign(n, cost, to);
            moved.clear();
            moved.extend(atoms.iter().flat_map(|&i| [x[3 * i], x[3 * i + 1], x[3 * i + 2]]));
            for (k, &slot) in to.iter().enumerate() {
                let i = atoms[slot];
                x[3 * i..3 * i + 3].copy_from_slice(&moved[3 * k..3 * k + 3]);
            }
        }
    }
}

fn square(a: &[f64], b: &[f64]) -> f64 {
    (0..3).map(|k| (a[k] - b[k]).powi(2)).sum()
}

/// Whether no atom has moved by half the distance of two: then every one is nearest to its own place.
fn in_place(x: &[f64], clean: &[f64], atoms: &[usize]) -> bool {
    let moved = atoms.iter().map(|&i| square(&x[3 * i..], &clean[3 * i..])).fold(0.0, f64::max);
    atoms.iter().enumerate().all(|(k, &i)| atoms[..k].iter().all(|&j| square(&clean[3 * i..], &clean[3 * j..]) > 4.0 * moved))
}

/// Takes the mean position away.
pub(super) fn centre(x: &mut [f64]) {
    let n = (x.len() / 3).max(1) as f64;
    for k in 0..3 {
        let mean = x.iter().skip(k).step_by(3).sum::<f64>() / n;
        x.iter_mut().skip(k).step_by(3).for_each(|x| *x -= mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [u32; 6] = [6, 1, 1, 1, 8, 1];

    fn minimum() -> Vec<f32> {
        vec![0.0, 0.0, 0.0, 0.63, 0.63, 0.63, -0.63, -0.63, 0.63, -0.63, 0.63, -0.63, 0.8, -0.8, -0.8, 1.5, -1.4, -0.5]
    }

    fn row(settings: &NoiseSettings, k: u32) -> Row {
        let mut row = Row::default();
        row.fill(settings, &TYPES, &minimum(), Noise::new(1), k, 3);
        row
    }

    #[test]
    fn labels_lead_back_and_have_no_net_part() {
        let settings = NoiseSettings { permute: false, ..NoiseSettings::default() };
        let mut clean: Vec<f64> = minimum().iter().map(|&x| f64::from(x)).collect();
        centre(&mut clean);
        let mut sums = 0.0;
        for k in 0..2000 {
            let row = row(&settings, k);
            for ((x, l), c) in row.x.iter().zip(&row.label).zip(&clean) {
                assert!((x + l - c).abs() < 1e-12);
            }
            assert!((0..3).all(|k| row.label.iter().skip(k).step_by(3).sum::<f64>().abs() < 1e-9));
            assert!(row.sigma >= 0.01 && row.sigma <= 30.0);
            sums += row.label.iter().map(|l| l * l).sum::<f64>() / (row.sigma * row.sigma);
        }
        // Without the mean there are 3 (N − 1) normal numbers.
        assert!((sums / 2000.0 - 15.0).abs() < 4.0 * (2.0 * 15.0f64 / 2000.0).sqrt(), "{}", sums / 2000.0);
    }

    #[test]
    fn alignment_shortens_the_way_and_keeps_the_atoms() {
        let plain = NoiseSettings { permute: false, mean: 0.5, ..NoiseSettings::default() };
        let permuted = NoiseSettings { permute: true, ..plain };
        let turned = NoiseSettings { turn_below: 100.0, ..permuted };
        let length = |r: &Row| r.label.iter().map(|l| l * l).sum::<f64>();
        let mut shorter = 0;
        for k in 0..300 {
            let (a, b, c) = (row(&plain, k), row(&permuted, k), row(&turned, k));
            assert!(length(&b) <= length(&a) + 1e-12 && length(&c) <= length(&b) + 1e-9, "{k}");
            shorter += usize::from(length(&b) < length(&a) - 1e-9);
            for element in [1, 6, 8] {
                let of = |r: &Row| {
                    let mut x: Vec<[i64; 3]> =
                        (0..6).filter(|&i| TYPES[i] == element).map(|i| [0, 1, 2].map(|k| (r.x[3 * i + k] * 1e6) as i64)).collect();
                    x.sort_unstable();
                    x
                };
                assert_eq!(of(&a), of(&b));
            }
            // A turn leaves the internal distances of the minimum.
            let back: Vec<f64> = c.x.iter().zip(&c.label).map(|(x, l)| x + l).collect();
            assert!((square(&back, &back[3..]) - 3.0 * 0.63f64.powi(2)).abs() < 1e-6);
        }
        assert!(shorter > 50, "{shorter}");
    }
}
