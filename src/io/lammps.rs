//! LAMMPS data files and dumps, in units `real` or `metal`: Å in the file. Types are numbers without meaning there: elements
//! come from an `element` column or from masses.

use super::Source;
use super::elements;
use super::error::{IoError, Result};
use super::frame::{Frame, check_cell};
use super::lines::Lines;
use super::warnings::warn;
use scorefield_integrators::state::Cell;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{AtomName, System};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An orthogonal or tilted box: lower and upper bounds in Å and tilts xy, xz, yz.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    low: [f64; 3],
    high: [f64; 3],
    tilt: [f64; 3],
}

impl Bounds {
    fn cell(&self) -> std::result::Result<Cell, String> {
        let [xy, xz, yz] = self.tilt;
        let l: [f64; 3] = std::array::from_fn(|a| self.high[a] - self.low[a]);
        let cell = [l[0], 0.0, 0.0, xy, l[1], 0.0, xz, yz, l[2]].map(|x| x * NM_PER_ANGSTROM);
        check_cell(&cell).map(|()| cell)
    }
}

/// Numbers at the beginning of a line.
fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().map_while(|w| w.parse().ok()).collect()
}

/// Streams the frames of a dump.
pub(crate) struct DumpReader {
    path: PathBuf,
    lines: Lines,
    name: String,
    size: u64,
    frame: usize,
    /// Elements are not needed: a topology tells them.
    anonymous: bool,
}

impl DumpReader {
    pub(crate) fn open(path: &Path, name: String, anonymous: bool) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| IoError::file("read", path, e))?.len();
        Ok(DumpReader { path: path.to_owned(), lines: Lines::open(path)?, name, size, frame: 0, anonymous })
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

    /// Header of a frame, up to its `ITEM: ATOMS`.
    fn header(&mut self) -> Result<Option<DumpHeader>> {
        let mut header = DumpHeader::default();
        let (mut begun, mut units) = (false, String::new());
        loop {
            let line = match self.lines.next()? {
                None if begun => return Err(IoError::truncated(&self.path, self.frame, "its header is not whole")),
                None => return Ok(None),
                Some(line) => line.trim().to_owned(),
            };
            let Some(item) = line.strip_prefix("ITEM: ") else {
                if line.is_empty() && !begun {
                    continue;
                }
                return Err(self.fail(format!("`{line}` stands where an ITEM should")));
            };
            begun = true;
            let mut words = item.split_whitespace();
            match words.next() {
                Some("ATOMS") => {
                    header.columns = words.map(str::to_owned).collect();
                    if header.atoms == 0 {
                        return Err(self.fail("a frame of 0 atoms"));
                    }
                    if header.atoms as u64 > self.size / 6 + 1 {
                        return Err(IoError::truncated(
                            &self.path,
                            self.frame,
                            format!("{} atoms are announced, more than the file can hold", header.atoms),
                        ));
                    }
                    return Ok(Some(header));
                }
                Some("NUMBER") => {
                    let text = self.line("the number of atoms")?;
                    header.atoms = text.parse().map_err(|_| self.fail(format!("`{text}` is no number of atoms")))?;
                }
                Some("BOX") => {
                    let words: Vec<&str> = item.split_whitespace().skip(2).collect();
                    let mut bounds = Bounds::default();
                    for a in 0..3 {
                        let line = self.line("the box")?;
                        match numbers(&line)[..] {
                            [low, high] => (bounds.low[a], bounds.high[a]) = (low, high),
                            [low, high, tilt] => (bounds.low[a], bounds.high[a], bounds.tilt[a]) = (low, high, tilt),
                            _ => return Err(self.fail(format!("`{line}` are no bounds of a box"))),
                        }
                    }
                    // Bounds of a tilted box are those of its corners.
                    let [xy, xz, yz] = bounds.tilt;
                    let x = [0.0, xy, xz, xy + xz];
                    bounds.low[0] -= x.into_iter().fold(0.0, f64::min);
                    bounds.high[0] -= x.into_iter().fold(0.0, f64::max);
                    bounds.low[1] -= yz.min(0.0);
                    bounds.high[1] -= yz.max(0.0);
                    let flags: Vec<bool> = words.iter().filter(|w| !matches!(**w, "xy" | "xz" | "yz")).map(|w| *w == "pp").collect();
                    header.periodic = flags.iter().all(|p| *p);
                    if !header.periodic && flags.iter().any(|p| *p) {
                        return Err(
                            self.fail("the box is periodic in some directions only; cells are periodic in all three or in none here")
                        );
                    }
                    header.bounds = bounds;
                }
                Some("TIME") => {
                    let text = self.line("the time")?;
                    header.time = text.parse().ok();
                }
                Some("UNITS") => units = self.line("the units")?,
                // The step, and what later versions add: one line each.
                _ => {
                    self.line("a value")?;
                }
            }
            header.time_unit = match units.as_str() {
                "real" => Some(1e-3),
                "metal" => Some(1.0),
                "" => None,
                other => {
                    return Err(IoError::format(&self.path, format!("its units are `{other}`"), "Dump in units real or metal"));
                }
            };
        }
    }
}

/// What precedes the atoms of a dump's frame.
#[derive(Default)]
struct DumpHeader {
    atoms: usize,
    bounds: Bounds,
    periodic: bool,
    time: Option<f64>,
    /// ps per unit of time, where the dump says its units.
    time_unit: Option<f64>,
    columns: Vec<String>,
}

impl Source for DumpReader {
    fn count(&mut self) -> Result<usize> {
        let mut scan = DumpReader::open(&self.path, String::new(), true)?;
        loop {
            match scan.skip() {
                Ok(true) => {}
                Ok(false) | Err(IoError::Truncated { .. }) => return Ok(scan.frame),
                Err(e) => return Err(e),
            }
        }
    }

    fn skip(&mut self) -> Result<bool> {
        let Some(header) = self.header()? else { return Ok(false) };
        for _ in 0..header.atoms {
            self.line("an atom")?;
        }
        self.frame += 1;
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(header) = self.header()? else { return Ok(None) };
        let column = |name: &str| header.columns.iter().position(|c| c == name);
        let three = |names: [&str; 3]| Some([column(names[0])?, column(names[1])?, column(names[2])?]);
        let plain = three(["xu", "yu", "zu"]).or_else(|| three(["x", "y", "z"]));
        let scaled = three(["xsu", "ysu", "zsu"]).or_else(|| three(["xs", "ys", "zs"]));
        let Some(at) = plain.or(scaled) else {
            return Err(self.fail("it has no columns `x y z`, `xu yu zu` or `xs ys zs`"));
        };
        let (id, kind, element, mass) = (column("id"), column("type"), column("element"), column("mass"));
        // LAMMPS dumps atoms in any order; their numbers sort them.
        let mut atoms: BTreeMap<u64, ([f64; 3], u32, f64)> = BTreeMap::new();
        for i in 0..header.atoms {
            let line = self.line("an atom")?;
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.len() < header.columns.len() {
                let what = format!("atom {} has {} columns of {}", i + 1, words.len(), header.columns.len());
                let error = self.fail(what.clone());
                return Err(if self.lines.next()?.is_none() { IoError::truncated(&self.path, self.frame, what) } else { error });
            }
            let number = |k: usize| words[k].parse::<f64>().map_err(|_| self.fail(format!("`{}` is not a number", words[k])));
            let x = [number(at[0])?, number(at[1])?, number(at[2])?];
            let x = if plain.is_some() {
                x
            } else {
                let b = &header.bounds;
                let l: [f64; 3] = std::array::from_fn(|a| b.high[a] - b.low[a]);
                let [xy, xz, yz] = b.tilt;
                [b.low[0] + x[0] * l[0] + x[1] * xy + x[2] * xz, b.low[1] + x[1] * l[1] + x[2] * yz, b.low[2] + x[2] * l[2]]
            };
            let found = match mass.and_then(|m| words[m].parse().ok()).and_then(elements::from_mass) {
                Some(found) => Some(found),
                None => element.and_then(|e| elements::element(words[e])),
            };
            let Some((number, mass)) = found.or(self.anonymous.then_some((0, 0.0))) else {
                return Err(IoError::Element {
                    path: self.path.clone(),
                    frame: self.frame,
                    atom: format!("atom {}", i + 1),
                    what: format!("has type `{}`, which tells no element", kind.map_or("", |k| words[k])),
                    remedy: "Dump the column `element`, or give a topology file".into(),
                });
            };
            let key = match id {
                Some(k) => words[k].parse().map_err(|_| self.fail(format!("`{}` is no number of an atom", words[k])))?,
                None => i as u64,
            };
            if atoms.insert(key, (x, number, mass)).is_some() {
                return Err(self.fail(format!("two atoms have number {key}")));
            }
        }
        let mut system = System { name: self.name.clone(), ..System::particles("", atoms.len(), 0.0) };
        for (i, (_, number, mass)) in atoms.values().enumerate() {
            system.types[i] = *number;
            system.masses[i] = *mass;
            system.names[i].atom = elements::symbol(*number).to_owned();
        }
        let positions = atoms.values().flat_map(|(x, ..)| x.map(|x| x * NM_PER_ANGSTROM)).collect();
        let mut frame = Frame::new(Arc::new(system), positions);
        if header.periodic {
            frame.cell = Some(header.bounds.cell().map_err(|what| self.fail(what))?);
        }
        frame.time = header.time.zip(header.time_unit).map(|(t, unit)| t * unit).filter(|t| t.is_finite());
        frame.check(&self.path, self.frame)?;
        self.frame += 1;
        Ok(Some(frame))
    }
}

/// Appends a frame as a dump to `out`, with types numbered by element, elements, unwrapped positions and the step of its properties.
pub(crate) fn format_dump(frame: &Frame, out: &mut String) {
    let step = frame.properties.get("step").and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
    let _ = writeln!(out, "ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{}", frame.len());
    match &frame.cell {
        Some(cell) => {
            let [lx, _, _, xy, ly, _, xz, yz, lz] = cell.map(|x| x / NM_PER_ANGSTROM);
            let x = [0.0, xy, xz, xy + xz];
            let (low, high) = (x.into_iter().fold(0.0, f64::min), x.into_iter().fold(0.0, f64::max));
            out.push_str("ITEM: BOX BOUNDS xy xz yz pp pp pp\n");
            let _ = writeln!(out, "{low} {} {xy}\n{} {} {xz}\n0 {lz} {yz}", lx + high, yz.min(0.0), ly + yz.max(0.0));
        }
        None => {
            // LAMMPS wants a box: one around the atoms.
            out.push_str("ITEM: BOX BOUNDS ff ff ff\n");
            for a in 0..3 {
                let values = || frame.positions.iter().skip(a).step_by(3).map(|x| x / NM_PER_ANGSTROM);
                let _ = writeln!(
                    out,
                    "{} {}",
                    values().fold(f64::INFINITY, f64::min).floor() - 1.0,
                    values().fold(f64::NEG_INFINITY, f64::max).ceil() + 1.0
                );
            }
        }
    }
    let mut elements_there = frame.system.types.clone();
    elements_there.sort_unstable();
    elements_there.dedup();
    out.push_str("ITEM: ATOMS id type element xu yu zu\n");
    for i in 0..frame.len() {
        let kind = elements_there.partition_point(|z| *z < frame.system.types[i]) + 1;
        let _ = write!(out, "{} {kind} {}", i + 1, elements::symbol(frame.system.types[i]));
        for a in 0..3 {
            let _ = write!(out, " {:.8}", frame.positions[3 * i + a] / NM_PER_ANGSTROM);
        }
        out.push('\n');
    }
}

/// Reads a data file, which is one frame.
pub(crate) struct DataReader {
    path: PathBuf,
    name: String,
    done: bool,
}

impl DataReader {
    pub(crate) fn open(path: &Path, name: String) -> Self {
        DataReader { path: path.to_owned(), name, done: false }
    }

    fn read(&self) -> Result<Frame> {
        let mut lines = Lines::open(&self.path)?;
        lines.next()?;
        let (mut announced, mut announced_bonds) = (0usize, 0usize);
        let mut bounds: Option<Bounds> = None;
        let mut section = String::new();
        let mut style = String::new();
        let mut masses: HashMap<String, f64> = HashMap::new();
        let mut atoms: BTreeMap<u64, (String, i64, f64, [f64; 3])> = BTreeMap::new();
        let mut bonds: Vec<(u64, u64)> = Vec::new();
        while let Some(line) = lines.next()? {
            let (content, comment) = line.split_once('#').unwrap_or((line, ""));
            let words: Vec<String> = content.split_whitespace().map(str::to_owned).collect();
            let comment = comment.trim().to_owned();
            let Some(first) = words.first() else { continue };
            let fail = |what: String| IoError::content(&self.path, None, Some(lines.number()), what);
            if first.starts_with(|c: char| c.is_ascii_uppercase()) {
                section = words.join(" ");
                if section == "Atoms" {
                    style = comment;
                }
                continue;
            }
            let n: Vec<f64> = words.iter().map_while(|w| w.parse().ok()).collect();
            match section.as_str() {
                "" => {
                    let rest: Vec<&str> = words[n.len()..].iter().map(String::as_str).collect();
                    let count = || words[0].parse::<usize>().map_err(|_| fail(format!("`{}` is no number of them", words[0])));
                    match (&n[..], &rest[..]) {
                        ([_], ["atoms"]) => announced = count()?,
                        ([_], ["bonds"]) => announced_bonds = count()?,
                        ([low, high], [a @ "xlo", "xhi"] | [a @ "ylo", "yhi"] | [a @ "zlo", "zhi"]) => {
                            let k = ["xlo", "ylo", "zlo"].iter().position(|n| n == a).unwrap_or(0);
                            let b = bounds.get_or_insert_default();
                            (b.low[k], b.high[k]) = (*low, *high);
                        }
                        ([xy, xz, yz], ["xy", "xz", "yz"]) => bounds.get_or_insert_default().tilt = [*xy, *xz, *yz],
                        ([_], [_] | [_, "types"] | ["extra", ..]) => {}
                        _ => return Err(fail(format!("`{}` is no line of a header", words.join(" ")))),
                    }
                }
                "Masses" => match n[..] {
                    [_, mass] => drop(masses.insert(words[0].clone(), mass)),
                    _ => return Err(fail("a line of Masses has a type and a mass".into())),
                },
                "Atoms" => {
                    let image = |columns: usize| n.len() == columns || n.len() == columns + 3;
                    // id, molecule, type, charge, x y z, and image flags.
                    let (molecule, kind, charge, x) = match style.as_str() {
                        "full" if image(7) => (Some(1), 2, Some(3), 4),
                        "molecular" if image(6) => (Some(1), 2, None, 3),
                        "charge" if image(6) => (None, 1, Some(2), 3),
                        "atomic" if image(5) => (None, 1, None, 2),
                        "" if image(7) => (Some(1), 2, Some(3), 4),
                        "" if image(5) => (None, 1, None, 2),
                        _ => {
                            return Err(IoError::Content {
                                path: self.path.clone(),
                                frame: None,
                                line: Some(lines.number()),
                                what: format!("an atom has {} columns in style `{style}`", n.len()),
                                remedy: "Name the style behind `Atoms`: full, molecular, charge or atomic".into(),
                            });
                        }
                    };
                    let id = words[0].parse().map_err(|_| fail(format!("`{}` is no number of an atom", words[0])))?;
                    let atom = (
                        words[kind].clone(),
                        molecule.and_then(|m| words[m].parse().ok()).unwrap_or(0),
                        charge.map_or(0.0, |c| n[c]),
                        [n[x], n[x + 1], n[x + 2]],
                    );
                    if atoms.insert(id, atom).is_some() {
                        return Err(fail(format!("two atoms have number {id}")));
                    }
                }
                "Bonds" => match (words.get(2).and_then(|i| i.parse().ok()), words.get(3).and_then(|j| j.parse().ok())) {
                    (Some(i), Some(j)) if words.len() == 4 => bonds.push((i, j)),
                    _ => return Err(fail("a line of Bonds has four numbers".into())),
                },
                _ => {}
            }
        }
        if atoms.is_empty() || atoms.len() != announced || bonds.len() != announced_bonds {
            let what = format!("{} of {announced} atoms and {} of {announced_bonds} bonds", atoms.len(), bonds.len());
            return Err(IoError::truncated(&self.path, 0, what));
        }
        let index: HashMap<u64, u32> = atoms.keys().enumerate().map(|(i, id)| (*id, i as u32)).collect();
        let mut system = System { name: self.name.clone(), ..System::particles("", atoms.len(), 0.0) };
        for (i, (kind, molecule, ..)) in atoms.values().enumerate() {
            let mass = masses.get(kind).copied();
            let Some((number, mass)) = mass.and_then(elements::from_mass) else {
                return Err(IoError::Element {
                    path: self.path.clone(),
                    frame: 0,
                    atom: format!("atom {}", i + 1),
                    what: format!("is of type {kind} with mass {mass:?}, which is no element's"),
                    remedy: "Give real masses under `Masses`, or a topology file".into(),
                });
            };
            system.types[i] = number;
            system.masses[i] = mass;
            system.names[i] = AtomName { atom: elements::symbol(number).to_owned(), residue_id: *molecule, ..AtomName::default() };
        }
        for (i, j) in bonds {
            match (index.get(&i), index.get(&j)) {
                (Some(&i), Some(&j)) if i != j => system.bonds.push((i.min(j), i.max(j))),
                _ => return Err(IoError::content(&self.path, None, None, format!("bond {i}-{j} does not join two atoms"))),
            }
        }
        system.bonds.sort_unstable();
        system.bonds.dedup();
        let charge: f64 = atoms.values().map(|a| a.2).sum();
        if charge.is_finite() && (charge - charge.round()).abs() < 0.05 && charge.abs() < 1e6 {
            system.charge = charge.round() as i32;
        } else {
            warn(&format!("{}: charges add up to {charge}, which is no whole number; the total charge is taken as 0", self.path.display()));
        }
        let positions = atoms.values().flat_map(|a| a.3.map(|x| x * NM_PER_ANGSTROM)).collect();
        let mut frame = Frame::new(Arc::new(system), positions);
        if let Some(bounds) = bounds.filter(|b| b.low != b.high) {
            frame.cell = Some(bounds.cell().map_err(|what| IoError::content(&self.path, None, None, what))?);
        }
        frame.check(&self.path, 0)?;
        Ok(frame)
    }
}

impl Source for DataReader {
    fn count(&mut self) -> Result<usize> {
        Ok(1)
    }

    fn skip(&mut self) -> Result<bool> {
        Ok(!std::mem::replace(&mut self.done, true))
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        if std::mem::replace(&mut self.done, true) { Ok(None) } else { self.read().map(Some) }
    }
}
