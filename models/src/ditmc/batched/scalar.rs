//! aPE and rPE on a device.

use super::super::config::{DitmcConfig, Variant};
use super::super::layout::{self, Layout, NormPlace, PerceptronPlace, ScalarPlaces};
use super::base::{Base, Int, Perceptron};
use super::structures::Structures;
use crate::error::Result;
use crate::launch::{Dense, Finish};
use crate::matrix::PAD;
use scorefield_integrators::device::{Argument, Device, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

/// Columns of a block's modulation, in units of F: γ, β, α of attention, then of the perceptron.
const MODULATION: usize = 6;

/// A block of the transformer: places, and what it leaves for the way back; names as in `scalar.rs`.
#[derive(Default)]
struct Block<T> {
    norm: NormPlace,
    modulation: Dense,
    qkv: Dense,
    kappa: usize,
    out: Dense,
    perceptron: Perceptron<T>,
    /// Of the condition: after the norm, after SiLU, and the modulation.
    normed: Memory<T>,
    curved: Memory<T>,
    modulated: Memory<T>,
    x: Memory<T>,
    qkv_of: Memory<T>,
    weights: Memory<T>,
    sum: Memory<T>,
    message: Memory<T>,
    attention: Memory<T>,
    middle: Memory<T>,
    x2: Memory<T>,
    update: Memory<T>,
}

/// The network and its memory.
pub(in super::super) struct ScalarNetwork<T> {
    pub(super) base: Base<T>,
    places: ScalarPlaces,
    position: Perceptron<T>,
    pair: Perceptron<T>,
    pair_maps: Dense,
    readout_modulation: Dense,
    readout: Dense,
    blocks: Vec<Block<T>>,
    /// Features before each block, and after the last.
    features: Vec<Memory<T>>,
    saved: Saved<T>,
    back: Back<T>,
}

/// What the network leaves for the way back, beside its blocks.
#[derive(Default)]
struct Saved<T> {
    /// Of hops: what the perceptron reads, its tokens; of pairs, where they have their own: displacements, tokens. Then the table.
    hop_input: Memory<T>,
    hop_tokens: Memory<T>,
    displacements: Memory<T>,
    pair_tokens: Memory<T>,
    table: Memory<T>,
    readout_before: Memory<T>,
    readout_modulated: Memory<T>,
    last_normed: Memory<T>,
    out: Memory<T>,
}

/// Gradients.
#[derive(Default)]
struct Back<T> {
    out: Memory<T>,
    g: Memory<T>,
    gx: Memory<T>,
    gqkv: Memory<T>,
    slopes: Memory<T>,
    /// Of pairs' rows of a block, of the table, of tokens.
    rows: Memory<T>,
    table: Memory<T>,
    tokens: Memory<T>,
    hop_tokens: Memory<T>,
    modulation: Memory<T>,
}

impl<T: SimdReal> ScalarNetwork<T> {
    /// All parameters are zero; `pair` is the perceptron of embedded hops.
    pub(super) fn new(
        device: &Device,
        config: &DitmcConfig,
        layout: Arc<Layout>,
        places: &ScalarPlaces,
        pair: &PerceptronPlace,
    ) -> Result<Self> {
        let places = places.clone();
        let block = |b: &layout::BlockPlaces| Block {
            norm: b.norm.clone(),
            modulation: (&b.modulation).into(),
            qkv: (&b.qkv).into(),
            kappa: b.kappa.start,
            out: (&b.out).into(),
            perceptron: Perceptron::new(&b.perceptron, true),
            ..Block::default()
        };
        Ok(ScalarNetwork {
            base: Base::new(device, config, layout)?,
            position: Perceptron::new(&places.position, false),
            pair: Perceptron::new(pair, false),
            pair_maps: (&places.pair_maps).into(),
            readout_modulation: (&places.readout_modulation).into(),
            readout: (&places.readout).into(),
            blocks: places.blocks.iter().map(block).collect(),
            features: (0..=config.blocks).map(|_| Memory::default()).collect(),
            saved: Saved::default(),
            back: Back::default(),
            places,
        })
    }

    fn features(&self) -> usize {
        self.base.features()
    }

    /// Brings structures to the device and makes room for what they need.
    pub(super) fn upload(&mut self, s: &Structures<T>) -> Result<()> {
        let (f, heads, maps) = (self.features(), self.base.config.heads, self.pair_maps.outputs);
        let (atoms, pairs, hops) = (s.atoms(), s.pairs(), s.hop_rows());
        let own_pairs = self.base.config.variant == Variant::Rpe;
        let table_rows = if own_pairs { pairs } else { hops };
        let hidden = self.base.config.expansion * f;
        let device = &self.base.launcher.device.clone();
        let room = |memory: &mut Memory<T>, n: usize| memory.reserve(device, n);
        let placed = if own_pairs { pairs } else { atoms };
        for (perceptron, rows) in [(&mut self.position, placed), (&mut self.pair, hops)] {
            perceptron.reserve(device, rows)?;
        }
        for b in &mut self.blocks {
            b.perceptron.reserve(device, atoms)?;
            for (memory, n) in [
                (&mut b.normed, f),
                (&mut b.curved, f),
                (&mut b.modulated, MODULATION * f),
                (&mut b.x, f),
                (&mut b.qkv_of, 3 * f),
                (&mut b.sum, f),
                (&mut b.message, f),
                (&mut b.attention, f),
                (&mut b.middle, f),
                (&mut b.x2, f),
                (&mut b.update, f),
            ] {
                room(memory, atoms * n)?;
            }
            room(&mut b.weights, pairs * heads)?;
        }
        for memory in &mut self.features {
            room(memory, atoms * f)?;
        }
        let b = &mut self.back;
        // The largest that goes through a perceptron: the hidden layer of a block, a pair's token.
        let wide = (atoms * hidden).max(table_rows * f);
        for (memory, n) in [
            (&mut self.saved.hop_input, hops * f),
            (&mut self.saved.hop_tokens, hops * f),
            (&mut self.saved.displacements, if own_pairs { pairs * PAD } else { 0 }),
            (&mut self.saved.pair_tokens, if own_pairs { pairs * f } else { 0 }),
            (&mut self.saved.table, table_rows * maps),
            (&mut self.saved.readout_before, 2 * atoms * f),
            (&mut self.saved.readout_modulated, 2 * atoms * f),
            (&mut self.saved.last_normed, atoms * f),
            (&mut self.saved.out, atoms * PAD),
            (&mut b.out, atoms * PAD),
            (&mut b.g, atoms * f),
            (&mut b.gx, atoms * f),
            (&mut b.gqkv, 3 * atoms * f),
            (&mut b.slopes, pairs * heads),
            (&mut b.rows, if own_pairs { 0 } else { 2 * pairs * f }),
            (&mut b.table, table_rows * maps),
            (&mut b.tokens, table_rows * f),
            (&mut b.hop_tokens, hops * f),
            (&mut b.modulation, MODULATION * atoms * f),
        ] {
            room(memory, n)?;
        }
        let perceptrons = self.blocks.iter().map(|b| (&b.perceptron, atoms)).chain([(&self.position, placed), (&self.pair, hops)]);
        let dense = self.blocks.iter().flat_map(|b| [&b.modulation, &b.qkv, &b.out]).chain([&self.readout_modulation, &self.readout]);
        let parts = perceptrons.map(|(p, rows)| p.room(rows)).chain(dense.map(|d| d.room(atoms))).chain([self.pair_maps.room(table_rows)]);
        let parts = parts.max().unwrap_or(0);
        self.base.upload(s, wide, 2 * f, parts)
    }

    /// A kernel of a gate with α in column `alpha` (in units of F) of a block's modulation.
    fn gate(&self, kernel: &str, block: &Block<T>, alpha: usize, atoms: usize, forward: [&Memory<T>; 3]) -> Result<()> {
        let (f, back) = (self.features(), &self.back);
        let [x, u, y] = forward.map(|m| m.at(0));
        let gradients = [back.g.at(0), back.gx.at(0), back.modulation.at(alpha * f)];
        let sizes = [atoms, f, MODULATION * f, 1, 0].map(Argument::from);
        self.base.launcher.each(kernel, atoms * f, &[&[block.modulated.at(alpha * f), x, u, y][..], &gradients, &sizes].concat())
    }

    /// From structures to drifts.
    pub(super) fn forward(&self, s: &Structures<T>) -> Result<()> {
        let (atoms, f, on, values) = (s.atoms(), self.features(), &self.base.launcher, &self.base.launcher.values);
        self.base.condition(s)?;
        for b in &self.blocks {
            self.base.norm(self.base.learned(&b.norm), [atoms, f], &self.base.memory.tokens, &b.normed)?;
            self.base.curve("curve", atoms * f, &b.normed, &b.curved)?;
            on.apply(&b.modulation, atoms, &b.curved, &b.modulated, Finish::Set)?;
        }
        on.apply(&self.readout_modulation, atoms, &self.base.memory.tokens, &self.saved.readout_before, Finish::Set)?;
        self.base.curve("curve", 2 * atoms * f, &self.saved.readout_before, &self.saved.readout_modulated)?;
        self.tables(s)?;
        let types = [values.at(self.base.layout.types.start), self.features[0].at(0)];
        if self.base.config.variant == Variant::Ape {
            self.position.apply(on, atoms, &self.base.uploaded.positions, &self.features[0])?;
        }
        self.base.rows("take_rows", Int::Types, types, atoms, self.base.config.variant == Variant::Ape)?;
        for (l, b) in self.blocks.iter().enumerate() {
            let (h, next) = (&self.features[l], &self.features[l + 1]);
            let stride = MODULATION * f;
            self.base.norm(self.base.modulated(&b.modulated, stride, 0, 1), [atoms, f], h, &b.x)?;
            on.apply(&b.qkv, atoms, &b.x, &b.qkv_of, Finish::Set)?;
            let arguments = [&self.pairs(s, l)[..], &[&b.weights, &b.sum, &b.message].map(|m| m.at(0))].concat();
            on.each("scores", s.pairs() * self.base.config.heads, &arguments)?;
            self.base.softmax("softmax", s, &b.weights, Argument::NOWHERE, 0.0)?;
            on.each("attend", atoms * f, &arguments)?;
            on.apply(&b.out, atoms, &b.message, &b.attention, Finish::Set)?;
            self.gate("gate", b, 2, atoms, [h, &b.attention, &b.middle])?;
            self.base.norm(self.base.modulated(&b.modulated, stride, 3, 4), [atoms, f], &b.middle, &b.x2)?;
            b.perceptron.apply(on, atoms, &b.x2, &b.update)?;
            self.gate("gate", b, 5, atoms, [&b.middle, &b.update, next])?;
        }
        // Shift comes before scale here.
        let affine = self.base.modulated(&self.saved.readout_modulated, 2 * f, 1, 0);
        self.base.norm(affine, [atoms, f], &self.features[self.blocks.len()], &self.saved.last_normed)?;
        on.apply(&self.readout, atoms, &self.saved.last_normed, &self.saved.out, Finish::Set)
    }

    /// Rows that pairs meet.
    fn tables(&self, s: &Structures<T>) -> Result<()> {
        let (hops, pairs, on) = (s.hop_rows(), s.pairs(), &self.base.launcher);
        let embedding = on.values.at(self.places.pair_embedding.start);
        self.base.rows("take_rows", Int::Hops, [embedding, self.saved.hop_input.at(0)], hops, false)?;
        self.pair.apply(on, hops, &self.saved.hop_input, &self.saved.hop_tokens)?;
        if self.base.config.variant == Variant::Ape {
            return on.apply(&self.pair_maps, hops, &self.saved.hop_tokens, &self.saved.table, Finish::Set);
        }
        let places =
            [self.base.int(Int::Pairs), self.base.uploaded.positions.at(0), self.saved.displacements.at(0), pairs.into(), PAD.into()];
        on.each("displace", pairs * PAD, &places)?;
        self.position.apply(on, pairs, &self.saved.displacements, &self.saved.pair_tokens)?;
        self.base.rows("take_rows", Int::HopOf, [self.saved.hop_tokens.at(0), self.saved.pair_tokens.at(0)], pairs, true)?;
        on.apply(&self.pair_maps, pairs, &self.saved.pair_tokens, &self.saved.table, Finish::Set)
    }

    /// What attention of block `l` begins its parameters with.
    fn pairs(&self, s: &Structures<T>, l: usize) -> Vec<Argument> {
        let (f, b) = (self.features(), &self.blocks[l]);
        let ints = [Int::Pairs, Int::Atoms, Int::Rows].map(|what| self.base.int(what));
        let arrays = [b.qkv_of.at(0), self.saved.table.at(0), self.base.launcher.values.at(b.kappa)];
        let sizes = [s.atoms(), s.pairs(), f, self.base.config.heads, self.pair_maps.outputs, 2 * l * f].map(Argument::from);
        [&ints[..], &arrays, &sizes].concat()
    }

    /// The vectors of all atoms, as kernels see them.
    pub(super) fn vectors(&self, s: &Structures<T>) -> [Argument; 5] {
        [self.base.int(Int::First), self.saved.out.at(0), s.count().into(), PAD.into(), 1usize.into()]
    }

    /// Where [`DeviceNetwork::backward`] reads the gradients of vectors: cleared.
    pub(super) fn seed(&self, s: &Structures<T>) -> Result<Argument> {
        let n = s.atoms() * PAD;
        self.base.launcher.each("clear", n, &[self.back.out.at(0), n.into()])?;
        Ok(self.back.out.at(0))
    }

    /// Gradients of all parameters from those of vectors; `elements` are those that there are.
    pub(super) fn backward(&self, s: &Structures<T>, elements: &Memory<i32>) -> Result<()> {
        let (atoms, f, on, back) = (s.atoms(), self.features(), &self.base.launcher, &self.back);
        let wide = &self.base.memory.wide[0];
        on.back(&self.readout, atoms, &back.out, &back.gx, Finish::Set)?;
        on.gradient(&self.readout, atoms, &back.out, &self.saved.last_normed)?;
        let affine = self.base.modulated(&self.saved.readout_modulated, 2 * f, 1, 0);
        let to = [back.modulation.at(f), back.modulation.at(0)];
        self.base.norm_back(affine, [atoms, f], [&self.features[self.blocks.len()], &back.gx, &back.g], to, 2 * f, false)?;
        self.base.curve("curve_back", 2 * atoms * f, &self.saved.readout_before, &back.modulation)?;
        on.back(&self.readout_modulation, atoms, &back.modulation, &self.base.memory.gradient, Finish::Set)?;
        on.gradient(&self.readout_modulation, atoms, &back.modulation, &self.base.memory.tokens)?;
        for l in (0..self.blocks.len()).rev() {
            self.block_back(s, l)?;
        }
        if self.base.config.variant == Variant::Ape {
            self.position.back(on, atoms, &back.g, &self.base.uploaded.positions, wide, None)?;
        }
        self.tables_back(s)?;
        self.base.backward(s, &back.g, elements)
    }

    /// The way back through block `l`: `g` becomes the gradient of the features before it; that of the condition is added to.
    fn block_back(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, back, b) = (s.atoms(), self.features(), &self.base.launcher, &self.back, &self.blocks[l]);
        let (stride, h, heads) = (MODULATION * f, &self.features[l], self.base.config.heads);
        let [wide, other, ..] = &self.base.memory.wide;
        // The perceptron.
        self.gate("gate_back", b, 5, atoms, [&b.middle, &b.update, &b.update])?;
        b.perceptron.back(on, atoms, &back.gx, &b.x2, wide, Some(other))?;
        let to = |scale: usize, shift: usize| [back.modulation.at(scale * f), back.modulation.at(shift * f)];
        self.base.norm_back(
            self.base.modulated(&b.modulated, stride, 3, 4),
            [atoms, f],
            [&b.middle, other, &back.g],
            to(3, 4),
            stride,
            true,
        )?;
        // Attention.
        self.gate("gate_back", b, 2, atoms, [h, &b.attention, &b.attention])?;
        on.back(&b.out, atoms, &back.gx, wide, Finish::Set)?;
        on.gradient(&b.out, atoms, &back.gx, &b.message)?;
        let own_pairs = self.base.config.variant == Variant::Rpe;
        let (rows, row_stride, offset) = if own_pairs { (&back.table, self.pair_maps.outputs, 2 * l * f) } else { (&back.rows, 2 * f, 0) };
        let arrays = [&b.weights, &b.sum, wide, &back.slopes, &back.gqkv, other, rows].map(|m| m.at(0));
        let arguments = [&self.pairs(s, l)[..], &arrays, &[row_stride.into(), offset.into()]].concat();
        on.each("kappa_back", atoms * f, &arguments)?;
        on.each("scores_back", s.pairs() * heads, &arguments)?;
        let scale = (heads as f64 / f as f64).sqrt();
        self.base.softmax("softmax_back", s, &b.weights, back.slopes.at(0), scale)?;
        on.each("attend_back", atoms * f, &arguments)?;
        on.each("rows_back", s.pairs() * f, &arguments)?;
        on.sum_columns(atoms, f, other, b.kappa)?;
        if !own_pairs {
            self.base.sum_by_hops(s, &back.rows, 2 * f, back.table.at(2 * l * f), self.pair_maps.outputs)?;
        }
        on.back(&b.qkv, atoms, &back.gqkv, other, Finish::Set)?;
        on.gradient(&b.qkv, atoms, &back.gqkv, &b.x)?;
        self.base.norm_back(self.base.modulated(&b.modulated, stride, 0, 1), [atoms, f], [h, other, &back.g], to(0, 1), stride, true)?;
        // The modulation.
        on.back(&b.modulation, atoms, &back.modulation, wide, Finish::Set)?;
        self.base.curve("curve_back", atoms * f, &b.normed, wide)?;
        on.gradient(&b.modulation, atoms, &back.modulation, &b.curved)?;
        self.base.learned_back(&b.norm, atoms, [&self.base.memory.tokens, wide, other], &back.gx)?;
        self.base.curve("add", atoms * f, other, &self.base.memory.gradient)
    }

    fn tables_back(&self, s: &Structures<T>) -> Result<()> {
        let (hops, pairs, f, on, back) = (s.hop_rows(), s.pairs(), self.features(), &self.base.launcher, &self.back);
        let [wide, other, ..] = &self.base.memory.wide;
        let gtokens = if self.base.config.variant == Variant::Ape {
            on.back(&self.pair_maps, hops, &back.table, &back.hop_tokens, Finish::Set)?;
            on.gradient(&self.pair_maps, hops, &back.table, &self.saved.hop_tokens)?;
            &back.hop_tokens
        } else {
            on.back(&self.pair_maps, pairs, &back.table, &back.tokens, Finish::Set)?;
            on.gradient(&self.pair_maps, pairs, &back.table, &self.saved.pair_tokens)?;
            self.position.back(on, pairs, &back.tokens, &self.saved.displacements, wide, None)?;
            self.base.sum_by_hops(s, &back.tokens, f, back.hop_tokens.at(0), f)?;
            &back.hop_tokens
        };
        self.pair.back(on, hops, gtokens, &self.saved.hop_input, wide, Some(other))?;
        // Rows that no pair has met get nothing.
        let embedding = &self.places.pair_embedding;
        let to = on.gradient.at(embedding.start);
        on.each("clear", embedding.len(), &[to, embedding.len().into()])?;
        self.base.rows("give_rows", Int::Hops, [to, other.at(0)], hops, false)
    }
}
