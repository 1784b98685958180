//! Training on conformers.
//!
//! A row is a conformer x₁ at a time t of its path from noise; the network learns x₁ under the weight 1/(1 − min(t, 0.9))². Everything
//! random is counted (seed, step, row) and gradients are summed over fixed groups of rows in a fixed order: parameters do not depend, in
//! any bit, on the number of threads or on where a run was stopped and resumed.

use super::config::DitmcConfig;
use super::context::{GraphContext, centre};
use super::layout::Layout;
use super::network::{Parameters, Work};
use super::process::Path;
use super::rows::{Row, TimeSettings};
use crate::error::{Error, Result};
use crate::train::adamw::Root;
use crate::train::{AdamW, CHUNK, Clip, CosineSchedule, Ema, Moments, Move, Moved, Permutation, StateFile, sum_gradients};
use rayon::prelude::*;
use scorefield_integrators::Noise;
use scorefield_integrators::simd::SimdReal;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Groups of rows with a gradient of their own: a multiple of most numbers of threads.
const GROUPS: usize = 12;
/// Atoms that are worked on together: enough rows for products, few enough for the caches.
const ATOMS_PER_BLOCK: usize = 96;
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

struct Group<T> {
    gradient: Vec<T>,
    sums: Sums,
    rows: Vec<Row>,
    seed: Vec<T>,
    out: Vec<f64>,
    /// First predictions of rows that see one.
    previous: Vec<f64>,
}

/// Trains a network. Work is shared out over the threads of the pool that it is called from.
pub struct Trainer<T: SimdReal> {
    plan: Plan,
    data: Arc<Conformers>,
    counters: Counters,
    values: Vec<T>,
    average: Vec<T>,
    moments: Moments<T>,
    parameters: Parameters<T>,
    work: Vec<Mutex<Work<T>>>,
    groups: Vec<Group<T>>,
    gradient: Vec<T>,
    squares: Vec<f64>,
}

impl<T: SimdReal + Root> Trainer<T> {
    /// A trainer at step 0, with parameters drawn by the plan's seed.
    ///
    /// # Errors
    /// Where plan or data make no sense.
    pub fn new(plan: Plan, data: Arc<Conformers>) -> Result<Self> {
        check(&plan, &data)?;
        let layout = Arc::new(Layout::new(&plan.config));
        let values: Vec<T> = layout.initialise(Noise::new(plan.seed)).into_iter().map(T::from_f64).collect();
        let n = values.len();
        let parameters = Parameters::new(&plan.config, layout, true);
        let group = || Group {
            gradient: vec![T::default(); n],
            sums: Sums::default(),
            rows: Vec::new(),
            seed: Vec::new(),
            out: Vec::new(),
            previous: Vec::new(),
        };
        Ok(Trainer {
            data,
            counters: Counters::default(),
            average: values.clone(),
            moments: Moments::zeros(n),
            work: (0..rayon::current_num_threads()).map(|_| Mutex::new(Work::new(&parameters, true))).collect(),
            parameters,
            groups: (0..GROUPS.min(plan.batch)).map(|_| group()).collect(),
            gradient: vec![T::default(); n],
            squares: vec![0.0; n.div_ceil(CHUNK)],
            values,
            plan,
        })
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
    pub fn start_from(&mut self, values: &[f64]) {
        for (&p, &v) in self.parameters.layout().map.iter().zip(values) {
            self.values[p] = T::from_f64(v);
        }
        self.average.clone_from(&self.values);
    }

    /// Averaged parameters in the order of files.
    pub fn averaged(&self) -> Vec<f64> {
        self.parameters.layout().map.iter().map(|&p| self.average[p].to_f64()).collect()
    }

    /// Learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.plan.rate.rate(self.counters.step)
    }

    /// One step. Returns false where a loss or gradient was not finite, and nothing moved.
    pub fn step(&mut self) -> bool {
        self.parameters.load(&self.values);
        let (step, batch) = (self.counters.step, self.plan.batch);
        let count = self.data.training.len();
        let noise = Noise::new(self.plan.seed);
        let conformer = |i: usize| {
            let place = step as usize * batch + i;
            self.data.training[Permutation::new(noise, (place / count) as u64, count).at(place % count)]
        };
        let rate = self.rate();
        let sums = evaluate(&self.plan, &self.data, &self.parameters, &self.work, &mut self.groups, (batch, step, true), conformer);
        let norm = self.sum_gradients();
        self.counters.step += 1;
        if !(sums.loss.is_finite() && norm.is_finite()) {
            self.counters.skipped += 1;
            return false;
        }
        self.update(rate, norm);
        self.counters.interval.add(&sums);
        self.counters.gradient_norm += norm;
        true
    }

    /// Losses of the averaged weights on at most `most` validation conformers, always with the same noise; the best is remembered.
    pub fn validate(&mut self, most: usize) -> Sums {
        self.parameters.load(&self.average);
        let rows = self.data.validation.len().min(most);
        let all = &self.data.validation;
        let conformer = |i: usize| all[i * all.len() / rows.max(1)];
        let sums =
            evaluate(&self.plan, &self.data, &self.parameters, &self.work, &mut self.groups, (rows, VALIDATION_STEP, false), conformer);
        let loss = sums.mean();
        self.counters.best = Some(self.counters.best.map_or(loss, |b| b.min(loss)));
        sums
    }

    /// Sums and mean gradient norm since the last call, which begin anew.
    pub fn take_interval(&mut self, steps: u64) -> (Sums, f64) {
        let norm = std::mem::take(&mut self.counters.gradient_norm);
        (std::mem::take(&mut self.counters.interval), norm / steps.max(1) as f64)
    }

    /// Sums the groups' gradients in their order and returns the norm.
    fn sum_gradients(&mut self) -> f64 {
        let groups = &self.groups;
        sum_gradients(groups.len(), |g| &groups[g].gradient, &mut self.gradient, &mut self.squares)
    }

    /// Moves parameters, and their average after them.
    fn update(&mut self, rate: f64, norm: f64) {
        let moved = self.counters.step - self.counters.skipped;
        let Moments { first, second } = &mut self.moments;
        let (values, gradient, average) = (&mut self.values[..], &mut self.gradient[..], &mut self.average[..]);
        let to = Moved { values, gradient, first, second, average };
        Move::new(self.plan.clip, self.plan.ema, moved, norm).apply(self.plan.adam.factors(moved, rate), to);
    }

    /// Everything that a run goes on from; `header` is the caller's, JSON.
    pub fn save(&self, header: serde_json::Value) -> StateFile {
        let header = serde_json::json!({ "now": self.counters, "run": header });
        let Moments { first, second } = &self.moments;
        StateFile::of::<T>(&header, &[("parameters", &self.values), ("average", &self.average), ("first", first), ("second", second)])
    }

    /// Goes on from what [`Trainer::save`] returned. `file` is for messages.
    ///
    /// # Errors
    /// Where the state is of another network.
    pub fn restore(&mut self, mut saved: StateFile, file: &std::path::Path) -> Result<()> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut header: serde_json::Value = serde_json::from_str(&saved.header).map_err(|e| refuse(e.to_string()))?;
        self.counters = serde_json::from_value(header["now"].take()).map_err(|e| refuse(e.to_string()))?;
        for (name, to) in [
            ("parameters", &mut self.values),
            ("average", &mut self.average),
            ("first", &mut self.moments.first),
            ("second", &mut self.moments.second),
        ] {
            saved.take_into(file, name, to)?;
        }
        Ok(())
    }
}

/// Losses of `rows` rows with the noise of `step`, and with `back` their gradient in the groups.
fn evaluate<T: SimdReal>(
    plan: &Plan,
    data: &Conformers,
    parameters: &Parameters<T>,
    work: &[Mutex<Work<T>>],
    groups: &mut [Group<T>],
    (rows, step, back): (usize, u64, bool),
    conformer: impl Fn(usize) -> u32 + Sync,
) -> Sums {
    let count = groups.len();
    groups.par_iter_mut().enumerate().for_each(|(g, group)| {
        group.sums = Sums::default();
        if back {
            group.gradient.fill(T::default());
        }
        let work = &work[rayon::current_thread_index().unwrap_or(0) % work.len()];
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        let all = g * rows / count..(g + 1) * rows / count;
        let mut first = all.start;
        while first < all.end {
            let (mut end, mut atoms) = (first, 0);
            while end < all.end && (atoms == 0 || atoms + data.conformer(conformer(end)).0.len() <= ATOMS_PER_BLOCK) {
                atoms += data.conformer(conformer(end)).0.len();
                end += 1;
            }
            let block = Block { plan, data, parameters, scale: 1.0 / rows as f64, step, back };
            block.run(first..end, &conformer, &mut work, group);
            first = end;
        }
    });
    let mut sums = Sums::default();
    groups.iter().for_each(|g| sums.add(&g.sums));
    sums
}

/// Conformers that are worked on together.
struct Block<'a, T> {
    plan: &'a Plan,
    data: &'a Conformers,
    parameters: &'a Parameters<T>,
    /// One over the number of rows of the batch.
    scale: f64,
    step: u64,
    back: bool,
}

impl<T: SimdReal> Block<'_, T> {
    fn run(&self, rows: std::ops::Range<usize>, conformer: &impl Fn(usize) -> u32, work: &mut Work<T>, group: &mut Group<T>) {
        let Plan { path, times, seed, config, .. } = self.plan;
        let Group { gradient, sums, rows: all, seed: seeds, out, previous } = group;
        if all.len() < rows.len() {
            all.resize_with(rows.len(), Row::default);
        }
        let all = &mut all[..rows.len()];
        for (row, i) in all.iter_mut().zip(rows.clone()) {
            let (context, positions) = self.data.conformer(conformer(i));
            row.fill((times, path), context, positions, (Noise::new(*seed), i as u32, self.step));
        }
        work.set_graphs(self.parameters, rows.clone().map(|i| self.data.conformer(conformer(i)).0));
        // Validation is of the network that knows the graph.
        if config.guidance && self.back {
            (0..all.len()).filter(|&k| all[k].without_graph).for_each(|k| work.forget(self.parameters, k));
        }
        work.set_times(self.parameters, all.iter().map(|r| r.time));
        if config.self_conditioning {
            self.first_predictions(all, work, previous);
        }
        let mut seen = 0;
        for (k, row) in all.iter().enumerate() {
            work.add(self.parameters, k, &row.x);
            if config.self_conditioning && row.self_conditioned {
                work.recall(self.parameters, &previous[seen..seen + row.x.len()]);
                seen += row.x.len();
            }
        }
        work.forward(self.parameters);
        seeds.clear();
        let mut first = 0;
        for row in &*all {
            let n = row.x.len() / 3;
            out.clear();
            out.extend((first..first + n).flat_map(|i| work.drift(i).map(|x| x.to_f64())));
            first += n;
            centre(out);
            let weight = times.weight(row.time);
            let factor = 2.0 * weight / (3 * n) as f64 * self.scale;
            let mut square = 0.0;
            for (o, &clean) in out.iter_mut().zip(&row.clean) {
                let error = *o - clean;
                square += error * error;
                *o = factor * error;
            }
            // What is centred has a centred gradient.
            centre(out);
            seeds.extend(out.iter().map(|&g| T::from_f64(g)));
            square /= (3 * n) as f64;
            let bin = TIME_BINS[1..].iter().filter(|&&b| row.time >= b).count();
            sums.rows += 1;
            sums.loss += weight * square;
            sums.squares[bin] += square;
            sums.counts[bin] += 1;
        }
        if self.back {
            work.backward(self.parameters, seeds, gradient);
        }
    }

    /// What the network predicts of rows that see a prediction of its own, one after the other. Nothing is differentiated through it.
    fn first_predictions(&self, rows: &[Row], work: &mut Work<T>, previous: &mut Vec<f64>) {
        previous.clear();
        let chosen = || rows.iter().enumerate().filter(|(_, row)| row.self_conditioned);
        chosen().for_each(|(k, row)| work.add(self.parameters, k, &row.x));
        let atoms: usize = chosen().map(|(_, row)| row.x.len() / 3).sum();
        if atoms == 0 {
            return;
        }
        work.forward(self.parameters);
        previous.extend((0..atoms).flat_map(|i| work.drift(i).map(|x| x.to_f64())));
        work.clear_structures();
        let mut rest = &mut previous[..];
        for (_, row) in chosen() {
            let (one, others) = rest.split_at_mut(row.x.len());
            centre(one);
            rest = others;
        }
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
    use super::super::golden::{Golden, MOLECULES, context, small};
    use super::*;
    use crate::molecule::Vocabulary;
    use scorefield_integrators::Purpose;

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
            (0..6).for_each(|_| assert!(t.step()));
            (t.averaged(), t.validate(3))
        });
        let resumed = pool(3).install(|| {
            let mut t = Trainer::<f32>::new(plan(), data.clone()).unwrap();
            (0..3).for_each(|_| assert!(t.step()));
            let saved = t.save(serde_json::json!(null));
            let mut t = Trainer::<f32>::new(plan(), data.clone()).unwrap();
            t.restore(saved, std::path::Path::new("state")).unwrap();
            (0..3).for_each(|_| assert!(t.step()));
            (t.averaged(), t.validate(3))
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
            pool(1).install(|| (0..4).for_each(|_| assert!(t.step())));
            let layout = t.parameters.layout().clone();
            (t.gradient.clone(), layout)
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
        let before = one.install(|| t.validate(8).mean());
        for _ in 0..4 {
            one.install(|| assert!(t.step()));
            three.install(|| assert!(other.step()));
        }
        assert_eq!(t.averaged(), other.averaged());
        while !t.is_done() {
            one.install(|| assert!(t.step()));
        }
        let after = one.install(|| t.validate(8).mean());
        assert!(after < 0.5 * before, "{before} {after}");
    }

    #[test]
    fn losses_fall() {
        let mut t = Trainer::<f32>::new(Plan { batch: 16, ..plan() }, data(Vocabulary::Qm9)).unwrap();
        let before = t.validate(8).mean();
        while !t.is_done() {
            assert!(t.step());
        }
        let after = t.validate(8);
        assert!(after.mean() < 0.5 * before, "{before} {}", after.mean());
        assert!(after.bins().count() >= 2 && t.counters().best == Some(after.mean().min(before)));
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
