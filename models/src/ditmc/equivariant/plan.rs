//! The products of filters and values of a block, in the order in which they are summed.
//!
//! A message is `κ_path C (f_l Y_l) ⊗ w v` summed over senders. κ does not depend on the pair and harmonics do not depend on the channel:
//! for every path and component the sum over senders of `c f_l w v_m` is accumulated, with one number c per pair from couplings and
//! harmonics, and κ is applied in the end. Tensor products over channels are never built.

use super::couplings::{COMPONENTS, coupling};
use super::places::{BlockPlaces, Irrep};
use scorefield_integrators::Real;

/// A coupling of a filter's degree and a value's to a message's.
pub(in super::super) struct Path {
    pub(in super::super) filter: usize,
    pub(in super::super) value: Irrep,
    /// Row of κ.
    pub(in super::super) kappa: usize,
    /// First accumulator, one for each component.
    pub(in super::super) first: usize,
    pub(in super::super) message: Irrep,
}

/// What one component of a value adds through one filter.
pub(in super::super) struct Group {
    pub(in super::super) filter: usize,
    pub(in super::super) value: Irrep,
    /// Component of the value.
    pub(in super::super) component: usize,
    /// Accumulators, and the numbers of their coefficients.
    pub(in super::super) targets: Vec<(usize, usize)>,
}

/// A block's products.
pub(in super::super) struct Plan<T> {
    pub(in super::super) paths: Vec<Path>,
    pub(in super::super) groups: Vec<Group>,
    pub(in super::super) accumulators: usize,
    /// Of each coefficient its terms: a harmonic, and what it is multiplied with.
    coefficients: Vec<Vec<(usize, T)>>,
}

impl<T: Real> Plan<T> {
    pub(in super::super) fn new(block: &BlockPlaces) -> Self {
        let mut plan = Plan { paths: Vec::new(), groups: Vec::new(), accumulators: 0, coefficients: Vec::new() };
        let [_, parities, degrees_in, message_parities, degrees_out] = block.kappa_shape;
        let mut known: Vec<([usize; 5], usize)> = Vec::new();
        for &value in &block.inputs {
            for filter in 0..block.filters.len() {
                let mut groups: Vec<Group> =
                    (0..value.rows()).map(|component| Group { filter, value, component, targets: Vec::new() }).collect();
                for &message in &block.messages {
                    // A filter has the parity of its degree.
                    let Some(all) = coupling(filter, value.degree, message.degree) else { continue };
                    if message.parity != (value.parity + filter) % 2 {
                        continue;
                    }
                    // Where there is one parity it has one place.
                    let parity = if message_parities == 1 { 0 } else { message.parity };
                    let kappa = ((filter * parities + value.parity) * degrees_in + value.degree) * message_parities + parity;
                    let kappa = kappa * degrees_out + message.degree;
                    let first = plan.accumulators;
                    plan.accumulators += message.rows();
                    plan.paths.push(Path { filter, value, kappa, first, message });
                    for (mv, group) in groups.iter_mut().enumerate() {
                        for mo in 0..message.rows() {
                            let terms = (0..2 * filter + 1)
                                .map(|mf| (filter * filter + mf, all[(mf * value.rows() + mv) * message.rows() + mo]))
                                .filter(|t| t.1 != 0.0);
                            let terms: Vec<(usize, T)> = terms.map(|(y, c)| (y, T::from_f64(c))).collect();
                            if terms.is_empty() {
                                continue;
                            }
                            let key = [filter, value.degree, message.degree, mv, mo];
                            let number = match known.iter().find(|k| k.0 == key) {
                                Some(k) => k.1,
                                None => {
                                    plan.coefficients.push(terms);
                                    known.push((key, plan.coefficients.len() - 1));
                                    plan.coefficients.len() - 1
                                }
                            };
                            group.targets.push((first + mo, number));
                        }
                    }
                }
                plan.groups.extend(groups.into_iter().filter(|g| !g.targets.is_empty()));
            }
        }
        plan
    }

    /// The terms of every coefficient.
    pub(in super::super) fn terms(&self) -> &[Vec<(usize, T)>] {
        &self.coefficients
    }

    /// Numbers that [`Plan::coefficients`] fills.
    pub(in super::super) fn coefficients_len(&self) -> usize {
        self.coefficients.len()
    }

    /// Coefficients of a pair from its harmonics; `reversed`: those of the opposite direction.
    #[inline(always)]
    pub(in super::super) fn coefficients(&self, harmonics: &[T], reversed: bool, to: &mut [T]) {
        let mut y = [T::default(); COMPONENTS];
        y[..harmonics.len()].copy_from_slice(harmonics);
        if reversed {
            // Of degree 1, the only odd one.
            (y[1], y[2], y[3]) = (-y[1], -y[2], -y[3]);
        }
        for (to, terms) in to.iter_mut().zip(&self.coefficients) {
            let mut sum = T::default();
            for &(k, c) in terms {
                sum += c * y[k];
            }
            *to = sum;
        }
    }
}
