//! Training on the threads of this process. Gradients are summed over fixed groups of rows in a fixed order: parameters do not depend,
//! in any bit, on the number of threads.

use super::super::context::centre;
use super::super::layout::Layout;
use super::super::network::{Parameters, Work};
use super::super::rows::Row;
use super::{Conformers, Machine, Plan, Rows, Sums};
use crate::error::Result;
use crate::train::adamw::Root;
use crate::train::device::Kept;
use crate::train::{CHUNK, Moments, Move, Moved, sum_gradients};
use rayon::prelude::*;
use scorefield_integrators::simd::SimdReal;
use std::sync::{Arc, Mutex, PoisonError};

/// Groups of rows with a gradient of their own: a multiple of most numbers of threads.
const GROUPS: usize = 12;
/// Atoms that are worked on together: enough rows for products, few enough for the caches.
const ATOMS_PER_BLOCK: usize = 96;

struct Group<T> {
    gradient: Vec<T>,
    sums: Sums,
    rows: Vec<Row>,
    seed: Vec<T>,
    out: Vec<f64>,
    /// First predictions of rows that see one.
    previous: Vec<f64>,
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
        let parameters = Parameters::new(&plan.config, layout, true);
        let group = || Group {
            gradient: zeros(),
            sums: Sums::default(),
            rows: Vec::new(),
            seed: Vec::new(),
            out: Vec::new(),
            previous: Vec::new(),
        };
        Host {
            values: zeros(),
            average: zeros(),
            moments: Moments::zeros(n),
            work: (0..rayon::current_num_threads()).map(|_| Mutex::new(Work::new(&parameters, true))).collect(),
            parameters,
            groups: (0..GROUPS.min(plan.batch)).map(|_| group()).collect(),
            gradient: zeros(),
            squares: vec![0.0; n.div_ceil(CHUNK)],
        }
    }

    /// Losses with the parameters that are loaded, and with `back` their gradient in the groups.
    fn evaluate(&mut self, plan: &Plan, data: &Conformers, rows: Rows, back: bool) -> Sums {
        let (parameters, work, count, all) = (&self.parameters, &self.work, self.groups.len(), rows.count(plan));
        self.groups.par_iter_mut().enumerate().for_each(|(g, group)| {
            group.sums = Sums::default();
            if back {
                group.gradient.fill(T::default());
            }
            let work = &work[rayon::current_thread_index().unwrap_or(0) % work.len()];
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            let atoms_of = |i: usize| rows.conformer(plan, data, i).0.len();
            let mine = g * all / count..(g + 1) * all / count;
            let mut first = mine.start;
            while first < mine.end {
                let (mut end, mut atoms) = (first, 0);
                while end < mine.end && (atoms == 0 || atoms + atoms_of(end) <= ATOMS_PER_BLOCK) {
                    atoms += atoms_of(end);
                    end += 1;
                }
                let block = Block { plan, data, parameters, rows, scale: 1.0 / all as f64, back };
                block.run(first..end, &mut work, group);
                first = end;
            }
        });
        let mut sums = Sums::default();
        self.groups.iter().for_each(|g| sums.add(&g.sums));
        sums
    }
}

impl<T: SimdReal + Root> Machine<T> for Host<T> {
    fn losses(&mut self, plan: &Plan, data: &Conformers, rows: Rows) -> Result<Sums> {
        self.parameters.load(&self.average);
        Ok(self.evaluate(plan, data, rows, false))
    }

    fn gradient(&mut self, plan: &Plan, data: &Conformers, rows: Rows) -> Result<(Sums, f64)> {
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

/// Conformers that are worked on together.
struct Block<'a, T> {
    plan: &'a Plan,
    data: &'a Conformers,
    parameters: &'a Parameters<T>,
    rows: Rows,
    /// One over the number of rows of the batch.
    scale: f64,
    back: bool,
}

impl<T: SimdReal> Block<'_, T> {
    fn run(&self, rows: std::ops::Range<usize>, work: &mut Work<T>, group: &mut Group<T>) {
        let (plan, config) = (self.plan, &self.plan.config);
        let Group { gradient, sums, rows: all, seed: seeds, out, previous } = group;
        if all.len() < rows.len() {
            all.resize_with(rows.len(), Row::default);
        }
        let all = &mut all[..rows.len()];
        for (row, i) in all.iter_mut().zip(rows.clone()) {
            self.rows.fill(plan, self.data, i, row);
        }
        work.set_graphs(self.parameters, rows.clone().map(|i| self.rows.conformer(plan, self.data, i).0));
        // Validation is of the network that knows the graph.
        if config.guidance && self.back {
            (0..all.len()).filter(|&k| all[k].without_graph).for_each(|k| work.forget(self.parameters, k));
        }
        work.set_times(self.parameters, all.iter().map(|r| r.time));
        if config.self_conditioning {
            self.first_predictions(all, work, previous);
        }
        let mut seen = 0;
        for (k, row) in all.iter().enumerate() {
            work.add(self.parameters, k, &row.x);
            if config.self_conditioning && row.self_conditioned {
                work.recall(self.parameters, &previous[seen..seen + row.x.len()]);
                seen += row.x.len();
            }
        }
        work.forward(self.parameters);
        seeds.clear();
        let mut first = 0;
        for row in &*all {
            let n = row.x.len() / 3;
            out.clear();
            out.extend((first..first + n).flat_map(|i| work.drift(i).map(|x| x.to_f64())));
            first += n;
            centre(out);
            let factor = row.factor(plan, self.scale);
            let mut error = 0.0;
            for (o, &clean) in out.iter_mut().zip(&row.clean) {
                let off = *o - clean;
                error += off * off;
                *o = factor * off;
            }
            // What is centred has a centred gradient.
            centre(out);
            seeds.extend(out.iter().map(|&g| T::from_f64(g)));
            sums.count(plan, row, error);
        }
        if self.back {
            work.backward(self.parameters, seeds, gradient);
        }
    }

    /// What the network predicts of rows that see a prediction of its own, one after the other. Nothing is differentiated through it.
    fn first_predictions(&self, rows: &[Row], work: &mut Work<T>, previous: &mut Vec<f64>) {
        previous.clear();
        let chosen = || rows.iter().enumerate().filter(|(_, row)| row.self_conditioned);
        chosen().for_each(|(k, row)| work.add(self.parameters, k, &row.x));
        let atoms: usize = chosen().map(|(_, row)| row.x.len() / 3).sum();
        if atoms == 0 {
            return;
        }
        work.forward(self.parameters);
        previous.extend((0..atoms).flat_map(|i| work.drift(i).map(|x| x.to_f64())));
        work.clear_structures();
        let mut rest = &mut previous[..];
        for (_, row) in chosen() {
            let (one, others) = rest.split_at_mut(row.x.len());
            centre(one);
            rest = others;
        }
    }
}
