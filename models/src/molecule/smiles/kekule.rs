//! Double bonds for aromatic notation: a perfect matching of the atoms that must have one.

use super::valence::whole_valence;
use crate::molecule::element::element;
use crate::molecule::error::{Error, Result};
use crate::molecule::graph::Graph;
use crate::molecule::matching::Matcher;

/// Sum of bond orders of atom `i` in halves: aromatic bonds are one and a half. Hydrogens are counted.
pub(super) fn half_valence(graph: &Graph, i: usize) -> i32 {
    let bond = |b: u32| {
        let bond = &graph.bonds()[b as usize];
        if bond.aromatic { 3 } else { 2 * i32::from(bond.order) }
    };
    graph.neighbours(i).iter().map(|n| bond(n.bond)).sum::<i32>() + 2 * i32::from(graph.atoms()[i].hydrogens)
}

/// Sets the orders of aromatic bonds, all of which are 1 before. Charges and hydrogens are known; those of a `bracket` atom
/// are all it has, so that it may be left with an unpaired electron.
///
/// # Errors
/// [`Error::Kekule`] with an atom that is left over.
pub(super) fn set_double_bonds(graph: &mut Graph, bracket: &[bool]) -> Result<()> {
    let wants: Vec<bool> = (0..graph.len()).map(|i| wants_double_bond(graph, i, bracket[i])).collect();
    let mut edges = Vec::new();
    for bond in graph.bonds() {
        if bond.aromatic && wants[bond.atoms.0 as usize] && wants[bond.atoms.1 as usize] {
            edges.push((bond.atoms.0.min(bond.atoms.1), bond.atoms.0.max(bond.atoms.1)));
        }
    }
    edges.sort_unstable();
    let mut matcher = Matcher::default();
    let mate = matcher.maximum(graph.len(), &edges);
    if let Some(atom) = (0..graph.len()).find(|&i| wants[i] && mate[i] == u32::MAX) {
        return Err(Error::Kekule { atom, symbol: element(graph.atoms()[atom].element).symbol });
    }
    for b in 0..graph.bonds().len() {
        let bond = graph.bonds()[b];
        if bond.aromatic && mate[bond.atoms.0 as usize] == bond.atoms.1 {
            graph.bond_mut(b).order = 2;
        }
    }
    Ok(())
}

/// An aromatic atom whose valence needs one more bond than its neighbours and hydrogens give.
fn wants_double_bond(graph: &Graph, i: usize, bracket: bool) -> bool {
    let atom = graph.atoms()[i];
    if !atom.aromatic {
        return false;
    }
    let own = element(atom.element);
    // Elements left of carbon gain a bond with an electron, carbon loses one either way.
    let charge = match atom.element {
        5 | 13 => -i32::from(atom.charge),
        6 => -i32::from(atom.charge).abs(),
        _ => i32::from(atom.charge),
    };
    let single = graph.valence(i) as i32;
    let total = whole_valence(atom.element, atom.charge, true, half_valence(graph, i));
    let mut valence = own.default_valence() + charge;
    for v in own.valences.iter().skip(1).filter(|v| **v > 0) {
        if total <= valence {
            break;
        }
        valence = v + charge;
    }
    (graph.total_degree(i) as i32) < valence && (valence == single + 1 || (bracket && valence == single + 2))
}
