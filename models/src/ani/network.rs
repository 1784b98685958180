//! The atomic networks: affine layers with CELU between them, forward and backward.
//!
//! ```text
//! h⁰ = AEV,   hˡ⁺¹ = celu(Wˡ hˡ + bˡ),   e = wᴸ · hᴸ + bᴸ,   celu(x) = max(x, 0) + α (exp(min(x, 0)/α) − 1),   α = 0.1
//! ∂e/∂hˡ = (Wˡ)ᵀ (celu′ ⊙ ∂e/∂hˡ⁺¹),   celu′ = 1 + min(hˡ⁺¹, 0)/α
//! ```
//!
//! Lanes run over *rows* (atoms of one element) and weights are broadcast, so that one packed copy serves both directions
//! and stays in the second-level cache between them. Every result is one chain of multiply-adds in the order of its inputs,
//! whatever the number of rows: a row has the same bits alone and in any batch.

use super::model::Model;
use super::parameters::WIDTH;
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal};

/// α of CELU.
const ALPHA: f64 = 0.1;
/// Weights are kept in square blocks of this size, `[input][output]`.
const BLOCK: usize = 8;
type Block<T> = [[T; BLOCK]; BLOCK];

/// The most vectors of rows that are worked on at once: as many as leave all sums in registers.
pub(crate) fn most_vectors<T>(lanes: usize) -> usize {
    if wide(lanes * size_of::<T>()) { 3 } else { 1 }
}

/// Whether vectors of `bytes` bytes come with 32 registers.
const fn wide(bytes: usize) -> bool {
    bytes == 64 || cfg!(target_arch = "aarch64")
}

/// Where a hidden layer lies in the packed data. Widths are padded to multiples of [`WIDTH`] by zeros, which stay zero.
struct HiddenLayer {
    inputs: usize,
    outputs: usize,
    weights: usize,
    bias: usize,
}

/// The networks of one element: the same shape for all members.
struct Shape {
    hidden: Vec<HiddenLayer>,
    /// Weights of the last layer, and after them its bias.
    last: usize,
    last_inputs: usize,
    /// Scalars of one member.
    len: usize,
}

/// Weights of some of a model's elements for kernels, with the columns of their features alone.
pub(crate) struct Packed<T> {
    elements: Vec<usize>,
    features: usize,
    members: usize,
    shapes: Vec<Shape>,
    /// `[elements, members]`.
    data: Vec<AlignedBuffer<T>>,
}

fn padded(width: usize) -> usize {
    width.next_multiple_of(WIDTH)
}

impl<T: scorefield_integrators::Real> Packed<T> {
    /// Packs the networks of `elements` (ascending).
    pub(crate) fn new(model: &Model, elements: &[usize]) -> Self {
        let columns = model.parameters.symmetry.columns(model.networks.len(), elements);
        let mut shapes = Vec::with_capacity(elements.len());
        let mut data = Vec::with_capacity(elements.len() * model.members);
        for &e in elements {
            let layers = &model.networks[e];
            let Some((last_layer, hidden_layers)) = layers.split_last() else { continue };
            let mut len = 0;
            let mut inputs = columns.len();
            let mut hidden = Vec::with_capacity(hidden_layers.len());
            for layer in hidden_layers {
                let outputs = padded(layer.outputs);
                hidden.push(HiddenLayer { inputs, outputs, weights: len, bias: len + inputs * outputs });
                len += inputs * outputs + outputs;
                inputs = outputs;
            }
            let shape = Shape { hidden, last: len, last_inputs: inputs, len: len + inputs + 1 };
            for member in 0..model.members {
                let mut to = AlignedBuffer::<T>::zeros(shape.len);
                for (l, (layer, place)) in hidden_layers.iter().zip(&shape.hidden).enumerate() {
                    let weight = &layer.weight[member * layer.outputs * layer.inputs..][..layer.outputs * layer.inputs];
                    let bias = &layer.bias[member * layer.outputs..][..layer.outputs];
                    let used = if l == 0 { columns.len() } else { layer.inputs };
                    for (o, row) in weight.chunks_exact(layer.inputs).enumerate() {
                        for i in 0..used {
                            let block = (o / BLOCK) * (place.inputs / BLOCK) + i / BLOCK;
                            let value = row[if l == 0 { columns[i] } else { i }];
                            to[place.weights + (block * BLOCK + i % BLOCK) * BLOCK + o % BLOCK] = T::from_f64(value.into());
                        }
                        to[place.bias + o] = T::from_f64(bias[o].into());
                    }
                }
                for i in 0..last_layer.inputs {
                    to[shape.last + i] = T::from_f64(last_layer.weight[member * last_layer.inputs + i].into());
                }
                to[shape.last + shape.last_inputs] = T::from_f64(last_layer.bias[member].into());
                data.push(to);
            }
            shapes.push(shape);
        }
        Packed { elements: elements.to_vec(), features: columns.len(), members: model.members, shapes, data }
    }

    /// Which elements of the model these are.
    pub(crate) fn elements(&self) -> &[usize] {
        &self.elements
    }

    /// Features per atom.
    pub(crate) fn features(&self) -> usize {
        self.features
    }

    /// Activations per row that [`Pass`] needs.
    pub(crate) fn activations(&self) -> usize {
        self.shapes.iter().map(|s| s.hidden.iter().map(|h| h.outputs).sum()).max().unwrap_or(0)
    }
}

/// One member's energies of one block of rows, and their gradients with respect to the features.
pub(crate) struct Pass<'a, T> {
    pub(crate) packed: &'a Packed<T>,
    /// Index into the packed elements.
    pub(crate) slot: usize,
    pub(crate) member: usize,
    /// Vectors of rows.
    pub(crate) vectors: usize,
    /// `[features, rows]`.
    pub(crate) x: &'a [T],
    /// `[rows]`.
    pub(crate) energy: &'a mut [T],
    /// `[features, rows]`, to which this member's gradient is added.
    pub(crate) sum: &'a mut [T],
    /// The gradient itself, where it is wanted.
    pub(crate) gradient: Option<&'a mut [T]>,
    /// Scratch.
    pub(crate) hidden: &'a mut [T],
}

impl<T: SimdReal> WithSimd for Pass<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        if wide(size_of::<T::Of<S>>()) {
            match self.vectors {
                3 => return self.run::<T::Of<S>, 3>(t),
                2 => return self.run::<T::Of<S>, 2>(t),
                _ => {}
            }
        }
        self.run::<T::Of<S>, 1>(t);
    }
}

/// What becomes of the sums of a product.
trait Finish {
    /// The product is with the transposed weights.
    const TRANSPOSED: bool;
    /// The new value from the one it replaces and the sum.
    fn finish<V: Lanes>(t: V::Token, old: V, sum: V) -> V;
}
/// Layer of the forward pass: CELU of the sums (which began with the bias).
struct Activate;
/// Layer of the backward pass: times the slope of what is overwritten.
struct Slope;
/// Last layer of the backward pass: added up over members.
struct Collect;
impl Finish for Activate {
    const TRANSPOSED: bool = false;
    #[inline(always)]
    fn finish<V: Lanes>(t: V::Token, _old: V, sum: V) -> V {
        celu(t, sum)
    }
}
impl Finish for Slope {
    const TRANSPOSED: bool = true;
    #[inline(always)]
    fn finish<V: Lanes>(t: V::Token, old: V, sum: V) -> V {
        sum * slope(t, old)
    }
}
impl Finish for Collect {
    const TRANSPOSED: bool = true;
    #[inline(always)]
    fn finish<V: Lanes>(_t: V::Token, old: V, sum: V) -> V {
        old + sum
    }
}

#[inline(always)]
fn celu<V: Lanes>(t: V::Token, x: V) -> V {
    let zero = V::zero(t);
    let e = (x.min(zero) * V::lit(t, 1.0 / ALPHA)).exp();
    x.max(zero) + e.mul_add(V::lit(t, ALPHA), V::lit(t, -ALPHA))
}

/// CELU's derivative where its value is `h`.
#[inline(always)]
fn slope<V: Lanes>(t: V::Token, h: V) -> V {
    h.min(V::zero(t)).mul_add(V::lit(t, 1.0 / ALPHA), V::lit(t, 1.0))
}

/// `y = finish(W x + bias)`, or with `Wᵀ`: `x` is `[from blocks]` and `y` `[to blocks]`, in each block 8 features of `R`
/// vectors of rows. `N` blocks of results are summed at once; `to` is a multiple of `N`.
#[inline(always)]
fn product<V: Lanes, F: Finish, const R: usize, const N: usize>(
    t: V::Token,
    weights: &[Block<V::Scalar>],
    bias: &[[V::Scalar; BLOCK]],
    x: &[[[V; R]; BLOCK]],
    y: &mut [[[V; R]; BLOCK]],
    mut gradient: Option<&mut [[[V; R]; BLOCK]]>,
) {
    let (from, to) = (x.len(), y.len());
    let mut first = 0;
    while first + N <= to {
        let mut sums = [[[V::zero(t); R]; BLOCK]; N];
        if !F::TRANSPOSED {
            for n in 0..N {
                let b = &bias[first + n];
                for j in 0..BLOCK {
                    sums[n][j] = [V::splat(t, b[j]); R];
                }
            }
        }
        for i in 0..from {
            let xi = &x[i];
            for k in 0..BLOCK {
                for n in 0..N {
                    let w = if F::TRANSPOSED { &weights[i * to + first + n] } else { &weights[(first + n) * from + i] };
                    for j in 0..BLOCK {
                        let w = V::splat(t, if F::TRANSPOSED { w[j][k] } else { w[k][j] });
                        for v in 0..R {
                            sums[n][j][v] = w.mul_add(xi[k][v], sums[n][j][v]);
                        }
                    }
                }
            }
        }
        for n in 0..N {
            let out = &mut y[first + n];
            for j in 0..BLOCK {
                for v in 0..R {
                    let s = sums[n][j][v];
                    out[j][v] = F::finish(t, out[j][v], s);
                }
            }
            if let Some(g) = gradient.as_deref_mut() {
                g[first + n] = sums[n];
            }
        }
        first += N;
    }
}

impl<T: SimdReal> Pass<'_, T> {
    #[inline(always)]
    fn run<V: Lanes<Scalar = T>, const R: usize>(self, t: V::Token) {
        let shape = &self.packed.shapes[self.slot];
        let data: &[T] = &self.packed.data[self.slot * self.packed.members + self.member];
        let x = blocks::<V, R>(t, self.x);
        let hidden = V::slice_mut(t, self.hidden).as_chunks_mut::<R>().0.as_chunks_mut::<BLOCK>().0;
        let depth = shape.hidden.len();

        let mut start = 0;
        let mut before = 0;
        for (l, layer) in shape.hidden.iter().enumerate() {
            let (done, rest) = hidden.split_at_mut(start);
            let input = if l == 0 { x } else { &done[before..] };
            let output = &mut rest[..layer.outputs / BLOCK];
            let weights = matrix(&data[layer.weights..layer.bias]);
            let bias = data[layer.bias..layer.bias + layer.outputs].as_chunks().0;
            if R == 1 && wide(size_of::<V>()) {
                product::<V, Activate, R, 2>(t, weights, bias, input, output, None);
            } else {
                product::<V, Activate, R, 1>(t, weights, bias, input, output, None);
            }
            before = start;
            start += layer.outputs / BLOCK;
        }

        // e = w · h + b; then h is replaced by celu′(h) ∂e/∂h.
        let last = &data[shape.last..shape.last + shape.last_inputs];
        let mut energy = [V::splat(t, data[shape.last + shape.last_inputs]); R];
        for (h, w) in hidden[before..start].as_flattened_mut().iter_mut().zip(last) {
            let w = V::splat(t, *w);
            for v in 0..R {
                energy[v] = w.mul_add(h[v], energy[v]);
                h[v] = w * slope(t, h[v]);
            }
        }
        V::slice_mut(t, self.energy)[..R].copy_from_slice(&energy);

        let mut end = start;
        for l in (0..depth).rev() {
            let layer = &shape.hidden[l];
            let weights = matrix(&data[layer.weights..layer.bias]);
            let (done, rest) = hidden[..end].split_at_mut(end - layer.outputs / BLOCK);
            end = done.len();
            if l > 0 {
                let output = &mut done[end - layer.inputs / BLOCK..];
                if R == 1 && wide(size_of::<V>()) {
                    product::<V, Slope, R, 2>(t, weights, &[], rest, output, None);
                } else {
                    product::<V, Slope, R, 1>(t, weights, &[], rest, output, None);
                }
            }
        }
        if let Some(layer) = shape.hidden.first() {
            let weights = matrix(&data[layer.weights..layer.bias]);
            let output = V::slice_mut(t, self.sum).as_chunks_mut::<R>().0.as_chunks_mut::<BLOCK>().0;
            let gradient = self.gradient.map(|g| V::slice_mut(t, g).as_chunks_mut::<R>().0.as_chunks_mut::<BLOCK>().0);
            let rest = &hidden[..layer.outputs / BLOCK];
            if R == 1 && wide(size_of::<V>()) {
                product::<V, Collect, R, 2>(t, weights, &[], rest, output, gradient);
            } else {
                product::<V, Collect, R, 1>(t, weights, &[], rest, output, gradient);
            }
        }
    }
}

/// `[features, rows]` scalars as blocks of features of vectors of rows.
#[inline(always)]
fn blocks<V: Lanes, const R: usize>(t: V::Token, from: &[V::Scalar]) -> &[[[V; R]; BLOCK]] {
    V::slice(t, from).as_chunks::<R>().0.as_chunks::<BLOCK>().0
}

#[inline(always)]
fn matrix<T>(weights: &[T]) -> &[Block<T>] {
    weights.as_chunks().0.as_chunks().0
}
