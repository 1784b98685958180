//! Many molecules through few batches: every thread holds a batch, hands finished molecules out and takes new ones in.

use super::superpose::{plain_rmsd, superposed_rmsd};
use super::walk::{Walk, not_finite};
use super::{RelaxSpec, Settings};
use crate::array::DType;
use crate::batch::Batch;
use crate::error::{Error, Result, invalid};
use crate::force::{ForceProvider, Input, Output, Want};
use crate::propagator::Progress;
use crate::state::{Cell, Clock, State};
use crate::system::System;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two calls of the progress callback from one thread.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// One molecule to relax.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it is.
    pub system: Arc<System>,
    /// Where its atoms start, `[N, 3]` in nm.
    pub positions: Vec<f64>,
    /// Its periodic cell, which stays as it is.
    pub cell: Option<Cell>,
}

impl From<(Arc<System>, Vec<f64>)> for Job {
    fn from((system, positions): (Arc<System>, Vec<f64>)) -> Self {
        Job { system, positions, cell: None }
    }
}

/// In which order results are handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As molecules finish.
    Completion,
    /// As they came in; results wait in memory for those before them.
    #[default]
    Input,
}

/// How [`relax_all`] works through its queue. None of this changes a result.
#[derive(Clone, Copy)]
pub struct RelaxOptions<'a> {
    /// Precision of positions and forces; the minimiser itself works in double precision.
    pub dtype: DType,
    /// A molecule that is still running after this many steps is handed out as it is.
    pub max_steps: u64,
    /// Most atoms in one batch; a larger molecule gets a batch of its own.
    pub batch_atoms: usize,
    /// Number of batches at work at a time; by default one per thread of the present rayon pool.
    pub threads: Option<usize>,
    /// Order of the results.
    pub order: Order,
    /// Set to `true` to end early: molecules at work are handed out as they are, the rest of the queue stays untouched.
    pub stop: Option<&'a AtomicBool>,
    /// Called up to ten times per second and thread, and once at the end.
    pub progress: Option<&'a (dyn Fn(&Tally) + Sync)>,
}

impl Default for RelaxOptions<'_> {
    fn default() -> Self {
        RelaxOptions {
            dtype: DType::F64,
            max_steps: 10_000,
            batch_atoms: 1024,
            threads: None,
            order: Order::default(),
            stop: None,
            progress: None,
        }
    }
}

/// One molecule's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Relaxed {
    /// Its place in the queue, from 0.
    pub index: usize,
    /// Final positions `[N, 3]` in nm; coordinates that do not move are exactly those of the start.
    pub positions: Vec<f64>,
    /// Energy there in kJ/mol, where the provider has energies.
    pub energy: Option<f64>,
    /// Largest force there on an atom that moves, kJ/mol/nm.
    pub fmax: f64,
    /// Steps done; the forces were evaluated once more than that.
    pub steps: u64,
    /// `Converged`, `Stalled`, or `Running` where `max_steps` or an interruption came first.
    pub progress: Progress,
    /// Root-mean-square distance from the start in nm over all atoms, after optimal superposition; without superposition
    /// in a periodic cell or where axes are inactive, since space has directions there.
    pub rmsd: f64,
}

/// How far a run has come, and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Molecules taken from the queue.
    pub taken: usize,
    /// Of these, converged.
    pub converged: usize,
    /// Stalled.
    pub stalled: usize,
    /// Handed out while still running.
    pub unfinished: usize,
    /// Handed out as errors.
    pub failed: usize,
    /// Steps of single molecules done.
    pub steps: u64,
}

/// Relaxes every molecule of `jobs` and hands each result, or what went wrong with that molecule, to `on_result` with its
/// place in the queue.
///
/// One worker per thread holds a batch. Finished molecules leave it and new ones come in once an eighth of its atoms have
/// nothing left to do. Results depend neither on batches nor on threads, bit for bit, as long as the provider keeps its own
/// word on that. `jobs` is read as needed, so it may be endless or read a file; `jobs` and the callbacks are called by one
/// thread at a time and must not wait for work in the same rayon pool.
///
/// If the provider fails for a batch, each of its molecules is tried alone: those that fail are handed out as errors, the
/// rest goes on. A molecule whose force or energy is not finite is handed out as an error that names the atom.
///
/// # Errors
/// Where nothing can begin: the specification does not fit the provider's units, the provider lacks the precision, needs a
/// noise level or cannot be forked. What goes wrong with one molecule goes to `on_result`.
pub fn relax_all<J>(
    jobs: J,
    provider: &dyn ForceProvider,
    spec: &RelaxSpec,
    options: &RelaxOptions<'_>,
    on_result: impl FnMut(usize, Result<Relaxed>) + Send,
) -> Result<Tally>
where
    J: IntoIterator,
    J::Item: Into<Job>,
    J::IntoIter: Send,
{
    let capabilities = provider.capabilities();
    let settings = spec.resolve(capabilities.units)?;
    settings.check(capabilities, Clock::Iteration)?;
    if !capabilities.dtypes.contains(&options.dtype) {
        return Err(Error::Unsupported {
            provider: capabilities.name.clone(),
            what: format!("{} results", options.dtype),
            remedy: "choose another dtype".into(),
        });
    }
    if options.batch_atoms == 0 || options.max_steps == 0 || options.threads == Some(0) {
        return invalid("batch_atoms, max_steps and threads must be at least 1");
    }
    let workers = options.threads.unwrap_or_else(rayon::current_num_threads).min(1024);
    let forks = (0..workers).map(|_| provider.fork()).collect::<Result<Vec<_>>>()?;
    let queue = Mutex::new(Queue { jobs: jobs.into_iter(), taken: 0, ended: false });
    let sink = Mutex::new(Sink { on_result, order: options.order, waiting: BTreeMap::new(), next: 0, tally: Tally::default() });
    let steps = AtomicU64::new(0);
    let shared = Shared { settings: &settings, options, workers, queue: &queue, sink: &sink, steps: &steps };
    rayon::scope(|scope| {
        for provider in forks {
            let shared = &shared;
            scope.spawn(move |_| Worker { shared, provider, held: None, alone: VecDeque::new(), reported: Instant::now() }.run());
        }
    });
    let tally = shared.tally();
    lock(&sink).flush();
    if let Some(progress) = options.progress {
        progress(&tally);
    }
    Ok(tally)
}

/// A callback that panicked has already ended the run: whatever it held is as good as it will get.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Queue<I> {
    jobs: I,
    taken: usize,
    ended: bool,
}

/// Hands results out in order.
struct Sink<F> {
    on_result: F,
    order: Order,
    waiting: BTreeMap<usize, Result<Relaxed>>,
    next: usize,
    tally: Tally,
}

impl<F: FnMut(usize, Result<Relaxed>)> Sink<F> {
    fn deliver(&mut self, index: usize, result: Result<Relaxed>) {
        let count = match &result {
            Ok(Relaxed { progress: Progress::Converged, .. }) => &mut self.tally.converged,
            Ok(Relaxed { progress: Progress::Stalled, .. }) => &mut self.tally.stalled,
            Ok(_) => &mut self.tally.unfinished,
            Err(_) => &mut self.tally.failed,
        };
        *count += 1;
        if self.order == Order::Completion {
            return (self.on_result)(index, result);
        }
        self.waiting.insert(index, result);
        while let Some(result) = self.waiting.remove(&self.next) {
            (self.on_result)(self.next, result);
            self.next += 1;
        }
    }

    /// Hands out what still waits for molecules that an interruption left untouched.
    fn flush(&mut self) {
        while let Some((index, result)) = self.waiting.pop_first() {
            (self.on_result)(index, result);
        }
    }
}

/// What all workers see.
struct Shared<'a, I, F> {
    settings: &'a Settings,
    options: &'a RelaxOptions<'a>,
    workers: usize,
    queue: &'a Mutex<Queue<I>>,
    sink: &'a Mutex<Sink<F>>,
    steps: &'a AtomicU64,
}

impl<I, F> Shared<'_, I, F> {
    fn stopped(&self) -> bool {
        self.options.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    fn tally(&self) -> Tally {
        let taken = lock(self.queue).taken;
        Tally { taken, steps: self.steps.load(Ordering::Relaxed), ..lock(self.sink).tally }
    }
}

/// A molecule at work.
struct Member {
    index: usize,
    job: Job,
    /// Present positions `[N, 3]`; brought up to date when it leaves a batch.
    positions: Vec<f64>,
    walk: Walk,
    /// It was handed out and only keeps its place until the batch is made anew.
    done: bool,
}

/// One thread's part.
struct Worker<'a, I, F> {
    shared: &'a Shared<'a, I, F>,
    provider: Box<dyn ForceProvider>,
    /// Taken from the queue, but did not fit into the present batch.
    held: Option<Member>,
    /// Members of a batch that failed although each of them works alone.
    alone: VecDeque<Member>,
    reported: Instant,
}

impl<I, F> Worker<'_, I, F>
where
    I: Iterator,
    I::Item: Into<Job>,
    F: FnMut(usize, Result<Relaxed>),
{
    fn run(&mut self) {
        let mut members = Vec::new();
        loop {
            if self.alone.is_empty() {
                self.refill(&mut members);
            } else if members.is_empty() {
                members.extend(self.alone.pop_front());
            }
            if members.is_empty() {
                return;
            }
            let worked = self.work(&mut members);
            members.retain(|m| !m.done);
            if let Err(error) = worked {
                self.isolate(&mut members, error);
            }
        }
    }

    /// Takes molecules from the queue until the batch is full, but no more than this worker's share of what is left.
    fn refill(&mut self, members: &mut Vec<Member>) {
        let mut room = usize::MAX;
        let mut atoms: usize = members.iter().map(|m| m.job.system.len()).sum();
        while room > 0 {
            let Some(next) = self.held.take().or_else(|| self.take(&mut room)) else { return };
            let fits = members.first().is_none_or(|first| {
                first.job.cell.is_some() == next.job.cell.is_some() && atoms + next.job.system.len() <= self.shared.options.batch_atoms
            });
            if !fits {
                self.held = Some(next);
                return;
            }
            atoms += next.job.system.len();
            members.push(next);
            room -= 1;
        }
    }

    /// The next sound molecule of the queue; others are handed out as errors. `room` falls to this worker's share of a
    /// queue of known length.
    fn take(&self, room: &mut usize) -> Option<Member> {
        loop {
            let (index, job) = {
                let mut queue = lock(self.shared.queue);
                if queue.ended || self.shared.stopped() {
                    return None;
                }
                if let (low, Some(high)) = queue.jobs.size_hint()
                    && low == high
                {
                    *room = (*room).min(low.div_ceil(self.shared.workers).max(1));
                }
                let Some(job) = queue.jobs.next() else {
                    queue.ended = true;
                    return None;
                };
                queue.taken += 1;
                (queue.taken - 1, job.into())
            };
            match self.admit(index, job) {
                Ok(member) => return Some(member),
                Err(error) => lock(self.shared.sink).deliver(index, Err(error)),
            }
        }
    }

    /// Checks a molecule by itself, so that it cannot spoil a batch.
    fn admit(&self, index: usize, job: Job) -> Result<Member> {
        let batch = Batch::uniform(job.system.clone(), 1, 0)?;
        self.provider.capabilities().check_batch(&batch, job.cell.is_some(), self.shared.options.dtype)?;
        State::at_rest(&batch, &job.positions, self.shared.options.dtype)?;
        if let Some(cell) = &job.cell
            && cell.iter().any(|x| !x.is_finite())
        {
            return invalid(format!("{}: its cell {cell:?} is not finite", job.system.name));
        }
        let mut positions = job.positions.clone();
        let walk = Walk::new(self.shared.settings, &job.system, &mut positions)?;
        Ok(Member { index, positions, job, walk, done: false })
    }

    /// Relaxes a batch until an eighth of its atoms is done. Leaves present positions in the members that are not.
    fn work(&mut self, members: &mut [Member]) -> Result<()> {
        let mut bench = Bench::new(members, self.shared.options.dtype)?;
        self.provider.prepare(&bench.batch, self.shared.options.dtype)?;
        let atoms = bench.batch.atoms();
        loop {
            let evaluated = bench.evaluate(self.provider.as_mut());
            if evaluated.is_err() {
                bench.read_back(members);
                return evaluated;
            }
            self.settle(members, &bench);
            let mut running = 0;
            let mut idle = 0;
            for (b, member) in members.iter_mut().enumerate() {
                if member.done {
                    idle += member.job.system.len();
                } else {
                    member.walk.advance(&mut bench.state.phase, 3 * bench.batch.range(b).start);
                    running += 1;
                }
            }
            self.shared.steps.fetch_add(running, Ordering::Relaxed);
            if idle > 0 && 8 * idle >= atoms {
                bench.read_back(members);
                return Ok(());
            }
            if let Some(progress) = self.shared.options.progress
                && self.reported.elapsed() >= REPORT_EVERY
            {
                progress(&self.shared.tally());
                self.reported = Instant::now();
            }
        }
    }

    /// Shows every member its forces and hands out those that are done, all of them after an interruption.
    fn settle(&self, members: &mut [Member], bench: &Bench) {
        let has_energy = self.provider.capabilities().energy;
        let stopped = self.shared.stopped();
        for (b, member) in members.iter_mut().enumerate().filter(|(_, m)| !m.done) {
            let range = bench.batch.range3(b);
            let (forces, positions) = (bench.out.forces.part(range.clone()), bench.state.positions().part(range));
            let energy = has_energy.then(|| bench.out.energy[b]);
            let system = &member.job.system;
            let result = match member.walk.observe(forces) {
                Err(atom) => invalid(not_finite(system, atom, forces, positions)),
                Ok(())
                    if member.walk.progress() == Progress::Running && member.walk.steps() < self.shared.options.max_steps && !stopped =>
                {
                    continue;
                }
                Ok(()) => match energy {
                    Some(e) if !e.is_finite() => invalid(format!("{}: energy is {e}; check the structure", system.name)),
                    _ => {
                        member.walk.copy_moving(positions, &mut member.positions);
                        Ok(member.result(energy))
                    }
                },
            };
            member.done = true;
            lock(self.shared.sink).deliver(member.index, result);
        }
    }

    /// After a failure of a whole batch: hands out as errors the members that fail alone; the rest stays.
    fn isolate(&mut self, members: &mut Vec<Member>, error: Error) {
        if let [member] = members.as_slice() {
            lock(self.shared.sink).deliver(member.index, Err(error));
            return members.clear();
        }
        let before = members.len();
        members.retain(|member| match self.attempt(member) {
            Ok(()) => true,
            Err(error) => {
                lock(self.shared.sink).deliver(member.index, Err(error));
                false
            }
        });
        if members.len() == before {
            self.alone.extend(members.drain(..));
        }
    }

    /// Evaluates the forces on one member alone.
    fn attempt(&mut self, member: &Member) -> Result<()> {
        let mut bench = Bench::new(std::slice::from_ref(member), self.shared.options.dtype)?;
        self.provider.prepare(&bench.batch, self.shared.options.dtype)?;
        bench.evaluate(self.provider.as_mut())
    }
}

impl Member {
    /// Its result at its present positions.
    fn result(&self, energy: Option<f64>) -> Relaxed {
        let free = self.job.cell.is_none() && self.job.system.axes == [true; 3];
        let rmsd = if free { superposed_rmsd } else { plain_rmsd };
        Relaxed {
            index: self.index,
            positions: self.positions.clone(),
            energy,
            fmax: self.walk.fmax(),
            steps: self.walk.steps(),
            progress: self.walk.progress(),
            rmsd: rmsd(&self.job.positions, &self.positions),
        }
    }
}

/// A batch with its state and results.
struct Bench {
    batch: Batch,
    state: State,
    out: Output,
}

impl Bench {
    fn new(members: &[Member], dtype: DType) -> Result<Self> {
        let batch = Batch::new(members.iter().map(|m| m.job.system.clone()).collect(), members.iter().map(|m| m.index as u32).collect())?;
        let positions: Vec<f64> = members.iter().flat_map(|m| m.positions.iter().copied()).collect();
        let mut state = State::at_rest(&batch, &positions, dtype)?;
        state.cells = members.iter().map(|m| m.job.cell).collect();
        state.clock = Clock::Iteration;
        let out = Output::new(&batch, dtype, Want::ENERGY);
        Ok(Bench { batch, state, out })
    }

    fn evaluate(&mut self, provider: &mut dyn ForceProvider) -> Result<()> {
        let input = Input {
            batch: &self.batch,
            positions: self.state.positions(),
            cells: self.state.cells.as_deref(),
            clock: self.state.clock,
            want: Settings::want(provider.capabilities()),
        };
        provider.evaluate(&input, &mut self.out)
    }

    /// Copies the present positions of members still at work back to them.
    fn read_back(&self, members: &mut [Member]) {
        for (b, member) in members.iter_mut().enumerate().filter(|(_, m)| !m.done) {
            member.walk.copy_moving(self.state.positions().part(self.batch.range3(b)), &mut member.positions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Law, Toy, atoms, icosahedron, shaken, truncated_octahedron};
    use super::super::tests::{Run, both};
    use super::*;
    use crate::units::Quantity;

    const LJ: Law = Law::LennardJones { epsilon: 1.0, sigma: 1.0 };

    /// Clusters of several sizes, from starts of several qualities.
    fn jobs(n: usize) -> Vec<(Arc<System>, Vec<f64>)> {
        let (small, large) = (atoms(13), atoms(38));
        (0..n)
            .map(|i| match i % 3 {
                0 => (small.clone(), shaken(&icosahedron(), 0.05 * (1 + i % 4) as f64, i as u64)),
                1 => (large.clone(), shaken(&truncated_octahedron(), 0.1, i as u64)),
                _ => (atoms(6), shaken(&icosahedron()[..18], 0.1, i as u64)),
            })
            .collect()
    }

    fn relax(
        jobs: Vec<(Arc<System>, Vec<f64>)>,
        toy: &Toy,
        spec: &RelaxSpec,
        options: RelaxOptions<'_>,
    ) -> (Tally, Vec<(usize, Result<Relaxed>)>) {
        let mut results = Vec::new();
        let tally = relax_all(jobs, toy, spec, &options, |index, result| results.push((index, result))).unwrap();
        (tally, results)
    }

    #[test]
    fn results_depend_neither_on_batches_nor_on_threads() {
        for spec in both(1e-4) {
            let toy = Toy::reduced(LJ);
            // The plain propagator, one molecule at a time.
            let alone: Vec<Relaxed> = jobs(23)
                .into_iter()
                .enumerate()
                .map(|(index, job)| {
                    let mut run = Run::new(&toy, &spec, std::slice::from_ref(&job), DType::F64).unwrap();
                    let progress = run.finish(2000)[0];
                    assert_eq!(progress, Progress::Converged);
                    let positions = run.positions(0);
                    let rmsd = superposed_rmsd(&job.1, &positions);
                    let fmax = super::super::walk::longest(&run.out.forces.to_f64(), 3);
                    Relaxed { index, positions, energy: Some(run.out.energy[0]), fmax, steps: run.state.step, progress, rmsd }
                })
                .collect();
            for (batch_atoms, threads, order) in [
                (1, 1, Order::Input),
                (60, 1, Order::Completion),
                (200, 3, Order::Input),
                (100_000, 2, Order::Completion),
                (40, 7, Order::Input),
            ] {
                let options = RelaxOptions { batch_atoms, threads: Some(threads), order, ..RelaxOptions::default() };
                let (tally, mut results) = relax(jobs(23), &toy, &spec, options);
                if order == Order::Input {
                    assert!(results.iter().map(|r| r.0).eq(0..23));
                }
                results.sort_by_key(|r| r.0);
                let results: Vec<Relaxed> = results.into_iter().map(|r| r.1.unwrap()).collect();
                assert_eq!(results, alone, "{batch_atoms} {threads}");
                let steps = alone.iter().map(|r| r.steps).sum();
                assert_eq!(tally, Tally { taken: 23, converged: 23, steps, ..Tally::default() });
            }
        }
    }

    #[test]
    fn one_bad_molecule_spoils_nothing() {
        let toy = Toy::reduced(LJ);
        let spec = &both(1e-3)[0];
        let good = relax(jobs(12), &toy, spec, RelaxOptions::default()).1;
        let mut mixed = jobs(12);
        let mut cursed = System::particles("cursed", 13, 1.0);
        cursed.masses[0] = 2.0;
        mixed[3] = (Arc::new(cursed), icosahedron());
        mixed[4].1.pop();
        mixed[5].1[7] = f64::NAN;
        mixed[6].1.copy_within(9..12, 21);
        mixed[7] = (Arc::new(System { types: Vec::new(), ..System::particles("nothing", 0, 1.0) }), Vec::new());
        for threads in [1, 2] {
            let (tally, results) = relax(mixed.clone(), &toy, spec, RelaxOptions { threads: Some(threads), ..RelaxOptions::default() });
            assert_eq!((tally.taken, tally.converged, tally.failed), (12, 7, 5));
            for (index, result) in results {
                let message = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
                match index {
                    3 => assert!(message.contains("cursed"), "{message}"),
                    4 => assert!(message.contains("coordinates"), "{message}"),
                    5 => assert!(message.contains("atom 3"), "{message}"),
                    6 => assert!(message.contains("atom 4") && message.contains("atom 8 is at the same place"), "{message}"),
                    7 => assert!(message.contains("no atoms"), "{message}"),
                    _ => assert_eq!(&result.unwrap(), good[index].1.as_ref().unwrap()),
                }
            }
        }
    }

    #[test]
    fn a_provider_that_hates_company_is_served() {
        let spec = &both(1e-3)[1];
        let good = relax(jobs(9), &Toy::reduced(LJ), spec, RelaxOptions::default()).1;
        let lonely = Toy { hates_company: true, ..Toy::reduced(LJ) };
        let (tally, results) = relax(jobs(9), &lonely, spec, RelaxOptions { threads: Some(2), ..RelaxOptions::default() });
        assert_eq!(tally.converged, 9);
        for (good, result) in good.into_iter().zip(results) {
            assert_eq!(good.1.unwrap(), result.1.unwrap());
        }
    }

    #[test]
    fn stops_when_told() {
        let stop = AtomicBool::new(false);
        let mut handed_out = Vec::new();
        let options = RelaxOptions { threads: Some(2), batch_atoms: 60, stop: Some(&stop), ..RelaxOptions::default() };
        let endless = std::iter::repeat_with(|| jobs(1).remove(0));
        let tally = relax_all(endless, &Toy::reduced(LJ), &both(1e-3)[0], &options, |index, result| {
            let result = result.unwrap();
            assert!(result.fmax.is_finite() && result.energy.unwrap().is_finite());
            handed_out.push(index);
            if handed_out.len() == 20 {
                stop.store(true, Ordering::Relaxed);
            }
        })
        .unwrap();
        handed_out.sort();
        assert!(handed_out.iter().copied().eq(0..tally.taken), "{handed_out:?}");
        assert!(tally.taken >= 20 && tally.unfinished > 0 && tally.converged + tally.unfinished == tally.taken);
    }

    #[test]
    fn ends_after_max_steps_and_reports() {
        let last = Mutex::new(Tally::default());
        let report = |tally: &Tally| *last.lock().unwrap() = *tally;
        let options = RelaxOptions { max_steps: 5, dtype: DType::F32, progress: Some(&report), ..RelaxOptions::default() };
        let toy = Toy::reduced(LJ).without_energy();
        let (tally, results) = relax(jobs(10), &toy, &both(1e-6)[1], options);
        assert_eq!(tally, Tally { taken: 10, unfinished: 10, steps: 50, ..Tally::default() });
        assert_eq!(*last.lock().unwrap(), tally);
        for (_, result) in results {
            let result = result.unwrap();
            assert_eq!((result.steps, result.progress, result.energy), (5, Progress::Running, None));
        }
        assert_eq!(relax(Vec::new(), &toy, &both(1.0)[0], RelaxOptions::default()).0, Tally::default());
    }

    #[test]
    fn what_is_frozen_comes_back_exactly() {
        let mut system = System::particles("held", 13, 1.0);
        system.masses[3] = 0.0;
        let start = shaken(&icosahedron(), 0.1, 2);
        for dtype in [DType::F64, DType::F32] {
            let job = (Arc::new(system.clone()), start.clone());
            let options = RelaxOptions { dtype, ..RelaxOptions::default() };
            let result = relax(vec![job], &Toy::reduced(LJ), &both(5e-3)[0], options).1.remove(0).1.unwrap();
            assert_eq!(result.progress, Progress::Converged);
            assert_eq!(result.positions[9..12], start[9..12]);
            assert!(result.rmsd > 0.01);
        }
    }

    #[test]
    fn cells_come_along() {
        let mut toy = Toy::reduced(LJ);
        let cell = Some([9.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0]);
        let mixed = || jobs(6).into_iter().enumerate().map(|(i, job)| Job { cell: cell.filter(|_| i % 2 == 0), ..job.into() });
        let count = |toy: &Toy| relax_all(mixed(), toy, &both(1e-2)[0], &RelaxOptions::default(), |_, _| ()).unwrap();
        assert_eq!((count(&toy).converged, count(&toy).failed), (3, 3), "no periodic forces here");
        toy.capabilities.periodic = true;
        assert_eq!(count(&toy).converged, 6);
        let broken = Job { cell: Some([f64::NAN; 9]), ..jobs(1).remove(0).into() };
        assert_eq!(relax_all([broken], &toy, &both(1e-2)[0], &RelaxOptions::default(), |_, _| ()).unwrap().failed, 1);
    }

    #[test]
    fn refuses_what_cannot_begin() {
        let toy = Toy::reduced(LJ);
        let spec = RelaxSpec::default();
        let si = spec.clone().with_fmax(Quantity::new(1.0, "eV/A"));
        let none = || std::iter::empty::<Job>();
        assert!(relax_all(none(), &toy, &si, &RelaxOptions::default(), |_, _| ()).is_err());
        assert!(relax_all(none(), &toy, &spec, &RelaxOptions { batch_atoms: 0, ..RelaxOptions::default() }, |_, _| ()).is_err());
        let mut double = toy.clone();
        double.capabilities.dtypes = vec![DType::F64];
        let options = RelaxOptions { dtype: DType::F32, ..RelaxOptions::default() };
        assert!(relax_all(none(), &double, &spec, &options, |_, _| ()).is_err());
        let mut noisy = toy.clone();
        noisy.capabilities.needs_noise_level = true;
        assert!(relax_all(none(), &noisy, &spec, &RelaxOptions::default(), |_, _| ()).is_err());
    }
}
