//! What commands on structures have in common: which frames of which files, and the model that acts on them.

use super::Runtime;
use crate::error::{Error, usage};
use crate::generation::Batches;
use crate::io::{FrameRange, Frames, IoError, ReadOptions, Selection, check_overlaps, read_frames, take_warnings};
use anyhow::Result;
use scorefield_integrators::{Capabilities, DeviceProvider, DeviceSpec, ForceProvider, System, UnitSystem};
use scorefield_models::mechanics::Mechanics;
use scorefield_models::{Built, parse_spec};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

pub(super) use crate::io::Frame;

/// Which frames and atoms of files are meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct FrameFlags {
    /// Frames of each file, first:last:stride as in Python, or one number [default: all]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub(super) frames: Option<String>,
    /// Atoms: indices from 0 (`0-4,8`), or a selection such as `name CA`, `not type H`
    #[arg(long, value_name = "SELECTION")]
    pub(super) select: Option<String>,
    /// Structure file that says which atoms a DCD, XTC, TRR or NetCDF file has
    #[arg(long, value_name = "FILE")]
    pub(super) topology: Option<PathBuf>,
}

impl FrameFlags {
    /// As options of the reader.
    ///
    /// # Errors
    /// Where a range or a selection cannot be understood.
    pub(super) fn options(&self) -> Result<ReadOptions> {
        let flag = |name: &'static str| move |e: IoError| Error::Usage(format!("--{name}: {e}"));
        Ok(ReadOptions {
            range: self.frames.as_deref().map_or(Ok(FrameRange::default()), str::parse).map_err(flag("frames"))?,
            selection: self.select.as_deref().map(str::parse::<Selection>).transpose().map_err(flag("select"))?,
            topology: self.topology.clone(),
            ..ReadOptions::default()
        })
    }
}

/// Opens files one after the other and hands out their frames.
pub(super) struct FrameStream {
    files: std::vec::IntoIter<PathBuf>,
    options: ReadOptions,
    open: Option<(PathBuf, Frames)>,
    /// Frames handed out of the open file.
    count: usize,
}

impl FrameStream {
    /// Frames of `files` in order; nothing is opened yet.
    pub(super) fn new(files: Vec<PathBuf>, options: ReadOptions) -> Self {
        FrameStream { files: files.into_iter(), options, open: None, count: 0 }
    }

    fn advance(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some((path, frames)) = &mut self.open {
                if let Some(frame) = frames.next() {
                    self.count += 1;
                    return Ok(Some(frame?));
                }
                if self.count == 0 {
                    return usage(format!("{}: no frame is in the range; `scorefield info` counts the frames", path.display()))?;
                }
                self.open = None;
            }
            let Some(path) = self.files.next() else { return Ok(None) };
            let frames = read_frames(&path, &self.options)?;
            self.open = Some((path, frames));
            self.count = 0;
        }
    }
}

impl Iterator for FrameStream {
    type Item = Result<Frame>;

    /// After an error the stream ends.
    fn next(&mut self) -> Option<Result<Frame>> {
        let result = self.advance();
        if result.is_err() {
            self.files = Vec::new().into_iter();
            self.open = None;
        }
        result.transpose()
    }
}

/// Shows what file libraries had to say.
pub(super) fn show_file_warnings(runtime: &Runtime) {
    for warning in take_warnings() {
        runtime.warn(warning);
    }
}

/// A provider together with what its model brings along.
pub(super) struct Model {
    /// As it was written.
    pub(super) spec: String,
    /// The provider and the model's own system.
    built: Built,
    /// The last system that a force field completed, before and after.
    completed: RefCell<Option<[Arc<System>; 2]>>,
    /// How molecules are put together for it.
    pub(super) batches: Batches,
}

impl Model {
    /// Builds the provider that `spec` describes; `start` are the positions `[N, 3]` that some models are bound to.
    ///
    /// # Errors
    /// Where the description cannot be understood (a usage error), or a file of the model cannot be used.
    pub(super) fn build(spec: &str, start: Option<&[f64]>) -> Result<Self> {
        Self::build_with(spec, start, &scorefield_models::remote::nobody)
    }

    /// The same; the provider may also be engines that connect to us.
    ///
    /// # Errors
    /// As [`Model::build`], and where the engines' address cannot be listened at.
    pub(super) fn listen(spec: &str, start: Option<&[f64]>, runtime: &Runtime) -> Result<Self> {
        Self::build_with(spec, start, &crate::bridge::opener(runtime.quiet))
    }

    fn build_with(spec: &str, start: Option<&[f64]>, open: &scorefield_models::remote::Open<'_>) -> Result<Self> {
        use scorefield_models::Error as E;
        let wrong = |e: E| match e {
            E::Spec { .. } | E::Unknown { .. } | E::Parameter { .. } | E::Combine { .. } | E::Ensemble { .. } => {
                Error::Usage(format!("--model: {e}")).into()
            }
            e => anyhow::Error::new(e),
        };
        let parsed = parse_spec(spec).map_err(wrong)?;
        let mut built = parsed.build_with(start, open).map_err(wrong)?;
        if let (Some(start), UnitSystem::Reduced) = (start, built.provider.capabilities().units) {
            // The numbers as they stand in the file, see `adopt`.
            let bare: Vec<f64> = start.iter().map(|x| x * ANGSTROMS_PER_NM).collect();
            built = parsed.build_with(Some(&bare), open).map_err(wrong)?;
        }
        Ok(Model { spec: spec.to_owned(), built, completed: RefCell::default(), batches: Batches::HERE })
    }

    /// The same with forces evaluated on `device`, where one is named.
    ///
    /// # Errors
    /// Where there is no such device, or the model has no kernels.
    pub(super) fn on(mut self, device: Option<DeviceSpec>) -> Result<Self> {
        if let Some(device) = device.unwrap_or_default().open()? {
            self.built.provider = DeviceProvider::evaluating(&device, self.built.provider.as_ref())?;
            self.batches = Batches::ON_DEVICE;
        }
        Ok(self)
    }

    /// The provider.
    pub(super) fn provider(&self) -> &dyn ForceProvider {
        self.built.provider.as_ref()
    }

    /// What the provider can do.
    pub(super) fn capabilities(&self) -> &Capabilities {
        self.provider().capabilities()
    }

    /// True where numbers have no unit.
    pub(super) fn is_reduced(&self) -> bool {
        self.capabilities().units == UnitSystem::Reduced
    }

    /// The system that the model brings along.
    pub(super) fn own_toy(&self) -> Option<&scorefield_models::Toy> {
        self.built.toy.as_ref()
    }

    /// The model's own start structure as a frame, for runs without a file.
    ///
    /// # Errors
    /// Where the model has none.
    pub(super) fn own_frame(&self) -> Result<Frame> {
        let Some(toy) = &self.built.toy else {
            return usage(format!("{} acts on molecules; name a structure file", self.capabilities().name))?;
        };
        let mut frame = Frame::new(Arc::new(crate::simulation::own_system(toy)?), toy.positions.clone());
        frame.cell = toy.cell;
        Ok(frame)
    }

    /// Makes a frame from a file fit the model. Files are in Å; a model with reduced units takes their numbers as they are,
    /// without any unit, and a toy of fewer axes takes its own system. A force field that describes one system gives it
    /// masses and bonds.
    ///
    /// # Errors
    /// Where a force field describes other atoms.
    pub(super) fn adopt(&self, mut frame: Frame) -> Result<Frame> {
        if self.is_reduced() {
            let bare = |values: &mut [f64]| values.iter_mut().for_each(|x| *x *= ANGSTROMS_PER_NM);
            bare(&mut frame.positions);
            if let Some(cell) = &mut frame.cell {
                bare(cell);
            }
            if let Some(toy) = self.built.toy.as_ref().filter(|t| t.system.len() == frame.len() && t.system.axes != [true; 3]) {
                frame.system = Arc::new(System { name: frame.system.name.clone(), ..toy.system.clone() });
            }
        }
        if let Some(mechanics) = &self.built.mechanics {
            let mut completed = self.completed.borrow_mut();
            frame.system = match &*completed {
                Some([before, after]) if Arc::ptr_eq(before, &frame.system) => after.clone(),
                _ => {
                    let mut system = (*frame.system).clone();
                    mechanics.apply_to(&mut system, &self.capabilities().name)?;
                    let after = Arc::new(system);
                    *completed = Some([frame.system.clone(), after.clone()]);
                    after
                }
            };
        }
        Ok(frame)
    }

    /// Undoes [`adopt`](Self::adopt) for coordinates, so that a file is written in the numbers it was read in.
    pub(super) fn release(&self, mut frame: Frame) -> Frame {
        if self.is_reduced() {
            let cell = frame.cell.iter_mut().flatten();
            frame.positions.iter_mut().chain(cell).for_each(|x| *x /= ANGSTROMS_PER_NM);
            // An energy would be read as one in eV.
            frame.energy = None;
        }
        frame
    }

    /// The force field, where the model is one.
    pub(super) fn mechanics(&self) -> Option<&Mechanics> {
        self.built.mechanics.as_ref()
    }
}

/// What the reader has divided by.
const ANGSTROMS_PER_NM: f64 = 10.0;
/// Closer atoms than this (nm) are one place written twice; forces there mean nothing.
const COINCIDENT: f64 = 1e-3;
/// Closer atoms than this (nm) are most likely an error of the file: the shortest bond, H–H, is 0.074 nm.
const SUSPICIOUS: f64 = 0.05;

/// Looks for atoms on top of each other: an error where they coincide, else what a warning should say.
///
/// # Errors
/// Names the two atoms and their distance.
pub(super) fn inspect_overlaps(frame: &Frame) -> Result<Option<String>> {
    match check_overlaps(frame, SUSPICIOUS) {
        Ok(()) => Ok(None),
        Err(IoError::Overlap { distance, .. }) if distance < COINCIDENT => match check_overlaps(frame, COINCIDENT) {
            Err(e) => Err(e.into()),
            Ok(()) => Ok(None),
        },
        Err(IoError::Overlap { name, first, second, distance, .. }) => {
            Ok(Some(format!("{name}: {first} and {second} are only {distance:.4} nm apart; is the structure right?")))
        }
        Err(e) => Err(e.into()),
    }
}

/// The `s` of a plural.
pub(super) fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}
