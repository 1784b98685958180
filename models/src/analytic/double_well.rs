//! Two wells of equal or tilted depth, in one and two dimensions.

use super::{Reader, Toy, check_axes, positive};
use crate::error::{Error, Result};
use scorefield_integrators::device::{DeviceModel, Field};
use scorefield_integrators::lane::LaneKernel;
use scorefield_integrators::simd::Lanes;
use scorefield_integrators::{Capabilities, Dimension, Quantity, System, UnitSystem};
use serde::{Deserialize, Serialize};

/// `V = h (x² − 1)² + t x` in reduced units: barrier `h` between wells near `x = ±1`, tilt `t`.
#[derive(Clone, Debug)]
pub struct DoubleWell {
    capabilities: Capabilities,
    barrier: f64,
    tilt: f64,
}

/// `V` and `dV/dx` of `h (x² − 1)² + t x`.
#[inline(always)]
fn wells<V: Lanes>(t: V::Token, h: f64, tilt: f64, x: V) -> (V, V) {
    let u = x.mul_add(x, V::lit(t, -1.0));
    let tilt = V::lit(t, tilt);
    let energy = (V::lit(t, h) * u).mul_add(u, tilt * x);
    let slope = (V::lit(t, 4.0 * h) * x).mul_add(u, tilt);
    (energy, slope)
}

/// The kernels of both; `stiffness` is 0 in one dimension.
fn device_model(barrier: f64, tilt: f64, stiffness: f64) -> DeviceModel {
    let fields = [barrier, tilt, stiffness].map(Field::Real).to_vec();
    DeviceModel { source: include_str!("../../kernels/double_well.cu"), fields, group: None, scratch: 0, spill: 0, constant: 0.0 }
}

fn check_tilt(model: &str, tilt: f64) -> Result<f64> {
    if tilt.is_finite() { Ok(tilt) } else { Err(Error::parameter(model, "tilt", tilt, "it must be finite")) }
}

impl DoubleWell {
    const AXES: [bool; 3] = [true, false, false];

    /// Barrier `barrier` and tilt `tilt`.
    ///
    /// # Errors
    /// Where the barrier is not positive or the tilt not finite.
    pub fn new(barrier: f64, tilt: f64) -> Result<Self> {
        Ok(DoubleWell {
            capabilities: Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("double-well").with_kernels() },
            barrier: positive("double-well", "barrier", barrier)?,
            tilt: check_tilt("double-well", tilt)?,
        })
    }
}

impl LaneKernel for DoubleWell {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, system: &System) -> scorefield_integrators::Result<()> {
        check_axes("double-well", Self::AXES, system)
    }

    fn device_model(&self) -> Option<DeviceModel> {
        Some(device_model(self.barrier, self.tilt, 0.0))
    }

    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
        let zero = V::zero(t);
        let mut total = zero;
        for (x, f) in x.chunks_exact(3).zip(f.chunks_exact_mut(3)) {
            let (energy, slope) = wells(t, self.barrier, self.tilt, x[0]);
            f[0] = -slope;
            f[1] = zero;
            f[2] = zero;
            total += energy;
        }
        total
    }
}

/// `V = h (x² − 1)² + t x + ½ k y²` in reduced units.
#[derive(Clone, Debug)]
pub struct DoubleWell2d {
    capabilities: Capabilities,
    barrier: f64,
    tilt: f64,
    stiffness: f64,
}

impl DoubleWell2d {
    const AXES: [bool; 3] = [true, true, false];

    /// Barrier `barrier` and tilt `tilt` along x, force constant `stiffness` along y.
    ///
    /// # Errors
    /// Where barrier or force constant are not positive, or the tilt is not finite.
    pub fn new(barrier: f64, tilt: f64, stiffness: f64) -> Result<Self> {
        Ok(DoubleWell2d {
            capabilities: Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("double-well-2d").with_kernels() },
            barrier: positive("double-well-2d", "barrier", barrier)?,
            tilt: check_tilt("double-well-2d", tilt)?,
            stiffness: positive("double-well-2d", "k", stiffness)?,
        })
    }
}

impl LaneKernel for DoubleWell2d {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, system: &System) -> scorefield_integrators::Result<()> {
        check_axes("double-well-2d", Self::AXES, system)
    }

    fn device_model(&self) -> Option<DeviceModel> {
        Some(device_model(self.barrier, self.tilt, self.stiffness))
    }

    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
        let zero = V::zero(t);
        let mut total = zero;
        for (x, f) in x.chunks_exact(3).zip(f.chunks_exact_mut(3)) {
            let (energy, slope) = wells(t, self.barrier, self.tilt, x[0]);
            let pull = V::lit(t, self.stiffness) * x[1];
            f[0] = -slope;
            f[1] = -pull;
            f[2] = zero;
            total += (pull * V::lit(t, 0.5)).mul_add(x[1], energy);
        }
        total
    }
}

fn one() -> Quantity {
    Quantity::bare(1.0)
}

/// `double-well`: parameters as written by the user, all in reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DoubleWellSpec {
    /// Height of the barrier.
    pub barrier: Quantity,
    /// Tilt.
    pub tilt: Quantity,
    /// Mass of the particle.
    pub mass: Quantity,
    /// Start position.
    pub start: Quantity,
}

impl Default for DoubleWellSpec {
    fn default() -> Self {
        DoubleWellSpec { barrier: Quantity::bare(3.0), tilt: Quantity::bare(0.0), mass: one(), start: Quantity::bare(-1.0) }
    }
}

impl DoubleWellSpec {
    /// The kernel and its toy.
    ///
    /// # Errors
    /// Where a parameter is refused.
    pub fn build(&self) -> Result<(DoubleWell, Toy)> {
        let reader = Reader { model: "double-well", units: UnitSystem::Reduced };
        let kernel =
            DoubleWell::new(reader.any("barrier", &self.barrier, Dimension::ENERGY)?, reader.any("tilt", &self.tilt, Dimension::FORCE)?)?;
        let mass = reader.positive("mass", &self.mass, Dimension::MASS)?;
        let x = reader.any("start", &self.start, Dimension::LENGTH)?;
        let system = System { axes: DoubleWell::AXES, ..System::particles("double-well", 1, mass) };
        Ok((kernel, Toy { system, positions: vec![x, 0.0, 0.0], cell: None, temperature: one(), trained: None }))
    }
}

/// `double-well-2d`: parameters as written by the user, all in reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DoubleWell2dSpec {
    /// Height of the barrier.
    pub barrier: Quantity,
    /// Tilt.
    pub tilt: Quantity,
    /// Force constant along y.
    pub k: Quantity,
    /// Mass of the particle.
    pub mass: Quantity,
    /// Start position along x.
    pub start: Quantity,
}

impl Default for DoubleWell2dSpec {
    fn default() -> Self {
        let DoubleWellSpec { barrier, tilt, mass, start } = DoubleWellSpec::default();
        DoubleWell2dSpec { barrier, tilt, k: one(), mass, start }
    }
}

impl DoubleWell2dSpec {
    /// The kernel and its toy.
    ///
    /// # Errors
    /// Where a parameter is refused.
    pub fn build(&self) -> Result<(DoubleWell2d, Toy)> {
        let reader = Reader { model: "double-well-2d", units: UnitSystem::Reduced };
        let kernel = DoubleWell2d::new(
            reader.any("barrier", &self.barrier, Dimension::ENERGY)?,
            reader.any("tilt", &self.tilt, Dimension::FORCE)?,
            reader.any("k", &self.k, Dimension::STIFFNESS)?,
        )?;
        let mass = reader.positive("mass", &self.mass, Dimension::MASS)?;
        let x = reader.any("start", &self.start, Dimension::LENGTH)?;
        let system = System { axes: DoubleWell2d::AXES, ..System::particles("double-well-2d", 1, mass) };
        Ok((kernel, Toy { system, positions: vec![x, 0.0, 0.0], cell: None, temperature: one(), trained: None }))
    }
}
