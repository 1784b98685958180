//! XTC and TRR trajectories of GROMACS: big-endian frames in nm, XTC's coordinates compressed.

use super::Source;
use super::bytes::Bytes;
use super::check_atoms;
use super::error::{IoError, Result};
use super::frame::Frame;
use scorefield_integrators::System;
use scorefield_integrators::state::Cell;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Xtc,
    Trr,
}

/// Reads one file; frames are found at opening, by their headers.
pub(crate) struct GromacsReader {
    path: PathBuf,
    file: BufReader<File>,
    system: Arc<System>,
    kind: Kind,
    /// Start and size of each whole frame.
    frames: Vec<(u64, usize)>,
    tail: Option<IoError>,
    next: usize,
}

/// Bytes that tell the size of a frame: all of XTC's before the coordinates, TRR's header in double precision.
const HEADER: usize = 92;

impl GromacsReader {
    pub(crate) fn open(path: &Path, system: Arc<System>, kind: Kind) -> Result<Self> {
        let io = |e| IoError::file("read", path, e);
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut reader =
            GromacsReader { path: path.to_owned(), file: BufReader::new(file), system, kind, frames: Vec::new(), tail: None, next: 0 };
        let mut at = 0;
        while at < size {
            let index = reader.frames.len();
            let mut header = [0; HEADER];
            let there = usize::try_from(size - at).unwrap_or(usize::MAX).min(header.len());
            reader.file.seek(SeekFrom::Start(at)).and_then(|_| reader.file.read_exact(&mut header[..there])).map_err(io)?;
            let length = match kind {
                Kind::Xtc => xtc_size(&header[..there]),
                Kind::Trr => trr_header(&header[..there]).map(|h| h.map(|h| h.size)),
            };
            match length {
                Ok(Some(length)) if length as u64 <= size - at => {
                    reader.frames.push((at, length));
                    at += length as u64;
                    continue;
                }
                Ok(Some(length)) => reader.tail = Some(IoError::truncated(path, index, format!("{} of {length} bytes", size - at))),
                Ok(None) => reader.tail = Some(IoError::truncated(path, index, "its header is not whole")),
                Err(what) => reader.tail = Some(IoError::content(path, Some(index), None, what)),
            }
            break;
        }
        match reader.tail.take() {
            Some(error) if reader.frames.is_empty() => Err(error),
            tail => Ok(GromacsReader { tail, ..reader }),
        }
    }
}

/// Size of an XTC frame; `None` where the header is cut.
fn xtc_size(header: &[u8]) -> std::result::Result<Option<usize>, String> {
    let mut bytes = Bytes::new(header);
    let Some(magic) = bytes.i32() else { return Ok(None) };
    if magic != 1995 {
        return Err(format!("an XTC frame begins with 1995, not {magic}"));
    }
    let Some(atoms) = bytes.i32() else { return Ok(None) };
    let atoms = usize::try_from(atoms).map_err(|_| format!("it has {atoms} atoms"))?;
    if atoms <= 9 {
        return Ok(Some(56 + 12 * atoms));
    }
    let Some(size) = bytes.take(80).and_then(|_| bytes.u32()) else { return Ok(None) };
    Ok(Some(HEADER + (size as usize).next_multiple_of(4)))
}

struct TrrHeader {
    double: bool,
    box_size: usize,
    skip: usize,
    x: usize,
    v: usize,
    f: usize,
    atoms: usize,
    time: f64,
    /// Where the data begins, and the size of the whole frame.
    data: usize,
    size: usize,
}

/// Header of a TRR frame; `None` where it is cut.
fn trr_header(header: &[u8]) -> std::result::Result<Option<TrrHeader>, String> {
    let mut bytes = Bytes::new(header);
    let Some(magic) = bytes.i32() else { return Ok(None) };
    if magic != 1993 {
        return Err(format!("a TRR frame begins with 1993, not {magic}"));
    }
    let Some(version) = bytes.take(20) else { return Ok(None) };
    if &version[8..] != b"GMX_trn_file" {
        return Err("it does not call itself GMX_trn_file".into());
    }
    let mut n = [0usize; 13];
    for (k, n) in n.iter_mut().enumerate() {
        let Some(value) = bytes.i32() else { return Ok(None) };
        // The step (11) may have overflowed in a long run; nobody needs it.
        *n = if k == 11 { 0 } else { usize::try_from(value).map_err(|_| format!("a size in the header is {value}"))? };
    }
    let [ir, e, box_size, vir, pres, top, sym, x, v, f, atoms, _, _] = n;
    let real = match (box_size, atoms) {
        (b, _) if b > 0 => b / 9,
        (_, a) if a > 0 => x.max(v).max(f) / (3 * a),
        _ => 0,
    };
    if ir + e + top + sym > 0 || !(real == 4 || real == 8) || (box_size > 0 && box_size != 9 * real) {
        return Err("the sizes in the header do not fit together".into());
    }
    if [x, v, f].iter().any(|&s| s != 0 && s != 3 * atoms * real) {
        return Err(format!("{atoms} atoms do not fit arrays of {x}, {v} and {f} bytes"));
    }
    let (Some(time), Some(_)) = (bytes.real(real == 8), bytes.real(real == 8)) else { return Ok(None) };
    let data = bytes.position();
    Ok(Some(TrrHeader {
        double: real == 8,
        box_size,
        skip: vir + pres,
        x,
        v,
        f,
        atoms,
        time,
        data,
        size: data + box_size + vir + pres + x + v + f,
    }))
}

fn cell(values: &[f64]) -> Option<Cell> {
    <Cell>::try_from(values).ok().filter(|c| c.iter().any(|x| *x != 0.0))
}

impl GromacsReader {
    /// Parses the bytes of a whole frame; the sizes in it were checked at opening.
    fn parse(&self, index: usize, data: &[u8]) -> Result<Frame> {
        let fail = |what: String| IoError::content(&self.path, Some(index), None, what);
        let cut = || fail("its sizes contradict each other".into());
        let mut bytes = Bytes::new(data);
        let mut frame = Frame::new(self.system.clone(), Vec::new());
        match self.kind {
            Kind::Xtc => {
                bytes.take(4).ok_or_else(cut)?;
                let atoms = bytes.u32().ok_or_else(cut)? as usize;
                check_atoms(&self.path, index, atoms, &self.system)?;
                bytes.take(4).ok_or_else(cut)?;
                frame.time = bytes.real(false);
                frame.cell = cell(&bytes.reals(9, false).ok_or_else(cut)?);
                if bytes.u32().ok_or_else(cut)? as usize != atoms {
                    return Err(cut());
                }
                frame.positions = if atoms <= 9 {
                    bytes.reals(3 * atoms, false).ok_or_else(cut)?
                } else {
                    decompress(&mut bytes, atoms).ok_or_else(|| fail("the compressed coordinates are corrupt".into()))?
                };
            }
            Kind::Trr => {
                let h = trr_header(data).map_err(fail)?.ok_or_else(cut)?;
                check_atoms(&self.path, index, h.atoms, &self.system)?;
                if h.x == 0 {
                    return Err(fail("it has no positions".into()));
                }
                bytes.take(h.data).ok_or_else(cut)?;
                frame.time = Some(h.time);
                if h.box_size > 0 {
                    frame.cell = cell(&bytes.reals(9, h.double).ok_or_else(cut)?);
                }
                bytes.take(h.skip).ok_or_else(cut)?;
                frame.positions = bytes.reals(3 * h.atoms, h.double).ok_or_else(cut)?;
                if h.v > 0 {
                    frame.velocities = Some(bytes.reals(3 * h.atoms, h.double).ok_or_else(cut)?);
                }
                if h.f > 0 {
                    frame.forces = Some(bytes.reals(3 * h.atoms, h.double).ok_or_else(cut)?);
                }
            }
        }
        frame.time = frame.time.filter(|t| t.is_finite());
        frame.check(&self.path, index)?;
        Ok(frame)
    }
}

impl Source for GromacsReader {
    fn count(&mut self) -> Result<usize> {
        Ok(self.frames.len())
    }

    fn skip(&mut self) -> Result<bool> {
        if self.next < self.frames.len() {
            self.next += 1;
            return Ok(true);
        }
        self.tail.take().map_or(Ok(false), Err)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(&(at, size)) = self.frames.get(self.next) else { return self.tail.take().map_or(Ok(None), Err) };
        let mut data = vec![0; size];
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut data));
        read.map_err(|e| IoError::file("read", &self.path, e))?;
        let frame = self.parse(self.next, &data)?;
        self.next += 1;
        Ok(Some(frame))
    }
}

/// Sizes of small differences that XTC steps through: powers of the cube root of two.
#[rustfmt::skip]
const SMALL: [u32; 73] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 101, 128, 161, 203, 256, 322, 406, 512, 645, 812,
    1024, 1290, 1625, 2048, 2580, 3250, 4096, 5060, 6501, 8192, 10321, 13003, 16384, 20642, 26007, 32768, 41285, 52015,
    65536, 82570, 104031, 131072, 165140, 208063, 262144, 330280, 416127, 524287, 660561, 832255, 1048576, 1321122,
    1664510, 2097152, 2642245, 3329021, 4194304, 5284491, 6658042, 8388607, 10568983, 13316085, 16777216,
];
/// The first of them that is not 0.
const FIRST: usize = 9;

/// Bits of a compressed block, most significant first.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, n: u32) -> Option<u32> {
        let (mut value, mut left) = (0u64, n);
        while left > 0 {
            let byte = u32::from(*self.data.get(self.at / 8)?);
            let there = 8 - (self.at % 8) as u32;
            let now = there.min(left);
            let bits = byte >> (there - now) & ((1 << now) - 1);
            value = value << now | u64::from(bits);
            self.at += now as usize;
            left -= now;
        }
        Some(value as u32)
    }

    /// Three numbers below `sizes` in one number of `n` bits, whose bytes come least significant first.
    fn triple(&mut self, n: u32, sizes: [u32; 3]) -> Option<[i32; 3]> {
        let mut value = 0u128;
        let mut done = 0;
        while done < n {
            let bits = (n - done).min(8);
            value |= u128::from(self.take(bits)?) << done;
            done += 8;
        }
        let z = value.checked_rem(sizes[2].into())?;
        value = value.checked_div(sizes[2].into())?;
        let y = value.checked_rem(sizes[1].into())?;
        value = value.checked_div(sizes[1].into())?;
        Some([value as u32 as i32, y as i32, z as i32])
    }
}

/// Number of bits that hold `x`.
fn width(x: u128) -> u32 {
    128 - x.leading_zeros()
}

/// Positions `[N, 3]` in nm from XTC's compressed block; `None` where it is corrupt.
///
/// Atoms come as integers (positions times the precision) relative to the smallest, then runs of atoms relative to the one before, in
/// as few bits as the largest step of the moment needs. The first two atoms of a run are swapped, which suits water.
fn decompress(bytes: &mut Bytes<'_>, atoms: usize) -> Option<Vec<f64>> {
    let precision = bytes.real(false).filter(|p| p.is_finite() && *p > 0.0)? as f32;
    let mut corner = || Some([bytes.i32()?, bytes.i32()?, bytes.i32()?]);
    let (least, most) = (corner()?, corner()?);
    let mut index = bytes.u32()? as usize;
    let size = bytes.u32()? as usize;
    let mut bits = Bits { data: bytes.take(size)?, at: 0 };
    let sizes: [u32; 3] = std::array::from_fn(|a| most[a].wrapping_sub(least[a]).wrapping_add(1) as u32);
    let together = sizes.iter().all(|&s| s <= 0xff_ffff).then(|| width(sizes.iter().map(|&s| u128::from(s)).product()));
    let scale = 1.0 / precision;
    let mut out = Vec::with_capacity(3 * atoms);
    let mut push = |x: [i32; 3]| {
        // In f32, as GROMACS computes them.
        out.extend(x.map(|x| f64::from(x as f32 * scale)));
        out.len()
    };
    let (mut done, mut run) = (0, 0);
    let mut small = SMALL.get(index).copied()?;
    while done < 3 * atoms {
        let first = match together {
            Some(n) => bits.triple(n, sizes)?,
            None => {
                let [x, y, z] = sizes.map(|s| width(s.into()));
                [bits.take(x)? as i32, bits.take(y)? as i32, bits.take(z)? as i32]
            }
        };
        let first: [i32; 3] = std::array::from_fn(|a| first[a].wrapping_add(least[a]));
        let mut change = 0;
        if bits.take(1)? == 1 {
            let code = bits.take(5)?;
            change = code as i32 % 3 - 1;
            run = code / 3;
        }
        if done + 3 * (1 + run as usize) > 3 * atoms {
            return None;
        }
        if run == 0 {
            done = push(first);
        }
        let mut previous = first;
        for k in 0..run {
            let step = bits.triple(index as u32, [small; 3])?;
            let half = (small / 2) as i32;
            let next: [i32; 3] = std::array::from_fn(|a| step[a].wrapping_add(previous[a]).wrapping_sub(half));
            previous = next;
            done = push(next);
            if k == 0 {
                done = push(first);
            }
        }
        index = index.checked_add_signed(change as isize)?;
        small = SMALL.get(index).copied().filter(|_| index >= FIRST)?;
    }
    Some(out)
}
