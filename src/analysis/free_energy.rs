//! Free energies on the torus of two dihedral angles, with errors, and the populations of a peptide's basins.
//!
//! Samples are counted per block: blocks are groups of independent replicas or stretches of time, whatever the caller
//! holds to be independent. Everything else follows from these counts, so that they are all a checkpoint must keep.

use super::statistics::bootstrap;
use serde::Serialize;

/// Bins per axis: 5° each, so that the edges of [`BASINS`] are edges of bins.
pub const BINS: usize = 72;
/// Width of a bin in degrees.
pub const BIN_DEGREES: f64 = 360.0 / BINS as f64;
/// Resamples behind the errors of populations: their own relative error is then 1/√(2·400) = 3.5 %.
const RESAMPLES: usize = 400;

/// Bin of an angle in radians; any multiple of 2π may be added. `None` for NaN and infinities.
pub fn bin(angle: f64) -> Option<usize> {
    if !angle.is_finite() {
        return None;
    }
    let turn = (angle / std::f64::consts::TAU + 0.5).rem_euclid(1.0);
    // rem_euclid may round up to 1 for tiny negative arguments.
    Some(((turn * BINS as f64) as usize).min(BINS - 1))
}

/// Middle of bin `i` in degrees, from −177.5 to 177.5.
pub fn bin_centre(i: usize) -> f64 {
    (i as f64 + 0.5) * BIN_DEGREES - 180.0
}

/// Counts of (φ, ψ) pairs per block: `[blocks, BINS (φ), BINS (ψ)]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorusHistogram {
    blocks: usize,
    counts: Vec<u64>,
}

impl TorusHistogram {
    /// Without samples.
    pub fn new(blocks: usize) -> Self {
        TorusHistogram { blocks, counts: vec![0; blocks * BINS * BINS] }
    }

    /// Counts one pair of angles in radians; angles that are not finite are not counted.
    pub fn add(&mut self, block: usize, phi: f64, psi: f64) {
        if let (Some(i), Some(j)) = (bin(phi), bin(psi)) {
            self.counts[(block * BINS + i) * BINS + j] += 1;
        }
    }

    /// Raw counts, in the order of the type's documentation.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Raw counts, to be restored.
    pub fn counts_mut(&mut self) -> &mut [u64] {
        &mut self.counts
    }

    /// Joins blocks in pairs: half as many blocks, each twice as long; the freed upper half is empty.
    pub fn merge_pairs(&mut self) {
        let size = BINS * BINS;
        for b in 0..self.blocks {
            for k in 0..size {
                let pair = |half: usize| if 2 * b + half < self.blocks { self.counts[(2 * b + half) * size + k] } else { 0 };
                self.counts[b * size + k] = pair(0) + pair(1);
            }
        }
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Counts of all blocks together, `[BINS (φ), BINS (ψ)]`.
    pub fn total(&self) -> Vec<u64> {
        let mut total = vec![0; BINS * BINS];
        for block in self.counts.chunks(BINS * BINS) {
            total.iter_mut().zip(block).for_each(|(t, c)| *t += c);
        }
        total
    }

    /// Sums bins into `cells` cells per block: `cell_of(φ bin, ψ bin)` says into which, if any.
    fn gather(&self, cells: usize, cell_of: impl Fn(usize, usize) -> Option<usize>) -> Gathered {
        let mut blocks = Vec::new();
        for block in self.counts.chunks(BINS * BINS) {
            let samples: u64 = block.iter().sum();
            if samples == 0 {
                continue;
            }
            let mut counts = vec![0u64; cells];
            for (k, &c) in block.iter().enumerate() {
                if let Some(cell) = cell_of(k / BINS, k % BINS) {
                    counts[cell] += c;
                }
            }
            blocks.push((samples, counts));
        }
        Gathered { blocks, cells }
    }

    /// Free energy over both angles, `[BINS / φ_merge, BINS / ψ_merge]`, with `merge` neighbouring bins taken together.
    pub fn landscape(&self, kt: f64, merge: [usize; 2]) -> Landscape {
        let columns = BINS / merge[1];
        self.gather(BINS / merge[0] * columns, |i, j| Some(i / merge[0] * columns + j / merge[1])).landscape(kt)
    }

    /// Free energy over φ (`axis` 0) or ψ (`axis` 1) alone, `[BINS]`.
    pub fn profile(&self, kt: f64, axis: usize) -> Landscape {
        self.gather(BINS, |i, j| Some([i, j][axis.min(1)])).landscape(kt)
    }

    /// Populations of [`BASINS`], then of what lies outside, with bootstrap errors over blocks.
    pub fn populations(&self) -> Vec<Population> {
        let outside = BASINS.len();
        let gathered =
            self.gather(outside + 1, |i, j| Some(BASINS.iter().position(|b| b.contains(bin_centre(i), bin_centre(j))).unwrap_or(outside)));
        let name = |k: usize| BASINS.get(k).map_or("other", |b| b.name);
        (0..=outside)
            .map(|k| {
                let fraction = |weight: &dyn Fn(usize) -> f64| {
                    let (mut inside, mut all) = (0.0, 0.0);
                    for (b, (samples, counts)) in gathered.blocks.iter().enumerate() {
                        inside += weight(b) * counts[k] as f64;
                        all += weight(b) * *samples as f64;
                    }
                    inside / all
                };
                Population {
                    basin: name(k),
                    fraction: fraction(&|_| 1.0),
                    standard_error: bootstrap(gathered.blocks.len(), RESAMPLES, 0, |drawn| fraction(&|b| f64::from(drawn[b]))),
                }
            })
            .collect()
    }
}

/// Per block with samples: their number, and counts per cell.
struct Gathered {
    blocks: Vec<(u64, Vec<u64>)>,
    cells: usize,
}

impl Gathered {
    /// F = −kT ln p with its minimum at zero; σ(F) = kT σ(p) / p with the error of the ratio p = Σ n / Σ N over blocks.
    fn landscape(&self, kt: f64) -> Landscape {
        let all: f64 = self.blocks.iter().map(|b| b.0 as f64).sum();
        let b = self.blocks.len() as f64;
        let counts: Vec<u64> = (0..self.cells).map(|k| self.blocks.iter().map(|b| b.1[k]).sum()).collect();
        let most = counts.iter().copied().max().unwrap_or(0) as f64;
        let free_energy = counts.iter().map(|&c| if c == 0 { f64::INFINITY } else { kt * (most / c as f64).ln() }).collect();
        let standard_error = counts
            .iter()
            .enumerate()
            .map(|(k, &c)| {
                if c == 0 || self.blocks.len() < 2 {
                    return f64::NAN;
                }
                let p = c as f64 / all;
                let residues: f64 = self.blocks.iter().map(|(n, counts)| (counts[k] as f64 - p * *n as f64).powi(2)).sum();
                kt * (b / (b - 1.0) * residues).sqrt() / c as f64
            })
            .collect();
        Landscape { free_energy, standard_error, counts }
    }
}

/// A free energy per cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Landscape {
    /// In the unit of kT, at least 0; infinite where no sample fell.
    pub free_energy: Vec<f64>,
    /// Standard error over blocks; NaN where no sample fell or where there are fewer than two blocks.
    pub standard_error: Vec<f64>,
    /// Samples per cell.
    pub counts: Vec<u64>,
}

/// A rectangle of the (φ, ψ) torus in degrees; `psi.0 > psi.1` means across ±180°.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Basin {
    /// Its usual name.
    pub name: &'static str,
    /// φ from (included) and to.
    pub phi: (f64, f64),
    /// ψ from (included) and to.
    pub psi: (f64, f64),
}

impl Basin {
    /// Whether the pair of angles (degrees, in [−180, 180)) lies inside.
    pub fn contains(&self, phi: f64, psi: f64) -> bool {
        let within = |x: f64, (a, b): (f64, f64)| if a <= b { x >= a && x < b } else { x >= a || x < b };
        within(phi, self.phi) && within(psi, self.psi)
    }
}

/// The basins of an alanine-like residue. φ = 0° divides the two hands. ψ = 50° and −120° divide helix from strand: in
/// implicit water (Amber with OBC) the barriers are near 85° and −110°, but the C7eq minimum of the vacuum, near
/// (−80°, 75°), belongs to the strand by convention, and between 50° and 85° lie less than 2 % of the ensemble. β includes
/// polyproline II and C7eq, αL includes C7ax.
pub const BASINS: [Basin; 3] = [
    Basin { name: "β/PII", phi: (-180.0, 0.0), psi: (50.0, -120.0) },
    Basin { name: "αR", phi: (-180.0, 0.0), psi: (-120.0, 50.0) },
    Basin { name: "αL", phi: (0.0, 130.0), psi: (-90.0, 110.0) },
];

/// How much of the ensemble is in a basin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Population {
    /// Name of the basin, or `other`.
    pub basin: &'static str,
    /// Between 0 and 1; NaN without samples.
    pub fraction: f64,
    /// Bootstrap error over blocks; NaN with fewer than two.
    pub standard_error: f64,
}

/// Jensen–Shannon divergence of two histograms with the same bins, in nats: 0 for equal shapes, ln 2 for disjoint ones.
/// NaN where one of them is empty.
pub fn jensen_shannon(p: &[u64], q: &[u64]) -> f64 {
    let weights = |h: &[u64]| h.iter().map(|&c| c as f64).collect::<Vec<_>>();
    super::divergence::jensen_shannon(&weights(p), &weights(q))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::{Noise, Purpose};

    #[test]
    fn angles_wrap() {
        assert_eq!(bin(-std::f64::consts::PI), Some(0));
        assert_eq!(bin(std::f64::consts::PI), Some(0));
        assert_eq!(bin(-1e-18), Some(BINS / 2));
        assert_eq!(bin(0.0), Some(BINS / 2));
        assert_eq!(bin(f64::NAN), None);
        for i in 0..BINS {
            assert_eq!(bin(bin_centre(i).to_radians()), Some(i));
            assert_eq!(bin(bin_centre(i).to_radians() - 6.0 * std::f64::consts::PI), Some(i));
        }
    }

    /// Independent samples of the von Mises-like density p(φ) ∝ exp(−V/kT), V = v (1 − cos φ), ψ uniform.
    fn sampled(v_over_kt: f64, n: u64, blocks: usize) -> TorusHistogram {
        let mut h = TorusHistogram::new(blocks);
        let noise = Noise::new(11);
        let mut k = 0u64;
        for i in 0..n {
            // Rejection.
            let phi = loop {
                let bits = noise.bits(0, 0, k, Purpose::Bootstrap).map(|b| (f64::from(b) + 0.5) / 4_294_967_296.0);
                k += 1;
                let phi = (bits[0] - 0.5) * std::f64::consts::TAU;
                if bits[1] < (-v_over_kt * (1.0 - phi.cos())).exp() {
                    break phi;
                }
            };
            let psi = (noise.uniform(1, 0, i, Purpose::Bootstrap) - 0.5) * std::f64::consts::TAU;
            h.add((i % blocks as u64) as usize, phi, psi);
        }
        h
    }

    #[test]
    fn profile_of_a_known_potential() {
        let kt = 2.494;
        let h = sampled(1.5, 200_000, 16);
        let profile = h.profile(kt, 0);
        // Compare with V to within errors, up to one constant: the weighted mean difference.
        let exact: Vec<f64> = (0..BINS).map(|i| 1.5 * kt * (1.0 - bin_centre(i).to_radians().cos())).collect();
        let weights: Vec<f64> = profile.standard_error.iter().map(|e| e.powi(-2)).collect();
        let shift = (0..BINS).map(|i| weights[i] * (profile.free_energy[i] - exact[i])).sum::<f64>() / weights.iter().sum::<f64>();
        let chi: f64 = (0..BINS).map(|i| ((profile.free_energy[i] - exact[i] - shift) / profile.standard_error[i]).powi(2)).sum();
        // χ² of 72 bins with errors from 16 blocks (Student t, variance 15/13).
        assert!((chi / BINS as f64 - 15.0 / 13.0).abs() < 0.7, "{}", chi / BINS as f64);
        // Errors are those of Poisson counts.
        let i = BINS / 2;
        let poisson = kt / (profile.counts[i] as f64).sqrt();
        assert!((profile.standard_error[i] / poisson - 1.0).abs() < 0.6);
        let flat = h.profile(kt, 1);
        assert!(flat.free_energy.iter().all(|f| *f < 0.5));
    }

    #[test]
    fn populations_sum_to_one_and_have_errors() {
        let h = sampled(0.5, 20_000, 10);
        let all = h.populations();
        assert!((all.iter().map(|p| p.fraction).sum::<f64>() - 1.0).abs() < 1e-12);
        // φ < 0 has half the weight; of it αR has 170°/360°.
        let helix = all.iter().find(|p| p.basin == "αR").unwrap();
        assert!((helix.fraction - 0.5 * 170.0 / 360.0).abs() < 4.0 * helix.standard_error, "{helix:?}");
        let binomial = (helix.fraction * (1.0 - helix.fraction) / 20_000.0).sqrt();
        assert!((helix.standard_error / binomial - 1.0).abs() < 0.6, "{helix:?} {binomial}");
        let one = sampled(0.5, 100, 1).populations();
        assert!(one[0].standard_error.is_nan());
        assert!(TorusHistogram::new(4).populations()[0].fraction.is_nan());
    }

    #[test]
    fn basins_do_not_overlap_and_follow_bins() {
        for i in 0..BINS {
            for j in 0..BINS {
                assert!(BASINS.iter().filter(|b| b.contains(bin_centre(i), bin_centre(j))).count() <= 1);
            }
        }
        let at = |phi, psi| BASINS.iter().find(|b| b.contains(phi, psi)).map(|b| b.name);
        assert_eq!(at(-75.0, 145.0), Some("β/PII"));
        assert_eq!(at(-150.0, -170.0), Some("β/PII"));
        assert_eq!(at(-60.0, -45.0), Some("αR"));
        assert_eq!(at(57.0, 47.0), Some("αL"));
        assert_eq!(at(170.0, 0.0), None);
    }

    #[test]
    fn merging_keeps_counts() {
        let mut h = sampled(1.0, 999, 5);
        let before = h.total();
        h.merge_pairs();
        assert_eq!(h.total(), before);
        assert_eq!(h.counts()[3 * BINS * BINS..].iter().sum::<u64>(), 0);
        let coarse = h.landscape(1.0, [2, 4]);
        assert_eq!(coarse.counts.len(), 36 * 18);
        assert_eq!(coarse.counts.iter().sum::<u64>(), 999);
    }

    #[test]
    fn divergence_has_its_known_bounds() {
        assert_eq!(jensen_shannon(&[1, 2, 3], &[2, 4, 6]), 0.0);
        assert!((jensen_shannon(&[5, 0], &[0, 7]) - std::f64::consts::LN_2).abs() < 1e-15);
        // p = (1/2, 1/2), q = (1, 0): JS = ½ [½ ln(½/¾) + ½ ln(½/¼)] + ½ ln(1/¾).
        let want = 0.5 * (0.5 * (2.0f64 / 3.0).ln() + 0.5 * 2.0f64.ln()) + 0.5 * (4.0f64 / 3.0).ln();
        assert!((jensen_shannon(&[1, 1], &[3, 0]) - want).abs() < 1e-15);
        assert!(jensen_shannon(&[0], &[1]).is_nan());
    }
}
