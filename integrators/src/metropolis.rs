//! Metropolis-corrected dynamics: trial moves by velocity Verlet, accepted or refused by their error in the total energy, so that
//! averages are exact at any time step.
//!
//! - `mala`: fresh velocities and one Verlet step, which is the Metropolis-adjusted Langevin algorithm
//!   (Roberts & Tweedie 1996) with `ε = dt²/m`.
//! - `hmc`: fresh velocities and several steps: hybrid Monte Carlo (Duane et al. 1987).
//! - `ghmc`: velocities that are refreshed in part, as friction does in the time of the trial, and turn around after a refusal
//!   (Horowitz 1991): Langevin dynamics without an error of its time step.

use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::dynamics::{Dynamics, DynamicsSpec};
use crate::error::{Error, Result, invalid};
use crate::force::Want;
use crate::noise::{Noise, Purpose};
use crate::propagator::{Acceptance, Context, Propagator};
use crate::simd::SimdReal;
use crate::state::{Clock, State};
use crate::system::System;
use crate::units::{Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};

/// A Metropolis-corrected scheme, as written in configurations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MetropolisSpec {
    /// Time step of velocity Verlet.
    pub dt: Quantity,
    /// Verlet steps of a trial move.
    pub leapfrog: u64,
    /// Friction γ of the velocities' refreshment; all of them are drawn anew without it.
    pub friction: Option<Quantity>,
}

impl MetropolisSpec {
    /// Names on the command line.
    pub const NAMES: [&'static str; 3] = ["mala", "hmc", "ghmc"];

    /// The scheme called `name`, where known. `leapfrog` is not for `mala`, `friction` for `ghmc` alone.
    pub fn named(name: &str, dt: Quantity, friction: Quantity, leapfrog: u64) -> Option<Self> {
        Some(match name {
            "mala" => MetropolisSpec { dt, leapfrog: 1, friction: None },
            "hmc" => MetropolisSpec { dt, leapfrog, friction: None },
            "ghmc" => MetropolisSpec { dt, leapfrog, friction: Some(friction) },
            _ => return None,
        })
    }

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match (&self.friction, self.leapfrog) {
            (Some(_), _) => "ghmc",
            (None, 1) => "mala",
            (None, _) => "hmc",
        }
    }

    /// Time of a trial move in ps.
    ///
    /// # Errors
    /// Where the time step is not above zero, there is no Verlet step, or the friction is negative.
    pub fn duration(&self, units: UnitSystem) -> Result<f64> {
        let dt = self.dt.resolve(Dimension::TIME, units)?;
        if dt <= 0.0 {
            return invalid(format!("time step {} is not positive", self.dt));
        }
        if !(1..=100_000).contains(&self.leapfrog) {
            return invalid(format!("{} Verlet steps make no trial move; give 1 to 100000", self.leapfrog));
        }
        if let Some(friction) = &self.friction
            && friction.resolve(Dimension::RATE, units)? < 0.0
        {
            return invalid(format!("friction {friction} is negative"));
        }
        Ok(dt * self.leapfrog as f64)
    }
}

/// A scheme of either kind: what `--integrator` names.
#[derive(Clone, Debug, PartialEq)]
pub enum IntegratorSpec {
    /// A list of stages, approximate at a finite time step.
    Dynamics(DynamicsSpec),
    /// Trial moves with a Metropolis test.
    Metropolis(MetropolisSpec),
}

impl IntegratorSpec {
    /// The names on the command line.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DynamicsSpec::NAMES.into_iter().chain(MetropolisSpec::NAMES)
    }

    /// The scheme called `name`, where known.
    pub fn named(name: &str, dt: Quantity, friction: Quantity, leapfrog: u64) -> Option<Self> {
        let dynamics = DynamicsSpec::named(name, dt.clone(), friction.clone()).map(IntegratorSpec::Dynamics);
        dynamics.or_else(|| MetropolisSpec::named(name, dt, friction, leapfrog).map(IntegratorSpec::Metropolis))
    }

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            IntegratorSpec::Dynamics(spec) => spec.name(),
            IntegratorSpec::Metropolis(spec) => spec.name(),
        }
    }

    /// True where it keeps a temperature.
    pub fn is_thermal(&self) -> bool {
        match self {
            IntegratorSpec::Dynamics(spec) => spec.is_thermal(),
            IntegratorSpec::Metropolis(_) => true,
        }
    }

    /// True where velocities are part of the motion.
    pub fn has_velocities(&self) -> bool {
        match self {
            IntegratorSpec::Dynamics(spec) => spec.has_velocities(),
            IntegratorSpec::Metropolis(_) => true,
        }
    }

    /// Time of one step in ps.
    ///
    /// # Errors
    /// Where a number makes no sense.
    pub fn duration(&self, units: UnitSystem) -> Result<f64> {
        match self {
            IntegratorSpec::Dynamics(spec) => Ok(spec.plan(units, false)?.dt),
            IntegratorSpec::Metropolis(spec) => spec.duration(units),
        }
    }

    /// The propagator; `remove_drift` takes the motion of the centre of mass out.
    ///
    /// # Errors
    /// Where a number makes no sense.
    pub fn build(&self, units: UnitSystem, remove_drift: bool) -> Result<Box<dyn Propagator>> {
        Ok(match self {
            IntegratorSpec::Dynamics(spec) => Box::new(Dynamics::new(spec, units, remove_drift)?),
            IntegratorSpec::Metropolis(spec) => Box::new(Metropolis::new(spec, units, remove_drift)?),
        })
    }
}

/// The propagator of a [`MetropolisSpec`].
#[derive(Clone)]
pub struct Metropolis {
    /// ps.
    dt: f64,
    leapfrog: u64,
    /// What remains of a velocity when a trial begins, and the size of the noise that is added.
    keep: [f64; 2],
    remove_drift: bool,
    /// Phase `[2, A, 3]` and forces `[A, 3]` before the trial.
    phase: Array,
    forces: Array,
    /// Potential energy before the trial, and total energy with the trial's first velocities `[B]`, kJ/mol.
    energy: Vec<f64>,
    total: Vec<f64>,
    counts: Acceptance,
}

impl Metropolis {
    /// A propagator that follows `spec`.
    ///
    /// # Errors
    /// As [`MetropolisSpec::duration`].
    pub fn new(spec: &MetropolisSpec, units: UnitSystem, remove_drift: bool) -> Result<Self> {
        let duration = spec.duration(units)?;
        let keep = match &spec.friction {
            None => [0.0, 1.0],
            Some(friction) => {
                let gamma = friction.resolve(Dimension::RATE, units)?;
                [(-gamma * duration).exp(), (-(-2.0 * gamma * duration).exp_m1()).sqrt()]
            }
        };
        let empty = || Array::F64(Vec::new());
        Ok(Metropolis {
            dt: duration / spec.leapfrog as f64,
            leapfrog: spec.leapfrog,
            keep,
            remove_drift,
            phase: empty(),
            forces: empty(),
            energy: Vec::new(),
            total: Vec::new(),
            counts: Acceptance::default(),
        })
    }

    /// Velocities of the next trial.
    fn refresh<T: SimdReal>(&self, batch: &Batch, state: &mut State, noise: Noise) -> Result<()> {
        let [keep, add] = self.keep;
        let (half, step) = (state.phase.len() / 2, state.step);
        let v = &mut state.phase.typed_mut::<T>()?[half..];
        for b in 0..batch.replicas() {
            let (system, v) = (batch.system(b), &mut v[batch.range3(b)]);
            for (i, v) in v.chunks_exact_mut(3).enumerate() {
                let m = system.masses[i];
                if m <= 0.0 {
                    v.fill(T::default());
                    continue;
                }
                let size = add * (state.kt[b] / m).sqrt();
                let z = noise.normals(i as u32, batch.id(b), step, Purpose::Thermostat);
                for a in 0..3 {
                    v[a] = T::from_f64(if system.axes[a] { keep * v[a].to_f64() + size * z[a] } else { 0.0 });
                }
            }
            if self.remove_drift {
                remove_drift(system, v);
            }
        }
        Ok(())
    }

    /// `v += h F/m`.
    fn kick<T: SimdReal>(&self, batch: &Batch, state: &mut State, forces: View<'_>, h: f64) -> Result<()> {
        let half = state.phase.len() / 2;
        let v = &mut state.phase.typed_mut::<T>()?[half..];
        let forces: &[T] = forces.typed()?;
        for b in 0..batch.replicas() {
            let system = batch.system(b);
            let range = batch.range3(b);
            for (i, (v, f)) in v[range.clone()].chunks_exact_mut(3).zip(forces[range].chunks_exact(3)).enumerate() {
                let m = system.masses[i];
                for a in (0..3).filter(|&a| m > 0.0 && system.axes[a]) {
                    v[a] += T::from_f64(h / m) * f[a];
                }
            }
        }
        Ok(())
    }

    /// `x += h v`.
    fn drift<T: SimdReal>(state: &mut State, h: f64) -> Result<()> {
        let half = state.phase.len() / 2;
        let (x, v) = state.phase.typed_mut::<T>()?.split_at_mut(half);
        let h = T::from_f64(h);
        x.iter_mut().zip(v).for_each(|(x, v)| *x += h * *v);
        Ok(())
    }

    /// Memory for the batch of `ctx`.
    fn fit(&mut self, ctx: &Context<'_>) {
        let (len, replicas) = (ctx.state.phase.len(), ctx.batch.replicas());
        if self.phase.len() != len || self.phase.dtype() != ctx.state.dtype() {
            self.phase = Array::zeros(ctx.state.dtype(), len);
            self.forces = Array::zeros(ctx.state.dtype(), len / 2);
        }
        self.energy.resize(replicas, 0.0);
        self.total.resize(replicas, 0.0);
    }

    fn trial<T: SimdReal>(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        let (batch, h) = (ctx.batch, self.dt);
        self.refresh::<T>(batch, ctx.state, ctx.noise)?;
        self.phase.typed_mut::<T>()?.copy_from_slice(ctx.state.phase.typed()?);
        self.forces.typed_mut::<T>()?.copy_from_slice(ctx.out.forces.typed()?);
        for b in 0..batch.replicas() {
            self.energy[b] = ctx.out.energy[b];
            self.total[b] = self.energy[b] + ctx.state.kinetic_energy(batch, b);
        }
        for k in 0..self.leapfrog {
            self.kick::<T>(batch, ctx.state, ctx.out.forces.view(), 0.5 * h)?;
            Self::drift::<T>(ctx.state, h)?;
            ctx.evaluate(if k + 1 == self.leapfrog { Want::ENERGY } else { Want::FORCES })?;
            self.kick::<T>(batch, ctx.state, ctx.out.forces.view(), 0.5 * h)?;
        }
        let half = ctx.state.phase.len() / 2;
        for b in 0..batch.replicas() {
            let gained = ctx.out.energy[b] + ctx.state.kinetic_energy(batch, b) - self.total[b];
            let u = ctx.noise.uniform(0, batch.id(b), ctx.state.step, Purpose::Metropolis);
            self.counts.tried += 1;
            // A trial that ended in numbers that are none is refused as well.
            if u < (-gained / ctx.state.kt[b]).exp() {
                self.counts.accepted += 1;
                continue;
            }
            let range = batch.range3(b);
            let (phase, old) = (ctx.state.phase.typed_mut::<T>()?, self.phase.typed::<T>()?);
            phase[range.clone()].copy_from_slice(&old[range.clone()]);
            let velocities = half + range.start..half + range.end;
            phase[velocities.clone()].iter_mut().zip(&old[velocities]).for_each(|(v, &old)| *v = T::default() - old);
            ctx.out.forces.typed_mut::<T>()?[range.clone()].copy_from_slice(&self.forces.typed::<T>()?[range]);
            ctx.out.energy[b] = self.energy[b];
        }
        ctx.state.step += 1;
        ctx.state.clock = Clock::Physical { time: ctx.state.step as f64 * h * self.leapfrog as f64 };
        Ok(())
    }
}

/// Takes the velocity of the centre of mass out of `v` (`[N, 3]`).
fn remove_drift<T: SimdReal>(system: &System, v: &mut [T]) {
    if system.masses.iter().filter(|&&m| m > 0.0).count() < 2 {
        return;
    }
    let mass: f64 = system.masses.iter().sum();
    for a in 0..3 {
        let momentum: f64 = system.masses.iter().zip(v.chunks_exact(3)).map(|(m, v)| m * v[a].to_f64()).sum();
        let drift = T::from_f64(momentum / mass);
        for (v, _) in v.chunks_exact_mut(3).zip(&system.masses).filter(|(_, m)| **m > 0.0) {
            v[a] -= drift;
        }
    }
}

impl Propagator for Metropolis {
    fn prepare(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        let capabilities = ctx.provider.capabilities();
        let refuse = |what: &str, remedy: &str| {
            Err(Error::Unsupported { provider: capabilities.name.clone(), what: what.into(), remedy: remedy.into() })
        };
        if !(capabilities.energy && capabilities.conservative) {
            return refuse(
                "a Metropolis test: it has no energy of which its forces are the gradient",
                "use an integrator without one, such as baoab",
            );
        }
        if ctx.batch.systems().iter().any(|s| !s.constraints.is_empty()) {
            return refuse("Metropolis-corrected moves with rigid bonds", "use baoab or middle, or leave the bonds flexible");
        }
        if let Some(b) = ctx.state.kt.iter().position(|kt| !(*kt > 0.0 && kt.is_finite())) {
            return invalid(format!(
                "replica {} has kT = {} kJ/mol; a Metropolis test needs one above zero",
                ctx.batch.id(b),
                ctx.state.kt[b]
            ));
        }
        ctx.provider.prepare(ctx.batch, ctx.state.dtype())?;
        self.fit(ctx);
        ctx.evaluate(Want::ENERGY)
    }

    fn step(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        self.run(ctx, 1)
    }

    fn run(&mut self, ctx: &mut Context<'_>, steps: u64) -> Result<()> {
        self.fit(ctx);
        // Someone may have put replicas elsewhere since.
        ctx.evaluate(Want::ENERGY)?;
        for _ in 0..steps {
            match ctx.state.dtype() {
                DType::F32 => self.trial::<f32>(ctx)?,
                DType::F64 => self.trial::<f64>(ctx)?,
            }
        }
        Ok(())
    }

    fn acceptance(&self) -> Option<Acceptance> {
        Some(self.counts)
    }

    fn fork(&self) -> Box<dyn Propagator> {
        Box::new(Metropolis { counts: Acceptance::default(), ..self.clone() })
    }
}
