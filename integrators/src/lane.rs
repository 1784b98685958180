//! Providers from kernels over lanes of replicas: the kernel states the physics once, this module gives it both precisions,
//! every instruction set, evaluation of ragged batches and fused Langevin dynamics.
//!
//! Two layouts. *Replica lanes*: vector `3 i + axis` holds one coordinate of atom `i` in as many replicas as there are lanes;
//! no lane is wasted where replicas abound. *Atom lanes*: one replica, coordinates as three rows of atoms, lanes run over
//! atoms (or pairs); for kernels that offer it, when replicas are few. A kernel must give the same bits in both.

use crate::array::DType;
use crate::batch::Batch;
use crate::constraint::{After, Constraints, Strides};
use crate::device::DeviceModel;
use crate::error::{Error, Result};
use crate::force::{Capabilities, ForceProvider, Input, Output};
use crate::fused::{FusedLangevin, Plan, Stage};
use crate::noise::{Noise, Purpose};
use crate::simd::{self, AlignedBuffer, Lanes, MAX_LANES, SimdReal, dispatch};
use crate::state::{Clock, State};
use crate::system::System;
use pulp::{Simd, WithSimd};
use std::sync::Arc;

/// A potential over lanes. Implementations mark the evaluating functions `#[inline(always)]`.
pub trait LaneKernel: Send + Sync + 'static {
    /// The kernel also works in atom lanes ([`LaneKernel::evaluate_one`]).
    const ATOM_LANES: bool = false;

    /// What the provider made of this kernel can do.
    fn capabilities(&self) -> &Capabilities;

    /// Checks that `system` is one this kernel can evaluate.
    ///
    /// # Errors
    /// What does not fit, with a remedy.
    fn check(&self, system: &System) -> Result<()>;

    /// The same forces as kernels for devices, where there are any.
    fn device_model(&self) -> Option<DeviceModel> {
        None
    }

    /// Vectors of scratch needed for `atoms` atoms, in either layout.
    fn scratch(&self, atoms: usize) -> usize {
        let _ = atoms;
        0
    }

    /// Overwrites `f` (`[N, 3]` vectors, kJ/mol/nm) with the forces at `x` (`[N, 3]` vectors, nm); returns the energy
    /// (kJ/mol) where `ENERGY`, else anything. Forces are the same bits whether `ENERGY` or not.
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], scratch: &mut [V]) -> V;

    /// The same for one replica of `atoms` atoms in atom lanes: `x` and `f` are `[3, stride]` scalars, `stride` a multiple
    /// of the lanes. Only called where [`LaneKernel::ATOM_LANES`].
    fn evaluate_one<V: Lanes, const ENERGY: bool>(&self, t: V::Token, atoms: usize, x: &[V], f: &mut [V], scratch: &mut [V]) -> V::Scalar {
        let _ = (atoms, x, scratch);
        f.fill(V::zero(t));
        V::Scalar::default()
    }
}

/// The [`ForceProvider`] of a [`LaneKernel`].
pub struct LaneProvider<K> {
    kernel: Arc<K>,
    work32: Work<f32>,
    work64: Work<f64>,
}

/// Scratch of one precision. Lengths in scalars.
#[derive(Default)]
struct Work<T> {
    x: AlignedBuffer<T>,
    v: AlignedBuffer<T>,
    f: AlignedBuffer<T>,
    xi: AlignedBuffer<T>,
    scratch: AlignedBuffer<T>,
    /// Positions before a move, for constraints.
    old: AlignedBuffer<T>,
    /// Constraints of each system of the batch.
    constraints: Vec<(Arc<System>, Constraints<T>)>,
    tables: AlignedBuffer<T>,
    /// What the tables were made for; they are made anew when it changes.
    tables_of: Option<(Plan, Vec<f64>)>,
}

impl<K: LaneKernel> LaneProvider<K> {
    /// The provider of `kernel`.
    pub fn new(kernel: K) -> Self {
        LaneProvider { kernel: Arc::new(kernel), work32: Work::default(), work64: Work::default() }
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }
}

/// Replicas `first..first + count` share one system; they are evaluated together.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    count: usize,
    atoms: usize,
    atom_lanes: bool,
}

impl Group {
    /// The group that begins at replica `first`.
    #[inline(always)]
    fn at(batch: &Batch, first: usize, lanes: usize, can_atom_lanes: bool) -> Self {
        let system = batch.system(first);
        let mut count = 1;
        while count < lanes && first + count < batch.replicas() && Arc::ptr_eq(system, batch.system(first + count)) {
            count += 1;
        }
        // Half-empty vectors of replicas cost as much as full ones; below that, lanes over atoms are faster.
        let atom_lanes = can_atom_lanes && count < lanes.div_ceil(2).min(8);
        Group { first, count: if atom_lanes { 1 } else { count }, atoms: system.len(), atom_lanes }
    }

    /// Vectors per `[N, 3]` array in this group's layout.
    #[inline(always)]
    fn vectors(self, lanes: usize) -> usize {
        if self.atom_lanes { 3 * self.atoms.div_ceil(lanes) } else { 3 * self.atoms }
    }

    /// Copies `[A, 3]` scalars into the layout; unused lanes repeat the last replica, unused atoms are zero.
    #[inline(always)]
    fn gather<V: Lanes>(self, batch: &Batch, from: &[V::Scalar], to: &mut [V::Scalar]) {
        let l = V::LANES;
        if self.atom_lanes {
            let stride = self.atoms.div_ceil(l) * l;
            let row = &from[batch.range3(self.first)];
            to.fill(V::Scalar::default());
            for i in 0..self.atoms {
                for a in 0..3 {
                    to[a * stride + i] = row[3 * i + a];
                }
            }
        } else {
            for lane in 0..l {
                let row = &from[batch.range3(self.first + lane.min(self.count - 1))];
                for (k, &x) in row.iter().enumerate() {
                    to[k * l + lane] = x;
                }
            }
        }
    }

    /// Copies the layout back into `[A, 3]` scalars.
    #[inline(always)]
    fn scatter<V: Lanes>(self, batch: &Batch, from: &[V::Scalar], to: &mut [V::Scalar]) {
        let l = V::LANES;
        if self.atom_lanes {
            let stride = self.atoms.div_ceil(l) * l;
            let row = &mut to[batch.range3(self.first)];
            for i in 0..self.atoms {
                for a in 0..3 {
                    row[3 * i + a] = from[a * stride + i];
                }
            }
        } else {
            for lane in 0..self.count {
                let row = &mut to[batch.range3(self.first + lane)];
                for (k, x) in row.iter_mut().enumerate() {
                    *x = from[k * l + lane];
                }
            }
        }
    }
}

/// Entry into the kernel as a function of its own, so that it is compiled once per instruction set and precision.
struct Evaluate<'a, K, V: Lanes, const ENERGY: bool> {
    kernel: &'a K,
    group: Group,
    x: &'a [V],
    f: &'a mut [V],
    scratch: &'a mut [V],
    /// Energies of the group's replicas.
    energy: &'a mut [V::Scalar; MAX_LANES],
}

impl<K: LaneKernel, V: Lanes, const ENERGY: bool> WithSimd for Evaluate<'_, K, V, ENERGY> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let t = self.x[0].token();
        if K::ATOM_LANES && self.group.atom_lanes {
            self.energy[0] = self.kernel.evaluate_one::<V, ENERGY>(t, self.group.atoms, self.x, self.f, self.scratch);
        } else {
            let e = self.kernel.evaluate::<V, ENERGY>(t, self.x, self.f, self.scratch);
            if ENERGY {
                e.store(self.energy);
            }
        }
    }
}

/// Forces (and energies) of a whole batch.
struct EvaluateBatch<'a, K, T> {
    kernel: &'a K,
    batch: &'a Batch,
    work: &'a mut Work<T>,
    positions: &'a [T],
    forces: &'a mut [T],
    energies: Option<&'a mut [f64]>,
}

impl<K: LaneKernel, T: SimdReal> WithSimd for EvaluateBatch<'_, K, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let lanes = T::Of::<S>::LANES;
        let mut first = 0;
        while first < self.batch.replicas() {
            let group = Group::at(self.batch, first, lanes, K::ATOM_LANES);
            let n = group.vectors(lanes);
            let (x, f) = (&mut self.work.x[..n * lanes], &mut self.work.f[..n * lanes]);
            group.gather::<T::Of<S>>(self.batch, self.positions, x);
            let (x, f) = (T::Of::<S>::slice(t, x), T::Of::<S>::slice_mut(t, f));
            let scratch = T::Of::<S>::slice_mut(t, &mut self.work.scratch);
            let mut energy = [T::default(); MAX_LANES];
            if let Some(energies) = self.energies.as_deref_mut() {
                t.vectorize(Evaluate::<K, T::Of<S>, true> { kernel: self.kernel, group, x, f, scratch, energy: &mut energy });
                for (e, l) in energies[first..first + group.count].iter_mut().zip(energy) {
                    *e = l.to_f64();
                }
            } else {
                t.vectorize(Evaluate::<K, T::Of<S>, false> { kernel: self.kernel, group, x, f, scratch, energy: &mut energy });
            }
            group.scatter::<T::Of<S>>(self.batch, &self.work.f[..n * lanes], self.forces);
            first += group.count;
        }
    }
}

/// Coefficient tables of a plan: for each stage that needs them, one vector per vector of positions. Rounded from double
/// precision, as in the plain loop.
fn tables_per_stage(stage: &Stage) -> usize {
    match stage {
        Stage::Kick { .. } | Stage::Thermostat { .. } => 1,
        Stage::Diffuse { .. } => 2,
        Stage::RemoveDrift => 1,
        Stage::Drift { .. } | Stage::Force => 0,
    }
}

/// The table entries of `stage` for one component of an atom of mass `mass` that may move along `active`; `kt` in kJ/mol.
/// The plain loop and the fused kernels both take their coefficients from here.
pub(crate) fn coefficients(stage: &Stage, mass: f64, active: bool, kt: f64) -> [f64; 2] {
    if mass == 0.0 || !active {
        return [0.0; 2];
    }
    match *stage {
        Stage::Kick { h } => [h / mass, 0.0],
        Stage::Thermostat { s, .. } => [s * (kt / mass).sqrt(), 0.0],
        Stage::Diffuse { b, s, .. } => [b / mass, s * (kt / mass).sqrt()],
        Stage::RemoveDrift => [mass, 0.0],
        Stage::Drift { .. } | Stage::Force => [0.0; 2],
    }
}

/// Many steps of a plan for a whole batch.
struct RunBatch<'a, K, T> {
    kernel: &'a K,
    plan: &'a Plan,
    batch: &'a Batch,
    work: &'a mut Work<T>,
    kt: &'a [f64],
    phase: &'a mut [T],
    forces: &'a mut [T],
    noise: Noise,
    first_step: u64,
    steps: u64,
}

impl<K: LaneKernel, T: SimdReal> RunBatch<'_, K, T> {
    /// Makes the tables of every group, one group after the other.
    fn make_tables(&mut self, lanes: usize) {
        let current = self.work.tables_of.as_ref().is_some_and(|(plan, kt)| plan == self.plan && kt == self.kt);
        if current {
            return;
        }
        let per_vector: usize = self.plan.stages.iter().map(tables_per_stage).sum();
        let mut groups = Vec::new();
        let mut first = 0;
        while first < self.batch.replicas() {
            let group = Group::at(self.batch, first, lanes, K::ATOM_LANES);
            groups.push(group);
            first += group.count;
        }
        let len: usize = groups.iter().map(|g| g.vectors(lanes) * per_vector * lanes).sum();
        self.work.tables.reserve(len);
        let mut out = 0;
        for g in groups {
            let system = self.batch.system(g.first);
            let stride = g.atoms.div_ceil(lanes) * lanes;
            for stage in &self.plan.stages {
                for which in 0..tables_per_stage(stage) {
                    for k in 0..g.vectors(lanes) * lanes {
                        // Atom, axis and replica of scalar k in the group's layout.
                        let (atom, axis, replica) = if g.atom_lanes {
                            (k % stride, k / stride, g.first)
                        } else {
                            let component = k / lanes;
                            (component / 3, component % 3, g.first + (k % lanes).min(g.count - 1))
                        };
                        let mass = system.masses.get(atom).copied().unwrap_or(0.0);
                        self.work.tables[out] = T::from_f64(coefficients(stage, mass, system.axes[axis], self.kt[replica])[which]);
                        out += 1;
                    }
                }
            }
        }
        self.work.tables_of = Some((self.plan.clone(), self.kt.to_vec()));
    }
}

/// Fills `xi` with this step's noise in the group's layout.
#[inline(always)]
fn fill_noise<V: Lanes>(t: V::Token, group: Group, ids: &[u32; MAX_LANES], noise: Noise, step: u64, purpose: Purpose, xi: &mut [V]) {
    if group.atom_lanes {
        let row = group.atoms.div_ceil(V::LANES);
        let mut atoms = [0u32; MAX_LANES];
        for block in 0..row {
            for l in 0..V::LANES {
                atoms[l] = (block * V::LANES + l) as u32;
            }
            let z = noise.normal_lanes::<V>(t, &atoms, ids, step, purpose);
            for a in 0..3 {
                xi[a * row + block] = z[a];
            }
        }
    } else {
        for i in 0..group.atoms {
            let z = noise.normal_lanes::<V>(t, &[i as u32; MAX_LANES], ids, step, purpose);
            xi[3 * i..3 * i + 3].copy_from_slice(&z);
        }
    }
}

/// Subtracts the centre-of-mass velocity; `masses` is the stage's table (0 for what does not move). The sum runs over atoms
/// in order, in every layout.
#[inline(always)]
fn remove_drift<V: Lanes>(t: V::Token, group: Group, masses: &[V], v: &mut [V]) {
    let zero = V::zero(t);
    if group.atom_lanes {
        let row = group.atoms.div_ceil(V::LANES);
        for a in 0..3 {
            let (mut momentum, mut mass) = (V::Scalar::default(), V::Scalar::default());
            let mut m = [V::Scalar::default(); MAX_LANES];
            let mut u = [V::Scalar::default(); MAX_LANES];
            for block in 0..row {
                masses[a * row + block].store(&mut m);
                (masses[a * row + block] * v[a * row + block]).store(&mut u);
                for l in 0..V::LANES.min(group.atoms - block * V::LANES) {
                    momentum += u[l];
                    mass += m[l];
                }
            }
            if mass > V::Scalar::default() {
                let drift = V::splat(t, momentum / mass);
                for block in 0..row {
                    let k = a * row + block;
                    v[k] = V::select(zero.lt(masses[k]), v[k] - drift, v[k]);
                }
            }
        }
    } else {
        for a in 0..3 {
            let (mut momentum, mut mass) = (zero, zero);
            for i in 0..group.atoms {
                momentum += masses[3 * i + a] * v[3 * i + a];
                mass += masses[3 * i + a];
            }
            let drift = V::select(zero.lt(mass), momentum / mass, zero);
            for i in 0..group.atoms {
                let k = 3 * i + a;
                v[k] = V::select(zero.lt(masses[k]), v[k] - drift, v[k]);
            }
        }
    }
}

impl<K: LaneKernel, T: SimdReal> WithSimd for RunBatch<'_, K, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, t: S) {
        let lanes = T::Of::<S>::LANES;
        self.make_tables(lanes);
        let n3 = self.phase.len() / 2;
        let mut table_start = 0;
        let mut first = 0;
        while first < self.batch.replicas() {
            let group = Group::at(self.batch, first, lanes, K::ATOM_LANES);
            let n = group.vectors(lanes);
            let mut ids = [0u32; MAX_LANES];
            for (l, id) in ids.iter_mut().enumerate() {
                *id = self.batch.id(group.first + l.min(group.count - 1));
            }
            let work = &mut *self.work;
            group.gather::<T::Of<S>>(self.batch, &self.phase[..n3], &mut work.x[..n * lanes]);
            group.gather::<T::Of<S>>(self.batch, &self.phase[n3..], &mut work.v[..n * lanes]);
            group.gather::<T::Of<S>>(self.batch, self.forces, &mut work.f[..n * lanes]);
            let system = self.batch.system(group.first);
            let constraints = work.constraints.iter().find(|(s, _)| Arc::ptr_eq(s, system)).map(|(_, c)| c).filter(|c| !c.is_empty());
            let table_len = self.plan.stages.iter().map(tables_per_stage).sum::<usize>() * n;
            t.vectorize(RunGroup::<K, T::Of<S>> {
                kernel: self.kernel,
                plan: self.plan,
                group,
                ids: &ids,
                x: T::Of::<S>::slice_mut(t, &mut work.x[..n * lanes]),
                v: T::Of::<S>::slice_mut(t, &mut work.v[..n * lanes]),
                f: T::Of::<S>::slice_mut(t, &mut work.f[..n * lanes]),
                xi: T::Of::<S>::slice_mut(t, &mut work.xi[..n * lanes]),
                old: T::Of::<S>::slice_mut(t, &mut work.old[..n * lanes]),
                constraints,
                scratch: T::Of::<S>::slice_mut(t, &mut work.scratch),
                tables: T::Of::<S>::slice(t, &work.tables[table_start * lanes..(table_start + table_len) * lanes]),
                noise: self.noise,
                first_step: self.first_step,
                steps: self.steps,
            });
            table_start += table_len;
            group.scatter::<T::Of<S>>(self.batch, &work.x[..n * lanes], &mut self.phase[..n3]);
            group.scatter::<T::Of<S>>(self.batch, &work.v[..n * lanes], &mut self.phase[n3..]);
            group.scatter::<T::Of<S>>(self.batch, &work.f[..n * lanes], self.forces);
            first += group.count;
        }
    }
}

/// Many steps of a plan for one group: the innermost loop of every simulation.
struct RunGroup<'a, K, V: Lanes> {
    kernel: &'a K,
    plan: &'a Plan,
    group: Group,
    ids: &'a [u32; MAX_LANES],
    x: &'a mut [V],
    v: &'a mut [V],
    f: &'a mut [V],
    xi: &'a mut [V],
    old: &'a mut [V],
    constraints: Option<&'a Constraints<V::Scalar>>,
    scratch: &'a mut [V],
    tables: &'a [V],
    noise: Noise,
    first_step: u64,
    steps: u64,
}

impl<K: LaneKernel, V: Lanes> WithSimd for RunGroup<'_, K, V> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let t = self.x[0].token();
        let n = self.x.len();
        let RunGroup { kernel, plan, group, ids, x, v, f, xi, old, constraints, scratch, tables, noise, .. } = self;
        for step in self.first_step..self.first_step + self.steps {
            let mut rest = tables;
            let mut next_table = || {
                let (table, after) = rest.split_at(n);
                rest = after;
                table
            };
            for stage in &plan.stages {
                if constraints.is_some() && matches!(stage, Stage::Drift { .. } | Stage::Diffuse { .. }) {
                    old.copy_from_slice(x);
                }
                match *stage {
                    Stage::Kick { .. } => {
                        for ((v, &c), &f) in v.iter_mut().zip(next_table()).zip(f.iter()) {
                            *v = c.mul_add(f, *v);
                        }
                    }
                    Stage::Drift { h } => {
                        let h = V::lit(t, h);
                        for (x, &v) in x.iter_mut().zip(v.iter()) {
                            *x = h.mul_add(v, *x);
                        }
                    }
                    Stage::Thermostat { a, .. } => {
                        fill_noise(t, group, ids, noise, step, Purpose::Thermostat, xi);
                        let a = V::lit(t, a);
                        for ((v, &c), &z) in v.iter_mut().zip(next_table()).zip(xi.iter()) {
                            *v = a.mul_add(*v, c * z);
                        }
                    }
                    Stage::Diffuse { average, .. } => {
                        fill_noise(t, group, ids, noise, step, Purpose::Overdamped, xi);
                        let (b, s) = (next_table(), next_table());
                        for (((x, &b), &f), (&s, &z)) in x.iter_mut().zip(b).zip(f.iter()).zip(s.iter().zip(xi.iter())) {
                            let z = if average { z * V::lit(t, 0.5) } else { z };
                            *x = s.mul_add(z, b.mul_add(f, *x));
                        }
                        if average {
                            fill_noise(t, group, ids, noise, step + 1, Purpose::Overdamped, xi);
                            for ((x, &s), &z) in x.iter_mut().zip(s).zip(xi.iter()) {
                                *x = s.mul_add(z * V::lit(t, 0.5), *x);
                            }
                        }
                    }
                    Stage::RemoveDrift => remove_drift(t, group, next_table(), v),
                    Stage::Force => {
                        let mut energy = [V::Scalar::default(); MAX_LANES];
                        t.vectorize(Evaluate::<K, V, false> { kernel, group, x, f, scratch, energy: &mut energy });
                    }
                }
                if let (Some(constraints), Some(after)) = (constraints, correction(stage)) {
                    t.vectorize(Correct { constraints, after, group, x, v, old });
                }
            }
        }
    }
}

/// How constraints are restored after a stage.
#[inline(always)]
pub(crate) fn correction(stage: &Stage) -> Option<After> {
    match *stage {
        Stage::Kick { .. } | Stage::Thermostat { .. } => Some(After::Velocity),
        Stage::Drift { h } => Some(After::Drift(h)),
        Stage::Diffuse { .. } => Some(After::Displacement),
        Stage::RemoveDrift | Stage::Force => None,
    }
}

/// Constraints of one group, a function of its own.
struct Correct<'a, V: Lanes> {
    constraints: &'a Constraints<V::Scalar>,
    after: After,
    group: Group,
    x: &'a mut [V],
    v: &'a mut [V],
    old: &'a [V],
}

impl<V: Lanes> WithSimd for Correct<'_, V> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let t = self.x[0].token();
        let Correct { constraints, after, group, x, v, old } = self;
        if group.atom_lanes {
            let strides = Strides { atom: 1, axis: x.len() / 3 * V::LANES };
            constraints.apply_one::<V>(t, after, strides, V::scalars_mut(x), V::scalars_mut(v), V::scalars(old));
        } else {
            constraints.apply(t, after, x, v, old);
        }
    }
}

impl<K: LaneKernel> LaneProvider<K> {
    fn evaluate_typed<T: SimdReal>(kernel: &K, work: &mut Work<T>, input: &Input<'_>, out: &mut Output) -> Result<()> {
        let energies = input.want.energy.then_some(&mut out.energy[..]);
        dispatch(EvaluateBatch {
            kernel,
            batch: input.batch,
            work,
            positions: input.positions.typed()?,
            forces: out.forces.typed_mut()?,
            energies,
        });
        Ok(())
    }

    fn run_typed<T: SimdReal>(
        kernel: &K,
        work: &mut Work<T>,
        plan: &Plan,
        batch: &Batch,
        state: &mut State,
        out: &mut Output,
        noise: Noise,
        steps: u64,
    ) -> Result<()> {
        dispatch(RunBatch {
            kernel,
            plan,
            batch,
            work,
            kt: &state.kt,
            phase: state.phase.typed_mut()?,
            forces: out.forces.typed_mut()?,
            noise,
            first_step: state.step,
            steps,
        });
        Ok(())
    }

    fn size<T: SimdReal>(kernel: &K, batch: &Batch, work: &mut Work<T>) -> Result<()> {
        let lanes = simd::lanes::<T>();
        let most = batch.systems().iter().map(|s| s.len()).max().unwrap_or(0);
        // Three rows padded to whole vectors are never larger than 3 N vectors.
        let len = 3 * most * lanes;
        for buffer in [&mut work.x, &mut work.v, &mut work.f, &mut work.xi, &mut work.old] {
            buffer.reserve(len);
        }
        work.constraints.clear();
        for system in batch.systems().iter().filter(|s| !s.constraints.is_empty()) {
            if !work.constraints.iter().any(|(s, _)| Arc::ptr_eq(s, system)) {
                work.constraints.push((system.clone(), Constraints::new(system)?));
            }
        }
        work.scratch.reserve(kernel.scratch(most) * lanes);
        work.tables_of = None;
        Ok(())
    }
}

impl<K: LaneKernel> ForceProvider for LaneProvider<K> {
    fn capabilities(&self) -> &Capabilities {
        self.kernel.capabilities()
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> Result<()> {
        self.capabilities().check_batch(batch, false, dtype)?;
        for (b, system) in batch.systems().iter().enumerate() {
            if b == 0 || !Arc::ptr_eq(system, batch.system(b - 1)) {
                self.kernel.check(system)?;
            }
        }
        match dtype {
            DType::F32 => Self::size(&self.kernel, batch, &mut self.work32),
            DType::F64 => Self::size(&self.kernel, batch, &mut self.work64),
        }
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        self.capabilities().check_want(input.want)?;
        if input.cells.is_some() {
            return Err(Error::Unsupported {
                provider: self.capabilities().name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        match input.positions.dtype() {
            DType::F32 => Self::evaluate_typed(&self.kernel, &mut self.work32, input, out),
            DType::F64 => Self::evaluate_typed(&self.kernel, &mut self.work64, input, out),
        }
    }

    fn fork(&self) -> Result<Box<dyn ForceProvider>> {
        Ok(Box::new(LaneProvider { kernel: self.kernel.clone(), work32: Work::default(), work64: Work::default() }))
    }

    fn device_model(&self, _: &System) -> Option<DeviceModel> {
        self.kernel.device_model()
    }

    fn fused(&mut self) -> Option<&mut dyn FusedLangevin> {
        Some(self)
    }
}

impl<K: LaneKernel> FusedLangevin for LaneProvider<K> {
    fn run(&mut self, plan: &Plan, batch: &Batch, state: &mut State, out: &mut Output, noise: Noise, steps: u64) -> Result<()> {
        match state.dtype() {
            DType::F32 => Self::run_typed(&self.kernel, &mut self.work32, plan, batch, state, out, noise, steps)?,
            DType::F64 => Self::run_typed(&self.kernel, &mut self.work64, plan, batch, state, out, noise, steps)?,
        }
        state.step += steps;
        state.clock = Clock::Physical { time: state.step as f64 * plan.dt };
        Ok(())
    }
}
