//! Training on conformers.
//!
//! A row is a conformer x₁ at a time t of its path from noise; the network learns x₁ under the weight 1/(1 − min(t, 0.9))². Everything
//! random is counted (seed, step, row) and gradients are summed over fixed groups of rows in a fixed order: parameters do not depend, in
//! any bit, on the number of threads or on where a run was stopped and resumed.

mod host;
mod on_device;

use super::config::DitmcConfig;
use super::context::GraphContext;
use super::layout::Layout;
use super::process::Path;
use super::rows::{Row, TimeSettings};
use crate::error::{Error, Result};
use crate::train::adamw::Root;
use crate::train::device::Kept;
use crate::train::{AdamW, Clip, CosineSchedule, Ema, Permutation, StateFile};
use host::Host;
use on_device::OnDevice;
use scorefield_integrators::Noise;
use scorefield_integrators::device::Device;
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Step that stands for the fixed noise of validation.
const VALIDATION_STEP: u64 = 1 << 54;
/// Bounds of the times by which validation is reported; the last bin is t = 1.
pub const TIME_BINS: [f64; 7] = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0];
const BINS: usize = TIME_BINS.len();

/// Conformers to train on.
#[derive(Clone, Debug, Default)]
pub struct Conformers {
    /// Molecules.
    pub contexts: Vec<GraphContext>,
    /// Of each conformer its molecule and where its positions begin.
    pub conformers: Vec<(u32, usize)>,
    /// Positions of all conformers (Å), three numbers per atom.
    pub positions: Vec<f32>,
    /// Conformers that are trained on.
    pub training: Vec<u32>,
    /// Conformers that are looked at only.
    pub validation: Vec<u32>,
}

impl Conformers {
    /// Adds a conformer `[N, 3]` (Å) of molecule `context` and returns its number.
    pub fn push(&mut self, context: u32, positions: impl Iterator<Item = f32>) -> u32 {
        self.conformers.push((context, self.positions.len()));
        self.positions.extend(positions);
        self.conformers.len() as u32 - 1
    }

    fn conformer(&self, i: u32) -> (&GraphContext, &[f32]) {
        let (context, start) = self.conformers[i as usize];
        let context = &self.contexts[context as usize];
        (context, &self.positions[start..start + 3 * context.len()])
    }
}

/// How a network is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The network.
    pub config: DitmcConfig,
    /// How noisy structures are made.
    pub path: Path,
    /// At which times, with which weights.
    pub times: TimeSettings,
    /// Conformers of a batch.
    pub batch: usize,
    /// Learning rate, with the number of steps.
    pub rate: CosineSchedule,
    /// The optimiser.
    pub adam: AdamW,
    /// Bound on gradients.
    pub clip: Option<Clip>,
    /// Averaged weights.
    pub ema: Ema,
    /// Seed of everything random.
    pub seed: u64,
}

/// Sums over rows, by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Rows.
    pub rows: u64,
    /// Weighted losses (Å²).
    pub loss: f64,
    /// Mean square distances to the conformer per coordinate, by bin (Å²).
    pub squares: [f64; BINS],
    /// Rows by bin.
    pub counts: [u64; BINS],
}

impl Sums {
    fn add(&mut self, o: &Sums) {
        self.rows += o.rows;
        self.loss += o.loss;
        for b in 0..BINS {
            self.squares[b] += o.squares[b];
            self.counts[b] += o.counts[b];
        }
    }

    /// Counts a row whose errors have squares of sum `error` (Å²).
    fn count(&mut self, plan: &Plan, row: &Row, error: f64) {
        let square = error / row.x.len() as f64;
        let bin = TIME_BINS[1..].iter().filter(|&&b| row.time >= b).count();
        self.rows += 1;
        self.loss += plan.times.weight(row.time) * square;
        self.squares[bin] += square;
        self.counts[bin] += 1;
    }

    /// Mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.rows.max(1) as f64
    }

    /// Of each bin with rows: the time that it begins with, its rows, the root mean square distance per coordinate (Å).
    pub fn bins(&self) -> impl Iterator<Item = (f64, u64, f64)> + '_ {
        let of = |b: usize| (TIME_BINS[b], self.counts[b], (self.squares[b] / self.counts[b] as f64).sqrt());
        (0..BINS).filter(|&b| self.counts[b] > 0).map(of)
    }
}

/// Counters of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Steps, those that moved nothing among them.
    pub step: u64,
    /// Steps in which a loss or gradient was not finite.
    pub skipped: u64,
    /// Best validation loss.
    pub best: Option<f64>,
    /// Since the last report.
    pub interval: Sums,
    /// Sum of gradient norms since then.
    pub gradient_norm: f64,
}

/// Rows to look at: those of a training step, or so many of the held-out conformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    Training { step: u64 },
    Validation { rows: usize },
}

impl Rows {
    fn count(self, plan: &Plan) -> usize {
        match self {
            Rows::Training { .. } => plan.batch,
            Rows::Validation { rows } => rows,
        }
    }

    /// Counts their noise.
    fn step(self) -> u64 {
        match self {
            Rows::Training { step } => step,
            Rows::Validation { .. } => VALIDATION_STEP,
        }
    }

    /// The conformer of row `i`.
    fn conformer<'a>(self, plan: &Plan, data: &'a Conformers, i: usize) -> (&'a GraphContext, &'a [f32]) {
        data.conformer(match self {
            Rows::Training { step } => {
                let (place, count) = (step as usize * plan.batch + i, data.training.len());
                data.training[Permutation::new(Noise::new(plan.seed), (place / count) as u64, count).at(place % count)]
            }
            Rows::Validation { rows } => data.validation[i * data.validation.len() / rows.max(1)],
        })
    }

    /// Fills `row` with row `i`; its graph.
    fn fill<'a>(self, plan: &Plan, data: &'a Conformers, i: usize, row: &mut Row) -> &'a GraphContext {
        let (context, positions) = self.conformer(plan, data, i);
        row.fill((&plan.times, &plan.path), context, positions, (Noise::new(plan.seed), i as u32, self.step()));
        context
    }
}

impl Row {
    /// Derivative of the loss of a batch, of which a row is the share `scale`, to an error.
    fn factor(&self, plan: &Plan, scale: f64) -> f64 {
        2.0 * plan.times.weight(self.time) / self.x.len() as f64 * scale
    }
}

/// Who holds the parameters and computes: the threads of this process, or a device.
trait Machine<T>: Send {
    /// Losses with the averaged parameters.
    fn losses(&mut self, plan: &Plan, data: &Conformers, rows: Rows) -> Result<Sums>;
    /// Losses with the present parameters, whose gradient is kept, and its norm.
    fn gradient(&mut self, plan: &Plan, data: &Conformers, rows: Rows) -> Result<(Sums, f64)>;
    /// Follows the gradient, in step `step` of those that move anything, counted from 1.
    fn follow(&mut self, plan: &Plan, step: u64, rate: f64, norm: f64) -> Result<()>;
    /// Padded numbers `[layout.len]`.
    fn read(&self, what: Kept) -> Result<Vec<T>>;
    /// Overwrites them.
    fn write(&mut self, what: Kept, values: &[T]) -> Result<()>;
}

/// Trains a network. On this machine, work is shared out over the threads of the pool that it is called from.
pub struct Trainer<T: SimdReal> {
    plan: Plan,
    data: Arc<Conformers>,
    layout: Arc<Layout>,
    counters: Counters,
    machine: Box<dyn Machine<T>>,
}

impl<T: SimdReal + Root> Trainer<T> {
    /// A trainer at step 0, with parameters drawn by the plan's seed.
    ///
    /// # Errors
    /// Where plan or data make no sense.
    pub fn new(plan: Plan, data: Arc<Conformers>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let machine = Box::new(Host::new(&plan, layout.clone()));
        Self::with(plan, data, layout, machine)
    }

    /// The same on a device: rows are made here, all else happens there. Parameters are those of [`Trainer::new`] but for
    /// rounding.
    ///
    /// # Errors
    /// Where plan or data make no sense, there are no kernels for the network, or the device fails.
    pub fn on(device: &Device, plan: Plan, data: Arc<Conformers>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let machine = Box::new(OnDevice::new(device, &plan, &data, layout.clone())?);
        Self::with(plan, data, layout, machine)
    }

    fn with(plan: Plan, data: Arc<Conformers>, layout: Arc<Layout>, mut machine: Box<dyn Machine<T>>) -> Result<Self> {
        let values: Vec<T> = layout.initialise(Noise::new(plan.seed)).into_iter().map(T::from_f64).collect();
        machine.write(Kept::Values, &values)?;
        machine.write(Kept::Average, &values)?;
        Ok(Trainer { plan, data, layout, counters: Counters::default(), machine })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Counters of the present state.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether all steps are done.
    pub fn is_done(&self) -> bool {
        self.counters.step >= self.plan.rate.steps
    }

    /// Begins with these parameters, in the order of files, in place of random ones.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn start_from(&mut self, values: &[f64]) -> Result<()> {
        let values: Vec<T> = self.layout.pad(values);
        self.machine.write(Kept::Values, &values)?;
        self.machine.write(Kept::Average, &values)
    }

    /// Averaged parameters in the order of files.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn averaged(&self) -> Result<Vec<f64>> {
        let average = self.machine.read(Kept::Average)?;
        Ok(self.layout.map.iter().map(|&p| average[p].to_f64()).collect())
    }

    /// Learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.plan.rate.rate(self.counters.step)
    }

    /// One step. Returns false where a loss or gradient was not finite, and nothing moved.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn step(&mut self) -> Result<bool> {
        let rate = self.rate();
        let (sums, norm) = self.machine.gradient(&self.plan, &self.data, Rows::Training { step: self.counters.step })?;
        self.counters.step += 1;
        if !(sums.loss.is_finite() && norm.is_finite()) {
            self.counters.skipped += 1;
            return Ok(false);
        }
        self.machine.follow(&self.plan, self.counters.step - self.counters.skipped, rate, norm)?;
        self.counters.interval.add(&sums);
        self.counters.gradient_norm += norm;
        Ok(true)
    }

    /// Losses of the averaged weights on at most `most` validation conformers, always with the same noise; the best is remembered.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn validate(&mut self, most: usize) -> Result<Sums> {
        let rows = Rows::Validation { rows: self.data.validation.len().min(most) };
        let sums = self.machine.losses(&self.plan, &self.data, rows)?;
        let loss = sums.mean();
        self.counters.best = Some(self.counters.best.map_or(loss, |b| b.min(loss)));
        Ok(sums)
    }

    /// Sums and mean gradient norm since the last call, which begin anew.
    pub fn take_interval(&mut self, steps: u64) -> (Sums, f64) {
        let norm = std::mem::take(&mut self.counters.gradient_norm);
        (std::mem::take(&mut self.counters.interval), norm / steps.max(1) as f64)
    }

    /// Everything that a run goes on from, here or on a device; `header` is the caller's, JSON.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn save(&self, header: serde_json::Value) -> Result<StateFile> {
        let header = serde_json::json!({ "now": self.counters, "run": header });
        let mut named = Vec::new();
        for (name, what) in Kept::ALL {
            named.push((name, self.machine.read(what)?));
        }
        let named: Vec<(&str, &[T])> = named.iter().map(|(name, values)| (*name, &values[..])).collect();
        Ok(StateFile::of::<T>(&header, &named))
    }

    /// Goes on from what [`Trainer::save`] returned. `file` is for messages.
    ///
    /// # Errors
    /// Where the state is of another network, or the device fails.
    pub fn restore(&mut self, mut saved: StateFile, file: &std::path::Path) -> Result<()> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut header: serde_json::Value = serde_json::from_str(&saved.header).map_err(|e| refuse(e.to_string()))?;
        self.counters = serde_json::from_value(header["now"].take()).map_err(|e| refuse(e.to_string()))?;
        let mut values = vec![T::default(); self.layout.len];
        for (name, what) in Kept::ALL {
            saved.take_into(file, name, &mut values)?;
            self.machine.write(what, &values)?;
        }
        Ok(())
    }
}

/// What would make a trainer panic or wait for ever.
fn check(plan: &Plan, data: &Conformers) -> Result<()> {
    let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("training", name, value, remedy));
    plan.config.check()?;
    plan.path.check()?;
    if plan.batch == 0 || plan.batch > 1 << 20 {
        return refuse("batch", &plan.batch, "give 1 to 1048576 conformers");
    }
    if !plan.times.is_valid() {
        return refuse("times", &format!("{:?}", plan.times), "parts lie in 0 to 1, the weight's bound below 1");
    }
    if plan.times.at_data > 0.0 && plan.path.noise == 0.0 {
        return refuse("at-data", &plan.times.at_data, "without noise there is nothing to learn at t = 1; give a noise above zero");
    }
    if plan.clip.is_some_and(|c| !c.is_valid()) {
        return refuse("clip", &"not above zero", "give a bound above zero");
    }
    if !(0.0..1.0).contains(&plan.ema.decay) {
        return refuse("ema", &plan.ema.decay, "give a memory from 0 (none) to below 1");
    }
    let conformers = data.conformers.len();
    if data.training.is_empty() || data.training.iter().chain(&data.validation).any(|&i| i as usize >= conformers) {
        return refuse("conformers", &conformers, "there is nothing to train on");
    }
    for (k, &(context, start)) in data.conformers.iter().enumerate() {
        let atoms = data.contexts.get(context as usize).map_or(0, GraphContext::len);
        let place = data.positions.get(start..start + 3 * atoms);
        if atoms == 0 || !place.is_some_and(|x| x.iter().all(|x| x.is_finite())) {
            return refuse("conformer", &k, "every one needs a molecule, and every atom a place");
        }
    }
    if let Some(context) = data.contexts.iter().find(|c| c.width != plan.config.vocabulary.width()) {
        return refuse("vocabulary", &context.width, "the molecules' features are of another vocabulary than the network");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::batched::SOURCE;
    use super::super::config::Variant;
    use super::super::context::centre;
    use super::super::golden::{Golden, MOLECULES, context, small};
    use super::super::network::{Parameters, Work};
    use super::*;
    use crate::molecule::Vocabulary;
    use crate::testing;
    use scorefield_integrators::Purpose;
    use scorefield_integrators::device::Order;

    fn data(vocabulary: Vocabulary) -> Arc<Conformers> {
        let mut data = Conformers::default();
        for (k, smiles) in ["CCO", "C", "O", "CC(=O)N"].into_iter().enumerate() {
            let context = context(smiles, vocabulary);
            let n = context.len();
            data.contexts.push(context);
            for copy in 0..3 {
                let x = (0..n).flat_map(|i| Noise::new(k as u64).normals(i as u32, copy / 2, 0, Purpose::Displacement)).map(|x| x as f32);
                let number = data.push(k as u32, x.collect::<Vec<_>>().into_iter());
                if copy == 2 { data.validation.push(number) } else { data.training.push(number) }
            }
        }
        Arc::new(data)
    }

    fn plan() -> Plan {
        Plan {
            config: DitmcConfig { vocabulary: Vocabulary::Qm9, blocks: 1, heads: 2, head_width: 16, ..small() },
            path: Path::default(),
            times: TimeSettings { at_data: 0.2, ..TimeSettings::default() },
            batch: 5,
            rate: CosineSchedule { peak: 3e-3, floor: 0.0, warmup: 2, steps: 300 },
            adam: AdamW::default(),
            clip: Some(Clip::Norm(10.0)),
            ema: Ema { decay: 0.9 },
            seed: 1,
        }
    }

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn neither_threads_nor_interruptions_change_a_bit() {
        let data = data(Vocabulary::Qm9);
        let straight = pool(1).install(|| {
            let mut t = Trainer::<f32>::new(plan(), data.clone()).unwrap();
            (0..6).for_each(|_| assert!(t.step().unwrap()));
            (t.averaged().unwrap(), t.validate(3).unwrap())
        });
        let resumed = pool(3).install(|| {
            let mut t = Trainer::<f32>::new(plan(), data.clone()).unwrap();
            (0..3).for_each(|_| assert!(t.step().unwrap()));
            let saved = t.save(serde_json::json!(null)).unwrap();
            let mut t = Trainer::<f32>::new(plan(), data.clone()).unwrap();
            t.restore(saved, std::path::Path::new("state")).unwrap();
            (0..3).for_each(|_| assert!(t.step().unwrap()));
            (t.averaged().unwrap(), t.validate(3).unwrap())
        });
        assert_eq!(straight.0, resumed.0);
        assert_eq!(straight.1.loss, resumed.1.loss);
    }

    fn plan_with_options() -> Plan {
        let plan = plan();
        let times = TimeSettings { without_graph: 0.4, ..plan.times };
        Plan { config: DitmcConfig { self_conditioning: true, guidance: true, ..plan.config }, times, ..plan }
    }

    /// The gradient of a batch is that of the loss with first predictions held fixed. With none of them and all graphs known it is, in
    /// every bit, that of the network without options.
    #[test]
    fn options_see_what_they_are_to_see() {
        let data = data(Vocabulary::Qm9);
        let step = |plan: Plan| {
            let mut t = pool(1).install(|| Trainer::<f64>::new(plan, data.clone()).unwrap());
            // Blocks begin as identities, and what only they read has no gradient before they are something else.
            pool(1).install(|| (0..4).for_each(|_| assert!(t.step().unwrap())));
            (t.machine.read(Kept::First).unwrap(), t.layout.clone())
        };
        let (plain, layout) = step(plan());
        let off = TimeSettings { without_graph: 0.0, self_conditioned: 0.0, ..plan().times };
        let (unused, _) = step(Plan { times: off, ..plan_with_options() });
        assert_eq!(plain, unused[..plain.len()]);
        assert!(unused[plain.len()..].iter().all(|&g| g == 0.0));
        let (used, with) = step(plan_with_options());
        assert!(layout.map.iter().any(|&k| used[k] != plain[k]));
        for entry in ["self_conditioning.MLP_0.Dense_1.kernel", "unknown_graph.atom", "unknown_graph.pair"] {
            let mut start = 0;
            let place = with.entries.iter().find_map(|e| {
                let range = start..start + e.shape.iter().product::<usize>();
                start = range.end;
                (e.name == entry).then_some(range)
            });
            assert!(with.map[place.unwrap()].iter().any(|&k| used[k] != 0.0), "{entry}");
        }
    }

    #[test]
    fn networks_with_options_learn() {
        let (one, three) = (pool(1), pool(3));
        let mut t = one.install(|| Trainer::<f32>::new(Plan { batch: 16, ..plan_with_options() }, data(Vocabulary::Qm9)).unwrap());
        let mut other = three.install(|| Trainer::<f32>::new(Plan { batch: 16, ..plan_with_options() }, data(Vocabulary::Qm9)).unwrap());
        let before = one.install(|| t.validate(8).unwrap().mean());
        for _ in 0..4 {
            one.install(|| assert!(t.step().unwrap()));
            three.install(|| assert!(other.step().unwrap()));
        }
        assert_eq!(t.averaged().unwrap(), other.averaged().unwrap());
        while !t.is_done() {
            one.install(|| assert!(t.step().unwrap()));
        }
        let after = one.install(|| t.validate(8).unwrap().mean());
        assert!(after < 0.5 * before, "{before} {after}");
    }

    #[test]
    fn losses_fall() {
        let mut t = Trainer::<f32>::new(Plan { batch: 16, ..plan() }, data(Vocabulary::Qm9)).unwrap();
        let before = t.validate(8).unwrap().mean();
        while !t.is_done() {
            assert!(t.step().unwrap());
        }
        let after = t.validate(8).unwrap();
        assert!(after.mean() < 0.5 * before, "{before} {}", after.mean());
        assert!(after.bins().count() >= 2 && t.counters().best == Some(after.mean().min(before)));
    }

    fn furthest<T: SimdReal>(a: &[T], b: &[T]) -> f64 {
        let size = a.iter().fold(0.0, |m: f64, x| m.max(x.to_f64().abs()));
        a.iter().zip(b).map(|(a, b)| (a.to_f64() - b.to_f64()).abs()).fold(0.0, f64::max) / size
    }

    /// Steps here and on a device: the mean of gradients, parameters, losses before and after.
    fn on_both<T: SimdReal + Root>(device: &Device, plan: &Plan) -> [(Vec<T>, Vec<f64>, f64, f64); 2] {
        [None, Some(device)].map(|device| {
            let data = data(Vocabulary::Qm9);
            let mut t = match device {
                None => Trainer::<T>::new(plan.clone(), data),
                Some(device) => Trainer::on(device, plan.clone(), data),
            }
            .unwrap();
            // Blocks begin as identities.
            (0..2).for_each(|_| assert!(t.step().unwrap()));
            let loss = t.take_interval(2).0.mean();
            (t.machine.read(Kept::First).unwrap(), t.averaged().unwrap(), loss, t.validate(4).unwrap().mean())
        })
    }

    #[test]
    fn training_on_a_device_is_that_of_this_machine() {
        for (variant, blocks, degree) in
            [(Variant::Ape, 2, 1), (Variant::Rpe, 1, 1), (Variant::Pe3, 2, 1), (Variant::Pe3, 3, 2), (Variant::Pe3, 2, 0)]
        {
            let config = DitmcConfig { variant, blocks, degree, conditioner_layers: 2, ..plan().config };
            // Enough rows for sums in parts.
            let plan = Plan { config, batch: if variant == Variant::Ape { 40 } else { 5 }, ..plan() };
            // One order of the emulator's threads; the test below has the others.
            for device in testing::devices().into_iter().skip(2) {
                let [here, there] = on_both::<f64>(&device, &plan);
                let errors = (furthest(&here.0, &there.0), furthest(&here.1, &there.1), there.2 / here.2 - 1.0, there.3 / here.3 - 1.0);
                println!("{variant:?}: gradient {:.1e}, parameters {:.1e}, losses {:.1e} {:.1e}", errors.0, errors.1, errors.2, errors.3);
                // Adam divides by what may be rounding.
                assert!(errors.0 < 1e-10 && errors.1 < 1e-7 && errors.2.abs() < 1e-8 && errors.3.abs() < 1e-7);
                let [here, there] = on_both::<f32>(&device, &plan);
                let loss = there.2 / here.2 - 1.0;
                println!("f32: gradient {:.1e}, loss {loss:.1e}", furthest(&here.0, &there.0));
                assert!(loss.abs() < 1e-4);
            }
        }
    }

    #[test]
    fn training_on_a_device_has_the_same_bits_in_any_order_and_after_interruptions() {
        for variant in [Variant::Ape, Variant::Pe3] {
            let plan = Plan { config: DitmcConfig { variant, ..plan().config }, batch: 3, ..plan() };
            let run = |order: Order, stop: u64| {
                let new = || Trainer::<f32>::on(&Device::emulated(order), plan.clone(), data(Vocabulary::Qm9)).unwrap();
                let mut t = new();
                for step in 0..3 {
                    if step == stop {
                        let saved = t.save(serde_json::json!(null)).unwrap();
                        t = new();
                        t.restore(saved, std::path::Path::new("state")).unwrap();
                    }
                    assert!(t.step().unwrap());
                }
                t.averaged().unwrap()
            };
            let plain = run(Order::Forwards, 9);
            assert!(plain == run(Order::Backwards, 1) && plain == run(Order::Shuffled, 9), "{variant:?}");
        }
    }

    #[test]
    fn kernels_of_training_compile() {
        testing::check_kernels("training of DiTMC", |nvrtc, dtype, target| nvrtc.check_kernels(SOURCE, dtype, target));
    }

    #[test]
    fn what_has_no_kernels_is_refused() {
        let config = plan().config;
        for config in [DitmcConfig { self_conditioning: true, ..config.clone() }, DitmcConfig { guidance: true, ..config }] {
            let plan = Plan { config, ..plan() };
            let refused = Trainer::<f32>::on(&Device::emulated(Order::Forwards), plan, data(Vocabulary::Qm9)).map(|_| ()).unwrap_err();
            assert!(refused.to_string().contains("train it on the cpu"), "{refused}");
        }
    }

    /// The authors' loss of two molecules, through the code that training runs.
    #[test]
    fn batches_have_the_authors_loss() {
        let Some(golden) = Golden::open("ditmc_ape_small.safetensors") else { return };
        let config = small();
        let layout = Arc::new(Layout::new(&config));
        let mut parameters = Parameters::<f64>::new(&config, layout.clone(), true);
        parameters.load(&golden.parameters(&layout));
        let mut sum = 0.0;
        for (name, smiles) in MOLECULES {
            let of = |what: &str| golden.double(&format!("loss.{name}.{what}"));
            let context = context(smiles, Vocabulary::Drugs);
            let (time, mut clean) = (of("tau")[0], of("x1"));
            centre(&mut clean);
            let mut work = Work::new(&parameters, false);
            work.set_graphs(&parameters, std::iter::once(&context));
            work.set_times(&parameters, std::iter::once(time));
            work.add(&parameters, 0, &of("default.x_t"));
            work.forward(&parameters);
            let mut out: Vec<f64> = (0..context.len()).flat_map(|i| work.drift(i)).collect();
            centre(&mut out);
            let square = out.iter().zip(&clean).map(|(o, c)| (o - c).powi(2)).sum::<f64>() / out.len() as f64;
            let loss = TimeSettings::default().weight(time) * square;
            assert!((loss / of("default.loss")[0] - 1.0).abs() < 1e-9);
            assert!((square / of("unweighted.loss")[0] - 1.0).abs() < 1e-9);
            sum += 0.5 * loss;
        }
        assert!((sum / golden.double("loss.batch.default.loss")[0] - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn nonsense_is_refused() {
        let good = data(Vocabulary::Qm9);
        let refused = |plan: Plan, data: Arc<Conformers>| Trainer::<f32>::new(plan, data).is_err();
        assert!(refused(Plan { batch: 0, ..plan() }, good.clone()));
        assert!(refused(Plan { path: Path { noise: 0.0, ..Path::default() }, ..plan() }, good.clone()));
        assert!(refused(Plan { ema: Ema { decay: 1.0 }, ..plan() }, good.clone()));
        assert!(refused(plan(), data(Vocabulary::Drugs)));
        assert!(refused(plan(), Arc::new(Conformers { training: vec![99], ..(*good).clone() })));
        assert!(refused(plan(), Arc::new(Conformers { positions: Vec::new(), ..(*good).clone() })));
    }
}
