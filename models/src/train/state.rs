//! A state of training as one safetensors file: named arrays in the precision of the run, and one JSON header.

use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{Array, DType};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Key of the header in the metadata.
const KEY: &str = "scorefield-training";

/// Everything that training goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct StateFile {
    /// What the owner of the state wants to know, as JSON.
    pub header: String,
    /// Arrays by name.
    pub arrays: BTreeMap<String, Array>,
}

impl StateFile {
    /// The file's bytes; the same state gives the same bytes.
    ///
    /// # Errors
    /// Where the arrays cannot be described.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |e: safetensors::SafeTensorError| Error::spec("state of training", e.to_string());
        let raw: Vec<(&String, Dtype, usize, Vec<u8>)> = self
            .arrays
            .iter()
            .map(|(name, array)| match array {
                Array::F32(v) => (name, Dtype::F32, v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
                Array::F64(v) => (name, Dtype::F64, v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            })
            .collect();
        let views = raw
            .iter()
            .map(|(name, dtype, n, bytes)| TensorView::new(*dtype, vec![*n], bytes).map(|v| (name.as_str(), v)))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(fail)?;
        serialize(views, Some(HashMap::from([(KEY.to_owned(), self.header.clone())]))).map_err(fail)
    }

    /// Reads what [`StateFile::to_bytes`] wrote; `file` is for messages.
    ///
    /// # Errors
    /// Where the bytes are no such file, or a part of one.
    pub fn from_bytes(file: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| Error::File { file: file.into(), reason: format!("it is no whole state of training: {reason}") };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| refuse(e.to_string()))?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(KEY)).cloned().ok_or_else(|| refuse("it has no header".into()))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string()))?;
        let mut arrays = BTreeMap::new();
        for (name, view) in tensors.tensors() {
            let array = match view.dtype() {
                Dtype::F32 => Array::F32(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
                Dtype::F64 => Array::F64(view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
                other => return Err(refuse(format!("`{name}` has type {other:?}"))),
            };
            arrays.insert(name, array);
        }
        Ok(StateFile { header, arrays })
    }

    /// A state of arrays in one precision; `header` is the owner's.
    pub fn of<T: SimdReal>(header: &serde_json::Value, arrays: &[(&str, &[T])]) -> Self {
        let array = |&(name, values): &(&str, &[T])| {
            let mut array = Array::zeros(T::DTYPE, values.len());
            if let Some(slice) = T::slice_mut(&mut array) {
                slice.copy_from_slice(values);
            }
            (name.to_owned(), array)
        };
        StateFile { header: header.to_string(), arrays: arrays.iter().map(array).collect() }
    }

    /// Takes the array `name` into `to`, which has its precision and length.
    ///
    /// # Errors
    /// As [`StateFile::take`].
    pub fn take_into<T: SimdReal>(&mut self, file: &Path, name: &str, to: &mut [T]) -> Result<()> {
        let array = self.take(file, name, T::DTYPE, to.len())?;
        if let Some(from) = T::slice(&array) {
            to.copy_from_slice(from);
        }
        Ok(())
    }

    /// Takes the array `name`, which must be of `dtype` and have `len` numbers.
    ///
    /// # Errors
    /// Where it is not so; `file` is for messages.
    pub fn take(&mut self, file: &Path, name: &str, dtype: DType, len: usize) -> Result<Array> {
        let fail = |reason: String| Error::Tensor { file: file.into(), tensor: name.into(), reason };
        match self.arrays.remove(name) {
            Some(a) if a.dtype() == dtype && a.len() == len => Ok(a),
            Some(a) => {
                Err(fail(format!("it has {} numbers in {}, but {len} in {dtype} are needed; the recipe is another", a.len(), a.dtype())))
            }
            None => Err(fail("it is missing; the recipe is another".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_bitwise_and_notices_damage() {
        let state = StateFile {
            header: "{\"step\":7}".into(),
            arrays: BTreeMap::from([
                ("a".to_owned(), Array::F32(vec![1.5, -0.0, f32::MIN_POSITIVE])),
                ("b".to_owned(), Array::F64(vec![std::f64::consts::PI])),
            ]),
        };
        let bytes = state.to_bytes().unwrap();
        let file = Path::new("state");
        let mut read = StateFile::from_bytes(file, &bytes).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.to_bytes().unwrap(), bytes);
        assert!(read.take(file, "a", DType::F64, 3).is_err());
        assert!(StateFile::from_bytes(file, &bytes).unwrap().take(file, "a", DType::F32, 3).is_ok());
        assert!(StateFile::from_bytes(file, &bytes).unwrap().take(file, "c", DType::F32, 3).unwrap_err().to_string().contains("missing"));
        for n in [0, 7, 20, bytes.len() - 1] {
            assert!(StateFile::from_bytes(file, &bytes[..n]).is_err(), "{n}");
        }
    }
}
