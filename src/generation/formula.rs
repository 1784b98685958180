//! Which atoms generated molecules have.

use crate::io::elements;
use scorefield_integrators::{AtomName, Noise, Purpose, System};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many of QM9's training molecules have which formula.
static QM9: &str = include_str!("../../data/models/qm9/compositions.json");

/// Most atoms of one formula.
const MOST: usize = 4096;

/// Atomic numbers of a formula such as `C7H10O2`, element by element as it is written.
///
/// # Errors
/// What is wrong, and where (in characters from 0).
pub fn parse_formula(text: &str) -> Result<Vec<u32>, (usize, String)> {
    let chars: Vec<char> = text.trim().chars().collect();
    if chars.is_empty() {
        return Err((0, "the formula is empty; write for example C7H10O2".into()));
    }
    let mut types = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let start = at;
        if !chars[at].is_ascii_uppercase() {
            return Err((at, format!("`{}` begins no element; symbols are written as in C7H10O2, without brackets", chars[at])));
        }
        at += 1;
        while at < chars.len() && chars[at].is_ascii_lowercase() {
            at += 1;
        }
        let symbol: String = chars[start..at].iter().collect();
        let Some((number, _)) = elements::element(&symbol).filter(|_| symbol != "D") else {
            return Err((start, format!("`{symbol}` is not the symbol of an element")));
        };
        let digits = at;
        while at < chars.len() && chars[at].is_ascii_digit() {
            at += 1;
        }
        let count: String = chars[digits..at].iter().collect();
        let count = if count.is_empty() { Some(1) } else { count.parse::<usize>().ok() };
        match count.filter(|&n| n > 0 && types.len() + n <= MOST) {
            Some(n) => types.extend(std::iter::repeat_n(number, n)),
            None => return Err((digits, format!("the number of atoms is 1 to {MOST} in all"))),
        }
    }
    Ok(types)
}

/// The formula of atoms in Hill's order: carbon, hydrogen, then the others by symbol.
pub fn formula(types: &[u32]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for &t in types {
        let symbol = elements::symbol(t);
        match counts.iter_mut().find(|c| c.0 == symbol) {
            Some(c) => c.1 += 1,
            None => counts.push((symbol, 1)),
        }
    }
    let carbon = types.contains(&6);
    counts.sort_by_key(|&(s, _)| match s {
        "C" if carbon => (0, s),
        "H" if carbon => (1, s),
        _ => (2, s),
    });
    counts.iter().map(|&(s, n)| if n == 1 { s.to_owned() } else { format!("{s}{n}") }).collect()
}

/// A molecule of these elements with nothing else known.
pub fn molecule(types: &[u32]) -> System {
    System {
        types: types.to_vec(),
        masses: types.iter().map(|&t| elements::mass(t).unwrap_or(1.0)).collect(),
        names: types.iter().map(|&t| AtomName { atom: elements::symbol(t).into(), ..AtomName::default() }).collect(),
        ..System::particles(formula(types), types.len(), 1.0)
    }
}

/// What is drawn from: every entry is as likely as the others, so that a set of structures is its own histogram.
#[derive(Clone, Debug, Default)]
pub struct Compositions {
    systems: Vec<Arc<System>>,
    /// Index of a system per entry.
    entries: Vec<u32>,
}

impl Compositions {
    /// Those of QM9's molecules without fluorine (the training part), as often as there.
    ///
    /// # Errors
    /// Where the table that this program brings along is damaged.
    pub fn qm9() -> Result<Self, String> {
        let table: BTreeMap<String, usize> = serde_json::from_str(QM9).map_err(|e| format!("table of formulas: {e}"))?;
        let mut set = Compositions::default();
        for (text, count) in table {
            let types = parse_formula(&text).map_err(|(_, e)| format!("table of formulas: {e}"))?;
            set.push(&types);
            let index = set.systems.len() as u32 - 1;
            set.entries.extend(std::iter::repeat_n(index, count.saturating_sub(1)));
        }
        Ok(set)
    }

    /// One more entry with these atomic numbers.
    pub fn push(&mut self, types: &[u32]) {
        let known = self.systems.iter().position(|s| s.types == types);
        let index = known.unwrap_or_else(|| {
            self.systems.push(Arc::new(molecule(types)));
            self.systems.len() - 1
        });
        self.entries.push(index as u32);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Different compositions.
    pub fn systems(&self) -> &[Arc<System>] {
        &self.systems
    }

    /// The composition of molecule `id`; there must be an entry.
    pub fn draw(&self, noise: Noise, id: u32) -> &Arc<System> {
        let place = (noise.uniform(0, id, 0, Purpose::Composition) * self.entries.len() as f64) as usize;
        &self.systems[self.entries[place.min(self.entries.len() - 1)] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_of_qm9_are_as_frequent_as_there() {
        let set = Compositions::qm9().unwrap();
        assert_eq!((set.len(), set.systems().len()), (98_412, 460));
        let most_frequent = set.entries.iter().filter(|&&k| set.systems[k as usize].name == "C7H10O2").count();
        assert_eq!(most_frequent, 4660);
    }

    #[test]
    fn formulas_are_read_and_written() {
        assert_eq!(parse_formula("CH3OH").unwrap(), [6, 1, 1, 1, 8, 1]);
        assert_eq!(parse_formula(" C2Cl2 ").unwrap(), [6, 6, 17, 17]);
        assert_eq!(formula(&parse_formula("OH10C7O").unwrap()), "C7H10O2");
        assert_eq!(formula(&parse_formula("OH2").unwrap()), "H2O");
        for (text, at, part) in [
            ("", 0, "empty"),
            ("C7h10", 0, "Ch"),
            ("C7Q2", 2, "`Q`"),
            ("C7(OH)2", 2, "brackets"),
            ("C0", 1, "number"),
            ("C2H99999999999999999999", 3, "number"),
            ("CD3", 1, "`D`"),
        ] {
            match parse_formula(text) {
                Err((position, what)) if text != "C7h10" => assert!(position == at && what.contains(part), "{text}: {position} {what}"),
                Err((_, what)) => assert!(!what.is_empty()),
                Ok(types) => panic!("{text}: {types:?}"),
            }
        }
    }

    #[test]
    fn a_set_is_its_own_histogram() {
        let mut set = Compositions::default();
        for text in ["CH4", "CH4", "CH4", "OH2"] {
            set.push(&parse_formula(text).unwrap());
        }
        assert_eq!((set.len(), set.systems().len()), (4, 2));
        let water = (0..4000).filter(|&id| set.draw(Noise::new(1), id).name == "H2O").count();
        // A quarter, with a standard deviation of 27.
        assert!((water as i64 - 1000).abs() < 110, "{water}");
    }
}
