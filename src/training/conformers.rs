//! Training of conformer models: ensembles of molecules, the loop, and the model in the end.

use super::course::{self, Course, Origin, Record};
use super::minima::{packed, packed_bytes};
use super::{Header, MODEL_FILE, Request, cannot_start, start_from};
use crate::checkpoint::{Fnv, InputFile};
use crate::config::Recipe;
use crate::dataset::Paths;
use crate::error::{Error, Result, usage};
use crate::io::table::Field;
use crate::io::{Frame, FrameRange, ReadOptions, read_frames};
use crate::runtime::{Outcome, Runtime};
use crate::signals::Interrupt;
use rayon::prelude::*;
use scorefield_integrators::simd::{self, SimdReal};
use scorefield_integrators::units::Dimension;
use scorefield_integrators::{Noise, Purpose, System, UnitSystem};
use scorefield_models::ditmc::trainer::{Conformers, Plan, Sums, Trainer};
use scorefield_models::ditmc::{DitmcConfig, DitmcModel, GraphContext, model::ARCHITECTURE};
use scorefield_models::molecule::{Convention, Graph, Perceiver, Vocabulary};
use scorefield_models::painn::trainer::Molecules;
use scorefield_models::train::adamw::Root;
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema, StateFile};
use std::sync::Arc;

/// Å per nm.
const ANGSTROMS: f64 = 10.0;
/// Conformers that validations look at by default.
const VALIDATION: usize = 2048;
/// Earlier molecules that a conformer is compared with: conformers of one molecule lie near each other in files.
const MOST_BACK: usize = 64;
const COLUMNS: [&str; 10] =
    ["step", "epoch", "loss", "gradient_norm", "learning_rate", "conformers_per_second", "seconds", "validation_loss", "skipped", "bins"];

/// Whether a recipe is of this kind.
pub(super) fn is_meant(recipe: &Recipe) -> bool {
    recipe.architecture.as_deref() == Some(ARCHITECTURE) || recipe.preset.as_deref().is_some_and(|p| DitmcConfig::PRESETS.contains(&p))
}

/// Trains as asked, or goes on.
///
/// # Errors
/// Where the recipe, its data or the output directory are wrong, or losses are not finite.
pub(super) fn train<T: SimdReal + Root>(
    request: Request,
    recorded: Option<(Header, StateFile)>,
    interrupt: &Interrupt,
    runtime: &Runtime,
) -> Result<Outcome> {
    let seed = request.recipe.train.seed.unwrap_or(0);
    let config = config(&request.recipe)?;
    let temperature = request.recipe.data.temperature.as_ref().map(|t| t.resolve(Dimension::TEMPERATURE, UnitSystem::Si));
    let temperature = temperature.transpose().map_err(|e| Error::Usage(format!("[data]: temperature: {e}")))?;
    let (data, hash, mut inputs) = load(&request, config.vocabulary, seed, runtime)?;
    let plan = plan(&request.recipe, config, &data, seed)?;
    let device = request.recipe.train.device.unwrap_or_default().open()?;
    let place = device.as_ref().map_or_else(|| simd::current_isa().to_string(), |d| d.name().to_owned());
    let mut trainer = match &device {
        None => Trainer::<T>::new(plan, data.clone())?,
        Some(device) => Trainer::on(device, plan, data.clone())?,
    };
    if let Some(file) = start_from(&request.recipe, &request.folder).filter(|_| recorded.is_none()) {
        inputs.push(InputFile::of(&file)?);
        let model = DitmcModel::read(&file)?;
        if model.config != trainer.plan().config || model.path != trainer.plan().path {
            return Err(cannot_start(&file, "it has another network or [path] than the recipe; take those that it was trained with"));
        }
        trainer.start_from(&model.values)?;
    }
    let origin = Origin { dtype: T::DTYPE, seed, data: hash, inputs };
    let record = Record::open(&request, recorded, origin, &COLUMNS, runtime, |state, path| {
        trainer.restore(state, path)?;
        Ok(trainer.counters().step)
    })?;
    course::run(&mut Run { trainer, data, temperature, record, place }, interrupt)
}

fn config(recipe: &Recipe) -> Result<DitmcConfig> {
    let preset = recipe.preset.as_deref().unwrap_or(DitmcConfig::PRESETS[0]);
    match recipe.transformer.clone().or_else(|| DitmcConfig::preset(preset)) {
        Some(config) => Ok(config),
        None => usage(format!("preset = \"{preset}\" is not known; known are {}", DitmcConfig::PRESETS.join(", "))),
    }
}

/// From a recipe to a plan. Defaults are as published.
fn plan(recipe: &Recipe, config: DitmcConfig, data: &Conformers, seed: u64) -> Result<Plan> {
    let t = &recipe.train;
    let batch = t.batch.unwrap_or(128);
    let steps = match (t.steps, t.epochs) {
        (Some(_), Some(_)) => return usage("[train]: steps and epochs are both given; one of them must go"),
        (Some(steps), None) => steps,
        (None, epochs) => (epochs.unwrap_or(250.0) * data.training.len() as f64 / batch.max(1) as f64).round() as u64,
    };
    let peak = t.learning_rate.unwrap_or(3e-4);
    if !(peak > 0.0 && peak.is_finite()) {
        return usage("[train]: learning-rate must be above zero");
    }
    let floor = t.final_learning_rate.unwrap_or(0.0).min(peak);
    Ok(Plan {
        config,
        path: recipe.path.unwrap_or_default(),
        times: recipe.times.unwrap_or_default(),
        batch,
        rate: CosineSchedule { peak, floor, warmup: t.warmup.unwrap_or(steps / 100), steps },
        adam: AdamW { weight_decay: t.weight_decay.unwrap_or(1e-4), ..AdamW::default() },
        clip: Some(t.clip.unwrap_or(Clip::Norm(10.0))),
        ema: Ema { decay: t.ema.unwrap_or(0.999) },
        seed,
    })
}

/// A structure as read: elements, positions (Å), and bonds where the file has them.
struct Structure {
    types: Vec<u32>,
    positions: Vec<f64>,
    charge: i32,
    graph: Option<Arc<Graph>>,
    /// 0 training, 1 validation, where the file says so.
    split: Option<u8>,
}

/// Reads the conformers; their hash and the files they are from.
fn load(request: &Request, vocabulary: Vocabulary, seed: u64, runtime: &Runtime) -> Result<(Arc<Conformers>, String, Vec<InputFile>)> {
    let settings = request.recipe.data.absolute(&request.folder);
    let paths = match &settings.trajectory {
        None => {
            return usage(
                "[data]: trajectory is missing; name a file of conformers (SDF; XYZ or packed minima, whose bonds are perceived)",
            );
        }
        Some(Paths::One(path)) => std::slice::from_ref(path),
        Some(Paths::Several(paths)) => &paths[..],
    };
    let range: FrameRange = match settings.frames.as_deref().map(str::parse).transpose() {
        Ok(range) => range.unwrap_or_default(),
        Err(e) => return usage(format!("[data]: frames: {e}")),
    };
    let mut structures = Vec::new();
    for path in paths {
        if let Some(bytes) = packed_bytes(path)? {
            let mut all = Molecules { offsets: vec![0], ..Molecules::default() };
            packed(path, &bytes, &mut all)?;
            let split = [(&all.training, 0), (&all.validation, 1)];
            let mut chosen: Vec<(u32, u8)> = split.iter().flat_map(|(list, s)| list.iter().map(|&i| (i, *s))).collect();
            chosen.sort_unstable();
            structures.extend(chosen.into_iter().map(|(i, split)| {
                let (a, b) = (all.offsets[i as usize], all.offsets[i as usize + 1]);
                let positions = all.positions[3 * a..3 * b].iter().map(|&x| f64::from(x)).collect();
                Structure { types: all.types[a..b].to_vec(), positions, charge: 0, graph: None, split: Some(split) }
            }));
            continue;
        }
        for frame in read_frames(path, &ReadOptions { range, ..ReadOptions::default() })? {
            let Frame { system, positions, graph, .. } = frame?;
            let System { types, charge, .. } = &*system;
            let positions = positions.iter().map(|x| x * ANGSTROMS).collect();
            structures.push(Structure { types: types.clone(), positions, charge: *charge, graph, split: None });
        }
    }
    if let Some(limit) = settings.limit {
        structures.truncate(limit);
    }
    let contexts: Vec<std::result::Result<GraphContext, String>> =
        structures.par_iter().map_init(Perceiver::new, |perceiver, s| context(s, vocabulary, perceiver)).collect();
    let (data, refused) = assemble(structures, contexts, request.recipe.train.held_out, seed)?;
    if let Some((count, first)) = refused {
        runtime.warn(format_args!("{count} structures are left out; the first: {first}"));
    }
    let mut hash = Fnv::default();
    data.positions.iter().for_each(|x| hash.update(&x.to_le_bytes()));
    data.contexts.iter().flat_map(|c| &c.types).chain(&data.training).chain(&data.validation).for_each(|x| hash.update(&x.to_le_bytes()));
    let inputs = paths.iter().map(|p| InputFile::of(p)).collect::<Result<Vec<_>>>()?;
    Ok((Arc::new(data), hash.finish(), inputs))
}

/// The molecule of a structure, with the handedness that its coordinates say.
fn context(s: &Structure, vocabulary: Vocabulary, perceiver: &mut Perceiver) -> std::result::Result<GraphContext, String> {
    let mut graph = match &s.graph {
        Some(graph) => (**graph).clone(),
        None => {
            let convention = Convention { charge: s.charge, ..Convention::default() };
            let nm: Vec<f64> = s.positions.iter().map(|x| x / ANGSTROMS).collect();
            perceiver.perceive(&s.types, &nm, convention).map_err(|e| e.to_string())?
        }
    };
    if graph.with_hydrogens().len() != graph.len() {
        return Err("not all its hydrogens are atoms".into());
    }
    let rings = graph.find_aromaticity();
    graph.set_stereo_from(&s.positions, &rings);
    GraphContext::new(&graph, vocabulary).map_err(|e| e.to_string())
}

/// Joins structures of one molecule; how many were left out, and why the first.
fn assemble(
    structures: Vec<Structure>,
    contexts: Vec<std::result::Result<GraphContext, String>>,
    held_out: Option<usize>,
    seed: u64,
) -> Result<(Conformers, Option<(usize, String)>)> {
    let mut data = Conformers::default();
    let mut refused: Option<(usize, String)> = None;
    let mut splits: Vec<Option<u8>> = Vec::new();
    for (index, (s, context)) in structures.into_iter().zip(contexts).enumerate() {
        let context = match context {
            Ok(context) => context,
            Err(why) => {
                let (count, first) = refused.unwrap_or_else(|| (0, format!("structure {index}: {why}")));
                refused = Some((count + 1, first));
                continue;
            }
        };
        let recent = data.contexts.len().saturating_sub(MOST_BACK);
        let known = data.contexts[recent..].iter().rposition(|c| c.graph == context.graph).map(|k| k + recent);
        let number = known.unwrap_or_else(|| {
            data.contexts.push(context);
            splits.push(s.split);
            data.contexts.len() - 1
        });
        data.push(number as u32, s.positions.iter().map(|&x| x as f32));
    }
    let count = data.contexts.len();
    if splits.iter().any(Option::is_none) {
        // Whole molecules are held out, with all their conformers.
        let held_out = held_out.unwrap_or((count / 10).min(VALIDATION));
        if held_out >= count {
            return usage(format!("[train]: held-out = {held_out}, but there are only {count} molecules"));
        }
        let noise = Noise::new(seed);
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by_key(|&i| noise.bits(i, 0, u64::MAX >> 9, Purpose::TrainingChoice));
        splits = vec![Some(0); count];
        order[..held_out].iter().for_each(|&i| splits[i as usize] = Some(1));
    }
    for k in 0..data.conformers.len() {
        match splits[data.conformers[k].0 as usize] {
            Some(1) => data.validation.push(k as u32),
            _ => data.training.push(k as u32),
        }
    }
    Ok((data, refused))
}

/// A training on its way.
struct Run<'a, T: SimdReal> {
    trainer: Trainer<T>,
    data: Arc<Conformers>,
    /// Of the data; none for minima.
    temperature: Option<f64>,
    record: Record<'a>,
    /// The instruction set or the device, for people.
    place: String,
}

impl<'a, T: SimdReal + Root> Course<'a> for Run<'a, T> {
    type Validation = Sums;
    const INTERVALS: [u64; 2] = [50, 500];

    fn record(&self) -> &Record<'a> {
        &self.record
    }

    fn steps(&self) -> u64 {
        self.trainer.plan().rate.steps
    }

    fn step(&self) -> u64 {
        self.trainer.counters().step
    }

    fn is_done(&self) -> bool {
        self.trainer.is_done()
    }

    fn rate(&self) -> f64 {
        self.trainer.rate()
    }

    fn advance(&mut self) -> Result<bool> {
        Ok(self.trainer.step()?)
    }

    fn validate(&mut self) -> Result<Option<Sums>> {
        Ok((!self.data.validation.is_empty()).then(|| self.trainer.validate(VALIDATION)).transpose()?)
    }

    fn describe(&self) {
        let plan = self.trainer.plan();
        self.record.runtime.say(format_args!(
            "DiTMC {} × {} of {} parameters on {} conformers ({} held out) of {} molecules; {} steps of {} conformers; {}, {}, {} threads, \
             seed {}; writing to {}",
            plan.config.blocks,
            plan.config.features(),
            plan.config.parameters(),
            self.data.training.len(),
            self.data.validation.len(),
            self.data.contexts.len(),
            plan.rate.steps,
            plan.batch,
            self.place,
            T::DTYPE,
            self.record.runtime.threads(),
            plan.seed,
            self.record.out.display()
        ));
    }

    fn log(&mut self, rate: f64, steps: u64, seconds: f64, validation: Option<&Sums>) -> Result<()> {
        let (sums, norm) = self.trainer.take_interval(steps);
        let counters = self.trainer.counters();
        let batch = self.trainer.plan().batch as f64;
        let bins = validation.map(|v| {
            let bins = v.bins().map(|(from, n, rms)| serde_json::json!({ "from_time": from, "rows": n, "rms_A": rms }));
            serde_json::Value::from(bins.collect::<Vec<_>>()).to_string()
        });
        let row = [
            counters.step.into(),
            (counters.step as f64 * batch / self.data.training.len() as f64).into(),
            sums.mean().into(),
            norm.into(),
            rate.into(),
            (steps as f64 * batch / seconds).into(),
            self.record.started.elapsed().as_secs_f64().into(),
            validation.map(Sums::mean).into(),
            counters.skipped.into(),
            bins.as_deref().map_or(Field::Missing, Field::from),
        ];
        self.record.row(&row)
    }

    /// Writes the state and the model.
    fn save(&mut self) -> Result<()> {
        self.record.header.best = self.trainer.counters().best;
        self.record.write_state(|header| Ok(self.trainer.save(header)?))?;
        let plan = self.trainer.plan();
        let model = DitmcModel {
            config: plan.config.clone(),
            path: plan.path,
            values: self.trainer.averaged()?,
            temperature: self.temperature,
            command: self.record.header.command.clone(),
            seed: self.record.header.seed,
        };
        Ok(model.write(&self.record.out.join(MODEL_FILE))?)
    }

    /// Plot, summary, and a word on what came out.
    fn finish(&mut self) -> Result<()> {
        let rows = self.record.rows()?;
        self.record.plot(&rows, "Losses", "weighted mean square (A^2)", &[("training", "loss"), ("validation", "validation_loss")])?;
        let seconds = self.record.started.elapsed().as_secs_f64();
        let plan = self.trainer.plan();
        let counters = self.trainer.counters();
        let conformers = (counters.step - self.record.first) as f64 * plan.batch as f64;
        let last = rows.iter().rev().find_map(|r| r["validation_loss"].as_f64());
        let summary = serde_json::json!({
            "steps": counters.step,
            "skipped": counters.skipped,
            "batch": plan.batch,
            "molecules": self.data.contexts.len(),
            "conformers": self.data.training.len(),
            "validation_conformers": self.data.validation.len(),
            "parameters": plan.config.parameters(),
            "conformers_per_second": conformers / seconds,
            "validation_loss": last,
            "best_validation_loss": counters.best,
        });
        let held_out = last.map_or(String::new(), |l| format!(", validation loss {l:.4} A^2"));
        self.record.summarise(summary, &format!("{} steps{held_out}; {:.0} conformers/s", counters.step, conformers / seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Water twice, then methane: water's structures are one molecule.
    #[test]
    fn conformers_of_a_molecule_are_joined() {
        let water = |z: f64| Structure {
            types: vec![8, 1, 1],
            positions: vec![0.0, 0.0, z, 0.96, 0.0, 0.0, -0.24, 0.93, 0.0],
            charge: 0,
            graph: None,
            split: None,
        };
        let broken = Structure { positions: vec![0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0, 0.0], ..water(0.0) };
        let s = 0.63;
        let methane = Structure {
            types: vec![6, 1, 1, 1, 1],
            positions: vec![0.0, 0.0, 0.0, s, s, s, -s, -s, s, -s, s, -s, s, -s, -s],
            ..water(0.0)
        };
        let structures = vec![water(0.0), broken, water(0.05), methane];
        let mut perceiver = Perceiver::new();
        let contexts = structures.iter().map(|s| context(s, Vocabulary::Qm9, &mut perceiver)).collect();
        let (data, refused) = assemble(structures, contexts, Some(1), 0).unwrap();
        let refused = refused.unwrap();
        assert!(refused.0 == 1 && refused.1.starts_with("structure 1: "), "{refused:?}");
        assert_eq!(data.contexts.len(), 2);
        assert_eq!(data.conformers.iter().map(|c| c.0).collect::<Vec<_>>(), vec![0, 0, 1]);
        // One molecule is held out with all it has.
        assert_eq!(data.training.len() + data.validation.len(), 3);
        assert!([1, 2].contains(&data.validation.len()));
        let molecule = |list: &[u32]| list.iter().map(|&k| data.conformers[k as usize].0).collect::<std::collections::BTreeSet<_>>();
        assert!(molecule(&data.training).is_disjoint(&molecule(&data.validation)));
    }
}
