//! Alanine dipeptide: stiff bonds and energies at 300 K do not depend on the time step.

use super::common::{KT_300, Mean, Molecule, Run, Start, si};
use scorefield_integrators::DType;

/// A harmonic bond of the force field: hydrogen, its partner, length, force constant.
struct Bond {
    hydrogen: usize,
    partner: usize,
    length: f64,
    k: f64,
}

/// Bonds to hydrogens, as the system file says.
fn bonds(molecule: &Molecule) -> Vec<Bond> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mechanics/aldp-obc.system.xml")).unwrap();
    let of =
        |line: &str, key: &str| -> f64 { line.split_once(&format!("{key}=\"")).unwrap().1.split_once('"').unwrap().0.parse().unwrap() };
    let light = |i: usize| molecule.system.masses[i] < 2.0;
    let all = text.lines().filter(|l| l.contains("<Bond ")).map(|l| (of(l, "p1") as usize, of(l, "p2") as usize, of(l, "d"), of(l, "k")));
    all.filter(|b| light(b.0) != light(b.1))
        .map(
            |(i, j, length, k)| {
                if light(i) { Bond { hydrogen: i, partner: j, length, k } } else { Bond { hydrogen: j, partner: i, length, k } }
            },
        )
        .collect()
}

/// What one run measured.
struct Sampled {
    potential: Mean,
    /// `⟨(r − r₀)²⟩ k/kT` of all bonds to hydrogens together.
    variance: Mean,
    /// `−⟨(r − r₀) ê·F⟩ / (kT ⟨1 + 2 (r − r₀)/r⟩)` likewise, with the whole force F on the hydrogen.
    virial: Mean,
}

fn sample(scheme: &str, femtoseconds: f64, looks: usize) -> Sampled {
    let molecule = Molecule::committed("aldp-obc");
    let bonds = bonds(&molecule);
    assert_eq!(bonds.len(), 12);
    let replicas = 512;
    let positions = molecule.structures(replicas);
    let start = Start {
        provider: &*molecule.provider,
        system: molecule.system.clone(),
        positions: &positions,
        replicas,
        kt: KT_300,
        dtype: DType::F32,
        seed: 51,
        remove_drift: false,
    };
    let mut run = Run::new(&start, &si(scheme, femtoseconds, 10.0));
    run.run((2000.0 / femtoseconds) as u64);
    let mut sums = vec![[0.0; 4]; replicas];
    for _ in 0..looks {
        run.run((20.0 / femtoseconds) as u64);
        run.energies();
        let (x, f) = (run.state.positions(), run.out.forces.view());
        for (b, s) in sums.iter_mut().enumerate() {
            s[0] += run.out.energy[b];
            let first = 3 * molecule.system.len() * b;
            for bond in &bonds {
                let (h, p) = (first + 3 * bond.hydrogen, first + 3 * bond.partner);
                let d: [f64; 3] = std::array::from_fn(|a| x.get(h + a) - x.get(p + a));
                let r = d.iter().map(|d| d * d).sum::<f64>().sqrt();
                let stretch = r - bond.length;
                s[1] += stretch * stretch * bond.k / KT_300 / bonds.len() as f64;
                s[2] -= (0..3).map(|a| d[a] * f.get(h + a)).sum::<f64>() * stretch / r / KT_300 / bonds.len() as f64;
                s[3] += (1.0 + 2.0 * stretch / r) / bonds.len() as f64;
            }
        }
    }
    let mean = |g: &dyn Fn(&[f64; 4]) -> f64| Mean::of(sums.iter().map(g));
    Sampled { potential: mean(&|s| s[0] / looks as f64), variance: mean(&|s| s[1] / looks as f64), virial: mean(&|s| s[2] / s[3]) }
}

#[test]
fn stiff_bonds_and_energies_do_not_depend_on_the_step() {
    let fine = sample("baoab", 0.5, 60);
    let coarse = sample("baoab", 1.0, 60);
    let legacy = sample("legacy", 1.0, 60);
    for (what, s) in [("BAOAB, 0.5 fs", &fine), ("BAOAB, 1 fs", &coarse), ("legacy, 1 fs", &legacy)] {
        eprintln!("{what}: ⟨U⟩ {} kJ/mol, bonds k⟨(r − r₀)²⟩/kT {}, by forces {}", s.potential, s.variance, s.virial);
    }
    for s in [&fine, &coarse] {
        // An identity of the Boltzmann distribution, exact for any potential.
        s.virial.check(1.0, 0.008, "bonds to hydrogens by forces");
        // Bonds are springs but for what else pulls at hydrogens, which is a percent.
        assert!((s.variance.mean - 1.0).abs() < 0.01 + 4.0 * s.variance.error, "{}", s.variance);
    }
    let difference = Mean { mean: coarse.potential.mean - fine.potential.mean, error: coarse.potential.error.hypot(fine.potential.error) };
    difference.check(0.0, 0.5, "difference of potential energies at 1 fs and 0.5 fs");
    // The former integrator does heat stiff bonds, by (ω dt)²/4: the same comparison sees that.
    assert!(legacy.variance.mean > 1.05 && legacy.virial.sigmas_from(1.0) > 8.0, "{} {}", legacy.variance, legacy.virial);
}

/// A capped peptide with rigid bonds to hydrogens, 16 replicas of 1 ns: potential energy, kinetic temperature over 300 K, and
/// the largest error of a rigid bond in units of the rounding of its coordinates.
fn rigid(hydrogen_mass: Option<f64>, femtoseconds: f64) -> (Mean, Mean, f64) {
    let molecule = Molecule::committed("aldp-constraints-hbonds");
    let mut system = (*molecule.system).clone();
    if let Some(mass) = hydrogen_mass {
        system.types = system.masses.iter().map(|&m| if m < 2.0 { 1 } else { 6 }).collect();
        system.bonds = system.constraints.iter().map(|c| c.atoms.into()).collect();
        system.repartition_hydrogen_mass(mass).unwrap();
        assert_eq!(system.masses.iter().filter(|&&m| m == mass).count(), 12);
    }
    let (replicas, looks) = (16, 1000);
    let positions = molecule.structures(replicas);
    let start = Start {
        provider: &*molecule.provider,
        system: system.clone().into(),
        positions: &positions,
        replicas,
        kt: KT_300,
        dtype: DType::F32,
        seed: 52,
        remove_drift: false,
    };
    let mut run = Run::new(&start, &si("middle", femtoseconds, 1.0));
    let freedom = 3.0 * system.len() as f64 - system.constraints.len() as f64;
    let mut sums = vec![[0.0; 2]; replicas];
    let mut worst = 0.0f64;
    run.run((50_000.0 / femtoseconds) as u64);
    for _ in 0..looks {
        run.run((1000.0 / femtoseconds) as u64);
        run.energies();
        for (b, (s, kinetic)) in sums.iter_mut().zip(run.kinetic()).enumerate() {
            s[0] += run.out.energy[b] / looks as f64;
            s[1] += 2.0 * kinetic / (freedom * KT_300) / looks as f64;
            for c in &system.constraints {
                let [i, j] = c.atoms.map(|a| 3 * (system.len() * b + a as usize));
                let x = run.state.positions();
                let r = (0..3).map(|a| (x.get(i + a) - x.get(j + a)).powi(2)).sum::<f64>().sqrt();
                let largest = (0..3).map(|a| x.get(i + a).abs()).fold(0.0, f64::max);
                worst = worst.max((r - c.length).abs() / (largest * f64::from(f32::EPSILON)));
            }
        }
    }
    (Mean::of(sums.iter().map(|s| s[0])), Mean::of(sums.iter().map(|s| s[1])), worst)
}

#[test]
fn heavy_hydrogens_and_rigid_bonds_allow_four_femtoseconds() {
    let (fine, _, _) = rigid(None, 1.0);
    let (coarse, temperature, worst) = rigid(Some(3.0), 4.0);
    eprintln!(
        "rigid bonds: ⟨U⟩ {fine} at 1 fs, {coarse} kJ/mol at 4 fs with hydrogens of 3 u; T/300 K {temperature}; bonds to {worst:.1} roundings"
    );
    // Stretching modes of heavy atoms have ω dt up to 1.3 at 4 fs. Their error is of the second order and comes from what is not
    // harmonic in them: less than 0.02 kT per degree of freedom.
    let difference = Mean { mean: coarse.mean - fine.mean, error: coarse.error.hypot(fine.error) };
    assert!(difference.error < 0.25 && difference.mean.abs() < 0.02 * 54.0 * KT_300, "{difference}");
    temperature.check(1.0, 0.005, "kinetic temperature at 4 fs");
    assert!(worst < 16.0, "{worst}");
}
