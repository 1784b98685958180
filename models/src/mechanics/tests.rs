use super::*;
use crate::testing::{self, Sample};
use scorefield_integrators::fused::Plan;
use scorefield_integrators::relax::{Job, RelaxOptions, RelaxSpec, relax_all};
use scorefield_integrators::{
    Batch, Context, DType, Dynamics, DynamicsSpec, Input, Noise, Output, Progress, Propagator, Quantity, State, System, UnitSystem, Want,
};
use std::sync::Arc;

fn fixture(case: &str) -> (Mechanics, Vec<serde_json::Value>) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/mechanics");
    let text = std::fs::read_to_string(format!("{directory}/{case}.system.xml")).unwrap();
    let reference = std::fs::read_to_string(format!("{directory}/{case}.reference.json")).unwrap();
    (Mechanics::from_xml(&text, case).unwrap(), serde_json::from_str(&reference).unwrap())
}

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    v.as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect()
}

/// Energies `[B]` and forces `[A, 3]` of `frames` replicas.
fn evaluate(m: &Mechanics, dtype: DType, frames: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let mut provider = m.provider("test");
    let mut system = System::particles("test", m.atoms(), 1.0);
    system.masses = m.masses().to_vec();
    let batch = Batch::uniform(Arc::new(system), frames.len(), 0).unwrap();
    let state = State::at_rest(&batch, &frames.concat(), dtype).unwrap();
    let mut out = Output::new(&batch, dtype, Want::ENERGY);
    provider.prepare(&batch, dtype).unwrap();
    provider
        .evaluate(&Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::ENERGY }, &mut out)
        .unwrap();
    (out.energy.clone(), out.forces.to_f64())
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

const READABLE: [&str; 14] = [
    "aldp-obc",
    "aldp-vacuum",
    "aldp-amber14-obc1",
    "tetrapeptide-amber14-obc2",
    "aldp-amber14-obc2-no-surface",
    "torsions",
    "aldp-constraints-hbonds",
    "aldp-obc-constraints-hbonds",
    "ryckaert-bellemans",
    "cmap",
    "dipeptide-amber19",
    "aldp-cutoff-nonperiodic",
    "mixture-triclinic",
    "aldp-water-cutoff",
];

#[test]
fn energies_and_forces_agree_with_openmm() {
    for case in READABLE {
        let (m, frames) = fixture(case);
        for frame in &frames {
            let x = numbers(&frame["positions_nm"]);
            let reference = numbers(&frame["forces_kJ_mol_nm"]);
            // Few replicas use lanes of atoms, many use lanes of replicas.
            for replicas in [1, 16] {
                let copies = vec![x.clone(); replicas];
                let (e, f) = evaluate(&m, DType::F64, &copies);
                let want = frame["energy_kJ_mol"].as_f64().unwrap();
                assert!((e[0] - want).abs() <= 1e-6 * want.abs(), "{case}: {} {want}", e[0]);
                let error = relative(&f[..x.len()], &reference);
                assert!(error < 1e-6, "{case}: relative force error {error:.2e}");
                // Single precision: 1e-4, except at a minimum, where forces cancel and what remains is the rounding of the
                // coordinates themselves; there the kernel may add no more than that.
                let (_, f32_forces) = evaluate(&m, DType::F32, &copies);
                let rounded: Vec<f64> = x.iter().map(|&x| f64::from(x as f32)).collect();
                let (_, exact_at_rounded) = evaluate(&m, DType::F64, std::slice::from_ref(&rounded));
                let error = relative(&f32_forces[..x.len()], &reference);
                let inherent = relative(&exact_at_rounded, &reference);
                assert!(
                    error < 1e-4_f64.max(3.0 * inherent),
                    "{case} f32: relative force error {error:.2e}, of which input {inherent:.2e}"
                );
            }
            for (name, part) in m.parts() {
                let (e, _) = evaluate(&part, DType::F64, std::slice::from_ref(&x));
                let components = frame["components"].as_object().unwrap();
                let wanted: Vec<_> = components
                    .iter()
                    .filter(|(k, _)| k.ends_with(name) || (name == "GBSAOBCForce" && k.ends_with("CustomGBForce")))
                    .map(|(_, v)| v.as_f64().unwrap())
                    .collect();
                assert_eq!(wanted.len(), 1, "{case}: {name}");
                assert!((e[0] - wanted[0]).abs() <= 1e-6 * wanted[0].abs().max(1e-3), "{case} {name}: {} {}", e[0], wanted[0]);
            }
        }
    }
}

#[test]
fn forces_are_gradients() {
    for case in ["tetrapeptide-amber14-obc2", "torsions", "ryckaert-bellemans", "cmap", "mixture-triclinic", "aldp-cutoff-nonperiodic"] {
        let (m, frames) = fixture(case);
        let x = numbers(&frames[1]["positions_nm"]);
        let (_, f) = evaluate(&m, DType::F64, std::slice::from_ref(&x));
        let h = 1e-6;
        let scale = f.iter().map(|f| f.abs()).fold(0.0, f64::max);
        for k in (0..x.len()).step_by(7) {
            let mut moved = [x.clone(), x.clone()];
            moved[0][k] += h;
            moved[1][k] -= h;
            let (e, _) = evaluate(&m, DType::F64, &moved);
            let slope = -(e[0] - e[1]) / (2.0 * h);
            assert!((slope - f[k]).abs() < 1e-6 * scale.max(100.0), "{case} component {k}: {slope} {}", f[k]);
        }
    }
}

#[test]
fn both_layouts_give_the_same_bits() {
    for case in READABLE {
        let (m, frames) = fixture(case);
        let frames: Vec<_> = frames.iter().cycle().take(19).map(|f| numbers(&f["positions_nm"])).collect();
        for dtype in [DType::F32, DType::F64] {
            let (e, f) = evaluate(&m, dtype, &frames);
            let n3 = frames[0].len();
            for (b, x) in frames.iter().enumerate() {
                let (e1, f1) = evaluate(&m, dtype, std::slice::from_ref(x));
                assert_eq!(e[b].to_bits(), e1[0].to_bits(), "{case} {dtype} energy of replica {b}");
                for (k, (a, b)) in f[b * n3..(b + 1) * n3].iter().zip(&f1).enumerate() {
                    assert_eq!(a.to_bits(), b.to_bits(), "{case} {dtype} force {k}: {a} {b}");
                }
            }
        }
    }
}

/// Positions and velocities after `steps`, as bits.
fn run(m: &Mechanics, spec: &DynamicsSpec, dtype: DType, x: &[f64], ids: &[u32], steps: &[u64], fused: bool) -> Vec<u64> {
    let mut provider = m.provider("test");
    let mut system = System::particles("test", m.atoms(), 1.0);
    system.masses = m.masses().to_vec();
    system.constraints = m.constraints().to_vec();
    system.masses[3] = 0.0;
    let system = Arc::new(system);
    let batch = Batch::new(vec![system; ids.len()], ids.to_vec()).unwrap();
    let mut state = State::at_rest(&batch, &x.repeat(ids.len()), dtype).unwrap();
    state.kt.fill(2.5);
    let noise = Noise::new(7);
    scorefield_integrators::dynamics::draw_velocities(&batch, &mut state, noise, true);
    let mut out = Output::new(&batch, dtype, Want::FORCES);
    let mut dynamics = Dynamics::new(spec, UnitSystem::Si, true).unwrap();
    if !fused {
        dynamics = dynamics.plain();
    }
    let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise };
    dynamics.prepare(&mut ctx).unwrap();
    for &k in steps {
        dynamics.run(&mut ctx, k).unwrap();
    }
    assert_eq!(state.step, steps.iter().sum::<u64>());
    let all = [state.phase.to_f64(), out.forces.to_f64()].concat();
    assert!(all.iter().all(|x| x.is_finite()));
    all.into_iter().map(f64::to_bits).collect()
}

#[test]
fn fused_runs_equal_the_plain_loop_whatever_the_batch() {
    for case in ["aldp-obc", "aldp-constraints-hbonds"] {
        fused_equals_plain(case);
    }
}

fn fused_equals_plain(case: &str) {
    let (m, frames) = fixture(case);
    let x = numbers(&frames[0]["positions_nm"]);
    let (dt, friction) = (Quantity::new(1.0, "fs"), Quantity::new(5.0, "/ps"));
    for name in DynamicsSpec::NAMES {
        let dt = if name.starts_with("overdamped") { Quantity::new(0.01, "fs") } else { dt.clone() };
        let spec = DynamicsSpec::named(name, dt, friction.clone()).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let ids: Vec<u32> = (0..19).collect();
            let whole = run(&m, &spec, dtype, &x, &ids, &[20], true);
            assert_eq!(whole, run(&m, &spec, dtype, &x, &ids, &[1, 7, 12], false), "{case} {name} {dtype}: plain loop");
            assert_eq!(whole, run(&m, &spec, dtype, &x, &ids, &[13, 7], true), "{case} {name} {dtype}: steps in parts");
            // One replica alone, in lanes of atoms.
            let alone = run(&m, &spec, dtype, &x, &[11], &[20], true);
            let n3 = x.len();
            for (part, offset) in [(0, 0), (1, 19 * n3), (2, 2 * 19 * n3)] {
                let of_batch = &whole[offset + 11 * n3..offset + 12 * n3];
                assert_eq!(of_batch, &alone[part * n3..(part + 1) * n3], "{case} {name} {dtype}: alone, part {part}");
            }
        }
    }
}

/// The number of operations is that of the terms, whatever the positions.
#[test]
fn operations_are_counted() {
    let (m, frames) = fixture("aldp-obc");
    let [first, second] = [0, 1].map(|k| m.operations(&numbers(&frames[k]["positions_nm"])));
    println!("{first:?}: {} flop", first.flops());
    assert_eq!(first, second);
    let (n, pairs) = (22, 231);
    // Every pair has one root for the distance, one for Still's function and two reciprocals; every atom four divisions.
    assert!(first.estimate >= 4 * pairs && first.div >= 4 * n, "{first:?}");
}

#[test]
fn plans_are_data() {
    let plan: Plan = DynamicsSpec::Verlet { dt: Quantity::new(2.0, "fs") }.plan(UnitSystem::Si, false).unwrap();
    assert_eq!((plan.stages.len(), plan.dt), (4, 0.002));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (case, part) in [
        ("aldp-amber14-gbn2", "CustomGBForce"),
        ("custom-bond", "CustomBondForce"),
        ("aldp-amber14-obc2-salt", "kappa"),
        ("nonbonded-offsets", "offsets"),
        ("virtual-site", "virtual site"),
    ] {
        let path = format!("{}/../tests/data/mechanics/{case}.system.xml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let error = Mechanics::from_xml(&text, "file.xml").unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("line ") && error.starts_with("file.xml"), "{case}: {error}");
    }
}

/// Minimisation from a disturbed minimum leads back to OpenMM's, which has the same rigid bonds.
#[test]
fn minimises_with_rigid_bonds() {
    for case in ["aldp-constraints-hbonds", "aldp-obc-constraints-hbonds"] {
        let (m, frames) = fixture(case);
        let mut system = System::particles("test", m.atoms(), 1.0);
        m.apply_to(&mut system, "test").unwrap();
        let system = Arc::new(system);
        let want = frames[0]["energy_kJ_mol"].as_f64().unwrap();
        for method in RelaxSpec::NAMES {
            let spec = RelaxSpec::named(method).unwrap().with_fmax(Quantity::new(0.05, "kJ/mol/nm"));
            let job = Job { system: system.clone(), positions: numbers(&frames[4]["positions_nm"]), cell: None };
            let results = std::sync::Mutex::new(Vec::new());
            let options = RelaxOptions { max_steps: 20_000, ..RelaxOptions::default() };
            relax_all(vec![job], &*m.provider("test"), &spec, &options, |_, r| results.lock().unwrap().push(r.unwrap())).unwrap();
            let relaxed = results.into_inner().unwrap().remove(0);
            assert_eq!(relaxed.progress, Progress::Converged, "{case} {method}: {} kJ/mol/nm", relaxed.fmax);
            let energy = relaxed.energy.unwrap();
            println!("{case} {method}: {energy} kJ/mol after {} steps, OpenMM {want}", relaxed.steps);
            assert!(energy < want + 1e-3 && energy > want - 0.1, "{case} {method}: {energy} {want}");
            for c in m.constraints() {
                let [i, j] = c.atoms.map(|i| 3 * i as usize);
                let r2: f64 = (0..3).map(|a| (relaxed.positions[i + a] - relaxed.positions[j + a]).powi(2)).sum();
                assert!((r2.sqrt() - c.length).abs() < 1e-9 * c.length, "{case} {method}: {} {}", r2.sqrt(), c.length);
            }
        }
    }
}

/// A cutoff as the file gives it, and what the reader says to a change of it.
#[test]
fn cutoffs_that_are_not_supported_are_refused() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/mechanics/mixture-triclinic.system.xml");
    let text = std::fs::read_to_string(path).unwrap();
    for (from, to, part) in [
        ("method=\"2\"", "method=\"4\"", "(PME)"),
        ("method=\"2\"", "method=\"9\"", "(unknown)"),
        ("exceptionsUsePeriodic=\"0\"", "exceptionsUsePeriodic=\"1\"", "exceptionsUsePeriodic"),
        ("includeDirectSpace=\"1\"", "includeDirectSpace=\"0\"", "direct space"),
        ("cutoff=\".7\"", "cutoff=\"0\"", "cutoff 0 nm"),
        ("cutoff=\".7\"", "cutoff=\".5\"", "switching distance"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = Mechanics::from_xml(&text.replace(from, to), "file.xml").unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("NonbondedForce"), "{to}: {error}");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/mechanics/cmap.system.xml");
    let text = std::fs::read_to_string(path).unwrap();
    for (from, to, part) in [
        ("<Map size=\"7\"", "<Map size=\"8\"", "correction map of size 8 has 49 energies"),
        ("map=\"1\"", "map=\"2\"", "names map 2, but there are 2"),
    ] {
        let error = Mechanics::from_xml(&text.replace(from, to), "file.xml").unwrap_err().to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
}

/// Sample of the second frame of a periodic case, in the cell of its file.
fn periodic_sample(m: &Mechanics, frames: &[serde_json::Value]) -> Sample {
    let mut sample = Sample::new(System::particles("test", m.atoms(), 1.0), numbers(&frames[1]["positions_nm"]));
    sample.cell = m.cell;
    sample
}

#[test]
fn periodic_cells() {
    for case in ["mixture-triclinic", "aldp-water-cutoff"] {
        let (m, frames) = fixture(case);
        let sample = periodic_sample(&m, &frames);
        let mut provider = m.provider("test");
        // Pairs that cross the cutoff between finite differences must not jump: with a switch, and a conductor around.
        let mut smooth = m.clone();
        let cutoff = smooth.nonbonded.as_mut().unwrap().cutoff.as_mut().unwrap();
        (cutoff.switch, cutoff.dielectric) = (Some(0.5), 1e12);
        testing::check_virial(&mut *smooth.provider("test"), &sample, 1e-6);
        // Without a cell that of the file is meant.
        let (e, _) = evaluate(&m, DType::F64, std::slice::from_ref(&sample.positions));
        assert_eq!(testing::evaluate(&mut *provider, std::slice::from_ref(&sample), DType::F64, Want::ENERGY).energy, e, "{case}");
        testing::check_batch_invariance(&mut *provider, &[sample.clone(), sample.displaced(0.01, 1), sample.displaced(0.02, 2)]);
        // A cell too small for the cutoff is refused.
        let mut small = sample.clone();
        small.cell = Some([1.3, 0.0, 0.0, 0.0, 1.6, 0.0, 0.0, 0.0, 1.6]);
        let batch = Batch::uniform(small.system.clone(), 1, 0).unwrap();
        let state = State::at_rest(&batch, &small.positions, DType::F64).unwrap();
        let mut out = Output::new(&batch, DType::F64, Want::FORCES);
        provider.prepare(&batch, DType::F64).unwrap();
        let cells = [small.cell.unwrap()];
        let input = Input { batch: &batch, positions: state.positions(), cells: Some(&cells), clock: state.clock, want: Want::FORCES };
        let error = provider.evaluate(&input, &mut out).unwrap_err().to_string();
        assert!(error.contains("cutoff") && error.contains("larger cell"), "{error}");
    }
    // A cell where there is to be none.
    let (m, frames) = fixture("aldp-cutoff-nonperiodic");
    let batch = Batch::uniform(Arc::new(System::particles("test", m.atoms(), 1.0)), 1, 0).unwrap();
    let state = State::at_rest(&batch, &numbers(&frames[0]["positions_nm"]), DType::F64).unwrap();
    let mut out = Output::new(&batch, DType::F64, Want::FORCES);
    let mut provider = m.provider("test");
    provider.prepare(&batch, DType::F64).unwrap();
    let cells = [[5.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 5.0]];
    let input = Input { batch: &batch, positions: state.positions(), cells: Some(&cells), clock: state.clock, want: Want::FORCES };
    assert!(provider.evaluate(&input, &mut out).is_err());
}

/// Forces along a walk with one list that lives on are those of a list made anew at each place, bit by bit, in a cell and in
/// open space.
#[test]
fn neighbour_lists_leave_no_trace() {
    let (m, frames) = fixture("aldp-water-cutoff");
    let mut open = m.clone();
    open.nonbonded.as_mut().unwrap().cutoff.as_mut().unwrap().periodic = false;
    // So small that lists are rebuilt on the way and lists are shorter than all pairs.
    for m in [&mut m.clone(), &mut open] {
        m.nonbonded.as_mut().unwrap().cutoff.as_mut().unwrap().distance = 0.4;
        let system = Arc::new(System::particles("test", m.atoms(), 1.0));
        let batch = Batch::uniform(system, 1, 0).unwrap();
        let mut old = m.provider("test");
        old.prepare(&batch, DType::F64).unwrap();
        let mut x = numbers(&frames[1]["positions_nm"]);
        for step in 0..12u32 {
            for (k, x) in x.iter_mut().enumerate() {
                *x += 0.05 * (f64::from(step) + 0.7 * k as f64).sin();
            }
            let state = State::at_rest(&batch, &x, DType::F64).unwrap();
            let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::ENERGY };
            let [mut a, mut b] = [(); 2].map(|()| Output::new(&batch, DType::F64, Want::ENERGY));
            old.evaluate(&input, &mut a).unwrap();
            let mut new = m.provider("test");
            new.prepare(&batch, DType::F64).unwrap();
            new.evaluate(&input, &mut b).unwrap();
            assert!(a.energy[0].is_finite() && a.energy == b.energy && a.forces.to_f64() == b.forces.to_f64(), "step {step}");
        }
    }
}

#[test]
fn rigid_bonds_stay_rigid() {
    let (m, frames) = fixture("aldp-constraints-hbonds");
    let x = numbers(&frames[0]["positions_nm"]);
    let mut system = System::particles("test", m.atoms(), 1.0);
    m.apply_to(&mut system, "test").unwrap();
    assert_eq!((system.constraints.len(), system.degrees_of_freedom()), (12, 54));
    let system = Arc::new(system);
    for name in ["baoab", "middle", "verlet", "legacy", "overdamped-limit"] {
        let dt = if name.starts_with("overdamped") { 0.02 } else { 2.0 };
        let spec = DynamicsSpec::named(name, Quantity::new(dt, "fs"), Quantity::new(5.0, "/ps")).unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 2e-6)] {
            for replicas in [1, 16] {
                let batch = Batch::uniform(system.clone(), replicas, 0).unwrap();
                let mut state = State::at_rest(&batch, &x.repeat(replicas), dtype).unwrap();
                state.kt.fill(2.5);
                let noise = Noise::new(1);
                scorefield_integrators::dynamics::draw_velocities(&batch, &mut state, noise, false);
                let mut out = Output::new(&batch, dtype, Want::FORCES);
                let mut provider = m.provider("test");
                let mut dynamics = Dynamics::new(&spec, UnitSystem::Si, false).unwrap();
                let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise };
                dynamics.prepare(&mut ctx).unwrap();
                dynamics.run(&mut ctx, 500).unwrap();
                let worst = scorefield_integrators::constraint::violation(&batch, &state);
                assert!(worst < tolerance, "{name} {dtype}: {worst:.1e}");
                // No velocity along a rigid bond.
                let (x, v) = (state.positions(), state.velocities());
                for c in system.constraints.iter().filter(|_| spec.has_velocities()) {
                    let [i, j] = c.atoms.map(|i| 3 * i as usize);
                    let along: f64 = (0..3).map(|a| (x.get(i + a) - x.get(j + a)) * (v.get(i + a) - v.get(j + a))).sum();
                    assert!(along.abs() < 100.0 * tolerance * c.length, "{name} {dtype}: {along:.1e}");
                }
            }
        }
    }
}

#[test]
fn kernels_give_the_same_forces_and_trajectories() {
    let mut on_devices = 0;
    for case in READABLE {
        let (m, frames) = fixture(case);
        let mut system = System::particles(case, m.atoms(), 1.0);
        system.masses = m.masses().to_vec();
        let system = Arc::new(system);
        let samples: Vec<Sample> = (0..3)
            .map(|k| Sample::new(system.clone(), numbers(&frames[k % frames.len()]["positions_nm"])).displaced(0.004, k as u64))
            .collect();
        let provider = m.provider(case);
        if !provider.capabilities().devices.contains(&"cuda") {
            assert!(provider.device_model(&system).is_none(), "{case}");
            continue;
        }
        testing::check_device(&*provider, &samples, 0.0005, 2.5, 10, 1e-5);
        on_devices += 1;
        // One text serves all molecules; what differs is whether there are rigid bonds, and how many atoms a block holds.
        if ["tetrapeptide-amber14-obc2", "aldp-obc-constraints-hbonds"].contains(&case) {
            testing::check_kernels_compile(&*provider, &system);
        }
    }
    assert!(on_devices >= 7, "only {on_devices} force fields have kernels");
}
