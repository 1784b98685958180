//! Samplers as they are written in settings, and resolved.

use super::Schedule;
use crate::error::{Result, invalid};
use crate::relax::positive;
use crate::units::{Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};

/// What a sampler does with the forces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Sampler {
    /// Direct denoising: all the way to the denoised structure, again and again, until it stays.
    Dd {
        /// Ends when no atom is further than this from where it is said to belong, `max |F|/k`; by default `0.02 A`, which
        /// is a force of 0.02 eV/Å at k = 1 eV/Å².
        threshold: Option<Quantity>,
        /// Ends, not converged, after this many evaluations.
        max_evaluations: u32,
    },
    /// Stochastic direct denoising: each step followed by noise that falls to zero linearly.
    Sdd {
        /// The noise at the start, by default `0.3 A`.
        eta: Option<Quantity>,
    },
    /// Variance-exploding ancestral sampling.
    Ancestral,
    /// Heun's method for the probability-flow equation.
    Heun,
    /// The same with noise added before each step.
    StochasticHeun(Churn),
    /// Ornstein–Uhlenbeck steps at one noise level, exact for data at one point: a thermostat of kT = k σ².
    Langevin {
        /// The noise level, by default `0.16 A` (300 K at k = 1 eV/Å²).
        sigma: Option<Quantity>,
        /// Length of a step in units of the relaxation time.
        tau: f64,
    },
}

/// Noise before a Heun step (Karras et al., algorithm 2): `γ = min(churn/S, √2 − 1)` between two levels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Churn {
    /// `S_churn`.
    pub churn: f64,
    /// Lowest level with added noise, by default `0.01 A`.
    pub sigma_low: Option<Quantity>,
    /// Highest level with added noise, by default `15 A`.
    pub sigma_high: Option<Quantity>,
    /// Factor on the added noise.
    pub noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Churn { churn: 60.0, sigma_low: None, sigma_high: None, noise: 1.0 }
    }
}

/// Levels from the forces: molecules that are closer to the data than the schedule says take larger steps, those that are
/// behind never more steps than it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Adaptive {
    /// Steps aimed at, as a share of the schedule's.
    pub target: f64,
    /// Share of the variance that churn has added which does not count as progress undone; 0 to 1.
    pub correction: f64,
    /// Degrees of freedom of `σ̂`: without rotations (`3N − 6`, for models that cannot know them), or with them (`3N − 3`).
    pub rotations: bool,
}

impl Default for Adaptive {
    fn default() -> Self {
        Adaptive { target: 0.5, correction: 0.5, rotations: false }
    }
}

/// How noise becomes structures. Lengths are text such as `"30 A"`, or bare numbers where the model has reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct DenoiseSpec {
    /// The sampler.
    pub sampler: Sampler,
    /// Steps `S` of the schedule; with direct denoising, evaluations during which a shape is enforced.
    pub steps: u32,
    /// First noise level, by default `30 A`.
    pub sigma_max: Option<Quantity>,
    /// Last noise level above zero, by default `0.01 A`.
    pub sigma_min: Option<Quantity>,
    /// Exponent ρ of the schedule.
    pub rho: f64,
    /// Levels from the forces instead of the schedule.
    pub adaptive: Option<Adaptive>,
    /// Strictness `q` of a shape: it is enforced with strength `(s/S)^q`.
    pub strictness: f64,
    /// With frozen atoms: takes the mean displacement that is wished for these off all others, since the model knows no
    /// fixed place.
    pub compensate_drift: bool,
}

impl Default for DenoiseSpec {
    fn default() -> Self {
        DenoiseSpec {
            sampler: Sampler::Sdd { eta: None },
            steps: 256,
            sigma_max: None,
            sigma_min: None,
            rho: 5.0,
            adaptive: None,
            strictness: 1.0,
            compensate_drift: false,
        }
    }
}

impl Sampler {
    /// Names on the command line.
    pub const NAMES: [&'static str; 6] = ["dd", "sdd", "ancestral", "heun", "stochastic-heun", "langevin"];

    /// The sampler called `name` with its defaults, where known.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "dd" => Sampler::Dd { threshold: None, max_evaluations: 256 },
            "sdd" => Sampler::Sdd { eta: None },
            "ancestral" => Sampler::Ancestral,
            "heun" => Sampler::Heun,
            "stochastic-heun" => Sampler::StochasticHeun(Churn::default()),
            "langevin" => Sampler::Langevin { sigma: None, tau: 0.5 },
            _ => return None,
        })
    }

    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Sampler::Dd { .. } => "dd",
            Sampler::Sdd { .. } => "sdd",
            Sampler::Ancestral => "ancestral",
            Sampler::Heun => "heun",
            Sampler::StochasticHeun(_) => "stochastic-heun",
            Sampler::Langevin { .. } => "langevin",
        }
    }

    /// True where it goes down a schedule of noise levels.
    pub fn has_schedule(&self) -> bool {
        matches!(self, Sampler::Ancestral | Sampler::Heun | Sampler::StochasticHeun(_))
    }

    /// True where it knows the noise level at which it evaluates forces.
    pub fn has_levels(&self) -> bool {
        self.has_schedule() || matches!(self, Sampler::Langevin { .. })
    }
}

/// A specification in internal units, with the stiffness of the forces.
pub(super) struct Settings {
    pub(super) method: Method,
    /// `k` in kJ/mol/nm².
    pub(super) stiffness: f64,
    pub(super) schedule: Schedule,
    pub(super) adaptive: Option<AdaptiveSettings>,
    pub(super) rotations: bool,
    pub(super) strictness: f64,
    pub(super) compensate_drift: bool,
    /// How far (nm) a molecule reaches from its centre at most, per atom; none in reduced units.
    pub(super) reach: Option<f64>,
}

/// Å of [`Settings::reach`]: half of a long bond.
const REACH: f64 = 1.0;

/// Lengths in nm.
pub(super) enum Method {
    Direct { threshold: f64, max_evaluations: u32 },
    Stochastic { eta: f64 },
    Ancestral,
    Heun { churn: Option<ChurnSettings> },
    Langevin { sigma: f64, tau: f64 },
}

pub(super) struct ChurnSettings {
    /// Largest relative rise of the level, `γ`.
    pub(super) rise: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) noise: f64,
}

pub(super) struct AdaptiveSettings {
    /// Step aimed at in `σ^(1/ρ)`.
    pub(super) delta: f64,
    pub(super) correction: f64,
}

impl DenoiseSpec {
    pub(super) fn settings(&self, units: UnitSystem, stiffness: f64) -> Result<Settings> {
        let length = |name: &str, quantity: &Option<Quantity>, default: f64| {
            positive(name, quantity.as_ref(), Dimension::LENGTH, units, (default, "A"), default)
        };
        let number = |name: &str, value: f64, most: f64, default: f64| {
            if value > 0.0 && value <= most {
                return Ok(value);
            }
            invalid(format!("{name} = {value} is not above 0{}; leave it out for {default}", limit(most)))
        };
        let least = if self.sampler.has_schedule() { 2 } else { 1 };
        if self.steps < least {
            return invalid(format!("steps = {} is too few for {}; give at least {least}", self.steps, self.sampler.name()));
        }
        let (sigma_max, sigma_min) = (length("sigma-max", &self.sigma_max, 30.0)?, length("sigma-min", &self.sigma_min, 0.01)?);
        let rho = number("rho", self.rho, 100.0, 5.0)?;
        if self.sampler.has_schedule() && sigma_min >= sigma_max {
            return invalid(format!(
                "sigma-min = {sigma_min} nm is not below sigma-max = {sigma_max} nm; the schedule goes from the larger to the smaller"
            ));
        }
        if !(self.strictness >= 0.0 && self.strictness.is_finite()) {
            return invalid(format!("strictness = {} is not a number from 0; leave it out for 1", self.strictness));
        }
        let schedule = Schedule::new(self.steps, sigma_min, sigma_max, rho);
        let method = match &self.sampler {
            Sampler::Dd { max_evaluations: 0, .. } => return invalid("max-evaluations is 0; give at least 1"),
            Sampler::Dd { threshold, max_evaluations } => {
                Method::Direct { threshold: length("threshold", threshold, 0.02)?, max_evaluations: *max_evaluations }
            }
            Sampler::Sdd { eta } => Method::Stochastic { eta: length("eta", eta, 0.3)? },
            Sampler::Ancestral => Method::Ancestral,
            Sampler::Heun => Method::Heun { churn: None },
            Sampler::StochasticHeun(c) => Method::Heun {
                churn: Some(ChurnSettings {
                    rise: (number("churn", c.churn, f64::MAX, 60.0)? / f64::from(self.steps)).min(std::f64::consts::SQRT_2 - 1.0),
                    low: length("sigma-low", &c.sigma_low, 0.01)?,
                    high: length("sigma-high", &c.sigma_high, 15.0)?,
                    noise: number("noise", c.noise, f64::MAX, 1.0)?,
                }),
            },
            Sampler::Langevin { sigma, tau } => {
                Method::Langevin { sigma: length("sigma", sigma, 0.16)?, tau: number("tau", *tau, f64::MAX, 0.5)? }
            }
        };
        let adaptive = match &self.adaptive {
            None => None,
            Some(_) if !self.sampler.has_schedule() => {
                return invalid(format!(
                    "{} has no schedule that could adapt; use ancestral, heun or stochastic-heun, or leave out adaptive",
                    self.sampler.name()
                ));
            }
            Some(a) => {
                if !(0.0..=1.0).contains(&a.correction) {
                    return invalid(format!("correction = {} is not between 0 and 1; leave it out for 0.5", a.correction));
                }
                let steps = (number("target", a.target, 1.0, 0.5)? * f64::from(self.steps)).round_ties_even().max(2.0);
                let target = Schedule::new(steps as u32, sigma_min, sigma_max, rho);
                Some(AdaptiveSettings { delta: target.delta(), correction: a.correction })
            }
        };
        Ok(Settings {
            method,
            stiffness,
            schedule,
            adaptive,
            rotations: self.adaptive.as_ref().is_some_and(|a| a.rotations),
            strictness: self.strictness,
            compensate_drift: self.compensate_drift,
            reach: (units == UnitSystem::Si).then_some(REACH * crate::units::NM_PER_ANGSTROM),
        })
    }
}

fn limit(most: f64) -> String {
    if most < f64::MAX { format!(" and at most {most}") } else { " and finite".into() }
}
