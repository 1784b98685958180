//! PE(3): the transformer whose features turn with the molecule.
//!
//! An atom has channels of scalars and vectors (and tensors of degree 2 where asked for) of both parities. Pairs meet them through
//! `p_ij,l = (1 + g_l) b(r_ij) Y_l(r̂_ij)`: 64 radial functions b, gated by what the pair is told about the graph, times spherical
//! harmonics. The network is equivariant under rotations; it is not under reflections, because the first block's update enters both
//! parities: that is how it can tell a molecule from its mirror image.

mod attention;
mod backward;
pub(super) mod basis;
mod couplings;
mod device;
mod kernels;
mod places;
mod plan;
mod transformer;

pub(super) use basis::PairRows;
pub(super) use couplings::COMPONENTS;
pub(super) use places::{BlockPlaces, Irrep, Places, RADIAL};
pub(super) use plan::Plan;
pub(super) use transformer::{Parameters, Work};

#[cfg(test)]
mod tests;
