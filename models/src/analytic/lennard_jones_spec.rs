//! `lj`: Lennard-Jones as written by the user, open or periodic, with the system it brings along.

use super::lennard_jones::{LennardJones, cluster_positions};
use super::{Reader, Toy};
use crate::error::Result;
use scorefield_integrators::lane::LaneProvider;
use scorefield_integrators::{Dimension, ForceProvider, Quantity, System, UnitSystem};
use serde::{Deserialize, Serialize};

/// `lj`: parameters as written by the user. Units decide: `sigma=1,epsilon=1` are reduced units,
/// `sigma=3.405 A,epsilon=0.0103 eV` are SI.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LennardJonesSpec {
    /// Distance at which a pair's energy is zero.
    pub sigma: Quantity,
    /// Depth of a pair's well.
    pub epsilon: Quantity,
    /// Number of atoms of the cluster or crystal that it brings along.
    pub n: usize,
    /// Mass of those atoms.
    pub mass: Option<Quantity>,
}

impl Default for LennardJonesSpec {
    fn default() -> Self {
        LennardJonesSpec { sigma: Quantity::bare(1.0), epsilon: Quantity::bare(1.0), n: 13, mass: None }
    }
}

/// Mass of argon in u.
const ARGON: f64 = 39.948;

impl LennardJonesSpec {
    /// The provider and its toy.
    ///
    /// # Errors
    /// Where a parameter is refused.
    pub fn build(&self) -> Result<(Box<dyn ForceProvider>, Toy)> {
        let reader = Reader::new("lj", &[("sigma", &self.sigma), ("epsilon", &self.epsilon)])?;
        let sigma = reader.positive("sigma", &self.sigma, Dimension::LENGTH)?;
        let epsilon = reader.positive("epsilon", &self.epsilon, Dimension::ENERGY)?;
        let si = reader.units == UnitSystem::Si;
        let default_mass = if si { Quantity::new(ARGON, "u") } else { Quantity::bare(1.0) };
        let mass = reader.positive("mass", self.mass.as_ref().unwrap_or(&default_mass), Dimension::MASS)?;
        let positions = cluster_positions(self.n, 2f64.powf(1.0 / 6.0) * sigma)?;
        let mut system = System::particles(format!("lj{}", self.n), self.n, mass);
        if si && (mass - ARGON).abs() < 0.01 {
            system.types.fill(18);
        }
        let temperature = if si { Quantity::new(30.0, "K") } else { Quantity::bare(0.2) };
        let kernel = LennardJones::new(sigma, epsilon, reader.units)?;
        Ok((Box::new(LaneProvider::new(kernel)), Toy { system, positions, cell: None, temperature }))
    }
}
