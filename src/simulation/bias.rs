//! Collective variables and biases during a run: tables of variables and hills, and when hills are added.

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::io::FileLength;
use crate::io::table::{Field, TableWriter};
use scorefield_integrators::{Dimension, Ensemble, Fetch, UnitSystem, Want};
use scorefield_models::bias::{Bias, Observation};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Variables and bias of every replica.
pub(super) const TABLE: &str = "colvar.csv";

/// The biases of a run and the tables about them.
pub(super) struct Biasing {
    pub(super) bias: Arc<Bias>,
    every: u64,
    /// Steps between hills, each interval once.
    intervals: Vec<u64>,
    table: Option<TableWriter>,
    /// One for each bias with hills.
    hills: Vec<TableWriter>,
    observed: Observation,
    row: Vec<Field>,
}

/// `hills.csv`, `hills-2.csv`, …
pub(super) fn hills_file(term: usize) -> String {
    if term == 0 { "hills.csv".into() } else { format!("hills-{}.csv", term + 1) }
}

/// Names of variables with their units, as columns.
pub(super) fn columns(bias: &Bias) -> Vec<String> {
    let unit = |dimension| match (bias.units(), dimension == Dimension::LENGTH) {
        (UnitSystem::Reduced, _) => "",
        (UnitSystem::Si, true) => "_nm",
        (UnitSystem::Si, false) => "_rad",
    };
    bias.variables().iter().map(|v| format!("{}{}", v.name, unit(v.dimension()))).collect()
}

/// The column of an energy.
pub(super) fn energy_column(bias: &Bias, name: &str) -> String {
    format!("{name}{}", if bias.units() == UnitSystem::Si { "_kJ_mol" } else { "" })
}

impl Biasing {
    /// For `bias`; tables are opened later.
    pub(super) fn new(bias: Arc<Bias>, config: &RunConfig) -> Self {
        let mut intervals: Vec<u64> = bias.intervals().collect();
        intervals.sort_unstable();
        intervals.dedup();
        let every = config.colvar_every;
        Biasing { bias, every, intervals, table: None, hills: Vec::new(), observed: Observation::default(), row: Vec::new() }
    }

    /// Makes the tables, or goes on with them where `lengths` are given.
    pub(super) fn open(&mut self, out: &Path, overwrite: bool, lengths: Option<&[FileLength]>) -> Result<()> {
        let time = if self.bias.units() == UnitSystem::Si { "time_ps" } else { "time" };
        let names = columns(&self.bias);
        let mut tables: Vec<(PathBuf, Vec<String>)> = Vec::new();
        if self.every > 0 {
            let mut all = vec!["step".to_owned(), time.to_owned(), "replica".to_owned()];
            all.extend(names.iter().cloned());
            all.extend([energy_column(&self.bias, "bias"), energy_column(&self.bias, "offset")]);
            tables.push((out.join(TABLE), all));
        }
        for (term, (variables, _)) in self.bias.hill_terms().enumerate() {
            let mut all = vec!["step".to_owned(), "replica".to_owned()];
            all.extend(variables.iter().map(|&v| names[v].clone()));
            all.push(energy_column(&self.bias, "height"));
            tables.push((out.join(hills_file(term)), all));
        }
        if let Some(lengths) = lengths.filter(|l| l.len() != tables.len()) {
            return Err(Error::Run(format!(
                "the checkpoint records {} tables of variables and hills, but the run has {}",
                lengths.len(),
                tables.len()
            )));
        }
        let mut open = tables.iter().enumerate().map(|(k, (path, columns))| {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            match lengths {
                Some(lengths) => TableWriter::resume(path, &columns, lengths[k].bytes),
                None => TableWriter::create(path, &columns, overwrite),
            }
        });
        self.table = if self.every > 0 { open.next().transpose()? } else { None };
        self.hills = open.collect::<crate::io::Result<_>>()?;
        Ok(())
    }

    /// Names of all tables, in the order of [`Biasing::flush`].
    pub(super) fn files(&self) -> Vec<String> {
        let table = (self.every > 0).then(|| TABLE.to_owned());
        table.into_iter().chain((0..self.bias.hill_terms().count()).map(hills_file)).collect()
    }

    /// Brings all rows to the disk and returns the lengths of the tables.
    pub(super) fn flush(&mut self) -> Result<Vec<FileLength>> {
        let files = self.files();
        let tables = self.table.iter_mut().chain(&mut self.hills);
        Ok(tables.zip(files).map(|(table, file)| Ok(FileLength { file, bytes: table.flush()? })).collect::<crate::io::Result<_>>()?)
    }

    /// The first step after `step` at which something is due.
    pub(super) fn next(&self, step: u64) -> u64 {
        let after = |every: u64| step.checked_div(every).map_or(u64::MAX, |done| (done + 1).saturating_mul(every));
        self.intervals.iter().copied().chain([self.every]).map(after).min().unwrap_or(u64::MAX)
    }

    /// Writes the rows that are due, then adds the hills that are, and brings the forces up to date with them.
    pub(super) fn act(&mut self, ensemble: &mut Ensemble, time: f64, energy: bool) -> Result<()> {
        let step = ensemble.step();
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        let hills = step > 0 && self.intervals.iter().any(|&every| due(every));
        if !due(self.every) && !hills {
            return Ok(());
        }
        ensemble.fetch(Fetch { positions: true, velocities: false, forces: false })?;
        let first = ensemble.batch().id(0) as usize;
        for r in (0..ensemble.replicas()).filter(|&r| !ensemble.is_frozen(r)) {
            if !due(self.every) {
                break;
            }
            self.observed = self.bias.observe(first + r, ensemble.positions(r), ensemble.cell(r));
            let Some(table) = &mut self.table else { break };
            self.row.clear();
            self.row.extend([Field::from(step), Field::from(time), Field::from((first + r) as u64)]);
            self.row.extend(self.observed.values.iter().map(|&v| Field::from(v)));
            self.row.extend([Field::from(self.observed.bias), Field::from(self.observed.offset)]);
            table.row(&self.row)?;
        }
        if !hills {
            return Ok(());
        }
        for r in (0..ensemble.replicas()).filter(|&r| !ensemble.is_frozen(r)) {
            let values = self.bias.observe(first + r, ensemble.positions(r), ensemble.cell(r)).values;
            for hill in self.bias.deposit(step, first + r, &values, ensemble.kt(r)) {
                self.row.clear();
                self.row.extend([Field::from(step), Field::from(hill.replica as u64)]);
                self.row.extend(hill.centre.iter().map(|&v| Field::from(v)));
                self.row.push(Field::from(hill.height));
                self.hills[hill.term].row(&self.row)?;
            }
        }
        self.bias.update_offsets(step, ensemble.kt(0));
        Ok(ensemble.evaluate(if energy { Want::ENERGY } else { Want::FORCES })?)
    }
}
