//! The force provider: what every potential, learned score and combinator implements.

use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::device::{Device, DeviceModel};
use crate::error::{Error, Result};
use crate::fused::FusedLangevin;
use crate::state::{Cell, Clock};
use crate::system::System;
use crate::units::UnitSystem;
use serde::{Deserialize, Serialize};

/// What a provider's forces mean. The same numbers are different physics: the gradient of an energy can be simulated
/// at any temperature, a mean force only at its own, and a pseudo-force only points towards a set of minima.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Kind {
    /// Minus the gradient of a potential energy.
    Physical,
    /// Mean force of a Boltzmann ensemble at one temperature.
    MeanForce {
        /// Temperature of that ensemble in K.
        temperature_kelvin: f64,
    },
    /// Points towards a set of minima; its size is no physical force.
    PseudoForce,
}

impl Kind {
    /// `physical`, `mean-force` or `pseudo-force`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Physical => "physical",
            Kind::MeanForce { .. } => "mean-force",
            Kind::PseudoForce => "pseudo-force",
        }
    }
}

/// What a provider can do, declared once and checked before a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capabilities {
    /// Name for messages and reports.
    pub name: String,
    /// What the forces mean.
    pub kind: Kind,
    /// Forces are exactly minus the gradient of one energy.
    pub conservative: bool,
    /// Can fill `Output::energy`.
    pub energy: bool,
    /// Energies of systems of different composition are on one scale, so that their differences mean something.
    pub energies_comparable: bool,
    /// Stiffness k of pseudo-forces in kJ/mol/nm², where it is known: `x + F/k` is the structure the model takes `x` for a
    /// noisy copy of. Denoising needs it.
    pub stiffness: Option<f64>,
    /// Can fill `Output::virial`.
    pub virial: bool,
    /// Can fill `Output::atom_energy`.
    pub atom_energy: bool,
    /// Can fill `Output::uncertainty`.
    pub uncertainty: bool,
    /// Reads a noise level from the clock (generative models).
    pub needs_noise_level: bool,
    /// Uses `Input::cells` where given; providers that do not refuse periodic systems.
    pub periodic: bool,
    /// Units of masses, positions and energies.
    pub units: UnitSystem,
    /// Types (atomic numbers) it knows; `None` for any.
    pub types: Option<Vec<u32>>,
    /// Interaction range in nm; `None` for unlimited.
    pub range: Option<f64>,
    /// Element types it computes in.
    pub dtypes: Vec<DType>,
    /// Devices it runs on, in order of preference.
    pub devices: Vec<&'static str>,
    /// Fixed sequence of work for a fixed batch, so that steps can be captured as a graph.
    pub graph_safe: bool,
}

impl Capabilities {
    /// A conservative physical potential with energies, in SI units, for any atom type, in both precisions.
    pub fn potential(name: impl Into<String>) -> Self {
        Capabilities {
            name: name.into(),
            kind: Kind::Physical,
            conservative: true,
            energy: true,
            energies_comparable: true,
            stiffness: None,
            virial: false,
            atom_energy: false,
            uncertainty: false,
            needs_noise_level: false,
            periodic: false,
            units: UnitSystem::Si,
            types: None,
            range: None,
            dtypes: vec![DType::F32, DType::F64],
            devices: vec!["cpu"],
            graph_safe: true,
        }
    }

    /// The same for a provider that has kernels for GPUs.
    pub fn with_kernels(self) -> Self {
        Capabilities { devices: vec!["cpu", "cuda"], ..self }
    }

    /// The same for a provider without kernels, made of others that may have some.
    pub fn without_kernels(self) -> Self {
        Capabilities { devices: vec!["cpu"], ..self }
    }

    /// Checks that everything in `want` can be supplied.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the quantity.
    pub fn check_want(&self, want: Want) -> Result<()> {
        let missing = [
            (want.energy && !self.energy, "energies", "use a method that needs forces only, such as FIRE or Langevin dynamics"),
            (want.virial && !self.virial, "a virial", "leave pressure and stress out of the request"),
            (want.atom_energy && !self.atom_energy, "per-atom energies", "ask for the total energy"),
            (want.uncertainty && !self.uncertainty, "an uncertainty", "use a committee of several weights"),
        ];
        match missing.iter().find(|m| m.0) {
            None => Ok(()),
            Some((_, what, remedy)) => {
                Err(Error::Unsupported { provider: self.name.clone(), what: (*what).into(), remedy: (*remedy).into() })
            }
        }
    }

    /// Checks atom types, periodicity and precision of a batch.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the atom, cell or dtype.
    pub fn check_batch(&self, batch: &Batch, periodic: bool, dtype: DType) -> Result<()> {
        let fail = |what: String, remedy: &str| Err(Error::Unsupported { provider: self.name.clone(), what, remedy: remedy.into() });
        if !self.dtypes.contains(&dtype) {
            return fail(format!("{dtype} results"), "choose another --dtype");
        }
        if periodic && !self.periodic {
            return fail("forces in a periodic cell".into(), "remove the cell from the input, or choose a periodic provider");
        }
        if let Some(known) = &self.types {
            for (b, system) in batch.systems().iter().enumerate() {
                if b > 0 && std::sync::Arc::ptr_eq(system, batch.system(b - 1)) {
                    continue;
                }
                if let Some(i) = system.types.iter().position(|t| !known.contains(t)) {
                    return fail(
                        format!("forces on {} of {}, type {}", system.describe_atom(i), system.name, system.types[i]),
                        "choose a provider that knows this element",
                    );
                }
            }
        }
        Ok(())
    }
}

/// Which quantities an evaluation fills, besides forces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Energy per replica.
    pub energy: bool,
    /// Virial per replica.
    pub virial: bool,
    /// Energy per atom.
    pub atom_energy: bool,
    /// Standard deviations of a committee.
    pub uncertainty: bool,
}

impl Want {
    /// Forces alone.
    pub const FORCES: Want = Want { energy: false, virial: false, atom_energy: false, uncertainty: false };
    /// Forces and energies.
    pub const ENERGY: Want = Want { energy: true, ..Want::FORCES };
}

/// One evaluation's input: borrowed, nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Which atoms belong to which replica and molecule.
    pub batch: &'a Batch,
    /// Positions `[A, 3]` in nm.
    pub positions: View<'a>,
    /// Periodic cell per replica `[B]`, or none.
    pub cells: Option<&'a [Cell]>,
    /// The run's clock; generative providers read their noise level from it.
    pub clock: Clock,
    /// What to fill besides forces.
    pub want: Want,
}

/// Standard deviations over a committee's members.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Uncertainty {
    /// Of the energy `[B]`, kJ/mol.
    pub energy: Vec<f64>,
    /// Of every force component `[A, 3]`, kJ/mol/nm.
    pub forces: Vec<f64>,
}

/// One evaluation's results, allocated once per batch and overwritten by each evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Forces `[A, 3]` in kJ/mol/nm, in the precision of the positions.
    pub forces: Array,
    /// Energies `[B]` in kJ/mol; valid where wanted.
    pub energy: Vec<f64>,
    /// Virials `Σ r ⊗ f = −dE/dε` `[B, 3, 3]` in kJ/mol, row-major, not divided by the volume; valid where wanted.
    pub virial: Vec<[f64; 9]>,
    /// Energy per atom `[A]` in kJ/mol; valid where wanted.
    pub atom_energy: Vec<f64>,
    /// Committee spread; valid where wanted.
    pub uncertainty: Uncertainty,
}

impl Output {
    /// Zeroed results for `batch` with room for what `want` names.
    pub fn new(batch: &Batch, dtype: DType, want: Want) -> Self {
        let (a, b) = (batch.atoms(), batch.replicas());
        let size = |wanted, n| if wanted { n } else { 0 };
        Output {
            forces: Array::zeros(dtype, 3 * a),
            energy: vec![0.0; b],
            virial: vec![[0.0; 9]; size(want.virial, b)],
            atom_energy: vec![0.0; size(want.atom_energy, a)],
            uncertainty: Uncertainty { energy: vec![0.0; size(want.uncertainty, b)], forces: vec![0.0; size(want.uncertainty, 3 * a)] },
        }
    }
}

/// Supplies forces for batches of replicas. One provider serves one batch at a time and owns its scratch memory; runs in
/// several threads give each thread a [`fork`](ForceProvider::fork).
pub trait ForceProvider: Send {
    /// What this provider can do; the same for its whole life.
    fn capabilities(&self) -> &Capabilities;

    /// Checks `batch` and allocates scratch for it; called before the first evaluation and whenever the batch changes.
    /// Everything that depends only on types, topology or masses is computed here.
    ///
    /// # Errors
    /// Where the batch does not fit this provider (number of atoms, types, precision).
    fn prepare(&mut self, batch: &Batch, dtype: DType) -> Result<()>;

    /// Overwrites `out.forces`, and of the other fields those in `input.want`. Does not allocate after
    /// [`prepare`](ForceProvider::prepare). A replica's result depends on that replica alone, bit for bit.
    ///
    /// # Errors
    /// What only an evaluation can show: a missing cell, a lost connection. Numbers that are not finite are passed on
    /// and found by the run.
    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()>;

    /// The same provider for another thread: parameters shared, scratch separate.
    ///
    /// # Errors
    /// Where a resource (a connection, a process) cannot be opened again.
    fn fork(&self) -> Result<Box<dyn ForceProvider>>;

    /// The forces on `system` as kernels for devices, where this provider has them. [`Capabilities::devices`] says so too.
    fn device_model(&self, _system: &System) -> Option<DeviceModel> {
        None
    }

    /// This provider with its evaluations on `device`, for batches of any molecules whose steps are the host's, where it has kernels
    /// for that.
    fn on_device(&self, _device: &Device) -> Option<Box<dyn ForceProvider>> {
        None
    }

    /// A stepper that runs many Langevin steps without returning to the loop, bitwise equal to the plain loop, where this
    /// provider has one for the prepared batch.
    fn fused(&mut self) -> Option<&mut dyn FusedLangevin> {
        None
    }
}
