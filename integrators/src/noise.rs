//! Counter-based noise: Philox4x32-10 (Salmon et al., SC'11), keyed by the seed and counted by atom, replica and step, so
//! that a trajectory does not depend on how replicas are batched, sharded or restarted.

use crate::simd::{Lanes, MAX_LANES};

/// What a random number is for; numbers of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Ornstein–Uhlenbeck step of Langevin dynamics.
    Thermostat = 0,
    /// Overdamped Langevin dynamics.
    Overdamped = 1,
    /// Velocities drawn at the start.
    InitialVelocity = 2,
    /// Replica exchange: counter `atom` is the index of the lower temperature.
    Exchange = 3,
    /// Random displacement of start structures.
    Displacement = 4,
    /// Resampling in error estimates.
    Bootstrap = 5,
    /// Start of a generative process: pure noise.
    Prior = 6,
    /// Noise of a reverse diffusion.
    Diffusion = 7,
    /// Noise that a denoising step adds.
    Denoising = 8,
    /// Noise added before a denoising step (churn).
    Churn = 9,
    /// Which composition a generated molecule has.
    Composition = 10,
    /// Which shape a generated molecule is to have.
    Shape = 11,
    /// Acceptance of trial moves.
    Metropolis = 15,
    /// Which frames are kept as training data, and in what order they are used.
    TrainingChoice = 16,
    /// Noise added to training data: counter `replica` is the row, `step` the training step.
    TrainingNoise = 17,
    /// Times and rotations of training data.
    TrainingPlace = 18,
    /// Random directions of the Fokker–Planck residual.
    TrainingProbe = 19,
    /// Parameters that training starts from.
    Initialisation = 20,
}

/// A stream of noise of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
}

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32-10 of one counter.
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let (mut k, mut c) = (key, counter);
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

impl Noise {
    /// The noise of `seed`.
    pub fn new(seed: u64) -> Self {
        Noise { seed }
    }

    #[inline(always)]
    fn key(self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// 128 random bits. The step counts modulo 2^56.
    #[inline(always)]
    pub fn bits(self, atom: u32, replica: u32, step: u64, purpose: Purpose) -> [u32; 4] {
        philox(self.key(), [atom, replica, step as u32, step_high(step, purpose)])
    }

    /// One uniform number in (0, 1).
    pub fn uniform(self, atom: u32, replica: u32, step: u64, purpose: Purpose) -> f64 {
        (f64::from(self.bits(atom, replica, step, purpose)[0]) + 0.5) / 4_294_967_296.0
    }

    /// Three standard normal numbers in double precision (Box–Muller).
    pub fn normals(self, atom: u32, replica: u32, step: u64, purpose: Purpose) -> [f64; 3] {
        let u = self.bits(atom, replica, step, purpose).map(|b| (f64::from(b) + 0.5) / 4_294_967_296.0);
        let (s, c) = (std::f64::consts::TAU * u[1]).sin_cos();
        let r = (-2.0 * u[0].ln()).sqrt();
        [r * c, r * s, (-2.0 * u[2].ln()).sqrt() * (std::f64::consts::TAU * u[3]).cos()]
    }

    /// Three standard normal numbers per lane, lane `l` counting atom `atoms[l]` of replica `replicas[l]`.
    #[inline(always)]
    pub fn normal_lanes<V: Lanes>(
        self,
        t: V::Token,
        atoms: &[u32; MAX_LANES],
        replicas: &[u32; MAX_LANES],
        step: u64,
        purpose: Purpose,
    ) -> [V; 3] {
        let mut k = self.key();
        let mut c = [*atoms, *replicas, [step as u32; MAX_LANES], [step_high(step, purpose); MAX_LANES]];
        for _ in 0..10 {
            for l in 0..V::LANES {
                let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0][l]);
                let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2][l]);
                c[0][l] = (p1 >> 32) as u32 ^ c[1][l] ^ k[0];
                c[1][l] = p1 as u32;
                c[2][l] = (p0 >> 32) as u32 ^ c[3][l] ^ k[1];
                c[3][l] = p0 as u32;
            }
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let (sin, cos) = V::uniform(t, &c[1]).sin_cos_turns();
        let (_, cos_2) = V::uniform(t, &c[3]).sin_cos_turns();
        let r = radius::<V>(t, &c[0]);
        [r * cos, r * sin, radius::<V>(t, &c[2]) * cos_2]
    }
}

/// Box and Muller's radius.
#[inline(always)]
fn radius<V: Lanes>(t: V::Token, bits: &[u32; MAX_LANES]) -> V {
    (V::uniform(t, bits).ln() * V::lit(t, -2.0)).sqrt()
}

#[inline(always)]
fn step_high(step: u64, purpose: Purpose) -> u32 {
    (((step >> 32) as u32) & 0x00ff_ffff) | (u32::from(purpose as u8) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // Random123's published known answers for philox4x32-10.
        let check = |counter, key, want| assert_eq!(philox(key, counter), want);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }
}
