//! For tests of the metrics: independent normal numbers, and values of the published code where they are at hand.

use scorefield_integrators::{Noise, Purpose};
use std::path::PathBuf;

/// Two independent standard normal numbers.
pub(super) fn normal(i: u64, stream: u32) -> [f64; 2] {
    let z = Noise::new(7).normals(0, stream, i, Purpose::Thermostat);
    [z[0], z[1]]
}

/// Asserts that two numbers agree to 10⁻⁹ of the larger.
pub(super) fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-9 * got.abs().max(want.abs()), "{what}: {got} instead of {want}");
}

/// Inputs and results of the published metrics.
pub(super) struct Golden {
    bytes: Vec<u8>,
    values: serde_json::Value,
}

impl Golden {
    /// From the reference data that `SCOREFIELD_REFERENCE` names, else beside the workspace; `None` where there are none.
    pub(super) fn load() -> Option<Self> {
        let root = std::env::var_os("SCOREFIELD_REFERENCE")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
        let folder = root.join("golden/scoremd");
        let (Ok(bytes), Ok(text)) =
            (std::fs::read(folder.join("metrics.safetensors")), std::fs::read_to_string(folder.join("metrics.json")))
        else {
            println!("skipped: no metrics in {}; set SCOREFIELD_REFERENCE", folder.display());
            return None;
        };
        let values: serde_json::Value = serde_json::from_str(&text).unwrap();
        Some(Golden { bytes, values: values["float64"].clone() })
    }

    /// A tensor as f64.
    pub(super) fn numbers(&self, name: &str) -> Vec<f64> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let data = tensor.data();
        match tensor.dtype() {
            safetensors::Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            safetensors::Dtype::F32 => data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
            safetensors::Dtype::I32 => data.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// A tensor `[F, 2]` as points.
    pub(super) fn points(&self, name: &str) -> Vec<[f64; 2]> {
        self.numbers(name).chunks_exact(2).map(|p| [p[0], p[1]]).collect()
    }

    /// A number of the double-precision results.
    pub(super) fn value(&self, name: &str) -> f64 {
        self.values[name].as_f64().unwrap()
    }

    /// A table of the double-precision results, row by row.
    pub(super) fn table(&self, name: &str) -> Vec<f64> {
        self.values[name].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect()
    }
}

#[test]
fn metrics_of_numpy_and_scipy() {
    use super::divergence::{histogram_js, pair_distance_js};
    use super::pmf::PmfGrid;
    use super::transition::{TransitionMatrix, assign};
    use super::wasserstein::wasserstein1;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/consistency/fixture.json");
    let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let value = |name: &str| fixture[name].as_f64().unwrap();
    let list = |name: &str| -> Vec<f64> {
        fixture[name].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect()
    };
    let [pa, pb] = ["a", "b"].map(|name| list(name).chunks_exact(2).map(|p| [p[0], p[1]]).collect::<Vec<_>>());
    let limits = list("limits");
    let limits = [[limits[0], limits[1]], [limits[2], limits[3]]];
    close(histogram_js(&pa, &pb, 10, None), value("js_range_10"), "JS over the range of the data");
    close(histogram_js(&pa, &pb, 10, Some(limits)), value("js_limits_10"), "JS within limits");
    let grid = PmfGrid::new(limits, 12);
    close(grid.squared_error(&pa, &pb), value("pmf_12"), "PMF");
    close(grid.weighted_js(&pa, &pb), value("mjs_12"), "MJS");
    let (xa, xb) = (list("beads_a"), list("beads_b"));
    close(pair_distance_js(&xa, &xb, 6, 1), value("pairs_offset_1"), "pairs");
    close(pair_distance_js(&xa, &xb, 6, 3), value("pairs_offset_3"), "pairs, offset 3");
    let first = |points: &[[f64; 2]]| points.iter().map(|p| p[0]).collect::<Vec<_>>();
    close(wasserstein1(&first(&pa), &first(&pb)), value("wasserstein_x"), "W1");
    let centres = list("centres");
    let matrix = |name: &str| TransitionMatrix::count([&assign(&list(name), 2, &centres)[..]], 3, 1);
    let (p, q) = (matrix("a"), matrix("b"));
    p.probabilities().iter().zip(list("transition_matrix_a")).for_each(|(got, want)| close(*got, want, "transition"));
    close(p.divergence(&q), value("transition_js"), "transitions");
    p.mean_first_passage_times().iter().zip(list("passage_times_a")).for_each(|(got, want)| close(*got, want, "passage"));
}
