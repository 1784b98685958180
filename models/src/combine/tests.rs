//! Combinations against their definitions.

use super::*;
use crate::analytic::cluster_positions;
use crate::parse_spec;
use crate::testing::{self, Sample};
use scorefield_integrators::{Array, Batch, DType, Input, Output, Result as ContractResult, System, UnitSystem, Want};

fn build(text: &str) -> Box<dyn ForceProvider> {
    parse_spec(text).unwrap().build().unwrap().provider
}

fn cluster(n: usize, seed: u64) -> Sample {
    Sample::new(System::particles("cluster", n, 1.0), cluster_positions(n, 1.12).unwrap()).displaced(0.05, seed)
}

fn energy_and_forces(provider: &mut dyn ForceProvider, sample: &Sample) -> (f64, Vec<f64>) {
    let out = testing::evaluate(provider, std::slice::from_ref(sample), DType::F64, Want::ENERGY);
    (out.energy[0], out.forces.to_f64())
}

/// A provider with other claims than its own.
struct Claims(Capabilities, Box<dyn ForceProvider>);

impl ForceProvider for Claims {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }
    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.1.prepare(batch, dtype)
    }
    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.1.evaluate(input, out)
    }
    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Claims(self.0.clone(), self.1.fork()?)))
    }
}

fn claiming(change: impl FnOnce(&mut Capabilities)) -> Box<dyn ForceProvider> {
    let inner = build("lj");
    let mut capabilities = inner.capabilities().clone();
    change(&mut capabilities);
    Box::new(Claims(capabilities, inner))
}

fn mean_force(temperature_kelvin: f64) -> Box<dyn ForceProvider> {
    claiming(|c| c.kind = Kind::MeanForce { temperature_kelvin })
}

#[test]
fn sums_and_multiples_are_what_they_say() {
    let sample = cluster(9, 1);
    let (e1, f1) = energy_and_forces(&mut *build("lj"), &sample);
    let (e2, f2) = energy_and_forces(&mut *build("harmonic:k=2"), &sample);
    let half = Box::new(Scaled::new(build("harmonic:k=2"), -0.5).unwrap());
    let mut sum = Sum::new(vec![build("lj"), half]).unwrap();
    assert_eq!(sum.capabilities().name, "lennard-jones + -0.5 × harmonic");
    let (e, f) = energy_and_forces(&mut sum, &sample);
    assert_eq!(e, e1 - 0.5 * e2);
    f.iter().zip(f1.iter().zip(&f2)).for_each(|(f, (a, b))| assert_eq!(*f, a - 0.5 * b));
    testing::check_forces(&mut sum, &sample, 1e-8);
    testing::check_batch_invariance(&mut sum, &[cluster(9, 1), cluster(4, 2), cluster(9, 3), cluster(9, 4)]);
}

#[test]
fn a_periodic_sum_keeps_virial_and_atom_energies() {
    let built = parse_spec("lj:cutoff=1.5,shift=true,n=32").unwrap().build().unwrap();
    let toy = built.toy.unwrap();
    let sample = Sample::of_toy(&toy).displaced(0.05, 2);
    let mut sum = Sum::new(vec![built.provider, build("lj:cutoff=1.33,epsilon=0.3")]).unwrap();
    assert_eq!(sum.capabilities().range, Some(1.5));
    testing::check_batch_invariance(&mut sum, &[sample.clone(), sample.displaced(0.01, 9)]);
    let restraint = Restraint::new(5.0, &toy.positions, None, UnitSystem::Reduced).unwrap();
    let sum = Sum::new(vec![Box::new(sum), Box::new(restraint)]).unwrap();
    assert!(!sum.capabilities().virial && sum.capabilities().atom_energy && sum.capabilities().range.is_none());
}

#[test]
fn a_committee_has_mean_and_standard_deviation() {
    let sample = cluster(6, 5);
    let members = || [1.0, 1.1, 1.3].map(|e| build(&format!("lj:epsilon={e}"))).into_iter().collect();
    let mut committee = Committee::new(members()).unwrap();
    let (e1, f1) = energy_and_forces(&mut *build("lj"), &sample);
    let want = Want { uncertainty: true, ..Want::ENERGY };
    let out = testing::evaluate(&mut committee, std::slice::from_ref(&sample), DType::F64, want);
    // Everything is linear in ε; its values have mean 17/15 and this standard deviation.
    let (mean, deviation) = (3.4 / 3.0, (7.0f64 / 300.0).sqrt());
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} instead of {b}");
    close(out.energy[0], mean * e1);
    close(out.uncertainty.energy[0], deviation * e1.abs());
    for (k, f) in f1.iter().enumerate() {
        close(out.forces.get(k), mean * f);
        close(out.uncertainty.forces[k], deviation * f.abs());
    }
    testing::check_forces(&mut committee, &sample, 1e-8);
    let samples = [cluster(6, 1), cluster(3, 2), cluster(6, 3)];
    testing::check_batch_invariance(&mut committee, &samples);
    // A restraint is exact: the sum has the committee's spread.
    let restraint = Restraint::new(1.0, &sample.positions, None, UnitSystem::Reduced).unwrap();
    let mut sum = Sum::new(vec![Box::new(restraint), Box::new(Scaled::new(Box::new(committee), -2.0).unwrap())]).unwrap();
    let of_sum = testing::evaluate(&mut sum, std::slice::from_ref(&sample), DType::F64, want);
    close(of_sum.uncertainty.energy[0], 2.0 * out.uncertainty.energy[0]);
    close(of_sum.uncertainty.forces[4], 2.0 * out.uncertainty.forces[4]);
    assert!(Committee::new(vec![build("lj")]).is_err());
}

/// Net force, and net torque about the origin.
fn net(x: &[f64], f: &[f64]) -> [f64; 6] {
    let mut sums = [0.0; 6];
    for (r, f) in x.chunks_exact(3).zip(f.chunks_exact(3)) {
        for a in 0..3 {
            let (b, c) = ((a + 1) % 3, (a + 2) % 3);
            sums[a] += f[a];
            sums[3 + a] += r[b] * f[c] - r[c] * f[b];
        }
    }
    sums
}

#[test]
fn projections_leave_no_rigid_motion() {
    // Springs to the origin pull and turn a cluster that is not centred.
    let sum = || -> Box<dyn ForceProvider> { Box::new(Sum::new(vec![build("lj"), build("harmonic:k=3")]).unwrap()) };
    let twisted = || -> Box<dyn ForceProvider> {
        let reference = testing::rotate(&cluster(9, 1).positions);
        Box::new(Sum::new(vec![sum(), Box::new(Restraint::new(2.0, &reference, None, UnitSystem::Reduced).unwrap())]).unwrap())
    };
    let mut sample = cluster(9, 1);
    sample.positions.iter_mut().for_each(|x| *x += 0.7);
    let (_, raw) = energy_and_forces(&mut *twisted(), &sample);
    assert!(net(&sample.positions, &raw).iter().all(|s| s.abs() > 1e-2));
    let (_, f) = energy_and_forces(&mut Projected::new(twisted(), false), &sample);
    assert!(net(&sample.positions, &f)[..3].iter().all(|s| s.abs() < 1e-12));
    let mut projected = Projected::new(twisted(), true);
    let (_, f) = energy_and_forces(&mut projected, &sample);
    assert!(net(&sample.positions, &f).iter().all(|s| s.abs() < 1e-11));
    // Twice is once, and forces of an invariant energy stay as they are.
    let (_, twice) = energy_and_forces(&mut Projected::new(Box::new(projected), true), &sample);
    f.iter().zip(&twice).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
    let (_, lj) = energy_and_forces(&mut *build("lj"), &sample);
    let (_, same) = energy_and_forces(&mut Projected::new(build("lj"), true), &sample);
    lj.iter().zip(&same).for_each(|(a, b)| assert!((a - b).abs() < 1e-11));
    // A linear molecule has one axis without inertia, a single atom three.
    let line = Sample::new(System::particles("line", 3, 1.0), vec![0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    let mut harmonic = Projected::new(build("harmonic"), true);
    let (_, f) = energy_and_forces(&mut harmonic, &line);
    assert!(f.iter().all(|f| f.is_finite()) && net(&line.positions, &f).iter().all(|s| s.abs() < 1e-11));
    let atom = Sample::new(System::particles("atom", 1, 1.0), vec![1.0, 2.0, 3.0]);
    assert!(energy_and_forces(&mut harmonic, &atom).1.iter().all(|f| f.abs() < 1e-14));
    assert!(!harmonic.capabilities().conservative);
    testing::check_batch_invariance(&mut harmonic, &[cluster(9, 1), atom, line, cluster(9, 2)]);
}

#[test]
fn restraints_pull_to_the_nearest_image_of_their_reference() {
    let sample = cluster(5, 1);
    let mut restraint = Restraint::new(100.0, &cluster(5, 2).positions, Some(&[3, 0, 3]), UnitSystem::Reduced).unwrap();
    testing::check_forces(&mut restraint, &sample, 1e-8);
    let (e, f) = energy_and_forces(&mut restraint, &sample);
    assert!(f[3..9].iter().chain(&f[12..]).all(|&f| f == 0.0) && f[0] != 0.0 && f[9] != 0.0);
    let mut periodic = sample.clone();
    periodic.cell = Some([7.0, 0.0, 0.0, 1.0, 8.0, 0.0, -1.0, 2.0, 9.0]);
    periodic.positions[9..12].iter_mut().zip([7.0 + 1.0, 8.0, 0.0]).for_each(|(x, s)| *x += s);
    let (e2, f2) = energy_and_forces(&mut restraint, &periodic);
    assert!((e - e2).abs() < 1e-11 && (f[9] - f2[9]).abs() < 1e-10);
    testing::check_batch_invariance(&mut restraint, &[sample.clone(), cluster(5, 9)]);
    let new = |k, x: &[f64], s: Option<&[usize]>| Restraint::new(k, x, s, UnitSystem::Si).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(new(1.0, &[0.0; 6], Some(&[2])).contains("atoms = 3 is refused"));
    assert!(new(-1.0, &[0.0; 6], None).contains("stiffness"));
    assert!(new(1.0, &[0.0; 5], None).contains("three per atom"));
    assert!(new(1.0, &[f64::NAN; 3], None).contains("finite"));
    assert!(new(1.0, &[0.0; 6], Some(&[])).contains("at least one"));
    let batch = Batch::uniform(cluster(4, 0).system, 1, 0).unwrap();
    assert!(restraint.prepare(&batch, DType::F64).unwrap_err().to_string().contains("has 5 atoms"));
}

#[test]
fn capabilities_follow_from_the_parts() {
    let kind = |parts: Vec<Box<dyn ForceProvider>>| Sum::new(parts).map(|s| s.capabilities().kind);
    let pseudo = || claiming(|c| c.kind = Kind::PseudoForce);
    assert_eq!(kind(vec![build("lj"), pseudo()]).unwrap(), Kind::PseudoForce);
    assert_eq!(kind(vec![mean_force(300.0), pseudo()]).unwrap(), Kind::PseudoForce);
    assert_eq!(kind(vec![build("lj"), mean_force(300.0)]).unwrap(), Kind::MeanForce { temperature_kelvin: 300.0 });
    assert!(kind(vec![mean_force(310.0), mean_force(300.0)]).unwrap_err().to_string().contains("310 K"));
    assert!(kind(vec![build("lj"), build("lj:sigma=1 A,epsilon=1 eV")]).unwrap_err().to_string().contains("units"));
    assert!(kind(Vec::new()).is_err());
    let scaled = Scaled::new(mean_force(300.0), 0.5).unwrap();
    assert_eq!(scaled.capabilities().kind, Kind::MeanForce { temperature_kelvin: 150.0 });
    assert!(Scaled::new(mean_force(300.0), -1.0).is_err() && Scaled::new(build("lj"), f64::NAN).is_err());
    assert!(Committee::new(vec![build("lj"), pseudo()]).is_err());

    let typed = |types: &[u32]| claiming(|c| c.types = Some(types.to_vec()));
    let types = |parts| Sum::new(parts).map(|s| s.capabilities().types.clone());
    assert_eq!(types(vec![build("lj"), typed(&[1, 6, 8]), typed(&[6, 1])]).unwrap(), Some(vec![1, 6]));
    assert!(types(vec![typed(&[1]), typed(&[6])]).is_err());
    let single = claiming(|c| c.dtypes = vec![DType::F32]);
    let double = claiming(|c| c.dtypes = vec![DType::F64]);
    assert!(Sum::new(vec![single, double]).is_err());
    let noisy = Sum::new(vec![build("lj"), claiming(|c| (c.needs_noise_level, c.conservative) = (true, false))]).unwrap();
    assert!(noisy.capabilities().needs_noise_level && !noisy.capabilities().conservative);
}

#[test]
fn a_sum_asks_no_term_for_what_it_cannot_do() {
    let mut sum = Sum::new(vec![build("lj"), claiming(|c| c.energy = false)]).unwrap();
    let sample = cluster(3, 0);
    let batch = Batch::uniform(sample.system.clone(), 1, 0).unwrap();
    sum.prepare(&batch, DType::F64).unwrap();
    let positions = Array::F64(sample.positions);
    let mut out = Output::new(&batch, DType::F64, Want::ENERGY);
    let clock = scorefield_integrators::Clock::Iteration;
    let input = Input { batch: &batch, positions: positions.view(), cells: None, clock, want: Want::ENERGY };
    assert!(sum.evaluate(&input, &mut out).unwrap_err().to_string().contains("cannot supply energies"));
}

#[test]
fn evaluating_allocates_nothing() {
    let lj = parse_spec("lj:cutoff=1.5,n=500").unwrap().build().unwrap();
    let toy = lj.toy.unwrap();
    let restraint = || Box::new(Restraint::new(5.0, &toy.positions, Some(&[0, 7]), UnitSystem::Reduced).unwrap());
    let periodic = Sum::new(vec![lj.provider, restraint()]).unwrap();
    let members = vec![build("lj"), Box::new(Scaled::new(build("lj:epsilon=2"), 0.5).unwrap()) as Box<dyn ForceProvider>];
    let open = Projected::new(Box::new(Sum::new(vec![Box::new(Committee::new(members).unwrap()), restraint()]).unwrap()), true);
    let mut sample = Sample::of_toy(&toy).displaced(0.02, 1);
    for (mut provider, cell) in [(Box::new(periodic) as Box<dyn ForceProvider>, toy.cell), (Box::new(open), None)] {
        sample.cell = cell;
        for dtype in [DType::F32, DType::F64] {
            let want = Want { atom_energy: provider.capabilities().atom_energy, ..Want::ENERGY };
            let batch = Batch::uniform(sample.system.clone(), 3, 0).unwrap();
            let mut positions = Array::from_f64(dtype, &sample.positions.repeat(3));
            let cells = cell.map(|c| vec![c; 3]);
            let mut out = Output::new(&batch, dtype, want);
            provider.prepare(&batch, dtype).unwrap();
            let clock = scorefield_integrators::Clock::Iteration;
            for pass in 0..3 {
                let input = Input { batch: &batch, positions: positions.view(), cells: cells.as_deref(), clock, want };
                let count = testing::allocations::during(|| provider.evaluate(&input, &mut out).unwrap());
                // The first pass builds neighbour lists.
                assert!(pass == 0 || count == 0, "{}: {count} allocations in pass {pass}", provider.capabilities().name);
                positions.set(0, positions.get(0) + 0.01);
            }
        }
    }
}
