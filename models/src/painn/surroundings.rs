//! Who is within the cutoff of whom, in one replica: all pairs of small molecules, neighbour lists of large ones and of cells.

use super::config::PainnConfig;
use super::network::Work;
use crate::analytic::lattice::Lattice;
use crate::analytic::neighbours::List;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::state::Cell;

/// Atoms from which a neighbour list is faster than looking at all pairs.
pub(super) const LIST_FROM: usize = 200;
/// Neighbour lists reach so far beyond the cutoff (Å).
const SKIN: f64 = 1.0;
/// Room that is left around open systems before their box is made anew (Å).
const ROOM: f64 = 10.0;
/// Å per nm.
const ANGSTROMS: f64 = 10.0;

/// What is remembered of one replica from step to step.
#[derive(Default)]
pub(super) struct Surroundings {
    list: List,
    /// Box around an open system, so large that no atom sees an image.
    room: Option<Lattice>,
}

/// Why a cell cannot be used; lengths in nm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unfit {
    /// Its vectors are not independent.
    Flat,
    /// Half its smallest height, this, is below the cutoff.
    Small(f64),
}

impl Surroundings {
    /// Adds atoms at `x [n, 3]` (Å) to `work`, with the pairs within the cutoff; rows of `cell` in nm.
    pub(super) fn add<T: SimdReal>(
        &mut self,
        work: &mut Work<T>,
        config: &PainnConfig,
        types: &[u32],
        x: &[f64],
        time: f64,
        cell: Option<&Cell>,
    ) -> Result<(), Unfit> {
        let many = types.len() >= LIST_FROM;
        let lattice = match cell {
            Some(cell) => {
                let lattice = Lattice::new(&cell.map(|c| ANGSTROMS * c)).ok_or(Unfit::Flat)?;
                let half = 0.5 * lattice.smallest_height();
                if half < config.cutoff {
                    return Err(Unfit::Small(half / ANGSTROMS));
                }
                lattice
            }
            None => match many.then(|| self.open(x, config.cutoff)).flatten() {
                Some(lattice) => lattice,
                None => {
                    work.add(config, types, x, time);
                    return Ok(());
                }
            },
        };
        let listed = many && self.list.update(&lattice, x, config.cutoff, SKIN, &[]);
        work.add_near(config, types, x, &lattice, listed.then_some(&self.list));
        Ok(())
    }

    /// The box around an open system at `x`: the one before, where atoms are still far enough from their images. None where
    /// coordinates are not finite.
    fn open(&mut self, x: &[f64], cutoff: f64) -> Option<Lattice> {
        let reach = cutoff + SKIN;
        let extent = [0, 1, 2].map(|k| {
            let of = x.iter().skip(k).step_by(3);
            let (low, high) = of.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
            high - low
        });
        let fits = |room: &Lattice| (0..3).all(|k| extent[k] + reach <= room.cell[4 * k]);
        if !self.room.as_ref().is_some_and(fits) {
            let sides = extent.map(|e| (e + reach).max(2.0 * reach) + ROOM);
            self.room = Lattice::new(&[sides[0], 0.0, 0.0, 0.0, sides[1], 0.0, 0.0, 0.0, sides[2]]);
        }
        self.room.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_boxes_stay_until_atoms_near_their_images() {
        let mut s = Surroundings::default();
        let mut x = vec![0.0, 0.0, 0.0, 30.0, 2.0, -5.0];
        let first = s.open(&x, 5.0).unwrap();
        assert_eq!([first.cell[0], first.cell[4], first.cell[8]], [46.0, 22.0, 22.0]);
        x[3] = 39.0;
        assert_eq!(s.open(&x, 5.0).unwrap().cell, first.cell);
        x[3] = 41.0;
        assert_eq!(s.open(&x, 5.0).unwrap().cell[0], 57.0);
        x[3] = f64::INFINITY;
        assert!(s.open(&x, 5.0).is_none());
    }
}
