//! Training on the threads of this process. Gradients are summed over fixed groups of rows in a fixed order: parameters do not depend,
//! in any bit, on the number of threads.

use super::super::config::Layout;
use super::super::network::{Parameters, Seed, Work};
use super::super::noising::Row;
use super::super::provider::remove_mean;
use super::{Machine, Molecules, Plan, Rows, Sums};
use crate::error::Result;
use crate::train::adamw::Root;
use crate::train::device::Kept;
use crate::train::{CHUNK, Moments, Move, Moved, sum_gradients};
use rayon::prelude::*;
use scorefield_integrators::simd::SimdReal;
use std::sync::{Arc, Mutex, PoisonError};

/// Groups of rows with a gradient of their own: a multiple of most numbers of threads.
const GROUPS: usize = 12;
/// Atoms that are worked on together: what a layer keeps for the way back should stay in the second-level cache.
const ATOMS_PER_BLOCK: usize = 96;

struct Group<T> {
    gradient: Vec<T>,
    sums: Sums,
    rows: Vec<Row>,
    seed: Vec<T>,
}

pub(super) struct Host<T: SimdReal> {
    values: Vec<T>,
    average: Vec<T>,
    moments: Moments<T>,
    parameters: Parameters<T>,
    work: Vec<Mutex<Work<T>>>,
    groups: Vec<Group<T>>,
    gradient: Vec<T>,
    squares: Vec<f64>,
}

impl<T: SimdReal> Host<T> {
    /// All parameters are zero.
    pub(super) fn new(plan: &Plan, layout: Arc<Layout>) -> Self {
        let n = layout.len;
        let zeros = || vec![T::default(); n];
        let group = || Group { gradient: zeros(), sums: Sums::default(), rows: Vec::new(), seed: Vec::new() };
        Host {
            values: zeros(),
            average: zeros(),
            moments: Moments::zeros(n),
            parameters: Parameters::new(&plan.config, layout),
            work: (0..rayon::current_num_threads()).map(|_| Mutex::new(Work::new(true, false))).collect(),
            groups: (0..GROUPS.min(plan.batch)).map(|_| group()).collect(),
            gradient: zeros(),
            squares: vec![0.0; n.div_ceil(CHUNK)],
        }
    }

    /// Losses with the parameters that are loaded, and with `back` their gradient in the groups.
    fn evaluate(&mut self, plan: &Plan, data: &Molecules, rows: Rows, back: bool) -> Sums {
        let (parameters, work, count, all) = (&self.parameters, &self.work, self.groups.len(), rows.count(plan));
        self.groups.par_iter_mut().enumerate().for_each(|(g, group)| {
            group.sums = Sums::default();
            if back {
                group.gradient.fill(T::default());
            }
            let work = &work[rayon::current_thread_index().unwrap_or(0) % work.len()];
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            let atoms_of = |i: usize| data.molecule(rows.molecule(plan, data, i)).0.len();
            let mine = g * all / count..(g + 1) * all / count;
            let mut first = mine.start;
            while first < mine.end {
                let (mut end, mut atoms) = (first, 0);
                while end < mine.end && (atoms == 0 || atoms + atoms_of(end) <= ATOMS_PER_BLOCK) {
                    atoms += atoms_of(end);
                    end += 1;
                }
                let block = Block { plan, data, parameters, rows, scale: 1.0 / all as f64, back };
                block.run(first..end, atoms, &mut work, group);
                first = end;
            }
        });
        let mut sums = Sums::default();
        self.groups.iter().for_each(|g| sums.add(&g.sums));
        sums
    }
}

impl<T: SimdReal + Root> Machine<T> for Host<T> {
    fn losses(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<Sums> {
        self.parameters.load(&self.average);
        Ok(self.evaluate(plan, data, rows, false))
    }

    fn gradient(&mut self, plan: &Plan, data: &Molecules, rows: Rows) -> Result<(Sums, f64)> {
        self.parameters.load(&self.values);
        let sums = self.evaluate(plan, data, rows, true);
        let groups = &self.groups;
        let norm = sum_gradients(groups.len(), |g| &groups[g].gradient, &mut self.gradient, &mut self.squares);
        Ok((sums, norm))
    }

    fn follow(&mut self, plan: &Plan, step: u64, rate: f64, norm: f64) -> Result<()> {
        let Moments { first, second } = &mut self.moments;
        let (values, gradient, average) = (&mut self.values[..], &mut self.gradient[..], &mut self.average[..]);
        let to = Moved { values, gradient, first, second, average };
        Move::new(plan.clip, plan.ema, step, norm).apply(plan.adam.factors(step, rate), to);
        Ok(())
    }

    fn read(&self, what: Kept) -> Result<Vec<T>> {
        Ok(match what {
            Kept::Values => self.values.clone(),
            Kept::Average => self.average.clone(),
            Kept::First => self.moments.first.clone(),
            Kept::Second => self.moments.second.clone(),
        })
    }

    fn write(&mut self, what: Kept, values: &[T]) -> Result<()> {
        let to = match what {
            Kept::Values => &mut self.values,
            Kept::Average => &mut self.average,
            Kept::First => &mut self.moments.first,
            Kept::Second => &mut self.moments.second,
        };
        to.copy_from_slice(values);
        Ok(())
    }
}

/// Molecules that are worked on together.
struct Block<'a, T> {
    plan: &'a Plan,
    data: &'a Molecules,
    parameters: &'a Parameters<T>,
    rows: Rows,
    /// One over the number of rows of the batch.
    scale: f64,
    back: bool,
}

impl<T: SimdReal> Block<'_, T> {
    fn run(&self, rows: std::ops::Range<usize>, atoms: usize, work: &mut Work<T>, group: &mut Group<T>) {
        let (plan, config) = (self.plan, &self.plan.config);
        if group.rows.len() < rows.len() {
            group.rows.resize_with(rows.len(), Row::default);
        }
        work.reserve(config, atoms, atoms * atoms / 2);
        work.clear();
        for (row, i) in group.rows.iter_mut().zip(rows.clone()) {
            let types = self.rows.fill(plan, self.data, i, row);
            work.add(config, types, &row.x, 0.25 * row.sigma.ln());
        }
        work.forward(self.parameters);
        group.seed.clear();
        let mut first = 0;
        for row in &group.rows[..rows.len()] {
            let n = row.x.len() / 3;
            let start = group.seed.len();
            for i in first..first + n {
                group.seed.extend(work.vector(i));
            }
            let out = &mut group.seed[start..];
            remove_mean(out);
            let sign = plan.objective.sign(row.sigma);
            let (mut error, mut square) = (0.0, 0.0);
            let factor = row.factor(plan, self.scale);
            for (o, &label) in out.iter_mut().zip(&row.label) {
                let value = o.to_f64();
                let off = value - sign * label;
                error += off * off;
                square += value * value;
                *o = T::from_f64(factor * off);
            }
            remove_mean(out);
            group.sums.count(plan, row, error, square);
            first += n;
        }
        if self.back {
            work.backward(self.parameters, Seed::Vectors(&group.seed), Some(&mut group.gradient), None);
        }
    }
}
