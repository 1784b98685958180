//! Biases as they are written: `harmonic:cv=d,at=3 A,stiffness=1000 kJ/mol/nm^2`.

use super::surface::{Axis, MOST};
use super::variable::Variable;
use super::{Metadynamics, Spring, Term};
use crate::error::{Error, Result};
use crate::spec::read_pairs;
use scorefield_integrators::{Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Deserializer};
use std::f64::consts::PI;

/// Most windows, and most nodes of a grid.
const MOST_WINDOWS: usize = 1 << 16;
const MOST_NODES: usize = 1 << 22;
/// The period of a variable has at least this many widths, so that a hill never meets its own image.
const WIDTHS_PER_PERIOD: f64 = 12.0;

/// One bias.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BiasSpec {
    /// `½ k (s − at)²` on every replica.
    Harmonic {
        /// The variable.
        cv: String,
        /// Centre.
        at: Quantity,
        /// Force constant, per rad² for angles.
        stiffness: Quantity,
    },
    /// `½ k (s − sᵢ)²`, where replica `r` is in window `i = r mod windows`.
    Umbrella {
        /// The variable.
        cv: String,
        /// Centre of the first window.
        from: Quantity,
        /// Centre of the last window; of the one after it where the windows go round a whole period.
        to: Quantity,
        /// Number of windows.
        windows: usize,
        /// Force constant, per rad² for angles.
        stiffness: Quantity,
    },
    /// Hills where the replica has been, lower where there are many (A. Barducci, G. Bussi and M. Parrinello, Phys. Rev. Lett.
    /// 100, 020603, 2008).
    Metadynamics {
        /// The variables, with `;` between them.
        cv: String,
        /// Height of the first hill.
        height: Quantity,
        /// Standard deviation of hills along each variable, with `;` between them, or one for all.
        width: List,
        /// Steps between hills.
        every: u64,
        /// Bias factor γ > 1: variables move as at γ times the temperature in the end. Without it all hills have one height.
        #[serde(default)]
        factor: Option<f64>,
        /// First node of the grid of each variable; of dihedrals and angles −180° and 0.
        #[serde(default)]
        from: Option<List>,
        /// Last node of the grid.
        #[serde(default)]
        to: Option<List>,
        /// All replicas add to one surface and feel all of it (P. Raiteri et al., J. Phys. Chem. B 110, 3533, 2006).
        #[serde(default)]
        shared: bool,
    },
}

/// Quantities with `;` between them.
#[derive(Clone, Debug, PartialEq)]
pub struct List(Vec<Quantity>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let value = toml::Value::deserialize(d)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let parts: std::result::Result<Vec<Quantity>, _> = text.split(';').map(str::parse).collect();
        parts.map(List).map_err(serde::de::Error::custom)
    }
}

impl BiasSpec {
    /// Reads `KIND:key=value,…`.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<Self> {
        let context = format!("bias `{text}`");
        let (kind, pairs) = text.trim().split_once(':').unwrap_or((text.trim(), ""));
        let mut table = toml::Table::from_iter([("kind".to_owned(), toml::Value::from(kind.trim()))]);
        read_pairs(pairs, &mut table, &context)?;
        BiasSpec::deserialize(table).map_err(|e| Error::spec(context, e.message()))
    }

    /// Number of windows that replicas are shared out over; one where all feel the same bias.
    pub fn windows(&self) -> usize {
        match self {
            BiasSpec::Umbrella { windows, .. } => *windows,
            _ => 1,
        }
    }

    /// Checks and resolves the bias for these variables.
    pub(super) fn term(&self, variables: &[Variable], units: UnitSystem) -> Result<Term> {
        match self {
            BiasSpec::Harmonic { cv, at, stiffness } => {
                let k = find("harmonic", variables, cv)?;
                let reader = Reader { bias: "harmonic", variable: &variables[k], units };
                let centres = vec![reader.value("at", at)?];
                Ok(Term::Spring(Spring { variable: k, centres, stiffness: reader.stiffness(stiffness)? }))
            }
            BiasSpec::Umbrella { cv, from, to, windows, stiffness } => {
                let k = find("umbrella", variables, cv)?;
                let reader = Reader { bias: "umbrella", variable: &variables[k], units };
                let (low, high) = (reader.value("from", from)?, reader.value("to", to)?);
                if !(2..=MOST_WINDOWS).contains(windows) {
                    return Err(Error::parameter("umbrella", "windows", windows, &format!("write a number from 2 to {MOST_WINDOWS}")));
                }
                if high <= low {
                    return Err(Error::parameter("umbrella", "to", to, "it must be above `from`"));
                }
                let round = variables[k].period().is_some_and(|p| (high - low - p).abs() < 1e-9 * p);
                let step = (high - low) / (windows - usize::from(!round)) as f64;
                let centres = (0..*windows).map(|i| low + i as f64 * step).collect();
                Ok(Term::Spring(Spring { variable: k, centres, stiffness: reader.stiffness(stiffness)? }))
            }
            BiasSpec::Metadynamics { cv, height, width, every, factor, from, to, shared } => {
                let name = "metadynamics";
                let which = cv.split(';').map(|cv| find(name, variables, cv)).collect::<Result<Vec<_>>>()?;
                if which.len() > MOST {
                    return Err(Error::parameter(name, "cv", cv, &format!("at most {MOST} variables are biased together")));
                }
                if *every == 0 {
                    return Err(Error::parameter(name, "every", every, "write the number of steps between hills"));
                }
                let factor = factor.unwrap_or(f64::INFINITY);
                if !(factor > 1.0) {
                    return Err(Error::parameter(name, "factor", factor, "it must be above 1, for example 10"));
                }
                let height = positive(name, "height", resolve(name, "height", height, Dimension::ENERGY, units)?)?;
                let mut axes = Vec::with_capacity(which.len());
                for (d, &k) in which.iter().enumerate() {
                    let reader = Reader { bias: name, variable: &variables[k], units };
                    let of = |what: &str, list: &List| {
                        let one = if list.0.len() == 1 { list.0.first() } else { list.0.get(d).filter(|_| list.0.len() == which.len()) };
                        let Some(one) = one else {
                            return Err(Error::parameter(name, what, list.0.len(), &format!("write one, or one for each of {cv}")));
                        };
                        reader.value(what, one)
                    };
                    // Dihedrals go round: what one end says is for the other variables.
                    let open = variables[k].period().is_none();
                    let ends = [("from", from), ("to", to)].map(|(what, l)| l.as_ref().filter(|_| open).map(|l| of(what, l)));
                    axes.push(axis(&variables[k], of("width", width)?, ends)?);
                }
                if axes.iter().map(|a| a.nodes as f64).product::<f64>() > MOST_NODES as f64 {
                    return Err(Error::parameter(name, "width", "too small", "the grid would be larger than memory; use broader hills"));
                }
                Ok(Term::Hills(Metadynamics { variables: which, axes: axes.into(), height, factor, every: *every, shared: *shared }))
            }
        }
    }
}

/// The grid of one variable.
fn axis(variable: &Variable, width: f64, ends: [Option<Result<f64>>; 2]) -> Result<Axis> {
    let name = "metadynamics";
    let width = positive(name, "width", width)?;
    let [from, to] = ends.map(Option::transpose);
    let (from, to) = (from?, to?);
    if let Some(period) = variable.period() {
        if period / width < WIDTHS_PER_PERIOD {
            return Err(Error::parameter(name, "width", width, "it must be less than a twelfth of the period, for example 20 deg"));
        }
        return Ok(Axis::new(-PI, PI, width, true));
    }
    // Angles end at 0 and π.
    let usual = (variable.dimension() == Dimension::NONE).then_some([0.0, PI]);
    let (Some(low), Some(high)) = (from.or(usual.map(|u| u[0])), to.or(usual.map(|u| u[1]))) else {
        return Err(Error::spec(name, format!("{} needs the ends of its grid, for example from=0 A,to=10 A", variable.name)));
    };
    if !(high > low && (high - low) / width < MOST_NODES as f64) {
        return Err(Error::parameter(name, "to", high, "it must be above `from`, by fewer than a million widths"));
    }
    Ok(Axis::new(low, high, width, false))
}

fn find(bias: &str, variables: &[Variable], name: &str) -> Result<usize> {
    let name = name.trim();
    variables.iter().position(|v| v.name == name).ok_or_else(|| Error::Unknown {
        context: bias.into(),
        what: "collective variable",
        name: name.into(),
        known: variables.iter().map(|v| v.name.clone()).collect(),
    })
}

fn positive(bias: &str, what: &str, value: f64) -> Result<f64> {
    crate::analytic::positive(bias, what, value)
}

fn resolve(bias: &str, what: &str, q: &Quantity, dimension: Dimension, units: UnitSystem) -> Result<f64> {
    q.resolve(dimension, units).map_err(|e| Error::spec(format!("{bias}: {what}"), e.to_string()))
}

/// Reads quantities of one variable.
struct Reader<'a> {
    bias: &'static str,
    variable: &'a Variable,
    units: UnitSystem,
}

impl Reader<'_> {
    fn value(&self, what: &str, q: &Quantity) -> Result<f64> {
        resolve(self.bias, what, q, self.variable.dimension(), self.units)
    }

    fn stiffness(&self, q: &Quantity) -> Result<f64> {
        positive(self.bias, "stiffness", resolve(self.bias, "stiffness", q, self.variable.stiffness(), self.units)?)
    }
}
