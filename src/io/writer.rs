//! Trajectories, written by a thread of their own: the simulation loop hands over a report and goes on.
//!
//! DCD (the default choice) and extended XYZ are written natively, in whole frames: a killed run leaves a file that can be
//! read, and a resumed run cuts it back to the length in its checkpoint and continues it bitwise.
//! Other formats go through chemfiles, which cannot do that: a resumed run writes a new part beside the old file.

use super::error::{IoError, Result};
use super::format::{Engine, Format};
use super::frame::{self, Frame};
use super::{backend, dcd, lammps, structure, warnings, xyz};
use scorefield_integrators::Batch;
use scorefield_integrators::state::Cell;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Which files the replicas go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One file for all, in which each report is as many frames as there are replicas, in the batch's order: frame
    /// `r B + b` is replica `b` at report `r`.
    #[default]
    Together,
    /// `name.replica-0003.dcd` for each, numbered by global replica id.
    PerReplica,
}

/// Where and how a trajectory is written.
#[derive(Clone, Debug)]
pub struct TrajectoryOptions {
    /// The file, or the pattern for one per replica.
    pub path: PathBuf,
    /// Format name where the extension does not tell.
    pub format: Option<String>,
    /// One file or many.
    pub layout: Layout,
    /// Replace files that are there already.
    pub overwrite: bool,
    /// Step of the first frame.
    pub first_step: u64,
    /// Steps between reports.
    pub interval: u64,
    /// Time of one step in ps; 0 where a step is no time.
    pub timestep: f64,
    /// Reports that may wait for the disk before the loop has to.
    pub queue: usize,
}

impl TrajectoryOptions {
    /// A new file at `path` with a report every `interval` steps of `timestep` ps, all replicas together.
    pub fn new(path: impl Into<PathBuf>, interval: u64, timestep: f64) -> Self {
        TrajectoryOptions {
            path: path.into(),
            format: None,
            layout: Layout::default(),
            overwrite: false,
            first_step: 0,
            interval,
            timestep,
            queue: 4,
        }
    }
}

/// All replicas at one step.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Steps since the start of the run.
    pub step: u64,
    /// Time in ps, where there is one.
    pub time: Option<f64>,
    /// Positions `[A, 3]` in nm.
    pub positions: Vec<f64>,
    /// Velocities `[A, 3]` in nm/ps, for formats that keep them (TRR, NetCDF, GRO).
    pub velocities: Option<Vec<f64>>,
    /// Cell per replica `[B]`, rows a, b, c in nm.
    pub cells: Option<Vec<Cell>>,
}

/// How long a file was when it was flushed: what a checkpoint records to cut the file back on resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLength {
    /// File name, without directory.
    pub file: String,
    /// Length in bytes.
    pub bytes: u64,
}

enum Message {
    Report(Report),
    Flush(Sender<Result<Vec<FileLength>>>),
}

/// Hands reports to the writer thread. The first error of the thread is returned by every later call.
pub struct TrajectoryWriter {
    path: PathBuf,
    atoms: usize,
    replicas: usize,
    sender: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
    failed: Arc<Mutex<Option<Arc<IoError>>>>,
    spent: Receiver<Vec<f64>>,
}

impl TrajectoryWriter {
    /// Makes new, empty files for the replicas of `batch`.
    ///
    /// # Errors
    /// Where a file is there already (unless `overwrite`), cannot be made, or the format cannot hold the batch.
    pub fn create(options: &TrajectoryOptions, batch: &Batch) -> Result<Self> {
        Self::start(options, batch, None)
    }

    /// Goes on with files of an earlier run: cuts each back to the length recorded by [`flush`](Self::flush) and appends.
    /// Formats that cannot be cut go on in a new part (`name.part2.xtc`), which [`take_warnings`](super::take_warnings) tells.
    ///
    /// # Errors
    /// Where files are missing, shorter than recorded, or not cut where a frame ends.
    pub fn resume(options: &TrajectoryOptions, batch: &Batch, lengths: &[FileLength]) -> Result<Self> {
        Self::start(options, batch, Some(lengths))
    }

    fn start(options: &TrajectoryOptions, batch: &Batch, lengths: Option<&[FileLength]>) -> Result<Self> {
        let writer = Files::open(options, batch, lengths)?;
        let (sender, messages) = sync_channel(options.queue.max(1));
        let (return_spent, spent) = channel();
        let failed = Arc::new(Mutex::new(None));
        let shared = failed.clone();
        let path = options.path.clone();
        let thread = std::thread::Builder::new()
            .name("trajectory".into())
            .spawn(move || run(writer, &messages, &return_spent, &shared))
            .map_err(|e| IoError::file("start a thread to write", &path, e))?;
        Ok(TrajectoryWriter {
            path,
            atoms: batch.atoms(),
            replicas: batch.replicas(),
            sender: Some(sender),
            thread: Some(thread),
            failed,
            spent,
        })
    }

    /// An empty vector to fill for the next report, reusing the memory of one already written.
    pub fn buffer(&mut self) -> Vec<f64> {
        self.spent.try_recv().unwrap_or_default()
    }

    /// Hands over one report; waits only where the queue is full.
    ///
    /// # Errors
    /// The first error of the thread, or where the report does not fit the batch.
    pub fn write(&mut self, report: Report) -> Result<()> {
        self.check()?;
        let fits = report.positions.len() == 3 * self.atoms
            && report.velocities.as_ref().is_none_or(|v| v.len() == 3 * self.atoms)
            && report.cells.as_ref().is_none_or(|c| c.len() == self.replicas);
        if !fits {
            return Err(IoError::shape(
                &self.path,
                format!(
                    "a report has {} coordinates, {:?} velocities and {:?} cells for {} atoms and {} replicas",
                    report.positions.len(),
                    report.velocities.as_ref().map(Vec::len),
                    report.cells.as_ref().map(Vec::len),
                    self.atoms,
                    self.replicas
                ),
            ));
        }
        self.send(Message::Report(report))
    }

    /// Waits until all reports are on the disk (synced) and returns the length of each file.
    ///
    /// # Errors
    /// The first error of the thread.
    pub fn flush(&mut self) -> Result<Vec<FileLength>> {
        self.check()?;
        let (reply, answer) = channel();
        self.send(Message::Flush(reply))?;
        answer.recv().unwrap_or_else(|_| Err(self.lost()))
    }

    /// Flushes, ends the thread and closes the files.
    ///
    /// # Errors
    /// The first error of the thread.
    pub fn finish(mut self) -> Result<Vec<FileLength>> {
        let result = self.flush();
        self.join();
        result
    }

    fn check(&self) -> Result<()> {
        match &*self.failed.lock().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(IoError::Writer(error.clone())),
            None => Ok(()),
        }
    }

    fn send(&self, message: Message) -> Result<()> {
        let sent = self.sender.as_ref().is_some_and(|s| s.send(message).is_ok());
        if sent { Ok(()) } else { Err(self.lost()) }
    }

    /// The thread is gone without an answer, which only a panic in it can do.
    fn lost(&self) -> IoError {
        self.check().err().unwrap_or_else(|| IoError::file("write", &self.path, std::io::Error::other("the writer thread stopped")))
    }

    fn join(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread shows as a lost writer in the call before.
            let _ = thread.join();
        }
    }
}

impl Drop for TrajectoryWriter {
    fn drop(&mut self) {
        self.join();
    }
}

/// The thread: writes until the sender is gone; after an error it only drains the queue.
fn run(mut files: Files, messages: &Receiver<Message>, spent: &Sender<Vec<f64>>, failed: &Mutex<Option<Arc<IoError>>>) {
    let fail = |error: IoError| {
        let error = Arc::new(error);
        failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error.clone());
        error
    };
    let mut handles: Vec<_> = files.files.iter().map(|_| None).collect();
    let mut broken: Option<Arc<IoError>> = None;
    for message in messages {
        match message {
            Message::Report(report) => {
                if broken.is_none() {
                    broken = files.write(&mut handles, &report).err().map(fail);
                }
                let mut buffer = report.positions;
                buffer.clear();
                // The other side may be gone already.
                let _ = spent.send(buffer);
            }
            Message::Flush(reply) => {
                let result = match &broken {
                    Some(error) => Err(IoError::Writer(error.clone())),
                    None => files.flush(&mut handles).map_err(|e| {
                        let error = fail(e);
                        broken = Some(error.clone());
                        IoError::Writer(error)
                    }),
                };
                let _ = reply.send(result);
            }
        }
    }
    if broken.is_none() {
        // Dropped without `finish`: keep what can be kept.
        let _ = files.flush(&mut handles);
    }
}

/// All files of one trajectory.
struct Files {
    layout: Layout,
    batch: Batch,
    files: Vec<Out>,
    /// A frame per replica, whose coordinates are replaced at each report.
    frames: Vec<Frame>,
    reports: usize,
}

impl Files {
    fn open(options: &TrajectoryOptions, batch: &Batch, lengths: Option<&[FileLength]>) -> Result<Self> {
        let format = Format::of(&options.path, options.format.as_deref())?;
        let path = &options.path;
        if !format.info.trajectory {
            return Err(IoError::format(
                path,
                format!("trajectories are not written as {}", format.info.name),
                "Use dcd (the default), extxyz, xtc, trr or netcdf",
            ));
        }
        let native = matches!(format.info.engine, Engine::Xyz | Engine::Dcd | Engine::Dump);
        let together = options.layout == Layout::Together;
        let count = if together { 1 } else { batch.replicas() };
        if !native && count > 256 {
            return Err(IoError::format(
                path,
                format!("{count} {} files would be open at once", format.info.name),
                "Use dcd, or one file for all replicas",
            ));
        }
        if together
            && !matches!(format.info.engine, Engine::Xyz | Engine::Dump)
            && batch.systems().iter().any(|s| s.len() != batch.system(0).len())
        {
            return Err(IoError::format(
                path,
                format!("a {} file holds one number of atoms, and the replicas differ", format.info.name),
                "Write one file per replica, or extxyz",
            ));
        }
        if let Some(lengths) = lengths.filter(|l| l.len() != count) {
            return Err(IoError::shape(
                path,
                format!("the checkpoint records {} trajectory files, but this run has {count}", lengths.len()),
            ));
        }
        let timing = timing(options, batch);
        let budget = (PENDING / count).clamp(1 << 12, 1 << 18);
        let mut files = Vec::with_capacity(count);
        for b in 0..count {
            let path = if together { path.clone() } else { replica_path(path, batch.id(b)) };
            let title = if together { title(batch) } else { format!("replica {}", batch.id(b)) };
            let recorded = lengths.map(|l| &l[b]);
            if let Some(recorded) = recorded {
                let name = file_name(&path);
                // Parts of chemfiles formats have names of their own.
                if native && recorded.file != name {
                    return Err(IoError::path(
                        &path,
                        format!("the checkpoint records `{}` instead", recorded.file),
                        "Resume with the run's own trajectory name",
                    ));
                }
            }
            let atoms = batch.system(b).len();
            files.push(if native {
                Out::Native(Native::open(&path, options.overwrite, recorded, budget, format.info.engine, atoms, timing, title)?)
            } else {
                Out::Chemfiles(Chemfiles::open(&path, options.overwrite, recorded, format)?)
            });
        }
        let frames = batch.systems().iter().map(|s| Frame::new(s.clone(), Vec::new())).collect();
        Ok(Files { layout: options.layout, batch: batch.clone(), files, frames, reports: 0 })
    }

    fn write(&mut self, handles: &mut [Option<backend::Writer>], report: &Report) -> Result<()> {
        for b in 0..self.batch.replicas() {
            let k = if self.layout == Layout::Together { 0 } else { b };
            let range = self.batch.range3(b);
            let frame = &mut self.frames[b];
            frame.positions.clear();
            frame.positions.extend_from_slice(&report.positions[range.clone()]);
            frame.velocities = report.velocities.as_ref().map(|v| v[range].to_vec());
            frame.cell = report.cells.as_ref().map(|c| c[b]);
            frame.time = report.time;
            frame.properties.insert("step".into(), report.step.to_string());
            frame.properties.insert("replica".into(), self.batch.id(b).to_string());
            match &mut self.files[k] {
                Out::Native(f) => f.write(self.reports, frame)?,
                Out::Chemfiles(f) => f.write(&mut handles[k], self.reports, frame)?,
            }
        }
        self.reports += 1;
        Ok(())
    }

    fn flush(&mut self, handles: &mut [Option<backend::Writer>]) -> Result<Vec<FileLength>> {
        let flush = |(file, handle): (&mut Out, &mut Option<backend::Writer>)| match file {
            Out::Native(f) => f.flush(),
            Out::Chemfiles(f) => f.flush(handle),
        };
        self.files.iter_mut().zip(handles).map(flush).collect()
    }
}

/// Bytes that may wait in memory for all files together.
const PENDING: usize = 8 << 20;

/// What the header of a file says about time.
pub(super) fn timing(options: &TrajectoryOptions, batch: &Batch) -> dcd::Timing {
    // Frames of several replicas in one file are not evenly spaced in time.
    if options.layout == Layout::Together && batch.replicas() > 1 {
        return dcd::Timing::default();
    }
    dcd::Timing { first_step: options.first_step, interval: options.interval, timestep: options.timestep }
}

/// Title of a file of all replicas.
pub(super) fn title(batch: &Batch) -> String {
    format!("{} replicas, one after another within a report", batch.replicas())
}

/// `name.replica-0003.dcd`.
fn replica_path(path: &Path, id: u32) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}.replica-{id:04}{extension}"))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes a new, empty file.
pub(super) fn create(path: &Path, overwrite: bool) -> Result<()> {
    if path.is_dir() {
        return Err(IoError::path(path, "it is a directory", "Name a file in it"));
    }
    let mut open = OpenOptions::new();
    if overwrite {
        open.write(true).create(true).truncate(true)
    } else {
        open.write(true).create_new(true)
    };
    match open.open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(IoError::path(path, "the file is there already", "Name another, remove it, or say that it may be overwritten"))
        }
        Err(e) => Err(IoError::file("write", path, e)),
    }
}

/// One file.
enum Out {
    Native(Native),
    Chemfiles(Chemfiles),
}

/// A DCD or XYZ file. It is open only while bytes go out, so that thousands of replicas need no thousand handles.
struct Native {
    path: PathBuf,
    /// Bytes in the file, always at the end of a frame.
    written: u64,
    /// Whole frames that are not in the file yet.
    pending: Vec<u8>,
    budget: usize,
    text: String,
    engine: Engine,
    dcd: Option<DcdState>,
}

/// What a growing DCD file knows about itself.
struct DcdState {
    atoms: usize,
    timing: dcd::Timing,
    title: String,
    /// Set by the first frame.
    periodic: Option<bool>,
    frames: u64,
}

impl Native {
    #[allow(clippy::too_many_arguments)]
    fn open(
        path: &Path,
        overwrite: bool,
        recorded: Option<&FileLength>,
        budget: usize,
        engine: Engine,
        atoms: usize,
        timing: dcd::Timing,
        title: String,
    ) -> Result<Self> {
        let mut dcd = (engine == Engine::Dcd).then_some(DcdState { atoms, timing, title, periodic: None, frames: 0 });
        let written = match recorded {
            None => {
                create(path, overwrite)?;
                0
            }
            Some(recorded) => {
                cut(path, recorded.bytes, dcd.as_mut())?;
                recorded.bytes
            }
        };
        Ok(Native { path: path.to_owned(), written, pending: Vec::new(), budget, text: String::new(), engine, dcd })
    }

    fn write(&mut self, report: usize, frame: &Frame) -> Result<()> {
        frame::check_finite(&self.path, report, &frame.system, "coordinate", &frame.positions)?;
        match &mut self.dcd {
            None => {
                self.text.clear();
                match self.engine {
                    Engine::Dump => {
                        structure::check_orientation(&self.path, frame)?;
                        lammps::format_dump(frame, &mut self.text);
                    }
                    _ => xyz::format_extended(frame, &mut self.text),
                }
                self.pending.extend_from_slice(self.text.as_bytes());
            }
            Some(dcd) => {
                structure::check_orientation(&self.path, frame)?;
                let periodic = frame.cell.is_some();
                match dcd.periodic {
                    Some(before) if before != periodic => {
                        return Err(IoError::shape(
                            &self.path,
                            "some frames have a cell and others have none; a DCD file cannot hold both",
                        ));
                    }
                    Some(_) => {}
                    None => {
                        dcd.periodic = Some(periodic);
                        self.pending.extend(dcd::header(dcd.atoms, periodic, dcd.timing, &dcd.title));
                    }
                }
                dcd::push_frame(&mut self.pending, &frame.positions, frame.cell.as_ref());
                dcd.frames += 1;
            }
        }
        if self.pending.len() >= self.budget { self.spill(false) } else { Ok(()) }
    }

    /// Appends what is pending, then tells the header. A file that gets no more space keeps its whole frames.
    fn spill(&mut self, sync: bool) -> Result<()> {
        let fail = |e| IoError::file("write", &self.path, e);
        let mut file = OpenOptions::new().write(true).open(&self.path).map_err(fail)?;
        if !self.pending.is_empty() {
            let appended = file.seek(SeekFrom::Start(self.written)).and_then(|_| file.write_all(&self.pending));
            if let Err(e) = appended {
                // The error that matters is the first one.
                let _ = file.set_len(self.written);
                return Err(fail(e));
            }
            self.written += self.pending.len() as u64;
            self.pending.clear();
            if sync {
                file.sync_data().map_err(fail)?;
            }
            if let Some(dcd) = &self.dcd {
                let counters = dcd::counters(dcd.timing, dcd.frames);
                file.seek(SeekFrom::Start(dcd::COUNTERS_AT)).and_then(|_| file.write_all(&counters)).map_err(fail)?;
            }
        }
        if sync {
            file.sync_all().map_err(fail)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<FileLength> {
        self.spill(true)?;
        Ok(FileLength { file: file_name(&self.path), bytes: self.written })
    }
}

/// Cuts a file back to `bytes`, where a frame must end.
fn cut(path: &Path, bytes: u64, dcd: Option<&mut DcdState>) -> Result<()> {
    let fail = |e| IoError::file("resume", path, e);
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    if length < bytes {
        return Err(IoError::path(
            path,
            format!("it has {length} bytes, but the checkpoint was written when it had {bytes}"),
            "Restore the file, or start from an earlier checkpoint",
        ));
    }
    let Some(dcd) = dcd else { return file.set_len(bytes).map_err(fail) };
    if bytes == 0 {
        return file.set_len(0).map_err(fail);
    }
    let periodic = dcd::read_own_header(&mut file, dcd.atoms)
        .map_err(fail)?
        .ok_or_else(|| IoError::content(path, None, None, "it is not the DCD file that the run wrote"))?;
    let Some(frames) = dcd::frames_in(bytes, dcd.atoms, periodic) else {
        return Err(IoError::content(path, None, None, format!("no frame ends at byte {bytes}, where the checkpoint was written")));
    };
    dcd.periodic = Some(periodic);
    dcd.frames = frames;
    file.set_len(bytes).map_err(fail)?;
    let counters = dcd::counters(dcd.timing, frames);
    file.seek(SeekFrom::Start(dcd::COUNTERS_AT)).and_then(|_| file.write_all(&counters)).map_err(fail)
}

/// A file of a format that chemfiles writes. The handle lives in the thread (chemfiles' types are not `Send`) and is closed at each
/// flush, because chemfiles has no other way to flush.
struct Chemfiles {
    path: PathBuf,
    format: Format,
}

impl Chemfiles {
    fn open(path: &Path, overwrite: bool, recorded: Option<&FileLength>, format: Format) -> Result<Self> {
        let mut path = path.to_owned();
        match recorded {
            None => create(&path, overwrite)?,
            Some(recorded) if format.info.cut => {
                // The run may itself have gone on in a part.
                path.set_file_name(&recorded.file);
                cut(&path, recorded.bytes, None)?;
            }
            Some(recorded) => {
                let part = (2..10_000).map(|k| part_path(&path, k)).find(|p| !p.exists());
                let part = part.ok_or_else(|| IoError::path(&path, "there are thousands of parts already", "Join or remove them"))?;
                warnings::warn(&format!(
                    "{}: {} files cannot be cut back to a checkpoint; the run goes on in {}, and frames of {} after the checkpoint are repeated there",
                    path.display(),
                    format.info.name,
                    file_name(&part),
                    recorded.file
                ));
                path = part;
                create(&path, false)?;
            }
        }
        Ok(Chemfiles { path, format })
    }

    fn write(&mut self, handle: &mut Option<backend::Writer>, report: usize, frame: &Frame) -> Result<()> {
        frame.check(&self.path, report)?;
        let writer = match handle {
            Some(writer) => writer,
            None => {
                let length = std::fs::metadata(&self.path).map_err(|e| IoError::file("write", &self.path, e))?.len();
                handle.insert(backend::Writer::open(&self.path, &self.path, self.format, length > 0)?)
            }
        };
        writer.write(report, frame)
    }

    fn flush(&mut self, handle: &mut Option<backend::Writer>) -> Result<FileLength> {
        if let Some(writer) = handle.take() {
            writer.close()?;
        }
        let fail = |e| IoError::file("write", &self.path, e);
        let file = File::open(&self.path).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        Ok(FileLength { file: file_name(&self.path), bytes: file.metadata().map_err(fail)?.len() })
    }
}

/// `name.part2.xtc`.
fn part_path(path: &Path, part: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}.part{part}{extension}"))
}

#[cfg(test)]
mod tests {
    use super::super::{ReadOptions, elements, read_frames, write_frames};
    use super::*;
    use scorefield_integrators::System;

    fn molecule() -> Arc<System> {
        // More than nine atoms: XTC compresses only then.
        let mut system = System::particles("molecule", 12, 1.0);
        for (i, z) in [6, 8, 1, 1, 6, 6, 6, 1, 1, 1, 7, 1].into_iter().enumerate() {
            system.types[i] = z;
            system.masses[i] = elements::mass(z).unwrap();
            system.names[i].atom = elements::symbol(z).into();
        }
        Arc::new(system)
    }

    fn report(batch: &Batch, r: usize, periodic: bool) -> Report {
        Report {
            step: 10 * r as u64,
            time: Some(0.02 * r as f64),
            positions: (0..3 * batch.atoms()).map(|i| (i as f64 * 0.7 + r as f64).sin()).collect(),
            velocities: None,
            cells: periodic.then(|| vec![[2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0 + 0.1 * r as f64]; batch.replicas()]),
        }
    }

    /// Positions of every frame in a file.
    fn read(path: &Path, topology: &Path) -> Vec<Vec<f64>> {
        let options = ReadOptions { topology: Some(topology.to_owned()), ..ReadOptions::default() };
        read_frames(path, &options).unwrap().map(|f| f.unwrap().positions).collect()
    }

    /// Writes 7 reports at once; then 5 with a flush after 3, a kill, and a resumed run of the last 4. Files must be the same.
    fn check_resume(name: &str, layout: Layout, periodic: bool) {
        let dir = tempfile::tempdir().unwrap();
        let batch = Batch::uniform(molecule(), 3, 5).unwrap();
        let topology = dir.path().join("topology.xyz");
        write_frames(&topology, None, &[Frame::new(molecule(), (0..36).map(f64::from).collect())]).unwrap();
        let options = |folder: &str| {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            TrajectoryOptions { layout, ..TrajectoryOptions::new(dir.path().join(folder).join(name), 10, 0.002) }
        };
        let mut whole = TrajectoryWriter::create(&options("whole"), &batch).unwrap();
        for r in 0..7 {
            whole.write(report(&batch, r, periodic)).unwrap();
        }
        let whole = whole.finish().unwrap();
        let mut killed = TrajectoryWriter::create(&options("cut"), &batch).unwrap();
        let mut lengths = Vec::new();
        for r in 0..5 {
            if r == 3 {
                lengths = killed.flush().unwrap();
            }
            killed.write(report(&batch, r, periodic)).unwrap();
        }
        drop(killed);
        // What a kill in the middle of a write may leave.
        for length in &lengths {
            let mut file = OpenOptions::new().append(true).open(dir.path().join("cut").join(&length.file)).unwrap();
            file.write_all(b"torn").unwrap();
        }
        let mut resumed = TrajectoryWriter::resume(&options("cut"), &batch, &lengths).unwrap();
        for r in 3..7 {
            resumed.write(report(&batch, r, periodic)).unwrap();
        }
        assert_eq!(resumed.finish().unwrap(), whole);
        for FileLength { file, .. } in &whole {
            let path = dir.path().join("whole").join(file);
            assert!(
                std::fs::read(&path).unwrap() == std::fs::read(dir.path().join("cut").join(file)).unwrap(),
                "{file} differs after resuming"
            );
            let frames = read(&path, &topology);
            assert_eq!(frames.len(), if layout == Layout::Together { 21 } else { 7 }, "{file}");
            let first = &report(&batch, 0, periodic).positions[..36];
            if layout == Layout::Together {
                assert!(frames[0].iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-3), "{file}");
            }
        }
        if layout == Layout::PerReplica {
            assert_eq!(whole[1].file, name.replace('.', ".replica-0006."));
        }
    }

    #[test]
    fn resumed_dcd_files_are_the_uninterrupted_ones() {
        check_resume("t.dcd", Layout::Together, false);
        check_resume("t.dcd", Layout::Together, true);
        check_resume("t.dcd", Layout::PerReplica, true);
    }

    #[test]
    fn resumed_text_files_are_the_uninterrupted_ones() {
        check_resume("t.extxyz", Layout::Together, true);
        check_resume("t.xyz", Layout::PerReplica, false);
        check_resume("t.lammpstrj", Layout::Together, true);
        check_resume("t.lammpstrj", Layout::PerReplica, false);
    }

    #[cfg(feature = "chemfiles")]
    #[test]
    fn resumed_xtc_and_trr_files_are_the_uninterrupted_ones() {
        for name in ["t.xtc", "t.trr"] {
            check_resume(name, Layout::Together, true);
            check_resume(name, Layout::PerReplica, false);
        }
    }

    #[cfg(feature = "chemfiles")]
    #[test]
    fn other_formats_go_on_in_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let batch = Batch::uniform(molecule(), 1, 0).unwrap();
        let topology = dir.path().join("topology.xyz");
        write_frames(&topology, None, &[Frame::new(molecule(), report(&batch, 0, false).positions)]).unwrap();
        for name in ["t.nc"] {
            let options = TrajectoryOptions::new(dir.path().join(name), 10, 0.002);
            let mut writer = TrajectoryWriter::create(&options, &batch).unwrap();
            let mut lengths = Vec::new();
            for r in 0..5 {
                writer.write(report(&batch, r, true)).unwrap();
                lengths = writer.flush().unwrap();
            }
            writer.finish().unwrap();
            assert_eq!(read(&options.path, &topology).len(), 5, "{name}: all frames are seen after flushes");
            let mut writer = TrajectoryWriter::resume(&options, &batch, &lengths).unwrap();
            writer.write(report(&batch, 5, true)).unwrap();
            let lengths = writer.finish().unwrap();
            assert_eq!(lengths[0].file, name.replace('.', ".part2."));
            assert_eq!(read(&dir.path().join(&lengths[0].file), &topology).len(), 1, "{name}");
            assert!(super::super::warnings::GIVEN.take().iter().any(|w| w.contains(&lengths[0].file)), "{name}");
        }
    }

    #[test]
    fn errors_come_back_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let batch = Batch::uniform(molecule(), 2, 0).unwrap();
        let options = TrajectoryOptions::new(dir.path().join("t.dcd"), 1, 0.001);
        let mut writer = TrajectoryWriter::create(&options, &batch).unwrap();
        assert!(writer.write(Report::default()).unwrap_err().to_string().contains("0 coordinates"));
        let mut bad = report(&batch, 0, false);
        bad.positions[37] = f64::NAN;
        writer.write(bad).unwrap();
        for _ in 0..2 {
            let message = writer.flush().unwrap_err().to_string();
            assert!(message.contains("coordinate y of atom 1 (C) is NaN"), "{message}");
            assert!(writer.write(report(&batch, 1, false)).is_err());
        }
        assert!(writer.finish().is_err());
        let message = TrajectoryWriter::create(&options, &batch).err().unwrap().to_string();
        assert!(message.contains("there already"), "{message}");
        for (path, what) in [("no/t.dcd", "no/t.dcd"), ("t.sdf", "not written as sdf"), ("t", "extension")] {
            let message =
                TrajectoryWriter::create(&TrajectoryOptions::new(dir.path().join(path), 1, 0.0), &batch).err().unwrap().to_string();
            assert!(message.contains(what), "{message}");
        }
    }

    #[test]
    fn resume_refuses_what_is_not_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let batch = Batch::uniform(molecule(), 1, 0).unwrap();
        let options = TrajectoryOptions::new(dir.path().join("t.dcd"), 1, 0.001);
        let mut writer = TrajectoryWriter::create(&options, &batch).unwrap();
        writer.write(report(&batch, 0, false)).unwrap();
        let lengths = writer.finish().unwrap();
        let fails = |bytes: u64, file: &str, what: &str| {
            let lengths = [FileLength { file: file.into(), bytes }];
            let message = TrajectoryWriter::resume(&options, &batch, &lengths).err().unwrap().to_string();
            assert!(message.contains(what), "{message}");
        };
        fails(lengths[0].bytes + 1, "t.dcd", "Restore the file");
        fails(lengths[0].bytes - 1, "t.dcd", "no frame ends");
        fails(lengths[0].bytes, "u.dcd", "`u.dcd` instead");
        assert!(TrajectoryWriter::resume(&options, &batch, &[]).is_err());
        std::fs::write(&options.path, vec![7; 4000]).unwrap();
        fails(lengths[0].bytes, "t.dcd", "not the DCD file");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        // /dev/full takes no byte.
        if !Path::new("/dev/full").exists() {
            return;
        }
        let batch = Batch::uniform(molecule(), 1, 0).unwrap();
        let options = TrajectoryOptions { overwrite: true, format: Some("dcd".into()), ..TrajectoryOptions::new("/dev/full", 1, 0.001) };
        let mut writer = TrajectoryWriter::create(&options, &batch).unwrap();
        writer.write(report(&batch, 0, false)).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains("/dev/full") && message.contains("space"), "{message}");
    }
}
