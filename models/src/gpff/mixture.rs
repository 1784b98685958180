//! Mixtures of Gaussians in three dimensions: fitting by expectation maximisation, and sampling.

use nalgebra::{Cholesky, Matrix3, Vector3};
use scorefield_integrators::{Noise, Purpose};

/// Most rounds of expectation maximisation, and of k-means before it.
const ROUNDS: usize = 200;
const WARM_UP: usize = 20;
/// Relative gain of the log-likelihood below which it ends.
const GAIN: f64 = 1e-7;

/// `Σ_c w_c N(μ_c, Σ_c)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    components: Vec<Component>,
}

/// One Gaussian of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// Its share.
    pub weight: f64,
    /// Its mean.
    pub mean: Vector3<f64>,
    /// Its covariance.
    pub covariance: Matrix3<f64>,
    /// Cholesky factor of the covariance.
    factor: Matrix3<f64>,
}

impl Component {
    /// A Gaussian; `None` where the covariance is not positive definite or a number is not finite.
    pub fn new(weight: f64, mean: Vector3<f64>, covariance: Matrix3<f64>) -> Option<Self> {
        let finite = (0.0..=1.0).contains(&weight) && mean.iter().chain(covariance.iter()).all(|x| x.is_finite());
        let factor = Cholesky::new(covariance).filter(|_| finite)?.l();
        Some(Component { weight, mean, covariance, factor })
    }

    /// `ln(w N(x))`.
    fn log_density(&self, x: &Vector3<f64>) -> f64 {
        let y = self.factor.solve_lower_triangular(&(x - self.mean)).unwrap_or_else(Vector3::zeros);
        let log_determinant: f64 = (0..3).map(|k| self.factor[(k, k)].ln()).sum();
        self.weight.ln() - 0.5 * y.norm_squared() - log_determinant - 1.5 * std::f64::consts::TAU.ln()
    }
}

impl Mixture {
    /// A mixture of these components; `None` where there are none or their weights do not add up to one.
    pub fn new(components: Vec<Component>) -> Option<Self> {
        let sum: f64 = components.iter().map(|c| c.weight).sum();
        (!components.is_empty() && (sum - 1.0).abs() < 1e-6).then_some(Mixture { components })
    }

    /// Its components.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// Fits at most `count` components to `points`: k-means++ and k-means for a start, then expectation maximisation
    /// with `ridge` on the diagonal of every covariance. The result depends on nothing but the arguments; `noise` and
    /// `stream` choose the starting points. `None` without points.
    pub fn fit(points: &[Vector3<f64>], count: usize, ridge: f64, noise: Noise, stream: u32) -> Option<Self> {
        let centres = k_means(points, count, noise, stream);
        let mut shares: Vec<Vec<f64>> = vec![vec![0.0; points.len()]; centres.len()];
        for (i, x) in points.iter().enumerate() {
            shares[nearest(&centres, x).0][i] = 1.0;
        }
        let mut mixture = maximise(points, &shares, ridge)?;
        let mut best = f64::NEG_INFINITY;
        for _ in 0..ROUNDS {
            let likelihood = mixture.expect(points, &mut shares);
            if likelihood - best <= GAIN * likelihood.abs() {
                break;
            }
            best = likelihood;
            mixture = maximise(points, &shares, ridge)?;
        }
        Some(mixture)
    }

    /// Mean log-likelihood of `points`.
    pub fn log_likelihood(&self, points: &[Vector3<f64>]) -> f64 {
        let mut shares = vec![vec![0.0; points.len()]; self.components.len()];
        self.expect(points, &mut shares)
    }

    /// Fills in the components' shares of every point; returns the mean log-likelihood.
    fn expect(&self, points: &[Vector3<f64>], shares: &mut Vec<Vec<f64>>) -> f64 {
        shares.truncate(self.components.len());
        let mut total = 0.0;
        for (i, x) in points.iter().enumerate() {
            let mut highest = f64::NEG_INFINITY;
            for (c, share) in self.components.iter().zip(shares.iter_mut()) {
                share[i] = c.log_density(x);
                highest = highest.max(share[i]);
            }
            let sum: f64 = shares.iter().map(|s| (s[i] - highest).exp()).sum();
            let log = highest + sum.ln();
            shares.iter_mut().for_each(|s| s[i] = (s[i] - log).exp());
            total += log;
        }
        total / points.len().max(1) as f64
    }

    /// A point, the `draw`-th of sample `id`.
    pub fn sample(&self, noise: Noise, id: u32, draw: u32) -> Vector3<f64> {
        let mut u = noise.uniform(draw, id, 0, Purpose::Shape);
        let mut chosen = &self.components[self.components.len() - 1];
        for component in &self.components {
            if u < component.weight {
                chosen = component;
                break;
            }
            u -= component.weight;
        }
        chosen.mean + chosen.factor * Vector3::from(noise.normals(draw, id, 1, Purpose::Shape))
    }
}

/// The components that `shares` of the points make; those without points are left out.
fn maximise(points: &[Vector3<f64>], shares: &[Vec<f64>], ridge: f64) -> Option<Mixture> {
    let mut components = Vec::with_capacity(shares.len());
    for share in shares {
        let total: f64 = share.iter().sum();
        if total < 1e-6 {
            continue;
        }
        let mean = points.iter().zip(share).map(|(x, s)| x * *s).sum::<Vector3<f64>>() / total;
        let spread = points.iter().zip(share).map(|(x, s)| (x - mean) * (x - mean).transpose() * *s).sum::<Matrix3<f64>>() / total;
        components.push(Component::new(total / points.len() as f64, mean, spread + Matrix3::identity() * ridge)?);
    }
    let sum: f64 = components.iter().map(|c| c.weight).sum();
    components.iter_mut().for_each(|c| c.weight /= sum);
    Mixture::new(components)
}

/// The nearest of `centres` and the square of its distance.
fn nearest(centres: &[Vector3<f64>], x: &Vector3<f64>) -> (usize, f64) {
    let distances = centres.iter().map(|c| (c - x).norm_squared()).enumerate();
    distances.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, f64::INFINITY))
}

/// Centres by k-means++ (Arthur and Vassilvitskii, SODA 2007) and Lloyd's iteration; fewer than `count` where points
/// coincide.
fn k_means(points: &[Vector3<f64>], count: usize, noise: Noise, stream: u32) -> Vec<Vector3<f64>> {
    let mut centres: Vec<Vector3<f64>> = Vec::with_capacity(count);
    for k in 0..count.min(points.len()) {
        let weights: Vec<f64> = points.iter().map(|x| if k == 0 { 1.0 } else { nearest(&centres, x).1 }).collect();
        let total: f64 = weights.iter().sum();
        if !(total > 0.0) {
            break;
        }
        let mut u = total * noise.uniform(k as u32, stream, 0, Purpose::Initialisation);
        let chosen = weights.iter().position(|w| {
            u -= w;
            u <= 0.0
        });
        centres.push(points[chosen.unwrap_or(points.len() - 1)]);
    }
    for _ in 0..WARM_UP {
        let mut sums = vec![(Vector3::zeros(), 0.0); centres.len()];
        for x in points {
            let sum = &mut sums[nearest(&centres, x).0];
            sum.0 += x;
            sum.1 += 1.0;
        }
        for (centre, (sum, n)) in centres.iter_mut().zip(sums) {
            if n > 0.0 {
                *centre = sum / n;
            }
        }
    }
    centres
}
