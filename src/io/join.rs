//! Trajectories of parts of the replicas, joined into one of all: report by report, part after part.
//!
//! Frames are copied byte by byte, so that the result is what one run would have written.

use super::dcd;
use super::error::{IoError, Result};
use super::format::{Engine, Format};
use super::writer::{self, TrajectoryOptions};
use scorefield_integrators::Batch;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A trajectory in which each report is one frame for each of some replicas.
#[derive(Clone, Debug)]
pub struct Part {
    /// The file.
    pub path: PathBuf,
    /// Frames of one report.
    pub replicas: usize,
}

/// Writes the trajectory that `options` describe, of all replicas of `batch` together, from those of `parts` of them in order.
///
/// # Errors
/// Where a file cannot be read or written, parts have different numbers of reports, or the format is not one of our own.
pub fn join_trajectories(parts: &[Part], options: &TrajectoryOptions, batch: &Batch) -> Result<()> {
    let format = Format::of(&options.path, options.format.as_deref())?;
    let uneven = |part: &Part| {
        let what = "it ends in another report than the files before it";
        Err(IoError::path(&part.path, what, "Run all parts to the same step"))
    };
    if !matches!(format.info.engine, Engine::Dcd | Engine::Xyz | Engine::Dump) {
        return Err(IoError::format(
            &options.path,
            format!("{} files of several replicas cannot be joined", format.info.name),
            "Use dcd, extxyz or lammps, or --trajectory-layout per-replica",
        ));
    }
    let fail = |e| IoError::file("write", &options.path, e);
    writer::create(&options.path, options.overwrite)?;
    let mut out = BufWriter::with_capacity(1 << 16, File::options().read(true).write(true).open(&options.path).map_err(fail)?);
    let mut frames = parts.iter().map(|p| RawFrames::open(p, format.info.engine, batch)).collect::<Result<Vec<_>>>()?;
    let mut periodic = None;
    for raw in frames.iter().filter(|f| f.engine == Engine::Dcd && !f.empty) {
        if *periodic.get_or_insert(raw.periodic) != raw.periodic {
            return Err(IoError::path(&raw.path, "it has a cell or none, unlike the others", "Join parts of one run"));
        }
    }
    let timing = writer::timing(options, batch);
    if let Some(periodic) = periodic {
        let header = dcd::header(batch.system(0).len(), periodic, timing, &writer::title(batch));
        out.write_all(&header).map_err(fail)?;
    }
    let mut count = 0;
    'reports: loop {
        for (k, (part, raw)) in parts.iter().zip(&mut frames).enumerate() {
            for replica in 0..part.replicas {
                if !raw.copy(&mut out, &options.path)? {
                    if replica > 0 || k > 0 {
                        return uneven(part);
                    }
                    break 'reports;
                }
                count += 1;
            }
        }
    }
    for (part, raw) in parts.iter().zip(&mut frames) {
        if raw.copy(&mut std::io::sink(), &options.path)? {
            return uneven(part);
        }
    }
    let mut file = out.into_inner().map_err(|e| fail(e.into_error()))?;
    if periodic.is_some() {
        let counters = dcd::counters(timing, count);
        file.seek(SeekFrom::Start(dcd::COUNTERS_AT)).and_then(|_| file.write_all(&counters)).map_err(fail)?;
    }
    file.sync_all().map_err(fail)
}

/// The frames of one of our files as bytes.
struct RawFrames {
    path: PathBuf,
    reader: BufReader<File>,
    engine: Engine,
    empty: bool,
    periodic: bool,
    /// Bytes of a binary frame.
    size: usize,
    /// Frames that a binary file still has.
    left: u64,
    buffer: Vec<u8>,
}

impl RawFrames {
    fn open(part: &Part, engine: Engine, batch: &Batch) -> Result<Self> {
        let path = &part.path;
        let fail = |e| IoError::file("read", path, e);
        let mut file = File::open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let (mut periodic, mut size, mut left) = (false, 0, 0);
        if engine == Engine::Dcd && length > 0 {
            let atoms = batch.system(0).len();
            let damaged = |what: &str| Err(IoError::content(path, None, None, what));
            match dcd::read_own_header(&mut file, atoms).map_err(fail)? {
                Some(found) => periodic = found,
                None => return damaged("it is not a DCD file that a run of these atoms wrote"),
            }
            match dcd::frames_in(length, atoms, periodic) {
                Some(frames) => left = frames,
                None => return damaged("it ends inside a frame"),
            }
            size = dcd::frame_size(atoms, periodic) as usize;
        }
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(RawFrames { path: path.clone(), reader, engine, empty: length == 0, periodic, size, left, buffer: Vec::new() })
    }

    /// Copies the next frame; false at the end of the file.
    fn copy(&mut self, out: &mut impl Write, target: &Path) -> Result<bool> {
        self.buffer.clear();
        let whole = match self.engine {
            Engine::Dcd if self.left == 0 => return Ok(false),
            Engine::Dcd => {
                self.left -= 1;
                self.buffer.resize(self.size, 0);
                self.reader.read_exact(&mut self.buffer).map(|()| true)
            }
            engine => self.text_frame(engine),
        };
        match whole {
            Ok(true) => {}
            Ok(false) if self.buffer.is_empty() => return Ok(false),
            Ok(false) => return Err(IoError::content(&self.path, None, None, "it ends inside a frame")),
            Err(e) => return Err(IoError::file("read", &self.path, e)),
        }
        out.write_all(&self.buffer).map_err(|e| IoError::file("write", target, e))?;
        Ok(true)
    }

    /// Reads the lines of a frame: the number of atoms says how many there are. False where the file ends before.
    fn text_frame(&mut self, engine: Engine) -> std::io::Result<bool> {
        // Of XYZ the first line is the number of atoms; of a dump the fourth, and nine are no atoms.
        let (before, besides) = if engine == Engine::Xyz { (0, 2) } else { (3, 9) };
        for _ in 0..before {
            if self.reader.read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(false);
            }
        }
        let start = self.buffer.len();
        self.reader.read_until(b'\n', &mut self.buffer)?;
        let atoms = std::str::from_utf8(&self.buffer[start..]).ok().and_then(|s| s.trim().parse::<usize>().ok());
        let Some(atoms) = atoms else { return Ok(false) };
        for _ in before + 1..besides + atoms {
            if self.reader.read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
