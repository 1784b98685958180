//! Valences of atoms as SMILES has them: aromatic bonds count one and a half, and atoms without brackets fill up with
//! hydrogens.

use crate::molecule::element::{Element, element};
use crate::molecule::graph::Graph;
use crate::molecule::sanitize::stays_hypervalent;

/// Sum of bond orders that an atom has once double bonds are set, from the sum of `halves` in which an aromatic bond has
/// three: an aromatic atom is not more than 1.5 above one of its valences.
pub(super) fn whole_valence(number: u8, charge: i8, aromatic: bool, halves: i32) -> i32 {
    let like = Element::isoelectronic(number, charge);
    let usual = like.default_valence();
    if aromatic && usual >= 0 && halves > 2 * usual {
        let allowed = like.valences.iter().copied().rfind(|v| *v >= 0 && 2 * v <= halves).unwrap_or(usual);
        if halves - 2 * allowed <= 3 {
            return allowed;
        }
    }
    // A half is rounded up.
    (halves + 1) / 2
}

/// Hydrogens of an atom without brackets whose other bonds add up to `halves`; `None` where it has too many bonds. An atom
/// `beside_aromatic` bonds has its usual valence or none to fill.
pub(super) fn implied_hydrogens(number: u8, charge: i8, aromatic: bool, beside_aromatic: bool, halves: i32) -> Option<u8> {
    let used = whole_valence(number, charge, aromatic, halves);
    let usual = Element::isoelectronic(number, charge).default_valence();
    let hypervalent = stays_hypervalent(number, i32::from(number) - i32::from(charge));
    let like = if hypervalent { element(number) } else { Element::isoelectronic(number, charge) };
    let used = if hypervalent { used - i32::from(charge) } else { used };
    if aromatic || beside_aromatic {
        return if used <= usual { Some((usual - used) as u8) } else { like.valences.contains(&used).then_some(0) };
    }
    match like.valences.iter().find(|v| **v >= used) {
        Some(v) => Some((v - used) as u8),
        None => (like.largest_valence() == -1).then_some(0),
    }
}

impl Graph {
    /// Gives every atom without unpaired electrons the hydrogens that its valence asks for, as files without hydrogens mean it; where all
    /// are there nothing changes. Returns how many were added.
    pub fn imply_hydrogens(&mut self) -> usize {
        let mut added = 0;
        for i in 0..self.len() {
            let atom = self.atoms()[i];
            let halves = 2 * self.valence(i) as i32;
            // Lone atoms, ions among them, and metals are what they are.
            let left_alone = atom.radicals > 0 || self.degree(i) == 0 && atom.element != 6;
            let implied = implied_hydrogens(atom.element, atom.charge, false, false, halves).unwrap_or(0);
            if !left_alone && implied > 0 {
                self.atom_mut(i).hydrogens += implied;
                added += usize::from(implied);
            }
        }
        added
    }
}
