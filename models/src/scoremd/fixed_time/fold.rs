//! The graph transformer's parameters brought into the form that [`graph`](super::graph) multiplies with. All of it is exact
//! algebra on the published network, done once in double precision.
//!
//! Edges are linear in `x_j − x_i`: with `M = W_e W_edge` and `c = W_e b_edge + b_e` they are `e_ij = M (x_j − x_i) + c`. What
//! does not depend on `j` drops out of the softmax over `j`, and weights sum to one, so that for a head `a`, with the
//! normalised features `u` of a bead (layer normalisation's affine part folded into the matrices that follow),
//!
//! ```text
//! logits_ij = U_i · u_j + m_i · x_j,    U_i = γ W_kᵀ (W_q (γ u_i + β) + b_q)/8,    m_i = Mᵀ (W_q (γ u_i + β) + b_q)/8
//! out_i = Σ_a C_a Σ_j a_ij u_j + P_a Σ_j a_ij (x_j − x_i) + constant,    C_a = W_out,a W_v,a γ,    P_a = W_out,a M_a
//! ```
//!
//! `W_kᵀ W_q` and `C_a` are `h × h` matrices: 8 h² multiply-adds instead of 2 · 512 h, and no queries, keys, values or edges.
//! Features of the first layer do not depend on `x` at all: there logits are `l_ij + m_i · x_j` and `C_a u_j` a table.
//! Matrices that act on `u`, whose mean is zero, are centred, so that gradients of `u` have no mean either.

use super::product::{Panels, padded};
use super::rows::EPSILON;
use crate::scoremd::config::{BeadFeatures, Body, EMBEDDING, ExpertConfig, HEAD_WIDTH, HEADS, Head, Layout, RESIDUE_TABLES};
use scorefield_integrators::simd::SimdReal;

/// Slopes of all heads: three coordinates each.
pub(super) const SLOPES: usize = 3 * HEADS;
/// Room behind a row, for vectors that begin at its last slopes.
const SLACK: usize = 16;

/// Length of a row of `n` features for each head and the slopes after them.
pub(super) fn row_len(n: usize) -> usize {
    padded(HEADS * n + SLOPES) + SLACK
}

/// Row-major matrix in double precision.
#[derive(Clone)]
struct Wide {
    columns: usize,
    data: Vec<f64>,
}

impl Wide {
    fn zeros(rows: usize, columns: usize) -> Self {
        Wide { columns, data: vec![0.0; rows * columns] }
    }

    fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.columns..(r + 1) * self.columns]
    }

    fn at(&self, r: usize, c: usize) -> f64 {
        self.data[r * self.columns + c]
    }

    fn transposed(&self) -> Wide {
        let rows = self.data.len() / self.columns;
        Wide { columns: rows, data: (0..self.data.len()).map(|i| self.at(i % rows, i / rows)).collect() }
    }

    /// `self · other`.
    fn times(&self, other: &Wide) -> Wide {
        let rows = self.data.len() / self.columns;
        let mut out = Wide::zeros(rows, other.columns);
        for r in 0..rows {
            let to = &mut out.data[r * other.columns..(r + 1) * other.columns];
            for (k, &x) in self.row(r).iter().enumerate() {
                for (to, &y) in to.iter_mut().zip(other.row(k)) {
                    *to += x * y;
                }
            }
        }
        out
    }

    /// `self · v`.
    fn apply(&self, v: &[f64]) -> Vec<f64> {
        self.data.chunks_exact(self.columns).map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum()).collect()
    }

    /// Rows `range`.
    fn rows(&self, range: std::ops::Range<usize>) -> Wide {
        Wide { columns: self.columns, data: self.data[range.start * self.columns..range.end * self.columns].to_vec() }
    }

    /// Columns `range`.
    fn part(&self, range: std::ops::Range<usize>) -> Wide {
        Wide { columns: range.len(), data: self.data.chunks_exact(self.columns).flat_map(|row| row[range.clone()].to_vec()).collect() }
    }

    /// Every column times its factor.
    fn scaled(mut self, factors: &[f64]) -> Wide {
        for row in self.data.chunks_exact_mut(self.columns) {
            row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
        self
    }

    /// Every row less its mean.
    fn centred(mut self) -> Wide {
        for row in self.data.chunks_exact_mut(self.columns) {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        self
    }

    /// The matrix that acts on rows from the left: `x ↦ self x` as `xᵀ selfᵀ`.
    fn panels<T: SimdReal>(&self) -> Panels<T> {
        Panels::new(self.columns, self.data.len() / self.columns, |k, c| self.at(c, k))
    }

    /// The matrix of its gradient: `g ↦ selfᵀ g`.
    fn panels_back<T: SimdReal>(&self) -> Panels<T> {
        Panels::new(self.data.len() / self.columns, self.columns, |k, c| self.at(k, c))
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| x + y).collect()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Rounded, and padded with zeros to whole vectors.
fn vector<T: SimdReal>(v: &[f64]) -> Vec<T> {
    let mut out = vec![T::default(); padded(v.len())];
    out.iter_mut().zip(v).for_each(|(to, &x)| *to = T::from_f64(x));
    out
}

/// A network's parameters by name.
struct Parameters<'a> {
    layout: Layout,
    values: &'a [f32],
}

impl Parameters<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        let entry = self.layout.find(name).map(|e| e.offset..e.offset + e.len()).unwrap_or_default();
        self.values[entry].iter().map(|&x| x.into()).collect()
    }

    fn matrix(&self, name: &str) -> Wide {
        let columns = self.layout.find(name).and_then(|e| e.shape.last().copied()).unwrap_or(1);
        Wide { columns, data: self.vector(name) }
    }
}

/// `y = W x + b` with its gradient.
pub(super) struct Dense<T> {
    pub(super) forward: Panels<T>,
    pub(super) bias: Vec<T>,
    pub(super) back: Panels<T>,
}

impl<T: SimdReal> Dense<T> {
    fn new(weight: &Wide, bias: &[f64]) -> Self {
        Dense { forward: weight.panels(), bias: vector(bias), back: weight.panels_back() }
    }
}

/// The last feed-forward layer of a potential, contracted with what the energy needs of it:
/// `E_i = s (d · f) + (1 − s) (d · r) + b` with `s = σ(w_f · f + w_r · r)` and `f = W g + c`.
pub(super) struct Contracted<T> {
    /// `d W` and `d c`.
    pub(super) energy: (Vec<T>, T),
    /// `w_f W` and `w_f c`.
    pub(super) gate: (Vec<T>, T),
    /// `d`.
    pub(super) decoder: Vec<T>,
    /// `b`.
    pub(super) bias: f64,
    /// `w_r`.
    pub(super) old: Vec<T>,
}

/// What is behind the second normalisation of a layer.
pub(super) enum Second<T> {
    /// A feed-forward layer and its gate.
    Full { dense: Dense<T>, gate: [Vec<T>; 2] },
    /// The same contracted to the energy of each bead.
    Energy(Contracted<T>),
}

/// Attention of a layer after the first.
pub(super) struct Attention<T> {
    /// Normalised features to `[8][h]` of `U`, then `[8][3]` of `m`.
    pub(super) logits: Dense<T>,
    /// `[8][h]` of mean features, then `[8][3]` of mean displacements, to the output.
    pub(super) out: Dense<T>,
}

/// One layer.
pub(super) struct Layer<T> {
    /// `None` in the first layer, which has [`Constants`].
    pub(super) attention: Option<Attention<T>>,
    pub(super) gate: [Vec<T>; 2],
    pub(super) first: Dense<T>,
    pub(super) second: Second<T>,
}

/// A graph transformer, ready for evaluation at one time after another.
pub(super) struct Folded<T> {
    pub(super) beads: usize,
    pub(super) features: usize,
    pub(super) layers: Vec<Layer<T>>,
    /// For a score head: all features to all scores, and the bias.
    pub(super) scores: Option<(Panels<T>, Vec<T>)>,
    source: Source,
}

/// What constants at a time are made from.
struct Source {
    config: ExpertConfig,
    /// Bead features without time `[N][h]`, and the columns of the time features.
    nodes: Vec<Vec<f64>>,
    times: Wide,
    ln: [Vec<f64>; 2],
    q: (Wide, Vec<f64>),
    k: (Wide, Vec<f64>),
    v: (Wide, Vec<f64>),
    edge: Wide,
    edge_bias: Vec<f64>,
    out: (Wide, Vec<f64>),
    /// `W_out,a M_a`, `[h][8 · 3]`.
    displacements: Wide,
}

/// What depends on time and beads only.
pub(super) struct Constants<T> {
    /// Features before the first layer `[N, h]`, padded.
    pub(super) nodes: Vec<T>,
    /// Logits `[N, 8, N]`, rows padded.
    pub(super) logits: Vec<T>,
    /// Their slopes over `x_j`, `[N, 8, 3]`.
    pub(super) slopes: Vec<T>,
    /// Weights `[8 N]` and mean displacements `[8 · 3]` to the output of the attention.
    pub(super) out: Dense<T>,
}

impl<T: SimdReal> Folded<T> {
    /// Folds `values` of a graph transformer. `tokens` are each bead's residue, atom, element and place for
    /// [`BeadFeatures::Residue`].
    pub(super) fn new(config: &ExpertConfig, values: &[f32], tokens: &[[u32; 4]]) -> Self {
        let Body::GraphTransformer { beads, width: h, layers, features } = &config.body else {
            unreachable!("only graph transformers are folded")
        };
        let (beads, h, count) = (*beads, *h, *layers);
        let p = Parameters { layout: config.layout(), values };
        let edge_embedding = (p.matrix("edge_embedding.weight"), p.vector("edge_embedding.bias"));
        let edge = |l: usize| {
            let w = p.matrix(&format!("layer{l}.edge.weight"));
            let bias = add(&w.apply(&edge_embedding.1), &p.vector(&format!("layer{l}.edge.bias")));
            (w.times(&edge_embedding.0), bias)
        };
        let affine = |l: usize, name: &str| (p.matrix(&format!("layer{l}.{name}.weight")), p.vector(&format!("layer{l}.{name}.bias")));
        let norm = |l: usize, name: &str| [p.vector(&format!("layer{l}.{name}.weight")), p.vector(&format!("layer{l}.{name}.bias"))];
        // s = σ(W [a, r, a − r]) = σ((w₁ + w₃) · a + (w₂ − w₃) · r).
        let gate = |l: usize, name: &str| {
            let w = p.vector(&format!("layer{l}.{name}.weight"));
            let old: Vec<f64> = (0..h).map(|i| w[h + i] - w[2 * h + i]).collect();
            [add(&w[..h], &w[2 * h..]), old]
        };
        let head = |a: usize| a * HEAD_WIDTH..(a + 1) * HEAD_WIDTH;
        let displacements = |out: &Wide, m: &Wide| {
            let mut p = Wide::zeros(h, SLOPES);
            for a in 0..HEADS {
                let part = out.part(head(a)).times(&m.rows(head(a)));
                (0..h).for_each(|r| p.data[r * SLOPES + 3 * a..][..3].copy_from_slice(part.row(r)));
            }
            p
        };

        let mut folded = Vec::with_capacity(count);
        for l in 0..count {
            let [scale, shift] = norm(l, "ln2");
            let (ff1, bias) = affine(l, "ff1");
            let bias = add(&ff1.apply(&shift), &bias);
            let first = Dense::new(&ff1.scaled(&scale).centred(), &bias);
            let (ff2, ff2_bias) = affine(l, "ff2");
            let [new, old] = gate(l, "gate2");
            let second = if l + 1 == count && config.head == Head::Potential {
                let (decoder, bias) = (p.vector("decoder.weight"), p.vector("decoder.bias"));
                let contract = |v: &[f64]| (vector(&ff2.transposed().apply(v)), T::from_f64(inner(v, &ff2_bias)));
                Second::Energy(Contracted {
                    energy: contract(&decoder),
                    gate: contract(&new),
                    decoder: vector(&decoder),
                    bias: bias[0],
                    old: vector(&old),
                })
            } else {
                Second::Full { dense: Dense::new(&ff2, &ff2_bias), gate: [vector(&new), vector(&old)] }
            };
            let attention = (l > 0).then(|| {
                let [scale, shift] = norm(l, "ln1");
                let ((q, q_bias), (k, _), (v, v_bias)) = (affine(l, "q"), affine(l, "k"), affine(l, "v"));
                let (m, c) = edge(l);
                let (out, out_bias) = affine(l, "out");
                let q_bias: Vec<f64> = add(&q.apply(&shift), &q_bias).iter().map(|x| x / (HEAD_WIDTH as f64).sqrt()).collect();
                let q = q.scaled(&scale.iter().map(|s| s / (HEAD_WIDTH as f64).sqrt()).collect::<Vec<_>>()).centred();
                let keys = k.scaled(&scale).centred();
                let v_bias = add(&add(&v.apply(&shift), &v_bias), &c);
                let values = v.scaled(&scale).centred();
                let wide = padded(h);
                let mut logits = Wide::zeros(HEADS * wide + SLOPES, h);
                let mut logits_bias = vec![0.0; HEADS * wide + SLOPES];
                let mut means = Wide::zeros(h, HEADS * wide + SLOPES);
                let slopes = displacements(&out, &m);
                for a in 0..HEADS {
                    let q_bias = &q_bias[head(a)];
                    let (q, k, m) = (q.rows(head(a)), keys.rows(head(a)).transposed(), m.rows(head(a)).transposed());
                    logits.data[a * wide * h..][..h * h].copy_from_slice(&k.times(&q).data);
                    logits_bias[a * wide..][..h].copy_from_slice(&k.apply(q_bias));
                    let slope = HEADS * wide + 3 * a;
                    logits.data[slope * h..][..3 * h].copy_from_slice(&m.times(&q).data);
                    logits_bias[slope..][..3].copy_from_slice(&m.apply(q_bias));
                    let c = out.part(head(a)).times(&values.rows(head(a)));
                    for r in 0..h {
                        means.data[r * means.columns + a * wide..][..h].copy_from_slice(c.row(r));
                        means.data[r * means.columns + slope..][..3].copy_from_slice(&slopes.row(r)[3 * a..3 * a + 3]);
                    }
                }
                Attention { logits: Dense::new(&logits, &logits_bias), out: Dense::new(&means, &add(&out.apply(&v_bias), &out_bias)) }
            });
            let [new, old] = gate(l, "gate1");
            folded.push(Layer { attention, gate: [vector(&new), vector(&old)], first, second });
        }

        let scores = (config.head == Head::Score).then(|| {
            let (decoder, bias) = (p.matrix("decoder.weight"), p.vector("decoder.bias"));
            let wide = padded(h);
            // The network gives minus the score.
            let at = |k: usize, c: usize| if k % wide < h { -decoder.at(c, k / wide * h + k % wide) } else { 0.0 };
            (Panels::new(beads * wide, 3 * beads, at), vector(&bias.iter().map(|b| -b).collect::<Vec<_>>()))
        });
        let embedding = p.matrix("node_embedding.weight");
        let bias = p.vector("node_embedding.bias");
        let inputs = embedding.columns - config.range.features();
        let nodes = (0..beads)
            .map(|i| {
                let of_bead = match features {
                    BeadFeatures::Index => (0..inputs).map(|c| if c == i { 1.0 } else { 0.0 }).collect(),
                    BeadFeatures::Residue => {
                        let rows = RESIDUE_TABLES.iter().zip(tokens[i]);
                        rows.flat_map(|((name, _), token)| p.matrix(&format!("embedding.{name}")).row(token as usize).to_vec()).collect()
                    }
                };
                let of_bead: Vec<f64> = of_bead;
                debug_assert!(*features == BeadFeatures::Index || of_bead.len() == RESIDUE_TABLES.len() * EMBEDDING);
                add(&embedding.part(0..inputs).apply(&of_bead), &bias)
            })
            .collect();
        let (m, c) = edge(0);
        let out = affine(0, "out");
        let source = Source {
            config: config.clone(),
            nodes,
            times: embedding.part(inputs..embedding.columns),
            ln: norm(0, "ln1"),
            q: affine(0, "q"),
            k: affine(0, "k"),
            v: affine(0, "v"),
            displacements: displacements(&out.0, &m),
            edge: m,
            edge_bias: c,
            out,
        };
        Folded { beads, features: h, layers: folded, scores, source }
    }

    /// Multiply-adds of products with weights and of the attention, of energy and score of one replica.
    pub(super) fn multiply_adds(&self, constants: &Constants<T>) -> usize {
        let (n, wide) = (self.beads, padded(self.features));
        let potential = self.scores.is_none();
        let dense = |d: &Dense<T>| d.forward.multiply_adds() + if potential { d.back.multiply_adds() } else { 0 };
        // Logits and means, and on the way back four of that kind.
        let pairs = HEADS * n * wide * if potential { 6 } else { 2 };
        let layer = |l: &Layer<T>| {
            let second = if let Second::Full { dense: d, .. } = &l.second { dense(d) } else { 0 };
            let attention = l.attention.as_ref().map_or(0, |a| dense(&a.logits) + dense(&a.out) + pairs);
            dense(&l.first) + second + attention
        };
        let beads = dense(&constants.out) + self.layers.iter().map(layer).sum::<usize>();
        n * beads + self.scores.as_ref().map_or(0, |s| s.0.multiply_adds())
    }

    /// Everything that depends on `t` and the beads only.
    pub(super) fn constants(&self, t: f64) -> Constants<T> {
        let s = &self.source;
        let (n, h, wide) = (self.beads, self.features, padded(self.features));
        let times = s.times.apply(&s.config.range.encode(t)[..s.config.range.features()]);
        let nodes: Vec<Vec<f64>> = s.nodes.iter().map(|node| add(node, &times)).collect();
        let normal: Vec<Vec<f64>> = nodes
            .iter()
            .map(|x| {
                let mean = x.iter().sum::<f64>() / h as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / h as f64;
                let inverse = 1.0 / (variance + EPSILON).sqrt();
                x.iter().zip(s.ln[0].iter().zip(&s.ln[1])).map(|(x, (g, b))| (x - mean) * inverse * g + b).collect()
            })
            .collect();
        let of = |(w, b): &(Wide, Vec<f64>)| -> Vec<Vec<f64>> { normal.iter().map(|u| add(&w.apply(u), b)).collect() };
        let (q, k, v) = (of(&s.q), of(&s.k), of(&s.v));
        let scale = 1.0 / (HEAD_WIDTH as f64).sqrt();
        let columns = padded(n);
        let mut logits = vec![T::default(); n * HEADS * columns];
        let mut slopes = vec![T::default(); n * SLOPES];
        let mut out = Wide::zeros(h, HEADS * n + SLOPES);
        for i in 0..n {
            for a in 0..HEADS {
                let head = a * HEAD_WIDTH..(a + 1) * HEAD_WIDTH;
                for j in 0..n {
                    let logit = inner(&q[i][head.clone()], &k[j][head.clone()]) * scale;
                    logits[(i * HEADS + a) * columns + j] = T::from_f64(logit);
                }
                for d in 0..3 {
                    let slope: f64 = head.clone().map(|f| q[i][f] * s.edge.at(f, d)).sum();
                    slopes[i * SLOPES + 3 * a + d] = T::from_f64(slope * scale);
                }
                let value = add(&v[i][head.clone()], &s.edge_bias[head.clone()]);
                for r in 0..h {
                    out.data[r * out.columns + a * n + i] = inner(&s.out.0.row(r)[head.clone()], &value);
                }
            }
        }
        for r in 0..h {
            out.data[r * out.columns + HEADS * n..][..SLOPES].copy_from_slice(s.displacements.row(r));
        }
        let mut padded_nodes = vec![T::default(); n * wide];
        for (to, node) in padded_nodes.chunks_exact_mut(wide).zip(&nodes) {
            to.iter_mut().zip(node).for_each(|(to, &x)| *to = T::from_f64(x));
        }
        Constants { nodes: padded_nodes, logits, slopes, out: Dense::new(&out, &s.out.1) }
    }
}
