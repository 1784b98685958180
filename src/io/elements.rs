//! Chemical elements: symbols, standard atomic weights, and careful guesses from atom names.

/// Symbol and standard atomic weight in u (IUPAC 2016; for elements without stable isotopes the mass of the most
/// stable one), by atomic number from 1.
#[rustfmt::skip]
const ELEMENTS: [(&str, f64); 118] = [
    ("H", 1.008), ("He", 4.002602), ("Li", 6.94), ("Be", 9.0121831), ("B", 10.81), ("C", 12.011), ("N", 14.007),
    ("O", 15.999), ("F", 18.998403163), ("Ne", 20.1797), ("Na", 22.98976928), ("Mg", 24.305), ("Al", 26.9815385),
    ("Si", 28.085), ("P", 30.973761998), ("S", 32.06), ("Cl", 35.45), ("Ar", 39.948), ("K", 39.0983), ("Ca", 40.078),
    ("Sc", 44.955908), ("Ti", 47.867), ("V", 50.9415), ("Cr", 51.9961), ("Mn", 54.938044), ("Fe", 55.845),
    ("Co", 58.933194), ("Ni", 58.6934), ("Cu", 63.546), ("Zn", 65.38), ("Ga", 69.723), ("Ge", 72.63),
    ("As", 74.921595), ("Se", 78.971), ("Br", 79.904), ("Kr", 83.798), ("Rb", 85.4678), ("Sr", 87.62),
    ("Y", 88.90584), ("Zr", 91.224), ("Nb", 92.90637), ("Mo", 95.95), ("Tc", 97.90721), ("Ru", 101.07),
    ("Rh", 102.9055), ("Pd", 106.42), ("Ag", 107.8682), ("Cd", 112.414), ("In", 114.818), ("Sn", 118.71),
    ("Sb", 121.76), ("Te", 127.6), ("I", 126.90447), ("Xe", 131.293), ("Cs", 132.90545196), ("Ba", 137.327),
    ("La", 138.90547), ("Ce", 140.116), ("Pr", 140.90766), ("Nd", 144.242), ("Pm", 144.91276), ("Sm", 150.36),
    ("Eu", 151.964), ("Gd", 157.25), ("Tb", 158.92535), ("Dy", 162.5), ("Ho", 164.93033), ("Er", 167.259),
    ("Tm", 168.93422), ("Yb", 173.054), ("Lu", 174.9668), ("Hf", 178.49), ("Ta", 180.94788), ("W", 183.84),
    ("Re", 186.207), ("Os", 190.23), ("Ir", 192.217), ("Pt", 195.084), ("Au", 196.966569), ("Hg", 200.592),
    ("Tl", 204.38), ("Pb", 207.2), ("Bi", 208.9804), ("Po", 208.98243), ("At", 209.98715), ("Rn", 222.01758),
    ("Fr", 223.01974), ("Ra", 226.02541), ("Ac", 227.02775), ("Th", 232.0377), ("Pa", 231.03588), ("U", 238.02891),
    ("Np", 237.04817), ("Pu", 244.06421), ("Am", 243.06138), ("Cm", 247.07035), ("Bk", 247.07031), ("Cf", 251.07959),
    ("Es", 252.083), ("Fm", 257.09511), ("Md", 258.09843), ("No", 259.101), ("Lr", 262.11), ("Rf", 267.122),
    ("Db", 268.126), ("Sg", 271.134), ("Bh", 270.133), ("Hs", 269.1338), ("Mt", 278.156), ("Ds", 281.165),
    ("Rg", 281.166), ("Cn", 285.177), ("Nh", 286.182), ("Fl", 289.19), ("Mc", 289.194), ("Lv", 293.204),
    ("Ts", 293.208), ("Og", 294.214),
];

/// Mass of deuterium in u.
const DEUTERIUM: f64 = 2.014_101_778;

/// Amino acids, nucleotides, caps and water as PDB files name them: in these, an atom's name begins with its element.
const STANDARD_RESIDUES: &[&str] = &[
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR",
    "VAL", "HID", "HIE", "HIP", "HSD", "HSE", "HSP", "CYX", "CYM", "ASH", "GLH", "LYN", "ACE", "NME", "NHE", "NH2", "NMA", "A", "C", "G",
    "U", "T", "DA", "DC", "DG", "DT", "RA", "RC", "RG", "RU", "HOH", "WAT", "SOL", "TIP3", "TIP", "TP3", "SPC",
];

/// Symbol of an atomic number; `X` where there is none.
pub fn symbol(number: u32) -> &'static str {
    match number {
        1..=118 => ELEMENTS[number as usize - 1].0,
        _ => "X",
    }
}

/// Standard atomic weight in u.
pub fn mass(number: u32) -> Option<f64> {
    (1..=118).contains(&number).then(|| ELEMENTS[number as usize - 1].1)
}

/// Atomic number and mass (u) of a symbol in any case; `D` is hydrogen with the mass of deuterium.
pub fn element(symbol: &str) -> Option<(u32, f64)> {
    if symbol.eq_ignore_ascii_case("D") {
        return Some((1, DEUTERIUM));
    }
    let i = ELEMENTS.iter().position(|(s, _)| s.eq_ignore_ascii_case(symbol))?;
    Some((i as u32 + 1, ELEMENTS[i].1))
}

/// The element whose standard weight is within 0.02 u of `mass`, for files that give masses only. Isotopes and
/// repartitioned masses find none.
#[cfg_attr(not(feature = "chemfiles"), allow(dead_code))]
pub(crate) fn from_mass(mass: f64) -> Option<(u32, f64)> {
    let (i, (_, m)) = ELEMENTS.iter().enumerate().min_by(|a, b| (a.1.1 - mass).abs().total_cmp(&(b.1.1 - mass).abs()))?;
    ((m - mass).abs() < 0.02).then_some((i as u32 + 1, *m))
}

/// Element of an atom from its name and residue, for files without an element column (old PDB, GRO).
///
/// In standard residues the first letter decides (`CA` of `ALA` is carbon); in residues named like the atom it is an ion (`CA`
/// of `CA` is calcium). Elsewhere the name must leave one reading.
///
/// # Errors
/// The readings, where there are none or several.
pub(crate) fn from_name(name: &str, residue: &str) -> Result<(u32, f64), String> {
    let letters: String = name.chars().skip_while(|c| !c.is_ascii_alphabetic()).take_while(char::is_ascii_alphabetic).collect();
    let one = letters.get(..1).and_then(element);
    let two = letters.get(..2).and_then(element);
    let residue_letters = residue.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
    let upper = residue.to_ascii_uppercase();
    // Terminal variants (NALA, CALA) are named so by Amber.
    let core =
        if upper.len() == 4 && matches!(upper.as_bytes().first(), Some(b'N' | b'C')) { upper.get(1..).unwrap_or(&upper) } else { &upper };
    if STANDARD_RESIDUES.contains(&upper.as_str()) || STANDARD_RESIDUES.contains(&core) {
        return one.ok_or_else(|| format!("`{name}` does not begin with an element"));
    }
    if upper == "MSE" && letters.eq_ignore_ascii_case("SE") {
        return two.ok_or_else(|| format!("`{name}` is no element"));
    }
    if !letters.is_empty() && letters.eq_ignore_ascii_case(residue_letters) {
        return element(&letters).or(two.filter(|_| letters.len() > 2)).ok_or_else(|| format!("`{name}` is no element"));
    }
    match (one, two) {
        (Some(e), None) | (None, Some(e)) => Ok(e),
        (Some(a), Some(b)) => Err(format!("`{name}` may be {} or {}", symbol(a.0), symbol(b.0))),
        (None, None) => Err(format!("`{name}` does not begin with an element")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_and_masses() {
        assert_eq!(element("C"), Some((6, 12.011)));
        assert_eq!(element("cl").map(|e| e.0), Some(17));
        assert_eq!(element("D"), Some((1, DEUTERIUM)));
        assert_eq!(element("Xx"), None);
        assert_eq!(symbol(118), "Og");
        assert_eq!(symbol(0), "X");
        assert_eq!(mass(119), None);
        assert_eq!(from_mass(15.9994).map(|e| e.0), Some(8));
        assert_eq!(from_mass(4.03), None, "a repartitioned hydrogen is not helium");
    }

    #[test]
    fn names_give_elements_only_where_they_must() {
        let number = |name: &str, residue: &str| from_name(name, residue).map(|e| e.0);
        assert_eq!(number("CA", "ALA"), Ok(6));
        assert_eq!(number("CA", "CA"), Ok(20));
        assert_eq!(number("CA", "NALA"), Ok(6));
        assert_eq!(number("1HB", "ALA"), Ok(1));
        assert_eq!(number("HG11", "VAL"), Ok(1));
        assert_eq!(number("NE2", "HIS"), Ok(7));
        assert_eq!(number("OW", "SOL"), Ok(8));
        assert_eq!(number("SE", "MSE"), Ok(34));
        assert_eq!(number("NA", "NA+"), Ok(11));
        assert_eq!(number("CL-", "CL-"), Ok(17));
        assert_eq!(number("C12", "LIG"), Ok(6));
        assert_eq!(number("CX", "LIG"), Ok(6));
        assert_eq!(number("ZN1", "LIG"), Ok(30));
        assert!(number("CA", "LIG").unwrap_err().contains("C or Ca"));
        assert!(number("Q1", "LIG").is_err());
        assert!(number("", "LIG").is_err());
    }
}
