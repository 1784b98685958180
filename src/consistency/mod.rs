//! Do the two routes of one model agree, with each other and with a reference? A score network gives samples by denoising
//! and forces for a simulation; both should have the distribution of the data. Every metric stands beside its floor: what
//! two sets of the reference's own frames would give.

mod data;
mod embedded;
mod observe;
mod resample;

pub use data::{Source, Trajectory};
pub use embedded::embedded_frames;
pub use observe::{CoordinateChoice, Coordinates, Observed, States};
pub use resample::{Floor, blocks, floor, jackknife};

use crate::analysis::divergence::{histogram_js, pair_distance_js, range_of};
use crate::analysis::kinetic::{ElementTemperature, element_temperatures};
use crate::analysis::pmf::PmfGrid;
use crate::analysis::statistics::{BlockAverage, block_average_of};
use crate::analysis::transition::TransitionMatrix;
use crate::analysis::wasserstein::wasserstein1;
use crate::error::{Result, usage};
use serde::Serialize;
use std::ops::Range;

/// Fewest frames of which a histogram says anything.
pub const FEWEST_FRAMES: usize = 100;
/// Pairs of beads nearer than this along the chain are left out of pair distances.
pub const PAIR_OFFSET: usize = 3;
/// A bond outside this multiple of the reference's extremes is broken.
const BROKEN: [f64; 2] = [0.5, 1.5];

/// What is compared, and how finely.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which coordinates span the density.
    pub coordinates: CoordinateChoice,
    /// Torsions given by hand.
    pub torsions: Option<[[usize; 4]; 2]>,
    /// Bins per axis; the published number for the coordinates if left out.
    pub bins: Option<usize>,
    /// Range of both coordinates for the PMF error; −π to π for angles, else the reference's.
    pub limits: Option<[[f64; 2]; 2]>,
    /// Frames between the ends of a transition, and TICA's lag.
    pub lag: usize,
    /// Number of states, where no centres are given.
    pub states: usize,
    /// Centres of the states in the two coordinates.
    pub centres: Option<Vec<[f64; 2]>>,
    /// Most frames per set of metrics without time; simulations and references are thinned evenly to it.
    pub limit: Option<usize>,
    /// Seed of k-means and of resampling.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            coordinates: CoordinateChoice::Auto,
            torsions: None,
            bins: None,
            limits: None,
            lag: 1,
            states: 4,
            centres: None,
            limit: None,
            seed: 0,
        }
    }
}

/// One way of comparing two sets of frames.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    Density,
    Pmf,
    WeightedDensity,
    PairDistances,
    Bond(usize),
    Transitions,
}

/// A metric between two sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Value {
    /// The metric.
    pub value: f64,
    /// Jackknife error over the chains or stretches of time of the second set; null where there are too few.
    pub error: f64,
    /// What chance alone gives; none where the reference is too short.
    pub floor: Option<Floor>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Key in files, for example `js` or `bond_1_2_w1`.
    pub key: String,
    /// For people.
    pub label: String,
    /// Unit; empty for pure numbers.
    pub unit: &'static str,
    /// One per comparison, in the order of [`Comparison::pairs`]; none where it makes no sense.
    pub values: Vec<Option<Value>>,
}

/// What was found about one set of frames.
#[derive(Clone, Debug, Serialize)]
pub struct SetReport {
    /// `reference`, `samples` or `simulation`.
    pub name: String,
    /// Frames read.
    pub frames: usize,
    /// Chains that they belong to.
    pub chains: usize,
    /// Frames that metrics without time used.
    pub used: usize,
    /// Frames with a bond far outside the reference's range.
    pub broken_frames: usize,
    /// Chains with such a frame.
    pub broken_chains: usize,
    /// Fraction of frames in each state, with errors.
    pub populations: Vec<BlockAverage>,
    /// Mean first-passage times between states in frames, `[from][to]`; null where no way leads. Empty for samples.
    pub passage_frames: Vec<Vec<f64>>,
    /// The same in ps, where files tell the time.
    pub passage_ps: Vec<Vec<f64>>,
    /// Kinetic temperatures, where files have velocities.
    pub temperatures: Vec<ElementTemperature>,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// `phi-psi`, `plane` or `tica`.
    pub coordinates: &'static str,
    /// Residue of the angles; empty for others.
    pub residue: String,
    /// Names of the axes.
    pub axes: [&'static str; 2],
    /// Range of the maps.
    pub limits: [[f64; 2]; 2],
    /// Bins per axis.
    pub bins: usize,
    /// Lag of transitions in frames.
    pub lag: usize,
    /// Relaxation times of TICA in frames; empty for other coordinates.
    pub tica_timescales: Vec<f64>,
    /// Centres of the states.
    pub centres: Vec<[f64; 2]>,
    /// The bonds.
    pub bonds: Vec<(usize, usize)>,
    /// What was compared with what: names of first and second set.
    pub pairs: Vec<[String; 2]>,
    /// All metrics.
    pub rows: Vec<Row>,
    /// The sets.
    pub sets: Vec<SetReport>,
}

/// A comparison with what plots need of it.
pub struct Outcome<'a> {
    /// Numbers.
    pub comparison: Comparison,
    /// The coordinates.
    pub coordinates: Coordinates,
    /// Reference first, then samples, then simulation, as far as given.
    pub observed: Vec<Observed<'a>>,
}

/// Compares `samples` (independent frames) and `simulation` with `reference`, and with each other.
///
/// # Errors
/// Where there is nothing to compare, beads differ, coordinates cannot be had, or there are too few frames.
pub fn compare<'a>(
    reference: &'a Trajectory,
    samples: Option<&'a Trajectory>,
    simulation: Option<&'a Trajectory>,
    settings: &Settings,
) -> Result<Outcome<'a>> {
    if samples.is_none() && simulation.is_none() {
        return usage("there is nothing to compare: give --samples, --simulation, or both");
    }
    let others: Vec<&Trajectory> = samples.into_iter().chain(simulation).collect();
    for set in &others {
        set.check_against(reference)?;
    }
    for set in std::iter::once(&reference).chain(&others) {
        if set.frames() < FEWEST_FRAMES {
            return usage(format!(
                "--{} has {} frames; {FEWEST_FRAMES} or more are needed to compare distributions",
                set.name,
                set.frames()
            ));
        }
    }
    if settings.bins.is_some_and(|b| !(3..=1000).contains(&b)) {
        return usage("--bins is the number of bins per axis, from 3 to 1000");
    }
    let coordinates = Coordinates::choose(settings.coordinates, settings.torsions, reference, settings.lag)?;
    let bonds = observe::bonds(&reference.system);
    let mut observed: Vec<Observed> = std::iter::once(reference).chain(others).map(|t| Observed::of(t, &coordinates, &bonds)).collect();
    let range = range_of(&[&observed[0].points]).unwrap_or([[0.0, 1.0]; 2]);
    let limits = settings.limits.or_else(|| coordinates.natural_limits()).unwrap_or(range);
    let states = match &settings.centres {
        Some(centres) => States::around(centres),
        None => States::of_reference(&coordinates, &observed[0].points, settings.states, settings.seed),
    };
    for set in &mut observed {
        set.states = states.of(&coordinates, &set.points);
    }
    let bins = settings.bins.unwrap_or_else(|| coordinates.usual_bins());
    let task = Task {
        bins,
        // As published: TICA's plane has fixed limits, others the range of both sets.
        js_limits: matches!(coordinates, Coordinates::Tica(_)).then_some(limits),
        // Published maps of toys have 100 bins for the density, but 64 for the PMF.
        pmf: PmfGrid::new(limits, settings.bins.unwrap_or(if matches!(coordinates, Coordinates::Tica(_)) { 100 } else { 64 })),
        angles: matches!(coordinates, Coordinates::Torsions { .. }),
        states: states.len(),
        settings,
    };
    let has_samples = samples.is_some();
    let pairs: Vec<[usize; 2]> = if observed.len() == 3 { vec![[0, 1], [0, 2], [1, 2]] } else { vec![[0, 1]] };
    let is_simulation = |i: usize| i == 2 || (i == 1 && !has_samples);
    let rows = task.rows(&observed, &bonds, &pairs, is_simulation);
    let sets = observed.iter().enumerate().map(|(i, set)| task.describe(set, &observed[0], i == 0 || is_simulation(i))).collect();
    let comparison = Comparison {
        coordinates: coordinates.name(),
        residue: if let Coordinates::Torsions { label, .. } = &coordinates { label.clone() } else { String::new() },
        axes: coordinates.labels(),
        limits,
        bins,
        lag: settings.lag,
        tica_timescales: if let Coordinates::Tica(tica) = &coordinates { tica.timescales() } else { Vec::new() },
        centres: states.points(&coordinates),
        bonds,
        pairs: pairs.iter().map(|p| p.map(|i| observed[i].trajectory.name.clone())).collect(),
        rows,
        sets,
    };
    Ok(Outcome { comparison, coordinates, observed })
}

/// What all metrics share.
struct Task<'s> {
    bins: usize,
    js_limits: Option<[[f64; 2]; 2]>,
    pmf: PmfGrid,
    /// Coordinates are angles.
    angles: bool,
    states: usize,
    settings: &'s Settings,
}

impl Task<'_> {
    fn rows(
        &self,
        observed: &[Observed],
        bonds: &[(usize, usize)],
        pairs: &[[usize; 2]],
        is_simulation: impl Fn(usize) -> bool,
    ) -> Vec<Row> {
        let atoms = observed[0].trajectory.atoms();
        let mut metrics = vec![
            (Metric::Density, "js".to_owned(), "density: JS divergence".to_owned(), "nat"),
            (Metric::Pmf, "pmf".into(), "PMF error".into(), "kT²"),
            (Metric::WeightedDensity, "mjs".into(), "density on the PMF's cells: JS divergence".into(), "nat"),
        ];
        if atoms > PAIR_OFFSET {
            metrics.push((Metric::PairDistances, "pair_distances_js".into(), "pair distances: JS divergence".into(), "nat"));
        }
        let named = |i: usize| {
            let name = observed[0].trajectory.system.names.get(i).map(|n| n.atom.clone()).unwrap_or_default();
            if name.is_empty() { i.to_string() } else { format!("{name}{i}") }
        };
        for (k, &(i, j)) in bonds.iter().enumerate() {
            metrics.push((Metric::Bond(k), format!("bond_{i}_{j}_w1"), format!("bond {}–{}: W1", named(i), named(j)), "pm"));
        }
        metrics.push((
            Metric::Transitions,
            "transitions_js".into(),
            format!("transitions of {} states: JS divergence", self.states),
            "nat",
        ));
        // Memory of the reference, by cosines and sines where coordinates are angles.
        let chains = &observed[0].trajectory.chains;
        let points = &observed[0].points;
        let series: Vec<Vec<f64>> = (0..2)
            .flat_map(|axis| {
                let of = |f: fn(f64) -> f64| points.iter().map(|p| f(p[axis])).collect::<Vec<f64>>();
                if self.angles { vec![of(f64::cos), of(f64::sin)] } else { vec![of(|x| x)] }
            })
            .collect();
        let reference_blocks = blocks(chains, &series);
        metrics
            .into_iter()
            .map(|(metric, key, label, unit)| {
                let values = pairs
                    .iter()
                    .map(|&[a, b]| {
                        let timed = (a == 0 || is_simulation(a)) && is_simulation(b);
                        (metric != Metric::Transitions || timed)
                            .then(|| self.value(metric, [&observed[a], &observed[b]], &observed[0], &reference_blocks))
                    })
                    .collect();
                Row { key, label, unit, values }
            })
            .collect()
    }

    fn value(&self, metric: Metric, [a, b]: [&Observed; 2], reference: &Observed, reference_blocks: &[Range<usize>]) -> Value {
        let timed = metric == Metric::Transitions;
        let (ra, rb) = (self.ranges(a, timed), self.ranges(b, timed));
        let frames = |r: &[Range<usize>]| r.iter().map(Range::len).sum::<usize>();
        Value {
            value: self.evaluate(metric, a, &ra, b, &rb),
            error: jackknife(&rb, |part| self.evaluate(metric, a, &ra, b, part)),
            floor: floor(reference_blocks, frames(&ra), frames(&rb), self.settings.seed, |x, y| {
                self.evaluate(metric, reference, x, reference, y)
            }),
        }
    }

    /// The frames that are used: all where time matters, else evenly thinned to the limit.
    fn ranges(&self, set: &Observed, timed: bool) -> Vec<Range<usize>> {
        let chains = &set.trajectory.chains;
        let frames = set.trajectory.frames();
        let stride = self.settings.limit.map_or(1, |limit| frames.div_ceil(limit.max(1)));
        if timed || stride <= 1 {
            return chains.clone();
        }
        (0..frames).step_by(stride).map(|i| i..i + 1).collect()
    }

    fn evaluate(&self, metric: Metric, a: &Observed, ra: &[Range<usize>], b: &Observed, rb: &[Range<usize>]) -> f64 {
        let points = || (a.points_in(ra), b.points_in(rb));
        match metric {
            Metric::Density => {
                let (p, q) = points();
                histogram_js(&p, &q, self.bins, self.js_limits)
            }
            Metric::Pmf => {
                let (p, q) = points();
                self.pmf.squared_error(&p, &q)
            }
            Metric::WeightedDensity => {
                let (p, q) = points();
                self.pmf.weighted_js(&p, &q)
            }
            Metric::Bond(k) => {
                let lengths = |set: &Observed, r: &[Range<usize>]| {
                    r.iter().flat_map(|r| set.bonds[k][r.clone()].iter().copied()).collect::<Vec<f64>>()
                };
                PM_PER_NM * wasserstein1(&lengths(a, ra), &lengths(b, rb))
            }
            Metric::PairDistances => {
                let width = 3 * a.trajectory.atoms();
                let frames = |set: &Observed, r: &[Range<usize>]| {
                    r.iter().flat_map(|r| set.trajectory.positions[r.start * width..r.end * width].iter().copied()).collect::<Vec<f64>>()
                };
                pair_distance_js(&frames(a, ra), &frames(b, rb), a.trajectory.atoms(), PAIR_OFFSET)
            }
            Metric::Transitions => self.transitions(a, ra).divergence(&self.transitions(b, rb)),
        }
    }

    fn transitions(&self, set: &Observed, ranges: &[Range<usize>]) -> TransitionMatrix {
        TransitionMatrix::count(ranges.iter().map(|r| &set.states[r.clone()]), self.states, self.settings.lag)
    }

    fn describe(&self, set: &Observed, reference: &Observed, timed: bool) -> SetReport {
        let trajectory = set.trajectory;
        let frames = trajectory.frames();
        let mut broken = vec![false; frames];
        for (lengths, expected) in set.bonds.iter().zip(&reference.bonds) {
            let (low, high) = expected.iter().fold((f64::INFINITY, 0.0f64), |(l, h), &x| (l.min(x), h.max(x)));
            for (b, &x) in broken.iter_mut().zip(lengths) {
                *b |= x < BROKEN[0] * low || x > BROKEN[1] * high;
            }
        }
        let populations = (0..self.states)
            .map(|s| {
                let inside: Vec<f64> = set.states.iter().map(|&x| if x == s { 1.0 } else { 0.0 }).collect();
                let views: Vec<&[f64]> = trajectory.chains.iter().map(|c| &inside[c.clone()]).collect();
                block_average_of(&views)
            })
            .collect();
        let passage_frames: Vec<Vec<f64>> = if timed {
            let times = self.transitions(set, &trajectory.chains).mean_first_passage_times();
            times.chunks(self.states.max(1)).map(|row| row.iter().map(|t| t * self.settings.lag as f64).collect()).collect()
        } else {
            Vec::new()
        };
        let passage_ps = trajectory
            .interval
            .map(|dt| passage_frames.iter().map(|row| row.iter().map(|t| t * dt).collect()).collect())
            .unwrap_or_default();
        let width = 3 * trajectory.atoms();
        SetReport {
            name: trajectory.name.clone(),
            frames,
            chains: trajectory.chains.len(),
            used: self.ranges(set, false).iter().map(Range::len).sum(),
            broken_frames: broken.iter().filter(|b| **b).count(),
            broken_chains: trajectory.chains.iter().filter(|c| broken[(*c).clone()].iter().any(|b| *b)).count(),
            populations,
            passage_frames,
            passage_ps,
            temperatures: trajectory
                .velocities
                .as_ref()
                .map_or_else(Vec::new, |v| element_temperatures(&trajectory.system, v.chunks_exact(width))),
        }
    }
}

/// Bonds are a few picometres wide.
const PM_PER_NM: f64 = 1000.0;
