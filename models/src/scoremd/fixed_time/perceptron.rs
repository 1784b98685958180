//! Energies and scores of the multilayer perceptron at one time. Features of the time are part of the first bias.

use super::product::{Apply, Panels, Start, padded};
use super::rows;
use crate::scoremd::config::{Body, ExpertConfig, Head};
use pulp::{Simd, WithSimd};
use scorefield_integrators::Real;
use scorefield_integrators::simd::{AlignedBuffer, Lanes, SimdReal};

/// One layer after the first.
pub(super) struct Layer<T> {
    pub(super) forward: Panels<T>,
    pub(super) back: Panels<T>,
    pub(super) bias: Vec<T>,
}

/// A perceptron, ready for evaluation at one time after another.
pub(super) struct Perceptron<T> {
    pub(super) dimension: usize,
    /// Widths of the hidden layers.
    pub(super) widths: Vec<usize>,
    pub(super) first: [Panels<T>; 2],
    pub(super) hidden: Vec<Layer<T>>,
    /// Weights of the energy (and their bias), or the layer of the score.
    pub(super) energy: Option<(Vec<T>, f64)>,
    pub(super) scores: Option<(Panels<T>, Vec<T>)>,
    /// What the first bias is made from: features of the time to outputs, and the bias.
    times: (Vec<f64>, Vec<f64>),
    config: ExpertConfig,
}

impl<T: SimdReal> Perceptron<T> {
    pub(super) fn new(config: &ExpertConfig, values: &[f32]) -> Self {
        let Body::Mlp { dimension, hidden: widths } = &config.body else { unreachable!("only perceptrons come here") };
        let layout = config.layout();
        let part = |name: String| {
            let entry = layout.find(&name).map(|e| e.offset..e.offset + e.len()).unwrap_or_default();
            &values[entry]
        };
        let matrix = |weight: &[f32], inputs: usize, from: usize, to: usize, sign: f64| {
            let outputs = weight.len() / inputs;
            [
                Panels::new(to - from, outputs, |k, c| sign * f64::from(weight[c * inputs + from + k])),
                Panels::new(outputs, to - from, |k, c| sign * f64::from(weight[k * inputs + from + c])),
            ]
        };
        let bias = |l: usize, sign: f64| {
            let values = part(format!("layer{l}.bias"));
            let mut out = vec![T::default(); padded(values.len())];
            out.iter_mut().zip(values).for_each(|(to, &x)| *to = T::from_f64(sign * f64::from(x)));
            out
        };
        let features = config.range.features();
        let inputs = dimension + features;
        let first = part("layer0.weight".into());
        let times = first.chunks_exact(inputs).flat_map(|row| row[*dimension..].iter().map(|&x| x.into())).collect();
        let hidden = (1..widths.len())
            .map(|l| {
                let [forward, back] = matrix(part(format!("layer{l}.weight")), widths[l - 1], 0, widths[l - 1], 1.0);
                Layer { forward, back, bias: bias(l, 1.0) }
            })
            .collect();
        let last = part(format!("layer{}.weight", widths.len()));
        let before = widths.last().copied().unwrap_or(inputs);
        let (energy, scores) = match config.head {
            Head::Potential => {
                let mut weights = vec![T::default(); padded(before)];
                weights.iter_mut().zip(last).for_each(|(to, &x)| *to = T::from_f64(x.into()));
                (Some((weights, part(format!("layer{}.bias", widths.len()))[0].into())), None)
            }
            // The network gives minus the score.
            Head::Score => {
                let [forward, _] = matrix(last, before, 0, before, -1.0);
                (None, Some((forward, bias(widths.len(), -1.0))))
            }
        };
        let bias = part("layer0.bias".into()).iter().map(|&x| x.into()).collect();
        Perceptron {
            dimension: *dimension,
            widths: widths.clone(),
            first: matrix(first, inputs, 0, *dimension, 1.0),
            hidden,
            energy,
            scores,
            times: (times, bias),
            config: config.clone(),
        }
    }

    /// The first bias at time `t`.
    pub(super) fn bias(&self, t: f64) -> Vec<T> {
        let features = &self.config.range.encode(t)[..self.config.range.features()];
        let mut out = vec![T::default(); padded(self.times.1.len())];
        for ((to, row), bias) in out.iter_mut().zip(self.times.0.chunks_exact(features.len())).zip(&self.times.1) {
            *to = T::from_f64(bias + row.iter().zip(features).map(|(w, f)| w * f).sum::<f64>());
        }
        out
    }

    /// Multiply-adds of energy and score of one row.
    pub(super) fn multiply_adds(&self) -> usize {
        let both = |[a, b]: [&Panels<T>; 2]| a.multiply_adds() + b.multiply_adds();
        let hidden: usize = self.hidden.iter().map(|l| both([&l.forward, &l.back])).sum();
        both([&self.first[0], &self.first[1]]) + hidden + self.scores.as_ref().map_or(0, |s| s.0.multiply_adds())
    }
}

/// Memory for a block of rows.
#[derive(Default)]
pub(super) struct Scratch<T> {
    /// Slopes of the activations of each layer.
    slopes: Vec<AlignedBuffer<T>>,
    rows: [AlignedBuffer<T>; 2],
}

impl<T: SimdReal> Scratch<T> {
    pub(super) fn reserve(&mut self, network: &Perceptron<T>, rows: usize) {
        self.slopes.resize_with(network.widths.len(), AlignedBuffer::default);
        for (slopes, &width) in self.slopes.iter_mut().zip(&network.widths) {
            slopes.reserve(rows * padded(width));
        }
        let most = network.widths.iter().copied().max().unwrap_or(0).max(network.dimension);
        self.rows.iter_mut().for_each(|r| r.reserve(rows * padded(most)));
    }
}

/// One evaluation of a block.
pub(super) struct Evaluate<'a, T> {
    pub(super) network: &'a Perceptron<T>,
    /// The first layer's bias at the time.
    pub(super) bias: &'a [T],
    pub(super) scratch: &'a mut Scratch<T>,
    /// Normalised coordinates `[M, D]`.
    pub(super) x: &'a [T],
    pub(super) energy: Option<&'a mut [f64]>,
    pub(super) score: Option<&'a mut [T]>,
}

impl<T: SimdReal> WithSimd for Evaluate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) {
        evaluate::<T::Of<S>>(t, self);
    }
}

#[inline(always)]
fn evaluate<V: Lanes>(t: V::Token, op: Evaluate<'_, V::Scalar>)
where
    V::Scalar: SimdReal,
{
    let Evaluate { network, bias, scratch, x, energy, score } = op;
    let d = network.dimension;
    let rows = x.len() / d;
    let [one, two] = &mut scratch.rows;
    let (mut values, mut other) = (one, two);
    for l in 0..network.widths.len() {
        let wide = padded(network.widths[l]);
        let slopes = &mut scratch.slopes[l][..rows * wide];
        let (matrix, bias, a, a_row) = match l {
            0 => (&network.first[0], bias, x, d),
            _ => (&network.hidden[l - 1].forward, &network.hidden[l - 1].bias[..], &values[..], padded(network.widths[l - 1])),
        };
        Apply { matrix, rows, a, a_row, start: Start::Bias(bias), c: slopes, c_row: wide }.run();
        rows::swish::<V>(t, slopes, &mut other[..rows * wide]);
        std::mem::swap(&mut values, &mut other);
    }
    let last = padded(network.widths.last().copied().unwrap_or(0));
    if let Some((matrix, bias)) = &network.scores {
        let wide = padded(d);
        if let Some(score) = score {
            Apply { matrix, rows, a: values, a_row: last, start: Start::Bias(bias), c: other, c_row: wide }.run();
            for (to, from) in score.chunks_exact_mut(d).zip(other.chunks_exact(wide)) {
                to.copy_from_slice(&from[..d]);
            }
        }
        return;
    }
    let Some((weights, bias)) = &network.energy else { return };
    if let Some(energy) = energy {
        for (to, values) in energy.iter_mut().zip(values.chunks_exact(last)) {
            *to = rows::dot::<V>(t, values, weights).to_f64() + bias;
        }
    }
    let Some(score) = score else { return };
    for row in values[..rows * last].chunks_exact_mut(last) {
        row.copy_from_slice(weights);
    }
    for l in (0..network.widths.len()).rev() {
        let wide = padded(network.widths[l]);
        rows::multiply::<V>(t, &mut values[..rows * wide], &scratch.slopes[l][..rows * wide]);
        let (matrix, c_row) = match l {
            0 => (&network.first[1], padded(d)),
            _ => (&network.hidden[l - 1].back, padded(network.widths[l - 1])),
        };
        Apply { matrix, rows, a: values, a_row: wide, start: Start::Zero, c: other, c_row }.run();
        std::mem::swap(&mut values, &mut other);
    }
    for (to, from) in score.chunks_exact_mut(d).zip(values.chunks_exact(padded(d))) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = -from;
        }
    }
}
