//! Velocities: their distribution is Maxwell's, energy is shared out equally, and only what moves counts.

use super::common::{KT_300, Mean, Molecule, Run, Start, si};
use scorefield::analysis::statistics::kolmogorov_smirnov;
use scorefield_integrators::DType;
use std::sync::Arc;

/// Distribution function of the Gamma distribution of shape `k` and scale 1 at `x`: the regularised lower incomplete
/// gamma function, for `2 k` a whole number, by recurrence from `k = ½` or 1.
fn gamma_cdf(k: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // P(a, x) = x^a e^{-x} Σ x^n / (a (a + 1) … (a + n)); all terms are positive.
    let log_gamma = |a: f64| {
        let (mut a, mut sum) = (a, 0.0);
        while a > 1.0 {
            a -= 1.0;
            sum += a.ln();
        }
        sum + if a == 0.5 { 0.5 * std::f64::consts::PI.ln() } else { 0.0 }
    };
    let (mut term, mut sum, mut a) = (1.0 / k, 1.0 / k, k);
    while term > 1e-17 * sum {
        a += 1.0;
        term *= x / a;
        sum += term;
    }
    (sum * (k * x.ln() - x - log_gamma(k)).exp()).min(1.0)
}

#[test]
fn gamma_distribution_function() {
    // Exponential; error function squared; half of the mean's neighbourhood.
    assert!((gamma_cdf(1.0, 0.7) - (1.0 - (-0.7f64).exp())).abs() < 1e-14);
    assert!((gamma_cdf(0.5, 0.5) - 0.682_689_492_137_085_9).abs() < 1e-14);
    assert!((gamma_cdf(1.5, 2.0) - 0.738_535_870_050_889_4).abs() < 1e-12);
    assert!((gamma_cdf(33.0, 33.0) - 0.523_130_3).abs() < 1e-3 && gamma_cdf(33.0, 200.0) == 1.0);
}

/// Kinetic energies in kT of alanine dipeptide, and mean `m v²/kT` of each atom, from `looks` looks at 512 replicas.
fn sample(case: &str, scheme: &str, remove_drift: bool, frozen: &[usize], looks: usize) -> (Vec<f64>, Vec<Mean>) {
    let molecule = Molecule::committed(case);
    let mut system = (*molecule.system).clone();
    for &i in frozen {
        system.masses[i] = 0.0;
    }
    let masses = system.masses.clone();
    let replicas = 512;
    let start = Start {
        provider: &*molecule.provider,
        system: Arc::new(system),
        positions: &molecule.structures(replicas),
        replicas,
        kt: KT_300,
        dtype: DType::F32,
        seed: 11,
        remove_drift,
    };
    // Looks are 40 fs apart: with this friction velocities forget theirs by e⁻⁴, kinetic energies by e⁻⁸.
    let mut run = Run::new(&start, &si(scheme, 1.0, 100.0));
    run.run(300);
    let mut energies = Vec::new();
    let n = masses.len();
    let mut squares = vec![0.0; replicas * n];
    for _ in 0..looks {
        run.run(40);
        energies.extend(run.kinetic().iter().map(|k| k / KT_300));
        let v = run.state.velocities();
        for (i, s) in squares.iter_mut().enumerate() {
            *s += masses[i % n] * (0..3).map(|a| v.get(3 * i + a).powi(2)).sum::<f64>() / (KT_300 * looks as f64);
        }
    }
    let atoms = (0..n).map(|i| Mean::of((0..replicas).map(|b| squares[b * n + i]))).collect();
    (energies, atoms)
}

/// Probability of a deviation of four standard errors.
const FOUR_SIGMA: f64 = 6.3e-5;

#[test]
fn kinetic_energies_of_the_middle_scheme_are_gamma_distributed() {
    let (mut energies, atoms) = sample("aldp-obc", "middle", false, &[], 24);
    let test = kolmogorov_smirnov(&mut energies, |x| gamma_cdf(33.0, x));
    eprintln!("{} kinetic energies, distance {:.4}, p = {:.3}", energies.len(), test.statistic, test.p_value);
    assert!(test.p_value > FOUR_SIGMA, "{test:?}");
    for (i, atom) in atoms.iter().enumerate() {
        atom.check(3.0, 0.05, &format!("m v²/kT of atom {i}"));
    }
    // The test is sharp: one degree of freedom fewer, or 2 % of temperature, would be seen.
    assert!(kolmogorov_smirnov(&mut energies, |x| gamma_cdf(32.5, x)).p_value < FOUR_SIGMA);
    assert!(kolmogorov_smirnov(&mut energies, |x| gamma_cdf(33.0, x / 1.02)).p_value < FOUR_SIGMA);
}

#[test]
fn on_step_velocities_of_baoab_are_slow_where_bonds_are_stiff() {
    let (mut energies, atoms) = sample("aldp-obc", "baoab", false, &[], 24);
    // Known and documented: ⟨v²⟩ is low by (ω dt)²/4 of each mode, which hydrogens feel most.
    assert!(kolmogorov_smirnov(&mut energies, |x| gamma_cdf(33.0, x)).p_value < FOUR_SIGMA);
    let masses = Molecule::committed("aldp-obc").system.masses.clone();
    let mean = |light: bool| {
        let of: Vec<Mean> = (0..22).filter(|&i| (masses[i] < 2.0) == light).map(|i| atoms[i]).collect();
        let n = of.len() as f64;
        Mean { mean: of.iter().map(|m| m.mean).sum::<f64>() / n, error: of.iter().map(|m| m.error.powi(2)).sum::<f64>().sqrt() / n }
    };
    let (hydrogens, heavy) = (mean(true), mean(false));
    eprintln!("m v²/kT under BAOAB: hydrogens {hydrogens}, heavy atoms {heavy}");
    // One of three directions is a stretching mode with ω dt near 0.55, two are bending modes near 0.25.
    assert!(hydrogens.sigmas_from(3.0) > 8.0 && hydrogens.mean < heavy.mean, "{hydrogens} {heavy}");
    hydrogens.check(3.0 - 0.55f64.powi(2) / 4.0 - 2.0 * 0.25f64.powi(2) / 4.0, 0.01, "hydrogens");
}

#[test]
fn without_centre_of_mass_motion_three_degrees_of_freedom_fewer_share_the_energy() {
    let (mut energies, atoms) = sample("aldp-obc", "middle", true, &[], 24);
    let test = kolmogorov_smirnov(&mut energies, |x| gamma_cdf(31.5, x));
    eprintln!("without drift: distance {:.4}, p = {:.3}", test.statistic, test.p_value);
    assert!(test.p_value > FOUR_SIGMA, "{test:?}");
    let masses = Molecule::committed("aldp-obc").system.masses.clone();
    let total: f64 = masses.iter().sum();
    for (i, atom) in atoms.iter().enumerate() {
        atom.check(3.0 * (1.0 - masses[i] / total), 0.05, &format!("m v²/kT of atom {i}"));
    }
}

#[test]
fn frozen_atoms_take_no_share() {
    let (mut energies, atoms) = sample("aldp-obc", "middle", false, &[4, 8], 16);
    let test = kolmogorov_smirnov(&mut energies, |x| gamma_cdf(30.0, x));
    assert!(test.p_value > FOUR_SIGMA, "{test:?}");
    for (i, atom) in atoms.iter().enumerate() {
        if i == 4 || i == 8 {
            assert_eq!(atom.mean, 0.0);
        } else {
            atom.check(3.0, 0.05, &format!("m v²/kT of atom {i}"));
        }
    }
}

#[test]
fn rigid_bonds_take_one_degree_of_freedom_each() {
    let (mut energies, _) = sample("aldp-constraints-hbonds", "middle", false, &[], 16);
    let rigid = Molecule::committed("aldp-constraints-hbonds").system.constraints.len();
    assert_eq!(rigid, 12);
    let test = kolmogorov_smirnov(&mut energies, |x| gamma_cdf(27.0, x));
    eprintln!("with {rigid} rigid bonds: distance {:.4}, p = {:.3}", test.statistic, test.p_value);
    assert!(test.p_value > FOUR_SIGMA, "{test:?}");
}
