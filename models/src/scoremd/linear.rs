//! Dense layers over rows, their transposes and the gradients of their weights.

use super::config::Layout;
use super::kernels::{kernel, row, row_mut};
use crate::matrix::{Outer, PAD, Panels, Start, add_columns, padded};
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal, dispatch};

/// `y = W x + b` with `W [outputs, inputs]`.
#[derive(Clone, Debug)]
pub(super) struct Linear<T> {
    inputs: usize,
    outputs: usize,
    /// Places in the flat array of parameters.
    weight: usize,
    bias: usize,
    forward: Panels<T>,
    backward: Panels<T>,
    bias_values: AlignedBuffer<T>,
    /// Gradient of a weight whose rows are not whole vectors.
    ragged: AlignedBuffer<T>,
}

/// Place of a tensor, which the layout is known to have.
pub(super) fn place(layout: &Layout, name: &str) -> usize {
    layout.find(name).map_or_else(|| unreachable!("no tensor {name}"), |e| e.offset)
}

impl<T: SimdReal> Linear<T> {
    /// The layer `name` of a layout, without its parameters.
    pub(super) fn new(layout: &Layout, name: &str) -> Self {
        let weight = layout.find(&format!("{name}.weight")).unwrap_or_else(|| unreachable!("no layer {name}"));
        let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
        Linear {
            inputs,
            outputs,
            weight: weight.offset,
            bias: place(layout, &format!("{name}.bias")),
            forward: Panels::zeros(inputs, outputs),
            backward: Panels::zeros(outputs, inputs),
            bias_values: AlignedBuffer::zeros(padded(outputs)),
            ragged: AlignedBuffer::default(),
        }
    }

    /// Takes over parameters.
    pub(super) fn load(&mut self, parameters: &[T]) {
        let weight = &parameters[self.weight..][..self.outputs * self.inputs];
        self.forward.set_transposed(0, 0, self.inputs, weight);
        self.backward.set(0, 0, self.inputs, weight);
        self.bias_values[..self.outputs].copy_from_slice(&parameters[self.bias..][..self.outputs]);
    }

    /// `y = W x`, with the bias in the first `biased` of `m` rows.
    pub(super) fn forward(&self, m: usize, biased: usize, x: &[T], x_stride: usize, y: &mut [T], y_stride: usize) {
        self.forward.apply(m, x, x_stride, Start::Bias(&self.bias_values, biased), y, y_stride);
    }

    /// `x = Wᵀ g`.
    pub(super) fn backward(&self, m: usize, g: &[T], g_stride: usize, x: &mut [T], x_stride: usize) {
        self.backward.apply(m, g, g_stride, Start::Zero, x, x_stride);
    }

    /// Adds `gᵀ x` over `m` rows to the weight's gradient and the sum of the first `biased` rows of `g` to the bias'.
    pub(super) fn gradient(&mut self, m: usize, biased: usize, g: &[T], g_stride: usize, x: &[T], x_stride: usize, gradient: &mut [T]) {
        let (outputs, inputs) = (self.outputs, self.inputs);
        add_columns(biased, g, g_stride, &mut gradient[self.bias..][..outputs]);
        let weight = &mut gradient[self.weight..][..outputs * inputs];
        if inputs.is_multiple_of(PAD) {
            Outer { m, g, g_stride, outputs, x, x_stride, inputs, c: weight, c_stride: inputs }.run();
            return;
        }
        let wide = padded(inputs);
        self.ragged.reserve(outputs * wide);
        self.ragged.fill(T::default());
        Outer { m, g, g_stride, outputs, x, x_stride, inputs: wide, c: &mut self.ragged, c_stride: wide }.run();
        for (to, from) in weight.chunks_exact_mut(inputs).zip(self.ragged.chunks_exact(wide)) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to += from;
            }
        }
    }

    /// Width of a row that goes in.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Place of the weight among the parameters.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Place of the bias.
    pub(super) fn bias(&self) -> usize {
        self.bias
    }
}

kernel! {
    /// `y_r = w · x_r`.
    Dots {
        m: usize,
        width: usize,
        w: &'a [T],
        x: &'a [T],
        stride: usize,
        y: &'a mut [T],
    } => dots
}

#[inline(always)]
fn dots<V: Lanes>(t: V::Token, op: Dots<'_, V::Scalar>) {
    let w = V::slice(t, &op.w[..op.width]);
    for (r, y) in op.y[..op.m].iter_mut().enumerate() {
        let mut sum = V::zero(t);
        for (&w, &x) in w.iter().zip(row::<V>(t, op.x, r, op.stride, op.width)) {
            sum = w.mul_add(x, sum);
        }
        *y = sum.total();
    }
}

kernel! {
    /// `x_r = c_r w`: the gradient of [`Dots`] where `c` is that of `y`.
    Spread {
        m: usize,
        width: usize,
        c: &'a [T],
        w: &'a [T],
        x: &'a mut [T],
        stride: usize,
    } => spread
}

#[inline(always)]
fn spread<V: Lanes>(t: V::Token, op: Spread<'_, V::Scalar>) {
    let w = V::slice(t, &op.w[..op.width]);
    for (r, &c) in op.c[..op.m].iter().enumerate() {
        let c = V::splat(t, c);
        for (x, &w) in row_mut::<V>(t, op.x, r, op.stride, op.width).iter_mut().zip(w) {
            *x = c * w;
        }
    }
}

kernel! {
    /// `w += Σ_r c_r x_r`: the gradient of the weight of [`Dots`].
    Collect {
        m: usize,
        width: usize,
        c: &'a [T],
        x: &'a [T],
        stride: usize,
        w: &'a mut [T],
    } => collect
}

#[inline(always)]
fn collect<V: Lanes>(t: V::Token, op: Collect<'_, V::Scalar>) {
    let w = V::slice_mut(t, &mut op.w[..op.width]);
    for (r, &c) in op.c[..op.m].iter().enumerate() {
        let c = V::splat(t, c);
        for (w, &x) in w.iter_mut().zip(row::<V>(t, op.x, r, op.stride, op.width)) {
            *w = c.mul_add(x, *w);
        }
    }
}
