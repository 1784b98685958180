//! Dense layers on devices, for batches whose rows lie side by side: `kernels/training.cu`, launched one after the other.

use crate::error::Result;
use scorefield_integrators::array::{Element, Real};
use scorefield_integrators::device::{Argument, Device, Kernels, Memory};
use std::ops::Range;

/// The text that every kernel of this kind comes after.
macro_rules! training_source {
    ($($file:literal),+) => {
        concat!(
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/training.cu")),
            $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $file))),+
        )
    };
}
pub(crate) use training_source;

/// As in the text of the kernels: side of a block's tile, its depth, and the distance of rows in shared memory.
const SIDE: usize = 64;
const DEPTH: usize = 16;
const PITCH: usize = SIDE + 4;
/// Blocks that a product should have, and fewest rows of a part of it.
const BLOCKS: usize = 264;
const ROWS_PER_PART: usize = 256;
/// Columns are summed in this many parts at most.
const COLUMN_PARTS: usize = 64;
/// No pointer.
const NONE: Argument = Argument::NOWHERE;

/// What becomes of the sums of a product.
#[derive(Clone, Copy)]
pub(crate) enum Finish {
    Set,
    Add,
    /// SiLU, which keeps what was before.
    Swish(Argument),
    /// Times the slope of SiLU at what was before.
    SwishSlope(Argument),
    /// The same of GELU.
    Gelu(Argument),
    /// See above.
    GeluSlope(Argument),
}

/// A dense layer: where its numbers lie among the parameters, and padded widths.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dense {
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Option<Range<usize>>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Weights are `[outputs, inputs]`, else `[inputs, outputs]`.
    pub(crate) by_output: bool,
}

impl Dense {
    /// Distance of weights of neighbouring inputs, and of neighbouring outputs.
    fn strides(&self) -> [usize; 2] {
        if self.by_output { [1, self.inputs] } else { [self.outputs, 1] }
    }

    /// Parts that the gradient is summed in, over `rows` rows.
    fn parts(&self, rows: usize) -> usize {
        let tiles = self.outputs.div_ceil(SIDE) * self.inputs.div_ceil(SIDE);
        BLOCKS.div_ceil(tiles).min(rows.div_ceil(ROWS_PER_PART)).max(1)
    }

    /// Numbers that the parts of the gradient take.
    pub(crate) fn room(&self, rows: usize) -> usize {
        self.parts(rows) * self.outputs * (self.inputs + 1)
    }
}

/// Sizes and strides of one product.
struct Shape {
    m: usize,
    n: usize,
    inner: usize,
    a: [usize; 2],
    b: [usize; 2],
}

/// Parameters of a network on a device, their gradients, and the kernels that make use of them.
pub(crate) struct Launcher<T> {
    pub(crate) device: Device,
    pub(crate) kernels: Kernels,
    /// Padded parameters.
    pub(crate) values: Memory<T>,
    pub(crate) gradient: Memory<T>,
    /// Parts of gradients.
    parts: Memory<T>,
}

impl<T: Real> Launcher<T> {
    /// Kernels of `text`, behind those of dense layers, and `parameters` zeros.
    pub(crate) fn new(device: &Device, text: &str, parameters: usize) -> Result<Self> {
        Ok(Launcher {
            kernels: device.kernels::<T>(text)?,
            values: device.memory(parameters)?,
            gradient: device.memory(parameters)?,
            parts: Memory::default(),
            device: device.clone(),
        })
    }

    /// Makes room for parts of gradients of so many numbers.
    pub(crate) fn reserve(&mut self, parts: usize) -> Result<()> {
        Ok(self.parts.reserve(&self.device, parts)?)
    }

    /// Enqueues `kernel` with a thread for each of `n` numbers.
    pub(crate) fn each(&self, kernel: &str, n: usize, arguments: &[Argument]) -> Result<()> {
        Ok(self.kernels.each(kernel, n, arguments)?)
    }

    /// Launches a product, cut into parts that lie `part` apart.
    fn product(&self, shape: &Shape, [a, b, bias, c]: [Argument; 4], parts: usize, part: usize, finish: Finish) -> Result<()> {
        let tiles = shape.m.div_ceil(SIDE) * shape.n.div_ceil(SIDE);
        let (code, before) = match finish {
            Finish::Set => (0usize, NONE),
            Finish::Add => (1, NONE),
            Finish::Swish(before) => (2, before),
            Finish::SwishSlope(before) => (3, before),
            Finish::Gelu(before) => (4, before),
            Finish::GeluSlope(before) => (5, before),
        };
        let Shape { m, n, inner, a: [a_row, a_inner], b: [b_inner, b_column] } = *shape;
        let sizes = [m, n, inner, a_row, a_inner, b_inner, b_column, parts, part, code].map(Argument::from);
        let arguments: Vec<Argument> = [a, b, bias, c, before].into_iter().chain(sizes).collect();
        Ok(self.kernels.launch("product", tiles * parts, 2 * DEPTH * PITCH * size_of::<T>(), &arguments)?)
    }

    /// `y = x W + b` of `rows` rows.
    pub(crate) fn apply(&self, d: &Dense, rows: usize, x: impl Into<Argument>, y: impl Into<Argument>, finish: Finish) -> Result<()> {
        let shape = Shape { m: rows, n: d.outputs, inner: d.inputs, a: [d.inputs, 1], b: d.strides() };
        let bias = d.bias.as_ref().map_or(NONE, |b| self.values.at(b.start));
        self.product(&shape, [x.into(), self.values.at(d.weight.start), bias, y.into()], 1, 0, finish)
    }

    /// `gx = g Wᵀ`.
    pub(crate) fn back(&self, d: &Dense, rows: usize, g: impl Into<Argument>, gx: impl Into<Argument>, finish: Finish) -> Result<()> {
        let [input, output] = d.strides();
        let shape = Shape { m: rows, n: d.inputs, inner: d.outputs, a: [d.outputs, 1], b: [output, input] };
        self.product(&shape, [g.into(), self.values.at(d.weight.start), NONE, gx.into()], 1, 0, finish)
    }

    /// Gradients of weight and bias, which lie behind one another.
    pub(crate) fn gradient(&self, d: &Dense, rows: usize, g: impl Into<Argument>, x: impl Into<Argument>) -> Result<()> {
        let (g, x) = (g.into(), x.into());
        let (parts, weights) = (d.parts(rows), d.outputs * d.inputs);
        let all = weights + d.bias.as_ref().map_or(0, |_| d.outputs);
        let to = |at: usize| if parts == 1 { self.gradient.at(d.weight.start + at) } else { self.parts.at(at) };
        let (of_g, of_x) = ([1, d.outputs], [1, d.inputs]);
        if d.by_output {
            let shape = Shape { m: d.outputs, n: d.inputs, inner: rows, a: of_g, b: [d.inputs, 1] };
            self.product(&shape, [g, x, NONE, to(0)], parts, all, Finish::Set)?;
        } else {
            let shape = Shape { m: d.inputs, n: d.outputs, inner: rows, a: of_x, b: [d.outputs, 1] };
            self.product(&shape, [x, g, NONE, to(0)], parts, all, Finish::Set)?;
        }
        if let Some(bias) = &d.bias {
            assert_eq!(bias.start, d.weight.start + weights, "a bias lies behind its weights");
            let sizes = [rows, d.outputs, parts, all].map(Argument::from);
            self.each("columns", parts * d.outputs, &[&[g, to(weights)][..], &sizes].concat())?;
        }
        if parts > 1 {
            self.sum_parts(all, parts, d.weight.start)?;
        }
        Ok(())
    }

    /// Numbers that [`Launcher::sum_columns`] needs for parts.
    pub(crate) fn columns_room(rows: usize, columns: usize) -> usize {
        Self::column_parts(rows) * columns
    }

    fn column_parts(rows: usize) -> usize {
        rows.div_ceil(ROWS_PER_PART / 4).clamp(1, COLUMN_PARTS)
    }

    /// Gradients from `to` on: sums of the columns of `x [rows, columns]`.
    pub(crate) fn sum_columns(&self, rows: usize, columns: usize, x: impl Into<Argument>, to: usize) -> Result<()> {
        let parts = Self::column_parts(rows);
        let sizes = [rows, columns, parts, columns].map(Argument::from);
        self.each("columns", parts * columns, &[&[x.into(), self.parts.at(0)][..], &sizes].concat())?;
        self.sum_parts(columns, parts, to)
    }

    fn sum_parts(&self, n: usize, parts: usize, to: usize) -> Result<()> {
        self.each("sum_parts", n, &[self.parts.at(0), self.gradient.at(to), n.into(), parts.into(), n.into()])
    }
}

/// Copies numbers to memory that grows as needed.
pub(crate) fn copy<U: Element>(device: &Device, to: &mut Memory<U>, from: &[U]) -> Result<()> {
    to.reserve(device, from.len())?;
    Ok(to.set(from)?)
}
