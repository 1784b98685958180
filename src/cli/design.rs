//! `scorefield design`: new atoms grown on a structure that stays.

use super::denoising::{Denoising, Output, SamplerFlags, check_writable, molecules, numbers, precision, thaw, write_table};
use super::generate::blob_size;
use super::input::{Frame, Model, show_file_warnings};
use super::{Outcome, Runtime};
use crate::error::{Error, usage};
use crate::generation::{formula, molecule, parse_formula};
use crate::io::{IoError, Selection, read_structure, subsystem};
use anyhow::Result;
use scorefield_integrators::denoise::{Blob, Prior};
use scorefield_integrators::stream::Job;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use scorefield_integrators::{Batch, Noise, Quantity, System};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  scorefield design benzene.sdf --remove 6 --add OH -n 20 -o phenols.sdf
  scorefield design phenol.sdf --remove 11 --add COCH3 --at '2.1,0.4,0' --blob '1 A' -o acetates.sdf
  scorefield design ring.xyz --add CO2H --at '0,2.5,0' --covariance '1,1,0.3,0,0,0' --numbered -o grown.xyz

A blob of the added elements is placed at --at, by default where the removed atoms were, and denoised while the rest of the
structure does not move. --covariance: xx,yy,zz,xy,xz,yz in Å². With --numbered each candidate gets a file of its own,
grown-1.xyz, grown-2.xyz, ...";

/// Grow atoms on a scaffold with a model of pseudo-forces
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct DesignFlags {
    /// Structure file of the scaffold; its first frame is taken
    #[arg(value_name = "SCAFFOLD", required = true)]
    pub(super) scaffold: Option<PathBuf>,
    /// Force provider: weights of a GPFF, or gpff-oracle:FILE.xyz [default: gpff, trained on QM9]
    #[arg(long, value_name = "SPEC")]
    pub(super) model: Option<String>,
    /// Elements to add, for example CH3
    #[arg(long, value_name = "FORMULA")]
    pub(super) add: Option<String>,
    /// Take these atoms off first, as a selection: `0-4,8`
    #[arg(long, value_name = "SELECTION")]
    pub(super) remove: Option<String>,
    /// Atoms of the scaffold that may move with the new ones
    #[arg(long, value_name = "SELECTION")]
    pub(super) free: Option<String>,
    /// Middle of the blob, x,y,z in Å [default: that of the removed atoms]
    #[arg(long, value_name = "X,Y,Z", allow_hyphen_values = true)]
    pub(super) at: Option<String>,
    /// Standard deviation of the blob [default: 1 A]
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true)]
    pub(super) blob: Option<Quantity>,
    /// Covariance of the blob in Å² instead: xx,yy,zz,xy,xz,yz
    #[arg(long, value_name = "NUMBERS", allow_hyphen_values = true)]
    pub(super) covariance: Option<String>,
    /// Number of candidates [default: 10]
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) count: Option<u32>,
    /// How.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) sampler: SamplerFlags,
    /// File for the candidates
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub(super) output: Option<PathBuf>,
    /// One file per candidate, with its number in the name
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Output")]
    pub(super) numbered: Option<bool>,
    /// Write a table with one row per candidate
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) table: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where flags or files are wrong, the model has no pseudo-forces or does not know an element, or output cannot be written.
pub(super) fn run(flags: DesignFlags, runtime: &Runtime) -> Result<Outcome> {
    let (Some(file), Some(output)) = (&flags.scaffold, &flags.output) else {
        return usage("a scaffold and --output are needed, for example `scorefield design ring.sdf --add OH -o out.sdf`")?;
    };
    let spec = flags.model.as_deref().unwrap_or("gpff");
    let count = flags.count.unwrap_or(10) as usize;
    if count == 0 {
        return usage("--count 0: ask for at least one candidate")?;
    }
    check_writable(&[&flags.output, &flags.table])?;
    let model = Model::build(spec, None)?.on(flags.sampler.device)?;
    let (settings, denoiser) = flags.sampler.denoiser("sdd", &model)?;
    let scaffold = read_structure(file)?;
    show_file_warnings(runtime);
    let (start, held) = assemble(&flags, &scaffold)?;
    let prior = Prior::Blob(blob(&flags, &scaffold)?);
    let dtype = precision(&model, runtime);
    let batch = Batch::uniform(held.clone(), 1, 0)?;
    model.capabilities().check_batch(&batch, false, dtype).map_err(|e| Error::Usage(e.to_string()))?;
    let noise = Noise::new(runtime.seed);
    // The free atoms of the scaffold start where they are, only new ones in the blob.
    let old: Vec<usize> = (0..old_atoms(&flags, &start)).filter(|&i| held.masses[i] > 0.0).collect();
    let job = |id: u32| {
        let mut positions = start.positions.clone();
        prior.draw(&held, noise, id, &mut positions);
        for k in old.iter().flat_map(|&i| 3 * i..3 * i + 3) {
            positions[k] = start.positions[k];
        }
        Job { system: held.clone(), positions, cell: None }
    };
    let run = Denoising { runtime, model: &model, spec: settings, denoiser, count, from_structures: false };
    let (generated, interrupt) = run.work((0..count).map(|id| job(id as u32)))?;
    let grown = thaw(&start, &held);
    let candidates = molecules(&generated, |_| grown.clone());
    if let Some(path) = &flags.table {
        write_table(path, &generated)?;
    }
    let output = if flags.numbered == Some(true) { Output::Numbered(output) } else { Output::File(output) };
    run.finish(&generated, &interrupt, &candidates, output)
}

fn selection(flag: &str, text: &str, frame: &Frame) -> Result<Vec<usize>> {
    let wrong = |e: IoError| Error::Usage(format!("--{flag}: {e}"));
    Ok(text.parse::<Selection>().map_err(wrong)?.atoms(frame).map_err(wrong)?)
}

/// Number of atoms of the scaffold in the assembled molecule.
fn old_atoms(flags: &DesignFlags, start: &Frame) -> usize {
    let added = flags.add.as_deref().and_then(|t| parse_formula(t).ok()).map_or(0, |t| t.len());
    start.len() - added
}

/// Scaffold and new atoms, these at the origin; and the same system with the scaffold frozen.
fn assemble(flags: &DesignFlags, scaffold: &Frame) -> Result<(Frame, Arc<System>)> {
    let Some(add) = &flags.add else {
        return usage("--add is missing: the elements to add, for example `--add CH3`")?;
    };
    let added = parse_formula(add).map_err(|(position, what)| {
        let at = IoError::Text { what, text: add.clone(), position };
        Error::Usage(format!("--add: {at}"))
    })?;
    let removed = flags.remove.as_deref().map_or(Ok(Vec::new()), |t| selection("remove", t, scaffold))?;
    if removed.len() == scaffold.len() {
        return usage("--remove takes all atoms away; use `scorefield sample` to begin from nothing")?;
    }
    let kept: Vec<usize> = (0..scaffold.len()).filter(|i| !removed.contains(i)).collect();
    let free = flags.free.as_deref().map_or(Ok(Vec::new()), |t| selection("free", t, scaffold))?;
    let (mut whole, new) = (subsystem(&scaffold.system, &kept), molecule(&added));
    whole.types.extend(new.types);
    whole.masses.extend(new.masses);
    whole.names.extend(new.names);
    // What is bonded to what is to be found out.
    whole.bonds.clear();
    whole.name = formula(&whole.types);
    let mut positions: Vec<f64> = kept.iter().flat_map(|&i| scaffold.positions[3 * i..3 * i + 3].to_vec()).collect();
    positions.resize(3 * whole.len(), 0.0);
    let mut held = whole.clone();
    for (place, atom) in kept.iter().enumerate() {
        if !free.contains(atom) {
            held.masses[place] = 0.0;
        }
    }
    Ok((Frame::new(Arc::new(whole), positions), Arc::new(held)))
}

fn blob(flags: &DesignFlags, scaffold: &Frame) -> Result<Blob> {
    let centre = match (&flags.at, &flags.remove) {
        (Some(text), _) => numbers::<3>("at", text)?.map(|x| NM_PER_ANGSTROM * x),
        (None, Some(remove)) => {
            let atoms = selection("remove", remove, scaffold)?;
            [0, 1, 2].map(|a| atoms.iter().map(|&i| scaffold.positions[3 * i + a]).sum::<f64>() / atoms.len() as f64)
        }
        (None, None) => return usage("--at is missing: where new atoms begin, x,y,z in Å; with --remove it is the place of those atoms")?,
    };
    match (&flags.blob, &flags.covariance) {
        (Some(_), Some(_)) => usage("--blob and --covariance say the same thing; keep one")?,
        (blob, None) => {
            let size = blob_size(blob.as_ref())?;
            Ok(Blob::aligned(centre, [size * size; 3]))
        }
        (None, Some(text)) => {
            let [xx, yy, zz, xy, xz, yz] = numbers::<6>("covariance", text)?.map(|c| NM_PER_ANGSTROM * NM_PER_ANGSTROM * c);
            Blob::new(centre, [xx, xy, xz, xy, yy, yz, xz, yz, zz]).map_err(|e| Error::Usage(format!("--covariance {text}: {e}")).into())
        }
    }
}
