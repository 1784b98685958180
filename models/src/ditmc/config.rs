//! What a DiTMC network looks like: sizes and presets.

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::matrix::PAD;
use crate::molecule::Vocabulary;
use serde::{Deserialize, Serialize};

/// Rows of the embedding of atomic numbers.
pub const TYPES: usize = 119;
/// Rows of the embedding of hops.
pub const HOPS: usize = 512;
/// Kinds of bonds: single, double, triple, aromatic.
pub const BONDS: usize = 4;
/// Columns of the readout: drift, and a head for noise that nobody trains.
pub(super) const READOUT: usize = 6;
/// Numbers of heads that attention is compiled for.
const HEADS: [usize; 7] = [1, 2, 3, 4, 6, 8, 12];

/// How positions enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Absolute positional embedding: a perceptron of each atom's coordinates.
    #[default]
    Ape,
    /// Relative positional embedding: a perceptron of each pair's displacement.
    Rpe,
    /// SO(3)-equivariant: features that turn with the molecule, and a basis of distance and direction of each pair.
    Pe3,
}

/// How pairs of atoms are conditioned on the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairTokens {
    /// By the number of bonds between them (equation 10).
    #[default]
    AllPairs,
    /// By the conditioner's token of their bond, one learned vector for all that have none (equation 9).
    BondPairs,
}

/// What the network is told of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeEmbedding {
    /// Waves of t, as published.
    #[default]
    Linear,
    /// Waves of `1 − log₁₀(1 + 9(1 − t))`, which is finer towards the data: the inverse of the sampler's logarithmic times.
    Logarithmic,
}

impl TimeEmbedding {
    /// The number of which waves are made.
    pub(super) fn of(self, t: f64) -> f64 {
        match self {
            TimeEmbedding::Linear => t,
            TimeEmbedding::Logarithmic => 1.0 - (1.0 + 9.0 * (1.0 - t)).log10(),
        }
    }
}

/// Sizes of a DiTMC (J. T. Frank, W. Ripken, G. Lied, K.-R. Müller, O. T. Unke, S. Chmiela, *Sampling 3D molecular conformers
/// with diffusion transformers*, arXiv 2506.15378). The number of features F is `heads · head-width`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DitmcConfig {
    /// How positions enter.
    pub variant: Variant,
    /// Blocks of the transformer.
    pub blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_width: usize,
    /// Hidden channels of a block's perceptron, in units of F.
    pub expansion: usize,
    /// Layers of the network that reads the graph.
    pub conditioner_layers: usize,
    /// What a pair of atoms is told about the graph.
    pub pair_tokens: PairTokens,
    /// Elements that have a column.
    pub vocabulary: Vocabulary,
    /// Highest degree of the features of PE(3); 1 as published. With 0 the last block alone makes vectors.
    #[serde(skip_serializing_if = "is_published")]
    pub degree: usize,
    /// What the network is told of the time.
    #[serde(skip_serializing_if = "is_default")]
    pub time_embedding: TimeEmbedding,
    /// What was predicted before is an input (T. Chen, R. Zhang, G. Hinton, *Analog bits*, arXiv 2208.04202).
    #[serde(skip_serializing_if = "is_default")]
    pub self_conditioning: bool,
    /// The network also learns to do without the graph, so that samples can be guided by the difference that the graph makes
    /// (J. Ho, T. Salimans, *Classifier-free diffusion guidance*, arXiv 2207.12598).
    #[serde(skip_serializing_if = "is_default")]
    pub guidance: bool,
}

/// What is left out of files, so that models without an option are as they were before it existed.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The published degree, which other variants do not read.
fn is_published(degree: &usize) -> bool {
    *degree == 1
}

impl Default for DitmcConfig {
    /// The base size.
    fn default() -> Self {
        DitmcConfig {
            variant: Variant::Ape,
            blocks: 6,
            heads: 8,
            head_width: 32,
            expansion: 4,
            conditioner_layers: 2,
            pair_tokens: PairTokens::AllPairs,
            vocabulary: Vocabulary::Drugs,
            degree: 1,
            time_embedding: TimeEmbedding::Linear,
            self_conditioning: false,
            guidance: false,
        }
    }
}

impl DitmcConfig {
    /// Names of presets.
    pub const PRESETS: [&str; 8] = [
        "ditmc-ape-base",
        "ditmc-ape-large",
        "ditmc-ape-small",
        "ditmc-ape-base-qm9",
        "ditmc-rpe-base",
        "ditmc-rpe-small",
        "ditmc-pe3-base",
        "ditmc-pe3-small",
    ];

    /// A preset: the published base and large sizes with the vocabulary of drugs, the base size with that of QM9, and small ones
    /// (4 × 128; PE(3), whose features have eight components, 4 × 64) for a few cores.
    pub fn preset(name: &str) -> Option<Self> {
        let base = DitmcConfig::default();
        match name {
            "ditmc-ape-base" => Some(base),
            "ditmc-ape-large" => Some(DitmcConfig { blocks: 8, heads: 12, conditioner_layers: 3, ..base }),
            "ditmc-ape-base-qm9" => Some(DitmcConfig { vocabulary: Vocabulary::Qm9, ..base }),
            "ditmc-ape-small" => Some(DitmcConfig { blocks: 4, head_width: 16, vocabulary: Vocabulary::Qm9, ..base }),
            "ditmc-rpe-base" => Some(DitmcConfig { variant: Variant::Rpe, ..base }),
            "ditmc-rpe-small" => Self::preset("ditmc-ape-small").map(|small| DitmcConfig { variant: Variant::Rpe, ..small }),
            "ditmc-pe3-base" => Some(DitmcConfig { variant: Variant::Pe3, ..base }),
            "ditmc-pe3-small" => Some(DitmcConfig { variant: Variant::Pe3, blocks: 4, head_width: 8, vocabulary: Vocabulary::Qm9, ..base }),
            _ => None,
        }
    }

    /// Channels of an atom, F.
    pub fn features(&self) -> usize {
        self.heads * self.head_width
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        Layout::new(self).map.len()
    }

    /// Checks sizes before memory is taken.
    ///
    /// # Errors
    /// Names what is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("ditmc", name, value, remedy));
        if !HEADS.contains(&self.heads) {
            return refuse("heads", &self.heads, "give 1, 2, 3, 4, 6, 8 or 12");
        }
        if !(1..=512).contains(&self.head_width) || !self.features().is_multiple_of(PAD) {
            return refuse("head-width", &self.head_width, "give 1 to 512, so that heads · head-width is a multiple of 16");
        }
        if !(1..=64).contains(&self.blocks) {
            return refuse("blocks", &self.blocks, "give 1 to 64");
        }
        if !(1..=16).contains(&self.expansion) {
            return refuse("expansion", &self.expansion, "give 1 to 16");
        }
        if !(1..=16).contains(&self.conditioner_layers) {
            return refuse("conditioner-layers", &self.conditioner_layers, "give 1 to 16");
        }
        if self.degree > 2 || (self.variant != Variant::Pe3 && self.degree != 1) {
            return refuse("degree", &self.degree, "give 0, 1 or 2, and only with variant = \"pe3\"");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_numbers_of_parameters() {
        let count = |name: &str| DitmcConfig::preset(name).unwrap().parameters();
        assert_eq!(count("ditmc-ape-base"), 9_561_670);
        assert_eq!(count("ditmc-rpe-base"), 9_561_670);
        assert_eq!(count("ditmc-ape-large"), 28_293_990);
        assert_eq!(count("ditmc-pe3-base"), 27_165_504);
        assert_eq!(count("ditmc-pe3-small"), 1_320_016);
        // A perceptron of three numbers without biases; a token of atoms, and one of pairs (of 128 channels in PE(3)).
        let base = DitmcConfig::default();
        let with = |self_conditioning, guidance, variant| {
            let config = DitmcConfig { self_conditioning, guidance, variant, ..base.clone() };
            config.parameters() - DitmcConfig { variant, ..base.clone() }.parameters()
        };
        assert_eq!(with(true, false, Variant::Ape), 3 * 256 + 256 * 256);
        assert_eq!(with(true, false, Variant::Pe3), 3 * 256 + 256 * 256);
        assert_eq!(with(false, true, Variant::Rpe), 2 * 256);
        assert_eq!(with(true, true, Variant::Pe3), 3 * 256 + 256 * 256 + 256 + 128);
        // Thirty columns fewer at the conditioner's input.
        assert_eq!(count("ditmc-ape-base-qm9"), 9_561_670 - 30 * 256);
        assert!(DitmcConfig::PRESETS.iter().all(|p| DitmcConfig::preset(p).is_some_and(|c| c.check().is_ok())));
    }

    #[test]
    fn every_parameter_has_a_place_of_its_own() {
        let kinds = [(Variant::Ape, 1), (Variant::Pe3, 0), (Variant::Pe3, 1), (Variant::Pe3, 2)];
        for (pair_tokens, (variant, degree)) in
            [PairTokens::AllPairs, PairTokens::BondPairs].into_iter().flat_map(|p| kinds.map(|k| (p, k)))
        {
            let options = DitmcConfig { self_conditioning: degree != 2, guidance: true, ..DitmcConfig::default() };
            let config = DitmcConfig { blocks: 2, heads: 3, head_width: 16, pair_tokens, variant, degree, ..options };
            let layout = Layout::new(&config);
            let mut seen = vec![false; layout.len];
            for &p in &layout.map {
                assert!(!std::mem::replace(&mut seen[p], true));
            }
            let shapes: usize = layout.entries.iter().map(|e| e.shape.iter().product::<usize>()).sum();
            assert_eq!(shapes, layout.map.len());
        }
    }

    /// Files of models without options say nothing of them, and have the tensors that they had.
    #[test]
    fn options_that_are_off_leave_no_trace() {
        let plain = DitmcConfig::default();
        let text = serde_json::to_string(&plain).unwrap();
        assert!(!text.contains("guidance") && !text.contains("self") && !text.contains("time"), "{text}");
        let on = DitmcConfig { self_conditioning: true, guidance: true, ..plain.clone() };
        let (before, after) = (Layout::new(&plain), Layout::new(&on));
        assert_eq!(before.map, after.map[..before.map.len()]);
        assert!(before.entries.iter().zip(&after.entries).all(|(a, b)| a.name == b.name && a.shape == b.shape));
        let u = |t: f64| TimeEmbedding::Logarithmic.of(t);
        assert!(u(0.0).abs() < 1e-15 && (u(1.0) - 1.0).abs() < 1e-15 && (u(1.0 - (10f64.sqrt() - 1.0) / 9.0) - 0.5).abs() < 1e-15);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = DitmcConfig::default();
        for bad in [
            DitmcConfig { heads: 5, ..good.clone() },
            DitmcConfig { head_width: 1, ..good.clone() },
            DitmcConfig { blocks: 0, ..good.clone() },
            DitmcConfig { expansion: 0, ..good.clone() },
            DitmcConfig { conditioner_layers: 17, ..good.clone() },
            DitmcConfig { degree: 2, ..good.clone() },
            DitmcConfig { variant: Variant::Pe3, degree: 3, ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(good.check().is_ok());
    }
}
