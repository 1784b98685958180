//! SDF and MOL files (V2000): molecules with bonds, charges and data. Coordinates in Å in the file.

use super::Source;
use super::elements;
use super::error::{IoError, Result};
use super::frame::Frame;
use super::lines::Lines;
use super::sdf_write::GraphParts;
use super::warnings::warn;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{AtomName, System};
use scorefield_models::molecule::{Atom, Bond, HEAVIEST};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Streams the molecules of one file.
pub(crate) struct SdfReader {
    path: PathBuf,
    lines: Lines,
    name: String,
    frame: usize,
}

impl SdfReader {
    pub(crate) fn open(path: &Path, name: String) -> Result<Self> {
        Ok(SdfReader { path: path.to_owned(), lines: Lines::open(path)?, name, frame: 0 })
    }

    fn fail(&self, what: impl Into<String>) -> IoError {
        IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what)
    }

    fn line(&mut self, missing: &str) -> Result<String> {
        match self.lines.next()? {
            Some(line) => Ok(line.to_owned()),
            None => Err(IoError::truncated(&self.path, self.frame, format!("{missing} is missing"))),
        }
    }

    /// The four header lines: title and counts line; `None` at the end of the file.
    fn begin(&mut self) -> Result<Option<(String, String)>> {
        let Some(title) = self.lines.next()?.map(|l| l.trim().to_owned()) else { return Ok(None) };
        let Some(program) = self.lines.next()?.map(str::to_owned) else {
            // A blank line after the last `$$$$` is no molecule.
            return if title.is_empty() { Ok(None) } else { Err(IoError::truncated(&self.path, self.frame, "only the title is there")) };
        };
        let Some(comment) = self.lines.next()?.map(str::to_owned) else {
            let blank = title.is_empty() && program.trim().is_empty();
            return if blank { Ok(None) } else { Err(IoError::truncated(&self.path, self.frame, "the header is not whole")) };
        };
        match self.lines.next()? {
            Some(counts) => Ok(Some((title, counts.to_owned()))),
            None if title.is_empty() && program.trim().is_empty() && comment.trim().is_empty() => Ok(None),
            None => Err(IoError::truncated(&self.path, self.frame, "the counts line is missing")),
        }
    }
}

/// A number in columns `from..to` (from 0).
fn number<T: std::str::FromStr>(line: &str, from: usize, to: usize) -> Option<T> {
    line.get(from..to.min(line.len()))?.trim().parse().ok()
}

impl Source for SdfReader {
    fn count(&mut self) -> Result<usize> {
        let mut scan = SdfReader::open(&self.path, String::new())?;
        let mut count = 0;
        while scan.skip()? {
            count += 1;
        }
        Ok(count)
    }

    fn skip(&mut self) -> Result<bool> {
        let mut there = false;
        while let Some(line) = self.lines.next()? {
            if line.starts_with("$$$$") {
                self.frame += 1;
                return Ok(true);
            }
            there |= !line.trim().is_empty();
        }
        // The last molecule of a file, or a MOL file, may lack the line of dollars.
        self.frame += usize::from(there);
        Ok(there)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some((title, counts)) = self.begin()? else { return Ok(None) };
        if counts.contains("V3000") {
            return Err(IoError::format(&self.path, format!("molecule {} is in V3000", self.frame), "Convert the file to V2000"));
        }
        let (Some(n), Some(m)) = (number::<usize>(&counts, 0, 3), number::<usize>(&counts, 3, 6)) else {
            return Err(self.fail(format!("`{counts}` is no counts line")));
        };
        if n == 0 {
            return Err(self.fail("a molecule of 0 atoms"));
        }
        let name = if title.is_empty() { self.name.clone() } else { title.clone() };
        let mut system = System { name, ..System::particles("", n, 0.0) };
        let mut positions = Vec::with_capacity(3 * n);
        let mut charge = 0;
        let mut parts = GraphParts { atoms: Vec::with_capacity(n), bonds: Vec::with_capacity(m), whole: true };
        for i in 0..n {
            let line = self.line("an atom")?;
            for (a, axis) in ['x', 'y', 'z'].into_iter().enumerate() {
                let value: Option<f64> = number(&line, 10 * a, 10 * a + 10);
                positions.push(
                    value.ok_or_else(|| self.fail(format!("coordinate {axis} of atom {} is not a number", i + 1)))? * NM_PER_ANGSTROM,
                );
            }
            let symbol = line.get(31..line.len().min(34)).unwrap_or_default().trim();
            let Some((number, mass)) = elements::element(symbol) else {
                return Err(IoError::Element {
                    path: self.path.clone(),
                    frame: self.frame,
                    atom: format!("atom {}", i + 1),
                    what: format!("is `{symbol}`, which is no element"),
                    remedy: "Write a chemical symbol in columns 32-34".into(),
                });
            };
            system.types[i] = number;
            system.masses[i] = mass;
            system.names[i] = AtomName { atom: elements::symbol(number).to_owned(), ..AtomName::default() };
            // 1 to 7 stand for charges 3 to -3, 4 for a radical.
            let code = self::number::<i8>(&line, 36, 39).unwrap_or(0);
            let own = if matches!(code, 1..=3 | 5..=7) { 4 - code } else { 0 };
            charge += i32::from(own);
            parts.whole &= number <= u32::from(HEAVIEST);
            parts.atoms.push(Atom { charge: own, radicals: u8::from(code == 4), ..Atom::new(number.min(u32::from(HEAVIEST)) as u8) });
        }
        for _ in 0..m {
            let line = self.line("a bond")?;
            let pair = number::<u32>(&line, 0, 3).zip(number::<u32>(&line, 3, 6));
            match pair {
                Some((i, j)) if i != j && (1..=n as u32).contains(&i) && (1..=n as u32).contains(&j) => {
                    system.bonds.push((i.min(j) - 1, i.max(j) - 1));
                    let order = number::<u8>(&line, 6, 9).filter(|o| (1..=3).contains(o));
                    parts.whole &= order.is_some();
                    parts.bonds.push(Bond::new(i - 1, j - 1, order.unwrap_or(1)));
                }
                _ => return Err(self.fail(format!("`{line}` is no bond between two of the {n} atoms"))),
            }
        }
        system.bonds.sort_unstable();
        system.bonds.dedup();
        // Charges and radicals of the property block replace those in the atoms' lines.
        let mut listed = None;
        loop {
            let line = self.line("`M  END`")?;
            if line.starts_with("M  END") {
                break;
            }
            let Some((name, list)) = ["CHG", "RAD", "ISO"].iter().find_map(|k| Some((*k, line.strip_prefix("M  ")?.strip_prefix(k)?)))
            else {
                continue;
            };
            let numbers: Option<Vec<i32>> = list.split_whitespace().skip(1).map(|x| x.parse().ok()).collect();
            let Some(numbers) = numbers.filter(|n| n.len() % 2 == 0 && n.iter().all(|c| c.abs() < 1000)) else {
                return Err(self.fail(format!("`{line}` is no list of atoms and numbers")));
            };
            if name != "ISO" && listed.is_none() {
                parts.atoms.iter_mut().for_each(|a| (a.charge, a.radicals) = (0, 0));
                listed = Some(0);
            }
            for pair in numbers.chunks_exact(2) {
                let atom = usize::try_from(pair[0]).ok().and_then(|i| parts.atoms.get_mut(i.wrapping_sub(1)));
                let (Some(atom), Ok(value)) = (atom, i8::try_from(pair[1]).or(if name == "ISO" { Ok(0) } else { Err(()) })) else {
                    return Err(self.fail(format!("`{line}` names atom {} of {n} with {}", pair[0], pair[1])));
                };
                match name {
                    "CHG" => {
                        atom.charge = value;
                        listed = listed.map(|sum: i32| sum + i32::from(value));
                    }
                    // Singlet, doublet, triplet.
                    "RAD" => atom.radicals = [0, 2, 1, 2].get(value as usize).copied().unwrap_or(0),
                    _ => atom.isotope = u16::try_from(pair[1]).unwrap_or(0),
                }
            }
        }
        system.charge = listed.unwrap_or(charge);
        let mut frame = Frame::new(Arc::new(system), positions);
        frame.graph = parts.graph().map(Arc::new);
        frame.title = title;
        let mut key: Option<String> = None;
        let mut closed = false;
        while let Some(line) = self.lines.next()? {
            if line.starts_with("$$$$") {
                closed = true;
                break;
            }
            if line.starts_with('>') {
                key = line.split_once('<').and_then(|(_, k)| k.rsplit_once('>')).map(|(k, _)| k.to_owned());
            } else if line.trim().is_empty() {
                key = None;
            } else if let Some(key) = &key {
                let value = frame.properties.entry(key.clone()).or_default();
                if !value.is_empty() {
                    value.push('\n');
                }
                value.push_str(line.trim_end());
            }
        }
        // A MOL file is one molecule without a line of dollars.
        if !closed
            && (self.frame > 0 || !frame.properties.is_empty() || self.path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("mol")))
        {
            warn(&format!("{}: molecule {} ends without `$$$$`; the file may be cut", self.path.display(), self.frame));
        }
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}
