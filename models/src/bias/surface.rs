//! A sum of Gaussian hills on a grid, interpolated so that forces are exactly its gradient.
//!
//! Each node keeps the sum of the hills and its derivatives (for two variables `V`, `∂₁V`, `∂₂V`, `∂₁∂₂V`); between nodes a product
//! of cubic Hermite polynomials takes over. With five nodes per width the error is below 1e-4 of a hill.

use std::sync::Arc;

/// Most variables of one surface.
pub(super) const MOST: usize = 3;
/// Nodes per width of a hill, at least.
pub(super) const NODES_PER_WIDTH: f64 = 5.0;
/// Hills end this many widths from their centres, at 1.5e-8 of their height.
const REACH: f64 = 6.0;

/// The nodes along one variable.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The first node.
    pub low: f64,
    /// Distance of nodes.
    pub step: f64,
    /// Their number.
    pub nodes: usize,
    /// The first node follows the last.
    pub periodic: bool,
    /// Standard deviation of hills.
    pub width: f64,
}

impl Axis {
    /// Nodes from `low` to `high` for hills of standard deviation `width`.
    pub fn new(low: f64, high: f64, width: f64, periodic: bool) -> Self {
        let cells = ((high - low) / width * NODES_PER_WIDTH).ceil().max(4.0) as usize;
        Axis { low, step: (high - low) / cells as f64, nodes: cells + usize::from(!periodic), periodic, width }
    }

    /// Position of node `i`.
    pub fn node(&self, i: usize) -> f64 {
        self.low + i as f64 * self.step
    }

    /// Size of what belongs to node `i`: half of the others at open ends.
    fn weight(&self, i: usize) -> f64 {
        if !self.periodic && (i == 0 || i + 1 == self.nodes) { 0.5 } else { 1.0 }
    }

    /// Whether `s` is on the axis.
    fn holds(&self, s: f64) -> bool {
        self.periodic || (s >= self.low && s <= self.node(self.nodes - 1))
    }

    /// The nodes on either side of `s`, and the part of the way from one to the other; `false` where `s` is beyond an end.
    fn place(&self, s: f64) -> ([usize; 2], f64, bool) {
        let t = (s - self.low) / self.step;
        if self.periodic {
            let t = t.rem_euclid(self.nodes as f64);
            let i = (t as usize).min(self.nodes - 1);
            return ([i, (i + 1) % self.nodes], t - i as f64, true);
        }
        let last = (self.nodes - 1) as f64;
        let i = (t.clamp(0.0, last) as usize).min(self.nodes - 2);
        ([i, i + 1], t.clamp(0.0, last) - i as f64, (0.0..=last).contains(&t))
    }

    /// `exp(−d²/2σ²)` and its derivative at node `i` for a hill at `centre`.
    fn gaussian(&self, i: usize, centre: f64) -> [f64; 2] {
        let mut d = self.node(i) - centre;
        if self.periodic {
            let period = self.step * self.nodes as f64;
            d -= period * (d / period).round();
        }
        let z = d / self.width;
        if z.abs() > REACH {
            return [0.0; 2];
        }
        let g = (-0.5 * z * z).exp();
        [g, -z / self.width * g]
    }
}

/// The hills of one replica, or of all that share them.
#[derive(Clone, Debug)]
pub struct Surface {
    axes: Arc<[Axis]>,
    /// `[nodes…, 2^D]`.
    table: Vec<f64>,
    /// `[hills, D + 1]`: centres and heights, in the order in which they came.
    hills: Vec<f64>,
    /// Reversible work done on the system so far, `c(t)` of [`Surface::update_offset`].
    offset: f64,
}

impl Surface {
    /// A flat surface.
    pub fn new(axes: Arc<[Axis]>) -> Self {
        let size = axes.iter().map(|a| a.nodes).product::<usize>() << axes.len();
        Surface { axes, table: vec![0.0; size], hills: Vec::new(), offset: 0.0 }
    }

    /// The nodes of all variables.
    pub fn axes(&self) -> &[Axis] {
        &self.axes
    }

    /// Centres and heights `[hills, D + 1]`.
    pub fn hills(&self) -> &[f64] {
        &self.hills
    }

    /// What reweighting subtracts from the bias, kJ/mol.
    pub fn offset(&self) -> f64 {
        self.offset
    }

    /// True where a hill at `s` would be on the grid.
    pub fn holds(&self, s: &[f64]) -> bool {
        self.axes.iter().zip(s).all(|(axis, &s)| axis.holds(s))
    }

    /// Adds a hill.
    pub fn add(&mut self, centre: &[f64], height: f64) {
        self.hills.extend_from_slice(centre);
        self.hills.push(height);
        let dimensions = self.axes.len();
        let factors: Vec<Vec<[f64; 2]>> =
            self.axes.iter().zip(centre).map(|(axis, &c)| (0..axis.nodes).map(|i| axis.gaussian(i, c)).collect()).collect();
        for (flat, node) in self.table.chunks_exact_mut(1 << dimensions).enumerate() {
            let mut rest = flat;
            let mut at = [[0.0; 2]; MOST];
            for d in (0..dimensions).rev() {
                let n = self.axes[d].nodes;
                at[d] = factors[d][rest % n];
                rest /= n;
            }
            if at[..dimensions].iter().any(|g| g[0] == 0.0) {
                continue;
            }
            for (mask, to) in node.iter_mut().enumerate() {
                *to += height * (0..dimensions).map(|d| at[d][mask >> d & 1]).product::<f64>();
            }
        }
    }

    /// The sum of all hills at `s`, and its gradient. Beyond the ends of the grid it is what it is at the end.
    pub fn value(&self, s: &[f64], gradient: &mut [f64]) -> f64 {
        let dimensions = self.axes.len();
        let mut nodes = [[0; 2]; MOST];
        // Per variable, corner and whether the node's derivative is meant: the polynomial and its derivative.
        let mut basis = [[[[0.0; 2]; 2]; 2]; MOST];
        for (d, (axis, &s)) in self.axes.iter().zip(s).enumerate() {
            let (around, t, inside) = axis.place(s);
            nodes[d] = around;
            let (t2, h) = (t * t, axis.step);
            let slope = if inside { 1.0 / h } else { 0.0 };
            basis[d] = [
                [[(2.0 * t - 3.0) * t2 + 1.0, 6.0 * (t2 - t) * slope], [((t - 2.0) * t2 + t) * h, (3.0 * t2 - 4.0 * t + 1.0) * h * slope]],
                [[(3.0 - 2.0 * t) * t2, 6.0 * (t - t2) * slope], [(t - 1.0) * t2 * h, (3.0 * t2 - 2.0 * t) * h * slope]],
            ];
        }
        gradient[..dimensions].fill(0.0);
        let mut value = 0.0;
        for corner in 0..1usize << dimensions {
            let flat = (0..dimensions).fold(0, |flat, d| flat * self.axes[d].nodes + nodes[d][corner >> d & 1]);
            let node = &self.table[flat << dimensions..][..1 << dimensions];
            for (mask, &v) in node.iter().enumerate() {
                let factor = |d: usize, slope: usize| basis[d][corner >> d & 1][mask >> d & 1][slope];
                value += v * (0..dimensions).map(|d| factor(d, 0)).product::<f64>();
                for (e, g) in gradient.iter_mut().enumerate().take(dimensions) {
                    *g += v * (0..dimensions).map(|d| factor(d, usize::from(d == e))).product::<f64>();
                }
            }
        }
        value
    }

    /// The sum of all hills at every node, last variable fastest.
    pub fn at_nodes(&self) -> impl Iterator<Item = f64> {
        self.table.iter().copied().step_by(1 << self.axes.len())
    }

    /// Sizes of what belongs to each node, in the order of [`Surface::at_nodes`].
    pub fn weights(&self) -> impl Iterator<Item = f64> {
        let axes = self.axes.clone();
        (0..self.table.len() >> axes.len()).map(move |flat| {
            let mut rest = flat;
            axes.iter().rev().fold(1.0, |weight, axis| {
                let i = rest % axis.nodes;
                rest /= axis.nodes;
                weight * axis.weight(i)
            })
        })
    }

    /// Brings the offset up to date for hills tempered by `factor` (infinite for hills of one height) at `kt`:
    /// `c = kT ln (∫ exp(γ/(γ−1) V/kT) ds / ∫ exp(1/(γ−1) V/kT) ds)` (P. Tiwary and M. Parrinello, J. Phys. Chem. B 119, 736, 2015,
    /// Eq. 12).
    pub fn update_offset(&mut self, factor: f64, kt: f64) {
        let beta = if factor.is_finite() { 1.0 / ((factor - 1.0) * kt) } else { 0.0 };
        let highest = self.at_nodes().fold(f64::NEG_INFINITY, f64::max);
        let sum = |beta: f64| -> f64 { self.at_nodes().zip(self.weights()).map(|(v, w)| w * (beta * (v - highest)).exp()).sum() };
        self.offset = highest + kt * (sum(beta + 1.0 / kt).ln() - sum(beta).ln());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum without a grid.
    fn exact(axes: &[Axis], hills: &[(Vec<f64>, f64)], s: &[f64]) -> f64 {
        let one = |centre: &[f64], height: f64| {
            let z2: f64 = axes
                .iter()
                .zip(centre.iter().zip(s))
                .map(|(axis, (c, s))| {
                    let period = axis.step * axis.nodes as f64;
                    let d = s - c;
                    let d = if axis.periodic { d - period * (d / period).round() } else { d };
                    (d / axis.width).powi(2)
                })
                .sum();
            height * (-0.5 * z2).exp()
        };
        hills.iter().map(|(c, h)| one(c, *h)).sum()
    }

    #[test]
    fn interpolates_hills_and_their_gradient() {
        let pi = std::f64::consts::PI;
        let all = [Axis::new(-pi, pi, 0.35, true), Axis::new(0.2, 0.9, 0.05, false), Axis::new(-1.0, 1.0, 0.2, false)];
        for axes in [&all[..1], &all[1..2], &all[..2], &all[..]] {
            let random = |k: u64, d: usize| ((k * 7919 + d as u64 * 104_729) % 1000) as f64 / 1000.0;
            let place = |k: u64| -> Vec<f64> {
                let on = |(d, a): (usize, &Axis)| a.low + random(k, d) * (a.step * (a.nodes - 1) as f64);
                axes.iter().enumerate().map(on).collect()
            };
            let hills: Vec<(Vec<f64>, f64)> = (0..20).map(|k| (place(k), 1.0 + random(k, 9))).collect();
            let mut surface = Surface::new(axes.into());
            hills.iter().for_each(|(c, h)| surface.add(c, *h));
            assert_eq!(surface.hills().len(), 20 * (axes.len() + 1));
            for k in 100..200 {
                let s = place(k);
                let mut gradient = vec![0.0; axes.len()];
                let value = surface.value(&s, &mut gradient);
                assert!((value - exact(axes, &hills, &s)).abs() < 1e-3, "{value} {}", exact(axes, &hills, &s));
                for d in 0..axes.len() {
                    let at = |e: f64| {
                        let mut moved = s.clone();
                        moved[d] += e;
                        surface.value(&moved, &mut vec![0.0; axes.len()])
                    };
                    let e = 1e-5 * axes[d].width;
                    let numeric = (at(e) - at(-e)) / (2.0 * e);
                    assert!((gradient[d] - numeric).abs() < 1e-6 / axes[d].width, "{d}: {} {numeric}", gradient[d]);
                }
            }
        }
    }

    #[test]
    fn ends_are_flat_and_periods_close() {
        let mut open = Surface::new([Axis::new(0.0, 1.0, 0.1, false)].into());
        open.add(&[0.95], 2.0);
        let mut gradient = [1.0];
        let end = open.value(&[1.0], &mut gradient);
        assert!(gradient[0] < 0.0);
        assert_eq!((open.value(&[1.7], &mut gradient), gradient[0]), (end, 0.0));
        assert!(open.holds(&[1.0]) && !open.holds(&[1.01]));
        let pi = std::f64::consts::PI;
        let mut ring = Surface::new([Axis::new(-pi, pi, 0.3, true)].into());
        ring.add(&[3.0], 1.0);
        let (mut a, mut b) = ([0.0], [0.0]);
        assert!((ring.value(&[-pi], &mut a) - ring.value(&[pi], &mut b)).abs() < 1e-12 && (a[0] - b[0]).abs() < 1e-12);
        assert!((ring.value(&[3.0], &mut a) - 1.0).abs() < 1e-3);
    }

    #[test]
    fn the_offset_of_a_flat_bias_is_the_bias() {
        let mut flat = Surface::new([Axis::new(0.0, 1.0, 0.1, false)].into());
        flat.table.iter_mut().step_by(2).for_each(|v| *v = 3.0);
        flat.update_offset(8.0, 2.5);
        assert!((flat.offset() - 3.0).abs() < 1e-12);
        flat.update_offset(f64::INFINITY, 2.5);
        assert!((flat.offset() - 3.0).abs() < 1e-12);
    }
}
