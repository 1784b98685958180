//! The harmonic oscillator: every atom bound to a centre.

use super::{Reader, Toy, check_axes, positive};
use crate::error::{Error, Result};
use scorefield_integrators::device::{DeviceModel, Field};
use scorefield_integrators::lane::LaneKernel;
use scorefield_integrators::simd::Lanes;
use scorefield_integrators::{Capabilities, Dimension, Quantity, System, UnitSystem};
use serde::{Deserialize, Serialize};

/// `V = ½ k Σᵢ |rᵢ − cᵢ|²` over the active axes; `F = −k (r − c)`.
///
/// Stationary variance per axis `kT/k`; angular frequency `√(k/m)`.
#[derive(Clone, Debug)]
pub struct Harmonic {
    capabilities: Capabilities,
    stiffness: f64,
    axes: [bool; 3],
    /// Centres `[N, 3]`, or none for the origin and any number of atoms.
    centre: Vec<f64>,
}

impl Harmonic {
    /// Bound to the origin with force constant `stiffness` (kJ/mol/nm², or reduced) along `axes`.
    ///
    /// # Errors
    /// Where the force constant is not positive.
    pub fn new(stiffness: f64, axes: [bool; 3], units: UnitSystem) -> Result<Self> {
        Ok(Harmonic {
            capabilities: Capabilities { units, ..Capabilities::potential("harmonic").with_kernels() },
            stiffness: positive("harmonic", "k", stiffness)?,
            axes,
            centre: Vec::new(),
        })
    }

    /// The same, each atom bound to its own centre (`[N, 3]`).
    ///
    /// # Errors
    /// Where a coordinate is not finite.
    pub fn centred_at(mut self, centre: Vec<f64>) -> Result<Self> {
        if let Some(x) = centre.iter().find(|x| !x.is_finite()) {
            return Err(Error::parameter("harmonic", "centre", x, "coordinates must be finite"));
        }
        self.centre = centre;
        Ok(self)
    }
}

impl LaneKernel for Harmonic {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, system: &System) -> scorefield_integrators::Result<()> {
        check_axes("harmonic", self.axes, system)?;
        if !self.centre.is_empty() && self.centre.len() != 3 * system.len() {
            return scorefield_integrators::error::invalid(format!(
                "harmonic: {} atoms in {}, but centres for {}; use centre=origin, or a model made for this system",
                system.len(),
                system.name,
                self.centre.len() / 3
            ));
        }
        Ok(())
    }

    fn device_model(&self) -> Option<DeviceModel> {
        let mut fields = vec![Field::Reals(self.centre.clone()), Field::Real(self.stiffness)];
        fields.extend(self.axes.map(|a| Field::Int(i32::from(a))));
        fields.push(Field::Int(i32::from(!self.centre.is_empty())));
        Some(DeviceModel { source: include_str!("../../kernels/harmonic.cu"), fields, group: None, scratch: 0, spill: 0, constant: 0.0 })
    }

    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
        let k = V::lit(t, self.stiffness);
        let zero = V::zero(t);
        let mut squares = zero;
        for (i, (x, f)) in x.iter().zip(f.iter_mut()).enumerate() {
            if !self.axes[i % 3] {
                *f = zero;
                continue;
            }
            let d = match self.centre.get(i) {
                Some(&c) => V::lit(t, c) - *x,
                None => -*x,
            };
            *f = k * d;
            if ENERGY {
                squares = d.mul_add(d, squares);
            }
        }
        squares * (k * V::lit(t, 0.5))
    }
}

/// Where atoms are bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Centre {
    /// The origin.
    #[default]
    Origin,
    /// Every atom's own start position.
    Start,
}

/// `harmonic`: parameters as written by the user. Units decide: `k=1` is a reduced toy, `k=100 kJ/mol/nm^2` is SI.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HarmonicSpec {
    /// Force constant.
    pub k: Quantity,
    /// Number of axes of the toy, 1 to 3.
    pub dimension: usize,
    /// What atoms are bound to.
    pub centre: Centre,
    /// Mass of the toy's particle.
    pub mass: Option<Quantity>,
    /// Start of the toy's particle on each of its axes.
    pub start: Option<Quantity>,
}

impl Default for HarmonicSpec {
    fn default() -> Self {
        HarmonicSpec { k: Quantity::bare(1.0), dimension: 3, centre: Centre::Origin, mass: None, start: None }
    }
}

impl HarmonicSpec {
    /// The kernel and its toy; `start` are the positions that `centre=start` means, else the toy's own.
    ///
    /// # Errors
    /// Where a parameter is refused.
    pub fn build(&self, start: Option<&[f64]>) -> Result<(Harmonic, Toy)> {
        let reader = Reader::new("harmonic", &[("k", &self.k)])?;
        let k = reader.positive("k", &self.k, Dimension::STIFFNESS)?;
        if !(1..=3).contains(&self.dimension) {
            return Err(Error::parameter("harmonic", "dimension", self.dimension, "it must be 1, 2 or 3"));
        }
        let si = reader.units == UnitSystem::Si;
        let one = |unit| if si { Quantity::new(1.0, unit) } else { Quantity::bare(1.0) };
        let mass = reader.positive("mass", self.mass.as_ref().unwrap_or(&one("u")), Dimension::MASS)?;
        let x = reader.any("start", self.start.as_ref().unwrap_or(&one("A")), Dimension::LENGTH)?;
        let axes = [true, self.dimension > 1, self.dimension > 2];
        let system = System { axes, ..System::particles("harmonic", 1, mass) };
        let positions: Vec<f64> = axes.iter().map(|&a| if a { x } else { 0.0 }).collect();
        let mut kernel = Harmonic::new(k, axes, reader.units)?;
        if self.centre == Centre::Start {
            kernel = kernel.centred_at(start.unwrap_or(&positions).to_vec())?;
        }
        let temperature = if si { Quantity::new(300.0, "K") } else { Quantity::bare(1.0) };
        Ok((kernel, Toy { system, positions, cell: None, temperature, trained: None }))
    }
}
