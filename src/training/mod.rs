//! The training loop: steps, metrics, looks at held-out data, checkpoints, and the model in the end.
//!
//! | File | |
//! |---|---|
//! | `model.safetensors` | the model with averaged weights, renewed at every checkpoint |
//! | `state.safetensors` | everything that training goes on from, bit by bit |
//! | `metrics.jsonl` | losses over steps |
//! | `recipe.toml` | the recipe with the flags that changed it |
//! | `loss.svg`, `summary.json` | at the end |

mod conformers;
mod course;
pub(crate) mod minima;
mod plan;
mod potentials;
mod toy;

use self::course::{Origin, Record};
use crate::checkpoint::InputFile;
use crate::config::{NotFinite, Recipe, TrainSettings};
use crate::dataset::{TrainingData, temperature};
use crate::error::{Error, Result, usage};
use crate::io::table::Field;
use crate::report::progress::Progress;
use crate::runtime::{Outcome, Runtime};
use crate::signals::Interrupt;
use scorefield_integrators::simd::{self, Isa, SimdReal};
use scorefield_integrators::{DType, DeviceSpec, UnitSystem};
use scorefield_models::scoremd::model::{EVALUATION_TIME, Model, RANGE_COLUMNS};
use scorefield_models::scoremd::network::network;
use scorefield_models::scoremd::process::VariancePreserving;
use scorefield_models::scoremd::published::Published;
use scorefield_models::scoremd::trainer::{Data, Step, Trainer};
use scorefield_models::train::StateFile;
use scorefield_models::train::adamw::Root;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The model in the output directory.
pub const MODEL_FILE: &str = "model.safetensors";
/// The state in the output directory.
pub const STATE_FILE: &str = "state.safetensors";
const METRICS_FILE: &str = "metrics.jsonl";
const RECIPE_FILE: &str = "recipe.toml";
const PLOT_FILE: &str = "loss.svg";
const SUMMARY_FILE: &str = "summary.json";
const COLUMNS: [&str; 14] = [
    "step",
    "network",
    "epoch",
    "loss",
    "score_matching",
    "fokker_planck",
    "forces",
    "gradient_norm",
    "learning_rate",
    "rows_per_second",
    "held_out_score_matching",
    "held_out_fokker_planck",
    "held_out_forces",
    "event",
];
/// After so many returns to a good state training stops.
const MOST_RESTORES: u32 = 5;
/// Factor of the learning rate at each of them.
const RESTORE_FACTOR: f64 = 0.5;
/// Largest relative difference between the scales of data and of a model that training starts from.
const MOST_SCALE_CHANGE: f64 = 0.05;
/// Values in a thousand that lie outside `training_range`'s inner bounds, on either side.
const RANGE_QUANTILE: f64 = 1e-3;

/// What a training is made from.
#[derive(Clone, Debug)]
pub struct Request {
    /// The recipe with flags laid over it.
    pub recipe: Recipe,
    /// Folder in which its relative paths have their meaning.
    pub folder: PathBuf,
    /// Replace what is in the output directory.
    pub overwrite: bool,
    /// Go on with the training in the output directory.
    pub resume: bool,
    /// The command as it was typed.
    pub command: String,
}

/// The owner's part of a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    version: String,
    recipe: Recipe,
    folder: PathBuf,
    command: String,
    isa: Isa,
    dtype: DType,
    seed: u64,
    data: String,
    inputs: Vec<InputFile>,
    metrics: u64,
    best: Option<f64>,
}

/// Goes on with the training in `directory`: its recipe, and where its paths have their meaning.
///
/// # Errors
/// Where there is no state.
pub fn recorded(directory: &Path) -> Result<(Recipe, PathBuf, String)> {
    let (header, _) = read_state(&directory.join(STATE_FILE))?;
    Ok((header.recipe, header.folder, header.command))
}

fn read_state(path: &Path) -> Result<(Header, StateFile)> {
    let fail = |what: String| Error::Checkpoint { path: path.to_owned(), what };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(fail("there is no state of training; --resume takes the output directory of `scorefield train`".into()));
        }
        Err(e) => return Err(Error::file("read", path, e)),
    };
    let state = StateFile::from_bytes(path, &bytes)?;
    let json: serde_json::Value = serde_json::from_str(&state.header).map_err(|e| fail(e.to_string()))?;
    let header = serde_json::from_value(json["run"].clone()).map_err(|e| fail(format!("its header is of another version ({e})")))?;
    Ok((header, state))
}

/// Trains as asked, or goes on.
///
/// # Errors
/// Where the recipe, its data or the output directory are wrong, or losses are not finite.
pub fn command(request: Request, runtime: &Runtime) -> Result<Outcome> {
    let interrupt = Interrupt::install()?;
    let recorded = if request.resume { Some(read_state(&directory(&request.recipe).join(STATE_FILE))?) } else { None };
    if let Some((header, _)) = &recorded {
        choose_isa(header, runtime)?;
    }
    let dtype = match (&recorded, runtime.dtype.or(request.recipe.train.dtype)) {
        (Some((header, _)), Some(asked)) if asked != header.dtype => {
            return usage(format!("--dtype {asked}, but the training was begun in {}; leave it out", header.dtype));
        }
        (Some((header, _)), _) => header.dtype,
        (None, asked) => asked.unwrap_or(DType::F32),
    };
    let device = request.recipe.train.device.unwrap_or_default();
    let has_kernels =
        !potentials::is_meant(&request.recipe) && (minima::is_meant(&request.recipe) || conformers::is_meant(&request.recipe));
    if device != DeviceSpec::Cpu && !has_kernels {
        return usage(format!(
            "device {device}: only pseudo-force fields (preset gpff, …) and conformer models (ditmc-ape-base, …) are trained on devices; leave it out"
        ));
    }
    let pool = runtime.pool.clone();
    // From inside the pool, sharing out work needs neither locks nor memory.
    if potentials::is_meant(&request.recipe) {
        return pool.install(|| match dtype {
            DType::F32 => potentials::train::<f32>(request, recorded, &interrupt, runtime),
            DType::F64 => potentials::train::<f64>(request, recorded, &interrupt, runtime),
        });
    }
    if minima::is_meant(&request.recipe) {
        return pool.install(|| match dtype {
            DType::F32 => minima::train::<f32>(request, recorded, &interrupt, runtime),
            DType::F64 => minima::train::<f64>(request, recorded, &interrupt, runtime),
        });
    }
    if conformers::is_meant(&request.recipe) {
        return pool.install(|| match dtype {
            DType::F32 => conformers::train::<f32>(request, recorded, &interrupt, runtime),
            DType::F64 => conformers::train::<f64>(request, recorded, &interrupt, runtime),
        });
    }
    pool.install(|| match dtype {
        DType::F32 => train::<f32>(request, recorded, &interrupt, runtime),
        DType::F64 => train::<f64>(request, recorded, &interrupt, runtime),
    })
}

/// The same recipe with paths that mean the same everywhere; relative ones are those of `folder`.
fn absolute(recipe: &Recipe, folder: &Path) -> Recipe {
    let potential = recipe.potential.clone().map(|p| potentials::absolute(p, folder));
    let train = TrainSettings { start_from: start_from(recipe, folder), ..recipe.train.clone() };
    Recipe { data: recipe.data.absolute(folder), potential, train, ..recipe.clone() }
}

/// The file of the model that training starts from, where there is one.
fn start_from(recipe: &Recipe, folder: &Path) -> Option<PathBuf> {
    recipe.train.start_from.as_ref().map(|file| folder.join(file))
}

/// The error that training cannot start from `file`.
fn cannot_start(file: &Path, why: impl std::fmt::Display) -> Error {
    Error::Usage(format!("[train]: start-from = \"{}\": {why}", file.display()))
}

fn directory(recipe: &Recipe) -> PathBuf {
    recipe.output.directory.clone().unwrap_or_else(|| "scorefield-train".into())
}

/// The instruction set of a training that goes on must be the one it was begun with.
fn choose_isa(header: &Header, runtime: &Runtime) -> Result<()> {
    if runtime.global.isa.is_none() {
        // One that is lacking shows below.
        let _ = simd::choose_isa(header.isa);
    }
    let (isa, saved) = (simd::current_isa(), header.isa);
    match isa == saved {
        true => Ok(()),
        false if saved.available() => {
            usage(format!("the training was begun with {saved}, which gives other bits than {isa}; add --isa {saved}"))
        }
        false => usage(format!("the training was begun with {saved}, which this machine lacks; go on on one that has it")),
    }
}

fn train<T: SimdReal + Root>(
    request: Request,
    recorded: Option<(Header, StateFile)>,
    interrupt: &Interrupt,
    runtime: &Runtime,
) -> Result<Outcome> {
    let setup = plan::setup(&request.recipe)?;
    let seed = request.recipe.train.seed.unwrap_or(0);
    let data = load(&request, &setup, seed, runtime)?;
    let plan = plan::plan(&request.recipe, &setup, &data, seed)?;
    let kinds: Vec<_> = data.molecules.iter().map(|m| m.kinds.clone()).collect();
    let networks = setup.config.experts.iter().map(|e| network::<T>(e, &kinds)).collect::<scorefield_models::Result<Vec<_>>>()?;
    let (x, scores, system) = (data.x.clone(), data.scores.clone(), data.of_molecule.clone());
    let shared = Arc::new(Data { x, scores, system, dimension: data.dimension });
    let mut trainer = Trainer::new(plan, networks, shared)?;
    let mut inputs = data.inputs.clone();
    if let Some(file) = start_from(&request.recipe, &request.folder).filter(|_| recorded.is_none()) {
        inputs.push(InputFile::of(&file)?);
        let model = Model::read(&file)?;
        if model.config != setup.config {
            return Err(cannot_start(&file, "it has other networks than the recipe; take the preset and sizes that it was trained with"));
        }
        if (model.scale / data.scale - 1.0).abs() > MOST_SCALE_CHANGE {
            let (theirs, ours) = (model.scale, data.scale);
            return Err(cannot_start(&file, format!("it has {theirs:.4} coordinates per nm, these data {ours:.4}; give [data] a scale")));
        }
        trainer.start_from(&model.parameters, model.log_z.as_ref().map(|(_, coefficients)| &coefficients[..]));
    }
    let origin = Origin { dtype: T::DTYPE, seed, data: data.hash.clone(), inputs };
    let record = Record::open(&request, recorded, origin, &COLUMNS, runtime, |state, path| {
        trainer.restore(state, path)?;
        Ok(trainer.state().counters.step)
    })?;
    let mut run = Run { trainer, record, data, setup };
    run.describe();
    let outcome = run.advance(interrupt)?;
    match outcome {
        Outcome::Interrupted => course::say_interrupted(&run.record, run.trainer.state().counters.step, run.trainer.plan().steps()),
        Outcome::Done => run.finish()?,
    }
    Ok(outcome)
}

/// Reads the data, or simulates them.
fn load(request: &Request, setup: &Published, seed: u64, runtime: &Runtime) -> Result<TrainingData> {
    let settings = &request.recipe.data;
    let dimension = setup.config.experts.first().map(|e| e.body.dimension());
    match (&settings.simulate, settings.trajectory.is_some() || settings.systems.is_some()) {
        (Some(_), true) => usage("[data]: trajectory and simulate are both given; one of them must go"),
        (Some(simulate), false) => {
            let kt = temperature(settings, UnitSystem::Reduced)?;
            runtime.say(format_args!("simulating {} frames of {} at kT = {kt}", simulate.frames, simulate.model));
            let (x, mass) = toy::simulate(simulate, kt, &runtime.pool)?;
            TrainingData::of_toy(x, mass, settings, dimension, seed)
        }
        (None, _) => TrainingData::load(settings, &request.folder, dimension, seed),
    }
}

/// Makes the output directory, and removes an old training where that is wanted.
fn prepare_directory(out: &Path, overwrite: bool) -> Result<()> {
    let files = [STATE_FILE, MODEL_FILE, METRICS_FILE, RECIPE_FILE, SUMMARY_FILE, PLOT_FILE];
    let old: Vec<PathBuf> = files.map(|f| out.join(f)).into_iter().filter(|f| f.exists()).collect();
    if let Some(old) = old.first().filter(|_| !overwrite) {
        return usage(format!(
            "{} holds a training already ({}); go on with it (--resume {}), replace it (--overwrite), or write elsewhere (--output DIR)",
            out.display(),
            old.display(),
            out.display()
        ));
    }
    std::fs::create_dir_all(out).map_err(|e| Error::file("make the directory", out, e))?;
    old.iter().try_for_each(|f| std::fs::remove_file(f).map_err(|e| Error::file("remove", f, e)))
}

/// A training on its way.
struct Run<'a, T: SimdReal> {
    trainer: Trainer<T>,
    record: Record<'a>,
    data: TrainingData,
    setup: Published,
}

impl<T: SimdReal + Root> Run<'_, T> {
    fn describe(&self) {
        let plan = self.trainer.plan();
        let parameters: usize = self.setup.config.parameters().iter().sum();
        let residual = plan.stages.iter().find_map(|s| s.objective.fokker_planck);
        self.record.runtime.say(format_args!(
            "{} of {parameters} parameters on {} frames{} of {} coordinates (scale {:.4}), {} of them held out; {} steps of {} rows{}; {}, {}, {} threads, seed {}; writing to {}",
            match plan.stages.len() {
                1 => "one network".to_owned(),
                n => format!("{n} networks"),
            },
            self.data.len(),
            if self.data.molecules.is_empty() { String::new() } else { format!(" of {} molecules", self.data.molecules.len()) },
            self.data.dimension,
            self.data.scale,
            plan.held_out,
            plan.steps(),
            plan.batch,
            residual.map_or(String::new(), |f| format!(", Fokker–Planck residual on {} of them with weight {}", percent(f.fraction), f.weight)),
            simd::current_isa(),
            T::DTYPE,
            self.record.runtime.threads(),
            plan.seed,
            self.record.out.display()
        ));
    }

    /// Trains to the last step, or until interrupted; leaves a state either way.
    fn advance(&mut self, interrupt: &Interrupt) -> Result<Outcome> {
        let output = self.record.header.recipe.output.clone();
        let log_every = output.log_every.unwrap_or(100).max(1);
        let validate_every = output.validate_every.unwrap_or(1000).max(1);
        let checkpoint_every = output.checkpoint_every.unwrap_or(0);
        let minutes = output.checkpoint_minutes.unwrap_or(5.0);
        let steps = self.trainer.plan().steps();
        let mut progress = Progress::new(steps, self.record.first, 1, None, self.record.runtime.quiet);
        let mut saved = Instant::now();
        let mut logged = (Instant::now(), self.record.first);
        loop {
            let step = self.trainer.state().counters.step;
            if interrupt.requested() || self.trainer.is_done() {
                progress.finish();
                self.save()?;
                return Ok(if self.trainer.is_done() { Outcome::Done } else { Outcome::Interrupted });
            }
            let rate = match self.trainer.step() {
                Step::Moved { rate, .. } => rate,
                Step::NotFinite { part } => {
                    self.not_finite(part)?;
                    continue;
                }
            };
            let step = step + 1;
            let validation = if step.is_multiple_of(validate_every) || step == steps { self.trainer.validate() } else { None };
            if let Some(part) = validation.and_then(|v| v.not_finite()) {
                self.not_finite(&format!("held-out {part}"))?;
                continue;
            }
            if let Some(sums) = &validation {
                let loss = sums.means()[0];
                self.record.header.best = Some(self.record.header.best.map_or(loss, |b| b.min(loss)));
                self.trainer.mark_good();
            }
            if step.is_multiple_of(log_every) || validation.is_some() {
                let rows = (step - logged.1) as f64 * self.trainer.plan().batch as f64 / logged.0.elapsed().as_secs_f64();
                logged = (Instant::now(), step);
                self.log(rate, rows, validation.map(|v| v.means()))?;
            }
            self.trainer.advance_stage();
            let timed = minutes > 0.0 && saved.elapsed().as_secs_f64() >= 60.0 * minutes;
            if checkpoint_every > 0 && step.is_multiple_of(checkpoint_every) || timed {
                self.save()?;
                saved = Instant::now();
            }
            progress.update(step, steps);
        }
    }

    fn log(&mut self, rate: f64, rows: f64, validation: Option<[f64; 3]>) -> Result<()> {
        let interval = self.trainer.take_interval();
        let counters = self.trainer.state().counters;
        let plan = self.trainer.plan();
        let stage = &plan.stages[counters.stage];
        let [dsm, residual, forces] = interval.sums.means();
        let weights = (stage.objective.fokker_planck.map(|f| f.weight), stage.objective.forces.map(|f| f.weight));
        let loss = dsm + weights.0.map_or(0.0, |w| w * residual) + weights.1.map_or(0.0, |w| w * forces);
        let training = (self.data.len() - plan.held_out) as f64;
        let row = [
            counters.step.into(),
            (stage.network as u64).into(),
            (counters.stage_step as f64 * plan.batch as f64 / training).into(),
            loss.into(),
            dsm.into(),
            weights.0.map(|_| residual).into(),
            weights.1.map(|_| forces).into(),
            (interval.gradient_norm / interval.steps.max(1) as f64).into(),
            rate.into(),
            rows.into(),
            validation.map(|v| v[0]).into(),
            validation.filter(|_| weights.0.is_some()).map(|v| v[1]).into(),
            validation.filter(|_| weights.1.is_some()).map(|v| v[2]).into(),
            Field::Missing,
        ];
        self.record.metrics.row(&row)?;
        self.record.metrics.flush()?;
        Ok(())
    }

    /// Goes back to the last good state, or stops, and says why.
    fn not_finite(&mut self, part: &str) -> Result<()> {
        let counters = self.trainer.state().counters;
        let rate =
            self.trainer.plan().stages.get(counters.stage).map_or(0.0, |s| s.schedule.rate(counters.stage_step)) * counters.rate_scale;
        let what = format!("step {}: {part} is not finite (learning rate {rate:.2e})", counters.step + 1);
        let mut row = vec![Field::Missing; COLUMNS.len()];
        (row[0], row[1], row[13]) = ((counters.step + 1).into(), (counters.stage as u64).into(), what.as_str().into());
        self.record.metrics.row(&row)?;
        self.record.metrics.flush()?;
        let stop = self.record.header.recipe.train.not_finite == Some(NotFinite::Stop);
        if stop || counters.restores >= MOST_RESTORES {
            let why = if stop { String::new() } else { format!(", after {} returns to a good state", counters.restores) };
            let state = self.record.out.join(STATE_FILE);
            let before = if state.exists() { format!("; {} is from before", state.display()) } else { String::new() };
            return Err(Error::Run(format!(
                "{what}{why}; train with a smaller learning-rate, a smaller fokker-planck-weight or clip = {{ norm = 1.0 }}{before}"
            )));
        }
        let good = self.trainer.restore_good(RESTORE_FACTOR);
        let scale = self.trainer.state().counters.rate_scale;
        self.record.runtime.warn(format_args!("{what}; going back to step {good}, with the learning rate times {scale}"));
        Ok(())
    }

    /// Writes the state and the model.
    fn save(&mut self) -> Result<()> {
        self.record.write_state(|header| Ok(self.trainer.save(header)?))?;
        Ok(self.model().write(&self.record.out.join(MODEL_FILE))?)
    }

    /// Which frames go with the model: evenly spread ones, of several molecules as many of each.
    fn start_frames(&self) -> Vec<usize> {
        let molecules = self.data.molecules.len().max(1);
        let all = |m: usize| match self.data.of_molecule.is_empty() {
            true => 0..self.data.len(),
            false => {
                let first = |m: u32| self.data.of_molecule.partition_point(|&of| of < m);
                first(m as u32)..first(m as u32 + 1)
            }
        };
        let shortest = (0..molecules).map(|m| all(m).len()).min().unwrap_or(0);
        let wanted = self.record.header.recipe.output.start_frames.unwrap_or(if molecules > 1 { 16 } else { 128 }).min(shortest);
        (0..molecules).flat_map(|m| (0..wanted).map(move |k| (m, k))).map(|(m, k)| all(m).start + k * all(m).len() / wanted).collect()
    }

    /// The model with averaged weights.
    fn model(&self) -> Model {
        let config = self.setup.config.clone();
        let plan = self.trainer.plan();
        let average = &self.trainer.state().average;
        let narrow = |v: &[T]| v.iter().map(|x| x.to_f64() as f32).collect::<Vec<f32>>();
        let sizes = config.parameters();
        let log_z = plan.stages.iter().find_map(|s| s.objective.log_z.map(|z| (z, narrow(&average[s.network][sizes[s.network]..]))));
        let start_frames = self.start_frames().into_iter().flat_map(|i| {
            let d = self.data.dimension;
            self.data.x[i * d..(i + 1) * d].iter().map(|&x| (f64::from(x) / self.data.scale) as f32)
        });
        Model {
            process: plan.stages.first().map_or_else(VariancePreserving::default, |s| s.objective.process),
            parameters: average.iter().zip(&sizes).map(|(v, &n)| narrow(&v[..n])).collect(),
            log_z,
            scale: self.data.scale,
            units: self.data.units,
            temperature: self.data.temperature,
            evaluation_time: self.record.header.recipe.output.evaluation_time.unwrap_or(EVALUATION_TIME),
            types: self.data.system.types.clone(),
            masses: self.data.system.masses.clone(),
            pdb: self.data.pdb.clone(),
            systems: self.data.molecules.clone(),
            start_frames: start_frames.collect(),
            training_range: training_range(&self.data),
            command: self.record.header.command.clone(),
            seed: self.record.header.seed,
            config,
        }
    }

    /// Plot, summary, and a word on what came out.
    fn finish(&mut self) -> Result<()> {
        let rows = self.record.rows()?;
        let series = [
            ("score matching", "score_matching"),
            ("held out", "held_out_score_matching"),
            ("Fokker–Planck", "fokker_planck"),
            ("forces", "forces"),
        ];
        self.record.plot(&rows, "Losses", "mean over rows", &series)?;
        let seconds = self.record.started.elapsed().as_secs_f64();
        let plan = self.trainer.plan();
        let steps = plan.steps() - self.record.first;
        let last = rows.iter().rev().find_map(|r| r["held_out_score_matching"].as_f64());
        let summary = serde_json::json!({
            "steps": plan.steps(),
            "batch": plan.batch,
            "frames": self.data.len(),
            "held_out": plan.held_out,
            "parameters": self.setup.config.parameters(),
            "steps_per_second": steps as f64 / seconds,
            "rows_per_second": steps as f64 * plan.batch as f64 / seconds,
            "held_out_score_matching": last,
            "best_held_out_score_matching": self.record.header.best,
            "restores": self.trainer.state().counters.restores,
        });
        let held_out = last.map_or(String::new(), |l| format!(", score matching on held-out frames {l:.4}"));
        let speed = if steps == 0 { String::new() } else { format!("; {:.0} rows/s", steps as f64 * plan.batch as f64 / seconds) };
        self.record.summarise(summary, &format!("{} steps{held_out}{speed}", plan.steps()))
    }
}

/// A fraction for people.
fn percent(fraction: f64) -> String {
    if fraction == 1.0 { "all".into() } else { format!("{:.0} %", 100.0 * fraction) }
}

/// Where the training data lie, see [`RangeColumn`](scorefield_models::scoremd::model::RangeColumn).
fn training_range(data: &TrainingData) -> Vec<f32> {
    let (d, n) = (data.dimension, data.len());
    let beads = if data.units == UnitSystem::Si && d >= 6 { d / 3 } else { 0 };
    let distance = |i: usize, j: usize| {
        move |f: &[f32]| (0..3).map(|a| f64::from(f[3 * i + a] - f[3 * j + a]).powi(2)).sum::<f64>().sqrt() / data.scale
    };
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for i in 0..beads {
        for j in i + 1..beads {
            rows.push(data.x.chunks_exact(d).map(distance(i, j)).collect());
        }
    }
    if beads == 0 {
        rows = (0..d).map(|k| data.x.chunks_exact(d).map(|f| f64::from(f[k]) / data.scale).collect()).collect();
    }
    let mut out = Vec::with_capacity(rows.len() * RANGE_COLUMNS);
    for mut values in rows {
        values.sort_unstable_by(f64::total_cmp);
        let mean = values.iter().sum::<f64>() / n as f64;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        let at = |q: f64| values[((n - 1) as f64 * q).round() as usize];
        out.extend([at(0.0), at(RANGE_QUANTILE), mean, deviation, at(1.0 - RANGE_QUANTILE), at(1.0)].map(|v| v as f32));
    }
    out
}
