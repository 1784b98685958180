//! Training rows: a conformer, a time, the structure at that time.

use super::context::{GraphContext, centre};
use super::process::Path;
use nalgebra::{Quaternion, UnitQuaternion, Vector3};
use scorefield_integrators::{Noise, Purpose};
use serde::{Deserialize, Serialize};

/// Added to an atom's number for its second noise.
const SECOND: u32 = 1 << 24;

/// Distribution of times, and weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TimeSettings {
    /// 98 % of the times from Beta(1.9, 1), which is denser towards the data; uniform without.
    pub beta: bool,
    /// Part of the rows at t = 1, where the network becomes the denoiser of noise γ whatever the prior.
    pub at_data: f64,
    /// Weights are `1/(1 − min(t, bound))²`; 0 gives all rows the same.
    pub weight_bound: f64,
    /// Turn every conformer at random.
    pub rotate: bool,
    /// Part of the rows that networks with self-conditioning see with a first prediction of their own.
    #[serde(skip_serializing_if = "is_half")]
    pub self_conditioned: f64,
    /// Part of the rows that networks with guidance see without their graph.
    #[serde(skip_serializing_if = "is_tenth")]
    pub without_graph: f64,
}

fn is_half(x: &f64) -> bool {
    *x == 0.5
}

fn is_tenth(x: &f64) -> bool {
    *x == 0.1
}

impl Default for TimeSettings {
    /// As published.
    fn default() -> Self {
        TimeSettings { beta: false, at_data: 0.0, weight_bound: 0.9, rotate: true, self_conditioned: 0.5, without_graph: 0.1 }
    }
}

impl TimeSettings {
    /// Whether the settings make sense.
    pub fn is_valid(&self) -> bool {
        [self.at_data, self.self_conditioned, self.without_graph].iter().all(|part| (0.0..=1.0).contains(part))
            && (0.0..1.0).contains(&self.weight_bound)
    }

    /// Time of row `row`.
    fn time(&self, noise: Noise, row: u32, step: u64) -> f64 {
        let uniform = |k: u32| noise.uniform(k, row, step, Purpose::TrainingPlace);
        if uniform(0) < self.at_data {
            return 1.0;
        }
        // The distribution function of Beta(a, 1) is t^a.
        if self.beta && uniform(1) < 0.98 { uniform(2).powf(1.0 / 1.9) } else { uniform(2) }
    }

    /// Weight of a row in the loss.
    pub(super) fn weight(&self, t: f64) -> f64 {
        (1.0 - t.min(self.weight_bound)).powi(-2)
    }
}

/// One row; lengths in Å, all centred.
#[derive(Default)]
pub(super) struct Row {
    pub(super) time: f64,
    /// The conformer that is to be found.
    pub(super) clean: Vec<f64>,
    /// The structure that the network sees.
    pub(super) x: Vec<f64>,
    /// The network sees a first prediction of its own, if it can.
    pub(super) self_conditioned: bool,
    /// The network does not see the graph, if it can do without.
    pub(super) without_graph: bool,
    xi: Vec<f64>,
    z: Vec<f64>,
}

impl Row {
    /// Makes row `row` of `step` from a conformer `[N, 3]`.
    pub(super) fn fill(
        &mut self,
        (settings, path): (&TimeSettings, &Path),
        context: &GraphContext,
        conformer: &[f32],
        (noise, row, step): (Noise, u32, u64),
    ) {
        self.time = settings.time(noise, row, step);
        let chosen = |k: u32, part: f64| noise.uniform(k, row, step, Purpose::TrainingPlace) < part;
        self.self_conditioned = chosen(5, settings.self_conditioned);
        self.without_graph = chosen(6, settings.without_graph);
        self.clean.clear();
        self.clean.extend(conformer.iter().map(|&x| f64::from(x)));
        centre(&mut self.clean);
        if settings.rotate {
            let turn = rotation(noise, row, step);
            for x in self.clean.chunks_exact_mut(3) {
                let turned = turn * Vector3::new(x[0], x[1], x[2]);
                x.copy_from_slice(turned.as_slice());
            }
        }
        let n = context.len() as u32;
        let normals = |first: u32| (0..n).flat_map(move |i| noise.normals(first + i, row, step, Purpose::TrainingNoise));
        self.xi.clear();
        self.xi.extend(normals(0));
        self.z.clear();
        self.z.extend(normals(SECOND));
        self.x.resize(self.clean.len(), 0.0);
        path.interpolate(context, self.time, &self.clean, &self.xi, &mut self.z, &mut self.x);
    }
}

/// A random rotation, uniform over all: four normal numbers are a direction in four dimensions.
fn rotation(noise: Noise, row: u32, step: u64) -> UnitQuaternion<f64> {
    let [i, j, k] = noise.normals(3, row, step, Purpose::TrainingPlace);
    let [w, ..] = noise.normals(4, row, step, Purpose::TrainingPlace);
    UnitQuaternion::from_quaternion(Quaternion::new(w, i, j, k))
}

#[cfg(test)]
mod tests {
    use super::super::golden::context;
    use super::super::process::Prior;
    use super::*;
    use crate::molecule::Vocabulary;

    fn rows(settings: TimeSettings, path: Path, count: u32) -> Vec<Row> {
        let context = context("O", Vocabulary::Qm9);
        let water = [0.0, 0.0, 0.0, 0.96, 0.0, 0.0, -0.24, 0.93, 0.0];
        (0..count)
            .map(|k| {
                let mut row = Row::default();
                row.fill((&settings, &path), &context, &water, (Noise::new(1), k, 5));
                row
            })
            .collect()
    }

    #[test]
    fn times_have_their_distribution() {
        let mean = |settings: TimeSettings| rows(settings, Path::default(), 4000).iter().map(|r| r.time).sum::<f64>() / 4000.0;
        let plain = TimeSettings::default();
        // Standard errors are below 0.005.
        assert!((mean(plain) - 0.5).abs() < 0.02);
        assert!((mean(TimeSettings { beta: true, ..plain }) - (0.98 * 1.9 / 2.9 + 0.01)).abs() < 0.02);
        let part = |of: fn(&Row) -> bool| rows(plain, Path::default(), 4000).iter().filter(|r| of(r)).count() as f64 / 4000.0;
        assert!((part(|r| r.self_conditioned) - 0.5).abs() < 0.03 && (part(|r| r.without_graph) - 0.1).abs() < 0.02);
        assert!((mean(TimeSettings { at_data: 0.5, ..plain }) - 0.75).abs() < 0.03);
        assert_eq!(plain.weight(0.95), plain.weight(0.9));
        assert!((plain.weight(0.5) - 4.0).abs() < 1e-12 && TimeSettings { weight_bound: 0.0, ..plain }.weight(0.7) == 1.0);
    }

    #[test]
    fn rows_are_what_the_path_says() {
        let path = Path { prior: Prior::Gaussian, noise: 0.3, aligned: false };
        let rows = rows(TimeSettings::default(), path, 4000);
        let (mut ratio, mut directions) = (0.0, [0.0; 3]);
        for row in &rows {
            let variance = (1.0 - row.time).powi(2) + 0.09;
            let square: f64 = row.x.iter().zip(&row.clean).map(|(x, c)| (x - row.time * c).powi(2)).sum();
            // Without the mean there are 3 (N − 1) normal numbers.
            ratio += square / variance / 6.0;
            (0..3).for_each(|k| directions[k] += (row.clean[3 + k] - row.clean[k]).powi(2) / 0.96f64.powi(2));
        }
        let n = rows.len() as f64;
        assert!((ratio / n - 1.0).abs() < 5.0 * (2.0 / (6.0 * n)).sqrt(), "{}", ratio / n);
        // Of a uniform direction the mean square is 1/3 on each axis, with variance 4/45.
        assert!(directions.iter().all(|d| (d / n - 1.0 / 3.0).abs() < 5.0 * (4.0 / 45.0 / n).sqrt()), "{directions:?}");
        // Turned onto the conformer the start is nearer to it.
        let far = |path: Path| {
            let settings = TimeSettings { rotate: false, ..TimeSettings::default() };
            self::rows(settings, path, 300).iter().map(|r| r.x.iter().zip(&r.clean).map(|(x, c)| (x - c).powi(2)).sum::<f64>()).sum::<f64>()
        };
        assert!(far(Path { aligned: true, ..path }) < far(path));
    }
}
