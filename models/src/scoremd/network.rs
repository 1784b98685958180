//! What training, sampling and forces ask of a network. Everything is over rows: one row is one configuration at one time.

use super::config::Layout;
use scorefield_integrators::simd::SimdReal;

/// `M` configurations, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// Normalised coordinates `[M, D]`.
    pub x: &'a [T],
    /// Diffusion times `[M]`; a network clips them to its range.
    pub t: &'a [T],
    /// Which of the network's systems each row is, `[M]`; empty where it knows only one.
    pub system: &'a [u32],
}

impl<T> Rows<'_, T> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.t.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.t.is_empty()
    }
}

/// One network: its shape and its parameters' names. Parameters are kept outside, in one flat array as [`Layout`] says.
pub trait Network<T: SimdReal>: Send + Sync {
    /// Names, shapes and places of the parameters.
    fn layout(&self) -> &Layout;

    /// Coordinates of a row, D.
    fn dimension(&self) -> usize;

    /// Whether scores are minus the gradient of an energy that it can give.
    fn has_energy(&self) -> bool;

    /// A worker for one thread, which owns its memory; it must [`load`](Worker::load) parameters first.
    fn worker(&self) -> Box<dyn Worker<T>>;
}

/// Evaluates a network in one thread. Memory grows with the largest number of rows seen and is kept. A row's energies and
/// scores do not depend on the rows beside it, bit for bit; a gradient is one sum over the rows in their order.
pub trait Worker<T: SimdReal>: Send {
    /// Takes over parameters `[P]`.
    fn load(&mut self, parameters: &[T]);

    /// Energies `[M]` (in kT, up to a constant) and scores `[M, D]`, each where asked for. A network without energy must not be
    /// asked for one.
    fn evaluate(&mut self, rows: Rows<'_, T>, energy: Option<&mut [T]>, score: Option<&mut [T]>);

    /// `gradient += Σ_m a_m ∂E_m/∂θ + Σ_m u_m · ∂s_m/∂θ` for weights `a [M]` of energies and `u [M, D]` of scores. Both are
    /// exact: with `Ė = u · ∂E/∂x` the second sum is the gradient of `−Σ_m Ė_m`, which reverse differentiation of the
    /// tangent gives without second derivatives of the parameters.
    fn accumulate(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]);
}
