use super::*;
use crate::parse_spec;
use crate::testing::{Sample, check_forces, check_rigid_motion, check_virial, evaluate};
use scorefield_integrators::System;

fn text(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn specs(list: &[&str]) -> Vec<BiasSpec> {
    list.iter().map(|s| BiasSpec::parse(s).unwrap()).collect()
}

const VARIABLES: [&str; 3] = ["d=distance 1 4", "a=angle 2 1 5", "phi=dihedral 1 2 3 5"];
const BIASES: [&str; 4] = [
    "harmonic:cv=a,at=60 deg,stiffness=50 kJ/mol/rad^2",
    "umbrella:cv=d,from=2 A,to=8 A,windows=4,stiffness=300 kJ/mol/nm^2",
    "metadynamics:cv=phi;d,height=2 kJ/mol,width=20 deg;0.3 A,every=10,factor=8,from=0 A,to=12 A",
    "metadynamics:cv=a,height=1 kJ/mol,width=10 deg,every=20",
];

fn argon() -> Box<dyn ForceProvider> {
    parse_spec("lj:sigma=3.405 A,epsilon=0.0103 eV").unwrap().build().unwrap().provider
}

fn sample() -> Sample {
    let positions = [[0.0, 0.0, 0.0], [0.38, 0.05, 0.02], [0.5, 0.42, 0.1], [0.1, 0.44, -0.08], [0.3, 0.2, 0.45]];
    Sample::new(System::particles("argon", 5, 39.9), positions.concat())
}

/// A bias with some hills for two replicas.
fn bias() -> Arc<Bias> {
    let bias = Bias::new(&text(&VARIABLES), &specs(&BIASES), UnitSystem::Si, 0..2).unwrap();
    let start = bias.observe(0, View::F64(&sample().positions), None).values;
    for k in 0..6u64 {
        for replica in 0..2 {
            let values: Vec<f64> = start.iter().enumerate().map(|(d, s)| s + 0.02 * (k as f64 - 2.0 + d as f64)).collect();
            let hills = bias.deposit(10 * (k + 1), replica, &values, 2.5);
            assert_eq!(hills.len(), 1 + (k % 2) as usize);
        }
        bias.update_offsets(10 * (k + 1), 2.5);
    }
    Arc::new(bias)
}

#[test]
fn forces_are_the_gradient() {
    let mut biased = Biased::new(argon(), bias()).unwrap();
    check_forces(&mut biased, &sample(), 1e-6);
    check_rigid_motion(&mut biased, &sample(), 1e-9);
    // Each replica feels its window and its hills only.
    let bare = evaluate(&mut *argon(), &[sample()], DType::F64, Want::ENERGY);
    let both = evaluate(&mut biased, &[sample(), sample()], DType::F64, Want::ENERGY);
    let bias = bias();
    for r in 0..2 {
        let seen = bias.observe(r, View::F64(&sample().positions), None);
        assert!((both.energy[r] - bare.energy[0] - seen.bias).abs() < 1e-12 * seen.bias);
        assert!(seen.bias > 1.0 && seen.offset > 0.0);
    }
    assert!((both.energy[0] - both.energy[1]).abs() > 0.1);
    let single = evaluate(&mut biased, &[sample()], DType::F32, Want::ENERGY);
    assert!((single.energy[0] - both.energy[0]).abs() < 1e-4 * both.energy[0].abs());
}

#[test]
fn virial_goes_through_periodic_faces() {
    let spec = parse_spec("lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=6 A").unwrap().build().unwrap();
    let toy = spec.toy.unwrap();
    let sample = Sample::of_toy(&toy).displaced(0.01, 3);
    // Far apart in the cell, near through its faces.
    let variables = text(&["d=distance 1 108", "phi=dihedral 108 1 2 90", "a=angle 1 107 108"]);
    let biases = specs(&[
        "harmonic:cv=d,at=3 A,stiffness=2000 kJ/mol/nm^2",
        "harmonic:cv=phi,at=30 deg,stiffness=90 kJ/mol/rad^2",
        "harmonic:cv=a,at=30 deg,stiffness=90 kJ/mol/rad^2",
    ]);
    let bias = Bias::new(&variables, &biases, UnitSystem::Si, 0..1).unwrap();
    let seen = bias.observe(0, View::F64(&sample.positions), sample.cell.as_ref());
    assert!(seen.values[0] < 1.0, "{seen:?}");
    let mut biased = Biased::new(spec.provider, Arc::new(bias)).unwrap();
    check_virial(&mut biased, &sample, 1e-6);
}

#[test]
fn hills_are_laid_again_with_the_same_bits() {
    let (old, new) = (bias(), Bias::new(&text(&VARIABLES), &specs(&BIASES), UnitSystem::Si, 0..2).unwrap());
    new.restore(&old.state(), 2.5).unwrap();
    for r in 0..2 {
        let x = View::F64(&[0.1, 0.0, 0.0, 0.4, 0.05, 0.0, 0.5, 0.5, 0.1, 0.1, 0.44, 0.0, 0.3, 0.2, 0.5]).to_f64();
        assert_eq!(old.observe(r, View::F64(&x), None), new.observe(r, View::F64(&x), None));
    }
    assert!(Bias::new(&text(&VARIABLES), &specs(&BIASES), UnitSystem::Si, 0..3).unwrap().restore(&old.state(), 2.5).is_err());
    assert!(Bias::new(&text(&VARIABLES), &specs(&BIASES[..3]), UnitSystem::Si, 0..2).unwrap().restore(&old.state(), 2.5).is_err());
}

/// The first hill has its full height, the next on top of it is lower by the factor of Barducci et al.; of shared hills each
/// replica feels all.
#[test]
fn hills_are_tempered() {
    let make = |shared: bool| {
        let bias = format!("metadynamics:cv=x,height=1.5,width=0.2,every=5,factor=6,from=-2,to=2,shared={shared}");
        Bias::new(&text(&["x=x 1"]), &specs(&[&bias]), UnitSystem::Reduced, 4..6).unwrap()
    };
    let kt = 0.7;
    for shared in [false, true] {
        let bias = make(shared);
        assert!(bias.deposit(4, 4, &[0.4], kt).is_empty());
        assert_eq!(bias.deposit(5, 4, &[0.4], kt)[0].height, 1.5);
        let second = &bias.deposit(10, 5, &[0.4], kt)[0];
        let expected = if shared { 1.5 * (-1.5f64 / (5.0 * kt)).exp() } else { 1.5 };
        assert!((second.height - expected).abs() < 1e-9, "{second:?}");
        assert!(bias.deposit(10, 5, &[2.1], kt).is_empty());
        assert_eq!(bias.surfaces(0).len(), if shared { 1 } else { 2 });
    }
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let message = |variables: &[&str], biases: &[&str]| -> String {
        let parsed = biases.iter().map(|b| BiasSpec::parse(b)).collect::<Result<Vec<_>>>();
        match parsed.and_then(|b| Bias::new(&text(variables), &b, UnitSystem::Si, 0..1)) {
            Ok(_) => panic!("{variables:?} {biases:?} were accepted"),
            Err(e) => e.to_string(),
        }
    };
    for (variable, part) in [
        ("distance 1 2", "no name"),
        ("d=distance 1", "too few"),
        ("d=distance 0 1", "`0` is no atom"),
        ("d=distance 3 3", "twice"),
        ("d=torsion 1 2 3 4", "dihedral"),
        ("d d=distance 1 2", "no name"),
    ] {
        assert!(message(&[variable], &[]).contains(part), "{}", message(&[variable], &[]));
    }
    assert!(message(&["d=distance 1 2", "d=distance 1 3"], &[]).contains("twice"));
    for (bias, part) in [
        ("spring:cv=d", "harmonic"),
        ("harmonic:cv=e,at=1 A,stiffness=1 kJ/mol/nm^2", "did you mean `d`"),
        ("harmonic:cv=d,at=1,stiffness=1 kJ/mol/nm^2", "it has no unit"),
        ("harmonic:cv=d,at=1 A,stiffness=1 kJ/mol", "a force constant"),
        ("harmonic:cv=phi,at=1 A,stiffness=1 kJ/mol", "a pure number"),
        ("harmonic:cv=d,at=1 A,stiffness=-1 kJ/mol/nm^2", "above zero"),
        ("harmonic:cv=d,at=1 A", "stiffness"),
        ("harmonic:cv=d,at=1 A,stiffness=1 kJ/mol/nm^2,width=3", "width"),
        ("umbrella:cv=d,from=2 A,to=1 A,windows=4,stiffness=1 kJ/mol/nm^2", "above `from`"),
        ("umbrella:cv=d,from=1 A,to=2 A,windows=1,stiffness=1 kJ/mol/nm^2", "from 2"),
        ("metadynamics:cv=d,height=1 kJ/mol,width=0.1 A,every=10", "ends of its grid"),
        ("metadynamics:cv=phi,height=1 kJ/mol,width=60 deg,every=10", "twelfth"),
        ("metadynamics:cv=phi,height=1 kJ/mol,width=10 deg,every=10,factor=1", "above 1"),
        ("metadynamics:cv=phi,height=1 kJ/mol,width=10 deg;20 deg,every=10", "one for each"),
        ("metadynamics:cv=phi,height=1 kJ/mol,width=10 deg,every=0", "steps between"),
        ("metadynamics:cv=phi;d,height=1 kJ/mol,width=0.001 deg;0.0001 A,every=1,from=0 A,to=1 A", "grid"),
    ] {
        let said = message(&["d=distance 1 2", "phi=dihedral 1 2 3 4"], &[bias]);
        assert!(said.contains(part), "{bias}: {said}");
    }
    // Atoms and axes are checked against the system.
    let outside = Bias::new(&text(&["d=distance 1 9"]), &[], UnitSystem::Si, 0..1).unwrap();
    let mut biased = Biased::new(argon(), Arc::new(outside)).unwrap();
    let batch = Batch::uniform(sample().system, 1, 0).unwrap();
    assert!(biased.prepare(&batch, DType::F64).unwrap_err().to_string().contains("atom 9"));
    let reduced = Bias::new(&[], &[], UnitSystem::Reduced, 0..1).unwrap();
    assert!(Biased::new(argon(), Arc::new(reduced)).is_err());
}

#[test]
fn a_circle_of_windows_has_no_window_twice() {
    let windows = |to: &str| {
        let spec = specs(&[&format!("umbrella:cv=phi,from=-180 deg,to={to},windows=8,stiffness=9 kJ/mol")]);
        Bias::new(&text(&["phi=dihedral 1 2 3 4"]), &spec, UnitSystem::Si, 0..8).unwrap().windows().next().unwrap().centres
    };
    assert!((windows("180 deg")[7] - 135f64.to_radians()).abs() < 1e-12);
    assert!((windows("170 deg")[7] - 170f64.to_radians()).abs() < 1e-12);
}
