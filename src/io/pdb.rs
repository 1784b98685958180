//! PDB files: columns, models, CONECT. Coordinates in Å in the file.

use super::Source;
use super::elements;
use super::error::{IoError, Result};
use super::frame::{Frame, cell_from_lengths_angles, cell_lengths_angles};
use super::lines::Lines;
use super::topology::{self, AtomRecord, Bonds};
use super::warnings::warn;
use scorefield_integrators::state::Cell;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{AtomName, System};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Streams the models of one file.
pub(crate) struct PdbReader {
    path: PathBuf,
    lines: Lines,
    name: String,
    frames: usize,
    /// Pairs of atom serial numbers from CONECT records, wherever they stand.
    connect: Vec<(String, String)>,
    cell: Option<Cell>,
    title: String,
    frame: usize,
    first: Option<Arc<System>>,
    /// What says that the file was cut, if anything does.
    cut: Option<String>,
}

/// Columns `from..to`, counted from 1 as the format's description does, without blanks; empty where the line is short.
fn columns(line: &str, from: usize, to: usize) -> &str {
    let end = to.min(line.len());
    line.get(from - 1..end).unwrap_or_default().trim()
}

/// Numbers with more digits than fit are continued with letters (hybrid-36).
fn hybrid36(text: &str, width: u32) -> Option<i64> {
    let first = text.chars().next()?;
    if !first.is_ascii_alphabetic() {
        return text.parse().ok();
    }
    let alike = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase() == first.is_ascii_uppercase();
    if text.len() != width as usize || !text.chars().all(alike) {
        return None;
    }
    let value = i64::from_str_radix(text, 36).ok()?;
    let offset = if first.is_ascii_uppercase() { -10 * 36i64.pow(width - 1) } else { 16 * 36i64.pow(width - 1) };
    Some(value + offset + 10i64.pow(width))
}

impl PdbReader {
    pub(crate) fn open(path: &Path, name: String) -> Result<Self> {
        let mut reader = PdbReader {
            path: path.to_owned(),
            lines: Lines::open(path)?,
            name,
            frames: 0,
            connect: Vec::new(),
            cell: None,
            title: String::new(),
            frame: 0,
            first: None,
            cut: None,
        };
        // CONECT records come last, so that bonds of the first model need the whole file.
        let mut scan = Lines::open(path)?;
        let mut atoms = false;
        let mut last = String::new();
        while let Some(line) = scan.next()? {
            if !line.trim().is_empty() {
                last.clear();
                last.push_str(line);
            }
            match record(line) {
                "ATOM" | "HETATM" => atoms = true,
                "ENDMDL" | "END" => reader.frames += usize::from(std::mem::take(&mut atoms)),
                "CONECT" if line.is_ascii() => {
                    let i = columns(line, 7, 11);
                    for k in 0..4 {
                        let j = columns(line, 12 + 5 * k, 16 + 5 * k);
                        if !i.is_empty() && !j.is_empty() {
                            reader.connect.push((i.to_owned(), j.to_owned()));
                        }
                    }
                }
                _ => {}
            }
        }
        reader.frames += usize::from(atoms);
        if !scan.ended() && is_part(&last) {
            reader.cut = Some(format!("its last line `{}` is no whole record", last.trim_end()));
        } else if record(&last) != "END" {
            warn(&format!("{}: the file ends without END; it may be cut", path.display()));
        }
        if reader.frames == 0 {
            return Err(IoError::content(path, None, None, "there are no ATOM or HETATM records in it"));
        }
        Ok(reader)
    }

    fn parse_atom(&self, line: &str) -> std::result::Result<AtomRecord, String> {
        if !line.is_ascii() {
            return Err("an atom record has characters that are not ASCII, which shifts its columns".into());
        }
        if line.len() < 54 {
            return Err(format!("an atom record has {} columns of at least 54", line.len()));
        }
        let number = |from: usize, axis: char| {
            let text = columns(line, from, from + 7);
            text.parse::<f64>().map(|x| x * NM_PER_ANGSTROM).map_err(|_| format!("coordinate {axis} is `{text}`, not a number"))
        };
        let resid = columns(line, 23, 26);
        let charge = columns(line, 79, 80);
        // `2+` by the standard, `+2` in practice.
        let size: i32 = charge.trim_matches(['+', '-']).parse().unwrap_or(0);
        Ok(AtomRecord {
            name: AtomName {
                atom: columns(line, 13, 16).to_owned(),
                // Column 21 belongs to four-letter residue names of many programs.
                residue: columns(line, 18, 21).to_owned(),
                residue_id: if resid.is_empty() {
                    0
                } else {
                    hybrid36(resid, 4).ok_or_else(|| format!("residue number `{resid}` is no number"))?
                },
                chain: columns(line, 22, 22).to_owned(),
            },
            element: columns(line, 77, 78).to_owned(),
            altloc: columns(line, 17, 17).to_owned(),
            insertion: columns(line, 27, 27).to_owned(),
            charge: if charge.contains('-') { -size } else { size },
            last_of_chain: false,
            position: [number(31, 'x')?, number(39, 'y')?, number(47, 'z')?],
            velocity: None,
        })
    }

    fn parse_cell(line: &str) -> std::result::Result<Option<Cell>, String> {
        let number = |from: usize, to: usize| columns(line, from, to).parse::<f64>().ok();
        let numbers = [number(7, 15), number(16, 24), number(25, 33), number(34, 40), number(41, 47), number(48, 54)];
        let [Some(a), Some(b), Some(c), Some(alpha), Some(beta), Some(gamma)] = numbers else {
            return Err("CRYST1 does not hold six numbers in its columns".into());
        };
        // A cube of 1 Å, or of nothing, is how structures without a crystal fill this record.
        if [a, b, c] == [1.0; 3] || [a, b, c] == [0.0; 3] {
            return Ok(None);
        }
        cell_from_lengths_angles([a, b, c].map(|l| l * NM_PER_ANGSTROM), [alpha, beta, gamma]).map(Some)
    }

    /// Reads one model; `None` at the end of the file.
    fn model(&mut self) -> Result<Option<(Vec<AtomRecord>, Vec<String>)>> {
        let mut records: Vec<AtomRecord> = Vec::new();
        let mut serials = Vec::new();
        let mut in_model = false;
        while let Some(line) = self.lines.next()? {
            let line = line.to_owned();
            let fail = |what: String| IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what);
            match record(&line) {
                "ATOM" | "HETATM" => match self.parse_atom(&line) {
                    Ok(atom) => {
                        records.push(atom);
                        serials.push(columns(&line, 7, 11).to_owned());
                    }
                    Err(what) => {
                        let error = fail(what);
                        // A file that was cut ends in half a record.
                        if line.len() < 54 && self.lines.next()?.is_none() {
                            return Err(IoError::truncated(&self.path, self.frame, format!("atom {} is not whole", records.len() + 1)));
                        }
                        return Err(error);
                    }
                },
                "TER" => {
                    if let Some(last) = records.last_mut() {
                        last.last_of_chain = true;
                    }
                }
                "CRYST1" => self.cell = Self::parse_cell(&line).map_err(fail)?,
                "TITLE" => {
                    let text = line.get(10..).unwrap_or_default().trim();
                    self.title = if self.title.is_empty() { text.to_owned() } else { format!("{} {text}", self.title) };
                }
                "MODEL" if records.is_empty() => in_model = true,
                "MODEL" => return Err(fail("MODEL comes before the ENDMDL of the model before".into())),
                "ENDMDL" | "END" if !records.is_empty() => return Ok(Some((records, serials))),
                _ => {}
            }
        }
        let truncated = |what: String| Err(IoError::truncated(&self.path, self.frame, what));
        match &self.cut {
            Some(what) => truncated(what.clone()),
            None if in_model => truncated("MODEL without ENDMDL".into()),
            None if records.is_empty() => Ok(None),
            None if self.frame > 0 => truncated(format!("{} atoms, and no END or ENDMDL as after the frames before", records.len())),
            None => Ok(Some((records, serials))),
        }
    }

    /// CONECT pairs as indices into the records of a model.
    fn pairs(&self, serials: &[String]) -> Vec<(usize, usize)> {
        let mut index: HashMap<&str, Option<usize>> = HashMap::with_capacity(serials.len());
        for (i, serial) in serials.iter().enumerate() {
            index.entry(serial).and_modify(|known| *known = None).or_insert(Some(i));
        }
        let mut lost = 0;
        let pairs = self
            .connect
            .iter()
            .filter_map(|(i, j)| {
                let pair = index.get(i.as_str()).copied().flatten().zip(index.get(j.as_str()).copied().flatten());
                lost += usize::from(pair.is_none());
                pair
            })
            .collect();
        if lost > 0 {
            warn(&format!("{}: {lost} CONECT bonds point at atoms that are not there or not unique", self.path.display()));
        }
        pairs
    }
}

/// Name of a line's record.
fn record(line: &str) -> &str {
    let name = line.get(..6).unwrap_or(line).trim_end();
    // `TER` and `END` often come without the blanks that should follow.
    if name.starts_with("END") && name != "ENDMDL" { "END" } else { name }
}

/// True where a last line without line end is half a record.
fn is_part(line: &str) -> bool {
    match record(line) {
        "ATOM" | "HETATM" => line.trim_end().len() < 54,
        // The serial numbers have five columns each.
        "CONECT" => line.len() < 16 || !(line.len() - 6).is_multiple_of(5),
        name => !matches!(name, "END" | "ENDMDL" | "TER" | "MASTER" | "REMARK" | ""),
    }
}

/// A file of all `frames` as models. chemfiles writes model numbers where OpenMM does not look for them.
///
/// # Errors
/// Where atoms or coordinates do not fit the columns of the format.
pub(crate) fn format_pdb(path: &Path, frames: &[Frame]) -> Result<String> {
    let mut out = String::new();
    let title: String = frames[0].title.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).take(70).collect();
    if !title.trim().is_empty() {
        let _ = writeln!(out, "TITLE     {title}");
    }
    if let Some(cell) = &frames[0].cell {
        let ([a, b, c], [alpha, beta, gamma]) = cell_lengths_angles(cell);
        let [a, b, c] = [a, b, c].map(|l| l / NM_PER_ANGSTROM);
        let _ = writeln!(out, "CRYST1{a:9.3}{b:9.3}{c:9.3}{alpha:7.2}{beta:7.2}{gamma:7.2} P 1           1");
    }
    for (index, frame) in frames.iter().enumerate() {
        let system = &frame.system;
        let too_large = |what: &str| {
            IoError::shape(path, format!("frame {index}: {what} does not fit the columns of PDB; write mmCIF or extended XYZ"))
        };
        // Chain ends have numbers too.
        if frame.len() > 90_000 {
            return Err(too_large("the number of atoms"));
        }
        if frames.len() > 1 {
            let _ = writeln!(out, "MODEL     {:>4}", (index + 1) % 10_000);
        }
        let mut serial = 0;
        let mut serials = Vec::with_capacity(frame.len());
        for (i, name) in system.names.iter().enumerate() {
            serial += 1;
            serials.push(serial);
            let x: [f64; 3] = std::array::from_fn(|a| frame.positions[3 * i + a] / NM_PER_ANGSTROM);
            if x.iter().any(|x| *x <= -999.9995 || *x >= 9999.9995) {
                return Err(too_large(&format!("a coordinate of {}", system.describe_atom(i))));
            }
            let ascii = |text: &str, n: usize| text.chars().filter(char::is_ascii_graphic).take(n).collect::<String>();
            let symbol = elements::symbol(system.types[i]);
            let atom = ascii(if name.atom.is_empty() { symbol } else { &name.atom }, 4);
            // A symbol of one letter stands in column 14.
            let atom = if atom.len() < 4 && symbol.len() == 1 { format!(" {atom:<3}") } else { format!("{atom:<4}") };
            let residue = ascii(if name.residue.is_empty() { "UNK" } else { &name.residue }, 4);
            let residue = if residue.len() < 4 { format!("{residue:>3} ") } else { residue };
            let chain = if name.chain.is_empty() { " ".into() } else { ascii(&name.chain, 1) };
            let group = if topology::is_amino_acid(&name.residue) { "ATOM  " } else { "HETATM" };
            let number = name.residue_id.rem_euclid(10_000);
            let upper = symbol.to_ascii_uppercase();
            let _ = writeln!(
                out,
                "{group}{serial:>5} {atom} {residue}{chain:1}{number:>4}    {:8.3}{:8.3}{:8.3}  1.00  0.00          {upper:>2}  ",
                x[0], x[1], x[2]
            );
            let chain_ends = system.names.get(i + 1).is_some_and(|next| next.chain != name.chain);
            if chain_ends {
                serial += 1;
                let _ = writeln!(out, "TER   {serial:>5}      {residue}{chain:1}{number:>4}");
            }
        }
        if frames.len() > 1 {
            out.push_str("ENDMDL\n");
        }
        // Bonds within amino acids are known to every reader.
        if index + 1 == frames.len() {
            let known = |i: u32| {
                topology::is_amino_acid(&system.names[i as usize].residue)
                    && !matches!(system.names[i as usize].residue.as_str(), "ACE" | "NME")
            };
            for &(i, j) in system.bonds.iter().filter(|(i, j)| !known(*i) || !known(*j)) {
                let _ = writeln!(out, "CONECT{:>5}{:>5}", serials[i as usize], serials[j as usize]);
            }
        }
    }
    out.push_str("END\n");
    Ok(out)
}

impl Source for PdbReader {
    fn count(&mut self) -> Result<usize> {
        Ok(self.frames)
    }

    fn skip(&mut self) -> Result<bool> {
        let there = self.model()?.is_some();
        self.frame += usize::from(there);
        Ok(there)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some((records, serials)) = self.model()? else { return Ok(None) };
        let pairs;
        let bonds = match &self.first {
            Some(first) => Bonds::Same(first),
            None => {
                pairs = self.pairs(&serials);
                Bonds::Completed(&pairs)
            }
        };
        let mut frame = topology::frame(&self.path, self.frame, &self.name, records, bonds, "Write its element into columns 77-78")?;
        self.first.get_or_insert_with(|| frame.system.clone());
        frame.cell = self.cell;
        frame.title = self.title.clone();
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}
