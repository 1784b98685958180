//! PaiNN forward and backward: rows of atoms of several molecules at once, in memory that is allocated before.
//!
//! With unit vectors `u_ij` from centre i to neighbour j, filters `W_ij = (φ(d_ij) A + c) f_c(d_ij)` and `x_j = B₂ silu(B₁ q_j)`,
//! an interaction adds `Σ_j W^q x^q` to the scalars q_i and `Σ_j W^R x^R u_ij + W^μ x^μ μ_j` to the vectors μ_i. A mixing takes
//! `[V | W] = μ M`, `a = C₂ silu(C₁ [q, |V|])` and adds `a_q + a_qμ ⟨V, W⟩` to q and `a_μ W` to μ.

use super::config::{DensePlace, Head, Layout, PainnConfig};
use super::kernels::{
    Filter, FilterGradient, Gate, GateBackO, GateBackV, GateShape, Messages, MessagesBack, Mix, MixBackA, MixBackV, Norms, Pairs, Silu,
    SiluBack, reserve,
};
use crate::analytic::lattice::Lattice;
use crate::analytic::neighbours::List;
use crate::matrix::{Outer, PAD, Panels, Start, add_columns, padded};
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};
use std::sync::Arc;

/// A dense layer, ready for products in both directions.
pub(super) struct Dense<T> {
    pub(super) forward: Panels<T>,
    pub(super) backward: Panels<T>,
    pub(super) place: DensePlace,
}

impl<T: SimdReal> Dense<T> {
    pub(super) fn new(place: &DensePlace) -> Self {
        let DensePlace { inputs, outputs, .. } = *place;
        Dense { forward: Panels::zeros(inputs, outputs), backward: Panels::zeros(outputs, inputs), place: place.clone() }
    }

    pub(super) fn load(&mut self, values: &[T]) {
        let weight = &values[self.place.weight.clone()];
        self.forward.set_transposed(0, 0, self.place.inputs, weight);
        self.backward.set(0, 0, self.place.inputs, weight);
    }

    /// `y = x Wᵀ + b` for `m` rows.
    pub(super) fn apply(&self, values: &[T], m: usize, x: &[T], y: &mut [T]) {
        let start = self.place.bias.as_ref().map_or(Start::Zero, |b| Start::Bias(&values[b.clone()], m));
        self.forward.apply(m, x, self.place.inputs, start, y, self.place.outputs);
    }

    /// `gx = g W`.
    pub(super) fn back(&self, m: usize, g: &[T], gx: &mut [T]) {
        self.backward.apply(m, g, self.place.outputs, Start::Zero, gx, self.place.inputs);
    }

    /// Adds the gradients of weight and bias.
    pub(super) fn gradient(&self, m: usize, g: &[T], x: &[T], gradient: &mut [T]) {
        let DensePlace { weight, bias, inputs, outputs } = &self.place;
        let (inputs, outputs) = (*inputs, *outputs);
        let c = &mut gradient[weight.clone()];
        Outer { m, g, g_stride: outputs, outputs, x, x_stride: inputs, inputs, c, c_stride: inputs }.run();
        if let Some(bias) = bias {
            add_columns(m, g, outputs, &mut gradient[bias.clone()]);
        }
    }
}

/// Two dense layers with a SiLU between.
pub(super) struct Perceptron<T> {
    pub(super) first: Dense<T>,
    pub(super) second: Dense<T>,
}

impl<T: SimdReal> Perceptron<T> {
    pub(super) fn new(places: &[DensePlace]) -> Self {
        Perceptron { first: Dense::new(&places[0]), second: Dense::new(&places[1]) }
    }

    pub(super) fn load(&mut self, values: &[T]) {
        self.first.load(values);
        self.second.load(values);
    }

    pub(super) fn hidden(&self) -> usize {
        self.first.place.outputs
    }

    /// `y`, and in `h` what comes before the SiLU.
    pub(super) fn apply(&self, values: &[T], m: usize, x: &[T], h: &mut [T], s: &mut [T], y: &mut [T]) {
        let n = m * self.hidden();
        self.first.apply(values, m, x, h);
        dispatch(Silu { x: &h[..n], y: &mut s[..n] });
        self.second.apply(values, m, s, y);
    }

    /// `gx` from `g`; `s` and `gs` are scratch.
    pub(super) fn back(&self, m: usize, g: &[T], x: &[T], h: &[T], scratch: [&mut [T]; 2], gx: &mut [T], gradient: Option<&mut [T]>) {
        let n = m * self.hidden();
        let [s, gs] = scratch;
        self.second.back(m, g, gs);
        dispatch(SiluBack { x: &h[..n], g: &mut gs[..n], y: &mut s[..n] });
        self.first.back(m, gs, gx);
        if let Some(gradient) = gradient {
            self.second.gradient(m, g, s, gradient);
            self.first.gradient(m, gs, x, gradient);
        }
    }
}

pub(super) struct Layer<T> {
    pub(super) context: Perceptron<T>,
    pub(super) mix: Dense<T>,
    pub(super) mixing: Perceptron<T>,
}

/// A layer of the head.
pub(super) enum Block<T> {
    /// Of an energy.
    Dense(Dense<T>),
    /// Of vectors: channel mix and perceptron.
    Gated(Box<(Dense<T>, Perceptron<T>)>),
}

/// Parameters, packed for products. Shared by all threads.
pub(super) struct Parameters<T> {
    pub(super) config: PainnConfig,
    pub(super) layout: Arc<Layout>,
    pub(super) values: AlignedBuffer<T>,
    pub(super) layers: Vec<Layer<T>>,
    pub(super) head: Vec<Block<T>>,
}

impl<T: SimdReal> Parameters<T> {
    pub(super) fn new(config: &PainnConfig, layout: Arc<Layout>) -> Self {
        let layers = layout.layers.iter().map(|l| Layer {
            context: Perceptron::new(&l.context),
            mix: Dense::new(&l.mix),
            mixing: Perceptron::new(&l.mixing),
        });
        let head = layout.head.iter().map(|b| match &b.mix {
            Some(mix) => Block::Gated(Box::new((Dense::new(mix), Perceptron::new(&b.dense)))),
            None => Block::Dense(Dense::new(&b.dense[0])),
        });
        let (layers, head) = (layers.collect(), head.collect());
        Parameters { config: config.clone(), values: AlignedBuffer::zeros(layout.len), layers, head, layout }
    }

    /// Takes padded values `[layout.len]`.
    pub(super) fn load(&mut self, values: &[T]) {
        self.values.copy_from_slice(values);
        for layer in &mut self.layers {
            layer.context.load(values);
            layer.mix.load(values);
            layer.mixing.load(values);
        }
        for block in &mut self.head {
            match block {
                Block::Dense(dense) => dense.load(values),
                Block::Gated(gated) => {
                    gated.0.load(values);
                    gated.1.load(values);
                }
            }
        }
    }

    pub(super) fn filter(&self, layer: usize) -> Filter<'_, T> {
        let width = 3 * padded(self.config.features);
        let stride = self.config.layers * width;
        Filter {
            values: &self.values[self.layout.filter.clone()],
            bias: &self.values[self.layout.filter_bias.clone()],
            stride,
            base: layer * width,
        }
    }
}

/// What a layer leaves for the way back.
#[derive(Default)]
pub(super) struct Saved<T> {
    pub(super) q: AlignedBuffer<T>,
    pub(super) mu: AlignedBuffer<T>,
    /// Before the SiLU of the interaction's perceptron, and after the perceptron.
    pub(super) context: AlignedBuffer<T>,
    pub(super) x: AlignedBuffer<T>,
    /// After the interaction: vectors, and `[q | |V|]`.
    pub(super) middle: AlignedBuffer<T>,
    pub(super) cat: AlignedBuffer<T>,
    pub(super) vw: AlignedBuffer<T>,
    pub(super) hidden: AlignedBuffer<T>,
    pub(super) a: AlignedBuffer<T>,
}

/// What a block of the head leaves.
#[derive(Default)]
pub(super) struct SavedBlock<T> {
    pub(super) q: AlignedBuffer<T>,
    pub(super) mu: AlignedBuffer<T>,
    pub(super) cat: AlignedBuffer<T>,
    pub(super) vw: AlignedBuffer<T>,
    pub(super) hidden: AlignedBuffer<T>,
    pub(super) o: AlignedBuffer<T>,
}

/// Memory of one thread, and the molecules that it works on.
pub(super) struct Work<T> {
    /// Keep what the way back needs.
    pub(super) back: bool,
    /// Radial slopes are needed.
    pub(super) slopes: bool,
    pub(super) types: Vec<u32>,
    pub(super) time: Vec<T>,
    pub(super) pairs: Pairs<T>,
    /// Gradients of pairs' vectors.
    pub(super) vectors: Vec<[T; 3]>,
    /// One more than layers where there is a way back, else one.
    pub(super) layers: Vec<Saved<T>>,
    /// One more than blocks: the last holds the result.
    pub(super) head: Vec<SavedBlock<T>>,
    pub(super) s: AlignedBuffer<T>,
    /// Gradients: scalars and vectors now and next, and of what lies between.
    pub(super) gq: [AlignedBuffer<T>; 2],
    pub(super) gmu: [AlignedBuffer<T>; 2],
    pub(super) ga: AlignedBuffer<T>,
    pub(super) gs: AlignedBuffer<T>,
    pub(super) gcat: AlignedBuffer<T>,
    pub(super) gvw: AlignedBuffer<T>,
    pub(super) row: AlignedBuffer<T>,
}

/// Gradient of the result that the way back begins with.
pub(super) enum Seed<'a, T> {
    /// Of every vector `[A, 3]`.
    Vectors(&'a [T]),
    /// 1 for every energy.
    Energy,
    /// 1 for the energies of the first so many atoms.
    EnergyOf(usize),
}

impl<T: SimdReal> Work<T> {
    /// Memory that grows as needed. `back`: there is a way back; `slopes`: to positions.
    pub(super) fn new(back: bool, slopes: bool) -> Self {
        let zero = || AlignedBuffer::zeros(0);
        Work {
            back,
            slopes,
            types: Vec::new(),
            time: Vec::new(),
            pairs: Pairs::default(),
            vectors: Vec::new(),
            layers: Vec::new(),
            head: Vec::new(),
            s: zero(),
            gq: [zero(), zero()],
            gmu: [zero(), zero()],
            ga: zero(),
            gs: zero(),
            gcat: zero(),
            gvw: zero(),
            row: zero(),
        }
    }

    /// Room for `atoms` atoms and `pairs` pairs.
    pub(super) fn reserve(&mut self, config: &PainnConfig, atoms: usize, pairs: usize) {
        self.types.reserve(atoms.saturating_sub(self.types.len()));
        self.time.reserve(atoms.saturating_sub(self.time.len()));
        self.pairs.reserve(pairs, atoms);
        if self.slopes {
            self.vectors.reserve(pairs.saturating_sub(self.vectors.len()));
        }
        let f = padded(config.features);
        let layers = if self.back { config.layers + 1 } else { 1 };
        self.layers.resize_with(layers, Saved::default);
        for l in &mut self.layers {
            for (buffer, width) in [
                (&mut l.q, f),
                (&mut l.mu, 3 * f),
                (&mut l.context, f),
                (&mut l.x, 3 * f),
                (&mut l.middle, 3 * f),
                (&mut l.cat, 2 * f),
                (&mut l.vw, 6 * f),
                (&mut l.hidden, f),
                (&mut l.a, 3 * f),
            ] {
                reserve(buffer, atoms, width);
            }
        }
        let widths = config.head_widths();
        self.head.resize_with(widths.len(), SavedBlock::default);
        for (k, b) in self.head.iter_mut().enumerate() {
            let (n, m) = (padded(widths[k]), padded(widths.get(k + 1).copied().unwrap_or(1)));
            reserve(&mut b.q, atoms, n);
            if config.head == Head::Direct {
                reserve(&mut b.mu, atoms, 3 * n);
                reserve(&mut b.cat, atoms, n + m + PAD);
                reserve(&mut b.vw, atoms, 6 * m);
                reserve(&mut b.o, atoms, 2 * m);
            }
            reserve(&mut b.hidden, atoms, n.max(m));
        }
        reserve(&mut self.s, atoms, 3 * f);
        if self.back {
            for k in 0..2 {
                reserve(&mut self.gq[k], atoms, f);
                reserve(&mut self.gmu[k], atoms, 3 * f);
            }
            reserve(&mut self.ga, atoms, 3 * f);
            reserve(&mut self.gs, atoms, f);
            reserve(&mut self.gcat, atoms, 2 * f + PAD);
            reserve(&mut self.gvw, atoms, 6 * f);
        }
        reserve(&mut self.row, 4, 3 * f);
    }

    /// Forgets all molecules.
    pub(super) fn clear(&mut self) {
        self.types.clear();
        self.time.clear();
        self.pairs.clear();
    }

    /// Adds a molecule at `x [n, 3]` (Å), at noise level `time` = (ln σ)/4.
    pub(super) fn add(&mut self, config: &PainnConfig, types: &[u32], x: &[f64], time: f64) {
        self.pairs.add(config, self.types.len(), x, self.slopes);
        self.types.extend_from_slice(types);
        self.time.resize(self.types.len(), T::from_f64(time));
    }

    /// Adds a molecule in a cell, or a large one: atoms see nearest images, and `list` has those that may be within the cutoff.
    pub(super) fn add_near(&mut self, config: &PainnConfig, types: &[u32], x: &[f64], lattice: &Lattice, list: Option<&List>) {
        self.pairs.add_near(config, self.types.len(), x, lattice, list, self.slopes);
        self.types.extend_from_slice(types);
        self.time.resize(self.types.len(), T::default());
    }

    /// After [`Work::backward`] with positions: `Σ r ⊗ ∂E/∂r` over the pairs of molecule `m`, the derivative to a strain.
    pub(super) fn strain(&self, m: usize) -> [f64; 9] {
        self.pairs.strain(m, &self.vectors)
    }

    /// Atoms of all molecules.
    pub(super) fn atoms(&self) -> usize {
        self.types.len()
    }

    /// Result of a direct head for atom `i`.
    pub(super) fn vector(&self, i: usize) -> [T; 3] {
        let mu = &self.head[self.head.len() - 1].mu;
        [mu[3 * i * PAD], mu[(3 * i + 1) * PAD], mu[(3 * i + 2) * PAD]]
    }

    /// Result of an energy head for atom `i`.
    pub(super) fn energy(&self, i: usize) -> T {
        self.head[self.head.len() - 1].q[i * PAD]
    }

    /// From molecules to results.
    pub(super) fn forward(&mut self, p: &Parameters<T>) {
        let (atoms, f) = (self.types.len(), padded(p.config.features));
        let shape = GateShape { scalars: f, vectors: f, cat: 2 * f, epsilon: p.config.norm_epsilon };
        let embedding = &p.values[p.layout.embedding.clone()];
        for (q, &z) in self.layers[0].q.chunks_exact_mut(f).zip(&self.types) {
            q.copy_from_slice(&embedding[z as usize * f..(z as usize + 1) * f]);
        }
        self.layers[0].mu[..3 * atoms * f].fill(T::default());
        for (l, layer) in p.layers.iter().enumerate() {
            let now = if self.back { l } else { 0 };
            let (before, after) = self.layers.split_at_mut(now + 1);
            let now = &mut before[now];
            layer.context.apply(&p.values, atoms, &now.q, &mut now.context, &mut self.s, &mut now.x);
            for (cat, q) in now.cat.chunks_exact_mut(2 * f).zip(now.q.chunks_exact(f)).take(atoms) {
                cat[..f].copy_from_slice(q);
            }
            now.middle[..3 * atoms * f].copy_from_slice(&now.mu[..3 * atoms * f]);
            dispatch(Messages {
                pairs: &self.pairs,
                filter: p.filter(l),
                width: f,
                x: &now.x,
                mu: &now.mu,
                q: &mut now.cat,
                q_stride: 2 * f,
                out: &mut now.middle,
                row: &mut self.row,
            });
            layer.mix.apply(&p.values, 3 * atoms, &now.middle, &mut now.vw);
            dispatch(Norms { atoms, shape, q: None, vw: &now.vw, cat: &mut now.cat });
            layer.mixing.apply(&p.values, atoms, &now.cat, &mut now.hidden, &mut self.s, &mut now.a);
            let (cat, vw, a, mu) = (&now.cat, &now.vw, &now.a, &now.middle);
            let (q_out, mu_out) = match after.first_mut() {
                Some(next) => (&mut next.q, &mut next.mu),
                None => (&mut now.q, &mut now.mu),
            };
            dispatch(Mix { atoms, shape, cat, vw, a, mu, q_out, mu_out });
        }
        let last = &self.layers[self.layers.len() - 1];
        self.head[0].q[..atoms * f].copy_from_slice(&last.q[..atoms * f]);
        match p.config.head {
            Head::Energy => self.energies(p),
            Head::Direct => {
                self.head[0].mu[..3 * atoms * f].copy_from_slice(&last.mu[..3 * atoms * f]);
                self.vectors(p);
            }
        }
    }

    fn energies(&mut self, p: &Parameters<T>) {
        let atoms = self.types.len();
        let blocks = p.head.len();
        for (k, block) in p.head.iter().enumerate() {
            let (before, after) = self.head.split_at_mut(k + 1);
            let (now, next) = (&mut before[k], &mut after[0]);
            let Block::Dense(dense) = block else { continue };
            if k + 1 == blocks {
                dense.apply(&p.values, atoms, &now.q, &mut next.q);
            } else {
                dense.apply(&p.values, atoms, &now.q, &mut now.hidden);
                let n = atoms * dense.place.outputs;
                dispatch(Silu { x: &now.hidden[..n], y: &mut next.q[..n] });
            }
        }
    }

    fn vectors(&mut self, p: &Parameters<T>) {
        let atoms = self.types.len();
        for (k, block) in p.head.iter().enumerate() {
            let Block::Gated(gated) = block else { continue };
            let (mix, perceptron) = &**gated;
            let (before, after) = self.head.split_at_mut(k + 1);
            let (now, next) = (&mut before[k], &mut after[0]);
            let shape = block_shape(mix, perceptron, p.config.norm_epsilon);
            mix.apply(&p.values, 3 * atoms, &now.mu, &mut now.vw);
            dispatch(Norms { atoms, shape, q: Some(&now.q), vw: &now.vw, cat: &mut now.cat });
            let time = shape.scalars + shape.vectors;
            if time < shape.cat {
                for (cat, &t) in now.cat.chunks_exact_mut(shape.cat).zip(&self.time) {
                    cat[time..].fill(T::default());
                    cat[time] = t;
                }
            }
            perceptron.apply(&p.values, atoms, &now.cat, &mut now.hidden, &mut self.s, &mut now.o);
            dispatch(Gate { atoms, width: shape.vectors, o: &now.o, vw: &now.vw, q_out: &mut next.q, mu_out: &mut next.mu });
        }
    }

    /// From gradients of the results to those of parameters, added to `gradient [layout.len]`, and of positions, added to
    /// `positions [A, 3]`.
    pub(super) fn backward(&mut self, p: &Parameters<T>, seed: Seed<'_, T>, mut gradient: Option<&mut [T]>, positions: Option<&mut [T]>) {
        let (atoms, f) = (self.types.len(), padded(p.config.features));
        match seed {
            Seed::Vectors(g) => self.vectors_back(p, g, gradient.as_deref_mut()),
            Seed::Energy => self.energies_back(p, atoms, gradient.as_deref_mut()),
            Seed::EnergyOf(first) => self.energies_back(p, first.min(atoms), gradient.as_deref_mut()),
        }
        if positions.is_some() {
            self.vectors.clear();
            self.vectors.resize(self.pairs.atoms.len(), [T::default(); 3]);
        }
        let shape = GateShape { scalars: f, vectors: f, cat: 2 * f, epsilon: p.config.norm_epsilon };
        let [gq, gq_next] = &mut self.gq;
        let [gmu, gmu_next] = &mut self.gmu;
        for (l, layer) in p.layers.iter().enumerate().rev() {
            let saved = &self.layers[l];
            dispatch(MixBackA { atoms, width: f, gq, gmu, vw: &saved.vw, ga: &mut self.ga });
            let scratch = [&mut self.s[..], &mut self.gs[..]];
            layer.mixing.back(atoms, &self.ga, &saved.cat, &saved.hidden, scratch, &mut self.gcat, gradient.as_deref_mut());
            let (vw, a, cat, gcat) = (&saved.vw, &saved.a, &saved.cat, &self.gcat);
            dispatch(MixBackV { atoms, shape, gq, gmu, vw, a, cat, gcat, gvw: &mut self.gvw });
            layer.mix.back(3 * atoms, &self.gvw, gmu_next);
            if let Some(gradient) = gradient.as_deref_mut() {
                layer.mix.gradient(3 * atoms, &self.gvw, &saved.middle, gradient);
            }
            for (g, &more) in gmu[..3 * atoms * f].iter_mut().zip(gmu_next.iter()) {
                *g += more;
            }
            // Messages: gradients of what neighbours sent, and of vectors before.
            gmu_next[..3 * atoms * f].copy_from_slice(&gmu[..3 * atoms * f]);
            self.ga[..3 * atoms * f].fill(T::default());
            let filter = p.filter(l);
            let parameters = gradient.as_deref_mut().map(|g| {
                let (values, bias) =
                    g[p.layout.filter.start..p.layout.filter_bias.end].split_at_mut(p.layout.filter_bias.start - p.layout.filter.start);
                FilterGradient { values, bias, stride: filter.stride, base: filter.base }
            });
            dispatch(MessagesBack {
                pairs: &self.pairs,
                filter,
                width: f,
                x: &saved.x,
                mu: &saved.mu,
                gq,
                gmu,
                gx: &mut self.ga,
                gmu_in: gmu_next,
                parameters,
                vectors: positions.is_some().then_some(&mut self.vectors[..]),
                row: &mut self.row,
            });
            let scratch = [&mut self.s[..], &mut self.gs[..]];
            layer.context.back(atoms, &self.ga, &saved.q, &saved.context, scratch, gq_next, gradient.as_deref_mut());
            for (g, &more) in gq[..atoms * f].iter_mut().zip(gq_next.iter()) {
                *g += more;
            }
            std::mem::swap(gmu, gmu_next);
        }
        if let Some(positions) = positions {
            self.pairs.scatter(&self.vectors, positions);
        }
        if let Some(gradient) = gradient {
            let embedding = &mut gradient[p.layout.embedding.clone()];
            for (g, &z) in gq.chunks_exact(f).zip(&self.types) {
                for (e, &g) in embedding[z as usize * f..(z as usize + 1) * f].iter_mut().zip(g) {
                    *e += g;
                }
            }
            // Norms of padded columns are √ε, not zero.
            p.layout.padding.iter().for_each(|&place| gradient[place] = T::default());
        }
    }

    fn energies_back(&mut self, p: &Parameters<T>, seeded: usize, mut gradient: Option<&mut [T]>) {
        let (atoms, f) = (self.types.len(), padded(p.config.features));
        let [gq, next] = &mut self.gq;
        gq[..atoms * PAD].fill(T::default());
        gq[..seeded * PAD].iter_mut().step_by(PAD).for_each(|g| *g = T::from_f64(1.0));
        for (k, block) in p.head.iter().enumerate().rev() {
            let Block::Dense(dense) = block else { continue };
            if k + 1 < p.head.len() {
                let n = atoms * dense.place.outputs;
                dispatch(SiluBack { x: &self.head[k].hidden[..n], g: &mut gq[..n], y: &mut self.s[..n] });
            }
            dense.back(atoms, gq, next);
            if let Some(gradient) = gradient.as_deref_mut() {
                dense.gradient(atoms, gq, &self.head[k].q, gradient);
            }
            std::mem::swap(gq, next);
        }
        self.gmu[0][..3 * atoms * f].fill(T::default());
    }

    fn vectors_back(&mut self, p: &Parameters<T>, seed: &[T], mut gradient: Option<&mut [T]>) {
        let atoms = self.types.len();
        let [gq, gq_next] = &mut self.gq;
        let [gmu, gmu_next] = &mut self.gmu;
        gmu[..3 * atoms * PAD].fill(T::default());
        gmu.iter_mut().step_by(PAD).zip(&seed[..3 * atoms]).for_each(|(g, &s)| *g = s);
        for (k, block) in p.head.iter().enumerate().rev() {
            let Block::Gated(gated) = block else { continue };
            let (mix, perceptron) = &**gated;
            let saved = &self.head[k];
            let shape = block_shape(mix, perceptron, p.config.norm_epsilon);
            let after = (k + 1 < p.head.len()).then_some(&gq[..]);
            dispatch(GateBackO { atoms, width: shape.vectors, gq: after, gmu, vw: &saved.vw, o: &saved.o, go: &mut self.ga });
            let scratch = [&mut self.s[..], &mut self.gs[..]];
            perceptron.back(atoms, &self.ga, &saved.cat, &saved.hidden, scratch, &mut self.gcat, gradient.as_deref_mut());
            let (vw, o, cat, gcat) = (&saved.vw, &saved.o, &saved.cat, &self.gcat);
            dispatch(GateBackV { atoms, shape, gmu, vw, o, cat, gcat, gvw: &mut self.gvw, gq: gq_next });
            mix.back(3 * atoms, &self.gvw, gmu_next);
            if let Some(gradient) = gradient.as_deref_mut() {
                mix.gradient(3 * atoms, &self.gvw, &saved.mu, gradient);
            }
            std::mem::swap(gq, gq_next);
            std::mem::swap(gmu, gmu_next);
        }
    }
}

fn block_shape<T>(mix: &Dense<T>, perceptron: &Perceptron<T>, epsilon: f64) -> GateShape {
    GateShape { scalars: mix.place.inputs, vectors: mix.place.outputs / 2, cat: perceptron.first.place.inputs, epsilon }
}
