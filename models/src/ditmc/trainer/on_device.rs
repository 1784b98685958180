//! Training on a device. Batches are made on the threads of this process while the device works on the one before; parameters, moments
//! and gradients stay there.

use super::super::batched::{DeviceNetwork, Structures};
use super::super::context::GraphContext;
use super::super::layout::Layout;
use super::super::rows::Row;
use super::{Conformers, Machine, Plan, Rows, Sums};
use crate::error::Result;
use crate::launch::copy;
use crate::train::adamw::Root;
use crate::train::device::{DeviceMoments, Following, Kept};
use rayon::prelude::*;
use scorefield_integrators::device::{Argument, Device, Memory};
use scorefield_integrators::simd::SimdReal;
use std::ops::Range;
use std::sync::Arc;

/// Rows with their labels.
struct Batch<T> {
    rows: Vec<Row>,
    structures: Structures<T>,
    /// The conformers that are to be found `[A, 3]`.
    label: Vec<T>,
    /// What errors are multiplied by, per row.
    factor: Vec<T>,
}

impl<T: SimdReal> Batch<T> {
    /// Rows `range` of `rows`.
    fn new(plan: &Plan, data: &Conformers, rows: Rows, range: Range<usize>) -> Self {
        let count = rows.count(plan);
        let made: Vec<(Row, &GraphContext)> = range
            .into_par_iter()
            .map(|i| {
                let mut row = Row::default();
                let context = rows.fill(plan, data, i, &mut row);
                (row, context)
            })
            .collect();
        let structures = Structures::new(&plan.config, made.iter().map(|(row, context)| (*context, row.time, &row.x[..])));
        let rows: Vec<Row> = made.into_iter().map(|(row, _)| row).collect();
        Batch {
            label: rows.iter().flat_map(|row| row.clean.iter().map(|&x| T::from_f64(x))).collect(),
            factor: rows.iter().map(|row| T::from_f64(row.factor(plan, 1.0 / count as f64))).collect(),
            structures,
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
    /// Errors and squares of structures and axes.
    sums: Memory<T>,
    /// The batch that comes next, and its step.
    ready: Option<(u64, Batch<T>)>,
}

impl<T: SimdReal + Root> OnDevice<T> {
    /// All parameters are zero.
    pub(super) fn new(device: &Device, plan: &Plan, data: &Conformers, layout: Arc<Layout>) -> Result<Self> {
        let mut elements: Vec<i32> = data.contexts.iter().flat_map(|c| c.types.iter().map(|&z| z as i32)).collect();
        elements.sort_unstable();
        elements.dedup();
        Ok(OnDevice {
            moments: DeviceMoments::new(device, layout.len)?,
            network: DeviceNetwork::new(device, &plan.config, layout)?,
            elements: device.memory_of(&elements)?,
            label: Memory::default(),
            factor: Memory::default(),
            sums: Memory::default(),
            ready: None,
            device: device.clone(),
        })
    }

    fn upload(&mut self, batch: &Batch<T>) -> Result<()> {
        self.network.upload(&batch.structures)?;
        copy(&self.device, &mut self.label, &batch.label)?;
        copy(&self.device, &mut self.factor, &batch.factor)?;
        Ok(self.sums.reserve(&self.device, 6 * batch.rows.len())?)
    }

    /// From vectors to losses of structures, and to gradients of vectors where `seed` leads.
    fn find_losses(&self, batch: &Batch<T>, seed: Argument) -> Result<()> {
        let (network, rows) = (&self.network, batch.rows.len());
        let arrays = [self.label.at(0), self.factor.at(0), seed, self.sums.at(0)];
        network.launcher().each("losses", 3 * rows, &[&network.vectors(&batch.structures)[..], &arrays].concat())
    }

    /// The losses of a batch, once the device has them.
    fn fetch(&self, plan: &Plan, batch: &Batch<T>) -> Result<Sums> {
        let mut values = vec![T::default(); 6 * batch.rows.len()];
        self.sums.get(&mut values)?;
        let mut sums = Sums::default();
        for (row, v) in batch.rows.iter().zip(values.as_chunks::<6>().0) {
            sums.count(plan, row, v[0].to_f64() + v[2].to_f64() + v[4].to_f64());
        }
        Ok(sums)
    }
}

impl<T: SimdReal + Root> Machine<T> for OnDevice<T> {
    fn losses(&mut self, plan: &Plan, data: &Conformers, rows: Rows) -> Result<Sums> {
        let (count, mut sums) = (rows.count(plan), Sums::default());
        for first in (0..count).step_by(plan.batch) {
            let batch = Batch::new(plan, data, rows, first..(first + plan.batch).min(count));
            self.upload(&batch)?;
            self.moments.swap_average(self.network.launcher_mut());
            let launched = self.network.forward(&batch.structures).and_then(|()| self.find_losses(&batch, Argument::NOWHERE));
            self.moments.swap_average(self.network.launcher_mut());
            launched?;
            sums.add(&self.fetch(plan, &batch)?);
        }
        Ok(sums)
    }

    fn gradient(&mut self, plan: &Plan, data: &Conformers, rows: Rows) -> Result<(Sums, f64)> {
        let step = rows.step();
        let batch = match self.ready.take() {
            Some((at, batch)) if at == step => batch,
            _ => Batch::new(plan, data, rows, 0..plan.batch),
        };
        self.upload(&batch)?;
        let network = &self.network;
        network.forward(&batch.structures)?;
        self.find_losses(&batch, network.seed(&batch.structures)?)?;
        network.backward(&batch.structures, &self.elements)?;
        self.moments.square(network.launcher())?;
        // While the device works.
        if step + 1 < plan.rate.steps {
            self.ready = Some((step + 1, Batch::new(plan, data, Rows::Training { step: step + 1 }, 0..plan.batch)));
        }
        let norm = self.moments.norm()?;
        Ok((self.fetch(plan, &batch)?, norm))
    }

    fn follow(&mut self, plan: &Plan, step: u64, rate: f64, norm: f64) -> Result<()> {
        let how = Following { adam: plan.adam, clip: plan.clip, ema: plan.ema, step, rate, norm };
        self.moments.follow(self.network.launcher(), how)
    }

    fn read(&self, what: Kept) -> Result<Vec<T>> {
        self.moments.read(self.network.launcher(), what)
    }

    fn write(&mut self, what: Kept, values: &[T]) -> Result<()> {
        self.moments.write(self.network.launcher(), what, values)
    }
}
