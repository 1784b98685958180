//! Many molecules through few batches: every thread holds a batch, hands finished molecules out and takes new ones in.

use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::error::{Error, Result, invalid};
use crate::force::{Capabilities, ForceProvider, Input, Output, Want};
use crate::propagator::Progress;
use crate::state::{Cell, Clock, State};
use crate::system::System;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two calls of the progress callback from one thread.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// One molecule to move.
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

/// How a stream works through its queue. None of this changes a result.
#[derive(Clone, Copy)]
pub struct StreamOptions<'a> {
    /// Precision of positions and forces; what moves the atoms works in double precision.
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

impl Default for StreamOptions<'_> {
    fn default() -> Self {
        StreamOptions {
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

/// One molecule on its way: what it does with the forces on it. Whatever a step needs is here, so that it can go from batch
/// to batch.
pub(crate) trait Course: Send {
    /// What is handed out in the end.
    type Outcome: Send;
    /// True where the step that ends a course needs no forces after it.
    const ENDS_WITH_A_STEP: bool;

    /// Takes in the forces `[N, 3]` at the present positions. `Err` is the first atom with a force that is not finite.
    fn observe(&mut self, forces: View<'_>) -> std::result::Result<(), usize>;

    /// Moves the molecule, whose `[N, 3]` begins at `first` of `positions`, along the forces last observed.
    fn advance(&mut self, positions: &mut Array, first: usize);

    /// Where it stands.
    fn progress(&self) -> Progress;

    /// Steps done.
    fn steps(&self) -> u64;

    /// Noise level (nm) of the present positions, where this course has one.
    fn level(&self) -> Option<f64>;

    /// Overwrites the coordinates of `to` (`[N, 3]`) that move with those of `from`.
    fn copy_moving(&self, from: View<'_>, to: &mut [f64]);

    /// Its result at the positions (`[N, 3]`) where it ended.
    fn outcome(&self, index: usize, job: &Job, positions: &[f64], energy: Option<f64>) -> Self::Outcome;
}

/// Begins courses.
pub(crate) trait Guide: Sync {
    /// What it begins.
    type Course: Course;

    /// The course of molecule `index`, which begins at `positions` (`[N, 3]`); they may be changed.
    fn begin(&self, index: usize, system: &Arc<System>, positions: &mut [f64]) -> Result<Self::Course>;

    /// What is evaluated besides forces.
    fn want(&self, capabilities: &Capabilities) -> Want;
}

/// Takes every molecule of `jobs` through its course and hands each result, or what went wrong with that molecule, to
/// `on_result` with its place in the queue.
///
/// One worker per thread holds a batch. Finished molecules leave it and new ones come in once an eighth of its atoms have
/// nothing left to do. Results depend neither on batches nor on threads, bit for bit, as long as the provider keeps its own
/// word on that. A provider that needs a noise level has one for all of a batch: new molecules then wait for an empty one.
///
/// # Errors
/// Where nothing can begin. What goes wrong with one molecule goes to `on_result`.
pub(crate) fn stream<J, G>(
    jobs: J,
    provider: &dyn ForceProvider,
    guide: &G,
    options: &StreamOptions<'_>,
    on_result: impl FnMut(usize, Result<<G::Course as Course>::Outcome>) + Send,
) -> Result<Tally>
where
    J: IntoIterator,
    J::Item: Into<Job>,
    J::IntoIter: Send,
    G: Guide,
{
    let capabilities = provider.capabilities();
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
    let lockstep = capabilities.needs_noise_level;
    let shared = Shared { guide, lockstep, options, workers, queue: &queue, sink: &sink, steps: &steps };
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
struct Sink<F, O> {
    on_result: F,
    order: Order,
    waiting: BTreeMap<usize, Result<O>>,
    next: usize,
    tally: Tally,
}

impl<F: FnMut(usize, Result<O>), O> Sink<F, O> {
    fn deliver(&mut self, index: usize, result: Result<(Progress, O)>) {
        let count = match &result {
            Ok((Progress::Converged, _)) => &mut self.tally.converged,
            Ok((Progress::Stalled, _)) => &mut self.tally.stalled,
            Ok((Progress::Running, _)) => &mut self.tally.unfinished,
            Err(_) => &mut self.tally.failed,
        };
        *count += 1;
        let result = result.map(|r| r.1);
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
struct Shared<'a, I, F, G: Guide> {
    guide: &'a G,
    /// All molecules of a batch are at one noise level.
    lockstep: bool,
    options: &'a StreamOptions<'a>,
    workers: usize,
    queue: &'a Mutex<Queue<I>>,
    sink: &'a Mutex<Sink<F, <G::Course as Course>::Outcome>>,
    steps: &'a AtomicU64,
}

impl<I, F, G: Guide> Shared<'_, I, F, G> {
    fn stopped(&self) -> bool {
        self.options.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    fn tally(&self) -> Tally {
        let taken = lock(self.queue).taken;
        Tally { taken, steps: self.steps.load(Ordering::Relaxed), ..lock(self.sink).tally }
    }
}

/// A molecule at work.
struct Member<C> {
    index: usize,
    job: Job,
    /// Present positions `[N, 3]`; brought up to date when it leaves a batch.
    positions: Vec<f64>,
    course: C,
    /// It was handed out and only keeps its place until the batch is made anew.
    done: bool,
}

/// One thread's part.
struct Worker<'a, I, F, G: Guide> {
    shared: &'a Shared<'a, I, F, G>,
    provider: Box<dyn ForceProvider>,
    /// Taken from the queue, but did not fit into the present batch.
    held: Option<Member<G::Course>>,
    /// Members of a batch that failed although each of them works alone.
    alone: VecDeque<Member<G::Course>>,
    reported: Instant,
}

impl<I, F, G> Worker<'_, I, F, G>
where
    I: Iterator,
    I::Item: Into<Job>,
    G: Guide,
    F: FnMut(usize, Result<<G::Course as Course>::Outcome>),
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
    fn refill(&mut self, members: &mut Vec<Member<G::Course>>) {
        if self.shared.lockstep && !members.is_empty() {
            return;
        }
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
    fn take(&self, room: &mut usize) -> Option<Member<G::Course>> {
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
    fn admit(&self, index: usize, job: Job) -> Result<Member<G::Course>> {
        let batch = Batch::uniform(job.system.clone(), 1, 0)?;
        self.provider.capabilities().check_batch(&batch, job.cell.is_some(), self.shared.options.dtype)?;
        State::at_rest(&batch, &job.positions, self.shared.options.dtype)?;
        if let Some(cell) = &job.cell
            && cell.iter().any(|x| !x.is_finite())
        {
            return invalid(format!("{}: its cell {cell:?} is not finite", job.system.name));
        }
        // What moves begins in the precision of the state, what does not stays as it was given.
        let mut start = Array::from_f64(self.shared.options.dtype, &job.positions).to_f64();
        let course = self.shared.guide.begin(index, &job.system, &mut start)?;
        let mut positions = job.positions.clone();
        course.copy_moving(View::F64(&start), &mut positions);
        Ok(Member { index, positions, job, course, done: false })
    }

    /// Moves a batch until an eighth of its atoms is done. Leaves present positions in the members that are not.
    fn work(&mut self, members: &mut [Member<G::Course>]) -> Result<()> {
        let mut bench = Bench::new(members, self.shared.options.dtype)?;
        let want = self.shared.guide.want(self.provider.capabilities());
        self.provider.prepare(&bench.batch, self.shared.options.dtype)?;
        let atoms = bench.batch.atoms();
        loop {
            if self.shared.lockstep {
                bench.set_clock(members);
            }
            let evaluated = bench.evaluate(self.provider.as_mut(), want);
            if evaluated.is_err() {
                bench.read_back(members);
                return evaluated;
            }
            self.settle(members, &bench);
            let mut running = 0;
            let mut idle = 0;
            for (b, member) in members.iter_mut().enumerate() {
                if !member.done {
                    member.course.advance(&mut bench.state.phase, 3 * bench.batch.range(b).start);
                    running += 1;
                    if G::Course::ENDS_WITH_A_STEP && member.course.progress() != Progress::Running {
                        self.hand_out(member, bench.state.positions().part(bench.batch.range3(b)), None);
                    }
                }
                if member.done {
                    idle += member.job.system.len();
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
    fn settle(&self, members: &mut [Member<G::Course>], bench: &Bench) {
        let has_energy = self.provider.capabilities().energy;
        let stopped = self.shared.stopped();
        for (b, member) in members.iter_mut().enumerate().filter(|(_, m)| !m.done) {
            let range = bench.batch.range3(b);
            let (forces, positions) = (bench.out.forces.part(range.clone()), bench.state.positions().part(range));
            let energy = has_energy.then(|| bench.out.energy[b]);
            let system = &member.job.system;
            let error = match member.course.observe(forces) {
                Err(atom) => not_finite(system, atom, forces, positions),
                Ok(())
                    if member.course.progress() == Progress::Running
                        && member.course.steps() < self.shared.options.max_steps
                        && !stopped =>
                {
                    continue;
                }
                Ok(()) => match energy {
                    Some(e) if !e.is_finite() => format!("{}: energy is {e}; check the structure", system.name),
                    _ => {
                        self.hand_out(member, positions, energy);
                        continue;
                    }
                },
            };
            member.done = true;
            lock(self.shared.sink).deliver(member.index, invalid(error));
        }
    }

    /// Hands a member out as it stands at `positions` (`[N, 3]`).
    fn hand_out(&self, member: &mut Member<G::Course>, positions: View<'_>, energy: Option<f64>) {
        member.course.copy_moving(positions, &mut member.positions);
        let outcome = member.course.outcome(member.index, &member.job, &member.positions, energy);
        member.done = true;
        lock(self.shared.sink).deliver(member.index, Ok((member.course.progress(), outcome)));
    }

    /// After a failure of a whole batch: hands out as errors the members that fail alone; the rest stays.
    fn isolate(&mut self, members: &mut Vec<Member<G::Course>>, error: Error) {
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
    fn attempt(&mut self, member: &Member<G::Course>) -> Result<()> {
        let mut bench = Bench::new(std::slice::from_ref(member), self.shared.options.dtype)?;
        let want = self.shared.guide.want(self.provider.capabilities());
        self.provider.prepare(&bench.batch, self.shared.options.dtype)?;
        if self.shared.lockstep {
            bench.set_clock(std::slice::from_ref(member));
        }
        bench.evaluate(self.provider.as_mut(), want)
    }
}

/// A batch with its state and results.
struct Bench {
    batch: Batch,
    state: State,
    out: Output,
}

impl Bench {
    fn new<C>(members: &[Member<C>], dtype: DType) -> Result<Self> {
        let batch = Batch::new(members.iter().map(|m| m.job.system.clone()).collect(), members.iter().map(|m| m.index as u32).collect())?;
        let positions: Vec<f64> = members.iter().flat_map(|m| m.positions.iter().copied()).collect();
        let mut state = State::at_rest(&batch, &positions, dtype)?;
        state.cells = members.iter().map(|m| m.job.cell).collect();
        state.clock = Clock::Iteration;
        let out = Output::new(&batch, dtype, Want::ENERGY);
        Ok(Bench { batch, state, out })
    }

    /// Shows the noise level of the members at work, where they have one.
    fn set_clock<C: Course>(&mut self, members: &[Member<C>]) {
        if let Some(t) = members.iter().find(|m| !m.done).and_then(|m| m.course.level()) {
            self.state.clock = Clock::Diffusion { t };
        }
    }

    fn evaluate(&mut self, provider: &mut dyn ForceProvider, want: Want) -> Result<()> {
        let input = Input {
            batch: &self.batch,
            positions: self.state.positions(),
            cells: self.state.cells.as_deref(),
            clock: self.state.clock,
            want,
        };
        provider.evaluate(&input, &mut self.out)
    }

    /// Copies the present positions of members still at work back to them.
    fn read_back<C: Course>(&self, members: &mut [Member<C>]) {
        for (b, member) in members.iter_mut().enumerate().filter(|(_, m)| !m.done) {
            member.course.copy_moving(self.state.positions().part(self.batch.range3(b)), &mut member.positions);
        }
    }
}

/// Says which atom has a force that is not finite, and its nearest neighbour, which is often at the same place.
pub(crate) fn not_finite(system: &System, atom: usize, forces: View<'_>, positions: View<'_>) -> String {
    let axis = (0..3).find(|&a| !forces.get(3 * atom + a).is_finite()).unwrap_or(0);
    let distance = |j: usize| (0..3).map(|a| (positions.get(3 * j + a) - positions.get(3 * atom + a)).powi(2)).sum::<f64>().sqrt();
    let nearest = (0..system.len()).filter(|&j| j != atom).map(|j| (distance(j), j)).min_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((0.0, j)) => format!("; {} is at the same place: move one of them", system.describe_atom(j)),
        Some((d, j)) => format!("; its nearest neighbour, {}, is {d:.3e} away: check the structure", system.describe_atom(j)),
        None => String::new(),
    };
    format!("{}: force {} on {} is {}{hint}", system.name, ["x", "y", "z"][axis], system.describe_atom(atom), forces.get(3 * atom + axis))
}
