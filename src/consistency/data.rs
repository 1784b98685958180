//! Trajectories of the reference, of drawn samples and of simulations: read, cut into chains, checked against each other.

use crate::error::{Error, Result, usage};
use crate::io::{Frame, FrameRange, ReadOptions, Selection, read_frames, read_structure};
use scorefield_integrators::System;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What readers of structure files divide by; toys are written in their own numbers.
const ANGSTROMS_PER_NM: f64 = 10.0;
/// Most numbers of one trajectory: 4 GB.
const MOST_NUMBERS: usize = 1 << 29;

/// Which files to read, and how.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// What the frames are, for messages and legends: `reference`, `samples`, `simulation`.
    pub name: String,
    /// Files, each a chain or several interleaved ones; or directories that `scorefield simulate` wrote.
    pub paths: Vec<PathBuf>,
    /// Structure file that says which atoms the files hold.
    pub topology: Option<PathBuf>,
    /// The atoms, where no file says it.
    pub system: Option<Arc<System>>,
    /// Atoms that are kept.
    pub select: Option<Selection>,
    /// Frames of each file.
    pub range: FrameRange,
    /// Chains that take turns in a file: frame `r · replicas + b` is chain `b`.
    pub replicas: Option<usize>,
    /// Numbers of a file have no unit: they are taken as they stand.
    pub bare: bool,
}

/// Frames of one kind of beads, chain after chain.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// `reference`, `samples` or `simulation`.
    pub name: String,
    /// The beads.
    pub system: Arc<System>,
    /// Positions `[F, N, 3]` in nm (bare numbers for toys).
    pub positions: Vec<f64>,
    /// Velocities `[F, N, 3]` in nm/ps, where the files hold them.
    pub velocities: Option<Vec<f64>>,
    /// Frames of each chain, in the order of time.
    pub chains: Vec<Range<usize>>,
    /// Time between frames in ps, where the files say it.
    pub interval: Option<f64>,
}

impl Trajectory {
    /// Frames given as one chain, or several of equal length one after the other; for whoever has them in memory.
    ///
    /// # Errors
    /// Where the numbers do not fill whole chains of frames, or one is not finite.
    pub fn new(name: &str, system: Arc<System>, positions: Vec<f64>, chains: usize) -> Result<Self> {
        let width = 3 * system.len();
        if width == 0 || chains == 0 || positions.is_empty() || !positions.len().is_multiple_of(width * chains) {
            return Err(Error::Run(format!(
                "{name}: {} numbers are not {chains} chains of frames of {} atoms",
                positions.len(),
                system.len()
            )));
        }
        if let Some(k) = positions.iter().position(|x| !x.is_finite()) {
            return Err(Error::Run(format!("{name}: a coordinate of frame {} is not finite", k / width)));
        }
        let length = positions.len() / width / chains;
        let chains = (0..chains).map(|c| c * length..(c + 1) * length).collect();
        Ok(Trajectory { name: name.to_owned(), system, positions, velocities: None, chains, interval: None })
    }

    /// Reads what `source` names.
    ///
    /// # Errors
    /// Where a file cannot be read, files hold different atoms, or the number of frames does not fit the replicas.
    pub fn load(source: &Source) -> Result<Self> {
        let mut read = Read::default();
        for path in &source.paths {
            let parts = parts(path, source)?;
            for part in parts {
                read.file(&part, source)?;
            }
        }
        let Some(system) = read.system.filter(|_| !read.chains.is_empty()) else {
            return usage(format!("--{}: no frame is in the range; `scorefield info` counts the frames", source.name));
        };
        if let Some(velocities) = &read.velocities
            && velocities.len() != read.positions.len()
        {
            read.velocities = None;
        }
        Ok(Trajectory {
            name: source.name.clone(),
            system,
            positions: read.positions,
            velocities: read.velocities,
            chains: read.chains,
            interval: read.interval,
        })
    }

    /// Number of beads.
    pub fn atoms(&self) -> usize {
        self.system.len()
    }

    /// Number of frames of all chains.
    pub fn frames(&self) -> usize {
        self.positions.len() / (3 * self.atoms()).max(1)
    }

    /// Positions `[N, 3]` of a frame.
    pub fn frame(&self, i: usize) -> &[f64] {
        let width = 3 * self.atoms();
        &self.positions[i * width..(i + 1) * width]
    }

    /// Checks that this trajectory has the beads of `reference`.
    ///
    /// # Errors
    /// Names the number of atoms, or the first atom that differs.
    pub fn check_against(&self, reference: &Trajectory) -> Result<()> {
        let (n, m) = (self.atoms(), reference.atoms());
        if n != m {
            return usage(format!(
                "--{} has {n} atoms, but --reference has {m}; choose the same beads with --select and --model-select; --{}-topology says which atoms a file holds",
                self.name, self.name
            ));
        }
        // Beads without an element are compared by their number only.
        let element = |t: &Trajectory, i: usize| Some(t.system.types[i]).filter(|&z| z > 0);
        let differs = |&i: &usize| matches!((element(self, i), element(reference, i)), (Some(a), Some(b)) if a != b);
        if let Some(i) = (0..n).find(differs) {
            return usage(format!(
                "--{}: {} is another element than {} of --reference; give the same beads in the same order",
                self.name,
                self.system.describe_atom(i),
                reference.system.describe_atom(i)
            ));
        }
        Ok(())
    }
}

/// A file of a trajectory, with what its directory says about it.
struct Part {
    path: PathBuf,
    topology: Option<PathBuf>,
    replicas: usize,
}

/// The files behind a path: itself, or the trajectory of a run's directory. An exchange gives its lowest temperature.
fn parts(path: &Path, source: &Source) -> Result<Vec<Part>> {
    let replicas = source.replicas.unwrap_or(1);
    if !path.is_dir() {
        return Ok(vec![Part { path: path.to_owned(), topology: source.topology.clone(), replicas }]);
    }
    let no_run = |what: &str| {
        usage(format!("--{}: {} {what}; name a trajectory, or a directory that `scorefield simulate` wrote", source.name, path.display()))
    };
    let Ok(text) = std::fs::read_to_string(path.join("summary.json")) else { return no_run("has no summary.json") };
    let Ok(summary) = serde_json::from_str::<serde_json::Value>(&text) else { return no_run("has a summary.json that is not whole") };
    let whole = summary["replicas"].as_u64().and_then(|r| usize::try_from(r).ok());
    let temperatures = summary["averages"].as_array().map(|a| a.len().max(1));
    let (Some(whole), Some(temperatures)) = (whole, temperatures) else { return no_run("has a summary.json without replicas") };
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(path)
        .map_err(|e| Error::file("list", path, e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|file| {
            let name = file.file_name()?.to_str()?.strip_prefix("trajectory")?.to_owned();
            // `-300K` of an exchange; the lowest is the one of interest.
            let digits: String = name.strip_prefix('-').unwrap_or("").chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            Some(((digits.trim_end_matches('.').parse::<f64>().unwrap_or(0.0) * 1e6) as u64, file))
        })
        .collect();
    files.sort();
    let lowest = files.first().map(|f| f.0);
    files.retain(|f| Some(f.0) == lowest);
    if files.is_empty() {
        return no_run("has no trajectory");
    }
    let structure = Some(path.join("structure.pdb")).filter(|p| p.is_file());
    // One file of all replicas, or one per replica.
    let together = if files.len() == 1 { (whole / temperatures).max(1) } else { 1 };
    let topology = source.topology.clone().or(structure);
    let part = |(_, path)| Part { path, topology: topology.clone(), replicas: source.replicas.unwrap_or(together) };
    Ok(files.into_iter().map(part).collect())
}

/// What was read so far.
#[derive(Default)]
struct Read {
    system: Option<Arc<System>>,
    positions: Vec<f64>,
    velocities: Option<Vec<f64>>,
    chains: Vec<Range<usize>>,
    interval: Option<f64>,
}

impl Read {
    fn file(&mut self, part: &Part, source: &Source) -> Result<()> {
        let path = &part.path;
        let atoms_of = |file: &Path| read_structure(file).map(|f| f.len());
        // All-atom files beside a reference of beads have the selection applied; files of the beads themselves have not.
        let select = match (&source.select, &source.system, &part.topology) {
            (Some(select), Some(beads), Some(topology)) => (atoms_of(topology)? != beads.len()).then(|| select.clone()),
            (Some(select), Some(beads), None) => read_structure(path).is_ok_and(|f| f.len() != beads.len()).then(|| select.clone()),
            (select, _, _) => select.clone(),
        };
        let options = ReadOptions {
            topology: part.topology.clone(),
            system: source.system.clone(),
            range: source.range,
            selection: select,
            ..ReadOptions::default()
        };
        let first = self.positions.len();
        let mut times: Vec<f64> = Vec::new();
        let mut velocities: Option<Vec<f64>> = Some(Vec::new());
        for frame in read_frames(path, &options)? {
            let Frame { system, positions, velocities: v, time, .. } = frame?;
            match &self.system {
                None => self.system = Some(system),
                Some(known) if known.len() == system.len() => {}
                Some(known) => {
                    return usage(format!(
                        "--{}: {} has {} atoms where the frames before have {}; all frames must hold the same atoms",
                        source.name,
                        path.display(),
                        system.len(),
                        known.len()
                    ));
                }
            }
            let scale = if source.bare { ANGSTROMS_PER_NM } else { 1.0 };
            self.positions.extend(positions.iter().map(|x| x * scale));
            match (&mut velocities, v) {
                (Some(all), Some(v)) => all.extend(v),
                (all, _) => *all = None,
            }
            times.extend(time);
            if self.positions.len() > MOST_NUMBERS {
                return usage(format!("--{}: more than {MOST_NUMBERS} coordinates; thin the frames (--every)", source.name));
            }
        }
        let width = 3 * self.system.as_ref().map_or(1, |s| s.len());
        let frames = (self.positions.len() - first) / width;
        let replicas = part.replicas;
        if replicas == 0 || !frames.is_multiple_of(replicas) {
            return usage(format!(
                "--{}: {} has {frames} frames, which are not whole reports of {replicas} replicas; check --replicas",
                source.name,
                path.display()
            ));
        }
        if let Some(velocities) = &mut velocities {
            untangle(velocities, width, replicas);
        }
        self.velocities = match (self.velocities.take(), velocities) {
            (None, v) if first == 0 => v,
            (Some(mut all), Some(v)) => {
                all.extend(v);
                Some(all)
            }
            _ => None,
        };
        untangle(&mut self.positions[first..], width, replicas);
        let length = frames / replicas;
        let start = first / width;
        self.chains.extend((0..replicas).filter(|_| length > 0).map(|b| start + b * length..start + (b + 1) * length));
        if let (Some(&a), Some(&b)) = (times.first(), times.get(replicas))
            && b > a
        {
            self.interval = self.interval.or(Some(b - a));
        }
        Ok(())
    }
}

/// Frames in which `replicas` chains take turns, sorted by chain.
fn untangle(frames: &mut [f64], width: usize, replicas: usize) {
    if replicas < 2 {
        return;
    }
    let mixed = frames.to_vec();
    let length = frames.len() / width / replicas;
    for (k, frame) in frames.chunks_exact_mut(width).enumerate() {
        let (chain, time) = (k / length, k % length);
        let from = time * replicas + chain;
        frame.copy_from_slice(&mixed[from * width..(from + 1) * width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_take_turns_are_sorted() {
        let mut frames: Vec<f64> = (0..12).map(f64::from).collect();
        untangle(&mut frames, 2, 3);
        assert_eq!(frames, [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
    }

    #[test]
    fn numbers_make_whole_chains() {
        let system = Arc::new(System::particles("two", 2, 1.0));
        let t = Trajectory::new("samples", system.clone(), vec![0.5; 24], 2).unwrap();
        assert_eq!((t.frames(), t.atoms(), t.chains.clone()), (4, 2, vec![0..2, 2..4]));
        assert!(Trajectory::new("samples", system.clone(), vec![0.5; 20], 2).is_err());
        assert!(Trajectory::new("samples", system, vec![f64::NAN; 24], 2).unwrap_err().to_string().contains("frame 0"));
    }
}
