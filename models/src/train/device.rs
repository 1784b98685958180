//! The optimiser on a device: moments and averaged parameters beside the parameters of a [`Launcher`].

use super::adamw::Root;
use super::{AdamW, CHUNK, Clip, Ema, Move};
use crate::error::Result;
use crate::launch::Launcher;
use scorefield_integrators::Real;
use scorefield_integrators::device::{Argument, Device, Kernels, Memory};

/// What belongs to every parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Values,
    Average,
    First,
    Second,
}

impl Kept {
    /// Names in states.
    pub(crate) const ALL: [(&'static str, Kept); 4] =
        [("parameters", Kept::Values), ("average", Kept::Average), ("first", Kept::First), ("second", Kept::Second)];
}

/// How a gradient is followed.
#[derive(Clone, Copy)]
pub(crate) struct Following {
    pub(crate) adam: AdamW,
    pub(crate) clip: Option<Clip>,
    pub(crate) ema: Ema,
    /// Of the steps that move anything, counted from 1.
    pub(crate) step: u64,
    pub(crate) rate: f64,
    pub(crate) norm: f64,
}

pub(crate) struct DeviceMoments<T> {
    average: Memory<T>,
    first: Memory<T>,
    second: Memory<T>,
    /// Sums of squares of pieces of the gradient.
    squares: Memory<T>,
}

impl<T: Real + Root> DeviceMoments<T> {
    /// Zeros for `n` parameters.
    pub(crate) fn new(device: &Device, n: usize) -> Result<Self> {
        let zeros = || device.memory(n);
        Ok(DeviceMoments { average: zeros()?, first: zeros()?, second: zeros()?, squares: device.memory(n.div_ceil(CHUNK))? })
    }

    /// Puts averaged parameters in the place of present ones, and back.
    pub(crate) fn swap_average(&mut self, launcher: &mut Launcher<T>) {
        std::mem::swap(&mut self.average, &mut launcher.values);
    }

    /// Launches what [`DeviceMoments::norm`] waits for.
    pub(crate) fn square(&self, launcher: &Launcher<T>) -> Result<()> {
        let arguments = [launcher.gradient.at(0), self.squares.at(0), launcher.gradient.len().into()];
        Ok(launcher.kernels.launch("squares", self.squares.len(), Kernels::THREADS * size_of::<T>(), &arguments)?)
    }

    /// Norm of the gradient.
    pub(crate) fn norm(&self) -> Result<f64> {
        let mut squares = vec![T::default(); self.squares.len()];
        self.squares.get(&mut squares)?;
        Ok(squares.iter().map(|s| s.to_f64()).sum::<f64>().sqrt())
    }

    /// Moves parameters along the gradient, and their average after them.
    pub(crate) fn follow(&self, launcher: &Launcher<T>, how: Following) -> Result<()> {
        let arrays = [&launcher.values, &self.first, &self.second, &self.average, &launcher.gradient].map(|m| m.at(0));
        let movement = Move::<f64>::new(how.clip, how.ema, how.step, how.norm).numbers();
        let factors = how.adam.factors::<f64>(how.step, how.rate).numbers();
        let numbers: Vec<Argument> = movement.into_iter().chain(factors).map(Argument::from).collect();
        let n = launcher.values.len();
        launcher.each("move", n, &[&arrays[..], &[n.into()], &numbers].concat())
    }

    fn memory<'a>(&'a self, launcher: &'a Launcher<T>, what: Kept) -> &'a Memory<T> {
        match what {
            Kept::Values => &launcher.values,
            Kept::Average => &self.average,
            Kept::First => &self.first,
            Kept::Second => &self.second,
        }
    }

    /// Copies numbers here.
    pub(crate) fn read(&self, launcher: &Launcher<T>, what: Kept) -> Result<Vec<T>> {
        let mut values = vec![T::default(); launcher.values.len()];
        self.memory(launcher, what).get(&mut values)?;
        Ok(values)
    }

    /// Overwrites numbers there.
    pub(crate) fn write(&self, launcher: &Launcher<T>, what: Kept, values: &[T]) -> Result<()> {
        Ok(self.memory(launcher, what).set(values)?)
    }
}
