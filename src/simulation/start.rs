//! What a run starts from: the force provider, start structures, masses, temperatures and velocities.

use crate::checkpoint::InputFile;
use crate::config::{RunConfig, RunFlags, Sampling, Subject};
use crate::error::{Error, Result, usage};
use crate::io::{Frame, ReadOptions, Selection, check_overlaps, read_frames, read_structure};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::relax::{RelaxOptions, RelaxSpec, relax_all};
use scorefield_integrators::state::Cell;
use scorefield_integrators::{Batch, DType, ForceProvider, Noise, State, System, UnitSystem};
use scorefield_models::bias::Bias;
use scorefield_models::mechanics::Mechanics;
use scorefield_models::scoremd::domain::Domain;
use scorefield_models::{Built, ProviderSpec, Toy, parse_spec};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Atoms closer than this are a mistake in the structure, never chemistry.
const OVERLAP_NM: f64 = 0.01;
/// What readers of files divide by, and writers multiply with.
pub(super) const ANGSTROMS_PER_NM: f64 = 10.0;
/// Most start structures read from one file.
const MOST_FRAMES: usize = 1 << 20;
/// Most coordinates and velocities of all replicas together: 1 GB in double precision, several times over in all.
const MOST_COORDINATES: usize = 1 << 27;

/// The built-in example: alanine dipeptide in implicit solvent.
const EXAMPLE_PDB: &str = include_str!("../../data/alanine-dipeptide/alanine-dipeptide.pdb");
const EXAMPLE_XML: &str = include_str!("../../data/alanine-dipeptide/alanine-dipeptide-obc.xml");
const EXAMPLE_NAME: &str = "alanine-dipeptide";

/// A model and the structures that it is to move.
pub(super) struct Loaded {
    pub(super) provider: Box<dyn ForceProvider>,
    pub(super) subject: Subject,
    pub(super) frames: Vec<Frame>,
    /// Positions that replicas start from in turn, where the model brings its own; instead of those of the frame.
    pub(super) starts: Vec<Vec<f64>>,
    /// Where the model was trained.
    pub(super) domain: Option<Domain>,
    /// Forces come from other programs, whose last bits nobody can promise.
    pub(super) remote: bool,
    pub(super) inputs: Vec<InputFile>,
    pub(super) warnings: Vec<String>,
}

/// Reads model and start structures.
///
/// # Errors
/// Where either is missing, cannot be read, or they do not fit each other.
pub(super) fn load(run: &RunFlags, quiet: bool) -> Result<Loaded> {
    let mut remote = false;
    let mut warnings = Vec::new();
    let mut inputs = Vec::new();
    let mut starts = Vec::new();
    let built_in = run.structure.is_none() && matches!(run.model.as_deref(), Some("mm" | "scoremd"));
    let peptide = built_in && run.model.as_deref() == Some("mm");
    let mut frames = match &run.structure {
        Some(path) => {
            inputs.push(InputFile::of(path)?);
            if let Some(topology) = &run.topology {
                inputs.push(InputFile::of(topology)?);
            }
            read_starts(path, run)?
        }
        None if peptide => vec![example()?],
        None => Vec::new(),
    };
    let built = match &run.model {
        Some(_) if peptide => mechanics(EXAMPLE_XML, EXAMPLE_NAME)?,
        Some(text) => {
            let spec = parse_spec(text).map_err(wrong_model)?;
            if let Some(file) = file_of(text) {
                inputs.push(InputFile::of(&file)?);
            }
            remote = spec.is_remote();
            let built = build(&spec, frames.first(), quiet)?;
            if built.provider.capabilities().units == UnitSystem::Reduced {
                frames.iter_mut().for_each(|f| strip_units(f, built.toy.as_ref()));
                // Once more, for what is bound to start positions.
                build(&spec, frames.first(), quiet)?
            } else {
                built
            }
        }
        None => {
            return usage(
                "--model is missing: name a force provider, for example --model mm:FILE.xml with the OpenMM system of the structure (see `scorefield models`)",
            );
        }
    };
    if frames.is_empty() {
        let Some(toy) = &built.toy else {
            return usage(format!(
                "STRUCTURE is missing: {} brings no system along; give a structure file, for example `scorefield simulate peptide.pdb --model …`",
                built.provider.capabilities().name
            ));
        };
        let mut frame = Frame::new(Arc::new(own_system(toy)?), toy.positions.clone());
        frame.cell = toy.cell;
        frames.push(frame);
        starts = toy.trained.as_ref().map(|t| t.starts.clone()).unwrap_or_default();
    }
    if let Some(plumed) = &run.plumed {
        inputs.push(InputFile::of(plumed)?);
    }
    let domain = built.toy.as_ref().and_then(|t| t.trained.as_ref()).and_then(|t| t.domain.clone());
    let subject = subject(&built, built_in);
    if subject.units == UnitSystem::Si {
        frames.iter().try_for_each(|f| check_overlaps(f, OVERLAP_NM))?;
    }
    if let Some(mechanics) = &built.mechanics {
        fit_systems(&mut frames, |system| Ok(mechanics.apply_to(system, &subject.name)?))?;
    }
    if !built.provider.capabilities().periodic && frames.iter().any(|f| f.cell.is_some()) {
        // Files of isolated molecules often carry the box they were built in.
        warnings.push(format!("{} knows no periodic cells; the cell in the structure is ignored", subject.name));
        frames.iter_mut().for_each(|f| f.cell = None);
    }
    warnings.extend(crate::io::take_warnings());
    Ok(Loaded { provider: built.provider, subject, frames, starts, domain, remote, inputs, warnings })
}

/// Descriptions that cannot be understood are mistakes of usage; files that cannot be used are not.
fn wrong_model(error: scorefield_models::Error) -> Error {
    use scorefield_models::Error as E;
    match error {
        E::Io { .. } | E::File { .. } | E::Tensor { .. } | E::Candle(_) => error.into(),
        error => Error::Usage(format!("--model: {error}")),
    }
}

/// Files are in Å; a model with reduced units takes their numbers as they are, and a toy of fewer axes its own system.
fn strip_units(frame: &mut Frame, toy: Option<&Toy>) {
    frame.positions.iter_mut().chain(frame.cell.iter_mut().flatten()).for_each(|x| *x *= ANGSTROMS_PER_NM);
    if let Some(toy) = toy.filter(|t| t.system.len() == frame.len() && t.system.axes != [true; 3]) {
        frame.system = Arc::new(System { name: frame.system.name.clone(), ..toy.system.clone() });
    }
}

fn build(spec: &ProviderSpec, start: Option<&Frame>, quiet: bool) -> Result<Built> {
    spec.build_with(start.map(|f| &f.positions[..]), &crate::bridge::opener(quiet)).map_err(wrong_model)
}

fn mechanics(xml: &str, name: &str) -> Result<Built> {
    let mechanics = Mechanics::from_xml(xml, name)?;
    Ok(Built { provider: mechanics.provider(name), toy: None, mechanics: Some(mechanics) })
}

fn subject(built: &Built, built_in: bool) -> Subject {
    let c = built.provider.capabilities();
    Subject {
        name: c.name.clone(),
        units: c.units,
        kind: c.kind,
        energy: c.energy,
        temperature: built.toy.as_ref().map(|t| t.temperature.clone()),
        removes_drift: built.mechanics.as_ref().is_some_and(Mechanics::removes_drift),
        built_in,
    }
}

/// The file that a model's name points to, where it does.
fn file_of(model: &str) -> Option<PathBuf> {
    let path = PathBuf::from(model.strip_prefix("mm:").unwrap_or(model).trim());
    path.is_file().then_some(path)
}

fn read_starts(path: &Path, run: &RunFlags) -> Result<Vec<Frame>> {
    let range = run.frames.as_deref().unwrap_or("0").parse().map_err(|e| Error::Usage(format!("--frames: {e}")))?;
    let options = ReadOptions { topology: run.topology.clone(), range, ..ReadOptions::default() };
    let frames = read_frames(path, &options)?.take(MOST_FRAMES + 1).collect::<crate::io::Result<Vec<_>>>()?;
    match frames.len() {
        0 => Err(Error::Run(format!("{}: there is no frame in the range {}; choose another --frames", path.display(), options.range))),
        n if n > MOST_FRAMES => usage(format!(
            "{} has more than {MOST_FRAMES} frames in the range {}; choose fewer with --frames",
            path.display(),
            options.range
        )),
        _ => Ok(frames),
    }
}

/// The built-in structure, read like any other file.
fn example() -> Result<Frame> {
    let mut frame = read_pdb(EXAMPLE_PDB)?;
    Arc::make_mut(&mut frame.system).name = EXAMPLE_NAME.into();
    Ok(frame)
}

/// The first structure of a PDB file's text.
fn read_pdb(text: &str) -> Result<Frame> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("scorefield-{}-{}.pdb", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).map_err(|e| Error::file("write", &path, e))?;
    let frame = read_structure(&path);
    // A file that stays in the directory for temporary files harms nobody.
    let _ = std::fs::remove_file(&path);
    Ok(frame?)
}

/// The system that a model brings along; a trained one's names and bonds come from the PDB in its weights.
pub(crate) fn own_system(toy: &Toy) -> Result<System> {
    let mut system = toy.system.clone();
    if let Some(pdb) = toy.trained.as_ref().and_then(|t| t.pdb.as_deref()) {
        let read = read_pdb(pdb)?.system;
        if read.len() != system.len() {
            return Err(Error::Run(format!(
                "{}: the weights are for {} beads, but the structure in them has {}; the file is damaged",
                system.name,
                system.len(),
                read.len()
            )));
        }
        system.names.clone_from(&read.names);
        system.bonds.clone_from(&read.bonds);
    }
    Ok(system)
}

/// Changes every different system once, so that frames of one molecule go on sharing it.
fn fit_systems(frames: &mut [Frame], mut change: impl FnMut(&mut System) -> Result<()>) -> Result<()> {
    let mut done: Option<(Arc<System>, Arc<System>)> = None;
    for frame in frames {
        let new = match &done {
            Some((old, new)) if Arc::ptr_eq(old, &frame.system) => new.clone(),
            _ => {
                let mut system = (*frame.system).clone();
                change(&mut system)?;
                done.insert((frame.system.clone(), Arc::new(system))).1.clone()
            }
        };
        frame.system = new;
    }
    Ok(())
}

/// Freezes atoms and moves mass to hydrogens, as the settings ask.
///
/// # Errors
/// Where the selection fits nothing, or a heavy atom would lose all its mass.
pub(super) fn prepare_masses(frames: &mut [Frame], config: &RunConfig) -> Result<()> {
    if let Some(mass) = config.hydrogen_mass {
        fit_systems(frames, |system| Ok(system.repartition_hydrogen_mass(mass)?))?;
    }
    if let Some(text) = &config.freeze {
        let selection: Selection = text.parse().map_err(|e| Error::Usage(format!("--freeze: {e}")))?;
        let atoms = frames.iter().map(|f| selection.atoms(f)).collect::<crate::io::Result<Vec<_>>>();
        let atoms = atoms.map_err(|e| Error::Usage(format!("--freeze: {e}")))?;
        let mut systems: Vec<(Arc<System>, Vec<usize>, Arc<System>)> = Vec::new();
        for (frame, atoms) in frames.iter_mut().zip(atoms) {
            let known = systems.iter().find(|(old, a, _)| Arc::ptr_eq(old, &frame.system) && *a == atoms);
            frame.system = match known {
                Some((_, _, new)) => new.clone(),
                None => {
                    let mut system = (*frame.system).clone();
                    atoms.iter().for_each(|&i| system.masses[i] = 0.0);
                    if system.degrees_of_freedom() == 0 {
                        return usage(format!("--freeze `{text}` leaves no atom of {} that moves", system.name));
                    }
                    let new = Arc::new(system);
                    systems.push((frame.system.clone(), atoms, new.clone()));
                    new
                }
            };
        }
    }
    Ok(())
}

/// The atoms that the trajectory holds, per replica; `None` where it holds all.
///
/// # Errors
/// Where the selection fits nothing.
pub(super) fn written_atoms(frames: &[Frame], config: &RunConfig) -> Result<Option<Vec<Arc<[usize]>>>> {
    let Some(text) = &config.select else { return Ok(None) };
    let wrong = |e: crate::io::IoError| Error::Usage(format!("--select: {e}"));
    let selection: Selection = text.parse().map_err(wrong)?;
    let chosen: Vec<Arc<[usize]>> =
        frames.iter().map(|f| selection.atoms(f).map(Arc::from)).collect::<crate::io::Result<_>>().map_err(wrong)?;
    Ok(Some(share(config, frames.len())?.frames.into_iter().map(|f| chosen[f].clone()).collect()))
}

/// Moves every start structure that is used downhill.
///
/// # Errors
/// Where a structure cannot be relaxed; structures that only did not converge are warned of.
pub(super) fn relax(
    frames: &mut [Frame],
    config: &RunConfig,
    provider: &dyn ForceProvider,
    dtype: DType,
    pool: &rayon::ThreadPool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let mut used = share(config, frames.len())?.frames;
    used.sort_unstable();
    used.dedup();
    let jobs: Vec<_> = used.iter().map(|&f| (frames[f].system.clone(), frames[f].positions.clone())).collect();
    let options = RelaxOptions { dtype, ..RelaxOptions::default() };
    let mut results = Vec::with_capacity(used.len());
    let collect = |_, result| results.push(result);
    // A provider belongs to one thread; its fork moves into the pool.
    let fork = provider.fork()?;
    let tally = pool.install(move || relax_all(jobs, &*fork, &RelaxSpec::default(), &options, collect))?;
    if tally.unfinished + tally.stalled > 0 {
        warnings.push(format!("{} of {} start structures are not fully relaxed", tally.unfinished + tally.stalled, tally.taken));
    }
    for (f, result) in used.into_iter().zip(results) {
        frames[f].positions = result?.positions;
    }
    Ok(())
}

/// The replicas that run here.
pub(super) struct Share {
    /// Number of the first one among all replicas.
    pub(super) first: usize,
    /// All replicas, wherever they run.
    pub(super) total: usize,
    /// Start structure of each replica that runs here.
    pub(super) frames: Vec<usize>,
}

/// The biases of the settings for replicas of these numbers, where there are variables or biases.
///
/// # Errors
/// Where they cannot be understood.
pub(super) fn bias(config: &RunConfig, replicas: Range<usize>) -> Result<Option<Bias>> {
    if config.cv.is_empty() && config.bias.is_empty() {
        return Ok(None);
    }
    match Bias::new(&config.cv, &config.bias, config.units, replicas) {
        Ok(bias) => Ok(Some(bias)),
        Err(e) => usage(format!("--bias: {e}")),
    }
}

/// Which replicas run here, and from which of `frames` start structures.
///
/// # Errors
/// Where there are not as many replicas as the range says.
pub(super) fn share(config: &RunConfig, frames: usize) -> Result<Share> {
    let (total, frame): (usize, Box<dyn Fn(usize) -> usize>) = match &config.sampling {
        &Sampling::Constant { replicas, .. } => (frames * replicas, Box::new(move |r| r / replicas)),
        Sampling::Exchange { temperatures, copies, .. } => (temperatures.len() * copies, Box::new(|r| r % frames)),
    };
    let range = config.replica_range.clone().unwrap_or(0..total);
    if range.end > total {
        return usage(format!(
            "--replica-range {}..{}, but the run has {total} replicas in all; --replicas or --copies is the number of all, wherever they run",
            range.start, range.end
        ));
    }
    Ok(Share { first: range.start, total, frames: range.map(frame).collect() })
}

/// All replicas at step 0, with velocities at their temperatures. Where there are `starts`, replicas begin at them in turn.
///
/// # Errors
/// Where there are too many, or structures differ that must not.
pub(super) fn replicate(frames: &[Frame], starts: &[Vec<f64>], config: &RunConfig, dtype: DType, seed: u64) -> Result<(Batch, State)> {
    let most = frames.iter().map(Frame::len).max().unwrap_or(1).max(1);
    let Share { first, frames: which, .. } = share(config, frames.len())?;
    if which.len().saturating_mul(6 * most) > MOST_COORDINATES {
        return usage(format!("{} replicas of up to {most} atoms are more than fit into memory; run fewer at a time", which.len()));
    }
    if matches!(config.sampling, Sampling::Exchange { .. }) && frames.iter().any(|f| !Arc::ptr_eq(&f.system, &frames[0].system)) {
        return usage("replica exchange needs one molecule, but the start structures differ; choose others with --frames");
    }
    let batch =
        Batch::new(which.iter().map(|&f| frames[f].system.clone()).collect(), (first as u32..(first + which.len()) as u32).collect())?;
    let start = |(r, &f): (usize, &usize)| match starts.len() {
        0 => frames[f].positions.iter().copied(),
        n => starts[(first + r) % n].iter().copied(),
    };
    let positions: Vec<f64> = which.iter().enumerate().flat_map(start).collect();
    let mut state = State::at_rest(&batch, &positions, dtype)?;
    let cells: Vec<Option<Cell>> = which.iter().map(|&f| frames[f].cell).collect();
    state.cells = match cells.iter().flatten().count() {
        0 => None,
        n if n == which.len() => Some(cells.into_iter().flatten().collect()),
        _ => return usage("some start structures have a periodic cell and others have none; choose others with --frames"),
    };
    let temperatures = config.sampling.temperatures();
    for (r, kt) in state.kt.iter_mut().enumerate() {
        *kt = config.kt(temperatures[(first + r) % temperatures.len()]);
    }
    if config.integrator.has_velocities() {
        draw_velocities(&batch, &mut state, Noise::new(seed), removes_drift_at_start(config));
    }
    Ok((batch, state))
}

/// Constant-energy runs keep the drift that they start with for ever.
fn removes_drift_at_start(config: &RunConfig) -> bool {
    config.remove_drift || !config.integrator.is_thermal()
}

/// Degrees of freedom that share the kinetic energy of `system`.
pub(super) fn degrees_of_freedom(system: &System, config: &RunConfig) -> usize {
    let moving = system.masses.iter().filter(|&&m| m > 0.0).count();
    let free = removes_drift_at_start(config) && moving > 1;
    system.degrees_of_freedom() - if free { system.dimension() } else { 0 }
}
