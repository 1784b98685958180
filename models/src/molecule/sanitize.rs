//! Checks and repairs that make a graph with bond orders a molecule: hypervalent notations, valences, radicals.
//!
//! The rules are RDKit's `sanitizeMol`, so that both call the same graphs valid.

use super::element::{Element, element};
use super::error::{Error, Result};
use super::graph::Graph;

/// Rewrites hypervalent notations as charges: nitro groups, azides, diazo, `C=P(=O)`, halogen oxyacids.
pub(super) fn clean_up(graph: &mut Graph) {
    let mut hypervalent = Vec::new();
    for i in 0..graph.len() {
        let neutral_nitrogen = graph.atoms()[i].element == 7 && graph.atoms()[i].charge == 0;
        if neutral_nitrogen && graph.valence(i) == 5 {
            hypervalent.push(i);
            separate(graph, i, 8, 2);
        }
    }
    for i in hypervalent {
        separate(graph, i, 7, 3);
    }
    for i in 0..graph.len() {
        match graph.atoms()[i].element {
            15 => phosphorus(graph, i),
            17 | 35 | 53 => halogen(graph, i),
            _ => {}
        }
    }
}

/// The first neutral neighbour of `i` that is `partner` and bonded with `order` takes the charge −1 and the bond one order
/// less.
pub(super) fn separate(graph: &mut Graph, i: usize, partner: u8, order: u8) {
    let found = graph.neighbours(i).iter().copied().find(|n| {
        let other = graph.atoms()[n.atom as usize];
        other.element == partner && other.charge == 0 && graph.bonds()[n.bond as usize].order == order
    });
    if let Some(n) = found {
        graph.bond_mut(n.bond as usize).order -= 1;
        graph.atom_mut(i).charge = 1;
        graph.atom_mut(n.atom as usize).charge = -1;
    }
}

/// `C=P(=O)X` becomes `C=[P+]([O-])X`.
fn phosphorus(graph: &mut Graph, i: usize) {
    if graph.atoms()[i].charge != 0 || graph.valence(i) != 5 || graph.degree(i) != 3 {
        return;
    }
    let double = |n: &&super::Neighbour| graph.bonds()[n.bond as usize].order == 2;
    let carbon = graph
        .neighbours(i)
        .iter()
        .filter(double)
        .any(|n| matches!(graph.atoms()[n.atom as usize].element, 6 | 7) && graph.degree(n.atom as usize) >= 2);
    let oxygen = graph
        .neighbours(i)
        .iter()
        .filter(double)
        .rfind(|n| graph.atoms()[n.atom as usize].element == 8 && graph.atoms()[n.atom as usize].charge == 0)
        .copied();
    if let (Some(n), true) = (oxygen, carbon) {
        graph.bond_mut(n.bond as usize).order = 1;
        graph.atom_mut(i).charge = 1;
        graph.atom_mut(n.atom as usize).charge = -1;
    }
}

/// `X(=O)(=O)O` becomes `[X+2]([O-])([O-])O`.
fn halogen(graph: &mut Graph, i: usize) {
    let all_oxygen = graph.neighbours(i).iter().all(|n| graph.atoms()[n.atom as usize].element == 8);
    if graph.atoms()[i].charge != 0 || !matches!(graph.valence(i), 3 | 5 | 7) || !all_oxygen {
        return;
    }
    let mut charge = 0;
    for k in 0..graph.degree(i) {
        let n = graph.neighbours(i)[k];
        if graph.bonds()[n.bond as usize].order == 2 {
            graph.bond_mut(n.bond as usize).order = 1;
            graph.atom_mut(n.atom as usize).charge = -1;
            charge += 1;
        }
    }
    graph.atom_mut(i).charge = charge;
}

/// Atoms that stay hypervalent although their charge gives them the electrons of a halogen or noble gas.
pub(super) fn stays_hypervalent(number: u8, effective: i32) -> bool {
    (effective > 16 && matches!(number, 15 | 16)) || (effective > 34 && matches!(number, 33 | 34))
}

/// Checks that no atom has more bonds than it can.
///
/// # Errors
/// [`Error::Valence`] with the first atom that has.
pub(super) fn check_valences(graph: &Graph) -> Result<()> {
    for (i, atom) in graph.atoms().iter().enumerate() {
        let valence = graph.valence(i);
        let own = element(atom.element);
        let effective = if own.valences == [-1] { own } else { Element::isoelectronic(atom.element, atom.charge) };
        let mut largest = effective.largest_valence();
        let mut used = valence as i32;
        if stays_hypervalent(atom.element, i32::from(atom.element) - i32::from(atom.charge)) {
            largest = own.largest_valence();
            used -= i32::from(atom.charge);
        }
        if atom.element == 1 && atom.charge == -1 {
            largest = 2;
        }
        if largest >= 0 && own.largest_valence() >= 0 && used > largest {
            return Err(Error::Valence { atom: i, symbol: own.symbol, valence });
        }
    }
    Ok(())
}

/// Unpaired electrons of an atom from its valence (all bonds and hydrogens counted) and charge.
pub(super) fn radicals(number: u8, charge: i8, valence: usize, degree: usize) -> u8 {
    let own = element(number);
    let (charge, valence) = (i32::from(charge), valence as i32);
    if own.valences == [-1] {
        // A metal: bonds are no measure; alone, what is left of the outer shell counts by its parity.
        return if degree > 0 { 0 } else { ((own.outer - charge).max(0) % 2) as u8 };
    }
    let full = if number <= 2 { 2 } else { 8 };
    let mut open = full - own.outer - valence + charge;
    if open < 0 {
        open = 0;
        if own.valences.len() > 1 {
            open = own.valences.iter().map(|v| v - valence + charge).find(|r| *r >= 0).unwrap_or(0);
        }
    }
    let early = own.outer - valence - charge;
    if early >= 0 {
        open = open.min(early);
    }
    open as u8
}
