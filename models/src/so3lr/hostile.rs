//! Damaged and foreign files of weights are errors that say what is wrong, never panics.

use super::weights::Weights;
use std::path::Path;

fn small() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/so3lr/small.safetensors")).unwrap()
}

fn parse(bytes: &[u8]) -> Result<Weights, String> {
    Weights::parse(bytes, Path::new("file")).map_err(|e| e.to_string())
}

/// The file with its header's text changed; the length is kept by padding.
fn with_header(change: impl Fn(String) -> String) -> Vec<u8> {
    let bytes = small();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(bytes[8..8 + length].to_vec()).unwrap());
    let header = format!("{}{}", header.trim_end(), " ".repeat(header.trim_end().len().next_multiple_of(8) - header.trim_end().len()));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat()
}

fn refused(bytes: &[u8], word: &str) {
    let message = parse(bytes).expect_err("damaged weights were accepted");
    assert!(message.contains(word), "`{message}` does not say `{word}`");
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small();
    assert!(parse(&bytes).is_ok());
    for n in (0..bytes.len()).step_by(997).chain(0..64).chain(bytes.len() - 8..bytes.len()) {
        assert!(parse(&bytes[..n]).is_err(), "{n} bytes were accepted");
    }
    refused(&[bytes, vec![0; 5]].concat(), "safetensors");
}

#[test]
fn headers_lie() {
    let mut bytes = small();
    for length in [u64::MAX, 1 << 40, 101 << 20, 0, 1] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(parse(&bytes).is_err());
    }
    refused(&with_header(|h| h.replace("Wq1", "Wq9")), "Wq");
    refused(&with_header(|h| h.replace("atomic_scales", "atomic_sizes")), "atomic_scales");
    refused(&with_header(|h| h.replacen("[4, 16, 16]", "[16, 4, 16]", 1)), "shape");
    refused(&with_header(|h| h.replacen("\"F16\"", "\"I16\"", 1)), "type");
    refused(&with_header(|h| h.replacen("\"F16\"", "\"BF16\"", 200).replacen("\"BF16\"", "\"U16\"", 1)), "type");
}

#[test]
fn numbers_must_be_finite() {
    let start = 8 + u64::from_le_bytes(small()[..8].try_into().unwrap()) as usize;
    for bits in [0x7e00u16, 0x7c00, 0xfc00] {
        let mut bytes = small();
        bytes[start + 20..start + 22].copy_from_slice(&bits.to_le_bytes());
        refused(&bytes, "finite");
    }
}

#[test]
fn random_damage_never_panics() {
    let good = small();
    let mut state = 88172645463325252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..1 + next() % 3 {
            let at = next() as usize % header;
            bytes[at] = next() as u8;
        }
        let _ = parse(&bytes);
    }
}
