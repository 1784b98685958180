//! Independent samples of a trained model, spread over threads.

use crate::error::{Error, Result};
use rayon::prelude::*;
use scorefield_integrators::Noise;
use scorefield_integrators::simd::SimdReal;
use scorefield_models::scoremd;
use scorefield_models::scoremd::sampler::{Sampler, Settings};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most samples that one thread draws at a time.
const CHUNK: usize = 64;

/// Draws `n` samples `[n, D]` in nm or reduced units. `progress` hears how many are done, from any thread, and stops the work by
/// returning `false`; then there is no result. A sample depends on the seed and its number alone.
///
/// # Errors
/// Where the model cannot be evaluated, or a sample is not finite.
pub fn draw<T: SimdReal>(
    model: &scoremd::Model,
    settings: Settings,
    n: usize,
    seed: u64,
    pool: &rayon::ThreadPool,
    progress: &(dyn Fn(usize) -> bool + Sync),
) -> Result<Option<Vec<f64>>> {
    let d = model.dimension();
    let noise = Noise::new(seed);
    let mut x = vec![T::default(); n * d];
    let done = AtomicUsize::new(0);
    let stopped = std::sync::atomic::AtomicBool::new(!progress(0));
    // Pieces for all threads; samples do not depend on their size.
    let chunk = n.div_ceil(pool.current_num_threads()).clamp(1, CHUNK);
    let work = |(k, x): (usize, &mut [T])| -> Result<()> {
        if stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A sampler's memory is small beside what it draws.
        let mut sampler = Sampler::<T>::new(model, settings)?;
        sampler.draw(noise, (k * chunk) as u32, x)?;
        let now = done.fetch_add(x.len() / d, Ordering::Relaxed) + x.len() / d;
        if !progress(now) {
            stopped.store(true, Ordering::Relaxed);
        }
        Ok(())
    };
    pool.install(|| x.par_chunks_mut(chunk * d).enumerate().try_for_each(work))?;
    if stopped.into_inner() {
        return Ok(None);
    }
    if let Some(k) = x.iter().position(|x| !x.to_f64().is_finite()) {
        return Err(Error::Run(format!(
            "sample {} is not finite: the scores grew without bound; use more --steps, or look at the model's training",
            k / d
        )));
    }
    Ok(Some(x.iter().map(|x| x.to_f64() / model.scale).collect()))
}
