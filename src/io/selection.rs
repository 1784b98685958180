//! Which atoms: chemfiles' selection language, or a list of indices.

use super::error::{IoError, Result};
use super::frame::Frame;
use std::fmt;
use std::str::FromStr;

/// A choice of atoms: an index list such as `0-4,8` (from 0, both ends included), or chemfiles' selection language, for
/// example `name CA`, `not type H`, `resid 1 to 3`.
///
/// In files of many frames the choice is made on the first frame of each topology and kept, so that all frames of one
/// molecule have the same atoms even where the selection speaks of positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    text: String,
    /// The same in chemfiles' language.
    query: String,
    /// Inclusive ranges of an index list.
    ranges: Option<Vec<(usize, usize)>>,
}

impl Selection {
    /// Indices from 0 of the chosen atoms, in the file's order and each once.
    ///
    /// # Errors
    /// Where nothing is chosen, an index is past the last atom, or the text is no selection.
    pub fn atoms(&self, frame: &Frame) -> Result<Vec<usize>> {
        let n = frame.len();
        let mut atoms = match &self.ranges {
            Some(ranges) => {
                if let Some(&(_, last)) = ranges.iter().find(|r| r.1 >= n) {
                    return Err(self.fail(format!("names atom {last}, but there are {n} atoms, counted from 0")));
                }
                ranges.iter().flat_map(|&(a, b)| a..=b).collect()
            }
            None => super::backend::select(&self.query, frame).map_err(|what| self.fail(what))?,
        };
        atoms.sort_unstable();
        atoms.dedup();
        if atoms.is_empty() {
            return Err(self.fail(format!("fits none of the {n} atoms")));
        }
        Ok(atoms)
    }

    fn fail(&self, what: impl Into<String>) -> IoError {
        IoError::Selection { selection: self.text.clone(), what: what.into() }
    }
}

/// Writes `resid 1 to 3` as `(resid >= 1 and resid <= 3)`, which chemfiles understands.
fn expand_ranges(text: &str) -> String {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let number = |i: usize| words.get(i).copied().filter(|w| w.parse::<f64>().is_ok());
    let mut out: Vec<String> = Vec::new();
    let mut i = 0;
    while i < words.len() {
        match (number(i + 1), words.get(i + 2), number(i + 3)) {
            (Some(first), Some(&"to"), Some(last)) => {
                out.push(format!("({0} >= {first} and {0} <= {last})", words[i]));
                i += 4;
            }
            _ => {
                out.push(words[i].to_owned());
                i += 1;
            }
        }
    }
    // Text without ranges goes on untouched: it may hold quoted blanks.
    if out.len() == words.len() { text.to_owned() } else { out.join(" ") }
}

impl FromStr for Selection {
    type Err = IoError;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |position: usize, what: &str| Err(IoError::Text { what: what.to_owned(), text: text.to_owned(), position });
        if text.trim().is_empty() {
            return fail(0, "the selection is empty; write for example `name CA`, `not type H` or `0-4,8`");
        }
        // What is made of digits, commas and dashes only is meant as a list.
        if !text.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-' | ' ')) {
            let query = expand_ranges(text);
            super::backend::check_selection(&query).map_err(|what| IoError::Text { what, text: text.to_owned(), position: 0 })?;
            return Ok(Selection { text: text.to_owned(), query, ranges: None });
        }
        let mut ranges = Vec::new();
        let mut position = 0;
        for part in text.split(',') {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            match (a.trim().parse::<usize>(), b.trim().parse::<usize>()) {
                (Ok(a), Ok(b)) if a <= b => ranges.push((a, b)),
                _ => return fail(position, "an index list is made of numbers and ranges from 0, smaller first: `0-4,8`"),
            }
            position += part.chars().count() + 1;
        }
        Ok(Selection { text: text.to_owned(), query: String::new(), ranges: Some(ranges) })
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::System;
    use std::sync::Arc;

    #[test]
    fn ranges_are_spelled_out() {
        assert_eq!(expand_ranges("not (resid 1 to 3) and name CA"), "not ( (resid >= 1 and resid <= 3) ) and name CA");
        assert_eq!(expand_ranges("name  'a b' to 3"), "name  'a b' to 3");
    }

    #[test]
    fn index_lists() {
        let frame = Frame::new(Arc::new(System::particles("test", 10, 1.0)), vec![0.0; 30]);
        let atoms = |text: &str| text.parse::<Selection>().and_then(|s| s.atoms(&frame));
        assert_eq!(atoms("0-4,8").unwrap(), [0, 1, 2, 3, 4, 8]);
        assert_eq!(atoms("8, 2-3,3").unwrap(), [2, 3, 8]);
        assert!(atoms("9,10").unwrap_err().to_string().contains("10 atoms"));
        // A range far past the end is refused before it is expanded.
        assert!(atoms("0-99999999999999").is_err());
        for (text, at) in [("", 0), ("1,,2", 2), ("4-1", 0), ("1,2-", 2), ("-3", 0)] {
            match text.parse::<Selection>() {
                Err(IoError::Text { position, .. }) => assert_eq!(position, at, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
