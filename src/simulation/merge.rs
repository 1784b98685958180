//! Parts of an ensemble that ran apart (`--replica-range`), joined into the run that they are parts of.
//!
//! Noise is keyed by the number of a replica among all, so the parts hold the bits of the whole run already. Joining puts rows of
//! logs and frames of trajectories in the order of one run, counts and averages anew, evaluates the forces once to see that model
//! and files are still the same, and leaves a directory that can be resumed like any other.

use super::outputs;
use super::{DivergenceSummary, FILE, OutsideSummary, SUMMARY_FILE, Simulation, check_global, open_device, start};
use crate::checkpoint::{Checkpoint, SetFiles};
use crate::config::{LogFormat, RunConfig, TrajectoryLayout};
use crate::error::{Error, Result, usage};
use crate::io::{FileLength, Part as FilePart, join_trajectories};
use crate::runtime::{Outcome, Runtime};
use scorefield_integrators::exchange::ExchangeState;
use scorefield_integrators::{Array, State, simd};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings in which parts of one run may differ.
const MAY_DIFFER: [&str; 5] = ["replica-range", "out", "checkpoint-every", "checkpoint-minutes", "summary"];

/// A part of the run.
struct Part {
    directory: PathBuf,
    saved: Checkpoint,
    /// Numbers of its replicas among all.
    range: Range<usize>,
    summary: PartSummary,
}

/// What only the summary of a part says.
#[derive(Deserialize)]
struct PartSummary {
    seconds: f64,
    acceptance: Option<f64>,
    #[serde(default)]
    divergences: Vec<DivergenceSummary>,
    #[serde(default)]
    outside_training: Option<OutsideSummary>,
}

/// Joins the runs in `directories`, in any order, into one in `out`, which must not be there yet, and prints its summary.
///
/// # Errors
/// Where a part is missing, there twice, not finished or of another run, and where files cannot be read or written. `out` appears
/// whole or not at all.
pub fn merge(directories: &[PathBuf], out: &Path, runtime: &Runtime) -> Result<Outcome> {
    if std::fs::read_dir(out).is_ok_and(|mut files| files.next().is_some()) || out.is_file() {
        return usage(format!("{} is there already; write to another directory (--out DIR)", out.display()));
    }
    let parts = read_parts(directories)?;
    let temporary = Temporary::beside(out)?;
    let mut simulation = Simulation::join(&parts, out, &temporary.0, runtime)?;
    std::fs::rename(&temporary.0, out).map_err(|e| Error::file("make the directory", out, e))?;
    simulation.config.out = out.to_owned();
    simulation.sets = outputs::open(
        &RunConfig { trajectory_every: 0, ..simulation.config.clone() },
        simulation.ensemble.batch(),
        None,
        false,
        Some(&simulation.header.files),
    )?;
    simulation.update_members();
    simulation.finish(None, runtime)?;
    Ok(Outcome::Done)
}

/// A directory that is removed unless it got another name.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(out: &Path) -> Result<Self> {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let path = out.with_file_name(format!(".{name}.part-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| Error::file("make the directory", &path, e))?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After renaming there is nothing to remove.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads the parts and puts them in order.
fn read_parts(directories: &[PathBuf]) -> Result<Vec<Part>> {
    let mut parts = directories.iter().map(|d| Part::read(d)).collect::<Result<Vec<_>>>()?;
    parts.sort_by_key(|p| p.range.start);
    let Some((first, rest)) = parts.split_first() else {
        return usage("name the directories of all parts: scorefield merge PART… --out DIR");
    };
    rest.iter().try_for_each(|part| first.check_same(part))?;
    let total = first.saved.header.replicas;
    let mut next = 0;
    for (k, part) in parts.iter().enumerate() {
        let Range { start, end } = part.range;
        if start < next {
            let before = parts[k - 1].directory.display();
            return usage(format!("{} and {before} both have replica {start}; name each part once", part.directory.display()));
        }
        if start > next {
            return usage(format!("no part has the replicas {next}..{start} of {total}; run them with --replica-range {next}..{start}"));
        }
        next = end;
    }
    if next < total {
        return usage(format!("no part has the replicas {next}..{total} of {total}; run them with --replica-range {next}..{total}"));
    }
    Ok(parts)
}

impl Part {
    fn read(directory: &Path) -> Result<Self> {
        let saved = Checkpoint::read(directory)?;
        let (header, name) = (&saved.header, directory.display());
        let run = header.settings.run();
        let Some(text) = &run.replica_range else {
            return usage(format!("{name} is a whole run already: it was made without --replica-range"));
        };
        let fail = |what: &str| Error::Checkpoint { path: directory.join(FILE), what: what.into() };
        let start = text.split_once("..").and_then(|(start, _)| start.trim().parse().ok()).ok_or_else(|| fail("its range is damaged"))?;
        let (steps, summary) = (run.steps.unwrap_or(0), directory.join(SUMMARY_FILE));
        if header.step < steps || !summary.exists() {
            return usage(format!(
                "{name} is at step {} of {steps}; finish it first: scorefield {} --resume {name}",
                header.step,
                header.settings.command()
            ));
        }
        let bytes = std::fs::read(&summary).map_err(|e| Error::file("read", &summary, e))?;
        let summary = serde_json::from_slice(&bytes).map_err(|e| Error::Run(format!("{}: {e}", summary.display())))?;
        let range = start..start + saved.frozen.len();
        Ok(Part { directory: directory.to_owned(), range, summary, saved })
    }

    /// Checks that `other` is a part of the same run.
    fn check_same(&self, other: &Part) -> Result<()> {
        let (a, b) = (&self.saved.header, &other.saved.header);
        let differ = |what: &str, mine: String, theirs: String| {
            let (here, there) = (self.directory.display(), other.directory.display());
            usage(format!("{what} is {mine} in {here} and {theirs} in {there}; parts of one run differ in --replica-range only"))
        };
        let object = |settings| serde_json::to_value(settings).map_err(|e| Error::Run(e.to_string()));
        let (mine, theirs) = (object(&a.settings)?, object(&b.settings)?);
        for (key, value) in mine.as_object().into_iter().flatten().filter(|(key, _)| !MAY_DIFFER.contains(&key.as_str())) {
            if theirs[key] != *value {
                return differ(&format!("`{key}`"), value.to_string(), theirs[key].to_string());
            }
        }
        let facts = |part: &Part| {
            let h = &part.saved.header;
            [
                ("the seed", h.seed.to_string()),
                ("the precision", part.saved.dtype().to_string()),
                ("the instruction set", h.isa.to_string()),
                ("the device", h.device.clone()),
                ("the step", h.step.to_string()),
                ("the number of replicas in all", h.replicas.to_string()),
                ("the version", h.version.clone()),
                ("the content of input files", h.inputs.iter().map(|i| &i.fnv1a[..]).collect::<Vec<_>>().join(" ")),
            ]
        };
        match facts(self).into_iter().zip(facts(other)).find(|(a, b)| a.1 != b.1) {
            Some(((what, mine), (_, theirs))) => differ(what, mine, theirs),
            None => Ok(()),
        }
    }
}

impl Simulation {
    /// The run that `parts` make, with all its files but the summary in `directory`, which will become `out`.
    fn join(parts: &[Part], out: &Path, directory: &Path, runtime: &Runtime) -> Result<Self> {
        let first = &parts[0];
        if runtime.global.isa.is_none() {
            // An instruction set that is lacking shows in the check below.
            let _ = simd::choose_isa(first.saved.header.isa);
        }
        first.saved.check_machine(&first.directory)?;
        check_global(&first.saved, runtime)?;
        let mut settings = first.saved.header.settings.clone();
        let run = settings.run_mut();
        (run.replica_range, run.summary, run.out) = (None, None, Some(out.to_owned()));
        if settings.run().plumed.is_some() {
            return usage("--plumed has files of its own that cannot be joined; keep the parts as they are");
        }
        let loaded = start::load(settings.run(), runtime.quiet)?;
        settings.complete(&loaded.subject)?;
        let (mut config, _) = settings.resolve(&loaded.subject)?;
        config.out = directory.to_owned();
        // The state replaces whatever start structures would be relaxed to.
        config.relax = false;
        let device = open_device(&config, &*loaded.provider)?;
        first.saved.check_device(&first.directory, device.as_ref())?;
        let mut header = crate::checkpoint::Header { settings, ..first.saved.header.clone() };
        header.version = env!("CARGO_PKG_VERSION").into();
        header.tables.clear();
        let (dtype, remote) = (first.saved.dtype(), loaded.remote);
        let mut simulation = Self::build(config, header, loaded, dtype, device, None, runtime, |_, _, _| Ok(Vec::new()))?;
        if simulation.header.replicas != first.saved.header.replicas {
            let what = "the start structures are not as many as when the run began; restore the file".into();
            return Err(Error::Checkpoint { path: first.directory.join(FILE), what });
        }
        let frozen: Vec<bool> = parts.iter().flat_map(|p| p.saved.frozen.iter().copied()).collect();
        simulation.restore_hills(&joined_hills(parts))?;
        simulation.restore_state(joined_state(parts)?, &frozen)?;
        for part in parts {
            simulation.check_forces(part.range.clone(), &part.saved.header, &part.directory, remote, runtime)?;
            if let Some(counts) = simulation.free_energy.as_mut().filter(|_| !part.saved.free_energy.is_empty()) {
                counts.join(&part.saved.free_energy)?;
            }
            simulation.divergences.extend(part.summary.divergences.iter().cloned());
            simulation.outside.join(part.summary.outside_training.clone().unwrap_or_default());
            simulation.stepping += Duration::try_from_secs_f64(part.summary.seconds).unwrap_or_default();
        }
        simulation.stepped = simulation.step();
        // All parts tried as many moves per replica.
        let weighted: Option<f64> = parts.iter().map(|p| p.summary.acceptance.map(|a| a * p.range.len() as f64)).sum();
        simulation.acceptance = weighted.map(|sum| sum / simulation.header.replicas as f64);
        if let Some(exchange) = &mut simulation.exchange {
            let states: Option<Vec<ExchangeState>> = parts.iter().map(|p| p.saved.header.exchange.clone()).collect();
            exchange.restore(ExchangeState::join(&states.unwrap_or_default())?)?;
        }
        simulation.header.files = simulation.join_files(parts)?;
        for file in simulation.biasing.as_ref().map(|b| b.files()).unwrap_or_default() {
            let (tables, to) = (parts.iter().map(|p| p.directory.join(&file)).collect::<Vec<_>>(), directory.join(&file));
            join_logs(&tables, &to, LogFormat::Csv)?;
            simulation.header.tables.push(length_of(&to)?);
        }
        simulation.write_config()?;
        // The first structure of the run is that of the first part.
        let structure = first.directory.join(super::STRUCTURE_FILE);
        if structure.exists() {
            copy(&structure, directory)?;
        }
        simulation.write_checkpoint()?;
        Ok(simulation)
    }

    /// Joins logs and trajectories, and says how long they became.
    fn join_files(&self, parts: &[Part]) -> Result<Vec<SetFiles>> {
        let (config, batch) = (&self.config, self.ensemble.batch());
        let mut files = Vec::new();
        let sets = outputs::members(config, batch);
        for (i, (names, members)) in outputs::names(config).iter().zip(sets).enumerate() {
            let of = |part: &Part| part.saved.header.files.get(i).cloned().unwrap_or_default();
            let mut set = SetFiles::default();
            if config.log_every > 0 {
                let logs = parts.iter().map(|p| p.directory.join(file_name(&names.log))).collect::<Vec<_>>();
                join_logs(&logs, &names.log, config.log_format)?;
                set.log = Some(length_of(&names.log)?);
            }
            if config.trajectory_every > 0 {
                let written = outputs::written_batch(config, batch, self.written.as_ref(), &members)?;
                let mut sources = Vec::new();
                for part in parts {
                    for file in of(part).trajectory {
                        let path = part.directory.join(&file.file);
                        if file.file.contains(".part") {
                            return Err(Error::Run(format!(
                                "{}: the part was interrupted, and its trajectory goes on in a second file, in which frames are repeated; \
                                 run the part again without interruption, or write dcd or extxyz",
                                path.display()
                            )));
                        }
                        sources.push(FilePart { path, replicas: part.range.len() * members.len() / batch.replicas() });
                    }
                }
                let targets = match config.trajectory_layout {
                    TrajectoryLayout::Together => {
                        let options = outputs::options(config, &names.trajectory, false);
                        join_trajectories(&sources, &options, &written)?;
                        vec![names.trajectory.clone()]
                    }
                    // Files of single replicas have their numbers in their names.
                    TrajectoryLayout::PerReplica => sources.iter().map(|s| copy(&s.path, &config.out)).collect::<Result<_>>()?,
                };
                set.trajectory = targets.iter().map(|t| length_of(t)).collect::<Result<_>>()?;
            }
            files.push(set);
        }
        Ok(files)
    }
}

/// The hills of all replicas, bias by bias.
fn joined_hills(parts: &[Part]) -> Vec<Vec<Vec<f64>>> {
    let mut all = parts[0].saved.hills();
    for part in &parts[1..] {
        all.iter_mut().zip(part.saved.hills()).for_each(|(to, from)| to.extend(from));
    }
    all
}

/// The states of all replicas, part after part.
fn joined_state(parts: &[Part]) -> Result<State> {
    let mut state = parts[0].saved.state.clone();
    state.kt = parts.iter().flat_map(|p| p.saved.state.kt.iter().copied()).collect();
    state.cells = parts.iter().map(|p| p.saved.state.cells.clone()).collect::<Option<Vec<_>>>().map(|c| c.concat());
    macro_rules! joined {
        ($kind:ident) => {{
            let halves: Option<Vec<_>> = parts
                .iter()
                .map(|p| match &p.saved.state.phase {
                    Array::$kind(v) => Some(v.split_at(v.len() / 2)),
                    _ => None,
                })
                .collect();
            // That all have one precision was checked before.
            let halves = halves.ok_or_else(|| Error::Run("parts have different precisions".into()))?;
            Array::$kind(halves.iter().map(|h| h.0).chain(halves.iter().map(|h| h.1)).collect::<Vec<_>>().concat())
        }};
    }
    state.phase = match &state.phase {
        Array::F32(_) => joined!(F32),
        Array::F64(_) => joined!(F64),
    };
    Ok(state)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn length_of(path: &Path) -> Result<FileLength> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::file("read", path, e))?.len();
    Ok(FileLength { file: file_name(path), bytes })
}

fn copy(from: &Path, directory: &Path) -> Result<PathBuf> {
    let to = directory.join(file_name(from));
    std::fs::copy(from, &to).map_err(|e| Error::file("copy", from, e))?;
    Ok(to)
}

/// Joins logs: the rows of each step of every part, part after part.
fn join_logs(parts: &[PathBuf], to: &Path, format: LogFormat) -> Result<()> {
    let fail = |e| Error::file("write", to, e);
    let mut out = BufWriter::with_capacity(1 << 16, File::create_new(to).map_err(fail)?);
    let mut logs = parts.iter().map(|p| Rows::open(p, format)).collect::<Result<Vec<_>>>()?;
    if format == LogFormat::Csv {
        out.write_all(logs[0].header.as_bytes()).map_err(fail)?;
    }
    // Where all replicas of a part are frozen it has no more rows.
    while let Some(step) = logs.iter().filter_map(|l| l.next.as_ref().map(|n| n.0)).min() {
        for log in &mut logs {
            while let Some((_, line)) = log.next.as_ref().filter(|n| n.0 == step) {
                out.write_all(line.as_bytes()).map_err(fail)?;
                log.advance()?;
            }
        }
    }
    let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
    file.sync_all().map_err(fail)
}

/// The rows of a log, one in advance.
struct Rows {
    path: PathBuf,
    reader: BufReader<File>,
    format: LogFormat,
    header: String,
    /// Step and text of the next row.
    next: Option<(u64, String)>,
}

impl Rows {
    fn open(path: &Path, format: LogFormat) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file("read", path, e))?;
        let mut rows = Rows { path: path.to_owned(), reader: BufReader::new(file), format, header: String::new(), next: None };
        if format == LogFormat::Csv {
            rows.reader.read_line(&mut rows.header).map_err(|e| Error::file("read", path, e))?;
        }
        rows.advance()?;
        Ok(rows)
    }

    fn advance(&mut self) -> Result<()> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).map_err(|e| Error::file("read", &self.path, e))? == 0 {
            self.next = None;
            return Ok(());
        }
        let step = match self.format {
            LogFormat::Csv => line.split(',').next().and_then(|s| s.parse().ok()),
            LogFormat::Jsonl => serde_json::from_str::<serde_json::Value>(&line).ok().and_then(|row| row["step"].as_u64()),
        };
        match step {
            Some(step) => self.next = Some((step, line)),
            None => return Err(Error::Run(format!("{}: `{}` is not a row of a log", self.path.display(), line.trim_end()))),
        }
        Ok(())
    }
}
