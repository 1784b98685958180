//! Canonical SMILES: one text for each molecule, whatever the order of its atoms.

use super::valence::implied_hydrogens;
use crate::molecule::canonical::Compare;
use crate::molecule::element::element;
use crate::molecule::graph::{Chirality, Graph};
use std::fmt::Write as _;

/// Elements that stand without brackets.
const ORGANIC: [u8; 10] = [5, 6, 7, 8, 9, 15, 16, 17, 35, 53];

impl Graph {
    /// The molecule as SMILES, equal for equal molecules: hydrogens are counted on their atoms, aromatic atoms are written
    /// small. `compare` says whether handedness and E/Z are written. Aromaticity must have been found.
    pub fn to_smiles(&self, compare: Compare) -> String {
        let order = self.canonical_numbering(compare).order;
        let mut writer = Writer::new(self, &order, compare);
        let mut text = String::new();
        for &start in &order {
            if writer.number[start].is_none() {
                if !text.is_empty() {
                    text.push('.');
                }
                writer.fragment(start, &mut text);
            }
        }
        text
    }
}

struct Writer<'a> {
    graph: &'a Graph,
    /// Rank of each atom; `None` for hydrogens that are folded away.
    rank: Vec<Option<usize>>,
    compare: Compare,
    /// When each atom was first met, in the order of writing.
    number: Vec<Option<usize>>,
    met: usize,
    /// Atom from which each was reached.
    parent: Vec<Option<usize>>,
    /// Atoms after each in the tree, in order.
    children: Vec<Vec<usize>>,
    /// Ring bonds of each atom: the other atom, in the order in which they are written.
    rings: Vec<Vec<usize>>,
    /// Direction mark of bonds: up, seen from the atom that is written first.
    marks: Vec<Option<bool>>,
    /// Numbers in use for ring bonds, and who waits for them.
    open: Vec<Option<(usize, usize)>>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph, order: &[usize], compare: Compare) -> Self {
        let n = graph.len();
        let mut rank = vec![None; n];
        order.iter().enumerate().for_each(|(k, &i)| rank[i] = Some(k));
        Writer {
            graph,
            rank,
            compare,
            number: vec![None; n],
            met: 0,
            parent: vec![None; n],
            children: vec![Vec::new(); n],
            rings: vec![Vec::new(); n],
            marks: vec![None; graph.bonds().len()],
            open: Vec::new(),
        }
    }

    fn fragment(&mut self, start: usize, text: &mut String) {
        let mut members = Vec::new();
        self.visit(start, &mut members);
        if self.compare == Compare::Stereo {
            self.place_marks(&members);
        }
        self.write(start, text);
    }

    /// Depth first by rank: finds the tree and its ring bonds.
    fn visit(&mut self, start: usize, members: &mut Vec<usize>) {
        // (atom, its neighbours by rank, next of them)
        let mut stack: Vec<(usize, Vec<usize>, usize)> = Vec::new();
        let mut enter = |w: &mut Self, i: usize, stack: &mut Vec<(usize, Vec<usize>, usize)>| {
            w.number[i] = Some(w.met);
            w.met += 1;
            members.push(i);
            let mut around: Vec<usize> = w.graph.neighbours(i).iter().map(|n| n.atom as usize).filter(|&j| w.rank[j].is_some()).collect();
            around.sort_by_key(|&j| w.rank[j]);
            stack.push((i, around, 0));
        };
        enter(self, start, &mut stack);
        while let Some((i, around, next)) = stack.last_mut() {
            let i = *i;
            let Some(&j) = around.get(*next) else {
                stack.pop();
                continue;
            };
            *next += 1;
            if self.number[j].is_none() {
                self.parent[j] = Some(i);
                self.children[i].push(j);
                enter(self, j, &mut stack);
            } else if self.parent[i] != Some(j) && self.number[j] < self.number[i] {
                // Closed here, opened at `j`.
                self.rings[j].push(i);
                self.rings[i].push(j);
            }
        }
    }

    /// Neighbours of `i` in the order of the text; `None` for a folded or implicit hydrogen.
    fn around(&self, i: usize) -> Vec<Option<usize>> {
        let mut around: Vec<Option<usize>> = self.parent[i].map(Some).into_iter().collect();
        let hydrogens = self.hydrogens(i);
        around.extend((0..hydrogens).map(|_| None));
        around.extend(self.rings[i].iter().chain(&self.children[i]).map(|&j| Some(j)));
        around
    }

    fn hydrogens(&self, i: usize) -> usize {
        let folded = self.graph.neighbours(i).iter().filter(|n| self.rank[n.atom as usize].is_none()).count();
        usize::from(self.graph.atoms()[i].hydrogens) + folded
    }

    /// `/` and `\` beside double bonds that have an arrangement, in the order of the text.
    fn place_marks(&mut self, members: &[usize]) {
        let mut doubles: Vec<usize> = Vec::new();
        for &i in members {
            for n in self.graph.neighbours(i) {
                let b = n.bond as usize;
                if self.graph.bonds()[b].stereo.is_some() && !doubles.contains(&b) {
                    doubles.push(b);
                }
            }
        }
        for b in doubles {
            let bond = self.graph.bonds()[b];
            let Some(stereo) = bond.stereo else { continue };
            let ends = [bond.atoms.0 as usize, bond.atoms.1 as usize];
            let references = [stereo.references.0 as usize, stereo.references.1 as usize];
            // Bonds that can carry marks at each end, and whether their neighbour is the reference.
            let carriers = [0, 1].map(|k| -> Vec<(usize, usize, bool)> {
                self.graph
                    .neighbours(ends[k])
                    .iter()
                    .filter(|n| n.bond as usize != b && self.rank[n.atom as usize].is_some())
                    .map(|n| (n.bond as usize, n.atom as usize, n.atom as usize == references[k]))
                    .collect()
            });
            // Is the reference of end k above? Marks of earlier double bonds decide, else the first end is free.
            let set = |w: &Self, k: usize| -> Option<bool> {
                carriers[k].iter().find_map(|&(bond, atom, is)| Some((w.marks[bond]? == w.first(ends[k], atom)) == is))
            };
            let (a, c) = (set(self, 0), set(self, 1));
            let above = match (a, c) {
                (Some(a), _) => [a, a == stereo.same_side],
                (None, Some(c)) => [c == stereo.same_side, c],
                (None, None) => {
                    // The mark that is written first is `/`.
                    let k = usize::from(self.number[ends[1]] < self.number[ends[0]]);
                    let up = carriers[k]
                        .iter()
                        .min_by_key(|c| (self.number[c.1], c.1))
                        .is_none_or(|&(_, atom, is)| self.first(ends[k], atom) == is);
                    let other = up == stereo.same_side;
                    if k == 0 { [up, other] } else { [other, up] }
                }
            };
            for k in 0..2 {
                for &(bond, atom, is) in &carriers[k] {
                    let up = above[k] == is;
                    // From the atom that is written first.
                    self.marks[bond] = Some(up == self.first(ends[k], atom));
                }
            }
        }
    }

    /// Atom `i` is written before `j`.
    fn first(&self, i: usize, j: usize) -> bool {
        self.number[i] < self.number[j]
    }

    fn write(&mut self, start: usize, text: &mut String) {
        enum Task {
            Atom(usize),
            Text(char),
        }
        let mut tasks = vec![Task::Atom(start)];
        while let Some(task) = tasks.pop() {
            let i = match task {
                Task::Atom(i) => i,
                Task::Text(c) => {
                    text.push(c);
                    continue;
                }
            };
            if let Some(p) = self.parent[i] {
                text.push_str(self.bond(p, i));
            }
            self.atom(i, text);
            for k in 0..self.rings[i].len() {
                self.ring(i, self.rings[i][k], text);
            }
            let (last, branches) = match self.children[i].split_last() {
                Some((last, branches)) => (*last, branches),
                None => continue,
            };
            tasks.push(Task::Atom(last));
            for &j in branches.iter().rev() {
                tasks.extend([Task::Text(')'), Task::Atom(j), Task::Text('(')]);
            }
        }
    }

    fn ring(&mut self, i: usize, j: usize, text: &mut String) {
        let waiting = self.open.iter().position(|o| *o == Some((j, i)));
        let slot = waiting.unwrap_or_else(|| {
            self.open.iter().position(Option::is_none).unwrap_or_else(|| {
                self.open.push(None);
                self.open.len() - 1
            })
        });
        if waiting.is_none() {
            text.push_str(self.bond(i, j));
        }
        self.open[slot] = if waiting.is_some() { None } else { Some((i, j)) };
        // Infallible: the target is a string.
        let _ = match slot + 1 {
            k @ 1..=9 => write!(text, "{k}"),
            k @ 10..=99 => write!(text, "%{k}"),
            k => write!(text, "%({k})"),
        };
    }

    /// The symbol of the bond from `i` (written first) to `j`.
    fn bond(&self, i: usize, j: usize) -> &'static str {
        let Some(b) = self.graph.bond_between(i, j) else { return "" };
        let bond = self.graph.bonds()[b];
        let aromatic = |i: usize| self.graph.atoms()[i].aromatic;
        match (bond.aromatic, bond.order, self.marks[b]) {
            (true, _, None) => "",
            (false, 2, _) => "=",
            (false, 3, _) => "#",
            (_, _, Some(true)) => "/",
            (_, _, Some(false)) => "\\",
            // Without a dash it would be read as aromatic.
            _ if aromatic(i) && aromatic(j) => "-",
            _ => "",
        }
    }

    fn atom(&self, i: usize, text: &mut String) {
        let atom = self.graph.atoms()[i];
        let symbol = element(atom.element).symbol;
        let hydrogens = self.hydrogens(i);
        let symbol = if atom.aromatic { symbol.to_ascii_lowercase() } else { symbol.to_owned() };
        let chirality = if self.compare == Compare::Stereo { atom.chirality } else { Chirality::None };
        let plain = atom.isotope == 0
            && atom.charge == 0
            && atom.radicals == 0
            && chirality == Chirality::None
            && ORGANIC.contains(&atom.element)
            && self.default_hydrogens(i) == Some(hydrogens);
        if plain {
            text.push_str(&symbol);
            return;
        }
        text.push('[');
        if atom.isotope > 0 {
            let _ = write!(text, "{}", atom.isotope);
        }
        text.push_str(&symbol);
        if chirality != Chirality::None {
            // From the order of bonds, hydrogen last, to the order of the text.
            let place = |a: &Option<usize>| {
                a.map_or(usize::MAX, |a| self.graph.neighbours(i).iter().position(|n| n.atom as usize == a).unwrap_or(0))
            };
            let folded = self.graph.neighbours(i).iter().position(|n| self.rank[n.atom as usize].is_none());
            let places: Vec<usize> =
                self.around(i).iter().map(|a| if a.is_none() { folded.unwrap_or(usize::MAX) } else { place(a) }).collect();
            let swaps: usize = (0..places.len()).map(|a| places[a + 1..].iter().filter(|&&b| b < places[a]).count()).sum();
            text.push_str(if chirality.after_swaps(swaps) == Chirality::CounterClockwise { "@" } else { "@@" });
        }
        match hydrogens {
            0 => {}
            1 => text.push('H'),
            n => {
                let _ = write!(text, "H{n}");
            }
        }
        let _ = match atom.charge {
            0 => Ok(()),
            1 => write!(text, "+"),
            -1 => write!(text, "-"),
            q => write!(text, "{q:+}"),
        };
        text.push(']');
    }

    /// Hydrogens that a reader would give to this neutral atom without brackets; `None` where it would refuse it.
    fn default_hydrogens(&self, i: usize) -> Option<usize> {
        let atom = self.graph.atoms()[i];
        let written = self.graph.neighbours(i).iter().filter(|n| self.rank[n.atom as usize].is_some());
        let halves = |b: u32| {
            let bond = &self.graph.bonds()[b as usize];
            if bond.aromatic { 3 } else { 2 * i32::from(bond.order) }
        };
        implied_hydrogens(atom.element, 0, atom.aromatic, atom.aromatic, written.map(|n| halves(n.bond)).sum()).map(usize::from)
    }
}
