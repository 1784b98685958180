//! Dense layers with swish between them on the coordinates and the features of the time.

use super::config::{ExpertConfig, Head, Layout};
use super::kernels::{Activation, ActivationBack, Function};
use super::linear::{Collect, Dots, Linear, Spread};
use super::network::{Network, Rows, Worker};
use super::process::TimeRange;
use crate::matrix::padded;
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal};

/// Rows that go through the network together: what they need stays in the second-level cache.
const BLOCK: usize = 64;

/// An MLP's shape.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    layout: Layout,
    dimension: usize,
    hidden: Vec<usize>,
    head: Head,
    range: TimeRange,
}

impl Mlp {
    pub(super) fn new(config: &ExpertConfig, dimension: usize, hidden: &[usize]) -> Self {
        Mlp { layout: config.layout(), dimension, hidden: hidden.to_vec(), head: config.head, range: config.range }
    }
}

impl<T: SimdReal> Network<T> for Mlp {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn dimension(&self) -> usize {
        self.dimension
    }

    fn has_energy(&self) -> bool {
        self.head == Head::Potential
    }

    fn worker(&self) -> Box<dyn Worker<T>> {
        let layers: Vec<Linear<T>> = (0..=self.hidden.len()).map(|l| Linear::new(&self.layout, &format!("layer{l}"))).collect();
        Box::new(MlpWorker {
            last: AlignedBuffer::zeros(self.hidden.last().map_or(0, |&width| padded(width))),
            last_bias: T::default(),
            layers,
            shape: self.clone(),
            input: AlignedBuffer::default(),
            hidden: self.hidden.iter().map(|_| Hidden::default()).collect(),
            g: [AlignedBuffer::default(), AlignedBuffer::default()],
            scalars: AlignedBuffer::default(),
        })
    }
}

/// What a hidden layer leaves behind; all but slope and bend stacked.
#[derive(Default)]
struct Hidden<T> {
    x: AlignedBuffer<T>,
    y: AlignedBuffer<T>,
    slope: AlignedBuffer<T>,
    bend: AlignedBuffer<T>,
}

struct MlpWorker<T> {
    shape: Mlp,
    layers: Vec<Linear<T>>,
    /// Weight and bias of the last layer where it gives an energy.
    last: AlignedBuffer<T>,
    last_bias: T,
    /// Stacked: coordinates and time features; their tangents.
    input: AlignedBuffer<T>,
    hidden: Vec<Hidden<T>>,
    /// Gradients on the way back, stacked.
    g: [AlignedBuffer<T>; 2],
    /// Weights of energies, stacked.
    scalars: AlignedBuffer<T>,
}

impl<T: SimdReal> MlpWorker<T> {
    /// Stride of the rows of hidden layer `l`, or of the input where it is `None`.
    fn stride(&self, l: Option<usize>) -> usize {
        padded(l.map_or(self.shape.dimension + self.shape.range.features(), |l| self.shape.hidden[l]))
    }

    fn reserve(&mut self, rows: usize, dual: bool) {
        let stacked = rows * (1 + usize::from(dual));
        let mut widest = self.stride(None).max(padded(self.shape.dimension));
        for l in 0..self.hidden.len() {
            let stride = self.stride(Some(l));
            widest = widest.max(stride);
            let h = &mut self.hidden[l];
            h.x.reserve(stacked * stride);
            h.y.reserve(stacked * stride);
            h.slope.reserve(rows * stride);
            if dual {
                h.bend.reserve(rows * stride);
            }
        }
        let inputs = self.stride(None);
        self.input.reserve(stacked * inputs);
        self.scalars.reserve(stacked);
        for g in &mut self.g {
            g.reserve(stacked * widest);
        }
    }

    /// Through all hidden layers; with tangents along `u` where given.
    fn forward(&mut self, rows: Rows<'_, T>, u: Option<&[T]>) {
        let (m, d, dual) = (rows.len(), self.shape.dimension, u.is_some());
        self.reserve(m, dual);
        let stacked = m * (1 + usize::from(dual));
        let stride = self.stride(None);
        let features = self.shape.range.features();
        for (r, (x, &t)) in rows.x.chunks_exact(d).zip(rows.t).enumerate() {
            let to = &mut self.input[r * stride..][..d + features];
            to[..d].copy_from_slice(x);
            for (to, from) in to[d..].iter_mut().zip(self.shape.range.encode(t.to_f64())) {
                *to = T::from_f64(from);
            }
        }
        if let Some(u) = u {
            for (r, u) in u.chunks_exact(d).enumerate() {
                let to = &mut self.input[(m + r) * stride..][..d + features];
                to[..d].copy_from_slice(u);
                to[d..].fill(T::default());
            }
        }
        for l in 0..self.hidden.len() {
            let (from_stride, stride) = (self.stride(l.checked_sub(1)), self.stride(Some(l)));
            let (before, rest) = self.hidden.split_at_mut(l);
            let from: &[T] = before.last().map_or(&self.input, |h| &h.y);
            let h = &mut rest[0];
            self.layers[l].forward(stacked, m, from, from_stride, &mut h.x, stride);
            Activation { function: Function::Swish, dual, m, stride, x: &h.x, y: &mut h.y, slope: &mut h.slope, bend: &mut h.bend }.run();
        }
    }

    /// From the gradient of the last hidden layer's output in `g[0]` back to the coordinates, which are left in `g[0]` where asked
    /// for, and to parameters.
    fn backward(&mut self, m: usize, dual: bool, to_input: bool, mut gradient: Option<&mut [T]>) {
        let stacked = m * (1 + usize::from(dual));
        for l in (0..self.hidden.len()).rev() {
            let (from_stride, stride) = (self.stride(l.checked_sub(1)), self.stride(Some(l)));
            let [g, next] = &mut self.g;
            let h = &self.hidden[l];
            ActivationBack { dual, m, stride, slope: &h.slope, bend: &h.bend, g: &mut *g }.run();
            if let Some(gradient) = gradient.as_deref_mut() {
                let from: &[T] = l.checked_sub(1).map_or(&self.input, |l| &self.hidden[l].y);
                self.layers[l].gradient(stacked, m, g, stride, from, from_stride, gradient);
            }
            if l > 0 || to_input {
                self.layers[l].backward(stacked, g, stride, next, from_stride);
                self.g.swap(0, 1);
            }
        }
    }

    fn evaluate_block(&mut self, rows: Rows<'_, T>, energy: Option<&mut [T]>, score: Option<&mut [T]>) {
        let (m, d) = (rows.len(), self.shape.dimension);
        self.forward(rows, None);
        // A network has at least one hidden layer.
        let last = self.hidden.len();
        let (features, stride): (&[T], usize) = (&self.hidden[last - 1].y, self.stride(Some(last - 1)));
        if self.shape.head == Head::Score {
            let Some(score) = score else { return };
            let wide = padded(d);
            let mut out = std::mem::take(&mut self.g[0]);
            self.layers[last].forward(m, m, features, stride, &mut out, wide);
            negate(&out, wide, score, d);
            self.g[0] = out;
            return;
        }
        if let Some(energy) = energy {
            Dots { m, width: stride, w: &self.last, x: features, stride, y: energy }.run();
            for e in energy {
                *e += self.last_bias;
            }
        }
        if let Some(score) = score {
            self.scalars[..m].fill(T::from_f64(1.0));
            Spread { m, width: stride, c: &self.scalars, w: &self.last, x: &mut self.g[0], stride }.run();
            self.backward(m, false, true, None);
            negate(&self.g[0], self.stride(None), score, d);
        }
    }

    fn accumulate_block(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]) {
        let (m, d) = (rows.len(), self.shape.dimension);
        // A network has at least one hidden layer.
        let last = self.hidden.len();
        if self.shape.head == Head::Score {
            let Some(u) = u else { return };
            self.forward(rows, None);
            let wide = padded(d);
            let (mut g, mut next) = (std::mem::take(&mut self.g[0]), std::mem::take(&mut self.g[1]));
            for (g, u) in g.chunks_exact_mut(wide).zip(u.chunks_exact(d)) {
                for (g, &u) in g.iter_mut().zip(u) {
                    *g = -u;
                }
                g[d..].fill(T::default());
            }
            let stride = self.stride(Some(last - 1));
            self.layers[last].gradient(m, m, &g, wide, &self.hidden[last - 1].y, stride, gradient);
            self.layers[last].backward(m, &g, wide, &mut next, stride);
            self.g = [next, g];
            self.backward(m, false, false, Some(gradient));
            return;
        }
        let dual = u.is_some();
        self.forward(rows, u);
        let stacked = m * (1 + usize::from(dual));
        match a {
            Some(a) => self.scalars[..m].copy_from_slice(a),
            None => self.scalars[..m].fill(T::default()),
        }
        self.scalars[m..stacked].fill(T::from_f64(-1.0));
        let (features, stride): (&[T], usize) = (&self.hidden[last - 1].y, self.stride(Some(last - 1)));
        let layer = &self.layers[last];
        let width = layer.inputs();
        let mut sum = std::mem::take(&mut self.g[1]);
        sum[..stride].fill(T::default());
        Collect { m: stacked, width: stride, c: &self.scalars, x: features, stride, w: &mut sum }.run();
        for (to, &from) in gradient[layer.weight()..][..width].iter_mut().zip(sum.iter()) {
            *to += from;
        }
        self.g[1] = sum;
        gradient[layer.bias()] += self.scalars[..m].iter().copied().sum();
        Spread { m: stacked, width: stride, c: &self.scalars, w: &self.last, x: &mut self.g[0], stride }.run();
        self.backward(m, dual, false, Some(gradient));
    }
}

/// `to = −from`, for rows of `width` of which `from` has them `stride` apart.
pub(super) fn negate<T: Real>(from: &[T], stride: usize, to: &mut [T], width: usize) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(stride)) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = -from;
        }
    }
}

impl<T: SimdReal> Worker<T> for MlpWorker<T> {
    fn load(&mut self, parameters: &[T]) {
        for layer in &mut self.layers {
            layer.load(parameters);
        }
        if let (Head::Potential, Some(layer)) = (self.shape.head, self.layers.last()) {
            let width = layer.inputs();
            self.last[..width].copy_from_slice(&parameters[layer.weight()..][..width]);
            self.last_bias = parameters[layer.bias()];
        }
    }

    fn evaluate(&mut self, rows: Rows<'_, T>, mut energy: Option<&mut [T]>, mut score: Option<&mut [T]>) {
        assert!(energy.is_none() || self.shape.head == Head::Potential, "this network has no energy");
        let d = self.shape.dimension;
        for start in (0..rows.len()).step_by(BLOCK) {
            let end = rows.len().min(start + BLOCK);
            self.evaluate_block(
                rows.part(start..end, d),
                energy.as_deref_mut().map(|e| &mut e[start..end]),
                score.as_deref_mut().map(|s| &mut s[start * d..end * d]),
            );
        }
    }

    fn accumulate(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]) {
        assert!(a.is_none() || self.shape.head == Head::Potential, "this network has no energy");
        let d = self.shape.dimension;
        for start in (0..rows.len()).step_by(BLOCK) {
            let end = rows.len().min(start + BLOCK);
            self.accumulate_block(rows.part(start..end, d), a.map(|a| &a[start..end]), u.map(|u| &u[start * d..end * d]), gradient);
        }
    }
}
