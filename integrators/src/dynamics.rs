//! Newtonian, Langevin and overdamped dynamics: every scheme is a [`Plan`], a list of kick, drift and noise stages, done
//! by a provider's fused kernel where there is one and by the plain loop here otherwise, with the same bits.
//!
//! Operators (Leimkuhler & Matthews, *Appl. Math. Res. Express* 2013): B kicks with the force, A drifts, O is the exact
//! Ornstein–Uhlenbeck step `v = e^{−γh} v + √(1 − e^{−2γh}) √(kT/m) ξ`.

use crate::array::{Array, DType};
use crate::batch::Batch;
use crate::constraint::{self, After, Constraints, Strides};
use crate::error::{Error, Result, invalid};
use crate::force::{Kind, Want};
use crate::fused::{Plan, Stage};
use crate::lane::{coefficients, correction};
use crate::noise::{Noise, Purpose};
use crate::propagator::{Context, Propagator};
use crate::simd::{Lanes, MAX_LANES, SimdReal, dispatch};
use crate::state::{Clock, State};
use crate::units::{BOLTZMANN, Dimension, Quantity, UnitSystem};
use pulp::{Simd, WithSimd};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::sync::Arc;

/// Which scheme moves the atoms. Quantities carry units (`"2 fs"`, `"1 /ps"`); bare numbers are reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "integrator", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DynamicsSpec {
    /// B A O A B, the default: configurational averages of harmonic modes are exact at any stable step. Velocities are
    /// on-step, with `⟨v²⟩` low by `(ω dt)²/4`.
    Baoab {
        /// Time step.
        dt: Quantity,
        /// Friction γ.
        friction: Quantity,
    },
    /// B A O A with one whole kick (OpenMM's `LangevinMiddleIntegrator`, Zhang et al., *J. Phys. Chem. A* 2019): the same
    /// positions as BAOAB, half-step velocities with the exact temperature.
    Middle {
        /// Time step.
        dt: Quantity,
        /// Friction γ.
        friction: Quantity,
    },
    /// OpenMM's former `LangevinIntegrator`, for parity with published runs: `v = a v + (1−a)/γ F/m + √(kT(1−a²)/m) ξ`,
    /// `x += dt v`, `a = e^{−γ dt}`. Inflates harmonic variances by `1/(1 − (ω dt)²/4)`.
    Legacy {
        /// Time step.
        dt: Quantity,
        /// Friction γ.
        friction: Quantity,
    },
    /// Euler–Maruyama for overdamped motion, `D = kT/(m γ)`.
    Overdamped {
        /// Time step.
        dt: Quantity,
        /// Friction γ.
        friction: Quantity,
    },
    /// The BAOAB limit method for overdamped motion (Leimkuhler & Matthews 2013): averages this step's noise with the
    /// next one's; second order for averages, exact for harmonic ones.
    OverdampedLimit {
        /// Time step.
        dt: Quantity,
        /// Friction γ.
        friction: Quantity,
    },
    /// Velocity Verlet: constant energy.
    Verlet {
        /// Time step.
        dt: Quantity,
    },
}

impl DynamicsSpec {
    /// Names on the command line.
    pub const NAMES: [&'static str; 6] = ["baoab", "middle", "legacy", "overdamped", "overdamped-limit", "verlet"];

    /// The scheme called `name`, where known.
    pub fn named(name: &str, dt: Quantity, friction: Quantity) -> Option<Self> {
        Some(match name {
            "baoab" => DynamicsSpec::Baoab { dt, friction },
            "middle" => DynamicsSpec::Middle { dt, friction },
            "legacy" => DynamicsSpec::Legacy { dt, friction },
            "overdamped" => DynamicsSpec::Overdamped { dt, friction },
            "overdamped-limit" => DynamicsSpec::OverdampedLimit { dt, friction },
            "verlet" => DynamicsSpec::Verlet { dt },
            _ => return None,
        })
    }

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        Self::NAMES[match self {
            DynamicsSpec::Baoab { .. } => 0,
            DynamicsSpec::Middle { .. } => 1,
            DynamicsSpec::Legacy { .. } => 2,
            DynamicsSpec::Overdamped { .. } => 3,
            DynamicsSpec::OverdampedLimit { .. } => 4,
            DynamicsSpec::Verlet { .. } => 5,
        }]
    }

    /// True where a thermostat keeps a temperature.
    pub fn is_thermal(&self) -> bool {
        !matches!(self, DynamicsSpec::Verlet { .. })
    }

    /// True where velocities are part of the motion.
    pub fn has_velocities(&self) -> bool {
        !matches!(self, DynamicsSpec::Overdamped { .. } | DynamicsSpec::OverdampedLimit { .. })
    }

    /// The stages of one step. `remove_drift` subtracts the centre-of-mass velocity at the end of every step.
    ///
    /// # Errors
    /// Where the time step is not positive or the friction negative (not positive for overdamped motion).
    pub fn plan(&self, units: UnitSystem, remove_drift: bool) -> Result<Plan> {
        let (dt, friction) = match self {
            DynamicsSpec::Verlet { dt } => (dt, None),
            DynamicsSpec::Baoab { dt, friction }
            | DynamicsSpec::Middle { dt, friction }
            | DynamicsSpec::Legacy { dt, friction }
            | DynamicsSpec::Overdamped { dt, friction }
            | DynamicsSpec::OverdampedLimit { dt, friction } => (dt, Some(friction)),
        };
        let h = dt.resolve(Dimension::TIME, units)?;
        if h <= 0.0 {
            return invalid(format!("time step {dt} is not positive"));
        }
        let gamma = friction.map_or(Ok(0.0), |f| f.resolve(Dimension::RATE, units))?;
        if gamma < 0.0 {
            return invalid(format!("friction {gamma} /ps is negative"));
        }
        if gamma == 0.0 && !self.has_velocities() {
            return invalid("overdamped dynamics needs a friction above zero");
        }
        let ou = |h: f64| Stage::Thermostat { a: (-gamma * h).exp(), s: (-(-2.0 * gamma * h).exp_m1()).sqrt() };
        let diffuse = |average| Stage::Diffuse { b: h / gamma, s: (2.0 * h / gamma).sqrt(), average };
        let (kick, half_kick) = (Stage::Kick { h }, Stage::Kick { h: 0.5 * h });
        let (drift, half_drift) = (Stage::Drift { h }, Stage::Drift { h: 0.5 * h });
        let mut stages = match self {
            DynamicsSpec::Baoab { .. } => vec![half_kick, half_drift, ou(h), half_drift, Stage::Force, half_kick],
            DynamicsSpec::Middle { .. } => vec![kick, half_drift, ou(h), half_drift, Stage::Force],
            DynamicsSpec::Legacy { .. } => {
                // (1 − a)/γ, whose limit at γ = 0 is the time step.
                let b = if gamma > 0.0 { -(-gamma * h).exp_m1() / gamma } else { h };
                vec![ou(h), Stage::Kick { h: b }, drift, Stage::Force]
            }
            DynamicsSpec::Overdamped { .. } => vec![diffuse(false), Stage::Force],
            DynamicsSpec::OverdampedLimit { .. } => vec![diffuse(true), Stage::Force],
            DynamicsSpec::Verlet { .. } => vec![half_kick, drift, Stage::Force, half_kick],
        };
        if remove_drift && self.has_velocities() {
            stages.push(Stage::RemoveDrift);
        }
        Ok(Plan { stages, dt: h })
    }
}

/// kT in kJ/mol (SI) or the bare number (reduced units).
///
/// # Errors
/// Where the temperature is negative or has the wrong unit.
pub fn thermal_energy(temperature: &Quantity, units: UnitSystem) -> Result<f64> {
    let t = temperature.resolve(Dimension::TEMPERATURE, units)?;
    if t < 0.0 {
        return invalid(format!("temperature {temperature} is negative"));
    }
    Ok(if units == UnitSystem::Si { BOLTZMANN * t } else { t })
}

/// Draws Maxwell–Boltzmann velocities at each replica's `state.kt` and removes the centre-of-mass velocity where asked.
pub fn draw_velocities(batch: &Batch, state: &mut State, noise: Noise, remove_drift: bool) {
    let half = state.phase.len() / 2;
    for b in 0..batch.replicas() {
        let system = batch.system(b).clone();
        let first = batch.range(b).start;
        let mut v = vec![0.0; 3 * system.len()];
        for i in 0..system.len() {
            let m = system.masses[i];
            let z = noise.normals(i as u32, batch.id(b), state.step, Purpose::InitialVelocity);
            for a in 0..3 {
                v[3 * i + a] = if m > 0.0 && system.axes[a] { (state.kt[b] / m).sqrt() * z[a] } else { 0.0 };
            }
        }
        let mass: f64 = system.masses.iter().sum();
        // A single particle has no internal motion: its velocity is left alone.
        if remove_drift && system.masses.iter().filter(|&&m| m > 0.0).count() > 1 {
            for a in 0..3 {
                let drift = (0..system.len()).map(|i| system.masses[i] * v[3 * i + a]).sum::<f64>() / mass;
                for i in (0..system.len()).filter(|&i| system.masses[i] > 0.0) {
                    v[3 * i + a] -= drift;
                }
            }
        }
        for (k, v) in v.into_iter().enumerate() {
            state.phase.set(half + 3 * first + k, v);
        }
    }
}

/// The propagator of a [`Plan`].
#[derive(Clone)]
pub struct Dynamics {
    plan: Plan,
    thermal: bool,
    /// Use the provider's fused kernel where it has one.
    fused: bool,
    /// Per stage, the plain loop's coefficient tables `[A, 3]`; made anew when a thermostat temperature changes.
    tables: Vec<[Array; 2]>,
    tables_kt: Vec<f64>,
    /// Noise of the present stage `[A, 3]`.
    xi: Array,
    /// Constraints per replica, a `Vec<Constraints<T>>` of the state's precision; none where no replica has any.
    constraints: Option<Arc<dyn Any + Send + Sync>>,
    /// Positions before a stage `[A, 3]`, for constraints.
    old: Array,
}

impl Dynamics {
    /// A propagator that follows `spec`.
    ///
    /// # Errors
    /// As [`DynamicsSpec::plan`].
    pub fn new(spec: &DynamicsSpec, units: UnitSystem, remove_drift: bool) -> Result<Self> {
        Ok(Dynamics {
            plan: spec.plan(units, remove_drift)?,
            thermal: spec.is_thermal(),
            fused: true,
            tables: Vec::new(),
            tables_kt: Vec::new(),
            xi: Array::zeros(DType::F64, 0),
            constraints: None,
            old: Array::zeros(DType::F64, 0),
        })
    }

    /// The same, but always through the plain loop; for comparison with fused kernels.
    pub fn plain(mut self) -> Self {
        self.fused = false;
        self
    }

    /// Time step in ps.
    pub fn dt(&self) -> f64 {
        self.plan.dt
    }

    fn make_tables(&mut self, batch: &Batch, state: &State) {
        if self.tables_kt == state.kt && self.xi.len() == 3 * batch.atoms() && self.xi.dtype() == state.dtype() {
            return;
        }
        let zeros = || Array::zeros(state.dtype(), 3 * batch.atoms());
        self.tables = self.plan.stages.iter().map(|_| [zeros(), zeros()]).collect();
        for (stage, tables) in self.plan.stages.iter().zip(&mut self.tables) {
            for b in 0..batch.replicas() {
                let system = batch.system(b);
                for k in batch.range3(b) {
                    let (atom, axis) = (k / 3 - batch.range(b).start, k % 3);
                    let c = coefficients(stage, system.masses[atom], system.axes[axis], state.kt[b]);
                    tables[0].set(k, c[0]);
                    tables[1].set(k, c[1]);
                }
            }
        }
        self.tables_kt = state.kt.clone();
        self.xi = zeros();
    }

    fn step_typed<T: SimdReal>(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        let constraints = self.constraints.as_ref().and_then(|c| c.downcast_ref::<Vec<Constraints<T>>>());
        for (stage, tables) in self.plan.stages.iter().zip(&self.tables) {
            if *stage == Stage::Force {
                ctx.evaluate(Want::FORCES)?;
                continue;
            }
            let half = ctx.state.phase.len() / 2;
            if constraints.is_some() {
                self.old.typed_mut::<T>()?.copy_from_slice(&ctx.state.phase.typed::<T>()?[..half]);
            }
            dispatch(PlainStage::<T> {
                stage,
                batch: ctx.batch,
                tables: [tables[0].typed()?, tables[1].typed()?],
                xi: self.xi.typed_mut()?,
                phase: ctx.state.phase.typed_mut()?,
                forces: ctx.out.forces.typed()?,
                noise: ctx.noise,
                step: ctx.state.step,
            });
            if let (Some(constraints), Some(after)) = (constraints, correction(stage)) {
                let (x, v) = ctx.state.phase.typed_mut::<T>()?.split_at_mut(half);
                dispatch(Correct { constraints, after, batch: ctx.batch, x, v, old: self.old.typed()? });
            }
        }
        ctx.state.step += 1;
        ctx.state.clock = Clock::Physical { time: ctx.state.step as f64 * self.plan.dt };
        Ok(())
    }
}

impl Propagator for Dynamics {
    fn prepare(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        let capabilities = ctx.provider.capabilities();
        if self.thermal {
            for (b, &kt) in ctx.state.kt.iter().enumerate() {
                if !(kt >= 0.0 && kt.is_finite()) {
                    return invalid(format!("replica {} has kT = {kt} kJ/mol; give a temperature", ctx.batch.id(b)));
                }
            }
        } else if !capabilities.conservative {
            return Err(Error::Unsupported {
                provider: capabilities.name.clone(),
                what: "constant-energy dynamics: its forces are not the gradient of an energy".into(),
                remedy: "use a Langevin integrator, whose thermostat removes the drift".into(),
            });
        }
        if capabilities.kind == Kind::PseudoForce && !self.thermal {
            return Err(Error::Unsupported {
                provider: capabilities.name.clone(),
                what: "time: pseudo-forces only point towards minima".into(),
                remedy: "relax with it, or use Langevin dynamics to explore its minima".into(),
            });
        }
        ctx.provider.prepare(ctx.batch, ctx.state.dtype())?;
        self.constraints = None;
        if ctx.batch.systems().iter().any(|s| !s.constraints.is_empty()) {
            fn make<T: SimdReal>(batch: &Batch) -> Result<Arc<dyn Any + Send + Sync>> {
                let all: Result<Vec<_>> = batch.systems().iter().map(|s| Constraints::<T>::new(s)).collect();
                Ok(Arc::new(all?))
            }
            self.constraints = Some(crate::by_dtype!(ctx.state.dtype(), make(ctx.batch))?);
            self.old = Array::zeros(ctx.state.dtype(), 3 * ctx.batch.atoms());
            // A state that satisfies them already, as after a restart, stays as it is, bit for bit.
            if ctx.state.step == 0 {
                constraint::project(ctx.batch, ctx.state)?;
            }
        }
        self.tables_kt.clear();
        self.make_tables(ctx.batch, ctx.state);
        ctx.evaluate(Want::FORCES)
    }

    fn step(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        self.make_tables(ctx.batch, ctx.state);
        match ctx.state.dtype() {
            DType::F32 => self.step_typed::<f32>(ctx),
            DType::F64 => self.step_typed::<f64>(ctx),
        }
    }

    fn run(&mut self, ctx: &mut Context<'_>, steps: u64) -> Result<()> {
        if self.fused
            && let Some(fused) = ctx.provider.fused()
        {
            return fused.run(&self.plan, ctx.batch, ctx.state, ctx.out, ctx.noise, steps);
        }
        for _ in 0..steps {
            self.step(ctx)?;
        }
        Ok(())
    }

    fn plan(&self) -> Option<&Plan> {
        Some(&self.plan)
    }

    fn retain(&mut self, _: &[usize]) {
        self.tables_kt.clear();
    }

    fn fork(&self) -> Box<dyn Propagator> {
        let mut other = self.clone();
        other.tables_kt.clear();
        Box::new(other)
    }
}

/// One stage of the plain loop, on `[A, 3]` arrays in place.
struct PlainStage<'a, T> {
    stage: &'a Stage,
    batch: &'a Batch,
    tables: [&'a [T]; 2],
    xi: &'a mut [T],
    phase: &'a mut [T],
    forces: &'a [T],
    noise: Noise,
    step: u64,
}

/// Constraints of the plain loop, replica by replica.
struct Correct<'a, T> {
    constraints: &'a [Constraints<T>],
    after: After,
    batch: &'a Batch,
    x: &'a mut [T],
    v: &'a mut [T],
    old: &'a [T],
}

impl<T: SimdReal> WithSimd for Correct<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        for (b, constraints) in self.constraints.iter().enumerate() {
            let range = self.batch.range3(b);
            let (x, v) = (&mut self.x[range.clone()], &mut self.v[range.clone()]);
            constraints.apply_one::<T::Of<S>>(t, self.after, Strides { atom: 3, axis: 1 }, x, v, &self.old[range]);
        }
    }
}

/// `y = f(y, a, b)` element by element, in vectors; the tail goes through a padded one.
#[inline(always)]
fn zip_mut<V: Lanes>(t: V::Token, y: &mut [V::Scalar], a: &[V::Scalar], b: &[V::Scalar], f: impl Fn(V, V, V) -> V) {
    let whole = y.len() / V::LANES * V::LANES;
    let vectors = V::slice_mut(t, &mut y[..whole]).iter_mut().zip(V::slice(t, &a[..whole])).zip(V::slice(t, &b[..whole]));
    for ((y, &a), &b) in vectors {
        *y = f(*y, a, b);
    }
    let tail = y.len() - whole;
    if tail > 0 {
        let pad = |s: &[V::Scalar]| {
            let mut p = [V::Scalar::default(); MAX_LANES];
            p[..tail].copy_from_slice(&s[whole..]);
            V::load(t, &p)
        };
        let mut out = [V::Scalar::default(); MAX_LANES];
        f(pad(y), pad(a), pad(b)).store(&mut out);
        y[whole..].copy_from_slice(&out[..tail]);
    }
}

impl<T: SimdReal> PlainStage<'_, T> {
    #[inline(always)]
    fn fill_noise<S: Simd>(&mut self, t: S, step: u64, purpose: Purpose) {
        let lanes = T::Of::<S>::LANES;
        for b in 0..self.batch.replicas() {
            let row = &mut self.xi[self.batch.range3(b)];
            let n = row.len() / 3;
            for first in (0..n).step_by(lanes) {
                let mut atoms = [0u32; MAX_LANES];
                for (l, a) in atoms.iter_mut().enumerate() {
                    *a = (first + l) as u32;
                }
                let z = self.noise.normal_lanes::<T::Of<S>>(t, &atoms, &[self.batch.id(b); MAX_LANES], step, purpose);
                let mut columns = [[T::default(); MAX_LANES]; 3];
                for (c, z) in columns.iter_mut().zip(z) {
                    z.store(c);
                }
                for l in 0..lanes.min(n - first) {
                    for a in 0..3 {
                        row[3 * (first + l) + a] = columns[a][l];
                    }
                }
            }
        }
    }
}

impl<T: SimdReal> WithSimd for PlainStage<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let n3 = self.phase.len() / 2;
        match *self.stage {
            Stage::Force => {}
            Stage::Kick { .. } => {
                zip_mut::<T::Of<S>>(t, &mut self.phase[n3..], self.tables[0], self.forces, |v, c, f| c.mul_add(f, v));
            }
            Stage::Drift { h } => {
                let (x, v) = self.phase.split_at_mut(n3);
                let h = T::Of::<S>::lit(t, h);
                zip_mut::<T::Of<S>>(t, x, v, v, |x, v, _| h.mul_add(v, x));
            }
            Stage::Thermostat { a, .. } => {
                self.fill_noise(t, self.step, Purpose::Thermostat);
                let a = T::Of::<S>::lit(t, a);
                zip_mut::<T::Of<S>>(t, &mut self.phase[n3..], self.tables[0], self.xi, |v, c, z| a.mul_add(v, c * z));
            }
            Stage::Diffuse { average, .. } => {
                let half = T::Of::<S>::lit(t, 0.5);
                self.fill_noise(t, self.step, Purpose::Overdamped);
                zip_mut::<T::Of<S>>(t, &mut self.phase[..n3], self.tables[0], self.forces, |x, b, f| b.mul_add(f, x));
                zip_mut::<T::Of<S>>(t, &mut self.phase[..n3], self.tables[1], self.xi, |x, s, z| {
                    s.mul_add(if average { z * half } else { z }, x)
                });
                if average {
                    self.fill_noise(t, self.step + 1, Purpose::Overdamped);
                    zip_mut::<T::Of<S>>(t, &mut self.phase[..n3], self.tables[1], self.xi, |x, s, z| s.mul_add(z * half, x));
                }
            }
            Stage::RemoveDrift => {
                for b in 0..self.batch.replicas() {
                    let range = self.batch.range3(b);
                    let masses = &self.tables[0][range.clone()];
                    let v = &mut self.phase[n3 + range.start..n3 + range.end];
                    for a in 0..3 {
                        let (mut momentum, mut mass) = (T::default(), T::default());
                        for k in (a..v.len()).step_by(3) {
                            momentum += masses[k] * v[k];
                            mass += masses[k];
                        }
                        if mass > T::default() {
                            let drift = momentum / mass;
                            for k in (a..v.len()).step_by(3).filter(|&k| masses[k] > T::default()) {
                                v[k] -= drift;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Kinetic temperature in K (SI) or kT (reduced) from a kinetic energy.
pub fn kinetic_temperature(kinetic: f64, degrees_of_freedom: usize, units: UnitSystem) -> f64 {
    if degrees_of_freedom == 0 {
        return 0.0;
    }
    let kt = 2.0 * kinetic / degrees_of_freedom as f64;
    if units == UnitSystem::Si { kt / BOLTZMANN } else { kt }
}
