//! Time-lagged independent component analysis: the linear combinations of features that relax most slowly (L. Molgedey and
//! H. G. Schuster, Phys. Rev. Lett. 72, 3634, 1994; G. Pérez-Hernández et al., J. Chem. Phys. 139, 015102, 2013).

use super::geometry::{dihedral, distance};
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Directions of the features whose variance is below this fraction of the largest one are left out: they are noise, or
/// combinations of others.
const LEAST_VARIANCE: f64 = 1e-10;

/// The slowest components of some features.
#[derive(Clone, Debug, PartialEq)]
pub struct Tica {
    /// Mean of the features, `[D]`.
    pub mean: Vec<f64>,
    /// Components, slowest first, `[k, D]`: projections have variance one on the data that they were fitted to.
    pub components: Vec<Vec<f64>>,
    /// Autocorrelation of each component at the lag, `[k]`.
    pub eigenvalues: Vec<f64>,
    /// Frames between the two ends of a pair.
    pub lag: usize,
}

impl Tica {
    /// The `k` slowest components of `chains`, trajectories of features `[T, dim]` each, at a lag of `lag` frames. Time
    /// runs both ways in the estimate, as it does in equilibrium, so that eigenvalues are real and at most 1. `None` where
    /// no pair of frames is `lag` apart, or nothing varies.
    pub fn fit(chains: &[&[f64]], dim: usize, lag: usize, k: usize) -> Option<Self> {
        let lag = lag.max(1);
        let pairs = |chain: &&[f64]| (chain.len() / dim).saturating_sub(lag);
        let count: usize = chains.iter().map(pairs).sum();
        if dim == 0 || count == 0 {
            return None;
        }
        let mut mean = vec![0.0; dim];
        for chain in chains {
            for t in 0..pairs(chain) {
                for (d, m) in mean.iter_mut().enumerate() {
                    *m += 0.5 * (chain[t * dim + d] + chain[(t + lag) * dim + d]);
                }
            }
        }
        mean.iter_mut().for_each(|m| *m /= count as f64);
        let mut instant = DMatrix::<f64>::zeros(dim, dim);
        let mut lagged = DMatrix::<f64>::zeros(dim, dim);
        let (mut x, mut y) = (vec![0.0; dim], vec![0.0; dim]);
        for chain in chains {
            for t in 0..pairs(chain) {
                for d in 0..dim {
                    x[d] = chain[t * dim + d] - mean[d];
                    y[d] = chain[(t + lag) * dim + d] - mean[d];
                }
                // The upper triangle; matrices are filled up below.
                for i in 0..dim {
                    for j in i..dim {
                        instant[(i, j)] += x[i] * x[j] + y[i] * y[j];
                        lagged[(i, j)] += x[i] * y[j] + y[i] * x[j];
                    }
                }
            }
        }
        for matrix in [&mut instant, &mut lagged] {
            matrix.fill_lower_triangle_with_upper_triangle();
            *matrix *= 0.5 / count as f64;
        }
        let whitening = whitening(instant)?;
        let eigen = SymmetricEigen::new(whitening.transpose() * lagged * &whitening);
        let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        order.truncate(k);
        let components = order.iter().map(|&c| oriented(&whitening * eigen.eigenvectors.column(c))).collect();
        Some(Tica { mean, components, eigenvalues: order.iter().map(|&c| eigen.eigenvalues[c]).collect(), lag })
    }

    /// Component values of one frame of features `[D]`.
    pub fn project(&self, features: &[f64]) -> Vec<f64> {
        let value = |c: &Vec<f64>| c.iter().zip(features).zip(&self.mean).map(|((c, x), m)| c * (x - m)).sum();
        self.components.iter().map(value).collect()
    }

    /// Relaxation times −lag / ln λ in frames; NaN for eigenvalues that are not between 0 and 1.
    pub fn timescales(&self) -> Vec<f64> {
        self.eigenvalues.iter().map(|&l| if l > 0.0 && l < 1.0 { -(self.lag as f64) / l.ln() } else { f64::NAN }).collect()
    }
}

/// W with Wᵀ C W = 1 on the directions of C that vary; `None` where none does.
fn whitening(covariance: DMatrix<f64>) -> Option<DMatrix<f64>> {
    let eigen = SymmetricEigen::new(covariance);
    let largest = eigen.eigenvalues.max();
    let kept: Vec<usize> = (0..eigen.eigenvalues.len()).filter(|&i| eigen.eigenvalues[i] > LEAST_VARIANCE * largest).collect();
    if !(largest > 0.0) || !largest.is_finite() {
        return None;
    }
    Some(DMatrix::from_fn(eigen.eigenvalues.len(), kept.len(), |i, j| eigen.eigenvectors[(i, kept[j])] / eigen.eigenvalues[kept[j]].sqrt()))
}

/// An eigenvector has no sign of its own: here its largest entry is positive.
fn oriented(vector: DVector<f64>) -> Vec<f64> {
    let sign = if vector[vector.iamax()] < 0.0 { -1.0 } else { 1.0 };
    vector.iter().map(|x| sign * x).collect()
}

/// Features of a chain of `n` beads (positions `[N, 3]` in nm): all distances (0, 1), (0, 2), … (n − 2, n − 1), then the
/// dihedral angles of every four consecutive beads in radians.
pub fn chain_features(positions: &[f64]) -> Vec<f64> {
    let n = positions.len() / 3;
    let mut features = Vec::with_capacity(chain_feature_count(n));
    for i in 0..n {
        features.extend((i + 1..n).map(|j| distance(positions, i, j)));
    }
    features.extend((3..n).map(|i| dihedral(positions, [i - 3, i - 2, i - 1, i])));
    features
}

/// Number of [`chain_features`] of `n` beads.
pub fn chain_feature_count(n: usize) -> usize {
    n * n.saturating_sub(1) / 2 + n.saturating_sub(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::golden::{Golden, close, normal};

    #[test]
    fn projections_as_published() {
        let Some(golden) = Golden::load() else { return };
        let beads = golden.numbers("beads_a");
        let want = golden.numbers("tica_features_a.f64");
        for (frame, want) in beads.chunks_exact(30).zip(want.chunks_exact(52)) {
            chain_features(frame).iter().zip(want).for_each(|(f, w)| close(*f, *w, "feature"));
        }
        let projection = golden.numbers("tica_projection");
        let tica = Tica {
            mean: golden.numbers("tica_mean"),
            components: (0..2).map(|c| projection.iter().skip(c).step_by(2).copied().collect()).collect(),
            eigenvalues: vec![0.0; 2],
            lag: 1,
        };
        let dihedrals = golden.numbers("dihedral_0123_a.f64");
        for ((frame, want), angle) in beads.chunks_exact(30).zip(golden.points("tica_a.f64")).zip(dihedrals) {
            let got = tica.project(&chain_features(frame));
            close(got[0], want[0], "TICA 1");
            close(got[1], want[1], "TICA 2");
            close(dihedral(frame, [0, 1, 2, 3]), angle, "dihedral");
        }
    }

    /// Ornstein–Uhlenbeck processes of unit variance that lose `decay` of their memory per frame, mixed into three features,
    /// the last of which is a combination of the others.
    fn mixed(frames: u64, stream: u32) -> Vec<f64> {
        let decay = [0.95f64, 0.6];
        let mut x = normal(frames, stream);
        (0..frames)
            .flat_map(|i| {
                let z = normal(i, stream);
                (0..2).for_each(|d| x[d] = decay[d] * x[d] + (1.0 - decay[d] * decay[d]).sqrt() * z[d]);
                let [a, b] = [3.0 * x[0] + x[1] + 7.0, x[0] - 0.5 * x[1] - 2.0];
                [a, b, a + b]
            })
            .collect()
    }

    #[test]
    fn components_of_ornstein_uhlenbeck_processes() {
        let chains: Vec<Vec<f64>> = (0..4).map(|c| mixed(50_000, c)).collect();
        let views: Vec<&[f64]> = chains.iter().map(Vec::as_slice).collect();
        for lag in [1, 3] {
            let tica = Tica::fit(&views, 3, lag, 5).unwrap();
            // The third feature adds no direction.
            assert_eq!(tica.components.len(), 2);
            let want = [0.95f64.powi(lag as i32), 0.6f64.powi(lag as i32)];
            for (got, want) in tica.eigenvalues.iter().zip(want) {
                assert!((got - want).abs() < 0.01, "{got} for {want}");
            }
            assert!((tica.timescales()[0] / (-1.0 / 0.95f64.ln()) - 1.0).abs() < 0.05);
            // The projection is the slow process itself: x₀ = (a − 7 + 2 (b + 2)) / 5, of variance one.
            let (mut xy, mut yy) = (0.0, 0.0);
            for f in chains[0].chunks_exact(3) {
                let slow = (f[0] - 7.0 + 2.0 * (f[1] + 2.0)) / 5.0;
                let got = tica.project(f)[0];
                xy += slow * got;
                yy += got * got;
            }
            let n = 50_000.0;
            assert!((yy / n - 1.0).abs() < 0.1 && (xy.abs() / n - 1.0).abs() < 0.1, "{} {}", xy / n, yy / n);
        }
    }

    #[test]
    fn nothing_to_fit() {
        assert!(Tica::fit(&[&[1.0, 2.0]], 2, 1, 1).is_none());
        assert!(Tica::fit(&[&[1.0; 20]], 2, 1, 1).is_none());
        assert!(Tica::fit(&[], 2, 1, 1).is_none());
    }
}
