//! The Müller–Brown surface (K. Müller and L. D. Brown, *Theor. Chim. Acta* **53**, 75 (1979)).

use super::{Reader, Toy, check_axes};
use crate::error::Result;
use scorefield_integrators::device::{DeviceModel, Field};
use scorefield_integrators::lane::LaneKernel;
use scorefield_integrators::simd::Lanes;
use scorefield_integrators::{Capabilities, Dimension, Quantity, System, UnitSystem};
use serde::{Deserialize, Serialize};

/// One term `A exp(a u² + b u v + c v²)` with `u = x − x₀`, `v = y − y₀`.
struct Term {
    amplitude: f64,
    a: f64,
    b: f64,
    c: f64,
    x0: f64,
    y0: f64,
}

/// The published constants.
const TERMS: [Term; 4] = [
    Term { amplitude: -200.0, a: -1.0, b: 0.0, c: -10.0, x0: 1.0, y0: 0.0 },
    Term { amplitude: -100.0, a: -1.0, b: 0.0, c: -10.0, x0: 0.0, y0: 0.5 },
    Term { amplitude: -170.0, a: -6.5, b: 11.0, c: -6.5, x0: -0.5, y0: 1.5 },
    Term { amplitude: 15.0, a: 0.7, b: 0.6, c: 0.7, x0: -1.0, y0: 1.0 },
];

/// Minima `(x, y, V)`, deepest first; positions and energies to the digits shown.
pub const MINIMA: [[f64; 3]; 3] =
    [[-0.558223635, 1.441725842, -146.699517210], [0.623499405, 0.028037759, -108.166724117], [-0.050010823, 0.466694105, -80.767818130]];

/// Saddle points `(x, y, V)`, highest first; positions and energies to the digits shown.
pub const SADDLES: [[f64; 3]; 2] = [[-0.822001559, 0.624312803, -40.664843509], [0.212486582, 0.292988325, -72.248940112]];

/// `V = Σ A exp(a u² + b u v + c v²)` in reduced units: three minima, a bent path between them, barriers of 106 and 36
/// units from the two deepest.
#[derive(Clone, Debug)]
pub struct MullerBrown {
    capabilities: Capabilities,
}

impl MullerBrown {
    const AXES: [bool; 3] = [true, true, false];

    /// The surface.
    pub fn new() -> Self {
        MullerBrown { capabilities: Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("muller-brown").with_kernels() } }
    }
}

impl Default for MullerBrown {
    fn default() -> Self {
        Self::new()
    }
}

impl LaneKernel for MullerBrown {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, system: &System) -> scorefield_integrators::Result<()> {
        check_axes("muller-brown", Self::AXES, system)
    }

    fn device_model(&self) -> Option<DeviceModel> {
        let fields = TERMS.iter().flat_map(|t| [t.amplitude, t.a, t.b, t.c, t.x0, t.y0].map(Field::Real)).collect();
        Some(DeviceModel {
            source: include_str!("../../kernels/muller_brown.cu"),
            fields,
            group: None,
            scratch: 0,
            spill: 0,
            constant: 0.0,
        })
    }

    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
        let zero = V::zero(t);
        let mut total = zero;
        for (x, f) in x.chunks_exact(3).zip(f.chunks_exact_mut(3)) {
            let (mut fx, mut fy) = (zero, zero);
            for term in &TERMS {
                let (u, v) = (x[0] - V::lit(t, term.x0), x[1] - V::lit(t, term.y0));
                let (au, cv) = (V::lit(t, term.a) * u, V::lit(t, term.c) * v);
                let (bu, bv) = (V::lit(t, term.b) * u, V::lit(t, term.b) * v);
                let e = (au + bv).mul_add(u, cv * v).exp() * V::lit(t, term.amplitude);
                fx -= e * (au + au + bv);
                fy -= e * (cv + cv + bu);
                if ENERGY {
                    total += e;
                }
            }
            f[0] = fx;
            f[1] = fy;
            f[2] = zero;
        }
        total
    }
}

/// `muller-brown`: parameters as written by the user, all in reduced units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MullerBrownSpec {
    /// Mass of the particle.
    pub mass: Quantity,
    /// Start position along x.
    pub x: Quantity,
    /// Start position along y.
    pub y: Quantity,
}

impl Default for MullerBrownSpec {
    fn default() -> Self {
        let [x, y, _] = MINIMA[0];
        MullerBrownSpec { mass: Quantity::bare(1.0), x: Quantity::bare(x), y: Quantity::bare(y) }
    }
}

impl MullerBrownSpec {
    /// The kernel and its toy. The reference temperature kT = 23 lets a trajectory cross all barriers.
    ///
    /// # Errors
    /// Where a parameter is refused.
    pub fn build(&self) -> Result<(MullerBrown, Toy)> {
        let reader = Reader { model: "muller-brown", units: UnitSystem::Reduced };
        let mass = reader.positive("mass", &self.mass, Dimension::MASS)?;
        let x = reader.any("x", &self.x, Dimension::LENGTH)?;
        let y = reader.any("y", &self.y, Dimension::LENGTH)?;
        let system = System { axes: MullerBrown::AXES, ..System::particles("muller-brown", 1, mass) };
        Ok((MullerBrown::new(), Toy { system, positions: vec![x, y, 0.0], cell: None, temperature: Quantity::bare(23.0), trained: None }))
    }
}
