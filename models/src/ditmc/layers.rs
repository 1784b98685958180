//! Dense layers, perceptrons and layer norms over rows, forward and backward; weights are `[in, out]`.

use super::kernels::{Activation, Curve, CurveBack, Norm, NormBack};
use super::layout::{DensePlace, NormPlace, PerceptronPlace};
use crate::matrix::{Outer, Panels, Start, add_columns};
use scorefield_integrators::simd::{SimdReal, dispatch};

/// A dense layer, packed for products.
pub(super) struct Dense<T> {
    forward: Panels<T>,
    /// Only for training.
    backward: Option<Panels<T>>,
    pub(super) place: DensePlace,
}

impl<T: SimdReal> Dense<T> {
    pub(super) fn new(place: &DensePlace, training: bool) -> Self {
        let DensePlace { inputs, outputs, .. } = *place;
        Dense { forward: Panels::zeros(inputs, outputs), backward: training.then(|| Panels::zeros(outputs, inputs)), place: place.clone() }
    }

    pub(super) fn load(&mut self, values: &[T]) {
        let weight = &values[self.place.weight.clone()];
        self.forward.set(0, 0, self.place.outputs, weight);
        if let Some(backward) = &mut self.backward {
            backward.set_transposed(0, 0, self.place.outputs, weight);
        }
    }

    /// `y = x W + b` for `m` rows.
    pub(super) fn apply(&self, values: &[T], m: usize, x: &[T], y: &mut [T]) {
        let start = self.place.bias.as_ref().map_or(Start::Zero, |b| Start::Bias(&values[b.clone()], m));
        self.forward.apply(m, x, self.place.inputs, start, y, self.place.outputs);
    }

    /// `gx = g Wᵀ`.
    pub(super) fn back(&self, m: usize, g: &[T], gx: &mut [T]) {
        if let Some(backward) = &self.backward {
            backward.apply(m, g, self.place.outputs, Start::Zero, gx, self.place.inputs);
        }
    }

    /// Adds the gradients of weight and bias.
    pub(super) fn gradient(&self, m: usize, g: &[T], x: &[T], gradient: &mut [T]) {
        let DensePlace { weight, bias, inputs, outputs } = &self.place;
        let (inputs, outputs) = (*inputs, *outputs);
        let c = &mut gradient[weight.clone()];
        // The gradient of the weight is xᵀ g: the roles of both are those of the other layout.
        Outer { m, g: x, g_stride: inputs, outputs: inputs, x: g, x_stride: outputs, inputs: outputs, c, c_stride: outputs }.run();
        if let Some(bias) = bias {
            add_columns(m, g, outputs, &mut gradient[bias.clone()]);
        }
    }
}

/// Two dense layers with a curve between.
pub(super) struct Perceptron<T> {
    pub(super) first: Dense<T>,
    pub(super) second: Dense<T>,
    activation: Activation,
}

impl<T: SimdReal> Perceptron<T> {
    pub(super) fn new(places: &PerceptronPlace, activation: Activation, training: bool) -> Self {
        Perceptron { first: Dense::new(&places[0], training), second: Dense::new(&places[1], training), activation }
    }

    pub(super) fn load(&mut self, values: &[T]) {
        self.first.load(values);
        self.second.load(values);
    }

    /// `y`, and in `h` what comes before the curve; `s` is scratch as large as `h`.
    pub(super) fn apply(&self, values: &[T], m: usize, x: &[T], h: &mut [T], s: &mut [T], y: &mut [T]) {
        let n = m * self.first.place.outputs;
        self.first.apply(values, m, x, h);
        dispatch(Curve { activation: self.activation, x: &h[..n], y: &mut s[..n] });
        self.second.apply(values, m, s, y);
    }

    /// Gradients of parameters, and of the input where `gx` is wanted; `s` and `gs` are scratch as large as `h`.
    pub(super) fn back(&self, m: usize, g: &[T], x: &[T], h: &[T], scratch: [&mut [T]; 2], gx: Option<&mut [T]>, gradient: &mut [T]) {
        let n = m * self.first.place.outputs;
        let [s, gs] = scratch;
        self.second.back(m, g, gs);
        dispatch(CurveBack { activation: self.activation, x: &h[..n], g: &mut gs[..n], y: &mut s[..n] });
        if let Some(gx) = gx {
            self.first.back(m, gs, gx);
        }
        self.second.gradient(m, g, s, gradient);
        self.first.gradient(m, gs, x, gradient);
    }
}

/// A layer norm with scale and bias.
pub(super) struct LayerNorm {
    place: NormPlace,
}

impl LayerNorm {
    pub(super) fn new(place: &NormPlace) -> Self {
        LayerNorm { place: place.clone() }
    }

    pub(super) fn width(&self) -> usize {
        self.place.scale.len()
    }

    /// `y` from `x`, `m` rows.
    pub(super) fn apply<T: SimdReal>(&self, values: &[T], m: usize, x: &[T], y: &mut [T]) {
        let width = self.width();
        let (scale, bias) = (&values[self.place.scale.clone()], &values[self.place.bias.clone()]);
        dispatch(Norm { rows: m, width, x, scale, bias, y });
    }

    /// `gx` from `g` (which may not be the same memory), and gradients of scale and bias.
    pub(super) fn back<T: SimdReal>(&self, values: &[T], m: usize, x: &[T], g: &[T], gx: &mut [T], gradient: &mut [T]) {
        let width = self.width();
        let NormPlace { scale, bias } = &self.place;
        // The bias lies after the scale.
        let (low, high) = gradient.split_at_mut(bias.start);
        let (gscale, gbias) = (&mut low[scale.clone()], &mut high[..width]);
        dispatch(NormBack { rows: m, width, x, scale: &values[scale.clone()], g, gx, gscale, gbias });
    }
}
