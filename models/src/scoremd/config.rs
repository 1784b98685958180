//! Shapes of the published networks, and where their parameters lie.

use super::process::TimeRange;
use serde::{Deserialize, Serialize};

/// What a network's last layer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// An energy, whose negative gradient is the score.
    Potential,
    /// The score itself; it is not the gradient of anything.
    Score,
}

/// How beads are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum BeadFeatures {
    /// One-hot index: a network for one system.
    Index,
    /// Learned embeddings of width 16 of residue (20), atom name (5), element (3) and place in the chain (2): transferable.
    Residue,
}

/// Sizes of the tables of [`BeadFeatures::Residue`]: residue, atom name, element, place in the chain.
pub const RESIDUE_TABLES: [(&str, usize); 4] = [("residue", 20), ("atom", 5), ("element", 3), ("place", 2)];
/// Width of each of those embeddings.
pub const EMBEDDING: usize = 16;
/// Attention heads of the graph transformer.
pub const HEADS: usize = 8;
/// Width of an attention head.
pub const HEAD_WIDTH: usize = 64;

/// The network without its head and range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Body {
    /// Dense layers with swish between, for systems of few dimensions.
    Mlp {
        /// Coordinates of a configuration.
        dimension: usize,
        /// Widths of the hidden layers.
        hidden: Vec<usize>,
    },
    /// Attention between all beads with edges `x_j − x_i`; 8 heads of 64.
    GraphTransformer {
        /// Beads of a configuration, of 3 coordinates each.
        beads: usize,
        /// Width of a bead's features.
        width: usize,
        /// Number of layers.
        layers: usize,
        /// What a bead's features start from.
        features: BeadFeatures,
    },
}

impl Body {
    /// Coordinates of a configuration, D.
    pub fn dimension(&self) -> usize {
        match self {
            Body::Mlp { dimension, .. } => *dimension,
            Body::GraphTransformer { beads, .. } => 3 * beads,
        }
    }
}

/// One network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertConfig {
    /// Its body.
    pub body: Body,
    /// Its head.
    pub head: Head,
    /// The times it is for.
    pub range: TimeRange,
}

/// A whole model: one network, or a mixture of one per range of times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Networks from the largest times to the smallest; their ranges touch.
    pub experts: Vec<ExpertConfig>,
}

/// One parameter tensor in the flat array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name, as `layer0.q.weight`.
    pub name: String,
    /// Shape; weights are `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// First element.
    pub offset: usize,
}

impl Entry {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names, shapes and places of a network's parameters in one flat array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// Adds a tensor after the last one.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) {
        let entry = Entry { name: name.into(), shape: shape.to_vec(), offset: self.len };
        self.len += entry.len();
        self.entries.push(entry);
    }

    fn dense(&mut self, name: &str, outputs: usize, inputs: usize) {
        self.push(format!("{name}.weight"), &[outputs, inputs]);
        self.push(format!("{name}.bias"), &[outputs]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.push(format!("{name}.weight"), &[width]);
        self.push(format!("{name}.bias"), &[width]);
    }

    /// All tensors, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl ExpertConfig {
    /// Where this network's parameters lie. MLP: `layer{l}`; graph transformer: `embedding.{residue,atom,element,place}` for
    /// transferable ones, `node_embedding`, `edge_embedding`, then per layer `ln1 q k v edge out gate1 ln2 ff1 ff2 gate2`,
    /// and `decoder`.
    pub fn layout(&self) -> Layout {
        let mut l = Layout::default();
        let outputs = |dimension| if self.head == Head::Potential { 1 } else { dimension };
        match &self.body {
            Body::Mlp { dimension, hidden } => {
                let mut inputs = dimension + self.range.features();
                for (i, &width) in hidden.iter().enumerate() {
                    l.dense(&format!("layer{i}"), width, inputs);
                    inputs = width;
                }
                l.dense(&format!("layer{}", hidden.len()), outputs(*dimension), inputs);
            }
            Body::GraphTransformer { beads, width: h, layers, features } => {
                let inner = HEADS * HEAD_WIDTH;
                let inputs = match features {
                    BeadFeatures::Index => *beads,
                    BeadFeatures::Residue => {
                        for (name, rows) in RESIDUE_TABLES {
                            l.push(format!("embedding.{name}"), &[rows, EMBEDDING]);
                        }
                        RESIDUE_TABLES.len() * EMBEDDING
                    }
                };
                l.dense("node_embedding", *h, inputs + self.range.features());
                l.dense("edge_embedding", *h, 3);
                for i in 0..*layers {
                    let name = |part: &str| format!("layer{i}.{part}");
                    l.norm(&name("ln1"), *h);
                    for part in ["q", "k", "v", "edge"] {
                        l.dense(&name(part), inner, *h);
                    }
                    l.dense(&name("out"), *h, inner);
                    l.push(name("gate1.weight"), &[1, 3 * h]);
                    l.norm(&name("ln2"), *h);
                    l.dense(&name("ff1"), 4 * h, *h);
                    l.dense(&name("ff2"), *h, 4 * h);
                    l.push(name("gate2.weight"), &[1, 3 * h]);
                }
                match self.head {
                    Head::Potential => l.dense("decoder", 1, *h),
                    Head::Score => l.dense("decoder", 3 * beads, beads * h),
                }
            }
        }
        l
    }
}

/// Names of the published models, for messages.
pub const PRESETS: [&str; 17] = [
    "double-well-1d",
    "double-well-2d",
    "muller-brown",
    "muller-brown-mixture",
    "alanine-dipeptide",
    "alanine-dipeptide-mixture",
    "alanine-dipeptide-6",
    "alanine-dipeptide-10",
    "alanine-dipeptide-22",
    "dipeptides",
    "dipeptides-mixture",
    "chignolin",
    "chignolin-mixture",
    "bba",
    "bba-mixture",
    "trp-cage",
    "trp-cage-mixture",
];

/// Ranges of the published mixtures, from large times to small.
pub const MIXTURE_RANGES: [TimeRange; 3] =
    [TimeRange { start: 0.6, end: 1.0 }, TimeRange { start: 0.1, end: 0.6 }, TimeRange { start: 0.0, end: 0.1 }];

impl ModelConfig {
    /// Whether beads are told apart by residue and name, so that one model is for many molecules.
    pub fn is_transferable(&self) -> bool {
        self.experts.iter().any(|e| matches!(e.body, Body::GraphTransformer { features: BeadFeatures::Residue, .. }))
    }

    /// A published model by name (one of [`PRESETS`]).
    pub fn preset(name: &str) -> Option<ModelConfig> {
        use BeadFeatures::{Index, Residue};
        use Head::{Potential, Score};
        let mlp = |dimension, hidden: &[usize]| Body::Mlp { dimension, hidden: hidden.to_vec() };
        let graph = |beads, width, layers, features| Body::GraphTransformer { beads, width, layers, features };
        let one = |body| ModelConfig { experts: vec![ExpertConfig { body, head: Potential, range: TimeRange::ALL }] };
        let mixture = |parts: [(Body, Head); 3]| {
            let experts = parts.into_iter().zip(MIXTURE_RANGES);
            ModelConfig { experts: experts.map(|((body, head), range)| ExpertConfig { body, head, range }).collect() }
        };
        let protein = |beads, high| {
            mixture([
                (graph(beads, high, if high == 96 { 2 } else { 3 }, Index), Score),
                (graph(beads, high, if high == 96 { 2 } else { 3 }, Index), Score),
                (graph(beads, 128, 3, Index), Potential),
            ])
        };
        Some(match name {
            "double-well-1d" => one(mlp(1, &[92, 92, 92])),
            "double-well-2d" | "muller-brown" => one(mlp(2, &[92, 92, 92])),
            "muller-brown-mixture" => {
                mixture([(mlp(2, &[54, 54]), Potential), (mlp(2, &[64, 64]), Potential), (mlp(2, &[64, 64, 64]), Potential)])
            }
            "alanine-dipeptide" => one(graph(5, 96, 2, Index)),
            "alanine-dipeptide-mixture" => {
                mixture([(graph(5, 96, 2, Index), Score), (graph(5, 96, 2, Index), Score), (graph(5, 96, 2, Index), Potential)])
            }
            "alanine-dipeptide-6" => one(graph(6, 96, 2, Index)),
            "alanine-dipeptide-10" => one(graph(10, 96, 2, Index)),
            "alanine-dipeptide-22" => one(graph(22, 96, 2, Index)),
            "dipeptides" => one(graph(10, 128, 3, Residue)),
            "dipeptides-mixture" => {
                mixture([(graph(10, 96, 2, Residue), Score), (graph(10, 96, 2, Residue), Score), (graph(10, 128, 3, Residue), Potential)])
            }
            "chignolin" => one(graph(10, 128, 3, Index)),
            "chignolin-mixture" => protein(10, 96),
            "bba" => one(graph(28, 128, 3, Index)),
            "bba-mixture" => protein(28, 128),
            "trp-cage" => one(graph(20, 128, 3, Index)),
            "trp-cage-mixture" => protein(20, 128),
            _ => return None,
        })
    }

    /// Number of parameters of each network.
    pub fn parameters(&self) -> Vec<usize> {
        self.experts.iter().map(|e| e.layout().len()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_published_numbers_of_parameters() {
        for (name, want) in [
            ("muller-brown", vec![17_849]),
            ("muller-brown-mixture", vec![3_565, 4_865, 8_833]),
            ("alanine-dipeptide", vec![647_585]),
            ("alanine-dipeptide-mixture", vec![654_991, 654_991, 647_585]),
            ("dipeptides", vec![1_398_497]),
            ("dipeptides-mixture", vec![682_750, 682_750, 1_398_497]),
            ("chignolin", vec![1_391_105]),
            ("chignolin-mixture", vec![677_086, 677_086, 1_391_105]),
            ("bba", vec![1_393_409]),
            ("bba-mixture", vec![1_694_804, 1_694_804, 1_393_409]),
        ] {
            assert_eq!(ModelConfig::preset(name).expect(name).parameters(), want, "{name}");
        }
        assert!(PRESETS.iter().all(|p| ModelConfig::preset(p).is_some()));
    }
}
