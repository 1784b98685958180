//! GRO files of GROMACS: fixed columns, nm and nm/ps, no elements and no bonds.

use super::Source;
use super::error::{IoError, Result};
use super::frame::{Frame, check_cell};
use super::lines::Lines;
use super::topology::{self, AtomRecord, Bonds};
use scorefield_integrators::AtomName;
use scorefield_integrators::state::Cell;
use std::path::{Path, PathBuf};

/// Streams the frames of one file.
pub(crate) struct GroReader {
    path: PathBuf,
    lines: Lines,
    name: String,
    size: u64,
    frame: usize,
}

impl GroReader {
    pub(crate) fn open(path: &Path, name: String) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| IoError::file("read", path, e))?.len();
        Ok(GroReader { path: path.to_owned(), lines: Lines::open(path)?, name, size, frame: 0 })
    }

    fn truncated(&self, what: impl Into<String>) -> IoError {
        IoError::truncated(&self.path, self.frame, what)
    }

    fn fail(&self, what: impl Into<String>) -> IoError {
        IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what)
    }

    /// Title and number of atoms.
    fn begin(&mut self) -> Result<Option<(String, usize)>> {
        let title = match self.lines.next()? {
            None => return Ok(None),
            Some(line) => line.trim().to_owned(),
        };
        let Some(count) = self.lines.next()?.map(|l| l.trim().to_owned()) else {
            // A blank line at the end is no frame.
            return if title.is_empty() { Ok(None) } else { Err(self.truncated("only the title is there")) };
        };
        match count.parse::<usize>() {
            Ok(0) => Err(self.fail("a frame of 0 atoms")),
            Ok(n) if n as u64 > self.size / 20 + 1 => Err(self.truncated(format!("{n} atoms are announced, more than the file can hold"))),
            Ok(n) => Ok(Some((title, n))),
            Err(_) => Err(self.fail(format!("`{count}` stands where the number of atoms should"))),
        }
    }
}

/// One line of an atom; the distance between decimal points tells the width of a number.
fn parse_atom(line: &str) -> std::result::Result<AtomRecord, String> {
    let column = |from: usize, to: usize| line.get(from..to.min(line.len())).unwrap_or_default().trim();
    let rest = line.get(20..).filter(|_| line.is_ascii()).ok_or("an atom's line is too short or not ASCII")?;
    let points: Vec<usize> = rest.match_indices('.').map(|(i, _)| i).take(2).collect();
    let [first, second] = points[..] else { return Err("an atom has no three coordinates".into()) };
    let width = second - first;
    let numbers: Vec<f64> = (0..6)
        .map_while(|k| rest.get(k * width..((k + 1) * width).min(rest.len())).map(str::trim).filter(|t| !t.is_empty()))
        .map(|t| t.parse().map_err(|_| format!("`{t}` is not a number")))
        .collect::<std::result::Result<_, _>>()?;
    let residue_id = column(0, 5);
    let mut record = AtomRecord {
        name: AtomName {
            atom: column(10, 15).to_owned(),
            residue: column(5, 10).to_owned(),
            residue_id: residue_id.parse().map_err(|_| format!("residue number `{residue_id}` is no number"))?,
            chain: String::new(),
        },
        ..AtomRecord::default()
    };
    match numbers[..] {
        [x, y, z] => record.position = [x, y, z],
        [x, y, z, vx, vy, vz] => {
            record.position = [x, y, z];
            record.velocity = Some([vx, vy, vz]);
        }
        _ => return Err(format!("an atom has {} numbers, not 3 or 6", numbers.len())),
    }
    Ok(record)
}

/// The box line: three lengths, or nine numbers `xx yy zz xy xz yx yz zx zy`.
fn parse_box(line: &str) -> std::result::Result<Option<Cell>, String> {
    let numbers: Option<Vec<f64>> = line.split_whitespace().map(|x| x.parse().ok()).collect();
    let cell = match numbers.as_deref() {
        Some(&[x, y, z]) => [x, 0.0, 0.0, 0.0, y, 0.0, 0.0, 0.0, z],
        Some(&[xx, yy, zz, xy, xz, yx, yz, zx, zy]) => [xx, xy, xz, yx, yy, yz, zx, zy, zz],
        _ => return Err(format!("`{line}` is not a box of three or nine numbers")),
    };
    if cell.iter().all(|x| *x == 0.0) {
        return Ok(None);
    }
    check_cell(&cell).map(|()| Some(cell))
}

impl Source for GroReader {
    fn count(&mut self) -> Result<usize> {
        let mut scan = GroReader::open(&self.path, String::new())?;
        loop {
            match scan.skip() {
                Ok(true) => {}
                Ok(false) | Err(IoError::Truncated { .. }) => return Ok(scan.frame),
                Err(e) => return Err(e),
            }
        }
    }

    fn skip(&mut self) -> Result<bool> {
        let Some((_, n)) = self.begin()? else { return Ok(false) };
        for i in 0..=n {
            if self.lines.next()?.is_none() {
                return Err(self.truncated(format!("{i} of {n} atoms and the box")));
            }
        }
        self.frame += 1;
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some((title, n)) = self.begin()? else { return Ok(None) };
        let mut records = Vec::with_capacity(n);
        for i in 0..n {
            let Some(line) = self.lines.next()? else { return Err(self.truncated(format!("{i} of {n} atoms"))) };
            match parse_atom(line) {
                Ok(record) => records.push(record),
                Err(what) => {
                    let error = self.fail(what);
                    return Err(if self.lines.next()?.is_none() { self.truncated(format!("{i} of {n} atoms are whole")) } else { error });
                }
            }
        }
        let Some(line) = self.lines.next()? else { return Err(self.truncated("the box is missing")) };
        let cell = parse_box(line).map_err(|what| self.fail(what))?;
        let mut frame =
            topology::frame(&self.path, self.frame, &self.name, records, Bonds::None, "Convert the file to PDB with an element column")?;
        frame.cell = cell;
        // `title, t= 1.0` is how GROMACS keeps the time.
        frame.time = title.rsplit_once("t=").and_then(|(_, t)| t.split_whitespace().next()?.parse().ok()).filter(|t: &f64| t.is_finite());
        frame.title = title;
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}
