//! aPE and rPE on a device, for batches of structures that each have a graph and a time of their own: `kernels/ditmc_training.cu`, launched
//! layer by layer. This is what training needs; the forces of one molecule have other kernels.

mod structures;

use super::config::{DitmcConfig, PairTokens, Variant};
use super::layout::{Body, DensePlace, Layout, NormPlace, PerceptronPlace, ScalarPlaces};
use crate::error::{Error, Result};
use crate::launch::{Dense, Finish, Launcher, copy, training_source};
use crate::matrix::{PAD, padded};
use scorefield_integrators::device::{Argument, Device, Kernels, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;
use structures::Segments;
pub(super) use structures::Structures;

pub(super) const SOURCE: &str = training_source!("ditmc_training.cu");

/// Columns of a block's modulation, in units of F: γ, β, α of attention, then of the perceptron.
const MODULATION: usize = 6;

impl From<&DensePlace> for Dense {
    fn from(place: &DensePlace) -> Self {
        let DensePlace { weight, bias, inputs, outputs } = place.clone();
        Dense { weight, bias, inputs, outputs, by_output: false }
    }
}

/// Two dense layers, and what lies between before and after the curve.
struct Perceptron<T> {
    first: Dense,
    second: Dense,
    gelu: bool,
    hidden: Memory<T>,
    after: Memory<T>,
}

impl<T: SimdReal> Perceptron<T> {
    fn new(device: &Device, places: &PerceptronPlace, gelu: bool) -> Result<Self> {
        let [first, second] = places.each_ref().map(Dense::from);
        Ok(Perceptron { first, second, gelu, hidden: device.memory(0)?, after: device.memory(0)? })
    }

    fn reserve(&mut self, device: &Device, rows: usize) -> Result<()> {
        self.hidden.reserve(device, rows * self.first.outputs)?;
        Ok(self.after.reserve(device, rows * self.first.outputs)?)
    }

    fn apply(&self, on: &Launcher<T>, rows: usize, x: &Memory<T>, y: &Memory<T>) -> Result<()> {
        let finish = if self.gelu { Finish::Gelu(&self.hidden) } else { Finish::Swish(&self.hidden) };
        on.apply(&self.first, rows, x, &self.after, finish)?;
        on.apply(&self.second, rows, &self.after, y, Finish::Set)
    }

    /// Gradients of parameters, and of `x` into `gx` where it is wanted; `gs` is scratch for the hidden layer.
    fn back(&self, on: &Launcher<T>, rows: usize, g: &Memory<T>, x: &Memory<T>, gs: &Memory<T>, gx: Option<&Memory<T>>) -> Result<()> {
        let finish = if self.gelu { Finish::GeluSlope(&self.hidden) } else { Finish::SwishSlope(&self.hidden) };
        on.back(&self.second, rows, g, gs, finish)?;
        if let Some(gx) = gx {
            on.back(&self.first, rows, gs, gx, Finish::Set)?;
        }
        on.gradient(&self.second, rows, g, &self.after)?;
        on.gradient(&self.first, rows, gs, x)
    }

    /// Largest room for parts of gradients.
    fn room(&self, rows: usize) -> usize {
        self.first.room(rows).max(self.second.room(rows))
    }
}

/// Scale and shift of a norm: parameters, or columns of a modulation; what is added to the scale, and between rows.
#[derive(Clone, Copy)]
struct Affine {
    scale: Argument,
    shift: Argument,
    plus: f64,
    stride: usize,
}

/// A perceptron with a norm at one end: what it reads before the norm and after, and what comes out.
struct Step<T> {
    perceptron: Perceptron<T>,
    norm: NormPlace,
    before: Memory<T>,
    normed: Memory<T>,
    after: Memory<T>,
}

impl<T: SimdReal> Step<T> {
    fn new(device: &Device, perceptron: &PerceptronPlace, norm: &NormPlace) -> Result<Self> {
        Ok(Step {
            perceptron: Perceptron::new(device, perceptron, false)?,
            norm: norm.clone(),
            before: device.memory(0)?,
            normed: device.memory(0)?,
            after: device.memory(0)?,
        })
    }

    fn reserve(&mut self, device: &Device, rows: usize, width: usize) -> Result<()> {
        self.perceptron.reserve(device, rows)?;
        for memory in [&mut self.before, &mut self.normed] {
            memory.reserve(device, rows * self.norm.scale.len().max(width))?;
        }
        Ok(self.after.reserve(device, rows * width)?)
    }
}

/// A block of the transformer: places, and what it leaves for the way back; names as in `scalar.rs`.
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

/// Structures on the device; see [`Structures`].
struct Uploaded<T> {
    ints: Vec<Memory<i32>>,
    nodes: Memory<T>,
    positions: Memory<T>,
    kinds: Memory<T>,
    times: Memory<T>,
}

/// Places in `Uploaded::ints`.
#[derive(Clone, Copy)]
enum Int {
    First,
    Structure,
    Types,
    Bonds,
    FirstIn,
    In,
    FirstOut,
    Out,
    Hops,
    Pairs,
    Atoms,
    Rows,
    HopOf,
    Order,
}

const INTS: usize = Int::Order as usize + 1;

/// The network and its memory.
pub(super) struct DeviceNetwork<T> {
    /// Parameters, and their gradients after [`DeviceNetwork::backward`].
    pub(super) launcher: Launcher<T>,
    config: DitmcConfig,
    layout: Arc<Layout>,
    places: ScalarPlaces,
    nodes: Step<T>,
    edges: Step<T>,
    /// Bonds and atoms of each layer of the conditioner.
    conditioner: Vec<[Step<T>; 2]>,
    time: Perceptron<T>,
    position: Perceptron<T>,
    pair: Perceptron<T>,
    pair_maps: Dense,
    readout_modulation: Dense,
    readout: Dense,
    blocks: Vec<Block<T>>,
    /// Features before each block, and after the last.
    features: Vec<Memory<T>>,
    waves: Memory<T>,
    time_tokens: Memory<T>,
    /// Of atoms.
    tokens: Memory<T>,
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
    segments: [Memory<i32>; 2],
    uploaded: Uploaded<T>,
    back: Back<T>,
}

/// Gradients.
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
    parts: Memory<T>,
    /// Of the condition, of a modulation, of what lies between.
    condition: Memory<T>,
    modulation: Memory<T>,
    wide: [Memory<T>; 4],
    atoms: Memory<T>,
    bonds: Memory<T>,
    times: Memory<T>,
    waves: Memory<T>,
}

/// Whether there are kernels for a network.
///
/// # Errors
/// Says what they do not do.
pub(super) fn check(config: &DitmcConfig) -> Result<()> {
    let what = match config {
        c if c.variant == Variant::Pe3 => "variant = \"pe3\"",
        c if c.pair_tokens != PairTokens::AllPairs => "pair-tokens = \"bond-pairs\"",
        c if c.self_conditioning => "self-conditioning",
        c if c.guidance => "guidance",
        _ => return Ok(()),
    };
    Err(Error::parameter("training on a device", "network", what, "train it on the cpu, or leave it out"))
}

impl<T: SimdReal> DeviceNetwork<T> {
    /// All parameters are zero.
    ///
    /// # Errors
    /// Where there are no kernels for the network, or the device fails.
    pub(super) fn new(device: &Device, config: &DitmcConfig, layout: Arc<Layout>) -> Result<Self> {
        check(config)?;
        let Body::Scalar(places) = &layout.body else {
            return Err(Error::parameter("training on a device", "network", "pe3", "train it on the cpu"));
        };
        let places = places.clone();
        let Some(pair) = &places.pair_perceptron else {
            return Err(Error::parameter("training on a device", "pair-tokens", "bond-pairs", "train it on the cpu"));
        };
        let none = || device.memory::<T>(0);
        let ints = || device.memory::<i32>(0);
        let block = |b: &super::layout::BlockPlaces| -> Result<Block<T>> {
            Ok(Block {
                norm: b.norm.clone(),
                modulation: (&b.modulation).into(),
                qkv: (&b.qkv).into(),
                kappa: b.kappa.start,
                out: (&b.out).into(),
                perceptron: Perceptron::new(device, &b.perceptron, true)?,
                normed: none()?,
                curved: none()?,
                modulated: none()?,
                x: none()?,
                qkv_of: none()?,
                weights: none()?,
                sum: none()?,
                message: none()?,
                attention: none()?,
                middle: none()?,
                x2: none()?,
                update: none()?,
            })
        };
        let step = |perceptron, norm| Step::new(device, perceptron, norm);
        Ok(DeviceNetwork {
            launcher: Launcher::new(device, SOURCE, layout.len)?,
            config: config.clone(),
            nodes: step(&layout.nodes.perceptron, &layout.nodes.norm)?,
            edges: step(&layout.edges.perceptron, &layout.edges.norm)?,
            conditioner: layout
                .conditioner
                .iter()
                .map(|l| Ok([step(&l.edge, &l.edge_norm)?, step(&l.node, &l.node_norm)?]))
                .collect::<Result<_>>()?,
            time: Perceptron::new(device, &layout.time, false)?,
            position: Perceptron::new(device, &places.position, false)?,
            pair: Perceptron::new(device, pair, false)?,
            pair_maps: (&places.pair_maps).into(),
            readout_modulation: (&places.readout_modulation).into(),
            readout: (&places.readout).into(),
            blocks: places.blocks.iter().map(block).collect::<Result<_>>()?,
            features: (0..=config.blocks).map(|_| Ok(none()?)).collect::<Result<_>>()?,
            waves: none()?,
            time_tokens: none()?,
            tokens: none()?,
            hop_input: none()?,
            hop_tokens: none()?,
            displacements: none()?,
            pair_tokens: none()?,
            table: none()?,
            readout_before: none()?,
            readout_modulated: none()?,
            last_normed: none()?,
            out: none()?,
            segments: [ints()?, ints()?],
            uploaded: Uploaded {
                ints: (0..INTS).map(|_| Ok(ints()?)).collect::<Result<_>>()?,
                nodes: none()?,
                positions: none()?,
                kinds: none()?,
                times: none()?,
            },
            back: Back {
                out: none()?,
                g: none()?,
                gx: none()?,
                gqkv: none()?,
                slopes: none()?,
                rows: none()?,
                table: none()?,
                tokens: none()?,
                hop_tokens: none()?,
                parts: none()?,
                condition: none()?,
                modulation: none()?,
                wide: [none()?, none()?, none()?, none()?],
                atoms: none()?,
                bonds: none()?,
                times: none()?,
                waves: none()?,
            },
            places,
            layout,
        })
    }

    fn features(&self) -> usize {
        self.config.features()
    }

    fn int(&self, what: Int) -> Argument {
        self.uploaded.ints[what as usize].at(0)
    }

    /// Brings structures to the device and makes room for what they need.
    pub(super) fn upload(&mut self, s: &Structures<T>) -> Result<()> {
        let device = &self.launcher.device.clone();
        let Segments { order, segments, first } = &s.by_hops;
        let ints: [&[i32]; INTS] = [
            &s.first,
            &s.structure,
            &s.types,
            &s.bonds,
            &s.arriving.0,
            &s.arriving.1,
            &s.leaving.0,
            &s.leaving.1,
            &s.hops,
            &s.pairs,
            &s.atoms,
            &s.rows,
            &s.hop_of,
            order,
        ];
        for (to, from) in self.uploaded.ints.iter_mut().zip(ints) {
            copy(device, to, from)?;
        }
        copy(device, &mut self.segments[0], segments)?;
        copy(device, &mut self.segments[1], first)?;
        let u = &mut self.uploaded;
        for (to, from) in [(&mut u.nodes, &s.nodes), (&mut u.positions, &s.positions), (&mut u.kinds, &s.kinds), (&mut u.times, &s.times)] {
            copy(device, to, from)?;
        }
        self.reserve(s)
    }

    fn reserve(&mut self, s: &Structures<T>) -> Result<()> {
        let (f, heads, maps) = (self.features(), self.config.heads, self.pair_maps.outputs);
        let (atoms, bonds, pairs, hops, count) = (s.atoms(), s.bonds(), s.pairs(), s.hop_rows(), s.count());
        let own_pairs = self.config.variant == Variant::Rpe;
        let table_rows = if own_pairs { pairs } else { hops };
        let hidden = self.config.expansion * f;
        let device = &self.launcher.device.clone();
        let room = |memory: &mut Memory<T>, n: usize| memory.reserve(device, n);
        self.nodes.reserve(device, atoms, f)?;
        self.edges.reserve(device, bonds, f)?;
        for [edge, node] in &mut self.conditioner {
            edge.reserve(device, bonds, f)?;
            node.reserve(device, atoms, f)?;
        }
        let placed = if own_pairs { pairs } else { atoms };
        for (perceptron, rows) in [(&mut self.time, count), (&mut self.position, placed), (&mut self.pair, hops)] {
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
        let waves = padded(f / 2);
        let b = &mut self.back;
        // The largest that goes through a perceptron or a norm: three tokens of a bond, the hidden layer of a block, a pair's token.
        let wide = (3 * bonds * f).max(atoms * hidden.max(2 * f)).max(table_rows * f).max(count * f);
        for (memory, n) in [
            (&mut self.waves, count * waves),
            (&mut self.time_tokens, count * f),
            (&mut self.tokens, atoms * f),
            (&mut self.hop_input, hops * f),
            (&mut self.hop_tokens, hops * f),
            (&mut self.displacements, if own_pairs { pairs * PAD } else { 0 }),
            (&mut self.pair_tokens, if own_pairs { pairs * f } else { 0 }),
            (&mut self.table, table_rows * maps),
            (&mut self.readout_before, 2 * atoms * f),
            (&mut self.readout_modulated, 2 * atoms * f),
            (&mut self.last_normed, atoms * f),
            (&mut self.out, atoms * PAD),
            (&mut b.out, atoms * PAD),
            (&mut b.g, atoms * f),
            (&mut b.gx, atoms * f),
            (&mut b.gqkv, 3 * atoms * f),
            (&mut b.slopes, pairs * heads),
            (&mut b.rows, if own_pairs { 0 } else { 2 * pairs * f }),
            (&mut b.table, table_rows * maps),
            (&mut b.tokens, table_rows * f),
            (&mut b.hop_tokens, hops * f),
            (&mut b.parts, s.by_hops.count() * 2 * f),
            (&mut b.condition, atoms * f),
            (&mut b.modulation, MODULATION * atoms * f),
            (&mut b.times, count * f),
            (&mut b.waves, count * waves),
            (&mut b.atoms, atoms * f),
            (&mut b.bonds, bonds * f),
        ] {
            room(memory, n)?;
        }
        for memory in &mut b.wide {
            room(memory, wide)?;
        }
        let perceptrons = self.blocks.iter().map(|b| (&b.perceptron, atoms)).chain([
            (&self.time, count),
            (&self.position, placed),
            (&self.pair, hops),
            (&self.nodes.perceptron, atoms),
            (&self.edges.perceptron, bonds),
        ]);
        let perceptrons =
            perceptrons.chain(self.conditioner.iter().flat_map(|[edge, node]| [(&edge.perceptron, bonds), (&node.perceptron, atoms)]));
        let dense = self.blocks.iter().flat_map(|b| [&b.modulation, &b.qkv, &b.out]).chain([&self.readout_modulation, &self.readout]);
        let most = perceptrons
            .map(|(p, rows)| p.room(rows))
            .chain(dense.map(|d| d.room(atoms)))
            .chain([self.pair_maps.room(table_rows), Launcher::<T>::columns_room(atoms.max(bonds), 3 * f)])
            .max();
        self.launcher.reserve(most.unwrap_or(0))
    }

    /// A norm of `rows` rows of `width`.
    fn norm(&self, affine: Affine, [rows, width]: [usize; 2], x: &Memory<T>, y: &Memory<T>) -> Result<()> {
        self.launch_norm("layer_norm", affine, [rows, width], [x.at(0), y.at(0)], [Argument::NOWHERE; 4], 0, false)
    }

    /// The way back of a norm: `gx` is set, or added to; gradients of scale and shift go where `to` leads, `stride` between rows.
    fn norm_back(
        &self,
        affine: Affine,
        sizes: [usize; 2],
        [x, g, gx]: [&Memory<T>; 3],
        [scale, shift]: [Argument; 2],
        stride: usize,
        add: bool,
    ) -> Result<()> {
        let gradients = [g.at(0), gx.at(0), scale, shift];
        self.launch_norm("layer_norm_back", affine, sizes, [x.at(0), Argument::NOWHERE], gradients, stride, add)
    }

    #[allow(clippy::too_many_arguments)]
    fn launch_norm(
        &self,
        kernel: &str,
        affine: Affine,
        [rows, width]: [usize; 2],
        [x, y]: [Argument; 2],
        gradients: [Argument; 4],
        gstride: usize,
        add: bool,
    ) -> Result<()> {
        let Affine { scale, shift, plus, stride } = affine;
        let head = [x, scale, shift, y, width.into(), stride.into(), plus.into()];
        let arguments = [&head[..], &gradients, &[gstride.into(), usize::from(add).into()]].concat();
        Ok(self.launcher.kernels.launch(kernel, rows, Kernels::THREADS * size_of::<T>(), &arguments)?)
    }

    /// Scale and bias among the parameters.
    fn learned(&self, place: &NormPlace) -> Affine {
        let [scale, shift] = [&place.scale, &place.bias].map(|p| self.launcher.values.at(p.start));
        Affine { scale, shift, plus: 0.0, stride: 0 }
    }

    /// The way back of a norm with learned scale and bias; `scratch` takes what their gradients are sums of.
    fn learned_back(&self, place: &NormPlace, rows: usize, [x, g, gx]: [&Memory<T>; 3], scratch: &Memory<T>) -> Result<()> {
        let width = place.scale.len();
        let to = [scratch.at(0), Argument::NOWHERE];
        self.norm_back(self.learned(place), [rows, width], [x, g, gx], to, width, false)?;
        self.launcher.sum_columns(rows, width, scratch, place.scale.start)?;
        self.launcher.sum_columns(rows, width, g, place.bias.start)
    }

    /// Columns of a modulation `[A, stride]`, in units of F.
    fn modulated(&self, memory: &Memory<T>, stride: usize, scale: usize, shift: usize) -> Affine {
        let f = self.features();
        Affine { scale: memory.at(scale * f), shift: memory.at(shift * f), plus: 1.0, stride }
    }

    /// A kernel of a gate with α in column `alpha` (in units of F) of a block's modulation.
    fn gate(&self, kernel: &str, block: &Block<T>, alpha: usize, atoms: usize, forward: [&Memory<T>; 3]) -> Result<()> {
        let (f, back) = (self.features(), &self.back);
        let [x, u, y] = forward.map(|m| m.at(0));
        let gradients = [back.g.at(0), back.gx.at(0), back.modulation.at(alpha * f)];
        let sizes = [atoms, f, MODULATION * f].map(Argument::from);
        self.launcher.each(kernel, atoms * f, &[&[block.modulated.at(alpha * f), x, u, y][..], &gradients, &sizes].concat())
    }

    fn curve(&self, kernel: &str, n: usize, x: &Memory<T>, y: &Memory<T>) -> Result<()> {
        self.launcher.each(kernel, n, &[x.at(0), y.at(0), n.into()])
    }

    fn bonds(&self, s: &Structures<T>) -> Vec<Argument> {
        let ints = [Int::Bonds, Int::FirstIn, Int::In, Int::FirstOut, Int::Out].map(|what| self.int(what));
        let sizes = [s.atoms(), s.bonds(), self.features()].map(Argument::from);
        [&ints[..], &sizes].concat()
    }

    /// Rows of a table: see `take_rows`.
    fn rows(&self, kernel: &str, index: Int, [from, to]: [Argument; 2], rows: usize, add: bool) -> Result<()> {
        let f = self.features();
        self.launcher.each(kernel, rows * f, &[self.int(index), from, to, rows.into(), f.into(), usize::from(add).into()])
    }

    /// From structures to drifts.
    pub(super) fn forward(&self, s: &Structures<T>) -> Result<()> {
        let (atoms, f, on, values) = (s.atoms(), self.features(), &self.launcher, &self.launcher.values);
        self.condition(s)?;
        for b in &self.blocks {
            self.norm(self.learned(&b.norm), [atoms, f], &self.tokens, &b.normed)?;
            self.curve("curve", atoms * f, &b.normed, &b.curved)?;
            on.apply(&b.modulation, atoms, &b.curved, &b.modulated, Finish::Set)?;
        }
        on.apply(&self.readout_modulation, atoms, &self.tokens, &self.readout_before, Finish::Set)?;
        self.curve("curve", 2 * atoms * f, &self.readout_before, &self.readout_modulated)?;
        self.tables(s)?;
        let types = [values.at(self.layout.types.start), self.features[0].at(0)];
        if self.config.variant == Variant::Ape {
            self.position.apply(on, atoms, &self.uploaded.positions, &self.features[0])?;
        }
        self.rows("take_rows", Int::Types, types, atoms, self.config.variant == Variant::Ape)?;
        for (l, b) in self.blocks.iter().enumerate() {
            let (h, next) = (&self.features[l], &self.features[l + 1]);
            let stride = MODULATION * f;
            self.norm(self.modulated(&b.modulated, stride, 0, 1), [atoms, f], h, &b.x)?;
            on.apply(&b.qkv, atoms, &b.x, &b.qkv_of, Finish::Set)?;
            for (kernel, n) in [("scores", s.pairs() * self.config.heads), ("softmax", atoms * self.config.heads), ("attend", atoms * f)] {
                let arrays = [&b.weights, &b.sum, &b.message].map(|m| m.at(0));
                on.each(kernel, n, &[&self.pairs(s, l)[..], &arrays].concat())?;
            }
            on.apply(&b.out, atoms, &b.message, &b.attention, Finish::Set)?;
            self.gate("gate", b, 2, atoms, [h, &b.attention, &b.middle])?;
            self.norm(self.modulated(&b.modulated, stride, 3, 4), [atoms, f], &b.middle, &b.x2)?;
            b.perceptron.apply(on, atoms, &b.x2, &b.update)?;
            self.gate("gate", b, 5, atoms, [&b.middle, &b.update, next])?;
        }
        // Shift comes before scale here.
        let affine = self.modulated(&self.readout_modulated, 2 * f, 1, 0);
        self.norm(affine, [atoms, f], &self.features[self.blocks.len()], &self.last_normed)?;
        on.apply(&self.readout, atoms, &self.last_normed, &self.out, Finish::Set)
    }

    /// Tokens of atoms, of graph and time.
    fn condition(&self, s: &Structures<T>) -> Result<()> {
        let (atoms, bonds, f, on) = (s.atoms(), s.bonds(), self.features(), &self.launcher);
        for (step, rows, input) in [(&self.nodes, atoms, &self.uploaded.nodes), (&self.edges, bonds, &self.uploaded.kinds)] {
            step.perceptron.apply(on, rows, input, &step.before)?;
            self.norm(self.learned(&step.norm), [rows, f], &step.before, &step.after)?;
        }
        for (k, [edge, node]) in self.conditioner.iter().enumerate() {
            let (h, e) = self.tokens_before(k);
            let reads = |e: &Memory<T>| [&self.bonds(s)[..], &[h.at(0), e.at(0), edge.before.at(0), node.before.at(0)]].concat();
            on.each("read_bonds", bonds * f, &reads(e))?;
            self.norm(self.learned(&edge.norm), [bonds, 3 * f], &edge.before, &edge.normed)?;
            edge.perceptron.apply(on, bonds, &edge.normed, &edge.after)?;
            on.each("read_atoms", atoms * f, &reads(&edge.after))?;
            self.norm(self.learned(&node.norm), [atoms, 2 * f], &node.before, &node.normed)?;
            node.perceptron.apply(on, atoms, &node.normed, &node.after)?;
        }
        let (h, _) = self.tokens_before(self.conditioner.len());
        let waves = [self.uploaded.times.at(0), on.values.at(self.layout.frequencies.start), self.waves.at(0)];
        on.each("waves", s.count() * padded(f / 2), &[&waves[..], &[Argument::NOWHERE; 2], &self.wave_sizes(s)].concat())?;
        self.time.apply(on, s.count(), &self.waves, &self.time_tokens)?;
        on.each("clear", atoms * f, &[self.tokens.at(0), (atoms * f).into()])?;
        self.curve("add", atoms * f, h, &self.tokens)?;
        on.each("add_times", atoms * f, &self.times(s, &self.tokens, &self.time_tokens))
    }

    fn wave_sizes(&self, s: &Structures<T>) -> [Argument; 3] {
        [s.count(), self.layout.frequencies.len(), padded(self.features() / 2)].map(Argument::from)
    }

    fn times(&self, s: &Structures<T>, atoms: &Memory<T>, times: &Memory<T>) -> [Argument; 7] {
        let sizes = [s.atoms(), s.count(), self.features()].map(Argument::from);
        [self.int(Int::Structure), self.int(Int::First), atoms.at(0), times.at(0), sizes[0], sizes[1], sizes[2]]
    }

    /// Tokens of atoms and bonds that layer `k` of the conditioner begins with.
    fn tokens_before(&self, k: usize) -> (&Memory<T>, &Memory<T>) {
        match k.checked_sub(1).map(|before| &self.conditioner[before]) {
            Some([edge, node]) => (&node.after, &edge.after),
            None => (&self.nodes.after, &self.edges.after),
        }
    }

    /// Rows that pairs meet.
    fn tables(&self, s: &Structures<T>) -> Result<()> {
        let (hops, pairs, on) = (s.hop_rows(), s.pairs(), &self.launcher);
        let embedding = on.values.at(self.places.pair_embedding.start);
        self.rows("take_rows", Int::Hops, [embedding, self.hop_input.at(0)], hops, false)?;
        self.pair.apply(on, hops, &self.hop_input, &self.hop_tokens)?;
        if self.config.variant == Variant::Ape {
            return on.apply(&self.pair_maps, hops, &self.hop_tokens, &self.table, Finish::Set);
        }
        let places = [self.int(Int::Pairs), self.uploaded.positions.at(0), self.displacements.at(0), pairs.into(), PAD.into()];
        on.each("displace", pairs * PAD, &places)?;
        self.position.apply(on, pairs, &self.displacements, &self.pair_tokens)?;
        self.rows("take_rows", Int::HopOf, [self.hop_tokens.at(0), self.pair_tokens.at(0)], pairs, true)?;
        on.apply(&self.pair_maps, pairs, &self.pair_tokens, &self.table, Finish::Set)
    }

    /// What attention of block `l` begins its parameters with.
    fn pairs(&self, s: &Structures<T>, l: usize) -> Vec<Argument> {
        let (f, b) = (self.features(), &self.blocks[l]);
        let ints = [Int::Pairs, Int::Atoms, Int::Rows].map(|what| self.int(what));
        let arrays = [b.qkv_of.at(0), self.table.at(0), self.launcher.values.at(b.kappa)];
        let sizes = [s.atoms(), s.pairs(), f, self.config.heads, self.pair_maps.outputs, 2 * l * f].map(Argument::from);
        [&ints[..], &arrays, &sizes].concat()
    }

    /// The vectors of all atoms, as kernels see them.
    pub(super) fn vectors(&self, s: &Structures<T>) -> [Argument; 5] {
        [self.int(Int::First), self.out.at(0), s.count().into(), PAD.into(), 1usize.into()]
    }

    /// Where [`DeviceNetwork::backward`] reads the gradients of vectors: cleared.
    pub(super) fn seed(&self, s: &Structures<T>) -> Result<Argument> {
        let n = s.atoms() * PAD;
        self.launcher.each("clear", n, &[self.back.out.at(0), n.into()])?;
        Ok(self.back.out.at(0))
    }

    /// Gradients of all parameters from those of vectors; `elements` are those that there are.
    pub(super) fn backward(&self, s: &Structures<T>, elements: &Memory<i32>) -> Result<()> {
        let (atoms, f, on, back) = (s.atoms(), self.features(), &self.launcher, &self.back);
        let wide = &back.wide[0];
        on.back(&self.readout, atoms, &back.out, &back.gx, Finish::Set)?;
        on.gradient(&self.readout, atoms, &back.out, &self.last_normed)?;
        let affine = self.modulated(&self.readout_modulated, 2 * f, 1, 0);
        let to = [back.modulation.at(f), back.modulation.at(0)];
        self.norm_back(affine, [atoms, f], [&self.features[self.blocks.len()], &back.gx, &back.g], to, 2 * f, false)?;
        self.curve("curve_back", 2 * atoms * f, &self.readout_before, &back.modulation)?;
        on.back(&self.readout_modulation, atoms, &back.modulation, &back.condition, Finish::Set)?;
        on.gradient(&self.readout_modulation, atoms, &back.modulation, &self.tokens)?;
        for l in (0..self.blocks.len()).rev() {
            self.block_back(s, l)?;
        }
        let sizes = [atoms, f, elements.len()].map(Argument::from);
        let types = [self.int(Int::Types), elements.at(0), back.g.at(0), on.gradient.at(self.layout.types.start)];
        on.each("elements_back", elements.len() * f, &[&types[..], &sizes].concat())?;
        if self.config.variant == Variant::Ape {
            self.position.back(on, atoms, &back.g, &self.uploaded.positions, wide, None)?;
        }
        self.tables_back(s)?;
        // Of times.
        on.each("sum_times", s.count() * f, &self.times(s, &back.condition, &back.times))?;
        self.time.back(on, s.count(), &back.times, &self.waves, wide, Some(&back.waves))?;
        let frequencies = self.layout.frequencies.start;
        let waves = [self.uploaded.times.at(0), on.values.at(frequencies), self.waves.at(0), back.waves.at(0), on.gradient.at(frequencies)];
        on.each("waves_back", self.layout.frequencies.len(), &[&waves[..], &self.wave_sizes(s)].concat())?;
        self.condition_back(s)
    }

    /// The way back through block `l`: `g` becomes the gradient of the features before it; that of the condition is added to.
    fn block_back(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, back, b) = (s.atoms(), self.features(), &self.launcher, &self.back, &self.blocks[l]);
        let (stride, h, heads) = (MODULATION * f, &self.features[l], self.config.heads);
        let [wide, other, ..] = &back.wide;
        // The perceptron.
        self.gate("gate_back", b, 5, atoms, [&b.middle, &b.update, &b.update])?;
        b.perceptron.back(on, atoms, &back.gx, &b.x2, wide, Some(other))?;
        let to = |scale: usize, shift: usize| [back.modulation.at(scale * f), back.modulation.at(shift * f)];
        self.norm_back(self.modulated(&b.modulated, stride, 3, 4), [atoms, f], [&b.middle, other, &back.g], to(3, 4), stride, true)?;
        // Attention.
        self.gate("gate_back", b, 2, atoms, [h, &b.attention, &b.attention])?;
        on.back(&b.out, atoms, &back.gx, wide, Finish::Set)?;
        on.gradient(&b.out, atoms, &back.gx, &b.message)?;
        let own_pairs = self.config.variant == Variant::Rpe;
        let (rows, row_stride, offset) = if own_pairs { (&back.table, self.pair_maps.outputs, 2 * l * f) } else { (&back.rows, 2 * f, 0) };
        let arrays = [&b.weights, &b.sum, wide, &back.slopes, &back.gqkv, other, rows].map(|m| m.at(0));
        let arguments = [&self.pairs(s, l)[..], &arrays, &[row_stride.into(), offset.into()]].concat();
        for (kernel, n) in [
            ("kappa_back", atoms * f),
            ("scores_back", s.pairs() * heads),
            ("softmax_back", atoms * heads),
            ("attend_back", atoms * f),
            ("rows_back", s.pairs() * f),
        ] {
            on.each(kernel, n, &arguments)?;
        }
        on.sum_columns(atoms, f, other, b.kappa)?;
        if !own_pairs {
            self.sum_by_hops(s, &back.rows, 2 * f, back.table.at(2 * l * f), self.pair_maps.outputs)?;
        }
        on.back(&b.qkv, atoms, &back.gqkv, other, Finish::Set)?;
        on.gradient(&b.qkv, atoms, &back.gqkv, &b.x)?;
        self.norm_back(self.modulated(&b.modulated, stride, 0, 1), [atoms, f], [h, other, &back.g], to(0, 1), stride, true)?;
        // The modulation.
        on.back(&b.modulation, atoms, &back.modulation, wide, Finish::Set)?;
        self.curve("curve_back", atoms * f, &b.normed, wide)?;
        on.gradient(&b.modulation, atoms, &back.modulation, &b.curved)?;
        self.learned_back(&b.norm, atoms, [&self.tokens, wide, other], &back.gx)?;
        self.curve("add", atoms * f, other, &back.condition)
    }

    /// `to[row · stride]` = the sum over pairs of each row of the table of hops.
    fn sum_by_hops(&self, s: &Structures<T>, from: &Memory<T>, width: usize, to: Argument, stride: usize) -> Result<()> {
        let (on, parts, count) = (&self.launcher, &self.back.parts, s.by_hops.count());
        let arguments = [self.int(Int::Order), self.segments[0].at(0), from.at(0), parts.at(0), count.into(), width.into()];
        on.each("segments", count * width, &arguments)?;
        let rows = s.hop_rows();
        on.each("sum_segments", rows * width, &[self.segments[1].at(0), parts.at(0), to, rows.into(), width.into(), stride.into()])
    }

    fn tables_back(&self, s: &Structures<T>) -> Result<()> {
        let (hops, pairs, f, on, back) = (s.hop_rows(), s.pairs(), self.features(), &self.launcher, &self.back);
        let [wide, other, ..] = &back.wide;
        let gtokens = if self.config.variant == Variant::Ape {
            on.back(&self.pair_maps, hops, &back.table, &back.hop_tokens, Finish::Set)?;
            on.gradient(&self.pair_maps, hops, &back.table, &self.hop_tokens)?;
            &back.hop_tokens
        } else {
            on.back(&self.pair_maps, pairs, &back.table, &back.tokens, Finish::Set)?;
            on.gradient(&self.pair_maps, pairs, &back.table, &self.pair_tokens)?;
            self.position.back(on, pairs, &back.tokens, &self.displacements, wide, None)?;
            self.sum_by_hops(s, &back.tokens, f, back.hop_tokens.at(0), f)?;
            &back.hop_tokens
        };
        self.pair.back(on, hops, gtokens, &self.hop_input, wide, Some(other))?;
        // Rows that no pair has met get nothing.
        let embedding = &self.places.pair_embedding;
        let to = on.gradient.at(embedding.start);
        on.each("clear", embedding.len(), &[to, embedding.len().into()])?;
        self.rows("give_rows", Int::Hops, [to, other.at(0)], hops, false)
    }

    /// The rest of the way back, from the gradient of the condition.
    fn condition_back(&self, s: &Structures<T>) -> Result<()> {
        let (atoms, bonds, f, on, back) = (s.atoms(), s.bonds(), self.features(), &self.launcher, &self.back);
        let (gh, ge, [gs, gnormed, gnode, gedge]) = (&back.atoms, &back.bonds, &back.wide);
        on.each("clear", atoms * f, &[gh.at(0), (atoms * f).into()])?;
        self.curve("add", atoms * f, &back.condition, gh)?;
        on.each("clear", bonds * f, &[ge.at(0), (bonds * f).into()])?;
        let reads = [&self.bonds(s)[..], &[gnode, gedge, gh, ge].map(|m| m.at(0))].concat();
        for [edge, node] in self.conditioner.iter().rev() {
            node.perceptron.back(on, atoms, gh, &node.normed, gs, Some(gnormed))?;
            self.learned_back(&node.norm, atoms, [&node.before, gnormed, gnode], gs)?;
            on.each("read_atoms_back", bonds * f, &reads)?;
            edge.perceptron.back(on, bonds, ge, &edge.normed, gs, Some(gnormed))?;
            self.learned_back(&edge.norm, bonds, [&edge.before, gnormed, gedge], gs)?;
            on.each("read_bonds_back", atoms * f, &reads)?;
            on.each("bonds_before", bonds * f, &reads)?;
        }
        for (step, rows, g, input) in [(&self.nodes, atoms, gh, &self.uploaded.nodes), (&self.edges, bonds, ge, &self.uploaded.kinds)] {
            self.learned_back(&step.norm, rows, [&step.before, g, gnormed], gs)?;
            step.perceptron.back(on, rows, gnormed, input, gs, None)?;
        }
        Ok(())
    }
}
