//! Writing SDF and MOL files (V2000): coordinates, bonds, charges, unpaired electrons, isotopes, data.

use super::elements;
use super::error::{IoError, Result};
use super::frame::Frame;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_models::molecule::{Atom, Bond, Graph};
use std::fmt::Write as _;
use std::path::Path;

/// Most atoms or bonds of one molecule: the format has three columns for them.
const MOST: usize = 999;
/// Entries of one line of the property block.
const PER_LINE: usize = 8;
/// "Any" kind of bond, for bonds whose order nobody said.
const ANY: u8 = 8;

/// Adds `frame` to `out` as one record of an SDF file. Bonds, charges and the rest come from [`Frame::graph`]; without one,
/// bonds of the topology are written as of any kind.
///
/// # Errors
/// Where a number does not fit its columns.
pub(super) fn format_sdf(path: &Path, frame: &Frame, out: &mut String) -> Result<()> {
    let n = frame.len();
    let graph = frame.graph.as_deref().filter(|g| g.len() == n);
    let bonds: Vec<(u32, u32, u8)> = match graph {
        Some(g) => g.bonds().iter().map(|b| (b.atoms.0, b.atoms.1, b.order)).collect(),
        None => frame.system.bonds.iter().map(|&(i, j)| (i, j, ANY)).collect(),
    };
    if n > MOST || bonds.len() > MOST {
        return Err(IoError::format(
            path,
            format!("{n} atoms and {} bonds do not fit; a V2000 record holds {MOST} of each", bonds.len()),
            "Write another format, such as pdb or extxyz",
        ));
    }
    // A title is one line.
    out.push_str(frame.label().lines().next().unwrap_or_default());
    // Line 2: initials (2 columns), program (8), date and time (10), dimension.
    out.push_str("\n  scorefld          3D\n\n");
    // Infallible: the target is a string.
    let _ = writeln!(out, "{n:3}{:3}  0  0  0  0  0  0  0  0999 V2000", bonds.len());
    for (i, x) in frame.positions.chunks_exact(3).enumerate() {
        let x = [x[0], x[1], x[2]].map(|v| v / NM_PER_ANGSTROM);
        if x.iter().any(|v| !(-9999.9..99999.9).contains(v)) {
            let atom = frame.system.describe_atom(i);
            return Err(IoError::format(path, format!("{atom} is too far out for the format's columns"), "Centre the molecule first"));
        }
        let valence = graph.map_or(0, |g| valence_field(g, i));
        let symbol = elements::symbol(frame.system.types[i]);
        let _ = writeln!(out, "{:10.4}{:10.4}{:10.4} {symbol:<3} 0  0  0  0  0{valence:3}  0  0  0  0  0  0", x[0], x[1], x[2]);
    }
    for (i, j, order) in bonds {
        let _ = writeln!(out, "{:3}{:3}{order:3}  0", i + 1, j + 1);
    }
    if let Some(g) = graph {
        property(out, "CHG", g, |a| i32::from(a.charge));
        // A doublet has one unpaired electron, a triplet two; more have no code, only their valence.
        property(out, "RAD", g, |a| if matches!(a.radicals, 1 | 2) { i32::from(a.radicals) + 1 } else { 0 });
        property(out, "ISO", g, |a| i32::from(a.isotope));
    } else if frame.system.charge != 0 && n == 1 {
        let _ = writeln!(out, "M  CHG  1   1{:4}", frame.system.charge);
    }
    out.push_str("M  END\n");
    for (key, value) in &frame.properties {
        let key: String = key.chars().filter(|c| !matches!(c, '<' | '>' | '\n' | '\r')).collect();
        let _ = writeln!(out, ">  <{key}>");
        // A blank line ends the value, and dollars end the record.
        for line in value.lines().filter(|l| !l.trim().is_empty() && !l.starts_with("$$$$")) {
            out.push_str(line);
            out.push('\n');
        }
        out.push('\n');
    }
    out.push_str("$$$$\n");
    Ok(())
}

/// The valence column: stated where readers would otherwise add hydrogens to unpaired electrons.
fn valence_field(graph: &Graph, i: usize) -> usize {
    match (graph.atoms()[i].radicals, graph.valence(i)) {
        (0, _) => 0,
        (_, 0) => 15,
        (_, valence) => valence,
    }
}

/// Property lines (`M  CHG`, `M  RAD`) with the atoms for which `value` is not 0.
fn property(out: &mut String, name: &str, graph: &Graph, value: impl Fn(&Atom) -> i32) {
    let entries: Vec<(usize, i32)> = graph.atoms().iter().enumerate().map(|(i, a)| (i + 1, value(a))).filter(|e| e.1 != 0).collect();
    for line in entries.chunks(PER_LINE) {
        let _ = write!(out, "M  {name}{:3}", line.len());
        for (atom, value) in line {
            let _ = write!(out, "{atom:4}{value:4}");
        }
        out.push('\n');
    }
}

/// What a reader has collected of a molecule's graph.
pub(super) struct GraphParts {
    /// Atoms with what their lines say.
    pub(super) atoms: Vec<Atom>,
    /// Bonds in the order of the file.
    pub(super) bonds: Vec<Bond>,
    /// Every bond has an order from 1 to 3, and every element is known.
    pub(super) whole: bool,
}

impl GraphParts {
    /// The graph, if the file says all of it.
    pub(super) fn graph(self) -> Option<Graph> {
        let pairs: std::collections::BTreeSet<_> =
            self.bonds.iter().map(|b| (b.atoms.0.min(b.atoms.1), b.atoms.0.max(b.atoms.1))).collect();
        (self.whole && pairs.len() == self.bonds.len()).then(|| Graph::new(self.atoms, self.bonds))
    }
}
