//! PE(3) backward: gradients of parameters. Positions get none, so that distances and harmonics are constants here.

use super::super::config::{HOPS, PairTokens};
use super::super::kernels::{Activation, Add, Columns, CurveBack, GateBack, ModulateBack, reserve};
use super::attention::{AttendBack, Place};
use super::basis::PairRows;
use super::kernels::{OpenBack, Opening, OpeningBack, ScaleBack};
use super::places::{Irrep, RADIAL};
use super::transformer::{Block, Parameters, Work, pair_table, span};
use crate::matrix::PAD;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};

/// Memory of the way back.
#[derive(Default)]
pub(super) struct Back<T> {
    /// Of features: now, and of an update.
    g: AlignedBuffer<T>,
    gx: AlignedBuffer<T>,
    gqkv: AlignedBuffer<T>,
    gmessages: AlignedBuffer<T>,
    ghidden: AlignedBuffer<T>,
    gopening: AlignedBuffer<T>,
    opened: AlignedBuffer<T>,
    /// Of the table of one structure, and of the gated radial functions of all pairs.
    grelative: AlignedBuffer<T>,
    gfilters: AlignedBuffer<T>,
    ggated: Vec<AlignedBuffer<T>>,
    gradial: AlignedBuffer<T>,
    gweighted: AlignedBuffer<T>,
    gsums: AlignedBuffer<T>,
    ggates: AlignedBuffer<T>,
    gtokens: AlignedBuffer<T>,
    rows: [AlignedBuffer<T>; 2],
}

impl<T: SimdReal> Work<T> {
    fn reserve_back(&mut self, p: &Parameters<T>) {
        let (atoms, f) = (self.atoms(), p.config.features());
        let (all, wide, degree) = (atoms * p.components(), f * p.config.expansion, p.places.degree);
        let pairs = self.structures.last().map_or(0, |s| s.pair + self.rows_of(p, s.graph).len());
        let most = self.structures.iter().map(|s| self.rows_of(p, s.graph).len()).max().unwrap_or(0);
        let inputs = p.blocks.iter().map(|b| b.places.inputs.len()).max().unwrap_or(0);
        let accumulators = p.blocks.iter().map(|b| b.plan.accumulators).max().unwrap_or(0);
        let columns = p.gate_width().max(p.token_width()).max(p.gate.first.place.outputs).max(2 * f);
        let b = &mut self.back;
        b.ggated.resize_with(degree + 1, AlignedBuffer::default);
        for (buffer, rows, width) in [
            (&mut b.g, all, f),
            (&mut b.gx, all, f),
            (&mut b.gqkv, all, 3 * f),
            (&mut b.gmessages, all, f),
            (&mut b.ghidden, all, wide),
            (&mut b.opened, all, wide),
            (&mut b.gopening, atoms, wide),
            (&mut b.grelative, most, inputs * f),
            (&mut b.gfilters, most * (degree + 1), f),
            (&mut b.gradial, most, RADIAL),
            (&mut b.gweighted, degree + 1, f),
            (&mut b.gsums, accumulators, f),
            (&mut b.ggates, self.gate_rows, p.gate_width()),
            (&mut b.gtokens, self.gate_rows, p.token_width()),
        ] {
            reserve(buffer, rows, width);
        }
        for g in &mut b.ggated {
            reserve(g, pairs, RADIAL);
            g[..pairs * RADIAL].fill(T::default());
        }
        b.rows.iter_mut().for_each(|r| reserve(r, self.gate_rows.max(self.condition.rows), columns));
        reserve(&mut self.condition.gradient, self.condition.rows, f);
    }

    /// Adds the gradients of parameters (`[layout.len]`) for the gradient `seed [A, 3]` of the drifts.
    pub(in super::super) fn backward(&mut self, p: &Parameters<T>, seed: &[T], gradient: &mut [T]) {
        self.reserve_back(p);
        self.readout_back(p, seed, gradient);
        for (l, block) in p.blocks.iter().enumerate().rev() {
            let m = &mut self.modulated[l];
            let (rows, stride) = (self.condition.rows, block.modulation.place.outputs);
            reserve(&mut m.gradient, rows, stride);
            m.gradient[..rows * stride].fill(T::default());
            self.transform_back(p, block, l, gradient);
            self.attend_back(p, block, l, gradient);
            self.modulation_back(p, block, l, gradient);
        }
        let f = p.config.features();
        let types = &mut gradient[p.layout.types.clone()];
        for s in &self.structures {
            for (g, &z) in self.back.g[s.atom * f..].chunks_exact(f).zip(&self.graphs[s.graph].types) {
                dispatch(Add { x: g, y: &mut types[z as usize * f..(z as usize + 1) * f] });
            }
        }
        if let Some(perceptron) = &p.previous {
            let [s, gs] = &mut self.scratch;
            self.previous.back(perceptron, &self.back.g, [s, gs], gradient);
        }
        self.gates_back(p, gradient);
    }

    fn readout_back(&mut self, p: &Parameters<T>, seed: &[T], gradient: &mut [T]) {
        let (atoms, f, rows) = (self.atoms(), p.config.features(), self.condition.rows);
        let (n, wide) = (3 * atoms * f, p.readout_modulation.place.outputs);
        let b = &mut self.back;
        for (to, &seed) in self.out.chunks_exact_mut(PAD).zip(seed).take(3 * atoms) {
            to.fill(T::default());
            to[0] = seed;
        }
        p.readout.back(3 * atoms, &self.out, &mut b.gx);
        p.readout.gradient(3 * atoms, &self.out, &self.normed, gradient);
        let m = &mut self.readout;
        reserve(&mut m.gradient, rows, wide);
        m.gradient[..rows * wide].fill(T::default());
        let gvectors = &mut b.gqkv[..n];
        gvectors.fill(T::default());
        dispatch(ScaleBack {
            rows: 3,
            width: f,
            columns: Columns { condition: &self.condition_of[0], stride: wide, scale: f, shift: 0 },
            modulation: &m.values,
            x: &self.vectors[..n],
            g: &b.gx[..n],
            gx: gvectors,
            gmodulation: &mut m.gradient,
        });
        // Vectors of both parities were added up; nothing else is read.
        b.g[..p.components() * atoms * f].fill(T::default());
        for parity in 0..2 {
            let irrep = Irrep { parity, degree: 1, first: parity * p.components() / 2 + 1 };
            b.g[span(irrep, atoms, f)].copy_from_slice(gvectors);
        }
        let [s, gs] = &mut b.rows;
        let all = rows * wide;
        reserve(s, rows, wide);
        reserve(gs, rows, wide);
        dispatch(CurveBack { activation: Activation::Silu, x: &m.before[..all], g: &mut m.gradient[..all], y: &mut s[..all] });
        p.readout_modulation.back(rows, &m.gradient, gs);
        p.readout_modulation.gradient(rows, &m.gradient, &m.normed, gradient);
        p.readout_norm.back(&p.values, rows, &self.condition.tokens, gs, &mut self.condition.gradient, gradient);
    }

    /// The perceptron of block `l`: from the gradient of its result to that of what comes after attention.
    fn transform_back(&mut self, p: &Parameters<T>, block: &Block<T>, l: usize, gradient: &mut [T]) {
        let (atoms, f, wide) = (self.atoms(), p.config.features(), p.config.features() * p.config.expansion);
        let places = &block.places;
        let (saved, m, b) = (&self.blocks[l], &mut self.modulated[l], &mut self.back);
        let stride = block.modulation.place.outputs;
        let scalars = &saved.hidden[span(places.features[0], atoms, wide)];
        let opening = &mut self.scratch[1];
        dispatch(Opening { x: scalars, y: &mut opening[..atoms * wide] });
        b.gopening[..atoms * wide].fill(T::default());
        for (k, ([first, second], &irrep)) in block.perceptrons.iter().zip(&places.features).enumerate().rev() {
            let (rows, at, inner) = (irrep.rows() * atoms, span(irrep, atoms, f), span(irrep, atoms, wide));
            dispatch(GateBack {
                width: f,
                condition: &self.condition_of[irrep.degree],
                stride,
                alpha: (places.alpha2() + k) * f,
                modulation: &m.values,
                u: &saved.update[at.clone()],
                g: &b.g[at.clone()],
                gu: &mut b.gx[at.clone()],
                gmodulation: &mut m.gradient,
            });
            second.back(rows, &b.gx[at.clone()], &mut b.ghidden[inner.clone()]);
            dispatch(OpenBack {
                rows: irrep.rows(),
                width: wide,
                opening,
                x: &saved.hidden[inner.clone()],
                g: &mut b.ghidden[inner.clone()],
                y: &mut b.opened[inner.clone()],
                gopening: &mut b.gopening,
            });
            second.gradient(rows, &b.gx[at.clone()], &b.opened[inner.clone()], gradient);
            if k == 0 {
                // Every other irrep has added to the opening by now.
                let gx = &mut b.ghidden[inner.clone()];
                dispatch(OpeningBack { x: scalars, g: &b.gopening[..atoms * wide], gx });
            }
            first.back(rows, &b.ghidden[inner.clone()], &mut b.gqkv[at.clone()]);
            first.gradient(rows, &b.ghidden[inner], &saved.x2[at], gradient);
        }
        norm_back(
            (&places.features, &self.condition_of[0]),
            (atoms, f, stride, places.gamma2(), places.beta2()),
            (&m.values, &saved.middle, &b.gqkv, &mut b.g, &mut m.gradient),
        );
    }

    /// The attention of block `l`.
    fn attend_back(&mut self, p: &Parameters<T>, block: &Block<T>, l: usize, gradient: &mut [T]) {
        let (atoms, f) = (self.atoms(), p.config.features());
        let places = &block.places;
        let stride = block.modulation.place.outputs;
        let (saved, m, b) = (&self.blocks[l], &mut self.modulated[l], &mut self.back);
        for (k, &irrep) in places.features.iter().enumerate() {
            let from = places.messages[places.source(k)];
            // A second parity's share is added to the first one's.
            let shared = k >= places.messages.len();
            let (rows, at) = (irrep.rows() * atoms * f, span(from, atoms, f));
            dispatch(GateBack {
                width: f,
                condition: &self.condition_of[irrep.degree],
                stride,
                alpha: (places.alpha1() + k) * f,
                modulation: &m.values,
                u: &saved.attention[at.clone()],
                g: &b.g[span(irrep, atoms, f)],
                gu: if shared { &mut b.gqkv[..rows] } else { &mut b.gx[at.clone()] },
                gmodulation: &mut m.gradient,
            });
            if shared {
                dispatch(Add { x: &b.gqkv[..rows], y: &mut b.gx[at] });
            }
        }
        for (dense, &irrep) in block.out.iter().zip(&places.messages) {
            let (rows, at) = (irrep.rows() * atoms, span(irrep, atoms, f));
            dense.back(rows, &b.gx[at.clone()], &mut b.gmessages[at.clone()]);
            dense.gradient(rows, &b.gx[at.clone()], &saved.messages[at], gradient);
        }
        b.gqkv[..p.components() * atoms * 3 * f].fill(T::default());
        for s in &self.structures {
            let n = self.graphs[s.graph].atoms;
            let rows = PairRows { atoms: n, directed: p.config.pair_tokens == PairTokens::BondPairs };
            let (count, inputs) = (rows.len(), places.inputs.len());
            self.pairs.table(p, block, rows, s.pair);
            b.grelative[..count * inputs * f].fill(T::default());
            b.gfilters[..count * block.filters.len() * f].fill(T::default());
            let own = &mut self.pairs;
            let sums = block.plan.accumulators * f;
            dispatch(AttendBack {
                shape: block.shape(&p.config, &p.values, Place { first: s.atom, atoms: n, total: atoms }),
                qkv: &saved.qkv,
                table: pair_table(rows, p.places.degree, &own.harmonics, s.pair, &own.relative, &own.filters),
                weights: &saved.weights[s.weight..],
                sums: &saved.sums[s.atom * sums..(s.atom + n) * sums],
                g: &b.gmessages,
                gqkv: &mut b.gqkv,
                gkappa: &mut gradient[places.kappa.clone()],
                grelative: &mut b.grelative,
                gfilters: &mut b.gfilters,
                coefficients: &mut own.coefficients,
                weighted: &mut own.weighted,
                gweighted: &mut b.gweighted,
                gsums: &mut b.gsums,
            });
            let at = s.pair * RADIAL..(s.pair + count) * RADIAL;
            let maps = block.filters.iter().enumerate().map(|(d, filter)| (d, filter, d * count * f..(d + 1) * count * f));
            block.relative.back(count, &b.grelative, &mut b.gradial);
            block.relative.gradient(count, &b.grelative, &own.gated[0][at.clone()], gradient);
            dispatch(Add { x: &b.gradial[..count * RADIAL], y: &mut b.ggated[0][at.clone()] });
            for (d, filter, part) in maps {
                filter.back(count, &b.gfilters[part.clone()], &mut b.gradial);
                filter.gradient(count, &b.gfilters[part], &own.gated[d][at.clone()], gradient);
                dispatch(Add { x: &b.gradial[..count * RADIAL], y: &mut b.ggated[d][at.clone()] });
            }
        }
        for (dense, &irrep) in block.qkv.iter().zip(&places.inputs) {
            let (rows, at, wide) = (irrep.rows() * atoms, span(irrep, atoms, f), span(irrep, atoms, 3 * f));
            dense.back(rows, &b.gqkv[wide.clone()], &mut b.gx[at.clone()]);
            dense.gradient(rows, &b.gqkv[wide], &saved.x[at], gradient);
        }
        norm_back(
            (&places.inputs, &self.condition_of[0]),
            (atoms, f, stride, places.gamma1(), places.beta1()),
            (&m.values, &saved.h, &b.gx, &mut b.g, &mut m.gradient),
        );
    }

    /// From the gradient of a block's modulation to that of the condition.
    fn modulation_back(&mut self, p: &Parameters<T>, block: &Block<T>, l: usize, gradient: &mut [T]) {
        let (rows, n) = (self.condition.rows, self.condition.rows * p.config.features());
        let m = &self.modulated[l];
        let [s, gs] = &mut self.back.rows;
        block.modulation.back(rows, &m.gradient, gs);
        dispatch(CurveBack { activation: Activation::Silu, x: &m.normed[..n], g: &mut gs[..n], y: &mut s[..n] });
        block.modulation.gradient(rows, &m.gradient, s, gradient);
        block.norm.back(&p.values, rows, &self.condition.tokens, gs, s, gradient);
        dispatch(Add { x: &s[..n], y: &mut self.condition.gradient[..n] });
    }

    /// From the gradients of gated radial functions to those of gates, tokens and graphs.
    fn gates_back(&mut self, p: &Parameters<T>, gradient: &mut [T]) {
        let (rows, width) = (self.gate_rows, p.gate_width());
        let b = &mut self.back;
        b.ggates[..rows * width].fill(T::default());
        for s in &self.structures {
            let member = &self.graphs[s.graph];
            let all = PairRows { atoms: member.atoms, directed: p.config.pair_tokens == PairTokens::BondPairs };
            for (k, (i, j)) in all.pairs().enumerate() {
                if i == j {
                    continue;
                }
                let at = (s.pair + k) * RADIAL..(s.pair + k + 1) * RADIAL;
                let gate = member.gate(i, j) * width;
                for (l, g) in b.ggated.iter().enumerate() {
                    let to = &mut b.ggates[gate + l * RADIAL..gate + (l + 1) * RADIAL];
                    for ((to, &g), &radial) in to.iter_mut().zip(&g[at.clone()]).zip(&self.pairs.radial[at.clone()]) {
                        *to += g * radial;
                    }
                }
            }
        }
        let [s, gs] = &mut b.rows;
        p.gate.back(rows, &b.ggates, &self.token_input, &self.token_hidden, [s, gs], Some(&mut b.gtokens), gradient);
        let (mut rows, w) = (rows, p.token_width());
        if let Some(unknown) = &p.layout.unknown {
            rows -= 1;
            dispatch(Add { x: &b.gtokens[rows * w..(rows + 1) * w], y: &mut gradient[unknown.pair.clone()] });
        }
        let to = &mut gradient[p.places.pair_embedding.clone()];
        let mut gbonds = None;
        match p.config.pair_tokens {
            PairTokens::AllPairs => {
                dispatch(Add { x: &b.gtokens[..w], y: &mut to[(HOPS - 2) * w..(HOPS - 1) * w] });
                dispatch(Add { x: &b.gtokens[w..rows * w], y: &mut to[w..rows * w] });
            }
            PairTokens::BondPairs => {
                dispatch(Add { x: &b.gtokens[..w], y: to });
                gbonds = Some(&b.gtokens[w..rows * w]);
            }
        }
        self.condition.backward(&p.condition, &p.values, gbonds, gradient);
    }
}

/// The reverse of the norm: adds to the gradients of features and of the modulation.
fn norm_back<T: SimdReal>(
    (irreps, condition): (&[Irrep], &[u32]),
    (atoms, width, stride, gamma, beta): (usize, usize, usize, usize, usize),
    (modulation, x, g, gx, gmodulation): (&[T], &[T], &[T], &mut [T], &mut [T]),
) {
    for (k, &irrep) in irreps.iter().enumerate() {
        let at = span(irrep, atoms, width);
        let columns = Columns { condition, stride, scale: (gamma + k) * width, shift: beta * width };
        let (x, g, gx) = (&x[at.clone()], &g[at.clone()], &mut gx[at]);
        if irrep.is_scalar() {
            dispatch(ModulateBack { width, columns, modulation, x, g, gx, gmodulation });
        } else {
            dispatch(ScaleBack { rows: irrep.rows(), width, columns, modulation, x, g, gx, gmodulation });
        }
    }
}
