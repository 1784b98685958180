//! Forces of a trained model: `F(x) = kT c s(c (x − centre), t)` and `U(x) = kT E`, at a small time `t`.

use super::config::{Body, ExpertConfig, Head};
use super::domain::Domain;
use super::fixed_time::{FixedTime, Units};
use super::model::Model;
use crate::analytic::{Toy, Trained, check_axes};
use crate::error::{Error, Result};
use crate::weights::WeightsFile;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::units::BOLTZMANN;
use scorefield_integrators::{
    Batch, Capabilities, DType, DeviceModel, ForceProvider, Input, Kind, Output, Quantity, Result as ContractResult, System, UnitSystem,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The model that this program brings along: five beads of alanine dipeptide.
static EMBEDDED: &[u8] = include_bytes!("../../../data/models/alanine-dipeptide/both-1.safetensors");

/// Weights of a ScoreMD model, and the time at which forces are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSpec {
    /// The safetensors file; without it the embedded model of five beads of alanine dipeptide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Diffusion time, by default what the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t: Option<f64>,
    /// One of the molecules that a transferable model was trained on; without it the structure says which one it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
}

impl ScoreSpec {
    /// Reads the file; the model's own system comes with it.
    ///
    /// # Errors
    /// As [`ScoreSpec::model`], or where the time is not within 0 to 1.
    pub fn build(&self) -> Result<(ScoreProvider, Option<Toy>)> {
        let file = self.weights.as_deref().unwrap_or(Path::new("alanine-dipeptide-beads"));
        Self::of(file, self.model()?, self.t)
    }

    /// The model, of one molecule where `system` names it.
    ///
    /// # Errors
    /// Where the file is no model of this architecture, or was not trained on that molecule.
    pub fn model(&self) -> Result<Model> {
        let model = self.weights.as_deref().map_or_else(embedded, Model::read)?;
        match &self.system {
            Some(name) => model.for_system(name),
            None => Ok(model),
        }
    }

    /// The same for weights that are open already.
    ///
    /// # Errors
    /// As [`ScoreSpec::build`].
    pub fn of_weights(file: &Path, weights: WeightsFile) -> Result<(ScoreProvider, Option<Toy>)> {
        Self::of(file, Model::from_weights(file, weights)?, None)
    }

    fn of(file: &Path, model: Model, t: Option<f64>) -> Result<(ScoreProvider, Option<Toy>)> {
        let name = file.file_stem().map_or_else(|| "scoremd".into(), |s| s.to_string_lossy().into_owned());
        let toy = own_system(&model, &name);
        let t = t.unwrap_or(model.evaluation_time);
        Ok((ScoreProvider::new(Arc::new(model), name, t)?, toy))
    }
}

/// The model that this program brings along: C, N, CA, C and N of alanine dipeptide's backbone at 300 K.
///
/// # Errors
/// As [`Model::from_bytes`].
pub fn embedded() -> Result<Model> {
    Model::from_bytes(Path::new("the embedded model"), EMBEDDED)
}

/// The beads that a model was trained on, at the first of its start frames; `None` where the file has none, or many molecules'.
fn own_system(model: &Model, name: &str) -> Option<Toy> {
    if model.is_transferable() {
        return None;
    }
    let d = model.dimension();
    let axes = axes(model);
    let system = System { types: model.types.clone(), axes, ..System::particles(name, model.types.len(), 1.0) };
    let system = System { masses: model.masses.clone(), ..system };
    let mut starts: Vec<Vec<f64>> = Vec::new();
    for frame in model.start_frames.chunks_exact(d) {
        let mut positions: Vec<f64> = frame.iter().map(|&x| x.into()).collect();
        positions.resize(3 * system.len(), 0.0);
        starts.push(positions);
    }
    let temperature = match model.units {
        UnitSystem::Si => Quantity::new(model.temperature, "K"),
        UnitSystem::Reduced => Quantity::bare(model.temperature),
    };
    let trained = Trained { pdb: model.pdb.clone(), starts: starts.clone(), domain: Domain::of(model) };
    Some(Toy { system, positions: starts.into_iter().next()?, cell: None, temperature, trained: Some(trained) })
}

/// A toy of one or two dimensions lives on as many axes.
fn axes(model: &Model) -> [bool; 3] {
    let d = model.dimension();
    [0, 1, 2].map(|a| model.types.len() > 1 || a < d)
}

/// The network of a model that answers for time `t`: at a border the one of larger times.
pub(super) fn expert(model: &Model, t: f64) -> usize {
    let experts = &model.config.experts;
    experts.iter().position(|e| t >= e.range.start).unwrap_or(experts.len().saturating_sub(1))
}

/// Checks what the kernels of this module cannot do.
pub(super) fn check(model: &Model) -> Result<()> {
    for ExpertConfig { body, .. } in &model.config.experts {
        match body {
            Body::Mlp { dimension, .. } if *dimension > 3 && !dimension.is_multiple_of(3) => {
                return Err(Error::spec(
                    "scoremd",
                    format!("{dimension} coordinates are no particles of three; forces need up to 3, or a multiple of 3"),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A diffusion model's score at a small time as forces. They are mean forces of the ensemble it was trained on, and
/// conservative where the network gives an energy.
pub struct ScoreProvider {
    model: Arc<Model>,
    /// A transferable model, of which `model` is that of the beads of the present batch.
    transferable: Option<Arc<Model>>,
    capabilities: Capabilities,
    expert: usize,
    time: f64,
    /// kT in kJ/mol, or reduced.
    kt: f64,
    work32: Work<f32>,
    work64: Work<f64>,
}

/// A kernel and coordinates in one precision.
struct Work<T> {
    network: Option<FixedTime<T>>,
    /// Coordinates and scores of toys with fewer than three dimensions `[B, D]`.
    x: Vec<T>,
    score: Vec<T>,
    energy: Vec<f64>,
}

impl<T: SimdReal> Work<T> {
    fn new() -> Self {
        Work { network: None, x: Vec::new(), score: Vec::new(), energy: Vec::new() }
    }

    fn fork(&self) -> Self {
        Work { network: self.network.as_ref().map(FixedTime::fork), ..Self::new() }
    }

    fn prepare(&mut self, model: &Model, expert: usize, t: f64, replicas: usize) -> Result<()> {
        let network = match &mut self.network {
            Some(network) => network,
            None => self.network.insert(FixedTime::new(&model.config.experts[expert], &model.parameters[expert], &[], t)?),
        };
        network.reserve(replicas);
        let d = network.dimension();
        self.x.resize(replicas * d, T::default());
        self.score.resize(replicas * d, T::default());
        self.energy.resize(replicas, 0.0);
        Ok(())
    }

    fn evaluate(&mut self, scale: f64, kt: f64, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let invalid = |what: &str| Err(scorefield_integrators::Error::Invalid(format!("the model was {what}; prepare it for this batch")));
        let Some(network) = &mut self.network else { return invalid("never prepared") };
        let (d, replicas) = (network.dimension(), input.batch.replicas());
        if self.energy.len() != replicas {
            return invalid("prepared for another batch");
        }
        let positions: &[T] = input.positions.typed()?;
        let width = positions.len() / replicas;
        let energy = input.want.energy.then_some(&mut self.energy[..]);
        let x = if d == width {
            positions
        } else {
            for (to, from) in self.x.chunks_exact_mut(d).zip(positions.chunks_exact(width)) {
                to.copy_from_slice(&from[..d]);
            }
            &self.x[..]
        };
        network.evaluate(x, scale, energy, Some(&mut self.score));
        let unit = T::from_f64(kt * scale);
        let forces = out.forces.typed_mut::<T>()?;
        for (r, (force, score)) in forces.chunks_exact_mut(width).zip(self.score.chunks_exact(d)).enumerate() {
            let finite = positions[r * width..(r + 1) * width].iter().all(|x| x.to_f64().is_finite());
            // Positions that are no numbers give forces that are none.
            let unit = if finite { unit } else { T::from_f64(f64::NAN) };
            force.fill(T::default());
            force.iter_mut().zip(score).for_each(|(f, &s)| *f = s * unit);
            if input.want.energy {
                out.energy[r] = if finite { kt * self.energy[r] } else { f64::NAN };
            }
        }
        Ok(())
    }
}

impl ScoreProvider {
    /// Forces of `model` at time `t`; `name` is for messages.
    ///
    /// # Errors
    /// Where the time is not within 0 to 1, or coordinates are no particles.
    pub fn new(model: Arc<Model>, name: impl Into<String>, t: f64) -> Result<Self> {
        let name = name.into();
        if !(0.0..=1.0).contains(&t) {
            return Err(Error::parameter(&name, "t", t, "diffusion times are from 0 (data) to 1 (noise)"));
        }
        check(&model)?;
        let expert = expert(&model, t);
        let energy = model.config.experts[expert].head == Head::Potential;
        let capabilities = Capabilities {
            kind: Kind::MeanForce { temperature_kelvin: model.temperature },
            conservative: energy,
            energy,
            energies_comparable: false,
            units: model.units,
            ..Capabilities::potential(name).with_kernels()
        };
        let kt = model.temperature * if model.units == UnitSystem::Si { BOLTZMANN } else { 1.0 };
        let transferable = model.is_transferable().then(|| model.clone());
        Ok(ScoreProvider { model, transferable, capabilities, expert, time: t, kt, work32: Work::new(), work64: Work::new() })
    }

    /// Time at which forces are taken.
    pub fn time(&self) -> f64 {
        self.time
    }

    /// Makes the model of the batch's molecule from a transferable one.
    fn choose_beads(&mut self, batch: &Batch) -> ContractResult<()> {
        let (Some(from), Some(system)) = (&self.transferable, batch.systems().first()) else { return Ok(()) };
        let fail = |what: String| {
            let remedy = "name its beads as in the training data, and simulate one molecule at a time".into();
            Err(scorefield_integrators::Error::Unsupported { provider: self.capabilities.name.clone(), what, remedy })
        };
        if let Some(other) = batch.systems().iter().find(|other| !Arc::ptr_eq(other, system) && other.names != system.names) {
            return fail(format!("{} and {} in one batch", system.name, other.name));
        }
        match from.for_beads(system) {
            Err(e) => return fail(format!("forces on {}: {e}", system.name)),
            Ok(model) if model.parameters != self.model.parameters => {
                self.model = Arc::new(model);
                (self.work32, self.work64) = (Work::new(), Work::new());
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// Every replica must be the beads that the network was trained on, in their order.
    fn check_beads(&self, batch: &Batch) -> ContractResult<()> {
        let fail = |what: String| {
            let remedy = "give the beads of the training data in their order; without a structure the model's own is used".into();
            Err(scorefield_integrators::Error::Unsupported { provider: self.capabilities.name.clone(), what, remedy })
        };
        for (b, system) in batch.systems().iter().enumerate() {
            if b > 0 && Arc::ptr_eq(system, batch.system(b - 1)) {
                continue;
            }
            let n = self.model.types.len();
            if system.len() != n {
                return fail(format!("forces on the {} atoms of {}; it was trained on {n} beads", system.len(), system.name));
            }
            let known = |z: u32| z != 0;
            if let Some(i) =
                (0..n).find(|&i| known(system.types[i]) && known(self.model.types[i]) && system.types[i] != self.model.types[i])
            {
                let (is, should) = (system.types[i], self.model.types[i]);
                return fail(format!(
                    "forces on {} of {}, element {is}, where it was trained on element {should}",
                    system.describe_atom(i),
                    system.name
                ));
            }
            check_axes(&self.capabilities.name, axes(&self.model), system)?;
        }
        Ok(())
    }
}

impl ForceProvider for ScoreProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        self.check_beads(batch)?;
        self.choose_beads(batch)?;
        let prepared = match dtype {
            DType::F32 => self.work32.prepare(&self.model, self.expert, self.time, batch.replicas()),
            DType::F64 => self.work64.prepare(&self.model, self.expert, self.time, batch.replicas()),
        };
        prepared.map_err(|e| scorefield_integrators::Error::Invalid(e.to_string()))
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() {
            return Err(scorefield_integrators::Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        match input.positions.dtype() {
            DType::F32 => self.work32.evaluate(self.model.scale, self.kt, input, out),
            DType::F64 => self.work64.evaluate(self.model.scale, self.kt, input, out),
        }
    }

    fn device_model(&self, system: &System) -> Option<DeviceModel> {
        let of_beads = self.transferable.as_ref().map(|from| from.for_beads(system)).transpose().ok()?;
        let model = of_beads.as_ref().unwrap_or(&self.model);
        let (config, parameters) = (&model.config.experts[self.expert], &model.parameters[self.expert]);
        FixedTime::<f64>::new(config, parameters, &[], self.time).ok()?.device_model(Units { scale: model.scale, kt: self.kt })
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(ScoreProvider {
            model: self.model.clone(),
            transferable: self.transferable.clone(),
            capabilities: self.capabilities.clone(),
            expert: self.expert,
            time: self.time,
            kt: self.kt,
            work32: self.work32.fork(),
            work64: self.work64.fork(),
        }))
    }
}
