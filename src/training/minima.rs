//! Training of pseudo-force fields: molecules at minima, the loop, and the model in the end.

use super::course::{self, Course, Origin, Record};
use super::{Header, MODEL_FILE, Request, cannot_start, start_from};
use crate::checkpoint::{Fnv, InputFile};
use crate::config::{Recipe, ScheduleKind, TrainSettings};
use crate::dataset::Paths;
use crate::error::{Error, Result, usage};
use crate::io::table::Field;
use crate::io::{FrameRange, ReadOptions, read_frames};
use crate::runtime::{Outcome, Runtime};
use crate::signals::Interrupt;
use scorefield_integrators::simd::{self, SimdReal};
use scorefield_integrators::{Noise, Purpose};
use scorefield_models::painn::model::{EV_PER_SQUARE_ANGSTROM, Output};
use scorefield_models::painn::trainer::{Molecules, Objective, Plan, Rate, Sums, Trainer};
use scorefield_models::painn::{PainnConfig, PainnModel};
use scorefield_models::train::adamw::Root;
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema, StateFile};
use std::path::Path;
use std::sync::Arc;

/// First bytes of the packed format; see [`packed`].
const MAGIC: &[u8; 8] = b"QM9Q1\0\0\0";
/// Å per nm.
const ANGSTROMS: f64 = 10.0;
/// Molecules that validations look at by default.
const VALIDATION: usize = 2048;
const COLUMNS: [&str; 10] =
    ["step", "epoch", "loss", "gradient_norm", "learning_rate", "molecules_per_second", "seconds", "validation_loss", "skipped", "bins"];

/// Whether a recipe is of this kind.
pub(super) fn is_meant(recipe: &Recipe) -> bool {
    recipe.architecture.as_deref() == Some(scorefield_models::painn::model::ARCHITECTURE)
        || recipe.preset.as_deref().is_some_and(|p| PainnConfig::PRESETS.contains(&p))
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
    let (data, hash, mut inputs) = load(&request, seed)?;
    let plan = plan(&request.recipe, &data, seed)?;
    let device = request.recipe.train.device.unwrap_or_default().open()?;
    let place = device.as_ref().map_or_else(|| simd::current_isa().to_string(), |d| d.name().to_owned());
    let mut trainer = match &device {
        None => Trainer::<T>::new(plan, data.clone())?,
        Some(device) => Trainer::on(device, plan, data.clone())?,
    };
    if let Some(file) = start_from(&request.recipe, &request.folder).filter(|_| recorded.is_none()) {
        inputs.push(InputFile::of(&file)?);
        let model = PainnModel::read(&file)?;
        if model.config != trainer.plan().config || model.output != output(trainer.plan().objective) {
            return Err(cannot_start(&file, "it has another network or objective than the recipe; take those that it was trained with"));
        }
        trainer.start_from(&model.values)?;
    }
    let origin = Origin { dtype: T::DTYPE, seed, data: hash, inputs };
    let record = Record::open(&request, recorded, origin, &COLUMNS, runtime, |state, path| {
        trainer.restore(state, path)?;
        Ok(trainer.counters().step)
    })?;
    course::run(&mut Run { trainer, data, record, place }, interrupt)
}

/// What a network of this objective says.
fn output(objective: Objective) -> Output {
    let stiffness = EV_PER_SQUARE_ANGSTROM;
    match objective {
        Objective::PseudoForce => Output::Displacement { stiffness },
        Objective::Noise => Output::Noise { stiffness },
    }
}

/// From a recipe to a plan. Defaults are those of generative pseudo-force fields, with batches for a few cores.
fn plan(recipe: &Recipe, data: &Molecules, seed: u64) -> Result<Plan> {
    let preset = recipe.preset.as_deref().unwrap_or("gpff");
    let Some(mut config) = recipe.network.clone().or_else(|| PainnConfig::preset(preset)) else {
        return usage(format!("preset = \"{preset}\" is not known; known are {}", PainnConfig::PRESETS.join(", ")));
    };
    let objective = recipe.objective.unwrap_or_default();
    // Noise can be predicted only by a network that is told its scale.
    config.time |= objective == Objective::Noise;
    let t = &recipe.train;
    let batch = t.batch.unwrap_or(512);
    Ok(Plan {
        config,
        objective,
        noise: recipe.noise.unwrap_or_default(),
        batch,
        rate: rate(t, data.training.len(), batch, 5e-4)?,
        adam: AdamW { weight_decay: t.weight_decay.unwrap_or(0.0), ..AdamW::default() },
        clip: Some(t.clip.unwrap_or(Clip::Norm(0.5))),
        ema: Ema { decay: t.ema.unwrap_or(0.995) },
        seed,
    })
}

/// Learning rate and steps of `[train]`, with a `usual` rate, for `count` rows in batches of `batch`.
pub(super) fn rate(t: &TrainSettings, count: usize, batch: usize, usual: f64) -> Result<Rate> {
    let steps = match (t.steps, t.epochs) {
        (Some(_), Some(_)) => return usage("[train]: steps and epochs are both given; one of them must go"),
        (Some(steps), None) => steps,
        (None, epochs) => (epochs.unwrap_or(100.0) * count as f64 / batch.max(1) as f64).round() as u64,
    };
    if !(t.learning_rate.is_none_or(|r| r > 0.0 && r.is_finite())) {
        return usage("[train]: learning-rate must be above zero");
    }
    let rate = t.learning_rate.unwrap_or(usual);
    Ok(match t.schedule.unwrap_or(ScheduleKind::Cosine) {
        ScheduleKind::Cosine => {
            let floor = t.final_learning_rate.unwrap_or(1e-6).min(rate);
            Rate::Cosine(CosineSchedule { peak: rate, floor, warmup: t.warmup.unwrap_or(0), steps })
        }
        ScheduleKind::Plateau => Rate::Plateau { rate, patience: t.patience.unwrap_or(250), stop: t.stop_after.unwrap_or(500), steps },
    })
}

/// Reads the molecules; their hash and the files they are from.
fn load(request: &Request, seed: u64) -> Result<(Arc<Molecules>, String, Vec<InputFile>)> {
    let settings = request.recipe.data.absolute(&request.folder);
    let paths = match &settings.trajectory {
        None => return usage("[data]: trajectory is missing; name a file of molecules at their minima (XYZ, SDF, packed)"),
        Some(Paths::One(path)) => std::slice::from_ref(path),
        Some(Paths::Several(paths)) => &paths[..],
    };
    let mut all = Molecules { offsets: vec![0], ..Molecules::default() };
    let (mut split, mut unsplit) = (false, false);
    for path in paths {
        let range: FrameRange = match settings.frames.as_deref().map(str::parse).transpose() {
            Ok(range) => range.unwrap_or_default(),
            Err(e) => return usage(format!("[data]: frames: {e}")),
        };
        if let Some(bytes) = packed_bytes(path)? {
            packed(path, &bytes, &mut all)?;
            split = true;
            continue;
        }
        unsplit = true;
        for frame in read_frames(path, &ReadOptions { range, ..ReadOptions::default() })? {
            let frame = frame?;
            all.types.extend_from_slice(&frame.system.types);
            all.positions.extend(frame.positions.iter().map(|x| (x * ANGSTROMS) as f32));
            all.offsets.push(all.types.len());
        }
    }
    if split && unsplit {
        return usage("[data]: packed files have a split of their own, other files have none; train on one kind at a time");
    }
    if let Some(i) = all.positions.iter().position(|x| !x.is_finite()) {
        return usage(format!("[data]: a coordinate of atom {} of all molecules is not finite", i / 3 + 1));
    }
    let count = all.offsets.len() - 1;
    if !split {
        // Every file without a split of its own: some are held out at random.
        let held_out = request.recipe.train.held_out.unwrap_or((count / 10).min(VALIDATION));
        if held_out >= count {
            return usage(format!("[train]: held-out = {held_out}, but there are only {count} molecules"));
        }
        let noise = Noise::new(seed);
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by_key(|&i| noise.bits(i, 0, u64::MAX >> 9, Purpose::TrainingChoice));
        all.validation = order[..held_out].to_vec();
        all.training = order[held_out..].to_vec();
        all.training.sort_unstable();
    }
    if let Some(limit) = settings.limit {
        all.training.truncate(limit);
    }
    let mut hash = Fnv::default();
    all.positions.iter().for_each(|x| hash.update(&x.to_le_bytes()));
    all.types.iter().chain(&all.training).chain(&all.validation).for_each(|x| hash.update(&x.to_le_bytes()));
    let inputs = paths.iter().map(|p| InputFile::of(p)).collect::<Result<Vec<_>>>()?;
    Ok((Arc::new(all), hash.finish(), inputs))
}

/// The file's bytes where it is packed.
pub(crate) fn packed_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let fail = |e| Error::file("read", path, e);
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut magic = [0; 8];
    match file.read_exact(&mut magic) {
        Ok(()) if magic == *MAGIC => {}
        Ok(()) if magic[..2] == [0x1f, 0x8b] => {
            return usage(format!("{} is compressed; unpack it first (gunzip -k)", path.display()));
        }
        _ => return Ok(None),
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(fail)?;
    Ok(Some(bytes))
}

/// Molecules in 16 bits per coordinate, little endian after the magic: `u32 M`, `u32 A`, `f32 scale` (Å), `u32 id[M]`, `u8 atoms[M]`,
/// `u8 split[M]` (0 training, 1 validation, 2 test), `u8 z[A]`, `i16 xyz[A, 3]`.
pub(crate) fn packed(path: &Path, bytes: &[u8], all: &mut Molecules) -> Result<()> {
    let refuse = |what: &str| Error::Usage(format!("[data]: {}: {what}", path.display()));
    let Some((head, rest)) = bytes.split_at_checked(12) else { return Err(refuse("it is truncated")) };
    let word = |k: usize| [head[k], head[k + 1], head[k + 2], head[k + 3]];
    let (m, a) = (u32::from_le_bytes(word(0)) as usize, u32::from_le_bytes(word(4)) as usize);
    let scale = f32::from_le_bytes(word(8));
    if rest.len() != 6 * m + 7 * a || !(scale > 0.0 && scale.is_finite()) {
        return Err(refuse("its size is not what its header says"));
    }
    let rest = &rest[4 * m..];
    let (counts, rest) = rest.split_at(m);
    let (split, rest) = rest.split_at(m);
    let (types, xyz) = rest.split_at(a);
    if counts.iter().map(|&n| n as usize).sum::<usize>() != a || counts.contains(&0) {
        return Err(refuse("its molecules do not have as many atoms as there are"));
    }
    let first = all.offsets.len() as u32 - 1;
    for (i, (&n, &split)) in counts.iter().zip(split).enumerate() {
        let end = all.offsets[all.offsets.len() - 1] + n as usize;
        all.offsets.push(end);
        match split {
            0 => all.training.push(first + i as u32),
            1 => all.validation.push(first + i as u32),
            _ => {}
        }
    }
    all.types.extend(types.iter().map(|&z| u32::from(z)));
    all.positions.extend(xyz.as_chunks::<2>().0.iter().map(|b| f32::from(i16::from_le_bytes(*b)) * scale));
    Ok(())
}

/// A training on its way.
struct Run<'a, T: SimdReal> {
    trainer: Trainer<T>,
    data: Arc<Molecules>,
    record: Record<'a>,
    /// The instruction set or the device, for people.
    place: String,
}

impl<T: SimdReal + Root> Run<'_, T> {
    /// The model with averaged weights.
    fn model(&self) -> Result<PainnModel> {
        let plan = self.trainer.plan();
        let mut types = self.data.types.clone();
        types.sort_unstable();
        types.dedup();
        Ok(PainnModel {
            config: plan.config.clone(),
            output: output(plan.objective),
            references: Vec::new(),
            values: self.trainer.averaged()?,
            types,
            noise: Some(plan.noise),
            command: self.record.header.command.clone(),
            seed: self.record.header.seed,
        })
    }
}

impl<'a, T: SimdReal + Root> Course<'a> for Run<'a, T> {
    type Validation = Sums;
    const INTERVALS: [u64; 2] = [50, 500];

    fn record(&self) -> &Record<'a> {
        &self.record
    }

    fn steps(&self) -> u64 {
        self.trainer.plan().steps()
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
        let most = self.record.header.recipe.train.held_out.unwrap_or(VALIDATION);
        let validation = (!self.data.validation.is_empty()).then(|| self.trainer.validate(most)).transpose()?;
        if let Some(v) = &validation {
            self.trainer.judge(v.mean());
        }
        Ok(validation)
    }

    fn describe(&self) {
        let plan = self.trainer.plan();
        self.record.runtime.say(format_args!(
            "PaiNN {} × {} of {} parameters on {} molecules, {} held out; {} steps of {} molecules; {}, {}, {} threads, seed {}; writing to {}",
            plan.config.layers,
            plan.config.features,
            plan.config.parameters(),
            self.data.training.len(),
            self.data.validation.len(),
            plan.steps(),
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
            let bins = v.bins().map(|([low, high], n, loss, floor, ratio)| {
                serde_json::json!({ "sigma": [low, high], "rows": n, "loss": loss, "floor": floor, "ratio": ratio })
            });
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
        self.record.header.best = self.trainer.counters().progress.best;
        self.record.write_state(|header| Ok(self.trainer.save(header)?))?;
        Ok(self.model()?.write(&self.record.out.join(MODEL_FILE))?)
    }

    /// Plot, summary, and a word on what came out.
    fn finish(&mut self) -> Result<()> {
        let rows = self.record.rows()?;
        self.record.plot(&rows, "Losses", "weighted mean square", &[("training", "loss"), ("validation", "validation_loss")])?;
        let seconds = self.record.started.elapsed().as_secs_f64();
        let plan = self.trainer.plan();
        let counters = self.trainer.counters();
        let molecules = (counters.step - self.record.first) as f64 * plan.batch as f64;
        let last = rows.iter().rev().find_map(|r| r["validation_loss"].as_f64());
        let summary = serde_json::json!({
            "steps": counters.step,
            "skipped": counters.skipped,
            "batch": plan.batch,
            "molecules": self.data.training.len(),
            "validation_molecules": self.data.validation.len(),
            "parameters": plan.config.parameters(),
            "molecules_per_second": molecules / seconds,
            "validation_loss": last,
            "best_validation_loss": counters.progress.best,
        });
        let held_out = last.map_or(String::new(), |l| format!(", validation loss {l:.4}"));
        self.record.summarise(summary, &format!("{} steps{held_out}; {:.0} molecules/s", counters.step, molecules / seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Water and carbon monoxide: one to train on, one to test.
    fn file() -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        bytes.extend(0.5f32.to_le_bytes());
        bytes.extend([7u32, 9].iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend([3, 2, 0, 2, 8, 1, 1, 6, 8]);
        bytes.extend((0..15i16).flat_map(|x| (x - 7).to_le_bytes()));
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Molecules> {
        let mut all = Molecules { offsets: vec![0], ..Molecules::default() };
        packed(Path::new("molecules.bin"), &bytes[8..], &mut all).map(|()| all)
    }

    #[test]
    fn packed_molecules_are_read() {
        let all = read(&file()).unwrap();
        assert_eq!((all.offsets, all.types), (vec![0, 3, 5], vec![8, 1, 1, 6, 8]));
        assert_eq!((all.training, all.validation), (vec![0], vec![]));
        assert_eq!((all.positions[0], all.positions[14]), (-3.5, 3.5));
    }

    #[test]
    fn damaged_packed_files_are_refused() {
        let good = file();
        for n in 8..good.len() {
            assert!(read(&good[..n]).is_err(), "{n}");
        }
        let mut odd = good.clone();
        odd[28] = 4;
        assert!(read(&odd).unwrap_err().to_string().contains("as many atoms"));
        let mut huge = good;
        huge[8..16].fill(0xff);
        assert!(read(&huge).unwrap_err().to_string().contains("size"));
    }
}
