//! Files in and out: structures, trajectories, arrays, tables. The only place that knows chemfiles (feature
//! `chemfiles`), and the only place that knows Å.
//!
//! Everything from outside is hostile until parsed: sizes are bounded, numbers finite, elements known, errors typed
//! ([`IoError`]: file, frame, place, remedy). All readers are our own, because chemfiles' crash on corrupt files; chemfiles
//! writes MOL2, GRO, XTC, TRR, NetCDF and LAMMPS data, and evaluates selections by name.
//!
//! A file that ends inside a frame gives its whole frames and then [`IoError::Truncated`]. Where the end of a text file is
//! merely suspicious (a last line without line end, PDB without END, mmCIF without `#`, SDF without `$$$$`) there is a
//! warning. A text that is cut between two frames cannot be told from a shorter file.
//!
//! ```no_run
//! use scorefield::io::{ReadOptions, read_frames};
//! let options = ReadOptions { range: "0:100:10".parse()?, ..ReadOptions::default() };
//! for frame in read_frames("peptide.pdb", &options)? {
//!     println!("{} nm", frame?.positions[0]);
//! }
//! # Ok::<(), scorefield::io::IoError>(())
//! ```

pub mod arrays;
mod atomic;
#[cfg_attr(feature = "chemfiles", path = "chemfiles_enabled.rs")]
#[cfg_attr(not(feature = "chemfiles"), path = "chemfiles_disabled.rs")]
mod backend;
mod bytes;
mod dcd;
pub mod elements;
mod error;
mod format;
mod frame;
mod gro;
mod gromacs;
mod join;
mod lammps;
mod lines;
mod mmcif;
mod mol2;
mod netcdf;
mod pdb;
mod range;
mod sdf;
mod sdf_write;
mod selection;
mod structure;
pub mod table;
mod topology;
mod warnings;
mod writer;
mod xyz;

pub use atomic::write_atomically;
pub use error::{IoError, Result};
pub(crate) use frame::subsystem;
pub use frame::{Frame, check_overlaps};
pub use join::{Part, join_trajectories};
pub use range::FrameRange;
pub use selection::Selection;
pub use structure::{pdb_text, sdf_text, write_frames};
pub use warnings::take_warnings;
pub use writer::{FileLength, Layout, Report, TrajectoryOptions, TrajectoryWriter};

#[cfg(test)]
mod tests;

use format::{Engine, Format, Own};
use gromacs::GromacsReader;
use scorefield_integrators::System;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to read a file.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Format name (`pdb`, `xtc`, …) where the extension does not tell.
    pub format: Option<String>,
    /// Structure file that says which atoms a DCD, XTC, TRR or NetCDF file has.
    pub topology: Option<PathBuf>,
    /// The same where it is in memory already; a file goes before it.
    pub system: Option<Arc<System>>,
    /// Which frames.
    pub range: FrameRange,
    /// Which atoms.
    pub selection: Option<Selection>,
}

/// What reads one file frame by frame.
trait Source {
    /// Number of whole frames.
    fn count(&mut self) -> Result<usize>;
    /// Passes over one frame; false at the end.
    fn skip(&mut self) -> Result<bool>;
    /// The next frame, or `None` at the end.
    fn next(&mut self) -> Result<Option<Frame>>;
}

/// Streams frames from a file; made by [`read_frames`]. After an error there are no more frames.
pub struct Frames {
    source: Box<dyn Source>,
    options: ReadOptions,
    /// Index of the next frame that the source will give.
    at: usize,
    first: usize,
    last: Option<usize>,
    stride: usize,
    /// The last topology read, reused while frames have an equal one.
    whole: Option<Arc<System>>,
    /// What the selection chose in `whole`.
    chosen: Option<(Vec<usize>, Arc<System>)>,
    done: bool,
}

/// Opens a file for reading. Frames come as an iterator; those left out by the range are passed over cheaply.
///
/// # Errors
/// Where the file is missing, empty, no file at all, of unknown format, or where a topology is needed.
pub fn read_frames(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Frames> {
    let path = path.as_ref();
    let mut source = open(path, options)?;
    let count = if options.range.needs_count() { Some(source.count()?) } else { None };
    let (first, last, stride) = options.range.resolve(count);
    Ok(Frames { source, options: options.clone(), at: 0, first, last, stride, whole: None, chosen: None, done: false })
}

/// The first frame of a structure file, with all atoms.
///
/// # Errors
/// As [`read_frames`], and where there is no frame.
pub fn read_structure(path: impl AsRef<Path>) -> Result<Frame> {
    let path = path.as_ref();
    let options = ReadOptions { range: FrameRange::one(0), ..ReadOptions::default() };
    match read_frames(path, &options)?.next() {
        Some(frame) => frame,
        None => Err(no_frame(path)),
    }
}

fn no_frame(path: &Path) -> IoError {
    IoError::path(path, "there is no frame in it", "Check that the file is whole and of the format its name says")
}

/// Checks that `path` is a file with something in it, and returns the name for its systems.
fn check_file(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|e| IoError::file("read", path, e))?;
    if meta.is_dir() {
        return Err(IoError::path(path, "it is a directory", "Name a file in it"));
    }
    if !meta.is_file() {
        return Err(IoError::path(path, "it is not a regular file", "Copy its content into a file first; frames are read by position"));
    }
    if meta.len() == 0 {
        return Err(IoError::path(path, "the file is empty", "Make or copy it again"));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(name.split('.').find(|s| !s.is_empty()).unwrap_or(&name).to_owned())
}

fn open(path: &Path, options: &ReadOptions) -> Result<Box<dyn Source>> {
    let name = check_file(path)?;
    let format = Format::of(path, options.format.as_deref())?;
    if format.info.text {
        lines::check_text(path)?;
    }
    let topology = match (&options.topology, format.info.topology) {
        (Some(file), _) => Some(read_structure(file)?.system),
        (None, true) => None,
        (None, false) if options.system.is_some() => options.system.clone(),
        (None, false) => {
            return Err(IoError::format(
                path,
                format!("{} files do not say which atoms they hold", format.info.name),
                "Give a topology file, for example the PDB that the run began from",
            ));
        }
    };
    let source: Box<dyn Source> = match (format.info.engine, &topology) {
        (Engine::Dcd, Some(system)) => return Ok(Box::new(dcd::DcdReader::open(path, system.clone())?)),
        (Engine::Own(Own::Xtc, _), Some(system)) => return Ok(Box::new(GromacsReader::open(path, system.clone(), gromacs::Kind::Xtc)?)),
        (Engine::Own(Own::Trr, _), Some(system)) => return Ok(Box::new(GromacsReader::open(path, system.clone(), gromacs::Kind::Trr)?)),
        (Engine::Own(Own::Netcdf, _), Some(system)) => return Ok(Box::new(netcdf::NetcdfReader::open(path, system.clone())?)),
        (Engine::Xyz, _) => Box::new(xyz::XyzReader::open(path, name)?),
        (Engine::Own(Own::Pdb, _), _) => Box::new(pdb::PdbReader::open(path, name)?),
        (Engine::Own(Own::Mmcif, _), _) => Box::new(mmcif::MmcifReader::open(path, name)?),
        (Engine::Own(Own::Sdf, _), _) => Box::new(sdf::SdfReader::open(path, name)?),
        (Engine::Own(Own::Mol2, _), _) => Box::new(mol2::Mol2Reader::open(path, name)?),
        (Engine::Own(Own::Gro, _), _) => Box::new(gro::GroReader::open(path, name)?),
        (Engine::Dump, _) => Box::new(lammps::DumpReader::open(path, name, topology.is_some())?),
        (Engine::Own(Own::LammpsData, _), _) => Box::new(lammps::DataReader::open(path, name)),
        (Engine::Dcd | Engine::Own(Own::Xtc | Own::Trr | Own::Netcdf, _), None) => return Err(no_frame(path)),
    };
    Ok(match topology {
        Some(system) => Box::new(WithTopology { path: path.to_owned(), system, source, frame: 0 }),
        None => source,
    })
}

/// Coordinates of one file with the topology of another.
struct WithTopology {
    path: PathBuf,
    system: Arc<System>,
    source: Box<dyn Source>,
    frame: usize,
}

impl Source for WithTopology {
    fn count(&mut self) -> Result<usize> {
        self.source.count()
    }
    fn skip(&mut self) -> Result<bool> {
        self.frame += 1;
        self.source.skip()
    }
    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(mut frame) = self.source.next()? else { return Ok(None) };
        check_atoms(&self.path, self.frame, frame.len(), &self.system)?;
        self.frame += 1;
        frame.system = self.system.clone();
        Ok(Some(frame))
    }
}

/// Checks that a frame has as many atoms as the topology given for it.
fn check_atoms(path: &Path, frame: usize, atoms: usize, system: &System) -> Result<()> {
    if atoms == system.len() {
        return Ok(());
    }
    Err(IoError::Content {
        path: path.to_owned(),
        frame: Some(frame),
        line: None,
        what: format!("it has {atoms} atoms, but the topology {} has {}", system.name, system.len()),
        remedy: "Give the topology that the trajectory was made with".into(),
    })
}

impl Frames {
    /// Number of whole frames in the file, whatever the range.
    ///
    /// # Errors
    /// Where the file cannot be read through.
    pub fn count_in_file(&mut self) -> Result<usize> {
        self.source.count()
    }

    fn advance(&mut self) -> Result<Option<Frame>> {
        let wanted =
            if self.at <= self.first { self.first } else { self.first + (self.at - self.first).div_ceil(self.stride) * self.stride };
        if self.last.is_some_and(|last| wanted >= last) {
            return Ok(None);
        }
        while self.at < wanted {
            if !self.source.skip()? {
                return Ok(None);
            }
            self.at += 1;
        }
        let Some(mut frame) = self.source.next()? else { return Ok(None) };
        self.at += 1;
        match &self.whole {
            Some(whole) if Arc::ptr_eq(whole, &frame.system) => {}
            Some(whole) if **whole == *frame.system => frame.system = whole.clone(),
            _ => {
                self.whole = Some(frame.system.clone());
                self.chosen = None;
            }
        }
        let Some(selection) = &self.options.selection else { return Ok(Some(frame)) };
        let (atoms, system) = match &self.chosen {
            Some(chosen) => chosen,
            None => {
                let atoms = selection.atoms(&frame)?;
                let system = Arc::new(frame::subsystem(&frame.system, &atoms));
                self.chosen.insert((atoms, system))
            }
        };
        Ok(Some(frame.subset(atoms, system.clone())))
    }
}

impl Iterator for Frames {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        if self.done {
            return None;
        }
        let result = self.advance();
        self.done = !matches!(result, Ok(Some(_)));
        result.transpose()
    }
}
