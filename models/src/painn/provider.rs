//! PaiNN as a force provider: a potential, or pseudo-forces towards minima.

use super::batched::BatchedPainn;
use super::config::{Layout, PainnConfig, TYPES};
use super::local::PainnLocal;
use super::model::{Output as Meaning, PainnModel};
use super::network::{Parameters, Seed, Work};
use super::surroundings::{LIST_FROM, Surroundings, Unfit};
use crate::error::Result;
use scorefield_integrators::Result as ContractResult;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{
    Batch, Capabilities, Clock, DType, Device, DeviceModel, Error as ContractError, ForceProvider, Input, Kind, Output, System,
};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Molecules are worked on together up to about so many atoms: enough rows for products, few enough for the caches.
const ATOMS_PER_CHUNK: usize = 144;
/// Pairs of an atom that memory is taken for in large systems; a liquid within 5 Å has some 25. More of them grow it once.
const PAIRS_PER_ATOM: usize = 32;
/// Å per nm.
pub(super) const ANGSTROMS: f64 = 10.0;

/// The pseudo-force field that this program brings along: molecules of H, C, N and O as in QM9.
static EMBEDDED: &[u8] = include_bytes!("../../../data/models/qm9/gpff-small.safetensors");

/// The words `painn:weights=FILE`, or `gpff` for the embedded weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PainnSpec {
    /// A file of weights, or a SchNetPack PaiNN's arrays (`.npz`); without it the embedded pseudo-force field of QM9's molecules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

impl PainnSpec {
    /// Reads the weights.
    ///
    /// # Errors
    /// Where the file is no PaiNN, or damaged.
    pub fn build(&self) -> Result<PainnProvider> {
        match &self.weights {
            Some(file) => PainnProvider::open(file),
            None => Ok(PainnProvider::new(PainnModel::from_bytes(Path::new("the embedded pseudo-force field"), EMBEDDED)?)),
        }
    }
}

/// Parameters in both precisions, made when they are needed.
pub(super) struct Shared {
    pub(super) model: PainnModel,
    /// Energy of an atom by itself, by atomic number, in the output's unit.
    pub(super) references: Vec<f64>,
    single: OnceLock<Parameters<f32>>,
    double: OnceLock<Parameters<f64>>,
}

impl Shared {
    pub(super) fn pack<T: SimdReal>(&self) -> Parameters<T> {
        let layout = Arc::new(Layout::new(&self.model.config));
        let values: Vec<T> = layout.pad(&self.model.values).into_iter().map(T::from_f64).collect();
        let mut parameters = Parameters::new(&self.model.config, layout);
        parameters.load(&values);
        parameters
    }
}

/// Forces of a PaiNN.
///
/// A network with an energy gives `−∂E/∂x`, in open space or in a cell whose heights are twice the cutoff or more; large systems have
/// neighbour lists, and their cost grows with the number of atoms. A network with vectors was trained on minima: its pseudo-forces `k (x̂₀ − x)` have no
/// net part, are the gradient of nothing, and state their stiffness k.
pub struct PainnProvider {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    work32: Prepared<f32>,
    work64: Prepared<f64>,
}

struct Prepared<T> {
    work: Option<Work<T>>,
    chunks: Vec<Range<usize>>,
    atoms: usize,
    /// Per replica.
    surroundings: Vec<Surroundings>,
    /// Positions of a molecule in Å, and forces of a chunk.
    x: Vec<f64>,
    forces: Vec<T>,
}

impl<T> Default for Prepared<T> {
    fn default() -> Self {
        Prepared { work: None, chunks: Vec::new(), atoms: 0, surroundings: Vec::new(), x: Vec::new(), forces: Vec::new() }
    }
}

impl PainnProvider {
    /// Reads the weights in `file`.
    ///
    /// # Errors
    /// Where the file is no PaiNN, or damaged.
    pub fn open(file: &Path) -> Result<Self> {
        Ok(Self::new(PainnModel::read(file)?))
    }

    /// The same forces on domains of a larger system, in double precision.
    ///
    /// # Errors
    /// Where the network has no energy.
    pub fn local(&self) -> Result<PainnLocal> {
        PainnLocal::new(self.shared.clone())
    }

    /// A provider of `model`.
    pub fn new(model: PainnModel) -> Self {
        let PainnConfig { cutoff, layers, .. } = model.config;
        let name = if matches!(model.output, Meaning::Energy { .. }) { super::model::ARCHITECTURE } else { "gpff" };
        let potential = Capabilities {
            types: Some(model.types.clone()),
            range: Some(cutoff / ANGSTROMS * layers as f64),
            ..Capabilities::potential(name)
        };
        let capabilities = match model.output {
            Meaning::Energy { .. } => Capabilities { atom_energy: true, virial: true, periodic: true, graph_safe: false, ..potential },
            Meaning::Displacement { stiffness } | Meaning::Noise { stiffness } => Capabilities {
                kind: Kind::PseudoForce,
                conservative: false,
                energy: false,
                energies_comparable: false,
                stiffness: Some(stiffness),
                needs_noise_level: model.config.time || matches!(model.output, Meaning::Noise { .. }),
                ..potential
            },
        };
        let on_devices = !capabilities.needs_noise_level && super::device::fits(&model.config);
        let capabilities = if on_devices { capabilities.with_kernels() } else { capabilities };
        let per_atom = if let Meaning::Energy { per_atom, .. } = model.output { per_atom } else { 0.0 };
        let mut references = vec![per_atom; TYPES];
        model.references.iter().for_each(|&(z, e)| references.get_mut(z as usize).into_iter().for_each(|r| *r += e));
        let shared = Arc::new(Shared { model, references, single: OnceLock::new(), double: OnceLock::new() });
        PainnProvider { shared, capabilities, work32: Prepared::default(), work64: Prepared::default() }
    }
}

impl<T: SimdReal> Prepared<T> {
    fn prepare(&mut self, config: &PainnConfig, batch: &Batch) {
        let energy = config.head == super::config::Head::Energy;
        self.chunks.clear();
        let (mut first, mut most, mut most_pairs) = (0, 0, 0);
        while first < batch.replicas() {
            let mut end = first + 1;
            while end < batch.replicas() && batch.range(end).end - batch.range(first).start <= ATOMS_PER_CHUNK {
                end += 1;
            }
            let pairs = |n: usize| if n < LIST_FROM { n * (n - 1) / 2 } else { n * PAIRS_PER_ATOM };
            let pairs: usize = (first..end).map(|b| pairs(batch.range(b).len())).sum();
            most = most.max(batch.range(end - 1).end - batch.range(first).start);
            most_pairs = most_pairs.max(pairs);
            self.chunks.push(first..end);
            first = end;
        }
        let work = self.work.get_or_insert_with(|| Work::new(energy, energy));
        work.reserve(config, most, most_pairs);
        self.atoms = batch.atoms();
        self.surroundings.clear();
        self.surroundings.resize_with(batch.replicas(), Surroundings::default);
        self.x.clear();
        self.x.reserve(3 * most);
        self.forces.clear();
        self.forces.resize(3 * most, T::default());
    }

    fn evaluate(&mut self, p: &Parameters<T>, shared: &Shared, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let batch = input.batch;
        let Some(work) = self.work.as_mut().filter(|_| self.atoms == batch.atoms()) else {
            return Err(ContractError::Invalid(
                "PaiNN was asked for forces of another batch than it was prepared for; prepare it anew".into(),
            ));
        };
        let (meaning, positions) = (shared.model.output, input.positions.typed::<T>()?);
        let sigma = noise_level(&shared.model, input.clock)?;
        let time = 0.25 * sigma.ln();
        for chunk in &self.chunks {
            work.clear();
            for b in chunk.clone() {
                self.x.clear();
                self.x.extend(positions[batch.range3(b)].iter().map(|x| ANGSTROMS * x.to_f64()));
                let (types, cell) = (&batch.system(b).types, input.cells.map(|c| &c[b]));
                self.surroundings[b].add(work, &p.config, types, &self.x, time, cell).map_err(|e| unfit(p, &batch.system(b).name, e))?;
            }
            work.forward(p);
            let first = batch.range(chunk.start).start;
            let forces = &mut self.forces[..3 * work.atoms()];
            match meaning {
                Meaning::Energy { unit, .. } => {
                    forces.fill(T::default());
                    work.backward(p, Seed::Energy, None, Some(forces));
                    let factor = T::from_f64(-unit * ANGSTROMS);
                    forces.iter_mut().for_each(|f| *f = *f * factor);
                    let of_atom = |a: usize| unit * (work.energy(a - first).to_f64() + shared.references[work.types[a - first] as usize]);
                    if input.want.energy {
                        chunk.clone().for_each(|b| out.energy[b] = batch.range(b).map(of_atom).sum());
                    }
                    if input.want.virial {
                        chunk.clone().enumerate().for_each(|(m, b)| out.virial[b] = work.strain(m).map(|s| -unit * s));
                    }
                    if input.want.atom_energy {
                        chunk.clone().flat_map(|b| batch.range(b)).for_each(|a| out.atom_energy[a] = of_atom(a));
                    }
                }
                Meaning::Displacement { stiffness } => vectors(work, T::from_f64(stiffness / ANGSTROMS), forces),
                Meaning::Noise { stiffness } => vectors(work, T::from_f64(-stiffness * sigma / ANGSTROMS), forces),
            }
            let to = out.forces.typed_mut::<T>()?;
            for b in chunk.clone() {
                let range = batch.range3(b);
                let from = &mut forces[range.start - 3 * first..range.end - 3 * first];
                if !matches!(meaning, Meaning::Energy { .. }) {
                    remove_mean(from);
                }
                to[range.clone()].copy_from_slice(from);
                if !positions[range.clone()].iter().all(|x| x.to_f64().is_finite()) {
                    to[range].fill(T::from_f64(f64::NAN));
                    if input.want.energy {
                        out.energy[b] = f64::NAN;
                    }
                    if input.want.virial {
                        out.virial[b] = [f64::NAN; 9];
                    }
                    if input.want.atom_energy {
                        out.atom_energy[batch.range(b)].fill(f64::NAN);
                    }
                }
            }
        }
        Ok(())
    }
}

/// σ (Å) of a clock; 1 where the network knows no noise.
pub(super) fn noise_level(model: &PainnModel, clock: Clock) -> ContractResult<f64> {
    match clock {
        Clock::Diffusion { t } if t > 0.0 => Ok(t * ANGSTROMS),
        _ if model.config.time || matches!(model.output, Meaning::Noise { .. }) => Err(ContractError::Invalid(
            "this PaiNN needs a noise level (σ in nm), which only a generative run has; use a network without".into(),
        )),
        _ => Ok(1.0),
    }
}

/// What to do about a cell.
fn unfit<T>(p: &Parameters<T>, name: &str, why: Unfit) -> ContractError {
    let cutoff = p.config.cutoff / ANGSTROMS;
    ContractError::Invalid(match why {
        Unfit::Flat => format!("{name}: the cell has no volume; give three independent vectors"),
        Unfit::Small(half) => format!(
            "{name}: the cutoff, {cutoff} nm, is larger than half the smallest height of the cell, {half:.4} nm; use a larger cell, for \
             example two or more copies side by side"
        ),
    })
}

/// Vectors of all atoms times `factor`.
fn vectors<T: SimdReal>(work: &Work<T>, factor: T, forces: &mut [T]) {
    for (i, f) in forces.chunks_exact_mut(3).enumerate() {
        let v = work.vector(i);
        f.copy_from_slice(&[factor * v[0], factor * v[1], factor * v[2]]);
    }
}

/// Takes the mean over atoms `[n, 3]` away.
pub(super) fn remove_mean<T: SimdReal>(x: &mut [T]) {
    let n = T::from_f64((x.len() / 3).max(1) as f64);
    for k in 0..3 {
        let mean = x.iter().skip(k).step_by(3).copied().sum::<T>() / n;
        x.iter_mut().skip(k).step_by(3).for_each(|x| *x -= mean);
    }
}

impl ForceProvider for PainnProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        let config = &self.shared.model.config;
        match dtype {
            DType::F32 => {
                self.shared.single.get_or_init(|| self.shared.pack());
                self.work32.prepare(config, batch);
            }
            DType::F64 => {
                self.shared.double.get_or_init(|| self.shared.pack());
                self.work64.prepare(config, batch);
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() && !self.capabilities.periodic {
            return Err(ContractError::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        let shared = &self.shared;
        match input.positions.dtype() {
            DType::F32 => self.work32.evaluate(shared.single.get_or_init(|| shared.pack()), shared, input, out),
            DType::F64 => self.work64.evaluate(shared.double.get_or_init(|| shared.pack()), shared, input, out),
        }
    }

    fn device_model(&self, system: &System) -> Option<DeviceModel> {
        let shared = &self.shared;
        shared.device_model(shared.double.get_or_init(|| shared.pack()), &system.types)
    }

    fn on_device(&self, device: &Device) -> Option<Box<dyn ForceProvider>> {
        let has_vectors = self.shared.model.config.head == super::config::Head::Direct;
        has_vectors.then(|| Box::new(BatchedPainn::new(device, self.shared.clone(), &self.capabilities)) as _)
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(PainnProvider {
            shared: self.shared.clone(),
            capabilities: self.capabilities.clone(),
            work32: Prepared::default(),
            work64: Prepared::default(),
        }))
    }
}
