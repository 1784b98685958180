//! What chance alone does to a metric: its floor, that is its value between two sets of the same distribution, and its error.
//!
//! Divergences of finite samples are never zero. Their floor comes from the reference itself: its frames, in blocks longer
//! than their memory, are dealt out at random to two sets, as large in proportion as the sets that are compared. Two such
//! sets are smaller than those; so the same is done with half of each set, and the power law through both is continued to
//! the full sizes.

use crate::analysis::statistics::block_average_of;
use scorefield_integrators::{Noise, Purpose};
use serde::Serialize;
use std::ops::Range;

/// How often blocks are dealt out.
const DEALS: usize = 12;
/// Blocks that there should be at least.
const FEWEST_BLOCKS: usize = 24;
/// Groups that are left out in turn for an error.
const GROUPS: usize = 20;
/// Length of a block in units of the number of frames that one independent frame is worth.
const MEMORIES: f64 = 3.0;

/// A metric between two sets of one distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Mean over deals.
    pub mean: f64,
    /// Standard deviation over deals.
    pub deviation: f64,
}

/// Consecutive frames that may be taken as independent of the next: each longer than the memory of `series` (a few numbers
/// per frame, each `[F]`), none across two of `chains`.
pub fn blocks(chains: &[Range<usize>], series: &[Vec<f64>]) -> Vec<Range<usize>> {
    let frames: usize = chains.iter().map(Range::len).sum();
    let memory = series
        .iter()
        .map(|s| {
            let views: Vec<&[f64]> = chains.iter().map(|c| &s[c.clone()]).collect();
            let average = block_average_of(&views);
            if average.effective_samples > 0.0 { frames as f64 / average.effective_samples } else { frames as f64 }
        })
        .fold(1.0, f64::max);
    // Frames without memory are dealt one by one.
    let wanted = if memory < 1.5 { 1 } else { (MEMORIES * memory).ceil() as usize };
    let length = wanted.clamp(1, (frames / FEWEST_BLOCKS).max(1));
    let mut blocks = Vec::new();
    for chain in chains {
        let parts = (chain.len() / length).max(1);
        blocks.extend((0..parts).map(|p| chain.start + chain.len() * p / parts..chain.start + chain.len() * (p + 1) / parts));
    }
    blocks.retain(|b| !b.is_empty());
    blocks
}

/// The floor of `metric` between sets of `first` and `second` frames, from the `blocks` of the reference. `None` where
/// there are too few blocks.
pub fn floor(
    blocks: &[Range<usize>],
    first: usize,
    second: usize,
    seed: u64,
    metric: impl Fn(&[Range<usize>], &[Range<usize>]) -> f64,
) -> Option<Floor> {
    let frames: usize = blocks.iter().map(Range::len).sum();
    if blocks.len() < 8 || first == 0 || second == 0 {
        return None;
    }
    let size = (frames as f64 / (first + second) as f64).min(1.0);
    let (mut whole, mut half) = (Vec::with_capacity(DEALS), Vec::with_capacity(DEALS));
    for deal in 0..DEALS {
        let order = shuffled(blocks.len(), seed, deal);
        let mut order = order.iter().map(|&i| blocks[i].clone());
        let a = take(&mut order, (size * first as f64).round() as usize);
        let b = take(&mut order, (size * second as f64).round() as usize);
        if a.is_empty() || b.is_empty() {
            return None;
        }
        whole.push(metric(&a, &b));
        if size < 1.0 {
            half.push(metric(&a[..a.len().div_ceil(2)], &b[..b.len().div_ceil(2)]));
        }
    }
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let value = mean(&whole);
    let deviation = (whole.iter().map(|x| (x - value).powi(2)).sum::<f64>() / (DEALS - 1) as f64).sqrt();
    // M ∝ size^−α; noise is worth at most one over the size.
    let scale = if half.is_empty() || !(value > 0.0) {
        1.0
    } else {
        let alpha = (mean(&half) / value).log2().clamp(0.0, 1.0);
        size.powf(alpha)
    };
    let floor = Floor { mean: scale * value, deviation: scale * deviation };
    floor.mean.is_finite().then_some(floor)
}

/// Blocks in turn until there are `frames` frames.
fn take(order: &mut impl Iterator<Item = Range<usize>>, frames: usize) -> Vec<Range<usize>> {
    let mut taken = Vec::new();
    let mut count = 0;
    while count < frames {
        let Some(block) = order.next() else { break };
        count += block.len();
        taken.push(block);
    }
    taken
}

/// The numbers below `n` in a random order.
fn shuffled(n: usize, seed: u64, round: usize) -> Vec<usize> {
    let noise = Noise::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let u = noise.uniform(i as u32, round as u32, 0, Purpose::Bootstrap);
        order.swap(i, ((u * (i + 1) as f64) as usize).min(i));
    }
    order
}

/// Standard error of `metric` by the jackknife: whole chains, or where there are few of them stretches of time, are left
/// out in turn. NaN with fewer than four groups.
pub fn jackknife(chains: &[Range<usize>], metric: impl Fn(&[Range<usize>]) -> f64) -> f64 {
    let mut pieces: Vec<Range<usize>> = chains.to_vec();
    if pieces.len() < GROUPS / 2 {
        let parts = (GROUPS / pieces.len().max(1)).max(1);
        pieces = pieces
            .iter()
            .flat_map(|c| (0..parts).map(move |p| c.start + c.len() * p / parts..c.start + c.len() * (p + 1) / parts))
            .filter(|p| !p.is_empty())
            .collect();
    }
    let groups = pieces.len().min(GROUPS);
    if groups < 4 {
        return f64::NAN;
    }
    let values: Vec<f64> = (0..groups)
        .map(|g| {
            // Neighbours stay together: groups are stretches of the list.
            let (from, to) = (pieces.len() * g / groups, pieces.len() * (g + 1) / groups);
            metric(&[&pieces[..from], &pieces[to..]].concat())
        })
        .collect();
    let mean = values.iter().sum::<f64>() / groups as f64;
    let sum: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (sum * (groups - 1) as f64 / groups as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::divergence::histogram_js;

    fn normal(i: usize, stream: u32) -> f64 {
        Noise::new(5).normals(i as u32, stream, 0, Purpose::Thermostat)[0]
    }

    fn points(n: usize, stream: u32) -> Vec<[f64; 2]> {
        (0..n).map(|i| [normal(i, 2 * stream), normal(i, 2 * stream + 1)]).collect()
    }

    #[test]
    fn floor_is_what_other_samples_of_the_distribution_give() {
        // From 8000 frames of the reference alone: the floor between 8000 and 4000, or 16000, frames.
        let reference = points(8000, 0);
        let gather = |r: &[Range<usize>]| r.iter().flat_map(|r| reference[r.clone()].to_vec()).collect::<Vec<_>>();
        let limits = Some([[-4.0, 4.0]; 2]);
        let blocks: Vec<Range<usize>> = (0..8000).map(|i| i..i + 1).collect();
        for second in [4000, 16_000] {
            let got = floor(&blocks, 8000, second, 1, |a, b| histogram_js(&gather(a), &gather(b), 40, limits)).unwrap();
            let truth: Vec<f64> = (0..10).map(|s| histogram_js(&points(8000, 10 + s), &points(second, 30 + s), 40, limits)).collect();
            let mean = truth.iter().sum::<f64>() / 10.0;
            assert!((got.mean / mean - 1.0).abs() < 0.05, "{second}: {} for {mean}", got.mean);
        }
        assert!(floor(&blocks[..5], 5, 5, 1, |_, _| 0.0).is_none());
    }

    #[test]
    fn blocks_are_longer_than_memory() {
        let free: Vec<f64> = (0..4000).map(|i| normal(i, 9)).collect();
        assert_eq!(blocks(&[0..2000, 2000..4000], &[free]).len(), 4000);
        // An AR(1) process with φ = 0.95: one independent frame per 39.
        let mut x = 0.0;
        let slow: Vec<f64> = (0..40_000)
            .map(|i| {
                x = 0.95 * x + 0.312 * normal(i, 8);
                x
            })
            .collect();
        let found = blocks(&[0..10_000, 10_000..40_000], &[slow]);
        assert!((200..600).contains(&found.len()), "{}", found.len());
        assert_eq!(found.iter().map(Range::len).sum::<usize>(), 40_000);
        assert!(found.iter().all(|b| b.end <= 10_000 || b.start >= 10_000));
    }

    #[test]
    fn error_of_a_mean() {
        let x: Vec<f64> = (0..8000).map(|i| normal(i, 7)).collect();
        let mean = |r: &[Range<usize>]| {
            let n: usize = r.iter().map(Range::len).sum();
            r.iter().flat_map(|r| &x[r.clone()]).sum::<f64>() / n as f64
        };
        // The mean over both chains has an error of 1/√8000; 20 groups know it to 16 %.
        let error = jackknife(&[0..4000, 4000..8000], mean);
        assert!((error * 8000f64.sqrt() - 1.0).abs() < 0.5, "{error}");
        assert!(jackknife(std::slice::from_ref(&(0..2)), mean).is_nan());
    }
}
