//! A provider as a device sees it: the text of its forces and the parameters of that text.

use super::{Buffer, Device};
use crate::array::{Array, DType};
use crate::error::Result;

/// One member of the structure `Model` in a model's text, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// `int`.
    Int(i32),
    /// `real`.
    Real(f64),
    /// `const real*`: the numbers it points to.
    Reals(Vec<f64>),
    /// `const int*`: the numbers it points to.
    Ints(Vec<i32>),
    /// `real*`: [`DeviceModel::spill`] reals per replica, or null where they are in shared memory behind the scratch. Teams of
    /// several replicas have them in global memory.
    Spill,
    /// `int`: reals that [`Field::Spill`] has per team.
    SpillSize,
}

/// Replicas that share a team of threads: their rows go through a network together, so that a weight that is read is used for all
/// of them. All have equally many atoms. What becomes of a replica must not depend on the others of its team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Threads of a team: whole warps, at least 128, and at least one for each atom.
    pub threads: usize,
    /// Most replicas of a team.
    pub replicas: usize,
    /// Rows of a replica.
    pub rows: usize,
}

/// Rows are worked on in tiles of this height.
const TILE_ROWS: usize = 8;

impl Group {
    /// Reals between neighbouring features of the rows of `replicas` replicas, as in a model's text: whole tiles, and half a tile
    /// more, so that tiles of neighbouring features lie in different banks of shared memory.
    pub fn stride(&self, replicas: usize) -> usize {
        (replicas * self.rows).next_multiple_of(TILE_ROWS) + TILE_ROWS / 2
    }
}

/// The forces of a provider for devices. The text declares `struct alignas(8) Model` with the members `fields`, and the function
/// `forces` as `kernels/step.cu` says.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceModel {
    /// CUDA C++.
    pub source: &'static str,
    /// Members of `Model`, in order.
    pub fields: Vec<Field>,
    /// Several replicas per team; `None` for one each.
    pub group: Option<Group>,
    /// Reals of scratch in shared memory, per replica; of a group per row, of which there are [`Group::stride`].
    pub scratch: usize,
    /// Reals of scratch that may be in shared or in global memory, likewise.
    pub spill: usize,
    /// Part of the energy that does not depend on positions (kJ/mol): the host adds it, in double precision.
    pub constant: f64,
}

/// A structure as C lays it out.
#[derive(Clone)]
pub(super) struct Layout {
    bytes: Vec<u8>,
    dtype: DType,
}

impl Layout {
    pub(super) fn new(dtype: DType) -> Self {
        Layout { bytes: Vec::new(), dtype }
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn pointer(&mut self, to: Option<&Buffer>) {
        self.address(to.map_or(0, Buffer::at));
    }

    pub(super) fn address(&mut self, at: u64) {
        self.align(8);
        self.bytes.extend(at.to_ne_bytes());
    }

    pub(super) fn long(&mut self, x: u64) {
        self.address(x);
    }

    pub(super) fn int(&mut self, x: i32) {
        self.align(4);
        self.bytes.extend(x.to_ne_bytes());
    }

    pub(super) fn real(&mut self, x: f64) {
        match self.dtype {
            DType::F32 => {
                self.align(4);
                self.bytes.extend((x as f32).to_ne_bytes());
            }
            DType::F64 => {
                self.align(8);
                self.bytes.extend(x.to_ne_bytes());
            }
        }
    }

    /// A structure inside this one.
    pub(super) fn nested(&mut self, bytes: &[u8]) {
        self.align(8);
        self.bytes.extend(bytes);
        self.align(8);
    }

    /// The bytes, padded to the alignment of the structure.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.align(8);
        self.bytes
    }
}

/// Numbers rounded to `dtype`, as bytes.
pub(super) fn reals(dtype: DType, values: &[f64]) -> Vec<u8> {
    bytes_of(&Array::from_f64(dtype, values)).to_vec()
}

/// The bytes of an array.
pub(super) fn bytes_of(array: &Array) -> &[u8] {
    match array {
        Array::F32(v) => pulp::bytemuck::cast_slice(v),
        Array::F64(v) => pulp::bytemuck::cast_slice(v),
    }
}

/// The bytes of an array, to be overwritten.
pub(super) fn bytes_of_mut(array: &mut Array) -> &mut [u8] {
    match array {
        Array::F32(v) => pulp::bytemuck::cast_slice_mut(v),
        Array::F64(v) => pulp::bytemuck::cast_slice_mut(v),
    }
}

/// A [`DeviceModel`] whose numbers are on the device.
pub(super) struct LoadedModel {
    /// The structure `Model`.
    pub(super) parameters: Vec<u8>,
    /// What it points to.
    _buffers: Vec<Buffer>,
}

impl LoadedModel {
    /// Brings the numbers of `model` to the device; `spill` is memory for the replicas' scratch, where it is not shared, of
    /// `spill_size` reals per team.
    pub(super) fn new(device: &Device, model: &DeviceModel, dtype: DType, spill: Option<Buffer>, spill_size: usize) -> Result<Self> {
        let mut layout = Layout::new(dtype);
        let mut buffers = Vec::new();
        for field in &model.fields {
            match field {
                Field::Int(x) => layout.int(*x),
                Field::Real(x) => layout.real(*x),
                Field::Spill => layout.pointer(spill.as_ref()),
                Field::SpillSize => layout.int(spill_size as i32),
                Field::Reals(values) => {
                    buffers.push(device.buffer_of(&reals(dtype, values))?);
                    layout.pointer(buffers.last());
                }
                Field::Ints(values) => {
                    buffers.push(device.buffer_of(pulp::bytemuck::cast_slice(values))?);
                    layout.pointer(buffers.last());
                }
            }
        }
        buffers.extend(spill);
        Ok(LoadedModel { parameters: layout.finish(), _buffers: buffers })
    }
}
