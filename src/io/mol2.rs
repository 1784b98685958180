//! MOL2 files of Tripos: molecules with bonds and partial charges. Coordinates in Å in the file.

use super::Source;
use super::elements;
use super::error::{IoError, Result};
use super::frame::{Frame, cell_from_lengths_angles};
use super::lines::Lines;
use super::warnings::warn;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{AtomName, System};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Streams the molecules of one file.
pub(crate) struct Mol2Reader {
    path: PathBuf,
    lines: Lines,
    name: String,
    frame: usize,
    /// The line that begins the next molecule was read already.
    at_molecule: bool,
}

const MOLECULE: &str = "@<TRIPOS>MOLECULE";

impl Mol2Reader {
    pub(crate) fn open(path: &Path, name: String) -> Result<Self> {
        Ok(Mol2Reader { path: path.to_owned(), lines: Lines::open(path)?, name, frame: 0, at_molecule: false })
    }

    fn fail(&self, what: impl Into<String>) -> IoError {
        IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what)
    }

    fn line(&mut self, missing: &str) -> Result<String> {
        match self.lines.next()? {
            Some(line) => Ok(line.trim().to_owned()),
            None => Err(IoError::truncated(&self.path, self.frame, format!("{missing} is missing"))),
        }
    }

    /// Goes to the line that begins a molecule; false at the end of the file.
    fn find(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.at_molecule) {
            return Ok(true);
        }
        while let Some(line) = self.lines.next()? {
            if line.trim() == MOLECULE {
                return Ok(true);
            }
            if !line.trim().is_empty() && !line.starts_with('#') && self.frame == 0 {
                return Err(self.fail(format!("a MOL2 file begins with {MOLECULE}")));
            }
        }
        Ok(false)
    }
}

impl Source for Mol2Reader {
    fn count(&mut self) -> Result<usize> {
        let mut scan = Mol2Reader::open(&self.path, String::new())?;
        while scan.skip()? {}
        Ok(scan.frame)
    }

    fn skip(&mut self) -> Result<bool> {
        let there = self.find()?;
        self.frame += usize::from(there);
        Ok(there)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        if !self.find()? {
            return if self.frame == 0 { Err(super::no_frame(&self.path)) } else { Ok(None) };
        }
        let title = self.line("the name")?;
        let counts = self.line("the counts line")?;
        let mut counts_in = counts.split_whitespace().map(str::parse::<usize>);
        let n = match counts_in.next() {
            Some(Ok(n)) if n > 0 => n,
            _ => return Err(self.fail(format!("`{counts}` does not begin with a number of atoms"))),
        };
        let m = counts_in.next().and_then(|m| m.ok()).unwrap_or(0);
        let mut system = System { name: if title.is_empty() { self.name.clone() } else { title.clone() }, ..System::particles("", 0, 0.0) };
        let (mut positions, mut ids, mut charge) = (Vec::new(), HashMap::new(), 0.0);
        let (mut bonds, mut cell) = (0, None);
        while let Some(line) = self.lines.next()? {
            match line.trim() {
                MOLECULE => {
                    self.at_molecule = true;
                    break;
                }
                "@<TRIPOS>ATOM" => {
                    for i in 0..n {
                        let line = self.line("an atom")?;
                        let f: Vec<&str> = line.split_whitespace().collect();
                        if f.len() < 6 {
                            return Err(self.fail(format!("atom {} has {} columns of at least 6", i + 1, f.len())));
                        }
                        for (axis, text) in ['x', 'y', 'z'].into_iter().zip(&f[2..5]) {
                            let value: f64 = text
                                .parse()
                                .map_err(|_| self.fail(format!("coordinate {axis} of atom {} is `{text}`, not a number", i + 1)))?;
                            positions.push(value * NM_PER_ANGSTROM);
                        }
                        // `C.ar`, `N.am`, `Cl`; the name helps nowhere, because `CA` may be anything.
                        let symbol = f[5].split('.').next().unwrap_or_default();
                        let Some((number, mass)) = elements::element(symbol) else {
                            return Err(IoError::Element {
                                path: self.path.clone(),
                                frame: self.frame,
                                atom: format!("atom {} ({})", i + 1, f[1]),
                                what: format!("is of type `{}`, which begins with no element", f[5]),
                                remedy: "Write a SYBYL type such as `C.3` (not a force field's type) in its sixth column".into(),
                            });
                        };
                        system.types.push(number);
                        system.masses.push(mass);
                        let residue_id = f.get(6).and_then(|r| r.parse().ok()).unwrap_or(0);
                        let residue = f.get(7).map(|r| (*r).to_owned()).unwrap_or_default();
                        system.names.push(AtomName { atom: f[1].to_owned(), residue, residue_id, chain: String::new() });
                        charge += f.get(8).and_then(|c| c.parse::<f64>().ok()).unwrap_or(0.0);
                        if ids.insert(f[0].to_owned(), i as u32).is_some() {
                            return Err(self.fail(format!("two atoms have number {}", f[0])));
                        }
                    }
                }
                "@<TRIPOS>BOND" => {
                    for _ in 0..m {
                        let line = self.line("a bond")?;
                        let f: Vec<&str> = line.split_whitespace().collect();
                        match (f.get(1).and_then(|i| ids.get(*i)), f.get(2).and_then(|j| ids.get(*j))) {
                            (Some(&i), Some(&j)) if i != j => system.bonds.push((i.min(j), i.max(j))),
                            _ => return Err(self.fail(format!("`{line}` is no bond between two of the {n} atoms"))),
                        }
                        bonds += 1;
                    }
                }
                "@<TRIPOS>CRYSIN" => {
                    let line = self.line("the cell")?;
                    let numbers: Vec<f64> = line.split_whitespace().take(6).filter_map(|x| x.parse().ok()).collect();
                    let [a, b, c, alpha, beta, gamma] = numbers[..] else { return Err(self.fail(format!("`{line}` is no cell"))) };
                    let found = cell_from_lengths_angles([a, b, c].map(|l| l * NM_PER_ANGSTROM), [alpha, beta, gamma]);
                    cell = Some(found.map_err(|what| self.fail(what))?);
                }
                _ => {}
            }
        }
        if system.types.is_empty() || bonds < m {
            let what = format!("{} of {n} atoms and {bonds} of {m} bonds", system.types.len());
            return Err(if self.at_molecule { self.fail(what) } else { IoError::truncated(&self.path, self.frame, what) });
        }
        system.bonds.sort_unstable();
        system.bonds.dedup();
        if charge.is_finite() && (charge - charge.round()).abs() < 0.05 && charge.abs() < 1e6 {
            system.charge = charge.round() as i32;
        } else {
            warn(&format!(
                "{}: partial charges add up to {charge}, which is no whole number; the total charge is taken as 0",
                self.path.display()
            ));
        }
        let mut frame = Frame::new(Arc::new(system), positions);
        frame.title = title;
        frame.cell = cell;
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}
