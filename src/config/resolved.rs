//! Settings of a run, checked, with defaults and in internal units.

use super::raw::{ExchangeFlags, LogFormat, RunFlags, SimulateFlags, TrajectoryLayout};
use crate::error::{Error, Result, usage};
use scorefield_integrators::exchange::{check_ladder, geometric_ladder};
use scorefield_integrators::units::BOLTZMANN;
use scorefield_integrators::{DeviceSpec, Dimension, Guard, IntegratorSpec, Kind, OnDivergence, Quantity, UnitSystem};
use scorefield_models::bias::BiasSpec;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;

/// The flags of a run of either command, as recorded in its checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum RunSettings {
    /// All replicas at one temperature.
    Simulate(SimulateFlags),
    /// Temperature replica exchange.
    Exchange(ExchangeFlags),
}

impl RunSettings {
    /// The settings that both commands have.
    pub fn run(&self) -> &RunFlags {
        match self {
            RunSettings::Simulate(f) => &f.run,
            RunSettings::Exchange(f) => &f.run,
        }
    }

    /// The settings that both commands have.
    pub fn run_mut(&mut self) -> &mut RunFlags {
        match self {
            RunSettings::Simulate(f) => &mut f.run,
            RunSettings::Exchange(f) => &mut f.run,
        }
    }

    /// Name of the command.
    pub fn command(&self) -> &'static str {
        match self {
            RunSettings::Simulate(_) => "simulate",
            RunSettings::Exchange(_) => "exchange",
        }
    }
}

/// What is known of the model when settings are resolved.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name for messages.
    pub name: String,
    /// Units of all quantities.
    pub units: UnitSystem,
    /// What its forces mean.
    pub kind: Kind,
    /// Energies can be had.
    pub energy: bool,
    /// Temperature at which it is usually run, where it has one.
    pub temperature: Option<Quantity>,
    /// Its description asks for removal of the motion of the centre of mass.
    pub removes_drift: bool,
    /// It is a built-in example with its own structure.
    pub built_in: bool,
}

/// Which ensemble the replicas are in.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampling {
    /// All at one temperature (or at constant energy from there).
    Constant {
        /// K, or kT in reduced units.
        temperature: f64,
        /// Replicas of each start structure.
        replicas: usize,
    },
    /// Replica exchange.
    Exchange {
        /// K, or kT in reduced units; rising.
        temperatures: Vec<f64>,
        /// Independent copies of the ladder.
        copies: usize,
        /// Steps between attempts.
        every: u64,
    },
}

impl Sampling {
    /// The temperatures, lowest first.
    pub fn temperatures(&self) -> &[f64] {
        match self {
            Sampling::Constant { temperature, .. } => std::slice::from_ref(temperature),
            Sampling::Exchange { temperatures, .. } => temperatures,
        }
    }
}

/// A run, ready to be built.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Units of all quantities below.
    pub units: UnitSystem,
    /// The scheme.
    pub integrator: IntegratorSpec,
    /// Time of a step in ps; of a whole trial move where there is a Metropolis test.
    pub dt: f64,
    /// Steps in all.
    pub steps: u64,
    /// The ensemble.
    pub sampling: Sampling,
    /// Collective variables.
    pub cv: Vec<String>,
    /// Biases on them.
    pub bias: Vec<BiasSpec>,
    /// Input of PLUMED.
    pub plumed: Option<PathBuf>,
    /// Steps between rows of the table of variables; 0 for none.
    pub colvar_every: u64,
    /// The replicas that run here, where the others run elsewhere.
    pub replica_range: Option<Range<usize>>,
    /// Selection of atoms that do not move.
    pub freeze: Option<String>,
    /// Mass of hydrogens in u.
    pub hydrogen_mass: Option<f64>,
    /// Remove the motion of the centre of mass at every step.
    pub remove_drift: bool,
    /// Relax before the run.
    pub relax: bool,
    /// Where replicas move.
    pub device: DeviceSpec,
    /// When a replica counts as diverged.
    pub guard: Guard,
    /// Output directory.
    pub out: PathBuf,
    /// Steps between rows of the log; 0 for none.
    pub log_every: u64,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Steps between frames; 0 for none.
    pub trajectory_every: u64,
    /// Format of the trajectory.
    pub trajectory_format: String,
    /// Selection of atoms that the trajectory holds.
    pub select: Option<String>,
    /// Files of the trajectory.
    pub trajectory_layout: TrajectoryLayout,
    /// Steps between checkpoints; 0 for none by steps.
    pub checkpoint_every: u64,
    /// Minutes between checkpoints; 0 for none by time.
    pub checkpoint_minutes: f64,
}

/// Relative difference of temperatures that still counts as the same.
const TEMPERATURE_TOLERANCE: f64 = 5e-3;

impl RunSettings {
    /// Without model and structure, a built-in one: for `simulate` the embedded diffusion model, for replica exchange the
    /// peptide it was made from.
    pub fn choose_model(&mut self) {
        let built_in = match self {
            RunSettings::Simulate(_) => "scoremd",
            RunSettings::Exchange(_) => "mm",
        };
        let run = self.run_mut();
        if run.model.is_none() && run.structure.is_none() {
            run.model = Some(built_in.into());
        }
    }

    /// Fills in defaults, so that the written settings say everything.
    ///
    /// # Errors
    /// Where a length in time does not fit the time step.
    pub fn complete(&mut self, subject: &Subject) -> Result<()> {
        let si = subject.units == UnitSystem::Si;
        let reduced_or = |value: f64, text: (f64, &str)| if si { Quantity::new(text.0, text.1) } else { Quantity::bare(value) };
        let run = self.run_mut();
        run.integrator.get_or_insert_with(|| "baoab".into());
        // The embedded model has no hydrogens, whose bonds ask for shorter steps.
        let embedded = subject.built_in && matches!(subject.kind, Kind::MeanForce { .. });
        let dt = run.dt.get_or_insert_with(|| reduced_or(0.01, (if embedded { 2.0 } else { 1.0 }, "fs"))).clone();
        let named = |name| run.integrator.as_deref() == Some(name);
        if named("hmc") || named("ghmc") {
            run.leapfrog.get_or_insert(10);
        }
        if !(named("verlet") || named("mala") || named("hmc")) {
            run.friction.get_or_insert_with(|| reduced_or(1.0, (1.0, "/ps")));
        }
        if let Some(time) = run.time.take() {
            let (time_ps, dt_ps) =
                (positive("--time", &time, Dimension::TIME, subject.units)?, positive("--dt", &dt, Dimension::TIME, subject.units)?);
            let steps = (time_ps / (dt_ps * run.leapfrog.unwrap_or(1) as f64)).round();
            if !(1.0..=1e18).contains(&steps) {
                return usage(format!("--time {time} is {steps} steps of {dt}; give a longer time or a shorter step"));
            }
            run.steps = Some(steps as u64);
        }
        run.steps.get_or_insert(if embedded { 20_000 } else { 100_000 });
        // With frozen atoms the centre of mass belongs to the frame that they make.
        let removes_drift = subject.removes_drift && run.freeze.is_none();
        run.remove_drift.get_or_insert(removes_drift);
        run.relax.get_or_insert(false);
        run.device.get_or_insert_default();
        run.on_divergence.get_or_insert(OnDivergence::Stop);
        run.check_every.get_or_insert(100);
        run.out.get_or_insert_with(|| "scorefield-run".into());
        run.log_every.get_or_insert(if embedded { 100 } else { 1000 });
        run.log_format.get_or_insert_default();
        run.trajectory_every.get_or_insert(if embedded { 50 } else { 1000 });
        if run.cv.is_some() {
            run.colvar_every = run.colvar_every.or(run.log_every);
        }
        let windows = run.bias.iter().flatten().filter_map(|b| BiasSpec::parse(b).ok()).map(|b| b.windows()).max().unwrap_or(1);
        run.trajectory_format.get_or_insert_with(|| "dcd".into());
        run.trajectory_layout.get_or_insert_default();
        run.checkpoint_every.get_or_insert(0);
        run.checkpoint_minutes.get_or_insert(5.0);
        match self {
            RunSettings::Simulate(flags) => {
                let usual = match (&subject.temperature, subject.kind) {
                    (_, Kind::MeanForce { temperature_kelvin: t }) => reduced_or(t, (t, "K")),
                    (Some(t), _) => t.clone(),
                    _ => reduced_or(1.0, (300.0, "K")),
                };
                flags.temperature.get_or_insert(usual);
                flags.replicas.get_or_insert(if subject.built_in && windows == 1 { 64 } else { windows });
            }
            RunSettings::Exchange(flags) => {
                let ladder = flags.temperatures.get_or_insert_with(|| if si { "300 K..600 K" } else { "1..4" }.into());
                if ladder.contains("..") {
                    flags.count.get_or_insert(8);
                }
                flags.copies.get_or_insert(if subject.built_in { 8 } else { 1 });
                flags.exchange_every.get_or_insert(100);
            }
        }
        Ok(())
    }

    /// Checks [completed](Self::complete) settings and brings them into internal units. Warnings come back with them.
    ///
    /// # Errors
    /// Naming the flag whose value is refused.
    pub fn resolve(&self, subject: &Subject) -> Result<(RunConfig, Vec<String>)> {
        let run = self.run();
        let units = subject.units;
        let name = run.integrator.as_deref().unwrap_or("baoab");
        let dt = given("--dt", run.dt.clone())?;
        positive("--dt", &dt, Dimension::TIME, units)?;
        if let Some(friction) = &run.friction {
            not_negative("--friction", friction, Dimension::RATE, units)?;
        }
        let friction = run.friction.clone().unwrap_or(Quantity::bare(0.0));
        let leapfrog = nonzero("--leapfrog", run.leapfrog.unwrap_or(1))?;
        let Some(integrator) = IntegratorSpec::named(name, dt, friction, leapfrog) else {
            let known: Vec<&str> = IntegratorSpec::names().collect();
            return usage(format!("--integrator: `{name}` is not known; known are {}", known.join(", ")));
        };
        if leapfrog > 1 && !["hmc", "ghmc"].contains(&name) {
            return usage(format!("--leapfrog {leapfrog}: a step of {name} is one step; use --integrator hmc or ghmc, or leave it out"));
        }
        let duration = integrator.duration(units).map_err(|e| Error::Usage(format!("--integrator {name}: {e}")))?;
        if matches!(integrator, IntegratorSpec::Metropolis(_)) && !subject.energy {
            return usage(format!(
                "--integrator {name} compares energies, and {} has none; use an integrator without a Metropolis test, such as baoab",
                subject.name
            ));
        }
        let sampling = self.sampling(units)?;
        let mut warnings = Vec::new();
        if let Kind::MeanForce { temperature_kelvin } = subject.kind
            && let Some(t) = sampling.temperatures().iter().find(|t| (**t / temperature_kelvin - 1.0).abs() > TEMPERATURE_TOLERANCE)
        {
            let message = format!("{} gives mean forces of {temperature_kelvin} K, which say nothing about {t} K", subject.name);
            if run.force != Some(true) {
                return usage(format!("{message}; run at {temperature_kelvin} K, or add --force to do it all the same"));
            }
            warnings.push(message);
        }
        if subject.kind == Kind::PseudoForce {
            warnings.push(format!(
                "{} points towards minima: near them every vibration has the same stiffness, so that averages at a temperature, free \
                 energies and frequencies mean nothing",
                subject.name
            ));
        }
        if matches!(sampling, Sampling::Exchange { .. }) {
            if !integrator.is_thermal() {
                return usage("--integrator verlet keeps no temperature; replica exchange needs a thermostat, for example baoab");
            }
            if !subject.energy {
                return usage(format!("{} has no energies, which replica exchange compares; use `simulate`", subject.name));
            }
        }
        let bias = self.biases(&sampling)?;
        if run.plumed.is_some() {
            if run.device.is_some_and(|d| d != DeviceSpec::Cpu) {
                return usage("--plumed has no kernels for devices; use --device cpu");
            }
            if matches!(integrator, IntegratorSpec::Metropolis(_)) {
                return usage(format!(
                    "--plumed hears of every evaluation as a step, but {name} has trial moves and a Metropolis test; use for example baoab"
                ));
            }
            if matches!(sampling, Sampling::Exchange { .. }) {
                return usage("--plumed and replica exchange do not go together here; use `simulate`");
            }
        }
        let check_every = nonzero("--check-every", run.check_every.unwrap_or(100))?;
        let minutes = run.checkpoint_minutes.unwrap_or(0.0);
        if !(0.0..=1e6).contains(&minutes) {
            return usage(format!("--checkpoint-minutes {minutes} is not a time from 0 to a million minutes"));
        }
        let mut guard = Guard { policy: run.on_divergence.unwrap_or_default(), check_every, ..Guard::default() };
        if units == UnitSystem::Reduced {
            guard.velocity = 1e6;
        }
        let config = RunConfig {
            units,
            dt: duration,
            integrator,
            steps: nonzero("--steps", run.steps.unwrap_or(0))?,
            cv: run.cv.clone().unwrap_or_default(),
            bias,
            plumed: run.plumed.clone(),
            colvar_every: run.colvar_every.unwrap_or(0),
            replica_range: run.replica_range.as_deref().map(|text| replica_range(text, &sampling)).transpose()?,
            sampling,
            freeze: run.freeze.clone(),
            hydrogen_mass: run.hydrogen_mass.as_ref().map(|m| positive("--hydrogen-mass", m, Dimension::MASS, units)).transpose()?,
            remove_drift: run.remove_drift.unwrap_or(false),
            relax: run.relax.unwrap_or(false),
            device: run.device.unwrap_or_default(),
            guard,
            out: given("--out", run.out.clone())?,
            log_every: run.log_every.unwrap_or(0),
            log_format: run.log_format.unwrap_or_default(),
            trajectory_every: run.trajectory_every.unwrap_or(0),
            trajectory_format: run.trajectory_format.clone().unwrap_or_default(),
            select: run.select.clone(),
            trajectory_layout: run.trajectory_layout.unwrap_or_default(),
            checkpoint_every: run.checkpoint_every.unwrap_or(0),
            checkpoint_minutes: minutes,
        };
        Ok((config, warnings))
    }

    /// Reads the biases and checks that they fit the ensemble.
    fn biases(&self, sampling: &Sampling) -> Result<Vec<BiasSpec>> {
        let run = self.run();
        let biases = run.bias.iter().flatten().map(|b| BiasSpec::parse(b).map_err(|e| Error::Usage(format!("--bias: {e}"))));
        let biases: Vec<BiasSpec> = biases.collect::<Result<_>>()?;
        if biases.is_empty() {
            return Ok(biases);
        }
        if run.device.is_some_and(|d| d != DeviceSpec::Cpu) {
            return usage("--bias has no kernels for devices; use --device cpu");
        }
        for bias in &biases {
            let hills = matches!(bias, BiasSpec::Metadynamics { .. });
            if matches!(sampling, Sampling::Exchange { .. }) && (hills || bias.windows() > 1) {
                return usage(
                    "replica exchange compares energies, which are of one kind only where all replicas have one bias: use --bias harmonic:…, or `simulate`",
                );
            }
            if hills && sampling.temperatures().contains(&0.0) {
                return usage("--bias metadynamics:… needs a --temperature above zero, which says how high hills are");
            }
            if matches!(bias, BiasSpec::Metadynamics { shared: true, .. }) && run.replica_range.is_some() {
                return usage(
                    "--bias metadynamics:…,shared=true couples all replicas, so that they must run together; leave --replica-range out",
                );
            }
        }
        Ok(biases)
    }

    fn sampling(&self, units: UnitSystem) -> Result<Sampling> {
        match self {
            RunSettings::Simulate(flags) => {
                let temperature = given("--temperature", flags.temperature.clone())?;
                Ok(Sampling::Constant {
                    temperature: not_negative("--temperature", &temperature, Dimension::TEMPERATURE, units)?,
                    replicas: count("--replicas", flags.replicas)?,
                })
            }
            RunSettings::Exchange(flags) => {
                let text = given("--temperatures", flags.temperatures.clone())?;
                let one = |part: &str| {
                    let quantity: Quantity = part.parse().map_err(|e| Error::Usage(format!("--temperatures: {e}")))?;
                    positive("--temperatures", &quantity, Dimension::TEMPERATURE, units)
                };
                let temperatures = match text.split_once("..") {
                    Some((low, high)) => geometric_ladder(one(low)?, one(high)?, count("--count", flags.count)?),
                    None => {
                        let list = text.split(',').map(one).collect::<Result<Vec<f64>>>()?;
                        if let Some(n) = flags.count.filter(|&n| n != list.len()) {
                            return usage(format!("--count {n}, but --temperatures lists {}; leave --count out", list.len()));
                        }
                        check_ladder(&list).map(|()| list)
                    }
                };
                Ok(Sampling::Exchange {
                    temperatures: temperatures.map_err(|e| Error::Usage(format!("--temperatures {text}: {e}")))?,
                    copies: count("--copies", flags.copies)?,
                    every: nonzero("--exchange-every", flags.exchange_every.unwrap_or(0))?,
                })
            }
        }
    }
}

impl RunConfig {
    /// kT in kJ/mol (or reduced) of a temperature of [`Sampling`].
    pub fn kt(&self, temperature: f64) -> f64 {
        if self.units == UnitSystem::Si { BOLTZMANN * temperature } else { temperature }
    }
}

/// Reads `4..8`.
fn replica_range(text: &str, sampling: &Sampling) -> Result<Range<usize>> {
    let range = text.split_once("..").and_then(|(first, end)| Some(first.trim().parse().ok()?..end.trim().parse().ok()?));
    let Some(range) = range.filter(|r: &Range<usize>| r.start < r.end) else {
        return usage(format!("--replica-range `{text}` is no range; write FIRST..END, for example 0..4 for the first four replicas"));
    };
    let ladder = match sampling {
        Sampling::Constant { .. } => 1,
        Sampling::Exchange { temperatures, .. } => temperatures.len(),
    };
    if !range.start.is_multiple_of(ladder) || !range.end.is_multiple_of(ladder) {
        return usage(format!(
            "--replica-range {text} cuts through a ladder of {ladder} temperatures, whose replicas exchange; use multiples of {ladder}"
        ));
    }
    Ok(range)
}

fn given<T>(flag: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::Usage(format!("{flag} is missing")))
}

fn nonzero(flag: &str, n: u64) -> Result<u64> {
    if n == 0 { usage(format!("{flag} 0 makes no run; give 1 or more")) } else { Ok(n) }
}

/// Largest number of replicas, temperatures or copies.
const MOST: usize = 1 << 20;

fn count(flag: &str, n: Option<usize>) -> Result<usize> {
    match given(flag, n)? {
        n @ 1..=MOST => Ok(n),
        n => usage(format!("{flag} {n} is not a number from 1 to {MOST}")),
    }
}

fn resolve(flag: &str, quantity: &Quantity, dimension: Dimension, units: UnitSystem) -> Result<f64> {
    quantity.resolve(dimension, units).map_err(|e| Error::Usage(format!("{flag}: {e}")))
}

fn positive(flag: &str, quantity: &Quantity, dimension: Dimension, units: UnitSystem) -> Result<f64> {
    match resolve(flag, quantity, dimension, units)? {
        x if x > 0.0 => Ok(x),
        _ => usage(format!("{flag}: {quantity} is not above zero")),
    }
}

fn not_negative(flag: &str, quantity: &Quantity, dimension: Dimension, units: UnitSystem) -> Result<f64> {
    match resolve(flag, quantity, dimension, units)? {
        x if x >= 0.0 => Ok(x),
        _ => usage(format!("{flag}: {quantity} is negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(units: UnitSystem) -> Subject {
        Subject {
            name: "model".into(),
            units,
            kind: Kind::Physical,
            energy: true,
            temperature: None,
            removes_drift: false,
            built_in: false,
        }
    }

    fn simulate(change: impl Fn(&mut SimulateFlags)) -> Result<(RunConfig, Vec<String>)> {
        let mut flags = SimulateFlags::default();
        change(&mut flags);
        resolved(RunSettings::Simulate(flags), &subject(UnitSystem::Si))
    }

    fn resolved(mut settings: RunSettings, subject: &Subject) -> Result<(RunConfig, Vec<String>)> {
        settings.complete(subject)?;
        settings.resolve(subject)
    }

    fn quantity(text: &str) -> Option<Quantity> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn defaults_have_units() {
        let (config, warnings) = simulate(|_| {}).unwrap();
        assert_eq!((config.dt, config.steps), (0.001, 100_000));
        assert_eq!(config.sampling, Sampling::Constant { temperature: 300.0, replicas: 1 });
        assert!((config.kt(300.0) - 2.494_338_785).abs() < 1e-9 && warnings.is_empty());
        let reduced = resolved(RunSettings::Simulate(SimulateFlags::default()), &subject(UnitSystem::Reduced)).unwrap().0;
        assert_eq!((reduced.dt, reduced.kt(1.0)), (0.01, 1.0));
    }

    #[test]
    fn completed_settings_say_everything() {
        let mut settings = RunSettings::Exchange(ExchangeFlags::default());
        settings.complete(&subject(UnitSystem::Si)).unwrap();
        let mut again = settings.clone();
        again.complete(&subject(UnitSystem::Si)).unwrap();
        assert_eq!(settings, again);
        let text = toml::to_string(&settings).unwrap();
        assert!(text.contains("dt = \"1 fs\"") && text.contains("temperatures = \"300 K..600 K\""), "{text}");
        assert_eq!(toml::from_str::<RunSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn time_becomes_steps() {
        let (config, _) = simulate(|f| (f.run.time, f.run.dt) = (quantity("1 ns"), quantity("2 fs"))).unwrap();
        assert_eq!(config.steps, 500_000);
    }

    #[test]
    fn mistakes_name_the_flag_and_the_remedy() {
        let message = |change: &dyn Fn(&mut SimulateFlags)| simulate(change).unwrap_err().to_string();
        for (change, parts) in [
            (&(|f: &mut SimulateFlags| f.run.dt = quantity("2")) as &dyn Fn(&mut SimulateFlags), ["--dt", "`2 fs`"]),
            (&|f| f.run.dt = quantity("2 K"), ["--dt", "but a time"]),
            (&|f| f.run.dt = quantity("-1 fs"), ["--dt", "not above zero"]),
            (&|f| f.run.friction = quantity("-1 /ps"), ["--friction", "negative"]),
            (&|f| f.run.steps = Some(0), ["--steps", "1 or more"]),
            (&|f| f.run.integrator = Some("leapfrog".into()), ["--integrator", "baoab, middle"]),
            (&|f| f.temperature = quantity("300"), ["--temperature", "`300 K`"]),
            (&|f| f.replicas = Some(0), ["--replicas", "from 1"]),
            (&|f| f.run.hydrogen_mass = quantity("3 kJ"), ["--hydrogen-mass", "mass"]),
            (&|f| f.run.checkpoint_minutes = Some(-1.0), ["--checkpoint-minutes", "-1"]),
            (&|f| f.run.replica_range = Some("3..3".into()), ["--replica-range", "FIRST..END"]),
            (&|f| f.run.replica_range = Some("3".into()), ["--replica-range", "0..4"]),
        ] {
            let message = message(change);
            assert!(parts.iter().all(|p| message.contains(p)), "{message}");
        }
    }

    #[test]
    fn ladders() {
        let exchange = |temperatures: &str, count| {
            let flags = ExchangeFlags { temperatures: Some(temperatures.into()), count, ..ExchangeFlags::default() };
            resolved(RunSettings::Exchange(flags), &subject(UnitSystem::Si)).map(|(c, _)| c.sampling.temperatures().to_vec())
        };
        assert_eq!(exchange("300 K, 350 K,420 K", None).unwrap(), [300.0, 350.0, 420.0]);
        let ladder = exchange("300 K..600 K", Some(3)).unwrap();
        assert!((ladder[1] - 300.0 * 2f64.sqrt()).abs() < 1e-9);
        for (text, n, part) in [
            ("300 K", None, "2 or more"),
            ("300..600", Some(3), "`300 K`"),
            ("600 K..300 K", Some(3), "rise"),
            ("300 K, 350 K", Some(3), "--count 3"),
            ("300 K..", Some(3), "number"),
            ("300 K..600 K", Some(0), "--count"),
        ] {
            let message = exchange(text, n).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn mean_forces_have_one_temperature() {
        let subject = Subject { kind: Kind::MeanForce { temperature_kelvin: 310.0 }, ..subject(UnitSystem::Si) };
        let run = |temperature, force| {
            let mut flags = SimulateFlags { temperature, ..SimulateFlags::default() };
            flags.run.force = force;
            resolved(RunSettings::Simulate(flags), &subject)
        };
        assert_eq!(run(None, None).unwrap().0.sampling.temperatures(), [310.0]);
        assert!(run(quantity("300 K"), None).unwrap_err().to_string().contains("--force"));
        assert_eq!(run(quantity("300 K"), Some(true)).unwrap().1.len(), 1);
    }
}
