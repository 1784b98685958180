//! Parameters that training starts from: those of the published code's layers.

use super::config::{Entry, Layout};
use scorefield_integrators::{Noise, Purpose, Real};

/// Standard deviation of a standard normal number that is drawn again beyond two.
const TRUNCATED: f64 = 0.879_625_661_034_239_8;

/// Parameters `[P]` as `layout` says. Weights: truncated normal of variance 1/inputs (Y. LeCun et al.); biases 0; scales of
/// normalisations 1; embeddings normal of variance 1/width.
pub fn initialise<T: Real>(layout: &Layout, noise: Noise, network: u32) -> Vec<T> {
    let mut values = Vec::with_capacity(layout.len());
    for (k, entry) in layout.entries().iter().enumerate() {
        let draw = Draw { noise, network, tensor: k as u64 };
        values.extend((0..entry.len()).map(|i| T::from_f64(draw.value(entry, i as u32))));
    }
    values
}

struct Draw {
    noise: Noise,
    network: u32,
    tensor: u64,
}

impl Draw {
    fn value(&self, entry: &Entry, i: u32) -> f64 {
        let inputs = entry.shape.last().copied().unwrap_or(1) as f64;
        match entry.shape.len() {
            1 if entry.name.ends_with("weight") => 1.0,
            1 => 0.0,
            _ if entry.name.starts_with("embedding.") => self.normal(i, 0) / inputs.sqrt(),
            _ => self.truncated(i) / (inputs.sqrt() * TRUNCATED),
        }
    }

    fn normal(&self, i: u32, attempt: u64) -> f64 {
        self.noise.normals(i, self.network, self.tensor << 8 | attempt, Purpose::Initialisation)[0]
    }

    /// Drawn again until it is within two standard deviations; once in 10⁸⁰ it is 0 in the end.
    fn truncated(&self, i: u32) -> f64 {
        (0..60).map(|attempt| self.normal(i, attempt)).find(|z| z.abs() < 2.0).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoremd::config::ModelConfig;

    #[test]
    fn weights_have_the_variance_of_their_layer() {
        let config = ModelConfig::preset("alanine-dipeptide").unwrap();
        let layout = config.experts[0].layout();
        let values: Vec<f64> = initialise(&layout, Noise::new(1), 0);
        assert_eq!(values.len(), layout.len());
        for e in layout.entries() {
            let part = &values[e.offset..e.offset + e.len()];
            match (e.shape.len(), e.name.contains("ln"), e.name.ends_with("bias")) {
                (1, true, false) => assert!(part.iter().all(|&v| v == 1.0), "{}", e.name),
                (1, _, _) => assert!(part.iter().all(|&v| v == 0.0), "{}", e.name),
                _ => {
                    let n = part.len() as f64;
                    let variance = part.iter().map(|v| v * v).sum::<f64>() / n * e.shape[1] as f64;
                    assert!((variance - 1.0).abs() < 5.0 / n.sqrt(), "{}: {variance}", e.name);
                    let bound = 2.0 / (TRUNCATED * (e.shape[1] as f64).sqrt());
                    assert!(part.iter().all(|v| v.abs() <= bound));
                }
            }
        }
        // Networks of one model differ.
        assert_ne!(values, initialise::<f64>(&layout, Noise::new(1), 1));
    }
}
