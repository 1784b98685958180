//! DCD trajectories in CHARMM's dialect, as VMD, MDTraj and OpenMM read and write them: f32 positions in Å, an optional
//! cell per frame, no topology. Frames have one size, so that a file can be cut and continued bitwise.

use super::Source;
use super::error::{IoError, Result};
use super::frame::{self, Frame};
use scorefield_integrators::System;
use scorefield_integrators::state::Cell;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// CHARMM's unit of time in ps, as OpenMM and VMD round it.
const AKMA: f64 = 0.04888821;
/// Size of the header that we write: 84, two title lines, number of atoms, each between record markers.
const HEADER: u64 = 92 + 172 + 12;
/// Where the four counters (frames, first step, interval, last step) stand.
pub(crate) const COUNTERS_AT: u64 = 8;

/// What a header says about time; all zero where the frames are not evenly spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Timing {
    /// Step of the first frame.
    pub(crate) first_step: u64,
    /// Steps between frames.
    pub(crate) interval: u64,
    /// Time of one step in ps.
    pub(crate) timestep: f64,
}

impl Timing {
    /// The header's integers are 32 bits wide: longer runs are described by fewer, longer steps.
    fn narrowed(self, frames: u64) -> (i32, i32, i32, f32) {
        let last = |t: &Timing| t.first_step.saturating_add(frames.saturating_sub(1).saturating_mul(t.interval));
        let mut t = self;
        // Decided by the first step and interval alone (room for 2^20 frames), so that a growing file never changes its units.
        if t.first_step.saturating_add(t.interval.saturating_mul(1 << 20)) > i32::MAX as u64 && t.interval > 1 {
            t = Timing { first_step: t.first_step / t.interval, interval: 1, timestep: t.timestep * t.interval as f64 };
        }
        let clip = |x: u64| i32::try_from(x).unwrap_or(i32::MAX);
        (clip(t.first_step), clip(t.interval), clip(last(&t)), (t.timestep / AKMA) as f32)
    }
}

/// The 16 bytes at [`COUNTERS_AT`] for a file of `frames` frames.
pub(crate) fn counters(timing: Timing, frames: u64) -> [u8; 16] {
    let (first, interval, last, _) = timing.narrowed(frames);
    let mut bytes = [0; 16];
    let values = [i32::try_from(frames).unwrap_or(i32::MAX), first, interval, if frames == 0 { 0 } else { last }];
    for (place, value) in bytes.chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Header of an empty file. `title` (the second title line) must not depend on the clock: files are compared.
pub(crate) fn header(atoms: usize, periodic: bool, timing: Timing, title: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER as usize);
    let int = |out: &mut Vec<u8>, x: i32| out.extend_from_slice(&x.to_le_bytes());
    int(&mut out, 84);
    out.extend_from_slice(b"CORD");
    out.extend_from_slice(&counters(timing, 0));
    for _ in 0..5 {
        int(&mut out, 0);
    }
    out.extend_from_slice(&timing.narrowed(0).3.to_le_bytes());
    int(&mut out, i32::from(periodic));
    for _ in 0..8 {
        int(&mut out, 0);
    }
    int(&mut out, 24);
    int(&mut out, 84);
    int(&mut out, 164);
    int(&mut out, 2);
    for line in ["Created by scorefield", title] {
        let mut bytes: Vec<u8> = line.bytes().filter(u8::is_ascii).take(80).collect();
        bytes.resize(80, b' ');
        out.extend_from_slice(&bytes);
    }
    int(&mut out, 164);
    int(&mut out, 4);
    int(&mut out, atoms as i32);
    int(&mut out, 4);
    out
}

/// Bytes of one frame.
pub(crate) fn frame_size(atoms: usize, periodic: bool) -> u64 {
    (if periodic { 56 } else { 0 }) + 3 * (8 + 4 * atoms as u64)
}

/// Number of whole frames in one of our files of `length` bytes, if that is where a frame ends.
pub(crate) fn frames_in(length: u64, atoms: usize, periodic: bool) -> Option<u64> {
    let body = length.checked_sub(HEADER)?;
    let size = frame_size(atoms, periodic);
    (body % size == 0).then_some(body / size)
}

/// Whether one of our files of `atoms` atoms has a cell per frame; `None` where the file is not one of those.
pub(crate) fn read_own_header(file: &mut File, atoms: usize) -> std::io::Result<Option<bool>> {
    let mut head = vec![0; HEADER as usize];
    file.seek(SeekFrom::Start(0))?;
    match file.read_exact(&mut head) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let same = |periodic: bool| {
        let ours = header(atoms, periodic, Timing::default(), "");
        // Counters, the time step and the title differ from file to file.
        let compare = |range: std::ops::Range<usize>| head[range.clone()] == ours[range];
        compare(0..8) && compare(24..44) && compare(48..108) && compare(260..276)
    };
    Ok([false, true].into_iter().find(|&p| same(p)))
}

/// Appends a frame: `positions` (`[N, 3]`, nm) and `cell` (standard orientation, nm) as the header announced.
pub(crate) fn push_frame(out: &mut Vec<u8>, positions: &[f64], cell: Option<&Cell>) {
    let mark = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as i32).to_le_bytes());
    if let Some(cell) = cell {
        let (lengths, _) = frame::cell_lengths_angles(cell);
        let [a, b, c] = lengths;
        let row = |i: usize| [cell[3 * i], cell[3 * i + 1], cell[3 * i + 2]];
        let cosine = |u: [f64; 3], v: [f64; 3], l: f64| (u[0] * v[0] + u[1] * v[1] + u[2] * v[2]) / l;
        let (x, y, z) = (row(0), row(1), row(2));
        // Cosines instead of angles, as VMD and OpenMM write them.
        let [gamma, beta, alpha] = [cosine(x, y, a * b), cosine(x, z, a * c), cosine(y, z, b * c)];
        mark(out, 48);
        for value in [a / NM_PER_ANGSTROM, gamma, b / NM_PER_ANGSTROM, beta, alpha, c / NM_PER_ANGSTROM] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        mark(out, 48);
    }
    let atoms = positions.len() / 3;
    for axis in 0..3 {
        mark(out, 4 * atoms);
        for i in 0..atoms {
            out.extend_from_slice(&((positions[3 * i + axis] / NM_PER_ANGSTROM) as f32).to_le_bytes());
        }
        mark(out, 4 * atoms);
    }
}

/// Reads one file; frames are found by position, hence in any order.
pub(crate) struct DcdReader {
    path: PathBuf,
    file: BufReader<File>,
    system: Arc<System>,
    big_endian: bool,
    /// CHARMM files may have a cell and a fourth dimension per frame.
    periodic: bool,
    fourth: bool,
    /// CHARMM after version 25 stores the cell as a symmetric matrix.
    matrix: bool,
    timing: Option<(u64, u64, f64)>,
    header: u64,
    frame_size: u64,
    /// Whole frames in the file, and what is wrong after them.
    frames: usize,
    tail: Option<String>,
    next: usize,
    buffer: Vec<u8>,
}

impl DcdReader {
    pub(crate) fn open(path: &Path, system: Arc<System>) -> Result<Self> {
        let file = File::open(path).map_err(|e| IoError::file("read", path, e))?;
        let size = file.metadata().map_err(|e| IoError::file("read", path, e))?.len();
        let mut reader = DcdReader {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 16, file),
            system,
            big_endian: false,
            periodic: false,
            fourth: false,
            matrix: false,
            timing: None,
            header: 0,
            frame_size: 1,
            frames: 0,
            tail: None,
            next: 0,
            buffer: Vec::new(),
        };
        reader.read_header(size)?;
        Ok(reader)
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(IoError::content(&self.path, None, None, what))
    }

    fn bytes<const K: usize>(&mut self) -> Result<[u8; K]> {
        let mut bytes = [0; K];
        self.file.read_exact(&mut bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => IoError::truncated(&self.path, 0, "the header is not whole"),
            _ => IoError::file("read", &self.path, e),
        })?;
        Ok(bytes)
    }

    fn int(&mut self) -> Result<i32> {
        let bytes = self.bytes()?;
        Ok(if self.big_endian { i32::from_be_bytes(bytes) } else { i32::from_le_bytes(bytes) })
    }

    fn expect(&mut self, marker: i32, what: &str) -> Result<()> {
        match self.int()? {
            found if found == marker => Ok(()),
            found => self.fail(format!("the {what} has a record marker of {found} instead of {marker}")),
        }
    }

    fn read_header(&mut self, size: u64) -> Result<()> {
        match self.bytes()? {
            [84, 0, 0, 0] => {}
            [0, 0, 0, 84] => self.big_endian = true,
            _ => return self.fail("it does not begin like a DCD file"),
        }
        match &self.bytes::<4>()? {
            b"CORD" => {}
            [0, 0, 0, 0] | b"VELD" => {
                return Err(IoError::format(
                    &self.path,
                    "it is a DCD file with 64-bit markers or of velocities",
                    "Convert it to plain DCD first",
                ));
            }
            _ => return self.fail("it does not begin like a DCD file"),
        }
        let mut control = [0u8; 80];
        for word in control.chunks_exact_mut(4) {
            word.copy_from_slice(&self.bytes::<4>()?);
        }
        let big_endian = self.big_endian;
        let control = |i: usize| {
            let word = [control[4 * i], control[4 * i + 1], control[4 * i + 2], control[4 * i + 3]];
            (if big_endian { i32::from_be_bytes(word) } else { i32::from_le_bytes(word) }, word)
        };
        let (announced, first, interval) = (control(0).0, control(1).0, control(2).0);
        if announced < 0 {
            return self.fail(format!("the header announces {announced} frames"));
        }
        if control(8).0 != 0 {
            return Err(IoError::format(&self.path, "it keeps fixed atoms only once", "Convert it to plain DCD first"));
        }
        let charmm = control(19).0;
        let step = if charmm != 0 {
            self.periodic = control(10).0 != 0;
            self.fourth = control(11).0 == 1;
            self.matrix = charmm > 25;
            let word = control(9).1;
            f64::from(if big_endian { f32::from_be_bytes(word) } else { f32::from_le_bytes(word) })
        } else {
            let (a, b) = (control(9).1, control(10).1);
            let word = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
            if big_endian { f64::from_be_bytes(word) } else { f64::from_le_bytes(word) }
        };
        if step.is_finite() && step > 0.0 && first >= 0 && interval > 0 {
            self.timing = Some((first as u64, interval as u64, step * AKMA));
        }
        self.expect(84, "header")?;
        let title = self.int()?;
        if !(0..=1 << 20).contains(&title) {
            return self.fail(format!("the title has {title} bytes"));
        }
        let mut text = vec![0; title as usize];
        self.file.read_exact(&mut text).map_err(|_| IoError::truncated(&self.path, 0, "the title is not whole"))?;
        self.expect(title, "title")?;
        self.expect(4, "number of atoms")?;
        let atoms = self.int()?;
        self.expect(4, "number of atoms")?;
        if usize::try_from(atoms).ok() != Some(self.system.len()) {
            return Err(IoError::Content {
                path: self.path.clone(),
                frame: None,
                line: None,
                what: format!("it has {atoms} atoms, but the topology {} has {}", self.system.name, self.system.len()),
                remedy: "Give the topology that the trajectory was made with".into(),
            });
        }
        let atoms = self.system.len();
        self.header = self.file.stream_position().map_err(|e| IoError::file("read", &self.path, e))?;
        self.frame_size = frame_size(atoms, self.periodic) + if self.fourth { 8 + 4 * atoms as u64 } else { 0 };
        let body = size.saturating_sub(self.header);
        self.frames = usize::try_from(body / self.frame_size).unwrap_or(usize::MAX);
        let rest = body % self.frame_size;
        if rest != 0 {
            self.tail = Some(format!("{rest} of {} bytes", self.frame_size));
        } else if announced as usize > self.frames {
            self.tail = Some(format!("the header announces {announced} frames"));
        }
        // A header with fewer frames than the file is what a killed writer leaves: the frames count.
        Ok(())
    }

    /// Numbers of one Fortran record at `at` in the buffer.
    fn record<const K: usize, T>(&self, at: usize, n: usize, frame: usize, convert: impl Fn([u8; K], bool) -> T) -> Result<Vec<T>> {
        let marker = |at: usize| {
            let word = [self.buffer[at], self.buffer[at + 1], self.buffer[at + 2], self.buffer[at + 3]];
            if self.big_endian { i32::from_be_bytes(word) } else { i32::from_le_bytes(word) }
        };
        let (before, after) = (marker(at), marker(at + 4 + K * n));
        if before as i64 != (K * n) as i64 || after != before {
            return Err(IoError::content(
                &self.path,
                Some(frame),
                None,
                format!("record markers of {before} and {after} instead of {}", K * n),
            ));
        }
        let data = &self.buffer[at + 4..at + 4 + K * n];
        Ok(data
            .chunks_exact(K)
            .map(|c| {
                let mut word = [0; K];
                word.copy_from_slice(c);
                convert(word, self.big_endian)
            })
            .collect())
    }

    fn cell(&self, v: &[f64]) -> std::result::Result<Option<Cell>, String> {
        let s = NM_PER_ANGSTROM;
        if v.iter().all(|x| *x == 0.0) || [v[0], v[2], v[5]].iter().all(|x| *x == 0.0) {
            return Ok(None);
        }
        if self.matrix {
            let cell = [v[0], v[1], v[3], v[1], v[2], v[4], v[3], v[4], v[5]].map(|x| x * s);
            return frame::check_cell(&cell).map(|()| Some(cell));
        }
        let mut angles = [v[4], v[3], v[1]];
        if angles.iter().all(|a| a.abs() <= 1.0) {
            angles = angles.map(|c| if c == 0.0 { 90.0 } else { c.acos().to_degrees() });
        }
        frame::cell_from_lengths_angles([v[0] * s, v[2] * s, v[5] * s], angles).map(Some)
    }
}

impl Source for DcdReader {
    fn count(&mut self) -> Result<usize> {
        Ok(self.frames)
    }

    fn skip(&mut self) -> Result<bool> {
        if self.next >= self.frames {
            return self.next().map(|f| f.is_some());
        }
        self.next += 1;
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let index = self.next;
        if index >= self.frames {
            return match self.tail.take() {
                Some(what) => Err(IoError::truncated(&self.path, index, what)),
                None => Ok(None),
            };
        }
        let at = self.header + index as u64 * self.frame_size;
        self.buffer.resize(self.frame_size as usize, 0);
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut self.buffer));
        read.map_err(|e| IoError::file("read", &self.path, e))?;
        let mut at = 0;
        let mut cell = None;
        if self.periodic {
            let values = self.record::<8, f64>(0, 6, index, |b, big| if big { f64::from_be_bytes(b) } else { f64::from_le_bytes(b) })?;
            cell = self.cell(&values).map_err(|what| IoError::content(&self.path, Some(index), None, what))?;
            at = 56;
        }
        let n = self.system.len();
        let mut positions = vec![0.0; 3 * n];
        for axis in 0..3 {
            let values = self.record::<4, f32>(at, n, index, |b, big| if big { f32::from_be_bytes(b) } else { f32::from_le_bytes(b) })?;
            for (i, value) in values.into_iter().enumerate() {
                positions[3 * i + axis] = f64::from(value) * NM_PER_ANGSTROM;
            }
            at += 8 + 4 * n;
        }
        let mut frame = Frame::new(self.system.clone(), positions);
        frame.cell = cell;
        frame.time = self.timing.map(|(first, interval, step)| (first + index as u64 * interval) as f64 * step);
        frame.check(&self.path, index)?;
        self.next += 1;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(frames: usize, periodic: bool) -> (Vec<u8>, Vec<Vec<f64>>) {
        let timing = Timing { first_step: 100, interval: 10, timestep: 0.002 };
        let mut bytes = header(5, periodic, timing, "replica 3");
        assert_eq!(bytes.len() as u64, HEADER);
        let mut all = Vec::new();
        let cell = frame::cell_from_lengths_angles([2.0, 2.5, 3.0], [90.0, 80.0, 60.0]).unwrap();
        for f in 0..frames {
            let positions: Vec<f64> = (0..15).map(|i| (i as f64 * 0.37 + f as f64).sin()).collect();
            push_frame(&mut bytes, &positions, periodic.then_some(&cell));
            all.push(positions);
        }
        bytes[8..24].copy_from_slice(&counters(timing, frames as u64));
        (bytes, all)
    }

    fn open(bytes: &[u8]) -> Result<(tempfile::NamedTempFile, DcdReader)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let reader = DcdReader::open(file.path(), Arc::new(System::particles("five", 5, 1.0)))?;
        Ok((file, reader))
    }

    #[test]
    fn round_trip() {
        for periodic in [false, true] {
            let (bytes, all) = sample(3, periodic);
            assert_eq!(frames_in(bytes.len() as u64, 5, periodic), Some(3));
            assert_eq!(frames_in(bytes.len() as u64 - 1, 5, periodic), None);
            let (_file, mut reader) = open(&bytes).unwrap();
            assert_eq!(reader.count().unwrap(), 3);
            assert!(reader.skip().unwrap());
            for (f, positions) in all.iter().enumerate().skip(1) {
                let frame = reader.next().unwrap().unwrap();
                assert!(frame.positions.iter().zip(positions).all(|(a, b)| (a - b).abs() < 1e-7));
                assert!((frame.time.unwrap() - 0.002 * (100 + 10 * f) as f64).abs() < 1e-7);
                assert_eq!(frame.cell.is_some(), periodic);
                if let Some(cell) = frame.cell {
                    let (lengths, angles) = frame::cell_lengths_angles(&cell);
                    assert!((lengths[1] - 2.5).abs() < 1e-12 && (angles[1] - 80.0).abs() < 1e-9 && angles[0] == 90.0);
                }
            }
            assert!(reader.next().unwrap().is_none());
        }
    }

    #[test]
    fn counters_hold_long_runs() {
        let timing = Timing { first_step: 0, interval: 5000, timestep: 0.002 };
        let (first, interval, last, step) = timing.narrowed(1000);
        assert_eq!((first, interval, last), (0, 1, 999));
        assert!((f64::from(step) * AKMA - 10.0).abs() < 1e-5);
        assert_eq!(Timing { interval: 10, ..timing }.narrowed(3).1, 10);
    }

    #[test]
    fn every_truncation_is_an_error_after_the_whole_frames() {
        let (bytes, _) = sample(2, true);
        let size = frame_size(5, true) as usize;
        for cut in 0..bytes.len() {
            let mut whole = 0;
            let result = open(&bytes[..cut]).and_then(|(_file, mut reader)| {
                while reader.next()?.is_some() {
                    whole += 1;
                }
                Ok(())
            });
            assert!(result.is_err(), "cut at {cut}");
            assert_eq!(whole, cut.saturating_sub(HEADER as usize) / size, "cut at {cut}");
        }
    }

    #[test]
    fn corrupt_content_is_an_error_or_other_numbers() {
        let (bytes, _) = sample(2, true);
        for i in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[i] ^= flip;
                if let Ok((_file, mut reader)) = open(&bad) {
                    for _ in 0..4 {
                        let _ = reader.next();
                    }
                }
            }
        }
        let mut nan = bytes.clone();
        let x = HEADER as usize + 56 + 4;
        nan[x..x + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        let (_file, mut reader) = open(&nan).unwrap();
        assert!(matches!(reader.next(), Err(IoError::NotFinite { axis: 'x', frame: 0, .. })));
    }

    #[test]
    fn reads_big_endian() {
        let (bytes, all) = sample(1, false);
        // All words of a file without cell are 4 bytes wide, except for text.
        let mut swapped = Vec::new();
        for (i, word) in bytes.chunks_exact(4).enumerate() {
            let text = i == 1 || (25..65).contains(&i);
            let mut word = [word[0], word[1], word[2], word[3]];
            if !text {
                word.reverse();
            }
            swapped.extend_from_slice(&word);
        }
        let (_file, mut reader) = open(&swapped).unwrap();
        let frame = reader.next().unwrap().unwrap();
        assert!(frame.positions.iter().zip(&all[0]).all(|(a, b)| (a - b).abs() < 1e-7));
    }
}
