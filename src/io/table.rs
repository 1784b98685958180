//! Logs as CSV or JSON lines: written line by line, cut back and continued on resume.

use super::error::{IoError, Result};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    /// A header line, then values between commas; missing numbers are empty.
    Csv,
    /// One JSON object per line; missing numbers are `null`.
    JsonLines,
}

/// One cell of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// A whole number.
    Integer(i64),
    /// A number; one that is not finite counts as missing.
    Number(f64),
    /// Text.
    Text(String),
    /// True or false.
    Flag(bool),
    /// Nothing.
    Missing,
}

impl From<f64> for Field {
    fn from(x: f64) -> Self {
        Field::Number(x)
    }
}
impl From<u64> for Field {
    fn from(x: u64) -> Self {
        Field::Integer(i64::try_from(x).unwrap_or(i64::MAX))
    }
}
impl From<&str> for Field {
    fn from(x: &str) -> Self {
        Field::Text(x.to_owned())
    }
}
impl From<bool> for Field {
    fn from(x: bool) -> Self {
        Field::Flag(x)
    }
}
impl<T: Into<Field>> From<Option<T>> for Field {
    fn from(x: Option<T>) -> Self {
        x.map_or(Field::Missing, Into::into)
    }
}

/// Writes one table. Whole rows wait in memory until there are 64 kB or someone flushes, so that a killed run leaves whole rows.
pub struct TableWriter {
    path: PathBuf,
    file: File,
    format: TableFormat,
    columns: Vec<String>,
    written: u64,
    pending: String,
}

/// Bytes that may wait in memory.
const PENDING: usize = 1 << 16;

impl TableWriter {
    /// Makes a new table with `columns` (names with units, such as `potential_kJ_mol`); the format is `.jsonl` or `.ndjson`'s, else CSV.
    ///
    /// # Errors
    /// Where the file is there already (unless `overwrite`) or cannot be made.
    pub fn create(path: impl AsRef<Path>, columns: &[&str], overwrite: bool) -> Result<Self> {
        let path = path.as_ref();
        super::writer::create(path, overwrite)?;
        let file = OpenOptions::new().write(true).open(path).map_err(|e| IoError::file("write", path, e))?;
        let mut writer = TableWriter::new(path, file, columns);
        if writer.format == TableFormat::Csv {
            writer.pending = writer.header();
        }
        Ok(writer)
    }

    /// Cuts a table of an earlier run back to `length` bytes, as [`flush`](Self::flush) reported, and goes on with it.
    ///
    /// # Errors
    /// Where the file is missing or shorter than that, has other columns, or no row ends there.
    pub fn resume(path: impl AsRef<Path>, columns: &[&str], length: u64) -> Result<Self> {
        let path = path.as_ref();
        let fail = |e| IoError::file("resume", path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        if found < length {
            return Err(IoError::path(
                path,
                format!("it has {found} bytes, but the checkpoint was written when it had {length}"),
                "Restore the file, or start from an earlier checkpoint",
            ));
        }
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(length - 1)).and_then(|_| std::io::Read::read_exact(&mut file, &mut last)).map_err(fail)?;
            if last != *b"\n" {
                return Err(IoError::content(path, None, None, format!("no row ends at byte {length}, where the checkpoint was written")));
            }
        }
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let mut writer = TableWriter::new(path, file, columns);
        writer.written = length;
        if writer.format == TableFormat::Csv && length > 0 {
            let mut line = String::new();
            // A header is no longer than this; anything else is another file.
            std::io::Read::take(BufReader::new(&writer.file), PENDING as u64).read_line(&mut line).map_err(fail)?;
            if line != writer.header() {
                return Err(IoError::content(
                    path,
                    None,
                    Some(1),
                    format!("its columns are `{}` instead of `{}`", line.trim(), writer.header().trim()),
                ));
            }
        }
        writer.file.set_len(length).map_err(fail)?;
        if writer.format == TableFormat::Csv && length == 0 {
            writer.pending = writer.header();
        }
        Ok(writer)
    }

    fn new(path: &Path, file: File, columns: &[&str]) -> Self {
        let json = path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "jsonl" | "ndjson" | "json"));
        TableWriter {
            path: path.to_owned(),
            file,
            format: if json { TableFormat::JsonLines } else { TableFormat::Csv },
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            written: 0,
            pending: String::new(),
        }
    }

    fn header(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|c| quoted(c)).collect();
        format!("{}\n", names.join(","))
    }

    /// Adds a row, one field per column.
    ///
    /// # Errors
    /// Where the number of fields is another, or the disk refuses.
    pub fn row(&mut self, fields: &[Field]) -> Result<()> {
        if fields.len() != self.columns.len() {
            return Err(IoError::shape(
                &self.path,
                format!("a row of {} fields in a table of {} columns", fields.len(), self.columns.len()),
            ));
        }
        match self.format {
            TableFormat::Csv => {
                for (k, field) in fields.iter().enumerate() {
                    if k > 0 {
                        self.pending.push(',');
                    }
                    match field {
                        Field::Integer(x) => self.pending += &x.to_string(),
                        Field::Number(x) if x.is_finite() => self.pending += &x.to_string(),
                        Field::Number(_) | Field::Missing => {}
                        Field::Text(x) => self.pending += &quoted(x),
                        Field::Flag(x) => self.pending += if *x { "true" } else { "false" },
                    }
                }
            }
            TableFormat::JsonLines => {
                let value = |field: &Field| match field {
                    Field::Integer(x) => Value::from(*x),
                    Field::Number(x) => Value::from(*x),
                    Field::Text(x) => Value::from(x.as_str()),
                    Field::Flag(x) => Value::from(*x),
                    Field::Missing => Value::Null,
                };
                let object: Map<String, Value> = self.columns.iter().cloned().zip(fields.iter().map(value)).collect();
                self.pending += &Value::Object(object).to_string();
            }
        }
        self.pending.push('\n');
        if self.pending.len() >= PENDING { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let appended = self.file.seek(SeekFrom::Start(self.written)).and_then(|_| self.file.write_all(self.pending.as_bytes()));
        if let Err(e) = appended {
            // Half a row helps nobody; the error that matters is the first.
            let _ = self.file.set_len(self.written);
            return Err(IoError::file("write", &self.path, e));
        }
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Puts all rows on the disk (synced) and returns the length of the file in bytes, for a checkpoint.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn flush(&mut self) -> Result<u64> {
        self.spill()?;
        // Pipes and terminals have nothing to sync.
        match self.file.sync_data() {
            Err(e) if e.kind() != std::io::ErrorKind::InvalidInput => Err(IoError::file("write", &self.path, e)),
            _ => Ok(self.written),
        }
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        // Whoever wants to know about errors flushes before.
        let _ = self.spill();
    }
}

/// A CSV value: in quotes where it must be.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [&str; 3] = ["step", "potential_kJ_mol", "note"];

    fn rows(writer: &mut TableWriter, range: std::ops::Range<u64>) {
        for i in range {
            writer.row(&[i.into(), (0.1 * i as f64).into(), Some("a, b").filter(|_| i % 2 == 0).into()]).unwrap();
        }
    }

    #[test]
    fn resumed_tables_are_the_uninterrupted_ones() {
        for name in ["t.csv", "t.jsonl"] {
            let dir = tempfile::tempdir().unwrap();
            let (whole, cut) = (dir.path().join(format!("whole-{name}")), dir.path().join(name));
            let mut writer = TableWriter::create(&whole, &COLUMNS, false).unwrap();
            rows(&mut writer, 0..4000);
            writer.flush().unwrap();
            let mut writer = TableWriter::create(&cut, &COLUMNS, false).unwrap();
            rows(&mut writer, 0..1500);
            let length = writer.flush().unwrap();
            assert_eq!(length, std::fs::metadata(&cut).unwrap().len());
            rows(&mut writer, 1500..3800);
            drop(writer);
            assert!(TableWriter::resume(&cut, &COLUMNS, length - 1).is_err(), "half a row");
            let mut writer = TableWriter::resume(&cut, &COLUMNS, length).unwrap();
            rows(&mut writer, 1500..4000);
            writer.flush().unwrap();
            assert!(std::fs::read(&whole).unwrap() == std::fs::read(&cut).unwrap(), "{name}");
            assert!(TableWriter::resume(&cut, &COLUMNS, 1 << 40).err().unwrap().to_string().contains("Restore"));
        }
    }

    #[test]
    fn values_are_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        let mut writer = TableWriter::create(&path, &COLUMNS, false).unwrap();
        writer.row(&[3u64.into(), f64::NAN.into(), "say \"x\"".into()]).unwrap();
        assert!(writer.row(&[true.into()]).is_err());
        writer.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "step,potential_kJ_mol,note\n3,,\"say \"\"x\"\"\"\n");
        assert!(TableWriter::create(&path, &COLUMNS, false).is_err(), "nothing is overwritten unasked");
        assert!(TableWriter::resume(&path, &["a", "b"], 10).is_err());
        let path = dir.path().join("t.jsonl");
        let mut writer = TableWriter::create(&path, &COLUMNS, false).unwrap();
        writer.row(&[3u64.into(), f64::NAN.into(), true.into()]).unwrap();
        writer.flush().unwrap();
        let value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(value, serde_json::json!({"step": 3, "potential_kJ_mol": null, "note": true}));
    }

    #[test]
    fn a_full_disk_or_a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let message = TableWriter::create(dir.path().join("no/t.csv"), &COLUMNS, false).err().unwrap().to_string();
        assert!(message.contains("no/t.csv"), "{message}");
        if Path::new("/dev/full").exists() {
            let mut writer = TableWriter::create("/dev/full", &COLUMNS, true).unwrap();
            rows(&mut writer, 0..1);
            let message = writer.flush().unwrap_err().to_string();
            assert!(message.contains("/dev/full") && message.contains("space"), "{message}");
        }
    }
}
