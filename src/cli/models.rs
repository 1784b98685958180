//! `scorefield models`: what `--model` understands, and what each model can do.

use super::{Outcome, Runtime, print};
use anyhow::Result;
use scorefield_integrators::{Capabilities, DeviceSpec, Kind, UnitSystem};
use scorefield_models::{BuiltinInfo, builtins};
use serde::{Deserialize, Serialize};

const EXAMPLES: &str = "\
Examples:
  scorefield models
  scorefield models lj
  scorefield models --json
  scorefield evaluate cluster.xyz --model 'lj:sigma=3.405A,epsilon=0.0103eV'";

/// List the models that are built in, with parameters, units and capabilities
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct ModelsFlags {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Print JSON
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) json: Option<bool>,
}

/// Runs the command.
///
/// # Errors
/// Where there is no such model, or standard output cannot be written.
pub(super) fn run(flags: ModelsFlags, _: &Runtime) -> Result<Outcome> {
    let mut models = builtins();
    if let Some(name) = &flags.name {
        let known: Vec<&str> = models.iter().map(|m| m.name).collect();
        if !known.contains(&name.as_str()) {
            return crate::error::usage(format!("there is no model `{name}`; known are {}", known.join(", ")))?;
        }
        models.retain(|m| m.name == name);
    }
    if flags.json == Some(true) {
        print(serde_json::to_string_pretty(&models)?)?;
    } else {
        print(models.iter().map(describe).collect::<Vec<_>>().join("\n\n"))?;
        if flags.name.is_none() {
            print(format_args!("\nGPUs (--device cuda): {}", gpu()))?;
        }
    }
    Ok(Outcome::Done)
}

/// The first GPU, or why there is none.
fn gpu() -> String {
    match (DeviceSpec::Cuda { ordinal: 0 }).open() {
        Ok(device) => device.map_or_else(String::new, |d| d.name().to_owned()),
        Err(e) => e.to_string(),
    }
}

fn describe(model: &BuiltinInfo) -> String {
    let mut lines = vec![format!("{}: {}", model.name, model.summary)];
    let width = model.parameters.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for p in model.parameters {
        let default = if p.default.is_empty() { String::new() } else { format!(" [default: {}]", p.default) };
        lines.push(format!("  {:<width$}  {}{default}", p.name, p.meaning));
    }
    match &model.capabilities {
        Some(c) => lines.extend(capabilities(c).into_iter().map(|l| format!("  {l}"))),
        None => lines.push("  what it can do depends on what it is made of".into()),
    }
    lines.join("\n")
}

/// What a provider can do, as a few lines for people.
pub(super) fn capabilities(c: &Capabilities) -> Vec<String> {
    let kind = match c.kind {
        Kind::Physical => "physical forces".to_owned(),
        Kind::MeanForce { temperature_kelvin } => format!("mean forces of the ensemble at {temperature_kelvin} K"),
        Kind::PseudoForce => "pseudo-forces towards minima".to_owned(),
    };
    let supplies: Vec<&str> =
        [(true, "forces"), (c.energy, "energy"), (c.virial, "virial"), (c.atom_energy, "energy per atom"), (c.uncertainty, "uncertainty")]
            .iter()
            .filter(|s| s.0)
            .map(|s| s.1)
            .collect();
    let units = match c.units {
        UnitSystem::Si => "nm, kJ/mol",
        UnitSystem::Reduced => "reduced units",
    };
    let dtypes: Vec<String> = c.dtypes.iter().map(ToString::to_string).collect();
    let types = match &c.types {
        None => "any element".to_owned(),
        Some(types) => types.iter().map(|&t| crate::io::elements::symbol(t)).collect::<Vec<_>>().join(" "),
    };
    let range = c.range.map_or("unlimited range".to_owned(), |r| format!("range {r:.4} nm"));
    let mut lines = vec![
        format!("{kind}{}; supplies {}", if c.conservative { ", conservative" } else { ", not conservative" }, supplies.join(", ")),
        format!("{units}; {types}; {range}; {}", if c.periodic { "open or periodic" } else { "open systems only" }),
        format!("{} on {}", dtypes.join(", "), c.devices.join(", ")),
    ];
    if c.needs_noise_level {
        lines.push("needs a noise level".into());
    }
    lines
}
