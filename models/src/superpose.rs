//! Turning one structure onto another.

use nalgebra::{Matrix3, Vector3};

/// Turns `a [N, 3]` onto `b`, both centred, so that the sum of squared distances is least; never a reflection (W. Kabsch,
/// *Acta Cryst. A* 32, 922, 1976).
pub(crate) fn turn(a: &mut [f64], b: &[f64]) {
    let mut covariance = Matrix3::zeros();
    for (p, q) in a.chunks_exact(3).zip(b.chunks_exact(3)) {
        covariance += Vector3::new(q[0], q[1], q[2]) * Vector3::new(p[0], p[1], p[2]).transpose();
    }
    let svd = covariance.svd(true, true);
    let (Some(u), Some(vt)) = (svd.u, svd.v_t) else { return };
    let sign = (u * vt).determinant().signum();
    // The smallest singular value, which is not always the last, takes the sign.
    let mut flip = Matrix3::identity();
    flip[(svd.singular_values.imin(), svd.singular_values.imin())] = sign;
    let rotation = u * flip * vt;
    for p in a.chunks_exact_mut(3) {
        let r = rotation * Vector3::new(p[0], p[1], p[2]);
        p.copy_from_slice(r.as_slice());
    }
}
