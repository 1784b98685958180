//! aPE and rPE as parameters of `kernels/ditmc_scalar.cu`.

use super::super::device::{Parts, Question, turned};
use super::*;
use crate::rows::Rows;
use scorefield_integrators::device::{DeviceModel, Field};

const SOURCE: &str = concat!(
    include_str!("../../../kernels/rows.cu"),
    include_str!("../../../kernels/pairs.cu"),
    include_str!("../../../kernels/ditmc.cu"),
    include_str!("../../../kernels/ditmc_scalar.cu")
);

/// `Place` in the kernel.
const QKV: usize = 0;
const OUT: usize = 1;
const FIRST: usize = 3;
const SECOND: usize = 5;
const PAIR: usize = 7;
const TURN: usize = 8;
const PLACES: usize = 9;
/// Behind the blocks.
const POSITION: usize = 0;
const POSITION_OUT: usize = 1;
const READOUT: usize = 2;
/// Parts of a block's table.
const TABLES: usize = 2;

impl Parameters<f64> {
    /// The kernels' parameters for one molecule at a fixed time.
    pub(in super::super) fn device_model(&self, question: Question<'_>) -> DeviceModel {
        let (config, n, f) = (&self.config, question.context.len(), self.config.features());
        let hidden = f * config.expansion;
        let mut work = Work::new(false);
        work.set_graphs(self, std::iter::once(question.context));
        work.set_times(self, std::iter::once(question.time));
        let relative = config.variant == Variant::Rpe;
        let maps = self.pair_maps.place.outputs;
        let mut parts = Parts::new(PLACES);
        let pairs = relative.then(|| self.pair_products());
        for (l, block) in self.blocks.iter().enumerate() {
            parts.next();
            let scale = (config.heads as f64 / f as f64).sqrt();
            let qkv = self.weight(&block.qkv).iter().enumerate();
            parts.push(QKV, qkv.map(|(k, w)| if k % (3 * f) < f { scale * w } else { *w }));
            let kappa = &self.values[self.places.blocks[l].kappa.clone()];
            parts.push(OUT, self.weight(&block.out).iter().enumerate().map(|(k, w)| kappa[k / f] * w));
            parts.push(OUT + 1, self.bias(&block.out));
            for (place, dense) in [(FIRST, &block.perceptron.first), (SECOND, &block.perceptron.second)] {
                parts.push(place, self.weight(dense).iter().copied());
                parts.push(place + 1, self.bias(dense));
            }
            if let Some([products, turns]) = &pairs {
                let first = |part: usize| (TABLES * l + part) * f;
                let rows = (0..TABLES).flat_map(|part| (0..f).map(move |k| k * maps + first(part)));
                parts.push(PAIR, rows.flat_map(|at| products[at..at + f].iter().copied()));
                let column = |c: usize| (0..4).map(move |axis| if axis < 3 { turns[axis * maps + c] } else { 0.0 });
                parts.push(TURN, (first(0)..first(0) + TABLES * f).flat_map(column));
            }
        }
        parts.next();
        parts.push(POSITION, self.weight(&self.position.first)[..3 * f].iter().copied());
        parts.push(POSITION_OUT, self.weight(&self.position.second).iter().copied());
        let columns = self.readout.place.outputs;
        parts.push(READOUT, self.weight(&self.readout).chunks_exact(columns).flat_map(|row| [row[0], row[1], row[2], 0.0]));
        parts.push(READOUT + 1, self.bias(&self.readout).take(3));
        let embedding = &self.values[self.layout.types.clone()];
        let nodes = (0..f).flat_map(|k| question.context.types.iter().map(move |&z| embedding[z as usize * f + k]));
        let table = if relative {
            let mut table = vec![0.0; work.table_rows * maps];
            self.pair_maps.apply(&self.values, work.table_rows, &work.tokens, &mut table);
            table
        } else {
            work.table[..work.table_rows * maps].to_vec()
        };
        let member = &work.graphs[0];
        let mut fields = vec![
            Field::Reals(parts.rows.weights),
            Field::Ints(parts.places),
            Field::Reals(nodes.collect()),
            Field::Reals(work.modulations(n, f)),
            Field::Reals(turned(&table, maps, work.table_rows, 0..maps).collect()),
            Field::Ints(member.rows.iter().map(|&row| member.row(row) as i32).collect()),
            Field::Spill,
            Field::SpillSize,
        ];
        let numbers = [self.blocks.len(), f, hidden, config.heads, config.head_width, work.table_rows, usize::from(relative)];
        fields.extend(numbers.map(|x| Field::Int(x as i32)));
        fields.extend(question.units());
        // As in `work_of` there: rows of atoms, and those of pairs, of which an atom has so many, with their padding.
        let pairs = if relative { (n / 2 + 4) * (3 + 2 * f) } else { 0 };
        let spill = 6 + 3 * f + hidden.max(3 * f) + config.heads * (n - 1) + 3 * Rows::PARTS + pairs;
        DeviceModel { source: SOURCE, fields, group: Some(Rows::group(n, f)), scratch: 0, spill, constant: 0.0 }
    }

    fn weight(&self, dense: &Dense<f64>) -> &[f64] {
        &self.values[dense.place.weight.clone()]
    }

    fn bias(&self, dense: &Dense<f64>) -> impl Iterator<Item = f64> {
        dense.place.bias.iter().flat_map(|b| self.values[b.clone()].iter().copied())
    }

    /// From what lies before the second layer of a displacement's perceptron, `[F]`, and from a displacement, `[3]`, to the maps of all
    /// blocks: `B` and `A B`.
    fn pair_products(&self) -> [Vec<f64>; 2] {
        let (f, maps) = (self.config.features(), self.pair_maps.place.outputs);
        let (mut products, mut turns, mut tokens) = (vec![0.0; f * maps], vec![0.0; 3 * maps], vec![0.0; 3 * f]);
        self.pair_maps.apply(&self.values, f, self.weight(&self.position.second), &mut products);
        self.position.second.apply(&self.values, 3, self.weight(&self.position.first), &mut tokens);
        self.pair_maps.apply(&self.values, 3, &tokens, &mut turns);
        [products, turns]
    }
}

impl Work<f64> {
    /// What meets the features of every atom: `[F, N]` of each column of each block, then of the readout.
    fn modulations(&self, n: usize, f: usize) -> Vec<f64> {
        let mut all = Vec::new();
        let mut push = |values: &[f64], stride: usize, column: usize, add: f64| {
            all.extend(turned(values, stride, n, column * f..(column + 1) * f).map(|x| x + add));
        };
        for block in &self.modulated {
            for (column, add) in [(GAMMA1, 1.0), (BETA1, 0.0), (ALPHA1, 0.0), (GAMMA2, 1.0), (BETA2, 0.0), (ALPHA2, 0.0)] {
                push(&block.values, MODULATION * f, column, add);
            }
        }
        // Shift comes before scale there.
        push(&self.readout.values, 2 * f, 1, 1.0);
        push(&self.readout.values, 2 * f, 0, 0.0);
        all
    }
}
