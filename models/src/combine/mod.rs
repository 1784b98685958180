//! Providers of providers: sums, scaled forces, committees, projections and restraints.
//!
//! What a combination can do follows from its parts ([`joined`]): it has an energy where all parts have one, runs in the
//! precisions that all share, and is a pseudo-force as soon as one part is.

mod committee;
mod projected;
mod restraint;
mod scaled;
mod sum;
#[cfg(test)]
mod tests;

pub use committee::Committee;
pub use projected::Projected;
pub use restraint::{AtomRange, Reference, Restraint, RestraintSpec};
pub use scaled::Scaled;
pub use sum::Sum;

use crate::error::{Error, Result};
use scorefield_integrators::{Capabilities, ForceProvider, Kind};

fn refuse<T>(name: &str, reason: impl Into<String>) -> Result<T> {
    Err(Error::Combine { name: name.into(), reason: reason.into() })
}

/// The kind of forces that are added or averaged: pseudo-forces make everything a pseudo-force, mean forces keep their
/// temperature (a physical term biases their ensemble), and two temperatures do not mix.
fn joined_kind(name: &str, parts: &[&Capabilities]) -> Result<Kind> {
    if parts.iter().any(|p| p.kind == Kind::PseudoForce) {
        return Ok(Kind::PseudoForce);
    }
    let mut kind = Kind::Physical;
    for p in parts {
        if let Kind::MeanForce { temperature_kelvin: new } = p.kind {
            match kind {
                Kind::MeanForce { temperature_kelvin: old } if old != new => {
                    return refuse(
                        name,
                        format!("mean forces at {old} K and (of {}) at {new} K do not mix; use models of one temperature", p.name),
                    );
                }
                _ => kind = p.kind,
            }
        }
    }
    Ok(kind)
}

/// What a combination called `name` of all `parts` can do.
///
/// # Errors
/// Where there is no part, or units, temperatures, known types, precisions or devices have nothing in common.
pub fn joined(name: &str, parts: &[&Capabilities]) -> Result<Capabilities> {
    let Some((first, rest)) = parts.split_first() else {
        return refuse(name, "it has no part; give at least one provider");
    };
    let mut all = Capabilities { name: name.into(), kind: joined_kind(name, parts)?, ..(*first).clone().without_kernels() };
    for p in rest {
        if p.units != all.units {
            return refuse(name, format!("{} and {} have different units (SI and reduced); use one system of units", first.name, p.name));
        }
        all.conservative &= p.conservative;
        all.energy &= p.energy;
        all.energies_comparable &= p.energies_comparable;
        all.virial &= p.virial;
        // Bias forces on a pseudo-force leave its stiffness as it is; two stiffnesses leave none.
        all.stiffness = match (all.stiffness, p.stiffness) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => a.or(b),
        };
        all.atom_energy &= p.atom_energy;
        all.uncertainty &= p.uncertainty;
        all.needs_noise_level |= p.needs_noise_level;
        all.periodic &= p.periodic;
        all.graph_safe &= p.graph_safe;
        all.range = all.range.zip(p.range).map(|(a, b)| a.max(b));
        all.types = match (all.types, &p.types) {
            (Some(a), Some(b)) => Some(a.into_iter().filter(|t| b.contains(t)).collect()),
            (a, b) => a.or_else(|| b.clone()),
        };
        all.dtypes.retain(|d| p.dtypes.contains(d));
        all.devices.retain(|d| p.devices.contains(d));
    }
    if all.types.as_ref().is_some_and(Vec::is_empty) {
        return refuse(name, "its parts know no atom type in common; choose models for the same elements or beads");
    }
    if all.dtypes.is_empty() || all.devices.is_empty() {
        return refuse(name, "its parts share no precision or no device; choose others");
    }
    Ok(all)
}

/// Forks of all `parts`.
fn forked(parts: &[Box<dyn ForceProvider>]) -> scorefield_integrators::Result<Vec<Box<dyn ForceProvider>>> {
    parts.iter().map(|p| p.fork()).collect()
}
