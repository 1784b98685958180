//! Lennard-Jones clusters: open boundaries, every pair, no cutoff.

use super::positive;
use crate::error::{Error, Result};
use scorefield_integrators::device::{DeviceModel, Field};
use scorefield_integrators::lane::LaneKernel;
use scorefield_integrators::simd::{Lanes, MAX_LANES};
use scorefield_integrators::{Capabilities, Real, System, UnitSystem};

/// `V = Σ_{i<j} 4ε [(σ/r)¹² − (σ/r)⁶]`, in SI or reduced units.
///
/// Both lane layouts add the contributions to an atom in the order of its partners' indices, so they agree bit for bit.
#[derive(Clone, Debug)]
pub struct LennardJones {
    capabilities: Capabilities,
    sigma: f64,
    epsilon: f64,
}

/// What a pair at squared distance `r2` contributes: `−(dV/dr)/r` and `V`.
#[inline(always)]
pub(super) fn pair<V: Lanes>(t: V::Token, sigma2: V, epsilon: f64, r2: V) -> (V, V) {
    let inverse = r2.recip();
    let s2 = sigma2 * inverse;
    let s6 = s2 * s2 * s2;
    // 24 ε (2 s¹² − s⁶)/r² and 4 ε (s¹² − s⁶)
    let slope = (V::lit(t, 48.0 * epsilon) * s6 - V::lit(t, 24.0 * epsilon)) * (s6 * inverse);
    let energy = V::lit(t, 4.0 * epsilon) * (s6 * s6 - s6);
    (slope, energy)
}

impl LennardJones {
    /// Distance `sigma` (nm) at which a pair's energy is zero, well depth `epsilon` (kJ/mol); both 1 in reduced units.
    ///
    /// # Errors
    /// Where either is not positive.
    pub fn new(sigma: f64, epsilon: f64, units: UnitSystem) -> Result<Self> {
        Ok(LennardJones {
            capabilities: Capabilities { units, ..Capabilities::potential("lennard-jones").with_kernels() },
            sigma: positive("lennard-jones", "sigma", sigma)?,
            epsilon: positive("lennard-jones", "epsilon", epsilon)?,
        })
    }
}

impl LaneKernel for LennardJones {
    const ATOM_LANES: bool = true;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, system: &System) -> scorefield_integrators::Result<()> {
        super::check_axes("lennard-jones", [true; 3], system)
    }

    fn device_model(&self) -> Option<DeviceModel> {
        let fields = vec![Field::Real(self.sigma * self.sigma), Field::Real(self.epsilon)];
        Some(DeviceModel {
            source: include_str!("../../kernels/lennard_jones.cu"),
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
        let sigma2 = V::lit(t, self.sigma * self.sigma);
        f.fill(zero);
        let mut total = zero;
        let atoms = x.len() / 3;
        for i in 0..atoms {
            let xi = [x[3 * i], x[3 * i + 1], x[3 * i + 2]];
            let mut fi = [f[3 * i], f[3 * i + 1], f[3 * i + 2]];
            let mut energy = zero;
            for (xj, fj) in x[3 * i + 3..].chunks_exact(3).zip(f[3 * i + 3..].chunks_exact_mut(3)) {
                let d = [xi[0] - xj[0], xi[1] - xj[1], xi[2] - xj[2]];
                let r2 = d[2].mul_add(d[2], d[1].mul_add(d[1], d[0] * d[0]));
                let (slope, e) = pair(t, sigma2, self.epsilon, r2);
                let minus = -slope;
                for a in 0..3 {
                    fi[a] = slope.mul_add(d[a], fi[a]);
                    fj[a] = minus.mul_add(d[a], fj[a]);
                }
                if ENERGY {
                    energy += e;
                }
            }
            f[3 * i..3 * i + 3].copy_from_slice(&fi);
            if ENERGY {
                total += energy;
            }
        }
        total
    }

    #[inline(always)]
    fn evaluate_one<V: Lanes, const ENERGY: bool>(&self, t: V::Token, atoms: usize, x: &[V], f: &mut [V], _: &mut [V]) -> V::Scalar {
        let (zero, half) = (V::zero(t), V::lit(t, 0.5));
        let sigma2 = V::lit(t, self.sigma * self.sigma);
        let row = x.len() / 3;
        let mut total = V::Scalar::default();
        let mut lane = [V::Scalar::default(); MAX_LANES];
        for (l, n) in lane.iter_mut().enumerate() {
            *n = V::Scalar::from_f64(l as f64);
        }
        let lane = V::load(t, &lane);
        for block in 0..row {
            // Lanes are atoms `i`; all partners `j` come one by one, in order.
            let i = V::lit(t, (block * V::LANES) as f64) + lane;
            let xi = [x[block], x[row + block], x[2 * row + block]];
            let mut fi = [zero; 3];
            let mut energy = zero;
            let mut partner = [[V::Scalar::default(); MAX_LANES]; 3];
            for j in 0..atoms {
                let (vector, l) = (j / V::LANES, j % V::LANES);
                if l == 0 {
                    for (a, p) in partner.iter_mut().enumerate() {
                        x[a * row + vector].store(p);
                    }
                }
                let d = [xi[0] - V::splat(t, partner[0][l]), xi[1] - V::splat(t, partner[1][l]), xi[2] - V::splat(t, partner[2][l])];
                let r2 = d[2].mul_add(d[2], d[1].mul_add(d[1], d[0] * d[0]));
                let j = V::lit(t, j as f64);
                let itself = (i - j).abs().lt(half);
                // One in place of the distance of an atom to itself, so that no lane divides by zero.
                let (slope, e) = pair(t, sigma2, self.epsilon, V::select(itself, V::lit(t, 1.0), r2));
                let slope = V::select(itself, zero, slope);
                for a in 0..3 {
                    fi[a] = slope.mul_add(d[a], fi[a]);
                }
                if ENERGY {
                    energy += V::select((i + half).lt(j), e, zero);
                }
            }
            for a in 0..3 {
                f[a * row + block] = fi[a];
            }
            if ENERGY {
                let mut e = [V::Scalar::default(); MAX_LANES];
                energy.store(&mut e);
                for &e in &e[..V::LANES.min(atoms - block * V::LANES)] {
                    total += e;
                }
            }
        }
        total
    }
}

/// Start positions `[N, 3]` of a compact cluster with nearest neighbours about `spacing` apart: Mackay icosahedra for 13,
/// 55 and 147 atoms (the global minima there), else the `atoms` sites of a face-centred lattice nearest to an octahedral
/// hole (for 38 atoms the truncated octahedron, the global minimum).
///
/// # Errors
/// Where there is no atom, or more than 100 000.
pub fn cluster_positions(atoms: usize, spacing: f64) -> Result<Vec<f64>> {
    if atoms == 0 || atoms > 100_000 {
        return Err(Error::parameter("lennard-jones", "n", atoms, "a cluster has 1 to 100000 atoms"));
    }
    let mut sites = match atoms {
        13 => icosahedron(1),
        55 => icosahedron(2),
        147 => icosahedron(3),
        _ => octahedral(atoms),
    };
    for s in &mut sites {
        *s *= spacing;
    }
    Ok(sites)
}

/// Mackay icosahedron of `shells` shells around an atom; edges of every shell have length 1 per step.
fn icosahedron(shells: i32) -> Vec<f64> {
    let golden = 0.5 * (1.0 + 5f64.sqrt());
    let mut corners: Vec<[f64; 3]> = Vec::new();
    for (a, b) in [(0.5, 0.5 * golden), (0.5, -0.5 * golden), (-0.5, 0.5 * golden), (-0.5, -0.5 * golden)] {
        corners.extend([[0.0, a, b], [a, b, 0.0], [b, 0.0, a]]);
    }
    let near = |p: &[f64; 3], q: &[f64; 3]| (0..3).map(|a| (p[a] - q[a]).powi(2)).sum::<f64>() < 1.01;
    let mut sites = vec![[0.0; 3]];
    for n in 1..=shells {
        let mut shell: Vec<[f64; 3]> = Vec::new();
        for i in 0..12 {
            for j in i + 1..12 {
                for k in j + 1..12 {
                    let (p, q, r) = (&corners[i], &corners[j], &corners[k]);
                    if !(near(p, q) && near(q, r) && near(p, r)) {
                        continue;
                    }
                    for u in 0..=n {
                        for v in 0..=n - u {
                            let w = f64::from(n - u - v);
                            let site = std::array::from_fn(|a| f64::from(u) * p[a] + f64::from(v) * q[a] + w * r[a]);
                            // Sites on edges and corners belong to several faces.
                            if !shell.iter().any(|s| (0..3).all(|a| (s[a] - site[a]).abs() < 1e-6)) {
                                shell.push(site);
                            }
                        }
                    }
                }
            }
        }
        sites.extend(shell);
    }
    sites.concat()
}

/// The `atoms` sites of a face-centred cubic lattice nearest to an octahedral hole, nearest neighbours 1 apart.
fn octahedral(atoms: usize) -> Vec<f64> {
    // Sites are the points of the integer lattice with an odd sum, every second one: a ball of 2 N points holds them.
    let reach = (2.0 * atoms as f64).cbrt().ceil() as i32 + 2;
    let mut sites = Vec::new();
    for x in -reach..=reach {
        for y in -reach..=reach {
            for z in -reach..=reach {
                if (x + y + z).rem_euclid(2) == 1 {
                    sites.push((x * x + y * y + z * z, x, y, z));
                }
            }
        }
    }
    sites.sort_unstable();
    let scale = 0.5f64.sqrt();
    sites[..atoms].iter().flat_map(|&(_, x, y, z)| [x, y, z].map(|k| f64::from(k) * scale)).collect()
}
