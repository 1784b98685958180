//! Samplers on normal data, whose scores and flow are known.

use super::analytic::{Analytic, Gaussian};
use super::mixture::Mixture;
use super::process::VariancePreserving;
use super::sampler::{Method, Sampler, Settings};
use scorefield_integrators::noise::{Noise, Purpose};
use std::sync::Arc;

/// Variances of the data. The last one is narrow enough to need small times.
const VARIANCES: [f64; 3] = [2.0, 0.5, 0.05];

fn sampler(settings: Settings) -> Sampler<f64> {
    let process = VariancePreserving::default();
    let mixture = Mixture::of(Arc::new(Analytic::new(Gaussian { dimension: 3, process })));
    let mut worker = mixture.worker();
    worker.load(0, &VARIANCES.map(f64::ln));
    Sampler::of(worker, process, 3, settings)
}

fn draw(settings: Settings, n: usize) -> Vec<f64> {
    let mut x = vec![0.0; 3 * n];
    sampler(settings).draw(Noise::new(5), 0, &mut x).unwrap();
    x
}

#[test]
fn samples_have_the_variances_of_the_data() {
    let n = 4000;
    for (method, times) in [(Method::Em, 1000), (Method::Pc, 500), (Method::Ode, 1000), (Method::Heun, 200)] {
        let x = draw(Settings { method, times, ..Settings::default() }, n);
        for (d, v) in VARIANCES.iter().enumerate() {
            let (mut mean, mut square) = (0.0, 0.0);
            for row in x.chunks_exact(3) {
                mean += row[d] / n as f64;
                square += row[d] * row[d] / n as f64;
            }
            // Four standard errors, and what steps of this size leave: the last of Euler–Maruyama adds β dt = 1e-4.
            let error = 4.0 * (2.0 / n as f64).sqrt() + 0.02;
            assert!((square / v - 1.0).abs() < error, "{method:?} {d}: {square} for {v}");
            assert!(mean.abs() < 4.0 * (v / n as f64).sqrt() + 1e-3, "{method:?} {d}: {mean}");
        }
    }
}

#[test]
fn the_flow_of_normal_data_is_a_scaling() {
    // x(t) / √var(t) is constant along the flow.
    let process = VariancePreserving::default();
    let gaussian = Gaussian { dimension: 3, process };
    let noise = Noise::new(5);
    let error = |method, times| {
        let x = draw(Settings { method, times, ..Settings::default() }, 20);
        let mut worst = 0.0f64;
        for (row, x) in x.chunks_exact(3).enumerate() {
            let start = noise.normals(0, row as u32, 0, Purpose::Prior);
            for d in 0..3 {
                let (first, last) = (gaussian.variance(VARIANCES[d].ln(), 1.0), gaussian.variance(VARIANCES[d].ln(), 0.0));
                let exact = start[d] * (last / first).sqrt();
                worst = worst.max((x[d] - exact).abs() / last.sqrt());
            }
        }
        worst
    };
    let (euler, coarse, fine) = (error(Method::Ode, 1001), error(Method::Heun, 501), error(Method::Heun, 1001));
    assert!(euler < 0.05, "Euler {euler}");
    assert!(fine < 1e-3, "Heun {fine}");
    assert!(coarse / fine > 3.0, "Heun is of second order: {coarse} {fine}");
}

#[test]
fn a_sample_depends_on_its_number_alone() {
    for method in [Method::Em, Method::Pc, Method::Heun] {
        let settings = Settings { method, times: 20, ..Settings::default() };
        let whole = draw(settings, 7);
        let mut part = vec![0.0; 3 * 3];
        sampler(settings).draw(Noise::new(5), 4, &mut part).unwrap();
        assert_eq!(whole[12..], part[..]);
    }
}

#[test]
fn denoising_takes_the_noise_of_the_last_step_away() {
    let n = 4000;
    let x = draw(Settings { denoise: true, ..Settings::default() }, n);
    let square: f64 = x.chunks_exact(3).map(|r| r[2] * r[2]).sum::<f64>() / n as f64;
    assert!((square / VARIANCES[2] - 1.0).abs() < 4.0 * (2.0 / n as f64).sqrt() + 0.02, "{square}");
}

#[test]
fn settings_without_sense_are_refused() {
    assert!(Settings { times: 1, ..Settings::default() }.check().is_err());
    assert!(Settings { correction: f64::NAN, ..Settings::default() }.check().is_err());
}
