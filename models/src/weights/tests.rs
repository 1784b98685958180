//! Files of weights: round trips, and everything that must be refused.

use super::*;

fn metadata() -> Metadata {
    Metadata {
        architecture: "mlp".into(),
        parameters: serde_json::from_str(r#"{"width": 92, "layers": [1, 2]}"#).unwrap(),
        prediction: Prediction::Score,
        units: UnitSystem::Si,
        ensemble: Ensemble::Temperature(300.0),
        scale: 10.57,
        types: Some(vec![1, 6, 8]),
        noise: Some(serde_json::from_str(r#"{"convention": "vp", "beta": [0.1, 20.0]}"#).unwrap()),
        command: "scorefield train recipe.toml".into(),
        seed: u64::MAX,
        system: Some(OneSystem::Pdb("ATOM      1  N   ALA\nEND \"é\"\n".into())),
    }
}

fn tensors() -> BTreeMap<String, Tensor> {
    let rows = |dtype| Tensor::arange(0f64, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap().to_dtype(dtype).unwrap();
    BTreeMap::from([
        ("a.weight".to_owned(), rows(DType::BF16)),
        ("b.weight".to_owned(), rows(DType::F64)),
        ("c.scalar".to_owned(), Tensor::new(0.25f32, &Device::Cpu).unwrap()),
        ("d.weight".to_owned(), rows(DType::F16)),
    ])
}

fn written() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &metadata(), &tensors()).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    (folder, file, bytes)
}

#[test]
fn what_is_written_is_read() {
    let (folder, file, bytes) = written();
    let mut read = WeightsFile::read(&file).unwrap();
    assert_eq!(*read.metadata(), metadata());
    assert_eq!(read.shapes().map(|s| s.0).collect::<Vec<_>>(), ["a.weight", "b.weight", "c.scalar", "d.weight"]);
    assert_eq!(read.values::<f32>("a.weight", &[2, 3]).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(read.values::<f64>("c.scalar", &[]).unwrap(), [0.25]);
    assert_eq!(read.take("b.weight", &[2, 3], DType::F32).unwrap().dtype(), DType::F32);
    assert_eq!(read.values::<f64>("d.weight", &[2, 3]).unwrap()[5], 5.0);
    read.finish().unwrap();
    // The same bytes again, and nothing left lying about.
    write(&file, &metadata(), &tensors()).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // Others read it too.
    assert_eq!(candle_core::safetensors::load(&file, &Device::Cpu).unwrap()["c.scalar"].to_scalar::<f32>().unwrap(), 0.25);
    for ensemble in [Ensemble::Minima, Ensemble::Potential, Ensemble::Temperature(0.1)] {
        let other = Metadata { ensemble, units: UnitSystem::Reduced, types: None, noise: None, system: None, ..metadata() };
        write(&file, &other, &BTreeMap::new()).unwrap();
        assert_eq!(*WeightsFile::read(&file).unwrap().metadata(), other);
    }
}

#[test]
fn tensors_must_be_what_the_model_needs() {
    let (_folder, file, _) = written();
    let mut read = WeightsFile::read(&file).unwrap();
    let message = |r: Result<Tensor>| r.unwrap_err().to_string();
    assert!(message(read.take("a.weight", &[3, 2], DType::F32)).contains("`a.weight`: its shape is [2, 3], but mlp needs [3, 2]"));
    assert!(message(read.take("a.bias", &[3], DType::F32)).contains("`a.bias`: it is missing"));
    read.take("a.weight", &[2, 3], DType::F32).unwrap();
    assert!(message(read.take("a.weight", &[2, 3], DType::F32)).contains("twice"));
    assert!(read.finish().unwrap_err().to_string().contains("`b.weight`: mlp has no use for it"));
    let nan = BTreeMap::from([("bad".to_owned(), Tensor::new(&[1.0f32, f32::NAN], &Device::Cpu).unwrap())]);
    assert!(write(&file, &metadata(), &nan).unwrap_err().to_string().contains("`bad`: element 1 is NaN"));
    let whole = BTreeMap::from([("bad".to_owned(), Tensor::new(&[1u32], &Device::Cpu).unwrap())]);
    assert!(write(&file, &metadata(), &whole).unwrap_err().to_string().contains("`bad`: type U32 is refused"));
}

#[test]
fn damaged_files_are_refused_with_a_reason() {
    let (_folder, file, bytes) = written();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let e = WeightsFile::read(&file).unwrap_err();
        assert!(matches!(e, Error::File { .. } | Error::Tensor { .. } | Error::Unknown { .. }), "{e:?}");
        e.to_string()
    };
    // Every truncation is noticed, and none is a crash.
    for length in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        refused(&bytes[..length]);
    }
    assert!(refused(&bytes[..bytes.len() - 1]).contains("truncated"));
    assert!(refused(&[bytes.clone(), vec![0]].concat()).contains("damaged"));
    assert!(refused(&[&[0xff; 8][..], &bytes[8..]].concat()).contains("more than"));
    assert!(refused(&[&(1u64 << 23).to_le_bytes()[..], &bytes[8..]].concat()).contains("truncated"));
    let edited = |from: &str, to: &str| {
        let text = std::str::from_utf8(&bytes[8..8 + header]).unwrap();
        assert!(text.contains(from), "{text}");
        let text = text.replace(from, to);
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes[8 + header..]].concat()
    };
    assert!(refused(&edited(r#""dtype":"F64""#, r#""dtype":"I64""#)).contains("`b.weight`: type I64 is refused"));
    assert!(refused(&edited(r#""dtype":"F64""#, r#""dtype":"F8""#)).contains("no safetensors file"));
    assert!(refused(&edited("[2,3]", "[2,9223372036854775807]")).contains("safetensors"));
    assert!(refused(&edited(r#""architecture""#, r#""architectures""#)).contains("did you mean `architecture`?"));
    assert!(refused(&edited(r#""seed""#, r#""noise""#)).contains("metadata"));
    assert!(refused(&edited(r#""scorefield":"1""#, r#""scorefield":"2""#)).contains("layout 2 is not known"));
    assert!(refused(&edited("300 K", "300 fs")).contains("`ensemble`"));
    assert!(refused(&edited("300 K", "-3 K")).contains("above zero"));
    assert!(refused(&edited("10.57", "nan")).contains("`scale`"));
    assert!(refused(&edited(r#""prediction":"score""#, r#""prediction":"scores""#)).contains("`prediction`"));
    assert!(refused(br#"GARBAGE that is no weights file"#).contains("safetensors"));
    // A NaN among the weights: the last bytes are those of the smallest type.
    let mut bad = bytes.clone();
    let end = bad.len();
    bad[end - 2..].copy_from_slice(&0x7e00u16.to_le_bytes());
    assert!(refused(&bad).contains("`d.weight`: element 5 is NaN"));
}

#[test]
fn flipped_bytes_never_crash() {
    let (_folder, file, bytes) = written();
    for i in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[i] ^= flip;
            // Whether it is refused or read, it must not panic.
            let _ = WeightsFile::from_bytes(&file, &damaged);
        }
    }
}

#[test]
fn temperatures_are_checked() {
    let mean = Kind::MeanForce { temperature_kelvin: 300.0 };
    assert_eq!(check_temperature("m", mean, 300.0, false).unwrap(), None);
    assert_eq!(check_temperature("m", Kind::Physical, 1000.0, false).unwrap(), None);
    let error = check_temperature("m", mean, 310.0, false).unwrap_err();
    assert_eq!(error.to_string(), "m was trained at 300 K, but 310 K was asked for: use 300 K, for which its mean forces hold");
    assert_eq!(check_temperature("m", mean, 310.0, true).unwrap(), Some(error.to_string()));
    assert!(check_temperature("m", Kind::PseudoForce, 300.0, false).unwrap_err().to_string().contains("on minima"));
}
