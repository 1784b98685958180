//! Bond orders from who is bonded to whom: the search of RDKit's `DetermineBonds`, after Kim and Kim's *xyz2mol* (Bull.
//! Korean Chem. Soc. 36, 1769 (2015)).
//!
//! Every atom has candidate valences. For each choice of one valence per atom, atoms that are not yet saturated are joined
//! by maximum matchings until no more bonds come; the first choice that leaves the molecule saturated and with the right
//! charge is taken, else the one with most bonds.

use super::connectivity::Connectivity;
use super::element::element;
use super::error::{Error, Result};
use super::matching::Matcher;

/// Rounds of pruning before candidates are taken as they are.
const PRUNING_ROUNDS: usize = 100;
/// Choices of valences that are tried before a molecule counts as hopeless.
pub(super) const MOST_CHOICES: u64 = 1_000_000;

/// Finds bond orders; keeps its memory from one molecule to the next.
#[derive(Default)]
pub(super) struct BondOrders {
    /// Bonds `i < j`, by `i` then `j`.
    pub(super) pairs: Vec<(u32, u32)>,
    /// Order of each bond.
    pub(super) orders: Vec<u8>,
    /// Sum of orders of each atom.
    pub(super) valences: Vec<u32>,
    degrees: Vec<u32>,
    candidates: Vec<Candidates>,
    pruned: Vec<Candidates>,
    choice: Vec<u8>,
    wanted: Vec<u32>,
    best: Vec<u8>,
    best_valences: Vec<u32>,
    open: Vec<(u32, u32)>,
    open_bonds: Vec<u32>,
    matcher: Matcher,
}

/// Candidate valences of one atom, in the order in which they are tried.
#[derive(Clone, Copy, Default, PartialEq)]
struct Candidates {
    values: [u32; 4],
    len: usize,
}

impl Candidates {
    fn new(values: &[u32]) -> Self {
        let mut c = Candidates::default();
        for &v in values.iter().take(4) {
            c.push(v);
        }
        c
    }

    fn push(&mut self, v: u32) {
        self.values[self.len] = v;
        self.len += 1;
    }

    fn get(&self) -> &[u32] {
        &self.values[..self.len]
    }
}

/// Valences that an atom may have, most likely first.
fn candidates(number: u8) -> Candidates {
    match number {
        5 => Candidates::new(&[3, 4]),
        7 => Candidates::new(&[3, 4]),
        8 => Candidates::new(&[2, 1, 3]),
        15 => Candidates::new(&[5, 3]),
        16 => Candidates::new(&[6, 3, 2, 1]),
        53 => Candidates::new(&[1]),
        _ => {
            let mut all = Candidates::default();
            for &v in element(number).valences.iter().filter(|v| **v >= 0) {
                all.push(v as u32);
            }
            all
        }
    }
}

/// Charge of an atom that has `valence` bonds and its octet (its pair, for hydrogen).
pub(super) fn charge_of(number: u8, valence: u32) -> i32 {
    let v = valence as i32;
    match (number, v) {
        (1, _) => 1 - v,
        (5, _) => 3 - v,
        (15, 5) | (16, 6) => 0,
        _ => element(number).outer - 8 + v,
    }
}

impl BondOrders {
    /// Finds bond orders for total `charge`; results are in `pairs`, `orders` and `valences`.
    ///
    /// # Errors
    /// Where an atom has more bonds than any of its valences, or where there are too many choices to try.
    pub(super) fn find(&mut self, elements: &[u8], bonds: &Connectivity, charge: i32, most_choices: u64) -> Result<()> {
        let n = elements.len();
        self.pairs.clear();
        self.degrees.clear();
        for i in 0..n {
            self.degrees.push(bonds.neighbours[i].len() as u32);
            let first = self.pairs.len();
            self.pairs.extend(bonds.neighbours[i].iter().filter(|j| **j > i as u32).map(|&j| (i as u32, j)));
            self.pairs[first..].sort_unstable();
        }
        self.orders.clear();
        self.orders.resize(self.pairs.len(), 1);
        self.valences.clone_from(&self.degrees);
        self.prune(elements, bonds)?;
        // Bonds are only added: where an atom has too many from the start, every choice fails, and single bonds stay.
        let hopeless = self.candidates.iter().zip(&self.degrees).any(|(c, d)| c.get().iter().all(|v| v < d));
        if hopeless {
            return Ok(());
        }
        self.search(elements, charge, most_choices)
    }

    /// Leaves out valences that neighbours cannot supply, until nothing changes.
    fn prune(&mut self, elements: &[u8], bonds: &Connectivity) -> Result<()> {
        self.candidates.clear();
        for (i, &z) in elements.iter().enumerate() {
            let c = candidates(z);
            if c.len == 0 {
                return Err(Error::NoValence { atom: i, symbol: element(z).symbol });
            }
            self.candidates.push(c);
        }
        for _ in 0..PRUNING_ROUNDS {
            self.pruned.clear();
            for (i, c) in self.candidates.iter().enumerate() {
                if c.len == 1 {
                    self.pruned.push(*c);
                    continue;
                }
                // Counted without sign, as there: a neighbour with too many bonds may wrap around and allow anything.
                let mut spare = 0u32;
                for &j in &bonds.neighbours[i] {
                    let largest = self.candidates[j as usize].get().iter().copied().max().unwrap_or(0);
                    spare = spare.wrapping_add(largest.wrapping_sub(self.degrees[j as usize]));
                }
                let degree = self.degrees[i];
                let mut left = Candidates::default();
                for &v in c.get().iter().filter(|v| degree <= **v && **v <= degree.wrapping_add(spare)) {
                    left.push(v);
                }
                if left.len == 0 {
                    return Err(Error::TooManyBonds { atom: i, symbol: element(elements[i]).symbol, bonds: degree as usize });
                }
                self.pruned.push(left);
            }
            if self.pruned == self.candidates {
                break;
            }
            std::mem::swap(&mut self.pruned, &mut self.candidates);
        }
        Ok(())
    }

    fn search(&mut self, elements: &[u8], charge: i32, most_choices: u64) -> Result<()> {
        let n = elements.len();
        self.choice.clear();
        self.choice.resize(n, 0);
        self.best.clone_from(&self.orders);
        self.best_valences.clone_from(&self.degrees);
        let mut best_sum: u32 = self.degrees.iter().sum();
        let mut tried = 0u64;
        loop {
            tried += 1;
            if tried > most_choices {
                return Err(Error::TooManyChoices { tried: most_choices });
            }
            self.wanted.clear();
            self.wanted.extend(self.candidates.iter().zip(&self.choice).map(|(c, k)| c.values[*k as usize]));
            self.orders.fill(1);
            self.valences.clone_from(&self.degrees);
            let fits = self.wanted.iter().zip(&self.degrees).all(|(w, d)| d <= w);
            if fits {
                let any = self.wanted.iter().zip(&self.degrees).any(|(w, d)| w > d);
                while any && self.add_bonds() {}
                if self.charge_fits(elements, charge) {
                    if self.wanted == self.valences {
                        return Ok(());
                    }
                    let sum: u32 = self.valences.iter().sum();
                    if sum > best_sum {
                        best_sum = sum;
                        self.best.clone_from(&self.orders);
                        self.best_valences.clone_from(&self.valences);
                    }
                }
            }
            if !self.next_choice() {
                break;
            }
        }
        self.orders.clone_from(&self.best);
        self.valences.clone_from(&self.best_valences);
        Ok(())
    }

    /// The next choice, the last atom's valence changing fastest; false after the last.
    fn next_choice(&mut self) -> bool {
        for (k, c) in self.choice.iter_mut().zip(&self.candidates).rev() {
            *k += 1;
            if usize::from(*k) < c.len {
                return true;
            }
            *k = 0;
        }
        false
    }

    /// One more bond along each edge of a maximum matching of unsaturated atoms; false where there is none.
    fn add_bonds(&mut self) -> bool {
        self.open.clear();
        self.open_bonds.clear();
        for (b, &(i, j)) in self.pairs.iter().enumerate() {
            let open = |a: u32| self.wanted[a as usize] > self.valences[a as usize];
            if open(i) && open(j) {
                self.open.push((i, j));
                self.open_bonds.push(b as u32);
            }
        }
        if self.open.is_empty() {
            return false;
        }
        let mate = self.matcher.maximum(self.wanted.len(), &self.open);
        for (&(i, j), &b) in self.open.iter().zip(&self.open_bonds) {
            if mate[i as usize] == j {
                self.orders[b as usize] += 1;
                self.valences[i as usize] += 1;
                self.valences[j as usize] += 1;
            }
        }
        true
    }

    fn charge_fits(&self, elements: &[u8], charge: i32) -> bool {
        let mut sum = 0;
        for (i, &z) in elements.iter().enumerate() {
            sum += charge_of(z, self.valences[i]);
            sum += carbon_correction(z, self.degrees[i], self.valences[i], sum, charge).map_or(0, |c| c.0);
        }
        sum == charge
    }

    /// Formal charges of all atoms, put into `charges`; their sum need not be what was asked for.
    pub(super) fn charges(&self, elements: &[u8], charge: i32, charges: &mut Vec<i32>) {
        charges.clear();
        let mut sum = 0;
        for (i, &z) in elements.iter().enumerate() {
            let own = charge_of(z, self.valences[i]);
            sum += own;
            match carbon_correction(z, self.degrees[i], self.valences[i], sum, charge) {
                Some((more, written)) => {
                    sum += more;
                    charges.push(written);
                }
                None => charges.push(own),
            }
        }
    }
}

/// Carbenes and carbocations: what is added to the sum of charges so far, and the charge that is written.
fn carbon_correction(number: u8, degree: u32, valence: u32, sum: i32, charge: i32) -> Option<(i32, i32)> {
    match (number, degree, valence) {
        (6, 2, 2) => Some((1, 0)),
        (6, 3, _) if sum + 1 < charge => Some((2, 1)),
        _ => None,
    }
}
