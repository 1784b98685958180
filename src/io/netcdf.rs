//! Amber's NetCDF trajectories: the classic (64-bit offset) format, Å in the file, one record per frame.

use super::Source;
use super::bytes::Bytes;
use super::check_atoms;
use super::error::{IoError, Result};
use super::frame::{Frame, cell_from_lengths_angles};
use scorefield_integrators::System;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Headers of real files have a few kB.
const LONGEST_HEADER: u64 = 1 << 20;

/// Where one variable stands in the file.
#[derive(Clone, Copy, Debug)]
struct Variable {
    begin: u64,
    double: bool,
    /// Numbers per record.
    numbers: usize,
    scale: f64,
}

/// Reads one file; frames are found by position.
pub(crate) struct NetcdfReader {
    path: PathBuf,
    file: File,
    system: Arc<System>,
    variables: HashMap<String, Variable>,
    record: u64,
    frames: usize,
    tail: Option<String>,
    next: usize,
}

/// What the header says: variables that have records, their sum of sizes, number of records, atoms.
struct Header {
    variables: HashMap<String, Variable>,
    record: u64,
    records: u32,
    atoms: usize,
}

impl NetcdfReader {
    pub(crate) fn open(path: &Path, system: Arc<System>) -> Result<Self> {
        let io = |e| IoError::file("read", path, e);
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut head = Vec::new();
        (&mut file).take(LONGEST_HEADER).read_to_end(&mut head).map_err(io)?;
        let fail = |what: String| IoError::content(path, None, None, what);
        match head.get(..4) {
            Some([b'C', b'D', b'F', 1 | 2]) => {}
            Some([b'C', b'D', b'F', _] | [0x89, b'H', b'D', b'F']) => {
                return Err(IoError::format(
                    path,
                    "it is NetCDF of another kind than Amber's (classic or 64-bit offset)",
                    "Convert it, for example with `nccopy -k nc6`",
                ));
            }
            _ => return Err(fail("it does not begin like a NetCDF file".into())),
        }
        let header = parse_header(&head).ok_or_else(|| fail("its header is corrupt or cut".into()))?;
        let Some(coordinates) = header.variables.get("coordinates") else {
            return Err(fail("it has no variable `coordinates` with one record per frame".into()));
        };
        check_atoms(path, 0, header.atoms, &system)?;
        if coordinates.numbers != 3 * header.atoms {
            return Err(fail(format!("`coordinates` has {} numbers per frame for {} atoms", coordinates.numbers, header.atoms)));
        }
        let first = header.variables.values().map(|v| v.begin).min().unwrap_or(0);
        let body = size.saturating_sub(first);
        let mut frames = body / header.record;
        let rest = body % header.record;
        let mut tail = (rest != 0).then(|| format!("{rest} of {} bytes", header.record));
        // All ones mean that the writer was streaming.
        if header.records != u32::MAX {
            if u64::from(header.records) > frames {
                tail = Some(format!("the header announces {} frames", header.records));
            } else {
                // Bytes past the announced records are what a killed writer left.
                frames = u64::from(header.records);
                tail = None;
            }
        }
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        if frames == 0 && tail.is_none() {
            return Err(super::no_frame(path));
        }
        Ok(NetcdfReader { path: path.to_owned(), file, system, variables: header.variables, record: header.record, frames, tail, next: 0 })
    }

    /// Values of a variable in a frame, or nothing where the file lacks it.
    fn values(&mut self, name: &str, frame: usize) -> Result<Option<Vec<f64>>> {
        let Some(&v) = self.variables.get(name) else { return Ok(None) };
        let mut data = vec![0; v.numbers * if v.double { 8 } else { 4 }];
        let at = v.begin + frame as u64 * self.record;
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut data));
        read.map_err(|e| IoError::file("read", &self.path, e))?;
        Ok(Bytes::new(&data).reals(v.numbers, v.double).map(|values| values.into_iter().map(|x| x * v.scale).collect()))
    }
}

/// A name or text: length, bytes, padding.
fn text<'a>(bytes: &mut Bytes<'a>) -> Option<&'a [u8]> {
    let n = bytes.u32()? as usize;
    let text = bytes.take(n)?;
    bytes.take(n.next_multiple_of(4) - n)?;
    Some(text)
}

/// Attributes: the number of `scale_factor`, if there is one.
fn attributes(bytes: &mut Bytes<'_>) -> Option<Option<f64>> {
    let (tag, count) = (bytes.u32()?, bytes.u32()?);
    if !(tag == 12 || (tag == 0 && count == 0)) {
        return None;
    }
    let mut scale = None;
    for _ in 0..count {
        let name = text(bytes)?;
        let kind = bytes.u32()?;
        let n = bytes.u32()? as usize;
        let size = n.checked_mul(match kind {
            1 | 2 => 1,
            3 => 2,
            4 | 5 => 4,
            6 => 8,
            _ => return None,
        })?;
        let data = bytes.take(size)?;
        bytes.take(size.checked_next_multiple_of(4)? - size)?;
        if name == b"scale_factor" && (5..=6).contains(&kind) {
            scale = Bytes::new(data).real(kind == 6);
        }
    }
    Some(scale)
}

fn parse_header(head: &[u8]) -> Option<Header> {
    let mut bytes = Bytes::new(head);
    let wide = bytes.take(4)?[3] == 2;
    let records = bytes.u32()?;
    let (tag, count) = (bytes.u32()?, bytes.u32()?);
    if !(tag == 10 || (tag == 0 && count == 0)) {
        return None;
    }
    let mut dimensions = Vec::new();
    let mut atoms = 0;
    for _ in 0..count {
        let name = text(&mut bytes)?;
        let n = bytes.u32()? as usize;
        if name == b"atom" {
            atoms = n;
        }
        dimensions.push(n);
    }
    attributes(&mut bytes)?;
    let (tag, count) = (bytes.u32()?, bytes.u32()?);
    if tag != 11 {
        return None;
    }
    let mut variables = HashMap::new();
    let (mut record, mut alone, mut with_records) = (0u64, 0u64, 0);
    for _ in 0..count {
        let name = String::from_utf8_lossy(text(&mut bytes)?).into_owned();
        let rank = bytes.u32()?;
        let mut numbers = 1usize;
        let mut is_record = false;
        for k in 0..rank {
            let size = *dimensions.get(bytes.u32()? as usize)?;
            // The record dimension has size 0 and comes first.
            match (size, k) {
                (0, 0) => is_record = true,
                (0, _) => return None,
                _ => numbers = numbers.checked_mul(size)?,
            }
        }
        let scale = attributes(&mut bytes)?.unwrap_or(1.0);
        let kind = bytes.u32()?;
        let _announced = bytes.u32()?;
        let begin = if wide { bytes.u64()? } else { bytes.u32()?.into() };
        let size = match kind {
            1 | 2 => 1,
            3 => 2,
            4 | 5 => 4,
            6 => 8,
            _ => return None,
        };
        if is_record {
            alone = (numbers as u64).checked_mul(size)?;
            record = record.checked_add(alone.checked_next_multiple_of(4)?)?;
            with_records += 1;
            if kind >= 5 {
                variables.insert(name, Variable { begin, double: kind == 6, numbers, scale });
            }
        }
    }
    // A lone record variable is not padded.
    if with_records == 1 {
        record = alone;
    }
    // Every record lies within one stride of the first; anything else is corrupt.
    let first = variables.values().map(|v| v.begin).min()?;
    let inside =
        |v: &Variable| (v.begin - first).checked_add(v.numbers as u64 * if v.double { 8 } else { 4 }).is_some_and(|end| end <= record);
    (record > 0 && first >= bytes.position() as u64 && variables.values().all(inside)).then_some(Header {
        variables,
        record,
        records,

        atoms,
    })
}

impl Source for NetcdfReader {
    fn count(&mut self) -> Result<usize> {
        Ok(self.frames)
    }

    fn skip(&mut self) -> Result<bool> {
        if self.next < self.frames {
            self.next += 1;
            return Ok(true);
        }
        self.next().map(|f| f.is_some())
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let index = self.next;
        if index >= self.frames {
            return self.tail.take().map_or(Ok(None), |what| Err(IoError::truncated(&self.path, index, what)));
        }
        let scaled = |values: Vec<f64>| values.into_iter().map(|x| x * NM_PER_ANGSTROM).collect::<Vec<f64>>();
        let positions = self.values("coordinates", index)?.map(scaled).unwrap_or_default();
        let mut frame = Frame::new(self.system.clone(), positions);
        frame.velocities = self.values("velocities", index)?.map(scaled);
        frame.time = self.values("time", index)?.and_then(|t| t.first().copied()).filter(|t| t.is_finite());
        if let (Some(lengths), Some(angles)) = (self.values("cell_lengths", index)?.map(scaled), self.values("cell_angles", index)?)
            && let ([a, b, c], [alpha, beta, gamma]) = (&lengths[..], &angles[..])
            && lengths.iter().any(|l| *l != 0.0)
        {
            let cell = cell_from_lengths_angles([*a, *b, *c], [*alpha, *beta, *gamma]);
            frame.cell = Some(cell.map_err(|what| IoError::content(&self.path, Some(index), None, what))?);
        }
        frame.check(&self.path, index)?;
        self.next += 1;
        Ok(Some(frame))
    }
}
