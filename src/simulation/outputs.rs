//! The files of a run: one set of log and trajectory per temperature.

use super::start::ANGSTROMS_PER_NM;
use crate::checkpoint::SetFiles;
use crate::config::{LogFormat, RunConfig, Sampling, TrajectoryLayout};
use crate::error::{Error, Result};
use crate::io::{FileLength, Layout, Report, TrajectoryOptions, TrajectoryWriter, subsystem};
use crate::report::log::{LogLayout, LogWriter, Row};
use scorefield_integrators::{Batch, Ensemble, Exchange, System, UnitSystem, View};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Log and trajectory of the replicas at one temperature.
pub(super) struct Set {
    /// K, or kT in reduced units.
    pub(super) temperature: f64,
    pub(super) log: Option<LogWriter>,
    pub(super) trajectory: Option<TrajectoryWriter>,
    /// Replicas that are at this temperature now, one per copy; numbered among those that run here.
    pub(super) members: Vec<usize>,
    /// Number of the first replica among all, and place of the first member within the sets of all.
    pub(super) first: usize,
    pub(super) first_member: usize,
    /// Atoms of each replica `[R]` that the trajectory holds; `None` where it holds all.
    written: Option<Written>,
    /// What positions are multiplied with for the trajectory: files are in Å, but reduced units are written as they are.
    scale: f64,
    /// Whether frames have velocities.
    velocities: bool,
}

/// Whether frames of this run are written with velocities: where its format keeps them and its atoms have them.
pub(super) fn with_velocities(config: &RunConfig) -> bool {
    let keeps = ["trr", "nc", "netcdf", "amber netcdf", "gro"].contains(&config.trajectory_format.to_ascii_lowercase().as_str());
    keeps && config.integrator.has_velocities()
}

/// Atoms of each replica that are written, indices from 0.
pub(super) type Written = Vec<Arc<[usize]>>;

/// Names of the files of every set.
pub(super) struct Names {
    pub(super) log: PathBuf,
    pub(super) trajectory: PathBuf,
}

pub(super) fn names(config: &RunConfig) -> Vec<Names> {
    let extension = match config.log_format {
        LogFormat::Csv => "csv",
        LogFormat::Jsonl => "jsonl",
    };
    let suffixes = match &config.sampling {
        Sampling::Constant { .. } => vec![String::new()],
        Sampling::Exchange { temperatures, .. } => suffixes(temperatures, config.units),
    };
    suffixes
        .into_iter()
        .map(|s| Names {
            log: config.out.join(format!("log{s}.{extension}")),
            trajectory: config.out.join(format!("trajectory{s}.{}", trajectory_extension(&config.trajectory_format))),
        })
        .collect()
}

/// `-300K`, `-326.5K`, … with as few decimals as tell all apart.
fn suffixes(temperatures: &[f64], units: UnitSystem) -> Vec<String> {
    let unit = if units == UnitSystem::Si { "K" } else { "" };
    let with = |decimals: usize| temperatures.iter().map(|t| format!("-{t:.decimals$}{unit}")).collect::<Vec<_>>();
    (0..12)
        .map(with)
        .find(|names| {
            let close = temperatures.iter().zip(names).all(|(t, n)| {
                let shown: f64 = n.trim_matches(['-', 'K']).parse().unwrap_or(0.0);
                (shown / t - 1.0).abs() < 1e-2
            });
            close && names.windows(2).all(|p| p[0] != p[1])
        })
        .unwrap_or_else(|| (0..temperatures.len()).map(|i| format!("-{i}")).collect())
}

/// The extension that is usual for a format's name.
fn trajectory_extension(format: &str) -> String {
    match format.to_ascii_lowercase().as_str() {
        "netcdf" | "amber netcdf" => "nc".into(),
        "lammps" => "lammpstrj".into(),
        other => other.into(),
    }
}

/// Makes the files of a new run, or goes on with those of an old one.
///
/// # Errors
/// Where files are there already, are missing, or cannot be written.
pub(super) fn open(
    config: &RunConfig,
    batch: &Batch,
    written: Option<&Written>,
    overwrite: bool,
    resume: Option<&[SetFiles]>,
) -> Result<Vec<Set>> {
    let names = names(config);
    if let Some(files) = resume.filter(|f| f.len() != names.len()) {
        return Err(Error::Run(format!("the checkpoint records files of {} temperatures, but the run has {}", files.len(), names.len())));
    }
    let mut sets = Vec::with_capacity(names.len());
    let layout = LogLayout { format: config.log_format, dt: config.dt, units: config.units };
    let scale = if config.units == UnitSystem::Si { 1.0 } else { 1.0 / ANGSTROMS_PER_NM };
    for (i, ((names, members), &temperature)) in names.iter().zip(members(config, batch)).zip(config.sampling.temperatures()).enumerate() {
        let recorded = resume.map(|files| &files[i]);
        let first = batch.id(0) as usize;
        let first_member = first_member(config, first);
        let log = match recorded.map(|r| &r.log) {
            _ if config.log_every == 0 => None,
            Some(Some(length)) => Some(LogWriter::resume(&names.log, &layout, length)?),
            Some(None) => return Err(missing(&names.log)),
            None => Some(LogWriter::create(&names.log, &layout, overwrite)?),
        };
        let trajectory = match recorded.map(|r| &r.trajectory[..]) {
            _ if config.trajectory_every == 0 => None,
            Some([]) => return Err(missing(&names.trajectory)),
            lengths => Some(trajectory(config, names, batch, written, &members, overwrite, lengths)?),
        };
        sets.push(Set {
            temperature,
            log,
            trajectory,
            members,
            first,
            first_member,
            written: written.cloned(),
            scale,
            velocities: with_velocities(config),
        });
    }
    Ok(sets)
}

/// The replicas of each set, as the run begins.
pub(super) fn members(config: &RunConfig, batch: &Batch) -> Vec<Vec<usize>> {
    match &config.sampling {
        Sampling::Constant { .. } => vec![(0..batch.replicas()).collect()],
        Sampling::Exchange { temperatures: t, .. } => (0..t.len()).map(|i| (i..batch.replicas()).step_by(t.len()).collect()).collect(),
    }
}

/// Place of replica `first` within its set, of all replicas.
pub(super) fn first_member(config: &RunConfig, first: usize) -> usize {
    match &config.sampling {
        Sampling::Constant { .. } => first,
        Sampling::Exchange { temperatures, .. } => first / temperatures.len(),
    }
}

fn missing(path: &Path) -> Error {
    Error::Checkpoint { path: path.to_owned(), what: "the run did not write this file before; leave the intervals as they were".into() }
}

/// How the trajectory of a set is written.
pub(super) fn options(config: &RunConfig, path: &Path, overwrite: bool) -> TrajectoryOptions {
    let dt = if config.units == UnitSystem::Si { config.dt } else { 0.0 };
    TrajectoryOptions {
        format: Some(config.trajectory_format.clone()),
        layout: match config.trajectory_layout {
            TrajectoryLayout::Together => Layout::Together,
            TrajectoryLayout::PerReplica => Layout::PerReplica,
        },
        overwrite,
        first_step: config.trajectory_every,
        ..TrajectoryOptions::new(path, config.trajectory_every, dt)
    }
}

fn trajectory(
    config: &RunConfig,
    names: &Names,
    batch: &Batch,
    written: Option<&Written>,
    members: &[usize],
    overwrite: bool,
    lengths: Option<&[FileLength]>,
) -> Result<TrajectoryWriter> {
    let options = options(config, &names.trajectory, overwrite);
    let part = written_batch(config, batch, written, members)?;
    Ok(match lengths {
        Some(lengths) => TrajectoryWriter::resume(&options, &part, lengths)?,
        None => TrajectoryWriter::create(&options, &part)?,
    })
}

/// What the trajectory holds of the members of a set. Files are numbered within their set: at one temperature of an exchange,
/// by copy.
pub(super) fn written_batch(config: &RunConfig, batch: &Batch, written: Option<&Written>, members: &[usize]) -> Result<Batch> {
    let whole = |r: usize| batch.system(r).clone();
    let systems = match written {
        None => members.iter().map(|&r| whole(r)).collect(),
        Some(atoms) => {
            // Replicas of one molecule go on sharing what is written of it.
            let mut parts: Vec<(Arc<System>, Arc<[usize]>, Arc<System>)> = Vec::new();
            let mut part = |r: usize| {
                let same = |p: &&(Arc<System>, Arc<[usize]>, Arc<System>)| Arc::ptr_eq(&p.0, batch.system(r)) && p.1 == atoms[r];
                if let Some(known) = parts.iter().find(same) {
                    return known.2.clone();
                }
                let new = Arc::new(subsystem(batch.system(r), &atoms[r]));
                parts.push((whole(r), atoms[r].clone(), new.clone()));
                new
            };
            members.iter().map(|&r| part(r)).collect()
        }
    };
    let first = first_member(config, batch.id(0) as usize) as u32;
    Ok(Batch::new(systems, (first..first + members.len() as u32).collect())?)
}

impl Set {
    /// Finds out who is at this set's temperature.
    pub(super) fn update_members(&mut self, rung: usize, exchange: &Exchange) {
        for (copy, member) in self.members.iter_mut().enumerate() {
            *member = exchange.replica_at(copy, rung);
        }
    }

    /// Appends a row per replica.
    pub(super) fn write_log(&mut self, ensemble: &Ensemble, rows: impl Fn(usize) -> Row) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        for &replica in self.members.iter().filter(|&&r| !ensemble.is_frozen(r)) {
            log.write(&rows(replica))?;
        }
        Ok(())
    }

    /// Hands a frame per replica to the writer.
    pub(super) fn write_frames(&mut self, ensemble: &Ensemble, time: f64) -> Result<()> {
        let Some(writer) = &mut self.trajectory else { return Ok(()) };
        let mut positions = writer.buffer();
        let mut velocities = self.velocities.then(|| Vec::with_capacity(positions.capacity()));
        for &replica in &self.members {
            let append = |view: View<'_>, to: &mut Vec<f64>| match &self.written {
                None => to.extend((0..view.len()).map(|k| view.get(k) * self.scale)),
                Some(atoms) => to.extend(atoms[replica].iter().flat_map(|&i| 3 * i..3 * i + 3).map(|k| view.get(k) * self.scale)),
            };
            append(ensemble.positions(replica), &mut positions);
            if let Some(velocities) = &mut velocities {
                append(ensemble.velocities(replica), velocities);
            }
        }
        let cells = self.members.iter().map(|&r| ensemble.cell(r).map(|c| c.map(|x| x * self.scale))).collect();
        writer.write(Report { step: ensemble.step(), time: Some(time), positions, velocities, cells })?;
        Ok(())
    }

    /// Brings everything to the disk and returns the lengths of all files.
    pub(super) fn flush(&mut self) -> Result<SetFiles> {
        Ok(SetFiles {
            log: self.log.as_mut().map(LogWriter::flush).transpose()?,
            trajectory: self.trajectory.as_mut().map_or(Ok(Vec::new()), TrajectoryWriter::flush)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_temperatures_apart() {
        let k = |t: &[f64]| suffixes(t, UnitSystem::Si);
        assert_eq!(k(&[300.0, 350.2, 600.0]), ["-300K", "-350K", "-600K"]);
        assert_eq!(k(&[300.0, 300.2]), ["-300.0K", "-300.2K"]);
        assert_eq!(suffixes(&[0.5, 1.0, 2.0], UnitSystem::Reduced), ["-0.5", "-1.0", "-2.0"]);
        assert_eq!(suffixes(&[0.25, 0.35], UnitSystem::Reduced), ["-0.25", "-0.35"]);
    }
}
