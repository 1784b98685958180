//! Plain and extended XYZ, as ASE and OVITO write and read it: Å, eV, eV/Å in the file.

use super::Source;
use super::elements;
use super::error::{IoError, Result};
use super::frame::{self, Frame};
use super::lines::Lines;
use scorefield_integrators::System;
use scorefield_integrators::state::Cell;
use scorefield_integrators::units::{KJ_PER_EV, NM_PER_ANGSTROM};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// kJ/mol/nm per eV/Å.
const FORCE: f64 = KJ_PER_EV / NM_PER_ANGSTROM;

/// Streams the frames of one file.
pub(crate) struct XyzReader {
    path: PathBuf,
    lines: Lines,
    /// Name of all systems: the file's.
    name: String,
    /// Bytes of the file: bounds the number of atoms that it can hold.
    size: u64,
    frame: usize,
}

/// Which columns of an atom's line mean what.
struct Columns {
    species: usize,
    positions: usize,
    forces: Option<usize>,
    /// Columns that every line must have.
    count: usize,
}

const PLAIN: Columns = Columns { species: 0, positions: 1, forces: None, count: 4 };

impl XyzReader {
    pub(crate) fn open(path: &Path, name: String) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| IoError::file("read", path, e))?.len();
        Ok(XyzReader { path: path.to_owned(), lines: Lines::open(path)?, name, size, frame: 0 })
    }

    /// The number of atoms that begins a frame, or `None` at the end of the file (blank lines at the end do no harm).
    fn begin(&mut self) -> Result<Option<usize>> {
        loop {
            let text = match self.lines.next()? {
                None => return Ok(None),
                Some(text) if text.trim().is_empty() => continue,
                Some(text) => text.trim().to_owned(),
            };
            let fail = |what: String| Err(IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what));
            return match text.parse::<usize>() {
                Ok(0) => fail("a frame of 0 atoms".into()),
                // An atom takes at least `C 0 0 0\n`; more than fit in the file cannot be meant.
                Ok(n) if n as u64 > self.size / 8 + 1 => {
                    Err(IoError::truncated(&self.path, self.frame, format!("{n} atoms are announced, more than the file can hold")))
                }
                Ok(n) => Ok(Some(n)),
                Err(_) => fail(format!("`{text}` stands where a frame's number of atoms should")),
            };
        }
    }

    fn truncated(&self, what: impl Into<String>) -> IoError {
        IoError::truncated(&self.path, self.frame, what)
    }

    fn fail(&self, what: impl Into<String>) -> IoError {
        IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what)
    }
}

impl Source for XyzReader {
    fn count(&mut self) -> Result<usize> {
        let mut scan = XyzReader::open(&self.path, String::new())?;
        loop {
            match scan.skip() {
                Ok(true) => {}
                Ok(false) | Err(IoError::Truncated { .. }) => return Ok(scan.frame),
                Err(e) => return Err(e),
            }
        }
    }

    fn skip(&mut self) -> Result<bool> {
        let Some(n) = self.begin()? else { return Ok(false) };
        for i in 0..=n {
            if self.lines.next()?.is_none() {
                return Err(self.truncated(format!("{} of {n} atoms", i.saturating_sub(1))));
            }
        }
        self.frame += 1;
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(n) = self.begin()? else { return Ok(None) };
        let comment = match self.lines.next()? {
            Some(line) => line.to_owned(),
            None => return Err(self.truncated("only the number of atoms is there")),
        };
        let keys = parse_comment(&comment);
        let extended = keys.iter().any(|(k, _)| k == "Properties" || k == "Lattice");
        let columns = match keys.iter().find(|(k, _)| k == "Properties") {
            Some((_, text)) => parse_columns(text).map_err(|what| self.fail(what))?,
            None => PLAIN,
        };
        let mut labels = Vec::with_capacity(n);
        let mut positions = Vec::with_capacity(3 * n);
        let mut forces = columns.forces.map(|_| Vec::with_capacity(3 * n));
        let mut line = String::new();
        for i in 0..n {
            line.clear();
            match self.lines.next()? {
                None => return Err(self.truncated(format!("{i} of {n} atoms"))),
                Some(text) => line.push_str(text),
            }
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() < columns.count {
                // The last line of a file that was cut has too few columns too.
                let last = self.lines.next()?.is_none();
                let what = format!("atom {} has {} columns of {}", i + 1, fields.len(), columns.count);
                return Err(if last { self.truncated(what) } else { self.fail(what) });
            }
            let species = fields[columns.species];
            labels.push(species.to_owned());
            let numbers = |first: usize, scale: f64, quantity: &'static str, out: &mut Vec<f64>| {
                for a in 0..3 {
                    let text = fields[first + a];
                    let value: f64 = text
                        .parse()
                        .map_err(|_| self.fail(format!("{quantity} {} of atom {} is `{text}`, not a number", ['x', 'y', 'z'][a], i + 1)))?;
                    out.push(value * scale);
                }
                Ok(())
            };
            numbers(columns.positions, NM_PER_ANGSTROM, "coordinate", &mut positions)?;
            if let (Some(first), Some(out)) = (columns.forces, &mut forces) {
                numbers(first, FORCE, "force", out)?;
            }
        }
        let system = self.system(&labels)?;
        let mut frame = Frame::new(Arc::new(system), positions);
        frame.forces = forces;
        self.interpret(&mut frame, keys, extended)?;
        if !extended {
            frame.title = comment.trim().to_owned();
        }
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}

impl XyzReader {
    /// Elements from the species column: symbols or atomic numbers; or, where some are neither, atom names throughout.
    fn system(&self, labels: &[String]) -> Result<System> {
        let symbol = |label: &String| match label.parse::<u32>() {
            Ok(z) => elements::mass(z).map(|m| (z, m)),
            Err(_) => elements::element(label),
        };
        let named = labels.iter().any(|l| symbol(l).is_none());
        let mut system = System { name: self.name.clone(), ..System::particles("", labels.len(), 0.0) };
        for (i, label) in labels.iter().enumerate() {
            let found = if named { elements::from_name(label, "") } else { symbol(label).ok_or_else(String::new) };
            let (number, mass) = found.map_err(|what| IoError::Element {
                path: self.path.clone(),
                frame: self.frame,
                atom: format!("atom {}", i + 1),
                what: format!("has no element: {what}"),
                remedy: "Write a chemical symbol or an atomic number in the species column".into(),
            })?;
            system.types[i] = number;
            system.masses[i] = mass;
            system.names[i].atom = if named { label.clone() } else { elements::symbol(number).to_owned() };
        }
        Ok(system)
    }

    /// Cell, energy and the rest from the comment line of the frame.
    fn interpret(&self, frame: &mut Frame, keys: Vec<(String, String)>, extended: bool) -> Result<()> {
        let mut periodic = true;
        for (key, value) in keys {
            match key.as_str() {
                "Properties" => {}
                "Lattice" => {
                    let numbers: Option<Vec<f64>> = value.split_whitespace().map(|x| x.parse().ok()).collect();
                    let cell: Option<Cell> = numbers.and_then(|n| n.try_into().ok());
                    let Some(cell) = cell else { return Err(self.fail(format!("Lattice=\"{value}\" is not nine numbers"))) };
                    let cell = cell.map(|x| x * NM_PER_ANGSTROM);
                    frame::check_cell(&cell).map_err(|what| self.fail(format!("Lattice: {what}")))?;
                    frame.cell = Some(cell);
                }
                "pbc" if extended => {
                    let flags: Vec<bool> = value.split_whitespace().map(|f| matches!(f, "T" | "True" | "true" | "1")).collect();
                    periodic = flags.iter().any(|f| *f);
                    if periodic && !flags.iter().all(|f| *f) {
                        return Err(self.fail(format!("pbc=\"{value}\": cells are periodic in all three directions or in none here")));
                    }
                }
                "energy" if extended => match value.parse::<f64>() {
                    Ok(e) => frame.energy = Some(e * KJ_PER_EV),
                    Err(_) => return Err(self.fail(format!("energy `{value}` is not a number"))),
                },
                "time" if extended => frame.time = value.parse().ok(),
                "title" | "name" if extended => frame.title = value,
                _ => {
                    frame.properties.insert(key, value);
                }
            }
        }
        if !periodic {
            frame.cell = None;
        }
        Ok(())
    }
}

/// `key=value` pairs; values may stand in double or single quotes, brackets or braces. Words without `=` are left out.
fn parse_comment(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some(&(start, c)) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
            continue;
        }
        while chars.next_if(|&(_, c)| c != '=' && !c.is_whitespace()).is_some() {}
        let end = chars.peek().map_or(text.len(), |&(i, _)| i);
        let key = text[start..end].trim_matches(['"', '\'']);
        if chars.next_if(|&(_, c)| c == '=').is_none() {
            continue;
        }
        let close = match chars.peek() {
            Some(&(_, '"')) => Some('"'),
            Some(&(_, '\'')) => Some('\''),
            Some(&(_, '{')) => Some('}'),
            Some(&(_, '[')) => Some(']'),
            _ => None,
        };
        let value = match close {
            Some(close) => {
                chars.next();
                let mut value = String::new();
                while let Some((_, c)) = chars.next() {
                    match c {
                        '\\' => value.extend(chars.next().map(|(_, c)| c)),
                        c if c == close => break,
                        c => value.push(c),
                    }
                }
                value
            }
            None => {
                let start = chars.peek().map_or(text.len(), |&(i, _)| i);
                while chars.next_if(|&(_, c)| !c.is_whitespace()).is_some() {}
                text[start..chars.peek().map_or(text.len(), |&(i, _)| i)].to_owned()
            }
        };
        if !key.is_empty() {
            pairs.push((key.to_owned(), value));
        }
    }
    pairs
}

/// Reads `species:S:1:pos:R:3:forces:R:3`.
fn parse_columns(text: &str) -> std::result::Result<Columns, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (mut species, mut positions, mut forces, mut count) = (None, None, None, 0usize);
    if !parts.len().is_multiple_of(3) {
        return Err(format!("Properties={text} is not made of name:type:columns"));
    }
    for part in parts.chunks_exact(3) {
        let n = part[2]
            .parse::<usize>()
            .ok()
            .filter(|n| (1..=1000).contains(n))
            .ok_or_else(|| format!("Properties={text}: `{}` is not a number of columns", part[2]))?;
        let vector = |what: &str| if n == 3 { Ok(count) } else { Err(format!("Properties={text}: {what} have {n} columns, not 3")) };
        match part[0] {
            "species" | "Z" | "numbers" if species.is_none() => species = Some(count),
            "pos" => positions = Some(vector("positions")?),
            "forces" | "force" => forces = Some(vector("forces")?),
            _ => {}
        }
        count += n;
    }
    match (species, positions) {
        (Some(species), Some(positions)) => Ok(Columns { species, positions, forces, count }),
        _ => Err(format!("Properties={text} lacks `species:S:1` or `pos:R:3`")),
    }
}

/// Appends a frame in extended XYZ to `out`, which is plain XYZ to readers that know no better. Velocities have no agreed
/// column and are left out.
pub(crate) fn format_extended(frame: &Frame, out: &mut String) {
    let _ = writeln!(out, "{}", frame.len());
    if let Some(cell) = &frame.cell {
        let rows: Vec<_> = cell.iter().map(|x| format!("{}", round(x / NM_PER_ANGSTROM))).collect();
        let _ = write!(out, "Lattice=\"{}\" ", rows.join(" "));
    }
    out.push_str("Properties=species:S:1:pos:R:3");
    if frame.forces.is_some() {
        out.push_str(":forces:R:3");
    }
    if let Some(e) = frame.energy {
        let _ = write!(out, " energy={}", e / KJ_PER_EV);
    }
    if let Some(time) = frame.time {
        let _ = write!(out, " time={time}");
    }
    if !frame.title.is_empty() {
        let _ = write!(out, " title={}", quoted(&frame.title));
    }
    for (key, value) in &frame.properties {
        // Keys that mean something here would be read back as that.
        if !matches!(key.as_str(), "Properties" | "Lattice" | "pbc" | "energy" | "forces" | "time" | "title" | "name") {
            let key: String =
                key.chars().map(|c| if c.is_whitespace() || matches!(c, '=' | '"' | '\'' | '\\') { '_' } else { c }).collect();
            let _ = write!(out, " {key}={}", quoted(value));
        }
    }
    let _ = writeln!(out, " pbc=\"{0} {0} {0}\"", if frame.cell.is_some() { 'T' } else { 'F' });
    atoms(frame, frame.forces.as_deref(), out);
}

fn atoms(frame: &Frame, forces: Option<&[f64]>, out: &mut String) {
    for i in 0..frame.len() {
        let _ = write!(out, "{:<2}", elements::symbol(frame.system.types[i]));
        for a in 0..3 {
            let _ = write!(out, " {:15.8}", frame.positions[3 * i + a] / NM_PER_ANGSTROM);
        }
        if let Some(forces) = forces {
            for a in 0..3 {
                let _ = write!(out, " {:16.9}", forces[3 * i + a] / FORCE);
            }
        }
        out.push('\n');
    }
}

/// Removes the last bits that nm to Å brings (`29.999999999999996`).
fn round(x: f64) -> f64 {
    let y = (x * 1e10).round() / 1e10;
    if y == 0.0 { 0.0 } else { y }
}

/// A value in double quotes on one line.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_lines() {
        let pairs = parse_comment(r#"Lattice="1 0 0" energy=-1.5 name='a b' flag "odd key"=3 esc="a\"b" l=[1 2] e="#);
        let get = |k: &str| pairs.iter().find(|p| p.0 == k).map(|p| p.1.as_str());
        assert_eq!(get("Lattice"), Some("1 0 0"));
        assert_eq!(get("energy"), Some("-1.5"));
        assert_eq!(get("name"), Some("a b"));
        assert_eq!(get("esc"), Some("a\"b"));
        assert_eq!(get("l"), Some("1 2"));
        assert_eq!(get("e"), Some(""));
        assert_eq!(get("flag"), None);
        // Nothing that stands in a comment may panic.
        for text in ["=", "==", "a=\"", "ä=ö", "\\", "a='\\", "\" = ["] {
            parse_comment(text);
        }
    }

    #[test]
    fn columns() {
        let c = parse_columns("id:I:1:species:S:1:pos:R:3:forces:R:3").unwrap();
        assert_eq!((c.species, c.positions, c.forces, c.count), (1, 2, Some(5), 8));
        for bad in ["", "pos:R:3", "species:S:1", "species:S:1:pos:R:2", "species:S:1:pos:R", "species:S:1:pos:R:99999999999999999999"] {
            assert!(parse_columns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn extended_round_trip() {
        let mut system = System::particles("water", 3, 0.0);
        for (i, z) in [8, 1, 1].into_iter().enumerate() {
            system.types[i] = z;
            system.masses[i] = elements::mass(z).unwrap();
            system.names[i].atom = elements::symbol(z).into();
        }
        let mut frame = Frame::new(Arc::new(system), (0..9).map(|i| 0.1 * i as f64 - 0.123456789).collect());
        frame.forces = Some((0..9).map(|i| 100.0 * i as f64 - 1.0).collect());
        frame.energy = Some(-1234.5678);
        frame.cell = Some([3.0, 0.0, 0.0, 0.1, 2.0, 0.0, 0.2, 0.3, 4.0]);
        frame.time = Some(2.5);
        frame.title = "a \"quoted\" title".into();
        frame.properties.insert("note".into(), "x y".into());
        let mut text = String::new();
        format_extended(&frame, &mut text);
        format_extended(&frame, &mut text);
        let file = tempfile::Builder::new().suffix(".extxyz").tempfile().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let mut reader = XyzReader::open(file.path(), "water".into()).unwrap();
        assert_eq!(reader.count().unwrap(), 2);
        assert!(reader.skip().unwrap());
        let read = reader.next().unwrap().unwrap();
        assert!(reader.next().unwrap().is_none());
        let close = |a: &[f64], b: &[f64], tolerance: f64| a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < tolerance, "{a} {b}"));
        close(&read.positions, &frame.positions, 1e-9);
        close(read.forces.as_ref().unwrap(), frame.forces.as_ref().unwrap(), 1e-6);
        close(&[read.energy.unwrap()], &[frame.energy.unwrap()], 1e-9);
        close(&read.cell.unwrap(), &frame.cell.unwrap(), 1e-12);
        assert_eq!((read.system, read.title, read.properties, read.time), (frame.system, frame.title, frame.properties, frame.time));
    }
}
