//! What both kinds of transformers have on a device: structures, tokens of graphs and times, norms.

use super::super::config::DitmcConfig;
use super::super::layout::{DensePlace, Layout, NormPlace, PerceptronPlace};
use super::structures::{Segments, Structures};
use crate::error::Result;
use crate::launch::{Dense, Finish, Launcher, copy, training_source};
use crate::matrix::padded;
use scorefield_integrators::device::{Argument, Device, Kernels, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

pub(in super::super) const SOURCE: &str = training_source!("ditmc_training.cu", "ditmc_equivariant_training.cu");

impl From<&DensePlace> for Dense {
    fn from(place: &DensePlace) -> Self {
        let DensePlace { weight, bias, inputs, outputs } = place.clone();
        Dense { weight, bias, inputs, outputs, by_output: false }
    }
}

/// Two dense layers, and what lies between before and after the curve.
#[derive(Default)]
pub(super) struct Perceptron<T> {
    pub(super) first: Dense,
    pub(super) second: Dense,
    gelu: bool,
    hidden: Memory<T>,
    after: Memory<T>,
}

impl<T: SimdReal> Perceptron<T> {
    pub(super) fn new(places: &PerceptronPlace, gelu: bool) -> Self {
        let [first, second] = places.each_ref().map(Dense::from);
        Perceptron { first, second, gelu, hidden: Memory::default(), after: Memory::default() }
    }

    pub(super) fn reserve(&mut self, device: &Device, rows: usize) -> Result<()> {
        self.hidden.reserve(device, rows * self.first.outputs)?;
        Ok(self.after.reserve(device, rows * self.first.outputs)?)
    }

    pub(super) fn apply(&self, on: &Launcher<T>, rows: usize, x: &Memory<T>, y: &Memory<T>) -> Result<()> {
        let finish = if self.gelu { Finish::Gelu(self.hidden.at(0)) } else { Finish::Swish(self.hidden.at(0)) };
        on.apply(&self.first, rows, x, &self.after, finish)?;
        on.apply(&self.second, rows, &self.after, y, Finish::Set)
    }

    /// Gradients of parameters, and of `x` into `gx` where it is wanted; `gs` is scratch for the hidden layer.
    pub(super) fn back(
        &self,
        on: &Launcher<T>,
        rows: usize,
        g: &Memory<T>,
        x: &Memory<T>,
        gs: &Memory<T>,
        gx: Option<&Memory<T>>,
    ) -> Result<()> {
        let finish = if self.gelu { Finish::GeluSlope(self.hidden.at(0)) } else { Finish::SwishSlope(self.hidden.at(0)) };
        on.back(&self.second, rows, g, gs, finish)?;
        if let Some(gx) = gx {
            on.back(&self.first, rows, gs, gx, Finish::Set)?;
        }
        on.gradient(&self.second, rows, g, &self.after)?;
        on.gradient(&self.first, rows, gs, x)
    }

    /// Largest room for parts of gradients.
    pub(super) fn room(&self, rows: usize) -> usize {
        self.first.room(rows).max(self.second.room(rows))
    }
}

/// Scale and shift of a norm: parameters, or columns of a modulation; what is added to the scale, and between rows.
#[derive(Clone, Copy)]
pub(super) struct Affine {
    pub(super) scale: Argument,
    pub(super) shift: Argument,
    pub(super) plus: f64,
    pub(super) stride: usize,
}

/// A perceptron with a norm at one end: what it reads before the norm and after, and what comes out.
pub(super) struct Step<T> {
    perceptron: Perceptron<T>,
    norm: NormPlace,
    before: Memory<T>,
    normed: Memory<T>,
    after: Memory<T>,
}

impl<T: SimdReal> Step<T> {
    pub(super) fn new(perceptron: &PerceptronPlace, norm: &NormPlace) -> Self {
        let [before, normed, after] = Default::default();
        Step { perceptron: Perceptron::new(perceptron, false), norm: norm.clone(), before, normed, after }
    }

    pub(super) fn reserve(&mut self, device: &Device, rows: usize, width: usize) -> Result<()> {
        self.perceptron.reserve(device, rows)?;
        for memory in [&mut self.before, &mut self.normed] {
            memory.reserve(device, rows * self.norm.scale.len().max(width))?;
        }
        Ok(self.after.reserve(device, rows * width)?)
    }
}

/// Structures on the device; see [`Structures`].
#[derive(Default)]
pub(super) struct Uploaded<T> {
    ints: [Memory<i32>; INTS],
    nodes: Memory<T>,
    pub(super) positions: Memory<T>,
    /// Of rows: radial functions, harmonics (PE(3)).
    pub(super) radial: Memory<T>,
    pub(super) harmonics: Memory<T>,
    kinds: Memory<T>,
    times: Memory<T>,
}

/// Places in `Uploaded::ints`.
#[derive(Clone, Copy)]
pub(super) enum Int {
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
    RowEnds,
}

const INTS: usize = Int::RowEnds as usize + 1;

/// Parameters, structures, and tokens of their atoms.
pub(super) struct Base<T> {
    pub(super) launcher: Launcher<T>,
    pub(super) config: DitmcConfig,
    pub(super) layout: Arc<Layout>,
    pub(super) uploaded: Uploaded<T>,
    nodes: Step<T>,
    edges: Step<T>,
    /// Bonds and atoms of each layer of the conditioner.
    conditioner: Vec<[Step<T>; 2]>,
    time: Perceptron<T>,
    pub(super) memory: Shared<T>,
}

/// Memory of what all networks compute.
#[derive(Default)]
pub(super) struct Shared<T> {
    waves: Memory<T>,
    time_tokens: Memory<T>,
    /// Of atoms, and their gradient.
    pub(super) tokens: Memory<T>,
    pub(super) gradient: Memory<T>,
    /// Scratch for the widest features.
    pub(super) wide: [Memory<T>; 4],
    gatoms: Memory<T>,
    gbonds: Memory<T>,
    gtimes: Memory<T>,
    gwaves: Memory<T>,
    /// Sums of segments.
    parts: Memory<T>,
    segments: [Memory<i32>; 2],
}

impl<T: SimdReal> Base<T> {
    /// All parameters are zero.
    pub(super) fn new(device: &Device, config: &DitmcConfig, layout: Arc<Layout>) -> Result<Self> {
        let step = |perceptron, norm| Step::new(perceptron, norm);
        let conditioner = layout.conditioner.iter().map(|l| [step(&l.edge, &l.edge_norm), step(&l.node, &l.node_norm)]);
        Ok(Base {
            launcher: Launcher::new(device, SOURCE, layout.len)?,
            config: config.clone(),
            uploaded: Uploaded::default(),
            nodes: step(&layout.nodes.perceptron, &layout.nodes.norm),
            edges: step(&layout.edges.perceptron, &layout.edges.norm),
            conditioner: conditioner.collect(),
            time: Perceptron::new(&layout.time, false),
            memory: Shared::default(),
            layout,
        })
    }

    pub(super) fn features(&self) -> usize {
        self.config.features()
    }

    /// An array of [`Structures`] on the device.
    pub(super) fn int(&self, what: Int) -> Argument {
        self.uploaded.ints[what as usize].at(0)
    }

    /// Brings structures to the device and makes room for what they need: `wide` numbers of scratch, sums of segments of `columns`, and
    /// `parts` numbers for parts of gradients.
    pub(super) fn upload(&mut self, s: &Structures<T>, wide: usize, columns: usize, parts: usize) -> Result<()> {
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
            &s.row_ends,
        ];
        for (to, from) in self.uploaded.ints.iter_mut().zip(ints) {
            copy(device, to, from)?;
        }
        copy(device, &mut self.memory.segments[0], segments)?;
        copy(device, &mut self.memory.segments[1], first)?;
        let u = &mut self.uploaded;
        for (to, from) in [
            (&mut u.nodes, &s.nodes),
            (&mut u.positions, &s.positions),
            (&mut u.radial, &s.radial),
            (&mut u.harmonics, &s.harmonics),
            (&mut u.kinds, &s.kinds),
            (&mut u.times, &s.times),
        ] {
            copy(device, to, from)?;
        }
        let (f, waves) = (self.config.features(), padded(self.config.features() / 2));
        let (atoms, bonds, count) = (s.atoms(), s.bonds(), s.count());
        self.nodes.reserve(device, atoms, f)?;
        self.edges.reserve(device, bonds, f)?;
        for [edge, node] in &mut self.conditioner {
            edge.reserve(device, bonds, f)?;
            node.reserve(device, atoms, f)?;
        }
        self.time.reserve(device, count)?;
        for (memory, n) in [
            (&mut self.memory.waves, count * waves),
            (&mut self.memory.time_tokens, count * f),
            (&mut self.memory.tokens, atoms * f),
            (&mut self.memory.gradient, atoms * f),
            (&mut self.memory.gatoms, atoms * f),
            (&mut self.memory.gbonds, bonds * f),
            (&mut self.memory.gtimes, count * f),
            (&mut self.memory.gwaves, count * waves),
            (&mut self.memory.parts, s.by_hops.count() * columns),
        ] {
            memory.reserve(device, n)?;
        }
        // Three tokens of a bond, two of an atom.
        let wide = wide.max(3 * bonds * f).max(2 * atoms * f).max(count * f);
        for memory in &mut self.memory.wide {
            memory.reserve(device, wide)?;
        }
        let perceptrons = [(&self.time, count), (&self.nodes.perceptron, atoms), (&self.edges.perceptron, bonds)];
        let layers = self.conditioner.iter().flat_map(|[edge, node]| [(&edge.perceptron, bonds), (&node.perceptron, atoms)]);
        let most = perceptrons.into_iter().chain(layers).map(|(p, rows)| p.room(rows)).max().unwrap_or(0);
        self.launcher.reserve(most.max(parts).max(Launcher::<T>::columns_room(atoms.max(bonds), 3 * f)))
    }

    /// A norm of `rows` rows of `width`.
    pub(super) fn norm(&self, affine: Affine, [rows, width]: [usize; 2], x: impl Into<Argument>, y: impl Into<Argument>) -> Result<()> {
        self.launch_norm("layer_norm", affine, [rows, width], [x.into(), y.into()], [Argument::NOWHERE; 4], 0, false)
    }

    /// The way back of a norm: `gx` is set, or added to; gradients of scale and shift go where `to` leads, `stride` between rows.
    pub(super) fn norm_back(
        &self,
        affine: Affine,
        sizes: [usize; 2],
        [x, g, gx]: [impl Into<Argument>; 3],
        [scale, shift]: [Argument; 2],
        stride: usize,
        add: bool,
    ) -> Result<()> {
        let gradients = [g.into(), gx.into(), scale, shift];
        self.launch_norm("layer_norm_back", affine, sizes, [x.into(), Argument::NOWHERE], gradients, stride, add)
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
    pub(super) fn learned(&self, place: &NormPlace) -> Affine {
        let [scale, shift] = [&place.scale, &place.bias].map(|p| self.launcher.values.at(p.start));
        Affine { scale, shift, plus: 0.0, stride: 0 }
    }

    /// The way back of a norm with learned scale and bias; `scratch` takes what their gradients are sums of.
    pub(super) fn learned_back(&self, place: &NormPlace, rows: usize, [x, g, gx]: [&Memory<T>; 3], scratch: &Memory<T>) -> Result<()> {
        let width = place.scale.len();
        let to = [scratch.at(0), Argument::NOWHERE];
        self.norm_back(self.learned(place), [rows, width], [x, g, gx], to, width, false)?;
        self.launcher.sum_columns(rows, width, scratch, place.scale.start)?;
        self.launcher.sum_columns(rows, width, g, place.bias.start)
    }

    /// Columns of a modulation `[A, stride]`, in units of F.
    pub(super) fn modulated(&self, memory: &Memory<T>, stride: usize, scale: usize, shift: usize) -> Affine {
        let f = self.features();
        Affine { scale: memory.at(scale * f), shift: memory.at(shift * f), plus: 1.0, stride }
    }

    pub(super) fn curve(&self, kernel: &str, n: usize, x: impl Into<Argument>, y: impl Into<Argument>) -> Result<()> {
        self.launcher.each(kernel, n, &[x.into(), y.into(), n.into()])
    }

    /// A kernel of the weights of pairs over senders.
    pub(super) fn softmax(&self, kernel: &str, s: &Structures<T>, weights: &Memory<T>, slopes: Argument, scale: f64) -> Result<()> {
        let (atoms, heads) = (s.atoms(), self.config.heads);
        let arguments = [self.int(Int::Atoms), weights.at(0), slopes, atoms.into(), heads.into(), scale.into()];
        self.launcher.each(kernel, atoms * heads, &arguments)
    }

    /// Rows of a table: see `take_rows`.
    pub(super) fn rows(&self, kernel: &str, index: Int, places: [Argument; 2], rows: usize, add: bool) -> Result<()> {
        self.rows_of(kernel, index, places, [rows, self.features()], add)
    }

    /// The same for rows of any width.
    pub(super) fn rows_of(&self, kernel: &str, index: Int, [from, to]: [Argument; 2], [rows, width]: [usize; 2], add: bool) -> Result<()> {
        let sizes = [rows, width, usize::from(add)].map(Argument::from);
        self.launcher.each(kernel, rows * width, &[&[self.int(index), from, to][..], &sizes].concat())
    }

    fn bonds(&self, s: &Structures<T>) -> Vec<Argument> {
        let ints = [Int::Bonds, Int::FirstIn, Int::In, Int::FirstOut, Int::Out].map(|what| self.int(what));
        let sizes = [s.atoms(), s.bonds(), self.features()].map(Argument::from);
        [&ints[..], &sizes].concat()
    }

    /// Tokens of atoms, of graph and time.
    pub(super) fn condition(&self, s: &Structures<T>) -> Result<()> {
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
        let waves = [self.uploaded.times.at(0), on.values.at(self.layout.frequencies.start), self.memory.waves.at(0)];
        on.each("waves", s.count() * padded(f / 2), &[&waves[..], &[Argument::NOWHERE; 2], &self.wave_sizes(s)].concat())?;
        self.time.apply(on, s.count(), &self.memory.waves, &self.memory.time_tokens)?;
        on.each("clear", atoms * f, &[self.memory.tokens.at(0), (atoms * f).into()])?;
        self.curve("add", atoms * f, h, &self.memory.tokens)?;
        on.each("add_times", atoms * f, &self.times(s, &self.memory.tokens, &self.memory.time_tokens))
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

    /// Gradients from those of the tokens of atoms, and of the features `g` that elements began with; `elements` are those that there are.
    pub(super) fn backward(&self, s: &Structures<T>, g: &Memory<T>, elements: &Memory<i32>) -> Result<()> {
        let (atoms, f, on) = (s.atoms(), self.features(), &self.launcher);
        let sizes = [atoms, f, elements.len()].map(Argument::from);
        let types = [self.int(Int::Types), elements.at(0), g.at(0), on.gradient.at(self.layout.types.start)];
        on.each("elements_back", elements.len() * f, &[&types[..], &sizes].concat())?;
        on.each("sum_times", s.count() * f, &self.times(s, &self.memory.gradient, &self.memory.gtimes))?;
        self.time.back(on, s.count(), &self.memory.gtimes, &self.memory.waves, &self.memory.wide[0], Some(&self.memory.gwaves))?;
        let frequencies = self.layout.frequencies.start;
        let waves = [
            self.uploaded.times.at(0),
            on.values.at(frequencies),
            self.memory.waves.at(0),
            self.memory.gwaves.at(0),
            on.gradient.at(frequencies),
        ];
        on.each("waves_back", self.layout.frequencies.len(), &[&waves[..], &self.wave_sizes(s)].concat())?;
        self.condition_back(s)
    }

    /// The rest of the way back, from the gradient of the condition.
    fn condition_back(&self, s: &Structures<T>) -> Result<()> {
        let (atoms, bonds, f, on) = (s.atoms(), s.bonds(), self.features(), &self.launcher);
        let (gh, ge, [gs, gnormed, gnode, gedge]) = (&self.memory.gatoms, &self.memory.gbonds, &self.memory.wide);
        on.each("clear", atoms * f, &[gh.at(0), (atoms * f).into()])?;
        self.curve("add", atoms * f, &self.memory.gradient, gh)?;
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

    /// `to[row · stride]` = the sum over pairs of each row of the table of hops.
    pub(super) fn sum_by_hops(&self, s: &Structures<T>, from: &Memory<T>, width: usize, to: Argument, stride: usize) -> Result<()> {
        let (on, parts, count) = (&self.launcher, &self.memory.parts, s.by_hops.count());
        let arguments = [self.int(Int::Order), self.memory.segments[0].at(0), from.at(0), parts.at(0), count.into(), width.into()];
        on.each("segments", count * width, &arguments)?;
        let rows = s.hop_rows();
        on.each("sum_segments", rows * width, &[self.memory.segments[1].at(0), parts.at(0), to, rows.into(), width.into(), stride.into()])
    }
}
