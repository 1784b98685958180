//! Training of potentials: structures with energies and forces, the loop, and the model in the end.

use super::course::{self, Course, Origin, Record};
use super::minima::rate;
use super::{Header, MODEL_FILE, Request, cannot_start, start_from};
use crate::checkpoint::{Fnv, InputFile};
use crate::config::{EnergyOffset, PotentialSettings, Recipe};
use crate::dataset::Paths;
use crate::error::{Error, Result, usage};
use crate::io::{FrameRange, ReadOptions, read_frames};
use crate::runtime::{Outcome, Runtime};
use crate::signals::Interrupt;
use nalgebra::{DMatrix, DVector};
use scorefield_integrators::simd::{self, SimdReal};
use scorefield_integrators::{Dimension, Noise, Purpose, Quantity, UnitSystem};
use scorefield_models::painn::model::{ARCHITECTURE, Output};
use scorefield_models::painn::potential::{Plan, Structures, Sums, Trainer};
use scorefield_models::painn::{Head, PainnConfig, PainnModel};
use scorefield_models::train::adamw::Root;
use scorefield_models::train::{AdamW, Clip, Ema, StateFile};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Å per nm.
const ANGSTROMS: f64 = 10.0;
/// meV of 1 kJ/mol.
const MEV: f64 = 1e3 / 96.485_332_123_31;
const COLUMNS: [&str; 14] = [
    "step",
    "epoch",
    "loss",
    "energy_mae_mev",
    "force_mae_mev_per_angstrom",
    "gradient_norm",
    "learning_rate",
    "structures_per_second",
    "seconds",
    "validation_loss",
    "validation_energy_mae_mev",
    "validation_force_mae_mev_per_angstrom",
    "validation_force_rmse_mev_per_angstrom",
    "skipped",
];

/// The network of a recipe of PaiNN.
fn config(recipe: &Recipe) -> Option<PainnConfig> {
    recipe.network.clone().or_else(|| PainnConfig::preset(recipe.preset.as_deref()?))
}

/// Whether a recipe is of this kind: a PaiNN with an energy.
pub(super) fn is_meant(recipe: &Recipe) -> bool {
    let painn = recipe.architecture.as_deref().is_none_or(|a| a == ARCHITECTURE);
    painn && (recipe.potential.is_some() || config(recipe).is_some_and(|c| c.head == Head::Energy))
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
    let start = start_from(&request.recipe, &request.folder);
    let model = start.as_ref().map(|file| Ok::<_, Error>((file, PainnModel::read(file)?))).transpose()?;
    let data = load(&request, seed, model.as_ref().map(|(_, model)| &model.output))?;
    let plan = plan(&request.recipe, &data.structures, seed)?;
    let mut trainer = Trainer::<T>::new(plan, data.structures.clone())?;
    let mut inputs = data.inputs.clone();
    if let Some((file, model)) = &model {
        inputs.push(InputFile::of(file)?);
        if model.config != trainer.plan().config {
            return Err(cannot_start(file, "it has another network than the recipe; take the preset and sizes that it was trained with"));
        }
        trainer.start_from(&model.values);
    }
    let origin = Origin { dtype: T::DTYPE, seed, data: data.hash.clone(), inputs };
    let record = Record::open(&request, recorded, origin, &COLUMNS, runtime, |state, path| {
        trainer.restore(state, path)?;
        Ok(trainer.counters().step)
    })?;
    course::run(&mut Run { trainer, data, record }, interrupt)
}

/// The same with paths that mean the same everywhere.
pub(super) fn absolute(settings: PotentialSettings, folder: &Path) -> PotentialSettings {
    PotentialSettings { test: settings.test.map(|t| folder.join(t)), ..settings }
}

/// From a recipe to a plan.
fn plan(recipe: &Recipe, data: &Structures, seed: u64) -> Result<Plan> {
    let Some(config) = config(recipe) else {
        return usage("a potential needs preset = \"painn\" or \"painn-small\", or a [network] with head = \"energy\"");
    };
    if let Some(key) = [(recipe.objective.is_some(), "objective"), (recipe.noise.is_some(), "[noise]")].iter().find(|k| k.0).map(|k| k.1) {
        return usage(format!("{key} is for pseudo-force fields, but the network has an energy; leave it out, or take preset = \"gpff\""));
    }
    let (t, p) = (&recipe.train, recipe.potential.clone().unwrap_or_default());
    let batch = t.batch.unwrap_or(8);
    Ok(Plan {
        config,
        energy_weight: p.energy_weight.unwrap_or(0.05),
        force_weight: p.force_weight.unwrap_or(1.0),
        batch,
        rate: rate(t, data.training.len(), batch, 1e-3)?,
        adam: AdamW { weight_decay: t.weight_decay.unwrap_or(0.0), ..AdamW::default() },
        clip: Some(t.clip.unwrap_or(Clip::Norm(10.0))),
        ema: Ema { decay: t.ema.unwrap_or(0.999) },
        seed,
    })
}

/// What is trained on.
struct Data {
    structures: Arc<Structures>,
    /// kJ/mol of one unit of the network.
    unit: f64,
    /// Energies of single atoms in that unit.
    per_atom: f64,
    references: Vec<(u32, f64)>,
    types: Vec<u32>,
    hash: String,
    inputs: Vec<InputFile>,
}

/// Reads structures with their labels, chooses what is held out, and takes off what need not be learnt. Where training starts from a
/// model, energies are in its unit.
fn load(request: &Request, seed: u64, start: Option<&Output>) -> Result<Data> {
    let settings = request.recipe.data.absolute(&request.folder);
    let potential = absolute(request.recipe.potential.clone().unwrap_or_default(), &request.folder);
    let paths = match &settings.trajectory {
        None => return usage("[data]: trajectory is missing; name files of structures with energies and forces (extended XYZ)"),
        Some(Paths::One(path)) => std::slice::from_ref(path),
        Some(Paths::Several(paths)) => &paths[..],
    };
    let range: FrameRange = match settings.frames.as_deref().map(str::parse).transpose() {
        Ok(range) => range.unwrap_or_default(),
        Err(e) => return usage(format!("[data]: frames: {e}")),
    };
    // Readers take labels for eV and eV/Å.
    let energy = |quantity: &Quantity, what: &str| match quantity.resolve(Dimension::ENERGY, UnitSystem::Si) {
        Ok(e) if e > 0.0 => Ok(e),
        Ok(_) => usage(format!("[potential]: {what} must be above zero")),
        Err(e) => usage(format!("[potential]: {what}: {e}")),
    };
    let factor = match &potential.energy_unit {
        None => 1.0,
        Some(unit) => energy(&Quantity::new(1.0, unit), "energy-unit")? / energy(&Quantity::new(1.0, "eV"), "energy-unit")?,
    };
    let mut all = Structures { offsets: vec![0], ..Structures::default() };
    for path in paths {
        read(path, range, factor, &mut all)?;
    }
    let count = all.energies.len();
    let held_out = request.recipe.train.held_out.unwrap_or((count / 20).max(1));
    if held_out >= count {
        return usage(format!("[train]: held-out = {held_out}, but there are only {count} structures"));
    }
    let noise = Noise::new(seed);
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by_key(|&i| noise.bits(i, 0, u64::MAX >> 9, Purpose::TrainingChoice));
    all.validation = order[..held_out].to_vec();
    all.training = order[held_out..].to_vec();
    all.training.truncate(settings.limit.unwrap_or(usize::MAX));
    if let Some(path) = &potential.test {
        read(path, FrameRange::default(), factor, &mut all)?;
        all.test = (count as u32..all.energies.len() as u32).collect();
    }
    let mut hash = Fnv::default();
    all.positions.iter().chain(&all.forces).chain(&all.energies).for_each(|x| hash.update(&x.to_le_bytes()));
    all.types.iter().chain(&all.training).chain(&all.validation).for_each(|x| hash.update(&x.to_le_bytes()));
    let unit = match (&potential.scale, start) {
        (Some(scale), _) => energy(scale, "scale")?,
        (None, Some(Output::Energy { unit, .. })) => *unit,
        (None, _) => spread(&all).filter(|s| *s > 0.0).ok_or_else(|| Error::Usage("[data]: all forces are zero; give a `scale`".into()))?,
    };
    all.energies.iter_mut().chain(&mut all.forces).for_each(|x| *x /= unit);
    let (per_atom, references) = take_offsets(&mut all, potential.offset.unwrap_or_default())?;
    let mut types = all.types.clone();
    types.sort_unstable();
    types.dedup();
    let inputs = paths.iter().chain(&potential.test).map(|p| InputFile::of(p)).collect::<Result<Vec<_>>>()?;
    Ok(Data { structures: Arc::new(all), unit, per_atom, references, types, hash: hash.finish(), inputs })
}

/// Adds the frames of a file in Å, kJ/mol and kJ/mol/Å.
fn read(path: &PathBuf, range: FrameRange, factor: f64, all: &mut Structures) -> Result<()> {
    for (i, frame) in read_frames(path, &ReadOptions { range, ..ReadOptions::default() })?.enumerate() {
        let frame = frame?;
        let refuse = |what: &str| usage(format!("[data]: {}: frame {i}, counted from 0: {what}", path.display()));
        let (Some(energy), Some(forces)) = (frame.energy, &frame.forces) else {
            return refuse("a potential is trained on energies and forces, which the frame does not have; extended XYZ can hold them");
        };
        if frame.cell.is_some() {
            return refuse("it is periodic, but potentials are trained on molecules in open space; write pbc=\"F F F\"");
        }
        if frame.is_empty() {
            return refuse("it has no atoms");
        }
        all.types.extend_from_slice(&frame.system.types);
        all.positions.extend(frame.positions.iter().map(|x| x * ANGSTROMS));
        all.forces.extend(forces.iter().map(|f| factor * f / ANGSTROMS));
        all.energies.push(factor * energy);
        all.offsets.push(all.types.len());
    }
    Ok(())
}

/// Root mean square of all components of forces in the training set.
fn spread(all: &Structures) -> Option<f64> {
    let forces = all.training.iter().flat_map(|&i| &all.forces[3 * all.offsets[i as usize]..3 * all.offsets[i as usize + 1]]);
    let (sum, n) = forces.fold((0.0, 0u64), |(sum, n), f| (sum + f * f, n + 1));
    (n > 0).then(|| (sum / n as f64).sqrt())
}

/// Takes off the energies what atoms have by themselves; what that is in the training set.
fn take_offsets(all: &mut Structures, offset: EnergyOffset) -> Result<(f64, Vec<(u32, f64)>)> {
    let atoms = |i: usize| all.offsets[i]..all.offsets[i + 1];
    let mut per_atom = 0.0;
    let mut references = BTreeMap::new();
    match offset {
        EnergyOffset::None => {}
        EnergyOffset::Atom => {
            let of = all.training.iter().map(|&i| all.energies[i as usize] / atoms(i as usize).len() as f64);
            per_atom = of.sum::<f64>() / all.training.len() as f64;
        }
        EnergyOffset::Element => {
            for &z in &all.types {
                let next = references.len();
                references.entry(z).or_insert((next, 0.0));
            }
            // Normal equations; compositions that are never told apart share what they have (least norm).
            let n = references.len();
            let (mut matrix, mut right) = (DMatrix::<f64>::zeros(n, n), DVector::<f64>::zeros(n));
            for &i in &all.training {
                let mut counts = vec![0.0; n];
                all.types[atoms(i as usize)].iter().for_each(|z| counts[references[z].0] += 1.0);
                for a in 0..n {
                    right[a] += counts[a] * all.energies[i as usize];
                    (0..n).for_each(|b| matrix[(a, b)] += counts[a] * counts[b]);
                }
            }
            let largest = matrix.amax();
            let solved = matrix.svd(true, true).solve(&right, 1e-10 * largest).map_err(|e| Error::Run(e.to_string()))?;
            references.values_mut().for_each(|(k, e)| *e = solved[*k]);
        }
    }
    for i in 0..all.energies.len() {
        let of = all.offsets[i]..all.offsets[i + 1];
        let own: f64 = all.types[of].iter().map(|z| per_atom + references.get(z).map_or(0.0, |r| r.1)).sum();
        all.energies[i] -= own;
    }
    Ok((per_atom, references.into_iter().map(|(z, (_, e))| (z, e)).collect()))
}

/// A training on its way.
struct Run<'a, T: SimdReal> {
    trainer: Trainer<T>,
    data: Data,
    record: Record<'a>,
}

impl<T: SimdReal + Root> Run<'_, T> {
    /// From the network's unit to meV.
    fn mev(&self) -> f64 {
        self.data.unit * MEV
    }
}

impl<'a, T: SimdReal + Root> Course<'a> for Run<'a, T> {
    type Validation = Sums;
    const INTERVALS: [u64; 2] = [100, 1000];

    fn record(&self) -> &Record<'a> {
        &self.record
    }

    fn steps(&self) -> u64 {
        self.trainer.plan().rate.steps()
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
        Ok(self.trainer.step())
    }

    fn validate(&mut self) -> Result<Option<Sums>> {
        let validation = (!self.data.structures.validation.is_empty()).then(|| self.trainer.validate());
        if let Some(v) = &validation {
            self.trainer.judge(v.mean());
        }
        Ok(validation)
    }

    fn describe(&self) {
        let (plan, data) = (self.trainer.plan(), &self.data.structures);
        self.record.runtime.say(format_args!(
            "PaiNN {} × {} of {} parameters on energies and forces of {} structures, {} held out, {} for the test; {} steps of {}; unit {:.3} kJ/mol; {}, {}, {} threads, seed {}; writing to {}",
            plan.config.layers,
            plan.config.features,
            plan.config.parameters(),
            data.training.len(),
            data.validation.len(),
            data.test.len(),
            plan.rate.steps(),
            plan.batch,
            self.data.unit,
            simd::current_isa(),
            T::DTYPE,
            self.record.runtime.threads(),
            plan.seed,
            self.record.out.display()
        ));
    }

    fn log(&mut self, rate: f64, steps: u64, seconds: f64, validation: Option<&Sums>) -> Result<()> {
        let mev = self.mev();
        let (sums, norm) = self.trainer.take_interval(steps);
        let counters = self.trainer.counters();
        let batch = self.trainer.plan().batch as f64;
        let [[energy, _], [force, _]] = sums.errors();
        let held_out = validation.map(Sums::errors);
        let row = [
            counters.step.into(),
            (counters.step as f64 * batch / self.data.structures.training.len() as f64).into(),
            sums.mean().into(),
            (mev * energy).into(),
            (mev * force).into(),
            norm.into(),
            rate.into(),
            (steps as f64 * batch / seconds).into(),
            self.record.started.elapsed().as_secs_f64().into(),
            validation.map(Sums::mean).into(),
            held_out.map(|e| mev * e[0][0]).into(),
            held_out.map(|e| mev * e[1][0]).into(),
            held_out.map(|e| mev * e[1][1]).into(),
            counters.skipped.into(),
        ];
        self.record.row(&row)
    }

    /// Writes the state and the model.
    fn save(&mut self) -> Result<()> {
        self.record.header.best = self.trainer.counters().progress.best;
        self.record.write_state(|header| Ok(self.trainer.save(header)))?;
        let model = PainnModel {
            config: self.trainer.plan().config.clone(),
            output: Output::Energy { unit: self.data.unit, per_atom: self.data.per_atom },
            references: self.data.references.clone(),
            values: self.trainer.averaged(),
            types: self.data.types.clone(),
            noise: None,
            command: self.record.header.command.clone(),
            seed: self.record.header.seed,
        };
        Ok(model.write(&self.record.out.join(MODEL_FILE))?)
    }

    /// Plot, summary, and a word on what came out.
    fn finish(&mut self) -> Result<()> {
        let rows = self.record.rows()?;
        self.record.plot(&rows, "Mean absolute errors of forces", "meV/Å", &[("training", COLUMNS[4]), ("validation", COLUMNS[11])])?;
        let seconds = self.record.started.elapsed().as_secs_f64();
        let mev = self.mev();
        let errors = |sums: Sums| {
            (sums.structures > 0).then(|| {
                let [[mae, rmse], [force_mae, force_rmse]] = sums.errors().map(|e| e.map(|x| mev * x));
                serde_json::json!({
                    "structures": sums.structures,
                    "energy_mae_mev": mae,
                    "energy_rmse_mev": rmse,
                    "force_mae_mev_per_angstrom": force_mae,
                    "force_rmse_mev_per_angstrom": force_rmse,
                })
            })
        };
        let (validation, test) = (errors(self.trainer.validate()), errors(self.trainer.test()));
        let plan = self.trainer.plan();
        let counters = self.trainer.counters();
        let structures = (counters.step - self.record.first) as f64 * plan.batch as f64;
        let summary = serde_json::json!({
            "steps": counters.step,
            "skipped": counters.skipped,
            "batch": plan.batch,
            "structures": self.data.structures.training.len(),
            "parameters": plan.config.parameters(),
            "structures_per_second": structures / seconds,
            "unit_kj_per_mol": self.data.unit,
            "best_validation_loss": counters.progress.best,
            "validation": validation,
            "test": test,
        });
        let mut words = String::new();
        for (name, errors) in [("held out", &summary["validation"]), ("test", &summary["test"])] {
            if let (Some(e), Some(f)) = (errors["energy_mae_mev"].as_f64(), errors["force_mae_mev_per_angstrom"].as_f64()) {
                words += &format!("; {name}: {e:.2} meV, {f:.2} meV/Å");
            }
        }
        self.record
            .summarise(summary, &format!("{} steps{words} (mean absolute errors); {:.0} structures/s", counters.step, structures / seconds))
    }
}
