//! Rigid bonds on the way down: forces without their parts along the bonds, and positions put back onto them (SHAKE: Ryckaert,
//! Ciccotti & Berendsen, *J. Comput. Phys.* 1977). All atoms count alike, so that what is removed is orthogonal to what is
//! left and a minimum is where the projected force vanishes.

use crate::error::{Result, invalid};
use crate::system::System;

/// Relative error of a squared length that is good enough.
const TOLERANCE: f64 = 1e-11;
/// Most sweeps over all bonds; each divides the error by at least three where a hydrogen's heavy atom has up to four.
const SWEEPS: usize = 500;

/// One end of a bond.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Which of the atoms that move.
    Moving(usize),
    /// An atom that does not, and its place.
    Fixed([f64; 3]),
}

#[derive(Clone, Debug)]
struct Bond {
    ends: [End; 2],
    length_2: f64,
}

/// Rigid bonds of one replica; coordinates are those of its moving atoms, `[n, 3]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Rigid {
    bonds: Vec<Bond>,
    /// Bond vectors before a step.
    before: Vec<[f64; 3]>,
}

impl End {
    fn at(self, x: &[f64]) -> [f64; 3] {
        match self {
            End::Moving(i) => [x[3 * i], x[3 * i + 1], x[3 * i + 2]],
            End::Fixed(place) => place,
        }
    }

    /// 1 where it moves, else 0.
    fn weight(self) -> f64 {
        f64::from(u8::from(matches!(self, End::Moving(_))))
    }

    fn add(self, to: &mut [f64], factor: f64, r: [f64; 3]) {
        if let End::Moving(i) = self {
            (0..3).for_each(|a| to[3 * i + a] += factor * r[a]);
        }
    }
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl Bond {
    fn vector(&self, x: &[f64]) -> [f64; 3] {
        let [i, j] = self.ends.map(|end| end.at(x));
        std::array::from_fn(|a| i[a] - j[a])
    }

    fn weight(&self) -> f64 {
        self.ends[0].weight() + self.ends[1].weight()
    }

    /// Adds `factor r` to the first end and takes it from the second.
    fn push(&self, to: &mut [f64], factor: f64, r: [f64; 3]) {
        self.ends[0].add(to, factor, r);
        self.ends[1].add(to, -factor, r);
    }
}

impl Rigid {
    /// The rigid bonds of `system`, of which those atoms do not move that have no mass; `positions` are `[N, 3]`.
    ///
    /// # Errors
    /// Where a bond names an atom that is not there, has no length, or an axis is inactive.
    pub(super) fn new(system: &System, positions: &[f64]) -> Result<Self> {
        let mut next = 0;
        let ends: Vec<End> = system
            .masses
            .iter()
            .zip(positions.chunks_exact(3))
            .map(|(&mass, x)| {
                if mass > 0.0 {
                    next += 1;
                    End::Moving(next - 1)
                } else {
                    End::Fixed([x[0], x[1], x[2]])
                }
            })
            .collect();
        let mut bonds = Vec::with_capacity(system.constraints.len());
        for c in &system.constraints {
            let [i, j] = c.atoms.map(|i| i as usize);
            let (Some(&first), Some(&second), true) = (ends.get(i), ends.get(j), c.length.is_finite() && c.length > 0.0 && i != j) else {
                return invalid(format!(
                    "{}: the rigid bond {}-{} of {} nm does not join two of its {} atoms",
                    system.name,
                    i + 1,
                    j + 1,
                    c.length,
                    ends.len()
                ));
            };
            let bond = Bond { ends: [first, second], length_2: c.length * c.length };
            if bond.weight() > 0.0 {
                bonds.push(bond);
            }
        }
        if !bonds.is_empty() && system.axes != [true; 3] {
            return invalid(format!("{} has rigid bonds but moves on fewer than three axes", system.name));
        }
        Ok(Rigid { before: vec![[0.0; 3]; bonds.len()], bonds })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bonds.is_empty()
    }

    /// Keeps the directions of the bonds at `x`, along which [`Rigid::restore`] will put atoms back.
    pub(super) fn remember(&mut self, x: &[f64]) {
        for (before, bond) in self.before.iter_mut().zip(&self.bonds) {
            *before = bond.vector(x);
        }
    }

    /// Puts `x` back onto the bonds; false where that cannot be done.
    pub(super) fn restore(&self, x: &mut [f64]) -> bool {
        for _ in 0..SWEEPS {
            let mut worst = 0.0f64;
            for (bond, &before) in self.bonds.iter().zip(&self.before) {
                let r = bond.vector(x);
                let excess = dot(r, r) - bond.length_2;
                worst = worst.max(excess.abs() / bond.length_2);
                // A bond that has turned by nearly a right angle is put back along itself.
                let along = dot(r, before);
                let (direction, along) = if along > 0.3 * bond.length_2 { (before, along) } else { (r, dot(r, r)) };
                bond.push(x, -excess / (2.0 * bond.weight() * along), direction);
            }
            // Not so also where it is not a number.
            if worst < TOLERANCE {
                return true;
            }
            if !worst.is_finite() {
                return false;
            }
        }
        false
    }

    /// Takes out of `force` what acts along the bonds at `x`.
    pub(super) fn project(&self, x: &[f64], force: &mut [f64]) {
        let scale = force.iter().fold(0.0f64, |m, f| m.max(f.abs()));
        for _ in 0..SWEEPS {
            let mut worst = 0.0f64;
            for bond in &self.bonds {
                let r = bond.vector(x);
                let [i, j] = bond.ends;
                let pull = [i, j].map(|end| if let End::Moving(_) = end { dot(end.at(force), r) } else { 0.0 });
                let excess = (pull[0] - pull[1]) / (bond.weight() * dot(r, r));
                worst = worst.max(excess.abs() * dot(r, r).sqrt());
                bond.push(force, -excess, r);
            }
            // Not so also where it is not a number, which the caller looks for.
            if !(worst > 1e-13 * scale) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Constraint;

    /// A methyl group on a fixed atom: one bond to an atom that does not move, three that share their heavy atom.
    fn methyl() -> (System, Vec<f64>) {
        let mut system = System::particles("methyl", 5, 1.0);
        system.masses[0] = 0.0;
        system.constraints = vec![
            Constraint { atoms: [0, 1], length: 0.15 },
            Constraint { atoms: [1, 2], length: 0.109 },
            Constraint { atoms: [3, 1], length: 0.109 },
            Constraint { atoms: [1, 4], length: 0.109 },
        ];
        let x = vec![0.0, 0.0, 0.0, 0.15, 0.01, 0.0, 0.19, 0.1, 0.0, 0.18, -0.05, 0.09, 0.19, -0.06, -0.09];
        (system, x)
    }

    #[test]
    fn restores_lengths_and_projects_forces() {
        let (system, positions) = methyl();
        let mut rigid = Rigid::new(&system, &positions).unwrap();
        let mut x = positions[3..].to_vec();
        rigid.remember(&x);
        assert!(rigid.restore(&mut x));
        let length = |x: &[f64], c: &Constraint| {
            let at = |i: u32| if i == 0 { [0.0; 3] } else { std::array::from_fn(|a| x[3 * (i as usize - 1) + a]) };
            let [a, b] = c.atoms.map(at);
            (0..3).map(|k| (a[k] - b[k]) * (a[k] - b[k])).sum::<f64>().sqrt()
        };
        for c in &system.constraints {
            assert!((length(&x, c) - c.length).abs() < 1e-11, "{}", length(&x, c));
        }
        let before: Vec<f64> = (0..12).map(|k| (1.7 * k as f64).sin()).collect();
        let mut force = before.clone();
        rigid.project(&x, &mut force);
        // A small step along what is left changes no length to first order; a second projection changes nothing; what was
        // taken away is orthogonal to what is left.
        let h = 1e-6;
        let moved: Vec<f64> = x.iter().zip(&force).map(|(x, f)| x + h * f).collect();
        for c in &system.constraints {
            assert!((length(&moved, c) - c.length).abs() < 1e-10);
        }
        let mut again = force.clone();
        rigid.project(&x, &mut again);
        assert!(again.iter().zip(&force).all(|(a, b)| (a - b).abs() < 1e-12));
        let product: f64 = force.iter().zip(&before).map(|(f, b)| f * (b - f)).sum();
        assert!(product.abs() < 1e-11 && force.iter().any(|f| f.abs() > 0.1));
    }

    #[test]
    fn what_cannot_be_kept_is_said() {
        let (mut system, positions) = methyl();
        system.constraints.push(Constraint { atoms: [2, 3], length: 0.3 });
        let mut rigid = Rigid::new(&system, &positions).unwrap();
        let mut x = positions[3..].to_vec();
        rigid.remember(&x);
        assert!(!rigid.restore(&mut x), "no triangle of 0.109, 0.109 and 0.3 nm");
        system.constraints.push(Constraint { atoms: [2, 9], length: 0.3 });
        assert!(Rigid::new(&system, &positions).unwrap_err().to_string().contains("3-10"));
    }
}
