//! L-BFGS: limited-memory quasi-Newton steps without a line search.

use super::positive;
use super::walk::{Descent, dot, longest, norm};
use crate::error::{Result, invalid};
use crate::units::{Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};

/// Pairs skipped in a row after which the memory is dropped.
const SKIPS: u32 = 3;
/// Smallest ratio of the curvature met to its first guess that is believed; the largest is one over this.
const SOFTEST: f64 = 1e-4;

/// The two-loop recursion (Nocedal, *Math. Comp.* 35, 773, 1980) as ASE's `LBFGS` uses it: no energy and no line search.
///
/// With `s = x − x₀` and `y = F₀ − F` between successive steps and the inverse Hessian `H` that the last `memory` pairs make
/// of `H₀ = 1/curvature`, the step is `p = H F`, scaled as a whole by `max_step / max_i |p_i|` where an atom would move
/// farther than `max_step`, times `damping`.
///
/// ASE keeps every pair. Here a pair with `y·s ≤ 10⁻¹⁰ |y| |s|` is skipped: on a surface that curves downwards, and with
/// forces that are no gradient, such pairs turn `H` against the force, and steps go uphill. From the first skip on `H₀`
/// follows the surface instead of the first guess, `y·s/y·y` after a pair that is kept and `|s|/|y|` after one that is
/// skipped. After three skips in a row, or where `p` does not go along the force, the memory starts anew. Until the
/// first skip the path is ASE's.
///
/// The defaults are ASE's; in reduced units they are the same bare numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LbfgsSpec {
    /// Converged below this largest force on an atom; 0.05 eV/Å, or 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fmax: Option<Quantity>,
    /// Stalled after this many steps without a new smallest `fmax`.
    pub patience: u64,
    /// Number of pairs kept, at most 1000.
    pub memory: usize,
    /// First guess of the surface's curvature; 70 eV/Å², or 70.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curvature: Option<Quantity>,
    /// Factor on every step.
    pub damping: f64,
    /// Longest move of an atom in one step; 0.2 Å, or 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_step: Option<Quantity>,
}

impl Default for LbfgsSpec {
    fn default() -> Self {
        LbfgsSpec { fmax: None, patience: 2000, memory: 100, curvature: None, damping: 1.0, max_step: None }
    }
}

impl LbfgsSpec {
    pub(super) fn resolve(&self, units: UnitSystem) -> Result<Settings> {
        if !(1..=1000).contains(&self.memory) {
            return invalid(format!("L-BFGS: memory = {} is not between 1 and 1000", self.memory));
        }
        if !(self.damping > 0.0 && self.damping <= 10.0) {
            return invalid(format!("L-BFGS: damping = {} is not above 0 and at most 10", self.damping));
        }
        Ok(Settings {
            memory: self.memory,
            curvature: positive("curvature", self.curvature.as_ref(), Dimension::STIFFNESS, units, (70.0, "eV/A^2"), 70.0)?,
            damping: self.damping,
            max_step: positive("max_step", self.max_step.as_ref(), Dimension::LENGTH, units, (0.2, "A"), 0.2)?,
        })
    }
}

/// A [`LbfgsSpec`] in internal units.
#[derive(Clone)]
pub(super) struct Settings {
    memory: usize,
    curvature: f64,
    damping: f64,
    max_step: f64,
}

/// One replica's pairs, in a ring.
pub(super) struct Lbfgs {
    settings: Settings,
    dimension: usize,
    /// Moves `[memory, n]`.
    s: Vec<f64>,
    /// Changes of the gradient `[memory, n]`.
    y: Vec<f64>,
    /// `1/(y·s)` `[memory]`.
    rho: Vec<f64>,
    /// Scratch of the recursion `[memory]`.
    weight: Vec<f64>,
    /// Next place in the ring.
    next: usize,
    pairs: usize,
    /// There was a last step.
    started: bool,
    /// Coordinates before the last step.
    x0: Vec<f64>,
    /// Forces before the last step.
    force0: Vec<f64>,
    step: Vec<f64>,
    /// Skips in a row.
    skipped: u32,
    /// `1/H₀`.
    curvature: f64,
    /// A pair was skipped at some time.
    guarded: bool,
}

impl Lbfgs {
    pub(super) fn new(settings: &Settings, atoms: usize, dimension: usize) -> Self {
        let (m, n) = (settings.memory, atoms * dimension);
        Lbfgs {
            dimension,
            s: vec![0.0; m * n],
            y: vec![0.0; m * n],
            rho: vec![0.0; m],
            weight: vec![0.0; m],
            next: 0,
            pairs: 0,
            started: false,
            x0: vec![0.0; n],
            force0: vec![0.0; n],
            step: vec![0.0; n],
            skipped: 0,
            curvature: settings.curvature,
            guarded: false,
            settings: settings.clone(),
        }
    }

    /// Takes in the last step, unless the surface curves downwards along it.
    fn learn(&mut self, x: &[f64], force: &[f64]) {
        let n = x.len();
        // A full ring loses its oldest pair, whose place is taken, even where the new one is skipped.
        self.pairs = self.pairs.min(self.settings.memory - 1);
        let place = self.next * n..(self.next + 1) * n;
        let (s, y) = (&mut self.s[place.clone()], &mut self.y[place]);
        for k in 0..n {
            s[k] = x[k] - self.x0[k];
            y[k] = self.force0[k] - force[k];
        }
        let (product, sizes) = (dot(y, s), (norm(y), norm(s)));
        let keep = product > 1e-10 * sizes.0 * sizes.1;
        self.guarded |= !keep;
        if self.guarded && sizes.1 > 0.0 {
            let curvature = if keep { sizes.0 / product * sizes.0 } else { sizes.0 / sizes.1 };
            self.curvature = curvature.clamp(SOFTEST * self.settings.curvature, self.settings.curvature / SOFTEST);
        }
        if keep {
            self.rho[self.next] = 1.0 / product;
            self.next = (self.next + 1) % self.settings.memory;
            self.pairs += 1;
            self.skipped = 0;
        } else {
            self.skipped += 1;
            if self.skipped >= SKIPS {
                self.pairs = 0;
                self.skipped = 0;
            }
        }
    }

    /// `step = H F` by the two-loop recursion.
    fn solve(&mut self, force: &[f64]) {
        let (m, n) = (self.settings.memory, force.len());
        let newest_first = |age: usize| (self.next + m - 1 - age) % m;
        self.step.copy_from_slice(force);
        for i in (0..self.pairs).map(newest_first) {
            let (s, y) = (&self.s[i * n..(i + 1) * n], &self.y[i * n..(i + 1) * n]);
            self.weight[i] = self.rho[i] * dot(s, &self.step);
            for (p, y) in self.step.iter_mut().zip(y) {
                *p -= self.weight[i] * y;
            }
        }
        for p in &mut self.step {
            *p /= self.curvature;
        }
        for i in (0..self.pairs).rev().map(newest_first) {
            let (s, y) = (&self.s[i * n..(i + 1) * n], &self.y[i * n..(i + 1) * n]);
            let correction = self.weight[i] - self.rho[i] * dot(y, &self.step);
            for (p, s) in self.step.iter_mut().zip(s) {
                *p += correction * s;
            }
        }
    }
}

impl Descent for Lbfgs {
    fn advance(&mut self, x: &mut [f64], force: &[f64]) {
        if self.started {
            self.learn(x, force);
        }
        self.solve(force);
        // Not so also where the product is not a number.
        let along = dot(&self.step, force) > 0.0;
        if !along && self.pairs > 0 {
            self.pairs = 0;
            self.solve(force);
        }
        let length = longest(&self.step, self.dimension);
        let limit = self.settings.max_step;
        let scale = self.settings.damping * if length >= limit { limit / length } else { 1.0 };
        self.started = true;
        self.x0.copy_from_slice(x);
        self.force0.copy_from_slice(force);
        for (x, p) in x.iter_mut().zip(&self.step) {
            *x += scale * p;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RelaxSpec;
    use super::super::testing::{Reference, atoms};
    use super::super::tests::Run;
    use super::*;
    use crate::array::DType;
    use crate::propagator::Progress;

    #[test]
    fn follows_ase_step_by_step() {
        for reference in Reference::read("lbfgs") {
            let settings = LbfgsSpec::default().resolve(UnitSystem::Si).unwrap();
            let mut x = reference.start.clone();
            let mut lbfgs = Lbfgs::new(&settings, x.len() / 3, 3);
            for step in 0..reference.path.len() {
                let force = reference.forces(&x);
                lbfgs.advance(&mut x, &force);
                assert_eq!(lbfgs.pairs, step, "a skipped pair leaves ASE's path");
                reference.check(step, &x);
            }
        }
    }

    /// Force evaluations and energy of the whole minimisation.
    #[test]
    fn costs_what_ase_pays() {
        for reference in Reference::read("lbfgs") {
            let spec = RelaxSpec::Lbfgs(LbfgsSpec::default()).with_fmax(Quantity::new(reference.fmax, "eV/A"));
            let start = (atoms(reference.start.len() / 3), reference.start.clone());
            let mut run = Run::new(&reference.toy, &spec, &[start], DType::F64).unwrap();
            assert_eq!(run.finish(1000), [Progress::Converged]);
            assert!((run.out.energy[0] - reference.energy).abs() < 1e-5 * reference.energy.abs());
            assert_eq!(run.state.step + 1, reference.evaluations);
        }
    }

    #[test]
    fn a_full_ring_forgets_the_oldest() {
        // On a quadratic surface of n dimensions n pairs are enough, whatever the ring has lost.
        let spec =
            LbfgsSpec { memory: 3, curvature: Some(Quantity::bare(5.0)), max_step: Some(Quantity::bare(10.0)), ..LbfgsSpec::default() };
        let mut lbfgs = Lbfgs::new(&spec.resolve(UnitSystem::Reduced).unwrap(), 1, 3);
        let mut x = [1.0, -2.0, 0.5];
        for step in 0..60usize {
            assert_eq!(lbfgs.pairs, step.saturating_sub(1).min(3));
            let force = [-x[0], -2.0 * x[1], -4.0 * x[2]];
            if norm(&force) < 1e-12 {
                return;
            }
            lbfgs.advance(&mut x, &force);
        }
        panic!("not converged: {x:?}");
    }

    #[test]
    fn survives_where_ase_evaporates() {
        // An expanded cluster: pairs of downward curvature turn the unguarded step against the force.
        for reference in Reference::read("lbfgs").iter().take(1) {
            let start: Vec<f64> = reference.start.iter().map(|x| 1.35 * x).collect();
            let spec = RelaxSpec::Lbfgs(LbfgsSpec::default()).with_fmax(Quantity::new(reference.fmax, "eV/A"));
            let mut run = Run::new(&reference.toy, &spec, &[(atoms(start.len() / 3), start)], DType::F64).unwrap();
            assert_eq!(run.finish(1000), [Progress::Converged]);
            assert!(run.out.energy[0] < 0.9 * reference.energy, "{} {}", run.out.energy[0], reference.energy);
        }
    }
}
