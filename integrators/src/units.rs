//! Units. Inside, everything is nm, ps, u, kJ/mol and K (coherent: u nm²/ps² = kJ/mol, no hidden factor). Other units
//! exist only at the boundary, as [`Quantity`]: text such as `2 fs`, `300 K`, `1 /ps`, `0.0103 eV`, `5 kcal/mol/A^2`.
//! Toys have reduced units and take bare numbers.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Gas constant in kJ/mol/K: kT of 1 K (CODATA 2018, exact).
pub const BOLTZMANN: f64 = 8.31446261815324e-3;
/// Coulomb constant `1/(4πε₀)` in kJ/mol nm/e² (CODATA 2018).
pub const COULOMB: f64 = 138.935_457_644_382;
/// nm per Å.
pub const NM_PER_ANGSTROM: f64 = 0.1;
/// nm per bohr (CODATA 2018).
pub const NM_PER_BOHR: f64 = 0.0529177210903;
/// kJ/mol per eV (CODATA 2018, exact).
pub const KJ_PER_EV: f64 = 96.485_332_123_310_02;
/// kJ/mol per kcal/mol.
pub const KJ_PER_KCAL: f64 = 4.184;
/// kJ/mol per hartree (CODATA 2018).
pub const KJ_PER_HARTREE: f64 = 2_625.499_639_479_9;

/// Whether numbers mean nm, ps, u and kJ/mol, or are dimensionless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum UnitSystem {
    /// nm, ps, u, kJ/mol, K.
    #[default]
    Si,
    /// Dimensionless: temperature is kT, mass and length are the toy's own.
    Reduced,
}

/// Exponents of length, time, mass, temperature and amount of substance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimension([i8; 5]);

impl Dimension {
    /// A pure number.
    pub const NONE: Dimension = Dimension([0; 5]);
    /// nm.
    pub const LENGTH: Dimension = Dimension([1, 0, 0, 0, 0]);
    /// ps.
    pub const TIME: Dimension = Dimension([0, 1, 0, 0, 0]);
    /// u.
    pub const MASS: Dimension = Dimension([0, 0, 1, 0, 0]);
    /// K.
    pub const TEMPERATURE: Dimension = Dimension([0, 0, 0, 1, 0]);
    /// 1/ps.
    pub const RATE: Dimension = Dimension([0, -1, 0, 0, 0]);
    /// kJ/mol.
    pub const ENERGY: Dimension = Dimension([2, -2, 1, 0, 0]);
    /// kJ/mol/nm.
    pub const FORCE: Dimension = Dimension([1, -2, 1, 0, 0]);
    /// kJ/mol/nm².
    pub const STIFFNESS: Dimension = Dimension([0, -2, 1, 0, 0]);

    fn power(self, n: i8) -> Self {
        Dimension(self.0.map(|e| e * n))
    }
    fn times(self, o: Self) -> Self {
        let mut e = self.0;
        for (a, b) in e.iter_mut().zip(o.0) {
            *a += b;
        }
        Dimension(e)
    }
    fn name(self) -> &'static str {
        match self {
            Dimension::NONE => "a pure number",
            Dimension::LENGTH => "a length (`nm`, `A`, `bohr`)",
            Dimension::TIME => "a time (`fs`, `ps`, `ns`)",
            Dimension::MASS => "a mass (`u`)",
            Dimension::TEMPERATURE => "a temperature (`K`)",
            Dimension::RATE => "a rate (`/ps`, `/fs`)",
            Dimension::ENERGY => "an energy (`kJ/mol`, `kcal/mol`, `eV`, `Ha`)",
            Dimension::FORCE => "a force (`kJ/mol/nm`, `eV/A`)",
            Dimension::STIFFNESS => "a force constant (`kJ/mol/nm^2`, `kcal/mol/A^2`)",
            _ => "another dimension",
        }
    }
    fn example(self) -> &'static str {
        match self {
            Dimension::LENGTH => "1.5 A",
            Dimension::TIME => "2 fs",
            Dimension::MASS => "3 u",
            Dimension::TEMPERATURE => "300 K",
            Dimension::RATE => "1 /ps",
            Dimension::ENERGY => "2 kJ/mol",
            Dimension::FORCE => "0.01 eV/A",
            Dimension::STIFFNESS => "100 kJ/mol/nm^2",
            _ => "1.5",
        }
    }
}

/// One table for all units: name, dimension, size in internal units. Per-particle units (eV, Ha) and molar units
/// (kJ/mol) are the same thing inside; `mol` is only allowed where an energy per mole is meant.
const UNITS: &[(&str, [i8; 5], f64)] = &[
    ("nm", [1, 0, 0, 0, 0], 1.0),
    ("A", [1, 0, 0, 0, 0], NM_PER_ANGSTROM),
    ("Å", [1, 0, 0, 0, 0], NM_PER_ANGSTROM),
    ("angstrom", [1, 0, 0, 0, 0], NM_PER_ANGSTROM),
    ("bohr", [1, 0, 0, 0, 0], NM_PER_BOHR),
    ("pm", [1, 0, 0, 0, 0], 1e-3),
    ("fs", [0, 1, 0, 0, 0], 1e-3),
    ("ps", [0, 1, 0, 0, 0], 1.0),
    ("ns", [0, 1, 0, 0, 0], 1e3),
    ("us", [0, 1, 0, 0, 0], 1e6),
    ("ms", [0, 1, 0, 0, 0], 1e9),
    ("s", [0, 1, 0, 0, 0], 1e12),
    ("u", [0, 0, 1, 0, 0], 1.0),
    ("Da", [0, 0, 1, 0, 0], 1.0),
    ("amu", [0, 0, 1, 0, 0], 1.0),
    ("K", [0, 0, 0, 1, 0], 1.0),
    ("rad", [0; 5], 1.0),
    ("deg", [0; 5], std::f64::consts::PI / 180.0),
    ("mol", [0, 0, 0, 0, 1], 1.0),
    ("J", [2, -2, 1, 0, 1], 1e-3),
    ("kJ", [2, -2, 1, 0, 1], 1.0),
    ("cal", [2, -2, 1, 0, 1], KJ_PER_KCAL * 1e-3),
    ("kcal", [2, -2, 1, 0, 1], KJ_PER_KCAL),
    ("eV", [2, -2, 1, 0, 0], KJ_PER_EV),
    ("meV", [2, -2, 1, 0, 0], KJ_PER_EV * 1e-3),
    ("Ha", [2, -2, 1, 0, 0], KJ_PER_HARTREE),
    ("hartree", [2, -2, 1, 0, 0], KJ_PER_HARTREE),
];

/// A number with the unit it was written in.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    value: f64,
    /// `None` for a bare number.
    unit: Option<String>,
}

impl Quantity {
    /// A bare number (reduced units, or a dimensionless parameter).
    pub fn bare(value: f64) -> Self {
        Quantity { value, unit: None }
    }

    /// `value` in `unit`, for example `Quantity::new(2.0, "fs")`.
    pub fn new(value: f64, unit: &str) -> Self {
        Quantity { value, unit: Some(unit.to_owned()) }
    }

    /// The number in internal units.
    ///
    /// # Errors
    /// In SI: a missing unit or one of another dimension. In reduced units: any unit.
    pub fn resolve(&self, dimension: Dimension, system: UnitSystem) -> Result<f64> {
        let fail = |reason: String| Err(Error::Quantity { text: self.to_string(), reason });
        match (&self.unit, system) {
            (None, UnitSystem::Reduced) => Ok(self.value),
            (None, UnitSystem::Si) if dimension == Dimension::NONE => Ok(self.value),
            (None, UnitSystem::Si) => fail(format!("it has no unit; write {}, for example `{}`", dimension.name(), dimension.example())),
            (Some(_), UnitSystem::Reduced) => fail("this model has reduced units; write the bare number".into()),
            (Some(unit), UnitSystem::Si) => {
                let (found, size) = parse_unit(unit).or_else(|reason| fail(reason).map(|_: f64| unreachable!()))?;
                if found != dimension {
                    return fail(format!(
                        "`{unit}` is {}, but {} is needed, for example `{}`",
                        found.name(),
                        dimension.name(),
                        dimension.example()
                    ));
                }
                Ok(self.value * size)
            }
        }
    }
}

/// Splits `kcal/mol/A^2`, `/ps`, `u nm` into factors and multiplies them.
fn parse_unit(text: &str) -> std::result::Result<(Dimension, f64), String> {
    let (mut dimension, mut size) = (Dimension::NONE, 1.0);
    let mut sign = 1i8;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find(['/', '*', ' ', '·']).unwrap_or(rest.len());
        let factor = &rest[..end];
        if !factor.is_empty() {
            let (name, power) = match factor.split_once('^') {
                Some((n, p)) => {
                    (n, p.parse::<i8>().ok().filter(|p| (-6..=6).contains(p)).ok_or_else(|| format!("`{p}` is not a small whole power"))?)
                }
                None => (factor, 1),
            };
            if name != "1" {
                let (_, d, s) = UNITS.iter().find(|(n, ..)| *n == name).ok_or_else(|| {
                    let known: Vec<_> = UNITS.iter().map(|u| u.0).collect();
                    format!("`{name}` is not a known unit; known are {}", known.join(", "))
                })?;
                dimension = dimension.times(Dimension(*d).power(sign * power));
                size *= s.powi((sign * power).into());
            }
        }
        match rest[end..].chars().next() {
            None => break,
            Some(c) => {
                sign = if c == '/' { -1 } else { 1 };
                rest = &rest[end + c.len_utf8()..];
                // `kJ / mol`: spaces around a slash do not end the division.
                if c == ' ' && rest.trim_start().starts_with('/') {
                    rest = rest.trim_start();
                }
                if c == '/' {
                    rest = rest.trim_start();
                }
            }
        }
    }
    Ok((dimension, size))
}

impl FromStr for Quantity {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        // The longest prefix that is a number; the rest is the unit.
        let end = (0..=trimmed.len()).rev().filter(|&e| trimmed.is_char_boundary(e)).find(|&e| {
            let head = trimmed[..e].trim_end();
            head.parse::<f64>().is_ok() && !head.ends_with(|c: char| c.is_alphabetic())
        });
        let fail = |reason: &str| Err(Error::Quantity { text: text.to_owned(), reason: reason.to_owned() });
        let Some(end) = end else {
            return fail("it does not begin with a number; write for example `2 fs`, `300 K` or `1 /ps`");
        };
        let value: f64 = match trimmed[..end].trim_end().parse() {
            Ok(v) => v,
            Err(_) => return fail("it does not begin with a number; write for example `2 fs`"),
        };
        if !value.is_finite() {
            return fail("the number must be finite");
        }
        let unit = trimmed[end..].trim();
        if unit.is_empty() {
            return Ok(Quantity::bare(value));
        }
        match parse_unit(unit) {
            Ok(_) => Ok(Quantity::new(value, unit)),
            Err(reason) => fail(&reason),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unit {
            None => write!(f, "{}", self.value),
            Some(u) => write!(f, "{} {u}", self.value),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match &self.unit {
            None => s.serialize_f64(self.value),
            Some(_) => s.serialize_str(&self.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as \"2 fs\", or a bare number")
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<Quantity, E> {
                v.parse().map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Quantity, E> {
                if v.is_finite() { Ok(Quantity::bare(v)) } else { Err(E::custom("the number must be finite")) }
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> std::result::Result<Quantity, E> {
                Ok(Quantity::bare(v as f64))
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> std::result::Result<Quantity, E> {
                Ok(Quantity::bare(v as f64))
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn si(text: &str, d: Dimension) -> Result<f64> {
        text.parse::<Quantity>()?.resolve(d, UnitSystem::Si)
    }

    #[test]
    fn reads_units() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} {b}");
        close(si("2 fs", Dimension::TIME).unwrap(), 0.002);
        close(si("2fs", Dimension::TIME).unwrap(), 0.002);
        close(si("300 K", Dimension::TEMPERATURE).unwrap(), 300.0);
        close(si("1 /ps", Dimension::RATE).unwrap(), 1.0);
        close(si("1/ps", Dimension::RATE).unwrap(), 1.0);
        close(si("10 ps^-1", Dimension::RATE).unwrap(), 10.0);
        close(si("1 kcal/mol", Dimension::ENERGY).unwrap(), 4.184);
        close(si("1 kJ / mol", Dimension::ENERGY).unwrap(), 1.0);
        close(si("1 eV/A", Dimension::FORCE).unwrap(), 964.8533212331);
        close(si("1e-2 eV/Å", Dimension::FORCE).unwrap(), 9.648533212331);
        close(si("1 kcal/mol/A^2", Dimension::STIFFNESS).unwrap(), 418.4);
        close(si("180 deg", Dimension::NONE).unwrap(), std::f64::consts::PI);
        close(si("2 kJ/mol/rad^2", Dimension::ENERGY).unwrap(), 2.0);
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", "fs", "2 parsec", "2 fs", "nan K", "inf fs", "2", "1 kJ", "1 K^99"] {
            assert!(si(text, Dimension::TEMPERATURE).is_err(), "{text}");
        }
        let message = si("2", Dimension::TIME).unwrap_err().to_string();
        assert!(message.contains("2 fs"), "{message}");
        assert!("1 K".parse::<Quantity>().unwrap().resolve(Dimension::TEMPERATURE, UnitSystem::Reduced).is_err());
    }
}
