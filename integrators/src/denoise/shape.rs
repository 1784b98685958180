//! The shape of a molecule: its principal variances, and how they are changed.

use nalgebra::{Matrix3, SymmetricEigen, Vector3};

/// Smallest principal variance (nm²) that is divided by.
const LEAST: f64 = 1e-10;
/// Smallest target (nm²): flatter molecules would put atoms on one line or plane exactly.
const FLATTEST: f64 = 1e-5;

/// Eigenvalues of `XᵀX/N` of the centred positions `x` (`[N, 3]`), largest first, all atoms alike; in the square of the
/// unit of `x`.
pub fn principal_variances(x: &[f64]) -> [f64; 3] {
    principal(x).map_or([f64::NAN; 3], |p| p.variances)
}

/// Pulls the principal variances of `x` (`[N, 3]`, nm) towards `target` (nm², largest first): at `strength` 1 they are the
/// target, at 0 nothing happens. The molecule is stretched along its own axes and keeps its centre and orientation.
///
/// GPFF (arXiv 2605.19050), eq. 16. There the molecule is left in the frame of its axes; scaled in place it is the same
/// structure, without jumps where the order or the sign of axes changes.
pub fn enforce_shape(x: &mut [f64], target: [f64; 3], strength: f64) {
    if x.len() < 6 || strength <= 0.0 {
        return;
    }
    let Some(Principal { centre, axes, variances }) = principal(x) else { return };
    let factor = |k: usize| 1.0 + strength * ((target[k].max(FLATTEST) / variances[k].max(LEAST)).sqrt() - 1.0);
    let stretch = axes * Matrix3::from_diagonal(&Vector3::new(factor(0), factor(1), factor(2))) * axes.transpose();
    for row in x.chunks_exact_mut(3) {
        let moved = centre + stretch * (Vector3::from_column_slice(row) - centre);
        row.copy_from_slice(moved.as_slice());
    }
}

struct Principal {
    centre: Vector3<f64>,
    /// Axes as columns, that of the largest variance first.
    axes: Matrix3<f64>,
    variances: [f64; 3],
}

/// `None` where the positions are not finite.
fn principal(x: &[f64]) -> Option<Principal> {
    let n = (x.len() / 3).max(1) as f64;
    let rows = || x.chunks_exact(3).map(Vector3::from_column_slice);
    let centre = rows().sum::<Vector3<f64>>() / n;
    let covariance = rows().map(|r| (r - centre) * (r - centre).transpose()).sum::<Matrix3<f64>>() / n;
    if covariance.iter().any(|c| !c.is_finite()) {
        return None;
    }
    let eigen = SymmetricEigen::try_new(covariance, f64::EPSILON, 1000)?;
    let mut order = [0, 1, 2];
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let axes = Matrix3::from_columns(&order.map(|k| eigen.eigenvectors.column(k).into_owned()));
    Some(Principal { centre, axes, variances: order.map(|k| eigen.eigenvalues[k].max(0.0)) })
}
