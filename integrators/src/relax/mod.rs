//! Relaxation: following forces downhill until they vanish, for many molecules at once.
//!
//! Two methods, [FIRE 2.0](FireSpec) and [L-BFGS](LbfgsSpec). Neither reads an energy, so that both work with pseudo-forces
//! that have none. One step is one evaluation of the forces; a replica's path depends on that replica alone, bit for bit,
//! whatever batch it is in.
//!
//! ```
//! use scorefield_integrators::{UnitSystem, relax::RelaxSpec};
//! let propagator = RelaxSpec::default().build(UnitSystem::Si)?;
//! # Ok::<(), scorefield_integrators::Error>(())
//! ```
//!
//! [`relax_all`] takes a queue of molecules through batches in all threads; as a [`Propagator`] a method works
//! on one batch under the run's own loop.

mod driver;
mod fire;
mod lbfgs;
mod rigid;
#[cfg(test)]
mod testing;
mod walk;

pub use crate::stream::{Job, Order, Tally};
pub use driver::{RelaxOptions, Relaxed, relax_all};
pub use fire::{FireSpec, Limit, Mass};
pub use lbfgs::LbfgsSpec;

use crate::error::{Error, Result, invalid};
use crate::force::{Capabilities, Want};
use crate::propagator::{Context, Progress, Propagator};
use crate::state::Clock;
use crate::units::{Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};
use walk::{Descent, Walk};

/// How a structure is relaxed: `{"method": "fire", …}` or `{"method": "lbfgs", …}`. Every parameter has a default; those
/// with a unit take text such as `"0.1 A"`, or a bare number where the model has reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum RelaxSpec {
    /// Molecular dynamics with brakes: robust, and at home with forces that are no gradient.
    Fire(FireSpec),
    /// Quasi-Newton: fewest evaluations for smooth forces.
    Lbfgs(LbfgsSpec),
}

impl Default for RelaxSpec {
    fn default() -> Self {
        RelaxSpec::Fire(FireSpec::default())
    }
}

impl RelaxSpec {
    /// Names on the command line.
    pub const NAMES: [&'static str; 2] = ["fire", "lbfgs"];

    /// The method called `name` with its defaults, where known.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "fire" => Some(RelaxSpec::Fire(FireSpec::default())),
            "lbfgs" => Some(RelaxSpec::Lbfgs(LbfgsSpec::default())),
            _ => None,
        }
    }

    /// The same method with another force threshold.
    pub fn with_fmax(mut self, fmax: Quantity) -> Self {
        match &mut self {
            RelaxSpec::Fire(spec) => spec.fmax = Some(fmax),
            RelaxSpec::Lbfgs(spec) => spec.fmax = Some(fmax),
        }
        self
    }

    /// When this method ends.
    ///
    /// # Errors
    /// Where a quantity has the wrong unit or a number is out of range.
    pub fn convergence(&self, units: UnitSystem) -> Result<Convergence> {
        let (fmax, patience) = match self {
            RelaxSpec::Fire(spec) => (&spec.fmax, spec.patience),
            RelaxSpec::Lbfgs(spec) => (&spec.fmax, spec.patience),
        };
        let fmax = positive("fmax", fmax.as_ref(), Dimension::FORCE, units, (0.05, "eV/A"), 0.05)?;
        if patience == 0 {
            return invalid("patience is 0; give the number of steps to wait for a smaller force, for example 2000");
        }
        Ok(Convergence { fmax, patience })
    }

    /// The propagator that follows this specification with forces in `units`.
    ///
    /// # Errors
    /// Where a quantity has the wrong unit or a number is out of range.
    pub fn build(&self, units: UnitSystem) -> Result<Box<dyn Propagator>> {
        Ok(Box::new(Relaxation { settings: self.resolve(units)?, walks: Vec::new() }))
    }

    fn resolve(&self, units: UnitSystem) -> Result<Settings> {
        let method = match self {
            RelaxSpec::Fire(spec) => Method::Fire(spec.resolve(units)?),
            RelaxSpec::Lbfgs(spec) => Method::Lbfgs(spec.resolve(units)?),
        };
        Ok(Settings { units, convergence: self.convergence(units)?, method })
    }
}

/// When a replica is done. Energies play no part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convergence {
    /// Converged when the largest force on any atom that moves, `max_i |F_i|` over active axes, is below this
    /// (kJ/mol/nm).
    pub fmax: f64,
    /// Stalled when the largest force has not fallen below its own record for this many steps.
    pub patience: u64,
}

/// `quantity` in internal units, or its default in SI or reduced units; it must be positive.
pub(crate) fn positive(
    name: &str,
    quantity: Option<&Quantity>,
    dimension: Dimension,
    units: UnitSystem,
    si: (f64, &str),
    reduced: f64,
) -> Result<f64> {
    let default = match units {
        UnitSystem::Si => Quantity::new(si.0, si.1),
        UnitSystem::Reduced => Quantity::bare(reduced),
    };
    let quantity = quantity.unwrap_or(&default);
    let value = quantity.resolve(dimension, units)?;
    if value > 0.0 && value.is_finite() {
        Ok(value)
    } else {
        invalid(format!("{name} = {quantity} is not positive; leave it out for {default}"))
    }
}

/// A specification in internal units.
#[derive(Clone)]
struct Settings {
    units: UnitSystem,
    convergence: Convergence,
    method: Method,
}

#[derive(Clone)]
enum Method {
    Fire(fire::Settings),
    Lbfgs(lbfgs::Settings),
}

impl Settings {
    /// Energies cost a provider that has them next to nothing beside its forces, and reports want them.
    fn want(capabilities: &Capabilities) -> Want {
        Want { energy: capabilities.energy, ..Want::FORCES }
    }

    fn check(&self, capabilities: &Capabilities, clock: Clock) -> Result<()> {
        if capabilities.units != self.units {
            return invalid(format!("the relaxation was set up in other units than those of {}", capabilities.name));
        }
        if capabilities.needs_noise_level && !matches!(clock, Clock::Diffusion { .. }) {
            return Err(Error::Unsupported {
                provider: capabilities.name.clone(),
                what: "forces without a noise level".into(),
                remedy: "fix its noise level, which makes it a force provider of minima, or denoise with it".into(),
            });
        }
        Ok(())
    }

    fn descent(&self, masses: &[f64], dimension: usize) -> Box<dyn Descent> {
        match &self.method {
            Method::Fire(settings) => Box::new(fire::Fire::new(settings, masses, dimension)),
            Method::Lbfgs(settings) => Box::new(lbfgs::Lbfgs::new(settings, masses.len(), dimension)),
        }
    }
}

/// Any method as a propagator: one [`Walk`] per replica.
struct Relaxation {
    settings: Settings,
    walks: Vec<Walk>,
}

impl Relaxation {
    fn check_size(&self, ctx: &Context<'_>) -> Result<()> {
        let (have, want) = (self.walks.len(), ctx.batch.replicas());
        if have == want {
            Ok(())
        } else {
            invalid(format!("relaxation prepared for {have} replicas met a batch of {want}; prepare it again"))
        }
    }
}

impl Propagator for Relaxation {
    /// Sets the clock to [`Clock::Iteration`] unless it shows a noise level, which stays. Evaluates energies too where the
    /// provider has them.
    ///
    /// # Errors
    /// Also where a force at the start is not finite, naming the atom. Later such forces leave their replica where it is,
    /// stalled.
    fn prepare(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        self.settings.check(ctx.provider.capabilities(), ctx.state.clock)?;
        if !matches!(ctx.state.clock, Clock::Diffusion { .. }) {
            ctx.state.clock = Clock::Iteration;
        }
        ctx.provider.prepare(ctx.batch, ctx.state.dtype())?;
        self.walks.clear();
        for (b, system) in ctx.batch.systems().iter().enumerate() {
            let range = ctx.batch.range3(b);
            let mut positions = ctx.state.positions().part(range.clone()).to_f64();
            self.walks.push(Walk::new(&self.settings, system, &mut positions)?);
            if !system.constraints.is_empty() {
                for (k, x) in range.zip(positions) {
                    ctx.state.phase.set(k, x);
                }
            }
        }
        ctx.evaluate(Settings::want(ctx.provider.capabilities()))?;
        for (b, walk) in self.walks.iter_mut().enumerate() {
            let range = ctx.batch.range3(b);
            if let Err(atom) = walk.observe(ctx.out.forces.part(range.clone())) {
                return invalid(crate::stream::not_finite(
                    ctx.batch.system(b),
                    atom,
                    ctx.out.forces.part(range.clone()),
                    ctx.state.positions().part(range),
                ));
            }
        }
        Ok(())
    }

    fn step(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        self.check_size(ctx)?;
        let mut moved = false;
        for (b, walk) in self.walks.iter_mut().enumerate() {
            if walk.progress() == Progress::Running {
                walk.advance(&mut ctx.state.phase, 3 * ctx.batch.range(b).start);
                moved = true;
            }
        }
        if moved {
            ctx.evaluate(Settings::want(ctx.provider.capabilities()))?;
            for (b, walk) in self.walks.iter_mut().enumerate() {
                if walk.progress() == Progress::Running {
                    // An atom whose force is not finite stalls its replica; the run finds the number in `out`.
                    let _ = walk.observe(ctx.out.forces.part(ctx.batch.range3(b)));
                }
            }
        }
        ctx.state.step += 1;
        Ok(())
    }

    fn progress(&self, replicas: usize) -> Vec<Progress> {
        (0..replicas).map(|b| self.walks.get(b).map_or(Progress::Running, Walk::progress)).collect()
    }

    fn retain(&mut self, keep: &[usize]) {
        let mut old: Vec<Option<Walk>> = std::mem::take(&mut self.walks).into_iter().map(Some).collect();
        self.walks = keep.iter().filter_map(|&b| old.get_mut(b).and_then(Option::take)).collect();
    }

    fn fork(&self) -> Box<dyn Propagator> {
        Box::new(Relaxation { settings: self.settings.clone(), walks: Vec::new() })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::testing::{Law, Toy, atoms, icosahedron, shaken, truncated_octahedron};
    use super::*;
    use crate::array::DType;
    use crate::batch::Batch;
    use crate::force::{ForceProvider, Output};
    use crate::noise::Noise;
    use crate::state::State;
    use crate::system::System;
    use std::sync::Arc;

    /// A batch under a propagator, as a run loop holds it.
    pub(super) struct Run {
        pub(super) batch: Batch,
        pub(super) state: State,
        pub(super) out: Output,
        pub(super) provider: Box<dyn ForceProvider>,
        pub(super) propagator: Box<dyn Propagator>,
    }

    impl Run {
        pub(super) fn new(toy: &Toy, spec: &RelaxSpec, starts: &[(Arc<System>, Vec<f64>)], dtype: DType) -> Result<Self> {
            let batch = Batch::new(starts.iter().map(|s| s.0.clone()).collect(), (0..starts.len() as u32).collect())?;
            let state = State::at_rest(&batch, &starts.iter().flat_map(|s| s.1.clone()).collect::<Vec<_>>(), dtype)?;
            let mut run = Run {
                out: Output::new(&batch, dtype, Want::ENERGY),
                batch,
                state,
                provider: toy.fork()?,
                propagator: spec.build(toy.capabilities.units)?,
            };
            run.with(|propagator, ctx| propagator.prepare(ctx))?;
            Ok(run)
        }

        fn with<R>(&mut self, f: impl FnOnce(&mut dyn Propagator, &mut Context<'_>) -> R) -> R {
            let mut ctx = Context {
                batch: &self.batch,
                state: &mut self.state,
                provider: self.provider.as_mut(),
                out: &mut self.out,
                noise: Noise::new(0),
            };
            f(self.propagator.as_mut(), &mut ctx)
        }

        pub(super) fn step(&mut self) {
            self.with(|propagator, ctx| propagator.step(ctx)).unwrap();
        }

        /// Steps until nothing runs any more, at most `limit` times.
        pub(super) fn finish(&mut self, limit: u64) -> Vec<Progress> {
            while self.progress().contains(&Progress::Running) && self.state.step < limit {
                self.step();
            }
            self.progress()
        }

        pub(super) fn progress(&self) -> Vec<Progress> {
            self.propagator.progress(self.batch.replicas())
        }

        pub(super) fn positions(&self, b: usize) -> Vec<f64> {
            self.state.positions().part(self.batch.range3(b)).to_f64()
        }

        fn keep(&mut self, keep: &[usize]) {
            let positions: Vec<f64> = keep.iter().flat_map(|&b| self.positions(b)).collect();
            let forces: Vec<f64> = keep.iter().flat_map(|&b| self.out.forces.part(self.batch.range3(b)).to_f64()).collect();
            let (batch, dtype, old) = (self.batch.select(keep).unwrap(), self.state.dtype(), self.state.clone());
            self.state = State { step: old.step, clock: old.clock, ..State::at_rest(&batch, &positions, dtype).unwrap() };
            self.out = Output::new(&batch, dtype, Want::ENERGY);
            for (k, f) in forces.into_iter().enumerate() {
                self.out.forces.set(k, f);
            }
            self.provider.prepare(&batch, dtype).unwrap();
            self.propagator.retain(keep);
            self.batch = batch;
        }
    }

    const LJ: Law = Law::LennardJones { epsilon: 1.0, sigma: 1.0 };

    pub(super) fn both(fmax: f64) -> [RelaxSpec; 2] {
        RelaxSpec::NAMES.map(|name| RelaxSpec::named(name).unwrap().with_fmax(Quantity::bare(fmax)))
    }

    #[test]
    fn finds_known_minima() {
        for spec in both(1e-6) {
            for (start, energy) in [(icosahedron(), -44.326801), (truncated_octahedron(), -173.928427)] {
                let start = (atoms(start.len() / 3), shaken(&start, 0.05, 1));
                let mut run = Run::new(&Toy::reduced(LJ), &spec, &[start], DType::F64).unwrap();
                assert_eq!(run.finish(3000), [Progress::Converged], "{spec:?}");
                assert!((run.out.energy[0] - energy).abs() < 1e-6, "{} {energy}", run.out.energy[0]);
            }
        }
    }

    #[test]
    fn converges_in_single_precision() {
        for spec in both(2e-3) {
            let mut run = Run::new(&Toy::reduced(LJ), &spec, &[(atoms(13), shaken(&icosahedron(), 0.05, 1))], DType::F32).unwrap();
            assert_eq!(run.finish(1000), [Progress::Converged]);
            assert!((run.out.energy[0] + 44.326801).abs() < 1e-4);
        }
        // Below what the precision resolves it ends nevertheless.
        for spec in both(1e-30) {
            let mut run = Run::new(&Toy::reduced(LJ), &spec, &[(atoms(13), shaken(&icosahedron(), 0.05, 1))], DType::F32).unwrap();
            assert_eq!(run.finish(20_000), [Progress::Stalled], "{spec:?}");
            assert!((run.out.energy[0] + 44.326801).abs() < 1e-4);
        }
    }

    #[test]
    fn solves_bowls() {
        let bowl = Toy::reduced(Law::Bowl { k: [1.0, 30.0, 100.0], swirl: 0.0 }).without_energy();
        for spec in both(1e-8) {
            let mut run = Run::new(&bowl, &spec, &[(atoms(2), vec![1.0, 2.0, -3.0, 0.5, 0.0, 1.0])], DType::F64).unwrap();
            assert_eq!(run.finish(5000), [Progress::Converged]);
            assert!(run.positions(0).iter().all(|x| x.abs() <= 1e-8));
        }
    }

    #[test]
    fn swirls_do_not_blow_up() {
        for spec in both(1e-6) {
            for swirl in [0.5, 2.0, 20.0] {
                let toy = Toy::reduced(Law::Bowl { k: [1.0, 10.0, 3.0], swirl }).without_energy();
                let mut run = Run::new(&toy, &spec, &[(atoms(1), vec![1.0, 2.0, -3.0])], DType::F64).unwrap();
                let mut farthest: f64 = 0.0;
                while run.progress()[0] == Progress::Running && run.state.step < 20_000 {
                    run.step();
                    farthest = run.positions(0).iter().fold(farthest, |m, x| m.max(x.abs()));
                }
                // A swirl that outruns the bowl may keep a replica busy, but no move is longer than allowed.
                let expected = if swirl < 10.0 { (Progress::Converged, 3.0) } else { (Progress::Stalled, 0.2 * run.state.step as f64) };
                assert_eq!(run.progress()[0], expected.0, "{swirl} {spec:?}");
                assert!(farthest < expected.1, "{swirl} {spec:?} {farthest}");
            }
        }
    }

    #[test]
    fn a_saddle_is_left_unless_met_exactly() {
        for spec in both(1e-6) {
            let start = |x: f64| (atoms(1), vec![x, 0.1, -0.2]);
            let mut run = Run::new(&Toy::reduced(Law::DoubleWell), &spec, &[start(1e-3), start(0.0)], DType::F64).unwrap();
            assert_eq!(run.finish(5000), [Progress::Converged; 2]);
            assert!((run.positions(0)[0] - 1.0).abs() < 1e-6);
            assert_eq!(run.positions(1)[0], 0.0);
        }
    }

    #[test]
    fn an_endless_slope_stalls() {
        for spec in both(1e-6) {
            let mut run = Run::new(&Toy::reduced(Law::Slope([1.0, 0.0, 0.0])), &spec, &[(atoms(1), vec![0.0; 3])], DType::F64).unwrap();
            assert_eq!(run.finish(2001), [Progress::Stalled]);
            let before = run.positions(0);
            run.step();
            assert_eq!(run.positions(0), before);
        }
    }

    #[test]
    fn what_is_frozen_stays() {
        let start = shaken(&icosahedron(), 0.1, 2);
        for spec in both(1e-5) {
            let mut system = System::particles("held", 13, 1.0);
            system.masses[3] = 0.0;
            system.masses[7] = 0.0;
            let mut flat = System::particles("flat", 13, 1.0);
            flat.axes = [true, false, true];
            let none = System::particles("none", 13, 0.0);
            let starts = [system, flat, none].map(|s| (Arc::new(s), start.clone()));
            let mut run = Run::new(&Toy::reduced(LJ), &spec, &starts, DType::F64).unwrap();
            assert_eq!(run.progress()[2], Progress::Converged, "nothing to move");
            assert_eq!(run.finish(5000), [Progress::Converged; 3]);
            assert_eq!(run.positions(2), start);
            for k in 0..39 {
                assert_eq!(run.positions(0)[k].to_bits() == start[k].to_bits(), [3, 7].contains(&(k / 3)), "{k}");
                assert_eq!(run.positions(1)[k].to_bits() == start[k].to_bits(), k % 3 == 1, "{k}");
            }
        }
    }

    #[test]
    fn a_path_does_not_depend_on_the_batch() {
        let starts: Vec<_> = [(icosahedron(), 0.1, 1), (truncated_octahedron(), 0.1, 2), (icosahedron(), 0.2, 3), (icosahedron(), 0.05, 4)]
            .into_iter()
            .map(|(x, amplitude, seed)| (atoms(x.len() / 3), shaken(&x, amplitude, seed)))
            .collect();
        let mut specs = both(1e-5).to_vec();
        specs.push(RelaxSpec::Fire(FireSpec { mass: Mass::Unit, limit: Limit::All, ..FireSpec::default() }));
        for spec in specs {
            for dtype in [DType::F64, DType::F32] {
                let path = |starts: &[_]| Run::new(&Toy::reduced(LJ), &spec, starts, dtype).unwrap();
                let mut alone: Vec<Run> = starts.iter().map(|s| path(std::slice::from_ref(s))).collect();
                let mut together = path(&starts);
                let mut shrinking = path(&starts);
                // Which of the starts each replica of `shrinking` is.
                let mut names = vec![0, 1, 2, 3];
                for step in 0..40 {
                    for keep in [(13, vec![3, 1, 0]), (26, vec![2, 1])].iter().filter(|k| k.0 == step).map(|k| &k.1) {
                        shrinking.keep(keep);
                        names = keep.iter().map(|&b| names[b]).collect();
                    }
                    for run in alone.iter_mut().chain([&mut together, &mut shrinking]) {
                        run.step();
                    }
                    for b in 0..4 {
                        assert_eq!(together.positions(b), alone[b].positions(0), "{step}");
                    }
                    for (b, &name) in names.iter().enumerate() {
                        assert_eq!(shrinking.positions(b), alone[name].positions(0), "{step}");
                        assert_eq!(shrinking.progress()[b], alone[name].progress()[0]);
                    }
                }
            }
        }
    }

    #[test]
    fn coincident_atoms_are_named() {
        for spec in both(1e-5) {
            let mut x = icosahedron();
            x.copy_within(9..12, 21);
            let error = Run::new(&Toy::reduced(LJ), &spec, &[(atoms(13), x)], DType::F64).err().unwrap().to_string();
            assert!(error.contains("atom 4") && error.contains("atom 8 is at the same place"), "{error}");
        }
    }

    #[test]
    fn a_clash_does_not_throw_atoms_apart() {
        for spec in both(1e-4) {
            for seed in 0..20 {
                let start = shaken(&icosahedron(), 0.45, seed);
                let mut run = Run::new(&Toy::reduced(LJ), &spec, &[(atoms(13), start)], DType::F64).unwrap();
                let progress = run.finish(5000);
                assert_eq!(progress, [Progress::Converged]);
                assert!(run.state.step < 500 && run.out.energy[0] < -38.0, "{seed} {}", run.out.energy[0]);
            }
        }
    }

    #[test]
    fn reads_and_refuses_specifications() {
        let read = |text: &str| serde_json::from_str::<RelaxSpec>(text);
        let spec = read(r#"{"method": "fire", "dt": "2 fs", "fmax": "0.01 eV/A", "limit": "all", "mass": "unit"}"#).unwrap();
        assert!((spec.convergence(UnitSystem::Si).unwrap().fmax - 9.6485).abs() < 1e-3);
        assert!(spec.build(UnitSystem::Si).is_ok());
        assert!(spec.build(UnitSystem::Reduced).is_err());
        assert_eq!(read(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        assert_eq!(read(r#"{"method": "lbfgs"}"#).unwrap(), RelaxSpec::Lbfgs(LbfgsSpec::default()));
        for text in [r#"{"method": "newton"}"#, r#"{"method": "lbfgs", "dt": "1 fs"}"#, r#"{"method": "fire", "dT": "1 fs"}"#, "{}"] {
            assert!(read(text).is_err(), "{text}");
        }
        for text in [
            r#"{"method": "lbfgs", "memory": 0}"#,
            r#"{"method": "lbfgs", "memory": 100000000000}"#,
            r#"{"method": "lbfgs", "damping": -1}"#,
            r#"{"method": "lbfgs", "fmax": "0 eV/A"}"#,
            r#"{"method": "lbfgs", "patience": 0}"#,
            r#"{"method": "fire", "dt": "-1 fs"}"#,
            r#"{"method": "fire", "dt": "1 K"}"#,
            r#"{"method": "fire", "dt": 1}"#,
            r#"{"method": "fire", "shrink": 2}"#,
        ] {
            assert!(read(text).unwrap().build(UnitSystem::Si).is_err(), "{text}");
        }
    }

    #[test]
    fn asks_for_a_noise_level() {
        let mut toy = Toy::reduced(LJ);
        toy.capabilities.needs_noise_level = true;
        let error = Run::new(&toy, &both(1.0)[0], &[(atoms(13), icosahedron())], DType::F64).err().unwrap();
        assert!(error.to_string().contains("noise level"), "{error}");
    }
}
