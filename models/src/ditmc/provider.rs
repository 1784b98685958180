//! DiTMC as a force provider: at one noise level the network is a denoiser, and what it takes away is a force.
//!
//! With `y = x₁ + σ_y ε` and x̂₁ the expected clean structure, `k_B T (x̂₁ − y)/σ_y²` is the mean force of the data blurred by σ_y
//! (Tweedie's formula, H. Robbins, 1956): physical for data of a temperature, a pseudo-force for minima.
//!
//! The level can follow the clock of a run ([`Annealing`]): from a large σ_y, where minima are joined, down to a small one, and again. One
//! Langevin run then hops between conformers and ends in minima (annealed Langevin dynamics, Y. Song and S. Ermon, arXiv 1907.05600).

use super::context::{GraphContext, centre};
use super::device::{self, Question};
use super::layout::Layout;
use super::model::{ANGSTROMS, ARCHITECTURE, DitmcModel};
use super::network::{Parameters, Work};
use super::process::{Path as NoisePath, Prior};
use crate::error::{Error, Result};
use crate::molecule::Graph;
use scorefield_integrators::device::DeviceModel;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::units::{BOLTZMANN, Dimension};
use scorefield_integrators::{
    Batch, Capabilities, Clock, DType, Error as ContractError, ForceProvider, Input, Kind, Output, Quantity, Result as ContractResult,
    System, UnitSystem,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Structures are worked on together up to about so many atoms.
const ATOMS_PER_CHUNK: usize = 144;
/// Temperature (K) whose k_B T sets the scale of pseudo-forces where none is given.
const TEMPERATURE: f64 = 300.0;

/// The words `ditmc:weights=FILE,smiles=...`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DitmcSpec {
    /// The file of weights; without it the embedded model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// The molecule; its atoms, then its hydrogens in their order, must be those of the structures.
    pub smiles: String,
    /// σ_y, by default the smallest that the network was trained with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma: Option<Quantity>,
    /// With `period`: the level that every period begins with; it falls to `sigma`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<Quantity>,
    /// Time from `sigma-max` to `sigma`, over and over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Quantity>,
    /// Levels of a period [default: 16].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<usize>,
    /// Temperature of the factor k_B T; of networks trained at a temperature it is theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Quantity>,
}

impl DitmcSpec {
    /// Reads the weights and the molecule.
    ///
    /// # Errors
    /// Where either cannot be understood, or the network does not know the noise level.
    pub fn build(&self) -> Result<DitmcProvider> {
        let fail = |name: &str, e: &dyn std::fmt::Display| Error::spec(format!("ditmc: {name}"), e.to_string());
        let model = self.weights.as_deref().map_or_else(DitmcModel::embedded, DitmcModel::read)?;
        let graph = Graph::from_smiles(&self.smiles).map_err(|e| fail("smiles", &e))?;
        let resolve = |name: &str, q: &Option<Quantity>, dimension| match q {
            Some(q) => q.resolve(dimension, UnitSystem::Si).map(Some).map_err(|e| fail(name, &e)),
            None => Ok(None),
        };
        let sigma = resolve("sigma", &self.sigma, Dimension::LENGTH)?.map(|nm| nm * ANGSTROMS);
        let temperature = resolve("temperature", &self.temperature, Dimension::TEMPERATURE)?;
        let most = resolve("sigma-max", &self.sigma_max, Dimension::LENGTH)?.map(|nm| nm * ANGSTROMS);
        let annealing = match (most, resolve("period", &self.period, Dimension::TIME)?) {
            (None, None) if self.levels.is_none() => None,
            (Some(sigma), Some(period)) => Some(Annealing { sigma, period, levels: self.levels.unwrap_or(16) }),
            _ => return Err(fail("annealing", &"give sigma-max and period, which belong together; levels are those between them")),
        };
        DitmcProvider::new(model, &graph, sigma, temperature)?.annealed(annealing)
    }
}

/// Noise levels that follow the clock: within each period down a geometric ladder, as long on each rung.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Annealing {
    /// The first level (Å).
    pub sigma: f64,
    /// ps.
    pub period: f64,
    /// Rungs; the last one is the provider's own level.
    pub levels: usize,
}

impl Annealing {
    /// The rungs (Å) down to `least`.
    fn ladder(&self, least: f64) -> Vec<f64> {
        let last = (self.levels.max(2) - 1) as f64;
        (0..=last as usize).map(|k| self.sigma * (least / self.sigma).powf(k as f64 / last)).collect()
    }

    /// The rung at a time (ps). A step ends at its time: what begins with a period belongs to its first rung.
    fn rung(&self, time: f64) -> usize {
        let phase = time / self.period;
        (((phase - phase.floor()) * self.levels as f64) as usize).min(self.levels - 1)
    }
}

/// What the network is asked at one noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    time: f64,
    /// k (kJ/mol/nm²): the force is k (x̂₁ − y).
    stiffness: f64,
}

/// Time at which `x_t/t` is a clean structure with noise of standard deviation `sigma` (Å); without one the smallest there is.
fn time(path: &NoisePath, sigma: Option<f64>) -> Result<(f64, f64)> {
    let gamma = path.noise;
    let refuse = |value: f64, remedy: &str| Err(Error::parameter("ditmc", "sigma", format!("{value} A"), remedy));
    match sigma {
        // At t = 1 only γ is left: exact whatever the prior, and whether it was aligned.
        None if gamma > 0.0 => Ok((1.0, gamma)),
        None => refuse(0.0, "this network has no noise of its own; say at which level it is to be used"),
        Some(s) if !(s > 0.0 && s.is_finite()) => refuse(s, "give a length above zero"),
        Some(s) if (s - gamma).abs() < 1e-9 => Ok((1.0, gamma)),
        Some(s) if path.aligned || path.prior == Prior::Harmonic => {
            let own =
                format!("this network is a denoiser at {gamma} A only; train one with a Gaussian prior and without alignment for others");
            refuse(s, &own)
        }
        Some(s) => {
            // s² t² = (1 − t)² + γ².
            let (a, c) = (s * s - 1.0, 1.0 + gamma * gamma);
            let t = if a.abs() < 1e-12 { 0.5 * c } else { ((1.0 + a * c).max(0.0).sqrt() - 1.0) / a };
            if 1.0 + a * c < 0.0 || !(t > 0.0 && t <= 1.0) {
                return refuse(s, &format!("it is below the noise of the network, {gamma} A"));
            }
            Ok((t, s))
        }
    }
}

struct Shared {
    model: DitmcModel,
    context: GraphContext,
    single: OnceLock<Parameters<f32>>,
    double: OnceLock<Parameters<f64>>,
}

fn pack<T: SimdReal>(model: &DitmcModel) -> Parameters<T> {
    let layout = Arc::new(Layout::new(&model.config));
    let values: Vec<T> = layout.pad(&model.values);
    let mut parameters = Parameters::new(&model.config, layout, false);
    parameters.load(&values);
    parameters
}

/// Forces of a conformer model on one molecule.
///
/// They have no net part, are the gradient of nothing, and turn exactly with the molecule only where the network is PE(3): others learned
/// rotations from examples. `project` removes their net torque. Everything that depends on graph and time is computed once.
pub struct DitmcProvider {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    /// One, or the rungs of the annealing.
    levels: Arc<[Level]>,
    annealing: Option<Annealing>,
    kelvin: f64,
    /// The smallest level (Å).
    sigma: f64,
    work32: Prepared<f32>,
    work64: Prepared<f64>,
}

struct Prepared<T> {
    work: Option<Work<T>>,
    replicas: usize,
    /// The time that the network was told last.
    time: f64,
    x: Vec<f64>,
    clean: Vec<f64>,
}

impl<T> Default for Prepared<T> {
    fn default() -> Self {
        Prepared { work: None, replicas: 0, time: f64::NAN, x: Vec::new(), clean: Vec::new() }
    }
}

impl DitmcProvider {
    /// Forces of `model` on the molecule of `graph` at σ_y = `sigma` (Å), scaled with k_B T of `temperature` (K).
    ///
    /// # Errors
    /// Where the network knows neither the molecule's elements nor the noise level, or was trained at another temperature.
    pub fn new(model: DitmcModel, graph: &Graph, sigma: Option<f64>, temperature: Option<f64>) -> Result<Self> {
        let context = GraphContext::new(graph, model.config.vocabulary)?;
        let (time, sigma) = time(&model.path, sigma)?;
        if let (Some(own), Some(asked)) = (model.temperature, temperature)
            && (own - asked).abs() > 1e-6 * own
        {
            return Err(Error::Ensemble {
                name: ARCHITECTURE.into(),
                trained: format!("at {own} K"),
                asked: format!("{asked} K"),
                remedy: "its forces are those of its own temperature; leave `temperature` out".into(),
            });
        }
        let kelvin = model.temperature.or(temperature).unwrap_or(TEMPERATURE);
        if !(kelvin > 0.0 && kelvin.is_finite()) {
            return Err(Error::parameter(ARCHITECTURE, "temperature", kelvin, "give a temperature above zero"));
        }
        let stiffness = BOLTZMANN * kelvin / (sigma / ANGSTROMS).powi(2);
        let mut types = context.types.clone();
        types.sort_unstable();
        types.dedup();
        let capabilities = Capabilities {
            kind: model.temperature.map_or(Kind::PseudoForce, |t| Kind::MeanForce { temperature_kelvin: t }),
            conservative: false,
            energy: false,
            energies_comparable: false,
            stiffness: Some(stiffness),
            types: Some(types),
            ..Capabilities::potential(ARCHITECTURE)
        };
        let capabilities = if device::fits(context.len()) { capabilities.with_kernels() } else { capabilities };
        let shared = Arc::new(Shared { model, context, single: OnceLock::new(), double: OnceLock::new() });
        let levels = Arc::new([Level { time, stiffness }]);
        let (work32, work64) = (Prepared::default(), Prepared::default());
        Ok(DitmcProvider { shared, capabilities, levels, annealing: None, kelvin, sigma, work32, work64 })
    }

    /// The same with levels that follow the clock: time of the network and force constant with them. Where there is no time, as in a
    /// relaxation, the smallest level stays.
    ///
    /// # Errors
    /// Where the network does not know one of the levels, or they do not fall.
    pub fn annealed(mut self, annealing: Option<Annealing>) -> Result<Self> {
        let Some(a) = annealing else { return Ok(self) };
        let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("ditmc", name, value, remedy));
        if !(2..=1000).contains(&a.levels) {
            return refuse("levels", &a.levels, "give 2 to 1000");
        }
        if !(a.period > 0.0 && a.period.is_finite()) {
            return refuse("period", &format!("{} ps", a.period), "give a time above zero");
        }
        if !(a.sigma > self.sigma && a.sigma.is_finite()) {
            return refuse("sigma-max", &format!("{} A", a.sigma), &format!("give a length above the smallest level, {} A", self.sigma));
        }
        let level = |sigma: f64| -> Result<Level> {
            let (time, _) = time(&self.shared.model.path, Some(sigma))?;
            Ok(Level { time, stiffness: BOLTZMANN * self.kelvin / (sigma / ANGSTROMS).powi(2) })
        };
        // The last rung is the level that there was.
        let mut levels = a.ladder(self.sigma)[..a.levels - 1].iter().map(|&s| level(s)).collect::<Result<Vec<_>>>()?;
        levels.push(self.levels[0]);
        self.levels = levels.into();
        self.annealing = annealing;
        // There is no one stiffness, and kernels know one level: messages say which kind of DiTMC has none.
        let name = format!("{ARCHITECTURE} with sigma-max and period");
        self.capabilities = Capabilities { name, stiffness: None, ..self.capabilities.without_kernels() };
        Ok(self)
    }

    /// The time at which the network is asked at the smallest level.
    pub fn time(&self) -> f64 {
        self.levels[self.levels.len() - 1].time
    }

    /// The level at the run's clock.
    fn level(&self, clock: Clock) -> Level {
        match (self.annealing, clock) {
            (Some(a), Clock::Physical { time }) => self.levels[a.rung(time)],
            _ => self.levels[self.levels.len() - 1],
        }
    }
}

impl<T: SimdReal> Prepared<T> {
    fn prepare(&mut self, p: &Parameters<T>, context: &GraphContext, time: f64, replicas: usize) {
        let mut work = Work::new(p, false);
        work.set_graphs(p, std::iter::once(context));
        work.set_times(p, std::iter::once(time));
        let per = 3 * context.len();
        // A first look makes room for what comes.
        self.x = vec![0.0; per];
        self.clean = vec![0.0; per];
        let together = (ATOMS_PER_CHUNK / context.len()).max(1).min(replicas);
        (0..together).for_each(|_| work.add(p, 0, &self.x));
        work.forward(p);
        (self.work, self.replicas, self.time) = (Some(work), replicas, time);
    }

    fn evaluate(&mut self, provider: (&Parameters<T>, &GraphContext, Level), input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let (p, context, Level { time, stiffness }) = provider;
        let batch = input.batch;
        let Some(work) = self.work.as_mut().filter(|_| self.replicas == batch.replicas()) else {
            return Err(ContractError::Invalid(
                "DiTMC was asked for forces of another batch than it was prepared for; prepare it anew".into(),
            ));
        };
        if time != self.time {
            work.set_times(p, std::iter::once(time));
            self.time = time;
        }
        let positions = input.positions.typed::<T>()?;
        let forces = out.forces.typed_mut::<T>()?;
        let chunk = (ATOMS_PER_CHUNK / context.len()).max(1);
        for first in (0..batch.replicas()).step_by(chunk) {
            let replicas = first..(first + chunk).min(batch.replicas());
            work.clear_structures();
            for b in replicas.clone() {
                for (to, from) in self.x.iter_mut().zip(&positions[batch.range3(b)]) {
                    *to = from.to_f64() * ANGSTROMS * time;
                }
                centre(&mut self.x);
                work.add(p, 0, &self.x);
            }
            work.forward(p);
            for b in replicas.clone() {
                let range = batch.range3(b);
                let atom = (b - first) * context.len();
                for (i, to) in self.clean.chunks_exact_mut(3).enumerate() {
                    to.copy_from_slice(&work.drift(atom + i).map(|x| x.to_f64()));
                }
                for (to, from) in self.x.iter_mut().zip(&positions[range.clone()]) {
                    *to = from.to_f64() * ANGSTROMS;
                }
                let finite = self.x.iter().all(|x| x.is_finite());
                for (c, x) in self.clean.iter_mut().zip(&self.x) {
                    *c -= x;
                }
                // The net part of both, at once.
                centre(&mut self.clean);
                let factor = if finite { stiffness / ANGSTROMS } else { f64::NAN };
                for (f, c) in forces[range].iter_mut().zip(&self.clean) {
                    *f = T::from_f64(factor * c);
                }
            }
        }
        Ok(())
    }
}

impl ForceProvider for DitmcProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        let Shared { model, context, single, double } = &*self.shared;
        if let Some(system) = batch.systems().iter().find(|s| s.types != context.types) {
            return Err(ContractError::Unsupported {
                provider: self.capabilities.name.clone(),
                what: format!("{}, whose atoms are not those of the molecule that it was given, in its order", system.name),
                remedy: "give the structure's own `smiles`; `scorefield conformers` writes structures in the right order".into(),
            });
        }
        let time = self.time();
        match dtype {
            DType::F32 => self.work32.prepare(single.get_or_init(|| pack(model)), context, time, batch.replicas()),
            DType::F64 => self.work64.prepare(double.get_or_init(|| pack(model)), context, time, batch.replicas()),
        }
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() {
            return Err(ContractError::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        let Shared { model, context, single, double } = &*self.shared;
        let level = self.level(input.clock);
        match input.positions.dtype() {
            DType::F32 => self.work32.evaluate((single.get_or_init(|| pack(model)), context, level), input, out),
            DType::F64 => self.work64.evaluate((double.get_or_init(|| pack(model)), context, level), input, out),
        }
    }

    fn device_model(&self, _: &System) -> Option<DeviceModel> {
        let Shared { model, context, double, .. } = &*self.shared;
        if self.annealing.is_some() || !device::fits(context.len()) {
            return None;
        }
        let Level { time, stiffness } = self.level(Clock::Iteration);
        Some(double.get_or_init(|| pack(model)).device_model(Question { context, time, stiffness }))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(DitmcProvider {
            shared: self.shared.clone(),
            capabilities: self.capabilities.clone(),
            levels: self.levels.clone(),
            annealing: self.annealing,
            kelvin: self.kelvin,
            sigma: self.sigma,
            work32: Prepared::default(),
            work64: Prepared::default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::DitmcConfig;
    use super::super::golden::small;
    use super::*;
    use crate::molecule::Vocabulary;
    use crate::testing::{self, Sample};
    use scorefield_integrators::{AtomName, Noise, Purpose, System};

    fn model(path: NoisePath) -> DitmcModel {
        let config = DitmcConfig { vocabulary: Vocabulary::Qm9, ..small() };
        let layout = Layout::new(&config);
        let padded = layout.initialise(Noise::new(3));
        let values = layout.map.iter().map(|&p| padded[p]).collect();
        DitmcModel { config, path, values, temperature: None, command: "test".into(), seed: 3 }
    }

    fn sample(types: &[u32], seed: u64) -> Sample {
        let n = types.len();
        let x = (0..n).flat_map(|i| Noise::new(seed).normals(i as u32, 0, 0, Purpose::Displacement)).map(|x| 0.1 * x);
        let system = System { types: types.to_vec(), names: vec![AtomName::default(); n], ..System::particles("molecule", n, 12.0) };
        Sample::new(Arc::new(system), x.collect())
    }

    #[test]
    fn provider_passes_the_common_checks() {
        let graph = Graph::from_smiles("CO").unwrap();
        let mut provider = DitmcProvider::new(model(NoisePath::default()), &graph, None, None).unwrap();
        let capabilities = provider.capabilities().clone();
        assert!(capabilities.kind == Kind::PseudoForce && !capabilities.conservative && !capabilities.energy);
        // k_B T/σ² at 300 K and 0.5 Å.
        assert!((capabilities.stiffness.unwrap() / (BOLTZMANN * 300.0 / 0.0025) - 1.0).abs() < 1e-12);
        let types = [6, 8, 1, 1, 1, 1];
        let samples = [sample(&types, 1), sample(&types, 2), sample(&types, 3)];
        testing::check_batch_invariance(&mut provider, &samples);
    }

    #[test]
    fn forces_lead_to_the_clean_structure() {
        let graph = Graph::from_smiles("O").unwrap();
        let path = NoisePath { prior: Prior::Gaussian, noise: 0.2, aligned: false };
        let mut last = None;
        for sigma in [None, Some(0.2), Some(0.5), Some(1.0), Some(2.0)] {
            let provider = DitmcProvider::new(model(path), &graph, sigma, Some(100.0)).unwrap();
            let (t, s) = (provider.time(), sigma.unwrap_or(0.2));
            assert!((((1.0 - t).powi(2) + 0.04).sqrt() / t - s).abs() < 1e-9, "{sigma:?} {t}");
            assert!(last.is_none_or(|l: f64| t <= l + 1e-12));
            last = Some(t);
        }
        let refused = |path, sigma, temperature| DitmcProvider::new(model(path), &graph, sigma, temperature).is_err();
        assert!(refused(path, Some(0.1), None));
        assert!(refused(path, Some(f64::NAN), None));
        assert!(refused(path, None, Some(-1.0)));
        assert!(refused(NoisePath::default(), Some(0.3), None));
        assert!(refused(NoisePath { noise: 0.0, ..path }, None, None));
        let thermal = DitmcModel { temperature: Some(300.0), ..model(path) };
        assert!(DitmcProvider::new(thermal.clone(), &graph, None, Some(310.0)).is_err());
        let kind = DitmcProvider::new(thermal, &graph, None, None).unwrap().capabilities().kind;
        assert_eq!(kind, Kind::MeanForce { temperature_kelvin: 300.0 });
    }

    /// Forces of an annealed provider are, at each time, those of a provider at the level of its rung, alone and in a sum with others.
    #[test]
    fn levels_follow_the_clock() {
        let graph = Graph::from_smiles("CO").unwrap();
        let path = NoisePath { prior: Prior::Gaussian, noise: 0.2, aligned: false };
        let at = |sigma: f64| DitmcProvider::new(model(path), &graph, Some(sigma), None).unwrap();
        let annealing = Annealing { sigma: 1.6, period: 4.0, levels: 4 };
        let annealed = || at(0.2).annealed(Some(annealing)).unwrap();
        assert_eq!(annealed().capabilities().stiffness, None);
        let sample = sample(&[6, 8, 1, 1, 1, 1], 1);
        let batch = Batch::uniform(sample.system.clone(), 1, 0).unwrap();
        let forces = |provider: &mut dyn ForceProvider, clock: Clock| -> Vec<f64> {
            provider.prepare(&batch, DType::F64).unwrap();
            let x = scorefield_integrators::View::F64(&sample.positions);
            let mut out = Output::new(&batch, DType::F64, scorefield_integrators::Want::FORCES);
            // Levels come and go in one provider.
            for clock in [Clock::Iteration, clock] {
                provider
                    .evaluate(
                        &Input { batch: &batch, positions: x, cells: None, clock, want: scorefield_integrators::Want::FORCES },
                        &mut out,
                    )
                    .unwrap();
            }
            (0..18).map(|i| out.forces.get(i)).collect()
        };
        let clock = |time: f64| Clock::Physical { time };
        for (time, sigma) in [(0.0, 1.6), (1.5, 0.8), (2.0, 0.4), (3.9, 0.2), (4.0, 1.6), (402.5, 0.4)] {
            let (ours, theirs) = (forces(&mut annealed(), clock(time)), forces(&mut at(sigma), clock(0.0)));
            let most = theirs.iter().fold(0.0f64, |m, f| m.max(f.abs()));
            assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-12 * most), "{time} {sigma}");
        }
        assert_eq!(forces(&mut annealed(), Clock::Iteration), forces(&mut at(0.2), Clock::Iteration));
        // With a restraint beside it: both are there at every level.
        let held = || crate::combine::Restraint::new(700.0, &[0.1; 18], None, UnitSystem::Si).unwrap();
        let mut sum = crate::combine::Sum::new(vec![Box::new(annealed()), Box::new(held())]).unwrap();
        for time in [0.0, 3.5] {
            let parts = [forces(&mut annealed(), clock(time)), forces(&mut held(), clock(time))];
            let together = forces(&mut sum, clock(time));
            assert!((0..18).all(|i| (together[i] - parts[0][i] - parts[1][i]).abs() < 1e-9 * together[i].abs().max(1.0)));
        }
        let refused = |annealing| at(0.2).annealed(Some(annealing)).is_err();
        assert!(refused(Annealing { sigma: 0.2, ..annealing }) && refused(Annealing { levels: 1, ..annealing }));
        assert!(refused(Annealing { period: 0.0, ..annealing }));
        // A network that is a denoiser at one level only cannot be annealed.
        let one = DitmcProvider::new(model(NoisePath::default()), &graph, None, None).unwrap();
        assert!(one.annealed(Some(annealing)).is_err());
    }

    /// A ladder down to where three minima of known weights are apart, climbed again and again by overdamped Langevin dynamics from one of
    /// them: the populations of the minima come out. (Forces are those of the exact denoiser.)
    #[test]
    fn annealed_langevin_dynamics_finds_populations() {
        // Torsion states of butane as points on a line (Å), and their weights.
        let (minima, weights) = ([-1.1f64, 0.0, 1.1], [0.16f64, 0.68, 0.16]);
        let clean = |y: f64, sigma: f64| {
            let w: [f64; 3] = std::array::from_fn(|k| weights[k] * (-0.5 * ((y - minima[k]) / sigma).powi(2)).exp());
            (0..3).map(|k| w[k] * minima[k]).sum::<f64>() / w.iter().sum::<f64>()
        };
        let annealing = Annealing { sigma: 1.5, period: 1.0, levels: 20 };
        let ladder = annealing.ladder(0.1);
        assert!((ladder[0] - 1.5).abs() < 1e-12 && (ladder[19] - 0.1).abs() < 1e-12 && ladder.windows(2).all(|l| l[1] < l[0]));
        let (steps, walkers) = (400u64, 4000u32);
        let mut counts = [0u32; 3];
        for id in 0..walkers {
            let mut y = minima[0];
            for n in 0..2 * steps {
                let sigma = ladder[annealing.rung(n as f64 / steps as f64)];
                // k_B T = 1, so that the force constant is 1/σ²; a step of a tenth of the relaxation time.
                let z = Noise::new(5).normals(0, id, n, Purpose::Diffusion)[0];
                y += 0.1 * (clean(y, sigma) - y) + sigma * 0.19f64.sqrt() * z;
            }
            // In the end every walker is at a minimum, give or take the last level.
            let near = (0..3).min_by(|&a, &b| (y - minima[a]).abs().total_cmp(&(y - minima[b]).abs())).unwrap();
            assert!((y - minima[near]).abs() < 0.55, "{y}");
            counts[near] += 1;
        }
        for k in 0..3 {
            let (part, error) = (f64::from(counts[k]) / f64::from(walkers), (weights[k] * (1.0 - weights[k]) / f64::from(walkers)).sqrt());
            assert!((part - weights[k]).abs() < 4.0 * error, "{counts:?}");
        }
    }

    #[test]
    fn models_survive_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let mut written = model(NoisePath::default());
        written.values.iter_mut().for_each(|v| *v = f64::from(*v as f32));
        written.write(&file).unwrap();
        assert_eq!(DitmcModel::read(&file).unwrap(), written);
        let spec: crate::ProviderSpec = crate::parse_spec(&format!("ditmc:weights={},smiles=CO", file.display())).unwrap();
        assert!(spec.build().is_ok());
    }
}
