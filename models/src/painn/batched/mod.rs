//! A network with vectors on a device, for batches of molecules of any sizes: `kernels/painn_training.cu`, launched layer by layer.
//!
//! Kernels of replicas (`device.rs`) keep one molecule through many steps; these serve training, and samplers whose molecules differ and
//! whose steps are the host's.

mod graphs;
mod provider;

use super::config::{DensePlace, Layout, PainnConfig};
use super::kernels::band;
use crate::error::Result;
use crate::launch::{Dense, Finish, Launcher, copy, training_source};
use crate::matrix::{PAD, padded};
use graphs::starts;
pub(super) use graphs::{Graphs, Piece};
pub(super) use provider::BatchedPainn;
use scorefield_integrators::device::{Argument, Device, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

pub(super) const SOURCE: &str = training_source!("painn_training.cu");

/// Scalars and vectors between layers.
#[derive(Default)]
struct Features<T> {
    q: Memory<T>,
    mu: Memory<T>,
}

/// What a layer leaves for the way back; names as in `network.rs`, where `context` and `hidden` are before SiLU, `*_after` behind it.
#[derive(Default)]
struct Layer<T> {
    context: Memory<T>,
    context_after: Memory<T>,
    x: Memory<T>,
    middle: Memory<T>,
    cat: Memory<T>,
    vw: Memory<T>,
    hidden: Memory<T>,
    hidden_after: Memory<T>,
    a: Memory<T>,
}

/// What a block of the head leaves.
#[derive(Default)]
struct Block<T> {
    cat: Memory<T>,
    vw: Memory<T>,
    hidden: Memory<T>,
    hidden_after: Memory<T>,
    o: Memory<T>,
}

/// Dense layers of an interaction and its mixing.
struct LayerPlaces {
    context: [Dense; 2],
    mix: Dense,
    mixing: [Dense; 2],
}

/// Channel mix and perceptron of a block.
struct BlockPlaces {
    mix: Dense,
    first: Dense,
    second: Dense,
}

impl From<&DensePlace> for Dense {
    fn from(place: &DensePlace) -> Self {
        let DensePlace { weight, bias, inputs, outputs } = place.clone();
        Dense { weight, bias, inputs, outputs, by_output: true }
    }
}

impl BlockPlaces {
    /// Features in, features out, and what the perceptron reads.
    fn widths(&self) -> [usize; 3] {
        [self.mix.inputs, self.mix.outputs / 2, self.first.inputs]
    }
}

/// Molecules on the device; see [`Graphs`].
#[derive(Default)]
struct Uploaded<T> {
    molecules: Memory<i32>,
    types: Memory<i32>,
    time: Memory<T>,
    start: Memory<i32>,
    weights: Memory<T>,
    geometry: Memory<T>,
    ends: Memory<i32>,
    first: Memory<i32>,
    neighbours: Memory<i32>,
    order: Memory<i32>,
    segments: Memory<i32>,
    from: Memory<i32>,
}

/// Gradients of features, now and next, and of what lies between.
#[derive(Default)]
struct Back<T> {
    gq: [Memory<T>; 2],
    gmu: [Memory<T>; 2],
    ga: Memory<T>,
    gs: Memory<T>,
    gcat: Memory<T>,
    gvw: Memory<T>,
    filter: Memory<T>,
    segments: Memory<T>,
}

/// The network and its memory.
pub(super) struct DeviceNetwork<T> {
    /// Parameters, and their gradients after [`DeviceNetwork::backward`].
    pub(super) launcher: Launcher<T>,
    config: PainnConfig,
    pub(super) layout: Arc<Layout>,
    padding: Memory<i32>,
    places: Vec<LayerPlaces>,
    blocks: Vec<BlockPlaces>,
    /// Before the first layer, and after each layer and block.
    features: Vec<Features<T>>,
    layers: Vec<Layer<T>>,
    head: Vec<Block<T>>,
    filter: Memory<T>,
    back: Back<T>,
    uploaded: Uploaded<T>,
}

impl<T: SimdReal> DeviceNetwork<T> {
    /// All parameters are zero.
    pub(super) fn new(device: &Device, config: &PainnConfig, layout: Arc<Layout>) -> Result<Self> {
        let padding: Vec<i32> = layout.padding.iter().map(|&p| p as i32).collect();
        let blocks: Vec<BlockPlaces> = layout
            .head
            .iter()
            .filter_map(|b| match (&b.mix, &b.dense[..]) {
                (Some(mix), [first, second]) => Some(BlockPlaces { mix: mix.into(), first: first.into(), second: second.into() }),
                _ => None,
            })
            .collect();
        Ok(DeviceNetwork {
            launcher: Launcher::new(device, SOURCE, layout.len)?,
            places: layout
                .layers
                .iter()
                .map(|l| LayerPlaces {
                    context: l.context.each_ref().map(Dense::from),
                    mix: (&l.mix).into(),
                    mixing: l.mixing.each_ref().map(Dense::from),
                })
                .collect(),
            padding: device.memory_of(&padding)?,
            features: (0..=config.layers + blocks.len()).map(|_| Features::default()).collect(),
            layers: (0..config.layers).map(|_| Layer::default()).collect(),
            head: (0..blocks.len()).map(|_| Block::default()).collect(),
            blocks,
            filter: Memory::default(),
            back: Back::default(),
            uploaded: Uploaded::default(),
            config: config.clone(),
            layout,
        })
    }

    /// Brings molecules to the device and makes room for what they need, with `back` for the way back too.
    pub(super) fn upload(&mut self, batch: &Graphs<T>, back: bool) -> Result<()> {
        let (device, u) = (&self.launcher.device, &mut self.uploaded);
        let ints = [
            (&mut u.molecules, &batch.molecules),
            (&mut u.types, &batch.types),
            (&mut u.start, &batch.start),
            (&mut u.ends, &batch.ends),
            (&mut u.first, &batch.first),
            (&mut u.neighbours, &batch.neighbours),
            (&mut u.order, &batch.order),
            (&mut u.segments, &batch.segments),
            (&mut u.from, &batch.from),
        ];
        for (to, from) in ints {
            copy(device, to, from)?;
        }
        let reals = [(&mut u.time, &batch.time), (&mut u.weights, &batch.weights), (&mut u.geometry, &batch.geometry)];
        for (to, from) in reals {
            copy(device, to, from)?;
        }
        let (atoms, pairs, f) = (batch.atoms(), batch.pairs(), padded(self.config.features));
        let room = |memory: &mut Memory<T>, n: usize| memory.reserve(device, n);
        for l in &mut self.layers {
            for (memory, width) in [
                (&mut l.context, f),
                (&mut l.context_after, f),
                (&mut l.x, 3 * f),
                (&mut l.middle, 3 * f),
                (&mut l.cat, 2 * f),
                (&mut l.vw, 6 * f),
                (&mut l.hidden, f),
                (&mut l.hidden_after, f),
                (&mut l.a, 3 * f),
            ] {
                room(memory, atoms * width)?;
            }
        }
        for (k, features) in self.features.iter_mut().enumerate() {
            let wide = if k <= self.config.layers { f } else { self.blocks[k - self.config.layers - 1].widths()[1] };
            room(&mut features.q, atoms * wide)?;
            room(&mut features.mu, 3 * atoms * wide)?;
        }
        for (b, places) in self.head.iter_mut().zip(&self.blocks) {
            let [n, m, width] = places.widths();
            for (memory, width) in
                [(&mut b.cat, width), (&mut b.vw, 6 * m), (&mut b.hidden, n), (&mut b.hidden_after, n), (&mut b.o, 2 * m)]
            {
                room(memory, atoms * width)?;
            }
        }
        room(&mut self.filter, 3 * pairs * f)?;
        if !back {
            return Ok(());
        }
        let back = &mut self.back;
        for k in 0..2 {
            room(&mut back.gq[k], atoms * f)?;
            room(&mut back.gmu[k], 3 * atoms * f)?;
        }
        for (memory, n) in [
            (&mut back.ga, 3 * atoms * f),
            (&mut back.gs, atoms * f),
            (&mut back.gcat, atoms * (2 * f + PAD)),
            (&mut back.gvw, 6 * atoms * f),
            (&mut back.filter, 3 * pairs * f),
            (&mut back.segments, batch.segments() * (band::<T>().0 + 1) * 3 * f),
        ] {
            room(memory, n)?;
        }
        let dense = self.places.iter().flat_map(|l| l.context.iter().chain(&l.mixing).chain([&l.mix]));
        let dense = dense.chain(self.blocks.iter().flat_map(|b| [&b.mix, &b.first, &b.second]));
        // A channel mix has a row per axis.
        let most = dense.map(|d| d.room(3 * atoms)).max().unwrap_or(0);
        self.launcher.reserve(most)
    }

    /// The vectors of all atoms, as kernels see them.
    pub(super) fn vectors(&self, molecules: usize) -> [Argument; 5] {
        let v = &self.features[self.features.len() - 1].mu;
        [self.uploaded.molecules.at(0), v.at(0), molecules.into(), (3 * PAD).into(), PAD.into()]
    }

    /// Where [`DeviceNetwork::backward`] reads the gradients of vectors: cleared, for `atoms` atoms.
    pub(super) fn seed(&self, atoms: usize) -> Result<Argument> {
        let seed = self.back.gmu[self.first_turn()].at(0);
        self.launcher.each("clear", 3 * atoms * PAD, &[seed, (3 * atoms * PAD).into()])?;
        Ok(seed)
    }

    /// So that the first layer's gradients are of turn 0.
    fn first_turn(&self) -> usize {
        self.blocks.len() % 2
    }

    fn pairs(&self) -> [Argument; 6] {
        let u = &self.uploaded;
        [u.start.at(0), u.weights.at(0), u.geometry.at(0), u.ends.at(0), u.first.at(0), u.neighbours.at(0)]
    }

    fn filters(&self, layer: usize, pairs: usize) -> Result<()> {
        let columns = 3 * padded(self.config.features);
        let (base, stride) = (layer * columns, self.config.layers * columns);
        let places = [self.layout.filter.start + base, self.layout.filter_bias.start + base].map(|at| self.launcher.values.at(at));
        let sizes = [pairs, columns, stride].map(Argument::from);
        self.launcher.each("filters", pairs * columns, &[&self.pairs()[..], &places, &[self.filter.at(0)], &sizes].concat())
    }

    /// What a perceptron of atoms reads: `[q | |V| | time]`.
    fn concatenate(&self, atoms: usize, widths: [usize; 3], q: Option<&Memory<T>>, vw: &Memory<T>, cat: &Memory<T>) -> Result<()> {
        let [scalars, vectors, width] = widths;
        let arrays = [q.map_or(Argument::NOWHERE, |q| q.at(0)), vw.at(0), self.uploaded.time.at(0), cat.at(0)];
        let sizes = [atoms, scalars, vectors, width].map(Argument::from);
        self.launcher.each("concatenate", atoms * width, &[&arrays[..], &sizes, &[self.config.norm_epsilon.into()]].concat())
    }

    /// A kernel of the mixing of layer `l`; gradients of vectors are those of `turn`.
    fn mix(&self, kernel: &str, l: usize, turn: usize, atoms: usize) -> Result<()> {
        let (now, next, back, f) = (&self.layers[l], &self.features[l + 1], &self.back, padded(self.config.features));
        let arrays = [&now.cat, &now.vw, &now.a, &now.middle, &next.q, &next.mu];
        let gradients = [&back.gmu[turn], &back.gcat, &back.gq[0], &back.ga, &back.gvw];
        let arrays: Vec<Argument> = arrays.into_iter().chain(gradients).map(|m| m.at(0)).collect();
        self.launcher.each(kernel, atoms * f, &[&arrays[..], &[atoms.into(), f.into()]].concat())
    }

    /// A kernel of block `k` of the head, with a thread for each of `features` features; gradients of its result are those of `turn`, of
    /// what it reads those of the other turn.
    fn gate(&self, kernel: &str, k: usize, turn: usize, atoms: usize, features: usize) -> Result<()> {
        let (now, next, back) = (&self.head[k], &self.features[self.config.layers + k + 1], &self.back);
        let seed = if k + 1 < self.head.len() { back.gq[turn].at(0) } else { Argument::NOWHERE };
        let arrays = [&now.cat, &now.vw, &now.o, &next.q, &next.mu].map(|m| m.at(0));
        let gradients = [&back.gmu[turn], &back.gcat, &back.gq[1 - turn], &back.ga, &back.gvw].map(|m| m.at(0));
        let [n, m, width] = self.blocks[k].widths();
        let sizes = [atoms, n, m, width].map(Argument::from);
        self.launcher.each(kernel, atoms * features, &[&arrays[..], &[seed], &gradients, &sizes].concat())
    }

    /// From atoms to vectors, behind the last block.
    pub(super) fn forward(&self, batch: &Graphs<T>) -> Result<()> {
        let (atoms, f) = (batch.atoms(), padded(self.config.features));
        let Features { q, mu } = &self.features[0];
        let arrays = [self.uploaded.types.at(0), self.launcher.values.at(self.layout.embedding.start), q.at(0), mu.at(0)];
        self.launcher.each("embed", atoms * f, &[&arrays[..], &[atoms.into(), f.into()]].concat())?;
        for (l, (places, now)) in self.places.iter().zip(&self.layers).enumerate() {
            let Features { q, mu } = &self.features[l];
            self.launcher.apply(&places.context[0], atoms, q, &now.context_after, Finish::Swish(now.context.at(0)))?;
            self.launcher.apply(&places.context[1], atoms, &now.context_after, &now.x, Finish::Set)?;
            self.filters(l, batch.pairs())?;
            let arrays = [&self.filter, &now.x, q, mu, &now.cat, &now.middle].map(|m| m.at(0));
            self.launcher.each("messages", atoms * f, &[&self.pairs()[..], &arrays, &[atoms.into(), f.into()]].concat())?;
            self.launcher.apply(&places.mix, 3 * atoms, &now.middle, &now.vw, Finish::Set)?;
            self.concatenate(atoms, [f, f, 2 * f], None, &now.vw, &now.cat)?;
            self.launcher.apply(&places.mixing[0], atoms, &now.cat, &now.hidden_after, Finish::Swish(now.hidden.at(0)))?;
            self.launcher.apply(&places.mixing[1], atoms, &now.hidden_after, &now.a, Finish::Set)?;
            self.mix("mix", l, 0, atoms)?;
        }
        for (k, (places, now)) in self.blocks.iter().zip(&self.head).enumerate() {
            let Features { q, mu } = &self.features[self.config.layers + k];
            self.launcher.apply(&places.mix, 3 * atoms, mu, &now.vw, Finish::Set)?;
            self.concatenate(atoms, places.widths(), Some(q), &now.vw, &now.cat)?;
            self.launcher.apply(&places.first, atoms, &now.cat, &now.hidden_after, Finish::Swish(now.hidden.at(0)))?;
            self.launcher.apply(&places.second, atoms, &now.hidden_after, &now.o, Finish::Set)?;
            self.gate("gate", k, 0, atoms, places.widths()[1])?;
        }
        Ok(())
    }

    /// Gradients of all parameters from those of vectors; `elements` are those that there are.
    pub(super) fn backward(&self, batch: &Graphs<T>, elements: &Memory<i32>) -> Result<()> {
        let (atoms, pairs, f, back) = (batch.atoms(), batch.pairs(), padded(self.config.features), &self.back);
        let columns = 3 * f;
        let mut turn = self.first_turn();
        for (k, (places, now)) in self.blocks.iter().zip(&self.head).enumerate().rev() {
            let [n, m, _] = places.widths();
            self.gate("gate_back_o", k, turn, atoms, m)?;
            self.launcher.back(&places.second, atoms, &back.ga, &back.gs, Finish::SwishSlope(now.hidden.at(0)))?;
            self.launcher.back(&places.first, atoms, &back.gs, &back.gcat, Finish::Set)?;
            self.launcher.gradient(&places.second, atoms, &back.ga, &now.hidden_after)?;
            self.launcher.gradient(&places.first, atoms, &back.gs, &now.cat)?;
            self.gate("gate_back_v", k, turn, atoms, n.max(m))?;
            turn = 1 - turn;
            self.launcher.back(&places.mix, 3 * atoms, &back.gvw, &back.gmu[turn], Finish::Set)?;
            self.launcher.gradient(&places.mix, 3 * atoms, &back.gvw, &self.features[self.config.layers + k].mu)?;
        }
        for (l, (places, now)) in self.places.iter().zip(&self.layers).enumerate().rev() {
            let Features { q, mu } = &self.features[l];
            let gmu = &back.gmu[turn];
            self.mix("mix_back_a", l, turn, atoms)?;
            self.launcher.back(&places.mixing[1], atoms, &back.ga, &back.gs, Finish::SwishSlope(now.hidden.at(0)))?;
            self.launcher.back(&places.mixing[0], atoms, &back.gs, &back.gcat, Finish::Set)?;
            self.launcher.gradient(&places.mixing[1], atoms, &back.ga, &now.hidden_after)?;
            self.launcher.gradient(&places.mixing[0], atoms, &back.gs, &now.cat)?;
            self.mix("mix_back_v", l, turn, atoms)?;
            self.launcher.back(&places.mix, 3 * atoms, &back.gvw, gmu, Finish::Add)?;
            self.launcher.gradient(&places.mix, 3 * atoms, &back.gvw, &now.middle)?;
            self.filters(l, pairs)?;
            let arrays = [&now.x, mu, &back.gq[0], gmu, &back.filter].map(|m| m.at(0));
            self.launcher.each("filters_back", pairs * f, &[&self.pairs()[..], &arrays, &[pairs.into(), f.into()]].concat())?;
            self.radial_back(l, batch.segments(), columns)?;
            turn = 1 - turn;
            let arrays = [&self.filter, &now.x, mu, &back.gq[0], gmu, &back.ga, &back.gmu[turn]].map(|m| m.at(0));
            self.launcher.each("messages_back", atoms * f, &[&self.pairs()[..], &arrays, &[atoms.into(), f.into()]].concat())?;
            self.launcher.back(&places.context[1], atoms, &back.ga, &back.gs, Finish::SwishSlope(now.context.at(0)))?;
            self.launcher.back(&places.context[0], atoms, &back.gs, &back.gq[0], Finish::Add)?;
            self.launcher.gradient(&places.context[1], atoms, &back.ga, &now.context_after)?;
            self.launcher.gradient(&places.context[0], atoms, &back.gs, q)?;
        }
        let types = self.uploaded.types.at(0);
        let to = self.launcher.gradient.at(self.layout.embedding.start);
        let sizes = [atoms, f, elements.len()].map(Argument::from);
        self.launcher.each("embed_back", elements.len() * f, &[&[types, elements.at(0), back.gq[0].at(0), to][..], &sizes].concat())?;
        let padding = [self.launcher.gradient.at(0), self.padding.at(0), self.padding.len().into()];
        self.launcher.each("clear_places", self.padding.len(), &padding)
    }

    /// Gradients of the radial weights of layer `l`, from those of its filters.
    fn radial_back(&self, l: usize, segments: usize, columns: usize) -> Result<()> {
        let (u, back) = (&self.uploaded, &self.back);
        let arrays = [u.order.at(0), u.segments.at(0), back.filter.at(0), back.segments.at(0)];
        self.launcher.each("segments", segments * columns, &[&self.pairs()[..], &arrays, &[segments.into(), columns.into()]].concat())?;
        let places = [self.layout.filter.start, self.layout.filter_bias.start].map(|at| self.launcher.gradient.at(at + l * columns));
        let sizes = [self.config.radial, starts::<T>(&self.config), columns, self.config.layers * columns].map(Argument::from);
        let arrays = [u.from.at(0), back.segments.at(0)];
        self.launcher.each("radial_back", (self.config.radial + 1) * columns, &[&arrays[..], &places, &sizes].concat())
    }
}
