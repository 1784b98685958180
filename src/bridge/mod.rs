//! Other engines, over sockets: the i-PI protocol, in which a *server* moves atoms and a *driver* supplies forces.
//!
//! [`Driver`] makes any force provider a driver, for i-PI, ASE's `SocketIOCalculator`, LAMMPS-like servers and others. Numbers on
//! the wire are in atomic units (bohr, hartree) and cells have their vectors in columns; [`Forces`] is the only place that
//! converts. The peer is not trusted: lengths are checked before memory is reserved, and what is not understood is an error.

mod driver;
mod forces;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use driver::{Driver, End, Report};
pub use forces::{Forces, Structure};
pub use transport::Address;
pub use wire::WireError;
