//! A molecule and a network as parameters of `kernels/painn.cu`.

use super::config::{DensePlace, Head, PainnConfig};
use super::model::Output as Meaning;
use super::network::Parameters;
use super::provider::{ANGSTROMS, Shared};
use crate::matrix::padded;
use crate::rows::{Rows, THREADS};
use scorefield_integrators::device::{DeviceModel, Field};

const SOURCE: &str =
    concat!(include_str!("../../kernels/rows.cu"), include_str!("../../kernels/pairs.cu"), include_str!("../../kernels/painn.cu"));

/// `Place` in the kernel: where the three parts of each dense layer begin.
const FIRST: usize = 0;
const SECOND: usize = 3;
const MIX: usize = 6;
const UPDATE: usize = 8;
const CHANGE: usize = 11;
const INPUTS: usize = 8;
const OUTPUTS: usize = 9;
const READS: usize = 10;
const PLACES: usize = 14;
/// Numbers per pair besides filters: geometry, gradients, radial functions in double precision with their slopes, parts, an index.
const PER_PAIR: usize = 4 + 3 + 2 * 19 + 4 * Rows::PARTS + 1;
/// Rows of features for each layer, and once; see `kept_of` and `work_of` there.
const PER_LAYER: usize = 11 + 3 * 4;
const ONCE: usize = 9 + 3 * 4;

/// Whether the kernels' memory fits the head.
pub(super) fn fits(config: &PainnConfig) -> bool {
    let widths: Vec<usize> = config.head_widths().into_iter().map(padded).collect();
    widths[1..].iter().sum::<usize>() <= 3 * padded(config.features)
}

/// Weights with their places.
struct Places<'a> {
    values: &'a [f64],
    rows: Rows,
    places: Vec<i32>,
}

impl Places<'_> {
    fn next(&mut self) {
        self.places.resize(self.places.len() + PLACES, 0);
    }

    fn set(&mut self, place: usize, value: i32) {
        let first = self.places.len() - PLACES;
        self.places[first + place] = value;
    }

    /// Weights `[inputs, outputs]`, bias where there is one, transposed weights.
    fn dense(&mut self, place: usize, dense: &DensePlace) {
        let DensePlace { weight, bias, inputs, outputs } = dense;
        let weight = &self.values[weight.clone()];
        let forward = self.rows.push((0..*inputs).flat_map(|k| (0..*outputs).map(move |c| weight[c * inputs + k])));
        let mut at = place;
        self.set(at, forward);
        if let Some(bias) = bias {
            at += 1;
            let bias = self.rows.push(self.values[bias.clone()].iter().copied());
            self.set(at, bias);
        }
        let back = self.rows.push(weight.iter().copied());
        self.set(at + 1, back);
    }
}

impl Shared {
    /// The kernels' parameters for a molecule of these atomic numbers; `None` for what they do not do.
    pub(super) fn device_model(&self, p: &Parameters<f64>, types: &[u32]) -> Option<DeviceModel> {
        let (config, n, f) = (&p.config, types.len(), padded(p.config.features));
        let direct = config.head == Head::Direct;
        let (force_unit, energy_unit) = match self.model.output {
            Meaning::Energy { unit, .. } => (unit * ANGSTROMS, unit),
            Meaning::Displacement { stiffness } => (stiffness / ANGSTROMS, 0.0),
            Meaning::Noise { .. } => return None,
        };
        if config.time || n > THREADS || !fits(config) {
            return None;
        }
        let mut places = Places { values: &p.values, rows: Rows::default(), places: Vec::new() };
        for layer in &p.layout.layers {
            places.next();
            places.dense(FIRST, &layer.context[0]);
            places.dense(SECOND, &layer.context[1]);
            places.dense(MIX, &layer.mix);
            places.dense(UPDATE, &layer.mixing[0]);
            places.dense(CHANGE, &layer.mixing[1]);
        }
        for block in &p.layout.head {
            places.next();
            let (inputs, outputs, reads) = match &block.mix {
                Some(mix) => {
                    places.dense(FIRST, &block.dense[0]);
                    places.dense(SECOND, &block.dense[1]);
                    places.dense(MIX, mix);
                    (mix.inputs, mix.outputs / 2, block.dense[0].inputs)
                }
                None => {
                    places.dense(SECOND, &block.dense[0]);
                    (block.dense[0].inputs, block.dense[0].outputs, 0)
                }
            };
            [(INPUTS, inputs), (OUTPUTS, outputs), (READS, reads)].into_iter().for_each(|(at, x)| places.set(at, x as i32));
        }
        let embedding = &p.values[p.layout.embedding.clone()];
        let constant = types.iter().map(|&z| self.references.get(z as usize).copied().unwrap_or(0.0)).sum::<f64>() * energy_unit;
        let mut fields = vec![
            Field::Reals(places.rows.weights),
            Field::Ints(places.places),
            Field::Reals(p.values[p.layout.filter.clone()].to_vec()),
            Field::Reals(p.values[p.layout.filter_bias.clone()].to_vec()),
            Field::Reals((0..f).flat_map(|k| types.iter().map(move |&z| embedding[z as usize * f + k])).collect()),
            Field::Spill,
            Field::SpillSize,
        ];
        let numbers = [config.layers, f, p.layout.head.len(), usize::from(direct), config.radial];
        fields.extend(numbers.map(|x| Field::Int(x as i32)));
        fields.extend([config.cutoff, config.distance_epsilon, config.norm_epsilon, force_unit, energy_unit].map(Field::Real));
        let (slots, filters) = if direct { (2, 3) } else { (config.layers + 1, 6) };
        // Pairs of a row, and the padding of all pairs.
        let pairs = n / 2 + 4;
        let spill = (slots * PER_LAYER + ONCE) * f + pairs * (PER_PAIR + filters * f);
        Some(DeviceModel { source: SOURCE, fields, group: Some(Rows::group(n, f)), scratch: 0, spill, constant })
    }
}
