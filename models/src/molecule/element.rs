//! What chemistry needs to know of an element: symbol, covalent radius, outer electrons, allowed valences.
//!
//! Radii are those of Cordero et al. (Dalton Trans. 2008, 2832; low spin, sp3 carbon). Valences are the list by which
//! RDKit judges bonds, so that both agree on what is a molecule.

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Element {
    /// Symbol.
    pub symbol: &'static str,
    /// Covalent radius in Å.
    pub radius: f32,
    /// Electrons in the outer shell.
    pub outer: i32,
    /// Allowed valences, smallest first; −1 means that any is.
    pub valences: &'static [i32],
}

/// Largest atomic number that is known here.
pub const HEAVIEST: u8 = 86;

const fn row(symbol: &'static str, radius: f32, outer: i32, valences: &'static [i32]) -> Element {
    Element { symbol, radius, outer, valences }
}

/// By atomic number; entry 0 stands for none.
#[rustfmt::skip]
static ELEMENTS: [Element; HEAVIEST as usize + 1] = [
    row("*", 0.0, 0, &[-1]),
    row("H", 0.31, 1, &[1]),
    row("He", 0.28, 2, &[0]),
    row("Li", 1.28, 1, &[1, -1]),
    row("Be", 0.96, 2, &[2]),
    row("B", 0.84, 3, &[3]),
    row("C", 0.76, 4, &[4]),
    row("N", 0.71, 5, &[3]),
    row("O", 0.66, 6, &[2]),
    row("F", 0.57, 7, &[1]),
    row("Ne", 0.58, 8, &[0]),
    row("Na", 1.66, 1, &[1, -1]),
    row("Mg", 1.41, 2, &[2, -1]),
    row("Al", 1.21, 3, &[3]),
    row("Si", 1.11, 4, &[4]),
    row("P", 1.07, 5, &[3, 5]),
    row("S", 1.05, 6, &[2, 4, 6]),
    row("Cl", 1.02, 7, &[1]),
    row("Ar", 1.06, 8, &[0]),
    row("K", 2.03, 1, &[1, -1]),
    row("Ca", 1.76, 2, &[2, -1]),
    row("Sc", 1.7, 3, &[-1]),
    row("Ti", 1.6, 4, &[-1]),
    row("V", 1.52, 5, &[-1]),
    row("Cr", 1.39, 6, &[-1]),
    row("Mn", 1.39, 7, &[-1]),
    row("Fe", 1.32, 8, &[-1]),
    row("Co", 1.26, 9, &[-1]),
    row("Ni", 1.24, 10, &[-1]),
    row("Cu", 1.32, 11, &[-1]),
    row("Zn", 1.22, 2, &[-1]),
    row("Ga", 1.22, 3, &[3]),
    row("Ge", 1.2, 4, &[4]),
    row("As", 1.19, 5, &[3, 5]),
    row("Se", 1.2, 6, &[2, 4, 6]),
    row("Br", 1.2, 7, &[1]),
    row("Kr", 1.16, 8, &[0]),
    row("Rb", 2.2, 1, &[1, -1]),
    row("Sr", 1.95, 2, &[2, -1]),
    row("Y", 1.9, 3, &[-1]),
    row("Zr", 1.75, 4, &[-1]),
    row("Nb", 1.64, 5, &[-1]),
    row("Mo", 1.54, 6, &[-1]),
    row("Tc", 1.47, 7, &[-1]),
    row("Ru", 1.46, 8, &[-1]),
    row("Rh", 1.42, 9, &[-1]),
    row("Pd", 1.39, 10, &[-1]),
    row("Ag", 1.45, 11, &[-1]),
    row("Cd", 1.44, 2, &[-1]),
    row("In", 1.42, 3, &[3]),
    row("Sn", 1.39, 4, &[2, 4]),
    row("Sb", 1.39, 5, &[3, 5]),
    row("Te", 1.38, 6, &[2, 4, 6]),
    row("I", 1.39, 7, &[1, 3, 5]),
    row("Xe", 1.4, 8, &[0, 2, 4, 6]),
    row("Cs", 2.44, 1, &[1]),
    row("Ba", 2.15, 2, &[2, -1]),
    row("La", 2.07, 3, &[-1]),
    row("Ce", 2.04, 4, &[-1]),
    row("Pr", 2.03, 3, &[-1]),
    row("Nd", 2.01, 4, &[-1]),
    row("Pm", 1.99, 5, &[-1]),
    row("Sm", 1.98, 6, &[-1]),
    row("Eu", 1.98, 7, &[-1]),
    row("Gd", 1.96, 8, &[-1]),
    row("Tb", 1.94, 9, &[-1]),
    row("Dy", 1.92, 10, &[-1]),
    row("Ho", 1.92, 11, &[-1]),
    row("Er", 1.89, 12, &[-1]),
    row("Tm", 1.9, 13, &[-1]),
    row("Yb", 1.87, 14, &[-1]),
    row("Lu", 1.87, 15, &[-1]),
    row("Hf", 1.75, 4, &[-1]),
    row("Ta", 1.7, 5, &[-1]),
    row("W", 1.62, 6, &[-1]),
    row("Re", 1.51, 7, &[-1]),
    row("Os", 1.44, 8, &[-1]),
    row("Ir", 1.41, 9, &[-1]),
    row("Pt", 1.36, 10, &[-1]),
    row("Au", 1.36, 11, &[-1]),
    row("Hg", 1.32, 2, &[-1]),
    row("Tl", 1.45, 3, &[-1]),
    row("Pb", 1.46, 4, &[2, 4]),
    row("Bi", 1.48, 5, &[3, 5]),
    row("Po", 1.4, 6, &[2, 4, 6]),
    row("At", 1.5, 7, &[1, 3, 5]),
    row("Rn", 1.5, 8, &[0]),
];

impl Element {
    /// The element with atomic number `number`; `None` where it is 0 or above [`HEAVIEST`].
    pub fn of(number: u8) -> Option<&'static Element> {
        (1..=HEAVIEST).contains(&number).then(|| &ELEMENTS[number as usize])
    }

    /// Atomic number of a symbol, written as usual (`Cl`).
    pub fn number(symbol: &str) -> Option<u8> {
        (1..=HEAVIEST).find(|&z| ELEMENTS[z as usize].symbol == symbol)
    }

    /// The element that an atom of `number` and `charge` has the electrons of, held within the table; entry 0 where the
    /// charge takes all electrons.
    pub(super) fn isoelectronic(number: u8, charge: i8) -> &'static Element {
        &ELEMENTS[(i32::from(number) - i32::from(charge)).clamp(0, i32::from(HEAVIEST)) as usize]
    }

    /// The usual valence; −1 where there is none.
    pub(super) fn default_valence(&self) -> i32 {
        self.valences[0]
    }

    /// The largest valence; −1 where any is allowed.
    pub(super) fn largest_valence(&self) -> i32 {
        self.valences[self.valences.len() - 1]
    }
}

/// Element `number`, which the caller has checked; hydrogen's neighbour 0 for anything unknown.
pub(super) fn element(number: u8) -> &'static Element {
    &ELEMENTS[usize::from(number.min(HEAVIEST))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_their_numbers_say() {
        for (z, symbol) in [(1, "H"), (6, "C"), (17, "Cl"), (35, "Br"), (53, "I"), (78, "Pt"), (86, "Rn")] {
            assert_eq!(Element::of(z).map(|e| e.symbol), Some(symbol));
            assert_eq!(Element::number(symbol), Some(z));
        }
        assert_eq!(Element::of(0), None);
        assert_eq!(Element::of(87), None);
        assert_eq!(Element::isoelectronic(7, 1).symbol, "C");
        assert_eq!(Element::isoelectronic(1, 1).symbol, "*");
    }
}
