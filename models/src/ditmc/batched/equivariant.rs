//! PE(3) on a device: features irrep by irrep, `[irrep][atoms, 2l + 1, F]`.

use super::super::config::DitmcConfig;
use super::super::equivariant::{BlockPlaces, Irrep, Places, Plan, RADIAL};
use super::super::layout::Layout;
use super::base::{Affine, Base, Int, Perceptron};
use super::structures::Structures;
use crate::error::Result;
use crate::launch::{Dense, Finish};
use crate::matrix::PAD;
use scorefield_integrators::device::{Argument, Device, Kernels, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

/// The products of a block as kernels read them; see `Entries` and `Messages` in `kernels/ditmc_equivariant_training.cu`.
struct Products<T> {
    entries: Memory<i32>,
    /// Where the entries of each begin and which they are: by sums, by components of values, by filters.
    lists: [Memory<i32>; 6],
    counts: [usize; 5],
    /// Terms of coefficients: where those of each begin, harmonics, numbers.
    terms: [Memory<i32>; 2],
    values: Memory<T>,
    /// Components of the inputs and irreps, of the messages, with what they are sums of; paths.
    component: Memory<i32>,
    irrep: Memory<i32>,
    messages: [Memory<i32>; 3],
    path: Memory<i32>,
    paths: usize,
    /// Components of inputs and of messages; rows of κ.
    components: [usize; 2],
    kappas: usize,
}

fn components(irreps: &[Irrep]) -> impl Iterator<Item = (usize, Irrep, usize)> + '_ {
    irreps.iter().enumerate().flat_map(|(k, &irrep)| (0..irrep.rows()).map(move |m| (k, irrep, m)))
}

/// Numbers 0 to n by what `of` says of them: where those of each of `count` begin, and which they are.
fn lists(n: usize, count: usize, of: impl Fn(usize) -> usize) -> [Vec<i32>; 2] {
    let (mut first, mut members) = (vec![0], Vec::new());
    for owner in 0..count {
        members.extend((0..n).filter(|&k| of(k) == owner).map(|k| k as i32));
        first.push(members.len() as i32);
    }
    [first, members]
}

impl<T: SimdReal> Products<T> {
    fn new(device: &Device, block: &BlockPlaces) -> Result<Self> {
        let plan = Plan::<T>::new(block);
        let values: Vec<(usize, Irrep, usize)> = components(&block.inputs).collect();
        let mut entries: Vec<[usize; 4]> = Vec::new();
        for group in &plan.groups {
            let component = values.iter().position(|&(_, irrep, m)| irrep == group.value && m == group.component).unwrap_or(0);
            entries.extend(group.targets.iter().map(|&(sum, coefficient)| [group.filter, component, coefficient, sum]));
        }
        let by = |count: usize, k: usize| lists(entries.len(), count, |e| entries[e][k]);
        let filters = block.filters.len();
        let [sums, components_of, filters_of] = [by(plan.accumulators, 3), by(values.len(), 1), by(filters, 0)];
        let (mut first_term, mut harmonics, mut numbers) = (vec![0], Vec::new(), Vec::new());
        for terms in plan.terms() {
            harmonics.extend(terms.iter().map(|&(k, _)| k as i32));
            numbers.extend(terms.iter().map(|&(_, c)| c));
            first_term.push(harmonics.len() as i32);
        }
        let outs: Vec<(usize, Irrep, usize)> = components(&block.messages).collect();
        let (mut first_of, mut list) = (vec![0], Vec::new());
        for &(_, irrep, m) in &outs {
            for path in plan.paths.iter().filter(|p| p.message == irrep) {
                list.extend([(path.first + m) as i32, path.kappa as i32]);
            }
            first_of.push(list.len() as i32 / 2);
        }
        let ints = |all: &mut dyn Iterator<Item = usize>| -> Result<Memory<i32>> {
            Ok(device.memory_of(&all.map(|x| x as i32).collect::<Vec<_>>())?)
        };
        let of = |list: &[i32]| device.memory_of(list);
        Ok(Products {
            entries: ints(&mut entries.iter().flatten().copied())?,
            lists: [of(&sums[0])?, of(&sums[1])?, of(&components_of[0])?, of(&components_of[1])?, of(&filters_of[0])?, of(&filters_of[1])?],
            counts: [entries.len(), plan.accumulators, values.len(), filters, plan.coefficients_len()],
            terms: [of(&first_term)?, of(&harmonics)?],
            values: device.memory_of(&numbers)?,
            component: ints(&mut values.iter().flat_map(|&(k, irrep, m)| [irrep.first, irrep.rows(), m, k]))?,
            irrep: ints(&mut block.inputs.iter().flat_map(|i| [i.first, i.rows()]))?,
            messages: [ints(&mut outs.iter().flat_map(|&(_, irrep, m)| [irrep.first, irrep.rows(), m]))?, of(&first_of)?, of(&list)?],
            path: ints(&mut plan.paths.iter().flat_map(|p| [p.kappa, p.first, p.message.first, p.message.rows()]))?,
            paths: plan.paths.len(),
            components: [values.len(), outs.len()],
            kappas: block.kappa_shape.iter().product(),
        })
    }

    fn accumulators(&self) -> usize {
        self.counts[1]
    }

    fn coefficients(&self) -> usize {
        self.counts[4]
    }

    fn entries(&self) -> Vec<Argument> {
        let lists = self.lists.iter().map(|l| l.at(0));
        std::iter::once(self.entries.at(0)).chain(lists).chain(self.counts.map(Argument::from)).collect()
    }
}

/// A block of the transformer: places, and what it leaves for the way back; names as in `equivariant/transformer.rs`.
struct Block<T> {
    places: BlockPlaces,
    products: Products<T>,
    modulation: Dense,
    qkv: Vec<Dense>,
    relative: Dense,
    filters: Vec<Dense>,
    out: Vec<Dense>,
    perceptrons: Vec<[Dense; 2]>,
    saved: SavedBlock<T>,
}

/// What a block leaves for the way back.
#[derive(Default)]
struct SavedBlock<T> {
    normed: Memory<T>,
    curved: Memory<T>,
    modulated: Memory<T>,
    x: Memory<T>,
    qkv_of: Memory<T>,
    weights: Memory<T>,
    sums: Memory<T>,
    messages: Memory<T>,
    attention: Memory<T>,
    middle: Memory<T>,
    x2: Memory<T>,
    hidden: Memory<T>,
    update: Memory<T>,
}

impl<T: SimdReal> Block<T> {
    fn new(device: &Device, places: &BlockPlaces) -> Result<Self> {
        Ok(Block {
            products: Products::new(device, places)?,
            modulation: (&places.modulation).into(),
            qkv: places.qkv.iter().map(Dense::from).collect(),
            relative: (&places.relative).into(),
            filters: places.filters.iter().map(Dense::from).collect(),
            out: places.out.iter().map(Dense::from).collect(),
            perceptrons: places.perceptrons.iter().map(|p| p.each_ref().map(Dense::from)).collect(),
            places: places.clone(),
            saved: SavedBlock::default(),
        })
    }

    /// Columns of the modulation.
    fn stride(&self) -> usize {
        self.modulation.outputs
    }
}

/// The network and its memory.
pub(in super::super) struct EquivariantNetwork<T> {
    pub(super) base: Base<T>,
    places: Places,
    gate: Perceptron<T>,
    readout_modulation: Dense,
    readout: Dense,
    blocks: Vec<Block<T>>,
    /// Features before each block, and after the last.
    features: Vec<Memory<T>>,
    saved: Saved<T>,
    back: Back<T>,
}

/// What the network leaves for the way back, beside its blocks.
#[derive(Default)]
struct Saved<T> {
    hop_input: Memory<T>,
    gates: Memory<T>,
    gated: Memory<T>,
    /// Of a block: what pairs meet, coefficients, the opening.
    relative: Memory<T>,
    filters: Memory<T>,
    coefficients: Memory<T>,
    opening: Memory<T>,
    opened: Memory<T>,
    readout_normed: Memory<T>,
    readout_before: Memory<T>,
    readout_modulated: Memory<T>,
    vectors: Memory<T>,
    last_normed: Memory<T>,
    out: Memory<T>,
}

/// Gradients.
#[derive(Default)]
struct Back<T> {
    out: Memory<T>,
    g: Memory<T>,
    gx: Memory<T>,
    gqkv: Memory<T>,
    messages: Memory<T>,
    hidden: Memory<T>,
    opening: Memory<T>,
    relative: Memory<T>,
    filters: Memory<T>,
    gated: Memory<T>,
    rows: Memory<T>,
    gates: Memory<T>,
    tokens: Memory<T>,
    sums: Memory<T>,
    kappa: Memory<T>,
    slopes: Memory<T>,
    modulation: Memory<T>,
}

impl<T: SimdReal> EquivariantNetwork<T> {
    /// All parameters are zero.
    pub(super) fn new(device: &Device, config: &DitmcConfig, layout: Arc<Layout>, places: &Places) -> Result<Self> {
        Ok(EquivariantNetwork {
            base: Base::new(device, config, layout)?,
            gate: Perceptron::new(&places.gate, false),
            readout_modulation: (&places.readout_modulation).into(),
            readout: (&places.readout).into(),
            blocks: places.blocks.iter().map(|b| Block::new(device, b)).collect::<Result<_>>()?,
            features: (0..=config.blocks).map(|_| Memory::default()).collect(),
            saved: Saved::default(),
            back: Back::default(),
            places: places.clone(),
        })
    }

    /// Components of an atom's features.
    fn components(&self) -> usize {
        2 * (self.places.degree + 1).pow(2)
    }

    fn degrees(&self) -> usize {
        self.places.degree + 1
    }

    /// Where an irrep of `atoms` atoms begins, in numbers of width `wide`.
    fn at(&self, irrep: Irrep, atoms: usize, wide: usize) -> usize {
        irrep.first * atoms * wide
    }

    /// Vectors of a parity.
    fn vector(&self, parity: usize) -> Irrep {
        Irrep { parity, degree: 1, first: parity * self.components() / 2 + 1 }
    }

    /// Brings structures to the device and makes room for what they need.
    pub(super) fn upload(&mut self, s: &Structures<T>) -> Result<()> {
        let (f, heads, degrees) = (self.base.features(), self.base.config.heads, self.degrees());
        let (atoms, pairs, rows, hops) = (s.atoms(), s.pairs(), s.rows(), s.hop_rows());
        let (all, wide) = (atoms * self.components(), f * self.base.config.expansion);
        let gate = degrees * RADIAL;
        let most = |of: fn(&Block<T>) -> usize| self.blocks.iter().map(of).max().unwrap_or(0);
        let inputs = most(|b| b.places.inputs.len());
        let accumulators = most(|b| b.products.accumulators());
        let kappas = most(|b| b.products.kappas);
        let coefficients = most(|b| b.products.coefficients());
        let columns = most(Block::stride).max(self.readout_modulation.outputs);
        let device = &self.base.launcher.device.clone();
        for b in &mut self.blocks {
            let stride = b.stride();
            for (memory, n) in [
                (&mut b.saved.normed, atoms * f),
                (&mut b.saved.curved, atoms * f),
                (&mut b.saved.modulated, atoms * stride),
                (&mut b.saved.x, all * f),
                (&mut b.saved.qkv_of, 3 * all * f),
                (&mut b.saved.weights, pairs * heads),
                (&mut b.saved.sums, atoms * b.products.counts[1] * f),
                (&mut b.saved.messages, all * f),
                (&mut b.saved.attention, all * f),
                (&mut b.saved.middle, all * f),
                (&mut b.saved.x2, all * f),
                (&mut b.saved.hidden, all * wide),
                (&mut b.saved.update, all * f),
            ] {
                memory.reserve(device, n)?;
            }
        }
        for memory in &mut self.features {
            memory.reserve(device, all * f)?;
        }
        self.gate.reserve(device, hops)?;
        let token = self.gate.first.inputs;
        let b = &mut self.back;
        for (memory, n) in [
            (&mut self.saved.hop_input, hops * token),
            (&mut self.saved.gates, hops * gate),
            (&mut self.saved.gated, rows * gate),
            (&mut self.saved.relative, rows * inputs * f),
            (&mut self.saved.filters, rows * degrees * f),
            (&mut self.saved.coefficients, pairs * coefficients),
            (&mut self.saved.opening, atoms * wide),
            (&mut self.saved.opened, all * wide),
            (&mut self.saved.readout_normed, atoms * f),
            (&mut self.saved.readout_before, atoms * self.readout_modulation.outputs),
            (&mut self.saved.readout_modulated, atoms * self.readout_modulation.outputs),
            (&mut self.saved.vectors, 3 * atoms * f),
            (&mut self.saved.last_normed, 3 * atoms * f),
            (&mut self.saved.out, 3 * atoms * PAD),
            (&mut b.out, 3 * atoms * PAD),
            (&mut b.g, all * f),
            (&mut b.gx, all * f),
            (&mut b.gqkv, 3 * all * f),
            (&mut b.messages, all * f),
            (&mut b.hidden, all * wide),
            (&mut b.opening, atoms * wide),
            (&mut b.relative, rows * inputs * f),
            (&mut b.filters, rows * degrees * f),
            (&mut b.gated, rows * gate),
            (&mut b.rows, rows * gate),
            (&mut b.gates, hops * gate),
            (&mut b.tokens, hops * token),
            (&mut b.sums, atoms * accumulators * f),
            (&mut b.kappa, atoms * kappas * f),
            (&mut b.slopes, pairs * heads),
            (&mut b.modulation, atoms * columns),
        ] {
            memory.reserve(device, n)?;
        }
        let mut parts = self.gate.room(hops).max(self.readout.room(3 * atoms)).max(self.readout_modulation.room(atoms));
        for b in &self.blocks {
            parts = parts.max(b.modulation.room(atoms)).max(b.relative.room(rows));
            parts = b.filters.iter().fold(parts, |most, d| most.max(d.room(rows)));
            let turning = b.qkv.iter().chain(&b.out).chain(b.perceptrons.iter().flatten());
            parts = turning.fold(parts, |most, d| most.max(d.room((2 * degrees - 1) * atoms)));
            parts = parts.max(crate::launch::Launcher::<T>::columns_room(atoms, b.products.kappas * f));
        }
        self.base.upload(s, (hops * token.max(gate)).max(atoms * columns), gate, parts)
    }

    /// The norm of features at `from`, with the scales from column `gamma` on and the shift of scalars at `beta`, or its way back, where
    /// gradients of the result are at `g` and are added to `back.g`.
    fn norm(
        &self,
        b: &Block<T>,
        irreps: &[Irrep],
        [gamma, beta]: [usize; 2],
        x: &Memory<T>,
        y: &Memory<T>,
        back: bool,
        atoms: usize,
    ) -> Result<()> {
        let f = self.base.features();
        let to = &self.back;
        for (k, &irrep) in irreps.iter().enumerate() {
            let at = self.at(irrep, atoms, f);
            let (column, shift) = ((gamma + k) * f, beta * f);
            if irrep.is_scalar() {
                let affine =
                    Affine { scale: b.saved.modulated.at(column), shift: b.saved.modulated.at(shift), plus: 1.0, stride: b.stride() };
                let sizes = [atoms, f];
                if back {
                    let gradients = [to.modulation.at(column), to.modulation.at(shift)];
                    self.base.norm_back(affine, sizes, [x.at(at), y.at(at), to.g.at(at)], gradients, b.stride(), true)?;
                } else {
                    self.base.norm(affine, sizes, x.at(at), y.at(at))?;
                }
                continue;
            }
            let factor = b.saved.modulated.at(column);
            if back {
                let gradients = [y.at(at), to.g.at(at), to.modulation.at(column)];
                self.scale("scale_back", [x.at(at), factor, Argument::NOWHERE], gradients, atoms, irrep.rows(), b.stride())?;
            } else {
                self.scale("scale", [x.at(at), factor, y.at(at)], [Argument::NOWHERE; 3], atoms, irrep.rows(), b.stride())?;
            }
        }
        Ok(())
    }

    fn scale(&self, kernel: &str, forward: [Argument; 3], back: [Argument; 3], atoms: usize, rows: usize, stride: usize) -> Result<()> {
        let sizes = [self.base.features(), rows, stride].map(Argument::from);
        let arguments = [&forward[..], &back, &sizes].concat();
        Ok(self.base.launcher.kernels.launch(kernel, atoms, Kernels::THREADS * size_of::<T>(), &arguments)?)
    }

    /// A gate of features with α in column `alpha`: see `gate`.
    #[allow(clippy::too_many_arguments)]
    fn gates(
        &self,
        kernel: &str,
        b: &Block<T>,
        alpha: usize,
        forward: [Argument; 3],
        gu: [Argument; 2],
        atoms: usize,
        rows: usize,
        add: bool,
    ) -> Result<()> {
        let f = self.base.features();
        let [x, u, y] = forward;
        let head = [b.saved.modulated.at(alpha * f), x, u, y, gu[0], gu[1], self.back.modulation.at(alpha * f)];
        let sizes = [atoms, f, b.stride(), rows, usize::from(add)].map(Argument::from);
        let threads = if kernel == "gate" { atoms * rows * f } else { atoms * f };
        self.base.launcher.each(kernel, threads, &[&head[..], &sizes].concat())
    }

    /// From structures to drifts.
    pub(super) fn forward(&self, s: &Structures<T>) -> Result<()> {
        let (atoms, f, on) = (s.atoms(), self.base.features(), &self.base.launcher);
        self.base.condition(s)?;
        for b in &self.blocks {
            self.base.norm(self.base.learned(&b.places.norm), [atoms, f], &self.base.memory.tokens, &b.saved.normed)?;
            self.base.curve("curve", atoms * f, &b.saved.normed, &b.saved.curved)?;
            on.apply(&b.modulation, atoms, &b.saved.curved, &b.saved.modulated, Finish::Set)?;
        }
        let wide = self.readout_modulation.outputs;
        self.base.norm(self.base.learned(&self.places.readout_norm), [atoms, f], &self.base.memory.tokens, &self.saved.readout_normed)?;
        on.apply(&self.readout_modulation, atoms, &self.saved.readout_normed, &self.saved.readout_before, Finish::Set)?;
        self.base.curve("curve", atoms * wide, &self.saved.readout_before, &self.saved.readout_modulated)?;
        // Gates of pairs.
        let (hops, token) = (s.hop_rows(), self.gate.first.inputs);
        let embedding = on.values.at(self.places.pair_embedding.start);
        self.base.rows_of("take_rows", Int::Hops, [embedding, self.saved.hop_input.at(0)], [hops, token], false)?;
        self.gate.apply(on, hops, &self.saved.hop_input, &self.saved.gates)?;
        on.each("gated", s.rows() * self.degrees() * RADIAL, &self.gated_arguments(s))?;
        let types = [on.values.at(self.base.layout.types.start), self.features[0].at(0)];
        self.base.rows("take_rows", Int::Types, types, atoms, false)?;
        for l in 0..self.blocks.len() {
            self.attend(s, l)?;
            self.transform(s, l)?;
        }
        let last = &self.features[self.blocks.len()];
        let n = 3 * atoms * f;
        on.each("clear", n, &[self.saved.vectors.at(0), n.into()])?;
        for parity in 0..2 {
            self.base.curve("add", n, last.at(self.at(self.vector(parity), atoms, f)), &self.saved.vectors)?;
        }
        let factor = self.saved.readout_modulated.at(f);
        self.scale("scale", [self.saved.vectors.at(0), factor, self.saved.last_normed.at(0)], [Argument::NOWHERE; 3], atoms, 3, wide)?;
        on.apply(&self.readout, 3 * atoms, &self.saved.last_normed, &self.saved.out, Finish::Set)
    }

    fn gated_arguments(&self, s: &Structures<T>) -> Vec<Argument> {
        let arrays = [&self.base.uploaded.radial, &self.saved.gates, &self.saved.gated, &self.back.gated, &self.back.rows].map(|m| m.at(0));
        [&[self.base.int(Int::HopOf)][..], &arrays, &[s.rows().into(), self.degrees().into()]].concat()
    }

    /// What pairs meet in a block.
    fn tables(&self, s: &Structures<T>, b: &Block<T>) -> Result<()> {
        let (rows, f, on) = (s.rows(), self.base.features(), &self.base.launcher);
        on.apply(&b.relative, rows, &self.saved.gated, &self.saved.relative, Finish::Set)?;
        for (d, filter) in b.filters.iter().enumerate() {
            on.apply(filter, rows, self.saved.gated.at(d * rows * RADIAL), self.saved.filters.at(d * rows * f), Finish::Set)?;
        }
        let [first, harmonics] = &b.products.terms;
        let ints = [self.base.int(Int::Rows), self.base.int(Int::Pairs), first.at(0), harmonics.at(0)];
        let arrays = [&self.base.uploaded.harmonics, &b.products.values, &self.saved.coefficients].map(|m| m.at(0));
        let sizes = [s.pairs(), b.products.coefficients(), self.degrees().pow(2)].map(Argument::from);
        on.each("coefficients", s.pairs() * b.products.coefficients(), &[&ints[..], &arrays, &sizes].concat())
    }

    fn geometry(&self, s: &Structures<T>, b: &Block<T>) -> Vec<Argument> {
        let ints = [Int::Pairs, Int::Atoms, Int::Rows, Int::RowEnds].map(|what| self.base.int(what));
        let p = &b.products;
        let arrays = [
            p.component.at(0),
            p.irrep.at(0),
            b.saved.qkv_of.at(0),
            self.saved.relative.at(0),
            self.saved.filters.at(0),
            self.saved.coefficients.at(0),
        ];
        let sizes = [s.atoms(), s.pairs(), s.rows(), self.base.features(), self.base.config.heads, b.places.inputs.len(), p.components[0]];
        [&ints[..], &arrays, &sizes.map(Argument::from)].concat()
    }

    /// `1/√(channels of a head · components)`.
    fn attention_scale(&self, b: &Block<T>) -> f64 {
        (self.base.config.heads as f64 / (self.base.features() * b.products.components[0]) as f64).sqrt()
    }

    /// From the features of block `l` to those after its attention.
    fn attend(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, b) = (s.atoms(), self.base.features(), &self.base.launcher, &self.blocks[l]);
        let (places, h) = (&b.places, &self.features[l]);
        self.norm(b, &places.inputs, [places.gamma1(), places.beta1()], h, &b.saved.x, false, atoms)?;
        for (dense, &irrep) in b.qkv.iter().zip(&places.inputs) {
            let at = self.at(irrep, atoms, f);
            on.apply(dense, irrep.rows() * atoms, b.saved.x.at(at), b.saved.qkv_of.at(3 * at), Finish::Set)?;
        }
        self.tables(s, b)?;
        let geometry = self.geometry(s, b);
        let weights = [b.saved.weights.at(0), self.attention_scale(b).into()];
        on.each("overlap", s.pairs() * self.base.config.heads, &[&geometry[..], &weights].concat())?;
        self.base.softmax("softmax", s, &b.saved.weights, Argument::NOWHERE, 0.0)?;
        let sums = [b.saved.weights.at(0), b.saved.sums.at(0)];
        let accumulators = b.products.accumulators();
        on.each("gather", atoms * accumulators * f, &[&geometry[..], &b.products.entries(), &sums].concat())?;
        let [component, first, list] = &b.products.messages;
        let arrays =
            [component.at(0), first.at(0), list.at(0), b.saved.sums.at(0), on.values.at(places.kappa.start), b.saved.messages.at(0)];
        let outs = b.products.components[1];
        let sizes = [atoms, f, outs, accumulators].map(Argument::from);
        on.each("messages", atoms * outs * f, &[&arrays[..], &sizes].concat())?;
        for (dense, &irrep) in b.out.iter().zip(&places.messages) {
            let at = self.at(irrep, atoms, f);
            on.apply(dense, irrep.rows() * atoms, b.saved.messages.at(at), b.saved.attention.at(at), Finish::Set)?;
        }
        for (k, &irrep) in places.features.iter().enumerate() {
            let at = self.at(irrep, atoms, f);
            let x = if places.inputs.contains(&irrep) { h.at(at) } else { Argument::NOWHERE };
            let u = b.saved.attention.at(self.at(places.messages[places.source(k)], atoms, f));
            self.gates("gate", b, places.alpha1() + k, [x, u, b.saved.middle.at(at)], [Argument::NOWHERE; 2], atoms, irrep.rows(), false)?;
        }
        Ok(())
    }

    /// The perceptron of block `l`.
    fn transform(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, b) = (s.atoms(), self.base.features(), &self.base.launcher, &self.blocks[l]);
        let (places, wide) = (&b.places, f * self.base.config.expansion);
        self.norm(b, &places.features, [places.gamma2(), places.beta2()], &b.saved.middle, &b.saved.x2, false, atoms)?;
        for (k, ([first, second], &irrep)) in b.perceptrons.iter().zip(&places.features).enumerate() {
            let (rows, at, inner) = (irrep.rows() * atoms, self.at(irrep, atoms, f), self.at(irrep, atoms, wide));
            on.apply(first, rows, b.saved.x2.at(at), b.saved.hidden.at(inner), Finish::Set)?;
            if k == 0 {
                // The scalars, which come first.
                on.each("opening", atoms * wide, &self.open(b, inner, atoms, 1))?;
            }
            on.each("open_features", rows * wide, &self.open(b, inner, atoms, irrep.rows()))?;
            on.apply(second, rows, self.saved.opened.at(inner), b.saved.update.at(at), Finish::Set)?;
        }
        for (k, &irrep) in places.features.iter().enumerate() {
            let at = self.at(irrep, atoms, f);
            let forward = [b.saved.middle.at(at), b.saved.update.at(at), self.features[l + 1].at(at)];
            self.gates("gate", b, places.alpha2() + k, forward, [Argument::NOWHERE; 2], atoms, irrep.rows(), false)?;
        }
        Ok(())
    }

    /// The opening of hidden features at `inner`.
    fn open(&self, b: &Block<T>, inner: usize, atoms: usize, rows: usize) -> [Argument; 9] {
        let wide = self.base.features() * self.base.config.expansion;
        let scalars = b.saved.hidden.at(self.at(b.places.features[0], atoms, wide));
        let (g, gopening) = (self.back.hidden.at(inner), self.back.opening.at(0));
        let arrays = [scalars, b.saved.hidden.at(inner), self.saved.opening.at(0), self.saved.opened.at(inner), g, gopening];
        [arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], arrays[5], atoms.into(), rows.into(), wide.into()]
    }

    /// The vectors of all atoms, as kernels see them.
    pub(super) fn vectors(&self, s: &Structures<T>) -> [Argument; 5] {
        [self.base.int(Int::First), self.saved.out.at(0), s.count().into(), (3 * PAD).into(), PAD.into()]
    }

    /// Where [`EquivariantNetwork::backward`] reads the gradients of vectors: cleared.
    pub(super) fn seed(&self, s: &Structures<T>) -> Result<Argument> {
        let n = 3 * s.atoms() * PAD;
        self.base.launcher.each("clear", n, &[self.back.out.at(0), n.into()])?;
        Ok(self.back.out.at(0))
    }

    /// Gradients of all parameters from those of vectors; `elements` are those that there are.
    pub(super) fn backward(&self, s: &Structures<T>, elements: &Memory<i32>) -> Result<()> {
        let (atoms, f, on, back) = (s.atoms(), self.base.features(), &self.base.launcher, &self.back);
        let (n, all, wide) = (3 * atoms * f, atoms * self.components() * f, self.readout_modulation.outputs);
        let scratch = &self.base.memory.wide[0];
        on.back(&self.readout, 3 * atoms, &back.out, &back.gx, Finish::Set)?;
        on.gradient(&self.readout, 3 * atoms, &back.out, &self.saved.last_normed)?;
        for (memory, n) in [(&back.modulation, atoms * wide), (&back.gqkv, n), (&back.g, all)] {
            on.each("clear", n, &[memory.at(0), n.into()])?;
        }
        let gradients = [back.gx.at(0), back.gqkv.at(0), back.modulation.at(f)];
        self.scale(
            "scale_back",
            [self.saved.vectors.at(0), self.saved.readout_modulated.at(f), Argument::NOWHERE],
            gradients,
            atoms,
            3,
            wide,
        )?;
        // Vectors of both parities were added up; nothing else is read.
        for parity in 0..2 {
            self.base.curve("add", n, &back.gqkv, back.g.at(self.at(self.vector(parity), atoms, f)))?;
        }
        self.base.curve("curve_back", atoms * wide, &self.saved.readout_before, &back.modulation)?;
        on.back(&self.readout_modulation, atoms, &back.modulation, scratch, Finish::Set)?;
        on.gradient(&self.readout_modulation, atoms, &back.modulation, &self.saved.readout_normed)?;
        let norm = [&self.base.memory.tokens, scratch, &self.base.memory.gradient];
        self.base.learned_back(&self.places.readout_norm, atoms, norm, &self.base.memory.wide[1])?;
        let gated = s.rows() * self.degrees() * RADIAL;
        on.each("clear", gated, &[back.gated.at(0), gated.into()])?;
        for l in (0..self.blocks.len()).rev() {
            self.transform_back(s, l)?;
            self.attend_back(s, l)?;
            self.modulation_back(s, l)?;
        }
        // Gates.
        let (hops, gate) = (s.hop_rows(), self.degrees() * RADIAL);
        on.each("gated_back", gated, &self.gated_arguments(s))?;
        self.base.sum_by_hops(s, &back.rows, gate, back.gates.at(0), gate)?;
        self.gate.back(on, hops, &back.gates, &self.saved.hop_input, scratch, Some(&back.tokens))?;
        // Rows that no pair has met get nothing.
        let embedding = &self.places.pair_embedding;
        let to = on.gradient.at(embedding.start);
        on.each("clear", embedding.len(), &[to, embedding.len().into()])?;
        self.base.rows_of("give_rows", Int::Hops, [to, back.tokens.at(0)], [hops, self.gate.first.inputs], false)?;
        self.base.backward(s, &back.g, elements)
    }

    /// The perceptron of block `l`: from the gradient of its result to that of what comes after attention.
    fn transform_back(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, back, b) = (s.atoms(), self.base.features(), &self.base.launcher, &self.back, &self.blocks[l]);
        let (places, wide) = (&b.places, f * self.base.config.expansion);
        let scalars = self.at(places.features[0], atoms, wide);
        on.each("opening", atoms * wide, &self.open(b, scalars, atoms, 1))?;
        on.each("clear", atoms * wide, &[back.opening.at(0), (atoms * wide).into()])?;
        for (k, ([first, second], &irrep)) in b.perceptrons.iter().zip(&places.features).enumerate().rev() {
            let (rows, at, inner) = (irrep.rows() * atoms, self.at(irrep, atoms, f), self.at(irrep, atoms, wide));
            let forward = [Argument::NOWHERE, b.saved.update.at(at), Argument::NOWHERE];
            self.gates("gate_back", b, places.alpha2() + k, forward, [back.g.at(at), back.gx.at(at)], atoms, irrep.rows(), false)?;
            on.back(second, rows, back.gx.at(at), back.hidden.at(inner), Finish::Set)?;
            on.each("open_features_back", atoms * wide, &self.open(b, inner, atoms, irrep.rows()))?;
            on.gradient(second, rows, back.gx.at(at), self.saved.opened.at(inner))?;
            if k == 0 {
                // Every other irrep has added to the opening by now.
                on.each("opening_back", atoms * wide, &self.open(b, inner, atoms, 1))?;
            }
            on.back(first, rows, back.hidden.at(inner), back.gqkv.at(at), Finish::Set)?;
            on.gradient(first, rows, back.hidden.at(inner), b.saved.x2.at(at))?;
        }
        self.norm(b, &places.features, [places.gamma2(), places.beta2()], &b.saved.middle, &back.gqkv, true, atoms)
    }

    /// The attention of block `l`.
    fn attend_back(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, back, b) = (s.atoms(), self.base.features(), &self.base.launcher, &self.back, &self.blocks[l]);
        let (places, products, rows) = (&b.places, &b.products, s.rows());
        for (k, &irrep) in places.features.iter().enumerate() {
            let from = self.at(places.messages[places.source(k)], atoms, f);
            let g = [back.g.at(self.at(irrep, atoms, f)), back.gx.at(from)];
            let forward = [Argument::NOWHERE, b.saved.attention.at(from), Argument::NOWHERE];
            // A second parity's share is added to the first one's.
            let shared = k >= places.messages.len();
            self.gates("gate_back", b, places.alpha1() + k, forward, g, atoms, irrep.rows(), shared)?;
        }
        for (dense, &irrep) in b.out.iter().zip(&places.messages) {
            let (rows, at) = (irrep.rows() * atoms, self.at(irrep, atoms, f));
            on.back(dense, rows, back.gx.at(at), back.messages.at(at), Finish::Set)?;
            on.gradient(dense, rows, back.gx.at(at), b.saved.messages.at(at))?;
        }
        self.tables(s, b)?;
        let kappas = products.kappas * f;
        on.each("clear", atoms * kappas, &[back.kappa.at(0), (atoms * kappas).into()])?;
        let arrays = [
            products.path.at(0),
            b.saved.sums.at(0),
            on.values.at(places.kappa.start),
            back.messages.at(0),
            back.sums.at(0),
            back.kappa.at(0),
        ];
        let sizes = [atoms, f, products.paths, products.accumulators(), products.kappas].map(Argument::from);
        on.each("messages_back", atoms * products.paths * f, &[&arrays[..], &sizes].concat())?;
        on.sum_columns(atoms, kappas, &back.kappa, places.kappa.start)?;
        let arrays = [&b.saved.weights, &back.sums, &back.slopes, &back.gqkv, &back.filters, &back.relative].map(|m| m.at(0));
        let arguments = [&self.geometry(s, b)[..], &products.entries(), &arrays].concat();
        on.each("weights_back", s.pairs() * self.base.config.heads, &arguments)?;
        self.base.softmax("softmax_back", s, &b.saved.weights, back.slopes.at(0), self.attention_scale(b))?;
        on.each("values_back", atoms * products.components[0] * f, &arguments)?;
        on.each("filters_back", b.filters.len() * rows * f, &arguments)?;
        on.each("relative_back", rows * places.inputs.len() * f, &arguments)?;
        on.back(&b.relative, rows, &back.relative, &back.gated, Finish::Add)?;
        on.gradient(&b.relative, rows, &back.relative, &self.saved.gated)?;
        for (d, filter) in b.filters.iter().enumerate() {
            let (gated, part) = (d * rows * RADIAL, back.filters.at(d * rows * f));
            on.back(filter, rows, part, back.gated.at(gated), Finish::Add)?;
            on.gradient(filter, rows, part, self.saved.gated.at(gated))?;
        }
        for (dense, &irrep) in b.qkv.iter().zip(&places.inputs) {
            let (rows, at) = (irrep.rows() * atoms, self.at(irrep, atoms, f));
            on.back(dense, rows, back.gqkv.at(3 * at), back.gx.at(at), Finish::Set)?;
            on.gradient(dense, rows, back.gqkv.at(3 * at), b.saved.x.at(at))?;
        }
        self.norm(b, &places.inputs, [places.gamma1(), places.beta1()], &self.features[l], &back.gx, true, atoms)
    }

    /// From the gradient of a block's modulation to that of the condition.
    fn modulation_back(&self, s: &Structures<T>, l: usize) -> Result<()> {
        let (atoms, f, on, back, b) = (s.atoms(), self.base.features(), &self.base.launcher, &self.back, &self.blocks[l]);
        let [wide, other, scratch, _] = &self.base.memory.wide;
        on.back(&b.modulation, atoms, &back.modulation, wide, Finish::Set)?;
        self.base.curve("curve_back", atoms * f, &b.saved.normed, wide)?;
        on.gradient(&b.modulation, atoms, &back.modulation, &b.saved.curved)?;
        self.base.learned_back(&b.places.norm, atoms, [&self.base.memory.tokens, wide, other], scratch)?;
        self.base.curve("add", atoms * f, other, &self.base.memory.gradient)
    }
}
