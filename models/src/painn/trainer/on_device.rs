//! Training on a device. Batches are made on the threads of this process while the device works on the one before; parameters, moments
//! and gradients stay there.

use super::super::batched::{DeviceNetwork, Graphs, Piece, copy};
use super::super::config::Layout;
use super::super::noising::Row;
use super::{Kept, Machine, Molecules, Plan, Rows, Sums};
use crate::error::Result;
use crate::matrix::PAD;
use crate::train::adamw::Root;
use crate::train::{CHUNK, Move};
use rayon::prelude::*;
use scorefield_integrators::device::{Argument, Device, Kernels, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

/// Rows that one thread makes.
const ROWS_PER_PIECE: usize = 8;

/// Rows with their labels.
struct Batch<T> {
    rows: Vec<Row>,
    graphs: Graphs<T>,
    /// What vectors should be `[A, 3]`.
    label: Vec<T>,
    /// What errors are multiplied by, per row.
    factor: Vec<T>,
}

impl<T: SimdReal> Batch<T> {
    fn new(plan: &Plan, data: &Molecules, rows: Rows, back: bool) -> Self {
        let count = rows.count(plan);
        let pieces: Vec<(Vec<Row>, Piece<T>)> = (0..count.div_ceil(ROWS_PER_PIECE))
            .into_par_iter()
            .map(|piece| {
                let (mut made, mut graphs) = (Vec::new(), Piece::default());
                for i in piece * ROWS_PER_PIECE..((piece + 1) * ROWS_PER_PIECE).min(count) {
                    let mut row = Row::default();
                    let types = rows.fill(plan, data, i, &mut row);
                    graphs.add(&plan.config, types, &row.x, 0.25 * row.sigma.ln());
                    made.push(row);
                }
                (made, graphs)
            })
            .collect();
        let (made, pieces): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
        let rows: Vec<Row> = made.into_iter().flatten().collect();
        let labels = |row: &Row| {
            let sign = plan.objective.sign(row.sigma);
            row.label.iter().map(move |x| T::from_f64(sign * x)).collect::<Vec<T>>()
        };
        Batch {
            label: rows.iter().flat_map(labels).collect(),
            factor: rows.iter().map(|row| T::from_f64(row.factor(plan, 1.0 / count as f64))).collect(),
            graphs: Graphs::join(&plan.config, pieces, back),
            rows,
        }
    }
}

pub(super) struct OnDevice<T> {
    device: Device,
    network: DeviceNetwork<T>,
    average: Memory<T>,
    first: Memory<T>,
    second: Memory<T>,
    squares: Memory<T>,
    /// Elements that there are.
    elements: Memory<i32>,
    label: Memory<T>,
    factor: Memory<T>,
    /// Errors and squares of molecules and axes.
    sums: Memory<T>,
    /// The batch that comes next, and its step.
    ready: Option<(u64, Batch<T>)>,
}

impl<T: SimdReal> OnDevice<T> {
    /// All parameters are zero.
    pub(super) fn new(device: &Device, plan: &Plan, data: &Molecules, layout: Arc<Layout>) -> Result<Self> {
        let n = layout.len;
        let mut elements: Vec<i32> = data.types.iter().map(|&z| z as i32).collect();
        elements.sort_unstable();
        elements.dedup();
        Ok(OnDevice {
            network: DeviceNetwork::new(device, &plan.config, layout)?,
            average: device.memory(n)?,
            first: device.memory(n)?,
            second: device.memory(n)?,
            squares: device.memory(n.div_ceil(CHUNK))?,
            elements: device.memory_of(&elements)?,
            label: device.memory(0)?,
            factor: device.memory(0)?,
            sums: device.memory(0)?,
            ready: None,
            device: device.clone(),
        })
    }

    fn upload(&mut self, batch: &Batch<T>, back: bool) -> Result<()> {
        self.network.upload(&batch.graphs, back)?;
        copy(&self.device, &mut self.label, &batch.label)?;
        copy(&self.device, &mut self.factor, &batch.factor)?;
        Ok(self.sums.reserve(&self.device, 6 * batch.rows.len())?)
    }

    /// From vectors to losses of molecules, and to gradients of vectors where `seed` leads.
    fn find_losses(&self, batch: &Batch<T>, seed: Argument) -> Result<()> {
        let (network, rows) = (&self.network, batch.rows.len());
        let arrays = [self.label.at(0), self.factor.at(0), seed, self.sums.at(0)];
        network.each("losses", 3 * rows, &[&network.vectors()[..], &arrays, &[rows.into(), PAD.into()]].concat())
    }

    /// The losses of a batch, once the device has them.
    fn fetch(&self, plan: &Plan, batch: &Batch<T>) -> Result<Sums> {
        let mut values = vec![T::default(); 6 * batch.rows.len()];
        self.sums.get(&mut values)?;
        let mut sums = Sums::default();
        for (row, v) in batch.rows.iter().zip(values.as_chunks::<6>().0) {
            let of = |k: usize| v[k].to_f64() + v[k + 2].to_f64() + v[k + 4].to_f64();
            sums.count(plan, row, of(0), of(1));
        }
        Ok(sums)
    }

    fn memory(&self, what: Kept) -> &Memory<T> {
        match what {
            Kept::Values => &self.network.values,
            Kept::Average => &self.average,
            Kept::First => &self.first,
            Kept::Second => &self.second,
        }
    }
}

impl<T: SimdReal + Root> Machine<T> for OnDevice<T> {
    fn losses(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<Sums> {
        let batch = Batch::new(plan, data, rows, false);
        self.upload(&batch, false)?;
        std::mem::swap(&mut self.network.values, &mut self.average);
        let launched = self.network.forward(&batch.graphs).and_then(|()| self.find_losses(&batch, Argument::NOWHERE));
        std::mem::swap(&mut self.network.values, &mut self.average);
        launched?;
        self.fetch(plan, &batch)
    }

    fn gradient(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<(Sums, f64)> {
        let step = rows.step();
        let batch = match self.ready.take() {
            Some((at, batch)) if at == step => batch,
            _ => Batch::new(plan, data, rows, true),
        };
        self.upload(&batch, true)?;
        let network = &self.network;
        network.forward(&batch.graphs)?;
        self.find_losses(&batch, network.seed())?;
        network.backward(&batch.graphs, &self.elements)?;
        let pieces = self.squares.len();
        let arguments = [network.gradient.at(0), self.squares.at(0), network.layout.len.into()];
        network.kernels.launch("squares", pieces, Kernels::THREADS * size_of::<T>(), &arguments)?;
        // While the device works.
        if step + 1 < plan.steps() {
            self.ready = Some((step + 1, Batch::new(plan, data, Rows::Training { step: step + 1 }, true)));
        }
        let mut squares = vec![T::default(); pieces];
        self.squares.get(&mut squares)?;
        let norm = squares.iter().map(|s| s.to_f64()).sum::<f64>().sqrt();
        Ok((self.fetch(plan, &batch)?, norm))
    }

    fn follow(&mut self, plan: &Plan, step: u64, rate: f64, norm: f64) -> Result<()> {
        let (network, n) = (&self.network, self.network.layout.len);
        let arrays = [&network.values, &self.first, &self.second, &self.average, &network.gradient].map(|m| m.at(0));
        let movement = Move::<f64>::new(plan.clip, plan.ema, step, norm).numbers();
        let factors = plan.adam.factors::<f64>(step, rate).numbers();
        let numbers: Vec<Argument> = movement.into_iter().chain(factors).map(Argument::from).collect();
        network.each("move", n, &[&arrays[..], &[n.into()], &numbers].concat())
    }

    fn read(&self, what: Kept) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.network.layout.len];
        self.memory(what).get(&mut values)?;
        Ok(values)
    }

    fn write(&mut self, what: Kept, values: &[T]) -> Result<()> {
        Ok(self.memory(what).set(values)?)
    }
}
