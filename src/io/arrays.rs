//! Batches of numbers on disk: NPY and NPZ for NumPy, safetensors for everyone.

use super::atomic::write_atomically;
use super::error::{IoError, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Numbers of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl Values {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Values::F64(v) => v.len(),
            Values::F32(v) => v.len(),
            Values::I64(v) => v.len(),
        }
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Little-endian bytes.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Values::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Values::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Values::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Values::F64(_) => Kind::F64,
            Values::F32(_) => Kind::F32,
            Values::I64(_) => Kind::I64,
        }
    }
}

/// An array `[shape…]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// As many numbers as the product of the shape.
    pub values: Values,
}

/// Named arrays, for example `positions` `[B, N, 3]` in nm and `energies` `[B]` in kJ/mol.
pub type Arrays = BTreeMap<String, Tensor>;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    F64,
    F32,
    I64,
}

impl Kind {
    fn size(self) -> usize {
        if self == Kind::F32 { 4 } else { 8 }
    }
    fn npy(self) -> &'static str {
        match self {
            Kind::F64 => "<f8",
            Kind::F32 => "<f4",
            Kind::I64 => "<i8",
        }
    }
    fn safetensors(self) -> Dtype {
        match self {
            Kind::F64 => Dtype::F64,
            Kind::F32 => Dtype::F32,
            Kind::I64 => Dtype::I64,
        }
    }
    fn values(self, bytes: &[u8]) -> Values {
        fn parse<const K: usize, T>(bytes: &[u8], from: fn([u8; K]) -> T) -> Vec<T> {
            bytes.as_chunks().0.iter().map(|c| from(*c)).collect()
        }
        match self {
            Kind::F64 => Values::F64(parse(bytes, f64::from_le_bytes)),
            Kind::F32 => Values::F32(parse(bytes, f32::from_le_bytes)),
            Kind::I64 => Values::I64(parse(bytes, i64::from_le_bytes)),
        }
    }
}

/// Product of a shape, unless it overflows.
fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &k| n.checked_mul(k))
}

/// Which container a path names.
enum Container {
    Npy,
    Npz,
    Safetensors,
}

fn container(path: &Path) -> Result<Container> {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("npy") => Ok(Container::Npy),
        Some("npz") => Ok(Container::Npz),
        Some("safetensors") => Ok(Container::Safetensors),
        _ => Err(IoError::format(path, "arrays are written and read as .npy, .npz and .safetensors", "Name such a file")),
    }
}

/// Writes arrays to an NPZ or safetensors file, or a single one to an NPY file, whole or not at all. The same arrays give the
/// same bytes. `metadata` goes into safetensors only; the others have no place for it.
///
/// # Errors
/// Where there are several arrays for NPY, a shape does not fit its numbers, the extension is another, or the disk refuses.
pub fn write_arrays(path: impl AsRef<Path>, arrays: &Arrays, metadata: &BTreeMap<String, String>) -> Result<()> {
    let path = path.as_ref();
    for (name, tensor) in arrays {
        if count(&tensor.shape) != Some(tensor.values.len()) {
            return Err(IoError::shape(path, format!("`{name}` has {} numbers for the shape {:?}", tensor.values.len(), tensor.shape)));
        }
        if name.is_empty() || name.contains(['/', '\\', '\0']) {
            return Err(IoError::shape(path, format!("`{name}` is no name for an array")));
        }
    }
    match container(path)? {
        Container::Npy => match arrays.values().collect::<Vec<_>>()[..] {
            [tensor] => write_atomically(path, |w| w.write_all(&npy_header(tensor)).and_then(|()| w.write_all(&tensor.values.bytes()))),
            _ => Err(IoError::format(path, format!("an .npy file holds one array, not {}", arrays.len()), "Write .npz instead")),
        },
        Container::Npz => write_atomically(path, |w| write_npz(w, arrays)),
        Container::Safetensors => {
            let bytes: Vec<(&String, &Tensor, Vec<u8>)> = arrays.iter().map(|(n, t)| (n, t, t.values.bytes())).collect();
            let fail = |e: safetensors::SafeTensorError| IoError::shape(path, e.to_string());
            let mut views = Vec::with_capacity(bytes.len());
            for (name, tensor, bytes) in &bytes {
                views
                    .push((name.as_str(), TensorView::new(tensor.values.kind().safetensors(), tensor.shape.clone(), bytes).map_err(fail)?));
            }
            // The crate keeps metadata in a hash map: with one key the file's bytes do not depend on the hasher.
            let metadata = match metadata.is_empty() {
                true => None,
                false => Some(HashMap::from([("scorefield".to_owned(), serde_json::json!(metadata).to_string())])),
            };
            let file = safetensors::serialize(views, metadata).map_err(fail)?;
            write_atomically(path, |w| w.write_all(&file))
        }
    }
}

/// Reads all arrays of an NPY, NPZ or safetensors file of at most `limit` bytes of numbers. The one of an NPY file is called
/// `array`.
///
/// # Errors
/// Where the file is cut or corrupt, too large, compressed, or has numbers of another type than f64, f32, i64.
pub fn read_arrays(path: impl AsRef<Path>, limit: u64) -> Result<Arrays> {
    let path = path.as_ref();
    super::check_file(path)?;
    match container(path)? {
        Container::Npy => {
            let file = File::open(path).map_err(|e| IoError::file("read", path, e))?;
            match read_npy(io::BufReader::new(file), limit) {
                Ok(Ok(tensor)) => Ok(Arrays::from([("array".to_owned(), tensor)])),
                Ok(Err(what)) => Err(corrupt(path, what)),
                Err(e) => Err(corrupt(path, format!("it is cut or corrupt ({e})"))),
            }
        }
        Container::Npz => read_npz(path, limit),
        Container::Safetensors => read_safetensors(path, limit).map(|(arrays, _)| arrays),
    }
}

/// Metadata that [`write_arrays`] put into a safetensors file.
///
/// # Errors
/// As [`read_arrays`].
pub fn read_metadata(path: impl AsRef<Path>, limit: u64) -> Result<BTreeMap<String, String>> {
    let path = path.as_ref();
    super::check_file(path)?;
    read_safetensors(path, limit).map(|(_, metadata)| metadata)
}

fn corrupt(path: &Path, what: impl Into<String>) -> IoError {
    IoError::content(path, None, None, what)
}

fn too_large(path: &Path, limit: u64) -> IoError {
    IoError::path(path, format!("it holds more than {limit} bytes of numbers"), "Split it, or read it with a larger limit")
}

fn read_safetensors(path: &Path, limit: u64) -> Result<(Arrays, BTreeMap<String, String>)> {
    let io = |e| IoError::file("read", path, e);
    let file = File::open(path).map_err(io)?;
    // A header of up to 1 MiB comes on top.
    if file.metadata().map_err(io)?.len() > limit.saturating_add(1 << 20) {
        return Err(too_large(path, limit));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1 << 20)).read_to_end(&mut bytes).map_err(io)?;
    let fail = |e: safetensors::SafeTensorError| corrupt(path, format!("it is no whole safetensors file ({e})"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(fail)?;
    let metadata = match header.metadata().as_ref().and_then(|m| m.get("scorefield")) {
        Some(text) => serde_json::from_str(text).map_err(|e| corrupt(path, format!("its metadata are no JSON ({e})")))?,
        None => BTreeMap::new(),
    };
    let mut arrays = Arrays::new();
    for (name, view) in SafeTensors::deserialize(&bytes).map_err(fail)?.tensors() {
        let kind = match view.dtype() {
            Dtype::F64 => Kind::F64,
            Dtype::F32 => Kind::F32,
            Dtype::I64 => Kind::I64,
            other => return Err(corrupt(path, format!("`{name}` has numbers of type {other:?}; f64, f32 and i64 are read"))),
        };
        arrays.insert(name, Tensor { shape: view.shape().to_vec(), values: kind.values(view.data()) });
    }
    Ok((arrays, metadata))
}

/// An NPY header of version 1.0, padded to 64 bytes.
fn npy_header(tensor: &Tensor) -> Vec<u8> {
    let axes: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    let shape = if axes.len() == 1 { format!("{},", axes[0]) } else { axes.join(", ") };
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({shape}), }}", tensor.values.kind().npy());
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

fn write_npz(out: &mut dyn Write, arrays: &Arrays) -> io::Result<()> {
    let mut zip = zip::ZipWriter::new_stream(out);
    // Stored, dated 1980 and with 64-bit sizes, as NumPy does: the bytes depend on nothing but the arrays.
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default());
    for (name, tensor) in arrays {
        let bytes = tensor.values.bytes();
        zip.start_file(format!("{name}.npy"), options.large_file(bytes.len() > 1 << 31))?;
        zip.write_all(&npy_header(tensor))?;
        zip.write_all(&bytes)?;
    }
    zip.finish()?;
    Ok(())
}

/// Type and shape from the text of an NPY header.
fn parse_npy_header(text: &str) -> std::result::Result<(Kind, Vec<usize>), String> {
    let value = |key: &str| {
        let rest = text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
        rest.ok_or_else(|| format!("its header lacks `{key}`"))
    };
    let descr = value("descr")?;
    let kind = [Kind::F64, Kind::F32, Kind::I64].into_iter().find(|k| descr.starts_with(&format!("'{}'", k.npy())));
    let kind =
        kind.ok_or_else(|| format!("it has numbers of type {}; <f8, <f4 and <i8 are read", descr.split(',').next().unwrap_or_default()))?;
    if !value("fortran_order")?.starts_with("False") {
        return Err("it is in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape = value("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).map(|(s, _)| s).ok_or("its shape is no tuple")?;
    let axes =
        shape.split(',').map(str::trim).filter(|a| !a.is_empty()).map(|a| a.parse().map_err(|_| format!("its shape has an axis of `{a}`")));
    Ok((kind, axes.collect::<std::result::Result<_, _>>()?))
}

/// Reads one NPY array that may have up to `limit` bytes.
fn read_npy(mut from: impl Read, limit: u64) -> io::Result<std::result::Result<Tensor, String>> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let length = match (&head[..6], head[6]) {
        (b"\x93NUMPY", 1) => {
            let mut n = [0; 2];
            from.read_exact(&mut n)?;
            u16::from_le_bytes(n).into()
        }
        (b"\x93NUMPY", 2 | 3) => {
            let mut n = [0; 4];
            from.read_exact(&mut n)?;
            u32::from_le_bytes(n)
        }
        _ => return Ok(Err("it is no NPY array".into())),
    };
    if length > 1 << 16 {
        return Ok(Err(format!("its header has {length} bytes")));
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text)?;
    let (kind, shape) = match parse_npy_header(&String::from_utf8_lossy(&text)) {
        Ok(parsed) => parsed,
        Err(what) => return Ok(Err(what)),
    };
    let Some(size) = count(&shape).and_then(|n| n.checked_mul(kind.size())).filter(|n| *n as u64 <= limit) else {
        return Ok(Err(format!("its shape {shape:?} is larger than the limit of {limit} bytes")));
    };
    // Not reserved at once: the header may promise what the file does not hold.
    let mut bytes = Vec::new();
    from.by_ref().take(size as u64).read_to_end(&mut bytes)?;
    if bytes.len() != size || from.read(&mut [0])? != 0 {
        return Ok(Err(format!("its shape {shape:?} needs {size} bytes, which is not what it has")));
    }
    Ok(Ok(Tensor { shape, values: kind.values(&bytes) }))
}

fn read_npz(path: &Path, limit: u64) -> Result<Arrays> {
    let io = |e| IoError::file("read", path, e);
    let mut file = File::open(path).map_err(io)?;
    file.rewind().map_err(io)?;
    let fail = |e: zip::result::ZipError| corrupt(path, format!("it is no whole NPZ file ({e})"));
    let mut zip = zip::ZipArchive::new(io::BufReader::new(file)).map_err(fail)?;
    let mut arrays = Arrays::new();
    let mut left = limit;
    for k in 0..zip.len() {
        let entry = zip.by_index(k).map_err(fail)?;
        let name = entry.name().map_err(fail)?.into_owned();
        if entry.compression() != zip::CompressionMethod::Stored {
            return Err(IoError::format(path, format!("`{name}` is compressed"), "Save it with numpy.savez instead of savez_compressed"));
        }
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else {
            return Err(corrupt(path, format!("`{name}` in it is no array")));
        };
        let tensor = match read_npy(entry, left) {
            Ok(Ok(tensor)) => tensor,
            Ok(Err(what)) => return Err(corrupt(path, format!("`{name}`: {what}"))),
            Err(e) => return Err(corrupt(path, format!("`{name}` is cut or corrupt ({e})"))),
        };
        left = left.saturating_sub((tensor.values.len() * tensor.values.kind().size()) as u64);
        arrays.insert(name, tensor);
    }
    Ok(arrays)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Arrays {
        let positions = Values::F64((0..24).map(|i| 0.1 * f64::from(i)).collect());
        Arrays::from([
            ("positions".to_owned(), Tensor { shape: vec![2, 4, 3], values: positions }),
            ("energies".to_owned(), Tensor { shape: vec![2], values: Values::F32(vec![1.5, f32::NAN]) }),
            ("types".to_owned(), Tensor { shape: vec![4], values: Values::I64(vec![6, -1, 1, i64::MAX]) }),
            ("scalar".to_owned(), Tensor { shape: vec![], values: Values::F64(vec![3.0]) }),
            ("empty".to_owned(), Tensor { shape: vec![0, 3], values: Values::F64(vec![]) }),
        ])
    }

    #[test]
    fn round_trips_and_is_reproducible() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = BTreeMap::from([("unit".to_owned(), "nm".to_owned()), ("seed".to_owned(), "7".to_owned())]);
        for name in ["a.npz", "a.safetensors"] {
            let path = dir.path().join(name);
            write_arrays(&path, &sample(), &metadata).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            write_arrays(&path, &sample(), &metadata).unwrap();
            assert!(bytes == std::fs::read(&path).unwrap(), "{name}: same arrays, same bytes");
            let read = read_arrays(&path, 1 << 20).unwrap();
            // Debug text, because a NaN is not equal to itself.
            assert_eq!(format!("{read:?}"), format!("{:?}", sample()), "{name}");
            assert!(read_arrays(&path, 100).is_err() || name.ends_with("safetensors"), "{name}: the limit holds");
        }
        assert_eq!(read_metadata(dir.path().join("a.safetensors"), 1 << 20).unwrap(), metadata);
        let wrong = Arrays::from([("x".to_owned(), Tensor { shape: vec![5], values: Values::F64(vec![1.0]) })]);
        assert!(write_arrays(dir.path().join("b.npz"), &wrong, &metadata).unwrap_err().to_string().contains("[5]"));
        assert!(write_arrays(dir.path().join("b.txt"), &sample(), &metadata).is_err());
        // NPY holds one array and no name.
        let path = dir.path().join("c.npy");
        assert!(write_arrays(&path, &sample(), &metadata).unwrap_err().to_string().contains(".npz"));
        let one = Arrays::from([("array".to_owned(), sample()["positions"].clone())]);
        write_arrays(&path, &one, &metadata).unwrap();
        assert_eq!(read_arrays(&path, 1 << 20).unwrap(), one);
        assert!(read_arrays(&path, 100).is_err(), "the limit holds");
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..150]).unwrap();
        assert!(read_arrays(&path, 1 << 20).is_err());
    }

    #[test]
    fn cut_and_corrupt_files_are_errors_or_other_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.npz", "a.safetensors"] {
            let path = dir.path().join(name);
            write_arrays(&path, &sample(), &BTreeMap::new()).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            for cut in (0..bytes.len()).step_by(7) {
                std::fs::write(&path, &bytes[..cut]).unwrap();
                assert!(read_arrays(&path, 1 << 20).is_err(), "{name} cut at {cut}");
            }
            for i in (0..bytes.len()).step_by(3) {
                let mut bad = bytes.clone();
                bad[i] ^= 0x55;
                std::fs::write(&path, &bad).unwrap();
                let _ = read_arrays(&path, 1 << 20);
            }
        }
    }

    #[test]
    fn headers_are_read_strictly() {
        let parse = |text: &str| parse_npy_header(text).map(|(_, shape)| shape);
        assert_eq!(parse("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }"), Ok(vec![2, 3]));
        assert_eq!(parse("{'descr': '<f4', 'fortran_order': False, 'shape': (), }"), Ok(vec![]));
        for (text, what) in [
            ("{'descr': '>f8', 'fortran_order': False, 'shape': (2,), }", ">f8"),
            ("{'descr': '<f8', 'fortran_order': True, 'shape': (2,), }", "Fortran"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (-2,), }", "`-2`"),
            ("{'descr': '<f8', 'fortran_order': False}", "shape"),
            ("", "descr"),
        ] {
            assert!(parse(text).unwrap_err().contains(what), "{text}");
        }
    }
}
