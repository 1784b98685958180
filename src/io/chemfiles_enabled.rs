//! All that knows chemfiles: it writes formats that we do not write ourselves, and evaluates selections. Its readers are not
//! used, because they crash and hang on corrupt files. Its types stay on the thread that made them; its Rust wrapper panics where its C++ throws,
//! so every call goes through [`guard`].

use super::elements;
use super::error::{IoError, Result};
use super::format::Format;
use super::frame::{self, Frame};
use super::warnings::warn;
use chemfiles::Trajectory;
use scorefield_integrators::System;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// Runs `call`, turning errors and panics of the wrapper (a name that is not UTF-8, for example) into text.
fn guard<T>(call: impl FnOnce() -> std::result::Result<T, chemfiles::Error>) -> std::result::Result<T, String> {
    static CALLBACK: Once = Once::new();
    CALLBACK.call_once(|| chemfiles::set_warning_callback(|message: &str| warn(message)));
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.message),
        Err(panic) => Err(match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(message), _) => message.clone(),
            (None, Some(message)) => (*message).to_owned(),
            (None, None) => "the file library failed".to_owned(),
        }),
    }
}

/// A path as chemfiles takes it.
fn check_path(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(text) if !text.contains('\0') => Ok(()),
        _ => Err(IoError::path(path, "the path is not UTF-8 text", "Rename the file")),
    }
}

/// A chemfiles frame with the topology and coordinates of ours.
fn to_chemfiles(frame: &Frame) -> std::result::Result<chemfiles::Frame, String> {
    guard(|| {
        let mut out = chemfiles::Frame::new();
        // Without this, velocities of atoms are dropped.
        if frame.velocities.is_some() {
            out.add_velocities();
        }
        let clean = |text: &str| text.replace('\0', "");
        for i in 0..frame.len() {
            let name = &frame.system.names[i];
            let symbol = elements::symbol(frame.system.types[i]);
            let mut atom = chemfiles::Atom::new(if name.atom.is_empty() { symbol } else { &name.atom });
            atom.set_atomic_type(symbol);
            atom.set_mass(frame.system.masses[i]);
            let p = |x: &[f64]| std::array::from_fn(|a| x[3 * i + a] / NM_PER_ANGSTROM);
            out.add_atom(&atom, p(&frame.positions), frame.velocities.as_deref().map(p));
        }
        // Atoms of one residue follow each other in our systems.
        let mut i = 0;
        while i < frame.len() {
            let name = &frame.system.names[i];
            let same = |j: &usize| {
                let other = &frame.system.names[*j];
                (&other.residue, other.residue_id, &other.chain) == (&name.residue, name.residue_id, &name.chain)
            };
            let end = (i..frame.len()).find(|j| !same(j)).unwrap_or(frame.len());
            if !name.residue.is_empty() {
                let residue_name = clean(&name.residue);
                let mut residue = chemfiles::Residue::with_id(residue_name.as_str(), name.residue_id);
                for j in i..end {
                    residue.add_atom(j);
                }
                if !name.chain.is_empty() {
                    residue.set("chainid", clean(&name.chain));
                    residue.set("chainname", clean(&name.chain));
                }
                out.add_residue(&residue)?;
            }
            i = end;
        }
        for &(i, j) in &frame.system.bonds {
            out.add_bond(i as usize, j as usize);
        }
        Ok(out)
    })
}

/// Writes one file through chemfiles.
pub(super) struct Writer {
    /// The file meant, for messages.
    path: PathBuf,
    trajectory: Trajectory,
    /// The last topology written and its chemfiles frame: a trajectory has one.
    last: Option<(Arc<System>, chemfiles::Frame)>,
}

impl Writer {
    /// Opens `at` (which becomes `path`) anew or, to `append`, at its end.
    pub(super) fn open(at: &Path, path: &Path, format: Format, append: bool) -> Result<Self> {
        check_path(at)?;
        let name = format.info.engine.chemfiles();
        let mode = if append { 'a' } else { 'w' };
        let trajectory = guard(|| Trajectory::open_with_format(at, mode, name)).map_err(|what| IoError::content(path, None, None, what))?;
        Ok(Writer { path: path.to_owned(), trajectory, last: None })
    }

    /// Writes a frame that was checked.
    pub(super) fn write(&mut self, index: usize, frame: &Frame) -> Result<()> {
        super::structure::check_orientation(&self.path, frame)?;
        let fail = |what: String| IoError::content(&self.path, Some(index), None, what);
        let fresh = !matches!(&self.last, Some((system, out)) if Arc::ptr_eq(system, &frame.system) && out.has_velocities() == frame.velocities.is_some());
        if fresh {
            self.last = Some((frame.system.clone(), to_chemfiles(frame).map_err(fail)?));
        }
        let Some((_, out)) = &mut self.last else { return Ok(()) };
        guard(|| {
            let copy = |to: &mut [[f64; 3]], from: &[f64]| {
                for (to, from) in to.iter_mut().flatten().zip(from) {
                    *to = from / NM_PER_ANGSTROM;
                }
            };
            copy(out.positions_mut(), &frame.positions);
            if let (Some(to), Some(from)) = (out.velocities_mut(), &frame.velocities) {
                copy(to, from);
            }
            match &frame.cell {
                Some(cell) => {
                    let (lengths, angles) = frame::cell_lengths_angles(cell);
                    out.set_cell(&chemfiles::UnitCell::triclinic(lengths.map(|l| l / NM_PER_ANGSTROM), angles));
                }
                None => out.set_cell(&chemfiles::UnitCell::infinite()),
            }
            if !frame.title.is_empty() {
                out.set("name", frame.title.replace(['\0', '\n', '\r'], " "));
            }
            if let Some(time) = frame.time {
                out.set("time", time);
            }
            if let Some(Ok(step)) = frame.properties.get("step").map(|s| s.parse::<usize>()) {
                // Formats keep 32 bits of it.
                out.set_step(step.min(i32::MAX as usize));
            }
            self.trajectory.write(out)
        })
        .map_err(fail)
    }

    /// Closes the file.
    pub(super) fn close(self) -> Result<()> {
        let path = self.path.clone();
        guard(move || {
            drop(self);
            Ok(())
        })
        .map_err(|what| IoError::content(&path, None, None, what))
    }
}

pub(super) fn check_selection(text: &str) -> std::result::Result<(), String> {
    let selection = guard(|| {
        if text.contains('\0') {
            return Ok(None);
        }
        chemfiles::Selection::new(text).map(Some)
    })?;
    match selection.map(|s| s.size()) {
        Some(1) => Ok(()),
        Some(_) => Err("a selection here chooses atoms, not pairs or larger groups; write for example `name CA`".into()),
        None => Err("a selection is text without zero characters".into()),
    }
}

pub(super) fn select(text: &str, frame: &Frame) -> std::result::Result<Vec<usize>, String> {
    let chemfiles_frame = to_chemfiles(frame)?;
    guard(|| Ok(chemfiles::Selection::new(text)?.list(&chemfiles_frame)))
}
