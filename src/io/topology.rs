//! From atom records of structure files to a [`System`]: alternate locations, elements, bonds.

use super::elements;
use super::error::{IoError, Result};
use super::frame::Frame;
use super::warnings::warn;
use scorefield_integrators::{AtomName, System};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

/// One atom as a PDB, mmCIF or GRO file describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtomRecord {
    pub(crate) name: AtomName,
    /// Text of the element column; empty where there is none.
    pub(crate) element: String,
    /// Alternate location; empty for none.
    pub(crate) altloc: String,
    /// Insertion code; empty for none.
    pub(crate) insertion: String,
    /// Charge in e.
    pub(crate) charge: i32,
    /// The chain ends after this atom.
    pub(crate) last_of_chain: bool,
    /// Position in nm.
    pub(crate) position: [f64; 3],
    pub(crate) velocity: Option<[f64; 3]>,
}

/// Which atoms of a frame are not alternate locations of earlier ones: the first location of each residue and name stays.
fn first_locations(records: &[AtomRecord]) -> Vec<usize> {
    let mut seen = HashSet::new();
    (0..records.len())
        .filter(|&i| {
            let r = &records[i];
            r.altloc.is_empty() || seen.insert((&r.name.chain, r.name.residue_id, &r.insertion, &r.name.atom))
        })
        .collect()
}

/// Where bonds come from.
pub(crate) enum Bonds<'a> {
    /// Nowhere.
    None,
    /// Pairs of records (from 0), completed by what is known of standard residues and by distances elsewhere.
    Completed(&'a [(usize, usize)]),
    /// Those of a topology that has as many atoms of the same names.
    Same(&'a System),
}

/// Makes a frame of `name` from records; `remedy` says how this format names an element.
pub(crate) fn frame(path: &Path, index: usize, name: &str, mut records: Vec<AtomRecord>, bonds: Bonds<'_>, remedy: &str) -> Result<Frame> {
    let keep = first_locations(&records);
    let mut new_index = vec![None; records.len()];
    if keep.len() < records.len() {
        let dropped = records.len() - keep.len();
        warn(&format!("{}, frame {index}: {dropped} atoms are alternate locations of others; the first location is used", path.display()));
    }
    for (new, &old) in keep.iter().enumerate() {
        new_index[old] = Some(new);
    }
    let mut wanted = keep.iter().copied().peekable();
    let mut at = 0;
    records.retain(|_| {
        let stays = wanted.next_if_eq(&at).is_some();
        at += 1;
        stays
    });
    let n = records.len();
    let mut system = System {
        name: name.to_owned(),
        types: Vec::with_capacity(n),
        masses: Vec::with_capacity(n),
        names: records.iter_mut().map(|r| std::mem::take(&mut r.name)).collect(),
        charge: records.iter().map(|r| r.charge).sum(),
        ..System::particles("", 0, 0.0)
    };
    for (i, record) in records.iter().enumerate() {
        let by_name = || elements::from_name(&system.names[i].atom, &system.names[i].residue);
        let found = match elements::element(&record.element) {
            Some(found) => Ok(found),
            None if record.element.is_empty() => by_name().map_err(|what| format!("has no element, and its name {what}")),
            None => by_name().map_err(|_| format!("is of element `{}`, which is unknown", record.element)),
        };
        let (number, mass) = found.map_err(|what| IoError::Element {
            path: path.to_owned(),
            frame: index,
            atom: system.describe_atom(i),
            what,
            remedy: remedy.to_owned(),
        })?;
        system.types.push(number);
        system.masses.push(mass);
    }
    let positions: Vec<f64> = records.iter().flat_map(|r| r.position).collect();
    system.bonds = match bonds {
        Bonds::None => Vec::new(),
        Bonds::Same(other) if other.names == system.names => other.bonds.clone(),
        Bonds::Same(_) => complete(path, &system, &records, &positions, BTreeSet::new()),
        Bonds::Completed(pairs) => {
            let pairs = pairs.iter().filter_map(|&(i, j)| Some((new_index[i]?, new_index[j]?))).filter(|(i, j)| i != j);
            complete(path, &system, &records, &positions, pairs.map(|(i, j)| (i.min(j) as u32, i.max(j) as u32)).collect())
        }
    };
    let velocities: Option<Vec<[f64; 3]>> = records.iter().map(|r| r.velocity).collect();
    let mut frame = Frame::new(Arc::new(system), positions);
    frame.velocities = velocities.map(|v| v.into_flattened());
    Ok(frame)
}

/// Bonds between heavy atoms of the side chains of amino acids; backbone and hydrogens come on top.
#[rustfmt::skip]
const SIDE_CHAINS: &[(&[&str], &str)] = &[
    (&["ALA", "GLY"], ""),
    (&["ARG"], "CB-CG CG-CD CD-NE NE-CZ CZ-NH1 CZ-NH2"),
    (&["ASN"], "CB-CG CG-OD1 CG-ND2"),
    (&["ASP", "ASH"], "CB-CG CG-OD1 CG-OD2"),
    (&["CYS", "CYX", "CYM"], "CB-SG"),
    (&["GLN"], "CB-CG CG-CD CD-OE1 CD-NE2"),
    (&["GLU", "GLH"], "CB-CG CG-CD CD-OE1 CD-OE2"),
    (&["HIS", "HID", "HIE", "HIP", "HSD", "HSE", "HSP"], "CB-CG CG-ND1 CG-CD2 ND1-CE1 CE1-NE2 NE2-CD2"),
    (&["ILE"], "CB-CG1 CB-CG2 CG1-CD1 CG1-CD"),
    (&["LEU"], "CB-CG CG-CD1 CG-CD2"),
    (&["LYS", "LYN"], "CB-CG CG-CD CD-CE CE-NZ"),
    (&["MET"], "CB-CG CG-SD SD-CE"),
    (&["MSE"], "CB-CG CG-SE SE-CE"),
    (&["PHE"], "CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ"),
    (&["PRO"], "CB-CG CG-CD CD-N"),
    (&["SER"], "CB-OG"),
    (&["THR"], "CB-OG1 CB-CG2"),
    (&["TRP"], "CB-CG CG-CD1 CG-CD2 CD1-NE1 NE1-CE2 CE2-CD2 CD2-CE3 CE3-CZ3 CZ3-CH2 CH2-CZ2 CZ2-CE2"),
    (&["TYR"], "CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ CZ-OH"),
    (&["VAL"], "CB-CG1 CB-CG2"),
    (&["ACE"], "CH3-C"),
    (&["NME", "NMA"], "N-C N-CH3"),
    (&["NH2", "NHE"], ""),
];
const BACKBONE: &str = "N-CA CA-C C-O C-OXT C-OT1 C-OT2 C-O1 C-O2 CA-CB";

/// Whether a residue is an amino acid or one of the caps that close a chain.
pub(crate) fn is_amino_acid(residue: &str) -> bool {
    SIDE_CHAINS.iter().any(|(names, _)| names.contains(&residue))
}

/// Covalent radius in nm (Cordero 2008) of elements that make molecules; metals and noble gases bind nothing here.
fn radius(number: u32) -> Option<f64> {
    Some(match number {
        1 => 0.031,
        5 => 0.084,
        6 => 0.076,
        7 => 0.071,
        8 => 0.066,
        9 => 0.057,
        14 => 0.111,
        15 => 0.107,
        16 => 0.105,
        17 => 0.102,
        34 => 0.120,
        35 => 0.120,
        53 => 0.139,
        _ => return None,
    })
}

/// Adds to `bonds` what every protein has: template bonds in amino acids, hydrogens to the nearest heavy atom of their
/// residue, links between residues of a chain; and in residues that nobody says anything about, bonds by distance.
fn complete(path: &Path, system: &System, records: &[AtomRecord], x: &[f64], mut bonds: BTreeSet<(u32, u32)>) -> Vec<(u32, u32)> {
    let n = system.len();
    let distance = |i: usize, j: usize| (0..3).map(|a| (x[3 * i + a] - x[3 * j + a]).powi(2)).sum::<f64>().sqrt();
    let mut bonded = vec![false; n];
    for &(i, j) in &bonds {
        bonded[i as usize] = true;
        bonded[j as usize] = true;
    }
    let key = |i: usize| (&system.names[i].chain, system.names[i].residue_id, &records[i].insertion, &system.names[i].residue);
    let mut residues: Vec<std::ops::Range<usize>> = Vec::new();
    for i in 0..n {
        match residues.last_mut() {
            Some(r) if key(r.start) == key(i) && !records[i - 1].last_of_chain => r.end = i + 1,
            _ => residues.push(i..i + 1),
        }
    }
    let mut guessed = 0;
    let mut add = |i: usize, j: usize| bonds.insert((i.min(j) as u32, i.max(j) as u32));
    let find = |r: &std::ops::Range<usize>, name: &str| r.clone().find(|&i| system.names[i].atom == name);
    for (k, residue) in residues.iter().enumerate() {
        let name = system.names[residue.start].residue.as_str();
        let core = if name.len() == 4 && name.starts_with(['N', 'C']) { name.get(1..).unwrap_or(name) } else { name };
        let template = SIDE_CHAINS.iter().find(|(names, _)| names.contains(&name) || names.contains(&core));
        if let Some((_, side_chain)) = template {
            for pair in BACKBONE.split(' ').chain(side_chain.split_whitespace()) {
                if let Some((i, j)) = pair.split_once('-').and_then(|(a, b)| Some((find(residue, a)?, find(residue, b)?))) {
                    add(i, j);
                }
            }
        } else if residue.len() > 1 && !residue.clone().any(|i| bonded[i]) {
            for i in residue.clone() {
                for j in i + 1..residue.end {
                    if let (Some(a), Some(b)) = (radius(system.types[i]), radius(system.types[j]))
                        && (system.types[i] != 1 && system.types[j] != 1)
                        && distance(i, j) < a + b + 0.045
                    {
                        guessed += usize::from(add(i, j));
                    }
                }
            }
        }
        for i in residue.clone().filter(|&i| system.types[i] == 1 && !bonded[i]) {
            let nearest = residue.clone().filter(|&j| system.types[j] != 1).min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
            if let Some(j) = nearest.filter(|&j| distance(i, j) < 0.15) {
                add(i, j);
            }
        }
        let Some(next) = residues.get(k + 1) else { continue };
        let same_chain = !records[residue.end - 1].last_of_chain && system.names[residue.start].chain == system.names[next.start].chain;
        for (from, to) in [("C", "N"), ("O3'", "P")] {
            if let (true, Some(i), Some(j)) = (same_chain, find(residue, from), find(next, to))
                && distance(i, j) < 0.25
            {
                add(i, j);
            }
        }
    }
    let sulphurs: Vec<usize> =
        (0..n).filter(|&i| system.names[i].atom == "SG" && matches!(system.names[i].residue.as_str(), "CYS" | "CYX")).collect();
    for (k, &i) in sulphurs.iter().enumerate() {
        for &j in sulphurs[k + 1..].iter().filter(|&&j| distance(i, j) < 0.25) {
            add(i, j);
        }
    }
    if guessed > 0 {
        warn(&format!(
            "{}: {guessed} bonds in residues that are neither standard nor described by the file are taken from distances",
            path.display()
        ));
    }
    bonds.into_iter().collect()
}
