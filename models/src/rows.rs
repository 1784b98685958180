//! Networks whose rows go through `kernels/rows.cu`: weights as its products read them, and how many replicas share a team.

use scorefield_integrators::device::Group;

/// Threads of a team: with 32 sums each, as many as the registers of a processor are made for.
pub(crate) const THREADS: usize = 256;
/// Rows and columns of a thread's part of a product.
const TILE: [usize; 2] = [8, 4];

/// Weights, one matrix after another.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) weights: Vec<f64>,
}

impl Rows {
    /// `PARTS` in the kernel.
    pub(crate) const PARTS: usize = 8;

    /// Adds a matrix `[inputs, outputs]` or a row, and says where it begins: where a vector of four can.
    pub(crate) fn push(&mut self, values: impl IntoIterator<Item = f64>) -> i32 {
        let at = self.weights.len();
        self.weights.extend(values);
        self.weights.resize(self.weights.len().next_multiple_of(4), 0.0);
        at as i32
    }

    /// As many replicas of `rows` rows as give every thread one part of a product with `wide` columns.
    pub(crate) fn group(rows: usize, wide: usize) -> Group {
        let across = wide.div_ceil(TILE[1]).next_multiple_of(8);
        let most = (THREADS / across).max(1) * TILE[0];
        Group { threads: THREADS, replicas: (most / rows.max(1)).max(1), rows }
    }
}
