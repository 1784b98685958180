//! What a PaiNN looks like: sizes, radial basis, head, and where each parameter lies.

use crate::error::{Error, Result};
use crate::matrix::padded;
use scorefield_integrators::{Noise, Purpose};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Atomic numbers that embeddings have a row for.
pub const TYPES: usize = 100;
/// Fewest rows of the filter that are kept: the widest band of radial functions.
pub(super) const MOST_BAND: usize = 18;

/// What comes out of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// One vector per atom, by gated equivariant blocks.
    Direct,
    /// One energy per molecule, by a perceptron per atom.
    Energy,
}

/// Sizes and constants of a PaiNN (K. Schütt, O. Unke, M. Gastegger, *Equivariant message passing for the prediction of
/// tensorial properties and molecular spectra*, ICML 2021). Lengths in Å.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PainnConfig {
    /// Features of an atom, F.
    pub features: usize,
    /// Interactions.
    pub layers: usize,
    /// Gaussian radial functions, evenly spaced over 0 to `cutoff`, as wide as they are apart.
    pub radial: usize,
    /// Cutoff of the cosine (Å).
    pub cutoff: f64,
    /// Added to squared distances (Å²), so that atoms in one place have finite derivatives.
    pub distance_epsilon: f64,
    /// Added to squared norms of vector features, for the same reason.
    pub norm_epsilon: f64,
    /// What comes out.
    pub head: Head,
    /// Layers of the head.
    pub head_layers: usize,
    /// The head reads the noise level (ln σ)/4.
    pub time: bool,
}

impl Default for PainnConfig {
    /// The network of generative pseudo-force fields (arXiv 2605.19050).
    fn default() -> Self {
        PainnConfig {
            features: 256,
            layers: 4,
            radial: 600,
            cutoff: 150.0,
            distance_epsilon: 1e-8,
            norm_epsilon: 1e-8,
            head: Head::Direct,
            head_layers: 3,
            time: false,
        }
    }
}

impl PainnConfig {
    /// Names of presets.
    pub const PRESETS: [&str; 4] = ["gpff", "gpff-small", "painn", "painn-small"];

    /// A preset: the pseudo-force fields `gpff` (4 × 256) and `gpff-small` (3 × 128), or the force fields with an energy `painn` (3 × 128)
    /// and `painn-small` (3 × 64).
    pub fn preset(name: &str) -> Option<Self> {
        let gpff = PainnConfig::default();
        match name {
            "gpff" => Some(gpff),
            "gpff-small" => Some(PainnConfig { features: 128, layers: 3, ..gpff }),
            "painn" => Some(PainnConfig {
                features: 128,
                layers: 3,
                radial: 20,
                cutoff: 5.0,
                distance_epsilon: 0.0,
                head: Head::Energy,
                head_layers: 2,
                ..gpff
            }),
            "painn-small" => Self::preset("painn").map(|painn| PainnConfig { features: 64, ..painn }),
            _ => None,
        }
    }

    /// Distance of neighbouring radial functions, and their width (Å).
    pub fn spacing(&self) -> f64 {
        self.cutoff / (self.radial - 1) as f64
    }

    /// Widths of the head's layers: each half of the one before, the last one 1.
    pub fn head_widths(&self) -> Vec<usize> {
        let mut widths = vec![self.features];
        for k in 1..self.head_layers {
            widths.push((widths[k - 1] / 2).max(1));
        }
        widths.push(1);
        widths
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        Layout::new(self).map.len()
    }

    /// Checks sizes before memory is taken.
    ///
    /// # Errors
    /// Names what is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter("painn", name, value, remedy));
        if !(1..=4096).contains(&self.features) {
            return refuse("features", &self.features, "give 1 to 4096");
        }
        if !(1..=64).contains(&self.layers) {
            return refuse("layers", &self.layers, "give 1 to 64");
        }
        if !(2..=65536).contains(&self.radial) {
            return refuse("radial", &self.radial, "give 2 to 65536");
        }
        if !(self.cutoff > 0.0 && self.cutoff.is_finite()) {
            return refuse("cutoff", &self.cutoff, "give a length above zero");
        }
        if !(1..=8).contains(&self.head_layers) {
            return refuse("head-layers", &self.head_layers, "give 1 to 8");
        }
        for (name, value) in [("distance-epsilon", self.distance_epsilon), ("norm-epsilon", self.norm_epsilon)] {
            if !(0.0..1.0).contains(&value) {
                return refuse(name, &value, "give a small number, for example 1e-8");
            }
        }
        if self.norm_epsilon == 0.0 {
            return refuse("norm-epsilon", &0, "vectors of no length would have no derivative; give 1e-8");
        }
        if self.time && self.head == Head::Energy {
            return refuse("time", &self.time, "only a direct head reads a noise level");
        }
        Ok(())
    }
}

/// One tensor in files.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Name in files, that of SchNetPack's modules.
    pub(super) name: String,
    /// Shape in files.
    pub(super) shape: Vec<usize>,
}

/// Parameters as two layers see them: `weight [out, in]`, `bias [out]`, padded.
#[derive(Clone, Debug)]
pub(super) struct DensePlace {
    pub(super) weight: Range<usize>,
    pub(super) bias: Option<Range<usize>>,
    /// Padded widths.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// The dense layers of one interaction with its mixing.
#[derive(Clone, Debug)]
pub(super) struct LayerPlaces {
    pub(super) context: [DensePlace; 2],
    pub(super) mix: DensePlace,
    pub(super) mixing: [DensePlace; 2],
}

/// A gated block, `mix` its channel mix; of an energy head only the first of `dense` is used.
#[derive(Clone, Debug)]
pub(super) struct BlockPlaces {
    pub(super) mix: Option<DensePlace>,
    pub(super) dense: Vec<DensePlace>,
}

/// Where each parameter lies among the padded ones. Padding is zero and stays so.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) entries: Vec<Entry>,
    pub(super) embedding: Range<usize>,
    /// `[radial, layers · 3 F]`, transposed.
    pub(super) filter: Range<usize>,
    pub(super) filter_bias: Range<usize>,
    pub(super) layers: Vec<LayerPlaces>,
    pub(super) head: Vec<BlockPlaces>,
    /// Padded parameters.
    pub(super) len: usize,
    /// Place of each real parameter, in the order of the entries and of their elements in files.
    pub(super) map: Vec<usize>,
    /// Places that hold nothing.
    pub(super) padding: Vec<usize>,
}

impl Layout {
    pub(super) fn new(config: &PainnConfig) -> Self {
        let mut b = Builder::default();
        let f = config.features;
        let embedding = b.tensor("representation.embedding.weight", &[TYPES, f], |r, c| r * padded(f) + c, TYPES * padded(f));
        let out = config.layers * 3;
        let stride = out * padded(f);
        let column = |o: usize| o / f * padded(f) + o % f;
        let rows = config.radial.max(MOST_BAND);
        let filter = b.tensor("representation.filter_net.weight", &[out * f, config.radial], |r, c| c * stride + column(r), rows * stride);
        let filter_bias = b.tensor("representation.filter_net.bias", &[out * f], |r, _| column(r), stride);
        let mut layers = Vec::new();
        // As in the modules: all interactions, then all mixings.
        let contexts: Vec<[DensePlace; 2]> = (0..config.layers)
            .map(|l| {
                let name = format!("representation.interactions.{l}.interatomic_context_net");
                [b.dense(&format!("{name}.0"), &[f], &[f], true), b.dense(&format!("{name}.1"), &[f], &[f; 3], true)]
            })
            .collect();
        for (l, context) in contexts.into_iter().enumerate() {
            let name = format!("representation.mixing.{l}");
            let mixing = [
                b.dense(&format!("{name}.intraatomic_context_net.0"), &[f, f], &[f], true),
                b.dense(&format!("{name}.intraatomic_context_net.1"), &[f], &[f; 3], true),
            ];
            layers.push(LayerPlaces { context, mixing, mix: b.dense(&format!("{name}.mu_channel_mix"), &[f], &[f; 2], false) });
        }
        let widths = config.head_widths();
        let mut head = Vec::new();
        for (k, w) in widths.windows(2).enumerate() {
            let (n, m) = (w[0], w[1]);
            let name = format!("output_modules.0.outnet.{k}");
            head.push(match config.head {
                Head::Energy => BlockPlaces { mix: None, dense: vec![b.dense(&name, &[n], &[m], true)] },
                Head::Direct => {
                    let mix = b.dense(&format!("{name}.mix_vectors"), &[n], &[m; 2], false);
                    let inputs: &[usize] = if k == 0 && config.time { &[n, m, 1] } else { &[n, m] };
                    let first = b.dense(&format!("{name}.scalar_net.0"), inputs, &[n], true);
                    let second = b.dense(&format!("{name}.scalar_net.1"), &[n], &[m; 2], true);
                    BlockPlaces { mix: Some(mix), dense: vec![first, second] }
                }
            });
        }
        let mut real = vec![false; b.len];
        b.map.iter().for_each(|&place| real[place] = true);
        let padding = (0..b.len).filter(|&place| !real[place]).collect();
        Layout { entries: b.entries, embedding, filter, filter_bias, layers, head, len: b.len, map: b.map, padding }
    }

    /// Padded parameters from real ones.
    pub(super) fn pad(&self, real: &[f64]) -> Vec<f64> {
        let mut values = vec![0.0; self.len];
        for (&place, &v) in self.map.iter().zip(real) {
            values[place] = v;
        }
        values
    }

    /// Parameters `[len]` that training starts from: weights uniform with variance 2/(inputs + outputs) (X. Glorot and Y. Bengio),
    /// biases zero, embeddings standard normal.
    pub(super) fn initialise(&self, noise: Noise) -> Vec<f64> {
        let mut real = Vec::with_capacity(self.map.len());
        for (k, e) in self.entries.iter().enumerate() {
            let n: usize = e.shape.iter().product();
            let bound = (6.0 / e.shape.iter().sum::<usize>() as f64).sqrt();
            real.extend((0..n).map(|i| match (e.shape.len(), k) {
                (1, _) => 0.0,
                (_, 0) => noise.normals(i as u32, 0, k as u64, Purpose::Initialisation)[0],
                _ => bound * (2.0 * noise.uniform(i as u32, 0, k as u64, Purpose::Initialisation) - 1.0),
            }));
        }
        self.pad(&real)
    }
}

#[derive(Default)]
struct Builder {
    entries: Vec<Entry>,
    len: usize,
    map: Vec<usize>,
}

impl Builder {
    /// Adds a tensor of `shape`, whose element (row, column) lies at `place` of `len` numbers.
    fn tensor(&mut self, name: &str, shape: &[usize], place: impl Fn(usize, usize) -> usize, len: usize) -> Range<usize> {
        let start = self.len;
        let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
        for r in 0..rows {
            self.map.extend((0..columns).map(|c| start + place(r, c)));
        }
        self.len += padded(len);
        self.entries.push(Entry { name: name.to_owned(), shape: shape.to_vec() });
        start..start + len
    }

    /// A dense layer between segments of these widths.
    fn dense(&mut self, name: &str, inputs: &[usize], outputs: &[usize], bias: bool) -> DensePlace {
        let places = |widths: &[usize]| -> (Vec<usize>, usize) {
            let (mut places, mut start) = (Vec::new(), 0);
            for &w in widths {
                places.extend(start..start + w);
                start += padded(w);
            }
            (places, start)
        };
        let ((rows, outputs), (columns, inputs)) = (places(outputs), places(inputs));
        let weight =
            self.tensor(&format!("{name}.weight"), &[rows.len(), columns.len()], |r, c| rows[r] * inputs + columns[c], inputs * outputs);
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[rows.len()], |r, _| rows[r], outputs));
        DensePlace { weight, bias, inputs, outputs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_numbers_of_parameters() {
        let gpff = PainnConfig::preset("gpff").unwrap();
        let energy = PainnConfig { head: Head::Energy, head_layers: 2, ..gpff.clone() };
        let narrow = |c: &PainnConfig| PainnConfig { radial: 20, ..c.clone() };
        assert_eq!(gpff.parameters(), 5_055_618);
        assert_eq!(PainnConfig { head_layers: 2, ..gpff.clone() }.parameters(), 5_010_690);
        assert_eq!(energy.parameters(), 4_796_673);
        assert_eq!(narrow(&gpff).parameters(), 3_273_858);
        assert_eq!(narrow(&energy).parameters(), 3_014_913);
        assert_eq!(PainnConfig::preset("painn").unwrap().parameters(), 589_057);
        let layout = Layout::new(&gpff);
        let count = |start: &str| {
            let of = layout.entries.iter().filter(|e| e.name.starts_with(start));
            of.map(|e| e.shape.iter().product::<usize>()).sum::<usize>()
        };
        assert_eq!(count("representation.embedding"), 25_600);
        assert_eq!(count("representation.filter_net"), 1_846_272);
        assert_eq!(count("representation.interactions"), 1_052_672);
        assert_eq!(count("representation.mixing"), 1_839_104);
        assert_eq!(count("output_modules"), 291_970);
    }

    #[test]
    fn every_parameter_has_a_place_of_its_own() {
        let config = PainnConfig { features: 20, layers: 2, radial: 7, time: true, ..PainnConfig::default() };
        let layout = Layout::new(&config);
        let mut seen = vec![false; layout.len];
        for &p in &layout.map {
            assert!(!std::mem::replace(&mut seen[p], true));
        }
        assert_eq!(layout.padding.len() + layout.map.len(), layout.len);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = PainnConfig::default();
        for bad in [
            PainnConfig { features: 0, ..good.clone() },
            PainnConfig { radial: 1, ..good.clone() },
            PainnConfig { cutoff: f64::NAN, ..good.clone() },
            PainnConfig { head_layers: 0, ..good.clone() },
            PainnConfig { time: true, head: Head::Energy, ..good.clone() },
            PainnConfig { norm_epsilon: -1.0, ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(good.check().is_ok());
    }
}
