//! Adapters on a Gaussian mixture, whose score is known exactly at every noise level.

use super::*;
use crate::testing::{self, Sample};
use scorefield_integrators::{System, Want};

/// Positions `x₀` (nm) of `N` atoms: a mixture of isotropic Gaussians in all `3 N` coordinates, of equal width.
#[derive(Clone)]
struct Mixture {
    weights: Vec<f64>,
    /// `[3 N]` each.
    means: Vec<Vec<f64>>,
    width: f64,
}

impl Mixture {
    fn new() -> Self {
        let mean = |k: u32| -> Vec<f64> { (0..6).map(|i| 0.2 * f64::from((i * i + k * i) % 5) - 0.3).collect() };
        Mixture { weights: vec![0.2, 0.5, 0.3], means: vec![mean(0), mean(1), mean(2)], width: 0.3 }
    }

    /// The density of `factor x₀ + noise ε`.
    fn smoothed(&self, factor: f64, noise: f64) -> Self {
        Mixture {
            weights: self.weights.clone(),
            means: self.means.iter().map(|m| m.iter().map(|x| factor * x).collect()).collect(),
            width: (factor * self.width).hypot(noise),
        }
    }

    /// `log q` up to a constant, and `∇ log q`.
    fn log_and_score(&self, x: &[f64]) -> (f64, Vec<f64>) {
        let variance = self.width * self.width;
        let distance = |m: &[f64]| x.iter().zip(m).map(|(x, m)| (x - m).powi(2)).sum::<f64>();
        let parts: Vec<f64> = self.weights.iter().zip(&self.means).map(|(w, m)| w * (-0.5 * distance(m) / variance).exp()).collect();
        let total: f64 = parts.iter().sum();
        let score = (0..x.len()).map(|i| parts.iter().zip(&self.means).map(|(p, m)| p / total * (m[i] - x[i]) / variance).sum()).collect();
        (total.ln(), score)
    }

    /// The same in candle: `log q` of each replica `[B]`, up to a constant.
    fn log_density(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let rows = x.reshape(((), 6))?;
        let mut parts = Vec::new();
        for (w, m) in self.weights.iter().zip(&self.means) {
            let mean = Tensor::from_slice(m, (1, 6), &Device::Cpu)?.to_dtype(x.dtype())?;
            let exponent = (rows.broadcast_sub(&mean)?.sqr()?.sum(1)? * (-0.5 / self.width.powi(2)))?;
            parts.push((exponent + w.ln())?);
        }
        Tensor::stack(&parts, 0)?.log_sum_exp(0)
    }
}

/// Energy `−kT log p(x)`.
struct Energy(Mixture, f64);
impl EnergyFunction for Energy {
    fn energy(&self, positions: &Tensor, _: &Batch, _: Clock) -> candle_core::Result<Tensor> {
        self.0.log_density(positions)? * -self.1
    }
}

/// The exact prediction of each sort for data `c x₀`.
struct Exact {
    mixture: Mixture,
    scale: f64,
    prediction: Prediction,
    stiffness: f64,
}
impl Denoiser for Exact {
    fn predict(&self, noisy: &Tensor, _: &Batch, n: &NoiseLevel) -> candle_core::Result<Tensor> {
        let density = self.mixture.smoothed(n.alpha * self.scale, n.sigma);
        let y = Var::from_tensor(noisy)?;
        let gradients = density.log_density(y.as_tensor())?.sum_all()?.backward()?;
        let s = gradients.get(y.as_tensor()).unwrap().detach();
        let noise = (&s * -n.sigma)?;
        let clean = ((noisy + (&s * (n.sigma * n.sigma))?)? / n.alpha)?;
        match self.prediction {
            Prediction::Score => Ok(s),
            Prediction::Noise => Ok(noise),
            Prediction::Clean => Ok(clean),
            Prediction::Velocity => (clean * n.rates[0])? + (noise * n.rates[1])?,
            Prediction::PseudoForce => (clean - noisy)? * self.stiffness,
            Prediction::Energy | Prediction::Force => unreachable!(),
        }
    }
}

fn samples() -> Vec<Sample> {
    let system = Arc::new(System::particles("pair", 2, 12.0));
    (0..5).map(|seed| Sample::new(system.clone(), vec![0.0; 6]).displaced(0.4, seed)).collect()
}

fn settings(prediction: Prediction, target: Target, level: NoiseLevel) -> ScoreSettings {
    ScoreSettings {
        name: "mixture".into(),
        prediction,
        stiffness: 3.0,
        scale: 10.0,
        target,
        levels: Levels::Fixed(level),
        units: UnitSystem::Si,
        types: None,
    }
}

fn provider(settings: ScoreSettings) -> ScoreModel {
    let ScoreSettings { scale, prediction, stiffness, .. } = settings;
    ScoreModel::new(Arc::new(Exact { mixture: Mixture::new(), scale, prediction, stiffness }), settings).unwrap()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    let size = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).for_each(|(g, w)| assert!((g - w).abs() <= tolerance * size, "{g} instead of {w}"));
}

const LEVELS: [fn() -> NoiseLevel; 3] =
    [|| NoiseLevel::variance_preserving(0.3, 0.8), || NoiseLevel::variance_exploding(0.7), || NoiseLevel::straight(0.4)];
const PREDICTIONS: [Prediction; 5] =
    [Prediction::Score, Prediction::Noise, Prediction::Clean, Prediction::Velocity, Prediction::PseudoForce];

#[test]
fn energies_give_exact_forces() {
    let kt = BOLTZMANN * 300.0;
    let mut model = EnergyModel::new(Arc::new(Energy(Mixture::new(), kt)), Capabilities::potential("mixture"));
    for s in samples() {
        testing::check_forces(&mut model, &s, 1e-8);
        let (log, score) = Mixture::new().log_and_score(&s.positions);
        let out = testing::evaluate(&mut model, std::slice::from_ref(&s), DType::F64, Want::ENERGY);
        assert!((out.energy[0] + kt * log).abs() < 1e-12);
        close(&out.forces.to_f64(), &score.iter().map(|s| kt * s).collect::<Vec<_>>(), 1e-12);
        let single = testing::evaluate(&mut model, &[s], DType::F32, Want::FORCES);
        close(&single.forces.to_f64(), &out.forces.to_f64(), 1e-5);
    }
}

#[test]
fn every_prediction_gives_the_force_of_the_smoothed_ensemble() {
    let target = Target::MeanForce { temperature: 300.0 };
    for level in LEVELS {
        let level = level();
        // x₀ + σ/(α c) ε has this density; its mean force is kT times its score.
        let density = Mixture::new().smoothed(1.0, level.sigma / (level.alpha * 10.0));
        for prediction in PREDICTIONS {
            let mut model = provider(settings(prediction, target, level));
            assert_eq!(model.capabilities().kind, Kind::MeanForce { temperature_kelvin: 300.0 });
            for s in samples() {
                let want: Vec<f64> = density.log_and_score(&s.positions).1.iter().map(|s| BOLTZMANN * 300.0 * s).collect();
                let out = testing::evaluate(&mut model, std::slice::from_ref(&s), DType::F64, Want::FORCES);
                close(&out.forces.to_f64(), &want, 1e-10);
            }
            testing::check_batch_invariance(&mut model, &samples());
        }
    }
}

#[test]
fn published_scaling_and_pseudo_forces() {
    let level = NoiseLevel::variance_preserving(0.1, 0.9);
    let s = &samples()[1];
    let one = std::slice::from_ref(s);
    // F = kT c s(c x): the score of the data at this noise level, at the unscaled argument.
    let data = Mixture::new().smoothed(level.alpha * 10.0, level.sigma);
    let y: Vec<f64> = s.positions.iter().map(|x| 10.0 * x).collect();
    let want: Vec<f64> = data.log_and_score(&y).1.iter().map(|s| BOLTZMANN * 310.0 * 10.0 * s).collect();
    let mut model = provider(settings(Prediction::Noise, Target::PublishedMeanForce { temperature: 310.0 }, level));
    close(&testing::evaluate(&mut model, one, DType::F64, Want::FORCES).forces.to_f64(), &want, 1e-10);
    // Towards the expected clean positions: Tweedie's formula for x₀ + σ/(α c) ε.
    let noise = level.sigma / (level.alpha * 10.0);
    let score = Mixture::new().smoothed(1.0, noise).log_and_score(&s.positions).1;
    let want: Vec<f64> = score.iter().map(|s| 5.0 * noise * noise * s).collect();
    for prediction in PREDICTIONS {
        let mut model = provider(settings(prediction, Target::PseudoForce { stiffness: 5.0 }, level));
        assert_eq!(model.capabilities().kind, Kind::PseudoForce);
        close(&testing::evaluate(&mut model, one, DType::F64, Want::FORCES).forces.to_f64(), &want, 1e-10);
    }
}

#[test]
fn the_clock_sets_the_noise_level() {
    let fixed = settings(Prediction::Clean, Target::MeanForce { temperature: 300.0 }, NoiseLevel::straight(0.4));
    let mut clocked = provider(ScoreSettings { levels: Levels::Clock(Arc::new(NoiseLevel::straight)), ..fixed.clone() });
    assert!(clocked.capabilities().needs_noise_level);
    let at = testing::evaluate_at(&mut clocked, &samples(), DType::F64, Want::FORCES, Clock::Diffusion { t: 0.4 });
    assert_eq!(at.forces, testing::evaluate(&mut provider(fixed.clone()), &samples(), DType::F64, Want::FORCES).forces);
    let s = &samples()[0];
    let batch = Batch::uniform(s.system.clone(), 1, 0).unwrap();
    let positions = Array::F64(s.positions.clone());
    let mut out = Output::new(&batch, DType::F64, Want::FORCES);
    for (clock, part) in [(Clock::Iteration, "diffusion time"), (Clock::Diffusion { t: 0.0 }, "above zero")] {
        let input = Input { batch: &batch, positions: positions.view(), cells: None, clock, want: Want::FORCES };
        let message = ForceProvider::evaluate(&mut clocked, &input, &mut out).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let refused = |change: fn(&mut ScoreSettings)| {
        let mut s = fixed.clone();
        change(&mut s);
        let model = Exact { mixture: Mixture::new(), scale: 1.0, prediction: Prediction::Score, stiffness: 1.0 };
        ScoreModel::new(Arc::new(model), s).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refused(|s| s.scale = 0.0).contains("scale"));
    assert!(refused(|s| s.prediction = Prediction::Energy).contains("no function of a score"));
    assert!(refused(|s| s.target = Target::MeanForce { temperature: -1.0 }).contains("temperature"));
    assert!(refused(|s| s.levels = Levels::Fixed(NoiseLevel::straight(1.0))).contains("noise level"));
}

#[test]
fn toys_keep_their_axes_and_lost_gradients_are_noticed() {
    let plane = System { axes: [true, true, false], ..System::particles("plane", 2, 1.0) };
    let mut model = provider(settings(Prediction::Score, Target::MeanForce { temperature: 300.0 }, NoiseLevel::straight(0.3)));
    let out = testing::evaluate(&mut model, &[Sample::new(plane, vec![0.1; 6])], DType::F64, Want::FORCES).forces.to_f64();
    assert!(out[2] == 0.0 && out[5] == 0.0 && out[0] != 0.0);

    struct Lost;
    impl EnergyFunction for Lost {
        fn energy(&self, positions: &Tensor, batch: &Batch, _: Clock) -> candle_core::Result<Tensor> {
            positions.detach().sqr()?.sum_all()?.reshape(batch.replicas())
        }
    }
    struct Wrong;
    impl EnergyFunction for Wrong {
        fn energy(&self, positions: &Tensor, _: &Batch, _: Clock) -> candle_core::Result<Tensor> {
            positions.sqr()
        }
    }
    let s = &samples()[0];
    let batch = Batch::uniform(s.system.clone(), 1, 0).unwrap();
    let positions = Array::F64(s.positions.clone());
    let input = Input { batch: &batch, positions: positions.view(), cells: None, clock: Clock::Iteration, want: Want::ENERGY };
    let mut out = Output::new(&batch, DType::F64, Want::ENERGY);
    let mut message = |energy: Arc<dyn EnergyFunction>| {
        let mut model = EnergyModel::new(energy, Capabilities::potential("odd"));
        ForceProvider::evaluate(&mut model, &input, &mut out).unwrap_err().to_string()
    };
    assert!(message(Arc::new(Lost)).contains("no gradient reached"));
    assert!(message(Arc::new(Wrong)).contains("shape [2, 3] instead of [1]"));
}

#[test]
fn second_derivatives_are_right_in_every_thread() {
    assert_second_order().unwrap();
    std::thread::spawn(|| assert_second_order().unwrap()).join().unwrap();
}
