//! Checkpoints: one safetensors file with everything that a run needs to go on bitwise, written beside its place, synced
//! and renamed, so that a killed run always leaves a whole one.
//!
//! | Tensor | Shape | |
//! |---|---|---|
//! | `phase` | `[2, A, 3]` | positions (nm), then velocities (nm/ps), in the run's precision |
//! | `kt` | `[B]` | thermostat's kT per replica |
//! | `cells` | `[B, 9]` | periodic cells, where there are any |
//! | `frozen` | `[B]` | 1 where a replica diverged and was frozen |
//! | `free_energy` | `[n]` | counts of the φ/ψ free energy, where it is counted |
//!
//! All else is JSON in the metadata ([`Header`]).

use crate::config::RunSettings;
use crate::error::{Error, Result};
use crate::io::{FileLength, write_atomically};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use scorefield_integrators::exchange::ExchangeState;
use scorefield_integrators::simd::{self, Isa};
use scorefield_integrators::state::{Cell, Clock};
use scorefield_integrators::{Array, DType, Device, State, View};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Name in the output directory.
pub const FILE: &str = "checkpoint.safetensors";
/// Version of the layout above.
const FORMAT: u32 = 1;
/// Key of the JSON in the metadata.
const KEY: &str = "scorefield";

/// A file that the run was made from, and the hash of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// As given.
    pub path: PathBuf,
    /// FNV-1a, 64 bits, in hexadecimal.
    pub fnv1a: String,
}

/// Log and trajectory files of the replicas at one temperature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetFiles {
    /// The log.
    pub log: Option<FileLength>,
    /// Trajectory files.
    pub trajectory: Vec<FileLength>,
}

/// Everything but arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the checkpoint's layout.
    pub format: u32,
    /// Version of the program.
    pub version: String,
    /// Settings with all defaults.
    pub settings: RunSettings,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Instruction set that the bits depend on.
    pub isa: Isa,
    /// Kind of device that the bits depend on; `cpu` for the host.
    #[serde(default = "host")]
    pub device: String,
    /// Steps done.
    pub step: u64,
    /// Replica exchange.
    pub exchange: Option<ExchangeState>,
    /// Output files, per temperature.
    pub files: Vec<SetFiles>,
    /// Input files.
    pub inputs: Vec<InputFile>,
    /// Hash of the forces at these positions: finds models that changed in any way.
    pub forces: String,
    /// Directory in which relative paths have their meaning.
    pub directory: PathBuf,
    /// Tables of collective variables and hills.
    #[serde(default)]
    pub tables: Vec<FileLength>,
    /// Numbers that hills are made of, per bias and surface.
    #[serde(default)]
    pub hills: Vec<Vec<usize>>,
    /// Replicas of the whole run, of which this may be a part.
    #[serde(default)]
    pub replicas: usize,
}

/// The device of runs on the host, and of checkpoints from before there were others.
fn host() -> String {
    "cpu".into()
}

impl Header {
    /// The header of this program, machine and directory for a run of `settings`.
    pub fn new(settings: RunSettings, seed: u64, inputs: Vec<InputFile>) -> Self {
        Header {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            settings,
            seed,
            isa: simd::current_isa(),
            device: host(),
            step: 0,
            exchange: None,
            files: Vec::new(),
            inputs,
            forces: String::new(),
            directory: std::env::current_dir().unwrap_or_default(),
            tables: Vec::new(),
            hills: Vec::new(),
            replicas: 0,
        }
    }
}

/// A run at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Everything but arrays.
    pub header: Header,
    /// All replicas.
    pub state: State,
    /// Replicas that were frozen `[B]`.
    pub frozen: Vec<bool>,
    /// Counts of the free energy.
    pub free_energy: Vec<u64>,
    /// Hills of biases, as long as the header says: centres and heights, surface after surface.
    pub hills: Vec<f64>,
}

/// 64-bit FNV-1a: short, and good enough to notice changes nobody made on purpose.
#[derive(Clone, Copy)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Takes up more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Takes up numbers, bit by bit.
    pub fn update_view(&mut self, view: View<'_>) {
        match view {
            View::F32(v) => v.iter().for_each(|x| self.update(&x.to_bits().to_le_bytes())),
            View::F64(v) => v.iter().for_each(|x| self.update(&x.to_bits().to_le_bytes())),
        }
    }

    /// The hash in hexadecimal.
    pub fn finish(self) -> String {
        format!("{:016x}", self.0)
    }
}

impl InputFile {
    /// Hashes the file at `path`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let fail = |e| Error::file("read", path, e);
        let mut file = File::open(path).map_err(fail)?;
        let mut hash = Fnv::default();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).map_err(fail)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        Ok(InputFile { path: path.to_owned(), fnv1a: hash.finish() })
    }
}

impl Checkpoint {
    /// Hills per bias and surface.
    pub fn hills(&self) -> Vec<Vec<Vec<f64>>> {
        let mut rest = &self.hills[..];
        let mut take = |n: usize| {
            let (here, after) = rest.split_at(n.min(rest.len()));
            rest = after;
            here.to_vec()
        };
        self.header.hills.iter().map(|term| term.iter().map(|&n| take(n)).collect()).collect()
    }

    /// Writes the checkpoint into `directory`, replacing the one before in one step.
    ///
    /// # Errors
    /// Where the disk refuses; the old checkpoint is then still whole.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let fail = |what: String| Error::Checkpoint { path: path.clone(), what };
        let (b, atoms) = (self.state.kt.len(), self.state.phase.len() / 6);
        let phase = match &self.state.phase {
            Array::F32(v) => (Dtype::F32, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
            Array::F64(v) => (Dtype::F64, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        let mut tensors = vec![
            ("phase", phase.0, vec![2, atoms, 3], phase.1),
            ("kt", Dtype::F64, vec![b], self.state.kt.iter().flat_map(|x| x.to_le_bytes()).collect()),
            ("frozen", Dtype::U8, vec![b], self.frozen.iter().map(|&f| u8::from(f)).collect()),
        ];
        if let Some(cells) = &self.state.cells {
            tensors.push(("cells", Dtype::F64, vec![b, 9], cells.iter().flatten().flat_map(|x| x.to_le_bytes()).collect()));
        }
        if !self.free_energy.is_empty() {
            let bytes = self.free_energy.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push(("free_energy", Dtype::U64, vec![self.free_energy.len()], bytes));
        }
        if !self.hills.is_empty() {
            tensors.push(("hills", Dtype::F64, vec![self.hills.len()], self.hills.iter().flat_map(|x| x.to_le_bytes()).collect()));
        }
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| TensorView::new(*dtype, shape.clone(), bytes).map(|v| (*name, v)))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| fail(e.to_string()))?;
        let header = serde_json::to_string(&self.header).map_err(|e| fail(e.to_string()))?;
        let bytes = serialize(views, Some(HashMap::from([(KEY.to_owned(), header)]))).map_err(|e| fail(e.to_string()))?;
        Ok(write_atomically(&path, |w| w.write_all(&bytes))?)
    }

    /// Reads the checkpoint in `directory`.
    ///
    /// # Errors
    /// Where there is none, or it is damaged or of another version.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let fail = |what: &str| Err(Error::Checkpoint { path: path.clone(), what: what.into() });
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return fail("there is no checkpoint; name the output directory of a run");
            }
            Err(e) => return Err(Error::file("read", &path, e)),
        };
        let damaged = |what: &str| fail(&format!("{what}; the file is damaged, so the run must be started anew (--overwrite)"));
        let Ok((_, metadata)) = SafeTensors::read_metadata(&bytes) else { return damaged("it is not a safetensors file") };
        let Some(json) = metadata.metadata().as_ref().and_then(|m| m.get(KEY)) else { return damaged("it has no header") };
        let format = serde_json::from_str::<serde_json::Value>(json).ok().and_then(|h| h["format"].as_u64());
        match format {
            Some(f) if f == u64::from(FORMAT) => {}
            Some(f) => {
                return fail(&format!("its layout is version {f}, this program reads {FORMAT}; resume with the program that wrote it"));
            }
            None => return damaged("its header says nothing"),
        }
        let header: Header = match serde_json::from_str(json) {
            Ok(header) => header,
            Err(e) => return damaged(&e.to_string()),
        };
        let Ok(tensors) = SafeTensors::deserialize(&bytes) else { return damaged("its tensors do not fit") };
        let f64s = |name: &str| -> Option<Vec<f64>> {
            let t = tensors.tensor(name).ok().filter(|t| t.dtype() == Dtype::F64)?;
            Some(t.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
        };
        let phase = match tensors.tensor("phase") {
            Ok(t) if t.dtype() == Dtype::F32 => Array::F32(t.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Ok(_) => Array::F64(f64s("phase").unwrap_or_default()),
            Err(_) => return damaged("it has no phase"),
        };
        let (Some(kt), Ok(frozen)) = (f64s("kt"), tensors.tensor("frozen")) else { return damaged("it has no temperatures") };
        let frozen: Vec<bool> = frozen.data().iter().map(|&f| f != 0).collect();
        let cells: Option<Vec<Cell>> = f64s("cells").map(|c| c.as_chunks().0.to_vec());
        let free_energy = tensors
            .tensor("free_energy")
            .map(|t| t.data().as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
            .unwrap_or_default();
        let hills = f64s("hills").unwrap_or_default();
        if hills.len() != header.hills.iter().flatten().fold(0, |sum: usize, &n| sum.saturating_add(n)) {
            return damaged("its hills are not as many as it says");
        }
        if frozen.len() != kt.len() || cells.as_ref().is_some_and(|c| c.len() != kt.len()) || phase.len() % 6 != 0 {
            return damaged("its arrays do not fit each other");
        }
        let state = State { phase, cells, kt, step: header.step, clock: Clock::Physical { time: 0.0 } };
        Ok(Checkpoint { header, state, frozen, free_energy, hills })
    }

    /// Checks that this process computes the same bits from the same inputs as the one that wrote the checkpoint.
    ///
    /// # Errors
    /// What differs, with a remedy.
    pub fn check_machine(&self, directory: &Path) -> Result<()> {
        let fail = |path: PathBuf, what: String| Err(Error::Checkpoint { path, what });
        let (isa, saved) = (simd::current_isa(), self.header.isa);
        // What happens on a device does not depend on the host's instruction set.
        if isa != saved && self.header.device == host() {
            let path = directory.join(FILE);
            return if saved.available() {
                fail(path, format!("the run was made with {saved}, which gives other bits than {isa}; add --isa {saved}"))
            } else {
                fail(path, format!("the run was made with {saved}, which this machine lacks; resume it on one that has it"))
            };
        }
        for input in &self.header.inputs {
            let started = || format!("the run was started in {}", self.header.directory.display());
            match InputFile::of(&input.path) {
                Ok(found) if found == *input => {}
                Ok(_) => {
                    return fail(input.path.clone(), format!("the file has changed since the run began ({}); restore it", started()));
                }
                Err(e) => return fail(input.path.clone(), format!("{e}; {}", started())),
            }
        }
        Ok(())
    }

    /// Checks that replicas go on where they were: on the host, or on a device of the same kind.
    ///
    /// # Errors
    /// What differs, with a remedy.
    pub fn check_device(&self, directory: &Path, device: Option<&Device>) -> Result<()> {
        let (now, saved) = (device.map_or("cpu", Device::kind), &self.header.device);
        if now == saved {
            return Ok(());
        }
        let what = format!("the run was made on {saved}, which gives other bits than {now}; resume it there, or begin another run");
        Err(Error::Checkpoint { path: directory.join(FILE), what })
    }

    /// The precision of the run.
    pub fn dtype(&self) -> DType {
        self.state.dtype()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SimulateFlags;

    fn checkpoint(dtype: DType) -> Checkpoint {
        let settings = RunSettings::Simulate(SimulateFlags::default());
        let mut header = Header::new(settings, 7, Vec::new());
        (header.step, header.forces) = (42, "0f".into());
        header.files = vec![SetFiles { log: Some(FileLength { file: "log.csv".into(), bytes: 12 }), trajectory: Vec::new() }];
        let state = State {
            phase: Array::from_f64(dtype, &(0..18).map(|k| k as f64 * 0.1).collect::<Vec<_>>()),
            cells: Some(vec![[1.0; 9], [2.0; 9]]),
            kt: vec![2.5, 3.5],
            step: 42,
            clock: Clock::Physical { time: 0.0 },
        };
        header.hills = vec![vec![2, 1], vec![0]];
        Checkpoint { header, state, frozen: vec![false, true], free_energy: vec![1, u64::MAX], hills: vec![0.1, -2.0, 1e300] }
    }

    #[test]
    fn round_trips_bitwise() {
        let dir = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::F64] {
            let saved = checkpoint(dtype);
            saved.write(dir.path()).unwrap();
            assert_eq!(Checkpoint::read(dir.path()).unwrap(), saved);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(Checkpoint::read(dir.path()).unwrap_err().to_string().contains("there is no checkpoint"));
        checkpoint(DType::F32).write(dir.path()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 4, 9, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Checkpoint::read(dir.path()).unwrap_err().to_string().contains("damaged"), "{length}");
        }
        let mut newer = checkpoint(DType::F32);
        newer.header.format = 9;
        newer.write(dir.path()).unwrap();
        assert!(Checkpoint::read(dir.path()).unwrap_err().to_string().contains("version 9"));
    }

    #[test]
    fn inputs_that_changed_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.xml");
        std::fs::write(&file, "one").unwrap();
        let mut saved = checkpoint(DType::F32);
        saved.header.inputs = vec![InputFile::of(&file).unwrap()];
        saved.check_machine(dir.path()).unwrap();
        std::fs::write(&file, "two").unwrap();
        assert!(saved.check_machine(dir.path()).unwrap_err().to_string().contains("has changed"));
        std::fs::remove_file(&file).unwrap();
        assert!(saved.check_machine(dir.path()).unwrap_err().to_string().contains("was started in"));
        saved.header.inputs.clear();
        saved.header.isa = if simd::current_isa() == Isa::Portable { Isa::Neon } else { Isa::Portable };
        assert!(saved.check_machine(dir.path()).is_err());
    }
}
