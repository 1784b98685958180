//! Pseudo-forces on batches of any molecules, evaluated on a device.

use super::super::model::Output as Meaning;
use super::super::provider::{ANGSTROMS, Shared, noise_level};
use super::{DeviceNetwork, Graphs, Piece};
use crate::error::Result;
use rayon::prelude::*;
use scorefield_integrators::device::{Device, Memory};
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{Batch, Capabilities, DType, Error as ContractError, ForceProvider, Input, Output, Result as ContractResult};
use std::sync::Arc;

/// Molecules whose pairs one thread finds.
const MOLECULES_PER_PIECE: usize = 16;

/// A network with vectors. Pairs are found on the threads of this process; all else happens on the device.
pub(in super::super) struct BatchedPainn {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    device: Device,
    single: Option<Ready<f32>>,
    double: Option<Ready<f64>>,
}

struct Ready<T> {
    network: DeviceNetwork<T>,
    forces: Memory<T>,
    /// Of the prepared batch.
    atoms: usize,
}

impl<T: SimdReal> Ready<T> {
    fn new(device: &Device, shared: &Shared) -> Result<Self> {
        let parameters = shared.pack::<T>();
        let network = DeviceNetwork::new(device, &parameters.config, parameters.layout.clone())?;
        network.launcher.values.set(&parameters.values)?;
        Ok(Ready { network, forces: Memory::default(), atoms: 0 })
    }

    fn evaluate(&mut self, device: &Device, shared: &Shared, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let (batch, positions, config) = (input.batch, input.positions.typed::<T>()?, &shared.model.config);
        if self.atoms != batch.atoms() {
            return Err(ContractError::Invalid(
                "PaiNN was asked for forces of another batch than it was prepared for; prepare it anew".into(),
            ));
        }
        let sigma = noise_level(&shared.model, input.clock)?;
        let factor = match shared.model.output {
            Meaning::Noise { stiffness } => -stiffness * sigma / ANGSTROMS,
            Meaning::Displacement { stiffness } | Meaning::Energy { unit: stiffness, .. } => stiffness / ANGSTROMS,
        };
        let count = batch.replicas();
        let pieces: Vec<Piece<T>> = (0..count.div_ceil(MOLECULES_PER_PIECE))
            .into_par_iter()
            .map(|piece| {
                let (mut made, mut x) = (Piece::default(), Vec::new());
                for b in piece * MOLECULES_PER_PIECE..((piece + 1) * MOLECULES_PER_PIECE).min(count) {
                    x.clear();
                    x.extend(positions[batch.range3(b)].iter().map(|x| ANGSTROMS * x.to_f64()));
                    made.add(config, &batch.system(b).types, &x, 0.25 * sigma.ln());
                }
                made
            })
            .collect();
        let graphs = Graphs::join(config, pieces, false);
        self.run(device, &graphs, factor, out.forces.typed_mut::<T>()?).map_err(|e| match e {
            crate::Error::Contract(e) => e,
            e => ContractError::Invalid(e.to_string()),
        })?;
        let forces = out.forces.typed_mut::<T>()?;
        for b in 0..count {
            if !positions[batch.range3(b)].iter().all(|x| x.to_f64().is_finite()) {
                forces[batch.range3(b)].fill(T::from_f64(f64::NAN));
            }
        }
        Ok(())
    }

    fn run(&mut self, device: &Device, graphs: &Graphs<T>, factor: f64, forces: &mut [T]) -> Result<()> {
        let (network, molecules) = (&mut self.network, graphs.molecules());
        network.upload(graphs, false)?;
        self.forces.reserve(device, 3 * graphs.atoms())?;
        network.forward(graphs)?;
        let arguments = [&network.vectors(molecules)[..], &[self.forces.at(0), factor.into()]].concat();
        network.launcher.each("forces", 3 * molecules, &arguments)?;
        Ok(self.forces.get(forces)?)
    }
}

impl BatchedPainn {
    /// On `device`.
    pub(in super::super) fn new(device: &Device, shared: Arc<Shared>, capabilities: &Capabilities) -> Self {
        let capabilities = Capabilities { devices: vec!["cuda"], graph_safe: false, ..capabilities.clone() };
        BatchedPainn { shared, capabilities, device: device.clone(), single: None, double: None }
    }
}

/// The network in the precision `T`, made where it is missing, for `atoms` atoms.
fn prepare<T: SimdReal>(ready: &mut Option<Ready<T>>, device: &Device, shared: &Shared, atoms: usize) -> ContractResult<()> {
    let ready = match ready {
        Some(ready) => ready,
        None => ready.insert(Ready::new(device, shared).map_err(|e| ContractError::Invalid(e.to_string()))?),
    };
    ready.atoms = atoms;
    Ok(())
}

impl ForceProvider for BatchedPainn {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        match dtype {
            DType::F32 => prepare(&mut self.single, &self.device, &self.shared, batch.atoms()),
            DType::F64 => prepare(&mut self.double, &self.device, &self.shared, batch.atoms()),
        }
    }

    /// Allocates for pairs.
    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() {
            return Err(ContractError::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell on a device".into(),
                remedy: "remove the cell from the input, or use --device cpu".into(),
            });
        }
        let unprepared = || ContractError::Invalid("PaiNN was used on a device before it was prepared".into());
        let (device, shared) = (&self.device, &self.shared);
        match input.positions.dtype() {
            DType::F32 => self.single.as_mut().ok_or_else(unprepared)?.evaluate(device, shared, input, out),
            DType::F64 => self.double.as_mut().ok_or_else(unprepared)?.evaluate(device, shared, input, out),
        }
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(BatchedPainn::new(&self.device, self.shared.clone(), &self.capabilities)))
    }
}
