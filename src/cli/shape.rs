//! `scorefield shape`: how elongated the molecules of a file are, and predictors of it.

use super::input::{FrameFlags, FrameStream, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::usage;
use crate::io::write_atomically;
use crate::report::shape::npr_plot;
use anyhow::Result;
use scorefield_integrators::denoise::principal_variances;
use scorefield_models::gpff::shape::{ShapePredictor, npr, shape_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  scorefield shape molecules.sdf --plot npr.svg --table shapes.csv
  scorefield shape qm9.xyz --fit data/models/qm9/shape.json

NPR1 and NPR2 are the smaller principal moments of inertia over the largest, all atoms of equal weight: a rod is at (0, 1), a
disc at (0.5, 0.5), a sphere at (1, 1). Table: frame,atoms,npr1,npr2,variance1_A2,variance2_A2,variance3_A2.";

/// Shapes of molecules: normalised principal moments, and predictors fitted to them
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct ShapeFlags {
    /// Structure files
    #[arg(value_name = "STRUCTURES", required = true)]
    pub(super) structures: Vec<PathBuf>,
    /// Which frames and atoms.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) which: FrameFlags,
    /// Fit a predictor of shapes by number of atoms and write it (JSON)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) fit: Option<PathBuf>,
    /// Draw where the molecules are between rod, disc and sphere (SVG)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) plot: Option<PathBuf>,
    /// Write a table with one row per molecule
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) table: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where input cannot be read, has no molecule of two atoms, or output cannot be written.
pub(super) fn run(flags: ShapeFlags, runtime: &Runtime) -> Result<Outcome> {
    super::denoising::check_writable(&[&flags.fit, &flags.plot, &flags.table])?;
    let mut shapes: BTreeMap<usize, Vec<[f64; 3]>> = BTreeMap::new();
    let mut points: Vec<[f64; 2]> = Vec::new();
    let mut table = String::from("frame,atoms,npr1,npr2,variance1_A2,variance2_A2,variance3_A2\n");
    for (index, frame) in FrameStream::new(flags.structures.clone(), flags.which.options()?).enumerate() {
        let frame = frame?;
        if frame.len() < 2 {
            continue;
        }
        let variances = principal_variances(&frame.positions).map(|v| 100.0 * v);
        let [a, b] = npr(variances);
        shapes.entry(frame.len()).or_default().push(shape_of(&frame.positions));
        points.push([a, b]);
        table += &format!("{index},{},{a:.6},{b:.6},{},{},{}\n", frame.len(), variances[0], variances[1], variances[2]);
    }
    show_file_warnings(runtime);
    if points.is_empty() {
        return usage("there is no molecule of two and more atoms")?;
    }
    let n = points.len();
    let mean = |k: usize| points.iter().map(|p| p[k]).sum::<f64>() / n as f64;
    let near = |corner: [f64; 2]| {
        // The share of the triangle's points that are nearer to this corner than to the others.
        let distance = |p: &[f64; 2], c: [f64; 2]| (p[0] - c[0]).powi(2) + (p[1] - c[1]).powi(2);
        let corners = [[0.0, 1.0], [0.5, 0.5], [1.0, 1.0]];
        let own = points.iter().filter(|p| corners.iter().all(|&c| distance(p, corner) <= distance(p, c))).count();
        100.0 * own as f64 / n as f64
    };
    print(format_args!(
        "{n} molecules: mean NPR ({:.3}, {:.3}); nearest to rod {:.1} %, disc {:.1} %, sphere {:.1} %",
        mean(0),
        mean(1),
        near([0.0, 1.0]),
        near([0.5, 0.5]),
        near([1.0, 1.0])
    ))?;
    if let Some(path) = &flags.table {
        write_atomically(path, |w| w.write_all(table.as_bytes()))?;
    }
    let names: Vec<String> =
        flags.structures.iter().map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()).collect();
    if let Some(path) = &flags.plot {
        let plot = npr_plot(&names.join(", "), &points);
        write_atomically(path, |w| w.write_all(plot.as_bytes()))?;
        runtime.say(format_args!("wrote {}", path.display()));
    }
    if let Some(path) = &flags.fit {
        let predictor = ShapePredictor::fit(&shapes, &format!("{n} molecules of {}", names.join(", ")), runtime.seed)?;
        let command = format!("scorefield shape {} --fit {} --seed {}", names.join(" "), path.display(), runtime.seed);
        write_atomically(path, |w| w.write_all(predictor.to_json(&command).as_bytes()))?;
        let [low, high] = predictor.range();
        runtime.say(format_args!("wrote {}: molecules of {low} to {high} atoms", path.display()));
    }
    Ok(Outcome::Done)
}
