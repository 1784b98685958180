//! PE(3) as parameters of `kernels/ditmc_equivariant.cu`.

use super::super::config::PairTokens;
use super::super::device::{Parts, Question, turned};
use super::super::layers::Dense;
use super::couplings::coupling;
use super::places::{BlockPlaces, Irrep, RADIAL};
use super::transformer::Block;
use super::{Parameters, Work};
use crate::rows::Rows;
use scorefield_integrators::device::{DeviceModel, Field};

/// The text for networks up to a degree: code for tensors would be half of that for vectors again.
macro_rules! source {
    ($degree:literal) => {
        concat!(
            "#define MOST_DEGREE ",
            $degree,
            "\n",
            include_str!("../../../kernels/rows.cu"),
            include_str!("../../../kernels/pairs.cu"),
            include_str!("../../../kernels/ditmc.cu"),
            include_str!("../../../kernels/ditmc_equivariant.cu")
        )
    };
}

const VECTORS: &str = source!(1);
const TENSORS: &str = source!(2);

/// `Place` in the kernel.
const QKV: usize = 0;
const RELATIVE: usize = 1;
const FILTERS: usize = 2;
const KAPPA: usize = 3;
const OUT: usize = 4;
const FIRST: usize = 6;
const SECOND: usize = 8;
const MODULATION: usize = 10;
const PATHS: usize = 11;
const PATHS_END: usize = 12;
const PARITIES_IN: usize = 13;
const DEGREE_IN: usize = 14;
const DEGREE_OUT: usize = 15;
const PLACES: usize = 16;
/// Behind the blocks.
const COUPLINGS: usize = 0;
const READOUT: usize = 1;
/// `PATH_NUMBERS` in the kernel.
const PATH_NUMBERS: usize = 6;

/// The numbers of a pair that couple degrees: linear in its harmonics.
#[derive(Default)]
struct Couplings {
    /// First number of each filter's degree, value's and message's.
    known: Vec<([usize; 3], usize)>,
    /// Of each number its factors of the harmonics `[(L + 1)²]`.
    numbers: Vec<Vec<f64>>,
}

impl Couplings {
    /// First of the numbers `[value's components, message's components]` of three degrees; `components` is (L + 1)².
    fn first(&mut self, degrees: [usize; 3], components: usize) -> usize {
        if let Some((_, first)) = self.known.iter().find(|k| k.0 == degrees) {
            return *first;
        }
        let [filter, value, message] = degrees;
        let all = coupling(filter, value, message).unwrap_or_default();
        let first = self.numbers.len();
        let each = (2 * value + 1) * (2 * message + 1);
        for k in 0..each {
            let mut factors = vec![0.0; components];
            for m in 0..2 * filter + 1 {
                factors[filter * filter + m] = all[m * each + k];
            }
            self.numbers.push(factors);
        }
        self.known.push((degrees, first));
        first
    }
}

/// Parities and highest degree of irreps.
fn extent(irreps: &[Irrep]) -> [usize; 2] {
    let most = |of: fn(&Irrep) -> usize| irreps.iter().map(of).max().unwrap_or(0);
    [most(|i| i.parity) + 1, most(|i| i.degree)]
}

impl Parameters<f64> {
    /// The kernels' parameters for one molecule at a fixed time.
    pub(in super::super) fn device_model(&self, question: Question<'_>) -> DeviceModel {
        let (config, n, f, degree) = (&self.config, question.context.len(), self.config.features(), self.places.degree);
        let (hidden, components) = (f * config.expansion, (degree + 1).pow(2));
        let directed = config.pair_tokens == PairTokens::BondPairs;
        let mut work = Work::new(self, false);
        work.set_graphs(self, std::iter::once(question.context));
        work.set_times(self, std::iter::once(question.time));
        let (mut parts, mut couplings, mut paths) = (Parts::new(PLACES), Couplings::default(), Vec::new());
        let mut modulation = Vec::new();
        for (block, modulated) in self.blocks.iter().zip(&work.modulated) {
            parts.next();
            self.push_weights(block, &mut parts);
            parts.set(MODULATION, (modulation.len() / (n * f)) as i32);
            let stride = block.modulation.place.outputs;
            let scales = scales(&block.places);
            for column in 0..stride / f {
                let add = if scales.iter().any(|s| s.contains(&column)) { 1.0 } else { 0.0 };
                modulation.extend(turned(&modulated.values, stride, n, column * f..(column + 1) * f).map(|x| x + add));
            }
            let mut ours: Vec<_> = block.plan.paths.iter().collect();
            ours.sort_by_key(|p| p.filter);
            parts.set(PATHS, (paths.len() / PATH_NUMBERS) as i32);
            let kappa = &self.values[block.places.kappa.clone()];
            parts.push(KAPPA, ours.iter().flat_map(|p| kappa[p.kappa * f..(p.kappa + 1) * f].iter().copied()));
            for path in ours {
                let degrees = [path.filter, path.value.degree, path.message.degree];
                let number = couplings.first(degrees, components);
                let numbers = [degrees[0], degrees[1], degrees[2], path.value.parity, path.message.parity, number];
                paths.extend(numbers.map(|x| x as i32));
            }
            parts.set(PATHS_END, (paths.len() / PATH_NUMBERS) as i32);
            let [parities, degree_in] = extent(&block.places.inputs);
            let [_, degree_out] = extent(&block.places.features);
            for (place, x) in [(PARITIES_IN, parities), (DEGREE_IN, degree_in), (DEGREE_OUT, degree_out)] {
                parts.set(place, x as i32);
            }
        }
        parts.next();
        let numbers = couplings.numbers.len().next_multiple_of(4);
        let factor = |y: usize, k: usize| couplings.numbers.get(k).map_or(0.0, |factors| factors[y]);
        parts.push(COUPLINGS, (0..components).flat_map(|y| (0..numbers).map(move |k| (y, k))).map(|(y, k)| factor(y, k)));
        let columns = self.readout.place.outputs;
        parts.push(READOUT, self.weight(&self.readout).iter().step_by(columns).copied());
        // Vectors alone are read.
        parts.set(MODULATION, (modulation.len() / (n * f)) as i32);
        let stride = self.readout_modulation.place.outputs;
        modulation.extend(turned(&work.readout.values, stride, n, f..2 * f).map(|x| x + 1.0));
        let embedding = &self.values[self.layout.types.clone()];
        let nodes = (0..f).flat_map(|k| question.context.types.iter().map(move |&z| embedding[z as usize * f + k]));
        let width = self.gate_width();
        let rows = (0..n * n).map(|ij| work.graphs[0].gate(ij / n, ij % n) as i32);
        let mut fields = vec![
            Field::Reals(parts.rows.weights),
            Field::Ints(parts.places),
            Field::Ints(paths),
            Field::Reals(nodes.collect()),
            Field::Reals(modulation),
            Field::Reals(turned(&work.gates, width, work.gate_rows, 0..width).collect()),
            Field::Ints(rows.collect()),
            Field::Spill,
            Field::SpillSize,
        ];
        let sizes = [self.blocks.len(), f, hidden, config.heads, config.head_width, degree, work.gate_rows, numbers, usize::from(directed)];
        fields.extend(sizes.map(|x| Field::Int(x as i32)));
        fields.extend(question.units());
        // As in `work_of` there: rows of atoms, and those of pairs, of which an atom has so many, with their padding.
        let broad = (3 * self.components() * f).max(hidden * 2 * (degree + 1));
        let pairs = (if directed { n } else { n / 2 }) + 4;
        let per_pair = components + numbers + (degree + 1) * RADIAL + f;
        let spill = 3 + 3 * self.components() * f + broad + config.heads * (n - 1) + 6 * Rows::PARTS + pairs * per_pair;
        let source = if degree > 1 { TENSORS } else { VECTORS };
        DeviceModel { source, fields, group: Some(Rows::group(n, f)), scratch: 0, spill, constant: 0.0 }
    }

    /// Weights and biases of a block, for one irrep after the other.
    fn push_weights(&self, block: &Block<f64>, parts: &mut Parts) {
        let f = self.config.features();
        let components: usize = block.places.inputs.iter().map(Irrep::rows).sum();
        let scale = (self.config.heads as f64 / (f * components) as f64).sqrt();
        let qkv = block.qkv.iter().flat_map(|dense| self.weight(dense).iter().enumerate());
        parts.push(QKV, qkv.map(|(k, w)| if k % (3 * f) < f { scale * w } else { *w }));
        let inputs = block.places.inputs.len();
        let relative = self.weight(&block.relative);
        let rows = (0..inputs).flat_map(|k| (0..RADIAL).map(move |r| (r * inputs + k) * f));
        parts.push(RELATIVE, rows.flat_map(|at| relative[at..at + f].iter().copied()));
        parts.push(FILTERS, block.filters.iter().flat_map(|dense| self.weight(dense).iter().copied()));
        parts.push(OUT, block.out.iter().flat_map(|dense| self.weight(dense).iter().copied()));
        parts.push(OUT + 1, self.bias(&block.out[0]));
        for (place, layer) in [(FIRST, 0), (SECOND, 1)] {
            parts.push(place, block.perceptrons.iter().flat_map(|dense| self.weight(&dense[layer]).iter().copied()));
            parts.push(place + 1, self.bias(&block.perceptrons[0][layer]));
        }
    }

    fn weight(&self, dense: &Dense<f64>) -> &[f64] {
        &self.values[dense.place.weight.clone()]
    }

    fn bias(&self, dense: &Dense<f64>) -> impl Iterator<Item = f64> {
        dense.place.bias.iter().flat_map(|b| self.values[b.clone()].iter().copied())
    }
}

/// Columns of a block's modulation that scale, by one more than what they say.
fn scales(places: &BlockPlaces) -> [std::ops::Range<usize>; 2] {
    [places.gamma1()..places.beta1(), places.gamma2()..places.beta2()]
}
