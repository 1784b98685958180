//! One step of training: gradients of groups of rows summed in a fixed order, clipped, followed, averaged.
//!
//! Threads share out parameters in pieces of [`CHUNK`]; a parameter is touched by one of them, and sums over pieces are made in the
//! order of pieces: no bit depends on the number of threads.

use super::adamw::{Factors, Root};
use super::{CHUNK, Clip, Ema};
use rayon::prelude::*;
use scorefield_integrators::Real;

/// Overwrites `sum` (`[P]`) with the sum of the gradients `[P]` of groups 0 to `groups` in this order, and returns its norm; `squares`
/// holds a number per piece of [`CHUNK`] parameters.
pub fn sum_gradients<'a, T: Real>(groups: usize, gradient: impl Fn(usize) -> &'a [T] + Sync, sum: &mut [T], squares: &mut [f64]) -> f64 {
    sum.par_chunks_mut(CHUNK).zip(&mut *squares).enumerate().for_each(|(c, (sum, square))| {
        let range = c * CHUNK..c * CHUNK + sum.len();
        sum.copy_from_slice(&gradient(0)[range.clone()]);
        for group in 1..groups {
            for (s, &g) in sum.iter_mut().zip(&gradient(group)[range.clone()]) {
                *s += g;
            }
        }
        *square = sum.iter().map(|g| g.to_f64() * g.to_f64()).sum();
    });
    squares.iter().sum::<f64>().sqrt()
}

/// How far one step goes, for all parameters.
#[derive(Clone, Copy, Debug)]
pub struct Move<T> {
    /// Of the gradient, and the bound on its elements after that.
    factor: T,
    bound: T,
    /// Shares of the old average and of the new parameters.
    memory: T,
    new: T,
}

/// What belongs to the same parameters, `[P]` each.
pub struct Moved<'a, T> {
    /// The parameters.
    pub values: &'a mut [T],
    /// Their gradient, which is clipped in place.
    pub gradient: &'a mut [T],
    /// Running means of the gradient and of its square.
    pub first: &'a mut [T],
    /// See `first`.
    pub second: &'a mut [T],
    /// Averaged parameters.
    pub average: &'a mut [T],
}

impl<T: Real + Root> Move<T> {
    /// Step `step`, counted from 1, with a gradient of norm `norm`.
    pub fn new(clip: Option<Clip>, ema: Ema, step: u64, norm: f64) -> Self {
        let (factor, bound) = clip.map_or((1.0, f64::INFINITY), |c| c.factor_and_bound(norm));
        let memory = ema.memory(step);
        Move { factor: T::from_f64(factor), bound: T::from_f64(bound), memory: T::from_f64(memory), new: T::from_f64(1.0 - memory) }
    }

    /// As kernels take them: factor, bound, memory, share of what is new.
    pub(crate) fn numbers(&self) -> [T; 4] {
        [self.factor, self.bound, self.memory, self.new]
    }

    /// Moves parameters, and their average after them.
    pub fn apply(self, factors: Factors<T>, of: Moved<'_, T>) {
        let Moved { values, gradient, first, second, average } = of;
        values
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks_mut(CHUNK))
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(average.par_chunks_mut(CHUNK))
            .for_each(|((((p, g), m), v), a)| {
                for g in g.iter_mut() {
                    let scaled = *g * self.factor;
                    *g = if scaled > self.bound {
                        self.bound
                    } else if scaled < -self.bound {
                        -self.bound
                    } else {
                        scaled
                    };
                }
                factors.apply(p, g, m, v);
                for (a, &p) in a.iter_mut().zip(p.iter()) {
                    *a = self.memory * *a + self.new * p;
                }
            });
    }
}
