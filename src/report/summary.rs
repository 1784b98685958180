//! The summary at the end of a run: averages with errors, exchange statistics, speed; as text and as JSON.

use super::progress::speed;
use crate::analysis::statistics::BlockAverage;
use scorefield_integrators::{DType, UnitSystem};
use scorefield_models::scoremd::domain::Outside;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Averages of the replicas at one temperature.
#[derive(Clone, Debug, Serialize)]
pub struct SetSummary {
    /// The thermostat's temperature in K (kT in reduced units).
    #[serde(rename = "thermostat_K")]
    pub thermostat: f64,
    /// Potential energy per replica.
    #[serde(rename = "potential_kJ_mol")]
    pub potential: Option<BlockAverage>,
    /// Kinetic temperature.
    #[serde(rename = "temperature_K")]
    pub temperature: Option<BlockAverage>,
}

/// Exchange between two neighbouring temperatures.
#[derive(Clone, Debug, Serialize)]
pub struct PairSummary {
    /// Lower temperature in K (kT in reduced units).
    #[serde(rename = "lower_K")]
    pub lower: f64,
    /// Upper temperature.
    #[serde(rename = "upper_K")]
    pub upper: f64,
    /// Attempts, all copies together.
    pub tried: u64,
    /// Accepted ones.
    pub accepted: u64,
    /// Their ratio.
    pub acceptance: f64,
}

/// Statistics of replica exchange.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeSummary {
    /// Pairs of neighbours, coldest first.
    pub pairs: Vec<PairSummary>,
    /// Round trips between the ends of the ladder, per replica.
    pub round_trips: Vec<u32>,
}

/// A replica that was frozen or restored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DivergenceSummary {
    /// Replica.
    pub replica: u32,
    /// Step at which it was seen.
    pub step: u64,
    /// What was out of range.
    pub what: String,
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Version of this program.
    pub version: &'static str,
    /// `simulate` or `exchange`.
    pub command: &'static str,
    /// Name of the force provider.
    pub model: String,
    /// Name of the integrator.
    pub integrator: &'static str,
    /// Part of the trial moves that this process accepted, where there is a Metropolis test.
    pub acceptance: Option<f64>,
    /// Units of all numbers.
    pub units: UnitSystem,
    /// Where the replicas moved: `cpu`, or the name of a GPU.
    pub device: String,
    /// Instruction set.
    pub isa: &'static str,
    /// Precision.
    pub dtype: DType,
    /// Threads.
    pub threads: usize,
    /// Processes that shared out the replicas, each with so many threads.
    pub processes: usize,
    /// Replicas.
    pub replicas: usize,
    /// Atoms of all replicas.
    pub atoms: usize,
    /// Steps per replica since the start of the run.
    pub steps: u64,
    /// Time per replica in ps.
    pub time_ps: f64,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Seconds in the stepping loop of this process.
    pub seconds: f64,
    /// Steps per second of the stepping loop, summed over replicas.
    pub steps_per_second: f64,
    /// Simulated time per day of all replicas together; none in reduced units.
    pub ns_per_day: Option<f64>,
    /// Averages per temperature, coldest first.
    pub averages: Vec<SetSummary>,
    /// Exchange statistics.
    pub exchange: Option<ExchangeSummary>,
    /// Replicas that left every sensible range.
    pub divergences: Vec<DivergenceSummary>,
    /// How often a trained model was asked about configurations unlike its training data.
    pub outside_training: Option<OutsideSummary>,
}

/// Configurations at which the log was written, and those of them unlike anything in the training data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OutsideSummary {
    /// Configurations looked at.
    pub seen: u64,
    /// Configurations outside.
    pub outside: u64,
    /// The first of them in words.
    pub first: Option<String>,
}

impl OutsideSummary {
    /// Adds what was found on other replicas.
    pub fn join(&mut self, other: OutsideSummary) {
        self.seen += other.seen;
        self.outside += other.outside;
        self.first = self.first.take().or(other.first);
    }

    /// Notes one configuration.
    pub fn note(&mut self, step: u64, replica: usize, found: Option<Outside>) {
        self.seen += 1;
        let Some(Outside { of: [i, j], value, bounds: [low, high] }) = found else { return };
        self.outside += 1;
        self.first.get_or_insert_with(|| {
            let what = if i == j { format!("coordinate {i}") } else { format!("the distance of beads {} and {}", i + 1, j + 1) };
            format!("step {step}, replica {replica}: {what} is {value:.4}, in training {low:.4} to {high:.4}")
        });
    }
}

/// `1 replica`, `2 replicas`.
pub fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `-123.45 ± 0.67`, with as many digits as the error allows.
struct Value<'a>(Option<&'a BlockAverage>);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(average) = self.0 else { return f.pad("-") };
        let error = average.standard_error;
        let digits = if error > 0.0 && error.is_finite() { (1.0 - error.log10().floor()).clamp(0.0, 6.0) as usize } else { 3 };
        let error = if error.is_finite() { format!("{error:.digits$}") } else { "?".into() };
        f.pad(&format!("{:.digits$} ± {error}{}", average.mean, if average.converged { "" } else { "*" }))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let si = self.units == UnitSystem::Si;
        let (energy, temperature, time) = if si { ("kJ/mol", "K", "ps") } else { ("reduced", "reduced", "reduced") };
        writeln!(f, "{:>14}  {:>22}  {:>8}  {:>20}  {:>8}", "thermostat", "potential energy", "samples", "temperature", "samples")?;
        writeln!(f, "{temperature:>14}  {energy:>22}  {:>8}  {temperature:>20}  {:>8}", "(eff.)", "(eff.)")?;
        let samples = |a: Option<&BlockAverage>| a.map_or("-".to_owned(), |a| format!("{:.0}", a.effective_samples));
        for set in &self.averages {
            let (u, t) = (set.potential.as_ref(), set.temperature.as_ref());
            writeln!(f, "{:>14.3}  {:>22}  {:>8}  {:>20}  {:>8}", set.thermostat, Value(u), samples(u), Value(t), samples(t))?;
        }
        if self.averages.iter().any(|s| [&s.potential, &s.temperature].iter().any(|a| a.as_ref().is_some_and(|a| !a.converged))) {
            writeln!(f, "* correlated over the whole run: the error is a lower bound")?;
        }
        let low = |s: &SetSummary| s.temperature.as_ref().is_some_and(|t| t.mean < 0.99 * s.thermostat - 3.0 * t.standard_error);
        if self.integrator == "baoab" && self.averages.iter().any(low) {
            writeln!(
                f,
                "the temperature reads low by (ω dt)²/4 of each mode because BAOAB's velocities are on-step; positions do not have this\n\
                 error. --integrator middle moves the same way and reports half-step velocities, which are right"
            )?;
        }
        if let Some(acceptance) = self.acceptance {
            writeln!(f, "{:.1} % of the trial moves of {} were accepted", 100.0 * acceptance, self.integrator)?;
            if acceptance < 0.2 {
                writeln!(f, "few moves are accepted: a shorter --dt would get farther")?;
            }
        }
        if let Some(exchange) = &self.exchange {
            writeln!(f, "\n{:>12}  {:>12}  {:>10}  {:>10}  {:>10}", "from", "to", "tried", "accepted", "ratio")?;
            for p in &exchange.pairs {
                writeln!(f, "{:>12.3}  {:>12.3}  {:>10}  {:>10}  {:>10.3}", p.lower, p.upper, p.tried, p.accepted, p.acceptance)?;
            }
            let trips: u32 = exchange.round_trips.iter().sum();
            writeln!(f, "{trips} round trips between the lowest and the highest temperature, by {} replicas", exchange.round_trips.len())?;
        }
        for d in &self.divergences {
            writeln!(f, "replica {} left every sensible range at step {}: {}", d.replica, d.step, d.what)?;
        }
        if let Some(o) = self.outside_training.as_ref().filter(|o| o.outside > 0) {
            writeln!(
                f,
                "{} of {} logged configurations are unlike the training data, where the model knows nothing; the first: {}",
                o.outside,
                o.seen,
                o.first.as_deref().unwrap_or("?")
            )?;
        }
        writeln!(
            f,
            "\n{} × {} steps ({:.3} {time} each) of {} in {:.2} s: {}",
            plural(self.replicas, "replica"),
            self.steps,
            self.time_ps,
            self.model,
            self.seconds,
            speed(self.steps_per_second, self.ns_per_day.map(|ns| ns / 86_400.0 / self.steps_per_second))
        )?;
        match self.device.as_str() {
            "cpu" => {
                let each = if self.processes > 1 { format!(" in each of {} processes", self.processes) } else { String::new() };
                write!(f, "{}, {}, {}{each}, seed {}", self.isa, self.dtype, plural(self.threads, "thread"), self.seed)
            }
            device => write!(f, "{device}, {}, seed {}", self.dtype, self.seed),
        }
    }
}
