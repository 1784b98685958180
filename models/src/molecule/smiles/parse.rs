//! The text of a SMILES string, symbol by symbol: atoms, bonds, who follows whom. No chemistry yet.

use crate::molecule::element::Element;
use crate::molecule::error::{Error, Result};
use std::collections::BTreeMap;

/// Longest text that is read; far beyond any molecule that is simulated here.
const LONGEST: usize = 20_000;

/// Kind of a bond as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing: single, or aromatic between aromatic atoms.
    Default,
    /// `-`, `=`, `#`
    Order(u8),
    /// `:`
    Aromatic,
    /// `/` (true) or `\`
    Direction(bool),
}

/// A neighbour in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// An atom by its number.
    Atom(usize),
    /// The hydrogen of `[C@H]`.
    Hydrogen,
    /// A ring bond that is open: number in the list of openings.
    Opening(usize),
}

/// An atom as written.
#[derive(Clone, Debug)]
pub(super) struct Symbol {
    pub(super) element: u8,
    pub(super) aromatic: bool,
    pub(super) isotope: u16,
    pub(super) charge: i8,
    /// Hydrogens of a bracket atom; `None` for the organic subset, whose hydrogens follow from valence.
    pub(super) hydrogens: Option<u8>,
    /// `@` (true: counter-clockwise) or `@@`.
    pub(super) turn: Option<bool>,
    /// Neighbours in the order of the text.
    pub(super) around: Vec<Beside>,
    /// Place in the text, from 1.
    pub(super) position: usize,
}

/// A bond as written, in the direction of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) written: Written,
    /// Place in the text, from 1.
    pub(super) position: usize,
}

/// A whole text.
#[derive(Clone, Debug, Default)]
pub(super) struct Parsed {
    pub(super) atoms: Vec<Symbol>,
    /// Chain bonds in order, then ring bonds by number and order of closing.
    pub(super) links: Vec<Link>,
}

/// A ring bond that waits for its other end.
struct Opening {
    atom: usize,
    written: Written,
    /// Which opening of the text this is.
    serial: usize,
    position: usize,
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    parsed: Parsed,
    /// Atom that the next one is bonded to, and those at which branches began.
    last: Option<usize>,
    branches: Vec<(usize, usize)>,
    bond: Option<(Written, usize)>,
    open: BTreeMap<u32, Opening>,
    openings: usize,
    /// Ring bonds by number and order.
    rings: Vec<(u32, usize, Link)>,
}

/// Reads `text`.
///
/// # Errors
/// [`Error::Smiles`] with the position of the first thing that cannot be understood.
pub(super) fn parse(text: &str) -> Result<Parsed> {
    let mut parser = Parser {
        text,
        bytes: text.as_bytes(),
        at: 0,
        parsed: Parsed::default(),
        last: None,
        branches: Vec::new(),
        bond: None,
        open: BTreeMap::new(),
        openings: 0,
        rings: Vec::new(),
    };
    parser.run()?;
    Ok(parser.parsed)
}

impl Parser<'_> {
    fn fail<T>(&self, position: usize, what: impl Into<String>) -> Result<T> {
        let text: String = self.text.chars().take(200).collect();
        Err(Error::Smiles { text, position, what: what.into() })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, c: u8) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    /// Number of up to `most` digits.
    fn digits(&mut self, most: usize) -> Option<u32> {
        let start = self.at;
        while self.at < start + most && self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        self.text.get(start..self.at)?.parse().ok()
    }

    fn run(&mut self) -> Result<()> {
        if self.bytes.len() > LONGEST {
            return self.fail(1, format!("the text has {} characters; {LONGEST} are read", self.bytes.len()));
        }
        if self.bytes.is_empty() {
            return self.fail(1, "there is no atom");
        }
        while let Some(c) = self.peek() {
            self.symbol(c)?;
        }
        let end = self.at;
        if let Some((_, position)) = self.bond {
            return self.fail(position, "a bond leads to nothing");
        }
        if let Some(&(_, position)) = self.branches.last() {
            return self.fail(position, "this branch is not closed with `)`");
        }
        if let Some((number, opening)) = self.open.first_key_value() {
            let (number, position) = (*number, opening.position);
            return self.fail(position, format!("ring bond {number} is not closed"));
        }
        if self.last.is_none() {
            return self.fail(end, "an atom is missing after `.`");
        }
        self.rings.sort_by_key(|r| (r.0, r.1));
        self.parsed.links.extend(self.rings.iter().map(|r| r.2));
        Ok(())
    }

    fn symbol(&mut self, c: u8) -> Result<()> {
        let position = self.at + 1;
        match c {
            b'[' => self.bracket(),
            b'(' => {
                let Some(last) = self.last else { return self.fail(position, "a branch needs an atom before it") };
                if self.bond.is_some() {
                    return self.fail(position, "a bond is written inside the branch, after `(`");
                }
                self.at += 1;
                if self.peek() == Some(b')') {
                    return self.fail(position, "the branch is empty");
                }
                self.branches.push((last, position));
                Ok(())
            }
            b')' => {
                let Some((atom, _)) = self.branches.pop() else { return self.fail(position, "no branch is open here") };
                if self.bond.is_some() {
                    return self.fail(position, "a bond leads to nothing");
                }
                self.at += 1;
                self.last = Some(atom);
                Ok(())
            }
            b'.' => {
                if self.bond.is_some() || self.last.is_none() {
                    return self.fail(position, "an atom is missing before `.`");
                }
                if let Some(&(_, opened)) = self.branches.last() {
                    return self.fail(opened, "a branch may not contain `.` here; close it first");
                }
                self.at += 1;
                self.last = None;
                Ok(())
            }
            b'-' | b'=' | b'#' | b':' | b'/' | b'\\' => {
                if self.bond.is_some() || self.last.is_none() {
                    return self.fail(position, "a bond needs one atom before it");
                }
                let written = match c {
                    b'-' => Written::Order(1),
                    b'=' => Written::Order(2),
                    b'#' => Written::Order(3),
                    b':' => Written::Aromatic,
                    _ => Written::Direction(c == b'/'),
                };
                self.bond = Some((written, position));
                self.at += 1;
                Ok(())
            }
            b'0'..=b'9' | b'%' => self.ring_bond(),
            _ => self.organic(),
        }
    }

    fn ring_bond(&mut self) -> Result<()> {
        let position = self.at + 1;
        let Some(atom) = self.last else { return self.fail(position, "a ring bond needs an atom before it") };
        let number = if self.eat(b'%') {
            let long = self.eat(b'(');
            let start = self.at;
            let number = self.digits(if long { 5 } else { 2 });
            if !long && self.at != start + 2 || long && !self.eat(b')') {
                return self.fail(position, "`%` is followed by two digits, or by digits in parentheses");
            }
            number
        } else {
            self.digits(1)
        };
        let Some(number) = number else { return self.fail(position, "a ring bond has a number") };
        let written = self.bond.take().map_or(Written::Default, |b| b.0);
        let Some(opening) = self.open.remove(&number) else {
            self.parsed.atoms[atom].around.push(Beside::Opening(self.openings));
            self.open.insert(number, Opening { atom, written, serial: self.openings, position });
            self.openings += 1;
            return Ok(());
        };
        let other = opening.atom;
        if other == atom {
            return self.fail(position, "a ring bond cannot join an atom with itself");
        }
        if self.parsed.atoms[atom].around.contains(&Beside::Atom(other)) {
            return self.fail(position, "these two atoms are bonded already");
        }
        let (Some(merged), from) = merge(opening.written, written) else {
            return self.fail(position, format!("ring bond {number} is opened and closed with different bonds"));
        };
        for b in &mut self.parsed.atoms[other].around {
            if *b == Beside::Opening(opening.serial) {
                *b = Beside::Atom(atom);
            }
        }
        self.parsed.atoms[atom].around.push(Beside::Atom(other));
        let (from, to) = if from { (other, atom) } else { (atom, other) };
        self.rings.push((number, opening.serial, Link { from, to, written: merged, position }));
        Ok(())
    }

    /// An atom of the organic subset.
    fn organic(&mut self) -> Result<()> {
        let position = self.at + 1;
        let (name, aromatic) = match (self.bytes[self.at], self.bytes.get(self.at + 1)) {
            (b'C', Some(b'l')) => ("Cl", false),
            (b'B', Some(b'r')) => ("Br", false),
            (b'B', _) => ("B", false),
            (b'C', _) => ("C", false),
            (b'N', _) => ("N", false),
            (b'O', _) => ("O", false),
            (b'P', _) => ("P", false),
            (b'S', _) => ("S", false),
            (b'F', _) => ("F", false),
            (b'I', _) => ("I", false),
            (b'b', _) => ("B", true),
            (b'c', _) => ("C", true),
            (b'n', _) => ("N", true),
            (b'o', _) => ("O", true),
            (b'p', _) => ("P", true),
            (b's', _) => ("S", true),
            (b'*', _) => return self.fail(position, "`*` is no element; atoms must be known"),
            (b'$' | b'~', _) => return self.fail(position, "this kind of bond is not understood"),
            (b' ' | b'\t' | b'\n' | b'\r', _) => return self.fail(position, "there is white space; give the SMILES alone"),
            _ => {
                let c = self.text.get(self.at..).and_then(|t| t.chars().next()).unwrap_or('?');
                return self.fail(position, format!("`{c}` is not understood; elements outside B C N O P S F Cl Br I stand in brackets"));
            }
        };
        self.at += name.len();
        let element = Element::number(name).unwrap_or(0);
        self.place(Symbol { element, aromatic, isotope: 0, charge: 0, hydrogens: None, turn: None, around: Vec::new(), position })
    }

    /// An atom in brackets: isotope, element, handedness, hydrogens, charge, class.
    fn bracket(&mut self) -> Result<()> {
        let position = self.at + 1;
        self.at += 1;
        let isotope = match (self.digits(4), self.peek()) {
            (None, _) => 0,
            (Some(i), _) => {
                u16::try_from(i).ok().filter(|i| *i < 1000).map_or_else(|| self.fail(position, "the mass number is too large"), Ok)?
            }
        };
        let (element, aromatic) = self.bracket_element(position)?;
        let turn = self.eat(b'@').then(|| !self.eat(b'@'));
        if turn.is_some() && self.peek().is_some_and(|c| c.is_ascii_uppercase() && c != b'H') {
            return self.fail(self.at + 1, "only tetrahedral handedness (`@`, `@@`) is understood");
        }
        let hydrogens = if self.eat(b'H') { self.digits(1).unwrap_or(1) } else { 0 };
        let charge = self.charge()?;
        if self.eat(b':') && self.digits(5).is_none() {
            return self.fail(self.at + 1, "`:` is followed by the number of a class");
        }
        if !self.eat(b']') {
            return self.fail(self.at + 1, "`]` is missing, or something before it is not understood");
        }
        if element == 1 && hydrogens > 0 {
            return self.fail(position, "a hydrogen cannot have hydrogens in its bracket; write `[H][H]`");
        }
        let hydrogens = Some(hydrogens as u8);
        self.place(Symbol { element, aromatic, isotope, charge, hydrogens, turn, around: Vec::new(), position })
    }

    fn bracket_element(&mut self, position: usize) -> Result<(u8, bool)> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        for (name, element) in
            [("se", 34), ("as", 33), ("te", 52), ("si", 14), ("b", 5), ("c", 6), ("n", 7), ("o", 8), ("p", 15), ("s", 16)]
        {
            if rest.starts_with(name) {
                self.at += name.len();
                return Ok((element, true));
            }
        }
        for length in [2, 1] {
            if let Some(name) = rest.get(..length)
                && let Some(element) = Element::number(name)
            {
                self.at += length;
                return Ok((element, false));
            }
        }
        self.fail(position + 1, "no element stands here (1 to 86 are known)")
    }

    fn charge(&mut self) -> Result<i8> {
        let position = self.at + 1;
        let Some(sign @ (b'+' | b'-')) = self.peek() else { return Ok(0) };
        let mut count = 0i32;
        while self.eat(sign) {
            count += 1;
        }
        if count == 1
            && let Some(n) = self.digits(2)
        {
            count = n as i32;
        }
        if count > 15 {
            return self.fail(position, "a charge beyond 15 is not understood");
        }
        Ok((if sign == b'+' { count } else { -count }) as i8)
    }

    /// Adds an atom and its bond to the one before.
    fn place(&mut self, mut symbol: Symbol) -> Result<()> {
        let atom = self.parsed.atoms.len();
        let position = symbol.position;
        if let Some(last) = self.last {
            let (written, position) = self.bond.take().unwrap_or((Written::Default, position));
            self.parsed.atoms[last].around.push(Beside::Atom(atom));
            symbol.around.push(Beside::Atom(last));
            self.parsed.links.push(Link { from: last, to: atom, written, position });
        }
        if symbol.turn.is_some() && symbol.hydrogens == Some(1) {
            symbol.around.push(Beside::Hydrogen);
        }
        self.parsed.atoms.push(symbol);
        self.last = Some(atom);
        Ok(())
    }
}

/// The bond of a ring from what is written at its opening and its closing, and whether it is to be read from the opening on.
fn merge(opening: Written, closing: Written) -> (Option<Written>, bool) {
    use Written::{Default, Direction};
    match (opening, closing) {
        (w, Default) => (Some(w), true),
        (Default, w) => (Some(w), false),
        // `C/1 … C\1`: each end says where the bond goes from it.
        (Direction(a), Direction(b)) => ((a != b).then_some(opening), true),
        (a, b) => ((a == b).then_some(a), true),
    }
}
