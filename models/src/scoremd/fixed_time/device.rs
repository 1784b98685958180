//! A network at one time as parameters of `kernels/scoremd_graph.cu` and `kernels/scoremd_mlp.cu`.

use super::fold::{Constants, Dense, Folded, SLOPES, Second};
use super::perceptron::Perceptron;
use super::product::{Panels, padded};
use super::{AtTime, FixedTime};
use crate::rows::{Rows, THREADS};
use crate::scoremd::config::HEADS;
use scorefield_integrators::device::{DeviceModel, Field};

const GRAPH: &str = concat!(include_str!("../../../kernels/rows.cu"), include_str!("../../../kernels/scoremd_graph.cu"));
const PERCEPTRON: &str = concat!(include_str!("../../../kernels/rows.cu"), include_str!("../../../kernels/scoremd_mlp.cu"));

/// Hidden features of a bead over its features: as many blocks of weights.
const QUARTERS: usize = 4;
/// The parts of a layer, in the kernel's order.
#[derive(Clone, Copy)]
enum Place {
    GateNew,
    GateOld,
    First,
    FirstBias,
    FirstBack,
    Second,
    SecondBias,
    SecondBack,
    SecondGateNew,
    SecondGateOld,
    Logits,
    LogitsBias,
    LogitsBack,
    LogitSlopes,
    LogitSlopesBias,
    LogitSlopesBack,
    Out,
    OutBias,
    OutBack,
    OutShifts,
    OutShiftsBack,
    Score,
    ScoreBias,
}

/// What is in the place of the second feed-forward layer where it is contracted to the energy.
impl Place {
    const ENERGY_HIDDEN: Place = Place::Second;
    const GATE_HIDDEN: Place = Place::SecondBias;
    const CONSTANTS: Place = Place::SecondBack;
    const DECODER: Place = Place::SecondGateNew;
    const ENERGY_OLD: Place = Place::SecondGateOld;
}

const PLACES: usize = Place::ScoreBias as usize + 1;

/// Units of a model's forces and energies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units {
    /// What coordinates are multiplied with.
    pub(crate) scale: f64,
    /// kT.
    pub(crate) kt: f64,
}

impl FixedTime<f64> {
    /// The kernels' parameters; `None` for what they do not do.
    pub(crate) fn device_model(&self, units: Units) -> Option<DeviceModel> {
        match &self.network {
            AtTime::Graph(folded, constants, _) => Some(folded.device_model(constants, units)).filter(|_| folded.beads <= THREADS),
            AtTime::Mlp(network, bias, _) => network.device_model(bias, units),
        }
    }
}

/// Weights of one layer after another, and where each part of a layer begins.
struct Parts {
    rows: Rows,
    places: Vec<i32>,
}

impl Parts {
    /// The next part of the present layer.
    fn part(&mut self, place: Place, values: impl IntoIterator<Item = f64>) {
        let layer = self.places.len() - PLACES;
        self.places[layer + place as usize] = self.rows.push(values);
    }
}

/// Rows `from` of a matrix that has them as its inner index, and columns `to` padded to `wide`.
fn block(matrix: &Panels<f64>, from: std::ops::Range<usize>, to: std::ops::Range<usize>, wide: usize) -> impl Iterator<Item = f64> {
    from.flat_map(move |k| (0..wide).map(move |c| (k, c))).map(move |(k, c)| if c < to.len() { matrix.at(k, to.start + c) } else { 0.0 })
}

fn vector(v: &[f64], part: std::ops::Range<usize>, wide: usize) -> impl Iterator<Item = f64> {
    (0..wide).map(move |c| if c < part.len() { v[part.start + c] } else { 0.0 })
}

impl Folded<f64> {
    fn device_model(&self, constants: &Constants<f64>, units: Units) -> DeviceModel {
        let (n, h, wide) = (self.beads, self.features, padded(self.features));
        let mut parts = Parts { rows: Rows::default(), places: Vec::new() };
        let mut constant = 0.0;
        for (l, layer) in self.layers.iter().enumerate() {
            parts.places.resize((l + 1) * PLACES, 0);
            let quarter = |q: usize| q * h..(q + 1) * h;
            let quarters = 0..QUARTERS;
            let [new, old] = &layer.gate;
            parts.part(Place::GateNew, vector(new, 0..h, wide));
            parts.part(Place::GateOld, vector(old, 0..h, wide));
            let Dense { forward, bias, back } = &layer.first;
            parts.part(Place::First, quarters.clone().flat_map(|q| block(forward, 0..h, quarter(q), wide)));
            parts.part(Place::FirstBias, quarters.clone().flat_map(|q| vector(bias, quarter(q), wide)));
            parts.part(Place::FirstBack, quarters.clone().flat_map(|q| block(back, quarter(q), 0..h, wide)));
            match &layer.second {
                Second::Full { dense: Dense { forward, bias, back }, gate: [new, old] } => {
                    parts.part(Place::Second, quarters.clone().flat_map(|q| block(forward, quarter(q), 0..h, wide)));
                    parts.part(Place::SecondBias, vector(bias, 0..h, wide));
                    parts.part(Place::SecondBack, quarters.clone().flat_map(|q| block(back, 0..h, quarter(q), wide)));
                    parts.part(Place::SecondGateNew, vector(new, 0..h, wide));
                    parts.part(Place::SecondGateOld, vector(old, 0..h, wide));
                }
                Second::Energy(c) => {
                    parts.part(Place::ENERGY_HIDDEN, quarters.clone().flat_map(|q| vector(&c.energy.0, quarter(q), wide)));
                    parts.part(Place::GATE_HIDDEN, quarters.clone().flat_map(|q| vector(&c.gate.0, quarter(q), wide)));
                    parts.part(Place::CONSTANTS, [c.energy.1, c.gate.1]);
                    parts.part(Place::DECODER, vector(&c.decoder, 0..h, wide));
                    parts.part(Place::ENERGY_OLD, vector(&c.old, 0..h, wide));
                    constant = n as f64 * c.bias * units.kt;
                }
            }
            let slopes = HEADS * wide..HEADS * wide + SLOPES;
            match &layer.attention {
                None => {
                    let all = HEADS * n + SLOPES;
                    parts.part(Place::Out, block(&constants.out.forward, 0..all, 0..h, wide));
                    parts.part(Place::OutBias, vector(&constants.out.bias, 0..h, wide));
                    parts.part(Place::OutBack, block(&constants.out.back, 0..h, 0..all, all));
                }
                Some(attention) => {
                    let head = |a: usize| a * wide..a * wide + h;
                    let heads = 0..HEADS;
                    let Dense { forward, bias, back } = &attention.logits;
                    parts.part(Place::Logits, heads.clone().flat_map(|a| block(forward, 0..h, head(a), wide)));
                    parts.part(Place::LogitsBias, heads.clone().flat_map(|a| vector(bias, head(a), wide)));
                    parts.part(Place::LogitsBack, heads.clone().flat_map(|a| block(back, head(a), 0..h, wide)));
                    parts.part(Place::LogitSlopes, block(forward, 0..h, slopes.clone(), SLOPES));
                    parts.part(Place::LogitSlopesBias, vector(bias, slopes.clone(), SLOPES));
                    parts.part(Place::LogitSlopesBack, block(back, slopes.clone(), 0..h, wide));
                    let Dense { forward, bias, back } = &attention.out;
                    parts.part(Place::Out, heads.clone().flat_map(|a| block(forward, head(a), 0..h, wide)));
                    parts.part(Place::OutBias, vector(bias, 0..h, wide));
                    parts.part(Place::OutBack, heads.clone().flat_map(|a| block(back, 0..h, head(a), wide)));
                    parts.part(Place::OutShifts, block(forward, slopes.clone(), 0..h, wide));
                    parts.part(Place::OutShiftsBack, block(back, 0..h, slopes, SLOPES));
                }
            }
        }
        if let Some((scores, bias)) = &self.scores {
            parts.part(Place::Score, (0..n).flat_map(|j| block(scores, j * wide..j * wide + h, 0..3 * n, 3 * n)));
            parts.part(Place::ScoreBias, vector(bias, 0..3 * n, 3 * n));
        }
        let columns = constants.logits.len() / (n * HEADS);
        let fields = vec![
            Field::Reals(parts.rows.weights),
            Field::Ints(parts.places),
            Field::Reals((0..wide).flat_map(|f| (0..n).map(move |i| constants.nodes[i * wide + f])).collect()),
            Field::Reals(constants.logits.chunks_exact(columns).flat_map(|row| row[..n].to_vec()).collect()),
            Field::Reals(constants.slopes.clone()),
            Field::Spill,
            Field::SpillSize,
            Field::Int(self.layers.len() as i32),
            Field::Int(wide as i32),
            Field::Int(h as i32),
            Field::Int(i32::from(self.scores.is_none())),
            Field::Real(units.scale),
            Field::Real(units.kt * units.scale),
            Field::Real(units.kt),
        ];
        // As in `Work` and `Kept` there.
        let scratch = 3 * wide + (2 * wide).max(HEADS * n + SLOPES) + 2 * SLOPES + 2 * n + 7 + 3 * Rows::PARTS;
        let spill = self.layers.len() * ((6 + QUARTERS + HEADS) * wide + SLOPES + HEADS * n + 4) + wide;
        DeviceModel { source: GRAPH, fields, group: Some(Rows::group(n, wide)), scratch, spill, constant }
    }
}

impl Perceptron<f64> {
    fn device_model(&self, bias: &[f64], units: Units) -> Option<DeviceModel> {
        let d = self.dimension;
        let wide: Vec<usize> = self.widths.iter().map(|w| w.next_multiple_of(4)).collect();
        let (&last, widest) = (wide.last()?, wide.iter().copied().max()?);
        if d > 3 * THREADS {
            return None;
        }
        let mut rows = Rows::default();
        let mut layers = Vec::new();
        for (l, &outputs) in wide.iter().enumerate() {
            let (forward, back, bias, inputs) = match l.checked_sub(1) {
                None => (&self.first[0], &self.first[1], bias, d),
                Some(before) => (&self.hidden[before].forward, &self.hidden[before].back, &self.hidden[before].bias[..], wide[before]),
            };
            layers.push(outputs as i32);
            layers.push(rows.push(block(forward, 0..inputs, 0..outputs, outputs)));
            layers.push(rows.push(vector(bias, 0..outputs, outputs)));
            let inputs = inputs.next_multiple_of(4);
            layers.push(rows.push(block(back, 0..outputs, 0..inputs, inputs)));
        }
        let mut constant = 0.0;
        match (&self.energy, &self.scores) {
            (Some((weights, bias)), _) => {
                layers.push(rows.push(vector(weights, 0..last, last)));
                constant = bias * units.kt;
            }
            (None, Some((scores, bias))) => {
                let outputs = d.next_multiple_of(4);
                layers.push(outputs as i32);
                layers.push(rows.push(block(scores, 0..last, 0..outputs, outputs)));
                layers.push(rows.push(vector(bias, 0..outputs, outputs)));
            }
            (None, None) => return None,
        }
        let fields = vec![
            Field::Reals(rows.weights),
            Field::Ints(layers),
            Field::Int(d as i32),
            Field::Int(wide.len() as i32),
            Field::Int(widest as i32),
            Field::Int(i32::from(self.energy.is_some())),
            Field::Real(units.scale),
            Field::Real(units.kt * units.scale),
            Field::Real(units.kt),
        ];
        let scratch = d.next_multiple_of(4) + 2 * widest + Rows::PARTS + wide.iter().sum::<usize>();
        Some(DeviceModel { source: PERCEPTRON, fields, group: Some(Rows::group(1, widest)), scratch, spill: 0, constant })
    }
}
