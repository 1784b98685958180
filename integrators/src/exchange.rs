//! Temperature replica exchange (Sugita & Okamoto, *Chem. Phys. Lett.* 1999): neighbouring temperatures of a ladder swap
//! their replicas with the Metropolis probability `min(1, exp((β_i − β_j)(U_i − U_j)))`. Configurations stay where they
//! are; temperatures move, and velocities are scaled by `√(T′/T)`.

use crate::ensemble::Ensemble;
use crate::error::{Result, invalid};
use crate::force::Want;
use crate::noise::{Noise, Purpose};
use serde::{Deserialize, Serialize};

/// `count` temperatures from `min` to `max`, each the same factor above the one before: for a system of constant heat
/// capacity all neighbours then swap equally often.
///
/// # Errors
/// Where the bounds are not `0 < min < max`, or there are fewer than two.
pub fn geometric_ladder(min: f64, max: f64, count: usize) -> Result<Vec<f64>> {
    if count < 2 {
        return invalid(format!("a ladder of {count} temperatures has nothing to exchange; use 2 or more"));
    }
    let ratio = max / min;
    // The ends are exact, so that they compare equal to what was asked for.
    let ladder = (0..count).map(|i| match i {
        0 => min,
        i if i == count - 1 => max,
        i => min * ratio.powf(i as f64 / (count - 1) as f64),
    });
    let ladder: Vec<f64> = ladder.collect();
    check_ladder(&ladder)?;
    Ok(ladder)
}

/// Checks that temperatures (or kT) are positive, finite and rise.
///
/// # Errors
/// Naming the first that does not.
pub fn check_ladder(ladder: &[f64]) -> Result<()> {
    if ladder.len() < 2 {
        return invalid(format!("a ladder of {} temperatures has nothing to exchange; use 2 or more", ladder.len()));
    }
    if let Some(t) = ladder.iter().find(|t| !(t.is_finite() && **t > 0.0)) {
        return invalid(format!("temperature {t} of the ladder is not positive"));
    }
    if let Some(pair) = ladder.windows(2).find(|p| p[1] <= p[0]) {
        return invalid(format!("temperatures of a ladder rise, but {} comes before {}", pair[0], pair[1]));
    }
    Ok(())
}

/// Which end of the ladder a replica saw last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    None,
    Bottom,
    Top,
}

/// All that changes during replica exchange; saved in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeState {
    /// Attempts done; each tries every second pair of neighbours.
    attempt: u64,
    /// Place on the ladder of each replica, `[copies · temperatures]`.
    rung: Vec<u32>,
    /// Attempts per pair of neighbours, all copies together.
    tried: Vec<u64>,
    /// Accepted ones among them.
    accepted: Vec<u64>,
    last_end: Vec<End>,
    /// Ways from one end to the other per replica.
    half_trips: Vec<u32>,
}

/// Replica exchange over several independent copies of one ladder. Copy `c` has replicas `c n .. (c + 1) n` for `n`
/// temperatures.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    kt: Vec<f64>,
    copies: usize,
    /// Global number of the first copy: where copies are shared out over machines, each keeps its own random numbers.
    first: u32,
    noise: Noise,
    state: ExchangeState,
}

impl Exchange {
    /// Exchange along `kt` (kJ/mol, rising). Replica `r` begins at rung `r mod n`.
    ///
    /// # Errors
    /// Where the ladder does not rise, or there are no copies.
    pub fn new(kt: Vec<f64>, copies: usize, noise: Noise) -> Result<Self> {
        check_ladder(&kt)?;
        if copies == 0 {
            return invalid("replica exchange needs at least one copy of its ladder");
        }
        let (n, replicas) = (kt.len(), kt.len() * copies);
        let mut state = ExchangeState {
            attempt: 0,
            rung: (0..replicas).map(|r| (r % n) as u32).collect(),
            tried: vec![0; n - 1],
            accepted: vec![0; n - 1],
            last_end: vec![End::None; replicas],
            half_trips: vec![0; replicas],
        };
        state.visit_ends(n);
        Ok(Exchange { kt, copies, first: 0, noise, state })
    }

    /// The same for copies `first ..` of a larger number of them, with the random numbers that they have there.
    pub fn starting_at(self, first: u32) -> Self {
        Exchange { first, ..self }
    }

    /// Number of temperatures.
    pub fn temperatures(&self) -> usize {
        self.kt.len()
    }

    /// Number of copies of the ladder.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// Number of replicas: temperatures times copies.
    pub fn replicas(&self) -> usize {
        self.state.rung.len()
    }

    /// kT of a rung in kJ/mol.
    pub fn kt(&self, rung: usize) -> f64 {
        self.kt[rung]
    }

    /// The rung where a replica is.
    pub fn rung(&self, replica: usize) -> usize {
        self.state.rung[replica] as usize
    }

    /// The replica at a rung of a copy.
    pub fn replica_at(&self, copy: usize, rung: usize) -> usize {
        let first = copy * self.kt.len();
        // Every copy holds every rung once.
        (first..first + self.kt.len()).find(|&r| self.rung(r) == rung).unwrap_or(first)
    }

    /// Gives every replica the temperature of its rung.
    ///
    /// # Errors
    /// Where the ensemble has another number of replicas.
    pub fn apply(&self, ensemble: &mut Ensemble) -> Result<()> {
        if ensemble.replicas() != self.replicas() {
            return invalid(format!(
                "{} temperatures times {} copies need {} replicas, but there are {}",
                self.temperatures(),
                self.copies,
                self.replicas(),
                ensemble.replicas()
            ));
        }
        for r in 0..self.replicas() {
            ensemble.set_kt(r, self.kt[self.rung(r)]);
        }
        Ok(())
    }

    /// Evaluates energies and tries to swap neighbours: pairs (0, 1), (2, 3), … and (1, 2), (3, 4), … in turn. Random
    /// numbers are keyed by lower rung, copy and attempt, so that a resumed run makes the same choices. Frozen replicas
    /// keep their temperature.
    ///
    /// # Errors
    /// Those of the provider.
    pub fn attempt(&mut self, ensemble: &mut Ensemble) -> Result<()> {
        ensemble.evaluate(Want::ENERGY)?;
        let n = self.kt.len();
        for copy in 0..self.copies {
            for low in ((self.state.attempt % 2) as usize..n - 1).step_by(2) {
                let (a, b) = (self.replica_at(copy, low), self.replica_at(copy, low + 1));
                if ensemble.is_frozen(a) || ensemble.is_frozen(b) {
                    continue;
                }
                self.state.tried[low] += 1;
                let log_ratio = (1.0 / self.kt[low] - 1.0 / self.kt[low + 1]) * (ensemble.energy(a) - ensemble.energy(b));
                let u = self.noise.uniform(low as u32, self.first + copy as u32, self.state.attempt, Purpose::Exchange);
                if u.ln() < log_ratio {
                    self.state.accepted[low] += 1;
                    self.state.rung.swap(a, b);
                    ensemble.set_kt(a, self.kt[low + 1]);
                    ensemble.set_kt(b, self.kt[low]);
                }
            }
        }
        self.state.attempt += 1;
        self.state.visit_ends(n);
        Ok(())
    }

    /// Tried and accepted swaps of each pair of neighbours, all copies together.
    pub fn swaps(&self) -> impl Iterator<Item = (u64, u64)> {
        self.state.tried.iter().copied().zip(self.state.accepted.iter().copied())
    }

    /// How often each replica went from the lowest temperature to the highest and back, or the other way round.
    pub fn round_trips(&self) -> impl Iterator<Item = u32> {
        self.state.half_trips.iter().map(|h| h / 2)
    }

    /// All that changes, for checkpoints.
    pub fn state(&self) -> &ExchangeState {
        &self.state
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// Where it is of another ladder.
    pub fn restore(&mut self, state: ExchangeState) -> Result<()> {
        let (n, replicas) = (self.kt.len(), self.replicas());
        let lengths = [state.rung.len(), state.last_end.len(), state.half_trips.len()];
        let mut rungs = state.rung.clone();
        rungs.sort_unstable();
        if lengths != [replicas; 3]
            || state.tried.len() != n - 1
            || state.accepted.len() != n - 1
            || !rungs.chunks(self.copies).enumerate().all(|(i, c)| c.iter().all(|&r| r as usize == i))
            || !state.rung.chunks(n).all(|c| (0..n).all(|i| c.contains(&(i as u32))))
        {
            return invalid(format!("saved exchange state is not of {n} temperatures and {} copies", self.copies));
        }
        self.state = state;
        Ok(())
    }
}

impl ExchangeState {
    /// The state of all copies of a ladder from those of `parts` of them, in order.
    ///
    /// # Errors
    /// Where they are of different ladders, or not at the same attempt.
    pub fn join(parts: &[ExchangeState]) -> Result<ExchangeState> {
        let Some((first, rest)) = parts.split_first() else { return invalid("there is no exchange state to join") };
        let mut all = first.clone();
        for part in rest {
            if part.attempt != all.attempt || part.tried.len() != all.tried.len() {
                return invalid("parts of a replica exchange are of different ladders, or not at the same attempt");
            }
            all.rung.extend(&part.rung);
            all.last_end.extend(&part.last_end);
            all.half_trips.extend(&part.half_trips);
            all.tried.iter_mut().zip(&part.tried).for_each(|(a, b)| *a += b);
            all.accepted.iter_mut().zip(&part.accepted).for_each(|(a, b)| *a += b);
        }
        Ok(all)
    }

    /// Notes who is at an end of the ladder, and who came from the other one.
    fn visit_ends(&mut self, temperatures: usize) {
        for (r, &rung) in self.rung.iter().enumerate() {
            let here = match rung as usize {
                0 => End::Bottom,
                i if i == temperatures - 1 => End::Top,
                _ => continue,
            };
            // The first arrival at an end is the start of the first trip.
            if self.last_end[r] != End::None && self.last_end[r] != here {
                self.half_trips[r] += 1;
            }
            self.last_end[r] = here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::DType;
    use crate::batch::Batch;
    use crate::dynamics::{Dynamics, DynamicsSpec, draw_velocities};
    use crate::ensemble::Guard;
    use crate::ensemble::toys::{Well, pool};
    use crate::lane::LaneProvider;
    use crate::state::State;
    use crate::system::System;
    use crate::units::{Quantity, UnitSystem};
    use std::sync::Arc;

    const DT: f64 = 0.04;

    /// `copies` ladders `kt` of one particle each, all started at x = −1.
    fn start(well: Well, kt: &[f64], copies: usize, threads: usize, seed: u64) -> (Ensemble, Exchange) {
        start_at(well, kt, 0, copies, threads, seed)
    }

    /// The same from copy `first` of a larger number on.
    fn start_at(well: Well, kt: &[f64], first: u32, copies: usize, threads: usize, seed: u64) -> (Ensemble, Exchange) {
        let mut system = System::particles("particle", 1, 1.0);
        system.axes = [true, true, false];
        let replicas = kt.len() * copies;
        let batch = Batch::uniform(Arc::new(system), replicas, first * kt.len() as u32).unwrap();
        let mut state = State::at_rest(&batch, &[-1.0, 0.0, 0.0].repeat(replicas), DType::F64).unwrap();
        let exchange = Exchange::new(kt.to_vec(), copies, Noise::new(seed)).unwrap().starting_at(first);
        for r in 0..replicas {
            state.kt[r] = kt[exchange.rung(r)];
        }
        draw_velocities(&batch, &mut state, Noise::new(seed), false);
        let spec = DynamicsSpec::Baoab { dt: Quantity::bare(DT), friction: Quantity::bare(2.0) };
        let dynamics = Dynamics::new(&spec, UnitSystem::Reduced, false).unwrap();
        let provider = LaneProvider::new(well);
        let ensemble = Ensemble::new(batch, &state, &provider, &dynamics, Noise::new(seed), pool(threads), Guard::default()).unwrap();
        (ensemble, exchange)
    }

    /// Means of `f(x, v)` per rung, and their standard errors from the independent copies.
    fn averages(
        ensemble: &mut Ensemble,
        exchange: &mut Exchange,
        attempts: usize,
        discard: usize,
        f: impl Fn(&[f64], &[f64]) -> f64,
    ) -> Vec<(f64, f64)> {
        let (n, copies) = (exchange.temperatures(), exchange.copies());
        let mut sums = vec![vec![0.0; copies]; n];
        for k in 0..attempts {
            ensemble.run(12).unwrap();
            exchange.attempt(ensemble).unwrap();
            for (rung, sums) in sums.iter_mut().enumerate() {
                for (copy, sum) in sums.iter_mut().enumerate().filter(|_| k >= discard) {
                    let r = exchange.replica_at(copy, rung);
                    assert_eq!(ensemble.kt(r), exchange.kt(rung));
                    *sum += f(&ensemble.positions(r).to_f64(), &ensemble.velocities(r).to_f64());
                }
            }
        }
        let statistics = |sums: Vec<f64>| {
            let means: Vec<f64> = sums.iter().map(|s| s / (attempts - discard) as f64).collect();
            let mean = means.iter().sum::<f64>() / copies as f64;
            let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / (copies - 1) as f64;
            (mean, (variance / copies as f64).sqrt())
        };
        sums.into_iter().map(statistics).collect()
    }

    fn check(what: &str, got: &[(f64, f64)], exact: impl Fn(usize) -> f64) {
        for (rung, &(mean, error)) in got.iter().enumerate() {
            let exact = exact(rung);
            assert!((mean - exact).abs() < 4.0 * error, "{what} at rung {rung}: {mean} ± {error} instead of {exact}");
            assert!(error < 0.1 * exact.abs(), "{what} at rung {rung}: {mean} ± {error} says nothing");
        }
    }

    /// Copies that run elsewhere make the same choices.
    #[test]
    fn parts_are_the_whole() {
        let kt = [1.0, 1.6, 2.5];
        let run = |first, copies| {
            let (mut ensemble, mut exchange) = start_at(Well::new(2.0, 0.5), &kt, first, copies, 1, 11);
            for _ in 0..40 {
                ensemble.run(9).unwrap();
                exchange.attempt(&mut ensemble).unwrap();
            }
            let x: Vec<Vec<f64>> = (0..3 * copies).map(|r| ensemble.positions(r).to_f64()).collect();
            (x, exchange.state().clone())
        };
        let (whole, parts) = (run(0, 3), [run(0, 2), run(2, 1)]);
        assert_eq!([&parts[0].0[..], &parts[1].0[..]].concat(), whole.0);
        let mut states = parts.map(|p| p.1);
        assert_eq!(ExchangeState::join(&states).unwrap(), whole.1);
        assert!(whole.1.tried.iter().zip(&whole.1.accepted).all(|(tried, accepted)| 0 < *accepted && accepted < tried));
        states[0].attempt += 1;
        assert!(ExchangeState::join(&states).is_err());
    }

    #[test]
    fn ladders() {
        let ladder = geometric_ladder(300.0, 600.0, 5).unwrap();
        assert_eq!((ladder[0], ladder[4]), (300.0, 600.0));
        assert!(ladder.windows(2).all(|p| (p[1] / p[0] - 2f64.powf(0.25)).abs() < 1e-12));
        for (min, max, n) in
            [(300.0, 600.0, 1), (600.0, 300.0, 4), (0.0, 300.0, 4), (-1.0, 1.0, 3), (1.0, f64::INFINITY, 3), (f64::NAN, 2.0, 2)]
        {
            assert!(geometric_ladder(min, max, n).is_err(), "{min} {max} {n}");
        }
        assert!(check_ladder(&[1.0, 1.0]).is_err());
        assert!(Exchange::new(vec![1.0, 2.0], 0, Noise::new(0)).is_err());
    }

    #[test]
    fn every_temperature_is_right_in_a_harmonic_well() {
        let kt = geometric_ladder(0.5, 2.0, 4).unwrap();
        let run = |f: fn(&[f64], &[f64]) -> f64| {
            let (mut ensemble, mut exchange) = start(Well::new(0.0, 1.0), &kt, 48, 2, 11);
            averages(&mut ensemble, &mut exchange, 600, 100, f)
        };
        check("x²", &run(|x, _| x[0] * x[0]), |rung| kt[rung]);
        // BAOAB's on-step velocities are low by (ω dt)²/4.
        check("v²", &run(|_, v| v[1] * v[1]), |rung| kt[rung] * (1.0 - DT * DT / 4.0));
        check("x⁴", &run(|x, _| x[0].powi(4)), |rung| 3.0 * kt[rung] * kt[rung]);
    }

    #[test]
    fn every_temperature_is_right_in_a_double_well() {
        // The coldest replicas alone would hardly ever cross: the barrier is 12 kT.
        let kt = geometric_ladder(0.25, 2.0, 6).unwrap();
        let well = || Well::new(3.0, 0.5);
        let (mut ensemble, mut exchange) = start(well(), &kt, 64, 2, 5);
        let right = averages(&mut ensemble, &mut exchange, 1500, 500, |x, _| f64::from(u8::from(x[0] > 0.0)));
        check("P(x > 0)", &right, |_| 0.5);
        let (mut ensemble, mut exchange) = start(well(), &kt, 64, 2, 6);
        let squares = averages(&mut ensemble, &mut exchange, 600, 100, |x, _| x[0] * x[0]);
        check("x²", &squares, |rung| {
            let points = (-4000..=4000).map(|i| f64::from(i) * 1e-3);
            let (top, bottom) = points.fold((0.0, 0.0), |(top, bottom), x| {
                let w = (-well().energy(x) / kt[rung]).exp();
                (top + w * x * x, bottom + w)
            });
            top / bottom
        });
        assert!(exchange.swaps().all(|(tried, accepted)| tried == 300 * 64 && accepted > tried / 10 && accepted < tried));
        assert!(exchange.round_trips().sum::<u32>() > 100);
    }

    #[test]
    fn continues_bitwise_whatever_the_threads() {
        let kt = [0.5, 0.8, 1.1, 1.9];
        let advance = |ensemble: &mut Ensemble, exchange: &mut Exchange, n| {
            for _ in 0..n {
                ensemble.run(7).unwrap();
                exchange.attempt(ensemble).unwrap();
            }
        };
        let (mut ensemble, mut exchange) = start(Well::new(2.0, 1.0), &kt, 5, 1, 3);
        advance(&mut ensemble, &mut exchange, 9);
        let (state, saved) = (ensemble.state(), exchange.state().clone());
        advance(&mut ensemble, &mut exchange, 8);
        let (mut ensemble_2, mut exchange_2) = start(Well::new(2.0, 1.0), &kt, 5, 3, 3);
        ensemble_2.restore(&state, &[false; 20]).unwrap();
        exchange_2.restore(saved).unwrap();
        advance(&mut ensemble_2, &mut exchange_2, 8);
        assert_eq!(ensemble.state(), ensemble_2.state());
        assert_eq!(exchange, exchange_2);
    }

    #[test]
    fn refuses_states_of_other_ladders() {
        let mut exchange = Exchange::new(vec![1.0, 2.0, 3.0], 2, Noise::new(0)).unwrap();
        let other = Exchange::new(vec![1.0, 2.0], 3, Noise::new(0)).unwrap();
        assert!(exchange.restore(other.state().clone()).is_err());
        let mut doubled = exchange.state().clone();
        doubled.rung[0] = 1;
        assert!(exchange.restore(doubled).is_err());
        let mut mixed = exchange.state().clone();
        mixed.rung.swap(0, 5);
        assert!(exchange.restore(mixed).is_err());
        let mut swapped = exchange.state().clone();
        swapped.rung.swap(0, 2);
        exchange.restore(swapped).unwrap();
        assert_eq!((exchange.replica_at(0, 0), exchange.replica_at(1, 0)), (2, 3));
    }
}
