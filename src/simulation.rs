//! The run loop: the only one, for constant temperature and for replica exchange.
//!
//! Replicas advance in blocks without coming back here; a block ends where something is due (an exchange, a row of the log,
//! a frame, a checkpoint), or after about a tenth of a second, so that signals are heard. Where blocks end changes no bit.

mod bias;
mod free_energies;
mod merge;
mod outputs;
mod ranks;
mod start;

use crate::analysis::statistics::block_average_of;
use crate::bridge::{Plumed, PlumedSettings};
use crate::checkpoint::{Checkpoint, FILE, Fnv, Header};
use crate::config::{RunConfig, RunSettings, Sampling, Subject};
use crate::error::{Error, Result, usage};
use crate::io::{Frame, subsystem, write_atomically, write_frames};
use crate::ranks::Ranks;
use crate::report::free_energy::FreeEnergyAccumulator;
use crate::report::log::{Row, read_series};
use crate::report::progress::Progress;
use crate::report::summary::{DivergenceSummary, ExchangeSummary, OutsideSummary, PairSummary, SetSummary, Summary, plural};
use crate::runtime::{Outcome, Runtime, print};
use crate::signals::Interrupt;
use bias::Biasing;
pub use merge::merge;
use outputs::{Set, Written};
use scorefield_integrators::dynamics::kinetic_temperature;
use scorefield_integrators::ranks::Messages;
use scorefield_integrators::{
    Batch, Clock, DType, Device, DeviceProvider, Ensemble, Exchange, Fetch, ForceProvider, Noise, State, UnitSystem, Want, simd,
};
use scorefield_models::bias::{Bias, Biased};
use scorefield_models::scoremd::domain::Domain;
use start::Loaded;
pub(crate) use start::own_system;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Resolved settings in the output directory; a run can be repeated with them.
const CONFIG_FILE: &str = "config.toml";
/// Summary in the output directory.
pub(crate) const SUMMARY_FILE: &str = "summary.json";
/// First start structure in the output directory, for programs that need one to read the trajectory.
const STRUCTURE_FILE: &str = "structure.pdb";
/// Signals and progress are looked at about this often.
const BLOCK: Duration = Duration::from_millis(100);

/// A run, ready to go on.
pub struct Simulation {
    config: RunConfig,
    header: Header,
    ensemble: Ensemble,
    /// Where the replicas are, unless on the host.
    device: Option<Device>,
    exchange: Option<Exchange>,
    sets: Vec<Set>,
    /// Atoms of each replica that the trajectory holds, where not all.
    written: Option<Written>,
    /// Collective variables and biases.
    biasing: Option<Biasing>,
    /// Counts φ and ψ at the lowest temperature.
    free_energy: Option<FreeEnergyAccumulator>,
    /// Where the model was trained, and what was logged outside of it.
    domain: Option<Domain>,
    outside: OutsideSummary,
    /// Part of the trial moves that parts of the run accepted, where it was joined from such.
    acceptance: Option<f64>,
    /// Positions of one replica.
    scratch: Vec<f64>,
    /// Degrees of freedom per replica.
    freedom: Vec<usize>,
    model: String,
    has_energy: bool,
    divergences: Vec<DivergenceSummary>,
    threads: usize,
    processes: usize,
    stepping: Duration,
    stepped: u64,
}

/// Runs `settings` from the start, or goes on with the run that they resume, and prints what came out.
///
/// # Errors
/// Where settings, input or output are wrong, or the run fails.
pub fn command(settings: RunSettings, runtime: &Runtime) -> Result<Outcome> {
    let interrupt = Interrupt::install()?;
    let ranks = settings.run().mpi.unwrap_or(false).then(Ranks::join).transpose()?;
    let others = ranks.as_ref().map(Ranks::messages);
    if let Some(messages) = others.filter(|m| m.rank() > 0) {
        return ranks::assist(&**messages, runtime);
    }
    let summary_file = settings.run().summary.clone();
    let mut simulation = match settings.run().resume.clone() {
        Some(directory) => Simulation::resume(settings, &directory, others, runtime)?,
        None => Simulation::begin(settings, others, runtime)?,
    };
    simulation.describe(runtime);
    // A process that was ended after its last step may not have come to its summary.
    if simulation.step() >= simulation.config.steps && simulation.config.out.join(SUMMARY_FILE).exists() {
        runtime.say(format_args!(
            "the run has its {} steps already; to make it longer, resume it with a larger --steps",
            simulation.config.steps
        ));
        return Ok(Outcome::Done);
    }
    // From inside the pool, sharing out work needs neither locks nor memory.
    let pool = runtime.pool.clone();
    match pool.install(|| simulation.run(&interrupt, runtime))? {
        Outcome::Interrupted => {
            runtime.warn(format_args!(
                "interrupted at step {} of {}; go on with: scorefield {} --resume {}",
                simulation.step(),
                simulation.config.steps,
                simulation.header.settings.command(),
                simulation.config.out.display()
            ));
            Ok(Outcome::Interrupted)
        }
        Outcome::Done => {
            simulation.finish(summary_file.as_deref(), runtime)?;
            Ok(Outcome::Done)
        }
    }
}

impl Simulation {
    /// A new run, in several processes where there are `others`.
    ///
    /// # Errors
    /// Where settings or input are wrong, or the output directory holds another run.
    pub fn begin(mut settings: RunSettings, others: Option<&Arc<dyn Messages>>, runtime: &Runtime) -> Result<Self> {
        let overwrite = settings.run().overwrite == Some(true);
        settings.choose_model();
        let loaded = start::load(settings.run(), runtime.quiet)?;
        settings.complete(&loaded.subject)?;
        let (config, warnings) = settings.resolve(&loaded.subject)?;
        warnings.iter().for_each(|w| runtime.warn(w));
        let device = open_device(&config, &*loaded.provider)?;
        let all = start::share(&config, loaded.frames.len())?.total;
        if let Some(windows) = config.bias.iter().map(|b| b.windows()).max().filter(|&w| w > all) {
            return usage(format!("--bias umbrella:… has {windows} windows, but there are {all} replicas; use --replicas {windows}"));
        }
        // What is wrong with biases is said before anything is written.
        start::bias(&config, 0..1)?;
        prepare_directory(&config.out, overwrite)?;
        let dtype = runtime.dtype.unwrap_or_default();
        let mut header = Header::new(settings, runtime.seed, loaded.inputs.clone());
        if let Some(device) = &device {
            header.device = device.kind().to_owned();
        }
        let mut simulation = Self::build(config, header, loaded, dtype, device, others, runtime, |config, batch, written| {
            outputs::open(config, batch, written, overwrite, None)
        })?;
        if let Some(biasing) = &mut simulation.biasing {
            biasing.open(&simulation.config.out, overwrite, None)?;
        }
        simulation.write_config()?;
        simulation.write_structure(runtime);
        simulation.log()?;
        simulation.act_on_bias()?;
        simulation.save()?;
        Ok(simulation)
    }

    /// The run in `directory`, from its checkpoint on; in several processes where there are `others`, now as then or not.
    ///
    /// # Errors
    /// Where there is no checkpoint, where bits would differ, or where flags ask for another run.
    pub fn resume(flags: RunSettings, directory: &Path, others: Option<&Arc<dyn Messages>>, runtime: &Runtime) -> Result<Self> {
        let mut saved = Checkpoint::read(directory)?;
        if runtime.global.isa.is_none() {
            // An instruction set that is lacking shows in the check below.
            let _ = simd::choose_isa(saved.header.isa);
        }
        saved.check_machine(directory)?;
        check_global(&saved, runtime)?;
        let mut settings = merge_settings(&saved.header.settings, flags)?;
        settings.run_mut().out = Some(directory.to_owned());
        let loaded = start::load(settings.run(), runtime.quiet)?;
        settings.complete(&loaded.subject)?;
        let (config, warnings) = settings.resolve(&loaded.subject)?;
        warnings.iter().for_each(|w| runtime.warn(w));
        if config.steps < saved.header.step {
            return usage(format!("the run has {} steps already; --steps is the total, so give a larger one", saved.header.step));
        }
        let device = open_device(&config, &*loaded.provider)?;
        saved.check_device(directory, device.as_ref())?;
        let mut header = Header { settings, ..saved.header.clone() };
        header.version = env!("CARGO_PKG_VERSION").into();
        let files = std::mem::take(&mut saved.header.files);
        let tables = std::mem::take(&mut saved.header.tables);
        let dtype = saved.dtype();
        let remote = loaded.remote || config.plumed.is_some();
        let mut simulation = Self::build(config, header, loaded, dtype, device, others, runtime, |_, _, _| Ok(Vec::new()))?;
        simulation.restore(saved, directory, remote, runtime)?;
        // Files are cut only after everything else was found to fit.
        simulation.sets = outputs::open(&simulation.config, simulation.ensemble.batch(), simulation.written.as_ref(), false, Some(&files))?;
        if let Some(biasing) = &mut simulation.biasing {
            biasing.open(&simulation.config.out, false, Some(&tables))?;
        }
        simulation.update_members();
        simulation.write_config()?;
        if simulation.step() < simulation.config.steps {
            remove(&directory.join(SUMMARY_FILE))?;
        }
        Ok(simulation)
    }

    fn build(
        config: RunConfig,
        mut header: Header,
        mut loaded: Loaded,
        dtype: DType,
        device: Option<Device>,
        others: Option<&Arc<dyn Messages>>,
        runtime: &Runtime,
        open: impl FnOnce(&RunConfig, &Batch, Option<&Written>) -> Result<Vec<Set>>,
    ) -> Result<Self> {
        let fresh = header.step == 0;
        start::prepare_masses(&mut loaded.frames, &config)?;
        // Before anything moves, so that a resumed run chooses the same atoms.
        let written = start::written_atoms(&loaded.frames, &config)?;
        if config.relax && fresh {
            start::relax(&mut loaded.frames, &config, &*loaded.provider, dtype, &runtime.pool, &mut loaded.warnings)?;
            loaded.starts.clear();
        }
        loaded.warnings.iter().for_each(|w| runtime.warn(w));
        header.replicas = start::share(&config, loaded.frames.len())?.total;
        let (batch, state) = start::replicate(&loaded.frames, &loaded.starts, &config, dtype, header.seed)?;
        let noise = Noise::new(header.seed);
        let sets = open(&config, &batch, written.as_ref())?;
        let freedom = batch.systems().iter().map(|s| start::degrees_of_freedom(s, &config)).collect();
        let free_energy = free_energy(&config, &batch, header.replicas);
        let (first, here) = (batch.id(0) as usize, batch.replicas());
        let bias = start::bias(&config, first..first + here)?.map(Arc::new);
        let provider = biased(loaded.provider, bias.as_ref(), &config)?;
        let provider: Box<dyn ForceProvider> = match &config.plumed {
            Some(input) => {
                let settings = PlumedSettings {
                    input: input.clone(),
                    directory: config.out.clone(),
                    dt: config.dt,
                    kt: config.kt(config.sampling.temperatures()[0]),
                    units: config.units,
                    replicas: header.replicas,
                    begin: header.step,
                };
                Box::new(Plumed::new(provider, settings).map_err(|e| Error::Usage(format!("--plumed: {e}")))?)
            }
            None => provider,
        };
        let biasing = bias.map(|bias| Biasing::new(bias, &config));
        let ensemble = match others {
            None => ensemble(batch, &state, &*provider, &config, noise, device.as_ref(), runtime)?,
            Some(others) => {
                ranks::check(&config, loaded.remote)?;
                let near = |batch, state: &State| ensemble(batch, state, &*provider, &config, noise, device.as_ref(), runtime);
                ranks::share_out(batch, &state, near, &header, others)?
            }
        };
        let exchange = match &config.sampling {
            Sampling::Constant { .. } => None,
            Sampling::Exchange { temperatures, .. } => {
                let (kt, n) = (temperatures.iter().map(|&t| config.kt(t)).collect(), temperatures.len());
                Some(Exchange::new(kt, here / n, noise)?.starting_at((first / n) as u32))
            }
        };
        let Subject { name, energy, .. } = loaded.subject;
        Ok(Simulation {
            config,
            header,
            ensemble,
            device,
            exchange,
            sets,
            written,
            biasing,
            free_energy,
            domain: loaded.domain,
            outside: OutsideSummary::default(),
            acceptance: None,
            scratch: Vec::new(),
            freedom,
            model: name,
            has_energy: energy,
            divergences: Vec::new(),
            threads: runtime.threads(),
            processes: others.map_or(1, |m| m.ranks()),
            stepping: Duration::ZERO,
            stepped: 0,
        })
    }

    fn restore(&mut self, saved: Checkpoint, directory: &Path, remote: bool, runtime: &Runtime) -> Result<()> {
        let fail = |what: String| Error::Checkpoint { path: directory.join(FILE), what };
        self.restore_hills(&saved.hills())?;
        self.restore_state(saved.state, &saved.frozen)?;
        self.check_forces(0..self.ensemble.replicas(), &saved.header, directory, remote, runtime)?;
        match (&mut self.exchange, saved.header.exchange) {
            (Some(exchange), Some(state)) => exchange.restore(state)?,
            (None, None) => {}
            _ => return Err(fail("it is of the other command; resume it with that one".into())),
        }
        match &mut self.free_energy {
            Some(counts) if !saved.free_energy.is_empty() => counts.restore(&saved.free_energy)?,
            _ => {}
        }
        Ok(())
    }

    /// Lays hills anew, before forces are evaluated.
    fn restore_hills(&mut self, hills: &[Vec<Vec<f64>>]) -> Result<()> {
        let Some(biasing) = &self.biasing else { return Ok(()) };
        let kt = self.config.kt(self.config.sampling.temperatures()[0]);
        biasing.bias.restore(hills, kt).map_err(|e| Error::Checkpoint { path: self.config.out.join(FILE), what: e.to_string() })
    }

    /// Writes variables and adds hills, where they are due.
    fn act_on_bias(&mut self) -> Result<()> {
        let time = self.time();
        match &mut self.biasing {
            Some(biasing) => biasing.act(&mut self.ensemble, time, self.has_energy),
            None => Ok(()),
        }
    }

    /// Puts all replicas where they were, and evaluates their forces.
    fn restore_state(&mut self, mut state: State, frozen: &[bool]) -> Result<()> {
        state.clock = Clock::Physical { time: state.step as f64 * self.config.dt };
        // At step 0 the state was made anew just now; bringing it onto its constraints twice might change its last bits.
        if state.step > 0 {
            self.ensemble.restore(&state, frozen)?;
        }
        Ok(())
    }

    /// Checks that `replicas` feel the forces that they felt when `saved` was written.
    fn check_forces(&self, replicas: Range<usize>, saved: &Header, directory: &Path, remote: bool, runtime: &Runtime) -> Result<()> {
        let same = self.forces_hash(replicas) == saved.forces;
        if !same && remote {
            // Other programs may have states of their own, such as the last wave function or hills in files.
            runtime.warn(
                "other programs give other forces than when the run was interrupted, if only in the last digits; it goes on with these",
            );
        } else if !same {
            let what = format!(
                "{} gives other forces than when the run was interrupted: the model, its files or this program changed (the run was made with version {})",
                self.model, saved.version
            );
            return Err(Error::Checkpoint { path: directory.join(FILE), what });
        }
        Ok(())
    }

    /// Steps done since the start of the run.
    pub fn step(&self) -> u64 {
        self.ensemble.step()
    }

    /// One line about what is going to run.
    fn describe(&self, runtime: &Runtime) {
        let batch = self.ensemble.batch();
        let temperatures = self.config.sampling.temperatures();
        let unit = if self.config.units == UnitSystem::Si { " K" } else { "" };
        let at = match (temperatures.first(), temperatures.last()) {
            (Some(low), Some(high)) if low < high => format!("{low}{unit} to {high}{unit}"),
            (Some(t), _) => format!("{t}{unit}"),
            _ => String::new(),
        };
        let each = if self.processes > 1 { format!(" in each of {} processes", self.processes) } else { String::new() };
        let place = match &self.device {
            None => format!("{}, {}, {}{each}", simd::current_isa(), self.ensemble.dtype(), plural(self.threads, "thread")),
            Some(device) => format!("{}, {}{each}", device.name(), self.ensemble.dtype()),
        };
        let all = self.header.replicas;
        let of = if all > batch.replicas() { format!(" (from number {} of {all})", batch.id(0)) } else { String::new() };
        runtime.say(format_args!(
            "{}{of} of {} ({}) under {} at {at}; {place}, seed {}; writing to {}",
            plural(batch.replicas(), "replica"),
            batch.system(0).name,
            plural(batch.system(0).len(), "atom"),
            self.model,
            self.header.seed,
            self.config.out.display()
        ));
    }

    /// Advances to the last step, or until interrupted; leaves a checkpoint either way.
    ///
    /// # Errors
    /// Where a replica diverges, the provider fails or the disk refuses.
    pub fn run(&mut self, interrupt: &Interrupt, runtime: &Runtime) -> Result<Outcome> {
        let physical = (self.config.units == UnitSystem::Si).then_some(self.config.dt);
        let replicas = self.ensemble.replicas();
        let mut progress = Progress::new(self.config.steps, self.step(), replicas, physical, runtime.quiet);
        let (begin, first) = (Instant::now(), self.step());
        let result = self.advance(interrupt, &mut progress, runtime);
        self.stepping = begin.elapsed();
        self.stepped = self.step() - first;
        progress.finish();
        if let Err(Error::Engine(scorefield_integrators::Error::Diverged { replica, .. })) = &result {
            self.save_last_good(*replica, runtime);
        }
        result
    }

    fn advance(&mut self, interrupt: &Interrupt, progress: &mut Progress, runtime: &Runtime) -> Result<Outcome> {
        let steps = self.config.steps;
        let mut saved = Instant::now();
        let mut checks = 1;
        loop {
            let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
            let step = self.step();
            if interrupt.requested() || step >= steps {
                self.save()?;
                return Ok(if step >= steps { Outcome::Done } else { Outcome::Interrupted });
            }
            let next = self.next_stop(step, checks);
            let begin = Instant::now();
            self.ensemble.run(next - step)?;
            // Half to double the wanted time is near enough.
            let elapsed = begin.elapsed();
            checks = if elapsed < BLOCK / 2 {
                checks * 2
            } else if elapsed > BLOCK * 2 {
                (checks / 2).max(1)
            } else {
                checks
            }
            .min(1 << 20);
            self.note_divergences(runtime);
            if let (Sampling::Exchange { every, .. }, Some(exchange)) = (&self.config.sampling, &mut self.exchange)
                && due(*every, next)
            {
                exchange.attempt(&mut self.ensemble)?;
                self.update_members();
            }
            if due(self.config.log_every, next) {
                self.log()?;
            }
            if due(self.config.trajectory_every, next) {
                let time = self.time();
                self.ensemble.fetch(Fetch { positions: true, velocities: outputs::with_velocities(&self.config), forces: false })?;
                for set in &mut self.sets {
                    set.write_frames(&self.ensemble, time)?;
                }
            }
            self.act_on_bias()?;
            let minutes = self.config.checkpoint_minutes;
            let timed = minutes > 0.0 && saved.elapsed().as_secs_f64() >= 60.0 * minutes;
            if next < steps && (due(self.config.checkpoint_every, next) || timed) {
                self.save()?;
                saved = Instant::now();
            }
            progress.update(next, steps);
        }
    }

    /// Where the block that begins at `step` ends: at the next thing that is due, or after `checks` looks for divergence.
    fn next_stop(&self, step: u64, checks: u64) -> u64 {
        let after = |every: u64| step.checked_div(every).map_or(u64::MAX, |done| (done + 1).saturating_mul(every));
        let config = &self.config;
        let exchange = match config.sampling {
            Sampling::Constant { .. } => 0,
            Sampling::Exchange { every, .. } => every,
        };
        let check = config.guard.check_every;
        let block = (step / check).saturating_add(checks).saturating_mul(check);
        let bias = self.biasing.as_ref().map_or(u64::MAX, |b| b.next(step));
        [
            config.steps,
            block,
            bias,
            after(exchange),
            after(config.log_every),
            after(config.trajectory_every),
            after(config.checkpoint_every),
        ]
        .into_iter()
        .fold(u64::MAX, u64::min)
    }

    fn update_members(&mut self) {
        if let Some(exchange) = &self.exchange {
            for (rung, set) in self.sets.iter_mut().enumerate() {
                set.update_members(rung, exchange);
            }
        }
    }

    /// Time since the start of the run in ps.
    fn time(&self) -> f64 {
        self.step() as f64 * self.config.dt
    }

    /// Writes a row per replica and counts torsions.
    fn log(&mut self) -> Result<()> {
        if self.config.log_every == 0 {
            return Ok(());
        }
        if self.has_energy {
            self.ensemble.evaluate(Want::ENERGY)?;
        }
        let (step, time) = (self.step(), self.time());
        let moving = self.config.integrator.has_velocities();
        self.ensemble.fetch(Fetch { velocities: moving, positions: self.free_energy.is_some() || self.domain.is_some(), forces: false })?;
        let (ensemble, freedom, units) = (&self.ensemble, &self.freedom, self.config.units);
        for set in &mut self.sets {
            let first = set.first;
            set.write_log(ensemble, |replica| {
                let kinetic = moving.then(|| ensemble.kinetic_energy(replica));
                Row {
                    step,
                    time,
                    replica: first + replica,
                    potential: self.has_energy.then(|| ensemble.energy(replica)),
                    kinetic,
                    temperature: kinetic.map(|k| kinetic_temperature(k, freedom[replica], units)),
                }
            })?;
        }
        if let Some(domain) = &self.domain {
            for set in &self.sets {
                for &replica in set.members.iter().filter(|r| !ensemble.is_frozen(**r)) {
                    let view = ensemble.positions(replica);
                    self.scratch.clear();
                    self.scratch.extend((0..view.len()).map(|k| view.get(k)));
                    self.outside.note(step, set.first + replica, domain.check(&self.scratch));
                }
            }
        }
        // All replicas begin at one structure: the first row says nothing about the ensemble.
        if let (Some(counts), Some(set)) = (&mut self.free_energy, self.sets.first())
            && step > 0
        {
            for (slot, &replica) in set.members.iter().enumerate().filter(|(_, r)| !ensemble.is_frozen(**r)) {
                let view = ensemble.positions(replica);
                self.scratch.clear();
                self.scratch.extend((0..view.len()).map(|k| view.get(k)));
                counts.add(step / self.config.log_every - 1, set.first_member + slot, &self.scratch);
            }
        }
        Ok(())
    }

    fn note_divergences(&mut self, runtime: &Runtime) {
        for d in self.ensemble.take_divergences() {
            let did =
                if self.ensemble.is_frozen((d.replica - self.ensemble.batch().id(0)) as usize) { "is frozen" } else { "goes back to" };
            runtime.warn(format_args!(
                "replica {} left every sensible range at step {} ({}); it {did} its last good state",
                d.replica, d.step, d.what
            ));
            self.divergences.push(DivergenceSummary { replica: d.replica, step: d.step, what: d.what });
        }
    }

    fn forces_hash(&self, mut replicas: Range<usize>) -> String {
        let mut hash = Fnv::default();
        replicas.by_ref().for_each(|r| hash.update_view(self.ensemble.forces(r)));
        hash.finish()
    }

    /// Brings all files to the disk, then replaces the checkpoint.
    fn save(&mut self) -> Result<()> {
        self.header.files = self.sets.iter_mut().map(Set::flush).collect::<Result<_>>()?;
        self.header.tables = self.biasing.as_mut().map_or(Ok(Vec::new()), Biasing::flush)?;
        self.write_checkpoint()
    }

    fn write_checkpoint(&mut self) -> Result<()> {
        self.ensemble.fetch(Fetch::ALL)?;
        self.header.step = self.step();
        self.header.forces = self.forces_hash(0..self.ensemble.replicas());
        self.header.exchange = self.exchange.as_ref().map(|e| e.state().clone());
        let hills = self.biasing.as_ref().map(|b| b.bias.state()).unwrap_or_default();
        self.header.hills = hills.iter().map(|term| term.iter().map(Vec::len).collect()).collect();
        let checkpoint = Checkpoint {
            hills: hills.into_iter().flatten().flatten().collect(),
            header: self.header.clone(),
            state: self.ensemble.state(),
            frozen: (0..self.ensemble.replicas()).map(|r| self.ensemble.is_frozen(r)).collect(),
            free_energy: self.free_energy.as_ref().map(FreeEnergyAccumulator::state).unwrap_or_default(),
        };
        checkpoint.write(&self.config.out)
    }

    /// Writes where a replica was before it diverged, for whoever looks for the cause.
    fn save_last_good(&self, id: u32, runtime: &Runtime) {
        let Some(replica) = self.ensemble.batch().ids().iter().position(|&r| r == id) else { return };
        let path = self.config.out.join(format!("last-good-replica-{id}.extxyz"));
        let mut frame = Frame::new(self.ensemble.system(replica).clone(), self.ensemble.last_good_positions(replica).to_f64());
        if self.config.units == UnitSystem::Reduced {
            frame.positions.iter_mut().for_each(|x| *x /= start::ANGSTROMS_PER_NM);
        }
        match write_frames(&path, None, &[frame]) {
            Ok(()) => runtime.say(format_args!("the last good state of replica {id} is in {}", path.display())),
            Err(e) => runtime.warn(format_args!("the last good state of replica {id} could not be written: {e}")),
        }
    }

    fn write_config(&self) -> Result<()> {
        let path = self.config.out.join(CONFIG_FILE);
        let mut table = toml::Table::try_from(&self.header.settings).map_err(|e| Error::Run(e.to_string()))?;
        let command = self.header.settings.command();
        table.remove("command");
        let seed = i64::try_from(self.header.seed).map_err(|e| Error::Run(e.to_string()))?;
        table.insert("seed".into(), seed.into());
        table.insert("dtype".into(), self.ensemble.dtype().to_string().into());
        table.insert("isa".into(), simd::current_isa().name().into());
        let text = toml::to_string(&table).map_err(|e| Error::Run(e.to_string()))?;
        write_atomically(&path, |w| {
            writeln!(w, "# scorefield {}: repeat this run with `scorefield {command} --config FILE --out DIR`", env!("CARGO_PKG_VERSION"))?;
            w.write_all(text.as_bytes())
        })?;
        Ok(())
    }

    /// Writes the first structure where it is one of atoms; a run goes on without it.
    fn write_structure(&self, runtime: &Runtime) {
        let system = self.ensemble.system(0);
        if cfg!(feature = "chemfiles") && system.types.iter().all(|&t| t > 0) {
            let mut frame = Frame::new(system.clone(), self.ensemble.positions(0).to_f64());
            if let Some(atoms) = self.written.as_ref().and_then(|w| w.first()) {
                frame = frame.subset(atoms, Arc::new(subsystem(system, atoms)));
            }
            frame.cell = self.ensemble.cell(0).copied();
            if let Err(e) = write_frames(self.config.out.join(STRUCTURE_FILE), None, &[frame]) {
                runtime.warn(format_args!("{e}; the trajectory has no structure beside it"));
            }
        }
    }

    /// Writes and prints the summary and free energies.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn finish(mut self, also: Option<&Path>, runtime: &Runtime) -> Result<Summary> {
        let summary = self.summary()?;
        let coldest = self.config.sampling.temperatures()[0];
        let report = self.free_energy.take().and_then(|counts| counts.report(coldest, crate::report::locale_is_utf8()));
        for (name, content) in report.iter().flat_map(|r| &r.files) {
            write_atomically(&self.config.out.join(name), |w| w.write_all(content.as_bytes()))?;
        }
        // Last of all: where it is, the run is whole.
        let bias_files = self.bias_report()?;
        let json = serde_json::to_string_pretty(&summary).map_err(|e| Error::Run(e.to_string()))?;
        for path in [also, Some(&self.config.out.join(SUMMARY_FILE))].into_iter().flatten() {
            write_atomically(path, |w| writeln!(w, "{json}"))?;
        }
        print(&summary).map_err(|e| Error::Run(format!("{e:#}")))?;
        if let Some(report) = report {
            print(format_args!("\n{}", report.text)).map_err(|e| Error::Run(format!("{e:#}")))?;
            let names: Vec<&str> = report.files.iter().map(|f| f.0.as_str()).collect();
            runtime.say(format_args!("plots in {}: {}", self.config.out.display(), names.join(", ")));
        }
        if !bias_files.is_empty() {
            runtime.say(format_args!("free energies in {}: {}", self.config.out.display(), bias_files.join(", ")));
        }
        Ok(summary)
    }

    /// Writes free energies along biased variables, and returns the names of the files.
    fn bias_report(&self) -> Result<Vec<String>> {
        let Some(biasing) = &self.biasing else { return Ok(Vec::new()) };
        let table = (self.config.colvar_every > 0).then(|| self.config.out.join(bias::TABLE));
        let kt = self.config.kt(self.config.sampling.temperatures()[0]);
        let mut names = Vec::new();
        for (name, content) in free_energies::report(&biasing.bias, table.as_deref(), kt)? {
            write_atomically(&self.config.out.join(&name), |w| w.write_all(content.as_bytes()))?;
            names.push(name);
        }
        Ok(names)
    }

    fn summary(&self) -> Result<Summary> {
        let seconds = self.stepping.as_secs_f64();
        let replicas = self.ensemble.replicas();
        let rate = if seconds > 0.0 { self.stepped as f64 * replicas as f64 / seconds } else { 0.0 };
        let averages = self.sets.iter().map(|set| self.averages(set)).collect::<Result<_>>()?;
        let exchange = self.exchange.as_ref().map(|exchange| ExchangeSummary {
            pairs: exchange
                .swaps()
                .zip(self.config.sampling.temperatures().windows(2))
                .map(|((tried, accepted), pair)| PairSummary {
                    lower: pair[0],
                    upper: pair[1],
                    tried,
                    accepted,
                    acceptance: if tried > 0 { accepted as f64 / tried as f64 } else { 0.0 },
                })
                .collect(),
            round_trips: exchange.round_trips().collect(),
        });
        Ok(Summary {
            version: env!("CARGO_PKG_VERSION"),
            command: self.header.settings.command(),
            model: self.model.clone(),
            integrator: self.config.integrator.name(),
            acceptance: self
                .acceptance
                .or_else(|| self.ensemble.acceptance().filter(|a| a.tried > 0).map(|a| a.accepted as f64 / a.tried as f64)),
            units: self.config.units,
            device: self.device.as_ref().map_or("cpu", Device::name).to_owned(),
            isa: simd::current_isa().name(),
            dtype: self.ensemble.dtype(),
            threads: self.threads,
            processes: self.processes,
            replicas,
            atoms: self.ensemble.batch().atoms(),
            steps: self.step(),
            time_ps: self.time(),
            seed: self.header.seed,
            seconds,
            steps_per_second: rate,
            ns_per_day: (self.config.units == UnitSystem::Si).then_some(rate * self.config.dt * 1e-3 * 86_400.0),
            averages,
            exchange,
            divergences: self.divergences.clone(),
            outside_training: self.domain.is_some().then(|| self.outside.clone()),
        })
    }

    /// Averages over a set's log, without the row at step 0, in which all replicas are at their start structure.
    fn averages(&self, set: &Set) -> Result<SetSummary> {
        let Some(log) = &set.log else {
            return Ok(SetSummary { thermostat: set.temperature, potential: None, temperature: None });
        };
        let series = read_series(log.path(), self.config.log_format, set.members.len())?;
        let [potential, temperature] = series.map(|slots| {
            let slots: Vec<&[f64]> = slots.iter().filter(|s| s.len() > 1).map(|s| &s[1..]).collect();
            (!slots.is_empty()).then(|| block_average_of(&slots))
        });
        Ok(SetSummary { thermostat: set.temperature, potential, temperature })
    }
}

/// `all` is the number of replicas wherever they run.
fn free_energy(config: &RunConfig, batch: &Batch, all: usize) -> Option<FreeEnergyAccumulator> {
    let replicas = match &config.sampling {
        Sampling::Constant { .. } => all,
        Sampling::Exchange { copies, .. } => *copies,
    };
    batch.uniform_atoms()?;
    // Under a bias counts without weights would be of no temperature.
    (config.units == UnitSystem::Si && config.log_every > 0 && config.bias.is_empty() && config.plumed.is_none())
        .then(|| FreeEnergyAccumulator::for_system(batch.system(0), replicas))
        .flatten()
}

/// The provider with the biases of the settings.
fn biased(provider: Box<dyn ForceProvider>, bias: Option<&Arc<Bias>>, config: &RunConfig) -> Result<Box<dyn ForceProvider>> {
    Ok(match bias {
        Some(bias) if !config.bias.is_empty() => {
            Box::new(Biased::new(provider, bias.clone()).map_err(|e| Error::Usage(format!("--bias: {e}")))?)
        }
        _ => provider,
    })
}

/// Replicas under the scheme of the settings, where the settings want them.
fn ensemble(
    batch: Batch,
    state: &State,
    provider: &dyn ForceProvider,
    config: &RunConfig,
    noise: Noise,
    device: Option<&Device>,
    runtime: &Runtime,
) -> Result<Ensemble> {
    let propagator = config.integrator.build(config.units, config.remove_drift)?;
    let pool = runtime.pool.clone();
    Ok(match device {
        None => Ensemble::new(batch, state, provider, &*propagator, noise, pool, config.guard)?,
        Some(device) => Ensemble::on_device(batch, state, provider, &*propagator, noise, pool, config.guard, device)?,
    })
}

/// The device that the settings name, where it is not the host; before anything is written.
///
/// # Errors
/// Where there is no such device, or the provider has no kernels for it.
fn open_device(config: &RunConfig, provider: &dyn ForceProvider) -> Result<Option<Device>> {
    let Some(device) = config.device.open()? else { return Ok(None) };
    DeviceProvider::new(&device, provider)?;
    Ok(Some(device))
}

/// Makes the output directory, and refuses one that holds a run unless it may be replaced.
fn prepare_directory(out: &Path, overwrite: bool) -> Result<()> {
    let old: Option<PathBuf> = [FILE, CONFIG_FILE, SUMMARY_FILE].map(|f| out.join(f)).into_iter().find(|f| f.exists());
    if let Some(old) = &old
        && !overwrite
    {
        return usage(format!(
            "{} holds a run already ({}); go on with it (--resume {}), replace it (--overwrite), or write elsewhere (--out DIR)",
            out.display(),
            old.display(),
            out.display()
        ));
    }
    std::fs::create_dir_all(out).map_err(|e| Error::file("make the directory", out, e))?;
    if overwrite {
        // The old run's files go first of all, so that they never stand beside another run's.
        let (recorded, tables) = Checkpoint::read(out).map(|c| (c.header.files, c.header.tables)).unwrap_or_default();
        let names = recorded.into_iter().flat_map(|set| set.log.into_iter().chain(set.trajectory)).chain(tables).map(|f| f.file);
        for name in [FILE, CONFIG_FILE, SUMMARY_FILE, STRUCTURE_FILE].into_iter().map(str::to_owned).chain(names) {
            remove(&out.join(name))?;
        }
    }
    Ok(())
}

/// Removes a file where there is one.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path, e)),
        _ => Ok(()),
    }
}

/// Flags that may differ when a run is resumed.
const MAY_CHANGE: [&str; 6] = ["device", "steps", "time", "checkpoint-every", "checkpoint-minutes", "summary"];

/// The settings of a resumed run: as recorded, but for what may change.
fn merge_settings(recorded: &RunSettings, mut flags: RunSettings) -> Result<RunSettings> {
    if recorded.command() != flags.command() {
        return usage(format!("the run was made by `scorefield {}`; resume it with that command", recorded.command()));
    }
    let object = |settings: &RunSettings| serde_json::to_value(settings).map_err(|e| Error::Run(e.to_string()));
    // A length in time replaces the recorded number of steps, not the other way round.
    let mut base = recorded.clone();
    if flags.run().time.is_some() {
        base.run_mut().steps = None;
    }
    flags.run_mut().out = None;
    let (mut merged, flags) = (object(&base)?, object(&flags)?);
    for (key, value) in flags.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        if merged[key] != *value && !MAY_CHANGE.contains(&key.as_str()) {
            return usage(format!("--{key} was {} when the run began, and cannot change; leave it out, or begin another run", merged[key]));
        }
        merged[key] = value.clone();
    }
    serde_json::from_value(merged).map_err(|e| Error::Run(e.to_string()))
}

/// Global flags that would change bits must be those of the checkpoint.
fn check_global(saved: &Checkpoint, runtime: &Runtime) -> Result<()> {
    if let Some(dtype) = runtime.dtype.filter(|&d| d != saved.dtype()) {
        return usage(format!("--dtype {dtype}, but the run was made in {}; leave it out", saved.dtype()));
    }
    match runtime.global.seed {
        Some(seed) if seed != saved.header.seed => {
            usage(format!("--seed {seed}, but the run has seed {}; leave it out", saved.header.seed))
        }
        _ => Ok(()),
    }
}
