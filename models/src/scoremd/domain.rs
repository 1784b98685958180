//! Where a model was trained: beyond its data a network says nothing, however smooth its forces are.

use super::config::Body;
use super::model::{Model, RANGE_COLUMNS, RangeColumn};

/// Ranges of the training data: distances of all pairs of beads, or coordinates of a toy.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// Beads, where ranges are of distances.
    beads: Option<usize>,
    /// Lower and upper bound of each, in nm or reduced units.
    bounds: Vec<[f64; 2]>,
}

/// What is out of its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outside {
    /// Two beads, or the axis twice.
    pub of: [usize; 2],
    /// Its value, in nm or reduced units.
    pub value: f64,
    /// The range with its margin.
    pub bounds: [f64; 2],
}

impl Domain {
    /// The range of a model's training data with a margin of two standard deviations on either side; `None` where the file
    /// does not hold it.
    pub fn of(model: &Model) -> Option<Self> {
        let beads = match model.config.experts.first()?.body {
            Body::GraphTransformer { beads, .. } => Some(beads),
            Body::Mlp { .. } => None,
        };
        let bound = |row: &[f32]| {
            let at = |column: RangeColumn| f64::from(row[column as usize]);
            let margin = 2.0 * at(RangeColumn::Deviation);
            [at(RangeColumn::Minimum) - margin, at(RangeColumn::Maximum) + margin]
        };
        let bounds: Vec<_> = model.training_range.chunks_exact(RANGE_COLUMNS).map(bound).collect();
        (!bounds.is_empty()).then_some(Domain { beads, bounds })
    }

    /// The first value of a configuration `[N, 3]` that is out of its range.
    pub fn check(&self, positions: &[f64]) -> Option<Outside> {
        let outside = |of: [usize; 2], value: f64, bounds: [f64; 2]| {
            // Also what is no number.
            (!(value >= bounds[0] && value <= bounds[1])).then_some(Outside { of, value, bounds })
        };
        let mut bounds = self.bounds.iter();
        match self.beads {
            None => self.bounds.iter().zip(positions).enumerate().find_map(|(a, (&b, &x))| outside([a, a], x, b)),
            Some(n) => (0..n).flat_map(|i| (i + 1..n).map(move |j| [i, j])).find_map(|[i, j]| {
                let square: f64 = (0..3).map(|d| (positions[3 * i + d] - positions[3 * j + d]).powi(2)).sum();
                bounds.next().and_then(|&b| outside([i, j], square.sqrt(), b))
            }),
        }
    }
}
