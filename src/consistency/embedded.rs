//! Frames that come with the embedded model: of the peptide it was made from, and independent samples of its own.

use super::data::Trajectory;
use crate::error::{Error, Result};
use crate::simulation::own_system;
use safetensors::{Dtype, SafeTensors};
use scorefield_models::scoremd::provider::ScoreSpec;
use std::sync::Arc;

/// Written by `data/scripts/pack_beads.py`: two tensors `[frames, beads, 3]` of 16-bit integers.
static FRAMES: &[u8] = include_bytes!("../../data/models/alanine-dipeptide/frames.safetensors");
/// Independent chains of the reference, one after another.
const CHAINS: usize = 20;
/// The integers' unit in nm.
const UNIT_NM: f64 = 1e-4;

/// Reference and samples of the embedded model.
///
/// # Errors
/// Where the embedded files do not fit each other.
pub fn embedded_frames() -> Result<(Trajectory, Trajectory)> {
    let broken = |what: String| Error::Run(format!("the embedded frames: {what}"));
    let (_, toy) = ScoreSpec::default().build().map_err(Error::from)?;
    let toy = toy.ok_or_else(|| broken("the embedded model has no system".into()))?;
    let system = Arc::new(own_system(&toy)?);
    let tensors = SafeTensors::deserialize(FRAMES).map_err(|e| broken(e.to_string()))?;
    let load = |name: &str, chains: usize| {
        let tensor = tensors.tensor(name).map_err(|e| broken(e.to_string()))?;
        if tensor.dtype() != Dtype::I16 {
            return Err(broken(format!("{name} is {:?}", tensor.dtype())));
        }
        let positions = tensor.data().chunks_exact(2).map(|b| UNIT_NM * f64::from(i16::from_le_bytes([b[0], b[1]]))).collect();
        Trajectory::new(name, system.clone(), positions, chains)
    };
    Ok((load("reference", CHAINS)?, load("samples", 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_of_the_model() {
        let (reference, samples) = embedded_frames().unwrap();
        assert_eq!((reference.frames(), reference.chains.len(), samples.frames()), (10_000, CHAINS, 10_000));
        // Bonds of data/README.md, in pm; samples carry the noise of their last step.
        let bond = |t: &Trajectory, k: usize| {
            let lengths = (0..t.frames()).map(|f| {
                let x = t.frame(f);
                (0..3).map(|a| (x[3 * k + a] - x[3 * k + 3 + a]).powi(2)).sum::<f64>().sqrt() * 1e3
            });
            lengths.sum::<f64>() / t.frames() as f64
        };
        for (k, mean) in [133.6, 147.1, 155.1, 134.4].into_iter().enumerate() {
            assert!((bond(&reference, k) - mean).abs() < 0.2, "{k}: {}", bond(&reference, k));
            assert!((bond(&samples, k) - mean).abs() < 0.5, "{k}: {}", bond(&samples, k));
        }
    }
}
