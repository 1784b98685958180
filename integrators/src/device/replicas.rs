//! Replicas whose state is on a device.

use super::model::{Layout, LoadedModel, bytes_of, bytes_of_mut, reals};
use super::program::{Program, block, team};
use super::{Buffer, Device, DeviceModel, Grid, Module, no_device};
use crate::array::{Array, DType};
use crate::batch::Batch;
use crate::constraint::Constraints;
use crate::ensemble::{Guard, MOST_VIOLATION};
use crate::error::{Error, Result, invalid};
use crate::fused::{Plan, Stage};
use crate::noise::Noise;
use crate::state::State;
use crate::system::System;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// As in `kernels/step.cu`.
const MOST_STAGES: usize = 12;
/// `Status` there.
const RUNS: i32 = 0;
const FROZEN: i32 = 1;
const DIVERGED: i32 = 2;
/// Bytes of shared memory that a warp's replica may take for itself; more goes to global memory, so that enough warps fit.
const SHARED_PER_WARP: usize = 10 << 10;

/// What is brought from a device to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Positions.
    pub positions: bool,
    /// Velocities.
    pub velocities: bool,
    /// Forces.
    pub forces: bool,
}

impl Fetch {
    /// Positions alone.
    pub const POSITIONS: Fetch = Fetch { positions: true, velocities: false, forces: false };
    /// Velocities alone.
    pub const VELOCITIES: Fetch = Fetch { positions: false, velocities: true, forces: false };
    /// Everything that a checkpoint needs.
    pub const ALL: Fetch = Fetch { positions: true, velocities: true, forces: true };

    /// Both.
    pub fn with(self, o: Fetch) -> Fetch {
        Fetch { positions: self.positions || o.positions, velocities: self.velocities || o.velocities, forces: self.forces || o.forces }
    }

    /// What is here and not in `o`.
    pub fn without(self, o: Fetch) -> Fetch {
        Fetch { positions: self.positions && !o.positions, velocities: self.velocities && !o.velocities, forces: self.forces && !o.forces }
    }
}

/// A replica that left every sensible range. It is back where it was last seen in range, and waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// Its index in the batch.
    pub replica: usize,
    /// Step at which it was seen.
    pub step: u64,
    /// How often this happened in a row.
    pub in_a_row: u32,
    /// Which number: an element of its positions `[N, 3]`, that plus 3 N for velocities, or 6 N for a rigid bond.
    pub element: usize,
    /// The number; of a rigid bond its relative error.
    pub value: f64,
}

/// How replicas are shared out over blocks, and memory over replicas.
struct Shape {
    grid: Grid,
    group: usize,
    row: usize,
    scratch: usize,
    /// Reals of memory that is not shared for each team, and teams.
    spill: Option<(usize, usize)>,
}

impl Shape {
    /// For reals of `real` bytes.
    fn new(device: &Device, model: &DeviceModel, provider: &str, batch: &Batch, real: usize, rigid: bool) -> Result<Self> {
        let (replicas, most) = (batch.replicas(), batch.systems().iter().map(|s| s.len()).max().unwrap_or(0));
        let (limit, processors) = (device.0.shared_memory(), device.0.processors());
        let team = model.group.map_or(team(most), |g| g.threads);
        // Removal of the drift keeps three numbers of each replica in the scratch.
        let scratch = |group: usize| model.group.map_or(model.scratch, |g| model.scratch * g.stride(group)).max(3 * group);
        // Rows of a group end where vectors of four can begin.
        let row = |group: usize| if model.group.is_some() { (3 * most * group).next_multiple_of(4) } else { 3 * most };
        let bytes = |group: usize, scratch: usize| ((3 + usize::from(rigid)) * row(group) + team + scratch) * real;
        let too_large = bytes(1, scratch(1)) > limit;
        if too_large || most > team && model.group.is_some() {
            let what = if too_large {
                format!("need {} bytes of shared memory, but a block has {limit}", bytes(1, scratch(1)))
            } else {
                format!("are more than the {team} threads of a team")
            };
            let dtype = if real == 4 { DType::F32 } else { DType::F64 };
            return Err(no_device(device.name(), format!("{provider}: {most} atoms in {dtype} {what}"), "use --device cpu"));
        }
        let Some(shared) = model.group else {
            let (mut scratch, mut spill) = (scratch(1), None);
            if model.spill > 0 {
                if bytes(1, scratch + model.spill) <= (SHARED_PER_WARP * team.div_ceil(32)).min(limit) {
                    scratch += model.spill;
                } else {
                    spill = Some((model.spill, replicas));
                }
            }
            // Replicas are spread over all processors before blocks are filled.
            let wanted = replicas.div_ceil(8 * processors).next_power_of_two();
            let teams = wanted.min(block(team) / team).min((limit / bytes(1, scratch)).max(1)).max(1);
            let blocks = replicas.div_ceil(teams) as u32;
            let grid = Grid { blocks, threads: (teams * team) as u32, shared: teams * bytes(1, scratch) };
            return Ok(Shape { grid, group: 1, row: row(1), scratch, spill });
        };
        if let Some(other) = batch.systems().iter().find(|s| s.len() != most) {
            return Err(Error::Unsupported {
                provider: provider.to_owned(),
                what: format!("forces on {} of {} atoms beside another of {most} on {}", other.name, other.len(), device.name()),
                remedy: "run replicas of one molecule, or use --device cpu".into(),
            });
        }
        // As above: no processor is without work while another has much.
        let mut group = replicas.div_ceil(processors).min(shared.replicas).min(team / most.max(1)).max(1);
        while bytes(group, scratch(group)) > limit {
            group -= 1;
        }
        let blocks = replicas.div_ceil(group);
        let spill = (model.spill > 0).then(|| (model.spill * shared.stride(group), blocks));
        let scratch = scratch(group);
        let grid = Grid { blocks: blocks as u32, threads: team as u32, shared: bytes(group, scratch) };
        Ok(Shape { grid, group, row: row(group), scratch, spill })
    }
}

/// All replicas of a batch on one device: phase, forces, energies, step counters.
pub struct Replicas {
    device: Device,
    module: Arc<dyn Module>,
    model: LoadedModel,
    dtype: DType,
    /// Added to energies, kJ/mol.
    constant: f64,
    replicas: usize,
    atoms: usize,
    /// Of the largest replica.
    most: usize,
    grid: Grid,
    /// Replicas of a team.
    group: usize,
    /// Reals of one row of a team's shared memory, and of the model's scratch there.
    row: usize,
    scratch: usize,
    phase: Buffer,
    good: Buffer,
    forces: Buffer,
    first: Buffer,
    system: Buffer,
    table: Buffer,
    /// Heads, atoms and parameters of clusters of rigid bonds.
    constraints: [Buffer; 3],
    ids: Buffer,
    /// `1/m`, `1/√m` and `m`.
    masses: [Buffer; 3],
    root_kt: Buffer,
    scale: Buffer,
    energy: Buffer,
    step: Buffer,
    status: Buffer,
    restores: Buffer,
    element: Buffer,
    value: Buffer,
    any: Buffer,
    /// kT per replica as the device has it.
    kt: Vec<f64>,
}

impl Replicas {
    /// Memory on `device` and kernels of `model` for the replicas of `batch`; `provider` names the model in messages.
    ///
    /// # Errors
    /// Where the batch does not fit the device, or kernels cannot be compiled.
    pub fn new(device: &Device, model: &DeviceModel, provider: &str, batch: &Batch, dtype: DType) -> Result<Self> {
        let (replicas, atoms) = (batch.replicas(), batch.atoms());
        if 3 * atoms > i32::MAX as usize {
            return invalid(format!("{atoms} atoms of all replicas are too many for one device; run fewer replicas"));
        }
        let most = batch.systems().iter().map(|s| s.len()).max().unwrap_or(0);
        let real = if dtype == DType::F32 { 4 } else { 8 };
        let rigid = batch.systems().iter().any(|s| !s.constraints.is_empty());
        let Shape { grid, group, row, scratch, spill } = Shape::new(device, model, provider, batch, real, rigid)?;
        let spill_size = spill.map_or(0, |s| s.0);
        let spill = spill.map(|(reals, teams)| device.buffer(reals * teams * real)).transpose()?;
        let module = device.0.compile(&Program::new(model, dtype, most, rigid))?;

        // Rows of the tables of masses, one set per different system.
        let mut systems: Vec<(&Arc<System>, i32)> = Vec::new();
        let mut rows: [Vec<f64>; 3] = Default::default();
        let mut of: Vec<i32> = Vec::with_capacity(replicas);
        for (b, system) in batch.systems().iter().enumerate() {
            let known = match b.checked_sub(1) {
                Some(before) if Arc::ptr_eq(batch.system(before), system) => Some(of[before]),
                _ => systems.iter().position(|(s, _)| Arc::ptr_eq(s, system)).map(|k| k as i32),
            };
            of.push(known.unwrap_or_else(|| {
                systems.push((system, (rows[0].len() / 3) as i32));
                for &mass in &system.masses {
                    for active in system.axes {
                        let moves = mass > 0.0 && active;
                        rows[0].push(if moves { 1.0 / mass } else { 0.0 });
                        rows[1].push(if moves { 1.0 / mass.sqrt() } else { 0.0 });
                        rows[2].push(if moves { mass } else { 0.0 });
                    }
                }
                systems.len() as i32 - 1
            }));
        }
        let table: Vec<i32> = of.iter().map(|&s| systems[s as usize].1).collect();
        let (mut head, mut members, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
        for (system, _) in &systems {
            for shape in Constraints::<f64>::new(system)?.tables() {
                head.extend([shape.count, members.len(), parameters.len()].map(|k| k as i32));
                members.extend(shape.atoms);
                parameters.extend(shape.parameters);
            }
        }
        let first: Vec<i32> = (0..replicas).map(|b| batch.range(b).start as i32).chain([atoms as i32]).collect();
        let [inverse, inverse_root, mass] = rows.map(|r| device.buffer_of(&reals(dtype, &r)));
        let ones = reals(dtype, &vec![1.0; replicas]);
        Ok(Replicas {
            model: LoadedModel::new(device, model, dtype, spill, spill_size)?,
            module,
            dtype,
            constant: model.constant,
            replicas,
            atoms,
            most,
            grid,
            group,
            row,
            scratch,
            phase: device.buffer(6 * atoms * real)?,
            good: device.buffer(6 * atoms * real)?,
            forces: device.buffer(3 * atoms * real)?,
            first: device.buffer_of(pulp::bytemuck::cast_slice(&first))?,
            system: device.buffer_of(pulp::bytemuck::cast_slice(&of))?,
            table: device.buffer_of(pulp::bytemuck::cast_slice(&table))?,
            constraints: [
                device.buffer_of(pulp::bytemuck::cast_slice(&head))?,
                device.buffer_of(pulp::bytemuck::cast_slice(&members))?,
                device.buffer_of(&reals(dtype, &parameters))?,
            ],
            ids: device.buffer_of(pulp::bytemuck::cast_slice(batch.ids()))?,
            masses: [inverse?, inverse_root?, mass?],
            root_kt: device.buffer(replicas * real)?,
            scale: device.buffer_of(&ones)?,
            energy: device.buffer(8 * replicas)?,
            step: device.buffer(8 * replicas)?,
            status: device.buffer(4 * replicas)?,
            restores: device.buffer(4 * replicas)?,
            element: device.buffer(4 * replicas)?,
            value: device.buffer(8 * replicas)?,
            any: device.buffer(4)?,
            kt: vec![0.0; replicas],
            device: device.clone(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of a real.
    fn real(&self) -> usize {
        if self.dtype == DType::F32 { 4 } else { 8 }
    }

    /// Brings a whole state to the device. Forces are those of before: evaluate them next.
    ///
    /// # Errors
    /// Where the state is of another shape or precision, or the device fails.
    pub fn upload(&mut self, state: &State, frozen: &[bool]) -> Result<()> {
        if state.phase.len() != 6 * self.atoms || state.dtype() != self.dtype || state.kt.len() != self.replicas {
            return invalid(format!("a state of {} numbers in {} is not of the replicas on the device", state.phase.len(), state.dtype()));
        }
        self.phase.upload(0, bytes_of(&state.phase))?;
        self.good.upload(0, bytes_of(&state.phase))?;
        self.step.upload(0, pulp::bytemuck::cast_slice(&vec![state.step; self.replicas]))?;
        let status: Vec<i32> = (0..self.replicas).map(|b| if frozen.get(b) == Some(&true) { FROZEN } else { RUNS }).collect();
        self.status.upload(0, pulp::bytemuck::cast_slice(&status))?;
        self.restores.upload(0, &vec![0; 4 * self.replicas])?;
        self.upload_kt(&state.kt)
    }

    /// Brings positions `[A, 3]` alone to the device.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn upload_positions(&mut self, positions: &[u8]) -> Result<()> {
        self.phase.upload(0, positions)
    }

    fn upload_kt(&mut self, kt: &[f64]) -> Result<()> {
        let roots: Vec<f64> = kt.iter().map(|kt| kt.sqrt()).collect();
        self.root_kt.upload(0, &reals(self.dtype, &roots))?;
        self.kt.copy_from_slice(kt);
        Ok(())
    }

    /// Sets the thermostats to `kt` and multiplies velocities by `scale`, both `[B]`.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn set_temperatures(&mut self, kt: &[f64], scale: &[f64]) -> Result<()> {
        if kt != self.kt {
            self.upload_kt(kt)?;
        }
        if scale.iter().any(|&s| s != 1.0) {
            self.scale.upload(0, &reals(self.dtype, scale))?;
            self.launch("rescale", &Plan { stages: Vec::new(), dt: 0.0 }, Noise::new(0), 0, &Guard::default())?;
        }
        Ok(())
    }

    /// The structure `Run` of `kernels/step.cu`.
    fn parameters(&self, plan: &Plan, noise: Noise, end: u64, guard: &Guard) -> Result<Vec<u8>> {
        if plan.stages.len() > MOST_STAGES {
            return invalid(format!("a step of {} stages is too long for a device", plan.stages.len()));
        }
        let half = (3 * self.atoms * self.real()) as u64;
        let mut p = Layout::new(self.dtype);
        p.nested(&self.model.parameters);
        for buffer in &self.constraints {
            p.pointer(Some(buffer));
        }
        p.address(self.phase.at());
        p.address(self.phase.at() + half);
        p.pointer(Some(&self.forces));
        p.address(self.good.at());
        p.address(self.good.at() + half);
        for buffer in [&self.first, &self.system, &self.table, &self.ids].into_iter().chain(&self.masses) {
            p.pointer(Some(buffer));
        }
        let rest = [&self.root_kt, &self.scale, &self.energy, &self.step, &self.status, &self.restores, &self.element, &self.value];
        for buffer in rest.into_iter().chain([&self.any]) {
            p.pointer(Some(buffer));
        }
        p.long(noise.seed);
        p.long(end);
        p.long(guard.check_every.clamp(1, 1 << 62));
        p.real(guard.position);
        p.real(guard.velocity);
        p.real(MOST_VIOLATION);
        for n in [self.replicas, self.group, self.most, self.row, self.scratch, plan.stages.len()] {
            p.int(n as i32);
        }
        for k in 0..MOST_STAGES {
            let (kind, average, a, b) = match plan.stages.get(k) {
                None => (0, false, 0.0, 0.0),
                Some(&Stage::Kick { h }) => (0, false, h, 0.0),
                Some(&Stage::Drift { h }) => (1, false, h, 0.0),
                Some(&Stage::Thermostat { a, s }) => (2, false, a, s),
                Some(&Stage::Diffuse { b, s, average }) => (3, average, b, s),
                Some(Stage::RemoveDrift) => (4, false, 0.0, 0.0),
                Some(Stage::Force) => (5, false, 0.0, 0.0),
            };
            p.int(kind);
            p.int(i32::from(average));
            p.real(a);
            p.real(b);
        }
        Ok(p.finish())
    }

    fn launch(&self, kernel: &str, plan: &Plan, noise: Noise, end: u64, guard: &Guard) -> Result<()> {
        let parameters = self.parameters(plan, noise, end, guard)?;
        // SAFETY: the layout is that of `Run`; all buffers live as long as `self` and have the sizes that the kernels expect.
        unsafe { self.module.launch(kernel, self.grid, &parameters) }
    }

    /// Forces and energies at the present positions; they stay on the device.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn evaluate(&mut self) -> Result<()> {
        self.launch("evaluate", &Plan { stages: Vec::new(), dt: 0.0 }, Noise::new(0), 0, &Guard::default())
    }

    /// Advances every replica to step `end`, looking at every multiple of [`Guard::check_every`] and at the end. Replicas that
    /// left every sensible range have stopped on their way.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn advance(&mut self, plan: &Plan, noise: Noise, end: u64, guard: &Guard) -> Result<Vec<Stop>> {
        self.launch("run", plan, noise, end, guard)?;
        let mut any = [0i32];
        self.any.download(0, pulp::bytemuck::cast_slice_mut(&mut any))?;
        if any[0] == 0 {
            return Ok(Vec::new());
        }
        self.any.upload(0, &[0; 4])?;
        let b = self.replicas;
        let (mut status, mut restores, mut element) = (vec![0i32; b], vec![0i32; b], vec![0i32; b]);
        let (mut step, mut value) = (vec![0u64; b], vec![0f64; b]);
        self.status.download(0, pulp::bytemuck::cast_slice_mut(&mut status))?;
        self.restores.download(0, pulp::bytemuck::cast_slice_mut(&mut restores))?;
        self.element.download(0, pulp::bytemuck::cast_slice_mut(&mut element))?;
        self.step.download(0, pulp::bytemuck::cast_slice_mut(&mut step))?;
        self.value.download(0, pulp::bytemuck::cast_slice_mut(&mut value))?;
        let stopped = (0..b).filter(|&r| status[r] == DIVERGED);
        Ok(stopped
            .map(|r| Stop { replica: r, step: step[r], in_a_row: restores[r] as u32, element: element[r] as usize, value: value[r] })
            .collect())
    }

    /// Says what becomes of a stopped replica: it stays where it is for good, or goes on from there.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn resume(&mut self, replica: usize, frozen: bool) -> Result<()> {
        let status = if frozen { FROZEN } else { RUNS };
        self.status.upload(4 * replica, &status.to_ne_bytes())
    }

    /// Copies what `what` names: positions and velocities to `phase` (`[2, A, 3]`), forces to `forces` (`[A, 3]`).
    ///
    /// # Errors
    /// Where the arrays are of another precision or the device fails.
    pub fn fetch(&self, what: Fetch, phase: &mut Array, forces: &mut Array) -> Result<()> {
        let half = 3 * self.atoms * self.real();
        if phase.dtype() != self.dtype || forces.dtype() != self.dtype {
            return invalid("arrays of another precision than the replicas on the device");
        }
        let phase = bytes_of_mut(phase);
        match (what.positions, what.velocities) {
            (true, true) => self.phase.download(0, phase)?,
            (true, false) => self.phase.download(0, &mut phase[..half])?,
            (false, true) => self.phase.download(half, &mut phase[half..])?,
            (false, false) => {}
        }
        if what.forces { self.forces.download(0, bytes_of_mut(forces)) } else { Ok(()) }
    }

    /// Copies the phase `[2, A, 3]` in which every replica was last seen in range.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn fetch_good(&self, phase: &mut Array) -> Result<()> {
        self.good.download(0, bytes_of_mut(phase))
    }

    /// Copies the energies `[B]` of the last evaluation.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn fetch_energies(&self, energies: &mut [f64]) -> Result<()> {
        self.energy.download(0, pulp::bytemuck::cast_slice_mut(energies))?;
        energies.iter_mut().for_each(|e| *e += self.constant);
        Ok(())
    }
}

/// The error of a provider without kernels.
pub(super) fn no_kernels(provider: &str, device: &Device) -> Error {
    Error::Unsupported {
        provider: provider.to_owned(),
        what: format!("forces on {}: it has no kernels for GPUs", device.name()),
        remedy: "use --device cpu; `scorefield models` lists the devices of each model".into(),
    }
}
