//! Config files: TOML whose keys are the long flags of a command. Unknown keys are refused with a suggestion.

use crate::error::{Error, Result};
use clap::{Args, Command};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::de::DeTable;

/// Largest config file that is read: these are written by hand.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the settings of type `S` from a TOML file.
///
/// # Errors
/// Where the file cannot be read, is not TOML, has a key that is no flag of the command, or a value of the wrong type;
/// the message names the line.
pub fn load<S: Args + DeserializeOwned>(path: &Path) -> Result<S> {
    let file_error = |source| Error::File { action: "read", path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(file_error)?.len();
    if size > MAX_BYTES {
        return Err(Error::Config { path: path.to_owned(), line: None, what: format!("{size} bytes are too many for settings") });
    }
    parse(&std::fs::read_to_string(path).map_err(file_error)?, path)
}

/// As [`load`], from text; `path` is for messages.
///
/// # Errors
/// As [`load`].
fn parse<S: Args + DeserializeOwned>(text: &str, path: &Path) -> Result<S> {
    let line_at = |offset: usize| Some(text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1);
    let fail = |line, what: String| Err(Error::Config { path: path.to_owned(), line, what });
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(e) => return fail(e.span().and_then(|s| line_at(s.start)), e.message().to_owned()),
    };
    let known = keys::<S>();
    for (key, _) in table.get_ref() {
        let name: &str = key.get_ref();
        if !known.iter().any(|k| k == name) {
            return fail(line_at(key.span().start), format!("unknown key `{name}`{}", suggestion(name, &known)));
        }
    }
    let values: toml::Table = match toml::from_str(text) {
        Ok(values) => values,
        Err(e) => return fail(e.span().and_then(|s| line_at(s.start)), e.message().to_owned()),
    };
    S::deserialize(values.clone()).or_else(|whole| {
        // Flattened structures lose positions: find the key that cannot be read by itself.
        for (key, value) in table.get_ref() {
            let name: &str = key.get_ref();
            let alone = toml::Table::from_iter([(name.to_owned(), values[name].clone())]);
            if let Err(e) = S::deserialize(alone) {
                return fail(line_at(value.span().start), format!("`{name}`: {}", e.message()));
            }
        }
        fail(None, whole.message().to_owned())
    })
}

/// The keys of settings `S`: its long flags, and its positional arguments in lower case.
fn keys<S: Args>() -> Vec<String> {
    let command = S::augment_args(Command::new("keys"));
    command.get_arguments().map(|a| a.get_long().map_or_else(|| a.get_id().to_string(), str::to_owned)).filter(|k| k != "config").collect()
}

/// `; did you mean …?` where a known key is close to `name`, else the list of keys.
pub(super) fn suggestion(name: &str, known: &[String]) -> String {
    let normal = name.replace('_', "-").to_lowercase();
    let best = known.iter().map(|k| (strsim::jaro_winkler(k, &normal), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, key)) if score > 0.75 => format!("; did you mean `{key}`?"),
        _ => format!("; known are {}", known.join(", ")),
    }
}

/// `over` where it says something, else `under`.
///
/// # Errors
/// Never for settings made of optional values; a combination that does not deserialise is reported as usage.
pub fn overlay<S: Serialize + DeserializeOwned>(under: &S, over: &S) -> Result<S> {
    let object = |s: &S| serde_json::to_value(s).map_err(|e| Error::Usage(e.to_string()));
    let mut merged = object(under)?;
    if let (Some(merged), serde_json::Value::Object(over)) = (merged.as_object_mut(), object(over)?) {
        merged.extend(over.into_iter().filter(|(_, v)| !v.is_null()));
    }
    serde_json::from_value(merged).map_err(|e| Error::Usage(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::Quantity;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
    #[serde(rename_all = "kebab-case", default)]
    struct Inner {
        #[arg(long)]
        time_step: Option<Quantity>,
        #[arg(long)]
        steps: Option<u64>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
    #[serde(rename_all = "kebab-case", default)]
    struct Outer {
        structure: Option<String>,
        #[command(flatten)]
        #[serde(flatten)]
        inner: Inner,
    }

    fn read(text: &str) -> Result<Outer> {
        parse(text, Path::new("run.toml"))
    }

    #[test]
    fn reads_the_keys_of_flags() {
        let got = read("structure = \"a.pdb\"\ntime-step = \"2 fs\"\nsteps = 10").unwrap();
        assert_eq!(got.structure.as_deref(), Some("a.pdb"));
        assert_eq!(got.inner, Inner { time_step: Some("2 fs".parse().unwrap()), steps: Some(10) });
    }

    #[test]
    fn refuses_with_line_and_suggestion() {
        for (text, parts) in [
            ("steps = 1\ntime_step = \"2 fs\"\n", ["run.toml, line 2", "`time_step`; did you mean `time-step`?"]),
            ("steps = 1\n\nbanana = 1", ["line 3", "known are structure, time-step, steps"]),
            ("\nsteps = \"many\"", ["line 2", "`steps`: invalid type"]),
            ("steps = 1\ntime-step = \"2 parsec\"", ["line 2", "not a known unit"]),
            ("steps = 1\nsteps = 2", ["line 2", "duplicate"]),
            ("steps = ", ["line 1", "value"]),
            ("steps = -1", ["line 1", "steps"]),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(parts.iter().all(|p| message.contains(p)), "{text:?}: {message}");
        }
    }

    #[test]
    fn flags_win() {
        let file = read("structure = \"a.pdb\"\nsteps = 10").unwrap();
        let flags = Outer { structure: None, inner: Inner { steps: Some(20), ..Inner::default() } };
        let both = overlay(&file, &flags).unwrap();
        assert_eq!((both.structure.as_deref(), both.inner.steps), (Some("a.pdb"), Some(20)));
    }
}
