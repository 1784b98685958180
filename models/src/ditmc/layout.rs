//! Where each parameter of a DiTMC network lies, and its name in files.

use super::config::{BONDS, DitmcConfig, HOPS, PairTokens, READOUT, TYPES, Variant};
use super::equivariant;
use crate::matrix::padded;
use scorefield_integrators::{Noise, Purpose, Real};
use std::ops::Range;

/// One tensor in files, `[in, out]` where it is a matrix.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its path in the authors' parameters.
    pub(super) name: String,
    /// Shape in files.
    pub(super) shape: Vec<usize>,
    /// What training starts from.
    start: Start,
}

/// What training starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Start {
    Zero,
    One,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// A dense layer as kernels see it: `weight [in, out]`, padded.
#[derive(Clone, Debug)]
pub(super) struct DensePlace {
    pub(super) weight: Range<usize>,
    pub(super) bias: Option<Range<usize>>,
    /// Padded widths.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// Scale and bias of a layer norm.
#[derive(Clone, Debug, Default)]
pub(super) struct NormPlace {
    pub(super) scale: Range<usize>,
    pub(super) bias: Range<usize>,
}

/// Two dense layers.
pub(super) type PerceptronPlace = [DensePlace; 2];

/// An embedding of the conditioner: perceptron, then layer norm.
#[derive(Clone, Debug)]
pub(super) struct EmbeddingPlaces {
    pub(super) perceptron: PerceptronPlace,
    pub(super) norm: NormPlace,
}

/// A layer of the conditioner.
#[derive(Clone, Debug)]
pub(super) struct ConditionerPlaces {
    pub(super) edge_norm: NormPlace,
    pub(super) edge: PerceptronPlace,
    pub(super) node_norm: NormPlace,
    pub(super) node: PerceptronPlace,
}

/// A block of the transformer.
#[derive(Clone, Debug)]
pub(super) struct BlockPlaces {
    pub(super) norm: NormPlace,
    pub(super) modulation: DensePlace,
    /// Query, key and value beside each other.
    pub(super) qkv: DensePlace,
    /// The product's weight of each channel, κ.
    pub(super) kappa: Range<usize>,
    pub(super) out: DensePlace,
    pub(super) perceptron: PerceptronPlace,
}

/// What aPE and rPE have of their own.
///
/// Values, filters and what the output layer reads are stored with channel c in head c mod H, as the authors store queries and keys;
/// theirs have channel c in head c div (F/H). A vector of lanes then has one pattern of heads everywhere.
#[derive(Clone, Debug)]
pub(super) struct ScalarPlaces {
    /// Of coordinates, or of displacements.
    pub(super) position: PerceptronPlace,
    /// `[HOPS, F]`, or one row for atoms without bond.
    pub(super) pair_embedding: Range<usize>,
    /// Perceptron of embedded hops.
    pub(super) pair_perceptron: Option<PerceptronPlace>,
    /// `[F, 2 · blocks · F]`: of each block the map to what queries meet, then that to what values meet.
    pub(super) pair_maps: DensePlace,
    pub(super) blocks: Vec<BlockPlaces>,
    pub(super) readout_modulation: DensePlace,
    pub(super) readout: DensePlace,
}

/// The transformer proper.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Scalar(ScalarPlaces),
    Equivariant(equivariant::Places),
}

/// Tokens of a graph that is not known: of every atom, and of every pair of atoms.
#[derive(Clone, Debug)]
pub(super) struct UnknownGraph {
    pub(super) atom: Range<usize>,
    pub(super) pair: Range<usize>,
}

/// Where each parameter lies among the padded ones. Padding is zero and stays so.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) entries: Vec<Entry>,
    pub(super) nodes: EmbeddingPlaces,
    pub(super) edges: EmbeddingPlaces,
    pub(super) conditioner: Vec<ConditionerPlaces>,
    /// Learned frequencies of the time.
    pub(super) frequencies: Range<usize>,
    pub(super) time: PerceptronPlace,
    /// `[TYPES, F]`.
    pub(super) types: Range<usize>,
    pub(super) body: Body,
    /// Of what was predicted before.
    pub(super) previous: Option<PerceptronPlace>,
    pub(super) unknown: Option<UnknownGraph>,
    /// Padded parameters.
    pub(super) len: usize,
    /// Place of each real parameter, in the order of the entries and of their elements in files.
    pub(super) map: Vec<usize>,
}

impl Body {
    /// Width of a pair's token.
    fn pair_width(&self, features: usize) -> usize {
        match self {
            Body::Scalar(_) => features,
            Body::Equivariant(places) => places.pair_width(),
        }
    }
}

impl Layout {
    pub(super) fn new(config: &DitmcConfig) -> Self {
        let mut b = Builder::default();
        let f = config.features();
        let embedding = |b: &mut Builder, name: &str, inputs: usize| EmbeddingPlaces {
            perceptron: b.perceptron(&format!("conditioner.{name}.MLP_0"), inputs, f, f, true),
            norm: b.norm(&format!("conditioner.{name}.LayerNorm_0"), f),
        };
        let nodes = embedding(&mut b, "node_embedding", config.vocabulary.width());
        let edges = embedding(&mut b, "edge_embedding", BONDS);
        let conditioner = (0..config.conditioner_layers).map(|k| {
            let name = format!("conditioner.layers_{k}");
            ConditionerPlaces {
                edge_norm: b.norm(&format!("{name}.LayerNorm_0"), 3 * f),
                edge: b.perceptron(&format!("{name}.MLP_0"), 3 * f, f, f, true),
                node_norm: b.norm(&format!("{name}.LayerNorm_1"), 2 * f),
                node: b.perceptron(&format!("{name}.MLP_1"), 2 * f, f, f, true),
            }
        });
        let conditioner = conditioner.collect();
        let frequencies = b.vector("time_embedding.GaussianRandomFourierFeatures_0.b", &[1, f / 4], Start::Normal(1.0), |c| c);
        let time = b.perceptron("time_embedding.MLP_0", f / 4 * 2, f, f, true);
        // Rows of embeddings are as long as those of one-hot vectors times a matrix of F rows.
        let rows = Start::Normal((1.0 / f as f64).sqrt());
        let types = b.vector("node_embedding.Embed_0.embedding", &[TYPES, f], rows, |c| c);
        let body = match config.variant {
            Variant::Ape | Variant::Rpe => Body::Scalar(scalar(&mut b, config, rows)),
            Variant::Pe3 => Body::Equivariant(equivariant::Places::new(&mut b, config)),
        };
        // Options come last, so that all else lies where it does without them.
        let previous = config.self_conditioning.then(|| b.perceptron("self_conditioning.MLP_0", 3, f, f, false));
        let unknown = config.guidance.then(|| UnknownGraph {
            atom: b.vector("unknown_graph.atom", &[f], Start::Normal(1.0), |c| c),
            pair: b.vector("unknown_graph.pair", &[body.pair_width(f)], Start::Normal(1.0), |c| c),
        });
        let Builder { entries, len, map } = b;
        Layout { entries, nodes, edges, conditioner, frequencies, time, types, body, previous, unknown, len, map }
    }

    /// Padded parameters from real ones.
    pub(super) fn pad<T: Real>(&self, real: &[f64]) -> Vec<T> {
        let mut values = vec![T::default(); self.len];
        for (&place, &v) in self.map.iter().zip(real) {
            values[place] = T::from_f64(v);
        }
        values
    }

    /// Parameters `[len]` that training starts from: weights normal with variance 1/inputs (Y. LeCun et al.), biases zero; the
    /// modulation of every block zero, so that blocks begin as identities (adaLN-Zero).
    pub(super) fn initialise(&self, noise: Noise) -> Vec<f64> {
        let mut real = Vec::with_capacity(self.map.len());
        for (k, e) in self.entries.iter().enumerate() {
            let n: usize = e.shape.iter().product();
            real.extend((0..n).map(|i| match e.start {
                Start::Zero => 0.0,
                Start::One => 1.0,
                Start::Normal(s) => s * noise.normals(i as u32, 0, k as u64, Purpose::Initialisation)[0],
            }));
        }
        self.pad(&real)
    }
}

/// From the files' order of a head's channels to ours.
pub(super) fn by_heads(config: &DitmcConfig) -> impl Fn(usize) -> usize + Copy + use<> {
    let (heads, width) = (config.heads, config.head_width);
    move |c| c % width * heads + c / width
}

/// The transformer of aPE and rPE; `rows`: what embeddings start from.
fn scalar(b: &mut Builder, config: &DitmcConfig, rows: Start) -> ScalarPlaces {
    let f = config.features();
    let (position, pair) = match config.variant {
        Variant::Ape => ("node_embedding.MLP_0", "edge_embedding.MLP_0"),
        _ => ("edge_embedding.MLP_0", "edge_embedding.MLP_1"),
    };
    let position = b.perceptron(position, 3, f, f, false);
    let (pair_embedding, pair_perceptron) = match config.pair_tokens {
        PairTokens::AllPairs => {
            let embedding = b.vector("edge_embedding.Embed_0.embedding", &[HOPS, f], rows, |c| c);
            (embedding, Some(b.perceptron(pair, f, f, f, true)))
        }
        PairTokens::BondPairs => (b.vector("edge_embedding.not_bonded", &[f], Start::Normal(1.0), |c| c), None),
    };
    let heads = by_heads(config);
    let plain = |c: usize| c;
    let attention = |l: usize, part: &str| format!("layers_{l}_encoder.SelfAttention_0.{part}");
    let mut parts = Vec::new();
    for l in 0..config.blocks {
        parts.push((attention(l, "relative_positional_encoding"), false));
        parts.push((attention(l, "filter.0+"), true));
    }
    let pair_maps = b.dense_of_parts(f, f, &parts, &heads);
    let blocks = (0..config.blocks).map(|l| {
        let name = format!("layers_{l}_encoder");
        BlockPlaces {
            norm: b.norm(&format!("{name}.LayerNorm_0"), f),
            modulation: b.dense(&format!("{name}.Dense_0"), f, 6 * f, true, Some(Start::Zero), &plain),
            qkv: b.dense_of_parts(
                f,
                f,
                &[(attention(l, "query.0+"), false), (attention(l, "key.0+"), false), (attention(l, "value.0+"), true)],
                &heads,
            ),
            kappa: b.vector(&attention(l, "tensor.kernel"), &[1, 1, 1, 1, 1, 1, f], Start::One, heads),
            out: b.dense(&attention(l, "out.0+"), f, f, true, None, &heads),
            perceptron: b.perceptron(&format!("{name}.MLP_0"), f, config.expansion * f, f, true),
        }
    });
    let blocks = blocks.collect();
    let readout_modulation = b.dense("readout.Dense_0", f, 2 * f, true, None, &plain);
    let readout = b.dense("readout.Dense_1", f, READOUT, true, None, &plain);
    ScalarPlaces { position, pair_embedding, pair_perceptron, pair_maps, blocks, readout_modulation, readout }
}

/// Lays parameters out, one after the other.
#[derive(Default)]
pub(super) struct Builder {
    entries: Vec<Entry>,
    len: usize,
    map: Vec<usize>,
}

impl Builder {
    pub(super) fn take(&mut self, len: usize) -> Range<usize> {
        let start = self.len;
        self.len += padded(len);
        start..start + len
    }

    /// A tensor whose last axis is written in the order of `column`; widths need no padding.
    pub(super) fn vector(&mut self, name: &str, shape: &[usize], start: Start, column: impl Fn(usize) -> usize) -> Range<usize> {
        let n: usize = shape.iter().product();
        let width = shape[shape.len() - 1];
        let range = self.take(n);
        self.map.extend((0..n).map(|i| range.start + i / width * width + column(i % width)));
        self.entries.push(Entry { name: name.to_owned(), shape: shape.to_vec(), start });
        range
    }

    pub(super) fn norm(&mut self, name: &str, width: usize) -> NormPlace {
        NormPlace {
            scale: self.vector(&format!("{name}.scale"), &[width], Start::One, |c| c),
            bias: self.vector(&format!("{name}.bias"), &[width], Start::Zero, |c| c),
        }
    }

    /// The kernel of `inputs × width` numbers inside `weight`, at column `first`; rows and columns in the orders given.
    fn kernel(
        &mut self,
        name: &str,
        (inputs, width): (usize, usize),
        (weight, stride, first): (usize, usize, usize),
        start: Option<Start>,
        row: &dyn Fn(usize) -> usize,
        column: &dyn Fn(usize) -> usize,
    ) {
        let columns: Vec<usize> = (0..width).map(|c| first + column(c)).collect();
        self.map.reserve(inputs * width);
        for r in 0..inputs {
            let start = weight + row(r) * stride;
            self.map.extend(columns.iter().map(|c| start + c));
        }
        let start = start.unwrap_or(Start::Normal((1.0 / inputs as f64).sqrt()));
        self.entries.push(Entry { name: format!("{name}.kernel"), shape: vec![inputs, width], start });
    }

    /// A dense layer whose inputs are in the order of `row`.
    pub(super) fn dense(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
        start: Option<Start>,
        row: &dyn Fn(usize) -> usize,
    ) -> DensePlace {
        let weight = self.take(padded(inputs) * padded(outputs));
        self.kernel(name, (inputs, outputs), (weight.start, padded(outputs), 0), start, row, &|c| c);
        let bias = bias.then(|| {
            let range = self.take(padded(outputs));
            self.map.extend(range.start..range.start + outputs);
            self.entries.push(Entry { name: format!("{name}.bias"), shape: vec![outputs], start: Start::Zero });
            range
        });
        DensePlace { weight, bias, inputs: padded(inputs), outputs: padded(outputs) }
    }

    /// Dense layers of one input beside each other, without biases; those that are marked with columns in the order of `heads`.
    pub(super) fn dense_of_parts(
        &mut self,
        inputs: usize,
        width: usize,
        parts: &[(String, bool)],
        heads: &dyn Fn(usize) -> usize,
    ) -> DensePlace {
        let outputs = width * parts.len();
        let weight = self.take(inputs * outputs);
        for (k, (name, marked)) in parts.iter().enumerate() {
            let place = (weight.start, outputs, k * width);
            let column: &dyn Fn(usize) -> usize = if *marked { heads } else { &|c| c };
            self.kernel(name, (inputs, width), place, None, &|r| r, column);
        }
        DensePlace { weight, bias: None, inputs, outputs }
    }

    pub(super) fn perceptron(&mut self, name: &str, inputs: usize, hidden: usize, outputs: usize, bias: bool) -> PerceptronPlace {
        [
            self.dense(&format!("{name}.Dense_0"), inputs, hidden, bias, None, &|c| c),
            self.dense(&format!("{name}.Dense_1"), hidden, outputs, bias, None, &|c| c),
        ]
    }
}
