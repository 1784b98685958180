//! Periodic cells of any shape.

use scorefield_integrators::simd::Lanes;
use scorefield_integrators::state::Cell;

/// A periodic cell with its inverse.
///
/// Displacements are brought to the image whose fractional coordinates lie within ±½. Along each box vector that is a slab
/// of one height of the cell, so every image closer than half the smallest height is found, whatever the cell's shape.
#[derive(Clone, Debug)]
pub(crate) struct Lattice {
    /// Rows `a, b, c`.
    pub(crate) cell: Cell,
    /// `r · inverse` are the fractional coordinates of the row `r`.
    pub(crate) inverse: Cell,
}

impl Lattice {
    /// The lattice of `cell`, or `None` where its vectors are not finite or not independent.
    pub(crate) fn new(cell: &Cell) -> Option<Self> {
        let m = nalgebra::Matrix3::from_row_slice(cell);
        let size = (0..3).map(|k| m.row(k).norm()).product::<f64>();
        if !(m.determinant().abs() > 1e-9 * size && size.is_finite()) {
            return None;
        }
        let inverse = m.try_inverse()?;
        Some(Lattice { cell: *cell, inverse: std::array::from_fn(|k| inverse[(k / 3, k % 3)]) })
    }

    /// Distances between opposite faces.
    pub(crate) fn heights(&self) -> [f64; 3] {
        // Column k of the inverse is normal to the faces that box vector k joins, its length one over their distance.
        [0, 1, 2].map(|k| 1.0 / (0..3).map(|a| self.inverse[3 * a + k].powi(2)).sum::<f64>().sqrt())
    }

    /// The smallest of the heights.
    pub(crate) fn smallest_height(&self) -> f64 {
        self.heights().into_iter().fold(f64::INFINITY, f64::min)
    }

    /// Fractional coordinates of `r`.
    pub(crate) fn fractional(&self, r: [f64; 3]) -> [f64; 3] {
        [0, 1, 2].map(|k| (0..3).map(|a| r[a] * self.inverse[3 * a + k]).sum())
    }

    /// The image of the displacement `d` within half a cell.
    pub(crate) fn nearest(&self, d: [f64; 3]) -> [f64; 3] {
        let n = self.fractional(d).map(f64::round_ties_even);
        [0, 1, 2].map(|a| d[a] - (0..3).map(|k| n[k] * self.cell[3 * k + a]).sum::<f64>())
    }
}

/// Displacements to nearest images, and their squares, of `m` candidates at `from` as seen from `xi`.
#[inline(always)]
pub(crate) fn displacements<V: Lanes>(
    t: V::Token,
    lattice: &Lattice,
    xi: [V::Scalar; 3],
    from: [&[V::Scalar]; 3],
    m: usize,
    d: [&mut [V::Scalar]; 3],
    r2: &mut [V::Scalar],
) {
    let (mut cell, mut inverse) = ([V::zero(t); 9], [V::zero(t); 9]);
    for k in 0..9 {
        cell[k] = V::lit(t, lattice.cell[k]);
        inverse[k] = V::lit(t, lattice.inverse[k]);
    }
    let xi = [V::splat(t, xi[0]), V::splat(t, xi[1]), V::splat(t, xi[2])];
    let [dx, dy, dz] = d;
    for c in (0..m).step_by(V::LANES) {
        let mut d = [xi[0] - V::load(t, &from[0][c..]), xi[1] - V::load(t, &from[1][c..]), xi[2] - V::load(t, &from[2][c..])];
        // Whole numbers of box vectors in the displacement: fractional coordinates, rounded.
        let mut n = [V::zero(t); 3];
        for k in 0..3 {
            n[k] = d[2].mul_add(inverse[6 + k], d[1].mul_add(inverse[3 + k], d[0] * inverse[k])).round();
        }
        for a in 0..3 {
            d[a] = (-n[2]).mul_add(cell[6 + a], (-n[1]).mul_add(cell[3 + a], (-n[0]).mul_add(cell[a], d[a])));
        }
        d[0].store(&mut dx[c..]);
        d[1].store(&mut dy[c..]);
        d[2].store(&mut dz[c..]);
        d[2].mul_add(d[2], d[1].mul_add(d[1], d[0] * d[0])).store(&mut r2[c..]);
    }
}
