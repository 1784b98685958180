//! What every block is conditioned on: a token of each atom of the graph, and one of the time.

use super::conditioner::{Conditioner, ConditionerWork};
use super::config::{DitmcConfig, TimeEmbedding};
use super::context::GraphContext;
use super::kernels::{Activation, Add, reserve};
use super::layers::Perceptron;
use super::layout::Layout;
use crate::matrix::padded;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};
use std::ops::Range;
use std::sync::Arc;

/// The layers that make tokens, packed.
pub(super) struct ConditionLayers<T> {
    layout: Arc<Layout>,
    conditioner: Conditioner<T>,
    time: Perceptron<T>,
    time_embedding: TimeEmbedding,
    width: usize,
}

impl<T: SimdReal> ConditionLayers<T> {
    pub(super) fn new(layout: &Arc<Layout>, config: &DitmcConfig, training: bool) -> Self {
        let width = config.features();
        ConditionLayers {
            layout: layout.clone(),
            conditioner: Conditioner::new(layout, width, training),
            time: Perceptron::new(&layout.time, Activation::Silu, training),
            time_embedding: config.time_embedding,
            width,
        }
    }

    pub(super) fn load(&mut self, values: &[T]) {
        self.conditioner.load(values);
        self.time.load(values);
    }
}

/// Tokens of the graphs that are worked on, and of their times.
#[derive(Default)]
pub(super) struct Condition<T> {
    pub(super) conditioner: ConditionerWork<T>,
    /// Rows of each graph's atoms.
    pub(super) graphs: Vec<Range<usize>>,
    /// Whether each of them is known.
    known: Vec<bool>,
    /// Atoms of all graphs.
    pub(super) rows: usize,
    times: Vec<f64>,
    pub(super) fourier: AlignedBuffer<T>,
    time_hidden: AlignedBuffer<T>,
    pub(super) time_tokens: AlignedBuffer<T>,
    gfourier: AlignedBuffer<T>,
    /// Tokens of graph and time together `[rows, F]`, and their gradient.
    pub(super) tokens: AlignedBuffer<T>,
    pub(super) gradient: AlignedBuffer<T>,
    scratch: [AlignedBuffer<T>; 2],
}

impl<T: SimdReal> Condition<T> {
    /// Takes graphs and computes what depends on them alone.
    pub(super) fn set_graphs<'a>(
        &mut self,
        layers: &ConditionLayers<T>,
        values: &[T],
        graphs: impl Iterator<Item = &'a GraphContext> + Clone,
    ) {
        self.conditioner.set(layers.width, graphs.clone());
        self.conditioner.forward(&layers.conditioner, values);
        self.graphs.clear();
        self.known.clear();
        self.rows = 0;
        for graph in graphs {
            self.known.push(true);
            self.graphs.push(self.rows..self.rows + graph.len());
            self.rows += graph.len();
        }
    }

    /// The tokens of graph `graph` become those of a graph that is not known; before its time is set.
    pub(super) fn forget(&mut self, graph: usize) {
        self.known[graph] = false;
    }

    /// Takes one time per graph.
    pub(super) fn set_times(&mut self, layers: &ConditionLayers<T>, values: &[T], times: impl Iterator<Item = f64>) {
        let f = layers.width;
        self.times.clear();
        self.times.extend(times.map(|t| layers.time_embedding.of(t)));
        let (n, wide) = (self.times.len(), padded(f / 2));
        debug_assert_eq!(n, self.graphs.len());
        reserve(&mut self.fourier, n, wide);
        reserve(&mut self.time_hidden, n, f);
        reserve(&mut self.time_tokens, n, f);
        reserve(&mut self.scratch[0], n, f);
        let frequencies = &values[layers.layout.frequencies.clone()];
        for (row, &t) in self.fourier.chunks_exact_mut(wide).zip(&self.times) {
            for (k, &b) in frequencies.iter().enumerate() {
                let (sin, cos) = (std::f64::consts::TAU * b.to_f64() * t).sin_cos();
                (row[2 * k], row[2 * k + 1]) = (T::from_f64(cos), T::from_f64(sin));
            }
        }
        layers.time.apply(values, n, &self.fourier, &mut self.time_hidden, &mut self.scratch[0], &mut self.time_tokens);
        let rows = self.rows;
        reserve(&mut self.tokens, rows, f);
        self.tokens[..rows * f].copy_from_slice(&self.conditioner.tokens()[..rows * f]);
        for ((graph, known), token) in self.graphs.iter().zip(&self.known).zip(self.time_tokens.chunks_exact(f)) {
            for row in self.tokens[graph.start * f..graph.end * f].chunks_exact_mut(f) {
                if let (false, Some(unknown)) = (known, &layers.layout.unknown) {
                    row.copy_from_slice(&values[unknown.atom.clone()]);
                }
                dispatch(Add { x: token, y: row });
            }
        }
    }

    /// Gradients of parameters from those of the tokens in `gradient`, and of the bonds' tokens where they are used.
    pub(super) fn backward(&mut self, layers: &ConditionLayers<T>, values: &[T], gbonds: Option<&[T]>, gradient: &mut [T]) {
        let (n, f) = (self.times.len(), layers.width);
        let wide = padded(f / 2);
        // A time's token is that of all atoms of its graph.
        let gtokens = &mut self.time_tokens;
        gtokens[..n * f].fill(T::default());
        for (graph, to) in self.graphs.iter().zip(gtokens.chunks_exact_mut(f)) {
            for row in self.gradient[graph.start * f..graph.end * f].chunks_exact(f) {
                dispatch(Add { x: row, y: to });
            }
        }
        reserve(&mut self.gfourier, n, wide);
        let [s, gs] = &mut self.scratch;
        reserve(gs, n, f);
        layers.time.back(n, gtokens, &self.fourier, &self.time_hidden, [s, gs], Some(&mut self.gfourier), gradient);
        let gb = &mut gradient[layers.layout.frequencies.clone()];
        for ((g, row), &t) in self.gfourier.chunks_exact(wide).zip(self.fourier.chunks_exact(wide)).zip(&self.times) {
            let turn = T::from_f64(std::f64::consts::TAU * t);
            for (k, gb) in gb.iter_mut().enumerate() {
                *gb += turn * (g[2 * k + 1] * row[2 * k] - g[2 * k] * row[2 * k + 1]);
            }
        }
        if let Some(unknown) = &layers.layout.unknown {
            for (graph, _) in self.graphs.iter().zip(&self.known).filter(|(_, known)| !**known) {
                for row in self.gradient[graph.start * f..graph.end * f].chunks_exact_mut(f) {
                    dispatch(Add { x: row, y: &mut gradient[unknown.atom.clone()] });
                    row.fill(T::default());
                }
            }
        }
        self.conditioner.backward(&layers.conditioner, values, &self.gradient, gbonds, gradient);
    }
}
