//! Training on energies and forces of a potential that is known.

use super::config::{Head, PainnConfig};
use super::potential::{Plan, Structures, Sums, Trainer};
use super::trainer::Rate;
use crate::train::{AdamW, Clip, CosineSchedule, Ema, StateFile};
use scorefield_integrators::{Noise, Purpose};
use std::path::Path;
use std::sync::Arc;

/// Bent three-atom molecules with springs between all atoms: energy and forces.
fn springs(x: &[f64]) -> (f64, Vec<f64>) {
    let (mut energy, mut forces) = (0.0, vec![0.0; 9]);
    for (i, j, length) in [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.6)] {
        let r = [0, 1, 2].map(|k| x[3 * j + k] - x[3 * i + k]);
        let d = r.iter().map(|r| r * r).sum::<f64>().sqrt();
        energy += 2.0 * (d - length).powi(2);
        for k in 0..3 {
            let f = -4.0 * (d - length) * r[k] / d;
            forces[3 * j + k] += f;
            forces[3 * i + k] -= f;
        }
    }
    (energy, forces)
}

fn data(count: usize) -> Arc<Structures> {
    let mut all = Structures { offsets: vec![0], ..Structures::default() };
    let rest = [0.0, 0.0, 0.1, 0.0, 0.8, -0.5, 0.0, -0.8, -0.5];
    for s in 0..count {
        let noise: Vec<f64> = (0..3).flat_map(|i| Noise::new(4).normals(i, s as u32, 0, Purpose::Displacement)).collect();
        let x: Vec<f64> = rest.iter().zip(&noise).map(|(x, z)| x + 0.1 * z).collect();
        let (energy, forces) = springs(&x);
        all.types.extend([8, 1, 1]);
        all.positions.extend(x);
        all.forces.extend(forces);
        all.energies.push(energy);
        all.offsets.push(all.types.len());
        if s % 4 == 3 { all.validation.push(s as u32) } else { all.training.push(s as u32) }
    }
    all.test = all.validation.clone();
    Arc::new(all)
}

fn plan(steps: u64) -> Plan {
    let config =
        PainnConfig { features: 16, layers: 2, radial: 12, cutoff: 4.0, head: Head::Energy, head_layers: 2, ..PainnConfig::default() };
    Plan {
        config,
        energy_weight: 0.1,
        force_weight: 1.0,
        batch: 10,
        rate: Rate::Cosine(CosineSchedule { peak: 5e-3, floor: 1e-5, warmup: 0, steps }),
        adam: AdamW { weight_decay: 0.0, ..AdamW::default() },
        clip: Some(Clip::Norm(10.0)),
        ema: Ema { decay: 0.98 },
        seed: 5,
    }
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn training_learns_energies_and_forces() {
    let (before, after): (Sums, Sums) = in_pool(2, || {
        let mut trainer = Trainer::<f32>::new(plan(600), data(80)).unwrap();
        let before = trainer.validate();
        while !trainer.is_done() {
            assert!(trainer.step());
        }
        assert_eq!(trainer.validate(), trainer.test());
        (before, trainer.validate())
    });
    let ([[e, _], [f, _]], [[energy, _], [force, _]]) = (before.errors(), after.errors());
    println!("energies {e:.4} to {energy:.4}, forces {f:.4} to {force:.4}");
    assert_eq!((after.structures, after.components), (20, 180));
    assert!(energy < 0.1 * e && force < 0.1 * f, "energies {e} to {energy}, forces {f} to {force}");
}

#[test]
fn training_has_the_same_bits_for_any_threads_and_interruptions() {
    let run = |threads: usize, stop: Option<u64>| {
        in_pool(threads, || {
            let mut trainer = Trainer::<f32>::new(plan(12), data(20)).unwrap();
            while !trainer.is_done() {
                assert!(trainer.step());
                if stop == Some(trainer.counters().step) {
                    let saved = trainer.save(serde_json::json!({})).to_bytes().unwrap();
                    trainer = Trainer::new(plan(12), data(20)).unwrap();
                    trainer.restore(StateFile::from_bytes(Path::new("state"), &saved).unwrap(), Path::new("state")).unwrap();
                }
            }
            trainer.averaged()
        })
    };
    let plain = run(1, None);
    assert_eq!(plain, run(3, None));
    assert_eq!(plain, run(2, Some(5)));
}

#[test]
fn plateaus_halve_the_rate_and_stop() {
    let rate = Rate::Plateau { rate: 1e-3, patience: 2, stop: 3, steps: 1000 };
    let mut trainer = Trainer::<f32>::new(Plan { rate, ..plan(0) }, data(20)).unwrap();
    trainer.judge(1.0);
    trainer.judge(1.5);
    assert_eq!(trainer.rate(), 1e-3);
    trainer.judge(1.2);
    assert!(trainer.rate() == 5e-4 && !trainer.is_done());
    trainer.judge(0.9);
    (0..3).for_each(|_| trainer.judge(2.0));
    assert!(trainer.is_done() && trainer.counters().progress.best == Some(0.9));
}

#[test]
fn plans_and_data_that_make_no_sense_are_refused() {
    let refused = |plan: Plan, data: Structures| Trainer::<f32>::new(plan, Arc::new(data)).map(|_| ()).unwrap_err().to_string();
    let (good, data) = (plan(3), Structures::clone(&data(8)));
    assert!(refused(Plan { batch: 0, ..good.clone() }, data.clone()).contains("batch"));
    assert!(refused(Plan { force_weight: -1.0, ..good.clone() }, data.clone()).contains("force-weight"));
    assert!(refused(Plan { force_weight: 0.0, energy_weight: 0.0, ..good.clone() }, data.clone()).contains("nothing to learn"));
    let direct = PainnConfig { head: Head::Direct, ..good.config.clone() };
    assert!(refused(Plan { config: direct, ..good.clone() }, data.clone()).contains("head"));
    assert!(refused(good.clone(), Structures { training: vec![], ..data.clone() }).contains("nothing to train on"));
    assert!(refused(good.clone(), Structures { energies: vec![], ..data.clone() }).contains("an energy"));
    let mut odd = data;
    odd.types[0] = 100;
    assert!(refused(good, odd).contains("atomic numbers"));
}
