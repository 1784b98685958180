//! `scorefield consistency`: do samples and simulations of a model agree with each other and with a reference?

use super::input::show_file_warnings;
use super::sample;
use super::{Outcome, Runtime, print};
use crate::config::{RunFlags, RunSettings, SimulateFlags};
use crate::consistency::{CoordinateChoice, Settings, Source, Trajectory, compare};
use crate::error::{Error, usage};
use crate::io::{Frame, Selection, write_atomically, write_frames};
use crate::report::consistency::{ResidualCurve, files, table};
use crate::signals::Interrupt;
use crate::simulation;
use anyhow::Result;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use scorefield_integrators::{Noise, OnDivergence, Quantity, System};
use scorefield_models::scoremd;
use scorefield_models::scoremd::residual::Residuals;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

pub(super) const EXAMPLES: &str = "\
Examples:
  # Samples and a simulation of a coarse-grained model against all-atom frames of its five beads
  scorefield consistency --reference md.dcd --topology peptide.pdb --select 4,6,8,14,16 \\
      --samples samples.dcd --simulation run --out report

  # Two simulations of Müller–Brown's surface, each a directory that `scorefield simulate` wrote
  scorefield consistency --reference run-1 --simulation run-2 --coordinates plane --limits -1.8,1.1,-0.5,2.0

  # A protein's Cα beads: TICA at a lag of 20 frames, three states with centres of your own
  scorefield consistency --reference ca.xtc --topology ca.pdb --samples samples.xtc --simulation sim.dcd \\
      --replicas 100 --lag 20 --centres '0.9,0.1; 2.1,-0.4; 0.2,-1.0'

  # The simulation of any force provider, run here: 64 replicas from frames of the reference
  scorefield consistency --reference md.dcd --topology peptide.pdb --model mm:peptide.xml --temperature '300 K' --dt '2 fs'

  # A trained model: independent samples and a simulation, both made here
  scorefield consistency --reference md.dcd --topology peptide.pdb --select 4,6,8,14,16 --model model.safetensors --dt '2 fs'

Everything is in report.html, one file without links; its numbers are in report.json and in CSV files beside it. Every
metric stands beside its floor, the value that two sets of the reference's own frames have.";

/// Compare samples and simulations of a model with a reference, and with each other
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ConsistencyFlags {
    /// Reference: a trajectory (several are so many chains), or a directory that `scorefield simulate` wrote
    #[arg(long, value_name = "TRAJ", num_args = 1..)]
    pub(super) reference: Vec<PathBuf>,
    /// Structure file that says which atoms the reference has
    #[arg(long, value_name = "FILE")]
    pub(super) topology: Option<PathBuf>,
    /// Atoms of the reference that are compared: indices from 0 (`4,6,8`), or a selection such as `name CA`
    #[arg(long, value_name = "SELECTION")]
    pub(super) select: Option<String>,
    /// The same for samples and simulation, where they have more atoms [default: --select]
    #[arg(long, value_name = "SELECTION")]
    pub(super) model_select: Option<String>,
    /// Independent samples of the model
    #[arg(long, value_name = "TRAJ", num_args = 1..)]
    pub(super) samples: Vec<PathBuf>,
    /// Simulation with the model's forces: a trajectory, or the directory of a run
    #[arg(long, value_name = "TRAJ", num_args = 1..)]
    pub(super) simulation: Vec<PathBuf>,
    /// With --model: independent samples drawn from its weights, 0 for none [default: 10000]
    #[arg(long, value_name = "N", requires = "model")]
    pub(super) count: Option<u32>,
    /// With --model: times at which the model is put into the Fokker–Planck equation, 0 for none [default: 40]
    #[arg(long, value_name = "N", requires = "model")]
    pub(super) residual_times: Option<usize>,
    /// Structure file that says which atoms the samples have [default: those selected of the reference]
    #[arg(long, value_name = "FILE")]
    pub(super) samples_topology: Option<PathBuf>,
    /// The same for the simulation
    #[arg(long, value_name = "FILE")]
    pub(super) simulation_topology: Option<PathBuf>,
    /// Replicas that take turns in a file of the simulation [default: what the run's directory says, else 1]
    #[arg(long, value_name = "N")]
    pub(super) replicas: Option<usize>,
    /// The same for the reference
    #[arg(long, value_name = "N")]
    pub(super) reference_replicas: Option<usize>,
    /// Frames of each file of the reference, first:last:stride
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub(super) reference_frames: Option<String>,
    /// Frames of each file of the simulation, first:last:stride
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub(super) simulation_frames: Option<String>,

    /// Run the simulation with this force provider (see `scorefield models`), from frames of the reference
    #[arg(long, value_name = "SPEC", help_heading = "Simulation", conflicts_with = "simulation")]
    pub(super) model: Option<String>,
    /// Replicas of the simulation [default: 64]
    #[arg(long, value_name = "N", help_heading = "Simulation", requires = "model")]
    pub(super) chains: Option<usize>,
    /// Steps per replica [default: 100000]
    #[arg(long, value_name = "N", help_heading = "Simulation", requires = "model")]
    pub(super) steps: Option<u64>,
    /// Steps between frames [default: 50]
    #[arg(long, value_name = "N", help_heading = "Simulation", requires = "model")]
    pub(super) every: Option<u64>,
    /// Time step, for example '2 fs' [default: as `simulate`]
    #[arg(long, value_name = "TIME", help_heading = "Simulation", requires = "model", allow_hyphen_values = true)]
    pub(super) dt: Option<Quantity>,
    /// Friction of the thermostat [default: as `simulate`]
    #[arg(long, value_name = "RATE", help_heading = "Simulation", requires = "model", allow_hyphen_values = true)]
    pub(super) friction: Option<Quantity>,
    /// Temperature [default: as `simulate`]
    #[arg(long, value_name = "TEMPERATURE", help_heading = "Simulation", requires = "model", allow_hyphen_values = true)]
    pub(super) temperature: Option<Quantity>,
    /// Scheme of the simulation [default: baoab]
    #[arg(long, value_name = "NAME", help_heading = "Simulation", requires = "model")]
    pub(super) integrator: Option<String>,

    /// The plane of the density [default: φ/ψ of a peptide, x/y of one particle, else TICA]
    #[arg(long, value_name = "NAME", help_heading = "Metrics")]
    pub(super) coordinates: Option<CoordinateChoice>,
    /// Atoms of φ among those selected, from 0: `0,1,2,3`
    #[arg(long, value_name = "ATOMS", help_heading = "Metrics", requires = "psi")]
    pub(super) phi: Option<String>,
    /// Atoms of ψ
    #[arg(long, value_name = "ATOMS", help_heading = "Metrics", requires = "phi")]
    pub(super) psi: Option<String>,
    /// Bins per axis [default: 64 for angles, 100 for other densities]
    #[arg(long, value_name = "N", help_heading = "Metrics")]
    pub(super) bins: Option<usize>,
    /// Range of both coordinates for the PMF error: `low,high,low,high` [default: -π to π, or the reference's]
    #[arg(long, value_name = "NUMBERS", help_heading = "Metrics", allow_hyphen_values = true)]
    pub(super) limits: Option<String>,
    /// Frames between the ends of a transition; TICA's lag [default: 1]
    #[arg(long, value_name = "FRAMES", help_heading = "Metrics")]
    pub(super) lag: Option<usize>,
    /// Number of states, found by k-means in the reference [default: 4]
    #[arg(long, value_name = "N", help_heading = "Metrics")]
    pub(super) states: Option<usize>,
    /// Centres of the states instead: `x,y; x,y; …`
    #[arg(long, value_name = "POINTS", help_heading = "Metrics", conflicts_with = "states", allow_hyphen_values = true)]
    pub(super) centres: Option<String>,
    /// Most frames of each set in metrics without time, evenly spaced [default: all]
    #[arg(long, value_name = "N", help_heading = "Metrics")]
    pub(super) limit: Option<usize>,

    /// Directory for the report [default: scorefield-consistency]
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    pub(super) out: Option<PathBuf>,
    /// Replace the report that is in the directory
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Output")]
    #[serde(skip)]
    pub(super) overwrite: Option<bool>,
    /// Title of the page
    #[arg(long, value_name = "TEXT", help_heading = "Output")]
    pub(super) title: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Where files cannot be read, do not fit each other, or the report cannot be written.
pub(super) fn run(flags: ConsistencyFlags, runtime: &Runtime) -> Result<Outcome> {
    if flags.reference.is_empty() {
        return usage("--reference is missing: name a trajectory of the distribution that the model should have")?;
    }
    if flags.samples.is_empty() && flags.simulation.is_empty() && flags.model.is_none() {
        return usage("there is nothing to compare: give --samples, --simulation, or both, or --model to simulate")?;
    }
    let settings = settings(&flags, runtime)?;
    let out = flags.out.clone().unwrap_or_else(|| "scorefield-consistency".into());
    if flags.overwrite != Some(true) && out.join("report.html").exists() {
        return usage(format!("{} holds a report already; replace it (--overwrite), or write elsewhere (--out DIR)", out.display()))?;
    }
    let reference = reference(&flags)?;
    let beads = Some(reference.system.clone());
    let select = flags.model_select.as_ref().or(flags.select.as_ref()).map(|text| text.parse::<Selection>());
    let select = select.transpose().map_err(|e| Error::Usage(format!("--model-select: {e}")))?;
    let load = |source: Source| -> Result<Option<Trajectory>> {
        if source.paths.is_empty() {
            return Ok(None);
        }
        let (system, select, bare) = (beads.clone(), select.clone(), toy(&flags));
        Ok(Some(Trajectory::load(&Source { system, select, bare, ..source })?))
    };
    let samples = load(Source {
        name: "samples".into(),
        paths: flags.samples.clone(),
        topology: flags.samples_topology.clone(),
        ..Source::default()
    })?;
    let samples = match samples {
        None => drawn(&flags, &reference, runtime)?,
        given => given,
    };
    let mut simulated = flags.simulation.clone();
    if let Some(model) = &flags.model {
        std::fs::create_dir_all(&out).map_err(|e| Error::file("make the directory", &out, e))?;
        let run = simulation_of(model, &flags, &reference, &out)?;
        simulated.extend(run.run.out.clone());
        if simulation::command(RunSettings::Simulate(run), runtime)? == Outcome::Interrupted {
            return Ok(Outcome::Interrupted);
        }
    }
    let simulation = load(Source {
        name: "simulation".into(),
        paths: simulated,
        topology: flags.simulation_topology.clone(),
        range: parse("simulation-frames", &flags.simulation_frames)?,
        replicas: flags.replicas,
        ..Source::default()
    })?;
    show_file_warnings(runtime);

    let outcome = runtime.pool.install(|| compare(&reference, samples.as_ref(), simulation.as_ref(), &settings))?;
    print(table(&outcome.comparison))?;
    let residual = residual(&flags, &reference, runtime)?;
    let title = flags.title.clone().unwrap_or_else(|| "Samples, simulation and reference".into());
    let record = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "title": title, "seed": settings.seed, "settings": flags });
    std::fs::create_dir_all(&out).map_err(|e| Error::file("make the directory", &out, e))?;
    for (name, content) in files(&outcome, &title, residual.as_ref(), &record)? {
        write_atomically(&out.join(name), |w| w.write_all(content.as_bytes()))?;
    }
    runtime.say(format_args!("wrote {}", out.join("report.html").display()));
    Ok(Outcome::Done)
}

/// Independent samples of the model, where it is one that can give them.
fn drawn(flags: &ConsistencyFlags, reference: &Trajectory, runtime: &Runtime) -> Result<Option<Trajectory>> {
    let n = flags.count.unwrap_or(10_000) as usize;
    let Some(spec) = flags.model.as_deref().filter(|_| n > 0) else { return Ok(None) };
    let Some(model) = diffusion_model(spec, reference)? else { return Ok(None) };
    let width = 3 * reference.system.len();
    let d = model.dimension();
    if d > width || (d < width && !toy(flags)) {
        return Err(Error::Run(format!(
            "{spec}: the model has {d} coordinates, but the reference has {} atoms; choose the model's beads with --select",
            reference.system.len()
        ))
        .into());
    }
    runtime.say(format_args!("{n} independent samples of {spec}"));
    let interrupt = Interrupt::install()?;
    let Some(x) = sample::draw::<f32>(&model, Default::default(), n, runtime, &interrupt)? else {
        return Err(Error::Run("interrupted while samples were drawn".into()).into());
    };
    let mut positions = Vec::with_capacity(n * width);
    for row in x.chunks_exact(d) {
        positions.extend_from_slice(row);
        positions.resize(positions.len() + width - d, 0.0);
    }
    Ok(Some(Trajectory::new("samples", reference.system.clone(), positions, 1)?))
}

/// Frames that are put into the Fokker–Planck equation.
const RESIDUAL_FRAMES: usize = 64;

/// The model's Fokker–Planck residual from t = 1e-3 on, where it has energies.
fn residual(flags: &ConsistencyFlags, reference: &Trajectory, runtime: &Runtime) -> Result<Option<ResidualCurve>> {
    let n = flags.residual_times.unwrap_or(40);
    if n > 10_000 {
        return usage("--residual-times is a number up to 10000")?;
    }
    let Some(model) = flags.model.as_deref().filter(|_| n > 0).map(|spec| diffusion_model(spec, reference)).transpose()?.flatten() else {
        return Ok(None);
    };
    let d = model.dimension();
    let width = 3 * reference.system.len();
    let count = reference.frames().min(RESIDUAL_FRAMES);
    let frames: Vec<f64> = (0..count)
        .flat_map(|k| centred(reference.frame(k * reference.frames() / count), d == width).into_iter().take(d))
        .map(|x| x * model.scale)
        .collect();
    let times: Vec<f64> = (0..n).map(|k| 1e-3f64.powf(1.0 - k as f64 / n as f64)).collect();
    let noise = Noise::new(runtime.seed);
    let one =
        |&t: &f64| -> scorefield_models::Result<Option<(f64, f64)>> { Ok(Residuals::new(&model)?.at(t, &frames, noise)?.map(|r| (t, r))) };
    let points = runtime.pool.install(|| times.par_iter().map(one).collect::<scorefield_models::Result<Vec<_>>>())?;
    Ok(Some(ResidualCurve { points: points.into_iter().flatten().collect() }))
}

/// Positions about their centre; toys as they are.
fn centred(positions: &[f64], molecule: bool) -> Vec<f64> {
    let atoms = positions.len() as f64 / 3.0;
    let centre = |a: usize| if molecule { positions.iter().skip(a).step_by(3).sum::<f64>() / atoms } else { 0.0 };
    let centre = [centre(0), centre(1), centre(2)];
    positions.iter().enumerate().map(|(i, x)| x - centre[i % 3]).collect()
}

/// The diffusion model that `--model` names; none where it is something else. A transferable one is for the reference's beads.
fn diffusion_model(spec: &str, reference: &Trajectory) -> Result<Option<scoremd::Model>> {
    Ok(sample::diffusion_model(spec, Some(&reference.system)).transpose()?)
}

/// Settings of the simulation that `--model` asks for: one replica per start structure, and these are frames of the
/// reference at equal distances. Toys start where their model says. A replica that explodes is frozen, so that it shows.
fn simulation_of(model: &str, flags: &ConsistencyFlags, reference: &Trajectory, out: &Path) -> Result<SimulateFlags> {
    let chains = flags.chains.unwrap_or(64);
    let mut run = RunFlags {
        model: Some(model.to_owned()),
        dt: flags.dt.clone(),
        friction: flags.friction.clone(),
        integrator: flags.integrator.clone(),
        steps: flags.steps,
        on_divergence: Some(OnDivergence::Freeze),
        trajectory_every: Some(flags.every.unwrap_or(50)),
        // A format that keeps velocities, whose temperatures the report shows by element.
        trajectory_format: (cfg!(feature = "chemfiles") && !toy(flags)).then(|| "trr".into()),
        out: Some(out.join("simulation")),
        overwrite: flags.overwrite,
        ..RunFlags::default()
    };
    if !toy(flags) {
        let starts = out.join("starts.pdb");
        let frame = |k: usize| Frame::new(reference.system.clone(), reference.frame(k * reference.frames() / chains).to_vec());
        write_frames(&starts, None, &(0..chains).map(frame).collect::<Vec<_>>())?;
        run.structure = Some(starts);
        run.frames = Some(":".into());
    }
    Ok(SimulateFlags { run, temperature: flags.temperature.clone(), replicas: toy(flags).then_some(chains) })
}

/// A toy's numbers have no unit.
fn toy(flags: &ConsistencyFlags) -> bool {
    flags.coordinates == Some(CoordinateChoice::Plane)
}

fn reference(flags: &ConsistencyFlags) -> Result<Trajectory> {
    let flag = |name: &'static str| move |e: crate::io::IoError| Error::Usage(format!("--{name}: {e}"));
    let toy = toy(flags);
    Ok(Trajectory::load(&Source {
        name: "reference".into(),
        paths: flags.reference.clone(),
        topology: flags.topology.clone(),
        // The particle of a toy, which no structure file describes.
        system: toy.then(|| Arc::new(System { axes: [true, true, false], ..System::particles("particle", 1, 1.0) })),
        select: flags.select.as_deref().map(str::parse::<Selection>).transpose().map_err(flag("select"))?,
        range: parse("reference-frames", &flags.reference_frames)?,
        replicas: flags.reference_replicas,
        bare: toy,
    })?)
}

/// The value of a flag that is text, or its default.
fn parse<T: FromStr + Default>(flag: &str, text: &Option<String>) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    Ok(text.as_deref().map_or(Ok(T::default()), str::parse).map_err(|e| Error::Usage(format!("--{flag}: {e}")))?)
}

/// `count` numbers between commas.
fn numbers<T: FromStr, const N: usize>(flag: &str, text: &str) -> crate::Result<[T; N]> {
    let values: Vec<T> = text.split(',').filter_map(|part| part.trim().parse().ok()).collect();
    match values.try_into() {
        Ok(values) if text.split(',').count() == N => Ok(values),
        _ => usage(format!("--{flag}: `{text}` is not {N} numbers between commas")),
    }
}

fn settings(flags: &ConsistencyFlags, runtime: &Runtime) -> Result<Settings> {
    let usual = Settings::default();
    let torsions = match (&flags.phi, &flags.psi) {
        (Some(phi), Some(psi)) => Some([numbers::<usize, 4>("phi", phi)?, numbers::<usize, 4>("psi", psi)?]),
        (None, None) => None,
        _ => return usage("--phi and --psi belong together")?,
    };
    let limits = match &flags.limits {
        Some(text) => {
            let [x0, x1, y0, y1] = numbers::<f64, 4>("limits", text)?;
            if !(x0 < x1 && y0 < y1 && [x0, x1, y0, y1].iter().all(|v| v.is_finite())) {
                return usage(format!("--limits: `{text}`: each low number must be below its high number"))?;
            }
            Some([[x0, x1], [y0, y1]])
        }
        None => None,
    };
    let centres = match &flags.centres {
        Some(text) => {
            let points = text.split(';').filter(|p| !p.trim().is_empty());
            Some(points.map(|p| numbers::<f64, 2>("centres", p)).collect::<crate::Result<Vec<_>>>()?)
        }
        None => None,
    };
    for (flag, value, most) in
        [("lag", flags.lag, 1_000_000), ("states", flags.states, 100), ("states", centres.as_ref().map(Vec::len), 100)]
    {
        if value.is_some_and(|v| v == 0 || v > most) {
            return usage(format!("--{flag} is a number from 1 to {most}"))?;
        }
    }
    if flags.limit.is_some_and(|l| l < crate::consistency::FEWEST_FRAMES) {
        return usage(format!("--limit is {} or more", crate::consistency::FEWEST_FRAMES))?;
    }
    Ok(Settings {
        coordinates: flags.coordinates.unwrap_or_default(),
        torsions,
        bins: flags.bins,
        limits,
        lag: flags.lag.unwrap_or(usual.lag),
        states: flags.states.unwrap_or(usual.states),
        centres,
        limit: flags.limit,
        seed: runtime.seed,
    })
}
