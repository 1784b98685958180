//! NumPy arrays through the buffer protocol, without copies.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use std::marker::PhantomData;

/// Contiguous doubles to read. Python may change them meanwhile from another thread, as with any array function that releases
/// the interpreter's lock; callers are told not to.
pub(crate) struct Numbers<'py> {
    buffer: PyBuffer<f64>,
    py: PhantomData<Python<'py>>,
}

/// Contiguous doubles to write.
pub(crate) struct Room<'py> {
    buffer: PyBuffer<f64>,
    py: PhantomData<Python<'py>>,
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<f64>> {
    let buffer = PyBuffer::<f64>::get(object)?;
    if buffer.is_c_contiguous() { Ok(buffer) } else { Err(PyTypeError::new_err("arrays must be contiguous (numpy.ascontiguousarray)")) }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Numbers<'py> {
    type Error = PyErr;
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Numbers { buffer: contiguous(&object)?, py: PhantomData })
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Room<'py> {
    type Error = PyErr;
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(&object)?;
        if buffer.readonly() {
            return Err(PyTypeError::new_err("arrays for results must be writable"));
        }
        Ok(Room { buffer, py: PhantomData })
    }
}

impl Numbers<'_> {
    pub(crate) fn numbers(&self) -> &[f64] {
        if self.buffer.item_count() == 0 {
            return &[];
        }
        // SAFETY: a contiguous buffer of doubles that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr().cast(), self.buffer.item_count()) }
    }
}

impl Room<'_> {
    pub(crate) fn numbers(&mut self) -> &mut [f64] {
        if self.buffer.item_count() == 0 {
            return &mut [];
        }
        // SAFETY: a contiguous, writable buffer of doubles that lives as long as `self`; Python allocated it for this call.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.buf_ptr().cast(), self.buffer.item_count()) }
    }
}
