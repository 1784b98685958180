//! All that knows chemfiles. Its types stay on the thread that made them; its Rust wrapper panics where its C++ throws,
//! so every call goes through [`guard`].

use super::elements;
use super::error::{IoError, Result};
use super::format::Format;
use super::frame::{self, Frame};
use super::warnings::warn;
use super::{Source, check_atoms};
use chemfiles::{Property, Trajectory};
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{AtomName, System};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// Runs `call`, turning errors and panics of the wrapper (a name that is not UTF-8, for example) into text.
fn guard<T>(call: impl FnOnce() -> std::result::Result<T, chemfiles::Error>) -> std::result::Result<T, String> {
    static CALLBACK: Once = Once::new();
    CALLBACK.call_once(|| chemfiles::set_warning_callback(|message: &str| warn(message)));
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.message),
        Err(panic) => Err(match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(message), _) => message.clone(),
            (None, Some(message)) => (*message).to_owned(),
            (None, None) => "the file library failed".to_owned(),
        }),
    }
}

/// A path as chemfiles takes it.
fn check_path(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(text) if !text.contains('\0') => Ok(()),
        _ => Err(IoError::path(path, "the path is not UTF-8 text", "Rename the file")),
    }
}

/// chemfiles' own name of a format.
fn chemfiles_name(format: Format) -> String {
    let name = match format.info.engine {
        super::Engine::Chemfiles(name) => name,
        super::Engine::Xyz => "XYZ",
        super::Engine::Dcd => "DCD",
    };
    match format.compression {
        Some(compression) => format!("{name} / {compression}"),
        None => name.to_owned(),
    }
}

/// Reads one file through chemfiles.
struct Reader {
    path: PathBuf,
    format: Format,
    name: String,
    topology: Option<Arc<System>>,
    trajectory: Trajectory,
    frame: chemfiles::Frame,
    count: usize,
    next: usize,
    /// Whether types are from an element column; `None` where each frame must tell.
    elements: Option<bool>,
}

pub(super) fn open(path: &Path, format: Format, name: String, topology: Option<Arc<System>>) -> Result<Box<dyn Source>> {
    check_path(path)?;
    let fail = |what: String| IoError::content(path, None, None, what);
    let mut chemfiles_format = chemfiles_name(format);
    if format.info.name == "mmcif" && format.compression.is_none() {
        // Small-molecule CIF and mmCIF share an extension.
        chemfiles_format = guard(|| chemfiles::guess_format(path)).unwrap_or(chemfiles_format);
    }
    let mut trajectory = guard(|| Trajectory::open_with_format(path, 'r', chemfiles_format.as_str())).map_err(fail)?;
    let count = guard(|| Ok(trajectory.nsteps())).map_err(fail)?;
    if count == 0 {
        return Err(super::no_frame(path));
    }
    let elements = if format.info.name == "pdb" && format.compression.is_none() { Some(pdb::prescan(path)?) } else { None };
    Ok(Box::new(Reader {
        path: path.to_owned(),
        format,
        name,
        topology,
        trajectory,
        frame: chemfiles::Frame::new(),
        count,
        next: 0,
        elements,
    }))
}

impl Source for Reader {
    fn count(&mut self) -> Result<usize> {
        Ok(self.count)
    }

    fn skip(&mut self) -> Result<bool> {
        if self.next >= self.count {
            return Ok(false);
        }
        self.next += 1;
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Frame>> {
        if self.next >= self.count {
            return Ok(None);
        }
        let index = self.next;
        let fail = |what: String| IoError::content(&self.path, Some(index), None, what);
        guard(|| self.trajectory.read_step(index, &mut self.frame)).map_err(fail)?;
        let n = self.frame.size();
        if n == 0 {
            return Err(fail("there are no atoms in it".into()));
        }
        let (system, keep) = match &self.topology {
            Some(system) => {
                check_atoms(&self.path, index, n, system)?;
                (system.clone(), None)
            }
            None => {
                let (system, keep) = self.system(index)?;
                (Arc::new(system), keep)
            }
        };
        let frame = guard(|| Ok(coordinates(&self.frame, system))).map_err(fail)?.map_err(fail)?;
        let frame = match keep {
            Some(atoms) => {
                let system = frame::subsystem(&frame.system, &atoms);
                let charge = frame.system.charge;
                frame.subset(&atoms, Arc::new(System { charge, ..system }))
            }
            None => frame,
        };
        frame.check(&self.path, index)?;
        self.next += 1;
        Ok(Some(frame))
    }
}

/// What one atom of chemfiles says about itself.
struct RawAtom {
    name: String,
    kind: String,
    mass: f64,
    charge: f64,
    altloc: Option<String>,
}

impl Reader {
    /// Topology of the frame just read, and which atoms to keep where some are alternate locations of others.
    fn system(&self, index: usize) -> Result<(System, Option<Vec<usize>>)> {
        let fail = |what: String| IoError::content(&self.path, Some(index), None, what);
        let (atoms, mut names, bonds, title) = guard(|| Ok(raw_topology(&self.frame))).map_err(fail)?;
        for (name, atom) in names.iter_mut().zip(&atoms) {
            name.atom.clone_from(&atom.name);
        }
        // Without an element column chemfiles repeats the name as the type.
        let column = self.elements.unwrap_or_else(|| atoms.iter().any(|a| a.kind != a.name && !a.kind.is_empty()));
        let named = matches!(self.format.info.name, "pdb" | "gro");
        let mut system = System {
            name: if self.format.info.titled && !title.is_empty() { title } else { self.name.clone() },
            types: Vec::with_capacity(atoms.len()),
            masses: Vec::with_capacity(atoms.len()),
            bonds: bonds.into_iter().map(|[i, j]| (i.min(j) as u32, i.max(j) as u32)).collect(),
            constraints: Vec::new(),
            names,
            charge: 0,
            axes: [true; 3],
        };
        system.bonds.sort_unstable();
        system.bonds.dedup();
        for (i, atom) in atoms.iter().enumerate() {
            let found = if named && (!column || atom.kind.is_empty()) {
                elements::from_name(&atom.name, &system.names[i].residue).map_err(|what| format!("has no element, and its name {what}"))
            } else {
                let by_symbol = elements::element(&atom.kind);
                let by_number = atom.kind.parse().ok().filter(|_| atom.mass == 0.0).and_then(|z| Some((z, elements::mass(z)?)));
                by_symbol
                    .or_else(|| elements::from_mass(atom.mass))
                    .or(by_number)
                    .ok_or_else(|| format!("is of type `{}`, which is no element", atom.kind))
            };
            let (number, mass) = found.map_err(|what| IoError::Element {
                path: self.path.clone(),
                frame: index,
                atom: system.describe_atom(i),
                what,
                remedy: match self.format.info.name {
                    "pdb" => "Write its element into columns 77-78",
                    "lammps" => "Dump the column `element`, or give a topology file",
                    "lammps-data" => "Give real masses under `Masses`",
                    "gro" => "Convert the file to PDB with an element column",
                    _ => "Write a chemical symbol as its type",
                }
                .into(),
            })?;
            system.types.push(number);
            system.masses.push(mass);
        }
        let charge: f64 = atoms.iter().map(|a| a.charge).sum();
        if charge.is_finite() && (charge - charge.round()).abs() < 0.05 && charge.abs() < 1e6 {
            system.charge = charge.round() as i32;
        } else {
            warn(&format!(
                "{}: partial charges add up to {charge}, not a whole number; the total charge is taken as 0",
                self.path.display()
            ));
        }
        Ok((system, self.first_locations(&atoms, index)))
    }

    /// Of atoms that differ only in their alternate location the first one of each name and residue stays.
    fn first_locations(&self, atoms: &[RawAtom], index: usize) -> Option<Vec<usize>> {
        if atoms.iter().all(|a| a.altloc.is_none()) {
            return None;
        }
        let residue = guard(|| {
            let topology = self.frame.topology();
            let mut of = vec![None; atoms.len()];
            for r in 0..topology.residues_count() as usize {
                for i in topology.residue(r).map(|r| r.atoms()).unwrap_or_default() {
                    of[i] = Some(r);
                }
            }
            Ok(of)
        })
        .ok()?;
        let mut seen = HashSet::new();
        let keep: Vec<usize> =
            (0..atoms.len()).filter(|&i| atoms[i].altloc.is_none() || seen.insert((residue[i], &atoms[i].name))).collect();
        if keep.len() == atoms.len() {
            return None;
        }
        warn(&format!(
            "{}, frame {index}: {} atoms are alternate locations; the first of each is used",
            self.path.display(),
            atoms.len() - keep.len()
        ));
        Some(keep)
    }
}

/// Atoms, names without the atom's own, bonds and title.
fn raw_topology(frame: &chemfiles::Frame) -> (Vec<RawAtom>, Vec<AtomName>, Vec<[usize; 2]>, String) {
    let topology = frame.topology();
    let text = |property: Option<Property>| match property {
        Some(Property::String(text)) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        _ => None,
    };
    let atoms = frame
        .iter_atoms()
        .map(|a| RawAtom {
            name: a.name(),
            kind: a.atomic_type(),
            mass: a.mass(),
            charge: a.charge(),
            altloc: text(a.get("altloc")).filter(|l| l != "."),
        })
        .collect();
    let mut names = vec![AtomName::default(); frame.size()];
    for r in 0..topology.residues_count() as usize {
        let Some(residue) = topology.residue(r) else { continue };
        let chain = text(residue.get("chainid")).or_else(|| text(residue.get("chainname"))).unwrap_or_default();
        for i in residue.atoms() {
            if let Some(name) = names.get_mut(i) {
                *name =
                    AtomName { atom: String::new(), residue: residue.name(), residue_id: residue.id().unwrap_or(0), chain: chain.clone() };
            }
        }
    }
    (atoms, names, topology.bonds(), title(frame))
}

fn title(frame: &chemfiles::Frame) -> String {
    match frame.get("name") {
        Some(Property::String(name)) => name.trim().to_owned(),
        _ => String::new(),
    }
}

/// Everything of a frame but its topology, in our units.
fn coordinates(frame: &chemfiles::Frame, system: Arc<System>) -> std::result::Result<Frame, String> {
    let scaled = |values: &[[f64; 3]]| values.iter().flatten().map(|x| x * NM_PER_ANGSTROM).collect::<Vec<f64>>();
    let mut out = Frame::new(system, scaled(frame.positions()));
    out.velocities = frame.velocities().map(scaled);
    out.title = title(frame);
    let lengths = frame.cell().lengths();
    // 1 Å cubes are how PDB files say that there is no cell.
    if frame.cell().shape() != chemfiles::CellShape::Infinite && lengths != [1.0; 3] && lengths != [0.0; 3] {
        let m = frame.cell().matrix();
        let cell: [f64; 9] = std::array::from_fn(|k| m[k % 3][k / 3] * NM_PER_ANGSTROM);
        frame::check_cell(&cell)?;
        out.cell = Some(cell);
    }
    for (key, value) in frame.properties() {
        let value = match value {
            Property::String(s) => s.trim().to_owned(),
            Property::Double(x) => x.to_string(),
            Property::Bool(b) => b.to_string(),
            Property::Vector3D([x, y, z]) => format!("{x} {y} {z}"),
        };
        match key.as_str() {
            "name" => {}
            "time" => out.time = value.parse().ok().filter(|t: &f64| t.is_finite()),
            _ => {
                out.properties.insert(key, value);
            }
        }
    }
    Ok(out)
}

/// What chemfiles does not say about PDB files.
mod pdb {
    use super::super::error::{IoError, Result};
    use super::super::lines::Lines;
    use std::path::Path;

    /// Whether all atoms have an element column.
    ///
    /// # Errors
    /// Where a model begins but does not end: chemfiles would take the rest of a cut file for a frame.
    pub(super) fn prescan(path: &Path) -> Result<bool> {
        let mut lines = Lines::open(path)?;
        let (mut all, mut models, mut open) = (true, 0, false);
        while let Some(line) = lines.next()? {
            match line.get(..6).unwrap_or(line).trim_end() {
                "ATOM" | "HETATM" => all &= line.get(76..78).is_some_and(|e| !e.trim().is_empty()),
                "MODEL" => open = true,
                "ENDMDL" => {
                    open = false;
                    models += 1;
                }
                _ => {}
            }
        }
        if open {
            return Err(IoError::truncated(path, models, "MODEL without ENDMDL"));
        }
        Ok(all)
    }
}

/// A chemfiles frame with the topology and coordinates of ours.
fn to_chemfiles(frame: &Frame) -> std::result::Result<chemfiles::Frame, String> {
    guard(|| {
        let mut out = chemfiles::Frame::new();
        let clean = |text: &str| text.replace('\0', "");
        for i in 0..frame.len() {
            let name = &frame.system.names[i];
            let symbol = elements::symbol(frame.system.types[i]);
            let mut atom = chemfiles::Atom::new(if name.atom.is_empty() { symbol } else { &name.atom });
            atom.set_atomic_type(symbol);
            atom.set_mass(frame.system.masses[i]);
            let p = |x: &[f64]| std::array::from_fn(|a| x[3 * i + a] / NM_PER_ANGSTROM);
            out.add_atom(&atom, p(&frame.positions), frame.velocities.as_deref().map(p));
        }
        // Atoms of one residue follow each other in our systems.
        let mut i = 0;
        while i < frame.len() {
            let name = &frame.system.names[i];
            let same = |j: &usize| {
                let other = &frame.system.names[*j];
                (&other.residue, other.residue_id, &other.chain) == (&name.residue, name.residue_id, &name.chain)
            };
            let end = (i..frame.len()).find(|j| !same(j)).unwrap_or(frame.len());
            if !name.residue.is_empty() {
                let residue_name = clean(&name.residue);
                let mut residue = chemfiles::Residue::with_id(residue_name.as_str(), name.residue_id);
                for j in i..end {
                    residue.add_atom(j);
                }
                if !name.chain.is_empty() {
                    residue.set("chainid", clean(&name.chain));
                    residue.set("chainname", clean(&name.chain));
                }
                out.add_residue(&residue)?;
            }
            i = end;
        }
        for &(i, j) in &frame.system.bonds {
            out.add_bond(i as usize, j as usize);
        }
        Ok(out)
    })
}

/// Writes one file through chemfiles.
pub(super) struct Writer {
    /// The file meant, for messages.
    path: PathBuf,
    trajectory: Trajectory,
    /// The last topology written and its chemfiles frame: a trajectory has one.
    last: Option<(Arc<System>, chemfiles::Frame)>,
}

impl Writer {
    /// Opens `at` (which becomes `path`) anew or, to `append`, at its end.
    pub(super) fn open(at: &Path, path: &Path, format: Format, append: bool) -> Result<Self> {
        check_path(at)?;
        let name = chemfiles_name(format);
        let mode = if append { 'a' } else { 'w' };
        let trajectory =
            guard(|| Trajectory::open_with_format(at, mode, name.as_str())).map_err(|what| IoError::content(path, None, None, what))?;
        Ok(Writer { path: path.to_owned(), trajectory, last: None })
    }

    /// Writes a frame that was checked.
    pub(super) fn write(&mut self, index: usize, frame: &Frame) -> Result<()> {
        super::structure::check_orientation(&self.path, frame)?;
        let fail = |what: String| IoError::content(&self.path, Some(index), None, what);
        let fresh = !matches!(&self.last, Some((system, out)) if Arc::ptr_eq(system, &frame.system) && out.has_velocities() == frame.velocities.is_some());
        if fresh {
            self.last = Some((frame.system.clone(), to_chemfiles(frame).map_err(fail)?));
        }
        let Some((_, out)) = &mut self.last else { return Ok(()) };
        guard(|| {
            let copy = |to: &mut [[f64; 3]], from: &[f64]| {
                for (to, from) in to.iter_mut().flatten().zip(from) {
                    *to = from / NM_PER_ANGSTROM;
                }
            };
            copy(out.positions_mut(), &frame.positions);
            if let (Some(to), Some(from)) = (out.velocities_mut(), &frame.velocities) {
                copy(to, from);
            }
            match &frame.cell {
                Some(cell) => {
                    let (lengths, angles) = frame::cell_lengths_angles(cell);
                    out.set_cell(&chemfiles::UnitCell::triclinic(lengths.map(|l| l / NM_PER_ANGSTROM), angles));
                }
                None => out.set_cell(&chemfiles::UnitCell::infinite()),
            }
            if !frame.title.is_empty() {
                out.set("name", frame.title.replace(['\0', '\n', '\r'], " "));
            }
            if let Some(time) = frame.time {
                out.set("time", time);
            }
            if let Some(Ok(step)) = frame.properties.get("step").map(|s| s.parse()) {
                out.set_step(step);
            }
            self.trajectory.write(out)
        })
        .map_err(fail)
    }

    /// Closes the file.
    pub(super) fn close(self) -> Result<()> {
        let path = self.path.clone();
        guard(move || {
            drop(self);
            Ok(())
        })
        .map_err(|what| IoError::content(&path, None, None, what))
    }
}

pub(super) fn check_selection(text: &str) -> std::result::Result<(), String> {
    let selection = guard(|| {
        if text.contains('\0') {
            return Ok(None);
        }
        chemfiles::Selection::new(text).map(Some)
    })?;
    match selection.map(|s| s.size()) {
        Some(1) => Ok(()),
        Some(_) => Err("a selection here chooses atoms, not pairs or larger groups; write for example `name CA`".into()),
        None => Err("a selection is text without zero characters".into()),
    }
}

pub(super) fn select(text: &str, frame: &Frame) -> std::result::Result<Vec<usize>, String> {
    let chemfiles_frame = to_chemfiles(frame)?;
    guard(|| Ok(chemfiles::Selection::new(text)?.list(&chemfiles_frame)))
}
