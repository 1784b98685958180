//! The network that reads the graph (MeshGraphNet, T. Pfaff et al., ICLR 2021), forward and backward.
//!
//! `h = LN(MLP(atoms))`, `e = LN(MLP(bonds))`, then in every layer `e ← MLP(LN[h_sender, h_receiver, e])` and
//! `h ← MLP(LN[h, Σ e over receivers])`, without residuals.

use super::config::BONDS;
use super::context::GraphContext;
use super::kernels::{Activation, reserve};
use super::layers::{LayerNorm, Perceptron};
use super::layout::{EmbeddingPlaces, Layout, PerceptronPlace};
use crate::matrix::padded;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal};

struct Embedding<T> {
    perceptron: Perceptron<T>,
    norm: LayerNorm,
}

struct Layer<T> {
    edge_norm: LayerNorm,
    edge: Perceptron<T>,
    node_norm: LayerNorm,
    node: Perceptron<T>,
}

/// The conditioner's layers, packed.
pub(super) struct Conditioner<T> {
    nodes: Embedding<T>,
    edges: Embedding<T>,
    layers: Vec<Layer<T>>,
    width: usize,
}

impl<T: SimdReal> Conditioner<T> {
    pub(super) fn new(layout: &Layout, width: usize, training: bool) -> Self {
        let perceptron = |places: &PerceptronPlace| Perceptron::new(places, Activation::Silu, training);
        let embedding = |p: &EmbeddingPlaces| Embedding { perceptron: perceptron(&p.perceptron), norm: LayerNorm::new(&p.norm) };
        let layers = layout.conditioner.iter().map(|l| Layer {
            edge_norm: LayerNorm::new(&l.edge_norm),
            edge: perceptron(&l.edge),
            node_norm: LayerNorm::new(&l.node_norm),
            node: perceptron(&l.node),
        });
        Conditioner { nodes: embedding(&layout.nodes), edges: embedding(&layout.edges), layers: layers.collect(), width }
    }

    pub(super) fn load(&mut self, values: &[T]) {
        self.nodes.perceptron.load(values);
        self.edges.perceptron.load(values);
        for layer in &mut self.layers {
            layer.edge.load(values);
            layer.node.load(values);
        }
    }
}

/// What a perceptron with a norm at one end leaves for the way back.
#[derive(Default)]
struct Step<T> {
    /// Before the norm: `[rows, inputs]` of a layer, `[rows, F]` of an embedding.
    before: AlignedBuffer<T>,
    normed: AlignedBuffer<T>,
    hidden: AlignedBuffer<T>,
    after: AlignedBuffer<T>,
}

impl<T: SimdReal> Step<T> {
    fn reserve(&mut self, rows: usize, inputs: usize, width: usize) {
        reserve(&mut self.before, rows, inputs);
        reserve(&mut self.normed, rows, inputs);
        reserve(&mut self.hidden, rows, width);
        reserve(&mut self.after, rows, width);
    }
}

/// Memory of one thread, and the graphs that it reads together.
#[derive(Default)]
pub(super) struct ConditionerWork<T> {
    atoms: usize,
    /// Sender and receiver of all bonds, in rows of all atoms.
    pairs: Vec<(u32, u32)>,
    node_input: AlignedBuffer<T>,
    edge_input: AlignedBuffer<T>,
    nodes: Step<T>,
    edges: Step<T>,
    layers: Vec<[Step<T>; 2]>,
    scratch: [AlignedBuffer<T>; 2],
    /// Gradients of nodes and edges, now and before; of what a norm gives and takes.
    gnodes: [AlignedBuffer<T>; 2],
    gedges: [AlignedBuffer<T>; 2],
    gnormed: AlignedBuffer<T>,
    gbefore: AlignedBuffer<T>,
}

impl<T: SimdReal> ConditionerWork<T> {
    /// Takes graphs; their atoms and bonds follow each other.
    pub(super) fn set<'a>(&mut self, width: usize, graphs: impl Iterator<Item = &'a GraphContext> + Clone) {
        self.atoms = graphs.clone().map(GraphContext::len).sum();
        self.pairs.clear();
        let wide = padded(graphs.clone().map(|g| g.width).max().unwrap_or(0));
        reserve(&mut self.node_input, self.atoms, wide);
        let mut first = 0;
        for graph in graphs.clone() {
            for (to, from) in self.node_input[first * wide..].chunks_exact_mut(wide).zip(graph.nodes.chunks_exact(graph.width)) {
                to.fill(T::default());
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = T::from_f64(f64::from(from));
                }
            }
            self.pairs.extend(graph.pairs.iter().map(|&(s, r)| (s + first as u32, r + first as u32)));
            first += graph.len();
        }
        let bonds = self.pairs.len();
        reserve(&mut self.edge_input, bonds, padded(BONDS));
        let kinds = graphs.flat_map(|g| g.bonds.iter());
        for (to, kind) in self.edge_input.chunks_exact_mut(padded(BONDS)).zip(kinds) {
            to.fill(T::default());
            for (to, &from) in to.iter_mut().zip(kind) {
                *to = T::from_f64(f64::from(from));
            }
        }
        self.nodes.reserve(self.atoms, width, width);
        self.edges.reserve(bonds, width, width);
        for buffer in &mut self.scratch {
            reserve(buffer, self.atoms.max(bonds), width);
        }
    }

    /// Number of bonds, in both directions.
    pub(super) fn bonds(&self) -> usize {
        self.pairs.len()
    }

    /// Tokens of atoms `[A, F]` after [`ConditionerWork::forward`].
    pub(super) fn tokens(&self) -> &[T] {
        self.layers.last().map_or(&[], |l| &l[1].after)
    }

    /// Tokens of bonds `[2 M, F]`.
    pub(super) fn bond_tokens(&self) -> &[T] {
        self.layers.last().map_or(&[], |l| &l[0].after)
    }

    /// From graphs to tokens.
    pub(super) fn forward(&mut self, c: &Conditioner<T>, values: &[T]) {
        let (atoms, bonds, f) = (self.atoms, self.pairs.len(), c.width);
        let s = &mut self.scratch[0];
        let n = &mut self.nodes;
        c.nodes.perceptron.apply(values, atoms, &self.node_input, &mut n.hidden, s, &mut n.before);
        c.nodes.norm.apply(values, atoms, &n.before, &mut n.after);
        let e = &mut self.edges;
        c.edges.perceptron.apply(values, bonds, &self.edge_input, &mut e.hidden, s, &mut e.before);
        c.edges.norm.apply(values, bonds, &e.before, &mut e.after);
        self.layers.resize_with(c.layers.len(), Default::default);
        for (k, layer) in c.layers.iter().enumerate() {
            let (before, after) = self.layers.split_at_mut(k);
            let [edge, node] = &mut after[0];
            let (h, e) = before.last().map_or((&self.nodes.after, &self.edges.after), |l| (&l[1].after, &l[0].after));
            edge.reserve(bonds, 3 * f, f);
            node.reserve(atoms, 2 * f, f);
            for ((to, &(sender, receiver)), e) in edge.before.chunks_exact_mut(3 * f).zip(&self.pairs).zip(e.chunks_exact(f)) {
                to[..f].copy_from_slice(&h[sender as usize * f..(sender as usize + 1) * f]);
                to[f..2 * f].copy_from_slice(&h[receiver as usize * f..(receiver as usize + 1) * f]);
                to[2 * f..].copy_from_slice(e);
            }
            layer.edge_norm.apply(values, bonds, &edge.before, &mut edge.normed);
            layer.edge.apply(values, bonds, &edge.normed, &mut edge.hidden, s, &mut edge.after);
            for (to, h) in node.before.chunks_exact_mut(2 * f).zip(h.chunks_exact(f)).take(atoms) {
                to[..f].copy_from_slice(h);
                to[f..].fill(T::default());
            }
            for (&(_, receiver), e) in self.pairs.iter().zip(edge.after.chunks_exact(f)) {
                let to = &mut node.before[receiver as usize * 2 * f + f..][..f];
                to.iter_mut().zip(e).for_each(|(to, &e)| *to += e);
            }
            layer.node_norm.apply(values, atoms, &node.before, &mut node.normed);
            layer.node.apply(values, atoms, &node.normed, &mut node.hidden, s, &mut node.after);
        }
    }

    /// Gradients of parameters from those of the tokens `[A, F]` and, where they are used, of the bonds' tokens `[2 M, F]`.
    pub(super) fn backward(&mut self, c: &Conditioner<T>, values: &[T], gtokens: &[T], gbonds: Option<&[T]>, gradient: &mut [T]) {
        let (atoms, bonds, f) = (self.atoms, self.pairs.len(), c.width);
        let [s, gs] = &mut self.scratch;
        let [gh, gh_next] = &mut self.gnodes;
        let [ge, ge_next] = &mut self.gedges;
        for buffer in [&mut *gh, &mut *gh_next] {
            reserve(buffer, atoms, f);
        }
        for buffer in [&mut *ge, &mut *ge_next] {
            reserve(buffer, bonds, f);
        }
        for buffer in [&mut self.gnormed, &mut self.gbefore] {
            reserve(buffer, (2 * atoms).max(3 * bonds), f);
        }
        gh[..atoms * f].copy_from_slice(&gtokens[..atoms * f]);
        match gbonds {
            Some(g) => ge[..bonds * f].copy_from_slice(&g[..bonds * f]),
            None => ge[..bonds * f].fill(T::default()),
        }
        for (k, layer) in c.layers.iter().enumerate().rev() {
            let [edge, node] = &self.layers[k];
            layer.node.back(atoms, gh, &node.normed, &node.hidden, [s, gs], Some(&mut self.gnormed), gradient);
            layer.node_norm.back(values, atoms, &node.before, &self.gnormed, &mut self.gbefore, gradient);
            for (to, from) in gh_next.chunks_exact_mut(f).zip(self.gbefore.chunks_exact(2 * f)).take(atoms) {
                to.copy_from_slice(&from[..f]);
            }
            for (&(_, receiver), to) in self.pairs.iter().zip(ge.chunks_exact_mut(f)) {
                let from = &self.gbefore[receiver as usize * 2 * f + f..][..f];
                to.iter_mut().zip(from).for_each(|(to, &g)| *to += g);
            }
            layer.edge.back(bonds, ge, &edge.normed, &edge.hidden, [s, gs], Some(&mut self.gnormed), gradient);
            layer.edge_norm.back(values, bonds, &edge.before, &self.gnormed, &mut self.gbefore, gradient);
            for ((&(sender, receiver), from), to) in
                self.pairs.iter().zip(self.gbefore.chunks_exact(3 * f)).zip(ge_next.chunks_exact_mut(f))
            {
                for (atom, part) in [(sender, &from[..f]), (receiver, &from[f..2 * f])] {
                    let to = &mut gh_next[atom as usize * f..(atom as usize + 1) * f];
                    to.iter_mut().zip(part).for_each(|(to, &g)| *to += g);
                }
                to.copy_from_slice(&from[2 * f..]);
            }
            std::mem::swap(gh, gh_next);
            std::mem::swap(ge, ge_next);
        }
        c.nodes.norm.back(values, atoms, &self.nodes.before, gh, gh_next, gradient);
        c.nodes.perceptron.back(atoms, gh_next, &self.node_input, &self.nodes.hidden, [s, gs], None, gradient);
        c.edges.norm.back(values, bonds, &self.edges.before, ge, ge_next, gradient);
        c.edges.perceptron.back(bonds, ge_next, &self.edge_input, &self.edges.hidden, [s, gs], None, gradient);
    }
}
