//! From a recipe and its data to a plan: published settings, changed by what the recipe says.

use crate::config::{Recipe, TrainSettings};
use crate::dataset::TrainingData;
use crate::error::{Result, usage};
use scorefield_integrators::UnitSystem;
use scorefield_models::scoremd::config::{Body, Head, ModelConfig, PRESETS};
use scorefield_models::scoremd::fokker_planck::{FokkerPlanck, Formulas};
use scorefield_models::scoremd::log_z::LogZ;
use scorefield_models::scoremd::loss::{ForceMatching, Objective};
use scorefield_models::scoremd::process::{TimeRange, VariancePreserving};
use scorefield_models::scoremd::published::{Published, Variant, published, systems};
use scorefield_models::scoremd::trainer::{Plan, Stage};
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema};

/// Smallest time that is trained, and at which forces are evaluated later.
const SMALLEST_TIME: f64 = 1e-5;
/// The published schedule of mixtures stops this much before the end of the smallest times, where differences in time
/// would leave the network's range.
const PUBLISHED_GAP: f64 = 1e-3;
/// Most frames that are held out by default.
const HELD_OUT: usize = 512;

/// The networks of a recipe and how they were trained when they were published.
pub(super) fn setup(recipe: &Recipe) -> Result<Published> {
    if let Some(other) = recipe.architecture.as_deref().filter(|a| *a != "scoremd") {
        return usage(format!("architecture = \"{other}\" is not known; known are ditmc, painn and scoremd"));
    }
    let variant = recipe.variant.unwrap_or(Variant::Diffusion);
    let setup = match (&recipe.preset, recipe.experts.is_empty()) {
        (Some(_), false) => return usage("the recipe has a preset and `experts`; one of them must go"),
        (None, true) => {
            return usage(format!("the recipe says no network; write preset = \"NAME\" (one of {}) or [[experts]]", systems().join(", ")));
        }
        (Some(name), true) => match published(name, variant) {
            Some(setup) => setup,
            None if systems().contains(&name.as_str()) => {
                return usage(format!(
                    "preset = \"{name}\" has no published mixture; write variant = \"diffusion\" or \"fokker-planck\", or your own [[experts]]"
                ));
            }
            None if PRESETS.contains(&name.as_str()) => {
                let base = name.trim_end_matches("-mixture");
                return usage(format!("preset = \"{name}\": write preset = \"{base}\" and variant = \"mixture\" or \"both\""));
            }
            None => return usage(format!("preset = \"{name}\" is not known; known are {}", systems().join(", "))),
        },
        (None, false) => Published {
            config: ModelConfig { experts: recipe.experts.clone() },
            epochs: vec![100.0; recipe.experts.len()],
            midpoints: recipe.experts.iter().map(|e| e.range.start + 0.3 * (e.range.end - e.range.start)).collect(),
            batch: 128,
            learning_rate: 3e-4,
            residual_weight: if variant.has_residual() { 5e-4 } else { 0.0 },
        },
    };
    match (setup.config.is_transferable(), recipe.data.systems.is_none()) {
        (true, true) => {
            return usage(
                "[data]: a transferable network learns from several molecules; write systems = \"FOLDER\" with NAME.pdb and NAME.dcd of each",
            );
        }
        (false, false) => {
            return usage("[data]: systems are for transferable networks (preset = \"dipeptides\"); others are of one molecule");
        }
        _ => {}
    }
    for e in &setup.config.experts {
        if e.body.dimension() != setup.config.experts[0].body.dimension() {
            return usage("the networks of a mixture are for configurations of different sizes");
        }
    }
    Ok(setup)
}

/// Whether configurations are beads in space, which may be turned.
fn is_beads(config: &ModelConfig) -> bool {
    config.experts.iter().all(|e| matches!(e.body, Body::GraphTransformer { .. }))
}

/// The plan.
///
/// # Errors
/// Where settings contradict each other or the data.
pub(super) fn plan(recipe: &Recipe, setup: &Published, data: &TrainingData, seed: u64) -> Result<Plan> {
    let t = &recipe.train;
    let networks = setup.config.experts.len();
    let held_out = t.held_out.unwrap_or((data.len() / 10).min(HELD_OUT));
    if held_out >= data.len() {
        return usage(format!("[train]: held-out = {held_out}, but there are only {} frames", data.len()));
    }
    let batch = t.batch.unwrap_or(setup.batch);
    let steps = steps(t, setup, data.len() - held_out, batch)?;
    let midpoints = t.midpoints.clone().unwrap_or_else(|| setup.midpoints.clone());
    if midpoints.len() != networks {
        return usage(format!("[train]: there are {} midpoints for {networks} networks", midpoints.len()));
    }
    let formulas = t.formulas.unwrap_or_default();
    let residual = residual(t, setup, formulas)?;
    let forces = match t.force_weight {
        Some(w) if w > 0.0 => Some(ForceMatching { weight: w, until: t.force_until.unwrap_or(0.05) }),
        Some(w) if !(w >= 0.0) => return usage(format!("[train]: force-weight = {w} is negative")),
        _ => None,
    };
    if forces.is_some() && data.scores.is_none() {
        return usage("[train]: force-weight needs forces; add `forces` to [data]");
    }
    let force_scale = data.scores.as_ref().map_or(1.0, |s| {
        let square = s.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / s.len().max(1) as f64;
        if square > 0.0 { 1.0 / square.sqrt() } else { 1.0 }
    });
    let smallest = t.smallest_time.unwrap_or(SMALLEST_TIME);
    let peak = t.learning_rate.unwrap_or(setup.learning_rate);
    let stages = setup.config.experts.iter().enumerate().map(|(k, expert)| {
        let last = k + 1 == networks;
        let potential = expert.head == Head::Potential;
        let TimeRange { start, end } = expert.range;
        let fokker_planck = residual.filter(|_| last && potential);
        let end = if formulas == Formulas::Published && last && networks > 1 { end - PUBLISHED_GAP } else { end };
        Stage {
            network: k,
            times: TimeRange { start: start.max(smallest), end },
            objective: Objective {
                formulas,
                process: VariancePreserving::default(),
                range: expert.range,
                midpoint: midpoints[k],
                fokker_planck,
                log_z: fokker_planck.filter(|_| formulas == Formulas::Corrected).map(|_| LogZ::new(expert.range.end)),
                forces: forces.filter(|f| f.until > start),
                force_scale,
            },
            schedule: CosineSchedule {
                peak,
                floor: t.final_learning_rate.unwrap_or(1e-5).min(peak),
                warmup: t.warmup.unwrap_or(0),
                steps: steps[k],
            },
        }
    });
    let stages: Vec<Stage> = stages.collect();
    if residual.is_some() && stages.iter().all(|s| s.objective.fokker_planck.is_none()) {
        return usage("[train]: the network of the smallest times has no energy (head = \"score\"), whose consistency could be asked for");
    }
    let rotate = t.rotate.unwrap_or(is_beads(&setup.config) && data.units == UnitSystem::Si);
    Ok(Plan {
        stages,
        batch,
        adam: AdamW { weight_decay: t.weight_decay.unwrap_or(1e-4), ..AdamW::default() },
        clip: Some(t.clip.unwrap_or(Clip::Element(1e3))),
        ema: t.ema.map_or(Ema::default(), |decay| Ema { decay }),
        log_z_rate: 10.0,
        rotate,
        held_out,
        seed,
    })
}

/// Steps per network.
fn steps(t: &TrainSettings, setup: &Published, frames: usize, batch: usize) -> Result<Vec<u64>> {
    let networks = setup.epochs.len();
    let shares = t.shares.clone().unwrap_or_else(|| setup.epochs.clone());
    let sum: f64 = shares.iter().sum();
    if shares.len() != networks || !shares.iter().all(|s| *s > 0.0 && s.is_finite()) {
        return usage(format!("[train]: shares = {shares:?}; one number above zero is needed for each of {networks} networks"));
    }
    let all = match (t.steps, t.epochs) {
        (Some(_), Some(_)) => return usage("[train]: steps and epochs are both given; one of them must go"),
        (Some(steps), None) => steps as f64,
        (None, epochs) => (epochs.unwrap_or(setup.epochs.iter().sum()) * frames as f64 / batch.max(1) as f64).round(),
    };
    if !(all >= networks as f64 && all < 1e15) {
        return usage(format!("[train]: {all} steps are no training of {networks} networks"));
    }
    let mut steps: Vec<u64> = shares.iter().map(|s| ((s / sum * all).round() as u64).max(1)).collect();
    let others: u64 = steps[..networks - 1].iter().sum();
    steps[networks - 1] = (all as u64).saturating_sub(others).max(1);
    Ok(steps)
}

fn residual(t: &TrainSettings, setup: &Published, formulas: Formulas) -> Result<Option<FokkerPlanck>> {
    let weight = t.fokker_planck_weight.unwrap_or(setup.residual_weight);
    if !(weight >= 0.0 && weight.is_finite()) {
        return usage(format!("[train]: fokker-planck-weight = {weight} is not a number from 0 on"));
    }
    if weight == 0.0 {
        return Ok(None);
    }
    let default = match formulas {
        Formulas::Published => FokkerPlanck::published(weight),
        Formulas::Corrected => FokkerPlanck { weight, ..FokkerPlanck::default() },
    };
    Ok(Some(FokkerPlanck {
        weight,
        sigma: t.fokker_planck_sigma.unwrap_or(default.sigma),
        probe: t.fokker_planck_probe.unwrap_or(default.probe),
        time_step: t.fokker_planck_time_step.unwrap_or(default.time_step),
        fraction: t.fokker_planck_fraction.unwrap_or(default.fraction),
    }))
}
