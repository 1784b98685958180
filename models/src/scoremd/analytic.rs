//! Networks with a pencil-and-paper answer, for tests of what is built on networks.

use super::config::Layout;
use super::network::{Network, Rows, Worker};
use super::process::VariancePreserving;
use scorefield_integrators::simd::SimdReal;

/// Energy and all derivatives that training needs, of one row in double precision.
pub(crate) trait Formula: Clone + Send + Sync + 'static {
    fn dimension(&self) -> usize;
    fn parameters(&self) -> usize;
    fn energy(&self, p: &[f64], x: &[f64], t: f64) -> f64;
    /// `−∂E/∂x`.
    fn score(&self, p: &[f64], x: &[f64], t: f64, score: &mut [f64]);
    /// Adds `a ∂E/∂p + u·∂s/∂p`.
    fn accumulate(&self, p: &[f64], x: &[f64], t: f64, a: f64, u: &[f64], gradient: &mut [f64]);
}

/// A [`Formula`] as a network.
pub(crate) struct Analytic<F> {
    pub(crate) formula: F,
    layout: Layout,
}

impl<F: Formula> Analytic<F> {
    pub(crate) fn new(formula: F) -> Self {
        let mut layout = Layout::default();
        layout.push("p.bias", &[formula.parameters()]);
        Analytic { formula, layout }
    }
}

impl<T: SimdReal, F: Formula> Network<T> for Analytic<F> {
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn dimension(&self) -> usize {
        self.formula.dimension()
    }
    fn has_energy(&self) -> bool {
        true
    }
    fn worker(&self) -> Box<dyn Worker<T>> {
        Box::new(AnalyticWorker { formula: self.formula.clone(), parameters: Vec::new() })
    }
}

struct AnalyticWorker<F> {
    formula: F,
    parameters: Vec<f64>,
}

impl<T: SimdReal, F: Formula> Worker<T> for AnalyticWorker<F> {
    fn load(&mut self, parameters: &[T]) {
        self.parameters = parameters.iter().map(|p| p.to_f64()).collect();
    }

    fn evaluate(&mut self, rows: Rows<'_, T>, mut energy: Option<&mut [T]>, mut score: Option<&mut [T]>) {
        let d = self.formula.dimension();
        for (i, t) in rows.t.iter().enumerate() {
            let x: Vec<f64> = rows.x[i * d..(i + 1) * d].iter().map(|x| x.to_f64()).collect();
            if let Some(energy) = &mut energy {
                energy[i] = T::from_f64(self.formula.energy(&self.parameters, &x, t.to_f64()));
            }
            if let Some(score) = &mut score {
                let mut s = vec![0.0; d];
                self.formula.score(&self.parameters, &x, t.to_f64(), &mut s);
                score[i * d..(i + 1) * d].iter_mut().zip(s).for_each(|(o, s)| *o = T::from_f64(s));
            }
        }
    }

    fn accumulate(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]) {
        let d = self.formula.dimension();
        let mut sum: Vec<f64> = gradient.iter().map(|g| g.to_f64()).collect();
        for (i, t) in rows.t.iter().enumerate() {
            let list = |v: &[T]| -> Vec<f64> { v[i * d..(i + 1) * d].iter().map(|x| x.to_f64()).collect() };
            let (x, u) = (list(rows.x), u.map_or(vec![0.0; d], list));
            self.formula.accumulate(&self.parameters, &x, t.to_f64(), a.map_or(0.0, |a| a[i].to_f64()), &u, &mut sum);
        }
        gradient.iter_mut().zip(sum).for_each(|(g, s)| *g = T::from_f64(s));
    }
}

/// The exact energy of noised normal data: `E = ½ Σ x_d²/(m² e^{p_d} + σ²)`, so that `p_d` is the logarithm of a variance.
#[derive(Clone, Debug)]
pub(crate) struct Gaussian {
    pub(crate) dimension: usize,
    pub(crate) process: VariancePreserving,
}

impl Gaussian {
    /// Variance of a noised coordinate.
    pub(crate) fn variance(&self, p: f64, t: f64) -> f64 {
        self.process.mean(t).powi(2) * p.exp() + self.process.sigma(t).powi(2)
    }
}

impl Formula for Gaussian {
    fn dimension(&self) -> usize {
        self.dimension
    }
    fn parameters(&self) -> usize {
        self.dimension
    }
    fn energy(&self, p: &[f64], x: &[f64], t: f64) -> f64 {
        p.iter().zip(x).map(|(&p, x)| 0.5 * x * x / self.variance(p, t)).sum()
    }
    fn score(&self, p: &[f64], x: &[f64], t: f64, score: &mut [f64]) {
        for d in 0..self.dimension {
            score[d] = -x[d] / self.variance(p[d], t);
        }
    }
    fn accumulate(&self, p: &[f64], x: &[f64], t: f64, a: f64, u: &[f64], gradient: &mut [f64]) {
        for d in 0..self.dimension {
            let v = self.variance(p[d], t);
            let slope = self.process.mean(t).powi(2) * p[d].exp() / (v * v);
            gradient[d] += (u[d] * x[d] - 0.5 * a * x[d] * x[d]) * slope;
        }
    }
}

/// `E = Σ_d [½ p₀ (1 + p₁ t) x_d² + p₂ sin(x_d + p₃ t)] + p₄ x₀ x₁`: no Gaussian, and it depends on time in two ways.
#[derive(Clone, Debug)]
pub(crate) struct Wavy;

impl Wavy {
    /// `∇·s`.
    pub(crate) fn divergence(p: &[f64], x: &[f64], t: f64) -> f64 {
        -x.iter().map(|x| p[0] * (1.0 + p[1] * t) - p[2] * (x + p[3] * t).sin()).sum::<f64>()
    }
    /// `∂E/∂t`.
    pub(crate) fn time_slope(p: &[f64], x: &[f64], t: f64) -> f64 {
        x.iter().map(|x| 0.5 * p[0] * p[1] * x * x + p[2] * p[3] * (x + p[3] * t).cos()).sum()
    }
}

impl Formula for Wavy {
    fn dimension(&self) -> usize {
        2
    }
    fn parameters(&self) -> usize {
        5
    }
    fn energy(&self, p: &[f64], x: &[f64], t: f64) -> f64 {
        let one = |x: &f64| 0.5 * p[0] * (1.0 + p[1] * t) * x * x + p[2] * (x + p[3] * t).sin();
        x.iter().map(one).sum::<f64>() + p[4] * x[0] * x[1]
    }
    fn score(&self, p: &[f64], x: &[f64], t: f64, score: &mut [f64]) {
        for d in 0..2 {
            score[d] = -(p[0] * (1.0 + p[1] * t) * x[d] + p[2] * (x[d] + p[3] * t).cos() + p[4] * x[1 - d]);
        }
    }
    fn accumulate(&self, p: &[f64], x: &[f64], t: f64, a: f64, u: &[f64], g: &mut [f64]) {
        for d in 0..2 {
            let (x, other, phase) = (x[d], x[1 - d], x[d] + p[3] * t);
            g[0] += a * 0.5 * (1.0 + p[1] * t) * x * x - u[d] * (1.0 + p[1] * t) * x;
            g[1] += a * 0.5 * p[0] * t * x * x - u[d] * p[0] * t * x;
            g[2] += a * phase.sin() - u[d] * phase.cos();
            g[3] += a * p[2] * t * phase.cos() + u[d] * p[2] * t * phase.sin();
            g[4] += 0.5 * a * x * other - u[d] * other;
        }
    }
}
