//! Conformers from noise, or from structures that are made a little noisy again.

use super::config::DitmcConfig;
use super::context::{GraphContext, centre};
use super::handedness::Handedness;
use super::layout::Layout;
use super::model::DitmcModel;
use super::network::{Parameters, Work};
use super::process::Path;
use crate::error::{Error, Result};
use crate::molecule::Graph;
use rayon::prelude::*;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{Noise, Purpose};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Structures of one molecule are worked on together up to about so many atoms: enough rows for products, few enough for the caches.
const ATOMS_PER_CHUNK: usize = 144;

/// Where the steps lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Times {
    /// Evenly.
    #[default]
    Linear,
    /// Denser towards the data: `t = 1 − (10^u − 1)/9` with u evenly from 1 to 0.
    Logarithmic,
}

/// The step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// One evaluation, as published.
    #[default]
    Euler,
    /// Two evaluations, of second order (K. Heun); the last step has one.
    Heun,
}

/// How conformers are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SamplerSettings {
    /// Steps from the start to t = 1.
    pub steps: usize,
    /// Where they lie.
    pub times: Times,
    /// The step.
    pub method: Method,
    /// How many times over the noise is renewed on the way: 0 follows the deterministic flow (ODE), above that Langevin noise with the
    /// derived score is added (SDE).
    pub churn: f64,
    /// Time to start from: 0 from pure noise, above from given structures with the noise of that time.
    pub start: f64,
    /// How far velocities are led by the graph: 1 to where the network that knows it says, above 1 beyond, away from the one that does
    /// not.
    pub guidance: f64,
    /// Centres and double bonds that come out wrong are turned around in what is predicted on the way, so that the molecule goes the other
    /// way ([`Handedness`]). Without effect on molecules that have none.
    pub steer: bool,
}

impl Default for SamplerSettings {
    /// As published.
    fn default() -> Self {
        SamplerSettings { steps: 50, times: Times::Linear, method: Method::Euler, churn: 0.0, start: 0.0, guidance: 1.0, steer: false }
    }
}

impl SamplerSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names what is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("sampler", name, value, remedy));
        if !(1..=100_000).contains(&self.steps) {
            return refuse("steps", &self.steps, "give 1 to 100000; 50 is as published");
        }
        if !(0.0..=1000.0).contains(&self.churn) {
            return refuse("churn", &self.churn, "give 0 (no noise) to 1000");
        }
        if !(0.0..=100.0).contains(&self.guidance) {
            return refuse("guidance", &self.guidance, "give 0 (no graph) to 100; 1 is without guidance");
        }
        if !(0.0..1.0).contains(&self.start) {
            return refuse("start", &self.start, "give a time from 0 (pure noise) to below 1 (the structure itself)");
        }
        Ok(())
    }

    /// Checks that a network can do what is asked.
    ///
    /// # Errors
    /// Where it is to be guided and never learned to do without its graph.
    pub fn check_network(&self, config: &DitmcConfig) -> Result<()> {
        if self.guidance == 1.0 || config.guidance {
            return Ok(());
        }
        let remedy = "this network always knew the graph; train one with `guidance = true` in [transformer]";
        Err(Error::parameter("sampler", "guidance", self.guidance, remedy))
    }

    /// Times `[steps + 1]`, the last one 1.
    pub fn times(&self) -> Vec<f64> {
        let at = |n: usize| {
            let part = n as f64 / self.steps as f64;
            let t = match self.times {
                Times::Linear => part,
                Times::Logarithmic => 1.0 - (10f64.powf(1.0 - part) - 1.0) / 9.0,
            };
            if n == self.steps { 1.0 } else { self.start + (1.0 - self.start) * t }
        };
        (0..=self.steps).map(at).collect()
    }
}

/// Predicts clean structures.
pub trait Predictor {
    /// Expected clean structures of `x` at time `t`: several structures `[n, N, 3]` of one molecule (Å), all centred. What was predicted
    /// before is in `clean`; zeros at first.
    fn predict(&mut self, t: f64, x: &[f64], clean: &mut [f64]);
}

/// Moves structures `x [n, N, 3]` of one molecule (Å, centred) from the first time to t = 1. Structure `k` draws its noise as number
/// `ids[k]` of `noise` in round `round`; `look` is shown every state.
pub fn integrate(
    settings: &SamplerSettings,
    (path, context): (&Path, &GraphContext),
    predictor: &mut dyn Predictor,
    (noise, ids, round): (Noise, &[u32], u32),
    x: &mut [f64],
    mut look: impl FnMut(f64, &[f64]),
) {
    let times = settings.times();
    let per = 3 * context.len();
    let (mut clean, mut ahead, mut clean_ahead) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
    let mut xi = vec![0.0; per];
    // Noise keeps this part of itself in a step.
    let keep = (-settings.churn / settings.steps as f64).exp();
    look(times[0], x);
    for (n, w) in times.windows(2).enumerate() {
        let (t, next) = (w[0], w[1]);
        predictor.predict(t, x, &mut clean);
        // x' = x + (t' − t)(x̂₁ − x)/(1 − t); at the end it is x̂₁ itself.
        let part = (next - t) / (1.0 - t);
        if settings.method == Method::Heun && next < 1.0 {
            for k in 0..x.len() {
                ahead[k] = x[k] + part * (clean[k] - x[k]);
            }
            clean_ahead.copy_from_slice(&clean);
            predictor.predict(next, &ahead, &mut clean_ahead);
            for k in 0..x.len() {
                let (here, there) = ((clean[k] - x[k]) / (1.0 - t), (clean_ahead[k] - ahead[k]) / (1.0 - next));
                x[k] += 0.5 * (next - t) * (here + there);
            }
            std::mem::swap(&mut clean, &mut clean_ahead);
        } else if next < 1.0 {
            for k in 0..x.len() {
                x[k] += part * (clean[k] - x[k]);
            }
        } else {
            x.copy_from_slice(&clean);
        }
        if settings.churn > 0.0 && next < 1.0 {
            // With g² = 2 κ N_t the score's drift is −κ times the noise that is in x: an Ornstein–Uhlenbeck process, solved exactly.
            let fresh = (1.0 - keep * keep).sqrt();
            for ((x, clean), &id) in x.chunks_exact_mut(per).zip(clean.chunks_exact(per)).zip(ids) {
                let step = (u64::from(round) << 32) + n as u64;
                for (i, xi) in xi.chunks_exact_mut(3).enumerate() {
                    xi.copy_from_slice(&noise.normals(i as u32, id, step, Purpose::Diffusion));
                }
                path.noise_at(context, next, &mut xi);
                for ((x, &c), &xi) in x.iter_mut().zip(clean).zip(&xi) {
                    *x = next * c + keep * (*x - next * c) + fresh * xi;
                }
            }
        }
        look(next, x);
    }
}

/// A start at time `settings.start`: pure noise, or `given [N, 3]` (Å) with the noise of that time.
pub fn start(
    settings: &SamplerSettings,
    (path, context): (&Path, &GraphContext),
    (noise, id, round): (Noise, u32, u32),
    given: Option<&[f64]>,
    x: &mut [f64],
) {
    let draw = |purpose: Purpose| -> Vec<f64> {
        (0..context.len()).flat_map(|i| noise.normals(i as u32, id, u64::from(round), purpose)).collect()
    };
    let xi = draw(Purpose::Prior);
    match given {
        Some(given) => {
            let mut clean = given.to_vec();
            centre(&mut clean);
            path.interpolate(context, settings.start, &clean, &xi, &mut draw(Purpose::Churn), x);
        }
        None => path.prior_sample(context, &xi, x),
    }
}

/// Times between which predictions are mended: before, they are no structures yet; after, the network has the last word.
const STEERED: std::ops::Range<f64> = 0.2..0.9;

/// Predictions with the right handedness.
struct Steered<'a, P> {
    inner: P,
    graph: &'a Graph,
    handedness: Option<Handedness>,
}

impl<P: Predictor> Predictor for Steered<'_, P> {
    fn predict(&mut self, t: f64, x: &[f64], clean: &mut [f64]) {
        self.inner.predict(t, x, clean);
        let Some(handedness) = self.handedness.as_ref().filter(|_| STEERED.contains(&t)) else { return };
        for clean in clean.chunks_exact_mut(3 * self.graph.len()) {
            if handedness.mend(self.graph, clean) > 0 {
                centre(clean);
            }
        }
    }
}

/// The network as a predictor.
pub(super) struct NetworkPredictor<'a, T> {
    parameters: &'a Parameters<T>,
    work: Work<T>,
    atoms: usize,
    time: f64,
    /// Scale of the guidance; the graph that is not known is then a second one.
    guidance: Option<f64>,
}

impl<'a, T: SimdReal> NetworkPredictor<'a, T> {
    pub(super) fn new(parameters: &'a Parameters<T>, context: &GraphContext, guidance: f64) -> Self {
        let mut work = Work::new(parameters, false);
        let guidance = (guidance != 1.0 && parameters.layout().unknown.is_some()).then_some(guidance);
        work.set_graphs(parameters, std::iter::repeat_n(context, 1 + usize::from(guidance.is_some())));
        if guidance.is_some() {
            work.forget(parameters, 1);
        }
        NetworkPredictor { parameters, work, atoms: context.len(), time: f64::NAN, guidance }
    }
}

impl<T: SimdReal> Predictor for NetworkPredictor<'_, T> {
    fn predict(&mut self, t: f64, x: &[f64], clean: &mut [f64]) {
        let per = 3 * self.atoms;
        if t != self.time {
            self.work.set_times(self.parameters, std::iter::repeat_n(t, 1 + usize::from(self.guidance.is_some())));
            self.time = t;
        }
        let chunk = per * (ATOMS_PER_CHUNK / self.atoms).max(1);
        for (x, clean) in x.chunks(chunk).zip(clean.chunks_mut(chunk)) {
            self.work.clear_structures();
            for graph in 0..1 + usize::from(self.guidance.is_some()) {
                for (x, clean) in x.chunks_exact(per).zip(clean.chunks_exact(per)) {
                    self.work.add(self.parameters, graph, x);
                    self.work.recall(self.parameters, clean);
                }
            }
            self.work.forward(self.parameters);
            let atoms = x.len() / 3;
            for (i, to) in clean.chunks_exact_mut(3).enumerate() {
                to.copy_from_slice(&self.work.drift(i).map(|x| x.to_f64()));
                if let Some(scale) = self.guidance {
                    // Velocities are (x̂₁ − x)/(1 − t): guiding one is guiding the other.
                    let without = self.work.drift(atoms + i).map(|x| x.to_f64());
                    (0..3).for_each(|k| to[k] = without[k] + scale * (to[k] - without[k]));
                }
            }
            clean.chunks_exact_mut(per).for_each(centre);
        }
    }
}

/// Draws conformers with a trained model, on the threads of the present pool.
pub struct Sampler<T> {
    parameters: Arc<Parameters<T>>,
    path: Path,
}

/// A conformer to draw.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// Its number: what noise it gets.
    pub id: u32,
    /// How often it was drawn before.
    pub round: u32,
    /// The structure `[N, 3]` (Å) to start from, for starts above 0.
    pub given: Option<&'a [f64]>,
    /// The time to start from with it, instead of the settings' own; with as many steps as fall into the rest of the way.
    pub start: Option<f64>,
}

impl Draw<'_> {
    fn settings(&self, all: &SamplerSettings) -> SamplerSettings {
        match self.start {
            Some(start) => SamplerSettings { start, steps: ((all.steps as f64 * (1.0 - start)).ceil() as usize).max(1), ..*all },
            None => *all,
        }
    }
}

impl<T: SimdReal> Sampler<T> {
    /// Of `model`.
    pub fn new(model: &DitmcModel) -> Self {
        let layout = Arc::new(Layout::new(&model.config));
        let values: Vec<T> = layout.pad(&model.values);
        let mut parameters = Parameters::new(&model.config, layout, false);
        parameters.load(&values);
        Sampler { parameters: Arc::new(parameters), path: model.path }
    }

    /// Draws conformers `[N, 3]` (Å, centred) of one molecule. What comes out for a number does not depend on the others. Guidance
    /// has no effect on networks that [`SamplerSettings::check_network`] refuses.
    pub fn draw(&self, settings: &SamplerSettings, context: &GraphContext, noise: Noise, draws: &[Draw<'_>]) -> Vec<Vec<f64>> {
        let per = 3 * context.len();
        // As many structures as work well together, but some for every thread.
        let fit = (ATOMS_PER_CHUNK / context.len()).max(1);
        let size = draws.len().div_ceil(rayon::current_num_threads()).clamp(1, fit);
        let chunks: Vec<Vec<Vec<f64>>> = draws
            .par_chunks(size)
            .map(|draws| {
                let mut x = vec![0.0; per * draws.len()];
                for (x, d) in x.chunks_exact_mut(per).zip(draws) {
                    start(&d.settings(settings), (&self.path, context), (noise, d.id, d.round), d.given, x);
                }
                let mut predictor = Steered {
                    inner: NetworkPredictor::new(&self.parameters, context, settings.guidance),
                    graph: &context.graph,
                    handedness: settings.steer.then(|| Handedness::new(&context.graph)).filter(|h| !h.is_empty()),
                };
                let mut remaining: Vec<(usize, (u32, Option<f64>))> = draws.iter().map(|d| (d.round, d.start)).enumerate().collect();
                let ids: Vec<u32> = draws.iter().map(|d| d.id).collect();
                // Structures of one round and one start go together.
                while let Some(&(first, of)) = remaining.first() {
                    let these: Vec<usize> = remaining.iter().filter(|r| r.1 == of).map(|r| r.0).collect();
                    remaining.retain(|r| r.1 != of);
                    let (settings, round) = (&draws[first].settings(settings), of.0);
                    let mut part: Vec<f64> = these.iter().flat_map(|&k| x[per * k..per * (k + 1)].to_vec()).collect();
                    let part_ids: Vec<u32> = these.iter().map(|&k| ids[k]).collect();
                    integrate(settings, (&self.path, context), &mut predictor, (noise, &part_ids, round), &mut part, |_, _| {});
                    for (from, &k) in part.chunks_exact(per).zip(&these) {
                        x[per * k..per * (k + 1)].copy_from_slice(from);
                    }
                }
                x.chunks_exact(per).map(<[f64]>::to_vec).collect()
            })
            .collect();
        chunks.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Variant;
    use super::super::golden::{Golden, MOLECULES, context, difference, small};
    use super::super::process::Prior;
    use super::*;
    use crate::molecule::{Graph, Vocabulary};

    fn model(values: Vec<f64>) -> DitmcModel {
        DitmcModel { config: small(), path: Path::default(), values, temperature: None, command: "test".into(), seed: 0 }
    }

    #[test]
    fn trajectories_are_those_of_the_authors() {
        let Some(golden) = Golden::open("ditmc_ape_small.safetensors") else { return };
        let config = small();
        let layout = Layout::new(&config);
        let padded = golden.parameters(&layout);
        let sampler = Sampler::<f64>::new(&model(layout.map.iter().map(|&k| padded[k]).collect()));
        for (name, smiles) in MOLECULES {
            let context = context(smiles, Vocabulary::Drugs);
            for (kind, times) in [("linear", Times::Linear), ("log", Times::Logarithmic)] {
                let of = |what: &str| golden.double(&format!("{name}.sample_{kind}.{what}"));
                let settings = SamplerSettings { steps: 10, times, ..SamplerSettings::default() };
                assert!(difference(&settings.times(), &of("tau")) < 1e-6, "{kind}: {:?} {:?}", settings.times(), of("tau"));
                let frames = of("x");
                let mut predictor = NetworkPredictor::new(&sampler.parameters, &context, 1.0);
                let mut x = frames[..3 * context.len()].to_vec();
                let mut path = Vec::new();
                let who = (Noise::new(1), &[0u32][..], 0);
                integrate(&settings, (&sampler.path, &context), &mut predictor, who, &mut x, |_, x| path.extend_from_slice(x));
                let d = difference(&path, &frames);
                assert!(d < 1e-6, "{name} {kind}: {d}");
            }
        }
    }

    /// Data that are one structure: whatever is done, the noise in x_t must keep its covariance.
    struct One(Vec<f64>);

    impl Predictor for One {
        fn predict(&mut self, _: f64, _: &[f64], clean: &mut [f64]) {
            clean.chunks_exact_mut(self.0.len()).for_each(|c| c.copy_from_slice(&self.0));
        }
    }

    #[test]
    fn every_sampler_keeps_the_distribution() {
        let context = context("CCO", Vocabulary::Drugs);
        let n = context.len();
        let mut clean: Vec<f64> = (0..n).flat_map(|i| Noise::new(3).normals(i as u32, 0, 0, Purpose::Prior)).collect();
        centre(&mut clean);
        let path = Path { prior: Prior::Harmonic, noise: 0.0, aligned: false };
        let most = 4000;
        for (method, churn) in [(Method::Euler, 0.0), (Method::Heun, 0.0), (Method::Euler, 3.0)] {
            let settings = SamplerSettings { steps: 8, method, churn, ..SamplerSettings::default() };
            let ids: Vec<u32> = (0..most).collect();
            let mut x = vec![0.0; 3 * n * most as usize];
            for (x, &id) in x.chunks_exact_mut(3 * n).zip(&ids) {
                start(&settings, (&path, &context), (Noise::new(7), id, 0), None, x);
            }
            let mut seen = 0;
            integrate(&settings, (&path, &context), &mut One(clean.clone()), (Noise::new(7), &ids, 0), &mut x, |t, x| {
                if (0.4..0.9).contains(&t) {
                    // Mean square of the difference of two bonded atoms: the resistance between them is 1.
                    let square: f64 = x
                        .chunks_exact(3 * n)
                        .map(|x| (0..3).map(|k| (x[k] - x[3 + k] - t * (clean[k] - clean[3 + k])).powi(2)).sum::<f64>())
                        .sum();
                    let (mean, want) = (square / f64::from(most), 3.0 * (1.0 - t).powi(2));
                    // Chi-square of 3 per structure: its error is √(2/(3 n)).
                    assert!(
                        (mean / want - 1.0).abs() < 5.0 * (2.0 / (3.0 * f64::from(most))).sqrt(),
                        "{method:?} {churn} {t}: {mean} {want}"
                    );
                    seen += 1;
                }
            });
            assert!(seen >= 3);
            assert!(x.chunks_exact(3 * n).all(|x| difference(x, &clean) < 1e-12));
        }
    }

    /// Data that are three structures with weights: what a network would be that had learned them without error.
    struct Three {
        minima: [Vec<f64>; 3],
        weights: [f64; 3],
    }

    impl Predictor for Three {
        fn predict(&mut self, t: f64, x: &[f64], clean: &mut [f64]) {
            let per = self.minima[0].len();
            for (x, clean) in x.chunks_exact(per).zip(clean.chunks_exact_mut(per)) {
                let square = |m: &[f64]| x.iter().zip(m).map(|(x, m)| (x - t * m).powi(2)).sum::<f64>();
                let exponents: [f64; 3] = std::array::from_fn(|k| -0.5 * square(&self.minima[k]) / (1.0 - t).powi(2));
                let most = exponents.iter().copied().fold(f64::MIN, f64::max);
                let w: [f64; 3] = std::array::from_fn(|k| self.weights[k] * (exponents[k] - most).exp());
                let total: f64 = w.iter().sum();
                for (i, clean) in clean.iter_mut().enumerate() {
                    *clean = (0..3).map(|k| w[k] * self.minima[k][i]).sum::<f64>() / total;
                }
            }
        }
    }

    /// Butane's carbons: from one of the gauche states, hops visit all three with their populations and end in them.
    #[test]
    fn hops_visit_minima_with_their_populations() {
        let bonds = (0..3).map(|i| crate::molecule::Bond::new(i, i + 1, 1)).collect();
        let graph = Graph::new(vec![crate::molecule::Atom::new(6); 4], bonds);
        let context = GraphContext::new(&graph, Vocabulary::Drugs).unwrap();
        // Bonds of 1.53 Å and angles of 112° at the second and third carbon.
        let butane = |torsion: f64| {
            let (s, c) = (112f64.to_radians().sin() * 1.53, -112f64.to_radians().cos() * 1.53);
            let (ts, tc) = torsion.to_radians().sin_cos();
            let mut x = vec![-c, s, 0.0, 0.0, 0.0, 0.0, 1.53, 0.0, 0.0, 1.53 + c, s * tc, s * ts];
            centre(&mut x);
            x
        };
        let weights = [0.16, 0.68, 0.16];
        let minima = [butane(-65.0), butane(180.0), butane(65.0)];
        let path = Path { prior: Prior::Gaussian, noise: 0.0, aligned: false };
        let (chains, n) = (2000u32, 12);
        for churn in [0.0, 2.0] {
            let settings = SamplerSettings { steps: 40, start: 0.3, churn, ..SamplerSettings::default() };
            let mut x = minima[0].repeat(chains as usize);
            let ids: Vec<u32> = (0..chains).collect();
            for round in 0..6 {
                let before = x.clone();
                for ((x, given), &id) in x.chunks_exact_mut(n).zip(before.chunks_exact(n)).zip(&ids) {
                    start(&settings, (&path, &context), (Noise::new(3), id, round), Some(given), x);
                }
                let mut three = Three { minima: minima.clone(), weights };
                integrate(&settings, (&path, &context), &mut three, (Noise::new(3), &ids, round), &mut x, |_, _| {});
            }
            let mut counts = [0u32; 3];
            for x in x.chunks_exact(n) {
                let away = |m: &[f64]| x.iter().zip(m).map(|(x, m)| (x - m).powi(2)).sum::<f64>().sqrt();
                let near = (0..3).min_by(|&a, &b| away(&minima[a]).total_cmp(&away(&minima[b]))).unwrap();
                counts[near] += u32::from(away(&minima[near]) < 0.1);
            }
            // A few end between two minima, where the last step has no room to decide.
            assert!(counts.iter().sum::<u32>() >= chains * 99 / 100, "{counts:?}");
            for k in 0..3 {
                let (part, error) =
                    (f64::from(counts[k]) / f64::from(chains), (weights[k] * (1.0 - weights[k]) / f64::from(chains)).sqrt());
                assert!((part - weights[k]).abs() < 4.0 * error, "churn {churn}: {counts:?}");
            }
        }
    }

    /// Guidance of 1 is none, of 0 does not read the graph, and between and beyond them predictions lie on a line.
    #[test]
    fn guidance_leads_away_from_what_does_not_know_the_graph() {
        for variant in [Variant::Ape, Variant::Rpe, Variant::Pe3] {
            let config = DitmcConfig { guidance: true, self_conditioning: true, variant, ..small() };
            let layout = Arc::new(Layout::new(&config));
            let mut values = layout.initialise(Noise::new(2));
            layout.map.iter().for_each(|&k| values[k] += 0.1 * Noise::new(3).normals(k as u32, 0, 0, Purpose::Prior)[0]);
            let mut parameters = Parameters::<f64>::new(&config, layout, false);
            parameters.load(&values);
            // Ethanol, and dimethyl ether with its atoms in the same order.
            let ethanol = context("CCO", Vocabulary::Drugs);
            let ether = Graph::from_smiles("COC").unwrap().with_hydrogens().permuted(&[0, 2, 1, 3, 4, 5, 6, 7, 8]);
            let ether = GraphContext::new(&ether, Vocabulary::Drugs).unwrap();
            assert_eq!(ethanol.types, ether.types);
            let n = 3 * ethanol.len();
            let normals = |seed| -> Vec<f64> {
                let mut x: Vec<f64> = (0..2 * n / 3).flat_map(|i| Noise::new(seed).normals(i as u32, 0, 0, Purpose::Prior)).collect();
                x.chunks_exact_mut(n).for_each(centre);
                x
            };
            let (x, before) = (normals(4), normals(5));
            let predict = |context: &GraphContext, guidance: f64| {
                let mut clean = before.clone();
                NetworkPredictor::new(&parameters, context, guidance).predict(0.4, &x, &mut clean);
                clean
            };
            let (with, without, beyond) = (predict(&ethanol, 1.0), predict(&ethanol, 0.0), predict(&ethanol, 2.5));
            assert_eq!(without, predict(&ether, 0.0));
            assert!(difference(&with, &predict(&ether, 1.0)) > 1e-3 && difference(&with, &without) > 1e-3);
            let line: Vec<f64> = with.iter().zip(&without).map(|(c, u)| u + 2.5 * (c - u)).collect();
            assert!(difference(&beyond, &line) < 1e-12, "{variant:?}");
            // What was predicted before is an input.
            let mut anew = vec![0.0; 2 * n];
            NetworkPredictor::new(&parameters, &ethanol, 1.0).predict(0.4, &x, &mut anew);
            assert!(difference(&anew, &with) > 1e-3);
        }
        let settings = SamplerSettings { guidance: 2.0, ..SamplerSettings::default() };
        assert!(settings.check().is_ok() && settings.check_network(&small()).is_err());
        assert!(SamplerSettings { guidance: -1.0, ..settings }.check().is_err());
    }

    /// Every step begins with what was predicted in the one before, the second of Heun's too.
    #[test]
    fn predictions_are_fed_back() {
        struct Record(Vec<(f64, Vec<f64>)>);
        impl Predictor for Record {
            fn predict(&mut self, t: f64, _: &[f64], clean: &mut [f64]) {
                self.0.push((t, clean.to_vec()));
                clean.fill(1.0 + t);
            }
        }
        let (context, path) = (context("O", Vocabulary::Drugs), Path::default());
        for (method, times) in [(Method::Euler, &[0.0, 0.5][..]), (Method::Heun, &[0.0, 0.5, 0.5][..])] {
            let settings = SamplerSettings { steps: 2, method, ..SamplerSettings::default() };
            let mut record = Record(Vec::new());
            integrate(&settings, (&path, &context), &mut record, (Noise::new(1), &[0], 0), &mut [0.5; 9], |_, _| {});
            assert_eq!(record.0.iter().map(|r| r.0).collect::<Vec<_>>(), times);
            let before: Vec<f64> = record.0.iter().map(|r| r.1[0]).collect();
            assert_eq!(before, if method == Method::Euler { vec![0.0, 1.0] } else { vec![0.0, 1.0, 1.5] });
        }
    }

    #[test]
    fn conformers_depend_on_their_number_alone() {
        let config = DitmcConfig { self_conditioning: true, guidance: true, ..small() };
        let layout = Layout::new(&config);
        let padded = layout.initialise(Noise::new(2));
        let values = layout.map.iter().map(|&k| padded[k]).collect();
        let sampler = Sampler::<f32>::new(&DitmcModel { config, ..model(values) });
        let context = context("CCO", Vocabulary::Drugs);
        let settings = SamplerSettings { steps: 4, churn: 1.0, guidance: 1.5, ..SamplerSettings::default() };
        let draw = |id, round| Draw { id, round, given: None, start: None };
        let all: Vec<Draw<'_>> = (0..40).map(|id| draw(id, id % 3)).collect();
        let together = sampler.draw(&settings, &context, Noise::new(4), &all);
        for id in [0, 7, 39] {
            assert_eq!(sampler.draw(&settings, &context, Noise::new(4), &[draw(id, id % 3)])[0], together[id as usize]);
        }
        assert_ne!(together[0], together[3]);
        // A structure that is hardly disturbed is what the network makes of it.
        let given = together[1].clone();
        let near = SamplerSettings { steps: 1, start: 0.99, churn: 0.0, ..settings };
        let refined = sampler.draw(&near, &context, Noise::new(4), &[Draw { id: 0, round: 0, given: Some(&given), start: None }]);
        assert!(refined[0].iter().all(|x| x.is_finite()));
        // A start of one's own is that of settings with the steps that are left.
        let own = SamplerSettings { steps: 4, start: 0.0, ..near };
        let started = sampler.draw(&own, &context, Noise::new(4), &[Draw { id: 0, round: 0, given: Some(&given), start: Some(0.99) }]);
        assert_eq!(started, refined);
    }

    /// A predictor with one hand at a centre is led to the other one; the last word is the network's.
    #[test]
    fn predictions_are_steered_to_the_right_hand() {
        let graph = Graph::from_smiles("F[C@H](Cl)Br").unwrap().with_hydrogens();
        let mut wrong = vec![0.8, 0.8, 0.8, 0.0, 0.0, 0.0, -1.0, -1.0, 1.0, -1.1, 1.1, -1.1, 0.6, -0.6, -0.6];
        if graph.chirality_at(1, &wrong) == graph.atoms()[1].chirality {
            wrong.iter_mut().skip(2).step_by(3).for_each(|z| *z = -*z);
        }
        centre(&mut wrong);
        let mut steered = Steered { inner: One(wrong.clone()), graph: &graph, handedness: Some(Handedness::new(&graph)) };
        for (t, right) in [(0.0, false), (0.3, true), (0.8, true), (0.95, false)] {
            let mut clean = [wrong.clone(), wrong.clone()].concat();
            steered.predict(t, &clean.clone(), &mut clean);
            assert!(clean.chunks_exact(15).all(|x| (graph.chirality_at(1, x) == graph.atoms()[1].chirality) == right), "{t}");
        }
    }
}
