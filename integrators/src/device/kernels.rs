//! Kernels beside those that move replicas: what a training launches one after the other, on numbers that stay on the device.

use super::model::Layout;
use super::program::{BLOCK, Program};
use super::{Buffer, Device, Grid, Module};
use crate::array::{Element, Real};
use crate::error::Result;
use std::marker::PhantomData;
use std::sync::Arc;

/// Numbers on a device; by default none, nowhere.
#[derive(Default)]
pub struct Memory<T> {
    buffer: Option<Buffer>,
    len: usize,
    of: PhantomData<T>,
}

impl Device {
    /// `len` zeros.
    ///
    /// # Errors
    /// Where the device has no memory left.
    pub fn memory<T: Element>(&self, len: usize) -> Result<Memory<T>> {
        Ok(Memory { buffer: Some(self.buffer(len * size_of::<T>())?), len, of: PhantomData })
    }

    /// Memory that holds `values`.
    ///
    /// # Errors
    /// Where the device has no memory left.
    pub fn memory_of<T: Element>(&self, values: &[T]) -> Result<Memory<T>> {
        let memory = self.memory(values.len())?;
        memory.set(values)?;
        Ok(memory)
    }

    /// Compiles `text`: CUDA C++ that follows `kernels/prelude.cu`, with a team of [`Kernels::THREADS`] threads, the whole block, and `T`
    /// as `real`.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn kernels<T: Real>(&self, text: &str) -> Result<Kernels> {
        Ok(Kernels { module: self.0.compile(&Program::plain(text, T::DTYPE))?, layout: Layout::new(T::DTYPE) })
    }
}

impl<T: Element> Memory<T> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `len` numbers, with as much again for what may come; what was there is lost where there was too little.
    ///
    /// # Errors
    /// Where the device has no memory left.
    pub fn reserve(&mut self, device: &Device, len: usize) -> Result<()> {
        if len > self.len {
            *self = device.memory(len + len / 4)?;
        }
        Ok(())
    }

    /// Overwrites the first of them, after everything that was launched before.
    ///
    /// # Errors
    /// Where the device is lost.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn set(&self, values: &[T]) -> Result<()> {
        assert!(values.len() <= self.len, "{} numbers for {}", values.len(), self.len);
        self.buffer.as_ref().map_or(Ok(()), |buffer| buffer.upload(0, T::bytes(values)))
    }

    /// Copies the first of them here, after everything that was launched before.
    ///
    /// # Errors
    /// Where the device is lost, or a kernel before failed.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn get(&self, values: &mut [T]) -> Result<()> {
        assert!(values.len() <= self.len, "{} numbers of {}", values.len(), self.len);
        self.buffer.as_ref().map_or(Ok(()), |buffer| buffer.download(0, T::bytes_mut(values)))
    }

    /// The address of number `at`, for a kernel.
    pub fn at(&self, at: usize) -> Argument {
        debug_assert!(at <= self.len, "{at} of {}", self.len);
        Argument::Address(self.buffer.as_ref().map_or(0, |buffer| buffer.at() + (at * size_of::<T>()) as u64))
    }
}

/// A member of a kernel's parameters, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer; 0 for none.
    Address(u64),
    /// `int`.
    Int(i32),
    /// `real`.
    Real(f64),
}

impl Argument {
    /// No address.
    pub const NOWHERE: Argument = Argument::Address(0);
}

impl<T: Element> From<&Memory<T>> for Argument {
    fn from(memory: &Memory<T>) -> Self {
        memory.at(0)
    }
}

impl From<usize> for Argument {
    fn from(n: usize) -> Self {
        Argument::Int(n as i32)
    }
}

impl From<f64> for Argument {
    fn from(x: f64) -> Self {
        Argument::Real(x)
    }
}

/// Compiled kernels. As with the text of a [`DeviceModel`](super::DeviceModel), nothing checks that they stay inside their memory.
pub struct Kernels {
    module: Arc<dyn Module>,
    /// Empty, of the precision of the text.
    layout: Layout,
}

impl Kernels {
    /// Threads of a block.
    pub const THREADS: usize = BLOCK;

    /// Enqueues `blocks` blocks of `kernel`, which share `shared` bytes each.
    ///
    /// # Errors
    /// Where the device is lost, or there is no such kernel.
    pub fn launch(&self, kernel: &str, blocks: usize, shared: usize, arguments: &[Argument]) -> Result<()> {
        let mut layout = self.layout.clone();
        for argument in arguments {
            match *argument {
                Argument::Address(at) => layout.address(at),
                Argument::Int(n) => layout.int(n),
                Argument::Real(x) => layout.real(x),
            }
        }
        if blocks == 0 {
            return Ok(());
        }
        let grid = Grid { blocks: blocks as u32, threads: Self::THREADS as u32, shared };
        // SAFETY: the emulator checks the size of the parameters; addresses are those of `Memory`.
        unsafe { self.module.launch(kernel, grid, &layout.finish()) }
    }

    /// Enqueues `kernel` with a thread for each of `n` numbers.
    ///
    /// # Errors
    /// See [`Kernels::launch`].
    pub fn each(&self, kernel: &str, n: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(kernel, n.div_ceil(Self::THREADS), 0, arguments)
    }
}
