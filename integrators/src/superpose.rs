//! Root-mean-square deviation after optimal superposition.

use nalgebra::{Matrix3, Matrix4, Quaternion, SymmetricEigen, UnitQuaternion, Vector3};

/// `min_{R, t} sqrt(Σ |R a_i + t − b_i|² / N)` over rotations and translations, in the unit of `a` and `b` (`[N, 3]`).
///
/// The minimum that Kabsch (*Acta Cryst.* A 32, 922, 1976) finds by a singular value decomposition, found here by Horn's
/// quaternion (*J. Opt. Soc. Am.* A 4, 629, 1987): it needs no case for reflections and stays exact for planar molecules,
/// where the decomposition of a singular 3 × 3 matrix loses digits.
pub fn superposed_rmsd(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (centred(a), centred(b));
    let rotation = rotation(a.iter().zip(&b).fold(Matrix3::zeros(), |sum, (a, b)| sum + a * b.transpose()));
    let square: f64 = a.iter().zip(&b).map(|(a, b)| (rotation * a - b).norm_squared()).sum();
    (square / a.len().max(1) as f64).sqrt()
}

/// `sqrt(Σ |a_i − b_i|² / N)` without superposition.
pub fn plain_rmsd(a: &[f64], b: &[f64]) -> f64 {
    let square: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (square / (a.len() / 3).max(1) as f64).sqrt()
}

/// The rotation with the largest `Σ b_i·R a_i`, from `c = Σ a_i b_iᵀ`.
fn rotation(c: Matrix3<f64>) -> UnitQuaternion<f64> {
    let skew = Vector3::new(c[(1, 2)] - c[(2, 1)], c[(2, 0)] - c[(0, 2)], c[(0, 1)] - c[(1, 0)]);
    let mut key = Matrix4::zeros();
    key[(0, 0)] = c.trace();
    for i in 0..3 {
        key[(0, i + 1)] = skew[i];
        key[(i + 1, 0)] = skew[i];
        for j in 0..3 {
            key[(i + 1, j + 1)] = c[(i, j)] + c[(j, i)] - if i == j { c.trace() } else { 0.0 };
        }
    }
    match SymmetricEigen::try_new(key, f64::EPSILON, 1000) {
        Some(eigen) => {
            let q = eigen.eigenvectors.column(eigen.eigenvalues.imax()).into_owned();
            UnitQuaternion::from_quaternion(Quaternion::new(q[0], q[1], q[2], q[3]))
        }
        None => UnitQuaternion::identity(),
    }
}

fn centred(x: &[f64]) -> Vec<Vector3<f64>> {
    let points: Vec<_> = x.chunks_exact(3).map(Vector3::from_column_slice).collect();
    let centre = points.iter().sum::<Vector3<f64>>() / points.len().max(1) as f64;
    points.into_iter().map(|p| p - centre).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::Rotation3;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ignores_rigid_motion(x in prop::collection::vec(-2.0f64..2.0, 3..30), angles in prop::array::uniform3(-3.0f64..3.0)) {
            let x = &x[..x.len() / 3 * 3];
            let turn = Rotation3::from_euler_angles(angles[0], angles[1], angles[2]);
            let moved: Vec<f64> = x.chunks_exact(3).flat_map(|p| {
                let p = turn * Vector3::from_column_slice(p) + Vector3::new(1.0, -2.0, 3.0);
                [p.x, p.y, p.z]
            }).collect();
            prop_assert!(superposed_rmsd(x, &moved) < 1e-12);
            prop_assert!(superposed_rmsd(x, &moved) <= plain_rmsd(x, &moved) + 1e-12);
        }
    }

    #[test]
    fn does_not_reflect() {
        // A chiral set of four points and its mirror image cannot be superposed.
        let x = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0];
        let mirrored: Vec<f64> = x.iter().enumerate().map(|(k, v)| if k % 3 == 2 { -v } else { *v }).collect();
        assert!(superposed_rmsd(&x, &mirrored) > 0.3);
    }

    #[test]
    fn known_value() {
        // Two points at distance 1 and at distance 2: each end is off by one half.
        assert!((superposed_rmsd(&[0.0, 0.0, 0.0, 1.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0, 2.0, 0.0]) - 0.5).abs() < 1e-15);
        assert!((plain_rmsd(&[0.0; 3], &[3.0, 4.0, 0.0]) - 5.0).abs() < 1e-15);
    }
}
