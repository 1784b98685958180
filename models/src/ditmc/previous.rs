//! Self-conditioning: what was predicted of a structure before, as an input of its atoms.
//!
//! Three numbers of each atom go through a perceptron without biases and are added to its first features, so that no earlier
//! prediction is one of zeros, and adds nothing.

use super::kernels::{Add, reserve};
use super::layers::Perceptron;
use crate::matrix::PAD;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};

/// Of all structures that are worked on.
#[derive(Default)]
pub(super) struct Previous<T> {
    /// `[A, 3]`.
    numbers: Vec<f64>,
    input: AlignedBuffer<T>,
    hidden: AlignedBuffer<T>,
    out: AlignedBuffer<T>,
}

impl<T: SimdReal> Previous<T> {
    /// Forgets all structures.
    pub(super) fn clear(&mut self) {
        self.numbers.clear();
    }

    /// Adds a structure of `atoms` atoms of which nothing was predicted.
    pub(super) fn add(&mut self, atoms: usize) {
        self.numbers.resize(self.numbers.len() + 3 * atoms, 0.0);
    }

    /// Sets the numbers `[N, 3]` of the structure that was added last.
    pub(super) fn set(&mut self, numbers: impl ExactSizeIterator<Item = [f64; 3]>) {
        let first = self.numbers.len() - 3 * numbers.len();
        for (to, from) in self.numbers[first..].chunks_exact_mut(3).zip(numbers) {
            to.copy_from_slice(&from);
        }
    }

    /// Adds to the features `h [A, F]`; `scratch` is as large.
    pub(super) fn apply(&mut self, perceptron: &Perceptron<T>, values: &[T], scratch: &mut [T], h: &mut [T]) {
        let (atoms, f) = (self.numbers.len() / 3, perceptron.second.place.outputs);
        reserve(&mut self.input, atoms, PAD);
        reserve(&mut self.hidden, atoms, f);
        reserve(&mut self.out, atoms, f);
        for (to, from) in self.input.chunks_exact_mut(PAD).zip(self.numbers.chunks_exact(3)) {
            for k in 0..3 {
                to[k] = T::from_f64(from[k]);
            }
        }
        perceptron.apply(values, atoms, &self.input, &mut self.hidden, scratch, &mut self.out);
        dispatch(Add { x: &self.out[..atoms * f], y: &mut h[..atoms * f] });
    }

    /// Gradients of the perceptron from those of the features `g [A, F]`.
    pub(super) fn back(&self, perceptron: &Perceptron<T>, g: &[T], scratch: [&mut [T]; 2], gradient: &mut [T]) {
        perceptron.back(self.numbers.len() / 3, g, &self.input, &self.hidden, scratch, None, gradient);
    }
}
