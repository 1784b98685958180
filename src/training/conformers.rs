//! Training of conformer models: ensembles of molecules, the loop, and the model in the end.

use super::minima::{packed, packed_bytes};
use super::{
    Header, METRICS_FILE, MODEL_FILE, PLOT_FILE, RECIPE_FILE, Request, STATE_FILE, SUMMARY_FILE, directory, prepare_directory, read_state,
};
use crate::checkpoint::{Fnv, InputFile};
use crate::config::Recipe;
use crate::dataset::Paths;
use crate::error::{Error, Result, usage};
use crate::io::table::{Field, TableWriter};
use crate::io::{Frame, FrameRange, ReadOptions, read_frames, write_atomically};
use crate::report::plots::{LinePlot, Series, line_plot};
use crate::report::progress::Progress;
use crate::runtime::{Outcome, Runtime, print};
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
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Å per nm.
const ANGSTROMS: f64 = 10.0;
/// Conformers that validations look at by default.
const VALIDATION: usize = 2048;
/// Steps in a row without a finite loss after which training stops.
const MOST_SKIPPED: u64 = 20;
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
pub(super) fn train<T: SimdReal + Root>(request: Request, resume: bool, interrupt: &Interrupt, runtime: &Runtime) -> Result<Outcome> {
    let seed = request.recipe.train.seed.unwrap_or(0);
    let config = config(&request.recipe)?;
    let temperature = request.recipe.data.temperature.as_ref().map(|t| t.resolve(Dimension::TEMPERATURE, UnitSystem::Si));
    let temperature = temperature.transpose().map_err(|e| Error::Usage(format!("[data]: temperature: {e}")))?;
    let (data, hash, inputs) = load(&request, config.vocabulary, seed, runtime)?;
    let plan = plan(&request.recipe, config, &data, seed)?;
    let out = directory(&request.recipe);
    let mut trainer = Trainer::<T>::new(plan, data.clone())?;
    let mut header = Header {
        version: env!("CARGO_PKG_VERSION").into(),
        recipe: request.recipe.clone(),
        folder: request.folder.clone(),
        command: request.command.clone(),
        isa: simd::current_isa(),
        dtype: T::DTYPE,
        seed,
        data: hash,
        inputs,
        metrics: 0,
        best: None,
    };
    let metrics = if resume {
        let path = out.join(STATE_FILE);
        let (old, state) = read_state(&path)?;
        if old.data != header.data {
            let what = "the training data are others than when the training began; restore the files".into();
            return Err(Error::Checkpoint { path, what });
        }
        trainer.restore(state, &path)?;
        (header.metrics, header.command) = (old.metrics, old.command);
        TableWriter::resume(out.join(METRICS_FILE), &COLUMNS, header.metrics)?
    } else {
        prepare_directory(&out, request.overwrite)?;
        let recipe = Recipe { data: request.recipe.data.absolute(&request.folder), ..request.recipe.clone() };
        let text = toml::to_string(&recipe).map_err(|e| Error::Run(e.to_string()))?;
        write_atomically(&out.join(RECIPE_FILE), |w| w.write_all(text.as_bytes()))?;
        TableWriter::create(out.join(METRICS_FILE), &COLUMNS, request.overwrite)?
    };
    let first = trainer.counters().step;
    let mut run = Run { trainer, header, data, out, metrics, started: Instant::now(), first, temperature, runtime };
    run.describe();
    let outcome = run.advance(interrupt)?;
    match outcome {
        Outcome::Interrupted => runtime.warn(format_args!(
            "interrupted at step {} of {}; go on with: scorefield train --resume {}",
            run.trainer.counters().step,
            run.trainer.plan().rate.steps,
            run.out.display()
        )),
        Outcome::Done => run.finish()?,
    }
    Ok(outcome)
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
    header: Header,
    data: Arc<Conformers>,
    out: PathBuf,
    metrics: TableWriter,
    started: Instant,
    first: u64,
    /// Of the data; none for minima.
    temperature: Option<f64>,
    runtime: &'a Runtime,
}

impl<T: SimdReal + Root> Run<'_, T> {
    fn describe(&self) {
        let plan = self.trainer.plan();
        self.runtime.say(format_args!(
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
            simd::current_isa(),
            T::DTYPE,
            self.runtime.threads(),
            plan.seed,
            self.out.display()
        ));
    }

    /// Trains to the end, or until interrupted; leaves a state either way.
    fn advance(&mut self, interrupt: &Interrupt) -> Result<Outcome> {
        let output = self.header.recipe.output.clone();
        let log_every = output.log_every.unwrap_or(50).max(1);
        let validate_every = output.validate_every.unwrap_or(500).max(1);
        let minutes = output.checkpoint_minutes.unwrap_or(5.0);
        let checkpoint_every = output.checkpoint_every.unwrap_or(0);
        let steps = self.trainer.plan().rate.steps;
        let mut progress = Progress::new(steps, self.first, 1, None, self.runtime.quiet);
        let mut saved = Instant::now();
        let mut logged = (Instant::now(), self.first);
        let mut skipped = 0;
        loop {
            if interrupt.requested() || self.trainer.is_done() {
                progress.finish();
                self.save()?;
                return Ok(if self.trainer.is_done() { Outcome::Done } else { Outcome::Interrupted });
            }
            let rate = self.trainer.rate();
            skipped = if self.trainer.step() { 0 } else { skipped + 1 };
            let step = self.trainer.counters().step;
            if skipped >= MOST_SKIPPED {
                return Err(Error::Run(format!(
                    "step {step}: losses were not finite in {skipped} steps in a row; train with a smaller learning-rate"
                )));
            }
            let wanted = step.is_multiple_of(validate_every) || self.trainer.is_done();
            let validation = (wanted && !self.data.validation.is_empty()).then(|| self.trainer.validate(VALIDATION));
            if step.is_multiple_of(log_every) || validation.is_some() {
                let seconds = logged.0.elapsed().as_secs_f64();
                self.log(rate, (step - logged.1, seconds), validation.as_ref())?;
                logged = (Instant::now(), step);
            }
            let timed = minutes > 0.0 && saved.elapsed().as_secs_f64() >= 60.0 * minutes;
            if checkpoint_every > 0 && step.is_multiple_of(checkpoint_every) || timed {
                self.save()?;
                saved = Instant::now();
            }
            progress.update(step, steps);
        }
    }

    fn log(&mut self, rate: f64, (steps, seconds): (u64, f64), validation: Option<&Sums>) -> Result<()> {
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
            self.started.elapsed().as_secs_f64().into(),
            validation.map(Sums::mean).into(),
            counters.skipped.into(),
            bins.as_deref().map_or(Field::Missing, Field::from),
        ];
        self.metrics.row(&row)?;
        self.metrics.flush()?;
        Ok(())
    }

    /// Writes the state and the model.
    fn save(&mut self) -> Result<()> {
        self.header.metrics = self.metrics.flush()?;
        self.header.best = self.trainer.counters().best;
        let header = serde_json::to_value(&self.header).map_err(|e| Error::Run(e.to_string()))?;
        let bytes = self.trainer.save(header).to_bytes()?;
        write_atomically(&self.out.join(STATE_FILE), |w| w.write_all(&bytes))?;
        let plan = self.trainer.plan();
        let model = DitmcModel {
            config: plan.config.clone(),
            path: plan.path,
            values: self.trainer.averaged(),
            temperature: self.temperature,
            command: self.header.command.clone(),
            seed: self.header.seed,
        };
        Ok(model.write(&self.out.join(MODEL_FILE))?)
    }

    /// Plot, summary, and a word on what came out.
    fn finish(&mut self) -> Result<()> {
        let path = self.out.join(METRICS_FILE);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
        let rows: Vec<serde_json::Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        plot(&rows, &self.out.join(PLOT_FILE))?;
        let seconds = self.started.elapsed().as_secs_f64();
        let plan = self.trainer.plan();
        let counters = self.trainer.counters();
        let conformers = (counters.step - self.first) as f64 * plan.batch as f64;
        let last = rows.iter().rev().find_map(|r| r["validation_loss"].as_f64());
        let summary = serde_json::json!({
            "version": self.header.version,
            "command": self.header.command,
            "steps": counters.step,
            "skipped": counters.skipped,
            "batch": plan.batch,
            "molecules": self.data.contexts.len(),
            "conformers": self.data.training.len(),
            "validation_conformers": self.data.validation.len(),
            "parameters": plan.config.parameters(),
            "seed": plan.seed,
            "isa": self.header.isa,
            "dtype": self.header.dtype,
            "threads": self.runtime.threads(),
            "seconds": seconds,
            "conformers_per_second": conformers / seconds,
            "validation_loss": last,
            "best_validation_loss": counters.best,
            "data": self.header.data,
        });
        write_atomically(&self.out.join(SUMMARY_FILE), |w| writeln!(w, "{summary:#}"))?;
        let held_out = last.map_or(String::new(), |l| format!(", validation loss {l:.4} A^2"));
        print(format_args!(
            "{} steps{held_out}; {:.0} conformers/s\nmodel: {}\nplot:  {}",
            counters.step,
            conformers / seconds,
            self.out.join(MODEL_FILE).display(),
            self.out.join(PLOT_FILE).display()
        ))
        .map_err(|e| Error::Run(e.to_string()))
    }
}

fn plot(rows: &[serde_json::Value], path: &Path) -> Result<()> {
    let series = |name: &str, key: &str| Series {
        name: name.into(),
        points: rows.iter().filter_map(|r| Some((r["step"].as_f64()?, r[key].as_f64()?))).collect(),
        errors: Vec::new(),
    };
    let text = line_plot(&LinePlot {
        title: "Losses".into(),
        x_label: "step".into(),
        y_label: "weighted mean square (A^2)".into(),
        series: [series("training", "loss"), series("validation", "validation_loss")]
            .into_iter()
            .filter(|s| !s.points.is_empty())
            .collect(),
        log_y: true,
        ..LinePlot::default()
    });
    Ok(write_atomically(path, |w| w.write_all(text.as_bytes()))?)
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
