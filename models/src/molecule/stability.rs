//! Stability by tables of bond lengths, the older and stricter measure of generated molecules: bond orders follow from
//! distances alone, and an atom is stable where they add up to its valence (Hoogeboom et al., arXiv 2203.17003, whose tables
//! and margins these are).

/// How much longer than its table entry a single, double or triple bond may be, in pm.
const MARGINS: [f64; 3] = [10.0, 5.0, 3.0];

/// Lengths of single bonds in pm, smaller atomic number first.
#[rustfmt::skip]
const SINGLE: &[(u32, u32, f64)] = &[
    (1, 1, 74.0), (1, 5, 119.0), (1, 6, 109.0), (1, 7, 101.0), (1, 8, 96.0), (1, 9, 92.0), (1, 14, 148.0), (1, 15, 144.0),
    (1, 16, 134.0), (1, 17, 127.0), (1, 33, 152.0), (1, 35, 141.0), (1, 53, 161.0), (5, 17, 175.0), (6, 6, 154.0),
    (6, 7, 147.0), (6, 8, 143.0), (6, 9, 135.0), (6, 14, 185.0), (6, 15, 184.0), (6, 16, 182.0), (6, 17, 177.0),
    (6, 35, 194.0), (6, 53, 214.0), (7, 7, 145.0), (7, 8, 140.0), (7, 9, 136.0), (7, 15, 177.0), (7, 16, 168.0),
    (7, 17, 175.0), (7, 35, 214.0), (7, 53, 222.0), (8, 8, 148.0), (8, 9, 142.0), (8, 14, 163.0), (8, 15, 163.0),
    (8, 16, 151.0), (8, 17, 164.0), (8, 35, 172.0), (8, 53, 194.0), (9, 9, 142.0), (9, 14, 160.0), (9, 15, 156.0),
    (9, 16, 158.0), (9, 17, 166.0), (9, 35, 178.0), (9, 53, 187.0), (14, 14, 233.0), (14, 16, 200.0), (14, 17, 202.0),
    (14, 35, 215.0), (14, 53, 243.0), (15, 15, 221.0), (15, 16, 210.0), (15, 17, 203.0), (15, 35, 222.0), (16, 16, 204.0),
    (16, 17, 207.0), (16, 35, 225.0), (16, 53, 234.0), (17, 17, 199.0), (17, 35, 214.0), (35, 35, 228.0), (53, 53, 266.0),
];

/// The same for double bonds.
const DOUBLE: &[(u32, u32, f64)] = &[
    (6, 6, 134.0),
    (6, 7, 129.0),
    (6, 8, 120.0),
    (6, 16, 160.0),
    (7, 7, 125.0),
    (7, 8, 121.0),
    (8, 8, 121.0),
    (8, 15, 150.0),
    (15, 16, 186.0),
];

/// The same for triple bonds.
const TRIPLE: &[(u32, u32, f64)] = &[(6, 6, 120.0), (6, 7, 116.0), (6, 8, 113.0), (7, 7, 110.0)];

/// Stable atoms of one molecule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stability {
    /// Number of atoms.
    pub atoms: usize,
    /// Atoms whose bonds add up to their valence.
    pub stable_atoms: usize,
}

impl Stability {
    /// Judges atoms of `elements` (`[N]`) at `positions` (`[N, 3]`, nm). Elements without a row have no bonds.
    pub fn of(elements: &[u32], positions: &[f64]) -> Stability {
        let n = elements.len();
        let mut valences = vec![0u8; n];
        for i in 0..n {
            for j in 0..i {
                let d = (0..3).map(|a| (positions[3 * i + a] - positions[3 * j + a]).powi(2)).sum::<f64>().sqrt();
                let order = bond_order(elements[i], elements[j], 1000.0 * d);
                valences[i] = valences[i].saturating_add(order);
                valences[j] = valences[j].saturating_add(order);
            }
        }
        let stable_atoms = elements.iter().zip(&valences).filter(|(z, v)| allowed(**z).contains(v)).count();
        Stability { atoms: n, stable_atoms }
    }

    /// All atoms are stable.
    pub fn is_stable(&self) -> bool {
        self.stable_atoms == self.atoms
    }
}

/// Valences of a stable atom.
fn allowed(number: u32) -> &'static [u8] {
    match number {
        1 | 9 | 17 | 35 | 53 => &[1],
        5 | 7 | 13 | 33 => &[3],
        6 | 14 | 16 => &[4],
        8 => &[2],
        15 | 83 => &[3, 5],
        80 => &[1, 2],
        _ => &[],
    }
}

/// Order of the bond between two elements `pm` apart, 0 for none.
fn bond_order(a: u32, b: u32, pm: f64) -> u8 {
    let (a, b) = (a.min(b), a.max(b));
    let mut order = 0;
    for (table, margin) in [SINGLE, DOUBLE, TRIPLE].into_iter().zip(MARGINS) {
        match table.iter().find(|e| (e.0, e.1) == (a, b)) {
            Some(entry) if pm < entry.2 + margin => order += 1,
            _ => break,
        }
    }
    order
}
