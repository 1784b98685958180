//! Periodic cells of any shape.

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
