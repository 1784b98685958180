//! Gradients of forces with respect to parameters, without second derivatives of the whole.
//!
//! A loss of energies and forces has, with `c = ∂L/∂E` per molecule and `w = ∂L/∂F` per component, the gradient
//!
//! ```text
//! ∂L/∂θ = Σ c ∂E/∂θ + Σ w·∂F/∂θ = Σ c ∂E/∂θ + d/dε ∂E/∂θ (x − ε w) at ε = 0,       F = −∂E/∂x,
//! ```
//!
//! so that the tangent of the way back, along −w and with the tangent c beside the 1 that it begins with, is all of it: exact, for about
//! three times the work of a force (B. Pearlmutter, *Neural Computation* 6, 147, 1994).

use super::kernels::GateShape;
use super::network::{Block, Dense, Parameters, Perceptron, Work};
use super::tangent_kernels::{
    MessagesBackTangent, MessagesTangent, MixBackATangent, MixBackVTangent, MixTangent, NormsTangent, PairTangents, SiluBackTangent,
    SiluTangent,
};
use crate::matrix::{Outer, PAD, Start, add_columns, padded};
use crate::painn::kernels::FilterGradient;
use scorefield_integrators::simd::{SimdReal, dispatch};

impl<T: SimdReal> Dense<T> {
    /// Tangents in rows `[m, 2m)` from those of `x`.
    fn apply_tangent(&self, m: usize, x: &[T], y: &mut [T]) {
        let (inputs, outputs) = (self.place.inputs, self.place.outputs);
        self.forward.apply(m, &x[m * inputs..], inputs, Start::Zero, &mut y[m * outputs..], outputs);
    }

    /// Adds the tangents of the gradients of weight and bias; `g` has tangents first, `x` values.
    fn gradient_tangent(&self, m: usize, g: &[T], x: &[T], gradient: &mut [T]) {
        let (inputs, outputs) = (self.place.inputs, self.place.outputs);
        let c = &mut gradient[self.place.weight.clone()];
        Outer { m: 2 * m, g, g_stride: outputs, outputs, x, x_stride: inputs, inputs, c, c_stride: inputs }.run();
        if let Some(bias) = &self.place.bias {
            add_columns(m, g, outputs, &mut gradient[bias.clone()]);
        }
    }
}

impl<T: SimdReal> Perceptron<T> {
    fn apply_tangent(&self, m: usize, x: &[T], h: &mut [T], s: &mut [T], y: &mut [T]) {
        let n = m * self.hidden();
        self.first.apply_tangent(m, x, h);
        let (value, tangent) = h[..2 * n].split_at(n);
        dispatch(SiluTangent { x: value, turned: tangent, y: &mut s[n..2 * n] });
        self.second.apply_tangent(m, s, y);
    }

    /// As [`Perceptron::back`], with twice the rows.
    fn back_tangent(&self, m: usize, g: &[T], x: &[T], h: &[T], [s, gs]: [&mut [T]; 2], gx: &mut [T], gradient: &mut [T]) {
        let n = 2 * m * self.hidden();
        self.second.back(2 * m, g, gs);
        dispatch(SiluBackTangent { x: &h[..n], g: &mut gs[..n], y: &mut s[..n] });
        self.first.back(2 * m, gs, gx);
        self.second.gradient_tangent(m, g, s, gradient);
        self.first.gradient_tangent(m, gs, x, gradient);
    }
}

/// `x[..n]`, `x[n..2n]`.
fn halves<T>(x: &mut [T], n: usize) -> (&mut [T], &mut [T]) {
    x[..2 * n].split_at_mut(n)
}

impl<T: SimdReal> Work<T> {
    /// Adds to `gradient [layout.len]` the derivative of `Σ_m energy[m] E_m − Σ_m ∂E_m/∂θ` along `direction [A, 3]` (Å): with
    /// `energy = ∂L/∂E` and `direction = −∂L/∂F` the gradient of a loss. `molecules` are the numbers of atoms. Needs a network with an
    /// energy, [`Work::forward`] before it, and room for twice the atoms.
    pub(super) fn backward_tangent(
        &mut self,
        p: &Parameters<T>,
        tangents: &mut PairTangents<T>,
        direction: &[T],
        energy: impl Iterator<Item = (usize, T)>,
        gradient: &mut [T],
    ) {
        tangents.set(&self.pairs, direction);
        self.forward_tangent(p, tangents);
        self.energies_back_tangent(p, energy, gradient);
        let (atoms, f) = (self.types.len(), padded(p.config.features));
        let shape = GateShape { scalars: f, vectors: f, cat: 2 * f, epsilon: p.config.norm_epsilon };
        let [gq, gq_next] = &mut self.gq;
        let [gmu, gmu_next] = &mut self.gmu;
        for (l, layer) in p.layers.iter().enumerate().rev() {
            let saved = &self.layers[l];
            dispatch(MixBackATangent { atoms, width: f, gq, gmu, vw: &saved.vw, ga: &mut self.ga });
            let scratch = [&mut self.s[..], &mut self.gs[..]];
            layer.mixing.back_tangent(atoms, &self.ga, &saved.cat, &saved.hidden, scratch, &mut self.gcat, gradient);
            let (vw, a, cat, gcat) = (&saved.vw, &saved.a, &saved.cat, &self.gcat);
            dispatch(MixBackVTangent { atoms, shape, gq, gmu, vw, a, cat, gcat, gvw: &mut self.gvw });
            layer.mix.back(6 * atoms, &self.gvw, gmu_next);
            layer.mix.gradient_tangent(3 * atoms, &self.gvw, &saved.middle, gradient);
            for (g, &more) in gmu[..6 * atoms * f].iter_mut().zip(gmu_next.iter()) {
                *g += more;
            }
            gmu_next[..6 * atoms * f].copy_from_slice(&gmu[..6 * atoms * f]);
            self.ga[..6 * atoms * f].fill(T::default());
            let filter = p.filter(l);
            let (values, bias) =
                gradient[p.layout.filter.start..p.layout.filter_bias.end].split_at_mut(p.layout.filter_bias.start - p.layout.filter.start);
            dispatch(MessagesBackTangent {
                pairs: &self.pairs,
                tangents,
                filter,
                atoms,
                width: f,
                x: &saved.x,
                mu: &saved.mu,
                gq,
                gmu,
                gx: &mut self.ga[..6 * atoms * f],
                gmu_in: &mut gmu_next[..6 * atoms * f],
                parameters: FilterGradient { values, bias, stride: filter.stride, base: filter.base },
                row: &mut self.row,
            });
            let scratch = [&mut self.s[..], &mut self.gs[..]];
            layer.context.back_tangent(atoms, &self.ga, &saved.q, &saved.context, scratch, gq_next, gradient);
            for (g, &more) in gq[..2 * atoms * f].iter_mut().zip(gq_next.iter()) {
                *g += more;
            }
            std::mem::swap(gmu, gmu_next);
        }
        // Embeddings do not depend on places: only the tangent of their adjoint is left.
        let embedding = &mut gradient[p.layout.embedding.clone()];
        for (g, &z) in gq.chunks_exact(f).zip(&self.types) {
            for (e, &g) in embedding[z as usize * f..(z as usize + 1) * f].iter_mut().zip(g) {
                *e += g;
            }
        }
        p.layout.padding.iter().for_each(|&place| gradient[place] = T::default());
    }

    /// Tangents of everything that [`Work::forward`] left, behind it.
    fn forward_tangent(&mut self, p: &Parameters<T>, tangents: &PairTangents<T>) {
        let (atoms, f) = (self.types.len(), padded(p.config.features));
        let shape = GateShape { scalars: f, vectors: f, cat: 2 * f, epsilon: p.config.norm_epsilon };
        self.layers[0].q[atoms * f..2 * atoms * f].fill(T::default());
        self.layers[0].mu[3 * atoms * f..6 * atoms * f].fill(T::default());
        for (l, layer) in p.layers.iter().enumerate() {
            let (before, after) = self.layers.split_at_mut(l + 1);
            let (now, next) = (&mut before[l], &mut after[0]);
            layer.context.apply_tangent(atoms, &now.q, &mut now.context, &mut self.s, &mut now.x);
            let (_, cat) = halves(&mut now.cat, 2 * atoms * f);
            for (cat, q) in cat.chunks_exact_mut(2 * f).zip(now.q[atoms * f..].chunks_exact(f)) {
                cat[..f].copy_from_slice(q);
            }
            let (_, out) = halves(&mut now.middle, 3 * atoms * f);
            out.copy_from_slice(&now.mu[3 * atoms * f..6 * atoms * f]);
            dispatch(MessagesTangent {
                pairs: &self.pairs,
                tangents,
                filter: p.filter(l),
                atoms,
                width: f,
                x: &now.x,
                mu: &now.mu,
                q: cat,
                q_stride: 2 * f,
                out,
                row: &mut self.row,
            });
            layer.mix.apply_tangent(3 * atoms, &now.middle, &mut now.vw);
            dispatch(NormsTangent { atoms, shape, vw: &now.vw, cat: &mut now.cat });
            layer.mixing.apply_tangent(atoms, &now.cat, &mut now.hidden, &mut self.s, &mut now.a);
            let (cat, vw, a, mu) = (&now.cat, &now.vw, &now.a, &now.middle);
            dispatch(MixTangent { atoms, shape, cat, vw, a, mu, q_out: &mut next.q, mu_out: &mut next.mu });
        }
        let last = &self.layers[self.layers.len() - 1];
        self.head[0].q[atoms * f..2 * atoms * f].copy_from_slice(&last.q[atoms * f..2 * atoms * f]);
        let blocks = p.head.len();
        for (k, block) in p.head.iter().enumerate() {
            let (before, after) = self.head.split_at_mut(k + 1);
            let (now, next) = (&mut before[k], &mut after[0]);
            let Block::Dense(dense) = block else { continue };
            let n = atoms * dense.place.outputs;
            if k + 1 == blocks {
                dense.apply_tangent(atoms, &now.q, &mut next.q);
            } else {
                dense.apply_tangent(atoms, &now.q, &mut now.hidden);
                let (value, tangent) = now.hidden[..2 * n].split_at(n);
                dispatch(SiluTangent { x: value, turned: tangent, y: &mut next.q[n..2 * n] });
            }
        }
    }

    fn energies_back_tangent(&mut self, p: &Parameters<T>, energy: impl Iterator<Item = (usize, T)>, gradient: &mut [T]) {
        let (atoms, f) = (self.types.len(), padded(p.config.features));
        let [gq, next] = &mut self.gq;
        gq[..2 * atoms * PAD].fill(T::default());
        gq[atoms * PAD..2 * atoms * PAD].iter_mut().step_by(PAD).for_each(|g| *g = T::from_f64(1.0));
        let mut first = 0;
        for (n, c) in energy {
            gq[first * PAD..(first + n) * PAD].iter_mut().step_by(PAD).for_each(|g| *g = c);
            first += n;
        }
        for (k, block) in p.head.iter().enumerate().rev() {
            let Block::Dense(dense) = block else { continue };
            if k + 1 < p.head.len() {
                let n = 2 * atoms * dense.place.outputs;
                dispatch(SiluBackTangent { x: &self.head[k].hidden[..n], g: &mut gq[..n], y: &mut self.s[..n] });
            }
            dense.back(2 * atoms, gq, next);
            dense.gradient_tangent(atoms, gq, &self.head[k].q, gradient);
            std::mem::swap(gq, next);
        }
        self.gmu[0][..6 * atoms * f].fill(T::default());
    }
}
