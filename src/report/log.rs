//! The log of a run: energies and temperatures per replica, as CSV or JSON lines. Rows are whole after every flush, and a
//! resumed run cuts the file back to the length in its checkpoint.

use crate::config::LogFormat;
use crate::error::{Error, Result};
use crate::io::FileLength;
use scorefield_integrators::UnitSystem;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Names of the columns.
const COLUMNS: [&str; 6] = ["step", "time_ps", "replica", "potential_kJ_mol", "kinetic_kJ_mol", "temperature_K"];
/// The same in reduced units.
const REDUCED_COLUMNS: [&str; 6] = ["step", "time", "replica", "potential", "kinetic", "temperature"];

/// How a log is written.
#[derive(Clone, Copy, Debug)]
pub struct LogLayout {
    /// CSV or JSON lines.
    pub format: LogFormat,
    /// Time step in ps.
    pub dt: f64,
    /// Units of all columns.
    pub units: UnitSystem,
}

impl LogLayout {
    fn columns(&self) -> [&'static str; 6] {
        if self.units == UnitSystem::Si { COLUMNS } else { REDUCED_COLUMNS }
    }
}

/// One row. Quantities that a run does not have (the potential of a model without energies, the kinetic energy of
/// overdamped motion) are left empty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Steps since the start of the run.
    pub step: u64,
    /// Time in ps.
    pub time: f64,
    /// Replica.
    pub replica: usize,
    /// kJ/mol.
    pub potential: Option<f64>,
    /// kJ/mol.
    pub kinetic: Option<f64>,
    /// K, or kT in reduced units.
    pub temperature: Option<f64>,
}

/// Appends rows to a file.
pub struct LogWriter {
    path: PathBuf,
    file: File,
    layout: LogLayout,
    /// Digits of times.
    digits: usize,
    pending: Vec<u8>,
    written: u64,
}

/// Rows are handed to the system in pieces of this size.
const PIECE: usize = 1 << 16;

impl LogWriter {
    /// A new log.
    ///
    /// # Errors
    /// Where the file is there already (unless `overwrite`) or cannot be made.
    pub fn create(path: &Path, layout: &LogLayout, overwrite: bool) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true);
        if overwrite {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let file = options.open(path).map_err(|source| Error::File { action: "write", path: path.to_owned(), source })?;
        let mut log = Self::with(path, file, layout, 0);
        if layout.format == LogFormat::Csv {
            log.pending.extend(layout.columns().join(",").bytes().chain([b'\n']));
        }
        Ok(log)
    }

    /// Goes on with a log, cut back to `length`.
    ///
    /// # Errors
    /// Where the file is missing or shorter than that.
    pub fn resume(path: &Path, layout: &LogLayout, length: &FileLength) -> Result<Self> {
        let fail = |source| Error::File { action: "write", path: path.to_owned(), source };
        let mut file = OpenOptions::new().write(true).open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        if found < length.bytes {
            return Err(Error::Run(format!(
                "{} has {found} bytes, but the checkpoint was written after {}; the file was changed, so the run cannot continue it",
                path.display(),
                length.bytes
            )));
        }
        file.set_len(length.bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(fail)?;
        Ok(Self::with(path, file, layout, length.bytes))
    }

    fn with(path: &Path, file: File, layout: &LogLayout, written: u64) -> Self {
        // Three digits more than the step's first one: enough to tell steps apart, without the noise of binary fractions.
        let digits = (3.0 - layout.dt.log10().floor()).clamp(3.0, 15.0) as usize;
        LogWriter { path: path.to_owned(), file, layout: *layout, digits, pending: Vec::with_capacity(2 * PIECE), written }
    }

    /// Appends one row.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let (time, digits) = (row.time, self.digits);
        let values = [row.potential, row.kinetic, row.temperature];
        let names = self.layout.columns();
        let out = &mut self.pending;
        // Writing to memory cannot fail.
        let _ = match self.layout.format {
            LogFormat::Csv => {
                let _ = write!(out, "{},{time:.digits$},{}", row.step, row.replica);
                for value in values {
                    let _ = match value {
                        Some(v) => write!(out, ",{v:.4}"),
                        None => write!(out, ","),
                    };
                }
                writeln!(out)
            }
            LogFormat::Jsonl => {
                let _ = write!(out, "{{\"{}\":{},\"{}\":{time:.digits$},\"{}\":{}", names[0], row.step, names[1], names[2], row.replica);
                for (name, value) in names[3..].iter().zip(values) {
                    let _ = match value.filter(|v| v.is_finite()) {
                        Some(v) => write!(out, ",\"{name}\":{v:.4}"),
                        None => write!(out, ",\"{name}\":null"),
                    };
                }
                writeln!(out, "}}")
            }
        };
        if self.pending.len() >= PIECE { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        if let Err(source) = self.file.write_all(&self.pending) {
            // Whole rows only; the error that matters is the first one.
            let _ = self.file.set_len(self.written);
            return Err(Error::File { action: "write", path: self.path.clone(), source });
        }
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Brings all rows to the disk and returns the file's length.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn flush(&mut self) -> Result<FileLength> {
        self.spill()?;
        // Devices and pipes cannot be synced, and need not be.
        if let Err(source) = self.file.sync_data()
            && source.kind() != std::io::ErrorKind::InvalidInput
        {
            return Err(Error::File { action: "write", path: self.path.clone(), source });
        }
        let file = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(FileLength { file, bytes: self.written })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Time series of a log, one per place within a step: `[potential, temperature]`, each `[slots][rows]`.
///
/// # Errors
/// Where the file cannot be read, or a row cannot be understood.
pub fn read_series(path: &Path, format: LogFormat, slots: usize) -> Result<[Vec<Vec<f64>>; 2]> {
    let fail = |source| Error::File { action: "read", path: path.to_owned(), source };
    let mut series = [vec![Vec::new(); slots], vec![Vec::new(); slots]];
    let (mut step, mut slot) = (None, 0);
    for (i, line) in BufReader::new(File::open(path).map_err(fail)?).lines().enumerate() {
        let line = line.map_err(fail)?;
        if format == LogFormat::Csv && i == 0 {
            continue;
        }
        let (here, values) = parse_row(&line, format)
            .ok_or_else(|| Error::Run(format!("{}, line {}: `{line}` is not a row of a log", path.display(), i + 1)))?;
        slot = if step == Some(here) { slot + 1 } else { 0 };
        step = Some(here);
        for (series, value) in series.iter_mut().zip(values) {
            if let (Some(series), Some(value)) = (series.get_mut(slot), value) {
                series.push(value);
            }
        }
    }
    Ok(series)
}

/// Step, and potential and temperature where there are any.
fn parse_row(line: &str, format: LogFormat) -> Option<(u64, [Option<f64>; 2])> {
    match format {
        LogFormat::Csv => {
            let columns: Vec<&str> = line.split(',').collect();
            let value = |i: usize| if columns[i].is_empty() { Some(None) } else { columns[i].parse().ok().map(Some) };
            (columns.len() == COLUMNS.len()).then_some(())?;
            Some((columns[0].parse().ok()?, [value(3)?, value(5)?]))
        }
        LogFormat::Jsonl => {
            let row: serde_json::Value = serde_json::from_str(line).ok()?;
            let value = |i: usize| row.get(COLUMNS[i]).or_else(|| row.get(REDUCED_COLUMNS[i])).map(|v| v.as_f64());
            Some((row["step"].as_u64()?, [value(3)?, value(5)?]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, replica: usize) -> Row {
        let temperature = (replica == 0).then_some(300.0 + step as f64);
        Row { step, time: step as f64 * 0.002, replica, potential: Some(-1.5), kinetic: temperature.map(|_| 2.0), temperature }
    }

    #[test]
    fn rows_round_trip_and_resume_bitwise() {
        let dir = tempfile::tempdir().unwrap();
        for (format, name) in [(LogFormat::Csv, "a.csv"), (LogFormat::Jsonl, "a.jsonl")] {
            let layout = LogLayout { format, dt: 0.002, units: UnitSystem::Si };
            let (whole, cut) = (dir.path().join(name), dir.path().join(format!("cut-{name}")));
            let mut log = LogWriter::create(&whole, &layout, false).unwrap();
            let mut other = LogWriter::create(&cut, &layout, false).unwrap();
            let mut length = None;
            for step in (0..50).step_by(10) {
                for replica in 0..2 {
                    log.write(&row(step, replica)).unwrap();
                    other.write(&row(step, replica)).unwrap();
                }
                if step == 20 {
                    length = Some(other.flush().unwrap());
                }
            }
            log.flush().unwrap();
            other.flush().unwrap();
            drop(other);
            let mut other = LogWriter::resume(&cut, &layout, &length.unwrap()).unwrap();
            for step in [30, 40] {
                other.write(&row(step, 0)).unwrap();
                other.write(&row(step, 1)).unwrap();
            }
            other.flush().unwrap();
            assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&cut).unwrap());
            let [potential, temperature] = read_series(&whole, format, 2).unwrap();
            assert_eq!(potential, vec![vec![-1.5; 5]; 2]);
            assert_eq!(temperature, [vec![300.0, 310.0, 320.0, 330.0, 340.0], vec![]]);
            assert!(LogWriter::create(&whole, &layout, false).is_err());
            let longer = FileLength { file: name.into(), bytes: 1 << 20 };
            assert!(LogWriter::resume(&whole, &layout, &longer).err().unwrap().to_string().contains("was changed"));
        }
        let text = std::fs::read_to_string(dir.path().join("a.csv")).unwrap();
        assert!(
            text.starts_with("step,time_ps,replica,potential_kJ_mol,kinetic_kJ_mol,temperature_K\n0,0.000000,0,-1.5000,2.0000,300.0000\n0,0.000000,1,-1.5000,,\n"),
            "{text}"
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn full_disk_is_an_error() {
        let mut log =
            LogWriter::create(Path::new("/dev/full"), &LogLayout { format: LogFormat::Csv, dt: 0.001, units: UnitSystem::Si }, true)
                .unwrap();
        log.write(&row(0, 0)).unwrap();
        assert!(log.flush().unwrap_err().to_string().contains("/dev/full"));
    }
}
