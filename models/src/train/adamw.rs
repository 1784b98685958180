//! AdamW: Adam with weight decay beside the gradient (I. Loshchilov and F. Hutter, *Decoupled weight decay regularization*,
//! ICLR 2019), with optax's defaults.

use scorefield_integrators::Real;
use serde::{Deserialize, Serialize};

/// Settings of the optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AdamW {
    /// Memory of the mean gradient.
    pub beta1: f64,
    /// Memory of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Decay of parameters per step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-4 }
    }
}

/// Mean and mean squared gradient `[P]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments<T> {
    /// Mean.
    pub first: Vec<T>,
    /// Mean square.
    pub second: Vec<T>,
}

impl<T: Real> Moments<T> {
    /// Zeros for `n` parameters.
    pub fn zeros(n: usize) -> Self {
        Moments { first: vec![T::default(); n], second: vec![T::default(); n] }
    }
}

/// One step's factors, the same for all parameters.
#[derive(Clone, Copy, Debug)]
pub struct Factors<T> {
    beta1: T,
    beta2: T,
    new1: T,
    new2: T,
    /// Learning rate over the bias of the mean.
    rate: T,
    /// 1 over the bias of the mean square.
    unbias2: T,
    epsilon: T,
    decay: T,
}

impl AdamW {
    /// Factors of step `step`, counted from 1, at learning rate `rate`.
    pub fn factors<T: Real>(&self, step: u64, rate: f64) -> Factors<T> {
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let lit = T::from_f64;
        Factors {
            beta1: lit(self.beta1),
            beta2: lit(self.beta2),
            new1: lit(1.0 - self.beta1),
            new2: lit(1.0 - self.beta2),
            rate: lit(rate / (1.0 - self.beta1.powi(power))),
            unbias2: lit(1.0 / (1.0 - self.beta2.powi(power))),
            epsilon: lit(self.epsilon),
            decay: lit(1.0 - rate * self.weight_decay),
        }
    }
}

impl<T: Copy> Factors<T> {
    /// As kernels take them: β₁, β₂, 1 − β₁, 1 − β₂, rate, 1 over the bias of the mean square, ε, decay.
    pub(crate) fn numbers(&self) -> [T; 8] {
        [self.beta1, self.beta2, self.new1, self.new2, self.rate, self.unbias2, self.epsilon, self.decay]
    }
}

impl<T: Real + Root> Factors<T> {
    /// Moves parameters `[n]` against their gradient; all slices are of the same parameters.
    pub fn apply(&self, parameters: &mut [T], gradient: &[T], first: &mut [T], second: &mut [T]) {
        for (((p, &g), m), v) in parameters.iter_mut().zip(gradient).zip(first).zip(second) {
            *m = self.beta1 * *m + self.new1 * g;
            *v = self.beta2 * *v + self.new2 * (g * g);
            *p = self.decay * *p - self.rate * *m / ((self.unbias2 * *v).root() + self.epsilon);
        }
    }
}

/// Square roots of scalars.
pub trait Root {
    /// √x.
    fn root(self) -> Self;
}
impl Root for f32 {
    #[inline(always)]
    fn root(self) -> f32 {
        self.sqrt()
    }
}
impl Root for f64 {
    #[inline(always)]
    fn root(self) -> f64 {
        self.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The update as the paper writes it.
    #[test]
    fn follows_the_paper() {
        let adam = AdamW::default();
        let (mut p, mut moments) = (vec![0.3f64, -2.0], Moments::zeros(2));
        let (mut q, mut m, mut v) = ([0.3, -2.0], [0.0; 2], [0.0; 2]);
        for step in 1..=20u64 {
            let rate = 1e-2 / step as f64;
            let gradient = [(step as f64).sin(), p[1] * p[1]];
            adam.factors(step, rate).apply(&mut p, &gradient, &mut moments.first, &mut moments.second);
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * gradient[i];
                v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
                let (mean, square): (f64, f64) = (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.999f64.powi(step as i32)));
                q[i] -= rate * (mean / (square.sqrt() + 1e-8) + 1e-4 * q[i]);
                assert!((p[i] - q[i]).abs() < 1e-14, "step {step}: {} {}", p[i], q[i]);
            }
        }
    }
}
