//! How the published models were trained (Plainer et al., tables of their appendix, and the configurations of their code).

use super::config::ModelConfig;
use serde::{Deserialize, Serialize};

/// The paper's four ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// One network, score matching.
    Diffusion,
    /// A network per range of times, score matching.
    Mixture,
    /// One network, with the Fokker–Planck residual.
    FokkerPlanck,
    /// A mixture, with the residual for the network of the smallest times.
    Both,
}

impl Variant {
    /// Whether there are several networks.
    pub fn is_mixture(self) -> bool {
        matches!(self, Variant::Mixture | Variant::Both)
    }

    /// Whether the residual is used.
    pub fn has_residual(self) -> bool {
        matches!(self, Variant::FokkerPlanck | Variant::Both)
    }
}

/// One published training.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Networks.
    pub config: ModelConfig,
    /// Epochs per network.
    pub epochs: Vec<f64>,
    /// Times at which w(t) changes, per network.
    pub midpoints: Vec<f64>,
    /// Rows of a batch.
    pub batch: usize,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Weight of the residual; 0 without it.
    pub residual_weight: f64,
}

/// Systems and how they were trained: epochs of one network and of the three of a mixture, batch, weights of the residual
/// alone and with a mixture, learning rate with the residual.
const SYSTEMS: [(&str, f64, [f64; 3], usize, [f64; 2], f64); 10] = [
    ("double-well-1d", 200.0, [0.0; 3], 128, [5e-4, 5e-4], 3e-4),
    ("double-well-2d", 200.0, [0.0; 3], 128, [5e-4, 5e-4], 3e-4),
    ("muller-brown", 180.0, [30.0, 30.0, 120.0], 128, [5e-4, 5e-4], 3e-4),
    ("alanine-dipeptide", 10_000.0, [1000.0, 2000.0, 7000.0], 1024, [5e-4, 1e-3], 3e-4),
    ("alanine-dipeptide-6", 10_000.0, [0.0; 3], 1024, [5e-4, 1e-3], 3e-4),
    ("alanine-dipeptide-10", 10_000.0, [0.0; 3], 1024, [5e-4, 1e-3], 3e-4),
    ("alanine-dipeptide-22", 10_000.0, [0.0; 3], 1024, [5e-4, 1e-3], 3e-4),
    ("dipeptides", 120.0, [10.0, 20.0, 100.0], 1024, [5e-3, 1e-4], 3e-4),
    ("chignolin", 2000.0, [100.0, 200.0, 1700.0], 1024, [2e-3, 2e-3], 1e-4),
    ("bba", 1500.0, [200.0, 400.0, 1200.0], 1024, [1e-2, 2e-2], 1e-4),
];

/// Names of the systems that [`published`] knows.
pub fn systems() -> Vec<&'static str> {
    SYSTEMS.iter().map(|s| s.0).collect()
}

/// The published training of `system` in the way of `variant`; `None` where there is none.
pub fn published(system: &str, variant: Variant) -> Option<Published> {
    let &(name, epochs, mixture, batch, weights, rate) = SYSTEMS.iter().find(|s| s.0 == system)?;
    let muller_brown = name == "muller-brown";
    let (config, epochs, midpoints) = if variant.is_mixture() {
        let config = ModelConfig::preset(&format!("{name}-mixture"))?;
        (config, mixture.to_vec(), vec![0.8, 0.35, if muller_brown { 0.05 } else { 0.03 }])
    } else {
        (ModelConfig::preset(name)?, vec![epochs], vec![if muller_brown { 0.5 } else { 0.3 }])
    };
    Some(Published {
        config,
        epochs,
        midpoints,
        batch,
        learning_rate: if variant.has_residual() { rate } else { 3e-4 },
        residual_weight: match variant {
            Variant::FokkerPlanck => weights[0],
            Variant::Both => weights[1],
            _ => 0.0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainings_fit_their_networks() {
        for name in systems() {
            for variant in [Variant::Diffusion, Variant::Mixture, Variant::FokkerPlanck, Variant::Both] {
                let Some(p) = published(name, variant) else {
                    assert!(variant.is_mixture() && ModelConfig::preset(&format!("{name}-mixture")).is_none(), "{name}");
                    continue;
                };
                assert_eq!((p.epochs.len(), p.midpoints.len()), (p.config.experts.len(), p.config.experts.len()), "{name}");
                assert!(p.epochs.iter().all(|e| *e > 0.0) && (p.residual_weight > 0.0) == variant.has_residual());
                for (e, m) in p.config.experts.iter().zip(&p.midpoints) {
                    assert!(*m > e.range.start && *m < e.range.end, "{name}: {m}");
                }
            }
        }
        assert_eq!(published("alanine-dipeptide", Variant::Both).unwrap().residual_weight, 1e-3);
        assert!(published("crambin", Variant::Diffusion).is_none());
    }
}
