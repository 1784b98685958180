//! Where the parameters of PE(3) lie, and which features each block reads and makes.

use super::super::config::{DitmcConfig, HOPS, PairTokens};
use super::super::layout::{Builder, DensePlace, NormPlace, PerceptronPlace, Start, by_heads};
use std::ops::Range;

/// Radial functions.
pub(in super::super) const RADIAL: usize = 64;
/// Features of an embedded number of hops.
const PAIR_FEATURES: usize = 128;

/// A kind of features: degree l, parity p (0 even, 1 odd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Irrep {
    pub(in super::super) parity: usize,
    pub(in super::super) degree: usize,
    /// Components of the irreps before it.
    pub(in super::super) first: usize,
}

impl Irrep {
    /// Components.
    pub(in super::super) fn rows(&self) -> usize {
        2 * self.degree + 1
    }

    pub(in super::super) fn is_scalar(&self) -> bool {
        self.parity == 0 && self.degree == 0
    }

    fn name(&self) -> String {
        format!("{}{}", self.degree, ["+", "-"][self.parity])
    }
}

/// A block of the transformer.
#[derive(Clone, Debug)]
pub(in super::super) struct BlockPlaces {
    /// What it reads, what its messages are of, and what there is after it.
    pub(in super::super) inputs: Vec<Irrep>,
    pub(in super::super) messages: Vec<Irrep>,
    pub(in super::super) features: Vec<Irrep>,
    pub(in super::super) norm: NormPlace,
    /// Columns: γ₁ of the inputs, β₁, α₁ and γ₂ of the features, β₂, α₂ of the features.
    pub(in super::super) modulation: DensePlace,
    /// Query, key and value beside each other, of each input.
    pub(in super::super) qkv: Vec<DensePlace>,
    /// `[RADIAL, inputs · F]`.
    pub(in super::super) relative: DensePlace,
    /// Of each degree `[RADIAL, F]`.
    pub(in super::super) filters: Vec<DensePlace>,
    /// Weight of every path and channel, κ `[filter, parity, degree, parity, degree, F]`.
    pub(in super::super) kappa: Range<usize>,
    /// Sizes of κ's axes but the last.
    pub(in super::super) kappa_shape: [usize; 5],
    pub(in super::super) out: Vec<DensePlace>,
    pub(in super::super) perceptrons: Vec<PerceptronPlace>,
}

impl BlockPlaces {
    /// First column of the modulation's parts, in units of F.
    pub(in super::super) fn gamma1(&self) -> usize {
        0
    }
    pub(in super::super) fn beta1(&self) -> usize {
        self.inputs.len()
    }
    pub(in super::super) fn alpha1(&self) -> usize {
        self.inputs.len() + 1
    }
    pub(in super::super) fn gamma2(&self) -> usize {
        self.alpha1() + self.features.len()
    }
    pub(in super::super) fn beta2(&self) -> usize {
        self.gamma2() + self.features.len()
    }
    pub(in super::super) fn alpha2(&self) -> usize {
        self.beta2() + 1
    }

    /// Where the update of feature `k` comes from: the first block's has one parity and goes to both.
    pub(in super::super) fn source(&self, k: usize) -> usize {
        k % self.messages.len()
    }
}

/// What PE(3) has of its own.
#[derive(Clone, Debug)]
pub(in super::super) struct Places {
    /// Highest degree anywhere.
    pub(in super::super) degree: usize,
    /// `[HOPS, 128]`, or one row for atoms without bond.
    pub(in super::super) pair_embedding: Range<usize>,
    /// From a pair's token to the gate of every degree and radial function.
    pub(in super::super) gate: PerceptronPlace,
    pub(in super::super) blocks: Vec<BlockPlaces>,
    pub(in super::super) readout_norm: NormPlace,
    /// Columns: the scale of every degree, then a shift of scalars that nothing reads.
    pub(in super::super) readout_modulation: DensePlace,
    pub(in super::super) readout: DensePlace,
}

impl Places {
    /// Width of a pair's token.
    pub(in super::super) fn pair_width(&self) -> usize {
        self.gate[0].inputs
    }

    pub(in super::super) fn new(b: &mut Builder, config: &DitmcConfig) -> Self {
        let f = config.features();
        // Vectors come out, so that there is degree 1 in the end whatever is asked for.
        let degree = config.degree.max(1);
        let plain = |c: usize| c;
        let (pair_embedding, width) = match config.pair_tokens {
            PairTokens::AllPairs => {
                let rows = Start::Normal((1.0 / PAIR_FEATURES as f64).sqrt());
                (b.vector("edge_embedding.Embed_0.embedding", &[HOPS, PAIR_FEATURES], rows, plain), PAIR_FEATURES)
            }
            PairTokens::BondPairs => (b.vector("edge_embedding.not_bonded", &[f], Start::Normal(1.0), plain), f),
        };
        let gate = [
            b.dense("edge_embedding.MLP_0.Dense_0", width, PAIR_FEATURES, false, None, &plain),
            b.dense("edge_embedding.MLP_0.Dense_1", PAIR_FEATURES, (degree + 1) * RADIAL, false, Some(Start::Zero), &plain),
        ];
        let blocks = (0..config.blocks).map(|l| block(b, config, degree, l)).collect();
        let readout_norm = b.norm("readout.LayerNorm_0", f);
        let readout_modulation = b.dense("readout.Dense_0", f, (degree + 2) * f, true, None, &plain);
        let readout = b.dense("readout.Dense_1", f, 2, false, None, &plain);
        Places { degree, pair_embedding, gate, blocks, readout_norm, readout_modulation, readout }
    }
}

fn block(b: &mut Builder, config: &DitmcConfig, most: usize, l: usize) -> BlockPlaces {
    let f = config.features();
    let (plain, heads) = (|c: usize| c, by_heads(config));
    let (first, last) = (l == 0, l + 1 == config.blocks);
    let (parities, degree_in) = if first { (1, 0) } else { (2, config.degree) };
    let degree = if last { most } else { config.degree };
    let irrep = |parity: usize, degree: usize| Irrep { parity, degree, first: parity * (most + 1).pow(2) + degree.pow(2) };
    let grid = |parities: usize, degree: usize| (0..parities).flat_map(move |p| (0..=degree).map(move |l| irrep(p, l)));
    let inputs: Vec<Irrep> = grid(parities, degree_in).collect();
    let features: Vec<Irrep> = grid(2, degree).collect();
    // From scalars harmonics make one parity of each degree.
    let messages: Vec<Irrep> = if first { (0..=degree).map(|l| irrep(l % 2, l)).collect() } else { features.clone() };

    let name = format!("layers_{l}_encoder");
    let attention = |part: &str| format!("{name}.SelfAttention_0.{part}");
    let norm = b.norm(&format!("{name}.LayerNorm_0"), f);
    let columns = inputs.len() + 3 * features.len() + 2;
    let modulation = b.dense(&format!("{name}.Dense_0"), f, columns * f, true, Some(Start::Zero), &plain);
    let qkv = inputs.iter().map(|i| {
        let part = |name: &str, marked: bool| (attention(&format!("{name}.{}", i.name())), marked);
        b.dense_of_parts(f, f, &[part("query", false), part("key", false), part("value", true)], &heads)
    });
    let qkv = qkv.collect();
    let relative = b.dense(&attention("relative_positional_encoding"), RADIAL, inputs.len() * f, false, None, &plain);
    let filters =
        (0..=degree).map(|l| b.dense_of_parts(RADIAL, f, &[(attention(&format!("filter.{}", irrep(l % 2, l).name())), true)], &heads));
    let filters = filters.collect();
    let kappa_shape = [degree + 1, parities, degree_in + 1, parities, degree + 1];
    let [d, p, i, q, o] = kappa_shape;
    // About two or three paths end in one feature.
    let kappa = b.vector(&attention("tensor.kernel"), &[1, d, p, i, q, o, f], Start::Normal(0.6), heads);
    let out = messages.iter().map(|i| b.dense(&attention(&format!("out.{}", i.name())), f, f, i.is_scalar(), None, &heads)).collect();
    let perceptrons = features.iter().map(|i| {
        let wide = config.expansion * f;
        let part = |k: usize| format!("{name}.E3MLP_0.Dense_{k}.{}", i.name());
        [b.dense(&part(0), f, wide, i.is_scalar(), None, &plain), b.dense(&part(1), wide, f, i.is_scalar(), None, &plain)]
    });
    let perceptrons = perceptrons.collect();
    BlockPlaces { inputs, messages, features, norm, modulation, qkv, relative, filters, kappa, kappa_shape, out, perceptrons }
}
