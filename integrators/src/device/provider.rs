//! A provider whose forces are computed on a device.

use super::replicas::no_kernels;
use super::{Device, DeviceModel, Fetch, Replicas};
use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::ensemble::Guard;
use crate::error::{Error, Result, invalid};
use crate::force::{Capabilities, ForceProvider, Input, Output};
use crate::fused::{FusedLangevin, Plan};
use crate::noise::Noise;
use crate::state::{Clock, State};

/// The provider `inner` on a device. As a [`ForceProvider`] it copies positions there and forces back at each evaluation; an
/// ensemble leaves its replicas there instead.
pub struct DeviceProvider {
    capabilities: Capabilities,
    inner: Box<dyn ForceProvider>,
    device: Device,
    replicas: Option<Replicas>,
    /// Where what is not asked for goes.
    spare: Option<Array>,
}

impl DeviceProvider {
    /// `provider` on `device`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it has no kernels.
    pub fn new(device: &Device, provider: &dyn ForceProvider) -> Result<Self> {
        if !provider.capabilities().devices.contains(&"cuda") {
            return Err(no_kernels(&provider.capabilities().name, device));
        }
        let capabilities = Capabilities {
            virial: false,
            atom_energy: false,
            uncertainty: false,
            periodic: false,
            devices: vec!["cuda"],
            ..provider.capabilities().clone()
        };
        Ok(DeviceProvider { capabilities, inner: provider.fork()?, device: device.clone(), replicas: None, spare: None })
    }

    /// `provider` with its evaluations on `device`, for batches of any molecules where it has kernels for that, else of one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it has none.
    pub fn evaluating(device: &Device, provider: &dyn ForceProvider) -> Result<Box<dyn ForceProvider>> {
        match provider.on_device(device) {
            Some(provider) => Ok(provider),
            None => Ok(Box::new(Self::new(device, provider)?)),
        }
    }

    /// The kernels' parameters, which are the same for all systems of a batch.
    fn model(&self, batch: &Batch) -> Result<DeviceModel> {
        let first = batch.system(0);
        let Some(model) = self.inner.device_model(first) else {
            return Err(no_kernels(&self.capabilities.name, &self.device));
        };
        let mut seen = first;
        for system in batch.systems().iter().filter(|s| s.types != first.types) {
            if system.types != seen.types && self.inner.device_model(system).as_ref() != Some(&model) {
                return Err(Error::Unsupported {
                    provider: self.capabilities.name.clone(),
                    what: format!("forces on {} and {} at once on {}", first.name, system.name, self.device.name()),
                    remedy: "run replicas of one molecule, or use --device cpu".into(),
                });
            }
            seen = system;
        }
        Ok(model)
    }

    /// The replicas of the prepared batch.
    ///
    /// # Errors
    /// Before [`ForceProvider::prepare`].
    pub fn replicas(&mut self) -> Result<&mut Replicas> {
        match &mut self.replicas {
            Some(replicas) => Ok(replicas),
            None => invalid(format!("{} was used on a device before it was prepared", self.capabilities.name)),
        }
    }
}

impl ForceProvider for DeviceProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> Result<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        // The provider itself knows what fits it.
        self.inner.prepare(batch, dtype)?;
        let model = self.model(batch)?;
        self.replicas = Some(Replicas::new(&self.device, &model, &self.capabilities.name, batch, dtype)?);
        self.spare = Some(Array::zeros(dtype, 6 * batch.atoms()));
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() {
            return Err(Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell on a device".into(),
                remedy: "remove the cell from the input, or use --device cpu".into(),
            });
        }
        let mut spare = self.spare.take().unwrap_or_else(|| Array::zeros(input.positions.dtype(), 0));
        let replicas = self.replicas()?;
        replicas.upload_positions(match input.positions {
            View::F32(x) => pulp::bytemuck::cast_slice(x),
            View::F64(x) => pulp::bytemuck::cast_slice(x),
        })?;
        replicas.evaluate()?;
        if input.want.energy {
            replicas.fetch_energies(&mut out.energy)?;
        }
        replicas.fetch(Fetch { forces: true, ..Fetch::default() }, &mut spare, &mut out.forces)?;
        self.spare = Some(spare);
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn ForceProvider>> {
        Ok(Box::new(DeviceProvider {
            capabilities: self.capabilities.clone(),
            inner: self.inner.fork()?,
            device: self.device.clone(),
            replicas: None,
            spare: None,
        }))
    }

    fn fused(&mut self) -> Option<&mut dyn FusedLangevin> {
        Some(self)
    }
}

impl FusedLangevin for DeviceProvider {
    fn run(&mut self, plan: &Plan, batch: &Batch, state: &mut State, out: &mut Output, noise: Noise, steps: u64) -> Result<()> {
        let end = state.step + steps;
        let replicas = self.replicas()?;
        replicas.upload(state, &[])?;
        replicas.evaluate()?;
        // Numbers out of range are the caller's to find.
        let guard = Guard { position: f64::INFINITY, velocity: f64::INFINITY, check_every: u64::MAX, ..Guard::default() };
        let stops = replicas.advance(plan, noise, end, &guard)?;
        replicas.fetch(Fetch::ALL, &mut state.phase, &mut out.forces)?;
        if let Some(stop) = stops.first() {
            return Err(Error::Diverged { replica: batch.id(stop.replica), step: stop.step, what: format!("a number is {}", stop.value) });
        }
        state.step = end;
        state.clock = Clock::Physical { time: end as f64 * plan.dt };
        Ok(())
    }
}
