//! Networks on a device, for batches of structures that each have a graph and a time of their own: `kernels/ditmc_training.cu`, launched
//! layer by layer. This is what training needs; the forces of one molecule have other kernels.

mod base;
mod equivariant;
mod scalar;
mod structures;

use super::config::{DitmcConfig, PairTokens};
use super::layout::{Body, Layout};
use crate::error::{Error, Result};
use crate::launch::Launcher;
#[cfg(test)]
pub(super) use base::SOURCE;
use equivariant::EquivariantNetwork;
use scalar::ScalarNetwork;
use scorefield_integrators::device::{Argument, Device, Memory};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;
pub(super) use structures::Structures;

/// The network and its memory.
pub(super) enum DeviceNetwork<T> {
    Scalar(Box<ScalarNetwork<T>>),
    Equivariant(Box<EquivariantNetwork<T>>),
}

/// Whether there are kernels for a network.
///
/// # Errors
/// Says what they do not do.
pub(super) fn check(config: &DitmcConfig) -> Result<()> {
    let what = match config {
        c if c.pair_tokens != PairTokens::AllPairs => "pair-tokens = \"bond-pairs\"",
        c if c.self_conditioning => "self-conditioning",
        c if c.guidance => "guidance",
        _ => return Ok(()),
    };
    refuse(what)
}

impl<T: SimdReal> DeviceNetwork<T> {
    /// All parameters are zero.
    ///
    /// # Errors
    /// Where there are no kernels for the network, or the device fails.
    pub(super) fn new(device: &Device, config: &DitmcConfig, layout: Arc<Layout>) -> Result<Self> {
        check(config)?;
        let body = layout.body.clone();
        match &body {
            Body::Scalar(places) => {
                let Some(pair) = &places.pair_perceptron else { return refuse("pair-tokens = \"bond-pairs\"") };
                Ok(DeviceNetwork::Scalar(Box::new(ScalarNetwork::new(device, config, layout, places, pair)?)))
            }
            Body::Equivariant(places) => Ok(DeviceNetwork::Equivariant(Box::new(EquivariantNetwork::new(device, config, layout, places)?))),
        }
    }

    /// Parameters, and their gradients after [`DeviceNetwork::backward`].
    pub(super) fn launcher(&self) -> &Launcher<T> {
        match self {
            DeviceNetwork::Scalar(n) => &n.base.launcher,
            DeviceNetwork::Equivariant(n) => &n.base.launcher,
        }
    }

    pub(super) fn launcher_mut(&mut self) -> &mut Launcher<T> {
        match self {
            DeviceNetwork::Scalar(n) => &mut n.base.launcher,
            DeviceNetwork::Equivariant(n) => &mut n.base.launcher,
        }
    }

    /// Brings structures to the device and makes room for what they need.
    pub(super) fn upload(&mut self, s: &Structures<T>) -> Result<()> {
        match self {
            DeviceNetwork::Scalar(n) => n.upload(s),
            DeviceNetwork::Equivariant(n) => n.upload(s),
        }
    }

    /// From structures to drifts.
    pub(super) fn forward(&self, s: &Structures<T>) -> Result<()> {
        match self {
            DeviceNetwork::Scalar(n) => n.forward(s),
            DeviceNetwork::Equivariant(n) => n.forward(s),
        }
    }

    /// The vectors of all atoms, as kernels see them.
    pub(super) fn vectors(&self, s: &Structures<T>) -> [Argument; 5] {
        match self {
            DeviceNetwork::Scalar(n) => n.vectors(s),
            DeviceNetwork::Equivariant(n) => n.vectors(s),
        }
    }

    /// Where [`DeviceNetwork::backward`] reads the gradients of vectors: cleared.
    pub(super) fn seed(&self, s: &Structures<T>) -> Result<Argument> {
        match self {
            DeviceNetwork::Scalar(n) => n.seed(s),
            DeviceNetwork::Equivariant(n) => n.seed(s),
        }
    }

    /// Gradients of all parameters from those of vectors; `elements` are those that there are.
    pub(super) fn backward(&self, s: &Structures<T>, elements: &Memory<i32>) -> Result<()> {
        match self {
            DeviceNetwork::Scalar(n) => n.backward(s, elements),
            DeviceNetwork::Equivariant(n) => n.backward(s, elements),
        }
    }
}

fn refuse<T>(what: &str) -> Result<T> {
    Err(Error::parameter("training on a device", "network", what, "train it on the cpu, or leave it out"))
}
