//! Training on a device. Batches are made on the threads of this process while the device works on the one before; parameters, moments
//! and gradients stay there.

use super::super::batched::{DeviceNetwork, Graphs, Piece};
use super::super::config::Layout;
use super::super::noising::Row;
use super::{Machine, Molecules, Plan, Rows, Sums};
use crate::error::Result;
use crate::launch::copy;
use crate::train::adamw::Root;
use crate::train::device::{DeviceMoments, Following, Kept};
use rayon::prelude::*;
use scorefield_integrators::device::{Argument, Device, Memory};
use scorefield_integrators::simd::SimdReal;
use std::ops::Range;
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
    /// Rows `range` of `rows`.
    fn new(plan: &Plan, data: &Molecules, rows: Rows, range: Range<usize>, back: bool) -> Self {
        let count = rows.count(plan);
        let pieces: Vec<(Vec<Row>, Piece<T>)> = (0..range.len().div_ceil(ROWS_PER_PIECE))
            .into_par_iter()
            .map(|piece| {
                let (mut made, mut graphs) = (Vec::new(), Piece::default());
                let first = range.start + piece * ROWS_PER_PIECE;
                for i in first..(first + ROWS_PER_PIECE).min(range.end) {
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
    moments: DeviceMoments<T>,
    /// Elements that there are.
    elements: Memory<i32>,
    label: Memory<T>,
    factor: Memory<T>,
    /// Errors and squares of molecules and axes.
    sums: Memory<T>,
    /// The batch that comes next, and its step.
    ready: Option<(u64, Batch<T>)>,
}

impl<T: SimdReal + Root> OnDevice<T> {
    /// All parameters are zero.
    pub(super) fn new(device: &Device, plan: &Plan, data: &Molecules, layout: Arc<Layout>) -> Result<Self> {
        let n = layout.len;
        let mut elements: Vec<i32> = data.types.iter().map(|&z| z as i32).collect();
        elements.sort_unstable();
        elements.dedup();
        Ok(OnDevice {
            network: DeviceNetwork::new(device, &plan.config, layout)?,
            moments: DeviceMoments::new(device, n)?,
            elements: device.memory_of(&elements)?,
            label: Memory::default(),
            factor: Memory::default(),
            sums: Memory::default(),
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
        network.launcher.each("losses", 3 * rows, &[&network.vectors(rows)[..], &arrays].concat())
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
}

impl<T: SimdReal + Root> Machine<T> for OnDevice<T> {
    fn losses(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<Sums> {
        let (count, mut sums) = (rows.count(plan), Sums::default());
        for first in (0..count).step_by(plan.batch) {
            let batch = Batch::new(plan, data, rows, first..(first + plan.batch).min(count), false);
            self.upload(&batch, false)?;
            self.moments.swap_average(&mut self.network.launcher);
            let launched = self.network.forward(&batch.graphs).and_then(|()| self.find_losses(&batch, Argument::NOWHERE));
            self.moments.swap_average(&mut self.network.launcher);
            launched?;
            sums.add(&self.fetch(plan, &batch)?);
        }
        Ok(sums)
    }

    fn gradient(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<(Sums, f64)> {
        let step = rows.step();
        let batch = match self.ready.take() {
            Some((at, batch)) if at == step => batch,
            _ => Batch::new(plan, data, rows, 0..plan.batch, true),
        };
        self.upload(&batch, true)?;
        let network = &self.network;
        network.forward(&batch.graphs)?;
        self.find_losses(&batch, network.seed(batch.graphs.atoms())?)?;
        network.backward(&batch.graphs, &self.elements)?;
        self.moments.square(&network.launcher)?;
        // While the device works.
        if step + 1 < plan.steps() {
            self.ready = Some((step + 1, Batch::new(plan, data, Rows::Training { step: step + 1 }, 0..plan.batch, true)));
        }
        let norm = self.moments.norm()?;
        Ok((self.fetch(plan, &batch)?, norm))
    }

    fn follow(&mut self, plan: &Plan, step: u64, rate: f64, norm: f64) -> Result<()> {
        let how = Following { adam: plan.adam, clip: plan.clip, ema: plan.ema, step, rate, norm };
        self.moments.follow(&self.network.launcher, how)
    }

    fn read(&self, what: Kept) -> Result<Vec<T>> {
        self.moments.read(&self.network.launcher, what)
    }

    fn write(&mut self, what: Kept, values: &[T]) -> Result<()> {
        self.moments.write(&self.network.launcher, what, values)
    }
}
