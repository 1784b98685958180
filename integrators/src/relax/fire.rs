//! FIRE 2.0, the fast inertial relaxation engine (Guénolé et al., *Comput. Mater. Sci.* 175, 109584, 2020).

use super::positive;
use super::walk::{Descent, dot, longest, norm};
use crate::error::{Result, invalid};
use crate::units::{Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};

/// Molecular dynamics that turns its velocity towards the force and stops whenever it goes uphill.
///
/// With the power `P = F·v`, per replica and step:
///
/// 1. `P > 0`: after `delay` such steps in a row, `dt ← min(grow dt, dt_max)` and `a ← mixing_shrink a`.
/// 2. `P ≤ 0`: `dt ← max(shrink dt, dt_min)` and `a ← mixing` (not in the first `delay` steps where `initial_delay` is
///    on); `x ← x − ½ dt v` where `half_step_back` is on; `v ← 0`. The forces there are the next step's: going back
///    costs an evaluation, as in every implementation.
/// 3. Semi-implicit Euler: `v ← v + dt F/m`, then `v ← (1 − a) v + a |v| F/|F|`, then `x ← x + dt v`.
///
/// No move is longer than `max_step`, and none back longer than half of it: a velocity from a clash cannot throw atoms
/// apart.
///
/// The defaults are those of LAMMPS' `min_style fire` in SI units and in its Lennard-Jones units. The order of
/// operations is the paper's; LAMMPS itself takes `|v|` and `a` from before the kick and shortens `dt` instead of the move.
///
/// [`FireSpec::ase`] gives the numbers of ASE's `FIRE2`, and the same path, except that ASE limits no move back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FireSpec {
    /// Converged below this largest force on an atom; 0.05 eV/Å, or 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fmax: Option<Quantity>,
    /// Stalled after this many steps without a new smallest `fmax`.
    pub patience: u64,
    /// Initial time step; 1 fs, or 0.005.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dt: Option<Quantity>,
    /// Largest time step in units of `dt`.
    pub dt_max: f64,
    /// Smallest time step in units of `dt`.
    pub dt_min: f64,
    /// Growth of the time step downhill.
    pub grow: f64,
    /// Shrinking of the time step uphill.
    pub shrink: f64,
    /// Steps downhill before the time step grows.
    pub delay: u64,
    /// Do not shrink the time step in the first `delay` steps.
    pub initial_delay: bool,
    /// Go back by half a step after going uphill.
    pub half_step_back: bool,
    /// Initial share `a` of the force's direction in the velocity.
    pub mixing: f64,
    /// Shrinking of that share downhill.
    pub mixing_shrink: f64,
    /// Longest move; 0.1 Å, or 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_step: Option<Quantity>,
    /// Which length `max_step` limits.
    pub limit: Limit,
    /// Which masses accelerate.
    pub mass: Mass,
}

/// Which length is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// The move of the atom that moves farthest.
    Atom,
    /// The norm over all atoms.
    All,
}

/// Which masses accelerate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mass {
    /// The system's.
    Actual,
    /// 1 u for every atom that moves.
    Unit,
}

impl Default for FireSpec {
    fn default() -> Self {
        FireSpec {
            fmax: None,
            patience: 2000,
            dt: None,
            dt_max: 10.0,
            dt_min: 0.02,
            grow: 1.1,
            shrink: 0.5,
            delay: 20,
            initial_delay: true,
            half_step_back: true,
            mixing: 0.25,
            mixing_shrink: 0.99,
            max_step: None,
            limit: Limit::Atom,
            mass: Mass::Actual,
        }
    }
}

impl FireSpec {
    /// The parameters of ASE's `FIRE2` in SI units: unit masses, a step of 0.1 Å √(u/eV) = 1.018 fs, no initial delay,
    /// and no move longer than 0.2 Å in the norm over all atoms.
    pub fn ase() -> Self {
        // Å √(u/eV) = 0.1 nm √(u mol/kJ) / √(kJ/mol per eV), and nm √(u mol/kJ) = ps.
        let unit = crate::units::NM_PER_ANGSTROM / crate::units::KJ_PER_EV.sqrt();
        FireSpec {
            dt: Some(Quantity::new(0.1 * unit, "ps")),
            initial_delay: false,
            max_step: Some(Quantity::new(0.2, "A")),
            limit: Limit::All,
            mass: Mass::Unit,
            ..FireSpec::default()
        }
    }

    pub(super) fn resolve(&self, units: UnitSystem) -> Result<Settings> {
        let dt = positive("dt", self.dt.as_ref(), Dimension::TIME, units, (1.0, "fs"), 0.005)?;
        let max_step = positive("max_step", self.max_step.as_ref(), Dimension::LENGTH, units, (0.1, "A"), 0.1)?;
        let ranges = [
            ("dt_max", self.dt_max, 1.0, 1e6),
            ("dt_min", self.dt_min, 0.0, 1.0),
            ("grow", self.grow, 1.0, 10.0),
            ("shrink", self.shrink, 0.01, 1.0),
            ("mixing", self.mixing, 0.0, 1.0),
            ("mixing_shrink", self.mixing_shrink, 0.0, 1.0),
        ];
        if let Some((name, value, low, high)) = ranges.iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            return invalid(format!("FIRE: {name} = {value} is not between {low} and {high}"));
        }
        Ok(Settings { spec: self.clone(), dt, dt_min: dt * self.dt_min, dt_max: dt * self.dt_max, max_step })
    }
}

/// A [`FireSpec`] in internal units.
#[derive(Clone)]
pub(super) struct Settings {
    spec: FireSpec,
    dt: f64,
    dt_min: f64,
    dt_max: f64,
    max_step: f64,
}

/// One replica's velocity and time step.
pub(super) struct Fire {
    settings: Settings,
    /// 1/m per coordinate.
    inverse_mass: Vec<f64>,
    dimension: usize,
    velocity: Vec<f64>,
    /// The present move.
    shift: Vec<f64>,
    dt: f64,
    mixing: f64,
    /// Steps downhill in a row.
    downhill: u64,
    /// Steps of the integrator so far.
    age: u64,
    /// The last move was the half step back.
    turned: bool,
}

impl Fire {
    pub(super) fn new(settings: &Settings, masses: &[f64], dimension: usize) -> Self {
        let inverse = |&m: &f64| if settings.spec.mass == Mass::Unit { 1.0 } else { 1.0 / m };
        let n = masses.len() * dimension;
        Fire {
            inverse_mass: masses.iter().flat_map(|m| std::iter::repeat_n(inverse(m), dimension)).collect(),
            dimension,
            velocity: vec![0.0; n],
            shift: vec![0.0; n],
            dt: settings.dt,
            mixing: settings.spec.mixing,
            downhill: 0,
            age: 0,
            turned: false,
            settings: settings.clone(),
        }
    }

    /// Moves by `time · v`, but by no more than `limit`.
    fn shift(&mut self, x: &mut [f64], time: f64, limit: f64) {
        for (s, v) in self.shift.iter_mut().zip(&self.velocity) {
            *s = time * v;
        }
        let length = match self.settings.spec.limit {
            Limit::Atom => longest(&self.shift, self.dimension),
            Limit::All => norm(&self.shift),
        };
        let scale = if length > limit { limit / length } else { 1.0 };
        for (x, s) in x.iter_mut().zip(&self.shift) {
            *x += scale * s;
        }
    }
}

impl Descent for Fire {
    fn advance(&mut self, x: &mut [f64], force: &[f64]) {
        let spec = &self.settings.spec;
        if self.turned {
            self.turned = false;
        } else if self.age > 0 {
            if dot(force, &self.velocity) > 0.0 {
                self.downhill += 1;
                if self.downhill > spec.delay {
                    self.dt = (self.dt * spec.grow).min(self.settings.dt_max);
                    self.mixing *= spec.mixing_shrink;
                }
            } else {
                self.downhill = 0;
                if !spec.initial_delay || self.age + 1 >= spec.delay {
                    self.dt = (self.dt * spec.shrink).max(self.settings.dt_min);
                    self.mixing = spec.mixing;
                }
                let back = spec.half_step_back;
                if back {
                    self.shift(x, -0.5 * self.dt, 0.5 * self.settings.max_step);
                }
                self.velocity.fill(0.0);
                if back {
                    self.turned = true;
                    return;
                }
            }
        }
        self.age += 1;
        for ((v, f), w) in self.velocity.iter_mut().zip(force).zip(&self.inverse_mass) {
            *v += self.dt * f * w;
        }
        let size = norm(force);
        if size > 0.0 {
            let (keep, turn) = (1.0 - self.mixing, self.mixing * (norm(&self.velocity) / size));
            for (v, f) in self.velocity.iter_mut().zip(force) {
                *v = keep * *v + turn * f;
            }
        }
        self.shift(x, self.dt, self.settings.max_step);
    }
}

#[cfg(test)]
mod tests {
    use super::super::RelaxSpec;
    use super::super::testing::{Reference, atoms};
    use super::super::tests::Run;
    use super::*;
    use crate::array::DType;
    use crate::propagator::Progress;

    #[test]
    fn follows_ase_step_by_step() {
        let mut turns = 0;
        for reference in Reference::read("fire2") {
            let settings = FireSpec::ase().resolve(UnitSystem::Si).unwrap();
            let mut x = reference.start.clone();
            let mut fire = Fire::new(&settings, &vec![40.0; x.len() / 3], 3);
            for step in 0..reference.path.len() {
                let force = reference.forces(&x);
                fire.advance(&mut x, &force);
                if fire.turned {
                    turns += 1;
                    let force = reference.forces(&x);
                    fire.advance(&mut x, &force);
                }
                reference.check(step, &x);
            }
        }
        assert!(turns > 0, "paths without going uphill test only half");
    }

    /// Force evaluations and energy of the whole minimisation.
    #[test]
    fn costs_what_ase_pays() {
        for reference in Reference::read("fire2") {
            let spec = RelaxSpec::Fire(FireSpec::ase()).with_fmax(Quantity::new(reference.fmax, "eV/A"));
            let start = (atoms(reference.start.len() / 3), reference.start.clone());
            let mut run = Run::new(&reference.toy, &spec, &[start], DType::F64).unwrap();
            assert_eq!(run.finish(1000), [Progress::Converged]);
            assert!((run.out.energy[0] - reference.energy).abs() < 1e-5 * reference.energy.abs());
            assert_eq!(run.state.step + 1, reference.evaluations);
        }
    }
}
