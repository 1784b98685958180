//! `scorefield info`: what a file is and what is in it.

use super::input::{Frame, FrameFlags, FrameStream, Model, inspect_overlaps, plural, show_file_warnings};
use super::models::capabilities;
use super::{Outcome, Runtime, print};
use crate::analysis::geometry::{backbone_torsions, dihedral, radius_of_gyration};
use crate::checkpoint::{self, Checkpoint};
use crate::config::RunSettings;
use crate::error::{Error, usage};
use crate::io::elements::symbol;
use anyhow::{Context, Result};
use scorefield_integrators::state::Cell;
use scorefield_integrators::units::BOLTZMANN;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  scorefield info peptide.pdb
  scorefield info run.dcd --topology peptide.pdb
  scorefield info peptide.xml
  scorefield info model.safetensors
  scorefield info scorefield-run

Knows structures and trajectories, OpenMM System XML, weights (safetensors), provider trees (TOML) and
directories of runs.";

/// Say what a file is: atoms, frames, elements, forces, capabilities
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct InfoFlags {
    /// File to look at
    #[arg(value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Which frames and atoms.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) which: FrameFlags,
}

/// Runs the command.
///
/// # Errors
/// Where the file cannot be read or understood.
pub(super) fn run(flags: InfoFlags, runtime: &Runtime) -> Result<Outcome> {
    let Some(path) = &flags.file else { return usage("a file is needed: scorefield info FILE")? };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let lines = match extension.as_str() {
        _ if path.is_dir() => run_directory(path)?,
        "safetensors" if path.file_name().is_some_and(|n| n == checkpoint::FILE) => run_directory(path.parent().unwrap_or(Path::new("")))?,
        "xml" => provider(&format!("mm:{}", path.display()), "OpenMM System XML")?,
        "toml" => provider(&path.display().to_string(), "provider tree")?,
        "safetensors" => weights(path)?,
        _ => structures(path, &flags, runtime)?,
    };
    print(lines.join("\n"))?;
    Ok(Outcome::Done)
}

/// A run as its checkpoint knows it.
fn run_directory(directory: &Path) -> Result<Vec<String>> {
    if !directory.join(checkpoint::FILE).is_file() {
        return usage(format!(
            "{} is a directory without a checkpoint; name the output directory of a run, or a file",
            directory.display()
        ))?;
    }
    let Checkpoint { header, state, frozen, .. } = Checkpoint::read(directory)?;
    let (command, run) = match &header.settings {
        RunSettings::Simulate(flags) => ("simulate", &flags.run),
        RunSettings::Exchange(flags) => ("exchange", &flags.run),
    };
    let replicas = state.kt.len();
    let atoms = state.phase.len() / 6;
    let of = run.steps.map_or(String::new(), |n| format!(" of {n}"));
    let place = if header.device == "cpu" { header.isa.to_string() } else { header.device.clone() };
    let mut lines = vec![
        format!("run of {command} by version {}: step {}{of}", header.version, header.step),
        format!("{replicas} replica{}, {atoms} atoms in all, {}, {place}, seed {}", plural(replicas), state.dtype(), header.seed),
        format!("model: {}", run.model.as_deref().unwrap_or("built in")),
    ];
    let given = [
        ("integrator", run.integrator.clone()),
        ("dt", run.dt.as_ref().map(ToString::to_string)),
        ("friction", run.friction.as_ref().map(ToString::to_string)),
    ];
    let given: Vec<String> = given.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?))).collect();
    lines.push(given.join(", "));
    let mut kt = state.kt.clone();
    kt.sort_by(f64::total_cmp);
    if let (Some(low), Some(high)) = (kt.first(), kt.last()) {
        let kelvin = |kt: f64| format!("{:.2}", kt / BOLTZMANN);
        lines.push(if low == high {
            format!("kT {low:.6} (in SI {} K)", kelvin(*low))
        } else {
            format!("kT {low:.6} to {high:.6} (in SI {} to {} K)", kelvin(*low), kelvin(*high))
        });
    }
    let stuck = frozen.iter().filter(|f| **f).count();
    if stuck > 0 {
        lines.push(format!("{stuck} replica{} diverged and frozen", plural(stuck)));
    }
    for input in &header.inputs {
        lines.push(format!("made from {} (FNV-1a {})", input.path.display(), input.fnv1a));
    }
    for file in header.files.iter().flat_map(|f| f.log.iter().chain(&f.trajectory)) {
        lines.push(format!("wrote {}: {} bytes at the checkpoint", file.file, file.bytes));
    }
    lines.push(format!("go on with: scorefield {command} --resume {}", directory.display()));
    Ok(lines)
}

fn provider(spec: &str, what: &str) -> Result<Vec<String>> {
    let model = Model::build(spec, None)?;
    let mut lines = vec![format!("{what}: {}", model.capabilities().name)];
    if let Some(mechanics) = model.mechanics() {
        let masses = mechanics.masses();
        let frozen = masses.iter().filter(|m| **m == 0.0).count();
        let of_them = if frozen > 0 { format!(", {frozen} of them frozen") } else { String::new() };
        lines.push(format!("{} atoms{of_them}, mass {:.3} u", mechanics.atoms(), masses.iter().sum::<f64>()));
        lines.push(format!("forces: {}", mechanics.forces().join(", ")));
    }
    lines.extend(capabilities(model.capabilities()));
    Ok(lines)
}

/// Largest header of a safetensors file that is read.
const MOST_HEADER: u64 = 100 << 20;

/// Names, shapes and metadata; the numbers themselves are not read.
fn weights(path: &Path) -> Result<Vec<String>> {
    let refuse = |what: String| Error::Run(format!("{}: {what}; copy or export the weights again", path.display()));
    let open = |source| Error::File { action: "read", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(open)?;
    let size = file.metadata().map_err(open)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| refuse(format!("{size} bytes are too short for a safetensors file")))?;
    let header = u64::from_le_bytes(length);
    if header > MOST_HEADER || header.saturating_add(8) > size {
        return Err(refuse(format!("a header of {header} bytes is announced in a file of {size} bytes")).into());
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact(&mut bytes).map_err(open)?;
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(&bytes).map_err(|e| refuse(format!("no safetensors header: {e}")))?;
    let tensors = metadata.tensors();
    let numbers: usize = tensors.values().map(|t| t.shape.iter().fold(1usize, |n, d| n.saturating_mul(*d))).fold(0, usize::saturating_add);
    let end = tensors.values().map(|t| t.data_offsets.1 as u64).max().unwrap_or(0);
    if header + 8 + end > size {
        return Err(refuse(format!("its tensors end at byte {}, but the file ends at {size}", header + 8 + end)).into());
    }
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors.values() {
        *dtypes.entry(format!("{:?}", tensor.dtype).to_lowercase()).or_default() += 1;
    }
    let dtypes: Vec<String> = dtypes.into_iter().map(|(d, n)| format!("{n} of {d}")).collect();
    let mut lines = vec![format!("weights: {} tensors ({}), {numbers} numbers", tensors.len(), dtypes.join(", "))];
    let notes: BTreeMap<_, _> = metadata.metadata().iter().flatten().collect();
    for (key, value) in notes {
        // Long values (an embedded structure) are shown by their first line.
        let first: String = value.lines().next().unwrap_or_default().chars().take(100).collect();
        let cut = if first.len() < value.len() { " …" } else { "" };
        lines.push(format!("  {key}: {first}{cut}"));
    }
    match Model::build(&path.display().to_string(), None) {
        Ok(model) => lines.extend(capabilities(model.capabilities())),
        Err(error) => lines.push(format!("not a model of this program: {error}")),
    }
    Ok(lines)
}

fn structures(path: &Path, flags: &InfoFlags, runtime: &Runtime) -> Result<Vec<String>> {
    let mut first: Option<Frame> = None;
    let mut count = 0;
    let (mut fewest, mut most) = (usize::MAX, 0);
    let mut times: Option<(f64, f64)> = None;
    let mut gyration = 0.0;
    for frame in FrameStream::new(vec![path.to_owned()], flags.which.options()?) {
        show_file_warnings(runtime);
        let frame = frame.with_context(|| format!("{count} frame{} could be read", plural(count)))?;
        count += 1;
        (fewest, most) = (fewest.min(frame.len()), most.max(frame.len()));
        if let Some(t) = frame.time {
            times = Some(times.map_or((t, t), |(a, _)| (a, t)));
        }
        gyration += radius_of_gyration(&frame.positions, &frame.system.masses);
        first.get_or_insert(frame);
    }
    show_file_warnings(runtime);
    let Some(first) = first else { return usage(format!("{} has no frames", path.display()))? };
    let system = &first.system;
    let same = fewest == most;
    let mut lines = vec![format!(
        "{}: {count} frame{}, {}",
        path.display(),
        plural(count),
        if same { format!("{most} atom{}", plural(most)) } else { format!("{fewest} to {most} atoms") }
    )];
    let of_first = if same { "" } else { " (first frame)" };
    lines.push(format!("elements: {}{of_first}", formula(&first)));
    let residues = system.names.chunk_by(|a, b| (&a.chain, a.residue_id, &a.residue) == (&b.chain, b.residue_id, &b.residue));
    let residues: Vec<_> = residues.filter(|r| !r[0].residue.is_empty()).map(|r| r[0].residue.as_str()).collect();
    if !residues.is_empty() {
        let shown = residues.iter().take(12).copied().collect::<Vec<_>>().join(" ");
        let more = if residues.len() > 12 { " …" } else { "" };
        lines.push(format!("residues: {} ({shown}{more}){of_first}", residues.len()));
    }
    lines.push(format!("bonds: {}, total charge: {}{of_first}", system.bonds.len(), system.charge));
    lines.push(format!("mass: {:.3} u{of_first}", system.masses.iter().sum::<f64>()));
    lines.push(format!("radius of gyration: {:.4} nm{}", gyration / count as f64, if count > 1 { " (mean)" } else { "" }));
    for torsions in backbone_torsions(system).iter().take(4) {
        let degrees = |atoms| dihedral(&first.positions, atoms).to_degrees();
        lines.push(format!(
            "{}: φ {:.1}°, ψ {:.1}°{}",
            torsions.label,
            degrees(torsions.phi),
            degrees(torsions.psi),
            if count > 1 { " (first frame)" } else { "" }
        ));
    }
    lines.push(match &first.cell {
        Some(cell) => format!("periodic cell: {}{}", describe_cell(cell), if count > 1 { " (first frame)" } else { "" }),
        None => "no periodic cell".into(),
    });
    if let Some((a, b)) = times {
        lines.push(format!("time: {a} to {b} ps"));
    }
    let has: Vec<&str> =
        [(first.velocities.is_some(), "velocities"), (first.forces.is_some(), "forces"), (first.energy.is_some(), "energy")]
            .iter()
            .filter(|h| h.0)
            .map(|h| h.1)
            .collect();
    if !has.is_empty() {
        lines.push(format!("also holds: {}", has.join(", ")));
    }
    match inspect_overlaps(&first) {
        Ok(None) => {}
        Ok(Some(warning)) => runtime.warn(warning),
        Err(error) => runtime.warn(error),
    }
    Ok(lines)
}

/// Hill's order: carbon, hydrogen, then by symbol.
fn formula(frame: &Frame) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for &t in &frame.system.types {
        *counts.entry(symbol(t)).or_default() += 1;
    }
    let rank = |symbol: &str, carbon: bool| match symbol {
        "C" => 0,
        "H" if carbon => 1,
        _ => 2,
    };
    let carbon = counts.contains_key("C");
    let mut parts: Vec<(&str, usize)> = counts.into_iter().collect();
    // The sort keeps the alphabet within a rank.
    parts.sort_by_key(|(symbol, _)| rank(symbol, carbon));
    parts.into_iter().map(|(s, n)| if n == 1 { s.to_owned() } else { format!("{s}{n}") }).collect::<Vec<_>>().join(" ")
}

fn describe_cell(cell: &Cell) -> String {
    let off = [1, 2, 3, 5, 6, 7].iter().all(|&i| cell[i].abs() < 1e-9);
    if off {
        return format!("{:.4} × {:.4} × {:.4} nm", cell[0], cell[4], cell[8]);
    }
    let row = |i: usize| format!("({:.4}, {:.4}, {:.4})", cell[3 * i], cell[3 * i + 1], cell[3 * i + 2]);
    format!("{} {} {} nm", row(0), row(1), row(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::System;
    use std::sync::Arc;

    #[test]
    fn formulas_follow_hill() {
        let of = |types: &[u32]| {
            let mut s = System::particles("test", types.len(), 1.0);
            s.types = types.to_vec();
            formula(&Frame::new(Arc::new(s), vec![0.0; 3 * types.len()]))
        };
        assert_eq!(of(&[1, 8, 6, 1, 1, 1]), "C H4 O");
        assert_eq!(of(&[8, 1, 1]), "H2 O");
        assert_eq!(of(&[18, 18]), "Ar2");
        assert_eq!(of(&[1, 5]), "B H");
        assert_eq!(of(&[0]), "X");
    }
}
