//! PaiNN in cells and large systems: images, lists, derivatives, conservation, refusals, domains.

use super::config::{Head, Layout, PainnConfig};
use super::model::{Output as Meaning, PainnModel};
use super::network::{Parameters, Work};
use super::provider::PainnProvider;
use super::surroundings::{LIST_FROM, Surroundings};
use crate::local::{Domain, DomainOutput, LocalForces, Neighbours};
use crate::testing::{self, Sample};
use scorefield_integrators::{
    Batch, Context, DType, Dynamics, DynamicsSpec, ForceProvider, Noise, Output, Propagator, Purpose, Quantity, State, System, UnitSystem,
    Want,
};
use std::sync::Arc;

/// Ethanol at its minimum (Å).
const ETHANOL: [(u32, [f64; 3]); 9] = [
    (6, [-1.19, -0.25, 0.0]),
    (6, [0.0, 0.56, 0.0]),
    (8, [1.19, -0.2, 0.0]),
    (1, [-2.1, 0.37, 0.0]),
    (1, [-1.21, -0.89, 0.89]),
    (1, [-1.21, -0.89, -0.89]),
    (1, [0.04, 1.2, 0.89]),
    (1, [0.04, 1.2, -0.89]),
    (1, [1.92, 0.4, 0.0]),
];

fn model(head: Head) -> PainnModel {
    let config = PainnConfig { features: 16, layers: 2, radial: 20, cutoff: 5.0, head, head_layers: 2, ..PainnConfig::default() };
    let layout = Layout::new(&config);
    let padded = layout.initialise(Noise::new(3));
    PainnModel {
        values: layout.map.iter().map(|&p| padded[p]).collect(),
        config,
        output: if head == Head::Energy {
            Meaning::Energy { unit: 20.0, per_atom: -3.0 }
        } else {
            Meaning::Displacement { stiffness: 9e3 }
        },
        references: Vec::new(),
        types: vec![1, 6, 8],
        noise: None,
        command: "test".into(),
        seed: 3,
    }
}

/// `count³` ethanols, moved and a little displaced, `apart` nm from each other; the cell is sheared where `skew`.
fn liquid(count: usize, apart: f64, skew: f64) -> Sample {
    let mut types = Vec::new();
    let mut x = Vec::new();
    for site in 0..count.pow(3) {
        let place = [site / count / count, site / count % count, site % count].map(|k| k as f64 * apart);
        for (i, (z, r)) in ETHANOL.iter().enumerate() {
            let noise = Noise::new(8).normals(i as u32, site as u32, 0, Purpose::Displacement);
            types.push(*z);
            x.extend((0..3).map(|k| 0.1 * r[(k + site) % 3] + place[k] + 0.005 * noise[k]));
        }
    }
    let mut system = System::particles("ethanol", types.len(), 12.0);
    system.masses = types.iter().map(|z| if *z == 1 { 1.008 } else { 2.0 * f64::from(*z) }).collect();
    system.types = types;
    let side = count as f64 * apart;
    Sample { cell: Some([side, 0.0, 0.0, skew * side, side, 0.0, 0.0, -0.1 * skew * side, side]), ..Sample::new(system, x) }
}

#[test]
fn forces_and_virial_are_derivatives_of_the_energy() {
    let mut provider = PainnProvider::new(model(Head::Energy));
    for sample in [liquid(2, 0.52, 0.0), liquid(2, 0.55, 0.2)] {
        // Differences see that the second derivative of the cosine jumps at the cutoff.
        testing::check_forces(&mut provider, &sample, 1e-5);
        testing::check_virial(&mut provider, &sample, 1e-5);
        testing::check_permutation(&mut provider, &sample, 1e-10);
        testing::check_rigid_motion(&mut provider, &sample, 1e-9);
        testing::check_virial(&mut provider, &Sample { cell: None, ..sample }, 1e-5);
    }
    testing::check_batch_invariance(&mut provider, &[liquid(2, 0.55, 0.0), liquid(3, 0.5, 0.0), liquid(1, 1.1, 0.2)]);
}

/// Two layers see 1 nm far, and forces come from energies that near: within two images of the cell everything is there.
#[test]
fn a_cell_is_the_open_system_of_all_its_images() {
    let sample = liquid(2, 0.55, 0.15);
    let cell = sample.cell.unwrap();
    let n = sample.system.len();
    let mut many = System::particles("images", 125 * n, 1.0);
    let mut x = Vec::new();
    many.types.clear();
    // The cell itself comes first.
    for image in (62..125).chain(0..62) {
        let shift = [image / 25, image / 5 % 5, image % 5].map(|k| f64::from(k) - 2.0);
        many.types.extend(&sample.system.types);
        x.extend(sample.positions.iter().enumerate().map(|(k, x)| x + (0..3).map(|v| shift[v] * cell[3 * v + k % 3]).sum::<f64>()));
    }
    let want = Want { atom_energy: true, ..Want::ENERGY };
    let mut provider = PainnProvider::new(model(Head::Energy));
    let all = testing::evaluate(&mut provider, &[Sample::new(many, x)], DType::F64, want);
    let one = testing::evaluate(&mut provider, std::slice::from_ref(&sample), DType::F64, want);
    let alone = testing::evaluate(&mut provider, &[Sample { cell: None, ..sample }], DType::F64, want);
    assert!((one.energy[0] - alone.energy[0]).abs() > 1e-3, "images change nothing");
    for (a, b) in one.atom_energy.iter().zip(&all.atom_energy) {
        assert!((a - b).abs() < 1e-10 * b.abs(), "{a} {b}");
    }
    let (one, all) = (one.forces.to_f64(), all.forces.to_f64());
    let size = one.iter().fold(0.0f64, |m, f| m.max(f.abs()));
    assert!(one.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-10 * size));
}

#[test]
fn lists_and_all_pairs_give_the_same_bits() {
    let model = model(Head::Energy);
    let layout = Layout::new(&model.config);
    let mut p = Parameters::<f32>::new(&model.config, Arc::new(layout.clone()));
    p.load(&layout.pad(&model.values).iter().map(|&v| v as f32).collect::<Vec<_>>());
    let sample = liquid(3, 0.55, 0.0);
    assert!(sample.system.len() >= LIST_FROM);
    let mut x: Vec<f64> = sample.positions.iter().map(|x| 10.0 * x).collect();
    let mut surroundings = Surroundings::default();
    for step in 0..8 {
        let energies = |work: &mut Work<f32>| {
            work.forward(&p);
            (0..work.atoms()).map(|i| work.energy(i)).collect::<Vec<f32>>()
        };
        let (mut listed, mut all) = (Work::<f32>::new(false, false), Work::<f32>::new(false, false));
        for work in [&mut listed, &mut all] {
            work.reserve(&model.config, sample.system.len(), 0);
        }
        surroundings.add(&mut listed, &model.config, &sample.system.types, &x, 0.0, None).unwrap();
        all.add(&model.config, &sample.system.types, &x, 0.0);
        assert_eq!(energies(&mut listed), energies(&mut all), "step {step}");
        // Farther than the skin in the end.
        x.iter_mut().enumerate().for_each(|(k, x)| *x += 0.25 * ((k % 5) as f64 - 2.0) * f64::from(step % 3));
    }
}

#[test]
fn energy_is_conserved_in_a_cell() {
    let run = |dt: &str, steps: usize| {
        let sample = liquid(3, 0.5, 0.0);
        let batch = Batch::uniform(sample.system.clone(), 1, 0).unwrap();
        let mut state = State::at_rest(&batch, &sample.positions, DType::F64).unwrap();
        state.cells = Some(vec![sample.cell.unwrap()]);
        state.kt.fill(5.0);
        scorefield_integrators::dynamics::draw_velocities(&batch, &mut state, Noise::new(3), true);
        let spec = DynamicsSpec::Verlet { dt: dt.parse::<Quantity>().unwrap() };
        let mut dynamics = Dynamics::new(&spec, UnitSystem::Si, false).unwrap();
        let mut provider = PainnProvider::new(model(Head::Energy));
        let mut out = Output::new(&batch, DType::F64, Want::ENERGY);
        let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut provider, out: &mut out, noise: Noise::new(3) };
        dynamics.prepare(&mut ctx).unwrap();
        let mut energies = Vec::new();
        for _ in 0..steps {
            dynamics.step(&mut ctx).unwrap();
            ctx.evaluate(Want::ENERGY).unwrap();
            energies.push(ctx.out.energy[0] + ctx.state.kinetic_energy(ctx.batch, 0));
        }
        let moved = (0..3 * batch.atoms()).map(|k| (ctx.state.phase.get(k) - sample.positions[k]).abs()).fold(0.0, f64::max);
        assert!(moved > 0.06, "atoms moved only {moved} nm; the list was never made anew");
        let mean = energies.iter().sum::<f64>() / energies.len() as f64;
        (energies.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / energies.len() as f64).sqrt()
    };
    let (coarse, fine) = (run("1 fs", 50), run("0.5 fs", 100));
    println!("total energy of {} atoms at 600 K: ±{coarse:.2e} kJ/mol at 1 fs, ±{fine:.2e} at 0.5 fs", 243);
    // Second order.
    assert!(coarse / fine > 3.0 && coarse / fine < 5.0, "{coarse} {fine}");
}

#[test]
fn cells_that_do_not_fit_are_refused() {
    let refused = |head: Head, cell: [f64; 9]| {
        let sample = Sample { cell: Some(cell), ..liquid(1, 1.1, 0.0) };
        let batch = Batch::uniform(sample.system.clone(), 1, 0).unwrap();
        let mut state = State::at_rest(&batch, &sample.positions, DType::F32).unwrap();
        state.cells = Some(vec![cell]);
        let mut provider = PainnProvider::new(model(head));
        provider.prepare(&batch, DType::F32).unwrap();
        let mut out = Output::new(&batch, DType::F32, Want::FORCES);
        let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut provider, out: &mut out, noise: Noise::new(3) };
        ctx.evaluate(Want::FORCES).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let cube = |side: f64| [side, 0.0, 0.0, 0.0, side, 0.0, 0.0, 0.0, side];
    assert_eq!(refused(Head::Energy, cube(1.0)), "");
    assert!(refused(Head::Energy, cube(0.98)).contains("half the smallest height of the cell, 0.4900 nm"));
    assert!(refused(Head::Energy, [1.0; 9]).contains("no volume"));
    assert!(refused(Head::Direct, cube(5.0)).contains("periodic cell"));
}

/// The engine's lists; they are not needed.
struct Nothing;

impl Neighbours for Nothing {
    fn of(&self, _: usize) -> &[i32] {
        &[]
    }

    fn mask(&self) -> i32 {
        i32::MAX
    }
}

#[test]
fn domains_with_their_ghosts_add_up_to_the_cell() {
    let provider = PainnProvider::new(model(Head::Energy));
    let mut local = provider.local().unwrap();
    assert!((local.range() - 1.0).abs() < 1e-12);
    let sample = liquid(2, 0.52, 0.0);
    let (side, n) = (sample.cell.unwrap()[0], sample.system.len());
    let mut provider = provider;
    let want = Want { virial: true, ..Want::ENERGY };
    let whole = testing::evaluate(&mut provider, std::slice::from_ref(&sample), DType::F64, want);
    for cut in [0.3, 0.6] {
        let (mut energy, mut virial, mut forces) = (0.0, [0.0; 9], vec![0.0; 3 * n]);
        for half in [true, false] {
            let own = |i: usize| (sample.positions[3 * i] < cut) == half;
            let (low, high) = if half { (-1.0, cut) } else { (cut, 2.0) };
            let mut owner: Vec<usize> = (0..n).filter(|&i| own(i)).collect();
            let owned = owner.len();
            let mut x: Vec<f64> = owner.iter().flat_map(|&i| sample.positions[3 * i..3 * i + 3].to_vec()).collect();
            for image in 0..125 {
                let shift = [image / 25, image / 5 % 5, image % 5].map(|k| (f64::from(k) - 2.0) * side);
                for i in (0..n).filter(|&i| image != 62 || !own(i)) {
                    let at = [0, 1, 2].map(|k| sample.positions[3 * i + k] + shift[k]);
                    let range = local.range();
                    if at[0] > low - range && at[0] < high + range && at[1..].iter().all(|x| *x > -0.3 - range && *x < side + range) {
                        owner.push(i);
                        x.extend(at);
                    }
                }
            }
            let types: Vec<u32> = owner.iter().map(|&i| sample.system.types[i]).collect();
            let domain = Domain { positions: &x, types: &types, owned, neighbours: &Nothing };
            let (mut on, mut atoms) = (vec![f64::NAN; x.len()], vec![f64::NAN; owned]);
            let mut out = DomainOutput { forces: &mut on, atom_energy: Some(&mut atoms), energy: 0.0, virial: [0.0; 9] };
            local.evaluate(&domain, &mut out).unwrap();
            energy += out.energy;
            virial.iter_mut().zip(out.virial).for_each(|(v, w)| *v += w);
            let sum = out.energy;
            assert!((atoms.iter().sum::<f64>() / sum - 1.0).abs() < 1e-12);
            for (&i, f) in owner.iter().zip(on.chunks_exact(3)) {
                (0..3).for_each(|k| forces[3 * i + k] += f[k]);
            }
        }
        assert!((energy / whole.energy[0] - 1.0).abs() < 1e-12, "{energy} {}", whole.energy[0]);
        let close = |a: &[f64], b: &[f64]| {
            let size = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10 * size)
        };
        assert!(close(&forces, &whole.forces.to_f64()) && close(&virial, &whole.virial[0]));
    }
    assert!(PainnProvider::new(model(Head::Direct)).local().is_err());
    let (mut on, domain) = ([0.0; 3], Domain { positions: &[0.0; 3], types: &[7], owned: 1, neighbours: &Nothing });
    let mut out = DomainOutput { forces: &mut on, atom_energy: None, energy: 0.0, virial: [0.0; 9] };
    assert!(local.evaluate(&domain, &mut out).unwrap_err().to_string().contains("element 7"));
}
