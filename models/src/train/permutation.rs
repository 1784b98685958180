//! Shuffles that are computed, not stored: which frame comes next depends on the seed, the epoch and the place alone, so
//! that a run can be stopped anywhere.

use scorefield_integrators::{Noise, Purpose};

/// A permutation of `0..n`: a Feistel network on the next power of four, walked until it lands inside.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    noise: Noise,
    epoch: u64,
    n: u64,
    half_bits: u32,
}

const ROUNDS: u32 = 6;

impl Permutation {
    /// The permutation of `n` numbers in `epoch`.
    pub fn new(noise: Noise, epoch: u64, n: usize) -> Self {
        let n = n as u64;
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Permutation { noise, epoch, n, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Where `i < n` goes.
    pub fn at(&self, i: usize) -> usize {
        let mask = (1u64 << self.half_bits) - 1;
        let mut x = i as u64;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for round in 0..ROUNDS {
                let bits = self.noise.bits(right as u32, 1 + round, self.epoch, Purpose::TrainingChoice);
                (left, right) = (right, left ^ (u64::from(bits[0]) & mask));
            }
            x = left << self.half_bits | right;
            if x < self.n {
                return x as usize;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once() {
        for n in [1usize, 2, 3, 17, 256, 1000] {
            let mut seen = vec![false; n];
            let p = Permutation::new(Noise::new(4), 7, n);
            (0..n).for_each(|i| assert!(!std::mem::replace(&mut seen[p.at(i)], true), "{n}: {i}"));
        }
        let (a, b) = (Permutation::new(Noise::new(4), 0, 1000), Permutation::new(Noise::new(4), 1, 1000));
        let same = (0..1000).filter(|&i| a.at(i) == b.at(i)).count();
        let fixed = (0..1000).filter(|&i| a.at(i) == i).count();
        assert!(same < 10 && fixed < 10, "{same} {fixed}");
        // Places are spread evenly: the mean of the first half is that of all.
        let mean = (0..500).map(|i| a.at(i) as f64).sum::<f64>() / 500.0;
        assert!((mean - 499.5).abs() < 5.0 * 288.7 / 500f64.sqrt() * 0.5f64.sqrt() * 1.5, "{mean}");
    }
}
