//! `lj`: Lennard-Jones as written by the user, open or periodic, with the system it brings along.

use super::lennard_jones::{LennardJones, cluster_positions};
use super::{LennardJonesLocal, LennardJonesPeriodic, Reader, Toy, positive};
use crate::error::{Error, Result};
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
    /// Cutoff; with it the model needs a periodic cell, without it the model is open and takes all pairs.
    pub cutoff: Option<Quantity>,
    /// With a cutoff: subtract the pair energy there, so that energies are continuous.
    pub shift: bool,
    /// With a cutoff: how far beyond it neighbour lists reach.
    pub skin: Option<Quantity>,
    /// Number of atoms of the cluster or crystal that it brings along.
    pub n: Option<usize>,
    /// Mass of those atoms.
    pub mass: Option<Quantity>,
    /// With a cutoff: number density of that crystal, in units of 1/σ³.
    pub density: f64,
}

impl Default for LennardJonesSpec {
    fn default() -> Self {
        LennardJonesSpec {
            sigma: Quantity::bare(1.0),
            epsilon: Quantity::bare(1.0),
            cutoff: None,
            shift: false,
            skin: None,
            n: None,
            mass: None,
            density: 0.8442,
        }
    }
}

/// Mass of argon in u.
const ARGON: f64 = 39.948;

impl LennardJonesSpec {
    /// The provider and its toy: a compact cluster, or with a cutoff a face-centred crystal near its triple point.
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
        let system = |n| {
            let mut system = System::particles(format!("lj{n}"), n, mass);
            if si && (mass - ARGON).abs() < 0.01 {
                system.types.fill(18);
            }
            system
        };
        let Some(cutoff) = &self.cutoff else {
            if self.shift || self.skin.is_some() {
                let name = if self.shift { "shift" } else { "skin" };
                return Err(Error::spec("lj", format!("{name} is given without a cutoff; add cutoff=… or leave {name} out")));
            }
            let n = self.n.unwrap_or(13);
            let positions = cluster_positions(n, 2f64.powf(1.0 / 6.0) * sigma)?;
            let temperature = if si { Quantity::new(30.0, "K") } else { Quantity::bare(0.2) };
            let kernel = LennardJones::new(sigma, epsilon, reader.units)?;
            return Ok((Box::new(LaneProvider::new(kernel)), Toy { system: system(n), positions, cell: None, temperature, trained: None }));
        };
        let cutoff = reader.positive("cutoff", cutoff, Dimension::LENGTH)?;
        let skin = self.skin.as_ref().map_or(Ok(0.4 * sigma), |s| reader.positive("skin", s, Dimension::LENGTH))?;
        let density = positive("lj", "density", self.density)?;
        let n = self.n.unwrap_or(108);
        let (positions, side) = crystal(n, density / sigma.powi(3))?;
        let cell = Some([side, 0.0, 0.0, 0.0, side, 0.0, 0.0, 0.0, side]);
        let temperature = if si { Quantity::new(86.0, "K") } else { Quantity::bare(0.728) };
        let provider = LennardJonesPeriodic::new(sigma, epsilon, cutoff, self.shift, skin, reader.units)?;
        Ok((Box::new(provider), Toy { system: system(n), positions, cell, temperature, trained: None }))
    }

    /// The same forces on domains of a larger system.
    ///
    /// # Errors
    /// Where a parameter is refused, or there is no cutoff.
    pub fn build_local(&self) -> Result<LennardJonesLocal> {
        let Some(cutoff) = &self.cutoff else {
            return Err(Error::spec("lj", "without a cutoff every atom sees all others; add cutoff=… to share space out"));
        };
        let reader = Reader::new("lj", &[("sigma", &self.sigma), ("epsilon", &self.epsilon)])?;
        LennardJonesLocal::new(
            reader.positive("sigma", &self.sigma, Dimension::LENGTH)?,
            reader.positive("epsilon", &self.epsilon, Dimension::ENERGY)?,
            reader.positive("cutoff", cutoff, Dimension::LENGTH)?,
            self.shift,
        )
    }
}

/// Sites `[N, 3]` of a face-centred cubic crystal of the given number density in a cubic cell, and the cell's side. Where
/// `atoms` is not four times a cube, the last sites stay empty.
fn crystal(atoms: usize, density: f64) -> Result<(Vec<f64>, f64)> {
    if atoms == 0 || atoms > 10_000_000 {
        return Err(Error::parameter("lj", "n", atoms, "a crystal has 1 to 10000000 atoms"));
    }
    let side = (atoms as f64 / density).cbrt();
    let cells = (1..).find(|c| 4 * c * c * c >= atoms).unwrap_or(1);
    let step = side / cells as f64;
    let corner = |k: usize| [k / (cells * cells), k / cells % cells, k % cells].map(|c| c as f64);
    let basis = [[0.25, 0.25, 0.25], [0.75, 0.75, 0.25], [0.75, 0.25, 0.75], [0.25, 0.75, 0.75]];
    let site = |k: usize| -> [f64; 3] { std::array::from_fn(|a| step * (corner(k / 4)[a] + basis[k % 4][a])) };
    Ok(((0..atoms).flat_map(site).collect(), side))
}
