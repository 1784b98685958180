//! Where generated molecules start.

use crate::error::{Result, invalid};
use crate::noise::{Noise, Purpose};
use crate::system::System;
use nalgebra::{Cholesky, Matrix3, Vector3};

/// Noise that denoising starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Prior {
    /// The same variance everywhere: `σ z` with `σ` in nm, without net displacement.
    Isotropic {
        /// Standard deviation per coordinate in nm.
        sigma: f64,
    },
    /// A Gaussian blob: `centre + L z`. Without a scaffold its mean is at its centre exactly.
    Blob(Blob),
}

/// A Gaussian blob of atoms.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    /// Its middle in nm.
    pub centre: [f64; 3],
    /// Cholesky factor `L` of its covariance `L Lᵀ` (nm).
    factor: Matrix3<f64>,
}

impl Blob {
    /// A blob around `centre` (nm) with a `covariance` in nm², row by row.
    ///
    /// # Errors
    /// Where the covariance is not symmetric and positive definite.
    pub fn new(centre: [f64; 3], covariance: [f64; 9]) -> Result<Self> {
        let matrix = Matrix3::from_row_slice(&covariance);
        let size = matrix.amax();
        if !(size.is_finite() && centre.iter().all(|c| c.is_finite())) || (matrix - matrix.transpose()).amax() > 1e-9 * size {
            return invalid(format!("the covariance {covariance:?} is not finite and symmetric"));
        }
        match Cholesky::new(matrix) {
            Some(cholesky) => Ok(Blob { centre, factor: cholesky.l() }),
            None => invalid(format!("the covariance {covariance:?} is not positive definite; its eigenvalues must be above zero")),
        }
    }

    /// A blob with its axes along x, y and z, of these variances (nm²); zero is allowed.
    pub fn aligned(centre: [f64; 3], variances: [f64; 3]) -> Self {
        Blob { centre, factor: Matrix3::from_diagonal(&Vector3::from(variances.map(|v| v.max(0.0).sqrt()))) }
    }
}

impl Prior {
    /// Start positions `[N, 3]` (nm) of molecule `id`. Atoms of mass zero are left where `positions` has them, and the
    /// others are then drawn around the blob's centre one by one.
    pub fn draw(&self, system: &System, noise: Noise, id: u32, positions: &mut [f64]) {
        let isotropic;
        let blob = match self {
            Prior::Blob(blob) => blob,
            Prior::Isotropic { sigma } => {
                isotropic = Blob::aligned([0.0; 3], [sigma * sigma; 3]);
                &isotropic
            }
        };
        let frozen = system.masses.contains(&0.0);
        let free = || (0..system.len()).filter(|&i| system.masses[i] > 0.0);
        let z = |i: usize| Vector3::from(noise.normals(i as u32, id, 0, Purpose::Prior));
        let mean = if frozen { Vector3::zeros() } else { free().map(z).sum::<Vector3<f64>>() / system.len().max(1) as f64 };
        for i in free() {
            let x = Vector3::from(blob.centre) + blob.factor * (z(i) - mean);
            positions[3 * i..3 * i + 3].copy_from_slice(x.as_slice());
        }
    }
}
