//! The transformer of a configuration, forward and backward, whatever its features are.
//!
//! What depends on graphs alone is computed by [`Work::set_graphs`], what depends on the time too by [`Work::set_times`]; structures of
//! one graph share both.

use super::config::DitmcConfig;
use super::context::GraphContext;
use super::layout::{Body, Layout};
use super::{equivariant, scalar};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

/// Parameters, packed for products. Shared by all threads.
pub(super) enum Parameters<T> {
    Scalar(Box<scalar::Parameters<T>>),
    Equivariant(Box<equivariant::Parameters<T>>),
}

/// Memory of one thread, and what it works on.
pub(super) enum Work<T> {
    Scalar(Box<scalar::Work<T>>),
    Equivariant(Box<equivariant::Work<T>>),
}

impl<T: SimdReal> Parameters<T> {
    /// Zeros; `training`: ready for the way back.
    pub(super) fn new(config: &DitmcConfig, layout: Arc<Layout>, training: bool) -> Self {
        match &layout.body {
            Body::Scalar(places) => Parameters::Scalar(Box::new(scalar::Parameters::new(config, layout.clone(), places, training))),
            Body::Equivariant(places) => {
                Parameters::Equivariant(Box::new(equivariant::Parameters::new(config, layout.clone(), places, training)))
            }
        }
    }

    /// Takes padded values `[layout.len]`.
    pub(super) fn load(&mut self, values: &[T]) {
        match self {
            Parameters::Scalar(p) => p.load(values),
            Parameters::Equivariant(p) => p.load(values),
        }
    }

    /// Where each parameter lies.
    pub(super) fn layout(&self) -> &Arc<Layout> {
        match self {
            Parameters::Scalar(p) => &p.layout,
            Parameters::Equivariant(p) => &p.layout,
        }
    }
}

/// Calls a method of the transformer that both are of.
macro_rules! both {
    ($work:expr, $p:expr, $method:ident($($argument:expr),*)) => {
        match ($work, $p) {
            (Work::Scalar(w), Parameters::Scalar(p)) => w.$method(p $(, $argument)*),
            (Work::Equivariant(w), Parameters::Equivariant(p)) => w.$method(p $(, $argument)*),
            _ => unreachable!("memory is made for the parameters that it is used with"),
        }
    };
}

impl<T: SimdReal> Work<T> {
    /// Memory for `p` that grows as needed; `training`: there is a way back.
    pub(super) fn new(p: &Parameters<T>, training: bool) -> Self {
        match p {
            Parameters::Scalar(_) => Work::Scalar(Box::new(scalar::Work::new(training))),
            Parameters::Equivariant(p) => Work::Equivariant(Box::new(equivariant::Work::new(p, training))),
        }
    }

    /// Takes graphs and computes what depends on them alone. Structures are forgotten.
    pub(super) fn set_graphs<'a>(&mut self, p: &Parameters<T>, graphs: impl Iterator<Item = &'a GraphContext> + Clone) {
        both!(self, p, set_graphs(graphs));
    }

    /// Graph `graph` is not known to the network any more, but its atoms are; after the graphs, before the times are set.
    pub(super) fn forget(&mut self, p: &Parameters<T>, graph: usize) {
        both!(self, p, forget(graph));
    }

    /// Takes one time per graph and computes what depends on graphs and times.
    pub(super) fn set_times(&mut self, p: &Parameters<T>, times: impl Iterator<Item = f64>) {
        both!(self, p, set_times(times));
    }

    /// Forgets the structures; graphs and times stay.
    pub(super) fn clear_structures(&mut self) {
        match self {
            Work::Scalar(w) => w.clear_structures(),
            Work::Equivariant(w) => w.clear_structures(),
        }
    }

    /// Adds a structure of graph `graph` at `x [N, 3]` (Å, centred).
    pub(super) fn add(&mut self, p: &Parameters<T>, graph: usize, x: &[f64]) {
        both!(self, p, add(graph, x));
    }

    /// What was predicted before of the structure that was added last, `[N, 3]` (Å, centred); without effect on networks that do not read it.
    pub(super) fn recall(&mut self, p: &Parameters<T>, clean: &[f64]) {
        both!(self, p, recall(clean));
    }

    /// Drift of atom `i` before its mean is taken away (Å).
    pub(super) fn drift(&self, i: usize) -> [T; 3] {
        match self {
            Work::Scalar(w) => w.drift(i),
            Work::Equivariant(w) => w.drift(i),
        }
    }

    /// From structures to drifts.
    pub(super) fn forward(&mut self, p: &Parameters<T>) {
        both!(self, p, forward());
    }

    /// Adds the gradients of parameters (`[layout.len]`) for the gradient `seed [A, 3]` of the drifts.
    pub(super) fn backward(&mut self, p: &Parameters<T>, seed: &[T], gradient: &mut [T]) {
        both!(self, p, backward(seed, gradient));
    }
}
