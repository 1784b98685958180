//! One domain of a larger system, as engines with domain decomposition call.

use crate::error::{Failure, guard, invalid};
use crate::{Model, check_size, slice, slice_mut};
use scorefield_models::local::{self, Neighbours};
use std::ffi::c_void;

/// Moves numbers between atoms and their ghosts, in a later version.
pub(crate) type Communicate = Option<unsafe extern "C" fn(context: *mut c_void, width: i64, values: *mut f64) -> i32>;

/// Own atoms, then ghosts.
#[repr(C)]
pub struct Domain {
    /// Bytes of this struct.
    pub size: usize,
    /// Own atoms.
    pub owned: i64,
    /// Own atoms and ghosts `N`.
    pub atoms: i64,
    /// Positions `[N, 3]`.
    pub positions: *const f64,
    /// Types `[N]`.
    pub types: *const u32,
    /// Lengths of the neighbour lists `[owned]`.
    pub neighbour_counts: *const i32,
    /// Neighbour lists `[owned]`.
    pub neighbours: *const *const i32,
    /// Bits of an entry that are an index.
    pub neighbour_mask: i32,
    /// Zero.
    pub reserved: i32,
    /// Null.
    pub forward: Communicate,
    /// Null.
    pub reverse: Communicate,
    /// Of those two.
    pub context: *mut c_void,
}

/// Where results go.
#[repr(C)]
pub struct DomainResults {
    /// Bytes of this struct.
    pub size: usize,
    /// `[N, 3]`
    pub forces: *mut f64,
    /// `[owned]`, or null.
    pub atom_energy: *mut f64,
    /// Of the domain.
    pub energy: f64,
    /// Of the domain.
    pub virial: [f64; 9],
}

/// The caller's lists, as slices.
struct Lists<'a> {
    counts: &'a [i32],
    lists: &'a [*const i32],
    mask: i32,
}

impl Neighbours for Lists<'_> {
    fn of(&self, i: usize) -> &[i32] {
        let (list, count) = (self.lists[i], self.counts[i].max(0) as usize);
        // SAFETY: the caller of `scorefield_evaluate_local` promised lists of these lengths.
        unsafe { slice(list, count) }.unwrap_or_default()
    }

    fn mask(&self) -> i32 {
        self.mask
    }
}

/// See the header.
///
/// # Safety
/// `model` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_local_range(model: *const Model) -> f64 {
    let mut range = 0.0;
    guard(|| {
        // SAFETY: as the caller promised.
        let model = unsafe { Model::of(model) }?;
        range = model.local_range.clone().map_err(invalid)?;
        Ok(())
    });
    range
}

/// See the header.
///
/// # Safety
/// `model` is null or open, `domain` and `results` are null or point to structs whose pointers are null or have room for what the
/// header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_evaluate_local(model: *mut Model, domain: *const Domain, results: *mut DomainResults) -> i32 {
    guard(|| {
        // SAFETY: as the caller promised.
        let (model, domain, results) = unsafe { (Model::of(model)?, domain.as_ref(), results.as_mut()) };
        let (Some(domain), Some(results)) = (domain, results) else { return Err(invalid("domain or results is NULL")) };
        check_size::<Domain>("scorefield_domain", domain.size)?;
        check_size::<DomainResults>("scorefield_domain_results", results.size)?;
        if domain.forward.is_some() || domain.reverse.is_some() || domain.reserved != 0 {
            return Err(invalid("forward, reverse and reserved belong to a later version; set them to zero"));
        }
        let count = |name: &str, n: i64| {
            let n = usize::try_from(n).ok().filter(|n| *n <= isize::MAX as usize / 24);
            n.ok_or_else(|| invalid(format!("{name} is out of range")))
        };
        let (owned, atoms) = (count("owned", domain.owned)?, count("atoms", domain.atoms)?);
        if owned > atoms {
            return Err(invalid(format!("{owned} of {atoms} atoms cannot be owned")));
        }
        (results.energy, results.virial) = (0.0, [0.0; 9]);
        if atoms == 0 {
            return Ok(());
        }
        // SAFETY: as the caller promised; the sizes are those in the header.
        let (positions, types, counts, lists, forces, atom_energy) = unsafe {
            (
                slice(domain.positions, 3 * atoms).ok_or_else(|| invalid("positions are NULL"))?,
                slice(domain.types, atoms).ok_or_else(|| invalid("types are NULL"))?,
                slice(domain.neighbour_counts, owned).unwrap_or_default(),
                slice(domain.neighbours, owned).unwrap_or_default(),
                slice_mut(results.forces, 3 * atoms).ok_or_else(|| invalid("forces are NULL"))?,
                slice_mut(results.atom_energy, owned),
            )
        };
        if counts.len() != owned || lists.len() != owned {
            return Err(invalid("neighbour_counts or neighbours is NULL"));
        }
        if let Some(k) = positions.iter().position(|x| !x.is_finite()) {
            return Err(invalid(format!("coordinate {} of atom {} is {}", ["x", "y", "z"][k % 3], k / 3, positions[k])));
        }
        let lists = Lists { counts, lists, mask: domain.neighbour_mask };
        let mut inner = model.lock()?;
        if inner.local.is_none() {
            inner.local = Some(inner.model.local()?);
        }
        let Some(local) = inner.local.as_mut() else { return Err(invalid("the model is not local")) };
        let mut out = local::DomainOutput { forces, atom_energy, energy: 0.0, virial: [0.0; 9] };
        local
            .evaluate(&local::Domain { positions, types, owned, neighbours: &lists }, &mut out)
            .map_err(|e| Failure::failed(e.to_string()))?;
        (results.energy, results.virial) = (out.energy, out.virial);
        match out.forces.iter().position(|f| !f.is_finite()) {
            Some(k) => Err(Failure::failed(format!(
                "force {} on atom {} is {}; look for overlapping atoms near it",
                ["x", "y", "z"][k % 3],
                k / 3,
                out.forces[k]
            ))),
            None => Ok(()),
        }
    })
}
