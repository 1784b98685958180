//! Stands in for chemfiles where the program was built without it.

use super::error::{IoError, Result};
use super::format::Format;
use super::frame::Frame;
use std::path::Path;

const REMEDY: &str =
    "This program was built without the feature `chemfiles` and writes xyz, extxyz, dcd and lammps only; build it with the feature";

pub(super) fn check_selection(_text: &str) -> std::result::Result<(), String> {
    Err("selections by name, type or residue need the feature `chemfiles`; write an index list such as `0-4,8`".into())
}

pub(super) fn select(text: &str, _frame: &Frame) -> std::result::Result<Vec<usize>, String> {
    check_selection(text).map(|()| Vec::new())
}

/// Nothing can be written.
pub(super) struct Writer;

impl Writer {
    pub(super) fn open(_at: &Path, path: &Path, format: Format, _append: bool) -> Result<Self> {
        Err(IoError::format(path, format!("{} files cannot be written", format.info.name), REMEDY))
    }

    pub(super) fn write(&mut self, _index: usize, _frame: &Frame) -> Result<()> {
        Ok(())
    }

    pub(super) fn close(self) -> Result<()> {
        Ok(())
    }
}
