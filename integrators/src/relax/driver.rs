//! Relaxation of a queue of molecules.

use super::walk::Walk;
use super::{RelaxSpec, Settings};
use crate::array::{Array, View};
use crate::error::Result;
use crate::force::{Capabilities, ForceProvider, Want};
use crate::propagator::Progress;
use crate::state::Clock;
use crate::stream::{Course, Guide, Job, StreamOptions, Tally, stream};
use crate::superpose::{plain_rmsd, superposed_rmsd};
use crate::system::System;
use std::sync::Arc;

/// How [`relax_all`] works through its queue.
pub type RelaxOptions<'a> = StreamOptions<'a>;

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
    stream(jobs, provider, &settings, options, on_result)
}

impl Guide for Settings {
    type Course = Walk;

    fn begin(&self, _: usize, system: &Arc<System>, positions: &mut [f64]) -> Result<Walk> {
        Walk::new(self, system, positions)
    }

    fn want(&self, capabilities: &Capabilities) -> Want {
        Settings::want(capabilities)
    }
}

impl Course for Walk {
    type Outcome = Relaxed;
    const ENDS_WITH_A_STEP: bool = false;

    fn observe(&mut self, forces: View<'_>) -> std::result::Result<(), usize> {
        Walk::observe(self, forces)
    }

    fn advance(&mut self, positions: &mut Array, first: usize) {
        Walk::advance(self, positions, first);
    }

    fn progress(&self) -> Progress {
        Walk::progress(self)
    }

    fn steps(&self) -> u64 {
        Walk::steps(self)
    }

    fn level(&self) -> Option<f64> {
        None
    }

    fn copy_moving(&self, from: View<'_>, to: &mut [f64]) {
        Walk::copy_moving(self, from, to);
    }

    fn outcome(&self, index: usize, job: &Job, positions: &[f64], energy: Option<f64>) -> Relaxed {
        let free = job.cell.is_none() && job.system.axes == [true; 3];
        let rmsd = if free { superposed_rmsd } else { plain_rmsd };
        Relaxed {
            index,
            positions: positions.to_vec(),
            energy,
            fmax: self.fmax(),
            steps: Walk::steps(self),
            progress: Walk::progress(self),
            rmsd: rmsd(&job.positions, positions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Law, Toy, atoms, icosahedron, shaken, truncated_octahedron};
    use super::super::tests::{Run, both};
    use super::*;
    use crate::array::DType;
    use crate::stream::Order;
    use crate::units::Quantity;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

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
