use super::*;
use crate::batch::Batch;
use crate::dynamics::{Dynamics, DynamicsSpec, draw_velocities};
use crate::ensemble::toys::{Plain, Well, pool};
use crate::ensemble::{Guard, OnDivergence};
use crate::exchange::{Exchange, ExchangeState};
use crate::force::{Capabilities, ForceProvider};
use crate::lane::LaneProvider;
use crate::metropolis::{Metropolis, MetropolisSpec};
use crate::noise::Noise;
use crate::propagator::Propagator;
use crate::system::System;
use crate::units::{Quantity, UnitSystem};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Processes that are threads of one.
struct Channels {
    rank: usize,
    to: Vec<Mutex<Sender<Vec<u8>>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Channels {
    fn new(ranks: usize) -> Vec<Arc<Channels>> {
        let mut all: Vec<_> = (0..ranks).map(|rank| Channels { rank, to: Vec::new(), from: Vec::new() }).collect();
        for a in 0..ranks {
            for b in 0..ranks {
                let (to, from) = channel();
                all[a].to.push(Mutex::new(to));
                all[b].from.push(Mutex::new(from));
            }
        }
        all.into_iter().map(Arc::new).collect()
    }
}

impl Messages for Channels {
    fn rank(&self) -> usize {
        self.rank
    }
    fn ranks(&self) -> usize {
        self.to.len()
    }
    fn send(&self, to: usize, message: &[u8]) -> Result<()> {
        self.to[to].lock().unwrap().send(message.to_vec()).map_err(|e| Error::Invalid(e.to_string()))
    }
    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        self.from[from].lock().unwrap().recv().map_err(|e| Error::Invalid(e.to_string()))
    }
}

const TEMPERATURES: [f64; 3] = [0.5, 0.8, 1.2];

fn well() -> LaneProvider<Well> {
    LaneProvider::new(Well::new(2.0, 0.5))
}

fn plain() -> Plain {
    Plain(Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("plain") })
}

fn baoab(dt: f64) -> Dynamics {
    let spec = DynamicsSpec::Baoab { dt: Quantity::bare(dt), friction: Quantity::bare(1.0) };
    Dynamics::new(&spec, UnitSystem::Reduced, false).unwrap()
}

/// Replicas `which` of `all`, of one to three atoms unless `uniform`.
fn part(all: usize, which: Range<usize>, uniform: bool, dtype: DType) -> (Batch, State) {
    let systems: Vec<Arc<System>> = (1..=3).map(|n| Arc::new(System::particles(format!("{n}"), n, n as f64))).collect();
    let size = |b: usize| if uniform { 1 } else { b % 3 };
    let batch = Batch::new((0..all).map(|b| systems[size(b)].clone()).collect(), (0..all as u32).collect()).unwrap();
    let x: Vec<f64> = (0..3 * batch.atoms()).map(|k| 0.1 + 0.01 * k as f64).collect();
    let mut state = State::at_rest(&batch, &x, dtype).unwrap();
    (0..all).for_each(|r| state.kt[r] = TEMPERATURES[r % 3]);
    draw_velocities(&batch, &mut state, Noise::new(7), false);
    let part = batch.select(&which.clone().collect::<Vec<_>>()).unwrap();
    let shown = Shown::part(&batch, &state, which, Fetch::ALL).unwrap();
    (part, shown.state)
}

/// Runs `look` on `replicas` in `ranks` processes.
fn with<T>(
    replicas: usize,
    ranks: usize,
    uniform: bool,
    dtype: DType,
    guard: Guard,
    provider: &(dyn Fn() -> Box<dyn ForceProvider> + Sync),
    propagator: &(dyn Fn() -> Box<dyn Propagator> + Sync),
    look: impl FnOnce(&mut Ensemble) -> T,
) -> T {
    let all = Channels::new(ranks);
    let shares = shares(replicas, ranks, dtype).unwrap();
    std::thread::scope(|scope| {
        for (messages, share) in all[1..].iter().zip(&shares[1..]) {
            scope.spawn(move || {
                let make = |state: &State, task: &str| {
                    assert_eq!(task, "a test");
                    // Root's state counts, not this one.
                    let (batch, mut own) = part(replicas, share.clone(), uniform, dtype);
                    own.phase.fill(f64::NAN);
                    assert_eq!(own.kt, state.kt);
                    let made = Ensemble::new(batch, state, &*provider(), &*propagator(), Noise::new(7), pool(2), guard);
                    made.map_err(|e| e.to_string())
                };
                serve(&**messages, make).unwrap();
            });
        }
        let (batch, state) = part(replicas, shares[0].clone(), uniform, dtype);
        let near = Ensemble::new(batch, &state, &*provider(), &*propagator(), Noise::new(7), pool(2), guard).unwrap();
        let (batch, state) = part(replicas, 0..replicas, uniform, dtype);
        let mut whole = near.across(batch, &state, all[0].clone(), &shares, "a test").unwrap();
        let result = look(&mut whole);
        dismiss(&*all[0]).unwrap();
        result
    })
}

/// Everything that a run shows: states, forces, energies and exchange.
fn exchange(ensemble: &mut Ensemble) -> (State, Vec<Vec<f64>>, Vec<f64>, ExchangeState) {
    let replicas = ensemble.replicas();
    let mut exchange = Exchange::new(TEMPERATURES.to_vec(), replicas / 3, Noise::new(7)).unwrap();
    let mut energies = Vec::new();
    let mut middle = None;
    for k in 0..12 {
        ensemble.run(7).unwrap();
        exchange.attempt(ensemble).unwrap();
        energies.extend((0..replicas).map(|r| ensemble.energy(r)));
        if k == 5 {
            ensemble.fetch(Fetch::VELOCITIES).unwrap();
            energies.extend((0..replicas).map(|r| ensemble.kinetic_energy(r)));
            ensemble.fetch(Fetch::ALL).unwrap();
            middle = Some((ensemble.state(), exchange.state().clone()));
        }
        if k == 8 {
            let (state, swaps) = middle.take().unwrap();
            ensemble.restore(&state, &vec![false; replicas]).unwrap();
            exchange.restore(swaps).unwrap();
        }
    }
    ensemble.fetch(Fetch::ALL).unwrap();
    let forces = (0..replicas).map(|r| ensemble.forces(r).to_f64()).collect();
    assert_eq!(ensemble.step(), 7 * 9);
    (ensemble.state(), forces, energies, exchange.state().clone())
}

#[test]
fn runs_are_the_same_bits_in_any_number_of_processes() {
    for (uniform, dtype) in [(true, DType::F32), (false, DType::F64)] {
        let run = |ranks| {
            let provider = || -> Box<dyn ForceProvider> { if uniform { Box::new(well()) } else { Box::new(plain()) } };
            with(33, ranks, uniform, dtype, Guard::default(), &provider, &|| Box::new(baoab(0.05)), exchange)
        };
        let one = run(1);
        assert!(one.3 != Exchange::new(TEMPERATURES.to_vec(), 11, Noise::new(7)).unwrap().state().clone());
        for ranks in [2, 3, 5] {
            assert_eq!(run(ranks), one, "{ranks} processes");
        }
    }
}

#[test]
fn trial_moves_are_counted_in_all_processes() {
    let accepted = |ranks| {
        let mala = || -> Box<dyn Propagator> {
            let spec = MetropolisSpec { dt: Quantity::bare(0.4), leapfrog: 1, friction: None };
            Box::new(Metropolis::new(&spec, UnitSystem::Reduced, false).unwrap())
        };
        with(12, ranks, true, DType::F64, Guard::default(), &|| Box::new(well()), &mala, |ensemble| {
            ensemble.run(50).unwrap();
            ensemble.acceptance().unwrap()
        })
    };
    let one = accepted(1);
    assert!(one.tried == 600 && one.accepted < 600 && one.accepted > 60, "{one:?}");
    assert_eq!(accepted(3), one);
}

#[test]
fn divergence_elsewhere_is_handled_here() {
    let guard = |policy| Guard { policy, ..Guard::default() };
    // ω dt > 2: every replica explodes within some steps.
    let run = |policy, look: &mut dyn FnMut(&mut Ensemble)| {
        with(6, 3, false, DType::F64, guard(policy), &|| Box::new(plain()), &|| Box::new(baoab(3.0)), |e| look(e));
    };
    run(OnDivergence::Freeze, &mut |ensemble| {
        (0..40).for_each(|_| ensemble.run(5).unwrap());
        assert!((0..6).all(|r| ensemble.is_frozen(r)));
        let mut who: Vec<u32> = ensemble.take_divergences().iter().map(|d| d.replica).collect();
        who.sort_unstable();
        assert_eq!(who, [0, 1, 2, 3, 4, 5]);
        assert!(ensemble.take_divergences().is_empty());
        ensemble.fetch(Fetch::ALL).unwrap();
        assert!(ensemble.state().phase.to_f64().iter().all(|x| x.abs() <= 1e6));
    });
    run(OnDivergence::Stop, &mut |ensemble| {
        let error = (0..200).find_map(|_| ensemble.run(5).err()).expect("diverges");
        assert!(matches!(error, Error::Diverged { .. }), "{error}");
        assert!((0..6).all(|r| ensemble.last_good_positions(r).to_f64().iter().all(|x| x.abs() <= 1e6)));
    });
}

#[test]
fn what_goes_wrong_in_another_process_is_said() {
    let all = Channels::new(2);
    let shares = shares(4, 2, DType::F64).unwrap();
    let (batch, state) = part(4, shares[0].clone(), true, DType::F64);
    let near = Ensemble::new(batch, &state, &well(), &baoab(0.05), Noise::new(7), pool(1), Guard::default()).unwrap();
    let (batch, state) = part(4, 0..4, true, DType::F64);
    let other = all[1].clone();
    let thread = std::thread::spawn(move || serve(&*other, |_, _| Err("no such file".into())));
    let message = near.across(batch, &state, all[0].clone(), &shares, "a test").err().unwrap().to_string();
    assert_eq!(message, "process 1: no such file");
    dismiss(&*all[0]).unwrap();
    thread.join().unwrap().unwrap();

    let (head, body) = Head::of(&state);
    let message = pack(&Order { kt: vec![(1, 0.3)], command: Command::Begin(head, String::new()) }, &body).unwrap();
    for cut in [0, 7, 8, 20, message.len() - body.len() - 1] {
        assert!(unpack::<Order>(&message[..cut]).err().unwrap().to_string().contains("makes no sense"), "{cut}");
    }
    let few = super::shares(3, 4, DType::F32).err().unwrap().to_string();
    assert!(few.contains("4 processes cannot share out 3 replicas"), "{few}");
    assert_eq!(super::shares(64, 3, DType::F64).unwrap().last().unwrap().end, 64);
}
