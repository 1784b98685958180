//! mmCIF files of the Protein Data Bank: the `_atom_site` loop and the cell. Coordinates in Å in the file.

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
pub(crate) struct MmcifReader {
    path: PathBuf,
    lines: Lines,
    name: String,
    title: String,
    cell: Option<Cell>,
    /// Column of each item of the loop.
    columns: HashMap<String, usize>,
    width: usize,
    /// First atom of the next model, read already.
    ahead: Option<Vec<String>>,
    /// Values of an atom that goes on in the next line.
    part: Vec<String>,
    frame: usize,
    first: Option<Arc<System>>,
}

/// Values of one line: words, or text in quotes that end before a blank.
fn split(line: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let end;
        match first {
            '#' => break,
            '\'' | '"' => {
                let body = &rest[1..];
                let close = body.char_indices().find(|&(i, c)| c == first && body[i + 1..].chars().next().is_none_or(char::is_whitespace));
                let close = close.map_or(body.len(), |(i, _)| i);
                values.push(body[..close].to_owned());
                end = (close + 2).min(rest.len());
            }
            _ => {
                end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                values.push(rest[..end].to_owned());
            }
        }
        rest = rest[end..].trim_start();
    }
    values
}

/// `1.23(4)` without its uncertainty.
fn number(text: &str) -> Option<f64> {
    text.split('(').next()?.parse().ok()
}

impl MmcifReader {
    pub(crate) fn open(path: &Path, name: String) -> Result<Self> {
        let mut reader = MmcifReader {
            path: path.to_owned(),
            lines: Lines::open(path)?,
            name,
            title: String::new(),
            cell: None,
            columns: HashMap::new(),
            width: 0,
            ahead: None,
            part: Vec::new(),
            frame: 0,
            first: None,
        };
        reader.begin()?;
        Ok(reader)
    }

    fn fail(&self, what: impl Into<String>) -> IoError {
        IoError::content(&self.path, Some(self.frame), Some(self.lines.number()), what)
    }

    /// Reads up to the first atom.
    fn begin(&mut self) -> Result<()> {
        // The cell may stand behind the atoms.
        let mut scan = Lines::open(&self.path)?;
        let mut cell = [None; 6];
        let names = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"];
        let mut closed = false;
        while let Some(line) = scan.next()? {
            if !line.trim().is_empty() {
                closed = line.starts_with('#');
            }
            if let Some((key, value)) = line.strip_prefix("_cell").and_then(|l| l.get(1..)).and_then(|l| l.split_once(char::is_whitespace))
                && let Some(k) = names.iter().position(|n| *n == key)
            {
                cell[k] = number(value.trim());
            }
        }
        if !closed {
            warn(&format!("{}: the file ends without `#`; it may be cut", self.path.display()));
        }
        if let [Some(a), Some(b), Some(c), Some(alpha), Some(beta), Some(gamma)] = cell
            && [a, b, c] != [1.0; 3]
            && [a, b, c] != [0.0; 3]
        {
            let found = cell_from_lengths_angles([a, b, c].map(|l| l * NM_PER_ANGSTROM), [alpha, beta, gamma]);
            self.cell = Some(found.map_err(|what| IoError::content(&self.path, None, None, what))?);
        }
        let mut text = false;
        while let Some(line) = self.lines.next()? {
            // Text over several lines stands between semicolons.
            if line.starts_with(';') {
                text = !text;
                continue;
            }
            if text {
                continue;
            }
            if let Some(item) = line.trim().strip_prefix("_atom_site.") {
                let item = item.split_whitespace().next().unwrap_or_default().to_owned();
                self.columns.insert(item, self.width);
                self.width += 1;
                continue;
            }
            if let Some(title) = line.strip_prefix("_struct.title") {
                self.title = split(title).join(" ");
            }
            if self.width > 0 && !line.trim().is_empty() {
                let values = split(line);
                self.ahead = self.row(values)?;
                break;
            }
            if line.starts_with("_atom_site_fract") {
                return Err(IoError::format(
                    &self.path,
                    "it is a CIF of a crystal in fractional coordinates",
                    "Convert it to extended XYZ or PDB",
                ));
            }
        }
        for needed in ["type_symbol", "Cartn_x", "Cartn_y", "Cartn_z"] {
            if !self.columns.contains_key(needed) {
                return Err(IoError::content(&self.path, None, None, format!("it has no `_atom_site.{needed}`")));
            }
        }
        Ok(())
    }

    /// One atom's values, from one line or several; `None` where the loop ends.
    fn row(&mut self, mut values: Vec<String>) -> Result<Option<Vec<String>>> {
        loop {
            // Blank lines and comments may stand between models.
            let ends = values.first().is_some_and(|v| v.starts_with('_') || v.starts_with("loop_") || v.starts_with("data_"));
            if ends && self.part.is_empty() {
                return Ok(None);
            }
            if ends {
                return Err(self.fail(format!("an atom has {} values of {}", self.part.len(), self.width)));
            }
            self.part.append(&mut values);
            if self.part.len() == self.width && self.width > 0 {
                if !self.lines.ended() {
                    let what = "the last atom's line has no line end, so that its last value may not be whole";
                    return Err(IoError::truncated(&self.path, self.frame, what));
                }
                return Ok(Some(std::mem::take(&mut self.part)));
            }
            if self.part.len() > self.width {
                return Err(self.fail(format!("an atom has {} values of {}", self.part.len(), self.width)));
            }
            let Some(line) = self.lines.next()? else {
                if self.part.is_empty() {
                    return Ok(None);
                }
                return Err(IoError::truncated(
                    &self.path,
                    self.frame,
                    format!("the last atom has {} values of {}", self.part.len(), self.width),
                ));
            };
            values = split(line);
        }
    }

    fn next_row(&mut self) -> Result<Option<Vec<String>>> {
        match self.lines.next()? {
            None => Ok(None),
            Some(line) => {
                let values = split(line);
                self.row(values)
            }
        }
    }

    /// All atoms of one model.
    fn model(&mut self) -> Result<Option<Vec<Vec<String>>>> {
        let Some(first) = self.ahead.take() else { return Ok(None) };
        let column = self.columns.get("pdbx_PDB_model_num").copied();
        let model = column.map(|c| first[c].clone());
        let mut rows = vec![first];
        while let Some(row) = self.next_row()? {
            if column.is_some_and(|c| Some(&row[c]) != model.as_ref()) {
                self.ahead = Some(row);
                break;
            }
            rows.push(row);
        }
        Ok(Some(rows))
    }

    fn record(&self, row: &[String]) -> std::result::Result<AtomRecord, String> {
        // Numbering and names as authors and PDB files have them, else the archive's own.
        let get = |names: &[&str]| {
            let found = names.iter().find_map(|n| row.get(*self.columns.get(*n)?).filter(|v| !matches!(v.as_str(), "." | "?")));
            found.cloned().unwrap_or_default()
        };
        let coordinate = |axis: &str| {
            let text = get(&[&format!("Cartn_{axis}")]);
            number(&text).map(|x| x * NM_PER_ANGSTROM).ok_or_else(|| format!("coordinate {axis} is `{text}`, not a number"))
        };
        let residue_id = get(&["auth_seq_id", "label_seq_id"]);
        Ok(AtomRecord {
            name: AtomName {
                atom: get(&["auth_atom_id", "label_atom_id"]),
                residue: get(&["auth_comp_id", "label_comp_id"]),
                residue_id: if residue_id.is_empty() {
                    0
                } else {
                    residue_id.parse().map_err(|_| format!("residue number `{residue_id}` is no number"))?
                },
                chain: get(&["auth_asym_id", "label_asym_id"]),
            },
            element: get(&["type_symbol"]),
            altloc: get(&["label_alt_id"]),
            insertion: get(&["pdbx_PDB_ins_code"]),
            charge: get(&["pdbx_formal_charge"]).parse().unwrap_or(0),
            last_of_chain: false,
            position: [coordinate("x")?, coordinate("y")?, coordinate("z")?],
            velocity: None,
        })
    }
}

/// A value as mmCIF wants it: in quotes where it must be, a dot for nothing.
fn quoted(text: &str) -> String {
    let text = text.replace(['\n', '\r', '\t'], " ");
    match text.as_str() {
        "" => ".".to_owned(),
        t if t.starts_with(['_', '#', '$', '\'', '"', '[', ']', ';']) || t.contains([' ', '\'', '"']) => {
            if t.contains('"') {
                format!("'{}'", t.replace('\'', "_"))
            } else {
                format!("\"{t}\"")
            }
        }
        t => t.to_owned(),
    }
}

/// Appends a file with all of `frames` as models to `out`. chemfiles writes the cell under names that nobody reads.
pub(crate) fn format_mmcif(frames: &[Frame], out: &mut String) {
    let _ = writeln!(out, "data_scorefield\n#");
    if let Some(cell) = frames.first().and_then(|f| f.cell.as_ref()) {
        let (lengths, angles) = cell_lengths_angles(cell);
        for (name, length) in ["a", "b", "c"].iter().zip(lengths) {
            let _ = writeln!(out, "_cell.length_{name} {:.6}", length / NM_PER_ANGSTROM);
        }
        for (name, angle) in ["alpha", "beta", "gamma"].iter().zip(angles) {
            let _ = writeln!(out, "_cell.angle_{name} {angle:.6}");
        }
        out.push_str("#\n");
    }
    out.push_str("loop_\n");
    for item in [
        "group_PDB",
        "id",
        "type_symbol",
        "label_atom_id",
        "label_alt_id",
        "label_comp_id",
        "label_asym_id",
        "label_entity_id",
        "label_seq_id",
        "Cartn_x",
        "Cartn_y",
        "Cartn_z",
        "auth_seq_id",
        "auth_comp_id",
        "auth_asym_id",
        "auth_atom_id",
        "pdbx_PDB_model_num",
    ] {
        let _ = writeln!(out, "_atom_site.{item}");
    }
    let mut id = 0;
    for (model, frame) in frames.iter().enumerate() {
        for (i, name) in frame.system.names.iter().enumerate() {
            id += 1;
            let symbol = elements::symbol(frame.system.types[i]);
            let atom = quoted(if name.atom.is_empty() { symbol } else { &name.atom });
            let residue = quoted(if name.residue.is_empty() { "UNK" } else { &name.residue });
            let chain = quoted(if name.chain.is_empty() { "A" } else { &name.chain });
            let group = if topology::is_amino_acid(&name.residue) { "ATOM" } else { "HETATM" };
            let x: [f64; 3] = std::array::from_fn(|a| frame.positions[3 * i + a] / NM_PER_ANGSTROM);
            let number = name.residue_id;
            let _ = writeln!(
                out,
                "{group} {id} {symbol} {atom} . {residue} {chain} 1 {number} {:.5} {:.5} {:.5} {number} {residue} {chain} {atom} {}",
                x[0],
                x[1],
                x[2],
                model + 1
            );
        }
    }
    out.push_str("#\n");
}

impl Source for MmcifReader {
    fn count(&mut self) -> Result<usize> {
        let mut scan = MmcifReader::open(&self.path, String::new())?;
        while scan.skip()? {}
        Ok(scan.frame)
    }

    fn skip(&mut self) -> Result<bool> {
        let there = self.model()?.is_some();
        self.frame += usize::from(there);
        Ok(there)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(rows) = self.model()? else {
            return if self.frame == 0 { Err(super::no_frame(&self.path)) } else { Ok(None) };
        };
        let records = rows.iter().enumerate().map(|(i, row)| {
            self.record(row).map_err(|what| IoError::content(&self.path, Some(self.frame), None, format!("atom {}: {what}", i + 1)))
        });
        let records = records.collect::<Result<Vec<_>>>()?;
        let bonds = match &self.first {
            Some(first) => Bonds::Same(first),
            None => Bonds::Completed(&[]),
        };
        let mut frame =
            topology::frame(&self.path, self.frame, &self.name, records, bonds, "Write a chemical symbol as its `type_symbol`")?;
        self.first.get_or_insert_with(|| frame.system.clone());
        frame.cell = self.cell;
        frame.title = self.title.clone();
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}
