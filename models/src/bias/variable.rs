//! Collective variables: coordinates, distances, angles and dihedrals, with their gradients.

use crate::analytic::lattice::Lattice;
use crate::error::{Error, Result};
use scorefield_integrators::{Dimension, System};
use std::f64::consts::{PI, TAU};

/// Most atoms of one variable.
pub(super) const MOST_ATOMS: usize = 4;
/// Sines and lengths below this have no direction: the gradient is taken to be zero there.
const SINGULAR: f64 = 1e-10;

/// What a variable measures; atoms are indices from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// A coordinate of one atom along x, y or z (0, 1 or 2).
    Coordinate([usize; 1], usize),
    /// The distance of two atoms.
    Distance([usize; 2]),
    /// The angle at the second of three atoms, 0 to π.
    Angle([usize; 3]),
    /// The dihedral angle of four atoms in (−π, π], with IUPAC's sign.
    Dihedral([usize; 4]),
}

/// A named function of a molecule's shape, which biases act on.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Its name in biases and in the header of the table.
    pub name: String,
    /// What it measures.
    pub measure: Measure,
}

/// A variable at some positions: its value, its gradient with respect to its atoms, and where these are as seen from the first of
/// them (through periodic faces).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Point {
    pub(super) value: f64,
    pub(super) gradient: [[f64; 3]; MOST_ATOMS],
    pub(super) relative: [[f64; 3]; MOST_ATOMS],
}

impl Variable {
    /// Reads `NAME=distance I J`, `NAME=angle I J K`, `NAME=dihedral I J K L` or `NAME=x I` (also y, z); atoms count from 1, as in
    /// messages and structure files.
    ///
    /// # Errors
    /// What cannot be understood, with an example.
    pub fn parse(text: &str) -> Result<Self> {
        let fail = |reason: String| Err(Error::spec(format!("collective variable `{text}`"), reason));
        let example = "write for example `phi=dihedral 5 7 9 15` or `d=distance 1 6`, with atoms counted from 1";
        let Some((name, rest)) = text.split_once('=') else { return fail(format!("it has no name; {example}")) };
        let name = name.trim();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return fail(format!("`{name}` is no name of letters, digits, `-` and `_`; {example}"));
        }
        let mut words = rest.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut atoms = Vec::new();
        for word in words {
            match word.parse::<usize>() {
                Ok(i) if i > 0 => atoms.push(i - 1),
                _ => return fail(format!("`{word}` is no atom; {example}")),
            }
        }
        let mut sorted = atoms.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|p| p[0] == p[1]) {
            return fail("it names an atom twice".into());
        }
        let measure = match (kind, &atoms[..]) {
            ("x" | "y" | "z", &[i]) => Measure::Coordinate([i], usize::from(kind.as_bytes()[0] - b'x')),
            ("distance", &[i, j]) => Measure::Distance([i, j]),
            ("angle", &[i, j, k]) => Measure::Angle([i, j, k]),
            ("dihedral", &[i, j, k, l]) => Measure::Dihedral([i, j, k, l]),
            ("x" | "y" | "z" | "distance" | "angle" | "dihedral", atoms) => {
                return fail(format!("{} atoms are too many or too few; {example}", atoms.len()));
            }
            _ => return fail(format!("`{kind}` is not x, y, z, distance, angle or dihedral; {example}")),
        };
        Ok(Variable { name: name.to_owned(), measure })
    }

    /// Its atoms, indices from 0.
    pub fn atoms(&self) -> &[usize] {
        match &self.measure {
            Measure::Coordinate(atoms, _) => atoms,
            Measure::Distance(atoms) => atoms,
            Measure::Angle(atoms) => atoms,
            Measure::Dihedral(atoms) => atoms,
        }
    }

    /// A length, or a pure number (radians).
    pub fn dimension(&self) -> Dimension {
        match self.measure {
            Measure::Coordinate(..) | Measure::Distance(_) => Dimension::LENGTH,
            Measure::Angle(_) | Measure::Dihedral(_) => Dimension::NONE,
        }
    }

    /// Dimension of a force constant.
    pub(super) fn stiffness(&self) -> Dimension {
        if self.dimension() == Dimension::LENGTH { Dimension::STIFFNESS } else { Dimension::ENERGY }
    }

    /// The period, of dihedrals.
    pub fn period(&self) -> Option<f64> {
        matches!(self.measure, Measure::Dihedral(_)).then_some(TAU)
    }

    /// `a − b`, the shorter way round where there is a period.
    pub fn difference(&self, a: f64, b: f64) -> f64 {
        match self.period() {
            Some(period) => (a - b) - period * ((a - b) / period).round(),
            None => a - b,
        }
    }

    /// Checks that `system` has these atoms, and axes for them.
    pub(super) fn check(&self, system: &System) -> scorefield_integrators::Result<()> {
        let fail = |what: String| scorefield_integrators::error::invalid(format!("collective variable {}: {what}", self.name));
        if let Some(i) = self.atoms().iter().find(|&&i| i >= system.len()) {
            return fail(format!("it names atom {}, but {} has {}", i + 1, system.name, system.len()));
        }
        match self.measure {
            Measure::Coordinate(_, axis) if !system.axes[axis] => fail(format!("{} has no such axis", system.name)),
            Measure::Angle(_) | Measure::Dihedral(_) if system.axes != [true; 3] => {
                fail(format!("{} has fewer than three axes", system.name))
            }
            _ => Ok(()),
        }
    }

    /// Value and gradient, where atom `i` is at `x(i)`.
    #[inline]
    pub(super) fn at(&self, x: impl Fn(usize) -> [f64; 3], lattice: Option<&Lattice>) -> Point {
        let to = |i: usize, j: usize| {
            let d = sub(x(j), x(i));
            lattice.map_or(d, |l| l.nearest(d))
        };
        let mut point = Point::default();
        let Point { value, gradient: g, relative } = &mut point;
        match self.measure {
            Measure::Coordinate([i], axis) => {
                *value = x(i)[axis];
                g[0][axis] = 1.0;
            }
            Measure::Distance([i, j]) => {
                let d = to(i, j);
                *value = norm(d);
                if *value > SINGULAR {
                    g[1] = scale(d, 1.0 / *value);
                    g[0] = scale(g[1], -1.0);
                }
                relative[1] = d;
            }
            Measure::Angle([i, j, k]) => {
                let (u, v) = (to(j, i), to(j, k));
                let sine = norm(cross(u, v));
                // atan2 keeps its digits near 0 and π, where an arc cosine loses half of them.
                *value = sine.atan2(dot(u, v));
                let (lu, lv) = (norm(u), norm(v));
                let (s, c) = value.sin_cos();
                if s > SINGULAR && lu > SINGULAR && lv > SINGULAR {
                    let (u, v) = (scale(u, 1.0 / lu), scale(v, 1.0 / lv));
                    g[0] = scale(sub(scale(u, c), v), 1.0 / (lu * s));
                    g[2] = scale(sub(scale(v, c), u), 1.0 / (lv * s));
                    g[1] = scale(add(g[0], g[2]), -1.0);
                }
                relative[1] = scale(u, -1.0);
                relative[2] = sub(v, u);
            }
            Measure::Dihedral([i, j, k, l]) => {
                let (a, b, c) = (to(i, j), to(j, k), to(k, l));
                let (m, n) = (cross(a, b), cross(b, c));
                let length = norm(b);
                *value = (length * dot(a, n)).atan2(dot(m, n));
                let (mm, nn) = (dot(m, m), dot(n, n));
                if mm > SINGULAR * SINGULAR && nn > SINGULAR * SINGULAR {
                    // A. Blondel and M. Karplus, J. Comput. Chem. 17, 1132 (1996).
                    g[0] = scale(m, -length / mm);
                    g[3] = scale(n, length / nn);
                    let (p, q) = (dot(a, b) / (length * length), dot(c, b) / (length * length));
                    g[1] = sub(scale(g[3], q), scale(g[0], 1.0 + p));
                    g[2] = sub(scale(g[0], p), scale(g[3], 1.0 + q));
                }
                relative[1] = a;
                relative[2] = add(a, b);
                relative[3] = add(relative[2], c);
            }
        }
        // A dihedral of exactly −π is π.
        if self.period().is_some() && *value <= -PI {
            *value = PI;
        }
        point
    }
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn norm(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

fn add(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

fn sub(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

fn scale(a: [f64; 3], s: f64) -> [f64; 3] {
    [a[0] * s, a[1] * s, a[2] * s]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}
