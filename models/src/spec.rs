//! From words to providers: the command line's `NAME:key=value,…`, files, and TOML trees.
//!
//! ```text
//! muller-brown
//! lj:sigma=3.405 A,epsilon=0.0103 eV
//! mm:peptide.xml
//! model.safetensors
//! tree.toml
//! ```
//!
//! A TOML tree nests freely; relative paths are relative to the file:
//!
//! ```toml
//! kind = "sum"
//! terms = [
//!     { kind = "mm", file = "peptide.xml" },
//!     { kind = "restraint", stiffness = "100 kJ/mol/nm^2", atoms = [1, 7] },
//! ]
//! ```

use crate::analytic::{DoubleWell2dSpec, DoubleWellSpec, HarmonicSpec, LennardJonesSpec, MullerBrownSpec, Toy};
use crate::ani::{AniModel, AniProvider, AniSpec};
use crate::combine::{Committee, Projected, RestraintSpec, Scaled, Sum};
use crate::ditmc::DitmcSpec;
use crate::error::{Error, Result};
use crate::external::ExternalSpec;
use crate::gpff::oracle::OracleSpec;
use crate::local::LocalForces;
use crate::mechanics::Mechanics;
use crate::painn::{PainnModel, PainnProvider, PainnSpec};
use crate::remote::{Open, RemoteSpec, nobody};
use crate::scoremd::provider::{ScoreProvider, ScoreSpec};
use crate::so3lr::So3lrSpec;
use crate::weights::WeightsFile;
use scorefield_integrators::lane::{LaneKernel, LaneProvider};
use scorefield_integrators::{Capabilities, ForceProvider};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// How deep provider trees may nest.
const MAX_DEPTH: usize = 16;
/// Largest TOML file that is read.
const MAX_TOML_BYTES: u64 = 1 << 20;
/// Largest force-field file that is read.
const MAX_XML_BYTES: u64 = 1 << 30;

/// Learned architectures that weights may name.
const ARCHITECTURES: &[&str] = &["ani2x", "ani1x", "ani1ccx", crate::painn::model::ARCHITECTURE, crate::scoremd::model::ARCHITECTURE];

/// A description of a force provider, as written on the command line or in a TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ProviderSpec {
    /// Harmonic oscillator.
    Harmonic(HarmonicSpec),
    /// Double well in one dimension.
    DoubleWell(DoubleWellSpec),
    /// Double well in two dimensions.
    #[serde(rename = "double-well-2d")]
    DoubleWell2d(DoubleWell2dSpec),
    /// Müller–Brown surface.
    MullerBrown(MullerBrownSpec),
    /// Lennard-Jones.
    Lj(LennardJonesSpec),
    /// Molecular mechanics from an OpenMM system file.
    Mm {
        /// The XML file.
        file: PathBuf,
    },
    /// A program that supplies forces.
    External(ExternalSpec),
    /// Other engines that connect and supply forces (i-PI protocol).
    Ipi(RemoteSpec),
    /// ANI-2x.
    Ani2x(AniSpec),
    /// ANI-1x.
    Ani1x(AniSpec),
    /// ANI-1ccx.
    Ani1ccx(AniSpec),
    /// SO3LR.
    So3lr(So3lrSpec),
    /// PaiNN, a potential or a generative pseudo-force field.
    Painn(PainnSpec),
    /// A conformer model as forces on one molecule.
    Ditmc(DitmcSpec),
    /// A diffusion model's score.
    Scoremd(ScoreSpec),
    /// The exact pseudo-force field of a few structures.
    GpffOracle(OracleSpec),
    /// A learned model from its weights.
    Weights {
        /// The safetensors file.
        file: PathBuf,
    },
    /// Forces added up.
    Sum {
        /// What is added.
        terms: Vec<ProviderSpec>,
    },
    /// Forces times a number.
    Scale {
        /// The number.
        factor: f64,
        /// What is scaled.
        of: Box<ProviderSpec>,
    },
    /// The mean of several models, with its uncertainty.
    Committee {
        /// The models.
        members: Vec<ProviderSpec>,
    },
    /// Forces without net force and, where `torque`, without net torque.
    Project {
        /// Whether the torque is removed too.
        #[serde(default)]
        torque: bool,
        /// What is projected.
        of: Box<ProviderSpec>,
    },
    /// Springs to reference positions.
    Restraint(RestraintSpec),
}

/// A provider and, where its model brings one along, a system to run it on.
pub struct Built {
    /// The provider.
    pub provider: Box<dyn ForceProvider>,
    /// The model's own system.
    pub toy: Option<Toy>,
    /// The force field, where it describes one system atom by atom: masses and bonds come from it.
    pub mechanics: Option<Mechanics>,
}

/// One parameter of a built-in provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ParameterInfo {
    /// Its key.
    pub name: &'static str,
    /// Its default as it would be written; empty where it must be given or depends on the others.
    pub default: &'static str,
    /// What it means, with an example of its unit where it has one.
    pub meaning: &'static str,
}

/// What the `models` command shows of a built-in provider.
#[derive(Clone, Debug, Serialize)]
pub struct BuiltinInfo {
    /// Name on the command line and in TOML files.
    pub name: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// Its parameters.
    pub parameters: &'static [ParameterInfo],
    /// What it can do with default parameters; `None` where that depends on a file or on other providers.
    pub capabilities: Option<Capabilities>,
}

struct KindInfo {
    name: &'static str,
    /// Other spellings that are understood.
    aliases: &'static [&'static str],
    summary: &'static str,
    parameters: &'static [ParameterInfo],
}

const fn parameter(name: &'static str, default: &'static str, meaning: &'static str) -> ParameterInfo {
    ParameterInfo { name, default, meaning }
}

const MASS: ParameterInfo = parameter("mass", "1", "mass of the particle");

const ANI: &[ParameterInfo] = &[parameter("weights", "", "the safetensors file that data/scripts/convert_ani.py wrote")];

const KINDS: &[KindInfo] = &[
    KindInfo {
        name: "harmonic",
        aliases: &[],
        summary: "harmonic oscillator, V = k |r - c|^2 / 2",
        parameters: &[
            parameter("k", "1", "force constant; with a unit (`100 kJ/mol/nm^2`) everything is SI, without one reduced"),
            parameter("dimension", "3", "number of axes of the toy, 1 to 3"),
            parameter("centre", "origin", "`origin`, or `start` for every atom's own start position"),
            parameter("mass", "", "mass of the toy's particle, by default 1 (`1 u` in SI)"),
            parameter("start", "", "start of the toy's particle on each axis, by default 1 (`1 A` in SI)"),
        ],
    },
    KindInfo {
        name: "double-well",
        aliases: &[],
        summary: "double well in one dimension, V = h (x^2 - 1)^2 + t x, reduced units",
        parameters: &[
            parameter("barrier", "3", "height h of the barrier"),
            parameter("tilt", "0", "tilt t"),
            MASS,
            parameter("start", "-1", "start position"),
        ],
    },
    KindInfo {
        name: "double-well-2d",
        aliases: &[],
        summary: "double well along x, harmonic along y, reduced units",
        parameters: &[
            parameter("barrier", "3", "height of the barrier along x"),
            parameter("tilt", "0", "tilt along x"),
            parameter("k", "1", "force constant along y"),
            MASS,
            parameter("start", "-1", "start position along x"),
        ],
    },
    KindInfo {
        name: "muller-brown",
        aliases: &["mueller-brown"],
        summary: "Müller-Brown surface: two dimensions, three minima, reduced units",
        parameters: &[
            MASS,
            parameter("x", "-0.558223635", "start position along x, by default the deepest minimum"),
            parameter("y", "1.441725842", "start position along y"),
        ],
    },
    KindInfo {
        name: "lj",
        aliases: &["lennard-jones"],
        summary: "Lennard-Jones: open and without cutoff, or with one in a periodic cell",
        parameters: &[
            parameter("sigma", "1", "distance of zero energy; with a unit (`3.405 A`) everything is SI, without one reduced"),
            parameter("epsilon", "1", "depth of the well (`0.0103 eV`)"),
            parameter("cutoff", "", "with it the model needs a periodic cell; without it all pairs, open"),
            parameter("shift", "false", "with a cutoff: make energies continuous there"),
            parameter("skin", "", "with a cutoff: reach of neighbour lists beyond it, by default 0.4 sigma"),
            parameter("n", "", "atoms it brings along: a cluster (by default 13), or with a cutoff a crystal (by default 108)"),
            parameter("mass", "", "mass of those atoms, by default 1 (argon's 39.948 u in SI)"),
            parameter("density", "0.8442", "with a cutoff: number density of that crystal times sigma^3"),
        ],
    },
    KindInfo {
        name: "mm",
        aliases: &["mechanics"],
        summary: "molecular mechanics from an OpenMM system file; short form mm:FILE.xml",
        parameters: &[parameter("file", "", "the XML file")],
    },
    KindInfo {
        name: "external",
        aliases: &[],
        summary: "a program of your own over standard input and output; short form external:COMMAND",
        parameters: &[
            parameter("command", "", "the program and its arguments"),
            parameter("timeout", "60", "seconds to wait for an answer"),
        ],
    },
    KindInfo {
        name: "ipi",
        aliases: &[],
        summary: "other engines that connect to us (i-PI protocol); short forms ipi:unix=NAME and ipi:HOST:PORT",
        parameters: &[
            parameter("unix", "", "name of a UNIX socket: the file is the prefix and this name"),
            parameter("prefix", "/tmp/ipi_", "what stands before the name"),
            parameter("host", "", "address of this machine to listen at (`0.0.0.0` for all), with a port; by default localhost"),
            parameter("port", "", "TCP port"),
            parameter("clients", "1", "clients that must be there before the first evaluation; more may join at any time"),
            parameter(
                "batch",
                "1",
                "structures in one message, for clients that understand batches (i-PI's driver from 3.3 on, scorefield)",
            ),
            parameter("timeout", "600 s", "time for one answer; a client that takes longer is given up"),
            parameter("wait", "60 s", "time for a client to come where there is none"),
            parameter("classic", "false", "ask for the status before each step of the exchange, for clients that want it"),
            parameter("energy", "true", "whether the clients' energies mean something"),
            parameter("forces", "physical", "what forces are: physical, mean-force or pseudo-force"),
            parameter("temperature", "", "temperature of mean forces (`300 K`)"),
            parameter("box", "200 A", "edge of the cell that clients are told where the system has none"),
        ],
    },
    KindInfo {
        name: "ani2x",
        aliases: &["ani-2x"],
        summary: "ANI-2x: organic molecules of H, C, N, O, F, S, Cl (as far as the weights go)",
        parameters: ANI,
    },
    KindInfo { name: "ani1x", aliases: &["ani-1x"], summary: "ANI-1x: organic molecules of H, C, N, O", parameters: ANI },
    KindInfo {
        name: "ani1ccx",
        aliases: &["ani-1ccx"],
        summary: "ANI-1ccx: organic molecules of H, C, N, O, towards coupled-cluster energies",
        parameters: ANI,
    },
    KindInfo {
        name: "so3lr",
        aliases: &[],
        summary: "SO3LR: molecules of H, C, N, O, F, P, S, Cl with long-range terms; energies of one composition only",
        parameters: &[
            parameter("weights", "", "the safetensors file of published weights"),
            parameter("cutoff", "", "cutoff of charges and dispersion, by default `1000 A` (gas phase)"),
        ],
    },
    KindInfo {
        name: "painn",
        aliases: &["gpff"],
        summary: "PaiNN: a potential, or pseudo-forces from noisy structures towards minima",
        parameters: &[parameter(
            "weights",
            "",
            "the safetensors file, or the arrays (.npz) of a SchNetPack PaiNN; without it the embedded pseudo-force field of QM9's molecules",
        )],
    },
    KindInfo {
        name: "ditmc",
        aliases: &[],
        summary: "a conformer model as pseudo-forces (or mean forces) of one molecule at one noise level",
        parameters: &[
            parameter(
                "weights",
                "",
                "the safetensors file that `scorefield train` wrote, by default embedded: a small model of QM9's minima",
            ),
            parameter("smiles", "", "the molecule, whose atoms (hydrogens last) are those of the structures"),
            parameter("sigma", "", "noise level, by default the smallest that it was trained with"),
            parameter("sigma-max", "", "with period: noise level that every period begins with; it falls to sigma"),
            parameter("period", "", "with sigma-max: time from there to sigma, over and over"),
            parameter("levels", "16", "noise levels of a period"),
            parameter("temperature", "", "temperature of the factor kT/sigma^2, by default that of its data, else `300 K`"),
        ],
    },
    KindInfo {
        name: "scoremd",
        aliases: &[],
        summary: "a trained diffusion model's score as mean forces of its temperature",
        parameters: &[
            parameter(
                "weights",
                "",
                "the safetensors file that `scorefield train` wrote, by default embedded: alanine dipeptide as five beads",
            ),
            parameter("t", "", "diffusion time at which forces are taken, by default what the file says (1e-5)"),
            parameter(
                "system",
                "",
                "one of the molecules that a transferable model was trained on; without it the structure's names of residues and atoms say it",
            ),
        ],
    },
    KindInfo {
        name: "gpff-oracle",
        aliases: &[],
        summary: "the exact pseudo-force field of the structures in a file: a standard for samplers; short form gpff-oracle:FILE.xyz",
        parameters: &[
            parameter("file", "", "XYZ file of structures of one composition"),
            parameter("stiffness", "", "stiffness k, by default `1 eV/A^2`"),
            parameter("mean", "-1.2", "mean of ln(sigma/A) in training"),
            parameter("deviation", "1.2", "its standard deviation"),
        ],
    },
    KindInfo {
        name: "weights",
        aliases: &[],
        summary: "a learned model; short form FILE.safetensors",
        parameters: &[parameter("file", "", "the safetensors file, whose metadata name the architecture")],
    },
    KindInfo { name: "sum", aliases: &[], summary: "forces added up (TOML)", parameters: &[parameter("terms", "", "list of providers")] },
    KindInfo {
        name: "scale",
        aliases: &["scaled"],
        summary: "forces times a number (TOML)",
        parameters: &[parameter("factor", "", "the number"), parameter("of", "", "the provider")],
    },
    KindInfo {
        name: "committee",
        aliases: &[],
        summary: "mean of several models; their standard deviation is the uncertainty (TOML)",
        parameters: &[parameter("members", "", "list of at least two providers")],
    },
    KindInfo {
        name: "project",
        aliases: &["projected"],
        summary: "forces without net force, and on request without net torque (TOML)",
        parameters: &[parameter("torque", "", "`true` removes the torque too; by default `false`"), parameter("of", "", "the provider")],
    },
    KindInfo {
        name: "restraint",
        aliases: &[],
        summary: "springs that hold atoms where they are, V = k |r - c|^2 / 2 (TOML)",
        parameters: &[
            parameter("stiffness", "", "force constant (`100 kJ/mol/nm^2`)"),
            parameter("atoms", "", "list of atoms and ranges counted from 1 (`[1, \"3-7\"]`), by default all"),
            parameter("reference", "", "`start` (the default), or rows of positions in nm"),
        ],
    },
];

/// All providers that can be named, with their parameters and what they can do.
pub fn builtins() -> Vec<BuiltinInfo> {
    KINDS
        .iter()
        .map(|k| {
            let table = toml::Table::from_iter([("kind".to_owned(), k.name.into())]);
            let built = from_table(table, k.name, 0).and_then(|spec| spec.build());
            BuiltinInfo {
                name: k.name,
                summary: k.summary,
                parameters: k.parameters,
                capabilities: built.ok().map(|b| b.provider.capabilities().clone()),
            }
        })
        .collect()
}

/// Reads `NAME`, `NAME:key=value,…`, `mm:FILE.xml`, `FILE.toml` or `FILE.safetensors`.
///
/// # Errors
/// What cannot be understood, with the nearest known name.
pub fn parse_spec(text: &str) -> Result<ProviderSpec> {
    let text = text.trim();
    let path = Path::new(text);
    let named = text.split_once(':').is_some_and(|(name, _)| KINDS.iter().any(|k| k.name == name || k.aliases.contains(&name)));
    match path.extension().and_then(|e| e.to_str()).filter(|_| !named) {
        Some("toml") => return read_toml(path),
        Some("safetensors") => return Ok(ProviderSpec::Weights { file: path.to_owned() }),
        _ => {}
    }
    if let Some(file) = text.strip_prefix("mm:") {
        let file = file.trim();
        if file.is_empty() {
            return Err(Error::spec(text, "the file is missing; write `mm:FILE.xml`"));
        }
        return Ok(ProviderSpec::Mm { file: file.into() });
    }
    if let Some(file) = text.strip_prefix("gpff-oracle:").filter(|rest| !rest.contains('=')) {
        let file = file.trim();
        if file.is_empty() {
            return Err(Error::spec(text, "the file is missing; write `gpff-oracle:FILE.xyz`"));
        }
        return Ok(ProviderSpec::GpffOracle(OracleSpec::of(file)));
    }
    if let Some(command) = text.strip_prefix("external:") {
        // A command may hold any character, so all of the rest is the command.
        let table = toml::Table::from_iter([("kind".to_owned(), "external".into()), ("command".to_owned(), command.trim().into())]);
        return from_table(table, text, 0);
    }
    if let Some(rest) = text.strip_prefix("ipi:") {
        return from_table(crate::remote::table(rest, text)?, text, 0);
    }
    if path.extension().is_some_and(|e| e == "xml") {
        return Err(Error::spec(text, format!("an XML file alone is no model; write `mm:{text}`")));
    }
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let mut table = toml::Table::new();
    table.insert("kind".into(), name.trim().into());
    read_pairs(rest, &mut table, text)?;
    from_table(table, text, 0)
}

/// Reads `key=value,…` into `table`.
pub(crate) fn read_pairs(pairs: &str, table: &mut toml::Table, text: &str) -> Result<()> {
    for pair in pairs.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::spec(text, format!("`{pair}` is not of the form key=value")));
        };
        let (key, value) = (key.trim(), value.trim());
        if key == "kind" || table.contains_key(key) {
            return Err(Error::spec(text, format!("`{key}` is given twice; keep one")));
        }
        table.insert(key.into(), plain_value(value));
    }
    Ok(())
}

/// The TOML value that `text` would be if it were written without quotes, where it would be one; else a string.
fn plain_value(text: &str) -> toml::Value {
    if let Ok(b) = text.parse::<bool>() {
        return b.into();
    }
    if let Ok(i) = text.parse::<i64>() {
        return i.into();
    }
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => x.into(),
        _ => text.into(),
    }
}

/// Reads a provider tree from a TOML file; relative paths in it are relative to its folder.
///
/// # Errors
/// Where the file cannot be read, is no TOML, or describes no provider.
pub fn read_toml(file: &Path) -> Result<ProviderSpec> {
    let text = read_text(file, MAX_TOML_BYTES)?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| Error::File { file: file.into(), reason: e.to_string() })?;
    let mut spec = from_table(table, &file.display().to_string(), 0)?;
    spec.resolve_paths(file.parent().unwrap_or(Path::new("")));
    Ok(spec)
}

/// The text of `file`, where it is UTF-8 and at most `limit` bytes.
pub(crate) fn read_text(file: &Path, limit: u64) -> Result<String> {
    let open = std::fs::File::open(file).map_err(|e| Error::io(file, e))?;
    let mut text = String::new();
    let read = open.take(limit + 1).read_to_string(&mut text).map_err(|e| Error::io(file, e))?;
    if read as u64 > limit {
        return Err(Error::File { file: file.into(), reason: format!("it is larger than {limit} bytes; is it the right file?") });
    }
    Ok(text)
}

/// Checks names and keys (with suggestions, which a derived reader cannot give), then reads the table.
fn from_table(mut table: toml::Table, place: &str, depth: usize) -> Result<ProviderSpec> {
    check_table(&mut table, place, depth)?;
    let kind = table.get("kind").and_then(|k| k.as_str()).unwrap_or_default().to_owned();
    ProviderSpec::deserialize(table).map_err(|e| {
        let message = e.message().trim();
        let missing = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`'));
        match missing {
            Some("file") if kind == "mm" => Error::spec(place, "the file is missing; write `mm:FILE.xml`"),
            Some(key) => Error::spec(place, format!("`{key}` is missing; `scorefield models {kind}` says what it means")),
            None => Error::spec(place, message),
        }
    })
}

fn check_table(table: &mut toml::Table, place: &str, depth: usize) -> Result<()> {
    if depth >= MAX_DEPTH {
        return Err(Error::spec(place, format!("providers nest deeper than {MAX_DEPTH} levels; write a flatter tree")));
    }
    let known_kinds = || KINDS.iter().map(|k| k.name.to_owned()).collect();
    let name = match table.get("kind") {
        Some(toml::Value::String(name)) => name.clone(),
        Some(other) => return Err(Error::spec(place, format!("kind = {other} is not a name; write for example kind = \"lj\""))),
        None => {
            return Err(Error::spec(place, "it has no `kind`; write for example kind = \"sum\""));
        }
    };
    let Some(kind) = KINDS.iter().find(|k| k.name == name || k.aliases.contains(&name.as_str())) else {
        return Err(Error::Unknown { context: place.into(), what: "model", name, known: known_kinds() });
    };
    table.insert("kind".into(), kind.name.into());
    for (key, value) in table.iter_mut() {
        if key != "kind" && !kind.parameters.iter().any(|p| p.name == key) {
            return Err(Error::Unknown {
                context: format!("{place}: {}", kind.name),
                what: "parameter",
                name: key.clone(),
                known: kind.parameters.iter().map(|p| p.name.to_owned()).collect(),
            });
        }
        match (key.as_str(), value) {
            ("of", toml::Value::Table(inner)) => check_table(inner, &format!("{place}: of"), depth + 1)?,
            ("terms" | "members", toml::Value::Array(list)) => {
                for (i, item) in list.iter_mut().enumerate() {
                    let place = format!("{place}: {key}[{i}]");
                    match item {
                        toml::Value::Table(inner) => check_table(inner, &place, depth + 1)?,
                        other => return Err(Error::spec(place, format!("{other} is not a provider; write {{ kind = \"…\", … }}"))),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

impl ProviderSpec {
    /// Makes relative paths relative to `folder`.
    fn resolve_paths(&mut self, folder: &Path) {
        match self {
            ProviderSpec::Mm { file } | ProviderSpec::Weights { file } => *file = folder.join(&file),
            ProviderSpec::Ani2x(s) | ProviderSpec::Ani1x(s) | ProviderSpec::Ani1ccx(s) => s.weights = folder.join(&s.weights),
            ProviderSpec::So3lr(s) => s.weights = folder.join(&s.weights),
            ProviderSpec::Painn(PainnSpec { weights: Some(file) }) => *file = folder.join(&*file),
            ProviderSpec::Ditmc(s) => s.weights = s.weights.as_ref().map(|w| folder.join(w)),
            ProviderSpec::Scoremd(ScoreSpec { weights: Some(file), .. }) => *file = folder.join(&*file),
            ProviderSpec::GpffOracle(s) => s.file = folder.join(&s.file),
            ProviderSpec::Sum { terms: inner } | ProviderSpec::Committee { members: inner } => {
                inner.iter_mut().for_each(|s| s.resolve_paths(folder));
            }
            ProviderSpec::Scale { of, .. } | ProviderSpec::Project { of, .. } => of.resolve_paths(folder),
            ProviderSpec::Harmonic(_)
            | ProviderSpec::Restraint(_)
            | ProviderSpec::External(_)
            | ProviderSpec::Painn(_)
            | ProviderSpec::Scoremd(_)
            | ProviderSpec::Ipi(_)
            | ProviderSpec::DoubleWell(_)
            | ProviderSpec::DoubleWell2d(_)
            | ProviderSpec::MullerBrown(_)
            | ProviderSpec::Lj(_) => {}
        }
    }

    /// Builds the provider.
    ///
    /// # Errors
    /// Where a parameter is refused, a file cannot be used, or providers do not fit together.
    pub fn build(&self) -> Result<Built> {
        self.build_at(None)
    }

    /// True where other programs supply forces, so that nobody can promise their last bits.
    pub fn is_remote(&self) -> bool {
        match self {
            ProviderSpec::Ipi(_) => true,
            ProviderSpec::Sum { terms: inner } | ProviderSpec::Committee { members: inner } => inner.iter().any(Self::is_remote),
            ProviderSpec::Scale { of, .. } | ProviderSpec::Project { of, .. } => of.is_remote(),
            _ => false,
        }
    }

    /// Builds the provider; `start` are the start positions `[N, 3]` of the system it will act on, for what is bound to
    /// them (in nm, or reduced units).
    ///
    /// # Errors
    /// As [`ProviderSpec::build`].
    pub fn build_at(&self, start: Option<&[f64]>) -> Result<Built> {
        self.build_with(start, &nobody)
    }

    /// As [`ProviderSpec::build_at`]; `open` listens for engines that supply forces, as this package has no sockets.
    ///
    /// # Errors
    /// As [`ProviderSpec::build`].
    pub fn build_with(&self, start: Option<&[f64]>, open: &Open) -> Result<Built> {
        let all = |specs: &[ProviderSpec]| -> Result<(Vec<Box<dyn ForceProvider>>, Option<Toy>, Option<Mechanics>)> {
            let (mut toy, mut mechanics) = (None, None);
            let mut providers = Vec::with_capacity(specs.len());
            for spec in specs {
                // Without a structure, terms that need one take that of a term which brings its own.
                let built = spec.build_with(start.or(toy.as_ref().map(|t: &Toy| &t.positions[..])), open)?;
                toy = toy.or(built.toy);
                mechanics = mechanics.or(built.mechanics);
                providers.push(built.provider);
            }
            Ok((providers, toy, mechanics))
        };
        match self {
            ProviderSpec::Sum { terms } => {
                let (providers, toy, mechanics) = all(terms)?;
                Ok(Built { provider: Box::new(Sum::new(providers)?), toy, mechanics })
            }
            ProviderSpec::Committee { members } => {
                let (providers, toy, mechanics) = all(members)?;
                Ok(Built { provider: Box::new(Committee::new(providers)?), toy, mechanics })
            }
            ProviderSpec::Scale { factor, of } => {
                let built = of.build_with(start, open)?;
                Ok(Built { provider: Box::new(Scaled::new(built.provider, *factor)?), ..built })
            }
            ProviderSpec::Project { torque, of } => {
                let built = of.build_with(start, open)?;
                Ok(Built { provider: Box::new(Projected::new(built.provider, *torque)), ..built })
            }
            ProviderSpec::Restraint(s) => Ok(Built { provider: Box::new(s.build(start)?), toy: None, mechanics: None }),
            ProviderSpec::Harmonic(s) => s.build(start).map(toy),
            ProviderSpec::DoubleWell(s) => s.build().map(toy),
            ProviderSpec::DoubleWell2d(s) => s.build().map(toy),
            ProviderSpec::MullerBrown(s) => s.build().map(toy),
            ProviderSpec::Lj(s) => {
                let (provider, toy) = s.build()?;
                Ok(Built { provider, toy: Some(toy), mechanics: None })
            }
            ProviderSpec::Mm { file } => {
                let name = file.display().to_string();
                let mechanics = Mechanics::from_xml(&read_text(file, MAX_XML_BYTES)?, &name).map_err(|e| Error::File {
                    file: file.clone(),
                    reason: e.to_string().trim_start_matches(&format!("{name}: ")).into(),
                })?;
                Ok(Built { provider: mechanics.provider(&name), toy: None, mechanics: Some(mechanics) })
            }
            ProviderSpec::Ipi(s) => Ok(Built { provider: open(s)?, toy: None, mechanics: None }),
            ProviderSpec::External(s) => Ok(Built { provider: Box::new(s.build()?), toy: None, mechanics: None }),
            ProviderSpec::Ani2x(s) => ani(s, AniModel::Ani2x),
            ProviderSpec::Ani1x(s) => ani(s, AniModel::Ani1x),
            ProviderSpec::Ani1ccx(s) => ani(s, AniModel::Ani1ccx),
            ProviderSpec::Weights { file } if AniProvider::recognises(file) => Ok(alone(AniProvider::open(file, None)?)),
            ProviderSpec::So3lr(s) => Ok(alone(s.build()?)),
            ProviderSpec::Weights { file } if crate::so3lr::recognises(file) => Err(Error::File {
                file: file.clone(),
                reason: format!("these are weights of SO3LR; write `so3lr:weights={}`", file.display()),
            }),
            ProviderSpec::Painn(s) => Ok(alone(s.build()?)),
            ProviderSpec::Ditmc(s) => Ok(alone(s.build()?)),
            ProviderSpec::Scoremd(s) => Ok(score(s.build()?)),
            ProviderSpec::GpffOracle(s) => Ok(alone(s.build()?)),
            ProviderSpec::Weights { file } => {
                let weights = WeightsFile::read(file)?;
                if weights.metadata().architecture == crate::scoremd::model::ARCHITECTURE {
                    return Ok(score(ScoreSpec::of_weights(file, weights)?));
                }
                if weights.metadata().architecture == crate::painn::model::ARCHITECTURE {
                    return Ok(alone(PainnProvider::new(PainnModel::of_weights(file, weights)?)));
                }
                if weights.metadata().architecture == crate::ditmc::model::ARCHITECTURE {
                    let reason = format!("it is a conformer model; say of which molecule: `ditmc:weights={},smiles=...`", file.display());
                    return Err(Error::File { file: file.clone(), reason });
                }
                Err(Error::Unknown {
                    context: file.display().to_string(),
                    what: "architecture",
                    name: weights.metadata().architecture.clone(),
                    known: ARCHITECTURES.iter().map(|a| (*a).to_owned()).collect(),
                })
            }
        }
    }
}

impl ProviderSpec {
    /// The same forces on domains of a larger system, where a provider's energy is a sum over atoms that see no further than a
    /// cutoff.
    ///
    /// # Errors
    /// Where it is not, or as [`ProviderSpec::build`].
    pub fn build_local(&self) -> Result<Box<dyn LocalForces>> {
        match self {
            ProviderSpec::Lj(s) => Ok(Box::new(s.build_local()?)),
            ProviderSpec::Ani2x(s) => Ok(Box::new(AniProvider::open(&s.weights, Some(AniModel::Ani2x))?.local())),
            ProviderSpec::Ani1x(s) => Ok(Box::new(AniProvider::open(&s.weights, Some(AniModel::Ani1x))?.local())),
            ProviderSpec::Ani1ccx(s) => Ok(Box::new(AniProvider::open(&s.weights, Some(AniModel::Ani1ccx))?.local())),
            ProviderSpec::Weights { file } if AniProvider::recognises(file) => Ok(Box::new(AniProvider::open(file, None)?.local())),
            ProviderSpec::Painn(s) => Ok(Box::new(s.build()?.local()?)),
            ProviderSpec::Weights { file } if is_painn(file) => Ok(Box::new(PainnProvider::open(file)?.local()?)),
            _ => {
                let name = toml::Table::try_from(self).ok().and_then(|t| Some(t.get("kind")?.as_str()?.to_owned()));
                Err(Error::spec(
                    name.unwrap_or_else(|| "this model".into()),
                    "its forces cannot be computed domain by domain: they are not a sum over atoms that see no further than a cutoff, or \
                     this is not implemented; evaluate whole structures instead (lj with a cutoff, ANI and PaiNN with an energy can)",
                ))
            }
        }
    }
}

fn is_painn(file: &Path) -> bool {
    WeightsFile::read(file).is_ok_and(|w| w.metadata().architecture == crate::painn::model::ARCHITECTURE)
}

/// A provider that brings no system along.
fn alone(provider: impl ForceProvider + 'static) -> Built {
    Built { provider: Box::new(provider), toy: None, mechanics: None }
}

fn ani(spec: &AniSpec, model: AniModel) -> Result<Built> {
    Ok(alone(AniProvider::open(&spec.weights, Some(model))?))
}

fn score((provider, toy): (ScoreProvider, Option<Toy>)) -> Built {
    Built { provider: Box::new(provider), toy, mechanics: None }
}

fn toy<K: LaneKernel>((kernel, toy): (K, Toy)) -> Built {
    Built { provider: Box::new(LaneProvider::new(kernel)), toy: Some(toy), mechanics: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        match parse_spec(text).and_then(|s| s.build().map(|_| ())) {
            Ok(()) => panic!("`{text}` was accepted"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn names_and_keys_are_suggested() {
        assert!(message("muler-brown").contains("did you mean `muller-brown`?"));
        assert!(message("lj:sigm=1").contains("did you mean `sigma`?"));
        assert!(message("lj:sigma=1,sigma=2").contains("given twice"));
        assert!(message("lj:sigma").contains("key=value"));
        assert!(message("lj:n=many").contains("usize"));
        assert!(message("lj:n=0").contains("n = 0 is refused"));
        assert!(message("").contains("unknown model"));
        assert!(message("system.xml").contains("mm:system.xml"));
        assert!(message("mm:").contains("FILE.xml"));
        assert!(message("missing.toml").contains("missing.toml"));
        assert!(message("double-well:barrier=-1").contains("above zero"));
        assert!(message("harmonic:k=nan").contains("k"));
    }

    #[test]
    fn aliases_and_spaces_are_understood() {
        assert_eq!(parse_spec("mueller-brown").unwrap(), parse_spec(" muller-brown ").unwrap());
        assert_eq!(
            parse_spec("lj: sigma = 3.4 A , epsilon = 1 kJ/mol").unwrap(),
            parse_spec("lennard-jones:epsilon=1 kJ/mol,sigma=3.4A").unwrap()
        );
    }

    #[test]
    fn documented_parameters_are_those_that_are_read() {
        for kind in KINDS {
            // Where a parameter must be given, the kind alone says nothing.
            let bare = parse_spec(kind.name);
            for p in kind.parameters.iter().filter(|p| !p.default.is_empty() && bare.is_ok()) {
                let written = parse_spec(&format!("{}:{}={}", kind.name, p.name, p.default)).unwrap();
                assert_eq!(written, parse_spec(kind.name).unwrap(), "{}: default of {}", kind.name, p.name);
            }
            assert!(kind.aliases.iter().all(|a| KINDS.iter().all(|k| k.name != *a)));
            for p in kind.parameters {
                // Every documented key is known to the reader, which may still refuse this value.
                if let Err(e) = parse_spec(&format!("{}:{}=?", kind.name, p.name)) {
                    assert!(!e.to_string().contains("unknown field"), "{e}");
                }
            }
        }
        assert_eq!(builtins().len(), KINDS.len());
    }

    fn tree(text: &str) -> Result<ProviderSpec> {
        from_table(text.parse().unwrap(), "tree", 0)
    }

    #[test]
    fn trees_nest_and_say_where_they_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tree.toml");
        let text = r#"
            kind = "sum"
            terms = [
                { kind = "lj", n = 9 },
                { kind = "scale", factor = 0.5, of = { kind = "committee", members = [{ kind = "lj" }, { kind = "lj", epsilon = 1.2 }] } },
                { kind = "project", torque = true, of = { kind = "harmonic" } },
                { kind = "restraint", stiffness = 10, atoms = [1, "3-5"] },
            ]
        "#;
        std::fs::write(&file, text).unwrap();
        let built = parse_spec(file.to_str().unwrap()).unwrap().build().unwrap();
        assert_eq!(built.toy.unwrap().system.len(), 9);
        assert!(built.provider.capabilities().uncertainty);
        std::fs::write(
            &file,
            r#"kind = "scale"
            factor = 2
            of = { kind = "mm", file = "x.xml" }"#,
        )
        .unwrap();
        let ProviderSpec::Scale { of, factor } = parse_spec(file.to_str().unwrap()).unwrap() else { panic!() };
        assert_eq!((*of, factor), (ProviderSpec::Mm { file: folder.path().join("x.xml") }, 2.0));

        let message = |text: &str| tree(text).and_then(|s| s.build().map(|_| ())).unwrap_err().to_string();
        assert!(message(r#"terms = []"#).contains("no `kind`"));
        assert!(
            message(
                r#"kind = "sum"
            terms = [{ kind = "lj" }, { kind = "lj", epsilom = 2 }]"#
            )
            .contains("tree: terms[1]: lj: unknown parameter `epsilom`, did you mean `epsilon`?")
        );
        assert!(message("kind = \"sum\"\nterms = [3]").contains("3 is not a provider"));
        assert!(message("kind = \"sum\"\nterms = []").contains("at least one provider"));
        assert!(message("kind = \"sum\"").contains("terms"));
        assert!(message("kind = \"restraint\"\nstiffness = 1").contains("needs start positions"));
        assert!(message("kind = \"restraint\"\nstiffness = 1\nreference = \"here\"").contains("reference"));
        let rows = "kind = \"restraint\"\nstiffness = 1\nreference = [[0, 0, 0], [1.5, 0, 0]]";
        assert!(tree(rows).unwrap().build().is_ok());
        assert!(message(&format!("{rows}\natoms = [0]")).contains("counted from 1"));
        assert!(message(&format!("{rows}\natoms = [\"2-1\"]")).contains("atoms = 2-1 is refused"));
        let deep = format!("{}{{ kind = \"lj\" }}{}", "{ kind = \"scale\", factor = 1, of = ".repeat(20), " }".repeat(20));
        assert!(message(&format!("kind = \"scale\"\nfactor = 1\nof = {deep}")).contains("nest deeper"));
    }

    #[test]
    fn files_are_built_or_refused_by_name() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/mechanics");
        let file = fixtures.join("aldp-vacuum.system.xml");
        let built = parse_spec(&format!("mm:{}", file.display())).unwrap().build().unwrap();
        assert!(built.mechanics.is_some() && built.provider.capabilities().energy);
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("broken.xml");
        std::fs::write(&broken, "<System").unwrap();
        let refused = message(&format!("mm:{}", broken.display()));
        assert!(refused.starts_with(&broken.display().to_string()), "{refused}");
        assert_eq!(refused.matches("broken.xml").count(), 1, "{refused}");

        let weights = folder.path().join("model.safetensors");
        let metadata = crate::weights::Metadata {
            architecture: "perceptron".into(),
            parameters: Default::default(),
            prediction: crate::adapters::Prediction::Energy,
            units: scorefield_integrators::UnitSystem::Si,
            ensemble: crate::weights::Ensemble::Potential,
            scale: 1.0,
            types: None,
            noise: None,
            command: String::new(),
            seed: 0,
            system: None,
        };
        crate::weights::write(&weights, &metadata, &Default::default()).unwrap();
        let refused = message(weights.to_str().unwrap());
        assert!(refused.contains("unknown architecture `perceptron`"), "{refused}");
    }

    #[test]
    fn devices_are_those_that_there_are_kernels_for() {
        let trees = ["lj", "lj:cutoff=2.5", "harmonic", "muller-brown"];
        let sum = "kind = \"sum\"\nterms = [{ kind = \"lj\" }, { kind = \"lj\", epsilon = 2 }]";
        let scaled = "kind = \"scale\"\nfactor = 2\nof = { kind = \"lj\" }";
        let projected = "kind = \"project\"\nof = { kind = \"lj\" }";
        let specs = trees.iter().map(|t| parse_spec(t)).chain([sum, scaled, projected].map(tree));
        let built = specs.map(|s| s.unwrap().build().unwrap());
        for provider in built.map(|b| b.provider) {
            let capabilities = provider.capabilities();
            let has = capabilities.devices.contains(&"cuda");
            assert_eq!(
                has,
                provider.device_model(&scorefield_integrators::System::particles("one", 1, 1.0)).is_some(),
                "{}: {:?}",
                capabilities.name,
                capabilities.devices
            );
        }
    }

    #[test]
    fn round_trips_through_toml() {
        for text in [
            "muller-brown",
            "lj:sigma=3.4 A,epsilon=1 kJ/mol,n=5",
            "harmonic:k=2,dimension=1,centre=start",
            "mm:x.xml",
            "ipi:unix=argon,clients=4,timeout=5 s",
        ] {
            let spec = parse_spec(text).unwrap();
            let table: toml::Table = toml::to_string(&spec).unwrap().parse().unwrap();
            assert_eq!(from_table(table, text, 0).unwrap(), spec);
        }
    }
}
