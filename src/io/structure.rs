//! Whole files of frames: structures and small trajectories that are written once.

use super::atomic::{Temporary, write_atomically};
use super::error::{IoError, Result};
use super::format::{Engine, Format, Own};
use super::frame::{self, Frame};
use super::{backend, dcd, lammps, mmcif, pdb, sdf_write, xyz};
use std::path::Path;

/// Writes frames to a new file in the format of its extension, or the one named; an old file is replaced once the new one is whole.
///
/// Energies and forces are kept by (extended) XYZ, in eV and eV/Å as ASE reads them; SDF keeps bond
/// orders, charges and properties; other formats keep positions, the cell, velocities where they have a place for them, names and bonds.
///
/// # Errors
/// Where there are no frames, a number is not finite, the format cannot hold the frames, or the disk refuses.
pub fn write_frames(path: impl AsRef<Path>, format: Option<&str>, frames: &[Frame]) -> Result<()> {
    let path = path.as_ref();
    let format = Format::of(path, format)?;
    if frames.is_empty() {
        return Err(IoError::shape(path, "there are no frames to write"));
    }
    for (index, frame) in frames.iter().enumerate() {
        frame.system.check().map_err(|e| IoError::shape(path, format!("frame {index}: {e}")))?;
        frame.check(path, index)?;
    }
    match format.info.engine {
        Engine::Xyz => write_text(path, frames, xyz::format_extended),
        Engine::Dump => {
            frames.iter().try_for_each(|f| check_orientation(path, f))?;
            write_text(path, frames, lammps::format_dump)
        }
        Engine::Own(Own::Pdb, _) => {
            frames.iter().try_for_each(|f| check_orientation(path, f))?;
            let text = pdb::format_pdb(path, frames)?;
            write_atomically(path, |w| w.write_all(text.as_bytes()))
        }
        Engine::Own(Own::Mmcif, _) => {
            frames.iter().try_for_each(|f| check_orientation(path, f))?;
            let mut text = String::new();
            mmcif::format_mmcif(frames, &mut text);
            write_atomically(path, |w| w.write_all(text.as_bytes()))
        }
        Engine::Own(Own::Sdf, _) => {
            let mut text = String::new();
            frames.iter().try_for_each(|f| sdf_write::format_sdf(path, f, &mut text))?;
            write_atomically(path, |w| w.write_all(text.as_bytes()))
        }
        Engine::Dcd => write_dcd(path, frames),
        _ => {
            let temporary = Temporary::beside(path)?;
            let mut writer = backend::Writer::open(temporary.path(), path, format, false)?;
            for (index, frame) in frames.iter().enumerate() {
                writer.write(index, frame)?;
            }
            writer.close()?;
            temporary.commit()
        }
    }
}

/// A frame as the text of a PDB file.
///
/// # Errors
/// Where the format cannot hold it.
pub fn pdb_text(frame: &Frame) -> Result<String> {
    let path = Path::new(&frame.system.name);
    check_orientation(path, frame)?;
    pdb::format_pdb(path, std::slice::from_ref(frame))
}

/// A frame as one record of an SDF file, dollars included.
///
/// # Errors
/// Where the format cannot hold it.
pub fn sdf_text(frame: &Frame) -> Result<String> {
    let mut text = String::new();
    sdf_write::format_sdf(Path::new(&frame.system.name), frame, &mut text)?;
    Ok(text)
}

fn write_text(path: &Path, frames: &[Frame], format: fn(&Frame, &mut String)) -> Result<()> {
    write_atomically(path, |w| {
        let mut text = String::new();
        for frame in frames {
            text.clear();
            format(frame, &mut text);
            w.write_all(text.as_bytes())?;
        }
        Ok(())
    })
}

fn write_dcd(path: &Path, frames: &[Frame]) -> Result<()> {
    let (atoms, periodic) = (frames[0].len(), frames[0].cell.is_some());
    for (index, frame) in frames.iter().enumerate() {
        if frame.len() != atoms || frame.cell.is_some() != periodic {
            return Err(IoError::shape(
                path,
                format!(
                    "frame {index} has another number of atoms than frame 0, or only one of them has a cell; DCD files cannot hold both"
                ),
            ));
        }
        check_orientation(path, frame)?;
    }
    write_atomically(path, |w| {
        let timing = dcd::Timing::default();
        let mut bytes = dcd::header(atoms, periodic, timing, &frames[0].title);
        let at = dcd::COUNTERS_AT as usize;
        bytes[at..at + 16].copy_from_slice(&dcd::counters(timing, frames.len() as u64));
        for frame in frames {
            dcd::push_frame(&mut bytes, &frame.positions, frame.cell.as_ref());
            w.write_all(&bytes)?;
            bytes.clear();
        }
        Ok(())
    })
}

/// Checks that a format with cell lengths and angles can hold the frame's cell.
pub(super) fn check_orientation(path: &Path, frame: &Frame) -> Result<()> {
    match &frame.cell {
        Some(cell) if !frame::cell_is_standard(cell) => Err(IoError::format(
            path,
            "the cell is rotated (a is not along x, or b not in the xy plane), and this format keeps only lengths and angles",
            "Write extended XYZ instead",
        )),
        _ => Ok(()),
    }
}
