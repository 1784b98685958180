//! Taking molecules through a sampler, and saying how it went.

use crate::error::Result;
use scorefield_integrators::denoise::{Denoised, Denoiser, denoise_all};
use scorefield_integrators::propagator::Context;
use scorefield_integrators::stream::{Job, StreamOptions, Tally};
use scorefield_integrators::{Batch, DType, ForceProvider, Input, Noise, Output, Progress, State, Want};
use scorefield_models::molecule::{Convention, Perceiver, Verdict};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most atoms of a batch, and how many batches are at work at a time: one per thread where it is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Atoms.
    pub atoms: usize,
    /// Batches.
    pub at_work: Option<usize>,
}

impl Batches {
    /// For networks on this machine's threads, which are fastest in small batches.
    pub const HERE: Batches = Batches { atoms: 512, at_work: None };
    /// For devices, which are fastest in large ones: one is made ready while the other is evaluated.
    pub const ON_DEVICE: Batches = Batches { atoms: 16_384, at_work: Some(2) };
}

/// What came out, in the order of the queue.
pub struct Generated {
    /// Molecules, or what went wrong with them.
    pub results: Vec<(usize, scorefield_integrators::Result<Denoised>)>,
    /// Counts.
    pub tally: Tally,
    /// Time it took.
    pub time: Duration,
}

/// Denoises `jobs` in all threads of the present pool.
///
/// # Errors
/// Where nothing can begin.
pub fn denoise<J>(
    jobs: J,
    provider: &dyn ForceProvider,
    denoiser: &Denoiser,
    noise: Noise,
    dtype: DType,
    batches: Batches,
    stop: &AtomicBool,
    progress: &(dyn Fn(&Tally) + Sync),
) -> Result<Generated>
where
    J: IntoIterator<Item = Job>,
    J::IntoIter: Send,
{
    let Batches { atoms: batch_atoms, at_work: threads } = batches;
    let (stop, progress) = (Some(stop), Some(progress));
    let options = StreamOptions { dtype, batch_atoms, threads, stop, progress, ..StreamOptions::default() };
    let results = Mutex::new(Vec::new());
    let start = Instant::now();
    let tally = denoise_all(jobs, provider, denoiser, noise, &options, |index, result| {
        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
    })?;
    Ok(Generated { results: results.into_inner().unwrap_or_else(PoisonError::into_inner), tally, time: start.elapsed() })
}

/// The path of molecule `id` of the queue: positions `[N, 3]` (nm) before the first evaluation and after each.
///
/// # Errors
/// Those of the provider.
pub fn record(job: &Job, id: u32, provider: &dyn ForceProvider, denoiser: &Denoiser, noise: Noise, dtype: DType) -> Result<Vec<Vec<f64>>> {
    let batch = Batch::new(vec![job.system.clone()], vec![id])?;
    let mut state = State::at_rest(&batch, &job.positions, dtype)?;
    let mut out = Output::new(&batch, dtype, Want::FORCES);
    let mut provider = provider.fork()?;
    let mut propagator = denoiser.propagator();
    let mut path = vec![job.positions.clone()];
    let mut ctx = Context { batch: &batch, state: &mut state, provider: provider.as_mut(), out: &mut out, noise };
    propagator.prepare(&mut ctx)?;
    while propagator.progress(1) == [Progress::Running] {
        propagator.step(&mut ctx)?;
        path.push(ctx.state.positions().to_f64());
    }
    Ok(path)
}

/// Noise levels `σ̂` (nm) that the forces on structures show.
///
/// # Errors
/// Those of the provider.
pub fn noise_levels(jobs: &[Job], provider: &dyn ForceProvider, denoiser: &Denoiser, dtype: DType) -> Result<Vec<f64>> {
    let mut provider = provider.fork()?;
    let mut levels = Vec::with_capacity(jobs.len());
    for chunk in jobs.chunks(16) {
        let batch = Batch::new(chunk.iter().map(|j| j.system.clone()).collect(), (0..chunk.len() as u32).collect())?;
        let state = State::at_rest(&batch, &chunk.iter().flat_map(|j| j.positions.iter().copied()).collect::<Vec<_>>(), dtype)?;
        let mut out = Output::new(&batch, dtype, Want::FORCES);
        provider.prepare(&batch, dtype)?;
        let cells = chunk.iter().map(|j| j.cell).collect::<Option<Vec<_>>>();
        let input = Input { batch: &batch, positions: state.positions(), cells: cells.as_deref(), clock: state.clock, want: Want::FORCES };
        provider.evaluate(&input, &mut out)?;
        levels.extend((0..chunk.len()).map(|b| denoiser.noise_level(batch.system(b), out.forces.part(batch.range3(b)))));
    }
    Ok(levels)
}

/// How a run of a sampler went, for people.
pub struct Summary {
    /// The sampler in words.
    pub sampler: String,
    /// Molecules that were asked for.
    pub asked: usize,
    converged: usize,
    unconverged: usize,
    failed: usize,
    evaluations: [f64; 3],
    sigma: [f64; 2],
    rmsd: f64,
    seconds: f64,
    total: f64,
    /// Whether the start means something: structures, not noise.
    pub from_structures: bool,
    /// What the molecules are worth, where that was looked at.
    pub verdicts: Option<Verdicts>,
}

/// How many structures are molecules (RDKit's DetermineBonds, atoms may be charged).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// One connected molecule without unpaired electrons.
    pub valid: usize,
    /// In several pieces.
    pub disconnected: usize,
    /// With unpaired electrons.
    pub radical: usize,
    /// No molecule at all.
    pub none: usize,
}

impl Verdicts {
    /// Judges structures: atomic numbers `[N]` and positions `[N, 3]` in nm.
    pub fn of<'a>(structures: impl IntoIterator<Item = (&'a [u32], &'a [f64])>) -> Self {
        let mut perceiver = Perceiver::new();
        let mut verdicts = Verdicts::default();
        for (elements, positions) in structures {
            *match Verdict::of(&mut perceiver, elements, positions, Convention::default()) {
                Verdict::Valid(_) => &mut verdicts.valid,
                Verdict::Disconnected(_) => &mut verdicts.disconnected,
                Verdict::Radical(_) => &mut verdicts.radical,
                Verdict::NotPerceived(_) => &mut verdicts.none,
            } += 1;
        }
        verdicts
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.valid + self.disconnected + self.radical + self.none;
        let share = |n: usize| 100.0 * n as f64 / all.max(1) as f64;
        // Of n independent molecules.
        let p = self.valid as f64 / all.max(1) as f64;
        let error = 100.0 * (p * (1.0 - p) / all.max(1) as f64).sqrt();
        write!(
            f,
            "valid {:.1} ± {error:.1} %, in pieces {:.1} %, radical {:.1} %, no molecule {:.1} %",
            share(self.valid),
            share(self.disconnected),
            share(self.radical),
            share(self.none)
        )
    }
}

impl Summary {
    /// Counts `generated`.
    pub fn new(sampler: String, asked: usize, generated: &Generated, from_structures: bool) -> Self {
        let done: Vec<&Denoised> = generated.results.iter().filter_map(|r| r.1.as_ref().ok()).collect();
        let n = done.len().max(1) as f64;
        let evaluations = || done.iter().map(|d| d.evaluations as f64);
        let total: f64 = evaluations().fold(0.0, |a, b| a + b);
        let mean = |f: fn(&Denoised) -> f64| done.iter().map(|d| f(d)).sum::<f64>() / n;
        Summary {
            sampler,
            asked,
            converged: generated.tally.converged,
            unconverged: generated.tally.stalled + generated.tally.unfinished,
            failed: generated.tally.failed,
            evaluations: [total / n, evaluations().fold(f64::INFINITY, f64::min), evaluations().fold(0.0, f64::max)],
            sigma: [mean(|d| d.sigma_start), mean(|d| d.sigma_end)],
            rmsd: mean(|d| d.rmsd),
            seconds: generated.time.as_secs_f64(),
            total,
            from_structures,
            verdicts: None,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, least, most] = if self.converged + self.unconverged > 0 { self.evaluations } else { [0.0; 3] };
        writeln!(f, "{:>9}  {:>10}  {:>13}  {:>8}  {:>24}", "molecules", "converged", "not converged", "failed", "evaluations (min, max)")?;
        writeln!(
            f,
            "{:>9}  {:>10}  {:>13}  {:>8}  {:>24}",
            self.asked,
            self.converged,
            self.unconverged,
            self.failed,
            format!("{mean:.1} ({least:.0}, {most:.0})")
        )?;
        if let Some(verdicts) = &self.verdicts {
            writeln!(f, "{verdicts}")?;
        }
        if self.from_structures {
            writeln!(
                f,
                "noise level σ̂ {:.4} Å at the start, {:.4} Å at the last evaluation; moved {:.3} Å (means)",
                10.0 * self.sigma[0],
                10.0 * self.sigma[1],
                10.0 * self.rmsd
            )?;
        }
        let rate = |n: f64| if self.seconds > 0.0 { n / self.seconds } else { f64::INFINITY };
        write!(
            f,
            "{}: {:.2} s, {:.1} molecules/s, {:.0} evaluations/s",
            self.sampler,
            self.seconds,
            rate((self.converged + self.unconverged) as f64),
            rate(self.total)
        )
    }
}
