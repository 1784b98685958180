//! The graph transformer: attention between all beads, gated residues, and a head on the beads' features.
//!
//! For a configuration of N beads, with features `n_i` of width h that start from the bead's kind and the time,
//!
//! ```text
//! b_i = W_out o_i + b_out                      o: attention of LN(n), see `attention`
//! n_i ← s b_i + (1 − s) n_i,                   s = σ( w · [b_i, n_i, b_i − n_i] )
//! f_i = W_2 gelu(W_1 LN(n_i) + b_1) + b_2
//! n_i ← s f_i + (1 − s) n_i
//! E = Σ_i (w · n_i + b)                        or  score = −(W [n_1 … n_N] + b)
//! ```
//!
//! Coordinates enter through the attention only, as `x_j − x_i`. The gradient to coordinates therefore ends at the attention of the
//! first layer. The gradient of scores to parameters is that of the energy's rate of change along `u`: tangents go forward beside
//! values in the same matrix products, and one reverse pass takes both back (see `kernels`).

mod attention;

use super::config::{BeadFeatures, EMBEDDING, ExpertConfig, HEADS, Head, Layout, RESIDUE_TABLES};
use super::kernels::{Activation, ActivationBack, Function, Gate, GateBack, Normalise, NormaliseBack};
use super::linear::{Collect, Dots, Linear, Spread, place};
use super::mlp::negate;
use super::network::{Network, Rows, Worker};
use super::process::TimeRange;
use crate::matrix::{Outer, PAD, Panels, Start, add_columns, padded};
use attention::{Attend, AttendBack, INNER, Positions, Repeat, ToCoordinates, ToPosition};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal};
use std::sync::Arc;

/// Beads that go through the network together.
const BLOCK: usize = 80;
/// Strides of wide rows; not powers of two, so that columns of rows do not compete for the same lines of the cache.
const QKV: usize = 3 * INNER + PAD;
const OUT: usize = INNER + PAD;

/// A graph transformer's shape.
#[derive(Clone, Debug)]
pub(super) struct GraphTransformer {
    layout: Layout,
    beads: usize,
    width: usize,
    layers: usize,
    features: BeadFeatures,
    /// Kinds of the beads of each system: rows of the tables of embeddings.
    systems: Arc<[Vec<[u32; 4]>]>,
    head: Head,
    range: TimeRange,
}

impl GraphTransformer {
    pub(super) fn new(
        config: &ExpertConfig,
        beads: usize,
        width: usize,
        layers: usize,
        features: BeadFeatures,
        systems: &[Vec<[u32; 4]>],
    ) -> Self {
        let layout = config.layout();
        GraphTransformer { layout, beads, width, layers, features, systems: systems.into(), head: config.head, range: config.range }
    }

    /// Features of a bead without those of the time.
    fn kinds(&self) -> usize {
        match self.features {
            BeadFeatures::Index => self.beads,
            BeadFeatures::Residue => RESIDUE_TABLES.len() * EMBEDDING,
        }
    }
}

impl<T: SimdReal> Network<T> for GraphTransformer {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn dimension(&self) -> usize {
        3 * self.beads
    }

    fn has_energy(&self) -> bool {
        self.head == Head::Potential
    }

    fn worker(&self) -> Box<dyn Worker<T>> {
        let l = &self.layout;
        Box::new(GraphWorker {
            weights: Weights {
                tables: Vec::new(),
                node: Linear::new(l, "node_embedding"),
                edge: vec![T::default(); 4 * self.width],
                layers: (0..self.layers).map(|i| Layer::new(l, i, self.width)).collect(),
                decoder: Linear::new(l, "decoder"),
                energy: AlignedBuffer::zeros(self.width),
                energy_bias: T::default(),
            },
            state: (0..self.layers).map(|_| State::default()).collect(),
            common: Common::default(),
            back: Back::default(),
            shape: self.clone(),
        })
    }
}

/// Scale and bias of a layer normalisation.
struct Norm<T> {
    place: usize,
    scale: AlignedBuffer<T>,
    bias: AlignedBuffer<T>,
}

impl<T: SimdReal> Norm<T> {
    fn new(layout: &Layout, name: &str, width: usize) -> Self {
        Norm { place: place(layout, &format!("{name}.weight")), scale: AlignedBuffer::zeros(width), bias: AlignedBuffer::zeros(width) }
    }

    fn load(&mut self, parameters: &[T]) {
        let width = self.scale.len();
        let (scale, bias) = parameters[self.place..][..2 * width].split_at(width);
        self.scale.copy_from_slice(scale);
        self.bias.copy_from_slice(bias);
    }

    /// Where the gradients of scale and bias are added.
    fn gradient<'a>(&self, gradient: &'a mut [T]) -> (&'a mut [T], &'a mut [T]) {
        let width = self.scale.len();
        gradient[self.place..][..2 * width].split_at_mut(width)
    }
}

/// Weights `w = [w₁, w₂, w₃]` of a gate, as those of the branch, `w₁ + w₃`, and of the old features, `w₂ − w₃`.
struct GateWeights<T> {
    place: usize,
    branch: AlignedBuffer<T>,
    old: AlignedBuffer<T>,
    /// Gradients of both.
    to_branch: AlignedBuffer<T>,
    to_old: AlignedBuffer<T>,
}

impl<T: SimdReal> GateWeights<T> {
    fn new(layout: &Layout, name: &str, width: usize) -> Self {
        let zeros = || AlignedBuffer::zeros(width);
        GateWeights { place: place(layout, &format!("{name}.weight")), branch: zeros(), old: zeros(), to_branch: zeros(), to_old: zeros() }
    }

    fn load(&mut self, parameters: &[T]) {
        let width = self.old.len();
        let w = &parameters[self.place..][..3 * width];
        for c in 0..width {
            self.branch[c] = w[c] + w[2 * width + c];
            self.old[c] = w[width + c] - w[2 * width + c];
        }
    }

    /// Adds the gradients of both to those of the parameters.
    fn finish(&self, gradient: &mut [T]) {
        let width = self.old.len();
        let to = &mut gradient[self.place..][..3 * width];
        for c in 0..width {
            to[c] += self.to_branch[c];
            to[width + c] += self.to_old[c];
            to[2 * width + c] += self.to_branch[c] - self.to_old[c];
        }
    }
}

/// One layer's constants.
struct Layer<T> {
    ln1: Norm<T>,
    /// From `[LN(n), x]` to `[q, k + M x, v + M x]`, and from gradients of the latter to those of `LN(n)`.
    qkv: Panels<T>,
    qkv_back: Panels<T>,
    qkv_bias: AlignedBuffer<T>,
    /// Weights and biases of q, k, v.
    qkv_places: [(usize, usize); 3],
    /// Weight and bias of the layer's embedding of edges.
    edge: (usize, usize),
    edge_weight: Vec<T>,
    /// `M [3, 512]` and `c [512]`, and their gradients.
    position: AlignedBuffer<T>,
    constant: AlignedBuffer<T>,
    to_position: AlignedBuffer<T>,
    to_constant: AlignedBuffer<T>,
    out: Linear<T>,
    gate1: GateWeights<T>,
    ln2: Norm<T>,
    ff1: Linear<T>,
    ff2: Linear<T>,
    gate2: GateWeights<T>,
}

impl<T: SimdReal> Layer<T> {
    fn new(layout: &Layout, i: usize, width: usize) -> Self {
        let name = |part: &str| format!("layer{i}.{part}");
        let places = |part: &str| (place(layout, &name(&format!("{part}.weight"))), place(layout, &name(&format!("{part}.bias"))));
        Layer {
            ln1: Norm::new(layout, &name("ln1"), width),
            qkv: Panels::zeros(width + 3, 3 * INNER),
            qkv_back: Panels::zeros(3 * INNER, width),
            qkv_bias: AlignedBuffer::zeros(3 * INNER),
            qkv_places: [places("q"), places("k"), places("v")],
            edge: places("edge"),
            edge_weight: vec![T::default(); INNER * width],
            position: AlignedBuffer::zeros(3 * INNER),
            constant: AlignedBuffer::zeros(INNER),
            to_position: AlignedBuffer::zeros(3 * INNER),
            to_constant: AlignedBuffer::zeros(INNER),
            out: Linear::new(layout, &name("out")),
            gate1: GateWeights::new(layout, &name("gate1"), width),
            ln2: Norm::new(layout, &name("ln2"), width),
            ff1: Linear::new(layout, &name("ff1")),
            ff2: Linear::new(layout, &name("ff2")),
            gate2: GateWeights::new(layout, &name("gate2"), width),
        }
    }

    /// `edge`: weight `[h, 3]` and bias `[h]` of the embedding that all layers share.
    fn load(&mut self, parameters: &[T], edge: &[T]) {
        let width = self.ln1.scale.len();
        for norm in [&mut self.ln1, &mut self.ln2] {
            norm.load(parameters);
        }
        for gate in [&mut self.gate1, &mut self.gate2] {
            gate.load(parameters);
        }
        for linear in [&mut self.out, &mut self.ff1, &mut self.ff2] {
            linear.load(parameters);
        }
        self.edge_weight.copy_from_slice(&parameters[self.edge.0..][..INNER * width]);
        let edge_bias = &parameters[self.edge.1..][..INNER];
        let (shared, shared_bias) = edge.split_at(3 * width);
        for (o, row) in self.edge_weight.chunks_exact(width).enumerate() {
            let mut sums = [0.0; 4];
            for c in 0..width {
                let w = row[c].to_f64();
                for k in 0..3 {
                    sums[k] += w * shared[3 * c + k].to_f64();
                }
                sums[3] += w * shared_bias[c].to_f64();
            }
            for k in 0..3 {
                self.position[k * INNER + o] = T::from_f64(sums[k]);
            }
            self.constant[o] = T::from_f64(sums[3] + edge_bias[o].to_f64());
        }
        for (part, &(weight, bias)) in self.qkv_places.iter().enumerate() {
            let weight = &parameters[weight..][..INNER * width];
            self.qkv.set_transposed(0, part * INNER, width, weight);
            self.qkv_back.set(part * INNER, 0, width, weight);
            self.qkv_bias[part * INNER..][..INNER].copy_from_slice(&parameters[bias..][..INNER]);
            if part > 0 {
                self.qkv.set(width, part * INNER, INNER, &self.position);
            }
        }
    }

    /// Sets the sums to zero that are turned into gradients at the end.
    fn begin(&mut self) {
        for sum in [&mut self.to_position, &mut self.to_constant] {
            sum.fill(T::default());
        }
        for gate in [&mut self.gate1, &mut self.gate2] {
            gate.to_branch.fill(T::default());
            gate.to_old.fill(T::default());
        }
    }

    /// Adds the gradients of gates, and through `M = W W_e` and `c = W b_e + b` those of the embedding of edges; `shared` is the
    /// place of that of all layers.
    fn finish(&self, edge: &[T], shared: usize, gradient: &mut [T]) {
        let width = self.ln1.scale.len();
        self.gate1.finish(gradient);
        self.gate2.finish(gradient);
        for (to, &from) in gradient[self.edge.1..][..INNER].iter_mut().zip(self.to_constant.iter()) {
            *to += from;
        }
        let (embedding, embedding_bias) = edge.split_at(3 * width);
        for o in 0..INNER {
            let [g0, g1, g2] = [self.to_position[o], self.to_position[INNER + o], self.to_position[2 * INNER + o]];
            let gc = self.to_constant[o];
            let to = &mut gradient[self.edge.0 + o * width..][..width];
            for c in 0..width {
                let e = &embedding[3 * c..][..3];
                to[c] += g0 * e[0] + g1 * e[1] + g2 * e[2] + gc * embedding_bias[c];
            }
            let (to, to_bias) = gradient[shared..][..4 * width].split_at_mut(3 * width);
            for (c, &w) in self.edge_weight[o * width..][..width].iter().enumerate() {
                to[3 * c] += g0 * w;
                to[3 * c + 1] += g1 * w;
                to[3 * c + 2] += g2 * w;
                to_bias[c] += gc * w;
            }
        }
    }
}

/// All parameters, packed.
struct Weights<T> {
    /// Embeddings of kinds of beads, table after table.
    tables: Vec<T>,
    node: Linear<T>,
    /// Weight `[h, 3]` and bias `[h]` of the embedding of edges.
    edge: Vec<T>,
    layers: Vec<Layer<T>>,
    decoder: Linear<T>,
    /// The decoder's weight and bias where it gives an energy.
    energy: AlignedBuffer<T>,
    energy_bias: T,
}

/// What a layer leaves behind for its gradient; stacked, but for `inverse`, `weights`, `tilt`, `slope` and `bend`.
#[derive(Default)]
struct State<T> {
    /// Features before the layer.
    nodes: AlignedBuffer<T>,
    unit1: AlignedBuffer<T>,
    inverse1: AlignedBuffer<T>,
    /// `[LN(n), x]`
    y1: AlignedBuffer<T>,
    qkv: AlignedBuffer<T>,
    weights: AlignedBuffer<T>,
    tilt: AlignedBuffer<T>,
    o: AlignedBuffer<T>,
    branch1: AlignedBuffer<T>,
    gate1: AlignedBuffer<T>,
    /// Features between attention and the dense layers.
    middle: AlignedBuffer<T>,
    unit2: AlignedBuffer<T>,
    inverse2: AlignedBuffer<T>,
    y2: AlignedBuffer<T>,
    /// Before and after GELU.
    before: AlignedBuffer<T>,
    after: AlignedBuffer<T>,
    slope: AlignedBuffer<T>,
    bend: AlignedBuffer<T>,
    branch2: AlignedBuffer<T>,
    gate2: AlignedBuffer<T>,
}

/// What belongs to no layer.
#[derive(Default)]
struct Common<T> {
    /// Kinds of beads and features of times.
    input: AlignedBuffer<T>,
    /// Centred coordinates and their tangents.
    x: AlignedBuffer<T>,
    /// Features after the last layer; stacked.
    last: AlignedBuffer<T>,
    /// One number per bead; stacked.
    scalars: AlignedBuffer<T>,
}

/// Gradients on the way back; stacked.
#[derive(Default)]
struct Back<T> {
    nodes: AlignedBuffer<T>,
    branch: AlignedBuffer<T>,
    y: AlignedBuffer<T>,
    inner: AlignedBuffer<T>,
    o: AlignedBuffer<T>,
    qkv: AlignedBuffer<T>,
    logits: [AlignedBuffer<T>; 3],
    x: AlignedBuffer<T>,
    input: AlignedBuffer<T>,
}

struct GraphWorker<T> {
    shape: GraphTransformer,
    weights: Weights<T>,
    state: Vec<State<T>>,
    common: Common<T>,
    back: Back<T>,
}

/// How many beads are in hand, and whether they have tangents.
#[derive(Clone, Copy)]
struct Block {
    /// Beads.
    m: usize,
    dual: bool,
    /// Rows of stacked arrays.
    stacked: usize,
    /// Row length of attention weights.
    lanes: usize,
}

impl Block {
    fn new(m: usize, dual: bool) -> Self {
        Block { m, dual, stacked: if dual { 2 * m } else { m }, lanes: padded(m * HEADS) }
    }
}

impl<T: SimdReal> GraphWorker<T> {
    /// Configurations per block.
    fn rows(&self) -> usize {
        (BLOCK / self.shape.beads).max(1)
    }

    /// Row length of `[LN(n), x]`.
    fn y1_stride(&self) -> usize {
        self.shape.width + PAD
    }

    /// Row length of the dense layers between.
    fn inner_stride(&self) -> usize {
        4 * self.shape.width + PAD
    }

    fn reserve(&mut self, block: Block) {
        let Block { m, dual, stacked, lanes } = block;
        let (h, beads) = (self.shape.width, self.shape.beads);
        let (y1, inner) = (self.y1_stride(), self.inner_stride());
        for s in &mut self.state {
            for rows in
                [&mut s.nodes, &mut s.unit1, &mut s.branch1, &mut s.middle, &mut s.unit2, &mut s.y2, &mut s.branch2, &mut self.common.last]
            {
                rows.reserve(stacked * h);
            }
            s.y1.reserve(stacked * y1);
            s.qkv.reserve(stacked * QKV);
            s.o.reserve(stacked * OUT);
            for rows in [&mut s.before, &mut s.after] {
                rows.reserve(stacked * inner);
            }
            s.slope.reserve(m * inner);
            for scalars in [&mut s.gate1, &mut s.gate2, &mut s.inverse1, &mut s.inverse2] {
                scalars.reserve(stacked);
            }
            s.weights.reserve(beads * lanes);
            if dual {
                s.tilt.reserve(beads * lanes);
                s.bend.reserve(m * inner);
            }
        }
        let b = &mut self.back;
        for rows in [&mut b.nodes, &mut b.branch, &mut b.y] {
            rows.reserve(stacked * h);
        }
        b.inner.reserve(stacked * inner);
        b.o.reserve(stacked * OUT);
        b.qkv.reserve(stacked * QKV);
        for logits in &mut b.logits {
            logits.reserve(beads * lanes);
        }
        b.x.reserve(3 * m);
        let inputs = padded(self.shape.kinds() + self.shape.range.features());
        b.input.reserve(m * inputs);
        self.common.input.reserve(m * inputs);
        self.common.x.reserve(3 * stacked);
        self.common.scalars.reserve(stacked);
    }

    /// The kinds of the beads of row `r`.
    fn system<'a>(systems: &'a [Vec<[u32; 4]>], rows: &Rows<'_, T>, r: usize) -> &'a [[u32; 4]] {
        &systems[rows.system.get(r).map_or(0, |&s| s as usize)]
    }

    /// Features of beads and times, and centred coordinates.
    fn begin(&mut self, rows: Rows<'_, T>, u: Option<&[T]>, block: Block) {
        let Block { m, dual, stacked, .. } = block;
        let GraphTransformer { beads, width: h, range, .. } = self.shape;
        let (kinds, times) = (self.shape.kinds(), range.features());
        let stride = padded(kinds + times);
        let c = &mut self.common;
        for (r, &t) in rows.t.iter().enumerate() {
            let time = range.encode(t.to_f64());
            for i in 0..beads {
                let to = &mut c.input[(r * beads + i) * stride..][..stride];
                match self.shape.features {
                    BeadFeatures::Index => {
                        to[..kinds].fill(T::default());
                        to[i] = T::from_f64(1.0);
                    }
                    BeadFeatures::Residue => {
                        let mut table = 0;
                        let bead = Self::system(&self.shape.systems, &rows, r)[i];
                        for ((&(_, len), kind), to) in RESIDUE_TABLES.iter().zip(bead).zip(to.chunks_exact_mut(EMBEDDING)) {
                            to.copy_from_slice(&self.weights.tables[(table + kind as usize) * EMBEDDING..][..EMBEDDING]);
                            table += len;
                        }
                    }
                }
                for (to, time) in to[kinds..kinds + times].iter_mut().zip(time) {
                    *to = T::from_f64(time);
                }
            }
        }
        centre(rows.x, &mut c.x[..3 * m], beads);
        if let Some(u) = u {
            centre(u, &mut c.x[3 * m..3 * stacked], beads);
        }
        let nodes = self.state.first_mut().map_or(&mut c.last, |s| &mut s.nodes);
        self.weights.node.forward(m, m, &c.input, stride, nodes, h);
        if dual {
            nodes[m * h..stacked * h].fill(T::default());
        }
    }

    /// From coordinates to the last features. With `parameters`, everything is kept that gradients to parameters need.
    fn forward(&mut self, rows: Rows<'_, T>, u: Option<&[T]>, parameters: bool, block: Block) {
        self.reserve(block);
        self.begin(rows, u, block);
        let Block { m, dual, stacked, lanes } = block;
        let (h, beads) = (self.shape.width, self.shape.beads);
        let (y1_stride, inner) = (self.y1_stride(), self.inner_stride());
        // In dynamics all configurations have the same time, hence the same features before the first attention.
        let alike = !parameters && rows.t.iter().all(|t| *t == rows.t[0]) && rows.system.iter().all(|s| *s == rows.system[0]);
        for l in 0..self.state.len() {
            let (done, rest) = self.state.split_at_mut(l + 1);
            let s = &mut done[l];
            let next = rest.first_mut().map_or(&mut self.common.last, |s| &mut s.nodes);
            let w = &self.weights.layers[l];
            // Before the first attention nothing depends on coordinates.
            let dual_before = dual && l > 0;
            let repeated = alike && l == 0;
            let m_before = if repeated { beads } else { m };
            let stacked_before = if dual_before { stacked } else { m_before };
            Normalise {
                dual: dual_before,
                m: m_before,
                width: h,
                scale: &w.ln1.scale,
                bias: &w.ln1.bias,
                x: &s.nodes,
                stride: h,
                unit: &mut s.unit1,
                inverse: &mut s.inverse1,
                y: &mut s.y1,
                y_stride: y1_stride,
            }
            .run();
            for (y, x) in s.y1.chunks_exact_mut(y1_stride).zip(self.common.x.chunks_exact(3)).take(stacked_before) {
                if repeated {
                    y[h..h + 3].fill(T::default());
                } else {
                    y[h..h + 3].copy_from_slice(x);
                }
            }
            w.qkv.apply(stacked_before, &s.y1, y1_stride, Start::Bias(&w.qkv_bias, m_before), &mut s.qkv, QKV);
            if repeated {
                Repeat { beads, m, x: &self.common.x, position: &w.position, qkv: &mut s.qkv, stride: QKV }.run();
            }
            if dual && !dual_before {
                Positions { m, x: &self.common.x[3 * m..], position: &w.position, qkv: &mut s.qkv[m * QKV..], stride: QKV }.run();
            }
            Attend {
                dual,
                beads,
                m,
                x: &self.common.x,
                position: &w.position,
                constant: &w.constant,
                qkv: &s.qkv,
                stride: QKV,
                weights: &mut s.weights,
                tilt: &mut s.tilt,
                lanes,
                o: &mut s.o,
                o_stride: OUT,
            }
            .run();
            w.out.forward(stacked, m, &s.o, OUT, &mut s.branch1, h);
            Gate {
                dual,
                m,
                width: h,
                stride: h,
                to_branch: &w.gate1.branch,
                to_old: &w.gate1.old,
                branch: &s.branch1,
                old: &s.nodes,
                y: &mut s.middle,
                gate: &mut s.gate1,
            }
            .run();
            Normalise {
                dual,
                m,
                width: h,
                scale: &w.ln2.scale,
                bias: &w.ln2.bias,
                x: &s.middle,
                stride: h,
                unit: &mut s.unit2,
                inverse: &mut s.inverse2,
                y: &mut s.y2,
                y_stride: h,
            }
            .run();
            w.ff1.forward(stacked, m, &s.y2, h, &mut s.before, inner);
            Activation {
                function: Function::Gelu,
                dual,
                m,
                stride: inner,
                x: &s.before,
                y: &mut s.after,
                slope: &mut s.slope,
                bend: &mut s.bend,
            }
            .run();
            w.ff2.forward(stacked, m, &s.after, inner, &mut s.branch2, h);
            Gate {
                dual,
                m,
                width: h,
                stride: h,
                to_branch: &w.gate2.branch,
                to_old: &w.gate2.old,
                branch: &s.branch2,
                old: &s.middle,
                y: next,
                gate: &mut s.gate2,
            }
            .run();
        }
    }

    /// From gradients of the last features in `back.nodes` to coordinates (`back.x`), or where `gradient` is given to parameters.
    fn backward(&mut self, block: Block, mut gradient: Option<&mut [T]>) {
        let Block { m, dual, stacked, lanes } = block;
        let (h, beads) = (self.shape.width, self.shape.beads);
        let (y1_stride, inner) = (self.y1_stride(), self.inner_stride());
        let b = &mut self.back;
        b.x[..3 * m].fill(T::default());
        for l in (0..self.state.len()).rev() {
            let s = &self.state[l];
            let w = &mut self.weights.layers[l];
            GateBack {
                dual,
                m,
                width: h,
                stride: h,
                to_branch: &w.gate2.branch,
                to_old: &w.gate2.old,
                branch: &s.branch2,
                old: &s.middle,
                gate: &s.gate2,
                g: &mut b.nodes,
                to_b: &mut b.branch,
                parameters: gradient.is_some().then_some((&mut w.gate2.to_branch, &mut w.gate2.to_old)),
            }
            .run();
            if let Some(gradient) = gradient.as_deref_mut() {
                w.ff2.gradient(stacked, m, &b.branch, h, &s.after, inner, gradient);
            }
            w.ff2.backward(stacked, &b.branch, h, &mut b.inner, inner);
            ActivationBack { dual, m, stride: inner, slope: &s.slope, bend: &s.bend, g: &mut b.inner }.run();
            if let Some(gradient) = gradient.as_deref_mut() {
                w.ff1.gradient(stacked, m, &b.inner, inner, &s.y2, h, gradient);
            }
            w.ff1.backward(stacked, &b.inner, inner, &mut b.y, h);
            NormaliseBack {
                dual,
                m,
                width: h,
                scale: &w.ln2.scale,
                x: &s.middle,
                unit: &s.unit2,
                inverse: &s.inverse2,
                stride: h,
                g: &mut b.y,
                g_stride: h,
                to_x: &mut b.nodes,
                parameters: gradient.as_deref_mut().map(|g| w.ln2.gradient(g)),
            }
            .run();
            GateBack {
                dual,
                m,
                width: h,
                stride: h,
                to_branch: &w.gate1.branch,
                to_old: &w.gate1.old,
                branch: &s.branch1,
                old: &s.nodes,
                gate: &s.gate1,
                g: &mut b.nodes,
                to_b: &mut b.branch,
                parameters: gradient.is_some().then_some((&mut w.gate1.to_branch, &mut w.gate1.to_old)),
            }
            .run();
            if let Some(gradient) = gradient.as_deref_mut() {
                w.out.gradient(stacked, m, &b.branch, h, &s.o, OUT, gradient);
            }
            w.out.backward(stacked, &b.branch, h, &mut b.o, OUT);
            let [logits, tangents, rates] = &mut b.logits;
            AttendBack {
                dual,
                queries: l > 0 || gradient.is_some(),
                beads,
                m,
                qkv: &s.qkv,
                stride: QKV,
                weights: &s.weights,
                tilt: &s.tilt,
                lanes,
                g: &b.o,
                g_stride: OUT,
                to_logits: [logits, tangents, rates],
                to_qkv: &mut b.qkv,
            }
            .run();
            // The first layer's features have no tangents.
            let dual_before = dual && l > 0;
            let stacked_before = if dual_before { stacked } else { m };
            match gradient.as_deref_mut() {
                Some(gradient) => {
                    ToPosition {
                        stacked,
                        m,
                        x: &self.common.x,
                        to_qkv: &b.qkv,
                        stride: QKV,
                        g: &b.o,
                        g_stride: OUT,
                        to_position: &mut w.to_position,
                        to_constant: &mut w.to_constant,
                    }
                    .run();
                    for (part, &(weight, bias)) in w.qkv_places.iter().enumerate() {
                        let g = &b.qkv[part * INNER..];
                        add_columns(m, g, QKV, &mut gradient[bias..][..INNER]);
                        let c = &mut gradient[weight..][..INNER * h];
                        let (x, x_stride) = (&*s.y1, y1_stride);
                        Outer { m: stacked_before, g, g_stride: QKV, outputs: INNER, x, x_stride, inputs: h, c, c_stride: h }.run();
                    }
                }
                None => {
                    ToCoordinates { m, position: &w.position, to_qkv: &b.qkv, stride: QKV, g: &b.o, g_stride: OUT, to_x: &mut b.x }.run();
                    if l == 0 {
                        return;
                    }
                }
            }
            w.qkv_back.apply(stacked_before, &b.qkv, QKV, Start::Zero, &mut b.y, h);
            NormaliseBack {
                dual: dual_before,
                m,
                width: h,
                scale: &w.ln1.scale,
                x: &s.nodes,
                unit: &s.unit1,
                inverse: &s.inverse1,
                stride: h,
                g: &mut b.y,
                g_stride: h,
                to_x: &mut b.nodes,
                parameters: gradient.as_deref_mut().map(|g| w.ln1.gradient(g)),
            }
            .run();
        }
    }

    /// From gradients of the first features to the embeddings.
    fn embeddings(&mut self, rows: Rows<'_, T>, block: Block, gradient: &mut [T]) {
        let m = block.m;
        let (h, beads) = (self.shape.width, self.shape.beads);
        let stride = padded(self.shape.kinds() + self.shape.range.features());
        let (b, node) = (&mut self.back, &mut self.weights.node);
        node.gradient(m, m, &b.nodes, h, &self.common.input, stride, gradient);
        if self.shape.features == BeadFeatures::Residue {
            node.backward(m, &b.nodes, h, &mut b.input, stride);
            for (i, g) in b.input.chunks_exact(stride).take(m).enumerate() {
                let mut table = 0;
                let bead = Self::system(&self.shape.systems, &rows, i / beads)[i % beads];
                for ((&(_, len), kind), g) in RESIDUE_TABLES.iter().zip(bead).zip(g.chunks_exact(EMBEDDING)) {
                    // The tables are the first parameters.
                    let to = &mut gradient[(table + kind as usize) * EMBEDDING..][..EMBEDDING];
                    for (to, &g) in to.iter_mut().zip(g) {
                        *to += g;
                    }
                    table += len;
                }
            }
        }
    }

    fn evaluate_block(&mut self, rows: Rows<'_, T>, energy: Option<&mut [T]>, score: Option<&mut [T]>) {
        let (h, beads) = (self.shape.width, self.shape.beads);
        let d = 3 * beads;
        let block = Block::new(rows.len() * beads, false);
        let m = block.m;
        self.forward(rows, None, false, block);
        let (w, c) = (&self.weights, &mut self.common);
        if self.shape.head == Head::Score {
            let Some(score) = score else { return };
            let out = &mut self.back.qkv;
            out.reserve(rows.len() * padded(d));
            w.decoder.forward(rows.len(), rows.len(), &c.last, beads * h, out, padded(d));
            negate(out, padded(d), score, d);
            return;
        }
        if let Some(energy) = energy {
            Dots { m, width: h, w: &w.energy, x: &c.last, stride: h, y: &mut c.scalars }.run();
            for (e, parts) in energy.iter_mut().zip(c.scalars.chunks_exact(beads)) {
                *e = T::default();
                for &part in parts {
                    *e += part + w.energy_bias;
                }
            }
        }
        if let Some(score) = score {
            c.scalars[..m].fill(T::from_f64(1.0));
            Spread { m, width: h, c: &c.scalars, w: &w.energy, x: &mut self.back.nodes, stride: h }.run();
            self.backward(block, None);
            centre(&self.back.x[..3 * m], score, beads);
            for s in score {
                *s = -*s;
            }
        }
    }

    fn accumulate_block(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]) {
        let (h, beads) = (self.shape.width, self.shape.beads);
        let d = 3 * beads;
        if self.shape.head == Head::Score {
            let Some(u) = u else { return };
            let block = Block::new(rows.len() * beads, false);
            self.forward(rows, None, true, block);
            let g = &mut self.back.qkv;
            let (n, wide) = (rows.len(), padded(d));
            g.reserve(n * wide);
            for (g, u) in g.chunks_exact_mut(wide).zip(u.chunks_exact(d)) {
                for (g, &u) in g.iter_mut().zip(u) {
                    *g = -u;
                }
                g[d..].fill(T::default());
            }
            let decoder = &mut self.weights.decoder;
            decoder.gradient(n, n, g, wide, &self.common.last, beads * h, gradient);
            decoder.backward(n, g, wide, &mut self.back.nodes, beads * h);
            self.backward(block, Some(gradient));
            self.embeddings(rows, block, gradient);
            return;
        }
        let block = Block::new(rows.len() * beads, u.is_some());
        let Block { m, stacked, .. } = block;
        self.forward(rows, u, true, block);
        let (w, c) = (&self.weights, &mut self.common);
        match a {
            Some(a) => {
                for (to, &a) in c.scalars[..m].chunks_exact_mut(beads).zip(a) {
                    to.fill(a);
                }
            }
            None => c.scalars[..m].fill(T::default()),
        }
        c.scalars[m..stacked].fill(T::from_f64(-1.0));
        let to_weight = &mut gradient[w.decoder.weight()..][..h];
        Collect { m: stacked, width: h, c: &c.scalars, x: &c.last, stride: h, w: to_weight }.run();
        gradient[w.decoder.bias()] += c.scalars[..m].iter().copied().sum();
        Spread { m: stacked, width: h, c: &c.scalars, w: &w.energy, x: &mut self.back.nodes, stride: h }.run();
        self.backward(block, Some(gradient));
        self.embeddings(rows, block, gradient);
    }
}

/// `to = from − mean over the configuration's beads`.
fn centre<T: Real>(from: &[T], to: &mut [T], beads: usize) {
    let scale = T::from_f64(1.0 / beads as f64);
    for (from, to) in from.chunks_exact(3 * beads).zip(to.chunks_exact_mut(3 * beads)) {
        for c in 0..3 {
            let mut mean = T::default();
            for i in 0..beads {
                mean += from[3 * i + c];
            }
            mean = mean * scale;
            for i in 0..beads {
                to[3 * i + c] = from[3 * i + c] - mean;
            }
        }
    }
}

impl<T: SimdReal> Worker<T> for GraphWorker<T> {
    fn load(&mut self, parameters: &[T]) {
        let (layout, w, h) = (&self.shape.layout, &mut self.weights, self.shape.width);
        if self.shape.features == BeadFeatures::Residue {
            let rows: usize = RESIDUE_TABLES.iter().map(|t| t.1).sum();
            w.tables.clear();
            w.tables.extend_from_slice(&parameters[..rows * EMBEDDING]);
        }
        w.node.load(parameters);
        w.decoder.load(parameters);
        w.edge.copy_from_slice(&parameters[place(layout, "edge_embedding.weight")..][..4 * h]);
        for layer in &mut w.layers {
            layer.load(parameters, &w.edge);
        }
        if self.shape.head == Head::Potential {
            w.energy.copy_from_slice(&parameters[w.decoder.weight()..][..h]);
            w.energy_bias = parameters[w.decoder.bias()];
        }
    }

    fn evaluate(&mut self, rows: Rows<'_, T>, mut energy: Option<&mut [T]>, mut score: Option<&mut [T]>) {
        assert!(energy.is_none() || self.shape.head == Head::Potential, "this network has no energy");
        let (d, most) = (3 * self.shape.beads, self.rows());
        for start in (0..rows.len()).step_by(most) {
            let end = rows.len().min(start + most);
            self.evaluate_block(
                rows.part(start..end, d),
                energy.as_deref_mut().map(|e| &mut e[start..end]),
                score.as_deref_mut().map(|s| &mut s[start * d..end * d]),
            );
        }
    }

    fn accumulate(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]) {
        assert!(a.is_none() || self.shape.head == Head::Potential, "this network has no energy");
        let (d, most) = (3 * self.shape.beads, self.rows());
        for layer in &mut self.weights.layers {
            layer.begin();
        }
        for start in (0..rows.len()).step_by(most) {
            let end = rows.len().min(start + most);
            self.accumulate_block(rows.part(start..end, d), a.map(|a| &a[start..end]), u.map(|u| &u[start * d..end * d]), gradient);
        }
        let shared = place(&self.shape.layout, "edge_embedding.weight");
        for layer in &self.weights.layers {
            layer.finish(&self.weights.edge, shared, gradient);
        }
    }
}
