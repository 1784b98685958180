//! From the text of a SMILES string to a graph: rings of aromatic bonds, hydrogens by valence, handedness, E/Z.

use super::kekule::{half_valence, set_double_bonds};
use super::parse::{Beside, Link, Parsed, Written, parse};
use super::valence::implied_hydrogens;
use crate::molecule::element::element;
use crate::molecule::error::{Error, Result};
use crate::molecule::graph::{Atom, Bond, Chirality, DoubleBondStereo, Graph};
use crate::molecule::rings::Rings;
use crate::molecule::sanitize::{check_valences, clean_up, radicals, separate};

impl Graph {
    /// The molecule that a SMILES string describes. Hydrogens are counted on their atoms
    /// ([`with_hydrogens`](Graph::with_hydrogens) makes atoms of them); aromaticity is found anew by RDKit's model, and
    /// handedness that is none is taken away.
    ///
    /// # Errors
    /// [`Error::Smiles`] with the position of what cannot be understood or has no valence or Kekulé structure.
    pub fn from_smiles(text: &str) -> Result<Graph> {
        let parsed = parse(text)?;
        let fail = |position: usize, what: String| Error::Smiles { text: text.chars().take(200).collect(), position, what };
        let place = |e: Error| match e {
            Error::Valence { atom, .. } | Error::Kekule { atom, .. } => fail(parsed.atoms[atom].position, e.to_string()),
            e => e,
        };
        let mut graph = skeleton(&parsed);
        let bracket: Vec<bool> = parsed.atoms.iter().map(|a| a.hydrogens.is_some()).collect();
        clean_aromatic_oxides(&mut graph);
        clean_up(&mut graph);
        for i in (0..graph.len()).filter(|&i| !bracket[i]) {
            let hydrogens = implicit_hydrogens(&graph, i).map_err(place)?;
            graph.atom_mut(i).hydrogens = hydrogens;
        }
        set_double_bonds(&mut graph, &bracket).map_err(place)?;
        check_valences(&graph).map_err(place)?;
        for i in (0..graph.len()).filter(|&i| bracket[i]) {
            let atom = graph.atoms()[i];
            graph.atom_mut(i).radicals = radicals(atom.element, atom.charge, graph.valence(i), graph.degree(i));
        }
        let rings = graph.find_aromaticity();
        for (i, symbol) in parsed.atoms.iter().enumerate() {
            if let Some(left) = symbol.turn {
                graph.atom_mut(i).chirality = handedness(&graph, i, &symbol.around, left);
            }
        }
        directions(&mut graph, &parsed.links).map_err(|(position, what)| fail(position, what))?;
        graph.clean_stereo(&rings);
        Ok(graph)
    }
}

/// Atoms and bonds as written; aromatic bonds are those between aromatic atoms that share a ring.
fn skeleton(parsed: &Parsed) -> Graph {
    let atoms: Vec<Atom> = parsed
        .atoms
        .iter()
        .map(|a| Atom {
            charge: a.charge,
            hydrogens: a.hydrogens.unwrap_or(0),
            isotope: a.isotope,
            aromatic: a.aromatic,
            ..Atom::new(a.element)
        })
        .collect();
    let both = |l: &Link| atoms[l.from].aromatic && atoms[l.to].aromatic;
    let aromatic: Vec<bool> =
        parsed.links.iter().map(|l| both(l) && matches!(l.written, Written::Default | Written::Aromatic | Written::Direction(_))).collect();
    let order = |l: &Link| if let Written::Order(o) = l.written { o } else { 1 };
    let bonds = parsed.links.iter().map(|l| Bond::new(l.from as u32, l.to as u32, order(l))).collect();
    let mut graph = Graph::new(atoms, bonds);
    if aromatic.iter().any(|a| *a) {
        let rings = Rings::of(&graph);
        for (b, _) in aromatic.iter().enumerate().filter(|(_, a)| **a) {
            graph.bond_mut(b).aromatic = rings.of_bond[b] > 0;
        }
    }
    graph
}

/// `c1cccn1=O`-like oxides: an aromatic nitrogen of valence 5 becomes a charged one.
fn clean_aromatic_oxides(graph: &mut Graph) {
    for i in 0..graph.len() {
        let atom = graph.atoms()[i];
        if atom.aromatic && atom.element == 7 && atom.charge == 0 && half_valence(graph, i) == 10 {
            separate(graph, i, 8, 2);
        }
    }
}

/// Hydrogens that fill the valence of an atom of the organic subset.
fn implicit_hydrogens(graph: &Graph, i: usize) -> Result<u8> {
    let atom = graph.atoms()[i];
    let halves = half_valence(graph, i);
    let beside_aromatic = graph.neighbours(i).iter().any(|n| graph.bonds()[n.bond as usize].aromatic);
    let too_many = Error::Valence { atom: i, symbol: element(atom.element).symbol, valence: halves as usize / 2 };
    implied_hydrogens(atom.element, atom.charge, atom.aromatic, beside_aromatic, halves).ok_or(too_many)
}

/// Handedness in the order of the bonds, from that of the text.
fn handedness(graph: &Graph, i: usize, around: &[Beside], left: bool) -> Chirality {
    // Position of each in the order of bonds; the hydrogen comes last.
    let place = |b: &Beside| match b {
        Beside::Atom(a) => graph.neighbours(i).iter().position(|n| n.atom as usize == *a).unwrap_or(0),
        Beside::Hydrogen | Beside::Opening(_) => usize::MAX,
    };
    let places: Vec<usize> = around.iter().map(place).collect();
    let swaps: usize = (0..places.len()).map(|a| places[a + 1..].iter().filter(|&&b| b < places[a]).count()).sum();
    (if left { Chirality::CounterClockwise } else { Chirality::Clockwise }).after_swaps(swaps)
}

/// E/Z from the directions of single bonds beside double bonds.
fn directions(graph: &mut Graph, links: &[Link]) -> std::result::Result<(), (usize, String)> {
    // Neighbours of `end` that a direction places, and whether they lie above it.
    let placed = |end: usize, other: usize| -> Vec<(usize, bool, usize)> {
        let mut found = Vec::new();
        for l in links.iter().filter(|l| l.from == end || l.to == end) {
            let Written::Direction(up) = l.written else { continue };
            let neighbour = if l.from == end { l.to } else { l.from };
            if neighbour != other {
                // `x/y` means that y is above x.
                found.push((neighbour, up == (l.from == end), l.position));
            }
        }
        found
    };
    for b in 0..graph.bonds().len() {
        let bond = graph.bonds()[b];
        let (i, j) = (bond.atoms.0 as usize, bond.atoms.1 as usize);
        if bond.order != 2 || bond.aromatic {
            continue;
        }
        let (left, right) = (placed(i, j), placed(j, i));
        for side in [&left, &right] {
            if let [a, second, ..] = side[..]
                && a.1 == second.1
            {
                return Err((second.2, "this bond lies on the same side as another one of its double bond".into()));
            }
        }
        if let (Some(&(a, up_a, _)), Some(&(c, up_c, _))) = (left.first(), right.first()) {
            graph.bond_mut(b).stereo = Some(DoubleBondStereo { references: (a as u32, c as u32), same_side: up_a == up_c });
        }
    }
    Ok(())
}
