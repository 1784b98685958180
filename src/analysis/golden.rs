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
