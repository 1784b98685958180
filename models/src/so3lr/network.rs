//! The network: constants of all layers in kernel layout, the forward pass and its gradient.

use super::attention::{Attend, AttendBack, DOTS, Pairs, TENSOR, by_degree};
use super::elementwise::{Normalise, NormaliseBack, add, multiply, silu};
use super::harmonics::{ORDERS, STARTS, harmonics};
use super::long_range::{COULOMB, FREE_ATOMS, LongRange, Settings, Species, switch_one};
use super::radial::{CUTOFF, Table, tabulate};
use super::weights::{ChargeEmbedding, Dense, LayerWeights, Weights};
use crate::matrix::{Matrix, PAD, padded};
use scorefield_integrators::Real;
use scorefield_integrators::System;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal};

/// Mean number of neighbours in the training data, by which messages are divided.
const NEIGHBOURS: f64 = 13.168_995_780_096_482;
/// Reach of the repulsion in Å.
const REPULSION: f64 = 1.5;
/// Pairs that go through a layer together.
const TILE: usize = 32;
/// Pairs within the network's reach for which memory is set aside, per atom.
const PAIRS_PER_ATOM: usize = 16;

/// A dense layer and its transpose.
#[derive(Clone, Debug)]
struct Linear<T> {
    forward: Matrix<T>,
    backward: Matrix<T>,
    bias: AlignedBuffer<T>,
}

impl<T: SimdReal> Linear<T> {
    fn new(d: &Dense) -> Self {
        Linear {
            forward: Matrix::new(d.inputs, d.outputs, |r, c| d.kernel[r * d.outputs + c]),
            backward: Matrix::new(d.outputs, d.inputs, |r, c| d.kernel[c * d.outputs + r]),
            bias: buffer(&d.bias),
        }
    }
}

/// `values`, rounded and padded with zeros.
fn buffer<T: SimdReal>(values: &[f64]) -> AlignedBuffer<T> {
    let mut out = AlignedBuffer::zeros(padded(values.len()));
    for (o, &v) in out.iter_mut().zip(values) {
        *o = T::from_f64(v);
    }
    out
}

/// One layer's constants.
#[derive(Clone, Debug)]
struct Layer<T> {
    table: Table<T>,
    /// Width of each spherical filter's hidden layer, padded.
    hidden: usize,
    /// First layers of both spherical filters beside each other.
    spherical_1: Linear<T>,
    spherical_2: [Linear<T>; 2],
    /// Per head: `x` to `q1 k1 v1 q2 k2`.
    projection: [Matrix<T>; 4],
    projection_back: [Matrix<T>; 4],
    norm_scale: [AlignedBuffer<T>; 2],
    norm_bias: [AlignedBuffer<T>; 2],
    mlp: [Linear<T>; 2],
    exchange: Linear<T>,
}

impl<T: SimdReal> Layer<T> {
    fn new(w: &LayerWeights, knots: &[f64], features: usize) -> Self {
        let head = features / 4;
        let hidden = padded(w.filters[0].spherical[0].outputs.max(w.filters[1].spherical[0].outputs));
        let mut first = Dense { inputs: 4, outputs: 2 * hidden, kernel: vec![0.0; 8 * hidden], bias: vec![0.0; 2 * hidden] };
        for (t, filter) in w.filters.iter().enumerate() {
            let layer = &filter.spherical[0];
            for c in 0..layer.outputs {
                first.bias[t * hidden + c] = layer.bias[c];
                for r in 0..4 {
                    first.kernel[r * 2 * hidden + t * hidden + c] = layer.kernel[r * layer.outputs + c];
                }
            }
        }
        let entry = |h: usize, k: usize, output: usize, input: usize| w.projections[k][(h * head + output) * head + input];
        let project = |h: usize| Matrix::new(head, 5 * head, |r, c| entry(h, c / head, c % head, r));
        let project_back = |h: usize| Matrix::new(5 * head, head, |r, c| entry(h, r / head, r % head, c));
        Layer {
            table: Table::new(2 * features, knots),
            hidden,
            spherical_1: Linear::new(&first),
            spherical_2: [Linear::new(&w.filters[0].spherical[1]), Linear::new(&w.filters[1].spherical[1])],
            projection: [project(0), project(1), project(2), project(3)],
            projection_back: [project_back(0), project_back(1), project_back(2), project_back(3)],
            norm_scale: [buffer(&w.norms[0].scale), buffer(&w.norms[1].scale)],
            norm_bias: [buffer(&w.norms[0].bias), buffer(&w.norms[1].bias)],
            mlp: [Linear::new(&w.mlp[0]), Linear::new(&w.mlp[1])],
            exchange: Linear::new(&w.exchange),
        }
    }
}

/// The three regressions' last layers for one element: each is a product of the hidden layer with a vector, and a constant.
#[derive(Clone, Debug)]
struct Heads {
    energy: (Vec<f64>, f64),
    charge: (Vec<f64>, f64),
    ratio: (Vec<f64>, f64),
}

/// Repulsion of nuclei: `a, c, d, p` after softplus, `c` normalised.
#[derive(Clone, Debug)]
struct Repulsion {
    a: [f64; 4],
    c: [f64; 4],
    d: f64,
    p: f64,
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn silu_one(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// What both precisions share.
#[derive(Debug)]
pub(super) struct Model {
    weights: Weights,
    repulsion: Repulsion,
    heads: Vec<(u32, Heads)>,
    settings: Settings,
    pub(super) single: Network<f32>,
    pub(super) double: Network<f64>,
}

/// All layers of one precision.
#[derive(Debug)]
pub(super) struct Network<T> {
    features: usize,
    layers: Vec<Layer<T>>,
    /// First layers of the three regressions beside each other, and where each begins.
    heads: Linear<T>,
    head_starts: [usize; 3],
}

impl Model {
    /// From weights and a long-range cutoff in Å.
    pub(super) fn new(weights: Weights, cutoff: f64) -> Self {
        let knots: Vec<Vec<f64>> = weights
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                let mut shift = Vec::with_capacity(2 * weights.features);
                for filter in &layer.filters {
                    let [first, second] = &filter.spherical;
                    // Without tensors yet, the first layer's spherical filters are constants.
                    let hidden = first.bias.iter().map(|&b| if index == 0 { silu_one(b) } else { 0.0 });
                    let mut constant = second.bias.clone();
                    for (h, row) in hidden.zip(second.kernel.chunks_exact(second.outputs)) {
                        constant.iter_mut().zip(row).for_each(|(c, w)| *c += h * w);
                    }
                    shift.extend(constant);
                }
                tabulate([&layer.filters[0].radial, &layer.filters[1].radial], &shift)
            })
            .collect();
        let raw = weights.repulsion.map(softplus);
        let total: f64 = raw[4..8].iter().sum();
        let repulsion = Repulsion {
            a: [raw[0], raw[1], raw[2], raw[3]],
            c: [raw[4] / total, raw[5] / total, raw[6] / total, raw[7] / total],
            d: raw[8],
            p: raw[9],
        };
        let heads =
            FREE_ATOMS.iter().filter(|f| (f.0 as usize) < weights.elements).map(|&(z, ..)| (z, Heads::new(&weights, z as usize))).collect();
        Model {
            repulsion,
            heads,
            settings: Settings::new(cutoff),
            single: Network::new(&weights, &knots),
            double: Network::new(&weights, &knots),
            weights,
        }
    }

    /// Elements that it knows.
    pub(super) fn elements(&self) -> Vec<u32> {
        self.heads.iter().map(|h| h.0).collect()
    }

    /// The long-range cutoff in Å.
    pub(super) fn cutoff(&self) -> f64 {
        self.settings.cutoff()
    }

    /// Start features of a system's atoms, `[N, F]`.
    fn start(&self, system: &System) -> Vec<f64> {
        let f = self.weights.features;
        let row = |table: &[f64], z: u32| -> Vec<f64> { table[z as usize * f..(z as usize + 1) * f].to_vec() };
        let mut x: Vec<f64> = system.types.iter().flat_map(|&z| row(&self.weights.embedding, z)).collect();
        if system.charge != 0 {
            let charge = charged(&self.weights.charge_embedding, &system.types, f, system.charge as f64);
            x.iter_mut().zip(charge).for_each(|(x, c)| *x += c);
        }
        x.iter_mut().for_each(|x| *x /= 3f64.sqrt());
        x
    }
}

/// Embedding of a total charge `[N, F]`: shared out over atoms by attention, then a residual network without bias. It is
/// zero for charge zero.
fn charged(e: &ChargeEmbedding, types: &[u32], f: usize, charge: f64) -> Vec<f64> {
    let sign = if charge < 0.0 { f } else { 0 };
    let (key, value) = (&e.key[sign..sign + f], &e.value[sign..sign + f]);
    let share: Vec<f64> = types
        .iter()
        .map(|&z| {
            let query = &e.query[z as usize * f..(z as usize + 1) * f];
            softplus(query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (f as f64).sqrt())
        })
        .collect();
    let total: f64 = share.iter().sum();
    let dense = |d: &Dense, x: &[f64]| -> Vec<f64> {
        let mut y = vec![0.0; d.outputs];
        for (row, &x) in d.kernel.chunks_exact(d.outputs).zip(x) {
            y.iter_mut().zip(row).for_each(|(y, w)| *y += silu_one(x) * w);
        }
        y
    };
    share
        .iter()
        .flat_map(|s| {
            let x: Vec<f64> = value.iter().map(|v| charge * s / total * v).collect();
            let y = dense(&e.residual[1], &dense(&e.residual[0], &x));
            x.into_iter().zip(y).map(|(x, y)| x + y).collect::<Vec<f64>>()
        })
        .collect()
}

impl Heads {
    fn new(w: &Weights, z: usize) -> Self {
        let scaled = |d: &Dense, by: f64| d.kernel.iter().map(|k| k * by).collect::<Vec<f64>>();
        let [_, energy] = &w.energy;
        let [_, charge] = &w.charge;
        let [_, ratio] = &w.hirshfeld;
        let width = ratio.outputs;
        let query = &w.hirshfeld_query[z * width..(z + 1) * width];
        let by_query = |row: &[f64]| row.iter().zip(query).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt();
        Heads {
            energy: (scaled(energy, w.energy_scale[z]), energy.bias[0] * w.energy_scale[z] + w.energy_offset[z]),
            charge: (scaled(charge, 1.0), charge.bias[0] + w.charge_offset[z]),
            ratio: (ratio.kernel.chunks_exact(width).map(by_query).collect(), by_query(&ratio.bias) + w.hirshfeld_offset[z]),
        }
    }
}

impl<T: SimdReal> Network<T> {
    fn new(w: &Weights, knots: &[Vec<f64>]) -> Self {
        let firsts = [&w.energy[0], &w.charge[0], &w.hirshfeld[0]];
        let mut starts = [0; 3];
        let mut outputs = 0;
        for (start, d) in starts.iter_mut().zip(firsts) {
            *start = outputs;
            outputs += padded(d.outputs);
        }
        let mut heads = Dense { inputs: w.features, outputs, kernel: vec![0.0; w.features * outputs], bias: vec![0.0; outputs] };
        for (&start, d) in starts.iter().zip(firsts) {
            heads.bias[start..start + d.outputs].copy_from_slice(&d.bias);
            for (to, from) in heads.kernel.chunks_exact_mut(outputs).zip(d.kernel.chunks_exact(d.outputs)) {
                to[start..start + d.outputs].copy_from_slice(from);
            }
        }
        Network {
            features: w.features,
            layers: w.layers.iter().zip(knots).map(|(l, k)| Layer::new(l, k, w.features)).collect(),
            heads: Linear::new(&heads),
            head_starts: starts,
        }
    }

    /// Floating-point operations of all matrix products of one evaluation, forward and backward.
    pub(super) fn flops(&self, atoms: usize, pairs: usize) -> usize {
        let both = |l: &Linear<T>| l.forward.flops() + l.backward.flops();
        let mut sum = atoms * both(&self.heads);
        for (k, l) in self.layers.iter().enumerate() {
            sum += atoms * (both(&l.mlp[0]) + both(&l.mlp[1]) + both(&l.exchange));
            sum += atoms * l.projection.iter().map(Matrix::flops).sum::<usize>();
            if k > 0 {
                sum += atoms * l.projection_back.iter().map(Matrix::flops).sum::<usize>();
                sum += pairs * (both(&l.spherical_1) + both(&l.spherical_2[0]) + both(&l.spherical_2[1]));
            }
        }
        sum
    }
}

/// What depends on a system alone.
#[derive(Debug)]
pub(super) struct Prepared<T> {
    start: AlignedBuffer<T>,
    species: Species<T>,
    /// Index into the model's heads.
    head: Vec<usize>,
    /// Second layers of the regressions by atom, `[N, hidden]`: energy, charge and ratio beside each other.
    coefficients: AlignedBuffer<T>,
    /// Nuclear charge, and its power in the repulsion.
    nuclear: Vec<(f64, f64)>,
    charge: f64,
}

impl<T: SimdReal> Prepared<T> {
    /// For a system whose elements are known.
    pub(super) fn new(model: &Model, network: &Network<T>, system: &System) -> Self {
        let wide = network.heads.forward.columns();
        let n = system.len();
        let head: Vec<usize> = system.types.iter().map(|&z| model.heads.iter().position(|h| h.0 == z).unwrap_or(0)).collect();
        let mut coefficients = AlignedBuffer::zeros(n * wide);
        for (row, &h) in coefficients.chunks_exact_mut(wide).zip(&head) {
            let h = &model.heads[h].1;
            for (&start, values) in network.head_starts.iter().zip([&h.energy.0, &h.charge.0, &h.ratio.0]) {
                for (to, &v) in row[start..].iter_mut().zip(values) {
                    *to = T::from_f64(v);
                }
            }
        }
        Prepared {
            start: buffer(&model.start(system)),
            species: Species::new(&system.types),
            head,
            coefficients,
            nuclear: system.types.iter().map(|&z| (z as f64, (z as f64).powf(model.repulsion.p))).collect(),
            charge: system.charge as f64,
        }
    }
}

/// What one layer's gradient needs from its forward pass.
#[derive(Debug, Default)]
struct Kept<T> {
    /// Tensors before the layer and before its exchange `[N, 32]`.
    tensors_in: AlignedBuffer<T>,
    tensors: AlignedBuffer<T>,
    projections: AlignedBuffer<T>,
    unit: [AlignedBuffer<T>; 2],
    inverse: [AlignedBuffer<T>; 2],
    mlp_slope: [AlignedBuffer<T>; 2],
    gate: Vec<[T; 4]>,
    filters: AlignedBuffer<T>,
    dots: AlignedBuffer<T>,
    spherical_slope: AlignedBuffer<T>,
}

/// Memory of one molecule's evaluation, reused from molecule to molecule.
#[derive(Debug, Default)]
pub(super) struct Work<T> {
    pairs: Vec<[u32; 2]>,
    distance: Vec<f64>,
    direction: Vec<[f64; 3]>,
    weight_slope: Vec<f64>,
    weight: AlignedBuffer<T>,
    harmonics: AlignedBuffer<T>,
    gradients: Vec<[[f64; 3]; ORDERS]>,
    to_weight: AlignedBuffer<T>,
    to_harmonics: AlignedBuffer<T>,
    to_distance: Vec<f64>,
    layers: Vec<Kept<T>>,
    x: AlignedBuffer<T>,
    tensors: AlignedBuffer<T>,
    row_a: AlignedBuffer<T>,
    row_b: AlignedBuffer<T>,
    gx: AlignedBuffer<T>,
    g_tensors: AlignedBuffer<T>,
    g_projections: AlignedBuffer<T>,
    tile_a: AlignedBuffer<T>,
    tile_b: AlignedBuffer<T>,
    tile_g: AlignedBuffer<T>,
    tile_filters: AlignedBuffer<T>,
    head_hidden: AlignedBuffer<T>,
    head_slope: AlignedBuffer<T>,
    axes: [AlignedBuffer<T>; 3],
    charge: AlignedBuffer<T>,
    ratio: AlignedBuffer<T>,
    to_charge: AlignedBuffer<T>,
    to_ratio: AlignedBuffer<T>,
    signs: Vec<f64>,
    /// Positions `[N, 3]` in Å.
    pub(super) positions: Vec<f64>,
    /// Forces `[N, 3]` in eV/Å.
    pub(super) forces: Vec<f64>,
    /// Energies by atom in eV: network, repulsion, electrostatic, dispersion.
    pub(super) energies: [Vec<f64>; 4],
}

impl<T: SimdReal> Work<T> {
    /// Grows to molecules of `atoms` atoms.
    pub(super) fn reserve(&mut self, network: &Network<T>, atoms: usize) {
        let f = network.features;
        let wide = network.layers.iter().map(|l| l.mlp[0].forward.columns()).max().unwrap_or(0).max(f + PAD);
        for (buffer, width) in [
            (&mut self.x, f),
            (&mut self.tensors, TENSOR),
            (&mut self.row_a, wide),
            (&mut self.row_b, wide),
            (&mut self.gx, f),
            (&mut self.g_tensors, TENSOR),
            (&mut self.g_projections, 5 * f),
            (&mut self.head_hidden, network.heads.forward.columns()),
            (&mut self.head_slope, network.heads.forward.columns()),
        ] {
            buffer.reserve(atoms * width);
        }
        let [x, y, z] = &mut self.axes;
        for buffer in [x, y, z, &mut self.charge, &mut self.ratio, &mut self.to_charge, &mut self.to_ratio] {
            buffer.reserve(padded(atoms));
        }
        let hidden = network.layers.iter().map(|l| 2 * l.hidden).max().unwrap_or(0);
        self.tile_a.reserve(TILE * hidden);
        self.tile_b.reserve(TILE * hidden);
        self.tile_g.reserve(TILE * PAD);
        self.tile_filters.reserve(TILE * 2 * f);
        self.layers.resize_with(network.layers.len(), Kept::default);
        for (kept, layer) in self.layers.iter_mut().zip(&network.layers) {
            let mlp = layer.mlp[0].forward.columns();
            let [u0, u1] = &mut kept.unit;
            let [i0, i1] = &mut kept.inverse;
            let [s0, s1] = &mut kept.mlp_slope;
            for (buffer, width) in [
                (&mut kept.tensors_in, TENSOR),
                (&mut kept.tensors, TENSOR),
                (&mut kept.projections, 5 * f),
                (u0, f),
                (u1, f),
                (i0, 1),
                (i1, 1),
                (s0, f),
                (s1, mlp),
            ] {
                buffer.reserve(atoms * width);
            }
            if kept.gate.len() < atoms {
                kept.gate.resize(atoms, [T::default(); 4]);
            }
        }
        self.reserve_pairs(network, (PAIRS_PER_ATOM * atoms).min(atoms * atoms.saturating_sub(1) / 2));
        if self.signs.len() < atoms {
            self.signs.resize(atoms, 0.0);
            self.positions.resize(3 * atoms, 0.0);
            self.forces.resize(3 * atoms, 0.0);
            for e in &mut self.energies {
                e.resize(atoms, 0.0);
            }
        }
    }

    /// Grows to `pairs` pairs within the network's reach.
    fn reserve_pairs(&mut self, network: &Network<T>, pairs: usize) {
        self.pairs.reserve(pairs.saturating_sub(self.pairs.len()));
        if self.distance.len() >= pairs && !self.layers.iter().any(|k| k.dots.len() < pairs * DOTS) {
            return;
        }
        self.distance.resize(pairs, 0.0);
        self.direction.resize(pairs, [0.0; 3]);
        self.weight_slope.resize(pairs, 0.0);
        self.to_distance.resize(pairs, 0.0);
        self.gradients.resize(pairs, [[0.0; 3]; ORDERS]);
        self.weight.reserve(pairs);
        self.to_weight.reserve(pairs);
        self.harmonics.reserve(pairs * TENSOR);
        self.to_harmonics.reserve(pairs * TENSOR);
        for (kept, layer) in self.layers.iter_mut().zip(&network.layers) {
            kept.filters.reserve(pairs * 2 * network.features);
            kept.dots.reserve(pairs * DOTS);
            kept.spherical_slope.reserve(pairs * 2 * layer.hidden);
        }
    }

    /// Pairs within the network's reach, and what depends on them alone.
    fn geometry(&mut self, network: &Network<T>, n: usize) {
        self.pairs.clear();
        for i in 0..n {
            let a = [self.positions[3 * i], self.positions[3 * i + 1], self.positions[3 * i + 2]];
            for (j, b) in self.positions[..3 * n].chunks_exact(3).enumerate().skip(i + 1) {
                let d = [b[0] - a[0], b[1] - a[1], b[2] - a[2]];
                if d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < CUTOFF * CUTOFF {
                    self.pairs.push([i as u32, j as u32]);
                }
            }
        }
        self.reserve_pairs(network, self.pairs.len());
        let mut values = [0.0; ORDERS];
        for p in 0..self.pairs.len() {
            let [i, j] = self.pairs[p];
            let x = |a: u32, k: usize| self.positions[3 * a as usize + k];
            let d = [x(j, 0) - x(i, 0), x(j, 1) - x(i, 1), x(j, 2) - x(i, 2)];
            let r = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt();
            let u = [d[0] / r, d[1] / r, d[2] / r];
            self.distance[p] = r;
            self.direction[p] = u;
            let (fc, slope) = envelope(r);
            self.weight[p] = T::from_f64(fc / NEIGHBOURS);
            self.weight_slope[p] = slope / NEIGHBOURS;
            harmonics(u, &mut values, &mut self.gradients[p]);
            for (to, &v) in self.harmonics[TENSOR * p..].iter_mut().zip(&values) {
                *to = T::from_f64(v);
            }
        }
    }
}

/// `1 − 6u⁵ + 15u⁴ − 10u³` with `u = r/4.5`, and its derivative.
fn envelope(r: f64) -> (f64, f64) {
    let u = r / CUTOFF;
    (1.0 + u * u * u * (-10.0 + u * (15.0 - 6.0 * u)), -30.0 * u * u * (1.0 - u) * (1.0 - u) / CUTOFF)
}

/// `v_l = Σ_m t_lm²/√(2l+1)`.
fn invariants<T: Real>(tensor: &[T]) -> [T; 4] {
    let mut squares = [T::default(); TENSOR];
    for (s, &t) in squares.iter_mut().zip(tensor) {
        *s = t * t;
    }
    let mut sums = by_degree(&squares);
    for (l, s) in sums.iter_mut().enumerate() {
        *s = *s * T::from_f64(ROOTS[l]);
    }
    sums
}

/// `1/√(2l+1)`.
const ROOTS: [f64; 4] = [0.577_350_269_189_625_8, 0.447_213_595_499_957_9, 0.377_964_473_009_227_2, 0.333_333_333_333_333_3];

/// Energies, charges, ratios and forces of the molecule whose positions are in `work`.
pub(super) fn evaluate<T: SimdReal>(model: &Model, network: &Network<T>, prepared: &Prepared<T>, work: &mut Work<T>) {
    let n = prepared.head.len();
    work.geometry(network, n);
    work.forces[..3 * n].fill(0.0);
    for e in &mut work.energies {
        e[..n].fill(0.0);
    }
    forward(network, prepared, work, n);
    observables(model, network, prepared, work, n);
    backward(network, work, n);
    repulsion(model, prepared, work);
    pair_forces(work);
}

fn forward<T: SimdReal>(network: &Network<T>, prepared: &Prepared<T>, work: &mut Work<T>, n: usize) {
    let f = network.features;
    let head = f / 4;
    let pairs = work.pairs.len();
    let x = &mut work.x[..n * f];
    x.copy_from_slice(&prepared.start[..n * f]);
    let tensors = &mut work.tensors[..n * TENSOR];
    tensors.fill(T::default());
    for (index, (layer, kept)) in network.layers.iter().zip(&mut work.layers).enumerate() {
        kept.tensors_in[..n * TENSOR].copy_from_slice(tensors);
        let projections = &mut kept.projections[..n * 5 * f];
        for (h, matrix) in layer.projection.iter().enumerate() {
            matrix.apply(n, &x[h * head..], f, None, &mut projections[h * 5 * head..], 5 * f);
        }
        let mut first = 0;
        while first < pairs {
            let tile = first..(first + TILE).min(pairs);
            let count = tile.len();
            let filters = &mut kept.filters[tile.start * 2 * f..tile.end * 2 * f];
            layer.table.values(&work.distance[tile.clone()], filters);
            if index > 0 {
                let hidden = 2 * layer.hidden;
                for (&[i, j], g) in work.pairs[tile.clone()].iter().zip(work.tile_g.chunks_exact_mut(4)) {
                    g.copy_from_slice(&invariants(&difference(&kept.tensors_in, i, j)));
                }
                let pre = &mut work.tile_a[..count * hidden];
                layer.spherical_1.forward.apply(count, &work.tile_g, 4, Some(&layer.spherical_1.bias), pre, hidden);
                let slope = &mut kept.spherical_slope[tile.start * hidden..tile.end * hidden];
                silu(pre, &mut work.tile_b[..count * hidden], slope);
                for (t, second) in layer.spherical_2.iter().enumerate() {
                    // Columns of the hidden layer beyond this filter's own are not read.
                    second.forward.add(count, &work.tile_b[t * layer.hidden..count * hidden], hidden, &mut filters[t * f..], 2 * f);
                }
            }
            Attend {
                pairs: Pairs {
                    atoms: &work.pairs[tile.clone()],
                    weight: &work.weight[tile.clone()],
                    harmonics: &work.harmonics[tile.start * TENSOR..tile.end * TENSOR],
                    filters,
                },
                projections,
                dots: &mut kept.dots[tile.start * DOTS..tile.end * DOTS],
                features: x,
                tensors,
            }
            .run(head);
            first = tile.end;
        }
        kept.tensors[..n * TENSOR].copy_from_slice(tensors);
        Normalise {
            scale: &layer.norm_scale[0],
            bias: &layer.norm_bias[0],
            x,
            unit: &mut kept.unit[0][..n * f],
            inverse: &mut kept.inverse[0][..n],
        }
        .run();

        let wide = layer.mlp[0].forward.columns();
        silu(x, &mut work.row_a[..n * f], &mut kept.mlp_slope[0][..n * f]);
        layer.mlp[0].forward.apply(n, &work.row_a, f, Some(&layer.mlp[0].bias), &mut work.row_b, wide);
        silu(&work.row_b[..n * wide], &mut work.row_a[..n * wide], &mut kept.mlp_slope[1][..n * wide]);
        layer.mlp[1].forward.apply(n, &work.row_a, wide, Some(&layer.mlp[1].bias), &mut work.row_b, f);
        add(x, &work.row_b);

        let wide = f + PAD;
        for ((row, x), tensor) in work.row_a.chunks_exact_mut(wide).zip(x.chunks_exact(f)).zip(tensors.chunks_exact(TENSOR)) {
            row[..f].copy_from_slice(x);
            row[f..f + 4].copy_from_slice(&invariants(tensor));
        }
        layer.exchange.forward.apply(n, &work.row_a, wide, Some(&layer.exchange.bias), &mut work.row_b, wide);
        let rows = work.row_b.chunks_exact(wide).zip(x.chunks_exact_mut(f)).zip(tensors.chunks_exact_mut(TENSOR)).zip(&mut kept.gate);
        for (((row, x), tensor), gate) in rows {
            add(x, &row[..f]);
            for l in 0..4 {
                gate[l] = T::from_f64(1.0) + row[f + l];
                for t in &mut tensor[STARTS[l]..STARTS[l + 1]] {
                    *t = *t * gate[l];
                }
            }
        }
        Normalise {
            scale: &layer.norm_scale[1],
            bias: &layer.norm_bias[1],
            x,
            unit: &mut kept.unit[1][..n * f],
            inverse: &mut kept.inverse[1][..n],
        }
        .run();
    }
}

/// Tensors of atom `j` less those of atom `i`.
fn difference<T: Real>(tensors: &[T], i: u32, j: u32) -> [T; TENSOR] {
    let mut out = [T::default(); TENSOR];
    let (a, b) = (&tensors[i as usize * TENSOR..][..TENSOR], &tensors[j as usize * TENSOR..][..TENSOR]);
    for m in 0..TENSOR {
        out[m] = b[m] - a[m];
    }
    out
}

/// Energies of atoms, charges, ratios, long-range terms, and the gradient of them all with respect to the features.
fn observables<T: SimdReal>(model: &Model, network: &Network<T>, prepared: &Prepared<T>, work: &mut Work<T>, n: usize) {
    let f = network.features;
    let wide = network.heads.forward.columns();
    let [_, second, third] = network.head_starts;
    let hidden = &mut work.head_hidden[..n * wide];
    network.heads.forward.apply(n, &work.x, f, Some(&network.heads.bias), &mut work.head_slope, wide);
    // In place: activation over the sums, slopes over themselves.
    hidden.copy_from_slice(&work.head_slope[..n * wide]);
    silu_in_place(hidden, &mut work.head_slope[..n * wide]);
    work.charge.fill(T::default());
    work.ratio.fill(T::from_f64(1.0));
    let mut sum = 0.0;
    for (i, (hidden, c)) in hidden.chunks_exact(wide).zip(prepared.coefficients.chunks_exact(wide)).enumerate() {
        let dot = |range: std::ops::Range<usize>| dot(&hidden[range.clone()], &c[range]);
        let heads = &model.heads[prepared.head[i]].1;
        work.energies[0][i] = dot(0..second) + heads.energy.1;
        let charge = dot(second..third) + heads.charge.1;
        let ratio = dot(third..wide) + heads.ratio.1;
        sum += charge;
        work.charge[i] = T::from_f64(charge);
        work.ratio[i] = T::from_f64(ratio.abs());
        work.signs[i] = if ratio < 0.0 { -1.0 } else { 1.0 };
    }
    let shift = T::from_f64((prepared.charge - sum) / n as f64);
    work.charge[..n].iter_mut().for_each(|q| *q += shift);

    let origin = [work.positions[0], work.positions[1], work.positions[2]];
    for (k, axis) in work.axes.iter_mut().enumerate() {
        axis.fill(T::default());
        for (x, p) in axis.iter_mut().zip(work.positions[..3 * n].chunks_exact(3)) {
            *x = T::from_f64(p[k] - origin[k]);
        }
    }
    let wide_n = padded(n);
    let [x, y, z] = &work.axes;
    let [_, _, electrostatic, dispersion] = &mut work.energies;
    LongRange {
        settings: &model.settings,
        species: &prepared.species,
        x: [&x[..wide_n], &y[..wide_n], &z[..wide_n]],
        charge: &work.charge[..wide_n],
        ratio: &work.ratio[..wide_n],
        energy: [&mut electrostatic[..n], &mut dispersion[..n]],
        forces: &mut work.forces[..3 * n],
        to_charge: &mut work.to_charge[..n],
        to_ratio: &mut work.to_ratio[..n],
    }
    .run();
    let mean = work.to_charge[..n].iter().map(|g| g.to_f64()).sum::<f64>() / n as f64;
    for (i, (slope, c)) in work.head_slope[..n * wide].chunks_exact_mut(wide).zip(prepared.coefficients.chunks_exact(wide)).enumerate() {
        let by = [T::from_f64(1.0), T::from_f64(work.to_charge[i].to_f64() - mean), T::from_f64(work.to_ratio[i].to_f64() * work.signs[i])];
        for (g, range) in by.into_iter().zip([0..second, second..third, third..wide]) {
            for (s, &c) in slope[range.clone()].iter_mut().zip(&c[range]) {
                *s = *s * (g * c);
            }
        }
    }
    network.heads.backward.apply(n, &work.head_slope, wide, None, &mut work.gx, f);
}

fn silu_in_place<T: SimdReal>(x: &mut [T], slope: &mut [T]) {
    // The slope's memory holds the argument.
    let (chunk, mut argument) = (256, [T::default(); 256]);
    for (x, slope) in x.chunks_mut(chunk).zip(slope.chunks_mut(chunk)) {
        let argument = &mut argument[..x.len()];
        argument.copy_from_slice(x);
        silu(argument, x, slope);
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a.to_f64() * b.to_f64()).sum()
}

fn backward<T: SimdReal>(network: &Network<T>, work: &mut Work<T>, n: usize) {
    let f = network.features;
    let head = f / 4;
    let pairs = work.pairs.len();
    let gx = &mut work.gx[..n * f];
    let g_tensors = &mut work.g_tensors[..n * TENSOR];
    g_tensors.fill(T::default());
    work.to_weight[..pairs].fill(T::default());
    work.to_harmonics[..pairs * TENSOR].fill(T::default());
    work.to_distance[..pairs].fill(0.0);
    for (index, (layer, kept)) in network.layers.iter().zip(&work.layers).enumerate().rev() {
        NormaliseBack { scale: &layer.norm_scale[1], unit: &kept.unit[1][..n * f], inverse: &kept.inverse[1][..n], g: gx }.run();

        let wide = f + PAD;
        let rows = work.row_a.chunks_exact_mut(wide).zip(gx.chunks_exact(f));
        for ((row, gx), (g, tensor)) in rows.zip(g_tensors.chunks_exact(TENSOR).zip(kept.tensors.chunks_exact(TENSOR))) {
            row[..f].copy_from_slice(gx);
            let mut products = [T::default(); TENSOR];
            for m in 0..TENSOR {
                products[m] = g[m] * tensor[m];
            }
            row[f..f + 4].copy_from_slice(&by_degree(&products));
        }
        layer.exchange.backward.apply(n, &work.row_a, wide, None, &mut work.row_b, wide);
        let rows = work.row_b.chunks_exact(wide).zip(gx.chunks_exact_mut(f)).zip(g_tensors.chunks_exact_mut(TENSOR));
        for (((row, gx), g), (tensor, gate)) in rows.zip(kept.tensors.chunks_exact(TENSOR).zip(&kept.gate)) {
            add(gx, &row[..f]);
            for l in 0..4 {
                let twice = T::from_f64(2.0 * ROOTS[l]) * row[f + l];
                for m in STARTS[l]..STARTS[l + 1] {
                    g[m] = g[m] * gate[l] + twice * tensor[m];
                }
            }
        }

        let wide = layer.mlp[0].forward.columns();
        layer.mlp[1].backward.apply(n, gx, f, None, &mut work.row_a, wide);
        multiply(&mut work.row_a[..n * wide], &kept.mlp_slope[1]);
        layer.mlp[0].backward.apply(n, &work.row_a, wide, None, &mut work.row_b, f);
        multiply(&mut work.row_b[..n * f], &kept.mlp_slope[0]);
        add(gx, &work.row_b);
        NormaliseBack { scale: &layer.norm_scale[0], unit: &kept.unit[0][..n * f], inverse: &kept.inverse[0][..n], g: gx }.run();

        let g_projections = &mut work.g_projections[..n * 5 * f];
        g_projections.fill(T::default());
        // Gradient of tensors before the messages, beside that after them.
        let before = &mut work.tensors[..n * TENSOR];
        before.copy_from_slice(g_tensors);
        let mut first = 0;
        while first < pairs {
            let tile = first..(first + TILE).min(pairs);
            let count = tile.len();
            let to_filters = &mut work.tile_filters[..count * 2 * f];
            AttendBack {
                pairs: Pairs {
                    atoms: &work.pairs[tile.clone()],
                    weight: &work.weight[tile.clone()],
                    harmonics: &work.harmonics[tile.start * TENSOR..tile.end * TENSOR],
                    filters: &kept.filters[tile.start * 2 * f..tile.end * 2 * f],
                },
                projections: &kept.projections[..n * 5 * f],
                dots: &kept.dots[tile.start * DOTS..tile.end * DOTS],
                features: gx,
                tensors: g_tensors,
                // The first layer's features are constants.
                to_projections: (index > 0).then_some(&mut g_projections[..]),
                to_filters,
                to_weight: &mut work.to_weight[tile.clone()],
                to_harmonics: &mut work.to_harmonics[tile.start * TENSOR..tile.end * TENSOR],
            }
            .run(head);
            layer.table.slopes(&work.distance[tile.clone()], to_filters, &mut work.to_distance[tile.clone()]);
            if index > 0 {
                let hidden = 2 * layer.hidden;
                let g_hidden = &mut work.tile_a[..count * hidden];
                g_hidden.fill(T::default());
                for (t, second) in layer.spherical_2.iter().enumerate() {
                    second.backward.apply(count, &to_filters[t * f..], 2 * f, None, &mut g_hidden[t * layer.hidden..], hidden);
                }
                multiply(g_hidden, &kept.spherical_slope[tile.start * hidden..tile.end * hidden]);
                layer.spherical_1.backward.apply(count, g_hidden, hidden, None, &mut work.tile_g, PAD);
                for (&[i, j], g) in work.pairs[tile.clone()].iter().zip(work.tile_g.chunks_exact(PAD)) {
                    let d = difference(&kept.tensors_in, i, j);
                    for l in 0..4 {
                        let twice = T::from_f64(2.0 * ROOTS[l]) * g[l];
                        for m in STARTS[l]..STARTS[l + 1] {
                            let c = twice * d[m];
                            before[j as usize * TENSOR + m] += c;
                            before[i as usize * TENSOR + m] -= c;
                        }
                    }
                }
            }
            first = tile.end;
        }
        g_tensors.copy_from_slice(before);
        if index > 0 {
            for (h, matrix) in layer.projection_back.iter().enumerate() {
                matrix.add(n, &g_projections[h * 5 * head..], 5 * f, &mut gx[h * head..], f);
            }
        }
    }
}

/// Screened repulsion of nuclei closer than 1.5 Å.
fn repulsion<T: SimdReal>(model: &Model, prepared: &Prepared<T>, work: &mut Work<T>) {
    let law = &model.repulsion;
    for (p, &[i, j]) in work.pairs.iter().enumerate() {
        let r = work.distance[p];
        if r >= REPULSION {
            continue;
        }
        let ((zi, pi), (zj, pj)) = (prepared.nuclear[i as usize], prepared.nuclear[j as usize]);
        let (sw, d_sw) = switch_one(r, 0.0, REPULSION);
        let (fc, d_fc) = envelope(r);
        let decay = (pi + pj) * law.d;
        let (mut phi, mut d_phi) = (0.0, 0.0);
        for k in 0..4 {
            let e = law.c[k] * (-law.a[k] * decay * r).exp();
            phi += e;
            d_phi -= law.a[k] * decay * e;
        }
        let bare = COULOMB * zi * zj / r;
        let energy = bare * sw * fc * phi;
        work.to_distance[p] += bare * (d_sw * fc * phi + sw * d_fc * phi + sw * fc * d_phi - sw * fc * phi / r);
        work.energies[1][i as usize] += 0.5 * energy;
        work.energies[1][j as usize] += 0.5 * energy;
    }
}

/// From gradients by distance and direction of each pair to forces.
fn pair_forces<T: SimdReal>(work: &mut Work<T>) {
    for (p, &[i, j]) in work.pairs.iter().enumerate() {
        let (u, r) = (work.direction[p], work.distance[p]);
        let radial = work.to_distance[p] + work.to_weight[p].to_f64() * work.weight_slope[p];
        let mut g = [0.0; 3];
        for (c, d) in work.to_harmonics[TENSOR * p..][..ORDERS].iter().zip(&work.gradients[p]) {
            for k in 0..3 {
                g[k] += c.to_f64() * d[k];
            }
        }
        let along = g[0] * u[0] + g[1] * u[1] + g[2] * u[2];
        for k in 0..3 {
            let f = radial * u[k] + (g[k] - along * u[k]) / r;
            work.forces[3 * i as usize + k] += f;
            work.forces[3 * j as usize + k] -= f;
        }
    }
}

impl<T: SimdReal> Work<T> {
    /// Charges in e of the molecule just evaluated.
    pub(super) fn charges(&self) -> &[T] {
        &self.charge
    }

    /// Its Hirshfeld ratios.
    pub(super) fn ratios(&self) -> &[T] {
        &self.ratio
    }

    /// Its number of pairs within the network's reach.
    pub(super) fn pair_count(&self) -> usize {
        self.pairs.len()
    }
}
