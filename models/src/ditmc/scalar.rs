//! The transformer of aPE and rPE, whose features are scalars: forward and backward, in memory that is allocated before.
//!
//! What depends on graphs alone (conditioner, tables of pairs) is computed by [`Work::set_graphs`], what depends on the time too
//! (modulation of every block) by [`Work::set_times`]; structures of one graph share both. A forward then is
//! `h = E_Z + MLP(x)` (aPE) or `h = E_Z` with `MLP(x_j − x_i)` added to the token of every pair (rPE); per block `h += α₁ attention(LN(h)(1 + γ₁) + β₁)`, `h += α₂ MLP(LN(h)(1 + γ₂) + β₂)`; and the drift
//! `W (LN(h)(1 + s) + b)`, whose mean is taken away by whoever uses it.

mod device;

use super::attention::{Attend, AttendBack, Sizes, Table, pattern};
use super::condition::{Condition, ConditionLayers};
use super::config::{DitmcConfig, HOPS, PairTokens, Variant};
use super::context::GraphContext;
use super::kernels::{Activation, Add, Columns, Curve, CurveBack, Gate, GateBack, Modulate, ModulateBack, reserve};
use super::layers::{Dense, LayerNorm, Perceptron};
use super::layout::{Layout, ScalarPlaces};
use super::previous::Previous;
use crate::matrix::PAD;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};
use std::sync::Arc;

/// Columns of a block's modulation, in units of F.
const GAMMA1: usize = 0;
const BETA1: usize = 1;
const ALPHA1: usize = 2;
const GAMMA2: usize = 3;
const BETA2: usize = 4;
const ALPHA2: usize = 5;
const MODULATION: usize = 6;

struct Block<T> {
    norm: LayerNorm,
    modulation: Dense<T>,
    qkv: Dense<T>,
    out: Dense<T>,
    perceptron: Perceptron<T>,
}

/// Parameters, packed for products. Shared by all threads.
pub(super) struct Parameters<T> {
    pub(super) config: DitmcConfig,
    pub(super) layout: Arc<Layout>,
    places: ScalarPlaces,
    values: AlignedBuffer<T>,
    condition: ConditionLayers<T>,
    previous: Option<Perceptron<T>>,
    position: Perceptron<T>,
    pair_perceptron: Option<Perceptron<T>>,
    pair_maps: Dense<T>,
    blocks: Vec<Block<T>>,
    readout_modulation: Dense<T>,
    readout: Dense<T>,
}

impl<T: SimdReal> Parameters<T> {
    /// Zeros; `training`: ready for the way back.
    pub(super) fn new(config: &DitmcConfig, layout: Arc<Layout>, places: &ScalarPlaces, training: bool) -> Self {
        let silu = |places| Perceptron::new(places, Activation::Silu, training);
        let blocks = places.blocks.iter().map(|b| Block {
            norm: LayerNorm::new(&b.norm),
            modulation: Dense::new(&b.modulation, training),
            qkv: Dense::new(&b.qkv, training),
            out: Dense::new(&b.out, training),
            perceptron: Perceptron::new(&b.perceptron, Activation::Gelu, training),
        });
        Parameters {
            config: config.clone(),
            values: AlignedBuffer::zeros(layout.len),
            condition: ConditionLayers::new(&layout, config, training),
            previous: layout.previous.as_ref().map(silu),
            position: silu(&places.position),
            pair_perceptron: places.pair_perceptron.as_ref().map(silu),
            pair_maps: Dense::new(&places.pair_maps, training),
            blocks: blocks.collect(),
            readout_modulation: Dense::new(&places.readout_modulation, training),
            readout: Dense::new(&places.readout, training),
            places: places.clone(),
            layout,
        }
    }

    /// Takes padded values `[layout.len]`.
    pub(super) fn load(&mut self, values: &[T]) {
        self.values.copy_from_slice(values);
        self.condition.load(values);
        for perceptron in std::iter::once(&mut self.position).chain(&mut self.pair_perceptron).chain(&mut self.previous) {
            perceptron.load(values);
        }
        for dense in [&mut self.pair_maps, &mut self.readout_modulation, &mut self.readout] {
            dense.load(values);
        }
        for block in &mut self.blocks {
            for dense in [&mut block.modulation, &mut block.qkv, &mut block.out] {
                dense.load(values);
            }
            block.perceptron.load(values);
        }
    }
}

/// A graph among those that are worked on.
struct Member {
    /// Rows of the condition that are its atoms.
    first: usize,
    atoms: usize,
    types: Vec<u32>,
    rows: Arc<[u16]>,
    /// Rows of the table before those of its bonds.
    table: usize,
    /// Where the graph is not known, the row of all its pairs.
    unknown: Option<usize>,
}

impl Member {
    /// Row among those of all graphs.
    fn row(&self, row: u16) -> usize {
        if let Some(unknown) = self.unknown {
            unknown
        } else if row == 0 {
            0
        } else {
            self.table + row as usize
        }
    }
}

/// A structure of one of the graphs.
#[derive(Clone, Copy)]
struct Structure {
    graph: usize,
    /// First row of its atoms, of its pairs, first weight of its pairs.
    atom: usize,
    pair: usize,
    weight: usize,
}

/// What every pair of a structure has of its own (rPE).
#[derive(Default)]
struct PairRows<T> {
    displacements: AlignedBuffer<T>,
    hidden: AlignedBuffer<T>,
    tokens: AlignedBuffer<T>,
    table: AlignedBuffer<T>,
    gtable: AlignedBuffer<T>,
    gtokens: AlignedBuffer<T>,
}

/// What a block leaves for the way back.
#[derive(Default)]
struct Saved<T> {
    h: AlignedBuffer<T>,
    x: AlignedBuffer<T>,
    qkv: AlignedBuffer<T>,
    weights: AlignedBuffer<T>,
    /// Messages before κ and after, and what the output layer makes of them.
    sum: AlignedBuffer<T>,
    message: AlignedBuffer<T>,
    attention: AlignedBuffer<T>,
    middle: AlignedBuffer<T>,
    x2: AlignedBuffer<T>,
    hidden: AlignedBuffer<T>,
    update: AlignedBuffer<T>,
}

/// A block's modulation.
#[derive(Default)]
struct Modulated<T> {
    /// After the norm, before the SiLU.
    normed: AlignedBuffer<T>,
    values: AlignedBuffer<T>,
    gradient: AlignedBuffer<T>,
}

/// Memory of one thread, and what it works on.
pub(super) struct Work<T> {
    training: bool,
    graphs: Vec<Member>,
    condition: Condition<T>,
    /// Rows of the table of pairs, its tokens, and every block's maps of them.
    table_rows: usize,
    token_input: AlignedBuffer<T>,
    token_hidden: AlignedBuffer<T>,
    tokens: AlignedBuffer<T>,
    table: AlignedBuffer<T>,
    gtable: AlignedBuffer<T>,
    modulated: Vec<Modulated<T>>,
    readout: Modulated<T>,
    structures: Vec<Structure>,
    /// Condition of each atom.
    condition_of: Vec<u32>,
    positions: AlignedBuffer<T>,
    position_hidden: AlignedBuffer<T>,
    previous: Previous<T>,
    pairs: PairRows<T>,
    blocks: Vec<Saved<T>>,
    last: AlignedBuffer<T>,
    normed: AlignedBuffer<T>,
    out: AlignedBuffer<T>,
    scratch: [AlignedBuffer<T>; 2],
    slopes: AlignedBuffer<T>,
    g: [AlignedBuffer<T>; 2],
    gqkv: AlignedBuffer<T>,
}

impl<T: SimdReal> Work<T> {
    /// Memory that grows as needed; `training`: there is a way back.
    pub(super) fn new(training: bool) -> Self {
        Work {
            training,
            graphs: Vec::new(),
            condition: Condition::default(),
            table_rows: 0,
            token_input: AlignedBuffer::default(),
            token_hidden: AlignedBuffer::default(),
            tokens: AlignedBuffer::default(),
            table: AlignedBuffer::default(),
            gtable: AlignedBuffer::default(),
            modulated: Vec::new(),
            readout: Modulated::default(),
            structures: Vec::new(),
            condition_of: Vec::new(),
            positions: AlignedBuffer::default(),
            position_hidden: AlignedBuffer::default(),
            previous: Previous::default(),
            pairs: PairRows::default(),
            blocks: Vec::new(),
            last: AlignedBuffer::default(),
            normed: AlignedBuffer::default(),
            out: AlignedBuffer::default(),
            scratch: Default::default(),
            slopes: AlignedBuffer::default(),
            g: Default::default(),
            gqkv: AlignedBuffer::default(),
        }
    }

    /// Takes graphs and computes what depends on them alone. Structures are forgotten.
    pub(super) fn set_graphs<'a>(&mut self, p: &Parameters<T>, graphs: impl Iterator<Item = &'a GraphContext> + Clone) {
        let f = p.config.features();
        self.clear_structures();
        self.condition.set_graphs(&p.condition, &p.values, graphs.clone());
        self.graphs.clear();
        let (mut first, mut bonds, mut most) = (0, 0, 0);
        for graph in graphs {
            let (rows, table) = match p.config.pair_tokens {
                PairTokens::AllPairs => (graph.hops.clone(), 0),
                PairTokens::BondPairs => (graph.bonded.clone(), bonds),
            };
            self.graphs.push(Member { first, atoms: graph.len(), types: graph.types.clone(), rows, table, unknown: None });
            first += graph.len();
            bonds += graph.pairs.len();
            most = most.max(graph.most_hops);
        }
        let embedding = &p.values[p.places.pair_embedding.clone()];
        // Of a graph that is not known all pairs have the last row.
        let rows = 1 + if p.pair_perceptron.is_some() { most } else { bonds };
        self.table_rows = rows + usize::from(p.layout.unknown.is_some());
        reserve(&mut self.tokens, self.table_rows, f);
        reserve(&mut self.table, self.table_rows, p.pair_maps.place.outputs);
        match &p.pair_perceptron {
            Some(perceptron) => {
                for buffer in [&mut self.token_input, &mut self.token_hidden, &mut self.scratch[0]] {
                    reserve(buffer, rows, f);
                }
                self.token_input[..f].copy_from_slice(&embedding[(HOPS - 2) * f..(HOPS - 1) * f]);
                self.token_input[f..rows * f].copy_from_slice(&embedding[f..rows * f]);
                perceptron.apply(&p.values, rows, &self.token_input, &mut self.token_hidden, &mut self.scratch[0], &mut self.tokens);
            }
            None => {
                self.tokens[..f].copy_from_slice(embedding);
                self.tokens[f..rows * f].copy_from_slice(&self.condition.conditioner.bond_tokens()[..bonds * f]);
            }
        }
        if let Some(unknown) = &p.layout.unknown {
            self.tokens[rows * f..(rows + 1) * f].copy_from_slice(&p.values[unknown.pair.clone()]);
        }
        if p.config.variant == Variant::Ape {
            p.pair_maps.apply(&p.values, self.table_rows, &self.tokens, &mut self.table);
        }
    }

    /// Graph `graph` is not known to the network any more, but its atoms are; after the graphs, before the times are set.
    pub(super) fn forget(&mut self, _: &Parameters<T>, graph: usize) {
        self.condition.forget(graph);
        self.graphs[graph].unknown = Some(self.table_rows - 1);
    }

    /// Takes one time per graph and computes what depends on graphs and times.
    pub(super) fn set_times(&mut self, p: &Parameters<T>, times: impl Iterator<Item = f64>) {
        let f = p.config.features();
        self.condition.set_times(&p.condition, &p.values, times);
        let (rows, tokens) = (self.condition.rows, &self.condition.tokens);
        reserve(&mut self.scratch[0], rows, f);
        self.modulated.resize_with(p.blocks.len(), Modulated::default);
        let n = rows * f;
        for (m, block) in self.modulated.iter_mut().zip(&p.blocks) {
            reserve(&mut m.normed, rows, f);
            reserve(&mut m.values, rows, MODULATION * f);
            block.norm.apply(&p.values, rows, tokens, &mut m.normed);
            dispatch(Curve { activation: Activation::Silu, x: &m.normed[..n], y: &mut self.scratch[0][..n] });
            block.modulation.apply(&p.values, rows, &self.scratch[0], &mut m.values);
        }
        // Of the readout the curve comes after the layer.
        let m = &mut self.readout;
        reserve(&mut m.normed, rows, 2 * f);
        reserve(&mut m.values, rows, 2 * f);
        p.readout_modulation.apply(&p.values, rows, tokens, &mut m.normed);
        dispatch(Curve { activation: Activation::Silu, x: &m.normed[..2 * n], y: &mut m.values[..2 * n] });
    }

    /// Forgets the structures; graphs and times stay.
    pub(super) fn clear_structures(&mut self) {
        self.structures.clear();
        self.condition_of.clear();
        self.previous.clear();
    }

    /// Adds a structure of graph `graph` at `x [N, 3]` (Å, centred).
    pub(super) fn add(&mut self, p: &Parameters<T>, graph: usize, x: &[f64]) {
        let member = &self.graphs[graph];
        let atom = self.condition_of.len();
        let pairs = pattern(p.config.heads);
        let (pair, weight) = self.structures.last().map_or((0, 0), |s| {
            let more = self.graphs[s.graph].atoms.pow(2);
            (s.pair + more, s.weight + more * pairs)
        });
        self.structures.push(Structure { graph, atom, pair, weight });
        self.condition_of.extend(member.first as u32..(member.first + member.atoms) as u32);
        let atoms = self.condition_of.len();
        if self.positions.len() < atoms * PAD {
            // What is in it must stay.
            let mut larger = AlignedBuffer::zeros((atoms * PAD).next_power_of_two());
            larger[..atom * PAD].copy_from_slice(&self.positions[..atom * PAD]);
            self.positions = larger;
        }
        for (to, x) in self.positions[atom * PAD..].chunks_exact_mut(PAD).zip(x.chunks_exact(3)) {
            for k in 0..3 {
                to[k] = T::from_f64(x[k]);
            }
        }
        if p.previous.is_some() {
            self.previous.add(self.graphs[graph].atoms);
        }
    }

    /// What was predicted before of the structure that was added last, `[N, 3]` (Å, centred).
    pub(super) fn recall(&mut self, p: &Parameters<T>, clean: &[f64]) {
        if p.previous.is_some() {
            self.previous.set(clean.chunks_exact(3).map(|x| [x[0], x[1], x[2]]));
        }
    }

    /// Atoms of all structures.
    #[cfg(test)]
    pub(super) fn atoms(&self) -> usize {
        self.condition_of.len()
    }

    /// Drift of atom `i` before its mean is taken away (Å).
    pub(super) fn drift(&self, i: usize) -> [T; 3] {
        [self.out[i * PAD], self.out[i * PAD + 1], self.out[i * PAD + 2]]
    }

    /// Number of pairs of all structures, an atom with itself among them.
    fn pair_rows(&self) -> usize {
        self.structures.last().map_or(0, |s| s.pair + self.graphs[s.graph].atoms.pow(2))
    }

    fn reserve_structures(&mut self, p: &Parameters<T>) {
        let (atoms, f, hidden) = (self.condition_of.len(), p.config.features(), p.config.features() * p.config.expansion);
        let weights = self.pair_rows() * pattern(p.config.heads);
        reserve(&mut self.position_hidden, atoms, f);
        self.blocks.resize_with(if self.training { p.blocks.len() } else { 1 }, Saved::default);
        for b in &mut self.blocks {
            for (buffer, width) in [
                (&mut b.h, f),
                (&mut b.x, f),
                (&mut b.qkv, 3 * f),
                (&mut b.sum, f),
                (&mut b.message, f),
                (&mut b.attention, f),
                (&mut b.middle, f),
                (&mut b.x2, f),
                (&mut b.hidden, hidden),
                (&mut b.update, f),
            ] {
                reserve(buffer, atoms, width);
            }
            reserve(&mut b.weights, weights, 1);
        }
        reserve(&mut self.last, atoms, f);
        reserve(&mut self.normed, atoms, f);
        reserve(&mut self.out, atoms, PAD);
        reserve(&mut self.scratch[0], atoms, hidden);
    }

    /// From structures to drifts.
    pub(super) fn forward(&mut self, p: &Parameters<T>) {
        self.reserve_structures(p);
        let (atoms, f) = (self.condition_of.len(), p.config.features());
        let stride = MODULATION * f;
        match p.config.variant {
            Variant::Ape => {
                let (hidden, h) = (&mut self.position_hidden, &mut self.blocks[0].h);
                p.position.apply(&p.values, atoms, &self.positions, hidden, &mut self.scratch[0], h);
            }
            _ => {
                self.blocks[0].h[..atoms * f].fill(T::default());
                self.displace(p);
            }
        }
        let embedding = &p.values[p.layout.types.clone()];
        for s in &self.structures {
            let member = &self.graphs[s.graph];
            for (h, &z) in self.blocks[0].h[s.atom * f..].chunks_exact_mut(f).zip(&member.types) {
                dispatch(Add { x: &embedding[z as usize * f..(z as usize + 1) * f], y: h });
            }
        }
        if let Some(perceptron) = &p.previous {
            self.previous.apply(perceptron, &p.values, &mut self.scratch[0], &mut self.blocks[0].h);
        }
        for (l, block) in p.blocks.iter().enumerate() {
            let (before, after) = self.blocks.split_at_mut(if self.training { l + 1 } else { 1 });
            let now = &mut before[if self.training { l } else { 0 }];
            let (condition, modulation) = (&self.condition_of[..], &self.modulated[l].values[..]);
            let columns = |scale: usize, shift: usize| Columns { condition, stride, scale: scale * f, shift: shift * f };
            dispatch(Modulate { width: f, columns: columns(GAMMA1, BETA1), modulation, x: &now.h, y: &mut now.x });
            block.qkv.apply(&p.values, atoms, &now.x, &mut now.qkv);
            for s in &self.structures {
                let member = &self.graphs[s.graph];
                let end = s.atom + member.atoms;
                dispatch(Attend {
                    sizes: Sizes { atoms: member.atoms, width: f, heads: p.config.heads },
                    qkv: &now.qkv[3 * f * s.atom..3 * f * end],
                    table: table(&self.table, &self.pairs.table, p, member, s.pair, l),
                    kappa: &p.values[p.places.blocks[l].kappa.clone()],
                    weights: &mut now.weights[s.weight..],
                    sum: &mut now.sum[f * s.atom..f * end],
                    out: &mut now.message[f * s.atom..f * end],
                });
            }
            block.out.apply(&p.values, atoms, &now.message, &mut now.attention);
            let gate = ALPHA1 * f;
            dispatch(Gate { width: f, condition, stride, alpha: gate, modulation, x: &now.h, u: &now.attention, y: &mut now.middle });
            dispatch(Modulate { width: f, columns: columns(GAMMA2, BETA2), modulation, x: &now.middle, y: &mut now.x2 });
            block.perceptron.apply(&p.values, atoms, &now.x2, &mut now.hidden, &mut self.scratch[0], &mut now.update);
            let Saved { h, middle, update, .. } = now;
            let y = match after.first_mut() {
                _ if l + 1 == p.blocks.len() => &mut self.last,
                Some(next) => &mut next.h,
                None => h,
            };
            dispatch(Gate { width: f, condition, stride, alpha: ALPHA2 * f, modulation, x: middle, u: update, y });
        }
        // Shift comes before scale here.
        let columns = Columns { condition: &self.condition_of, stride: 2 * f, scale: f, shift: 0 };
        dispatch(Modulate { width: f, columns, modulation: &self.readout.values, x: &self.last, y: &mut self.normed });
        p.readout.apply(&p.values, atoms, &self.normed, &mut self.out);
    }

    /// Tokens and rows of the table for every pair: those of the graph and of the displacement from receiver to sender.
    fn displace(&mut self, p: &Parameters<T>) {
        let (rows, f) = (self.pair_rows(), p.config.features());
        let own = &mut self.pairs;
        reserve(&mut own.displacements, rows, PAD);
        reserve(&mut own.hidden, rows, f);
        reserve(&mut own.tokens, rows, f);
        reserve(&mut own.table, rows, p.pair_maps.place.outputs);
        reserve(&mut self.scratch[0], rows, f);
        for s in &self.structures {
            let n = self.graphs[s.graph].atoms;
            let x = &self.positions[s.atom * PAD..];
            for (pair, to) in own.displacements[s.pair * PAD..].chunks_exact_mut(PAD).take(n * n).enumerate() {
                let (receiver, sender) = (pair / n * PAD, pair % n * PAD);
                for k in 0..3 {
                    to[k] = x[sender + k] - x[receiver + k];
                }
            }
        }
        p.position.apply(&p.values, rows, &own.displacements, &mut own.hidden, &mut self.scratch[0], &mut own.tokens);
        for s in &self.structures {
            let member = &self.graphs[s.graph];
            for (to, &row) in own.tokens[s.pair * f..].chunks_exact_mut(f).zip(&*member.rows) {
                let row = member.row(row);
                dispatch(Add { x: &self.tokens[row * f..(row + 1) * f], y: to });
            }
        }
        p.pair_maps.apply(&p.values, rows, &own.tokens, &mut own.table);
    }

    /// The reverse of [`Work::displace`]; leaves gradients of the graphs' tokens in `self.g[1]`.
    fn displace_back(&mut self, p: &Parameters<T>, gradient: &mut [T]) {
        let (rows, f) = (self.pair_rows(), p.config.features());
        let own = &mut self.pairs;
        let [s, gs] = &mut self.scratch;
        reserve(&mut own.gtokens, rows, f);
        p.pair_maps.back(rows, &own.gtable, &mut own.gtokens);
        p.pair_maps.gradient(rows, &own.gtable, &own.tokens, gradient);
        let to = &mut self.g[1];
        reserve(to, self.table_rows, f);
        to[..self.table_rows * f].fill(T::default());
        for s in &self.structures {
            let member = &self.graphs[s.graph];
            for (from, &row) in own.gtokens[s.pair * f..].chunks_exact(f).zip(&*member.rows) {
                let row = member.row(row);
                dispatch(Add { x: from, y: &mut to[row * f..(row + 1) * f] });
            }
        }
        p.position.back(rows, &own.gtokens, &own.displacements, &own.hidden, [s, gs], None, gradient);
    }

    /// Adds the gradients of parameters (`[layout.len]`) for the gradient `seed [A, 3]` of the drifts.
    pub(super) fn backward(&mut self, p: &Parameters<T>, seed: &[T], gradient: &mut [T]) {
        let (atoms, f, rows) = (self.condition_of.len(), p.config.features(), self.condition.rows);
        let (stride, hidden) = (MODULATION * f, f * p.config.expansion);
        let maps = p.pair_maps.place.outputs;
        for buffer in &mut self.g {
            reserve(buffer, atoms, f);
        }
        reserve(&mut self.gqkv, atoms, 3 * f);
        let pairs = if p.config.variant == Variant::Rpe { self.pair_rows() } else { 0 };
        let largest = (atoms * hidden).max(rows * 2 * f).max(self.table_rows.max(pairs) * f);
        self.scratch.iter_mut().for_each(|s| reserve(s, largest, 1));
        let (gtable, table_rows) = if pairs > 0 { (&mut self.pairs.gtable, pairs) } else { (&mut self.gtable, self.table_rows) };
        reserve(gtable, table_rows, maps);
        gtable[..table_rows * maps].fill(T::default());
        reserve(&mut self.condition.gradient, rows, f);
        reserve(&mut self.slopes, self.graphs.iter().map(|g| g.atoms).max().unwrap_or(0), pattern(p.config.heads));

        let [g, gx] = &mut self.g;
        let [s, gs] = &mut self.scratch;
        let gout = &mut self.out;
        for (to, seed) in gout.chunks_exact_mut(PAD).zip(seed.chunks_exact(3)).take(atoms) {
            to.fill(T::default());
            to[..3].copy_from_slice(seed);
        }
        p.readout.back(atoms, gout, gx);
        p.readout.gradient(atoms, gout, &self.normed, gradient);
        let m = &mut self.readout;
        reserve(&mut m.gradient, rows, 2 * f);
        m.gradient[..rows * 2 * f].fill(T::default());
        g[..atoms * f].fill(T::default());
        dispatch(ModulateBack {
            width: f,
            columns: Columns { condition: &self.condition_of, stride: 2 * f, scale: f, shift: 0 },
            modulation: &m.values,
            x: &self.last,
            g: gx,
            gx: g,
            gmodulation: &mut m.gradient,
        });
        let n = rows * 2 * f;
        dispatch(CurveBack { activation: Activation::Silu, x: &m.normed[..n], g: &mut m.gradient[..n], y: &mut s[..n] });
        p.readout_modulation.back(rows, &m.gradient, &mut self.condition.gradient);
        p.readout_modulation.gradient(rows, &m.gradient, &self.condition.tokens, gradient);

        for (l, block) in p.blocks.iter().enumerate().rev() {
            let saved = &self.blocks[l];
            let m = &mut self.modulated[l];
            reserve(&mut m.gradient, rows, stride);
            m.gradient[..rows * stride].fill(T::default());
            let (condition, modulation, gmodulation) = (&self.condition_of[..], &m.values[..], &mut m.gradient[..]);
            let columns = |scale: usize, shift: usize| Columns { condition, stride, scale: scale * f, shift: shift * f };
            // The perceptron. `gx` is what its input or its update gets.
            let (width, alpha) = (f, ALPHA2 * f);
            dispatch(GateBack { width, condition, stride, alpha, modulation, u: &saved.update, g: &g[..], gu: gx, gmodulation });
            block.perceptron.back(atoms, gx, &saved.x2, &saved.hidden, [s, gs], Some(&mut self.gqkv), gradient);
            let columns2 = columns(GAMMA2, BETA2);
            dispatch(ModulateBack { width: f, columns: columns2, modulation, x: &saved.middle, g: &self.gqkv, gx: g, gmodulation });
            // Attention.
            let alpha = ALPHA1 * f;
            dispatch(GateBack { width, condition, stride, alpha, modulation, u: &saved.attention, g: &g[..], gu: gx, gmodulation });
            block.out.back(atoms, gx, s);
            block.out.gradient(atoms, gx, &saved.message, gradient);
            self.gqkv[..atoms * 3 * f].fill(T::default());
            for structure in &self.structures {
                let member = &self.graphs[structure.graph];
                let (first, end) = (structure.atom, structure.atom + member.atoms);
                let kappa = p.places.blocks[l].kappa.clone();
                dispatch(AttendBack {
                    sizes: Sizes { atoms: member.atoms, width: f, heads: p.config.heads },
                    qkv: &saved.qkv[3 * f * first..3 * f * end],
                    table: table(&self.table, &self.pairs.table, p, member, structure.pair, l),
                    kappa: &p.values[kappa.clone()],
                    weights: &saved.weights[structure.weight..],
                    sum: &saved.sum[f * first..f * end],
                    g: &mut s[f * first..f * end],
                    gqkv: &mut self.gqkv[3 * f * first..3 * f * end],
                    gkappa: &mut gradient[kappa],
                    gtable: match p.config.variant {
                        Variant::Ape => &mut self.gtable,
                        _ => &mut self.pairs.gtable[structure.pair * maps..],
                    },
                    slopes: &mut self.slopes,
                });
            }
            block.qkv.back(atoms, &self.gqkv, gx);
            block.qkv.gradient(atoms, &self.gqkv, &saved.x, gradient);
            dispatch(ModulateBack { width: f, columns: columns(GAMMA1, BETA1), modulation, x: &saved.h, g: gx, gx: g, gmodulation });
            // The modulation.
            let n = rows * f;
            block.modulation.back(rows, &m.gradient, gs);
            dispatch(CurveBack { activation: Activation::Silu, x: &m.normed[..n], g: &mut gs[..n], y: &mut s[..n] });
            block.modulation.gradient(rows, &m.gradient, s, gradient);
            // `s` is free again: it takes the gradient of the condition.
            block.norm.back(&p.values, rows, &self.condition.tokens, gs, s, gradient);
            dispatch(Add { x: &s[..n], y: &mut self.condition.gradient[..n] });
        }
        // Atoms' own tokens.
        let types = &mut gradient[p.layout.types.clone()];
        for structure in &self.structures {
            let member = &self.graphs[structure.graph];
            for (g, &z) in g[structure.atom * f..].chunks_exact(f).zip(&member.types) {
                dispatch(Add { x: g, y: &mut types[z as usize * f..(z as usize + 1) * f] });
            }
        }
        if p.config.variant == Variant::Ape {
            p.position.back(atoms, g, &self.positions, &self.position_hidden, [s, gs], None, gradient);
        }
        if let Some(perceptron) = &p.previous {
            self.previous.back(perceptron, g, [s, gs], gradient);
        }
        self.graphs_back(p, gradient);
    }

    /// The rest of the way back: pairs, times, graphs.
    fn graphs_back(&mut self, p: &Parameters<T>, gradient: &mut [T]) {
        let f = p.config.features();
        let bonds = self.condition.conditioner.bonds();
        match p.config.variant {
            Variant::Ape => {
                let (rows, gtokens) = (self.table_rows, &mut self.g[1]);
                reserve(gtokens, rows, f);
                p.pair_maps.back(rows, &self.gtable, gtokens);
                p.pair_maps.gradient(rows, &self.gtable, &self.tokens, gradient);
            }
            _ => self.displace_back(p, gradient),
        }
        let [s, gs] = &mut self.scratch;
        let gtokens = &self.g[1];
        let mut rows = self.table_rows;
        if let Some(unknown) = &p.layout.unknown {
            rows -= 1;
            dispatch(Add { x: &gtokens[rows * f..(rows + 1) * f], y: &mut gradient[unknown.pair.clone()] });
        }
        let embedding = p.places.pair_embedding.clone();
        let mut gbonds = None;
        match &p.pair_perceptron {
            Some(perceptron) => {
                let gx = &mut self.tokens;
                perceptron.back(rows, gtokens, &self.token_input, &self.token_hidden, [s, gs], Some(gx), gradient);
                let to = &mut gradient[embedding];
                dispatch(Add { x: &gx[..f], y: &mut to[(HOPS - 2) * f..(HOPS - 1) * f] });
                dispatch(Add { x: &gx[f..rows * f], y: &mut to[f..rows * f] });
            }
            None => {
                dispatch(Add { x: &gtokens[..f], y: &mut gradient[embedding] });
                gbonds = Some(&gtokens[f..(1 + bonds) * f]);
            }
        }
        self.condition.backward(&p.condition, &p.values, gbonds, gradient);
    }
}

/// Rows that pairs of a structure meet in block `l`: those of its graph, or its own.
fn table<'a, T: SimdReal>(shared: &'a [T], own: &'a [T], p: &Parameters<T>, member: &'a Member, pair: usize, l: usize) -> Table<'a, T> {
    let stride = p.pair_maps.place.outputs;
    let offset = 2 * l * p.config.features();
    match p.config.variant {
        // Every pair has the same row.
        Variant::Ape if let Some(row) = member.unknown => {
            Table { values: shared, stride: 0, offset: row * stride + offset, rows: &[], first: 0 }
        }
        Variant::Ape => Table { values: shared, stride, offset, rows: &member.rows, first: member.table },
        _ => Table { values: &own[pair * stride..], stride, offset, rows: &[], first: 0 },
    }
}

#[cfg(test)]
mod tests;
