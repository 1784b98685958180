//! PE(3) forward, in memory that is allocated before.
//!
//! Features are kept irrep by irrep, `[irrep][atoms, 2l + 1, F]`, so that each has its matrix products over contiguous rows.

use super::super::attention::pattern;
use super::super::condition::{Condition, ConditionLayers};
use super::super::config::{DitmcConfig, HOPS, PairTokens};
use super::super::context::GraphContext;
use super::super::kernels::{Activation, Add, Columns, Curve, Gate, Modulate, reserve};
use super::super::layers::{Dense, LayerNorm, Perceptron};
use super::super::layout::{DensePlace, Layout};
use super::super::previous::Previous;
use super::attention::{Attend, Place, Shape, Table};
use super::basis::{self, PairRows};
use super::couplings::COMPONENTS;
use super::kernels::{Open, Opening, Scale};
use super::places::{BlockPlaces, Irrep, Places, RADIAL};
use super::plan::Plan;
use crate::matrix::PAD;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};
use std::sync::Arc;

pub(super) struct Block<T> {
    pub(super) places: BlockPlaces,
    pub(super) plan: Plan<T>,
    pub(super) norm: LayerNorm,
    pub(super) modulation: Dense<T>,
    pub(super) qkv: Vec<Dense<T>>,
    pub(super) relative: Dense<T>,
    pub(super) filters: Vec<Dense<T>>,
    pub(super) out: Vec<Dense<T>>,
    pub(super) perceptrons: Vec<[Dense<T>; 2]>,
}

impl<T: SimdReal> Block<T> {
    fn new(places: &BlockPlaces, training: bool) -> Self {
        let dense = |place: &DensePlace| Dense::new(place, training);
        Block {
            plan: Plan::new(places),
            norm: LayerNorm::new(&places.norm),
            modulation: dense(&places.modulation),
            qkv: places.qkv.iter().map(dense).collect(),
            relative: dense(&places.relative),
            filters: places.filters.iter().map(dense).collect(),
            out: places.out.iter().map(dense).collect(),
            perceptrons: places.perceptrons.iter().map(|p| [dense(&p[0]), dense(&p[1])]).collect(),
            places: places.clone(),
        }
    }

    fn load(&mut self, values: &[T]) {
        let perceptrons = self.perceptrons.iter_mut().flatten();
        for dense in self.qkv.iter_mut().chain(&mut self.filters).chain(&mut self.out).chain(perceptrons) {
            dense.load(values);
        }
        self.modulation.load(values);
        self.relative.load(values);
    }

    /// What attention needs to know besides its data.
    pub(super) fn shape<'a>(&'a self, config: &DitmcConfig, values: &'a [T], place: Place) -> Shape<'a, T> {
        Shape {
            place,
            width: config.features(),
            heads: config.heads,
            inputs: &self.places.inputs,
            messages: &self.places.messages,
            degrees: self.filters.len(),
            plan: &self.plan,
            kappa: &values[self.places.kappa.clone()],
        }
    }
}

/// Parameters, packed for products. Shared by all threads.
pub(in super::super) struct Parameters<T> {
    pub(super) config: DitmcConfig,
    pub(in super::super) layout: Arc<Layout>,
    pub(super) places: Places,
    pub(super) values: AlignedBuffer<T>,
    pub(super) condition: ConditionLayers<T>,
    pub(super) previous: Option<Perceptron<T>>,
    pub(super) gate: Perceptron<T>,
    pub(super) blocks: Vec<Block<T>>,
    pub(super) readout_norm: LayerNorm,
    pub(super) readout_modulation: Dense<T>,
    pub(super) readout: Dense<T>,
}

impl<T: SimdReal> Parameters<T> {
    /// Zeros; `training`: ready for the way back.
    pub(in super::super) fn new(config: &DitmcConfig, layout: Arc<Layout>, places: &Places, training: bool) -> Self {
        Parameters {
            config: config.clone(),
            values: AlignedBuffer::zeros(layout.len),
            condition: ConditionLayers::new(&layout, config, training),
            previous: layout.previous.as_ref().map(|p| Perceptron::new(p, Activation::Silu, training)),
            gate: Perceptron::new(&places.gate, Activation::Silu, training),
            blocks: places.blocks.iter().map(|b| Block::new(b, training)).collect(),
            readout_norm: LayerNorm::new(&places.readout_norm),
            readout_modulation: Dense::new(&places.readout_modulation, training),
            readout: Dense::new(&places.readout, training),
            places: places.clone(),
            layout,
        }
    }

    /// Takes padded values `[layout.len]`.
    pub(in super::super) fn load(&mut self, values: &[T]) {
        self.values.copy_from_slice(values);
        self.condition.load(values);
        self.gate.load(values);
        self.previous.iter_mut().for_each(|p| p.load(values));
        self.readout_modulation.load(values);
        self.readout.load(values);
        self.blocks.iter_mut().for_each(|b| b.load(values));
    }

    /// Components of an atom's features.
    pub(super) fn components(&self) -> usize {
        2 * (self.places.degree + 1).pow(2)
    }

    /// Width of a pair's token.
    pub(super) fn token_width(&self) -> usize {
        self.gate.first.place.inputs
    }

    /// Width of a pair's gate.
    pub(super) fn gate_width(&self) -> usize {
        (self.places.degree + 1) * RADIAL
    }
}

/// A graph among those that are worked on.
pub(super) struct Member {
    pub(super) atoms: usize,
    pub(super) types: Vec<u32>,
    /// Row of each pair `[N, N]` among the gates, receiver first.
    rows: Arc<[u16]>,
    /// Rows of the gates before those of its bonds.
    first_gate: usize,
    /// Where the graph is not known, the gate of all its pairs.
    unknown: Option<usize>,
}

impl Member {
    /// The gate of a pair.
    pub(super) fn gate(&self, receiver: usize, sender: usize) -> usize {
        if let Some(unknown) = self.unknown {
            return unknown;
        }
        let row = self.rows[receiver * self.atoms + sender] as usize;
        if row == 0 { 0 } else { self.first_gate + row }
    }
}

/// A structure of one of the graphs.
#[derive(Clone, Copy)]
pub(super) struct Structure {
    pub(super) graph: usize,
    /// First of its atoms, of the rows of its pairs, of its weights.
    pub(super) atom: usize,
    pub(super) pair: usize,
    pub(super) weight: usize,
}

/// What a block leaves for the way back.
#[derive(Default)]
pub(super) struct Saved<T> {
    pub(super) h: AlignedBuffer<T>,
    pub(super) x: AlignedBuffer<T>,
    pub(super) qkv: AlignedBuffer<T>,
    pub(super) weights: AlignedBuffer<T>,
    pub(super) sums: AlignedBuffer<T>,
    pub(super) messages: AlignedBuffer<T>,
    pub(super) attention: AlignedBuffer<T>,
    pub(super) middle: AlignedBuffer<T>,
    pub(super) x2: AlignedBuffer<T>,
    pub(super) hidden: AlignedBuffer<T>,
    pub(super) update: AlignedBuffer<T>,
}

/// A modulation.
#[derive(Default)]
pub(super) struct Modulated<T> {
    /// The norm of the condition, the layer's result where a curve follows, and what features meet.
    pub(super) normed: AlignedBuffer<T>,
    pub(super) before: AlignedBuffer<T>,
    pub(super) values: AlignedBuffer<T>,
    pub(super) gradient: AlignedBuffer<T>,
}

/// What the pairs of all structures have.
#[derive(Default)]
pub(super) struct PairData<T> {
    /// Radial functions, before gates.
    pub(super) radial: AlignedBuffer<T>,
    /// Of each degree `[rows, RADIAL]`, gated.
    pub(super) gated: Vec<AlignedBuffer<T>>,
    /// `[rows, (L + 1)²]`.
    pub(super) harmonics: Vec<T>,
    /// Of one structure in one block.
    pub(super) relative: AlignedBuffer<T>,
    pub(super) filters: AlignedBuffer<T>,
    pub(super) coefficients: Vec<T>,
    pub(super) weighted: AlignedBuffer<T>,
}

/// Memory of one thread, and what it works on.
pub(in super::super) struct Work<T> {
    training: bool,
    pub(super) graphs: Vec<Member>,
    pub(super) condition: Condition<T>,
    /// Gates: one row for pairs without token of their own, then those of hops or bonds.
    pub(super) gate_rows: usize,
    pub(super) token_input: AlignedBuffer<T>,
    pub(super) token_hidden: AlignedBuffer<T>,
    pub(super) gates: AlignedBuffer<T>,
    pub(super) modulated: Vec<Modulated<T>>,
    pub(super) readout: Modulated<T>,
    pub(super) structures: Vec<Structure>,
    /// Condition of each atom, of each row of degree 1, of degree 2.
    pub(super) condition_of: [Vec<u32>; 3],
    positions: Vec<f64>,
    pub(super) previous: Previous<T>,
    pub(super) pairs: PairData<T>,
    pub(super) blocks: Vec<Saved<T>>,
    /// Features in the end; vectors of both parities added up, and normed.
    pub(super) last: AlignedBuffer<T>,
    pub(super) vectors: AlignedBuffer<T>,
    pub(super) normed: AlignedBuffer<T>,
    pub(super) out: AlignedBuffer<T>,
    pub(super) scratch: [AlignedBuffer<T>; 2],
    pub(super) back: super::backward::Back<T>,
}

impl<T: SimdReal> Work<T> {
    /// Memory that grows as needed; `training`: there is a way back.
    pub(in super::super) fn new(p: &Parameters<T>, training: bool) -> Self {
        let coefficients = p.blocks.iter().map(|b| b.plan.coefficients_len()).max().unwrap_or(0);
        let gated = (0..=p.places.degree).map(|_| AlignedBuffer::default()).collect();
        Work {
            training,
            graphs: Vec::new(),
            condition: Condition::default(),
            gate_rows: 0,
            token_input: AlignedBuffer::default(),
            token_hidden: AlignedBuffer::default(),
            gates: AlignedBuffer::default(),
            modulated: Vec::new(),
            readout: Modulated::default(),
            structures: Vec::new(),
            condition_of: Default::default(),
            positions: Vec::new(),
            previous: Previous::default(),
            pairs: PairData { gated, coefficients: vec![T::default(); coefficients], ..PairData::default() },
            blocks: Vec::new(),
            last: AlignedBuffer::default(),
            vectors: AlignedBuffer::default(),
            normed: AlignedBuffer::default(),
            out: AlignedBuffer::default(),
            scratch: Default::default(),
            back: super::backward::Back::default(),
        }
    }

    /// Takes graphs and computes what depends on them alone. Structures are forgotten.
    pub(in super::super) fn set_graphs<'a>(&mut self, p: &Parameters<T>, graphs: impl Iterator<Item = &'a GraphContext> + Clone) {
        self.clear_structures();
        self.condition.set_graphs(&p.condition, &p.values, graphs.clone());
        self.graphs.clear();
        let (mut bonds, mut most) = (0, 0);
        for graph in graphs {
            let (rows, first_gate) = match p.config.pair_tokens {
                PairTokens::AllPairs => (graph.hops.clone(), 0),
                PairTokens::BondPairs => (graph.bonded.clone(), bonds),
            };
            self.graphs.push(Member { atoms: graph.len(), types: graph.types.clone(), rows, first_gate, unknown: None });
            bonds += graph.pairs.len();
            most = most.max(graph.most_hops);
        }
        let w = p.token_width();
        let embedding = &p.values[p.places.pair_embedding.clone()];
        // Of a graph that is not known all pairs have the last row.
        let rows = 1 + if p.config.pair_tokens == PairTokens::AllPairs { most } else { bonds };
        self.gate_rows = rows + usize::from(p.layout.unknown.is_some());
        reserve(&mut self.token_input, self.gate_rows, w);
        match p.config.pair_tokens {
            PairTokens::AllPairs => {
                self.token_input[..w].copy_from_slice(&embedding[(HOPS - 2) * w..(HOPS - 1) * w]);
                self.token_input[w..rows * w].copy_from_slice(&embedding[w..rows * w]);
            }
            PairTokens::BondPairs => {
                self.token_input[..w].copy_from_slice(embedding);
                self.token_input[w..rows * w].copy_from_slice(&self.condition.conditioner.bond_tokens()[..bonds * w]);
            }
        }
        if let Some(unknown) = &p.layout.unknown {
            self.token_input[rows * w..(rows + 1) * w].copy_from_slice(&p.values[unknown.pair.clone()]);
        }
        let (rows, hidden) = (self.gate_rows, p.gate.first.place.outputs);
        reserve(&mut self.token_hidden, rows, hidden);
        reserve(&mut self.scratch[0], rows, hidden);
        reserve(&mut self.gates, rows, p.gate_width());
        p.gate.apply(&p.values, rows, &self.token_input, &mut self.token_hidden, &mut self.scratch[0], &mut self.gates);
    }

    /// Graph `graph` is not known to the network any more, but its atoms are; after the graphs, before the times are set.
    pub(in super::super) fn forget(&mut self, _: &Parameters<T>, graph: usize) {
        self.condition.forget(graph);
        self.graphs[graph].unknown = Some(self.gate_rows - 1);
    }

    /// Takes one time per graph and computes what depends on graphs and times.
    pub(in super::super) fn set_times(&mut self, p: &Parameters<T>, times: impl Iterator<Item = f64>) {
        let f = p.config.features();
        self.condition.set_times(&p.condition, &p.values, times);
        let (rows, tokens) = (self.condition.rows, &self.condition.tokens);
        let n = rows * f;
        reserve(&mut self.scratch[0], rows, f);
        self.modulated.resize_with(p.blocks.len(), Modulated::default);
        for (m, block) in self.modulated.iter_mut().zip(&p.blocks) {
            reserve(&mut m.normed, rows, f);
            reserve(&mut m.values, rows, block.modulation.place.outputs);
            block.norm.apply(&p.values, rows, tokens, &mut m.normed);
            dispatch(Curve { activation: Activation::Silu, x: &m.normed[..n], y: &mut self.scratch[0][..n] });
            block.modulation.apply(&p.values, rows, &self.scratch[0], &mut m.values);
        }
        // Of the readout the curve comes after the layer.
        let m = &mut self.readout;
        let wide = p.readout_modulation.place.outputs;
        reserve(&mut m.normed, rows, f);
        reserve(&mut m.before, rows, wide);
        reserve(&mut m.values, rows, wide);
        p.readout_norm.apply(&p.values, rows, tokens, &mut m.normed);
        p.readout_modulation.apply(&p.values, rows, &m.normed, &mut m.before);
        dispatch(Curve { activation: Activation::Silu, x: &m.before[..rows * wide], y: &mut m.values[..rows * wide] });
    }

    /// Forgets the structures; graphs and times stay.
    pub(in super::super) fn clear_structures(&mut self) {
        self.structures.clear();
        self.condition_of.iter_mut().for_each(Vec::clear);
        self.positions.clear();
        self.previous.clear();
    }

    /// Adds a structure of graph `graph` at `x [N, 3]` (Å).
    pub(in super::super) fn add(&mut self, p: &Parameters<T>, graph: usize, x: &[f64]) {
        let (pair, weight) = self.structures.last().map_or((0, 0), |s| {
            let rows = self.rows_of(p, s.graph);
            (s.pair + rows.len(), s.weight + rows.atoms.pow(2) * pattern(p.config.heads))
        });
        self.structures.push(Structure { graph, atom: self.atoms(), pair, weight });
        for row in self.condition.graphs[graph].clone() {
            for (degree, list) in self.condition_of.iter_mut().enumerate() {
                list.extend(std::iter::repeat_n(row as u32, 2 * degree + 1));
            }
        }
        self.positions.extend_from_slice(x);
        if p.previous.is_some() {
            self.previous.add(self.graphs[graph].atoms);
        }
    }

    /// What was predicted before of the structure that was added last, `[N, 3]` (Å, centred as the structure). Its coordinates would end
    /// equivariance: the network is told the distance from the centre, the part along the present place, and the distance from it less
    /// what that would be at the centre.
    pub(in super::super) fn recall(&mut self, p: &Parameters<T>, clean: &[f64]) {
        if p.previous.is_none() {
            return;
        }
        let x = &self.positions[self.positions.len() - clean.len()..];
        self.previous.set(x.chunks_exact(3).zip(clean.chunks_exact(3)).map(|(x, c)| {
            let square = |x: [f64; 3]| x.iter().map(|x| x * x).sum::<f64>();
            let (x, c) = ([x[0], x[1], x[2]], [c[0], c[1], c[2]]);
            let along = (0..3).map(|k| x[k] * c[k]).sum::<f64>() / (1.0 + square(x)).sqrt();
            let between = square(std::array::from_fn(|k| x[k] - c[k]));
            [square(c).sqrt(), along, between.sqrt() - square(x).sqrt()]
        }));
    }

    /// Atoms of all structures.
    pub(in super::super) fn atoms(&self) -> usize {
        self.condition_of[0].len()
    }

    /// Drift of atom `i` before its mean is taken away (Å).
    pub(in super::super) fn drift(&self, i: usize) -> [T; 3] {
        std::array::from_fn(|k| self.out[(3 * i + k) * PAD])
    }

    pub(super) fn rows_of(&self, p: &Parameters<T>, graph: usize) -> PairRows {
        // Tokens of bonds have a direction.
        PairRows { atoms: self.graphs[graph].atoms, directed: p.config.pair_tokens == PairTokens::BondPairs }
    }

    fn reserve_structures(&mut self, p: &Parameters<T>) {
        let (f, degree) = (p.config.features(), p.places.degree);
        let (atoms, hidden) = (self.atoms(), f * p.config.expansion);
        let rows = self.structures.last().map_or(0, |s| s.pair + self.rows_of(p, s.graph).len());
        let weights = self.structures.last().map_or(0, |s| s.weight + self.graphs[s.graph].atoms.pow(2) * pattern(p.config.heads));
        let accumulators = p.blocks.iter().map(|b| b.plan.accumulators).max().unwrap_or(0);
        let all = atoms * p.components();
        self.blocks.resize_with(if self.training { p.blocks.len() } else { 1 }, Saved::default);
        for b in &mut self.blocks {
            for (buffer, width) in [
                (&mut b.h, f),
                (&mut b.x, f),
                (&mut b.qkv, 3 * f),
                (&mut b.messages, f),
                (&mut b.attention, f),
                (&mut b.middle, f),
                (&mut b.x2, f),
                (&mut b.hidden, hidden),
                (&mut b.update, f),
            ] {
                reserve(buffer, all, width);
            }
            reserve(&mut b.weights, weights, 1);
            reserve(&mut b.sums, atoms * accumulators, f);
        }
        reserve(&mut self.last, all, f);
        reserve(&mut self.vectors, 3 * atoms, f);
        reserve(&mut self.normed, 3 * atoms, f);
        reserve(&mut self.out, 3 * atoms, PAD);
        reserve(&mut self.scratch[0], all, hidden);
        reserve(&mut self.scratch[1], atoms, hidden);
        let own = &mut self.pairs;
        reserve(&mut own.radial, rows, RADIAL);
        own.gated.iter_mut().for_each(|b| reserve(b, rows, RADIAL));
        let most = self.structures.iter().map(|s| self.graphs[s.graph].atoms).max().unwrap_or(0);
        let most = PairRows { atoms: most, directed: p.config.pair_tokens == PairTokens::BondPairs }.len();
        let inputs = p.blocks.iter().map(|b| b.places.inputs.len()).max().unwrap_or(0);
        reserve(&mut own.relative, most, inputs * f);
        reserve(&mut own.filters, most * (degree + 1), f);
        reserve(&mut own.weighted, degree + 1, f);
        let size = rows * (degree + 1).pow(2);
        if own.harmonics.len() < size {
            own.harmonics.resize(size, T::default());
        }
    }

    /// Radial functions, gated ones and harmonics of all pairs.
    fn set_pairs(&mut self, p: &Parameters<T>) {
        let degree = p.places.degree;
        let size = (degree + 1).pow(2);
        let (mut b, mut y) = ([0.0; RADIAL], [0.0; COMPONENTS]);
        for s in &self.structures {
            let member = &self.graphs[s.graph];
            let x = &self.positions[3 * s.atom..];
            for (k, (i, j)) in self.rows_of(p, s.graph).pairs().enumerate() {
                let row = s.pair + k;
                basis::pair(degree, std::array::from_fn(|a| x[3 * j + a] - x[3 * i + a]), &mut b, &mut y);
                let at = row * RADIAL..(row + 1) * RADIAL;
                for (to, &b) in self.pairs.radial[at.clone()].iter_mut().zip(&b) {
                    *to = T::from_f64(b);
                }
                let gate = member.gate(i, j) * p.gate_width();
                for (l, gated) in self.pairs.gated.iter_mut().enumerate() {
                    let gate = &self.gates[gate + l * RADIAL..gate + (l + 1) * RADIAL];
                    basis::gated(&b, gate, &mut gated[at.clone()]);
                }
                for (to, &y) in self.pairs.harmonics[row * size..(row + 1) * size].iter_mut().zip(&y) {
                    *to = T::from_f64(y);
                }
            }
        }
    }

    /// From structures to drifts.
    pub(in super::super) fn forward(&mut self, p: &Parameters<T>) {
        self.reserve_structures(p);
        self.set_pairs(p);
        let (atoms, f) = (self.atoms(), p.config.features());
        let embedding = &p.values[p.layout.types.clone()];
        for s in &self.structures {
            for (h, &z) in self.blocks[0].h[s.atom * f..].chunks_exact_mut(f).zip(&self.graphs[s.graph].types) {
                h.copy_from_slice(&embedding[z as usize * f..(z as usize + 1) * f]);
            }
        }
        if let Some(perceptron) = &p.previous {
            // Scalars come first.
            self.previous.apply(perceptron, &p.values, &mut self.scratch[0], &mut self.blocks[0].h);
        }
        for (l, block) in p.blocks.iter().enumerate() {
            self.attend(p, l);
            self.transform(p, block, l);
        }
        let vectors = |parity: usize| Irrep { parity, degree: 1, first: parity * p.components() / 2 + 1 };
        let rows = [0, 1].map(|parity| span(vectors(parity), atoms, f));
        let n = 3 * atoms * f;
        self.vectors[..n].copy_from_slice(&self.last[rows[0].clone()]);
        dispatch(Add { x: &self.last[rows[1].clone()], y: &mut self.vectors[..n] });
        dispatch(Scale {
            rows: 3,
            width: f,
            columns: Columns { condition: &self.condition_of[0], stride: p.readout_modulation.place.outputs, scale: f, shift: 0 },
            modulation: &self.readout.values,
            x: &self.vectors[..n],
            y: &mut self.normed[..n],
        });
        p.readout.apply(&p.values, 3 * atoms, &self.normed, &mut self.out);
    }

    /// From the features of block `l` to those after its attention.
    fn attend(&mut self, p: &Parameters<T>, l: usize) {
        let (atoms, f) = (self.atoms(), p.config.features());
        let block = &p.blocks[l];
        let places = &block.places;
        let now = &mut self.blocks[if self.training { l } else { 0 }];
        let (modulation, stride) = (&self.modulated[l].values[..], block.modulation.place.outputs);
        norm(
            (&places.inputs, &self.condition_of[0]),
            (atoms, f, stride, places.gamma1(), places.beta1()),
            (modulation, &now.h, &mut now.x),
        );
        for (dense, &irrep) in block.qkv.iter().zip(&places.inputs) {
            let rows = irrep.rows() * atoms;
            dense.apply(&p.values, rows, &now.x[span(irrep, atoms, f)], &mut now.qkv[span(irrep, atoms, 3 * f)]);
        }
        for s in &self.structures {
            let member = &self.graphs[s.graph];
            let rows = PairRows { atoms: member.atoms, directed: p.config.pair_tokens == PairTokens::BondPairs };
            let place = Place { first: s.atom, atoms: member.atoms, total: atoms };
            self.pairs.table(p, block, rows, s.pair);
            let PairData { harmonics, relative, filters, coefficients, weighted, .. } = &mut self.pairs;
            let sums = block.plan.accumulators * f;
            dispatch(Attend {
                shape: block.shape(&p.config, &p.values, place),
                qkv: &now.qkv,
                table: pair_table(rows, p.places.degree, &harmonics[..], s.pair, relative, filters),
                weights: &mut now.weights[s.weight..],
                sums: &mut now.sums[s.atom * sums..(s.atom + member.atoms) * sums],
                messages: &mut now.messages,
                coefficients,
                weighted,
            });
        }
        for (dense, &irrep) in block.out.iter().zip(&places.messages) {
            let at = span(irrep, atoms, f);
            dense.apply(&p.values, irrep.rows() * atoms, &now.messages[at.clone()], &mut now.attention[at]);
        }
        for (k, &irrep) in places.features.iter().enumerate() {
            let at = span(irrep, atoms, f);
            if !places.inputs.contains(&irrep) {
                now.h[at.clone()].fill(T::default());
            }
            dispatch(Gate {
                width: f,
                condition: &self.condition_of[irrep.degree],
                stride,
                alpha: (places.alpha1() + k) * f,
                modulation,
                x: &now.h[at.clone()],
                u: &now.attention[span(places.messages[places.source(k)], atoms, f)],
                y: &mut now.middle[at],
            });
        }
    }

    /// The perceptron of block `l`.
    fn transform(&mut self, p: &Parameters<T>, block: &Block<T>, l: usize) {
        let (atoms, f, wide) = (self.atoms(), p.config.features(), p.config.features() * p.config.expansion);
        let places = &block.places;
        let (before, after) = self.blocks.split_at_mut(if self.training { l + 1 } else { 1 });
        let now = &mut before[if self.training { l } else { 0 }];
        let (modulation, stride) = (&self.modulated[l].values[..], block.modulation.place.outputs);
        norm(
            (&places.features, &self.condition_of[0]),
            (atoms, f, stride, places.gamma2(), places.beta2()),
            (modulation, &now.middle, &mut now.x2),
        );
        let [opened, opening] = &mut self.scratch;
        for (k, ([first, second], &irrep)) in block.perceptrons.iter().zip(&places.features).enumerate() {
            let (rows, hidden) = (irrep.rows() * atoms, span(irrep, atoms, wide));
            let hidden = &mut now.hidden[hidden];
            first.apply(&p.values, rows, &now.x2[span(irrep, atoms, f)], hidden);
            if k == 0 {
                // The scalars, which come first.
                dispatch(Opening { x: hidden, y: &mut opening[..atoms * wide] });
            }
            let opened = &mut opened[..rows * wide];
            dispatch(Open { rows: irrep.rows(), width: wide, opening, x: hidden, y: opened });
            second.apply(&p.values, rows, opened, &mut now.update[span(irrep, atoms, f)]);
        }
        for (k, &irrep) in places.features.iter().enumerate() {
            let at = span(irrep, atoms, f);
            let y = match after.first_mut() {
                _ if l + 1 == p.blocks.len() => &mut self.last,
                Some(next) => &mut next.h,
                None => &mut now.h,
            };
            dispatch(Gate {
                width: f,
                condition: &self.condition_of[irrep.degree],
                stride,
                alpha: (places.alpha2() + k) * f,
                modulation,
                x: &now.middle[at.clone()],
                u: &now.update[at.clone()],
                y: &mut y[at],
            });
        }
    }
}

impl<T: SimdReal> PairData<T> {
    /// What the pairs of a structure meet queries, keys and values with in a block.
    pub(super) fn table(&mut self, p: &Parameters<T>, block: &Block<T>, rows: PairRows, first: usize) {
        let (n, f) = (rows.len(), p.config.features());
        let at = first * RADIAL..(first + n) * RADIAL;
        block.relative.apply(&p.values, n, &self.gated[0][at.clone()], &mut self.relative);
        for (l, filter) in block.filters.iter().enumerate() {
            filter.apply(&p.values, n, &self.gated[l][at.clone()], &mut self.filters[l * n * f..(l + 1) * n * f]);
        }
    }
}

/// A structure's table, from [`PairData::table`].
pub(super) fn pair_table<'a, T>(
    rows: PairRows,
    degree: usize,
    harmonics: &'a [T],
    first: usize,
    relative: &'a [T],
    filters: &'a [T],
) -> Table<'a, T> {
    let components = (degree + 1).pow(2);
    Table { rows, harmonics: &harmonics[first * components..], components, relative, filters }
}

/// Where an irrep of width `w` lies.
pub(super) fn span(irrep: Irrep, atoms: usize, w: usize) -> std::ops::Range<usize> {
    let start = irrep.first * atoms * w;
    start..start + irrep.rows() * atoms * w
}

/// The norm of features `x`, with the scales from column `gamma` on and the shift of scalars at `beta`.
fn norm<T: SimdReal>(
    (irreps, condition): (&[Irrep], &[u32]),
    (atoms, width, stride, gamma, beta): (usize, usize, usize, usize, usize),
    (modulation, x, y): (&[T], &[T], &mut [T]),
) {
    for (k, &irrep) in irreps.iter().enumerate() {
        let at = span(irrep, atoms, width);
        let columns = Columns { condition, stride, scale: (gamma + k) * width, shift: beta * width };
        if irrep.is_scalar() {
            dispatch(Modulate { width, columns, modulation, x: &x[at.clone()], y: &mut y[at] });
        } else {
            dispatch(Scale { rows: irrep.rows(), width, columns, modulation, x: &x[at.clone()], y: &mut y[at] });
        }
    }
}
