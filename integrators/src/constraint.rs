//! Rigid bonds: SHAKE for positions, RATTLE for velocities, solved cluster by cluster.
//!
//! A cluster is a set of constraints that share atoms: a heavy atom with up to four hydrogens, or a rigid triangle (water).
//! Positions are corrected along the old bond vectors by Newton's method on all constraints of a cluster at once (M-SHAKE:
//! Kräutler, van Gunsteren & Hünenberger, *J. Comput. Chem.* 2001), velocities by one linear solve. Newton converges
//! quadratically, so a fixed number of rounds reaches rounding error at any step that is stable; no lane waits for another,
//! and a replica's result does not depend on its neighbours.
//!
//! Every drift is followed by both corrections, every change of velocity by the second (g-BAOAB: Leimkuhler & Matthews,
//! *Proc. R. Soc. A* 2016).

use crate::error::{Result, invalid};
use crate::simd::{Lanes, MAX_LANES, SimdReal};
use crate::state::State;
use crate::system::System;
use crate::{Batch, Real};

/// Newton rounds of the position correction. The error is squared each round: 1e-2 → 1e-4 → 1e-8 → 1e-16.
const ROUNDS: usize = 4;
/// Most constraints and atoms of a cluster.
const MOST: usize = 4;

/// Which atoms of a cluster each constraint joins.
type Shape = [(usize, usize); MOST];
const STAR: Shape = [(0, 1), (0, 2), (0, 3), (0, 4)];
const TRIANGLE: Shape = [(0, 1), (0, 2), (1, 2), (0, 0)];

/// Clusters of one shape: `A` atoms and `K` constraints each.
#[derive(Clone, Debug, Default)]
struct Clusters<T, const A: usize, const K: usize> {
    atoms: Vec<[u32; A]>,
    /// Per cluster: inverse masses `[A]`, squared lengths `[K]`, couplings `[K, K]`.
    parameters: Vec<T>,
}

/// All constraints of one system in one precision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Constraints<T> {
    pairs: Clusters<T, 2, 1>,
    twos: Clusters<T, 3, 2>,
    threes: Clusters<T, 4, 3>,
    fours: Clusters<T, 5, 4>,
    triangles: Clusters<T, 3, 3>,
}

/// Where coordinate `axis` of atom `i` is: `i * atom + axis * axis_stride`, in scalars.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub(crate) atom: usize,
    pub(crate) axis: usize,
}

/// What happened before the correction.
#[derive(Clone, Copy)]
pub(crate) enum After {
    /// Velocities changed: project them.
    Velocity,
    /// Positions drifted with the velocities for this long (ps): correct both.
    Drift(f64),
    /// Positions moved without velocities: correct them alone.
    Displacement,
}

/// Clusters of one shape as flat tables: their number, atoms and parameters.
pub(crate) struct ClusterTable {
    pub(crate) count: usize,
    pub(crate) atoms: Vec<u32>,
    pub(crate) parameters: Vec<f64>,
}

impl Constraints<f64> {
    /// All clusters, shape by shape, as kernels of devices read them.
    pub(crate) fn tables(&self) -> [ClusterTable; 5] {
        [self.pairs.table(), self.twos.table(), self.threes.table(), self.fours.table(), self.triangles.table()]
    }
}

impl<const A: usize, const K: usize> Clusters<f64, A, K> {
    fn table(&self) -> ClusterTable {
        ClusterTable { count: self.atoms.len(), atoms: self.atoms.concat(), parameters: self.parameters.clone() }
    }
}

impl<T: Real> Constraints<T> {
    /// Sorts the constraints of `system` into clusters.
    ///
    /// # Errors
    /// Where constraints form a larger cluster than those above, or a length is not positive.
    pub(crate) fn new(system: &System) -> Result<Self> {
        let mut all = Self::default();
        for (atoms, lengths, triangle) in clusters(system)? {
            let mass = |i: u32| system.masses[i as usize];
            if triangle {
                all.triangles.push(&atoms, &lengths, &TRIANGLE, mass);
            } else {
                match lengths.len() {
                    1 => all.pairs.push(&atoms, &lengths, &STAR, mass),
                    2 => all.twos.push(&atoms, &lengths, &STAR, mass),
                    3 => all.threes.push(&atoms, &lengths, &STAR, mass),
                    _ => all.fours.push(&atoms, &lengths, &STAR, mass),
                }
            }
        }
        Ok(all)
    }

    /// True where nothing is constrained.
    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.atoms.is_empty()
            && self.twos.atoms.is_empty()
            && self.threes.atoms.is_empty()
            && self.fours.atoms.is_empty()
            && self.triangles.atoms.is_empty()
    }

    /// Corrects replica lanes: `x`, `v`, and `old`, the positions before the drift, are `[N, 3]` vectors.
    #[inline(always)]
    pub(crate) fn apply<V: Lanes<Scalar = T>>(&self, t: V::Token, after: After, x: &mut [V], v: &mut [V], old: &[V]) {
        self.pairs.apply(t, &STAR, after, x, v, old);
        self.twos.apply(t, &STAR, after, x, v, old);
        self.threes.apply(t, &STAR, after, x, v, old);
        self.fours.apply(t, &STAR, after, x, v, old);
        self.triangles.apply(t, &TRIANGLE, after, x, v, old);
    }

    /// Corrects one replica with lanes over clusters: scalars laid out after `strides`.
    #[inline(always)]
    pub(crate) fn apply_one<V: Lanes<Scalar = T>>(&self, t: V::Token, after: After, strides: Strides, x: &mut [T], v: &mut [T], old: &[T]) {
        self.pairs.apply_one::<V>(t, &STAR, after, strides, x, v, old);
        self.twos.apply_one::<V>(t, &STAR, after, strides, x, v, old);
        self.threes.apply_one::<V>(t, &STAR, after, strides, x, v, old);
        self.fours.apply_one::<V>(t, &STAR, after, strides, x, v, old);
        self.triangles.apply_one::<V>(t, &TRIANGLE, after, strides, x, v, old);
    }
}

/// Connected constraints: atoms (the shared one first), lengths, and whether they close a triangle.
type Cluster = (Vec<u32>, Vec<f64>, bool);

fn clusters(system: &System) -> Result<Vec<Cluster>> {
    let mut partners: Vec<Vec<(u32, f64)>> = vec![Vec::new(); system.len()];
    for c in &system.constraints {
        let [i, j] = c.atoms;
        if i as usize >= system.len() || j as usize >= system.len() || i == j {
            return invalid(format!("{}: constraint {}-{} does not join two of its {} atoms", system.name, i + 1, j + 1, system.len()));
        }
        if !(c.length.is_finite() && c.length > 0.0) {
            return invalid(format!("{}: constraint {}-{} has length {} nm; it must be positive", system.name, i + 1, j + 1, c.length));
        }
        // Two atoms that stay where they are keep their distance anyway.
        if system.masses[i as usize] > 0.0 || system.masses[j as usize] > 0.0 {
            partners[i as usize].push((j, c.length));
            partners[j as usize].push((i, c.length));
        }
    }
    let mut seen = vec![false; system.len()];
    let mut found = Vec::new();
    for start in 0..system.len() {
        if seen[start] || partners[start].is_empty() {
            continue;
        }
        let mut members = vec![start as u32];
        let mut next = 0;
        seen[start] = true;
        while next < members.len() {
            for &(j, _) in &partners[members[next] as usize] {
                if !seen[j as usize] {
                    seen[j as usize] = true;
                    members.push(j);
                }
            }
            next += 1;
        }
        let bonds: usize = members.iter().map(|&i| partners[i as usize].len()).sum::<usize>() / 2;
        let length = |i: u32, j: u32| partners[i as usize].iter().find(|p| p.0 == j).map(|p| p.1);
        let centre = members.iter().copied().max_by_key(|&i| (partners[i as usize].len(), std::cmp::Reverse(i))).unwrap_or(0);
        let mut others: Vec<u32> = members.iter().copied().filter(|&i| i != centre).collect();
        others.sort_unstable();
        let lengths: Option<Vec<f64>> = others.iter().map(|&j| length(centre, j)).collect();
        let mut atoms = vec![centre];
        atoms.extend(&others);
        match lengths {
            Some(lengths) if bonds == others.len() && bonds <= MOST => found.push((atoms, lengths, false)),
            Some(mut lengths) if bonds == 3 && others.len() == 2 => {
                lengths.extend(length(others[0], others[1]));
                found.push((atoms, lengths, true));
            }
            _ => {
                return invalid(format!(
                    "{}: {bonds} constraints share atoms around {}; at most {MOST} around one atom, or a rigid triangle, are supported. \
                     Constrain bonds to hydrogen only (constraints=HBonds)",
                    system.name,
                    system.describe_atom(centre as usize)
                ));
            }
        }
    }
    Ok(found)
}

impl<T: Real, const A: usize, const K: usize> Clusters<T, A, K> {
    fn push(&mut self, atoms: &[u32], lengths: &[f64], shape: &Shape, mass: impl Fn(u32) -> f64) {
        let mut members = [0; A];
        members.copy_from_slice(atoms);
        self.atoms.push(members);
        let inverse = |a: usize| {
            let m = mass(members[a]);
            if m > 0.0 { 1.0 / m } else { 0.0 }
        };
        self.parameters.extend((0..A).map(|a| T::from_f64(inverse(a))));
        self.parameters.extend(lengths.iter().map(|l| T::from_f64(l * l)));
        // Moving along constraint l changes constraint k through the atoms they share.
        for k in 0..K {
            for l in 0..K {
                let sign = |c: usize, a: usize| f64::from(u8::from(shape[c].0 == a)) - f64::from(u8::from(shape[c].1 == a));
                let coupling: f64 = (0..A).map(|a| sign(k, a) * sign(l, a) * inverse(a)).sum();
                self.parameters.push(T::from_f64(coupling));
            }
        }
    }

    const WIDTH: usize = A + K + K * K;

    #[inline(always)]
    fn apply<V: Lanes<Scalar = T>>(&self, t: V::Token, shape: &Shape, after: After, x: &mut [V], v: &mut [V], old: &[V]) {
        for (atoms, p) in self.atoms.iter().zip(self.parameters.chunks_exact(Self::WIDTH)) {
            let zero = V::zero(t);
            let (mut cx, mut cv, mut co) = ([[zero; 3]; A], [[zero; 3]; A], [[zero; 3]; A]);
            for a in 0..A {
                for k in 0..3 {
                    let at = 3 * atoms[a] as usize + k;
                    (cx[a][k], cv[a][k], co[a][k]) = (x[at], v[at], old[at]);
                }
            }
            let mut parameters = Parameters { inverse_mass: [zero; A], length_2: [zero; K], coupling: [[zero; K]; K] };
            for a in 0..A {
                parameters.inverse_mass[a] = V::splat(t, p[a]);
            }
            for k in 0..K {
                parameters.length_2[k] = V::splat(t, p[A + k]);
                for l in 0..K {
                    parameters.coupling[k][l] = V::splat(t, p[A + K + k * K + l]);
                }
            }
            correct(t, shape, after, &parameters, &mut cx, &mut cv, &co);
            for a in 0..A {
                for k in 0..3 {
                    let at = 3 * atoms[a] as usize + k;
                    (x[at], v[at]) = (cx[a][k], cv[a][k]);
                }
            }
        }
    }

    #[inline(always)]
    fn apply_one<V: Lanes<Scalar = T>>(
        &self,
        t: V::Token,
        shape: &Shape,
        after: After,
        strides: Strides,
        x: &mut [T],
        v: &mut [T],
        old: &[T],
    ) {
        let zero = V::zero(t);
        for (block, clusters) in self.atoms.chunks(V::LANES).enumerate() {
            let mut gathered = [[[[T::default(); MAX_LANES]; 3]; A]; 3];
            let mut p = [[T::default(); MAX_LANES]; MOST + 1 + MOST + MOST * MOST];
            for l in 0..V::LANES {
                // Lanes beyond the last cluster repeat it.
                let c = l.min(clusters.len() - 1);
                for a in 0..A {
                    for k in 0..3 {
                        let at = clusters[c][a] as usize * strides.atom + k * strides.axis;
                        gathered[0][a][k][l] = x[at];
                        gathered[1][a][k][l] = v[at];
                        gathered[2][a][k][l] = old[at];
                    }
                }
                let row = &self.parameters[(block * V::LANES + c) * Self::WIDTH..][..Self::WIDTH];
                for (lanes, &value) in p.iter_mut().zip(row) {
                    lanes[l] = value;
                }
            }
            let (mut cx, mut cv, mut co) = ([[zero; 3]; A], [[zero; 3]; A], [[zero; 3]; A]);
            for a in 0..A {
                for k in 0..3 {
                    cx[a][k] = V::load(t, &gathered[0][a][k]);
                    cv[a][k] = V::load(t, &gathered[1][a][k]);
                    co[a][k] = V::load(t, &gathered[2][a][k]);
                }
            }
            let mut parameters = Parameters { inverse_mass: [zero; A], length_2: [zero; K], coupling: [[zero; K]; K] };
            for a in 0..A {
                parameters.inverse_mass[a] = V::load(t, &p[a]);
            }
            for k in 0..K {
                parameters.length_2[k] = V::load(t, &p[A + k]);
                for l in 0..K {
                    parameters.coupling[k][l] = V::load(t, &p[A + K + k * K + l]);
                }
            }
            correct(t, shape, after, &parameters, &mut cx, &mut cv, &co);
            for a in 0..A {
                for k in 0..3 {
                    cx[a][k].store(&mut gathered[0][a][k]);
                    cv[a][k].store(&mut gathered[1][a][k]);
                }
            }
            for (l, atoms) in clusters.iter().enumerate() {
                for a in 0..A {
                    for k in 0..3 {
                        let at = atoms[a] as usize * strides.atom + k * strides.axis;
                        x[at] = gathered[0][a][k][l];
                        v[at] = gathered[1][a][k][l];
                    }
                }
            }
        }
    }
}

struct Parameters<V, const A: usize, const K: usize> {
    inverse_mass: [V; A],
    length_2: [V; K],
    coupling: [[V; K]; K],
}

#[inline(always)]
fn dot<V: Lanes>(a: &[V; 3], b: &[V; 3]) -> V {
    a[2].mul_add(b[2], a[1].mul_add(b[1], a[0] * b[0]))
}

/// Bond vectors of a cluster.
#[inline(always)]
fn bonds<V: Lanes, const A: usize, const K: usize>(t: V::Token, shape: &Shape, x: &[[V; 3]; A]) -> [[V; 3]; K] {
    let mut r = [[V::zero(t); 3]; K];
    for k in 0..K {
        let (i, j) = shape[k];
        for axis in 0..3 {
            r[k][axis] = x[i][axis] - x[j][axis];
        }
    }
    r
}

/// Adds `Σₖ ± λₖ rₖ / m` to every atom.
#[inline(always)]
fn push<V: Lanes, const A: usize, const K: usize>(
    shape: &Shape,
    p: &Parameters<V, A, K>,
    lambda: &[V; K],
    r: &[[V; 3]; K],
    x: &mut [[V; 3]; A],
) {
    for k in 0..K {
        let (i, j) = shape[k];
        for axis in 0..3 {
            let impulse = lambda[k] * r[k][axis];
            x[i][axis] = p.inverse_mass[i].mul_add(impulse, x[i][axis]);
            x[j][axis] = p.inverse_mass[j].mul_add(-impulse, x[j][axis]);
        }
    }
}

/// Solves `m λ = g` by elimination; the diagonal dominates (hydrogens are light), so no rows are exchanged.
#[inline(always)]
fn solve<V: Lanes, const K: usize>(m: &mut [[V; K]; K], g: &mut [V; K]) {
    for k in 0..K {
        let inverse = m[k][k].recip();
        for row in k + 1..K {
            let factor = m[row][k] * inverse;
            for l in k + 1..K {
                m[row][l] = (-factor).mul_add(m[k][l], m[row][l]);
            }
            g[row] = (-factor).mul_add(g[k], g[row]);
        }
    }
    let mut k = K;
    while k > 0 {
        k -= 1;
        let mut sum = g[k];
        for l in k + 1..K {
            sum = (-m[k][l]).mul_add(g[l], sum);
        }
        g[k] = sum * m[k][k].recip();
    }
}

/// One cluster in every lane.
#[inline(always)]
fn correct<V: Lanes, const A: usize, const K: usize>(
    t: V::Token,
    shape: &Shape,
    after: After,
    p: &Parameters<V, A, K>,
    x: &mut [[V; 3]; A],
    v: &mut [[V; 3]; A],
    old: &[[V; 3]; A],
) {
    if !matches!(after, After::Velocity) {
        let half = V::lit(t, 0.5);
        let r_old: [[V; 3]; K] = bonds(t, shape, old);
        let drifted = *x;
        for _ in 0..ROUNDS {
            let r: [[V; 3]; K] = bonds(t, shape, x);
            let mut m = [[V::zero(t); K]; K];
            let mut g = [V::zero(t); K];
            for k in 0..K {
                g[k] = half * (p.length_2[k] - dot(&r[k], &r[k]));
                for l in 0..K {
                    m[k][l] = p.coupling[k][l] * dot(&r[k], &r_old[l]);
                }
            }
            solve(&mut m, &mut g);
            push(shape, p, &g, &r_old, x);
        }
        if let After::Drift(h) = after {
            let rate = V::lit(t, 1.0 / h);
            for a in 0..A {
                for axis in 0..3 {
                    v[a][axis] = rate.mul_add(x[a][axis] - drifted[a][axis], v[a][axis]);
                }
            }
        }
    }
    if !matches!(after, After::Displacement) {
        let r: [[V; 3]; K] = bonds(t, shape, x);
        let w: [[V; 3]; K] = bonds(t, shape, v);
        let mut m = [[V::zero(t); K]; K];
        let mut g = [V::zero(t); K];
        for k in 0..K {
            g[k] = -dot(&r[k], &w[k]);
            for l in 0..K {
                m[k][l] = p.coupling[k][l] * dot(&r[k], &r[l]);
            }
        }
        solve(&mut m, &mut g);
        push(shape, p, &g, &r, v);
    }
}

/// Puts the positions of `state` on their constraints and projects the velocities.
///
/// # Errors
/// Where the constraints form unsupported clusters, or the positions are too far from satisfying them.
pub fn project(batch: &Batch, state: &mut State) -> Result<()> {
    fn typed<T: SimdReal>(batch: &Batch, state: &mut State) -> Result<()> {
        let half = state.phase.len() / 2;
        let phase = state.phase.typed_mut::<T>()?;
        for b in 0..batch.replicas() {
            let constraints = Constraints::<T>::new(batch.system(b))?;
            if constraints.is_empty() {
                continue;
            }
            let (x, v) = phase.split_at_mut(half);
            let (x, v) = (&mut x[batch.range3(b)], &mut v[batch.range3(b)]);
            let old = x.to_vec();
            crate::simd::dispatch(ProjectOne { constraints: &constraints, x, v, old: &old });
        }
        Ok(())
    }
    if batch.systems().iter().all(|s| s.constraints.is_empty()) {
        return Ok(());
    }
    crate::by_dtype!(state.dtype(), typed(batch, state))?;
    let worst = violation(batch, state);
    if worst.is_nan() || worst > 1e-3 {
        return invalid(format!(
            "the start positions cannot be put on their constraints (relative error {worst:.1e}); relax the structure without constraints first"
        ));
    }
    Ok(())
}

struct ProjectOne<'a, T> {
    constraints: &'a Constraints<T>,
    x: &'a mut [T],
    v: &'a mut [T],
    old: &'a [T],
}

impl<T: SimdReal> pulp::WithSimd for ProjectOne<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, t: S) {
        let strides = Strides { atom: 3, axis: 1 };
        // Start positions may be a few percent off: correct along bonds that are themselves corrected.
        let mut old = self.old.to_vec();
        for _ in 0..3 {
            self.constraints.apply_one::<T::Of<S>>(t, After::Displacement, strides, self.x, self.v, &old);
            old.copy_from_slice(self.x);
        }
        self.constraints.apply_one::<T::Of<S>>(t, After::Velocity, strides, self.x, self.v, &old);
    }
}

/// Largest relative deviation `| |r|/length − 1 |` of any constraint.
pub fn violation(batch: &Batch, state: &State) -> f64 {
    let worst = (0..batch.replicas()).map(|b| violation_of(batch, state, b));
    worst.fold(0.0, |worst, error| if error.is_nan() || error > worst { error } else { worst })
}

/// Largest relative deviation of any constraint of replica `b`.
pub fn violation_of(batch: &Batch, state: &State, b: usize) -> f64 {
    let x = state.positions();
    let first = batch.range3(b).start;
    let mut worst = 0.0_f64;
    for c in &batch.system(b).constraints {
        let [i, j] = c.atoms.map(|i| first + 3 * i as usize);
        let r2: f64 = (0..3).map(|a| (x.get(i + a) - x.get(j + a)).powi(2)).sum();
        let error = (r2.sqrt() / c.length - 1.0).abs();
        // A plain comparison would pass over NaN.
        if error.is_nan() || error > worst {
            worst = error;
        }
    }
    worst
}
