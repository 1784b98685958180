//! The tables of mechanics as parameters of `kernels/mechanics.cu`.

use super::kernel::{Tables, Terms};
use scorefield_integrators::device::{DeviceModel, Field};

/// Values kept per pair between the passes, as in the kernel.
const KEPT: usize = 3;

fn atoms<const N: usize>(terms: &Terms<f64, N>) -> Field {
    Field::Ints(terms.atoms.iter().flatten().map(|&i| i as i32).collect())
}

/// Slots into which the bonded terms write, in the kernel's order; for each atom, the first of its list, and all lists.
fn slots(tables: &Tables<f64>) -> [Vec<i32>; 2] {
    let owners =
        tables.bonds.atoms.iter().flatten().chain(tables.angles.atoms.iter().flatten()).chain(tables.torsions.atoms.iter().flatten());
    let mut of_atom = vec![Vec::new(); tables.atoms];
    for (slot, &atom) in owners.enumerate() {
        of_atom[atom as usize].push(slot as i32);
    }
    let mut first = vec![0];
    for list in &of_atom {
        first.push(first[first.len() - 1] + list.len() as i32);
    }
    [first, of_atom.concat()]
}

impl Tables<f64> {
    pub(super) fn device_model(&self) -> DeviceModel {
        let [first_slot, slots] = slots(self);
        let n = self.atoms;
        let large = (3 * slots.len()).max(KEPT * self.rows * n);
        let mut fields = vec![atoms(&self.bonds), atoms(&self.angles), atoms(&self.torsions)];
        let mut reals = |values: &[f64]| fields.push(Field::Reals(values.to_vec()));
        reals(&self.bonds.parameters);
        reals(&self.angles.parameters);
        reals(&self.torsions.parameters);
        fields.extend([first_slot, slots].map(Field::Ints));
        let mut reals = |values: Option<&Vec<f64>>| fields.push(Field::Reals(values.cloned().unwrap_or_default()));
        let (pairs, born) = (self.pairs.as_ref(), self.born.as_ref());
        reals(pairs.map(|p| &p.qq));
        reals(pairs.map(|p| &p.c6));
        reals(pairs.map(|p| &p.c12));
        reals(born.map(|g| &g.pair));
        reals(born.map(|g| &g.own));
        reals(born.map(|g| &g.scaled));
        reals(born.map(|g| &g.radius));
        reals(born.map(|g| &g.self_energy));
        reals(born.map(|g| &g.surface));
        fields.push(Field::Spill);
        let flags = [pairs.is_some(), born.is_some(), born.is_some_and(|g| g.has_surface)].map(usize::from);
        let numbers = [large, self.bonds.atoms.len(), self.angles.atoms.len(), self.torsions.atoms.len()];
        let shape = [self.torsion_powers[0], self.torsion_powers[1], self.rows, self.stride];
        fields.extend(numbers.iter().chain(&shape).chain(&flags).map(|&k| Field::Int(k as i32)));
        let rescaling = born.map_or([0.0; 3], |g| [g.rescaling.alpha, g.rescaling.beta, g.rescaling.gamma]);
        fields.extend(rescaling.map(Field::Real));
        DeviceModel {
            source: include_str!("../../kernels/mechanics.cu"),
            fields,
            group: None,
            scratch: 10 * n,
            spill: large,
            constant: 0.0,
        }
    }
}
