//! The replicas of a run, shared out over threads. Replicas do not know of each other, so threads meet only when the
//! caller looks: [`Ensemble::run`] advances every chunk of replicas by many steps without any synchronisation inside.
//!
//! A replica's trajectory is the same bits however the replicas are split into chunks.
//!
//! On a device all replicas are one chunk that stays there ([`Ensemble::on_device`]); the host sees what it fetches. So it is with
//! replicas in other processes ([`Ensemble::across`]).

use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::constraint;
use crate::device::{Device, DeviceProvider, Fetch, Stop};
use crate::error::{Error, Result, invalid};
use crate::force::{ForceProvider, Input, Output, Want};
use crate::noise::Noise;
use crate::propagator::{Acceptance, Context, Propagator};
use crate::ranks::{Far, Messages};
use crate::simd;
use crate::state::{Clock, State};
use crate::system::System;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// What becomes of a replica whose numbers left every sensible range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDivergence {
    /// The run ends with [`Error::Diverged`].
    #[default]
    Stop,
    /// The replica stays at its last good state for the rest of the run; the others go on.
    Freeze,
    /// The replica goes back to its last good state and goes on with other noise.
    Restore,
}

impl OnDivergence {
    /// Names on the command line.
    pub const NAMES: [&'static str; 3] = ["stop", "freeze", "restore"];
}

impl std::str::FromStr for OnDivergence {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "stop" => Ok(OnDivergence::Stop),
            "freeze" => Ok(OnDivergence::Freeze),
            "restore" => Ok(OnDivergence::Restore),
            _ => Err(format!("`{text}` is not a policy; known are {}", Self::NAMES.join(", "))),
        }
    }
}

/// When a replica counts as diverged, and what to do then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// Largest coordinate, nm.
    pub position: f64,
    /// Largest velocity component, nm/ps.
    pub velocity: f64,
    /// Steps between looks.
    pub check_every: u64,
    /// What becomes of the replica.
    pub policy: OnDivergence,
}

impl Default for Guard {
    /// No molecule gets that far or that fast: a proton at 1000 nm/ps has half a million kJ/mol.
    fn default() -> Self {
        Guard { position: 1e6, velocity: 1e3, check_every: 100, policy: OnDivergence::Stop }
    }
}

/// A replica that was frozen or restored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Global replica id.
    pub replica: u32,
    /// Step at which it was seen.
    pub step: u64,
    /// First atom and quantity out of range.
    pub what: String,
}

/// Largest relative error of a rigid bond; single precision keeps 1e-6.
pub(crate) const MOST_VIOLATION: f64 = 1e-3;

/// A replica that diverges this often in a row is not restored again.
const MOST_RESTORES: u32 = 10;

/// What is seen of some replicas from outside.
pub(crate) struct Shown {
    pub(crate) batch: Batch,
    pub(crate) state: State,
    pub(crate) out: Output,
    /// What `state` and `out` show as it is now.
    pub(crate) fresh: Fetch,
    /// Phase `[2, A, 3]` when all replicas were last seen in range.
    pub(crate) good: Array,
    pub(crate) frozen: Vec<bool>,
}

impl Shown {
    /// Replicas `which` of `batch` in `state`.
    pub(crate) fn part(batch: &Batch, state: &State, which: Range<usize>, fresh: Fetch) -> Result<Shown> {
        let part = batch.select(&which.clone().collect::<Vec<_>>())?;
        let state = state.part(batch, which.clone());
        let out = Output::new(&part, state.dtype(), Want::ENERGY);
        Ok(Shown { batch: part, good: state.phase.clone(), state, out, fresh, frozen: vec![false; which.len()] })
    }

    /// Puts them into `state`, of all replicas of `whole`.
    fn restore(&mut self, whole: &Batch, state: &State, which: Range<usize>, frozen: &[bool]) {
        self.state = state.part(whole, which.clone());
        self.good = self.state.phase.clone();
        self.frozen.copy_from_slice(&frozen[which]);
    }

    /// Elements of replica `b` in the phase: positions, then velocities.
    fn ranges(&self, b: usize) -> [Range<usize>; 2] {
        let range = self.batch.range3(b);
        let half = self.state.phase.len() / 2;
        [range.clone(), half + range.start..half + range.end]
    }
}

/// Replicas that one thread advances together.
struct Chunk {
    shown: Shown,
    provider: Provider,
    propagator: Box<dyn Propagator>,
    noise: Noise,
    /// What velocities on the device are still to be multiplied with; empty on the host.
    scale: Vec<f64>,
    /// Restores in a row per replica.
    restores: Vec<u32>,
    divergences: Vec<Divergence>,
    failure: Option<Error>,
}

/// Where the forces of a chunk are computed.
enum Provider {
    Host(Box<dyn ForceProvider>),
    /// Replicas stay on the device; `state` and `out` hold what was fetched last.
    Device(Box<DeviceProvider>),
}

impl Provider {
    fn get(&mut self) -> &mut dyn ForceProvider {
        match self {
            Provider::Host(provider) => &mut **provider,
            Provider::Device(provider) => &mut **provider,
        }
    }
}

impl Chunk {
    fn context(&mut self) -> (Context<'_>, &mut dyn Propagator) {
        let ctx = Context {
            batch: &self.shown.batch,
            state: &mut self.shown.state,
            provider: self.provider.get(),
            out: &mut self.shown.out,
            noise: self.noise,
        };
        (ctx, &mut *self.propagator)
    }

    fn prepare(&mut self) -> Result<()> {
        let (mut ctx, propagator) = self.context();
        propagator.prepare(&mut ctx)?;
        if let Provider::Device(provider) = &mut self.provider {
            provider.replicas()?.upload(&self.shown.state, &self.shown.frozen)?;
            provider.replicas()?.evaluate()?;
            self.shown.fresh = Fetch::ALL;
        }
        Ok(())
    }

    fn evaluate(&mut self, want: Want) -> Result<()> {
        if let Provider::Device(provider) = &mut self.provider {
            provider.capabilities().check_want(want)?;
            let replicas = provider.replicas()?;
            replicas.evaluate()?;
            self.shown.fresh.forces = false;
            return if want.energy { replicas.fetch_energies(&mut self.shown.out.energy) } else { Ok(()) };
        }
        let has_room = (!want.virial || !self.shown.out.virial.is_empty())
            && (!want.atom_energy || !self.shown.out.atom_energy.is_empty())
            && (!want.uncertainty || !self.shown.out.uncertainty.energy.is_empty());
        if !has_room {
            self.shown.out = Output::new(&self.shown.batch, self.shown.state.dtype(), want);
        }
        let input = Input {
            batch: &self.shown.batch,
            positions: self.shown.state.positions(),
            cells: self.shown.state.cells.as_deref(),
            clock: self.shown.state.clock,
            want,
        };
        self.provider.get().evaluate(&input, &mut self.shown.out)
    }

    /// Advances by `steps`, looking at every multiple of `check_every` and at the end.
    fn run(&mut self, steps: u64, guard: &Guard) -> Result<()> {
        let end = self.shown.state.step + steps;
        if matches!(self.provider, Provider::Device(_)) {
            return self.run_on_device(end, guard);
        }
        while self.shown.state.step < end {
            let every = guard.check_every.max(1);
            let next = (self.shown.state.step / every + 1).saturating_mul(every).min(end);
            let block = next - self.shown.state.step;
            let (mut ctx, propagator) = self.context();
            propagator.run(&mut ctx, block)?;
            self.check(guard)?;
        }
        Ok(())
    }

    /// The same on a device: one launch to the end, and one more for every replica that diverges and goes on.
    fn run_on_device(&mut self, end: u64, guard: &Guard) -> Result<()> {
        self.rescale()?;
        self.shown.fresh = Fetch::default();
        let (Provider::Device(provider), Some(plan)) = (&mut self.provider, self.propagator.plan()) else { return Ok(()) };
        let replicas = provider.replicas()?;
        loop {
            let stops = replicas.advance(plan, self.noise, end, guard)?;
            if stops.is_empty() {
                break;
            }
            for stop in stops {
                let Stop { replica: b, step, in_a_row, element, value } = stop;
                let atoms3 = self.shown.batch.range3(b).len();
                let (quantity, unit) = if element < atoms3 { ("coordinate", " nm") } else { ("velocity", " nm/ps") };
                let what = if element < 2 * atoms3 {
                    out_of_range(self.shown.batch.system(b), quantity, unit, element % atoms3, value)
                } else {
                    broken(value)
                };
                let replica = self.shown.batch.id(b);
                if guard.policy == OnDivergence::Stop || in_a_row > MOST_RESTORES {
                    replicas.fetch_good(&mut self.shown.good)?;
                    return Err(Error::Diverged { replica, step, what });
                }
                self.shown.frozen[b] = guard.policy == OnDivergence::Freeze;
                replicas.resume(b, self.shown.frozen[b])?;
                self.divergences.push(Divergence { replica, step, what });
            }
        }
        self.shown.state.step = end;
        self.shown.state.clock = Clock::Physical { time: end as f64 * plan.dt };
        Ok(())
    }

    /// Brings temperatures to the device, and the factors that velocities are to be multiplied with.
    fn rescale(&mut self) -> Result<()> {
        if let Provider::Device(provider) = &mut self.provider {
            provider.replicas()?.set_temperatures(&self.shown.state.kt, &self.scale)?;
            self.scale.fill(1.0);
        }
        Ok(())
    }

    /// Brings what `what` names from the device.
    fn fetch(&mut self, what: Fetch) -> Result<()> {
        self.rescale()?;
        if let Provider::Device(provider) = &mut self.provider {
            let missing = what.without(self.shown.fresh);
            provider.replicas()?.fetch(missing, &mut self.shown.state.phase, &mut self.shown.out.forces)?;
            self.shown.fresh = self.shown.fresh.with(what);
        }
        Ok(())
    }

    /// Looks for numbers out of range, applies the policy, and remembers the others as good.
    fn check(&mut self, guard: &Guard) -> Result<()> {
        let mut moved = false;
        for b in 0..self.shown.batch.replicas() {
            let [x, v] = self.shown.ranges(b);
            if self.shown.frozen[b] {
                copy(&mut self.shown.state.phase, &self.shown.good, [x, v]);
                moved = true;
                continue;
            }
            let found = outside(self.shown.state.phase.part(x.clone()), guard.position)
                .map(|k| (k, "coordinate", " nm"))
                .or_else(|| outside(self.shown.state.phase.part(v.clone()), guard.velocity).map(|k| (k + x.len(), "velocity", " nm/ps")));
            let what = if let Some((k, quantity, unit)) = found {
                let value = self.shown.state.phase.get(if k < x.len() { x.start + k } else { v.start + k - x.len() });
                out_of_range(self.shown.batch.system(b), quantity, unit, k % x.len(), value)
            } else {
                // Too large a step first shows in rigid bonds that the correction cannot restore.
                let error = constraint::violation_of(&self.shown.batch, &self.shown.state, b);
                if error <= MOST_VIOLATION {
                    copy(&mut self.shown.good, &self.shown.state.phase, [x, v]);
                    self.restores[b] = 0;
                    continue;
                }
                broken(error)
            };
            let (replica, step) = (self.shown.batch.id(b), self.shown.state.step);
            self.restores[b] += 1;
            if guard.policy == OnDivergence::Stop || self.restores[b] > MOST_RESTORES {
                return Err(Error::Diverged { replica, step, what });
            }
            self.shown.frozen[b] = guard.policy == OnDivergence::Freeze;
            self.divergences.push(Divergence { replica, step, what });
            copy(&mut self.shown.state.phase, &self.shown.good, [x, v]);
            moved = true;
        }
        // Forces belong to the present positions; those of the other replicas come out the same.
        if moved { self.evaluate(Want::FORCES) } else { Ok(()) }
    }
}

/// The message about element `k` of the `[N, 3]` quantity of a replica.
fn out_of_range(system: &System, quantity: &str, unit: &str, k: usize, value: f64) -> String {
    format!("{} {quantity} of {} is {value:.4}{unit}", ["x", "y", "z"][k % 3], system.describe_atom(k / 3))
}

/// The message about a rigid bond of relative error `error`.
fn broken(error: f64) -> String {
    format!("a rigid bond is off by {:.1} %", 100.0 * error)
}

/// Copies the elements in `ranges`.
fn copy(to: &mut Array, from: &Array, ranges: [Range<usize>; 2]) {
    for range in ranges {
        match (&mut *to, from) {
            (Array::F32(to), Array::F32(from)) => to[range.clone()].copy_from_slice(&from[range]),
            (Array::F64(to), Array::F64(from)) => to[range.clone()].copy_from_slice(&from[range]),
            // Both arrays are phases of one chunk.
            _ => unreachable!("phases of one chunk have one dtype"),
        }
    }
}

/// First element that is not within ±`limit`, NaN included.
fn outside(values: View<'_>, limit: f64) -> Option<usize> {
    macro_rules! first {
        ($values:expr, $limit:expr) => {{
            // Whole slices first: this loop has no branch and vectorises.
            let inside = $values.iter().fold(true, |ok, x| ok & (x.abs() <= $limit));
            if inside { None } else { $values.iter().position(|x| x.is_nan() || x.abs() > $limit) }
        }};
    }
    match values {
        View::F32(v) => first!(v, limit as f32),
        View::F64(v) => first!(v, limit),
    }
}

/// All replicas of a run. Replicas are addressed by their index in the batch the ensemble was made from.
pub struct Ensemble {
    pool: Arc<rayon::ThreadPool>,
    batch: Batch,
    chunks: Vec<Chunk>,
    /// Replicas in other processes, after those of the chunks.
    far: Option<Far>,
    /// Chunk of each replica, or after all chunks its process, and its place there.
    places: Vec<(u32, u32)>,
    guard: Guard,
}

impl Ensemble {
    /// Splits `state` into chunks for the threads of `pool`, gives each its fork of provider and propagator and brings
    /// forces to the present positions.
    ///
    /// # Errors
    /// Where batch, state, provider and propagator do not fit together.
    pub fn new(
        batch: Batch,
        state: &State,
        provider: &dyn ForceProvider,
        propagator: &dyn Propagator,
        noise: Noise,
        pool: Arc<rayon::ThreadPool>,
        guard: Guard,
    ) -> Result<Self> {
        check_sizes(&batch, state)?;
        provider.capabilities().check_batch(&batch, state.cells.is_some(), state.dtype())?;
        let mut chunks = Vec::new();
        let mut places = Vec::with_capacity(batch.replicas());
        let mut first = 0;
        for size in chunk_sizes(batch.replicas(), lanes_of(state.dtype()), pool.current_num_threads()) {
            places.extend((0..size).map(|b| (chunks.len() as u32, b as u32)));
            chunks.push(Chunk {
                shown: Shown::part(&batch, state, first..first + size, Fetch::ALL)?,
                provider: Provider::Host(provider.fork()?),
                propagator: propagator.fork(),
                noise,
                scale: Vec::new(),
                restores: vec![0; size],
                divergences: Vec::new(),
                failure: None,
            });
            first += size;
        }
        let mut ensemble = Ensemble { pool, batch, chunks, far: None, places, guard };
        ensemble.each(Chunk::prepare)?;
        Ok(ensemble)
    }

    /// All replicas on `device`, where they stay; forces are brought to the present positions. Accessors of what changes show
    /// what was [fetched](Ensemble::fetch) last.
    ///
    /// # Errors
    /// As [`Ensemble::new`]; where the provider has no kernels, or the propagator is no list of stages.
    pub fn on_device(
        batch: Batch,
        state: &State,
        provider: &dyn ForceProvider,
        propagator: &dyn Propagator,
        noise: Noise,
        pool: Arc<rayon::ThreadPool>,
        guard: Guard,
        device: &Device,
    ) -> Result<Self> {
        check_sizes(&batch, state)?;
        provider.capabilities().check_batch(&batch, state.cells.is_some(), state.dtype())?;
        if propagator.plan().is_none() {
            return invalid(format!("this propagator has no kernels for {}; use --device cpu", device.name()));
        }
        let replicas = batch.replicas();
        let chunk = Chunk {
            shown: Shown::part(&batch, state, 0..replicas, Fetch::default())?,
            provider: Provider::Device(Box::new(DeviceProvider::new(device, provider)?)),
            propagator: propagator.fork(),
            noise,
            scale: vec![1.0; replicas],
            restores: vec![0; replicas],
            divergences: Vec::new(),
            failure: None,
        };
        let places = (0..replicas).map(|b| (0, b as u32)).collect();
        let mut ensemble = Ensemble { pool, batch, chunks: vec![chunk], far: None, places, guard };
        ensemble.each(Chunk::prepare)?;
        Ok(ensemble)
    }

    /// All replicas of `batch` in `state`: the first of `shares` are those of this ensemble, the others go to the other processes
    /// of `messages`, which [serve](crate::ranks::serve) and are told `task`. Accessors of what changes there show what was
    /// [fetched](Ensemble::fetch) last.
    ///
    /// # Errors
    /// Where shares and replicas do not fit together, a process cannot begin, or a connection is lost.
    pub fn across(mut self, batch: Batch, state: &State, messages: Arc<dyn Messages>, shares: &[Range<usize>], task: &str) -> Result<Self> {
        check_sizes(&batch, state)?;
        let joined = shares.iter().try_fold(0, |end, share| (share.start == end && !share.is_empty()).then_some(share.end));
        if shares.len() != messages.ranks() || joined != Some(batch.replicas()) || shares[0].len() != self.replicas() {
            return invalid(format!("shares {shares:?} are not of {} replicas in {} processes", batch.replicas(), messages.ranks()));
        }
        let mut shown = Vec::with_capacity(shares.len() - 1);
        for share in &shares[1..] {
            let place = (self.chunks.len() + shown.len()) as u32;
            self.places.extend((0..share.len()).map(|b| (place, b as u32)));
            shown.push(Shown::part(&batch, state, share.clone(), Fetch::default())?);
        }
        self.far = Some(Far::begin(messages, shown, task)?);
        self.batch = batch;
        Ok(self)
    }

    /// Brings what `what` names here from the device or from other processes; nothing to do where the replicas are on the host.
    ///
    /// # Errors
    /// Where the device fails, or a connection is lost.
    pub fn fetch(&mut self, what: Fetch) -> Result<()> {
        if let Some(far) = &mut self.far {
            far.ask_for(what)?;
        }
        self.each(|chunk| chunk.fetch(what))
    }

    /// Does `work` on every chunk in parallel; of several failures, the one of the first replicas is returned. Does not
    /// allocate when called from a thread of the pool.
    fn each(&mut self, work: impl Fn(&mut Chunk) -> Result<()> + Sync) -> Result<()> {
        let one = |chunk: &mut Chunk| chunk.failure = work(chunk).err();
        match &mut self.chunks[..] {
            [only] => one(only),
            chunks => self.pool.install(|| chunks.par_iter_mut().with_max_len(1).for_each(one)),
        }
        match self.chunks.iter_mut().find_map(|c| c.failure.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Advances every replica by `steps`. At every multiple of [`Guard::check_every`] and at the end it looks for replicas
    /// that left every sensible range.
    ///
    /// # Errors
    /// Those of the provider; [`Error::Diverged`] after the guard's policy.
    pub fn run(&mut self, steps: u64) -> Result<()> {
        let guard = self.guard;
        if let Some(far) = &mut self.far {
            far.run(steps)?;
        }
        let near = self.each(|chunk| chunk.run(steps, &guard));
        let State { step, clock, .. } = self.chunks[0].shown.state;
        near.and(self.far.as_mut().map_or(Ok(()), |far| far.ran(step, clock)))
    }

    /// Fills what `want` names at the present positions.
    ///
    /// # Errors
    /// Those of the provider.
    pub fn evaluate(&mut self, want: Want) -> Result<()> {
        if let Some(far) = &mut self.far {
            far.evaluate(want)?;
        }
        let near = self.each(|chunk| chunk.evaluate(want));
        near.and(self.far.as_mut().map_or(Ok(()), |far| far.evaluated(want)))
    }

    /// Who is who.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Number of replicas.
    pub fn replicas(&self) -> usize {
        self.batch.replicas()
    }

    /// Trial moves of all replicas since the ensemble was made; `None` where every step counts.
    pub fn acceptance(&self) -> Option<Acceptance> {
        let near = self.chunks.iter().map(|chunk| chunk.propagator.acceptance());
        near.chain(self.far.iter().flat_map(Far::acceptance)).try_fold(Acceptance::default(), |sum, part| {
            let Acceptance { tried, accepted } = part?;
            Some(Acceptance { tried: sum.tried + tried, accepted: sum.accepted + accepted })
        })
    }

    /// Number of chunks in this process: at most one per thread.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Steps done since the start of the run.
    pub fn step(&self) -> u64 {
        self.chunks[0].shown.state.step
    }

    /// The element type of the phase.
    pub fn dtype(&self) -> DType {
        self.chunks[0].shown.state.dtype()
    }

    /// All chunks, then all other processes, in the order of their replicas.
    fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.chunks.iter().map(|c| &c.shown).chain(self.far.iter().flat_map(|f| &f.shown))
    }

    fn place(&self, replica: usize) -> (&Shown, usize) {
        let (place, b) = self.places[replica];
        let shown = match (self.chunks.get(place as usize), &self.far) {
            (None, Some(far)) => &far.shown[place as usize - self.chunks.len()],
            _ => &self.chunks[place as usize].shown,
        };
        (shown, b as usize)
    }

    /// The system of a replica.
    pub fn system(&self, replica: usize) -> &Arc<System> {
        self.batch.system(replica)
    }

    /// Positions `[N, 3]` of a replica in nm.
    pub fn positions(&self, replica: usize) -> View<'_> {
        let (shown, b) = self.place(replica);
        debug_assert!(shown.fresh.positions, "positions were not fetched");
        shown.state.phase.part(shown.ranges(b)[0].clone())
    }

    /// Velocities `[N, 3]` of a replica in nm/ps.
    pub fn velocities(&self, replica: usize) -> View<'_> {
        let (shown, b) = self.place(replica);
        debug_assert!(shown.fresh.velocities, "velocities were not fetched");
        shown.state.phase.part(shown.ranges(b)[1].clone())
    }

    /// Positions `[N, 3]` of a replica when it was last seen in range.
    pub fn last_good_positions(&self, replica: usize) -> View<'_> {
        let (shown, b) = self.place(replica);
        shown.good.part(shown.ranges(b)[0].clone())
    }

    /// Forces `[N, 3]` on a replica in kJ/mol/nm.
    pub fn forces(&self, replica: usize) -> View<'_> {
        let (shown, b) = self.place(replica);
        debug_assert!(shown.fresh.forces, "forces were not fetched");
        shown.out.forces.part(shown.batch.range3(b))
    }

    /// Periodic cell of a replica.
    pub fn cell(&self, replica: usize) -> Option<&crate::state::Cell> {
        let (shown, b) = self.place(replica);
        shown.state.cells.as_ref().map(|c| &c[b])
    }

    /// Potential energy in kJ/mol of a replica, as last evaluated.
    pub fn energy(&self, replica: usize) -> f64 {
        let (shown, b) = self.place(replica);
        shown.out.energy[b]
    }

    /// Kinetic energy in kJ/mol of a replica.
    pub fn kinetic_energy(&self, replica: usize) -> f64 {
        let (shown, b) = self.place(replica);
        debug_assert!(shown.fresh.velocities, "velocities were not fetched");
        shown.state.kinetic_energy(&shown.batch, b)
    }

    /// The thermostat's kT of a replica in kJ/mol.
    pub fn kt(&self, replica: usize) -> f64 {
        let (shown, b) = self.place(replica);
        shown.state.kt[b]
    }

    /// Sets the thermostat's kT of a replica and scales its velocities by `√(kT′/kT)`, which keeps the distribution of
    /// velocities canonical.
    pub fn set_kt(&mut self, replica: usize, kt: f64) {
        let (place, b) = (self.places[replica].0 as usize, self.places[replica].1 as usize);
        let chunks = self.chunks.len();
        let Some(chunk) = self.chunks.get_mut(place) else {
            if let Some(far) = &mut self.far {
                let shown = &mut far.shown[place - chunks];
                (shown.state.kt[b], shown.fresh.velocities) = (kt, false);
                far.kt[place - chunks].push((b, kt));
            }
            return;
        };
        let old = chunk.shown.state.kt[b];
        chunk.shown.state.kt[b] = kt;
        if old > 0.0 && kt != old {
            let factor = (kt / old).sqrt();
            if let Some(scale) = chunk.scale.get_mut(b) {
                *scale *= factor;
                chunk.shown.fresh.velocities = false;
                return;
            }
            for k in chunk.shown.ranges(b)[1].clone() {
                let v = chunk.shown.state.phase.get(k);
                chunk.shown.state.phase.set(k, v * factor);
            }
        }
    }

    /// True where a replica diverged and was frozen.
    pub fn is_frozen(&self, replica: usize) -> bool {
        let (shown, b) = self.place(replica);
        shown.frozen[b]
    }

    /// Replicas that were frozen or restored since the last call.
    pub fn take_divergences(&mut self) -> Vec<Divergence> {
        let near = self.chunks.iter_mut().flat_map(|c| c.divergences.drain(..));
        near.chain(self.far.iter_mut().flat_map(Far::take_divergences)).collect()
    }

    /// The state of all replicas together, as given to [`Ensemble::new`].
    pub fn state(&self) -> State {
        let first = &self.chunks[0].shown.state;
        let mut whole = State {
            phase: Array::zeros(first.dtype(), 6 * self.batch.atoms()),
            cells: first.cells.is_some().then(Vec::new),
            kt: Vec::with_capacity(self.replicas()),
            step: first.step,
            clock: first.clock,
        };
        let half = 3 * self.batch.atoms();
        let mut start = 0;
        for shown in self.shown() {
            debug_assert!(shown.fresh.positions && shown.fresh.velocities, "the phase was not fetched");
            let n = shown.state.phase.len() / 2;
            for k in 0..n {
                whole.phase.set(start + k, shown.state.phase.get(k));
                whole.phase.set(half + start + k, shown.state.phase.get(n + k));
            }
            start += n;
            whole.kt.extend(&shown.state.kt);
            if let (Some(whole), Some(cells)) = (&mut whole.cells, &shown.state.cells) {
                whole.extend(cells);
            }
        }
        whole
    }

    /// Replaces the state of all replicas; `frozen` replicas stay where they are from now on.
    ///
    /// # Errors
    /// Where the state is of another shape or precision.
    pub fn restore(&mut self, state: &State, frozen: &[bool]) -> Result<()> {
        check_sizes(&self.batch, state)?;
        if state.dtype() != self.dtype() || frozen.len() != self.replicas() {
            return invalid(format!("a state in {} does not fit a run in {}", state.dtype(), self.dtype()));
        }
        let mut first = 0;
        for chunk in &mut self.chunks {
            let which = first..first + chunk.shown.batch.replicas();
            first = which.end;
            chunk.shown.restore(&self.batch, state, which, frozen);
            chunk.restores.fill(0);
            chunk.scale.fill(1.0);
        }
        if let Some(far) = &mut self.far {
            for shown in &mut far.shown {
                let which = first..first + shown.batch.replicas();
                first = which.end;
                shown.restore(&self.batch, state, which, frozen);
            }
            far.restore()?;
        }
        self.each(Chunk::prepare)
    }
}

fn check_sizes(batch: &Batch, state: &State) -> Result<()> {
    let (a, b) = (batch.atoms(), batch.replicas());
    if state.phase.len() != 6 * a || state.kt.len() != b || state.cells.as_ref().is_some_and(|c| c.len() != b) {
        return invalid(format!(
            "a state of {} numbers and {} temperatures does not fit {b} replicas of {a} atoms in all",
            state.phase.len(),
            state.kt.len()
        ));
    }
    Ok(())
}

/// Replicas in one vector.
pub(crate) fn lanes_of(dtype: DType) -> usize {
    match dtype {
        DType::F32 => simd::lanes::<f32>(),
        DType::F64 => simd::lanes::<f64>(),
    }
}

/// Replicas per chunk. With enough replicas to give every thread whole vectors of them, chunks are multiples of the lanes,
/// shared out as evenly as possible; with fewer, every thread gets its share of replicas even if that leaves lanes empty,
/// since a half-empty vector costs no more time than a full one on one thread.
pub(crate) fn chunk_sizes(replicas: usize, lanes: usize, threads: usize) -> Vec<usize> {
    let groups = replicas.div_ceil(lanes);
    let threads = threads.max(1);
    if groups >= threads {
        let bound = |i: usize| (groups * i / threads * lanes).min(replicas);
        (0..threads).map(|i| bound(i + 1) - bound(i)).collect()
    } else {
        let parts = replicas.min(threads);
        (0..parts).map(|i| replicas * (i + 1) / parts - replicas * i / parts).collect()
    }
}

#[cfg(test)]
pub(crate) mod toys {
    //! Potentials for tests of ensembles: one as a lane kernel with fused stepping, one as a plain provider.

    use super::*;
    use crate::force::Capabilities;
    use crate::lane::LaneKernel;
    use crate::simd::Lanes;
    use crate::units::UnitSystem;

    /// `h (x² − 1)² + ½ k r²` on every particle, in reduced units.
    pub(crate) struct Well {
        pub(crate) barrier: f64,
        pub(crate) stiffness: f64,
        capabilities: Capabilities,
    }

    impl Well {
        pub(crate) fn new(barrier: f64, stiffness: f64) -> Self {
            let capabilities = Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("well") };
            Well { barrier, stiffness, capabilities }
        }

        pub(crate) fn energy(&self, x: f64) -> f64 {
            self.barrier * (x * x - 1.0).powi(2) + 0.5 * self.stiffness * x * x
        }
    }

    impl LaneKernel for Well {
        const ATOM_LANES: bool = false;
        fn capabilities(&self) -> &Capabilities {
            &self.capabilities
        }
        fn check(&self, _: &System) -> Result<()> {
            Ok(())
        }
        #[inline(always)]
        fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
            let (h, k) = (V::lit(t, self.barrier), V::lit(t, self.stiffness));
            let mut energy = V::zero(t);
            for (i, (&x, f)) in x.iter().zip(f.iter_mut()).enumerate() {
                let h = if i % 3 == 0 { h } else { V::zero(t) };
                let d = x * x - V::lit(t, 1.0);
                *f = -(x * (k + V::lit(t, 4.0) * h * d));
                if ENERGY {
                    energy += h * d * d + V::lit(t, 0.5) * k * x * x;
                }
            }
            energy
        }
    }

    /// A provider without lanes or fused stepping: harmonic well whose stiffness depends on the atom.
    pub(crate) struct Plain(pub(crate) Capabilities);

    impl ForceProvider for Plain {
        fn capabilities(&self) -> &Capabilities {
            &self.0
        }
        fn prepare(&mut self, _: &Batch, _: DType) -> Result<()> {
            Ok(())
        }
        fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
            for b in 0..input.batch.replicas() {
                out.energy[b] = 0.0;
                for (i, k) in input.batch.range3(b).enumerate() {
                    let (x, stiffness) = (input.positions.get(k), 1.0 + (i / 3) as f64);
                    out.forces.set(k, -stiffness * x);
                    out.energy[b] += 0.5 * stiffness * x * x;
                }
            }
            Ok(())
        }
        fn fork(&self) -> Result<Box<dyn ForceProvider>> {
            Ok(Box::new(Plain(self.0.clone())))
        }
    }

    pub(crate) fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
        Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::toys::{Plain, Well, pool};
    use super::*;
    use crate::dynamics::{Dynamics, DynamicsSpec, draw_velocities};
    use crate::force::Capabilities;
    use crate::lane::LaneProvider;
    use crate::units::{Quantity, UnitSystem};

    fn spec(dt: f64) -> DynamicsSpec {
        DynamicsSpec::Baoab { dt: Quantity::bare(dt), friction: Quantity::bare(1.0) }
    }

    fn plain() -> Plain {
        Plain(Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("plain") })
    }

    /// `sizes[b]` atoms in replica `b`.
    fn start(sizes: &[usize], dtype: DType) -> (Batch, State) {
        let systems: Vec<Arc<System>> = (1..=3).map(|n| Arc::new(System::particles(format!("{n}"), n, n as f64))).collect();
        let batch = Batch::new(sizes.iter().map(|&n| systems[n - 1].clone()).collect(), (0..sizes.len() as u32).map(|b| b + 100).collect())
            .unwrap();
        let x: Vec<f64> = (0..3 * batch.atoms()).map(|k| 0.1 + 0.01 * k as f64).collect();
        let mut state = State::at_rest(&batch, &x, dtype).unwrap();
        state.kt.fill(1.5);
        draw_velocities(&batch, &mut state, Noise::new(7), false);
        (batch, state)
    }

    fn ensemble(provider: &dyn ForceProvider, sizes: &[usize], dtype: DType, dt: f64, threads: usize, policy: OnDivergence) -> Ensemble {
        let (batch, state) = start(sizes, dtype);
        let dynamics = Dynamics::new(&spec(dt), UnitSystem::Reduced, false).unwrap();
        let guard = Guard { policy, ..Guard::default() };
        Ensemble::new(batch, &state, provider, &dynamics, Noise::new(7), pool(threads), guard).unwrap()
    }

    #[test]
    fn chunks_are_balanced_multiples_of_lanes() {
        assert_eq!(chunk_sizes(64, 16, 4), [16; 4]);
        assert_eq!(chunk_sizes(128, 16, 4), [32; 4]);
        assert_eq!(chunk_sizes(100, 16, 4), [16, 32, 32, 20]);
        assert_eq!(chunk_sizes(17, 16, 1), [17]);
        assert_eq!(chunk_sizes(16, 16, 4), [4; 4]);
        assert_eq!(chunk_sizes(2, 16, 4), [1; 2]);
        for (replicas, lanes, threads) in [(1, 1, 1), (7, 4, 3), (1000, 8, 7), (33, 16, 2)] {
            let sizes = chunk_sizes(replicas, lanes, threads);
            assert_eq!(sizes.iter().sum::<usize>(), replicas);
            assert!(sizes.len() <= threads && sizes.iter().all(|&s| s > 0));
        }
    }

    #[test]
    fn trajectories_do_not_depend_on_threads_or_blocks() {
        let uniform = vec![2; 37];
        let ragged: Vec<usize> = (0..37).map(|b| 1 + b % 3).collect();
        let well = LaneProvider::new(Well::new(2.0, 0.5));
        let providers: [&dyn ForceProvider; 2] = [&well, &plain()];
        for dtype in [DType::F32, DType::F64] {
            for sizes in [&uniform, &ragged] {
                for provider in providers {
                    let run = |threads: usize, blocks: &[u64]| {
                        let mut e = ensemble(provider, sizes, dtype, 0.05, threads, OnDivergence::Stop);
                        for &k in blocks {
                            e.run(k).unwrap();
                        }
                        e.evaluate(Want::ENERGY).unwrap();
                        let energies: Vec<f64> = (0..e.replicas()).map(|r| e.energy(r)).collect();
                        (e.state(), energies)
                    };
                    let one = run(1, &[40]);
                    assert_eq!(one, run(4, &[40]));
                    assert_eq!(one, run(3, &[1, 13, 26]));
                    assert_eq!(one, run(40, &[20, 20]));
                }
            }
        }
    }

    #[test]
    fn state_round_trips_and_continues_bitwise() {
        let sizes: Vec<usize> = (0..9).map(|b| 1 + b % 3).collect();
        let provider = LaneProvider::new(Well::new(2.0, 0.5));
        let mut whole = ensemble(&provider, &sizes, DType::F32, 0.05, 2, OnDivergence::Stop);
        whole.run(10).unwrap();
        let middle = whole.state();
        whole.run(15).unwrap();
        let mut resumed = ensemble(&provider, &sizes, DType::F32, 0.05, 3, OnDivergence::Stop);
        resumed.restore(&middle, &[false; 9]).unwrap();
        assert_eq!(resumed.state(), middle);
        resumed.run(15).unwrap();
        assert_eq!(resumed.state(), whole.state());
        assert!(resumed.restore(&start(&[1], DType::F32).1, &[false; 9]).is_err());
        assert!(resumed.restore(&start(&sizes, DType::F64).1, &[false; 9]).is_err());
    }

    #[test]
    fn replicas_are_addressed_by_index() {
        let mut e = ensemble(&plain(), &[1, 2, 3, 1, 2], DType::F64, 0.05, 3, OnDivergence::Stop);
        let state = e.state();
        for r in 0..5 {
            let range = e.batch().range3(r);
            assert_eq!(e.positions(r).to_f64(), state.phase.part(range.clone()).to_f64());
            assert_eq!(e.velocities(r).to_f64(), state.velocities().part(range).to_f64());
            assert_eq!(e.kinetic_energy(r), state.kinetic_energy(e.batch(), r));
        }
        let before = e.kinetic_energy(2);
        e.set_kt(2, 6.0);
        assert!((e.kinetic_energy(2) / before - 4.0).abs() < 1e-12);
        assert_eq!((e.kt(1), e.kt(2)), (1.5, 6.0));
    }

    #[test]
    fn divergence_is_found_and_handled() {
        // ω dt > 2: every replica explodes within some steps.
        let sizes = [1, 2, 3];
        let mut e = ensemble(&plain(), &sizes, DType::F64, 3.0, 2, OnDivergence::Stop);
        let error = (0..200).find_map(|_| e.run(5).err()).expect("diverges");
        let message = error.to_string();
        assert!(matches!(error, Error::Diverged { replica: 100..=102, step: 1..=1000, .. }), "{message}");
        assert!(message.contains("of atom") && message.contains("smaller time step"), "{message}");
        assert!(e.last_good_positions(2).to_f64().iter().all(|x| x.abs() <= 1e6));

        let mut e = ensemble(&plain(), &sizes, DType::F64, 3.0, 2, OnDivergence::Freeze);
        for _ in 0..40 {
            e.run(5).unwrap();
        }
        assert!((0..3).all(|r| e.is_frozen(r)));
        assert_eq!(e.take_divergences().len(), 3);
        assert!(e.state().phase.to_f64().iter().all(|x| x.abs() <= 1e6));
        assert_eq!(e.step(), 200);

        let mut e = ensemble(&plain(), &sizes, DType::F64, 3.0, 2, OnDivergence::Restore);
        let error = (0..1000).find_map(|_| e.run(50).err()).expect("gives up in the end");
        assert!(matches!(error, Error::Diverged { .. }));
        assert!(e.take_divergences().len() as u32 >= MOST_RESTORES);
    }
}
